"""Kill -9 at every stage of an export: no half export is ever visible, and the next start finishes.

`python -m tests.proofs.kill_exports --help`. `stages` tells from outside how far an export is,
`run` kills real sinks there and looks at what is left; nothing in the program knows of it.
"""
