"""Philox against the known-answer vectors of its authors (Random123, tests/kat_vectors), and the open interval."""

from __future__ import annotations

import numpy as np
import pytest

from greyhound.pipelines.augment import philox, uniform

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, int, int, int]
) -> None:
    answer = philox(counter, seed=key[0] | key[1] << 32)
    assert answer.dtype == np.uint32
    assert answer.tolist() == list(words)


def test_counters_broadcast() -> None:
    ids, blocks = np.array([[7], [8], [9]]), np.arange(2)
    together = philox((ids, 5, 1, blocks), seed=3)
    assert together.shape == (3, 2, 4)
    for row in range(3):
        for block in range(2):
            assert together[row, block].tolist() == philox((7 + row, 5, 1, block), seed=3).tolist()


def test_no_counter_gives_no_words() -> None:
    assert philox((np.array([], dtype=np.int64), 0, 0, 0), seed=0).shape == (0, 4)


def test_every_word_of_the_counter_and_both_halves_of_the_seed_matter() -> None:
    counters = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    answers = {tuple(philox(counter, 0).tolist()) for counter in counters}
    answers |= {tuple(philox(counters[0], seed).tolist()) for seed in (1, 1 << 32, 1 << 63)}
    assert len(answers) == 8


def test_uniform_is_open_at_both_ends() -> None:
    words = np.array([[0, 1], [0x80000000, ONES]], dtype=np.uint32)
    assert uniform(words).tolist() == [[2.0**-33, 3 * 2.0**-33], [0.5 + 2.0**-33, 1 - 2.0**-33]]
    assert uniform(words).min() > 0
    assert uniform(words).max() < 1


def test_uniform_is_uniform() -> None:
    numbers = uniform(philox((np.arange(100_000), 0, 0, 0), seed=1))
    shares = np.histogram(numbers, bins=10, range=(0, 1))[0] / numbers.size
    np.testing.assert_allclose(shares, 0.1, atol=0.003)
    np.testing.assert_allclose(np.corrcoef(numbers.T), np.eye(4), atol=0.02)
