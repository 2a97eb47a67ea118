"""model/run.py: the run folder's files, one line for what is wrong with them."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import Patch

from greyhound.model import checkpoint
from greyhound.model.report import report
from greyhound.model.run import METRICS, Run, RunError, versions


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


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("recipe.json", None, r"has no recipe\.json; expected a run folder, as made by: greyhound train"),
        ("recipe.json", b'{"a": \xff', r"recipe\.json cannot be read"),
        (
            METRICS,
            b'{"epoch": 0}\n{"epo',
            r"metrics\.jsonl cannot be read .*; expected one JSON object a line",
        ),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=says) as refusal:
        Run(tmp_path).rows(METRICS) if name == METRICS else Run(tmp_path).read(name)
    assert "\n" not in str(refusal.value)


def test_of_a_folder_of_runs_one_is_to_be_named(tmp_path: Path) -> None:
    for name in ("fold-1", "fold-0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.json").write_text("{}")
    with pytest.raises(RunError, match=r"is a folder of runs, \S+fold-0 and 1 more; name one of them$"):
        Run(tmp_path).read("recipe.json")
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(RunError, match=r"has no pack\.json; expected a run folder"):
        Run(tmp_path).read("pack.json")


def test_a_run_of_another_version_is_refused_by_what_it_lacks(run: Path) -> None:
    content = Run(run).read("pack.json")
    for name in ("beside", "background"):
        Run(run).write("pack.json", {key: value for key, value in content.items() if key != name})
        with pytest.raises(RunError, match=rf"pack\.json: no {name}; train again into another folder"):
            Run(run).read("pack.json")


def test_a_pipe_among_its_files_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("recipe.json", METRICS):
        os.mkfifo(tmp_path / name)
    with pytest.raises(RunError, match=r"recipe\.json cannot be read \(no regular file\)"):
        Run(tmp_path).read("recipe.json")
    with pytest.raises(RunError, match=r"metrics\.jsonl cannot be read \(no regular file\)"):
        Run(tmp_path).rows(METRICS)
    with pytest.raises(RunError, match=r"recipe\.json cannot be read \(no regular file\)"):
        report.build(tmp_path)


def test_a_run_without_checkpoints_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has no checkpoint swa or best or last; wait for its training"):
        Run(tmp_path).load("auto")


def test_auto_takes_what_validated_best_of_what_is_there(tmp_path: Path) -> None:
    steps = [
        ("last", 0.0, "last"),
        ("best", 0.9, "best"),
        ("swa", 0.8, "best"),
        ("swa", 0.9, "swa"),
        ("best", 0.8, "swa"),
    ]
    for name, score, taken in steps:  # a tie goes to the average
        checkpoint.save(tmp_path / f"{name}.ckpt", {"network": {}, "score": score})
        assert Run(tmp_path).load("auto")[0] == taken


def test_a_file_that_may_not_be_read_is_no_reason_to_train_again(tmp_path: Path, ordinary: None) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    (tmp_path / "recipe.json").chmod(0)
    with pytest.raises(
        RunError, match=r"recipe\.json cannot be read \(Permission denied\); make it readable$"
    ):
        Run(tmp_path).read("recipe.json")


def test_auto_needs_no_last_checkpoint_where_another_is(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "best.ckpt", {"network": {}, "score": 0.5})
    (tmp_path / "last.ckpt").write_bytes(b"corrupt")
    assert Run(tmp_path).load("auto")[0] == "best"
    with pytest.raises(checkpoint.CorruptCheckpointError):
        Run(tmp_path).load("last")


def test_the_network_comes_back_in_evaluation_mode(tiny_run: Path) -> None:
    origin, network = Run(tiny_run).network("last", torch.device("cpu"))
    stored = checkpoint.load(tiny_run / "last.ckpt")["network"]
    assert origin == {
        "asked": "last",
        "checkpoint": "last",
        "after": "the last step",
        "weights": checkpoint.weights_id(tiny_run / "last.ckpt"),
    }
    assert not network.training
    assert all(torch.equal(value, stored[key]) for key, value in network.state_dict().items())


def test_versions_name_what_a_result_depends_on() -> None:
    found = versions(machine="4 cores", engine="threads")
    assert {"python", "torch", "timm", "numpy", "machine", "gpu", "date", "engine"} <= found.keys()
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert found["machine"] == "4 cores"


def test_versions_name_the_build_of_dali_that_is_there(monkeypatch: Patch) -> None:
    real, build = metadata.version, SimpleNamespace(name="nvidia-dali-cuda130")
    monkeypatch.setattr(metadata, "distributions", lambda: [build])
    monkeypatch.setattr(metadata, "version", lambda name: "2.3.0" if name == build.name else real(name))
    found = versions()
    assert {name: found[name] for name in found if "dali" in name} == {build.name: "2.3.0"}


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written \(File exists\)"):
        Run(tmp_path / "file").write("x.json", {})
