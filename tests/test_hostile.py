"""A folder that means harm, or was filled by accident: every command answers in plain lines, and nothing in it is run."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from limits import files_up_to
from pictures import encode, folder
from PIL import Image
from runs import SMALL, Here, Patch, tinted

from greyhound.cache import folder as folders
from greyhound.cache import pack as packing
from greyhound.cache.folder import find_unlabelled
from greyhound.cache.pack import pack
from greyhound.cache.store import Pack, PackError
from greyhound.cache.survey.findings import inspect
from greyhound.cache.survey.table import Rows

ROOT = Path(__file__).parents[1]
SCRIPT = "<img src=x onerror=alert(1)>"
NAMES = (
    "new\nline.jpg",
    "quote'\".jpg",
    "up..down.jpg",
    "-rf.jpg",
    "\N{DOG FACE}.jpg",
    f"{SCRIPT}.jpg",
    "</script><script>alert(2)</script>.jpg".replace("/", "\N{FRACTION SLASH}"),
    "{{ 7 * 7 }}.jpg",
    "$(reboot).jpg",
    "\x1b[31mred.jpg",
    "n" * 250 + ".jpg",
)
"""Of sound images."""


def gif(frames: int) -> bytes:
    images = [Image.fromarray(np.full((8, 8), frame % 256, np.uint8)) for frame in range(frames)]
    stream = io.BytesIO()
    images[0].save(stream, "GIF", save_all=True, append_images=images[1:])
    return stream.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG whose header says so, and whose pixels are not there."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


BAD = {
    "nothing.jpg": b"",
    "no-width.png": png_that_claims(0, 9),
    "no-pixels.png": png_that_claims(9, 9),
    "bomb.png": png_that_claims(60_000, 60_000),
    "no-size.gif": b"GIF89a" + struct.pack("<HHBBB", 0, 0, 0, 0, 0) + b";",
    "half.jpg": tinted(0, 3)[:900],
    "script.jpg": b"#!/bin/sh\ntouch TRACE\n",
    "pickle.jpg": b"\x80\x04\x95cos\nsystem\n.",
}
SOUND = {
    "wide.jpg": encode(np.full((4, 65_500, 3), (200, 40, 40), np.uint8), "JPEG"),
    "dot.png": encode(np.full((1, 1, 3), (200, 40, 40), np.uint8)),
    "thousand.gif": gif(1000),
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, one of them named as a tag."""
    root = tmp_path_factory.mktemp("hostile") / "images"
    sound = {f"{SCRIPT}/{name}": tinted(0, index) for index, name in enumerate(NAMES)}
    more = {f"plain/{index}.jpg": tinted(2, 50 + index) for index in range(12)}
    rest = {f"plain/{name}": data for name, data in (BAD | SOUND).items()}
    rest["plain/script.jpg"] = rest["plain/script.jpg"].replace(b"TRACE", bytes(root.with_name("trace")))
    folder(root, sound | more | rest)
    (root / "plain" / os.fsdecode(b"bytes\xff.jpg")).write_bytes(tinted(2, 99))
    (root / "plain" / "folder.jpg").mkdir()
    (root / "plain" / "loop").symlink_to(root)
    (root / "plain" / "loop.jpg").symlink_to(root / "plain" / "loop.jpg")
    os.mkfifo(root / "plain" / "pipe.jpg")
    return root


@pytest.fixture(scope="module")
def packed_hostile(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The pack of that folder as the command line makes it, and what was said."""
    out = tmp_path_factory.mktemp("packed") / "p.arrow"
    command = [sys.executable, "-m", "cache", "pack", str(hostile), "--out", str(out), "--grayscale", "keep"]
    result = subprocess.run(command, capture_output=True, text=True, errors="backslashreplace", cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    return out, result.stdout


def test_every_sound_image_is_packed_and_every_other_named(
    hostile: Path, packed_hostile: tuple[Path, str]
) -> None:
    """And no name reaches the terminal as a command."""
    opened = Pack(packed_hostile[0])
    paths = {opened.image_path(row).rpartition("/")[2] for row in range(len(opened))}
    assert paths == {*NAMES, *SOUND, *(f"{index}.jpg" for index in range(12)), r"bytes\xff.jpg"}
    left_out = {row.path.rpartition("/")[2]: row.reason for row in opened.header.excluded}
    assert set(left_out) == {*BAD, "loop.jpg", "pipe.jpg"}
    assert left_out["bomb.png"] == "bomb"
    assert left_out["half.jpg"] == "truncated"
    assert opened.corrupt() == []
    assert not hostile.with_name("trace").exists()
    assert "\x1b" not in packed_hostile[1]


def test_the_whole_flow_takes_them_and_the_report_escapes_them(
    hostile: Path, packed_hostile: tuple[Path, str], tmp_path: Path, here: Here
) -> None:
    small = " ".join(SMALL)
    for step in (
        f"train.py fast --pack {packed_hostile[0]} --out run {small}",
        "eval.py --run run --crops 2 --device cpu",
        f"eval.py --run run --images {hostile} --crops 1 --device cpu",
        f"predict.py --run run {hostile} --device cpu --out rows.csv",
        "explain.py --run run --device cpu",
    ):
        answer = here(*step.split())
        assert answer.code == 0, answer.err
        assert "Traceback" not in answer.err
        assert "\x1b" not in answer.out + answer.err
    page = (tmp_path / "run" / "report.html").read_text()
    assert SCRIPT not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert page.count("<script") == 1  # the page's own, which sorts tables


def test_a_survey_looks_at_them_all_and_draws_its_page(hostile: Path, tmp_path: Path, here: Here) -> None:
    """A pipe among them, which to open would wait for ever, is on the page."""
    answer = here("cache/__main__.py", "survey", str(hostile), "--out", "found")
    assert answer.code == 0, answer.err
    rows = {row.path.rpartition("/")[2]: row for row in Rows(tmp_path / "found" / "survey.csv")}
    assert {*NAMES, *BAD, *SOUND, "pipe.jpg"} <= set(rows)
    assert all(rows[name].verdict == "exclude" for name in (*BAD, "pipe.jpg"))
    page = (tmp_path / "found" / "survey.html").read_text()
    assert "pipe.jpg" in page
    assert SCRIPT not in page


def test_more_classes_than_can_be_told_apart_are_refused_at_once(tmp_path: Path, monkeypatch: Patch) -> None:
    """Said before any image is looked at; with a lower limit, for the sake of the disk."""
    assert folders.MAX_CLASSES == 10_000
    monkeypatch.setattr(folders, "MAX_CLASSES", 1500)
    monkeypatch.setattr(packing, "scan", lambda *_, **__: pytest.fail("looked at images"))
    for label in range(1501):
        (tmp_path / "images" / f"{label:06}").mkdir(parents=True)
    with pytest.raises(PackError, match=r"has 1,501 subfolders; expected one a class, at most 1,500"):
        pack(tmp_path / "images", tmp_path / "p.arrow")


def test_twenty_thousand_empty_class_folders_are_answered_in_seconds(tmp_path: Path) -> None:
    memory = Path("/dev/shm")  # a disk takes a minute to make them and to remove them
    images = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else tmp_path))
    for label in range(20_000):
        os.mkdir(f"{images}/{label:06}")  # noqa: PTH102 - a third faster than pathlib
    said = r"has 20,000 subfolders; expected one a class, at most [\d,]+: put"
    started = time.process_time()
    try:
        with pytest.raises(PackError, match=said):
            pack(images, tmp_path / "p.arrow")
        with pytest.raises(PackError, match="holds no images"), inspect(images) as rows:
            list(rows)
        with pytest.raises(PackError, match="holds no files"):
            find_unlabelled(images)
        assert time.process_time() - started < 20, "the square of it would take minutes"
    finally:
        shutil.rmtree(images)


def test_two_that_pack_to_one_path_leave_one_whole_pack(hostile: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cache", "pack", str(hostile), f"--out={tmp_path / 'p.arrow'}", "--seed"]
    both = [subprocess.Popen([*command, seed], cwd=ROOT, stdout=subprocess.DEVNULL) for seed in "12"]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    opened = Pack(tmp_path / "p.arrow")
    assert opened.header.seed in (1, 2)
    assert opened.corrupt() == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.arrow"]


def test_a_full_disk_leaves_the_old_pack_and_no_half_one(hostile: Path, tmp_path: Path, here: Here) -> None:
    """RLIMIT_FSIZE stands for it: a file that grows beyond it fails as on a full disk."""
    (tmp_path / "p.arrow").write_bytes(b"ARROW1, an older pack")
    with files_up_to(20 * 512):
        answer = here("cache/__main__.py", "pack", str(hostile), "--out", "p.arrow", "--grayscale", "keep")
    assert "p.arrow cannot be written" in answer.error
    assert (tmp_path / "p.arrow").read_bytes() == b"ARROW1, an older pack"
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.arrow"]
