"""ToDevice: from the host's memory to the device, without waiting for it.

Before it: a batch in the host's memory, page-locked where there is a GPU. After it: the batch on the device, for whatever
is queued next on the current stream. `loader` has one of these for each stream of batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch


class ToDevice:
    """Copies that a GPU makes when their turn comes; it holds their sources until then, which nobody may use again before."""

    def __init__(self, device: torch.device, event: Callable[[], Any] = torch.cuda.Event) -> None:
        """event: makes what is recorded on a stream, and says later whether the stream has come by."""
        self._device, self._event = device, event
        self._copying: deque[tuple[Any, torch.Tensor]] = deque()

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the device; itself where it is there."""
        if tensor.device.type == self._device.type:
            return tensor
        found, copied = tensor.to(self._device, non_blocking=True), self._event()
        copied.record()
        self._copying.append((copied, tensor))
        while self._copying and self._copying[0][0].query():
            self._copying.popleft()
        return found
