"""What a training would need: memory counted, steps timed; and whether steps repeat bit for bit.

Before it: a network and a recipe's numbers. After it: `greyhound train --dry-run` and `--verify-determinism`
print what came of it, and every program says what to lower when memory runs out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from greyhound.cache.errors import one_line
from greyhound.model.network import eval_mode, preserve_state, set_train_mode
from greyhound.model.precision import forward
from greyhound.model.report.text import duration
from greyhound.model.run import RecipeError

_COPIES: Final = 4
"""Of every parameter: itself, its gradient, its momentum, and what it was when the epoch began."""

_SAID: Final = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
"""How torch's CPU allocator, CUDA's runtime and CUDA's libraries put it, all in a plain RuntimeError."""


@contextmanager
def refusing_out_of_memory(size: str, remedy: str) -> Iterator[None]:
    """Raise RecipeError where the block runs out of memory. size: at what; remedy: what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in _SAID):
            raise
        raise RecipeError(f"out of memory at {size}; {remedy}") from None


@dataclass(frozen=True)
class Memory:
    """parameters: numbers that training changes. fixed: bytes of any batch; per_image: bytes an image."""

    parameters: int
    fixed: int
    per_image: int

    def batch(self, images: int) -> int:
        """Bytes of a step with a batch of so many images; the library's own workspace comes on top."""
        return self.fixed + images * self.per_image

    def fitting(self, nbytes: float) -> int:
        """The largest batch of images that so many bytes hold."""
        return max(0, int((nbytes - self.fixed) // self.per_image))


def measure_memory(network: nn.Module, size: int, bf16: bool, freeze_bn: bool = False) -> Memory:
    """Count what autograd saves for the backward pass of images `[B, 3, size, size]`, by saved-tensor hooks.

    Each storage counts once, parameters not at all; two batch sizes tell what is for every image from what is
    once. The network's modes and statistics are left as they were.
    """
    with eval_mode(network), preserve_state(network):
        set_train_mode(network, freeze_bn)
        one, two = (_saved_bytes(network, count, size, bf16) for count in (2, 4))
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    fixed = _COPIES * sum(parameter.nbytes for parameter in parameters)
    return Memory(
        parameters=sum(parameter.numel() for parameter in parameters),
        fixed=fixed + sum(buffer.nbytes for buffer in network.buffers()),
        per_image=(two - one) // 2 + 3 * size * size * 4,
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


TIMED_STEPS: Final = 4
"""Steps that a dry run times. The first is slower and does not count."""
_TIMED_IMAGES: Final = 8
REPEATED_STEPS: Final = 20
"""Steps that are taken twice and compared."""
_CARD: Final = 8e9
"""Bytes of the GPU that the author's recipe was made on."""


@torch.no_grad()
def check_input_size(network: nn.Module, name: str, size: int, bf16: bool) -> None:
    """Refuse a size that the network does not take: pass one `[1, 3, size, size]`. Raises RecipeError."""
    device = next(network.parameters()).device
    try:
        with eval_mode(network):
            forward(network, torch.zeros(1, 3, size, size, device=device), bf16)
    except Exception as error:  # networks have errors of their own
        found = f"{name} does not take an image of {size} px ({one_line(error)})"
        raise RecipeError(f"{found}; choose another --size or --network") from None


@torch.no_grad()
def check_single_image(network: nn.Module, size: int, bf16: bool) -> None:
    """Refuse steps of one image where BatchNorm then sees one value a channel. Raises RecipeError."""
    image = torch.zeros(1, 3, size, size, device=next(network.parameters()).device)
    try:
        with eval_mode(network), preserve_state(network):
            forward(network.train(), image, bf16)
    except ValueError:
        needed = f"at {size} px BatchNorm needs two images a step, and each process gets one"
        raise RecipeError(f"{needed}; raise --batch-size, or add --freeze-bn") from None


def estimate(
    network: str, memory: Memory, seconds: Sequence[float], batch: int, steps: int, epochs: int, passes: int
) -> list[str]:
    """What the training would take, in lines.

    network: its name and precision. seconds: of each of the timed steps, on its own batches. batch:
    its images. steps: an epoch. passes: of the training set more, for the averaging.
    """
    step = statistics.median(seconds[1:])
    count = f"{epochs} epoch{'s' if epochs != 1 else ''}"
    each, fixed = f"{memory.per_image / 1e6:.1f} MB", f"{memory.fixed / 1e6:.1f} MB"
    gigabytes, fitting = memory.batch(batch) / 1e9, memory.fitting(_CARD)
    epoch = step * steps
    return [
        f"network: {network}; {memory.parameters:,} parameters",
        f"memory: {each} an image and {fixed} besides: a batch of {batch} takes {gigabytes:.2f} GB; "
        f"{_CARD / 1e9:.0f} GB hold {fitting} images (counted; what libraries need comes on top)",
        f"steps: {steps:,} an epoch, {steps * epochs:,} in {count}; "
        f"averaging passes {passes} times more over the training set",
        f"time: {step:.3f} s a step, the median of {len(seconds) - 1} here; {duration(epoch)} an epoch, "
        f"{duration(epoch * (epochs + passes))} in all, validation not counted",
    ]


@torch.no_grad()
def estimate_probe(network: nn.Module, size: int, bf16: bool, counts: Sequence[int]) -> str:
    """How long a linear probe's pass would take, in a line. counts: training and validation images."""
    device = next(network.parameters()).device
    images = torch.zeros(_TIMED_IMAGES, 3, size, size, device=device).to(memory_format=torch.channels_last)
    seconds = []
    with eval_mode(network):
        for _ in range(TIMED_STEPS):
            started = time.perf_counter()
            forward(network, images, bf16).sum().item()
            seconds.append((time.perf_counter() - started) / len(images))
    each = statistics.median(seconds[1:])
    passed = f"one pass over {counts[0]:,} training and {counts[1]:,} validation images"
    return (
        f"linear probe: {passed}, {1000 * each:.1f} ms an image here, {duration(each * sum(counts))} in all; "
        "decoding, and fitting the head, come on top"
    )


def compare(hashes: Sequence[str]) -> tuple[bool, str]:
    """Whether two times `REPEATED_STEPS` steps came to one hash, and a line that says so."""
    first, second = hashes
    same = first == second
    verdict = "equal, bit for bit" if same else "which differ: this machine does not compute the same twice"
    return same, f"{REPEATED_STEPS} steps twice: weights {first[:16]} and {second[:16]}, {verdict}"
