"""The demo, with next to no training: every step, every promise of its closing lines."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from imaginet_hub.cards import check_card, render_folder
from imaginet_hub.demo import run as demo
from imaginet_hub.errors import DataNotFoundError
from imaginet_hub.inference import measure, speed


def test_the_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--max_steps", "3", "--disable_tqdm", "true"]
    monkeypatch.setattr(demo, "TRAIN_FLAGS", [*demo.TRAIN_FLAGS, *few])
    head = ["--crop_size", "32", "--processor_crop_size", "64", "--no_adapt_batchnorm", "--cache_epochs", "1", *few]
    monkeypatch.setattr(demo, "HEAD_FLAGS", head)
    monkeypatch.setattr(measure, "measure_speed", partial(speed.measure_speed, batch_size=1, seconds=0.5))
    monkeypatch.chdir(tmp_path)
    measured = demo.run(Path("out"))
    said = capsys.readouterr().out
    assert "SIMULATIONS" in said and "imaginet predict" in said.replace("bin/", "")
    assert {track: results["n"] for track, results in measured.items()} == {"detection": 480, "identification": 240}
    out = tmp_path / "out"
    for name in ("results/detection.png", "results/identification.png", "dataset/README.md"):
        assert (out / name).stat().st_size > 1000
        assert f"out/{name}" in said or name.endswith("README.md")
    for track in ("detection", "identification"):
        card = (out / track / "README.md").read_text()
        assert card.split("---\n", 2)[2].strip().splitlines()[2].startswith("**Simulated.**")
        assert f"{measured[track]['metrics']['auc']['value']:.3f}" in card
        assert card == render_folder(out / track) and check_card(card, "model") == []
        (kept,) = (out / track / "results").iterdir()
        assert json.loads(kept.read_text()) == measured[track] and ("### Speed" in card) is (track == "detection")
        assert not [f for f in (out / track).rglob("*") if f.suffix in (".bin", ".pt", ".pkl", ".pth")]
    card = (out / "dataset" / "README.md").read_text()
    assert "These are not the images" not in card and "Compare any score with these" in card
    assert card == render_folder(out / "dataset") and check_card(card, "dataset") == []


def test_other_peoples_folders_are_safe(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataNotFoundError, match="choose another --out"):
        demo.run(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
