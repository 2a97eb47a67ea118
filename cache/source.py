"""Where labelled images come from: a folder, a manifest, tars or Parquet files, told apart by what is there.

Before it: what a person typed. After it: a `Collection`, which `pack` scans. README's way in is a folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from greyhound.cache import manifest, stanford, tars
from greyhound.cache.classes import in_order, say_numbers, short_names
from greyhound.cache.collection import Collection
from greyhound.cache.data_files import DataFiles, below, expand, is_pattern
from greyhound.cache.files import folder_beside
from greyhound.cache.folder import NO_LABEL, ImageFolder, check_outside, find_labelled, named_as_image
from greyhound.cache.store import PackError

SAVED: Final = ("dataset_dict.json", "state.json")
"""Files by which a folder is known that `datasets` wrote with save_to_disk."""
KINDS: Final = (
    "a folder with one subfolder a class, a manifest (.csv, .tsv, .jsonl, .parquet), "
    "WebDataset tars, or Parquet files with images"
)


@dataclass(frozen=True)
class SourceOptions:
    """How a source is read. label: the column, or the field of a .json, that has the class; "" for the usual.

    order: of the classes, as `classes.in_order` has it; "" for sorted without regard to case. names: whether
    classes may be called by their `short_names`.
    """

    label: str = ""
    order: str = ""
    names: Literal["auto", "as-is"] = "auto"


@contextmanager
def open_source(source: Path, out: Path, options: SourceOptions = SourceOptions()) -> Iterator[Collection]:
    """The labelled images of a source, to be read for as long as the block runs.

    source: a folder; a manifest; a tar or Parquet file, a folder of them, or a pattern. out: the pack that
    will be written; images out of Parquet files are laid down beside it. Raises PackError, WriteError.
    """
    with ExitStack() as cleanup:
        if manifest.is_url(str(source)):
            address = str(source).replace(":/", "://", 1)
            raise PackError(f"{address} is an address; expected {KINDS}: download it first")
        if source.is_dir():
            found = _in_folder(source, out, options.label, cleanup)
        elif not source.exists() and is_pattern(str(source)):
            found = _in_files(expand(str(source)), out, options.label, cleanup)
        else:
            found = _in_files(DataFiles(str(source), [source], [source.name]), out, options.label, cleanup)
        if not options.order:
            found = replace(found, notes=[*found.notes, *say_numbers(found.classes)])
        short = short_names(found.classes) if options.names == "auto" else {}
        if options.order:
            found = _ordered(found, options.order, short)
        yield _renamed(found, short) if short else found


def _in_folder(folder: Path, out: Path, label: str, cleanup: ExitStack) -> Collection:
    """Raises PackError, WriteError."""
    tables, why = [manifest.load(file, label) for file in manifest.metadata_below(folder)], ""
    try:
        for table in tables:
            manifest.choose_columns(table, label)
    except PackError as error:
        if label:
            raise
        why = str(error)
    if tables and not why:
        return manifest.read_folder(folder, tables, label)
    tree = ImageFolder(folder)
    if not any(named_as_image(file) for each in tree.folders for file in tree.below(each)):
        for suffixes in (tars.SUFFIXES, manifest.PARQUET):
            if (data := below(folder, suffixes)).files:
                return _in_files(data, out, label, cleanup)
        if any((folder / name).is_file() for name in SAVED):
            todo = (
                "open it with load_from_disk and write each split with to_parquet, to train.parquet and so on"
            )
            raise PackError(
                f"{folder} is a set that save_to_disk of datasets wrote; expected Parquet: {todo}"
            )
    if not label and (lists := stanford.lists_in(folder)):
        check_outside(out, folder)
        return stanford.read(folder, lists)
    if label:
        raise PackError(
            f"--label names a column, and {folder} has none; expected class folders without --label"
        )
    try:
        classes, samples, notes = find_labelled(folder)
    except PackError as error:
        raise PackError(f"{why}; and of class folders: {error}" if why else str(error)) from None
    check_outside(out, folder)
    return Collection(classes, samples, [*notes, *([f"{why}; so the class folders are read"] if why else [])])


def _in_files(data: DataFiles, out: Path, label: str, cleanup: ExitStack) -> Collection:
    """Raises PackError, WriteError."""
    first, names = data.files[0], [name.lower() for name in data.names]
    if not first.exists():
        raise PackError(f"{first} is not there; expected {KINDS}")
    if all(name.endswith(tars.SUFFIXES) for name in names):
        return tars.read(data, label)
    if all(name.endswith(manifest.PARQUET) for name in names):
        from greyhound.cache import parquet

        if parquet.has_images(first):
            there = next(each for each in out.absolute().parents if each.exists())
            spool = cleanup.enter_context(folder_beside(there / out.name)) / "images"
            return parquet.read(data, spool, label)
    if len(names) == 1 and names[0].endswith((*manifest.SUFFIXES, *manifest.PARQUET)):
        return manifest.read(first, label)
    found = f"is {len(names)} files" if len(names) > 1 else "is a file"
    raise PackError(f"{data.whole} {found}; expected {KINDS}")


def _renamed(found: Collection, short: Mapping[str, str]) -> Collection:
    """With the short names of the classes, which is said."""
    old, new = next(iter(short.items()))
    said = f"classes are called {new} for {old} and so on; --class-names as-is keeps the names as they are"
    classes = tuple(short[name] for name in found.classes)
    return replace(found, classes=classes, renamed=short, notes=[*found.notes, said])


def _ordered(found: Collection, order: str, short: Mapping[str, str]) -> Collection:
    """With the classes that have images in another order. Raises PackError."""
    used = sorted(
        {each.label for each in (*found.samples, *(each for each, _ in found.left_out))} - {NO_LABEL}
    )
    classes = in_order([found.classes[label] for label in used], order, short)
    places = {name: place for place, name in enumerate(classes)}
    numbers = {label: places[found.classes[label]] for label in used} | {NO_LABEL: NO_LABEL}
    return replace(
        found,
        classes=tuple(classes),
        samples=[replace(each, label=numbers[each.label]) for each in found.samples],
        left_out=[(replace(each, label=numbers[each.label]), row) for each, row in found.left_out],
    )
