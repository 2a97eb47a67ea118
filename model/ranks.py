"""One training on several processes, as torchrun starts them: which of them this is, and what they know together.

Before it: torchrun, or nothing; then there is one process, rank 0 of 1, and every function here hands back what it was
given. After it: train and eval read their share of each batch, `step` and `swa` add up over the ranks, and rank 0 alone
writes. Tensors on a GPU go by NCCL, all else by gloo, so that a word between the ranks waits for no GPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

P = ParamSpec("P")
T = TypeVar("T")

_HOST: Final = torch.device("cpu")
_FAILED: Final = 2
"""Exit code of a rank that leaves because rank 0 says what is wrong."""


class RanksError(RuntimeError):
    """The processes of a training are no longer all there; the message is one line for the user."""


def rank() -> int:
    """Which process this is, 0..count - 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def leads() -> bool:
    """Whether this is rank 0, which writes and speaks."""
    return rank() == 0


def neighbours() -> int:
    """Processes on this machine, which share its cores and its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if dist.is_initialized() else 1


def restarted() -> bool:
    """Whether torchrun has started these processes again after one of them died (`--max-restarts`)."""
    return _restarts() > 0


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Be one of the processes that torchrun started, for as long as the block runs; the others' output is silenced.

    On GPUs each process takes the one of its number on the machine. Raises RanksError in a rank that goes on when
    another has died.
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    _meet("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    with contextlib.ExitStack() as stack:
        if not leads():
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        try:
            yield
        except RuntimeError as error:
            if not _another_died(error):
                raise
            raise RanksError(
                f"another process of this training has ended, and rank {rank()} ends with it; its own message says why"
            ) from None
        dist.destroy_process_group()


def reporting(main: Callable[[], int]) -> Callable[[], int]:
    """`main`, whose error torchrun repeats in its summary, as one line.

    torch.distributed.elastic's `record` does so with the traceback; the file's format is the one that its
    `ProcessFailure` reads (torch/distributed/elastic/multiprocessing/errors).
    """

    def reported() -> int:
        try:
            return main()
        except Exception as error:
            file = os.environ.get("TORCHELASTIC_ERROR_FILE")
            if file and not isinstance(error, RanksError):
                content = {"message": f"error: {error}", "timestamp": int(time.time())}
                Path(file).write_text(json.dumps(content), encoding="utf-8")
            raise

    return reported


def first_alone(work: Callable[P, object], *arguments: P.args, **named: P.kwargs) -> None:
    """Do this on rank 0; the others do not wait."""
    if leads():
        work(*arguments, **named)


def from_first(work: Callable[[], T]) -> T:
    """What `work` returns on rank 0, on every rank, none of which goes on before.

    Where it raises on rank 0, the others leave without a word, once rank 0 has left with its message.
    """
    if count() == 1:
        return work()
    answer: list[Any] = [None, None]
    try:
        if leads():
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


def largest(value: int) -> int:
    """The largest of the ranks' values."""
    if count() == 1:
        return value
    found = torch.tensor(value)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def agreed(stop: Callable[[], int | None]) -> Callable[[], int | None]:
    """The signal that asked any of the ranks for an end, as all of them see it before the same batch."""
    return stop if count() == 1 else lambda: largest(stop() or 0) or None


def add_up(values: Iterable[torch.Tensor]) -> None:
    """Replace each tensor by its sum over the ranks."""
    for value in values if count() > 1 else ():
        dist.all_reduce(value)


def least(value: torch.Tensor) -> None:
    """Replace the tensor by its least over the ranks, element by element."""
    if count() > 1:
        dist.all_reduce(value, dist.ReduceOp.MIN)


def take_from_first(tensors: Iterable[torch.Tensor]) -> None:
    """Replace each tensor by rank 0's."""
    for tensor in tensors if count() > 1 else ():
        dist.broadcast(tensor.detach(), 0)


def gathered(rows: torch.Tensor) -> torch.Tensor:
    """`[n, ...]` of every rank, one rank after the other: all of them on rank 0, none `[0, ...]` elsewhere."""
    if count() == 1:
        return rows
    counts = torch.zeros(count(), dtype=torch.int64)
    counts[rank()] = len(rows)
    dist.all_reduce(counts)
    padded = rows.new_zeros(int(counts.max()), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(count())] if leads() else None
    dist.gather(padded, parts)
    if parts is None:
        return rows[:0]
    return torch.cat([part[:length] for part, length in zip(parts, counts.tolist(), strict=True)])


def parallel(network: nn.Module) -> nn.Module:
    """The network as it is called in training: the ranks' gradients are averaged as they come (Li et al. 2020).

    Every step begins with rank 0's BatchNorm statistics.
    """
    if not dist.is_initialized():
        return network
    device = next(network.parameters()).device
    return DistributedDataParallel(network, [device.index] if device.type == "cuda" else None)


def part_randomness() -> None:
    """Let dropout draw other numbers on each rank; rank 0's stay what one process draws."""
    if not leads():
        torch.manual_seed(int(torch.randint(2**62, ())) + rank())


def _restarts() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def _meet(backend: str) -> None:
    """Make the process group. What an attempt before this one left in torchrun's store are addresses of the dead."""
    store, mine, all_of_them = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    store = dist.PrefixStore(f"attempt {_restarts()}", store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=mine, world_size=all_of_them)


def _another_died(error: RuntimeError) -> bool:
    """Whether this is how gloo or NCCL say so."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)
