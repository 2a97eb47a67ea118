"""Decoding, and what one look at a file finds: every format, every fault, and that nothing kills the probe."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from numpy.typing import NDArray
from pictures import coded, encode, noise, store_as
from PIL import Image, features

from greyhound.cache import validate as module
from greyhound.cache.decode import DecodeError, decode, downsample
from greyhound.cache.machine import has_dali
from greyhound.cache.scan import FORMATS, ImageInfo
from greyhound.cache.stats import measure
from greyhound.cache.validate import DaliDecoder, pillow_pixels, validate_image

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
needs_dali = pytest.mark.skipif(not has_dali(), reason="DALI is not installed")
PICTURE = noise(96, 72, 1)


def array(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, dtype=np.uint8)


@pytest.fixture(scope="module")
def probe() -> DaliDecoder:
    return DaliDecoder()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb(side: int) -> bytes:
    """A few hundred bytes that claim to be side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


# --- decode ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_decode_is_rgb_as_pillow_sees_it(format: str) -> None:
    data = encode(PICTURE, format)
    assert np.array_equal(decode(array(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_decode_leaves_orientation_alone(format: str) -> None:
    stored = store_as(PICTURE, 6)
    assert decode(array(encode(stored, format, 6))).shape == (96, 72, 3)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize(("times", "shape"), [(1, (76, 101, 3)), (2, (38, 51, 3)), (3, (19, 26, 3))])
def test_decode_halves(format: str, times: int, shape: tuple[int, int, int]) -> None:
    picture = noise(201, 151, 2)
    halved = decode(array(encode(picture, format)), times, (201, 151))
    assert halved.shape == shape
    assert oracle.psnr(halved, oracle.downsample(picture, times)) > 40


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_decode_halves_jpegs_of_other_colours(mode: str) -> None:
    image = Image.fromarray(PICTURE).convert(mode)  # type: ignore[arg-type, unused-ignore]
    halved = decode(array(encode(image, "JPEG")), 1, (96, 72))
    assert halved.shape == (36, 48, 3)
    assert oracle.psnr(halved, oracle.downsample(np.asarray(image.convert("RGB")), 1)) > 35


def test_halve() -> None:
    tiny = np.array([[0, 2, 10], [4, 6, 20], [100, 104, 201]], dtype=np.uint8)[:, :, None].repeat(3, axis=2)
    assert downsample(tiny, 1)[:, :, 0].tolist() == [[3, 15], [102, 201]]
    assert downsample(tiny, 0) is tiny
    for times in (1, 2, 3):
        apart = downsample(PICTURE[:67, :45], times).astype(int) - oracle.downsample(PICTURE[:67, :45], times)
        assert np.abs(apart).max() <= 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xd8",
        b"\xff\xd8" + bytes(100),
        b"not an image",
        bytes(500),
        encode(PICTURE)[:40],
        b"GIF89a",
    ],
    ids=["empty", "two bytes", "zeros", "text", "nothing", "header only", "gif"],
)
@pytest.mark.parametrize("strict", [True, False])
def test_decode_refuses_what_is_no_image(data: bytes, strict: bool) -> None:
    with pytest.raises(DecodeError):
        decode(array(data), strict=strict)


def test_a_truncated_jpeg_is_refused_only_when_strict() -> None:
    data = encode(PICTURE, "JPEG")
    assert decode(array(data[: len(data) // 2])).shape == (72, 96, 3)
    with pytest.raises(DecodeError, match=r"(?i)premature"):
        decode(array(data[: len(data) // 2]), strict=True)
    for sound in (data, data + b"appended by some camera"):
        assert np.array_equal(decode(array(sound), strict=True), decode(array(sound)))


# --- examine: files that can be used ---------------------------------------------------------------------------------


def test_a_look_at_a_good_file(probe: DaliDecoder) -> None:
    data = encode(PICTURE, "JPEG", 6)
    look = validate_image(data, probe)
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


def opencv_png(pixels: NDArray[Any]) -> bytes:
    import cv2

    return cv2.imencode(".png", pixels)[1].tobytes()


@pytest.mark.parametrize(
    ("data", "format"),
    [
        (encode(PICTURE, "JPEG"), "JPEG"),
        (encode(PICTURE, "JPEG", progressive=True), "JPEG"),
        (encode(Image.fromarray(PICTURE).convert("CMYK"), "JPEG"), "JPEG"),
        (encode(Image.fromarray(PICTURE).convert("L"), "JPEG"), "JPEG"),
        (encode(PICTURE, "MPO", save_all=True, append_images=[Image.fromarray(PICTURE)]), "MPO"),
        (encode(PICTURE), "PNG"),
        (encode(Image.fromarray(PICTURE).quantize(32)), "PNG"),
        (encode(Image.fromarray(PICTURE).convert("RGBA")), "PNG"),
        (opencv_png(PICTURE.astype(np.uint16) * 256 + 77), "PNG"),
        (opencv_png(PICTURE[..., 0].astype(np.uint16) * 256 + 77), "PNG"),
        (encode(PICTURE, "WEBP"), "WEBP"),
        (encode(PICTURE, "BMP"), "BMP"),
        (encode(PICTURE, "TIFF"), "TIFF"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_every_engine_decodes_is_stored_as_it_is(data: bytes, format: str, probe: DaliDecoder) -> None:
    look = validate_image(data, probe)
    assert (look.format, look.width, look.height) == (format, 96, 72)
    assert (look.problem, look.detail, look.transcode) == ("", "", "")


@pytest.mark.parametrize("format", ["GIF", "PPM", "TGA", pytest.param("AVIF", marks=needs_avif)])
def test_what_only_pillow_decodes_is_to_be_transcoded(format: str, probe: DaliDecoder) -> None:
    picture = Image.fromarray(PICTURE)
    look = validate_image(encode(picture.quantize(64) if format == "GIF" else picture, format), probe)
    assert (look.format, look.width, look.height, look.problem) == (format, 96, 72, "")
    assert look.transcode == f"{format} is not a format that both engines decode"


def test_a_turned_file_that_is_transcoded_becomes_upright(probe: DaliDecoder) -> None:
    format = "AVIF" if features.check("avif") else "TIFF"
    look = validate_image(encode(store_as(PICTURE, 6), format, 6), probe)
    assert look.transcode
    assert (look.width, look.height, look.orientation) == (96, 72, 1)


@needs_dali
def test_what_the_engines_decode_differently_is_to_be_transcoded(probe: DaliDecoder) -> None:
    alpha = np.dstack([PICTURE, np.tile(np.linspace(0, 255, 96).astype(np.uint8), (72, 1))])
    look = validate_image(encode(Image.fromarray(alpha), "TIFF"), probe)
    assert look.problem == ""
    assert look.transcode.startswith("two decoders disagree by ")


@pytest.mark.parametrize("orientation", [0, 9, 4000])
def test_an_orientation_that_does_not_exist_means_nothing(orientation: int, probe: DaliDecoder) -> None:
    look = validate_image(encode(PICTURE, "JPEG", orientation), probe)
    assert (look.width, look.height, look.orientation, look.problem) == (96, 72, 1, "")


def exif(kind: int, value: bytes) -> bytes:
    """An EXIF block with nothing but an orientation of this TIFF type."""
    entry = struct.pack("<HHI4s", 0x0112, kind, 1 if kind == 3 else len(value), value)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("block", "orientation"),
    [
        (exif(3, b"\x06\0\0\0"), 6),
        (exif(2, b"abc\0"), 1),
        (b"Exif\0\0garbage, no TIFF", 1),
        (b"Exif\0\0II*\0", 1),
    ],
    ids=["good", "text", "garbage", "short"],
)
def test_broken_exif_does_not_condemn_a_picture(
    block: bytes, orientation: int, format: str, probe: DaliDecoder
) -> None:
    look = validate_image(encode(PICTURE, format, exif=block), probe)
    assert (look.orientation, look.problem, look.transcode) == (orientation, "", "")


def test_pillow_pixels_are_upright() -> None:
    assert np.array_equal(pillow_pixels(encode(store_as(PICTURE, 7), "PNG", 7)), PICTURE)


# --- examine: files that cannot --------------------------------------------------------------------------------------


def scrambled(data: bytes) -> bytes:
    """The header stays, everything after it is noise."""
    return data[:60] + np.random.default_rng(0).bytes(len(data))


@pytest.mark.parametrize(
    ("data", "problem", "detail"),
    [
        pytest.param(b"", "undecodable", "the file is empty", id="empty"),
        pytest.param(b"hello\n", "undecodable", "not an image", id="text"),
        pytest.param(bytes(1000), "undecodable", "not an image", id="zeros"),
        pytest.param(np.random.default_rng(0).bytes(5000), "undecodable", "not an image", id="garbage"),
        pytest.param(encode(PICTURE, "JPEG")[:-2000], "truncated", None, id="truncated jpeg"),
        pytest.param(encode(PICTURE)[:-2000], "truncated", None, id="truncated png"),
        pytest.param(scrambled(encode(PICTURE)), None, None, id="scrambled png"),
        pytest.param(
            png_bomb(60_000),
            "bomb",
            "the header claims 60000 x 60000 pixels, more than 178,956,970",
            id="bomb",
        ),
    ],
)
def test_what_nothing_decodes(
    data: bytes, problem: str | None, detail: str | None, probe: DaliDecoder
) -> None:
    Image.MAX_IMAGE_PIXELS, before = None, Image.MAX_IMAGE_PIXELS  # as `main` does
    try:
        look = validate_image(data, probe)
    finally:
        Image.MAX_IMAGE_PIXELS = before
    assert look.problem in ([problem] if problem else ["undecodable", "truncated"])
    assert look.detail
    assert "\n" not in look.detail
    assert detail in (None, look.detail)
    assert look.transcode == ""
    assert (look.bytes, look.crc32) == (len(data), zlib.crc32(data))


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


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "kind",
    [{}, {"progressive": True}, {"mode": "CMYK"}, {"mode": "L"}, {"restart_marker_blocks": 20}],
    ids=["baseline", "progressive", "CMYK", "grey", "restart markers"],
)
def test_a_damaged_jpeg_is_never_sound(kind: dict[str, Any], damage: str, probe: DaliDecoder) -> None:
    """Though Pillow, and libjpeg when it is not asked to be strict, make a picture of most of them."""
    options = {"mode": "RGB", "quality": 90, **kind}
    data = encode(Image.fromarray(noise(400, 300, 4)).convert(options.pop("mode")), "JPEG", **options)
    assert validate_image(data, probe).problem == ""
    look = validate_image(DAMAGE[damage](data), probe)
    assert look.problem in ("truncated", "undecodable")
    assert look.problem == ("truncated" if "premature" in look.detail.lower() else "undecodable")
    assert look.transcode == ""


def test_extra_bytes_before_a_marker_are_named(probe: DaliDecoder) -> None:
    data = encode(PICTURE, "JPEG")
    scan = data.index(b"\xff\xda")
    look = validate_image(data[:scan] + b"\0\0\0" + data[scan:], probe)
    assert (look.problem, look.detail) == (
        "undecodable",
        "Corrupt JPEG data: 3 extraneous bytes before marker 0xda",
    )


def test_a_libjpeg_without_cmyk_leaves_it_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("Unsupported color conversion request")

    monkeypatch.setattr("simplejpeg.decode_jpeg", refuse)
    data = encode(Image.fromarray(PICTURE).convert("CMYK"), "JPEG")
    assert decode(array(data), strict=True).shape == (72, 96, 3)


@pytest.mark.parametrize("format", ["WEBP", pytest.param("AVIF", marks=needs_avif)])
def test_a_picture_that_was_never_written_to_the_end_is_truncated(format: str, probe: DaliDecoder) -> None:
    data = encode(noise(400, 300, 4), format, quality=90)
    assert module.count_unwritten(data, format) < 8
    look = validate_image(DAMAGE["zeros to the end"](data), probe)
    assert (look.problem, look.detail) == ("truncated", f"its last {len(data) // 2:,} bytes are zeros")


@needs_avif
def test_zeros_behind_the_picture_of_an_avif_are_none_of_it(probe: DaliDecoder) -> None:
    whole = encode(noise(400, 300, 4), "AVIF", quality=90) + struct.pack(">I4s4096x", 8 + 4096, b"free")
    assert validate_image(whole, probe).problem == ""


@pytest.mark.parametrize(
    ("head", "zeros"),
    [
        (struct.pack(">I4s", 8 + 3, b"mdat"), 2),
        (struct.pack(">I4sQ", 1, b"mdat", 16 + 3), 2),
        (struct.pack(">I4s", 0, b"mdat"), 7),
        (struct.pack(">I4s4xI4s", 12, b"mdax", 8 + 3, b"mdat"), 2),
        (struct.pack(">I4sI4s", 2, b"free", 8 + 3, b"mdat"), 2),
        (b"", 0),
    ],
    ids=["a size", "a long size", "to the end", "the second box", "a size that is none", "no picture"],
)
def test_the_picture_of_an_avif_is_one_of_its_boxes(head: bytes, zeros: int) -> None:
    assert module.count_unwritten(head + b"x\0\0" + bytes(5), "AVIF") == zeros
    assert module.count_unwritten(head[:6], "AVIF") == 0


def test_zeros_may_end_a_lossless_webp(probe: DaliDecoder) -> None:
    """And what follows the picture in a file says nothing of it."""
    flat = encode(
        np.vstack([noise(600, 90, 1), np.zeros((900, 600, 3), np.uint8)]), "WEBP", lossless=True, method=0
    )
    padded = encode(noise(400, 300, 4), "WEBP") + bytes(1000)
    for data in (flat + bytes(1000), padded):
        look = validate_image(data, probe)
        assert (look.problem, look.transcode) == ("", "")


def test_a_checksum_that_does_not_fit_condemns_a_png(probe: DaliDecoder) -> None:
    """Pillow does not look at those of the picture itself."""
    data = encode(PICTURE)
    spoilt = data[:-13] + bytes([data[-13] ^ 1]) + data[-12:]  # of the last chunk before the end
    assert np.array_equal(pillow_pixels(spoilt), PICTURE)
    look = validate_image(spoilt, probe)
    assert (look.problem, look.detail) == ("undecodable", "neither a JPEG nor an image that OpenCV reads")


def icon(side: int) -> bytes:
    """An icon that says it is 16 x 16, and holds a PNG that is not."""
    png = encode(Image.new("RGBA", (side, side), "red"))
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + png


@pytest.mark.parametrize(
    "data",
    [icon(900), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"],
    ids=["an icon is decoded to be opened", "EPS needs Ghostscript"],
)
def test_some_formats_are_not_opened(data: bytes, probe: DaliDecoder) -> None:
    look = validate_image(data, probe)
    assert (look.problem, look.detail, look.width) == ("undecodable", "not an image", 0)


def test_every_format_that_is_opened_is_one_of_pillows() -> None:
    Image.init()
    assert set(FORMATS) <= Image.OPEN.keys()


def test_a_long_file_that_is_no_picture_is_not_held_in_memory(tmp_path: Path, probe: DaliDecoder) -> None:
    file = tmp_path / "clip.mp4"
    with file.open("wb") as stream:
        stream.write(b"\0\0\0\x20ftypmp42")
        stream.truncate(module.LONG + 5)
    tracemalloc.start()
    look = module._answer(file, probe)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    assert look == validate_image(file.read_bytes(), probe)
    assert (look.problem, look.detail, look.bytes) == ("undecodable", "not an image", module.LONG + 5)


@needs_dali
def test_the_probe_recovers_after_every_bad_image(probe: DaliDecoder) -> None:
    good = array(encode(PICTURE))
    for bad in (b"GIF89a" + bytes(50), b"\xff\xd8\xff" + bytes(50), encode(PICTURE)[:90]):
        with pytest.raises(DecodeError, match=r"^DALI: "):
            probe.check(array(bad), PICTURE)
        probe.check(good, PICTURE)


@needs_dali
def test_the_probe_compares_pixels(probe: DaliDecoder) -> None:
    good = array(encode(PICTURE))
    with pytest.raises(
        DecodeError, match=r"DALI decodes to \(72, 96, 3\), OpenCV and libjpeg-turbo to \(71, 96, 3\)"
    ):
        probe.check(good, PICTURE[1:])
    with pytest.raises(DecodeError, match="two decoders disagree by "):
        probe.check(good, PICTURE[:, ::-1])


def test_without_dali_every_check_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "has_dali", lambda: False)
    look = validate_image(encode(PICTURE), DaliDecoder())
    assert (look.problem, look.transcode) == ("", "")


# --- the child process -----------------------------------------------------------------------------------------------


def test_the_child_answers_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(encode(coded(20, 10)))
    (tmp_path / "bad.png").write_bytes(b"bad")
    asked = [tmp_path / "good.png", tmp_path / "bad.png", tmp_path / "missing.png", tmp_path]
    lines = "".join(json.dumps(os.fsencode(path).hex()) + "\n" for path in asked)
    command, cwd = [sys.executable, "-m", "greyhound.cache.validate"], Path(__file__).parents[1]
    child = subprocess.run(command, input=lines.encode(), capture_output=True, check=True, cwd=cwd)
    ready, *answers = child.stdout.splitlines()
    assert ready == b"ready"
    good, *bad = [ImageInfo(**json.loads(answer)) for answer in answers]
    assert (good.width, good.height, good.problem) == (20, 10, "")
    assert [(look.width, look.height, look.problem) for look in bad] == [(0, 0, "undecodable")] * 3
    assert [look.detail for look in bad] == ["not an image", "not a regular file", "not a regular file"]
