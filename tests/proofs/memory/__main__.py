"""Run it by hand: `python -m tests.proofs.memory --records 20000 --size 1000000`."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.kafka_server import KafkaServer
from tests.proofs.memory.run import Plan, play


def main() -> int:
    """One run as the options say."""
    parser = argparse.ArgumentParser(prog="python -m tests.proofs.memory", description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=300, help="bytes of each record")
    parser.add_argument("--limit", type=int, default=1024, help="MiB that the worker may have")
    parser.add_argument("--max-parked-mib", type=int, default=256)
    parser.add_argument("--grace", type=float, default=30.0)
    parser.add_argument("--directory", type=Path, help="where there is room: three times the input")
    parser.add_argument("--on-kafka", action="store_true", help="on a Kafka that packs its topics")
    options = vars(parser.parse_args())
    with ExitStack() as stack:
        parent = options.pop("directory")
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=parent)))
        if options.pop("on_kafka"):
            server = stack.enter_context(KafkaServer(settings={"compression.type": "gzip"}))
            options["kafka"] = server.address
        print(asyncio.run(play(Plan(**options), directory / "place", say=True)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
