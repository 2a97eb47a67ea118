"""--folds: what belongs together stays together, every image is validated once, and a run knows its fold."""

from __future__ import annotations

import json
import pickle
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from runs import FULL, NAMES, ONE_THREAD, Capture, Here, Patch, never, tinted, tiny_job

from greyhound import begin, train
from greyhound.cache.cli import Stop, Stopped
from greyhound.cache.errors import UserError
from greyhound.cache.folds import ALONE, Fold, deal
from greyhound.cache.pack import Options, pack
from greyhound.cache.split import Table
from greyhound.cache.store import SPLITS, Pack, PackError
from greyhound.folds import cross_validate, next_step, summary
from greyhound.model import metrics
from greyhound.model.run import BEST, PACK, PROBE, Run, RunError
from greyhound.recipe import FAST, Averaging, TrainOptions
from greyhound.session import fold_of, open_pack, open_trained_pack

PROBED = replace(FULL, phases=(), averaging=Averaging(steps=0))


def dealt(labels: list[int], families: list[int], count: int, seed: int = 0) -> list[int]:
    return deal(labels, families, range(len(labels)), count, seed)


def test_folds_are_stratified_and_of_one_size() -> None:
    labels = [0] * 12 + [1] * 7 + [2] * 6
    folds = dealt(labels, [ALONE] * 25, 3)
    counts = Counter(zip(labels, folds, strict=True))
    assert all(counts[0, fold] == 4 and counts[2, fold] == 2 for fold in range(3))
    assert sorted(counts[1, fold] for fold in range(3)) == [2, 2, 3]
    assert sorted(Counter(folds).values()) == [8, 8, 9]


def test_families_stay_together_over_classes_too() -> None:
    families = [0, 0, 0, 1, 1, ALONE, ALONE, ALONE, 1, ALONE, ALONE, ALONE]
    for seed in range(20):
        folds = dealt([0] * 8 + [1] * 4, families, 2, seed)
        assert folds[0] == folds[1] == folds[2]
        assert folds[3] == folds[4] == folds[8]
        assert Counter(folds[8:]) == {0: 2, 1: 2}


def test_another_seed_deals_otherwise_and_the_order_of_rows_does_not_matter() -> None:
    labels = [0, 1] * 10
    keys, families = [number * 7919 % 101 for number in range(20)], [ALONE] * 20
    folds = deal(labels, families, keys, 4, 0)
    assert folds == [2, 0, 1, 3, 1, 1, 0, 1, 3, 3, 3, 2, 1, 0, 2, 3, 0, 2, 2, 0]
    assert folds != deal(labels, families, keys, 4, 1)
    assert deal(labels[::-1], families, keys[::-1], 4, 0)[::-1] == folds


@pytest.mark.parametrize(("count", "most"), [(1, "2 to 3"), (4, "2 to 3"), (-1, "2 to 3")])
def test_more_folds_than_the_smallest_class_has_families_are_refused(count: int, most: str) -> None:
    with pytest.raises(
        UserError, match=f"--folds is {count}; expected {most}: the smallest class has 3 images"
    ):
        dealt([0] * 9 + [1] * 4, [ALONE] * 9 + [0, 0, ALONE, ALONE], count)
    with pytest.raises(UserError, match="--folds is 3; expected 2: the smallest class has 2 images"):
        dealt([0, 0, 1, 1], [ALONE] * 4, 3)
    with pytest.raises(UserError, match="--folds is 2; expected no folds: the smallest class has 1 images"):
        dealt([0, 0, 1], [ALONE] * 3, 2)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """60 images; of each class 1_0, 1_1, 1_2 are a group, and 2_0, 2_1; 12 images are for the test."""
    root = tmp_path_factory.mktemp("grouped")
    images = {name: [tinted(2 - k, 100 * k + n) for n in range(20)] for k, name in enumerate(NAMES)}
    for name, files in images.items():
        (root / "images" / name).mkdir(parents=True)
        for n, data in enumerate(files):
            series = f"1_{n}" if n < 3 else f"2_{n - 3}" if n < 5 else f"{n}_0"
            (root / "images" / name / f"{series}.jpg").write_bytes(data)
    pack(root / "images", root / "pack.arrow", Options(val=0.1, test=0.2, group=r"[^/]*/\d+_"))
    return Pack(root / "pack.arrow")


def test_a_pack_keeps_who_belongs_together(grouped: Pack, colour_pack: Pack) -> None:
    paths = [grouped.image_path(row) for row in range(60)]
    sets = {path.rsplit("_")[0]: set[int]() for path in paths}
    for path, family in zip(paths, grouped.families.tolist(), strict=True):
        sets[path.rsplit("_")[0]].add(family)
    several = [found for name, found in sets.items() if name.rpartition("/")[2] in ("1", "2")]
    assert len(several) == 6 and all(len(found) == 1 for found in several)
    assert len(set.union(*several)) == 6 and ALONE not in set.union(*several)
    assert all(found == {ALONE} for name, found in sets.items() if name.rpartition("/")[2] not in ("1", "2"))
    assert "family" not in colour_pack._shards[0]._index.columns  # its bytes are what they were
    assert set(colour_pack.families.tolist()) == {ALONE}


def test_every_image_is_validated_once_and_the_test_stays(grouped: Pack) -> None:
    folds = [Pack(grouped.path, fold=Fold(index, 3, 0)) for index in range(3)]
    validated = [row for fold in folds for row in fold.ids("val").tolist()]
    both = sorted([*grouped.ids("train").tolist(), *grouped.ids("val").tolist()])
    assert sorted(validated) == both
    for fold in folds:
        assert sorted([*fold.ids("train").tolist(), *fold.ids("val").tolist()]) == both
        assert fold.ids("test").tolist() == grouped.ids("test").tolist()
        inside = {fold.families[row] for row in fold.ids("val")} - {ALONE}
        assert not inside & {fold.families[row] for row in fold.ids("train")}
        assert pickle.loads(pickle.dumps(fold)).ids("val").tolist() == fold.ids("val").tolist()
        assert fold.header.digest == grouped.header.digest


def test_what_folds_came_to_by_hand() -> None:
    found = summary(
        [{"n": 10, "accuracy": 0.5, "valid_loss": 1.0}, {"n": 30, "accuracy": 0.9, "valid_loss": 2.0}]
    )
    assert found["n"] == 40
    assert (found["accuracy"], found["cross_entropy"]) == pytest.approx((0.8, 1.75))
    assert found["interval"] == pytest.approx(metrics.wilson(32, 40))
    assert (found["mean"], found["least"], found["highest"]) == pytest.approx((0.7, 0.5, 0.9))


def test_the_next_command_is_one_that_the_pack_allows(grouped: Pack, tmp_path: Path) -> None:
    assert next_step(grouped) == (
        "next: the same command without --folds, to another --out; greyhound eval tests what comes of it"
    )
    pack(grouped.path.parent / "images", tmp_path / "p.arrow", Options(val=0, test=0))
    opened = Pack(tmp_path / "p.arrow")
    said = next_step(opened)
    assert said == (
        "next: pack again into another file, with --val and --test; then "
        "the same command without --folds, to another --out"
    )
    with pytest.raises(PackError, match=r"pack again, with --val 0\.2"):
        open_pack(opened.path, ONE_THREAD)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: Patch) -> None:
    monkeypatch.setattr(begin, "draw_pictures", lambda *_: None)


def asked(pack: Pack, out: Path, resume: bool = False, folds: int = 3) -> TrainOptions:
    return replace(tiny_job(pack.path, out, resume, PROBED), folds=folds)


@pytest.fixture(scope="module")
def crossed(grouped: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds, stopped in the second one and gone on with."""
    out = tmp_path_factory.mktemp("crossed") / "folds"
    with pytest.MonkeyPatch.context() as patch:
        no_pictures.__wrapped__(patch)  # type: ignore[attr-defined]
        batches = iter([None] * 6 + [signal.SIGTERM] * 99)
        with pytest.raises(Stopped):
            cross_validate(asked(grouped, out), lambda: next(batches), train.train)
        assert (out / "fold-0" / BEST).exists() and not (out / "fold-2").exists()
        assert cross_validate(asked(grouped, out, resume=True), never, train.train) == 0
    return out


def test_folds_are_run_folders_and_their_sum_is_written_down(
    crossed: Path, grouped: Pack, tmp_path: Path, capsys: Capture
) -> None:
    found = json.loads((crossed / "folds.json").read_text())
    probes = [Run(crossed / f"fold-{index}").read(PROBE) for index in range(3)]
    assert found["n"] == sum(each["n"] for each in probes) == 48
    assert found["accuracy"] * 48 == pytest.approx(sum(each["accuracy"] * each["n"] for each in probes))
    assert [each["accuracy"] for each in found["results"]] == [each["accuracy"] for each in probes]
    page = (crossed / "folds.html").read_text()
    assert "chose among" not in page  # there is one result a fold
    assert "no standard error" in page and "fold-2" in page and "validate other images each" in page
    alone = replace(tiny_job(grouped.path, tmp_path / "alone", recipe=PROBED), fold=Fold(1, 3, 0))
    assert train.train(alone, never) == 0
    one, other = (Run(folder) for folder in (tmp_path / "alone", crossed / "fold-1"))
    drop = {"elapsed", "seconds"}
    assert {k: v for k, v in one.read(PROBE).items() if k not in drop} == {
        k: v for k, v in other.read(PROBE).items() if k not in drop
    }


def test_a_run_knows_its_fold_wherever_its_pack_is_opened(crossed: Path, grouped: Pack, here: Here) -> None:
    run = Run(crossed / "fold-2")
    assert fold_of(run) == Fold(2, 3, 0)
    expected = Pack(grouped.path, fold=Fold(2, 3, 0)).ids("val").tolist()
    assert open_trained_pack(run, None, ONE_THREAD).ids("val").tolist() == expected
    assert run.read(PACK)["splits"] == {"train": 48 - len(expected), "val": len(expected), "test": 12}
    answer = here("eval.py", "--run", str(run.folder), "--split", "val", "--crops", "1", "--device", "cpu")
    assert f"n = {len(expected)}" in answer.out


def test_a_fold_is_resumed_as_that_fold(crossed: Path, grouped: Pack) -> None:
    options = tiny_job(grouped.path, crossed / "fold-1", resume=True, recipe=PROBED)
    assert begin.fold_asked(options) == Fold(1, 3, 0)
    with pytest.raises(RunError, match=r"is fold 1 of 3.*, not fold 1 of 4.*; resume with the same --folds"):
        begin.fold_asked(replace(options, fold=Fold(1, 4, 0)))


@pytest.fixture(scope="module")
def ungrouped(grouped: Pack, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """The same images in the same splits, without groups."""
    splits = {grouped.image_path(row): split for split in SPLITS for row in grouped.ids(split).tolist()}
    path = tmp_path_factory.mktemp("ungrouped") / "pack.arrow"
    pack(grouped.path.parent / "images", path, Options(table=Table(Path("t.csv"), splits, {})))
    return Pack(path)


def test_families_are_no_part_of_a_packs_digest_and_of_folds(
    crossed: Path, grouped: Pack, ungrouped: Pack
) -> None:
    assert ungrouped.header.digest == grouped.header.digest
    assert set(ungrouped.families.tolist()) == {ALONE}
    run = Run(crossed / "fold-1")
    for opened in (
        lambda: open_trained_pack(run, ungrouped.path, ONE_THREAD),
        lambda: cross_validate(asked(ungrouped, crossed, resume=True), never, train.train),
    ):
        with pytest.raises(UserError, match=r"has other groups or twins than when fold [01] of 3, .* was"):
            opened()


def ended(options: TrainOptions, stop: Stop) -> int:
    """Stands for a training that a signal ends at once."""
    raise Stopped("here")


def test_folds_of_another_recipe_or_number_are_not_gone_on_with(grouped: Pack, tmp_path: Path) -> None:
    """Also where what is asked for is a plain preset, which stands for a run's own recipe elsewhere."""
    options = replace(asked(grouped, tmp_path / "f"), recipe=replace(FAST, momentum=0.5))
    with pytest.raises(Stopped):
        cross_validate(options, never, ended)
    for changes, differs in (
        ({"recipe": FAST}, "recipe.momentum = 0.5, not 0.9"),
        ({"folds": 4}, "folds = 3, not 4"),
        ({"recipe": replace(options.recipe, seed=1)}, "recipe.seed = 0, not 1"),
    ):
        with pytest.raises(RunError, match=f"folds.json has {differs}; resume with the same command"):
            cross_validate(replace(options, resume=True, **changes), never, ended)


def test_folds_begun_before_a_field_was_there_went_without_it(grouped: Pack, tmp_path: Path) -> None:
    options = replace(asked(grouped, tmp_path / "f"), recipe=FAST)
    with pytest.raises(Stopped):
        cross_validate(options, never, ended)
    content = json.loads((tmp_path / "f" / "folds.json").read_text())
    del content["recipe"]["max_grad_norm"]
    (tmp_path / "f" / "folds.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"has recipe\.max_grad_norm = 0\.0, not 1\.0; resume with"):
        cross_validate(replace(options, resume=True), never, ended)
    with pytest.raises(Stopped):
        cross_validate(replace(options, resume=True, recipe=replace(FAST, max_grad_norm=0.0)), never, ended)


def test_folds_that_are_there_are_gone_on_with_or_left(
    crossed: Path, grouped: Pack, tmp_path: Path, monkeypatch: Patch
) -> None:
    with pytest.raises(
        RunError, match=r"folds\.json is there already; name another folder: --out, or go on: --resume"
    ):
        cross_validate(asked(grouped, crossed), never, train.train)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--folds is for one process; start it without torchrun"):
        cross_validate(asked(grouped, tmp_path / "new"), never, train.train)


def test_what_a_pack_does_not_say_is_said(
    grouped: Pack, colour_pack: Pack, tmp_path: Path, capsys: Capture
) -> None:
    def stop(*_: object) -> int:
        raise Stopped("here")

    for each, said in ((grouped, False), (colour_pack, True)):
        with pytest.raises(Stopped):
            cross_validate(asked(each, tmp_path / str(said)), never, stop)
        assert ("has no groups and no twins" in capsys.readouterr().err) == said
    with pytest.raises(UserError, match="--folds is 99; expected 2 to 16"):
        cross_validate(asked(colour_pack, tmp_path / "out", folds=99), never, stop)
