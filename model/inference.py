"""A copy of a network for inference, with every BatchNorm folded into the convolution before it.

Before it: a network in training, or one that is trained. After it: the head's features, validation and evaluation,
which run so a fifth faster (docs/log.md, 2026-11-24). The network itself is left as it was.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

_TOLERANCE: Final = 1e-3
"""Of the largest logit: how far the copy's may lie from the network's."""


@torch.no_grad()
def folded(network: nn.Module, size: int) -> nn.Module:
    """The network in evaluation mode, folded, for images `[B, 3, size, size]`: the same logits but for rounding.

    Which convolution a BatchNorm follows is found by watching one image pass. Where the copy's logits are not the
    network's, because a convolution's output is also used elsewhere, the copy stays unfolded.
    """
    device = next(network.parameters()).device
    plain = deepcopy(network).eval().cpu()  # where the comparison is not blurred by TF32
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    copy = deepcopy(plain)
    names = {module: name for name, module in copy.named_modules()}
    for convolution, norm in _pairs(copy, image):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        convolution.weight, convolution.bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        parent, _, leaf = names[norm].rpartition(".")
        setattr(copy.get_submodule(parent), leaf, _activation(norm))
    expected, found = plain(image), copy(image)
    same = (found - expected).abs().max() <= _TOLERANCE * expected.abs().max()
    return (copy.eval() if same else plain).to(device)


def _pairs(network: nn.Module, image: torch.Tensor) -> list[tuple[nn.Conv2d, _BatchNorm]]:
    """Every BatchNorm with statistics of its own whose input is what a convolution just returned, and that convolution."""
    returned: dict[
        int, tuple[torch.Tensor, nn.Conv2d]
    ] = {}  # the tensors are kept, so that no id is used twice
    found: list[tuple[nn.Conv2d, _BatchNorm]] = []

    def after(module: nn.Module, _: object, output: torch.Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        returned[id(output)] = (output, module)

    def before(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(module, _BatchNorm)
        if id(inputs[0]) in returned and module.running_mean is not None:
            found.append((returned[id(inputs[0])][1], module))

    hooks = [
        module.register_forward_hook(after) for module in network.modules() if isinstance(module, nn.Conv2d)
    ] + [
        module.register_forward_pre_hook(before)
        for module in network.modules()
        if isinstance(module, _BatchNorm)
    ]
    network(image)
    for hook in hooks:
        hook.remove()
    return found


def _activation(norm: _BatchNorm) -> nn.Module:
    """What a BatchNorm does besides: timm's are followed by an activation, torch's by nothing."""
    activation = getattr(norm, "act", None)
    return activation if isinstance(activation, nn.Module) else nn.Identity()
