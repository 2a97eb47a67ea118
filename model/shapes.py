"""What the JSON files of a run folder look like: checked wherever one is read, since people edit them.

Before it: train, eval and explain write the files. After it: `run` and `report` read them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, Literal

RECIPE: Final = "recipe.json"
VERSIONS: Final = "versions.json"
PACK: Final = "pack.json"
METRICS: Final[Literal["metrics.jsonl"]] = "metrics.jsonl"
TIMES: Final[Literal["times.jsonl"]] = "times.jsonl"
HEAD: Final = "head.json"
INTERPOLATION: Final = "interpolation.json"
SWA: Final = "swa.json"
EVALUATION: Final = "eval.json"
DIVERGED: Final = "diverged.json"
DIVERGED_PICTURE: Final = "diverged.png"
DAMAGED: Final = "damaged.json"
LOCK: Final = ".lock"

CLOCKED: Final = ("images_per_second", "waiting", "seconds", "elapsed")
"""What of an epoch's row depends on the clock, and stands in times.jsonl."""

_NUMBER: Final = (int, float)
_RESULT: Final = {"valid_loss": _NUMBER, "accuracy": _NUMBER, "n": int, "elapsed": _NUMBER}
_CLASS: Final = {
    "name": str,
    "n": int,
    "accuracy": _NUMBER,
    "interval": [_NUMBER],
    "ensemble_accuracy": _NUMBER,
    "ensemble_interval": [_NUMBER],
}
_DAMAGE: Final = {"row": int, "path": str, "replacement": int}
SHAPES: Final[dict[str, Any]] = {
    RECIPE: {"name": str, "network": str, "note": str},
    VERSIONS: {"*": str},
    PACK: {
        "path": str,
        "digest": str,
        "classes": [str],
        "splits": {"*": int},
        "excluded": {
            "reasons": {"*": int},
            "images": [{"path": str, "reason": str, "detail": str, "thumbnail": str}],
        },
        "transcoded": [{"path": str, "reason": str}],
        "relabelled": [{"path": str, "from": str, "to": str}],
        "unmatched": int,
        "lost": [str],
    },
    DAMAGED: {"replaced": [_DAMAGE], "left_out": [_DAMAGE]},
    METRICS: [_RESULT | {"epoch": int, "train_loss": _NUMBER, "weights_changed": _NUMBER}],
    TIMES: [{"epoch": int, "seconds": _NUMBER, "elapsed": _NUMBER}],
    HEAD: _RESULT | {"images": int, "first": _RESULT | {"images": int}},
    INTERPOLATION: [_RESULT | {"share": _NUMBER}],
    SWA: {"before": _RESULT, "after": _RESULT},
    EVALUATION: {
        "n": int,
        "crops": int,
        "accuracy": _NUMBER,
        "interval": [_NUMBER],
        "ensemble_accuracy": _NUMBER,
        "ensemble_interval": [_NUMBER],
        "classes": [_CLASS],
        "confusion": [[int]],
        "confusion_pairs": [[int]],
    },
}
"""What the page relies on where it is there at all; whatever else the files hold is welcome."""
_WORDS: Final = {dict: "an object", list: "a list", str: "text", int: "a whole number", _NUMBER: "a number"}


def first_fault(name: str, content: Any) -> str | None:
    """What is wrong with the content of a file of the run folder, or None. Of a name not known here nothing is asked."""
    beside = name.startswith("eval-") and name.endswith(".json")  # evaluations of other images
    shape = SHAPES.get(EVALUATION if beside else name)
    return None if shape is None else next(faults(content, shape, name.partition(".")[0]), None)


def faults(content: Any, shape: Any, place: str) -> Iterator[str]:
    """Where `content` is not of `shape`: an object's known keys ("*": any key), a list of one shape, or a type.

    A key may be missing, and a value may be null where nothing is nested in it.
    """
    expected = type(shape) if isinstance(shape, dict | list) else shape
    if not isinstance(content, expected) or isinstance(content, bool):
        if content is not None or isinstance(shape, dict | list):
            yield f"{place} is {_brief(content)}; expected {_WORDS[expected]}"
    elif isinstance(shape, dict):
        known = {key: shape.get(key, shape.get("*")) for key in content}
        for key in (key for key in known if known[key] is not None and content[key] is not None):
            yield from faults(content[key], known[key], f"{place}.{_brief(key)}")
    elif isinstance(shape, list):
        for index, item in enumerate(content):
            yield from faults(item, shape[0], f"{place}[{index}]")


def _brief(value: object) -> str:
    """A value in an error message: as JSON, on one line, not too long."""
    text = value if isinstance(value, str) and value.isidentifier() else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
