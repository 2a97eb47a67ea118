"""cache/atomic.py: files are replaced whole or not at all, and what killed processes left is swept."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from greyhound.cache.files import folder_beside, replacing, replacing_all
from greyhound.cache.store import PackError

ROOT = Path(__file__).parents[1]
WRITER = """
import os, sys
from pathlib import Path
from greyhound.cache.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half")
    print(temporary, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_swept_and_a_living_ones_is_not(tmp_path: Path) -> None:
    out = tmp_path / "p[1].arrow"
    command = [sys.executable, "-c", WRITER, str(out)]
    dead, alive = (
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    try:
        left = [Path(process.stdout.readline().strip()) for process in (dead, alive) if process.stdout]
        dead.kill()
        dead.wait()
        (tmp_path / f".other.arrow.{dead.pid}.tmp").write_bytes(b"another pack's")
        assert all(file.read_bytes() == b"half" for file in left)
        with replacing(out) as temporary:
            temporary.write_bytes(b"whole")
            assert not left[0].exists()
            assert left[1].exists()
        alive.communicate("")
        assert alive.returncode == 0
        assert out.read_bytes() == b"half", "the last one to end"
    finally:
        for process in (dead, alive):
            process.kill()
            process.communicate()
    assert sorted(file.name for file in tmp_path.iterdir()) == [f".other.arrow.{dead.pid}.tmp", "p[1].arrow"]


@pytest.mark.skipif(os.name != "posix", reason="a folder cannot be opened")
def test_the_renaming_itself_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[tuple[bool, bool]] = []
    out = tmp_path / "a"

    def flush(descriptor: int) -> None:
        flushed.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), out.exists()))

    monkeypatch.setattr(os, "fsync", flush)
    with replacing_all([out, tmp_path / "b"]):
        pass
    assert flushed == [(False, False), (False, False), (True, True)]


HOLDER = """
import sys
from pathlib import Path
from greyhound.cache.files import folder_beside
with folder_beside(Path(sys.argv[1])) as folder:
    (folder / "images.arrow").write_bytes(b"half")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_a_folder_that_a_killed_process_left_is_swept_and_a_living_ones_is_not(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "labels.json")]
    dead, alive = (
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    try:
        left = [Path(process.stdout.readline().strip()) for process in (dead, alive) if process.stdout]
        dead.kill()
        dead.wait()
        (tmp_path / ".review-begun").mkdir()
        assert all((folder / "images.arrow").exists() for folder in left)
        with folder_beside(tmp_path / "others.json") as folder:
            assert set(tmp_path.iterdir()) == {folder, left[1], tmp_path / ".review-begun"}
        alive.communicate("")
        assert alive.returncode == 0
    finally:
        for process in (dead, alive):
            process.kill()
            process.communicate()
    assert list(tmp_path.iterdir()) == [tmp_path / ".review-begun"]


def test_no_file_is_renamed_before_all_are_written(tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("a", "b")]
    with pytest.raises(PackError, match=r"a cannot be written: No space left.*; nothing was changed"):  # noqa: SIM117
        with replacing_all(outs) as temporaries:
            temporaries[0].write_bytes(b"new")
            raise OSError(28, os.strerror(28))
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_renamed_in_part_are_said_to_be(tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("a", "b", "c")]
    outs[1].mkdir()
    with pytest.raises(PackError) as refusal:  # noqa: SIM117
        with replacing_all(outs) as temporaries:
            for temporary in temporaries:
                temporary.write_bytes(b"new")
    assert str(refusal.value) == (
        f"{outs[1]} cannot be written: Is a directory; 1 of its 3 files are new and the others are not: make it again"
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]
