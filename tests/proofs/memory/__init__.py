"""A worker under a hard limit of memory: `python -m tests.proofs.memory --help`.

`run` has the rules.
"""
