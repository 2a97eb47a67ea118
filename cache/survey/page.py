"""The page that a person works through: every suspect of a survey, to keep, exclude or relabel.

Before it: the rows of a survey. After it: a browser, which saves decisions.csv for `pack`. The page is one
file that needs nothing but itself. It holds a small picture of every suspect and of what a suspect
duplicates, and is written as a stream, in constant memory.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from greyhound.cache.classes import label_order
from greyhound.cache.cli import note, progress_bar
from greyhound.cache.files import replacing_all
from greyhound.cache.folder import find_file
from greyhound.cache.machine import available_cores
from greyhound.cache.scan import Progress, counted, in_order
from greyhound.cache.selection import FINDINGS, Finding
from greyhound.cache.store import PackError
from greyhound.cache.survey import table
from greyhound.cache.survey.labels import Ranked, Review, mark_label_issues, with_survey_paths
from greyhound.cache.survey.table import Row, Rows
from greyhound.cache.thumbnail import make_thumbnail

BLOCK: Final = 64
"""Pictures in one block of the page; the browser reads a block when it is first needed."""
MAX_SUSPECTS: Final = 20_000
"""Suspects that a page shows: more of them no person works through, and no browser holds."""
SIDES: Final = ((2_000, 256), (8_000, 192))
"""(pictures, pixels a side); beyond, SMALLEST_SIDE: 20,000 pictures stay near 100 MB."""
SMALLEST_SIDE: Final = 128
_HERE: Final = Path(__file__).parent
Notes: TypeAlias = "Mapping[str, Note]"
"""More about suspects, by their paths."""
# What a finding means, in words for a person.
MEANINGS: Final[Mapping[Finding, str]] = {
    "undecodable": "Training cannot read this file. The reason says why.",
    "truncated": "The file ends before its picture does. What is there of it is shown.",
    "bomb": "The header claims more pixels than any photograph has. It was not opened.",
    "grayscale": "No colour at all. Among colour photographs, a network may learn to do without colour.",
    "exact-duplicate": "The same bytes twice. In two classes, one of the labels is wrong; in two splits, the "
    "test is leaked.",
    "near-duplicate": "The same photograph again: re-encoded, resized, cropped or mirrored. If its classes "
    "differ, one of the labels is wrong.",
    "label-issue": "The label looks wrong to a model that was trained without this image; the surest come "
    "first.",
    "tinted": "All colours are of one tint, as of a sepia print; or of a white thing in warm light.",
    "odd-size": "Far smaller, or of far other proportions, than the rest.",
    "dark": "So dark that little is to be seen.",
    "bright": "So bright that little is to be seen.",
    "blurred": "Hardly a sharp edge anywhere.",
    "wrong-extension": "The name promises another format than the file holds. Harmless to training.",
    "transcoded": "Packed as PNG, so that all engines read the same pixels. Harmless to training.",
    "transparent": "Parts are transparent: they are laid on white, or on the colour of pack --background.",
    "animated": "More than one frame: training sees the first.",
    "cmyk": "Made for print: its colours are converted.",
}


@dataclass(frozen=True, slots=True)
class Note:
    """More about one suspect. likelier: the class offered first. pictures: caption, JPEG in base64."""

    likelier: str = ""
    pictures: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Shown:
    """What the page shows: the suspects, in the order to look at them, and after them what they duplicate.

    twins: the place of what each row duplicates. Of a pair whose halves name each other, one half is a
    suspect and the other its twin, unless more is to be said of that. more: suspects beyond
    MAX_SUSPECTS, which it does not show. found: images with findings. images, classes: of the whole survey.
    """

    rows: Sequence[Row]
    twins: Sequence[int | None]
    notes: Notes
    suspects: int
    more: int
    found: int
    images: int
    classes: Sequence[str]


def draw(rows: Iterable[Row], images: Path, folder: Path, notes: Notes | None = None) -> None:
    """Write survey.html in `folder`, and say what it could not show. Raises WriteError."""
    with progress_bar("drawing the page") as update:
        shown = write(rows, images, folder / "survey.html", notes, update)
    if shown.more:
        more = f"{shown.more:,} more are in {folder / 'survey.csv'} only"
        note(f"the page shows {shown.suspects:,} suspects; {more}")


def refuse_reviewed(survey: Path) -> None:
    """Refuse a survey whose rows name label issues already. Raises PackError."""
    if any("label-issue" in row.findings for row in Rows(survey / "survey.csv")):
        todo = f"make it again: greyhound survey IMAGES --out {survey}"
        raise PackError(f"{survey} was reviewed before; {todo}")


def complete(survey: Path, images: Path, found: Review) -> None:
    """Mark label issues in a survey's tables, and draw its page again. Raises PackError, WriteError."""
    rows = Rows(survey / "survey.csv")
    here = with_survey_paths(found, rows)
    strangers = len(found.label_issues) - len(here.label_issues)
    if strangers:
        what = f"{strangers} of {len(found.label_issues)} label issues are no image of {images}"
        note(f"{what}: the run's pack was made of other pictures; the ranking lists them")
    table.write(mark_label_issues(rows, here), survey)
    draw(rows, images, survey, {image.path: _note_on(image, images) for image in here.label_issues})


def write(
    rows: Iterable[Row], images: Path, out: Path, notes: Notes | None = None, progress: Progress | None = None
) -> Shown:
    """Write the page to `out`, whole or not at all, and return what it shows.

    rows: of the whole survey, gone through twice. notes: path -> more about it, by whose order label issues
    are shown. progress: called with (pictures made, pictures in all). Raises WriteError.
    """
    shown = gather(rows, notes or {})
    side = next((side for most, side in SIDES if len(shown.rows) <= most), SMALLEST_SIDE)
    files = [find_file(images, row.path) if is_safe(row) else None for row in shown.rows]
    made = counted(thumbnails(files, side), len(files), progress)
    noted = (picture for row in shown.rows for _, picture in shown.notes.get(row.path, Note()).pictures)
    added = (picture if re.fullmatch(r"[A-Za-z0-9+/]*=*", picture) else "" for picture in noted)
    script = "".join((_HERE / name).read_text(encoding="utf-8") for name in ("decisions.js", "survey.js"))
    loader = FileSystemLoader([_HERE, _HERE.parent])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    data = json.dumps(describe(shown, images, out.parent), separators=(",", ":"))  # all ASCII
    parts = environment.get_template("survey.html.jinja").generate(
        name=images.resolve().name,
        shown=shown,
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        data=data.replace("<", "\\u003c"),  # or a name could end the script element
        blocks=_blocks(itertools.chain(made, added)),
    )
    with (
        replacing_all([out]) as (temporary,),
        temporary.open("w", encoding="utf-8", errors="replace", newline="") as file,
    ):
        file.writelines(parts)
    return shown


def is_safe(row: Row) -> bool:
    """Whether its file may be opened here: neither what fills the memory nor what ended a decoder."""
    return not {"bomb", "undecodable"} & set(row.findings)


def _note_on(image: Ranked, images: Path) -> Note:
    """What a review says of an issue: where a network looked, who of the surveyed folder is alike."""
    near = [(f"near, {image.label}", other) for other in image.of_label]
    near += [(f"near, {image.likelier}", other) for other in image.of_likelier]
    small = thumbnails((find_file(images, other.path) for _, other in near), SMALLEST_SIDE)
    alike = [(caption, picture) for (caption, _), picture in zip(near, small, strict=True) if picture]
    saliency = [("where the network looked", image.saliency)] if image.saliency else []
    return Note(image.likelier, [*saliency, *alike])


def gather(rows: Iterable[Row], notes: Notes) -> Shown:
    """What the page shows of a survey: MAX_SUSPECTS suspects, those without a picture last, and twins."""
    rank = {path: place for place, path in enumerate(notes)}
    classes: set[str] = set()
    counts: Counter[bool] = Counter()

    def order(row: Row) -> tuple[bool, int, int, str, str]:
        place = FINDINGS.index(row.findings[0])
        return not is_safe(row), place, rank.get(row.path, len(rank)), row.of, row.path

    def find_suspects() -> Iterator[Row]:
        for row in rows:
            classes.add(row.label)
            counts[bool(row.findings)] += 1
            if row.findings:
                yield row

    suspects = heapq.nsmallest(MAX_SUSPECTS, find_suspects(), key=order)
    more = counts[True] - len(suspects)
    suspects = _fold(suspects)
    wanted = {row.of for row in suspects} - {row.path for row in suspects}
    known = [*suspects, *(row for row in rows if row.path in wanted)]
    places = {row.path: place for place, row in enumerate(known)}
    twins = [places.get(row.of) if row.of != row.path else None for row in known]
    names = sorted(classes - {""}, key=label_order)
    return Shown(known, twins, notes, len(suspects), more, counts[True], counts.total(), names)


def _fold(suspects: Sequence[Row]) -> list[Row]:
    """Each pair once: of two suspects that name each other, the one that is excluded, or the first."""
    pairs = {"exact-duplicate", "near-duplicate"}
    known = {row.path: row for row in suspects}
    listed: dict[str, Row] = {}
    for row in sorted(suspects, key=lambda row: (row.verdict == "keep", -len(row.findings), row.path)):
        twin = listed.get(row.of)
        if not (twin and twin.of == row.path and pairs.union(twin.findings).issuperset(row.findings)):
            listed[row.path] = row
    return [row for row in known.values() if row.path in listed]


def is_of_another(page: Path, images: Path) -> bool:
    """Whether a survey's page is there, and of another folder."""
    try:
        with page.open(encoding="utf-8", errors="replace") as lines:
            data = next((line for line in lines if 'id="data"' in line), "")
    except OSError:
        return False
    return bool(data) and f'"key":"{_key(images)}"' not in data


def _key(images: Path) -> str:
    return hashlib.sha256(os.fsencode(images.resolve())).hexdigest()[:32]


def describe(shown: Shown, images: Path, folder: Path) -> dict[str, Any]:
    """All that the page's script knows, JSON-able; pictures are numbers, the items' first.

    folder: where the page lies.

    The key is the folder's: what a person decided about it is there again on the page of the next survey.
    """
    numbers, ranks = itertools.count(len(shown.rows)), {path: place for place, path in enumerate(shown.notes)}
    home = os.path.relpath(images.resolve(), folder.resolve())  # so that both may be moved together
    return {
        "images": quote(os.fsencode(home)),
        "key": _key(images),
        "suspects": shown.suspects,
        "block": BLOCK,
        "classes": shown.classes,
        "findings": {name: MEANINGS[name] for name in FINDINGS},
        "items": [
            _describe_item(row, twin, ranks.get(row.path), shown.notes.get(row.path, Note()), numbers)
            for row, twin in zip(shown.rows, shown.twins, strict=True)
        ],
    }


def thumbnails(files: Iterable[Path | None], side: int) -> Iterator[str]:
    """A small JPEG of each file in base64, in order; "" for None and where nothing can be shown.

    Made in parallel, a few ahead of the reader: a core may hold a PNG's pixels, half a gigabyte at the limit.
    """
    workers = available_cores()
    yield from in_order(lambda file: make_thumbnail(file, side) if file else "", files, workers, 8 * workers)


def _describe_item(
    row: Row, twin: int | None, rank: int | None, note: Note, numbers: Iterator[int]
) -> dict[str, Any]:
    size = f"{row.width} × {row.height}" if row.width and row.height else ""
    weight = f"{row.bytes / 1000:,.0f} kB" if row.bytes >= 1000 else f"{row.bytes} bytes"
    figures = f"brightness {row.mean_luma:.0f}, colourfulness {row.colourfulness:.0f}" if size else ""
    names = ("path", "label", "sha256", "findings", "verdict", "reason", "causes")
    known = {name: getattr(row, name) for name in names} | {
        "facts": " · ".join(filter(None, [size, row.format, weight, figures])),
        "twin": twin,
        "rank": rank,
        "likelier": note.likelier,
        "pictures": [(caption, next(numbers)) for caption, _ in note.pictures],
    }
    return {name: value for name, value in known.items() if value not in ("", None, [], ())}


def _blocks(pictures: Iterator[str]) -> Iterator[str]:
    """Pictures, one a line, BLOCK in a block."""
    while block := list(itertools.islice(pictures, BLOCK)):
        yield "\n".join(block)
