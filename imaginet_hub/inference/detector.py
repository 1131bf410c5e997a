"""A model folder as a callable: PIL images in, class probabilities out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imaginet_hub.errors import ModelError, UsageError, require
from imaginet_hub.labels import Track

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from PIL import Image

    from imaginet_hub.selfcon import SelfConImageProcessor, SelfConResNetForImageClassification

__all__ = ["Detector"]


class Detector:
    """A classifier of either track.

    Attributes:
        names: class names in the order of the probabilities; ("real", "synthetic") for detection.
        track: detection or identification.
        name: where it was loaded from.
    """

    def __init__(
        self,
        model: SelfConResNetForImageClassification,
        processor: SelfConImageProcessor,
        *,
        name: str = "",
        device: str | torch.device | None = None,
    ) -> None:
        import torch

        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = model.eval().to(device)
        self.processor = processor
        self.name = name
        id2label = {int(key): str(name) for key, name in (model.config.id2label or {}).items()}
        self.names: tuple[str, ...] = tuple(id2label[i] for i in sorted(id2label))
        self.track = Track(model.config.track or Track.DETECTION)

    @classmethod
    def from_pretrained(cls, model: str | os.PathLike[str], *, device: str | None = None) -> Detector:
        """Load a model folder or Hub repository; no code that it carries is run.

        Raises:
            ModelError: nothing there, another kind of model, or one without a classification head.
            MissingExtraError: torch, transformers or timm is not installed.
        """
        require("train", "torch", "transformers", "timm", "torchvision")
        from safetensors import SafetensorError
        from transformers import AutoConfig

        from imaginet_hub import selfcon

        selfcon.register()
        name = os.fspath(model)
        if Path(name).expanduser().exists() or name.startswith((".", "/", "~")):
            name = str(Path(name).expanduser())
            if not (Path(name) / "config.json").is_file():
                raise ModelError(
                    f"no model at {name}: expected a folder with config.json and model.safetensors, as "
                    "`imaginet train-head` writes it"
                )
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ModelError(f"no usable model at {name!r}: {_first_line(error)}") from error
        if config.model_type != selfcon.SelfConResNetConfig.model_type:
            raise ModelError(f"{name}: expected a selfcon_resnet model, found {config.model_type!r}")
        if config.track is None:
            raise ModelError(
                f"{name} is a stage-1 encoder without a classification head; "
                "train one with: imaginet train-head ENCODER DATASET OUT --track detection"
            )
        if device is not None:
            _check_device(device)
        try:
            with _without_bars():
                network, loaded = selfcon.SelfConResNetForImageClassification.from_pretrained(
                    name, output_loading_info=True
                )
            processor = selfcon.SelfConImageProcessor.from_pretrained(name)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{name}: the model cannot be loaded: {_first_line(error)}") from error
        absent = sorted([*loaded["missing_keys"], *map(str, loaded["mismatched_keys"])])
        if absent:  # transformers would fill them with random numbers
            raise ModelError(
                f"{name}: the weights lack {len(absent)} tensors that config.json asks for, e.g. {absent[0]}; "
                "the folder is damaged or mixed from two models"
            )
        return cls(network, processor, name=name, device=device)

    def __call__(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Class probabilities of RGB images.

        Args:
            images: PIL images of any size; each is cropped as the processor says, none is resized.

        Returns:
            (len(images), len(names)) float32, rows sum to 1.
        """
        import torch

        if not images:
            return np.zeros((0, len(self.names)), dtype=np.float32)
        inputs: Any = self.processor(images=list(images), return_tensors="pt")
        with torch.inference_mode():
            logits = self.model(pixel_values=inputs["pixel_values"].to(self.model.device)).logits
        probabilities: NDArray[np.float32] = logits.float().softmax(dim=-1).cpu().numpy()
        return probabilities


def _check_device(device: str) -> None:
    import torch

    try:  # a CPU-only torch answers "cuda" with an AssertionError
        torch.zeros(1, device=device).numpy(force=True)
    except (RuntimeError, NotImplementedError, ValueError, AssertionError) as error:
        raise UsageError(f"device {device!r} cannot be used here ({_first_line(error)}); try cpu") from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """Weights of this size load before a bar can be read."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
