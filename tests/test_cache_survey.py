"""The survey: answers in order, one child lost for one murderous file, and the rule that says what is grayscale."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pictures import coded, encode, folder, noise, store_as
from PIL import Image, ImageFilter
from runs import Patch

from greyhound.cache import scan as module
from greyhound.cache.nearby import THUMBNAIL
from greyhound.cache.pack import Options, pack
from greyhound.cache.place import to_line
from greyhound.cache.scan import ImageInfo, ScanError, counted, scan
from greyhound.cache.stats import least_and_most_detail, measure, sharpness
from greyhound.cache.store import Pack
from greyhound.cache.survey import findings, page

CHILD = """
import os, time
from greyhound.cache import validate

def look_at(path, background, real=validate.look_at):
    acts = {
        "abort": os.abort,
        "exit": lambda: os._exit(3),
        "hang": lambda: time.sleep(60),
        "slow": lambda: time.sleep(0.15),
        "babble": lambda: os.write(1, b"a C library has something to say\\n"),
    }
    for name, act in acts.items():
        if path.name.startswith(name):
            act()
    return (yield from real(path, background))

without = validate.DaliDecoder(False)
validate.DaliDecoder, validate.look_at = lambda _: without, look_at
validate.main()
"""
"""The child process, but for DALI's probe, which takes seconds to start, and with files that end it."""


@pytest.fixture
def children(monkeypatch: Patch) -> list[subprocess.Popen[bytes]]:
    """Start `CHILD` for every child process, and keep them all."""
    return start_instead(["-c", CHILD], monkeypatch)


def start_instead(command: list[str], monkeypatch: Patch) -> list[subprocess.Popen[bytes]]:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(_: list[str], **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen([sys.executable, *command], **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    return started


def files(root: Path, *names: str) -> list[Path]:
    """Images that tell themselves apart by their width: 10, 11, 12, ..."""
    folder(root, {name: encode(coded(10 + place, 9)) for place, name in enumerate(names)})
    return [root / name for name in names]


def widths(looks: Iterable[ImageInfo]) -> list[int]:
    return [look.width for look in looks]


def gone(children: list[subprocess.Popen[bytes]]) -> bool:
    return all(child.poll() is not None for child in children)


def test_the_real_child_looks_at_real_files(tmp_path: Path) -> None:
    images = {"a.png": encode(coded(20, 10)), "b.jpg": b"\xff\xd8 no", "c.gif": encode(coded(9, 9), "GIF")}
    folder(tmp_path, images)
    good, bad, other, *none = scan([tmp_path / name for name in (*images, "missing.png", "")], workers=1)
    assert (good.format, good.width, good.height, good.problem, good.transcode) == ("PNG", 20, 10, "", "")
    assert (bad.width, bad.height, bad.problem, bad.detail) == (
        0,
        0,
        "undecodable",
        "no image that is read here",
    )
    assert other.transcode == "GIF is not a format that both engines decode"
    assert none == [ImageInfo(problem="undecodable", detail="not a regular file")] * 2


def test_the_answers_come_in_the_order_of_the_files(tmp_path: Path, children: list[Any]) -> None:
    assert list(scan([])) == []
    assert gone(children)
    children.clear()
    names = [f"{'slow' if place % 5 == 0 else 'babble'}{place}.png" for place in range(16)]
    paths, progress = files(tmp_path, *names), list[tuple[int, int]]()
    looks = counted(scan(paths, 2), len(paths), lambda *done: progress.append(done))
    assert widths(looks) == list(range(10, 26)), "nor do they mix with what a library prints"
    assert len(children) == 2
    assert gone(children)
    assert progress == [(done, 16) for done in range(1, 17)]


@pytest.mark.parametrize(("few", "started"), [(64, 4), (4, 5)], ids=["one by one", "together"])
def test_a_file_that_kills_its_decoder_is_blamed_alone(
    tmp_path: Path, children: list[Any], monkeypatch: Patch, few: int, started: int
) -> None:
    monkeypatch.setattr(module, "FEW", few)
    paths = files(tmp_path, "a.png", "abort.png", "b.png", "exit.png", "c.png", "abort2.png")
    looks = list(scan(paths, workers=1))
    assert widths(looks) == [10, 0, 12, 0, 14, 0]
    assert [look.problem for look in looks] == ["", "undecodable"] * 3
    assert looks[1].detail == "the file ended its decoder (exit status -6)"
    assert looks[3].detail == "the file ended its decoder (exit status 3)"
    assert len(children) == started
    assert gone(children)


def test_what_ends_a_decoder_is_left_out_of_the_pack_and_named_on_the_page(
    tmp_path: Path, children: list[Any], monkeypatch: Patch
) -> None:
    """And no other process opens it, not for its picture either."""
    root, html, opening = tmp_path / "images", tmp_path / "survey.html", Image.open
    files(
        root,
        *(
            f"{label}/{kind}.png"
            for label in "ab"
            for kind in ("1", "2", "abort" if label == "a" else "exit")
        ),
    )
    opened: list[str] = []

    def watch(file: Any, *rest: Any) -> Image.Image:
        opened.append(str(file))
        return opening(file, *rest)

    monkeypatch.setattr(Image, "open", watch)
    header = pack(root, tmp_path / "p.arrow", Options(val=0, test=0))
    left_out = {row.path: row.detail for row in header.excluded}
    assert left_out == {
        "a/abort.png": "the file ended its decoder (exit status -6)",
        "b/exit.png": "the file ended its decoder (exit status 3)",
    }
    assert [row.thumbnail for row in header.excluded] == [None] * 2
    assert len(Pack(tmp_path / "p.arrow")) == 4
    with findings.inspect(root) as found:
        rows = list(found)
    assert {row.path for row in rows if row.verdict == "exclude"} == set(left_out)
    assert page.write(rows, root, html).suspects >= 2
    assert all(path in html.read_text() for path in left_out)
    assert not [file for file in opened if "abort" in file or "exit" in file]
    assert gone(children)


@pytest.mark.parametrize("few", [64, 2], ids=["one by one", "together"])
def test_a_file_that_takes_for_ever_is_given_up(
    tmp_path: Path, children: list[Any], monkeypatch: Patch, few: int
) -> None:
    monkeypatch.setattr(module, "FEW", few)
    monkeypatch.setattr(module, "TIMEOUT", 1.5)
    start = time.monotonic()
    looks = list(scan(files(tmp_path, "a.png", "hang.png", "b.png"), workers=1))
    assert time.monotonic() - start < 20
    assert widths(looks) == [10, 0, 12]
    assert looks[1].problem == "undecodable"
    assert looks[1].detail == "the file ended its decoder (took more than 2 s or all the memory)"
    assert gone(children)


def test_what_is_no_regular_file(tmp_path: Path, children: list[Any]) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it: to open it would wait for ever
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    names = ["folder", "pipe", "loop", "dangling", "missing"]
    looks = list(scan([tmp_path / name for name in names], workers=1))
    assert looks == [ImageInfo(problem="undecodable", detail="not a regular file")] * 5


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's capabilities")
def test_a_file_that_may_not_be_read(ordinary: None, tmp_path: Path, children: list[Any]) -> None:
    (path,) = files(tmp_path, "a.png")
    path.chmod(0)
    assert list(scan([path], workers=1)) == [ImageInfo(problem="unreadable", detail="Permission denied")]


def test_names_of_every_kind(tmp_path: Path, children: list[Any]) -> None:
    """And what the child measures is what is measured here."""
    names = ["a b.png", "a'\".png", "two\nlines.png", "\U0001f415.png", "\udcff\udcfe.png", "-x.png"]
    looks = list(scan(files(tmp_path, *names), workers=1))
    assert widths(looks) == [10, 11, 12, 13, 14, 15]
    measured = measure(coded(10, 9))
    assert {name: getattr(looks[0], name) for name in measured} == measured
    assert (looks[0].mode, looks[0].animated) == ("RGB", False)


@pytest.mark.parametrize("dali", [True, False])
def test_a_child_is_told_whether_dali_must_decode(tmp_path: Path, monkeypatch: Patch, dali: bool) -> None:
    commands: list[list[str]] = []
    popen = subprocess.Popen

    def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        commands.append(command)
        return popen(command, **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    assert widths(scan(files(tmp_path, "a.png"), dali=dali)) == [10]
    assert [command[-1] == module.WITHOUT_DALI for command in commands] == [not dali]


def test_a_child_that_was_killed_between_two_files_costs_none(
    tmp_path: Path, children: list[Any], monkeypatch: Patch
) -> None:
    monkeypatch.setattr(module, "AHEAD", 0)
    with closing(scan(files(tmp_path, "a.png", "b.png", "c.png"), workers=1)) as looks:
        first = next(looks)
        for child in children:
            child.kill()
            child.wait()
        assert widths([first, *looks]) == [10, 11, 12]


def test_a_child_is_asked_about_several_of_many_files_at_once(
    tmp_path: Path, children: list[Any], monkeypatch: Patch
) -> None:
    lines: list[int] = []

    def written(paths: Sequence[Path]) -> bytes:
        lines.append(len(paths))
        return to_line(paths)

    monkeypatch.setattr(module, "to_line", written)
    for count, asked in ((63, [1] * 63), (70, [16, 16, 16, 16, 6])):
        lines.clear()
        paths = files(tmp_path, *[f"{place}.png" for place in range(count)])
        assert widths(scan(paths, workers=1)) == list(range(10, 10 + count))
        assert lines == asked


@pytest.mark.parametrize(
    ("count", "small", "expected"), [(2, 1 << 20, 1), (3, 1 << 20, 1), (4, 1 << 20, 2), (3, 100, 2)]
)
def test_a_few_small_files_start_one_child(
    tmp_path: Path, children: list[Any], monkeypatch: Patch, count: int, small: int, expected: int
) -> None:
    monkeypatch.setattr(module, "FEW", 4)
    monkeypatch.setattr(module, "TOGETHER", 2)
    monkeypatch.setattr(module, "SMALL", small)
    monkeypatch.setattr(module, "available_cores", lambda: 2)
    paths = files(tmp_path, *[f"slow{place}.png" for place in range(count)])
    assert widths(list(scan(paths))) == list(range(10, 10 + count))
    assert len(children) == expected


def test_a_child_that_does_not_start(tmp_path: Path, monkeypatch: Patch) -> None:
    children = start_instead(["-c", "raise ImportError('libGL.so.1 is missing')"], monkeypatch)
    with pytest.raises(ScanError) as error:
        list(scan(files(tmp_path, "a.png", "b.png"), workers=2))
    assert str(error.value) == "the decoder process does not start: ImportError: libGL.so.1 is missing"
    assert gone(children)


@pytest.mark.alone
def test_an_interrupted_survey_leaves_no_child_behind(tmp_path: Path, children: list[Any]) -> None:
    looks = scan(files(tmp_path, *[f"slow{place}.png" for place in range(80)]), 2)
    with pytest.raises(KeyboardInterrupt), closing(looks):
        next(looks)
        start = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - start < 6  # 80 slow files would take 6 s at the least
    assert children
    assert gone(children)


def flat(*colour: int, width: int = 8, height: int = 8) -> NDArray[np.uint8]:
    return np.full((height, width, 3), colour, dtype=np.uint8)


@pytest.mark.parametrize(
    ("pixels", "luma", "colourfulness", "grayscale"),
    [
        (flat(100, 100, 100), 100.0, 0.0, True),
        (np.hstack([flat(0, 0, 0), flat(255, 255, 255)]), 127.5, 0.0, True),
        (flat(255, 0, 0), 76.245, 85.53, False),
        (flat(0, 255, 0), 149.685, 85.53, False),
        (flat(0, 0, 255), 29.07, 76.5, False),
        (np.hstack([flat(255, 0, 0), flat(0, 0, 255)]), 52.6575, 272.619, False),
    ],
)
def test_measure(pixels: NDArray[np.uint8], luma: float, colourfulness: float, grayscale: bool) -> None:
    found = measure(pixels)
    assert found["mean_luma"] == pytest.approx(luma, abs=1e-3)
    assert found["colourfulness"] == pytest.approx(colourfulness, abs=1e-2)
    assert found["grayscale"] is grayscale
    assert {name: type(value) for name, value in found.items()} == {
        field.name: type(field.default) for field in fields(ImageInfo) if field.name in found
    }  # they go into JSON


@pytest.mark.parametrize("side", [257, 300, 450, 499])
def test_sharpness_does_not_depend_on_the_size_of_a_picture(side: int) -> None:
    picture = Image.fromarray(noise(512, 512, 5)).filter(ImageFilter.GaussianBlur(1.2))
    of_256, of_side = (
        measure(np.asarray(picture.resize((each, each), Image.Resampling.LANCZOS)))["sharpness"]
        for each in (256, side)
    )
    assert of_side == pytest.approx(of_256, rel=0.25)


def test_a_strip_and_a_smaller_copy_have_one_thumbnail() -> None:
    strip = np.tile(np.linspace(0, 255, 600).astype(np.uint8)[None, :, None], (12, 1, 3))
    smaller = np.asarray(Image.fromarray(strip).resize((540, 11), Image.Resampling.LANCZOS))
    one, other = (
        np.frombuffer(measure(each)["thumbnail"], np.uint8).astype(int) for each in (strip, smaller)
    )
    assert np.abs(one - other).max() <= 2


def test_strips_are_measured_in_parts() -> None:
    picture = noise(1600, 1200, 3)
    assert measure(picture)["mean_luma"] == pytest.approx((picture @ [0.299, 0.587, 0.114]).mean(), abs=0.01)
    assert measure(flat(9, 9, 9, width=5000, height=3))["mean_luma"] == pytest.approx(9)
    levels = np.repeat([10, 100, 255], [30, 50, 20]).astype(np.uint8)
    found = measure(np.broadcast_to(levels[:, None, None], (100, 8, 3)))
    assert (found["luma_low"], found["luma_high"]) == pytest.approx((10, 255))
    assert found["blown"] == pytest.approx(0.2)
    for shape in ((1, 2_000_000), (2_000_000, 1)):
        strip = np.tile(np.arange(250, dtype=np.uint8), 8_000).reshape(*shape, 1).repeat(3, axis=2)
        tracemalloc.start()
        luma = measure(strip)["mean_luma"]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 4 << 20
        assert luma == pytest.approx(124.5, abs=2)


@pytest.mark.parametrize(
    ("spread", "share", "grayscale"),
    [(6, 1.0, True), (7, 1.0, False), (60, 0.02, False), (60, 0.0001, False), (0, 1.0, True)],
)
def test_an_image_is_grayscale_when_no_pixel_has_a_colour(spread: int, share: float, grayscale: bool) -> None:
    pixels = flat(120, 120, 120, width=100, height=100)
    pixels.reshape(-1, 3)[: round(share * 10_000), 1] += spread
    assert measure(pixels)["grayscale"] is grayscale


def as_jpeg(pixels: NDArray[Any], **options: Any) -> NDArray[np.uint8]:
    data = encode(pixels.astype(np.uint8), "JPEG", **{"quality": 75, "subsampling": 2, **options})
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def photograph(*tint: float) -> NDArray[Any]:
    """Grey blobs with grain, 300 x 200, under a tinted light."""
    grey = np.asarray(Image.fromarray(noise(300, 200, 5)).convert("L"))
    return np.asarray(grey[..., None] * np.array(tint or (1.0, 1.0, 1.0)))


def is_grayscale(pixels: NDArray[Any], **options: Any) -> bool:
    """Whether it is, as a JPEG."""
    return bool(measure(as_jpeg(pixels, **options))["grayscale"])


def is_toned(pixels: NDArray[Any]) -> bool:
    """Whether it looks tinted, as a JPEG."""
    return bool(measure(as_jpeg(pixels))["tinted"])


def test_grayscale_photographs_are_found() -> None:
    """Of one channel, of three equal ones, of a JPEG that was one before, and with a tint of three levels."""
    grey = photograph()
    assert is_grayscale(grey[..., 0])
    assert is_grayscale(grey)
    assert is_grayscale(as_jpeg(grey, quality=90), quality=40)
    assert measure(np.clip(grey - [0, 0, 3], 0, 255).astype(np.uint8))["grayscale"] is True


TINTS = {"sepia": (1.0, 0.9, 0.72), "selenium": (0.96, 0.93, 1.0), "cyanotype": (0.8, 0.95, 1.0)}


@pytest.mark.parametrize("tint", TINTS.values(), ids=TINTS)
@pytest.mark.parametrize("quality", [95, 75, 50])
def test_a_tinted_print_is_tinted_and_not_grayscale(tint: tuple[float, float, float], quality: int) -> None:
    print_ = as_jpeg(photograph(*tint), quality=quality)
    found = measure(print_)
    assert (found["grayscale"], found["tinted"]) == (False, True)


def test_light_may_have_a_tint_of_its_own_and_a_spot_of_another_colour_makes_a_coloured_picture() -> None:
    """Toned twice: bluish shadows, warm lights. The spot is a fortieth of the picture. One colour all over is no tint."""
    share = photograph(1.0) / 255
    toned = 255 * share * ((1 - share) * np.array([0.85, 0.95, 1.0]) + share * np.array([1.0, 0.97, 0.88]))
    assert is_toned(toned)
    tinted = photograph(*TINTS["sepia"])
    tinted[80:120, 100:150] = (90, 100, 140)
    assert not is_toned(tinted)
    assert measure(flat(120, 130, 120, width=64, height=64))["grayscale"] is False
    assert not is_toned(photograph(1.0, 0.1, 0.1))


def test_a_thing_of_one_colour_on_white_has_two_tones_and_is_no_print() -> None:
    """Green shirts on white, as in the case grey_tint: colour is a curve over luma there, too."""
    scene = np.full((200, 300, 3), 250.0)
    scene[40:160, 80:220] = (40, 120, 50)
    scene += np.random.default_rng(0).normal(0, 2, scene.shape)
    found = measure(as_jpeg(np.clip(scene, 0, 255), quality=92))
    assert (found["grayscale"], found["tinted"]) == (False, False)


def test_a_small_coloured_thing_makes_a_coloured_picture() -> None:
    """As in the case grey_small_object: a stone of 0.3 % of a large picture, and one of a few pixels."""
    for radius in (18, 3):
        scene = np.full((600, 600, 3), 255.0)
        down, across = np.mgrid[:600, :600]
        scene[(down - 300) ** 2 + (across - 250) ** 2 < radius**2] = (190, 20, 50)
        assert not is_grayscale(scene)


@pytest.mark.parametrize("fur", [(250, 247, 238), (246, 240, 226), (252, 250, 242)])
@pytest.mark.parametrize("snow", [(243, 246, 250), (228, 235, 243), (205, 214, 226)])
def test_pale_dogs_in_snow_are_coloured(fur: tuple[int, int, int], snow: tuple[int, int, int]) -> None:
    """Snow with a breath of blue, fur with one of yellow, light and shade over both, and a dark nose."""
    scene = np.where(np.arange(300)[:, None] < 140, fur, snow) * (0.75 + 0.25 * photograph(1.0) / 255)
    scene[90:110, 60:80] = 30
    found = measure(as_jpeg(scene, quality=90))
    assert found["colourfulness"] < 20
    assert found["grayscale"] is False


@pytest.mark.parametrize("light", [1.0, 0.3, 0.1])
def test_a_picture_taken_in_the_dark_keeps_its_colours(light: float) -> None:
    """A tenth of the light leaves a tenth of the difference between the channels, which is less than noise adds to grey."""
    grey, coloured = photograph(), photograph(1.0, 0.9, 0.8)
    coloured[40:140, 60:200] = grey[40:140, 60:200] * np.array([0.7, 0.9, 1.0])
    assert not is_grayscale(light * coloured, quality=90)
    assert is_grayscale(light * grey, quality=90)


def test_stripes_have_no_detail_along_them() -> None:
    stripes = np.tile(np.array([0, 0, 9, 9], np.float32), (12, 5))
    for turned in (stripes, np.ascontiguousarray(stripes.T)):
        along, across = least_and_most_detail(turned)
        assert along == pytest.approx(0, abs=1e-6)
        assert across > 1
    assert least_and_most_detail(np.zeros((4, 9), np.float32)) == (0.0, 0.0)


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    """A blurred picture is less sharp at any size."""
    board = 10.0 * (np.indices((6, 8)).sum(axis=0) % 2).astype(np.float32)
    assert sharpness(board) == 1600.0  # 4 x 10 against 4 x 0 above and below: +-40
    assert sharpness(np.zeros((2, 9), np.float32)) == 0.0
    for scale in (1, 3):
        sharp = Image.fromarray(noise(300 * scale, 260 * scale, 2))
        blurred = sharp.filter(ImageFilter.GaussianBlur(4 * scale))
        assert measure(np.asarray(sharp))["sharpness"] > 5 * measure(np.asarray(blurred))["sharpness"]


def smeared(pixels: NDArray[np.uint8], across: int, down: int, length: int) -> NDArray[np.uint8]:
    """A picture averaged along a line of `length` steps."""
    steps = [np.roll(pixels, (down * step, across * step), axis=(0, 1)) for step in range(length)]
    return np.asarray(np.mean(steps, axis=0), np.uint8)


@pytest.mark.parametrize(("across", "down"), [(1, 0), (0, 1), (1, 1), (-1, 1), (2, 1)])
def test_motion_leaves_no_detail_along_its_way(across: int, down: int) -> None:
    picture = noise(340, 256, 3).astype(int)
    picture += np.random.default_rng(0).integers(-60, 61, (64, 85, 1)).repeat(4, 0).repeat(4, 1)
    sharp = np.clip(picture, 0, 255).astype(np.uint8)
    moved = measure(as_jpeg(smeared(sharp, across, down, 28), quality=90))
    assert moved["detail_along"] < 2 < 50 < measure(sharp)["detail_along"]
    assert moved["detail_along"] < 0.3 * moved["detail_across"]
    assert moved["sharpness"] > 20  # which is why it does not tell


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_thumbnail_is_upright(orientation: int) -> None:
    picture = coded(320, 208, 5)
    found = measure(store_as(picture, orientation), orientation)
    thumbnail = np.frombuffer(found["thumbnail"], np.uint8).reshape(THUMBNAIL, THUMBNAIL, 3).astype(int)
    assert np.abs(thumbnail - coded(THUMBNAIL, THUMBNAIL, 5)).max() <= 10  # red across, green down
