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
from runs import Patch

from greyhound.model.checkpoint import FORMAT, CheckpointError, Writer, load, save


class Evil:
    """Unpickled by the book, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.ckpt"


def content() -> dict[str, Any]:
    weight = torch.arange(6.0).reshape(2, 3)
    return {
        "network": {"weight": weight, "count": torch.tensor(7)},
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


def torch_file(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


SEVEN = torch.tensor(7.0).numpy().tobytes()
WHOLE = torch_file({"weight": torch.full((1000,), 7.0), "greyhound_checkpoint": FORMAT})
ROTTEN = WHOLE.replace(SEVEN * 10, SEVEN * 9 + b"\x01" + SEVEN[1:], 1)
FOREIGN = [b"", b"P", b"hello, world\n" * 100, b"\x89PNG\r\n\x1a\n" + bytes(100)]
OTHERS = [{"weight": torch.ones(2)}, [1, 2], torch.ones(3), 5]
NEWER, OLDER = (torch_file({"greyhound_checkpoint": FORMAT + step}) for step in (1, -1))
REFUSED = [
    (NEWER, f"has checkpoint format {FORMAT + 1}; expected {FORMAT}; update Greyhound"),
    (OLDER, f"has checkpoint format {FORMAT - 1}; expected {FORMAT}; train again into another folder"),
    (ROTTEN, "is corrupt"),
]
REFUSED += [(WHOLE[: int(len(WHOLE) * share)], "is truncated") for share in (0.01, 0.5, 0.9, 0.999)]
REFUSED += [(torch_file(other), "no Greyhound checkpoint") for other in OTHERS]


@pytest.mark.parametrize(("data", "says"), [*REFUSED, *((data, "is no checkpoint") for data in FOREIGN)])
def test_another_file_is_refused_in_one_line(path: Path, data: bytes, says: str) -> None:
    path.write_bytes(data)
    assert says in refused(path)


def test_what_is_no_file_is_refused_and_a_pipe_is_not_waited_for(path: Path) -> None:
    assert "is not there" in refused(path)
    assert "cannot be read: Is a directory" in refused(path.parent)
    os.mkfifo(path)
    assert "is no regular file; expected a checkpoint" in refused(path)


def test_what_was_saved_is_loaded(path: Path) -> None:
    save(path, content())
    loaded = load(path)
    assert loaded.keys() == content().keys()
    torch.testing.assert_close(loaded["network"], content()["network"], rtol=0, atol=0)
    assert loaded["position"] == {"epoch": 3, "images": 128}
    assert loaded["random"].equal(content()["random"])
    assert [loaded[name] for name in ("accuracy", "best", "name", "nothing")] == [0.5, -1.0, "paper", None]


def test_momentum_of_a_real_optimiser_comes_back(path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    save(path, {"network": layer.state_dict(), "optimizer": optimizer.state_dict()})
    other = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.5)
    other.load_state_dict(load(path)["optimizer"])
    assert other.param_groups[0]["lr"] == 0.1
    assert other.state[other.param_groups[0]["params"][1]]["momentum_buffer"].tolist() == [1.0, 1.0]


def test_the_same_content_is_the_same_bytes(path: Path) -> None:
    save(path, content())
    first = path.read_bytes()
    save(path, content())
    assert path.read_bytes() == first


NO_ROOM = OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("error", "says"),
    [(NO_ROOM, "No space left on device"), (KeyboardInterrupt(), ""), (None, "File too large")],
)
def test_a_failed_save_leaves_the_checkpoint_before_it(
    path: Path, monkeypatch: Patch, error: BaseException | None, says: str
) -> None:
    """Where there is no error of ours, the system writes a part and refuses the rest, as on a full disk."""
    save(path, {"epoch": 1})

    def fail(self: Path, data: memoryview) -> int:
        with self.open("wb") as file:
            file.write(data[:100])
        raise error or AssertionError

    if error:
        monkeypatch.setattr(Path, "write_bytes", fail)
    with files_up_to(10_000), pytest.raises((CheckpointError, KeyboardInterrupt)) as raised:
        save(path, {"epoch": 2, "weight": torch.zeros(100_000)})
    assert str(raised.value) == (says and f"{path} cannot be written: {says}; nothing was changed")
    assert load(path) == {"epoch": 1}
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("saved_by", ["torch", "legacy torch", "pickle"])
def test_a_malicious_pickle_is_not_run(path: Path, saved_by: str) -> None:
    made = path.parent / "made"
    evil = {"network": Evil(made)}
    if saved_by == "pickle":
        path.write_bytes(pickle.dumps(evil))
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=saved_by == "torch")
    assert "could run code" in refused(path)
    assert not made.exists()
    torch.load(path, weights_only=False) if saved_by == "torch" else pickle.loads(pickle.dumps(evil))
    assert made.exists()  # the weapon was loaded


def test_the_format_is_in_the_file(path: Path) -> None:
    """Save alone decides which it is."""
    save(path, {"greyhound_checkpoint": 99, "epoch": 1})
    assert load(path) == {"epoch": 1}
    raw = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
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
