"""A model folder as a callable: PIL images in, class probabilities out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from imaginet_hub.data.readers.hub import CLIENT_ERRORS, hub_trouble
from imaginet_hub.data.units import one_line
from imaginet_hub.errors import ImagiNetError, ModelError, UsageError, require
from imaginet_hub.labels import Origin, Track
from imaginet_hub.precision import chosen, close_calls, close_to, out_of_memory, rounding_noise

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from imaginet_hub.selfcon import SelfConImageProcessor, SelfConResNetForImageClassification

__all__ = ["Answers", "Detector", "check_device", "loading"]

#: Fields of config.json by which transformers takes code, weights or settings from elsewhere, or changes the network;
#: none of our models has them.
_FOREIGN = (
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "_experts_implementation",
    "configuration_files",
    "distributed_config",
    "fusion_config",
    "quantization_config",
    "transformers_weights",
)
#: Of what the model sees: ImageNet's mean and deviation give -2.1 to 2.6, pixels that nobody scaled more than this.
_LARGEST_INPUT = 100.0


class Answers(NamedTuple):
    """What a model says of some images.

    Attributes:
        probabilities: (images, classes) float64, rows sum to 1.
        known: (images,) bool, whether the image is like those that the model was trained on, so that one of its
            classes will be right; None where the model stores nothing to tell that by.
        distances: (images,) float64, how unlike them it is, by which `known` is decided; or None.
    """

    probabilities: NDArray[np.float64]
    known: NDArray[np.bool_] | None
    distances: NDArray[np.float64] | None = None


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
        label_column: the column of a data set that its classes are of.
        known_below: the largest distance to the classes, that of the model's `open_set`, of an image that is
            `Answers.known`; None where the model stores none.
        name: where it was loaded from.
        dtype: the arithmetic in use, never auto.
        compiled: whether the first look is compiled.

    Raises:
        ModelError: a track or class names that nothing could be answered with.
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

        self.track, self.names = _track_and_names(model.config)
        self.label_column = model.config.label_column or self.track.label_column
        self.known_below = _known_below(model.config.open_set) if model.open_set is not None else None
        where = _device(device)
        self.dtype = chosen(dtype, where)
        self.model = model.eval().to(device=where, dtype=torch.float32, memory_format=torch.channels_last)
        self.compiled = compile
        self._compiled: Any = torch.compile(self.model.encoder) if compile else None
        self.processor = processor
        self.name = name

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
            ModelError: nothing there, another kind of model, one without a classification head, or a file in it that
                is broken, does not fit the others or asks for what is not ours.
            UsageError: a device or a dtype that cannot be had here.
            MissingExtraError: torch, transformers or timm is not installed.
        """
        require("train", "torch", "transformers", "timm", "torchvision")
        from imaginet_hub import selfcon

        name = os.fspath(model)
        with loading(name, "config.json"):
            if Path(name).expanduser().exists() or name.startswith((".", "/", "~")):
                name = str(Path(name).expanduser())
                if not (Path(name) / "config.json").is_file():
                    raise ModelError(
                        "no model at this path: expected a folder with config.json and model.safetensors, as "
                        "`imaginet train-head` writes it"
                    )
            given, _ = selfcon.SelfConResNetConfig.get_config_dict(name)
            _check_config(given)
            config = selfcon.SelfConResNetConfig.from_pretrained(name)
            _track_and_names(config)
            _known_below(config.open_set)
        if device is not None:
            check_device(device)
        chosen(dtype, _device(device))  # refused before anything large is loaded
        with loading(name, "preprocessor_config.json"):
            processor = selfcon.SelfConImageProcessor.from_pretrained(name)
            _check_processor(processor)
        with loading(name, "model.safetensors"), selfcon.without_bars():
            _check_shards(Path(name))
            network, loaded = selfcon.SelfConResNetForImageClassification.from_pretrained(
                name, output_loading_info=True, ignore_mismatched_sizes=True
            )
            # Tensors that are missing were refused just now. Those of another shape would be random numbers.
            strange = sorted([*loaded["unexpected_keys"], *(key for key, *_ in loaded["mismatched_keys"])])
            if strange:
                raise ModelError(
                    f"expected the tensors that config.json asks for, got {len(strange)} of other names or shapes, "
                    f"e.g. {strange[0]}; the folder is damaged or mixed from two models"
                )
            least, sides = network.encoder.least_side, dict(processor.crop_size)
            if min(sides["height"], sides["width"]) < least:
                raise ModelError(
                    f"expected a crop_size of at least {least} pixels for {config.backbone}, got {sides}; "
                    "use the preprocessor_config.json that the model was saved with"
                )
        return cls(network, processor, name=name, device=device, dtype=dtype, compile=compile)

    @property
    def how(self) -> str:
        """The arithmetic in words: "bfloat16 autocast, channels_last, cpu; close calls again in float32"."""
        reduced = self.dtype != "float32"
        words = [f"{self.dtype}{' autocast' * reduced}", "channels_last", *["compiled"] * self.compiled]
        return f"{', '.join(words)}, {self.model.device}{'; close calls again in float32' * reduced}"

    def __call__(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Class probabilities of RGB images: (len(images), len(names)) float64, rows sum to 1; see `answers`."""
        return self.answers(images).probabilities

    def answers(self, images: Sequence[Image.Image]) -> Answers:
        """Class probabilities of RGB images, and whether the model knows their like.

        Args:
            images: PIL images of any size; each is cropped as the processor says, none is resized.

        Raises:
            ModelError: the model gives NaN.
            UsageError: the images do not fit into memory together, or the model cannot be compiled.
        """
        import torch

        if not images:
            none = np.zeros((0, len(self.names)))
            return Answers(none, None) if self.known_below is None else Answers(none, np.zeros(0, bool), np.zeros(0))
        try:
            inputs: Any = self.processor(images=list(images), return_tensors="pt")
            logits, distances = self._outputs(inputs["pixel_values"])
            # In float32 every logit beyond 17 would be one and the same probability.
            probabilities: NDArray[np.float64] = logits.cpu().double().softmax(dim=-1).numpy()
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
        unusable = int((~np.isfinite(probabilities)).any(axis=1).sum())
        if unusable:
            raise ModelError(
                f"{one_line(self.name or 'the model')}: expected probabilities, got NaN for {unusable} of "
                f"{len(images)} images; the weights or preprocessor_config.json are damaged: save or download them "
                "again"
            )
        if distances is None or self.known_below is None:
            return Answers(probabilities, None)
        far: NDArray[np.float64] = distances.cpu().double().numpy()
        return Answers(probabilities, far <= self.known_below, far)

    def logits(self, pixel_values: torch.Tensor, *, second_look: bool = True) -> torch.Tensor:
        """Logits of images that the processor has prepared.

        Args:
            pixel_values: (B, 3, H, W) float32, on any device.
            second_look: answer close calls again in float32, where the first look is in another arithmetic.

        Returns:
            (B, len(names)) float32, on the model's device.
        """
        return self._outputs(pixel_values, second_look=second_look)[0]

    def _outputs(
        self, pixel_values: torch.Tensor, *, second_look: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits, and distances (B,) where the model stores a threshold for them."""
        import torch

        encoder = self.model.encoder
        with torch.inference_mode():
            pixels = pixel_values.to(self.model.device).contiguous(memory_format=torch.channels_last)
            if self.compiled and len(pixels) > 1:  # a batch of one would be compiled anew, for itself
                torch._dynamo.mark_dynamic(pixels, 0)
                encoder = self._compiled
            head: Any = self.model.classifier  # costs nothing, and stays in float32
            far: Any = None if self.known_below is None else self.model.open_set
            reduced = None if self.dtype == "float32" else getattr(torch, self.dtype)
            features = self._features(encoder, pixels, reduced)
            if reduced is not None and second_look:
                close = close_calls(head(features), rounding_noise(head, features, self.dtype))
                if far is not None and self.known_below is not None:
                    noise = rounding_noise(far, features, self.dtype, lambda distances: distances)
                    close |= close_to(self.known_below, far(features), noise)
                if close.any():
                    again = pixels[close].contiguous(memory_format=torch.channels_last)
                    features[close] = self._features(self.model.encoder, again)
            return head(features), None if far is None else far(features)

    def _features(self, encoder: Any, pixels: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        import torch

        with torch.autocast(pixels.device.type, dtype, enabled=dtype is not None):
            features: torch.Tensor = encoder(pixels, output_exit_features=False, return_dict=True).pooler_output
        return features.float()


@contextmanager
def loading(name: str, part: str, expected: str = "a model as `imaginet train-head` writes it") -> Iterator[None]:
    """Whatever reading a foreign file raises in here becomes one line, without transformers' reports before it."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    except ModelError as error:
        raise ModelError(one_line(f"{name}: {error}")) from error.__cause__
    except ImagiNetError:
        raise
    except (
        *(*CLIENT_ERRORS, StrictDataclassError, SafetensorError, TypeError, AttributeError, LookupError),
        *(ImportError, RuntimeError, ArithmeticError, AssertionError, MemoryError),
    ) as error:
        trouble = hub_trouble(error, name, "model")
        if trouble is not None:
            raise ModelError(trouble) from error
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        raise ModelError(
            one_line(f"{name}: no usable model: {part} cannot be loaded ({said}); expected ")
            + f"{expected}: save or download it again"
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def _check_config(given: Any) -> None:
    """Refuses, before transformers acts on it, what no configuration of ours says."""
    from imaginet_hub.selfcon import SelfConResNetConfig

    kind = given.get("model_type") if isinstance(given, Mapping) else given
    if not isinstance(given, Mapping) or kind != SelfConResNetConfig.model_type:
        raise ModelError(f"expected a {SelfConResNetConfig.model_type} model, found {kind!r}")
    if given.get("track") is None:
        raise ModelError(
            "a stage-1 encoder without a classification head; "
            "train one with: imaginet train-head ENCODER DATASET OUT --track detection"
        )
    foreign = [key for key in _FOREIGN if given.get(key) is not None]
    if not isinstance(given.get("auto_map", {}), Mapping):
        foreign.append("auto_map")
    if foreign:
        raise ModelError(
            f"expected config.json as `imaginet train-head` writes it, got {foreign[0]} {given[foreign[0]]!r:.80}; "
            "such models are not supported: remove it if it is not meant"
        )


def _track_and_names(config: Any) -> tuple[Track, tuple[str, ...]]:
    """What the model answers, and the names of its classes in the order of the logits."""
    remedy = "use the config.json that the model was saved with"
    if config.track not in (None, *Track):
        raise ModelError(f"expected track to be {' or '.join(Track)}, got {config.track!r:.80}; {remedy}")
    track = Track(config.track or Track.DETECTION)
    id2label = {int(key): str(name) for key, name in (config.id2label or {}).items()}
    names = tuple(id2label[i] for i in sorted(id2label))
    if track is Track.DETECTION and config.label_column not in (None, track.label_column):
        raise ModelError(
            f"expected label_column {track.label_column} for {track}, got {config.label_column!r:.80}; {remedy}"
        )
    if track is Track.DETECTION:
        fine, expected = sorted(names) == sorted(Origin), " and ".join(Origin)
    else:
        fine = len(set(names)) == len(names) >= 2 and all(name and name.isprintable() for name in names)
        expected = "two or more different, printable names"
    if not fine:
        raise ModelError(f"expected id2label to give {expected} for {track}, got {names!r:.200}; {remedy}")
    return track, names


def _known_below(open_set: Any) -> float | None:
    """The threshold that a configuration stores for `Answers.known`."""
    if open_set is None:
        return None
    threshold = open_set.get("threshold")
    if type(threshold) not in (float, int) or not np.isfinite(threshold):
        raise ModelError(
            f"expected open_set to hold a finite threshold, got {open_set!r:.200}; use the config.json that the model "
            "was saved with"
        )
    return float(threshold)


def _check_processor(processor: Any) -> None:
    """Refuses what gives no batches, or nothing that a model was trained on, from a black and a white pixel."""
    if not processor.do_center_crop or getattr(processor, "do_pad", None):
        raise ModelError(
            "expected do_center_crop and no do_pad in preprocessor_config.json, since a batch needs one size; "
            "use the file that the model was saved with"
        )
    picture = Image.new("RGB", (2, 1))
    picture.putpixel((1, 0), (255, 255, 255))
    pixels = processor(images=[picture], return_tensors="pt", do_center_crop=False)["pixel_values"]
    low, high = pixels.min().item(), pixels.max().item()
    if (
        not (pixels.is_floating_point() and -_LARGEST_INPUT <= low < high <= _LARGEST_INPUT)
        or not pixels.isfinite().all()
        or tuple(pixels.shape) != (1, 3, 1, 2)
        or not (pixels[..., 0] != pixels[..., 1]).all()
    ):
        raise ModelError(
            "expected preprocessor_config.json to rescale and normalise pixels, to about -2..3, got "
            f"{low:.3g}..{high:.3g}, {pixels.dtype} {tuple(pixels.shape)}; use the file that the model was saved with"
        )


def _check_shards(folder: Path) -> None:
    """Refuses an index of weights that names files outside the folder."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return
    for file in json.loads(index.read_text("utf-8"))["weight_map"].values():
        if Path(file).name != file:
            raise ModelError(f"expected {index.name} to name files beside it, got {file!r:.200}; save the model again")


def _device(given: str | torch.device | None) -> torch.device:
    """The device that was asked for; a GPU, if there is one, where none was."""
    import torch

    return torch.device(given or ("cuda" if torch.cuda.is_available() else "cpu"))


def check_device(device: str) -> None:
    import torch

    try:  # a CPU-only torch answers "cuda" with an AssertionError
        torch.zeros(1, device=device).numpy(force=True)
    except (RuntimeError, NotImplementedError, ValueError, AssertionError) as error:
        raise UsageError(f"device {device!r} cannot be used here ({_first_line(error)}); try cpu") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
