"""How numbers are computed: bfloat16 or float32, compiled or not, and the switches of backends and allocator, in one place.

Before it: a network from `network`. After it: train, average and evaluate all call `forward`.

One switch cannot be here, because OpenMP reads it when torch is loaded: train.py and eval.py set OMP_WAIT_POLICY to
PASSIVE before they import torch. OpenMP's threads otherwise spin while they wait, on cores that the loader needs.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

import torch
from torch import nn

_M_TRIM_THRESHOLD: Final = -1  # glibc, malloc.h
_M_MMAP_MAX: Final = -4
_NEVER: Final = 2**31 - 1


def has_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16.

    Where it has none torch computes it all the same, in emulation: on a CPU with AVX2 alone, EfficientNet-lite0 took
    12 times as long as in float32, and more (docs/log.md, 2026-11-24).
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def forward(network: nn.Module, images: torch.Tensor, bf16: bool) -> torch.Tensor:
    """Logits, float32 `[B, K]`, of images `[B, 3, S, S]`; in bfloat16 inside, where autocast allows, if `bf16`."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
        logits: torch.Tensor = network(images)
    return logits.float()


def compiled(network: nn.Module, size: int, bf16: bool) -> tuple[nn.Module, str]:
    """The network as it is called, sharing its parameters: compiled, on a GPU into CUDA graphs; and "", or why it is not.

    It is tried on one image `[1, 3, size, size]`, in evaluation mode, without a gradient: a compiler fails at the first
    call. Each of an epoch's two batch sizes gets a graph of its own (`dynamic=False`). What a graph returns is valid until
    the next call; a step has used its logits by then. Source: torch's docs, "CUDAGraph Trees".
    """
    device, training = next(network.parameters()).device, network.training
    graphs = "reduce-overhead" if device.type == "cuda" else "default"
    try:
        called: nn.Module = torch.compile(network, mode=graphs, dynamic=False)  # type: ignore[assignment]
        network.eval()
        with torch.no_grad():
            forward(called, torch.zeros(1, 3, size, size, device=device), bf16)
    except Exception as error:  # compilers have errors of their own
        return network, f"not compiled ({' '.join(str(error).split())[:200]}); the step runs as it is"
    finally:
        network.train(training)
    return called, ""


def use_fast_kernels(device: torch.device) -> None:
    """On a GPU: let cuDNN try its algorithms once a shape, and let float32 products use TF32.

    On a CPU under glibc: keep freed memory. Activations of tens of megabytes otherwise go back to the kernel at every
    step and are zeroed again at the next, a fifth of the step's core time (docs/log.md, 2026-11-24).
    """
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    if sys.platform == "linux" and device.type == "cpu":
        tune = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if tune is not None:
            tune(_M_MMAP_MAX, 0)
            tune(_M_TRIM_THRESHOLD, _NEVER)
