"""The SelfCon ResNet: encoder, pre-training and classification. This file travels with every saved model.

The network is ImagiNet's (arXiv 2407.20020, "Method"): a ResNet whose early down-sampling can be left out, a
sub-network exit for self-contrastive learning (Bae et al. 2023, arXiv 2106.15499, section 3), projection heads for the
contrastive stage and a two-layer classifier for the second stage. The convolutional trunk is timm's.
"""
# ruff: noqa: RUF012 (class attributes as transformers has them)

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.dynamic_module_utils import custom_object_save
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_selfcon import LABEL_FIELDS, MEANING_FIELDS, NUM_STAGES, PART_FIELDS, SelfConResNetConfig

__all__ = [
    "SelfConForPreTrainingOutput",
    "SelfConImageClassifierOutput",
    "SelfConModelOutput",
    "SelfConResNetForImageClassification",
    "SelfConResNetForPreTraining",
    "SelfConResNetModel",
    "SelfConResNetPreTrainedModel",
]


@dataclass
class SelfConModelOutput(ModelOutput):
    """What the encoder gives for B images.

    Attributes:
        last_hidden_state: the last stage's feature map, (B, C, h, w).
        pooler_output: its spatial mean, not normalised, (B, C).
        exit_features: for each exit the features of its sub-network, (B, C).
        hidden_states: on request, the feature maps after the stem and after each of the four stages.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    exit_features: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class SelfConForPreTrainingOutput(ModelOutput):
    """What the contrastive stage compares, for B images and projections of length P.

    Attributes:
        projections: the backbone's projections, of unit length, (B, P).
        exit_projections: for each exit the sub-network's projections, of unit length, (B, P).
        pooler_output: the spatial mean of the last stage's feature map, (B, C).
        exit_features: for each exit the features of its sub-network, (B, C).
        hidden_states: on request, as in `SelfConModelOutput`.
    """

    projections: Tensor | None = None
    exit_projections: tuple[Tensor, ...] | None = None
    pooler_output: Tensor | None = None
    exit_features: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass
class SelfConImageClassifierOutput(ModelOutput):
    """What the classifier says of B images.

    Attributes:
        loss: where labels were given, the mean cross-entropy, a scalar.
        logits: (B, num_labels), before softmax; a single one before the sigmoid.
        pooler_output: on request with the exits', the features that the head saw, not normalised, (B, C).
        exit_features: on request, for each exit the features of its sub-network, (B, C).
        hidden_states: on request, as in `SelfConModelOutput`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    pooler_output: Tensor | None = None
    exit_features: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class L2Norm(nn.Module):
    """Scales each row to unit length."""

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=-1)


class OpenSet(nn.Module):
    """How far features are from those of every class: what tells images of no class from those of one.

    The distance to the nearest class mean in the space where linear discriminants (Fisher 1936) tell the classes
    apart, in units of the classes' standard deviation there: Mahalanobis' distance (as Lee et al. 2018, arXiv
    1807.03888, section 2.1) of L2-normalised features, but in as many directions as there are classes, less one.

    Args:
        features: length of a feature vector.
        classes: number of classes.
    """

    projection: Tensor
    means: Tensor

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("projection", torch.zeros(classes - 1, features))
        self.register_buffer("means", torch.zeros(classes, classes - 1))

    def forward(self, features: Tensor) -> Tensor:
        """Distances (B,), 0 or more, of features (B, features), the spatial means that the classifier sees."""
        projected = F.normalize(features, dim=-1) @ self.projection.T
        return torch.cdist(projected, self.means, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1).values


def _projector(features: int, projection_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(features, features),
        nn.ReLU(),
        nn.Linear(features, projection_dim),
    )


def _classifier(config: SelfConResNetConfig, features: int) -> nn.Sequential:
    """The head of either track; the positions are those of upstream's state dictionaries."""
    hidden, labels = config.head_hidden_size, config.num_labels or 0
    if config.head_type == "l2norm_mlp":
        return nn.Sequential(
            L2Norm(),
            nn.Linear(features, hidden),
            nn.ReLU(),
            nn.Linear(hidden, labels),
        )
    return nn.Sequential(
        nn.BatchNorm1d(features),
        nn.Linear(features, hidden),
        nn.ReLU(),
        nn.Dropout(config.head_dropout),
        nn.Linear(hidden, labels),
    )


def _backbone(config: SelfConResNetConfig) -> Any:
    """timm's network of that name, freshly made, with the stem's strides that the configuration asks for."""
    import timm  # here, since it takes a second that only those who make a model should wait for
    from timm.models.resnet import ResNet

    if not timm.is_model(config.backbone):
        raise ValueError(
            f"expected backbone to be a ResNet of timm {timm.__version__}, got {config.backbone!r}, which it does "
            "not have; see timm.list_models('*resne*')"
        )
    made = timm.create_model(config.backbone, pretrained=False, num_classes=0, global_pool="")
    if not isinstance(made, ResNet):
        raise ValueError(
            f"expected backbone to be of timm's class ResNet, such as 'resnet50', got {config.backbone!r}, "
            f"a {type(made).__name__}"
        )
    backbone: Any = made
    for block in backbone.modules():
        if isinstance(getattr(block, "aa", None), nn.AvgPool2d):
            # The shortcut beside it rounds odd sides up; timm's own setting fits sides that are multiples of 32 only.
            block.aa.ceil_mode, block.aa.count_include_pad = True, False
    if config.stem_stride == 1:
        # Some smooth before they sub-sample: without the stride that goes too, as timm has it within its blocks.
        if isinstance(backbone.maxpool, nn.AvgPool2d):
            backbone.maxpool = nn.Identity()
        elif isinstance(backbone.maxpool, nn.Sequential) and isinstance(backbone.maxpool[0], nn.MaxPool2d):
            backbone.maxpool = backbone.maxpool[0]
        for layer in (*backbone.conv1.modules(), *backbone.maxpool.modules()):
            if isinstance(layer, (nn.Conv2d, nn.MaxPool2d)):
                layer.stride = (1, 1)
    return backbone


def _least_side(backbone: Any, stem_stride: int) -> int:
    """The fewest pixels that a side needs: networks that smooth before they sub-sample cannot take a single one."""
    smooths = any(not isinstance(getattr(block, "aa", None), nn.Identity | None) for block in backbone.modules())
    return backbone.feature_info[-1]["reduction"] // (1 if stem_stride == 2 else 4) if smooths else 1


@contextmanager
def untracked(module: nn.Module) -> Iterator[None]:
    """In here BatchNorm layers in training mode normalise as ever, but their running statistics stay as they are."""
    kind = nn.modules.batchnorm._BatchNorm
    layers = [layer for layer in module.modules() if isinstance(layer, kind) and layer.training]
    kept = [dict(layer._buffers) for layer in layers]
    # Copies move instead: with none at all, layers would keep fewer tensors for the way back, which checkpoints count.
    for layer, buffers in zip(layers, kept, strict=True):
        layer._buffers.update({name: buffer if buffer is None else buffer.clone() for name, buffer in buffers.items()})
    try:
        yield
    finally:
        for layer, buffers in zip(layers, kept, strict=True):
            layer._buffers.update(buffers)


def _tracked_once(layer: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A stage for a checkpoint, which runs it a second time on the way back: its statistics move the first time."""
    if torch.compiler.is_compiling():  # a compiler sees to that itself
        return layer
    runs = 0

    def run(hidden: Tensor) -> Tensor:
        nonlocal runs
        runs += 1
        with untracked(layer) if runs > 1 else nullcontext():  # type: ignore[arg-type]
            return layer(hidden)

    return run


class SelfConResNetPreTrainedModel(PreTrainedModel):
    """What the three models share: initialisation, loading and saving."""

    config: SelfConResNetConfig
    config_class = SelfConResNetConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = [
        "BasicBlock",
        "Bottle2neck",
        "Bottleneck",
        "ResNestBottleneck",
        "SelectiveKernelBasic",
        "SelectiveKernelBottleneck",
    ]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # What a checkpoint has filled is left alone: by `init`, and by torch.nn.init while this runs.
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            module.reset_parameters()
        elif isinstance(module, SelfConResNetModel):
            init.constant_(module.stem_stride, self.config.stem_stride)
            # Residual blocks start as the identity. Here, since transformers passes over modules without own tensors.
            for block in module.backbone.modules():
                if hasattr(block, "zero_init_last"):
                    block.zero_init_last()
        elif isinstance(module, OpenSet):
            init.zeros_(module.projection)
            init.zeros_(module.means)
        elif hasattr(module, "init_non_persistent_buffers"):
            blur: Any = module  # whose filter no checkpoint holds
            blur.init_non_persistent_buffers()
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, but from safetensors, and with no weights left random that nobody asked to be.

        Exits and heads that the folder lacks are made anew, with a warning, where one of the configuration's fields
        for them is passed, as in `from_pretrained(stage1, num_labels=3)`, or a `config` with another value of one
        than the folder's own. What `trained_on` says is then said of the encoder alone, and `track` and `label_column`
        are not said of new classes unless they are passed too.

        Raises:
            ValueError: weights are missing otherwise; or they were trained with another stem stride than the
                configuration says, or do not say with which.
            OSError: no safetensors there.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("use_safetensors", True)
        kwargs["output_loading_info"] = True
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model, info = loaded
        asked = model.config.forget_what_was_asked()
        new = info["missing_keys"] or info["mismatched_keys"]
        if new and kwargs.get("config") is not None and pretrained_model_name_or_path is not None:
            asked = asked | _differing_from_folder(model.config, pretrained_model_name_or_path, kwargs)
        _check_loaded(model, info, asked, str(pretrained_model_name_or_path))
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As in transformers; the folder also holds the code, and every auto class finds its model in it."""
        # transformers adds the entries of this class and of its configuration only, and none for those of __main__.
        kinds: dict[str, type] = {"AutoConfig": SelfConResNetConfig, **_AUTO}
        self.config.auto_map = {
            auto: f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}" for auto, kind in kinds.items()
        }
        super().save_pretrained(save_directory, *args, **kwargs)
        # Somebody's subclass brings its own module at most, and those entries need ours.
        if type(self).__module__ != __name__ and Path(save_directory).is_dir():
            custom_object_save(SelfConResNetModel, save_directory)


def _differing_from_folder(config: SelfConResNetConfig, source: Any, kwargs: dict[str, Any]) -> set[str]:
    """Which fields of heads differ from what the folder itself says; none where it says nothing."""
    where = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
    try:
        fields, _ = type(config).get_config_dict(source, **where)
    except OSError:
        return set()
    return config.differing_head_fields(type(config).from_dict(fields))


_HUB_ARGUMENTS = ("cache_dir", "local_files_only", "proxies", "revision", "subfolder", "token")


def _check_loaded(model: Any, info: dict[str, Any], asked: set[str], source: str) -> None:
    """Refuses what transformers would have filled in by itself."""
    encoder = model.base_model
    absent = {*info["missing_keys"], *(mismatch[0] for mismatch in info["mismatched_keys"])}
    if any(name.endswith("stem_stride") for name in absent):
        raise ValueError(
            f"the weights of {source} do not say which stem stride they were trained with: expected an integer "
            f"tensor {'' if model is encoder else 'encoder.'}stem_stride; save them with save_pretrained"
        )
    if not encoder.stem_stride.is_meta:
        _check_stem_stride(encoder.stem_stride, encoder.config.stem_stride)
    # By the part that a tensor is of; a backbone, which no field describes, is never asked for.
    parts = {name: name.removeprefix("encoder.").partition(".")[0] for name in info["missing_keys"]}
    lost = sorted(name for name, part in parts.items() if not asked & PART_FIELDS.get(part, set()))
    if lost:
        raise ValueError(
            f"the weights of {source} lack {len(lost)} tensors of a {type(model).__name__}, e.g. {lost[0]}, which "
            "would be random: load a folder that such a model was saved to, or, for new heads to train, pass what "
            "describes them: num_labels or id2label, projection_dim, exit_stages"
        )
    new = sorted(name for name, part in parts.items() if part == "classifier")
    if new and any(name.startswith("classifier.") for name in set(model.state_dict()) - absent):
        raise ValueError(
            f"the weights of {source} have a head of another kind, of which some tensors would be used while others, "
            f"e.g. {new[0]}, would be random: load it with the head_type that it was saved with"
        )
    if any(name.startswith("classifier.") for name in absent):  # the head has seen nothing yet
        if model.config.trained_on:
            model.config.trained_on = {"encoder": model.config.trained_on}
        model.config.calibration = model.config.open_set = model.open_set = None
        for name in MEANING_FIELDS - asked if asked & LABEL_FIELDS else ():
            setattr(model.config, name, None)
    elif getattr(model, "classifier", None) is None:  # what was fitted to one is no part of this model
        model.config.calibration = model.config.open_set = None


def _check_stem_stride(of_weights: Tensor, of_config: int) -> None:
    if of_weights.numel() != 1 or of_weights.item() != of_config:
        raise ValueError(
            f"these weights were trained with stem_stride={of_weights.tolist()}, but the configuration says "
            f"{of_config}: shapes and names agree, the features would not; load them with the stem_stride they were "
            "saved with"
        )


class SelfConResNetModel(SelfConResNetPreTrainedModel):
    """The encoder: a ResNet with a linear exit after each of the stages `exit_stages`."""

    # The heads of a pre-training or classification checkpoint are left aside without a word.
    _keys_to_ignore_on_load_unexpected = [r"^classifier\.", r"^open_set\.", r"^projector\.", r"^exit_projectors\."]

    stem_stride: Tensor

    def __init__(self, config: SelfConResNetConfig) -> None:
        super().__init__(config)
        self.backbone = _backbone(config)
        self.num_features: int = self.backbone.num_features
        self.least_side = _least_side(self.backbone, config.stem_stride)
        channels = [info["num_chs"] for info in self.backbone.feature_info]
        self.exits = nn.ModuleDict(
            {f"stage{stage}": nn.Linear(channels[stage], self.num_features) for stage in config.exit_stages}
        )
        self.gradient_checkpointing = False
        # Saved with the weights: names and shapes are the same for either stride, so nothing else would tell.
        self.register_buffer("stem_stride", torch.tensor(int(config.stem_stride)))
        self.post_init()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}stem_stride")
        if saved is not None and not saved.is_meta:
            _check_stem_stride(saved, self.config.stem_stride)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_exit_features: bool = True,
        **kwargs: Any,
    ) -> SelfConModelOutput:
        """Encodes images of any size.

        Args:
            pixel_values: (B, 3, H, W), normalised as `SelfConImageProcessor` does.
            output_hidden_states: also give the feature maps after the stem and after each stage.
            output_exit_features: False leaves the exits out.
            **kwargs: `return_dict`; others are ignored.

        Raises:
            ValueError: `pixel_values` is not a float tensor of that shape, or a side is too short: networks that
                smooth before they sub-sample (timm's resnetaa and resnetblur) need 32 pixels, or 8 with
                `stem_stride=1`; all others take any size.
        """
        if not isinstance(pixel_values, Tensor) or not pixel_values.is_floating_point():
            kind = getattr(pixel_values, "dtype", type(pixel_values).__name__)
            raise ValueError(f"expected pixel_values to be floats, as SelfConImageProcessor makes them, got {kind}")
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
            raise ValueError(f"expected pixel_values of shape (B, 3, H, W), got {tuple(pixel_values.shape)}")
        if pixel_values.shape[2] < self.least_side or pixel_values.shape[3] < self.least_side:
            raise ValueError(
                f"expected pixel_values of shape (B, 3, H, W) with sides of {self.least_side} or more for "
                f"{self.config.backbone}, got {tuple(pixel_values.shape)}"
            )
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        net = self.backbone
        # Not self.dtype: the copies that nn.DataParallel makes have weights, but list no parameters.
        convolutions = (layer for layer in net.conv1.modules() if isinstance(layer, nn.Conv2d))
        dtype = next((layer.weight.dtype for layer in convolutions), pixel_values.dtype)
        hidden = net.maxpool(net.act1(net.bn1(net.conv1(pixel_values.to(dtype)))))
        # Kept only where asked for: at 256 pixels and stride 1 these maps are far larger than all that is returned.
        hidden_states: tuple[Tensor, ...] | None = (hidden,) if output_hidden_states else None
        exit_features: tuple[Tensor, ...] = ()
        for stage in range(1, NUM_STAGES + 1):
            layer: Callable[[Tensor], Tensor] = getattr(net, f"layer{stage}")
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                hidden = self._gradient_checkpointing_func(_tracked_once(layer), hidden)
            else:
                hidden = layer(hidden)
            if hidden_states is not None:
                hidden_states += (hidden,)
            if output_exit_features and stage in self.config.exit_stages:
                exit_features += (self.exits[f"stage{stage}"](hidden.mean(dim=(2, 3))),)
        return SelfConModelOutput(
            last_hidden_state=hidden,
            pooler_output=hidden.mean(dim=(2, 3)),
            exit_features=exit_features if output_exit_features else None,
            hidden_states=hidden_states,
        )


class SelfConResNetForPreTraining(SelfConResNetPreTrainedModel):
    """The encoder with a projection head on its features and on each exit, for the contrastive stage."""

    _keys_to_ignore_on_load_unexpected = [r"^classifier\.", r"^open_set\."]

    def __init__(self, config: SelfConResNetConfig) -> None:
        super().__init__(config)
        self.encoder = SelfConResNetModel(config)
        features = self.encoder.num_features
        self.projector = _projector(features, config.projection_dim)
        self.exit_projectors = nn.ModuleDict(
            {name: _projector(features, config.projection_dim) for name in self.encoder.exits}
        )
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, **kwargs: Any
    ) -> SelfConForPreTrainingOutput:
        """Projects images; the loss is `imaginet_hub.training.losses`'.

        Args:
            pixel_values: (B, 3, H, W), normalised as `SelfConImageProcessor` does.
            output_hidden_states: also give the feature maps after the stem and after each stage.
            **kwargs: `return_dict`; others are ignored.
        """
        outputs = self.encoder(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        projectors = self.exit_projectors.values()
        return SelfConForPreTrainingOutput(
            projections=F.normalize(self.projector(outputs.pooler_output), dim=-1),
            exit_projections=tuple(
                F.normalize(projector(features), dim=-1)
                for projector, features in zip(projectors, outputs.exit_features, strict=True)
            ),
            pooler_output=outputs.pooler_output,
            exit_features=outputs.exit_features,
            hidden_states=outputs.hidden_states,
        )


def _classification_loss(logits: Tensor, labels: Tensor, problem_type: str | None) -> Tensor:
    """Mean cross-entropy in float32; that of a single logit z is the one of the two logits (0, z)."""
    if problem_type not in (None, "single_label_classification"):
        raise ValueError(
            f"expected problem_type None or 'single_label_classification', got {problem_type!r}: compute that loss "
            "from the logits yourself"
        )
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.shape != logits.shape[:1]:
        got = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"expected labels to be int64 class ids of shape ({logits.shape[0]},), got {got}")
    classes = 2 if logits.shape[1] == 1 else logits.shape[1]
    # Elsewhere than on a CPU to look would be to wait.
    if labels.device.type == "cpu" and len(labels) and not torch.compiler.is_compiling():
        low, high = labels.min().item(), labels.max().item()
        if low < 0 or high >= classes:
            raise ValueError(f"expected labels to be class ids in 0..{classes - 1}, got {low}..{high}")
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits.float().squeeze(1), labels.float())
    return F.cross_entropy(logits.float(), labels.long())


class SelfConResNetForImageClassification(SelfConResNetPreTrainedModel):
    """The encoder with a two-layer classifier on its features: `num_labels` logits for an image of any size."""

    _keys_to_ignore_on_load_unexpected = [r"^projector\.", r"^exit_projectors\."]

    def __init__(self, config: SelfConResNetConfig) -> None:
        super().__init__(config)
        self.encoder = SelfConResNetModel(config)
        self.classifier = _classifier(config, self.encoder.num_features)
        labels = len(config.id2label or ())
        self.open_set = OpenSet(self.encoder.num_features, labels) if config.open_set and labels > 1 else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_exit_features: bool = False,
        **kwargs: Any,
    ) -> SelfConImageClassifierOutput:
        """Classifies images.

        Args:
            pixel_values: (B, 3, H, W), normalised as `SelfConImageProcessor` does.
            labels: class ids (B,), int64 in 0..num_labels - 1; asks for the loss, the mean cross-entropy. For a
                single logit 0 or 1, and the loss is the binary cross-entropy.
            output_hidden_states: also give the feature maps after the stem and after each stage.
            output_exit_features: also give the exits' features and the ones that the head saw.
            **kwargs: `return_dict`; others are ignored.

        Raises:
            ValueError: `pixel_values` as in `SelfConResNetModel`; labels of another shape or type or, on a CPU, out of
                range; labels while the configuration's `problem_type` asks for another loss.
        """
        outputs = self.encoder(
            pixel_values,
            output_hidden_states=output_hidden_states,
            output_exit_features=output_exit_features,
            return_dict=True,
        )
        logits = self.classifier(outputs.pooler_output)
        return SelfConImageClassifierOutput(
            loss=None if labels is None else _classification_loss(logits, labels, self.config.problem_type),
            logits=logits,
            pooler_output=outputs.pooler_output if output_exit_features else None,
            exit_features=outputs.exit_features,
            hidden_states=outputs.hidden_states,
        )


_AUTO: dict[str, type[SelfConResNetPreTrainedModel]] = {
    "AutoModel": SelfConResNetModel,
    "AutoModelForPreTraining": SelfConResNetForPreTraining,
    "AutoModelForImageClassification": SelfConResNetForImageClassification,
}
for _name, _kind in _AUTO.items():
    _kind.register_for_auto_class(_name)
