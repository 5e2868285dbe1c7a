"""A worker under a hard limit of memory: `python -m tests.memory --help`. `run` has the rules."""
