"""What the system knows of this process; None where it cannot be read."""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path


def resident_bytes() -> int | None:
    """The memory of this process that is in use now."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return None


def cpu_seconds() -> float:
    """The CPU time that this process has taken."""
    times = os.times()
    return times.user + times.system


def open_files() -> int | None:
    """How many files this process has open."""
    with suppress(OSError):
        return len(os.listdir("/proc/self/fd"))
    return None


def most_files() -> int:
    """How many files this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
