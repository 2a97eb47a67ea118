"""A small picture of a file: of whatever can still be seen of it.

Before it: files that were looked at, and may be opened. After it: the page of a survey, and a pack's list of what was left out.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import IO, Final

from PIL import Image, ImageOps

from greyhound.cache.scan import FORMATS

MOST_OF_JPEG: Final = 64 << 20
"""Bytes of a cut JPEG that are read for its small picture."""


def make_thumbnail(file: Path, side: int) -> str:
    """At most `side` pixels a side, a JPEG in base64; "" where nothing can be shown. Of a cut JPEG what there is of it."""
    if not file.is_file():  # to open a pipe would wait for ever
        return ""
    try:
        try:
            small = _reduce(file, side)
        except OSError:  # what is missing of a cut JPEG is drawn grey when its end is marked after all
            small = _reduce(io.BytesIO(_start_of(file) + b"\xff\xd9"), side)
    except Exception:  # it was found wanting because nothing can read it
        return ""
    small.thumbnail((side, side), Image.Resampling.BILINEAR)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=75)
    return base64.b64encode(stream.getvalue()).decode()


def _reduce(file: Path | IO[bytes], side: int) -> Image.Image:
    """A picture, upright, of a JPEG not much larger than `side`; raises what Pillow raises, before it reads what is none."""
    with Image.open(file, formats=FORMATS) as image:
        image.draft("RGB", (side, side))
        return ImageOps.exif_transpose(image).convert("RGB")


def _start_of(file: Path) -> bytes:
    """A JPEG as far as it goes; nothing of any other file. Raises OSError."""
    with file.open("rb") as stream:
        start = stream.read(2)
        return start + stream.read(MOST_OF_JPEG) if start == b"\xff\xd8" else b""
