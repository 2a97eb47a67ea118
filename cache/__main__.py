"""The command line of the room: greyhound demo | survey | pack | info | verify."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from greyhound.cache import pack as pack_module
from greyhound.cache.cli import deferred, note, parse, plain, progress_bar, run
from greyhound.cache.demo.faults import draw_demo
from greyhound.cache.selection import FINDINGS, read_decisions, read_exclusions
from greyhound.cache.store import SPLITS, Pack
from greyhound.cache.survey import page, table
from greyhound.cache.survey.findings import inspect
from greyhound.cache.twins import LOOKED_AT

_ANY: Final = "any of them"
LISTED: Final = 50
"""Files that `pack` lists by name."""


def demo(out: Positional[Path], classes: int = 12, per_class: int = 60, seed: int = 0) -> int:
    """Draw a synthetic fine-grained data set: cartoon dogs, with planted faults and their ground truth.

    Args:
        out: The folder to make; one subfolder a breed, and truth.csv.
        classes: Breeds.
        per_class: Images of each.
        seed: Another seed, other dogs.
    """
    with progress_bar("drawing") as update:
        summary = draw_demo(out, classes, per_class, seed, update)
    faults = ", ".join(f"{count} {name}" for name, count in sorted(summary.faults.items()))
    print(f"{out}: {summary.images} images of {summary.classes} breeds; planted: {faults or 'no faults'}")
    return 0


def survey(images: Positional[Path], out: Path) -> int:
    """Look at every image once, and write down what a careful eye would find, with a page to decide on it.

    Into OUT: survey.csv, every image and its findings; excluded.csv, for pack --exclude; survey.html, the
    page. Afterwards, greyhound review --images IMAGES --survey OUT looks for wrong labels, and adds them to
    all three.

    Args:
        images: The folder, with one subfolder a class; without labels, images alone will do.
        out: The folder to write to, outside of it.
    """
    table.check_place(images, out)

    def crowded(count: int) -> None:
        note(
            f"{count:,} images look like {LOOKED_AT} others or more from afar: near twins were sought among "
            f"the {LOOKED_AT} most alike"
        )

    with progress_bar("looking at every image") as update, inspect(images, update, crowded) as rows:
        table.write(rows, out)
    found = table.Rows(out / "survey.csv")
    page.draw(found, images, out)
    _summarise(found, out)
    return 0


def pack(
    images: Positional[Path],
    out: Path,
    val: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
    keep_grayscale: bool = False,
    exclude: Path | None = None,
    decisions: Path | None = None,
    shards: int = 1,
) -> int:
    """Pack a folder of labelled photographs, IMAGES/CLASS/image.jpg, into one file or several.

    Args:
        images: The folder, with one subfolder a class.
        out: The pack to write.
        val: Share of each class held out for validation.
        test: Share of each class held out for the final test.
        seed: Another seed, another split.
        keep_grayscale: Keep grayscale photographs, which are left out otherwise.
        exclude: A CSV with the columns path and reason: images that a person found wrong.
        decisions: The decisions.csv that the survey's page saved.
        shards: Files to divide the pack into, OUT-00000-of-00004 and so on; name them all as OUT.
    """
    chosen = read_exclusions(exclude) if exclude else {}
    decided = read_decisions(decisions) if decisions else []
    options = pack_module.Options(val, test, seed, keep_grayscale, chosen, decided, shards)
    with progress_bar("looking at every image") as update:
        pack_module.pack(images, out, options, update)
    _describe(Pack(out), LISTED)
    return 0


def info(
    pack: Positional[Path],
    files: bool = False,
    json_output: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> int:
    """Say what is in a pack.

    Args:
        pack: The pack.
        files: List every file that was left out, with its reason, that was relabelled, or stored as PNG.
        json_output: As JSON.
    """
    opened = Pack(pack)
    if json_output:
        print(json.dumps(opened.summary(thumbnails=False), indent=1))
    else:
        _describe(opened, None if files else 0)
    return 0


def verify(pack: Positional[Path]) -> int:
    """Check every image of a pack against its checksum; exit code 1 if any is damaged.

    Args:
        pack: The pack.
    """
    opened = Pack(pack)
    corrupt = opened.corrupt()
    for index in corrupt:
        print(f"damaged: {opened.describe(index)}")
    print(f"{pack}: {len(opened) - len(corrupt)} of {len(opened)} images are as they were packed")
    return 1 if corrupt else 0


def _summarise(rows: Iterable[table.Row], out: Path) -> None:
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


def _describe(opened: Pack, most: int | None) -> None:
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


def main() -> int:
    """Run the subcommand that the command line names."""
    commands = {command.__name__: deferred(command) for command in (demo, survey, pack, info, verify)}
    call = parse(lambda: tyro.extras.subcommand_cli_from_dict(commands, prog="greyhound"), commands)
    code: int = call()
    return code


if __name__ == "__main__":
    run(main)
