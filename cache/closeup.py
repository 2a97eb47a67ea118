"""A close-up of a picture, read once more from its file, for the few that seem to be twins: a thumbnail tells compositions.

Before it: files that were found sound. After it: `twins` compares them in detail.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cache.survey import FORMATS

SIDE: Final = 64
"""Pixels of a close-up's side."""
HELD: Final = 4096
"""Close-ups that are kept, 4 kB each: in a set of look-alikes each is compared with many."""

Closeup = NDArray[np.uint8]
Reader = Callable[[int], Closeup | None]
"""Of a look, by its index, a close-up; None where it cannot be had."""


def reader(find: Callable[[int], Path]) -> Reader:
    """Reads close-ups from the files that `find` names."""
    return lru_cache(HELD)(lambda index: read(find(index)))


def read(file: Path) -> Closeup | None:
    """Luma `[64, 64]` of a file, upright, without regard to its aspect ratio; None where nothing reads it any more."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            image.draft("L", (2 * SIDE, 2 * SIDE))
            shades = ImageOps.exif_transpose(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    except Exception:  # gone or changed since it was looked at
        return None
    return np.asarray(shades)
