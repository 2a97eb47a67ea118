"""__main__.py: the one command, and that its help and a slip are answered before anything slow is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from greyhound import __main__ as command

# A recipe holds an Augment, beside which its arithmetic lies: train alone needs numpy, the first of these.
SLOW = ("numpy", "torch", "PIL", "pyarrow", "pydantic", "rich", "matplotlib", "cv2", "multiprocessing")
WATCHED = """
import runpy, sys
sys.argv = ["greyhound", *sys.argv[1:]]
try:
    runpy.run_module("greyhound", run_name="__main__", alter_sys=True)
finally:
    print("imported:", [name for name in {slow!r} if name in sys.modules])
"""


def answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["greyhound", *words])
    with pytest.raises(SystemExit) as leaving:
        command.main()
    return int(str(leaving.value.code)), *capsys.readouterr()


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_has_a_line_for_each_command(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = answer(monkeypatch, capsys, *words)
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines() if line.startswith("  ")] == list(command.PROGRAMS)
    assert max(map(len, out.splitlines())) <= 100


def test_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(monkeypatch, capsys, "--version") == (0, "greyhound 0.1.0\n", "")


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("trian", "error: there is no command 'trian'; did you mean train?\n"),
        ("Pack", "error: there is no command 'Pack'; did you mean pack?\n"),
        ("zzz", f"error: there is no command 'zzz'; expected one of {', '.join(command.PROGRAMS)}\n"),
        ("", f"error: there is no command ''; expected one of {', '.join(command.PROGRAMS)}\n"),
        ("--out", f"error: there is no command '--out'; expected one of {', '.join(command.PROGRAMS)}\n"),
    ],
)
def test_an_unknown_command_is_one_line(
    word: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(monkeypatch, capsys, word) == (2, "", says)


@pytest.mark.parametrize("name", command.PROGRAMS)
@pytest.mark.parametrize("word", ["--help", "--nope"])
def test_help_and_a_slip_import_nothing_slow(name: str, word: str) -> None:
    first = ["fast"] * (name == "train") + ["x"] * (name in command.CACHE)
    code = WATCHED.format(slow=SLOW[name == "train" :])
    found = subprocess.run(
        [sys.executable, "-c", code, name, *first, word],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    *shown, imported = found.stdout.splitlines()
    assert imported == "imported: []"
    if word == "--help":
        assert (found.returncode, found.stderr) == (0, "")
        assert shown[0].startswith(f"usage: greyhound {name} ")
        assert max(map(len, shown)) <= 100
    else:
        assert (found.returncode, shown) == (2, [])
        assert found.stderr.startswith("error: there is no flag --nope; ")
        assert found.stderr.count("\n") == 1
