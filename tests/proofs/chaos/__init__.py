"""The chaos test: real processes under faults, then an independent checker of what they wrote.

`python -m tests.proofs.chaos --help`. `stream` makes the records, `processes` and `faults` make the
trouble, `recording` keeps what stands in the topics, `checker` judges it. The checker shares no
code with the program: it knows docs/contract.md and docs/spec.md, and reads plain JSON.
"""
