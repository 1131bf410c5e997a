"""A model folder as a callable: PIL images in, class probabilities out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imaginet_hub.errors import ModelError, UsageError, require
from imaginet_hub.inference.precision import chosen, close_calls, out_of_memory
from imaginet_hub.labels import Track

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from PIL import Image

    from imaginet_hub.selfcon import SelfConImageProcessor, SelfConResNetForImageClassification

__all__ = ["Detector"]


class Detector:
    """A classifier of either track.

    Weights and inputs lie in memory with the channels last, which changes no answer and is quicker. With bfloat16 or
    float16 the network runs under autocast, and rows that are close calls then (`precision.close_calls`) are answered
    again in float32, these rows alone, so that the likeliest class is float32's as far as `precision.CLOSE_CALL`
    reaches. Nothing is remembered between calls, and whether an image is looked at again depends on it alone.

    Args:
        model: is put into evaluation mode and float32, and moved to the device.
        processor: what makes its inputs.
        name: where it was loaded from.
        device: torch device; a GPU if there is one by default.
        dtype: float32, bfloat16, float16 (CUDA only), or auto: bfloat16 where it is hardware, else float32.
        compile: compile the first look with `torch.compile`. The first call takes a minute longer, and later ones
            less; see benchmarks/README.md. On a CPU it needs a C++ compiler.

    Attributes:
        names: class names in the order of the probabilities; ("real", "synthetic") for detection.
        track: detection or identification.
        name: where it was loaded from.
        dtype: the arithmetic in use, never auto.
        compiled: whether the first look is compiled.

    Raises:
        UsageError: a dtype that is unknown or that the device lacks.
    """

    def __init__(
        self,
        model: SelfConResNetForImageClassification,
        processor: SelfConImageProcessor,
        *,
        name: str = "",
        device: str | torch.device | None = None,
        dtype: str = "float32",
        compile: bool = False,
    ) -> None:
        import torch

        where = _device(device)
        self.dtype = chosen(dtype, where)
        self.model = model.eval().to(device=where, dtype=torch.float32, memory_format=torch.channels_last)
        self.compiled = compile
        self._compiled: Any = torch.compile(self.model.encoder) if compile else None
        self.processor = processor
        self.name = name
        id2label = {int(key): str(name) for key, name in (model.config.id2label or {}).items()}
        self.names: tuple[str, ...] = tuple(id2label[i] for i in sorted(id2label))
        self.track = Track(model.config.track or Track.DETECTION)

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        device: str | None = None,
        dtype: str = "float32",
        compile: bool = False,
    ) -> Detector:
        """Load a model folder or Hub repository; no code that it carries is run.

        Args:
            model: the folder or Hub id.
            device, dtype, compile: see the class.

        Raises:
            ModelError: nothing there, another kind of model, or one without a classification head.
            UsageError: a device or a dtype that cannot be had here.
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
        chosen(dtype, _device(device))  # refused before anything large is loaded
        try:
            with selfcon.without_bars():
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
        return cls(network, processor, name=name, device=device, dtype=dtype, compile=compile)

    @property
    def how(self) -> str:
        """The arithmetic in words: "bfloat16 autocast, channels_last, cpu; close calls again in float32"."""
        reduced = self.dtype != "float32"
        words = [f"{self.dtype}{' autocast' * reduced}", "channels_last", *["compiled"] * self.compiled]
        return f"{', '.join(words)}, {self.model.device}{'; close calls again in float32' * reduced}"

    def __call__(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """Class probabilities of RGB images.

        Args:
            images: PIL images of any size; each is cropped as the processor says, none is resized.

        Returns:
            (len(images), len(names)) float32, rows sum to 1.

        Raises:
            UsageError: the images do not fit into memory together, or the model cannot be compiled.
        """
        import torch

        if not images:
            return np.zeros((0, len(self.names)), dtype=np.float32)
        inputs: Any = self.processor(images=list(images), return_tensors="pt")
        try:
            probabilities: NDArray[np.float32] = self.logits(inputs["pixel_values"]).softmax(dim=-1).cpu().numpy()
        except RuntimeError as error:
            if out_of_memory(error):
                raise UsageError(
                    f"{len(images)} images at a time do not fit into the memory of {self.model.device} "
                    f"({_first_line(error)}); lower --batch-size"
                ) from error
            if self.compiled and isinstance(error, torch._dynamo.exc.TorchDynamoException):
                reason = _first_line(getattr(error, "inner_exception", error))
                raise UsageError(f"the model cannot be compiled here ({reason}); leave --compile out") from error
            raise
        return probabilities

    def logits(self, pixel_values: torch.Tensor, *, second_look: bool = True) -> torch.Tensor:
        """Logits of images that the processor has prepared.

        Args:
            pixel_values: (B, 3, H, W) float32, on any device.
            second_look: answer close calls again in float32, where the first look is in another arithmetic.

        Returns:
            (B, len(names)) float32, on the model's device.
        """
        import torch

        encoder = self.model.encoder
        with torch.inference_mode():
            pixels = pixel_values.to(self.model.device).contiguous(memory_format=torch.channels_last)
            if self.compiled and len(pixels) > 1:  # a batch of one would be compiled anew, for itself
                torch._dynamo.mark_dynamic(pixels, 0)
                encoder = self._compiled
            if self.dtype == "float32":
                return self._look(encoder, pixels)
            logits = self._look(encoder, pixels, getattr(torch, self.dtype))
            close = close_calls(logits)
            if second_look and close.any():
                again = pixels[close].contiguous(memory_format=torch.channels_last)
                logits[close] = self._look(self.model.encoder, again)
            return logits

    def _look(self, encoder: Any, pixels: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The logits with the encoder in `dtype`; the head costs nothing and stays in float32."""
        import torch

        with torch.autocast(pixels.device.type, dtype, enabled=dtype is not None):
            features = encoder(pixels, output_exit_features=False, return_dict=True).pooler_output
        logits: torch.Tensor = self.model.classifier(features.float())
        return logits


def _device(given: str | torch.device | None) -> torch.device:
    """The device that was asked for; a GPU, if there is one, where none was."""
    import torch

    return torch.device(given or ("cuda" if torch.cuda.is_available() else "cpu"))


def _check_device(device: str) -> None:
    import torch

    try:  # a CPU-only torch answers "cuda" with an AssertionError
        torch.zeros(1, device=device).numpy(force=True)
    except (RuntimeError, NotImplementedError, ValueError, AssertionError) as error:
        raise UsageError(f"device {device!r} cannot be used here ({_first_line(error)}); try cpu") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
