"""Which images are left out, and why, as values: findings, exclusions, decisions.

Before it: the survey's excluded.csv, and the decisions.csv that its page saves. After it: `pack` replays
them. Sentences are for people: no code reads them. Decisions are keyed by content, so that a renamed file
keeps its decision; the path tells equal copies apart.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Literal, TypeAlias, get_args

from greyhound.cache.scan import ImageInfo
from greyhound.cache.store import Excluded, PackError

# fmt: off
Finding = Literal[
    "undecodable", "truncated", "bomb", "grayscale", "exact-duplicate", "near-duplicate", "label-issue",
    "odd-size", "dark", "bright", "blurred", "wrong-extension", "transcoded", "transparent", "animated",
    "cmyk",
]
# fmt: on
FINDINGS: Final[tuple[Finding, ...]] = get_args(Finding)
"""In the order in which a person should look at them."""
Choice = Literal["keep", "exclude", "relabel"]
CHOICES: Final[tuple[Choice, ...]] = get_args(Choice)
By = Literal["person", "machine"]
COLUMNS: Final = ("sha256", "path", "class", "decision", "to")
"""Of decisions.csv; beside them it may have the columns reason, by and causes."""


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Why an image is excluded. causes: the findings that exclude it, none if a person did."""

    reason: str
    causes: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Photograph:
    """A file: path relative to the folder, its class folder's name, the hash of its content."""

    path: str
    label: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided about `image`, as it lay then. to: the new class, for relabel. line: where it stands.

    reason: in words, the machine's or the person's. causes: the findings that exclude the image. by: who
    decided; the machine, where a person let its verdict stand.
    """

    image: Photograph
    choice: Choice
    to: str = ""
    line: int = 0
    reason: str = ""
    by: By = "person"
    causes: tuple[Finding, ...] = ()


def judge(
    path: str, info: ImageInfo, exclusion: Exclusion | None, decision: Decision | None, keep_grayscale: bool
) -> Excluded | None:
    """Why an image is left out, or None. A person outranks all but a file that nothing decodes."""
    if exclusion:
        exclusion = _without_grayscale(exclusion, keep_grayscale)
    grey = "" if keep_grayscale or not info.grayscale else f"colourfulness {info.colourfulness:.1f}"
    if decision and decision.choice == "exclude" and decision.by == "machine":
        machine = Exclusion(decision.reason or "excluded by the machine", decision.causes)
        if left := _without_grayscale(machine, keep_grayscale):
            return _by_list(path, left)
        decision = None
    if decision and decision.choice == "exclude":
        listed = exclusion.reason if exclusion else ""
        why = decision.reason or listed or info.problem or (grey and "grayscale")
        return Excluded(path, "excluded by hand", why)
    if exclusion and not decision:
        return _by_list(path, exclusion)
    if info.problem:
        return Excluded(path, info.problem, info.detail)
    return Excluded(path, "grayscale", grey) if grey and not decision else None


def _without_grayscale(exclusion: Exclusion, keep_grayscale: bool) -> Exclusion | None:
    """The exclusion, unless grayscale is its only cause and grayscale images are kept."""
    if not (keep_grayscale and "grayscale" in exclusion.causes):
        return exclusion
    causes = tuple(cause for cause in exclusion.causes if cause != "grayscale")
    return Exclusion(exclusion.reason, causes) if causes else None


def _by_list(path: str, exclusion: Exclusion) -> Excluded:
    """What a pack says of it: the first cause, by which images are counted, or what a person wrote."""
    if not exclusion.causes:
        return Excluded(path, exclusion.reason, "exclusion list")
    return Excluded(path, exclusion.causes[0], exclusion.reason.removeprefix(f"{exclusion.causes[0]}: "))


def read_exclusions(file: Path) -> dict[str, Exclusion]:
    """An exclusion list, path -> why: CSV with the columns path, reason and causes. Raises PackError."""
    with _reading(file, "a CSV with the columns path and reason") as stream:
        reader = csv.DictReader(stream)
        rows, header = list(reader), reader.fieldnames or ()
    if "decision" in header:
        raise PackError(f"{file} is a list of decisions, not of exclusions; give it as --decisions {file}")
    if "verdict" in header:
        raise PackError(f"{file} is a whole survey; give --exclude the excluded.csv that lies beside it")
    if not {"path", "reason"} <= set(header):
        raise PackError(f"{file} has the columns {', '.join(header)}; expected path and reason")
    found = {}
    for line, row in enumerate(rows, start=2):
        if not row["path"]:
            raise PackError(f"{file} names no path in row {line}; expected path and reason in every row")
        causes = read_findings(row.get("causes"))
        found[row["path"].replace(os.sep, "/")] = Exclusion(row["reason"] or "excluded by hand", causes)
    return found


def read_findings(text: str | None) -> tuple[Finding, ...]:
    """Findings in one cell, divided by semicolons, in their order there; other words are left out."""
    known: dict[str, Finding] = {name: name for name in FINDINGS}
    return tuple(known[name] for name in (text or "").split(";") if name in known)


def read_decisions(file: Path) -> list[Decision]:
    """decisions.csv, each file at most once. Raises PackError."""
    command = "greyhound survey IMAGES --out DIR makes the page that saves them"
    with _reading(file, f"decisions.csv; {command}") as stream:
        table = csv.DictReader(stream, strict=True)
        names = table.fieldnames or ()
        if missing := [name for name in COLUMNS if name not in names]:
            what = f"has {', '.join(names)[:100] or 'no columns'!r} in its first line"
            hint = "; an exclusion list is given as --exclude" if {"path", "reason"} <= set(names) else ""
            wanted = f"expected decisions.csv with the columns {', '.join(COLUMNS)}{hint}"
            raise PackError(f"{file} {what} and lacks {', '.join(missing)}; {wanted}")
        found = [_decision(row, table.line_num, file) for row in table]
    return _once_each(found, file)


@contextmanager
def _reading(file: Path, expected: str) -> Iterator[IO[str]]:
    """The text of a CSV. Raises PackError where it cannot be read, or the block finds that it is none."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            yield stream
    except OSError as error:
        raise PackError(f"{file} cannot be read ({error.strerror}); expected {expected}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        wanted = expected.removeprefix("a CSV with ")
        raise PackError(f"{file} is no CSV ({error}); expected {wanted}") from None


def check_classes(decisions: Iterable[Decision], classes: Sequence[str]) -> None:
    """Raise PackError for the first decision that relabels to what is none of `classes`."""
    for decision in decisions:
        if decision.choice == "relabel" and decision.to not in classes:
            what = f"relabels {decision.image.path!r} to {decision.to!r}, which is no class folder"
            known = f"{', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''}"
            raise PackError(f"line {decision.line} of the decisions {what}; expected one of {known}")


Key: TypeAlias = Callable[[Photograph], tuple[str, ...]]
# From the narrowest to the widest: of its class, of its path below a class, of its content.
_KEYS: Final[tuple[Key, ...]] = (
    lambda image: (image.label, image.sha256),
    lambda image: (image.path[image.path.find("/") + 1 :], image.sha256),
    lambda image: (image.sha256,),
)


def match(
    decisions: Sequence[Decision], images: Sequence[Photograph]
) -> tuple[dict[str, Decision], list[Decision]]:
    """The decision for each path of `images` that has one, and the decisions that are for none of them.

    A decision is for the file at its path if that has its content. Otherwise it is for the first free file of
    that content in its class; or else of its path below another class folder; or else anywhere, if there is
    one such file and one such decision. A file excluded for its copy is not the last file of its content.
    """
    there = {image.path: image.sha256 for image in images}
    copies = Counter(image.sha256 for image in images)
    at_home = [each for each in decisions if there.get(each.image.path) == each.image.sha256]
    found = {decision.image.path: decision for decision in at_home}
    missing = [decision for decision in decisions if found.get(decision.image.path) is not decision]
    missing = [each for each in missing if copies[each.image.sha256] > 1 or not _is_for_a_copy(each)]
    for key in _KEYS:
        missing = _place(missing, images, found, key)
    placed = {id(decision) for decision in found.values()}
    return found, [decision for decision in decisions if id(decision) not in placed]


def _is_for_a_copy(decision: Decision) -> bool:
    return decision.choice == "exclude" and decision.causes[:1] == ("exact-duplicate",)


def _place(
    decisions: Sequence[Decision], images: Sequence[Photograph], found: dict[str, Decision], key: Key
) -> list[Decision]:
    """Give each decision the first free file with its key; return the others."""
    lone = key is _KEYS[-1]
    free: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for image in sorted(images, key=lambda image: image.path, reverse=True):  # the first one last, for `pop`
        if image.sha256 and image.path not in found:
            free[key(image)].append(image.path)
    claims = Counter(key(decision.image) for decision in decisions)
    missing = []
    for decision in decisions:
        name = key(decision.image)
        if not free[name] or (lone and (claims[name] > 1 or len(free[name]) > 1)):
            missing.append(decision)
        else:
            found[free[name].pop()] = decision
    return missing


def _decision(row: Mapping[str, str | None], line: int, file: Path) -> Decision:
    sha256, path, label, choice, to = (row[name] or "" for name in COLUMNS)
    choices: dict[str, Choice] = {name: name for name in CHOICES}
    deciders: dict[str, By] = {name: name for name in get_args(By)}
    by = row.get("by") or "person"
    if choice not in choices:
        what = f"says {choice!r} in line {line}"
        raise PackError(f"{file} {what}; expected the decision keep, exclude or relabel")
    if choice == "relabel" and not to:
        raise PackError(f"{file} relabels to nothing in line {line}; expected a class in the column to")
    if not path or not re.fullmatch(r"([0-9a-f]{64})?", sha256):
        what = f"the sha256 {sha256[:80]!r}" if path else "no path"
        raise PackError(f"{file} has {what} in line {line}; expected a path and 64 hexadecimal digits")
    if by not in deciders:
        raise PackError(f"{file} has {by[:80]!r} in the column by in line {line}; expected person or machine")
    image, causes = Photograph(path.replace(os.sep, "/"), label, sha256), read_findings(row.get("causes"))
    return Decision(image, choices[choice], to, line, row.get("reason") or "", deciders[by], causes)


def _once_each(decisions: Iterable[Decision], file: Path) -> list[Decision]:
    """Lists that were joined may say a thing twice, but not two things; a person outranks the machine."""
    first: dict[Photograph, Decision] = {}
    for decision in sorted(decisions, key=lambda decision: decision.by == "machine"):
        known = first.setdefault(decision.image, decision)
        if decision.by == "person" and (known.choice, known.to) != (decision.choice, decision.to):
            one, other = (f"{each.choice} in line {each.line}" for each in (known, decision))
            todo = "expected one decision a file: delete one of the two lines"
            raise PackError(f"{file} says {one} and {other} of {decision.image.path!r}; {todo}")
    return sorted(first.values(), key=lambda decision: decision.line)
