"""Small pictures of a file: a thumbnail of whatever can still be seen of it, and a close-up for comparing.

Before it: files that were scanned, and may be opened. After it: the page of a survey, a pack's list of what
was left out, and `twins`, which compares close-ups of the few that seem to be twins.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from greyhound.cache.picture import open_image, to_rgb
from greyhound.cache.place import Place
from greyhound.cache.scan import WHITE

MOST_OF_JPEG: Final = 64 << 20
"""Bytes of a cut JPEG that are read for its small picture."""
SIDE: Final = 32
"""Pixels of a close-up's side. At 64 some true pairs in dogs25 are less alike than strangers, at 32 none
(docs/log.md)."""
DETAIL: Final = 128
"""Pixels of the side of a close-up in which two pictures are compared place by place."""
HELD: Final = 16 << 20
"""Bytes of close-ups that are kept: in a set of look-alikes each is compared with many."""

Closeup = NDArray[np.uint8]
Reader = Callable[[int], Closeup | None]
"""From an image's index to its close-up; None where it cannot be had."""


def make_thumbnail(file: Place, side: int, background: str = WHITE) -> str:
    """A JPEG in base64, at most `side` pixels a side, of what there is; "" if nothing can be shown."""
    if not file.is_file():  # to open a pipe would wait for ever
        return ""
    try:
        try:
            pixels = to_rgb(_read_image(file), background, side).pixels
        except OSError:  # what is missing of a cut JPEG is drawn grey when its end is marked after all
            pixels = to_rgb(_start_of(file) + b"\xff\xd9", background, side).pixels
    except Exception:  # it was found wanting because nothing can read it
        return ""
    return encode_thumbnail(pixels, side)


def encode_thumbnail(pixels: NDArray[np.uint8], side: int) -> str:
    """RGB `[H, W, 3]` as a JPEG in base64, at most `side` pixels a side."""
    small = Image.fromarray(pixels)
    small.thumbnail((side, side), Image.Resampling.BILINEAR)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=75)
    return base64.b64encode(stream.getvalue()).decode()


def _read_image(file: Place) -> bytes:
    """A file's bytes, if it is an image: a video is not held in memory. Raises what Pillow raises."""
    with file.open("rb") as stream, open_image(stream):
        pass
    return file.read_bytes()


def _start_of(file: Place) -> bytes:
    """A JPEG as far as it goes; nothing of any other file. Raises OSError."""
    with file.open("rb") as stream:
        start = stream.read(2)
        return start + stream.read(MOST_OF_JPEG) if start == b"\xff\xd8" else b""


def closeup_reader(find: Callable[[int], Place], side: int = SIDE, background: str = WHITE) -> Reader:
    """Reads close-ups from the files that `find` names."""
    return lru_cache(HELD // side**2)(lambda index: read_closeup(find(index), side, background))


def read_closeup(file: Place, side: int = SIDE, background: str = WHITE) -> Closeup | None:
    """Luma `[side, side]` of a file, upright, its aspect ratio ignored; None if nothing reads it."""
    try:
        picture = Image.fromarray(to_rgb(_read_image(file), background, max(128, 2 * side)).pixels)
    except Exception:  # gone or changed since it was looked at
        return None
    return np.asarray(picture.convert("L").resize((side, side), Image.Resampling.BOX))
