"""JSON back into frozen dataclasses: what a run folder says becomes the value that it was written from.

Before it: a file that somebody may have edited. After it: train resumes with the run's recipe, eval and explain with
its augmentation. pydantic does the checking.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

Value = TypeVar("Value")


class ValueFormatError(ValueError):
    """The content is not of the type that was expected; the message is one line for the user."""


def from_json(kind: type[Value], content: Any, source: str) -> Value:
    """`content`, parsed JSON, as a `kind`, a dataclass with annotated fields. source: where it is from, for the message.

    Raises ValueFormatError.
    """
    try:
        return TypeAdapter(kind).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        what = f"{first['msg'].removeprefix('Value error, ')}, not {first['input']!r}"
        raise ValueFormatError(f"{source}: {place + ': ' if place else ''}{what[:200]}") from None
