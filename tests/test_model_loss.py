"""Label smoothing is the seed's definition, written out."""

from __future__ import annotations

import math

import pytest
import torch

from greyhound.model.step import smoothed_cross_entropy


def test_one_image_by_hand() -> None:
    """Logits ln 1, ln 2, ln 5: probabilities 1/8, 2/8, 5/8; targets 0.05, 0.9, 0.05."""
    logits = torch.tensor([[1.0, 2.0, 5.0]]).log()
    expected = -(0.05 * math.log(1 / 8) + 0.9 * math.log(2 / 8) + 0.05 * math.log(5 / 8))
    assert smoothed_cross_entropy(0.1, 3)(logits, torch.tensor([1])).item() == pytest.approx(expected)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("classes", [2, 3, 25])
def test_targets_are_one_minus_e_and_the_rest_shared(epsilon: float, classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(7, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (7,), generator=generator)
    targets = torch.full((7, classes), epsilon / (classes - 1), dtype=torch.float64)
    targets[torch.arange(7), labels] = 1 - epsilon
    explicit = -(targets * logits.log_softmax(1)).sum(1).mean()
    value = smoothed_cross_entropy(epsilon, classes)(logits, labels)
    torch.testing.assert_close(value, explicit, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("epsilon", "classes", "words"),
    [
        (-0.1, 5, "-0.1; expected 0 to 0.8"),
        (0.81, 5, "0.81; expected 0 to 0.8"),
        (float("nan"), 5, "nan; expected"),
        (0.1, 1, "1 classes; expected at least 2"),
    ],
)
def test_smoothing_that_hides_the_true_class_is_refused(epsilon: float, classes: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        smoothed_cross_entropy(epsilon, classes)


def test_the_most_that_can_be_smoothed() -> None:
    for classes in range(2, 200):
        loss = smoothed_cross_entropy((classes - 1) / classes, classes)
        assert loss.label_smoothing == pytest.approx(1), "torch's own spreads evenly over all classes"
