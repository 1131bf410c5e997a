"""The SelfCon ResNet: encoder, pre-training and classification. This file travels with every saved model.

The network is ImagiNet's (arXiv 2407.20020, "Method"): a ResNet whose early down-sampling can be left out, a
sub-network exit for self-contrastive learning (Bae et al. 2023, arXiv 2106.15499, section 3), projection heads for the
contrastive stage and a two-layer classifier for the second stage. The convolutional trunk is timm's.
"""
# ruff: noqa: RUF012 (class attributes as transformers has them)

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_selfcon import NUM_STAGES, SelfConResNetConfig

__all__ = [
    "SelfConForPreTrainingOutput",
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


class L2Norm(nn.Module):
    """Scales each row to unit length."""

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=-1)


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
        raise ValueError(f"expected backbone to be a ResNet of timm {timm.__version__}, got {config.backbone!r}")
    backbone = timm.create_model(config.backbone, pretrained=False, num_classes=0, global_pool="")
    if not isinstance(backbone, ResNet):
        raise ValueError(f"expected backbone to be a ResNet, got {config.backbone!r}, a {type(backbone).__name__}")
    if config.stem_stride == 1:
        first: Any = backbone.conv1[0] if isinstance(backbone.conv1, nn.Sequential) else backbone.conv1
        if not isinstance(backbone.maxpool, nn.MaxPool2d):
            raise ValueError(
                f"stem_stride=1 needs a stem that ends in plain max pooling; {config.backbone!r} has another, "
                "so use stem_stride=2"
            )
        first.stride = (1, 1)
        backbone.maxpool.stride = 1
    return backbone


class SelfConResNetPreTrainedModel(PreTrainedModel):
    """What the three models share: initialisation, loading and saving."""

    config: SelfConResNetConfig
    config_class = SelfConResNetConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = ["BasicBlock", "Bottleneck"]

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
        else:
            super()._init_weights(module)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; see there.

        Raises:
            ValueError: the weights were trained with another stem stride than the configuration says.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model: PreTrainedModel = loaded[0] if isinstance(loaded, tuple) else loaded
        encoder: Any = model.base_model
        if not encoder.stem_stride.is_meta:
            _check_stem_stride(int(encoder.stem_stride), encoder.config.stem_stride)
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As in transformers; the folder also holds the code, and `AutoModel` finds the bare encoder in it."""
        # transformers adds the entries of this class and of its configuration only.
        self.config.auto_map = {"AutoModel": f"{__name__.rpartition('.')[2]}.{SelfConResNetModel.__name__}"}
        super().save_pretrained(save_directory, *args, **kwargs)


def _check_stem_stride(of_weights: int, of_config: int) -> None:
    if of_weights != of_config:
        raise ValueError(
            f"these weights were trained with stem_stride={of_weights}, but the configuration says {of_config}: "
            "shapes and names agree, the features would not; load them with the stem_stride they were saved with"
        )


class SelfConResNetModel(SelfConResNetPreTrainedModel):
    """The encoder: a ResNet with a linear exit after each of the stages `exit_stages`."""

    # The heads of a pre-training or classification checkpoint are left aside without a word.
    _keys_to_ignore_on_load_unexpected = [r"^classifier\.", r"^projector\.", r"^exit_projectors\."]

    stem_stride: Tensor

    def __init__(self, config: SelfConResNetConfig) -> None:
        super().__init__(config)
        self.backbone = _backbone(config)
        self.num_features: int = self.backbone.num_features
        channels = [info["num_chs"] for info in self.backbone.feature_info]
        self.exits = nn.ModuleDict(
            {f"stage{stage}": nn.Linear(channels[stage], self.num_features) for stage in config.exit_stages}
        )
        self.gradient_checkpointing = False
        # Saved with the weights: names and shapes are the same for either stride, so nothing else would tell.
        self.register_buffer("stem_stride", torch.tensor(config.stem_stride))
        self.post_init()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}stem_stride")
        if saved is not None and not saved.is_meta:
            _check_stem_stride(int(saved), self.config.stem_stride)
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
            ValueError: `pixel_values` has another shape.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
            raise ValueError(f"expected pixel_values of shape (B, 3, H, W), got {tuple(pixel_values.shape)}")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        net = self.backbone
        hidden = net.maxpool(net.act1(net.bn1(net.conv1(pixel_values.to(self.dtype)))))
        # Kept only where asked for: at 256 pixels and stride 1 these maps are far larger than all that is returned.
        hidden_states: tuple[Tensor, ...] | None = (hidden,) if output_hidden_states else None
        exit_features: tuple[Tensor, ...] = ()
        for stage in range(1, NUM_STAGES + 1):
            layer: Callable[[Tensor], Tensor] = getattr(net, f"layer{stage}")
            if self.gradient_checkpointing and self.training:
                # Runs the stage twice, so the running statistics of its BatchNorms move twice a step.
                hidden = self._gradient_checkpointing_func(layer, hidden)
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

    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]

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


class SelfConResNetForImageClassification(SelfConResNetPreTrainedModel):
    """The encoder with a two-layer classifier on its features: `num_labels` logits for an image of any size."""

    _keys_to_ignore_on_load_unexpected = [r"^projector\.", r"^exit_projectors\."]

    def __init__(self, config: SelfConResNetConfig) -> None:
        super().__init__(config)
        self.encoder = SelfConResNetModel(config)
        self.classifier = _classifier(config, self.encoder.num_features)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutputWithNoAttention:
        """Classifies images.

        Args:
            pixel_values: (B, 3, H, W), normalised as `SelfConImageProcessor` does.
            labels: class ids (B,), int64 in 0..num_labels - 1; asks for the loss, the mean cross-entropy.
            output_hidden_states: also give the feature maps after the stem and after each stage.
            **kwargs: `return_dict`; others are ignored.

        Returns:
            `loss` where labels are given, `logits` (B, num_labels), and `hidden_states` on request.
        """
        outputs = self.encoder(
            pixel_values, output_hidden_states=output_hidden_states, output_exit_features=False, return_dict=True
        )
        logits = self.classifier(outputs.pooler_output)
        return ImageClassifierOutputWithNoAttention(
            loss=None if labels is None else F.cross_entropy(logits.float(), labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
        )


SelfConResNetModel.register_for_auto_class("AutoModel")
SelfConResNetForPreTraining.register_for_auto_class("AutoModelForPreTraining")
SelfConResNetForImageClassification.register_for_auto_class("AutoModelForImageClassification")
