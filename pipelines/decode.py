"""Decode one image: the first of the three steps, and the check that a file will survive it.

Before it: an image's original bytes. After it: the warp. `decode` is what the `threads` engine calls. Run as a
program, this module is the child process behind `cache.survey`: it tries each file with every decoder that training
may use, DALI's and this one, and answers what it found.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import sys
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Final

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from cache.survey import Look, measure

Pixels = NDArray[np.uint8]

STORED: Final = frozenset({"JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF"})
"""Formats (Pillow's names) that both engines decode alike; every other one is packed as PNG."""
MAX_PIXELS: Final = 178_956_970
"""Pillow's own limit: a header that claims more is taken for a decompression bomb and never decoded."""
_EXIF_ORIENTATION: Final = 0x0112


class DecodeError(ValueError):
    """The bytes are no image that this system can decode."""


def decode(
    encoded: NDArray[np.uint8],
    halvings: int = 0,
    size: tuple[int, int] = (0, 0),
    strict: bool = False,
) -> Pixels:
    """Decode to RGB, halved `halvings` times, antialiased; EXIF orientation is left to the geometry matrix.

    encoded: uint8 `[bytes]`. size: stored width and height, needed for the halvings of a JPEG, which libjpeg-turbo
    then decodes straight at 1/2, 1/4 or 1/8. strict: refuse a JPEG that ends too early, instead of grey rows.
    Returns uint8 `[ceil(H / 2**h), ceil(W / 2**h), 3]`. Raises DecodeError.
    """
    if encoded[:2].tobytes() == b"\xff\xd8":
        least = (-(-size[0] // 2**halvings), -(-size[1] // 2**halvings)) if halvings else (0, 0)
        return _decode_jpeg(encoded, halvings, least, strict)
    try:
        pixels = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:  # no bytes at all, or more pixels than OpenCV allows itself
        raise DecodeError(f"OpenCV: {error.err}") from None
    if pixels is None:
        raise DecodeError("neither a JPEG nor an image that OpenCV reads")
    return halve(np.asarray(pixels, dtype=np.uint8), halvings)


def halve(pixels: Pixels, times: int) -> Pixels:
    """Average blocks of 2**times pixels a side; the last row and column repeat where the size is no multiple."""
    if times == 0:
        return pixels
    block = 2**times
    height, width = pixels.shape[:2]
    padded = cv2.copyMakeBorder(pixels, 0, -height % block, 0, -width % block, cv2.BORDER_REPLICATE)
    smaller = (padded.shape[1] // block, padded.shape[0] // block)
    return np.asarray(cv2.resize(padded, smaller, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _decode_jpeg(encoded: NDArray[np.uint8], halvings: int, least: tuple[int, int], strict: bool) -> Pixels:
    try:
        return np.asarray(
            simplejpeg.decode_jpeg(encoded, "RGB", min_width=least[0], min_height=least[1], strict=strict)
        )
    except ValueError as error:
        if not strict:  # CMYK, which libjpeg-turbo leaves to the caller
            return halve(_decode_with_pillow(encoded), halvings)
        if "premature" in str(error).lower():
            raise DecodeError(str(error)) from None
        return _decode_jpeg(encoded, halvings, least, strict=False)  # a mere warning, common in the wild


def _decode_with_pillow(encoded: NDArray[np.uint8]) -> Pixels:
    try:
        with Image.open(io.BytesIO(encoded.tobytes())) as image:
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise whatever their formats make them raise
        raise DecodeError(f"no decoder reads it: {error}") from None


def examine(data: bytes, probe: Probe) -> Look:
    """Look at one file's bytes with every decoder that training may use."""
    known: dict[str, Any] = {
        "bytes": len(data),
        "crc32": zlib.crc32(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    if not data:
        return Look(**known, problem="undecodable", detail="the file is empty")
    try:
        known |= _header(data)
    except UnidentifiedImageError:
        return Look(**known, problem="undecodable", detail="not an image")
    except Exception as error:
        return Look(**known, problem=_fault(_one_line(error)), detail=_one_line(error))
    if known["width"] * known["height"] > MAX_PIXELS:
        claim = f"the header claims {known['width']} x {known['height']} pixels, more than {MAX_PIXELS:,}"
        return Look(**known, problem="bomb", detail=claim)
    return _try_decoders(data, known, probe)


def _header(data: bytes) -> dict[str, Any]:
    """Format, upright size and orientation, read without decoding a pixel."""
    with Image.open(io.BytesIO(data)) as image:
        bomb = image.width * image.height > MAX_PIXELS  # of a PNG, reading EXIF decodes the pixels
        orientation = 1 if bomb else _orientation(image)
        width, height = image.size if orientation < 5 else image.size[::-1]
        return {"format": image.format or "", "width": width, "height": height, "orientation": orientation}


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; broken EXIF, which many a good photograph carries, means 1."""
    try:
        orientation = int(image.getexif().get(_EXIF_ORIENTATION, 1) or 1)
    except OSError:
        raise  # the pixels are at fault
    except Exception:
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def _try_decoders(data: bytes, known: dict[str, Any], probe: Probe) -> Look:
    try:
        pixels, problem = _decode_strictly(data, known, probe), ""
    except DecodeError as error:
        problem = _one_line(error)
        try:
            pixels = pillow_pixels(data)
        except Exception as unreadable:
            message = _one_line(unreadable)
            return Look(**known, problem=_fault(message + problem), detail=message)
        # Pillow turns the picture upright before it is packed as PNG.
        known |= {"orientation": 1, "width": pixels.shape[1], "height": pixels.shape[0]}
    return Look(**known, **measure(pixels), transcode=problem)


def _fault(message: str) -> str:
    truncated = any(word in message.lower() for word in ("truncated", "premature"))
    return "truncated" if truncated else "undecodable"


def _decode_strictly(data: bytes, known: dict[str, Any], probe: Probe) -> Pixels:
    """Pixels that the engines agree on, or DecodeError: here a premature end is no warning, but the end."""
    if known["format"] not in STORED:
        raise DecodeError(f"{known['format']} is not a format that both engines decode")
    encoded = np.frombuffer(data, dtype=np.uint8)
    pixels = decode(encoded, strict=True)
    upright = (known["width"], known["height"])
    stored = upright if known["orientation"] < 5 else upright[::-1]
    if pixels.shape[1::-1] != stored:
        raise DecodeError(f"decodes to {pixels.shape[1::-1]}, but its header says {stored}")
    probe.check(encoded, pixels)
    return pixels


def pillow_pixels(data: bytes) -> Pixels:
    """Decode with Pillow, upright, the first frame of an animation; raises what Pillow raises."""
    from PIL import ImageOps

    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


class Probe:
    """DALI's CPU decoder, one image at a time; DALI never recovers from a bad image, so then it is built anew."""

    TOLERANCE: Final = 3.0
    """Mean levels by which DALI's pixels may differ from ours before the file is called damaged."""

    def __init__(self) -> None:
        """Without DALI on this machine, every check passes: its engine cannot be chosen here either."""
        from pipelines import dali

        self._build = dali.decoder if dali.available() else None
        self._pipeline = self._build() if self._build else None

    def check(self, encoded: NDArray[np.uint8], expected: Pixels) -> None:
        """Raise DecodeError unless DALI decodes `encoded` to about `expected`."""
        if self._pipeline is None or self._build is None:
            return
        try:
            (output,) = self._pipeline.run(encoded=[encoded])
            pixels = np.asarray(output.at(0))
        except RuntimeError as error:
            self._pipeline = self._build()
            raise DecodeError(f"DALI: {_dali_reason(error)}") from None
        if pixels.shape != expected.shape:
            raise DecodeError(f"DALI decodes to {pixels.shape}, OpenCV and libjpeg-turbo to {expected.shape}")
        apart = float(np.abs(pixels[::4, ::4].astype(np.int16) - expected[::4, ::4]).mean())
        if apart > self.TOLERANCE:
            raise DecodeError(f"two decoders disagree by {apart:.1f} levels on average")


def _dali_reason(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line.startswith(("Error: ", "Failed", "Error in", "nvImageCodec"))]
    return (telling or [line for line in lines if line] or ["unknown error"])[-1][:200]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _answer(path: Path, probe: Probe) -> Look:
    try:
        if not path.is_file():
            return Look(problem="undecodable", detail="not a regular file")
        return examine(path.read_bytes(), probe)
    except OSError as error:
        return Look(problem="unreadable", detail=error.strerror or str(error))
    except MemoryError:
        return Look(problem="undecodable", detail="needs more memory than there is")


def _requests(stream: IO[bytes]) -> Iterator[Path]:
    for line in stream:
        yield Path(os.fsdecode(bytes.fromhex(json.loads(line))))


def main() -> None:
    """Answer a JSON line for every path on standard input, until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it closes our input
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a C library prints must not mix with the answers
    cv2.setNumThreads(1)
    Image.MAX_IMAGE_PIXELS = None  # `examine` refuses bombs itself
    probe = Probe()
    answers.write(b"ready\n")
    for path in _requests(sys.stdin.buffer):
        answers.write(json.dumps(asdict(_answer(path, probe))).encode() + b"\n")


if __name__ == "__main__":
    main()
