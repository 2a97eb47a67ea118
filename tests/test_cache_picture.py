"""cache/picture.py: the right 8-bit picture of every kind of file, by numpy, in every room that shows one."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from pictures import decoder, encode, folder, noise, scan_here, store_as, validate_image
from PIL import Image, PngImagePlugin
from runs import Capture, Patch

from greyhound.cache.cli import run
from greyhound.cache.decode import decode, downsample, is_lossless_jpeg
from greyhound.cache.errors import UserError
from greyhound.cache.machine import has_dali
from greyhound.cache.pack import Options, pack
from greyhound.cache.picture import name_foreign, open_image, reads_heic, to_levels, to_rgb
from greyhound.cache.scan import ImageInfo
from greyhound.cache.store import Pack
from greyhound.cache.thumbnail import make_thumbnail, read_closeup
from greyhound.eval import open_images
from greyhound.pipelines.augment import Augment
from greyhound.pipelines.engine import Resources
from greyhound.pipelines.loader import Loader
from greyhound.prediction import ImageFile
from greyhound.trained import pack_chunk

Pixels = NDArray[np.uint8]
DOWN, ACROSS = np.mgrid[:32, :48]
RAMP: Pixels = np.dstack([ACROSS * 5, DOWN * 8, (DOWN + ACROSS) * 3]).astype(np.uint8)
"""A colour picture, `[32, 48, 3]`."""
DEEP = (np.asarray(DOWN * 700 + ACROSS * 910)).astype(np.uint16)
"""Grey of 16 bits, up to 64,470."""
ALPHA = np.where((DOWN > 8) & (DOWN < 24), ACROSS * 5, 0).astype(np.uint8)
LOSSLESS = zlib.decompress(
    base64.b85decode(
        b"c-s4a<NrGbKF5^&q*R6!1`zmvm_d+(L4m=5IY^MfU68>^km3Ik1_=fRW=2K^WWdDC!twtW0}pc$gFAy015on$zxwCD`U79ty0"
        b"7>uxA;mGS<G2v>x40%wNqd{m}$9?GCy3Y>dUAa4T#Zz7!8QgfEW#k(SR5Y2ojn9Zvp^JZInv"
    )
)
"""RAMP as a lossless JPEG (SOF3), by imagecodecs 2026.3.6."""


def grey(levels: NDArray[Any]) -> Pixels:
    return np.repeat(np.rint(levels).astype(np.uint8)[:, :, None], 3, axis=2)


def over(colour: tuple[int, int, int], picture: Pixels = RAMP) -> Pixels:
    share = ALPHA[:, :, None] / 255
    return np.rint(picture * share + np.array(colour) * (1 - share)).astype(np.uint8)


def by_opencv(ending: str, pixels: NDArray[Any]) -> bytes:
    return cv2.imencode(ending, pixels)[1].tobytes()


def with_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return png[:33] + chunk + png[33:]


def with_xmp(orientation: int) -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", f'<x tiff:Orientation="{orientation}"/>')
    return encode(RAMP, pnginfo=text)


def tiff(values: NDArray[Any], tags: dict[int, int], planes: int = 1) -> bytes:
    """An uncompressed TIFF of uint16 values `[H, W]`, or `[3, H, W]` in planes; other tags as given."""
    height, width = values.shape[-2:]
    body, size = values.astype("<u2").tobytes(), height * width * 2
    entries = {
        256: [width],
        257: [height],
        258: [16] * planes,
        259: [1],
        262: [1],
        277: [planes],
        278: [height],
    }
    entries |= {273: [8 + size * plane for plane in range(planes)], 279: [size] * planes}
    entries |= {tag: [value] for tag, value in tags.items()}
    end = 8 + len(body)
    table, more = struct.pack("<H", len(entries)), b""
    after = end + 2 + 12 * len(entries) + 4
    for tag, found in sorted(entries.items()):
        packed = struct.pack(f"<{len(found)}I", *found)
        place = packed if len(found) == 1 else struct.pack("<I", after + len(more))
        more += packed if len(found) > 1 else b""
        table += struct.pack("<HHI", tag, 4, len(found)) + place
    return struct.pack("<2sHI", b"II", 42, end) + body + table + bytes(4) + more


RGBA = np.dstack([RAMP, ALPHA])
STILL = Image.fromarray(RAMP)
FRAMES = [Image.new("RGB", (48, 32), colour) for colour in ("red", "blue")]
TURNED = Image.Exif()
TURNED[0x0112] = 6
FLOATS = (DEEP / 65535).astype(np.float32)
KINDS: dict[str, tuple[bytes, Pixels]] = {
    "lossless.jpg": (LOSSLESS, RAMP),
    "deep.png": (by_opencv(".png", DEEP), grey(DEEP / 257)),
    "deep.pgm": (by_opencv(".pgm", DEEP), grey(DEEP / 257)),
    "deep.jp2": (encode(Image.fromarray(DEEP), "JPEG2000", irreversible=False), grey(DEEP / 257)),
    "deep.tif": (encode(Image.fromarray(DEEP), "TIFF"), grey(DEEP / 257)),
    "white-is-zero.tif": (tiff(DEEP, {262: 0}), grey((65535 - DEEP.astype(int)) / 257)),
    "12-bits.png": (by_opencv(".png", DEEP >> 4), grey((DEEP >> 4) / 4095 * 255)),
    "8-bits-in-16.png": (by_opencv(".png", DEEP >> 8), grey(DEEP >> 8)),
    "deep-colour.png": (by_opencv(".png", RAMP[:, :, ::-1].astype(np.uint16) * 257), RAMP),
    "deep-alpha.png": (by_opencv(".png", RGBA[:, :, [2, 1, 0, 3]].astype(np.uint16) * 257), over((255,) * 3)),
    "floats.tif": (encode(Image.fromarray(FLOATS), "TIFF"), grey(FLOATS * 255)),
    "floats-to-4000.tif": (encode(Image.fromarray(FLOATS * 4000), "TIFF"), grey(FLOATS * 4000 / 4095 * 255)),
    "below-zero.tif": (encode(Image.fromarray(FLOATS * 2 - 1), "TIFF"), grey(FLOATS / FLOATS.max() * 255)),
    "integers.tif": (encode(Image.fromarray(DEEP.astype(np.int32)), "TIFF"), grey(DEEP / 257)),
    "masks.tif": (encode(Image.fromarray(DOWN.astype(np.int32) % 3), "TIFF"), grey(DOWN % 3 * 127.5)),
    "turned.tif": (encode(Image.fromarray(store_as(RAMP, 6)), "TIFF", tiffinfo={274: 6}), RAMP),
    "turned.png": (encode(store_as(RGBA, 6), "PNG", 6), over((255,) * 3)),
    "alpha.tif": (encode(Image.fromarray(RGBA), "TIFF"), over((255,) * 3)),
    "alpha.png": (encode(Image.fromarray(RGBA)), over((255,) * 3)),
    "alpha.webp": (encode(Image.fromarray(RGBA), "WEBP", lossless=True, exact=True), over((255,) * 3)),
    "grey-alpha.png": (
        encode(Image.fromarray(RGBA).convert("LA")),
        over((255,) * 3, grey(np.asarray(STILL.convert("L")))),
    ),
    "palette.gif": (
        encode(Image.fromarray((ALPHA > 99).astype(np.uint8)), "GIF", transparency=0),
        grey(np.where(ALPHA > 99, 1, 255)),
    ),
    "animated.png": (encode(STILL, save_all=True, append_images=FRAMES, default_image=True), RAMP),
    "xmp.png": (with_xmp(6), RAMP),
}
"""A file of each kind, and what it shows."""
NAMES = pytest.mark.parametrize("name", KINDS)


def look_at(data: bytes, suffix: str = "") -> ImageInfo:
    return validate_image(data, decoder(), suffix)


@NAMES
def test_every_kind_is_converted_as_numpy_has_it(name: str) -> None:
    data, expected = KINDS[name]
    np.testing.assert_allclose(to_rgb(data).pixels.astype(int), expected, atol=1)


@NAMES
def test_thumbnails_and_closeups_show_the_same(tmp_path: Path, name: str) -> None:
    data, expected = KINDS[name]
    file = tmp_path / name
    file.write_bytes(data)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(make_thumbnail(file, 64)))))
    assert shown.shape == expected.shape
    assert abs(shown.astype(int) - expected).mean() < 6
    closeup = read_closeup(file)
    aim = Image.fromarray(expected).convert("L").resize((32, 32), Image.Resampling.BOX)
    assert closeup is not None and abs(closeup.astype(int) - np.asarray(aim)).max() <= 2


@pytest.fixture(scope="module")
def kinds_pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    root = tmp_path_factory.mktemp("kinds")
    files = {f"a/{name}": data for name, (data, _) in KINDS.items()}
    out = root / "p.arrow"
    options = Options(val=0, test=0, grayscale="keep")
    pack(folder(root / "images", files | {"b/plain.png": encode(noise(48, 32, 3))}), out, options)
    return Pack(out)


@pytest.mark.parametrize("engine", ["threads", "dali"])
def test_both_engines_see_every_kind(kinds_pack: Pack, engine: Any) -> None:
    if engine == "dali" and not has_dali():
        pytest.skip("DALI is not installed")
    augment, ids = Augment(size=32).centre(), kinds_pack.ids("train")
    with Loader(kinds_pack, augment, ids, Resources(engine, "cpu"), epochs=1) as loader:
        found = {}
        for batch in loader:
            for row, image in zip(batch.ids, augment.to_pixels(batch.images.numpy()), strict=True):
                found[kinds_pack.image_path(int(row))] = image
    assert len(found) == len(KINDS) + 1
    for name, (_, expected) in KINDS.items():
        np.testing.assert_allclose(found[f"a/{name}"].astype(int), expected[:, 8:40], atol=1, err_msg=name)


def test_the_scan_measures_what_is_packed(kinds_pack: Pack) -> None:
    rows = {kinds_pack.image_path(row): row for row in range(len(kinds_pack))}
    for name, (data, expected) in KINDS.items():
        look, stored = look_at(data, Path(name).suffix), decode(kinds_pack.encoded(rows[f"a/{name}"]))
        assert abs(look.mean_luma - (expected @ [0.299, 0.587, 0.114]).mean()) < 1, name
        assert look.transparent == ("alpha" in name or name in ("turned.png", "palette.gif")), name
        assert (look.width, look.height, look.problem) == (48, 32, ""), name
        assert abs(stored.astype(int) - expected).max() <= 1 and bool(look.transcode) == (name != "xmp.png")


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_lossless_jpeg_is_decoded_in_full_then_reduced(times: int) -> None:
    encoded = np.frombuffer(LOSSLESS, np.uint8)
    assert np.array_equal(decode(encoded, times, (48, 32)), downsample(RAMP, times))
    assert is_lossless_jpeg(encoded)
    for options in ({}, {"progressive": True}):
        assert not is_lossless_jpeg(np.frombuffer(encode(RAMP, "JPEG", **options), np.uint8))
    for data in (b"", b"\xff\xd8", b"\xff\xd8\xff\xff", LOSSLESS[:20]):
        assert not is_lossless_jpeg(np.frombuffer(data, np.uint8))


@pytest.mark.parametrize(
    ("values", "levels", "said"),
    [
        (np.array([[0, 1.0]]), [0, 255], "values a channel: 0 to 1 became 0 to 255"),
        (np.array([[0, 128.0]]), [0, 128], "values a channel: 0 to 255 became 0 to 255"),
        (np.array([[0, 1.02]]), [0, 255], "values a channel: 0 to 1.02 became 0 to 255"),
        (np.array([[-5, 5, 1e6]]), [0, 0, 255], "values a channel: -5 to 1e+06 became 0 to 255"),
        (np.array([[7, 7]], np.int32), [7, 7], "values a channel: 0 to 255 became 0 to 255"),
        (np.array([[40000, 40010]], np.uint16), [156, 156], "16 bits a channel: 0 to 65535 became 0 to 255"),
        (np.array([[0, 4095]], np.uint16), [0, 255], "16 bits a channel: 0 to 4095 became 0 to 255"),
    ],
)
def test_values_become_levels(values: NDArray[Any], levels: list[int], said: str) -> None:
    found, why = to_levels(values)
    assert (found[0].tolist(), why) == (levels, said)


def test_what_is_no_number_or_lies_in_planes_is_left_out_with_the_reason() -> None:
    nan = FLOATS.copy()
    nan[3, 3] = np.nan
    planes = tiff(np.stack([DEEP, DEEP // 2, DEEP // 3]), {262: 2, 284: 2}, planes=3)
    for data, said in (
        (encode(Image.fromarray(nan), "TIFF"), "its values do not fit 8 bits"),
        (planes, "its 16-bit channels lie apart"),
        (by_opencv(".tiff", FLOATS.astype(np.float64)), "a TIFF of a kind that no decoder here reads"),
    ):
        look = look_at(data)
        assert look.problem == "undecodable" and look.detail.startswith(said)


def heic(brand: bytes = b"heic") -> bytes:
    return b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(999)


FOREIGN: dict[str, tuple[bytes, str]] = {
    "IMG_0.HEIC": (heic(), "heic"),
    "IMG_0.jpg": (heic(b"mif1"), "heic"),
    "c.NEF": (encode(RAMP, "TIFF"), "raw"),
    "c.cr3": (b"\0\0\0\x18ftypcrx " + bytes(99), "raw"),
    "scan": (bytes(128) + b"DICM" + bytes(99), "dicom"),
    "logo.svg": (b'<?xml version="1.0"?>\n<svg xmlns="x"/>', "svg"),
    "1.xml": (b"<annotation/>", "not-an-image"),
    "1.json": (b"{}", "not-an-image"),
    "1.txt": (b"0 0.5 0.5 1 1", "not-an-image"),
    "1.png.txt": (encode(RAMP), ""),
    "c.avif": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif" + bytes(99), ""),
    "c.raw.jpg": (encode(RAMP, "JPEG"), ""),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_are_named(name: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr("greyhound.cache.picture.reads_heic", lambda: False)
    data, kind = FOREIGN[name]
    assert name_foreign(data[:1024], Path(name).suffix) == kind
    look = look_at(data, Path(name).suffix)
    broken = "undecodable" if name == "c.avif" else ""  # not foreign, and zeros behind its first box
    assert look.problem == (kind or broken) and bool(look.detail) == bool(look.problem)


def test_a_large_picture_brings_no_warning_to_a_terminal(monkeypatch: Patch, capsys: Capture) -> None:
    """Pillow warns from half of what it refuses; a warning is an error here."""
    file = io.BytesIO(encode(RAMP))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 48 * 32 - 1)
    with pytest.raises(Image.DecompressionBombWarning):
        open_image(file)
    with pytest.raises(SystemExit, match=r"^0$"):
        run(lambda: open_image(file).close())
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(not reads_heic(), reason="pillow-heif is not installed")
@pytest.mark.parametrize("orientation", [1, 6])
def test_heic_is_read_where_pillow_heif_is(orientation: int) -> None:
    image = Image.fromarray(store_as(RAMP, orientation))
    image.getexif()[0x0112] = orientation  # of which pillow-heif makes a box that turns, as phones write it
    data = encode(image, "HEIF", quality=95)
    look = look_at(data)
    assert (look.format, look.width, look.height, look.problem) == ("HEIF", 48, 32, "")
    assert abs(to_rgb(data).pixels.astype(int) - RAMP).mean() < 6


ORIENTED: dict[str, Callable[[], tuple[bytes, int]]] = {
    "eXIf behind the pixels": lambda: (_late_exif(), 6),
    "XMP of a PNG": lambda: (with_xmp(6), 1),
    "XMP of a JPEG": lambda: (encode(RAMP, "JPEG", xmp=b'<x tiff:Orientation="6"/>'), 1),
    "zTXt": lambda: (_raw_profile(), 1),
}


def _late_exif() -> bytes:
    png = encode(RAMP, "PNG", 6)
    plain = encode(RAMP)
    start = png.index(b"eXIf") - 4
    size = 12 + int.from_bytes(png[start : start + 4], "big")
    return plain[:-12] + png[start : start + size] + plain[-12:]


def _raw_profile() -> bytes:
    block = TURNED.tobytes()
    text = f"\nexif\n{len(block):8d}\n{block.hex()}\n".encode()
    return with_chunk(encode(RAMP), b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))


@pytest.mark.parametrize("name", ORIENTED)
def test_orientation_comes_from_exif_alone(name: str) -> None:
    data, orientation = ORIENTED[name]()
    assert look_at(data).orientation == orientation
    assert to_rgb(data).pixels.shape == ((48, 32, 3) if orientation == 6 else (32, 48, 3))


def test_the_background_is_chosen_and_known_to_the_pack(tmp_path: Path) -> None:
    files = {"a/1.png": encode(Image.fromarray(RGBA)), "b/2.png": encode(noise(48, 32, 3))}
    images, digests = folder(tmp_path / "images", files), set()
    for background, colour in (("#ffffff", (255, 255, 255)), ("#204060", (32, 64, 96))):
        pack(images, tmp_path / "p.arrow", Options(val=0, test=0, background=background))
        opened = Pack(tmp_path / "p.arrow")
        assert abs(decode(opened.encoded(0)).astype(int) - over(colour)).max() <= 1
        assert opened.header.background == opened.summary()["background"] == background
        digests.add(opened.header.digest)
    assert len(digests) == 2
    with pytest.raises(UserError, match="background is 'blurple'; expected a colour, as white or #ffffff"):
        Options(background="blurple")


def test_predictions_lie_on_the_background_of_the_trained_pack(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr("greyhound.eval.scan", scan_here)
    job: Any = SimpleNamespace(images=folder(tmp_path / "images", {"a/1.png": encode(Image.fromarray(RGBA))}))
    run: Any = SimpleNamespace(read=lambda _: {"classes": ["a", "b"], "background": "#204060"})
    with open_images(job, run, "threads") as (opened, _, _):
        assert abs(decode(opened.encoded(0)).astype(int) - over((32, 64, 96))).max() <= 1
    trained: Any = SimpleNamespace(classes=("a", "b"), background="#204060")
    image = ImageFile(tmp_path / "images" / "a" / "1.png", "1.png")
    (info,) = scan_here([image.file], background=trained.background)
    chunk = pack_chunk(trained, [(image, info)], tmp_path / "chunk.arrow")
    assert chunk.pack
    assert abs(decode(Pack(chunk.pack).encoded(0)).astype(int) - over((32, 64, 96))).max() <= 1
