"""trained.py: the one opening of a run to look with, and the temperature that the run folder keeps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import NAMES, ONE_THREAD, Capture, Patch

from greyhound.cache.store import Pack
from greyhound.model import calibration, precision
from greyhound.model.run import Run, RunError
from greyhound.pipelines.loader import Loader
from greyhound.trained import Crops, Trained, collect, open_trained, temperature

MADE = calibration.Temperature(1.7, 6)


@pytest.fixture
def opened(run: Path, monkeypatch: Patch) -> Trained:
    """The tiny run, with validation images enough for a temperature, which is always MADE."""
    monkeypatch.setattr(calibration, "LEAST", 1)
    monkeypatch.setattr(calibration, "fit", lambda logits, labels: MADE)
    return open_trained(Run(run), "auto", ONE_THREAD)


def batches(trained: Trained, monkeypatch: Patch) -> list[int]:
    """The sizes of the batches that the network sees from now on."""
    seen: list[int] = []
    forward = precision.forward

    def look(network: torch.nn.Module, images: torch.Tensor, bf16: bool) -> torch.Tensor:
        seen.append(len(images))
        return forward(network, images, bf16)

    monkeypatch.setattr(precision, "forward", look)
    return seen


def test_what_was_opened_is_the_run(opened: Trained, run: Path, colour_pack: Pack) -> None:
    assert (opened.classes, opened.background, opened.bf16) == (NAMES, "#ffffff", False)
    assert opened.origin["weights"] == Run(run).weights_id("swa")
    _, network = Run(run).network("swa", torch.device("cpu"))
    ids = colour_pack.ids("test")
    rows, logits = collect(opened.logits(colour_pack, ids[::-1], ONE_THREAD, Crops(batch_size=5)), len(ids))
    assert rows.tolist() == sorted(ids.tolist())
    assert logits.shape == (12, 1, 3)
    with Loader(colour_pack, opened.augment.centre(), ids, ONE_THREAD, batch_size=12, epochs=1) as loader:
        (batch,) = loader
    with torch.no_grad():
        expected = network(batch.images)
    torch.testing.assert_close(logits[:, 0], expected, rtol=1e-4, atol=1e-4)  # BatchNorm is folded in
    images = next(opened.logits(colour_pack, ids, ONE_THREAD, Crops(3, batch_size=7)))
    assert (images[0].tolist(), images[1].shape) == (ids[:2].tolist(), (2, 3, 3))
    assert not any(isinstance(each, torch.nn.BatchNorm2d) for each in opened.network.modules())
    assert any(isinstance(each, torch.nn.BatchNorm2d) for each in network.modules())


def test_a_temperature_is_fitted_once_for_its_weights_and_crops(opened: Trained, monkeypatch: Patch) -> None:
    seen = batches(opened, monkeypatch)
    assert temperature(opened, 1, ONE_THREAD) == MADE
    assert sum(seen) == 6
    assert temperature(opened, 1, ONE_THREAD) == MADE
    assert sum(seen) == 6
    assert temperature(opened, 2, ONE_THREAD) == MADE
    assert sum(seen) == 18
    other = dataclasses.replace(opened, origin=opened.origin | {"weights": "others"})
    assert temperature(other, 2, ONE_THREAD) == MADE
    assert sum(seen) == 30
    rows = opened.run.read("calibration.json")
    assert [row["crops"] for row in rows] == [1, 2, 2]


def test_temperatures_that_cannot_be_read_are_to_be_deleted(opened: Trained) -> None:
    (opened.run.folder / "calibration.json").write_text("[{")
    with pytest.raises(RunError, match=r"calibration.json cannot be read .*; delete it; it is made again"):
        temperature(opened, 1, ONE_THREAD)


@pytest.mark.parametrize("broken", [{"temperature": None}, {"temperature": -1.0}, {"crops": None}])
def test_a_row_that_makes_no_sense_is_fitted_again(opened: Trained, broken: dict[str, Any]) -> None:
    temperature(opened, 1, ONE_THREAD)
    (row,) = opened.run.read("calibration.json")
    opened.run.write("calibration.json", [row | broken])
    assert temperature(opened, 1, ONE_THREAD) == MADE
    opened.run.write("calibration.json", [row | {"temperature": 2, "images": None, "why": None}])
    assert temperature(opened, 1, ONE_THREAD) == calibration.Temperature(2, 0, "")


def test_without_the_pack_it_is_1_and_says_why(
    opened: Trained, coded_pack: Pack, colour_pack: Pack, tmp_path: Path, monkeypatch: Patch
) -> None:
    content = opened.run.read("pack.json")
    opened.run.write("pack.json", content | {"path": str(tmp_path / "gone.arrow"), "beside": ""})
    found = temperature(opened, 1, ONE_THREAD)
    assert found.temperature == 1
    assert found.why.endswith(f"cannot be found at {tmp_path / 'gone.arrow'}; name it: --pack PACK")
    assert "has other classes than" in temperature(opened, 1, ONE_THREAD, coded_pack.path).why
    assert not (opened.run.folder / "calibration.json").exists()
    assert temperature(opened, 1, ONE_THREAD, colour_pack.path) == MADE
    opened.run.write("pack.json", content | {"digest": "of another pack"})
    why = temperature(opened, 3, ONE_THREAD, colour_pack.path).why
    assert why == f"{colour_pack.path} is not the pack that {opened.run.folder} was trained on"


def test_too_few_images_are_not_looked_at(opened: Trained, monkeypatch: Patch) -> None:
    monkeypatch.setattr(calibration, "LEAST", 50)
    seen = batches(opened, monkeypatch)
    found = temperature(opened, 1, ONE_THREAD)
    assert (found.temperature, found.images, seen) == (1, 6, [])
    assert found.why == "6 validation images are too few to fit a temperature, 50 are needed"


@pytest.mark.usefixtures("ordinary")
def test_a_folder_that_cannot_be_written_is_a_note(opened: Trained, capsys: Capture) -> None:
    opened.run.folder.chmod(0o555)
    assert temperature(opened, 1, ONE_THREAD) == MADE
    assert "note: the temperature is not kept: " in capsys.readouterr().err


def test_images_that_cannot_be_read_are_left_out_on_request(
    opened: Trained, colour_pack: Pack, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(Pack, "corrupt", lambda self, ids: ids.tolist())
    found = temperature(opened, 1, dataclasses.replace(ONE_THREAD, on_corrupt="skip"))
    assert found == calibration.Temperature(why="no validation image can be read, so none can be fitted")
    monkeypatch.setattr(Pack, "corrupt", lambda self, ids: ids[:1].tolist())
    ids = colour_pack.ids("test")
    skipping = dataclasses.replace(ONE_THREAD, on_corrupt="skip")
    rows, _ = collect(opened.logits(colour_pack, ids, skipping), len(ids))
    assert np.array_equal(rows, ids[1:])
