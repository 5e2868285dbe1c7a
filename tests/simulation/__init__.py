"""A deterministic simulation of the protocol: the real core, a shell re-created step by step.

A seed decides everything: how many tasks and workers, what upstream sends, who runs next, what
is visible to whom, who dies. `python -m tests.simulation --replay SEED --steps` shows a run.
"""
