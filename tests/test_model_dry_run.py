"""model/dry_run.py: bytes counted by hand, and the product's own networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from greyhound.model.dry_run import Memory, measure_memory, refusing_out_of_memory
from greyhound.model.network import build
from greyhound.model.run import RunError


def test_two_layers_by_hand() -> None:
    """A convolution saves its input, ReLU its output, of four bytes a pixel: 3 and 8 channels of 4 x 4."""
    network = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.ReLU(), nn.Flatten())
    found = measure_memory(network, 4, bf16=False)
    assert found.parameters == 24
    assert found.fixed == 4 * 24 * 4
    batch = 3 * 16 * 4  # the image in the batch itself, which the convolution saves as its input too
    assert found.per_image == batch + 8 * 16 * 4 + batch


def test_what_fits_is_what_a_batch_needs() -> None:
    memory = Memory(parameters=10, fixed=1000, per_image=7)
    assert memory.batch(3) == 1021
    assert memory.fitting(1021) == 3
    assert memory.fitting(1020) == 2
    assert memory.fitting(10) == 0


def test_the_network_is_left_as_it_was() -> None:
    network = build("test_efficientnet", 3, "none").eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    measure_memory(network, 64, bf16=False)
    assert all(value.equal(before[key]) for key, value in network.state_dict().items())
    assert not any(module.training for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_every_way_to_run_out_of_memory_says_what_to_lower(error: Exception) -> None:
    with (
        pytest.raises(RunError, match=r"^out of memory at batch size 9; lower it$"),
        refusing_out_of_memory("batch size 9", "lower it"),
    ):
        raise error


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shape"), refusing_out_of_memory("batch size 9", "lower it"):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


@pytest.mark.slow
def test_the_products_setting_needs_at_most_056_of_float32() -> None:
    """EfficientNet-B2 at 256 px, as the seed trained it on 8 GB: fp32, bf16, and with recomputation."""
    plain = build("efficientnet_b2", 25, "none")
    again = build("efficientnet_b2", 25, "none", activation_checkpointing=True)
    sizes = {
        (name, bf16): measure_memory(network, 256, bf16).per_image / 2**20
        for name, network in (("plain", plain), ("again", again))
        for bf16 in (False, True)
    }
    image = 3 * 256 * 256 * 4 / 2**20
    assert sizes["plain", False] - image == pytest.approx(160.7, rel=0.02)  # docs/log.md, 2026-11-24
    assert sizes["plain", True] <= 0.56 * sizes["plain", False]
    assert sizes["again", False] < 0.1 * sizes["plain", False]
    assert sizes["again", True] < sizes["again", False]
    assert torch.is_grad_enabled()
