"""Writes files beside the training: one thread, in the order they were given, while the next epoch goes on.

Before it: train has an epoch's results. After it: the run folder has them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec

P = ParamSpec("P")


class Writer:
    """Calls functions one after the other in a thread of its own; leaving the `with` waits for the last.

    After one has failed no later one is called, as if they had been called here: what a file says of the ones before
    it stays true. `wait` raises that failure, and so does leaving, unless another error is on its way.
    """

    def __init__(self) -> None:
        """Nothing is under way."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._pending: list[Future[None]] = []
        self._failure: Exception | None = None

    def __call__(self, work: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> None:
        """Do this next."""

        def attempt() -> None:
            if self._failure is None:
                try:
                    work(*arguments, **named)
                except Exception as error:  # whatever it is, `wait` raises it
                    self._failure = error

        self._pending.append(self._pool.submit(attempt))

    def wait(self) -> None:
        """Until all of it is done. Raises what one of them raised."""
        while self._pending:
            self._pending.pop(0).result()
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Writer:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for all; raise what one of them raised, unless another error is on its way."""
        self._pool.shutdown()
        if kind is None:
            self.wait()
