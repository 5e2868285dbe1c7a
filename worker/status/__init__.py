"""What `buddy status` reports, computed from the tasks' checkpoints and the group members.

Pure: `worker.cli.ask_broker` asks the broker. A checkpoint holds the task's counts of records
read, accepted, deleted, rejected and parked. It is written in the same transaction as the outcomes,
so the counts are exact on every broker. The lag is a difference of offsets: on Kafka it includes
transaction markers, so there it is an upper bound.
"""
