"""`buddy pull`: keeps a folder of finished exports up to date, from the HTTP API."""
