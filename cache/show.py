"""Show: what a survey found and what is in a pack, as tables and lines for the terminal.

Before it: a survey's rows, or an opened pack. After it: a reader; `__main__` prints nothing else of them.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from greyhound.cache.classes import short_names
from greyhound.cache.cli import plain
from greyhound.cache.shards import find
from greyhound.cache.store import SPLITS, Pack, PackError

if TYPE_CHECKING:
    from greyhound.cache.survey.table import Row

_ANY: Final = "any of them"


def summarise(rows: Iterable[Row], out: Path) -> None:
    """Counts by finding, and what to do next."""
    from greyhound.cache.selection import FINDINGS  # and with it much that `info` does not need

    found, excluded, images = Counter[str](), Counter[str](), 0
    for images, row in enumerate(rows, start=1):  # noqa: B007  their number is wanted after the last
        names = (*row.findings, _ANY) if row.findings else ()
        found.update(names)
        excluded.update(names if row.verdict == "exclude" else ())
    lines = [(name, found[name], excluded[name]) for name in (*FINDINGS, _ANY) if found[name] or name == _ANY]
    _print_table(f"{images} images", ("finding", "images", "to exclude"), lines)
    pack_it = "greyhound pack IMAGES --out PACK"
    page, saved = out / "survey.html", "save decisions.csv"
    _say(f"look and decide: open {page}, {saved}, then {pack_it} --decisions decisions.csv")
    _say(f"or take the machine's word: {pack_it} --exclude {out / 'excluded.csv'}")
    _say(f"or look for wrong labels first: greyhound review --images IMAGES --survey {out}")


def describe(opened: Pack, most: int | None) -> None:
    """What is in a pack; of every list of files at most so many by name, None for all."""
    header, classes = opened.header, opened.classes
    labels = [opened.labels[opened.ids(split)] for split in SPLITS]
    counts = np.stack([np.bincount(each, minlength=len(classes)) for each in labels], axis=1)
    rows = [(name, *row, sum(row)) for name, row in zip(classes, counts.tolist(), strict=True)]
    rows.append(("all", *counts.sum(axis=0).tolist(), len(opened)))
    _print_table(str(opened.path), ("class", *SPLITS, "all"), rows)
    parts = f" in {header.shards} shards" if header.shards > 1 else ""
    size = f"{opened.nbytes / 1e6:,.1f} MB of original images{parts}"
    _say(f"{size}; digest {header.digest[:16]}")
    if header.split_by:
        _say(f"split: {header.split_by}")
    if np.ptp(opened.weights):
        _say(f"weights: {opened.weights.min():g} to {opened.weights.max():g}; they count in training alone")
    if of_family := np.count_nonzero(opened.families >= 0):
        sets = len(np.unique(opened.families)) - (of_family < len(opened))
        _say(f"kept in one split each: {sets:,} sets of twins or of one group, {of_family:,} images")
    for line in header.notes:
        _say(f"note: {line}")
    reasons = Counter(row.reason for row in header.excluded)
    if reasons:
        total = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        _say(f"left out: {len(header.excluded)} ({total})")
    whys = (f"{row.reason}, {row.detail}" if row.detail else row.reason for row in header.excluded)
    _list(opened, [f"{row.path}: {why}" for row, why in zip(header.excluded, whys, strict=True)], most)
    if reasons["grayscale"] + reasons["tinted"]:
        _say("images without colour are left out by --grayscale; --grayscale keep keeps them")
    if header.transcoded:
        _say(f"stored as PNG, so that all engines read the same pixels: {len(header.transcoded)}")
    _list(opened, [f"{path}: {reason}" for path, reason in header.transcoded], most)
    if header.relabelled:
        _say(f"relabelled by hand: {len(header.relabelled)}")
    _list(opened, [f"{path}: {old} -> {new}" for path, old, new in header.relabelled], most)
    if header.lost:
        forms = ("decisions have", "they were", "them"), ("decision has", "it was", "it")
        verb, they, them = forms[len(header.lost) == 1]
        where = f"; --files names {them}" if most == 0 else ""
        what = f"{len(header.lost)} {verb} no image any more: no file here is the one that {they} about"
        _say(f"note: {what}{where}")
    _list(opened, header.lost, most)


def say_unpacked(opened: Pack, out: Path) -> None:
    """What was written to a folder, and how it becomes a pack again."""
    from greyhound.cache.scan import WHITE
    from greyhound.cache.unpack import CLASS_LIST

    counts = {split: len(opened.ids(split)) for split in SPLITS}
    parts = ", ".join(f"{count:,} {split}" for split, count in counts.items() if count)
    _say(f"{out}: {len(opened):,} images, as SPLIT/CLASS/image.jpg: {parts}")
    if opened.header.transcoded:
        _say(f"written as the PNG that they are stored as: {len(opened.header.transcoded):,}")
    if np.ptp(opened.weights):
        _say("the weights of the images are not in folders: a pack of these weighs all alike")
    words = [*(() if counts["val"] else ("--val", "0")), "--grayscale", "keep", "--duplicates", "keep"]
    if (out / CLASS_LIST).exists():
        words += ["--class-order", str(out / CLASS_LIST)]
    if short_names(opened.classes):
        words += ["--class-names", "as-is"]
    if opened.header.background != WHITE:
        words += ["--background", opened.header.background]
    _say(f"a pack again: greyhound pack {shlex.join([str(out), '--out', 'PACK', *words])}")


def name_old(out: Path) -> str:
    """The pack that is where a new one is to be written, "" for none: how many images, and since when."""
    try:
        old = Pack(out)
        since = datetime.fromtimestamp(find(out)[0].stat().st_mtime)
    except (PackError, OSError):
        return ""
    return f"the pack of {len(old):,} images that was there, of {since:%Y-%m-%d %H:%M}"


def _print_table(title: str, names: Sequence[str], rows: Sequence[tuple[object, ...]]) -> None:
    """A table of names and counts, whose last row sums up the others."""
    _say(title)
    shown = Table(*names)
    for column in shown.columns[1:]:
        column.justify = "right"
    for place, row in enumerate(rows):
        shown.add_row(*(plain(str(cell)) for cell in row), end_section=place == len(rows) - 2)
    _console().print(shown)


def _list(opened: Pack, lines: Sequence[str], most: int | None) -> None:
    """The first `most` lines, and how to see the others. None: all of them. 0: none, and no hint."""
    for line in lines[:most]:
        _say(f"  {line}")
    if most and len(lines) > most:
        _say(f"  ... and {len(lines) - most} more: greyhound info {opened.path} --files")


def _say(line: str) -> None:
    _console().print(plain(line), soft_wrap=True)


def _console() -> Console:
    """Prints text as it is: a file's name may look like rich's marks."""
    return Console(markup=False, emoji=False, highlight=False)
