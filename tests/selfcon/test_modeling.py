import io
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

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


def torchvision_features(net: torchvision.models.ResNet, pixel_values: Tensor, stem_stride: int) -> Tensor:
    """The pooled features of torchvision's network, whose stem gets the stride asked for."""
    net.conv1.stride, net.maxpool.stride, net.fc = (stem_stride, stem_stride), stem_stride, nn.Identity()
    with torch.no_grad():
        return net.eval()(pixel_values)


@pytest.mark.parametrize("stem_stride", [1, 2])
def test_torchvisions_network_gives_the_same(stem_stride: int, images: Tensor) -> None:
    torch.manual_seed(0)
    reference = torchvision.models.resnet18()
    for name, tensor in reference.state_dict().items():
        if name.rpartition(".")[2] in ("running_mean", "running_var"):
            tensor.uniform_(0.5, 1.5)
    model = SelfConResNetModel(tiny(backbone="resnet18", stem_stride=stem_stride)).eval()
    state = {name: tensor for name, tensor in reference.state_dict().items() if not name.startswith("fc.")}
    model.backbone.load_state_dict(state)
    expected = torchvision_features(reference, images, stem_stride)
    with torch.no_grad():
        torch.testing.assert_close(model(images).pooler_output, expected)


def test_identification_logits() -> None:
    # Upstream's identification network, on torchvision's ResNet-50 with its strides and the head in numpy.
    config = SelfConResNetConfig(head_type="l2norm_mlp", num_labels=4, stem_stride=2)
    model = SelfConResNetForImageClassification(config).eval()
    model.load_state_dict(
        {
            key: torch.from_numpy(weight(upstream_key(key), tensor.shape))
            for key, tensor in model.state_dict().items()
            if not key.endswith("stem_stride")
        }
        | {"encoder.stem_stride": torch.tensor(2)}
    )
    reference = torchvision.models.resnet50()
    reference.load_state_dict(
        {
            key: torch.from_numpy(weight(f"encoder.{key.replace('downsample', 'shortcut')}", tensor.shape))
            for key, tensor in reference.state_dict().items()
        }
    )
    pictures = [image(seed, 64, 64) for seed in (0, 1)]
    pixel_values = SelfConImageProcessor(crop_size=64)(pictures, return_tensors="pt").pixel_values
    features = torchvision_features(reference, pixel_values, 2).double().numpy()
    unit = features / np.sqrt((features**2).sum(1, keepdims=True))
    hidden = unit @ weight("classifier.1.weight", (1024, 2048)).T + weight("classifier.1.bias", (1024,))
    logits = np.maximum(hidden, 0) @ weight("classifier.3.weight", (4, 1024)).T + weight("classifier.3.bias", (4,))
    with torch.no_grad():
        assert relative_error(model(pixel_values).logits, logits.tolist()) < 1e-4


#: One for each kind of stem, block and attention that timm's class ResNet is made with.
KINDS = (
    "ecaresnet26t",
    "res2net50d",
    "resnest14d",
    "resnet18",
    "resnet26d",
    "resnet50",
    "resnet50_gn",
    "resnetaa34d",
    "resnetblur18",
    "resnetrs50",
    "resnext50_32x4d",
    "seresnext26d_32x4d",
    "skresnet18",
    "test_resnet",
    "wide_resnet50_2",
)


@pytest.mark.parametrize("backbone", KINDS)
def test_every_kind_of_backbone(backbone: str) -> None:
    for stem_stride, total in ((1, 8), (2, 32)):
        with torch.device("meta"):
            model = SelfConResNetModel(
                tiny(backbone=backbone, stem_stride=stem_stride, exit_stages=(1, 2, 3, 4))
            ).eval()
            outputs = model(torch.zeros(2, 3, 64, 96), output_hidden_states=True)
            least = model.least_side
            small = model(torch.zeros(1, 3, least, least))
            for side in (33, 47, 56):
                assert model(torch.zeros(1, 3, 40, side)).pooler_output.shape == (1, model.num_features)
            assert least == 1 or backbone in ("resnetaa34d", "resnetblur18")
            for side in (0, least - 1):
                with pytest.raises(ValueError, match=f"sides of {least} or more"):
                    model(torch.zeros(1, 3, 64, side))
        last = outputs.hidden_states[-1].shape
        assert outputs.last_hidden_state.shape == last == (2, model.num_features, 64 // total, 96 // total)
        stem, *maps = [tuple(state.shape[2:]) for state in outputs.hidden_states]
        assert stem == maps[0] == (64 * 8 // total, 96 * 8 // total)
        assert [state.shape[1] for state in outputs.hidden_states[1:]] == [
            linear.in_features for linear in model.exits.values()
        ]
        assert [features.shape for features in outputs.exit_features] == [(2, model.num_features)] * 4
        assert small.pooler_output.shape == (1, model.num_features)


def test_averaging_before_a_stride_is_timms(images: Tensor) -> None:
    # On sides that timm's own network takes; images of others keep their last row and column.
    model = SelfConResNetModel(tiny(backbone="resnetaa34d")).eval()
    reference = timm.create_model("resnetaa34d", pretrained=False, num_classes=0).eval()
    reference.load_state_dict(model.backbone.state_dict())
    with torch.no_grad():
        pixel_values = images.repeat(1, 1, 1, 2)[:, :, :32, :64]
        torch.testing.assert_close(model(pixel_values).pooler_output, reference(pixel_values))
        assert model(images).last_hidden_state.shape[2:] == (2, 2)


def test_blurring_filters_come_back(tmp_path: Path, images: Tensor) -> None:
    # timm keeps them in buffers that are not saved.
    model = SelfConResNetModel(tiny(backbone="resnetblur18")).eval()
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(again(images).pooler_output, model(images).pooler_output)
    assert again.backbone.maxpool[1].filt[0, 0, 1].tolist() == [0.125, 0.25, 0.125]


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


def test_classifier_gives_features_on_request(
    classifier: SelfConResNetForImageClassification, pretraining: SelfConResNetForPreTraining, images: Tensor
) -> None:
    plain, encoded = classifier(images), classifier.encoder(images)
    assert list(plain) == ["logits"]
    outputs = classifier(images, output_exit_features=True)
    assert list(outputs) == ["logits", "pooler_output", "exit_features"]
    assert torch.equal(outputs.pooler_output, encoded.pooler_output)
    for got, expected in zip(outputs.exit_features, encoded.exit_features, strict=True):
        assert torch.equal(got, expected)
    torch.testing.assert_close(classifier.classifier(outputs.pooler_output), outputs.logits)
    for model in (classifier, pretraining, classifier.encoder):
        model.config.output_hidden_states = True
        try:
            states = model(images).hidden_states
            as_tuple = model(images, return_dict=False)
            without = model(images, output_hidden_states=False).hidden_states
        finally:
            model.config.output_hidden_states = False
        assert [state.shape[1] for state in states] == [64, 64, 128, 256, 512]
        assert without is None
        assert isinstance(as_tuple, tuple)
        for got, expected in zip(as_tuple[-1], states, strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("shape", [(3, 40, 48), (2, 1, 40, 48), (2, 40, 48, 3), (2, 3, 0, 48), (2, 3, 40, 0)])
def test_refuses_other_shapes(classifier: SelfConResNetForImageClassification, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        classifier(torch.zeros(shape))


@pytest.mark.parametrize(
    "pixel_values", [torch.zeros(2, 3, 40, 48, dtype=torch.uint8), np.zeros((2, 3, 40, 48)), [[0.0]], None]
)
def test_refuses_what_is_not_floats(classifier: SelfConResNetForImageClassification, pixel_values: Any) -> None:
    with pytest.raises(ValueError, match="to be floats, as SelfConImageProcessor makes them"):
        classifier(pixel_values)


def test_any_batch_and_layout(
    classifier: SelfConResNetForImageClassification, pretraining: SelfConResNetForPreTraining, images: Tensor
) -> None:
    assert classifier(images[:0]).logits.shape == (0, 2)
    assert pretraining(images[:0]).projections.shape == (0, 8)
    one_pixel = classifier(images[:, :, :1, :1]).logits
    assert one_pixel.shape == (3, 2)
    assert one_pixel.isfinite().all()
    turned = images.transpose(2, 3)
    torch.testing.assert_close(classifier(turned).logits, classifier(turned.contiguous()).logits)
    torch.testing.assert_close(classifier(images.double()).logits, classifier(images).logits)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"backbone": "resnet_that_is_not"}, "timm"),
        ({"backbone": "vit_tiny_patch16_224"}, "'vit_tiny_patch16_224', a VisionTransformer"),
        ({"backbone": "resnetv2_50"}, "'resnetv2_50', a ResNetV2"),
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
    for kind, head in (
        (SelfConResNetForPreTraining, {"projection_dim": 8}),
        (SelfConResNetForImageClassification, {"num_labels": 2}),
    ):
        model, info = kind.from_pretrained(tmp_path, output_loading_info=True, **head)
        assert not [key for key in info["missing_keys"] if key.startswith("encoder.")]
        assert torch.equal(model.encoder(images).pooler_output, pretraining.encoder(images).pooler_output)


class TestMissingWeights:
    @pytest.mark.parametrize(
        ("folder", "auto_class", "missing"),
        [
            ("pretraining_folder", AutoModelForImageClassification, "classifier"),
            ("classifier_folder", AutoModelForPreTraining, "exit_projectors"),
        ],
    )
    def test_heads_that_nobody_asked_for(
        self, folder: str, auto_class: Any, missing: str, request: pytest.FixtureRequest
    ) -> None:
        path = request.getfixturevalue(folder)
        for kind in (auto_class, auto_class._model_mapping[SelfConResNetConfig]):
            with pytest.raises(ValueError, match=rf"tensors of a SelfConResNetFor\w+, e.g. {missing}"):
                kind.from_pretrained(path)
        with pytest.raises(ValueError, match="would be random"):  # the folder's own configuration asks for nothing
            auto_class.from_pretrained(path, config=AutoConfig.from_pretrained(path))

    @pytest.mark.parametrize(
        "asked", [{"num_labels": 2}, {"num_labels": 3, "id2label": None}, {"id2label": {0: "x", 1: "y"}}]
    )
    def test_heads_that_somebody_asked_for(
        self, asked: dict[str, Any], pretraining: SelfConResNetForPreTraining, tmp_path: Path
    ) -> None:
        pretraining.save_pretrained(tmp_path / "stage1")
        fields = json.loads((tmp_path / "stage1" / "config.json").read_text())
        del fields["id2label"], fields["label2id"]  # as stage 1 leaves it
        (tmp_path / "stage1" / "config.json").write_text(json.dumps(fields))
        asked = {name: value for name, value in asked.items() if value is not None}
        for kind in (AutoModelForImageClassification, SelfConResNetForImageClassification):
            model = kind.from_pretrained(tmp_path / "stage1", **asked)
            assert model.config.num_labels == model.classifier[-1].out_features == asked.get("num_labels", 2)
        model.save_pretrained(tmp_path / "again")
        assert "_asked" not in json.loads((tmp_path / "again" / "config.json").read_text())
        AutoModelForImageClassification.from_pretrained(tmp_path / "again")

    def test_a_configuration_that_differs_in_a_head_asks(self, pretraining_folder: Path) -> None:
        changed = AutoConfig.from_pretrained(pretraining_folder)
        changed.num_labels = 3
        for kind in (AutoModelForImageClassification, SelfConResNetForImageClassification):
            for config in (changed, tiny(id2label={0: "a", 1: "b", 2: "c"})):
                model = kind.from_pretrained(pretraining_folder, config=config)
                assert model.classifier[-1].out_features == 3
        asked = AutoConfig.from_pretrained(pretraining_folder, num_labels=2)
        SelfConResNetForImageClassification.from_pretrained(pretraining_folder, config=asked)

    def test_a_configuration_that_does_not_differ_asks_for_nothing(
        self, pretraining_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(pretraining_folder.parent)
        name = pretraining_folder.name
        for spelled in (f"{name}/", f"./{name}", name, str(pretraining_folder)):
            config = AutoConfig.from_pretrained(spelled)
            config.exit_stages = list(config.exit_stages)
            for given in (config, tiny(), tiny(stem_stride=2, track=None), spelled):
                with pytest.raises(ValueError, match=r"would be random"):
                    SelfConResNetForImageClassification.from_pretrained(name, config=given)
            with pytest.raises(ValueError, match=r"would be random"):
                AutoModelForImageClassification.from_pretrained(name, config=config)

    def test_a_file_cannot_ask(self, pretraining_folder: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(pretraining_folder, tmp_path / "asking")
        fields = json.loads((folder / "config.json").read_text())
        for asked in (True, ["num_labels"]):
            (folder / "config.json").write_text(json.dumps(fields | {"_asked": asked}))
            with pytest.raises(ValueError, match="would be random"):
                AutoModelForImageClassification.from_pretrained(folder)

    def test_who_asks_for_one_part_does_not_get_another(self, pretraining_folder: Path, tmp_path: Path) -> None:
        folder = with_weights(pretraining_folder, tmp_path, lambda w: w.pop("encoder.exits.stage1.weight"))
        for kind, asked in (
            (AutoModelForImageClassification, {"num_labels": 2}),
            (AutoModelForPreTraining, {"projection_dim": 8}),
            (AutoModel, {"head_hidden_size": 9}),
        ):
            with pytest.raises(ValueError, match=r"lack 1 tensors .* e\.g\. (encoder\.)?exits\.stage1\.weight"):
                kind.from_pretrained(folder, **asked)
        AutoModelForPreTraining.from_pretrained(folder, exit_stages=(1, 3))

    def test_a_backbone_is_never_random(self, classifier_folder: Path, tmp_path: Path) -> None:
        folder = with_weights(classifier_folder, tmp_path, lambda w: w.pop("encoder.backbone.layer3.0.conv1.weight"))
        for auto_class in (AutoModel, AutoModelForImageClassification, AutoModelForPreTraining):
            with pytest.raises(ValueError, match=r"tensors of a .* e.g. (encoder\.)?backbone.layer3.0.conv1.weight"):
                auto_class.from_pretrained(folder, id2label={0: "x", 1: "y"})


def with_weights(folder: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    """A copy of a model folder with other weights."""
    copy = shutil.copytree(folder, tmp_path / "changed")
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


class TestStemStride:
    @pytest.mark.parametrize(
        "how",
        [
            {},
            {"ignore_mismatched_sizes": True},
            {"device_map": "cpu"},
            {"device_map": {"": "disk"}},
            {"dtype": torch.float16},
            {"num_labels": 5, "ignore_mismatched_sizes": True},
        ],
        ids=str,
    )
    def test_argument_that_contradicts_the_folder(
        self, classifier_folder: Path, how: dict[str, Any], tmp_path: Path
    ) -> None:
        how = {**how, "offload_folder": str(tmp_path)} if "disk" in str(how) else how
        for kind in (AutoModel, AutoModelForImageClassification, AutoModelForPreTraining, SelfConResNetModel):
            with pytest.raises(
                ValueError, match=r"trained with stem_stride=2, but the configuration says 1: .*load them"
            ):
                kind.from_pretrained(classifier_folder, stem_stride=1, **how)

    def test_edited_configuration(self, classifier_folder: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(classifier_folder, tmp_path / "edited")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"stem_stride": 1}))
        with pytest.raises(ValueError, match="stem_stride=2"):
            AutoModelForImageClassification.from_pretrained(folder)

    @pytest.mark.parametrize("how", [{}, {"strict": False}, {"assign": True}, {"strict": False, "assign": True}])
    def test_plain_state_dictionary(
        self, classifier: SelfConResNetForImageClassification, how: dict[str, bool]
    ) -> None:
        other = SelfConResNetForImageClassification(tiny(stem_stride=1))
        state = classifier.state_dict()
        with pytest.raises(ValueError, match="stem_stride=2"):
            other.load_state_dict(state, **how)
        with pytest.raises(ValueError, match="stem_stride=2"):
            other.encoder.load_state_dict(classifier.encoder.state_dict(), **how)
        for saved in (torch.tensor(1.5), torch.tensor([1, 1]), torch.tensor(float("nan"))):
            with pytest.raises(ValueError, match="these weights were trained with"):
                other.load_state_dict(state | {"encoder.stem_stride": saved}, **how)

    @pytest.mark.parametrize("saved", [None, torch.tensor([2, 2]), torch.tensor([2]), torch.zeros(0)])
    def test_weights_that_do_not_say(self, classifier_folder: Path, tmp_path: Path, saved: Tensor | None) -> None:
        def change(weights: dict[str, Tensor]) -> None:
            del weights["encoder.stem_stride"]
            if saved is not None:
                weights["encoder.stem_stride"] = saved

        folder = with_weights(classifier_folder, tmp_path, change)
        for how in ({}, {"stem_stride": 1}):
            for kind in (AutoModel, AutoModelForImageClassification):
                with pytest.raises(ValueError, match="do not say which stem stride"):
                    kind.from_pretrained(folder, ignore_mismatched_sizes=True, **how)

    @pytest.mark.parametrize("saved", [torch.tensor(7), torch.tensor(True), torch.tensor(float("nan"))])
    def test_weights_that_say_nonsense(self, classifier_folder: Path, tmp_path: Path, saved: Tensor) -> None:
        folder = with_weights(classifier_folder, tmp_path, lambda w: w.update({"encoder.stem_stride": saved}))
        with pytest.raises(ValueError, match="these weights were trained with"):
            AutoModelForImageClassification.from_pretrained(folder)

    def test_other_kinds_of_number_are_read(self, classifier_folder: Path, tmp_path: Path) -> None:
        folder = with_weights(
            classifier_folder, tmp_path, lambda w: w.update({"encoder.stem_stride": torch.tensor(2.0)})
        )
        stride = AutoModelForImageClassification.from_pretrained(folder).encoder.stem_stride
        assert (stride.dtype, stride.item()) == (torch.int64, 2)


def test_half_precision_and_device_map(classifier_folder: Path, images: Tensor) -> None:
    model = AutoModelForImageClassification.from_pretrained(classifier_folder, dtype=torch.bfloat16, device_map="cpu")
    assert model.dtype == torch.bfloat16
    assert model.encoder.stem_stride.dtype == torch.int64
    assert model.encoder.stem_stride == 2
    logits = model(images).logits
    assert logits.dtype == torch.bfloat16
    exact = AutoModelForImageClassification.from_pretrained(classifier_folder)(images).logits
    torch.testing.assert_close(logits.float(), exact, atol=0.05, rtol=0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_survives_saving(
    dtype: torch.dtype, classifier: SelfConResNetForImageClassification, images: Tensor, tmp_path: Path
) -> None:
    model = SelfConResNetForImageClassification(classifier.config).eval()
    model.load_state_dict(classifier.state_dict())
    model.to(dtype).save_pretrained(tmp_path)
    for asked in ({}, {"dtype": "auto"}, {"dtype": dtype}, {"dtype": str(dtype).removeprefix("torch.")}):
        again = AutoModelForImageClassification.from_pretrained(tmp_path, **asked)
        for name, tensor in again.state_dict().items():
            whole = name.rpartition(".")[2] in ("stem_stride", "num_batches_tracked")
            assert tensor.dtype == (torch.int64 if whole else dtype), name
        assert torch.equal(again(images).logits, model(images).logits)
    assert AutoModelForImageClassification.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32
    torch.testing.assert_close(model(images).logits.float(), classifier(images).logits, atol=0.05, rtol=0.1)


@pytest.mark.parametrize(
    "how",
    [
        {"device_map": "auto"},
        {"device_map": {"": "cpu"}},
        {"device_map": {"": "disk"}},
        {"device_map": {"encoder": "cpu", "classifier": "disk"}},
        {"low_cpu_mem_usage": True},
    ],
    ids=str,
)
def test_placement(
    how: dict[str, Any],
    classifier_folder: Path,
    classifier: SelfConResNetForImageClassification,
    images: Tensor,
    tmp_path: Path,
) -> None:
    offload = {"offload_folder": str(tmp_path)} if "disk" in str(how) else {}
    model = AutoModelForImageClassification.from_pretrained(classifier_folder, **how, **offload)
    assert any(parameter.is_meta for parameter in model.parameters()) == bool(offload)
    torch.testing.assert_close(model(images).logits, classifier(images).logits)


@pytest.mark.parametrize(
    "kind", [SelfConResNetModel, SelfConResNetForPreTraining, SelfConResNetForImageClassification]
)
def test_export_takes_any_batch_and_size(kind: Any, images: Tensor) -> None:
    model = kind(tiny(backbone="test_resnet")).eval()
    dynamic = {"pixel_values": {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(model, (), {"pixel_values": images}, dynamic_shapes=dynamic)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    other = torch.randn(5, 3, 64, 33)
    got, expected = torch.export.load(file).module()(pixel_values=other), model(other)
    assert list(got) == list(expected)
    torch.testing.assert_close(got.to_tuple(), expected.to_tuple())


def test_compiles_in_one_graph(classifier: SelfConResNetForImageClassification, images: Tensor) -> None:
    compiled = torch.compile(classifier, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images).logits, classifier(images).logits)


def test_compiled_training_gives_the_same_gradients(images: Tensor) -> None:
    torch.manual_seed(0)
    model = SelfConResNetForImageClassification(tiny(backbone="test_resnet", head_dropout=0.0)).train()
    gradients = []
    for forward in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        forward(images, labels=torch.tensor([0, 1, 1])).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[1], gradients[0])


def _has_compiler() -> bool:
    try:
        return bool(get_cpp_compiler())
    except InvalidCxxCompiler:
        return False


@pytest.mark.skipif(not _has_compiler(), reason="needs a C++ compiler")
def test_compiles_with_the_default_backend(images: Tensor) -> None:
    model = SelfConResNetForImageClassification(tiny(backbone="test_resnet", exit_stages=())).eval()
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model)(images).logits, model(images).logits)


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


def test_new_names_of_labels_are_saved_whole(classifier_folder: Path, tmp_path: Path) -> None:
    model = SelfConResNetForImageClassification.from_pretrained(
        classifier_folder, id2label={"0": "a", "1": "b", "2": "c"}, ignore_mismatched_sizes=True
    )
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["label2id"] == {"a": 0, "b": 1, "c": 2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backbone", ["resnet10t", "resnet18"])
def test_replicas_of_data_parallel_work(
    backbone: str, dtype: torch.dtype, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As nn.DataParallel makes them, but without a second device to copy the tensors to.
    def copies(tensors: Any, devices: list[int], detach: bool = False) -> list[list[Tensor]]:
        return [[tensor.clone() for tensor in tensors] for _ in devices]

    monkeypatch.setitem(nn.parallel.replicate.__globals__, "_broadcast_coalesced_reshape", copies)
    model = SelfConResNetForImageClassification(tiny(backbone=backbone)).eval().to(dtype)
    for replica in nn.parallel.replicate(model, [0, 1]):
        assert not list(replica.parameters())
        assert torch.equal(replica(images).logits, model(images).logits)


class TestLoss:
    def test_of_one_logit_is_that_of_two(self, images: Tensor) -> None:
        torch.manual_seed(0)
        model = SelfConResNetForImageClassification(tiny(id2label={0: "synthetic"})).eval().to(torch.bfloat16)
        for labels in (torch.tensor([0, 1, 1]), torch.tensor([1, 1, 0], dtype=torch.int32), torch.ones(3).long()):
            outputs = model(images, labels=labels)
            two = torch.cat([torch.zeros(3, 1), outputs.logits.float()], dim=1)
            assert outputs.loss.dtype == torch.float32
            torch.testing.assert_close(outputs.loss, F.cross_entropy(two, labels.long()))
        outputs.loss.backward()
        assert model.classifier[-1].weight.grad.abs().sum() > 0

    @pytest.mark.parametrize("classes", [1, 3])
    @pytest.mark.parametrize(
        ("labels", "word"),
        [
            (torch.zeros(3), r"class ids of shape \(3,\), got torch.float32"),
            (torch.zeros(3, 1, dtype=torch.long), r"got torch.int64 of shape \(3, 1\)"),
            (torch.zeros(2, dtype=torch.long), r"of shape \(2,\)"),
            ([0, 1, 0], "got list"),
            (torch.tensor([0, 3, 1]), r"in 0\.\.[12], got 0\.\.3"),
            (torch.tensor([0, -100, 1]), r"got -100\.\.1"),
        ],
    )
    def test_refuses_labels_that_are_no_class_ids(self, classes: int, labels: Any, word: str, images: Tensor) -> None:
        model = SelfConResNetForImageClassification(tiny(id2label={i: str(i) for i in range(classes)})).eval()
        with pytest.raises(ValueError, match=word):
            model(images, labels=labels)

    def test_refuses_other_kinds_of_problem(self, images: Tensor) -> None:
        for kind in ("regression", "multi_label_classification"):
            model = SelfConResNetForImageClassification(tiny(problem_type=kind)).eval()
            assert model(images).loss is None
            with pytest.raises(ValueError, match=f"'single_label_classification', got '{kind}'"):
                model(images, labels=torch.tensor([0, 1, 1]))
        model.config.problem_type = "single_label_classification"
        assert model(images, labels=torch.tensor([0, 1, 1])).loss > 0
