"""Write the pack: verified originals, labels, split and statistics in one Arrow file, or in several shards.

Before it: labelled images that `source` found, scanned by `scan`. After it: `store.Pack`. Files are written
in constant memory under temporary names, and renamed when all are complete: an interrupted packing leaves an
older pack untouched. Killed between two renamings, it leaves shards of either pack, which `store` refuses.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import zlib
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from PIL import ImageColor

from greyhound.cache.cli import note
from greyhound.cache.collection import NOTHING, Collection
from greyhound.cache.files import replacing_all
from greyhound.cache.folder import NO_LABEL, Sample, check_writable
from greyhound.cache.index import FAMILY, OPTIONAL, WEIGHT, add_index, column, split_column
from greyhound.cache.picture import encode_png, named_as_read, to_rgb
from greyhound.cache.scan import WHITE, ImageInfo, Progress, counted, scan
from greyhound.cache.selection import (
    Decision,
    Duplicates,
    Exclusion,
    Finding,
    Grayscale,
    Photograph,
    check_classes,
    choose_colours,
    describe_copy,
    find_copies,
    judge,
    match,
)
from greyhound.cache.shards import MAX_SHARDS, Shard, check_name_free, divide, shard_paths
from greyhound.cache.source import SourceOptions, open_source
from greyhound.cache.split import Assigned, Kept, Table, assign
from greyhound.cache.store import Excluded, Header, PackError
from greyhound.cache.tables import find_paths
from greyhound.cache.thumbnail import make_thumbnail
from greyhound.cache.twins import find_originals

BATCH_BYTES: Final = 32 << 20
"""A record batch is closed at this size: the memory that packing needs."""
THUMBNAILS: Final = 12
"""Pictures kept of what was excluded, for each reason."""
_ARROW: Final = b"ARROW1"
"""How an Arrow IPC file begins."""
_SAFE: Final = ("", "truncated")
"""Problems with which a file is opened for its picture; others may fill the memory, or end their decoder."""


@dataclass(frozen=True)
class Options:
    """How to pack. val, test: shares of each class. exclude: path -> why it is left out, by exclude_file.

    grayscale: which images without colour are left out, see `choose_colours`. duplicates: whether copies of a
    file are left out, all of them if their classes differ. decisions: what a person decided image by image;
    they outrank the others. shards: files that the pack is divided into. group: a pattern; images that it
    matches alike, in their paths, stay in one split. table: a person's own split, or groups.
    background: a colour, under what is transparent. source: how what is packed is read.
    """

    val: float = 0.1
    test: float = 0.2
    seed: int = 0
    grayscale: Grayscale = "auto"
    duplicates: Duplicates = "exclude"
    exclude: Mapping[str, Exclusion] = field(default_factory=dict)
    decisions: Sequence[Decision] = ()
    shards: int = 1
    group: str | None = None
    table: Table | None = None
    background: str = WHITE
    exclude_file: str = "the exclusion list"
    source: SourceOptions = field(default_factory=SourceOptions)

    def __post_init__(self) -> None:
        """Refuse what no images can be packed by."""
        if not (self.val >= 0 and self.test >= 0 and self.val + self.test < 1):
            shares = f"val is {self.val} and test is {self.test}"
            raise PackError(f"{shares}; expected shares from 0, together below 1")
        if not 0 <= self.seed < 2**64:
            raise PackError(f"seed is {self.seed}; expected 0 to 2**64 - 1")
        if self.group == "":
            raise PackError(
                "--group is empty; expected a pattern on the path, such as '(.*)_', or no --group"
            )
        try:
            re.compile(self.group or "")
        except re.error as error:
            what = f"--group {self.group!r} is no regular expression ({error})"
            raise PackError(f"{what}; expected one such as '(.*)_'") from None
        try:
            ImageColor.getrgb(self.background)
        except ValueError:
            wanted = "expected a colour, as white or #ffffff"
            raise PackError(f"background is {self.background!r}; {wanted}") from None


def pack(source: Path, out: Path, options: Options = Options(), progress: Progress | None = None) -> Header:
    """Pack the labelled images of a source (at least two classes with a usable image) into the file `out`.

    source: as in `open_source`. progress: called with (files looked at, files in all). Raises PackError; then
    `out` is as it was before.
    """
    _check_out(out, options.shards)  # before images out of Parquet are laid down beside it
    with open_source(source, out, options.source) as found:
        return write(found.samples, found.classes, out, options, progress, found=found)


def write(
    sources: Sequence[Sample],
    classes: tuple[str, ...],
    out: Path,
    options: Options = Options(),
    progress: Progress | None = None,
    split: str | None = None,
    infos: Iterable[ImageInfo] | None = None,
    found: Collection = NOTHING,
) -> Header:
    """Scan `sources`, leave out what cannot be used, and write the rest to `out`; see `pack`.

    split: put every image into this one, and keep all `classes`. infos: of the sources, if they were scanned
    before; then `split` is needed. found: what else is known of the source.
    """
    _check_out(out, options.shards)
    unseen = {source.path for source, _ in found.left_out}
    options = _rename(_check_tables(options, sources, unseen), found.renamed)
    decided_loose = any(each.by == "person" and not each.image.label for each in options.decisions)
    scan_all = split is not None or decided_loose  # also what lies beside the class folders
    loose = [] if scan_all else [source for source in sources if source.label == NO_LABEL]
    beside = {source.path for source in loose}
    sources = [source for source in sources if source.path not in beside]
    check_classes(options.decisions, classes)
    files = (source.file for source in sources)
    looks = scan(files, background=options.background) if infos is None else infos
    infos = list(counted(looks, len(sources), progress))
    unsafe = {source.path for source, info in zip(sources, infos, strict=True) if info.problem not in _SAFE}
    decided, lost = _match(sources, infos, classes, options)
    kept, relabelled, excluded = _select(sources, infos, classes, decided, options)
    excluded += found.left_out
    if split is None:
        loose += [source for source, _ in kept if source.label == NO_LABEL]
        kept = [(source, info) for source, info in kept if source.label != NO_LABEL]
        excluded += [(each, Excluded(each.path, "no class", "beside the class folders")) for each in loose]
        classes, kept = _drop_empty_classes(classes, kept, excluded)
    if not kept:
        raise PackError(f"none of {len(sources)} files is a usable image; the first: {_say(excluded[0][1])}")
    everywhere = Assigned([split or ""] * len(kept), [-1] * len(kept))
    assigned = everywhere if split else assign(kept, classes, options, found.split_by)
    splits = assigned.splits
    trained = [source.weight for (source, _), where in zip(kept, splits, strict=True) if where == "train"]
    if trained and not any(trained):
        raise PackError(f"each of the {len(trained)} training images weighs 0; expected one that weighs more")
    header = Header(
        classes=classes,
        digest=_digest(kept, splits, options.background),
        background=options.background,
        seed=options.seed,
        excluded=tuple(_with_thumbnails(excluded, unseen | beside | unsafe, options.background)),
        transcoded=tuple((source.path, info.transcode) for source, info in kept if info.transcode),
        relabelled=tuple(relabelled),
        lost=tuple(lost),
        split_by=assigned.how,
        notes=(*found.notes, *assigned.notes, *([] if split else _say_long(kept))),
        empty=assigned.empty,
    )
    return _write_shards(kept, assigned, header, out, options.shards)


def write_all(
    sources: Sequence[Sample],
    classes: tuple[str, ...],
    out: Path,
    background: str = WHITE,
    infos: Iterable[ImageInfo] | None = None,
    progress: Progress | None = None,
) -> Header:
    """Pack all that can be read, copies and grey pictures too, for a network to look at; see `write`."""
    options = Options(grayscale="keep", duplicates="keep", background=background)
    return write(sources, classes, out, options, progress, split="test", infos=infos)


def _write_shards(kept: Sequence[Kept], assigned: Assigned, header: Header, out: Path, shards: int) -> Header:
    """All files of the pack, or none: the header of the first, which is the pack's. Raises PackError."""
    found: dict[str, list[Any]] = {WEIGHT: [source.weight for source, _ in kept], FAMILY: assigned.families}
    more = [name for name, usual in OPTIONAL.items() if any(value != usual for value in found[name])]
    bounds, headers = divide(len(kept), shards), []
    with replacing_all(shard_paths(out, shards)) as temporaries:
        for index, (temporary, (low, high)) in enumerate(zip(temporaries, bounds, strict=True)):
            part = Assigned(assigned.splits[low:high], assigned.families[low:high])
            headers.append(replace(header, shard=index, shards=shards))
            schema = headers[-1].schema(more)
            with pa.OSFile(os.fsencode(temporary), "wb") as file, pa.ipc.new_file(file, schema) as writer:
                for batch in _record_batches(kept[low:high], part, header.background, schema):
                    writer.write_batch(batch)
            add_index(temporary)
            Shard(temporary)  # an older pack is replaced only by one that opens
    return headers[0]


def transcode(data: bytes, background: str = WHITE) -> bytes:
    """Turn anything that `to_rgb` reads into an upright, opaque RGB PNG."""
    return encode_png(to_rgb(data, background).pixels)


def _check_out(out: Path, shards: int) -> None:
    """Find out before the images are looked at, which takes long."""
    divide(MAX_SHARDS, shards)  # refuses what is wrong for any number of images
    try:
        if out.is_dir():
            raise PackError(f"--out is the folder {out}; expected a file name, as in {out / 'images.arrow'}")
        check_writable(out.absolute().parent)
        with out.open("rb") if out.is_file() else io.BytesIO() as file:
            if file.read(len(_ARROW)) not in (b"", _ARROW):
                todo = "name another file, or move that one away"
                raise PackError(f"--out is {out}, which is there and is no pack; {todo}")
        check_name_free(out, shards)
    except OSError as error:
        why = error.strerror or error
        raise PackError(f"{out} cannot be written ({why}); name a file in a folder that can") from None


def _check_tables(options: Options, sources: Sequence[Sample], unseen: Iterable[str]) -> Options:
    """The options, their tables by the images' paths. Refuses what can be told before they are looked at."""
    paths = {source.path for source in sources}.union(unseen)
    exclude, table = find_paths(options.exclude, paths, options.exclude_file), options.table
    if table:
        splits, groups = (find_paths(each, paths, str(table.file)) for each in (table.splits, table.groups))
        table = replace(table, splits=splits, groups=groups)
        labelled = (each for each in sources if each.label != NO_LABEL and named_as_read(each.file.suffix))
        table.check(each.path for each in labelled if each.path not in exclude)
    return replace(options, exclude=exclude, table=table)


def _rename(options: Options, renamed: Mapping[str, str]) -> Options:
    """The options, their decisions about classes by the names that the pack has."""
    decisions = []
    for each in options.decisions if renamed else ():
        image = replace(each.image, label=renamed.get(each.image.label, each.image.label))
        decisions.append(replace(each, image=image, to=renamed.get(each.to, each.to)))
    return replace(options, decisions=decisions) if renamed else options


def _match(
    sources: Sequence[Sample], infos: Sequence[ImageInfo], classes: Sequence[str], options: Options
) -> tuple[dict[str, Decision], list[str]]:
    """The decision for each path that has one, and the paths of a person's that found no image."""
    if not options.decisions:
        return {}, []
    labels = [_class_of(source, classes) for source in sources]
    paths, contents = (source.path for source in sources), (info.sha256 for info in infos)
    found, lost = match(options.decisions, [*map(Photograph, paths, labels, contents)])
    return found, [decision.image.path for decision in lost if decision.by == "person"]


def _select(
    sources: Sequence[Sample],
    infos: Sequence[ImageInfo],
    classes: Sequence[str],
    decided: Mapping[str, Decision],
    options: Options,
) -> tuple[list[Kept], list[tuple[str, str, str]], list[tuple[Sample, Excluded]]]:
    """What is packed, what a person relabelled, and what is left out."""
    names = [_class_of(source, classes) for source in sources]
    colours = choose_colours(options.grayscale, infos, names)
    found = (source.path for source, info in zip(sources, infos, strict=True) if info.grayscale)
    note(colours.note if any(path not in decided for path in found) else "")
    spared: list[Finding] = ["grayscale", "tinted"] if options.grayscale == "keep" else []
    spared += ["exact-duplicate"] if options.duplicates == "keep" else []
    kept, excluded = [], []
    for source, info in zip(sources, infos, strict=True):
        listed, decision = options.exclude.get(source.path), decided.get(source.path)
        if row := judge(source.path, info, listed, decision, colours, spared):
            excluded.append((source, row))
        else:
            kept.append((source, info))
    kept, relabelled = _relabel(kept, classes, decided)
    copies = _find_copies(kept, classes, decided) if options.duplicates == "exclude" else {}
    excluded += [(source, copies[source.path]) for source, _ in kept if source.path in copies]
    return [each for each in kept if each[0].path not in copies], relabelled, excluded


def _find_copies(
    kept: Sequence[Kept], classes: Sequence[str], decided: Mapping[str, Decision]
) -> dict[str, Excluded]:
    """Copies of which no person decided: all but the first, and all of a file with two labels."""
    names = [_class_of(source, classes) for source, _ in kept]
    originals, found = find_originals(info.sha256 for _, info in kept), {}
    for index, (of, count) in find_copies(originals, names).items():
        path = kept[index][0].path
        why, excludes = describe_copy(kept[of][0].path, names[index], names[of], count)
        if excludes and path not in decided:
            found[path] = Excluded(path, "exact-duplicate", why)
    return found


def _class_of(source: Sample, classes: Sequence[str]) -> str:
    """The name of its class, "" for none."""
    return classes[source.label] if source.label != NO_LABEL else ""


def _relabel(
    kept: Sequence[Kept], classes: Sequence[str], decided: Mapping[str, Decision]
) -> tuple[list[Kept], list[tuple[str, str, str]]]:
    """Images with the labels that a person gave; and (path, old class, new class) of each change."""
    rows, relabelled = [], []
    for source, info in kept:
        decision = decided.get(source.path)
        old = "no class" if source.label == NO_LABEL else classes[source.label]
        if decision and decision.choice == "relabel" and decision.to != old:
            relabelled.append((source.path, old, decision.to))
            source = replace(source, label=classes.index(decision.to))
        rows.append((source, info))
    return rows, relabelled


def _drop_empty_classes(
    classes: tuple[str, ...], kept: list[Kept], excluded: Sequence[tuple[Sample, Excluded]]
) -> tuple[tuple[str, ...], list[Kept]]:
    """Labels without a gap. Raises PackError for a class of which all that it had is left out."""
    used = sorted({source.label for source, _ in kept})
    lost = {source.label for source, _ in excluded} - {NO_LABEL, *used}
    if lost:
        rows = [row for source, row in excluded if source.label == min(lost)]
        reasons = Counter(row.reason for row in rows)
        total = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        what = f"class {classes[min(lost)]} has no image left; left out: {total}; the first: {_say(rows[0])}"
        more = f"; {len(lost) - 1} more of {len(classes)} classes have none" if len(lost) > 1 else ""
        raise PackError(f"{what}{more}; {_undo(reasons)}, or move the folder of the class away")
    if len(used) < 2:
        raise PackError(f"{len(used)} of {len(classes)} classes have images; expected at least 2")
    numbers = {old: new for new, old in enumerate(used)}
    renumbered = [(replace(source, label=numbers[source.label]), info) for source, info in kept]
    return tuple(classes[label] for label in used), renumbered


def _undo(reasons: Iterable[str]) -> str:
    """What to do about a class whose images are left out for these reasons."""
    if "exact-duplicate" in (found := {*reasons}):
        return "decide on the page of greyhound survey which label is right"
    return (
        "keep them by --grayscale keep"
        if {"grayscale", "tinted"} & found
        else "mend them or decide otherwise"
    )


def _say(row: Excluded) -> str:
    return f"{row.path}: {row.reason}" + (f" ({row.detail})" if row.detail else "")


def _say_long(kept: Sequence[Kept]) -> list[str]:
    """A note if more than a tenth of the images are longer than 2:1: a guess at where a crop misses much."""
    long = sum(max(info.width, info.height) > 2 * min(info.width, info.height) for _, info in kept)
    cut = "training with --augment.fit crop, the default, sees only a part of each; pad and squash show all"
    return [f"{long:,} of {len(kept):,} images are longer than 2:1; {cut}"] if 10 * long > len(kept) else []


def _digest(kept: Sequence[Kept], splits: Sequence[str], background: str) -> str:
    """Of what a training sees. Families are left out: a fold, which needs them, has a digest of its own."""
    digest = hashlib.sha256()
    for (source, info), split in zip(kept, splits, strict=True):
        weight = f"\0{source.weight}" if source.weight != 1 else ""
        digest.update(f"{source.path}\0{source.label}\0{split}\0{info.sha256}{weight}\n".encode())
    if background != WHITE and any(info.transparent for _, info in kept):
        digest.update(background.encode())
    return digest.hexdigest()


def _with_thumbnails(
    rows: Iterable[tuple[Sample, Excluded]], closed: Container[str], background: str
) -> Iterator[Excluded]:
    """closed: paths of files that are not opened, whatever they are excluded for."""
    shown: Counter[str] = Counter()
    for source, row in rows:
        shown[row.reason] += 1
        if shown[row.reason] <= THUMBNAILS and source.path not in closed:
            row = replace(row, thumbnail=make_thumbnail(source.file, 128, background) or None)
        yield row


def _record_batches(
    kept: Sequence[Kept], assigned: Assigned, background: str, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    start, size, images = 0, 0, list[bytes]()
    for stop, (source, info) in enumerate(kept, start=1):
        images.append(_read(source, info, background))
        size += len(images[-1])
        if stop == len(kept) or size >= BATCH_BYTES:
            part = Assigned(assigned.splits[start:stop], assigned.families[start:stop])
            arrays = _index_arrays(kept[start:stop], part)
            arrays |= {"image": column("image", images), "crc32": column("crc32", [*map(zlib.crc32, images)])}
            yield pa.record_batch([arrays[name] for name in schema.names], schema=schema)
            start, size, images = stop, 0, []


def _read(source: Sample, info: ImageInfo, background: str) -> bytes:
    """The bytes that the scan saw, or their PNG; a file that changed since is an error, not a surprise."""
    try:
        data = source.file.read_bytes()
    except OSError as error:
        what = f"was readable a moment ago and is no longer ({error.strerror})"
        raise PackError(f"{source.file} {what}; pack again") from None
    if zlib.crc32(data) != info.crc32:
        todo = "pack again when nothing writes to the folder"
        raise PackError(f"{source.file} changed while it was being packed; {todo}")
    return transcode(data, background) if info.transcode else data


def _index_arrays(kept: Sequence[Kept], assigned: Assigned) -> dict[str, pa.Array]:
    """The columns that are known of every row before its image is read."""
    of_info = ("width", "height", "orientation", "mean_luma")
    columns: dict[str, list[Any]] = {
        "label": [source.label for source, _ in kept],
        "path": [source.path.encode() for source, _ in kept],
        WEIGHT: [source.weight for source, _ in kept],
        FAMILY: assigned.families,
    }
    columns |= {name: [getattr(info, name) for _, info in kept] for name in of_info}
    arrays = {name: column(name, values) for name, values in columns.items()}
    return arrays | {"split": split_column(assigned.splits)}
