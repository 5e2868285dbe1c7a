"""Exports read by others' programs, and compared with what was accepted, cell by cell.

What a cell must be is computed here from docs/spec.md and docs/contract.md alone: nothing of
`worker.exports` is imported to say what is right.
"""
