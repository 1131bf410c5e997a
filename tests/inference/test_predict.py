"""Predictions for files, with a small untrained model: what is answered, not how well."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copyfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from imaginet_hub.cli import main
from imaginet_hub.data.images import open_image
from imaginet_hub.data.loading import load_rows
from imaginet_hub.errors import DataNotFoundError, ModelError, UsageError
from imaginet_hub.inference.detector import Detector
from imaginet_hub.inference.predict import expand_paths, predict_paths
from imaginet_hub.selfcon import (
    SelfConImageProcessor,
    SelfConResNetConfig,
    SelfConResNetForImageClassification,
    SelfConResNetForPreTraining,
    save_publishable,
)
from tests.conftest import image_bytes


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders: a detector, an identifier and a stage-1 encoder."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    small = {"backbone": "resnet10t", "stem_stride": 2}
    detection = SelfConResNetConfig(**small, track="detection", id2label={0: "real", 1: "synthetic"})
    identification = SelfConResNetConfig(
        **small, track="identification", head_type="l2norm_mlp", id2label={0: "GAN", 1: "SD", 2: "New Net"}
    )
    processor = SelfConImageProcessor(crop_size=64)
    save_publishable(SelfConResNetForImageClassification(detection), processor, folder / "detection")
    save_publishable(SelfConResNetForImageClassification(identification), processor, folder / "identification")
    save_publishable(SelfConResNetForPreTraining(SelfConResNetConfig(**small)), processor, folder / "encoder")
    return {name: folder / name for name in ("detection", "identification", "encoder")}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "deeper").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.JPG", "deeper/c.webp")):
        format_ = {"png": "PNG", "jpg": "JPEG", "ebp": "WEBP"}[name[-3:].lower()]
        (folder / name).write_bytes(image_bytes(number, (70 + 50 * number, 90), format_))
    (folder / "broken.png").write_bytes(image_bytes(9)[:200])
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_folders_files_and_globs(pictures: Path) -> None:
    names = [str(p.relative_to(pictures)) for p in expand_paths([pictures])]
    assert names == ["a.png", "b.JPG", "broken.png", "deeper/c.webp"]
    assert expand_paths([pictures / "a.png", pictures]) == expand_paths([pictures])  # nothing twice
    assert expand_paths([f"{pictures}/*.png"]) == [pictures / "a.png", pictures / "broken.png"]
    assert expand_paths([f"{pictures}/**/*.webp"]) == [pictures / "deeper" / "c.webp"]
    assert expand_paths([pictures / "typo.png"]) == [pictures / "typo.png"]
    assert expand_paths([f"{pictures}/*.gif"]) == [Path(f"{pictures}/*.gif")]
    bracketed = pictures / "x[1].png"
    bracketed.write_bytes(image_bytes(5))
    assert expand_paths([bracketed]) == [bracketed]


def test_one_answer_a_file_in_order(models: dict[str, Path], pictures: Path) -> None:
    detector = Detector.from_pretrained(models["detection"])
    identifier = Detector.from_pretrained(models["identification"])
    paths = expand_paths([pictures, pictures / "typo.png"])
    for batch_size in (1, 2, 16):
        answers = list(predict_paths(paths, detector=detector, identifier=identifier, batch_size=batch_size))
        assert [answer.path for answer in answers] == [str(path) for path in paths]
        assert [answer.error is None for answer in answers] == [True, True, False, True, False]
        for answer in answers:
            if answer.error is None:
                image = open_image(answer.path)
                scores = dict(zip(detector.names, detector([image])[0].tolist(), strict=True))
                assert answer.label == max(scores, key=scores.__getitem__)
                assert answer.probability == pytest.approx(max(scores.values()), abs=1e-5)
                assert (answer.generator is None) == (answer.label == "real")


def test_identification_alone(models: dict[str, Path], pictures: Path) -> None:
    identifier = Detector.from_pretrained(models["identification"])
    (answer,) = predict_paths([pictures / "a.png"], identifier=identifier)
    assert answer.label is None and answer.generator in ("GAN", "SD", "New Net")


def test_probabilities(models: dict[str, Path]) -> None:
    detector = Detector.from_pretrained(models["identification"])
    images = [Image.fromarray(np.full((h, w, 3), 128, np.uint8)) for h, w in ((64, 64), (20, 300), (1, 1))]
    probabilities = detector(images)
    assert probabilities.shape == (3, 3) and probabilities.dtype == np.float32
    assert probabilities.sum(axis=1) == pytest.approx(1)
    assert detector([]).shape == (0, 3)


def test_wrong_models(models: dict[str, Path], tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(ModelError, match="no model at"):
        Detector.from_pretrained(tmp_path / "typo")
    with pytest.raises(ModelError, match="stage-1 encoder"):
        Detector.from_pretrained(models["encoder"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="expected a selfcon_resnet model, found 'bert'"):
        Detector.from_pretrained(tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text("{")
    with pytest.raises(ModelError, match="no usable model"):
        Detector.from_pretrained(tmp_path / "other")
    (tmp_path / "other" / "config.json").write_bytes((models["detection"] / "config.json").read_bytes())
    (tmp_path / "other" / "model.safetensors").write_bytes(b"\x10" * 100)
    with pytest.raises(ModelError, match="cannot be loaded"):
        Detector.from_pretrained(tmp_path / "other")
    copyfile(models["detection"] / "preprocessor_config.json", tmp_path / "other" / "preprocessor_config.json")
    weights = load_file(models["detection"] / "model.safetensors")
    del weights[next(key for key in weights if key.startswith("classifier"))]
    save_file(weights, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lack 1 tensors"):
        Detector.from_pretrained(tmp_path / "other")
    identifier = Detector.from_pretrained(models["identification"])
    with pytest.raises(UsageError, match="expected a detection model"):
        list(predict_paths([pictures / "a.png"], detector=identifier))
    with pytest.raises(UsageError, match="or both"):
        list(predict_paths([pictures / "a.png"]))


def test_a_dataset_that_is_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Couldn't reach 'someone/data' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataNotFoundError, match="no folder here, and the Hub could not be asked"):
        load_rows("someone/data", "detection", "test")


def test_devices_and_odd_names(models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for device in ("bogus", "meta", "cuda:7"):
        with pytest.raises(UsageError, match="cannot be used here"):
            Detector.from_pretrained(models["detection"], device=device)
    (tmp_path / "two\nlines.png").write_bytes(image_bytes(1))
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert main(["predict", str(models["detection"]), str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1 and "two\\nlines.png" in captured.out
    assert "gone.png: expected an image file, found none" in captured.err
