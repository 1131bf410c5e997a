"""The package as a whole: public names, import contracts, what it says of itself."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.metadata import metadata, version
from pathlib import Path

import pytest

import imaginet_hub
from imaginet_hub import errors
from tests.conftest import PROJECT


def test_public_names_resolve() -> None:
    assert set(imaginet_hub.__all__) == {*imaginet_hub._WHERE, "__version__"}
    for name in imaginet_hub.__all__:
        assert getattr(imaginet_hub, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Detecter'"):
        _ = imaginet_hub.Detecter  # type: ignore[attr-defined]
    assert version("imaginet_hub") == imaginet_hub.__version__


def test_extras() -> None:
    assert {"fetch", "train", "eval", "demo", "all", "dev"} <= set(metadata("imaginet_hub").get_all("Provides-Extra"))


def test_errors_are_a_tree() -> None:
    for name in errors.__all__:
        thing = getattr(errors, name)
        if isinstance(thing, type):
            assert issubclass(thing, errors.ImagiNetError)
    with pytest.raises(errors.MissingExtraError, match=r'pip install "imaginet_hub\[train\]"'):
        errors.require("train", "json", "no_such_module_at_all")


def test_import_contracts() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()",
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_datasets_are_built_and_loaded_without_torch(tmp_path: Path) -> None:
    code = f"""
import importlib.machinery, sys
HIDDEN = ("torch", "transformers", "timm", "torchvision", "sklearn", "matplotlib")
class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else super().find_spec(name, path, target)
sys.meta_path = [Without if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
from tests.conftest import table_rows, write_root
from pathlib import Path
root = Path({str(tmp_path)!r}) / "root"
write_root(root, table_rows())
from imaginet_hub.cli import main
assert main(["build", str(root), {str(tmp_path / "out")!r}]) == 0
import imaginet_hub, datasets
print(len(datasets.load_dataset("imaginet", data_dir=str(root), split="train")))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.strip().endswith("15"), done.stderr


def test_the_project_speaks_of_itself_only() -> None:
    files = [
        file
        for pattern in ("*.md", "*.cff", "setup.cfg", "Makefile", "imaginet_hub/**/*.py", "notebooks/*.ipynb")
        for file in PROJECT.glob(pattern)
    ]
    assert len(files) > 30
    of_this_machine = {
        f"{folder}/" for folder in (PROJECT.parent, Path.home(), tempfile.gettempdir()) if len(str(folder)) > 1
    }
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not [place for place in of_this_machine if place in text], file
