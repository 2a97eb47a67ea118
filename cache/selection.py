"""Which images are left out, and why, as values: findings, exclusions, decisions.

Before it: the survey's excluded.csv, and the decisions.csv that its page saves. After it: `pack` replays
them. Sentences are for people: no code reads them. Decisions are keyed by content, so that a renamed file
keeps its decision; the path tells equal copies apart.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from greyhound.cache.scan import ImageInfo
from greyhound.cache.store import Excluded, PackError
from greyhound.cache.tables import read_table, unique_by_path

# fmt: off
Finding = Literal[
    "undecodable", "truncated", "bomb", "grayscale", "exact-duplicate", "near-duplicate", "label-issue",
    "tinted", "odd-size", "dark", "bright", "blurred", "wrong-extension", "transcoded", "transparent",
    "animated", "cmyk",
]
# fmt: on
FINDINGS: Final[tuple[Finding, ...]] = get_args(Finding)
"""In the order in which a person should look at them."""
Choice = Literal["keep", "exclude", "relabel"]
CHOICES: Final[tuple[Choice, ...]] = get_args(Choice)
By = Literal["person", "machine"]
Grayscale = Literal["auto", "keep", "exclude", "exclude-tinted"]
Duplicates = Literal["exclude", "keep"]
MOST_OF_CLASS: Final = 0.02
"""Share of a class that a rule may take without a person's word; of a class below 50 images nothing."""
MOST_OF_SET: Final = 0.01
"""Share of the whole set. Both are guesses at what harms no training, whatever the set is about."""
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
    path: str,
    info: ImageInfo,
    exclusion: Exclusion | None,
    decision: Decision | None,
    colours: Colours,
    kept: Container[Finding] = (),
) -> Excluded | None:
    """Why an image is left out, or None. A person outranks all but a file that nothing decodes.

    kept: findings that exclude nothing, whatever a list says.
    """
    if exclusion:
        exclusion = _without(exclusion, kept)
    hue = colours.excludes(info)
    if decision and decision.choice == "exclude" and decision.by == "machine":
        machine = Exclusion(decision.reason or "excluded by the machine", decision.causes)
        if left := _without(machine, kept):
            return _by_list(path, left)
        decision = None
    if decision and decision.choice == "exclude":
        listed = exclusion.reason if exclusion else ""
        why = decision.reason or listed or info.problem or hue or ""
        return Excluded(path, "excluded by hand", why)
    if exclusion and not decision:
        return _by_list(path, exclusion)
    if info.problem:
        return Excluded(path, info.problem, info.detail)
    return Excluded(path, hue, describe_colours(info)) if hue and not decision else None


_COLOURS: Final[dict[Grayscale, tuple[Finding, ...]]] = {
    "keep": (), "exclude": ("grayscale",), "exclude-tinted": ("grayscale", "tinted"),
}  # fmt: skip


@dataclass(frozen=True)
class Colours:
    """What becomes of images that have no colour, or look tinted. note: why the rule takes none, or ""."""

    excluded: tuple[Finding, ...] = ()
    note: str = ""

    def excludes(self, info: ImageInfo) -> Finding | None:
        """The finding for which it is left out."""
        hue: Finding = "grayscale" if info.grayscale else "tinted"
        return hue if (info.grayscale or info.tinted) and hue in self.excluded else None


def choose_colours(grayscale: Grayscale, infos: Iterable[ImageInfo], labels: Iterable[str]) -> Colours:
    """What `--grayscale` leaves out of these images. labels: names of their classes, "" for none.

    auto: what has no colour, where few images of every class are so. Otherwise the set is none of colour
    photographs, or a class is told by it, and nothing is taken.
    """
    if grayscale != "auto":
        return Colours(_COLOURS[grayscale])
    usable, grey = Counter[str](), Counter[str]()
    for info, label in zip(infos, labels, strict=True):
        usable[label] += not info.problem
        grey[label] += not info.problem and info.grayscale
    if usable.total() > usable[""]:  # what lies beside the class folders is not packed
        del usable[""], grey[""]
    found, images = grey.total(), usable.total()
    name = max(grey, key=lambda name: grey[name] / max(1, usable[name]), default="")
    much = ""
    if grey[name] > MOST_OF_CLASS * usable[name]:
        much = f"{grey[name]} of the {usable[name]} images of class {name}, more than {MOST_OF_CLASS:.0%}"
    if found > MOST_OF_SET * images:
        much = f"more than {MOST_OF_SET:.0%} of {images} images"
    if not much:
        return Colours(("grayscale",))
    grown = f"{found} images have" if found > 1 else "1 image has"
    said = f"{grown} no colour, and none is left out: that would take {much}"
    return Colours(note=f"{said}; --grayscale exclude leaves them out")


def describe_colours(info: ImageInfo) -> str:
    """Why a picture is called grayscale, or tinted, in words for a person."""
    return "it has no colour at all" if info.grayscale else "its colours are those of one tint"


def find_copies(originals: NDArray[np.int64], labels: Sequence[str]) -> dict[int, tuple[int, int]]:
    """For each file that has equal ones, the copy to compare it with, and their number if it is the first.

    originals: int64 `[n]`, the first file with the same bytes, or oneself. labels: names, "" for none.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for index in np.flatnonzero(np.bincount(originals)[originals] > 1).tolist():
        groups[int(originals[index])].append(index)
    found: dict[int, tuple[int, int]] = {}
    for members in groups.values():
        members.sort(key=lambda index: not labels[index])
        first = members[0]
        stranger = next((index for index in members if differ(labels[index], labels[first])), None)
        found |= dict.fromkeys(members, (first, 0))
        found[first] = (members[1], len(members))
        if stranger is not None:
            found |= {index: (stranger, 0) for index in members if labels[index] == labels[first]}
    return found


def differ(one: str, other: str) -> bool:
    """Whether two labels contradict each other."""
    return one != other and bool(one) and bool(other)


def describe_copy(path: str, label: str, of_label: str, copies: int) -> tuple[str, bool]:
    """Of a copy of `path`: what to say of it, and whether it is left out. copies: as in `find_copies`."""
    if differ(label, of_label):
        return f"the same file as {path}, which has another label: at least one of them is wrong", True
    if copies:
        return f"the first of {copies} copies, which is kept", False
    return f"the same file as {path}", True


def _without(exclusion: Exclusion, kept: Container[Finding]) -> Exclusion | None:
    """The exclusion, unless all of its causes are findings that exclude nothing."""
    causes = tuple(cause for cause in exclusion.causes if cause not in kept)
    return Exclusion(exclusion.reason, causes) if causes or not exclusion.causes else None


def _by_list(path: str, exclusion: Exclusion) -> Excluded:
    """What a pack says of it: the first cause, by which images are counted, or what a person wrote."""
    if not exclusion.causes:
        return Excluded(path, exclusion.reason, "exclusion list")
    return Excluded(path, exclusion.causes[0], exclusion.reason.removeprefix(f"{exclusion.causes[0]}: "))


def read_exclusions(file: Path) -> dict[str, Exclusion]:
    """An exclusion list, path -> why: CSV with the columns path, reason and causes. Raises PackError."""

    def check(header: Sequence[str]) -> None:
        if "decision" in header:
            raise PackError(
                f"{file} is a list of decisions, not of exclusions; give it as --decisions {file}"
            )
        if "verdict" in header:
            raise PackError(f"{file} is a whole survey; give --exclude the excluded.csv that lies beside it")
        if not {"path", "reason"} <= set(header):
            raise PackError(f"{file} has the columns {', '.join(header)[:100]}; expected path and reason")

    rows = read_table(file, "a CSV with the columns path and reason", ("path", "reason"), check)
    return {
        path: Exclusion(row.cells["reason"] or "excluded by hand", read_findings(row.cells.get("causes")))
        for path, row in unique_by_path(rows, file).items()
    }


def read_findings(text: str | None) -> tuple[Finding, ...]:
    """Findings in one cell, divided by semicolons, in their order there; other words are left out."""
    known: dict[str, Finding] = {name: name for name in FINDINGS}
    return tuple(known[name] for name in (text or "").split(";") if name in known)


def read_decisions(file: Path) -> list[Decision]:
    """decisions.csv, each file at most once. Raises PackError."""

    def check(names: Sequence[str]) -> None:
        if missing := [name for name in COLUMNS if name not in names]:
            what = f"has {', '.join(names)[:100]!r} in its first line"
            hint = "; an exclusion list is given as --exclude" if {"path", "reason"} <= set(names) else ""
            wanted = f"expected decisions.csv with the columns {', '.join(COLUMNS)}{hint}"
            raise PackError(f"{file} {what} and lacks {', '.join(missing)}; {wanted}")

    expected = "decisions.csv; greyhound survey IMAGES --out DIR makes the page that saves them"
    rows = read_table(file, expected, COLUMNS, check)
    return _once_each([_decision(row.cells, row.number, file) for row in rows], file)


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


def _decision(row: Mapping[str, str], line: int, file: Path) -> Decision:
    sha256, path, label, choice, to = (row[name] for name in COLUMNS)
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
    image, causes = Photograph(path, label, sha256), read_findings(row.get("causes"))
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
