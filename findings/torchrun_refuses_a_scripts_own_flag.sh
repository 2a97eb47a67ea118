#!/usr/bin/env bash
# torchrun: a flag that belongs to the script ends the start, where two flags of torchrun begin with its letters.
#
# Run to its end on 2026-11-29, Python 3.11, exit 0; the versions are in the output:
#   torch 2.14.1
#   expected: what stands behind the script's name is the script's, so that each line below says: got --FLAG 1
#   got --lr 1
#   torchrun: error: ambiguous option: --run could match --run-path, --run_path
#   torchrun: error: ambiguous option: --log could match --log-dir, --log_dir, --log-line-prefix-template, --log_line_prefix_template, --logs-specs, --logs_specs
#   torchrun: error: ambiguous option: --max could match --max-restarts, --max_restarts
#   torchrun: error: ambiguous option: --node could match --node-rank, --node_rank
#   with -- before the script: got --run 1
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile torch==2.14.1
cat > script.py <<'END'
import sys

print("got", *sys.argv[1:])
END
venv/bin/python - <<'END'
import subprocess
from importlib.metadata import version

print("torch", version("torch"))
print("expected: what stands behind the script's name is the script's, so that each line below says: got --FLAG 1")


def start(*words):
    done = subprocess.run(["venv/bin/torchrun", "--nproc-per-node", "1", *words], capture_output=True, text=True)
    lines = [*done.stdout.splitlines(), *(line for line in done.stderr.splitlines() if "error:" in line)]
    return lines[-1]


found = {flag: start("script.py", flag, "1") for flag in ("--lr", "--run", "--log", "--max", "--node")}
for line in found.values():
    print(line)
behind = start("--", "script.py", "--run", "1")
print(f"with -- before the script: {behind}")
assert found.pop("--lr") == "got --lr 1"
assert all("ambiguous option" in line for line in found.values()), "torchrun hands such flags on now"
assert behind == "got --run 1"
END
