"""The order of an epoch, its batches and a rank's share, with the numbers written out."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from greyhound.pipelines.augment import Augment, draw
from greyhound.pipelines.order import epoch_order, even_bounds, full_bounds, order_at, rank_share


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


SIZES = [*range(1, 40), 99, 100, 101, 1000, 65_537]


@pytest.mark.parametrize("count", SIZES)
def test_any_position_can_be_asked_for_by_itself(count: int) -> None:
    order = order_at(np.arange(count), count, 3, 4)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(count))
    some = np.random.default_rng(count).permutation(count)[:50]
    assert order_at(some, count, 3, 4).tolist() == order[some].tolist()
    ranks = [order_at(rank_share(np.arange(count), rank, 3), count, 3, 4) for rank in range(3)]
    assert sum(map(len, ranks)) == len(set(np.concatenate(ranks).tolist())) == count
    assert order_at(np.arange(0), count, 3, 4).tolist() == []


def test_the_largest_pack_there_may_be_and_its_last_position() -> None:
    count = 2**32 - 1
    ends = order_at(np.array([0, 1, count - 1]), count, 0, 0)
    assert len(set(ends.tolist())) == 3
    assert ends.min() >= 0 and ends.max() < count


def too_uneven(counts: NDArray[Any], freedom: int) -> bool:
    """Whether chi-square against equal frequencies is beyond four standard deviations."""
    expected = counts.sum() / counts.size
    return bool(((counts - expected) ** 2 / expected).sum() > freedom + 4 * (2 * freedom) ** 0.5)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_every_order_of_a_few_images_is_equally_likely(count: int) -> None:
    every = dict.fromkeys(itertools.permutations(range(count)), 0)
    for epoch in range(40 * len(every)):
        every[tuple(order_at(np.arange(count), count, 1, epoch).tolist())] += 1
    assert not too_uneven(np.array([*every.values()]), len(every) - 1)


@pytest.mark.parametrize("count", [7, 9, 30])
def test_every_image_comes_at_every_place_and_after_every_other_equally_often(count: int) -> None:
    """And half of the orders are odd permutations, which a network on an odd square never makes."""
    orders = np.stack([order_at(np.arange(count), count, 0, epoch) for epoch in range(100 * count)])
    places, pairs = np.zeros((count, count)), np.zeros((count, count))
    np.add.at(places, (np.arange(count), orders), 1)
    np.add.at(pairs, (orders[:, :-1], orders[:, 1:]), 1)
    assert not too_uneven(places, (count - 1) ** 2)
    assert not pairs.diagonal().any()
    assert not too_uneven(pairs[~np.eye(count, dtype=bool)], count * (count - 1) - 1)
    odd = np.mean([np.linalg.det(np.eye(count)[order]) < 0 for order in orders])
    assert abs(odd - 0.5) < 4 * 0.5 / len(orders) ** 0.5


@pytest.mark.parametrize("count", [100_003, 1_000_000])
def test_neighbours_in_a_large_order_have_nothing_to_do_with_each_other(count: int) -> None:
    """Of positions beside each other and a side of the network's square apart; of their ids, high bits and low."""
    order, parts = order_at(np.arange(count), count, 3, 7), 32
    side = 2 * math.ceil(math.sqrt(count) / 2)
    for part, apart in itertools.product((order * parts // count, order % parts), (1, 2, side - 1, side)):
        pairs = np.bincount(part[:-apart] * parts + part[apart:], minlength=parts**2)
        assert not too_uneven(pairs, (parts - 1) ** 2)
    another = order_at(np.arange(count), count, 3, 8)
    assert abs(np.corrcoef(order, another)[0, 1]) < 0.02
    assert (order == another).sum() < 10


def test_every_seed_and_epoch_shuffles_anew_and_each_place_gets_each_image_about_equally_often() -> None:
    orders = [epoch_order(np.arange(64), seed, epoch) for seed in range(5) for epoch in range(5)]
    assert len({tuple(order.tolist()) for order in orders}) == 25  # (0, 1) and (1, 0) among them
    places = np.stack([epoch_order(np.arange(8), 0, epoch) for epoch in range(1000)]).T
    counts = np.stack([np.bincount(place, minlength=8) for place in places])
    assert counts.min() > 80  # 125 expected, standard deviation 10.5
    assert counts.max() < 170


def test_the_order_is_no_part_of_the_draws() -> None:
    """The words that order the images are not the words that augment them."""
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
