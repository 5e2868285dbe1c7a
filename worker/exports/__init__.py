"""Exports: from spooled rows to finished files, and their verification.

The writers in `formats` are pure: rows in, chunks out. `write` is the shell that reads and writes.
A `Place` (`places`) is where it publishes.

This file imports nothing: settings need the names of the formats, and openpyxl takes 0.1 s.
"""
