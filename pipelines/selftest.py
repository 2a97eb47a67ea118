"""Self-test: does the decoder that training will use see the pictures that were packed?

Before it: a pack, which knows each picture's mean luma, and an engine. After it: `greyhound doctor --pack PACK`,
and the GPU check. A broken build of a decoder shows in seconds: black pictures, half ones and those with swapped
colours have another mean. One that is shifted may have the same; the GPU check compares pixels too.
"""

from __future__ import annotations

import io
import itertools
import random
import warnings
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from greyhound.cache.machine import available_cores
from greyhound.cache.store import Pack
from greyhound.pipelines.decoded import Tier
from greyhound.pipelines.engine import BatchSpec, Device, Engine, EngineConfig

TOLERANCE: Final = 4.0
"""Levels of 255 by which a mean luma may be off: the samples below are not all the pixels, and decoders differ a little."""
_SIZE: Final = 128
"""Samples a side of each picture."""
_BATCH: Final = 16
_LOOKED_AT: Final = 2048
"""Rows of a pack whose files are told apart by kind."""
_LUMA: Final = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as the pack's


def luma_errors(pack: Pack, rows: NDArray[np.int64], engine: Engine, device: Device) -> NDArray[np.float32]:
    """By how many levels of 255 each picture's mean luma, as the engine decodes it, is off the pack's: float32 `[n]`.

    Each picture is decoded in full and sampled at `_SIZE` x `_SIZE` places over all of it. Raises StreamError.
    """
    nothing, log2_reduction = np.zeros(len(pack), dtype=bool), np.zeros(len(pack), dtype=np.int32)
    tier = Tier(pack, nothing, log2_reduction)
    settings = EngineConfig(_SIZE, 0, 1, min(_BATCH, len(rows)), available_cores(), 2, device, tier)
    found = [
        images.mean(dim=(1, 2, 3)).numpy(force=True) @ _LUMA
        for _, images in engine(pack, _whole_pictures(pack, rows), settings)
    ]
    return np.asarray(np.concatenate(found) - pack.mean_lumas[rows], dtype=np.float32)


def faults(pack: Pack, rows: NDArray[np.int64], engine: Engine, device: Device) -> list[str]:
    """The pictures of these rows that the engine sees otherwise than they were packed, each with its error."""
    errors = luma_errors(pack, rows, engine, device)
    wrong = np.flatnonzero(~(np.abs(errors) <= TOLERANCE))
    return [f"{pack.describe(rows[place])} is {errors[place]:+.1f} levels off" for place in wrong.tolist()]


def spread(pack: Pack, count: int) -> NDArray[np.int64]:
    """At most so many rows, spread over the pack."""
    return np.arange(len(pack))[:: -(-len(pack) // count)]


def kinds(pack: Pack) -> dict[str, list[int]]:
    """The rows of each kind of file, for a decoder takes each by a way of its own, as far as 2,048 rows tell.

    A kind is a format, its colours, and whether a JPEG is progressive.
    """
    found: dict[str, list[int]] = {}
    for row in spread(pack, _LOOKED_AT).tolist():
        found.setdefault(_kind(pack.encoded(row).tobytes()), []).append(row)
    return found


def _kind(data: bytes) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's about large pictures
            image = Image.open(io.BytesIO(data))
    except (OSError, ValueError, Image.DecompressionBombError):
        return "unknown"
    return " ".join(
        [str(image.format), image.mode, *(["progressive"] if "progressive" in image.info else [])]
    )


def of_every_kind(found: dict[str, list[int]], count: int) -> NDArray[np.int64]:
    """At most so many rows, ascending: of each kind as many as of any other, as far as it has them; always the same."""
    drawn = random.Random(0)
    turns = itertools.zip_longest(*(drawn.sample(rows, len(rows)) for rows in found.values()))
    chosen = [row for turn in turns for row in turn if row is not None][:count]
    return np.array(sorted(chosen), dtype=np.int64)


def _whole_pictures(pack: Pack, rows: NDArray[np.int64]) -> Iterator[BatchSpec]:
    """Requests whose window is the whole picture, in levels, nothing changed."""
    for low in range(0, len(rows), _BATCH):
        ids = rows[low : low + _BATCH]
        geometry = np.zeros((len(ids), 1, 3, 3), dtype=np.float32)
        geometry[:, 0, 0, 0], geometry[:, 0, 1, 1] = pack.stored_sizes[ids].T / _SIZE
        geometry[..., 2, 2] = 1
        colour = np.tile(np.eye(3, 4, dtype=np.float32), (len(ids), 1, 1, 1))
        log2_reduction = np.zeros(len(ids), dtype=np.int32)
        yield BatchSpec(ids, geometry, colour, log2_reduction, epoch=0, stop=low + len(ids))
