"""Promises of docs/reliability.md, each with its fault: train, killed and resumed, alone in its folder."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import kills
import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import FULL, SMALL, TINY, Here, never, tinted, tiny_job

from greyhound import begin, train
from greyhound import eval as evaluation
from greyhound.cache.cli import Stopped, ValueFormatError, from_json
from greyhound.cache.machine import has_dali
from greyhound.cache.store import Pack, PackError
from greyhound.cache.validate import DaliDecoder, validate_image
from greyhound.model import checkpoint
from greyhound.model.checkpoint import FORMAT, CheckpointError, numbered, rotate
from greyhound.model.report import report
from greyhound.model.run import AVERAGED, BEST, CORRUPT, LAST, LOCK, METRICS, VERSIONS, Run, RunError
from greyhound.pipelines.engine import EngineName, ImageCacheName, Resources
from greyhound.pipelines.loader import Batch, Loader, replacements
from greyhound.pipelines.order import epoch_order
from greyhound.recipe import Averaging, Checkpoints, Recipe, TrainOptions
from greyhound.session import TrainContext

ROOT = Path(__file__).parents[1]
ENGINES = ["threads", *(["dali"] if has_dali() else [])]
KILLS = {
    "probe": 3,
    "step": 4,
    "checkpoint": 3,
    "validation": 1,
    "interpolation": 3,
    "averaging": 14,
    "evaluation": 3,
}
"""The phases in the order in which a run is killed in them, and the last of the moments, from 1, that are
drawn from. The steps are the first four of the first epoch; an epoch's validation and each network between
are one batch."""


@pytest.fixture(scope="module")
def undisturbed(colour_pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the full recipe comes to in a process that nobody kills."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    kills.finish(colour_pack.path, out)
    found = kills.bits(out)
    assert found["best"][0].endswith("of the way from the linear probe")
    assert found["evaluation"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("run", range(3))
def test_a_run_that_was_killed_again_and_again_is_the_run(
    colour_pack: Pack, tmp_path: Path, undisturbed: dict[str, Any], run: int
) -> None:
    """Seven times each, once a phase, by SIGKILL, and resumed every time: 21 in all."""
    generator = random.Random(seed := time.time_ns())
    for phase, last in KILLS.items():
        kills.kill(colour_pack.path, tmp_path / "run", phase, generator.randint(1, last))
    kills.finish(colour_pack.path, tmp_path / "run")
    assert kills.bits(tmp_path / "run") == undisturbed, f"seed {seed}"


@pytest.mark.slow
def test_a_run_killed_at_any_write_is_the_run(
    colour_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if power failed when a file had its data and not yet its name: at every file of the full recipe."""
    monkeypatch.setattr(report, "build", lambda run: run)
    monkeypatch.setattr(begin, "draw_pictures", lambda *_: None)
    job = replace(
        tiny_job(colour_pack.path, tmp_path / "whole", recipe=FULL), checkpoints=Checkpoints(steps=3)
    )
    train.train(job, never)
    whole = kills.bits(tmp_path / "whole")
    moment = 3  # the first three describe the run
    while not ends_before(job, tmp_path / str(moment), moment, monkeypatch):
        out = tmp_path / str(moment)
        train.train(replace(job, out=out, resume=True), never)
        assert kills.bits(out) == whole, f"write {moment}"
        shutil.rmtree(out)
        moment += 1
    assert moment > 20, "of every kind of file, some more than once"


def ends_before(job: TrainOptions, out: Path, moment: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Train, and lose power at the write after so many; whether the training ended before it came."""
    count, replacing = 0, Path.replace

    def lose_power(self: Path, target: Path) -> Path:
        nonlocal count
        count += target.parent == out
        if target.parent == out and count > moment:
            raise SystemExit("no power")
        return replacing(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", lose_power)
        try:
            train.train(replace(job, out=out), never)
        except SystemExit:
            return False
    return True


def test_checkpoints_on_the_way_change_nothing(colour_pack: Pack, tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    job = replace(tiny_job(colour_pack.path, out), checkpoints=Checkpoints(steps=2, keep=3))
    train.train(job, never)
    assert (out / METRICS).read_bytes() == (tiny_run / METRICS).read_bytes()
    places = []
    for age in range(3):
        content = checkpoint.load(numbered(out / LAST, age))
        places.append((content["progress"]["epoch"], content["progress"]["images"]))
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
    tiny_run: Path, colour_pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    data = bytearray((out / LAST).read_bytes())
    data[len(data) // 2] ^= 1
    (out / LAST).write_bytes(data)
    (out / AVERAGED).unlink()
    (out / "swa.json").unlink()
    train.train(tiny_job(colour_pack.path, out, resume=True), never)
    said = capsys.readouterr()
    assert "last.ckpt is corrupt" in said.err and "note: going on from last.1.ckpt\n" in said.err
    assert said.out.startswith("resumed in epoch 1, after 0 of 42 images")
    assert (out / METRICS).read_bytes() == (tiny_run / METRICS).read_bytes()
    found, expected = (checkpoint.load(folder / LAST)["network"] for folder in (out, tiny_run))
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    kept = checkpoint.load(numbered(out / LAST, 1))["progress"]
    assert (kept["epoch"], kept["images"]) == (1, 0), "the one that it went on from, and not the corrupt one"


def test_a_checkpoint_of_a_newer_version_is_not_passed_over(
    tiny_run: Path, colour_pack: Pack, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    content = torch.load(out / LAST, weights_only=True)
    torch.save(content | {"greyhound_checkpoint": 99}, out / LAST)
    before = (out / LAST).read_bytes()
    with pytest.raises(
        CheckpointError, match=f"has checkpoint format 99; expected {FORMAT}; update Greyhound"
    ):
        train.train(tiny_job(colour_pack.path, out, resume=True), never)
    assert (out / LAST).read_bytes() == before


def test_what_a_killed_process_left_is_swept(tiny_run: Path, colour_pack: Pack, tmp_path: Path) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    (out / ".last.4711.ckpt").write_bytes(b"half")
    (out / ".hidden").write_bytes(b"somebody else's")
    train.train(tiny_job(colour_pack.path, out, resume=True), never)
    assert {entry.name for entry in out.iterdir() if entry.name.startswith(".")} == {LOCK, ".hidden"}


@pytest.mark.parametrize("left", [("pack.json",), ("pack.json", "versions.json", ".recipe.99.json")])
def test_a_start_that_was_ended_at_once_can_be_made_again(
    colour_pack: Pack, tmp_path: Path, left: tuple[str, ...]
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    for name in left:
        (out / name).write_text("{}")
    train.train(tiny_job(colour_pack.path, out), never)
    assert [row["epoch"] for row in Run(out).rows(METRICS)] == [0, 1]


def test_what_contradicts_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="--verify-determinism starts from the beginning; leave out --resume"
    ):
        TrainOptions(out=tmp_path, resume=True, verify_determinism=True)
    with pytest.raises(ValueError, match="--force is for a run that is resumed"):
        TrainOptions(out=tmp_path, force=("recipe",))


def test_a_finished_run_that_is_forced_on_is_averaged_again(
    tiny_run: Path, colour_pack: Pack, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    longer = replace(TINY, phases=(replace(TINY.phases[0], epochs=3),), select="loss")
    job = tiny_job(colour_pack.path, out, resume=True, recipe=longer)
    train.train(replace(job, force=("recipe",)), never)
    assert [row["epoch"] for row in Run(out).rows(METRICS)] == [0, 1, 2]
    # Which epoch that is, depends on the machine.
    best = checkpoint.load(out / BEST)
    losses = {f"epoch {row['epoch']}": row["valid_loss"] for row in Run(out).rows(METRICS)}
    assert best["score"] == pytest.approx(-losses[best["after"]]), "an accuracy is not compared with a loss"
    assert losses[best["after"]] <= losses["epoch 2"]
    averaged, before = (checkpoint.load(folder / AVERAGED)["network"] for folder in (out, tiny_run))
    assert any(not torch.equal(averaged[key], value) for key, value in before.items())


def test_where_every_checkpoint_is_damaged_the_newest_is_named(
    tiny_run: Path, colour_pack: Pack, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    for age in range(2):
        numbered(out / LAST, age).write_bytes(b"PK\x03\x04 nothing more")
    with pytest.raises(CheckpointError, match=r"last\.ckpt is truncated"):
        train.train(tiny_job(colour_pack.path, out, resume=True), never)


def test_a_folder_in_use_is_refused_and_a_dead_owners_is_not(
    tiny_run: Path, colour_pack: Pack, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(1, flush=True); time.sleep(600)",
            str(out / LOCK),
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout and holder.stdout.readline()
        with pytest.raises(
            RunError, match="is in use by another training; wait for its end, or name another folder"
        ):
            train.train(tiny_job(colour_pack.path, out, resume=True), never)
        with pytest.raises(RunError, match="is in use by another training"):
            train.train(tiny_job(colour_pack.path, out), never)
    finally:
        holder.kill()
        holder.communicate()
    train.train(tiny_job(colour_pack.path, out, resume=True), never)
    with FileLock(out / LOCK).acquire(timeout=0):
        assert (out / LOCK).exists(), "let go of after the end"


def test_another_library_version_is_refused_unless_forced(
    tiny_run: Path, colour_pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    here = Run(out).read(VERSIONS)
    Run(out).write(VERSIONS, here | {"torch": "1.0.0", "machine": "another", "date": "2020-01-01"})
    message = (
        rf"was trained with torch 1\.0\.0, and here is {here['torch']}; use that one, or .*--force versions"
    )
    with pytest.raises(RunError, match=message):
        train.train(tiny_job(colour_pack.path, out, resume=True), never)
    train.train(replace(tiny_job(colour_pack.path, out, resume=True), force=("versions",)), never)
    after = Run(out).read(VERSIONS)
    assert (after["torch"], after["torch until epoch 2"]) == (here["torch"], "1.0.0")
    assert "machine until epoch 2" not in after, "another processor is no other version"


def test_another_batch_size_keeps_the_order_of_the_images(
    colour_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after 14 of 42 images at 8 a batch, forced on at 5 a batch: the images to come stay."""
    seen: list[int] = []
    following = TrainContext.with_progress

    def follow(context: TrainContext, title: str, *rest: Any) -> Iterator[Batch]:
        for batch in following(context, title, *rest):
            if title.startswith("training"):
                seen.extend(batch.ids.tolist())
            yield batch

    out, recipe = tmp_path / "run", replace(TINY, averaging=Averaging(steps=0))
    asked = iter([None, None, signal.SIGTERM])
    with pytest.raises(Stopped):
        train.train(tiny_job(colour_pack.path, out, recipe=recipe), lambda: next(asked))
    monkeypatch.setattr(TrainContext, "with_progress", follow)
    smaller = replace(recipe, batch_size=5)
    with pytest.raises(
        RunError, match=r"batch_size = 8, not 5; resume with the same recipe, or .*: --force recipe"
    ):
        train.train(tiny_job(colour_pack.path, out, resume=True, recipe=smaller), never)
    train.train(
        replace(tiny_job(colour_pack.path, out, resume=True, recipe=smaller), force=("recipe",)), never
    )
    rows = colour_pack.ids("train")
    expected = [*epoch_order(rows, 0, 0)[14:], *epoch_order(rows, 0, 1)]
    assert seen == [int(row) for row in expected]
    assert Run(out).read("recipe.json")["batch_size"] == 5


def test_determinism_is_verified(
    colour_pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = replace(tiny_job(colour_pack.path, tmp_path / "run"), verify_determinism=True)
    assert train.train(job, never) == 0
    said = capsys.readouterr().out
    assert said.startswith("20 steps twice: weights ") and said.endswith("equal, bit for bit\n")
    assert not (tmp_path / "run").exists()


def test_what_is_not_deterministic_is_said(
    colour_pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @torch.no_grad()
    def shaky(network: torch.nn.Module, _: float) -> None:
        next(network.parameters()).mul_(1 + time.perf_counter_ns() % 1000 * 1e-6)

    monkeypatch.setattr(train, "clip_gradient", shaky)
    job = replace(tiny_job(colour_pack.path, tmp_path / "run"), verify_determinism=True)
    assert train.train(job, never) == 1
    assert "which differ" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("program", "place", "says"),
    [
        (
            "train",
            "greyhound.model.step.mean_loss",
            "out of memory at batch size 32; lower --batch-size, or add --activation-checkpointing;",
        ),
        (
            "eval",
            "greyhound.model.precision.forward",
            "out of memory at 64 crops at once; lower --batch-size and --crops, or use --device cpu",
        ),
        (
            "explain",
            "greyhound.model.saliency.saliency",
            "out of memory at 7 images at once; lower --count, or use --device cpu",
        ),
    ],
)
def test_out_of_memory_says_what_to_lower(
    tiny_run: Path,
    colour_pack: Pack,
    monkeypatch: pytest.MonkeyPatch,
    here: Here,
    program: str,
    place: str,
    says: str,
) -> None:
    """As torch says it of a GPU; every other way: `test_model_dry_run.py`."""

    def allocate(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(place, allocate)
    arguments = {
        "train": ("fast", "--pack", str(colour_pack.path), "--out", "run", *SMALL, "--no-linear-probe"),
        "eval": ("--run", str(tiny_run), "--device", "cpu"),
        "explain": ("--run", str(tiny_run), "--device", "cpu", "--count", "7"),
    }
    answer = here(f"{program}.py", *arguments[program])
    assert answer.code == 2
    assert answer.err.startswith(f"error: {says}")
    assert len(answer.err.splitlines()) == 1


def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(colour_pack: Pack, tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for it: a file that grows beyond it fails as on a full disk."""
    out = tmp_path / "run"
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "fast",
        "--pack",
        str(colour_pack.path),
        "--out",
        str(out),
    ]
    command += [*SMALL, "--batch-size", "8", "--averaging.steps", "2"]
    subprocess.run(command, check=True, capture_output=True)
    before = {name: (out / name).read_bytes() for name in (LAST, METRICS, BEST)}
    averaged = checkpoint.load(out / AVERAGED)["network"]
    (out / AVERAGED).unlink()
    (out / "swa.json").unlink()
    limited = subprocess.run(
        ["sh", "-c", 'ulimit -f 4; trap "" XFSZ; exec "$@"', "sh", *command, "--resume"],
        capture_output=True,
        text=True,
    )
    assert limited.returncode == 2, limited.stderr
    assert len(limited.stderr.splitlines()) == 1
    assert "swa.ckpt cannot be written: File too large; nothing was changed" in limited.stderr
    assert {name: (out / name).read_bytes() for name in before} == before
    assert {entry.name for entry in out.iterdir() if entry.name.startswith(".")} == {LOCK}
    subprocess.run([*command, "--resume"], check=True, capture_output=True)
    found = checkpoint.load(out / AVERAGED)["network"]
    assert all(torch.equal(found[key], value) for key, value in averaged.items())


def damage(pack: Pack, target: Path, rows: list[int]) -> Path:
    """A copy of the pack with one flipped bit in each of the images `rows`."""
    data = bytearray(pack.path.read_bytes())
    for row in rows:
        place = data.find(pack.encoded(row).tobytes()) + 200
        data[place] ^= 1
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("tier", ["encoded", "decoded"])
def test_a_damaged_image_stops_a_training_by_its_name(
    colour_pack: Pack, tmp_path: Path, engine: EngineName, tier: ImageCacheName
) -> None:
    row = int(colour_pack.ids("train")[7])
    job = tiny_job(damage(colour_pack, tmp_path / "p.arrow", [row]), tmp_path / "run")
    resources = replace(job.resources, engine=engine, image_cache=tier)
    with pytest.raises(PackError, match=rf"p\.arrow is corrupt: row {row} \(.*--on-corrupt skip goes on"):
        train.train(replace(job, resources=resources), never)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("tier", ["encoded", "decoded"])
def test_every_damaged_image_of_a_batch_is_named(
    colour_pack: Pack, tmp_path: Path, engine: EngineName, tier: ImageCacheName
) -> None:
    first, *_, second, third = epoch_order(colour_pack.ids("train"), 0, 0)[:7].tolist()
    bad = [first, second, third]
    pack = Pack(damage(colour_pack, tmp_path / "p.arrow", bad))
    resources = Resources(engine, "cpu", threads=2, image_cache=tier)
    with pytest.raises(PackError) as refusal:  # noqa: SIM117
        with Loader(pack, TINY.augment, pack.ids("train"), resources, batch_size=8, shuffle=True) as loader:
            next(iter(loader))
    said = str(refusal.value)
    assert all(f"{pack.describe(row)}" in said for row in bad)
    assert said.count(".img')") == 3 and " have not the bytes that were packed; copy the pack again" in said


def test_a_start_that_meets_a_damaged_image_names_all_of_them(colour_pack: Pack, tmp_path: Path) -> None:
    """The pictures at the start are of a few images only."""
    trained = colour_pack.ids("train").tolist()
    bad = [trained[0], *trained[3:6], trained[-1]]
    job = tiny_job(damage(colour_pack, tmp_path / "p.arrow", bad), tmp_path / "run")
    with pytest.raises(PackError) as refusal:
        train.train(job, never)
    assert all(colour_pack.describe(row) in str(refusal.value) for row in bad)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("tier", ["encoded", "decoded"])
def test_skipped_images_are_replaced_counted_and_named(
    colour_pack: Pack,
    tmp_path: Path,
    engine: EngineName,
    tier: ImageCacheName,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained, held_out = colour_pack.ids("train"), colour_pack.ids("val")
    bad = [int(trained[7]), int(trained[30]), int(held_out[0])]
    job = tiny_job(damage(colour_pack, tmp_path / "p.arrow", bad), tmp_path / "run")
    resources = replace(job.resources, engine=engine, image_cache=tier, on_corrupt="skip")
    train.train(replace(job, resources=resources), never)
    said = capsys.readouterr().err
    assert (
        f"row {bad[0]} (" in said
        and "and 1 more are corrupt; replaced by others, of the same class where it has one" in said
    )
    assert f"row {bad[2]} (" in said and "is corrupt; left out" in said
    rows = Run(tmp_path / "run").rows(METRICS)
    assert [(row["replaced"], row["n"]) for row in rows] == [(2, 5), (2, 5)]
    written = Run(tmp_path / "run").read(CORRUPT)
    assert [(row["row"], row["path"]) for row in written["replaced"]] == [
        (row, colour_pack.image_path(row)) for row in bad[:2]
    ]
    replacement = [row["replacement"] for row in written["replaced"]]
    assert np.array_equal(colour_pack.labels[replacement], colour_pack.labels[bad[:2]])
    assert written["left_out"] == [
        {"row": bad[2], "path": colour_pack.image_path(bad[2]), "replacement": None}
    ]


def test_the_image_that_stands_in_is_of_the_same_class_whatever_the_batch_size(
    colour_pack: Pack, tmp_path: Path
) -> None:
    trained = colour_pack.ids("train")
    bad = [int(trained[3]), int(trained[-1])]
    pack = Pack(damage(colour_pack, tmp_path / "p.arrow", bad))
    orders = []
    for batch_size in (5, 42):
        with Loader(
            pack,
            TINY.augment,
            trained,
            Resources(device="cpu", on_corrupt="skip"),
            batch_size=batch_size,
            shuffle=True,
            epochs=1,
        ) as loader:
            orders.append(np.concatenate([batch.ids.numpy() for batch in loader]))
    assert np.array_equal(orders[0], orders[1])
    plain = epoch_order(trained, 0, 0)
    changed = plain != orders[0]
    assert sorted(plain[changed].tolist()) == bad
    assert np.array_equal(pack.labels[plain], pack.labels[orders[0]])
    assert not np.isin(orders[0], bad).any()


def test_no_image_is_read_again_to_be_found_sound(
    colour_pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = colour_pack.ids("train")
    pack = Pack(damage(colour_pack, tmp_path / "p.arrow", [int(trained[3])]))
    looked: list[int] = []
    looking = Pack.is_valid

    def look(self: Pack, index: int) -> bool:
        looked.append(index)
        return looking(self, index)

    monkeypatch.setattr(Pack, "is_valid", look)
    for _ in range(3):
        assert pack.corrupt(trained) == [trained[3]]
    assert len(looked) == 42 + 2, "the corrupt one three times"


def test_a_head_is_solved_on_the_sound_images(colour_pack: Pack, tmp_path: Path) -> None:
    bad = [int(colour_pack.ids("train")[5]), int(colour_pack.ids("val")[1])]
    recipe = replace(TINY, linear_probe=True, probe_shots=5)
    job = tiny_job(damage(colour_pack, tmp_path / "p.arrow", bad), tmp_path / "run", recipe=recipe)
    train.train(replace(job, resources=replace(job.resources, on_corrupt="skip")), never)
    solved = Run(tmp_path / "run").read("probe.json")
    assert (solved["images"], solved["n"]) == (41, 5)


def test_stand_ins_by_hand() -> None:
    labels = np.array([0, 0, 1, 0, 2, 1], dtype=np.int32)
    ids = np.array([0, 1, 3, 4, 5])
    found = replacements(labels, ids, np.array([1, 3, 4]))
    assert found.tolist() == [0, 0, 2, 0, 5, 5], (
        "the next of the class, round to the first; of none, the next of any"
    )
    with pytest.raises(PackError, match="all of the 2 images asked for are corrupt"):
        replacements(labels, np.array([0, 1]), np.array([0, 1]))


def test_evaluation_leaves_damaged_images_out_and_says_so(
    tiny_run: Path, colour_pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    row = int(colour_pack.ids("test")[2])
    path = damage(colour_pack, tmp_path / "p.arrow", [row])
    job = evaluation.Job(run=out, pack=path, crops=2, resources=Resources(device="cpu"))
    with pytest.raises(PackError, match=rf"row {row} \("):
        evaluation.evaluate(job)
    assert not (out / "eval.json").exists()
    evaluation.evaluate(replace(job, resources=Resources(device="cpu", on_corrupt="skip")))
    result = Run(out).read("eval.json")
    assert (result["n"], result["left_out"]) == (11, 1)
    assert result["left_out_images"] == [colour_pack.image_path(row)]
    assert f"row {row} (" in capsys.readouterr().err


# --- bytes from elsewhere -----------------------------------------------------------------------------------

FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def spoilt(data: bytes) -> st.SearchStrategy[bytes]:
    """Anything at all, or `data` with a piece cut out or replaced."""
    pieces = st.tuples(st.integers(0, len(data)), st.integers(0, 200), st.binary(max_size=40))
    return st.one_of(st.binary(max_size=300), pieces.map(lambda p: data[: p[0]] + p[2] + data[p[0] + p[1] :]))


def fuzz(read: Callable[[Path], object], data: bytes, file: Path, *expected: type[Exception]) -> int:
    """Feed spoilt files to a reader, which answers or refuses in one line. How many it refused."""
    refused = 0

    @FEW
    @given(content=spoilt(data))
    def attempt(content: bytes) -> None:
        nonlocal refused
        file.write_bytes(content)
        try:
            read(file)
        except expected as error:
            refused += 1
            assert "\n" not in str(error)

    attempt()
    return refused


def test_any_bytes_for_a_pack(colour_pack: Pack, tmp_path: Path) -> None:
    def read(file: Path) -> object:
        pack = Pack(file)
        bad = pack.corrupt()
        return [pack.encoded(row) for row in range(len(pack)) if row not in bad]

    assert fuzz(read, colour_pack.path.read_bytes(), tmp_path / "p.arrow", PackError) > 30


@pytest.mark.parametrize("name", [LAST, BEST])
def test_any_bytes_for_a_checkpoint(tiny_run: Path, tmp_path: Path, name: str) -> None:
    assert fuzz(checkpoint.load, (tiny_run / name).read_bytes(), tmp_path / name, CheckpointError) > 30


@pytest.mark.parametrize("name", ["recipe.json", "pack.json", "versions.json", "swa.json", METRICS])
def test_any_bytes_for_a_file_of_the_run_folder(tiny_run: Path, tmp_path: Path, name: str) -> None:
    def read(file: Path) -> object:
        if name == METRICS:
            return Run(file.parent).rows(METRICS)
        content = Run(file.parent).read(name)
        return from_json(Recipe, content, name) if name == "recipe.json" else content

    assert fuzz(read, (tiny_run / name).read_bytes(), tmp_path / name, RunError, ValueFormatError) > 5


def test_any_bytes_for_the_survey() -> None:
    """Whatever a file holds, looking at it answers."""
    probe, problems = DaliDecoder(), set()

    @FEW
    @given(content=spoilt(tinted(1, 0)))
    def attempt(content: bytes) -> None:
        problems.add(validate_image(content, probe).problem)

    attempt()
    assert {"undecodable", "truncated"} & problems
