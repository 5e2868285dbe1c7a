"""The command line: `buddy`. Each command is a thin shell; what it does lives elsewhere."""
