"""Mixup and CutMix: every image of a batch takes a share of the image before it, the first one of the last.

Before it: (seed, epoch, id, view), and an engine's batch on the device. After it: `loader` hands out the
mixed images, and how much of each is another's. How much of each pixel: the product of a number of its row
and one of its column. So both methods are one outer product, and a box needs no loop.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from greyhound.pipelines.augment import Augment, draw_numbers

_SLOTS: Final = ("share", "method", "across", "down")
_BLOCK: Final = 0x200  # of the counter's last word, apart from `augment`'s and `order`'s
_STEPS: Final = 2**16


def draw_mixing(
    augment: Augment, seed: int, epoch: int, ids: NDArray[np.int64], view: int | NDArray[np.int64] = 0
) -> NDArray[np.float32]:
    """The other image's share of each row and of each column: float32 `[n, 2, S]`, of a pixel their product.

    ids, view: as `augment.draw` has them. Each image's is a function of (seed, epoch, its id, view) alone.
    Mixup (Zhang et al. 2018): one share everywhere, from Beta(alpha, alpha). CutMix (Yun et al. 2019): 1 in a
    box, else 0. Its area is that share of the image's, but its centre is anywhere in it, so some is cut off.
    """
    numbers = draw_numbers(seed, epoch, ids, view, _SLOTS, _BLOCK)
    cuts = numbers["method"] < (0.5 if augment.mixup else 1) * bool(augment.cutmix)
    shares = [beta(numbers["share"], alpha or 1) for alpha in (augment.mixup, augment.cutmix)]
    everywhere = np.ones((len(ids), 2, augment.size))
    everywhere[:, 0] *= shares[0][:, None]
    centres = augment.size * np.stack([numbers["down"], numbers["across"]], axis=1)
    apart = np.abs(np.arange(augment.size) + 0.5 - centres[:, :, None])
    box = apart < augment.size / 2 * np.sqrt(shares[1])[:, None, None]
    return np.where(cuts[:, None, None], box, everywhere).astype(np.float32)


def beta(numbers: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Numbers `[n]` of the distribution Beta(alpha, alpha), from uniform ones `[n]`, by its quantiles.

    The logit z of such a number has the density (2 cosh(z / 2))**(-2 alpha): smooth for every alpha, where
    that of the number itself has poles below 1. So the integral of z is tabled, and read backwards.
    """
    return np.asarray(0.5 + 0.5 * np.tanh(np.interp(numbers, *_table(alpha)) / 2))


@lru_cache(maxsize=4)
def _table(alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities, from 0 to 1, and the logits that they belong to; beyond them lies less than 2**-33."""
    reach = 25 / alpha + 10 / np.sqrt(alpha)
    logits = np.linspace(-reach, reach, _STEPS + 1)
    density = np.exp(-2 * alpha * (np.logaddexp(logits / 2, -logits / 2) - np.log(2)))
    sums = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return sums / sums[-1], logits


def shares_of(mixing: NDArray[np.float32]) -> NDArray[np.float32]:
    """How much of each image is another's, as pixels count: float32 `[...]`. mixing: `[..., 2, S]`."""
    return np.asarray(mixing.mean(axis=-1, dtype=np.float64).prod(axis=-1), dtype=np.float32)


def mix(images: torch.Tensor, mixing: torch.Tensor) -> torch.Tensor:
    """Mix each view with the same one of the image before: x + share * (other - x), in new memory.

    images: float32 `[B, K, S, S, 3]`. mixing: float32 `[B, K, 2, S]`, on the same device. A batch of one
    image stays as it is. Each operation rounds by itself, so any device and number of threads gives the same.
    """
    flat = images.flatten(-2)  # a row's pixels and channels: nothing is broadcast over a last axis of 3
    mixed = flat.roll(1, 0).sub_(flat)
    mixed *= mixing[:, :, 0, :, None]
    mixed *= mixing[:, :, 1, None].repeat_interleave(3, -1)
    return mixed.add_(flat).view_as(images)
