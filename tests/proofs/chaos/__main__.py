"""`python -m tests.proofs.chaos`: exit code 0 if nothing was violated, 1 if something was."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

from tests.kafka_server import KafkaUnavailable
from tests.proofs.chaos.report import Report
from tests.proofs.chaos.run import Options, run, say


def main() -> int:
    """Read the options, run, print the report."""
    try:
        report = asyncio.run(_until_signal(_options()))
    except KafkaUnavailable as error:
        print(f"no Kafka: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130
    for line in report.lines():
        say(line)
    return 0 if report.clean else 1


async def _until_signal(options: Options) -> Report:
    # SIGTERM as Ctrl-C: it must leave no process behind.
    task = asyncio.ensure_future(run(options))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


def _options() -> Options:
    parser = argparse.ArgumentParser(prog="python -m tests.proofs.chaos", description=__doc__)
    add = parser.add_argument
    add("--rounds", type=int, default=10, help="faults, one a round (default: 10)")
    add("--seed", type=int, default=1, help="of the stream and of the faults")
    add("--seconds", type=float, default=1e9, help="begin no further round after so long")
    add("--broker", choices=("kafka", "embedded"), default="kafka")
    add("--workers", type=int, default=3, help="at the start (default: 3)")
    add("--partitions", type=int, default=4, help="of each input (default: 4)")
    add("--rate", type=float, default=1500, help="records a second (default: 1500)")
    add("--grace", type=float, default=3, help="seconds (default: 3)")
    add("--compaction", action="store_true", help="have Kafka compact all the time")
    add("--no-contested", dest="contested", action="store_false", help="no contested addresses")
    add("--keep", action="store_true", help="keep the working directory whatever comes of it")
    return Options(**vars(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
