"""model/resume.py and train: what differs is said, what is forced is obeyed, what is best stays."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import flip, packed
from runs import FULL, SMALL, TINY, Capture, Patch, never, resume, tinted, tiny_job

from greyhound import begin, train
from greyhound.cache.cli import Stopped
from greyhound.cache.pack import Options
from greyhound.cache.store import Pack, PackError
from greyhound.model import checkpoint
from greyhound.model.checkpoint import CheckpointError, numbered
from greyhound.model.report import report
from greyhound.model.resume import differences, other_versions
from greyhound.model.run import (
    ADDED,
    ADDED_TO_AUGMENT,
    AVERAGED,
    BEST,
    CORRUPT,
    DIVERGED,
    DIVERGED_PICTURE,
    LAST,
    METRICS,
    PACK,
    PROBE,
    RECIPE,
    SWA,
    THREADS,
    VERSIONS,
    Run,
    RunError,
)
from greyhound.model.schedule import Phase
from greyhound.model.state import scored
from greyhound.recipe import FAST, Averaging, Recipe, read_options
from greyhound.session import TrainContext, open_state

PROBED = replace(TINY, linear_probe=True, probe_grids=(0, 1), averaging=Averaging(steps=0))


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: Patch) -> None:
    """They take most of the time of so small a training."""
    monkeypatch.setattr(begin, "draw_pictures", lambda *_: None)


@pytest.fixture(scope="module")
def stopped(colour_pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a linear probe that a signal stopped in its first epoch, before its fourth step."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    asked = iter([None] * 7 + [signal.SIGTERM] * 9)  # four batches for the probe, three steps
    with pytest.raises(Stopped, match="while training epoch 0"):
        train.train(tiny_job(colour_pack.path, out, recipe=PROBED), lambda: next(asked))
    return out


@pytest.fixture
def half(stopped: Path, tmp_path: Path) -> Path:
    """A copy of it, to write into."""
    return Path(shutil.copytree(stopped, tmp_path / "half"))


# --- what is forced is obeyed -------------------------------------------------------------------------------


def groups(optimizer: torch.optim.Optimizer) -> list[tuple[float, float]]:
    return [(each["momentum"], each["weight_decay"]) for each in optimizer.param_groups]


@pytest.mark.parametrize("changed", [{"momentum": 0.1}, {"weight_decay": 0.5}])
def test_a_forced_recipe_is_obeyed(
    half: Path, colour_pack: Pack, monkeypatch: Patch, changed: dict[str, float]
) -> None:
    recipe = replace(PROBED, **changed)  # type: ignore[arg-type]
    train_epoch, seen = train.train_epoch, list[TrainContext]()

    def look(context: TrainContext, *rest: Any) -> Any:
        seen.append(context)
        if len(seen) == 1:
            state = context.state
            remembered = {weight: found["momentum_buffer"] for weight, found in state.optimizer.state.items()}
            for name, weight in state.network.named_parameters():
                assert torch.equal(remembered[weight], before[name]), name
        return train_epoch(context, *rest)

    before = checkpoint.load(half / LAST)["momentum"]
    monkeypatch.setattr(train, "train_epoch", look)
    resume(colour_pack, half, recipe, force=("recipe",))
    state = seen[0].state
    assert groups(state.optimizer) == groups(open_state(recipe, 3, state.device, 0.0).optimizer)
    written = Run(half).read(RECIPE)
    assert {name: written[name] for name in changed} == changed


def test_phases_differ_field_by_field() -> None:
    one, other = {"phases": [{"high": 1.0, "low": 0.5}]}, {"phases": [{"high": 2.0, "low": 0.5}]}
    assert list(differences(one, other)) == [("phases.0.high", 1.0, 2.0)]
    longer = {"phases": [*one["phases"], *other["phases"]]}
    assert list(differences(one, longer)) == [("phases", one["phases"], longer["phases"])]
    assert list(differences(longer, one)) == [("phases", longer["phases"], one["phases"])]


def test_what_the_start_settled_is_refused_by_name_even_if_forced(
    half: Path, stopped: Path, colour_pack: Pack
) -> None:
    other = replace(PROBED, network="resnet10t", linear_probe=False, momentum=0.5)
    with pytest.raises(
        RunError,
        match=r"has network = test_efficientnet, not resnet10t; linear_probe = True, not False, which was settled before",
    ):
        resume(colour_pack, half, other, force=("recipe",))
    with pytest.raises(
        RunError,
        match=r"momentum = 0.9, not 0.5; linear_probe = True, not False; resume with the same recipe$",
    ):
        resume(colour_pack, half, other)
    with pytest.raises(RunError, match=r"momentum = 0.9, not 0.5; resume with the same recipe, or --force"):
        resume(colour_pack, half, replace(PROBED, momentum=0.5))
    assert (half / RECIPE).read_bytes() == (stopped / RECIPE).read_bytes()


def test_another_pack_that_is_forced_is_written_down(half: Path, tmp_path: Path, capsys: Capture) -> None:
    names = ("blue <b>", "green", "red")
    images = {name: [tinted(2 - k, 9000 + 100 * k + n) for n in range(12)] for k, name in enumerate(names)}
    other = packed(tmp_path / "images", images, Options(val=0.2, test=0.2))
    job = tiny_job(other.path, half, resume=True, recipe=PROBED)
    digests = Run(half).read(PACK)["digest"][:16], other.header.digest[:16]
    with pytest.raises(
        RunError, match=rf"of digest {digests[0]} and not {digests[1]}; give it the same one, or"
    ):
        train.train(job, never)
    asked = iter([None, None, signal.SIGTERM, signal.SIGTERM])
    with pytest.raises(Stopped):
        train.train(replace(job, force=("pack",)), lambda: next(asked))
    said = capsys.readouterr()
    assert f"the pack was {digests[0]}, and is {digests[1]} from here" in said.err
    assert "resumed in epoch 0, after 0 of 24 images" in said.out
    assert Run(half).read(VERSIONS)["pack until epoch 0"].startswith(digests[0])
    train.train(job, never)
    assert [row["epoch"] for row in Run(half).rows(METRICS)] == [0, 1]


def test_a_pack_of_other_classes_is_refused_even_if_forced(half: Path, coded_pack: Pack) -> None:
    job = replace(tiny_job(coded_pack.path, half, resume=True, recipe=PROBED), force=("pack",))
    with pytest.raises(PackError, match="class"):
        begin.open_run(job, coded_pack, torch.device("cpu"), Run(half).read(VERSIONS))


# --- what differs is said -----------------------------------------------------------------------------------


def test_all_that_differs_is_said_at_once(tiny_run: Path, colour_pack: Pack) -> None:
    used = Run(tiny_run).read(VERSIONS)
    job = tiny_job(colour_pack.path, tiny_run, resume=True, recipe=replace(TINY, batch_size=4, momentum=0.5))
    with pytest.raises(RunError) as refused:
        begin.open_run(job, colour_pack, torch.device("cpu"), used | {"torch": "9", "timm": "8"})
    said = str(refused.value)
    assert "has batch_size = 8, not 4; momentum = 0.9, not 0.5; resume with the same recipe" in said
    assert (
        f"was trained with torch {used['torch']}, and here is 9; timm {used['timm']}, and here is 8; use those"
        in said
    )


def test_a_package_that_is_gone_or_new_is_another_version(tmp_path: Path) -> None:
    folder = Run(tmp_path)
    folder.write(
        VERSIONS, {"torch": "2", "nvidia-dali-cuda120": "1.5", "date": "then", "timm until epoch 3": "0"}
    )
    assert other_versions(folder, {"torch": "2", "simplejpeg": "1", "date": "now"}) == [
        ("nvidia-dali-cuda120", "1.5", "none"),
        ("simplejpeg", "none", "1"),
    ]


def test_another_number_of_threads_is_said(run: Path, colour_pack: Pack) -> None:
    """They decide in which order torch adds up, and so the last digits of every sum."""
    here = Run(run).read(VERSIONS)
    assert here[THREADS] == str(torch.get_num_threads())
    Run(run).write(VERSIONS, here | {THREADS: "99"})
    job = tiny_job(colour_pack.path, run, resume=True)
    with pytest.raises(
        RunError, match=rf"trained with torch_threads 99, and here is {here[THREADS]}; use that one"
    ):
        train.train(job, never)
    train.train(replace(job, force=("versions",)), never)
    assert Run(run).read(VERSIONS)[f"{THREADS} until epoch 2"] == "99"
    of_ranks = {name: value for name, value in here.items() if name != THREADS}
    assert other_versions(Run(run), of_ranks) == [], "of several ranks each has its own"


@pytest.fixture
def plain_run(colour_pack: Pack, tmp_path: Path) -> Iterator[list[str]]:
    """The command line of a run of `fine` at another batch size, ended after its head was solved."""
    begin = ["fine", "--pack", str(colour_pack.path), "--out", str(tmp_path / "run"), *SMALL]
    asked = iter([None] * 5 + [signal.SIGTERM] * 9)
    with pytest.raises(Stopped, match="while training"):
        train.train(read_options([*begin, "--batch-size", "16"]), lambda: next(asked))
    yield ["fine", "--out", str(tmp_path / "run"), "--device", "cpu", "--resume"]


def test_a_field_that_is_named_is_compared_also_where_the_plain_recipe_has_it_so(
    plain_run: list[str],
) -> None:
    assert FAST.batch_size == 32
    with pytest.raises(
        RunError, match=r"recipe\.json has batch_size = 16, not 32; resume with the same recipe"
    ):
        train.train(read_options([*plain_run, "--batch-size", "32"]), never)
    own = read_options([*plain_run, "--batch-size", "16"]).recipe
    assert (own.batch_size, own.network) == (16, "test_efficientnet"), "all else is the run's own"


def test_a_forced_field_changes_no_other(plain_run: list[str]) -> None:
    job = read_options([*plain_run, "--force", "recipe", "--batch-size", "8"])
    train.train(job, never)
    after = Run(job.out).read(RECIPE)
    assert (after["batch_size"], after["network"], after["weights"]) == (8, "test_efficientnet", "none")


# --- where it goes on, and what is best ---------------------------------------------------------------------


def test_without_its_last_checkpoint_a_run_goes_on_from_the_one_before(
    run: Path, tiny_run: Path, colour_pack: Pack, capsys: Capture
) -> None:
    """Also where a number between is missing, as a kill between two renamings leaves it."""
    (run / LAST).unlink()
    numbered(run / LAST, 1).rename(numbered(run / LAST, 2))
    resume(colour_pack, run)
    said = capsys.readouterr().err
    assert "last.ckpt is not there" in said and "going on from last.2.ckpt" in said
    assert (run / METRICS).read_bytes() == (tiny_run / METRICS).read_bytes()


def test_results_without_a_checkpoint_are_not_dropped(run: Path, colour_pack: Pack) -> None:
    for age in range(2):
        numbered(run / LAST, age).unlink()
    before = sorted(path.name for path in run.iterdir())
    with pytest.raises(
        RunError, match=r"has results \(swa\.ckpt, metrics\.jsonl\) and no last\.ckpt to go on from"
    ):
        resume(colour_pack, run)
    assert sorted(path.name for path in run.iterdir()) == before


def test_a_single_epoch_behind_a_probe_is_not_dropped(half: Path, colour_pack: Pack) -> None:
    """One row alone may come before last.ckpt only where there is no probe."""
    (half / DIVERGED).write_text("{}")
    (half / DIVERGED_PICTURE).write_bytes(b"")
    recipe = replace(PROBED, phases=(replace(PROBED.phases[0], epochs=1),))
    job = replace(tiny_job(colour_pack.path, half, resume=True, recipe=recipe), force=("recipe",))
    train.train(job, never)
    assert len(Run(half).rows(METRICS)) == 1
    assert not (half / DIVERGED).exists() and not (half / DIVERGED_PICTURE).exists(), (
        "it did not diverge again"
    )
    for path in checkpoint.kept(half / LAST):
        path.unlink()
    best = (half / BEST).read_bytes()
    with pytest.raises(RunError, match=r"has results \(metrics\.jsonl\) and no last\.ckpt to go on from"):
        resume(colour_pack, half, recipe)
    assert (half / BEST).read_bytes() == best


def test_a_start_without_a_checkpoint_says_that_it_starts_anew(
    colour_pack: Pack, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "run"
    with pytest.raises(Stopped):
        train.train(tiny_job(colour_pack.path, out, recipe=PROBED), lambda: signal.SIGTERM)
    (out / DIVERGED).write_text("{}")
    resume(colour_pack, out, PROBED)
    assert "has no last.ckpt: the training starts anew" in capsys.readouterr().err
    assert not (out / DIVERGED).exists()


def test_a_head_that_was_looked_at_is_no_sign_of_a_checkpoint(
    half: Path, colour_pack: Pack, capsys: Capture
) -> None:
    """A kill before the first last.ckpt leaves best.ckpt, of which eval and explain make a report."""
    for path in checkpoint.kept(half / LAST):
        path.unlink()
    assert (half / BEST).exists() and report.build(half).exists()
    resume(colour_pack, half, PROBED)
    assert "has no last.ckpt: the training starts anew" in capsys.readouterr().err


def test_images_that_are_damaged_no_longer_are_not_said_to_be(run: Path, colour_pack: Pack) -> None:
    """The pack was copied again since."""
    Run(run).write(CORRUPT, {"replaced": [{"row": 3, "path": "red/3.jpg", "replacement": 4}], "left_out": []})
    resume(colour_pack, run)
    assert not (run / CORRUPT).exists()


def test_an_older_checkpoint_loses_no_better_network(
    colour_pack: Pack, tmp_path: Path, monkeypatch: Patch
) -> None:
    def ranked(network: Any, result: dict[str, Any], by: Any, after: str) -> dict[str, Any]:
        content = scored(network, result, by, after)
        return content | {"score": content["score"] - (50 if after != "epoch 1" else 0)}

    monkeypatch.setattr(train, "scored", ranked)
    out = tmp_path / "run"
    train.train(tiny_job(colour_pack.path, out, recipe=FULL), never)
    best, ended = checkpoint.load(out / BEST), (out / SWA).stat().st_mtime_ns
    assert best["after"] == "epoch 1"
    flip(out / LAST)
    resume(colour_pack, out, FULL)
    again = checkpoint.load(out / BEST)
    assert (again["after"], again["score"]) == (best["after"], best["score"])
    assert (out / SWA).stat().st_mtime_ns > ended, "what came after the end came after it again"


def test_a_forced_recipe_makes_the_best_no_worse(colour_pack: Pack, tmp_path: Path) -> None:
    """The linear probe is best here, and is not among what is validated again."""
    out, recipe = tmp_path / "run", replace(FULL, seed=1, averaging=Averaging(steps=0))
    train.train(tiny_job(colour_pack.path, out, recipe=recipe), never)
    best = checkpoint.load(out / BEST)
    assert best["after"] == "a linear probe of 42 images"
    resume(colour_pack, out, replace(recipe, momentum=0.5), force=("recipe",))
    again = checkpoint.load(out / BEST)
    assert (again["after"], again["valid_loss"]) == (best["after"], pytest.approx(best["valid_loss"]))


def test_a_best_network_that_is_to_be_scored_again_is_also_after_a_kill(
    colour_pack: Pack, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train.train(tiny_job(colour_pack.path, out, recipe=FULL), never)
    content = checkpoint.load(out / BEST)
    checkpoint.save(out / BEST, content | {"score": -math.inf})
    resume(colour_pack, out, FULL)
    assert checkpoint.load(out / BEST)["score"] == pytest.approx(content["score"])


def test_a_damaged_best_checkpoint_is_said_and_replaced(
    run: Path, colour_pack: Pack, capsys: Capture
) -> None:
    flip(run / BEST)
    numbered(run / LAST, 1).replace(run / LAST)
    resume(colour_pack, run)
    assert "best.ckpt is corrupt" in capsys.readouterr().err
    assert checkpoint.load(run / BEST)["after"] == "epoch 1"


@pytest.mark.parametrize(("steps", "select"), [(1, "accuracy"), (2, "loss")])
def test_averaging_that_diverges_is_one_line_and_keeps_nothing(
    colour_pack: Pack, tmp_path: Path, steps: int, select: Any
) -> None:
    out, averaging = tmp_path / "run", Averaging(steps=steps, rate=1e30)
    phases = (Phase(epochs=1, high=0.01, low=0.01),)
    job = tiny_job(
        colour_pack.path, out, recipe=replace(TINY, averaging=averaging, select=select, phases=phases)
    )
    with pytest.raises(
        RunError, match=r"averaging came to a loss of \w+ at a rate of 1e\+30, so the network"
    ):
        train.train(job, never)
    assert not (out / AVERAGED).exists() and not (out / SWA).exists()
    assert Run(out).load("auto")[0] == "best"


@pytest.mark.parametrize("score", [math.nan, "high", None])
def test_a_score_that_is_no_number_is_the_lowest(run: Path, score: Any) -> None:
    checkpoint.save(run / AVERAGED, checkpoint.load(run / AVERAGED) | {"score": score})
    assert Run(run).load("auto")[0] == "best"


@pytest.mark.parametrize(
    "changed", [{"epoch": "x"}, {"images": "x"}, {"trained": {"a": 1}}, {"best": None}, {"strange": 1}]
)
def test_a_checkpoint_whose_progress_is_none_is_one_line(
    run: Path, colour_pack: Pack, changed: dict[str, Any]
) -> None:
    content = checkpoint.load(run / LAST)
    content["progress"] |= changed
    checkpoint.save(run / LAST, content)
    with pytest.raises(RunError, match=r"last\.ckpt is no checkpoint that a training goes on from"):
        resume(colour_pack, run)


class Killed(BaseException):
    """Of a process that does nothing more, as if by SIGKILL."""


def test_a_kill_before_any_call_of_rotating_leaves_the_last_two(tmp_path: Path, monkeypatch: Patch) -> None:
    """From that call on every call fails, so that nothing is tidied up either."""
    found = []
    for moment in itertools.count(1):
        path = tmp_path / str(moment) / LAST
        for turn in range(4):
            checkpoint.rotate(path, 3)
            checkpoint.save(path, {"turn": turn})
        with monkeypatch.context() as patched:
            calls = itertools.count(1)
            for owner, name in ((Path, "replace"), (Path, "unlink"), (os, "link"), (os, "fsync")):
                patched.setattr(owner, name, dying(getattr(owner, name), calls, moment))
            try:
                checkpoint.rotate(path, 3)
                break
            except Killed:
                pass
        found.append([checkpoint.load(each)["turn"] for each in checkpoint.kept(path)])
    before, between, after = [3, 2, 1], [3, 2], [3, 3, 2]
    assert found == [before, *[between] * 4, *[after] * 2]


def dying(call: Callable[..., Any], calls: Iterator[int], moment: int) -> Callable[..., Any]:
    """The call, until it is the time `moment`, from 1, that one of the calls is made."""

    def called(*arguments: Any, **named: Any) -> Any:
        if next(calls) >= moment:
            raise Killed
        return call(*arguments, **named)

    return called


def test_a_file_system_without_links_has_copies(tmp_path: Path, monkeypatch: Patch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("greyhound.model.checkpoint.os.link", refuse)
    path = tmp_path / LAST
    for turn in range(3):
        checkpoint.rotate(path, 3)
        checkpoint.save(path, {"turn": turn})
    assert [checkpoint.load(each)["turn"] for each in checkpoint.kept(path)] == [2, 1, 0]


def test_where_only_a_numbered_checkpoint_is_left_and_damaged_it_is_named(
    run: Path, colour_pack: Pack
) -> None:
    (run / LAST).unlink()
    flip(numbered(run / LAST, 1))
    with pytest.raises(
        CheckpointError, match=r"has no checkpoint that can be read \(last\.1\.ckpt\); put back a copy"
    ):
        resume(colour_pack, run)
    assert (run / BEST).exists() and not (run / PROBE).exists()


OLD_FIELDS = (
    "name", "network", "weights", "augment", "normalise", "batch_size", "micro_batch", "phases", "views", "momentum",
    "weight_decay", "label_smoothing", "class_weights", "linear_probe", "probe_grids", "freeze_bn", "averaging",
    "select", "precision", "activation_checkpointing", "compile", "sync_batchnorm", "seed", "note",
)  # fmt: skip
OLD_AUGMENT = (
    "size", "fit", "scale", "placement", "rotation", "shear", "flip", "brightness", "contrast", "saturation", "hue",
    "fill", "mean", "std",
)  # fmt: skip
"""The fields of a recipe of 2026-11-28: what came later must go on without."""


def test_a_run_of_an_earlier_version_goes_on_as_it_would_have(half: Path, tmp_path: Path) -> None:
    """Without the fields that came later, each of which is off."""
    old = Path(shutil.copytree(half, tmp_path / "old"))
    recipe, content = json.loads((old / RECIPE).read_text()), checkpoint.load(old / LAST)
    recipe = {name: recipe[name] for name in OLD_FIELDS}
    recipe["augment"] = {name: recipe["augment"][name] for name in OLD_AUGMENT}
    for name in ("top", "bad_epochs", "curve"):
        del content["progress"][name]
    Run(old).write(RECIPE, recipe)
    checkpoint.save(old / LAST, content)
    assert begin.own_recipe(old) == begin.own_recipe(half)
    for out in (half, old):
        train.train(read_options(["--out", str(out), "--resume", "--device", "cpu", "--threads", "1"]), never)
    assert (old / METRICS).read_bytes() == (half / METRICS).read_bytes()
    weights, others = (checkpoint.load(out / LAST)["network"] for out in (half, old))
    assert all(torch.equal(others[name], value) for name, value in weights.items())


def test_fields_that_came_later_are_off_where_they_are_missing() -> None:
    recipe = asdict(Recipe())
    assert {name: recipe[name] for name in ADDED} == ADDED
    assert {name: recipe["augment"][name] for name in ADDED_TO_AUGMENT} == ADDED_TO_AUGMENT
