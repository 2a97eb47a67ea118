"""sweep.py: trials that depend on the seed, their number and those before alone, each a run of its own."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from runs import FULL, TINY, Capture, Patch, batches_seen, never, tiny_job

from greyhound import begin, several, train
from greyhound.cache.cli import Stop, Stopped
from greyhound.cache.errors import UserError
from greyhound.cache.options import OptionError, options
from greyhound.cache.store import Pack
from greyhound.model.network import UnreachableError, WeightsError
from greyhound.model.run import RecipeError, Run, RunError
from greyhound.model.run_lock import run_lock
from greyhound.model.schedule import Phase
from greyhound.model.step import DivergedError
from greyhound.recipe import FAST, FINE, Averaging, Recipe, TrainOptions
from greyhound.sweep import changed, propose, read_fields, read_value, sweep

RATES = ("lr=1e-4..1e-1",)


def loss_of(lr: float) -> float:
    """Of a training that does not take place: lowest at a rate of 0.003."""
    return abs(math.log(lr / 3e-3)) + 0.1


def stub(options: TrainOptions, stop: Stop) -> int:
    """Stands for train.train: writes what a run reached, by its rate alone. A high rate diverges."""
    options.out.mkdir(exist_ok=True)
    (options.out / "recipe.json").write_text(json.dumps(asdict(options.recipe)))
    lr = options.recipe.phases[0].high
    if lr > 0.03:
        raise DivergedError("the loss is not finite")
    row = {
        "epoch": 0,
        "valid_loss": loss_of(lr),
        "accuracy": 1 / (1 + loss_of(lr)),
        "n": 50,
        "train_loss": 1.0,
    }
    (options.out / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return 0


def job(pack: Pack, out: Path, *fields: str, trials: int = 6, **more: Any) -> TrainOptions:
    recipe = more.pop("recipe", replace(FINE, seed=5))
    return replace(tiny_job(pack.path, out, recipe=recipe), sweep=fields, trials=trials, **more)


def found(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "sweep.json").read_text()))


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("lr=1e-4..1e-2", "lr: 1e-4 to 1e-2, logarithmic"),
        ("lr=0.01..0.1", "lr: 0.01 to 0.1, logarithmic"),
        ("lr=0.07..0.7", "lr: 0.07 to 0.7, logarithmic"),
        ("lr=0.01..0.05", "lr: 0.01 to 0.05, linear"),
        ("augment.flip=0..0.5", "augment.flip: 0 to 0.5, linear"),
        ("batch-size=4..64", "batch-size: 4 to 64, logarithmic"),
        ("freeze-bn=on,off", "freeze-bn: on or off"),
        ("size=64,96", "augment.size: 64 or 96"),
        ("probe-grids=0,0 4", "probe-grids: 0 or 0 4"),
        ("augment.scale=0.8 1.2,1 1.25", "augment.scale: 0.8 1.2 or 1 1.25"),
    ],
)
def test_what_a_field_is_searched_over_is_said(word: str, says: str) -> None:
    recipe = replace(FINE, micro_batch=0, phases=(replace(FINE.phases[0], low=0.0),))
    assert list(map(str, read_fields(recipe, [word]))) == [says]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("scale=1,2", "--sweep scale=1,2: expected a field of the recipe, once; did you mean augment.scale?"),
        ("lr=1e-4..1e-2 lr=1,2", "--sweep lr=1,2: expected a field of the recipe, once; did you mean lr?"),
        ("note=a,b", "--sweep note=a,b: expected a field of the recipe, once; see greyhound train --help"),
        ("threads=1,2", "--sweep threads=1,2: expected a field of the recipe, once; see greyhound train --help"),
        ("lr=1e-2..1e-4", "--sweep lr=1e-2..1e-4 is no range; expected finite numbers LOW..HIGH, LOW below HIGH, or lr=A,B"),
        ("lr=0.1..inf", "--sweep lr=0.1..inf is no range; expected finite numbers LOW..HIGH, LOW below HIGH, or lr=A,B"),
        ("network=a..b", "--sweep network=a..b is no range; expected finite numbers LOW..HIGH, LOW below HIGH, or network=A,B"),
        ("lr=low..high", "lr is 'low'; expected a number"),
        ("batch-size=16,32.5", "batch-size is '32.5'; expected a whole number"),
        ("class-weights=none,f1", "class-weights is 'f1'; expected none or balanced"),
        ("select=loss,accuracy", "--sweep select=loss,accuracy: it ranks the trials, so all have the same; expected --select"),
        ("freeze-bn=yes,no", "freeze-bn is 'yes'; expected on or off"),
        ("augment.scale=1,2", "augment.scale is '1'; expected 2 values, apart by a space"),
        ("batch-size=16", "--sweep batch-size=16: expected two different values or more, or LOW..HIGH"),
        ("lr=0.1,1e-1", "--sweep lr=0.1,1e-1: expected two different values or more, or LOW..HIGH"),
        ("batch-size=0,16", "--sweep batch-size = 0: --batch-size is 0; expected 1 or more"),
        ("batch-size=0,16 freeze-bn=on,off", "--sweep batch-size = 0: --batch-size is 0; expected 1 or more"),
        ("lr=-1..1", "--sweep lr = -1: --lr is -1.0; expected 0 or more"),
        ("lr=0.1..1e-1", "--sweep lr=0.1..1e-1 is no range; expected finite numbers LOW..HIGH, LOW below HIGH, or lr=A,B"),
        ("lr", "--sweep lr names no values; expected lr=LOW..HIGH or lr=A,B, such as --sweep lr=1e-4..1e-2"),
        ("lr=", "--sweep lr= names no values; expected lr=LOW..HIGH or lr=A,B, such as --sweep lr=1e-4..1e-2"),
    ],
)  # fmt: skip
def test_refused_fields(words: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        read_fields(FINE, words.split())
    assert str(error.value) == says


def test_a_value_may_be_of_a_field_that_is_left_open() -> None:
    kind = next(each.kind for each in options(FAST) if each.name == "augment.crop-scale")
    assert read_value(kind, "augment.crop-scale", "1 1.25") == (1, 1.25)


@pytest.mark.parametrize(
    ("recipe", "words", "says"),
    [
        (FAST, "momentum=0.8,0.9", "momentum: every trial would validate the same; this recipe has no epochs; --epochs 1 would add one"),
        (FAST, "augment.scale=1,1.1 seed=1,2", "augment.scale: .* only eval's crops use it"),
        (FINE, "lr=1e-3,1e-2 augment.crop-scale=1,1.1", "augment.crop-scale: .* only eval's crops use it"),
        (FINE, "lr=1e-3,1e-2 augment.magnitude=5,9", "augment.magnitude: .* add --augment.randaugment 2"),
        (FINE, "averaging.rate=1e-3,1e-2", "averaging.rate: .* nothing is averaged"),
        (replace(FINE, linear_probe=False), "probe-grids=0,3", "probe-grids: .* there is no linear probe"),
    ],
)  # fmt: skip
def test_a_field_that_no_trial_could_tell_of_is_refused(recipe: Recipe, words: str, says: str) -> None:
    doubled = [word.replace("=1,1.1", "=1 1,1 1.1") for word in words.split()]
    with pytest.raises(OptionError, match=f"^--sweep {says}"):
        read_fields(recipe, doubled)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (FAST, "momentum=0.8,0.9 epochs=1,2"),
        (FINE, "augment.magnitude=5,9 augment.randaugment=0,2"),
        (FINE, "averaging.rate=1e-3,1e-2 averaging.steps=0,5"),
        (FAST, "class-weights=none,balanced"),
        (replace(FINE, phases=()), "seed=1,2 epochs=1,2"),
        (replace(FAST, weights="none"), "seed=1,2"),
        (replace(FAST, freeze_bn=False), "micro-batch=8,16 freeze-bn=on,off epochs=1,2"),
    ],
)
def test_a_field_that_another_one_makes_tell_is_searched(recipe: Recipe, words: str) -> None:
    assert len(read_fields(recipe, words.split())) == len(words.split())


def test_a_rate_needs_epochs() -> None:
    with pytest.raises(
        UserError, match="lr = 1e-4: --lr is for epochs, and this recipe has none; add --epochs"
    ):
        read_fields(FAST, RATES)


@pytest.mark.parametrize(
    ("base", "words"),
    [
        (FAST, "epochs=1,2 lr=1e-4..1e-2"),
        (replace(FINE, freeze_bn=False), "micro-batch=8,16 freeze-bn=on,off"),
    ],
)
def test_a_value_that_another_field_makes_possible_is_none_to_refuse(base: Recipe, words: str) -> None:
    assert [field.name for field in read_fields(base, words.split())] == [
        word.partition("=")[0] for word in words.split()
    ]
    for each in (words.split()[words.startswith("epochs")],):
        with pytest.raises(UserError):
            read_fields(base, [each])


def test_a_trial_is_the_recipe_with_its_words() -> None:
    fields = read_fields(
        FINE, ["lr=1e-4..1e-2", "epochs=2,4", "augment.scale=0.8 1.2,1 1.25", "freeze-bn=on,off"]
    )
    words = {"lr": "0.001", "epochs": "4", "augment.scale": "0.8 1.2", "freeze-bn": "on"}
    recipe = changed(FINE, fields, words)
    assert (recipe.epochs, recipe.phases[0].high, recipe.augment.scale, recipe.freeze_bn) == (
        4,
        0.001,
        (0.8, 1.2),
        True,
    )
    assert replace(recipe, phases=FINE.phases, augment=FINE.augment) == FINE


def test_trials_are_new_in_range_and_the_same_each_time() -> None:
    fields = read_fields(FINE, ["lr=1e-4..1e-1", "batch-size=8..64", "augment.flip=0,0.5"])
    trials: list[dict[str, Any]] = []
    for _ in range(30):
        words = propose(fields, trials, 0, minimise=True)
        assert words == propose(fields, trials, 0, minimise=True)
        assert words is not None
        trials.append({"parameters": words, "value": loss_of(float(words["lr"]))})
        assert 1e-4 <= float(words["lr"]) <= 1e-1
        assert 8 <= int(words["batch-size"]) <= 64
    assert len({str(trial["parameters"]) for trial in trials}) == 30
    rates = [float(trial["parameters"]["lr"]) for trial in trials]
    assert min(rates) < 1e-3 < 1e-2 < max(rates)
    assert propose(fields, [], 0, minimise=True) != propose(fields, [], 1, minimise=True)
    assert propose(fields, trials, 0, minimise=True) != propose(fields, trials, 0, minimise=False)


def test_later_trials_are_nearer_to_the_best() -> None:
    fields, late, early = read_fields(FINE, RATES), 0.0, 0.0
    for seed in range(4):
        trials: list[dict[str, Any]] = []
        for _ in range(25):
            words = propose(fields, trials, seed, minimise=True)
            assert words is not None
            trials.append({"parameters": words, "value": loss_of(float(words["lr"]))})
        early += sum(trial["value"] for trial in trials[:10])
        late += sum(trial["value"] for trial in trials[15:])
    assert late < 0.7 * early


def test_what_fails_is_avoided() -> None:
    fields = read_fields(FINE, RATES)
    trials: list[dict[str, Any]] = []
    for _ in range(40):
        words = propose(fields, trials, 1, minimise=True)
        assert words is not None
        diverges = float(words["lr"]) > 1e-3
        trials.append({"parameters": words} | ({} if diverges else {"value": 1.0}))
    failed = ["value" not in trial for trial in trials]
    assert sum(failed[20:]) < sum(failed[:10])


def test_four_digits_stay_in_the_range() -> None:
    (field,) = read_fields(FINE, ["lr=0.123456..0.123457"])
    assert field.word(0.1234564) == "0.1234564"
    (field,) = read_fields(FINE, RATES)
    assert field.word(0.00123456) == "0.001235"


def test_a_range_of_two_rates_ends() -> None:
    fields = read_fields(FINE, ["lr=0.001..0.001001"])
    trials = [{"parameters": {"lr": word}, "value": 1.0} for word in ("0.001", "0.001001")]
    assert propose(fields, trials[:1], 0, minimise=True) == trials[1]["parameters"]
    assert propose(fields, trials, 0, minimise=True) is None


def test_no_combination_twice(colour_pack: Pack, tmp_path: Path, capsys: Capture) -> None:
    assert (
        sweep(job(colour_pack, tmp_path / "s", "lr=0.001,0.002", "batch-size=8,9", trials=9), never, stub)
        == 0
    )
    tried = [trial["parameters"] for trial in found(tmp_path / "s")["trials"]]
    assert sorted((each["lr"], each["batch-size"]) for each in tried) == [
        ("0.001", "8"), ("0.001", "9"), ("0.002", "8"), ("0.002", "9")
    ]  # fmt: skip
    assert "every combination was tried\n" in capsys.readouterr().out


def test_a_sweep_names_the_best_and_what_failed(colour_pack: Pack, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "s"
    assert sweep(job(colour_pack, out, *RATES, trials=12), never, stub) == 0
    trials = found(out)["trials"]
    failed = [trial for trial in trials if trial["state"] == "failed"]
    assert 0 < len(failed) < 11
    assert {trial["why"] for trial in failed} == {"the loss is not finite"}
    best = min((trial["value"], place) for place, trial in enumerate(trials) if "value" in trial)[1]
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["lr: 1e-4 to 1e-1, logarithmic", "12 trials, by validation loss: lower is better"]
    lr, value = trials[best]["parameters"]["lr"], trials[best]["value"]
    assert said[-4:] == [
        f"Best of {12 - len(failed)} trials: trial-{best:03}, lr = {lr}; validation loss {value:.4g}. {len(failed)} failed.",
        "The validation split chose it, which flatters: test it on other images, and it alone.",
        f"page: {out}/sweep.html",
        f"next: greyhound eval --run {out}/trial-{best:03}",
    ]
    page = (out / "sweep.html").read_text()
    assert said[-4] in page
    assert page.count('<td role="cell" data-label="validation loss">failed</td>') == len(failed)
    assert page.index(f'scope="row">trial-{best:03}') == page.index('scope="row">trial-')


def test_by_accuracy_the_highest_is_the_best(colour_pack: Pack, tmp_path: Path, capsys: Capture) -> None:
    asked = job(colour_pack, tmp_path / "s", "lr=0.001,0.003,0.009")
    sweep(replace(asked, recipe=replace(asked.recipe, select="accuracy")), never, stub)
    assert ", lr = 0.003; validation accuracy 0.9091." in capsys.readouterr().out


def test_trials_that_reach_the_same_are_said(colour_pack: Pack, tmp_path: Path, capsys: Capture) -> None:
    for flips, others in (("0,0.5,1", "2 others"), ("0,1", "1 other")):
        sweep(job(colour_pack, tmp_path / flips, f"augment.flip={flips}"), never, stub)
        assert "trial-000, " in (said := capsys.readouterr().out.splitlines()[-4])
        assert said.endswith(f" {others} reached the same.")


def interrupting(at: int, half: bool) -> Callable[[TrainOptions, Stop], int]:
    """`stub`, but the trial `at` is ended by a signal; half: after it began."""

    def interrupted(options: TrainOptions, stop: Stop) -> int:
        if options.out.name == f"trial-{at:03}":
            if half:
                options.out.mkdir()
                (options.out / "recipe.json").write_text("{}")
            raise Stopped("here")
        return stub(options, stop)

    return interrupted


@pytest.mark.parametrize(("at", "half"), [(0, False), (2, True), (5, False)])
def test_a_resumed_sweep_is_one_that_was_never_stopped(
    colour_pack: Pack, tmp_path: Path, at: int, half: bool
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    sweep(job(colour_pack, whole, *RATES), never, stub)
    with pytest.raises(Stopped):
        sweep(job(colour_pack, parts, *RATES), never, interrupting(at, half))
    assert [trial["state"] == "running" for trial in found(parts)["trials"]] == [False] * at + [True]
    seen: list[tuple[str, bool]] = []

    def watched(options: TrainOptions, stop: Stop) -> int:
        seen.append((options.out.name, options.resume))
        return stub(options, stop)

    sweep(job(colour_pack, parts, *RATES, resume=True), never, watched)
    assert seen == [(f"trial-{n:03}", half and n == at) for n in range(at, 6)]
    assert found(parts) == found(whole)
    sweep(job(colour_pack, parts, *RATES, trials=8, resume=True), never, stub)
    sweep(job(colour_pack, tmp_path / "eight", *RATES, trials=8), never, stub)
    assert found(parts) == found(tmp_path / "eight")


def raising(error: UserError) -> Callable[[TrainOptions, Stop], int]:
    def broken(options: TrainOptions, stop: Stop) -> int:
        raise error

    return broken


@pytest.mark.parametrize("error", [RecipeError("so large"), WeightsError("so strange")])
def test_what_a_recipe_cannot_do_fails_its_trial(
    colour_pack: Pack, tmp_path: Path, error: UserError, capsys: Capture
) -> None:
    with pytest.raises(RunError, match="all 2 trials failed; the last one: so"):
        sweep(job(colour_pack, tmp_path / "s", *RATES, trials=2), never, raising(error))
    assert f"trial 1 failed: {error}" in capsys.readouterr().err
    assert sweep(job(colour_pack, tmp_path / "s", "batch-size=4,8", trials=2), never, stub) == 0, (
        "where nothing was trained, a corrected command begins anew"
    )


def test_a_trial_of_a_recipe_that_these_classes_do_not_allow_fails_alone(
    colour_pack: Pack, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(begin, "draw_pictures", lambda *_: None)
    one = replace(FULL.phases[0], epochs=1)
    recipe = replace(FULL, phases=(one,), averaging=Averaging(steps=0))
    asked = job(colour_pack, tmp_path / "s", "label-smoothing=0.1,0.9", recipe=recipe)
    assert sweep(asked, never, train.train) == 0
    states = {
        each["parameters"]["label-smoothing"]: each["state"] for each in found(tmp_path / "s")["trials"]
    }
    assert states == {"0.1": "done", "0.9": "failed"}


def test_a_trial_whose_results_are_gone_fails(colour_pack: Pack, tmp_path: Path) -> None:
    def idle(options: TrainOptions, stop: Stop) -> int:
        stub(options, stop)
        (options.out / "metrics.jsonl").unlink()
        return 0

    with pytest.raises(RunError, match=r"all 2 trials failed; .*trial-001 was trained and has no results; "):
        sweep(job(colour_pack, tmp_path / "s", "lr=0.001,0.002"), never, idle)


@pytest.mark.parametrize("error", [RunError("the disk is full"), UnreachableError("the hub is away")])
def test_other_errors_end_a_sweep_and_so_does_a_signal(
    colour_pack: Pack, tmp_path: Path, error: UserError
) -> None:
    with pytest.raises(type(error), match=str(error)):
        sweep(job(colour_pack, tmp_path / "s", *RATES), never, raising(error))
    assert [trial["state"] for trial in found(tmp_path / "s")["trials"]] == ["running"]
    with pytest.raises(Stopped, match="before trial-000"):
        sweep(job(colour_pack, tmp_path / "s", *RATES, resume=True), lambda: signal.SIGINT, stub)


def test_all_trials_may_fail(colour_pack: Pack, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="all 2 trials failed; the last one: the loss is not finite"):
        sweep(job(colour_pack, tmp_path / "s", "lr=0.5,0.6"), never, stub)


def test_all_trials_may_fail_before_one_that_was_interrupted(colour_pack: Pack, tmp_path: Path) -> None:
    def ended(options: TrainOptions, stop: Stop) -> int:
        if options.out.name == "trial-002":
            raise Stopped("here")
        raise RecipeError(f"{options.out.name} fails")

    asked = job(colour_pack, tmp_path / "s", *RATES)
    with pytest.raises(Stopped):
        sweep(asked, never, ended)
    with pytest.raises(RunError, match="all 2 trials failed; the last one: trial-001 fails"):
        sweep(replace(asked, resume=True, trials=2), never, ended)


def test_what_another_process_wrote_meanwhile_stays(
    colour_pack: Pack, tmp_path: Path, monkeypatch: Patch
) -> None:
    """sweep.json is read once the folder is held: another sweep may have ended just before."""
    out = tmp_path / "s"

    @contextmanager
    def late(run: Run) -> Iterator[None]:
        with monkeypatch.context() as patch, run_lock(run):
            patch.setattr(several, "run_lock", lambda _: nullcontext())
            sweep(job(colour_pack, out, *RATES, trials=trials, resume=trials == 3), never, stub)
        with run_lock(run):
            yield

    trials, seen = 2, list[str]()

    def watched(options: TrainOptions, stop: Stop) -> int:
        seen.append(options.out.name)
        return stub(options, stop)

    monkeypatch.setattr(several, "run_lock", late)
    with pytest.raises(RunError, match=r"sweep\.json is there already"):
        sweep(job(colour_pack, out, *RATES, trials=1), never, stub)
    trials = 3
    sweep(job(colour_pack, out, *RATES, trials=4, resume=True), never, watched)
    assert seen == ["trial-003"]


def test_other_versions_are_noted_and_temporaries_removed(
    colour_pack: Pack, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "s"
    asked = job(colour_pack, out, *RATES, trials=1)
    sweep(asked, never, stub)
    versions = found(out)["versions"]
    assert {"torch", "optuna", "torch_threads", "device"} <= versions.keys() and "date" not in versions
    sweep(replace(asked, resume=True), never, stub)
    assert "began with" not in capsys.readouterr().err
    (out / "sweep.json").write_text(json.dumps(found(out) | {"versions": versions | {"torch": "1.0"}}))
    (out / ".sweep.99.json").write_text("{")
    sweep(replace(asked, resume=True), never, stub)
    assert f"the sweep began with torch 1.0, and here is {versions['torch']};" in capsys.readouterr().err
    assert not (out / ".sweep.99.json").exists()


def test_a_sweep_goes_on_as_it_was_or_not_at_all(
    colour_pack: Pack, tmp_path: Path, monkeypatch: Patch
) -> None:
    out = tmp_path / "s"
    asked = job(colour_pack, out, *RATES, trials=1)
    sweep(asked, never, stub)

    def refused(**changes: Any) -> str:
        with pytest.raises(UserError) as error:
            sweep(replace(asked, **changes), never, stub)
        return str(error.value).replace(str(tmp_path), "TMP")

    assert refused() == "TMP/s/sweep.json is there already; name another folder: --out, or go on: --resume"
    other = replace(asked.recipe, batch_size=8)
    assert refused(resume=True, recipe=other) == (
        "TMP/s/sweep.json has recipe.batch_size = 32, not 8; resume with the same command"
    )
    assert "has fields = " in refused(resume=True, sweep=("lr=1e-4..1e-2",))
    assert refused(pack=None, out=tmp_path / "t").startswith("a sweep needs a pack: --pack PACK")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("")
    assert "TMP/used" in refused(out=tmp_path / "used")
    assert [file.name for file in (tmp_path / "used").iterdir()] == ["thesis.txt"]
    (out / "sweep.json").write_text('{"trials": 3}')
    assert refused(resume=True).startswith("TMP/s/sweep.json: sweep.trials is 3; expected a list")
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert refused() == "optuna is not installed, which chooses what to try; pip install optuna"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert refused() == "--sweep is for one process; start it without torchrun"


def test_a_sweep_trains_and_ends_on_ctrl_c_and_goes_on(
    colour_pack: Pack, tmp_path: Path, capsys: Capture
) -> None:
    """Whole trainings: the interrupted trial goes on from its checkpoint, and every number is the same."""
    recipe = replace(TINY, averaging=Averaging(steps=0), phases=(Phase(epochs=2, high=0.02, low=0.002),))
    asked = tiny_job(colour_pack.path, tmp_path / "whole", recipe=recipe)
    asked = replace(asked, sweep=("lr=1e-3..1e-2",), trials=2)
    assert train.main(asked) == 0
    whole = capsys.readouterr().out
    assert whole.count("next: ") == 1

    def interrupt(title: str, *_: Any) -> None:
        if title == "training epoch 1" and (tmp_path / "parts" / "trial-001").exists():
            os.kill(os.getpid(), signal.SIGINT)

    asked = replace(asked, out=tmp_path / "parts")
    with batches_seen(interrupt):
        assert train.main(asked) == 130
    assert "the same command with --resume goes on" in capsys.readouterr().err
    assert train.main(replace(asked, resume=True)) == 0
    assert found(tmp_path / "parts") == found(tmp_path / "whole")
    for name in ("trial-000", "trial-001"):
        rows = [(tmp_path / folder / name / "metrics.jsonl").read_text() for folder in ("whole", "parts")]
        assert rows[0] == rows[1]
    assert capsys.readouterr().out.count("trial 0 of 2") == 0
