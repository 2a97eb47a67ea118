"""Several processes as torchrun starts them, without the seconds that each would spend on its imports.

Before it: nothing. After it: the tests of several ranks. A server imports torch once, and every rank is
forked from it.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Final

PRELOADED: Final = ["greyhound.train", "greyhound.eval", "timm", "pytest", "torch.distributed.run"]
"""What would take each process seconds. The server does not find the modules of tests/."""
PATIENCE: Final = 120
"""Seconds that the ranks have to answer."""


def on_ranks(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work` returns in each process, rank by rank. Raises AssertionError with a rank's traceback."""
    found = answers(count, work, *arguments)
    for rank, answer in enumerate(found):
        assert isinstance(answer, tuple), f"rank {rank}: {answer}"
    return [answer[0] for answer in found]


def answers(count: int, work: Callable[..., Any], *arguments: Any) -> list[tuple[Any] | str]:
    """What `work` returns in each of `count` processes; or why there is nothing."""
    port = free_port()
    started = [forked(_answer, rank, count, port, work, arguments) for rank in range(count)]
    try:
        return [_receive(ours) for _, ours in started]
    finally:
        for process, _ in started:
            process.kill()
            process.join()


def forked(work: Callable[..., None], *arguments: Any) -> tuple[Any, Connection]:
    """A process that calls `work(connection, *arguments)`, past its imports; and where it is heard."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(theirs, *arguments))
    process.start()
    theirs.close()
    return process, ours


def _receive(ours: Connection) -> tuple[Any] | str:
    if not ours.poll(PATIENCE):
        return "no answer in time"
    try:
        found: tuple[Any] | str = pickle.loads(ours.recv_bytes())
    except EOFError:
        return "ended without an answer"
    return found


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _answer(
    answer: Connection, rank: int, count: int, port: int, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """One rank: its environment is what torchrun's would be."""
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    import torch

    torch.set_num_threads(1)
    try:
        found: Any = (work(*arguments),)
    except BaseException:  # whatever it is, the test shows it
        found = traceback.format_exc()
    # `send` would hand tensors over in memory that ends with the process.
    answer.send_bytes(pickle.dumps(found))
