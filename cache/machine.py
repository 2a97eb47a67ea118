"""The machine: how many cores and how much memory are ours, and what to call it beside a measurement.

Before it: nothing. After it: every pool of threads or processes, and every figure's conditions.
"""

from __future__ import annotations

import importlib.util
import math
import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final, TypeVar

from greyhound.cache.errors import UserError

Job = TypeVar("Job")

_GROUP: Final = Path("/sys/fs/cgroup")
_OWN: Final = Path("/proc/self/cgroup")
_MEMORY: Final = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""A control group's limit, its use, and files not used lately: of version 2, and of version 1."""
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
    """Cores that the control groups' quotas of time pay for, rounded up; the machine's where there is none.

    Sources: the kernel's cgroup-v2.rst, `cpu.max`: "$MAX $PERIOD"; sched-bwc.rst, `cpu.cfs_quota_us`.
    """
    cores = os.cpu_count() or 1
    for group in _groups("cpu"):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            with suppress(OSError, ValueError):  # no such file, or "max": no quota
                quota, period = map(int, " ".join((group / name).read_text() for name in names).split())
                cores = min(cores, math.ceil(quota / period)) if quota > 0 else cores
    return cores


def available_memory() -> int:
    """Bytes this process could still take: what is free, within what each of its control groups allows.

    Files that a group has read and not used lately count as free: the kernel takes their memory back first.
    Sources: `memory.max`, `memory.current`, `inactive_file` of cgroup-v2.rst; cgroup-v1/memory.rst.
    """
    import psutil  # not for --help, which this module is imported for too

    free: int = psutil.virtual_memory().available
    for group in _groups("memory"):
        for limit, used, files in _MEMORY:
            with suppress(OSError, ValueError):  # no such file, or "max": no limit
                most, taken = (int((group / name).read_text()) for name in (limit, used))
                free = min(free, most - taken + _statistics(group / "memory.stat").get(files, 0))
    return max(0, free)


def _groups(controller: str) -> Iterator[Path]:
    """The control groups of this process, from its own to the outermost that is seen here.

    Of version 2, and of a controller of version 1. Source: cgroups(7), "/proc/[pid]/cgroup".
    """
    lines = [line.split(":", 2) for line in _text(_OWN).splitlines()]
    paths = {name: path for _, names, path in lines for name in names.split(",")}
    for root, name in ((_GROUP, ""), (_GROUP / controller, controller)):
        own = root / paths.get(name, "").lstrip("/")
        yield from (each for each in (own, *own.parents) if each.is_relative_to(root))


def _statistics(file: Path) -> dict[str, int]:
    """The numbers of a memory.stat, by name; none where it cannot be read."""
    pairs = [line.split() for line in _text(file).splitlines()]
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _text(file: Path) -> str:
    """What a file of the kernel says; nothing where it cannot be read."""
    try:
        return os.fsdecode(file.read_bytes())
    except OSError:
        return ""
