"""The decoded tier: originals decoded once and kept in host memory, as many as a budget of bytes allows.

Before it: the pack, which holds every original encoded. After it: an engine asks for an image's pixels and gets them,
from memory or from the decoder; it is the same image either way, so tiers mix freely. What is kept is what the warp
needs: uint8 RGB after the halvings, a quarter to a hundredth of a large original's pixels.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ByteSize, TypeAdapter, ValidationError

from greyhound.cache.decode import DecodeError, Pixels, decode
from greyhound.cache.machine import available_memory
from greyhound.cache.store import Pack
from greyhound.pipelines.request import BadImageError, ResourcesError

TierName = Literal["auto", "encoded", "decoded"]
EngineChosen = Literal["dali", "threads"]

SHARE: Final = 0.5
"""Of the free memory: the budget where none is given."""


@dataclass(frozen=True)
class Plan:
    """Which rows of a pack are kept decoded. kept: bool `[rows of the pack]`. nbytes: of them all. why: one line."""

    kept: NDArray[np.bool_]
    nbytes: int
    why: str


class Tier:
    """The pixels of a pack's images, those of the plan decoded only once. Owns their memory; threads may share it: of two
    that ask for one image at one moment both decode it, to the same pixels.
    """

    def __init__(self, pack: Pack, kept: NDArray[np.bool_], halvings: NDArray[np.int32]) -> None:
        """Nothing is decoded yet: each image of the plan is kept the first time that it is asked for.

        kept, halvings: bool and int32 `[rows of the pack]`, which rows to keep and how often each is halved.
        """
        self.kept = kept
        self._pack, self._halvings = pack, halvings
        self._pixels: dict[int, Pixels] = {}

    def pixels(self, index: int) -> Pixels:
        """Image `index`, uint8 `[H, W, 3]`, halved; do not write to it. Raises BadImageError if it does not decode."""
        found = self._pixels.get(index)
        if found is None:
            found = self._decode(index)
            if self.kept[index]:
                self._pixels[index] = found
        return found

    def fill(self, threads: int) -> None:
        """Decode all of the plan now. Raises BadImageError."""
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(self.pixels, np.flatnonzero(self.kept).tolist()):
                pass

    def _decode(self, index: int) -> Pixels:
        try:
            width, height = self._pack.stored_sizes[index]
            return decode(self._pack.encoded(index), int(self._halvings[index]), (int(width), int(height)))
        except DecodeError as error:
            raise BadImageError(
                f"an image no longer decodes: {self._pack.describe(index)} ({error}). "
                f"Check the pack: greyhound verify {self._pack.path}"
            ) from None


def plan(
    name: TierName,
    pack: Pack,
    ids: NDArray[np.int64],
    halvings: NDArray[np.int32],
    budget: int | None,
    passes: int | None,
    engine: EngineChosen = "threads",
) -> Plan:
    """Choose what a stream over the rows `ids` keeps decoded: for the loader, and for who plans what it will do.

    name: auto keeps as many as the budget allows, unless there is one pass only, and by engine threads alone, whose
    pixels do not depend on it in any bit; encoded none; decoded all. halvings: int32 `[n]`, of `ids`. budget: bytes;
    default half of the free memory. passes: over the data; None: many. Raises ResourcesError where `decoded` does not
    fit.
    """
    kept = np.zeros(len(pack), dtype=bool)
    if why := _why_encoded(name, passes, engine):
        return Plan(kept, 0, f"tier: encoded, {why}")
    rows, first = np.unique(ids, return_index=True)
    sizes = decoded_sizes(pack, rows, halvings[first])
    free = default_budget() if budget is None else budget
    fitting = np.cumsum(sizes) <= free
    if name == "decoded" and not fitting.all():
        raise ResourcesError(
            f"decoded, {len(rows)} images take {say_bytes(int(sizes.sum()))}, and the budget is {say_bytes(free)}; "
            "raise --budget, or choose --tier auto, which keeps as many as fit"
        )
    kept[rows[fitting]] = True
    nbytes = int(sizes[fitting].sum())
    why = f"{fitting.sum()} of {len(rows)} images in {say_bytes(nbytes)} of {say_bytes(free)}"
    return Plan(kept, nbytes, f"tier: {'decoded' if fitting.any() else 'encoded'}, {why}")


def _why_encoded(name: TierName, passes: int | None, engine: EngineChosen) -> str:
    """Why nothing is kept whatever the memory, or nothing."""
    if name == "encoded":
        return "as asked"
    if name == "auto" and engine == "dali":
        return "engine dali decodes each image anew"
    return "each image is used once" if name == "auto" and passes == 1 else ""


def decoded_sizes(pack: Pack, rows: NDArray[np.int64], halvings: NDArray[np.int32]) -> NDArray[np.int64]:
    """Bytes of the pixels of each row, halved as the warp takes them: int64 `[n]`."""
    sides = -(-pack.stored_sizes[rows].astype(np.int64) // (1 << halvings)[:, None])
    return np.asarray(3 * sides.prod(axis=1), dtype=np.int64)


def default_budget() -> int:
    """Bytes for decoded originals where none are given."""
    return int(SHARE * available_memory())


def parse_bytes(text: str, name: str = "budget") -> int:
    """A size such as 4GB or 512MiB in bytes. name: what is of that size, for the message. Raises ValueError."""
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise ValueError(f"{name} is {text!r}; expected a size such as 4GB or 512MB") from None


def say_bytes(nbytes: int) -> str:
    """Bytes as a person reads them."""
    unit, name = next(
        pair for pair in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if nbytes >= pair[0] / 100 or pair[0] == 1e3
    )
    return f"{nbytes / unit:.2f} {name}"
