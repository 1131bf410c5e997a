"""Upstream's checkpoints, made up with the golden weights, as model folders."""

from __future__ import annotations

import hashlib
import json
import random
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

from imaginet_hub.cli import main
from imaginet_hub.errors import ModelError, UsageError
from imaginet_hub.inference.detector import Detector
from imaginet_hub.labels import Track
from imaginet_hub.selfcon import SelfConImageProcessor, SelfConResNetConfig, register, save_publishable
from imaginet_hub.selfcon import SelfConResNetForImageClassification as Classifier
from imaginet_hub.training.convert import HEADS, convert, decide, two_logits, upstream_name
from tests.golden import golden, image, released

FIGURES = golden("golden_model_loss")["model"]
State = OrderedDict[str, Tensor]


def made(part: str) -> State:
    """A state dictionary with upstream's names and the golden weights."""
    return OrderedDict((key, torch.from_numpy(np.asarray(value))) for key, value in released(part).items())


@pytest.fixture(scope="module")
def network() -> State:
    return made("model")


@pytest.fixture(scope="module")
def detection_head() -> State:
    return made("detection")


@pytest.fixture(scope="module")
def identification_head() -> State:
    return made("identification")


@pytest.fixture(scope="module")
def detector(network: State, detection_head: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The released detector's file, as upstream's second stage saves it, converted."""
    folder = tmp_path_factory.mktemp("converted")
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(9)}}, "param_groups": [{"lr": 1e-4}]}
    state = {"model": network, "classifier": detection_head, "optimizer": optimizer, "epoch": 5}
    torch.save(state, folder / "imaginet_weights.pt")
    done = convert(folder / "imaginet_weights.pt", folder / "detector", track="detection")
    assert (done.track, done.stem_stride) == (Track.DETECTION, 1)
    assert done.sha256 == hashlib.sha256((folder / "imaginet_weights.pt").read_bytes()).hexdigest()
    return folder / "detector"


def golden_inputs() -> Tensor:
    height, width = FIGURES["input_size"]
    pictures = [image(seed, height, width) for seed in FIGURES["image_seeds"]]
    return SelfConImageProcessor(do_center_crop=False)(pictures, return_tensors="pt").pixel_values


def close(got: Tensor, expected: Any) -> bool:
    reference = torch.tensor(expected, dtype=torch.float64)
    return bool((got.double() - reference).abs().max() < 1e-4 * reference.abs().max())


def test_detector_reproduces_the_golden_figures(detector: Path) -> None:
    register()
    model = AutoModelForImageClassification.from_pretrained(detector)
    with torch.no_grad():
        logits = model(golden_inputs()).logits
        encoded = AutoModel.from_pretrained(detector)(golden_inputs())
    assert torch.equal(logits[:, 0], torch.zeros(2))
    assert close(logits[:, 1], FIGURES["detection_logit"])
    # The law of the second logit: the probability that upstream computes, by its sigmoid.
    assert close(logits.softmax(1)[:, 1], (1 / (1 + np.exp(-np.array(FIGURES["detection_logit"])))).tolist())
    assert close(encoded.pooler_output[:, :8], FIGURES["encoder_first8"])
    assert close(encoded.exit_features[0][:, :8], FIGURES["exit_first8"])
    assert model.config.id2label == {0: "real", 1: "synthetic"} and model.config.label_column == "label"


def test_folder_says_where_it_comes_from(detector: Path) -> None:
    config = json.loads((detector / "config.json").read_text())
    sha256 = hashlib.sha256((detector.parent / "imaginet_weights.pt").read_bytes()).hexdigest()
    assert config["trained_on"]["name"] == f"converted from upstream, sha256 {sha256}"
    assert config["trained_on"]["epoch"] == 5
    assert config["trained_on"]["stem_stride"].startswith("1, decided by the file's detection head")
    assert not {file.suffix for file in detector.iterdir()} & {".pt", ".pth", ".bin", ".pkl"}
    assert {file.name for file in detector.parent.iterdir()} == {"imaginet_weights.pt", "detector"}
    weights = load_file(detector / "model.safetensors")
    assert not [name for name in weights if "project" in name]
    assert weights["encoder.stem_stride"] == 1


def test_numbers_are_upstreams(detector: Path, network: State, detection_head: State) -> None:
    weights = load_file(detector / "model.safetensors")
    assert torch.equal(weights["classifier.4.weight"], two_logits(detection_head["4.weight"]))
    for ours, value in weights.items():
        theirs = upstream_name(ours)
        if theirs in network:
            assert torch.equal(value, network[theirs]), ours


def test_identification_is_on_the_strided_network(
    network: State, identification_head: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": network, "classifier": identification_head}, tmp_path / "ckpt.pth")
    assert main(["convert", str(tmp_path / "ckpt.pth"), str(tmp_path / "out"), "--track", "identification"]) == 0
    said = capsys.readouterr().out
    assert "stem stride 2, decided by the file's identification head" in said and "--stem-stride 1" in said
    identifier = Detector.from_pretrained(tmp_path / "out")
    assert identifier.names == ("GAN", "SD", "Midjourney", "DALL-E 3")
    assert identifier.model.config.stem_stride == 2
    with torch.no_grad():
        features = identifier.model.encoder(golden_inputs()).pooler_output.double()
        logits = identifier.model(golden_inputs()).logits.double()
    # The head again, in numpy.
    unit = features / features.norm(dim=1, keepdim=True)
    head = {name: value.double().numpy() for name, value in identification_head.items()}
    hidden = np.maximum(unit.numpy() @ head["1.weight"].T + head["1.bias"], 0)
    expected = hidden @ head["3.weight"].T + head["3.bias"]
    assert np.abs(logits.numpy() - expected).max() < 1e-5
    card = (tmp_path / "out" / "README.md").read_text()
    assert hashlib.sha256((tmp_path / "ckpt.pth").read_bytes()).hexdigest() in card
    assert "Converted from upstream's checkpoint `ckpt.pth`" in card


def test_first_stage_with_its_whole_state(network: State, tmp_path: Path) -> None:
    """What upstream's first stage saves: arguments, four states of random numbers, schedule; several GPUs' names."""
    state = {
        "opt": Namespace(model="resnet50nodown", method="SelfCon", lr=0.005, device=torch.device("cpu")),
        "rng_states": [torch.get_rng_state(), torch.get_rng_state(), random.getstate(), np.random.get_state()],  # noqa: NPY002
        "model": {key.replace("encoder.", "encoder.module."): value for key, value in network.items()},
        "optimizer": {"state": {}, "param_groups": []},
        "lr_sched": {"last_epoch": 400, "_last_lr": [0.1]},
        "epoch": 400,
    }
    torch.save(state, tmp_path / "last.pth")
    done = convert(tmp_path / "last.pth", tmp_path / "out", track="none")
    assert (done.track, done.stem_stride) == (None, 1)
    assert "resnet50nodown" in done.reason
    register()
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        outputs = model(golden_inputs())
    assert close(outputs.projections[:, :8], FIGURES["projection_first8"])
    assert close(outputs.exit_projections[0][:, :8], FIGURES["exit_projection_first8"])
    with pytest.raises(ModelError, match=r"weights without a head.*--track none"):
        convert(tmp_path / "last.pth", tmp_path / "other", track="detection")
    assert not (tmp_path / "other").exists()


SHAPES = {head.track: head.shapes for head in HEADS}


@pytest.mark.parametrize(
    ("classifier", "named", "track", "asked", "expected"),
    [
        (SHAPES[Track.DETECTION], None, Track.DETECTION, None, 1),
        (SHAPES[Track.IDENTIFICATION], None, Track.IDENTIFICATION, None, 2),
        (SHAPES[Track.IDENTIFICATION], None, Track.IDENTIFICATION, 1, 1),
        (SHAPES[Track.DETECTION], None, Track.DETECTION, 2, 2),
        (SHAPES[Track.DETECTION], None, None, None, 1),
        (None, "resnet50nodown", None, None, 1),
        (None, "resnet50", None, None, 2),
        (None, None, None, 2, 2),
        (SHAPES[Track.IDENTIFICATION], "resnet50", Track.IDENTIFICATION, None, 2),
        (SHAPES[Track.IDENTIFICATION], "resnet50nodown", Track.IDENTIFICATION, 1, 1),
    ],
)
def test_what_decides_the_stem_stride(
    classifier: Any, named: str | None, track: Track | None, asked: int | None, expected: int
) -> None:
    assert decide(classifier, named, track, asked)[1] == expected


@pytest.mark.parametrize(
    ("classifier", "named", "track", "words"),
    [
        (SHAPES[None], None, Track.DETECTION, "before July 2024"),
        (SHAPES[None], None, Track.IDENTIFICATION, "before July 2024"),
        (SHAPES[None], None, None, "before July 2024"),
        (SHAPES[Track.DETECTION], None, Track.IDENTIFICATION, "pass --track detection"),
        (SHAPES[Track.IDENTIFICATION], None, Track.DETECTION, "pass --track identification"),
        (None, None, Track.DETECTION, "without a head"),
        (None, None, None, "pass --stem-stride 1"),
        (None, "resnet18", None, "resnet18"),
        (SHAPES[Track.IDENTIFICATION], "resnet50nodown", Track.IDENTIFICATION, "say which"),
        (
            {**SHAPES[Track.DETECTION], "4.weight": (3, 1024)},
            None,
            Track.DETECTION,
            r"differs in: 4.weight \[3, 1024\] instead of \[1, 1024\]",
        ),
        ({}, None, Track.DETECTION, "got none of them"),
    ],
)
def test_what_is_refused(classifier: Any, named: str | None, track: Track | None, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        decide(classifier, named, track)


def test_two_logits_are_one_logit_exactly() -> None:
    last = torch.nn.Linear(1024, 1)
    both = torch.nn.Linear(1024, 2)
    both.load_state_dict({name: two_logits(value) for name, value in last.state_dict().items()})
    hidden = torch.randn(64, 1024).relu()
    with torch.no_grad():
        expected = last(hidden)[:, 0]
        assert torch.equal(both(hidden)[:, 0], torch.zeros(64))
        torch.testing.assert_close(both(hidden)[:, 1], expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(both(hidden).softmax(1)[:, 1], expected.sigmoid())


def test_nothing_is_overwritten_unasked(detector: Path, tmp_path: Path) -> None:
    checkpoint = detector.parent / "imaginet_weights.pt"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ModelError, match="not a model of this family"):
        convert(checkpoint, tmp_path / "mine", track="detection", overwrite=True)
    small = Classifier(SelfConResNetConfig(backbone="resnet10t", stem_stride=2))
    save_publishable(small, SelfConImageProcessor(), tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    with pytest.raises(ModelError, match="--overwrite"):
        convert(checkpoint, tmp_path / "model", track="detection")
    with pytest.raises(ModelError, match="pass --track detection"):  # a failure leaves the old model
        convert(checkpoint, tmp_path / "model", track="identification", overwrite=True)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before
    convert(checkpoint, tmp_path / "model", track="detection", overwrite=True)
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (detector / "model.safetensors").read_bytes()
    with pytest.raises(ModelError, match="holds it"):
        convert(checkpoint, detector.parent, track="detection")
    with pytest.raises(UsageError, match="track"):
        convert(checkpoint, tmp_path / "new", track="detect")
    with pytest.raises(UsageError, match="stem_stride"):
        convert(checkpoint, tmp_path / "new", track="detection", stem_stride=4)
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "model"}
