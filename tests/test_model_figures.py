from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from runs import Patch

from greyhound.model.report import figures
from greyhound.model.run import RunError

ACCENT = (0x1C, 0x5D, 0x7A)
BOARD = (0x19, 0x18, 0x17)
FOREIGN = ["plain", "under_score_$x_1$ and $", "<b>&amp;</b>", "two\nlines\tand\0nothing", "emoji 🐕 中文"]
FOREIGN += ["\udcff lone surrogate", r"\frac{1}{2} \$", r"$\nonsense{$", "w" * 200, ""]


Pixels = NDArray[np.uint8]
Draw = Callable[..., Pixels]


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    """Calls a function that draws into a file; its RGB levels, `[height, width, 3]`."""

    def drawn(work: Callable[..., None], *values: Any) -> Pixels:
        work(tmp_path / "drawn.png", *values)
        with Image.open(tmp_path / "drawn.png") as image:
            assert image.format == "PNG"
            return np.asarray(image.convert("RGB"))

    return drawn


def has(picture: Pixels, level: tuple[int, int, int]) -> bool:
    return bool((np.abs(picture.astype(int) - level).max(axis=-1) <= 2).any())


def photographs(count: int, side: int = 24) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("rates", [[0.1, 0.05, 1e-10], [0.1], [0.0, 0.0], []], ids=len)
def test_learning_rate_is_drawn_side_by_side_for_any_number_of_epochs(draw: Draw, rates: list[float]) -> None:
    height, width, _ = draw(figures.learning_rate, range(len(rates)), rates).shape
    assert width > 2 * height


def test_learning_rate_has_a_curve_in_either_half(draw: Draw) -> None:
    picture = draw(figures.learning_rate, range(100), np.geomspace(0.1, 1e-10, 100).tolist())
    middle = picture.shape[1] // 2
    assert has(picture[:, :middle], ACCENT) and has(picture[:, middle:], ACCENT)


def curve(values: Sequence[float], percents: bool = False) -> Pixels:
    with Image.open(io.BytesIO(figures.curve(range(len(values)), values, percents))) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    "values", [[0.0] * 2, [1e-300, 1e300], [3.0, 3.0], [100.0, math.nan], [5e-324, 0], [1, 1 + 1e-15]]
)
def test_a_curve_takes_any_values(values: list[float]) -> None:
    assert has(curve(values), ACCENT)


def test_a_curve_breaks_where_a_value_is_missing() -> None:
    """Seen in the middle, where only a line could be: with 40 values there are no dots."""
    whole, broken = np.ones(40), np.ones(40)
    broken[15:26] = math.nan
    for values, line in ((whole, True), (broken, False)):
        picture = curve(values.tolist(), percents=True)
        middle = picture.shape[1] * 55 // 100
        assert has(picture[:, middle - 9 : middle + 9], ACCENT) is line


@pytest.mark.parametrize("count", [1, 2, 12, 25, 31, 120])
def test_confusion_is_of_sane_size_for_any_number_of_classes(draw: Draw, tmp_path: Path, count: int) -> None:
    matrix = np.random.default_rng(0).poisson(0.05, (count, count)) + np.diag(np.full(count, 20))
    picture = draw(figures.confusion, matrix, [f"class {index}" for index in range(count)])
    assert max(picture.shape) < 2200
    assert (tmp_path / "drawn.png").stat().st_size < 600_000


@pytest.mark.parametrize(
    ("matrix", "totals", "blue", "rust"),
    [
        (np.diag([5, 5]), None, True, False),
        (np.diag([5, 5])[::-1], None, False, True),
        # Of ten images one was taken for its class and nine for some that are not drawn: no full blue.
        (np.diag([1, 1]), [10, 10], False, False),
        (np.diag([3, 0]), None, True, False),  # a class without images
    ],
)
def test_confusion_paints_right_blue_and_wrong_rust(
    draw: Draw, matrix: NDArray[np.int64], totals: list[int] | None, blue: bool, rust: bool
) -> None:
    picture = draw(figures.confusion, matrix, ["a", "b"], *([totals] if totals else []))
    below_the_key = picture[100:]
    assert (has(below_the_key, (0x0B, 0x2F, 0x40)), has(below_the_key, (0x5E, 0x1D, 0x0A))) == (blue, rust)


def test_foreign_names_are_drawn_without_warning(draw: Draw) -> None:
    count, images = len(FOREIGN), photographs(len(FOREIGN))
    assert draw(figures.confusion, np.eye(count), FOREIGN).std() > 10
    assert (
        draw(figures.saliency_sheet, images, {"gradient": images[..., 0]}, FOREIGN, [False] * count).std()
        > 10
    )
    assert draw(figures.image_sheet, images[None], FOREIGN).std() > 10


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b$c$", "a_b$c$"),
        ("two\nway", "two way"),
        ("🐕!", "□!"),
        ("12345678", "12345678"),
        ("123456789", "1234567…"),
        ("123456 89", "123456…"),
    ],
)
def test_shorten_gives_one_short_line_that_the_font_has(text: str, expected: str) -> None:
    assert figures.shorten(text, 8) == expected


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("methods", [2, 3])
def test_saliency_sheet_has_a_row_for_each_image_and_a_column_for_each_method(
    draw: Draw, count: int, methods: int
) -> None:
    images, captions = photographs(count), ["true: a\npredicted: b, loss 1.234"] * count
    maps = {f"method {number}": images[..., number] for number in range(methods)}
    height, width, _ = draw(figures.saliency_sheet, images, maps, captions, [True] * count).shape
    assert round(width / 200) == 1 + methods
    assert round(height / 265) == count


def test_saliency_sheet_frames_what_was_wrong(draw: Draw) -> None:
    images = np.zeros((1, 24, 24, 3), np.uint8)
    for correct in (True, False):
        picture = draw(figures.saliency_sheet, images, {"gradient": images[..., 0]}, ["a"], [correct])
        assert has(picture[:60], (0xFF, 0x9E, 0x7D)) is not correct, "the upper edge"


def test_overlay_is_grey_where_the_map_is_dark_and_glows_where_it_is_bright() -> None:
    image = np.full((1, 2, 3), (200, 100, 0), np.uint8)
    dark, bright = figures.overlay(image, np.array([[0, 255]], np.uint8))[0]
    assert dark.tolist() == [55, 55, 55]
    assert bright.tolist() == [252, 255, 164]


def test_tile_puts_every_image_in_its_place_and_board_between() -> None:
    images = np.arange(6, dtype=np.uint8).reshape(2, 3, 1, 1, 1) * np.ones((1, 1, 4, 4, 3), np.uint8)
    picture = figures.tile(images, 2)
    assert picture.shape == (10, 16, 3)
    assert picture[1::6, 1::6, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (picture[4:6] == BOARD).all() and (picture[:, 4:6] == BOARD).all()


def test_image_sheet_shows_its_images(draw: Draw) -> None:
    images = np.zeros((2, 3, 24, 24, 3), np.uint8)
    images[1, 2] = (250, 10, 20)
    picture = draw(figures.image_sheet, images, ["evaluation", "epoch 0", "epoch 1"])
    height, width, _ = picture.shape
    assert has(picture[height // 2 :, 2 * width // 3 :], (250, 10, 20))
    assert not has(picture[: height // 2], (250, 10, 20))


def test_a_figure_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: Patch) -> None:
    path = tmp_path / "lr.png"
    figures.learning_rate(path, [0, 1], [0.1, 0.2])
    before = path.read_bytes()

    def fail(self: object, temporary: Path, **options: object) -> None:
        temporary.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("greyhound.model.report.figures.FigureCanvasAgg.print_figure", fail)
    with pytest.raises(RunError, match="disk full"):
        figures.learning_rate(path, [0, 1], [0.3, 0.4])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        figures.confusion(tmp_path / name, np.eye(3), ["a", "b", "c"])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
