"""Decoding, and what one look at a file finds: every format, every fault, and that nothing kills the probe."""

from __future__ import annotations

import hashlib
import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import oracle
import pytest
from engines import needs_dali
from numpy.typing import NDArray
from pictures import coded, decoder, encode, folder, noise, png_bomb, store_as, validate_image
from PIL import Image, features
from runs import Patch

from greyhound.cache import validate as module
from greyhound.cache.decode import DecodeError, decode, downsample
from greyhound.cache.picture import to_rgb
from greyhound.cache.scan import FORMATS, TOGETHER, ImageInfo
from greyhound.cache.stats import measure
from greyhound.cache.validate import Asked, DaliDecoder, finish

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
PICTURE = noise(96, 72, 1)


def array(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, dtype=np.uint8)


def pillow(pixels: NDArray[np.uint8], mode: str) -> Image.Image:
    return Image.fromarray(pixels).convert(mode)  # type: ignore[arg-type, unused-ignore]


def look_at(data: bytes) -> ImageInfo:
    return validate_image(data, decoder())


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_decode_is_rgb_as_pillow_sees_it(format: str) -> None:
    data = encode(PICTURE, format)
    assert np.array_equal(decode(array(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize(("times", "shape"), [(1, (76, 101, 3)), (2, (38, 51, 3)), (3, (19, 26, 3))])
def test_decode_halves_and_leaves_orientation_alone(format: str, times: int, shape: tuple[int, ...]) -> None:
    picture = noise(201, 151, 2)
    halved = decode(array(encode(picture, format)), times, (201, 151))
    assert halved.shape == shape
    assert oracle.psnr(halved, oracle.downsample(picture, times)) > 40
    assert decode(array(encode(store_as(PICTURE, 6), format, 6))).shape == (96, 72, 3)


def test_halves_of_other_colours_and_odd_sides() -> None:
    for image in (pillow(PICTURE, "L"), pillow(PICTURE, "CMYK")):
        halved = decode(array(encode(image, "JPEG")), 1, (96, 72))
        assert halved.shape == (36, 48, 3)
        assert oracle.psnr(halved, oracle.downsample(np.asarray(image.convert("RGB")), 1)) > 35
    tiny = np.array([[0, 2, 10], [4, 6, 20], [100, 104, 201]], dtype=np.uint8)[:, :, None].repeat(3, axis=2)
    assert downsample(tiny, 1)[:, :, 0].tolist() == [[3, 15], [102, 201]]
    assert downsample(tiny, 0) is tiny
    odd = PICTURE[:67, :45]
    for times in ((1,), (2,), (3,), (0, 1), (3, 1), (1, 2)):
        assert np.abs(downsample(odd, *times).astype(int) - oracle.downsample(odd, *times)).max() <= 1


NO_IMAGE = {
    "empty": b"",
    "two bytes": b"\xff\xd8",
    "zeros": b"\xff\xd8" + bytes(100),
    "text": b"not an image",
    "nothing": bytes(500),
    "header only": encode(PICTURE)[:40],
    "gif": b"GIF89a",
}


@pytest.mark.parametrize("data", NO_IMAGE.values(), ids=NO_IMAGE)
def test_decode_refuses_what_is_no_image(data: bytes) -> None:
    for strict in (True, False):
        with pytest.raises(DecodeError):
            decode(array(data), strict=strict)


def test_a_truncated_jpeg_is_refused_only_when_strict(monkeypatch: Patch) -> None:
    data = encode(PICTURE, "JPEG")
    assert decode(array(data[: len(data) // 2])).shape == (72, 96, 3)
    with pytest.raises(DecodeError, match=r"(?i)premature"):
        decode(array(data[: len(data) // 2]), strict=True)
    for sound in (data, data + b"appended by some camera"):
        assert np.array_equal(decode(array(sound), strict=True), decode(array(sound)))
    no_cmyk = ValueError("Unsupported color conversion request")  # libjpegs without it leave it to Pillow
    monkeypatch.setattr("simplejpeg.decode_jpeg", Mock(side_effect=no_cmyk))
    assert decode(array(encode(pillow(PICTURE, "CMYK"), "JPEG")), strict=True).shape == (72, 96, 3)


def test_a_look_at_a_good_file() -> None:
    data = encode(PICTURE, "JPEG", 6)
    look = look_at(data)
    assert look == ImageInfo(
        format="JPEG",
        width=72,
        height=96,
        orientation=6,
        mode="RGB",
        **measure(decode(array(data)), 6),
        bytes=len(data),
        crc32=zlib.crc32(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    assert abs(look.mean_luma - (PICTURE @ [0.299, 0.587, 0.114]).mean()) < 0.5
    assert look.colourfulness > 30


@pytest.mark.parametrize(
    ("data", "format"),
    [
        (encode(PICTURE, "JPEG"), "JPEG"),
        (encode(PICTURE, "JPEG", progressive=True), "JPEG"),
        (encode(pillow(PICTURE, "CMYK"), "JPEG"), "JPEG"),
        (encode(pillow(PICTURE, "L"), "JPEG"), "JPEG"),
        (encode(PICTURE, "MPO", save_all=True, append_images=[Image.fromarray(PICTURE)]), "MPO"),
        (encode(PICTURE), "PNG"),
        (encode(Image.fromarray(PICTURE).quantize(32)), "PNG"),
        (encode(pillow(PICTURE, "RGBA")), "PNG"),
        (encode(PICTURE, "WEBP"), "WEBP"),
        (encode(PICTURE, "BMP"), "BMP"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_every_engine_decodes_is_stored_as_it_is(data: bytes, format: str) -> None:
    look = look_at(data)
    assert (look.format, look.width, look.height) == (format, 96, 72)
    assert (look.problem, look.detail, look.transcode) == ("", "", "")


@pytest.mark.parametrize("format", ["GIF", "PPM", "TGA", "TIFF", pytest.param("AVIF", marks=needs_avif)])
def test_what_only_pillow_decodes_is_to_be_transcoded(format: str) -> None:
    picture = Image.fromarray(PICTURE)
    look = look_at(encode(picture.quantize(64) if format == "GIF" else picture, format))
    assert (look.format, look.width, look.height, look.problem) == (format, 96, 72, "")
    assert look.transcode == f"{format} is not a format that both engines decode"


def test_a_turned_file_that_is_transcoded_becomes_upright() -> None:
    look = look_at(encode(store_as(PICTURE, 6), "AVIF" if features.check("avif") else "TIFF", 6))
    assert look.transcode
    assert (look.width, look.height, look.orientation) == (96, 72, 1)
    assert np.array_equal(to_rgb(encode(store_as(PICTURE, 7), "PNG", 7)).pixels, PICTURE)


def exif(kind: int, value: bytes) -> bytes:
    """An EXIF block with nothing but an orientation of this TIFF type."""
    entry = struct.pack("<HHI4s", 0x0112, kind, 1 if kind == 3 else len(value), value)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)


EXIF = {
    "good": (exif(3, b"\x06\0\0\0"), 6),
    "none like it": (exif(3, b"\0\0\0\0"), 1),
    "too large": (exif(3, b"\x09\0\0\0"), 1),
    "far too large": (exif(3, struct.pack("<I", 4000)), 1),
    "text": (exif(2, b"abc\0"), 1),
    "garbage": (b"Exif\0\0garbage, no TIFF", 1),
    "short": (b"Exif\0\0II*\0", 1),
}


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize(("block", "orientation"), EXIF.values(), ids=EXIF)
def test_broken_exif_does_not_condemn_a_picture(block: bytes, orientation: int, format: str) -> None:
    look = look_at(encode(PICTURE, format, exif=block))
    assert (look.orientation, look.problem, look.transcode) == (orientation, "", "")
    assert (look.width, look.height) == ((72, 96) if orientation == 6 else (96, 72))


NOISE = np.random.default_rng(0).bytes(50_000)
BOMB = "the header claims 60000 x 60000 pixels, more than 178,956,970"
UNDECODABLE = {
    "empty": (b"", "undecodable", "the file is empty"),
    "text": (b"hello\n", "undecodable", "no image that is read here"),
    "zeros": (bytes(1000), "undecodable", "no image that is read here"),
    "garbage": (NOISE[:5000], "undecodable", "no image that is read here"),
    "truncated jpeg": (encode(PICTURE, "JPEG")[:-2000], "truncated", None),
    "truncated png": (encode(PICTURE)[:-2000], "truncated", None),
    "noise behind its header": (encode(PICTURE)[:60] + NOISE, None, None),
    "bomb": (png_bomb(60_000), "bomb", BOMB),
}


@pytest.mark.parametrize("name", UNDECODABLE)
def test_what_nothing_decodes(name: str, monkeypatch: Patch) -> None:
    data, problem, detail = UNDECODABLE[name]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as `main` does
    look = look_at(data)
    assert look.problem in ([problem] if problem else ["undecodable", "truncated"])
    assert look.detail and "\n" not in look.detail and detail in (None, look.detail)
    assert look.transcode == ""
    assert (look.bytes, look.crc32) == (len(data), zlib.crc32(data))


@pytest.mark.parametrize("name", ["decode", "needs_conversion", "measure"])
def test_whatever_a_library_raises_costs_one_file(name: str, monkeypatch: Patch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SyntaxError("broken\nPNG file")

    monkeypatch.setattr(module, name, fail)
    look = look_at(encode(PICTURE))
    assert (look.problem, look.detail, look.width) == ("undecodable", "broken PNG file", 96)


def with_hole(data: bytes, filling: bytes) -> bytes:
    """The bytes in the middle replaced by others."""
    middle = len(data) // 2
    return data[:middle] + filling + data[middle + len(filling) :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "half and an end": lambda data: data[: len(data) // 2] + b"\xff\xd9",
    "a hole of zeros": lambda data: with_hole(data, bytes(4096)),
    "512 random bytes": lambda data: with_hole(data, np.random.default_rng(0).bytes(512)),
    "zeros to the end": lambda data: data[: len(data) // 2] + bytes(len(data) // 2),
}
JPEGS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "progressive": {"progressive": True},
    "CMYK": {"mode": "CMYK"},
    "grey": {"mode": "L"},
    "restart markers": {"restart_marker_blocks": 20},
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", JPEGS)
def test_a_damaged_jpeg_is_never_sound(kind: str, damage: str) -> None:
    """Though Pillow, and libjpeg when it is not asked to be strict, make a picture of most of them."""
    options: dict[str, Any] = {"mode": "RGB", "quality": 90} | JPEGS[kind]
    data = encode(pillow(noise(400, 300, 4), options.pop("mode")), "JPEG", **options)
    assert look_at(data).problem == ""
    look = look_at(DAMAGE[damage](data))
    assert look.problem == ("truncated" if "premature" in look.detail.lower() else "undecodable")
    assert look.transcode == ""


@pytest.mark.parametrize("format", ["WEBP", pytest.param("AVIF", marks=needs_avif)])
def test_a_picture_that_was_never_written_to_the_end_is_truncated(format: str) -> None:
    """But zeros behind the picture of an AVIF are none of it."""
    data = encode(noise(400, 300, 4), format, quality=90)
    assert module.count_unwritten(data, format) < 8
    look = look_at(DAMAGE["zeros to the end"](data))
    assert (look.problem, look.detail) == ("truncated", f"its last {len(data) // 2:,} bytes are zeros")
    if format == "AVIF":
        assert look_at(data + struct.pack(">I4s4096x", 8 + 4096, b"free")).problem == ""


BOXES = {
    "a size": (struct.pack(">I4s", 8 + 3, b"mdat"), 2),
    "a long size": (struct.pack(">I4sQ", 1, b"mdat", 16 + 3), 2),
    "to the end": (struct.pack(">I4s", 0, b"mdat"), 7),
    "the second box": (struct.pack(">I4s4xI4s", 12, b"mdax", 8 + 3, b"mdat"), 2),
    "a size that is none": (struct.pack(">I4sI4s", 2, b"free", 8 + 3, b"mdat"), 2),
    "no picture": (b"", 0),
}


@pytest.mark.parametrize(("head", "zeros"), BOXES.values(), ids=BOXES)
def test_the_picture_of_an_avif_is_one_of_its_boxes(head: bytes, zeros: int) -> None:
    assert module.count_unwritten(head + b"x\0\0" + bytes(5), "AVIF") == zeros
    assert module.count_unwritten(head[:6], "AVIF") == 0


def test_zeros_may_end_a_lossless_webp() -> None:
    """And what follows the picture in a file says nothing of it."""
    half_black = np.vstack([noise(600, 90, 1), np.zeros((900, 600, 3), np.uint8)])
    flat = encode(half_black, "WEBP", lossless=True, method=0)
    for data in (flat, encode(noise(400, 300, 4), "WEBP")):
        look = look_at(data + bytes(1000))
        assert (look.problem, look.transcode) == ("", "")


def test_extra_bytes_in_a_jpeg_and_a_checksum_that_does_not_fit_condemn_a_file() -> None:
    """Pillow does not look at those of the picture itself in a PNG."""
    before, marker, after = encode(PICTURE, "JPEG").partition(b"\xff\xda")
    look = look_at(before + b"\0\0\0" + marker + after)
    said = "Corrupt JPEG data: 3 extraneous bytes before marker 0xda"
    assert (look.problem, look.detail) == ("undecodable", said)
    data = encode(PICTURE)
    spoilt = data[:-13] + bytes([data[-13] ^ 1]) + data[-12:]  # of the last chunk before the end
    assert np.array_equal(to_rgb(spoilt).pixels, PICTURE)
    look = look_at(spoilt)
    assert (look.problem, look.detail) == ("undecodable", "neither a JPEG nor an image that OpenCV reads")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


def test_some_formats_are_not_opened() -> None:
    """An icon would be decoded to be opened, and need not be as large as it says; EPS needs Ghostscript."""
    png = encode(Image.new("RGBA", (900, 900), "red"))
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(png), 22) + png
    for look in (look_at(icon), look_at(EPS)):
        assert (look.problem, look.detail, look.width) == ("undecodable", "no image that is read here", 0)
    Image.init()
    assert set(FORMATS) <= Image.OPEN.keys()


def test_a_long_file_that_is_no_picture_is_not_held_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "clip.mp4"
    with file.open("wb") as stream:
        stream.write(b"\0\0\0\x20ftypmp42")
        stream.truncate(module.LONG + 5)
    tracemalloc.start()
    (look,) = finish([module.look_at(file)], decoder())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    assert look == look_at(file.read_bytes())
    assert (look.problem, look.detail, look.bytes) == (
        "undecodable",
        "no image that is read here",
        module.LONG + 5,
    )


@needs_dali
def test_the_probe_compares_pixels_and_recovers_after_every_bad_image() -> None:
    good = array(encode(PICTURE))
    for bad in (b"GIF89a" + bytes(50), b"\xff\xd8\xff" + bytes(50), encode(PICTURE)[:90]):
        with pytest.raises(DecodeError, match=r"^DALI: "):
            decoder().check([(array(bad), PICTURE)])
        with pytest.raises(DecodeError, match=r"^DALI: "):
            decoder().check([(good, PICTURE), (array(bad), PICTURE)])
        decoder().check([(good, PICTURE)] * TOGETHER)
    shapes = r"DALI decodes to \(72, 96, 3\), OpenCV and libjpeg-turbo to \(71, 96, 3\)"
    with pytest.raises(DecodeError, match=shapes):
        decoder().check([(good, PICTURE[1:])])
    spot = PICTURE.copy()
    spot[8:16, 40:48] ^= 128  # 0.9 % of the picture
    for other in (PICTURE[:, ::-1], spot):
        with pytest.raises(DecodeError, match="two decoders disagree by "):
            decoder().check([(good, PICTURE), (good, other)])


class Picky(DaliDecoder):
    """Refuses pictures of some widths. asked: the widths of those that it was asked about at once."""

    def __init__(self, **refused: Exception) -> None:
        super().__init__(False)
        self.refused, self.asked = refused, list[list[int]]()

    def check(self, asked: Sequence[Asked]) -> None:
        self.asked.append([pixels.shape[1] for _, pixels in asked])
        for width in self.asked[-1]:
            if error := self.refused.get(f"of_{width}"):
                raise error


def test_dali_is_asked_about_several_files_and_refuses_one(tmp_path: Path, monkeypatch: Patch) -> None:
    sizes = (20, 21, 22, 23)
    images = {f"{width}.png": encode(coded(width, 10)) for width in sizes} | {"a.txt": b"no picture"}
    root, picky = folder(tmp_path, images), Picky(of_21=DecodeError("no"), of_23=MemoryError())
    names = ("20.png", "a.txt", "21.png", "22.png", "23.png")
    looks = finish([module.look_at(root / name) for name in names], picky)
    assert [look.width for look in looks] == [20, 0, 21, 22, 0]
    assert [look.transcode for look in looks] == ["", "", "no", "", ""]
    assert (looks[4].problem, looks[4].detail) == ("undecodable", "needs more memory than there is")
    assert picky.asked == [[*sizes], *([width] for width in sizes)]
    monkeypatch.setattr(module, "HELD", (20 + 21) * 10 * 3)
    picky.asked.clear()
    assert finish([module.look_at(root / name) for name in names], picky) == looks
    assert picky.asked == [[20, 21], [20], [21], [22, 23], [22], [23]]


@pytest.mark.parametrize(("levels", "apart"), [(3, 0.0), (4, 4.0), (20, 20.0)])
def test_pictures_are_compared_block_by_block(levels: int, apart: float) -> None:
    other = np.full((64, 80, 3), 100, np.uint8)
    other[16:32, 32:48] += levels
    assert module.most_apart(np.full((64, 80, 3), 100, np.uint8), other) == pytest.approx(apart)


@pytest.mark.parametrize(("wanted", "there"), [(True, False), (False, True)])
def test_without_dali_every_check_passes(monkeypatch: Patch, wanted: bool, there: bool) -> None:
    monkeypatch.setattr(module, "has_dali", lambda: there)
    monkeypatch.setattr(module, "_decoder", lambda: pytest.fail("DALI is imported"))
    look = validate_image(encode(PICTURE), DaliDecoder(wanted))
    assert (look.problem, look.transcode) == ("", "")
