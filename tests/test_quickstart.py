"""The notebook of the quick start runs, and its committed outputs are complete."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[1] / "pipelines" / "quickstart.ipynb"


def outputs(notebook):
    """MIME types by code cell, in order, and all plain text."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    kinds = [{kind for output in cell.outputs for kind in output.get("data", {})} for cell in cells]
    text = "\n".join(
        str(output.get("data", {}).get("text/plain", "")) for cell in cells for output in cell.get("outputs", ())
    )
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    return kinds, text


def complete(notebook):
    kinds, text = outputs(notebook)
    assert all(kinds)
    assert "image/png" in kinds[2]
    for word in ("rounds 10/10", "promptfl", "fedpgp", "'U': (1, 4, 4)", "probability"):
        assert word in text


def test_committed_outputs_are_complete():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    complete(notebook)


@pytest.mark.slow
def test_it_runs_in_an_empty_folder(tmp_path):
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    complete(notebook)
    assert len(list((tmp_path / "fedpgp-store" / "runs").iterdir())) == 2
