"""The run folder: where train, eval and explain meet. Its names, and what its files look like.

Before it: train writes it. After it: eval and explain read the network from it, `report` reads everything.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import nn

from greyhound.cache.errors import UserError, one_line
from greyhound.cache.files import replacing, unwritable
from greyhound.model import checkpoint, distributed
from greyhound.model.network import WeightsError, build

RECIPE: Final = "recipe.json"
VERSIONS: Final = "versions.json"
PACK: Final = "pack.json"
METRICS: Final[Literal["metrics.jsonl"]] = "metrics.jsonl"
TIMES: Final[Literal["times.jsonl"]] = "times.jsonl"
STEPS: Final[Literal["steps.jsonl"]] = "steps.jsonl"
PROBE: Final = "probe.json"
TRACKING: Final = "tracking.json"
SWA: Final = "swa.json"
SWEEP: Final = "sweep.json"
EVALUATION: Final = "eval.json"
VALIDATION: Final = "eval-val.json"
"""What stands for it where the pack has no test images."""
MISTAKES: Final = "mistakes.json"
CALIBRATION: Final = "calibration.json"
NEIGHBOURS: Final = "neighbours.npz"
SALIENCY: Final = "saliency.json"
DIVERGED: Final = "diverged.json"
DIVERGED_PICTURE: Final = "diverged.png"
CORRUPT: Final = "corrupt.json"
FIND_LR: Final = "find-lr.json"
FIND_LR_PICTURE: Final = "find-lr.png"
FOLDS: Final = "folds.json"
LOCK: Final = ".lock"

Rows: TypeAlias = Literal["metrics.jsonl", "times.jsonl", "steps.jsonl"]
"""The files of rows: an epoch each, or some steps."""
CLOCKED: Final = ("images_per_second", "waiting", "seconds", "elapsed")
"""What of an epoch's row depends on the clock, and stands in times.jsonl."""

_NUMBER: Final = (int, float)
_RESULT: Final = {"valid_loss": _NUMBER, "accuracy": _NUMBER, "n": int, "elapsed": _NUMBER}
_SINGLE: Final = {"n": int, "accuracy": _NUMBER, "interval": [_NUMBER]}
_SCORE: Final = _SINGLE | {"ensemble_accuracy": _NUMBER, "ensemble_interval": [_NUMBER]}
_CLASS: Final = _SCORE | {"name": str, "precision": _NUMBER, "ensemble_precision": _NUMBER}
_ORIGIN: Final = {"asked": str, "checkpoint": str, "after": str, "weights": str}
_FIT: Final = {"ece": _NUMBER, "nll": _NUMBER, "bins": [[_NUMBER]]}
_PAIR: Final = {"true": str, "predicted": str}
_IMAGE: Final = _PAIR | {"path": str, "probability": _NUMBER, "loss": _NUMBER, "thumbnail": str}
_MISTAKES: Final = {"images": [_IMAGE], "pairs": [_PAIR | {"images": [_IMAGE]}]}
_CORRUPT_ROW: Final = {"row": int, "path": str, "replacement": int}
SCHEMAS: Final[dict[str, Any]] = {
    RECIPE: {"name": str, "network": str, "note": str},
    VERSIONS: {"*": str},
    PACK: {
        "path": str,
        "beside": str,
        "digest": str,
        "classes": [str],
        "splits": {"*": int},
        "split_by": str,
        "notes": [str],
        "excluded": {
            "reasons": {"*": int},
            "images": [{"path": str, "reason": str, "detail": str, "thumbnail": str}],
        },
        "transcoded": [{"path": str, "reason": str}],
        "relabelled": [{"path": str, "from": str, "to": str}],
        "lost": [str],
        "background": str,
    },
    CORRUPT: {"replaced": [_CORRUPT_ROW], "left_out": [_CORRUPT_ROW]},
    METRICS: [_RESULT | {"epoch": int, "bad_epochs": int, "train_loss": _NUMBER, "weights_changed": _NUMBER}],
    TIMES: [{"epoch": int, "seconds": _NUMBER, "elapsed": _NUMBER}],
    STEPS: [{"epoch": int, "images": int, "train_loss": _NUMBER, "learning_rate": _NUMBER}],
    PROBE: _RESULT | {"images": int, "seconds": {"*": _NUMBER}},
    SWA: {"before": _RESULT, "after": _RESULT},
    TRACKING: {"*": {"id": str, "where": str, "epoch": _NUMBER, "step": int, "logged": {"*": str}}},
    CALIBRATION: [{"weights": str, "crops": int, "temperature": _NUMBER, "images": int, "why": str}],
    SWEEP: {
        "fields": [str],
        "pack": str,
        "trials": [{"parameters": {"*": str}, "state": str, "value": _NUMBER, "why": str, "after": str}],
    },
    FIND_LR: {"of": {"pack": str}},
    SALIENCY: _ORIGIN
    | {
        "methods": {
            "*": {
                "compared": {"*": int},
                "random_head": _NUMBER,
                "random_weights": _NUMBER,
                "pointing": {"n": int, "accuracy": _NUMBER, "interval": [_NUMBER]},
            }
        },
        "split": str,
        "data": str,
        "boxes": {"chance": _NUMBER, "middle": _NUMBER},
        "images": [{"path": str}],
    },
    MISTAKES: _MISTAKES | {"weights": str, "crops": int, "seed": int},
    DIVERGED: {"epoch": int, "images": int, "learning_rate": _NUMBER, "paths": [str]},
    EVALUATION: _ORIGIN
    | _SCORE
    | {
        "crops": int,
        "predictions_sha256": str,
        "classes_tested": int,
        "balanced_accuracy": _NUMBER,
        "macro_f1": _NUMBER,
        "ensemble_balanced_accuracy": _NUMBER,
        "ensemble_macro_f1": _NUMBER,
        "calibration": {"temperature": _NUMBER, "images": int, "why": str, "before": _FIT, "after": _FIT},
        "classes": [_CLASS],
        "confusion": [[int]],
        "confusion_pairs": [[int]],
    },
}
"""What the page relies on where it is there at all; whatever else the files hold is welcome."""
_WORDS: Final = {dict: "an object", list: "a list", str: "text", int: "a whole number", _NUMBER: "a number"}


def first_error(name: str, content: Any) -> str | None:
    """What is wrong with the content of a file of the run folder; None if nothing, or not known here."""
    beside = name.startswith("eval-") and name.endswith(".json")  # evaluations of other images
    shape = SCHEMAS.get(EVALUATION if beside else name)
    return None if shape is None else next(violations(content, shape, name.partition(".")[0]), None)


def violations(content: Any, shape: Any, place: str) -> Iterator[str]:
    """Where `content` is not of `shape`: known keys ("*": any key), a list of one shape, or a type.

    A key may be missing, and a value may be null where nothing is nested in it.
    """
    expected = type(shape) if isinstance(shape, dict | list) else shape
    if not isinstance(content, expected) or isinstance(content, bool):
        if content is not None or isinstance(shape, dict | list):
            yield f"{place} is {_brief(content)}; expected {_WORDS[expected]}"
    elif isinstance(shape, dict):
        known = {key: shape.get(key, shape.get("*")) for key in content}
        for key in (key for key in known if known[key] is not None and content[key] is not None):
            yield from violations(content[key], known[key], f"{place}.{_brief(key)}")
    elif isinstance(shape, list):
        for index, item in enumerate(content):
            yield from violations(item, shape[0], f"{place}[{index}]")


def _brief(value: object) -> str:
    """A value in an error message: as JSON, on one line, not too long."""
    text = value if isinstance(value, str) and value.isidentifier() else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


ADDED: Final = {"patience": 0, "max_grad_norm": 0.0}
ADDED_TO_AUGMENT: Final = {"crop_scale": None, "randaugment": 0, "magnitude": 9, "mixup": 0.0, "cutmix": 0.0}
"""Fields that a recipe of an earlier version lacks, as they were then: off."""

LAST: Final = "last.ckpt"
BEST: Final = "best.ckpt"
AVERAGED: Final = "swa.ckpt"

THREADS: Final = "torch_threads"
"""In versions.json, of one process on a CPU: torch's threads, which decide the last bits of a sum."""

CheckpointName = Literal["auto", "swa", "best", "last"]

_NEEDED: Final = {
    RECIPE: ("name", "network", "precision", "augment"),
    PACK: ("path", "beside", "digest", "classes", "background"),
}
_FILES: Final = {"swa": AVERAGED, "best": BEST, "last": LAST}
_PACKAGES: Final = (
    "greyhound",
    "torch",
    "timm",
    "opencv-python-headless",
    "simplejpeg",
    "numpy",
    "pillow",
    "pyarrow",
)
_DALI: Final = "nvidia-dali-cuda"
"""How the name of every build of DALI begins; one is for one CUDA version."""


class RunError(UserError):
    """The run folder is not what was expected; the message is one line for the user."""


class RecipeError(RunError):
    """The recipe cannot be trained on this pack and this machine; another one can."""


@dataclass(frozen=True)
class Run:
    """One run folder."""

    folder: Path

    def inside(self) -> list[Path]:
        """The run folders right below this one, where it is none itself."""
        return (
            []
            if (self.folder / RECIPE).exists()
            else sorted(p.parent for p in self.folder.glob(f"*/{RECIPE}"))
        )

    def read(self, name: str) -> Any:
        """The JSON content of one file. Raises RunError."""
        path, todo = self.folder / name, "train again into another folder"
        try:
            content = read_checked(path, todo)
        except (FileNotFoundError, NotADirectoryError):
            if several := self.inside():
                folders = f"{several[0]}" + f" and {len(several) - 1} more" * (len(several) > 1)
                raise RunError(f"{self.folder} is a folder of runs, {folders}; name one of them") from None
            there = f"has no {name}" if self.folder.is_dir() else "is no folder"
            raise RunError(
                f"{self.folder} {there}; expected a run folder, as made by: "
                "greyhound train fast --pack PACK --out RUN"
            ) from None
        if missing := [key for key in _NEEDED.get(name, ()) if content.get(key) is None]:
            raise RunError(f"{path}: no {missing[0]}; {todo}")
        return content

    def refuse_read_only(self) -> None:
        """Refuse a folder that no result can be written to, before the work for it. Raises RunError."""
        if self.folder.is_dir() and not os.access(self.folder, os.W_OK, effective_ids=True):
            found = f"the result goes into {self.folder}, which may not be written to"
            raise RunError(f"{found}; make it writable, or copy it")

    def write(self, name: str, content: Any) -> None:
        """Write one JSON file, whole or not at all."""
        self.write_text(name, json.dumps(content, indent=1) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write one text file, whole or not at all; on rank 0 alone. Raises RunError where it cannot."""
        if not distributed.is_main():
            return
        try:
            with replacing(self.folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except OSError as error:
            raise RunError(unwritable(self.folder / name, error)) from None

    def rows(self, name: Rows) -> list[dict[str, Any]]:
        """One row an epoch: what it came to, or how long it took; or a row for some steps. Raises RunError.

        Of steps: images done in their epoch after them, the mean loss over their images, the last rate.
        """
        path = self.folder / name
        return read_checked(path, "put back the file that train wrote") if path.exists() else []

    def write_rows(self, name: Rows, rows: list[dict[str, Any]]) -> None:
        """Replace the rows of all epochs."""
        self.write_text(name, "".join(json.dumps(row) + "\n" for row in rows))

    def write_steps(self, epoch: int, rows: list[dict[str, Any]]) -> None:
        """Replace the rows of the steps of an epoch, the last one so far."""
        self.write_rows(STEPS, [*(row for row in self.rows(STEPS) if row.get("epoch", 0) < epoch), *rows])

    def add_epoch(self, row: dict[str, Any]) -> None:
        """Add an epoch's row. What the clock says goes into a file of its own: metrics.jsonl is the same for
        every run of a recipe, resumed or not.
        """
        timed = {key: value for key, value in row.items() if key in CLOCKED or key == "epoch"}
        result = {key: value for key, value in row.items() if key not in CLOCKED}
        self.write_rows(TIMES, [*self.rows(TIMES), timed])
        self.write_rows(METRICS, [*self.rows(METRICS), result])

    def save(self, name: str, content: dict[str, Any]) -> None:
        """Write one checkpoint, whole or not at all; on rank 0 alone. Raises CheckpointError."""
        if distributed.is_main():
            checkpoint.save(self.folder / name, content)

    def load(self, name: CheckpointName) -> tuple[str, dict[str, Any]]:
        """A checkpoint's name and content; "auto" takes the better of swa and best on the validation split.

        Raises RunError where there is none, CheckpointError where it is corrupt.
        """
        wanted = ("swa", "best", "last") if name == "auto" else (name,)
        there = [name for name in wanted if (self.folder / _FILES[name]).exists()]
        if not there:
            others = [other for other, file in _FILES.items() if (self.folder / file).exists()]
            todo = f"wait for its training, or go on: greyhound train --resume --out {self.folder}"
            todo = f"it has {' and '.join(others)}" if others else todo
            raise RunError(f"{self.folder} has no checkpoint {' or '.join(wanted)}; {todo}")
        scored = [name for name in there if name != "last"] or there
        loaded = {name: checkpoint.load(self.folder / _FILES[name]) for name in scored}
        best = max(loaded, key=lambda name: score_of(loaded[name]))  # a tie goes to the average
        return best, loaded[best]

    def weights_id(self, name: str) -> str:
        """See `checkpoint.weights_id`; of "swa", "best" or "last"."""
        return checkpoint.weights_id(self.folder / _FILES[name]) if name in _FILES else ""

    def network(self, name: CheckpointName, device: torch.device) -> tuple[dict[str, Any], nn.Module]:
        """The trained network on `device`, in evaluation mode; which checkpoint, after what, `weights_id`."""
        recipe, classes = self.read(RECIPE), self.read(PACK)["classes"]
        chosen, content = self.load(name)
        try:
            network = build(recipe["network"], len(classes), weights="none", grid=grid_of(content))
        except WeightsError as error:
            raise RunError(f"{self.folder / RECIPE}: {error}") from None
        load_network(network, content, self.folder / _FILES[chosen])
        origin = {"asked": name, "checkpoint": chosen, "after": str(content.get("after", "the last step"))}
        origin["weights"] = self.weights_id(chosen)
        return origin, network.to(device).eval()


def read_checked(path: Path, remedy: str) -> Any:
    """The content of a JSON file, or of each line of a .jsonl, as `SCHEMAS` has it; of a recipe, all fields.

    remedy: what to do about a corrupt one, for the message. Raises RunError, and FileNotFoundError or
    NotADirectoryError where it is not there.
    """
    content: Any
    lines = path.suffix == ".jsonl"
    try:
        if path.exists() and not path.is_file():  # a pipe would wait for ever
            raise OSError("no regular file")
        text = path.read_text(encoding="utf-8")
        content = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except PermissionError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); make it readable") from None
    except (OSError, ValueError, RecursionError) as error:
        found, expected = one_line(error), "one JSON object a line" if lines else "JSON"
        raise RunError(f"{path} cannot be read ({found}); expected {expected}; {remedy}") from None
    if fault := first_error(path.name, content):
        raise RunError(f"{path}: {fault}; {remedy}")
    return completed(content) if path.name == RECIPE else content


def completed(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe as a run folder holds it, with the fields that came later, each of which is off."""
    augment = recipe.get("augment")
    inside = {"augment": {**ADDED_TO_AUGMENT, **augment}} if isinstance(augment, dict) else {}
    return {**ADDED, **recipe, **inside}


def score_of(content: dict[str, Any]) -> float:
    """What a checkpoint says of its validation, the higher the better; -inf where that is no number."""
    score = content.get("score")
    return score if isinstance(score, float) and not math.isnan(score) else -math.inf


def grid_of(content: dict[str, Any]) -> int:
    """The grid of a checkpoint's head, see `network.build`."""
    grid = content.get("grid", 0)
    return grid if grid in range(8) else 0  # as a recipe's probe_grids


def load_network(network: nn.Module, content: dict[str, Any], path: Path) -> None:
    """Give the network a checkpoint's weights. path: the checkpoint, for the message. Raises RunError."""
    try:
        network.load_state_dict(content["network"])
    except (RuntimeError, KeyError, TypeError, AttributeError):
        found = f"{path} is of another network than {RECIPE} and {PACK} beside it say"
        todo = "put the three back that belong together, or train again into another folder"
        raise RunError(f"{found}; {todo}") from None


def versions(**more: str) -> dict[str, str]:
    """What a result depends on: packages, GPU, date; and what `more` says, such as machine and engine."""
    found = {"python": platform.python_version()}
    builds = sorted({each.name for each in metadata.distributions() if each.name.startswith(_DALI)})
    for name in (*_PACKAGES, *builds):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return found | {"gpu": gpu, "date": date} | more
