"""Any detector behind one contract: models of ours, pipelines of transformers, functions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)

from imaginet_hub.errors import ModelError, UsageError
from imaginet_hub.inference.contract import label_map, load_measurable
from imaginet_hub.inference.weights import folder_weights
from imaginet_hub.labels import Origin, Track, origin_named
from imaginet_hub.selfcon import SelfConImageProcessor, SelfConResNetConfig, SelfConResNetForImageClassification

PICTURES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3)).astype(np.uint8)) for seed in range(5)
]


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        *((name, "real") for name in ("real", "Real", "REAL_images", "Human", "hum", "authentic photo", "nature")),
        *((name, "synthetic") for name in ("fake", "1_fake", "Deepfake", "AI-generated", "artificial", "ai", "SDXL")),
        *((name, None) for name in ("LABEL_0", "0", "", "cat", "not AI", "non-real", "real or fake", "airplane")),
        *(
            (name, None)
            for name in ("AI-free", "isn't fake", "realistic_vision_v5", "Photo-realistic render", "photo")
        ),
        *((name, None) for name in ("tampered photo", "photo_swap", "Real-ESRGAN", "never generated", "without AI")),
    ],
)
def test_what_class_names_mean(name: str, meaning: str | None) -> None:
    assert origin_named(name) == meaning


def test_our_own_names_mean_what_they_say() -> None:
    assert [origin_named(name) for name in Origin] == list(Origin)


def test_label_maps() -> None:
    assert label_map(["artificial", "human"]) == {"artificial": "synthetic", "human": "real"}
    assert label_map(["LABEL_0", "LABEL_1"], {"LABEL_0": "synthetic", "LABEL_1": "real"})["LABEL_0"] == "synthetic"
    assert label_map(["Real", "SD", "Midjourney"]) == {"Real": "real", "SD": "synthetic", "Midjourney": "synthetic"}
    assert label_map(["human", "fake"], {"human": "synthetic", "fake": "real"})["human"] == "synthetic"
    assert label_map(["fake"]) == {"fake": "synthetic"}
    for classes, given, message in (
        (["LABEL_0", "LABEL_1"], None, r"LABEL_0, LABEL_1 mean cannot be told.*LABEL_0=real\|synthetic,LABEL_1="),
        (["fake", "AI"], None, "would mean synthetic"),
        (["a", "b"], {"c": "real"}, "among a, b, got 'c'"),
        (["a", "b"], {"a": "genuine"}, "got 'genuine'"),
    ):
        with pytest.raises(UsageError, match=message):
            label_map(classes, given)


def vit(folder: Path, names: list[str], **more: Any) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=16,
        num_labels=len(names), id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}, **more,
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("names", [["human", "artificial"], ["fake", "Real"], ["real", "SD", "Midjourney", "GAN"]])
def test_a_pipeline_answers_as_its_model_does(tmp_path: Path, names: list[str]) -> None:
    folder = vit(tmp_path / "vit", names)
    found = load_measurable(folder, batch_size=2)
    assert (found.kind, found.names, found.track, found.calibrated) == (
        "pipeline",
        ("real", "synthetic"),
        "detection",
        False,
    )
    assert found.record["label_map"] == {name: str(origin_named(name)) for name in names}
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = ViTImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        likely = model(**processor(images=PICTURES, return_tensors="pt")).logits.softmax(-1).numpy()
    real = next(i for i, name in enumerate(names) if origin_named(name) == "real")
    assert found.predict(PICTURES)[:, 0] == pytest.approx(likely[:, real], abs=1e-5)
    assert found.predict(PICTURES).sum(axis=1) == pytest.approx(1)
    turned = {name: "real" if origin_named(name) == "synthetic" else "synthetic" for name in names}
    if len(names) == 2:
        other = load_measurable(folder, labels=turned)
        assert other.predict(PICTURES) == pytest.approx(found.predict(PICTURES)[:, ::-1], abs=1e-6)
        assert other.fingerprint == found.fingerprint


@pytest.mark.parametrize("name", ["fake", "real"])
def test_one_logit_is_a_probability_of_its_class(tmp_path: Path, name: str) -> None:
    folder = vit(tmp_path / "vit", [name], problem_type="multi_label_classification")
    model = ViTForImageClassification.from_pretrained(folder)
    with torch.no_grad():  # so sure that the score is 0 exactly
        model.classifier.bias.fill_(-200.0)
    model.save_pretrained(tmp_path / "sure")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "sure")
    assert load_measurable(tmp_path / "sure").predict(PICTURES[:1])[0].tolist() == (
        [1, 0] if name == "fake" else [0, 1]
    )
    found = load_measurable(folder).predict(PICTURES)
    classify: Any = pipeline("image-classification", model=str(folder))
    own = [answer[0]["score"] for answer in classify(PICTURES, top_k=None, function_to_apply="sigmoid")]
    assert found[:, ["real", "synthetic"].index(origin_named(name) or "")] == pytest.approx(own, abs=1e-6)
    assert found.sum(axis=1) == pytest.approx(1)


def test_fingerprints_follow_weights_and_preprocessing(tmp_path: Path) -> None:
    first = load_measurable(vit(tmp_path / "a", ["real", "fake"])).fingerprint
    assert first == load_measurable(vit(tmp_path / "b", ["real", "fake"])).fingerprint, "wherever it is"
    ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False).save_pretrained(tmp_path / "b")
    assert load_measurable(tmp_path / "b").fingerprint != first
    model = ViTForImageClassification.from_pretrained(tmp_path / "a")
    with torch.no_grad():
        model.classifier.bias[0] += 1e-6
    model.save_pretrained(tmp_path / "a")
    assert load_measurable(tmp_path / "a").fingerprint not in (first, None)


def test_a_pipeline_with_unclear_classes_is_refused_until_told(tmp_path: Path) -> None:
    folder = vit(tmp_path / "vit", ["LABEL_0", "LABEL_1"])
    with pytest.raises(UsageError, match=r"--label-map 'LABEL_0=real\|synthetic,LABEL_1=real\|synthetic'"):
        load_measurable(folder)
    found = load_measurable(folder, labels={"LABEL_0": "real", "LABEL_1": "synthetic"})
    assert "LABEL_0 = real" in found.how
    with pytest.raises(UsageError, match="for models of this package"):
        load_measurable(folder, labels={"LABEL_0": "real", "LABEL_1": "synthetic"}, dtype="bfloat16")


def test_no_code_that_a_folder_brings_is_run(tmp_path: Path) -> None:
    folder = vit(tmp_path / "vit", ["real", "fake"])
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(
        config.replace('"model_type": "vit"', '"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}')
    )
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match="no usable model"):
        load_measurable(folder)
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ours")
    config = SelfConResNetConfig(
        backbone="test_resnet", exit_stages=(), id2label={0: "real", 1: "synthetic"}, track="detection"
    )
    SelfConResNetForImageClassification(config).save_pretrained(folder)
    SelfConImageProcessor(crop_size=32).save_pretrained(folder)
    return folder


def test_a_model_of_ours(ours: Path) -> None:
    found = load_measurable(ours)
    assert (found.kind, found.crop_size, found.names) == ("selfcon_resnet", 32, ("real", "synthetic"))
    assert found.predict(PICTURES).shape == (5, 2) and found.predict(PICTURES).dtype == np.float64
    assert found.fingerprint == load_measurable(str(ours)).fingerprint
    assert found.record["weights"] == folder_weights(ours), "in memory as in the folder"
    with pytest.raises(UsageError, match="--label-map is for pipelines"):
        load_measurable(ours, labels={"real": "real"})


def test_weights_have_one_name_however_they_are_stored(ours: Path, tmp_path: Path) -> None:
    whole = folder_weights(ours)
    model = SelfConResNetForImageClassification.from_pretrained(ours)
    model.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert not (tmp_path / "parts" / "model.safetensors").exists() and folder_weights(tmp_path / "parts") == whole
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        folder = tmp_path / str(dtype)
        model.to(dtype).save_pretrained(folder)
        SelfConImageProcessor(crop_size=32).save_pretrained(folder)
        assert folder_weights(folder) == load_measurable(folder).record["weights"]
    (ours / "README.md").write_text("# changes nothing\n")
    assert folder_weights(ours) == whole and folder_weights(tmp_path) is None
    with torch.no_grad():
        next(model.float().parameters()).flatten()[0] += 1
    model.save_pretrained(tmp_path / "other")
    assert folder_weights(tmp_path / "other") != whole


@pytest.mark.parametrize("name", ["./nothing", "/nowhere/at/all", "~/no/such/model"])
def test_nothing_there(name: str) -> None:
    with pytest.raises(ModelError, match="no model at this path"):
        load_measurable(name)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        load_measurable(tmp_path)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "own_detectors").mkdir()
    (tmp_path / "own_detectors" / "grey.py").write_text(
        "import numpy as np\n"
        "import torch\n"
        "def level(images):\n"
        "    return [np.asarray(image).mean() / 255 for image in images]\n"
        "def both(images):\n"
        "    p = torch.tensor(level(images), requires_grad=True)\n"
        "    return torch.stack([1 - p, p], dim=1)\n"
        "class Family:\n"
        "    names = ('GAN', 'SD')\n"
        "    def __call__(self, images):\n"
        "        p = np.array(level(images))\n"
        "        return np.stack([p, 1 - p], axis=1)\n"
        "family = Family()\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path / "own_detectors" / "grey.py"
    sys.modules.pop("own_detectors.grey", None)
    sys.modules.pop("own_detectors", None)


def test_functions_of_yours(module: Path) -> None:
    levels = [np.asarray(picture).mean() / 255 for picture in PICTURES]
    level = load_measurable("own_detectors.grey:level")
    assert level.predict(PICTURES) == pytest.approx(np.stack([1 - np.array(levels), levels], axis=1))
    assert load_measurable("own_detectors.grey:both").predict(PICTURES)[:, 1] == pytest.approx(levels, abs=1e-6)
    family = load_measurable("own_detectors.grey:family")
    assert (family.track, family.names, family.label_column) == (
        Track.IDENTIFICATION,
        ("GAN", "SD"),
        "generator_family",
    )
    assert {level.kind, family.kind} == {"callable"} and level.fingerprint and family.fingerprint is None


def test_a_function_that_changed_is_another(module: Path) -> None:
    before = load_measurable("own_detectors.grey:level").fingerprint
    assert load_measurable("own_detectors.grey:level").fingerprint == before
    module.write_text(module.read_text() + "# another\n")
    assert load_measurable("own_detectors.grey:level").fingerprint != before


def test_a_helper_that_changed_makes_another_function(module: Path) -> None:
    (module.parent / "helper.py").write_text("FACTOR = 1\n")
    module.write_text(module.read_text() + "from own_detectors import helper\n")
    before = load_measurable("own_detectors.grey:level").fingerprint
    (module.parent / "helper.py").write_text("FACTOR = 2\n")
    assert load_measurable("own_detectors.grey:level").fingerprint != before
    sys.modules.pop("own_detectors.helper", None)


def test_what_a_function_gives_wrong_is_said_in_its_terms() -> None:
    for given, message in (
        ([0.5], r"expected 5 probabilities of synthetic for 5 images"),
        (np.full(5, 3.2), r"from 3\.2 to 3\.2: apply a sigmoid"),
        (["synthetic"] * 5, "expected probabilities, got something else"),
        (np.full(5, np.nan), "look for the cause of NaN"),
    ):
        with pytest.raises(UsageError, match=message):
            load_measurable(lambda images, given=given: given).predict(PICTURES)


def test_what_no_file_says_has_no_fingerprint(module: Path) -> None:
    module.write_text(
        module.read_text() + "import functools\n"
        "def scaled(images, by=1):\n    return by * np.array(level(images))\n"
        "half, third = functools.partial(scaled, by=1 / 2), functools.partial(scaled, by=1 / 3)\n"
        "def maker(by):\n    def made(images):\n        return by * np.array(level(images))\n    return made\n"
        "closed = maker(0.5)\n"
        "unnamed = lambda images: level(images)\n"
        "family.fingerprint = 'weights 7'\n"
    )
    for name in ("half", "third", "closed", "unnamed", "Family"):
        assert load_measurable(f"own_detectors.grey:{name}").fingerprint is None, name
    assert load_measurable("own_detectors.grey:family").fingerprint == "weights 7"
    with pytest.raises(UsageError, match="--label-map is for pipelines"):
        load_measurable("own_detectors.grey:level", labels={"a": "real"})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_detectors.grey:levle", "has no attribute 'levle'"),
        ("own_detectors.gray:level", "No module named 'own_detectors.gray'"),
        ("own_detectors.grey:number", "expected a function, got int"),
    ],
)
def test_functions_that_are_not_there(module: Path, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_measurable(name)
