#!/usr/bin/env bash
# DuckDB: USING SAMPLE 10% of a data set of 1,000 rows is, most times, no row at all.
#
# Run to its end on 2026-11-28, Python 3.11, exit 0; the versions are in the output:
#   duckdb 2.0.1
#   expected: about 100 of 1,000 rows, give or take 10
#   200 times USING SAMPLE 10%: rows and how often: {0: 170, 1000: 30}
#   with (bernoulli): 80 to 126 rows
#   the default draws whole vectors of up to 2,048 rows; a small table is one vector
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile duckdb==2.0.1
venv/bin/python - <<'END'
from collections import Counter

import duckdb
print("duckdb", duckdb.__version__)
print("expected: about 100 of 1,000 rows, give or take 10")
connection = duckdb.connect()
connection.execute("create table images as select range as id, range % 10 as label from range(1000)")


def sizes(sample):
    query = f"select count(*) from images using sample {sample}"
    return Counter(connection.execute(query).fetchone()[0] for _ in range(200))


plain = sizes("10%")
print("200 times USING SAMPLE 10%: rows and how often:", dict(plain.most_common()))
rows = sizes("10 percent (bernoulli)")
print(f"with (bernoulli): {min(rows)} to {max(rows)} rows")
print("the default draws whole vectors of up to 2,048 rows; a small table is one vector")
assert min(rows) > 40 and max(rows) < 200
assert set(plain) <= {0, 1000} and plain[0] > 100, "a share of a small table is a share of its rows now"
END
