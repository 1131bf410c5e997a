import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError

from imaginet_hub.selfcon import SelfConResNetConfig


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
        ({"projection_dim": 10**12}, "at most 65536"),
        ({"head_hidden_size": 10**12}, "at most 65536"),
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
    ],
)
def test_refuses(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(StrictDataclassError, match=word):
        SelfConResNetConfig(**fields)


@pytest.mark.parametrize("number", [10**12, -1, "3", 3.0])
def test_refuses_numbers_of_labels_before_it_names_them(number: Any) -> None:
    with pytest.raises(ValueError, match=r"num_labels to be an integer in 0\.\.65536"):
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
    for asked in ({}, {"stem_stride": 2}, {"num_labels": 2}, {"projection_dim": 8}):
        config = SelfConResNetConfig.from_pretrained(tmp_path, **asked)
        assert "_asked" not in config.to_dict()
        assert "_asked" not in config.to_json_string()
        assert config.forget_what_was_asked() is bool(asked.keys() & {"num_labels", "projection_dim"})
        assert not config.forget_what_was_asked()
