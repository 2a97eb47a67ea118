"""model/step.py: the loss and validation against torch's own functions; train.py's step by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from runs import train_on
from torch import nn
from torch.nn import functional

from greyhound.model.state import NEVER
from greyhound.model.step import image_weights, smoothed_cross_entropy, validate, weighted

# --- a step, as train.train_epoch takes it ------------------------------------------------------------------

IMAGE, LABEL = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), torch.tensor([0])
FOUR = torch.rand(4, 2, 1, 1, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 0])


def linear() -> tuple[nn.Sequential, nn.Parameter]:
    """A network whose one layer is 0, and its weight."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    weight = network.get_parameter("1.weight")
    nn.init.zeros_(weight)
    return network, weight


def test_a_step_moves_against_the_gradient_at_the_rate_asked_for() -> None:
    network, weight = linear()
    optimizer = torch.optim.SGD(network.parameters(), lr=123.0)
    state = train_on(network, [(IMAGE, LABEL)], 0.5, optimizer)
    assert state.loss_sum == pytest.approx(0.693147, abs=1e-6)  # ln 2: both classes are as likely
    assert not state._losses.requires_grad
    assert weight.tolist() == [[0.25, 0.5], [-0.25, -0.5]]  # 0.5 times (1 - 1/2) times the image
    assert (state.epoch, state.images, state.diverged) == (1, 0, NEVER)


def test_a_step_forgets_the_gradient_of_the_one_before() -> None:
    """Before it calls the network: in CUDA graphs that gradient is memory which the call writes to."""
    network, weight = linear()
    found: list[torch.Tensor | None] = []
    network.register_forward_pre_hook(lambda *_: found.append(weight.grad))
    gradients = []
    for steps in (1, 2):
        train_on(network, [FOUR] * steps, 0.0)
        assert weight.grad is not None
        gradients.append(weight.grad.clone())
    assert gradients[0].equal(gradients[1])
    assert found == [None] * 3


def test_a_rank_weighs_its_loss_by_its_share_of_the_batch() -> None:
    """Of a batch of 8 images half are here, and there is one rank: half of the gradient of their mean."""
    plain, halved = linear(), linear()
    train_on(plain[0], [FOUR], 1.0)
    state = train_on(halved[0], [FOUR], 1.0, whole=8)
    assert plain[1].abs().max() > 0
    torch.testing.assert_close(halved[1], plain[1] / 2)
    assert state.loss_sum == pytest.approx(4 * math.log(2)), "the loss itself is not weighted"


class Root(nn.Module):
    """Its logits are finite at 0, and their gradient is not."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images.mean((1, 2, 3))[:, None] * self.weight).sqrt()


@pytest.mark.parametrize("max_norm", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_is_noted_at_its_own_batch(max_norm: float) -> None:
    """Its loss is finite; the next one comes of weights that are not."""
    good, bad = (torch.full((4, 3, 2, 2), value) for value in (1.0, 0.0))
    batches = [(images, torch.tensor([0, 1, 0, 1])) for images in (good, good, bad, good)]
    assert train_on(Root(), batches, 0.1, max_grad_norm=max_norm).diverged == 8


@pytest.mark.parametrize(("max_norm", "scale"), [(0, 1), (2, 1), (0.5, 0.5 / 3**0.5)])
def test_a_long_gradient_is_scaled_down_and_a_short_one_left_alone(max_norm: float, scale: float) -> None:
    """By the norm of all weights together, the root of 3 here; the bias's own is 0.7."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    for each in network.parameters():
        nn.init.zeros_(each)
    train_on(network, [(IMAGE, LABEL)], 1.0, max_grad_norm=max_norm)
    weight, bias = (each.detach() for each in network.parameters())
    expected = torch.tensor([[0.5, 1.0], [-0.5, -1.0]]) * scale, torch.tensor([0.5, -0.5]) * scale
    torch.testing.assert_close((weight, bias), expected, rtol=1e-5 if scale < 1 else 0, atol=0)


def test_it_is_the_gradient_of_the_step_that_is_scaled_and_not_of_its_parts() -> None:
    """Parts of two images whose gradients are longer than their sum, which is short enough."""
    (whole, weight), (parts, other) = linear(), linear()
    images = torch.tensor([3.0, 0.0, 3.0, 0.0, -3.0, 0.5, -3.0, 0.5]).view(4, 2, 1, 1)
    batch = images, torch.tensor([0, 0, 0, 0])
    train_on(whole, [batch], 1.0, freeze_bn=True)
    train_on(parts, [batch], 1.0, freeze_bn=True, micro_batch=2, max_grad_norm=0.5)
    assert 0 < weight.norm() < 0.5
    torch.testing.assert_close(other, weight)


def test_the_first_loss_that_is_not_finite_is_noted_and_no_later_one() -> None:
    network, _ = linear()
    bad = torch.full_like(FOUR[0], math.nan), FOUR[1]
    assert train_on(network, [FOUR, FOUR, bad, FOUR, bad], 0.0).diverged == 8


# --- validation ---------------------------------------------------------------------------------------------


def test_validation_is_torchs_cross_entropy_and_accuracy_over_uneven_batches() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5))
    images, labels = torch.rand(11, 5), torch.arange(11) % 3
    batches = [(images[start:stop], labels[start:stop]) for start, stop in ((0, 6), (6, 10), (10, 11))]
    found = validate(network.train(), batches, bf16=False)
    with torch.no_grad():
        logits = network.eval()(images)
    assert found["n"] == 11
    assert found["valid_loss"] == pytest.approx(functional.cross_entropy(logits, labels).item(), rel=1e-6)
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())


def test_no_images_to_validate_on() -> None:
    with pytest.raises(ValueError, match="no images to validate on"):
        validate(nn.Linear(1, 2), [], bf16=False)


# --- label smoothing, the seed's definition written out -----------------------------------------------------


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


def test_image_weights_by_hand() -> None:
    """Three of class 0, one of class 2, none of class 1; balanced, both classes weigh 2 together."""
    labels, alike, weights = np.array([0, 0, 2, 0]), np.ones(4, np.float32), np.array([1, 3, 4, 0])
    third = pytest.approx(2 / 3)
    assert image_weights(labels, alike, balanced=False).tolist() == [1, 1, 1, 1]
    assert image_weights(labels, 7 * alike, balanced=False).tolist() == [1, 1, 1, 1]
    assert image_weights(labels, alike, balanced=True).tolist() == [third, third, 2, third]
    assert image_weights(labels, weights, balanced=False).tolist() == [0.5, 1.5, 2, 0]
    assert image_weights(labels, weights, balanced=True).tolist() == [0.5, 1.5, 2, 0]
    assert image_weights(labels, weights[::-1], balanced=True).tolist() == pytest.approx([0, 1.6, 2, 0.4])
    huge = image_weights(labels, np.full(4, 3e38, np.float32), balanced=True)
    assert huge.dtype == np.float32 and huge.tolist() == [third, third, 2, third]


def test_the_weighted_loss_is_each_images_own_times_its_weight_and_adds_up_over_parts() -> None:
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([0, 0, 0, 1, 0, 2, 0, 1])
    weights = torch.tensor([0.5, 1.5, 3.0, 0.0, 1.0, 0.25, 0.75, 1.0])
    plain = smoothed_cross_entropy(0.1, 3)
    loss = weighted(plain)
    each = torch.stack([plain(logits[k : k + 1], labels[k : k + 1]) for k in range(8)])
    torch.testing.assert_close(loss(logits, labels, weights), (each * weights).mean())
    low, high = (loss(logits[part], labels[part], weights[part]) for part in (slice(4), slice(4, 8)))
    torch.testing.assert_close((low + high) / 2, loss(logits, labels, weights))
    torch.testing.assert_close(loss(logits, labels, torch.ones(8)), plain(logits, labels))
    assert loss(logits, labels).equal(plain(logits, labels)), "without weights to the bit"


def gradient_of(batch: tuple[torch.Tensor, ...], **fields: Any) -> torch.Tensor:
    """What the loop itself has as the gradient of a batch."""
    network, weight = linear()
    train_on(network, [batch], 0.0, label_smoothing=0.1, **fields)
    assert weight.grad is not None and weight.grad.any()
    return weight.grad


def test_a_weight_of_2_is_the_image_twice_and_0_is_without_it() -> None:
    images, labels = FOUR
    counts = torch.tensor([1, 2, 0, 3])
    copies = images.repeat_interleave(counts, 0), labels.repeat_interleave(counts)
    expected = gradient_of(copies)
    torch.testing.assert_close(gradient_of((images, labels, counts * 4 / 6)), expected)
    assert (gradient_of(FOUR) - expected).abs().max() > 0.01, "weights change it"
    assert gradient_of(FOUR).equal(gradient_of((images, labels, torch.ones(4)))), "of 4 images to the bit"


def test_weights_reach_each_view_and_each_part_of_a_batch() -> None:
    """Two views of four images, in parts of at most 3: as each view with its image's weight."""
    images, labels = FOUR
    weights = torch.tensor([0.5, 2.0, 0.0, 1.5])
    views = torch.stack([images, images.flip(1)], 1)
    flat = views.flatten(0, 1), labels.repeat_interleave(2), weights.repeat_interleave(2)
    expected = gradient_of(flat)
    for size in (0, 3):
        found = gradient_of((views, labels, weights), views=2, micro_batch=size, freeze_bn=True)
        torch.testing.assert_close(found, expected)
    swapped = gradient_of((views, labels, weights.flip(0)), views=2)
    assert (swapped - expected).abs().max() > 0.01
