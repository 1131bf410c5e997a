import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from imaginet_hub.selfcon import (
    SelfConResNetConfig,
    SelfConResNetForImageClassification,
    SelfConResNetForPreTraining,
)


def test_defaults_are_upstreams_detector() -> None:
    config = SelfConResNetConfig()
    assert (config.backbone, config.stem_stride, config.exit_stages) == ("resnet50", 1, (2,))
    assert (config.projection_dim, config.head_hidden_size, config.head_type) == (128, 1024, "batchnorm_mlp")
    assert config.num_labels == 2


def test_survives_json(tmp_path: Path) -> None:
    config = SelfConResNetConfig(
        backbone="resnet18",
        exit_stages=[1, 4],
        id2label={0: "GAN", 1: "SD", 2: "Midjourney"},
        head_type="l2norm_mlp",
        track="identification",
        trained_on={"fingerprint": "abc", "rows": 3},
    )
    config.save_pretrained(tmp_path)
    again = SelfConResNetConfig.from_pretrained(tmp_path)
    assert again.exit_stages == (1, 4)
    assert again.id2label == {0: "GAN", 1: "SD", 2: "Midjourney"}
    assert again.label2id == {"GAN": 0, "SD": 1, "Midjourney": 2}
    assert again.num_labels == 3
    assert again.to_diff_dict() == config.to_diff_dict()


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"stem_stride": 4}, "stem_stride"),
        ({"exit_stages": (0,)}, "exit_stages"),
        ({"exit_stages": (5,)}, "exit_stages"),
        ({"exit_stages": (3, 2)}, "exit_stages"),
        ({"exit_stages": (2, 2)}, "exit_stages"),
        ({"projection_dim": 0}, "projection_dim"),
        ({"head_hidden_size": -3}, "head_hidden_size"),
        ({"head_type": "linear"}, "head_type"),
        ({"head_dropout": 1.0}, "head_dropout"),
        ({"backbone": 50}, "backbone"),
        ({"backbone": "hf-hub:someone/model"}, "backbone"),
        ({"backbone": "local-dir:/tmp/model"}, "backbone"),
        ({"backbone": ""}, "backbone"),
        ({"projection_dim": 10**12}, "at most 32768, since no head"),
        ({"head_hidden_size": 2**16}, "at most 32768, since no head"),
        ({"projection_dim": 1e12}, "projection_dim"),
        ({"projection_dim": True}, "projection_dim"),
        ({"head_hidden_size": 64.0}, "head_hidden_size"),
        ({"exit_stages": "2"}, "exit_stages"),
        ({"exit_stages": "12"}, "exit_stages"),
        ({"exit_stages": 2}, "exit_stages"),
        ({"exit_stages": [2.0]}, "exit_stages"),
        ({"stem_stride": "1"}, "stem_stride"),
        ({"stem_stride": True}, "stem_stride"),
        ({"head_dropout": float("nan")}, "head_dropout"),
        ({"trained_on": "ImageNet"}, "trained_on"),
        ({"track": 3}, "track"),
        ({"id2label": {0: "real", 2: "synthetic"}}, "id2label"),
        ({"id2label": {-1: "real", 0: "synthetic"}}, "id2label"),
        ({"id2label": {i: f"class {i}" for i in range(4097)}}, "at most 4096 classes, since no head"),
    ],
)
def test_refuses(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(StrictDataclassError, match=word):
        SelfConResNetConfig(**fields)


@pytest.mark.parametrize("number", [10**12, 4097, -1, "3", 3.0])
def test_refuses_numbers_of_labels_before_it_names_them(number: Any) -> None:
    with pytest.raises(ValueError, match=r"num_labels to be an integer in 0\.\.4096, since no head"):
        SelfConResNetConfig(num_labels=number)


@pytest.mark.parametrize("names", [["real", "synthetic"], "real", 2])
def test_refuses_names_without_ids(names: Any) -> None:
    with pytest.raises(ValueError, match="id2label to be names by class id"):
        SelfConResNetConfig(id2label=names)


def test_reads_what_a_newer_version_wrote(tmp_path: Path) -> None:
    trained_on = {"rows": {"train": 3, "nested": [None, {"sha256": "ab"}]}, "name": "Übung"}
    SelfConResNetConfig(backbone="resnet18", trained_on=trained_on).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    newer = fields | {"exit_kind": "mlp", "stages": {"1": [1, 2]}, "transformers_version": "99.0"}
    (tmp_path / "config.json").write_text(json.dumps(newer))
    config = SelfConResNetConfig.from_pretrained(tmp_path)
    assert (config.backbone, config.exit_kind, config.trained_on) == ("resnet18", "mlp", trained_on)


def test_labels_of_any_language(tmp_path: Path) -> None:
    names = {0: "настоящее", 1: "合成された", 2: "été 🎨"}
    SelfConResNetConfig(id2label=names).save_pretrained(tmp_path)
    config = SelfConResNetConfig.from_pretrained(tmp_path)
    assert config.id2label == names
    assert config.label2id == {name: index for index, name in names.items()}


def test_remembers_what_was_asked_until_told_not_to(tmp_path: Path) -> None:
    SelfConResNetConfig().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"_asked": ["projection_dim"]}))  # no file can ask
    for asked in ({}, {"stem_stride": 2}, {"num_labels": 2}, {"projection_dim": 8}):
        config = SelfConResNetConfig.from_pretrained(tmp_path, **asked)
        assert "_asked" not in config.to_dict()
        assert "_asked" not in config.to_json_string()
        assert config.forget_what_was_asked() == asked.keys() & {"num_labels", "projection_dim"}
        assert not config.forget_what_was_asked()


@pytest.mark.parametrize("head_type", ["batchnorm_mlp", "l2norm_mlp"])
def test_the_largest_head_takes_a_gibibyte(head_type: str) -> None:
    config = SelfConResNetConfig(
        backbone="resnet50", head_type=head_type, num_labels=4096, head_hidden_size=2**15, projection_dim=2**15
    )
    with torch.device("meta"):
        heads = (
            SelfConResNetForImageClassification(config).classifier,
            SelfConResNetForPreTraining(config).projector,
        )
    for head in heads:
        matrices = sum(p.numel() for p in head.parameters() if p.ndim == 2)
        assert 2**26 < matrices <= 2**28


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({"id2label": {0: "a", 1: "b", 2: "c"}}, ("a", "b", "c")),
        ({"id2label": {"1": "b", "0": "a"}}, ("a", "b")),
        ({"label2id": {"b": 1, "a": 0, "c": "2"}}, ("a", "b", "c")),
        ({"num_labels": 3}, ("LABEL_0", "LABEL_1", "LABEL_2")),
        ({"num_labels": 2}, ("real", "synthetic")),
        ({}, ("real", "synthetic")),
    ],
    ids=str,
)
def test_label_tables_are_each_others_inverse(asked: dict[str, Any], names: tuple[str, ...], tmp_path: Path) -> None:
    SelfConResNetConfig(id2label={0: "real", 1: "synthetic"}).save_pretrained(tmp_path)
    loaded = SelfConResNetConfig.from_pretrained(tmp_path, **asked)
    loaded.save_pretrained(tmp_path / "again")
    made = [SelfConResNetConfig(**asked)] if {"id2label", "label2id"} & asked.keys() else []
    for config in (loaded, SelfConResNetConfig.from_pretrained(tmp_path / "again"), *made):
        assert config.id2label == dict(enumerate(names))
        assert config.label2id == {name: index for index, name in enumerate(names)}
        assert config.num_labels == len(names)


def test_a_stale_table_of_labels_is_mended() -> None:
    config = SelfConResNetConfig(id2label={"0": "a", "1": "b", "2": "c"}, label2id={"real": 0, "synthetic": 1})
    assert config.label2id == {"a": 0, "b": 1, "c": 2}


def test_fields_passed_while_loading_are_checked(tmp_path: Path) -> None:
    SelfConResNetConfig().save_pretrained(tmp_path)
    for fields, word in (({"projection_dim": -1}, "projection_dim"), ({"id2label": {1: "a"}}, "id2label")):
        with pytest.raises(StrictDataclassError, match=word):
            SelfConResNetConfig.from_pretrained(tmp_path, **fields)
