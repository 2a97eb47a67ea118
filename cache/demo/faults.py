"""Plant faults in a drawn data set, and write down the ground truth.

Before it: nothing, no network and no photographs. After it: the survey scans the folder as any other; compare
what it finds with `truth.csv`. explain measures by `boxes.csv` whether a network looks at the dog.
"""

from __future__ import annotations

import csv
import functools
import io
import multiprocessing
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from PIL import ExifTags, Image

from greyhound.cache.demo.brushes import BREEDS
from greyhound.cache.demo.dogs import draw_dog
from greyhound.cache.errors import UserError
from greyhound.cache.machine import available_cores
from greyhound.cache.scan import Progress, counted

# What is planted, and its share of all images; every fault at least once from 100 images on.
# The last four are valid.
FAULTS: Final = {
    "mislabelled": 0.010,
    "grayscale": 0.006,
    "near-duplicate": 0.006,
    "exact-duplicate": 0.004,
    "truncated": 0.004,
    "empty": 0.003,
    "not-an-image": 0.003,
    "exif-rotated": 0.004,
    "cmyk": 0.003,
    "gif": 0.003,
    "png": 0.003,
}
# The kinds of a fault, taken in turn; they end up in the column `detail`.
KINDS: Final = {
    "grayscale": ("one channel", "three equal channels"),
    "near-duplicate": ("mirrored", "cropped", "resized", "re-encoded"),
    "truncated": ("55 %", "40 %", "70 %"),
    "exif-rotated": ("6", "8", "3"),
}
UNREADABLE: Final = frozenset({"truncated", "empty", "not-an-image"})
Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; the last two are the first that are no longer in it."""
# A mislabelled image has a number from here on, so the folder of its true breed never holds the same one.
STRAYS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Plan:
    """One file to write. `breed` and `number` say what is drawn, the rest is its line in `truth.csv`."""

    path: str
    breed: int
    number: int
    fault: str = ""
    of: str = ""
    detail: str = ""


class DemoError(UserError):
    """The demo cannot be drawn as asked; the message is one line for the user."""


def draw_demo(
    out: Path, classes: int, per_class: int, seed: int = 0, progress: Progress | None = None
) -> Counter[str]:
    """Draw `classes` folders of `per_class` images into `out`, and `truth.csv` with one line for every image.

    `boxes.csv` says where the dog is, in pixels of the upright image, of every image that can be read.
    Returns how many images carry each fault; a failure leaves nothing behind. progress: called with (images
    done, images in all). Raises DemoError.
    """
    out = Path(out).absolute()
    for name, value, low, high in (
        ("classes", classes, 2, len(BREEDS)),
        ("per_class", per_class, 1, STRAYS),
        ("seed", seed, 0, 2**63),
    ):
        if not low <= value <= high:
            raise DemoError(f"{name} is {value}, expected {low} to {high}: choose a number in that range")
    if out.is_symlink() or out.exists():
        entries = len(list(out.iterdir())) if out.is_dir() else None
        if entries != 0:
            found = "a file" if entries is None else f"a folder with {entries} entries in it"
            raise DemoError(f"{out} is {found}; expected a new or empty folder: name another, or remove it")
    plans = plan_demo(classes, per_class, seed)
    try:
        place = out.resolve()  # of a link to an empty folder, perhaps on another disk
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as scratch:
            draft = Path(scratch) / place.name
            for folder in {Path(plan.path).parent for plan in plans}:
                (draft / folder).mkdir(parents=True)
            boxes = list(counted(_write_all(draft, plans, seed), len(plans), progress))
            truth = ((p.path, _folder(p.breed), p.fault, p.of, p.detail) for p in plans)
            _write_table(draft / "truth.csv", ("path", "label", "fault", "of", "detail"), truth)
            places = ((p.path, *box) for p, box in zip(plans, boxes, strict=True) if box)
            _write_table(draft / "boxes.csv", ("path", "left", "top", "right", "bottom"), places)
            draft.rename(place)  # which may be an empty folder
    except BrokenPipeError:  # of the progress: its reader has seen enough
        raise
    except OSError as error:
        raise DemoError(f"{out} cannot be made ({error.strerror or error}); name another folder") from None
    return Counter(plan.fault for plan in plans if plan.fault)


def plan_demo(classes: int, per_class: int, seed: int) -> list[Plan]:
    """Every file of the data set in the order of the folders, faults spread evenly over the breeds."""
    rng = np.random.default_rng([seed, classes, per_class])
    plans = {
        (breed, n): Plan(_path(breed, n), breed, n) for breed in range(classes) for n in range(per_class)
    }
    free = [rng.permutation(per_class).tolist() for _ in range(classes)]
    order = rng.permutation(classes).tolist()
    for index, (fault, detail) in enumerate(_faults(classes * per_class)):
        breed = order[index % classes]
        number = free[breed].pop()
        plan = replace(plans[breed, number], fault=fault, detail=detail)
        if fault.endswith("duplicate"):
            original = free[breed].pop()
            plan = replace(plan, number=original, of=_path(breed, original))
        if fault == "mislabelled":
            other = (breed + int(rng.integers(1, classes))) % classes
            plan = replace(plan, breed=other, number=STRAYS + number)
        suffix = fault if fault in ("gif", "png") else "jpg"
        plans[breed, number] = replace(plan, path=_path(breed, number, suffix))
    return list(plans.values())


def _faults(images: int) -> Iterator[tuple[str, str]]:
    for fault, share in FAULTS.items():
        kinds = KINDS.get(fault, ("",))
        least = (2 if fault == "grayscale" else 1) if images >= 100 else 0
        for index in range(max(least, round(share * images))):
            yield fault, kinds[index % len(kinds)]


def _folder(breed: int) -> str:
    return str(BREEDS[breed].name).replace(" ", "_")


def _path(breed: int, number: int, suffix: str = "jpg") -> str:
    return f"{_folder(breed)}/{_folder(breed).lower()}_{number:03d}.{suffix}"


def _write_table(path: Path, names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(names)
        table.writerows(rows)


def _write_all(folder: Path, plans: Sequence[Plan], seed: int) -> Iterator[Box | None]:
    """Write the files on all cores, in fresh processes: forking is not safe beside threads."""
    write = functools.partial(_write, folder, seed)
    if len(plans) < 24:  # not worth the start of a process
        yield from map(write, plans)
        return
    with ProcessPoolExecutor(available_cores(), multiprocessing.get_context("spawn")) as pool:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # the children inherit it
        try:
            written = pool.map(write, plans, chunksize=4)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        yield from written


def _write(folder: Path, seed: int, plan: Plan) -> Box | None:
    """One file: the drawing, and what its fault makes of it. Where the dog is, if anybody can see it."""
    (image, mask), spoil = draw_dog(BREEDS[plan.breed], plan.number, seed), SPOILERS.get(plan.fault)
    (folder / plan.path).write_bytes(spoil(image, plan.detail) if spoil else encode(image))
    if plan.fault == "near-duplicate":
        mask = _retouch(mask, plan.detail)
    return None if plan.fault in UNREADABLE else mask.point(lambda level: 255 * (level > 127)).getbbox()


def encode(image: Image.Image, form: str = "JPEG", quality: int = 90, orientation: int = 1) -> bytes:
    """An image as a file's bytes."""
    file, exif = io.BytesIO(), Image.Exif()
    if orientation != 1:
        exif[ExifTags.Base.Orientation] = orientation
    image.save(file, form, quality=quality, exif=exif)
    return file.getvalue()


def _cut(image: Image.Image, detail: str) -> bytes:
    whole = encode(image)
    return whole[: len(whole) * int(detail.split()[0]) // 100]


def _twin(image: Image.Image, kind: str) -> bytes:
    return encode(_retouch(image, kind), quality=75)


def _retouch(image: Image.Image, kind: str) -> Image.Image:
    width, height = image.size
    if kind == "mirrored":
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if kind == "cropped":
        box = 0.03 * width, 0.02 * height, 0.98 * width, 0.97 * height
        image = image.resize(image.size, Image.Resampling.BICUBIC, box)
    if kind == "resized":
        image = image.resize((round(0.91 * width), round(0.91 * height)), Image.Resampling.LANCZOS)
    return image


def _lay_down(image: Image.Image, orientation: str) -> bytes:
    turns = {"3": Image.Transpose.ROTATE_180, "6": Image.Transpose.ROTATE_90, "8": Image.Transpose.ROTATE_270}
    return encode(image.transpose(turns[orientation]), orientation=int(orientation))


NOT_FOUND: Final = b"<html><body><h1>404 Not Found</h1><p>This dog has moved.</p></body></html>\n"
MODES: Final = {"one channel": "L", "three equal channels": "RGB"}
SPOILERS: Final[dict[str, Callable[[Image.Image, str], bytes]]] = {
    "grayscale": lambda image, kind: encode(image.convert("L").convert(MODES[kind])),
    "near-duplicate": _twin,
    "truncated": _cut,
    "empty": lambda image, _: b"",
    "not-an-image": lambda image, _: NOT_FOUND,
    "exif-rotated": _lay_down,
    "cmyk": lambda image, _: encode(image.convert("CMYK")),
    "gif": lambda image, _: encode(image.quantize(), "GIF"),
    "png": lambda image, _: encode(image, "PNG"),
}
