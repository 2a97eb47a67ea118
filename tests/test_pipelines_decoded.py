"""pipelines/decoded.py: from memory the same pixels as from the decoder, as many as fit, decoded only once."""

from __future__ import annotations

import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import needs_dali
from numpy.typing import NDArray
from pictures import coded, encode, noise, packed

from greyhound.cache.machine import has_dali
from greyhound.cache.store import Pack
from greyhound.pipelines import decoded as module
from greyhound.pipelines import engine
from greyhound.pipelines.augment import Augment, log2_reduction
from greyhound.pipelines.decoded import ImageCache, plan
from greyhound.pipelines.engine import BadImageError, Resources, parse_bytes
from greyhound.pipelines.loader import Loader

AUGMENT = Augment(size=32)
SIZES = [(40, 36), (36, 48), (90, 70), (300, 270), (40, 40), (64, 64)]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """Six JPEGs, of which one is halved once, one three times, and one exactly."""
    files = [encode(noise(width, height, seed), "JPEG") for seed, (width, height) in enumerate(SIZES)]
    return packed(tmp_path_factory.mktemp("cache"), {"a": files[:3], "b": files[3:]})


def everything(pack: Pack) -> NDArray[np.int64]:
    return np.arange(len(pack))


def reductions(pack: Pack) -> NDArray[np.int32]:
    return log2_reduction(AUGMENT, pack.sizes)


def nbytes(pack: Pack) -> list[int]:
    """Of every image as the warp takes it, by the decoder itself."""
    cache = ImageCache(pack, np.zeros(len(pack), dtype=bool), reductions(pack))
    return [cache.pixels(row).nbytes for row in range(len(pack))]


def images(
    pack: Pack, cache: Any, cache_bytes: str = "", epochs: int = 2, threads: int = 2, kind: Any = "threads"
) -> NDArray[np.float32]:
    resources = Resources(kind, "cpu", threads, image_cache=cache, cache_bytes=cache_bytes)
    with Loader(pack, AUGMENT, everything(pack), resources, batch_size=4, epochs=epochs) as loader:
        return np.concatenate([batch.images.numpy() for batch in loader])


def test_the_bits_are_the_same_with_every_cache(pack: Pack) -> None:
    expected = images(pack, "encoded")
    assert np.array_equal(images(pack, "decoded"), expected)
    assert np.array_equal(images(pack, "auto", str(sum(nbytes(pack)[:3]))), expected)


@needs_dali
def test_dali_keeps_no_pixels_and_says_why(pack: Pack) -> None:
    resources = Resources("dali", "cpu", image_cache="decoded", cache_bytes="1kB")
    with Loader(pack, AUGMENT, everything(pack), resources) as loader:
        assert not loader.plan.kept.any()
        assert loader.plan.why == "image cache: encoded, engine dali decodes each image anew"


def test_each_image_that_is_kept_is_decoded_once(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = vars(module)["decode"]
    calls = Counter[int]()

    def counted(encoded: Any, *more: Any) -> Any:
        calls[len(encoded)] += 1
        return real(encoded, *more)

    monkeypatch.setattr(module, "decode", counted)
    images(pack, "decoded", epochs=3, threads=1)  # two threads may ask for one image at one moment
    assert sorted(calls.values()) == [1] * 6
    calls.clear()
    images(pack, "encoded", epochs=3, threads=1)
    assert sorted(calls.values()) == [3] * 6
    calls.clear()
    if has_dali():
        images(pack, "encoded", epochs=3, threads=1, kind="dali")
        assert not calls


def test_the_plan_counts_the_bytes_that_the_decoder_returns(pack: Pack) -> None:
    assert reductions(pack).tolist() == [0, 0, 1, 3, 0, 1]
    found = plan("decoded", pack, everything(pack), reductions(pack), None, None)
    assert found.nbytes == sum(nbytes(pack))
    assert found.kept.all()
    assert found.why.startswith("image cache: decoded, 6 of 6 images in ")


@pytest.mark.parametrize("fitting", [0, 1, 4])
def test_auto_keeps_what_fits(pack: Pack, fitting: int) -> None:
    free = sum(nbytes(pack)[: fitting + 1]) - 1
    found = plan("auto", pack, everything(pack), reductions(pack), free, None)
    assert found.kept.tolist() == [True] * fitting + [False] * (6 - fitting)
    assert found.nbytes <= free
    assert f"{fitting} of 6 images" in found.why
    assert found.why.startswith("image cache: decoded" if fitting else "image cache: encoded")


def test_only_the_streams_own_rows_are_kept(pack: Pack) -> None:
    ids = np.array([4, 1, 1])
    found = plan("decoded", pack, ids, log2_reduction(AUGMENT, pack.sizes[ids]), None, None)
    assert found.kept.tolist() == [False, True, False, False, True, False]
    assert found.nbytes == nbytes(pack)[1] + nbytes(pack)[4]


@pytest.mark.parametrize(
    ("name", "passes", "why"), [("encoded", None, "as asked"), ("auto", 1, "each image is used once")]
)
def test_encoded_says_why(pack: Pack, name: Any, passes: int | None, why: str) -> None:
    found = plan(name, pack, everything(pack), reductions(pack), None, passes)
    assert not found.kept.any()
    assert found.why == f"image cache: encoded, {why}"


def test_what_does_not_fit_is_said_with_its_size(pack: Pack) -> None:
    expected = (
        r"decoded, 6 images take \d\d\.\d kB, and 100 bytes are there; "
        "raise --cache-bytes, or choose --image-cache auto"
    )
    with pytest.raises(ValueError, match=expected):
        plan("decoded", pack, everything(pack), reductions(pack), 100, None)


def test_half_of_the_free_memory_is_used(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    total = sum(nbytes(pack))
    for free, kept in ((2 * total, 6), (2 * total - 2, 5)):
        monkeypatch.setattr(engine, "available_memory", lambda free=free: free)
        found = plan("auto", pack, everything(pack), reductions(pack), None, None)
        assert found.kept.sum() == kept


def test_an_image_that_does_not_decode_is_named(tmp_path: Path) -> None:
    files = [encode(coded(40, 40, row)) for row in range(4)]
    pack = packed(tmp_path, {"a": files[:2], "b": files[2:]})
    place = pack.path.read_bytes().index(files[1])
    with pack.path.open("r+b") as file:
        file.seek(place)
        file.write(b"\0" * len(files[1]))
    rotten = Pack(pack.path)
    rotten.crc32s = np.array([zlib.crc32(rotten._raw(row).data) for row in range(4)], dtype=np.uint32)
    with pytest.raises(BadImageError, match=r"row 1 \('a/0001.img'\).*greyhound verify"):
        images(rotten, "decoded")


def test_sizes_are_read() -> None:
    texts = {"4GB": 4 * 10**9, "512 MiB": 2**29, "1000": 1000, "1.5kb": 1500}
    assert {text: parse_bytes(text) for text in texts} == texts
    for text in ("much", "4 parsecs", "-1GB"):
        with pytest.raises(ValueError, match="expected a size such as 4GB"):
            Resources(cache_bytes=text)
