"""Work beside the training: one thread writes files, in the order they were given, while the next epoch goes on.

Before it: train has an epoch's results. After it: the run folder has them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec

P = ParamSpec("P")


class Beside:
    """Calls functions one after the other in a thread; leaving the `with` waits for the last.

    What one of them raises is raised by the next call, or on leaving: no error is lost.
    """

    def __init__(self) -> None:
        """Nothing is under way."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="beside")
        self._pending: deque[Future[None]] = deque()

    def __call__(self, work: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> None:
        """Do this next. Raises what an earlier one raised."""
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(work, *arguments, **named))

    def __enter__(self) -> Beside:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for all; raise what one of them raised, unless another error is on its way."""
        self._pool.shutdown()
        while kind is None and self._pending:
            self._pending.popleft().result()
