"""tests/scale.py: it still measures, and what it writes is a pack as any other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scale

from greyhound.cache.shards import divide, shard_paths
from greyhound.cache.store import Pack


def test_it_measures_a_small_index_of_several_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, images, shards = tmp_path / "scale.arrow", 1000, 3
    for index, (file, (low, high)) in enumerate(
        zip(shard_paths(path, shards), divide(images, shards), strict=True)
    ):
        scale.write(file, low, high, index, shards)
    scale.measure(str(path))
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["shards"]) == (images, shards)
    assert found["peak_bytes"] > found["index_bytes"] > 0
    assert min(found[name] for name in ("open_s", "order_s", "draw_s_a_million")) >= 0
    pack = Pack(path)
    assert len(pack.ids("train")) == 900
    assert pack.labels.tolist() == (np.arange(images) % len(scale.CLASSES)).tolist()
    assert pack.image_path(7) == "7/photograph_of_it_number_7"
