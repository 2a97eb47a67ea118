"""One page about a run: how good it is, what it gets wrong, where it looks, and how it came about.

Before it: train, eval and explain fill the run folder. After it: a reader with a browser. The page is one
file and loads nothing else. It shows what the run folder has, and names the command that makes what is
missing.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeAlias

from jinja2 import ChainableUndefined, Environment, FileSystemLoader
from PIL import Image

from greyhound.cache.files import replacing, unwritable
from greyhound.model.lr_range import depends_on
from greyhound.model.metrics import PAIRS, confused, confused_pairs
from greyhound.model.network import in_imagenet
from greyhound.model.report.charts import data_uri, describe_labels, draw_charts, draw_diagram
from greyhound.model.report.figures import DRAWN
from greyhound.model.report.stages import (
    AVERAGE,
    Stage,
    chose,
    say_stages,
    say_stopped,
    spent,
    stages,
    with_interval,
)
from greyhound.model.report.text import (
    bare,
    clock,
    count,
    day,
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
    DIVERGED,
    EVALUATION,
    FIND_LR,
    METRICS,
    MISTAKES,
    PACK,
    PROBE,
    RECIPE,
    SALIENCY,
    SCHEMAS,
    STEPS,
    SWA,
    TIMES,
    VALIDATION,
    VERSIONS,
    Run,
    RunError,
    completed,
    read_checked,
)

REPORT: Final = "report.html"
LABELS: Final = "labels.json"
PICTURES: Final = ("lr.png", "find-lr.png", "augmented.png", "confusion.png", "saliency.png")
BOARDS: Final = ("augmented.png", "saliency.png")
"""Pictures of photographs: on the page they are JPEG, an eighth as large."""
THUMBNAILS: Final = 12
"""Pictures shown for each reason to exclude an image; pack.json has the rest."""
LISTED: Final = 100
"""Paths listed of a kind; a file has the rest."""
ROWS: Final = 1000
"""Classes listed, the worst first."""

Row: TypeAlias = Mapping[str, Any]
Rows: TypeAlias = Sequence[Row]


@dataclass(frozen=True)
class Group:
    """A heading with pairs of name and value, or with a table."""

    title: str
    pairs: tuple[tuple[str, str], ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


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
        raise RunError(unwritable(path, error)) from None
    return path


def gather(run: Path) -> dict[str, Any]:
    """Everything that the page shows, by the names that the template uses. Raises RunError."""
    recipe, pack, swa, probe, versions = (read(run, name) for name in (RECIPE, PACK, SWA, PROBE, VERSIONS))
    require_recipe(run, recipe)
    metrics, steps, select = read_epochs(run), read(run, STEPS) or [], selects(recipe)
    planned = sum(phase.get("epochs") or 0 for phase in recipe.get("phases") or [])
    found = stages(probe, metrics, swa, select)
    shows = VALIDATION if is_untested(pack) else EVALUATION
    beside = [path.name for path in sorted(run.glob("eval-*.json")) if path.name != shows]
    evaluation, saliency, *others = (
        with_age(run, read(run, name), found) for name in (shows, SALIENCY, *beside)
    )
    script = (Path(__file__).parent / "sort.js").read_text(encoding="utf-8")
    shown = Path(run.name) if run.is_absolute() else run
    mistakes = of_evaluation(read(run, MISTAKES), evaluation or {})
    images, labels = ((pack or {}).get("splits") or {}).get("train"), describe_labels(recipe)
    suffix = "-val" if shows == VALIDATION else ""
    of, digest = (read(run, FIND_LR) or {}).get("of"), (pack or {}).get("digest", "")
    tested = of is not None and depends_on(completed(of), digest) == depends_on(recipe, digest)
    return {
        "run": run.resolve().name,
        "recipe": recipe,
        "groups": list(group("in short", {key: recipe[key] for key in recipe if key != "note"})),
        "versions": versions,
        "diverged": read(run, DIVERGED),
        "pack": pack,
        "excluded": by_reason(pack or {}),
        "corrupt": {"replaced": [], "left_out": []} | (read(run, CORRUPT) or {}),
        "metrics": metrics,
        "planned": planned,
        "idle": sum(row["weights_changed"] < 0.5 for row in metrics if finite(row.get("weights_changed"))),
        "charts": draw_charts(metrics, labels, steps, images),
        "labels": labels,
        "spent": spent(probe or {}, metrics, swa or {}),
        "probe": probe,
        "stages": found,
        "stopped": say_stopped(metrics, recipe.get("patience") or 0, planned, select),
        "kept": with_interval(found),
        "chose": chose(probe, metrics, swa),
        "brought": say_stages(found, select),
        "select": select,
        "swa": swa,
        "evaluation": evaluation,
        "suffix": suffix,
        "saliency": saliency,
        "others": others,
        "mistakes": mistakes,
        "wrong": sum(row[2] for row in confused(evaluation or {}) if row[0] != row[1]),
        "classes": by_class(evaluation or {}),
        "confusions": confusions(evaluation or {}, mistakes or {}),
        "diagrams": diagrams(evaluation or {}),
        "imagenet": [name for name in (pack or {}).get("classes") or [] if is_imagenet(recipe, name)],
        "pictures": {
            name: picture(run / name.replace("confusion", f"confusion{suffix}"))
            for name in PICTURES
            if name != "find-lr.png" or tested
        },
        "commands": {name: command(shown, name, recipe, pack) for name in (*SCHEMAS, *PICTURES, LABELS)},
        "script": script,
        "digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


def read(run: Path, name: str) -> Any:
    """The content of one JSON file of the run folder; None if there is no such file. Raises RunError."""
    try:
        return read_checked(run / name, remedy(run / name))
    except (FileNotFoundError, NotADirectoryError):
        return None


def read_epochs(run: Path) -> list[dict[str, Any]]:
    """What each epoch came to, and how long it took. Raises RunError."""
    times = {row.get("epoch"): row for row in read(run, TIMES) or []}
    return [times.get(row.get("epoch"), {}) | row for row in read(run, METRICS) or []]


def require_recipe(run: Path, recipe: Any) -> None:
    """Refuse a folder without a recipe: it holds no run, or several. Raises RunError."""
    if recipe is None:
        Run(run).read(RECIPE)  # which says what is there


def command(run: Path, name: str, recipe: Any = None, pack: Any = None) -> str:
    """The command line that makes one file of the run folder."""
    folder, pack = shlex.quote(str(run)), pack or {}
    if name.startswith(("eval", "confusion", "mistakes")):
        return f"greyhound eval --run {folder}" + " --split val" * is_untested(pack)
    if name == LABELS:
        return f"greyhound review --run {folder} --out {LABELS}"
    if name.startswith("saliency"):
        return f"greyhound explain --run {folder}"
    start = shlex.quote((recipe or {}).get("name") or ("fast" if name == RECIPE else "RECIPE"))
    beside = pack.get("beside") and os.path.normpath(run / pack["beside"])
    images = shlex.quote(bare(beside or pack.get("path") or "PACK"))
    resume = "" if name == RECIPE else " --resume"
    return f"greyhound train {start} --pack {images} --out {folder}{resume}"


def remedy(path: Path) -> str:
    """What to do about a corrupt file of a run folder."""
    maker, other = command(path.parent, path.name), command(Path("OTHER"), RECIPE)
    if path.name in (RECIPE, PACK):
        return f"train into another folder: {other}"
    if not maker.startswith("greyhound train"):
        return f"delete it, then: {maker}"
    if path.suffix == ".png" or path.name == FIND_LR:
        return "delete it: the report does without"
    # --resume makes it no more.
    return f"put back what train wrote, or train into another folder: {other}"


def picture(path: Path) -> str | None:
    """A PNG file as a data URI; None if there is no such file. Raises RunError."""
    try:
        data = path.read_bytes()
        if not data.startswith(b"\x89PNG"):
            raise RunError(f"{path} is no picture; expected a PNG; {remedy(path)}")
        if path.name not in BOARDS:
            return data_uri(data)
        stream = io.BytesIO()
        Image.open(io.BytesIO(data)).convert("RGB").save(stream, "JPEG", quality=80)
        return data_uri(stream.getvalue(), "jpeg")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror or error}); {remedy(path)}") from None


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
    return stages(probe, read_epochs(run), swa, selects(recipe or {}))


def has_chosen(run: Path) -> bool:
    """Whether validation chose the weights of a run, see `stages.chose`. Raises RunError."""
    probe, metrics, swa = (read(run, name) for name in (PROBE, METRICS, SWA))
    return chose(probe, metrics or [], swa)


def selects(recipe: Row) -> str:
    """What a recipe chooses its weights by."""
    return str(recipe.get("select", "accuracy"))


def is_untested(pack: Row | None) -> bool:
    """Whether a pack has no test images, so that the page shows the validation images."""
    return ((pack or {}).get("splits") or {}).get("test") == 0


def is_imagenet(recipe: Row, name: str) -> bool:
    """Whether a network that starts from ImageNet's weights has seen a class of that name with them."""
    return "ImageNet" in (recipe.get("note") or "") and in_imagenet(name)


def of_evaluation(mistakes: Row | None, evaluation: Row) -> Row | None:
    """mistakes.json, where it is of the evaluation that eval.json has."""
    keys = ("weights", "crops", "seed")
    same = mistakes and all(mistakes.get(key) == evaluation.get(key) for key in keys)
    return mistakes if same else None


def by_class(evaluation: Row) -> list[dict[str, Any]]:
    """Each class as the crops together see it, the worst first."""
    kind = "ensemble_" if evaluation.get("crops") != 1 else ""
    names = ("accuracy", "interval", "precision", "f1")
    rows = [
        {"name": row.get("name"), "n": row.get("n")} | {key: row.get(kind + key) for key in names}
        for row in evaluation.get("classes") or []
    ]
    return worst_first(rows)


def diagrams(evaluation: Row) -> list[tuple[str, Row, str]]:
    """Of the probabilities before and after the temperature: what they are, how good, and the picture."""
    fit = evaluation.get("calibration") or {}
    sides = {"at temperature 1": fit.get("before")}
    if not fit.get("why"):
        sides[f"at temperature {number(fit.get('temperature'), 2)}"] = fit.get("after")
    return [(name, side, drawn) for name, side in sides.items() if side and (drawn := draw_diagram(side))]


def worst_first(classes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of classes by accuracy, then by name; classes without an accuracy last."""

    def key(row: Row) -> tuple[float, str]:
        accuracy = row.get("accuracy")
        return accuracy if finite(accuracy) else math.inf, (row.get("name") or "").casefold()

    return sorted(classes, key=key)


def confusions(evaluation: Row, mistakes: Row) -> list[dict[str, Any]]:
    """The commonest mistakes: true class, predicted class, count, images of the true class, examples."""
    classes = evaluation.get("classes") or []
    shown = {(pair.get("true"), pair.get("predicted")): pair for pair in mistakes.get("pairs") or []}
    found = []
    for true, predicted, times in confused_pairs(evaluation, PAIRS):
        names = classes[true].get("name") or "", classes[predicted].get("name") or ""
        row = {"true": names[0], "predicted": names[1], "times": times, "n": classes[true].get("n")}
        found.append(row | {"images": (shown.get(names) or {}).get("images") or []})
    return found


@cache
def _environment() -> Environment:
    """Jinja that escapes everything; what a run folder lacks is empty."""
    here = Path(__file__).parent
    loader = FileSystemLoader([here, here.parents[1] / "cache"])
    environment = Environment(
        autoescape=True, loader=loader, undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters = (percent, share, number, count, size, duration, clock, scalar, spaced, bare, day)
    environment.filters |= {function.__name__: function for function in filters}
    environment.globals |= {"THUMBNAILS": THUMBNAILS, "DRAWN": DRAWN, "LISTED": LISTED, "ROWS": ROWS}
    return environment
