"""Packing: originals byte for byte, a split that only content decides, and an old pack that survives every accident."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pictures import ALL_TRAIN, coded, encode, folder, noise, paths_of, scan_here, splits_of, store_as
from PIL import Image, ImageOps, features
from runs import Patch

from greyhound.cache import pack as module
from greyhound.cache.files import WriteError
from greyhound.cache.folder import NO_LABEL, Sample, find_file, find_labelled, find_unlabelled
from greyhound.cache.machine import has_dali
from greyhound.cache.pack import Options, pack, transcode, write
from greyhound.cache.scan import ImageInfo
from greyhound.cache.selection import Decision, Exclusion, Finding, Photograph, read_exclusions
from greyhound.cache.split import Kept, Table, assign
from greyhound.cache.stats import measure
from greyhound.cache.store import SPLITS, Pack, PackError
from greyhound.cache.tables import find_paths
from greyhound.pipelines.augment import Augment
from greyhound.pipelines.engine import Resources
from greyhound.pipelines.loader import Loader

pytestmark = pytest.mark.usefixtures("scan_in_process")


def images(root: Path, classes: Mapping[str, int]) -> Path:
    """A folder with so many different coloured images a class."""
    names = [f"{name}/{name}_{number}.png" for name, count in classes.items() for number in range(count)]
    return folder(root, {name: encode(noise(12, 10, seed)) for seed, name in enumerate(names)})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with three images in each of two classes."""
    return images(tmp_path / "images", {"a": 3, "b": 3})


def pack_of(root: Path, options: Options = ALL_TRAIN) -> Pack:
    pack(root, root.with_suffix(".arrow"), options)
    return Pack(root.with_suffix(".arrow"))


def image_of(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def pixels_of(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(image_of(data).convert("RGB"))


def grey(width: int, height: int, seed: int) -> bytes:
    return encode(Image.fromarray(noise(width, height, seed)).convert("L"))


def test_originals_byte_for_byte(tmp_path: Path) -> None:
    files = {
        "a/one.jpg": encode(noise(40, 30, 0), "JPEG", 6) + b"trailing bytes stay",
        "a/two.png": encode(noise(20, 50, 1)),
        "b/three.webp": encode(noise(33, 22, 2), "WEBP"),
    }
    opened = pack_of(folder(tmp_path / "images", files))
    assert paths_of(opened) == list(files)
    for row, data in enumerate(files.values()):
        assert opened.encoded(row).tobytes() == data
        assert int(opened.crc32s[row]) == zlib.crc32(data)
    assert opened.labels.tolist() == [0, 0, 1]
    assert opened.sizes.tolist() == [[30, 40], [20, 50], [33, 22]]
    assert opened.stored_sizes.tolist() == [[40, 30], [20, 50], [33, 22]]
    assert opened.orientations.tolist() == [6, 1, 1]
    assert opened.nbytes == sum(map(len, files.values()))
    luma = (noise(20, 50, 1) @ [0.299, 0.587, 0.114]).mean()
    assert opened.mean_lumas[1] == pytest.approx(luma, abs=0.01)


def test_labels_are_the_classes_sorted_case_insensitively(tmp_path: Path) -> None:
    """A folder without files is no class."""
    names = ("beagle", "Zorgi", "Akita", "airedale", "akita")
    root = images(tmp_path / "images", dict.fromkeys(names, 1))
    (root / "empty").mkdir()
    opened = pack_of(root)
    assert opened.classes == ("airedale", "Akita", "akita", "beagle", "Zorgi")
    assert [path.split("/")[0] for path in paths_of(opened)] == list(opened.classes)
    assert opened.labels.tolist() == [0, 1, 2, 3, 4]


def test_the_file_is_plain_arrow(tmp_path: Path) -> None:
    root = images(tmp_path / "images", {"a": 2, "b": 3})
    opened = pack_of(root, Options(val=0, test=0.34))
    table = pa.ipc.open_file(pa.memory_map(str(opened.path))).read_all()
    names = ["image", "label", "split", "width", "height", "orientation", "mean_luma", "crc32", "path"]
    assert table.column_names == names
    assert table["label"].to_pylist() == [0, 0, 1, 1, 1]
    assert table["path"].to_pylist() == paths_of(opened)
    assert table["width"].to_pylist() == [12] * 5
    assert table["height"].to_pylist() == [10] * 5
    assert [(root / path).read_bytes() for path in paths_of(opened)] == table["image"].to_pylist()
    assert sorted(table["split"].to_pylist()) == ["test", "test", "train", "train", "train"]


def test_many_record_batches_read_as_one(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(module, "BATCH_BYTES", 1)
    names = [f"{'a' if row < 7 else 'b'}/{row:02}.png" for row in range(13)]
    data = [encode(noise(9 + row, 9, row)) for row in range(13)]
    opened = pack_of(folder(tmp_path / "images", dict(zip(names, data, strict=True))), Options(0.2, 0.2))
    assert pa.ipc.open_file(str(opened.path)).num_record_batches == 13
    assert [opened.encoded(row).tobytes() for row in range(13)] == data
    assert opened.sizes[:, 0].tolist() == [*range(9, 22)]
    assert opened.labels.tolist() == [0] * 7 + [1] * 6
    assert paths_of(opened) == names
    assert len(splits_of(opened)) == 13


def test_the_digest_says_whether_two_packs_hold_the_same_data(root: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.arrow", tmp_path / "two.arrow"
    first = pack(root, one, ALL_TRAIN)
    assert pack(root, two, ALL_TRAIN) == first
    assert one.read_bytes() == two.read_bytes()
    assert len(first.digest) == 64
    digests = [first.digest, pack(root, two, Options(0, 0.4)).digest]
    (root / "a" / "a_0.png").rename(root / "a" / "renamed.png")
    digests.append(pack(root, two, ALL_TRAIN).digest)
    folder(root, {"a/renamed.png": encode(noise(12, 10, 777)), "a/bad.jpg": b"bad"})
    header = pack(root, two, Options(0, 0, seed=2**64 - 1))
    assert len({*digests, header.digest}) == 4
    assert Pack(two).header == header
    assert header.seed == 2**64 - 1


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def looked_at(contents: Sequence[tuple[int, str]]) -> list[tuple[Sample, ImageInfo]]:
    """(label, content) -> what `assign_splits` takes; the names are made up from the place."""
    return [
        (Sample(Path(f"{place}.jpg"), f"{place}.jpg", label), ImageInfo(sha256=digest_of(text)))
        for place, (label, text) in enumerate(contents)
    ]


def assign_splits(kept: Sequence[Kept], options: Options) -> list[str]:
    return assign(kept, [str(label) for label in range(9)], options).splits


def shares(contents: Sequence[tuple[int, str]], options: Options) -> dict[tuple[int, str], str]:
    return dict(zip(contents, assign_splits(looked_at(contents), options), strict=True))


def count(splits: Sequence[str]) -> tuple[int, ...]:
    """How many are in each split."""
    return tuple(splits.count(split) for split in SPLITS)


CONTENTS = [(place % 3, f"image {place}") for place in range(300)]


def test_the_shares_are_those_asked_for_in_every_class() -> None:
    found = shares(CONTENTS, Options(0.1, 0.2))
    for label in range(3):
        assert count([split for (owner, _), split in found.items() if owner == label]) == (70, 10, 20)


@pytest.mark.parametrize(
    ("images", "val", "test", "expected"),
    [
        (10, 0.1, 0.2, (7, 1, 2)),
        (1, 0.1, 0.2, (1, 0, 0)),
        (2, 0.45, 0.45, (1, 0, 1)),
        (3, 0.3, 0.3, (1, 1, 1)),
        (4, 0.1, 0.2, (3, 0, 1)),
        (10, 0.0, 0.0, (10, 0, 0)),
        (10, 0.49, 0.5, (1, 4, 5)),
        (10, 0.0, 0.99, (1, 0, 9)),
    ],
)
def test_small_classes_always_keep_something_to_train_on(
    images: int, val: float, test: float, expected: tuple[int, int, int]
) -> None:
    kept = looked_at([(0, str(place)) for place in range(images)])
    assert count(assign_splits(kept, Options(val, test))) == expected


def test_only_seed_and_content_decide_for_each_class_alone() -> None:
    options = Options(0.1, 0.2, seed=5)
    found = shares(CONTENTS, options)
    assert shares(CONTENTS[::-1], options) == found
    assert shares(CONTENTS, replace(options, seed=6)) != found
    assert shares(CONTENTS, replace(options, grayscale="keep")) == found
    alone = [(label, text) for label, text in CONTENTS if label == 1]
    assert shares(alone, options) == {key: found[key] for key in alone}


def test_exact_duplicates_stay_together() -> None:
    contents = [(0, f"image {place // 4}") for place in range(300)]  # neither 90 nor 60 is a multiple of 4
    for seed in range(5):
        splits = assign_splits(looked_at(contents), Options(0.2, 0.3, seed))
        families = [set(splits[place : place + 4]) for place in range(0, 300, 4)]
        assert all(len(family) == 1 for family in families)
        assert abs(splits.count("test") - 90) < 4
        assert abs(splits.count("val") - 60) < 4


def near_twins(images: int, families: int, label: int = 0) -> list[tuple[Sample, ImageInfo]]:
    """`images` looks of so many pictures, each with grain of its own, so that no two have the same bytes."""
    made = []
    for place in range(images):
        pixels = noise(160, 120, 1000 * label + place % families).astype(np.int16) + place % 3
        small = measure(np.clip(pixels, 0, 255).astype(np.uint8))["thumbnail"]
        name = f"{label}/{place}.png"
        look = ImageInfo(width=160, height=120, sha256=digest_of(name), thumbnail=small)
        made.append((Sample(Path(name), name, label), look))
    return made


def test_near_twins_stay_together() -> None:
    """A family that no split has room for is for training."""
    kept = near_twins(90, 30)
    for seed in range(5):
        splits = assign_splits(kept, Options(0.2, 0.3, seed))
        assert splits[:30] == splits[30:60] == splits[60:]
        assert count(splits)[1:] == (18, 27)
    assert assign_splits(kept[::-1], Options(0.2, 0.3, 4))[::-1] == splits
    splits = assign_splits(near_twins(30, 1) + near_twins(20, 20, label=1), Options(0.1, 0.2))
    assert count(splits[:30]) == (30, 0, 0)
    assert count(splits[30:]) == (14, 2, 4)
    assert assign_splits(near_twins(4, 2), Options(0, 0)) == ["train"] * 4


def test_a_picture_that_two_classes_claim_is_for_training() -> None:
    kept = near_twins(20, 20) + near_twins(20, 20, label=1)
    source, look = kept[-1]
    kept += [(replace(source, label=0, path="again.png"), replace(look, sha256="0" * 64)) for _ in range(3)]
    for seed in range(5):
        splits = assign_splits(kept, Options(0.2, 0.5, seed))
        assert splits[-4:] == ["train"] * 4
        assert count(splits[20:40]) == (6, 4, 10)
        assert count(splits[:20] + splits[40:]) == (6, 5, 12)


def test_a_pack_never_separates_a_picture_from_its_mirror_image(tmp_path: Path) -> None:
    files = {f"{'ab'[seed // 8]}/{seed}.png": noise(160, 120, seed) for seed in range(16)}
    files |= {path.replace(".png", "-m.png"): pixels[:, ::-1] for path, pixels in files.items()}
    root = folder(tmp_path / "images", {path: encode(pixels) for path, pixels in files.items()})
    opened = pack_of(root, Options(0.25, 0.25))
    splits = dict(zip(paths_of(opened), splits_of(opened), strict=True))
    assert splits.keys() == files.keys()
    assert all(splits[path.replace("-m", "")] == split for path, split in splits.items())
    assert count([*splits.values()])[2] == 8


def test_renaming_and_touching_files_moves_no_image(tmp_path: Path) -> None:
    root = images(tmp_path / "images", {"a": 12, "b": 12})

    def by_content() -> dict[bytes, str]:
        opened = pack_of(root, Options(0.2, 0.2))
        return {opened.encoded(row).tobytes(): split for row, split in enumerate(splits_of(opened))}

    before = by_content()
    assert len(before) == 24
    for number, file in enumerate(sorted((root / "a").iterdir())):
        renamed = file.rename(root / "a" / f"{99 - number}-renamed.jpeg")
        os.utime(renamed, (number, number))
    assert by_content() == before


def test_everything_into_one_split_with_classes_kept(tmp_path: Path) -> None:
    root, out = images(tmp_path / "images", {"a": 2}), tmp_path / "p.arrow"
    header = write(find_unlabelled(root), ("cat", "dog"), out, ALL_TRAIN, split="test")
    opened = Pack(out)
    assert header.classes == opened.classes == ("cat", "dog")
    assert opened.labels.tolist() == [-1, -1]
    assert opened.ids("test").tolist() == [0, 1]
    bad = folder(tmp_path / "bad", {"1.jpg": b"bad"})
    message = "none of 1 files is a usable image; the first: 1.jpg: undecodable (no image that is read here)"
    with pytest.raises(PackError, match=f"^{re.escape(message)}$"):
        write(find_unlabelled(bad), (), out, split="test")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val": -0.1}, "val is -0.1 and test is 0.2; expected shares from 0, together below 1"),
        ({"val": 0.5, "test": 0.5}, "val is 0.5 and test is 0.5; expected shares from 0, together below 1"),
        ({"val": float("nan")}, "val is nan and test is 0.2; expected shares from 0, together below 1"),
        ({"seed": -1}, "seed is -1; expected 0 to 2**64 - 1"),
        ({"seed": 2**64}, "seed is 18446744073709551616; expected 0 to 2**64 - 1"),
    ],
)
def test_shares_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PackError) as refusal:
        Options(**options)
    assert str(refusal.value) == message


EXCLUDE = replace(ALL_TRAIN, grayscale="exclude")


@pytest.fixture
def faulty(root: Path) -> Path:
    cut = encode(noise(300, 200, 2), "JPEG")[:-30_000]
    folder(root, {"a/grey.png": grey(80, 60, 1), "b/cut.jpg": cut})
    return folder(root, {"b/empty.jpg": b"", "b/text.jpg": b"not an image"})


def test_what_is_left_out_is_listed_with_reason_and_picture(faulty: Path) -> None:
    opened = pack_of(faulty, EXCLUDE)
    assert len(opened) == 6
    rows = opened.header.excluded
    grayscale, cut, empty, text = rows
    assert [(row.path, row.reason) for row in rows] == [
        ("a/grey.png", "grayscale"),
        ("b/cut.jpg", "truncated"),
        ("b/empty.jpg", "undecodable"),
        ("b/text.jpg", "undecodable"),
    ]
    assert grayscale.detail == "it has no colour at all"
    assert empty.detail == "the file is empty"
    shown = np.asarray(image_of(base64.b64decode(cut.thumbnail or "")))
    assert shown.shape == (85, 128, 3)
    assert shown[:30].std() > 10  # and not grey all over
    assert empty.thumbnail is text.thumbnail is None
    assert image_of(base64.b64decode(grayscale.thumbnail or "")).size == (80, 60)
    summary = opened.summary()["excluded"]
    assert summary["total"] == 4
    assert summary["reasons"] == {"grayscale": 1, "truncated": 1, "undecodable": 2}
    folder(faulty, {f"b/{number:02}.png": grey(400, 300, number) for number in range(14)})
    pictures = [
        row.thumbnail for row in pack_of(faulty, EXCLUDE).header.excluded if row.reason == "grayscale"
    ]
    assert [picture is None for picture in pictures] == [False] * 12 + [True] * 3
    assert image_of(base64.b64decode(pictures[1] or "")).size == (128, 96), "small and few"


def test_what_a_list_excludes_keeps_its_reason_and_grayscale_can_be_kept(faulty: Path) -> None:
    root = folder(faulty, {"loose.png": encode(noise(8, 8, 1)), "notes.txt": b"?"})
    why = {
        "a/a_0.png": Exclusion("exact-duplicate: the same file as b/x.png", ("exact-duplicate",)),
        "a/a_1.png": Exclusion("a cat"),
        "b/b_1.png": Exclusion("blurry: I think"),
        "b/empty.jpg": Exclusion("seen before"),
    }
    opened = pack_of(root, Options(0, 0, grayscale="keep", exclude=why))
    assert paths_of(opened) == ["a/a_2.png", "a/grey.png", "b/b_0.png", "b/b_2.png"]
    rows = {row.path: row for row in opened.header.excluded}
    assert [(rows[path].reason, rows[path].detail) for path in why] == [
        ("exact-duplicate", "the same file as b/x.png"),
        ("a cat", "exclusion list"),
        ("blurry: I think", "exclusion list"),
        ("seen before", "exclusion list"),
    ]
    assert rows.keys() == {*why, "b/cut.jpg", "b/text.jpg", "loose.png"}
    assert rows["loose.png"].reason == "no class"
    assert rows["a/a_1.png"].thumbnail


def test_a_pack_of_training_images_alone_keeps_its_twins_for_folds(tmp_path: Path) -> None:
    files = {f"{'ab'[seed // 3]}/{seed}.png": noise(160, 120, seed) for seed in range(6)}
    files |= {path.replace(".png", "-m.png"): pixels[:, ::-1] for path, pixels in files.items()}
    root = folder(tmp_path / "images", {path: encode(pixels) for path, pixels in files.items()})
    opened = pack_of(root, Options(val=0, test=0))
    family = dict(zip(paths_of(opened), opened.families.tolist(), strict=True))
    assert [*splits_of(opened)] == ["train"] * 12
    assert len({*family.values()}) == 6 and -1 not in family.values()
    assert all(family[path.replace("-m", "")] == found for path, found in family.items())


def test_a_number_of_shards_that_no_pack_has_is_refused_at_once(root: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(module, "scan", lambda *_, **__: pytest.fail("images were looked at"))
    with pytest.raises(PackError, match="shards is 0; expected 1 to"):
        pack(root, root.parent / "p.arrow", Options(shards=0))


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's capabilities")
def test_a_folder_that_cannot_be_listed_is_an_error(root: Path, ordinary: None) -> None:
    (root / "b").chmod(0)
    with pytest.raises(PackError, match=r"images/b cannot be read \(Permission denied\); make it readable"):
        pack_of(root)


UNWRITABLE = r"p\.arrow cannot be written \({}\); name a file in a folder that can$"


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file/p.arrow", UNWRITABLE.format("Not a directory")),
        ("/proc/self/p.arrow", "^/proc/self/" + UNWRITABLE.format(".+")),  # also root cannot write to it
        ("", r"^--out is the folder {folder}; expected a file name, as in {folder}/images\.arrow$"),
        ("thesis.txt", r"^--out is .*thesis.txt, which is there and is no pack; name another"),
    ],
)
def test_an_out_that_cannot_be_written_is_found_before_the_images_are_looked_at(
    out: str, message: str, root: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    folder(tmp_path, {"file": b"", "thesis.txt": b"precious"})
    monkeypatch.setattr(module, "scan", lambda *_, **__: pytest.fail("looked at the images"))
    with pytest.raises(PackError, match=message.replace("{folder}", re.escape(str(tmp_path)))):
        pack(root, tmp_path / out)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_an_exclusion_that_names_no_image_is_an_error(root: Path) -> None:
    listed = dict.fromkeys(("a/a_7.png", "a/a_1.png", "a/a_8.png"), Exclusion("x"))
    with pytest.raises(PackError) as refusal:
        pack_of(root, Options(exclude=listed))
    assert str(refusal.value) == (
        "the exclusion list names 'a/a_7.png' and 1 more paths that are not among the images; "
        "expected paths relative to the packed folder"
    )


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("cat\\o\u0308.png", "cat/ö.png"),
        ("./cat/\u00f6.png", "cat/ö.png"),
        (r".\cat\1.png", "cat/1.png"),
        ("dog/e\u0301.png", "dog/e\u0301.png"),
        ("./dog/e\u0301.png", ""),
        ("/cat/1.png", ""),
        ("CAT/1.png", ""),
    ],
)
def test_a_path_in_a_table_means_the_one_image_that_it_fits(written: str, meant: str) -> None:
    """As it stands, or else with what Windows and macOS write otherwise; of two that fit, neither."""
    known = ["cat/1.png", "cat/ö.png", "dog/\u00e9.png", "dog/e\u0301.png"]
    if meant:
        assert find_paths({"cat/1.png": 1, written: 1}, known, "t.csv") == {"cat/1.png": 1, meant: 1}
        return
    with pytest.raises(PackError) as refusal:
        find_paths({written: 1, "cat/1.png": 1}, known, "t.csv")
    assert str(refusal.value).startswith(f"t.csv names {written!r}, which is not among the images; expected")


def test_two_lines_that_mean_one_image_say_one_thing() -> None:
    known, rows = ["a/1.png"], {"a/1.png": "test", r"a\1.png": "val"}
    with pytest.raises(PackError, match=r"^t\.csv says two things of 'a/1.png'; expected one line a file"):
        find_paths(rows, known, "t.csv")
    assert find_paths(dict.fromkeys(rows, "val"), known, "t.csv") == {"a/1.png": "val"}


def test_tables_written_on_windows_are_followed(root: Path) -> None:
    excluded = {r".\a\a_1.png": Exclusion("mine")}
    rest = [source.path for source in find_labelled(root)[1] if source.path != "a/a_1.png"]
    mine = Table(
        Path("t.csv"), {path.replace("/", "\\"): "train" for path in rest[:4]} | {rest[4]: "test"}, {}
    )
    opened = pack_of(root, Options(exclude=excluded, table=mine, val=0))
    assert [(row.path, row.reason) for row in opened.header.excluded] == [("a/a_1.png", "mine")]
    assert [opened.image_path(row) for row in opened.ids("test")] == [rest[4]]


SAVE = 'expected a CSV with the columns path and reason; in Excel, save it as "CSV UTF-8"'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file,why\na.jpg,x\n", "has the columns file, why; expected path and reason"),
        (b"file,why\n", "has the columns file, why; expected path and reason"),
        (b"path\na.jpg\n", "has the columns path; expected path and reason"),
        (b"", "is empty; expected a CSV with the columns path and reason"),
        ("\ufeff\r\n".encode(), "is empty; expected a CSV"),
        (b"path,reason,Path\na.jpg,x,\n", "has two columns 'path'; expected each once"),
        (
            b"path,reason\n\na.jpg,dark, I think\n",
            "has 3 cells in line 3, and its first line names 2 columns",
        ),
        (
            b"path,reason\na.jpg,x\nb.jpg,x\na.jpg,y\n",
            "names 'a.jpg' in line 2 and, with other words, in line 4",
        ),
        ("path,reason\nä.jpg,x\n".encode("latin-1"), f"is no text in UTF-8 or UTF-16; {SAVE}"),
        ("path,reason\na.jpg,x\n".encode("utf-16")[:-1], f"is no text in UTF-8 or UTF-16; {SAVE}"),
        (b"path,reason\n\xff\xfe,x\n", f"is no text in UTF-8 or UTF-16; {SAVE}"),
        (
            "path;reason\na.jpg;zu dunkel, glaube ich – \u201eja\u201c\n".encode("cp1252"),
            f"is no text in UTF-8 or UTF-16; {SAVE}",
        ),
        (b"PK\x03\x04\x14\0\x06\0", f"is an Excel workbook, or another zip; {SAVE}"),
        (b"reason,path\nblurred\nx,a.jpg\n", "names no path in line 2; expected one in every line"),
        (b'\n\r\n"path","reason"\n,x\n', "names no path in line 4"),
        (
            b"\n\nsep=;\r\n\npath;reason\na.jpg;x\n\na.jpg;y\n",
            "names 'a.jpg' in line 6 and, with other words, in line 8",
        ),
        (b"sep=,\n\n", "is empty; expected a CSV"),
        (b'path,reason\n"a.jpg" ,x\n', "is no CSV ("),
        (None, "cannot be read (No such file or directory); expected a CSV with the columns path and reason"),
    ],
)
def test_an_exclusion_list_that_is_none(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "list.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(PackError) as refusal:
        read_exclusions(file)
    assert str(refusal.value).startswith(f"{file} {message}")
    assert "\n" not in str(refusal.value)


@pytest.fixture
def others(tmp_path: Path) -> tuple[dict[str, bytes], Pack]:
    """Files of formats that not every engine decodes, and their pack."""
    picture = Image.fromarray(noise(44, 30, 1))
    frames = [picture.rotate(90 * turn).quantize(64) for turn in range(3)]
    found = {
        "a/1.gif": encode(picture.quantize(64), "GIF"),
        "a/2.gif": encode(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "b/3.ppm": encode(picture, "PPM"),
    }
    if features.check("avif"):
        turned = Image.fromarray(store_as(np.asarray(picture), 6))
        found["b/4.avif"] = encode(turned, "AVIF", 6, quality=100, subsampling="4:4:4")
    return found, pack_of(folder(tmp_path / "images", found))


def test_other_formats_are_stored_as_upright_png(others: tuple[dict[str, bytes], Pack]) -> None:
    files, opened = others
    assert [path for path, _ in opened.header.transcoded] == list(files)
    assert opened.header.transcoded[0] == ("a/1.gif", "GIF is not a format that both engines decode")
    assert opened.sizes.tolist() == [[44, 30]] * len(files)
    assert opened.orientations.tolist() == [1] * len(files)
    assert opened.corrupt() == []  # the checksum is that of the PNG
    for row in range(len(files)):
        stored = image_of(opened.encoded(row).tobytes())
        assert (stored.format, stored.mode, stored.size) == ("PNG", "RGB", (44, 30))
    first = opened.encoded(0).tobytes()
    assert first == transcode(files["a/1.gif"])
    assert np.array_equal(pixels_of(first), pixels_of(files["a/1.gif"]))
    turned = encode(store_as(noise(44, 30, 1), 8), "PNG", 8)
    assert np.array_equal(pixels_of(transcode(turned)), noise(44, 30, 1))


@pytest.mark.parametrize("engine", ["threads", "dali"])
def test_other_formats_reach_both_engines(others: tuple[dict[str, bytes], Pack], engine: Any) -> None:
    if engine == "dali" and not has_dali():
        pytest.skip("DALI is not installed")
    files, opened = others
    augment = Augment(size=30).centre()
    with Loader(opened, augment, opened.ids("train"), Resources(engine, "cpu"), epochs=1) as loader:
        (batch,) = loader
    for image, data in zip(augment.to_pixels(batch.images.numpy()), files.values(), strict=True):
        upright = ImageOps.exif_transpose(image_of(data).convert("RGB"))
        assert np.array_equal(image, np.asarray(upright)[:, 7:37])


def test_hidden_files_are_left_alone_and_nested_ones_found(tmp_path: Path) -> None:
    hidden = ["a/.hidden.png", "a/.git/4.png", ".cache/5.png"]
    seen = ["a/2.png", "a/deep/er/1.png", "b/3.png", "top.png"]
    root = folder(tmp_path / "images", dict.fromkeys(hidden + seen, encode(coded(9, 9))))
    classes, sources, notes = find_labelled(root)
    assert notes == []
    assert classes == ("a", "b")
    assert [source.path for source in sources] == seen
    assert [source.label for source in sources] == [0, 0, 1, NO_LABEL]
    assert [source.path for source in find_unlabelled(root)] == ["top.png", *seen[:3]]


def test_a_name_and_its_escape_are_two_names(tmp_path: Path) -> None:
    root = images(tmp_path / "images", {"a": 1, "b": 1})
    names = [b"\xff.png", rb"\xff.png", rb"\x5cxff.png", rb"\n.png"]
    for row, name in enumerate(names):
        folder(root, {f"a/{os.fsdecode(name)}": encode(noise(60 + row, 60, row))})
    opened = pack_of(root)
    packed = dict(zip(paths_of(opened), opened.sizes[:, 0].tolist(), strict=True))
    del packed["a/a_0.png"], packed["b/b_0.png"]
    assert packed == {r"a/\xff.png": 60, r"a/\x5cxff.png": 61, r"a/\x5cx5cxff.png": 62, r"a/\n.png": 63}
    for path, width in packed.items():
        with Image.open(find_file(root, path)) as image:
            assert image.width == width
    names_as_text = {r"a/\xff\xe9": os.fsdecode(b"a/\xff\xe9"), r"a/\xe9": r"a/\xe9", "a/b": "a/b"}
    folder(root, {name: path.encode() for path, name in names_as_text.items()})
    assert all(find_file(root, path).read_bytes() == path.encode() for path in names_as_text)


@pytest.mark.parametrize(
    ("causes", "kept"),
    [
        (("grayscale",), True),
        (("grayscale", "exact-duplicate"), False),
        (("grayscale", "near-duplicate"), False),
        ((), False),
    ],
)
@pytest.mark.parametrize("by", ["decisions", "exclude"])
def test_grayscale_that_is_kept_is_no_reason_of_the_machines(
    by: str, causes: tuple[Finding, ...], kept: bool, root: Path
) -> None:
    """Whatever the sentence beside the causes says."""
    folder(root, {"a/grey.png": grey(60, 60, 7)})
    photograph = Photograph("a/grey.png", "a", hashlib.sha256(grey(60, 60, 7)).hexdigest())
    decision = Decision(photograph, "exclude", reason="grayscale, I say", by="machine", causes=causes)
    options = Options(val=0, test=0, grayscale="keep", decisions=[decision])
    if by == "exclude":
        listed = {"a/grey.png": Exclusion("grayscale, I say", causes)}
        options = replace(options, decisions=[], exclude=listed)
    assert ("a/grey.png" in paths_of(pack_of(root, options))) is kept


def test_names_of_every_kind(tmp_path: Path) -> None:
    names = ["a b.png", "a'\".png", "two\nlines.png", "\U0001f415.png", "[red]x.png", "-x.png", "a,b;c.png"]
    paths = [
        "b/1.png",
        f"b/{os.fsdecode(bytes([255, 254]))}.png",
        *(f"the class/{name}" for name in sorted(names)),
    ]
    root = folder(tmp_path / "images", {path: encode(noise(9, 9, row)) for row, path in enumerate(paths)})
    opened = pack_of(root)
    paths[1] = r"b/\xff\xfe.png"
    assert paths_of(opened) == paths
    assert opened.classes == ("b", "the class")
    assert "\n" not in opened.describe(paths.index("the class/two\nlines.png"))


ONE_A_CLASS = "expected one a class, at least 2: {root}/CLASS/image.jpg"
ONE_IMAGE = {"a/1.png": encode(noise(12, 10))}
UNPACKABLE: dict[str, tuple[dict[str, bytes], list[str], str]] = {
    "a file": (
        {"": b""},
        [],
        "{root} is a file; expected a folder with one subfolder a class, a manifest (.csv, .tsv, .jsonl, .parquet), WebDataset tars, or Parquet files with images",
    ),
    "empty": ({}, [""], "{root} has no subfolders; " + ONE_A_CLASS),
    "one class": (ONE_IMAGE, [], "{root} has 1 subfolder; " + ONE_A_CLASS),
    "no files": ({}, ["a", "b"], "the 2 subfolders of {root} hold no files; expected images in them"),
    "one usable class": (
        ONE_IMAGE | {"b/bad.jpg": b"bad", "b/cut.jpg": b"", "empty/.hidden": b""},
        [],
        "class b has no image left; left out: 2 undecodable; the first: b/bad.jpg: undecodable (no image that is read here); "
        "mend them or decide otherwise, or move the folder of the class away",
    ),
    "nothing usable": (
        {"a/1.jpg": b"", "b/2.jpg": b""},
        [],
        "class a has no image left; left out: 1 undecodable; the first: a/1.jpg: undecodable (the file is empty); "
        "1 more of 2 classes have none; mend them or decide otherwise, or move the folder of the class away",
    ),
    "two labels each": (
        {f"{name}.png": encode(noise(60, 60, seed)) for seed, name in enumerate(("a/1", "c/3"))}
        | {f"b/{seed}.png": encode(noise(60, 60, seed)) for seed in range(2)},
        [],
        "class a has no image left; left out: 1 exact-duplicate; the first: a/1.png: exact-duplicate (the same file as "
        "b/0.png, which has another label: at least one of them is wrong); 2 more of 3 classes have none; "
        "decide on the page of greyhound survey which label is right, or move the folder of the class away",
    ),
    "grayscale": (
        {f"{name}.png": grey(60, 60, seed) for seed, name in enumerate(("a/1", "a/2", "b/1"))}
        | {"b/2.jpg": b""},
        [],
        "class a has no image left; left out: 2 grayscale; the first: a/1.png: grayscale (it has no colour at all); "
        "1 more of 2 classes have none; keep them by --grayscale keep, or move the folder of the class away",
    ),
}


@pytest.mark.parametrize("name", UNPACKABLE)
def test_folders_that_cannot_be_packed(tmp_path: Path, name: str) -> None:
    files, folders, message = UNPACKABLE[name]
    root = folder(tmp_path / "images", files)
    for empty in folders:
        (root / empty).mkdir(parents=True)
    with pytest.raises(PackError) as refusal:
        pack(root, tmp_path / "images.arrow", Options(grayscale="exclude"))
    assert str(refusal.value) == message.format(root=root)
    assert {file.name for file in tmp_path.iterdir()} <= {"images"}


@pytest.fixture
def old(root: Path) -> tuple[Path, Path, bytes]:
    """A folder, the pack that was made of it before, and that pack's bytes."""
    out = root.with_suffix(".arrow")
    pack(root, out)
    folder(root, {"a/new.png": encode(noise(9, 9, 500))})
    return root, out, out.read_bytes()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "accident", [KeyboardInterrupt, MemoryError, PackError, OSError(28, "No space left")]
)
def test_an_interrupted_packing_leaves_the_old_pack_or_none(
    old: tuple[Path, Path, bytes], accident: Any, first: bool, monkeypatch: Patch
) -> None:
    root, out, before = old
    if first:
        out.unlink()
    monkeypatch.setattr(module, "BATCH_BYTES", 1)
    batches, real = iter(range(2)), pa.record_batch

    def fail(*arguments: Any, **options: Any) -> Any:
        if next(batches, None) is None:
            raise accident
        return real(*arguments, **options)

    monkeypatch.setattr(pa, "record_batch", fail)
    with pytest.raises(WriteError if isinstance(accident, OSError) else accident) as error:
        pack(root, out)
    if isinstance(accident, OSError):
        assert str(error.value) == f"{out} cannot be written: No space left; nothing was changed"
    assert {path.name for path in out.parent.iterdir()} == {"images"} | ({out.name} if not first else set())
    assert first or out.read_bytes() == before


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda file: file.write_bytes(encode(noise(12, 10, 888))),
            r"b_1\.png changed while it was being packed; pack again when nothing writes",
        ),
        (Path.unlink, r"b_1.png was readable a moment ago and is no longer \(No such file"),
    ],
)
def test_a_file_that_changes_while_it_is_packed(
    old: tuple[Path, Path, bytes], monkeypatch: Patch, spoil: Callable[[Path], None], said: str
) -> None:
    root, out, before = old

    def scan_and_spoil(paths: Iterable[Path], **_: str) -> list[ImageInfo]:
        infos = list(scan_here(paths))
        spoil(root / "b" / "b_1.png")
        return infos

    monkeypatch.setattr(module, "scan", scan_and_spoil)
    with pytest.raises(PackError, match=said):
        pack(root, out)
    assert out.read_bytes() == before
    assert {path.name for path in out.parent.iterdir()} == {"images", out.name}


def test_a_pack_that_would_not_open_replaces_none(root: Path) -> None:
    """Whatever a source lets through: here, a class that is no Unicode."""
    before, (_, sources, _) = pack_of(root), find_labelled(root)
    with pytest.raises(PackError, match="has a corrupt header"):
        write(sources, ("a", "\ud800"), before.path, ALL_TRAIN)
    assert Pack(before.path).header == before.header


def test_out_may_be_empty_or_a_pack_or_in_a_folder_that_is_not_there_yet(root: Path, tmp_path: Path) -> None:
    """Readers of the old pack keep theirs."""
    empty = tmp_path / "empty"
    empty.touch()
    pack(root, empty, ALL_TRAIN)
    reader = Pack(empty)
    folder(root, {"a/new.png": encode(noise(9, 9, 500))})
    for out in (empty, tmp_path / "new" / "deep" / "p.arrow"):
        pack(root, out, ALL_TRAIN)
        assert (len(Pack(out)), len(reader)) == (7, 6)
    assert reader.corrupt() == []


@pytest.mark.parametrize(("long", "said"), [(1, False), (2, True)])
def test_more_than_a_tenth_of_long_images_is_said(tmp_path: Path, long: int, said: bool) -> None:
    """Of ten images; exactly 2:1 is not long."""
    sides = [(90, 40)] * long + [(40, 80)] * (10 - long)
    files = {
        f"{'ab'[place % 2]}/{place}.png": encode(noise(*side, place)) for place, side in enumerate(sides)
    }
    header = pack(folder(tmp_path / "images", files), tmp_path / "p.arrow", Options(0, 0))
    assert any("longer than 2:1" in note and "--augment.fit" in note for note in header.notes) == said


def test_packing_and_opening_leave_pandas_alone(tmp_path: Path) -> None:
    """Pyarrow 26.0.1 imports it for a list or a scalar: a quarter of a second (findings/)."""
    pytest.importorskip("pandas")
    folder(
        tmp_path / "kennel",
        {
            f"{name}/{place}.png": encode(noise(20, 16, place + 9 * (name == "b")))
            for name in "ab"
            for place in range(4)
        },
    )
    code = (
        "import sys; from pathlib import Path; from greyhound.cache.pack import pack; from greyhound.cache.store import Pack\n"
        "kennel, out = map(Path, sys.argv[1:]); pack(kennel, out); opened = Pack(out); opened.corrupt(); opened.image_path(0)\n"
        "print(len(opened), 'pandas' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "kennel"), str(tmp_path / "k.arrow")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "8 False\n"
