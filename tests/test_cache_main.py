"""greyhound, end to end: what it prints, its exit codes, and one line for everything that is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from pictures import encode, flipped, folder, noise
from runs import Answer, Here, Patch

from greyhound.cache.store import Pack
from greyhound.cache.survey.table import Rows

ROOT = Path(__file__).parents[1]
Call = Callable[..., Answer]


def command(*arguments: str | Path) -> Answer:
    """The command line as a user starts it, on a terminal that takes valid text only."""
    line = [sys.executable, "-m", "cache", *map(str, arguments)]
    strict = {"COLUMNS": "200", "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(line, capture_output=True, cwd=ROOT, env={**os.environ, **strict})
    return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def call(here: Here, scan_in_process: None, monkeypatch: Patch) -> Call:
    """The same without a new process."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="strict")  # type: ignore[union-attr]
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: here("cache/__main__.py", *map(str, arguments))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = [f"{name}/{row}.jpg" for name in ("Akita", "[b]eagle") for row in range(10)]
    files = {name: encode(noise(40, 30, seed), "JPEG") for seed, name in enumerate(names)}
    files["Akita/cut.jpg"] = encode(noise(300, 200, 1), "JPEG")[:-20_000]
    files["Akita/1[red].gif"] = encode(noise(30, 30, 70), "PNG")  # the name may say what it likes
    files["[b]eagle/two\nlines.jpg"] = b"bad"
    return folder(tmp_path_factory.mktemp("main") / "images", files)


@pytest.fixture(scope="module")
def packed(images: Path) -> tuple[Path, Answer]:
    out = images.with_name("images.arrow")
    return out, command("pack", images, "--out", out, "--val", "0.1", "--test", "0.2", "--seed", "4")


def table(text: str) -> list[list[str]]:
    """The cells of each line."""
    return [line.replace("│", " ").split() for line in text.splitlines()]


def test_pack_info_and_verify(packed: tuple[Path, Answer], tmp_path: Path, call: Call) -> None:
    out, answer = packed
    left_out = "left out: 2 (1 undecodable, 1 truncated)"
    assert (answer.code, answer.err) == (0, "")
    for row in ("Akita 8 1 2 11", "[b]eagle 7 1 2 10", "all 15 2 4 21"):
        assert row.split() in table(answer.out)
    assert left_out in answer.out
    assert "  Akita/cut.jpg: truncated, " in answer.out
    assert "  [b]eagle/two\ufffdlines.jpg: undecodable, no image that is read here" in answer.out
    pack = Pack(out)
    assert (len(pack), pack.header.seed) == (21, 4)
    assert {path.name for path in out.parent.iterdir() if path.suffix != ".csv"} == {"images", "images.arrow"}
    answer = call("info", out)
    assert (answer.code, answer.err) == (0, "")
    assert left_out in answer.out
    assert "Akita/cut.jpg" not in answer.out  # `pack` lists them, and --json
    answer = call("info", out, "--json")
    assert (answer.code, answer.err) == (0, "")
    content = json.loads(answer.out)
    assert content == json.loads(json.dumps(pack.summary(thumbnails=False)))
    assert content["classes"] == ["[b]eagle", "Akita"]
    assert content["splits"] == {"train": 15, "val": 2, "test": 4}
    corrupt, said = tmp_path / "p.arrow", "of 21 images are as they were packed\n"
    assert call("verify", out) == (0, f"{out}: 21 {said}", "")
    flipped(pack, corrupt, 13)
    assert call("verify", corrupt) == (1, f"corrupt: {pack.describe(13)}\n{corrupt}: 20 {said}", "")


def test_a_pack_that_replaces_another_says_so(images: Path, tmp_path: Path, call: Call) -> None:
    """Also one in shards; what is no pack, or no longer one, was none."""
    out, sound = tmp_path / "p.arrow", tmp_path / "sound"
    for name in ("1", "2", "3"):
        for label in ("Akita", "[b]eagle"):
            (sound / label).mkdir(parents=True, exist_ok=True)
            shutil.copy(images / label / f"{name}.jpg", sound / label)
    out.touch()
    first, again = (call("pack", sound, "--out", out) for _ in range(2))
    assert (first.code, first.err) == (0, "")
    assert "left out" not in first.out
    said = rf"note: {out} replaces the pack of 6 images that was there, of {YEAR}-\d\d-\d\d \d\d:\d\d\n"
    assert again.code == 0 and re.fullmatch(said, again.err)
    out.unlink()
    for _ in range(2):
        shards = call("pack", sound, "--out", out, "--shards", "2")
    assert shards.code == 0 and re.fullmatch(said, shards.err)
    next(tmp_path.glob("p-*.arrow")).write_bytes(b"ARROW1 and no more")
    assert call("pack", sound, "--out", out, "--shards", "2").err == ""


def test_a_pack_may_have_a_name_that_is_no_text(images: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / os.fsdecode(b"[b]\xff.arrow")
    for words in (("pack", images, "--out", out), ("info", out), ("info", out, "--json"), ("verify", out)):
        answer = call(*words)
        assert (answer.code, answer.err) == (0, "")
        assert "[b]" in answer.out
    assert [entry.name for entry in tmp_path.iterdir()] == [out.name]


def test_survey(images: Path, tmp_path: Path, call: Call) -> None:
    out = tmp_path / "found"
    answer = call("survey", images, "--out", out)
    assert (answer.code, answer.err) == (0, "")
    lines = table(answer.out)
    assert lines[0] == ["23", "images"]
    for line in (["truncated", "1", "1"], ["undecodable", "1", "1"], ["wrong-extension", "1", "0"]):
        assert line in lines
    assert f"--exclude {out / 'excluded.csv'}\n" in answer.out
    assert answer.out.endswith(f"greyhound review --images IMAGES --survey {out}\n")
    assert sorted(file.name for file in out.iterdir()) == ["excluded.csv", "survey.csv", "survey.html"]
    rows = {row.path: row.verdict for row in Rows(out / "survey.csv")}
    assert len(rows) == 23
    excluded = [path for path, verdict in rows.items() if verdict == "exclude"]
    assert excluded == ["Akita/cut.jpg", "[b]eagle/two\nlines.jpg"]


def test_a_survey_in_place_of_another_folders_says_so(tmp_path: Path, call: Call) -> None:
    out = tmp_path / "found"
    one, other = (folder(tmp_path / name, {"a/1.png": encode(noise(30, 30, 1))}) for name in ("one", "other"))
    said = f"note: {out} replaces the survey of another folder that was there\n"
    for images, note in ((one, ""), (one, ""), (other, said), (other, ""), (one, said)):
        answer = call("survey", images, "--out", out)
        assert (answer.code, answer.err) == (0, note)


def test_help_says_what_there_is(call: Call) -> None:
    answer = call("--help")
    assert (answer.code, answer.err) == (0, "")
    assert all(name in answer.out for name in ("demo", "survey", "pack", "info", "verify"))


YEAR = r"20\d\d"
PACK = "pack {images} --out {tmp}/p"
WRONG = {
    "no folder": ("pack {tmp}/none --out {tmp}/p", "{tmp}/none is not there; expected a folder"),
    "no images": ("pack {tmp} --out {tmp}/p", "{tmp} has no subfolders; expected one a class"),
    "out among the images": (
        "pack {images} --out {images}/Akita/p.arrow",
        "--out {images}/Akita/p.arrow lies inside {images}, where it would be taken for an image the next time;",
    ),
    "a survey of no folder": (
        "survey {tmp}/x --out {tmp}/found",
        "{tmp}/x is not there; expected a folder of images\n",
    ),
    "a survey of nothing": (
        "survey {tmp} --out {images}2/new",
        "{tmp} holds no images; expected some, or one subfolder a class",
    ),
    "decisions for exclusions": (
        PACK + " --exclude {images}.csv",
        "{images}.csv is a list of decisions, not of exclusions; give it as --decisions {images}.csv",
    ),
    "a survey for exclusions": (
        PACK + " --exclude {images}-survey.csv",
        "{images}-survey.csv is a whole survey; give --exclude the excluded.csv that lies beside it\n",
    ),
    "an exclusion of no image": (
        PACK + " --exclude {images}-paths.csv",
        "{images}-paths.csv names 'Akita/none.jpg', which is not among the images; expected paths",
    ),
    "info of nothing": ("info {tmp}/none", "there is no pack at {tmp}/none; make one:"),
    "verify of some file": ("verify /proc/self/cmdline", "/proc/self/cmdline is no readable pack ("),
    "no number": (PACK + " --val much", "--val is 'much'; expected a number\n"),
    "an unknown flag": ("info {tmp} --yaml", "there is no flag --yaml; see greyhound info --help\n"),
    "an unknown command": ("unpack", "there is no command 'unpack'; did you mean pack?\n"),
    "no colour": (PACK + " --background=", "background is ''; expected a colour, as white or #ffffff"),
    "no --out": ("pack {images}", "--out is missing; see greyhound pack --help\n"),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_line_and_exit_code_2(name: str, images: Path, tmp_path: Path, call: Call) -> None:
    arguments, message = (text.format(tmp=tmp_path, images=images) for text in WRONG[name])
    images.with_name("images-survey.csv").write_text("path,verdict,reason\n")
    images.with_name("images-paths.csv").write_text("path,reason\nAkita/none.jpg,\n")
    images.with_name("images.csv").write_text("sha256,path,class,decision,to,reason\n")
    answer = call(*arguments.split())
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith(f"error: {message}")
    assert answer.err.count("\n") == 1 and answer.err.endswith("\n") and "Traceback" not in answer.err
    assert list(tmp_path.iterdir()) == []
    assert not images.with_name("images2").exists()


def test_an_error_of_ours_is_one_line_that_says_where_the_traceback_is(
    monkeypatch: Patch, tmp_path: Path, call: Call
) -> None:
    def fail(self: Pack, path: Path) -> None:
        raise RuntimeError("oh\nno")

    monkeypatch.setattr(Pack, "__init__", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    answer = call("info", tmp_path / "p.arrow")
    assert (answer.code, answer.out) == (1, "")
    (log,) = tmp_path.glob("greyhound-*.log")
    assert answer.err == f"unexpected RuntimeError: oh no -- please report it with {log}\n"
    assert "Traceback (most recent call last)" in log.read_text()


def test_a_mistake_is_one_line_and_a_reader_that_has_seen_enough_is_none(
    packed: tuple[Path, Answer], tmp_path: Path
) -> None:
    answer = command("pack", tmp_path, "--out", tmp_path / "p.arrow")
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    line = f"{sys.executable} -m cache info {packed[0]} --json | head -c 10"
    done = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True)
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("number", "send"),
    [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.killpg), (signal.SIGTERM, os.kill)],
    ids=["Ctrl-C", "the group is ended", "the parent alone is ended"],
)
def test_a_signal_while_decoders_run_leaves_nothing_and_says_nothing(
    images: Path, tmp_path: Path, number: int, send: Callable[[int, int], None]
) -> None:
    """A terminal signals every process of the group, a system may signal packing alone."""
    many = Path(shutil.copytree(images, tmp_path / "many"))
    one = next(many.glob("*/*"))
    for copy in range(12_000):  # many seconds of work, so that the signal comes into the middle of it
        os.link(one, one.with_name(f"link{copy}{one.suffix}"))
    line = [sys.executable, "-m", "cache", "pack", str(many), "--out", str(tmp_path / "out" / "p.arrow")]
    pipe = subprocess.PIPE
    process = subprocess.Popen(line, cwd=ROOT, stdout=pipe, stderr=pipe, start_new_session=True)
    deadline = time.monotonic() + 60
    while not _decoding(process.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert _decoding(process.pid)
    send(process.pid, number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (128 + number, b"", b"")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no child is left in its group
    assert not (tmp_path / "out").exists()


def _decoding(pid: int) -> bool:
    """Whether a decoder process of `pid` runs."""
    with suppress(psutil.Error):
        children = psutil.Process(pid).children()
        return any("greyhound.cache.validate" in child.cmdline() for child in children)
    return False
