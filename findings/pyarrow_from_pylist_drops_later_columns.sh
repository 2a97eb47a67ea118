#!/usr/bin/env bash
# pyarrow: Table.from_pylist takes its columns from the first row alone; what only later rows have is gone.
#
# Run to its end on 2026-11-28, Python 3.11, exit 0; the versions are in the output:
#   pyarrow 26.0.1
#   expected: the union of the keys, null where a row has none, as pyarrow's own JSON reader has it
#   from_pylist: ['file', 'label']
#   from_pylist, rows turned round: ['file', 'label', 'reviewed']
#   read_json of the same rows: ['file', 'label', 'reviewed']
#   pa.array of the same rows: ['file', 'label', 'reviewed']
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile pyarrow==26.0.1
venv/bin/python - <<'END'
import json

import pyarrow as pa
import pyarrow.json
print("pyarrow", pa.__version__)
print("expected: the union of the keys, null where a row has none, as pyarrow's own JSON reader has it")
rows = [{"file": "1.jpg", "label": "beagle"}, {"file": "2.jpg", "label": "borzoi", "reviewed": "wrong"}]
table = pa.Table.from_pylist(rows)
print("from_pylist:", table.column_names)
print("from_pylist, rows turned round:", pa.Table.from_pylist(rows[::-1]).column_names)
with open("rows.jsonl", "w") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)
lines = pyarrow.json.read_json("rows.jsonl")
print("read_json of the same rows:", lines.column_names)
structs = pa.array(rows)
print("pa.array of the same rows:", [field.name for field in structs.type])
assert lines.column_names == ["file", "label", "reviewed"]
assert len(structs.type) == 3
assert table.column_names == ["file", "label"], "later columns are kept now"
END
