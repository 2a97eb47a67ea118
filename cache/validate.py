"""Validate a file with every decoder that training may use: the child process of `scan`.

Before it: JSON lines on standard input, each of a few places. After it: a JSON line for each, of as many
`ImageInfo`. It runs apart from the packing, because a file may crash a decoder. It does without torch,
because it starts often. Files come several at once: asking DALI costs as much as decoding a small file.
"""

from __future__ import annotations

import gc
import hashlib
import io
import json
import os
import signal
import sys
import warnings
import zlib
from collections.abc import Generator, Iterable, Sequence
from dataclasses import asdict
from typing import Any, Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from greyhound.cache.cli import ENDINGS
from greyhound.cache.decode import DecodeError, Pixels, decode
from greyhound.cache.errors import one_line
from greyhound.cache.machine import has_dali
from greyhound.cache.picture import (
    FOREIGN,
    JPEGS,
    name_foreign,
    needs_conversion,
    open_image,
    read_orientation,
    to_rgb,
)
from greyhound.cache.place import Place, from_line, length
from greyhound.cache.scan import TOGETHER, WHITE, WITHOUT_DALI, ImageInfo
from greyhound.cache.stats import measure

STORED: Final = frozenset({"JPEG", "MPO", "PNG", "WEBP", "BMP"})
"""Formats (Pillow's names) that both engines decode alike; every other one is packed as PNG. Of a TIFF they
disagree about orientation, alpha, planes, and which value is white."""
WHOLE: Final = STORED - {"BMP"}
"""Formats our decoder reads wholly: a file it refuses is corrupt, whatever Pillow makes of it."""
UNWRITTEN: Final = 512
"""Zeros at the end of a coded picture that was cut; encoders left at most 3 (docs/log.md)."""
MAX_PIXELS: Final = 178_956_970
"""Pillow's own limit: a header that claims more is taken for a decompression bomb and never decoded."""
LONG: Final = 16 << 20
"""Bytes of a file from which it is asked whether it is a picture before it is read."""
TOLERANCE: Final = 3.0
"""Mean levels by which DALI's pixels may differ from ours in a block before the file is packed as PNG."""
BLOCK: Final = 16
"""Pixels of a block's side."""
HELD: Final = 12 << 20
"""Bytes of pixels from which DALI is asked about the files that wait for it."""
NO_IMAGE: Final = "no image that is read here"
ODD_TIFF: Final = "a TIFF of a kind that no decoder here reads; save it with 8 bits a channel"

Asked: TypeAlias = tuple[NDArray[np.uint8], Pixels]
"""Of DALI: a file's bytes, and the pixels to which they should decode."""
Look: TypeAlias = Generator[Asked, None, ImageInfo]
"""A look at one file. It goes on where DALI agrees; where not, a DecodeError is thrown into it."""


def finish(looks: Iterable[Look], dali: DaliDecoder) -> list[ImageInfo]:
    """What each look finds, in order; DALI is asked about several files at once."""
    looks = list(looks)
    found: dict[int, ImageInfo] = {}
    waiting: dict[int, Asked] = {}
    for place, look in enumerate(looks):
        try:
            waiting[place] = next(look)
        except StopIteration as end:
            found[place] = end.value
        if place == len(looks) - 1 or sum(pixels.nbytes for _, pixels in waiting.values()) >= HELD:
            found |= _ask(looks, waiting, dali)
            waiting.clear()
    return [found[place] for place in range(len(looks))]


def _ask(looks: Sequence[Look], waiting: dict[int, Asked], dali: DaliDecoder) -> dict[int, ImageInfo]:
    """What the waiting looks find, by place. Where DALI refuses one of several, it is asked of each alone."""
    refusal = None
    try:
        dali.check(list(waiting.values()))
    except (DecodeError, MemoryError) as error:
        if len(waiting) > 1:
            alone = (_ask(looks, {place: asked}, dali) for place, asked in waiting.items())
            return {place: info for each in alone for place, info in each.items()}
        refusal = error
    found = {}
    for place in waiting:
        try:
            next(looks[place]) if refusal is None else looks[place].throw(refusal)
        except StopIteration as end:
            found[place] = end.value
    return found


def look_into(data: bytes, suffix: str, background: str) -> Look:
    """A look at a file's bytes. suffix: how its name ends."""
    sha256 = hashlib.sha256(data).hexdigest()
    known: dict[str, Any] = {"bytes": len(data), "crc32": zlib.crc32(data), "sha256": sha256}
    if not data:
        return ImageInfo(**known, problem="undecodable", detail="the file is empty")
    if foreign := name_foreign(data[:1024], suffix):
        return ImageInfo(**known, problem=foreign, detail=FOREIGN[foreign])
    try:
        known |= _header(data)
        if known["width"] * known["height"] > MAX_PIXELS:
            claim = f"the header claims {known['width']} x {known['height']} pixels, more than {MAX_PIXELS:,}"
            return ImageInfo(**known, problem="bomb", detail=claim)
        return (yield from _try_decoders(data, known, background))
    except UnidentifiedImageError:
        tiff = data[:4] in (b"II*\0", b"MM\0*")
        return ImageInfo(**known, problem="undecodable", detail=ODD_TIFF if tiff else NO_IMAGE)
    except MemoryError:
        raise
    except Exception as error:  # libraries raise whatever a format makes them raise
        return _faulty(known, one_line(error))


def _header(data: bytes) -> dict[str, Any]:
    """Format, upright size and orientation, read without decoding a pixel."""
    with open_image(io.BytesIO(data)) as image:
        bomb = image.width * image.height > MAX_PIXELS  # of a PNG, reading EXIF decodes the pixels
        orientation = 1 if bomb else read_orientation(image)
        turned = orientation >= 5 and image.format != "TIFF"  # whose size Pillow has turned
        width, height = image.size[::-1] if turned else image.size
        return {
            "format": image.format or "",
            "width": width,
            "height": height,
            "orientation": orientation,
            "mode": image.mode,
            "animated": not bomb and _animated(image),
        }


def _animated(image: Image.Image) -> bool:
    """Whether there is a second frame or page. Pillow skips to it, and does not count a thousand."""
    try:
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))  # an MPO holds a preview
    except Exception:
        return False


def _try_decoders(data: bytes, known: dict[str, Any], background: str) -> Look:
    """Three outcomes: stored as it is; stored as PNG, as not every engine reads it; corrupt."""
    zeros = count_unwritten(data, known["format"])
    if zeros >= UNWRITTEN:
        return ImageInfo(**known, problem="truncated", detail=f"its last {zeros:,} bytes are zeros")
    if known["format"] not in STORED:
        why = f"{known['format']} is not a format that both engines decode"
        return _look_converted(data, known, why, background)
    encoded = np.frombuffer(data, dtype=np.uint8)
    try:
        pixels = decode(encoded, strict=True)
    except DecodeError as error:
        why = one_line(error)
        if known["format"] in JPEGS:
            return _faulty(known, why)
        info = _look_converted(data, known, why, background)  # Pillow reads on over damage
        if info.transcode and known["format"] in WHOLE:
            return ImageInfo(**known, problem="undecodable", detail=why)
        return info
    try:
        if needs_conversion(data, known["format"]):
            return _look_converted(data, known, "", background)
        upright = (known["width"], known["height"])
        stored = upright if known["orientation"] < 5 else upright[::-1]
        if pixels.shape[1::-1] != stored:
            raise DecodeError(f"decodes to {pixels.shape[1::-1]}, but its header says {stored}")
        measured = measure(pixels, known["orientation"])
        yield encoded, pixels
    except DecodeError as error:
        return _look_converted(data, known, one_line(error), background)
    return ImageInfo(**known, **measured)


def _look_converted(data: bytes, known: dict[str, Any], why: str, background: str) -> ImageInfo:
    """A look at what will be packed as PNG, upright. why: not as it is, beside what conversion changes."""
    try:
        picture = to_rgb(data, background)
    except Exception as unreadable:
        return _faulty(known, one_line(unreadable))
    height, width = picture.pixels.shape[:2]
    turned = known | {"orientation": 1, "width": width, "height": height}
    transcode = "; ".join(filter(None, (why, picture.changed)))
    return ImageInfo(
        **turned, **measure(picture.pixels), transcode=transcode, transparent=picture.transparent
    )


def _faulty(known: dict[str, Any], message: str) -> ImageInfo:
    truncated = any(word in message.lower() for word in ("truncated", "premature"))
    return ImageInfo(**known, problem="truncated" if truncated else "undecodable", detail=message)


def count_unwritten(data: bytes, format: str) -> int:
    """How many zeros end the coded picture of a lossy WebP or an AVIF; 0 of any other.

    Half a download whose space was reserved ends so, and the decoders take zeros for more of the picture.
    """
    coded = b""
    if format == "WEBP" and (start := data.find(b"VP8 ")) >= 0:
        coded = data[start + 8 : start + 8 + int.from_bytes(data[start + 4 : start + 8], "little")]
    if format == "AVIF":
        coded = _coded_avif(data)
    return len(coded) - len(coded.rstrip(b"\0"))


def _coded_avif(data: bytes) -> bytes:
    """The first `mdat` box (ISO/IEC 14496-12, 4.2) as far as it goes; others may follow."""
    start = 0
    while start < len(data):
        size, header = int.from_bytes(data[start : start + 4], "big"), 8
        if size == 1:
            size, header = int.from_bytes(data[start + 8 : start + 16], "big"), 16
        stop = start + size if size else len(data)
        if data[start + 4 : start + 8] == b"mdat":
            return data[start + header : stop]
        start = max(stop, start + header)
    return b""


class DaliDecoder:
    """DALI's CPU decoder; after a bad image DALI must be built anew."""

    def __init__(self, wanted: bool = True) -> None:
        """Unless it is `wanted` and on this machine, every check passes: its engine is not chosen here."""
        self._pipeline = _decoder() if wanted and has_dali() else None

    def check(self, asked: Sequence[Asked]) -> None:
        """Raise DecodeError unless DALI decodes each of at most TOGETHER files to about what is expected."""
        if self._pipeline is None or not asked:
            return
        try:
            (output,) = self._pipeline.run(encoded=[encoded for encoded, _ in asked])
        except RuntimeError as error:
            self._pipeline = _decoder()
            raise DecodeError(f"DALI: {_dali_reason(error)}") from None
        for place, (_, expected) in enumerate(asked):
            _compare(np.asarray(output.at(place)), expected)


def _compare(pixels: Pixels, expected: Pixels) -> None:
    """Raise DecodeError where DALI's pixels are not about what is expected."""
    if pixels.shape != expected.shape:
        raise DecodeError(f"DALI decodes to {pixels.shape}, OpenCV and libjpeg-turbo to {expected.shape}")
    apart = most_apart(pixels, expected)
    if apart > TOLERANCE:
        raise DecodeError(f"two decoders disagree by {apart:.1f} levels in one place")


def most_apart(one: Pixels, other: Pixels) -> float:
    """Mean difference in levels of the block of 16 pixels a side in which two pictures differ most.

    0 where no pixel differs by more than TOLERANCE.
    """
    if cv2.norm(one, other, cv2.NORM_INF) <= TOLERANCE:
        return 0.0
    apart = cv2.absdiff(one, other)
    smaller = tuple(max(1, side // BLOCK) for side in apart.shape[1::-1])
    return float(cv2.resize(apart, smaller, interpolation=cv2.INTER_AREA).max())


def _decoder() -> Any:
    """A pipeline that decodes images as `dali.graph` does: `run(encoded=[bytes, ...])`."""
    from nvidia.dali import Pipeline, fn, types

    pipeline = Pipeline(batch_size=TOGETHER, num_threads=1, device_id=None, prefetch_queue_depth=1)
    with pipeline:
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        pipeline.set_outputs(fn.decoders.image(encoded, device="cpu", adjust_orientation=False))
    return pipeline


def _dali_reason(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line.startswith(("Error: ", "Failed", "Error in", "nvImageCodec"))]
    return (telling or [line for line in lines if line] or ["unknown error"])[-1][:200]


def look_at(path: Place, background: str = WHITE) -> Look:
    """A look at a file, whatever lies there."""
    try:
        if not path.is_file():
            return ImageInfo(problem="undecodable", detail="not a regular file")
        if length(path) > LONG and not _is_picture(path):
            return _skim(path)
        return (yield from look_into(path.read_bytes(), path.suffix, background))
    except OSError as error:
        return ImageInfo(problem="unreadable", detail=error.strerror or str(error))
    except MemoryError:
        return ImageInfo(problem="undecodable", detail="needs more memory than there is")


def _is_picture(path: Place) -> bool:
    """Whether it begins as a picture does, or may be one whose header is corrupt."""
    try:
        with path.open("rb") as file:
            if name_foreign(file.read(1024), path.suffix):
                return False
            file.seek(0)
            with open_image(file):
                return True
    except UnidentifiedImageError:
        return False
    except Exception:
        return True


def _skim(path: Place) -> ImageInfo:
    """A look at a long file that is no picture, a video perhaps, which is not held in memory."""
    size, crc32, sha256 = 0, 0, hashlib.sha256()
    with path.open("rb") as file:
        foreign = name_foreign(file.read(1024), path.suffix)
        file.seek(0)
        while block := file.read(1 << 20):
            size, crc32 = size + len(block), zlib.crc32(block, crc32)
            sha256.update(block)
    known: dict[str, Any] = {"bytes": size, "crc32": crc32, "sha256": sha256.hexdigest()}
    return ImageInfo(**known, problem=foreign or "undecodable", detail=FOREIGN.get(foreign, NO_IMAGE))


def main() -> None:
    """Answer a JSON line for every line of paths on standard input, until it closes."""
    for ending in ENDINGS:  # these are the parent's to handle; it closes our input
        signal.signal(ending, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a C library prints must not mix with the answers
    cv2.setNumThreads(1)
    Image.MAX_IMAGE_PIXELS = None  # `look_into` refuses bombs itself, by what the header claims
    dali, background = DaliDecoder(WITHOUT_DALI not in sys.argv), (*sys.argv[1:], WHITE)[0]
    gc.freeze()  # what was imported stays: the collector need not look through it again and again
    answers.write(b"ready\n")
    for line in sys.stdin.buffer:
        infos = finish((look_at(path, background) for path in from_line(line)), dali)
        answers.write(json.dumps([*map(asdict, infos)], default=bytes.hex).encode() + b"\n")


if __name__ == "__main__":
    main()
