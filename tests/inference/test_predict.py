"""Predictions for files, with a small untrained model: what is answered, not how well."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile, copytree
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from imaginet_hub.cards import dataset_card
from imaginet_hub.cli import main
from imaginet_hub.data.images import open_image
from imaginet_hub.data.loading import load_rows
from imaginet_hub.data.repository import build_repository
from imaginet_hub.errors import DataNotFoundError, ModelError, UsageError
from imaginet_hub.inference.detector import Detector
from imaginet_hub.inference.predict import expand_paths, predict_paths
from imaginet_hub.selfcon import (
    OpenSet,
    SelfConImageProcessor,
    SelfConResNetConfig,
    SelfConResNetForImageClassification,
    SelfConResNetForPreTraining,
    save_publishable,
)
from tests.conftest import image_bytes, table_rows, write_root


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
    assert probabilities.shape == (3, 3) and probabilities.dtype == np.float64
    assert probabilities.sum(axis=1) == pytest.approx(1)
    assert detector([]).shape == (0, 3)


def test_wrong_models(models: dict[str, Path], tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(ModelError, match="typo: no model at"):
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
    copyfile(models["detection"] / "preprocessor_config.json", tmp_path / "other" / "preprocessor_config.json")
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be loaded"):
        Detector.from_pretrained(tmp_path / "other")
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


CONFIG, PROCESSOR, WEIGHTS, INDEX = (
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
)


def copied(model: Path, folder: Path) -> Path:
    """A copy whose JSON files may be written to; the weights are a link, to be replaced."""
    folder.mkdir()
    for name in (CONFIG, PROCESSOR):
        copyfile(model / name, folder / name)
    (folder / WEIGHTS).symlink_to(model / WEIGHTS)
    return folder


def refused(model: Path, picture: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The one line that `imaginet predict` gives for such a model."""
    assert main(["predict", str(model), str(picture), "--device", "cpu", "--quiet", *options]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(f"imaginet predict: {model}: ")
    assert captured.err.count("\n") == 1 and 60 < len(captured.err) < 900
    return captured.err


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was asked of the network, which answers nothing."""
    asked: list[Any] = []

    def ask(*given: Any, **options: Any) -> Any:
        asked.append(given)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", ask)
    monkeypatch.setattr(socket, "getaddrinfo", ask)
    return asked


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (CONFIG, {"head_type": "linear"}, "'batchnorm_mlp'"),
        (CONFIG, {"stem_stride": 4}, "'stem_stride' expected one of"),
        (CONFIG, {"backbone": "hf-hub:x/y"}, "plain name of a timm ResNet"),
        (CONFIG, {"backbone": "resnet99"}, "resnet99"),
        (CONFIG, {"backbone": "vit_tiny_patch16_224"}, "class ResNet"),
        (CONFIG, {"backbone": 5}, "'backbone' expected str"),
        (CONFIG, {"trained_on": "x"}, "'trained_on'"),
        (CONFIG, {"track": "foo"}, "expected track to be detection or identification, got 'foo'"),
        (CONFIG, {"track": 5}, "'track'"),
        (CONFIG, {"dtype": "foo"}, "no attribute 'foo'"),
        (CONFIG, {"dtype": 5}, "cannot be loaded"),
        (CONFIG, {"dtype": "int8"}, "torch.int8"),
        (CONFIG, {"auto_map": 5}, "got auto_map 5"),
        (CONFIG, {"quantization_config": {"quant_method": "bitsandbytes"}}, "got quantization_config"),
        (CONFIG, {"quantization_config": 5}, "got quantization_config 5"),
        (CONFIG, {"_attn_implementation": "a/b"}, "got _attn_implementation 'a/b'"),
        (CONFIG, {"attn_implementation": "a/b"}, "got attn_implementation 'a/b'"),
        (CONFIG, {"transformers_weights": "../x.safetensors"}, "got transformers_weights"),
        (CONFIG, {"configuration_files": 5}, "cannot be loaded"),
        (CONFIG, {"to_dict": 5}, "cannot be loaded"),
        (CONFIG, {"id2label": {}}, "expected id2label to give real and synthetic"),
        (CONFIG, {"id2label": {"0": "real"}}, "expected id2label to give real and synthetic"),
        (CONFIG, {"id2label": {"0": "real", "1": "fake"}}, "'fake'"),
        (CONFIG, {"id2label": {"0": "GAN"}, "track": "identification"}, "two or more different"),
        (CONFIG, {"id2label": {"0": "GAN", "1": "a\nb"}, "track": "identification"}, r"'a\nb'"),
        (CONFIG, {"id2label": {"a": "b"}}, "'a'"),
        (CONFIG, {"model_type": 5}, "expected a selfcon_resnet model, found 5"),
        (CONFIG, {"head_hidden_size": 999}, "3 of other names or shapes, e.g. classifier.1.bias"),
        (CONFIG, {"exit_stages": []}, "2 of other names or shapes, e.g. encoder.exits"),
        (CONFIG, None, "cannot be loaded"),
        (CONFIG, [], "expected a selfcon_resnet model, found []"),
        (CONFIG, "x", "expected a selfcon_resnet model, found 'x'"),
        (CONFIG, b"\xff", "not a valid JSON file"),
        (PROCESSOR, {"image_std": [0, 0, 0]}, "to about -2..3, got -inf..inf"),
        (PROCESSOR, {"image_mean": [float("nan")] * 3}, "to about -2..3, got nan"),
        (PROCESSOR, {"image_mean": "x"}, "cannot be loaded"),
        (PROCESSOR, {"image_mean": [0, 0]}, "cannot be loaded"),
        (PROCESSOR, {"rescale_factor": "x"}, "cannot be loaded"),
        (PROCESSOR, {"rescale_factor": 0}, "cannot be loaded"),
        (PROCESSOR, {"rescale_factor": 1.0}, "to about -2..3, got -2.12..1.14e+03"),
        (PROCESSOR, {"do_rescale": False, "do_normalize": False}, "to about -2..3, got 0..255, torch.uint8"),
        (PROCESSOR, {"do_rescale": False}, "rescale"),
        (PROCESSOR, {"do_center_crop": False}, "expected do_center_crop"),
        (PROCESSOR, {"do_pad": True, "pad_size": 10**9}, "no do_pad"),
        (PROCESSOR, {"do_resize": True}, "does not resize"),
        (PROCESSOR, {"crop_size": 10**9}, "268,435,456 pixels"),
        (PROCESSOR, {"crop_size": 1e9}, "1000000000.0"),
        (PROCESSOR, {"device": "meta"}, "cannot be loaded"),
        (PROCESSOR, {"device": "cuda:7"}, "cannot be loaded"),
        (PROCESSOR, {"_preprocess": 5}, "cannot be loaded"),
        (PROCESSOR, [], "cannot be loaded"),
        (PROCESSOR, b"{", "not a valid JSON file"),
        (PROCESSOR, None, "cannot be loaded"),
    ],
)
def test_broken_settings_are_one_line(
    models: dict[str, Path],
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    no_sockets: list[Any],
    file: str,
    change: Any,
    words: str,
) -> None:
    folder = copied(models["detection"], tmp_path / "model")
    if isinstance(change, dict):
        change = json.loads((folder / file).read_text()) | change
    (folder / file).write_bytes(change if isinstance(change, bytes) else json.dumps(change).encode())
    assert words in refused(folder, pictures / "a.png", capsys)
    assert no_sockets == []


def sharded(to: Any) -> Callable[[Path], object]:
    """An index that sends every tensor to a file; beside the folder, `elsewhere.safetensors` is there."""

    def change(folder: Path) -> None:
        weights = (folder / WEIGHTS).rename(folder.parent / "elsewhere.safetensors")
        names = load_file(weights)
        where = str(weights) if to == "absolute" else to
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, where)}
        (folder / INDEX).write_text(json.dumps(index if to else []))

    return change


def reweighed(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def rewrite(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        change(weights)
        (folder / WEIGHTS).unlink()
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})

    return rewrite


def cut(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).write_bytes(content[:-100])


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda folder: (folder / PROCESSOR).unlink(), "preprocessor_config.json"),
        (lambda folder: (folder / WEIGHTS).unlink(), "no file named model.safetensors"),
        (pickled, "no file named model.safetensors"),
        (cut, "file not fully covered"),
        (sharded("../elsewhere.safetensors"), "to name files beside it, got '../elsewhere.safetensors'"),
        (sharded("absolute"), "to name files beside it, got '/"),
        (sharded("absent.safetensors"), "absent.safetensors"),
        (sharded(5), "cannot be loaded"),
        (sharded(None), "cannot be loaded"),
        (reweighed(lambda weights: weights.pop("classifier.4.bias")), "lack 1 tensors"),
        (
            reweighed(lambda weights: weights.update({"a\nb": torch.zeros(1)})),
            r"1 of other names or shapes, e.g. a\nb;",
        ),
        (reweighed(lambda weights: weights["classifier.4.bias"].fill_(torch.nan)), "got NaN for 1 of 1 images"),
        (reweighed(lambda weights: weights["encoder.backbone.bn1.weight"].fill_(torch.inf)), "got NaN for 1 of 1"),
    ],
)
def test_broken_files_are_one_line(
    models: dict[str, Path],
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    no_sockets: list[Any],
    change: Callable[[Path], object],
    words: str,
) -> None:
    folder = copied(models["detection"], tmp_path / "model")
    change(folder)
    assert words in refused(folder, pictures / "a.png", capsys, "--json", "--dtype", "bfloat16")
    assert no_sockets == []


def test_a_crop_that_the_network_cannot_take(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = SelfConResNetConfig(
        backbone="resnetaa34d", stem_stride=2, track="detection", id2label={0: "real", 1: "synthetic"}
    )
    model = SelfConResNetForImageClassification(config)
    folder = save_publishable(model, SelfConImageProcessor(crop_size=16), tmp_path / "model")
    assert "crop_size of at least 32 pixels for resnetaa34d" in refused(folder, pictures / "a.png", capsys)


def test_no_code_of_a_folder_is_run(models: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    folder = copied(models["detection"], tmp_path / "model")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'was here')!r}, 'w')\nclass Evil: pass\n")
    for file in (CONFIG, PROCESSOR):
        autos = ("AutoConfig", "AutoModelForImageClassification", "AutoImageProcessor")
        settings = json.loads((folder / file).read_text()) | {"auto_map": dict.fromkeys(autos, "evil.Evil")}
        (folder / file).write_text(json.dumps(settings))
    assert main(["predict", str(folder), str(pictures / "a.png"), "--device", "cpu"]) == 0
    assert not (tmp_path / "was here").exists()


def test_evaluate_with_a_broken_folder(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = tmp_path / "dataset"
    build_repository(write_root(tmp_path / "root", table_rows()), dataset, render_card=dataset_card)
    folder = copied(models["detection"], tmp_path / "model")
    reweighed(lambda weights: weights["classifier.4.bias"].fill_(torch.nan))(folder)
    command = ["evaluate", str(folder), str(dataset), "--device", "cpu", "--quiet", "--out", str(tmp_path / "a.json")]
    for words in ("got NaN for 5 of 5 images", "'head_type'"):
        capsys.readouterr()
        assert main(command) == 1
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1 and words in captured.err
        settings = json.loads((folder / CONFIG).read_text()) | {"head_type": "linear"}
        (folder / CONFIG).write_text(json.dumps(settings))
    assert not (tmp_path / "a.json").exists()


def _with(folder: Path, copy: Path, **fields: Any) -> Path:
    """A copy of a model folder with other fields in its configuration."""
    copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | fields))
    return copy


def _knowing(folder: Path, copy: Path, threshold: float) -> Path:
    """A copy of an identifier that stores made-up discriminants and a threshold of their distance."""
    model = SelfConResNetForImageClassification.from_pretrained(folder)
    classes = len(model.config.id2label)
    model.config.open_set = {"threshold": threshold, "accepts": 0.99, "rows": 20}
    model.open_set = OpenSet(model.encoder.num_features, classes)
    generator = torch.Generator().manual_seed(0)
    model.open_set.projection.copy_(torch.randn(classes - 1, model.encoder.num_features, generator=generator))
    model.open_set.means.copy_(torch.randn(classes, classes - 1, generator=generator))
    return save_publishable(model, SelfConImageProcessor.from_pretrained(folder), copy)


class TestUnknown:
    """Images unlike those of every generator that the model knows."""

    NAMES = ("a.png", "b.JPG", "deeper/c.webp")

    @pytest.fixture
    def distances(self, models: dict[str, Path], pictures: Path, tmp_path: Path) -> dict[str, float]:
        """By plain transformers, as the documentation of the configuration says."""
        folder = _knowing(models["identification"], tmp_path / "any", 1.0)
        model = SelfConResNetForImageClassification.from_pretrained(folder).eval()
        processor = SelfConImageProcessor.from_pretrained(folder)
        inputs: Any = processor([open_image(pictures / name) for name in self.NAMES], return_tensors="pt")
        assert model.open_set is not None
        with torch.no_grad():
            found = model.open_set(model.encoder(inputs["pixel_values"]).pooler_output)
        return dict(zip(self.NAMES, found.tolist(), strict=True))

    @pytest.fixture
    def model(self, models: dict[str, Path], distances: dict[str, float], tmp_path: Path) -> Path:
        middle = sorted(distances.values())[1]
        return _knowing(models["identification"], tmp_path / "model", middle * 1.00001)

    def test_what_is_further_than_the_stored_threshold_is_unknown(
        self, model: Path, distances: dict[str, float], pictures: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        furthest = max(distances, key=lambda name: distances[name])
        paths = [str(pictures / name) for name in distances]
        assert main(["predict", str(model), *paths, "--json", "--dtype", "float32"]) == 0
        answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert main(["predict", str(model), *paths, "--json", "--dtype", "float32", "--closed-set"]) == 0
        closed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        for name, answer, named in zip(distances, answers, closed, strict=True):
            assert named["generator"] in ("GAN", "SD", "New Net") and "likeliest" not in named
            if name == furthest:
                assert answer == {**named, "generator": "unknown", "likeliest": named["generator"]}
            else:
                assert answer == named

    def test_a_line_says_unknown_without_a_probability(
        self, model: Path, distances: dict[str, float], pictures: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        furthest = max(distances, key=lambda name: distances[name])
        assert main(["predict", str(model), str(pictures / furthest)]) == 0
        assert capsys.readouterr().out == f"{pictures / furthest}\tunknown\t-\n"

    def test_a_model_that_stores_nothing_always_names_one(self, models: dict[str, Path], pictures: Path) -> None:
        identifier = Detector.from_pretrained(models["identification"])
        assert identifier.known_below is None and identifier.answers([]).known is None
        (answer,) = predict_paths([pictures / "a.png"], identifier=identifier)
        assert answer.generator in identifier.names

    def test_close_to_the_threshold_bfloat16_answers_as_float32_does(
        self, models: dict[str, Path], distances: dict[str, float], pictures: Path, tmp_path: Path
    ) -> None:
        images = [open_image(pictures / name) for name in distances]
        for number, distance in enumerate(distances.values()):
            for side in (0.9999, 1.0001):
                folder = _knowing(models["identification"], tmp_path / f"{number} {side}", distance * side)
                exact = Detector.from_pretrained(folder, dtype="float32").answers(images).known
                rounded = Detector.from_pretrained(folder, dtype="bfloat16").answers(images).known
                assert exact is not None and rounded is not None
                assert exact.tolist() == rounded.tolist() and exact[number] == (side > 1)

    @pytest.mark.parametrize(
        "stored", [{}, {"accepts": 0.9}, {"threshold": "1"}, {"threshold": float("nan")}, {"threshold": True}]
    )
    def test_a_threshold_that_is_none_is_refused(self, model: Path, tmp_path: Path, stored: Any) -> None:
        folder = _with(model, tmp_path / "other", open_set=stored)
        with pytest.raises(ModelError, match="expected open_set to hold a finite threshold"):
            Detector.from_pretrained(folder)

    def test_a_threshold_without_its_tensors_is_refused(self, models: dict[str, Path], tmp_path: Path) -> None:
        folder = _with(models["identification"], tmp_path / "other", open_set={"threshold": 1.0})
        with pytest.raises(ModelError, match="lack 2 tensors"):
            Detector.from_pretrained(folder)

    def test_a_new_head_forgets_it(self, model: Path) -> None:
        new = SelfConResNetForImageClassification.from_pretrained(model, num_labels=5, ignore_mismatched_sizes=True)
        assert new.open_set is None and new.config.open_set is None
        assert not any(name.startswith("open_set") for name in new.state_dict())


class TestOtherColumns:
    """Models that tell the classes of any column apart."""

    @pytest.fixture
    def model(self, models: dict[str, Path], tmp_path: Path) -> Path:
        names = {"0": "faces", "1": "paintings", "2": "photos"}
        fields = {"label_column": "content_type", "id2label": names, "label2id": {n: int(i) for i, n in names.items()}}
        return _with(models["identification"], tmp_path / "content", **fields)

    def test_the_class_is_the_label(self, model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["predict", str(model), str(pictures / "a.png"), "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert set(answer) == {"path", "label", "probability"} and answer["label"] in ("faces", "paintings", "photos")

    def test_a_track_and_a_column_that_disagree_are_refused(self, models: dict[str, Path], tmp_path: Path) -> None:
        folder = _with(models["detection"], tmp_path / "other", label_column="generator")
        with pytest.raises(ModelError, match="expected label_column label for detection, got 'generator'"):
            Detector.from_pretrained(folder)

    def test_it_names_no_generators(
        self, model: Path, models: dict[str, Path], pictures: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        command = ["predict", str(models["detection"]), str(pictures), "--identify", str(model)]
        assert main(command) == 2
        assert "expected an identification model, found one for the column content_type" in capsys.readouterr().err

    def test_it_is_measured_on_that_column(
        self, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("matplotlib")
        build_repository(write_root(tmp_path / "root", table_rows()), tmp_path / "ds", render_card=dataset_card)
        out = tmp_path / "results.json"
        assert main(["evaluate", str(model), str(tmp_path / "ds"), "--split", "train", "--out", str(out)]) == 0
        results = json.loads(out.read_text())
        rows = load_rows(tmp_path / "ds", "detection", "train")
        content = [rows.features["content_type"].names[value] for value in rows["content_type"][:]]
        assert results["n"] == content.count("faces") and results["unknown_classes"] == {"maps": content.count("maps")}
        assert results["names"] == ["faces", "paintings", "photos"]
