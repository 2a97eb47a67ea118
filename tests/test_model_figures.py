from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from greyhound.model.report import figures
from greyhound.model.run import RunError

ACCENT = (0x1C, 0x5D, 0x7A)
BOARD = (0x19, 0x18, 0x17)
FOREIGN = ["plain", "under_score_$x_1$ and $", "<b>&amp;</b>", "two\nlines\tand\0nothing", "emoji 🐕 中文"]
FOREIGN += ["\udcff lone surrogate", r"\frac{1}{2} \$", r"$\nonsense{$", "w" * 200, ""]


def pixels(path: Path) -> NDArray[np.uint8]:
    """The picture's RGB levels, `[height, width, 3]`."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def has(picture: NDArray[np.uint8], level: tuple[int, int, int]) -> bool:
    return bool((np.abs(picture.astype(int) - level).max(axis=-1) <= 2).any())


def photographs(count: int, side: int = 24) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "rates", [[0.1, 0.05, 1e-10], [0.1], [0.0, 0.0], []], ids=["usual", "one", "zero", "none"]
)
def test_learning_rate_is_drawn_side_by_side_for_any_number_of_epochs(
    tmp_path: Path, rates: list[float]
) -> None:
    figures.learning_rate(tmp_path / "lr.png", range(len(rates)), rates)
    height, width, _ = pixels(tmp_path / "lr.png").shape
    assert width > 2 * height


def test_learning_rate_has_a_curve_in_either_half(tmp_path: Path) -> None:
    figures.learning_rate(tmp_path / "lr.png", range(100), np.geomspace(0.1, 1e-10, 100).tolist())
    picture = pixels(tmp_path / "lr.png")
    middle = picture.shape[1] // 2
    for half in (picture[:, :middle], picture[:, middle:]):
        assert has(half, ACCENT)


def drawn(epochs: Sequence[int], values: Sequence[float], percents: bool = False) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(figures.curve(epochs, values, percents))) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    "values", [[0.0] * 2, [1e-300, 1e300], [3.0, 3.0], [100.0, math.nan], [5e-324, 0], [1, 1 + 1e-15]]
)
def test_a_curve_takes_any_values(values: list[float]) -> None:
    assert has(drawn(range(len(values)), values), ACCENT)


def test_a_curve_breaks_where_a_value_is_missing() -> None:
    """Seen in the middle, where only a line could be: with 40 values there are no dots."""
    whole, broken = np.ones(40), np.ones(40)
    broken[15:26] = math.nan
    for values, line in ((whole, True), (broken, False)):
        picture = drawn(range(40), values.tolist(), percents=True)
        middle = picture.shape[1] * 55 // 100
        assert has(picture[:, middle - 9 : middle + 9], ACCENT) is line


@pytest.mark.parametrize("count", [1, 2, 12, 25, 31, 120])
def test_confusion_is_square_and_of_sane_size_for_any_number_of_classes(tmp_path: Path, count: int) -> None:
    matrix = np.random.default_rng(0).poisson(0.05, (count, count)) + np.diag(np.full(count, 20))
    figures.confusion(tmp_path / "confusion.png", matrix, [f"class {index}" for index in range(count)])
    height, width, _ = pixels(tmp_path / "confusion.png").shape
    assert max(height, width) < 2200
    assert (tmp_path / "confusion.png").stat().st_size < 600_000


def test_confusion_paints_right_blue_and_wrong_rust(tmp_path: Path) -> None:
    figures.confusion(tmp_path / "right.png", np.diag([5, 5]), ["a", "b"])
    figures.confusion(tmp_path / "wrong.png", np.diag([5, 5])[::-1], ["a", "b"])
    blue, rust = (0x0B, 0x2F, 0x40), (0x5E, 0x1D, 0x0A)
    below_the_key = [pixels(tmp_path / name)[100:] for name in ("right.png", "wrong.png")]
    assert [has(picture, blue) for picture in below_the_key] == [True, False]
    assert [has(picture, rust) for picture in below_the_key] == [False, True]


def test_confusion_of_some_classes_is_coloured_by_the_images_of_all(tmp_path: Path) -> None:
    """Of ten images one was taken for its class and nine for some that are not drawn: no full blue."""
    figures.confusion(tmp_path / "c.png", np.diag([1, 1]), ["a", "b"], [10, 10])
    assert not has(pixels(tmp_path / "c.png")[100:], (0x0B, 0x2F, 0x40))


def test_confusion_survives_a_class_without_images(tmp_path: Path) -> None:
    figures.confusion(tmp_path / "confusion.png", np.array([[3, 0], [0, 0]]), ["a", "b"])
    assert pixels(tmp_path / "confusion.png").size


def test_foreign_names_are_drawn_without_warning(tmp_path: Path) -> None:
    count = len(FOREIGN)
    images = photographs(count)
    figures.confusion(tmp_path / "confusion.png", np.eye(count), FOREIGN)
    figures.saliency_sheet(tmp_path / "saliency.png", images, images[..., 0], FOREIGN, [False] * count)
    figures.image_sheet(tmp_path / "augmented.png", images[None], FOREIGN)
    for name in ("confusion.png", "saliency.png", "augmented.png"):
        assert pixels(tmp_path / name).std() > 10, name


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
def test_saliency_sheet_grows_by_rows_of_two(tmp_path: Path, count: int) -> None:
    images = photographs(count)
    captions = ["true: a\npredicted: b\nloss: 1.234"] * count
    figures.saliency_sheet(tmp_path / "saliency.png", images, images[..., 0], captions, [True] * count)
    height, width, _ = pixels(tmp_path / "saliency.png").shape
    assert (width > 1000) == (count > 1)
    assert round(height / 320) == -(-count // 2)


def test_saliency_sheet_frames_what_was_wrong(tmp_path: Path) -> None:
    images = np.zeros((1, 24, 24, 3), np.uint8)
    wrong = (0xFF, 0x9E, 0x7D)
    for correct in (True, False):
        figures.saliency_sheet(tmp_path / "sheet.png", images, images[..., 0], ["a"], [correct])
        upper_edge = pixels(tmp_path / "sheet.png")[:40]
        assert has(upper_edge, wrong) is not correct


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


def test_image_sheet_shows_its_images(tmp_path: Path) -> None:
    images = np.zeros((2, 3, 24, 24, 3), np.uint8)
    images[1, 2] = (250, 10, 20)
    figures.image_sheet(tmp_path / "augmented.png", images, ["evaluation", "epoch 0", "epoch 1"])
    picture = pixels(tmp_path / "augmented.png")
    height, width, _ = picture.shape
    assert has(picture[height // 2 :, 2 * width // 3 :], (250, 10, 20))
    assert not has(picture[: height // 2], (250, 10, 20))


def test_a_figure_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
