"""A folder inspected as a whole: the demo's planted faults, the two tables, and `pack`, which takes one of them."""

from __future__ import annotations

import hashlib
import re
import tracemalloc
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from pictures import Drawn, encode, folder, noise, portrait, scan_here
from PIL import Image
from runs import Capture, Patch

from greyhound.cache.__main__ import survey
from greyhound.cache.files import WriteError
from greyhound.cache.folder import find_labelled
from greyhound.cache.pack import Options, pack
from greyhound.cache.scan import ImageInfo
from greyhound.cache.selection import Exclusion, read_exclusions
from greyhound.cache.store import Pack, PackError
from greyhound.cache.survey import findings as module
from greyhound.cache.survey.findings import inspect
from greyhound.cache.survey.table import COLUMNS, Row, Rows, check_place, write

pytestmark = pytest.mark.usefixtures("scan_in_process")


@pytest.fixture(scope="module")
def rows(drawn: Drawn) -> list[Row]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "scan", scan_here)
        return inspected(drawn.folder)


def inspected(images: Path) -> list[Row]:
    with inspect(images) as rows:
        return list(rows)


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir()}


def test_what_the_demo_planted_is_found_and_nothing_else(drawn: Drawn, rows: list[Row]) -> None:
    assert len(rows) == 150
    assert [row.path for row in rows] == sorted(row.path for row in rows)
    assert all((drawn.folder / row.path).is_file() and row.label == row.path.split("/")[0] for row in rows)
    renamed = {"empty": "undecodable", "not-an-image": "undecodable", "gif": "transcoded"}
    planted: dict[str, dict[str, str]] = defaultdict(dict)
    for row in drawn.truth:
        planted[renamed.get(row["fault"], row["fault"])][row["path"]] = row["of"]
    for finding in ("undecodable", "truncated", "grayscale", "transcoded", "cmyk"):
        assert {row.path for row in rows if finding in row.findings} == planted[finding].keys() != set()
    for finding in ("exact-duplicate", "near-duplicate"):
        truth = {frozenset(pair) for pair in planted[finding].items()}
        assert {frozenset((row.path, row.of)) for row in rows if finding in row.findings} == truth != set()


def test_the_exclusions_are_what_pack_takes(drawn: Drawn, rows: list[Row], tmp_path: Path) -> None:
    write(rows, tmp_path)
    assert [row.path for row in Rows(tmp_path / "survey.csv")] == [row.path for row in rows]
    exclusions = read_exclusions(tmp_path / "excluded.csv")
    assert exclusions == {row.path: Exclusion(row.reason, row.causes) for row in rows if row.causes}
    pack(drawn.folder, tmp_path / "p.arrow", Options(exclude=exclusions))
    summary = Pack(tmp_path / "p.arrow").summary()
    assert summary["images"] == 150 - len(exclusions)
    listed = {row["path"]: f"{row['reason']}: {row['detail']}" for row in summary["excluded"]["images"]}
    assert listed == {path: exclusion.reason for path, exclusion in exclusions.items()}
    assert set(summary["excluded"]["reasons"]) == {"undecodable", "truncated", "exact-duplicate"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["excluded.csv", "p.arrow", "survey.csv"]


@pytest.mark.parametrize(
    ("grey", "size", "few"), [(1, 60, True), (2, 60, False), (3, 150, True), (4, 150, False)]
)
def test_survey_and_pack_leave_out_the_same_files(
    grey: int, size: int, few: bool, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    """Grey images of a class that is a third of the set: few are left out; of more none, and it is said."""
    monkeypatch.setattr(module, "scan", scan_here)
    files = {f"{'abb'[n % 3]}/{n:03}.png": encode(noise(12, 10, n)) for n in range(3 * size)}
    colourless = [f"a/{n:03}.png" for n in range(0, 3 * grey, 3)]
    files |= {
        path: encode(Image.fromarray(noise(12, 10, n)).convert("L")) for n, path in enumerate(colourless)
    }
    files |= {"a/broken.jpg": b"", "a/copy.png": files["a/021.png"], "b/fox.png": files["a/030.png"]}
    root = folder(tmp_path / "images", files)
    survey(root, tmp_path / "out")
    left = {path: why.causes for path, why in read_exclusions(tmp_path / "out" / "excluded.csv").items()}
    header = pack(root, tmp_path / "p.arrow", Options(0, 0))
    assert {row.path: (row.reason,) for row in header.excluded} == left
    assert left.keys() == {
        "a/broken.jpg",
        "a/copy.png",
        "a/030.png",
        "b/fox.png",
        *(colourless if few else []),
    }
    said = f"{grey} images have no colour, and none is left out: that would take {grey} of the {size + 1} images of class a"
    assert (said in capsys.readouterr().err) is (size == 150 and not few)


def portraits(count: int) -> dict[str, bytes]:
    return {f"{'ab'[seed % 2]}/{seed:02}.jpg": encode(portrait(seed), "JPEG") for seed in range(count)}


def test_portraits_of_one_composition_are_no_twins(tmp_path: Path) -> None:
    """Thumbnails cannot tell them apart; close-ups, read from the files, can, and still find one that is mirrored and cropped."""
    copy = portrait(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT).crop((6, 4, 196, 198))
    turned = encode(copy.transpose(Image.Transpose.ROTATE_90), "JPEG", 6, quality=70)
    root = folder(tmp_path / "images", portraits(24) | {"b/copy.jpg": turned})
    twins = {row.path: row.of for row in inspected(root) if row.findings}
    assert twins == {"a/00.jpg": "b/copy.jpg", "b/copy.jpg": "a/00.jpg"}
    header = pack(root, tmp_path / "p.arrow", Options(val=0.25, test=0.25))
    assert not header.excluded
    packed = Pack(tmp_path / "p.arrow")
    assert [len(packed.ids(split)) for split in ("train", "val", "test")] == [13, 6, 6]


def test_the_survey_says_where_it_did_not_look_at_all_that_are_alike(
    tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    root = folder(tmp_path / "images", portraits(12))
    survey(root, tmp_path / "out")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("greyhound.cache.twins.LOOKED_AT", 9)
    survey(root, tmp_path / "out")
    said = r"note: [1-3] images look like 9 others or more from afar: .*\n"
    assert re.fullmatch(said, capsys.readouterr().err)


def test_a_class_is_the_first_folder_and_without_folders_there_is_none(tmp_path: Path) -> None:
    image = encode(noise(90, 80, 1))
    root = folder(tmp_path / "flat", {"b.png": image, "a.png": image, "notes.txt": b"?"})
    assert [(row.path, row.label, row.verdict) for row in inspected(root)] == [
        ("a.png", "", "keep"),
        ("b.png", "", "exclude"),
    ]
    root = folder(tmp_path / "deep", {"a/deep/er/1.png": image, "a/2.txt": b"?"})
    assert [(row.path, row.label, row.findings) for row in inspected(root)] == [
        ("a/2.txt", "a", ("undecodable",)),
        ("a/deep/er/1.png", "a", ()),
    ]


def test_a_class_folder_may_be_a_link_for_survey_and_pack_alike(tmp_path: Path) -> None:
    """And what leads back to where it came from is followed by neither."""
    data = [encode(noise(90, 80, seed)) for seed in range(4)]
    linked = tmp_path / "elsewhere" / "x"
    folder(linked, {"1.png": data[0], "deeper/2.png": data[1], "4.png": data[3]})
    root = folder(tmp_path / "images", {"b/3.png": data[2]})
    links = {"a": linked, "a/back": root, "itself": root, "above": tmp_path, "loop": root / "loop"}
    links |= {"b/self.png": root / "b/self.png", "b/twin.png": linked / "4.png"}
    for link, to in links.items():
        (root / link).symlink_to(to)
    paths = ["a/1.png", "a/4.png", "a/deeper/2.png", "b/3.png", "b/self.png", "b/twin.png"]
    assert [row.path for row in inspected(root)] == paths
    assert [source.path for source in find_labelled(root)[1]] == paths
    header = pack(root, tmp_path / "p.arrow", Options(val=0, test=0, duplicates="keep"))
    assert header.classes == ("a", "b")
    assert [row.path for row in header.excluded] == ["b/self.png"]
    assert len(Pack(tmp_path / "p.arrow")) == 5


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_line_ends_in_a_name_are_read_back(end: str, tmp_path: Path) -> None:
    data = encode(noise(90, 80, 1))
    folder(tmp_path / "images", {f"a/one{end}two.png": data, f"b/x{end}": b"", f"b/3{end}.png": data})
    rows = inspected(tmp_path / "images")
    write(rows, tmp_path)
    read = Rows(tmp_path / "survey.csv")
    assert [(row.path, row.of) for row in read] == [(row.path, row.of) for row in rows]
    excluded = tmp_path / "excluded.csv"
    assert read_exclusions(excluded) == {row.path: Exclusion(row.reason, row.causes) for row in rows}
    assert excluded.read_bytes().startswith(b"path,reason,causes\n")


def test_nothing_to_inspect_and_a_place_to_write_to(tmp_path: Path) -> None:
    with pytest.raises(PackError, match=r"x is not there; expected a folder of images$"):
        inspected(tmp_path / "x")
    for _ in ("empty", "nothing that is named as an image"):
        with pytest.raises(PackError, match=r"holds no images; expected some, or one subfolder a class"):
            inspected(tmp_path)
        folder(tmp_path, {"notes.txt": b"?"})
    images = folder(tmp_path / "images", {"a.png": b""})
    check_place(images, tmp_path / "new" / "out")
    with pytest.raises(PackError, match=r"out lies inside .*images, where it would be taken for an image"):
        check_place(images, images / "out")
    with pytest.raises(PackError, match=r"txt is no folder that can be written to \(.*\); name another$"):
        check_place(images, tmp_path / "notes.txt")
    check_place(tmp_path / "nowhere", tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "notes.txt"]


def test_a_failed_write_leaves_the_old_tables(tmp_path: Path, monkeypatch: Patch) -> None:
    """Whether a row cannot be written, or the second table cannot be flushed: both are of one survey."""
    write([Row("a/1.png", "a", causes=("grayscale",), reason="grayscale: colourfulness 0.0")], tmp_path)
    before, full = contents(tmp_path), OSError(28, "No space left on device")
    said = r"survey\.csv cannot be written: No space left on device; nothing was changed$"

    def rows() -> Iterator[Row]:
        yield Row("a/1.png", "a")
        raise full

    with pytest.raises(WriteError, match=said):
        write(rows(), tmp_path)
    assert contents(tmp_path) == before
    monkeypatch.setattr("os.fsync", Mock(side_effect=[None, full]))
    with pytest.raises(WriteError, match=said):
        write([], tmp_path)
    assert contents(tmp_path) == before


def test_memory_does_not_grow_with_the_images(tmp_path: Path, monkeypatch: Patch) -> None:
    """The whole command, its looking stubbed: what an image more costs, between 1,600 and 3,200 different ones."""
    monkeypatch.setattr(module, "scan", imagine)
    out = tmp_path / "found"

    def peak(count: int) -> int:
        paths = (f"class {place % 20}/{place:06}.jpg" for place in range(count))
        monkeypatch.setattr(module, "find_images", lambda _: paths)
        tracemalloc.start()
        try:
            survey(tmp_path / "images", out)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    (tmp_path / "images").mkdir()
    peak(10)  # imports, and what is made once
    # of two: now and then a collection of garbage adds 8 MB to one
    few, many = (min(peak(count), peak(count)) for count in (1_600, 3_200))
    assert len([*Rows(out / "survey.csv")]) == 3_200
    assert (many - few) / 1_600 < 320  # measured: 281 bytes


def imagine(paths: Iterable[Path]) -> Generator[ImageInfo, None, None]:
    """A look for every path, each at another picture."""
    sound = ImageInfo("JPEG", 500, 375, luma_high=200, sharpness=99)
    for place, path in enumerate(paths):
        pixels = np.random.default_rng(place).bytes(768)
        yield replace(sound, sha256=hashlib.sha256(path.name.encode()).hexdigest(), thumbnail=pixels)


ROWS = [
    Row("a/1.jpg", "a", "JPEG", 640, 480, 12345, 6, 31.5, 120.25, 88.0, "ab" * 32, ("grayscale", "dark"), "", ("grayscale",), "grayscale"),
    Row('b/<img onerror="x">\n,;.jpg', "b", findings=("near-duplicate",), of="a/1.jpg"),
]  # fmt: skip


def test_the_table_comes_back_as_it_was(tmp_path: Path) -> None:
    write(ROWS, tmp_path)
    assert [*Rows(tmp_path / "survey.csv")] == ROWS
    first = (tmp_path / "survey.csv").read_text().splitlines()[0]
    assert (
        first
        == ",".join(COLUMNS)
        == (
            "path,class,format,width,height,bytes,orientation,colourfulness,mean_luma,sharpness,sha256,"
            "findings,of,verdict,causes,reason"
        )
    )
    file = tmp_path / "other.csv"
    for content in (b"path,class\na,b\n", b"\xff\xfe\x00", b"path,class,width\na,b,wide\n"):
        file.write_bytes(content)
        with pytest.raises(PackError, match=r"other\.csv is no survey\.csv"):
            list(Rows(file))
    with pytest.raises(PackError, match=r"cannot be read"):
        list(Rows(tmp_path / "nothing.csv"))
