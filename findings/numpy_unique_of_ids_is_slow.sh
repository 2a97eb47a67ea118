#!/usr/bin/env bash
# NumPy: unique() of ids that all differ takes more than ten times as long as sorting them and comparing neighbours.
#
# Run to its end on 2026-11-29, Python 3.11, exit 0; the versions are in the output:
#   numpy 2.4.6
#   expected: unique(ids) takes about as long as a sort, which is how it was done for twenty years
#   2,000,000 ids, all different: unique / sort = 18.6, unique(return_index=True) / sort = 2.1
#   2,000,000 labels of 100 classes: unique / sort = 0.5, unique(return_index=True) / sort = 2.5
#   without return_index, unique fills a hash table; with it, it sorts, and is faster though it does more
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile numpy==2.4.6
venv/bin/python - <<'END'
import time

import numpy as np

print("numpy", np.__version__)
print("expected: unique(ids) takes about as long as a sort, which is how it was done for twenty years")


def seconds(work):
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        result = work()
        best = min(best, time.process_time() - start)
    return best, result


def by_sorting(ids):
    ids = np.sort(ids)
    return ids[np.concatenate([[True], ids[1:] != ids[:-1]])]


generator = np.random.default_rng(0)
ids = generator.permutation(2_000_000)
few = generator.integers(0, 100, 2_000_000)
for name, values in {"2,000,000 ids, all different": ids, "2,000,000 labels of 100 classes": few}.items():
    hashed, found = seconds(lambda: np.unique(values))
    indexed, _ = seconds(lambda: np.unique(values, return_index=True))
    sort, wanted = seconds(lambda: by_sorting(values))
    assert np.array_equal(found, wanted)
    print(f"{name}: unique / sort = {hashed / sort:.1f}, unique(return_index=True) / sort = {indexed / sort:.1f}")
    if values is ids:
        slow = hashed / sort, hashed / indexed
print("without return_index, unique fills a hash table; with it, it sorts, and is faster though it does more")
assert slow[0] > 4 and slow[1] > 2, "unique of different ids is as fast as a sort now"
END
