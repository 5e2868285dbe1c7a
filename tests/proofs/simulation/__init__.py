"""A deterministic simulation: the real engine, several times at once, on a broker in memory.

A seed decides everything: how many tasks and workers, what upstream sends, who runs next, what
is visible to whom, who dies. `python -m tests.proofs.simulation --replay SEED --steps` shows a run.
"""
