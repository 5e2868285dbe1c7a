"""Reads the parts of an XLSX workbook that rows need: package, book, strings, rows, cells.

expat reads everything in pieces, so no part is in memory as a whole. Content that rows do not need
is ignored: styling, views, charts and calculation settings may be anything.
"""
