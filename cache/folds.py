"""Folds: the images of train and val dealt out for cross-validation, each validated once.

Before it: an open pack. After it: `Pack` as one fold sees it; test images are those of the pack in all.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from greyhound.cache.index import PackError

ALONE = -1
"""The family of an image that may lie in any split, whatever the others do."""


@dataclass(frozen=True)
class Fold:
    """Which of so many folds, from 0; seed: of how they are dealt out."""

    index: int
    count: int
    seed: int

    def __str__(self) -> str:
        """In a message."""
        return f"fold {self.index} of {self.count}, dealt out by seed {self.seed}"


def deal(
    labels: NDArray[np.int32], families: NDArray[np.int32], keys: NDArray[Any], count: int, seed: int
) -> NDArray[np.int64]:
    """The fold of each image, 0..count - 1, int64 `[n]`: stratified by class, families kept together.

    labels, families, keys: `[n]`; a key is a number that follows from an image's content. The largest family
    is dealt first, then in an order drawn from the seed, each to the fold that has the fewest of its classes,
    and of those to the smallest. Raises PackError where a class has fewer families than there are folds.
    """
    alone = np.arange(len(families)) + 1 + families.max(initial=ALONE)
    found = defaultdict[int, list[int]](list)
    for row, family in enumerate(np.where(families == ALONE, alone, families).tolist()):
        found[family].append(row)
    draws = [hashlib.sha256(f"{seed}:{key}".encode()).digest() for key in keys.tolist()]
    order = sorted(found.values(), key=lambda rows: (-len(rows), min(draws[row] for row in rows)))
    least = min(Counter(label for rows in order for label in {*labels[rows].tolist()}).values(), default=0)
    if not 2 <= count <= least:
        most = f"2 to {least}" if least > 1 else "no folds"
        few = f"the smallest class has {least} images, those that stay together counted as one"
        raise PackError(f"--folds is {count}; expected {most}: {few}")
    folds, counts, sizes = (
        np.empty(len(labels), np.int64),
        [Counter[int]() for _ in range(count)],
        [0] * count,
    )
    for rows in order:
        there = Counter(labels[rows].tolist())
        fold = min(range(count), key=lambda each: (sum(counts[each][k] for k in there), sizes[each], each))
        folds[rows] = fold
        counts[fold].update(there)
        sizes[fold] += len(rows)
    return folds
