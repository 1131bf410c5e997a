"""Notebooks run from top to bottom one after the other, show what they promise, and use nothing that is not public."""

from __future__ import annotations

import ast
import importlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import PROJECT

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
NAMES = [file.stem for file in NOTEBOOKS]

#: What has to show a picture, by what the code of its cell calls; of the last ones a table, or text.
PICTURES = {
    "1-dataset": ("counts.plot", "contact_sheet", "PANELS", "spectra_figure"),
    "2-train": ("training_figure", "embedding_figure", "contact_sheet"),
    "3-evaluate": ("roc_figure", "reliability_figure", "identification_figure", "patch_figure", "deletion_figure"),
}
TABLES = {"1-dataset": ("licences[", "counts"), "2-train": (), "3-evaluate": ("measure(DETECTOR",)}
TEXTS = {"1-dataset": (), "2-train": (), "3-evaluate": ("side_by_side",)}


def cells_of(file: Path) -> list[Any]:
    notebook = nbformat.read(file, as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def python_of(cell: Any) -> ast.Module:
    lines = cell.source.splitlines()
    return ast.parse("\n".join(line for line in lines if not line.startswith(("%", "!"))))


def private(name: str) -> bool:
    return name.startswith("_")


def violations(tree: ast.Module) -> Iterator[str]:
    """Names that a reader could not rely on."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and private(node.id):
            yield node.id
        if isinstance(node, ast.Attribute) and private(node.attr):
            yield f".{node.attr}"
        if isinstance(node, ast.Import):
            for alias in node.names:
                if any(map(private, alias.name.split("."))) or alias.name.startswith("imaginet_hub."):
                    yield f"import {alias.name}"
        if isinstance(node, ast.ImportFrom):
            where = node.module or ""
            ours = where.partition(".")[0] == "imaginet_hub"
            public = importlib.import_module(where).__all__ if ours else None
            for alias in node.names:
                if any(map(private, [*where.split("."), alias.name])) or (
                    public is not None and alias.name not in public
                ):
                    yield f"from {where} import {alias.name}"


@pytest.mark.parametrize("file", NOTEBOOKS, ids=NAMES)
def test_nothing_that_ran_is_kept(file: Path) -> None:
    nbformat.validate(nbformat.read(file, as_version=4))
    for cell in cells_of(file):
        assert not cell.outputs, "clear the outputs before committing"
        assert cell.execution_count is None, "clear the outputs before committing"
        assert not cell.metadata, "clear the outputs before committing"


@pytest.mark.parametrize("file", NOTEBOOKS, ids=NAMES)
def test_only_public_names(file: Path) -> None:
    assert [found for cell in cells_of(file) for found in violations(python_of(cell))] == []


@pytest.mark.parametrize(
    "code",
    [
        "from imaginet_hub.data.loading import _mini",
        "from imaginet_hub.evaluation.figures import math",
        "from imaginet_hub._register import register_on_import",
        "import imaginet_hub.evaluation",
        "detector._features(1)",
        "_x = 1",
    ],
)
def test_private_names_are_found(code: str) -> None:
    assert list(violations(ast.parse(code)))


@pytest.mark.parametrize("file", NOTEBOOKS, ids=NAMES)
def test_the_dataset_is_named_once(file: Path) -> None:
    sources = [cell.source for cell in cells_of(file)]
    assert sum(source.count('DATASET = "mini"') for source in sources) == 1
    assert sum(source.count('"mini"') for source in sources) == 1


def test_models_that_are_not_there_are_trained_as_in_the_second_notebook() -> None:
    """In the run below the third notebook finds the models of the second, so what it does without them is read."""
    second, third = (
        [
            ast.unparse(node)
            for cell in cells_of(PROJECT / "notebooks" / name)
            for node in ast.walk(python_of(cell))
            if isinstance(node, (ast.Assign, ast.Call))
        ]
        for name in ("2-train.ipynb", "3-evaluate.ipynb")
    )
    second = [text.replace("'--init', 'models/encoder', ", "") for text in second]
    recipe = [text for text in third if text.startswith(("few = ", "head = ", "imaginet("))]
    assert len(recipe) == 4
    assert set(recipe) <= set(second)


def shown(cell: Any, kind: str) -> bool:
    return any(kind in output.get("data", {}) or kind == output.output_type for output in cell.outputs)


def test_notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(NAMES) == set(PICTURES)
    for name in ("IMAGINET_MODEL", "IMAGINET_IDENTIFIER"):
        monkeypatch.delenv(name, raising=False)
    for file in NOTEBOOKS:
        notebook = nbformat.read(file, as_version=4)
        started = time.monotonic()
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
        print(f"{file.stem}: {time.monotonic() - started:.0f} s")
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        for expected, kind in ((PICTURES, "image/png"), (TABLES, "text/html"), (TEXTS, "stream")):
            for call in expected[file.stem]:
                assert any(call in cell.source and shown(cell, kind) for cell in cells), (
                    f"{file.name}: {call} shows nothing"
                )
