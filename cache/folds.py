"""Folds: the images of train and val dealt out for cross-validation, each validated once.

Before it: an open pack. After it: `Pack` as one fold sees it; test images are those of the pack in all.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from greyhound.cache.errors import UserError

ALONE = -1
"""The family of an image that may lie in any split, whatever the others do."""


@dataclass(frozen=True)
class Fold:
    """Which of so many folds, from 0; seed: of how they are dealt out."""

    index: int
    count: int
    seed: int
    families: str = field(default="", compare=False)
    """A digest of what belonged together where they were dealt out; "": not known yet."""

    def __str__(self) -> str:
        """In a message."""
        return f"fold {self.index} of {self.count}, dealt out by seed {self.seed}"


def deal(
    labels: Sequence[int], families: Sequence[int], keys: Sequence[int], count: int, seed: int
) -> list[int]:
    """The fold of each image, 0..count - 1, `[n]`: stratified by class, families kept together.

    labels, families, keys: `[n]`; a key is a number that follows from an image's content. The largest family
    is dealt first, then in an order drawn from the seed, each to the fold that has the fewest of its classes,
    and of those to the smallest. Raises UserError where a class has fewer families than there are folds.
    """
    found = defaultdict[tuple[int, int], list[int]](list)
    for row, family in enumerate(families):
        found[family, row if family == ALONE else 0].append(row)
    draws = [hashlib.sha256(f"{seed}:{key}".encode()).digest() for key in keys]
    order = sorted(found.values(), key=lambda rows: (-len(rows), min(draws[row] for row in rows)))
    least = min(
        Counter(label for rows in order for label in {labels[row] for row in rows}).values(), default=0
    )
    if not 2 <= count <= least:
        most = "no folds" if least < 2 else "2" if least == 2 else f"2 to {least}"
        few = f"the smallest class has {least} images, those that stay together counted as one"
        raise UserError(f"--folds is {count}; expected {most}: {few}")
    folds, counts, sizes = [0] * len(labels), [Counter[int]() for _ in range(count)], [0] * count
    for rows in order:
        there = Counter(labels[row] for row in rows)
        fold = min(range(count), key=lambda each: (sum(counts[each][k] for k in there), sizes[each], each))
        for row in rows:
            folds[row] = fold
        counts[fold].update(there)
        sizes[fold] += len(rows)
    return folds
