"""cache/machine.py: the cores that are ours, by affinity and by a container's quota."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from greyhound.cache import machine


def test_packages_are_found_by_their_name_or_by_how_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("torch", "torchvision", "nvidia-dali-cuda130", "numpy")
    there = [SimpleNamespace(name=name, version=str(place)) for place, name in enumerate(names)]
    monkeypatch.setattr(metadata, "distributions", lambda: there)
    assert machine.installed("torch", "nvidia-dali-cuda*", "ffcv") == {
        "nvidia-dali-cuda130": "2",
        "torch": "0",
    }


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_GROUP", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 5}, raising=False)
    assert machine.available_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.available_cores() == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.available_cores() == 1


@pytest.mark.parametrize(
    ("text", "cores"),
    [("200000 100000", 2), ("250000 100000", 3), ("50000 100000", 1), ("max 100000", 64), ("rubbish", 64)],
)
def test_a_containers_quota_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, cores: int
) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(f"{text}\n")
    monkeypatch.setattr(machine, "_GROUP", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert machine.available_cores() == cores


@pytest.mark.parametrize(("quota", "cores"), [("150000", 2), ("-1", 64), ("10000", 1)])
def test_the_quota_of_an_old_control_group_counts_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, cores: int
) -> None:
    folder = tmp_path / "cpu"
    folder.mkdir()
    (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    monkeypatch.setattr(machine, "_GROUP", tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert machine.available_cores() == cores


def test_memory_is_what_an_old_control_group_allows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    memory, folder = tmp_path / "meminfo", tmp_path / "memory"
    memory.write_text("MemAvailable:    64 kB\n")
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text("50000\n")
    (folder / "memory.usage_in_bytes").write_text("20000\n")
    monkeypatch.setattr(machine, "_MEMORY", memory)
    monkeypatch.setattr(machine, "_GROUP", tmp_path)
    assert machine.available_memory() == 30000
    (folder / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert machine.available_memory() == 64 * 1024


def test_memory_is_what_is_free_and_what_the_container_allows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    memory = tmp_path / "meminfo"
    memory.write_text("MemTotal: 100 kB\nMemAvailable:    64 kB\n")
    monkeypatch.setattr(machine, "_MEMORY", memory)
    monkeypatch.setattr(machine, "_GROUP", tmp_path)
    assert machine.available_memory() == 64 * 1024
    (tmp_path / "memory.max").write_text("50000\n")
    (tmp_path / "memory.current").write_text("20000\n")
    assert machine.available_memory() == 30000
    (tmp_path / "memory.current").write_text("60000\n")
    assert machine.available_memory() == 0
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.available_memory() == 64 * 1024


def test_the_machine_has_a_name() -> None:
    assert machine.describe_machine().endswith(f", {machine.available_cores()} cores")
    assert len(machine.describe_machine()) > len(", 2 cores")


def test_machines_of_one_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kinds of machine here are both called AMD EPYC, and one is twice as fast."""
    found = tmp_path / "cpuinfo"
    found.write_text("processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n\n")
    monkeypatch.setattr(machine, "_PROCESSOR", found)
    assert machine.describe_machine().startswith("AMD EPYC (family 26, model 2), ")
    found.write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")
    assert "family" not in machine.describe_machine()
