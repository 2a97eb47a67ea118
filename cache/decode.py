"""Decode one image, whole or at 1/2, 1/4 or 1/8 of its size.

Before it: an image's original bytes. After it: the `threads` engine warps the pixels, and `validate` measures
them. OpenCV and the like are imported where they are used, because a recipe needs LUMA alone.
"""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

LUMA: Final = (0.299, 0.587, 0.114)
"""Rec. 601 weights of red, green and blue."""


def luma(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Rec. 601 luma of RGB `[..., 3]`, 0..255."""
    return np.asarray(pixels, np.float32) @ np.array(LUMA, np.float32)


class DecodeError(ValueError):
    """The bytes are no image that this system can decode."""


def decode(
    encoded: NDArray[np.uint8], log2_reduction: int = 0, size: tuple[int, int] = (0, 0), strict: bool = False
) -> Pixels:
    """Decode to RGB, halved `log2_reduction` times, antialiased; EXIF orientation is left to the matrix.

    encoded: uint8 `[bytes]`. size: stored width and height, needed to reduce a JPEG, which libjpeg-turbo
    decodes straight at the smaller size. strict: refuse a JPEG of which libjpeg-turbo says anything at all;
    otherwise its rows may be grey, or of other colours, from there on. Returns uint8 `[ceil(H / 2**h),
    ceil(W / 2**h), 3]`. Raises DecodeError.
    """
    import cv2

    if encoded[:2].tobytes() == b"\xff\xd8":
        return _decode_jpeg(encoded, log2_reduction, size, strict)
    try:
        pixels = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:  # no bytes at all, or more pixels than OpenCV allows itself
        raise DecodeError(f"OpenCV: {error.err}") from None
    if pixels is None:
        raise DecodeError("neither a JPEG nor an image that OpenCV reads")
    return downsample(np.asarray(pixels, dtype=np.uint8), log2_reduction)


def downsample(pixels: Pixels, across: int, down: int | None = None) -> Pixels:
    """Average blocks of 2**across x 2**down pixels; the last row and column repeat to fill a block.

    down: as `across`, unless it is said.
    """
    import cv2

    down = across if down is None else down
    if not across and not down:
        return pixels
    height, width = pixels.shape[:2]
    more = -height % 2**down, -width % 2**across
    padded = cv2.copyMakeBorder(pixels, 0, more[0], 0, more[1], cv2.BORDER_REPLICATE)
    smaller = (padded.shape[1] >> across, padded.shape[0] >> down)
    return np.asarray(cv2.resize(padded, smaller, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _decode_jpeg(
    encoded: NDArray[np.uint8], log2_reduction: int, size: tuple[int, int], strict: bool
) -> Pixels:
    import simplejpeg

    if log2_reduction and is_lossless_jpeg(encoded):  # the buffer would be too small
        return downsample(_decode_jpeg(encoded, 0, size, strict), log2_reduction)
    wide, high = (-(-side // 2**log2_reduction) if log2_reduction else 0 for side in size)
    try:
        pixels = simplejpeg.decode_jpeg(encoded, "RGB", min_width=wide, min_height=high, strict=strict)
        return np.asarray(pixels)
    except ValueError as error:
        if strict and "color conversion" not in str(error):  # CMYK, which some versions leave to the caller
            raise DecodeError(str(error)) from None
        return downsample(_decode_with_pillow(encoded), log2_reduction)


def is_lossless_jpeg(encoded: NDArray[np.uint8]) -> bool:
    """Whether its frame (ITU T.81, table B.1) is lossless: libjpeg-turbo heeds no scale for it."""
    place = 2
    while place + 4 <= len(encoded) and encoded[place] == 0xFF:
        marker = int(encoded[place + 1])
        if marker == 0xFF:  # fill
            place += 1
            continue
        if marker == 0xDA or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return marker in (0xC3, 0xC7, 0xCB, 0xCF)
        place += 2 + (int(encoded[place + 2]) << 8 | int(encoded[place + 3]))
    return False


def _decode_with_pillow(encoded: NDArray[np.uint8]) -> Pixels:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded.tobytes())) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise whatever their formats make them raise
        raise DecodeError(f"no decoder reads it: {error}") from None


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """A stored image `[H, W, 3]` as a viewer shows it; orientation: EXIF, 1..8."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
