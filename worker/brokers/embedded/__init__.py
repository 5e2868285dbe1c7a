"""The embedded broker: a log on SQLite that the processes of one machine share."""
