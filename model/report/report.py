"""One page about a run: what was trained, on what, how it went, how good it is, and where it looks.

Before it: train, eval and explain fill the run folder. After it: a reader with a browser. The page is one
file and loads nothing else. It shows what the run folder has, and names the command that makes what is
missing.
"""

from __future__ import annotations

import base64
import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeAlias

from jinja2 import ChainableUndefined, Environment, FileSystemLoader

from greyhound.cache.files import replacing
from greyhound.model.metrics import confused
from greyhound.model.report.figures import DRAWN, curve
from greyhound.model.report.text import (
    clock,
    count,
    duration,
    finite,
    number,
    percent,
    scalar,
    share,
    size,
    spaced,
)
from greyhound.model.run import (
    CORRUPT,
    EVALUATION,
    METRICS,
    PACK,
    PROBE,
    RECIPE,
    SALIENCY,
    SCHEMAS,
    SWA,
    TIMES,
    VERSIONS,
    Run,
    RunError,
    read_checked,
)

REPORT: Final = "report.html"
PICTURES: Final = ("lr.png", "find-lr.png", "augmented.png", "confusion.png", "saliency.png")
THUMBNAILS: Final = 12
"""Pictures shown for each reason to exclude an image; pack.json has the rest."""
ALONE: Final = "the linear probe"
"""What the first stage comes after."""
AVERAGE: Final = "averaged weights"
"""How the last stage is named."""
CONFUSIONS: Final = 10
"""Mistakes listed, the most frequent first."""

Row: TypeAlias = Mapping[str, Any]
Rows: TypeAlias = Sequence[Row]


@dataclass(frozen=True)
class Group:
    """A heading with pairs of name and value, or with a table."""

    title: str
    pairs: tuple[tuple[str, str], ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Chart:
    """A curve over the epochs. picture: a data URI; None if fewer than two values are known."""

    name: str
    note: str
    last: str
    best: str
    picture: str | None


@dataclass(frozen=True)
class Stage:
    """What one part of a training reached on the validation split. best: evaluation takes this one.

    name: in the table. after: in a sentence.
    """

    name: str
    after: str
    result: Row
    best: bool


def build(run: Path) -> Path:
    """Write `report.html` into the run folder, whole or not at all. Its path. Raises RunError."""
    return write_page("report.html.jinja", gather(run), run / REPORT)


def write_page(template: str, content: Row, path: Path) -> Path:
    """Write what a template makes of `content`, whole or not at all. The path. Raises RunError."""
    page = _environment().get_template(template).render(content)
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(page.encode("utf-8", "replace"))  # a file's name may be invalid text
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror or error})") from None
    return path


def gather(run: Path) -> dict[str, Any]:
    """Everything that the page shows, by the names that the template uses. Raises RunError."""
    recipe, pack, evaluation, swa = (read(run, name) for name in (RECIPE, PACK, EVALUATION, SWA))
    require_recipe(run, recipe)
    times = {row.get("epoch"): row for row in read(run, TIMES) or []}
    metrics = [times.get(row.get("epoch"), {}) | row for row in read(run, METRICS) or []]
    probe = read(run, PROBE)
    found = reached(run)
    evaluation, saliency, *others = (
        with_age(run, content, found)
        for content in (
            evaluation,
            read(run, SALIENCY),
            *(read(run, path.name) for path in sorted(run.glob("eval-*.json"))),
        )
    )
    return {
        "run": run.resolve().name,
        "recipe": recipe,
        "groups": list(group("in short", {key: recipe[key] for key in recipe if key != "note"})),
        "versions": read(run, VERSIONS),
        "pack": pack,
        "excluded": by_reason(pack or {}),
        "corrupt": {"replaced": [], "left_out": []} | (read(run, CORRUPT) or {}),
        "metrics": metrics,
        "summary": summary(metrics),
        "charts": charts(metrics, smoothed=recipe.get("label_smoothing") != 0),
        "probe": probe,
        "stages": found,
        "stopped": say_stopped(run),
        "brought": say_stages(found, recipe.get("select", "accuracy")),
        "swa": swa,
        "evaluation": evaluation,
        "saliency": saliency,
        "others": others,
        "classes": worst_first((evaluation or {}).get("classes") or []),
        "confusions": confusions(evaluation or {}),
        "pictures": {name: picture(run / name) for name in PICTURES},
        "commands": {name: command(run, name, recipe, pack) for name in (*SCHEMAS, *PICTURES)},
    }


def read(run: Path, name: str) -> Any:
    """The content of one JSON file of the run folder; None if there is no such file. Raises RunError."""
    try:
        return read_checked(run / name, remedy(run / name))
    except (FileNotFoundError, NotADirectoryError):
        return None


def require_recipe(run: Path, recipe: Any) -> None:
    """Refuse a folder without a recipe: it holds no run. Raises RunError."""
    if recipe is None:
        raise RunError(f"{run} has no {RECIPE}; expected a run folder, as made by: {command(run, RECIPE)}")


def command(run: Path, name: str, recipe: Any = None, pack: Any = None) -> str:
    """The command line that makes one file of the run folder."""
    folder = shlex.quote(str(run))
    if name.startswith(("eval", "confusion")):
        return f"greyhound eval --run {folder}"
    if name.startswith("saliency"):
        return f"greyhound explain --run {folder}"
    start = shlex.quote((recipe or {}).get("name") or ("fast" if name == RECIPE else "RECIPE"))
    images = shlex.quote((pack or {}).get("path") or "PACK")
    resume = "" if name == RECIPE else " --resume"
    return f"greyhound train {start} --pack {images} --out {folder}{resume}"


def remedy(path: Path) -> str:
    """What to do about a corrupt file of a run folder."""
    if path.name in (RECIPE, PACK):
        return f"train into another folder: {command(Path('OTHER'), RECIPE)}"
    return f"delete it, then: {command(path.parent, path.name)}"


def picture(path: Path) -> str | None:
    """A PNG file as a data URI; None if there is no such file. Raises RunError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror or error}); {remedy(path)}") from None
    if not data.startswith(b"\x89PNG"):
        raise RunError(f"{path} is no picture; expected a PNG; {remedy(path)}")
    return data_uri(data)


def data_uri(png: bytes) -> str:
    """A PNG as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def group(title: str, content: Row | Rows) -> Iterator[Group]:
    """A nested object as groups: its plain values first, then each object and table under its own name.

    A list of objects is a table. Its columns are all their keys, in the order of first mention.
    """
    if not isinstance(content, Mapping):
        keys = tuple(dict.fromkeys(key for row in content for key in row))
        cells = tuple(tuple(scalar(row.get(key)) for key in keys) for row in content)
        yield Group(title, columns=tuple(map(spaced, keys)), rows=cells)
        return
    rows = {key: value for key, value in content.items() if isinstance(value, list) and value}
    tables = {key for key, value in rows.items() if all(isinstance(item, dict) for item in value)}
    nested = {key: value for key, value in content.items() if isinstance(value, dict) or key in tables}
    pairs = tuple((spaced(key), scalar(value)) for key, value in content.items() if key not in nested)
    if pairs:
        yield Group(title, pairs)
    for key, value in nested.items():
        yield from group(spaced(key), value)


def by_reason(pack: Row) -> list[tuple[str, int, list[Row]]]:
    """What the pack excluded: reason, count, images; the most frequent reason first."""
    excluded = pack.get("excluded") or {}
    images: dict[str, list[Row]] = {}
    for image in excluded.get("images") or []:
        images.setdefault(image.get("reason") or "unknown", []).append(image)
    counts = Counter({reason: len(found) for reason, found in images.items()})
    counts |= Counter({reason: count or 0 for reason, count in (excluded.get("reasons") or {}).items()})
    return [(reason, count, images.get(reason, [])) for reason, count in counts.most_common()]


def summary(metrics: Rows) -> dict[str, float | None]:
    """Medians over the epochs, the total of seconds, and the idle epochs; None where nothing was measured.

    An epoch is idle if less than half of the weights changed at all.
    """
    names = ("seconds", "images_per_second", "waiting", "weights_changed")
    values = {name: [row[name] for row in metrics if finite(row.get(name))] for name in names}
    medians = {name: median(found) if found else None for name, found in values.items()}
    idle = sum(share < 0.5 for share in values["weights_changed"])
    return medians | {"total": sum(values["seconds"]) or None, "idle": idle}


def stages(probe: Row | None, metrics: Rows, swa: Row | None, select: str) -> list[Stage]:
    """The stages of a training in their order; of its epochs the best and the last.

    A tie goes to the first, as in best.ckpt; but the average, which is a checkpoint of its own, wins a tie.
    """

    def rank(row: Row) -> float:
        value = row.get("accuracy" if select == "accuracy" else "valid_loss")
        return -math.inf if not finite(value) else value if select == "accuracy" else -value

    found: list[tuple[str, str, Any]] = [("the linear probe alone, nothing fine-tuned", ALONE, probe)]
    if metrics:
        epochs = {row.get("epoch", index): row for index, row in enumerate(metrics)}
        last = max(epochs)
        top = max(epochs, key=lambda epoch: (rank(epochs[epoch]), -epoch))
        if top != last:
            found.append((f"the best epoch, {top}", f"epoch {top}", epochs[top]))
        found.append((f"the last epoch, {last}", f"epoch {last}", epochs[last]))
    found.append((AVERAGE, "averaging", (swa or {}).get("after")))
    there = [each for each in found if each[2]]
    best = max(there, key=lambda each: (rank(each[2]), each[0] == AVERAGE), default=None)
    return [Stage(*each, each is best) for each in there]


def say_stages(reached: Sequence[Stage], select: str) -> str:
    """What each stage reached, and which is kept; empty where there is one."""
    if len(reached) < 2:
        return ""
    name, key = ("accuracy",) * 2 if select == "accuracy" else ("cross entropy", "valid_loss")
    values = ((stage.result.get(key), stage.after) for stage in reached)
    came = ", ".join(f"{value:.4g} after {after}" for value, after in values if finite(value))
    kept = next(stage.after for stage in reached if stage.best)
    tuned = "fine-tuning" if reached[0].after == ALONE else "training"
    what = "fine-tuning brought nothing" if kept == ALONE else tuned
    return f"{what}: validation {name} {came}; the weights after {kept} are kept"


def say_stopped(run: Path) -> str:
    """That a run ended before its last epoch, and why; empty where it did not. Raises RunError."""
    recipe, last = read(run, RECIPE) or {}, [{}, *(read(run, METRICS) or [])][-1]
    patience, bad = recipe.get("patience") or 0, last.get("bad_epochs") or 0
    done, epochs = last.get("epoch", 0) + 1, sum(phase["epochs"] for phase in recipe.get("phases") or [])
    if not (0 < patience <= bad and done < epochs):
        return ""
    name = "accuracy" if recipe.get("select") == "accuracy" else "cross entropy"
    return f"stopped after {done} of {epochs} epochs: {bad} in a row without a better validation {name}"


def with_age(run: Path, measured: dict[str, Any] | None, reached: Sequence[Stage]) -> dict[str, Any] | None:
    """What was measured, and whether that is `outdated`: the same command would take other weights now."""
    if not measured:
        return measured
    averaged, asked = any(stage.best and stage.name == AVERAGE for stage in reached), measured.get("asked")
    name = asked if asked and asked != "auto" else "swa" if averaged else "best"
    now, then = Run(run).weights_id(name), measured.get("weights")
    return measured | {"outdated": bool(now and then and now != then)}


def reached(run: Path) -> list[Stage]:
    """What the stages of a run reached so far. Raises RunError."""
    recipe, swa, probe = (read(run, name) for name in (RECIPE, SWA, PROBE))
    return stages(probe, read(run, METRICS) or [], swa, (recipe or {}).get("select", "accuracy"))


def worst_first(classes: Rows) -> list[Row]:
    """Rows of classes by accuracy, then by name; classes without an accuracy last."""

    def key(row: Row) -> tuple[float, str]:
        accuracy = row.get("accuracy")
        return accuracy if finite(accuracy) else math.inf, (row.get("name") or "").casefold()

    return sorted(classes, key=key)


def confusions(evaluation: Row) -> list[tuple[str, str, int]]:
    """The most frequent mistakes: true class, predicted class, count."""
    names = [row.get("name") or "" for row in evaluation.get("classes") or []]
    known = range(len(names))
    found = [
        (names[true], names[predicted], count)
        for true, predicted, count in confused(evaluation)
        if true != predicted and true in known and predicted in known
    ]
    return sorted(found, key=lambda mistake: -mistake[2])[:CONFUSIONS]


def charts(metrics: Rows, smoothed: bool) -> list[Chart]:
    """The three curves of a training. Its two losses are different quantities and never share an axis."""
    epochs = [index if row.get("epoch") is None else row["epoch"] for index, row in enumerate(metrics)]
    training, validation, accuracy = (
        [row.get(key) for row in metrics] for key in ("train_loss", "valid_loss", "accuracy")
    )
    labels = "smoothed labels" if smoothed else "true labels"
    return [
        chart("Training loss", f"{labels}, augmented images", epochs, training),
        chart("Validation loss", "true labels, images as they are", epochs, validation),
        chart("Validation accuracy", "share of images named correctly", epochs, accuracy, percents=True),
    ]


def chart(
    name: str, note: str, epochs: Sequence[int], values: Sequence[object], percents: bool = False
) -> Chart:
    """The curve of the values that are finite numbers. Best: the lowest loss, the highest share."""
    known = {epoch: value for epoch, value in zip(epochs, values, strict=True) if finite(value)}
    if not known:
        return Chart(name, note, last="–", best="no values", picture=None)
    text, factor = (percent, 100) if percents else (number, 1)
    best = (max if percents else min)(known, key=lambda epoch: known[epoch])
    drawn = [known.get(epoch, math.nan) * factor for epoch in epochs]
    return Chart(
        name,
        note,
        last=text(list(known.values())[-1]),
        best=f"best {text(known[best])} in epoch {best}",
        picture=data_uri(curve(epochs, drawn, percents)) if len(known) > 1 else None,
    )


@cache
def _environment() -> Environment:
    """Jinja that escapes everything; what a run folder lacks is empty."""
    here = Path(__file__).parent
    loader = FileSystemLoader([here, here.parents[1] / "cache"])
    environment = Environment(
        autoescape=True, loader=loader, undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters = (percent, share, number, count, size, duration, clock, scalar, spaced)
    environment.filters |= {function.__name__: function for function in filters}
    environment.globals |= {"THUMBNAILS": THUMBNAILS, "DRAWN": DRAWN}
    return environment
