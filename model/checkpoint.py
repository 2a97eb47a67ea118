"""Checkpoints: saved whole or not at all, beside the training; loaded without running what is in them.

Before it: train has a network's state. After it: a resumed training, eval and explain.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, ParamSpec

import torch

from greyhound.cache.errors import UserError
from greyhound.cache.files import replacing

P = ParamSpec("P")

FORMAT: Final = 3
"""Version of the layout; another one is refused."""
_KEY: Final = "greyhound_checkpoint"
_ZIP: Final = b"PK\x03\x04"
_ZIP_END: Final = b"PK\x05\x06"
_ZIP_END_BYTES: Final = 22  # of the record that begins so and ends the file
_PICKLE: Final = b"\x80"


class CheckpointError(UserError):
    """The file is not the checkpoint that was expected; the message is one line for the user."""


class CorruptCheckpointError(CheckpointError):
    """The file was one, perhaps, and its bytes have changed."""


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values to `path`, whole or not at all; what was there before stays until then.

    Raises CheckpointError if the file cannot be written.
    """
    data = io.BytesIO()  # torch reports a full disk as RuntimeError, a plain file as what it is
    torch.save({**content, _KEY: FORMAT}, data)
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(data.getbuffer())
    except OSError as error:
        why = error.strerror or error
        raise CheckpointError(f"{path} cannot be written: {why}; nothing was changed") from None


def rotate(path: Path, keep: int) -> None:
    """Before `path` is written again, make last.1.ckpt of last.ckpt, and so on, up to `keep` in all.

    `path` itself stays where it is until its successor is whole. Raises CheckpointError.
    """
    try:
        for age in range(keep - 1, 1, -1):
            if numbered(path, age - 1).exists():
                numbered(path, age - 1).replace(numbered(path, age))
        if keep > 1 and path.exists():
            _link(path, numbered(path, 1))
    except OSError as error:
        remedy = "make room, or keep fewer: --checkpoints.keep 1"
        raise CheckpointError(f"{path} cannot be kept: {error.strerror or error}; {remedy}") from None


def numbered(path: Path, age: int) -> Path:
    """Where the checkpoint lies that was at `path` so many checkpoints ago: last.ckpt, last.1.ckpt, ..."""
    return path.with_name(f"{path.stem}.{age}{path.suffix}") if age else path


def kept(path: Path) -> list[Path]:
    """The checkpoints that are there, the newest first. A kill may leave a gap in the numbers."""
    files = path.parent.glob(f"{path.stem}.[1-9]*{path.suffix}")
    numbers = [file.stem.removeprefix(f"{path.stem}.") for file in files]
    ages = ([0] if path.exists() else []) + sorted(int(number) for number in numbers if number.isdecimal())
    return [numbered(path, age) for age in ages]


def _link(path: Path, other: Path) -> None:
    """A second name for the file, which costs no space; where the file system has none, a copy."""
    with replacing(other) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:
            shutil.copyfile(path, temporary)


def to_cpu(content: Any) -> Any:
    """A copy of what `save` takes, its tensors in host memory: it stays whatever happens to the original."""
    if isinstance(content, torch.Tensor):
        return content.detach().to("cpu", copy=True)
    if isinstance(content, Mapping):
        return {key: to_cpu(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(to_cpu(value) for value in content)
    return content


def fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """sha256 over the names and values of a state dict, in hexadecimal: equal for equal bits."""
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_id(path: Path) -> str:
    """Equal for checkpoints of one kind with equal tensors; read from the archive's index alone.

    Empty where there is no such file, or it is none that can be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            tensors = [each for each in archive.infolist() if "/data/" in each.filename]
    except (OSError, zipfile.BadZipFile):
        return ""
    sums = [(each.filename.rpartition("/data/")[2], each.CRC, each.file_size) for each in tensors]
    return hashlib.sha256(repr(sorted(sums)).encode()).hexdigest()[:16]


def load(path: Path) -> dict[str, Any]:
    """What `save` was given, its tensors on the CPU. Nothing in the file is run. Raises CheckpointError."""
    content = check_format(path, read(path))
    del content[_KEY]
    return content


def read(path: Path) -> Any:
    """Tensors and plain values that torch saved at `path`, whoever did. Raises CheckpointError."""
    try:
        if not (path.is_file() or path.is_dir()) and path.exists():  # to open a pipe would wait for ever
            raise CheckpointError(f"{path} cannot be read: it is no regular file; expected a checkpoint")
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not there; expected a checkpoint as train writes it") from None
    except OSError as error:
        why = error.strerror or error
        raise CheckpointError(f"{path} cannot be read: {why}; expected a checkpoint") from None
    try:
        _check_sums(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of foreign pickles; what matters raises as well
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch promises none in particular, and says much that would mislead here
        raise CorruptCheckpointError(f"{path} {_reason(data, error)}") from None


def check_format(path: Path, content: Any) -> dict[str, Any]:
    """The content, if it is a Greyhound checkpoint of this version's format. Raises CheckpointError."""
    if not isinstance(content, dict) or not isinstance(content.get(_KEY), int):
        found = f"{path} is a torch file but no Greyhound checkpoint"
        raise CheckpointError(f"{found}; expected one as train writes it")
    if content[_KEY] != FORMAT:
        remedy = "update Greyhound" if content[_KEY] > FORMAT else "train again into another folder"
        raise CheckpointError(f"{path} has checkpoint format {content[_KEY]}; expected {FORMAT}; {remedy}")
    return content


def _check_sums(data: bytes) -> None:
    """Find bit rot, which torch loads without a word. Raises BadZipFile."""
    if data.startswith(_ZIP):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if archive.testzip() is not None:
                raise zipfile.BadZipFile


def _reason(data: bytes, error: Exception) -> str:
    """What is wrong with a file that torch refused, from its bytes and the error."""
    if data.startswith(_ZIP) and _ZIP_END not in data[: 4 - _ZIP_END_BYTES]:
        return "is truncated; copy it again, or use another checkpoint"
    if data.startswith((_ZIP, _PICKLE)) and isinstance(error, pickle.UnpicklingError):
        return "holds more than tensors and plain values, which could run code; it was not opened"
    if data.startswith(_ZIP):
        return "is corrupt; copy it again, or use another checkpoint"
    return "is no checkpoint, or a corrupt one; expected one as train writes it"


class Writer:
    """Calls functions one after the other in a thread of its own; leaving the `with` waits for the last.

    After one has failed no later one is called: what a file says of the ones before it stays true.
    """

    def __init__(self) -> None:
        """Nothing is under way."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._last: Future[None] | None = None

    def __call__(self, work: Callable[P, None], *arguments: P.args, **named: P.kwargs) -> None:
        """Do this next."""
        before = self._last

        def go() -> None:
            if before is not None:
                before.result()  # raises what failed before
            work(*arguments, **named)

        self._last = self._pool.submit(go)

    def wait(self) -> None:
        """Until all of it is done. Raises what the first one to fail raised."""
        if self._last is not None:
            self._last.result()

    def __enter__(self) -> Writer:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for all; raise what one of them raised, unless another error is on its way."""
        self._pool.shutdown()
        if kind is None:
            self.wait()
