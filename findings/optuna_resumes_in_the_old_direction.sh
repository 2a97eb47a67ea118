#!/usr/bin/env bash
# Optuna: create_study(direction='maximize', load_if_exists=True) goes on minimising a study that was begun so, silently.
#
# Run to its end on 2026-11-28, Python 3.11, exit 0; the versions are in the output:
#   optuna 5.0.0
#   expected: an error, as the direction asked for is not the study's, or at least a warning
#   asked to maximise: the study's direction is MINIMIZE, with 0 warnings
#   accuracies 0.383 to 0.964; best_value is 0.383
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile optuna==5.0.0
venv/bin/python - <<'END'
import warnings

import optuna
print("optuna", optuna.__version__)
print("expected: an error, as the direction asked for is not the study's, or at least a warning")
optuna.logging.set_verbosity(optuna.logging.WARNING)
storage = "sqlite:///study.db"


def accuracy(trial):
    return trial.suggest_float("rate", 0, 1)


sampler = optuna.samplers.RandomSampler(seed=0)
optuna.create_study(storage=storage, study_name="dogs", sampler=sampler).optimize(accuracy, n_trials=5)  # forgot it
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    mended = optuna.create_study(
        storage=storage, study_name="dogs", direction="maximize", load_if_exists=True, sampler=sampler
    )
    mended.optimize(accuracy, n_trials=5)
values = sorted(trial.value for trial in mended.trials)
print(f"asked to maximise: the study's direction is {mended.direction.name}, with {len(caught)} warnings")
print(f"accuracies {values[0]:.3f} to {values[-1]:.3f}; best_value is {mended.best_value:.3f}")
assert mended.direction.name == "MINIMIZE" and mended.best_value == values[0], "the direction is heeded now"
END
