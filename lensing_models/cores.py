"""How many cores this process may use."""

from __future__ import annotations

import os
from pathlib import Path

#: Quota and period of the container's control group (version 2): microseconds of processor time in so many.
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def usable_cores(quota: Path = CPU_QUOTA) -> int:
    """Return the cores that this process may run on, or the whole ones of its container's *quota* if they are fewer.

    More threads than the quota pays for are stopped for a part of each period, and no counter tells.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed_us, period_us = map(int, quota.read_text(encoding="ascii").split())
    except (OSError, ValueError):  # no such group, or "max": one without a quota
        return cores
    return min(cores, max(1, allowed_us // period_us))
