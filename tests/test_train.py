"""train.py: recipes, the loop, checkpoints, resuming, averaging, and the command line."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import timm
import torch
from pictures import folder, packed
from PIL import Image
from reads import host_reads
from runs import (
    FULL,
    NAMES,
    ONE_THREAD,
    SMALL,
    TINY,
    Here,
    batches_seen,
    never,
    same_weights,
    tinted,
    tiny_context,
    tiny_job,
    tiny_pack,
)

from greyhound import begin, session, train
from greyhound.cache.cli import Stop, Stopped, ValueFormatError
from greyhound.cache.errors import UserError
from greyhound.cache.pack import Options, pack
from greyhound.cache.store import Pack, PackError
from greyhound.model import checkpoint
from greyhound.model import state as state_module
from greyhound.model.network import WeightsError, build
from greyhound.model.run import (
    AVERAGED,
    BEST,
    LAST,
    LOCK,
    METRICS,
    PROBE,
    RECIPE,
    SWA,
    TIMES,
    VERSIONS,
    Run,
    RunError,
)
from greyhound.model.schedule import Phase
from greyhound.pipelines.decoded import Plan
from greyhound.pipelines.engine import ImageCacheName, Resources, ResourcesError
from greyhound.pipelines.loader import Batch
from greyhound.pipelines.order import epoch_order
from greyhound.recipe import FAST, PAPER, RECIPES, Averaging, Checkpoints, TrainOptions
from greyhound.session import open_evaluation, open_pack

ROOT = Path(__file__).parents[1]
LINE = re.compile(
    r"epoch: \d+, train loss = \d+\.\d{9}, valid loss = \d+\.\d{9}, acc = \d\.\d{3}, time: \d+\.\d{6} sec"
)


def test_the_run_folder_is_complete_and_the_log_has_the_seeds_form(
    colour_pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train.train(tiny_job(colour_pack.path, tmp_path / "run"), never)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("image cache: decoded, 42 of 42 images in ")
    assert [bool(LINE.fullmatch(line)) for line in lines[1:3]] == [True, True]
    assert re.match(r"validation: acc = \d\.\d{3} \(95 % interval \d\.\d{3} to \d\.\d{3}, n = ", lines[-3])
    assert lines[-1] == f"next: greyhound eval --run {tmp_path / 'run'}"
    names = {entry.name for entry in (tmp_path / "run").iterdir()}
    assert names == {
        "recipe.json",
        "pack.json",
        "versions.json",
        "metrics.jsonl",
        "times.jsonl",
        "steps.jsonl",
        "swa.json",
        "last.ckpt",
        "last.1.ckpt",
        ".lock",
        "best.ckpt",
        "swa.ckpt",
        "lr.png",
        "augmented.png",
        "report.html",
    }


def test_the_network_learns_what_colour_tells(tiny_run: Path) -> None:
    rows = Run(tiny_run).rows(METRICS)
    assert [row["epoch"] for row in rows] == [0, 1]
    assert rows[1]["train_loss"] < rows[0]["train_loss"]
    times = Run(tiny_run).rows(TIMES)
    assert [row["epoch"] for row in times] == [0, 1]
    assert 0 <= times[0]["waiting"] <= 1
    assert 0 < times[0]["seconds"] < times[0]["elapsed"] < times[1]["elapsed"]
    assert Run(tiny_run).read(SWA)["after"]["elapsed"] > times[1]["elapsed"]
    after = Run(tiny_run).read(SWA)["after"]
    assert after["n"] == 6
    assert after["accuracy"] >= 0.8


def test_validation_loss_is_plain_cross_entropy_of_the_checkpoint(tiny_run: Path, colour_pack: Pack) -> None:
    state = checkpoint.load(tiny_run / LAST)
    network = build("test_efficientnet", 3, "none")
    network.load_state_dict(state["network"])
    with open_evaluation(TINY, colour_pack, ONE_THREAD, colour_pack.ids("val")) as loader:
        (batch,) = list(loader.epoch())
    with torch.no_grad():
        logits = network.eval()(batch.images)
    chosen = logits.log_softmax(1)[torch.arange(len(batch.labels)), batch.labels]
    row = Run(tiny_run).rows(METRICS)[-1]
    assert row["valid_loss"] == pytest.approx(-chosen.mean().item(), rel=1e-5)
    assert row["accuracy"] == pytest.approx((logits.argmax(1) == batch.labels).float().mean().item())


def test_averaging_changes_the_weights_and_swa_checkpoint_holds_them(tiny_run: Path) -> None:
    averaged, last = (checkpoint.load(tiny_run / name)["network"] for name in (AVERAGED, LAST))
    assert any(not torch.equal(averaged[name], last[name]) for name in last if name.endswith("weight"))
    assert Run(tiny_run).load("swa")[0] == "swa"


def stop_after(steps: int) -> Stop:
    """A signal before batch number `steps`: an epoch has 6 of training, 1 of validation; then averaging."""
    asked = iter(range(1, 10_000))
    return lambda: signal.SIGTERM if next(asked) >= steps else None


def failing(name: str) -> Any:
    """`save`, for which the disk is full when it comes to the file `name`."""

    def save(path: Path, content: dict[str, Any]) -> None:
        if path.name == name:
            raise checkpoint.CheckpointError(f"{path} cannot be written: no space left")
        checkpoint.save(path, content)

    return save


def test_a_checkpoint_that_cannot_be_written_on_a_signal_is_said(
    colour_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "save", failing(LAST))
    with pytest.raises(checkpoint.CheckpointError, match=r"last\.ckpt cannot be written"):
        train.train(tiny_job(colour_pack.path, tmp_path / "run"), stop_after(3))


@pytest.mark.parametrize("stop", [never, stop_after(10)])
def test_nothing_is_written_after_a_write_that_failed(
    colour_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: Stop
) -> None:
    """last.ckpt would say that best.ckpt is there."""
    monkeypatch.setattr(state_module, "save", failing(BEST))
    with pytest.raises(checkpoint.CheckpointError, match=r"best\.ckpt cannot be written"):
        train.train(tiny_job(colour_pack.path, tmp_path / "run"), stop)
    assert not (tmp_path / "run" / LAST).exists()
    assert [row["epoch"] for row in Run(tmp_path / "run").rows(METRICS)] == [0]


def test_a_phase_that_changes_nothing_is_shown_as_such(colour_pack: Pack, tmp_path: Path) -> None:
    phases = (Phase(epochs=1, high=0.01, low=0.01), Phase(epochs=1, high=1e-12, low=1e-12))
    recipe = replace(TINY, phases=phases, momentum=0.0, averaging=Averaging(steps=0))
    train.train(tiny_job(colour_pack.path, tmp_path / "run", recipe=recipe), never)
    first, second = (row["weights_changed"] for row in Run(tmp_path / "run").rows(METRICS))
    assert first > 0.95
    assert 0 < second < 0.05, "weights near zero still move"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "In 1 of 2 epochs less than half of the weights" in page
    assert "This recipe does not average after training." in page
    assert "Not averaged yet" not in page


def test_views_of_an_image_train_and_average_in_one_batch(colour_pack: Pack, tmp_path: Path) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def look(title: str, _: Any, batch: Batch) -> None:
        if "validating" not in title:
            seen.append(batch.flat())

    recipe = replace(TINY, views=2, phases=(Phase(epochs=1, high=0.01, low=0.002),))
    with batches_seen(look):
        train.train(tiny_job(colour_pack.path, tmp_path / "run", recipe=recipe), never)
    counts = [len(images) for images, _ in seen[:11]]
    assert len(seen) == 11 * (1 + 2 + 1), "the epoch, two steps of averaging, and BatchNorm's pass"
    assert (sum(counts), len(counts), max(counts)) == (84, 11, 8), (
        "42 images, two views each, at most 8 a step"
    )
    for images, labels in seen:
        assert torch.equal(labels[::2], labels[1::2]), "views of one image stand side by side"
        assert not torch.equal(images[::2], images[1::2])
    assert Run(tmp_path / "run").read(SWA)["after"]["n"] == 6


@pytest.mark.parametrize("steps", [1, 4, 6, 7, 8, 9, 14, 15, 17, 23])
def test_a_resumed_run_is_the_run(
    tiny_run: Path, colour_pack: Pack, tmp_path: Path, steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        train.train(tiny_job(colour_pack.path, out), stop_after(steps))
    capsys.readouterr()
    train.train(tiny_job(colour_pack.path, out, resume=True), never)
    place = r"(in epoch [012], after \d+ of 42 images|after the last epoch)"
    assert re.match(rf"resumed {place}\n", capsys.readouterr().out)
    for name in (LAST, AVERAGED, BEST):
        assert same_weights(out / name, tiny_run / name), name
    assert (out / METRICS).read_bytes() == (tiny_run / METRICS).read_bytes()


def test_a_start_that_reached_no_checkpoint_starts_anew(colour_pack: Pack, tmp_path: Path) -> None:
    """What such a start left behind is not mixed into the run."""
    out = tmp_path / "run"
    recipe = replace(TINY, linear_probe=True)
    with pytest.raises(Stopped, match="while computing features of the"):
        train.train(tiny_job(colour_pack.path, out, recipe=recipe), stop_after(1))
    assert not (out / LAST).exists()
    (out / SWA).write_text("{}")
    (out / "metrics.jsonl").write_text('{"epoch": 0}\n')
    train.train(tiny_job(colour_pack.path, out, resume=True, recipe=recipe), never)
    assert [row["epoch"] for row in Run(out).rows(METRICS)] == [0, 1]
    assert Run(out).read(SWA)["after"]["n"] == 6
    whole = tmp_path / "whole"
    train.train(tiny_job(colour_pack.path, whole, recipe=recipe), never)
    assert same_weights(out / AVERAGED, whole / AVERAGED)


def test_micro_batches_are_the_step(colour_pack: Pack) -> None:
    """Three views of 8 images in parts of at most 5: the same losses and weights, but for rounding."""
    found = []
    for size in (0, 5):
        recipe = replace(TINY, batch_size=24, views=3, freeze_bn=True, micro_batch=size)
        with tiny_context(colour_pack, recipe) as context:
            counts: list[int] = []
            context.state.network.register_forward_pre_hook(
                lambda _, given, to=counts: to.append(len(given[0]))
            )
            train.train_epoch(context, context.state.network)
            found.append((context.state.loss_sum, context.state.network.state_dict(), counts))
    (whole, weights, counts), (parts, others, smaller) = found
    assert (max(counts), max(smaller), sum(smaller)) == (21, 5, sum(counts))
    assert parts == pytest.approx(whole, rel=1e-5)
    assert all(torch.allclose(others[name], value, atol=1e-5) for name, value in weights.items())


def test_a_probe_may_choose_a_grid_and_all_that_follows_takes_it(colour_pack: Pack, tmp_path: Path) -> None:
    recipe = replace(FULL, probe_grids=(2,), micro_batch=4)
    whole, out = tmp_path / "whole", tmp_path / "run"
    train.train(tiny_job(colour_pack.path, whole, recipe=recipe), never)
    with pytest.raises(Stopped, match="while training epoch 0"):
        train.train(tiny_job(colour_pack.path, out, recipe=recipe), stop_after(5))
    train.train(tiny_job(colour_pack.path, out, resume=True, recipe=recipe), never)
    for name in (LAST, AVERAGED, BEST):
        assert [checkpoint.load(folder / name)["grid"] for folder in (out, whole)] == [2, 2]
        assert same_weights(out / name, whole / name), name
    _, network = Run(out).network("swa", torch.device("cpu"))
    assert (
        network.get_parameter("classifier.weight").shape[1]
        > timm.create_model("test_efficientnet").num_features
    )
    assert Run(out).read(PROBE)["grid"] == 2


def test_a_recipe_without_epochs_ends_with_its_probe(colour_pack: Pack, tmp_path: Path) -> None:
    recipe = replace(TINY, linear_probe=True, phases=(), averaging=Averaging(steps=0))
    out = tmp_path / "run"
    train.train(tiny_job(colour_pack.path, out, recipe=recipe), never)
    best = (out / BEST).read_bytes()
    assert checkpoint.load(out / BEST)["after"] == "a linear probe of 42 images"
    assert "the linear probe alone" in (out / "report.html").read_text()
    assert Run(out).rows(METRICS) == []
    assert "trains no epochs" in (out / "report.html").read_text()
    train.train(tiny_job(colour_pack.path, out, resume=True, recipe=recipe), never)
    assert (out / BEST).read_bytes() == best, "it was not done again"


def test_random_numbers_of_the_network_go_on_where_they_stopped(
    colour_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout draws from torch's generator at every step."""
    recipe = replace(TINY, averaging=Averaging(steps=0))
    torch.manual_seed(0)
    dropping = timm.create_model("test_efficientnet", num_classes=3, drop_rate=0.5)
    monkeypatch.setattr(session, "build", lambda *_: deepcopy(dropping))
    train.train(tiny_job(colour_pack.path, tmp_path / "whole", recipe=recipe), never)
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        train.train(tiny_job(colour_pack.path, out, recipe=recipe), stop_after(4))
    train.train(tiny_job(colour_pack.path, out, resume=True, recipe=recipe), never)
    assert same_weights(out / LAST, tmp_path / "whole" / LAST)


def test_a_checkpoint_that_nobody_can_go_on_from_is_one_line(
    tiny_run: Path, colour_pack: Pack, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    shutil.copy(out / BEST, out / LAST)
    with pytest.raises(RunError, match=r"last\.ckpt is no checkpoint that a training goes on from"):
        train.train(tiny_job(colour_pack.path, out, resume=True), never)


def test_a_tier_that_does_not_fit_leaves_no_folder(colour_pack: Pack, tmp_path: Path) -> None:
    resources = Resources(device="cpu", threads=1, image_cache="decoded", cache_bytes="1kB")
    job = replace(tiny_job(colour_pack.path, tmp_path / "run"), resources=resources)
    with pytest.raises(ResourcesError, match="share --cache-bytes: raise it, or choose --image-cache auto"):
        train.train(job, never)
    assert not (tmp_path / "run").exists()


def test_training_images_of_one_class_are_refused(colour_pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pack divided elsewhere: ours leaves every class something to train on."""
    divided = Pack(colour_pack.path)
    divided._splits = np.where(divided.labels == 1, 0, 1 + divided.labels // 2)
    monkeypatch.setattr(session, "Pack", lambda *_: divided)
    with pytest.raises(PackError, match="training images of 'green' alone; expected at least 2 classes"):
        open_pack(colour_pack.path, ONE_THREAD)


def test_the_best_checkpoint_is_chosen_by_what_the_recipe_selects(
    colour_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = [{"valid_loss": 0.2, "accuracy": 0.5, "n": 6}, {"valid_loss": 0.3, "accuracy": 0.9, "n": 6}]
    recipe = replace(TINY, averaging=Averaging(steps=0))
    choices: tuple[tuple[Literal["accuracy", "loss"], str], ...] = (
        ("accuracy", "epoch 1"),
        ("loss", "epoch 0"),
    )
    for select, after in choices:
        answers = iter(results)
        monkeypatch.setattr(session, "validate", lambda *_, answers=answers: next(answers))
        out = tmp_path / select
        train.train(tiny_job(colour_pack.path, out, recipe=replace(recipe, select=select)), never)
        assert Run(out).load("auto")[1]["after"] == after


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(
    colour_pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it ask for the weights, which may be far away."""
    monkeypatch.delattr("greyhound.model.network._find_state")
    job = tiny_job(colour_pack.path, tmp_path / "run", recipe=replace(TINY, weights="auto"))
    train.train(replace(job, dry_run=True), never)
    said = capsys.readouterr().out
    count = sum(parameter.numel() for parameter in build("test_efficientnet", 3, "none").parameters())
    assert f"network: test_efficientnet, fp32; {count:,} parameters" in said
    assert re.search(
        r"memory: \d+\.\d MB an image .* a batch of 8 takes 0\.\d\d GB; 8 GB hold \d+ images", said
    )
    assert "steps: 6 an epoch, 12 in 2 epochs; averaging passes 3 times more" in said
    assert re.search(r"time: 0\.\d{3} s a step, the median of 3 here", said)
    assert not (tmp_path / "run").exists()


def test_a_recipe_without_epochs_is_tried_out(
    colour_pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(TINY, linear_probe=True, phases=(), averaging=Averaging(steps=0))
    job = tiny_job(colour_pack.path, tmp_path / "run", recipe=recipe)
    assert train.train(replace(job, dry_run=True), never) == 0
    said = capsys.readouterr().out
    expected = r"linear probe: one pass over 42 training and 6 validation images, \d+\.\d ms an image here"
    assert re.search(expected, said)
    with pytest.raises(RunError, match="this recipe has no epochs; add --epochs 1"):
        train.train(replace(job, verify_determinism=True), never)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_other_things_is_not_trained_into(colour_pack: Pack, tmp_path: Path) -> None:
    (tmp_path / "photograph.jpg").write_bytes(b"")
    with pytest.raises(RunError, match="holds other files and no run; name a new or empty folder: --out"):
        train.train(tiny_job(colour_pack.path, tmp_path), never)
    assert [entry.name for entry in tmp_path.iterdir()] == ["photograph.jpg"]
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "recipe.json").write_text("{}")
    with pytest.raises(RunError, match=r"is a folder of runs; name a new folder in it: --out \S+NAME"):
        train.train(tiny_job(colour_pack.path, tmp_path), never)


def test_a_network_that_diverges_is_said_to_and_spoils_no_checkpoint(
    colour_pack: Pack, tmp_path: Path
) -> None:
    phases = (Phase(epochs=1, high=0.01, low=0.01), Phase(epochs=2, high=1e30, low=1e30))
    job = tiny_job(colour_pack.path, tmp_path / "run", recipe=replace(TINY, phases=phases))
    with pytest.raises(RunError) as raised:
        train.train(job, never)
    said = str(raised.value)
    found = re.match(
        r"the loss or its gradient is not finite in epoch 1, after (\d+) of 42 images, at a learning rate of 1e\+30; "
        r"the batch's rows of the pack are ((?:\d+, )+\d+)",
        said,
    )
    assert found, said
    facts = Run(tmp_path / "run").read("diverged.json")
    order = epoch_order(colour_pack.ids("train"), TINY.seed, 1)
    start = int(found[1])
    assert start >= 7, "the first step's own loss is still a number"
    assert facts["rows"] == order[start : start + 7].tolist() == [int(row) for row in found[2].split(", ")]
    assert facts["paths"] == [colour_pack.image_path(row) for row in facts["rows"]]
    assert facts["learning_rate"] == pytest.approx(1e30)
    with Image.open(tmp_path / "run" / "diverged.png") as picture:
        assert picture.width > 4 * picture.height > 100, "eight beside each other"
    state = checkpoint.load(tmp_path / "run" / LAST)
    assert state["progress"]["epoch"] == 1
    assert all(value.isfinite().all() for value in state["network"].values())
    assert [row["epoch"] for row in Run(tmp_path / "run").rows(METRICS)] == [0]


@pytest.mark.parametrize("stopping", [False, True])
def test_a_step_that_diverged_pushes_out_no_sound_checkpoint(
    colour_pack: Pack, tmp_path: Path, stopping: bool
) -> None:
    """Its own loss is finite, so it is written. The next loss ends the run; the checkpoint before stays."""
    phases = (Phase(epochs=1, high=0.01, low=0.01), Phase(epochs=2, high=1e30, low=1e30))
    out = tmp_path / "run"
    job = tiny_job(colour_pack.path, out, recipe=replace(TINY, phases=phases))
    job = replace(job, checkpoints=Checkpoints(steps=0 if stopping else 1))
    asked = itertools.count()  # 6 steps and a validation in epoch 0, a step in epoch 1

    def stop() -> int | None:
        return signal.SIGTERM if stopping and next(asked) == 8 else None

    if stopping:
        with pytest.raises(Stopped):
            train.train(job, stop)
    for resume in (stopping, True):  # a second start finds the same
        with pytest.raises(
            RunError, match=r"the loss or its gradient is not finite in epoch 1, after 7 of 42 images"
        ):
            train.train(replace(job, resume=resume), never)
    found = [checkpoint.load(path) for path in checkpoint.kept(out / LAST)]
    places = [(each["progress"]["epoch"], each["progress"]["images"]) for each in found]
    assert places == [(1, 7), (1, 0)]
    assert all(value.isfinite().all() for value in found[1]["network"].values())
    assert same_weights(checkpoint.kept(out / LAST)[1], out / BEST)


def test_one_pass_keeps_no_pixels_and_many_do(colour_pack: Pack) -> None:
    trained, held_out = colour_pack.ids("train"), colour_pack.ids("val")
    with open_evaluation(TINY, colour_pack, ONE_THREAD, trained, epochs=1) as once:
        assert not once.plan.kept.any()
        assert sum(len(batch.ids) for batch in once.epoch()) == 42
    with open_evaluation(TINY, colour_pack, ONE_THREAD, held_out) as often:
        assert often.plan.kept.sum() == 6


def test_a_batch_larger_than_the_data_is_all_of_it(colour_pack: Pack, tmp_path: Path) -> None:
    recipe = replace(TINY, batch_size=10**12, averaging=Averaging(steps=0))
    train.train(tiny_job(colour_pack.path, tmp_path / "run", recipe=recipe), never)
    assert len(Run(tmp_path / "run").rows(METRICS)) == 2


def test_a_note_about_pretrained_weights_goes_with_them() -> None:
    cpu = torch.device("cpu")
    assert begin.resolve(FAST, cpu).note == PAPER.note
    assert begin.resolve(replace(FAST, weights="none"), cpu).note == ""


@pytest.mark.parametrize(
    ("device", "changed", "expected"),
    [("cpu", {}, 8), ("cuda", {}, 0), ("cpu", {"freeze_bn": False}, 0), ("cpu", {"compile": True}, 0)],
)
def test_micro_batches_are_for_a_cpu(device: str, changed: dict[str, bool], expected: int) -> None:
    recipe = replace(FAST, precision="fp32", **changed)  # type: ignore[arg-type]
    assert begin.resolve(recipe, torch.device(device)).micro_batch == expected


def test_steps_of_one_image_that_batchnorm_cannot_take_are_refused(colour_pack: Pack, tmp_path: Path) -> None:
    """At 32 px the last stage is one pixel; at 64 it is four, which is enough."""
    recipe = replace(TINY, batch_size=1, averaging=Averaging(steps=0))
    with pytest.raises(
        RunError, match=r"at 32 px BatchNorm needs two images a step.*; raise --batch-size, or"
    ):
        train.train(tiny_job(colour_pack.path, tmp_path / "run", recipe=recipe), never)
    assert not (tmp_path / "run").exists()
    for fields in ({"freeze_bn": True}, {"augment": replace(TINY.augment, size=64)}):
        job = tiny_job(colour_pack.path, tmp_path, recipe=replace(recipe, **fields))
        with begin.opened(replace(job, dry_run=True), never):
            pass


def test_class_weights_are_resumed(tmp_path: Path, scan_in_process: None) -> None:
    """Of a pack with twice as many images of one class; and they change what is learnt."""
    images = {name: [tinted(k, 100 * k + n) for n in range(24 >> k)] for k, name in enumerate(("a", "b"))}
    pack = packed(tmp_path / "pack", images, Options(val=0.1, test=0)).path
    recipe = replace(FULL, class_weights="balanced")
    train.train(tiny_job(pack, tmp_path / "whole", recipe=recipe), never)
    train.train(tiny_job(pack, tmp_path / "plain", recipe=FULL), never)
    with pytest.raises(Stopped):
        train.train(tiny_job(pack, tmp_path / "parts", recipe=recipe), stop_after(8))
    train.train(tiny_job(pack, tmp_path / "parts", recipe=recipe, resume=True), never)
    assert same_weights(tmp_path / "parts" / LAST, tmp_path / "whole" / LAST)
    assert not same_weights(tmp_path / "plain" / LAST, tmp_path / "whole" / LAST)


def test_weights_of_images_count_in_every_stage(tmp_path: Path, scan_in_process: None) -> None:
    """Probe, epochs and averaging. What weighs all alike is as without weights, to the bit."""
    images = {
        f"{name}/{n}.jpg": tinted(k, 100 * k + n) for k, name in enumerate(("a", "b")) for n in range(12)
    }
    folder(tmp_path / "images", images)
    ends = {}
    for weigh in ("", "3", "uneven"):
        lines = [
            f"{path},{path[0]},{'train' if n % 12 < 9 else 'val'},{1 + n % 4 if weigh == 'uneven' else weigh}"
            for n, path in enumerate(images)
        ]
        table, out = tmp_path / "images" / f"list{weigh}.csv", tmp_path / f"run{weigh}"
        table.write_text("\n".join(["path,label,split,weight", *lines, ""]))
        pack(table, out.with_suffix(".arrow"), Options(grayscale="keep"))
        with tiny_context(Pack(out.with_suffix(".arrow")), FULL) as context:
            found = context.training.weights
        assert (found is None) == (weigh != "uneven")
        train.train(tiny_job(out.with_suffix(".arrow"), out, recipe=FULL), never)
        stages = [checkpoint.load(out / name)["network"] for name in (LAST, AVERAGED)]
        ends[weigh] = [Run(out).read(PROBE)["valid_loss"], [{**stage} for stage in stages]]
    assert found is not None
    opened = Pack(out.with_suffix(".arrow"))
    rows = opened.ids("train")
    np.testing.assert_allclose(found[rows], opened.weights[rows] / opened.weights[rows].mean(), rtol=1e-6)
    assert found[rows].mean() == pytest.approx(1)
    assert ends["3"][0] == ends[""][0] != ends["uneven"][0]
    for alike, plain, uneven in zip(*(ends[name][1] for name in ("3", "", "uneven")), strict=True):
        assert all(torch.equal(alike[key], value) for key, value in plain.items())
        assert not torch.equal(uneven["classifier.weight"], plain["classifier.weight"])


def test_a_pack_whose_images_of_one_class_alone_weigh_anything(tmp_path: Path, scan_in_process: None) -> None:
    folder(tmp_path, images := {f"{name}/{n}.jpg": tinted(1, n) for n, name in enumerate("aabb")})
    lines = [f"{path},{path[0]},{('train', 'val')[n % 2]},{int(n < 2)}" for n, path in enumerate(images)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split,weight", *lines]))
    pack(tmp_path / "list.csv", tmp_path / "p.arrow", Options(grayscale="keep"))
    said = "p.arrow has training images, of a weight above 0, of 'a' alone; expected at least 2 classes"
    with pytest.raises(PackError, match=said):
        open_pack(tmp_path / "p.arrow", ONE_THREAD)


def test_the_first_step_of_a_warm_up_changes_the_weights(colour_pack: Pack) -> None:
    phases = (Phase(epochs=1, high=0.01, low=0.01, warm_up=0.5),)
    with tiny_context(colour_pack, replace(TINY, phases=phases)) as context:
        train.train_epoch(context, context.state.network, 1)
        assert context.state.optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * (7 / 42) / 0.5)
        assert context.state.changed() > 0.5


def test_a_run_and_its_pack_may_be_moved_together(run: Path, colour_pack: Pack, coded_pack: Pack) -> None:
    """Both lay in one folder, which has another name now."""
    shutil.copy(colour_pack.path, run.parent / "p.arrow")
    known = Run(run).read("pack.json") | {"path": "/gone/p.arrow"}
    assert known["beside"].endswith(colour_pack.path.name) and known["beside"].startswith("..")
    Run(run).write("pack.json", known | {"beside": "../p.arrow"})
    assert session.open_trained_pack(Run(run), None, ONE_THREAD).path.samefile(run.parent / "p.arrow")
    shutil.copy(coded_pack.path, run.parent / "p.arrow")  # another one is there
    for beside in ("../p.arrow", "../none.arrow", ""):
        Run(run).write("pack.json", known | {"beside": beside})
        with pytest.raises(RunError, match=r"cannot be found at /gone/p\.arrow; name it: --pack PACK"):
            session.open_trained_pack(Run(run), None, ONE_THREAD)


def test_a_pack_beside_the_run_is_found_where_its_first_place_may_not_be_entered(
    run: Path, colour_pack: Pack, ordinary: None
) -> None:
    (home := run.parent / "home").mkdir(mode=0)
    shutil.copy(colour_pack.path, run.parent / "p.arrow")
    Run(run).write(
        "pack.json", Run(run).read("pack.json") | {"path": f"{home}/p.arrow", "beside": "../p.arrow"}
    )
    assert session.open_trained_pack(Run(run), None, ONE_THREAD).path.samefile(run.parent / "p.arrow")


def test_resuming_a_finished_run_changes_nothing(
    tiny_run: Path, colour_pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    before = {name: (out / name).read_bytes() for name in (LAST, AVERAGED, "metrics.jsonl")}
    train.train(tiny_job(colour_pack.path, out, resume=True), never)
    assert {name: (out / name).read_bytes() for name in before} == before
    assert capsys.readouterr().out.startswith("this run is finished: nothing is left\n")


def test_a_run_is_never_overwritten(tiny_run: Path, colour_pack: Pack) -> None:
    before = (tiny_run / RECIPE).read_bytes()
    with pytest.raises(
        UserError, match="holds a run already; name another folder, or go on with it: --resume"
    ):
        train.train(tiny_job(colour_pack.path, tiny_run), never)
    assert (tiny_run / RECIPE).read_bytes() == before


def test_resuming_with_another_pack_is_refused(tiny_run: Path, coded_pack: Pack, tmp_path: Path) -> None:
    other = tiny_pack(tmp_path)
    assert (
        other.header.digest == Run(tiny_run).read("pack.json")["digest"]
    )  # same images: same pack, wherever
    job = tiny_job(other.path, tiny_run, resume=True)
    other.header = replace(other.header, digest="0" * 64)
    with pytest.raises(RunError, match=r"another pack than .*; give it the same one, or --force pack"):
        begin.open_run(job, other, torch.device("cpu"), Run(tiny_run).read(VERSIONS))


def test_a_pack_without_validation_images_is_refused(coded_pack: Pack, tmp_path: Path) -> None:
    with pytest.raises(PackError, match="no images in its split val; pack again, with --val"):
        train.train(tiny_job(coded_pack.path, tmp_path / "run"), never)
    assert not (tmp_path / "run").exists()


def test_a_network_that_does_not_exist_leaves_no_folder(colour_pack: Pack, tmp_path: Path) -> None:
    job = tiny_job(colour_pack.path, tmp_path / "run", recipe=replace(TINY, network="efficientnet_b22"))
    with pytest.raises(WeightsError, match="efficientnet_b2"):
        train.train(job, never)
    assert not (tmp_path / "run").exists()


def test_the_step_loop_reads_nothing_from_the_device(colour_pack: Pack) -> None:
    with tiny_context(colour_pack, TINY) as context:
        with host_reads() as found:
            clock = train.train_epoch(context, context.state.network)
        assert [read for read in found if read != "numpy"] == ["tolist"], (
            "the losses, at the end of the epoch"
        )
        assert len(context.training) == 6
        with host_reads() as found:
            row = train.epoch_row(context, 0, clock)
        assert row["epoch"] == 0
    assert found == ["aten._local_scalar_dense.default"], "how many weights changed"


def test_without_test_images_the_next_command_is_one_that_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {name: [tinted(2 - k, 100 * k + n) for n in range(8)] for k, name in enumerate(NAMES)}
    pack = packed(tmp_path, images, Options(val=0.25, test=0.0))
    recipe = replace(TINY, phases=(Phase(epochs=1, high=0, low=0, cycles=0.5),), averaging=Averaging(steps=0))
    train.train(tiny_job(pack.path, tmp_path / "run", recipe=recipe), never)
    assert capsys.readouterr().out.endswith(f"--run {tmp_path / 'run'} --split val\n")


def test_a_linear_probe_starts_where_a_random_one_does_not(
    colour_pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = replace(TINY, linear_probe=True, phases=(Phase(epochs=1, high=0, low=0, cycles=0.5),))
    recipe = replace(recipe, averaging=Averaging(steps=0))
    train.train(tiny_job(colour_pack.path, tmp_path / "run", recipe=recipe), never)
    said = capsys.readouterr().out
    solved = re.search(r"linear probe: 42 images, .*; valid loss = (\S+), acc = (\S+), \d+ s after", said)
    assert solved
    assert float(solved[2]) >= 0.8
    assert Run(tmp_path / "run").load("best")[1]["accuracy"] == pytest.approx(float(solved[2]), abs=1e-3)
    best = Run(tmp_path / "run").load("best")[1]
    assert best["after"] == "a linear probe of 42 images"
    written = Run(tmp_path / "run").read(PROBE)
    assert written["accuracy"] == best["accuracy"]
    assert "the linear probe alone" in (tmp_path / "run" / "report.html").read_text()
    assert not (tmp_path / "run" / AVERAGED).exists()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"network": "vit_tiny_patch16_224"}, r"does not take an image of 32 px .*choose another --size"),
        ({"label_smoothing": 0.9}, r"label smoothing of 0\.9; expected 0 to 0\.667"),
        (
            {"network": "levit_128s", "linear_probe": True},
            "add --no-linear-probe --epochs 1, or choose another --network",
        ),
    ],
)
def test_what_does_not_fit_together_is_said_before_anything_is_written(
    colour_pack: Pack, tmp_path: Path, changed: dict[str, Any], says: str
) -> None:
    job = tiny_job(colour_pack.path, tmp_path / "run", recipe=replace(TINY, **changed))
    with pytest.raises(RunError, match=says):
        train.train(job, never)
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_finds_its_own_pack(tiny_run: Path, colour_pack: Pack) -> None:
    job = TrainOptions(out=tiny_run, resume=True)
    assert begin.pack_path(job) == colour_pack.path.resolve()
    with pytest.raises(RunError, match=r"a training needs a pack: --pack PACK, made by: greyhound pack"):
        begin.pack_path(replace(job, resume=False))


def test_a_plain_resume_takes_the_runs_own_recipe(
    tiny_run: Path, colour_pack: Pack, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = replace(TINY, batch_size=999)
    monkeypatch.setitem(RECIPES, "tiny", (base, "tiny"))
    cpu, used = torch.device("cpu"), Run(tiny_run).read(VERSIONS)
    plain = tiny_job(colour_pack.path, tiny_run, resume=True, recipe=base)
    assert begin.open_run(plain, colour_pack, cpu, used)[0].batch_size == TINY.batch_size
    other = replace(plain, recipe=replace(base, momentum=0.8))
    with pytest.raises(
        RunError, match=r"has batch_size = 8, not 999; momentum = 0\.9, not 0\.8; resume with"
    ):
        begin.open_run(other, colour_pack, cpu, used)


def test_an_edited_recipe_is_not_resumed(tiny_run: Path, colour_pack: Pack, tmp_path: Path) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    recipe = Run(out).read(RECIPE)
    recipe["phases"][0]["epochs"] = 0
    Run(out).write(RECIPE, recipe)
    with pytest.raises(ValueFormatError, match=r"recipe\.json: phases\.0: a phase of 0 epochs"):
        train.train(tiny_job(colour_pack.path, out, resume=True), never)


def test_a_checkpoint_of_another_network_is_one_line(
    tiny_run: Path, colour_pack: Pack, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    state = checkpoint.load(out / LAST)
    del state["network"]["classifier.bias"]
    checkpoint.save(out / LAST, state)
    with pytest.raises(RunError, match=r"last\.ckpt is of another network than recipe\.json and pack\.json"):
        train.train(tiny_job(colour_pack.path, out, resume=True), never)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("fast --out x", "a training needs a pack: --pack PACK"),
        ("fast --pack nowhere.arrow --out x", "there is no pack at nowhere.arrow"),
        ("fast --pack nowhere.arrow --out x --prefetch 0", "prefetch is 0; expected at least 1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: str, says: str, tmp_path: Path, here: Here) -> None:
    """test_recipe.py has all the other ways to be wrong."""
    answer = here("train.py", *arguments.split())
    assert answer.code == 2
    assert len(answer.err.splitlines()) == 1
    assert says in answer.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_gpu_without_one_is_one_line_and_exit_code_2(colour_pack: Pack, here: Here) -> None:
    answer = here("train.py", "fast", "--pack", str(colour_pack.path), "--out", "run", "--device", "gpu")
    assert answer.code == 2
    assert answer.err.startswith("error: device gpu: torch finds no CUDA GPU here")
    assert len(answer.err.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_writes_a_checkpoint_and_leaves(
    colour_pack: Pack, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    arguments = ["paper", "--pack", str(colour_pack.path), "--out", str(out), *SMALL, "--batch-size", "8"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout
    assert process.stdout.readline().startswith("image cache: ")
    assert process.stdout.readline().startswith("epoch: 0")
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "with --resume goes on" in said
    assert "Traceback" not in said
    state = checkpoint.load(out / LAST)
    assert state["progress"]["epoch"] >= 1
    assert [entry.name for entry in out.iterdir() if entry.name.startswith(".")] == [LOCK]
    json.loads((out / RECIPE).read_text())


def test_an_out_that_cannot_be_a_folder_is_one_line(colour_pack: Pack, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RunError, match=r"cannot be made or written \(Not a directory\); name another folder: --out"
    ):
        train.train(tiny_job(colour_pack.path, tmp_path / "file" / "run"), never)


def test_a_dry_run_writes_nothing_however_often_checkpoints_are_due(
    colour_pack: Pack, tmp_path: Path, here: Here
) -> None:
    words = f"--pack {colour_pack.path} --out run --dry-run --checkpoints.steps 1 --device cpu".split()
    words += ["--network", "test_efficientnet", "--weights", "none", "--size", "32", "--batch-size", "8"]
    answer = here("train.py", "fine", *words)
    assert (answer.code, answer.err) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_training_and_validation_share_the_memory_of_the_image_cache(colour_pack: Pack) -> None:
    def planned(cache_bytes: int, image_cache: ImageCacheName = "auto") -> tuple[Plan, Plan]:
        resources = replace(ONE_THREAD, image_cache=image_cache, cache_bytes=f"{cache_bytes}B")
        with tiny_context(colour_pack, TINY, resources) as context:
            return context.training.plan, context.validation.plan

    train, val = (plan.nbytes for plan in planned(10**9))
    first, second = planned(train + val // 2)
    assert first.nbytes == train and first.kept.sum() == len(colour_pack.ids("train"))
    assert 0 < second.kept.sum() < len(colour_pack.ids("val"))
    assert first.nbytes + second.nbytes <= train + val // 2
    with pytest.raises(
        ResourcesError, match="and 0 bytes are left; training and validation share --cache-bytes"
    ):
        planned(train, "decoded")
