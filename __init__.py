"""Greyhound: from a folder of photographs to an image classifier, by way of `cache`, `pipelines`, `model`.

From Python, `api` is the front door: what `__all__` names is imported when it is first used, and not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from greyhound.api import (
        Augment,
        Batches,
        Pack,
        PackOptions,
        Resources,
        Run,
        SourceOptions,
        UserError,
        fit,
        loader,
        open_run,
        pack_images,
        show,
    )

__all__ = [
    "Augment",
    "Batches",
    "Pack",
    "PackOptions",
    "Resources",
    "Run",
    "SourceOptions",
    "UserError",
    "fit",
    "loader",
    "open_run",
    "pack_images",
    "show",
]


def __getattr__(name: str) -> Any:
    """What `__all__` names, from `api`. Raises AttributeError."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from greyhound import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
