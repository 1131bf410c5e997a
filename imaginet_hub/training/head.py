"""Stage 2: a classifier on the frozen encoder, with transformers' `Trainer`, and what is fitted to held-out rows.

The recipe and how to depart from it: `imaginet_hub.training.arguments`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm.auto import tqdm
from transformers import TrainerCallback, set_seed

from imaginet_hub import calibration
from imaginet_hub.data.images import from_row
from imaginet_hub.data.loading import classes_of, held_out, track_of, values_of
from imaginet_hub.errors import ImagiNetError, UsageError
from imaginet_hub.labels import Origin, Track, id2label
from imaginet_hub.selfcon import (
    OpenSet,
    SelfConImageProcessor,
    SelfConResNetForImageClassification,
    SelfConResNetModel,
    SelfConResNetPreTrainedModel,
)
from imaginet_hub.training.arguments import HEAD_PRESETS, HeadTrainingArguments, parse_head_args
from imaginet_hub.training.augment import AugmentedRows, HeadAugmentation, RowKey, RowSampler, check_rows
from imaginet_hub.training.initial import build_classifier
from imaginet_hub.training.output import claim
from imaginet_hub.training.trainer import RowTrainer, data_seed, row_sampler, run

__all__ = [
    "HEAD_PRESETS",
    "HEAD_TYPES",
    "HeadTrainer",
    "HeadTrainingArguments",
    "build_classifier",
    "parse_head_args",
    "train_head",
]

#: Upstream's head for each track.
HEAD_TYPES = {Track.DETECTION: "batchnorm_mlp", Track.IDENTIFICATION: "l2norm_mlp"}

#: With fewer rows a fit would say more of them than of the model.
LEAST_HELD_OUT = 20
#: Images at a time where nothing is learned, whatever the batch: more would only take memory.
_ENCODED_AT_A_TIME = 32


class _Labelled(Dataset[dict[str, Any]]):
    """Augmented rows with the place of their class among the logits."""

    def __init__(self, rows: AugmentedRows, places: Mapping[Any, int]) -> None:
        self.rows = rows
        self.places = places

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: RowKey | int) -> dict[str, Any]:
        item = self.rows[key]
        return {**item, "labels": self.places[item["labels"]]}


class HeadTrainer(RowTrainer):
    """Minimises cross-entropy. The model takes `pixel_values` or, with stored features, `features`.

    Args:
        model: a `SelfConResNetForImageClassification` whose configuration says which column its classes are of
            (`label_column`) and names them.
        args: how.
        train_dataset: a `datasets.Dataset` with an image column and that one.
        **kwargs: see `RowTrainer`.
    """

    args: HeadTrainingArguments

    def sampler_of(self, rows: Any, args: HeadTrainingArguments) -> RowSampler:
        """Any order, or one that is balanced over the classes and, for detection, over the families in each."""
        columns = ("label", "generator_family") if self.column == "label" else (self.column,)
        return row_sampler(rows, args, columns)

    def rows_of(self, rows: datasets.Dataset, args: HeadTrainingArguments) -> Any:
        """Crops of the rows with the place of their class."""
        check_rows(rows, ["image", self.column])
        augmentation = HeadAugmentation(
            args.crop_size, data_seed(args), perturb=args.perturb, rotate=args.rotate, flip=args.flip
        )
        places = {value: self.names.index(name) for value, name in classes_of(rows, self.column).items()}
        return _Labelled(AugmentedRows(rows, augmentation, {"labels": self.column}), places)

    def __init__(self, model: nn.Module, args: HeadTrainingArguments, train_dataset: Any, **kwargs: Any) -> None:
        config = getattr(model, "config", None)
        self.column = getattr(config, "label_column", None) or "label"
        self.names = [] if config is None else [config.id2label[place] for place in sorted(config.id2label)]
        for name, parameter in model.named_parameters():
            if "exits" in name:  # no part of a classifier's forward pass
                parameter.requires_grad_(False)
        super().__init__(model, args, train_dataset, optimizer_cls_and_kwargs=_optimizer(args), **kwargs)

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


def _optimizer(args: HeadTrainingArguments) -> tuple[type[torch.optim.Optimizer], dict[str, Any]] | None:
    """Upstream's Adam, the paper's AdamW, or none: what `optim` names."""
    settings = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    kinds: dict[str, type[torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return (kinds[args.head_optimizer], settings) if args.head_optimizer in kinds else None


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

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.features = features
        self.labels = labels

    def __len__(self) -> int:
        return self.features.shape[1]

    def __getitem__(self, key: RowKey) -> dict[str, Any]:
        stored = self.features[(key.epoch + key.repeat) % len(self.features), key.row]
        return {"features": stored, "labels": self.labels[key.row]}


@torch.no_grad()
def encode(encoder: SelfConResNetModel, rows: _Labelled, passes: int, args: HeadTrainingArguments) -> _StoredFeatures:
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
    features, labels = [], []
    for batch in tqdm(loader, desc="encoding", disable=args.disable_tqdm):
        with torch.autocast(args.device.type, torch.bfloat16, enabled=bool(args.bf16)):
            pooled = encoder(_on(args, batch["pixel_values"]), output_exit_features=False).pooler_output
        features.append(pooled.float().cpu())
        labels.append(batch["labels"])
    return _StoredFeatures(torch.cat(features).view(passes, len(rows), -1), torch.cat(labels)[: len(rows)])


def _on(args: HeadTrainingArguments, pixels: Tensor) -> Tensor:
    pixels = pixels.to(args.device)
    return pixels.contiguous(memory_format=torch.channels_last) if args.channels_last else pixels


def train_head(
    rows_train: datasets.Dataset,
    encoder: str | Path | SelfConResNetPreTrainedModel,
    training_args: HeadTrainingArguments,
    *,
    label_column: str = "label",
    dataset_record: Mapping[str, Any],
    callbacks: Sequence[TrainerCallback] = (),
) -> Path:
    """Stage 2: trains a classifier, fits its probabilities to held-out rows, and writes a model folder.

    Detection gets Platt scaling with both classes at the same weight, everything else temperature scaling (see
    `imaginet_hub.calibration`). Either is folded into the last layer: the published logits are the calibrated ones,
    and the likelier class of two is the one on its side of the threshold .5 that the configuration names.

    Args:
        rows_train: rows with the columns image and `label_column`; for generators synthetic ones only, and for
            detection in balanced batches with generator_family.
        encoder: a folder or Hub id of any model of the family, or such a model.
        training_args: how to train, and `output_dir`. `resume_from_checkpoint` may be a checkpoint folder or "last".
        label_column: what is told apart: label (real, synthetic), generator_family, generator, or any column of class
            names. Classes are those that occur.
        dataset_record: what the images are, as JSON; kept in the configuration and in training.json.
        callbacks: further `TrainerCallback`s.

    Returns:
        The folder: model.safetensors, config.json, preprocessor_config.json, the family's code and training.json
        (arguments, loss history, versions, data). Nothing in it is pickled. What was fitted to the held-out rows is
        in the configuration's `calibration` and `open_set`; `calibration_rows_unseen` in training.json says whether
        the encoder was trained without them too (`held_out` of stage 1).

    Raises:
        UsageError: rows or arguments that cannot be trained with.
        DataNotFoundError, ModelError: see `build_classifier`.
    """
    track = Track.DETECTION if label_column == Track.DETECTION.label_column else Track.IDENTIFICATION
    check_rows(rows_train, ["image", label_column])
    classes = classes_of(rows_train, label_column)
    _check_classes(list(classes.values()), label_column, track)
    rows, apart, why = _parts(rows_train, label_column, training_args.held_out)
    claim(training_args)
    set_seed(training_args.seed)
    model = build_classifier(
        encoder,
        id2label=id2label(classes.values()),
        track=str(track),
        label_column=label_column,
        head_type=training_args.head_type or HEAD_TYPES[track],
        head_hidden_size=training_args.head_hidden_size,
        head_dropout=training_args.head_dropout,
    )
    trained_on = model.config.trained_on
    held = {"held_out": training_args.held_out, "held_out_images": len(apart)} if len(apart) else {}
    model.config.trained_on = {**dataset_record, **held, "encoder": trained_on}
    model.encoder.requires_grad_(training_args.unfreeze_encoder)
    trainer = HeadTrainer(model, training_args, rows, callbacks=callbacks)
    if training_args.cache_epochs:
        images: Any = trainer.train_dataset
        stored = encode(model.encoder, images, training_args.cache_epochs, training_args)
        order = trainer.row_sampler
        trainer = HeadTrainer(_Head(model.classifier), training_args, stored, sampler=order, callbacks=callbacks)
    record = {
        "stage": "head",
        "track": str(track),
        "label_column": label_column,
        "names": list(classes.values()),
        "dataset": dict(dataset_record),
        "held_out": len(apart),
    }

    names_generators = track_of(label_column) is Track.IDENTIFICATION

    def finish() -> dict[str, Any]:
        if why:
            return _uncalibrated(model, why)
        places = {value: place for place, value in enumerate(classes)}
        try:
            features, labels = _plain_features(model, apart, label_column, places, trainer)
            known = _plain_features(model, rows, label_column, places, trainer) if names_generators else None
        except ImagiNetError as error:  # not worth the training that came before
            return _uncalibrated(model, f"an image cannot be read whole: {error}")
        record = calibrate(model, features, labels)
        if known is not None:
            record |= store_open_set(model, *known, features, training_args.accept_known)
        return {**record, "calibration_rows_unseen": unseen(trained_on, dataset_record, training_args.held_out)}

    return run(trainer, model, record, finish)


def unseen(trained_on: Any, dataset_record: Mapping[str, Any], share: float) -> bool | None:
    """Whether an encoder was trained without the rows that a head holds out; None where that cannot be told.

    Args:
        trained_on: the encoder's record, with those of the models that it started from.
        dataset_record: of the head's rows. The rows of a track are a part of the same data set's, by its name.
        share: what the head holds out; whoever held out as much held out the same rows.
    """
    links, found = [trained_on], None
    while links:
        link = links.pop()
        if not isinstance(link, Mapping):
            continue
        links += [link.get("init"), link.get("encoder")]
        if all(name in link and link[name] == dataset_record.get(name) for name in ("name", "split")):
            held = link.get("held_out", 0)
            found = found is not False and isinstance(held, (int, float)) and held >= share
    return found


@torch.no_grad()
def _plain_features(
    model: SelfConResNetForImageClassification,
    rows: datasets.Dataset,
    column: str,
    places: Mapping[Any, int],
    trainer: HeadTrainer,
) -> tuple[Tensor, NDArray[np.int_]]:
    """Features (rows, channels) of rows as the published model sees them, in float32, and their classes (rows,)."""
    args = trainer.args
    processor: Any = trainer.processing_class
    plain = _Plain(rows, column, places, processor)
    loader = DataLoader(plain, batch_size=_ENCODED_AT_A_TIME, num_workers=args.dataloader_num_workers)
    nn.Module.to(model, args.device).eval()
    features, labels = [], []
    for batch in tqdm(loader, desc="calibrating", disable=args.disable_tqdm):
        features.append(model.encoder(_on(args, batch["pixel_values"]), output_exit_features=False).pooler_output)
        labels.append(batch["labels"])
    return torch.cat(features).float(), torch.cat(labels).numpy()


class _Plain(Dataset[dict[str, Any]]):
    """Rows as the saved processor prepares them."""

    def __init__(
        self, rows: datasets.Dataset, column: str, places: Mapping[Any, int], processor: SelfConImageProcessor
    ) -> None:
        rows = rows.select_columns(["image", column])
        self.rows = rows.cast_column("image", datasets.Image(decode=False)).with_format(None)
        self.column = column
        self.places = places
        self.processor = processor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        row = self.rows[number]
        prepared: Any = self.processor(images=[from_row(row["image"])], return_tensors="pt")
        return {"pixel_values": prepared["pixel_values"][0], "labels": self.places[row[self.column]]}


@torch.no_grad()
def calibrate(
    model: SelfConResNetForImageClassification, features: Tensor, labels: NDArray[np.int_]
) -> dict[str, Any]:
    """Calibrates a classifier: changes its last layer, and says in its configuration what was done.

    Args:
        model: in evaluation mode.
        features: (rows, channels) of rows that it was not trained on, where it is.
        labels: (rows,) their classes.

    Returns:
        The record for training.json: `calibration`, as in the configuration.
    """
    logits = model.classifier(features).double().cpu().numpy()
    if not np.isfinite(logits).all():
        return _uncalibrated(model, "the logits are not finite")
    detection = model.config.track == Track.DETECTION
    scale, shifts = 1.0, np.zeros(logits.shape[1])
    if detection:
        # Built as (real, synthetic), so that the margin is that of synthetic.
        line = calibration.fit_platt(logits[:, 1] - logits[:, 0], labels)
        if line is None:
            return _uncalibrated(model, "the held-out rows' logits do not rise with their class")
        scale, shifts[1] = line
        how = {"method": "platt", "slope": scale, "intercept": line[1], "threshold": 0.5}
    else:
        temperature = calibration.fit_temperature(logits, labels)
        if temperature is None:
            return _uncalibrated(model, "the held-out rows' logits say nothing of their class")
        scale = 1 / temperature
        how = {"method": "temperature", "temperature": temperature}
    after = logits * scale + shifts
    record = {"rows": len(labels), "before": _figures(logits, labels), "after": _figures(after, labels)}
    last: Any = model.classifier[-1]
    last.weight.mul_(scale)
    last.bias.mul_(scale).add_(torch.as_tensor(shifts, dtype=last.bias.dtype, device=last.bias.device))
    model.config.calibration = {**how, **record}
    return {"calibration": model.config.calibration}


@torch.no_grad()
def store_open_set(
    model: SelfConResNetForImageClassification,
    features: Tensor,
    labels: NDArray[np.int_],
    held_out: Tensor,
    accept_known: float,
) -> dict[str, Any]:
    """Gives a classifier what tells images of no class: class means, and how far from all of them is too far.

    Args:
        model: in evaluation mode; gets its `open_set` and that of its configuration.
        features: (rows, channels) of rows that it was trained on.
        labels: (rows,) their classes.
        held_out: (rows, channels) of rows that it was not trained on.
        accept_known: the share of these that is to be accepted.

    Returns:
        The record for training.json: `open_set`, as in the configuration; nothing where features do not differ.
    """
    finite = bool(features.isfinite().all() and held_out.isfinite().all())
    found = calibration.fit_discriminants(features.cpu().numpy(), labels) if finite else None
    if found is None:
        return {}
    model.open_set = OpenSet(features.shape[1], len(found[1])).to(features.device)
    for buffer, values in zip((model.open_set.projection, model.open_set.means), found, strict=True):
        buffer.copy_(torch.from_numpy(values))
    distances = model.open_set(held_out).double().cpu().numpy()
    threshold = -calibration.accepting_threshold(-distances, accept_known)
    model.config.open_set = {"threshold": threshold, "accepts": accept_known, "rows": len(distances)}
    return {"open_set": model.config.open_set}


def _uncalibrated(model: SelfConResNetForImageClassification, why: str) -> dict[str, Any]:
    model.config.calibration = {"method": "none", "why": why}
    return {"calibration": model.config.calibration}


def _figures(logits: NDArray[np.float64], labels: NDArray[np.int_]) -> dict[str, float]:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponents / exponents.sum(axis=1, keepdims=True)
    return {
        "nll": round(calibration.negative_log_likelihood(probabilities, labels), 4),
        "ece": round(calibration.expected_calibration_error(probabilities, labels), 4),
    }


def _parts(rows: datasets.Dataset, column: str, share: float) -> tuple[datasets.Dataset, datasets.Dataset, str | None]:
    """`held_out`, but that no class is held out as a whole, and nothing where that would be too little to fit to.

    Returns:
        What to train on, what to calibrate with, and why that is nothing, if so.
    """
    if not share:
        return rows, rows.select(()), "no rows were held out for it"
    kept, held = held_out(rows, share)
    lost = set(values_of(held, column)) - set(values_of(kept, column))
    if lost:
        stays = np.array([value in lost for value in held[column][:]])
        kept = datasets.concatenate_datasets([kept, held.select(np.flatnonzero(stays))])
        held = held.select(np.flatnonzero(~stays))
    if len(held) < LEAST_HELD_OUT or len(values_of(held, column)) < 2:
        found = f"a share of {share:g} of {len(rows)} rows is {len(held)} of {len(values_of(held, column))} classes"
        return rows, held.select(()), f"{found}: fewer than {LEAST_HELD_OUT} rows of two classes say nothing"
    return kept, held, None


def _check_classes(names: Sequence[str], column: str, track: Track) -> None:
    if track is Track.DETECTION and list(names) != list(map(str, Origin)):
        raise UsageError(
            f"expected rows with the label real and rows with the label synthetic, got {', '.join(names)}: add data, "
            "or choose another track"
        )
    if len(names) < 2:
        raise UsageError(
            f"expected rows of two classes or more in the column {column} to tell apart, got only "
            f"{', '.join(names)}: add data, or choose another track or column"
        )
    odd = [name for name in names if not name or not name.isprintable()]
    if odd:
        raise UsageError(f"expected class names of printable characters, got {odd[0]!r} in {column}: rename the class")
