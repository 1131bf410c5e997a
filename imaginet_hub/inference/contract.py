"""Any detector behind one contract: RGB images in, probabilities of named classes out.

Three kinds are known: models of ours, `image-classification` pipelines of transformers, and functions of yours.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from imaginet_hub.data.units import one_line
from imaginet_hub.errors import UsageError, require
from imaginet_hub.inference.detector import Detector, check_device, loading
from imaginet_hub.inference.weights import weights_digest
from imaginet_hub.labels import Origin, Track, origin_named

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from imaginet_hub.evaluation.report import Predict

__all__ = ["Measurable", "label_map", "load_measurable"]

#: Side of the evaluation crop where the detector does not say one (paper, section on the test set).
CROP_SIZE = 256

_CALLABLE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_DETECTION = tuple(str(origin) for origin in Origin)


@dataclass(frozen=True)
class Measurable:
    """A detector that can be measured.

    Attributes:
        predict: RGB images to probabilities; see `evaluation.report.Predict`.
        names: its classes, in the order of the probabilities.
        track: detection or identification.
        label_column: the column of a dataset that the classes are of.
        name: as it was asked for.
        kind: "selfcon_resnet", "pipeline" or "callable".
        fingerprint: of weights, configuration and preprocessing, or of the source of a function; None where neither
            can be had. Predictions are kept by it.
        crop_size: side of the crop that it is to be given.
        calibrated: whether its probabilities were fitted to rows that are not test rows, and come so.
        distances: whether `predict` gives one column more, of how unlike the classes an image is.
        record: what else a results file says of it.
        how: in words, for people.
    """

    predict: Predict
    names: tuple[str, ...]
    track: Track
    label_column: str
    name: str
    kind: str
    fingerprint: str | None = None
    crop_size: int = CROP_SIZE
    calibrated: bool = False
    distances: bool = False
    record: dict[str, Any] = field(default_factory=dict)
    how: str = ""


def load_measurable(
    model: str | os.PathLike[str] | Detector | Callable[..., Any],
    *,
    labels: Mapping[str, str] | None = None,
    device: str | None = None,
    dtype: str = "float32",
    compile: bool = False,
    batch_size: int = 32,
) -> Measurable:
    """Find a detector.

    Args:
        model: a model folder or Hub id (ours, or of any image classifier that transformers' pipeline loads), the name
            of a function as "package.module:function", the function itself, or a loaded `Detector`. A function takes
            a list of RGB PIL images and gives P(synthetic), (n,), or the probabilities of ("real", "synthetic"),
            (n, 2). With an attribute `names` it gives probabilities of these classes, and is an identifier unless
            they are real and synthetic. Predictions of a module's function are kept by its name and source file; of
            what else it uses, such as a file of weights, only its attribute `fingerprint` can tell, a string. Without
            one, nothing is kept of other callables.
        labels: what the classes of a pipeline mean: {"its class": "real" or "synthetic"}. By default it is inferred
            from their names.
        device, dtype, compile: see `Detector`; a pipeline takes the device alone.
        batch_size: of a pipeline.

    Raises:
        ModelError: nothing there that could be used.
        UsageError: a function that cannot be imported; classes whose meaning cannot be inferred, or `labels` that do
            not fit them.
    """
    if isinstance(model, Detector):
        return _ours(model)
    if callable(model):
        return _function(model, f"{model.__module__}:{getattr(model, '__qualname__', type(model).__name__)}")
    name = os.fspath(model)
    if not Path(name).expanduser().exists() and _CALLABLE.fullmatch(name):
        if labels:
            raise UsageError(f"--label-map is for pipelines; {name} gives P(synthetic), or has an attribute `names`")
        return _function(_imported(name), name)
    require("train", "torch", "transformers", "timm", "torchvision")
    if _is_foreign(name):
        if dtype not in ("auto", "float32") or compile:
            raise UsageError("--dtype and --compile are for models of this package; a pipeline runs as it is")
        return _pipeline(name, labels, device, batch_size)
    if labels:
        raise UsageError(f"--label-map is for pipelines; {name} says what its classes are")
    return _ours(Detector.from_pretrained(name, device=device, dtype=dtype, compile=compile))


def label_map(classes: Sequence[str], given: Mapping[str, str] | None = None) -> dict[str, str]:
    """What each class of a detector means.

    Args:
        classes: its names.
        given: some or all of the answers; the others are inferred from the names.

    Returns:
        {class: "real" or "synthetic"}; both occur, but for a detector of one class.

    Raises:
        UsageError: a class whose name says neither, `given` with other classes or meanings, or one meaning only.
    """
    given = given or {}
    strange = [name for name in given if name not in classes]
    wrong = [meaning for meaning in given.values() if meaning not in _DETECTION]
    if strange or wrong:
        raise UsageError(
            f"--label-map: expected CLASS=real or CLASS=synthetic with classes among {', '.join(classes)}, got "
            f"{(strange + wrong)[0]!r}"
        )
    meanings = {name: given.get(name) or origin_named(name) for name in classes}
    unclear = [name for name, meaning in meanings.items() if meaning is None]
    if unclear:
        example = ",".join(f"{name}=real|synthetic" for name in unclear)
        raise UsageError(
            f"what the classes {', '.join(unclear)} mean cannot be told from their names; say it, such as "
            f"--label-map {example!r}"
        )
    found = {str(meaning) for meaning in meanings.values()}
    if len(classes) > 1 and len(found) == 1:
        raise UsageError(
            f"every class ({', '.join(classes)}) would mean {found.pop()}; say what they mean with --label-map"
        )
    return {name: str(meaning) for name, meaning in meanings.items()}


def _ours(detector: Detector) -> Measurable:
    from importlib import metadata

    config = detector.model.config
    name = Path(detector.name).resolve().name if Path(detector.name).is_dir() else detector.name

    distances = detector.track is Track.IDENTIFICATION and detector.known_below is not None

    def predict(images: Sequence[Image.Image]) -> NDArray[np.float64]:
        answers = detector.answers(images)
        if answers.distances is None or not distances:
            return answers.probabilities
        return np.column_stack([answers.probabilities, answers.distances])

    return Measurable(
        predict=predict,
        names=detector.names,
        track=detector.track,
        label_column=detector.label_column,
        name=name,
        kind="selfcon_resnet",
        fingerprint=_fingerprint(detector.model, detector.processor.to_json_string()),
        crop_size=int(detector.processor.crop_size["height"]),
        calibrated=bool(config.calibration),
        distances=distances,
        record={
            "backbone": config.backbone,
            "stem_stride": config.stem_stride,
            "trained_on": config.trained_on,
            "weights": weights_digest(
                (key, value.cpu().numpy()) for key, value in detector.model.state_dict().items()
            ),
            "dtype": detector.dtype,
            "compiled": detector.compiled,
            "device": detector.model.device.type,
            "torch": metadata.version("torch"),
        },
        how=detector.how,
    )


def _pipeline(name: str, labels: Mapping[str, str] | None, device: str | None, batch_size: int) -> Measurable:
    import torch
    from transformers import pipeline

    if device is not None:
        check_device(device)
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with loading(name, "the pipeline", "any image classifier of transformers'"):
        classify: Any = pipeline("image-classification", model=name, device=where, trust_remote_code=False)
    id2label = classify.model.config.id2label
    classes = [str(id2label[key]) for key in sorted(id2label)]
    meanings = label_map(classes, labels)
    processor = getattr(classify, "image_processor", None)

    def predict(images: Sequence[Image.Image]) -> NDArray[np.float64]:
        answers = classify(list(images), top_k=None, batch_size=batch_size)
        scores = np.zeros((len(images), 2))
        for row, answer in enumerate(answers):
            for part in answer:
                scores[row, _DETECTION.index(meanings[part["label"]])] += part["score"]
        if len(classes) == 1:  # one logit: what is left is the other class
            own = _DETECTION.index(meanings[classes[0]])
            scores[:, 1 - own] = 1 - scores[:, own]
            return scores
        shares: NDArray[np.float64] = scores / scores.sum(axis=1, keepdims=True)
        return shares

    return Measurable(
        predict=predict,
        names=_DETECTION,
        track=Track.DETECTION,
        label_column=Track.DETECTION.label_column,
        name=Path(name).resolve().name if Path(name).is_dir() else name,
        kind="pipeline",
        fingerprint=_fingerprint(classify.model, "" if processor is None else processor.to_json_string()),
        record={"model_type": classify.model.config.model_type, "label_map": meanings, "device": where},
        how=f"pipeline, {where}; {', '.join(f'{own} = {meaning}' for own, meaning in meanings.items())}",
    )


def _function(function: Callable[..., Any], name: str) -> Measurable:
    names = tuple(str(item) for item in getattr(function, "names", _DETECTION))
    track = Track.DETECTION if sorted(names) == sorted(_DETECTION) else Track.IDENTIFICATION

    def predict(images: Sequence[Image.Image]) -> NDArray[np.float64]:
        given = function(list(images))
        try:
            scores = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{name}: expected probabilities, got something else: {error}") from error
        if track is not Track.DETECTION:
            return scores
        if scores.shape not in ((len(images),), (len(images), 2)):
            raise UsageError(
                f"{name}: expected {len(images)} probabilities of synthetic for {len(images)} images, or those of "
                f"{' and '.join(names)} for each, got an array of shape {scores.shape}"
            )
        if not ((scores >= 0) & (scores <= 1)).all():
            raise UsageError(
                f"{name}: expected probabilities in [0, 1], got values from {scores.min():.4g} to {scores.max():.4g}: "
                "apply a sigmoid to logits, and look for the cause of NaN"
            )
        if scores.ndim == 2:
            return scores
        pair = (1 - scores, scores) if names == _DETECTION else (scores, 1 - scores)
        return np.stack(pair, axis=1)

    return Measurable(
        predict=predict,
        names=names,
        track=track,
        label_column=str(getattr(function, "label_column", track.label_column)),
        name=name,
        kind="callable",
        fingerprint=_source_fingerprint(function, name),
        crop_size=int(getattr(function, "crop_size", CROP_SIZE)),
        how=f"function {name}; predictions are kept {_kept_by(function, name)}",
    )


def _imported(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:  # noqa: PTH109 - as `python -m` has it
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"{name}: expected package.module:function that can be imported from here, got {type(error).__name__}: "
            f"{error}"
        ) from error
    if not callable(found):
        raise UsageError(f"{name}: expected a function, got {type(found).__name__}")
    return found


def _is_foreign(name: str) -> bool:
    """Whether this is a model of another kind than ours; what is no model is left to `Detector` to refuse."""
    from transformers import PretrainedConfig

    from imaginet_hub.selfcon import SelfConResNetConfig

    place = str(Path(name).expanduser()) if Path(name).expanduser().exists() else name
    if Path(place).exists() and not (Path(place) / "config.json").is_file():
        return False
    if name.startswith((".", "/", "~")) and not Path(place).exists():
        return False
    with loading(name, "config.json", "a model of this package or any image classifier of transformers'"):
        given, _ = PretrainedConfig.get_config_dict(place)
    return isinstance(given, Mapping) and given.get("model_type") not in (None, SelfConResNetConfig.model_type)


def _fingerprint(model: Any, preprocessing: str) -> str:
    """Of the weights, the configuration and the preprocessing, wherever they were loaded from."""
    import torch

    digest = hashlib.sha256()
    config = model.config.to_dict()
    for volatile in ("_name_or_path", "transformers_version", "torch_dtype", "dtype"):
        config.pop(volatile, None)
    digest.update(json.dumps(config, sort_keys=True, default=str).encode() + b"\n" + preprocessing.encode())
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(f"\n{key} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def _source_fingerprint(function: Callable[..., Any], name: str) -> str | None:
    """Its attribute `fingerprint`; else of the file that a function is in, if that says all of it but what it uses.

    Objects, closures and methods behave by what they hold, which no file says.
    """
    own = getattr(function, "fingerprint", None)
    if own is not None:
        return one_line(str(own))
    if not inspect.isfunction(function) or function.__closure__ or "<" in function.__qualname__:
        return None
    try:
        data = Path(inspect.getsourcefile(function) or "").read_bytes()
    except (TypeError, OSError):
        return None
    digest = hashlib.sha256(f"{name} {function.__qualname__}\n".encode() + data)
    folder = Path(inspect.getsourcefile(function) or "").resolve().parent
    if folder.name not in ("site-packages", "dist-packages"):  # what it imports from beside it
        loaded = {Path(str(getattr(module, "__file__", None) or "-")).resolve() for module in [*sys.modules.values()]}
        for file in sorted(file for file in loaded if file.parent == folder and file.suffix == ".py"):
            digest.update(file.read_bytes() if file.is_file() else b"")
    return digest.hexdigest()[:32]


def _kept_by(function: Callable[..., Any], name: str) -> str:
    if getattr(function, "fingerprint", None) is not None:
        return "by its fingerprint"
    return "by its source files alone" if _source_fingerprint(function, name) else "not at all"
