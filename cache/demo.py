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

from cache.survey import available_cores

Array = NDArray[np.float32]
Progress = Callable[[int, int], None]
Box = tuple[slice, slice]


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
    #      name                  coat       mark       pattern    marking    texture   ears     ear  skull muzz jowl eyes girth body legs  tail
    Breed("Marsh Pointer",      "#f1ebe0", "#6b3d22", "spots",   "hood",    "smooth", "drop",   1.0, 0.95, 1.3, 0.9, 0.95, 0.9, 1.1, 1.2, "whip"),
    Breed("Copper Fenhound",    "#a8562a", "#8c4420", "solid",   "none",    "smooth", "long",   1.1, 0.9,  1.2, 0.9, 0.9,  0.9, 1.1, 1.1, "whip"),
    Breed("Snowdrift Spitz",    "#f7f3ec", "#fdfaf5", "solid",   "none",    "long",   "prick",  0.8, 1.0,  0.8, 0.8, 0.95, 1.1, 0.9, 0.9, "plume"),
    Breed("Harbour Terrier",    "#77787c", "#b9b6ae", "solid",   "urajiro", "wiry",   "button", 0.9, 0.9,  0.9, 1.1, 0.95, 0.9, 0.8, 0.8, "stub"),
    Breed("Black Alder Sheepdog", "#2a2a2e", "#f3efe8", "solid", "blaze",   "long",   "button", 0.9, 1.0,  1.0, 0.9, 1.0,  1.0, 1.0, 1.0, "plume"),
    Breed("Amber Shiba",        "#d08a45", "#f6e9d4", "solid",   "urajiro", "smooth", "prick",  0.8, 1.05, 0.8, 0.9, 1.0,  1.0, 0.9, 0.9, "curl"),
    Breed("Barrel Bulldog",     "#c9a27a", "#f3ebdd", "solid",   "blaze",   "smooth", "rose",   0.9, 1.15, 0.4, 1.5, 1.3,  1.3, 0.9, 0.7, "stub"),
    Breed("Curly Reedwater",    "#5d3a28", "#4c2e20", "solid",   "none",    "curly",  "long",   0.9, 0.95, 1.0, 0.9, 0.95, 1.0, 1.0, 1.1, "whip"),
    Breed("Coal Ratter",        "#27262a", "#b8733a", "solid",   "points",  "smooth", "prick",  1.0, 0.85, 1.0, 0.8, 0.9,  0.8, 0.9, 1.0, "whip"),
    Breed("Blue Merle Drover",  "#9aa3ae", "#3f444e", "merle",   "none",    "long",   "drop",   0.8, 1.0,  1.0, 0.9, 1.0,  1.0, 1.0, 0.9, "stub"),
    Breed("Fawn Batling",       "#d9b184", "#33291f", "solid",   "mask",    "smooth", "bat",    1.0, 1.05, 0.4, 1.2, 1.3,  1.1, 0.8, 0.7, "stub"),
    Breed("Patchwork Beaglet",  "#f4eee3", "#b06a34", "patches", "hood",    "smooth", "drop",   1.1, 0.95, 1.0, 1.0, 1.0,  1.0, 1.0, 0.8, "sabre"),
    Breed("Saddle Mountain Dog", "#c48a4e", "#2c2826", "solid",  "saddle",  "long",   "prick",  1.0, 0.95, 1.2, 0.9, 0.9,  1.0, 1.2, 1.1, "plume"),
    Breed("Tiger Mastiff",      "#a9774a", "#3c2819", "brindle", "mask",    "smooth", "drop",   0.8, 1.15, 0.8, 1.4, 1.1,  1.3, 1.1, 1.1, "sabre"),
    Breed("Dotted Coachdog",    "#f7f5f0", "#232227", "spots",   "none",    "smooth", "drop",   0.9, 0.9,  1.1, 0.9, 0.9,  0.9, 1.0, 1.2, "whip"),
    Breed("Apricot Curlet",     "#e0ab72", "#e7b985", "solid",   "none",    "curly",  "drop",   1.0, 0.9,  0.8, 0.8, 1.0,  0.8, 0.8, 0.9, "plume"),
    Breed("Long Burrower",      "#7a3f22", "#5e2f19", "solid",   "none",    "smooth", "long",   1.0, 0.85, 1.3, 0.8, 0.9,  0.9, 1.5, 0.4, "whip"),
    Breed("Silver Sledder",     "#80868f", "#f4f4f2", "solid",   "urajiro", "long",   "prick",  0.9, 1.0,  1.1, 0.9, 0.9,  1.0, 1.1, 1.1, "curl"),
    Breed("Wheaten Brushhound", "#d8b67f", "#e6cfa5", "solid",   "none",    "wiry",   "drop",   0.8, 0.95, 1.1, 1.1, 1.0,  0.9, 1.0, 1.2, "sabre"),
    Breed("Piebald Butterfly",  "#f6f1e8", "#9c5a2c", "patches", "hood",    "long",   "bat",    1.1, 0.85, 0.8, 0.7, 1.1,  0.8, 0.8, 0.7, "plume"),
    Breed("Slate Courser",      "#7c7f88", "#e9e6e0", "solid",   "blaze",   "smooth", "rose",   0.8, 0.8,  1.5, 0.7, 0.85, 0.75, 1.2, 1.4, "whip"),
    Breed("Tawny Brindlebolt",  "#c08a55", "#59371f", "brindle", "none",    "smooth", "rose",   0.9, 0.85, 1.3, 0.8, 0.9,  0.8, 1.1, 1.3, "whip"),
    Breed("Old Cottage Shag",   "#8d949c", "#f3f0ea", "patches", "blaze",   "long",   "drop",   0.8, 1.15, 0.9, 1.1, 1.0,  1.2, 1.0, 1.0, "stub"),
    Breed("Pepper Schnauz",     "#4e4f53", "#c9c6bf", "solid",   "points",  "wiry",   "prick",  0.7, 0.95, 1.0, 1.2, 0.95, 1.0, 0.9, 0.9, "stub"),
    Breed("Rust Dingo",         "#b9682f", "#ecd4b0", "solid",   "urajiro", "smooth", "bat",    0.8, 0.9,  1.1, 0.8, 0.9,  0.85, 1.1, 1.2, "sabre"),
    Breed("Liver Merle Curl",   "#b08a72", "#5a3526", "merle",   "none",    "curly",  "long",   1.0, 1.0,  1.1, 1.0, 1.0,  1.0, 1.0, 1.0, "sabre"),
)

# Which parts of the dog wear the second colour.
MARKINGS: Final = {
    "none": frozenset[str](),
    "blaze": frozenset({"blaze", "muzzle", "chest", "paw"}),
    "hood": frozenset({"ear", "patch"}),
    "mask": frozenset({"muzzle", "ear"}),
    "points": frozenset({"muzzle", "brow", "chest", "paw", "shin"}),
    "saddle": frozenset({"saddle", "ear", "tail", "crown"}),
    "urajiro": frozenset({"muzzle", "cheek", "brow", "chest", "paw"}),
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

# Centre line of a tail from its root, in units of the body, and its half widths.
TAILS: Final = {
    "curl":  (((0.05, 0.05), (-0.22, -0.16), (-0.24, -0.44), (0.00, -0.54), (0.14, -0.38), (0.04, -0.28)), (0.09, 0.11, 0.11, 0.10, 0.09, 0.06)),
    "whip":  (((0.05, 0.00), (-0.22, 0.02), (-0.44, -0.12), (-0.62, -0.34)), (0.07, 0.05, 0.035, 0.02)),
    "plume": (((0.05, 0.00), (-0.20, -0.14), (-0.42, -0.42), (-0.34, -0.74)), (0.09, 0.15, 0.19, 0.08)),
    "sabre": (((0.05, 0.00), (-0.20, 0.14), (-0.42, 0.22), (-0.64, 0.14)), (0.09, 0.08, 0.07, 0.04)),
    "stub":  (((0.05, 0.05), (-0.08, -0.06), (-0.14, -0.12)), (0.09, 0.09, 0.06)),
}

# How far the rim of a coat is torn, how strongly its grain shows; and the grain: wave lengths across and along, degrees.
COATS: Final = {
    "smooth": (0.10, 0.030, ((1.6, 6.0, 12.0),)),
    "long":   (0.75, 0.075, ((2.2, 16.0, 10.0), (2.2, 14.0, -14.0))),
    "wiry":   (0.60, 0.085, ((1.6, 7.0, 38.0), (1.6, 7.0, -32.0))),
    "curly":  (0.55, 0.110, ((5.0, 5.0, 0.0),)),
}
# fmt: on
HEAD: Final = 0.36  # half the width of an average head, in units of the body


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
STRAYS: Final = (
    1_000_000  # a mislabelled image has a number from here on: its own folder never holds the same one
)


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


def draw_demo(
    out: Path, classes: int = 12, per_class: int = 60, seed: int = 0, progress: Progress | None = None
) -> DemoSummary:
    """Draw `classes` folders of `per_class` images into `out`, and `truth.csv` with one line for every image.

    All is drawn beside `out` and renamed at the end, so a failure leaves nothing behind. progress: called with
    (images done, images in all). Raises ValueError for numbers out of range, FileExistsError when `out` is in use.
    """
    out = Path(out).absolute()
    _check("classes", classes, 2, len(BREEDS))
    _check("per_class", per_class, 1, STRAYS)
    _check("seed", seed, 0, 2**63)
    _check_vacant(out)
    plans = plan_demo(classes, per_class, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
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
        raise ValueError(f"{name} is {value}, expected {low} to {high}: choose a number in that range")


def _check_vacant(out: Path) -> None:
    if not out.exists() and not out.is_symlink():
        return
    found = f"{len(list(out.iterdir()))} entries" if out.is_dir() else "a file"
    if found != "0 entries":
        raise FileExistsError(
            f"{out}: found {found}, expected a new or empty folder: name another, or remove it"
        )


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
        image = image.resize(
            image.size, Image.Resampling.BICUBIC, (0.03 * width, 0.02 * height, 0.98 * width, 0.97 * height)
        )
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


# ---------------------------------------------------------------- one picture


def individual(breed: Breed, rng: Generator) -> Breed:
    """One dog of a breed: every proportion a few per cent off the standard."""
    numbers = {
        field.name: getattr(breed, field.name) * (1 + 0.035 * rng.standard_normal())
        for field in fields(breed)
        if field.type == "float"
    }
    return replace(breed, **numbers)


def draw_dog(breed: Breed, number: int, seed: int) -> Image.Image:
    """Picture `number` of a breed, RGB, sides of 330 to 500 pixels: a pure function of its arguments."""
    rng = np.random.default_rng([seed, zlib.crc32(breed.name.encode()), number])
    dog = individual(breed, rng)
    width, height = (int(side) for side in rng.integers(330, 501, 2))
    pose, head = POSES[rng.integers(len(POSES))]
    frame = compose(dog, rng, width, height, head(dog))
    coat, mark = dye(dog, rng, (height, width), frame.scale)
    horizon = int(np.clip(frame.y * rng.uniform(0.62, 0.85), 0.4 * height, 0.85 * height))
    light = rng.uniform(-2.6, -0.5)
    easel = Easel(
        pixels=backdrop(rng, (height, width), horizon),
        dog=np.zeros((height, width), np.float32),
        breed=dog,
        coat=coat,
        mark=mark,
        light=(float(np.cos(light)), float(np.sin(light))),
        unit=frame.scale,
        rng=rng,
    )
    pose(easel, frame)
    draw_head(easel, frame.inside(*head(dog), HEAD))
    return develop(easel)


def compose(dog: Breed, rng: Generator, width: int, height: int, head: tuple[float, float]) -> Frame:
    """Where the dog goes: for a portrait the head in the middle, else the whole dog in view."""
    flip, turn, (x, y) = float(rng.choice([-1, 1])), float(rng.normal(0, 0.035)), head
    if rng.random() < 0.45:
        scale = float(min(width, height) * rng.uniform(0.62, 0.86))
        left, top = width * rng.uniform(0.44, 0.56), height * rng.uniform(0.42, 0.5)
        return Frame(left - flip * scale * x, top - scale * y, scale, turn * 0, flip)
    low, high = -0.5 * dog.body - 0.45, x + 0.5
    scale = float(
        min(0.96 * width / (high - low), 0.92 * height / (0.5 + 0.3 * (dog.ears in UPRIGHT) - y))
        * rng.uniform(0.85, 1)
    )
    ground = height * float(rng.uniform(0.9, 0.96))
    return Frame(width / 2 - flip * scale * (low + high) / 2, ground, scale, turn, flip)


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a drawing's own units fall on the picture: turned, scaled, mirrored when `flip` is -1, and moved."""

    x: float
    y: float
    scale: float
    turn: float = 0.0
    flip: float = 1.0

    def __call__(self, points: ArrayLike) -> Array:
        """Points `[n, 2]` in units, y downwards, as pixels."""
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        turned = np.asarray(points, np.float32) @ np.array([[cos, sin], [-sin, cos]], np.float32)
        return (turned * (self.scale * self.flip, self.scale) + (self.x, self.y)).astype(np.float32)

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

    def fur(self, part: str, *outlines: Array, dim: float = 1.0, ragged: float = 1.0) -> None:
        """Paint a part of the dog in the colour that its breed wears there."""
        marked = part in MARKINGS[self.breed.marking]
        tear, hair, _ = COATS[self.breed.texture]
        paint(self, outlines, self.mark if marked else self.coat, Finish(dim, 0.75, tear * ragged, hair))

    def marking(self, part: str, outline: Array, within: Array | None = None) -> None:
        """Paint a part that exists only where the breed's second colour does."""
        tear, hair, _ = COATS[self.breed.texture]
        if part in MARKINGS[self.breed.marking]:
            paint(self, (outline,), self.mark, Finish(1.0, 0.0, max(tear, 0.3), hair, flat=True), within)

    def enamel(self, outline: Array, colour: str, relief: float = 0.75) -> None:
        """Paint something smooth: an eye, the nose, the tongue."""
        paint(self, (outline,), shade_of(colour), Finish(1.0, relief, flat=relief == 0))


# ---------------------------------------------------------------- brushes


def smooth(corners: ArrayLike) -> Array:
    """A closed outline through which Chaikin's corner cutting has gone three times: a quadratic B-spline."""
    points = np.asarray(corners, np.float32)
    for _ in range(3):
        after = np.roll(points, -1, axis=0)
        points = np.stack([0.75 * points + 0.25 * after, 0.25 * points + 0.75 * after], axis=1).reshape(-1, 2)
    return points


def oval(x: float, y: float, across: float, down: float, turn: float = 0.0) -> Array:
    """The outline of an ellipse with these half axes."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return Frame(x, y, 1.0, turn)(np.stack([across * np.cos(angle), down * np.sin(angle)], axis=1))


def limb(spine: ArrayLike, widths: Sequence[float]) -> Array:
    """The outline of something long: a line of points and the half width at each, rounded at both ends."""
    line, half = np.asarray(spine, np.float32), np.asarray(widths, np.float32)[:, None]
    along = np.gradient(line, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-6
    across = along[:, ::-1] * (-1, 1) * half * 1.15
    start, end = line[0] - along[0] * half[0] * 0.7, line[-1] + along[-1] * half[-1] * 0.7
    return smooth(np.concatenate([[start], line + across, [end], (line - across)[::-1]]))


def shade_of(text: str) -> Array:
    """A colour in hexadecimal digits as numbers `[3, 1, 1]` in 0..1."""
    return np.asarray(ImageColor.getrgb(text), np.float32).reshape(3, 1, 1) / 255


def cloud(rng: Generator, shape: tuple[int, int], cell: float) -> Array:
    """Smooth noise `[H, W]`, mean 0, whose features are about `cell` pixels across."""
    grid = rng.standard_normal([int(side / cell) + 3 for side in shape], dtype=np.float32)
    return np.asarray(Image.fromarray(grid).resize(shape[::-1], Image.Resampling.BICUBIC)) * 1.3


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
    hair = np.fft.irfft2(spectrum * power)
    return ((hair - hair.mean()) / hair.std()).astype(np.float32)


def bounds(outlines: Sequence[Array], shape: tuple[int, ...], margin: float) -> Box | None:
    """The rows and columns of the picture that the outlines touch, or None when they lie outside."""
    points = np.concatenate(outlines)
    low = np.maximum(np.floor(points.min(axis=0) - margin), 0).astype(int)
    high = np.minimum(np.ceil(points.max(axis=0) + margin), shape[1::-1]).astype(int)
    if (high - low < 2).any():
        return None
    return slice(low[1], high[1]), slice(low[0], high[0])


def stencil(outlines: Sequence[Array], box: Box) -> Image.Image:
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
    return np.asarray(mask.filter(ImageFilter.BoxBlur(soft)) if soft else mask, np.float32) / 255


def torn(mask: Image.Image, hair: Array, reach: float) -> Array:
    """A mask whose rim is torn along the hair, at most `reach` pixels to either side."""
    if reach < 0.5:
        return levels(mask)
    steep = 1.8 * reach + 1
    return np.clip(
        (levels(mask, reach) - 0.5 + 0.24 * (1 - 1 / steep) * np.clip(hair, -2, 2)) * steep + 0.5, 0, 1
    )


def relief_of(cover: Image.Image, light: tuple[float, float]) -> Array:
    """How much the bulge of a mask faces the light, about -1..1: found small and soft, then drawn large."""
    shrink = max(1, min(cover.size) // 24)
    small = cover.reduce(shrink)
    radius = 0.16 * min(small.size)
    bulge = sum(
        share * levels(small.filter(ImageFilter.GaussianBlur(part * radius)))
        for part, share in ((1, 1), (1 / 3, 0.6))
    )
    down, across = np.gradient(bulge)
    facing = -(across * light[0] + down * light[1]) * radius
    return np.asarray(Image.fromarray(facing.astype(np.float32)).resize(cover.size, Image.Resampling.BICUBIC))


def paint(
    easel: Easel, outlines: Sequence[Array], colour: Array, finish: Finish, within: Array | None = None
) -> None:
    """Paint what the outlines enclose, and only on `within`; a flat finish only on what is dog already."""
    extent = float(np.ptp(np.concatenate(outlines), axis=0).min())
    reach, soft = finish.tear * 0.062 * easel.unit, min(0.06 * easel.unit, 0.25 * extent)
    box = bounds(outlines, easel.dog.shape, 2 + max(reach, soft))
    if box is None:
        return
    mask, hair = stencil(outlines, box), hair_in(easel, box)
    cover = torn(mask, hair, reach)
    if within is not None:
        cover = cover * levels(stencil((within,), box), 1)
    view, below = easel.pixels[:, *box], easel.dog[box]
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
    return colour * tone + (0.07 * finish.dim) * np.maximum(facing, 0)


def hair_in(easel: Easel, box: Box) -> Array:
    """A piece of the coat's grain as large as `box`."""
    rows, columns = box
    return window(
        grain(easel.breed.texture), easel.rng, (rows.stop - rows.start, columns.stop - columns.start)
    )


def window(noise: Array, rng: Generator, shape: tuple[int, int]) -> Array:
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

    def oval(self, x: float, y: float, z: float, across: float, down: float, turn: float = 0.0) -> Array:
        """An ellipse about a point of the head, in pixels."""
        return self.frame(oval(*self.at(x, y, z), across, down, turn))


def draw_ears(easel: Easel, face: Face) -> None:
    """Both ears at their roots; upright ones show their inside."""
    breed = easel.breed
    upright = breed.ears in UPRIGHT
    for side in (-1.0, 1.0):
        x, y = face.at(side * (0.52 if upright else 0.66) * breed.skull, -0.62 if upright else -0.5, -0.1)
        root = face.frame.inside(x, y, breed.ear, side * easel.near(0.1, 0.1))
        shape = np.asarray(EARS[breed.ears]) * (side, 1)
        easel.fur("ear", root(smooth(shape)), dim=0.93, ragged=0.6)
        if upright:
            inner = smooth(shape * 0.6 + (0.03 * side, 0.02))
            paint(easel, (root(inner),), 0.5 * shade_of("#d99a8f") + 0.3 * easel.mark, Finish(relief=-0.4))


def draw_skull(easel: Easel, face: Face) -> None:
    """The head itself and what is marked on it."""
    wide = easel.breed.skull
    half = ((0.0, -0.98), (0.62, -0.92), (0.98, -0.35), (1.02, 0.25), (0.72, 0.78), (0.3, 0.98))
    corners = [*half, (0.0, 1.0), *[(-x, y) for x, y in half[:0:-1]]]
    skull = face.frame(smooth([(x * wide, y) for x, y in corners]))
    easel.fur("skull", skull, ragged=0.8)
    easel.marking("crown", face.oval(0, -0.75, 0.5, 0.75 * wide, 0.5), skull)
    for side in (-1, 1):
        easel.marking("cheek", face.oval(side * 0.62 * wide, 0.5, 0.5, 0.42, 0.5), skull)
    patch = easel.breed.eyes * 0.42, easel.near(-0.05, 0.05), 0.75
    easel.marking("patch", face.oval(*patch, 0.38, 0.48), skull)
    stripe = [face.at(0, -1.0, 0.3), face.at(0, -0.3, 0.8), face.at(0, 0.4, 0.9)]
    easel.marking("blaze", face.frame(limb(stripe, (0.16, 0.12, 0.34))), skull)


def draw_muzzle(easel: Easel, face: Face) -> None:
    """Bridge, mouth, jowls and nose; a long muzzle is one whose tip stands far out."""
    breed = easel.breed
    deep, low = 0.75 + 0.6 * breed.muzzle, 0.2 + 0.16 * breed.muzzle
    draw_mouth(easel, face, low, deep)
    bridge = [
        face.at(0, 0.12, 0.7),
        face.at(0, low - 0.02, (deep + 0.7) / 2),
        face.at(0, low + 0.08, deep - 0.1),
    ]
    easel.fur(
        "muzzle",
        face.frame(limb(bridge, (0.30 * breed.jowl, 0.33 * breed.jowl, 0.30 * breed.jowl))),
        ragged=0.4,
    )
    for side in (-1, 1):
        easel.fur(
            "muzzle",
            face.oval(
                side * 0.19 * breed.jowl,
                low + 0.2,
                deep - 0.12,
                0.26 * breed.jowl,
                0.2 * breed.jowl**0.5,
                side * 0.3,
            ),
            ragged=0.4,
        )
    draw_nose(easel, face, low, deep)


def draw_mouth(easel: Easel, face: Face, low: float, deep: float) -> None:
    """The lower jaw; on some days open, with a tongue."""
    x, y = face.at(0, low + 0.34, deep - 0.22)
    jowl, drop = easel.breed.jowl, easel.rng.choice([0.0, 0.0, 0.14, 0.2])
    easel.fur("muzzle", face.frame(oval(x, y + drop, 0.26 * jowl, 0.2 + drop / 2)), ragged=0.4)
    if drop:
        easel.enamel(face.frame(oval(x, y + drop / 2, 0.2 * jowl, 0.12 + drop / 2)), "#4a1c1e")
        easel.enamel(face.frame(oval(x + 0.03, y + drop + 0.1, 0.12 * jowl, 0.16 + drop / 2)), "#e2818a")


def draw_nose(easel: Easel, face: Face, low: float, deep: float) -> None:
    """The nose, its shine, and the line below it."""
    x, y = face.at(0, low, deep)
    size = 0.17 + 0.05 * easel.breed.jowl
    nose = face.frame.inside(x, y, size)
    easel.enamel(nose(limb([(0, 0.4), (0, 1.6)], (0.07, 0.07))), "#2b1d1b", 0.0)
    easel.enamel(
        nose(smooth([(-1, -0.6), (1, -0.6), (1.15, 0.0), (0.25, 0.9), (-0.25, 0.9), (-1.15, 0.0)])), "#241d1f"
    )
    easel.enamel(nose(oval(easel.light[0] * 0.3, -0.32, 0.4, 0.14)), "#a79fa6", 0.0)


def draw_eyes(easel: Easel, face: Face) -> None:
    """Two eyes with the light in them, and the brows above."""
    size = easel.near(0.145, 0.012)
    gaze = easel.near(0, 0.03)
    for side in (-1, 1):
        x, y = face.at(side * 0.41 * easel.breed.eyes, -0.08, 0.78)
        eye = face.frame.inside(x, y, size)
        skull = eye(oval(0, 0, 3, 3))
        easel.marking("brow", eye(oval(side * 0.1, -2.0, 0.8, 0.6, side * 0.4)), skull)
        easel.enamel(eye(oval(0, 0.02, 1.2, 1.12)), "#1c1414")
        easel.enamel(eye(oval(gaze, 0.05, 0.96, 0.94)), "#6b3f1e", -0.8)
        easel.enamel(eye(oval(gaze * 4, 0.05, 0.62, 0.64)), "#0b0808", 0.0)
        easel.enamel(eye(oval(easel.light[0] * 0.4, -0.36, 0.28, 0.26)), "#ffffff", 0.0)
        easel.enamel(eye(oval(-easel.light[0] * 0.3, 0.42, 0.14, 0.1)), "#9a8a7c", 0.0)


def draw_whiskers(easel: Easel, face: Face) -> None:
    """What a wire-haired dog has more of: brows and a beard."""
    if easel.breed.texture != "wiry":
        return
    low, deep = 0.2 + 0.16 * easel.breed.muzzle, 0.6 + 0.6 * easel.breed.muzzle
    for side in (-1, 1):
        easel.fur("muzzle", face.oval(side * 0.24, low + 0.42, deep, 0.24, 0.4, side * -0.25))
        easel.fur("brow", face.oval(side * 0.4 * easel.breed.eyes, -0.3, 0.85, 0.27, 0.13, side * 0.35))


def draw_head(easel: Easel, frame: Frame) -> None:
    """The head, a little turned, a little tilted; hanging ears lie over the cheeks, upright ones behind the skull."""
    face = Face(
        replace(frame, turn=frame.turn + easel.near(0, 0.16)), easel.near(0.25, 0.45), easel.near(0.2, 0.12)
    )
    if easel.breed.ears in UPRIGHT:
        draw_ears(easel, face)
    draw_skull(easel, face)
    if easel.breed.ears not in UPRIGHT:
        draw_ears(easel, face)
    draw_muzzle(easel, face)
    draw_whiskers(easel, face)
    draw_eyes(easel, face)


def draw_tail(easel: Easel, frame: Frame) -> None:
    """The tail, wagging."""
    spine, widths = TAILS[easel.breed.tail]
    easel.fur("tail", replace(frame, turn=frame.turn + easel.near(0, 0.3))(limb(spine, widths)))


def draw_foreleg(easel: Easel, frame: Frame, x: float, top: float, foot: float, dim: float = 1.0) -> None:
    """A foreleg from `top` (height, negative) straight down to the ground at 0."""
    thick = 0.06 + 0.03 * easel.breed.girth
    leg = frame(
        limb([(x, top), (x + (foot - x) * 0.4, top * 0.5), (foot, -0.06)], (thick * 1.5, thick, thick * 0.8))
    )
    easel.fur("leg", leg, dim=dim, ragged=0.7)
    easel.marking("shin", frame(oval(foot, -0.02, 0.16, -0.5 * top)), leg)
    draw_paw(easel, frame, foot + 0.035, thick, dim)


def draw_hindleg(easel: Easel, frame: Frame, x: float, top: float, foot: float, dim: float = 1.0) -> None:
    """A hind leg: a strong thigh, the knee forwards, the hock backwards."""
    thick = 0.06 + 0.03 * easel.breed.girth
    spine = [(x, top), (x + 0.1, top * 0.62), (foot - 0.09, top * 0.33), (foot, -0.05)]
    leg = frame(limb(spine, (thick * 2.3, thick * 1.5, thick * 0.75, thick * 0.75)))
    easel.fur("leg", leg, dim=dim, ragged=0.7)
    easel.marking("shin", frame(oval(foot, -0.02, 0.18, -0.4 * top)), leg)
    draw_paw(easel, frame, foot + 0.04, thick, dim)


def draw_paw(easel: Easel, frame: Frame, x: float, thick: float, dim: float = 1.0, size: float = 1.0) -> None:
    """A paw on the ground, with its toes."""
    wide, high = thick * 1.1 * size, 0.062 * size
    easel.fur("paw", frame(oval(x, -high * 0.75, wide, high)), dim=dim, ragged=0.5)
    for shift in (-0.28, 0.3):
        toe = [(x + shift * wide, -high * 0.75), (x + shift * wide * 1.15, -high * 0.1)]
        easel.enamel(frame(limb(toe, (0.007, 0.007))), "#2a211d", 0.0)


def draw_collar(easel: Easel, frame: Frame, x: float, y: float) -> None:
    """On every third dog a collar with a tag."""
    colour = easel.rng.choice(["#b3272d", "#2458a6", "#2f7d4f", "#d9a520", "#7a3f8f", "", "", "", "", ""])
    if colour:
        easel.enamel(
            frame(limb([(x - 0.26, y - 0.08), (x, y + 0.03), (x + 0.26, y - 0.08)], (0.04, 0.04, 0.04))),
            colour,
            0.5,
        )
        easel.enamel(frame(oval(x + 0.02, y + 0.1, 0.045, 0.045)), "#d8b04a")


def cast_shadow(easel: Easel, frame: Frame, left: float, right: float) -> None:
    """Darken the ground under the dog."""
    middle, half = (left + right) / 2 - 0.1 * frame.flip * easel.light[0], (right - left) / 2
    outline = frame(oval(middle, -0.03, half * 1.1, 0.11))
    box = bounds((outline,), easel.dog.shape, 0.2 * easel.unit)
    if box is not None:
        easel.pixels[:, *box] *= 1 - 0.6 * levels(stencil((outline,), box), 0.09 * easel.unit)


def stand(easel: Easel, frame: Frame) -> None:
    """Standing, seen from the side."""
    breed = easel.breed
    high, long, deep = standing(breed)
    step = easel.near(0.0, 0.11)
    cast_shadow(easel, frame, -long, long)
    draw_tail(easel, frame.inside(-long - 0.12, high - 0.26))
    draw_hindleg(easel, frame, -long + 0.06, high - 0.1, -long + 0.1 - step, 0.7)
    draw_foreleg(easel, frame, long - 0.02, high - 0.05, long + 0.06 - step, 0.7)
    spine = [(-long, high - 0.2), (-long * 0.3, high - 0.2), (long, high - 0.18)]
    torso = frame(limb(spine, (deep * 0.85, deep * 0.82, deep * 1.12)))
    neck = frame(
        limb(
            [(long - 0.04, high - 0.24), (long + 0.2, high - 0.7)],
            (0.27 * breed.girth, 0.19 * breed.girth**0.5),
        )
    )
    easel.fur("torso", torso, neck)
    easel.marking(
        "saddle", frame(limb([(-long - 0.1, high - 0.38), (long, high - 0.46)], (0.3 * breed.girth, 0.26)))
    )
    easel.marking("chest", frame(limb([(long + 0.2, high - 0.12), (long + 0.3, high - 0.6)], (0.15, 0.19))))
    draw_hindleg(easel, frame, -long - 0.02, high - 0.14, -long + 0.04 + step)
    draw_foreleg(easel, frame, long - 0.06, high - 0.1, long - 0.02 + step)
    draw_collar(easel, frame, long + 0.22, high - 0.52)


def standing(breed: Breed) -> tuple[float, float, float]:
    """Height of the belly (negative), half the length, half the depth of a standing dog."""
    return -0.55 * breed.legs - 0.05, 0.5 * breed.body, 0.27 * breed.girth


def sit(easel: Easel, frame: Frame) -> None:
    """Sitting, seen from the front."""
    breed = easel.breed
    tall, deep = -0.62 - 0.3 * breed.legs, 0.3 * breed.girth
    cast_shadow(easel, frame, -deep - 0.2, deep + 0.2)
    draw_tail(easel, frame.inside(-0.3, -0.2))
    torso = frame(limb([(0, -0.2), (0.02, tall * 0.6), (0.05, tall)], (deep * 1.2, deep * 1.1, deep * 0.72)))
    neck = frame(
        limb([(0.03, tall + 0.05), (0.05, tall - 0.15)], (0.25 * breed.girth**0.5, 0.2 * breed.girth**0.5))
    )
    easel.fur("torso", torso, neck)
    easel.marking("saddle", frame(limb([(-0.42, -0.1), (-0.32, tall)], (0.22, 0.2))))
    easel.marking("chest", frame(oval(0.04, tall * 0.85, 0.2, 0.36)))
    for side in (-1, 1):
        easel.fur(
            "leg", frame(oval(side * deep * 1.12, -0.2, 0.19 * breed.girth, 0.23, side * 0.3)), ragged=0.7
        )
        draw_paw(easel, frame, side * deep * 1.3, 0.1, size=1.25)
    for side in (-1, 1):
        draw_foreleg(easel, frame, side * deep * 0.5, tall * 0.62, side * deep * 0.48)
    draw_collar(easel, frame, 0.05, tall + 0.02)


def lie(easel: Easel, frame: Frame) -> None:
    """Lying, the forelegs towards us."""
    breed = easel.breed
    long, deep = 0.55 * breed.body, 0.26 * breed.girth
    front = long * 0.72
    cast_shadow(easel, frame, -long - 0.2, long + 0.2)
    draw_tail(easel, frame.inside(-long - 0.08, -0.26))
    torso = frame(
        limb([(-long, -deep), (0, -deep - 0.02), (front, -deep - 0.1)], (deep, deep * 0.95, deep * 1.1))
    )
    neck = frame(
        limb(
            [(front, -deep - 0.1), (front + 0.03, -deep - 0.55)],
            (0.26 * breed.girth, 0.21 * breed.girth**0.5),
        )
    )
    easel.fur("torso", torso, neck)
    easel.marking("saddle", frame(limb([(-long - 0.1, -deep * 1.8), (front, -deep * 2)], (deep, deep))))
    easel.marking("chest", frame(oval(front + 0.06, -deep - 0.12, 0.19, 0.34)))
    easel.fur("leg", frame(oval(-long + 0.08, -0.23, 0.25 * breed.girth, 0.23)), ragged=0.7)
    draw_paw(easel, frame, -long + 0.28, 0.15)
    for shift in (-0.14, 0.16):
        easel.fur(
            "leg",
            frame(limb([(front + shift - 0.04, -0.32), (front + shift, -0.1)], (0.11, 0.1))),
            ragged=0.7,
        )
        draw_paw(easel, frame, front + shift + 0.02, 0.11, size=1.2)
    draw_collar(easel, frame, front + 0.04, -deep - 0.36)


# A pose: what draws it, and where the head then belongs.
POSES: Final[tuple[tuple[Callable[[Easel, Frame], None], Callable[[Breed], tuple[float, float]]], ...]] = (
    (stand, lambda breed: (0.5 * breed.body + 0.27, -0.55 * breed.legs - 0.93)),
    (sit, lambda breed: (0.06, -0.96 - 0.3 * breed.legs)),
    (lie, lambda breed: (0.4 * breed.body + 0.05, -0.26 * breed.girth - 0.66)),
)
PATTERNS: Final[dict[str, Callable[[Generator, tuple[int, int], float], Array]]] = {
    "spots": lambda rng, shape, unit: (cloud(rng, shape, 0.06 * unit) - 1.0) * 9,
    "patches": lambda rng, shape, unit: (cloud(rng, shape, 0.3 * unit) - 0.25) * 16,
    "merle": lambda rng, shape, unit: (
        (cloud(rng, shape, 0.12 * unit) + 0.6 * cloud(rng, shape, 0.04 * unit) - 0.35) * 3
    ),
    "brindle": lambda rng, shape, unit: brindle(rng, shape, unit),
}
"""How much of a coat is in the second colour, `[H, W]`, clipped to 0..1; `unit` in pixels."""


def brindle(rng: Generator, shape: tuple[int, int], unit: float) -> Array:
    """Tiger stripes: a wave across the coat, bent and interrupted."""
    across = np.arange(shape[1], dtype=np.float32) / unit
    return np.asarray(
        np.sin(60 * across + 4 * cloud(rng, shape, 0.2 * unit)) + cloud(rng, shape, 0.1 * unit), np.float32
    )


def dye(breed: Breed, rng: Generator, shape: tuple[int, int], unit: float) -> tuple[Array, Array]:
    """The cloth of one dog: its coat `[3, H, W]` and its second colour `[3, 1, 1]`; no two dogs are of quite one shade."""
    coat, mark = (vary(rng, colour, 0.02, 0.05) for colour in (breed.coat, breed.mark))
    cloth = coat * (1 + 0.04 * cloud(rng, shape, 0.25 * unit))
    if breed.pattern in PATTERNS:
        cloth += np.clip(PATTERNS[breed.pattern](rng, shape, unit), 0, 1) * (mark - cloth)
    return cloth, mark


# ---------------------------------------------------------------- the world around it


@dataclass(frozen=True, slots=True)
class Scene:
    """A place: colours from the top of the sky downwards, what stands far off, and what lies on the ground."""

    sky: str
    haze: str
    far: str
    ground: str
    near: str
    rough: float
    lights: str = ""
    indoors: bool = False


SCENES: Final = (
    Scene("#6fa8dc", "#dcebf2", "#5f8a55", "#86a650", "#5d7f33", 0.22),  # meadow
    Scene("#3f5c38", "#7d9a5c", "#2f4a2c", "#6b8046", "#4c5f30", 0.20, "#d9e8a0"),  # wood
    Scene("#7fb4e0", "#e8f1f4", "#3f86ab", "#e3cfa4", "#cdb184", 0.08),  # beach
    Scene("#b9c9d8", "#eef2f5", "#7f929c", "#f2f5f8", "#dce5ee", 0.05),  # snow
    Scene("#8c6a4c", "#d8b384", "#7c4a2a", "#a8804e", "#7d5a36", 0.24, "#ffd28a"),  # autumn
    Scene("#2c3350", "#8a6a7c", "#262a3c", "#6f6a70", "#55525a", 0.12, "#ffdca0"),  # evening in town
    Scene("#d9d2c5", "#cfc6b6", "#8f7a68", "#b98d5f", "#8f673f", 0.06, "", True),  # room
    Scene("#9db8b2", "#a9c2bb", "#d8cfc0", "#8c8f96", "#6f7279", 0.10, "", True),  # hall
    Scene("#bdb4bb", "#cfc8cc", "#b6abb2", "#d2cacd", "#b3a9ae", 0.02, "", True),  # studio
)


def ramp(top: Array, bottom: Array, height: int, width: int) -> Array:
    """A vertical gradient `[3, height, width]`."""
    step = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    return np.broadcast_to(top + step * (bottom - top), (3, height, width)).copy()


def backdrop(rng: Generator, shape: tuple[int, int], horizon: int) -> Array:
    """A place `[3, H, W]` out of focus, in focus on the ground near us."""
    scene = SCENES[rng.integers(len(SCENES))]
    height, width = shape
    tints = {part: vary(rng, getattr(scene, part)) for part in ("sky", "haze", "far", "ground", "near")}
    above, below = (
        ramp(tints["sky"], tints["haze"], horizon, width),
        ramp(tints["ground"], tints["near"], height - horizon, width),
    )
    above *= 1 + 0.05 * cloud(rng, (horizon, width), 90)
    image = to_image(np.concatenate([above, below], axis=1))
    (furnish if scene.indoors else plant)(rng, image, horizon, tints["far"])
    if scene.lights:
        twinkle(rng, image, horizon, scene.lights)
    soft = defocus(image, rng.uniform(2, 7))
    soft[:, horizon:] *= 1 + scene.rough * litter(rng, (height - horizon, width))
    return soft


def defocus(image: Image.Image, radius: float) -> Array:
    """A picture out of focus as numbers in 0..1, blurred at half its size."""
    small = image.reduce(2).filter(ImageFilter.GaussianBlur(radius / 2))
    return to_array(small.resize(image.size, Image.Resampling.BILINEAR))


def vary(rng: Generator, colour: str, hue: float = 0.03, shade: float = 0.07) -> Array:
    """A colour `[3, 1, 1]` near the one named."""
    factor = (
        1 + hue * rng.standard_normal((3, 1, 1), np.float32) + shade * rng.standard_normal(dtype=np.float32)
    )
    return np.clip(shade_of(colour) * factor, 0, 1)


def litter(rng: Generator, shape: tuple[int, int]) -> Array:
    """Grass, sand or leaves: hair of the ground, ever stronger towards us."""
    blades = window(grain("long"), rng, shape) + 0.8 * cloud(rng, shape, 25)
    return np.asarray(blades * np.linspace(0.1, 0.9, shape[0], dtype=np.float32)[:, None], np.float32)


def ink(colour: Array, alpha: float = 1.0) -> tuple[int, ...]:
    """A colour in 0..1 as Pillow wants it."""
    return *(int(255 * min(max(level, 0), 1)) for level in colour.ravel()), int(255 * alpha)


def plant(rng: Generator, image: Image.Image, horizon: int, colour: Array) -> None:
    """Hills or trees along the horizon."""
    draw = ImageDraw.Draw(image, "RGBA")
    for depth in (1.0, 0.6):
        rise = (
            (0.3 + 0.16 * (cloud(rng, (2, image.width), 90)[0] + 0.5 * cloud(rng, (2, image.width), 25)[0]))
            * horizon
            * depth
        )
        crest = list(zip(range(image.width), (horizon - rise).tolist(), strict=True))
        draw.polygon([(0, horizon), *crest, (image.width, horizon)], ink(colour * (0.7 + 0.5 * depth), 0.85))


def furnish(rng: Generator, image: Image.Image, horizon: int, colour: Array) -> None:
    """A skirting board, and a few large things against the wall."""
    draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(rng.integers(1, 4)):
        left, wide = rng.uniform(-0.1, 0.9) * image.width, rng.uniform(0.15, 0.45) * image.width
        top = rng.uniform(0.1, 0.8) * horizon
        bottom = horizon * rng.choice([1.0, 0.75]) + 4
        draw.rounded_rectangle(
            (left, min(top, bottom - 8), left + wide, bottom), 6, ink(colour * rng.uniform(0.6, 1.5), 0.9)
        )
    draw.rectangle((0, horizon - 8, image.width, horizon), ink(colour * 1.3))
    for x in np.linspace(-0.6, 1.6, 10) * image.width:
        draw.line(
            (x, image.height, image.width / 2 + (x - image.width / 2) * 0.4, horizon),
            ink(colour * 0.5, 0.25),
            2,
        )


def twinkle(rng: Generator, image: Image.Image, horizon: int, colour: str) -> None:
    """Lights out of focus: discs, brighter at the rim."""
    draw = ImageDraw.Draw(image, "RGBA")
    for _ in range(rng.integers(12, 30)):
        x, y, radius = rng.uniform(0, image.width), rng.uniform(0, horizon), rng.uniform(4, 22)
        tint = ink(vary(rng, colour), float(rng.uniform(0.15, 0.5)))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), tint, outline=tint, width=2)


def to_image(pixels: Array) -> Image.Image:
    """Numbers `[3, H, W]` in 0..1 as an 8-bit picture."""
    return Image.merge(
        "RGB", [Image.fromarray(plane) for plane in (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)]
    )


def to_array(image: Image.Image) -> Array:
    """An 8-bit picture as numbers `[3, H, W]` in 0..1."""
    return np.stack([np.asarray(plane, np.float32) for plane in image.split()]) / 255


def develop(easel: Easel) -> Image.Image:
    """Light, lens and film: dapples and vignette, exposure and tint, highlights that roll off, noise, softness."""
    rng, (height, width) = easel.rng, easel.dog.shape
    down, across = (np.linspace(-1, 1, side, dtype=np.float32) ** 2 for side in (height, width))
    gain = 1 + rng.uniform(0, 0.12) * cloud(rng, (height, width), 110)
    gain *= 1 - rng.uniform(0, 0.14) * (down[:, None] + across)
    warm, exposure = rng.normal(0, 0.05), float(np.exp(rng.normal(0.09, 0.12)))
    tint = np.array([1 + warm, 1 + rng.normal(0, 0.015), 1 - warm], np.float32).reshape(3, 1, 1) * exposure
    pixels = easel.pixels * gain
    pixels *= tint
    pixels -= 0.12 * pixels * pixels * pixels
    pixels += rng.uniform(0.014, 0.032) * window(white(), rng, (height, width))
    return to_image(pixels).filter(ImageFilter.BoxBlur(max(0.0, rng.uniform(-0.4, 0.4))))
