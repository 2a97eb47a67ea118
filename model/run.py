"""The run folder: where train, eval and explain meet.

Before it: train writes it. After it: eval and explain read the network from it, `report` reads everything. The names
and shapes of its JSON files are in `shapes`.
"""

from __future__ import annotations

import json
import math
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import nn

from greyhound.cache.errors import UserError
from greyhound.cache.files import replacing
from greyhound.model import checkpoint
from greyhound.model.network import WeightsError, build
from greyhound.model.shapes import CLOCKED, METRICS, PACK, RECIPE, TIMES, first_fault

LAST: Final = "last.ckpt"
BEST: Final = "best.ckpt"
AVERAGED: Final = "swa.ckpt"
SOLVED: Final = "head.ckpt"
"""The network with its head solved and nothing trained, where training later looks back at it."""
TARGETS: Final = "targets.ckpt"
"""The soft targets, where the recipe has them."""

THREADS: Final = "torch_threads"
"""In versions.json, of one process on a CPU: torch's threads, which decide how it splits a sum and so its last bits."""

CheckpointName = Literal["auto", "swa", "best", "last"]

_NEEDED: Final = {RECIPE: ("name", "network", "precision", "augment"), PACK: ("path", "digest", "classes")}
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


@dataclass(frozen=True)
class Run:
    """One run folder."""

    folder: Path

    def read(self, name: str) -> Any:
        """The JSON content of one file. Raises RunError."""
        path = self.folder / name
        try:
            content = json.loads(read_text(path))
        except (FileNotFoundError, NotADirectoryError):
            found = f"has no {name}" if self.folder.is_dir() else "is no folder"
            raise RunError(
                f"{self.folder} {found}; expected a run folder, as made by: "
                "greyhound train fast --pack PACK --out RUN"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise RunError(f"{path} cannot be read ({reason}); train again into another folder") from None
        fault = first_fault(name, content)
        missing = [key for key in _NEEDED.get(name, ()) if fault is None and content.get(key) is None]
        if fault or missing:
            raise RunError(f"{path}: {fault or f'no {missing[0]}'}; train again into another folder")
        return content

    def write(self, name: str, content: Any) -> None:
        """Write one JSON file, whole or not at all."""
        self.write_text(name, json.dumps(content, indent=1) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write one text file, whole or not at all. Raises RunError where it cannot be written."""
        try:
            with replacing(self.folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except OSError as error:
            reason = error.strerror or error
            raise RunError(
                f"{self.folder / name} cannot be written ({reason}); name another place, or make room in this one"
            ) from None

    def rows(self, name: Literal["metrics.jsonl", "times.jsonl"]) -> list[dict[str, Any]]:
        """One row an epoch, in their order: what it came to, or how long it took. Raises RunError."""
        path = self.folder / name
        try:
            lines = read_text(path).splitlines() if path.exists() else []
            rows = [json.loads(line) for line in lines]
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{path} cannot be read ({error}); expected one JSON object a line") from None
        fault = first_fault(name, rows)
        if fault:
            raise RunError(f"{path}: {fault}; put back the file that train wrote")
        return rows

    def write_rows(self, name: Literal["metrics.jsonl", "times.jsonl"], rows: list[dict[str, Any]]) -> None:
        """Replace the rows of all epochs."""
        self.write_text(name, "".join(json.dumps(row) + "\n" for row in rows))

    def add_epoch(self, row: dict[str, Any]) -> None:
        """Add an epoch's row. What the clock says goes into a file of its own: metrics.jsonl is the same for every
        run of a recipe, resumed or not.
        """
        timed = {key: value for key, value in row.items() if key in CLOCKED or key == "epoch"}
        result = {key: value for key, value in row.items() if key not in CLOCKED}
        self.write_rows(TIMES, [*self.rows(TIMES), timed])
        self.write_rows(METRICS, [*self.rows(METRICS), result])

    def load(self, name: CheckpointName) -> tuple[str, dict[str, Any]]:
        """A checkpoint's name and content; "auto" takes the better of swa and best on the validation split.

        Raises RunError where there is none, CheckpointError where it is damaged.
        """
        wanted = ("swa", "best", "last") if name == "auto" else (name,)
        there = [name for name in wanted if (self.folder / _FILES[name]).exists()]
        if not there:
            raise RunError(
                f"{self.folder} has no checkpoint {' or '.join(wanted)}; train first: greyhound train"
            )
        loaded = {name: checkpoint.load(self.folder / _FILES[name]) for name in there[:2]}
        best = max(loaded, key=lambda name: score_of(loaded[name]))  # a tie goes to the average
        return best, loaded[best]

    def network(self, name: CheckpointName, device: torch.device) -> tuple[dict[str, Any], nn.Module]:
        """The trained network on `device`, in evaluation mode, and where it is from: `checkpoint`, and `after` what."""
        recipe, classes = self.read(RECIPE), self.read(PACK)["classes"]
        chosen, content = self.load(name)
        weights = content.get("average") or content  # where there is an average, it is what was validated
        try:
            network = build(recipe["network"], len(classes), weights="none")
        except WeightsError as error:
            raise RunError(f"{self.folder / RECIPE}: {error}") from None
        load_network(network, weights, self.folder / _FILES[chosen])
        origin = {"checkpoint": chosen, "after": str(content.get("after", "the last step"))}
        return origin, network.to(device).eval()


def read_text(path: Path) -> str:
    """The text of a file of a run folder. Raises OSError, also for a pipe, which to open would wait for ever; ValueError."""
    if path.exists() and not path.is_file():
        raise OSError("no regular file")
    return path.read_text(encoding="utf-8")


def score_of(content: dict[str, Any]) -> float:
    """What a checkpoint says of its validation, the higher the better; -inf where that is no number."""
    score = content.get("score")
    return score if isinstance(score, float) and not math.isnan(score) else -math.inf


def load_network(network: nn.Module, content: dict[str, Any], path: Path) -> None:
    """Give the network a checkpoint's weights. path: the checkpoint, for the message. Raises RunError."""
    try:
        network.load_state_dict(content["network"])
    except (RuntimeError, KeyError, TypeError, AttributeError):
        raise RunError(
            f"{path} is of another network than {RECIPE} and {PACK} beside it say; put the three back that belong "
            "together, or train again into another folder"
        ) from None


def versions(**more: str) -> dict[str, str]:
    """What a result depends on: packages, GPU, date; and whatever `more` is given, as the machine and the engine."""
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
