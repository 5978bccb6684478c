"""The notebooks of the docs run from a sample of their own, and find what it was made of."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
# what Jupyter's own packages call of each other
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def run(name: str, folder: Path) -> dict[str, Any]:
    """Execute a notebook; its last answer, and how many pictures it drew."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=240,
        startup_timeout=240,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    return ast.literal_eval(outputs[-1]["data"]["text/plain"]) | {"pictures": len(pictures)}


def test_they_are_stored_without_outputs() -> None:
    names = {path.stem for path in FOLDER.glob("*.ipynb")}
    assert names == {"workflow", "two_crs", "seasons"}
    for name in names:
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert code
        assert not any(cell.outputs or cell.execution_count for cell in code)


def test_workflow(tmp_path: Path) -> None:
    found = run("workflow", tmp_path)
    assert found["pictures"] == 1
    assert found["mosaic"] < 0.02
    assert found["composite"] < 0.03
    assert found["exy"] < 0.1


def test_two_crs(tmp_path: Path) -> None:
    """Untreated, the southern part would be turned by 5.87 degrees."""
    found = run("two_crs", tmp_path)
    assert found["pictures"] == 1
    for part in ("north", "south"):
        assert found[f"pixels {part}"] > 1000
        assert abs(found[f"degrees off, {part}"]) < 0.3


def test_seasons(tmp_path: Path) -> None:
    found = run("seasons", tmp_path)
    assert found["pictures"] == 1
    assert found["months"] > 30
    assert found["amplitude"] == pytest.approx(found["amplitude of the sample"], rel=0.25)
    assert found["trend"] == pytest.approx(found["trend of the sample"], rel=0.25)
