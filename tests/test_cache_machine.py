"""cache/machine.py: the cores that are ours, by affinity and by a container's quota."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from pictures import folder
from runs import Patch

from greyhound.cache import machine


def test_packages_are_found_by_their_name_or_by_how_it_begins(monkeypatch: Patch) -> None:
    names = ("torch", "torchvision", "nvidia-dali-cuda130", "numpy")
    there = [SimpleNamespace(name=name, version=str(place)) for place, name in enumerate(names)]
    monkeypatch.setattr(metadata, "distributions", lambda: there)
    found = machine.installed("torch", "nvidia-dali-cuda*", "ffcv")
    assert found == {"nvidia-dali-cuda130": "2", "torch": "0"}


@pytest.fixture
def group(monkeypatch: Patch, tmp_path: Path) -> Path:
    """A folder for the control group of a machine with 64 cores."""
    monkeypatch.setattr(machine, "_GROUP", tmp_path)
    monkeypatch.setattr(machine, "_OWN", tmp_path / "own")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    return tmp_path


def test_cores_are_those_that_the_process_may_use(monkeypatch: Patch, group: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 5}, raising=False)
    assert machine.available_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.available_cores() == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.available_cores() == 1


QUOTAS = {"200000 100000": 2, "250000 100000": 3, "50000 100000": 1, "max 100000": 64, "rubbish": 64}


def test_a_containers_quota_counts(group: Path) -> None:
    for quota, cores in QUOTAS.items():
        folder(group, {"cpu.max": f"{quota}\n".encode()})
        assert machine.available_cores() == cores
    (group / "cpu.max").unlink()
    for old, cores in ((150_000, 2), (-1, 64), (10_000, 1)):  # of an old control group
        folder(group / "cpu", {"cpu.cfs_quota_us": f"{old}\n".encode(), "cpu.cfs_period_us": b"100000\n"})
        assert machine.available_cores() == cores


@pytest.fixture
def half_a_million_free(monkeypatch: Patch) -> None:
    """A machine with so many bytes of free memory."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=500_000))


@pytest.mark.parametrize(
    ("limit", "usage", "files", "none"),
    [
        ("memory.max", "memory.current", "inactive_file", "max"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "total_inactive_file",
            "9223372036854771712",
        ),
    ],
    ids=["a control group", "an old one"],
)
def test_memory_is_what_is_free_and_what_the_container_allows(
    half_a_million_free: None, group: Path, limit: str, usage: str, files: str, none: str
) -> None:
    """Files that were read and not used lately are no use of memory."""
    assert machine.available_memory() == 500_000
    for allowed, used, left in (("50000", "20000", 30000), ("50000", "60000", 0), (none, "60000", 500_000)):
        folder(group, {limit: f"{allowed}\n".encode(), usage: f"{used}\n".encode()})
        assert machine.available_memory() == left
    statistics = Path(limit).with_name("memory.stat")
    folder(group, {limit: b"50000", usage: b"45000", str(statistics): f"anon 7\n{files} 40000\n".encode()})
    assert machine.available_memory() == 45_000
    for strange in (b"anon\n", f"{files} many\n".encode(), b"\xff\xfe"):
        folder(group, {str(statistics): strange})
        assert machine.available_memory() == 5_000, "the limit holds"


def test_the_limits_of_every_group_above_count(half_a_million_free: None, group: Path) -> None:
    """As of a job on a cluster: its group lies below the root, which has no limit of its own."""
    (group / "own").write_text("5:cpu,cpuacct:/slice/job\n0::/slice/job/step\n")
    job = {"memory.max": b"90000\n", "memory.current": b"20000\n", "cpu.max": b"400000 100000\n"}
    step = {"memory.max": b"max\n", "memory.current": b"10000\n", "cpu.max": b"max 100000\n"}
    folder(group / "slice" / "job", job)
    folder(group / "slice" / "job" / "step", step)
    assert (machine.available_memory(), machine.available_cores()) == (70_000, 4)
    folder(group / "cpu/slice/job", {"cpu.cfs_quota_us": b"300000\n", "cpu.cfs_period_us": b"100000\n"})
    assert machine.available_cores() == 3
    folder(group / "slice" / "job" / "step", {"memory.max": b"30000\n", "cpu.max": b"200000 100000\n"})
    assert (machine.available_memory(), machine.available_cores()) == (20_000, 2)
    (group / "own").write_bytes(b"0::/of/another/caf\xe9\n")
    assert (machine.available_memory(), machine.available_cores()) == (500_000, 64)


def test_machines_of_one_name_are_told_apart(tmp_path: Path, monkeypatch: Patch) -> None:
    """Two kinds of machine here are both called AMD EPYC, and one is twice as fast."""
    assert machine.describe_machine().endswith(f", {machine.available_cores()} cores")
    assert len(machine.describe_machine()) > len(", 2 cores")
    found = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "_PROCESSOR", found)
    found.write_text("processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n\n")
    assert machine.describe_machine().startswith("AMD EPYC (family 26, model 2), ")
    found.write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")
    assert "family" not in machine.describe_machine()
