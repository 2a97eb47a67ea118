"""pipelines/tier.py: the same pixels from memory as from the decoder, within the budget, and decoded only once."""

from __future__ import annotations

import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pictures import coded, encode, noise, packed

from greyhound.cache.store import Pack
from greyhound.cache.validate import available
from greyhound.pipelines import tier as module
from greyhound.pipelines.augment import Augment, halvings
from greyhound.pipelines.loader import Loader, Resources
from greyhound.pipelines.request import BadImageError
from greyhound.pipelines.tier import Tier, parse_bytes, plan

ENGINES = [
    "threads",
    pytest.param("dali", marks=pytest.mark.skipif(not available(), reason="DALI is not installed")),
]
both = pytest.mark.parametrize("engine", ENGINES)
AUGMENT = Augment(size=32)
SIZES = [(40, 36), (36, 48), (90, 70), (300, 270), (40, 40), (64, 64)]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """Six JPEGs, of which one is halved once, one three times, and one exactly."""
    files = [encode(noise(width, height, seed), "JPEG") for seed, (width, height) in enumerate(SIZES)]
    return packed(tmp_path_factory.mktemp("tier"), {"a": files[:3], "b": files[3:]})


def everything(pack: Pack) -> NDArray[np.int64]:
    return np.arange(len(pack))


def nbytes(pack: Pack) -> list[int]:
    """Of every image as the warp takes it, by the decoder itself."""
    halved = halvings(AUGMENT, pack.sizes)
    tier = Tier(pack, np.zeros(len(pack), dtype=bool), halved)
    return [tier.pixels(row).nbytes for row in range(len(pack))]


def images(
    pack: Pack, engine: Any, tier: Any, budget: str = "", epochs: int = 2, threads: int = 2
) -> NDArray[np.float32]:
    resources = Resources(engine, "cpu", threads, tier=tier, budget=budget)
    with Loader(pack, AUGMENT, everything(pack), resources, batch_size=4, epochs=epochs) as loader:
        return np.concatenate([batch.images.numpy() for batch in loader])


def test_threads_make_the_same_bits_from_every_tier(pack: Pack) -> None:
    expected = images(pack, "threads", "encoded")
    assert np.array_equal(images(pack, "threads", "decoded"), expected)
    assert np.array_equal(images(pack, "threads", "auto", str(sum(nbytes(pack)[:3]))), expected)


@pytest.mark.skipif(not available(), reason="DALI is not installed")
@pytest.mark.parametrize("budget", ["", "half"])
def test_dali_makes_the_same_pixels_from_every_tier(pack: Pack, budget: str) -> None:
    """From memory DALI sees what the threads engine decoded; on noise, halved, the two differ by about a level."""
    from_memory = images(pack, "dali", "decoded")
    assert np.abs(from_memory - images(pack, "threads", "decoded")).mean() * 255 < 0.5
    assert np.abs(from_memory - images(pack, "dali", "encoded")).mean() * 255 < 1.5


@pytest.mark.skipif(not available(), reason="DALI is not installed")
def test_dali_mixes_both_tiers_in_one_batch(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept and unkept rows in each batch of four: the kept ones are the tier's, the others the decoder's."""
    kept = np.array([True, False, True, False, False, True])
    real = module.plan

    def some(*arguments: Any) -> Any:
        found = real(*arguments)
        return module.Plan(kept, found.nbytes, found.why)

    whole = {name: images(pack, "dali", name) for name in ("decoded", "encoded")}
    monkeypatch.setattr("greyhound.pipelines.loader.plan", some)
    mixed = images(pack, "dali", "decoded")
    both_epochs = np.tile(kept, 2)
    assert np.array_equal(mixed[both_epochs], whole["decoded"][both_epochs])
    assert np.array_equal(mixed[~both_epochs], whole["encoded"][~both_epochs])


@both
def test_each_image_that_is_kept_is_decoded_once(
    pack: Pack, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Any = vars(module)["decode"]
    calls = Counter[int]()

    def counted(encoded: Any, *more: Any) -> Any:
        calls[len(encoded)] += 1
        return real(encoded, *more)

    monkeypatch.setattr(module, "decode", counted)
    images(pack, engine, "decoded", epochs=3, threads=1)  # two threads may ask for one image at one moment
    assert sorted(calls.values()) == [1] * 6
    calls.clear()
    images(pack, engine, "encoded", epochs=3, threads=1)
    assert sorted(calls.values()) == ([3] * 6 if engine == "threads" else [])


def test_the_plan_counts_the_bytes_that_the_decoder_returns(pack: Pack) -> None:
    halved = halvings(AUGMENT, pack.sizes)
    assert halved.tolist() == [0, 0, 1, 3, 0, 1]
    found = plan("decoded", pack, everything(pack), halved, None, None)
    assert found.nbytes == sum(nbytes(pack))
    assert found.kept.all()
    assert found.why.startswith("tier: decoded, 6 of 6 images in 0.0")


@pytest.mark.parametrize("fitting", [0, 1, 4])
def test_auto_keeps_what_fits_the_budget(pack: Pack, fitting: int) -> None:
    halved = halvings(AUGMENT, pack.sizes)
    budget = sum(nbytes(pack)[: fitting + 1]) - 1
    found = plan("auto", pack, everything(pack), halved, budget, None)
    assert found.kept.tolist() == [True] * fitting + [False] * (6 - fitting)
    assert found.nbytes <= budget
    assert f"{fitting} of 6 images" in found.why
    assert found.why.startswith("tier: decoded" if fitting else "tier: encoded")


def test_only_the_streams_own_rows_are_kept(pack: Pack) -> None:
    ids = np.array([4, 1, 1])
    found = plan("decoded", pack, ids, halvings(AUGMENT, pack.sizes[ids]), None, None)
    assert found.kept.tolist() == [False, True, False, False, True, False]
    assert found.nbytes == nbytes(pack)[1] + nbytes(pack)[4]


@pytest.mark.parametrize(
    ("name", "passes", "why"), [("encoded", None, "as asked"), ("auto", 1, "each image is used once")]
)
def test_encoded_says_why(pack: Pack, name: Any, passes: int | None, why: str) -> None:
    found = plan(name, pack, everything(pack), halvings(AUGMENT, pack.sizes), None, passes)
    assert not found.kept.any()
    assert found.why == f"tier: encoded, {why}"


def test_what_does_not_fit_is_said_with_its_size(pack: Pack) -> None:
    expected = (
        r"decoded, 6 images take 0\.0\d MB, and the budget is 0\.10 kB; raise --budget, or choose --tier auto"
    )
    with pytest.raises(ValueError, match=expected):
        plan("decoded", pack, everything(pack), halvings(AUGMENT, pack.sizes), 100, None)


def test_half_of_the_free_memory_is_the_budget(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    total = sum(nbytes(pack))
    for free, kept in ((2 * total, 6), (2 * total - 2, 5)):
        monkeypatch.setattr(module, "available_memory", lambda free=free: free)
        found = plan("auto", pack, everything(pack), halvings(AUGMENT, pack.sizes), None, None)
        assert found.kept.sum() == kept


@both
def test_an_image_that_does_not_decode_is_named(tmp_path: Path, engine: Any) -> None:
    files = [encode(coded(40, 40, row)) for row in range(4)]
    pack = packed(tmp_path, {"a": files[:2], "b": files[2:]})
    place = pack.path.read_bytes().index(files[1])
    with pack.path.open("r+b") as file:
        file.seek(place)
        file.write(b"\0" * len(files[1]))
    rotten = Pack(pack.path)
    rotten.crc32s = np.array([zlib.crc32(rotten._raw(row).data) for row in range(4)], dtype=np.uint32)
    with pytest.raises(BadImageError, match=r"row 1 \('a/0001.img'\).*greyhound verify"):
        images(rotten, engine, "decoded")


@pytest.mark.parametrize(
    ("text", "value"), [("4GB", 4 * 10**9), ("512 MiB", 2**29), ("1000", 1000), ("1.5kb", 1500)]
)
def test_sizes_are_read(text: str, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["much", "4 parsecs", "-1GB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="expected a size such as 4GB"):
        Resources(budget=text)
