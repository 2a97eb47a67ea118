"""From what a scan measured to findings of every image, and what the machine would do.

Before it: a folder of images, with one subfolder a class or without. After it: `table.Row`s for survey.csv
and excluded.csv; docs/data.md says which findings exclude. Of a file with two labels every copy is excluded
until a person decides: at least one label is wrong, and nothing says which.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
from PIL import Image

from greyhound.cache.files import DiskList, Series
from greyhound.cache.folder import find_file, find_images, read_image_folder
from greyhound.cache.scan import ImageInfo, Progress, counted, scan
from greyhound.cache.selection import (
    FINDINGS,
    Colours,
    Finding,
    choose_colours,
    describe_colours,
    describe_copy,
    differ,
    find_copies,
)
from greyhound.cache.store import PackError
from greyhound.cache.survey.table import Row
from greyhound.cache.thumbnail import DETAIL, SIDE, Reader, closeup_reader
from greyhound.cache.twins import Pair, find_twins, no_closeup, show_one_picture

# Measured on 3,629 crops (dogs25) and 200 originals (photos) on 2026-11-24 (docs/log.md).
DARK: Final = 65.0
"""Levels: 95 % of a dark image's pixels are no brighter. The darkest photograph measured 71."""
BRIGHT: Final = 190.0
"""Levels: 95 % of a bright image's pixels are no darker. Palest photograph 155, drawing 180."""
BLOWN: Final = 0.8
"""Share of white pixels from which an image is bright, too. A photograph cut out on white measured 0.67."""
BLURRED: Final = 20.0
"""Below this, blurred: 99 % of dogs' crops after a Gaussian blur of 3 pixels; untouched 0.3 % < 25."""
SMEARED: Final = 2.0
"""Detail along one direction below which an image is blurred by motion, if it is less than ONE_WAY of that
across: so are none of 3,829 photographs as they came, and 98 % of 200 that were blurred along a line of a
twelfth of their width, 74 % along a twenty-fifth (docs/log.md)."""
ONE_WAY: Final = 0.3
CONTRAST: Final = 128.0
"""Levels from luma's 5th to 95th percentile; with less, as in fog, less sharpness is expected."""
SMALL: Final = 48
"""Pixels: a shorter side than this is odd."""
ODD_SCALE: Final = 4.0
"""So many times the median size, or its fraction, is odd; size is the root of the area."""
ODD_ASPECT: Final = 3.0
"""Longer side by shorter side above which a picture's aspect ratio is odd."""
NAMED: Final = 3
"""Near twins of one image that its reason names; of the others it says how many there are."""
ATTEMPTS: Final = 8
"""Two images of one label are no longer compared when each was in so many pairs that are none. Pairs of two
labels are all compared."""
_MEASURED: Final = {field.name for field in fields(Row)} & {field.name for field in fields(ImageInfo)}
"""What a row takes over from a scan."""
PROBLEMS: Final[dict[str, Finding]] = {"truncated": "truncated", "bomb": "bomb"}
"""Problems of a scan that are findings of their own; every other one is `undecodable`."""


@dataclass(frozen=True, slots=True)
class Remark:
    """One finding of one image. of: the twin's path."""

    finding: Finding
    why: str
    of: str = ""
    excludes: bool = False


@contextmanager
def inspect(
    images: Path,
    progress: Progress | None = None,
    crowded: Callable[[int], None] | None = None,
    say: Callable[[str], object] = str,
) -> Iterator[Iterator[Row]]:
    """Scan every file of a folder, and yield a row for each, sorted by path, for as long as the block runs.

    What was scanned lies on disk: an image costs a few bytes of memory. progress: called with (files scanned,
    files in all). crowded: as in `find_twins`. say: told of what is odd about the folder. Raises PackError,
    ScanError.
    """
    tree = read_image_folder(images)
    with DiskList(find_images(tree)) as paths:
        if not len(paths):
            wanted = "expected some, or one subfolder a class with images in it"
            raise PackError(f"{images} holds no images; {wanted}")
        with (
            closing(scan(find_file(images, path) for path in paths)) as found,
            DiskList(counted(found, len(paths), progress)) as infos,
        ):
            closeup, detail = (
                closeup_reader(lambda index: find_file(images, paths[index]), side) for side in (SIDE, DETAIL)
            )
            for line in tree.notes():
                say(line)
            labels = [sys.intern(tree.class_of(path)) for path in paths]  # one object for each name
            yield judge(paths, labels, infos, closeup, crowded, detail, say)


def judge(
    paths: Series[str],
    labels: Sequence[str],
    infos: Series[ImageInfo],
    closeup: Reader = no_closeup,
    crowded: Callable[[int], None] | None = None,
    detail: Reader = no_closeup,
    say: Callable[[str], object] = str,
) -> Iterator[Row]:
    """A row for every image, in order. labels: class folders, "" for none. detail: as in `show_one_picture`.

    say: as in `inspect`. The rest: as in `find_twins`.
    """
    colours = choose_colours("auto", infos, labels)
    if colours.note:
        say(colours.note)
    twins = find_twins(infos, closeup, crowded)
    sizes = np.fromiter(((info.width * info.height) ** 0.5 for info in infos if not info.problem), float)
    usual = float(np.median(sizes)) if len(sizes) else 0.0
    copies = find_copies(twins.originals, labels)
    near = _confirmed(twins.pairs, labels, detail)
    for index, (path, label, info) in enumerate(zip(paths, labels, infos, strict=True)):
        remarks = list(_own_remarks(path, info, usual, colours))
        if index in copies:
            twin, count = copies[index]
            why, excludes = describe_copy(paths[twin], label, labels[twin], count)
            remarks.append(Remark("exact-duplicate", why, paths[twin], excludes))
        remarks += _near_remarks(index, near.get(index, ()), paths, labels)
        remarks.sort(key=lambda remark: (not remark.excludes, FINDINGS.index(remark.finding)))
        named = {remark.finding for remark in remarks}
        yield Row(
            path,
            label,
            **{name: getattr(info, name) for name in _MEASURED},
            findings=tuple(name for name in FINDINGS if name in named),
            of=next((remark.of for remark in remarks if remark.of), ""),
            causes=tuple(dict.fromkeys(remark.finding for remark in remarks if remark.excludes)),
            reason="; ".join(f"{remark.finding}: {remark.why}" for remark in remarks),
        )


def _confirmed(pairs: Iterable[Pair], labels: Sequence[str], detail: Reader) -> dict[int, list[Pair]]:
    """The near twins to name, by image, the nearest first. NAMED of a burst vouch for the others."""
    near: dict[int, list[Pair]] = defaultdict(list)
    missed: Counter[int] = Counter()
    for pair in sorted(pairs, key=lambda pair: (pair.one, pair.apart)):  # a close-up is read once for many
        sides, alike = (pair.one, pair.other), not differ(labels[pair.one], labels[pair.other])
        if alike and min(missed[index] for index in sides) >= ATTEMPTS:
            continue
        enough = alike and min(len(near[index]) for index in sides) >= NAMED
        if enough or show_one_picture(pair, detail):
            for index in sides:
                near[index].append(pair)
        else:
            missed.update(sides)
    return {index: sorted(found, key=lambda pair: pair.apart) for index, found in near.items()}


def _own_remarks(path: str, info: ImageInfo, usual: float, colours: Colours) -> Iterator[Remark]:
    """What can be said of an image without its twins. usual: the median size, the root of an area."""
    if info.problem:
        yield Remark(PROBLEMS.get(info.problem, "undecodable"), info.detail, excludes=True)
        return
    if info.grayscale or info.tinted:
        hue: Finding = "grayscale" if info.grayscale else "tinted"
        yield Remark(hue, describe_colours(info), excludes=colours.excludes(info) is not None)
    if info.luma_high <= DARK:
        yield Remark("dark", f"95 % of its pixels are at most {info.luma_high:.0f} of 255")
    if info.luma_low >= BRIGHT:
        yield Remark("bright", f"95 % of its pixels are at least {info.luma_low:.0f} of 255")
    elif info.blown >= BLOWN:
        yield Remark("bright", f"{info.blown:.0%} of its pixels are white")
    contrast = min(1.0, (info.luma_high - info.luma_low) / CONTRAST) ** 2
    if info.sharpness < BLURRED * contrast:
        yield Remark("blurred", f"sharpness {info.sharpness:.1f}, expected at least {BLURRED * contrast:.1f}")
    elif info.blown < BLOWN and info.detail_along < min(SMEARED * contrast, ONE_WAY * info.detail_across):
        found = f"detail {info.detail_along:.1f} along one direction and {info.detail_across:.1f} across"
        yield Remark("blurred", f"as by motion: {found}, expected at least {SMEARED * contrast:.1f}")
    if is_misnamed(path, info.format):
        yield Remark("wrong-extension", f"the file is {info.format}")
    if info.transcode:
        yield Remark("transcoded", info.transcode)
    if info.transparent:
        yield Remark("transparent", "its transparent pixels are laid on one colour")
    if info.animated:
        yield Remark("animated", "only its first frame is used")
    if info.mode == "CMYK":
        yield Remark("cmyk", "its colours are those of print")
    size, (short, long) = (info.width * info.height) ** 0.5, sorted((info.width, info.height))
    pixels = f"{info.width} x {info.height} pixels"
    if short < SMALL:
        yield Remark("odd-size", f"{pixels}, hardly any")
    elif long > ODD_ASPECT * short:
        yield Remark("odd-size", f"{pixels}, {long / short:.1f} to 1")
    elif not usual / ODD_SCALE <= size <= usual * ODD_SCALE:
        yield Remark("odd-size", f"{pixels}, {size / usual:.2g} times the usual size")


def is_misnamed(path: str, format: str) -> bool:
    """Whether a file's name ends as that of another format. The v2 of dog.v2 promises nothing."""
    suffix = PurePosixPath(path).suffix.lower()
    promised = Image.registered_extensions().get(suffix, "")
    same = {"MPO": "JPEG", "JPEG2000": "JPEG 2000"}
    known = promised or re.fullmatch(r"\.[a-z]{2,4}", suffix)
    return bool(known) and same.get(promised, promised) != same.get(format, format)


def _near_remarks(
    index: int, pairs: Sequence[Pair], paths: Series[str], labels: Sequence[str]
) -> Iterator[Remark]:
    """Those of another label first, then the nearest; where there are many, the first of them."""
    twins = [(pair.other if index == pair.one else pair.one, pair.mirrored) for pair in pairs]
    twins.sort(key=lambda twin: not differ(labels[index], labels[twin[0]]))
    for twin, mirrored in twins[:NAMED]:
        path = paths[twin]
        why = f"the same picture as {path}" + (" in a mirror" if mirrored else "")
        other = differ(labels[index], labels[twin])
        why += f", which has another label: {labels[twin]}" if other else "; they stay in one split"
        yield Remark("near-duplicate", why, path)
    if len(twins) > NAMED:
        yield Remark("near-duplicate", f"{len(twins) - NAMED:,} more files show this picture")
