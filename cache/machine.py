"""The machine: how many cores and how much memory are ours, and what to call it beside a measurement.

Before it: nothing. After it: every pool of threads or processes, and every figure's conditions.
"""

from __future__ import annotations

import importlib.util
import math
import os
import platform
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, TypeVar

from greyhound.cache.errors import UserError

Job = TypeVar("Job")

_GROUP: Final = Path("/sys/fs/cgroup")
_MEMORY: Final = Path("/proc/meminfo")
_PROCESSOR: Final = Path("/proc/cpuinfo")


def available_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has: at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _quota_in_cores())


def describe_machine() -> str:
    """The processor's name, family and model (a virtual machine may hide some), and the cores."""
    lines = _PROCESSOR.read_text().splitlines() if _PROCESSOR.exists() else []
    about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = about.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in about:
        name += f" (family {about['cpu family']}, model {about.get('model', 'unknown')})"
    return f"{name}, {available_cores()} cores"


def has_dali() -> bool:
    """Whether DALI is installed; it exists for Linux only."""
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:
        return False


def installed(*names: str) -> dict[str, str]:
    """Versions of the packages that are installed; a name that ends in * is a prefix."""
    from importlib import metadata  # not for --help, which this module is imported for too

    found = {each.name: each.version for each in metadata.distributions()}
    return {name: found[name] for name in sorted(found) if any(fnmatchcase(name, each) for each in names)}


def alone(job: Job, command: str) -> Job:
    """The job, of a command that does it once. Raises UserError where torchrun started several of them."""
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(f"{command} is for one process; start it without torchrun")
    return job


def _quota_in_cores() -> int:
    """Cores that the control group's quota of time pays for, rounded up; the machine's where there is none.

    Sources: the kernel's cgroup-v2.rst, `cpu.max`: "$MAX $PERIOD"; sched-bwc.rst, `cpu.cfs_quota_us`.
    """
    try:
        quota, period = _first_text("cpu.max", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us").split()
        cores = math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no control group, or "max": no quota
        cores = 0
    return cores if cores > 0 else os.cpu_count() or 1


def _first_text(new: str, *old: str) -> str:
    """What the control group's version 2 says in one file, or version 1 in others. Raises OSError."""
    files = (new,) if (_GROUP / new).exists() else old
    return " ".join((_GROUP / file).read_text() for file in files)


def available_memory() -> int:
    """Bytes this process could still take: what is free, within what its container allows.

    Sources: `MemAvailable` of proc(5); `memory.max` and `memory.current` of cgroup-v2.rst. In version 1 the
    page cache counts as used, so that the answer errs towards too little.
    """
    free = 2 * 2**30  # where the system does not say, as on macOS
    if _MEMORY.exists():
        lines = dict(line.split(":", 1) for line in _MEMORY.read_text().splitlines() if ":" in line)
        free = int(lines["MemAvailable"].split()[0]) * 1024
    try:
        limit = int(_first_text("memory.max", "memory/memory.limit_in_bytes"))
        limit -= int(_first_text("memory.current", "memory/memory.usage_in_bytes"))
    except (OSError, ValueError):  # no control group, or "max": no limit
        return free
    return max(0, min(free, limit))
