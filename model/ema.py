"""The exponential moving average of a network's weights, taken as it trains.

Before it: a step of training. After it: the average is validated and kept in place of the network, which jumps about
what it averages as long as the learning rate is high (docs/log.md, 2026-11-24). `swa` averages after training, the seed's way.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage:
    """A network whose every parameter is `decay` times what it was plus 1 - `decay` times the trained one's, at each step.

    Unlike torch's `AveragedModel` it reads nothing from the device. Buffers are the trained network's.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """decay: 0 to below 1. The average begins at the first update."""
        self.network = deepcopy(network)
        self.updates = 0
        self._blend = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the network after one more step."""
        if self.updates == 0:
            self.network.load_state_dict(network.state_dict())
        else:
            self._blend(list(self.network.parameters()), list(network.parameters()), None)
            pairs = list(zip(self.network.buffers(), network.buffers(), strict=True))
            floats = [pair for pair in pairs if pair[0].is_floating_point()]
            counts = [pair for pair in pairs if not pair[0].is_floating_point()]
            for alike in filter(None, (floats, counts)):  # torch copies those of one kind in one call
                torch._foreach_copy_([mine for mine, _ in alike], [theirs for _, theirs in alike])
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return {"network": self.network.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`. Raises KeyError, RuntimeError if it is of another network."""
        self.network.load_state_dict(state["network"])
        self.updates = state["updates"]
