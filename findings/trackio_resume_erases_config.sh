#!/usr/bin/env bash
# trackio: going on in a run without naming its config again erases the config that it has.
#
# Run to its end on 2026-11-29, Python 3.11, exit 0; the versions are in the output:
#   trackio 0.43.0
#   expected: a run that is resumed keeps what was recorded of it, and adds to it
#   begun: config lr 0.1, batch 32; losses [1.0]
#   resumed without a config: config nothing; losses [1.0, 0.5]
#   resumed with config {"note": "x"}: config note x; losses [1.0, 0.5, 0.25]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile trackio==0.43.0
export TRACKIO_DIR="$work/data" HF_HUB_OFFLINE=1
venv/bin/python - <<'END'
import contextlib
import io
import json
import os
import sqlite3
from importlib.metadata import version

import trackio

print("trackio", version("trackio"))
print("expected: a run that is resumed keeps what was recorded of it, and adds to it")


def go_on(said, loss, **options):
    """One more loss in the run; then what the run's own reader says of it."""
    with contextlib.redirect_stdout(io.StringIO()):
        trackio.init(project="shirts", name="fine", **options)
        trackio.log({"loss": loss})
        trackio.finish()
        (run,) = trackio.Api().runs("shirts")
        config = {key: value for key, value in run.config.items() if not key.startswith("_")}
        with contextlib.closing(sqlite3.connect(f"{os.environ['TRACKIO_DIR']}/shirts.db")) as rows:
            losses = [json.loads(row)["loss"] for (row,) in rows.execute("SELECT metrics FROM metrics ORDER BY step")]
    listed = ", ".join(f"{key} {value}" for key, value in config.items()) or "nothing"
    print(f"{said}: config {listed}; losses {losses}")
    return config, losses


begun = go_on("begun", 1.0, config={"lr": 0.1, "batch": 32})
plain = go_on("resumed without a config", 0.5, resume="must")
other = go_on('resumed with config {"note": "x"}', 0.25, resume="must", config={"note": "x"})
assert begun[0] == {"lr": 0.1, "batch": 32}
assert (plain[0], other[0]) == ({}, {"note": "x"}), "a resumed run keeps its config now"
assert other[1] == [1.0, 0.5, 0.25]
END
