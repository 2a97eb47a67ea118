"""The maps are what captum says they are, the gradient is the derivative, and looking changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any, cast

import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam, NoiseTunnel, Saliency
from runs import Patch
from scipy.stats import spearmanr
from torch import nn
from torch.nn import functional

from greyhound.model import saliency as module
from greyhound.model.network import build
from greyhound.model.saliency import (
    grad_cam,
    normalise,
    peaks,
    rank_correlation,
    saliency,
    smoothgrad,
    with_head,
)


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


LABELS = torch.tensor([0, 3, 2])


def timm_network(grid: int = 0, name: str = "test_efficientnet") -> nn.Module:
    torch.manual_seed(0)
    return build(name, 4, "none", grid=grid).eval()


def losses(network: nn.Module, labels: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """What captum is to differentiate: the loss of each image."""
    return lambda pixels: functional.cross_entropy(network(pixels), labels, reduction="none")


def draws(place: slice, copy: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(copy)
    return torch.randn(3, 3, 64, 64, generator=generator)[place]


def test_the_gradient_is_captums() -> None:
    network, pixels = timm_network(), images(side=64).float()
    expected = Saliency(losses(network, LABELS)).attribute(pixels.requires_grad_()).amax(1)
    found = saliency(network, pixels, LABELS).gradient
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * found.max())


def test_smoothgrad_is_captums_on_the_same_noise(monkeypatch: Patch) -> None:
    """Of three images, two at a time; each has a spread of its own, so captum gets them one by one."""
    network, pixels = timm_network(), images(side=64).float()
    pixels[1] = pixels[1] * 0.5 - 3
    found = smoothgrad(network, pixels, LABELS, draws, 3, 0.2)
    for place in range(3):
        one, sigma = pixels[place : place + 1], 0.2 * float(pixels[place].max() - pixels[place].min())
        noise = torch.cat([draws(slice(place, place + 1), copy) for copy in range(3)])
        monkeypatch.setattr(torch, "normal", lambda *_, given=sigma * noise, **__: given)
        tunnel = NoiseTunnel(Saliency(losses(network, LABELS[place : place + 1].repeat(3))))
        options = {"nt_samples": 3, "nt_type": "smoothgrad", "stdevs": sigma, "abs": False}
        expected = tunnel.attribute(one.clone().requires_grad_(), **options).abs().amax(1)
        np.testing.assert_allclose(found[place], expected[0], rtol=1e-3, atol=1e-5 * found[place].max())
    assert not np.allclose(found, saliency(network, pixels, LABELS).gradient, rtol=0.1)


def captums_cam(network: nn.Module, layer: nn.Module, pixels: torch.Tensor, relu: bool) -> torch.Tensor:
    cam = LayerGradCam(network, layer).attribute(pixels, LABELS, relu_attributions=relu)
    assert isinstance(cam, torch.Tensor)
    return cam.detach()


def resized(cam: torch.Tensor, side: int = 64) -> torch.Tensor:
    made = LayerAttribution.interpolate(cam, (side, side), "bilinear")
    assert isinstance(made, torch.Tensor)
    return made


def test_grad_cam_is_captums_of_the_last_stage() -> None:
    network, pixels = timm_network(), images(side=64).float()
    expected = resized(captums_cam(network, network.get_submodule("blocks.4"), pixels, relu=True))[:, 0]
    found = grad_cam(network, pixels, LABELS)
    assert found is not None
    assert found.max() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * found.max())


def test_grad_cam_of_a_grid_head_adds_what_it_takes_of_either_stage() -> None:
    """Captum sees what the head takes of the stage before alone once the last one is cut off from it."""
    network, pixels = timm_network(grid=2), images(side=64).float()
    before, last = (network.get_submodule(f"features.network.blocks.{stage}") for stage in (3, 4))
    cam = captums_cam(network, last, pixels, relu=False)
    last.register_forward_hook(lambda _, __, output: output.detach())
    direct = captums_cam(network, before, pixels, relu=False)
    assert (cam.shape, direct.shape) == ((3, 1, 2, 2), (3, 1, 4, 4))
    expected = resized((resized(cam, 4) + 4 * direct).relu())[:, 0]
    found = grad_cam(network, pixels, LABELS)
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * float(expected.max()))


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_networks_without_such_maps_have_none(name: str) -> None:
    network = timm_network(name=name)
    assert (grad_cam(network, images(side=160).float(), LABELS) is None) == (name == "test_vit")


@pytest.mark.parametrize("name", ["test_mambaout", "swin_s3_tiny_224"])
def test_grad_cam_of_stages_with_channels_last_is_captums_of_the_same_turned_round(name: str) -> None:
    torch.manual_seed(0)
    network = build(name, 4, "none").eval()
    pixels, layer = (
        images(side=224).float(),
        network.get_submodule(cast(Any, network).feature_info[-1]["module"]),
    )
    found = grad_cam(network, pixels, LABELS)

    def turned(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, turn(output.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)

    turn = nn.Identity()
    network.add_module("turn", turn)
    layer.register_forward_hook(turned)
    expected = resized(captums_cam(network, turn, pixels, relu=True), 224)[:, 0]
    assert found is not None and found.max() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * found.max())


def test_a_random_head_of_several_changes_all_of_them() -> None:
    network, random = (build("deit_tiny_distilled_patch16_224", 4, "none") for _ in range(2))
    mixed = with_head(network, random)
    for name in ("head.weight", "head_dist.weight"):
        assert mixed.get_parameter(name).equal(random.get_parameter(name))


def test_looking_leaves_no_trace() -> None:
    network, pixels = timm_network(grid=1).train(), images(side=64).float()
    before, kept = deepcopy(network), pixels.clone()
    grad_cam(network, pixels, LABELS)
    smoothgrad(network, pixels, LABELS, draws, 2, 0.1)
    assert all(value.equal(before.state_dict()[key]) for key, value in network.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert pixels.equal(kept) and not pixels.requires_grad


@pytest.mark.parametrize("grid", [0, 1])
def test_a_random_head_changes_the_head_alone(grid: int) -> None:
    network, random = timm_network(grid), build("test_efficientnet", 4, "none", grid=grid)
    mixed = with_head(network, random)
    head = {f"classifier.{name}" for name in ("weight", "bias")}
    assert head < network.state_dict().keys()
    for key, value in mixed.state_dict().items():
        assert value.equal((random if key in head else network).state_dict()[key])
    assert not network.get_parameter("classifier.weight").equal(random.get_parameter("classifier.weight"))


def test_the_rank_correlation_is_scipys_with_ties() -> None:
    maps = np.random.default_rng(0).normal(size=(2, 4, 8, 8)).astype(np.float32)
    maps[0] = maps[0] + maps[1]
    maps[:, 1] = maps[:, 1].clip(0)  # half of the pixels tie, as in Grad-CAM
    maps[1, 3] = 5
    found = rank_correlation(*maps)
    expected = [
        spearmanr(one.ravel(), other.ravel()).statistic for one, other in zip(*maps[:, :3], strict=True)
    ]
    np.testing.assert_allclose(found[:3], expected, rtol=1e-12)
    assert np.isnan(found[3])


def test_a_peak_is_the_highest_pixel_and_the_middle_of_equal_ones() -> None:
    maps = np.zeros((4, 5, 6), np.float32)
    maps[0, 1, 4] = 2
    maps[1, 0:3, 2:5] = 7
    maps[3] = np.nan
    assert peaks(maps).tolist() == [[4, 1], [3, 1], [-1, -1], [-1, -1]]


def test_shapes_and_types() -> None:
    result = saliency(normed(), images(), torch.tensor([0, 4, 2]))
    described = [(value.shape, value.dtype) for value in vars(result).values()]
    assert described == [((3, 4, 4), np.float32), ((3,), np.float32), ((3,), np.int64)]


def test_loss_and_prediction_are_those_of_the_logits() -> None:
    network, labels = normed().eval(), [0, 4, 2]
    with torch.no_grad():
        probabilities = network(images()).softmax(dim=1).numpy()
    result = saliency(network, images(), torch.tensor(labels))
    assert result.predictions.tolist() == probabilities.argmax(1).tolist()
    np.testing.assert_allclose(result.loss, -np.log(probabilities[np.arange(3), labels]), rtol=1e-5)


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
