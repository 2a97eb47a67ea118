"""The command line of the room: greyhound demo | survey | pack | info | verify."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from greyhound.cache import decisions as decisions_module
from greyhound.cache import demo as demo_module
from greyhound.cache import inspection, page, suspects
from greyhound.cache import pack as pack_module
from greyhound.cache.cli import BAD_INPUT, deferred, note, parse, plain, progress_bar, run
from greyhound.cache.files import folder_beside
from greyhound.cache.findings import FINDINGS, Row, Rows
from greyhound.cache.store import SPLITS, Pack, PackError
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
        summary = demo_module.draw_demo(out, classes, per_class, seed, update)
    faults = ", ".join(f"{count} {name}" for name, count in sorted(summary.faults.items()))
    print(f"{out}: {summary.images} images of {summary.classes} breeds; planted: {faults or 'no faults'}")
    return 0


def survey(
    images: Positional[Path],
    out: Path,
    labels: bool = False,
    trained: Annotated[Path | None, tyro.conf.arg(name="run")] = None,
) -> int:
    """Look at every image once, and write down what a careful eye would find, with a page to decide on it.

    Into OUT: survey.csv, every image and its findings; excluded.csv, for pack --exclude; survey.html, the page.

    Args:
        images: The folder, with one subfolder a class; without labels, images alone will do.
        out: The folder to write to, outside of it.
        labels: Look for wrong labels as well, by the features of a pretrained network.
        trained: Look for wrong labels by what this training makes of the images that it did not see: a run folder.
    """
    inspection.check_place(images, out)
    asked = labels or trained is not None
    if asked:
        suspects.check(trained)

    def crowded(count: int) -> None:
        note(
            f"{count:,} images look like {LOOKED_AT} others or more from afar: near twins were sought among the {LOOKED_AT} most alike"
        )

    with ExitStack() as stack:
        with progress_bar("looking at every image") as update:
            seen = stack.enter_context(inspection.inspect(images, update, crowded))
            inspection.write(seen, out)  # before the labels, which take longer and may fail
        code = _review(seen, out, trained) if asked else 0
    table, notes = Rows(out / "survey.csv"), dict[str, page.Note]()
    if asked and not code:
        notes = _mark_suspects(table, images, out)
    with progress_bar("drawing the page") as update:
        shown = page.write(table, images, out / "survey.html", notes, update)
    _summarise(table, out)
    if shown.more:
        note(
            f"the page shows {shown.suspects:,} suspects; {shown.more:,} more are in {out / 'survey.csv'} only"
        )
    return code


def _review(seen: inspection.Seen, out: Path, trained: Path | None) -> int:
    """Rank the labels, of what `trained` did not see or of all that was seen; the exit code, 0 when it is written down."""
    ranking = out / suspects.REVIEW
    try:
        with folder_beside(ranking) as folder:
            sound = folder / "images.arrow"
            if trained is None:
                seen.pack(sound)
            code = suspects.review_labels(ranking, sound, trained)
    except (PackError, OSError) as error:
        note(f"the labels are not reviewed: {error}")
        return BAD_INPUT
    if code < 0:
        note(suspects.describe_end(code))
    return code if code >= 0 else 128 - code  # as a shell has it


def _mark_suspects(table: Rows, images: Path, out: Path) -> dict[str, page.Note]:
    """Write the tables again with what the review suspects; what the page is to say of it."""
    review = suspects.read_review(out / suspects.REVIEW)
    here = suspects.bring_home(review, table)
    strangers = len(review.suspects) - len(here.suspects)
    if strangers:
        note(
            f"{strangers} of {len(review.suspects)} label suspects are no image of {images}: the run's pack was made of "
            f"other pictures; {out / suspects.REVIEW} lists them"
        )
    inspection.write(suspects.mark(table, here), out)
    return page.notes_on(here, images)


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
    """Pack a folder of labelled photographs, IMAGES/CLASS/image.jpg, into one file, or several that are opened as one.

    Args:
        images: The folder, with one subfolder a class.
        out: The pack to write.
        val: Share of each class held out for validation.
        test: Share of each class held out for the final test.
        seed: Another seed, another split.
        keep_grayscale: Keep grayscale photographs, which are left out otherwise.
        exclude: A CSV with the columns path and reason: images that a person found wrong.
        decisions: The decisions.csv that the survey's page saved: what to exclude, relabel, and keep all the same.
        shards: Files to divide the pack into, OUT-00000-of-00004 and so on; every command takes them by the name OUT.
    """
    chosen = pack_module.read_exclusions(exclude) if exclude else {}
    decided = decisions_module.read(decisions) if decisions else []
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
    damaged = opened.damaged()
    for index in damaged:
        print(f"damaged: {opened.describe(index)}")
    print(f"{pack}: {len(opened) - len(damaged)} of {len(opened)} images are as they were packed")
    return 1 if damaged else 0


def _summarise(rows: Iterable[Row], out: Path) -> None:
    """Counts by finding, and what to do next."""
    found, excluded, images = Counter[str](), Counter[str](), 0
    for images, row in enumerate(rows, start=1):  # noqa: B007  their number is wanted after the last
        names = (*row.findings, _ANY) if row.findings else ()
        found.update(names)
        excluded.update(names if row.verdict == "exclude" else ())
    table = Table("finding", "images", "to exclude", title=f"{images} images", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name in FINDINGS:
        if found[name]:
            table.add_row(name, str(found[name]), str(excluded[name]))
    table.add_section()
    table.add_row(_ANY, str(found[_ANY]), str(excluded[_ANY]))
    console = Console()
    console.print(table)
    pack_it = "greyhound pack IMAGES --out PACK"
    lines = (
        f"look and decide: open {out / 'survey.html'}, save decisions.csv, then {pack_it} --decisions decisions.csv",
        f"or take the machine's word: {pack_it} --exclude {out / 'excluded.csv'}",
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
    """The first `most` lines, and how to see the others; None for all of them, 0 for none and no word about it."""
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
