"""Cores that this process may use: those of its affinity, and what its control groups allow."""

from __future__ import annotations

import os
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """How many processes can be busy at the same time, at least one."""
    if not hasattr(os, "sched_getaffinity"):  # no Linux
        return os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0))
    try:
        mine = Path("/proc/self/cgroup").read_text("ascii", "replace")
    except OSError:
        return allowed
    return max(1, min(allowed, int(_share(mine, _GROUPS))))


def _share(mine: str, groups: Path) -> float:
    """Cores that control groups give a process; ``inf`` if none limits them.

    :param mine: its ``/proc/self/cgroup``; only version 2, whose line begins with ``0::``, counts.

    A group has what those above it leave it (Linux, admin-guide/cgroup-v2, "CPU Interface Files").
    """
    share = float(2**31)
    for line in mine.splitlines():
        if line.startswith("0::"):
            group = groups / line.removeprefix("0::").lstrip("/")
            for each in (group, *group.parents):
                share = min(share, _limit(each / "cpu.max"))
                if each == groups:
                    break
    return share


def _limit(file: Path) -> float:
    """Cores by a ``cpu.max``: microseconds in each period of so many, or ``max``."""
    try:
        quota, period = file.read_text("ascii").split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return float(2**31)
