"""The wheel: what is in it, and that it works in a folder whose own modules have the names of our rooms."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
MODULES = {path.stem for path in ROOT.glob("*.py")} - {"__init__", "__main__"}
NEIGHBOURS = [*sorted(MODULES), "model", "pipelines"]
"""A user's own modules beside his images; `cache` is a package of his."""
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
SPY = "open({log!r}, 'a').write(__name__ + ' ')\nraise RuntimeError(__name__ + ' is not for import')\n"
TRAINING = """
import runpy, sys
import greyhound
print(greyhound.__file__)
for words in {commands!r}:
    sys.argv = ["greyhound", *words.split()]
    try:
        runpy.run_module("greyhound", run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        print("exit", words.split()[0], leaving.code or 0)
"""
"""Several commands in one process, since each import of torch takes seconds; here the folder itself is on sys.path."""
COMMANDS = (
    "pack images --out dogs.arrow",
    "info dogs.arrow",
    "verify dogs.arrow",
    "train demo --pack dogs.arrow --out run --size 32 --network test_efficientnet --weights none --epochs 1"
    " --batch-size 8 --no-linear-probe --averaging.steps 0 --device cpu --threads 1",
    "eval --run run --crops 1 --device cpu --threads 1",
    "predict --run run images --device cpu --threads 1 --out predictions.jsonl",
    "explain --run run --count 2 --device cpu --threads 1",
)


@dataclass(frozen=True)
class Installed:
    """A fresh environment with the wheel, and a folder of somebody's own modules. log: names of those that were imported."""

    wheel: Path
    environment: Path
    folder: Path
    log: Path

    def start(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in the folder, with nothing but its own path to find modules by."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [str(self.environment / "bin" / program), *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=clean, capture_output=True, text=True, timeout=300
        )


def has_setuptools() -> bool:
    """Whether this environment has what pyproject.toml names for a build."""
    try:
        return int(metadata.version("setuptools").partition(".")[0]) >= 77
    except metadata.PackageNotFoundError:
        return False


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a copy of the checkout, for a build writes beside its source; a stray environment and findings are in it."""
    folder = tmp_path_factory.mktemp("wheel")
    skipped = (".venv", ".git", "build", "*.egg-info", "__pycache__", ".*_cache", "demo.*", "runs", ".ci")
    source = Path(copytree(ROOT, folder / "source", ignore=ignore_patterns(*skipped), symlinks=True))
    for stray in (".venv/lib/stray", "findings/stray"):
        (source / stray).mkdir(parents=True, exist_ok=True)
        (source / stray / "__init__.py").write_text("")
    isolation = ["--no-build-isolation"] if has_setuptools() else []
    command = [*PIP, "wheel", "--quiet", "--no-deps", *isolation, f"--wheel-dir={folder}", str(source)]
    subprocess.run(command, check=True, timeout=300)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("install")
    environment, here, log = folder / "environment", folder / "project", folder / "imported"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=100)
    into = [f"--python={environment / 'bin' / 'python'}", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*PIP, *into, "--no-compile", str(wheel)], check=True, timeout=100)
    (packages,) = environment.glob("lib/python*/site-packages")
    # the dependencies: a .pth file in a folder that a .pth file names is not read, so no editable install is found
    dependencies = [path for path in sys.path if path.endswith("-packages")]
    (packages / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    (here / "cache").mkdir(parents=True)
    for name in ("cache/__init__", *NEIGHBOURS):
        (here / f"{name}.py").write_text(SPY.format(log=str(log)))
    return Installed(wheel, environment, here, log)


def test_the_wheel_holds_one_package_and_all_of_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    ours = {name for name in names if name.startswith("greyhound/")}
    (other,) = {name.partition("/")[0] for name in names - ours}
    assert other.endswith(".dist-info")
    rooms = {name.split("/")[1] for name in ours if name.count("/") > 1}
    assert rooms == {"cache", "model", "pipelines"}  # neither tests nor docs, findings or .venv
    tree = [
        path for room in rooms for end in ("py", "js", "jinja") for path in (ROOT / room).rglob(f"*.{end}")
    ]
    tree += [*ROOT.glob("*.py"), *ROOT.glob("*.jinja"), ROOT / "py.typed"]
    assert ours == {f"greyhound/{path.relative_to(ROOT)}" for path in tree}
    assert any(name.endswith(".js") for name in ours)
    assert sum(name.endswith(".jinja") for name in ours) == 7


def test_the_whole_flow_beside_modules_of_the_same_names(installed: Installed) -> None:
    answer = installed.start("greyhound", *["demo", "images", "--classes", "4", "--per-class", "12"])
    assert answer.returncode == 0, answer.stderr
    answer = installed.start("python", "-c", TRAINING.format(commands=COMMANDS))
    where, *lines = answer.stdout.splitlines()
    assert Path(where).is_relative_to(installed.environment), answer.stderr
    exits = [line for line in lines if line.startswith("exit ")]
    assert exits == [f"exit {line.split()[0]} 0" for line in COMMANDS], answer.stdout + answer.stderr
    answer = installed.start("python", "-m", "greyhound", "survey", "images", "--out", "survey")
    assert answer.returncode == 0, answer.stderr
    for made in ("run/report.html", "run/eval.json", "run/saliency.png", "survey/survey.html"):
        assert (installed.folder / made).stat().st_size, made
    assert not installed.log.exists(), installed.log.read_text()
