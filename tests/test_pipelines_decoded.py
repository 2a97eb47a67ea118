"""pipelines/decoded.py: from memory the same pixels as from the decoder, as many as fit, decoded only once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from engines import believed, needs_dali, rotten_pack
from numpy.typing import NDArray
from pictures import encode, noise, packed

from greyhound.cache.machine import has_dali
from greyhound.cache.store import Pack
from greyhound.pipelines import decoded as module
from greyhound.pipelines import engine
from greyhound.pipelines.augment import Augment, log2_reduction
from greyhound.pipelines.decoded import ImageCache, Plan, plan
from greyhound.pipelines.engine import BadImageError, Resources, parse_bytes
from greyhound.pipelines.loader import Loader

AUGMENT = Augment(size=32)
SIZES = [(40, 36), (36, 48), (90, 70), (300, 270), (40, 40), (64, 64)]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """Six JPEGs, of which one is halved once, one three times, and one exactly."""
    files = [encode(noise(width, height, seed), "JPEG") for seed, (width, height) in enumerate(SIZES)]
    return packed(tmp_path_factory.mktemp("cache"), {"a": files[:3], "b": files[3:]})


def planned(pack: Pack, name: Any, free: int | None, passes: int | None = None, ids: Any = range(6)) -> Plan:
    """What a stream over these rows, default all, would keep."""
    ids = np.array(ids)
    return plan(name, pack, ids, log2_reduction(AUGMENT, pack.sizes[ids]), free, passes)


@pytest.fixture(scope="module")
def nbytes(pack: Pack) -> list[int]:
    """Of every image as the warp takes it, by the decoder itself."""
    cache = ImageCache(pack, np.zeros(len(pack), dtype=bool), log2_reduction(AUGMENT, pack.sizes))
    return [cache.pixels(row).nbytes for row in range(len(pack))]


def images(
    pack: Pack, cache: Any, cache_bytes: str = "", epochs: int = 2, threads: int = 2, kind: Any = "threads"
) -> NDArray[np.float32]:
    resources = Resources(kind, "cpu", threads, image_cache=cache, cache_bytes=cache_bytes)
    with Loader(pack, AUGMENT, np.arange(len(pack)), resources, batch_size=4, epochs=epochs) as loader:
        return np.concatenate([batch.images.numpy() for batch in loader])


def test_the_bits_are_the_same_with_every_cache(pack: Pack, nbytes: list[int]) -> None:
    expected = images(pack, "encoded")
    assert np.array_equal(images(pack, "decoded"), expected)
    assert np.array_equal(images(pack, "auto", str(sum(nbytes[:3]))), expected)


@needs_dali
def test_dali_keeps_no_pixels_and_says_why(pack: Pack) -> None:
    resources = Resources("dali", "cpu", image_cache="decoded", cache_bytes="1kB")
    with Loader(pack, AUGMENT, np.arange(len(pack)), resources) as loader:
        assert not loader.plan.kept.any()
        assert loader.plan.why == "image cache: encoded, engine dali decodes each image anew"


def test_each_image_that_is_kept_is_decoded_once(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = mock.Mock(side_effect=vars(module)["decode"])
    monkeypatch.setattr(module, "decode", decode)
    every = [("decoded", "threads", [1] * 6), ("encoded", "threads", [3] * 6), ("encoded", "dali", [])]
    for cache, kind, times in every[: 2 + has_dali()]:
        decode.reset_mock()
        images(pack, cache, epochs=3, threads=1, kind=kind)  # two threads may ask for one image at one moment
        assert sorted(Counter(len(call.args[0]) for call in decode.call_args_list).values()) == times


def test_the_plan_counts_the_bytes_that_the_decoder_returns(pack: Pack, nbytes: list[int]) -> None:
    assert log2_reduction(AUGMENT, pack.sizes).tolist() == [[r, r] for r in (0, 0, 1, 3, 0, 1)]
    found = planned(pack, "decoded", None)
    assert found.nbytes == sum(nbytes)
    assert found.kept.all()
    assert found.why.startswith("image cache: decoded, 6 of 6 images in ")
    found = planned(pack, "decoded", None, ids=[4, 1, 1])
    assert found.kept.tolist() == [False, True, False, False, True, False], "only the stream's own rows"
    assert found.nbytes == nbytes[1] + nbytes[4]


@pytest.mark.parametrize("fitting", [0, 1, 4])
def test_auto_keeps_what_fits(pack: Pack, nbytes: list[int], fitting: int) -> None:
    free = sum(nbytes[: fitting + 1]) - 1
    found = planned(pack, "auto", free)
    assert found.kept.tolist() == [True] * fitting + [False] * (6 - fitting)
    assert found.nbytes <= free
    assert f"{fitting} of 6 images" in found.why
    assert found.why.startswith("image cache: decoded" if fitting else "image cache: encoded")


def test_half_of_free_memory_is_used(pack: Pack, nbytes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    for free, kept in ((2 * sum(nbytes), 6), (2 * sum(nbytes) - 2, 5)):
        monkeypatch.setattr(engine, "available_memory", lambda free=free: free)
        assert planned(pack, "auto", None).kept.sum() == kept


def test_encoded_says_why_and_what_does_not_fit_is_said_with_its_size(pack: Pack) -> None:
    for name, passes, why in (("encoded", None, "as asked"), ("auto", 1, "each image is used once")):
        found = planned(pack, name, None, passes)
        assert not found.kept.any()
        assert found.why == f"image cache: encoded, {why}"
    sizes = r"decoded, 6 images take \d\d\.\d kB, and 100 bytes are left; training and validation share "
    with pytest.raises(ValueError, match=sizes + "--cache-bytes: raise it, or choose --image-cache auto"):
        planned(pack, "decoded", 100)


def test_an_image_that_does_not_decode_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match=r"row 2 \('a/0002.img'\).*greyhound verify"):
        images(believed(rotten_pack(tmp_path)), "decoded")


def test_sizes_are_read_and_impossible_ones_and_timeouts_refused() -> None:
    texts = {"4GB": 4 * 10**9, "512 MiB": 2**29, "1000": 1000, "1.5kb": 1500}
    assert {text: parse_bytes(text) for text in texts} == texts
    for text in ("much", "4 parsecs", "-1GB"):
        with pytest.raises(ValueError, match="expected a size such as 4GB"):
            Resources(cache_bytes=text)
    for timeout in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"timeout is .*; expected 0 or more"):
            Resources(timeout=timeout)
