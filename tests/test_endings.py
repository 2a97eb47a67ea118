"""A signal, by Ctrl-C, a system or a closed terminal: no process is left, and no temporary file."""

from __future__ import annotations

import itertools
import os
import pkgutil
import pty
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import psutil
import pytest
from runs import SMALL, Answer, Here, Patch

from greyhound.cache.cli import ENDINGS
from greyhound.cache.store import Pack
from greyhound.model.run import LOCK, METRICS

ROOT = Path(__file__).parents[1]
FEATURES = f"--out labels.json {' '.join(SMALL)}"


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: Patch) -> Path:
    """Where temporary files of no name of ours go."""
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """Of a program that was asked to end."""
    before = psutil.Process().children(recursive=True)
    yield
    assert not [child for child in psutil.Process().children(recursive=True) if child not in before]
    hidden = [file.name for file in tmp_path.rglob(".*") if file.name != LOCK]
    assert hidden == []
    if (tmp_path / "scratch").exists():
        assert list((tmp_path / "scratch").iterdir()) == []


Ended: TypeAlias = Callable[..., Answer]


@pytest.fixture
def ended(here: Here, monkeypatch: Patch) -> Ended:
    """Starts a program; when it calls the function at `place` for the time `after`, from 1, the signal comes first."""

    def start(number: int, place: str, *words: str, after: int = 1) -> Answer:
        asked, called = pkgutil.resolve_name(f"greyhound.{place}"), itertools.count(1)

        def ask(*values: Any, **named: Any) -> Any:
            if next(called) == after:
                signal.raise_signal(number)
            return asked(*values, **named)

        with monkeypatch.context() as patched:
            patched.setattr(f"greyhound.{place}", ask)
            return here(*words)

    return start


@pytest.mark.parametrize("number", ENDINGS)
def test_packing_that_is_ended(images: Path, tmp_path: Path, ended: Ended, number: int) -> None:
    (tmp_path / "p.arrow").write_bytes(b"ARROW1, older")
    words = ("cache/__main__.py", "pack", str(images), "--out", "p.arrow")
    assert ended(number, "cache.pack._read", *words, after=3) == (128 + number, "", "")
    assert (tmp_path / "p.arrow").read_bytes() == b"ARROW1, older"


@pytest.mark.parametrize(
    ("number", "place", "doing"),
    [
        (signal.SIGTERM, "linear_probe.solve", "validating the linear probe"),
        (signal.SIGHUP, "step.mean_loss", "training epoch 0"),
        (signal.SIGINT, "step.check_averaging", "validating after averaging"),
        (signal.SIGTERM, "averaging.average", "averaging"),
    ],
)
def test_a_training_that_is_ended_anywhere_goes_on(
    colour_pack: Pack, tmp_path: Path, here: Here, ended: Ended, number: int, place: str, doing: str
) -> None:
    words = ["train.py", "fine", "--pack", str(colour_pack.path), "--out", "run", *SMALL]
    words += ["--batch-size", "8", "--averaging.steps", "1"]
    answer = ended(number, f"model.{place}", *words)
    assert answer.code == 128 + number, answer.err
    assert answer.err == f"stopped while {doing}; the same command with --resume goes on\n"
    assert here(*words, "--resume").code == 0
    names = {file.name for file in (tmp_path / "run").iterdir()}
    assert {"last.ckpt", "swa.ckpt", METRICS, "report.html"} <= names


@pytest.mark.parametrize(
    ("number", "program", "place"),
    [
        (signal.SIGINT, "eval.py --run run --crops 2 --device cpu", "model.precision.forward"),
        (signal.SIGTERM, "eval.py --run run --images images --device cpu", "model.precision.forward"),
        (signal.SIGTERM, "predict.py --run run images --out p.csv --device cpu", "model.precision.forward"),
        (signal.SIGINT, "predict.py --run run images --out p.parquet --device cpu", "trained.write_all"),
        (signal.SIGHUP, "predict.py --run run images --out p.csv --device cpu", "trained.scan"),
        (signal.SIGHUP, "eval.py --run run --images images --device cpu", "cache.pack._read"),
        (signal.SIGTERM, "explain.py --run run --device cpu", "model.saliency.saliency"),
        (signal.SIGINT, "explain.py --run run --device cpu", "model.report.figures._show_tiles"),
        (signal.SIGTERM, f"review.py --images images {FEATURES}", "model.linear_probe.features"),
    ],
)
def test_a_look_that_is_ended_leaves_the_run_as_it_was(
    run: Path, images: Path, scratch: Path, ended: Ended, number: int, program: str, place: str
) -> None:
    before = {file.name: file.stat().st_mtime_ns for file in run.iterdir()}
    assert ended(number, place, *program.split()) == (128 + number, "", "")
    after = {file.name: file.stat().st_mtime_ns for file in run.iterdir() if file.name in before}
    assert after == before


ON_A_TERMINAL = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from greyhound.cache.cli import Stopped, progress_bar, run, stop_signals

def main():
    with stop_signals() as stop:
        try:
            with progress_bar("training") as update:
                Path("ready").touch()
                for step in range(3000):
                    time.sleep(0.01)
                    update(step, 3000)
                    if stop():
                        raise Stopped
        except Stopped:
            print("stopped", flush=True)
            Path("checkpoint").write_text("saved")
            return 128 + stop()

run(main)
"""


def started(command: list[str], tmp_path: Path, **streams: int) -> subprocess.Popen[bytes]:
    """A small program with a training's bar and signals, which stands for one, past its start."""
    command = [*command, sys.executable, "-c", ON_A_TERMINAL.format(root=str(ROOT))]
    process = subprocess.Popen(command, cwd=tmp_path, **streams)  # type: ignore[call-overload]
    deadline = time.monotonic() + 30
    while not (tmp_path / "ready").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    return process  # type: ignore[no-any-return]


def test_a_closed_terminal_stops_a_program_with_a_training_s_bar_which_still_writes(tmp_path: Path) -> None:
    """Writing to the terminal then fails."""
    ours, theirs = pty.openpty()
    process = started(["setsid", "--ctty"], tmp_path, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.close(ours)
    assert process.wait(timeout=30) == 128 + signal.SIGHUP
    assert (tmp_path / "checkpoint").read_text() == "saved"


def test_nohup_is_heeded(tmp_path: Path) -> None:
    shell = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh"]
    process = started(shell, tmp_path, stdout=subprocess.DEVNULL)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", ENDINGS[1:])
def test_a_program_that_is_leaving_is_not_ended(number: signal.Signals) -> None:
    """Torchrun ends those that are left when one of them has failed, and they may just be saying why."""
    code = (
        "import atexit, os; from cache.cli import run; "
        f"atexit.register(os.kill, os.getpid(), {int(number)}); run(lambda: 3)"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (answer.returncode, answer.stderr) == (3, "")
