"""tests/fuzzed.py: every target reads its own examples, and every input that once broke a reader."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fuzzed import RUN_FILES, TARGETS

from greyhound.model.resume import differences
from greyhound.model.run import VERSIONS


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_reads_its_examples(name: str, tmp_path: Path) -> None:
    target, place = TARGETS[name], tmp_path / "place"
    place.mkdir()
    seeds = target.seeds(tmp_path)
    assert seeds
    assert [target.attempt(place, seed) for seed in seeds] == [None] * len(seeds)


def cut_short(data: bytes) -> bytes:
    """A table whose last row ends within its first cells."""
    return data.rstrip().rpartition(b"\n")[0] + b"\na/1.jpg,a"


def many_disks(data: bytes) -> bytes:
    """A zip file that says where it ends, and that it goes on on other disks."""
    locator = b"PK\x06\x07" + struct.pack("<LQL", 0, 0, 9)
    place = data.rindex(b"PK\x05\x06")
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return data[: place - len(locator)] + locator + end


def saying(key: str, value: object) -> Callable[[bytes], bytes]:
    """What makes a checkpoint say something else, all its sums in order; of an object, in some of its fields."""

    def spoil(data: bytes) -> bytes:
        content = torch.load(io.BytesIO(data), weights_only=True)
        content[key] = content[key] | value if isinstance(value, dict) else value
        stream = io.BytesIO()
        torch.save(content, stream)
        return stream.getvalue()

    return spoil


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("index", lambda data: data[:13] + b"\xff" + data[14:]),
        ("index", lambda data: data[:5] + bytes(4) + data[9:]),
        ("index", lambda data: data[:14] + b"\0\0\xc0\x7f" + data[18:]),
        ("header", lambda _: b'{"format": "x"}'),
        ("survey", cut_short),
        ("checkpoint", many_disks),
        ("checkpoint", saying("progress", {"epoch": "x"})),
        ("checkpoint", saying("progress", {"images": "x"})),
        ("checkpoint", saying("progress", {"epoch": -1})),
        ("checkpoint", saying("progress", {"trained": {}})),
        ("checkpoint", saying("progress", {"trained": {"epoch": 0, "train_loss": {}, "seconds": 1.0}})),
        ("run", lambda _: bytes([RUN_FILES.index(VERSIONS)]) + b'{"torch": {}}'),
        ("benchmark", lambda _: b"[" * 3000),
    ],
)
def test_what_once_broke_a_reader_is_refused(name: str, spoil: Callable[..., bytes], tmp_path: Path) -> None:
    target = TARGETS[name]
    assert target.attempt(tmp_path, spoil(target.seeds(tmp_path)[0])) is not None


def test_an_object_that_no_recipe_has_is_a_difference(tmp_path: Path) -> None:
    target = TARGETS["recipe"]
    (data,) = target.seeds(tmp_path)
    edited = json.loads(data) | {"old": {"a": 1}, "averaging": {"steps": {"of": 2}}}
    assert target.attempt(tmp_path, json.dumps(edited).encode()) is None
    assert list(differences({"old": {"a": 1}, "b": {"c": 1}}, {"b": {"c": 2}})) == [
        ("old", {"a": 1}, None),
        ("b.c", 1, 2),
    ]
