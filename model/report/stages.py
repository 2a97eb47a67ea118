"""What each stage of a training reached on the validation split, which is kept, and where the time went.

Before it: rows of probe.json, metrics.jsonl, times.jsonl and swa.json. After it: the report, and the last
lines of a training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from greyhound.model.metrics import wilson
from greyhound.model.report.text import finite

Row: TypeAlias = Mapping[str, Any]
Rows: TypeAlias = Sequence[Row]

ALONE: Final = "the linear probe"
"""What the first stage comes after."""
AVERAGE: Final = "averaged weights"
"""How the last stage is named."""
PARTS: Final = {
    "features": "computing features for the linear probe",
    "fit": "fitting the linear probe",
    "validation": "validating it",
}
"""Of probe.json's seconds, in words."""


@dataclass(frozen=True)
class Stage:
    """What one part of a training reached on the validation split. best: evaluation takes this one.

    name: in the table. after: in a sentence.
    """

    name: str
    after: str
    result: Row
    best: bool


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


def chose(probe: Row | None, metrics: Rows, swa: Row | None) -> bool:
    """Whether validation chose among several results: the probe's, each epoch's, the average's."""
    return bool(probe) + len(metrics) + bool((swa or {}).get("after")) > 1


def kept(reached: Sequence[Stage]) -> Stage | None:
    """The stage whose weights evaluation takes; None where there is none yet."""
    return next((stage for stage in reached if stage.best), None)


def say_stages(reached: Sequence[Stage], select: str) -> str:
    """What each stage reached, and which is kept; empty where there is one, or no number."""
    taken = kept(reached)
    if len(reached) < 2 or taken is None:
        return ""
    name, key = ("accuracy",) * 2 if select == "accuracy" else ("cross entropy", "valid_loss")
    values = ((stage.result.get(key), stage.after) for stage in reached)
    came = ", ".join(f"{value:.4g} after {after}" for value, after in values if finite(value))
    if not came:
        return ""
    tuned = "fine-tuning" if reached[0].after == ALONE else "training"
    what = "fine-tuning brought nothing" if taken.after == ALONE else tuned
    return f"{what}: validation {name} {came}; the weights after {taken.after} are kept"


def say_stopped(metrics: Rows, patience: int, planned: int, select: str) -> str:
    """That a run ended before the last of its `planned` epochs, and why; empty where it did not."""
    last = metrics[-1] if metrics else {}
    done, bad = (last.get("epoch") or 0) + 1, last.get("bad_epochs") or 0
    if not (0 < patience <= bad and done < planned):
        return ""
    name = "accuracy" if select == "accuracy" else "cross entropy"
    return f"stopped after {done} of {planned} epochs: {bad} in a row without a better validation {name}"


def with_interval(reached: Sequence[Stage]) -> Row | None:
    """What the kept stage reached on the validation split, with its 95 % interval; None if unknown."""
    taken = kept(reached)
    result = taken.result if taken else {}
    accuracy, n = result.get("accuracy"), result.get("n")
    if not (finite(accuracy) and 0 <= accuracy <= 1 and finite(n) and n >= 1):
        return None
    return {**result, "interval": wilson(accuracy * n, int(n))}


def spent(probe: Row, metrics: Rows, swa: Row) -> list[tuple[str, float]]:
    """Where the time went, in order: seconds by what they were spent on, as far as that was measured."""
    parts = {name: value for name, value in (probe.get("seconds") or {}).items() if finite(value)}
    found, at = [(PARTS.get(name, name), value) for name, value in parts.items()], 0.0
    if finite(elapsed := probe.get("elapsed")):
        what = "reading the pack, building the network" if parts else "start, and the linear probe"
        found.insert(0, (what, elapsed - sum(parts.values())))
        at = elapsed
    rows = [row for row in metrics if finite(row.get("seconds")) and finite(row.get("elapsed"))]
    if rows:
        waits = [row["seconds"] * row["waiting"] for row in rows if finite(row.get("waiting"))]
        trained = sum(row["seconds"] for row in rows)
        between = "validation and checkpoints, epoch by epoch" + (", and the start" if not at else "")
        found += [("training", trained - sum(waits)), ("training: waiting for data", sum(waits))]
        found.append((between, rows[-1]["elapsed"] - at - trained))
        at = rows[-1]["elapsed"]
    if finite(end := (swa.get("after") or {}).get("elapsed")):
        found.append(("averaging, and its validation", end - at))
    return [(name, max(0.0, seconds)) for name, seconds in found]
