"""Accuracy with its uncertainty: in total and by class, of single crops and of their mean.

Before it: eval predicts the probabilities of every crop. After it: eval.json, the printed table, the
confusion matrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from greyhound.model.run import confused

Integers = NDArray[np.int64]

TABLED: Final = 200
"""eval.json has the whole confusion matrix of up to this many classes; of more, the pairs that occur."""


def score(right: NDArray[np.floating[Any]]) -> dict[str, Any]:
    """`n`, the accuracy over n images and its 95 % Wilson interval; both None if there is no image.

    right: `[n]`, the share, 0 to 1, by which each image is right.
    """
    if not len(right):
        return {"n": 0, "accuracy": None, "interval": None}
    n, successes = len(right), float(right.sum(dtype=np.float64))
    return {"n": n, "accuracy": successes / n, "interval": list(wilson(successes, n))}


def wilson(successes: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval (Wilson 1927) of a share `successes / n`; z = 1.959964 covers 95 %.

    Unlike the normal interval it stays within 0..1 and is right near the ends. Raises ValueError if n < 1 or
    if successes are outside 0..n.
    """
    if n < 1:
        raise ValueError(f"an interval over n = {n}; expected at least 1")
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}; expected 0 to {n}")
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def confusion(labels: Integers, predictions: Integers, classes: int) -> Integers:
    """Counts int64 `[K, K]`; row: true class, column: predicted class. labels, predictions: int64 `[n]`."""
    counts = np.bincount(labels * classes + predictions, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64)


def most_confused(evaluation: Mapping[str, Any], most: int) -> Integers:
    """The at most `most` classes with the most mistakes: indices int64 `[k]`, ascending."""
    mistakes = np.zeros(len(evaluation["classes"]), dtype=np.int64)
    for true, predicted, count in confused(evaluation):
        if true != predicted:
            mistakes[[true, predicted]] += count
    return np.sort(np.argsort(-mistakes, kind="stable")[:most])


def confusion_among(evaluation: Mapping[str, Any], chosen: Integers) -> Integers:
    """The rows and columns of some classes of the confusion matrix: counts int64 `[k, k]`."""
    places = {int(index): place for place, index in enumerate(chosen)}
    counts = np.zeros((len(chosen), len(chosen)), dtype=np.int64)
    for true, predicted, count in confused(evaluation):
        if true in places and predicted in places:
            counts[places[true], places[predicted]] += count
    return counts


def evaluate(
    probabilities: NDArray[np.float32], labels: Integers, class_names: Sequence[str]
) -> dict[str, Any]:
    """Everything that eval.json says about probabilities `[n, V, K]`: V crops of n images with labels `[n]`.

    `accuracy` is the mean over all n * V single crops, as the original counts. `ensemble_accuracy` takes the
    class with the highest mean probability over an image's V crops; so do `confusion` and `cross_entropy`.
    More than `TABLED` classes get `confusion_pairs` instead: rows of true class, predicted class and count.
    Both intervals are over n, not over n * V: crops of one image are no independent trials. A class without
    images has None. Raises ValueError if probabilities are not finite.
    """
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities are not finite; the network diverged, train it at a lower rate")
    mean = probabilities.mean(axis=1, dtype=np.float64)
    predictions = mean.argmax(axis=1)
    singles = (probabilities.argmax(axis=2) == labels[:, None]).mean(axis=1)
    ensembles = (predictions == labels).astype(np.float64)
    order = np.argsort(labels, kind="stable")
    of_classes = np.split(order, np.searchsorted(labels[order], np.arange(1, len(class_names))))
    return {
        "crops": probabilities.shape[1],
        **_scores(singles[order], ensembles[order]),
        "cross_entropy": _cross_entropy(mean, labels),
        "classes": [
            {"name": name} | _scores(singles[chosen], ensembles[chosen])
            for name, chosen in zip(class_names, of_classes, strict=True)
        ],
        **_confusion(labels, predictions, len(class_names)),
    }


def table(evaluation: Mapping[str, Any]) -> list[str]:
    """The original lines, `Accuracy of Afghan_hound(n=36): 0.928`, class by class; then the total."""
    lines = [
        f"Accuracy of {row['name']}(n={row['n']}): {_say(row['accuracy'])}" for row in evaluation["classes"]
    ]
    return [*lines, f"Total Accuracy: {_say(evaluation['accuracy'])}"]


def _confusion(labels: Integers, predictions: Integers, classes: int) -> dict[str, list[list[int]]]:
    if classes <= TABLED:
        return {"confusion": confusion(labels, predictions, classes).tolist()}
    found, counts = np.unique(labels * classes + predictions, return_counts=True)
    return {"confusion_pairs": np.stack([found // classes, found % classes, counts], axis=1).tolist()}


def _scores(singles: NDArray[np.float64], ensembles: NDArray[np.float64]) -> dict[str, Any]:
    ensemble = score(ensembles)
    return score(singles) | {f"ensemble_{name}": ensemble[name] for name in ("accuracy", "interval")}


def _cross_entropy(mean: NDArray[np.float64], labels: Integers) -> float:
    """A probability of 0 counts as the smallest number of float32."""
    true = mean[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(true, np.finfo(np.float32).tiny)).mean())


def _say(accuracy: float | None) -> str:
    return "no images" if accuracy is None else f"{accuracy:.3f}"
