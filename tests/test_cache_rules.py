"""Each finding on a file that has just that fault, and what the machine would do with twins of every kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pictures import encode, folder, noise, png_bomb, scan_here
from PIL import Image, ImageFilter
from runs import Patch

from greyhound.cache.scan import ImageInfo
from greyhound.cache.selection import FINDINGS
from greyhound.cache.survey import findings
from greyhound.cache.survey.findings import ATTEMPTS, NAMED, is_misnamed, judge
from greyhound.cache.survey.table import Row
from greyhound.cache.twins import Pair, Twins

SHARP = noise(200, 150, 3)


OTHER = Image.fromarray(noise(200, 150, 4))
SMALL = Image.fromarray(SHARP).resize((100, 75))
WRONG = "which has another label: at least one of them is wrong"


def inspected(root: Path, files: Mapping[str, bytes]) -> dict[str, Row]:
    """Rows by path; the class is the first folder."""
    folder(root, files)
    looks = list(scan_here(root / path for path in files))
    return {row.path: row for row in judge([*files], [path.rpartition("/")[0] for path in files], looks)}


def frames(format: str) -> bytes:
    first, *others = (Image.fromarray(noise(80, 60, seed)) for seed in range(3))
    return encode(first, format, save_all=True, append_images=others)


def scaled(pixels: NDArray[np.uint8], factor: float, offset: float = 0) -> NDArray[np.uint8]:
    return np.asarray(np.clip(pixels * factor + offset, 0, 255), np.uint8)


def moved(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fine stripes from side to side and a quiet ground, as a thing leaves that passes by."""
    stripes = np.random.default_rng(0).integers(-60, 61, (len(pixels), 1, 1))
    return scaled(pixels.mean(axis=1, keepdims=True) + stripes + np.zeros_like(pixels), 1)


def grey(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels).convert("L")


FAULTY: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "empty": ("a/x.jpg", lambda: b"", "undecodable"),
    "text": ("a/x.jpg", lambda: b"<html>", "undecodable"),
    "cut short": ("a/x.jpg", lambda: encode(SHARP, "JPEG")[:-9000], "truncated"),
    "bomb": ("a/x.png", lambda: png_bomb(20_000), "bomb"),
    "one channel": ("a/x.jpg", lambda: encode(grey(SHARP), "JPEG"), "grayscale"),
    "three equal channels": ("a/x.png", lambda: encode(grey(SHARP).convert("RGB")), "grayscale"),
    "sepia": ("a/x.png", lambda: encode((np.asarray(grey(SHARP))[..., None] * np.array([1.0, 0.9, 0.72])).astype(np.uint8)), "tinted"),
    "tiny": ("a/x.png", lambda: encode(noise(47, 60, 1)), "odd-size"),
    "long": ("a/x.png", lambda: encode(noise(400, 130, 1)), "odd-size"),
    "huge": ("a/x.png", lambda: encode(Image.fromarray(SHARP).resize((1000, 750), 0)), "odd-size"),
    "dark": ("a/x.png", lambda: encode(scaled(SHARP, 0.2)), "dark"),
    "bright": ("a/x.png", lambda: encode(scaled(SHARP, 0.2, 200)), "bright"),
    "blown": ("a/x.png", lambda: encode(np.where(np.indices((150, 200, 3))[1] < 175, 255, SHARP).astype("u1")), "bright"),
    "moved": ("a/x.jpg", lambda: encode(moved(SHARP), "JPEG"), "blurred"),
    "blurred": ("a/x.png", lambda: encode(Image.fromarray(SHARP).filter(ImageFilter.GaussianBlur(5))), "blurred"),
    "misnamed": ("a/x.png", lambda: encode(SHARP, "JPEG"), "wrong-extension"),
    "no name of an image": ("a/x.txt", lambda: encode(SHARP, "JPEG"), "wrong-extension"),
    "transcoded": ("a/x.ppm", lambda: encode(SHARP, "PPM"), "transcoded"),
    "animated": ("a/x.webp", lambda: frames("WEBP"), "animated"),
    "print": ("a/x.jpg", lambda: encode(Image.fromarray(SHARP).convert("CMYK"), "JPEG"), "cmyk"),
}  # fmt: skip
LOST = {"undecodable", "truncated", "bomb"}  # one grey image of four is too many to leave out unasked


@pytest.fixture(autouse=True)
def no_limit(monkeypatch: Patch) -> None:
    """As in the child process: `look_into` refuses bombs itself."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)


@pytest.mark.parametrize("name", FAULTY)
def test_each_fault_is_found_and_no_other(name: str, tmp_path: Path) -> None:
    path, make, finding = FAULTY[name]
    files = {f"b/{seed}.png": encode(noise(180 + seed, 140, seed)) for seed in (50, 51, 52)}
    rows = inspected(tmp_path, files | {path: make()})
    assert rows[path].findings == (finding,)
    assert rows[path].verdict == ("exclude" if finding in LOST else "keep")
    assert rows[path].reason.startswith(f"{finding}: ")
    assert len(rows[path].reason) > len(finding) + 8
    assert [rows[other].findings for other in files] == [()] * 3
    assert {rows[other].reason for other in files} == {""}


def test_an_animated_gif_is_two_findings_and_a_preview_inside_a_photograph_none(tmp_path: Path) -> None:
    still = encode(noise(80, 60, 9), "GIF")
    rows = inspected(tmp_path, {"a/x.gif": frames("GIF"), "a/y.gif": still})
    assert rows["a/x.gif"].findings == ("transcoded", "animated")
    assert (
        inspected(tmp_path / "tif", {"a/x.tif": frames("TIFF")})["a/x.tif"].findings
        == rows["a/x.gif"].findings
    )
    assert rows["a/y.gif"].findings == ("transcoded",)
    seen = Image.fromarray(np.dstack([SHARP, np.full(SHARP.shape[:2], 99, np.uint8)]))
    row = inspected(tmp_path, {"a/w.png": encode(seen)})["a/w.png"]
    assert (row.findings, row.verdict) == (("transcoded", "transparent"), "keep")
    assert inspected(tmp_path, {"a/x.jpg": frames("MPO")})["a/x.jpg"].findings == ()


def test_a_row_says_what_the_look_measured(tmp_path: Path) -> None:
    data = encode(SHARP, "JPEG", 6)
    (look,) = scan_here([folder(tmp_path, {"x.jpg": data}) / "x.jpg"])
    row = inspected(tmp_path, {"a/x.jpg": data})["a/x.jpg"]
    assert (row.label, row.format, row.width, row.height, row.bytes) == ("a", "JPEG", 150, 200, len(data))
    names = ("orientation", "colourfulness", "mean_luma", "sharpness", "sha256")
    assert [getattr(row, name) for name in names] == [getattr(look, name) for name in names]
    assert row.orientation == 6
    assert min(row.colourfulness, row.mean_luma, row.sharpness) > 0


@pytest.mark.parametrize(
    ("format", "named", "misnamed"),
    [
        ("JPEG", "a/x.jpg a/x.mpo a/n02085620.10074 a/dog.v2 a/dog.final", "a/x.bak a/dog.v2.png"),
        ("MPO", "a/x.JPEG", ""),
        ("PNG", "a/x a.jpg/x", "a/x.jpg"),
        ("TIFF", "a/x.tif", ""),
        ("JPEG2000", "a/x.jp2", ""),
        ("PPM", "a/x.pgm", ""),
    ],
)
def test_whose_name_a_file_has(format: str, named: str, misnamed: str) -> None:
    assert [path for path in f"{named} {misnamed}".split() if is_misnamed(path, format)] == misnamed.split()


def verdicts(rows: Mapping[str, Row]) -> dict[str, tuple[str, str]]:
    return {path: (row.verdict, row.of) for path, row in rows.items()}


def test_of_copies_in_two_classes_none_is_kept_and_in_one_the_first(tmp_path: Path) -> None:
    rows = inspected(tmp_path, dict.fromkeys(("a/1.png", "a/2.png", "b/3.png"), encode(SHARP)))
    other = ("exclude", "b/3.png")
    assert verdicts(rows) == {"a/1.png": other, "a/2.png": other, "b/3.png": ("exclude", "a/1.png")}
    assert rows["b/3.png"].reason == f"exact-duplicate: the same file as a/1.png, {WRONG}"
    rows = inspected(tmp_path, {f"a/{n}.png": encode(SHARP) for n in (1, 2, 3)} | {"b/4.png": encode(OTHER)})
    copy = ("exclude", "a/1.png")
    kept = {"a/1.png": ("keep", "a/2.png"), "b/4.png": ("keep", "")}
    assert verdicts(rows) == kept | {"a/2.png": copy, "a/3.png": copy}
    assert [row.findings for row in rows.values()] == [("exact-duplicate",)] * 3 + [()]
    assert rows["a/3.png"].reason == "exact-duplicate: the same file as a/1.png"


def test_near_twins_are_kept_in_one_class_and_in_two(tmp_path: Path) -> None:
    files = {
        "a/1.png": encode(SHARP),
        "a/2.png": encode(np.ascontiguousarray(SHARP[:, ::-1])),
        "a/3.png": encode(OTHER),
        "b/4.png": encode(OTHER.resize((100, 75))),
    }
    rows = inspected(tmp_path, files)
    assert verdicts(rows) == {
        "a/1.png": ("keep", "a/2.png"),
        "a/2.png": ("keep", "a/1.png"),
        "a/3.png": ("keep", "b/4.png"),
        "b/4.png": ("keep", "a/3.png"),
    }
    assert {row.findings for row in rows.values()} == {("near-duplicate",)}
    said = "near-duplicate: the same picture as a/2.png in a mirror; they stay in one split"
    assert rows["a/1.png"].reason == said
    said = "near-duplicate: the same picture as a/3.png, which has another label: a"
    assert rows["b/4.png"].reason == said


def test_the_twin_of_another_label_is_named_first(tmp_path: Path) -> None:
    """In its own class is the nearer twin, but the one in another class is what a person must see."""
    image = Image.fromarray(SHARP)
    files = {
        "a/1.png": encode(image),
        "a/2.jpg": encode(image, "JPEG", quality=95),
        "b/3.jpg": encode(image.crop((6, 4, 196, 146)), "JPEG", quality=40),
    }
    row = inspected(tmp_path, files)["a/1.png"]
    assert (row.verdict, row.of) == ("keep", "b/3.jpg")
    assert row.reason.count("near-duplicate: ") == 2


@pytest.mark.parametrize("name", ["cover.png", "0.png"])
def test_an_image_beside_the_class_folders_claims_no_label(name: str, tmp_path: Path) -> None:
    """Wherever it comes in the order, the one in the folder is kept; near twins of it are."""
    data = encode(SHARP)
    files = {"a/1.png": data, "a/2.png": data, "b/3.png": encode(OTHER)}
    rows = inspected(tmp_path, files | {name: data} if name == "cover.png" else {name: data} | files)
    assert verdicts(rows) == {
        "a/1.png": ("keep", "a/2.png"),
        "a/2.png": ("exclude", "a/1.png"),
        "b/3.png": ("keep", ""),
        name: ("exclude", "a/1.png"),
    }
    assert rows["a/1.png"].reason == "exact-duplicate: the first of 3 copies, which is kept"
    near = inspected(tmp_path, {"a/1.png": data, name: encode(SMALL)})
    assert [row.verdict for row in near.values()] == ["keep", "keep"]


@pytest.mark.parametrize(("one", "other"), ["ab", "ba"])
def test_the_near_twin_of_a_file_with_two_labels_is_kept(one: str, other: str, tmp_path: Path) -> None:
    files = {f"{one}/1.png": encode(SHARP), f"{one}/2.png": encode(SMALL), f"{other}/3.png": encode(SHARP)}
    rows = inspected(tmp_path, dict(sorted(files.items())))
    assert {path: row.verdict for path, row in rows.items() if row.verdict == "keep"} == {
        f"{one}/2.png": "keep"
    }
    assert "near-duplicate" in rows[f"{one}/2.png"].findings


def burst(count: int) -> list[ImageInfo]:
    """Pictures whose thumbnails differ by grain alone."""
    frame, seen = np.clip(noise(16, 16, 1).astype(int), 25, 225), ImageInfo("", 500, 375, luma_high=200)
    grain = (np.random.default_rng(seed).integers(-15, 16, frame.shape) for seed in range(count))
    pixels = [scaled(frame + each, 1).tobytes() for each in grain]
    return [replace(seen, sha256=str(n), sharpness=99, thumbnail=each) for n, each in enumerate(pixels)]


def test_of_many_near_twins_the_first_are_named() -> None:
    """A reason that named all of them would be longer than a CSV reader takes."""
    rows = list(judge([f"a/{seed:03}.jpg" for seed in range(300)], ["a"] * 300, burst(300)))
    assert max(row.reason.count("the same picture as") for row in rows) == NAMED
    assert max(len(row.reason) for row in rows) < 500
    assert any(" more files show this picture" in row.reason for row in rows)


@pytest.mark.parametrize(("same", "named"), [(False, 0), (True, 5)])
def test_every_pair_of_two_labels_is_looked_at(same: bool, named: int) -> None:
    """Also where each of the two has near twins enough of its own label."""
    labels = ["a"] * 5 + ["b"] * 5
    pictures = {"a": noise(128, 128, 1)[..., 0], "b": noise(128, 128, 1 if same else 2)[..., 0]}
    rows = judge(
        [f"{label}/{n}.jpg" for n, label in enumerate(labels)],
        labels,
        burst(10),
        detail=lambda index: pictures[labels[index]],
    )
    wrong = [row.label for row in rows if "which has another label" in row.reason]
    assert wrong == ["a"] * named + ["b"] * named


def test_pictures_that_are_merely_alike_cost_no_square(monkeypatch: Patch) -> None:
    looked, count = [], 60
    pairs = tuple(Pair(one, other, 0.1, False) for one, other in combinations(range(count), 2))
    monkeypatch.setattr(findings, "find_twins", lambda *_: Twins(np.arange(count), pairs))

    def detail(index: int) -> NDArray[np.uint8]:
        looked.append(index)
        return noise(128, 128, index)[..., 0]

    rows = list(judge([f"{n:03}.jpg" for n in range(count)], [""] * count, burst(count), detail=detail))
    assert not any("near-duplicate" in row.findings for row in rows)
    assert 0 < len(looked) <= 2 * ATTEMPTS * count < 2 * len(pairs)


def test_findings_come_in_the_order_in_which_to_look_at_them(tmp_path: Path) -> None:
    dark = encode(grey(scaled(SHARP, 0.2)), "JPEG")
    row = inspected(tmp_path, {"a/1.png": dark, "a/2.png": dark})["a/2.png"]
    assert row.findings == ("grayscale", "exact-duplicate", "dark", "wrong-extension")
    assert [*row.findings] == [name for name in FINDINGS if name in row.findings]
    assert row.causes == ("exact-duplicate",)
    assert row.reason.startswith(
        "exact-duplicate: the same file as a/1.png; grayscale: it has no colour at all; "
    )
    looks = [ImageInfo(sha256="a", luma_high=200, sharpness=99, width=90, height=90)] * 2
    rows = list(judge(["1", "2"], ["", ""], looks))
    assert [(row.verdict, row.of) for row in rows] == [("keep", "2"), ("exclude", "1")], "without labels"
    assert list(judge([], [], [])) == []
