"""Configuration of the SelfCon ResNet. This file travels with every saved model: it imports siblings at most."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

__all__ = ["SelfConResNetConfig"]

NUM_STAGES = 4
#: More than any head has, and little enough that a mistyped or hostile configuration cannot ask for much memory: on
#: the 4096 features that no ResNet of timm exceeds, each head has about 2**28 weights at most.
MAX_WIDTH = 2**15
MAX_LABELS = 2**12
#: What describes each part that a folder may lack: who passes one of these while loading asks for it to be made.
PART_FIELDS = {
    "exits": {"exit_stages"},
    "projector": {"projection_dim"},
    "exit_projectors": {"exit_stages", "projection_dim"},
    "classifier": {"head_hidden_size", "head_type", "head_dropout", "num_labels", "id2label", "label2id"},
}
PART_FIELDS["open_set"] = PART_FIELDS["classifier"]
#: What gives a new classifier classes, and what may be said of them besides.
LABEL_FIELDS = {"num_labels", "id2label", "label2id"}
MEANING_FIELDS = {"track", "label_column"}
HEAD_FIELDS = MEANING_FIELDS.union(*PART_FIELDS.values())


@strict
class SelfConResNetConfig(PreTrainedConfig):
    """Configuration of a ResNet trained by self-contrastive learning, and of the head on top of it.

    The defaults are ImagiNet's detector (arXiv 2407.20020): a ResNet-50 without early down-sampling (Gragnaniello et
    al. 2021, arXiv 2104.02617) and one linear exit after its second stage (SelfCon, Bae et al. 2023, arXiv
    2106.15499).

    Args:
        backbone: a ResNet's name in timm, such as "resnet18" or "resnet50". Its weights are never downloaded.
        stem_stride: 2 for the common stem, which divides the resolution by 4; 1 sets the strides of the first
            convolution and of the pooling after it to 1, so that the stages work at 4 times the resolution (where
            timm's network smooths before it pools, that is left out). Weights fit either, but only work in the one
            that they were trained in.
        exit_stages: stages, counted from 1, whose output also feeds an exit: a linear map from the stage's spatial
            mean to as many features as the last stage has. Strictly increasing, each in 1..4; () for none.
        projection_dim: length of the projections that the contrastive loss compares, 1..32768.
        head_hidden_size: width of the classification head's hidden layer, 1..32768.
        head_type: "batchnorm_mlp" (BatchNorm, Linear, ReLU, Dropout, Linear; upstream's detection head) or
            "l2norm_mlp" (L2 normalisation, Linear, ReLU, Linear; upstream's identification head).
        head_dropout: probability of the dropout in a "batchnorm_mlp" head, in [0, 1); the other head has none.
        track: what the labels mean, as "detection" or "identification"; None where it was not said.
        label_column: which column of a data set the labels are classes of, such as "label" or "generator_family"; None
            where it was not said.
        calibration: how the logits were fitted to rows that were not trained on, as JSON; they are the fitted ones.
        open_set: when "none of these" is the better answer, as JSON: where `model.open_set(features)` is above
            `threshold`. Plain pipelines do not ask.
        trained_on: where the weights come from (dataset fingerprint, command, checkpoint's SHA-256 ...), as JSON.
        **kwargs: the common fields of transformers' configurations, `id2label` first of all: a name for each of the
            class ids 0..n-1, at most 4096; `label2id` is its inverse.

    Raises:
        huggingface_hub.errors.StrictDataclassError: a field has a wrong type or a value that cannot be used.
        ValueError: `num_labels` or `id2label` cannot be used.

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
    label_column: str | None = None
    calibration: dict[str, Any] | None = None
    open_set: dict[str, Any] | None = None
    trained_on: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.exit_stages, list):
            self.exit_stages = tuple(self.exit_stages)
        kwargs.pop("_asked", None)  # only `from_dict` may say so, no file
        labels = kwargs.get("num_labels")  # transformers would name each of them
        if labels is not None and (not isinstance(labels, int) or not 0 <= labels <= MAX_LABELS):
            raise ValueError(
                f"expected num_labels to be an integer in 0..{MAX_LABELS}, since no head may take more than about "
                f"1 GiB, got {labels!r}"
            )
        if not isinstance(self.id2label, dict | None):
            raise ValueError(f"expected id2label to be names by class id, got {self.id2label!r}")
        if self.id2label is None and self.label2id:
            self.id2label = {int(index): name for name, index in self.label2id.items()}
        if self.id2label is not None:  # an older label2id may be left from other names
            self.label2id = {name: int(index) for index, name in self.id2label.items()}
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; remembers which fields of heads were among the arguments."""
        asked = HEAD_FIELDS & set(kwargs)
        # Not set afterwards, as transformers does, but checked and completed as those of a new configuration.
        fields = {**config_dict, **{name: kwargs.pop(name) for name in asked}}
        if "label2id" in asked and "id2label" not in asked:
            fields["id2label"] = None
        loaded = super().from_dict(fields, **kwargs)
        if asked:
            (loaded[0] if isinstance(loaded, tuple) else loaded)._asked = asked
        return loaded

    def to_dict(self) -> dict[str, Any]:
        """As in transformers."""
        return {name: value for name, value in super().to_dict().items() if name != "_asked"}

    def forget_what_was_asked(self) -> set[str]:
        """The fields of heads that were passed while this was loaded; none from then on."""
        return vars(self).pop("_asked", set())

    def differing_head_fields(self, other: "SelfConResNetConfig") -> set[str]:
        """The fields of heads that two configurations do not share, however they are spelled."""
        mine, others = (type(self).from_dict(config.to_dict()) for config in (self, other))
        return {name for name in HEAD_FIELDS if getattr(mine, name) != getattr(others, name)}

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
        """Widths are positive, no larger than a head can be, and the dropout is a probability below 1."""
        for name in ("projection_dim", "head_hidden_size"):
            if not 1 <= getattr(self, name) <= MAX_WIDTH:
                raise ValueError(
                    f"expected {name} to be at least 1 and at most {MAX_WIDTH}, since no head may take more than "
                    f"about 1 GiB, got {getattr(self, name)}"
                )
        if not 0 <= self.head_dropout < 1:
            raise ValueError(f"expected head_dropout to be in [0, 1), got {self.head_dropout}")

    def validate_labels(self) -> None:
        """Class ids are the positions of the logits."""
        if self.id2label and len(self.id2label) > MAX_LABELS:
            raise ValueError(
                f"expected id2label to name at most {MAX_LABELS} classes, since no head may take more than about "
                f"1 GiB, got {len(self.id2label)}"
            )
        if self.id2label and sorted(map(int, self.id2label)) != list(range(len(self.id2label))):
            raise ValueError(f"expected id2label to name the classes 0..n-1, got {sorted(self.id2label)}")


SelfConResNetConfig.register_for_auto_class("AutoConfig")
