"""Write the pack: verified originals, labels, split and statistics in one Arrow file, or in several shards.

Before it: a folder with one subfolder a class, looked at by `survey`. After it: `store.Pack`. The file is written in
record batches, in constant memory, under a temporary name, and renamed when all are complete: an interrupted packing
leaves an older pack untouched. One that was killed leaves its temporary files, which the next one sweeps; between the
renamings of several shards, some of either pack, which `store` refuses.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pyarrow as pa
from PIL import Image, ImageOps

from greyhound.cache.closeup import closeup_reader
from greyhound.cache.decisions import Decision, Photograph, check_classes, match
from greyhound.cache.files import replacing_all
from greyhound.cache.findings import FINDINGS, WRONG
from greyhound.cache.scan import FORMATS, ImageInfo, Progress, counted, scan
from greyhound.cache.shards import ShardsError, check_name_free, divide, shard_paths
from greyhound.cache.store import SCHEMA, SPLITS, Excluded, Header, PackError, index_checksum
from greyhound.cache.thumbnail import make_thumbnail
from greyhound.cache.twins import find_twins

BATCH_BYTES: Final = 32 << 20
"""A record batch is closed at this size: the memory that packing needs."""
THUMBNAILS: Final = 12
"""Pictures kept of what was excluded, for each reason."""
_ARROW: Final = b"ARROW1"
"""How an Arrow IPC file begins."""
_THUMBNAIL_SIDE: Final = 128
_UNSAFE: Final = ("bomb", "undecodable")
"""Problems for which a file is not opened for its picture: it may fill the memory, or end its decoder."""
NO_LABEL: Final = -1
MAX_CLASSES: Final = 10_000
"""As many as were packed, trained, evaluated and explained in one go (docs/reliability.md)."""


@dataclass(frozen=True)
class Source:
    """One file on its way into the pack. path: relative to the packed folder, forward slashes. label: or NO_LABEL."""

    file: Path
    path: str
    label: int


@dataclass(frozen=True)
class Options:
    """How to pack. val, test: shares of each class. exclude: path -> reason, what a person found wrong.

    decisions: what a person decided image by image; they outrank `exclude` and the clean-up of grayscale images. shards:
    files that the pack is divided into.
    """

    val: float = 0.1
    test: float = 0.2
    seed: int = 0
    keep_grayscale: bool = False
    exclude: Mapping[str, str] | None = None
    decisions: Sequence[Decision] = ()
    shards: int = 1

    def __post_init__(self) -> None:
        """Refuse shares that leave nothing to train on."""
        if not (self.val >= 0 and self.test >= 0 and self.val + self.test < 1):
            raise PackError(
                f"val is {self.val} and test is {self.test}; expected shares from 0, together below 1"
            )
        if not 0 <= self.seed < 2**64:
            raise PackError(f"seed is {self.seed}; expected 0 to 2**64 - 1")


def pack(images: Path, out: Path, options: Options = Options(), progress: Progress | None = None) -> Header:
    """Pack a folder with one subfolder a class (at least two with a usable image) into the file `out`.

    progress: called with (files looked at, files in all). Raises PackError; then `out` is as it was before.
    """
    classes, sources = find_labelled(images)
    check_outside(out, images)
    return write(sources, classes, out, options, progress)


def find_labelled(images: Path) -> tuple[tuple[str, ...], list[Source]]:
    """Class names, sorted case-insensitively, and every file below each; images beside them, by their name, have no label.

    What begins with a dot is hidden, and left alone. A class folder may be a link; links to folders below are not followed,
    nor is one that leads back to `images`. Raises PackError.
    """
    entries = _list_folder(images)
    folders = sorted(_folders(images, entries), key=lambda folder: (folder.name.casefold(), folder.name))
    if len(folders) < 2:
        found = "1 subfolder" if folders else "no subfolders"
        raise PackError(f"{images} has {found}; expected one a class, at least 2: {images}/CLASS/image.jpg")
    if len(folders) > MAX_CLASSES:
        raise PackError(
            f"{images} has {len(folders):,} subfolders; expected one a class, at most {MAX_CLASSES:,}: put them together "
            "into fewer"
        )
    sources = [
        Source(file, _relative(file, images), label)
        for label, folder in enumerate(folders)
        for file in _files(folder)
    ]
    if not sources:
        raise PackError(f"the {len(folders)} subfolders of {images} hold no files; expected images in them")
    loose = [
        Source(file, _relative(file, images), NO_LABEL)
        for file in sorted(entries)
        if not file.is_dir() and named_as_image(file)
    ]
    return tuple(_text(folder.name) for folder in folders), sources + loose


def find_unlabelled(images: Path) -> list[Source]:
    """Every file below a folder, without labels; links as in `find_labelled`. Raises PackError."""
    sources = [Source(file, _relative(file, images), NO_LABEL) for file in _all_files(images)]
    if not sources:
        raise PackError(f"{images} holds no files; expected images")
    return sources


def find_images(images: Path) -> Iterator[str]:
    """The path of every file below a folder, sorted; of those beside the class folders, only what is named as an image.

    Links as in `find_labelled`. Raises PackError.
    """
    for file in _all_files(images):
        if file.parent != images or named_as_image(file):
            yield _relative(file, images)


def find_file(images: Path, path: str) -> Path:
    """The file that is called `path` here, as `_text` calls it."""
    raw = re.sub(
        rb"\\x([0-9a-f]{2})", lambda found: bytes([int(found[1], 16)]), path.encode("utf-8", "replace")
    )
    file = images / os.fsdecode(raw)
    return file if file.exists() else images / path  # as a person writes it


def check_outside(out: Path, images: Path) -> None:
    """Refuse to write to where the next look at the images would find it. Raises PackError."""
    if out.resolve().is_relative_to(images.resolve()):
        raise PackError(
            f"--out {out} lies inside {images}, where it would be taken for an image the next time; name a place outside"
        )


def check_writable(place: Path) -> None:
    """Find out whether a folder is there or can be made, and can be written to, without making it. Raises OSError."""
    nearest = next(each for each in (place.absolute(), *place.absolute().parents) if each.exists())
    with tempfile.TemporaryFile(dir=nearest):
        pass


def write(
    sources: Sequence[Source],
    classes: tuple[str, ...],
    out: Path,
    options: Options = Options(),
    progress: Progress | None = None,
    split: str | None = None,
    infos: Iterable[ImageInfo] | None = None,
) -> Header:
    """Survey `sources`, leave out what cannot be used, and write the rest to `out`; see `pack`.

    split: put every image into this one, keep all `classes` even if one has no image, instead of dividing them. looks: at
    the sources, in their order, where a survey was made of them before; then `split` is needed.
    """
    _check_out(out, options.shards)
    _check_exclusions(options, sources)
    loose = [] if split else _find_loose(sources, options)
    unseen = {source.path for source in loose}
    sources = [source for source in sources if source.path not in unseen]
    check_classes(options.decisions, classes)
    found = scan(source.file for source in sources) if infos is None else infos
    infos = list(counted(found, len(sources), progress))
    unsafe = {source.path for source, info in zip(sources, infos, strict=True) if info.problem in _UNSAFE}
    decided, lost = _match(sources, infos, classes, options)
    kept, excluded = _select(sources, infos, options, decided)
    kept, relabelled = _relabel(kept, classes, decided)
    if split is None:
        loose += [source for source, _ in kept if source.label == NO_LABEL]
        kept = [(source, info) for source, info in kept if source.label != NO_LABEL]
        excluded += [
            (source, Excluded(source.path, "no class", "beside the class folders")) for source in loose
        ]
        classes, kept = _drop_empty_classes(classes, kept, excluded)
    if not kept:
        raise PackError(f"none of {len(sources)} files is a usable image; the first: {_say(excluded[0])}")
    splits = [split] * len(kept) if split else assign_splits(kept, options)
    header = Header(
        classes=classes,
        digest=_digest(kept, splits),
        seed=options.seed,
        excluded=tuple(_with_thumbnails(excluded, unseen | unsafe)),
        transcoded=tuple((source.path, info.transcode) for source, info in kept if info.transcode),
        relabelled=tuple(relabelled),
        unmatched=len(lost),
        lost=tuple(decision.image.path for decision in lost),
    )
    return _write_shards(kept, splits, header, out, options.shards)


def _write_shards(
    kept: Sequence[tuple[Source, ImageInfo]], splits: Sequence[str], header: Header, out: Path, shards: int
) -> Header:
    """All files of the pack under temporary names, which they keep until the last one is complete.

    Returns the first file's header, which is the pack's. Raises PackError.
    """
    try:
        bounds = divide(len(kept), shards)
    except ShardsError as error:
        raise PackError(str(error)) from None
    headers = []
    with replacing_all(shard_paths(out, shards)) as temporaries:
        for index, (temporary, (low, high)) in enumerate(zip(temporaries, bounds, strict=True)):
            rows, places = kept[low:high], splits[low:high]
            headers.append(header.of_shard(index, shards, index_checksum(_index_arrays(rows, places))))
            _write_file(rows, places, headers[-1], temporary)
    return headers[0]


def _write_file(
    kept: Sequence[tuple[Source, ImageInfo]], splits: Sequence[str], header: Header, path: Path
) -> None:
    with pa.OSFile(os.fsencode(path), "wb") as file, pa.ipc.new_file(file, header.schema()) as writer:
        for batch in _record_batches(kept, splits):
            writer.write_batch(batch)


def assign_splits(kept: Sequence[tuple[Source, ImageInfo]], options: Options) -> list[str]:
    """train, val or test for every image: stratified by class, a pure function of seed and content.

    Each class is sorted by sha256(seed, content) and cut at the shares. File names and order play no part. Twins, exact
    and near, stay together: at the place of the first of them by that order, in the first split with room for them
    all. A picture that two classes claim is for training: the other splits measure, and a wrong label measures wrongly.
    """
    if not (options.val or options.test):
        return ["train"] * len(kept)
    keys = [hashlib.sha256(f"{options.seed}:{info.sha256}".encode()).digest() for _, info in kept]
    families: dict[int, list[int]] = {}
    twins = find_twins([info for _, info in kept], closeup_reader(lambda index: kept[index][0].file))
    for index, group in enumerate(twins.groups().tolist()):
        families.setdefault(group, []).append(index)
    by_class: dict[int, list[list[int]]] = {}
    sizes = Counter(source.label for source, _ in kept)
    for family in sorted(families.values(), key=lambda family: min(keys[index] for index in family)):
        labels = {kept[index][0].label for index in family}
        if len(labels) == 1:
            by_class.setdefault(labels.pop(), []).append(family)
    splits = ["train"] * len(kept)
    for label, members in by_class.items():
        test = min(round(options.test * sizes[label]), sizes[label] - 1)
        val = min(round(options.val * sizes[label]), sizes[label] - 1 - test)
        room = {"test": test, "val": val}
        for family in members:
            split = next((split for split in room if room[split] >= len(family)), None)
            if split:
                room[split] -= len(family)
                for index in family:
                    splits[index] = split
    return splits


def read_exclusions(file: Path) -> dict[str, str]:
    """An exclusion list: CSV with the columns path (relative to the packed folder) and reason. Raises PackError."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            rows, header = list(reader), reader.fieldnames or ()
    except OSError as error:
        raise PackError(
            f"{file} cannot be read ({error.strerror}); expected a CSV with the columns path and reason"
        ) from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise PackError(f"{file} is no CSV ({error}); expected the columns path and reason") from None
    if "decision" in header:
        raise PackError(f"{file} is a list of decisions, not of exclusions; give it as --decisions {file}")
    if "verdict" in header:
        raise PackError(f"{file} is a whole survey; give --exclude the excluded.csv that lies beside it")
    if not {"path", "reason"} <= set(header):
        raise PackError(f"{file} has the columns {', '.join(header)}; expected path and reason")
    for line, row in enumerate(rows, start=2):
        if not row["path"]:
            raise PackError(f"{file} names no path in row {line}; expected path and reason in every row")
    return {row["path"].replace(os.sep, "/"): row["reason"] or "excluded by hand" for row in rows}


def transcode(data: bytes) -> bytes:
    """Turn anything that Pillow reads into an upright RGB PNG, without loss; of an animation the first frame."""
    stream = io.BytesIO()
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        ImageOps.exif_transpose(image).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def _list_folder(images: Path) -> list[Path]:
    if not images.is_dir():
        raise PackError(
            f"{images} is {'a file' if images.exists() else 'not there'}; expected a folder of images"
        )
    try:
        return [entry for entry in images.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise _unreadable(error) from None


def _unreadable(error: OSError) -> PackError:
    return PackError(f"{error.filename} cannot be read ({error.strerror}); make it readable, or move it away")


def _check_out(out: Path, shards: int) -> None:
    """Find out before the images are looked at, which takes long."""
    try:
        if out.is_dir():
            raise PackError(f"--out is the folder {out}; expected a file name, as in {out / 'images.arrow'}")
        check_writable(out.absolute().parent)
        _check_replaceable(out)
        check_name_free(out, shards)
    except ShardsError as error:
        raise PackError(str(error)) from None
    except OSError as error:
        raise PackError(
            f"{out} cannot be written ({error.strerror or error}); name a file in a folder that can"
        ) from None


def _check_replaceable(out: Path) -> None:
    """Refuse to write over what is no pack: a slip would cost a file that nobody can make again. Raises PackError, OSError."""
    if not out.is_file():
        return
    with out.open("rb") as file:
        start = file.read(len(_ARROW))
    if start not in (b"", _ARROW):
        raise PackError(
            f"--out is {out}, which is there and is no pack; name another file, or move that one away"
        )


def _folders(images: Path, entries: Iterable[Path]) -> list[Path]:
    """The folders among the entries of `images`, links to folders too, but not those to itself or to what it lies in."""
    home = images.resolve()
    return [entry for entry in entries if entry.is_dir() and not home.is_relative_to(entry.resolve())]


def _all_files(images: Path) -> Iterator[Path]:
    """Those that lie in `images`, then those in each of its folders."""
    entries = sorted(_list_folder(images))
    yield from (entry for entry in entries if not entry.is_dir())
    for folder in _folders(images, entries):
        yield from _files(folder)


def _files(folder: Path) -> Iterator[Path]:
    """Every file below, sorted by name, hidden ones and links to folders left alone."""

    def complain(error: OSError) -> None:
        raise _unreadable(error)

    for parent, folders, names in os.walk(folder, onerror=complain):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(parent, name)


def named_as_image(file: Path) -> bool:
    """Whether a file's name ends as that of a format that we take."""
    return Image.registered_extensions().get(file.suffix.lower()) in (*FORMATS, "MPO")


def _relative(file: Path, images: Path) -> str:
    return _text(file.relative_to(images).as_posix())


def _text(name: str) -> str:
    r"""A file name as valid Unicode, so that two names never become one.

    A byte that is no text is written as \xff, and the backslash of a name in which that stands as text as \x5c.
    """
    escaped = re.sub(rb"\\(?=x[0-9a-f]{2})", rb"\\x5c", os.fsencode(name))
    return escaped.decode("utf-8", "backslashreplace")


def _find_loose(sources: Iterable[Source], options: Options) -> list[Source]:
    """Images beside the class folders that need not be looked at: none of them where a person decided about any."""
    if any(decision.by == "person" and not decision.image.label for decision in options.decisions):
        return []
    return [source for source in sources if source.label == NO_LABEL]


def _check_exclusions(options: Options, sources: Sequence[Source]) -> None:
    """An exclusion that names no image is a mistake, perhaps in its path."""
    unknown = (options.exclude or {}).keys() - {source.path for source in sources}
    if unknown:
        raise PackError(
            f"the exclusion list names {sorted(unknown)[0]!r}"
            + (f" and {len(unknown) - 1} more paths that are" if len(unknown) > 1 else ", which is")
            + " not among the images; expected paths relative to the packed folder"
        )


def _match(
    sources: Sequence[Source], infos: Sequence[ImageInfo], classes: Sequence[str], options: Options
) -> tuple[dict[str, Decision], list[Decision]]:
    """The decision for each path that has one, and those of a person that found no image."""
    if not options.decisions:
        return {}, []
    names = dict(enumerate(classes))
    images = [
        Photograph(source.path, names.get(source.label, ""), info.sha256)
        for source, info in zip(sources, infos, strict=True)
    ]
    found, lost = match(options.decisions, images)
    return found, [decision for decision in lost if decision.by == "person"]


def _select(
    sources: Sequence[Source], infos: Sequence[ImageInfo], options: Options, decided: Mapping[str, Decision]
) -> tuple[list[tuple[Source, ImageInfo]], list[tuple[Source, Excluded]]]:
    kept, excluded = [], []
    for source, info in zip(sources, infos, strict=True):
        row = _judge(source, info, options, decided.get(source.path))
        if row:
            excluded.append((source, row))
        else:
            kept.append((source, info))
    return kept, excluded


def _judge(source: Source, info: ImageInfo, options: Options, decision: Decision | None) -> Excluded | None:
    """Why an image is left out, or None. A person outranks everything but a file that training cannot read."""
    listed = _said(options, (options.exclude or {}).get(source.path))
    grey = "" if options.keep_grayscale or not info.grayscale else f"colourfulness {info.colourfulness:.1f}"
    if decision and decision.choice == "exclude" and decision.by == "machine":
        reason = _said(options, decision.reason or "excluded by the machine")
        if reason:
            return _exclude_by_list(source.path, reason)
        decision = None
    if decision and decision.choice == "exclude":
        why = decision.reason or listed or info.problem or (grey and "grayscale")
        return Excluded(source.path, "excluded by hand", why)
    if listed is not None and not decision:
        return _exclude_by_list(source.path, listed)
    if info.problem:
        return Excluded(source.path, info.problem, info.detail)
    return Excluded(source.path, "grayscale", grey) if grey and not decision else None


def _said(options: Options, reason: str | None) -> str | None:
    """Why the machine excludes an image, without its being grayscale where that is no reason; None where nothing is left.

    What excludes comes first in a reason, and of that grayscale.
    """
    grey = re.match(r"grayscale: colourfulness [0-9.]+(; |$)", reason or "")
    if not (grey and reason and options.keep_grayscale):
        return reason
    rest = reason[grey.end() :]
    copy = rest.startswith("exact-duplicate: ") and not rest.startswith("exact-duplicate: the first of ")
    return rest if copy or (rest.startswith("near-duplicate: ") and WRONG in rest) else None


def _relabel(
    kept: Sequence[tuple[Source, ImageInfo]], classes: Sequence[str], decided: Mapping[str, Decision]
) -> tuple[list[tuple[Source, ImageInfo]], list[tuple[str, str, str]]]:
    """The images with the labels that a person gave them; and of each its path, its old class and its new one."""
    rows, relabelled = [], []
    for source, info in kept:
        decision = decided.get(source.path)
        old = "no class" if source.label == NO_LABEL else classes[source.label]
        if decision and decision.choice == "relabel" and decision.to != old:
            relabelled.append((source.path, old, decision.to))
            source = replace(source, label=classes.index(decision.to))
        rows.append((source, info))
    return rows, relabelled


def _exclude_by_list(path: str, reason: str) -> Excluded:
    """A reason of the survey's begins with its finding, which is what reasons are counted by; what follows is detail."""
    finding, _, detail = reason.partition(": ")
    known = finding in FINDINGS and detail
    return Excluded(path, finding, detail) if known else Excluded(path, reason, "exclusion list")


def _drop_empty_classes(
    classes: tuple[str, ...],
    kept: list[tuple[Source, ImageInfo]],
    excluded: Sequence[tuple[Source, Excluded]],
) -> tuple[tuple[str, ...], list[tuple[Source, ImageInfo]]]:
    """Labels without a gap: a class none of whose files can be used is no class."""
    used = sorted({source.label for source, _ in kept})
    if len(used) < 2:
        why = f"; the first of {len(excluded)} files left out: {_say(excluded[0])}" if excluded else ""
        grey = sum(row.reason == "grayscale" for _, row in excluded)
        why += f"; {grey} are grayscale, which --keep-grayscale keeps" if grey else ""
        raise PackError(f"{len(used)} of {len(classes)} classes have usable images; expected at least 2{why}")
    labels = {old: new for new, old in enumerate(used)}
    relabelled = [(replace(source, label=labels[source.label]), info) for source, info in kept]
    return tuple(classes[label] for label in used), relabelled


def _say(row: tuple[Source, Excluded]) -> str:
    return f"{row[1].path}: {row[1].reason}" + (f" ({row[1].detail})" if row[1].detail else "")


def _digest(kept: Sequence[tuple[Source, ImageInfo]], splits: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for (source, info), split in zip(kept, splits, strict=True):
        digest.update(f"{source.path}\0{source.label}\0{split}\0{info.sha256}\n".encode())
    return digest.hexdigest()


def _with_thumbnails(
    excluded: Iterable[tuple[Source, Excluded]], closed: Container[str]
) -> Iterator[Excluded]:
    """closed: paths of files that are not opened, whatever they are excluded for."""
    shown: dict[str, int] = {}
    for source, row in excluded:
        shown[row.reason] = shown.get(row.reason, 0) + 1
        opened = shown[row.reason] <= THUMBNAILS and source.path not in closed
        small = make_thumbnail(source.file, _THUMBNAIL_SIDE) or None if opened else None
        yield replace(row, thumbnail=small)


def _record_batches(
    kept: Sequence[tuple[Source, ImageInfo]], splits: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    rows: list[tuple[bytes, Source, ImageInfo, str]] = []
    size = 0
    for (source, info), split in zip(kept, splits, strict=True):
        rows.append((_read(source, info), source, info, split))
        size += len(rows[-1][0])
        if size >= BATCH_BYTES:
            yield _record_batch(rows)
            rows, size = [], 0
    if rows:
        yield _record_batch(rows)


def _read(source: Source, info: ImageInfo) -> bytes:
    """The bytes that the survey saw, or their PNG; a file that changed since is an error, not a surprise."""
    try:
        data = source.file.read_bytes()
    except OSError as error:
        raise PackError(
            f"{source.file} was readable a moment ago and is no longer ({error.strerror}); pack again"
        ) from None
    if zlib.crc32(data) != info.crc32:
        raise PackError(
            f"{source.file} changed while it was being packed; pack again when nothing writes to the folder"
        )
    return transcode(data) if info.transcode else data


def _record_batch(rows: Sequence[tuple[bytes, Source, ImageInfo, str]]) -> pa.RecordBatch:
    images, sources, infos, splits = zip(*rows, strict=True)
    arrays = _index_arrays(list(zip(sources, infos, strict=True)), splits)
    arrays["image"] = pa.array(images, SCHEMA.field("image").type)
    arrays["crc32"] = pa.array([zlib.crc32(image) for image in images], SCHEMA.field("crc32").type)
    return pa.record_batch([arrays[name] for name in SCHEMA.names], schema=SCHEMA)


def _index_arrays(kept: Sequence[tuple[Source, ImageInfo]], splits: Sequence[str]) -> dict[str, pa.Array]:
    """The columns that are known of every row before its image is read."""
    columns = {
        "label": [source.label for source, _ in kept],
        "width": [info.width for _, info in kept],
        "height": [info.height for _, info in kept],
        "orientation": [info.orientation for _, info in kept],
        "mean_luma": [info.mean_luma for _, info in kept],
        "path": [source.path for source, _ in kept],
    }
    arrays = {name: pa.array(values, SCHEMA.field(name).type) for name, values in columns.items()}
    indices = pa.array([SPLITS.index(split) for split in splits], pa.int8())
    return arrays | {"split": pa.DictionaryArray.from_arrays(indices, pa.array(SPLITS))}
