"""The parts of an XLSX workbook, as far as rows need them: package, book, strings, rows, cells.

Everything is read in pieces by expat. No part is held as a whole, and nothing of a workbook is
looked at that holds no rows: styling, views, charts and calculation settings may be anything.
"""
