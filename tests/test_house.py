"""The house rules that a reader cannot see at a glance: which room may know which, read from the imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("cache", "pipelines", "model")
SCRIPTS = ("train", "eval", "predict", "serve", "explain", "review", "export", "compare")
OPENINGS = (
    "recipe",
    "session",
    "begin",
    "try_out",
    "divergence",
    "trained",
    "prediction",
    "exported",
    "viewer",
    "several",
    "sweep",
    "folds",
)
"""What scripts share: they stand on the rooms, and know no script."""
FRONT = "api"
"""The front door from Python: it may know everything, and nothing knows it."""
FORBIDDEN = {
    "cache": {"pipelines", "model", *SCRIPTS, *OPENINGS, FRONT},
    "pipelines": {"model", *SCRIPTS, *OPENINGS, FRONT},
    "model": {"cache", "pipelines", *SCRIPTS, *OPENINGS, FRONT},
    **{name: {*SCRIPTS, FRONT} - {name} for name in (*SCRIPTS, *OPENINGS)},
    FRONT: set(),
}
ALLOWED = {"model": {"cache.files", "cache.machine", "cache.errors"}}
"""Modules that a room may know though it may not know their room."""
FOREIGN = {
    "nvidia": {"cache", "pipelines"},
    "cv2": {"cache", "pipelines"},
    "simplejpeg": {"cache", "pipelines"},
    "timm": {"model"},
    "cleanlab": {"review"},
    "optuna": {"sweep"},
    "onnx": {"model", "export"},
    "onnxscript": {"pipelines", "model"},
    "onnxruntime": {"export", "exported"},
    "openvino": {"export"},
    "tensorboard": {"model"},
    "mlflow": {"model"},
    "trackio": {"model"},
    "wandb": {"model"},
}
"""Libraries that only some rooms may know."""


def files() -> Iterator[tuple[str, Path]]:
    """Every module of the product and the room that it is in."""
    for room in ROOMS:
        yield from ((room, path) for path in sorted((ROOT / room).rglob("*.py")))
    yield from ((name, ROOT / f"{name}.py") for name in (*SCRIPTS, *OPENINGS, FRONT))


def imports(tree: ast.AST) -> set[str]:
    """Everything imported, at the top or inside a function, or started as a program; ours without the package's name."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.add("a relative import")
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found |= {str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= started(node.value)
    return {name.removeprefix("greyhound.") for name in found}


def started(text: str) -> set[str]:
    """What a string names as a program to start: `-m module`'s module, or a script of ours by its file name."""
    if re.fullmatch(r"greyhound(\.\w+)+", text):
        return {text}
    return {text.removesuffix(".py")} if text in {f"{name}.py" for name in SCRIPTS} else set()


def first(name: str) -> str:
    return name.split(".")[0]


def may_know(room: str, name: str) -> bool:
    allowed = any(f"{name}.".startswith(f"{module}.") for module in ALLOWED.get(room, ()))
    return allowed or first(name) not in FORBIDDEN[room]


MODULES = [pytest.param(room, path, id=str(path.relative_to(ROOT))) for room, path in files()]


def test_there_is_a_house() -> None:
    assert {room for room, _ in files()} >= set(ROOMS)
    assert {path.stem for path in ROOT.glob("*.py")} - {"__init__", "__main__"} == {
        *SCRIPTS,
        *OPENINGS,
        FRONT,
    }


@pytest.mark.parametrize(("room", "path"), MODULES)
def test_a_module_says_what_it_does_and_no_arrow_runs_back(room: str, path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    known = imports(tree)
    assert "a relative import" not in known
    assert not {name for name in known if not may_know(room, name)}, (
        f"{path.name} of {room} may not know this"
    )
    foreign = FOREIGN.keys() & {first(name) for name in known}
    assert not [name for name in foreign if room not in FOREIGN[name]], "libraries stay in their room"


def test_arrows_are_seen_wherever_they_are() -> None:
    source = """
import a.b
from c.d import e
from greyhound.m import n
from . import f
def g():
    import h
    importlib.import_module('i.j')
    subprocess.run([sys.executable, "-P", "-m", "greyhound.k.l"])
    PROGRAM = Path(__file__).parent / "review.py"
"""
    seen = {"a.b", "c.d.e", "m.n", "h", "i.j", "a relative import", "k.l", "review"}
    assert imports(ast.parse(source)) == seen
    assert not may_know("cache", "pipelines.loader")
    assert not any(may_know(room, "recipe.Recipe") for room in ROOMS)
    assert may_know("model", "cache.files.replacing")
    assert not may_know("model", "cache.store.Pack")


def promised() -> list[str]:
    """What the last column of docs/reliability.md names as a test or a target of make."""
    lines = (ROOT / "docs" / "reliability.md").read_text().splitlines()
    cells = [line.rstrip("| ").rpartition("|")[2] for line in lines if line.startswith("| ")]
    return [name for cell in cells for name in re.findall("`([^`]+)`", cell)]


def test_every_promise_is_proven_by_a_test_that_exists() -> None:
    """A name may leave out its file or its ends, marked by three dots."""
    tests = {path.name: path.read_text() for path in (ROOT / "tests").glob("test_*.py")}
    everywhere = "\n".join(tests.values())
    targets = (ROOT / "Makefile").read_text()
    assert len(promised()) > 40
    for name in promised():
        file, _, function = (name, "", "") if name.endswith(".py") else name.rpartition("::")
        pattern = re.escape(function).replace(re.escape("..."), r"\w*")
        if name.startswith("make "):
            assert f"\n{name.removeprefix('make ')}:" in targets, name
        else:
            source = everywhere if file in ("", "...") else tests[file]
            assert not function or re.search(rf"^def {pattern}\(", source, re.MULTILINE), name


ABSENT = {
    "cache": ("torch", "numpy", "greyhound.api"),
    "cache.show": ("PIL", "greyhound.cache.selection", "greyhound.cache.survey.table"),
    "cache.pack cache.store cache.cli": ("torch", "cv2", "nvidia.dali", "greyhound.pipelines"),
    "cache.__main__": ("torch",),
    "predict exported": ("torch", "greyhound.api", "pyarrow.parquet"),
    "pipelines.loader": ("nvidia.dali", "timm", "greyhound.model"),
    "eval": ("nvidia.dali", "timm", "matplotlib", "pandas"),
    # A slip on the command line is answered in seconds: timm brings torchvision, that half of torch's compiler.
    "train eval explain review export predict serve compare": (
        "nvidia.dali",
        "timm",
        "torchvision",
        "torch._dynamo",
        "onnx",
        "tensorboard",
        "mlflow",
        "trackio",
        "wandb",
    ),
}
"""Modules in the order in which one process imports them, and what must not be there after them."""
IMPORTING = """
import importlib, sys
for modules, absent in {absent!r}.items():
    for name in modules.split():
        importlib.import_module("greyhound." + name)
    print([name for name in absent if name in sys.modules])
"""


def test_an_import_brings_no_more_than_it_needs() -> None:
    command = [sys.executable, "-c", IMPORTING.format(absent=ABSENT)]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (answer.stdout, answer.stderr) == ("[]\n" * len(ABSENT), "")
