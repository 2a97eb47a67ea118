"""model/claim.py: what is swept, and that nobody else's file is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from runs import never, tiny_job

from greyhound import train
from greyhound.cache.store import Pack
from greyhound.model.run import DAMAGED, LOCK, Run, RunError, clear_results, is_ours

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
    Run(tmp_path).write(DAMAGED, {})
    assert is_ours(DAMAGED)
    clear_results(Run(tmp_path))
    assert not list(tmp_path.iterdir())
