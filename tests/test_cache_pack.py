"""Packing: originals byte for byte, a split that only content decides, and an old pack that survives every accident."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import os
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pictures import ALL_TRAIN, coded, encode, folder, noise, scan_here, store_as
from PIL import Image, ImageOps, features

from greyhound.cache import pack as module
from greyhound.cache.files import WriteError
from greyhound.cache.folder import NO_LABEL, Source, find_file, find_labelled, find_unlabelled
from greyhound.cache.machine import has_dali
from greyhound.cache.pack import Options, assign_splits, pack, transcode, write
from greyhound.cache.scan import ImageInfo
from greyhound.cache.selection import Decision, Exclusion, Finding, Photograph, read_exclusions
from greyhound.cache.stats import measure
from greyhound.cache.store import SPLITS, Header, Pack, PackError
from greyhound.pipelines.augment import Augment
from greyhound.pipelines.engine import Resources
from greyhound.pipelines.loader import Loader


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at files in this process: the children have a test file of their own."""
    monkeypatch.setattr(module, "scan", scan_here)


def images(root: Path, classes: Mapping[str, int], **options: Any) -> Path:
    """A folder with so many different coloured images a class."""
    seeds = iter(range(10_000))
    return folder(
        root,
        {
            f"{name}/{name}_{number}.png": encode(noise(12, 10, next(seeds)), **options)
            for name, count in classes.items()
            for number in range(count)
        },
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with three images in each of two classes."""
    return images(tmp_path / "images", {"a": 3, "b": 3})


def pack_of(root: Path, options: Options = ALL_TRAIN) -> Pack:
    pack(root, root.with_suffix(".arrow"), options)
    return Pack(root.with_suffix(".arrow"))


def paths_of(opened: Pack) -> list[str]:
    return [opened.image_path(row) for row in range(len(opened))]


def leftovers(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name.endswith(".tmp"))


# --- what is in the file ---------------------------------------------------------------------------------------------


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
    opened = pack_of(
        images(tmp_path / "images", {"beagle": 1, "Zorgi": 1, "Akita": 1, "airedale": 1, "akita": 1})
    )
    assert opened.classes == ("airedale", "Akita", "akita", "beagle", "Zorgi")
    assert [path.split("/")[0] for path in paths_of(opened)] == list(opened.classes)
    assert opened.labels.tolist() == [0, 1, 2, 3, 4]


def test_the_file_is_plain_arrow(tmp_path: Path) -> None:
    root = images(tmp_path / "images", {"a": 2, "b": 3})
    opened = pack_of(root, Options(val=0, test=0.34))
    table = pa.ipc.open_file(pa.memory_map(str(tmp_path / "images.arrow"))).read_all()
    assert table.column_names == [
        "image",
        "label",
        "split",
        "width",
        "height",
        "orientation",
        "mean_luma",
        "crc32",
        "path",
    ]
    assert table["label"].to_pylist() == [0, 0, 1, 1, 1]
    assert table["path"].to_pylist() == paths_of(opened)
    assert table["width"].to_pylist() == [12] * 5
    assert table["height"].to_pylist() == [10] * 5
    assert [(root / path).read_bytes() for path in paths_of(opened)] == table["image"].to_pylist()
    assert sorted(table["split"].to_pylist()) == ["test", "test", "train", "train", "train"]


def test_many_record_batches_read_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_BYTES", 1000)
    root = images(tmp_path / "images", {"a": 7, "b": 6})
    opened = pack_of(root, Options(0.2, 0.2))
    assert pa.ipc.open_file(str(tmp_path / "images.arrow")).num_record_batches > 3
    for row, path in enumerate(paths_of(opened)):
        assert opened.encoded(row).tobytes() == (root / path).read_bytes()
    assert sum(len(opened.ids(split)) for split in SPLITS) == 13


def test_the_digest_says_whether_two_packs_hold_the_same_data(root: Path, tmp_path: Path) -> None:
    first = pack(root, tmp_path / "one.arrow", ALL_TRAIN)
    assert pack(root, tmp_path / "two.arrow", ALL_TRAIN) == first
    assert (tmp_path / "one.arrow").read_bytes() == (tmp_path / "two.arrow").read_bytes()
    assert len(first.digest) == 64
    digests = [first.digest, pack(root, tmp_path / "p.arrow", Options(0, 0.4)).digest]
    (root / "a" / "a_0.png").rename(root / "a" / "renamed.png")
    digests.append(pack(root, tmp_path / "p.arrow", ALL_TRAIN).digest)
    (root / "a" / "renamed.png").write_bytes(encode(noise(12, 10, 777)))
    folder(root, {"a/bad.jpg": b"bad"})
    header = pack(root, tmp_path / "p.arrow", Options(0, 0, seed=2**64 - 1))
    assert len({*digests, header.digest}) == 4
    assert Pack(tmp_path / "p.arrow").header == header
    assert isinstance(header, Header)
    assert header.seed == 2**64 - 1


# --- the split -------------------------------------------------------------------------------------------------------


def looked_at(contents: Sequence[tuple[int, str]]) -> list[tuple[Source, ImageInfo]]:
    """(label, content) -> what `assign_splits` takes; the names are made up from the place."""
    return [
        (
            Source(Path(f"{place}.jpg"), f"{place}.jpg", label),
            ImageInfo(sha256=hashlib.sha256(text.encode()).hexdigest()),
        )
        for place, (label, text) in enumerate(contents)
    ]


def shares(contents: Sequence[tuple[int, str]], options: Options) -> dict[tuple[int, str], str]:
    return dict(zip(contents, assign_splits(looked_at(contents), options), strict=True))


CONTENTS = [(place % 3, f"image {place}") for place in range(300)]


def test_the_shares_are_those_asked_for_in_every_class() -> None:
    found = shares(CONTENTS, Options(0.1, 0.2))
    for label in range(3):
        splits = [split for (owner, _), split in found.items() if owner == label]
        assert {split: splits.count(split) for split in SPLITS} == {"train": 70, "val": 10, "test": 20}


@pytest.mark.parametrize(
    ("count", "val", "test", "expected"),
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
    count: int, val: float, test: float, expected: tuple[int, int, int]
) -> None:
    splits = assign_splits(looked_at([(0, str(place)) for place in range(count)]), Options(val, test))
    assert tuple(splits.count(split) for split in SPLITS) == expected


def test_only_seed_and_content_decide_for_each_class_alone() -> None:
    found = shares(CONTENTS, Options(0.1, 0.2, seed=5))
    assert shares(CONTENTS[::-1], Options(0.1, 0.2, seed=5)) == found
    assert shares(CONTENTS, Options(0.1, 0.2, seed=6)) != found
    assert shares(CONTENTS, Options(0.1, 0.2, seed=5, keep_grayscale=True)) == found
    alone = [(label, text) for label, text in CONTENTS if label == 1]
    assert shares(alone, Options(0.1, 0.2, seed=5)) == {key: found[key] for key in alone}


def test_exact_duplicates_stay_together() -> None:
    contents = [(0, f"image {place // 4}") for place in range(300)]  # neither 90 nor 60 is a multiple of 4
    for seed in range(5):
        splits = assign_splits(looked_at(contents), Options(0.2, 0.3, seed))
        families = [set(splits[place : place + 4]) for place in range(0, 300, 4)]
        assert all(len(family) == 1 for family in families)
        assert abs(splits.count("test") - 90) < 4
        assert abs(splits.count("val") - 60) < 4


def near_twins(count: int, families: int, label: int = 0) -> list[tuple[Source, ImageInfo]]:
    """`count` looks of so many pictures, each with grain of its own, so that no two have the same bytes."""
    made = []
    for place in range(count):
        pixels = noise(160, 120, 1000 * label + place % families).astype(np.int16) + place % 3
        picture = np.clip(pixels, 0, 255).astype(np.uint8)
        name = f"{label}/{place}.png"
        digest = hashlib.sha256(name.encode()).hexdigest()
        look = ImageInfo(width=160, height=120, sha256=digest, thumbnail=measure(picture)["thumbnail"])
        made.append((Source(Path(name), name, label), look))
    return made


def test_near_twins_stay_together() -> None:
    kept = near_twins(90, 30)
    for seed in range(5):
        splits = assign_splits(kept, Options(0.2, 0.3, seed))
        assert all(
            len({splits[family], splits[family + 30], splits[family + 60]}) == 1 for family in range(30)
        )
        assert [splits.count(split) for split in ("test", "val")] == [27, 18]
    assert assign_splits(kept[::-1], Options(0.2, 0.3, 4))[::-1] == splits


def test_no_twins_are_sought_where_there_is_nothing_to_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_twins", lambda *_: pytest.fail("twins were sought"))
    assert assign_splits(near_twins(4, 2), Options(0, 0)) == ["train"] * 4


def test_a_family_that_no_split_has_room_for_is_for_training() -> None:
    kept = near_twins(30, 1) + near_twins(20, 20, label=1)
    splits = assign_splits(kept, Options(0.1, 0.2))
    assert set(splits[:30]) == {"train"}
    assert [splits[30:].count(split) for split in SPLITS] == [14, 2, 4]


def test_a_picture_that_two_classes_claim_is_for_training() -> None:
    kept = near_twins(20, 20) + near_twins(20, 20, label=1)
    source, look = kept[-1]
    kept += [(replace(source, label=0, path="again.png"), replace(look, sha256="0" * 64)) for _ in range(3)]
    for seed in range(5):
        splits = assign_splits(kept, Options(0.2, 0.5, seed))
        assert splits[-4:] == ["train"] * 4
        assert [splits[20:40].count(split) for split in SPLITS] == [6, 4, 10]
        assert [(splits[:20] + splits[40:]).count(split) for split in SPLITS] == [6, 5, 12]


def test_a_pack_never_separates_a_picture_from_its_mirror_image(tmp_path: Path) -> None:
    files = {
        f"{name}/{seed}.png": noise(160, 120, seed)
        for name in "ab"
        for seed in range(8 * (name > "a"), 8 + 8 * (name > "a"))
    }
    mirrored = {path.replace(".png", "-m.png"): pixels[:, ::-1] for path, pixels in files.items()}
    root = folder(tmp_path / "images", {path: encode(pixels) for path, pixels in (files | mirrored).items()})
    opened = pack_of(root, Options(0.25, 0.25))
    splits = dict(zip(paths_of(opened), opened._splits.tolist(), strict=True))
    assert len(splits) == 32
    assert all(splits[path] == splits[path.replace(".png", "-m.png")] for path in files)
    assert sorted(splits.values()).count(SPLITS.index("test")) == 8


def test_renaming_and_touching_files_moves_no_image(tmp_path: Path) -> None:
    root = images(tmp_path / "images", {"a": 12, "b": 12})
    before = pack_of(root, Options(0.2, 0.2))
    by_content = {before.encoded(row).tobytes(): before._splits[row] for row in range(24)}
    for number, file in enumerate(sorted((root / "a").iterdir())):
        file.rename(root / "a" / f"{99 - number}-renamed.jpeg")
        os.utime(root / "a" / f"{99 - number}-renamed.jpeg", (number, number))
    after = pack_of(root, Options(0.2, 0.2))
    assert len(after) == 24
    assert {after.encoded(row).tobytes(): after._splits[row] for row in range(24)} == by_content


def test_everything_into_one_split_with_classes_kept(tmp_path: Path) -> None:
    root = images(tmp_path / "images", {"a": 2})
    header = write(find_unlabelled(root), ("cat", "dog"), tmp_path / "p.arrow", ALL_TRAIN, split="test")
    opened = Pack(tmp_path / "p.arrow")
    assert header.classes == opened.classes == ("cat", "dog")
    assert opened.labels.tolist() == [-1, -1]
    assert opened.ids("test").tolist() == [0, 1]


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


# --- what is left out ------------------------------------------------------------------------------------------------


def faulty(root: Path) -> Path:
    grey = np.asarray(Image.fromarray(noise(80, 60, 1)).convert("L"))
    return folder(
        images(root, {"a": 3, "b": 3}),
        {
            "a/grey.jpg": encode(Image.fromarray(grey), "JPEG"),
            "b/cut.jpg": encode(noise(300, 200, 2), "JPEG")[:-30_000],
            "b/empty.jpg": b"",
            "b/text.jpg": b"not an image",
        },
    )


def test_what_is_left_out_is_listed_with_reason_and_picture(tmp_path: Path) -> None:
    opened = pack_of(faulty(tmp_path / "images"))
    assert len(opened) == 6
    rows = {row.path: row for row in opened.header.excluded}
    assert {path: row.reason for path, row in rows.items()} == {
        "a/grey.jpg": "grayscale",
        "b/cut.jpg": "truncated",
        "b/empty.jpg": "undecodable",
        "b/text.jpg": "undecodable",
    }
    assert rows["a/grey.jpg"].detail.startswith("colourfulness ")
    assert rows["b/empty.jpg"].detail == "the file is empty"
    cut = np.asarray(Image.open(io.BytesIO(base64.b64decode(rows["b/cut.jpg"].thumbnail or ""))))
    assert cut.shape == (85, 128, 3)
    assert cut[:30].std() > 10  # and not grey all over
    assert rows["b/empty.jpg"].thumbnail is rows["b/text.jpg"].thumbnail is None
    thumbnail = Image.open(io.BytesIO(base64.b64decode(rows["a/grey.jpg"].thumbnail or "")))
    assert thumbnail.size == (80, 60)
    summary = opened.summary()["excluded"]
    assert summary["total"] == 4
    assert summary["reasons"] == {"grayscale": 1, "truncated": 1, "undecodable": 2}


def test_thumbnails_are_small_and_few(root: Path) -> None:
    grey = np.asarray(Image.fromarray(noise(400, 300, 1)).convert("L"))
    files = {f"a/{number:02}.png": encode(Image.fromarray(grey + np.uint8(number))) for number in range(15)}
    pictures = [row.thumbnail for row in pack_of(folder(root, files)).header.excluded]
    assert [picture is None for picture in pictures] == [False] * 12 + [True] * 3
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0] or ""))).size == (128, 96)


def test_what_a_list_excludes_keeps_its_reason_and_grayscale_can_be_kept(tmp_path: Path) -> None:
    root = folder(faulty(tmp_path / "images"), {"loose.png": encode(noise(8, 8, 1)), "notes.txt": b"?"})
    why = {
        "a/a_0.png": Exclusion("exact-duplicate: the same file as b/x.png", ("exact-duplicate",)),
        "a/a_1.png": Exclusion("a cat"),
        "b/b_1.png": Exclusion("blurry: I think"),
        "b/empty.jpg": Exclusion("seen before"),
    }
    opened = pack_of(root, Options(0, 0, keep_grayscale=True, exclude=why))
    assert paths_of(opened) == ["a/a_2.png", "a/grey.jpg", "b/b_0.png", "b/b_2.png"]
    rows = {row.path: row for row in opened.header.excluded}
    assert {path: (row.reason, row.detail) for path, row in rows.items() if path in why} == {
        "a/a_0.png": ("exact-duplicate", "the same file as b/x.png"),
        "a/a_1.png": ("a cat", "exclusion list"),
        "b/b_1.png": ("blurry: I think", "exclusion list"),
        "b/empty.jpg": ("seen before", "exclusion list"),
    }
    assert rows.keys() == {*why, "b/cut.jpg", "b/text.jpg", "loose.png"}
    assert rows["loose.png"].reason == "no class"
    assert rows["a/a_1.png"].thumbnail


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root every folder can be listed, so the system call is what fails here."""
    root = images(tmp_path / "images", {"a": 2, "b": 2})
    real = os.scandir

    def denied(path: Any) -> Any:
        if Path(path).name == "b":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(PackError, match=r"images/b cannot be read \(Permission denied\); make it readable"):
        pack_of(root)


UNWRITABLE = r"p\.arrow cannot be written \({}\); name a file in a folder that can$"


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file/p.arrow", UNWRITABLE.format("Not a directory")),
        pytest.param(
            "/proc/self/p.arrow",
            "^/proc/self/" + UNWRITABLE.format(".+"),
            marks=pytest.mark.skipif(
                not Path("/proc/self").is_dir(), reason="needs a folder that even root cannot write to"
            ),
        ),
        ("", r"^--out is the folder {folder}; expected a file name, as in {folder}/images\.arrow$"),
        ("thesis.txt", r"^--out is .*thesis.txt, which is there and is no pack; name another"),
    ],
)
def test_an_out_that_cannot_be_written_is_found_before_the_images_are_looked_at(
    out: str, message: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "thesis.txt").write_text("precious")
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


def test_an_exclusion_list_is_a_csv(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    rows = ('"a cat, not a dog",a/x.jpg,me', ',"a/two\nlines ""quoted"".jpg",')
    file.write_text("\r\n".join(["reason,path,by", *rows, ""]), newline="", encoding="utf-8-sig")
    assert read_exclusions(file) == {
        "a/x.jpg": Exclusion("a cat, not a dog"),
        'a/two\nlines "quoted".jpg': Exclusion("excluded by hand"),
    }
    file.write_text("path,reason\na.jpg\n")
    assert read_exclusions(file) == {"a.jpg": Exclusion("excluded by hand")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file,why\na.jpg,x\n", "{file} has the columns file, why; expected path and reason"),
        (b"file,why\n", "{file} has the columns file, why; expected path and reason"),
        (b"path\na.jpg\n", "{file} has the columns path; expected path and reason"),
        (b"", "{file} has the columns ; expected path and reason"),
        (b"path,reason\n\xff\xfe,x\n", "{file} is no CSV ("),
        (b"reason,path\nblurred\nx,a.jpg\n", "{file} names no path in row 2"),
        (
            None,
            "{file} cannot be read (No such file or directory); expected a CSV with the columns path and reason",
        ),
    ],
)
def test_an_exclusion_list_that_is_none(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "list.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(PackError) as refusal:
        read_exclusions(file)
    assert str(refusal.value).startswith(message.format(file=file))
    assert "\n" not in str(refusal.value)


def test_a_class_without_a_usable_image_is_no_class(tmp_path: Path) -> None:
    root = images(tmp_path / "images", {"a": 2, "c": 2})
    folder(root, {"b/bad.jpg": b"bad"})
    (root / "empty").mkdir()
    opened = pack_of(root)
    assert opened.classes == ("a", "c")
    assert opened.labels.tolist() == [0, 0, 1, 1]


# --- what every engine decodes ---------------------------------------------------------------------------------------


def others() -> dict[str, bytes]:
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
    return found


def test_other_formats_are_stored_as_upright_png(tmp_path: Path) -> None:
    root = folder(tmp_path / "images", others())
    opened = pack_of(root)
    assert [path for path, _ in opened.header.transcoded] == list(others())
    assert opened.header.transcoded[0] == ("a/1.gif", "GIF is not a format that both engines decode")
    assert opened.sizes.tolist() == [[44, 30]] * len(opened)
    assert opened.orientations.tolist() == [1] * len(opened)
    assert opened.corrupt() == []  # the checksum is that of the PNG
    for row in range(len(opened)):
        stored = Image.open(io.BytesIO(opened.encoded(row).tobytes()))
        assert (stored.format, stored.mode, stored.size) == ("PNG", "RGB", (44, 30))
    first = Image.open(io.BytesIO(others()["a/1.gif"])).convert("RGB")
    assert opened.encoded(0).tobytes() == transcode(others()["a/1.gif"])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(opened.encoded(0).tobytes()))), np.asarray(first))


@pytest.mark.parametrize("engine", ["threads", "dali"])
def test_other_formats_reach_both_engines(tmp_path: Path, engine: Any) -> None:
    if engine == "dali" and not has_dali():
        pytest.skip("DALI is not installed")
    opened = pack_of(folder(tmp_path / "images", others()))
    augment = Augment(size=30).centre()
    with Loader(opened, augment, opened.ids("train"), Resources(engine, "cpu"), epochs=1) as loader:
        (batch,) = loader
    for image, data in zip(augment.to_pixels(batch.images.numpy()), others().values(), strict=True):
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(image, np.asarray(upright)[:, 7:37])


def test_transcoding_keeps_the_first_frame_upright() -> None:
    picture = noise(44, 30, 1)
    data = transcode(encode(store_as(picture, 8), "PNG", 8))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), picture)


# --- folders of every kind -------------------------------------------------------------------------------------------


def test_hidden_files_are_left_alone_and_nested_ones_found(tmp_path: Path) -> None:
    good = encode(coded(9, 9))
    root = folder(
        tmp_path / "images",
        {
            "a/deep/er/1.png": good,
            "a/2.png": good,
            "b/3.png": good,
            "a/.hidden.png": good,
            "a/.git/4.png": good,
            ".cache/5.png": good,
            "top.png": good,
        },
    )
    classes, sources = find_labelled(root)
    assert classes == ("a", "b")
    assert [(source.path, source.label) for source in sources] == [
        ("a/2.png", 0),
        ("a/deep/er/1.png", 0),
        ("b/3.png", 1),
        ("top.png", NO_LABEL),
    ]
    assert [source.path for source in find_unlabelled(root)] == [
        "top.png",
        "a/2.png",
        "a/deep/er/1.png",
        "b/3.png",
    ]


def test_a_name_and_its_escape_are_two_names(tmp_path: Path) -> None:
    root = images(tmp_path / "images", {"a": 1, "b": 1})
    names = [b"\xff.png", rb"\xff.png", rb"\x5cxff.png", rb"\n.png"]
    for row, name in enumerate(names):
        Path(os.fsdecode(os.fsencode(root / "a") + b"/" + name)).write_bytes(
            encode(noise(60 + row, 60, row + 10))
        )
    opened = pack_of(root)
    packed = dict(zip(paths_of(opened), opened.sizes[:, 0].tolist(), strict=True))
    del packed["a/a_0.png"], packed["b/b_0.png"]
    assert packed == {
        r"a/\xff.png": 60,
        r"a/\x5cxff.png": 61,
        r"a/\x5cx5cxff.png": 62,
        r"a/\n.png": 63,
    }
    for path, width in packed.items():
        with Image.open(find_file(root, path)) as image:
            assert image.width == width


def grey_set(root: Path) -> tuple[Path, bytes]:
    """Two classes, one grayscale image in the first; and that image."""
    grey = encode(Image.fromarray(noise(60, 60, 7)).convert("L"))
    return folder(images(root, {"a": 2, "b": 2}), {"a/grey.png": grey}), grey


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
    by: str, causes: tuple[Finding, ...], kept: bool, tmp_path: Path
) -> None:
    """Whatever the sentence beside the causes says."""
    root, grey = grey_set(tmp_path / "images")
    photograph = Photograph("a/grey.png", "a", hashlib.sha256(grey).hexdigest())
    decision = Decision(photograph, "exclude", reason="grayscale, I say", by="machine", causes=causes)
    decisions = [decision] if by == "decisions" else []
    exclude = {"a/grey.png": Exclusion("grayscale, I say", causes)} if by == "exclude" else {}
    options = Options(val=0, test=0, keep_grayscale=True, exclude=exclude, decisions=decisions)
    assert ("a/grey.png" in paths_of(pack_of(root, options))) is kept


def test_a_set_of_grayscale_images_says_what_keeps_them(tmp_path: Path) -> None:
    grey = {
        f"{name}/{row}.png": encode(Image.fromarray(noise(60, 60, row)).convert("L"))
        for name in "ab"
        for row in (1, 2)
    }
    root = folder(tmp_path / "images", grey)
    with pytest.raises(PackError, match=r"0 of 2 .*; 4 are grayscale, which --keep-grayscale keeps$"):
        pack_of(root)


def test_symbolic_links_lead_to_files_but_in_no_circle(tmp_path: Path) -> None:
    root = images(tmp_path / "images", {"a": 1, "b": 1})
    (root / "a" / "loop").symlink_to(root)
    (root / "a" / "self.png").symlink_to(root / "a" / "self.png")
    (root / "a" / "twin.png").symlink_to(root / "b" / "b_0.png")
    (root / "loop").symlink_to(root / "loop")
    paths = [source.path for source in find_labelled(root)[1]]
    assert paths == ["a/a_0.png", "a/self.png", "a/twin.png", "b/b_0.png"]


def test_names_of_every_kind(tmp_path: Path) -> None:
    names = [
        "a b.png",
        "a'\".png",
        "two\nlines.png",
        "\U0001f415.png",
        "[red]x.png",
        "-x.png",
        "a,b;c.png",
    ]
    root = folder(
        tmp_path / "images", {f"the class/{name}": encode(noise(9, 9, row)) for row, name in enumerate(names)}
    )
    folder(root, {"b/1.png": encode(noise(9, 9, 50))})
    raw = os.fsencode(root / "b") + b"/\xff\xfe.png"
    Path(os.fsdecode(raw)).write_bytes(encode(noise(9, 9, 99)))
    opened = pack_of(root)
    assert paths_of(opened) == [
        "b/1.png",
        r"b/\xff\xfe.png",
        *(f"the class/{name}" for name in sorted(names)),
    ]
    assert opened.classes == ("b", "the class")
    assert "\n" not in opened.describe(paths_of(opened).index("the class/two\nlines.png"))


ONE_A_CLASS = "expected one a class, at least 2: {root}/CLASS/image.jpg"
USABLE = "{count} of 2 classes have usable images; expected at least 2; the first of {files} files left out: "


@pytest.mark.parametrize(
    ("files", "folders", "message"),
    [
        (None, [], "{root} is not there; expected a folder of images"),
        ({"": b""}, [], "{root} is a file; expected a folder of images"),
        ({}, [""], "{root} has no subfolders; " + ONE_A_CLASS),
        ({"a/1.png": encode(noise(12, 10))}, [], "{root} has 1 subfolder; " + ONE_A_CLASS),
        ({}, ["a", "b"], "the 2 subfolders of {root} hold no files; expected images in them"),
        (
            {"a/1.png": encode(noise(12, 10)), "b/bad.jpg": b"bad"},
            [],
            USABLE.format(count=1, files=1) + "b/bad.jpg: undecodable (not an image)",
        ),
        (
            {"a/1.jpg": b"", "b/2.jpg": b""},
            [],
            USABLE.format(count=0, files=2) + "a/1.jpg: undecodable (the file is empty)",
        ),
    ],
    ids=["missing", "a file", "empty", "one class", "no files", "one usable class", "nothing usable"],
)
def test_folders_that_cannot_be_packed(
    tmp_path: Path, files: dict[str, bytes] | None, folders: list[str], message: str
) -> None:
    root, out = tmp_path / "images", tmp_path / "images.arrow"
    folder(root, files or {})
    for name in folders:
        (root / name).mkdir(parents=True)
    with pytest.raises(PackError) as refusal:
        pack(root, out)
    assert str(refusal.value) == message.format(root=root)
    assert not out.exists()
    assert leftovers(tmp_path) == []


def test_unlabelled_folders_that_cannot_be_packed(tmp_path: Path) -> None:
    root = folder(tmp_path / "images", {"1.jpg": b"bad"})
    message = "none of 1 files is a usable image; the first: 1.jpg: undecodable (not an image)"
    with pytest.raises(PackError, match=f"^{re.escape(message)}$"):
        write(find_unlabelled(root), (), tmp_path / "p.arrow", split="test")


# --- accidents -------------------------------------------------------------------------------------------------------


@pytest.fixture
def old(root: Path) -> tuple[Path, Path, bytes]:
    """A folder, the pack that was made of it before, and that pack's bytes."""
    out = root.with_suffix(".arrow")
    pack(root, out)
    folder(root, {"a/new.png": encode(noise(9, 9, 500))})
    return root, out, out.read_bytes()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "accident", [KeyboardInterrupt, MemoryError, PackError, OSError(28, "No space left on device")]
)
def test_an_interrupted_packing_leaves_the_old_pack_or_none(
    old: tuple[Path, Path, bytes], accident: Any, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out, before = old
    if first:
        out.unlink()
    monkeypatch.setattr(module, "BATCH_BYTES", 1)
    calls = []

    def fail(*rows: Any, real: Any = module._read) -> Any:
        calls.append(rows)
        if len(calls) == 3:
            raise accident
        return real(*rows)

    monkeypatch.setattr(module, "_read", fail)
    expected = WriteError if isinstance(accident, OSError) else accident
    with pytest.raises(expected) as error:
        pack(root, out)
    assert len(calls) == 3
    if isinstance(accident, OSError):
        assert str(error.value) == f"{out} cannot be written: No space left on device; nothing was changed"
    left = {path.name: path.read_bytes() for path in out.parent.iterdir() if path.is_file()}
    assert left == ({} if first else {"images.arrow": before})
    assert {path.name for path in out.parent.iterdir()} == {"images", *left}


def test_packing_again_replaces_the_old_pack_and_its_readers_keep_theirs(
    old: tuple[Path, Path, bytes],
) -> None:
    root, out, _ = old
    reader = Pack(out)
    pack(root, out)
    assert len(Pack(out)) == 7
    assert len(reader) == 6
    assert reader.corrupt() == []


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
    old: tuple[Path, Path, bytes], monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None], said: str
) -> None:
    root, out, before = old

    def scan_and_spoil(*arguments: Any, **options: Any) -> list[ImageInfo]:
        infos = list(scan_here(*arguments, **options))
        spoil(root / "b" / "b_1.png")
        return infos

    monkeypatch.setattr(module, "scan", scan_and_spoil)
    with pytest.raises(PackError, match=said):
        pack(root, out)
    assert out.read_bytes() == before
    assert leftovers(out.parent) == []


def test_out_may_be_empty_or_a_pack_or_in_a_folder_that_is_not_there_yet(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    for out in (tmp_path / "empty", tmp_path / "empty", tmp_path / "new" / "deep" / "p.arrow"):
        pack(root, out, ALL_TRAIN)
        assert len(Pack(out)) == 6
