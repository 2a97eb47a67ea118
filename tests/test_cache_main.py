"""greyhound, end to end: what it prints, its exit codes, and one line for everything that is wrong."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from pictures import encode, folder, noise

from greyhound.cache.store import Pack
from greyhound.cache.survey.table import read_rows

ROOT = Path(__file__).parents[1]


class Answer(NamedTuple):
    code: int
    out: str
    err: str


def command(*arguments: str | Path) -> Answer:
    """The command line as a user starts it, on a terminal that takes valid text only."""
    line = [sys.executable, "-m", "cache", *map(str, arguments)]
    strict = {"COLUMNS": "200", "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(line, capture_output=True, cwd=ROOT, env={**os.environ, **strict})
    return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = {
        f"{name}/{row}.jpg": encode(noise(40, 30, first + row), "JPEG")
        for name, first in (("Akita", 0), ("[b]eagle", 100))
        for row in range(10)
    }
    files["Akita/cut.jpg"] = encode(noise(300, 200, 1), "JPEG")[:-20_000]
    files["Akita/1[red].gif"] = encode(noise(30, 30, 70), "PNG")  # the name may say what it likes
    files["[b]eagle/two\nlines.jpg"] = b"bad"
    return folder(tmp_path_factory.mktemp("main") / "images", files)


@pytest.fixture(scope="module")
def packed(images: Path) -> tuple[Path, Answer]:
    out = images.with_name("images.arrow")
    return out, command("pack", images, "--out", out, "--val", "0.1", "--test", "0.2", "--seed", "4")


def test_pack(packed: tuple[Path, Answer]) -> None:
    out, answer = packed
    assert (answer.code, answer.err) == (0, "")
    rows = [line.replace("│", " ").split() for line in answer.out.splitlines()]
    assert ["Akita", "8", "1", "2", "11"] in rows
    assert ["[b]eagle", "7", "1", "2", "10"] in rows
    assert ["all", "15", "2", "4", "21"] in rows
    assert "left out: 2 (1 undecodable, 1 truncated)" in answer.out
    assert "  Akita/cut.jpg: truncated, " in answer.out
    assert "  [b]eagle/two\ufffdlines.jpg: undecodable, not an image" in answer.out
    pack = Pack(out)
    assert len(pack) == 21
    assert pack.header.seed == 4
    assert sorted(path.name for path in out.parent.iterdir()) == ["images", "images.arrow"]


def test_a_pack_may_have_a_name_that_is_no_text(images: Path, tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(b"[b]\xff.arrow")
    for words in (("pack", images, "--out", out), ("info", out), ("info", out, "--json"), ("verify", out)):
        answer = command(*words)
        assert (answer.code, answer.err) == (0, "")
        assert "[b]" in answer.out
    assert [entry.name for entry in tmp_path.iterdir()] == [out.name]


def test_info(packed: tuple[Path, Answer]) -> None:
    answer = command("info", packed[0])
    assert (answer.code, answer.err) == (0, "")
    assert "left out: 2 (1 undecodable, 1 truncated)" in answer.out
    assert "Akita/cut.jpg" not in answer.out  # `pack` lists them, and --json
    answer = command("info", packed[0], "--json")
    assert (answer.code, answer.err) == (0, "")
    content = json.loads(answer.out)
    assert content == json.loads(json.dumps(Pack(packed[0]).summary(thumbnails=False)))
    assert content["classes"] == ["[b]eagle", "Akita"]
    assert content["splits"] == {"train": 15, "val": 2, "test": 4}


def test_verify(packed: tuple[Path, Answer], tmp_path: Path) -> None:
    sound, corrupt = packed[0], tmp_path / "p.arrow"
    said = "of 21 images are as they were packed\n"
    assert command("verify", sound) == (0, f"{sound}: 21 {said}", "")
    data = bytearray(sound.read_bytes())
    data[data.find(Pack(sound).encoded(13).tobytes()) + 300] ^= 8
    corrupt.write_bytes(data)
    lines = f"corrupt: {Pack(sound).describe(13)}\n{corrupt}: 20 {said}"
    assert command("verify", corrupt) == (1, lines, "")


def test_survey(images: Path, tmp_path: Path) -> None:
    answer = command("survey", images, "--out", tmp_path / "found")
    assert (answer.code, answer.err) == (0, "")
    lines = [line.replace("│", " ").split() for line in answer.out.splitlines()]
    assert lines[0] == ["23", "images"]
    assert ["truncated", "1", "1"] in lines
    assert ["undecodable", "1", "1"] in lines
    assert ["wrong-extension", "1", "0"] in lines
    assert f"--exclude {tmp_path / 'found' / 'excluded.csv'}\n" in answer.out
    assert answer.out.endswith(f"greyhound review --images IMAGES --survey {tmp_path / 'found'}\n")
    assert sorted(file.name for file in (tmp_path / "found").iterdir()) == [
        "excluded.csv",
        "survey.csv",
        "survey.html",
    ]
    rows = {row.path: row.verdict for row in read_rows(tmp_path / "found" / "survey.csv")}
    assert len(rows) == 23
    assert [path for path, verdict in rows.items() if verdict == "exclude"] == [
        "Akita/cut.jpg",
        "[b]eagle/two\nlines.jpg",
    ]


def test_a_survey_of_nothing_is_one_line(tmp_path: Path) -> None:
    answer = command("survey", tmp_path / "x", "--out", tmp_path / "found")
    assert answer == (2, "", f"error: {tmp_path / 'x'} is not there; expected a folder of images\n")


def test_help_says_what_there_is() -> None:
    answer = command("--help")
    assert (answer.code, answer.err) == (0, "")
    assert all(name in answer.out for name in ("demo", "survey", "pack", "info", "verify"))


# --- one line for everything that is wrong ---------------------------------------------------------------------------


def here(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str | Path
) -> Answer:
    """The same without a new process: for the many ways to be wrong."""
    monkeypatch.setattr(sys, "argv", ["cache", *map(str, arguments)])
    monkeypatch.delitem(sys.modules, "cache.__main__", raising=False)  # where another test imported it
    with pytest.raises(SystemExit) as leaving:
        runpy.run_module("cache", run_name="__main__")
    return Answer(int(str(leaving.value.code)), *capfd.readouterr())


WRONG = {
    "no folder": (
        ["pack", "{tmp}/none", "--out", "{tmp}/p"],
        "error: {tmp}/none is not there; expected a folder",
    ),
    "no images": (
        ["pack", "{tmp}", "--out", "{tmp}/p"],
        "error: {tmp} has no subfolders; expected one a class",
    ),
    "out among the images": (
        ["pack", "{images}", "--out", "{images}/Akita/p.arrow"],
        "error: --out {images}/Akita/p.arrow lies inside {images}, where it would be taken for an image the next time;",
    ),
    "a survey of nothing": (
        ["survey", "{tmp}", "--out", "{images}2/new"],
        "error: {tmp} holds no images; expected some, or one subfolder a class",
    ),
    "decisions for exclusions": (
        ["pack", "{images}", "--out", "{tmp}/p", "--exclude", "{images}.csv"],
        "error: {images}.csv is a list of decisions, not of exclusions; give it as --decisions {images}.csv",
    ),
    "a survey for exclusions": (
        ["pack", "{images}", "--out", "{tmp}/p", "--exclude", "{images}-survey.csv"],
        "error: {images}-survey.csv is a whole survey; give --exclude the excluded.csv that lies beside it\n",
    ),
    "out is a folder": (
        ["pack", "{images}", "--out", "{tmp}"],
        "error: --out is the folder {tmp}; expected a file",
    ),
    "shares": (
        ["pack", "{images}", "--out", "{tmp}/p", "--val", "0.6", "--test", "0.6"],
        "error: val is 0.6 and test is 0.6; expected shares from 0, together below 1",
    ),
    "no exclusion list": (
        ["pack", "{images}", "--out", "{tmp}/p", "--exclude", "{tmp}/none.csv"],
        "error: {tmp}/none.csv cannot be read (No such file or directory)",
    ),
    "info of nothing": (["info", "{tmp}/none"], "error: there is no pack at {tmp}/none; make one:"),
    "info of a folder": (["info", "{tmp}"], "error: {tmp} cannot be opened ("),
    "verify of some file": (
        ["verify", "/proc/self/cmdline"],
        "error: /proc/self/cmdline is no readable pack (",
    ),
    "no number": (
        ["pack", "{images}", "--out", "{tmp}/p", "--val", "much"],
        "error: --val is 'much'; expected a number\n",
    ),
    "an unknown flag": (
        ["info", "{tmp}", "--yaml"],
        "error: there is no flag --yaml; see greyhound info --help\n",
    ),
    "an unknown command": (["unpack"], "error: there is no command 'unpack'; did you mean pack?\n"),
    "no --out": (
        ["pack", "{images}"],
        "error: --out is missing; see greyhound pack --help\n",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_line_and_exit_code_2(
    name: str,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    arguments, message = WRONG[name]
    places = {"tmp": str(tmp_path), "images": str(images)}
    images.with_name("images-survey.csv").write_text("path,verdict,reason\n")
    images.with_name("images.csv").write_text("sha256,path,class,decision,to,reason\n")
    answer = here(monkeypatch, capfd, *(argument.format(**places) for argument in arguments))
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith(message.format(**places))
    assert answer.err.count("\n") == 1
    assert answer.err.endswith("\n")
    assert "Traceback" not in answer.err
    assert list(tmp_path.iterdir()) == []
    assert not images.with_name("images2").exists()


def test_one_line_as_a_user_sees_it(tmp_path: Path) -> None:
    answer = command("pack", tmp_path, "--out", tmp_path / "p.arrow")
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)


def test_an_error_of_ours_is_one_line_that_says_where_the_traceback_is(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(path: Path) -> None:
        raise RuntimeError("oh\nno")

    monkeypatch.setattr("greyhound.cache.shards._open", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "p.arrow").write_bytes(b"1234")
    answer = here(monkeypatch, capfd, "info", tmp_path / "p.arrow")
    assert (answer.code, answer.out) == (1, "")
    (log,) = tmp_path.glob("greyhound-*.log")
    assert answer.err == f"unexpected RuntimeError: oh no -- please report it with {log}\n"
    assert "Traceback (most recent call last)" in log.read_text()


def test_a_reader_that_has_seen_enough_is_no_error(packed: tuple[Path, Answer]) -> None:
    line = f"{sys.executable} -m cache info {packed[0]} --json | head -c 10"
    done = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True)
    assert done.stderr == b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_nothing_and_says_nothing(images: Path, tmp_path: Path, number: int) -> None:
    many = Path(shutil.copytree(images, tmp_path / "many"))
    one = next(many.glob("*/*"))
    for copy in range(12_000):  # many seconds of work, so that the signal comes into the middle of it
        os.link(one, one.with_name(f"link{copy}{one.suffix}"))
    line = [sys.executable, "-m", "cache", "pack", str(many), "--out", str(tmp_path / "out" / "p.arrow")]
    process = subprocess.Popen(
        line,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # what runs in a shell's background, as CI may, ignores SIGINT and hands that on
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 20
    while not _decoding(process.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, number)  # as a terminal does: to every process of the group
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (128 + number, b"", b"")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no child is left in its group
    assert not (tmp_path / "out").exists()


def _decoding(pid: int) -> bool:
    """Whether a decoder process of `pid` runs."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text().rsplit(")", 1)[1].split()[1]) == pid:
                return b"greyhound.cache.validate" in status.with_name("cmdline").read_bytes()
        except (OSError, IndexError):
            continue
    return False
