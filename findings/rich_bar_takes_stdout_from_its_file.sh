#!/usr/bin/env bash
# rich: under a progress bar on standard error, what is printed to a redirected standard output does not arrive there.
#
# Run to its end on 2026-11-29, Python 3.11, exit 0; the versions are in the output:
#   rich 15.0.0
#   expected: a bar on standard error leaves standard output, a file, alone: 3 rows in it
#   Progress(console=Console(stderr=True)): 0 rows in the file, 3 on the terminal; exit code 0
#   with redirect_stdout=False: 3 rows in the file, 0 on the terminal
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile rich==15.0.0
cat > rows.py <<'END'
import sys

from rich.console import Console
from rich.progress import Progress

options = {"redirect_stdout": False} if "no-redirect" in sys.argv else {}
with Progress(console=Console(stderr=True), transient=True, **options) as bar:
    task = bar.add_task("predicting", total=3)
    for row in range(3):
        print(f"row {row}")
        bar.advance(task)
END
venv/bin/python - <<'END'
import os
import pty
import subprocess
import sys
from importlib.metadata import version

print("rich", version("rich"))
print("expected: a bar on standard error leaves standard output, a file, alone: 3 rows in it")


def rows(*arguments):
    """Standard error on a terminal, standard output into a file, as in `program > rows.csv`."""
    ours, theirs = pty.openpty()
    with open("rows.csv", "wb") as file:
        subprocess.run([sys.executable, "rows.py", *arguments], stdout=file, stderr=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    with open("rows.csv") as file:
        return len(file.readlines()), shown.count("row ")


default, plain = rows(), rows("no-redirect")
print(f"Progress(console=Console(stderr=True)): {default[0]} rows in the file, {default[1]} on the terminal; exit code 0")
print(f"with redirect_stdout=False: {plain[0]} rows in the file, {plain[1]} on the terminal")
assert default == (0, 3), "rich leaves a redirected standard output alone now"
assert plain == (3, 0)
END
