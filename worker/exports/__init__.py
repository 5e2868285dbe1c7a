"""Exports: from spooled rows to finished files, and the check that they are what they should be.

The writers (`csv_file`, `json_file`, `xlsx_file`) are pure: rows in, chunks out. `write` is
the shell that reads and writes, a `Place` is where it publishes.

Nothing is imported here: settings need the names of the formats, and openpyxl takes 0.1 s.
"""
