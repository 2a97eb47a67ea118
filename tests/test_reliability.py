"""Promises of docs/reliability.md, each with its fault: train, killed and resumed, alone in its folder."""

from __future__ import annotations

import html
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import kills
import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import files_up_to
from pictures import flip, flipped, folder, validate_image
from runs import (
    FULL,
    ONE_THREAD,
    SMALL,
    TINY,
    Capture,
    Here,
    Patch,
    batches_seen,
    never,
    resume,
    same_weights,
    tinted,
    tiny_job,
)

from greyhound import begin, train
from greyhound import eval as evaluation
from greyhound.cache.cli import Stopped, ValueFormatError, from_json
from greyhound.cache.machine import has_dali
from greyhound.cache.store import Pack, PackError
from greyhound.cache.validate import DaliDecoder
from greyhound.model import calibration, checkpoint
from greyhound.model.checkpoint import FORMAT, CheckpointError, numbered, rotate
from greyhound.model.report import report
from greyhound.model.run import (
    AVERAGED,
    BEST,
    CORRUPT,
    EVALUATION,
    LAST,
    LOCK,
    METRICS,
    RECIPE,
    SWA,
    VERSIONS,
    Run,
    RunError,
)
from greyhound.pipelines.engine import Resources
from greyhound.pipelines.loader import Batch, Loader, replacements
from greyhound.pipelines.order import epoch_order
from greyhound.recipe import Averaging, Checkpoints, Recipe

ENGINES = ["threads", "dali"] if has_dali() else ["threads"]
KILLS = {"probe": 3, "step": 4, "checkpoint": 3, "validation": 1, "averaging": 14, "evaluation": 3}
"""The phases in the order in which a run is killed in them, and the last of the moments, from 1, that are
drawn from. The steps are the first four of the first epoch; an epoch's validation is one batch."""


@pytest.fixture(scope="module")
def undisturbed(colour_pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the full recipe comes to in a process that nobody kills."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    kills.finish(colour_pack.path, out)
    found = kills.bits(out)
    assert found[EVALUATION]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(3))
def test_a_run_that_was_killed_again_and_again_is_the_run(
    colour_pack: Pack, tmp_path: Path, undisturbed: dict[str, Any], turn: int
) -> None:
    """Six times each, once a phase, by SIGKILL, and resumed every time: 18 in all."""
    generator = random.Random(seed := time.time_ns())
    for phase, last in KILLS.items():
        kills.kill(colour_pack.path, tmp_path / "run", phase, generator.randint(1, last))
    kills.finish(colour_pack.path, tmp_path / "run")
    assert kills.bits(tmp_path / "run") == undisturbed, f"seed {seed}"


@pytest.mark.slow
def test_a_run_killed_at_any_write_is_the_run(colour_pack: Pack, tmp_path: Path, monkeypatch: Patch) -> None:
    """As if power failed when a file had its data and not yet its name: at every file of the full recipe."""
    monkeypatch.setattr(report, "build", lambda run: run)
    monkeypatch.setattr(begin, "draw_pictures", lambda *_: None)
    out, replacing, moments = tmp_path / "whole", Path.replace, list[Path]()

    def keep(self: Path, target: Path) -> Path:
        """Keep what is there before the file gets its name; the first files describe the run."""
        if target.parent == out and (out / RECIPE).exists():
            moments.append(tmp_path / str(len(moments)))
            moments[-1].mkdir()
            for file in out.iterdir():
                with suppress(FileNotFoundError):  # that of another thread
                    shutil.copy(file, moments[-1])
        return replacing(self, target)

    recipe = replace(FULL, averaging=Averaging(steps=1, rate=1e-5))
    job = replace(tiny_job(colour_pack.path, out, recipe=recipe), checkpoints=Checkpoints(steps=3))
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", keep)
        train.train(job, never)
    whole = kills.bits(out)
    for moment in moments:
        assert [file.name for file in moment.glob(".*.*")], "a file without its name"
        train.train(replace(job, out=moment, resume=True), never)
        assert kills.bits(moment) == whole, f"write {moment.name}"
    assert len(moments) > 12, "of every kind of file, some more than once"


def progress(path: Path) -> tuple[int, int]:
    """Where a checkpoint stands: its epoch, and the images of it."""
    found = checkpoint.load(path)["progress"]
    return found["epoch"], found["images"]


def test_checkpoints_on_the_way_change_nothing(colour_pack: Pack, tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    job = replace(tiny_job(colour_pack.path, out), checkpoints=Checkpoints(steps=2, keep=3))
    train.train(job, never)
    assert (out / METRICS).read_bytes() == (tiny_run / METRICS).read_bytes()
    places = [progress(numbered(out / LAST, age)) for age in range(3)]
    assert places == [(2, 0), (1, 28), (1, 14)], "the end, and after four and two of six steps"
    assert not numbered(out / LAST, 3).exists()


def test_the_newest_checkpoints_are_kept_and_the_file_itself_never_misses(tmp_path: Path) -> None:
    path = tmp_path / LAST
    for turn in range(5):
        rotate(path, 3)
        assert turn == 0 or path.exists()
        checkpoint.save(path, {"turn": turn})
    assert [checkpoint.load(numbered(path, age))["turn"] for age in range(3)] == [4, 3, 2]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(
    run: Path, tiny_run: Path, colour_pack: Pack, capsys: Capture
) -> None:
    flip(run / LAST)
    (run / AVERAGED).unlink()
    (run / SWA).unlink()
    resume(colour_pack, run)
    said = capsys.readouterr()
    assert "last.ckpt is corrupt" in said.err and "note: going on from last.1.ckpt\n" in said.err
    assert said.out.startswith("resumed in epoch 1, after 0 of 42 images")
    assert (run / METRICS).read_bytes() == (tiny_run / METRICS).read_bytes()
    assert same_weights(run / LAST, tiny_run / LAST)
    assert progress(numbered(run / LAST, 1)) == (1, 0), "the one that it went on from, not the corrupt one"


def test_a_checkpoint_of_a_newer_version_is_not_passed_over(run: Path, colour_pack: Pack) -> None:
    content = torch.load(run / LAST, weights_only=True)
    torch.save(content | {"greyhound_checkpoint": 99}, run / LAST)
    before = (run / LAST).read_bytes()
    with pytest.raises(
        CheckpointError, match=f"has checkpoint format 99; expected {FORMAT}; update Greyhound"
    ):
        resume(colour_pack, run)
    assert (run / LAST).read_bytes() == before


def test_where_every_checkpoint_is_damaged_each_is_named(
    run: Path, colour_pack: Pack, capsys: Capture
) -> None:
    for age in range(2):
        numbered(run / LAST, age).write_bytes(b"PK\x03\x04 nothing more")
    says = r"run has no checkpoint that can be read \(last\.ckpt, last\.1\.ckpt\); put back a copy of one, or train"
    with pytest.raises(CheckpointError, match=says):
        resume(colour_pack, run)
    newest, before = capsys.readouterr().err.splitlines()
    assert "last.ckpt is truncated" in newest and newest.endswith("; looking at the one before it")
    assert "last.1.ckpt is truncated" in before and not before.endswith("before it")


def test_what_a_killed_process_left_is_swept(run: Path, colour_pack: Pack) -> None:
    """And nobody else's file."""
    left = {".last.4711.ckpt", ".last.1.4711.ckpt", ".metrics.7.jsonl", ".eval-val.7.json", ".report.1.html"}
    theirs = {".hidden", ".notes.2024.txt", ".photo.17.png", "letter.doc"}
    for name in left | theirs:
        (run / name).write_text("x")
    before = {entry.name for entry in run.iterdir()}
    resume(colour_pack, run)
    assert {entry.name for entry in run.iterdir()} == before - left
    assert {name for name in before - left if name.startswith(".")} == {*theirs - {"letter.doc"}, LOCK}


@pytest.mark.parametrize("left", [("pack.json",), ("pack.json", "versions.json", ".recipe.99.json")])
def test_a_start_that_was_ended_at_once_can_be_made_again(
    colour_pack: Pack, tmp_path: Path, left: tuple[str, ...]
) -> None:
    folder(tmp_path / "run", dict.fromkeys(left, b"{}"))
    train.train(tiny_job(colour_pack.path, tmp_path / "run"), never)
    assert [row["epoch"] for row in Run(tmp_path / "run").rows(METRICS)] == [0, 1]


def test_a_finished_run_forced_on_is_averaged_again(run: Path, tiny_run: Path, colour_pack: Pack) -> None:
    longer = replace(TINY, phases=(replace(TINY.phases[0], epochs=3),), select="loss")
    resume(colour_pack, run, longer, force=("recipe",))
    assert [row["epoch"] for row in Run(run).rows(METRICS)] == [0, 1, 2]
    best = checkpoint.load(run / BEST)  # which epoch that is, depends on the machine
    losses = {f"epoch {row['epoch']}": row["valid_loss"] for row in Run(run).rows(METRICS)}
    assert best["score"] == pytest.approx(-losses[best["after"]]), "an accuracy is not compared with a loss"
    assert losses[best["after"]] <= losses["epoch 2"]
    assert not same_weights(run / AVERAGED, tiny_run / AVERAGED)


HOLD = """
import filelock, sys, time
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print(1, flush=True)
time.sleep(600)
"""


def test_a_folder_in_use_is_refused_and_a_dead_owners_is_not(run: Path, colour_pack: Pack) -> None:
    command = [sys.executable, "-c", HOLD, str(run / LOCK)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert holder.stdout and holder.stdout.readline()
        with pytest.raises(RunError, match="in use by another training; wait for its end, or name another"):
            resume(colour_pack, run)
        with pytest.raises(RunError, match="is in use by another training"):
            train.train(tiny_job(colour_pack.path, run), never)
    finally:
        holder.kill()
        holder.communicate()
    resume(colour_pack, run)
    with FileLock(run / LOCK).acquire(timeout=0):
        assert (run / LOCK).exists(), "let go of after the end"


def test_another_library_version_is_refused_unless_forced(run: Path, colour_pack: Pack) -> None:
    here = Run(run).read(VERSIONS)
    Run(run).write(VERSIONS, here | {"torch": "1.0.0", "machine": "another", "date": "2020-01-01"})
    said = rf"was trained with torch 1\.0\.0, and here is {here['torch']}; use that .*--force versions"
    with pytest.raises(RunError, match=said):
        resume(colour_pack, run)
    resume(colour_pack, run, force=("versions",))
    after = Run(run).read(VERSIONS)
    assert (after["torch"], after["torch until epoch 2"]) == (here["torch"], "1.0.0")
    assert "machine until epoch 2" not in after, "another processor is no other version"


def test_another_batch_size_keeps_the_order_of_the_images(colour_pack: Pack, tmp_path: Path) -> None:
    """Stopped after 14 of 42 images at 8 a batch, forced on at 5 a batch: the images to come stay."""
    out, recipe = tmp_path / "run", replace(TINY, averaging=Averaging(steps=0))
    asked = iter([None, None, signal.SIGTERM])
    with pytest.raises(Stopped):
        train.train(tiny_job(colour_pack.path, out, recipe=recipe), lambda: next(asked))
    smaller, seen = replace(recipe, batch_size=5), list[int]()
    with pytest.raises(RunError, match=r"batch_size = 8, not 5; resume with the same recipe, or --force"):
        resume(colour_pack, out, smaller)

    def look(title: str, _: Loader, batch: Batch) -> None:
        seen.extend(batch.ids.tolist() if title.startswith("training") else [])

    with batches_seen(look):
        resume(colour_pack, out, smaller, force=("recipe",))
    rows = colour_pack.ids("train")
    assert seen == [*epoch_order(rows, 0, 0)[14:].tolist(), *epoch_order(rows, 0, 1).tolist()]
    assert Run(out).read("recipe.json")["batch_size"] == 5


def test_determinism_is_verified(colour_pack: Pack, tmp_path: Path, capsys: Capture) -> None:
    job = replace(tiny_job(colour_pack.path, tmp_path / "run"), verify_determinism=True)
    assert train.train(job, never) == 0
    said = capsys.readouterr().out
    assert said.startswith("20 steps twice: weights ") and said.endswith("equal, bit for bit\n")
    assert not (tmp_path / "run").exists()


def test_what_is_not_deterministic_is_said(
    colour_pack: Pack, tmp_path: Path, capsys: Capture, monkeypatch: Patch
) -> None:
    def shaky(optimizer: torch.optim.Optimizer, _: float) -> None:
        optimizer.param_groups[0]["params"][0].data.mul_(1 + time.perf_counter_ns() % 1000 * 1e-6)

    monkeypatch.setattr(train, "set_lr", shaky)
    job = replace(tiny_job(colour_pack.path, tmp_path / "run"), verify_determinism=True)
    assert train.train(job, never) == 1
    assert "which differ" in capsys.readouterr().out


TRAIN = f"fine --pack PACK --out new {' '.join(SMALL)} --no-linear-probe"
OUT_OF_MEMORY = {
    f"train.py {TRAIN}": "at batch size 32; lower --batch-size or --micro-batch, or add --activation-checkpointing;",
    "eval.py --run run --device cpu": "at 16 crops at once; lower --batch-size and --crops, or use --device cpu",
    "explain.py --run run --device cpu --count 7": "at 7 images at once; lower --count, or use --device cpu",
}
"""A program, and what it says."""


@pytest.mark.parametrize("program", OUT_OF_MEMORY)
def test_out_of_memory_says_what_to_lower(
    run: Path, colour_pack: Pack, monkeypatch: Patch, here: Here, program: str
) -> None:
    """As torch says it of a GPU; every other way: `test_model_dry_run.py`."""

    def allocate(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    for place in ("step.mean_loss", "precision.forward", "saliency.saliency"):
        monkeypatch.setattr(f"greyhound.model.{place}", allocate)
    answer = here(*program.replace("PACK", str(colour_pack.path)).split())
    assert answer.error.startswith(f"out of memory {OUT_OF_MEMORY[program]}")


def test_a_full_disk_leaves_the_last_checkpoint(colour_pack: Pack, tmp_path: Path, here: Here) -> None:
    """RLIMIT_FSIZE stands for it: a file that grows beyond it fails as on a full disk."""
    out, words = tmp_path / "new", TRAIN.replace("PACK", str(colour_pack.path)).split()
    words = ["train.py", *words, "--batch-size", "8", "--averaging.steps", "2"]
    assert here(*words).code == 0
    before = {name: (out / name).read_bytes() for name in (LAST, METRICS, BEST)}
    averaged = (out / AVERAGED).rename(tmp_path / "averaged")
    (out / SWA).unlink()
    with files_up_to(2048):
        limited = here(*words, "--resume")
    assert "swa.ckpt cannot be written: File too large; nothing was changed" in limited.error
    assert {name: (out / name).read_bytes() for name in before} == before
    assert {entry.name for entry in out.iterdir() if entry.name.startswith(".")} == {LOCK}
    assert here(*words, "--resume").code == 0
    assert same_weights(out / AVERAGED, averaged)


# --- images whose bytes changed after they were packed --------------------------------------------------------


TIERS = [("threads", "encoded"), ("threads", "decoded"), ("dali", "encoded")]


@pytest.fixture(params=[(engine, tier) for engine, tier in TIERS if engine in ENGINES], ids="-".join)
def on(request: pytest.FixtureRequest) -> Resources:
    """Both engines, the threads with and without the image cache; DALI always keeps encoded images."""
    engine, tier = request.param
    return Resources(engine, "cpu", threads=1, image_cache=tier)


Damage: TypeAlias = Callable[..., Pack]


@pytest.fixture
def damage(colour_pack: Pack, tmp_path: Path) -> Damage:
    """Makes a copy of the pack with one flipped bit in each of the images `rows`."""
    return partial(flipped, colour_pack, tmp_path / "p.arrow")


def test_a_damaged_image_stops_a_training(
    colour_pack: Pack, damage: Damage, tmp_path: Path, on: Resources
) -> None:
    """In its first epoch: the pictures at the start, of every seventh image, do not meet this one."""
    row = colour_pack.ids("train")[8]
    job = replace(tiny_job(damage(row).path, tmp_path / "run"), resources=on)
    with pytest.raises(PackError, match=rf"p\.arrow is corrupt: row {row} \(.*--on-corrupt skip goes on"):
        train.train(job, never)
    assert (tmp_path / "run" / "augmented.png").exists()


def test_every_damaged_image_of_a_batch_is_named(colour_pack: Pack, damage: Damage, on: Resources) -> None:
    first, *_, second, third = epoch_order(colour_pack.ids("train"), 0, 0)[:7].tolist()
    pack = damage(first, second, third)
    loader = Loader(pack, TINY.augment, pack.ids("train"), on, batch_size=8, shuffle=True)
    with loader, pytest.raises(PackError) as refusal:
        next(iter(loader))
    said = str(refusal.value)
    assert all(pack.describe(row) in said for row in (first, second, third))
    assert said.count(".img')") == 3 and " have not the bytes that were packed; copy the pack again" in said


def test_a_start_names_all_damaged_images(colour_pack: Pack, damage: Damage, tmp_path: Path) -> None:
    """The pictures at the start are of a few images only."""
    trained = colour_pack.ids("train").tolist()
    bad = [trained[0], *trained[3:6], trained[-1]]
    with pytest.raises(PackError) as refusal:
        train.train(tiny_job(damage(*bad).path, tmp_path / "run"), never)
    assert all(colour_pack.describe(row) in str(refusal.value) for row in bad)


def test_skipped_images_are_replaced_and_named(
    colour_pack: Pack, damage: Damage, tmp_path: Path, on: Resources, capsys: Capture
) -> None:
    trained, held_out = colour_pack.ids("train"), colour_pack.ids("val")
    bad = [int(trained[7]), int(trained[30]), int(held_out[0])]
    job = tiny_job(damage(*bad).path, tmp_path / "run", recipe=replace(TINY, averaging=Averaging(steps=0)))
    train.train(replace(job, resources=replace(on, on_corrupt="skip")), never)
    said = capsys.readouterr().err
    replaced = "and 1 more are corrupt; replaced by others, of the same class where it has one"
    assert f"row {bad[0]} (" in said and replaced in said
    assert f"row {bad[2]} (" in said and "is corrupt; left out" in said
    rows = Run(tmp_path / "run").rows(METRICS)
    assert [(row["replaced"], row["n"]) for row in rows] == [(2, 5), (2, 5)]
    written, paths = Run(tmp_path / "run").read(CORRUPT), [colour_pack.image_path(row) for row in bad]
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(html.escape(path) in page for path in paths)
    assert [row["row"] for row in written["replaced"]] == bad[:2]
    assert [row["path"] for row in written["replaced"]] == paths[:2]
    replacement = [row["replacement"] for row in written["replaced"]]
    assert np.array_equal(colour_pack.labels[replacement], colour_pack.labels[bad[:2]])
    assert written["left_out"] == [{"row": bad[2], "path": paths[2], "replacement": None}]


def test_a_replacement_is_of_the_same_class_at_any_batch_size(colour_pack: Pack, damage: Damage) -> None:
    trained = colour_pack.ids("train")
    bad = [int(trained[3]), int(trained[-1])]
    pack, skip = damage(*bad), Resources(device="cpu", on_corrupt="skip")
    orders = []
    for size in (5, 42):
        with Loader(pack, TINY.augment, trained, skip, batch_size=size, shuffle=True, epochs=1) as loader:
            orders.append(np.concatenate([batch.ids.numpy() for batch in loader]))
    assert np.array_equal(orders[0], orders[1])
    plain = epoch_order(trained, 0, 0)
    assert sorted(plain[plain != orders[0]].tolist()) == bad
    assert np.array_equal(pack.labels[plain], pack.labels[orders[0]])
    assert not np.isin(orders[0], bad).any()


def test_no_image_is_read_twice_to_be_found_valid(colour_pack: Pack, damage: Damage) -> None:
    trained = colour_pack.ids("train")
    pack = damage(trained[3])
    with mock.patch.object(Pack, "is_valid", autospec=True, side_effect=Pack.is_valid) as look:
        for _ in range(3):
            assert pack.corrupt(trained) == [trained[3]]
    assert look.call_count == 42 + 2, "the corrupt one three times"


def test_a_head_is_solved_on_the_sound_images(colour_pack: Pack, damage: Damage, tmp_path: Path) -> None:
    pack = damage(colour_pack.ids("train")[5], colour_pack.ids("val")[1])
    recipe = replace(TINY, linear_probe=True, averaging=Averaging(steps=0))
    job = tiny_job(pack.path, tmp_path / "run", recipe=recipe)
    train.train(replace(job, resources=replace(job.resources, on_corrupt="skip")), never)
    solved = Run(tmp_path / "run").read("probe.json")
    assert (solved["images"], solved["n"]) == (41, 5)


def test_stand_ins_by_hand() -> None:
    labels = np.array([0, 0, 1, 0, 2, 1], dtype=np.int32)
    ids = np.array([0, 1, 3, 4, 5])
    found = replacements(labels, ids, np.array([1, 3, 4])).tolist()
    assert found == [0, 0, 2, 0, 5, 5], "the next of the class, round to the first; of none, the next of any"
    with pytest.raises(PackError, match="all of the 2 images asked for are corrupt"):
        replacements(labels, np.array([0, 1]), np.array([0, 1]))


def test_evaluation_leaves_damaged_images_out_and_says_so(
    run: Path, colour_pack: Pack, damage: Damage, capsys: Capture
) -> None:
    row = int(colour_pack.ids("test")[2])
    job = evaluation.Job(run=run, pack=damage(row).path, crops=2, resources=Resources(device="cpu"))
    with pytest.raises(PackError, match=rf"row {row} \("):
        evaluation.evaluate(job)
    assert not (run / EVALUATION).exists()
    evaluation.evaluate(replace(job, resources=Resources(device="cpu", on_corrupt="skip")))
    result = Run(run).read(EVALUATION)
    assert (result["n"], result["left_out"]) == (11, 1)
    assert result["left_out_images"] == [colour_pack.image_path(row)]
    assert f"row {row} (" in capsys.readouterr().err


def test_an_evaluation_needs_no_validation_image_that_can_be_read(
    run: Path, colour_pack: Pack, damage: Damage, capsys: Capture, monkeypatch: Patch
) -> None:
    """They fit the temperature, and no more."""
    monkeypatch.setattr(calibration, "LEAST", 1)
    job = evaluation.Job(run=run, pack=damage(*colour_pack.ids("val")).path, crops=2, resources=ONE_THREAD)
    with pytest.raises(PackError, match="is corrupt: row"):
        evaluation.evaluate(job)
    evaluation.evaluate(replace(job, resources=replace(ONE_THREAD, on_corrupt="skip")))
    result = Run(run).read(EVALUATION)
    assert (result["n"], result["left_out"], result["calibration"]["temperature"]) == (12, 0, 1)
    assert (
        "; temperature 1: no validation image can be read, so none can be fitted" in capsys.readouterr().out
    )
    count = len(colour_pack.ids("val"))
    with pytest.raises(PackError, match=f"all of the {count} images asked for are corrupt"):
        evaluation.evaluate(replace(job, split="val", resources=replace(ONE_THREAD, on_corrupt="skip")))


# --- bytes from elsewhere -----------------------------------------------------------------------------------

FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def spoilt(data: bytes) -> st.SearchStrategy[bytes]:
    """Anything at all, or `data` with a piece cut out or replaced."""
    pieces = st.tuples(st.integers(0, len(data)), st.integers(0, 200), st.binary(max_size=40))
    return st.one_of(st.binary(max_size=300), pieces.map(lambda p: data[: p[0]] + p[2] + data[p[0] + p[1] :]))


def read_pack(file: Path) -> object:
    pack = Pack(file)
    bad = pack.corrupt()
    return [pack.encoded(row) for row in range(len(pack)) if row not in bad]


def read_run(file: Path) -> object:
    if file.name == METRICS:
        return Run(file.parent).rows(METRICS)
    content = Run(file.parent).read(file.name)
    return from_json(Recipe, content, file.name) if file.name == "recipe.json" else content


RUN = ("recipe.json", "pack.json", VERSIONS, SWA, METRICS)
READERS: dict[str, tuple[Callable[[Path], object], int, tuple[type[Exception], ...]]] = {
    "images.arrow": (read_pack, 30, (PackError,)),
    **dict.fromkeys((LAST, BEST), (checkpoint.load, 30, (CheckpointError,))),
    **dict.fromkeys(RUN, (read_run, 5, (RunError, ValueFormatError))),
}
"""What reads a file, how often it refuses at least, and how."""


@pytest.mark.parametrize("name", READERS)
def test_any_bytes_for_a_file_of_ours(tiny_run: Path, colour_pack: Pack, tmp_path: Path, name: str) -> None:
    """Answered, or refused in one line."""
    (read, least, expected), refused = READERS[name], 0
    source = (colour_pack.path.parent if read is read_pack else tiny_run) / name

    @FEW
    @given(content=spoilt(source.read_bytes()))
    def attempt(content: bytes) -> None:
        nonlocal refused
        (tmp_path / name).write_bytes(content)
        try:
            read(tmp_path / name)
        except expected as error:
            refused += 1
            assert "\n" not in str(error)

    attempt()
    assert refused > least


def test_any_bytes_for_the_survey() -> None:
    """Whatever a file holds, looking at it answers."""
    probe, problems = DaliDecoder(), set()

    @FEW
    @given(content=spoilt(tinted(1, 0)))
    def attempt(content: bytes) -> None:
        problems.add(validate_image(content, probe).problem)

    attempt()
    assert {"undecodable", "truncated"} & problems
