"""The notebook: it runs from top to bottom, shows what it says, and is stored without its outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "greyhound.ipynb"


def test_the_notebook_is_stored_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert 5 <= len(code) <= 8
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    said = ["".join(each.get("text", "") for each in cell) for cell in outputs]
    pictures = ["image/png" in each.get("data", {}) for cell in outputs for each in cell]
    assert "images of ('Copper_Fenhound', " in said[0] and "truncated" in said[0]
    assert said[2].count("torch.Size([") == 2
    assert "report: run/report.html" in said[3]
    assert "are wrong" in said[4] and "accuracy" in said[5]
    assert sum(pictures) == 2
