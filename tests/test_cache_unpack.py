"""A pack's images as folders again: the same bytes, labels and splits when they are packed, and no way out."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pictures import coded, encode, folder, noise, splits_of
from runs import Capture, Patch

from greyhound.cache import show
from greyhound.cache.__main__ import COMMANDS
from greyhound.cache.files import WriteError
from greyhound.cache.options import read_call
from greyhound.cache.pack import Options, pack
from greyhound.cache.scan import WHITE
from greyhound.cache.selection import Decision, Photograph
from greyhound.cache.source import SourceOptions
from greyhound.cache.store import SPLITS, Pack, PackError
from greyhound.cache.unpack import export_paths, unpack

KEEP = Options(grayscale="keep", duplicates="keep")


def described(packed: Pack) -> set[tuple[str, str, str, str]]:
    """Of every row: where it would be unpacked to, its class, its split, and its content's digest."""
    contents = (hashlib.sha256(packed.encoded(row).data).hexdigest() for row in range(len(packed)))
    names = (packed.classes[label] for label in packed.labels)
    return {*zip(export_paths(packed), names, splits_of(packed), contents, strict=True)}


def again(packed: Pack, root: Path, options: Options = KEEP) -> Pack:
    """The pack of what was unpacked."""
    unpack(packed, root / "back")
    pack(root / "back", root / "back.arrow", options)
    return Pack(root / "back.arrow")


def photographs(root: Path, paths: list[str]) -> Path:
    return folder(root / "images", {path: encode(noise(40, 30, n), "JPEG") for n, path in enumerate(paths)})


@pytest.fixture
def whole(tmp_path: Path, scan_in_process: None) -> Pack:
    """Twelve photographs in all three splits, nested, of odd names, one turned, one stored as PNG, one relabelled."""
    images = photographs(tmp_path, [f"{name}/{n}.jpg" for name in ("a", "B [x]") for n in range(5)])
    odd = os.fsdecode(b"caf\xe9 \\x41")
    folder(
        images,
        {
            f"a/deep/{odd}.JPG": encode(coded(30, 20, 1), "JPEG", 6),
            "a/0.tif": encode(coded(31, 20, 2), "TIFF"),
        },
    )
    content = hashlib.sha256((images / "a" / "1.jpg").read_bytes()).hexdigest()
    moved = Decision(Photograph("a/1.jpg", "a", content), "relabel", "B [x]")
    pack(images, tmp_path / "whole.arrow", Options(val=0.2, test=0.2, decisions=[moved]))
    return Pack(tmp_path / "whole.arrow")


def test_what_is_unpacked_and_packed_is_the_same(tmp_path: Path, whole: Pack) -> None:
    assert (len(whole), len(whole.header.transcoded), len(whole.header.relabelled)) == (12, 1, 1)
    assert all(len(whole.ids(split)) for split in SPLITS)
    back = again(whole, tmp_path)
    assert (back.classes, len(back.header.transcoded)) == (whole.classes, 0)
    assert described(back) == described(whole)
    originals = {path.read_bytes() for path in (tmp_path / "images").rglob("*.*") if path.suffix != ".tif"}
    written = {path.read_bytes() for path in (tmp_path / "back").rglob("*.*") if path.suffix != ".png"}
    assert written == originals
    names = {os.fsencode(path.name) for path in (tmp_path / "back").rglob("*.JPG")}
    assert names == {b"caf\xe9 \\x41.JPG"}
    (png,) = (tmp_path / "back").rglob("*.png")
    assert png.name == "0.tif.png"


def test_a_pack_for_training_alone_stays_so(tmp_path: Path, scan_in_process: None) -> None:
    images = photographs(tmp_path, ["a/1.jpg", "a/2.jpg", "b/1.jpg"])
    pack(images, tmp_path / "x.arrow", Options(val=0, test=0))
    back = again(Pack(tmp_path / "x.arrow"), tmp_path, Options(val=0))
    assert (back.classes, len(back.ids("train"))) == (("a", "b"), 3)
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == sorted(SPLITS)


def repack(packed: Pack, root: Path, capsys: Capture) -> tuple[str, Pack]:
    """The command that is printed after an export, and the pack that it makes."""
    unpack(packed, root / "the copy")
    show.say_unpacked(packed, root / "the copy")
    said = capsys.readouterr().out.splitlines()[-1].removeprefix("a pack again: greyhound ")
    first, *words = [str(root / "again.arrow") if word == "PACK" else word for word in shlex.split(said)]
    assert read_call(COMMANDS[first], words, "greyhound pack")() == 0
    return said, Pack(root / "again.arrow")


def test_the_printed_command_numbers_the_classes_alike(
    tmp_path: Path, scan_in_process: None, capsys: Capture
) -> None:
    """Also where they have WordNet numbers, were listed, or need marks in a list; transparent pixels too."""
    orders = {
        "natural": ["dog 2", "dog 10", "Ape"],
        "listed": ["n00000002-b", "n00000001-a"],
        "odd": ["[x]", " y ", "B\nC"],
    }
    for name, classes in orders.items():
        root = tmp_path / name
        images = photographs(root, [f"{each}/{n}.jpg" for each in classes for n in range(4)])
        (root / "order").write_text(json.dumps(classes))
        order = name if name == "natural" else str(root / "order")
        reading = SourceOptions(order=order, names="as-is")
        colour = "#808080" if name == "odd" else WHITE
        pack(images, root / "x.arrow", replace(KEEP, source=reading, background=colour))
        packed = Pack(root / "x.arrow")
        said, again = repack(packed, root, capsys)
        assert again.classes == packed.classes
        assert described(again) == described(packed)
        assert again.header.background == colour
        assert ("--class-order" in said, "as-is" in said) == (True, name == "listed")


def test_the_usual_order_needs_no_list(tmp_path: Path, whole: Pack, capsys: Capture) -> None:
    assert "--class" not in repack(whole, tmp_path, capsys)[0]
    assert sorted(each.name for each in (tmp_path / "the copy").iterdir()) == sorted(SPLITS)


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        (["0.jpg", "0.jpg/x.jpg"], ["0.jpg", "0-2.jpg/x.jpg"]),
        (["0.jpg/x.jpg", "0.jpg"], ["0.jpg/x.jpg", "0-2.jpg"]),
        (["0.jpg", "0.jpg/x", "0.jpg/y", "0-2.jpg"], ["0.jpg", "0-2.jpg/x", "0-2.jpg/y", "0-2-2.jpg"]),
    ],
)
def test_no_file_is_where_a_folder_is(
    paths: list[str], found: list[str], tmp_path: Path, coded_pack: Pack, monkeypatch: Patch
) -> None:
    """As a tar may have them."""
    monkeypatch.setattr(Pack, "image_path", lambda self, row: dict(enumerate(paths)).get(row, f"other/{row}"))
    assert list(export_paths(coded_pack))[: len(paths)] == [f"train/first/{path}" for path in found]
    unpack(coded_pack, tmp_path / "out")
    assert sum(file.is_file() for file in (tmp_path / "out").rglob("*")) == 20


def test_shards_are_unpacked_as_one(tmp_path: Path, whole: Pack, scan_in_process: None) -> None:
    pack(tmp_path / "images", tmp_path / "many.arrow", Options(val=0.2, test=0.2, shards=3))
    unpack(Pack(tmp_path / "many.arrow"), tmp_path / "many")
    assert sum(path.is_file() for path in (tmp_path / "many").rglob("*")) == 12


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("../../x.jpg", "train/a/_../_../x.jpg"),
        ("/etc/x.jpg", "train/a/etc/x.jpg"),
        ("a/../../x.jpg", "train/a/_../_../x.jpg"),
        ("a/./x.jpg", "train/a/_./x.jpg"),
        ("a//x.jpg", "train/a/x.jpg"),
        ("a", "train/a/a"),
        ("/", "train/a/image"),
        ("a/\\x2e\\x2e\\x2fx.jpg", "train/a/_../x.jpg"),
        ("a/x\\x00.jpg", "train/a/x_.jpg"),
        ("a/.hidden.jpg", "train/a/_.hidden.jpg"),
        ("a/Thumbs.db", "train/a/_Thumbs.db"),
        ("train/a/x.jpg", "train/a/x.jpg"),
        ("test/a/x.jpg", "train/a/test/a/x.jpg"),
        ("b/x.jpg", "train/a/b/x.jpg"),
    ],
)
def test_no_path_leads_out_of_the_folder(
    path: str, place: str, tmp_path: Path, coded_pack: Pack, monkeypatch: Patch
) -> None:
    """Rows 1 and 2 have the same path, and go elsewhere."""
    monkeypatch.setattr(Pack, "image_path", lambda self, row: path)
    monkeypatch.setattr(Pack, "classes", ("a", "a"))
    first, second, *_ = export_paths(coded_pack)
    assert first == place
    assert second != first and Path(second).parent == Path(first).parent
    unpack(coded_pack, tmp_path / "out")
    assert sum(file.is_file() for file in (tmp_path / "out").rglob("*")) == 20
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_no_class_leads_out_and_no_two_become_one(coded_pack: Pack, monkeypatch: Patch) -> None:
    monkeypatch.setattr(Pack, "classes", ("x/y", "x_y"))
    assert {place.split("/")[1] for place in export_paths(coded_pack)} == {"x_y", "x_y-2"}
    monkeypatch.setattr(Pack, "classes", ("..", ""))
    assert {place.split("/")[1] for place in export_paths(coded_pack)} == {"_..", "_"}


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, coded_pack: Pack) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(WriteError, match="is there and is not an empty folder; name a new one: --export"):
            unpack(coded_pack, out)
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ["mine"]


def test_an_empty_folder_is_filled_and_a_linked_one_too(tmp_path: Path, coded_pack: Pack) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    unpack(coded_pack, tmp_path / "link")
    assert (tmp_path / "real" / "train").is_dir() and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (OSError(28, "No space left on device"), "No space left .*nothing was"),
        (PackError("row 2 has not the bytes that were packed"), "not the bytes"),
    ],
)
def test_a_fault_leaves_nothing_behind(
    fault: Exception, said: str, tmp_path: Path, coded_pack: Pack, monkeypatch: Patch
) -> None:
    """It comes at the third image, when two are written."""
    encoded, written = Pack.encoded, list[Path]()

    def fail(self: Pack, index: int) -> NDArray[np.uint8]:
        if index < 2:
            return encoded(self, index)
        written.extend((tmp_path / "deep").rglob("*.img"))
        raise fault

    monkeypatch.setattr(Pack, "encoded", fail)
    with pytest.raises((WriteError, PackError), match=said):
        unpack(coded_pack, tmp_path / "deep" / "out")
    assert len(written) == 3, "two, and the one that was begun"
    assert not list((tmp_path / "deep").iterdir())


def test_what_was_done_is_said(tmp_path: Path, whole: Pack, capsys: Capture) -> None:
    show.say_unpacked(whole, Path("out"))
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("out: 12 images, as SPLIT/CLASS/image.jpg: ")
    assert said[1:] == [
        "written as the PNG that they are stored as: 1",
        "a pack again: greyhound pack out --out PACK --grayscale keep --duplicates keep",
    ]
