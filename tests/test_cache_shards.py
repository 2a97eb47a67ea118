"""cache/shards.py: a pack in several files is the pack in one, and what does not belong together is one line."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scale
from pictures import encode, noise, scan_here
from pictures import folder as write_folder
from PIL import Image
from runs import Here, Patch

from greyhound.cache import store
from greyhound.cache.pack import Options, pack
from greyhound.cache.shards import Shard, check_name_free, divide, find, shard_paths
from greyhound.cache.store import Pack, PackError
from greyhound.pipelines.augment import Augment
from greyhound.pipelines.engine import Resources
from greyhound.pipelines.loader import Loader

SHARDS = [f"three-0000{index}-of-00003.arrow" for index in range(3)]
IN_THREE = Options(grayscale="keep", shards=3)


def seven_images(root: Path, first: int = 0) -> Path:
    """Seven images in two classes."""
    names = [f"{'cat' if number < 3 else 'dog'}/{number}.jpg" for number in range(7)]
    data = [encode(noise(30 + number, 40, first + number), "JPEG") for number in range(7)]
    return write_folder(root, dict(zip(names, data, strict=True)))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seven_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Look at files in this process: the children have a test file of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("greyhound.cache.pack.scan", scan_here)
        yield


@pytest.fixture(scope="module")
def made(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same pack in one file and in three."""
    folder = tmp_path_factory.mktemp("packs")
    pack(images, folder / "one.arrow", Options(grayscale="keep"))
    pack(images, folder / "three.arrow", IN_THREE)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "packs"))


def test_a_pack_in_three_files_is_the_pack_in_one(made: Path) -> None:
    one, three = Pack(made / "one.arrow"), Pack(made / "three.arrow")
    assert {file.name for file in made.iterdir()} == {"one.arrow", *SHARDS}
    for name in ("labels", "sizes", "orientations", "stored_sizes", "mean_lumas", "crc32s"):
        assert np.array_equal(getattr(one, name), getattr(three, name)), name
    for row in range(7):
        assert one.encoded(row).tobytes() == three.encoded(row).tobytes()
        assert one.describe(row) == three.describe(row)
    assert all(one.ids(split).tolist() == three.ids(split).tolist() for split in ("train", "val", "test"))
    assert (one.header.shards, three.header.shards) == (1, 3)
    assert three.summary() | {"path": None} == one.summary() | {"path": None}
    assert three.corrupt() == []
    assert len(Pack(made / SHARDS[1])) == 7, "any shard opens the pack"


@pytest.mark.parametrize("originals", ["mmap", "ram"])
def test_a_loader_reads_all_shards(made: Path, originals: Any) -> None:
    batches = []
    for name in ("one.arrow", "three.arrow"):
        pack, resources = Pack(made / name, originals), Resources(device="cpu", threads=1)
        with Loader(pack, Augment(size=16), np.arange(7), resources, shuffle=True, epochs=1) as loader:
            batches.append(next(iter(loader)))
    assert batches[0].ids.tolist() == batches[1].ids.tolist()
    assert np.array_equal(batches[0].images.numpy(), batches[1].images.numpy())


def test_what_memory_cannot_hold_is_read_when_needed(made: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(store, "available_memory", lambda: 100)
    opened = Pack(made / "three.arrow")
    opened.make_resident()
    assert not opened._resident
    assert opened.is_valid(6)
    monkeypatch.undo()
    opened.make_resident()
    assert opened._resident


def test_a_damaged_image_is_found_in_its_file(folder: Path) -> None:
    file = folder / SHARDS[1]
    data, image = bytearray(file.read_bytes()), Pack(folder / "three.arrow").encoded(3).tobytes()
    data[data.index(image) + 30] ^= 1
    file.write_bytes(data)
    again = Pack(folder / "three.arrow")
    assert again.corrupt() == [3]
    with pytest.raises(PackError, match=r"three-00001-of-00003\.arrow is corrupt: row 3 \('dog/3\.jpg'\)"):
        again.encoded(3)


def swap(first: Path, one: Path, other: Path) -> None:
    one.rename(first.with_name("spare"))
    other.rename(one)
    first.with_name("spare").rename(other)


def mix(first: Path, one: Path, other: Path) -> None:
    pack(seven_images(first.with_name("images"), 70), first.with_name("other.arrow"), IN_THREE)
    first.with_name("other-00002-of-00003.arrow").replace(other)


SPOILT: dict[str, tuple[Callable[[Path, Path, Path], object], str]] = {
    "lost": (
        lambda first, one, other: one.unlink(),
        r"three\.arrow has 1 of its 3 shards missing, the first three-00001-of-00003\.arrow; copy the pack again",
    ),
    "swapped": (swap, r"three-00001-of-00003\.arrow is shard 2 of 3, and its name says 1 of 3"),
    "doubled": (
        lambda first, one, other: shutil.copy(one, first.with_name("three-00000-of-00002.arrow")),
        r"three\.arrow is there in 2 shards and in 3; expected one pack of the name",
    ),
    "renamed": (
        lambda first, one, other: one.rename(first.with_name("three.arrow")),
        r"three\.arrow is shard 1 of 3, and its name says 0 of 1",
    ),
    "mixed": (
        mix,
        r"three-00002-of-00003\.arrow is of another pack than three-00000-of-00003\.arrow beside it",
    ),
    "cut": (
        lambda first, one, other: os.truncate(one, one.stat().st_size - 9),
        r"three-00001-of-00003\.arrow is no readable pack",
    ),
}


@pytest.mark.parametrize("how", SPOILT)
def test_what_does_not_belong_together_is_refused(folder: Path, how: str) -> None:
    spoil, says = SPOILT[how]
    spoil(*(folder / name for name in SHARDS))
    with pytest.raises(PackError, match=says):
        Pack(folder / "three.arrow")


@pytest.mark.parametrize("renamed", [1, 2])
def test_shards_of_two_packings_are_never_opened_as_one(
    folder: Path, images: Path, monkeypatch: Patch, renamed: int
) -> None:
    """As if packing again was killed, or somebody else packed to the same name, when some shards had their names.

    The seed alone differs, which moves images between the splits: every shard has the digest of the whole pack.
    """
    replace, left = Path.replace, iter(range(renamed))

    def killed(self: Path, target: Path) -> Path:
        if next(left, None) is None:
            raise SystemExit("killed")
        return replace(self, target)

    options = Options(0.2, 0.4, seed=5, grayscale="keep", shards=3)
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(Path, "replace", killed)
        pack(images, folder / "three.arrow", options)
    headers = [Shard(file).header for file in shard_paths(folder / "three.arrow", 3)]
    assert [header.seed for header in headers] == [5] * renamed + [0] * (3 - renamed)
    said = r"is of another pack than three-00000-of-00003\.arrow beside it; copy"
    with pytest.raises(PackError, match=said):
        Pack(folder / "three.arrow")
    pack(images, folder / "three.arrow", options)
    assert len(Pack(folder / "three.arrow")) == 7


def test_a_pack_is_not_written_beside_another_of_its_name(folder: Path, images: Path) -> None:
    with pytest.raises(PackError, match=r"three\.arrow is there in another number of files, 3; remove them"):
        pack(images, folder / "three.arrow", Options(grayscale="keep"))
    with pytest.raises(PackError, match=r"one\.arrow is there in another number of files, 1"):
        pack(images, folder / "one.arrow", Options(grayscale="keep", shards=2))
    with pytest.raises(PackError, match="is named as a shard is"):
        check_name_free(folder / "new-00000-of-00002.arrow", 1)
    check_name_free(folder / "three.arrow", 3)
    assert shard_paths(Path("a/dogs.arrow"), 1) == [Path("a/dogs.arrow")]
    assert shard_paths(Path("a/dogs.arrow"), 2)[1] == Path("a/dogs-00001-of-00002.arrow")
    assert find(Path("nowhere/dogs.arrow")) == [Path("nowhere/dogs.arrow")]
    assert divide(7, 3) == [(0, 2), (2, 4), (4, 7)]
    for shards in (0, 8):
        with pytest.raises(PackError, match=f"shards is {shards}; expected 1 to 7"):
            divide(7, shards)


def test_the_command_line_packs_describes_and_verifies_shards(images: Path, here: Here) -> None:
    packing = ("cache/__main__.py", "pack", str(images), "--grayscale", "keep", "--out")
    answer = here(*packing, "p.arrow", "--shards", "2")
    assert answer.code == 0
    assert "in 2 shards" in answer.out
    answer = here("cache/__main__.py", "verify", "p.arrow")
    assert (answer.code, answer.out) == (0, "p.arrow: 7 of 7 images are as they were packed\n")
    answer = here(*packing, "q.arrow", "--shards", "99")
    assert answer.code == 2
    assert answer.err == "error: shards is 99; expected 1 to 7, at least an image in each\n"


def test_scale_measures_a_small_index_in_shards(tmp_path: Path) -> None:
    path = tmp_path / "scale.arrow"
    scale.write(path, 1000, 3)
    pack = Pack(path)
    assert (len(pack), pack.header.shards) == (1000, 3)
    assert len(pack.ids("train")) == 900
    assert pack.labels.tolist() == (np.arange(1000) % len(scale.CLASSES)).tolist()
    assert pack.image_path(7) == "7/photograph_of_it_number_7"
    costs = {name: [scale.measure(name, path)] * 2 for name in scale.MEASURES}
    assert all(
        cost.seconds > 0 and cost.peak_bytes > path.parent.stat().st_size for [cost, _] in costs.values()
    )
    rows = [scale.as_row(name, (1000, 2000), found) for name, found in costs.items()]
    lines = scale.as_markdown(rows).splitlines()
    assert len(lines) == 2 * (2 + len(scale.MEASURES)) + 1
    assert lines[0] == "| core-seconds | 1,000 | 2,000 | exponent |"
    assert all(line.endswith("| 0.00 |") for line in lines[2 : 2 + len(scale.MEASURES)])


def test_the_exponent_of_what_grows() -> None:
    sizes = (10, 1000, 8000)
    for power in (0, 0.5, 1, 2):
        assert scale.Row("x", sizes, tuple(n**power for n in sizes)).exponent == pytest.approx(power)
    assert scale.Row("x", sizes, (99, 2, 16)).exponent == pytest.approx(1)
    assert scale.Row("x", (7,), (3,)).exponent == 0


def test_the_page_on_scale_has_the_figures_that_its_picture_draws(tmp_path: Path) -> None:
    file = max((Path(__file__).parents[1] / "docs" / "benchmarks").glob("scale-*.json"))
    rows, page = scale.read(file), (file.parents[1] / "scale.md").read_text()
    assert scale.as_markdown([row for row in rows if row.name in scale.MEASURES]) in page
    assert f"benchmarks/{file.stem}.png" in page and file.with_suffix(".png").exists()
    scale.draw_chart(tmp_path / "scale.png", rows)
    with Image.open(tmp_path / "scale.png") as chart:
        assert chart.width > 800
