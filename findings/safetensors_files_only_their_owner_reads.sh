#!/usr/bin/env bash
# safetensors: save_file writes a file that only its owner can read, whatever the umask says.
#
# Run to its end on 2026-11-29, Python 3.11, exit 0; the versions are in the output:
#   safetensors 0.8.0
#   expected: under umask 022 a new file is readable by all (rw-r--r--), as from open() and numpy.save
#   save_file.safetensors: -rw-------
#   save.safetensors: -rw-r--r--
#   numpy.npy: -rw-r--r--
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile safetensors==0.8.0 numpy==2.4.6
venv/bin/python - <<'END'
import os
import stat
from importlib.metadata import version
from pathlib import Path

import numpy
from safetensors.numpy import save, save_file

print("safetensors", version("safetensors"))
print("expected: under umask 022 a new file is readable by all (rw-r--r--), as from open() and numpy.save")
os.umask(0o022)
weights = {"weight": numpy.zeros(4, numpy.float32)}
save_file(weights, "save_file.safetensors")
Path("save.safetensors").write_bytes(save(weights))
numpy.save("numpy.npy", weights["weight"])
modes = {name: stat.filemode(Path(name).stat().st_mode) for name in ("save_file.safetensors", "save.safetensors", "numpy.npy")}
for name, mode in modes.items():
    print(f"{name}: {mode}")
assert modes.pop("save_file.safetensors") == "-rw-------", "save_file heeds the umask now"
assert set(modes.values()) == {"-rw-r--r--"}
END
