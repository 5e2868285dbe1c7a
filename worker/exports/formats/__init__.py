"""The formats of an export: CSV, JSON, XLSX."""
