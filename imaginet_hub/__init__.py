"""ImagiNet in the Hugging Face ecosystem: telling synthetic images from real ones.

Importing this package costs next to nothing and makes two names known, whenever the libraries that own them are
imported, before or after: `datasets.load_dataset("imaginet", ...)` and the model type `selfcon_resnet` of
transformers' Auto classes. Everything else loads when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from imaginet_hub._register import register_on_import

if TYPE_CHECKING:
    from imaginet_hub.data.builder import ImagiNet, ImagiNetConfig
    from imaginet_hub.data.fetch import fetch
    from imaginet_hub.data.verify import verify
    from imaginet_hub.errors import ImagiNetError
    from imaginet_hub.inference.detector import Detector
    from imaginet_hub.labels import ContentType, Generator, GeneratorFamily, Origin, Track, Vocabulary
    from imaginet_hub.selfcon import (
        SelfConImageProcessor,
        SelfConResNetConfig,
        SelfConResNetForImageClassification,
        SelfConResNetForPreTraining,
        SelfConResNetModel,
    )
    from imaginet_hub.training.arguments import HeadTrainingArguments, SelfConTrainingArguments
    from imaginet_hub.training.head import HeadTrainer
    from imaginet_hub.training.trainer import SelfConTrainer

__version__ = "0.1.0"

#: Public name -> module that defines it.
_WHERE = {
    "ContentType": "labels",
    "Detector": "inference.detector",
    "Generator": "labels",
    "GeneratorFamily": "labels",
    "HeadTrainer": "training.head",
    "HeadTrainingArguments": "training.arguments",
    "ImagiNet": "data.builder",
    "ImagiNetConfig": "data.builder",
    "ImagiNetError": "errors",
    "Origin": "labels",
    "SelfConImageProcessor": "selfcon",
    "SelfConResNetConfig": "selfcon",
    "SelfConResNetForImageClassification": "selfcon",
    "SelfConResNetForPreTraining": "selfcon",
    "SelfConResNetModel": "selfcon",
    "SelfConTrainer": "training.trainer",
    "SelfConTrainingArguments": "training.arguments",
    "Track": "labels",
    "Vocabulary": "labels",
    "fetch": "data.fetch",
    "verify": "data.verify",
}

__all__ = [
    "ContentType",
    "Detector",
    "Generator",
    "GeneratorFamily",
    "HeadTrainer",
    "HeadTrainingArguments",
    "ImagiNet",
    "ImagiNetConfig",
    "ImagiNetError",
    "Origin",
    "SelfConImageProcessor",
    "SelfConResNetConfig",
    "SelfConResNetForImageClassification",
    "SelfConResNetForPreTraining",
    "SelfConResNetModel",
    "SelfConTrainer",
    "SelfConTrainingArguments",
    "Track",
    "Vocabulary",
    "__version__",
    "fetch",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


register_on_import()
