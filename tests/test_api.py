"""Greyhound from Python: what `import greyhound` brings, its shapes, its errors, and that no thread is left."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pictures import BLUE_STEP, coded, encode, folder, identities, noise, packed, store_as
from PIL import Image, ImageOps
from runs import ONE_THREAD, TINY, Capture, Patch

import greyhound
from greyhound import api
from greyhound.cache.store import Pack
from greyhound.model.schedule import Phase
from greyhound.pipelines import threads
from greyhound.pipelines.augment import Augment
from greyhound.pipelines.loader import Loader
from greyhound.pipelines.order import epoch_order
from greyhound.recipe import FAST
from greyhound.session import normalised

SMALL = Augment(size=32)
LAZY = """
import sys, greyhound
print(sorted({"torch", "numpy", "pyarrow", "cv2", "greyhound.api", "greyhound.cache"} & sys.modules.keys()))
print(sorted(set(greyhound.__all__) - set(dir(greyhound))))
greyhound.Pack
print("torch" in sys.modules)
"""
AT_THE_END = """
import greyhound
loader = greyhound.loader({pack!r}, augment=greyhound.Augment(size=32), batch_size=8)
next(iter(loader))
print("seen")
"""


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    """A loader's threads end within seconds of what the test did."""
    before = set(threading.enumerate())
    yield
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive(), thread


def labels_and_ids(batches: greyhound.Batches) -> tuple[list[int], list[int]]:
    """What one pass brought, read back from the pixels."""
    seen, ids = [], []
    for images, labels in batches:
        seen += labels.tolist()
        ids += identities(SMALL.to_pixels(images.numpy())).tolist()
    return seen, ids


def test_the_package_is_imported_cheaply_and_its_names_when_they_are_used() -> None:
    answer = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True, check=True)
    assert answer.stdout.splitlines() == ["[]", "[]", "True"]
    with pytest.raises(AttributeError, match="'greyhound' has no attribute 'nothing'"):
        _ = greyhound.nothing  # type: ignore[attr-defined, unused-ignore]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_upright_rgb(tmp_path: Path, orientation: int) -> None:
    upright = coded(40, 24)
    stored = encode(store_as(upright, orientation), "JPEG", orientation)
    pack = packed(tmp_path, {"a": [stored], "b": [encode(coded(9, 9, 3))]})
    found = pack.image(0)
    assert found.dtype == np.uint8 and found.shape == (24, 40, 3)
    assert np.abs(found.astype(int) - upright).max() <= 4
    with Image.open(tmp_path / "images" / "a" / "0000.img") as image:
        seen = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.abs(found.astype(int) - seen).max() <= 1
    assert pack.image(1).tolist() == coded(9, 9, 3).tolist()


@pytest.mark.parametrize("index", [-1, 20])
def test_a_row_that_is_not_there_is_named(coded_pack: Pack, index: int) -> None:
    with pytest.raises(greyhound.UserError, match=f"has no row {index}; expected 0 to 19"):
        coded_pack.image(index)
    with pytest.raises(greyhound.UserError, match=f"has no row {index}; expected 0 to 19"):
        greyhound.show(coded_pack, 0, index, augment=SMALL)


def test_an_image_that_no_longer_decodes_is_named(coded_pack: Pack, monkeypatch: Patch) -> None:
    monkeypatch.setattr(Pack, "encoded", lambda self, index: np.zeros(9, np.uint8))
    with pytest.raises(greyhound.UserError, match=r"row 3 .* no longer decodes .* greyhound verify"):
        coded_pack.image(3)


def test_a_pass_is_an_epoch_with_the_pixels_of_a_training(coded_pack: Pack, no_thread_left: None) -> None:
    rows = coded_pack.ids("train")
    with (
        greyhound.loader(coded_pack, batch_size=6, augment=SMALL, seed=4, resources=ONE_THREAD) as batches,
        Loader(coded_pack, SMALL, rows, ONE_THREAD, batch_size=6, seed=4, shuffle=True) as expected,
    ):
        assert len(batches) == len(expected) == 4
        for epoch in range(2):
            seen = 0
            for (images, labels), batch in zip(batches, expected.epoch(), strict=True):
                assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
                assert images.shape == (5, 3, 32, 32)
                assert images.is_contiguous(memory_format=torch.channels_last)
                assert torch.equal(images, batch.images) and torch.equal(labels, batch.labels)
                seen += len(labels)
            assert (seen, batches.epoch) == (20, epoch + 1)


def test_evaluation_takes_the_centre_window_in_order(colour_pack: Pack) -> None:
    batches = greyhound.loader(colour_pack, "val", 4, augment=SMALL, resources=ONE_THREAD)
    first, again = ([images for images, _ in batches] for _ in range(2))
    assert [len(each) for each in first] == [4, 2]
    assert all(map(torch.equal, first, again))
    rows = colour_pack.ids("val")
    for image, row in zip(torch.cat(first), rows.tolist(), strict=True):
        picture = greyhound.show(colour_pack, None, row, augment=SMALL)
        assert SMALL.to_pixels(image[None].numpy())[0].tolist() == picture.tolist()
    assert torch.cat([labels for _, labels in batches]).tolist() == colour_pack.labels[rows].tolist()


def test_labels_follow_their_images(coded_pack: Pack) -> None:
    """Blue is the row; the label is row >= 9."""
    upright = replace_colour(SMALL)
    batches = greyhound.loader(coded_pack, augment=upright, batch_size=7, resources=ONE_THREAD)
    for _ in range(2):
        labels, ids = labels_and_ids(batches)
        assert sorted(ids) == list(range(20))
        assert labels == [int(row >= 9) for row in ids]


def replace_colour(augment: Augment) -> Augment:
    """Crops alone, so that blue stays blue."""
    return augment.crops()


def test_training_can_be_asked_for_and_refused(coded_pack: Pack, colour_pack: Pack) -> None:
    plain = greyhound.loader(coded_pack, augment=SMALL, training=False, resources=ONE_THREAD)
    assert labels_and_ids(plain)[1] == list(range(20))
    assert plain._source.augment == SMALL.centre()
    rows = colour_pack.ids("val")
    trains = greyhound.loader(colour_pack, "val", augment=SMALL, training=True, resources=ONE_THREAD)
    assert trains._source.augment == SMALL
    (batch,) = trains._source.epoch()
    assert batch.ids.tolist() == epoch_order(rows, 0, 0).tolist() != rows.tolist()


def test_views_follow_each_other(coded_pack: Pack) -> None:
    batches = greyhound.loader(coded_pack, batch_size=4, views=3, augment=SMALL, resources=ONE_THREAD)
    images, labels = next(iter(batches))
    assert images.shape == (12, 3, 32, 32)
    assert labels.view(4, 3).eq(labels.view(4, 3)[:, :1]).all()
    row = int(epoch_order(coded_pack.ids("train"), 0, 0)[0])
    shown = [greyhound.show(coded_pack, 0, row, augment=SMALL, view=view) for view in range(3)]
    assert np.array_equal(SMALL.to_pixels(images[:3].numpy()), shown)
    assert not np.array_equal(shown[0], shown[1]) and not np.array_equal(shown[1], shown[2])


def test_the_usual_augmentation_is_the_recipes(coded_pack: Pack) -> None:
    batches = greyhound.loader(coded_pack, size=48, resources=ONE_THREAD)
    expected = normalised(FAST).augment
    assert expected.mean != (0, 0, 0)
    assert batches._source.augment == api._augment("fast", expected, 48)
    assert batches._source.augment.size == 48
    images, _ = next(iter(batches))
    assert images.shape[1:] == (3, 48, 48)
    assert images.min() < 0  # normalised


def test_what_a_loader_refuses(coded_pack: Pack) -> None:
    with pytest.raises(greyhound.UserError, match=r"has no images in its split val; .*PackOptions\(val=0.2"):
        greyhound.loader(coded_pack, "val", augment=SMALL)
    with pytest.raises(greyhound.UserError, match="split is 'dev'; expected one of train, val, test"):
        greyhound.loader(coded_pack, "dev", augment=SMALL)
    with pytest.raises(greyhound.UserError, match="no recipe 'fats'; expected one of paper, fast"):
        greyhound.loader(coded_pack, recipe="fats")
    with pytest.raises(greyhound.UserError, match=r"there is no pack at nothing\.arrow"):
        greyhound.loader("nothing.arrow", augment=SMALL)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"batch_size": "8"}, "batch_size is '8'; expected at least 1"),
        ({"batch_size": 1.5}, "batch_size is 1.5; expected at least 1"),
        ({"views": 0}, "views is 0; expected at least 1"),
        ({"seed": -1}, r"seed is -1; expected 0 to 2\*\*63 - 1"),
        ({"seed": "1"}, "seed is '1'; expected 0 to"),
        ({"size": "x"}, "size is 'x'; expected at least 1 pixel"),
    ],
)
def test_a_number_that_cannot_be_is_a_value_error(coded_pack: Pack, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        greyhound.loader(coded_pack, resources=ONE_THREAD, **asked)


@pytest.mark.parametrize("epoch", [-1, 2**32])
def test_an_epoch_that_cannot_be_is_a_value_error(coded_pack: Pack, epoch: int) -> None:
    with pytest.raises(ValueError, match=rf"epoch is {epoch}; expected 0 to 2\*\*32 - 1"):
        greyhound.show(coded_pack, epoch, 0)


def test_a_picture_of_a_large_pack_reads_no_other(coded_pack: Pack) -> None:
    opened = Pack(coded_pack.path)
    greyhound.show(opened, 0, 3, augment=SMALL)
    assert not opened._resident
    greyhound.loader(opened, augment=SMALL, resources=ONE_THREAD).close()
    assert opened._resident


def test_show_is_what_training_saw(coded_pack: Pack) -> None:
    """Every image of epoch 2, from a stream that began at epoch 0."""
    batches = greyhound.loader(coded_pack, batch_size=6, augment=SMALL, seed=3, resources=ONE_THREAD)
    for _ in range(2):
        list(batches)
    seen: dict[int, NDArray[np.uint8]] = {}
    for batch in batches._source.epoch():
        seen |= dict(zip(batch.ids.tolist(), SMALL.to_pixels(batch.images.numpy()), strict=True))
    assert len(seen) == 20
    for row, pixels in seen.items():
        shown = greyhound.show(coded_pack, 2, row, augment=SMALL, seed=3)
        assert shown.dtype == np.uint8 and shown.shape == (32, 32, 3)
        assert np.array_equal(shown, pixels)
    assert not np.array_equal(shown, greyhound.show(coded_pack, 1, row, augment=SMALL, seed=3))
    assert not np.array_equal(shown, greyhound.show(coded_pack, 2, row, augment=SMALL, seed=4))


def test_threads_end_with_the_loop_that_names_nothing(coded_pack: Pack, no_thread_left: None) -> None:
    for _ in greyhound.loader(coded_pack, batch_size=6, augment=SMALL, resources=ONE_THREAD):
        assert any(thread.name.startswith("greyhound") for thread in threading.enumerate())


def test_threads_end_where_a_pass_is_left_early(coded_pack: Pack, no_thread_left: None) -> None:
    for _ in greyhound.loader(coded_pack, batch_size=6, augment=SMALL, resources=ONE_THREAD):
        break


def test_threads_end_with_the_last_name(coded_pack: Pack, no_thread_left: None) -> None:
    batches = greyhound.loader(coded_pack, batch_size=6, augment=SMALL, resources=ONE_THREAD)
    images, _ = next(iter(batches))
    copy = images.clone()
    del batches
    time.sleep(0.1)
    assert torch.equal(images, copy)  # what was handed out stays


def test_a_program_ends_though_a_loader_is_open(coded_pack: Pack) -> None:
    script = AT_THE_END.format(pack=str(coded_pack.path))
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert (answer.stdout, answer.stderr) == ("seen\n", "")


def test_a_pass_that_was_left_is_followed_by_the_next_epoch(coded_pack: Pack, no_thread_left: None) -> None:
    batches = greyhound.loader(coded_pack, batch_size=6, augment=SMALL, resources=ONE_THREAD)
    next(iter(batches))
    assert batches.epoch == 0
    second = torch.cat([images for images, _ in batches])
    with Loader(
        coded_pack, SMALL, coded_pack.ids("train"), ONE_THREAD, batch_size=6, shuffle=True
    ) as expected:
        list(expected.epoch())
        assert torch.equal(second, torch.cat([batch.images for batch in expected.epoch()]))


def test_two_passes_at_once_are_refused_and_a_closed_loader_too(
    coded_pack: Pack, no_thread_left: None
) -> None:
    batches = greyhound.loader(coded_pack, batch_size=6, augment=SMALL, resources=ONE_THREAD)
    first = iter(batches)
    next(first)
    next(iter(batches))
    with pytest.raises(greyhound.UserError, match="another pass"):
        next(first)
    batches.close()
    with pytest.raises(greyhound.UserError, match="is closed; make another"):
        next(iter(batches))


def test_a_pass_that_was_closed_midway_is_no_whole_epoch(coded_pack: Pack, no_thread_left: None) -> None:
    batches = greyhound.loader(coded_pack, batch_size=6, augment=SMALL, resources=ONE_THREAD)
    midway, last = iter(batches), len(batches)
    next(midway)
    batches.close()
    with pytest.raises(greyhound.UserError, match="was closed during a pass"):
        next(midway)
    batches = greyhound.loader(coded_pack, batch_size=6, augment=SMALL, resources=ONE_THREAD)
    for place, _ in enumerate(batches, start=1):
        if place == last:
            batches.close()  # after which there is none to miss


def test_pack_fit_open_and_evaluate(tmp_path: Path, colour_pack: Pack, capsys: Capture) -> None:
    out = tmp_path / "run"
    run = greyhound.fit(
        "paper",
        colour_pack,
        out,
        resources=ONE_THREAD,
        network="test_efficientnet",
        weights="none",
        batch_size=8,
        augment=SMALL,
        epochs=4,
        lr=0.01,
        averaging=TINY.averaging,
        probe_grids=(0, 1),
    )
    assert "note: --probe-grids: no effect here, there is no linear probe;" in capsys.readouterr().err
    recipe = greyhound.open_run(str(out)).recipe
    assert (recipe.augment, recipe.epochs, recipe.batch_size) == (SMALL, 4, 8)
    assert max(phase.high for phase in recipe.phases) == 0.01
    assert run == greyhound.open_run(out)
    assert run.classes == colour_pack.classes
    assert [row["epoch"] for row in run.metrics] == [0, 1, 2, 3]
    assert run.report.exists()
    found = run.evaluate(crops=2, resources=ONE_THREAD)
    assert (found["crops"], found["n"], found["split"]) == (2, 12, "test")
    assert found == json.loads((out / "eval.json").read_text())
    assert run.evaluate("val", 1, resources=ONE_THREAD)["n"] == 6
    other = run.evaluate("train", 1, pack=colour_pack.path, resources=ONE_THREAD)
    assert (other["n"], other["split"]) == (42, "train")
    network = run.network(resources=ONE_THREAD)
    batches = greyhound.loader(colour_pack, "val", augment=recipe.augment, batch_size=6, resources=ONE_THREAD)
    ((images, labels),) = list(batches)
    with torch.no_grad():
        logits = network(images)
    assert logits.shape == (6, 3)
    accuracy = float((logits.argmax(1) == labels).double().mean())
    assert accuracy == run.evaluate("val", 1, resources=ONE_THREAD)["accuracy"]


def test_another_packs_evaluation_is_its_own(tmp_path: Path, run: Path, capfd: Capture) -> None:
    from runs import tiny_pack

    pack = tiny_pack(tmp_path / "other")
    other = greyhound.pack_images(
        pack.path.parent / "images", tmp_path / "all.arrow", greyhound.PackOptions(val=0, test=0.5)
    )
    opened = greyhound.open_run(run)
    opened.evaluate(crops=1, resources=ONE_THREAD)
    before = (run / "eval.json").read_bytes()
    assert "may hold training images" not in capfd.readouterr().err
    found = opened.evaluate(crops=1, pack=other.path, resources=ONE_THREAD)
    assert (found["n"], found["data"]) == (30, str(other.path))
    assert (run / "eval.json").read_bytes() == before
    assert json.loads((run / "eval-other-test.json").read_text())["data"] == str(other.path)
    assert "its split may hold training images" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"netwrok": "x"}, "no field 'netwrok'; did you mean network"),
        ({"learning_rate": 1.0}, "no field 'learning_rate'; did you mean lr?"),
        ({"imgsz": 64}, "no field 'imgsz'; did you mean size?"),
        ({"zzz": 1}, "no field 'zzz'; expected one of name, network"),
        ({"batch_size": "8"}, "batch_size: Input should be a valid integer, not '8'"),
        ({"batch_size": 0}, "batch-size is 0; expected 1 or more"),
        ({"epochs": -1}, "recipe paper: "),
        ({"epochs": "many"}, "recipe paper: "),
        ({"seed": np.int64(1)}, "recipe paper: .*int64"),
        ({"size": 0}, "size is 0; expected at least 1 pixel"),
        ({"augment": SMALL, "size": "x"}, "augment.size: Input should be a valid integer"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_in_a_line(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(greyhound.UserError, match=said) as refused:
        greyhound.fit("paper", "nothing.arrow", tmp_path / "run", **changes)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_fields_are_replaced_as_values(tmp_path: Path) -> None:
    phases = (Phase(epochs=1, high=0.1, low=0.1), Phase(epochs=1, high=0.2, low=0.1))
    changed = api._changed(TINY, {"phases": phases, "probe_grids": (0, 2), "size": 40})
    assert (changed.phases, changed.probe_grids, changed.augment.size) == (phases, (0, 2), 40)


def test_what_a_run_refuses(tmp_path: Path, run: Path, colour_pack: Pack) -> None:
    with pytest.raises(greyhound.UserError, match="expected a run folder"):
        greyhound.open_run(tmp_path / "nothing")
    with pytest.raises(greyhound.UserError, match="holds a run already"):
        greyhound.fit(TINY, colour_pack, run, resources=ONE_THREAD)
    with pytest.raises(greyhound.UserError, match="no recipe 'quick'; expected one of paper, fast"):
        greyhound.fit("quick", colour_pack, tmp_path / "run")
    with pytest.raises(ValueError, match="--crops is 0"):
        greyhound.open_run(run).evaluate(crops=0)
    with pytest.raises(ValueError, match="crops is 0; expected at least 1"):
        next(iter(greyhound.open_run(run).predict(tmp_path, crops=0)))


def test_a_run_is_resumed(tmp_path: Path, run: Path, colour_pack: Pack, capsys: Capture) -> None:
    greyhound.fit(TINY, colour_pack, run, resources=ONE_THREAD, resume=True)
    assert "this run is finished" in capsys.readouterr().out


def test_pack_images_packs_and_opens(tmp_path: Path, scan_in_process: None) -> None:
    files = {f"{name}/{n}.png": encode(coded(30, 20, n)) for name in "ab" for n in range(4)}
    images = folder(
        tmp_path / "images", {path: data + bytes([n]) for n, (path, data) in enumerate(files.items())}
    )
    pack = greyhound.pack_images(
        images, str(tmp_path / "x.arrow"), greyhound.PackOptions(val=0.25, test=0.25)
    )
    assert (len(pack), pack.classes) == (8, ("a", "b"))
    assert pack.image(0)[0, 0, 2] == BLUE_STEP // 2


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("size", [(40, 90), (301, 64), (24, 17), (64, 64), (160, 131)])
def test_the_transform_makes_what_evaluation_sees(
    tmp_path: Path, run: Path, fit: Literal["crop", "pad", "squash"], size: tuple[int, int]
) -> None:
    augment = replace(SMALL, fit=fit, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2))
    pixels = noise(*size)
    pack = packed(tmp_path, {"a": [encode(pixels, "PNG")], "b": [encode(coded(9, 9))]})
    ((images, _),) = greyhound.loader(pack, training=False, augment=augment, resources=ONE_THREAD)
    found = threads.centre_window(pixels, augment)
    assert found.dtype == np.float32
    assert np.array_equal(found, images[0].permute(1, 2, 0).numpy())
    of_run = greyhound.open_run(run).transform()(pixels)
    expected = torch.from_numpy(threads.centre_window(pixels, TINY.augment)).permute(2, 0, 1)
    assert of_run.shape == (3, 32, 32) and torch.equal(of_run, expected)


def test_every_file_has_its_row(run: Path, images: Path) -> None:
    (images / "green" / "broken.jpg").write_bytes(b"no picture")
    mine = greyhound.open_run(run)
    rows = list(mine.predict(images, top=2, probabilities=True, resources=ONE_THREAD))
    assert [Path(row["path"]).relative_to(images).as_posix() for row in rows] == sorted(
        path.relative_to(images).as_posix() for path in images.rglob("*.jpg")
    )
    for row in rows:
        assert row["true_class"] == Path(row["path"]).parent.name
        probabilities = [row[f"probability of {name}"] for name in mine.classes]
        if row["error"]:
            assert "broken" in row["path"] and row["class"] is row["probability"] is None
        else:
            assert sum(probabilities) == pytest.approx(1)
            assert row["probability"] == max(probabilities) >= row["probability_2"]
            assert row["class"] == mine.classes[int(np.argmax(probabilities))]
            assert row["right"] == (row["class"] == row["true_class"])
    assert sum(bool(row["error"]) for row in rows) == 1


def test_files_are_named_one_by_one_and_by_pattern(run: Path, images: Path) -> None:
    mine, files = greyhound.open_run(run), sorted(images.rglob("*.jpg"))
    (one,) = mine.predict(str(files[0]), resources=ONE_THREAD)
    assert set(one) == {"path", "class", "probability", "error"}
    two = mine.predict(files[1::-1], crops=2, resources=ONE_THREAD)
    assert [row["path"] for row in two] == [str(files[1]), str(files[0])]
    many = mine.predict(f"{images}/*/*.jpg", resources=ONE_THREAD)
    assert len(list(many)) == len(files)
    with pytest.raises(greyhound.UserError, match="there is no nothing"):
        mine.predict("nothing")  # before a row is asked for


def test_a_prediction_is_the_networks(run: Path, images: Path) -> None:
    """By way of `network` and `transform`; the temperature moves no class."""
    mine, files = greyhound.open_run(run), sorted(images.rglob("*.jpg"))
    network, transform = mine.network(resources=ONE_THREAD), mine.transform()
    for row in mine.predict(files, resources=ONE_THREAD):
        with Image.open(row["path"]) as image, torch.no_grad():
            logits = network(transform(np.asarray(image.convert("RGB")))[None])
        assert mine.classes[int(logits.argmax())] == row["class"]
