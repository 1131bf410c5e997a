"""Configuration of the SelfCon ResNet. This file travels with every saved model: it imports siblings at most."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

__all__ = ["SelfConResNetConfig"]

NUM_STAGES = 4


@strict
class SelfConResNetConfig(PreTrainedConfig):
    """Configuration of a ResNet trained by self-contrastive learning, and of the head on top of it.

    The defaults are ImagiNet's detector (arXiv 2407.20020): a ResNet-50 without early down-sampling (Gragnaniello et
    al. 2021, arXiv 2104.02617) and one linear exit after its second stage (SelfCon, Bae et al. 2023, arXiv
    2106.15499).

    Args:
        backbone: a ResNet's name in timm, such as "resnet18" or "resnet50". Its weights are never downloaded.
        stem_stride: 2 for the common stem, which divides the resolution by 4; 1 sets the strides of the first
            convolution and of the max pooling to 1, so that the stages work at 4 times the resolution. Weights fit
            either, but only work in the one that they were trained in.
        exit_stages: stages, counted from 1, whose output also feeds an exit: a linear map from the stage's spatial
            mean to as many features as the last stage has. Strictly increasing, each in 1..4; () for none.
        projection_dim: length of the projections that the contrastive loss compares.
        head_hidden_size: width of the classification head's hidden layer.
        head_type: "batchnorm_mlp" (BatchNorm, Linear, ReLU, Dropout, Linear; upstream's detection head) or
            "l2norm_mlp" (L2 normalisation, Linear, ReLU, Linear; upstream's identification head).
        head_dropout: probability of the dropout in a "batchnorm_mlp" head, in [0, 1); the other head has none.
        track: what the labels mean, as "detection" or "identification"; None where it was not said.
        trained_on: where the weights come from (dataset fingerprint, command, checkpoint's SHA-256 ...), as JSON.
        **kwargs: the common fields of transformers' configurations, `id2label` first of all.

    Raises:
        huggingface_hub.errors.StrictDataclassError: a field has a wrong type or a value that cannot be used.

    Example:
        >>> SelfConResNetConfig(backbone="resnet18", id2label={0: "real", 1: "synthetic"}).num_labels
        2
    """

    model_type = "selfcon_resnet"

    backbone: str = "resnet50"
    stem_stride: Literal[1, 2] = 1
    exit_stages: tuple[int, ...] | list[int] = (2,)
    projection_dim: int = 128
    head_hidden_size: int = 1024
    head_type: Literal["batchnorm_mlp", "l2norm_mlp"] = "batchnorm_mlp"
    head_dropout: float = 0.2
    track: str | None = None
    trained_on: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.exit_stages = tuple(self.exit_stages)
        if self.id2label is not None and self.label2id is None:
            self.label2id = {name: int(index) for index, name in self.id2label.items()}
        super().__post_init__(**kwargs)

    def validate_backbone(self) -> None:
        """A plain name of timm's registry: "hf-hub:..." and paths would make timm read a foreign configuration."""
        if not self.backbone.replace("_", "").replace(".", "").replace("-", "").isalnum():
            raise ValueError(
                f"expected backbone to be the plain name of a timm ResNet such as 'resnet50', got {self.backbone!r}"
            )

    def validate_exit_stages(self) -> None:
        """Stages are named once, in order, and exist."""
        allowed = [stage for stage in range(1, NUM_STAGES + 1) if stage in self.exit_stages]
        if list(self.exit_stages) != allowed:
            raise ValueError(
                f"expected exit_stages to be strictly increasing stage numbers in 1..{NUM_STAGES}, "
                f"got {tuple(self.exit_stages)}"
            )

    def validate_sizes(self) -> None:
        """Widths are positive and the dropout is a probability below 1."""
        for name in ("projection_dim", "head_hidden_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} to be at least 1, got {getattr(self, name)}")
        if not 0 <= self.head_dropout < 1:
            raise ValueError(f"expected head_dropout to be in [0, 1), got {self.head_dropout}")


SelfConResNetConfig.register_for_auto_class("AutoConfig")
