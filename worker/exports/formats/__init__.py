"""What a file of an export looks like: CSV, JSON, XLSX."""
