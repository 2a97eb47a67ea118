"""tests/scale.py: it still measures, and what it writes is a pack as any other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scale

from greyhound.cache.store import Pack


def test_it_measures_a_small_index_in_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scale.arrow"
    scale.write(path, 1000, 3)
    scale.measure(str(path))
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["shards"]) == (1000, 3)
    assert found["peak_bytes"] > found["index_bytes"] > 0
    assert min(found[name] for name in ("open_s", "order_s", "draw_s_a_million")) >= 0
    pack = Pack(path)
    assert len(pack.ids("train")) == 900
    assert pack.labels.tolist() == (np.arange(1000) % len(scale.CLASSES)).tolist()
    assert pack.image_path(7) == "7/photograph_of_it_number_7"
