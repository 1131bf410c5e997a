"""Stage 2: a classifier on the frozen encoder, one for each track, with transformers' `Trainer`.

The defaults are upstream's (Boychev & Cholakov 2025, arXiv:2407.20020, and their code): 5 epochs over balanced rows in
batches of 200 crops of 256 pixels, Adam at a constant 1e-4 with an L2 penalty of 1e-3, the encoder's weights frozen
while its BatchNorm statistics adapt to the new crops. The paper names AdamW instead (`--head_optimizer trainer`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm.auto import tqdm
from transformers import TrainerCallback, set_seed

from imaginet_hub.data.loading import class_names
from imaginet_hub.errors import UsageError
from imaginet_hub.labels import Track, id2label
from imaginet_hub.selfcon import (
    SelfConImageProcessor,
    SelfConResNetConfig,
    SelfConResNetForImageClassification,
    SelfConResNetModel,
    SelfConResNetPreTrainedModel,
)
from imaginet_hub.training.augment import AugmentedRows, HeadAugmentation, RowKey, check_rows
from imaginet_hub.training.trainer import (
    ARCHITECTURE,
    ArgumentParser,
    RowTrainer,
    RowTrainingArguments,
    config_errors,
    data_seed,
    default,
    load_config,
    option,
    row_sampler,
    run,
)

__all__ = ["HEAD_TYPES", "HeadTrainer", "HeadTrainingArguments", "build_classifier", "parse_head_args", "train_head"]

#: Upstream's head for each track.
HEAD_TYPES = {Track.DETECTION: "batchnorm_mlp", Track.IDENTIFICATION: "l2norm_mlp"}


#: Values that replace the defaults of `HeadTrainingArguments`, by preset name.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    # For two cores: small crops, each image encoded twice, the classifier trained on what came out.
    "quick": {
        "crop_size": 96,
        "processor_crop_size": 128,
        "perturb": 0.1,
        "per_device_train_batch_size": 64,
        "learning_rate": 0.001,
        "num_train_epochs": 8,
        "adapt_batchnorm": False,
        "cache_epochs": 2,
    },
}


@dataclasses.dataclass
class HeadTrainingArguments(RowTrainingArguments):
    """How a head is trained. The defaults are upstream's recipe; see the module's docstring."""

    per_device_train_batch_size: int = default("per_device_train_batch_size", 200)
    num_train_epochs: float = default("num_train_epochs", 5)
    learning_rate: float = default("learning_rate", 1e-4)
    lr_scheduler_type: str = default("lr_scheduler_type", "constant")
    weight_decay: float = default("weight_decay", 1e-3)

    crop_size: int = option(256, "Side of the training crops in pixels.")
    balance: bool = option(True, "Give each class, and each generator family, the same share of every batch.")
    head_type: str | None = option(
        None, "batchnorm_mlp or l2norm_mlp. Default: the first for detection, the second for identification."
    )
    head_hidden_size: int = option(1024, "Width of the classifier's hidden layer.")
    head_dropout: float = option(0.2, "Dropout before the classifier's last layer (batchnorm_mlp only).")
    head_optimizer: str = option(
        "adam", "adam: Adam with an L2 penalty, as upstream's code; trainer: what --optim names (AdamW, as the paper)."
    )
    adapt_batchnorm: bool = option(
        True, "Let the frozen encoder's BatchNorm statistics follow the new crops, as upstream does."
    )
    cache_epochs: int = option(
        0,
        "Encode the images this many times with fresh crops, then train on the stored features; needs "
        "--no_adapt_batchnorm. 0: encode anew in every epoch.",
    )
    unfreeze_encoder: bool = option(
        False, "Train the encoder too, end to end by cross-entropy. Not upstream's recipe; it can pay on small data."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_optimizer not in ("adam", "trainer"):
            raise UsageError(f"expected --head_optimizer adam or trainer, got {self.head_optimizer}")
        if self.cache_epochs < 0:
            raise UsageError(f"expected --cache_epochs 0 or more, got {self.cache_epochs}")
        if self.cache_epochs and (self.adapt_batchnorm or self.unfreeze_encoder):
            raise UsageError(
                "expected stored features only from an encoder that stays as it is: with --cache_epochs pass "
                "--no_adapt_batchnorm, and no --unfreeze_encoder"
            )


def parse_head_args(argv: Sequence[str], out: str | Path) -> HeadTrainingArguments:
    """Flags of `imaginet train-head` as arguments of `train_head`; every field is a flag.

    `--preset paper|quick` chooses what is the default of the others.

    Args:
        argv: flags and values.
        out: the folder to train into.

    Raises:
        UsageError: an unknown flag, with the closest ones; a value that cannot be used.
    """
    parser = ArgumentParser([HeadTrainingArguments], prog="imaginet train-head")
    arguments, _ = parser.dataclasses_of(argv, out, PRESETS)
    return arguments


class HeadTrainer(RowTrainer):
    """Minimises cross-entropy. The model takes `pixel_values` or, with stored features, `features`."""

    args: HeadTrainingArguments

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor | tuple[Tensor, Any]:
        """The mean cross-entropy of a batch."""
        labels = inputs.pop("labels")
        if not self.args.unfreeze_encoder:  # Trainer has just put everything in training mode
            freeze(self.accelerator.unwrap_model(model), self.args.adapt_batchnorm)
        outputs = model(**inputs)
        loss = F.cross_entropy(
            outputs["logits"].float(), labels, label_smoothing=self.args.label_smoothing_factor or 0.0
        )
        return (loss, outputs) if return_outputs else loss


def freeze(model: nn.Module, adapt_batchnorm: bool) -> None:
    """Puts a classifier's encoder in evaluation mode, on request all but its BatchNorm layers."""
    encoder = getattr(model, "encoder", None)
    if encoder is None:
        return
    encoder.eval()
    if adapt_batchnorm:
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()


class _Head(nn.Module):
    """A model's classifier alone, for training on stored features; the weights are the model's own."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return {"logits": self.classifier(features)}


class _StoredFeatures(Dataset[dict[str, Any]]):
    """Features (passes, rows, channels) in place of images; each further visit of a row takes the next pass."""

    def __init__(self, features: Tensor, labels: Sequence[int]) -> None:
        self.features = features
        self.labels = torch.as_tensor(labels)

    def __len__(self) -> int:
        return self.features.shape[1]

    def __getitem__(self, key: RowKey) -> dict[str, Any]:
        stored = self.features[(key.epoch + key.repeat) % len(self.features), key.row]
        return {"features": stored, "labels": self.labels[key.row]}


@torch.no_grad()
def encode(
    encoder: SelfConResNetModel, rows: AugmentedRows, passes: int, args: HeadTrainingArguments
) -> _StoredFeatures:
    """The pooled features of `passes` augmented views of every row, encoded in evaluation mode."""
    nn.Module.to(encoder, args.device).eval()
    keys = [RowKey(epoch, index) for epoch in range(passes) for index in range(len(rows))]
    loader = DataLoader(
        rows,
        batch_size=args.per_device_train_batch_size,
        sampler=keys,
        num_workers=args.dataloader_num_workers,
        collate_fn=default_collate,
    )
    batches = []
    for batch in tqdm(loader, desc="encoding", disable=args.disable_tqdm):
        pixels = batch["pixel_values"].to(args.device)
        if args.channels_last:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            pooled = encoder(pixels, output_exit_features=False).pooler_output
        batches.append(pooled.float().cpu())
    features = torch.cat(batches)
    (column,) = rows.columns.values()
    return _StoredFeatures(features.view(passes, len(rows), -1), rows.rows[column][:])


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
        with config_errors():
            source = SelfConResNetModel.from_pretrained(str(encoder))
    architecture = {name: getattr(source.config, name) for name in ARCHITECTURE}
    with config_errors():
        config = SelfConResNetConfig(**architecture, trained_on=source.config.trained_on, **fields)
        model = SelfConResNetForImageClassification(config)
    model.encoder.load_state_dict(source.state_dict())
    return model


def train_head(
    rows_train: datasets.Dataset,
    encoder: str | Path | SelfConResNetPreTrainedModel,
    training_args: HeadTrainingArguments,
    *,
    track: Track | str,
    dataset_record: Mapping[str, Any],
    names: Sequence[str] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Path:
    """Stage 2: trains the classifier of one track and writes a model folder.

    Args:
        rows_train: rows with the columns image, label and generator_family; for identification synthetic ones only.
        encoder: a folder or Hub id of any model of the family, or such a model.
        training_args: how to train, and `output_dir`. `resume_from_checkpoint` may be a checkpoint folder or "last".
        track: detection (classes of label) or identification (classes of generator_family but "real").
        dataset_record: what the images are, as JSON; kept in the configuration and in training.json.
        names: the class names in id order; by default those of the column.
        callbacks: further `TrainerCallback`s.

    Returns:
        The folder: model.safetensors, config.json, preprocessor_config.json, the family's code and training.json
        (arguments, loss history, versions, data). Nothing in it is pickled.

    Raises:
        UsageError: rows or arguments that cannot be trained with.
        DataNotFoundError, ModelError: see `build_classifier`.
    """
    track = Track(track)
    column = track.label_column
    check_rows(rows_train, ["image", "label", "generator_family"])
    names = tuple(class_names(rows_train, track) if names is None else names)
    _check_classes(rows_train, column, names)
    set_seed(training_args.seed)
    model = build_classifier(
        encoder,
        id2label=id2label(names),
        track=str(track),
        head_type=training_args.head_type or HEAD_TYPES[track],
        head_hidden_size=training_args.head_hidden_size,
        head_dropout=training_args.head_dropout,
    )
    model.config.trained_on = {**dataset_record, "encoder": model.config.trained_on}
    model.encoder.requires_grad_(training_args.unfreeze_encoder)
    model.encoder.exits.requires_grad_(False)  # no part of a classifier's forward pass
    augmentation = HeadAugmentation(
        training_args.crop_size,
        data_seed(training_args),
        perturb=training_args.perturb,
        rotate=training_args.rotate,
        flip=training_args.flip,
    )
    images = AugmentedRows(rows_train, augmentation, {"labels": column})
    trained: tuple[nn.Module, AugmentedRows | _StoredFeatures] = (model, images)
    if training_args.cache_epochs:
        stored = encode(model.encoder, images, training_args.cache_epochs, training_args)
        trained = (_Head(model.classifier), stored)
    adam = (
        torch.optim.Adam,
        {
            "lr": training_args.learning_rate,
            "betas": (training_args.adam_beta1, training_args.adam_beta2),
            "eps": training_args.adam_epsilon,
        },
    )
    trainer = HeadTrainer(
        trained[0],
        training_args,
        trained[1],
        row_sampler(rows_train, training_args),
        SelfConImageProcessor(crop_size=training_args.processor_crop_size),
        callbacks,
        optimizer_cls_and_kwargs=adam if training_args.head_optimizer == "adam" else None,
    )
    return run(
        trainer,
        model,
        {"stage": "head", "track": str(track), "names": list(names), "dataset": dict(dataset_record)},
    )


def _check_classes(rows: datasets.Dataset, column: str, names: Sequence[str]) -> None:
    present = sorted(rows.unique(column))
    if present[0] < 0 or present[-1] >= len(names):
        raise UsageError(
            f"expected ids of the column {column} in 0..{len(names) - 1}, for {', '.join(names)}, got {present}: "
            "for identification pass synthetic rows only"
        )
    if len(present) < 2:
        raise UsageError(
            f"expected rows of two classes or more to tell apart, got only {names[present[0]]}: add data, or choose "
            "another track"
        )
