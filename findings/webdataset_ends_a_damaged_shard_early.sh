#!/usr/bin/env bash
# webdataset: of a shard with one damaged byte, or cut between two samples, the rest is left out without a word.
#
# Run to its end on 2026-11-29, Python 3.11, exit 0; the versions are in the output:
#   webdataset 1.0.2
#   expected: an error, or a warning, for a shard that is damaged or cut; 100 samples were written
#   whole.tar: 100 samples, no error
#   damaged.tar: 50 samples, no error
#   cut.tar: 50 samples, no error
#   tarfile, below it, takes a header that is no header for the end of the archive
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv --without-pip venv
python3 -m pip --python venv/bin/python install -qq --disable-pip-version-check --no-compile webdataset==1.0.2 numpy==2.4.6
venv/bin/python - <<'END' 2>&1
import tarfile
from importlib.metadata import version
from pathlib import Path

import webdataset

print("webdataset", version("webdataset"))
print("expected: an error, or a warning, for a shard that is damaged or cut; 100 samples were written")
with webdataset.TarWriter("whole.tar") as shard:
    for number in range(100):
        shard.write({"__key__": f"{number:03}", "cls": number % 10, "bin": bytes(1000)})
whole = Path("whole.tar").read_bytes()
with tarfile.open("whole.tar") as tar:
    place = tar.getmembers()[100].offset
damaged = bytearray(whole)
damaged[place] ^= 1  # the first letter of one name, which the checksum of its header covers
Path("damaged.tar").write_bytes(damaged)
Path("cut.tar").write_bytes(whole[:place])
counts = {}
for name in ("whole", "damaged", "cut"):
    counts[name] = sum(1 for _ in webdataset.WebDataset(f"{name}.tar", shardshuffle=False))
    print(f"{name}.tar: {counts[name]} samples, no error")
print("tarfile, below it, takes a header that is no header for the end of the archive")
assert counts == {"whole": 100, "damaged": 50, "cut": 50}, "such a shard is refused now"
END
