"""explain.py: the sheet and its rows, the sanity check, boxes, refusals."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pictures import coded, encode, packed, store_as
from PIL import Image
from runs import ONE_THREAD, Capture, Here, Patch

from greyhound import explain
from greyhound.cache.cli import from_json
from greyhound.cache.errors import UserError
from greyhound.cache.store import Pack
from greyhound.model.metrics import wilson
from greyhound.model.run import Run
from greyhound.model.saliency import saliency, smoothgrad
from greyhound.pipelines.augment import Augment, noise
from greyhound.pipelines.loader import Batch, Loader

METHODS = ["gradient", "SmoothGrad", "Grad-CAM"]


def explained(run: Path, **options: Any) -> list[dict[str, Any]]:
    """Explain images of the run; a row of each."""
    explain.explain(explain.Job(run=run, resources=ONE_THREAD, **options))
    content: dict[str, Any] = Run(run).read("saliency.json")
    assert (content["checkpoint"], content["weights"]) == ("swa", Run(run).weights_id("swa"))
    images: list[dict[str, Any]] = content["images"]
    return images


def test_the_sheet_and_its_rows(run: Path, colour_pack: Pack) -> None:
    before = {path.name: path.read_bytes() for path in run.glob("*.ckpt")}
    assert "Not explained yet" in (run / "report.html").read_text()
    rows, ids = explained(run, count=5), colour_pack.ids("test")
    test = {colour_pack.image_path(row): colour_pack.classes[colour_pack.labels[row]] for row in ids}
    assert len({row["path"] for row in rows}) == 5
    assert all(test[row["path"]] == row["true"] for row in rows)
    assert all(row["loss"] >= 0 for row in rows)
    with Image.open(run / "saliency.png") as sheet:
        assert min(sheet.size) > 200
    assert "Not explained yet" not in (run / "report.html").read_text()
    assert {path.name: path.read_bytes() for path in run.glob("*.ckpt")} == before


def test_another_seed_shows_other_images_and_the_same_seed_the_same(run: Path) -> None:
    first, same, other = ([row["path"] for row in explained(run, count=4, seed=seed)] for seed in (0, 0, 1))
    assert first == same
    assert first != other
    assert len(explained(run, count=500)) == 12, "more than there are is all there are"


def test_the_loss_is_that_of_the_evaluation_pipeline(run: Path, colour_pack: Pack) -> None:
    augment = from_json(Augment, Run(run).read("recipe.json")["augment"], "recipe").centre()
    batch = explain.draw_images(explain.Job(run=run, resources=ONE_THREAD, count=4), colour_pack, augment, {})
    _, network = Run(run).network("swa", torch.device("cpu"))
    result = saliency(network, batch.images, batch.labels)
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(network(batch.images), batch.labels, reduction="none")
    assert np.allclose(result.loss, expected.numpy(), atol=1e-5)
    assert result.gradient.shape == (4, 32, 32)
    assert (result.gradient > 0).mean() > 0.9


def test_what_explain_cannot_do_is_one_line(tmp_path: Path, here: Here) -> None:
    answer = here("explain.py", "--run", "nowhere")
    assert answer.error.startswith("nowhere is no folder; expected a run folder")
    with pytest.raises(ValueError, match="count is 0; expected at least 1"):
        explain.Job(run=tmp_path, count=0)
    for words, message in (
        ({"copies": 0}, "--copies is 0; expected at least 1"),
        ({"noise": 0.0}, "--noise is 0.0; expected a share above 0, at most 1"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            explain.Job(run=tmp_path, **words)


def test_every_method_is_checked_and_the_page_has_the_numbers(run: Path) -> None:
    explained(run, count=8)
    content = Run(run).read("saliency.json")
    assert list(content["methods"]) == METHODS and "boxes" not in content
    for method in content["methods"].values():
        assert method.keys() == {"compared", "random_head", "random_weights"}
        assert 1 <= method["compared"]["random_weights"] <= explain.CHECKED
        assert -1 <= method["random_head"] < 0.999 and -1 <= method["random_weights"] < 0.9
    assert content["methods"]["gradient"]["compared"] == dict.fromkeys(("random_head", "random_weights"), 6)
    page = (run / "report.html").read_text()
    assert "with random weights" in page and "n = 6<" in page and "points into the box" not in page
    assert "Random test images of images.arrow" in page


def test_the_page_says_which_images_they_are(run: Path, colour_pack: Pack) -> None:
    explained(run, count=2, split="train", seed=3, copies=1, noise=0.2)
    content = Run(run).read("saliency.json")
    said = {"split": "train", "seed": 3, "copies": 1, "noise": 0.2, "data": str(colour_pack.path)}
    assert content.items() >= said.items()
    assert "Random training images of" in (run / "report.html").read_text()


def test_the_numbers_are_written_after_their_picture(run: Path, monkeypatch: Patch) -> None:
    def fail(*_: Any) -> None:
        raise UserError("no room")

    monkeypatch.setattr(explain, "draw_sheet", fail)
    with pytest.raises(UserError, match="no room"):
        explained(run, count=2, copies=1)
    assert not (run / "saliency.json").exists()


def test_maps_of_one_value_are_not_counted(run: Path, colour_pack: Pack, monkeypatch: Patch) -> None:
    job = explain.Job(run=run, resources=ONE_THREAD, count=3, copies=2)
    augment = from_json(Augment, Run(run).read("recipe.json")["augment"], "recipe").centre()
    batch = explain.draw_images(job, colour_pack, augment, {})
    _, network = Run(run).network("swa", torch.device("cpu"))
    result, maps = explain.look(job, network, batch)
    maps["Grad-CAM"][:2] = 0
    found = explain.check(job, network, network, batch, result.predictions, maps)
    counts = {name: method["compared"]["random_head"] for name, method in found.items()}
    assert counts == {"gradient": 3, "SmoothGrad": 3, "Grad-CAM": 1}


def test_the_same_network_is_no_other(run: Path, colour_pack: Pack) -> None:
    """Held against itself in place of random weights, each method's maps are the same."""
    job = explain.Job(run=run, resources=ONE_THREAD, count=3, copies=2)
    augment = from_json(Augment, Run(run).read("recipe.json")["augment"], "recipe").centre()
    batch = explain.draw_images(job, colour_pack, augment, {})
    _, network = Run(run).network("swa", torch.device("cpu"))
    result, maps = explain.look(job, network, batch)
    found = explain.check(job, network, network, batch, result.predictions, maps)
    compared = {"random_head": 3, "random_weights": 3}
    same = {"compared": compared, "random_head": pytest.approx(1), "random_weights": pytest.approx(1)}
    assert found == dict.fromkeys(METHODS, same)


def test_noise_is_each_images_own_whatever_the_batch(run: Path, colour_pack: Pack) -> None:
    job = explain.Job(run=run, resources=ONE_THREAD, count=5, copies=2)
    augment = from_json(Augment, Run(run).read("recipe.json")["augment"], "recipe").centre()
    batch = explain.draw_images(job, colour_pack, augment, {})
    _, network = Run(run).network("swa", torch.device("cpu"))
    _, together = explain.look(job, network, batch)
    alone = Batch(batch.images[3:4], batch.labels[3:4], batch.ids[3:4], 1)
    np.testing.assert_allclose(
        explain.look(job, network, alone)[1]["SmoothGrad"][0], together["SmoothGrad"][3], rtol=1e-3
    )
    drawn = [torch.from_numpy(noise(0, batch.ids.numpy(), copy, 3 * 32 * 32)) for copy in range(2)]
    expected = smoothgrad(
        network,
        batch.images,
        batch.labels,
        lambda place, copy: drawn[copy][place].view(-1, 3, 32, 32),
        2,
        0.15,
    )
    np.testing.assert_array_equal(together["SmoothGrad"], expected)


def test_the_picture_shows_some_and_the_rest_is_measured(
    run: Path, capsys: Capture, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(explain, "SHOWN", 2)
    assert len(explained(run, count=5, copies=1)) == 5
    assert "5 images: " in capsys.readouterr().out
    with Image.open(run / "saliency.png") as sheet:
        assert sheet.height < sheet.width


def write_boxes(file: Path, rows: list[tuple[Any, ...]]) -> Path:
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("path", "left", "top", "right", "bottom"), *rows])
    return file


def test_boxes_are_measured_beside_chance_and_the_middle(
    run: Path, colour_pack: Pack, tmp_path: Path, capsys: Capture
) -> None:
    """Nine images with a box that is all of the image, one whose box is beside it."""
    ids = colour_pack.ids("test")[:10].tolist()
    paths = [colour_pack.image_path(row) for row in ids]
    whole = [(path, 0, 0, *colour_pack.sizes[row]) for row, path in zip(ids, paths, strict=True)][:9]
    boxes = write_boxes(
        tmp_path / "boxes.csv", [*whole, (paths[9], -1, 0, 0, 9), ("no/such.png", 1, 1, 2, 2)]
    )
    rows = explained(run, count=500, copies=1, boxes=boxes)
    assert sorted(row["path"] for row in rows) == sorted(paths)
    content = Run(run).read("saliency.json")
    for method in content["methods"].values():
        assert method["pointing"] == {"n": 10, "accuracy": 0.9, "interval": list(wilson(9, 10))}
    assert content["boxes"] == {"chance": pytest.approx(0.9), "middle": 0.9}
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("points"))
    assert line.startswith("points into a box, n = 10: gradient 90.0% (59.6% to 98.2%), SmoothGrad 90.0%")
    assert line.endswith("; chance 90.0%, the window's middle 90.0%")
    assert "points into the box" in (run / "report.html").read_text()


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_go_to_the_window_as_the_pixels_do(
    tmp_path: Path, orientation: int, fit: Literal["crop", "pad", "squash"]
) -> None:
    """The image's colours are its upright coordinates; two boxes, and what the engine made of them."""
    first, other = (
        encode(
            store_as(coded(200, 130, identity), orientation), "JPEG", orientation, quality=100, subsampling=0
        )
        for identity in range(2)
    )
    pack = packed(tmp_path, {"a": [first], "b": [other]})
    augment, boxes = Augment(size=60, fit=fit, fill=255).centre(), [(50, 20, 110, 90), (120, 100, 180, 125)]
    ids = pack.ids("train")
    with Loader(pack, augment, ids, ONE_THREAD, batch_size=2, epochs=1) as loader:
        (pixels, _) = augment.to_pixels(next(iter(loader)).images.numpy())
    inside = explain.in_boxes(augment, pack.sizes[ids], [boxes, []])
    x, y = pixels[..., 0] * (199 / 255) + 0.5, pixels[..., 1] * (129 / 255) + 0.5

    def shown(margin: float) -> NDArray[np.bool_]:
        edges = [
            (left - margin, top - margin, right + margin, bottom + margin)
            for left, top, right, bottom in boxes
        ]
        found = [(left < x) & (x < right) & (top < y) & (y < bottom) for left, top, right, bottom in edges]
        return np.asarray(found[0] | found[1])

    assert inside[0][shown(-1.5)].all() and shown(-1.5).sum() > 300
    assert not inside[0][~shown(1.5)].any()
    assert not inside[1].any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,left,top\na/1.png,1,2\n",
            "has the columns path, left, top; expected a CSV with the columns path,",
        ),
        (
            "path,left,top,right,bottom\na,1,2,1,4\n",
            "has the box 1, 2, 1, 4 in line 2; expected numbers, left <",
        ),
        (
            "path,left,top,right,bottom\na,1,2,x,4\n",
            "has the box 1, 2, x, 4 in line 2; expected numbers, left <",
        ),
        ("path,left,top,right,bottom\na,1,2,nan,4\n", "has the box 1, 2, nan, 4 in line 2; expected numbers"),
        (
            "path,left,top,right,bottom\nPATH,-9,5,99,99\n",
            "has the box -9, 5, 99, 99 of PATH, which is SIZE; expected pixels of the upright image",
        ),
        ("path,left,top,right,bottom\na,1,2,3,4\n", "has boxes of no image in the split test of "),
        ("path,left,top,right,bottom\n", "has no box; expected a line for each object"),
        (
            "path,left,top,right,bottom\na,0.1,0.2,0.5,0.9\n",
            "has shares of the image; expected pixels of the",
        ),
    ],
)
def test_boxes_that_cannot_be_are_one_line(
    run: Path, colour_pack: Pack, tmp_path: Path, text: str, message: str
) -> None:
    row = colour_pack.ids("test")[0]
    path, size = colour_pack.image_path(row), "{} x {}".format(*colour_pack.sizes[row])
    message = message.replace("PATH", path).replace("SIZE", size)
    (tmp_path / "boxes.csv").write_text(text.replace("PATH", path))
    with pytest.raises(UserError, match=re.escape(f"boxes.csv {message}")):
        explained(run, boxes=tmp_path / "boxes.csv")
    assert not (run / "saliency.json").exists()
