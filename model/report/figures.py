"""Pictures of a run: its curves, what the network saw, what it confused, and where it looked.

Before it: train, eval and explain have the numbers. After it: PNG files in the run folder, and `report` puts
them on one page. Every figure has its own canvas: nothing here touches matplotlib's global state.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
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
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from greyhound.cache.files import replacing, unwritable
from greyhound.model.run import RunError

Pixels = NDArray[np.uint8]

INK: Final = "#1f1e1c"
MUTED: Final = "#66625a"
RULE: Final = "#d8d4ca"
ACCENT: Final = "#1c5d7a"
BOARD: Final = "#191817"
"""The background of photographs: dark, which suits a light page and a dark one."""
CHALK: Final = "#f1eee8"
DUST: Final = "#b3ada2"
RIGHT: Final = "#8ecbb0"
WRONG: Final = "#ff9e7d"

COUNTS_UP_TO: Final = 30
"""A confusion matrix of up to this many classes shows its counts in the cells."""
DRAWN: Final = 120
"""The most classes that a confusion matrix shows: 1,000 would take gigabytes, and nobody could read it."""
_FONT: Final = "DejaVu Sans"
_PLAIN: Final[dict[str, Any]] = {"parse_math": False, "usetex": False, "family": _FONT}
"""Foreign text is drawn as it stands, in matplotlib's own font."""
_BLUES: Final = LinearSegmentedColormap.from_list("right", ["#ffffff", "#a9cfdf", ACCENT, "#0b2f40"])
_RUSTS: Final = LinearSegmentedColormap.from_list("wrong", ["#ffffff", "#f3b79a", "#c2512a", "#5e1d0a"])
_LINES: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a5c00", "#3d3d3d")
"""Colours that colour-blind eyes tell apart, after Okabe and Ito 2008; dark enough for white."""
_DASHES: Final = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))
OVERLAID: Final = len(_LINES)
"""The most curves in one picture."""
_GAP: Final = 0.045
"""Between two tiles, as a share of a tile."""
_TILE: Final = 1.45
"""Side of a tile in inches; at 130 dots an inch that is 188 pixels."""
_DOTS: Final = 130


def learning_rate(path: Path, epochs: Sequence[float], rates: Sequence[float]) -> None:
    """The rate over the epochs, on a linear axis and on a logarithmic one. Both sequences are `[n]`."""
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    for axes, scale in zip(figure.subplots(1, 2), ("linear", "logarithmic"), strict=True):
        _plot(axes, epochs, rates)
        if max(rates, default=0) > 0:  # a logarithm needs something positive to start from
            axes.set_yscale("log", nonpositive="mask") if scale == "logarithmic" else axes.set_ylim(bottom=0)
        axes.set_title(f"learning rate, {scale}", loc="left", fontsize=10, color=INK, family=_FONT)
    _save(figure, path)


def loss_over_rate(
    path: Path, rates: Sequence[float], losses: Sequence[float], means: Sequence[float], suggested: float
) -> None:
    """The range test: losses and their moving means over the rates, `[n]` each, and the suggestion."""
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(rates, losses, ".", color=DUST, markersize=4)
    _plot(axes, rates, means)
    axes.axvline(suggested, color=WRONG, linewidth=1.5, linestyle="--")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.1 * max(means))
    axes.set_xlabel("learning rate of a step", fontsize=9, color=MUTED, family=_FONT)
    title = f"training loss of each step, and smoothed; suggested: {suggested:g}"
    axes.set_title(title, loc="left", fontsize=10, color=INK, family=_FONT)
    _save(figure, path)


def curve(
    epochs: Sequence[float],
    values: Sequence[float],
    percents: bool = False,
    steps: Sequence[tuple[float, float]] = (),
) -> bytes:
    """One value over the epochs, as PNG; the curve breaks where a value is not finite.

    epochs, values: `[n]`. percents: values go up to 100. steps: places and values between, drawn thin.
    """
    figure = Figure(figsize=(3.1, 2.1), layout="constrained")
    axes = figure.add_subplot()
    if steps:
        axes.plot(*np.array(steps).T, color=ACCENT, alpha=0.45, linewidth=0.7)
    _plot(axes, epochs, values)
    _ticks(axes, percents)
    return _png(figure)


def curves(lines: Sequence[tuple[str, Sequence[tuple[float, float]]]], percents: bool = False) -> bytes:
    """Lines over the epochs, each a name and its points, as PNG. At most `OVERLAID` can be told apart.

    Each has a colour, a dash and a marker of its own: not all eyes tell all colours apart.
    """
    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for (_, points), colour, dash, marker in zip(lines, _LINES, _DASHES, "osD^vX", strict=False):
        few = marker if len(points) <= 30 else None
        axes.plot(*np.array(points).reshape(-1, 2).T, color=colour, ls=dash, marker=few, ms=4.5, lw=1.6)
    _frame(axes)
    _ticks(axes, percents)
    figure.legend(
        axes.lines, list(map(str, range(len(lines)))), loc="outside upper left", ncols=2, frameon=False
    )
    for text, (name, _) in zip(figure.legends[0].get_texts(), lines, strict=False):
        text.set(text=shorten(name, 32), color=INK, size=8.5, **_PLAIN)
    return _png(figure)


def reliability(bins: Sequence[Sequence[float]]) -> bytes:
    """Accuracy by confidence, as PNG: a bar, and a line at its mean confidence; below, the images of each.

    bins: images, the sum of their confidences, how many are right, `[B, 3]`; bin b ends at (b + 1) / B.
    """
    count, confidence, right = np.asarray(bins, dtype=np.float64).T
    figure = Figure(figsize=(3.6, 3.8), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(5, 2))
    places, options = (np.arange(len(count)) + 0.5) / len(count), {"width": 0.9 / len(count)}
    accuracy, mean = right / np.maximum(count, 1), confidence / np.maximum(count, 1)
    upper.bar(places, accuracy, color=ACCENT, **options)
    there, half = count > 0, 0.5 / len(count)
    upper.hlines(mean[there], places[there] - half, places[there] + half, color="#c2512a", linewidth=2)
    upper.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    lower.bar(places, count, color=MUTED, **options)
    for place, images in zip(places[there], count[there], strict=True):
        lower.annotate(f" {images:.0f}", (place, images), rotation=90, ha="center", fontsize=7, color=INK)
    lower.set_ylim(0, max(1.0, 1.9 * count.max(initial=0)))
    for axes, name in ((upper, "accuracy"), (lower, "images")):
        _frame(axes, "" if axes is upper else "confidence", name)
    return _png(figure)


def confusion(
    path: Path, matrix: NDArray[Any], class_names: Sequence[str], images: Sequence[int] | None = None
) -> None:
    """Counts `[K, K]`, one row for each true class, coloured by their share of the row.

    Right is blue, wrong is rust. Colour follows the square root of the share: a rare mistake is not white.
    images: `[K]`, the images of each true class, if more than the row's sum.
    """
    count = len(class_names)
    side = count * _cell(count)
    figure = Figure(figsize=(side, side))
    axes = figure.add_axes((0, 0, 1, 1))
    of = matrix.sum(axis=1) if images is None else np.asarray(images)
    shares = matrix / np.maximum(of[:, None], 1)
    colours = np.where(np.eye(count, dtype=bool)[..., None], _shade(_BLUES, shares), _shade(_RUSTS, shares))
    axes.pcolormesh(colours[::-1], edgecolors=RULE if count <= COUNTS_UP_TO else "#efece6", linewidth=0.3)
    _name_classes(axes, [shorten(name, 28) for name in class_names])
    if count <= COUNTS_UP_TO:
        _write_counts(axes, matrix, shares)
    _key(figure, side)
    _save(figure, path, bbox_inches="tight", pad_inches=0.15)


def saliency_sheet(
    path: Path, images: Pixels, maps: Mapping[str, Pixels], captions: Sequence[str], correct: Sequence[bool]
) -> None:
    """A row for each image: the image, and each method's map over it; caption and verdict below.

    images: RGB `[n, S, S, 3]`. maps: by the method's name, `[n, S, S]`. A caption may have several lines.
    """
    columns = 1 + len(maps)
    figure = Figure(figsize=(columns * _TILE + 0.3, len(images) * (_TILE + 0.55) + 0.3), facecolor=BOARD)
    places = figure.subplots(len(images), 1, squeeze=False).flat
    edge = 0.3 / figure.get_figheight()
    figure.subplots_adjust(left=0.02, right=0.98, top=1 - edge, bottom=0, hspace=0)
    for row, (axes, image) in enumerate(zip(places, images, strict=True)):
        tiles = [image, *(overlay(image, heats[row]) for heats in maps.values())]
        _explain(axes, np.stack(tiles), captions[row], correct[row])
    for column, name in enumerate(["image", *maps]):
        place = column * (1 + _GAP) / (columns * (1 + _GAP) - _GAP)
        _write(figure.axes[0], place, 1.14, name, CHALK)
    _save(figure, path)


def image_sheet(path: Path, images: Pixels, captions: Sequence[str]) -> None:
    """A table of RGB images `[rows, columns, S, S, 3]`, with a caption above each column."""
    rows, columns = images.shape[:2]
    figure = Figure(figsize=(columns * _TILE + 0.3, rows * _TILE + 0.55), facecolor=BOARD)
    width, height = figure.get_size_inches()
    axes = figure.add_axes((0.15 / width, 0.15 / height, 1 - 0.3 / width, 1 - 0.55 / height), facecolor=BOARD)
    _show_tiles(axes, images)
    for column, caption in enumerate(captions):
        place = column * (1 + _GAP) / (columns * (1 + _GAP) - _GAP)
        _write(axes, place, 1 + 0.24 / (rows * _TILE), shorten(caption, 22), CHALK)
    _save(figure, path)


def shorten(text: str, length: int) -> str:
    """One line of at most `length` characters; those that the font lacks become white squares."""
    line = " ".join(text[: 8 * length].split())
    line = "".join(letter if ord(letter) in _drawable() else "□" for letter in line)
    return line if len(line) <= length else f"{line[: length - 1].rstrip()}…"


def _save(figure: Figure, path: Path, **options: Any) -> None:
    """Write the figure as PNG, whole or not at all. Raises RunError where it cannot be written."""
    try:
        with replacing(path) as temporary:
            _print(figure, temporary, **options)
    except OSError as error:
        raise RunError(unwritable(path, error)) from None


def _print(figure: Figure, target: Path | io.BytesIO, dpi: int = _DOTS, **options: Any) -> None:
    """Write a PNG that depends on the figure alone."""
    canvas = FigureCanvasAgg(figure)
    canvas.print_figure(target, dpi=dpi, format="png", metadata={"Software": None}, **options)


def _png(figure: Figure) -> bytes:
    """The figure for a page, at twice a screen's dots an inch."""
    stream = io.BytesIO()
    _print(figure, stream, dpi=2 * 96)
    return stream.getvalue()


@cache
def _drawable() -> frozenset[int]:
    """The code points that the font has."""
    font = font_manager.get_font(font_manager.findfont(_FONT, fallback_to_default=True))
    return frozenset(font.get_charmap())


def _plot(axes: Axes, epochs: Sequence[float], values: Sequence[float]) -> None:
    """A curve over the epochs in its frame. Few values get dots."""
    axes.plot(epochs, values, color=ACCENT, linewidth=1.6, marker="o" if len(values) <= 30 else None, ms=3.5)
    _frame(axes)


def _frame(axes: Axes, across: str = "epochs done", up: str = "") -> None:
    """A light frame of two sides, on a light grid, and what the axes are."""
    axes.set_xlabel(across, fontsize=9, color=MUTED, family=_FONT)
    axes.set_ylabel(up, fontsize=9, color=MUTED, family=_FONT)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=MUTED, which="both", labelfontfamily=_FONT)
    axes.grid(color=RULE, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)


def _ticks(axes: Axes, percents: bool) -> None:
    """Few ticks; of percents none above 100, which would be no share."""
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=high - low >= 3))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if percents:
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
        axes.set_ylim(top=min(axes.get_ylim()[1], 101))


def _cell(count: int) -> float:
    """The side of a matrix's cell in inches: large for few classes, and never too small for a name."""
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
    options: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": size, "family": _FONT}
    for row, column in np.argwhere(matrix > 0):
        colour = "white" if shares[row, column] > 0.3 else INK
        across, up = column + 0.5, len(matrix) - row - 0.5
        axes.text(across, up, f"{matrix[row, column]:.0f}", color=colour, **options)


def _shade(scale: LinearSegmentedColormap, shares: NDArray[Any]) -> NDArray[np.float64]:
    """Colours `[..., 4]` of shares of a row, 0 to 1."""
    return np.asarray(scale(np.sqrt(shares)), dtype=np.float64)


def _key(figure: Figure, side: float) -> None:
    """What the colours mean: two bars, 2 inches long, above the matrix at its right."""
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


def _explain(axes: Axes, tiles: Pixels, caption: str, right: bool) -> None:
    """One image's tiles, its caption, and a verdict in words, mark, colour and frame."""
    axes.set_anchor("N")
    _show_tiles(axes, tiles[None])
    colour, verdict = (RIGHT, "✓ right") if right else (WRONG, "✗ wrong")
    _write(axes, 1, -0.06, verdict, colour, ha="right", weight="bold")
    for line, text in enumerate(caption.splitlines()[:4]):
        _write(axes, 0, -0.06 - 0.135 * line, shorten(text, 70), DUST if line else CHALK)
    if not right:
        frame = Rectangle((0, 0), 1, 1, fill=False, edgecolor=WRONG, linestyle=(0, (4, 3)), linewidth=1.6)
        frame.set(transform=axes.transAxes, clip_on=False)
        axes.add_patch(frame)


def _write(axes: Axes, across: float, up: float, text: str, colour: str, **options: Any) -> None:
    options |= {"transform": axes.transAxes, "va": "top", "color": colour, "fontsize": 10}
    axes.text(across, up, text, **options, **_PLAIN)


def overlay(image: Pixels, heat: Pixels) -> Pixels:
    """The map `[S, S]` over its image `[S, S, 3]`: dim greys, and light where the map is high."""
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
    """Images `[rows, columns, S, S, 3]` as one picture `[height, width, 3]`, with `gap` pixels between."""
    rows, columns, size = images.shape[:3]
    board = np.array([int(BOARD[place : place + 2], 16) for place in (1, 3, 5)], dtype=np.uint8)
    step = size + gap
    picture = np.full((rows * step, columns * step, 3), board)
    for row, column in np.ndindex(rows, columns):
        picture[row * step : row * step + size, column * step : column * step + size] = images[row, column]
    return picture[: rows * step - gap, : columns * step - gap]
