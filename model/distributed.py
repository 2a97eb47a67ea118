"""One training on several processes, as torchrun starts them; with one, nothing here does anything.

Before it: torchrun, or nothing. After it: train and eval read their share of each batch, `step` and
`averaging` add up over the ranks, and rank 0 alone writes. Tensors on a GPU go by NCCL, all else by gloo.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from greyhound.cache.errors import UserError, one_line

P = ParamSpec("P")
T = TypeVar("T")

_HOST: Final = torch.device("cpu")
_FAILED: Final = 2
"""Exit code of a rank that leaves because rank 0 says what is wrong."""


class DistributedError(UserError):
    """The processes of a training are not all there, or no longer."""


def rank() -> int:
    """Which process this is, 0..world_size - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank 0, which writes and speaks."""
    return rank() == 0


def local_world_size() -> int:
    """Processes on this machine, which share its cores and its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if dist.is_initialized() else 1


@contextmanager
def process_group(device: torch.device) -> Iterator[bool]:
    """Be one of the processes that torchrun started, for as long as the block runs; rank 0 alone prints.

    Gives whether they were started again after one of them died (`--max-restarts`). Each takes the GPU of its
    number on the machine. Raises DistributedError where there is none, and where another process died.
    """
    if not dist.is_torchelastic_launched():
        yield False
        return
    if device.type == "cuda":
        _take_gpu()
    restarted = _rendezvous("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    with contextlib.ExitStack() as stack:
        if not is_main():
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        try:
            yield restarted
        except RuntimeError as error:
            if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            ends = f"another process of this training has ended, and rank {rank()} ends with it"
            raise DistributedError(f"{ends}; its own message says why") from None
        dist.destroy_process_group()


def on_main(work: Callable[P, object], *arguments: P.args, **named: P.kwargs) -> None:
    """Do this on rank 0; the others do not wait."""
    if is_main():
        work(*arguments, **named)


def broadcast_from_main(work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, on every rank, none of which goes on before.

    Where it raises on rank 0, the others leave without a word, once rank 0 has left with its message.
    """
    if world_size() == 1:
        return work()
    answer: list[Any] = [None, None]
    try:
        if is_main():
            answer = [True, work()]
    except Exception:
        dist.broadcast_object_list([False, None], device=_HOST)
        raise
    dist.broadcast_object_list(answer, device=_HOST)
    if not answer[0]:
        with contextlib.suppress(RuntimeError):
            dist.all_reduce(torch.zeros(1))  # fails when rank 0 is gone
        raise SystemExit(_FAILED)
    value: T = answer[1]
    return value


def all_reduce_max(value: int) -> int:
    """The largest of the ranks' values."""
    if world_size() == 1:
        return value
    found = torch.tensor(value)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def any_rank(stop: Callable[[], int | None]) -> Callable[[], int | None]:
    """The signal that asked any of the ranks for an end, as all of them see it before the same batch."""
    return stop if world_size() == 1 else lambda: all_reduce_max(stop() or 0) or None


def all_reduce_sum(values: Iterable[torch.Tensor]) -> None:
    """Replace each tensor by its sum over the ranks."""
    for value in values if world_size() > 1 else ():
        dist.all_reduce(value)


def all_reduce_min(value: torch.Tensor) -> None:
    """Replace the tensor by its least over the ranks, element by element."""
    if world_size() > 1:
        dist.all_reduce(value, dist.ReduceOp.MIN)


def broadcast(tensors: Iterable[torch.Tensor]) -> None:
    """Replace each tensor by rank 0's."""
    for tensor in tensors if world_size() > 1 else ():
        dist.broadcast(tensor.detach(), 0)


def gather(rows: torch.Tensor) -> torch.Tensor:
    """The rows `[n, ...]` of all ranks, one after the other, on rank 0; none, `[0, ...]`, elsewhere."""
    if world_size() == 1:
        return rows
    parts: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(rows.cpu(), parts)
    return torch.cat(parts).to(rows.device) if parts else rows[:0]


def data_parallel(network: nn.Module) -> nn.Module:
    """The network as it is called in training: the ranks' gradients are averaged (Li et al. 2020).

    Every step begins with rank 0's BatchNorm statistics.
    """
    if not dist.is_initialized():
        return network
    device = next(network.parameters()).device
    return DistributedDataParallel(network, [device.index] if device.type == "cuda" else None)


def seed_per_rank() -> None:
    """Let dropout draw other numbers on each rank; rank 0's stay what one process draws."""
    if not is_main():
        torch.manual_seed(int(torch.randint(2**62, ())) + rank())


def _take_gpu() -> None:
    """Let torch use the GPU of this process's number on the machine. Raises DistributedError."""
    here, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if here > gpus:
        found = f"{here} processes on a machine where torch finds {gpus} GPUs"
        raise DistributedError(f"{found}; --nproc-per-node {gpus}")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def _rendezvous(backend: str) -> bool:
    """Make the process group; whether torchrun has started it again. Raises DistributedError.

    torchrun's store outlives the processes and holds the addresses of the dead: each attempt has keys of its
    own.
    """
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    try:
        store, mine, processes = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
        own_keys = dist.PrefixStore(f"attempt {restarts}", store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=own_keys, rank=mine, world_size=processes)
    except dist.DistError as error:
        raise DistributedError(
            f"the processes of this training did not all come: {one_line(error)}"
        ) from None
    return restarts > 0
