"""The order of classes, which numbers the labels, and names without their WordNet numbers.

Before it: the classes that a source has. After it: their order in the pack, compared with networks trained
elsewhere.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from greyhound.cache.store import PackError

NATURAL: Final = re.compile(r"(\d+)")
_WHOLE: Final = re.compile(r"\d+")
_FRACTION: Final = re.compile(r"-?\d+\.0")
_WORDNET: Final = re.compile(r"n\d{8}-(.+)")


def short_names(names: Sequence[str]) -> dict[str, str]:
    """n02085620-Chihuahua -> Chihuahua, if all names are such and the short ones differ; else none."""
    short = {name: found[1] for name in names if (found := _WORDNET.fullmatch(name))}
    return short if len({*short.values()}) == len(names) else {}


def class_of(folder: str, classes: Container[str]) -> str:
    """The class that a folder is named as, perhaps with a WordNet number before it; "" for none of them."""
    found = _WORDNET.fullmatch(folder)
    names = [folder, *([found[1]] if found else [])]
    return next((name for name in names if name in classes), "")


def say_alike(names: Iterable[str], what: str) -> list[str]:
    """A sentence for each few that may be one. what: the names are of."""
    alike = defaultdict[str, list[str]](list)
    how = "differ only in case, in blanks, or in how Unicode writes a letter"
    for name in names:
        alike["".join(unicodedata.normalize("NFKC", name).casefold().split())].append(ascii(name))
    several = [few for few in alike.values() if len(few) > 1]
    return [f"the {what} {' and '.join(few)} {how}; they are {len(few)} classes" for few in several]


def say_numbers(names: Sequence[str]) -> list[str]:
    """What to know of classes that are all numbers, in the order that no one asked for."""
    if all(_FRACTION.fullmatch(name) for name in names):
        return [
            f"all classes are numbers such as {names[0]}, as programs write whole ones beside an empty cell"
        ]
    if all(map(_WHOLE.fullmatch, names)) and [*names] != sorted(names, key=_natural):
        few = ", ".join(names[:3])
        return [
            f"classes are numbered by their letters ({few}, ...); --class-order natural takes them by value"
        ]
    return []


def label_order(name: str) -> tuple[str, str]:
    """The key by which classes are sorted unless another order is asked for: without regard to case."""
    return name.casefold(), name


def in_order(names: Sequence[str], wanted: str, short: Mapping[str, str]) -> list[str]:
    """The names in the order that is `wanted`. Raises PackError.

    sorted: by their letters, capitals first, as torchvision, Keras and Hugging Face sort folders. natural:
    numbers by value, without regard to case, as timm does. Any other text is a file that lists them, perhaps
    by their `short_names`.
    """
    if wanted == "sorted":
        return sorted(names)
    if wanted == "natural":
        return sorted(names, key=_natural)
    full = {new: old for old, new in short.items()}
    listed = [full.get(name, name) for name in _read_list(Path(wanted))]
    for what, ones, others in (("lacks", names, listed), ("has", listed, names)):
        known = {*others}
        if strange := [name for name in ones if name not in known]:
            more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
            found = f"{wanted} {what} {strange[0]!r}{more}"
            raise PackError(f"{found}; expected just the {len(names)} classes with images in the source")
    if len(listed) > len(names):
        twice = next(name for name in listed if listed.count(name) > 1)
        raise PackError(f"{wanted} names {twice!r} twice; expected each class once")
    return listed


def _natural(name: str) -> tuple[list[Any], str]:
    """Text and numbers by turns; names that differ only in case by their letters."""
    parts = NATURAL.split(name.lower())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def _read_list(file: Path) -> list[str]:
    """A name a line, a JSON list of names, or a JSON object, name -> index or back. Raises PackError."""
    wanted = (
        "expected sorted, natural, or a file: "
        "a class a line, a JSON list, JSON {name: index}, or {index: name}"
    )
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise PackError(f"--class-order {file} cannot be read ({why}); {wanted}") from None
    if text.lstrip()[:1] not in ("[", "{"):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise PackError(f"{file} is no valid JSON; {wanted}") from None
    if isinstance(content, dict):
        if all(key.isdecimal() and isinstance(name, str) for key, name in content.items()):
            content = {name: int(place) for place, name in content.items()}  # as a network's id2label
        places = {place: name for name, place in content.items() if type(place) is int}
        if sorted(places) != list(range(len(content))):
            raise PackError(f"{file} does not number its {len(content)} classes from 0; {wanted}")
        return [places[place] for place in range(len(places))]
    if not all(isinstance(name, str) for name in content):
        raise PackError(f"{file} lists what is no text; {wanted}")
    return list(content)
