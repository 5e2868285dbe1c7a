"""The engine: the shell around the core. It polls, commits and follows; the core decides.

`index updater` keeps the index, `tasks` holds what this worker owns, `worker` runs the rounds.
"""
