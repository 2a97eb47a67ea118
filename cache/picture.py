"""The one 8-bit RGB picture of any file: upright, opaque, the first frame.

Before it: a file's bytes. After it: what is packed as PNG, what a scan measures where that is so, thumbnails
and close-ups. What both engines decode to these very pixels is packed as it is; `validate` finds out.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageColor

from greyhound.cache.decode import DecodeError, Pixels, is_lossless_jpeg
from greyhound.cache.scan import FORMATS, WHITE

JPEGS: Final = frozenset({"JPEG", "MPO"})
_TURNS: Final = (
    None,
    None,
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.ROTATE_180,
    Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)
"""What makes a picture of this EXIF orientation upright."""
_DEEP: Final = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of one channel with more than 8 bits."""
NARROW: Final = 1 / 16
"""Values of 32 bits that span less than this share of their range are scaled by what they span. A guess."""


@dataclass(frozen=True, slots=True)
class Picture:
    """pixels: uint8 RGB `[H, W, 3]`. changed: why the file's own values are not these, "" where they are."""

    pixels: Pixels
    changed: str = ""
    transparent: bool = False


def open_image(file: Any) -> Image.Image:
    """Open with Pillow, and pillow-heif where it is installed. Raises what they raise."""
    return Image.open(file, formats=[*FORMATS, "HEIF"] if reads_heic() else FORMATS)


@cache
def reads_heic() -> bool:
    """Whether pillow-heif is there; then Pillow knows the format."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def read_orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8. Nothing else is asked, as of no other decoder; broken means 1.

    Pillow's `getexif` also makes one of XMP and of a PNG's text. Raises OSError where pixels are at fault.
    """
    if image.format == "PNG":
        image.load()  # its EXIF may stand behind the pixels
    try:
        if image.format == "TIFF":
            found = image.tag_v2.get(ExifTags.Base.Orientation)  # type: ignore[attr-defined]
        else:
            exif = Image.Exif()
            exif.load(image.info.get("exif") or b"")
            found = exif.get(ExifTags.Base.Orientation)
        orientation = int(found or 1)
    except Exception:
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def to_rgb(data: bytes, background: str = WHITE, around: int = 0) -> Picture:
    """The picture of a file. background: a colour, under what is transparent.

    around: a JPEG may be reduced, to not much less than this side. Raises what Pillow raises, DecodeError.
    """
    with open_image(io.BytesIO(data)) as image:
        lossless = image.format in JPEGS and is_lossless_jpeg(np.frombuffer(data, np.uint8))
        whys = ["lossless JPEG: engines cannot decode it reduced"] if lossless else []
        if around and not lossless:
            image.draft("RGB", (around, around))
        turned = image.format == "TIFF"  # by Pillow
        turn = None if turned else _TURNS[read_orientation(image)]
        deep = _deep_values(image, data)
        if deep is not None:
            levels, why = to_levels(deep)
            image, whys = Image.fromarray(levels), [*whys, why]
        elif _is_deep_png(image, data):
            whys.append("16 bits a channel: the upper 8 are taken")
        if _is_animated(image):
            whys.append("animated: the still picture is taken")
        if transparent := _is_transparent(image):
            image = _lay_on(image, background)
            whys.append(f"transparent pixels are laid on {background}")
        upright = image.transpose(turn) if turn is not None else image
        return Picture(np.asarray(upright.convert("RGB")), "; ".join(whys), transparent)


def needs_conversion(data: bytes, format: str) -> bool:
    """Whether engines make other pixels than `to_rgb` of a file, though both decode its format."""
    if format in JPEGS:
        return is_lossless_jpeg(np.frombuffer(data, np.uint8))
    with open_image(io.BytesIO(data)) as image:
        return _is_deep_png(image, data) or _is_animated(image) or _is_transparent(image)


def encode_png(pixels: Pixels) -> bytes:
    """The pixels as PNG, without loss."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def to_levels(values: NDArray[Any]) -> tuple[Pixels, str]:
    """Values of any type to uint8, and how in words. Raises DecodeError for what is no number.

    16 bits are divided by 257, unless all fit in 8 or 12 bits: then these are the range. Others are taken to
    range from 0 to 1 (floats), 255, 4,095 or 65,535, the least that holds them; what fits none, or spans a
    small share of it, is scaled from its least value to its largest.
    """
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(values).all():
        raise DecodeError("its values do not fit 8 bits: some are infinite or no number")
    of_16_bits = values.dtype.kind == "u" and values.dtype.itemsize == 2
    ranges = [1.0, 255.0, 4095.0, 65535.0][values.dtype.kind != "f" :]
    top = next((top for top in ranges if high <= top), None)
    bottom = 0.0
    if low < 0 or top is None or (not of_16_bits and 0 < high - low < NARROW * top):
        bottom, top = low, high if high > low else low + 1
    levels = np.rint((values.astype(np.float64) - bottom) * (255 / (top - bottom))).astype(np.uint8)
    kind = "16 bits" if of_16_bits else "values"
    return levels, f"{kind} a channel: {bottom:g} to {top:g} became 0 to 255"


def _deep_values(image: Image.Image, data: bytes) -> NDArray[Any] | None:
    """Values of more than 8 bits, `[H, W]` or RGB(A), upright where it is a TIFF; None of any other image."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    if image.mode in _DEEP:
        values = np.asarray(image)
        if image.mode == "I" and image.format in ("PNG", "PPM"):
            values = values.astype(np.uint16)  # which Pillow opens as 32 bits
        if values.dtype.kind == "u":
            values = values.astype(np.uint16)
            return 65535 - values if tags.get(262) == 0 else values  # white is zero, which Pillow leaves so
        return values
    deep_tiff = max(tags.get(258) or (8,)) > 8
    if deep_tiff and tags.get(284) == 2:
        raise DecodeError("its 16-bit channels lie apart, which no decoder here reads; interleave them")
    associated = 1 in (tags.get(338) or ())  # colour times alpha, which Pillow divides out
    if not (_is_deep_png(image, data) or (deep_tiff and not associated)):
        return None
    import cv2  # slow to load, and rarely needed

    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
    if found is None or found.dtype != np.uint16 or found.ndim != 3 or found.shape[2] not in (3, 4):
        return None
    return found[:, :, [2, 1, 0, 3][: found.shape[2]]]


def _is_deep_png(image: Image.Image, data: bytes) -> bool:
    return image.format == "PNG" and data[24:25] == b"\x10"  # IHDR's bit depth


def _is_animated(image: Image.Image) -> bool:
    """Whether engines may show another picture than the still one, which need not be a frame."""
    return image.format == "PNG" and bool(getattr(image, "is_animated", False))


def _is_transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    alpha = image.convert("RGBA").getchannel("A").getextrema()[0]
    return bool(alpha < 255)  # type: ignore[operator]


def _lay_on(image: Image.Image, background: str) -> Image.Image:
    """Opaque: the image over a colour."""
    pixels = np.asarray(image.convert("RGBA"), np.float32)
    alpha, below = pixels[:, :, 3:] / 255, np.array(ImageColor.getrgb(background)[:3], np.float32)
    return Image.fromarray(np.rint(pixels[:, :, :3] * alpha + below * (1 - alpha)).astype(np.uint8))


_HEIC: Final = ("heic", "heix", "hevc", "heim", "heis", "hevm", "mif1", "msf1")
_RAW: Final = (
    "arw", "cr2", "cr3", "crw", "dng", "nef", "nrw", "orf", "pef", "raf", "raw", "rw2", "srw", "x3f",
)  # fmt: skip
_TEXT: Final = ("csv", "htm", "html", "json", "jsonl", "md", "tsv", "txt", "xml", "yaml", "yml")
FOREIGN: Final = {
    "heic": "HEIC, as phones write it, is not read here: pip install pillow-heif, or convert it to JPEG",
    "raw": "a camera's raw file, whose picture is still to be developed; export it as JPEG, PNG or TIFF",
    "dicom": "DICOM, whose values need a window of grey levels; export it as PNG",
    "svg": "SVG, which is a drawing in text and has no pixels; export it as PNG",
    "not-an-image": "an annotation or other text",
}
"""Kinds of files that are known and not read, and what to do about it."""
UNREAD: Final = frozenset(f".{ending}" for ending in (*_RAW, "avif", "dcm", "heic", "heif", "hif", "svg"))
"""How names of pictures end that are not read here, or only where some library is."""


def named_as_read(suffix: str) -> bool:
    """Whether a name with this suffix is that of a format that is read here."""
    formats = (*FORMATS, "MPO", *(["HEIF"] if reads_heic() else []))
    return Image.registered_extensions().get(suffix.lower()) in formats


def name_foreign(start: bytes, suffix: str) -> str:
    """Which of FOREIGN a file is, by its first bytes and its name's ending; "" for none of them."""
    ending = suffix.lower().lstrip(".")
    if start[4:8] == b"ftyp" and start[8:12].decode("latin-1") in _HEIC and b"avif" not in start[12:64]:
        return "" if reads_heic() else "heic"
    if ending in _RAW and not start.startswith((b"\xff\xd8", b"\x89PNG")):
        return "raw"
    if start[128:132] == b"DICM":
        return "dicom"
    if b"<svg" in start[:1000].lower() and start.lstrip()[:1] in (b"<", b"\xef"):
        return "svg"
    return "not-an-image" if ending in _TEXT and not start.startswith((b"\xff\xd8", b"\x89PNG")) else ""
