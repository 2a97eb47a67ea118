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

from greyhound.cache.scan import FORMATS

SIDE: Final = 32
"""Pixels of a close-up's side. At 64 the cut of a twin would have to be known twice as well: there are true pairs in dogs25 that
are less alike then than strangers, and none at 32 (docs/log.md)."""
HELD: Final = 16_384
"""Close-ups that are kept, 1 kB each: in a set of look-alikes each is compared with many."""

Closeup = NDArray[np.uint8]
Reader = Callable[[int], Closeup | None]
"""Of a look, by its index, a close-up; None where it cannot be had."""


def closeup_reader(find: Callable[[int], Path]) -> Reader:
    """Reads close-ups from the files that `find` names."""
    return lru_cache(HELD)(lambda index: read(find(index)))


def read(file: Path) -> Closeup | None:
    """Luma `[32, 32]` of a file, upright, without regard to its aspect ratio; None where nothing reads it any more."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            image.draft("L", (4 * SIDE, 4 * SIDE))
            shades = ImageOps.exif_transpose(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    except Exception:  # gone or changed since it was looked at
        return None
    return np.asarray(shades)
