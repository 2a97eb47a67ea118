"""One page about several runs: what each reached, what differs, their curves, and where they disagree.

Before it: run folders, by train and eval. After it: a reader with a browser. A difference counts only where
chance would make one as large less often than once in 20 tables (Bonferroni), by McNemar's exact test, where
both runs named the same images; else where the two 95 % intervals do not overlap, of any number of runs.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from greyhound.model.metrics import mcnemar, wilson
from greyhound.model.report import report
from greyhound.model.report.charts import END, MIDDLE, data_uri
from greyhound.model.report.figures import OVERLAID, curves
from greyhound.model.report.report import Group, Row
from greyhound.model.report.stages import Stage, kept, stages
from greyhound.model.report.text import finite, flatten, percent, scalar
from greyhound.model.run import (
    EVALUATION,
    METRICS,
    PACK,
    PROBE,
    RECIPE,
    STEPS,
    SWA,
    TIMES,
    VERSIONS,
    RunError,
)

PREDICTIONS: Final = "predictions.csv"
LEVEL: Final = 0.05
CLASSES: Final = 60
"""Classes listed, those that moved most first."""
PATHS: Final = 10
"""Images listed of those that one run alone names right."""
NOT_COMPARED: Final = ("note", "date")
ABSENT: Final = "–"
"""Of a setting that a run does not have."""


class Score(NamedTuple):
    """An accuracy over n images, and its 95 % interval."""

    accuracy: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Compared:
    """One run, as far as its folder tells. tested, validated: by which weights it keeps.

    content: of its files, by their names; empty where there is none. named: of each test image by its path,
    the true class and the predicted one.
    """

    folder: Path
    name: str
    content: Mapping[str, Any]
    kept: Stage | None
    tested: Score | None
    validated: Score | None
    named: Mapping[str, tuple[str, str]]

    @property
    def digest(self) -> str:
        """Of its pack, and its fold, if it is of one: others validate other images."""
        return f"{self.content[PACK].get('digest', '')}{self.content[PACK].get('fold') or ''}"

    @property
    def classes(self) -> dict[str, Score]:
        """What evaluation found, by class."""
        rows = self.content[EVALUATION].get("classes") or [] if self.tested else []
        found = {str(row.get("name")): score(row) for row in rows}
        return {name: each for name, each in found.items() if each}

    @property
    def seconds(self) -> float | None:
        """From its start to its last stage."""
        found = (self.content[PROBE], *self.content[TIMES], self.content[SWA].get("after") or {})
        return max((row["elapsed"] for row in found if finite(row.get("elapsed"))), default=None)

    @property
    def speed(self) -> float | None:
        """Images a second, the median of the epochs."""
        speeds = [
            row["images_per_second"] for row in self.content[TIMES] if finite(row.get("images_per_second"))
        ]
        return median(speeds) if speeds else None


@dataclass(frozen=True)
class Difference:
    """Between two runs on the same images: the paths that one alone named right, and the other.

    p: McNemar's; None where the images are not known one by one. beyond: more than chance.
    """

    one: Sequence[str]
    other: Sequence[str]
    p: float | None
    beyond: bool


class Page(NamedTuple):
    """Where a page was written, its answer in a sentence or two, "" where there is none, and what to mind."""

    path: Path
    verdict: str
    notes: list[str]


def build(runs: Sequence[Path], out: Path, title: str, extra: Sequence[str | Group] = ()) -> Page:
    """Write the page about these run folders, whole or not at all. Raises RunError.

    extra: paragraphs and tables that stand before all else.
    """
    content = gather(runs) | {"title": title, "extra": extra}
    return Page(report.write_page("compare.html.jinja", content, out), content["verdict"], content["notes"])


def gather(folders: Sequence[Path]) -> dict[str, Any]:
    """Everything that the page shows, by the names that the template uses. Raises RunError."""
    runs = [read(folder, name) for folder, name in zip(folders, names(folders), strict=True)]
    on_test = sum(run.tested is not None for run in runs) > 1
    scores = {run.name: found for run in runs if (found := run.tested if on_test else run.validated)}
    ranked = sorted((run for run in runs if run.name in scores), key=lambda run: -scores[run.name].accuracy)
    pairs = math.comb(len(runs), 2)
    against = {
        run.name: difference(ranked[0], run, scores[ranked[0].name], scores[run.name], pairs, on_test)
        for run in ranked[1:]
        if run.digest == ranked[0].digest
    }
    measure = "test" if on_test else "validation"
    best = len(against) == len(runs) - 1 > 0 and all(each.beyond for each in against.values())
    comparable = len(ranked) > 1 and len({run.digest for run in runs}) == 1
    chosen = list(dict.fromkeys(run.name for run in (*ranked, *runs)))[:OVERLAID]
    shown = [run for run in runs if run.name in chosen]
    return {
        "runs": runs,
        "first": ranked[0] if ranked else None,
        "verdict": verdict(ranked[0].name, scores, against, measure, best) if comparable else "",
        "best": best,
        "against": against,
        "measure": measure,
        "scores": scores,
        "notes": list(notes(runs)),
        "shown": shown,
        "settings": settings(runs),
        "charts": list(charts(shown)),
        "classes": moved(shown),
        "disagree": [
            (run, against[run.name])
            for run in shown
            if run.name in against and against[run.name].p is not None
        ],
        "level_p": LEVEL / max(pairs, 1),
        "PATHS": PATHS,
    }


def verdict(
    first: str, scores: Mapping[str, Score], against: Mapping[str, Difference], measure: str, best: bool
) -> str:
    """Which run is ahead, and whether by more than chance."""
    accuracy = percent(scores[first].accuracy)
    if best:
        ahead = f"{first} is the best: {accuracy} of its {measure} images."
        return f"{ahead} Against every other run that is more than chance."
    alike = [name for name, score in scores.items() if score.accuracy == scores[first].accuracy]
    undecided = [name for name, found in against.items() if not found.beyond and name not in alike]
    chance = f"; against {', '.join(undecided)} that may be chance" if undecided else ""
    if len(alike) > 1:
        return f"{' and '.join(alike)} have the same {measure} accuracy, {accuracy}{chance}."
    return f"{first} has the highest {measure} accuracy, {accuracy}{chance}."


def names(folders: Sequence[Path]) -> list[str]:
    """What to call each run: its folder's name, or enough of its path to tell it apart. Raises RunError."""
    found = [folder.resolve() for folder in folders]
    if twice := next((folder for folder in found if found.count(folder) > 1), None):
        raise RunError(f"{folders[found.index(twice)]} is named twice; expected different runs")
    if len({folder.name for folder in found}) == len(found):
        return [folder.name for folder in found]
    above = Path(os.path.commonpath(found)).parent
    return [str(folder.relative_to(above)) for folder in found]


def read(folder: Path, name: str) -> Compared:
    """What a run's folder tells. Raises RunError."""
    found = {file: report.read(folder, file) for file in (RECIPE, PACK, VERSIONS, PROBE, SWA, EVALUATION)}
    report.require_recipe(folder, found[RECIPE])
    rows = {file: report.read(folder, file) or [] for file in (METRICS, TIMES, STEPS)}
    reached = stages(found[PROBE], rows[METRICS], found[SWA], report.selects(found[RECIPE]))
    taken = kept(reached)
    evaluation = report.with_age(folder, found[EVALUATION], reached) or {}
    tested = None if evaluation.get("outdated") else score(evaluation)
    return Compared(
        folder,
        name,
        {file: content or {} for file, content in found.items()} | rows,
        taken,
        tested,
        score(taken.result) if taken else None,
        read_predictions(folder / PREDICTIONS, evaluation.get("predictions_sha256")) if tested else {},
    )


def read_predictions(path: Path, digest: str | None) -> dict[str, tuple[str, str]]:
    """The true class and the predicted one of each test image by its path. Raises RunError.

    digest: the file's SHA-256, by eval.json. Empty without a file, or where it is of another test.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error}); delete it, then: greyhound eval") from None
    if hashlib.sha256(content).hexdigest() != digest:
        return {}
    rows = csv.DictReader(io.StringIO(content.decode(errors="surrogateescape"), newline=""))
    return {row["path"]: (row["true"], row["predicted"]) for row in rows}


def score(row: Row) -> Score | None:
    """Of a validation, an evaluation, or a class of one: of all crops together, where there are several."""
    accuracy, n = row.get("ensemble_accuracy", row.get("accuracy")), row.get("n")
    if not (finite(accuracy) and isinstance(n, int) and n > 0 and 0 <= accuracy <= 1):
        return None
    return Score(accuracy, *wilson(accuracy * n, n), n)


def difference(
    one: Compared, other: Compared, first: Score, second: Score, tests: int, paired: bool = True, of: str = ""
) -> Difference:
    """Between two runs. tests: comparisons that are made in all. of: on the images of this class alone."""
    if one.digest != other.digest:
        return Difference([], [], None, beyond=False)
    both = [path for path in one.named if path in other.named and of in ("", one.named[path][0])]
    if not (paired and both):
        apart = first.low > second.high or second.low > first.high
        return Difference([], [], None, beyond=apart)
    right = [[run.named[path][0] == run.named[path][1] for path in both] for run in (one, other)]
    alone = [path for path, a, b in zip(both, *right, strict=True) if a > b]
    its = [path for path, a, b in zip(both, *right, strict=True) if b > a]
    p = mcnemar(len(alone), len(its))
    return Difference(alone, its, p, beyond=p * max(tests, 1) < LEVEL)


def notes(runs: Sequence[Compared]) -> Iterator[str]:
    """What keeps the runs from being compared, in sentences."""
    if (packs := len({run.digest for run in runs})) > 1:
        folds = all(run.content[PACK].get("fold") for run in runs)
        what = "validate other images each" if folds else f"are of {packs} packs. Their images may differ"
        yield f"The runs {what}: no run is called the best."
    if len({tuple(run.content[PACK].get("classes") or ()) for run in runs}) > 1:
        yield "The runs do not have the same classes. Only those that all have are compared."
    crops = {run.content[EVALUATION].get("crops") for run in runs if run.tested}
    if len(crops) > 1:
        yield f"The tests looked at {' or '.join(map(str, sorted(crops, key=str)))} crops of each image."
    for run in runs:
        if not run.kept:
            yield f"{run.name} has no result yet: it ended, or still runs, before its first one."
        elif run.content[EVALUATION] and not run.tested:
            yield f"The test of {run.name} is of other weights than it has now, and is left out."
        elif not run.tested and any(other.tested for other in runs):
            command = report.command(run.folder, EVALUATION, pack=run.content[PACK])
            yield f"{run.name} was not evaluated, and so stands beside no test of another run: {command}"
    for one, other in combinations(runs, 2):
        if one.digest == other.digest and one.tested and other.tested and not (one.named and other.named):
            yield (
                f"Not every test tells its predictions ({PREDICTIONS}): intervals alone are compared, "
                "which sees less. Evaluate again: greyhound eval --run RUN"
            )
            break


def settings(runs: Sequence[Compared]) -> list[tuple[str, list[str]]]:
    """What differs of recipe, pack and versions: its name, as on the command line, and each run's value."""
    recipes = [dict(fields(run.content[RECIPE])) for run in runs]
    packs = [
        {"pack": run.digest[:12], "training images": (run.content[PACK].get("splits") or {}).get("train")}
        for run in runs
    ]
    found = []
    for columns in (recipes, packs, [run.content[VERSIONS] for run in runs]):
        for key in dict.fromkeys(key for column in columns for key in column if key not in NOT_COMPARED):
            values = [column.get(key, ABSENT) for column in columns]
            if any(value != values[0] for value in values):
                found.append((key, told_apart(values)))
    return found


def told_apart(values: Sequence[Any]) -> list[str]:
    """Values as short texts; longer ones where two that differ have the same."""
    found = [value if value is ABSENT else scalar(value) for value in values]
    if len(set(found)) == sum(value not in values[:place] for place, value in enumerate(values)):
        return found
    paths = [value for value in values if isinstance(value, str) and Path(value).is_absolute()]
    above = os.path.commonpath(paths) if paths else ""
    return [os.path.relpath(value, above) if value in paths else str(value) for value in values]


def fields(recipe: Row) -> Iterator[tuple[str, Any]]:
    """A recipe's fields by the names of their flags."""
    for name, value in flatten(recipe):
        if value != []:  # a recipe without phases
            yield "recipe" if name == "name" else name.replace("_", "-"), value


def charts(runs: Sequence[Compared]) -> Iterator[tuple[str, str, str]]:
    """The curves over one another: title, what they are, a data URI. Epochs count from the start."""
    by_step = any(run.content[STEPS] for run in runs)
    for title, about, file, key in (
        ("Training loss", *(("by step", STEPS) if by_step else ("of each epoch", METRICS)), "train_loss"),
        ("Learning rate", "by step", STEPS, "learning_rate"),
        ("Validation loss", "after each epoch; at 0 the linear probe", METRICS, "valid_loss"),
        ("Validation accuracy", "after each epoch; at 0 the linear probe", METRICS, "accuracy"),
    ):
        factor = 100 if key == "accuracy" else 1
        lines = [(run.name, [(x, factor * y) for x, y in points(run, file, key)]) for run in runs]
        if any(len(line) > 1 for _, line in lines):
            yield title, about, data_uri(curves(lines, percents=factor == 100))


def points(run: Compared, file: str, key: str) -> Iterator[tuple[float, float]]:
    """A run's values over the epochs trained, as the report has them; NaN where one is not finite."""
    if file == METRICS and finite(run.content[PROBE].get(key)):
        yield 0, run.content[PROBE][key]
    images = (run.content[PACK].get("splits") or {}).get("train") or math.inf
    for row in run.content[file]:
        at = MIDDLE if key == "train_loss" else END
        done = at if file == METRICS else row.get("images", 0) / images
        yield row.get("epoch", 0) + done, row[key] if finite(row.get(key)) else math.nan


def moved(runs: Sequence[Compared]) -> list[tuple[str, int, list[Score], bool]]:
    """The classes that all tests have and that differ: name, images, each run's score, and whether the
    difference between the highest and the lowest is beyond chance. The largest differences first; none of
    fewer than two tests.
    """
    tested = [run for run in runs if run.tested]
    if len(tested) < 2:
        return []
    common = [name for name in tested[0].classes if all(name in run.classes for run in tested)]
    tests = len(common) * math.comb(len(tested), 2)
    found = []
    for name in common:
        scores = [run.classes[name] for run in tested]
        low, high = min(scores), max(scores)
        if low.accuracy == high.accuracy:
            continue
        ends = tested[scores.index(low)], tested[scores.index(high)]
        found.append((name, low.n, scores, difference(*ends, low, high, tests, of=name).beyond))
    return sorted(found, key=lambda row: min(row[2]).accuracy - max(row[2]).accuracy)[:CLASSES]
