"""The one exception that a command line turns into one line: what was found, what was expected, what to do.

Before it: nothing. After it: every room derives its own errors from it, and `cli.run` alone catches it.
"""

from __future__ import annotations

from typing import ClassVar


class UserError(Exception):
    """Something that the user can mend. Its message is one line, and the program ends with exit code 2."""

    hung: ClassVar[bool] = False
    """Whether some thread will never end: then the program leaves without waiting for it."""


def one_line(error: BaseException) -> str:
    """What an error of another library says, on one line, cut short; its type where it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__
