"""The machine: how many cores are ours, and what to call it beside a measurement.

Before it: nothing. After it: every pool of threads or processes, and every figure's conditions.
"""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path
from typing import Final

_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")
_PROCESSOR: Final = Path("/proc/cpuinfo")


def available_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has: at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _quota_in_cores(_QUOTA))


def describe_machine() -> str:
    """The processor's name, and the cores."""
    lines = _PROCESSOR.read_text().splitlines() if _PROCESSOR.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {available_cores()} cores"


def _quota_in_cores(file: Path) -> int:
    """Cores that the control group's quota of time pays for, rounded up; the machine's where there is none.

    Source: the kernel's Documentation/admin-guide/cgroup-v2.rst, `cpu.max`: "$MAX $PERIOD" in microseconds.
    """
    try:
        quota, period = file.read_text().split()
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no control group, or "max": no quota
        return os.cpu_count() or 1
