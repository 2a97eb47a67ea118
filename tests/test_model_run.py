"""model/run.py: the run folder's files, one line for what is wrong with them, and whose they are."""

from __future__ import annotations

import os
import shutil
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import never, tiny_job

from greyhound import train
from greyhound.cache.store import Pack
from greyhound.model import checkpoint
from greyhound.model.report import report
from greyhound.model.run import CORRUPT, LOCK, METRICS, Run, RunError, clear_results, is_ours, versions


def test_json_comes_back_as_it_went(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None], "b": {"c": "é\n<"}}
    Run(tmp_path).write("x.json", content)
    assert Run(tmp_path).read("x.json") == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


def test_metrics_come_back_in_their_order(tmp_path: Path) -> None:
    assert Run(tmp_path).rows(METRICS) == []
    rows = [{"epoch": 0, "accuracy": 0.5}, {"epoch": 1, "accuracy": 0.25}]
    Run(tmp_path).write_rows(METRICS, rows)
    assert Run(tmp_path).rows(METRICS) == rows
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2


def test_a_folder_that_is_no_run_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"has no recipe\.json; expected a run folder, as made by: greyhound train"
    ):
        Run(tmp_path).read("recipe.json")


def test_damaged_json_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_bytes(b'{"a": \xff')
    with pytest.raises(RunError, match=r"recipe\.json cannot be read") as refusal:
        Run(tmp_path).read("recipe.json")
    assert "\n" not in str(refusal.value)


def test_a_pipe_among_its_files_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("recipe.json", METRICS):
        os.mkfifo(tmp_path / name)
    with pytest.raises(RunError, match=r"recipe\.json cannot be read \(no regular file\)"):
        Run(tmp_path).read("recipe.json")
    with pytest.raises(RunError, match=r"metrics\.jsonl cannot be read \(no regular file\)"):
        Run(tmp_path).rows(METRICS)
    with pytest.raises(report.ReportError, match=r"recipe\.json cannot be read \(no regular file\)"):
        report.build(tmp_path)


def test_a_run_without_checkpoints_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has no checkpoint swa or best or last; train first"):
        Run(tmp_path).load("auto")


def test_auto_falls_back_to_what_is_there(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "last.ckpt", {"network": {}})
    assert Run(tmp_path).load("auto")[0] == "last"
    checkpoint.save(tmp_path / "best.ckpt", {"network": {}, "score": 0.5})
    assert Run(tmp_path).load("auto")[0] == "best"


def test_the_network_comes_back_in_evaluation_mode(tiny_run: Path) -> None:
    origin, network = Run(tiny_run).network("last", torch.device("cpu"))
    stored = checkpoint.load(tiny_run / "last.ckpt")["network"]
    assert origin == {"checkpoint": "last", "after": "the last step"}
    assert not network.training
    assert all(torch.equal(value, stored[key]) for key, value in network.state_dict().items())


def test_versions_name_what_a_result_depends_on() -> None:
    found = versions(machine="4 cores", engine="threads")
    assert {"python", "torch", "timm", "numpy", "machine", "gpu", "date", "engine"} <= found.keys()
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert found["machine"] == "4 cores"


def test_versions_name_the_build_of_dali_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    real, build = metadata.version, SimpleNamespace(name="nvidia-dali-cuda130")
    monkeypatch.setattr(metadata, "distributions", lambda: [build])
    monkeypatch.setattr(metadata, "version", lambda name: "2.3.0" if name == build.name else real(name))
    found = versions()
    assert {name: found[name] for name in found if "dali" in name} == {build.name: "2.3.0"}


def test_damaged_metrics_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0}\n{"epo')
    with pytest.raises(RunError, match=r"metrics\.jsonl cannot be read .*; expected one JSON object a line"):
        Run(tmp_path).rows(METRICS)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written \(File exists\)"):
        Run(tmp_path / "file").write("x.json", {})


# --- what is swept, and that nobody else's file is --------------------------------------------------------


THEIRS = {".notes.2024.txt": "mine", ".photo.17.png": "mine", "letter.doc": "x"}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("locked", [False, True])
def test_a_folder_that_is_no_run_is_left_as_it_is(
    colour_pack: Pack, tmp_path: Path, resume: bool, locked: bool
) -> None:
    out = tmp_path / "folder"
    out.mkdir()
    files = THEIRS | ({LOCK: ""} if locked else {})
    for name, text in files.items():
        (out / name).write_text(text)
    with pytest.raises(RunError, match=r"holds other files and no run|has no recipe\.json"):
        train.train(tiny_job(colour_pack.path, out, resume=resume), never)
    assert {path.name for path in out.iterdir()} == set(files)


def test_a_hidden_file_with_a_number_is_no_start_that_was_ended(colour_pack: Pack, tmp_path: Path) -> None:
    out = tmp_path / "folder"
    out.mkdir()
    (out / ".notes.2024.txt").write_text("mine")
    with pytest.raises(RunError, match="holds other files and no run"):
        train.train(tiny_job(colour_pack.path, out), never)
    assert (out / ".notes.2024.txt").read_text() == "mine"


def test_in_a_run_only_what_is_ours_is_swept(tiny_run: Path, colour_pack: Pack, tmp_path: Path) -> None:
    out = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    ours = {".last.4711.ckpt", ".last.1.4711.ckpt", ".metrics.7.jsonl", ".eval-val.7.json", ".report.1.html"}
    for name in ours | THEIRS.keys():
        (out / name).write_text("x")
    train.train(tiny_job(colour_pack.path, out, resume=True), never)
    left = {path.name for path in out.iterdir()}
    assert left >= THEIRS.keys()
    assert not left & ours


def test_every_file_of_a_run_is_ours(tiny_run: Path) -> None:
    strange = {path.name for path in tiny_run.iterdir() if not is_ours(path.name)}
    assert strange == {LOCK}


def test_what_a_start_said_of_damaged_images_is_no_part_of_the_next(tmp_path: Path) -> None:
    Run(tmp_path).write(CORRUPT, {})
    assert is_ours(CORRUPT)
    clear_results(Run(tmp_path))
    assert not list(tmp_path.iterdir())
