"""The lock of a run folder: what counts as ours, what is swept, and what keeps a training out."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures import folder
from runs import never, tiny_job

from greyhound import train
from greyhound.cache.store import Pack
from greyhound.model.run import CORRUPT, LOCK, SWEEP, Run, RunError
from greyhound.model.run_lock import clear_results, is_ours, refuse_other_content, run_lock

THEIRS = (".notes.2024.txt", ".photo.17.png", "letter.doc")


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("names", [THEIRS[:1], THEIRS, (*THEIRS, LOCK)])
def test_a_folder_that_is_no_run_is_left_as_it_is(
    colour_pack: Pack, tmp_path: Path, resume: bool, names: tuple[str, ...]
) -> None:
    """A hidden file with a number is no start that was ended."""
    out = folder(tmp_path / "folder", dict.fromkeys(names, b"mine"))
    with pytest.raises(RunError, match=r"has no recipe\.json" if resume else "holds other files and no run"):
        train.train(tiny_job(colour_pack.path, out, resume=resume), never)
    assert {path.name for path in out.iterdir()} == set(names)
    assert (out / ".notes.2024.txt").read_bytes() == b"mine"


def test_every_file_of_a_run_is_ours(tiny_run: Path) -> None:
    strange = {path.name for path in tiny_run.iterdir() if not is_ours(path.name)}
    assert strange == {LOCK}


def test_what_a_start_said_of_damaged_images_is_no_part_of_the_next(tmp_path: Path) -> None:
    Run(tmp_path).write(CORRUPT, {})
    assert is_ours(CORRUPT)
    clear_results(Run(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["sweep", "folds"])
@pytest.mark.parametrize("suffix", ["json", "html"])
def test_what_a_killed_sweep_was_writing_is_ours_and_goes(tmp_path: Path, name: str, suffix: str) -> None:
    (tmp_path / f".{name}.17.{suffix}").touch()
    refuse_other_content(tmp_path)
    Run(tmp_path).write(SWEEP, {})
    with run_lock(Run(tmp_path)):
        assert {path.name for path in tmp_path.iterdir()} == {SWEEP, LOCK}
