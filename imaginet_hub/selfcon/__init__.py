"""The model family: configuration, networks and image processor, in files that travel with every saved model.

The names below are imported when they are first used, so that importing this package costs neither torch nor
transformers.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from .configuration_selfcon import SelfConResNetConfig
    from .image_processing_selfcon import SelfConImageProcessor
    from .modeling_selfcon import (
        OpenSet,
        SelfConForPreTrainingOutput,
        SelfConImageClassifierOutput,
        SelfConModelOutput,
        SelfConResNetForImageClassification,
        SelfConResNetForPreTraining,
        SelfConResNetModel,
        SelfConResNetPreTrainedModel,
    )

__all__ = [
    "AUTO_MODULES",
    "OpenSet",
    "SelfConForPreTrainingOutput",
    "SelfConImageClassifierOutput",
    "SelfConImageProcessor",
    "SelfConModelOutput",
    "SelfConResNetConfig",
    "SelfConResNetForImageClassification",
    "SelfConResNetForPreTraining",
    "SelfConResNetModel",
    "SelfConResNetPreTrainedModel",
    "register",
    "register_in",
    "save_publishable",
    "without_bars",
]

_MODULES = {
    "SelfConResNetConfig": "configuration_selfcon",
    "SelfConImageProcessor": "image_processing_selfcon",
}
#: The modules of transformers that `register_in` knows how to fill.
AUTO_MODULES = tuple(
    f"transformers.models.auto.{name}"
    for name in ("configuration_auto", "modeling_auto", "image_processing_auto", "video_processing_auto")
)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_module_of(name)), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _module_of(name: str) -> str:
    return f"{__name__}.{_MODULES.get(name, 'modeling_selfcon')}"


def register() -> None:
    """Makes transformers' auto classes and pipelines know the family, so that no `trust_remote_code` is needed.

    May be called any number of times. Imports transformers; `register_in` does the same while it is being imported.
    """
    for name in AUTO_MODULES:
        register_in(importlib.import_module(name))


def register_in(auto_module: ModuleType) -> None:
    """Registers the family with one of `AUTO_MODULES`; made to be that module's post-import hook.

    Safe in the middle of transformers' import, whose modules import one another in circles: nothing but our
    configuration is imported, the other classes only when an auto class first looks at them. Where torch,
    torchvision or timm is missing, only the configuration is registered.
    """
    from .configuration_selfcon import SelfConResNetConfig as Config

    def stand_in(name: str) -> Any:
        return wrapt.lazy_import(_module_of(name), name, interface=type)

    def fill(mapping: str, value: Any) -> None:
        # Not the auto classes' own register(), which looks into the class at once.
        getattr(auto_module, mapping).register(Config, value, exist_ok=True)

    kind = auto_module.__name__.rpartition(".")[2]
    if kind == "configuration_auto":
        auto_module.AutoConfig.register(Config.model_type, Config, exist_ok=True)
    elif not all(map(importlib.util.find_spec, ("torch", "torchvision", "timm"))):
        return
    elif kind == "modeling_auto":
        fill("MODEL_MAPPING", stand_in("SelfConResNetModel"))
        fill("MODEL_FOR_PRETRAINING_MAPPING", stand_in("SelfConResNetForPreTraining"))
        fill("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING", stand_in("SelfConResNetForImageClassification"))
    elif kind == "image_processing_auto":
        fill("IMAGE_PROCESSOR_MAPPING", {"torchvision": stand_in("SelfConImageProcessor")})
    else:
        # None to be had; without an entry pipelines guess one and ask whether to trust the folder's code for it.
        fill("VIDEO_PROCESSOR_MAPPING", {})


def save_publishable(
    model: SelfConResNetPreTrainedModel, processor: SelfConImageProcessor, folder: str | Path
) -> Path:
    """Writes a folder that loads where this package is not installed: safetensors, JSON and the family's code.

    It holds model.safetensors, config.json, preprocessor_config.json and the three modules that define the family;
    `AutoConfig`, `AutoModel`, the auto class of the model's task, `AutoImageProcessor` and
    `pipeline("image-classification")` load it with `trust_remote_code=True`. Nothing is pickled.

    Args:
        model: any model of the family.
        processor: what makes its inputs.
        folder: is made where it does not exist; files of the same names are replaced.

    Returns:
        The folder.
    """
    folder = Path(folder)
    with without_bars():
        model.save_pretrained(folder)
    processor.save_pretrained(folder)
    # safetensors makes its file for its owner alone; as readable as the rest, so that a shared folder works.
    mode = (folder / "config.json").stat().st_mode
    for weights in folder.glob("*.safetensors"):
        weights.chmod(mode)
    return folder


@contextmanager
def without_bars() -> Iterator[None]:
    """No bars of transformers' in here: weights of this size are read and written before one can be read."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
