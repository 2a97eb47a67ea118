"""Large originals: photographs enlarged to the 12 megapixels of a telephone's camera, and how well they are reduced.

Before it: a pack of photographs. After it: a pack of large ones, for the benchmark's rows `large-...`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import cv2
import numpy as np
import simplejpeg

from greyhound.cache.decode import decode, downsample
from greyhound.cache.folder import find_unlabelled
from greyhound.cache.pack import Options, write
from greyhound.cache.store import Pack
from greyhound.pipelines.augment import halvings
from greyhound.pipelines.benchmark import peers

PIXELS: Final = 12_000_000
_COUNT: Final = 16
"""Images that are enlarged: enough that no cache holds them."""
_GRAIN: Final = 4.0
"""Standard deviation of the added noise, in levels of 255: what a sensor adds, so that the files are as large as real ones."""
_QUALITY: Final = 87
_SUBSAMPLING: Final = "420"
"""Of the chroma, as cameras have it."""


def enlarged(pack: Pack, folder: Path) -> Path:
    """A pack of the first images of `pack`, each enlarged to 12 megapixels, grained and encoded again; in `folder`."""
    images = folder / "large"
    images.mkdir()
    for row in range(min(_COUNT, len(pack))):
        pixels = decode(pack.encoded(row))
        scale = (PIXELS / (pixels.shape[0] * pixels.shape[1])) ** 0.5
        large = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        grain = np.random.default_rng(row).normal(0, _GRAIN, large.shape[:2]).astype(np.float32)
        grained = np.clip(large + grain[..., None], 0, 255).astype(np.uint8)
        (images / f"{row:03}.jpg").write_bytes(
            simplejpeg.encode_jpeg(grained, _QUALITY, colorsubsampling=_SUBSAMPLING)
        )
    write(find_unlabelled(images), (), folder / "large.arrow", Options(keep_grayscale=True), split="train")
    return folder / "large.arrow"


def worst_psnr(pack: Pack) -> float:
    """The lowest ratio, in dB, of signal to error of the scaled decode against the block means of a full decode."""
    found = []
    for row, times in enumerate(halvings(peers.AUGMENT, pack.sizes).tolist()):
        width, height = pack.stored_sizes[row]
        scaled = decode(pack.encoded(row), times, (int(width), int(height)))
        found.append(cv2.PSNR(scaled, downsample(decode(pack.encoded(row)), times)))
    return float(min(found))
