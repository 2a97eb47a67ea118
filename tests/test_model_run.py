"""model/run.py: the run folder's files, read and written whole, and one line for what is wrong with them."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from greyhound.model import checkpoint
from greyhound.model.report import report
from greyhound.model.run import Run, RunError, versions
from greyhound.model.shapes import METRICS


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
        RunError, match=r"has no recipe\.json; expected a run folder, as made by: python train\.py"
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
