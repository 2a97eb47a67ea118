"""model/averaging.py: full-batch steps, the mean of their parameters, and BatchNorm refreshed for it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from reads import host_reads
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from greyhound.model.averaging import average, full_batch_step, refresh_batchnorm
from greyhound.model.step import weighted

# --- full-batch steps, and the mean of their parameters ---------------------------------------------------


Batches = list[tuple[torch.Tensor, torch.Tensor]]


def data(count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(count, 3, 4, 4, generator=generator, dtype=torch.float64)
    return images, torch.randint(5, (count,), generator=generator)


def batches(*sizes: int) -> Batches:
    images, labels = data(sum(sizes))
    bounds = [0, *accumulate(sizes)]
    return [(images[start:stop], labels[start:stop]) for start, stop in pairwise(bounds)]


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(16, 5)]
    return nn.Sequential(*layers).double()


def normed() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(16, 5)).double()


def copied(network: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


@pytest.mark.parametrize("sizes", [(12,), (6, 6), (5, 7), (1, 2, 3, 6), (11, 1), (1,) * 12])
def test_the_accumulated_gradient_is_that_of_one_batch(sizes: tuple[int, ...]) -> None:
    network, reference = plain(), plain()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3, momentum=0.9)
    first = network.get_parameter("0.weight")
    first.grad = torch.ones_like(first)  # of before, to be forgotten
    images, labels = data()
    expected = functional.cross_entropy(reference(images), labels)
    expected.backward()  # type: ignore[no-untyped-call]
    value = full_batch_step(network, batches(*sizes), 12, nn.CrossEntropyLoss(), optimizer)
    assert value == pytest.approx(expected.item(), rel=1e-12)
    for mine, theirs in zip(network.parameters(), reference.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(mine, theirs - 0.3 * theirs.grad, rtol=1e-10, atol=1e-14)


def test_a_weight_of_2_is_the_image_twice_and_0_is_without_it() -> None:
    images, labels = data(4)
    counts, found = torch.tensor([1, 2, 0, 3]), []
    copies = [(images.repeat_interleave(counts, 0), labels.repeat_interleave(counts))]
    weights = counts * 4 / 6
    parts = [(images[k : k + 2], labels[k : k + 2], weights[k : k + 2]) for k in (0, 2)]
    passes: list[tuple[list[Any], int]] = [(copies, 6), (parts, 4), ([(images, labels)], 4)]
    for batches, count in passes:
        network, loss = plain(), weighted(nn.CrossEntropyLoss(label_smoothing=0.1))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.3)
        value = full_batch_step(network, batches, count, loss, optimizer)
        found.append((value, network.get_parameter("0.weight").detach()))
    (expected, moved), (value, weight), (without, _) = found
    assert value == pytest.approx(expected, rel=1e-6) != without
    torch.testing.assert_close(weight, moved, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("sizes", "images"), [((5, 6), 12), ((6, 7), 12), ((), 12)])
def test_a_pass_of_another_length_makes_no_step(sizes: tuple[int, ...], images: int) -> None:
    network = plain()
    before = copied(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3)
    with pytest.raises(ValueError, match=f"gave {sum(sizes)} images; expected the whole training set, 12"):
        full_batch_step(network, batches(*sizes), images, nn.CrossEntropyLoss(), optimizer)
    assert all(value.equal(before[key]) for key, value in network.state_dict().items())


def test_the_loss_is_read_once() -> None:
    network = plain()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3, momentum=0.9)
    with host_reads() as found:
        full_batch_step(network, batches(1, 2, 3, 6), 12, nn.CrossEntropyLoss(), optimizer)
    assert found.count("aten._local_scalar_dense.default") == 1


def by_hand(network: nn.Module, steps: int, rate: float) -> list[list[torch.Tensor]]:
    """The parameters after each step of gradient descent, written out."""
    images, labels = data()
    after = []
    for _ in range(steps):
        loss = functional.cross_entropy(network(images), labels)
        gradient = torch.autograd.grad(loss, list(network.parameters()))
        with torch.no_grad():
            for parameter, slope in zip(network.parameters(), gradient, strict=True):
                parameter.sub_(rate * slope)
        after.append([parameter.detach().clone() for parameter in network.parameters()])
    return after


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_average_is_of_the_parameters_after_each_step(steps: int) -> None:
    network = plain()
    seen: list[tuple[int, float]] = []
    averaged = average(
        network,
        lambda: batches(5, 4, 3),
        12,
        nn.CrossEntropyLoss(),
        rate=0.3,
        steps=steps,
        on_step=lambda step, loss: seen.append((step, loss)),
    )
    after = by_hand(plain(), steps, 0.3)
    for mine, values in zip(averaged.parameters(), zip(*after, strict=True), strict=True):
        torch.testing.assert_close(mine.detach(), torch.stack(values).mean(0), rtol=1e-9, atol=1e-12)
    images, labels = data()
    assert [step for step, _ in seen] == list(range(steps))
    assert seen[0][1] == pytest.approx(functional.cross_entropy(plain()(images), labels).item())
    assert all(later < earlier for (_, earlier), (_, later) in pairwise(seen))


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(training: bool) -> None:
    network = normed().train(training)
    network[3].train(not training)
    before, modes = copied(network), [module.training for module in network.modules()]
    averaged = average(network, lambda: batches(6, 6), 12, nn.CrossEntropyLoss(), rate=0.3, steps=2)
    assert type(averaged) is nn.Sequential
    for one in (network, averaged):
        assert [module.training for module in one.modules()] == modes
        assert one.state_dict().keys() == before.keys()
        assert [module.momentum for module in one.modules() if isinstance(module, nn.BatchNorm2d)] == [
            0.1
        ] * 2
    assert all(value.equal(before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not averaged.get_parameter("0.weight").equal(network.get_parameter("0.weight"))
    network.train()
    network(data()[0]).sum().backward()


def test_every_step_and_batchnorm_get_a_pass_of_their_own() -> None:
    passes: list[int] = []

    def one_pass() -> Batches:
        passes.append(len(passes))
        return batches(6, 6)

    average(normed(), one_pass, 12, nn.CrossEntropyLoss(), rate=0.3, steps=3)
    assert passes == [0, 1, 2, 3]


def test_the_averages_batchnorm_is_that_of_the_data() -> None:
    averaged = average(normed(), lambda: batches(12), 12, nn.CrossEntropyLoss(), rate=0.3, steps=2)
    images, _ = data()
    scale, shift = averaged.get_parameter("0.weight"), averaged.get_parameter("0.bias")
    with torch.no_grad():
        standard = functional.batch_norm(images, None, None, scale, shift, training=True)
        hidden = averaged.get_submodule("1")(standard)
    for name, values in (("0", images), ("2", hidden)):
        torch.testing.assert_close(averaged.get_buffer(f"{name}.running_mean"), values.mean((0, 2, 3)))
        torch.testing.assert_close(averaged.get_buffer(f"{name}.running_var"), values.var((0, 2, 3)))


@pytest.mark.parametrize("sizes", [(4, 8), (1, 2, 9), (11, 1)])
def test_batches_count_by_their_images(sizes: tuple[int, ...]) -> None:
    network = normed()
    network.get_buffer("0.running_mean").add_(100)
    refresh_batchnorm(network, batches(*sizes))
    images, _ = data()
    torch.testing.assert_close(network.get_buffer("0.running_mean"), images.mean((0, 2, 3)))
    parts = [pixels.var((0, 2, 3)) * len(pixels) for pixels, _ in batches(*sizes)]
    torch.testing.assert_close(network.get_buffer("0.running_var"), torch.stack(parts).sum(0) / 12)


def test_equal_batches_are_refreshed_as_torch_does_it() -> None:
    mine, theirs = normed(), normed()
    refresh_batchnorm(mine, batches(4, 4, 4))
    update_bn(batches(4, 4, 4), theirs)
    for key in ("0.running_mean", "0.running_var", "2.running_mean", "2.running_var"):
        torch.testing.assert_close(mine.state_dict()[key], theirs.state_dict()[key])


def test_a_network_without_batchnorm_needs_no_pass() -> None:
    def never() -> Any:
        raise AssertionError("asked for a batch")
        yield

    refresh_batchnorm(plain(), never())
    with pytest.raises(AssertionError, match="asked"):
        refresh_batchnorm(normed(), never())


def test_momentum_comes_back_after_a_failure() -> None:
    network = normed()

    def fail(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        raise KeyError

    with pytest.raises(KeyError):
        refresh_batchnorm(network, batches(12), fail)
    assert network[0].momentum == 0.1


def test_forward_is_the_only_way_in() -> None:
    called: list[int] = []

    def forward(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        called.append(len(images))
        logits: torch.Tensor = network(images)
        return logits

    average(normed(), lambda: batches(5, 7), 12, nn.CrossEntropyLoss(), 0.1, 2, forward=forward)
    assert called == [5, 7] * 3


def test_bfloat16_keeps_parameters_in_float32() -> None:
    def forward(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits: torch.Tensor = network(images.float())
        assert logits.dtype == torch.bfloat16
        return logits.float()

    averaged = average(normed().float(), lambda: batches(6, 6), 12, nn.CrossEntropyLoss(), 0.1, 2, forward)
    assert {parameter.dtype for parameter in averaged.parameters()} == {torch.float32}


def test_no_steps_are_refused() -> None:
    never: Callable[[], Batches] = lambda: batches(12)  # noqa: E731
    with pytest.raises(ValueError, match="over 0 steps; expected at least 1"):
        average(plain(), never, 12, nn.CrossEntropyLoss(), 0.1, 0)


def test_frozen_statistics_stay_and_scale_and_shift_still_learn() -> None:
    network = normed()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    averaged = average(
        network, lambda: batches(5, 7), 12, nn.CrossEntropyLoss(), rate=0.3, steps=2, freeze_bn=True
    )
    after = averaged.state_dict()
    running = [name for name in before if "running" in name or "tracked" in name]
    assert running
    assert all(torch.equal(before[name], after[name]) for name in running)
    assert all(not torch.equal(before[name], after[name]) for name in before if name not in running)
