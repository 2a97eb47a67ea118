"""The stream of batches: every image once an epoch, resumable, never overwritten, and clear when it cannot go on."""

from __future__ import annotations

import importlib.util
import itertools
import random
import re
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from engines import believed, both, engine_threads, rotten_pack
from pictures import identities
from runs import same_batch

from greyhound.cache import machine
from greyhound.cache.store import Pack, PackError
from greyhound.pipelines import engine as engines
from greyhound.pipelines import loader, threads
from greyhound.pipelines.augment import Augment
from greyhound.pipelines.decoded import ImageCache
from greyhound.pipelines.engine import BadImageError, DeviceError, EngineConfig, EngineName, Resources
from greyhound.pipelines.loader import Batch, Clock, Loader, Position, choose
from greyhound.pipelines.threads import BufferPool

SMALL = Augment(size=32)


def open_loader(pack: Pack, engine: Any, augment: Augment = SMALL, count: int = 20, **options: Any) -> Loader:
    resources = Resources(engine, "cpu", options.pop("threads", None), options.pop("prefetch", 2))
    return Loader(pack, augment, np.arange(count), resources, **{"batch_size": 6} | options)


def taken(pack: Pack, engine: Any, batches: int | None = None, **options: Any) -> list[Batch]:
    """The first batches of a loader, or all."""
    with open_loader(pack, engine, **options) as stream:
        return list(itertools.islice(stream, batches))


def sizes(batches: list[Batch]) -> list[int]:
    return [len(batch.ids) for batch in batches]


def rows(batches: list[Batch]) -> list[int]:
    return torch.cat([batch.ids for batch in batches]).tolist()


@both
def test_the_contract_of_a_batch_and_of_views(coded_pack: Pack, engine: str) -> None:
    (batch,) = taken(coded_pack, engine, 1)
    assert batch.images.shape == (6, 3, 32, 32)
    assert batch.images.dtype == torch.float32
    assert batch.images.device.type == "cpu"
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.images.stride() == (3 * 32 * 32, 1, 3 * 32, 3)
    assert batch.labels.dtype == batch.ids.dtype == torch.int64
    assert batch.ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert batch.labels.tolist() == [0] * 6
    (batch,) = taken(coded_pack, engine, 1, views=4)
    assert batch.images.shape == (6, 4, 3, 32, 32)
    assert batch.images.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(batch.images[:, 0], batch.images[:, 1])
    assert batch.labels.shape == batch.ids.shape == (6,)


@both
def test_weights_go_with_their_images_and_views(coded_pack: Pack, engine: str) -> None:
    weights = np.arange(len(coded_pack), dtype=np.float32) / 4
    for views in (1, 3):
        for batch in taken(coded_pack, engine, 8, views=views, shuffle=True, seed=5, weights=weights):
            expected = batch.ids.float() / 4
            assert batch.weights is not None and batch.weights.equal(expected)
            images, labels, flat = batch.examples()
            assert flat.tolist() == expected.repeat_interleave(views).tolist()
            assert len(images) == len(labels) == len(flat) and len(batch.flat()) == 2
    (batch,) = taken(coded_pack, engine, 1)
    assert batch.weights is None and len(batch.examples()) == 2


@both
@pytest.mark.parametrize(
    ("batch_size", "epochs", "expected"),
    [(1, 1, [1] * 20), (6, 1, [6, 6, 6, 2]), (50, 2, [20, 20]), (6, 3, [6, 6, 6, 2] * 3)],
)
def test_evaluation_sees_every_image_once_an_epoch_in_order_and_pads_nothing(
    coded_pack: Pack, engine: str, batch_size: int, epochs: int, expected: list[int]
) -> None:
    with open_loader(coded_pack, engine, batch_size=batch_size, epochs=epochs) as stream:
        assert len(stream) == len(expected) // epochs
        batches = list(stream)
        assert list(stream) == list(stream.epoch()) == []
    assert sizes(batches) == expected
    assert rows(batches) == list(range(20)) * epochs


@both
def test_training_is_endless_and_sees_every_image_once_an_epoch(coded_pack: Pack, engine: str) -> None:
    with open_loader(coded_pack, engine, shuffle=True) as stream:
        assert len(stream) == 4
        batches = list(itertools.islice(stream, 4 * 5))
    assert sizes(batches) == [5] * 20
    epochs = [tuple(rows(batches[first : first + 4])) for first in range(0, 20, 4)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len(set(epochs)) == 5
    with open_loader(coded_pack, engine, shuffle=True) as stream:
        by_epoch = []
        for number in range(3):
            assert stream.position == Position(number)
            by_epoch.append(list(stream.epoch()))
    assert [len(epoch) for epoch in by_epoch] == [4, 4, 4]
    assert all(map(same_batch, batches[:12], itertools.chain(*by_epoch)))


def test_every_epoch_augments_anew_and_seeds_differ_but_not_batch_sizes(coded_pack: Pack) -> None:
    first, second = taken(coded_pack, "threads", 2, batch_size=20)
    assert first.ids.tolist() == second.ids.tolist()
    assert not any(torch.equal(one, other) for one, other in zip(first.images, second.images, strict=True))
    options: dict[str, Any] = {"engine": "threads", "shuffle": True}
    orders = [rows(taken(coded_pack, batches=1, seed=seed, **options)) for seed in (0, 1)]
    assert orders[0] != orders[1]
    orders = [rows(taken(coded_pack, batch_size=size, epochs=2, **options)) for size in (1, 7, 20)]
    assert orders[0] == orders[1] == orders[2]


@both
@pytest.mark.parametrize("shuffle", [True, False])
def test_resuming_anywhere_gives_the_rest_of_the_stream(coded_pack: Pack, engine: str, shuffle: bool) -> None:
    options: dict[str, Any] = {"shuffle": shuffle, "seed": 7, "batch_size": 8}
    with open_loader(coded_pack, engine, **options) as stream:
        whole, positions = [], [stream.position]
        for batch in itertools.islice(stream, 9):
            whole.append(batch)
            positions.append(stream.position)
    for done, position in enumerate(positions[:-1]):
        rest = taken(coded_pack, engine, 9 - done, start=position, **options)
        assert len(rest) == 9 - done
        assert all(map(same_batch, whole[done:], rest))


def test_the_position_is_where_the_consumer_stands_and_epoch_closes_the_epoch(coded_pack: Pack) -> None:
    with open_loader(coded_pack, "threads", prefetch=3) as stream:
        assert stream.position == Position(0, 0)
        found = [stream.position for _ in itertools.islice(stream, 5)]
    assert found == [Position(0, 6), Position(0, 12), Position(0, 18), Position(0, 20), Position(1, 6)]
    with open_loader(coded_pack, "threads") as stream:
        found = [stream.position for _ in stream.epoch()]
        assert found == [Position(0, 6), Position(0, 12), Position(0, 18), Position(1, 0)]
        half = stream.epoch()
        next(half)
        assert sizes(list(stream.epoch())) == [6, 6, 2]  # the rest of the epoch that was begun


def test_one_image_as_one_epoch_saw_it(coded_pack: Pack) -> None:
    with open_loader(coded_pack, "threads", shuffle=True, start=Position(37), seed=3) as stream:
        batch = next(iter(stream))
        spec = stream.spec(37, batch.ids.numpy()[2:3])
        cache = ImageCache(coded_pack, np.zeros(20, dtype=bool), np.zeros((20, 2), dtype=np.int32))
        engine = threads.stream(coded_pack, iter([spec]), EngineConfig(32, 0, 1, 1, 1, 1, "cpu", cache))
        ((_, images),) = engine
    assert torch.equal(images[0, 0].permute(2, 0, 1), batch.images[2])


@both
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_ranks_together_are_the_epoch(coded_pack: Pack, engine: str, shuffle: bool) -> None:
    """Every rank takes the same number of steps, if need be without an image, or they would wait for each other."""
    options: dict[str, Any] = {"shuffle": shuffle, "epochs": 2, "batch_size": 7}
    whole, shares = taken(coded_pack, engine, **options), []
    for rank in range(3):
        with open_loader(coded_pack, engine, rank=rank, world_size=3, **options) as stream:
            shares.append(list(stream))
            assert stream.position == Position(1, 20)
    for step, batch in enumerate(whole):
        for rank in range(3):
            assert shares[rank][step].ids.tolist() == batch.ids.tolist()[rank::3]
            assert torch.equal(shares[rank][step].images, batch.images[rank::3])
    batches = taken(coded_pack, engine, batch_size=19, rank=1, world_size=2, epochs=2)
    assert sizes(batches) == [9, 0, 9, 0]
    assert batches[1].images.shape == (0, 3, 32, 32)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("batch_size", "world_size"), [(4, 1), (7, 1), (7, 2), (1, 2), (100, 3)])
def test_batch_sizes_are_known(coded_pack: Pack, shuffle: bool, batch_size: int, world_size: int) -> None:
    options: dict[str, Any] = {"batch_size": batch_size, "shuffle": shuffle, "world_size": world_size}
    for rank in range(world_size):
        with open_loader(coded_pack, "auto", Augment(size=8), 19, rank=rank, epochs=1, **options) as loader:
            assert loader.batch_sizes() == sorted(set(sizes(list(loader))) - {0})


@both
def test_batches_that_are_held_are_never_overwritten(coded_pack: Pack, engine: str) -> None:
    """300 batches, each held for a random time, some as views: as they were when fresh, and blue said which images."""
    dice, held = random.Random(0), list[tuple[torch.Tensor, torch.Tensor]]()
    options: dict[str, Any] = {
        "augment": Augment(size=16).centre(),
        "shuffle": True,
        "batch_size": 3,
        "prefetch": 4,
    }
    with open_loader(coded_pack, engine, **options) as stream:
        for batch in itertools.islice(stream, 300):
            assert identities(batch.images.permute(0, 2, 3, 1).numpy() * 255).tolist() == batch.ids.tolist()
            images = batch.images[1:3, 2] if dice.randrange(2) else batch.images
            held.append((images, images.clone()))
            dice.shuffle(held)
            assert all(torch.equal(*pair) for pair in held[dice.randrange(len(held)) :])
            del held[dice.randrange(60) :]


def test_the_pool_reuses_what_nobody_reads(coded_pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = BufferPool((4, 2))
    one, other = pool.get(), pool.get()
    assert pool.allocated == 2
    tensor = pool.wrap(one, 3)
    assert tensor.shape == (3, 2)
    view = tensor[1:].T
    del tensor
    assert pool.get() is not one
    del view
    assert pool.get() is one
    assert pool.allocated == 3
    assert other is not one
    pools: list[BufferPool] = []

    def watched(*given: Any) -> BufferPool:
        pools.append(BufferPool(*given))
        return pools[-1]

    monkeypatch.setattr(threads, "BufferPool", watched)
    with open_loader(coded_pack, "threads", shuffle=True, prefetch=3) as stream:
        assert all(len(batch.ids) == 5 for batch in itertools.islice(stream, 50))
    assert len(pools) == 1
    assert 4 <= pools[0].allocated <= 5  # prefetch + 2


def running() -> int:
    """Threads of this process, those of libraries too where the system says."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else threading.active_count()


@both
def test_closing_early_leaves_no_threads_behind(coded_pack: Pack, engine: str) -> None:
    for _ in range(2):  # what a library starts once and for all is there after the first time
        before = running()
        stream = open_loader(coded_pack, engine, threads=3, prefetch=3)
        batch = next(iter(stream))
        assert running() > before
        stream.close()
        stream.close()  # twice does no harm
    deadline = time.monotonic() + 5
    while running() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert running() <= before
    assert engine_threads() == []
    assert batch.images.isfinite().all()  # what was handed out stays valid


def test_a_loader_makes_the_pack_resident_has_threads_once_it_is_read_and_an_error_in_the_loop_ends_them(
    coded_pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Pack] = []
    monkeypatch.setattr(Pack, "make_resident", lambda self, asked: calls.append(self))
    with pytest.raises(KeyError), open_loader(coded_pack, "threads") as stream:
        assert calls == [coded_pack]
        assert engine_threads() == []
        for _ in stream:
            raise KeyError
    assert engine_threads() == []


@pytest.mark.parametrize(
    ("engine", "device", "cuda", "installed", "chosen"),
    [
        ("auto", "auto", False, True, ("threads", "cpu")),
        ("auto", "auto", False, False, ("threads", "cpu")),
        ("auto", "auto", True, True, ("dali", "gpu")),
        ("auto", "auto", True, False, ("threads", "gpu")),
        ("auto", "cpu", True, True, ("threads", "cpu")),
        ("auto", "gpu", True, True, ("dali", "gpu")),
        ("dali", "auto", False, True, ("dali", "cpu")),
        ("dali", "auto", True, True, ("dali", "gpu")),
        ("dali", "cpu", True, True, ("dali", "cpu")),
        ("threads", "auto", False, False, ("threads", "cpu")),
        ("threads", "auto", True, True, ("threads", "gpu")),
        ("threads", "gpu", True, False, ("threads", "gpu")),
    ],
)
def test_choose(
    monkeypatch: pytest.MonkeyPatch, engine: Any, device: Any, cuda: bool, installed: bool, chosen: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(loader, "has_dali", lambda: installed)
    assert choose(engine, device) == chosen


def test_a_gpu_or_a_dali_that_is_not_there(coded_pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    engines: tuple[EngineName, ...] = ("auto", "threads", "dali")
    for engine in engines:
        with pytest.raises(DeviceError) as refusal:
            Loader(coded_pack, SMALL, np.arange(20), Resources(engine, "gpu"))
        assert str(refusal.value) == "device gpu: torch finds no CUDA GPU here; use --device cpu, or auto"
    monkeypatch.setattr(loader, "has_dali", lambda: False)
    says = "DALI is not installed; pip install nvidia-dali-cuda120, or use --engine threads"
    with pytest.raises(DeviceError, match=says):
        open_loader(coded_pack, "dali")
    with open_loader(coded_pack, "auto") as stream:
        assert stream.engine == "threads"
    for spec in (mock.Mock(side_effect=ModuleNotFoundError("No module named 'nvidia'")), lambda _: None):
        monkeypatch.setattr(importlib.util, "find_spec", spec)
        assert machine.has_dali() is False, "it is looked for without importing it"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "loader: batch_size is 0; expected at least 1"),
        ({"views": 0}, "loader: views is 0; expected at least 1"),
        ({"prefetch": 0}, "prefetch is 0; expected at least 1"),
        ({"threads": -2}, "threads is -2; expected at least 1"),
        ({"count": 0}, "loader: images is 0; expected at least 1"),
        ({"world_size": 0}, "loader: world_size is 0; expected at least 1"),
        ({"rank": 2, "world_size": 2}, "loader: rank is 2; expected 0 to 1"),
        ({"count": 21}, "loader: ids go from 0 to 20; the pack has rows 0 to 19"),
    ],
)
def test_impossible_numbers_are_refused(coded_pack: Pack, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        open_loader(coded_pack, "threads", **options)
    assert str(refusal.value) == message


@both
def test_an_image_that_went_bad_is_named_and_elsewhere_does_not_matter(tmp_path: Path, engine: Any) -> None:
    """Also where its bytes are those that were packed: by another decoder, say, than the one that examined it."""
    rotten = rotten_pack(tmp_path)
    assert rotten.corrupt() == [2]
    with pytest.raises(PackError) as error:
        taken(rotten, engine, 9, count=6, batch_size=2)
    assert "row 2 ('a/0002.img') has not the bytes that were packed" in str(error.value)
    assert engine_threads() == []
    with Loader(rotten, SMALL, np.array([0, 1, 3, 4, 5]), Resources(engine, "cpu"), epochs=1) as stream:
        assert sizes(list(stream)) == [5]
    with pytest.raises(BadImageError) as bad:
        taken(believed(rotten), engine, 9, count=6, batch_size=2)
    message = str(bad.value)
    assert message.startswith("an image no longer decodes: row 2 ('a/0002.img')")
    assert message.endswith(f"Check the pack: greyhound verify {rotten.path}")
    assert "\n" not in message
    assert engine_threads() == []


@pytest.mark.alone
def test_the_clock_says_how_long_data_took(coded_pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 ms of waiting to 10 ms of work, over what comes after the clock is made."""
    real = engines.WithTimeout.next

    def slow(stream: engines.WithTimeout) -> Any:
        time.sleep(0.02)
        return real(stream)

    monkeypatch.setattr(engines.WithTimeout, "next", slow)
    with open_loader(coded_pack, "threads", batch_size=5) as stream:
        next(iter(stream))
        clock = Clock(stream)
        for _ in itertools.islice(stream, 4):
            time.sleep(0.01)
        assert clock.images == 20
        assert 0.08 <= clock.data_time < clock.seconds()
        assert clock.seconds() >= 0.12
        assert stream.data_time >= clock.data_time + 0.02
        assert re.fullmatch(r"\d+ img/s, \d\d\.\d% waiting for data", clock.note())
