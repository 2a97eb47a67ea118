"""The comparison with cleanvision plants what it says, where it says, and counts right."""

from __future__ import annotations

from pathlib import Path

import pytest
from contest import CHANGED, Planted, plant, score, tabulate
from pictures import encode, folder, noise
from PIL import Image

from greyhound.cache.store import PackError

TRUTH = [
    Planted("a.jpg", "exact-duplicate", "the same bytes", "b.jpg"),
    Planted("c.jpg", "exact-duplicate", "the same bytes", "d.jpg"),
    Planted("e.jpg", "dark", "a tenth of the light"),
]


@pytest.mark.parametrize(
    ("fault", "flagged", "counts"),
    [
        ("exact-duplicate", {"a.jpg"}, (2, 1, 1, 1)),
        ("exact-duplicate", {"a.jpg", "b.jpg", "d.jpg"}, (2, 2, 3, 3)),
        ("exact-duplicate", {"e.jpg"}, (2, 0, 1, 0)),
        ("dark", {"e.jpg", "a.jpg"}, (1, 1, 2, 1)),
        ("dark", set(), (1, 0, 0, 0)),
    ],
)
def test_a_pair_is_found_by_either_of_the_two(fault: str, flagged: set[str], counts: tuple[int, ...]) -> None:
    found = score(TRUTH, fault, flagged)
    assert (found.planted, found.found, found.flagged, found.right) == counts


def test_what_is_planted_is_there(tmp_path: Path) -> None:
    names = [f"{name}/{number}.jpg" for name in "ab" for number in range(42)]
    files = {name: encode(noise(96, 72, place), "JPEG") for place, name in enumerate(names)}
    source, images = folder(tmp_path / "source", files), tmp_path / "images"
    found = plant(source, images, each=6)
    assert len(found) == 6 * (len(CHANGED) + 2)
    assert len({row.path for row in found}) == len(found)
    assert len([file for file in images.rglob("*") if file.is_file()]) == len(names) + 12
    for row in found:
        with Image.open(images / row.path) as picture:
            assert (picture.mode == "L") == (row.kind == "one channel")
        if row.fault == "exact-duplicate":
            assert (images / row.path).read_bytes() == (images / row.of).read_bytes()
    table = tabulate(found, {"nobody": ({}, (1.0, 2.0))})
    assert "| dark | 0.000 (0/6), none flagged |" in table
    with pytest.raises(PackError, match="has 84 images without a fault; expected at least 168"):
        plant(source, tmp_path / "more")
