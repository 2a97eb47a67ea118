"""model/inference.py: the folded copy has the network's logits, fewer layers, and leaves the network alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from greyhound.model.network import build
from greyhound.model.precision import fuse_conv_bn


def lively(name: str) -> nn.Module:
    """A network whose BatchNorms have seen something, so that folding them changes every weight."""
    torch.manual_seed(0)
    network = build(name, 3, "none")
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    return network


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in network.modules())


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "test_resnet", "mobilenetv3_small_050"])
def test_the_copy_has_the_networks_logits_and_no_batchnorm(name: str) -> None:
    network = lively(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    copy = fuse_conv_bn(network, 64)
    assert norms(network) > 0
    assert norms(copy) == 0
    assert not any(module.training for module in copy.modules())
    assert [module.training for module in network.modules()] == modes
    assert all(value.equal(before[key]) for key, value in network.state_dict().items())
    images = torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        expected, found = network.eval()(images), copy(images)
    assert torch.allclose(found, expected, atol=1e-3 * float(expected.abs().max()))


def test_a_network_without_batchnorm_is_copied() -> None:
    network = build("test_vit", 3, "none")
    copy = fuse_conv_bn(network, 160)
    images = torch.rand(1, 3, 160, 160)
    with torch.no_grad():
        assert copy(images).equal(network.eval()(images))
    assert copy is not network


class Forked(nn.Module):
    """The convolution's output goes two ways, so it must stay what it is."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        straight = self.convolution(images)
        result: torch.Tensor = (straight + self.norm(straight)).mean((2, 3))
        return result


def test_a_convolution_that_is_used_twice_is_left_alone() -> None:
    torch.manual_seed(0)
    network = Forked()
    nn.init.constant_(network.norm.weight, 5.0)
    copy = fuse_conv_bn(network, 8)
    assert norms(copy) == 1
    images = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert copy(images).equal(network.eval()(images))


def test_a_norm_that_uses_the_batchs_own_statistics_is_left_alone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten())
    assert norms(fuse_conv_bn(network, 8)) == 1
