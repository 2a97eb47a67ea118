"""Tracking: gives the trackers of a run (`train --log`) what is new in its folder.

Before it: train, eval and explain write the run folder. After it: `trackers`. What they get is read from the
run folder, once it is on the disk. So a resumed training logs nothing twice, and a tracker that fails ends
nothing but itself.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, TypeAlias

from greyhound.cache.errors import UserError
from greyhound.model.metrics import confused
from greyhound.model.report import stages
from greyhound.model.report.report import PICTURES, REPORT, reached
from greyhound.model.report.text import flatten
from greyhound.model.run import (
    EVALUATION,
    METRICS,
    PACK,
    PROBE,
    RECIPE,
    STEPS,
    TIMES,
    TRACKING,
    VERSIONS,
    Run,
    RunError,
)
from greyhound.model.run_lock import run_lock
from greyhound.model.trackers import TRACKERS, Scalars, Table, Tracker, numbers

Say: TypeAlias = Callable[[str], None]
"""Says a line to the user."""

Found: TypeAlias = tuple[dict[float, Scalars], tuple[int, int]]
"""`scalars` and `epoch_length`."""

MOST_PAIRS: Final = 1_000
"""Pairs of classes in the table of confusions, the most frequent first."""


class TrackingError(UserError):
    """A tracker that was asked for is not there."""


def require(names: Sequence[str]) -> None:
    """Refuse a tracker whose package is not there, before anything long begins. Raises TrackingError."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder ./wandb is found as well, and is no package
            raise TrackingError(f"--log {name} needs a package that is not installed; pip install {name}")


class Follower:
    """Gives its trackers what is new in a run folder, each time that it is called, and at its end.

    tracking.json holds what is `known` to each: the `id` of its run, `where` that is, how many epochs and
    which `step` it has, digests of what else was `logged`, and whether the training `ended`.
    """

    def __init__(self, run: Run, say: Say, names: Sequence[str] = (), trains: bool = True) -> None:
        """names: of trackers, besides those of the run. trains: a training does this. Raises RunError."""
        before = run.read(TRACKING) if (run.folder / TRACKING).exists() else {}
        self._run, self._say, self._open = run, say, dict[str, Tracker]()
        self._known: dict[str, dict[str, Any]] = {
            name: {"epoch": -1, "step": -1, "logged": {}} | before.get(name, {}) for name in (*before, *names)
        }
        self._trains = trains
        for known in self._known.values() if trains else ():
            known["ended"] = False
        self._pool, self._last = ThreadPoolExecutor(1, thread_name_prefix="trackers"), Future[None]()
        self._last.set_result(None)

    def __enter__(self) -> Follower:
        """Begin or go on in each tracker."""
        for name in self._known:
            self._try(name, self._begin, name)
        return self

    def __call__(self) -> None:
        """Log what is new, in a thread of its own: a slow tracker holds up no checkpoint."""
        if self._open and self._last.done():
            self._last = self._pool.submit(self._update, False)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Log the rest, the report among it, and close."""
        self._pool.shutdown()
        for known in self._known.values() if self._trains else ():
            known["ended"] = kind is None
        self._update(at_end=True)
        for name, tracker in list(self._open.items()):
            self._try(name, tracker.close, self._known[name].get("ended", False))
        self._open = {}

    def _try(self, name: str, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except Exception as error:  # no tracker promises which, and none may end a training
            self._open.pop(name, None)
            why = " ".join(f"{type(error).__name__}: {error}".split())
            self._say(f"--log {name}: {why}; it gets no more of this run until --resume, eval or explain")

    def _begin(self, name: str) -> None:
        known, (recipe, about) = self._known[name], describe(self._run)
        last = max(scalars(self._run), default=-1)
        self._open[name] = tracker = TRACKERS[name](self._run.folder.resolve(), known, recipe | about, last)
        _once(known, RECIPE, repr((recipe, about)).encode(), partial(tracker.describe, recipe, about))
        self._run.write(TRACKING, self._known)

    def _update(self, at_end: bool) -> None:
        found = cache(lambda: (scalars(self._run), epoch_length(self._run)))
        for name, tracker in list(self._open.items()):
            self._try(name, self._log, tracker, self._known[name], at_end, found)

    def _log(self, tracker: Tracker, known: dict[str, Any], at_end: bool, found: Callable[[], Found]) -> None:
        rows = numbered(known, *found())
        if rows:
            tracker.rows(rows)
            known["step"] = max(rows)
            known["epoch"] = rows[known["step"]]["epoch"]
        if known["step"] >= 0:  # all else stands at the last of their steps
            for name, content, work in _files(self._run, tracker, known["step"], at_end):
                _once(known, name, content, work)
        self._run.write(TRACKING, self._known)


def follow(folder: Path, say: Say) -> None:
    """What eval and explain wrote, to the trackers that the run has. A training under way does it itself."""
    run = Run(folder)
    if (folder / TRACKING).exists():
        try:
            with run_lock(run, clean=False), Follower(run, say, trains=False):
                pass
        except RunError as error:
            say(f"not logged to the run's trackers: {error}")


def _once(known: dict[str, Any], name: str, content: bytes, work: Callable[[], None]) -> None:
    """Log it, unless it was logged as it is now."""
    digest = hashlib.sha256(content).hexdigest()[:16]
    if known["logged"].get(name) != digest:
        work()
        known["logged"][name] = digest


def _files(
    run: Run, tracker: Tracker, step: int, at_end: bool
) -> Iterator[tuple[str, bytes, Callable[[], None]]]:
    """What is logged once: its name, what it holds, how it is logged. The report changes until the end."""
    for path in (run.folder / name for name in PICTURES if (run.folder / name).exists()):
        yield path.name, path.read_bytes(), partial(tracker.picture, f"images/{path.stem}", path, step)
    if (run.folder / EVALUATION).exists():
        for name, table in tables(run.read(EVALUATION)).items():
            yield name, repr(table).encode(), partial(tracker.table, name, table, step)
    if at_end:
        for name, values in summary(run).items():
            yield name, repr(values).encode(), partial(tracker.summary, values, step)
        if (page := run.folder / REPORT).exists():
            yield REPORT, page.read_bytes(), partial(tracker.artefact, page)


def scalars(run: Run) -> dict[float, Scalars]:
    """All scalars of a run, in order, by how many epochs are done. Raises RunError."""
    images, found = run.read(PACK)["splits"]["train"], dict[float, dict[str, Any]]()
    epochs, times = ({row["epoch"]: row for row in run.rows(name)} for name in (METRICS, TIMES))
    if (run.folder / PROBE).exists():
        found[0.0] = _validation(run.read(PROBE))
    steps, under_way = run.rows(STEPS), max(epochs, default=-1) + 1
    lengths = {row["epoch"]: row["images"] for row in steps if row["epoch"] in epochs} | {under_way: images}
    for row in steps:
        epoch, length = row["epoch"], lengths.get(row["epoch"], 0)
        # An epoch's last step waits for its validation. Rows may be newer than the epochs that were read.
        if epoch in epochs or row["images"] < length:
            values = {"train/loss": row["train_loss"], "train/learning_rate": row["learning_rate"]}
            found[epoch + row["images"] / length] = values
    for epoch, row in epochs.items():
        clocked = {
            f"train/{name}": times.get(epoch, {}).get(name) for name in ("images_per_second", "waiting")
        }
        found.setdefault(epoch + 1.0, {})
        found[epoch + 1.0] |= _validation(row) | {"train/epoch_loss": row["train_loss"]} | clocked
    return {epoch: {"epoch": epoch, **numbers(row)} for epoch, row in sorted(found.items())}


def epoch_length(run: Run) -> tuple[int, int]:
    """Images and steps of an epoch. Raises RunError."""
    recipe, images = run.read(RECIPE), run.read(PACK)["splits"]["train"]
    return images, -(-images // max(1, recipe["batch_size"] // recipe["views"]))


def numbered(
    known: Mapping[str, Any], found: Mapping[float, Scalars], length: tuple[int, int]
) -> dict[int, Scalars]:
    """The scalars that are not known yet, by steps of the optimizer since the start.

    They go on from the step that is known: a recipe or pack that was forced makes other steps of an epoch.
    """
    begun, last = known["epoch"] >= 0, known["step"]
    shift = last - step_at(known["epoch"], *length) if begun else 0
    rows: dict[int, Scalars] = {}
    for epoch, row in found.items():
        if epoch > known["epoch"]:
            last = max(last + 1, step_at(epoch, *length) + shift)
            rows[last] = row
    return rows


def step_at(epochs: float, images: int, steps: int) -> int:
    """The step that ends where so many epochs are done; their larger batches come last, see `even_bounds`."""
    whole, share = divmod(epochs, 1)
    done, (fewer, larger) = round(share * images), divmod(images, steps)
    if done <= fewer * (steps - larger):
        return int(whole) * steps + done // fewer
    return int(whole) * steps + steps - (images - done) // (fewer + 1)


def _validation(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"valid/loss": row["valid_loss"], "valid/accuracy": row["accuracy"]}


def describe(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """The recipe by dotted names; the pack's digest and the versions. Raises RunError."""
    about = {"pack": run.read(PACK)["digest"], **run.read(VERSIONS)}
    recipe = {
        name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for name, value in flatten(run.read(RECIPE))
    }
    return recipe, {f"about.{name}": value for name, value in about.items()}


def tables(evaluation: Mapping[str, Any]) -> dict[str, Table]:
    """The table of classes, and that of true and predicted class, the most frequent pairs first."""
    classes = evaluation["classes"]
    pairs = sorted(confused(evaluation), key=lambda pair: -pair[2])[:MOST_PAIRS]
    ends = {"interval_low": 0, "interval_high": 1}
    by_class = {
        name: [row.get(name) for row in classes]
        for name in ("name", "n", "accuracy", "precision", "f1", "ensemble_accuracy")
    } | {name: [(row.get("interval") or (None, None))[end] for row in classes] for name, end in ends.items()}
    names = by_class["name"]
    true, predicted, images = (list(column) for column in zip(*pairs, strict=True))
    columns = {"true": [names[each] for each in true], "predicted": [names[each] for each in predicted]}
    return {"test/classes": by_class, "test/confusion": columns | {"images": images}}


def summary(run: Run) -> dict[str, dict[str, Any]]:
    """What the kept weights reached, and after which stage; accuracy on the test split, with its interval."""
    kept: dict[str, Any] = {}
    if stage := stages.kept(reached(run.folder)):
        kept = {"loss": stage.result.get("valid_loss"), "accuracy": stage.result.get("accuracy")}
        kept["after"] = stage.after
    test: dict[str, Any] = {}
    if (run.folder / EVALUATION).exists():
        found = run.read(EVALUATION)
        of_both = ("accuracy", "balanced_accuracy", "macro_f1")
        test = {name: found.get(name) for name in (*of_both, "cross_entropy", "n")}
        test |= {f"ensemble_{name}": found.get(f"ensemble_{name}") for name in of_both}
        for kind in ("", "ensemble_"):
            ends = found.get(f"{kind}interval") or (None, None)
            test[f"{kind}interval_low"], test[f"{kind}interval_high"] = ends
    return {
        part: {f"{part}/{name}": value for name, value in values.items() if value is not None}
        for part, values in (("kept", kept), ("test", test))
        if values
    }
