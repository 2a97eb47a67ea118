"""One page about a run: what was trained, on what, how it went, how good it is, and where it looks.

Before it: train, eval and explain, which fill the run folder. After it: a reader with a browser. The page is one file
that needs nothing but itself; it shows what the run folder has and says which command makes what it lacks.
"""

from __future__ import annotations

import base64
import json
import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal, TypeGuard

from jinja2 import ChainableUndefined, Environment, FileSystemLoader

from greyhound.model.atomic import replacing
from greyhound.model.metrics import confused
from greyhound.model.report.figures import DRAWN
from greyhound.model.run import RunError, read_text
from greyhound.model.shapes import (
    DAMAGED,
    EVALUATION,
    HEAD,
    INTERPOLATION,
    METRICS,
    PACK,
    RECIPE,
    SHAPES,
    SWA,
    TIMES,
    VERSIONS,
    first_fault,
)

REPORT: Final = "report.html"
PICTURES: Final = ("lr.png", "augmented.png", "confusion.png", "saliency.png")
THUMBNAILS: Final = 12
"""Pictures shown for each reason to exclude an image; the rest are in pack.json."""
CONFUSIONS: Final = 10
"""Mistakes listed, the commonest first."""


class ReportError(RunError):
    """A file of the run folder is missing or not what was expected; the message is one line for the user."""


@dataclass(frozen=True)
class Group:
    """A heading and what stands under it: pairs of name and value, or a table."""

    title: str
    pairs: tuple[tuple[str, str], ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Chart:
    """A curve over the epochs, ready to be drawn into a frame of WIDTH x HEIGHT with the origin at the top left."""

    name: str
    note: str
    last: str
    best: str
    path: str
    """The `d` of an SVG path; it is broken where a value is missing."""
    dots: tuple[tuple[float, float, str], ...]
    """Across, down and a description of every point."""
    across: tuple[tuple[float, str], ...]
    """Ticks of the horizontal axis; likewise `up`."""
    up: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Scale:
    """A stretch of an axis: values `low` to `high` lie at `start` to `end`; and where to put marks."""

    low: float
    high: float
    start: float
    end: float
    marks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """Where a value lies, to a tenth of a pixel."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def labelled(self, unit: str = "") -> tuple[tuple[float, str], ...]:
        """Where each mark lies, and its text; all with as many digits as the longest needs."""
        texts = [f"{mark:g}" for mark in self.marks]
        digits = max((len(text.partition(".")[2]) for text in texts), default=0)
        if not any("e" in text for text in texts):
            texts = [f"{mark:.{digits}f}" for mark in self.marks]
        return tuple((self(mark), text + unit) for mark, text in zip(self.marks, texts, strict=True))


WIDTH: Final = 360
HEIGHT: Final = 216
LEFT: Final = 46
RIGHT: Final = WIDTH - 12
TOP: Final = 10
BOTTOM: Final = HEIGHT - 40


def build(run: Path) -> Path:
    """Write `report.html` into the run folder, whole or not at all, and return its path. Raises ReportError."""
    page = _environment().get_template("report.html.jinja").render(gather(run))
    try:
        with replacing(run / REPORT) as temporary:
            temporary.write_bytes(page.encode("utf-8", "replace"))  # the name of a file may be no valid text
    except OSError as error:
        raise ReportError(f"{run / REPORT} cannot be written ({error.strerror or error})") from None
    return run / REPORT


def gather(run: Path) -> dict[str, Any]:
    """Everything that the page shows, by the names that the template uses. Raises ReportError."""
    recipe, pack, evaluation = read(run, RECIPE), read(run, PACK), read(run, EVALUATION)
    if recipe is None:
        raise ReportError(f"{run} has no {RECIPE}; expected a run folder, as made by: {command(run, RECIPE)}")
    metrics = timed(read(run, METRICS) or [], read(run, TIMES) or [])
    return {
        "run": run.resolve().name,
        "recipe": recipe,
        "groups": list(group("in short", {key: recipe[key] for key in recipe if key != "note"})),
        "versions": read(run, VERSIONS),
        "pack": pack,
        "excluded": by_reason(pack or {}),
        "damaged": {"replaced": [], "left_out": []} | (read(run, DAMAGED) or {}),
        "metrics": metrics,
        "speed": speed(metrics),
        "idle": idle(metrics),
        "charts": charts(metrics, smoothed=recipe.get("label_smoothing") != 0),
        "stages": stages(
            read(run, HEAD),
            metrics,
            read(run, INTERPOLATION),
            read(run, SWA),
            recipe.get("select", "accuracy"),
        ),
        "swa": read(run, SWA),
        "evaluation": evaluation,
        "others": [read(run, path.name) for path in sorted(run.glob("eval-*.json"))],
        "classes": worst_first((evaluation or {}).get("classes") or []),
        "confusions": confusions(evaluation or {}),
        "pictures": {name: picture(run / name) for name in PICTURES},
        "commands": {name: command(run, name, recipe, pack) for name in (*SHAPES, *PICTURES)},
    }


def read(run: Path, name: str) -> Any:
    """The content of one JSON file of the run folder, or None if there is no such file. Raises ReportError."""
    try:
        text = read_text(run / name)
        content = (
            [json.loads(line) for line in text.splitlines()] if name in (METRICS, TIMES) else json.loads(text)
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ReportError(
            f"{run / name} cannot be read ({reason}); expected JSON; {remedy(run / name)}"
        ) from None
    fault = first_fault(name, content)
    if fault:
        raise ReportError(f"{run / name}: {fault}; {remedy(run / name)}")
    return content


def command(run: Path, name: str, recipe: Any = None, pack: Any = None) -> str:
    """The command line that makes one file of the run folder."""
    folder = shlex.quote(str(run))
    if name in (EVALUATION, "confusion.png"):
        return f"greyhound eval --run {folder}"
    if name == "saliency.png":
        return f"greyhound explain --run {folder}"
    start = shlex.quote((recipe or {}).get("name") or ("fast" if name == RECIPE else "RECIPE"))
    images = shlex.quote((pack or {}).get("path") or "PACK")
    resume = "" if name == RECIPE else " --resume"
    return f"greyhound train {start} --pack {images} --out {folder}{resume}"


def remedy(path: Path) -> str:
    """What to do about a damaged file of a run folder."""
    if path.name in (RECIPE, PACK):
        return f"train into another folder: {command(Path('OTHER'), RECIPE)}"
    return f"delete it, then: {command(path.parent, path.name)}"


def picture(path: Path) -> str | None:
    """A PNG as a data URI, or None if there is none. Raises ReportError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ReportError(f"{path} cannot be read ({error.strerror or error}); {remedy(path)}") from None
    if not data.startswith(b"\x89PNG"):
        raise ReportError(f"{path} is no picture; expected a PNG; {remedy(path)}")
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def group(title: str, content: Mapping[str, Any]) -> Iterator[Group]:
    """A nested object as groups: its plain values first, then every object and table in it under its own name."""
    nested = {key: value for key, value in content.items() if isinstance(value, dict) or _is_table(value)}
    pairs = tuple((spaced(key), scalar(value)) for key, value in content.items() if key not in nested)
    if pairs:
        yield Group(title, pairs)
    for key, value in nested.items():
        yield from group(spaced(key), value) if isinstance(value, dict) else [table(spaced(key), value)]


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> Group:
    """A list of objects as a table; its columns are all their keys, in the order of first mention."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = tuple(tuple(scalar(row.get(key)) for key in keys) for row in rows)
    return Group(title, columns=tuple(spaced(key) for key in keys), rows=cells)


def by_reason(pack: Mapping[str, Any]) -> list[tuple[str, int, list[Mapping[str, Any]]]]:
    """What the pack excluded: reason, count, images; the commonest reason first."""
    excluded = pack.get("excluded") or {}
    images: dict[str, list[Mapping[str, Any]]] = {}
    for image in excluded.get("images") or []:
        images.setdefault(image.get("reason") or "unknown", []).append(image)
    counts = Counter({reason: len(found) for reason, found in images.items()})
    counts |= Counter({reason: count or 0 for reason, count in (excluded.get("reasons") or {}).items()})
    return [(reason, count, images.get(reason, [])) for reason, count in counts.most_common()]


def timed(
    metrics: Sequence[Mapping[str, Any]], times: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Every epoch's row with what the clock said of it."""
    by_epoch = {row.get("epoch"): row for row in times}
    return [{**by_epoch.get(row.get("epoch"), {}), **row} for row in metrics]


def speed(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Medians over the epochs, and the seconds of all together; None where nothing was measured."""
    names = ("seconds", "images_per_second", "waiting")
    values = {name: [row[name] for row in metrics if _finite(row.get(name))] for name in names}
    medians = {name: median(found) if found else None for name, found in values.items()}
    return medians | {"total": sum(values["seconds"]) or None}


def idle(metrics: Sequence[Mapping[str, Any]]) -> int:
    """Epochs in which less than half of the weights changed at all."""
    shares = [row["weights_changed"] for row in metrics if _finite(row.get("weights_changed"))]
    return sum(share < 0.5 for share in shares)


@dataclass(frozen=True)
class Stage:
    """What a training had reached on the validation split when a part of it was over."""

    name: str
    result: Mapping[str, Any]
    best: bool
    """Whether evaluation takes this one: the recipe ranks it above all others."""


def stages(
    head: Mapping[str, Any] | None,
    metrics: Sequence[Mapping[str, Any]],
    between: Sequence[Mapping[str, Any]] | None,
    swa: Mapping[str, Any] | None,
    select: Literal["accuracy", "loss"],
) -> list[Stage]:
    """The stages of a training in their order; of its epochs the best one and the last one.

    Of equals the first is the best, as in best.ckpt; but the average, which is a checkpoint of its own, goes before.
    """

    def rank(row: Mapping[str, Any]) -> float:
        value = row.get("accuracy" if select == "accuracy" else "valid_loss")
        return -math.inf if not _finite(value) else value if select == "accuracy" else -value

    first = (head or {}).get("first")
    found: list[tuple[str, Mapping[str, Any] | None]] = [
        (f"a head solved on {(first or {}).get('images', 'few')} images", first),
        ("the solved head alone, nothing fine-tuned", head),
    ]
    if metrics:
        epochs = {row.get("epoch", index): row for index, row in enumerate(metrics)}
        last = max(epochs)
        top = max(epochs, key=lambda epoch: (rank(epochs[epoch]), -epoch))
        found += [(f"the best epoch, {top}", epochs[top])] if top != last else []
        found.append((f"the last epoch, {last}", epochs[last]))
    if between:
        top = max(between, key=rank)
        found.append((f"{top.get('share', math.nan):.0%} of the way from the solved head to there", top))
    averaged = "averaged weights"
    found.append((averaged, (swa or {}).get("after")))
    rows = {name: row for name, row in found if row}
    best = max(rows, key=lambda name: (rank(rows[name]), name == averaged), default=None)
    return [Stage(name, row, name == best) for name, row in rows.items()]


def worst_first(classes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows of classes by accuracy, then by name; classes without an accuracy last."""

    def key(row: Mapping[str, Any]) -> tuple[float, str]:
        accuracy = row.get("accuracy")
        return accuracy if _finite(accuracy) else math.inf, (row.get("name") or "").casefold()

    return sorted(classes, key=key)


def confusions(evaluation: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """The commonest mistakes: true class, predicted class, count."""
    names = [row.get("name") or "" for row in evaluation.get("classes") or []]
    known = range(len(names))
    found = [
        (names[true], names[predicted], count)
        for true, predicted, count in confused(evaluation)
        if true != predicted and true in known and predicted in known
    ]
    return sorted(found, key=lambda mistake: -mistake[2])[:CONFUSIONS]


def charts(metrics: Sequence[Mapping[str, Any]], smoothed: bool) -> list[Chart]:
    """The three curves of a training; its two losses are different quantities and never share an axis."""

    def points(name: str, factor: float = 1) -> list[tuple[int, float]]:
        values = [row.get(name) for row in metrics]
        epochs = [index if row.get("epoch") is None else row["epoch"] for index, row in enumerate(metrics)]
        return [
            (epoch, value * factor if _finite(value) else math.nan)
            for epoch, value in zip(epochs, values, strict=True)
        ]

    trained = f"{'smoothed' if smoothed else 'true'} labels, augmented images"
    plain = "true labels, images as they are"
    return [
        chart("Training loss", trained, points("train_loss")),
        chart("Validation loss", plain, points("valid_loss")),
        chart(
            "Validation accuracy", "share of images named correctly", points("accuracy", 100), percents=True
        ),
    ]


def chart(name: str, note: str, points: Sequence[tuple[int, float]], percents: bool = False) -> Chart:
    """The curve through `(epoch, value)`; a value may be NaN. The best loss is the lowest, the best of percents the highest."""
    known = [(epoch, value) for epoch, value in points if math.isfinite(value)]
    across = horizontal([epoch for epoch, _ in points])
    up = vertical([value for _, value in known], ceiling=100 if percents else math.inf)
    texts = [percent(value / 100) if percents else number(value) for _, value in known]
    best = (max if percents else min)(range(len(known)), key=lambda index: known[index][1], default=None)
    return Chart(
        name,
        note,
        last=texts[-1] if texts else "–",
        best="no values" if best is None else f"best {texts[best]} in epoch {known[best][0]}",
        path=polyline([(across(epoch), up(value)) for epoch, value in points]),
        dots=tuple(
            (across(epoch), up(value), f"epoch {epoch}: {text}")
            for (epoch, value), text in zip(known, texts, strict=True)
        ),
        across=across.labelled(),
        up=up.labelled("%" if percents else ""),
    )


def horizontal(epochs: Sequence[int]) -> Scale:
    """The axis of the epochs: from the first to the last, marked at whole numbers; one alone stands in the middle."""
    low, high = min(epochs, default=0), max(epochs, default=0)
    if low == high:
        return Scale(low - 0.5, high + 0.5, LEFT, RIGHT, (low,))
    marks = tuple(mark for mark in ticks(low, high) if low <= mark <= high and mark.is_integer())
    return Scale(low, high, LEFT, RIGHT, marks)


def vertical(values: Sequence[float], ceiling: float = math.inf) -> Scale:
    """The axis of the values: from a round number below them to one above, but no further than `ceiling`."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low <= max(1e-9 * abs(high), 1e-12):
        pad = abs(high) * 0.05 if abs(high) > 1e-12 else 0.5
        low, high = low - pad, high + pad
    marks = ticks(low, min(high, ceiling) if low < ceiling else high)
    return Scale(marks[0], marks[-1], BOTTOM, TOP, tuple(marks))


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, that reach from `low` or less to `high` or more."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, max(last, first + 1) + 1)]


def polyline(places: Sequence[tuple[float, float]]) -> str:
    """The `d` of an SVG path through the places `(across, down)`; it is broken where one is NaN."""
    steps, pen = [], "M"
    for across, down in places:
        if math.isnan(down):
            pen = "M"
            continue
        steps.append(f"{pen}{across:.1f} {down:.1f}")
        pen = "L"
    return "".join(steps)


def percent(value: object) -> str:
    """A share as "93.1 %"; a dash where there is none."""
    return f"{100 * value:.1f}\N{NARROW NO-BREAK SPACE}%" if _finite(value) else "–"


def share(value: object) -> str:
    """A share as a plain number between 0 and 1, for a place on a bar; 0 where there is none."""
    return f"{min(max(value, 0), 1):.4f}" if _finite(value) else "0"


def number(value: object, digits: int = 3) -> str:
    """A number with so many digits behind the point; very small and very large ones with a power of ten."""
    if not _finite(value):
        return "–"
    return f"{value:.{digits}f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.2e}"


def count(value: object) -> str:
    """A whole number with commas between the thousands."""
    return f"{value:,.0f}" if _finite(value) else "–"


def size(value: object) -> str:
    """A number of bytes in the unit that keeps it short."""
    if not _finite(value):
        return "–"
    power = min(int(math.log(max(value, 1), 1000)), 4)
    return f"{value / 1000**power:.{1 if power else 0}f} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"


def duration(value: object) -> str:
    """Seconds as "8.2 s", "12 min" or "3 h 20 min"."""
    if not _finite(value):
        return "–"
    if value < 120:
        return f"{value:.1f} s"
    hours, minutes = divmod(round(value / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def clock(value: object) -> str:
    """Seconds as "0:08", "12:05" or "3:20:00", so that a column of them compares at a glance."""
    if not _finite(value):
        return "–"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def scalar(value: object) -> str:
    """A value of the recipe as words: yes and no, numbers without needless digits, lists with commas."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(scalar(item) for item in value) or "none"
    return "none" if value is None or value == "" else str(value)


def spaced(name: str) -> str:
    """A key as words."""
    return name.replace("_", " ")


def _finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_table(value: object) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


@cache
def _environment() -> Environment:
    """Jinja with everything escaped; what a run folder lacks is empty."""
    environment = Environment(
        autoescape=True,
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (percent, share, number, count, size, duration, clock, scalar, spaced):
        environment.filters[function.__name__] = function
    environment.globals |= {"WIDTH": WIDTH, "HEIGHT": HEIGHT, "LEFT": LEFT, "RIGHT": RIGHT, "BOTTOM": BOTTOM}
    environment.globals |= {"THUMBNAILS": THUMBNAILS, "DRAWN": DRAWN}
    return environment
