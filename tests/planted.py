"""Plant faults in a folder of images, and write down where: the truth for a comparison of those who look for them.

    python tests/planted.py IMAGES --out OUT --each 12

Before it: `greyhound demo IMAGES`, of which only the images without a fault of their own are taken, or any folder
of photographs. After it: OUT/images and OUT/planted.csv (path, fault, kind, of); `contest` reads both.
"""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from greyhound.cache.cli import run
from greyhound.cache.folder import named_as_image
from greyhound.cache.options import read_call
from greyhound.cache.store import PackError

Picture = Image.Image


@dataclass(frozen=True)
class Planted:
    """One fault. path, of: relative to the folder. of: the original, for duplicates."""

    path: str
    fault: str
    kind: str
    of: str = ""


def blur(picture: Picture, share: int) -> Picture:
    """Out of focus, by one part in `share` of the short side."""
    return picture.filter(ImageFilter.GaussianBlur(min(picture.size) / share))


def enlarge(picture: Picture) -> Picture:
    """A poster: the picture six times across and down, so that it is as sharp as it was."""
    return Image.fromarray(np.tile(np.asarray(picture), (6, 6, 1)))


def cut_strip(picture: Picture) -> Picture:
    """A strip from the middle, seven times as wide as it is high."""
    high = picture.width // 7
    top = (picture.height - high) // 2
    return picture.crop((0, top, picture.width, top + high))


def crop(picture: Picture) -> Picture:
    """3 % off every side."""
    across, down = round(picture.width * 0.03), round(picture.height * 0.03)
    return picture.crop((across, down, picture.width - across, picture.height - down))


CHANGED: Final[dict[str, dict[str, Callable[[Picture], Picture]]]] = {
    "dark": {"a tenth of the light": lambda picture: picture.point(lambda level: level * 0.1)},
    "bright": {
        "nine tenths to white": lambda picture: picture.point(lambda level: 255 - (255 - level) * 0.1),
        "five times the light": lambda picture: picture.point(lambda level: level * 5),
    },
    "blurred": {"by a thirtieth": lambda picture: blur(picture, 30), "by a tenth": lambda p: blur(p, 10)},
    "grayscale": {
        "one channel": lambda picture: picture.convert("L"),
        "three equal channels": lambda picture: picture.convert("L").convert("RGB"),
    },
    "odd-size": {
        "a twelfth": lambda picture: picture.resize((picture.width // 12, picture.height // 12)),
        "six by six": enlarge,
        "a strip of 7 : 1": cut_strip,
    },
}
COPIED: Final[dict[str, Callable[[Picture], Picture]]] = {
    "re-encoded": lambda picture: picture,
    "resized": lambda picture: picture.resize((round(picture.width * 0.7), round(picture.height * 0.7))),
    "cropped": crop,
    "mirrored": ImageOps.mirror,
}


def plant(source: Path, out: Path, each: int = 12, seed: int = 0) -> list[Planted]:
    """Copy the images of `source` and plant `each` of every fault, in images that carry no other. Raises PackError."""
    clean = find_clean(source)
    wanted = 2 * each * (len(CHANGED) + 2)
    if len(clean) < wanted:
        count = f"{len(clean)} images without a fault"
        raise PackError(f"{source} has {count}; expected at least {wanted} for {each} of each")
    images = out / "images"
    for path in clean:
        (images / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, images / path)
    chosen = iter(np.random.default_rng(seed).permutation(clean).tolist())
    found = [*change(images, chosen, each), *copy(images, chosen, each)]
    with (out / "planted.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(field.name for field in fields(Planted))
        table.writerows(map(astuple, found))
    return found


def find_clean(source: Path) -> list[str]:
    """The images of a folder; of a demo set those in which nothing is planted, and of which there is no copy."""
    truth = source / "truth.csv"
    rows = list(csv.DictReader(truth.open(encoding="utf-8"))) if truth.exists() else []
    marred = {name for row in rows if row["fault"] for name in (row["path"], row["of"])}
    files = sorted(file for file in source.rglob("*") if named_as_image(file))
    return [path for path in (file.relative_to(source).as_posix() for file in files) if path not in marred]


def change(images: Path, chosen: Iterator[str], each: int) -> Iterator[Planted]:
    """Spoil images in their place."""
    for fault, kinds in CHANGED.items():
        for number in range(each):
            kind = list(kinds)[number % len(kinds)]
            path = next(chosen)
            with Image.open(images / path) as picture:
                changed = kinds[kind](picture.convert("RGB"))
            changed.save(images / path, "JPEG", quality=90)
            yield Planted(path, fault, kind)


def copy(images: Path, chosen: Iterator[str], each: int) -> Iterator[Planted]:
    """Put copies beside images, every other one into the folder of another image."""
    folders = sorted({file.parent for file in images.rglob("*") if file.is_file()})
    for fault in ("exact", "near"):
        for number in range(each):
            original = next(chosen)
            place = (images / original).parent if number % 2 else folders[number % len(folders)]
            copied, kind = place / f"{fault}_{number:03}.jpg", "the same bytes"
            if fault == "exact":
                shutil.copyfile(images / original, copied)
            else:
                kind = list(COPIED)[number % len(COPIED)]
                with Image.open(images / original) as picture:
                    COPIED[kind](picture.convert("RGB")).save(copied, "JPEG", quality=80)
            yield Planted(copied.relative_to(images).as_posix(), f"{fault}-duplicate", kind, original)


def main() -> int:
    """Plant what the command line asks for."""

    def command(source: Path, out: Path, each: int = 12, seed: int = 0) -> int:
        """Plant faults in copies of the images of SOURCE, below OUT.

        Args:
            source: A folder of images, such as a demo set.
            out: A new folder.
            each: Of every fault.
            seed: Other images.
        """
        if out.exists():
            raise PackError(f"{out} is there already; name a new folder")
        found = plant(source, out, each, seed)
        print(f"{len(found)} faults planted in {out / 'images'}; truth: {out / 'planted.csv'}")
        return 0

    return read_call(command, sys.argv[1:], "python tests/planted.py")()


if __name__ == "__main__":
    run(main)
