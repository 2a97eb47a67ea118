"""Accuracy and its intervals, against published numbers and numbers counted by hand."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from greyhound.model import metrics
from greyhound.model.metrics import confused, count_confusions, judge, score, table, wilson

NAMES = ("cat", "dog", "emu")


def evaluate(probabilities: NDArray[np.float32], labels: NDArray[np.int64], names: Any) -> dict[str, Any]:
    return metrics.evaluate(probabilities, judge(probabilities, labels), names)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0000, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_newcombes_examples(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3."""
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_the_ends_stay_within_0_and_1() -> None:
    """At k = n the interval is n / (n + z^2) to 1, at k = 0 its mirror image."""
    for n in (1, 7, 36, 807):
        squared = 1.959964**2
        assert wilson(n, n) == pytest.approx((n / (n + squared), 1.0), rel=1e-12)
        assert wilson(0, n) == pytest.approx((0.0, squared / (n + squared)), rel=1e-12, abs=1e-15)
        assert 0 <= wilson(0, n)[0] <= wilson(n, n)[1] <= 1


def test_z_widens_and_fractions_count() -> None:
    """By hand for 1 of 2 and z = 1: centre 1/2, half 1/(3/2) * sqrt(1/8 + 1/16) = 0.288675."""
    assert wilson(1, 2, z=1.0) == pytest.approx((0.5 - 0.288675, 0.5 + 0.288675), abs=1e-6)
    assert wilson(1.5, 2)[0] > wilson(1, 2)[0]


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5), (float("nan"), 5), (0, -1)])
def test_an_interval_over_nothing_is_refused(successes: float, n: int) -> None:
    with pytest.raises(ValueError, match="expected"):
        wilson(successes, n)


def test_confusion_rows_are_true() -> None:
    counts = count_confusions(np.array([0, 0, 0, 2, 1]), np.array([0, 1, 1, 1, 1]), 3)
    assert counts == {"confusion": [[1, 2, 0], [0, 1, 0], [0, 1, 0]]}


def test_of_many_classes_the_pairs_that_occur_say_the_same() -> None:
    generator = np.random.default_rng(0)
    classes = metrics.TABLED + 1
    labels = generator.integers(classes, size=500)
    probabilities = generator.random((500, 2, classes), dtype=np.float32)
    many = evaluate(probabilities, labels, [str(index) for index in range(classes)])
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (labels, probabilities.mean(axis=1).argmax(axis=1)), 1)
    assert "confusion" not in many
    assert confused(many) == confused({"confusion": counts.tolist()})
    assert sum(count for _, _, count in confused(many)) == 500
    assert [row["n"] for row in many["classes"]] == np.bincount(labels, minlength=classes).tolist()


def test_the_classes_that_are_confused_most_by_hand() -> None:
    rows = [[9, 0, 1, 0], [0, 9, 0, 0], [4, 0, 5, 0], [0, 0, 2, 7]]
    pairs = [[0, 0, 9], [0, 2, 1], [1, 1, 9], [2, 0, 4], [2, 2, 5], [3, 2, 2], [3, 3, 7], [1], [0, 1, None]]
    for content in ({"confusion": rows}, {"confusion_pairs": pairs}):
        evaluation = {"classes": [{}] * 4, **content}
        assert metrics.most_confused(evaluation, 2).tolist() == [0, 2], "5, 0, 7 and 2 mistakes"
        assert metrics.most_confused(evaluation, 9).tolist() == [0, 1, 2, 3]
        assert metrics.confusion_among(evaluation, np.array([0, 2])).tolist() == [[9, 1], [4, 5]]


def example() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Four images, two crops each.

    A cat, right in both crops. A cat, right in the first only, dog on average. A dog, wrong in both crops
    (cat, emu), yet right on average. A dog, right in both. No emu.
    """
    rows = [
        [[0.8, 0.1, 0.1], [0.6, 0.2, 0.2]],
        [[0.5, 0.4, 0.1], [0.1, 0.8, 0.1]],
        [[0.5, 0.4, 0.1], [0.1, 0.4, 0.5]],
        [[0.0, 1.0, 0.0], [0.2, 0.6, 0.2]],
    ]
    return np.array(rows, dtype=np.float32), np.array([0, 0, 1, 1])


def test_every_number_of_an_evaluation() -> None:
    result = evaluate(*example(), NAMES)
    assert (result["n"], result["crops"]) == (4, 2)
    assert (result["accuracy"], result["ensemble_accuracy"]) == (5 / 8, 3 / 4)
    assert result["interval"] == list(wilson(2.5, 4))
    assert result["ensemble_interval"] == list(wilson(3, 4))
    assert result["confusion"] == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]
    expected = -(math.log(0.7) + math.log(0.3) + math.log(0.4) + math.log(0.8)) / 4
    assert result["cross_entropy"] == pytest.approx(expected)
    assert (result["balanced_accuracy"], result["ensemble_balanced_accuracy"]) == (5 / 8, 3 / 4)
    assert result["classes_tested"] == 2
    # Of crops: cat is named 4 times, 3 of them right, and there are 4; dog 3 times, 2 of them right.
    found = [
        [row[f"{kind}{name}"] for row in result["classes"]]
        for kind in ("", "ensemble_")
        for name in ("precision", "f1")
    ]
    assert found == [[3 / 4, 2 / 3, 0], [6 / 8, 4 / 7, None], [1, 2 / 3, None], [2 / 3, 4 / 5, None]]
    assert result["macro_f1"] == pytest.approx((6 / 8 + 4 / 7) / 2)
    assert result["ensemble_macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    keys = ("name", "n", "accuracy", "interval", "ensemble_accuracy", "ensemble_interval")
    assert [tuple(row[key] for key in keys) for row in result["classes"]] == [
        ("cat", 2, 0.75, list(wilson(1.5, 2)), 0.5, list(wilson(1, 2))),
        ("dog", 2, 0.5, list(wilson(1, 2)), 1.0, list(wilson(2, 2))),
        ("emu", 0, None, None, None, None),
    ]
    more = {f"{kind}{name}" for kind in ("", "ensemble_") for name in ("precision", "f1")}
    assert all(set(row) == {*keys, *more} for row in result["classes"])


@pytest.mark.filterwarnings("ignore:y_pred contains classes")
def test_balanced_accuracy_and_macro_f1_are_sklearns_of_the_classes_that_have_images() -> None:
    from sklearn.metrics import balanced_accuracy_score, f1_score, precision_score

    generator = np.random.default_rng(1)
    labels = generator.choice([0, 1, 3], 90, p=[0.8, 0.15, 0.05])
    probabilities = generator.random((90, 1, 4), dtype=np.float32)
    result = evaluate(probabilities, labels, ("a", "b", "none", "d"))
    guesses = probabilities[:, 0].argmax(axis=1)
    tested = [0, 1, 3]
    assert result["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, guesses))
    assert result["macro_f1"] == pytest.approx(f1_score(labels, guesses, labels=tested, average="macro"))
    precisions = precision_score(labels, guesses, labels=tested, average=None)
    assert [result["classes"][k]["precision"] for k in tested] == pytest.approx(precisions)


@pytest.mark.parametrize(("right", "n"), [(10, 10), (9, 10), (0, 3), (50, 100), (1, 1)])
def test_so_many_images_halve_the_interval(right: int, n: int) -> None:
    def width(images: int) -> float:
        low, high = wilson(right / n * images, images)
        return high - low

    enough = metrics.images_to_halve(right / n, n)
    assert width(enough) <= width(n) / 2 < width(enough - 1)


def test_few_images_are_said_to_be_few() -> None:
    few, enough = (metrics.score(np.repeat([0.0, 1.0], [n // 10, n - n // 10])) for n in (20, 40))
    half = "; with 77 images it would be half as wide"
    assert metrics.say_interval(few, 2) == f"95 % interval 0.699 to 0.972, n = 20{half}"
    assert metrics.say_interval(enough, 2) == "95 % interval 0.769 to 0.960, n = 40"


def test_an_evaluation_is_json_that_every_reader_takes() -> None:
    result = evaluate(*example(), NAMES)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_probability_of_0_has_a_finite_cross_entropy() -> None:
    result = evaluate(np.array([[[1.0, 0.0]]], dtype=np.float32), np.array([1]), ("a", "b"))
    assert result["cross_entropy"] == pytest.approx(87.336545)


def test_the_interval_does_not_shrink_with_crops() -> None:
    probabilities, labels = example()
    more = evaluate(np.concatenate([probabilities] * 5, axis=1), labels, NAMES)
    assert more["crops"] == 10
    assert more["interval"] == evaluate(probabilities, labels, NAMES)["interval"]


def test_the_seeds_lines() -> None:
    """And behind them what is ours. No number is said twice."""
    rows = [("Afghan_hound", 36, 0.9277, 0.9), ("Dingo", 0, None, None), ("Pug", 3, 0.0, None)]
    classes = [
        {"name": name, "n": n, "accuracy": accuracy, "precision": precision, "interval": [0.0, 0.5617]}
        for name, n, accuracy, precision in rows
    ]
    evaluation: dict[str, Any] = {"accuracy": 0.93061, "n": 40, "classes": classes, "classes_tested": 2}
    evaluation["interval"] = metrics.wilson(0.93061 * 40, 40)
    evaluation |= {"balanced_accuracy": 0.5, "macro_f1": 0.475, "ensemble_accuracy": 0.95}
    evaluation |= {
        "ensemble_balanced_accuracy": 0.6,
        "ensemble_macro_f1": 0.57,
        "ensemble_interval": [0.8, 1.0],
    }
    lines = [
        "Accuracy of Afghan_hound(n=36): 0.928, precision 0.900",
        "Accuracy of Dingo(n=0): no images",
        "Accuracy of Pug(n=3): 0.000 (0.000 to 0.562), never predicted",
        "Total Accuracy: 0.931 (the centre window, 2 of 3 classes; 95 % interval 0.809 to 0.977, n = 40)",
        "balanced accuracy: 0.500, macro F1: 0.475",
    ]
    assert table(evaluation | {"crops": 1}) == lines
    lines[3] = lines[3].replace("the centre window", "one crop, on average over 4")
    together = "mean of 4 probabilities: 0.950 (95 % interval 0.800 to 1.000), balanced accuracy: 0.600, macro F1: 0.570"
    assert table(evaluation | {"crops": 4}) == [*lines, together]


def test_a_score_without_images_has_no_numbers() -> None:
    assert score(np.array([])) == {"n": 0, "accuracy": None, "interval": None}


def test_a_diverged_network_gets_no_accuracy() -> None:
    probabilities, labels = example()
    probabilities[2, 1] = np.nan
    with pytest.raises(ValueError, match="diverged"):
        evaluate(probabilities, labels, NAMES)
