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
    ],
)
def test_refuses(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(StrictDataclassError, match=word):
        SelfConResNetConfig(**fields)
