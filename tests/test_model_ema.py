"""model/ema.py: the average is what its formula says, and goes on from its state."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from greyhound.model.averaging import MovingAverage


class Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **kwargs or {})


def weight(average: MovingAverage) -> torch.Tensor:
    """The average of a linear layer's weight."""
    found: torch.Tensor = average.network.state_dict()["weight"]
    return found


def walk(average: MovingAverage, network: nn.Module, values: list[float]) -> None:
    """Set every weight of the network to each of the values in turn, a step each."""
    for value in values:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(value)
        average.update(network)


def test_each_step_weighs_as_the_decay_says() -> None:
    network = nn.Linear(2, 2)
    average = MovingAverage(network, 0.75)
    walk(average, network, [1.0, 5.0, -3.0])
    expected = 0.75 * (0.75 * 1.0 + 0.25 * 5.0) + 0.25 * -3.0
    assert torch.allclose(weight(average), torch.full((2, 2), expected))


def test_what_was_there_before_the_first_step_does_not_count() -> None:
    network = nn.Linear(2, 2)
    average = MovingAverage(network, 0.75)
    walk(average, network, [7.0])
    assert torch.equal(weight(average), torch.full((2, 2), 7.0))


def test_buffers_are_the_networks_own() -> None:
    network = nn.BatchNorm1d(2)
    average = MovingAverage(network, 0.9)
    for _ in range(3):
        network(torch.randn(8, 2))
        average.update(network)
    assert torch.equal(average.network.state_dict()["running_mean"], network.state_dict()["running_mean"])
    assert int(average.network.state_dict()["num_batches_tracked"]) == 3


def test_buffers_are_copied_kind_by_kind() -> None:
    """Not one by one: a copy of a few numbers takes a GPU as long as a launch."""
    network = nn.Sequential(*(nn.BatchNorm1d(2) for _ in range(5)))
    average = MovingAverage(network, 0.9)
    average.update(network)
    with Calls() as calls:
        average.update(network)
    assert calls.names.count("aten._foreach_copy_.default") == 2  # statistics, and counts
    assert "aten.copy_.default" not in calls.names


def test_it_goes_on_from_its_state() -> None:
    network, again = nn.Linear(2, 2), nn.Linear(2, 2)
    whole, first, second = MovingAverage(network, 0.9), MovingAverage(network, 0.9), MovingAverage(again, 0.9)
    walk(whole, network, [1, 2, 3, 4])
    walk(first, network, [1, 2])
    second.load_state_dict(first.state_dict())
    walk(second, network, [3, 4])
    assert torch.equal(weight(second), weight(whole))
    with pytest.raises(RuntimeError):
        MovingAverage(nn.Linear(3, 2), 0.9).load_state_dict(first.state_dict())
