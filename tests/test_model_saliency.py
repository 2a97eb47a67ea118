"""The gradient at the pixels is the derivative, and looking changes nothing."""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from greyhound.model import saliency as module
from greyhound.model.network import build
from greyhound.model.saliency import normalise, saliency


def images(count: int = 3, side: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def normed() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.GELU(), nn.Dropout(0.5), nn.Flatten()]
    network = nn.Sequential(*layers, nn.Linear(64, 5)).double()
    with torch.no_grad():
        network(images(20))  # statistics of some data
    return network


def test_a_linear_network_by_hand() -> None:
    """One pixel of three channels, two classes: d loss / d input = W^T (p - onehot)."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        network.get_parameter("1.weight").copy_(torch.tensor([[1.0, 0.0, -2.0], [0.0, 4.0, 0.0]]))
    pixels = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]).view(2, 3, 1, 1)
    result = saliency(network, pixels, torch.tensor([0, 1]))
    first = math.e / (math.e + 1)  # logits 1, 0
    second = math.exp(-2) / (math.exp(-2) + 1)  # logits -2, 0
    np.testing.assert_allclose(result.probabilities[:, 0], [first, second], rtol=1e-6)
    np.testing.assert_allclose(result.loss, [-math.log(first), -math.log(1 - second)], rtol=1e-5)
    np.testing.assert_allclose(result.gradient.ravel(), [4 * (1 - first), 4 * second], rtol=1e-5)
    assert result.predictions.tolist() == [0, 1]


def test_finite_differences() -> None:
    network, pixels, labels, step = normed(), images(), torch.tensor([0, 4, 2]), 1e-6
    moves = step * torch.eye(48, dtype=torch.float64)
    losses = []
    with torch.no_grad():
        for moved in (pixels.view(3, 1, 48) + moves, pixels.view(3, 1, 48) - moves):
            logits = network.eval()(moved.view(-1, 3, 4, 4))
            losses.append(functional.cross_entropy(logits, labels.repeat_interleave(48), reduction="none"))
    slopes = (losses[0] - losses[1]) / (2 * step)
    expected = slopes.view(3, 3, 4, 4).abs().amax(1)
    result = saliency(network.train(), pixels, labels)
    np.testing.assert_allclose(result.gradient, expected, rtol=1e-4, atol=1e-7)


def test_images_are_taken_a_few_at_a_time_and_it_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    network, pixels, labels = normed(), images(5), torch.tensor([0, 4, 2, 1, 3])
    taken: list[int] = []
    network.register_forward_hook(lambda _, inputs, __: taken.append(len(inputs[0])))
    few = saliency(network, pixels, labels)
    assert taken == [2, 2, 1], "on a CPU"
    monkeypatch.setitem(module.AT_ONCE, "cpu", 5)
    for one, other in zip(vars(few).values(), vars(saliency(network, pixels, labels)).values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert taken[3:] == [5]


def test_shapes_and_types() -> None:
    result = saliency(normed(), images(), torch.tensor([0, 4, 2]))
    described = [(value.shape, value.dtype) for value in vars(result).values()]
    kinds = [((3, 4, 4), np.float32), ((3,), np.float32), ((3,), np.int64), ((3, 5), np.float32)]
    assert described == kinds
    np.testing.assert_allclose(result.probabilities.sum(1), 1, rtol=1e-6)
    assert result.predictions.tolist() == result.probabilities.argmax(1).tolist()
    np.testing.assert_allclose(result.loss, -np.log(result.probabilities[np.arange(3), [0, 4, 2]]), rtol=1e-5)


def test_images_do_not_see_each_other() -> None:
    network, pixels, labels = normed(), images(), torch.tensor([0, 4, 2])
    together = saliency(network, pixels, labels)
    alone = saliency(network, pixels[1:2], labels[1:2])
    np.testing.assert_allclose(together.gradient[1:2], alone.gradient, rtol=1e-6)


@pytest.mark.parametrize("grad_enabled", [True, False])
def test_nothing_is_changed(grad_enabled: bool) -> None:
    network, pixels = normed().train(), images()
    network[1].eval()
    network[0].bias.requires_grad_(False)
    network[5].bias.grad = torch.ones(5, dtype=torch.float64)
    before, kept = deepcopy(network), pixels.clone()
    with torch.set_grad_enabled(grad_enabled):
        result = saliency(network, pixels, torch.tensor([0, 4, 2]))
    assert result.gradient.max() > 0
    assert all(value.equal(before.state_dict()[key]) for key, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == [True, True, False, True, True, True, True]
    for parameter, same in zip(network.parameters(), before.parameters(), strict=True):
        assert parameter.requires_grad == same.requires_grad
        assert (parameter.grad is None) == (parameter is not network[5].bias)
    assert network[5].bias.grad.tolist() == [1, 1, 1, 1, 1]
    assert pixels.equal(kept)
    assert pixels.requires_grad is False
    assert pixels.grad is None


def test_modes_come_back_after_a_failure() -> None:
    network = normed().train()
    with pytest.raises(RuntimeError):
        saliency(network, images(side=5), torch.tensor([0, 4, 2]))
    assert all(module.training for module in network.modules())


def test_a_timm_network() -> None:
    network = build("test_efficientnet", 4, "none", activation_checkpointing=True)
    result = saliency(network, images(2, 32).float(), torch.tensor([0, 3]))
    assert result.gradient.shape == (2, 32, 32)
    assert (result.gradient > 0).mean() > 0.9


def test_display_goes_from_0_to_the_99th_percentile() -> None:
    gradient = np.arange(10_000, dtype=np.float32).reshape(1, 100, 100)
    shown = normalise(np.concatenate([gradient, gradient * 1e-9]))
    assert shown.dtype == np.uint8
    assert [shown[0].flat[place] for place in (0, 4950, 9898, 9900, 9999)] == [0, 128, 255, 255, 255]
    assert (shown[0] < 255).mean() == pytest.approx(0.988, abs=0.002)
    np.testing.assert_array_equal(shown[0], shown[1])  # each image has its own scale


def test_display_of_maps_that_are_almost_black() -> None:
    gradient = np.zeros((4, 20, 20), dtype=np.float32)
    gradient[1, 3, 4] = 2.0
    gradient[2] = np.nan
    gradient[2, 0, 0] = np.inf
    gradient[3] = 3.0
    gradient[3, 5, 6] = np.nan
    shown = normalise(gradient)
    assert shown[0].max() == 0
    assert shown[1].max() == shown[1, 3, 4] == 255
    assert (shown[1] > 0).sum() == 1
    assert shown[2].max() == 0
    assert shown[3, 5, 6] == 0
    assert (shown[3] == 255).sum() == 399  # one number that is none does not hide the others
