#!/usr/bin/env bash
# pyarrow: one scalar, one short list made a column, or a column read as numpy imports all of pandas where it is installed.
#
# Run to its end on 2026-11-29, Python 3.11, exit 0; the versions are in the output:
#   pyarrow 26.0.1 pandas 3.1.1
#   expected: pandas stays out of a program that hands over no object of pandas
#   import pyarrow                 modules of pandas: none
#   pa.scalar(1)                   modules of pandas: over 100
#   pa.array([1, 2], pa.int32())   modules of pandas: over 100
#   the same, from_pandas=False    modules of pandas: over 100
#   pa.array of a numpy array      modules of pandas: over 100
#   to_numpy of a column           modules of pandas: over 100
#   to_pylist of a column          modules of pandas: none
#   Array.from_buffers             modules of pandas: none
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile numpy==2.4.6 pandas==3.1.1 pyarrow==26.0.1
venv/bin/python - <<'END'
import subprocess
import sys
from importlib.metadata import version

print("pyarrow", version("pyarrow"), "pandas", version("pandas"))
print("expected: pandas stays out of a program that hands over no object of pandas")
WAYS = {
    "import pyarrow": "",
    "pa.scalar(1)": "pa.scalar(1)",
    "pa.array([1, 2], pa.int32())": "pa.array([1, 2], pa.int32())",
    "the same, from_pandas=False": "pa.array([1, 2], pa.int32(), from_pandas=False)",
    "pa.array of a numpy array": "pa.array(np.arange(2))",
    "to_numpy of a column": "Column.to_numpy()",
    "to_pylist of a column": "Column.to_pylist()",
    "Array.from_buffers": "",
}
found = {}
for name, call in WAYS.items():
    program = (
        "import sys, numpy as np, pyarrow as pa\n"
        "Column = pa.Array.from_buffers(pa.int32(), 2, [None, pa.py_buffer(np.arange(2, dtype=np.int32))])\n"
        f"{call}\n"
        "print(len([name for name in sys.modules if name.split('.')[0] == 'pandas']))"
    )
    found[name] = int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout)
    print(f"{name:30} modules of pandas: {'none' if not found[name] else 'over 100' if found[name] > 100 else 'some'}")
loading = [name for name, modules in found.items() if modules > 100]
assert loading == [*WAYS][1:6], "pandas stays out of more of them now, or of fewer"
END
