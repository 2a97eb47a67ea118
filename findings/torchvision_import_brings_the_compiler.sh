#!/usr/bin/env bash
# torchvision: importing it imports torch's compiler and sympy, which importing torch carefully leaves for later.
#
# Run to its end on 2026-11-29, Python 3.11, exit 0; the versions are in the output:
#   torch 2.14.1 torchvision 0.29.1
#   expected: a program that compiles nothing does not load the compiler
#   import torch        torch._dynamo: not loaded, modules of sympy: 0
#   import torchvision  torch._dynamo: loaded, modules of sympy: hundreds
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile torch==2.14.1 torchvision==0.29.1
venv/bin/python - <<'END'
import subprocess
import sys
from importlib.metadata import version

print("torch", version("torch").partition("+")[0], "torchvision", version("torchvision").partition("+")[0])
print("expected: a program that compiles nothing does not load the compiler")
found = {}
for name in ("torch", "torchvision"):
    count = "print([sum(name.partition('.')[0] == 'sympy' for name in sys.modules), 'torch._dynamo' in sys.modules])"
    program = f"import sys, {name}\n{count}"
    modules, compiler = eval(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout)
    found[name] = (modules > 0, compiler)
    print(f"import {name:12} torch._dynamo: {'loaded' if compiler else 'not loaded'}, modules of sympy: {'hundreds' if modules > 99 else modules}")
assert found == {"torch": (False, False), "torchvision": (True, True)}, "both load alike now"
END
