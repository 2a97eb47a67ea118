"""Fixtures that many tests share: photographs where they exist, and small packs made once."""

from __future__ import annotations

import fcntl
import gc
import os
import runpy
import shutil
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as train.py does, before torch starts OpenMP

import pytest
from pictures import Drawn, coded, draw, encode, folder, packed, scan_here
from runs import NAMES, Answer, Capture, Here, Patch, never, tinted, tiny_job, tiny_pack

from greyhound import train
from greyhound.cache.cli import ENDINGS
from greyhound.cache.store import Pack

ROOT = Path(__file__).parents[1]


@contextmanager
def _in_turn(alone: bool) -> Iterator[None]:
    """Among pytest-xdist's workers: let a test that times something have the machine for itself.

    Byte 1 of a file is the machine, shared or not; byte 0 is the door, at which nobody overtakes. Children do not
    inherit locks of this kind.
    """
    place = ROOT / ".pytest_cache" / "turn"
    place.parent.mkdir(exist_ok=True)
    with place.open("a+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 1, 0)
        fcntl.lockf(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH, 1, 1)
        fcntl.lockf(file, fcntl.LOCK_UN, 1, 0)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test takes its turn, where there are others."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    with _in_turn(item.get_closest_marker("alone") is not None):
        return (yield)


def pytest_itemcollected(item: pytest.Item) -> None:
    """What works in a browser is marked so."""
    if "chromium" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.browser)


def pytest_runtest_setup() -> None:
    """Heed every signal, whatever a shell, nohup or an earlier test had ignored: tests send them."""
    for number in ENDINGS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_runtest_teardown() -> None:
    """Collect garbage again: a program that a test ran in this process does not, while it imports."""
    gc.enable()
    gc.unfreeze()


def pytest_runtest_call() -> None:
    """Again, for fixtures of a whole module run programs too."""
    pytest_runtest_setup()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """REQUIRE_GPU=1, which `make gpu-check` sets: a test for the GPU that is skipped has failed."""
    report = yield
    if os.environ.get("REQUIRE_GPU") == "1" and item.get_closest_marker("gpu") and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"REQUIRE_GPU=1, and this was skipped: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def photos() -> Path:
    """200 photographs at their own size, about 500 x 375."""
    found = ROOT.parent / "shared" / "data" / "photos"
    if not found.is_dir():
        pytest.skip(f"needs {found}, which is no part of the product")
    return found


@pytest.fixture(scope="session")
def coded_pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """20 coordinate-coded images in two classes, all sizes differ; blue is the row, label is row >= 9."""
    sizes = [(70 + 3 * row, 91 - 2 * row) for row in range(20)]
    images = [encode(coded(*size, row), "PNG" if row % 2 else "JPEG") for row, size in enumerate(sizes)]
    return packed(tmp_path_factory.mktemp("coded"), {"first": images[:9], "second": images[9:]})


@pytest.fixture(scope="session")
def colour_pack(tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """60 images whose class their colour tells, with all three splits."""
    return tiny_pack(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """150 drawn dogs of six breeds, with every fault."""
    return draw(tmp_path_factory.mktemp("demo") / "new" / "dogs", 6, 25)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, colour_pack: Pack) -> Path:
    """The run folder of a complete tiny training. Read it; a test that writes copies it first."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    train.train(tiny_job(colour_pack.path, out), never)
    return out


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run, to write into."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture
def scan_in_process(monkeypatch: Patch) -> None:
    """Files are scanned in this process: the children have a test file of their own."""
    for module in ("cache.pack", "cache.survey.findings", "eval", "trained", "exported"):
        monkeypatch.setattr(f"greyhound.{module}.scan", scan_here)


@pytest.fixture
def images(tmp_path: Path, scan_in_process: None) -> Path:
    """Six pictures in the classes of the tiny run, in `images`, looked at in the test's own process."""
    names = [(f"{name}/{n}.jpg", k, n) for k, name in enumerate(NAMES) for n in (0, 1)]
    return folder(tmp_path / "images", {name: tinted(2 - k, 9 * k + n) for name, k, n in names})


@pytest.fixture
def root(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The files of the test module's DATA, path -> bytes, in `images`."""
    return folder(tmp_path / "images", request.module.DATA)


@pytest.fixture
def ordinary() -> Iterator[None]:
    """The test heeds the modes of files, also as root."""
    from limits import ordinary_user  # which not every system can do

    with ordinary_user():
        yield


@pytest.fixture
def here(monkeypatch: Patch, capfd: Capture, tmp_path: Path) -> Here:
    """Starts a program as its command line does, in `tmp_path` but in this process: imports take long."""
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in ENDINGS}

    def start(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", list(arguments))
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as leaving:
                runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return Answer(int(str(leaving.value.code)), *capfd.readouterr())

    return start
