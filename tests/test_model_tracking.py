"""model/tracking.py, model/trackers.py: every tracker is read back with its own library."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from runs import FULL, ONE_THREAD, TINY, Capture, Patch, never, tiny_job

from greyhound import begin, explain, train
from greyhound import eval as evaluation
from greyhound.cache.cli import Stopped
from greyhound.cache.files import replacing
from greyhound.cache.store import Pack
from greyhound.model import checkpoint, distributed, trackers
from greyhound.model.run import EVALUATION, LAST, METRICS, PACK, PROBE, RECIPE, STEPS, TIMES, TRACKING, Run
from greyhound.model.run_lock import run_lock
from greyhound.model.tracking import (
    Follower,
    TrackingError,
    follow,
    numbered,
    require,
    scalars,
    step_at,
    summary,
)
from greyhound.pipelines.order import even_bounds
from greyhound.recipe import Averaging, Checkpoints
from greyhound.session import TrainContext

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # among those libraries

Points: TypeAlias = dict[str, list[tuple[int, Any]]]
"""Of each scalar its steps and values, in the order in which they lie there."""


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current folder of all tests here, in which MLflow and wandb write, and a folder for trackio."""
    folder = tmp_path_factory.mktemp("trackers")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("MLFLOW_", "WANDB_", "TRACKIO_"))]:
            patch.delenv(name)
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def full(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of two epochs of six steps, evaluated and explained."""
    out = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("full") / "dogs"))
    evaluation.evaluate(evaluation.Job(run=out, crops=2, resources=ONE_THREAD))
    explain.explain(explain.Job(run=out, count=2, resources=ONE_THREAD))
    return out


def cut(full: Path, out: Path, epoch: int, images: int = 0) -> Run:
    """Make `out` the run folder as its training had it at that place; what trackers wrote stays."""
    out.mkdir(exist_ok=True)
    for file in full.iterdir():
        if file.suffix in (".json", ".png", ".html") and (epoch > 1 or "eval" not in file.name):
            shutil.copy(file, out)
    run = Run(out)
    steps = [row for row in Run(full).rows(STEPS) if (row["epoch"], row["images"]) <= (epoch, images)]
    run.write_rows(STEPS, steps)
    for name in (METRICS, TIMES):
        run.write_rows(name, [row for row in Run(full).rows(name) if row["epoch"] < epoch])
    return run


def from_tensorboard(run: Run) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run.folder), {"scalars": 0}).Reload()
    return {
        name: [(each.step, each.value) for each in found.Scalars(name)] for name in found.Tags()["scalars"]
    }


def mlflow_client(run: Run) -> Any:
    import mlflow

    return mlflow.MlflowClient(run.read(TRACKING)["mlflow"]["where"])


def from_mlflow(run: Run) -> Points:
    client, key = mlflow_client(run), run.read(TRACKING)["mlflow"]["id"]
    names = client.get_run(key).data.metrics
    return {
        name: [(each.step, each.value) for each in client.get_metric_history(key, name)] for name in names
    }


def trackio_rows(run: Run) -> list[dict[str, Any]]:
    from trackio.sqlite_storage import SQLiteStorage

    known = run.read(TRACKING)["trackio"]
    rows: list[dict[str, Any]] = SQLiteStorage.get_logs(known["where"], known["id"])
    return rows


def from_trackio(run: Run) -> Points:
    return listed((row["step"], row) for row in trackio_rows(run))


def wandb_records(run: Run) -> Iterator[Any]:
    """What wandb wrote of a run, in its own files, one of each process: LevelDB's log of its own messages.

    `finish` returns before wandb's process has written the last of them.
    """
    for file in sorted(Path("wandb").glob(f"offline-run-*-{run.read(TRACKING)['wandb']['id']}*/*.wandb")):
        for _ in range(100):
            records = list(messages(file.read_bytes()))
            if records[-1:] and records[-1].HasField("exit"):
                break
            time.sleep(0.1)
        yield from records


def messages(content: bytes) -> Iterator[Any]:
    """The messages in a file of wandb's, as far as they are whole."""
    from wandb.proto.wandb_internal_pb2 import Record

    message = b""
    for start in range(0, len(content), 32768):
        block = content[start : start + 32768]
        place = 0 if start else 7  # behind the file's header
        while place + 7 <= len(block):
            length, kind = struct.unpack_from("<HB", block, place + 4)
            message += block[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4) and place <= len(block):  # a whole message, or its last part
                yield Record.FromString(message)
                message = b""


def from_wandb(run: Run) -> Points:
    rows = []
    for record in wandb_records(run):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            row = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
            rows.append((row["_step"], row))
    return listed(iter(rows))


def listed(rows: Iterator[tuple[int, dict[str, Any]]]) -> Points:
    """The scalars of rows, by name."""
    found = defaultdict(list)
    for step, row in rows:
        for name, value in row.items():
            if ("/" in name and isinstance(value, int | float)) or name == "epoch":
                found[name].append((step, value))
    return found


READ: dict[str, Callable[[Run], Points]] = {
    "tensorboard": from_tensorboard,
    "mlflow": from_mlflow,
    "trackio": from_trackio,
    "wandb": from_wandb,
}
EACH = pytest.mark.parametrize("name", READ)


def log(run: Run, name: str, folders: list[str] | None = None) -> None:
    """Follow the run folder once, as a process does at its end; no tracker may fail."""
    failures: list[str] = []
    with Follower(run, failures.append, [name]):
        pass
    assert failures == []


def check(name: str, run: Run, full: Path) -> None:
    """Every scalar of the run is there once, at its step."""
    pytest.importorskip(name)
    found = READ[name](run)
    steps, epochs, times = (Run(full).rows(each) for each in (STEPS, METRICS, TIMES))
    numbered = list(enumerate(steps, 1))
    expected = {
        "train/loss": [(step, row["train_loss"]) for step, row in numbered],
        "train/learning_rate": [(step, row["learning_rate"]) for step, row in numbered],
        "valid/loss": [(6 * row["epoch"] + 6, row["valid_loss"]) for row in epochs],
        "valid/accuracy": [(6 * row["epoch"] + 6, row["accuracy"]) for row in epochs],
        "train/epoch_loss": [(6 * row["epoch"] + 6, row["train_loss"]) for row in epochs],
        "train/images_per_second": [(6 * row["epoch"] + 6, row["images_per_second"]) for row in times],
        "epoch": [(step, row["epoch"] + row["images"] / 42) for step, row in numbered],
    }
    assert len(steps) == 12
    for scalar, points in expected.items():
        assert [step for step, _ in found[scalar]] == [step for step, _ in points], scalar
        values = [value for _, value in points]
        assert [value for _, value in found[scalar]] == pytest.approx(values, rel=1e-6), scalar


@EACH
def test_every_scalar_is_there_once_however_often_a_run_was_stopped(
    name: str, full: Path, tmp_path: Path
) -> None:
    pytest.importorskip(name)
    out = tmp_path / f"stopped-{name}"
    for place in ((0, 0), (0, 21), (1, 0), (1, 7), (2, 0), (2, 0)):
        log(cut(full, out, *place), name)
    check(name, Run(out), full)


@EACH
def test_every_scalar_is_there_once_after_a_kill(name: str, full: Path, tmp_path: Path) -> None:
    """It logged more than tracking.json says, and came further than its last checkpoint."""
    pytest.importorskip(name)
    out, failures = tmp_path / f"killed-{name}", list[str]()
    log(cut(full, out, 0, 28), name)
    before = (out / TRACKING).read_text()
    killed = Follower(cut(full, out, 1, 28), failures.append)
    killed.__enter__()
    killed._update(at_end=False)
    assert Run(out).read(TRACKING)[name]["step"] == 10
    if name in ("trackio", "wandb"):  # a second later, or by a process that goes on when its parent is dead
        vars(killed._open[name])["_run"].finish()
    (out / TRACKING).write_text(before)
    log(cut(full, out, 1, 7), name)
    log(cut(full, out, 2), name)
    if name == "wandb":  # each process has a file of its own; a step that came before is the same
        found = from_wandb(Run(out))["train/loss"]
        assert len(found) > len(set(found)) == 12
        assert sorted(set(found)) == [
            (step, row["train_loss"]) for step, row in enumerate(Run(full).rows(STEPS), 1)
        ]
    else:
        check(name, Run(out), full)
    assert failures == []


@pytest.fixture(scope="module")
def logged(full: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run in all trackers that are there, evaluated after its training, in another process."""
    out = tmp_path_factory.mktemp("logged") / "dogs"
    names = [name for name in READ if importlib.util.find_spec(name)]
    failures: list[str] = []
    for epoch in (1, 2):
        with Follower(cut(full, out, epoch), failures.append, names):
            pass
    assert failures == []
    return Run(out)


def test_tensorboard_has_recipe_pictures_and_tables(logged: Run) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    found = EventAccumulator(str(logged.folder), {"images": 0, "tensors": 0}).Reload()
    assert set(found.Tags()["images"]) == {
        f"images/{name}" for name in ("lr", "augmented", "confusion", "saliency")
    }
    data = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    parameters = HParamsPluginData.FromString(data).session_start_info.hparams
    assert parameters["network"].string_value == "test_efficientnet"
    assert parameters["phases.0.high"].number_value == 0.02
    (table,) = found.Tensors("test/classes/text_summary")
    assert "| blue <b> | 4 |" in table.tensor_proto.string_val[0].decode()
    assert found.Scalars("test/accuracy")[0].value == pytest.approx(logged.read(EVALUATION)["accuracy"])


def test_mlflow_has_recipe_pictures_and_artefacts(logged: Run, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    client, key = mlflow_client(logged), logged.read(TRACKING)["mlflow"]["id"]
    run = client.get_run(key)
    assert run.data.params["network"] == "test_efficientnet"
    assert run.data.params["phases.0.high"] == "0.02"
    assert run.data.tags["about.pack"] == logged.read("pack.json")["digest"]
    assert (run.info.run_name, run.info.status) == ("dogs", "FINISHED")
    paths = {each.path for folder in ("", "images", "test") for each in client.list_artifacts(key, folder)}
    assert paths >= {"report.html", "images/confusion.png", "test/classes.csv", "test/confusion.csv"}
    assert (
        Path(client.download_artifacts(key, "report.html")).read_bytes()
        == (logged.folder / "report.html").read_bytes()
    )
    assert Path(client.download_artifacts(key, "test/classes.csv")).read_text().startswith("name,n,accuracy")
    tested = logged.read(EVALUATION)
    assert run.data.metrics["test/accuracy"] == tested["accuracy"]
    assert run.data.metrics["test/interval_low"] == tested["interval"][0]
    assert run.data.tags["kept/after"]


def test_trackio_has_recipe_pictures_and_artefacts(logged: Run) -> None:
    trackio = pytest.importorskip("trackio")
    known = logged.read(TRACKING)["trackio"]
    (run,) = [run for run in trackio.Api().runs(known["where"]) if run.name == known["id"]]
    assert run.config["network"] == "test_efficientnet"
    assert run.config["phases.0.high"] == 0.02
    media = {
        name: value for row in trackio_rows(logged) for name, value in row.items() if isinstance(value, dict)
    }
    assert media.keys() >= {"images/augmented", "images/saliency", "test/classes", "test/confusion"}
    assert media["test/classes"]["_value"][0]["name"] == "blue <b>"
    from PIL import Image
    from trackio.utils import MEDIA_DIR

    with (
        Image.open(Path(MEDIA_DIR) / media["images/lr"]["file_path"]) as one,
        Image.open(logged.folder / "lr.png") as other,
    ):
        assert np.array_equal(np.asarray(one.convert("RGB")), np.asarray(other.convert("RGB")))
    assert any("test/accuracy" in row for row in trackio_rows(logged))


def test_wandb_has_recipe_pictures_and_artefacts(logged: Run) -> None:
    pytest.importorskip("wandb")
    records = list(wandb_records(logged))
    config = {
        item.key: json.loads(item.value_json) for record in records for item in record.run.config.update
    }
    assert config["network"] == "test_efficientnet"
    assert config["phases.0.high"] == 0.02
    items = [item for record in records for item in record.history.item]
    media = {item.nested_key[0] for item in items if item.nested_key}
    assert media >= {"images/augmented", "images/confusion", "test/classes", "test/confusion"}
    artefacts = {record.request.log_artifact.artifact.name or record.artifact.name for record in records}
    assert any(name.endswith("-report") for name in artefacts)
    values = {item.key: json.loads(item.value_json) for record in records for item in record.summary.update}
    assert values["test/accuracy"] == logged.read(EVALUATION)["accuracy"]
    assert values["kept/after"]


def test_a_tracker_that_fails_is_said_once_and_stops_nothing(
    full: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    class Failing:
        def __init__(self, *_: object) -> None:
            pass

        def describe(self, *_: object) -> None:
            pass

        def rows(self, rows: object) -> None:
            raise OSError("no route\nto host")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", Failing)
    said: list[str] = []
    run = cut(full, tmp_path / "failing", 1)
    with Follower(run, said.append, ["wandb", "tensorboard"]) as follower:
        follower()
    assert said == [
        "--log wandb: OSError: no route to host; it gets no more of this run until --resume, eval or explain"
    ]
    assert len(from_tensorboard(run)["train/loss"]) == 6
    assert run.read(TRACKING)["wandb"]["step"] == -1


def test_a_tracker_that_is_not_installed_is_refused_before_anything(
    colour_pack: Pack, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    job = replace(tiny_job(colour_pack.path, tmp_path / "run"), log=("wandb",))
    with pytest.raises(TrackingError, match=r"--log wandb needs a package .*; pip install wandb$"):
        train.train(job, never)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_its_name_is_no_package(tmp_path: Path, monkeypatch: Patch) -> None:
    """As wandb makes in the current folder, from which Python may import."""
    (tmp_path / "trackerless").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TrackingError, match="pip install trackerless"):
        require(["trackerless"])


def test_a_training_is_followed_through_a_stop_and_after_its_end(
    colour_pack: Pack, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.setattr(begin, "draw_pictures", lambda *_: None)
    recipe = replace(FULL, averaging=Averaging(steps=0))
    job = replace(tiny_job(colour_pack.path, tmp_path / "run", recipe=recipe), log=("tensorboard",))
    job = replace(job, checkpoints=Checkpoints(steps=2))
    seen: list[int] = []
    logging = Follower._log

    def look(self: Follower, *arguments: Any) -> None:
        logging(self, *arguments)
        seen.append(Run(tmp_path / "run").read(TRACKING)["tensorboard"]["step"])

    def probe(context: TrainContext, fit: Callable[[TrainContext], None] = train.probe) -> None:
        fit(context)
        context.saver.wait()  # for the thread that logs: the first steps may be faster

    monkeypatch.setattr(Follower, "_log", look)
    monkeypatch.setattr(train, "probe", probe)
    asked = iter([None] * 14 + [15] * 99)
    with pytest.raises(Stopped, match="training epoch"):
        train.train(job, lambda: next(asked))
    train.train(replace(job, resume=True, log=()), never)
    assert seen == sorted(seen)
    assert set(seen) > {0, 12}
    evaluation.evaluate(evaluation.Job(run=tmp_path / "run", crops=1, resources=ONE_THREAD))
    run, found = Run(tmp_path / "run"), from_tensorboard(Run(tmp_path / "run"))
    assert found["valid/loss"][0] == (0, pytest.approx(run.read(PROBE)["valid_loss"]))
    assert [step for step, _ in found["valid/loss"]] == [0, 6, 12]
    assert [step for step, _ in found["train/loss"]] == list(range(1, 13))
    assert found["test/accuracy"] == [(12, pytest.approx(run.read(EVALUATION)["accuracy"]))]
    kept = [step for step, _ in found["kept/accuracy"]]
    assert sorted({*kept}) == kept, "no step twice"
    assert "--log" not in capsys.readouterr().err


def test_a_recipe_without_epochs_is_followed_too(colour_pack: Pack, tmp_path: Path) -> None:
    recipe = replace(TINY, linear_probe=True, phases=(), averaging=Averaging(steps=0))
    job = replace(tiny_job(colour_pack.path, tmp_path / "run", recipe=recipe), log=("tensorboard",))
    train.train(job, never)
    found = from_tensorboard(Run(tmp_path / "run"))
    probe = Run(tmp_path / "run").read(PROBE)
    assert found["valid/accuracy"] == [(0, pytest.approx(probe["accuracy"]))]
    assert found["kept/accuracy"] == [(0, pytest.approx(probe["accuracy"]))]


def test_a_trial_logs_nothing_and_only_rank_0_does(
    colour_pack: Pack, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(begin, "draw_pictures", lambda *_: None)
    job = replace(tiny_job(colour_pack.path, tmp_path / "run"), log=("tensorboard",))
    train.train(replace(job, dry_run=True), never)
    assert not (tmp_path / "run").exists()
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "is_main", lambda: False)
        with begin.opened(job, never) as (context, _):
            context.follow()
    assert not list((tmp_path / "run").glob("*tfevents*"))


def test_a_run_under_way_is_followed_by_its_training_alone(full: Path, tmp_path: Path) -> None:
    run, said = cut(full, tmp_path / "run", 1), list[str]()
    log(run, "tensorboard")
    cut(full, tmp_path / "run", 2)
    with run_lock(run):
        follow(run.folder, said.append)
    assert "is in use by another training" in said[0]
    assert run.read(TRACKING)["tensorboard"]["step"] == 6
    follow(run.folder, said.append)
    assert (len(said), run.read(TRACKING)["tensorboard"]["step"]) == (1, 12)


def test_numbers_that_are_none_are_left_out(full: Path, tmp_path: Path) -> None:
    run = cut(full, tmp_path / "run", 2)
    rows = run.rows(METRICS)
    run.write_rows(METRICS, [rows[0] | {"valid_loss": float("inf"), "accuracy": None}, rows[1]])
    assert "valid/loss" not in scalars(run)[1.0]
    assert scalars(run)[1.0]["train/epoch_loss"] == rows[0]["train_loss"]
    assert scalars(run)[2.0]["valid/loss"] == rows[1]["valid_loss"]


@pytest.mark.parametrize(("images", "batch"), [(42, 7), (5_000, 32), (31_500, 32), (10, 4), (3, 8)])
def test_a_step_is_the_optimizers_whatever_the_batches_are(images: int, batch: int) -> None:
    """The batches of an epoch differ by one image; the first of them are the smaller ones."""
    ends = [stop for _, stop in even_bounds(images, batch)]
    steps = [step_at(2 + stop / images, images, len(ends)) for stop in ends]
    assert steps == list(range(2 * len(ends) + 1, 3 * len(ends) + 1))


@EACH
@pytest.mark.parametrize("batch", [14, 3])
def test_steps_go_on_where_a_forced_batch_size_makes_others(
    name: str, batch: int, full: Path, tmp_path: Path
) -> None:
    """An epoch of six steps, then one of three or of fourteen."""
    pytest.importorskip(name)
    out = tmp_path / f"forced-{name}-{batch}"
    log(cut(full, out, 1), name)
    run, steps = cut(full, out, 2), -(-42 // batch)
    run.write(RECIPE, run.read(RECIPE) | {"batch_size": batch})
    ends = [stop for _, stop in even_bounds(42, batch)]
    row = run.rows(STEPS)[-1]
    run.write_steps(1, [row | {"images": stop} for stop in ends])
    log(run, name)
    found = READ[name](run)
    assert [step for step, _ in found["train/loss"]] == list(range(1, 7 + steps))
    assert [step for step, _ in found["valid/loss"]] == [6, 6 + steps]


def test_epochs_of_another_pack_and_steps_of_another_size_keep_their_order(
    full: Path, tmp_path: Path
) -> None:
    """A tracker that is added late gets all of it; the first epoch was one of 42 images in six steps."""
    run = cut(full, tmp_path / "run", 1, 28)
    run.write(PACK, run.read(PACK) | {"splits": {"train": 35}})
    run.write(RECIPE, run.read(RECIPE) | {"batch_size": 14})
    found = scalars(run)
    assert list(found) == pytest.approx(
        [*(part / 6 for part in range(1, 7)), *(1 + part / 5 for part in (1, 2, 3, 4))]
    )
    rows = numbered({"epoch": -1, "step": -1}, found, (35, 3))
    assert len(rows) == len(found) and list(rows) == sorted(rows)


def test_rows_that_are_newer_than_their_epochs_wait(full: Path, tmp_path: Path) -> None:
    """The epochs are read first, and the training may write both files between."""
    run = cut(full, tmp_path / "run", 1, 28)
    rows = run.rows(METRICS)
    run.write_rows(METRICS, [])
    log(run, "tensorboard")
    assert run.read(TRACKING)["tensorboard"]["step"] == 5
    run.write_rows(METRICS, rows)
    log(run, "tensorboard")
    assert [step for step, _ in from_tensorboard(run)["valid/loss"]] == [6]
    log(cut(full, tmp_path / "run", 2), "tensorboard")
    check("tensorboard", run, full)


def test_trackers_get_no_step_ahead_of_the_checkpoint(
    colour_pack: Pack, tmp_path: Path, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(begin, "draw_pictures", lambda *_: None)
    run, called = Run(tmp_path / "run"), list[bool]()

    def look(_: Follower) -> None:
        row, progress = run.rows(STEPS)[-1], checkpoint.load(run.folder / LAST)["progress"]
        called.append((row["epoch"], row["images"]) <= (progress["epoch"], progress["images"]))

    monkeypatch.setattr(Follower, "__call__", look)
    recipe = replace(TINY, averaging=Averaging(steps=0))
    job = replace(tiny_job(colour_pack.path, run.folder, recipe=recipe), checkpoints=Checkpoints(steps=2))
    train.train(replace(job, log=("tensorboard",)), never)
    assert len(called) > 4 and all(called)


@EACH
def test_a_run_that_is_stopped_is_closed(name: str, full: Path, tmp_path: Path) -> None:
    pytest.importorskip(name)
    run, said = cut(full, tmp_path / f"stopped-{name}", 1), list[str]()
    with pytest.raises(Stopped), Follower(run, said.append, [name]):
        raise Stopped("before epoch 1")
    assert said == []
    if name == "wandb":
        assert [each.exit.exit_code for each in wandb_records(run) if each.HasField("exit")] == [1]


def test_the_summary_has_single_crops_and_all_together(full: Path, tmp_path: Path) -> None:
    run = cut(full, tmp_path / "summed", 2)
    names = ("accuracy", "balanced_accuracy", "macro_f1", "interval_low", "interval_high")
    found = {"n": 4, "interval": [0.1, 0.2], "ensemble_interval": [0.3, 0.4]}
    for place, key in enumerate(("accuracy", "balanced_accuracy", "macro_f1")):
        found |= {key: place, f"ensemble_{key}": 10 + place}
    run.write(EVALUATION, run.read(EVALUATION) | found)
    test = summary(run)["test"]
    assert [test[f"test/{name}"] for name in names] == [0, 1, 2, 0.1, 0.2]
    assert [test[f"test/ensemble_{name}"] for name in names] == [10, 11, 12, 0.3, 0.4]


def test_a_run_that_was_stopped_stays_so_when_it_is_evaluated(full: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    run, said = cut(full, tmp_path / "run", 1), list[str]()
    with pytest.raises(Stopped), Follower(run, said.append, ["mlflow"]):
        raise Stopped("before epoch 1")

    def status() -> str:
        return str(mlflow_client(run).get_run(run.read(TRACKING)["mlflow"]["id"]).info.status)

    follow(run.folder, said.append)
    assert (status(), said) == ("KILLED", [])
    log(cut(full, run.folder, 2), "mlflow")
    follow(run.folder, said.append)
    assert status() == "FINISHED"


def test_what_another_process_writes_there_is_left_alone(full: Path, tmp_path: Path) -> None:
    """Two evaluations at once: eval takes no lock, but following does."""
    run, said = cut(full, tmp_path / "run", 1), list[str]()
    log(run, "tensorboard")
    with replacing(run.folder / EVALUATION) as half:
        half.write_text("{")
        follow(run.folder, said.append)
        assert (half.exists(), said) == (True, [])


def test_a_run_in_the_current_folder_has_its_name(full: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    run = cut(full, tmp_path / "run", 1)
    monkeypatch.chdir(run.folder)
    log(Run(Path()), "tensorboard")
    assert run.read(TRACKING)["tensorboard"]["id"] == "run"
