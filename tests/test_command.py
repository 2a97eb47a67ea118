"""__main__.py: the one command, and that its help and a slip are answered before anything slow is imported."""

from __future__ import annotations

import itertools
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import Capture, Patch

from greyhound import __main__ as command
from greyhound.cache import cli

# A recipe holds an Augment, beside which its arithmetic lies: train alone needs numpy, the first of these.
SLOW = (
    *("numpy", "torch", "timm", "nvidia", "torchvision", "PIL", "pyarrow"),
    *("pydantic", "rich", "matplotlib", "cv2", "multiprocessing"),
)
WATCHED = """
import contextlib, io, json, runpy, sys
for words in {lines!r}:
    sys.argv = ["greyhound", *words.split()]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            runpy.run_module("greyhound", run_name="__main__", alter_sys=True)
        except SystemExit as leaving:
            code = leaving.code or 0
    imported = [name for name in {slow!r} if name in sys.modules]
    print(json.dumps([code, out.getvalue(), err.getvalue(), imported]))
"""


def answer(monkeypatch: Patch, capsys: Capture, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["greyhound", *words])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as leaving:
        command.main()
    return int(str(leaving.value.code)), *capsys.readouterr()


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_has_a_line_for_each_command(words: list[str], monkeypatch: Patch, capsys: Capture) -> None:
    code, out, err = answer(monkeypatch, capsys, *words)
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines() if line.startswith("  ")] == list(command.PROGRAMS)
    assert max(map(len, out.splitlines())) <= 100


def test_the_version(monkeypatch: Patch, capsys: Capture) -> None:
    assert answer(monkeypatch, capsys, "--version") == (0, "greyhound 0.1.0\n", "")


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("trian", "error: there is no command 'trian'; did you mean train?\n"),
        ("Pack", "error: there is no command 'Pack'; did you mean pack?\n"),
        ("zzz", f"error: there is no command 'zzz'; expected one of {', '.join(command.PROGRAMS)}\n"),
        ("", f"error: there is no command ''; expected one of {', '.join(command.PROGRAMS)}\n"),
        ("--out", f"error: there is no command '--out'; expected one of {', '.join(command.PROGRAMS)}\n"),
    ],
)
def test_an_unknown_command_is_one_line(word: str, says: str, monkeypatch: Patch, capsys: Capture) -> None:
    assert answer(monkeypatch, capsys, word) == (2, "", says)


def test_imports_and_the_end_collect_no_garbage() -> None:
    program = (
        "import atexit, gc; from greyhound.cache.cli import end_quietly, run\n"
        "atexit.register(lambda: print(len(gc.get_objects()) < 1000))\n"
        "end_quietly(); print(gc.isenabled()); run(lambda: print(gc.isenabled(), gc.get_freeze_count() > 0))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\nTrue True\nTrue\n", done.stderr


def words(name: str) -> str:
    return f"{name}{' fast' * (name == 'train')}{' x' * (name in command.CACHE)}"


@pytest.fixture(scope="module")
def answers() -> dict[str, list[Any]]:
    """Code, output, errors and slow imports of every command with --help and with a slip, from one process."""
    names = sorted(command.PROGRAMS, key="train".__eq__)  # train comes last
    lines = [f"{words(name)} {word}" for name in names for word in ("--help", "--nope")]
    child = [sys.executable, "-c", WATCHED.format(slow=SLOW, lines=lines)]
    found = subprocess.run(child, capture_output=True, text=True, timeout=60, check=True)
    return dict(zip(lines, map(json.loads, found.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", command.PROGRAMS)
def test_help_and_a_slip_import_nothing_slow(name: str, answers: dict[str, list[Any]]) -> None:
    code, out, err, slow = answers[f"{words(name)} --help"]
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: greyhound {name} ")
    assert max(map(len, out.splitlines())) <= 100
    code, out, err, more = answers[f"{words(name)} --nope"]
    assert (code, out) == (2, "")
    assert err.startswith("error: there is no flag --nope; ")
    assert err.count("\n") == 1
    assert not {*slow, *more} - {"numpy" * (name == "train")}


INTERRUPTED = """
import signal, time
try:
    signal.raise_signal(signal.SIGINT)
    time.sleep(30)
except BaseException as error:
    raise ImportError("as numpy says it") from error
"""
WRITING = """
import sys
from pathlib import Path
from greyhound.cache.cli import run
from greyhound.cache.files import replacing, replacing_all
def write():
    places = [Path(sys.argv[1]) / name for name in ("one.csv", "two.csv", "three.csv")]
    with replacing(places[0]) as file, replacing_all(places[1:]) as files:
        for each in (file, *files):
            each.write_text("half")
        import slow
run(write)
"""
NEEDED = {
    "train": "train demo --pack x --out y",
    "eval": "eval --run x",
    "predict": "predict --run x y",
    "serve": "serve --run x",
    "explain": "explain --run x",
    "review": "review --run x --out y",
    "export": "export --run x --out y.onnx",
    "compare": "compare x y",
    "benchmark": "benchmark --images .",
    "demo": "demo x",
    "survey": "survey . --out x",
    "pack": "pack . --out x",
    "info": "info x",
    "verify": "verify x",
}


@pytest.mark.parametrize(
    ("name", "module"),
    [*((name, "numpy") for name in command.PROGRAMS), ("pack", "argparse"), ("pack", "fcntl")],
)
def test_ctrl_c_during_an_import_is_quiet(name: str, module: str, tmp_path: Path) -> None:
    """Also where the module that is imported makes another error of it."""
    (tmp_path / f"{module}.py").write_text(INTERRUPTED)
    program = "from greyhound.__main__ import main; main()"
    line = [sys.executable, "-c", program, *NEEDED.get(name, name).split()]
    done = subprocess.run(
        line, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_ctrl_c_during_an_import_leaves_nothing_half_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "two.csv").write_text("old")
    (tmp_path / "slow.py").write_text(INTERRUPTED)
    line = [sys.executable, "-c", WRITING, str(out)]
    done = subprocess.run(
        line, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")
    assert [(file.name, file.read_text()) for file in out.iterdir()] == [("two.csv", "old")]


def test_without_a_terminal_a_long_pass_says_how_far_it_is(capsys: Capture) -> None:
    now, made = 0.0, itertools.count(2)
    update = cli.progress_lines("training epoch 3", clock=lambda: now)
    for done in range(401, 1001):  # resumed at 400: the speed is that of 401 and later
        now += 0.5
        update(done, 1000, lambda: f"{next(made)} img/s")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training epoch 3: 421 of 1,000, 4:50 left, 2 img/s"
    assert lines[1].endswith("3 img/s")  # what a note costs is paid where it is shown alone
    assert len(lines) == 29  # one in ten seconds of five minutes, but for the last

    update = cli.progress_lines("packing", clock=lambda: now)
    for done in range(1001):
        now += 60
        update(done, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "packing: 21 of 1,000, 979:00 left"
    assert len(lines) == 49  # two per cent each, however long it takes


def test_a_pass_that_is_not_shown_is_silent(capsys: Capture) -> None:
    with cli.progress_bar("evaluating", shown=False) as update:
        update(1, 2)
    with cli.progress_bar("evaluating") as update:
        update(1, 2)
        update(2, 2)
    assert capsys.readouterr().err == ""


ROWS = """
from greyhound.cache.cli import progress_bar
with progress_bar("predicting") as update:
    for row in range(3):
        print(f"row {row}", flush=True)
        update(row, 3)
print("the end")
"""


def test_what_is_printed_beside_a_bar_goes_where_it_was_sent(tmp_path: Path) -> None:
    """Rich 15 would take it from the file, and show it on the terminal that the bar is on."""
    ours, theirs = pty.openpty()
    with (tmp_path / "rows.csv").open("wb") as file:
        subprocess.run([sys.executable, "-c", ROWS], stdout=file, stderr=theirs, check=True)
    os.close(theirs)
    assert (tmp_path / "rows.csv").read_text() == "row 0\nrow 1\nrow 2\nthe end\n"
    assert "predicting" in os.read(ours, 1 << 16).decode()
    os.close(ours)
