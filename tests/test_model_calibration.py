"""model/calibration.py: the error by hand, and the temperature that is put in comes out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from greyhound.model import calibration
from greyhound.model.calibration import calibration_error, describe, fit, probabilities
from greyhound.model.metrics import cross_entropy


def drawn(n: int, temperature: float, views: int = 1) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Logits `[n, views, 4]` that are `temperature` times those that the labels are drawn from."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, 1, 4, generator=generator)
    labels = torch.multinomial(logits[:, 0].softmax(1), 1, generator=generator)[:, 0]
    return (temperature * logits).expand(n, views, 4), labels.numpy()


def test_the_error_by_hand() -> None:
    """Confidences 0.9 (right), 0.92 (wrong) and 1.0 (right) lie in bins 13, 13 and 14 of 15; 0.6 (right) in 8."""
    found = np.array([[0.9, 0.1], [0.92, 0.08], [1.0, 0.0], [0.4, 0.6]])
    labels = np.array([0, 1, 0, 1])
    expected = (abs(1 - 0.9 + 0 - 0.92) + abs(1 - 1.0) + abs(1 - 0.6)) / 4
    assert calibration_error(found, labels) == pytest.approx(expected)


def test_a_confidence_at_a_bins_upper_end_belongs_to_it() -> None:
    """1/3 of 15 bins is the end of the fifth: with 0.34, in the sixth, each has a gap of its own."""
    third = np.array([[1 / 3, 1 / 3, 1 / 3], [0.34, 0.33, 0.33]])
    assert calibration_error(third, np.array([0, 1])) == pytest.approx((2 / 3 + 0.34) / 2)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_put_in_comes_out(temperature: float, views: int) -> None:
    logits, labels = drawn(4000, temperature, views)
    found = fit(logits, labels)
    assert found.temperature == pytest.approx(temperature, rel=0.06)
    assert (found.images, found.why) == (4000, "")
    both = describe(logits, labels, found)
    assert both["after"]["nll"] <= both["before"]["nll"]
    assert both["after"]["ece"] < 0.03
    assert probabilities(logits, found.temperature).argmax(1).tolist() == logits[:, 0].argmax(1).tolist()


def test_it_is_the_minimum() -> None:
    logits, labels = drawn(300, 2.0)
    found = fit(logits, labels).temperature
    losses = [cross_entropy(probabilities(logits, found * factor), labels) for factor in (1, 0.99, 1.01)]
    assert min(losses) == losses[0]


def test_of_too_few_images_and_of_no_mistakes_it_is_1() -> None:
    logits, labels = drawn(49, 3.0)
    few = fit(logits, labels)
    assert (few.temperature, few.why) == (
        1.0,
        "49 validation images are too few to fit a temperature, 50 are needed",
    )
    logits, _ = drawn(60, 3.0)
    perfect = fit(logits, logits[:, 0].argmax(1).numpy())
    assert (perfect.temperature, perfect.images) == (1.0, 60)
    assert "none of 60 validation images is mistaken" in calibration.say(
        describe(logits, np.zeros(60, int), perfect)
    )
