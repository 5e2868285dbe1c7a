"""The engine: the shell around the core. It reads, commits and follows; the core decides.

`index_updater` fills the index, `tasks` manages the tasks of this worker, `judging` decides on
rounds, and `worker` runs them.
"""
