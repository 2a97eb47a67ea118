"""cache/files.py: replaced whole or not at all, what killed processes left is swept, and a list that lies on disk."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from limits import files_up_to
from runs import Patch

from greyhound.cache.files import DiskList, WriteError, folder_beside, replacing, replacing_all

ROOT = Path(__file__).parents[1]
WRITER = """
import sys
from pathlib import Path
from greyhound.cache.files import folder_beside, replacing_all
out = Path(sys.argv[1])
with folder_beside(out) if out.suffix == ".json" else replacing_all([out]) as made:
    half = made / "images.arrow" if out.suffix == ".json" else made[0]
    half.write_bytes(b"half")
    print(half, flush=True)
    sys.stdin.read()
"""


@contextmanager
def one_dead_one_alive(out: Path) -> Iterator[tuple[list[subprocess.Popen[str]], list[Path]]]:
    """Two processes that write `out`, the first of them killed, and what each of them has written so far."""
    command = [sys.executable, "-c", WRITER, str(out)]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        left = [Path(process.stdout.readline().strip()) for process in both if process.stdout]
        both[0].kill()
        both[0].wait()
        assert all(file.read_bytes() == b"half" for file in left)
        yield both, left
    finally:
        for process in both:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("name", ["p[1].arrow", "p", "v1.0-beta"])
def test_what_a_killed_process_left_is_swept_and_a_living_ones_is_not(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    with one_dead_one_alive(out) as ((dead, alive), left):
        other, copy = tmp_path / f".other.{dead.pid}.arrow", tmp_path / ".p[1].arrow.1"
        other.write_bytes(b"another pack's")
        copy.write_bytes(b"a person's")
        with replacing_all([out]) as (temporary,):
            temporary.write_bytes(b"whole")
            assert not left[0].exists()
            assert left[1].exists()
        alive.communicate("")
        assert alive.returncode == 0
        assert out.read_bytes() == b"half", "the last one to end"
    assert set(tmp_path.iterdir()) == {other, copy, out}


def test_a_folder_that_a_killed_process_left_is_swept_and_a_living_ones_is_not(tmp_path: Path) -> None:
    begun = tmp_path / ".greyhound-begun"
    with one_dead_one_alive(tmp_path / "labels.json") as ((_, alive), left):
        begun.mkdir()
        with folder_beside(tmp_path / "others.json") as folder:
            assert set(tmp_path.iterdir()) == {folder, left[1].parent, begun}
        alive.communicate("")
        assert alive.returncode == 0
    assert list(tmp_path.iterdir()) == [begun]


@pytest.mark.skipif(os.name != "posix", reason="a folder cannot be opened")
def test_content_is_on_the_disk_before_its_name(tmp_path: Path, monkeypatch: Patch) -> None:
    happened: list[str] = []
    replace = Path.replace

    def flush(descriptor: int) -> None:
        happened.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

    def rename(self: Path, target: Path) -> Path:
        happened.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "replace", rename)
    with replacing_all([tmp_path / "a", tmp_path / "b"]):
        pass
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("x")
    assert happened == ["file", "file", "a", "b", "folder", "file", "a", "folder"]


def test_no_file_is_renamed_before_all_are_written_and_what_is_renamed_in_part_is_said(
    tmp_path: Path,
) -> None:
    outs = [tmp_path / name for name in ("a", "b", "c")]
    refused = pytest.raises(WriteError, match=r"a cannot be written: No space left.*; nothing was changed")
    with refused, replacing_all(outs) as temporaries:
        temporaries[0].write_bytes(b"new")
        raise OSError(28, os.strerror(28))
    assert list(tmp_path.iterdir()) == []
    outs[1].mkdir()
    with pytest.raises(WriteError) as refusal, replacing_all(outs):
        pass
    assert str(refusal.value) == (
        f"{outs[1]} cannot be written: Is a directory; 1 of its 3 files are new and the others are not: make it again"
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("error", [OSError(28, "No space left"), KeyboardInterrupt(), ValueError(), None])
def test_the_old_content_stays_until_the_block_is_over(tmp_path: Path, error: BaseException | None) -> None:
    """None: a block that writes nothing, which is an error too."""
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error) if error else FileNotFoundError), replacing(path) as temporary:
        if error:
            temporary.write_text("ne")
            raise error
    assert path.read_text() == "old"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_name_is_beside_and_keeps_the_suffix(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "lr.png"
    (tmp_path / "plain").touch()
    with replacing(path) as temporary:
        assert (temporary.parent, temporary.suffix, temporary.name[0]) == (path.parent, ".png", ".")
        temporary.touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode, "as of any new file"


def test_items_on_disk_come_back_in_order_and_by_place() -> None:
    items = ["a" * 768, "", "\udcff \U0001f415"]
    with DiskList(items) as kept:
        assert len(kept) == 3
        assert [kept[place] for place in (2, 0, 1)] == [items[2], items[0], items[1]]
        assert [(item, kept[0]) for item in kept] == [(item, items[0]) for item in items]
        assert list(zip(kept, kept, strict=True)) == [(item, item) for item in items]
        with pytest.raises(IndexError):
            kept[3]
    with DiskList[int]([]) as nothing:
        assert (len(nothing), list(nothing)) == (0, [])


@pytest.mark.parametrize("items", [1, 10_000])
def test_a_full_disk_is_said_with_the_folder(items: int) -> None:
    refused = pytest.raises(WriteError, match=r"cannot be kept in .* \(File too large\).*TMPDIR")
    with files_up_to(100), refused, DiskList(bytes(768) for _ in range(items)):
        pytest.fail("an item was lost without a word")


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    """As root, renaming would put a file in the place of /dev/null for everybody."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="a device or a pipe"), replacing(pipe):
        pytest.fail("it began to write")
    held = replacing_all([tmp_path / "a", pipe])
    with pytest.raises(WriteError, match=r"pipe is a device or a pipe; expected"), held:
        pytest.fail("it began to write")
    assert pipe.is_fifo()
    assert [each.name for each in tmp_path.iterdir()] == ["pipe"]
