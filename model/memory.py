"""What a training step needs of a device's memory, counted and not guessed; and what to say where it did not suffice.

Before it: a network and a recipe's numbers. After it: `train.py --dry-run` says what fits, and every program what to
lower.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from greyhound.model.network import set_training
from greyhound.model.precision import forward
from greyhound.model.run import RunError

COPIES: Final = 4
"""Of every parameter: itself, its gradient, its momentum, and what it was when the epoch began."""

_SAID: Final = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
"""How torch's CPU allocator, CUDA's runtime and CUDA's libraries put it, all in a plain RuntimeError."""


@contextmanager
def refusing_out_of_memory(size: str, remedy: str) -> Iterator[None]:
    """Raise RunError where the block runs out of memory, on any device. size: at what; remedy: what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _SAID):
            raise
        raise RunError(f"out of memory at {size}; {remedy}") from None


@dataclass(frozen=True)
class Memory:
    """parameters: how many numbers training changes. fixed: bytes whatever the batch; per_image: bytes for each image."""

    parameters: int
    fixed: int
    per_image: int

    def batch(self, images: int) -> int:
        """Bytes of a step with a batch of so many images; the library's own workspace comes on top."""
        return self.fixed + images * self.per_image

    def fitting(self, nbytes: float) -> int:
        """The largest batch of images that so many bytes hold."""
        return max(0, int((nbytes - self.fixed) // self.per_image))


def measure_memory(
    network: nn.Module, size: int, bf16: bool, frozen_statistics: bool = False, copies: int = COPIES
) -> Memory:
    """Count what autograd saves for the backward pass of images `[B, 3, size, size]`, by saved-tensor hooks.

    copies: of every parameter that the training keeps on the device.

    Each storage counts once, parameters not at all; two batch sizes tell what is for every image from what is once.
    The network's modes and statistics are left as they were.
    """
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    try:
        set_training(network, frozen_statistics)
        one, two = (_saved_bytes(network, count, size, bf16) for count in (2, 4))
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
        for module, mode in modes:
            module.training = mode
    image = 3 * size * size * 4
    weights = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    return Memory(
        parameters=sum(parameter.numel() for parameter in parameters),
        fixed=copies * weights + sum(buffer.nbytes for buffer, _ in buffers),
        per_image=(two - one) // 2 + image,
    )


def _saved_bytes(network: nn.Module, count: int, size: int, bf16: bool) -> int:
    device = next(network.parameters()).device
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    seen: dict[int, int] = {}
    kept: list[torch.Tensor] = []  # so that no storage is freed and its address used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    images = torch.zeros(count, 3, size, size, device=device).to(memory_format=torch.channels_last)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward(network, images, bf16).sum()
    del loss
    return sum(seen.values())
