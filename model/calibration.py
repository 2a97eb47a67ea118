"""Calibration: whether probabilities mean what they say, and one temperature that mends them.

Before it: eval has the logits of the test images, and those of the validation images. After it: eval.json has
both sides, and predictions use the temperature (Guo et al. 2017, "On Calibration of Modern Neural Networks").
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from greyhound.model.metrics import Integers, cross_entropy

Probabilities = NDArray[np.float64]
"""`[n, K]`; rows sum to 1."""

BINS: Final = 15
LEAST: Final = 50
"""Validation images below which nothing is fitted. Not measured: a guess on the safe side."""
_RANGE: Final = (0.1, 10.0)
_STEPS: Final = 40
"""Of the golden section: they narrow log T down to 2e-8."""
_ROWS: Final = 4096
"""Images computed in float64 at a time."""


@dataclass(frozen=True)
class Temperature:
    """A temperature, of how many validation images, and why it is 1 where nothing was fitted."""

    temperature: float = 1.0
    images: int = 0
    why: str = ""


def probabilities(logits: torch.Tensor, temperature: float = 1.0) -> Probabilities:
    """The mean over an image's V crops of softmax(logits / temperature); logits: `[n, V, K]`."""
    parts = [(part.double() / temperature).softmax(2).mean(1).cpu() for part in torch.split(logits, _ROWS)]
    return torch.cat(parts).numpy()


def too_few(n: int) -> str:
    """That n validation images are too few to fit a temperature, in words; empty where they are enough."""
    return f"{n} validation images are too few to fit a temperature, {LEAST} are needed" if n < LEAST else ""


def fit(logits: torch.Tensor, labels: Integers) -> Temperature:
    """The temperature that gives validation images of these labels the least cross entropy.

    logits: `[n, V, K]`. Found by golden section over log T. It is 1 where there are fewer than `LEAST`
    images, or none is mistaken: then the colder, the better, without an end.
    """
    n = len(labels)
    if why := too_few(n):
        return Temperature(images=n, why=why)
    if (probabilities(logits).argmax(1) == labels).all():
        return Temperature(images=n, why=f"none of {n} validation images is mistaken, so none can be fitted")

    def loss(place: float) -> float:
        return cross_entropy(probabilities(logits, exp(place)), labels)

    low, high = map(log, _RANGE)
    ratio = (sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    of_left, of_right = loss(left), loss(right)
    for _ in range(_STEPS):
        if of_left < of_right:
            high, right, of_right = right, left, of_left
            left = high - ratio * (high - low)
            of_left = loss(left)
        else:
            low, left, of_left = left, right, of_right
            right = low + ratio * (high - low)
            of_right = loss(right)
    return Temperature(exp((low + high) / 2), n)


def reliability(found: Probabilities, labels: Integers) -> NDArray[np.float64]:
    """Images, the sum of their confidences, and how many are right, by bin: `[BINS, 3]`."""
    confidence, right, bins = _binned(found, labels)
    return np.stack([np.bincount(bins, of, BINS) for of in (np.ones(len(bins)), confidence, right)], axis=1)


def calibration_error(found: Probabilities, labels: Integers) -> float:
    """The expected calibration error, 0..1, over `BINS` bins of equal width.

    The confidence of an image is its highest probability. Bin b of B holds the confidences above b / B and up
    to (b + 1) / B. The error is the mean over the images of |accuracy - mean confidence| of their bin.
    """
    confidence, right, bins = _binned(found, labels)
    gaps = np.bincount(bins, right - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(labels))


def _binned(found: Probabilities, labels: Integers) -> tuple[NDArray[Any], NDArray[np.bool_], Integers]:
    """Of each image: its confidence, whether it is right, and its bin."""
    confidence, right = found.max(axis=1), found.argmax(axis=1) == labels
    return confidence, right, np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def describe(logits: torch.Tensor, labels: Integers, fitted: Temperature) -> dict[str, Any]:
    """What eval.json says of it: calibration error, cross entropy (NLL) and bins, before and after."""
    sides = {"before": probabilities(logits), "after": probabilities(logits, fitted.temperature)}
    return {
        **vars(fitted),
        **{
            name: {
                "ece": calibration_error(found, labels),
                "nll": cross_entropy(found, labels),
                "bins": reliability(found, labels).round(6).tolist(),
            }
            for name, found in sides.items()
        },
    }


def say(calibration: dict[str, Any]) -> str:
    """A line of it."""
    before, after = calibration["before"], calibration["after"]
    if calibration["why"]:
        return f"calibration: ECE {before['ece']:.3f}; temperature 1: {calibration['why']}"
    of = f"fitted on {calibration['images']} validation images"
    errors, losses = (f"{name.upper()} {before[name]:.4f}, then {after[name]:.4f}" for name in ("ece", "nll"))
    return f"calibration by temperature {calibration['temperature']:.2f} ({of}): {errors}; {losses}"
