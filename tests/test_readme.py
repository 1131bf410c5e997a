"""Every command and every code block of the README runs, on a small ROOT."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imaginet_hub.data.sources import SOURCES
from imaginet_hub.demo.mirror import Mirror
from imaginet_hub.demo.staging import REPOSITORY
from tests.conftest import PROJECT, image_bytes, table_rows, write_root
from tests.golden import released
from tests.support.hub import Account, Hub

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
    write_root(tmp_path / "ROOT", table_rows(real=70, synthetic=60), size=(64, 64))
    (tmp_path / "folder").mkdir()
    for number, name in enumerate(("picture.png", "a.webp", "folder/b.png")):
        format_ = "WEBP" if name.endswith("webp") else "PNG"
        (tmp_path / name).write_bytes(image_bytes(1000 + number, (90, 70), format_))
    for language, code in blocks():
        if language in ("bash", "python"):
            run(language, code, tmp_path, ENVIRONMENT)
    with Hub(accounts={"hf_token": Account("me", "write", ("ORG",))}) as hub:
        ((language, code),) = blocks("test: on a Hub")
        run(language, code, tmp_path, on_hub(hub, tmp_path))
        assert "refs/heads/experiment" in hub.repos["dataset", "ORG/my-dataset"].refs
        assert "refs/pr/1" in hub.repos["model", "ORG/my-detector"].refs
    # What these made is what other detectors are measured on.
    (tmp_path / "my_detectors.py").write_text(
        "import numpy as np\n"
        "def sharpness(images):\n"
        "    return [1 / (1 + np.abs(np.diff(np.asarray(image, float), axis=0)).mean()) for image in images]\n"
    )
    save_vit(tmp_path / "other-detector")
    ((language, code),) = blocks("test: with another detector")
    said = run(language, code, tmp_path, ENVIRONMENT)
    assert "McNemar" in said and said.count("What differs") == 3


def on_hub(hub: Hub, folder: Path) -> dict[str, str]:
    return hub.environ(folder / "home", "hf_token") | {"PATH": ENVIRONMENT["PATH"]}


def save_vit(folder: Path, **options: Any) -> None:
    """An image classifier that is none of ours."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTForImageClassification(ViTConfig(image_size=32, **small, **options)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def test_the_recipes_run_on_a_hub(tmp_path: Path) -> None:
    """With models of ORG on it, they end with a dataset and a model that anybody loads."""
    pytest.importorskip("torch")
    from imaginet_hub import SelfConImageProcessor, SelfConResNetConfig, SelfConResNetForImageClassification

    write_root(tmp_path / "my-images", table_rows(real=70, synthetic=60), size=(64, 64))
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / "a.png").write_bytes(image_bytes(1, (90, 70)))
    families = {0: "GAN", 1: "SD"}
    with Hub(accounts={"hf_token": Account("me", "write", ("ORG",))}) as hub:
        for track, names in (("detection", {0: "real", 1: "synthetic"}), ("identification", families)):
            folder = tmp_path / "models" / track
            config = SelfConResNetConfig(backbone="test_resnet", num_labels=2, id2label=names, track=track)
            SelfConResNetForImageClassification(config).save_pretrained(folder)
            SelfConImageProcessor(crop_size=48).save_pretrained(folder)
            hub.repo("model", f"ORG/imaginet-{track}", contents(folder))
        save_vit(tmp_path / "models" / "vit", id2label={0: "real", 1: "fake"})
        hub.repo("model", "ORG/other-detector", contents(tmp_path / "models" / "vit"))
        environment = on_hub(hub, tmp_path)
        for language, code in blocks("test: recipe"):
            run(language, code, tmp_path, environment)
        assert hub.repos["dataset", "ORG/my-dataset"].private and not hub.repos["model", "ORG/my-detector"].private


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
    recipe, whole = blocks("test: with a mirror")
    with Mirror(origin) as mirror:
        for folder, block in (("recipe", recipe), ("whole", whole)):
            (tmp_path / folder).mkdir()
            said = run(*block, tmp_path / folder, {**ENVIRONMENT, **mirror.environ()})
            fetched = list((tmp_path / folder / "imaginet-root").rglob("*.jpg"))
            assert len(fetched) == 20 and "20 came in" in said
            assert all(path.read_bytes() == (origin / "coco" / "val2017" / path.name).read_bytes() for path in fetched)
    assert "3,000" in said and "20 files are as the ledger says" in said


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
        assert cells[4] == source.redistribution
        assert cells[5] == source.exercised
        assert source.exercised.count(".") == 1 and "only the real" in source.exercised
    for what, rights in (("commercial use", "commercial_use"), ("passed on", "redistribution")):
        images = sum(s.train_images + s.test_images for s in SOURCES if getattr(s, rights) == "yes")
        assert re.search(rf"{images:,} (allow|may be) {what}", text)
