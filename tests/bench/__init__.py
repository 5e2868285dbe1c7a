"""What the program does a second on this machine: `make bench`, `python -m tests.bench --help`.

No figure here fails a test. docs/performance.md says what each one means and where the time goes.
"""
