"""Pictures of a run: the learning rate, what the network saw, what it confused, and where it looked.

Before it: train, eval and explain, which have the numbers. After it: PNG files in the run folder, which `report` puts
on one page. Every figure has a canvas of its own, so that nothing here touches matplotlib's global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from greyhound.model.atomic import replacing
from greyhound.model.run import RunError

Pixels = NDArray[np.uint8]

INK: Final = "#1f1e1c"
MUTED: Final = "#66625a"
RULE: Final = "#d8d4ca"
ACCENT: Final = "#1c5d7a"
BOARD: Final = "#191817"
"""What photographs lie on: dark, so that a sheet of them suits a light page and a dark one."""
CHALK: Final = "#f1eee8"
DUST: Final = "#b3ada2"
RIGHT: Final = "#8ecbb0"
WRONG: Final = "#ff9e7d"

COUNTS_UP_TO: Final = 30
"""Classes up to which a confusion matrix has its counts written into the cells."""
DRAWN: Final = 120
"""Classes of a confusion matrix that is drawn: a picture of 1,000 takes gigabytes, and tells nobody anything."""
_FONT: Final = "DejaVu Sans"
_PLAIN: Final[dict[str, Any]] = {"parse_math": False, "usetex": False, "family": _FONT}
"""How foreign text is drawn: as it stands, in the font that comes with matplotlib."""
_BLUES: Final = LinearSegmentedColormap.from_list("right", ["#ffffff", "#a9cfdf", ACCENT, "#0b2f40"])
_RUSTS: Final = LinearSegmentedColormap.from_list("wrong", ["#ffffff", "#f3b79a", "#c2512a", "#5e1d0a"])
_GAP: Final = 0.045
"""Between two tiles, in tiles."""
_TILE: Final = 1.45
"""Side of a tile in inches; at 130 dots an inch that is 188 pixels."""
_DOTS: Final = 130


def learning_rate(path: Path, epochs: Sequence[float], rates: Sequence[float]) -> None:
    """The rate over the epochs, drawn twice: on a linear axis and on a logarithmic one. Both sequences are `[n]`."""
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    for axes, scale in zip(figure.subplots(1, 2), ("linear", "log"), strict=True):
        axes.plot(epochs, rates, color=ACCENT, linewidth=1.6, marker="o" if len(rates) == 1 else None)
        if max(rates, default=0) > 0:  # a logarithm needs something positive to start from
            axes.set_yscale(scale, nonpositive="mask") if scale == "log" else axes.set_ylim(bottom=0)
        _finish(axes, f"learning rate, {'linear' if scale == 'linear' else 'logarithmic'}", "epoch")
    _save(figure, path)


def confusion(
    path: Path, matrix: NDArray[Any], class_names: Sequence[str], images: NDArray[Any] | None = None
) -> None:
    """Counts `[K, K]`, a row a true class, coloured by their share of the row; up to 30 classes they are written in.

    What was right is blue and what was wrong is rust; colour follows the square root of the share, or a rare mistake
    would be white. images: `[K]`, of each true class, where some were taken for classes that are not among the K. Raises
    ValueError if the names are not K.
    """
    count = len(class_names)
    if matrix.shape != (count, count):
        raise ValueError(
            f"the confusion matrix is {matrix.shape}; expected {(count, count)}, as classes named"
        )
    side = count * _cell(count)
    figure = Figure(figsize=(side, side))
    axes = figure.add_axes((0, 0, 1, 1))
    images = matrix.sum(axis=1) if images is None else images
    shares = matrix / np.maximum(images[:, None], 1)
    colours = np.where(np.eye(count, dtype=bool)[..., None], _shade(_BLUES, shares), _shade(_RUSTS, shares))
    axes.pcolormesh(colours[::-1], edgecolors=RULE if count <= COUNTS_UP_TO else "#efece6", linewidth=0.3)
    _name_classes(axes, [shorten(name, 28) for name in class_names])
    if count <= COUNTS_UP_TO:
        _write_counts(axes, matrix, shares)
    _key(figure, side)
    _save(figure, path, bbox_inches="tight", pad_inches=0.15)


def saliency_sheet(
    path: Path, images: Pixels, maps: Pixels, captions: Sequence[str], correct: Sequence[bool]
) -> None:
    """Three tiles an image: the image, its map, the map over the image; caption and verdict below them.

    `images` are RGB `[n, S, S, 3]`, `maps` `[n, S, S]`; a caption may have several lines. Raises ValueError if their
    numbers differ or are 0.
    """
    _same_number(images=len(images), maps=len(maps), captions=len(captions), verdicts=len(correct))
    columns = min(2, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(columns * (3 * _TILE + 0.35), rows * (_TILE + 0.95) + 0.15), facecolor=BOARD)
    places = figure.subplots(rows, columns, squeeze=False).flat
    edge = 0.15 / figure.get_figheight()
    figure.subplots_adjust(left=0.02, right=0.98, top=1 - edge, bottom=0, wspace=0.05, hspace=0)
    for axes, image, heat, caption, right in zip(places, images, maps, captions, correct, strict=False):
        _explain(axes, image, heat, caption, right)
    for axes in figure.axes[len(images) :]:
        axes.set_axis_off()
    _save(figure, path)


def image_sheet(path: Path, images: Pixels, captions: Sequence[str]) -> None:
    """A table of RGB images `[rows, columns, S, S, 3]`, a caption above each column.

    Raises ValueError if the captions are not as many as the columns, or if there is no image.
    """
    rows, columns = images.shape[:2]
    _same_number(columns=columns, captions=len(captions))
    _same_number(rows=rows)
    figure = Figure(figsize=(columns * _TILE + 0.3, rows * _TILE + 0.55), facecolor=BOARD)
    width, height = figure.get_size_inches()
    axes = figure.add_axes((0.15 / width, 0.15 / height, 1 - 0.3 / width, 1 - 0.55 / height), facecolor=BOARD)
    _show_tiles(axes, images)
    for column, caption in enumerate(captions):
        place = column * (1 + _GAP) / (columns * (1 + _GAP) - _GAP)
        _write(axes, place, 1 + 0.24 / (rows * _TILE), shorten(caption, 22), CHALK)
    _save(figure, path)


def shorten(text: str, length: int) -> str:
    """One line of at most `length` characters that the font can draw; what it cannot becomes a white square."""
    line = " ".join(text[: 8 * length].split())
    line = "".join(letter if ord(letter) in _drawable() else "□" for letter in line)
    return line if len(line) <= length else f"{line[: length - 1].rstrip()}…"


def _save(figure: Figure, path: Path, **options: Any) -> None:
    """Write the figure as PNG, whole or not at all. Raises RunError where it cannot be written."""
    canvas = FigureCanvasAgg(figure)
    try:
        with replacing(path) as temporary:
            canvas.print_figure(temporary, dpi=_DOTS, format="png", metadata={"Software": None}, **options)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror or error}); make room there") from None


@cache
def _drawable() -> frozenset[int]:
    """The code points that the font has."""
    font = font_manager.get_font(font_manager.findfont(_FONT, fallback_to_default=True))
    return frozenset(font.get_charmap())


def _same_number(**numbers: int) -> None:
    if len(set(numbers.values())) != 1 or 0 in numbers.values():
        found = ", ".join(f"{number} {name}" for name, number in numbers.items())
        raise ValueError(f"a sheet of {found}; expected as many of each, and at least one")


def _finish(axes: Axes, title: str, below: str) -> None:
    """A title at the left, a light frame of two sides, a light grid."""
    axes.set_title(title, loc="left", fontsize=10, color=INK, family=_FONT)
    axes.set_xlabel(below, fontsize=9, color=MUTED, family=_FONT)
    axes.tick_params(labelsize=8, colors=MUTED, which="both", labelfontfamily=_FONT)
    axes.grid(color=RULE, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)


def _cell(count: int) -> float:
    """Side of a matrix's cell in inches: roomy while few, and never too small for a name of 6 points."""
    return float(np.clip(8.5 / count, 0.1, 0.55))


def _name_classes(axes: Axes, names: list[str]) -> None:
    """Names along both sides, the first class at the top left."""
    size = float(np.clip(_cell(len(names)) * 72 * 0.72, 5.2, 9))
    places = np.arange(len(names)) + 0.5
    axes.set_xticks(places, names, rotation=90, fontsize=size, color=INK, **_PLAIN)
    axes.set_yticks(places[::-1], names, fontsize=size, color=INK, **_PLAIN)
    axes.tick_params(length=0, pad=4)
    axes.set_xlabel("predicted", fontsize=10, color=MUTED, family=_FONT, labelpad=8)
    axes.set_ylabel("true", fontsize=10, color=MUTED, family=_FONT, labelpad=8)
    axes.set_aspect("equal")
    for side in axes.spines.values():
        side.set_color(RULE)


def _write_counts(axes: Axes, matrix: NDArray[Any], shares: NDArray[Any]) -> None:
    """The counts that are not 0, dark on light cells and light on dark ones."""
    size = float(np.clip(_cell(len(matrix)) * 72 * 0.4, 6, 10))
    for row, column in np.argwhere(matrix > 0):
        colour = "white" if shares[row, column] > 0.3 else INK
        place = (column + 0.5, len(matrix) - row - 0.5)
        axes.text(
            *place,
            f"{matrix[row, column]:.0f}",
            ha="center",
            va="center_baseline",
            fontsize=size,
            color=colour,
            family=_FONT,
        )


def _shade(scale: LinearSegmentedColormap, shares: NDArray[Any]) -> NDArray[np.float64]:
    """Colours `[..., 4]` of shares of a row, 0 to 1."""
    return np.asarray(scale(np.sqrt(shares)), dtype=np.float64)


def _key(figure: Figure, side: float) -> None:
    """What the colours mean: two bars of 2 inches above the matrix, at its right."""
    axes = figure.add_axes((1 - 2 / side, 1 + 0.32 / side, 2 / side, 0.26 / side))
    shares = np.linspace(0, 1, 256)
    bars = np.stack([_shade(_BLUES, shares), _shade(_RUSTS, shares)])
    axes.imshow(bars, aspect="auto", extent=(0, 1, 0, 2), interpolation="nearest")
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    axes.set_yticks([1.5, 0.5], ["right", "wrong"])
    axes.tick_params(labelsize=7, colors=MUTED, length=0, pad=3, labelfontfamily=_FONT)
    axes.set_title("share of the true class", fontsize=8, color=MUTED, loc="left", family=_FONT, pad=4)
    for edge in axes.spines.values():
        edge.set_color(RULE)


def _explain(axes: Axes, image: Pixels, heat: Pixels, caption: str, right: bool) -> None:
    """One image's three tiles, its caption, and a verdict in words, mark, colour and frame."""
    coloured = np.rint(_glow(heat)).astype(np.uint8)
    axes.set_anchor("N")
    _show_tiles(axes, np.stack([image, coloured, overlay(image, heat)])[None])
    colour, verdict = (RIGHT, "✓ right") if right else (WRONG, "✗ wrong")
    _write(axes, 1, -0.06, verdict, colour, ha="right", weight="bold")
    for line, text in enumerate(caption.splitlines()[:4]):
        _write(axes, 0, -0.06 - 0.135 * line, shorten(text, 42), DUST if line else CHALK)
    if not right:
        axes.add_patch(
            Rectangle(
                (0, 0),
                1,
                1,
                transform=axes.transAxes,
                fill=False,
                edgecolor=WRONG,
                linestyle=(0, (4, 3)),
                linewidth=1.6,
                clip_on=False,
            )
        )


def _write(axes: Axes, across: float, up: float, text: str, colour: str, **options: Any) -> None:
    axes.text(
        across, up, text, transform=axes.transAxes, va="top", color=colour, fontsize=10, **options, **_PLAIN
    )


def overlay(image: Pixels, heat: Pixels) -> Pixels:
    """The map over its image: the image in dim greys, `[S, S, 3]`, and light where the map `[S, S]` is high."""
    grey = image.mean(axis=-1, keepdims=True) * 0.55
    strength = (heat[..., None] / 255) ** 0.65
    colour = _glow(np.rint(96 + heat * (159 / 255)).astype(np.uint8))
    mixed: Pixels = np.rint(grey * (1 - strength) + colour * strength).astype(np.uint8)
    return mixed


def _glow(heat: Pixels) -> NDArray[np.float64]:
    """Levels `[..., 3]` from black through violet and orange to pale yellow."""
    return 255 * np.asarray(colormaps["inferno"](heat), dtype=np.float64)[..., :3]


def _show_tiles(axes: Axes, images: Pixels) -> None:
    """Draw images `[rows, columns, S, S, 3]` as one picture with gaps in the board's colour."""
    axes.imshow(tile(images, round(_GAP * images.shape[2])), interpolation="antialiased")
    axes.set_axis_off()


def tile(images: Pixels, gap: int) -> Pixels:
    """One picture `[height, width, 3]` of images `[rows, columns, S, S, 3]`, `gap` pixels of board between them."""
    rows, columns, size = images.shape[:3]
    board = np.array([int(BOARD[place : place + 2], 16) for place in (1, 3, 5)], dtype=np.uint8)
    step = size + gap
    picture = np.full((rows * step, columns * step, 3), board)
    for row, column in np.ndindex(rows, columns):
        picture[row * step : row * step + size, column * step : column * step + size] = images[row, column]
    return picture[: rows * step - gap, : columns * step - gap]
