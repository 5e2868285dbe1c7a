"""One export as the sink writes it, in a process of its own so that its memory can be told.

`python -m tests.bench.whole_export SPOOL ROOT FORMAT` writes what lies in SPOOL (one file an
entity) below ROOT, and prints seconds and the highest use of memory as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from schemas import ENTITIES
from tests.bench.machine import peak_memory
from worker.exports import DirectoryPlace, Format, Metadata, Options, Spool, write_export


def write(spool: Path, root: Path, format_: Format) -> dict[str, float]:
    """Write the export, measured from call to return."""
    files = Spool({name: spool / name for name in ENTITIES if (spool / name).exists()})
    counts = json.loads((spool / "counts.json").read_text())
    now = datetime.now(UTC)
    metadata = Metadata(
        export_id="bench", export_date=now, start=now.date(), end=now.date(), counts=counts
    )
    options = Options(entities=tuple(files.rows), formats=(format_,))
    start = time.perf_counter()
    asyncio.run(write_export(DirectoryPlace(root), files, metadata, options))
    return {"seconds": time.perf_counter() - start, "peak": peak_memory()}


if __name__ == "__main__":
    _, _spool, _root, _format = sys.argv
    print(json.dumps(write(Path(_spool), Path(_root), msgspec.convert(_format, Format))))
