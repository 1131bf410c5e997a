"""What a training run starts from: the network and its first weights, wherever they are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HTTPError, StrictDataclassError, XetDownloadError
from safetensors import SafetensorError
from torch import Tensor, nn

from imaginet_hub.data.units import one_line
from imaginet_hub.errors import DataNotFoundError, ImagiNetError, ModelError, UsageError
from imaginet_hub.selfcon import (
    SelfConResNetConfig,
    SelfConResNetForImageClassification,
    SelfConResNetForPreTraining,
    SelfConResNetModel,
    SelfConResNetPreTrainedModel,
    without_bars,
)
from imaginet_hub.training.arguments import (
    ARCHITECTURE,
    OBJECTIVES,
    PICKLES,
    SelfConModelArguments,
    SelfConTrainingArguments,
    is_new,
)

__all__ = [
    "build_classifier",
    "build_model",
    "check_objective",
    "config_errors",
    "init_in_full",
    "is_new",
    "load_config",
]

#: The paper's ImageNet weights, as timm calls them.
PAPER_TAG = "tv2_in1k"


def build_model(arguments: SelfConModelArguments) -> SelfConResNetForPreTraining:
    """The network that the arguments describe, its weights initialised as they ask.

    Random weights depend on torch's global seed.

    Raises:
        UsageError: the architecture contradicts that of the model to start from.
        DataNotFoundError: no such file or folder.
        ModelError: weights that cannot be had or do not fit, a pickle, a backbone that the family does not have.
    """
    asked = {name: getattr(arguments, name) for name in ARCHITECTURE if getattr(arguments, name) is not None}
    kind, _, tag = init_in_full(arguments).partition(":")
    if not is_new(arguments):
        return _from_family(arguments.init, asked)
    with config_errors():
        model = SelfConResNetForPreTraining(SelfConResNetConfig(**asked))
    if kind != "random":
        weights = _timm_weights(model.config.backbone, tag) if kind == "timm" else _file_weights(Path(arguments.init))
        _fill_backbone(model, weights, arguments.init)
    return model


def check_objective(model: SelfConResNetForPreTraining, args: SelfConTrainingArguments) -> None:
    """Refuses self-contrast of a model whose images have a single view each.

    Raises:
        UsageError: the objective compares exits with the backbone, and there are none, nor several crops.
    """
    if OBJECTIVES[args.objective].exits and not model.config.exit_stages and args.crops_per_image == 1:
        raise UsageError(
            f"expected a model with exits for --objective {args.objective}, which compares their projections with the "
            "backbone's, got one without: start from one with --exit_stages 2, or pass --objective supcon"
        )


def init_in_full(arguments: SelfConModelArguments) -> str:
    """What `init` says, with the tag that a bare "timm" stands for."""
    if arguments.init != "timm":
        return arguments.init
    import timm

    backbone = arguments.backbone or SelfConResNetConfig.backbone
    paper = f"{backbone}.{PAPER_TAG}" in timm.list_pretrained(f"{backbone}.*")
    return f"timm:{PAPER_TAG}" if paper else "timm"


@contextmanager
def config_errors() -> Iterator[None]:
    """What a configuration, the network made of it or its weights refuse, or stumble over, as a ModelError."""
    try:
        yield
    except ImagiNetError:
        raise
    except StrictDataclassError as error:
        raise ModelError(_one_line(error.__cause__ or error)) from error
    except (OSError, ValueError) as error:
        raise ModelError(_one_line(error)) from error
    except _STUMBLES as error:
        raise ModelError(f"expected a usable model, got {type(error).__name__}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return one_line(" ".join(str(error).split()))


#: What transformers, torch and timm raise on files that they did not expect.
_STUMBLES = (
    *(SafetensorError, TypeError, AttributeError, LookupError, ImportError, RuntimeError),
    *(HTTPError, XetDownloadError),
)
#: What a configuration says of a classifier.
_OF_CLASSIFIERS = (
    *("track", "label_column", "calibration", "open_set", "id2label", "label2id"),
    *("head_type", "head_hidden_size", "head_dropout"),
)


def _from_family(source: str, asked: Mapping[str, Any]) -> SelfConResNetForPreTraining:
    config = load_config(source)
    kinds = getattr(config, "architectures", None) or ()
    classifier = config.track is not None or SelfConResNetForImageClassification.__name__ in kinds
    for name, value in asked.items():
        if classifier and name == "projection_dim":
            continue  # a classifier has none
        if getattr(config, name) != (tuple(value) if isinstance(value, list) else value):
            raise UsageError(
                f"expected --{name} {getattr(config, name)}, which the model of --init has, or no --{name} at all; "
                f"got {value}"
            )
    # A classifier has no projection heads, so that new ones are what is wanted; elsewhere they would be lost ones.
    wanted = classifier or "projection_dim" in asked
    new = {"projection_dim": asked.get("projection_dim", config.projection_dim)} if wanted else {}
    with config_errors(), without_bars():
        model = SelfConResNetForPreTraining.from_pretrained(source, **new)
    untouched = SelfConResNetConfig()
    for name in _OF_CLASSIFIERS:
        setattr(model.config, name, getattr(untouched, name))
    return model


def load_config(source: str) -> SelfConResNetConfig:
    """The configuration of a model of this family, in a folder or on the Hub.

    Raises:
        DataNotFoundError: neither a folder nor a Hub id.
        ModelError: no configuration can be read there, or that of another family.
    """
    if not Path(source).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise DataNotFoundError(f"no model at {source!r}: expected a folder with config.json or a Hub id OWNER/NAME")
    try:
        with config_errors():
            fields, _ = SelfConResNetConfig.get_config_dict(source)
    except ModelError as error:
        raise ModelError(f"expected a model of this family at {source!r}, got none: {error}") from error
    kind = fields.get("model_type") if isinstance(fields, dict) else f"a {type(fields).__name__} as config.json"
    if kind != SelfConResNetConfig.model_type:
        raise ModelError(f"expected a model of type {SelfConResNetConfig.model_type} at {source!r}, got {kind}")
    with config_errors():
        return SelfConResNetConfig.from_dict(fields)


def _timm_weights(backbone: str, tag: str) -> Mapping[str, Tensor]:
    """What timm would download, but for weights that are pickled only."""
    import timm
    from huggingface_hub import hf_hub_download
    from safetensors.torch import load_file

    names = timm.list_pretrained(f"{backbone}.*")
    name = f"{backbone}.{tag}" if tag else backbone
    cfg = timm.get_pretrained_cfg(name) if name in (backbone, *names) and names else None
    if cfg is None or not cfg.hf_hub_id:
        raise ModelError(
            f"expected ImageNet weights that timm has for {backbone}, {', '.join(names) or 'which are none'}, got "
            f"{name}; or pass --init random"
        )
    try:
        file = hf_hub_download(cfg.hf_hub_id, "model.safetensors")
    except (OSError, RuntimeError, ValueError, HTTPError, XetDownloadError) as error:
        raise ModelError(
            f"expected to download ImageNet weights, {cfg.hf_hub_id} of the Hub, got: {_one_line(error)}. Offline, "
            "pass --init FILE.safetensors with these weights (model.safetensors from there), or --init random to "
            "start without"
        ) from error
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"expected ImageNet weights in what {cfg.hf_hub_id} of the Hub gave, got: {_one_line(error)}. Delete "
            f"{file} and try again, or pass --init FILE.safetensors, or --init random to start without"
        ) from error


def _file_weights(file: Path) -> Mapping[str, Tensor]:
    from safetensors.torch import load_file

    if file.suffix in PICKLES:
        raise ModelError(
            f"expected a .safetensors file, got {file.name}: pickles are not read here. One of upstream's checkpoints "
            "becomes a model folder by `imaginet convert`; other weights that you trust, a .safetensors file by "
            'safetensors.torch.save_file(torch.load(FILE, weights_only=True), "weights.safetensors")'
        )
    if not file.is_file():
        raise DataNotFoundError(f"no weights at {file}: expected a .safetensors file")
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file}: expected a safetensors file, but {_one_line(error)}") from error


def _fill_backbone(model: SelfConResNetForPreTraining, weights: Mapping[str, Tensor], source: str) -> None:
    """A plain ResNet's weights into the encoder; names as in timm and torchvision, which agree."""
    backbone = model.encoder.backbone
    own = {name: value for name, value in weights.items() if not name.startswith("fc.")}
    problem = backbone.load_state_dict(own, strict=False) if _shapes_fit(backbone, own) else None
    if problem is None or problem.missing_keys or problem.unexpected_keys:
        expected = backbone.state_dict()
        raise ModelError(
            f"the weights of {source!r} are not those of a {model.config.backbone}: expected {len(expected)} tensors "
            f"such as {next(iter(expected))}, got {len(own)} such as {next(iter(own), 'none')}, and not all of them "
            "with the right name and shape; choose the --backbone they belong to"
        )


def _shapes_fit(module: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    return all(
        name not in weights or weights[name].shape == value.shape for name, value in module.state_dict().items()
    )


def build_classifier(
    encoder: str | Path | SelfConResNetPreTrainedModel, **fields: Any
) -> SelfConResNetForImageClassification:
    """A classifier with a new, random head on the encoder's weights.

    Args:
        encoder: a folder or Hub id of any model of the family, or such a model; its heads are left aside.
        **fields: of `SelfConResNetConfig`, for the head: id2label, track, head_type ...

    Raises:
        DataNotFoundError: no such folder.
        ModelError: not a model of this family, or one without the exits that it names; values that the configuration
            refuses.
    """
    source: SelfConResNetModel
    if isinstance(encoder, SelfConResNetPreTrainedModel):
        source = encoder.base_model  # type: ignore[assignment]
    else:
        load_config(str(encoder))
        with config_errors(), without_bars():
            source = SelfConResNetModel.from_pretrained(str(encoder))
    architecture = {name: getattr(source.config, name) for name in ARCHITECTURE}
    with config_errors():
        config = SelfConResNetConfig(**architecture, trained_on=source.config.trained_on, **fields)
        model = SelfConResNetForImageClassification(config)
    model.encoder.load_state_dict(source.state_dict())
    return model
