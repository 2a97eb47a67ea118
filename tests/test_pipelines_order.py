"""The order of an epoch, its batches and a rank's share, with the numbers written out."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from greyhound.pipelines.augment import Augment, draw, epoch_order, even_bounds, full_bounds, rank_share


def test_an_epoch_is_a_permutation_whatever_the_order_and_the_number_of_the_ids_given() -> None:
    ids = np.array([3, 900, 17, 4_000_000_000, 0])
    for epoch in range(20):
        assert sorted(epoch_order(ids, 0, epoch).tolist()) == [0, 3, 17, 900, 4_000_000_000]
    assert epoch_order(ids, 0, 0).dtype == np.int64
    assert epoch_order(ids[:1], 0, 0).tolist() == [3]
    assert epoch_order(ids[:0], 0, 0).tolist() == []
    ids = np.arange(50)
    assert epoch_order(ids[::-1], 1, 2).tolist() == epoch_order(ids, 1, 2).tolist()
    assert ids.tolist() == list(range(50))  # and they are left as they were
    after = epoch_order(np.arange(200), 5, 3)
    assert after[after % 2 == 0].tolist() == epoch_order(np.arange(0, 200, 2), 5, 3).tolist()


def test_equal_keys_fall_back_to_the_order_of_the_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "greyhound.pipelines.augment.philox", lambda counter, _: np.zeros((len(counter[0]), 4))
    )
    assert epoch_order(np.array([5, 2, 9, 1]), 0, 0).tolist() == [1, 2, 5, 9]


def test_every_seed_and_epoch_shuffles_anew_and_each_place_gets_each_image_about_equally_often() -> None:
    orders = [epoch_order(np.arange(64), seed, epoch) for seed in range(5) for epoch in range(5)]
    assert len({tuple(order.tolist()) for order in orders}) == 25  # (0, 1) and (1, 0) among them
    places = np.stack([epoch_order(np.arange(8), 0, epoch) for epoch in range(1000)]).T
    counts = np.stack([np.bincount(place, minlength=8) for place in places])
    assert counts.min() > 80  # 125 expected, standard deviation 10.5
    assert counts.max() < 170


def test_the_order_is_no_part_of_the_draws() -> None:
    """The words that sort an id are not the words that augment it."""
    ids = np.arange(1000)
    places = np.argsort(epoch_order(ids, 0, 0))
    geometry, _ = draw(Augment(), 0, 0, ids, np.full((1000, 2), 256, dtype=np.int32))
    assert abs(np.corrcoef(places, geometry[:, 0, 0])[0, 1]) < 0.1


EVEN = {(10, 4): [0, 3, 6, 10], (8, 4): [0, 4, 8], (9, 8): [0, 4, 9], (5, 8): [0, 5], (1, 8): [0, 1]}
EVEN |= {(3, 1): [0, 1, 2, 3], (0, 8): []}
FULL = {(10, 4): [0, 4, 8, 10], (8, 4): [0, 4, 8], (9, 8): [0, 8, 9], (1, 8): [0, 1], (0, 8): []}


@pytest.mark.parametrize(("cut", "expected"), [(even_bounds, EVEN), (full_bounds, FULL)])
def test_bounds(cut: Any, expected: dict[tuple[int, int], list[int]]) -> None:
    """Plain integers: they go into a checkpoint as JSON."""
    for (count, batch_size), bounds in expected.items():
        found = cut(count, batch_size)
        assert found == list(itertools.pairwise(bounds))
        assert {type(bound) for pair in found for bound in pair} <= {int}


@pytest.mark.parametrize("cut", [even_bounds, full_bounds])
def test_cutting_again_from_a_bound_leaves_the_remaining_bounds(cut: Any) -> None:
    for count, batch_size in itertools.product(range(1, 70), (1, 2, 3, 5, 8, 13, 32, 64, 200)):
        bounds = cut(count, batch_size, 0)
        for place, (start, _) in enumerate(bounds):
            assert cut(count, batch_size, start) == bounds[place:]
        assert cut(count, batch_size, count) == []


def test_even_bounds_are_the_fewest_and_nearly_equal() -> None:
    for count, batch_size in itertools.product(range(1, 130), range(1, 40)):
        bounds = even_bounds(count, batch_size)
        sizes = [stop - start for start, stop in bounds]
        assert len(bounds) == -(-count // batch_size)
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1
        assert (bounds[0][0], bounds[-1][1]) == (0, count)
        assert all(one[1] == other[0] for one, other in itertools.pairwise(bounds))


def test_shares_partition_a_batch() -> None:
    batch = np.array([5, 3, 8, 1, 9, 2, 7])
    assert rank_share(batch, 0, 1).tolist() == [5, 3, 8, 1, 9, 2, 7]
    assert [rank_share(batch, rank, 3).tolist() for rank in range(3)] == [[5, 1, 7], [3, 9], [8, 2]]
    assert rank_share(batch[:1], 2, 3).tolist() == []
