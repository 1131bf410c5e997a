from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from imaginet_hub.selfcon import (
    SelfConImageProcessor,
    SelfConResNetConfig,
    SelfConResNetForImageClassification,
    SelfConResNetForPreTraining,
    register,
    save_publishable,
)


def tiny(**fields: Any) -> SelfConResNetConfig:
    """A configuration that is quick to build and to run."""
    defaults = {
        "backbone": "resnet10t",
        "stem_stride": 2,
        "exit_stages": (1, 3),
        "projection_dim": 8,
        "head_hidden_size": 16,
        "id2label": {0: "real", 1: "synthetic"},
        "track": "detection",
        "trained_on": {"fingerprint": "abc"},
    }
    return SelfConResNetConfig(**{**defaults, **fields})


@pytest.fixture(scope="session", autouse=True)
def _registered() -> None:
    register()


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    return torch.randn(3, 3, 40, 48, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def classifier() -> SelfConResNetForImageClassification:
    torch.manual_seed(0)
    return SelfConResNetForImageClassification(tiny()).eval()


@pytest.fixture(scope="session")
def classifier_folder(
    classifier: SelfConResNetForImageClassification, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    processor = SelfConImageProcessor(crop_size=40)
    return save_publishable(classifier, processor, tmp_path_factory.mktemp("models") / "detector")


@pytest.fixture(scope="session")
def pretraining() -> SelfConResNetForPreTraining:
    torch.manual_seed(1)
    return SelfConResNetForPreTraining(tiny()).eval()


@pytest.fixture(scope="session")
def pretraining_folder(pretraining: SelfConResNetForPreTraining, tmp_path_factory: pytest.TempPathFactory) -> Path:
    processor = SelfConImageProcessor(crop_size=40)
    return save_publishable(pretraining, processor, tmp_path_factory.mktemp("models") / "stage1")
