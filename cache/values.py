"""JSON back into frozen dataclasses: what a run folder says becomes the value that it was written from.

Before it: a file that somebody may have edited. After it: train resumes with the run's recipe, eval and explain with
its augmentation. pydantic does the checking.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

Value = TypeVar("Value")


class ValueFormatError(ValueError):
    """The content is not of the type that was expected; the message is one line for the user."""


def from_json(kind: type[Value], content: Any, source: str, partly: bool = False) -> Value:
    """`content`, parsed JSON, as a `kind`, a dataclass with annotated fields. source: where it is from, for the message.

    partly: more fields than those of `kind` are welcome, and its defaults stand in for missing ones. Raises
    ValueFormatError.
    """
    value = _validated(kind, content, source)
    if not partly:
        for place in _other_keys(content, TypeAdapter(kind).dump_python(value, mode="json")):
            raise ValueFormatError(f"{source}: {place}, as this version of Greyhound writes it")
    return value


def _other_keys(found: Any, expected: Any, place: str = "") -> Iterator[str]:
    """Every field that one side has and the other has not, in words."""
    if isinstance(expected, dict) and isinstance(found, dict):
        yield from (f"no {place}{key}; expected one" for key in expected.keys() - found.keys())
        yield from (f"unknown {place}{key}; expected none" for key in found.keys() - expected.keys())
        for key in expected.keys() & found.keys():
            yield from _other_keys(found[key], expected[key], f"{place}{key}.")
    if isinstance(expected, list) and isinstance(found, list):
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            yield from _other_keys(one, other, f"{place}{index}.")


def _validated(kind: type[Value], content: Any, source: str) -> Value:
    try:
        return TypeAdapter(kind).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        what = f"{first['msg'].removeprefix('Value error, ')}, not {first['input']!r}"
        raise ValueFormatError(f"{source}: {place + ': ' if place else ''}{what[:200]}") from None
