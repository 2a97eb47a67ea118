"""Accuracy with its uncertainty: in total and by class, of single crops and of their mean.

Before it: eval predicts the probabilities of every crop. After it: eval.json, the printed table, the
confusion matrix. Where classes differ in size the total is that of the large ones: beside it stand the
balanced accuracy, the mean over classes, and macro F1.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

TABLED: Final = 200
"""eval.json has the whole confusion matrix of up to this many classes; of more, the pairs that occur."""
PAIRS: Final = 10
"""Pairs of classes that are confused, shown on the page: the commonest."""
FEW: Final = 20
"""With fewer images of a class its accuracy says little: 19 of 20 may be anything from 0.76 to 0.99."""


@dataclass(frozen=True)
class Judged:
    """What each of n images got from the mean of its crops.

    labels, predictions: int64 `[n]`. probabilities: float64 `[n]`, of the prediction. losses: float64 `[n]`,
    cross entropy in nats.
    """

    labels: Integers
    predictions: Integers
    probabilities: NDArray[np.float64]
    losses: NDArray[np.float64]

    def mistakes(self) -> Integers:
        """The images that are taken for another class, the highest loss first: places int64 `[m]`."""
        wrong = np.flatnonzero(self.predictions != self.labels)
        return wrong[np.argsort(-self.losses[wrong], kind="stable")]

    def right(self, label: int) -> Integers:
        """The images of a class that are taken for it, the lowest loss first: places int64 `[m]`."""
        right = np.flatnonzero((self.labels == label) & (self.predictions == label))
        return right[np.argsort(self.losses[right], kind="stable")]


def judge(probabilities: NDArray[np.float32], labels: Integers) -> Judged:
    """What images with labels `[n]` got: of probabilities `[n, V, K]` of V crops of each.

    Raises ValueError if they are not finite.
    """
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities are not finite; the network diverged, train it at a lower rate")
    mean = probabilities.mean(axis=1, dtype=np.float64)
    predictions = mean.argmax(axis=1)
    return Judged(labels, predictions, mean[np.arange(len(labels)), predictions], losses(mean, labels))


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


def mcnemar(one: int, other: int) -> float:
    """How likely chance makes a difference as large, of two networks on the same images: McNemar 1947, exact.

    one, other: images that the first alone names right, and the second alone.
    """
    n, tail, term = one + other, 0, 1
    for k in range(min(one, other) + 1):  # term: n over k
        tail, term = tail + term, term * (n - k) // (k + 1)
    return min(1.0, tail / 2 ** (n - 1)) if n else 1.0


def images_to_halve(accuracy: float, n: int) -> int:
    """Of how many images, equally often right, the 95 % interval would be half as wide as over n."""

    def width(images: int) -> float:
        low, high = wilson(accuracy * images, images)
        return high - low

    return bisect_left(range(16 * n + 64), -width(n) / 2, lo=n, key=lambda images: -width(images))


def say_interval(found: Mapping[str, Any], classes: int) -> str:
    """The 95 % interval of a `score`; of few images a class, how many would halve it too."""
    (low, high), n = found["interval"], found["n"]
    said = f"95 % interval {low:.3f} to {high:.3f}, n = {n}"
    few = n < FEW * classes
    more = f"; with {images_to_halve(found['accuracy'], n):,} images it would be half as wide"
    return said + more if few else said


def confused_pairs(evaluation: Mapping[str, Any], most: int) -> list[tuple[int, int, int]]:
    """The at most `most` commonest mistakes of eval.json: true class, predicted class, count."""
    known = range(len(evaluation.get("classes") or []))
    wrong = [row for row in confused(evaluation) if row[0] != row[1] and row[0] in known and row[1] in known]
    return sorted(wrong, key=lambda row: -row[2])[:most]


def count_confusions(labels: Integers, predictions: Integers, classes: int) -> dict[str, list[list[int]]]:
    """`confusion`, counts of `classes` rows, true classes, and columns, predicted ones; see `TABLED`.

    labels, predictions: int64 `[n]`. Of more classes: `confusion_pairs`, rows as `confused` gives them.
    """
    places = labels * classes + predictions
    if classes <= TABLED:
        counts = np.bincount(places, minlength=classes * classes)
        return {"confusion": counts.reshape(classes, classes).tolist()}
    found, counts = np.unique(places, return_counts=True)
    return {"confusion_pairs": np.stack([found // classes, found % classes, counts], axis=1).tolist()}


def confused(evaluation: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """The pairs that occur in eval.json, which people may have edited: true class, predicted class, count."""
    table, pairs = evaluation.get("confusion") or [], evaluation.get("confusion_pairs") or []
    rows = (
        (true, predicted, count)
        for true, row in enumerate(table)
        for predicted, count in enumerate(row)
        if count
    )
    return [*rows, *(tuple(pair) for pair in pairs if len(pair) == 3 and None not in pair)]


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
    probabilities: NDArray[np.float32], judged: Judged, class_names: Sequence[str]
) -> dict[str, Any]:
    """Everything that eval.json says about probabilities `[n, V, K]` of V crops of n images, as judged.

    `accuracy` is the mean over all n * V single crops, as the original counts. `ensemble_accuracy` takes the
    class with the highest mean probability over an image's V crops; so do `confusion` and `cross_entropy`.
    A class's accuracy is its recall. Its precision is the share of what was taken for it that it is, None
    where nothing was. `balanced_accuracy` and `macro_f1` are means over the `classes_tested`, those with
    images. More than `TABLED` classes get `confusion_pairs` instead of `confusion`: rows of true class,
    predicted class and count. Both intervals are over n, not over n * V: crops of one image are no
    independent trials. A class without images has None.
    """
    labels, predictions = judged.labels, judged.predictions
    singles = (probabilities.argmax(axis=2) == labels[:, None]).mean(axis=1)
    ensembles = (predictions == labels).astype(np.float64)
    order = np.argsort(labels, kind="stable")
    of_classes = np.split(order, np.searchsorted(labels[order], np.arange(1, len(class_names))))
    rows = [
        {"name": name} | _scores(singles[chosen], ensembles[chosen])
        for name, chosen in zip(class_names, of_classes, strict=True)
    ]
    balanced = _add_precision(rows, "", labels, probabilities.argmax(axis=2))
    balanced |= _add_precision(rows, "ensemble_", labels, predictions[:, None])
    return {
        "crops": probabilities.shape[1],
        **_scores(singles[order], ensembles[order]),
        **balanced,
        "classes_tested": sum(row["n"] > 0 for row in rows),
        "cross_entropy": float(judged.losses.mean()),
        "classes": rows,
        **count_confusions(labels, predictions, len(class_names)),
    }


def table(evaluation: Mapping[str, Any]) -> list[str]:
    """The original lines, `Accuracy of Afghan_hound(n=36): 0.928`, class by class, and what is ours behind
    the number: the precision, and of few images the interval. Then the total, and the mean of the crops.
    """
    crops, classes = evaluation["crops"], len(evaluation["classes"])
    tested = evaluation["classes_tested"]
    of = f"{tested} of {classes} classes" if tested < classes else f"{classes} classes"
    kind = f"one crop, on average over {crops}" if crops > 1 else "the centre window"
    interval = say_interval(evaluation, tested)
    lines = [
        *map(_class_line, evaluation["classes"]),
        f"Total Accuracy: {_say(evaluation['accuracy'])} ({kind}, {of}; {interval})",
        _balanced(evaluation, ""),
    ]
    if crops > 1:
        low, high = evaluation["ensemble_interval"]
        together = f"mean of {crops} probabilities: {_say(evaluation['ensemble_accuracy'])}"
        lines.append(
            f"{together} (95 % interval {low:.3f} to {high:.3f}), {_balanced(evaluation, 'ensemble_')}"
        )
    return lines


def _class_line(row: Mapping[str, Any]) -> str:
    line = f"Accuracy of {row['name']}(n={row['n']}): {_say(row['accuracy'])}"
    if not row["n"]:
        return line
    if row["n"] < FEW:
        line += " ({:.3f} to {:.3f})".format(*row["interval"])
    return (
        f"{line}, precision {row['precision']:.3f}"
        if row["precision"] is not None
        else f"{line}, never predicted"
    )


def _balanced(evaluation: Mapping[str, Any], kind: str) -> str:
    accuracy, f1 = evaluation[f"{kind}balanced_accuracy"], evaluation[f"{kind}macro_f1"]
    return f"balanced accuracy: {accuracy:.3f}, macro F1: {f1:.3f}"


def _add_precision(
    rows: list[dict[str, Any]], kind: str, labels: Integers, predictions: Integers
) -> dict[str, float | None]:
    """Give the classes' rows their precision and F1; the means of recall and F1. predictions: `[n, V]`."""
    right = np.bincount(labels, (predictions == labels[:, None]).sum(axis=1), minlength=len(rows))
    named = np.bincount(predictions.ravel(), minlength=len(rows))
    there = np.bincount(labels, minlength=len(rows)) * predictions.shape[1]
    for row, true, guessed, of in zip(rows, *(each.tolist() for each in (right, named, there)), strict=True):
        row[f"{kind}precision"] = true / guessed if guessed else None
        row[f"{kind}f1"] = 2 * true / (guessed + of) if of else None
    found = [row for row in rows if row["n"]]

    def mean(name: str) -> float | None:
        return sum(row[f"{kind}{name}"] for row in found) / len(found) if found else None

    return {f"{kind}balanced_accuracy": mean("accuracy"), f"{kind}macro_f1": mean("f1")}


def _scores(singles: NDArray[np.float64], ensembles: NDArray[np.float64]) -> dict[str, Any]:
    ensemble = score(ensembles)
    return score(singles) | {f"ensemble_{name}": ensemble[name] for name in ("accuracy", "interval")}


def losses(mean: NDArray[np.float64], labels: Integers) -> NDArray[np.float64]:
    """Cross entropy of each image, in nats, of probabilities `[n, K]`; 0 counts as float32's least number."""
    true = mean[np.arange(len(labels)), labels]
    return -np.log(np.maximum(true, np.finfo(np.float32).tiny))


def cross_entropy(mean: NDArray[np.float64], labels: Integers) -> float:
    """The mean of `losses`."""
    return float(losses(mean, labels).mean())


def _say(accuracy: float | None) -> str:
    return "no images" if accuracy is None else f"{accuracy:.3f}"
