"""tests/fuzzed.py: every target reads its own examples, and every input that once broke a reader."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzzed import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_reads_its_examples(name: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    for folder in ("seeds", "place"):
        (tmp_path / folder).mkdir()
    seeds = target.seeds(tmp_path / "seeds")
    assert seeds
    assert [target.attempt(tmp_path / "place", seed) for seed in seeds] == [None] * len(seeds)


def cut_short(data: bytes) -> bytes:
    """A table whose last row ends within its first cells."""
    return data.rstrip().rpartition(b"\n")[0] + b"\na/1.jpg,a"


def many_disks(data: bytes) -> bytes:
    """A zip file that says where it ends, and that it goes on on other disks."""
    locator = b"PK\x06\x07" + struct.pack("<LQL", 0, 0, 9)
    place = data.rindex(b"PK\x05\x06")
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return data[: place - len(locator)] + locator + end


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("index", lambda data: data[:13] + b"\xff" + data[14:]),
        ("index", lambda data: data[:5] + bytes(4) + data[9:]),
        ("index", lambda data: data[:14] + b"\0\0\xc0\x7f" + data[18:]),
        ("survey", cut_short),
        ("review", lambda _: b"[" * 3000),
        ("checkpoint", many_disks),
        ("benchmark", lambda _: b"[" * 3000),
    ],
)
def test_what_once_broke_a_reader_is_refused(
    name: str, spoil: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    target = TARGETS[name]
    assert target.attempt(tmp_path, spoil(target.seeds(tmp_path)[0])) is not None
