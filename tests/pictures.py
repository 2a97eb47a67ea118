"""Test images that know who they are: red says where across, green where down, blue which image.

Before it: nothing. After it: the tests read position, orientation and label back from the pixels, whatever was cropped.
"""

from __future__ import annotations

import csv
import io
import struct
import zlib
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from greyhound.cache.demo.faults import draw_demo
from greyhound.cache.pack import Options, pack
from greyhound.cache.scan import WHITE, ImageInfo
from greyhound.cache.store import SPLITS, Header, Pack
from greyhound.cache.validate import DaliDecoder, finish, look_at, look_into

Pixels = NDArray[np.uint8]
BICUBIC = Image.Resampling.BICUBIC
ALL_TRAIN = Options(val=0, test=0)
BLUE_STEP = 8
"""Levels of blue from one identity to the next: more than JPEG or interpolation can blur."""


def coded(width: int, height: int, identity: int = 0) -> Pixels:
    """An image `[height, width, 3]`: red 0..255 from left to right, green from top to bottom, blue is 8 * identity + 4."""
    image = np.empty((height, width, 3), dtype=np.uint8)
    image[..., 0] = np.rint(255 * np.arange(width) / max(width - 1, 1))[None, :]
    image[..., 1] = np.rint(255 * np.arange(height) / max(height - 1, 1))[:, None]
    image[..., 2] = BLUE_STEP * identity + BLUE_STEP // 2
    return image


def identities(images: NDArray[Any]) -> NDArray[np.int64]:
    """Read back which image each is, from levels `[..., H, W, 3]` with nothing but image in the window."""
    blue = np.median(images[..., 2], axis=(-2, -1))
    return np.asarray(np.floor(blue / BLUE_STEP), dtype=np.int64)


def noise(width: int, height: int, seed: int = 0) -> Pixels:
    """A busy, coloured picture: smooth blobs with grain, which compresses about as a photograph does."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), BICUBIC), dtype=np.int16)
    grain = generator.integers(-6, 7, (height, width, 3))
    return np.asarray(np.clip(smooth + grain, 0, 255), dtype=np.uint8)


def portrait(seed: int) -> Image.Image:
    """One of many before one dark wall: a bright oval in the middle, with a texture of its own, 200 x 200."""
    generator = np.random.default_rng(seed)
    down, across = np.mgrid[:200, :200]
    middle, radius = 100 + generator.normal(0, 3, 2), np.array([60, 80]) + generator.normal(0, 4, 2)
    inside = ((across - middle[0]) / radius[0]) ** 2 + ((down - middle[1]) / radius[1]) ** 2 < 1
    texture = generator.integers(0, 256, (10, 10, 3), dtype=np.uint8)
    shades = np.asarray(Image.fromarray(texture).resize((200, 200), BICUBIC)).astype(float) - 128
    lit = np.where(inside[..., None], 150 + 0.35 * shades, 30 + 0.08 * shades)
    return Image.fromarray(lit.astype(np.uint8))


def encode(pixels: Pixels | Image.Image, format: str = "PNG", orientation: int = 1, **options: Any) -> bytes:
    """Encode with Pillow; JPEG at quality 100 without chroma subsampling unless told otherwise."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    if format == "JPEG":
        options = {"quality": 100, "subsampling": 0, **options}
    if orientation != 1:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def png_bomb(side: int) -> bytes:
    """A PNG of a few hundred bytes whose header claims to be side x side pixels."""
    data = encode(coded(9, 9))
    header = b"IHDR" + struct.pack(">II", side, side) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def store_as(upright: Pixels, orientation: int) -> Pixels:
    """The stored pixels that a viewer shows as `upright` when the file carries this EXIF orientation."""
    turned = upright.transpose(1, 0, 2)
    undo = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: turned,
        6: turned[::-1],
        7: turned[::-1, ::-1],
        8: turned[:, ::-1],
    }
    return np.ascontiguousarray(undo[orientation])


def folder(root: Path, files: Mapping[str, bytes]) -> Path:
    """Write `files`, path -> bytes, below `root`, and return it."""
    for path, data in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return root


def scan_here(
    paths: Iterable[Path], workers: int | None = None, background: str = WHITE, dali: bool = True
) -> Generator[ImageInfo, None, None]:
    """What `cache.scan.scan` answers, without its child processes: a hundred times as fast for a few files."""
    return (info for path in paths for info in finish([look_at(path, background)], decoder()))


def validate_image(data: bytes, dali: DaliDecoder, suffix: str = "") -> ImageInfo:
    """What a look at one file's bytes finds. suffix: how its name ends."""
    return finish([look_into(data, suffix, WHITE)], dali)[0]


def packed(root: Path, classes: Mapping[str, Sequence[bytes]], options: Options = ALL_TRAIN) -> Pack:
    """Pack encoded images, class -> files in order; the rows keep that order, all in train unless told otherwise."""
    for name, files in classes.items():
        folder(root / "images" / name, {f"{index:04}.img": data for index, data in enumerate(files)})
    with mock.patch("greyhound.cache.pack.scan", scan_here):
        pack(root / "images", root / "images.arrow", options)
    return Pack(root / "images.arrow")


def paths_of(pack: Pack) -> list[str]:
    """Where each row's image came from."""
    return [pack.image_path(row) for row in range(len(pack))]


def splits_of(pack: Pack) -> list[str]:
    """The split of each row."""
    found = {row: split for split in SPLITS for row in pack.ids(split).tolist()}
    return [found[row] for row in range(len(pack))]


def left_out(header: Header) -> dict[str, tuple[str, str]]:
    """What was not packed: path -> reason and detail."""
    return {row.path: (row.reason, row.detail) for row in header.excluded}


def flipped(pack: Pack, out: Path, *rows: int) -> Pack:
    """A copy of a pack in one file, with one bit flipped in each of the images `rows`."""
    data = bytearray(pack.path.read_bytes())
    for row in rows:
        data[data.find(pack.encoded(int(row)).tobytes()) + 200] ^= 1
    out.write_bytes(data)
    return Pack(out)


def flip(path: Path) -> None:
    """One bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@dataclass(frozen=True)
class Drawn:
    """One drawn data set: its folder, the lines of its `truth.csv`, what `draw_demo` returned and reported."""

    folder: Path
    truth: list[dict[str, str]]
    faults: Counter[str]
    progress: list[tuple[int, int]]

    def rows(self, *faults: str) -> list[tuple[dict[str, str], Path]]:
        """Those with one of these faults, and their files."""
        return [(row, self.folder / row["path"]) for row in self.truth if row["fault"] in faults]


def draw(folder: Path, classes: int, per_class: int) -> Drawn:
    progress: list[tuple[int, int]] = []
    faults = draw_demo(folder, classes, per_class, 0, lambda *done: progress.append(done))
    with (folder / "truth.csv").open(newline="", encoding="utf-8") as file:
        return Drawn(folder, list(csv.DictReader(file)), faults, progress)


@cache
def decoder() -> DaliDecoder:
    return DaliDecoder()
