"""Decoded originals in host memory: each is decoded once, as many as a number of bytes allows.

Before it: the pack, which holds every original encoded. After it: engine threads asks for an image's pixels
and gets them, from memory or from the decoder; they are the same either way. What is kept is what the warp
needs: uint8 RGB after the reduction, a quarter to a hundredth of a large original's pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich import filesize

from greyhound.cache.decode import DecodeError, Pixels, decode, downsample
from greyhound.cache.store import Pack
from greyhound.pipelines.engine import (
    BadImageError,
    EngineChosen,
    ImageCacheName,
    ResourcesError,
    default_cache_bytes,
)


@dataclass(frozen=True)
class Plan:
    """Which rows are kept decoded. kept: bool `[rows of the pack]`. nbytes: of them all. why: one line.

    left: bytes that another stream may take; None where this one asked for none.
    """

    kept: NDArray[np.bool_]
    nbytes: int
    left: int | None
    why: str


class ImageCache:
    """The pixels of a pack's images, those of the plan decoded only once; threads may share it.

    Two threads that ask for one image at one moment both decode it, to the same pixels.
    """

    def __init__(self, pack: Pack, kept: NDArray[np.bool_], log2_reduction: NDArray[np.int32]) -> None:
        """kept: bool `[rows of the pack]`, rows to keep. log2_reduction: int32 `[rows, 2]`, of each."""
        self.kept = kept
        self._pack, self._log2_reduction = pack, log2_reduction
        self._pixels: dict[int, Pixels] = {}

    def pixels(self, index: int) -> Pixels:
        """Image `index`, uint8 `[H, W, 3]`, reduced; not to be written to. Raises BadImageError."""
        found = self._pixels.get(index)
        if found is None:
            found = self._decode(index)
            if self.kept[index]:
                self._pixels[index] = found
        return found

    def _decode(self, index: int) -> Pixels:
        width, height = self._pack.stored_sizes[index].tolist()
        across, down = self._log2_reduction[index].tolist()
        both = min(across, down)
        try:
            pixels = decode(self._pack.encoded(index), both, (width, height))
            return downsample(pixels, across - both, down - both)
        except DecodeError as error:
            raise no_longer_decodes(self._pack, f"{self._pack.describe(index)} ({error})") from None


def no_longer_decodes(pack: Pack, images: str) -> BadImageError:
    """What is wrong with these images, and what to do."""
    remedy = f"Check the pack: greyhound verify {pack.path}"
    return BadImageError(f"an image no longer decodes: {images}. {remedy}")


def plan(
    name: ImageCacheName,
    pack: Pack,
    ids: NDArray[np.int64],
    log2_reduction: NDArray[np.int32],
    cache_bytes: int | None,
    passes: int | None,
    engine: EngineChosen = "threads",
) -> Plan:
    """Choose what a stream over the rows `ids` keeps decoded.

    name: auto keeps as many as fit, unless there is one pass only; encoded none; decoded all. Engine dali
    keeps none. log2_reduction: int32 `[n, 2]`, of `ids`. cache_bytes: default half of the free memory.
    passes: over the data; None: many. Raises ResourcesError where `decoded` does not fit.
    """
    kept = np.zeros(len(pack), dtype=bool)
    if why := _why_encoded(name, passes, engine):
        return Plan(kept, 0, None, f"image cache: encoded, {why}")
    rows, first = np.unique(ids, return_index=True)
    sizes = decoded_sizes(pack, rows, log2_reduction[first])
    free = default_cache_bytes() if cache_bytes is None else cache_bytes
    fitting = np.cumsum(sizes) <= free
    kept[rows[fitting]] = True
    nbytes, there = int(sizes[fitting].sum()), filesize.decimal(free)
    if name == "decoded" and not fitting.all():
        needed = filesize.decimal(int(sizes.sum()))
        shared = "training and validation share --cache-bytes"
        remedy = f"{shared}: raise it, or choose --image-cache auto, which keeps as many as fit"
        raise ResourcesError(f"decoded, {len(rows)} images take {needed}, and {there} are left; {remedy}")
    kind = "decoded" if fitting.any() else "encoded"
    why = (
        f"image cache: {kind}, {fitting.sum()} of {len(rows)} images in {filesize.decimal(nbytes)} of {there}"
    )
    return Plan(kept, nbytes, free - nbytes, why)


def _why_encoded(name: ImageCacheName, passes: int | None, engine: EngineChosen) -> str:
    """Why nothing is kept whatever the memory, or nothing."""
    if engine == "dali":
        return "engine dali decodes each image anew"
    if name == "encoded":
        return "as asked"
    return "each image is used once" if name == "auto" and passes == 1 else ""


def decoded_sizes(
    pack: Pack, rows: NDArray[np.int64], log2_reduction: NDArray[np.int32]
) -> NDArray[np.int64]:
    """Bytes of the pixels of each row, reduced as the warp takes them: int64 `[n]`."""
    sides = -(-pack.stored_sizes[rows].astype(np.int64) // (1 << log2_reduction))
    return np.asarray(3 * sides.prod(axis=1), dtype=np.int64)
