"""recipe.py: the recipes number by number, and the command line of train that changes them."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from runs import ONE_THREAD, TINY, tiny_job

from greyhound import begin, train
from greyhound.cache.errors import UserError
from greyhound.cache.options import WIDTH, OptionError, options
from greyhound.cache.store import Pack
from greyhound.eval import Job, evaluate
from greyhound.model.checkpoint import fingerprint
from greyhound.model.network import build
from greyhound.model.run import Run, RunError
from greyhound.model.schedule import total_epochs, with_epochs, with_lr
from greyhound.recipe import (
    _INLINE,
    COMMON,
    DEMO,
    FAST,
    FINE,
    GROUPS,
    PAPER,
    RECIPES,
    Averaging,
    Recipe,
    TrainOptions,
    idle,
    read_options,
)


def read(words: str) -> TrainOptions:
    return read_options(words.split())


def refused(words: str) -> str:
    with pytest.raises(UserError) as error:
        read(words)
    assert "\n" not in str(error.value)
    return str(error.value)


def help_of(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as leaving:
        read_options([*words, "--help"])
    assert leaving.value.code == 0
    return capsys.readouterr().out


# --- recipes ------------------------------------------------------------------------------------------------


def test_paper_is_the_seeds_recipe_number_by_number() -> None:
    assert (PAPER.network, PAPER.label_smoothing, PAPER.momentum, PAPER.weight_decay) == (
        "efficientnet_b2",
        0.1,
        0.9,
        0,
    )
    assert [(phase.epochs, phase.high, phase.low) for phase in PAPER.phases] == [
        (50, 1e-1, 1e-2),
        (50, 1e-2, 1e-4),
        (50, 1e-4, 1e-6),
        (50, 1e-6, 1e-10),
    ]
    augment = PAPER.augment
    assert (augment.size, augment.scale, augment.rotation, augment.shear) == (256, (0.8, 1.2), 15, 10)
    assert (augment.brightness, augment.contrast, augment.saturation, augment.hue) == (0.25, 0.25, 0.25, 0.1)
    assert (augment.mean, augment.std, augment.flip, PAPER.normalise) == ((0, 0, 0), (1, 1, 1), 0, False)
    assert not PAPER.linear_probe
    assert [name for name, (recipe, _) in RECIPES.items() if not recipe.max_grad_norm] == ["paper"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_read_by_its_name_and_knows_it(name: str) -> None:
    found = read(f"{name} --out r --pack p")
    assert found == TrainOptions(out=Path("r"), pack=Path("p"), recipe=RECIPES[name][0])
    assert found.recipe.name == name
    assert list(RECIPES) == ["paper", "fast", "fine", "demo"]
    assert [recipe for recipe, _ in RECIPES.values()] == [PAPER, FAST, FINE, DEMO]
    assert [recipe.name for recipe, _ in RECIPES.values()] == list(RECIPES)


# --- what is changed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("paper --epochs 200",
         [(50, 1e-1, 1e-2, 0), (50, 1e-2, 1e-4, 0), (50, 1e-4, 1e-6, 0), (50, 1e-6, 1e-10, 0)]),
        ("paper --epochs 4",
         [(1, 1e-1, 1e-2, 0), (1, 1e-2, 1e-4, 0), (1, 1e-4, 1e-6, 0), (1, 1e-6, 1e-10, 0)]),
        ("paper --epochs 6",
         [(2, 1e-1, 1e-2, 0), (2, 1e-2, 1e-4, 0), (1, 1e-4, 1e-6, 0), (1, 1e-6, 1e-10, 0)]),
        ("paper --lr 1", [(50, 1, 0.1, 0), (50, 0.1, 1e-3, 0), (50, 1e-3, 1e-5, 0), (50, 1e-5, 1e-9, 0)]),
        ("paper --lr 0", [(50, 0, 0, 0)] * 4),
        ("fast --epochs 10", [(10, 3e-3, 1e-5, 2.0)]),
        ("fine --lr 6e-3", [(1, 6e-3, 2e-5, 0.2)]),
        ("fine --epochs 5 --lr 3e-4", [(5, 3e-4, 1e-6, 1.0)]),
        ("demo --epochs 1", [(1, 4e-3, 1e-5, 0.25)]),
        ("fine --phases.0.low 3e-4 --lr 3e-4", [(1, 3e-4, 3e-5, 0.2)]),
    ],
)  # fmt: skip
def test_epochs_and_lr_stretch_the_phases(words: str, expected: list[tuple[float, ...]]) -> None:
    phases = read(f"{words} --out r --pack p").recipe.phases
    found = [value for phase in phases for value in (phase.epochs, phase.high, phase.low, phase.warm_up)]
    assert found == pytest.approx([value for phase in expected for value in phase], rel=1e-12)
    assert all(isinstance(phase.epochs, int) for phase in phases)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--size 96", replace(FAST, augment=replace(FAST.augment, size=96))),
        ("--augment.size 96", replace(FAST, augment=replace(FAST.augment, size=96))),
        ("--augment.scale 1 1.5", replace(FAST, augment=replace(FAST.augment, scale=(1.0, 1.5)))),
        ("--batch-size=8 --probe-grids 1 3", replace(FAST, batch_size=8, probe_grids=(1, 3))),
        ("--averaging.steps 3", replace(FAST, averaging=replace(FAST.averaging, steps=3))),
    ],
)
def test_any_field_can_be_named(words: str, expected: object) -> None:
    assert read(f"fast --out r --pack p {words}").recipe == expected


def test_what_is_no_part_of_the_recipe() -> None:
    found = read(
        "fast --out r --pack p --threads 3 --checkpoints.keep 4 --resume --force pack recipe --device cpu"
    )
    assert (found.resources.threads, found.resources.device, found.checkpoints.keep) == (3, "cpu", 4)
    assert (found.resume, found.force) == (True, ("pack", "recipe"))


def test_a_folder_that_holds_a_run_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before torch is imported. Not under torchrun, which starts again what has begun."""
    (tmp_path / "recipe.json").write_text("{}")
    words = ["fast", "--pack", "p", "--out", str(tmp_path)]
    child = (
        "import sys, greyhound.recipe as r\ntry:\n r.read_options(sys.argv[1:])\nexcept r.OptionError as e:\n"
    )
    child += " print(e, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", child, *words], capture_output=True, text=True, check=True)
    assert (
        done.stdout
        == f"{tmp_path} holds a run already; name another folder, or go on with it: --resume False\n"
    )
    for wrong in ("--fats", "--lr abc", "--size -3"):
        with pytest.raises(OptionError, match=wrong.split()[0].lstrip("-")):
            read_options([*words, *wrong.split()])
    monkeypatch.setenv("RANK", "0")
    assert read_options(words).out == tmp_path


# --- what is wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "no recipe is named; expected: greyhound train paper|fast|fine|demo --pack PACK --out RUN"),
        ("--pack p --out r", "no recipe is named; expected"),
        ("slow --pack p --out r", "there is no recipe 'slow'; expected one of paper, fast, fine, demo"),
        ("fast --pack p", "--out is missing; see greyhound train --help"),
        ("fast --out r --epoch 3", "there is no flag --epoch; did you mean --epochs?"),
        ("fast --out r --hue 0.2", "there is no flag --hue; did you mean --augment.hue?"),
        ("fast --out r --learning-rate 1", "no flag --learning-rate; did you mean --lr?"),
        ("fast --out r --img_size 1", "no flag --img_size; did you mean --size?"),
        ("fast --out r --checkpoint.steps 1", "no flag --checkpoint.steps; did you mean --checkpoints.steps"),
        ("fast --out r --epochs 0", "--epochs is 0; expected at least 1, one for each phase"),
        ("paper --out r --epochs 3", "--epochs is 3; expected at least 4, one for each phase"),
        ("fine --out r --epochs few", "--epochs is 'few'; expected a whole number"),
        ("fine --out r --lr -1", "--lr is -1.0; expected 0 or more"),
        ("fine --out r --lr nan", "--lr is nan; expected 0 or more"),
        ("fine --out r --lr inf", "--lr is inf; expected 0 or more"),
        ("fine --out r --phases.0.high 0 --phases.0.low 0 --lr 1", "name --phases.0.high"),
        ("fast --out r --size big", "--size is 'big'; expected a whole number"),
        ("fast --out r --device tpu", "--device is 'tpu'; expected auto or gpu or cpu"),
        ("fine --out r --max-grad-norm -1", "--max-grad-norm is -1.0; expected 0 or more"),
        ("fast --out r --batch-size 0", "--batch-size is 0; expected 1 or more"),
        ("fast --out r --views 33", "--views is 33; expected 1 to --batch-size, 32"),
        ("fast --out r --probe-grids 8", "--probe-grids is 8; expected one or more of 0 to 7"),
        ("fast --out r --no-linear-probe", "nothing is trained: no phases, and no linear probe"),
        ("fast --out r --lr 1", "--lr is for epochs, and this recipe has none; add --epochs"),
        ("fast --out r --augment.hue 7", "hue is 7.0; expected 0..0.5 turns"),
        ("fast --out r --micro-batch 4 --compile", "--compile needs a whole batch in one call; add --micro-batch 0"),
        ("fast --out r --micro-batch 4 --no-freeze-bn", "--micro-batch needs frozen statistics; add --freeze-bn"),
        ("fast --out r --force pack", "--force is for a run that is resumed; expected --resume beside it"),
        ("fast --out r --resume --verify-determinism", "starts from the beginning; leave out --resume"),
        ("fast --out r --dry-run --find-lr", "--dry-run and --find-lr do different things; leave out all but one"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(
    words: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in refused(words)


def test_that_a_run_to_resume_is_not_there_is_said_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = read("--resume --out nowhere")
    assert (options.resume, options.out) == (True, Path("nowhere"))
    with pytest.raises(RunError, match="nowhere is no folder; expected a run folder"):
        train.train(options, lambda: None)
    assert list(tmp_path.iterdir()) == []


# --- help ---------------------------------------------------------------------------------------------------


def test_every_flag_has_exactly_one_heading_and_the_most_used_come_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = help_of(capsys=capsys)
    assert all(len(line) <= WIDTH == 100 for line in text.splitlines())
    headings = re.findall(r"^([a-z ]+):$", text, re.MULTILINE)
    assert headings == ["options", "most used", *GROUPS]
    flags = re.findall(r"^  (?:--size INT, )?--([\w.-]+)", text, re.MULTILINE)
    assert flags[:10] == list(COMMON) and len(COMMON) == 10
    fields = {option.name for option in options(TrainOptions(), _INLINE)}
    assert sorted(flags) == sorted(fields | {"epochs", "lr"}), "each once"
    assert not {"name", "note"} & set(flags), "they are recorded, and are no choice"


@pytest.mark.parametrize("name", RECIPES)
def test_the_defaults_are_those_of_the_recipe_that_is_named(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text, recipe = help_of(name, capsys=capsys), RECIPES[name][0]
    assert f"usage: greyhound train {name} --pack PACK --out RUN" in text
    assert f"[{recipe.network}]" in text and f"[{recipe.augment.size}]" in text
    assert text.count(".cycles ") == len(recipe.phases)


# --- flags without effect -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("fast --momentum 0.5 --augment.flip 0.2", "--momentum, --augment.flip: no effect here, this recipe has no epochs; --epochs 1 would add one"),
        ("fast --seed 3", "--seed: no effect here, this recipe has no epochs; --epochs 1 would add one"),
        ("fast --augment.scale 1 1.1", "--augment.scale: no effect here, there are no epochs, and eval's crops use --augment.crop-scale"),
        ("fast --augment.fit pad --augment.crop-scale 1 1.1", "--augment.crop-scale: no effect here, with --augment.fit pad crops use --augment.scale"),
        ("paper --augment.magnitude 3", "--augment.magnitude: no effect here, it is RandAugment's; add --augment.randaugment 2"),
        ("fine --averaging.rate 0.1", "--averaging.rate: no effect here, nothing is averaged; add --averaging.steps 5"),
        ("paper --probe-grids 0 3", "--probe-grids: no effect here, there is no linear probe; add --linear-probe"),
        ("fine --augment.mean 0 0 0", "--augment.mean: no effect here, --normalise sets it; add --no-normalise"),
        ("fast --no-freeze-bn --micro-batch 0", "--no-freeze-bn, --micro-batch: no effect here, this recipe has no epochs; --epochs 1 would add one"),
        ("fast --averaging.steps 2 --momentum 0.5 --views 2", "--momentum: no effect here, this recipe has no epochs; --epochs 1 would add one"),
        ("fast --trials 3", "--trials: no effect here, only --sweep uses it"),
        ("fast --checkpoints.steps 3", "--checkpoints.steps: no effect here, this recipe has no epochs; --epochs 1 would add one"),
        ("fast --averaging.steps 2 --checkpoints.keep 3 --trials 3 --sweep lr=1e-4,1e-3 --epochs 1", ""),
        ("fast --averaging.steps 2 --checkpoints.keep 3", "--checkpoints.keep: no effect here, this recipe has no epochs; --epochs 1 would add one"),
        ("fast --seed 3 --weights none", ""),
        ("fast --momentum 0.5 --sweep epochs=1,2", ""),
        ("fast --momentum 0.5 --epochs 1", ""),
        ("fast --seed 3 --folds 2", ""),
        ("fast --size 96 --class-weights balanced --augment.crop-scale 1 1.1 --augment.fit crop", ""),
        ("fast --augment.fit pad --augment.scale 1 1.1", ""),
    ],
)  # fmt: skip
def test_a_flag_without_effect_is_said(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    read(f"{words} --out run")
    assert capsys.readouterr().err == (f"note: {said}\n" if said else "")


def test_of_several_processes_one_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("RANK", "1")
    read("fast --seed 3 --out run")
    assert not capsys.readouterr().err


CHANGED: dict[str, Any] = {
    "views": 2, "batch_size": 16, "micro_batch": 2, "momentum": 0.3, "max_grad_norm": 1e-3, "weight_decay": 0.1,
    "label_smoothing": 0.2, "freeze_bn": True, "select": "accuracy", "patience": 3, "activation_checkpointing": True, "seed": 9,
}  # fmt: skip
"""Another value for each field of the recipe that `idle` may name where nothing takes steps."""


def test_what_is_said_to_have_no_effect_has_none(colour_pack: Pack, tmp_path: Path) -> None:
    torch.save(build("test_efficientnet", 1000, "none").state_dict(), tmp_path / "weights.pth")
    base = replace(
        TINY,
        weights=str(tmp_path / "weights.pth"),
        augment=replace(TINY.augment, crop_scale=(1.0, 1.0)),
        select="loss",
        linear_probe=True,
        probe_grids=(0, 1),
        phases=(),
        averaging=Averaging(steps=0),
    )
    averaged = replace(base, averaging=Averaging(steps=1, rate=1e-3), freeze_bn=True)
    assert idle(base).keys() <= {option.name for option in options(base)}
    fields = {name.replace("-", "_") for name in idle(base)}
    of_augment = {name.partition(".")[2] for name in fields if name.startswith("augment.")}
    other: dict[str, Any] = {
        "rotation": 40.0, "shear": 3.0, "flip": 0.5, "brightness": 0.9, "contrast": 0.9, "saturation": 0.9,
        "hue": 0.3, "randaugment": 3, "magnitude": 20, "mixup": 0.5, "cutmix": 0.5, "scale": (0.5, 2.0),
    }  # fmt: skip
    assert of_augment == other.keys()
    alone = {"compile", "sync_batchnorm"}  # each refuses one of the others
    assert {name for name in fields if "." not in name} == CHANGED.keys() | alone
    of_epochs = {name.replace("-", "_") for name in idle(averaged) if "." not in name}
    assert of_epochs == {"momentum", "max_grad_norm", "weight_decay", "micro_batch", "patience", "compile"}

    def result(recipe: Recipe, checkpoint: Literal["best", "swa"] = "best") -> tuple[str, float, Any]:
        out = Path(tempfile.mkdtemp(dir=tmp_path)) / "run"
        train.train(tiny_job(colour_pack.path, out, recipe=recipe), lambda: None)
        evaluate(Job(out, crops=3, resources=ONE_THREAD, checkpoint=checkpoint))
        found, (_, network) = Run(out).read("eval.json"), Run(out).network(checkpoint, torch.device("cpu"))
        return fingerprint(network.state_dict()), found["cross_entropy"], found["confusion"]

    expected = result(base)
    assert result(replace(base, **CHANGED, augment=replace(base.augment, **other))) == expected
    assert result(replace(base, compile=True)) == expected
    assert result(replace(base, sync_batchnorm=True)) == expected
    changed = {name: value for name, value in CHANGED.items() if name in of_epochs}
    assert (again := result(averaged, "swa")) == result(replace(averaged, **changed), "swa")
    assert again == result(replace(averaged, compile=True, micro_batch=0), "swa") != expected


# --- going on -----------------------------------------------------------------------------------------------


@pytest.fixture
def resumed(colour_pack: Pack, tmp_path: Path) -> Path:
    """A run folder of `fast` with another batch size and network, described and not begun."""
    out = tmp_path / "run"
    recipe = replace(TINY, name="fast", batch_size=16)
    with begin.opened(tiny_job(colour_pack.path, out, recipe=recipe), lambda: None):
        pass
    return out


@pytest.mark.parametrize("name", ["", "fast "])
def test_resume_takes_the_runs_own_recipe_with_its_name_or_without(resumed: Path, name: str) -> None:
    plain = read(f"{name}--resume --out {resumed}")
    assert (plain.recipe.batch_size, plain.recipe.network) == (16, TINY.network)
    changed = read(f"{name}--resume --out {resumed} --momentum 0.5").recipe
    assert changed == replace(plain.recipe, momentum=0.5)
    assert read(f"{name}--resume --out {resumed} --epochs 4").recipe.phases[0].epochs == 4
    assert plain.pack is None and begin.pack_path(plain).name == "images.arrow"


def test_resume_under_another_name_is_another_recipe(resumed: Path) -> None:
    assert read(f"paper --resume --out {resumed}").recipe == PAPER


def test_a_plain_resume_trains_to_the_end(resumed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words: list[Any] = ["--resume", "--out", str(resumed), "--device", "cpu", "--threads", "1"]
    assert train.train(read_options(words), lambda: None) == 0
    assert "epoch: 1, train loss" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", [PAPER, FINE, DEMO], ids=lambda recipe: recipe.name)
def test_a_resumed_run_takes_the_same_epochs_and_rate_again(recipe: Recipe) -> None:
    for lr in (0.05, 0.1, 0.003, 0.0007, 1.3e-5):
        once = with_lr(recipe.phases, lr)
        assert max(phase.high for phase in once) == lr
        assert with_lr(once, lr) == once
    for epochs in range(len(recipe.phases), 60):
        once = with_epochs(recipe.phases, epochs)
        assert total_epochs(once) == epochs
        assert with_epochs(once, epochs) == once


def test_crops_are_at_the_scale_of_what_the_weights_were_fitted_to() -> None:
    for recipe in (FAST, FINE):
        assert recipe.augment.crops().scale == (1.0, 1.0)
    for recipe in (PAPER, DEMO):
        assert recipe.augment.crops().scale == recipe.augment.scale
