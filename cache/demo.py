"""Draw a fine-grained data set: cartoon dogs whose breeds differ in small things, with planted, documented faults.

Before it: nothing, no network and no photographs. After it: `survey` looks at the folder as at any other, and whoever
wants to know how well the clean-up did compares it with `truth.csv`.

Every drawing is a pure function of (seed, breed, number): the files that carry no fault have the same bytes however
many breeds or images are asked for. One part after another is painted with a soft mask of its outline, lit from the
outline's own bulge, and torn at the rim along the grain of the coat; that is all the art there is.
"""

from __future__ import annotations

import csv
import functools
import io
import multiprocessing
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray
from PIL import ExifTags, Image, ImageColor, ImageDraw, ImageFilter

from greyhound.cache.errors import UserError
from greyhound.cache.machine import available_cores

Array = NDArray[np.float32]
Points = NDArray[np.float64]
Progress = Callable[[int, int], None]
Box = tuple[slice, slice]


# What is planted, and its share of all images; every fault at least once from 100 images on. The last four are valid.
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
SUFFIXES: Final = {"gif": "gif", "png": "png"}
# A mislabelled image has a number from here on, so the folder of its true breed never holds the same one.
STRAYS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """What was drawn: all images, folders, and how many images carry each fault."""

    images: int
    classes: int
    faults: dict[str, int]


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
    out: Path, classes: int = 12, per_class: int = 60, seed: int = 0, progress: Progress | None = None
) -> DemoSummary:
    """Draw `classes` folders of `per_class` images into `out`, and `truth.csv` with one line for every image.

    All is drawn beside `out` and renamed at the end, so a failure leaves nothing behind. progress: called with
    (images done, images in all). Raises DemoError for numbers out of range, and when `out` is in use or cannot be made.
    """
    out = Path(out).absolute()
    _check("classes", classes, 2, len(BREEDS))
    _check("per_class", per_class, 1, STRAYS)
    _check("seed", seed, 0, 2**63)
    _check_vacant(out)
    plans = plan_demo(classes, per_class, seed)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft_folder = tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent)
    except OSError as error:
        raise DemoError(f"{out} cannot be made ({error.strerror}); name another folder") from None
    with draft_folder as scratch:
        draft = Path(scratch) / out.name
        for folder in {Path(plan.path).parent for plan in plans}:
            (draft / folder).mkdir(parents=True)
        for done, _ in enumerate(_write_all(draft, plans, seed), start=1):
            if progress:
                progress(done, len(plans))
        _write_truth(draft / "truth.csv", plans)
        if out.exists():  # empty, as was checked; only POSIX renames onto an empty folder
            out.rmdir()
        draft.rename(out)
    return DemoSummary(len(plans), classes, dict(Counter(plan.fault for plan in plans if plan.fault)))


def _check(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise DemoError(f"{name} is {value}, expected {low} to {high}: choose a number in that range")


def _check_vacant(out: Path) -> None:
    if not out.exists() and not out.is_symlink():
        return
    entries = len(list(out.iterdir())) if out.is_dir() else None
    if entries != 0:
        found = "a file" if entries is None else f"a folder with {entries} entries in it"
        raise DemoError(f"{out} is {found}; expected a new or empty folder: name another, or remove it")


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
        plans[breed, number] = replace(plan, path=_path(breed, number, SUFFIXES.get(fault, "jpg")))
    return list(plans.values())


def _faults(images: int) -> Iterator[tuple[str, str]]:
    for fault, share in FAULTS.items():
        kinds = KINDS.get(fault, ("",))
        least = (2 if fault == "grayscale" else 1) if images >= 100 else 0
        for index in range(max(least, round(share * images))):
            yield fault, kinds[index % len(kinds)]


def _path(breed: int, number: int, suffix: str = "jpg") -> str:
    folder = _folder(breed)
    return f"{folder}/{folder.lower()}_{number:03d}.{suffix}"


def _folder(breed: int) -> str:
    return BREEDS[breed].name.replace(" ", "_")


def _write_all(folder: Path, plans: Sequence[Plan], seed: int) -> Iterator[None]:
    """Write the files on all cores. Fresh processes: forking is not safe in one that has threads, as torch has."""
    write = functools.partial(_write, folder, seed)
    if len(plans) < 24:  # not worth the start of a process
        yield from map(write, plans)
        return
    with ProcessPoolExecutor(available_cores(), multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(write, plans, chunksize=4)


def _write(folder: Path, seed: int, plan: Plan) -> None:
    (folder / plan.path).write_bytes(render(plan, seed))


def _write_truth(path: Path, plans: Sequence[Plan]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("path", "label", "fault", "of", "detail"))
        table.writerows((plan.path, _folder(plan.breed), plan.fault, plan.of, plan.detail) for plan in plans)


# ---------------------------------------------------------------- faults


def render(plan: Plan, seed: int) -> bytes:
    """The bytes of one file: the drawing, and what its fault makes of it."""
    image = draw_dog(BREEDS[plan.breed], plan.number, seed)
    return SPOILERS[plan.fault](image, plan.detail) if plan.fault in SPOILERS else encode(image)


def encode(image: Image.Image, form: str = "JPEG", quality: int = 90, orientation: int = 1) -> bytes:
    """An image as a file's bytes."""
    file, exif = io.BytesIO(), Image.Exif()
    if orientation != 1:
        exif[ExifTags.Base.Orientation] = orientation
    image.save(file, form, quality=quality, exif=exif)
    return file.getvalue()


def cut(image: Image.Image, detail: str) -> bytes:
    """The first so many per cent of a JPEG."""
    whole = encode(image)
    return whole[: len(whole) * int(detail.split()[0]) // 100]


def twin(image: Image.Image, kind: str) -> bytes:
    """The same picture again, but not the same file."""
    width, height = image.size
    if kind == "mirrored":
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if kind == "cropped":
        box = 0.03 * width, 0.02 * height, 0.98 * width, 0.97 * height
        image = image.resize(image.size, Image.Resampling.BICUBIC, box)
    if kind == "resized":
        image = image.resize((round(0.91 * width), round(0.91 * height)), Image.Resampling.LANCZOS)
    return encode(image, quality=75)


def lay_down(image: Image.Image, orientation: str) -> bytes:
    """Stored lying on its side or head, with the EXIF orientation by which a viewer puts it upright again."""
    turns = {"3": Image.Transpose.ROTATE_180, "6": Image.Transpose.ROTATE_90, "8": Image.Transpose.ROTATE_270}
    return encode(image.transpose(turns[orientation]), orientation=int(orientation))


SPOILERS: Final[dict[str, Callable[[Image.Image, str], bytes]]] = {
    "grayscale": lambda image, kind: encode(
        image.convert("L").convert("L" if kind == "one channel" else "RGB")
    ),
    "near-duplicate": twin,
    "truncated": cut,
    "empty": lambda image, _: b"",
    "not-an-image": lambda image, _: (
        b"<html><body><h1>404 Not Found</h1><p>This dog has moved.</p></body></html>\n"
    ),
    "exif-rotated": lay_down,
    "cmyk": lambda image, _: encode(image.convert("CMYK")),
    "gif": lambda image, _: encode(image.quantize(), "GIF"),
    "png": lambda image, _: encode(image, "PNG"),
}


@dataclass(frozen=True, slots=True)
class Breed:
    """What makes a breed. Numbers are proportions, 1 is an average dog; the words are keys of the tables below."""

    name: str
    coat: str
    mark: str
    pattern: str
    marking: str
    texture: str
    ears: str
    ear: float
    skull: float
    muzzle: float
    jowl: float
    eyes: float
    girth: float
    body: float
    legs: float
    tail: str


# fmt: off
BREEDS: Final = (
    #     name                    coat       mark       pattern    marking    texture   ears      ear   skull  muzzle  jowl  eyes  girth  body  legs  tail
    Breed("Marsh Pointer",        "#f1ebe0", "#6b3d22", "spots",   "hood",    "smooth", "drop",   1.0,  0.95,  1.3,    0.9,  0.95, 0.9,   1.1,  1.2,  "whip"),
    Breed("Copper Fenhound",      "#a8562a", "#8c4420", "solid",   "none",    "smooth", "long",   1.1,  0.9,   1.2,    0.9,  0.9,  0.9,   1.1,  1.1,  "whip"),
    Breed("Long Burrower",        "#7a3f22", "#5e2f19", "solid",   "none",    "smooth", "long",   1.0,  0.85,  1.3,    0.8,  0.9,  0.9,   1.5,  0.4,  "whip"),
    Breed("Snowdrift Spitz",      "#f7f3ec", "#fdfaf5", "solid",   "none",    "long",   "prick",  0.8,  1.0,   0.8,    0.8,  0.95, 1.1,   0.9,  0.9,  "plume"),
    Breed("Amber Foxling",        "#d08a45", "#f6e9d4", "solid",   "urajiro", "smooth", "prick",  0.8,  1.05,  0.8,    0.9,  1.0,  1.0,   0.9,  0.9,  "curl"),
    Breed("Rust Warrener",        "#c47c3e", "#f0dcbc", "solid",   "urajiro", "smooth", "prick",  1.05, 0.95,  1.15,   0.85, 0.95, 0.9,   1.1,  1.15, "sabre"),
    Breed("Harbour Terrier",      "#77787c", "#b9b6ae", "solid",   "urajiro", "wiry",   "button", 0.9,  0.9,   0.9,    1.1,  0.95, 0.9,   0.8,  0.8,  "stub"),
    Breed("Pepper Grizzler",      "#64656a", "#bfbdb6", "solid",   "urajiro", "wiry",   "prick",  0.7,  0.95,  1.05,   1.15, 0.95, 1.0,   0.9,  0.95, "stub"),
    Breed("Black Alder Sheepdog", "#2a2a2e", "#f3efe8", "solid",   "blaze",   "long",   "button", 0.9,  1.0,   1.0,    0.9,  1.0,  1.0,   1.0,  1.0,  "plume"),
    Breed("Fawn Batling",         "#d9b184", "#33291f", "solid",   "mask",    "smooth", "bat",    1.0,  1.05,  0.4,    1.2,  1.3,  1.1,   0.8,  0.7,  "stub"),
    Breed("Patchwork Beaglet",    "#f4eee3", "#b06a34", "patches", "hood",    "smooth", "drop",   1.1,  0.95,  1.0,    1.0,  1.0,  1.0,   1.0,  0.8,  "sabre"),
    Breed("Blue Merle Drover",    "#9aa3ae", "#3f444e", "merle",   "none",    "long",   "drop",   0.8,  1.0,   1.0,    0.9,  1.0,  1.0,   1.0,  0.9,  "stub"),
    Breed("Barrel Bulldog",       "#c9a27a", "#f3ebdd", "solid",   "blaze",   "smooth", "rose",   0.9,  1.15,  0.4,    1.5,  1.3,  1.3,   0.9,  0.7,  "stub"),
    Breed("Curly Reedwater",      "#5d3a28", "#4c2e20", "solid",   "none",    "curly",  "long",   0.9,  0.95,  1.0,    0.9,  0.95, 1.0,   1.0,  1.1,  "whip"),
    Breed("Coal Ratter",          "#27262a", "#b8733a", "solid",   "points",  "smooth", "prick",  1.0,  0.85,  1.0,    0.8,  0.9,  0.8,   0.9,  1.0,  "whip"),
    Breed("Saddle Mountain Dog",  "#c48a4e", "#2c2826", "solid",   "saddle",  "long",   "prick",  1.0,  0.95,  1.2,    0.9,  0.9,  1.0,   1.2,  1.1,  "plume"),
    Breed("Tiger Mastiff",        "#a9774a", "#3c2819", "brindle", "mask",    "smooth", "drop",   0.8,  1.15,  0.8,    1.4,  1.1,  1.3,   1.1,  1.1,  "sabre"),
    Breed("Dotted Coachdog",      "#f7f5f0", "#232227", "spots",   "none",    "smooth", "drop",   0.9,  0.9,   1.1,    0.9,  0.9,  0.9,   1.0,  1.2,  "whip"),
    Breed("Apricot Curlet",       "#e0ab72", "#e7b985", "solid",   "none",    "curly",  "drop",   1.0,  0.9,   0.8,    0.8,  1.0,  0.8,   0.8,  0.9,  "plume"),
    Breed("Silver Sledder",       "#80868f", "#f4f4f2", "solid",   "urajiro", "long",   "prick",  0.9,  1.0,   1.1,    0.9,  0.9,  1.0,   1.1,  1.1,  "curl"),
    Breed("Wheaten Brushhound",   "#d8b67f", "#e6cfa5", "solid",   "none",    "wiry",   "drop",   0.8,  0.95,  1.1,    1.1,  1.0,  0.9,   1.0,  1.2,  "sabre"),
    Breed("Piebald Butterfly",    "#f6f1e8", "#9c5a2c", "patches", "hood",    "long",   "bat",    1.1,  0.85,  0.8,    0.7,  1.1,  0.8,   0.8,  0.7,  "plume"),
    Breed("Slate Courser",        "#7c7f88", "#e9e6e0", "solid",   "blaze",   "smooth", "rose",   0.8,  0.8,   1.5,    0.7,  0.85, 0.75,  1.2,  1.4,  "whip"),
    Breed("Tawny Brindlebolt",    "#c08a55", "#59371f", "brindle", "none",    "smooth", "rose",   0.9,  0.85,  1.3,    0.8,  0.9,  0.8,   1.1,  1.3,  "whip"),
    Breed("Old Cottage Shag",     "#8d949c", "#f3f0ea", "patches", "blaze",   "long",   "drop",   0.8,  1.15,  0.9,    1.1,  1.0,  1.2,   1.0,  1.0,  "stub"),
    Breed("Liver Merle Curl",     "#b08a72", "#5a3526", "merle",   "none",    "curly",  "long",   1.0,  1.0,   1.1,    1.0,  1.0,  1.0,   1.0,  1.0,  "sabre"),
)

# Which parts of the dog wear the second colour.
MARKINGS: Final = {
    "none": frozenset[str](),
    "blaze": frozenset({"blaze", "muzzle", "chest", "paw"}),
    "hood": frozenset({"ear", "patch"}),
    "mask": frozenset({"muzzle", "ear"}),
    "points": frozenset({"muzzle", "beard", "brow", "chest", "paw", "shin"}),
    "saddle": frozenset({"saddle", "ear", "tail", "muzzle"}),
    "urajiro": frozenset({"muzzle", "beard", "cheek", "brow", "chest", "paw"}),
}

# Outlines of a right ear about its root, in half heads: control points, a point given twice makes a sharper corner.
EARS: Final = {
    "prick":  ((-0.30, 0.25), (-0.26, -0.25), (-0.02, -0.95), (0.02, -0.98), (0.30, -0.35), (0.40, 0.30)),
    "bat":    ((-0.34, 0.25), (-0.42, -0.50), (-0.15, -1.20), (0.22, -1.25), (0.50, -0.60), (0.42, 0.30)),
    "button": ((-0.36, 0.10), (-0.28, -0.34), (0.10, -0.52), (0.44, -0.30), (0.34, 0.30), (0.30, 0.42), (0.02, 0.10)),
    "rose":   ((-0.30, 0.10), (-0.16, -0.30), (0.28, -0.44), (0.74, -0.20), (0.76, -0.10), (0.38, 0.10), (0.10, 0.25)),
    "drop":   ((-0.28, 0.00), (0.00, -0.34), (0.44, -0.14), (0.62, 0.50), (0.46, 1.02), (0.22, 1.02), (0.04, 0.45)),
    "long":   ((-0.28, 0.00), (0.02, -0.30), (0.44, -0.05), (0.66, 0.80), (0.62, 1.60), (0.22, 1.66), (0.10, 0.70)),
}
UPRIGHT: Final = frozenset({"prick", "bat"})

# The joints of a tail from its root: x, y and half width, in units of the body.
TAILS: Final = {
    "curl":  ((0.05, 0.05, 0.09), (-0.22, -0.16, 0.11), (-0.24, -0.44, 0.11), (0.00, -0.54, 0.10), (0.14, -0.38, 0.09), (0.04, -0.28, 0.06)),
    "whip":  ((0.05, 0.00, 0.07), (-0.22, 0.02, 0.05), (-0.44, -0.12, 0.035), (-0.62, -0.34, 0.02)),
    "plume": ((0.05, 0.00, 0.09), (-0.20, -0.14, 0.15), (-0.42, -0.42, 0.19), (-0.34, -0.74, 0.08)),
    "sabre": ((0.05, 0.00, 0.09), (-0.20, 0.14, 0.08), (-0.42, 0.22, 0.07), (-0.64, 0.14, 0.04)),
    "stub":  ((0.05, 0.05, 0.09), (-0.08, -0.06, 0.09), (-0.14, -0.12, 0.06)),
}

# How far parts of the dog take over the raggedness of its coat; the others do so wholly.
RAGGED: Final = {"muzzle": 0.4, "paw": 0.5, "ear": 0.6, "leg": 0.7, "skull": 0.8}

# How far the rim of a coat is torn, how strongly its grain shows; and the grain: wave lengths across and along, degrees.
COATS: Final = {
    "smooth": (0.10, 0.030, ((1.6, 6.0, 12.0),)),
    "long":   (0.75, 0.075, ((2.2, 16.0, 10.0), (2.2, 14.0, -14.0))),
    "wiry":   (0.60, 0.085, ((1.6, 7.0, 38.0), (1.6, 7.0, -32.0))),
    "curly":  (0.55, 0.110, ((5.0, 5.0, 0.0),)),
}
# fmt: on
HEAD: Final = 0.36  # half the width of an average head, in units of the body


# ---------------------------------------------------------------- one picture


def draw_dog(breed: Breed, number: int, seed: int) -> Image.Image:
    """Picture `number` of a breed, RGB, sides of 330 to 500 pixels: a pure function of its arguments."""
    rng = np.random.default_rng([seed, zlib.crc32(breed.name.encode()), number])
    dog = individual(breed, rng)
    width, height = (int(side) for side in rng.integers(330, 501, 2))
    pose, head = POSES[rng.integers(len(POSES))]
    frame = compose(dog, rng, (width, height), *head(dog))
    horizon = int(np.clip(frame.y * rng.uniform(0.62, 0.85), 0.4 * height, 0.85 * height))
    pixels, coat, mark = backdrop(rng, (height, width), horizon), *dye(dog, rng, (height, width), frame.scale)
    angle = rng.uniform(-2.6, -0.5)
    light = float(np.cos(angle)), float(np.sin(angle))
    easel = Easel(pixels, np.zeros_like(pixels[0]), dog, coat, mark, light, frame.scale, rng)
    pose(easel, frame)
    draw_head(easel, frame.inside(*head(dog), HEAD))
    return develop(easel)


def individual(breed: Breed, rng: Generator) -> Breed:
    """One dog of a breed: every proportion a few per cent off the standard."""
    numbers = [field.name for field in fields(breed) if field.type == "float"]
    return replace(breed, **{name: getattr(breed, name) * rng.normal(1, 0.035) for name in numbers})


def compose(dog: Breed, rng: Generator, size: tuple[int, int], x: float, y: float) -> Frame:
    """Where the dog, with its head at (x, y), goes: in a portrait the head is in the middle, else all is in view."""
    width, height = size
    flip = float(rng.choice([-1, 1]))
    if rng.random() < 0.45:
        scale = min(size) * rng.uniform(0.62, 0.86)
        left, top = width * rng.uniform(0.44, 0.56), height * rng.uniform(0.42, 0.5)
        return Frame(left - flip * scale * x, top - scale * y, scale, 0.0, flip)
    tail, nose, crown = -0.5 * dog.body - 0.45, x + 0.5, y - 0.5 - 0.3 * (dog.ears in UPRIGHT)
    scale = min(0.96 * width / (nose - tail), -0.92 * height / crown) * rng.uniform(0.85, 1)
    left = width / 2 - flip * scale * (tail + nose) / 2
    return Frame(left, height * rng.uniform(0.9, 0.96), scale, rng.normal(0, 0.035), flip)


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a drawing's own units fall on the picture: turned, scaled, mirrored when `flip` is -1, and moved."""

    x: float
    y: float
    scale: float
    turn: float = 0.0
    flip: float = 1.0

    def __call__(self, points: ArrayLike) -> Points:
        """Points `[n, 2]` in units, y downwards, as pixels."""
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        turned = np.asarray(points, np.float64) @ np.array([[cos, sin], [-sin, cos]])
        placed: Points = turned * np.array([self.scale * self.flip, self.scale]) + np.array([self.x, self.y])
        return placed

    def oval(self, x: float, y: float, across: float, down: float, turn: float = 0.0) -> Points:
        """The outline of an ellipse with these half axes, in pixels."""
        angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        return self(Frame(x, y, 1.0, turn)(np.stack([across * np.cos(angle), down * np.sin(angle)], axis=1)))

    def limb(self, *joints: tuple[float, float, float]) -> Points:
        """The outline of something long, in pixels: from joint to joint (x, y, half width), round at both ends."""
        line, half = np.array(joints)[:, :2], np.array(joints)[:, 2:]
        along = np.gradient(line, axis=0)
        along *= half / (np.linalg.norm(along, axis=1, keepdims=True) + 1e-6)
        across = along[:, ::-1] * np.array([-1.15, 1.15])
        start, end = line[:1] - 0.7 * along[:1], line[-1:] + 0.7 * along[-1:]
        return self(smooth(np.concatenate([start, line + across, end, (line - across)[::-1]])))

    def inside(self, x: float, y: float, scale: float = 1.0, turn: float = 0.0) -> Frame:
        """A frame within this one: its origin, its relative scale and its own turn."""
        ((left, top),) = self([(x, y)])
        return replace(self, x=float(left), y=float(top), scale=self.scale * scale, turn=self.turn + turn)


@dataclass(frozen=True, slots=True)
class Finish:
    """How a part is painted: brightness, bulge, how far its rim is torn, strength of the hair; flat: no rim, no shadow."""

    dim: float = 1.0
    relief: float = 0.75
    tear: float = 0.0
    hair: float = 0.0
    flat: bool = False


@dataclass(slots=True)
class Easel:
    """What one picture is painted with. `pixels` `[3, H, W]` in 0..1; `dog` `[H, W]`: how much of a pixel is dog."""

    pixels: Array
    dog: Array
    breed: Breed
    coat: Array
    mark: Array
    light: tuple[float, float]
    unit: float
    rng: Generator

    def near(self, mean: float, spread: float) -> float:
        """A number near `mean`: what makes one picture differ from the next."""
        return mean + spread * float(self.rng.uniform(-1, 1))

    def fur(self, part: str, *outlines: Points, dim: float = 1.0) -> None:
        """Paint a part of the dog in the colour that its breed wears there."""
        colour = self.mark if part in MARKINGS[self.breed.marking] else self.coat
        tear, hair, _ = COATS[self.breed.texture]
        paint(self, outlines, colour, Finish(dim, 0.75, tear * RAGGED.get(part, 1.0), hair))

    def marking(self, part: str, outline: Points, within: Points | None = None) -> None:
        """Paint a part that exists only where the breed's second colour does."""
        tear, hair, _ = COATS[self.breed.texture]
        if part in MARKINGS[self.breed.marking]:
            paint(self, (outline,), self.mark, Finish(1.0, 0.0, max(tear, 0.3), hair, flat=True), within)

    def enamel(self, outline: Points, colour: str, relief: float = 0.0) -> None:
        """Paint something smooth: an eye, the nose, the tongue."""
        paint(self, (outline,), shade_of(colour), Finish(1.0, relief, flat=relief == 0))


# ---------------------------------------------------------------- brushes


def smooth(corners: ArrayLike) -> Points:
    """A closed outline through which Chaikin's corner cutting has gone three times: a quadratic B-spline."""
    points = np.asarray(corners, np.float64)
    for _ in range(3):
        after = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * after, 0.25 * points + 0.75 * after], axis=1).reshape(-1, 2)
    return points


def shade_of(text: str) -> Array:
    """A colour in hexadecimal digits as numbers `[3, 1, 1]` in 0..1."""
    return np.asarray(ImageColor.getrgb(text), np.float32).reshape(3, 1, 1) / np.float32(255)


def cloud(rng: Generator, shape: tuple[int, int], cell: float) -> Array:
    """Smooth noise `[H, W]`, mean 0, whose features are about `cell` pixels across."""
    grid = rng.standard_normal([int(side / cell) + 3 for side in shape], dtype=np.float32)
    return np.asarray(Image.fromarray(grid * 1.3).resize(shape[::-1], Image.Resampling.BICUBIC))


@functools.lru_cache
def white() -> Array:
    """White noise `[1024, 1024]`, the same for every picture, from which each takes another window."""
    return np.random.default_rng(7).standard_normal((1024, 1024), dtype=np.float32)


@functools.lru_cache
def grain(texture: str) -> Array:
    """The hair of a coat: periodic noise `[1024, 1024]`, mean 0 and deviation 1, drawn out along its directions."""
    spectrum = np.fft.rfft2(white())
    down, across = np.meshgrid(np.fft.fftfreq(1024), np.fft.rfftfreq(1024), indexing="ij")
    power = np.zeros_like(down)
    for width, length, degrees in COATS[texture][2]:
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        u, v = (across * cos + down * sin) * width, (down * cos - across * sin) * length
        power += np.exp(-12 * (u * u + v * v)) * (u * u + v * v if width == length else 1)
    hair: Array = np.fft.irfft2(spectrum * power).astype(np.float32)
    return np.asarray((hair - hair.mean()) / hair.std())


def bounds(outlines: Sequence[Points], shape: tuple[int, ...], margin: float) -> Box | None:
    """The rows and columns of the picture that the outlines touch, or None when they lie outside."""
    points = np.concatenate(outlines)
    low = np.maximum(np.floor(points.min(axis=0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(points.max(axis=0) + margin), shape[1::-1]).astype(int)
    if (high - low < 2).any():
        return None
    return slice(low[1], high[1]), slice(low[0], high[0])


def stencil(outlines: Sequence[Points], box: Box) -> Image.Image:
    """What the outlines enclose within `box`, drawn three times too large and averaged down."""
    rows, columns = box
    image = Image.new("L", ((columns.stop - columns.start) * 3, (rows.stop - rows.start) * 3))
    for outline in outlines:
        ImageDraw.Draw(image).polygon(
            ((outline - (columns.start, rows.start)) * 3).ravel().tolist(), fill=255
        )
    return image.reduce(3)


def levels(mask: Image.Image, soft: float = 0.0) -> Array:
    """A mask as numbers in 0..1; its rim, where asked for, a slope that reaches `soft` pixels to either side."""
    return np.asarray(mask.filter(ImageFilter.BoxBlur(soft)) if soft else mask, np.float32) / np.float32(255)


def torn(mask: Image.Image, hair: Array, reach: float) -> Array:
    """A mask whose rim is torn along the hair, at most `reach` pixels to either side."""
    if reach < 0.5:
        return levels(mask)
    steep = 1.8 * reach + 1
    sway = 0.24 * (steep - 1) * np.clip(hair, -2, 2)
    return np.clip((levels(mask, reach) - 0.5) * steep + 0.5 + sway, 0, 1)


def relief_of(mask: Image.Image, light: tuple[float, float]) -> Array:
    """How much the bulge of a mask faces the light, about -1..1: found small and soft, then drawn large."""
    small = mask.reduce(max(1, min(mask.size) // 24))
    radius = 0.16 * min(small.size)
    broad, narrow = (levels(small.filter(ImageFilter.GaussianBlur(part * radius))) for part in (1, 1 / 3))
    down, across = np.gradient(broad + 0.6 * narrow)
    facing = Image.fromarray(-radius * (across * light[0] + down * light[1]))
    return np.asarray(facing.resize(mask.size, Image.Resampling.BICUBIC))


def paint(
    easel: Easel, outlines: Sequence[Points], colour: Array, finish: Finish, within: Points | None = None
) -> None:
    """Paint what the outlines enclose, and only on `within`; a flat finish only on what is dog already."""
    extent = float(np.ptp(np.concatenate(outlines), axis=0).min())
    reach, soft = finish.tear * 0.062 * easel.unit, min(0.06 * easel.unit, 0.25 * extent)
    box = bounds(outlines, easel.dog.shape, 2 + max(reach, soft))
    if box is None:
        return
    mask, view, below = stencil(outlines, box), easel.pixels[:, *box], easel.dog[box]
    hair = window(grain(easel.breed.texture), easel.rng, below.shape)
    cover = torn(mask, hair, reach)
    if within is not None:
        cover = cover * levels(stencil((within,), box), 1)
    if finish.flat:
        cover = cover * below
    else:
        view *= 1 - 0.35 * levels(mask, soft) * below
    view += cover * (
        lit(easel, colour if colour.shape[1] == 1 else colour[:, *box], mask, hair, finish) - view
    )
    np.maximum(below, cover, out=below)


def lit(easel: Easel, colour: Array, mask: Image.Image, hair: Array, finish: Finish) -> Array:
    """A colour under the easel's light: hair, bulge, and a dark line along the rim."""
    tone = finish.dim * (1 + finish.hair * hair)
    if finish.relief == 0:
        return colour * tone
    facing = finish.relief * relief_of(mask, easel.light)
    tone *= (0.6 + 0.4 * levels(mask, 0.02 * easel.unit)) * (1 + 0.55 * facing)
    shine: Array = np.maximum(facing, 0) * (0.07 * finish.dim)
    return colour * tone + shine


def window(noise: Array, rng: Generator, shape: tuple[int, ...]) -> Array:
    """A piece `[H, W]` of a larger noise, from a random place."""
    top, left = rng.integers(0, (noise.shape[0] - shape[0], noise.shape[1] - shape[1]))
    return noise[top : top + shape[0], left : left + shape[1]]


# ---------------------------------------------------------------- the dog


@dataclass(frozen=True, slots=True)
class Face:
    """A head's units (half its width), seen from a side: a point's depth `z` moves it on the picture."""

    frame: Frame
    yaw: float
    nod: float

    def at(self, x: float, y: float, z: float) -> tuple[float, float]:
        """The place of a point of the head, in the head's own flat units."""
        return float(x * np.cos(self.yaw) + z * np.sin(self.yaw)), float(y + z * np.sin(self.nod))

    def oval(self, x: float, y: float, z: float, across: float, down: float, turn: float = 0.0) -> Points:
        """An ellipse about a point of the head, in pixels."""
        return self.frame.oval(*self.at(x, y, z), across, down, turn)


def draw_head(easel: Easel, frame: Frame) -> None:
    """The head, a little turned and tilted; hanging ears lie over the cheeks, upright ones behind the skull."""
    tilted = replace(frame, turn=frame.turn + easel.near(0, 0.16))
    face = Face(tilted, easel.near(0.25, 0.45), easel.near(0.2, 0.12))
    upright = easel.breed.ears in UPRIGHT
    for draw in (draw_ears, draw_skull) if upright else (draw_skull, draw_ears):
        draw(easel, face)
    draw_muzzle(easel, face, 0.2 + 0.16 * easel.breed.muzzle, 0.75 + 0.6 * easel.breed.muzzle)
    for side in (-1, 1):
        x, y = face.at(side * 0.41 * easel.breed.eyes, -0.08, 0.78)
        draw_eye(easel, tilted.inside(x, y, 0.145), side)


def draw_ears(easel: Easel, face: Face) -> None:
    """Both ears at their roots; upright ones show their inside."""
    upright = easel.breed.ears in UPRIGHT
    x, y = (0.52, -0.62) if upright else (0.66, -0.5)
    for side in (-1.0, 1.0):
        place = face.at(side * x * easel.breed.skull, y, -0.1)
        root = face.frame.inside(*place, easel.breed.ear, side * easel.near(0.1, 0.1))
        shape = smooth(EARS[easel.breed.ears]) * np.array([side, 1])
        easel.fur("ear", root(shape), dim=0.93)
        if upright:
            skin = 0.5 * shade_of("#d99a8f") + 0.3 * easel.mark
            paint(easel, [root(shape * 0.6)], skin, Finish(relief=-0.4))


def draw_skull(easel: Easel, face: Face) -> None:
    """The head itself and what is marked on it."""
    wide, eyes = easel.breed.skull, easel.breed.eyes
    half = ((0.0, -0.98), (0.62, -0.92), (0.98, -0.35), (1.02, 0.25), (0.72, 0.78), (0.3, 0.98), (0.0, 1.0))
    right = np.array(half) * np.array([wide, 1])
    skull = face.frame(smooth(np.concatenate([right, right[-2:0:-1] * np.array([-1, 1])])))
    easel.fur("skull", skull)
    easel.marking("cheek", face.oval(-0.62 * wide, 0.5, 0.5, 0.42, 0.5), skull)
    easel.marking("cheek", face.oval(0.62 * wide, 0.5, 0.5, 0.42, 0.5), skull)
    easel.marking("patch", face.oval(0.42 * eyes, easel.near(-0.05, 0.05), 0.75, 0.38, 0.48), skull)
    crown, brow, nose = face.at(0, -1.0, 0.3), face.at(0, -0.3, 0.8), face.at(0, 0.4, 0.9)
    easel.marking("blaze", face.frame.limb((*crown, 0.16), (*brow, 0.12), (*nose, 0.34)), skull)


def draw_muzzle(easel: Easel, face: Face, low: float, deep: float) -> None:
    """Mouth, bridge, jowls, beard and nose. The tip is `low` under the middle of the head, `deep` before it."""
    jowl = easel.breed.jowl
    draw_mouth(easel, face.frame.inside(*face.at(0, low + 0.34, deep - 0.22)))
    root, middle = face.at(0, 0.12, 0.7), face.at(0, low - 0.02, deep / 2 + 0.35)
    tip = face.at(0, low + 0.08, deep - 0.1)
    easel.fur("muzzle", face.frame.limb((*root, 0.3 * jowl), (*middle, 0.33 * jowl), (*tip, 0.3 * jowl)))
    for side in (-jowl, jowl):
        size = 0.26 * jowl, 0.2 * jowl**0.5
        easel.fur("muzzle", face.oval(0.19 * side, low + 0.2, deep - 0.12, *size, 0.3 * side))
    draw_nose(easel, face.frame.inside(*face.at(0, low, deep), 0.17 + 0.05 * jowl))
    if easel.breed.texture == "wiry":
        for side in (-1, 1):
            easel.fur("beard", face.oval(0.24 * side, low + 0.42, deep - 0.15, 0.24, 0.4, -0.25 * side))
            easel.fur("brow", face.oval(0.4 * side * easel.breed.eyes, -0.3, 0.85, 0.27, 0.13, 0.35 * side))


def draw_mouth(easel: Easel, frame: Frame) -> None:
    """The lower jaw; on some days open, with a tongue."""
    jowl, drop = easel.breed.jowl, float(easel.rng.choice([0.0, 0.0, 0.14, 0.2]))
    easel.fur("muzzle", frame.oval(0, drop, 0.26 * jowl, 0.2 + drop / 2))
    if drop:
        easel.enamel(frame.oval(0, drop / 2, 0.2 * jowl, 0.12 + drop / 2), "#4a1c1e", 0.75)
        easel.enamel(frame.oval(0.03, drop + 0.1, 0.12 * jowl, 0.16 + drop / 2), "#e2818a", 0.75)


def draw_nose(easel: Easel, frame: Frame) -> None:
    """The nose, its shine, and the line below it."""
    half = ((1, -0.6), (1.15, 0.0), (0.25, 0.9))
    easel.enamel(frame.limb((0, 0.4, 0.07), (0, 1.6, 0.07)), "#2b1d1b")
    easel.enamel(frame(smooth([*half, *((-x, y) for x, y in half[::-1])])), "#241d1f", 0.75)
    easel.enamel(frame.oval(easel.light[0] * 0.3, -0.32, 0.4, 0.14), "#a79fa6")


def draw_eye(easel: Easel, frame: Frame, side: int) -> None:
    """An eye with the light in it, and the brow above where it is marked."""
    shine = easel.light[0] * frame.flip
    easel.marking("brow", frame.oval(side * 0.1, -2.0, 0.8, 0.6, side * 0.4))
    easel.enamel(frame.oval(0, 0.02, 1.2, 1.12), "#1c1414", 0.75)
    easel.enamel(frame.oval(0, 0.05, 0.96, 0.94), "#6b3f1e", -0.8)
    easel.enamel(frame.oval(0.08, 0.05, 0.62, 0.64), "#0b0808")
    easel.enamel(frame.oval(shine * 0.4, -0.36, 0.28, 0.26), "#ffffff")
    easel.enamel(frame.oval(-shine * 0.3, 0.42, 0.14, 0.1), "#9a8a7c")


def draw_tail(easel: Easel, frame: Frame) -> None:
    """The tail, wagging."""
    easel.fur("tail", replace(frame, turn=frame.turn + easel.near(0, 0.3)).limb(*TAILS[easel.breed.tail]))


def draw_foreleg(easel: Easel, frame: Frame, x: float, top: float, foot: float, dim: float = 1.0) -> None:
    """A foreleg from `top` (height, negative) straight down to the ground at 0."""
    thick = 0.06 + 0.03 * easel.breed.girth
    knee = x + (foot - x) * 0.4, top * 0.5
    leg = frame.limb((x, top, thick * 1.5), (*knee, thick), (foot, -0.06, thick * 0.8))
    easel.fur("leg", leg, dim=dim)
    easel.marking("shin", frame.oval(foot, -0.02, 0.16, -0.5 * top), leg)
    draw_paw(easel, frame, foot + 0.035, thick * 1.1, dim)


def draw_hindleg(easel: Easel, frame: Frame, x: float, top: float, foot: float, dim: float = 1.0) -> None:
    """A hind leg: a strong thigh, the knee forwards, the hock backwards."""
    thick = 0.06 + 0.03 * easel.breed.girth
    thigh, knee = (x, top, thick * 2.3), (x + 0.1, top * 0.62, thick * 1.5)
    leg = frame.limb(thigh, knee, (foot - 0.09, top * 0.33, thick * 0.75), (foot, -0.05, thick * 0.75))
    easel.fur("leg", leg, dim=dim)
    easel.marking("shin", frame.oval(foot, -0.02, 0.18, -0.4 * top), leg)
    draw_paw(easel, frame, foot + 0.04, thick * 1.1, dim)


def draw_paw(easel: Easel, frame: Frame, x: float, wide: float, dim: float = 1.0) -> None:
    """A paw on the ground, with its toes."""
    high = 0.045 + 0.18 * wide
    easel.fur("paw", frame.oval(x, -high * 0.75, wide, high), dim=dim)
    for toe in (x - 0.28 * wide, x + 0.3 * wide):
        easel.enamel(frame.limb((toe, -high * 0.75, 0.007), (toe, -high * 0.1, 0.007)), "#2a211d")


def draw_collar(easel: Easel, frame: Frame) -> None:
    """On every second dog a collar with a tag."""
    colour = easel.rng.choice(["#b3272d", "#2458a6", "#2f7d4f", "#d9a520", "#7a3f8f", *[""] * 5])
    if colour:
        easel.enamel(frame.limb((-0.26, -0.08, 0.04), (0, 0.03, 0.04), (0.26, -0.08, 0.04)), colour, 0.5)
        easel.enamel(frame.oval(0.02, 0.1, 0.045, 0.045), "#d8b04a", 0.75)


def cast_shadow(easel: Easel, frame: Frame, half: float) -> None:
    """Darken the ground under a dog that reaches `half` to either side."""
    outline = frame.oval(-0.1 * frame.flip * easel.light[0], -0.03, half * 1.1, 0.11)
    box = bounds((outline,), easel.dog.shape, 0.2 * easel.unit)
    if box is not None:
        easel.pixels[:, *box] *= 1 - 0.6 * levels(stencil((outline,), box), 0.09 * easel.unit)


def stand(easel: Easel, frame: Frame) -> None:
    """Standing, seen from the side."""
    girth, long, high = easel.breed.girth, 0.5 * easel.breed.body, -0.55 * easel.breed.legs - 0.05
    deep, step = 0.27 * girth, easel.near(0.0, 0.11)
    cast_shadow(easel, frame, long)
    draw_tail(easel, frame.inside(-long - 0.12, high - 0.26))
    draw_hindleg(easel, frame, -long + 0.06, high - 0.1, -long + 0.1 - step, 0.7)
    draw_foreleg(easel, frame, long - 0.02, high - 0.05, long + 0.06 - step, 0.7)
    hip, waist = (-long, high - 0.2, deep * 0.85), (-long * 0.3, high - 0.2, deep * 0.82)
    torso = frame.limb(hip, waist, (long, high - 0.18, deep * 1.12))
    neck = frame.limb((long - 0.04, high - 0.24, deep), (long + 0.2, high - 0.7, 0.19 * girth**0.5))
    easel.fur("torso", torso, neck)
    easel.marking("saddle", frame.limb((-long - 0.1, high - 0.38, deep), (long, high - 0.46, 0.26)))
    easel.marking("chest", frame.limb((long + 0.2, high - 0.12, 0.15), (long + 0.3, high - 0.6, 0.19)))
    draw_hindleg(easel, frame, -long - 0.02, high - 0.14, -long + 0.04 + step)
    draw_foreleg(easel, frame, long - 0.06, high - 0.1, long - 0.02 + step)
    draw_collar(easel, frame.inside(long + 0.22, high - 0.52))


def sit(easel: Easel, frame: Frame) -> None:
    """Sitting, seen from the front."""
    girth, tall = easel.breed.girth, -0.62 - 0.3 * easel.breed.legs
    deep, thick = 0.3 * girth, 0.22 * girth**0.5
    cast_shadow(easel, frame, deep + 0.2)
    draw_tail(easel, frame.inside(-0.3, -0.2))
    torso = frame.limb((0, -0.2, deep * 1.2), (0.02, tall * 0.6, deep * 1.1), (0.05, tall, deep * 0.72))
    easel.fur("torso", torso, frame.limb((0.03, tall + 0.05, thick * 1.1), (0.05, tall - 0.15, thick * 0.9)))
    easel.marking("saddle", frame.limb((-0.42, -0.1, 0.22), (-0.32, tall, 0.2)))
    easel.marking("chest", frame.oval(0.04, tall * 0.85, 0.2, 0.36))
    for side in (-deep, deep):
        easel.fur("leg", frame.oval(side * 1.12, -0.2, deep * 0.63, 0.23, side))
        draw_paw(easel, frame, side * 1.3, 0.13)
    for side in (-deep, deep):
        draw_foreleg(easel, frame, side * 0.5, tall * 0.62, side * 0.48)
    draw_collar(easel, frame.inside(0.05, tall + 0.02))


def lie(easel: Easel, frame: Frame) -> None:
    """Lying, the forelegs towards us."""
    girth, long, front = easel.breed.girth, 0.55 * easel.breed.body, 0.4 * easel.breed.body
    deep, thick = 0.26 * girth, 0.21 * girth**0.5
    cast_shadow(easel, frame, long + 0.2)
    draw_tail(easel, frame.inside(-long - 0.08, -0.26))
    torso = frame.limb((-long, -deep, deep), (0, -deep - 0.02, deep * 0.95), (front, -deep - 0.1, deep * 1.1))
    easel.fur("torso", torso, frame.limb((front, -deep - 0.1, deep), (front + 0.03, -deep - 0.55, thick)))
    easel.marking("saddle", frame.limb((-long - 0.1, -deep * 1.8, deep), (front, -deep * 2, deep)))
    easel.marking("chest", frame.oval(front + 0.06, -deep - 0.12, 0.19, 0.34))
    easel.fur("leg", frame.oval(-long + 0.08, -0.23, deep * 0.96, 0.23))
    draw_paw(easel, frame, -long + 0.28, 0.16)
    for foot in (front - 0.14, front + 0.16):
        easel.fur("leg", frame.limb((foot - 0.04, -0.32, 0.11), (foot, -0.1, 0.1)))
        draw_paw(easel, frame, foot + 0.02, 0.14)
    draw_collar(easel, frame.inside(front + 0.04, -deep - 0.36))


# A pose: what draws it, and where the head then belongs.
POSES: Final[tuple[tuple[Callable[[Easel, Frame], None], Callable[[Breed], tuple[float, float]]], ...]] = (
    (stand, lambda breed: (0.5 * breed.body + 0.27, -0.55 * breed.legs - 0.93)),
    (sit, lambda breed: (0.06, -0.96 - 0.3 * breed.legs)),
    (lie, lambda breed: (0.4 * breed.body + 0.05, -0.26 * breed.girth - 0.66)),
)


def dye(breed: Breed, rng: Generator, shape: tuple[int, int], unit: float) -> tuple[Array, Array]:
    """The cloth of one dog, none quite like another: its coat `[3, H, W]` and its second colour `[3, 1, 1]`."""
    coat, mark = (vary(rng, colour, 0.02, 0.05) for colour in (breed.coat, breed.mark))
    cloth = coat * (1 + 0.04 * cloud(rng, shape, 0.25 * unit))
    return cloth + np.clip(pattern(breed.pattern, rng, shape, unit), 0, 1) * (mark - cloth), mark


def pattern(name: str, rng: Generator, shape: tuple[int, int], unit: float) -> Array:
    """How much of a coat is in the second colour, `[H, W]` or `[1, 1]`, to be clipped to 0..1; `unit` in pixels."""
    amount: Array = np.zeros((1, 1), np.float32)
    if name == "spots":
        amount = cloud(rng, shape, 0.06 * unit) * 9 - 9
    if name == "patches":
        amount = cloud(rng, shape, 0.3 * unit) * 16 - 4
    if name == "merle":
        amount = cloud(rng, shape, 0.12 * unit) * 3 + cloud(rng, shape, 0.04 * unit) * 2 - 1
    if name == "brindle":
        bend = np.linspace(0, 75 * shape[1] / unit, shape[1], dtype=np.float32) + 3 * cloud(
            rng, shape, 0.3 * unit
        )
        amount = 1.5 * np.sin(bend) + cloud(rng, shape, 0.1 * unit) * 0.8 - 0.2
    return amount


# ---------------------------------------------------------------- the world around it


@dataclass(frozen=True, slots=True)
class Scene:
    """A place. `colours`: sky above, sky below, what stands far off, ground far, ground near; how rough it is."""

    colours: str
    rough: float
    lights: str = ""
    indoors: bool = False


SCENES: Final = (
    Scene("#6fa8dc #dcebf2 #5f8a55 #86a650 #5d7f33", 0.22),  # meadow
    Scene("#3f5c38 #7d9a5c #2f4a2c #6b8046 #4c5f30", 0.20, lights="#d9e8a0"),  # wood
    Scene("#7fb4e0 #e8f1f4 #3f86ab #e3cfa4 #cdb184", 0.08),  # beach
    Scene("#b9c9d8 #eef2f5 #7f929c #f2f5f8 #dce5ee", 0.05),  # snow
    Scene("#8c6a4c #d8b384 #7c4a2a #a8804e #7d5a36", 0.24, lights="#ffd28a"),  # autumn
    Scene("#2c3350 #8a6a7c #262a3c #6f6a70 #55525a", 0.12, lights="#ffdca0"),  # evening in town
    Scene("#d9d2c5 #cfc6b6 #8f7a68 #b98d5f #8f673f", 0.06, indoors=True),  # room
    Scene("#9db8b2 #a9c2bb #d8cfc0 #8c8f96 #6f7279", 0.10, indoors=True),  # hall
    Scene("#bdb4bb #cfc8cc #b6abb2 #d2cacd #b3a9ae", 0.02, indoors=True),  # studio
)


def backdrop(rng: Generator, shape: tuple[int, int], horizon: int) -> Array:
    """A place `[3, H, W]` out of focus, in focus on the ground near us."""
    scene, (height, width) = SCENES[rng.integers(len(SCENES))], shape
    sky, haze, far, ground, near = (vary(rng, colour) for colour in scene.colours.split())
    above = ramp(sky, haze, horizon) * (1 + 0.05 * cloud(rng, (horizon, width), 90))
    below = ramp(ground, near, height - horizon) * np.ones(width, np.float32)
    image = to_image(np.concatenate([above, below], axis=1))
    (furnish if scene.indoors else plant)(rng, image, horizon, far)
    if scene.lights:
        twinkle(rng, image, horizon, scene.lights)
    soft = defocus(image, rng.uniform(2, 7))
    soft[:, horizon:] *= 1 + scene.rough * litter(rng, (height - horizon, width))
    return soft


def ramp(top: Array, bottom: Array, height: int) -> Array:
    """A vertical gradient `[3, height, 1]`."""
    return top + np.linspace(0, 1, height, dtype=np.float32)[:, None] * (bottom - top)


def defocus(image: Image.Image, radius: float) -> Array:
    """A picture out of focus as numbers in 0..1, blurred at half its size."""
    small = image.reduce(2).filter(ImageFilter.GaussianBlur(radius / 2))
    return to_array(small.resize(image.size, Image.Resampling.BILINEAR))


def vary(rng: Generator, colour: str, hue: float = 0.03, shade: float = 0.07) -> Array:
    """A colour `[3, 1, 1]` near the one named."""
    factor = rng.normal(1, hue, (3, 1, 1)) + rng.normal(0, shade)
    return np.clip(shade_of(colour) * factor, 0, 1).astype(np.float32)


def litter(rng: Generator, shape: tuple[int, int]) -> Array:
    """Grass, sand or leaves: hair of the ground, ever stronger towards us."""
    blades = window(grain("long"), rng, shape) + 0.8 * cloud(rng, shape, 25)
    return blades * np.linspace(0.1, 0.9, shape[0], dtype=np.float32)[:, None]


def ink(colour: Array, alpha: float = 1.0) -> tuple[int, ...]:
    """A colour in 0..1 as Pillow wants it."""
    return *(int(level) for level in np.clip(colour.ravel(), 0, 1) * 255), int(255 * alpha)


def plant(rng: Generator, image: Image.Image, horizon: int, colour: Array) -> None:
    """Hills or trees along the horizon, the farther ones paler."""
    draw, width = ImageDraw.Draw(image, "RGBA"), image.width
    for depth in (1.0, 0.6):
        rough = cloud(rng, (2, width), 90)[0] + 0.5 * cloud(rng, (2, width), 25)[0]
        crest = horizon - horizon * depth * (0.3 + 0.16 * rough)
        line = [(0, horizon), *enumerate(crest.tolist()), (width, horizon)]
        draw.polygon(line, ink(colour * (0.7 + 0.5 * depth), 0.85))


def furnish(rng: Generator, image: Image.Image, horizon: int, colour: Array) -> None:
    """A few large things against the wall, a skirting board, and the lines of a floor."""
    draw, (width, height) = ImageDraw.Draw(image, "RGBA"), image.size
    for _ in range(rng.integers(1, 4)):
        left, right = np.array([0, rng.uniform(0.15, 0.45)]) * width + rng.uniform(-0.1, 0.9) * width
        top, bottom = horizon * rng.uniform(0.1, 0.7), horizon * rng.choice([1.0, 0.75])
        draw.rounded_rectangle((left, top, right, bottom), 6, ink(colour * rng.uniform(0.6, 1.5), 0.9))
    draw.rectangle((0, horizon - 8, width, horizon), ink(colour * 1.3))
    for x in np.linspace(-0.6, 1.6, 10) * width:
        draw.line((x, height, 0.3 * width + 0.4 * x, horizon), ink(colour * 0.5, 0.25), 2)


def twinkle(rng: Generator, image: Image.Image, horizon: int, colour: str) -> None:
    """Lights out of focus: discs, brighter at the rim."""
    draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(rng.integers(12, 30)):
        x, y, radius = rng.uniform(0, image.width), rng.uniform(0, horizon), rng.uniform(4, 22)
        tint = ink(vary(rng, colour), float(rng.uniform(0.15, 0.5)))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), tint, outline=tint, width=2)


def to_image(pixels: Array) -> Image.Image:
    """Numbers `[3, H, W]` in 0..1 as an 8-bit picture."""
    planes = (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)
    return Image.merge("RGB", [Image.fromarray(plane) for plane in planes])


def to_array(image: Image.Image) -> Array:
    """An 8-bit picture as numbers `[3, H, W]` in 0..1."""
    return np.stack([levels(plane) for plane in image.split()])


def develop(easel: Easel) -> Image.Image:
    """Light, lens and film: dapples and vignette, exposure and tint, highlights that roll off, noise, softness."""
    rng, (height, width) = easel.rng, easel.dog.shape
    down, across = (np.linspace(-1, 1, side, dtype=np.float32) ** 2 for side in (height, width))
    gain = 1 + rng.uniform(0, 0.12) * cloud(rng, (height, width), 110)
    gain *= 1 - rng.uniform(0, 0.14) * (down[:, None] + across)
    warm, green, exposure = rng.normal(0, 0.05), rng.normal(0, 0.015), rng.lognormal(0.09, 0.12)
    tint = np.array([1 + warm, 1 + green, 1 - warm], np.float32).reshape(3, 1, 1)
    pixels = easel.pixels * tint * (gain * exposure)
    pixels -= 0.12 * pixels * pixels * pixels
    pixels += rng.uniform(0.014, 0.032) * window(white(), rng, (height, width))
    return to_image(pixels).filter(ImageFilter.BoxBlur(max(0.0, rng.uniform(-0.4, 0.4))))
