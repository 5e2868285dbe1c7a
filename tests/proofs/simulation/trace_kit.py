"""What a run of the simulation logs, as one hash."""

from __future__ import annotations

from hashlib import sha256

from tests.proofs.simulation.schedule import Run


def trace(seed: int) -> str:
    lines: list[str] = []
    run = Run(seed, lines.append)
    run.play()
    return sha256("\n".join(lines).encode()).hexdigest()
