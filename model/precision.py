"""How numbers are computed: bfloat16 or float32, fused, compiled; and the backends' switches.

Before it: a network from `network`. After it: train, average and evaluate all call `forward`.

One switch cannot be here, because OpenMP reads it when torch is loaded: the scripts set OMP_WAIT_POLICY to
PASSIVE before they import torch. OpenMP's threads otherwise spin while they wait, on cores that the loader
needs.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from greyhound.cache.errors import one_line
from greyhound.model.network import preserve_state

_PASSES: Final = 3
"""One compiles; on a GPU the second records CUDA graphs, and the third replays them."""
_M_TRIM_THRESHOLD: Final = -1  # glibc, malloc.h
_M_MMAP_MAX: Final = -4
_NEVER: Final = 2**31 - 1


def has_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16.

    Where it has none torch computes it all the same, in emulation: on a CPU with AVX2 alone,
    EfficientNet-lite0 took 12 times as long as in float32, and more (docs/log.md, 2026-11-24).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def forward(network: nn.Module, images: torch.Tensor, bf16: bool) -> torch.Tensor:
    """The network's output, float32, such as logits `[B, K]`, of images `[B, 3, S, S]`.

    bf16: compute in bfloat16 inside, where autocast allows.
    """
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        output: torch.Tensor = network(images)
    return output.float()


@contextmanager
def exact_products() -> Iterator[None]:
    """No TF32 in float32 products, for as long as the block runs."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def compiled(network: nn.Module, counts: Iterable[int], size: int, bf16: bool) -> tuple[nn.Module, str]:
    """The network compiled, on a GPU into CUDA graphs, sharing its parameters; and "", or why it is not.

    It is tried forward and backward, in the mode that it is in, on black images `[count, 3, size, size]` of
    each of an epoch's batch sizes, which get graphs of their own (`dynamic=False`): a compiler fails at the
    first call of what it compiles, and the backward pass is compiled by itself. The trial leaves no trace.
    What a graph returns, the gradients too, is valid until the next call; a step has used them by then.
    Source: torch's docs, "CUDAGraph Trees".
    """
    device = next(network.parameters()).device
    graphs = "reduce-overhead" if device.type == "cuda" else "default"
    learns = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        called: nn.Module = torch.compile(network, mode=graphs, dynamic=False)  # type: ignore[assignment]
        with preserve_state(network):
            for count in _PASSES * list(counts):
                black = torch.zeros(count, 3, size, size, device=device).to(memory_format=torch.channels_last)
                torch.autograd.grad(forward(called, black, bf16).sum(), learns, allow_unused=True)
    except Exception as error:  # compilers have errors of their own
        return network, f"not compiled ({one_line(error)}); the step runs as it is"
    return called, ""


def use_fast_kernels(device: torch.device) -> None:
    """On a GPU: let cuDNN try its algorithms once a shape, and let float32 products use TF32.

    On a CPU under glibc: keep freed memory. Activations of tens of megabytes otherwise go back to the kernel
    at every step and are zeroed again at the next, a fifth of the step's core time (docs/log.md, 2026-11-24).
    """
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    if sys.platform == "linux" and device.type == "cpu":
        tune = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if tune is not None:
            tune(_M_MMAP_MAX, 0)
            tune(_M_TRIM_THRESHOLD, _NEVER)


_TOLERANCE: Final = 1e-3
"""Of the largest logit: how far the copy's may lie from the network's."""


@torch.no_grad()
def fuse_conv_bn(network: nn.Module, size: int) -> nn.Module:
    """A copy in evaluation mode, BatchNorm fused, for images `[B, 3, size, size]`; equal but for rounding.

    Which convolution a BatchNorm follows is found by watching one image pass. Where the copy's results are
    not the network's, because a convolution's output is also used elsewhere, nothing is fused.
    """
    device = next(network.parameters()).device
    copy = deepcopy(network).eval().cpu()  # where the comparison is not blurred by TF32
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    names = {module: name for name, module in copy.named_modules()}
    pairs, expected = _pairs(copy, image)
    for convolution, norm in pairs:
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
    same = (copy(image) - expected).abs().max() <= _TOLERANCE * expected.abs().max()
    return copy.eval().to(device) if same else deepcopy(network).eval()


def _pairs(
    network: nn.Module, image: torch.Tensor
) -> tuple[list[tuple[nn.Conv2d, _BatchNorm]], torch.Tensor]:
    """Every convolution whose result goes to a BatchNorm with running statistics, and that BatchNorm.

    And the network's output.
    """
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
    output = network(image)
    for hook in hooks:
        hook.remove()
    return found, output


def _activation(norm: _BatchNorm) -> nn.Module:
    """What a BatchNorm does besides: timm's are followed by an activation, torch's by nothing."""
    activation = getattr(norm, "act", None)
    return activation if isinstance(activation, nn.Module) else nn.Identity()
