"""The command line, `buddy`. Each command is a thin shell; other packages do the work."""
