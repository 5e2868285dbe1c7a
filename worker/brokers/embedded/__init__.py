"""The embedded broker: a log in SQLite that the processes of one machine share."""
