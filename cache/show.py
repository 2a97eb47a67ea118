"""Show: what a survey found and what is in a pack, as tables and lines for the terminal.

Before it: a survey's rows, or an opened pack. After it: a reader; `__main__` prints nothing else of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table

from greyhound.cache.cli import plain
from greyhound.cache.selection import FINDINGS
from greyhound.cache.store import SPLITS, Pack
from greyhound.cache.survey import table

_ANY: Final = "any of them"


def summarise(rows: Iterable[table.Row], out: Path) -> None:
    """Counts by finding, and what to do next."""
    found, excluded, images = Counter[str](), Counter[str](), 0
    for images, row in enumerate(rows, start=1):  # noqa: B007  their number is wanted after the last
        names = (*row.findings, _ANY) if row.findings else ()
        found.update(names)
        excluded.update(names if row.verdict == "exclude" else ())
    shown = Table("finding", "images", "to exclude", title=f"{images} images", title_justify="left")
    for column in shown.columns[1:]:
        column.justify = "right"
    for name in FINDINGS:
        if found[name]:
            shown.add_row(name, str(found[name]), str(excluded[name]))
    shown.add_section()
    shown.add_row(_ANY, str(found[_ANY]), str(excluded[_ANY]))
    console = Console()
    console.print(shown)
    pack_it = "greyhound pack IMAGES --out PACK"
    lines = (
        f"look and decide: open {out / 'survey.html'}, save decisions.csv, then {pack_it} --decisions "
        "decisions.csv",
        f"or take the machine's word: {pack_it} --exclude {out / 'excluded.csv'}",
        f"or look for wrong labels first: greyhound review --images IMAGES --survey {out}",
    )
    for line in lines:
        console.print(_plain(line), highlight=False, soft_wrap=True)


def describe(opened: Pack, most: int | None) -> None:
    """What is in a pack; of every list of files at most so many by name, None for all."""
    console, summary = Console(), opened.summary()
    table = Table("class", *SPLITS, "all", title=_plain(str(opened.path)), title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    counts = np.stack(
        [np.bincount(opened.labels[opened.ids(name)], minlength=len(opened.classes)) for name in SPLITS]
    )
    for label, name in enumerate(opened.classes):
        table.add_row(_plain(name), *(str(count) for count in counts[:, label]), str(counts[:, label].sum()))
    table.add_section()
    table.add_row("all", *(str(count) for count in counts.sum(axis=1)), str(len(opened)))
    console.print(table)
    parts = f" in {opened.header.shards} shards" if opened.header.shards > 1 else ""
    console.print(
        f"{summary['bytes'] / 2**20:,.1f} MiB of original images{parts}; digest {summary['digest'][:16]}"
    )
    _describe_excluded(console, opened, most)
    _describe_relabelled(console, opened, most)


def _describe_excluded(console: Console, opened: Pack, most: int | None) -> None:
    excluded, transcoded = opened.header.excluded, opened.header.transcoded
    reasons = Counter(row.reason for row in excluded)
    total = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    console.print(_plain(f"left out: {len(excluded)}" + (f" ({total})" if total else "")), highlight=False)
    whys = (f"{row.reason}, {row.detail}" if row.detail else row.reason for row in excluded)
    _list(console, opened, [f"{row.path}: {why}" for row, why in zip(excluded, whys, strict=True)], most)
    for name in sorted(
        {row.path.partition("/")[0] for row in excluded if "/" in row.path} - set(opened.classes)
    ):
        console.print(
            _plain(f"class {name} has no usable image, and is no class of the pack"), highlight=False
        )
    if transcoded:
        console.print(f"stored as PNG, because not every engine decodes their own format: {len(transcoded)}")
        _list(console, opened, [f"{path}: {reason}" for path, reason in transcoded], most)


def _describe_relabelled(console: Console, opened: Pack, most: int | None) -> None:
    relabelled, unmatched = opened.header.relabelled, opened.header.unmatched
    if relabelled:
        console.print(f"relabelled by hand: {len(relabelled)}", highlight=False)
    _list(console, opened, [f"{path}: {old} -> {new}" for path, old, new in relabelled], most)
    if unmatched:
        one = unmatched == 1
        verb, they, them = (
            ("decision has", "it was", "it") if one else ("decisions have", "they were", "them")
        )
        where = f"; --files names {them}" if most == 0 and opened.header.lost else ""
        console.print(
            f"note: {unmatched} {verb} no image any more: no file here is the one that {they} about{where}",
            highlight=False,
            soft_wrap=True,
        )
    _list(console, opened, opened.header.lost, most)


def _list(console: Console, opened: Pack, lines: Sequence[str], most: int | None) -> None:
    """The first `most` lines, and how to see the others. None: all of them. 0: none, and no hint."""
    for line in lines[:most]:
        console.print(_plain(f"  {line}"), highlight=False, soft_wrap=True)
    if most and len(lines) > most:
        console.print(
            _plain(f"  ... and {len(lines) - most} more: greyhound info {opened.path} --files"),
            highlight=False,
            soft_wrap=True,
        )


def _plain(text: str) -> str:
    """Text from a file name, with nothing in it for rich or a terminal to interpret."""
    return plain(text).replace("[", r"\[")
