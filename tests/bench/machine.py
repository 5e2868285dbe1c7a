"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tests import kafka_server

QUIET = 0.5
"""Above this load average somebody else is at work, and the figures are theirs as well."""

_LIBRARIES = ("msgspec", "aiokafka", "lmdb", "rocksdict")


def head() -> dict[str, str]:
    """Everything about the machine, by name, the load at this moment included."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = _first("/proc/cpuinfo", r"^model name\s*:\s*(.+)$") or platform.processor()
    kibibytes = int(_first("/proc/meminfo", r"^MemTotal:\s+(\d+)") or 0)
    about = {
        "CPU": f"{model}, {usable} cores",
        "Memory": f"{kibibytes / 2**20:.1f} GiB",
        "System": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "Libraries": ", ".join(f"{name} {version(name)}" for name in _LIBRARIES),
        "Kafka": kafka_server.version(),
        "Date": datetime.now(UTC).isoformat(timespec="seconds"),
        "Load at start": f"{load():.2f}",
    }
    if load() > QUIET:
        about["Warning"] = f"the machine was not quiet (load above {QUIET}): do not trust figures"
    return about


def load() -> float:
    """The load average of the last minute."""
    return os.getloadavg()[0]


def cpu_seconds(pid: int) -> float:
    """What a running process has used so far, all its threads; NaN where nobody says."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    except OSError:
        return float("nan")
    ticks = int(fields[11]) + int(fields[12])  # utime and stime, counted after the name
    return ticks / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """The processes that a process has started, by its main thread."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def peak_memory(pid: int) -> int:
    """The most bytes that a running process has ever held in memory.

    Not `ru_maxrss`: Linux carries the parent's over into a process that it starts.
    """
    return int(_first(f"/proc/{pid}/status", r"^VmHWM:\s+(\d+) kB") or 0) * 1024


def _first(file: str, pattern: str) -> str:
    try:
        found = re.search(pattern, Path(file).read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1].strip() if found else ""
