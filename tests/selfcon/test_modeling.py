import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

from imaginet_hub.selfcon import (
    SelfConImageProcessor,
    SelfConResNetConfig,
    SelfConResNetForImageClassification,
    SelfConResNetForPreTraining,
    SelfConResNetModel,
)
from tests.golden import golden, image, weight

from .conftest import tiny


def upstream_key(ours: str) -> str:
    """The name that upstream's checkpoint has for one of our pre-training model's tensors."""
    renamed = ours.replace("encoder.backbone.", "encoder.").replace(".downsample.", ".shortcut.")
    renamed = renamed.replace("encoder.exits.stage2.", "encoder.selfcon_layer.1.")
    return renamed.replace("exit_projectors.stage2.", "sub_heads.0.").replace("projector.", "head.")


def relative_error(got: Tensor, expected: list[Any]) -> float:
    reference = torch.tensor(expected, dtype=torch.float64)
    return ((got.double() - reference).abs().max() / reference.abs().max()).item()


def test_golden_figures() -> None:
    figures = golden("golden_model_loss")["model"]
    keys = golden("state_dict_keys")["detection_model"]
    config = SelfConResNetConfig(num_labels=1)
    model = SelfConResNetForPreTraining(config).eval()
    state = {key: tensor for key, tensor in model.state_dict().items() if not key.endswith("stem_stride")}
    assert {upstream_key(key): list(tensor.shape) for key, tensor in state.items()} == {
        entry["key"]: entry["shape"] for entry in keys["model"]
    }
    made = {key: torch.from_numpy(weight(upstream_key(key), tensor.shape)) for key, tensor in state.items()}
    model.load_state_dict(made | {"encoder.stem_stride": torch.tensor(1)})

    detector = SelfConResNetForImageClassification(config).eval()
    head = detector.classifier.state_dict()
    assert {key: list(tensor.shape) for key, tensor in head.items()} == {
        entry["key"]: entry["shape"] for entry in keys["classifier"]["keys"]
    }
    detector.encoder = model.encoder
    detector.classifier.load_state_dict(
        {key: torch.from_numpy(weight(f"classifier.{key}", tensor.shape)) for key, tensor in head.items()}
    )

    height, width = figures["input_size"]
    pictures = [image(seed, height, width) for seed in figures["image_seeds"]]
    pixel_values = SelfConImageProcessor(crop_size=height)(pictures, return_tensors="pt").pixel_values
    with torch.no_grad():
        outputs, logits = model(pixel_values), detector(pixel_values).logits
    (exit_features,), (exit_projections,) = outputs.exit_features, outputs.exit_projections
    for name, got in {
        "encoder_first8": outputs.pooler_output[:, :8],
        "encoder_norm": outputs.pooler_output.norm(dim=1),
        "exit_first8": exit_features[:, :8],
        "exit_norm": exit_features.norm(dim=1),
        "projection_first8": outputs.projections[:, :8],
        "exit_projection_first8": exit_projections[:, :8],
        "detection_logit": logits[:, 0],
    }.items():
        assert relative_error(got, figures[name]) < 1e-4, name


def test_identification_head_has_upstreams_tensors() -> None:
    config = SelfConResNetConfig(head_type="l2norm_mlp", num_labels=4, stem_stride=2)
    with torch.device("meta"):
        head = SelfConResNetForImageClassification(config).classifier
    expected = golden("state_dict_keys")["model_identification_model"]["classifier"]["keys"]
    assert {key: list(tensor.shape) for key, tensor in head.state_dict().items()} == {
        entry["key"]: entry["shape"] for entry in expected
    }
    features = torch.randn(2, 2048)
    torch.testing.assert_close(head[0](features), features / features.pow(2).sum(1, keepdim=True).sqrt())


@pytest.mark.parametrize(
    ("backbone", "stem_stride", "total"),
    [("resnet10t", 2, 32), ("resnet10t", 1, 8), ("resnet18", 1, 8)],
)
def test_outputs(backbone: str, stem_stride: int, total: int) -> None:
    config = tiny(backbone=backbone, stem_stride=stem_stride)
    model = SelfConResNetForPreTraining(config).eval()
    pixel_values = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        encoded = model.encoder(pixel_values, output_hidden_states=True)
        outputs = model(pixel_values)
    channels = model.encoder.num_features
    assert encoded.last_hidden_state.shape == (2, channels, 64 // total, 96 // total)
    assert len(encoded.hidden_states) == 5
    torch.testing.assert_close(encoded.pooler_output, encoded.last_hidden_state.mean(dim=(2, 3)))
    assert [features.shape for features in encoded.exit_features] == [(2, channels)] * 2
    for stage, features in zip((1, 3), encoded.exit_features, strict=True):
        linear = model.encoder.exits[f"stage{stage}"]
        mean = encoded.hidden_states[stage].flatten(2).mean(-1)
        torch.testing.assert_close(features, mean @ linear.weight.T + linear.bias)
    for projections in (outputs.projections, *outputs.exit_projections):
        assert projections.shape == (2, 8)
        torch.testing.assert_close(projections.norm(dim=1), torch.ones(2))
    assert outputs.hidden_states is None


def test_no_exits(images: Tensor) -> None:
    model = SelfConResNetForPreTraining(tiny(exit_stages=())).eval()
    assert model(images).exit_projections == ()
    assert model.encoder(images).exit_features == ()


def test_classifier(classifier: SelfConResNetForImageClassification, images: Tensor) -> None:
    labels = torch.tensor([0, 1, 1])
    outputs = classifier(images, labels=labels, output_hidden_states=True)
    assert outputs.logits.shape == (3, 2)
    assert len(outputs.hidden_states) == 5
    torch.testing.assert_close(outputs.loss, F.cross_entropy(outputs.logits, labels))
    assert classifier(images).loss is None
    assert classifier(images[:, :, :33, :65]).logits.shape == (3, 2)
    as_tuple = classifier(images, return_dict=False)
    assert isinstance(as_tuple, tuple)
    torch.testing.assert_close(as_tuple[0], outputs.logits)


@pytest.mark.parametrize("shape", [(3, 40, 48), (2, 1, 40, 48), (2, 40, 48, 3)])
def test_refuses_other_shapes(classifier: SelfConResNetForImageClassification, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        classifier(torch.zeros(shape))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"backbone": "resnet_that_is_not"}, "timm"),
        ({"backbone": "vit_tiny_patch16_224"}, "a ResNet"),
        ({"backbone": "resnetaa50", "stem_stride": 1}, "max pooling"),
    ],
)
def test_refuses_other_backbones(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word), torch.device("meta"):
        SelfConResNetModel(tiny(**fields))


def test_blocks_start_as_the_identity() -> None:
    model = SelfConResNetModel(tiny())
    blocks = [m for m in model.modules() if hasattr(m, "zero_init_last")]
    assert blocks
    assert all(block.bn2.weight.eq(0).all() for block in blocks)
    assert model.backbone.bn1.weight.eq(1).all()
    spread = model.exits["stage1"].weight.std().item()
    assert spread == pytest.approx((3 * model.exits["stage1"].in_features) ** -0.5, rel=0.1)


def test_round_trip(classifier_folder: Path, classifier: SelfConResNetForImageClassification, images: Tensor) -> None:
    again = AutoModelForImageClassification.from_pretrained(classifier_folder)
    assert type(again) is SelfConResNetForImageClassification
    assert torch.equal(again(images).logits, classifier(images).logits)
    assert again.config.id2label == {0: "real", 1: "synthetic"}
    assert again.config.trained_on == {"fingerprint": "abc"}


@pytest.mark.parametrize("folder", ["classifier_folder", "pretraining_folder"])
def test_encoder_comes_silently_out_of_any_folder(
    folder: str, request: pytest.FixtureRequest, images: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    path = request.getfixturevalue(folder)
    whole = request.getfixturevalue(folder.removesuffix("_folder"))
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        encoder, info = AutoModel.from_pretrained(path, output_loading_info=True)
    finally:
        logger.removeHandler(caplog.handler)
    assert type(encoder) is SelfConResNetModel
    assert not any(info.values()), info
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert torch.equal(encoder(images).pooler_output, whole.encoder(images).pooler_output)


def test_stage_two_starts_from_stage_one(
    pretraining_folder: Path, pretraining: SelfConResNetForPreTraining, images: Tensor
) -> None:
    model, info = SelfConResNetForImageClassification.from_pretrained(
        pretraining_folder, id2label={0: "GAN", 1: "SD", 2: "Midjourney"}, output_loading_info=True
    )
    assert not info["unexpected_keys"]
    assert all(key.startswith("classifier.") for key in info["missing_keys"])
    assert model(images).logits.shape == (3, 3)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert torch.equal(model.encoder(images).pooler_output, pretraining.encoder(images).pooler_output)
    assert type(AutoModelForPreTraining.from_pretrained(pretraining_folder)) is SelfConResNetForPreTraining


def test_encoder_folder_starts_either_model(
    tmp_path: Path, pretraining: SelfConResNetForPreTraining, images: Tensor
) -> None:
    pretraining.encoder.save_pretrained(tmp_path)
    for kind in (SelfConResNetForPreTraining, SelfConResNetForImageClassification):
        model, info = kind.from_pretrained(tmp_path, output_loading_info=True)
        assert not [key for key in info["missing_keys"] if key.startswith("encoder.")]
        assert torch.equal(model.encoder(images).pooler_output, pretraining.encoder(images).pooler_output)


class TestStemStride:
    def test_argument_that_contradicts_the_folder(self, classifier_folder: Path) -> None:
        for auto_class in (AutoModel, AutoModelForImageClassification):
            with pytest.raises(ValueError, match="trained with stem_stride=2, but the configuration says 1"):
                auto_class.from_pretrained(classifier_folder, stem_stride=1)

    def test_edited_configuration(self, classifier_folder: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(classifier_folder, tmp_path / "edited")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"stem_stride": 1}))
        with pytest.raises(ValueError, match="stem_stride=2"):
            AutoModelForImageClassification.from_pretrained(folder)

    def test_plain_state_dictionary(self, classifier: SelfConResNetForImageClassification) -> None:
        other = SelfConResNetForImageClassification(tiny(stem_stride=1))
        with pytest.raises(ValueError, match="stem_stride=2"):
            other.load_state_dict(classifier.state_dict())


def test_half_precision_and_device_map(classifier_folder: Path, images: Tensor) -> None:
    model = AutoModelForImageClassification.from_pretrained(classifier_folder, dtype=torch.bfloat16, device_map="cpu")
    assert model.dtype == torch.bfloat16
    assert model.encoder.stem_stride.dtype == torch.int64
    assert model.encoder.stem_stride == 2
    logits = model(images).logits
    assert logits.dtype == torch.bfloat16
    exact = AutoModelForImageClassification.from_pretrained(classifier_folder)(images).logits
    torch.testing.assert_close(logits.float(), exact, atol=0.05, rtol=0.1)


def test_export_takes_any_batch_and_size(classifier: SelfConResNetForImageClassification, images: Tensor) -> None:
    dynamic = {"pixel_values": {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(classifier, (), {"pixel_values": images}, dynamic_shapes=dynamic)
    other = torch.randn(5, 3, 64, 33)
    torch.testing.assert_close(program.module()(pixel_values=other)["logits"], classifier(other).logits)


def test_compiles_in_one_graph(classifier: SelfConResNetForImageClassification, images: Tensor) -> None:
    compiled = torch.compile(classifier, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images).logits, classifier(images).logits)


def test_channels_last_gives_the_same(classifier: SelfConResNetForImageClassification, images: Tensor) -> None:
    expected = classifier(images).logits
    fast = SelfConResNetForImageClassification(classifier.config).eval()
    fast.load_state_dict(classifier.state_dict())
    fast = fast.to(memory_format=torch.channels_last)
    torch.testing.assert_close(fast(images.contiguous(memory_format=torch.channels_last)).logits, expected)


def test_gradient_checkpointing_gives_the_same_gradients(images: Tensor) -> None:
    torch.manual_seed(0)
    model = SelfConResNetForPreTraining(tiny()).train()

    def gradients() -> list[Tensor]:
        model.zero_grad()
        outputs = model(images)
        torch.stack([outputs.projections, *outputs.exit_projections], 1)[..., 0].pow(2).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    model.activation_checkpointing_enable()
    assert model.encoder.gradient_checkpointing
    for got, expected in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(got, expected)


def test_learns(images: Tensor) -> None:
    torch.manual_seed(0)
    model = SelfConResNetForImageClassification(tiny(head_dropout=0.0)).train()
    labels = torch.tensor([0, 1, 0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(10):
        loss = model(images, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert isinstance(model.classifier[0], nn.BatchNorm1d)
    assert np.isfinite(losses).all()
