"""What is written down of the batch at which a training diverged; test_train.py has whole trainings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import TINY, Patch, tiny_context

from greyhound.cache.store import Pack
from greyhound.divergence import raise_if_diverged
from greyhound.model.report import figures
from greyhound.model.step import DivergedError


def test_its_picture_shows_the_images_before_they_are_mixed(
    colour_pack: Pack, tmp_path: Path, monkeypatch: Patch
) -> None:
    sheets: dict[str, Any] = {}
    monkeypatch.setattr(
        figures, "image_sheet", lambda path, sheet, _: sheets.update({path.parent.name: sheet})
    )
    todo = "earlier checkpoints are kept: train into another folder at a lower --lr"
    for mixup, norm, says in (
        (0.0, 0.0, f"shows them; {todo}, or with --max-grad-norm 1$"),
        (0.4, 1.0, f"shows them, before they are mixed; {todo}$"),
    ):
        recipe = replace(TINY, augment=replace(TINY.augment, mixup=mixup), max_grad_norm=norm)
        with tiny_context(colour_pack, recipe, out=tmp_path / str(mixup)) as context:
            raise_if_diverged(context)
            context.state.diverged = 14
            with pytest.raises(DivergedError, match=says):
                raise_if_diverged(context)
    assert sheets["0.0"].std() > 10 and np.array_equal(sheets["0.0"], sheets["0.4"])
