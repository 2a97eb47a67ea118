"""Host reads: which lines of torch made the host wait for a value of the device, seen also where the device is the CPU.

Before it: a loop that should read nothing. After it: tests/test_sync.py and the GPU check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from cache.store import Pack
from model.ema import MovingAverage
from model.loss import smoothed_cross_entropy
from model.network import build
from model.progress import Losses
from model.step import train_step
from pipelines.augment import Augment
from pipelines.loader import DeviceName, Loader, Resources

aten = torch.ops.aten
WARM = 6
"""Steps before the watch begins: a ring is filled by then, and cuDNN has tried its algorithms."""
WATCHED = 6
_OPERATORS = {
    aten._local_scalar_dense.default,  # item, float, int, bool, if, and indexing by a tensor of the host
    aten.is_nonzero.default,
    aten.equal.default,
    aten.nonzero.default,  # its output's size is data; so are the next ones'
    aten.masked_select.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
}
_METHODS = {"tolist", "numpy", "cpu", "__array__", "__repr__", "__format__"}
"""Of a tensor: they read its memory without an operator where that is the host's."""


def _indexes_by_mask(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether the size of the result is data: an index of truth values is turned into places first."""
    indices = args[1] if func in (aten.index.Tensor, aten.index_put_.default) else ()
    return any(index is not None and index.dtype == torch.bool for index in indices)


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, found: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _OPERATORS or _indexes_by_mask(func, args):
            self.found.append(str(func))
        return func(*args, **kwargs or {})


class _Methods(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__name__", "") in _METHODS:
            self.found.append(func.__name__)
        return func(*args, **kwargs or {})


@contextmanager
def host_reads() -> Iterator[list[str]]:
    """For as long as the block runs, the names of what this thread reads from tensors, in order."""
    found: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(_Operators(found))
        stack.enter_context(_Methods(found))
        yield found


@contextmanager
def syncs_raise() -> Iterator[None]:
    """For as long as the block runs, an operation of torch that waits for the GPU raises."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def walk(pack: Pack, device: DeviceName, watch: Callable[[], AbstractContextManager[Any]]) -> Any:
    """Take steps as an epoch does: loader, views, step, moving average, sum of losses. The last of them under `watch`."""
    target = torch.device("cuda" if device == "gpu" else "cpu")
    network = build("test_efficientnet", len(pack.classes), weights="none").to(target).train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)
    average, loss = MovingAverage(network, 0.9), smoothed_cross_entropy(0.1, len(pack.classes))
    losses = Losses(0.0, target)
    resources, ids = Resources(device=device, threads=1), pack.ids("train")
    with (
        Loader(pack, Augment(size=32), ids, resources, batch_size=4, shuffle=True, views=2) as loader,
        ExitStack() as stack,
    ):
        found = None
        for number, batch in enumerate(islice(loader, WARM + WATCHED)):
            found = stack.enter_context(watch()) if number == WARM else found
            value = train_step(network, optimiser, *batch.flat(), loss, 0.01, bf16=device == "gpu")
            average.update(network)
            losses.add(value, len(batch.ids), number)
    return found
