"""Where the programs write: a read-only folder, a full disk. One line, and what was there stays."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from limits import files_up_to
from runs import SMALL, Here, Patch, never, tiny_job

from greyhound import train
from greyhound.cache.files import intended
from greyhound.cache.store import Pack
from greyhound.model.run import RunError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's capabilities and limits")

FULL_DISK = "File too large"
"""What RLIMIT_FSIZE, which stands for it, makes the system say."""


@contextmanager
def read_only(place: Path) -> Iterator[None]:
    """Nothing can be made, renamed or removed in `place` for as long as the block runs."""
    place.chmod(0o555)
    try:
        with pytest.raises(PermissionError):
            (place / "probe").touch()
        yield
    finally:
        place.chmod(0o755)


def contents(place: Path) -> dict[str, bytes]:
    return {str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()}


def test_a_folder_that_may_not_be_entered_is_one_line(ordinary: None, here: Here, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0)
    for line in (
        ("cache/__main__.py", "info", "home/dogs.arrow"),
        ("cache/__main__.py", "pack", "home/dogs", "--out", "p.arrow"),
        ("cache/__main__.py", "demo", "home/dogs"),
        ("train.py", "fast", "--pack", "home/dogs.arrow", "--out", "run"),
        ("train.py", "fast", "--pack", "p.arrow", "--out", "home/dogs"),
        ("train.py", "--resume", "--out", "home/dogs"),
        ("predict.py", "--run", "run", "home/dogs/1.jpg"),
    ):
        answer = here(*line)
        assert (answer.code, answer.err.count("\n")) == (2, 1), answer.err
        assert "home/dogs" in answer.err and "ermission denied" in answer.err


def test_an_image_that_may_not_be_read_is_left_out_by_name(
    ordinary: None, run: Path, images: Path, here: Here, tmp_path: Path
) -> None:
    (images / "red" / "0.jpg").chmod(0)
    answer = here("cache/__main__.py", "pack", "images", "--out", "p.arrow", "--val", "0", "--test", "0")
    assert (answer.code, answer.err) == (0, "")
    assert "left out: 1 (1 unreadable)" in answer.out
    assert "red/0.jpg: unreadable, Permission denied" in answer.out
    assert len(Pack(tmp_path / "p.arrow")) == 5
    answer = here("cache/__main__.py", "survey", "images", "--out", "found")
    assert (answer.code, answer.err) == (0, "")
    assert "red/0.jpg" in (tmp_path / "found" / "excluded.csv").read_text()
    answer = here("predict.py", "--run", "run", "images/red", "--device", "cpu")
    assert answer.code == 0
    assert answer.out.splitlines()[1] == "images/red/0.jpg,,,unreadable (Permission denied)"
    assert len(answer.out.splitlines()) == 3
    answer = here("eval.py", "--run", "run", "--images", "images", "--device", "cpu")
    assert answer.code == 0
    assert answer.err.splitlines()[0] == "left out: red/0.jpg: unreadable (Permission denied)"


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("cache/__main__.py pack images --out run/p.arrow", "run/p.arrow cannot be written (NO)"),
        ("cache/__main__.py survey images --out run", "--out run is no folder that can be written to"),
        ("cache/__main__.py demo run/demo", "run/demo cannot be made (NO)"),
        ("train.py fast --pack PACK --out run/new SMALL", "run/new cannot be made or written (NO)"),
        ("eval.py --run run --crops 1 --device cpu", "the result goes into run, which may not be written to; make it"),
        ("eval.py --run run --images images --device cpu", "the result goes into run, which may not be written to"),
        ("predict.py --run run images --out run/p.csv --device cpu", "run/p.csv cannot be written (NO)"),
        ("explain.py --run run --device cpu", "the result goes into run, which may not be written to"),
        ("review.py --run run --out run/labels.json --device cpu", "run/labels.json cannot be written (NO)"),
    ],
)  # fmt: skip
def test_a_folder_that_may_not_be_written_to_is_one_line(
    ordinary: None, run: Path, images: Path, colour_pack: Pack, here: Here, program: str, says: str
) -> None:
    words = program.replace("PACK", str(colour_pack.path)).replace("SMALL", " ".join(SMALL)).split()
    before = contents(run)
    with read_only(run):
        answer = here(*words)
    assert says.replace("NO", "Permission denied") in answer.error
    assert contents(run) == before


def test_a_run_that_may_not_be_written_is_not_resumed(ordinary: None, run: Path, colour_pack: Pack) -> None:
    before = contents(run)
    with read_only(run), pytest.raises(RunError, match=r"run.* cannot be .*\(Permission denied\)"):
        train.train(tiny_job(colour_pack.path, run, resume=True), never)
    assert contents(run) == before


@pytest.mark.parametrize(
    ("program", "names"),
    [
        ("eval.py --run run --crops 2 --device cpu", ("confusion.png", "report.html")),
        ("explain.py --run run --device cpu", ("saliency.png", "report.html")),
        ("cache/__main__.py survey images --out run", ("survey.html",)),
    ],
)
def test_a_full_disk_costs_the_file_that_was_written(
    run: Path, images: Path, here: Here, program: str, names: tuple[str, ...]
) -> None:
    """Of the file, what was there before is left."""
    assert here(*program.split()).code == 0
    sizes = {name: (run / name).stat().st_size for name in names}
    assert sorted(sizes, key=lambda name: sizes[name]) == list(names)
    for name in names:
        (run / name).write_bytes(b"old")
        before = set(contents(run))
        with files_up_to(sizes[name] - 1):
            answer = here(*program.split())
        said = answer.error
        assert said.startswith(f"run/{name} cannot be written") and FULL_DISK in said
        assert (run / name).read_bytes() == b"old"
        assert set(contents(run)) == before, "no half file under any name"


@contextmanager
def no_room_for(name: str) -> Iterator[None]:
    """The disk is full when it comes to the text of this file."""
    writing = Path.write_text

    def write(self: Path, data: str, encoding: str) -> int:
        if intended(self) == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return writing(self, data, encoding)

    with mock.patch.object(Path, "write_text", write):
        yield


@pytest.mark.parametrize(
    ("program", "names"),
    [
        ("eval.py --run run --crops 2 --device cpu", ("predictions.csv", "mistakes.json", "eval.json")),
        ("explain.py --run run --device cpu", ("saliency.json",)),
    ],
)
def test_a_full_disk_costs_a_file_that_is_smaller_than_one_before(
    run: Path, here: Here, program: str, names: tuple[str, ...]
) -> None:
    """No limit to a file's size would meet these: the picture is written before them."""
    assert here(*program.split()).code == 0
    for name in names:
        (run / name).write_bytes(b"old")
        before = set(contents(run))
        with no_room_for(name):
            error = here(*program.split()).error
        assert error == f"run/{name} cannot be written (No space left on device); make room there\n"
        assert (run / name).read_bytes() == b"old"
        assert set(contents(run)) == before, "no half file under any name"


def test_a_report_that_finds_no_room_ends_no_training(
    colour_pack: Pack, here: Here, tmp_path: Path, monkeypatch: Patch
) -> None:
    """The report is a by-product: the run is whole without it, and at the end the lack is said."""
    writing = Path.write_bytes

    def write(self: Path, data: bytes) -> int:
        if "report" in self.name:
            raise OSError(28, os.strerror(28))
        return writing(self, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    arguments = ["--pack", str(colour_pack.path), "--out", "run", "--batch-size", "8", *SMALL]
    answer = here("train.py", "fine", *arguments, "--no-linear-probe")
    assert answer.code == 2
    *notes, error = answer.err.splitlines()
    said = "run/report.html cannot be written (No space left on device); make room there"
    assert notes == [f"note: no report yet: {said}"]
    assert error == f"error: {said}"
    assert {"last.ckpt", "best.ckpt", "metrics.jsonl"} <= set(contents(tmp_path / "run"))
