"""Where labelled images come from: a folder, a manifest, tars or Parquet files, told apart by what is there.

Before it: what a person typed. After it: `found.Found`, which `pack` scans. README's way in is a folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from greyhound.cache import manifest, tars
from greyhound.cache.classes import in_order
from greyhound.cache.files import folder_beside
from greyhound.cache.folder import NO_LABEL, Tree, check_outside, find_labelled, named_as_image
from greyhound.cache.found import Found
from greyhound.cache.parts import Parts, below, expand, is_pattern
from greyhound.cache.store import PackError

PARQUET: Final = (".parquet", ".pq")
KINDS: Final = (
    "a folder with one subfolder a class, a manifest (.csv, .tsv, .jsonl, .parquet), "
    "WebDataset tars, or Parquet files with images"
)


@dataclass(frozen=True)
class Reading:
    """How a source is read. label: the column, or the field of a .json, that has the class; "" for the usual.

    order: of the classes, as `classes.in_order` has it; "" for sorted without regard to case.
    """

    label: str = ""
    order: str = ""


@contextmanager
def opened(source: Path, out: Path, reading: Reading = Reading()) -> Iterator[Found]:
    """The labelled images of a source, to be read for as long as the block runs.

    source: a folder; a manifest; a tar or Parquet file, a folder of them, or a pattern. out: the pack that
    will be written; images out of Parquet files are laid down beside it. Raises PackError, WriteError.
    """
    with ExitStack() as held:
        if manifest.is_url(str(source)):
            address = str(source).replace(":/", "://", 1)
            raise PackError(f"{address} is an address; expected {KINDS}: download it first")
        if source.is_dir():
            found = _in_folder(source, out, reading.label, held)
        elif not source.exists() and is_pattern(str(source)):
            found = _in_files(expand(str(source)), out, reading.label, held)
        else:
            found = _in_files(Parts(str(source), [source], [source.name]), out, reading.label, held)
        yield _ordered(found, reading.order) if reading.order else found


def _in_folder(folder: Path, out: Path, label: str, held: ExitStack) -> Found:
    """Raises PackError, WriteError."""
    tables, why = manifest.metadata_below(folder), ""
    try:
        for table in tables:
            manifest.choose(manifest.load(table), label)
    except PackError as error:
        why = str(error)
    if tables and not why:
        return manifest.read_folder(folder, tables, label)
    tree = Tree(folder)
    if not any(named_as_image(file) for each in tree.folders for file in tree.below(each)):
        for suffixes in (tars.SUFFIXES, PARQUET):
            if (parts := below(folder, suffixes)).files:
                return _in_files(parts, out, label, held)
    if label:
        raise PackError(
            f"--label names a column, and {folder} has none; expected class folders without --label"
        )
    try:
        classes, sources, notes = find_labelled(folder)
    except PackError as error:
        raise PackError(why or str(error)) from None
    check_outside(out, folder)
    return Found(classes, sources, [*notes, *([f"{why}; so the class folders are read"] if why else [])])


def _in_files(parts: Parts, out: Path, label: str, held: ExitStack) -> Found:
    """Raises PackError, WriteError."""
    first, names = parts.files[0], [name.lower() for name in parts.names]
    if not first.exists():
        raise PackError(f"{first} is not there; expected {KINDS}")
    if all(name.endswith(tars.SUFFIXES) for name in names):
        return tars.read(parts, label)
    if all(name.endswith(PARQUET) for name in names):
        from greyhound.cache import parquet

        if parquet.has_images(first):
            spool = held.enter_context(folder_beside(out)) / "images"
            return parquet.read(parts, spool, label)
    if len(names) == 1 and names[0].endswith((*manifest.SUFFIXES, *PARQUET)):
        return manifest.read(first, label)
    found = f"is {len(names)} files" if len(names) > 1 else "is a file"
    raise PackError(f"{parts.whole} {found}; expected {KINDS}")


def _ordered(found: Found, order: str) -> Found:
    """With the classes that have images in another order. Raises PackError."""
    used = sorted(
        {each.label for each in (*found.sources, *(each for each, _ in found.left_out))} - {NO_LABEL}
    )
    classes = in_order([found.classes[label] for label in used], order)
    places = {name: place for place, name in enumerate(classes)}
    numbers = {label: places[found.classes[label]] for label in used} | {NO_LABEL: NO_LABEL}
    return replace(
        found,
        classes=tuple(classes),
        sources=[replace(each, label=numbers[each.label]) for each in found.sources],
        left_out=[(replace(each, label=numbers[each.label]), row) for each, row in found.left_out],
    )
