"""model/checkpoint.py: whole or not at all, in order, beside the caller; nothing in a file is run."""

from __future__ import annotations

import io
import os
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from limits import files_up_to

from greyhound.model.checkpoint import FORMAT, CheckpointError, Writer, load, save


class Evil:
    """Unpickled by the book, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def content() -> dict[str, Any]:
    weight = torch.arange(6.0).reshape(2, 3)
    network = {"weight": weight, "count": torch.tensor(7)}
    return {
        "network": network,
        "optimizer": {"state": {0: {"momentum_buffer": weight * 2}}, "param_groups": [{"lr": 0.1}]},
        "position": {"epoch": 3, "images": 128},
        "random": torch.get_rng_state(),
        "accuracy": 0.5,
        "best": -1.0,
        "name": "paper",
        "nothing": None,
    }


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load(path)
    message = str(error.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert "weights_only" not in message  # torch's advice would open the door
    return message


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.ckpt")
    assert "is no regular file; expected a checkpoint" in refused(tmp_path / "a.ckpt")


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    save(tmp_path / "a.ckpt", content())
    loaded = load(tmp_path / "a.ckpt")
    assert loaded.keys() == content().keys()
    torch.testing.assert_close(loaded["network"], content()["network"], rtol=0, atol=0)
    assert loaded["position"] == {"epoch": 3, "images": 128}
    assert loaded["random"].equal(content()["random"])
    assert [loaded[name] for name in ("accuracy", "best", "name", "nothing")] == [0.5, -1.0, "paper", None]


def test_momentum_of_a_real_optimiser_comes_back(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    save(tmp_path / "a.ckpt", {"network": layer.state_dict(), "optimizer": optimizer.state_dict()})
    other = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.5)
    other.load_state_dict(load(tmp_path / "a.ckpt")["optimizer"])
    assert other.param_groups[0]["lr"] == 0.1
    assert other.state[other.param_groups[0]["params"][1]]["momentum_buffer"].tolist() == [1.0, 1.0]


def test_the_same_content_is_the_same_bytes(tmp_path: Path) -> None:
    save(tmp_path / "a.ckpt", content())
    save(tmp_path / "b.ckpt", content())
    assert (tmp_path / "a.ckpt").read_bytes() == (tmp_path / "b.ckpt").read_bytes()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_leaves_the_checkpoint_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "last.ckpt"
    save(path, {"epoch": 1})

    def fail(self: Path, data: memoryview) -> int:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise error

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(CheckpointError if isinstance(error, OSError) else KeyboardInterrupt) as raised:
        save(path, {"epoch": 2})
    if isinstance(error, OSError):
        assert str(raised.value) == f"{path} cannot be written: No space left on device; nothing was changed"
    assert load(path) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_file_that_the_system_lets_grow_no_further(tmp_path: Path) -> None:
    """As a full disk does it: some of the file is written, then the system refuses."""
    path = tmp_path / "last.ckpt"
    save(path, {"epoch": 1})
    refused = pytest.raises(CheckpointError, match="cannot be written: File too large; nothing was changed")
    with files_up_to(10_000), refused:
        save(path, {"weight": torch.zeros(100_000)})
    assert load(path) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_missing(tmp_path: Path) -> None:
    assert "is not there" in refused(tmp_path / "a.ckpt")


def test_a_folder(tmp_path: Path) -> None:
    assert "cannot be read: Is a directory" in refused(tmp_path)


@pytest.mark.parametrize("data", [b"", b"P", b"hello, world\n" * 100, b"\x89PNG\r\n\x1a\n" + bytes(100)])
def test_not_a_checkpoint(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.ckpt").write_bytes(data)
    assert "is no checkpoint" in refused(tmp_path / "a.ckpt")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.999])
def test_truncated(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.ckpt"
    save(path, content())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "is truncated" in refused(path)


def test_bit_rot(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    save(path, {"weight": torch.full((1000,), 7.0)})
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((10,), 7.0).numpy().tobytes()) + 400] ^= 1
    path.write_bytes(data)
    assert "is corrupt" in refused(path)


@pytest.mark.parametrize("saved_by", ["torch", "legacy torch", "pickle"])
def test_a_malicious_pickle_is_not_run(tmp_path: Path, saved_by: str) -> None:
    path, made = tmp_path / "a.ckpt", tmp_path / "made"
    evil = {"network": Evil(made)}
    if saved_by == "pickle":
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=saved_by == "torch")
    assert "could run code" in refused(path)
    assert not made.exists()
    torch.load(path, weights_only=False) if saved_by == "torch" else pickle.loads(pickle.dumps(evil))
    assert made.exists()  # the weapon was loaded


@pytest.mark.parametrize(
    ("other", "remedy"), [(FORMAT + 1, "update Greyhound"), (FORMAT - 1, "train again into another folder")]
)
def test_another_format(tmp_path: Path, other: int, remedy: str) -> None:
    path = tmp_path / "a.ckpt"
    save(path, {"greyhound_checkpoint": 99, "epoch": 1})
    assert load(path) == {"epoch": 1}  # save alone decides
    torch.save({"greyhound_checkpoint": other}, path)
    assert refused(path).endswith(f"has checkpoint format {other}; expected {FORMAT}; {remedy}")


@pytest.mark.parametrize("other", [{"weight": torch.ones(2)}, [1, 2], torch.ones(3), 5])
def test_another_torch_file(tmp_path: Path, other: Any) -> None:
    torch.save(other, tmp_path / "a.ckpt")
    assert "no Greyhound checkpoint" in refused(tmp_path / "a.ckpt")


def test_the_format_is_in_the_file(tmp_path: Path) -> None:
    save(tmp_path / "a.ckpt", {"epoch": 1})
    raw = torch.load(io.BytesIO((tmp_path / "a.ckpt").read_bytes()), weights_only=True)
    assert raw == {"epoch": 1, "greyhound_checkpoint": FORMAT}


# --- the writer -------------------------------------------------------------------------------------------


def fail() -> None:
    time.sleep(0.05)
    raise OSError("the disk is full")


def test_calls_run_beside_the_caller_in_their_order() -> None:
    done: list[int] = []
    gate = threading.Event()

    def first() -> None:
        gate.wait(10)
        done.append(1)

    with Writer() as write:
        write(first)
        write(done.append, 2)
        assert not done, "the caller goes on while the first one waits"
        gate.set()
    assert done == [1, 2]


def test_waiting_raises_a_failure_and_nothing_is_written_after_it() -> None:
    done: list[int] = []
    with pytest.raises(OSError, match="the disk is full"), Writer() as write:
        write(done.append, 1)
        write(fail)
        write(done.append, 2)
        with pytest.raises(OSError, match="the disk is full"):
            write.wait()
        write(done.append, 3)
    assert done == [1]


def test_leaving_waits_and_raises() -> None:
    with pytest.raises(OSError, match="the disk is full"), Writer() as write:
        write(fail)


def test_an_error_under_way_is_not_hidden_and_the_work_is_done() -> None:
    done: list[int] = []
    writer = Writer()
    with pytest.raises(ValueError, match="diverged"), writer as write:
        write(done.append, 1)
        write(fail)
        raise ValueError("diverged")
    assert done == [1]
    with pytest.raises(OSError, match="the disk is full"):
        writer.wait()
