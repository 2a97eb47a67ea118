"""explain.py: the right images, the gradient of the loss at their pixels, and a network left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from runs import ONE_THREAD, Here

from greyhound import explain
from greyhound.cache.cli import from_json
from greyhound.cache.store import Pack
from greyhound.model import checkpoint
from greyhound.model.run import Run
from greyhound.model.saliency import saliency
from greyhound.pipelines.augment import Augment


def job(run: Path, **options: Any) -> explain.Job:
    return explain.Job(run=run, resources=ONE_THREAD, **options)


def test_the_sheet_and_its_rows(run: Path, colour_pack: Pack) -> None:
    before = {name: (run / name).read_bytes() for name in ("best.ckpt", "swa.ckpt", "last.ckpt")}
    before_page = (run / "report.html").read_text()
    explain.explain(job(run, count=5))
    rows = Run(run).read("saliency.json")
    test = {
        colour_pack.image_path(index): colour_pack.classes[colour_pack.labels[index]]
        for index in colour_pack.ids("test")
    }
    assert len({row["path"] for row in rows}) == 5
    assert all(test[row["path"]] == row["true"] for row in rows)
    assert all(row["loss"] >= 0 for row in rows)
    with Image.open(run / "saliency.png") as sheet:
        assert min(sheet.size) > 200
    assert "Not explained yet" in before_page
    assert "Not explained yet" not in (run / "report.html").read_text()
    assert {name: (run / name).read_bytes() for name in before} == before


def test_another_seed_shows_other_images_and_the_same_seed_the_same(run: Path) -> None:
    shown = []
    for seed in (0, 0, 1):
        explain.explain(job(run, count=4, seed=seed))
        shown.append([row["path"] for row in Run(run).read("saliency.json")])
    assert shown[0] == shown[1]
    assert shown[0] != shown[2]


def test_more_than_there_are_is_all_there_are(run: Path) -> None:
    explain.explain(job(run, count=500))
    assert len(Run(run).read("saliency.json")) == 12


def test_the_loss_is_that_of_the_evaluation_pipeline(run: Path, colour_pack: Pack) -> None:
    augment = from_json(Augment, Run(run).read("recipe.json")["augment"], "recipe").centre()
    batch = explain.draw_images(job(run, count=4), colour_pack, augment)
    _, network = Run(run).network("swa", torch.device("cpu"))
    result = saliency(network, batch.images, batch.labels)
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(network(batch.images), batch.labels, reduction="none")
    assert np.allclose(result.loss, expected.numpy(), atol=1e-5)
    assert result.gradient.shape == (4, 32, 32)
    assert (result.gradient > 0).mean() > 0.9


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, here: Here) -> None:
    answer = here("explain.py", "--run", "nowhere")
    assert answer.code == 2
    assert answer.err.startswith("error: nowhere is no folder; expected a run folder")
    assert len(answer.err.splitlines()) == 1
    with pytest.raises(ValueError, match="count is 0; expected at least 1"):
        explain.Job(run=tmp_path, count=0)


def test_a_corrupt_checkpoint_is_one_line(run: Path) -> None:
    (run / "swa.ckpt").write_bytes((run / "swa.ckpt").read_bytes()[:5000])
    with pytest.raises(checkpoint.CheckpointError):
        explain.explain(job(run, count=2, checkpoint="swa"))
