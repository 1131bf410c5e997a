"""Every command and every code block of the README runs, on a small ROOT."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imaginet_hub.data.sources import SOURCES
from imaginet_hub.demo.mirror import Mirror
from imaginet_hub.demo.staging import REPOSITORY
from tests.conftest import PROJECT, image_bytes, table_rows, write_root
from tests.golden import released

_BLOCK = re.compile(r"(?P<comment><!--[^\n]*-->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.S)
#: What other tests do: the demo, the test suite itself.
_ELSEWHERE = ("make ",)


def blocks(comment: str = "") -> list[tuple[str, str]]:
    """(language, code) of the README's blocks that can run anywhere, or of those under a comment, in order."""
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    found = [(m["comment"] or "", m["language"], m["code"]) for m in _BLOCK.finditer(text)]
    return [(language, code) for said, language, code in found if (comment in said if comment else not said)]


def run(language: str, code: str, cwd: Path, environment: dict[str, str]) -> str:
    """Run a block, and return what it printed."""
    if language == "bash":
        commands = [line for line in code.splitlines() if line and not line.startswith(_ELSEWHERE)]
        argv = ["bash", "-euo", "pipefail", "-c", "\n".join(commands)]
    else:
        argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def test_blocks_are_found() -> None:
    languages = [language for language, _ in blocks()]
    assert languages.count("bash") >= 5 and languages.count("python") >= 4


def test_every_block_runs(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    write_root(tmp_path / "ROOT", table_rows(real=70, synthetic=60), size=(64, 64))
    (tmp_path / "folder").mkdir()
    for number, name in enumerate(("picture.png", "a.webp", "folder/b.png")):
        format_ = "WEBP" if name.endswith("webp") else "PNG"
        (tmp_path / name).write_bytes(image_bytes(1000 + number, (90, 70), format_))
    for language, code in blocks():
        if language in ("bash", "python"):
            run(language, code, tmp_path, ENVIRONMENT)
    # What these made is what other detectors are measured on.
    (tmp_path / "my_detectors.py").write_text(
        "import numpy as np\n"
        "def sharpness(images):\n"
        "    return [1 / (1 + np.abs(np.diff(np.asarray(image, float), axis=0)).mean()) for image in images]\n"
    )
    config = ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32)
    ViTForImageClassification(config).save_pretrained(tmp_path / "other-detector")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "other-detector")
    ((language, code),) = blocks("test: with another detector")
    said = run(language, code, tmp_path, ENVIRONMENT)
    assert "McNemar" in said and said.count("What differs") == 3


def test_fetching_runs_on_a_mirror(tmp_path: Path, shared: Path) -> None:
    """Upstream's own list, from a mirror of GitHub; images of the first names in it, from a mirror of S3."""
    listed = (shared / "annotations" / "test_annotations.txt").read_text(encoding="utf-8").splitlines()
    names = [line.rsplit(",", 4)[0] for line in listed if line.startswith("./val2017/")][:20]
    origin = tmp_path / "origin"
    for number, name in enumerate(names):
        (origin / "coco" / name).parent.mkdir(parents=True, exist_ok=True)
        (origin / "coco" / name).write_bytes(image_bytes(number, format_="JPEG"))
    annotations = origin / "github" / REPOSITORY / "annotations"
    annotations.mkdir(parents=True)
    shutil.copy(shared / "annotations" / "test_annotations.txt", annotations)
    ((language, code),) = blocks("test: with a mirror")
    with Mirror(origin) as mirror:
        said = run(language, code, tmp_path, {**ENVIRONMENT, **mirror.environ()})
    assert "3,000" in said and "20 came in" in said and "20 files are as the ledger says" in said
    fetched = [path for path in (tmp_path / "imaginet-root").rglob("*.jpg")]
    assert len(fetched) == 20
    assert all(path.read_bytes() == (origin / "coco" / "val2017" / path.name).read_bytes() for path in fetched)


def test_converting_runs_on_a_made_up_checkpoint(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    parts = {
        part: {key: torch.from_numpy(np.asarray(value)) for key, value in released(name).items()}
        for part, name in (("model", "model"), ("classifier", "detection"))
    }
    torch.save({**parts, "epoch": 5}, tmp_path / "imaginet_weights.pt")
    (tmp_path / "picture.png").write_bytes(image_bytes(1, (300, 260)))
    ((language, code),) = blocks("test: with a checkpoint")
    said = run(language, code, tmp_path, ENVIRONMENT)
    assert "stem stride 1, decided by the file's detection head" in said
    assert re.search(r"^picture.png\t(real|synthetic)\t[01]\.\d{4}$", said, re.M)


def test_the_table_of_sources_is_that_of_the_package() -> None:
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    for source in SOURCES:
        (row,) = re.findall(rf"^\| {source.key}\b.*$", text, re.M)
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1] == f"{source.train_images:,} + {source.test_images:,}"
        assert re.sub(r" \([^)]*\)", "", cells[2]).split(", ") == [route.name for route in source.routes]
        assert cells[3] == source.commercial_use
        assert cells[4] == source.exercised
        assert source.exercised.count(".") == 1 and "only the real" in source.exercised
