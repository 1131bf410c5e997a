"""Stage 1: the encoder learns representations by self-contrastive learning, with transformers' `Trainer`.

The recipe and how to depart from it: `imaginet_hub.training.arguments`.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import datasets
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, default_collate
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer import TRAINING_ARGS_NAME

from imaginet_hub.data.loading import classes_of, held_out, values_of
from imaginet_hub.data.units import one_line
from imaginet_hub.errors import UsageError
from imaginet_hub.labels import Origin, Track, id2label
from imaginet_hub.selfcon import SelfConImageProcessor, SelfConResNetPreTrainedModel
from imaginet_hub.training.arguments import (
    ARCHITECTURE,
    OBJECTIVES,
    PRESETS,
    UPLOAD,
    Objective,
    RowTrainingArguments,
    SelfConModelArguments,
    SelfConTrainingArguments,
    parse_train_args,
)
from imaginet_hub.training.augment import (
    AugmentedRows,
    RowKey,
    RowSampler,
    TrainAugmentation,
    balanced_shares,
    check_rows,
)
from imaginet_hub.training.grad_cache import all_gather, cached_backward
from imaginet_hub.training.initial import build_classifier, build_model, check_objective, init_in_full, is_new
from imaginet_hub.training.losses import CrossEntropyLoss, ImagiNetLoss, SelfConLoss, SupConLoss
from imaginet_hub.training.output import (
    ARGUMENTS_NAME,
    checkpoint_of,
    claim,
    clear,
    out_folder,
    public_arguments,
    resumes,
    run_record,
    save_final,
    versions,
    write_json,
    writing,
)

__all__ = [
    "PRESETS",
    "RowTrainer",
    "SelfConModelArguments",
    "SelfConTrainer",
    "SelfConTrainingArguments",
    "build_model",
    "parse_train_args",
    "train",
]

_LABELS = "label"
_FAMILIES = "generator_family"
_HISTORY = ("step", "epoch", "loss", "learning_rate", "grad_norm")


class _Bar(ProgressCallback):
    """Trainer's progress bar with the loss in it, instead of a line for each logged loss."""

    def on_log(
        self, args: TrainingArguments, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")


class _Epochs(TrainerCallback):
    """Tells the sampler the epoch; accelerate's own way to it is blocked in a resumed, distributed run."""

    def __init__(self, sampler: RowSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        self.sampler.set_epoch(int(state.epoch or 0))


class _Clears(TrainerCallback):
    """Replaces what OUT holds once all has been read and made that could still refuse."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        clear(args)


class _Losses(TrainerCallback):
    """Losses are logged before a checkpoint is written, which then tells of all of them; one that is no number ends
    the run, before it gets into a checkpoint."""

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log |= control.should_save

    on_epoch_end = on_step_end

    def on_log(
        self, args: TrainingArguments, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        for name in ("loss", "train_loss"):
            loss = (logs or {}).get(name, 0.0)
            if not math.isfinite(float(loss)):
                raise UsageError(
                    f"expected a loss that is a number, got {loss} by step {state.global_step}: training diverged; "
                    "lower --learning_rate, raise --temperature, or pass --bf16 false"
                )


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)  # of an enumeration


@contextmanager
def _makeable(args: TrainingArguments, *names: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, ImportError, LookupError, RuntimeError) as error:
        given = " and ".join(f"--{name} {_plain(getattr(args, name))}" for name in names)
        why = one_line(" ".join(str(error).split()))
        raise UsageError(f"expected flags that fit together, got {given}: {why}") from error


class RowTrainer(Trainer):
    """transformers' `Trainer` on rows of images: our order of rows, channels-last memory, no pickles beside a model.

    Args:
        model: what to train.
        args: how.
        train_dataset: a `datasets.Dataset` with an image column, which is augmented and sampled as `args` say; or any
            data set that a `RowKey` indexes.
        eval_dataset: likewise; always seen with the augmentations of epoch 0.
        sampler: the keys of an epoch; for a `datasets.Dataset` by default as `args` say.
        processing_class: saved beside the weights.
        callbacks: further `TrainerCallback`s.
        **kwargs: further arguments of `Trainer`.
    """

    args: RowTrainingArguments
    #: What of a batch the loss takes beside the model's inputs.
    batch_labels: tuple[str, ...] = ("labels",)

    def __init__(
        self,
        model: nn.Module,
        args: RowTrainingArguments,
        train_dataset: Any,
        eval_dataset: datasets.Dataset | Dataset[Any] | None = None,
        *,
        sampler: RowSampler | None = None,
        processing_class: SelfConImageProcessor | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        **kwargs: Any,
    ) -> None:
        _check_batch(len(train_dataset), args)
        if not args.dataloader_drop_last and args.world_size == 1:
            _check_last(len(train_dataset), args, model)
        if sampler is None:
            sampler = self.sampler_of(train_dataset, args)
        self.row_sampler = sampler
        #: Of the model that checkpoints belong to.
        self.configuration = getattr(model, "config", None)
        if args.channels_last:
            model = model.to(memory_format=torch.channels_last)
        super().__init__(
            model=model,
            args=args,
            train_dataset=self._augmented(train_dataset, args),
            eval_dataset=None if eval_dataset is None else self._augmented(eval_dataset, args),
            data_collator=default_collate,
            processing_class=processing_class or SelfConImageProcessor(crop_size=args.processor_crop_size),
            callbacks=[_Epochs(sampler), _Losses(), *callbacks],
            **kwargs,
        )
        self.label_names = list(self.batch_labels)  # without them no loss of eval_dataset
        self.model_accepts_loss_kwargs = False
        vars(getattr(self.model, "config", self)).pop("use_cache", None)  # no matter of an image model's
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(_Bar)
        elif args.log_level in ("error", "critical"):
            self.remove_callback(PrinterCallback)

    def sampler_of(self, rows: Any, args: Any) -> RowSampler:
        """The order of rows that the arguments ask for."""
        raise NotImplementedError

    def rows_of(self, rows: datasets.Dataset, args: Any) -> AugmentedRows:
        """The rows as the arguments ask for them to be seen."""
        raise NotImplementedError

    def _augmented(self, rows: Any, args: Any) -> Any:
        return self.rows_of(rows, args) if isinstance(rows, datasets.Dataset) else rows

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[RowKey]:
        return self.row_sampler

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """All of them: upstream decays biases and BatchNorm's parameters too."""
        return [name for name, _ in model.named_parameters()]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As transformers.

        Raises:
            UsageError: it cannot be made as the arguments ask.
        """
        with _makeable(self.args, "optim", "optim_args"):
            return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """As transformers.

        Raises:
            UsageError: it cannot be made as the arguments ask.
        """
        with _makeable(self.args, "lr_scheduler_type", "lr_scheduler_kwargs"):
            return super().create_scheduler(num_training_steps, optimizer)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        if self.args.channels_last and "pixel_values" in inputs and inputs["pixel_values"].ndim == 4:
            inputs["pixel_values"] = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
        return inputs

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        else:  # transformers goes on from a checkpoint of the last step by one more
            self.control.should_training_stop = True

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with writing(out_folder(self.args)):
            super()._save_checkpoint(*args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or out_folder(self.args))
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            write_json(folder / ARGUMENTS_NAME, run_record(self.args, self.configuration))

    def push_to_hub(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not from here: a repository is made of a finished folder.

        Raises:
            UsageError: always, with the command that does it.
        """
        raise UsageError(
            f"expected a finished model folder to publish, got a trainer: write one with train(), then {UPLOAD}"
        )


class _Numbered(Dataset[dict[str, Any]]):
    """Augmented rows with numbers for their families."""

    def __init__(self, rows: AugmentedRows, numbers: Mapping[Any, int]) -> None:
        self.rows = rows
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: RowKey | int) -> dict[str, Any]:
        item = self.rows[key]
        return {**item, "families": self.numbers[item["families"]]}


class SelfConTrainer(RowTrainer):
    """Trains by self-contrastive learning: `transformers.Trainer` with ImagiNet's loss, augmentation and sampling.

    The loss compares the views that an image gives, the backbone's and its exits' of each of its crops, with those of
    the whole batch, over all processes: `per_device_train_batch_size` images in each. With `mini_batch_size` below
    that, gradients are cached (see `imaginet_hub.training.grad_cache` for what stays the same). Gradients that are
    accumulated (`gradient_accumulation_steps`) are the mean of those of several smaller batches instead.

    Several processes take an epoch's batches in turn, so that their batches of B images together hold the rows that
    one process would take for a larger batch, in the same order, and loss and gradients are its own. BatchNorm in
    training mode sees a process's images, or mini-batch, by itself; the running statistics are the first process's.
    Without `dataloader_drop_last`, what is missing to an epoch's last batches is filled up with its first rows.

    Args:
        model: a `SelfConResNetForPreTraining`; a `SelfConResNetForImageClassification` for the objective
            "cross_entropy".
        args: how.
        train_dataset: a `datasets.Dataset` with the columns image, label (real, synthetic) and, for an objective that
            tells families apart or balanced batches, generator_family (classes, text or whole numbers), which come as
            `pixel_values`, `labels` and `families`.
        **kwargs: see `RowTrainer`.

    Raises:
        UsageError: rows that cannot be trained with; mini-batches of one image while BatchNorm is in training mode;
            batches that may differ in size among processes; DeepSpeed with gradient caching.
    """

    args: SelfConTrainingArguments
    batch_labels: tuple[str, ...] = ("labels", "families")

    def __init__(self, model: nn.Module, args: SelfConTrainingArguments, *more: Any, **kwargs: Any) -> None:
        _check_parts(args)
        if not OBJECTIVES[args.objective].families:
            self.batch_labels = ("labels",)
        if not OBJECTIVES[args.objective].exits:  # several processes would wait for gradients that nobody has
            for name, parameter in model.named_parameters():
                if "exit" in name:
                    parameter.requires_grad_(False)
        super().__init__(model, args, *more, **kwargs)

    @property
    def aim(self) -> Objective:
        """What is minimised."""
        return OBJECTIVES[self.args.objective]

    @property
    def loss_function(self) -> SelfConLoss | CrossEntropyLoss:
        """The loss, as the arguments ask for it."""
        if self.aim.classifier:
            return CrossEntropyLoss()
        if self.aim.families:
            return ImagiNetLoss(self.args.temperature, weights=(1.0, 1.0))
        return (SelfConLoss if self.aim.exits else SupConLoss)(self.args.temperature)

    def sampler_of(self, rows: Any, args: SelfConTrainingArguments) -> RowSampler:
        """Any order, or one that is balanced within the columns label and generator_family."""
        if args.balance and isinstance(rows, datasets.Dataset):
            _check_origins(rows, args)
        return row_sampler(rows, args, (_LABELS, _FAMILIES))

    def rows_of(self, rows: datasets.Dataset, args: SelfConTrainingArguments) -> Any:
        """Crops of the rows, with their origin and, for an objective that tells them apart, generator family."""
        families = OBJECTIVES[args.objective].families
        columns = {"labels": _LABELS, **({"families": _FAMILIES} if families else {})}
        _check_origins(rows, args)
        augmentation = TrainAugmentation(
            args.crop_size, data_seed(args), perturb=args.perturb, rotate=args.rotate, flip=args.flip
        )
        augmented = AugmentedRows(rows, augmentation, columns, crops_per_image=args.crops_per_image)
        if not families or isinstance(rows.features[_FAMILIES], datasets.ClassLabel):
            return augmented
        return _Numbered(augmented, {name: number for number, name in enumerate(sorted(values_of(rows, _FAMILIES)))})

    def views(self, model: nn.Module, pixel_values: Tensor) -> Tensor:
        """What the loss is made of: (images, crops x exits and backbone, projection_dim), or logits in its place."""
        if self.args.freeze_batchnorm:  # Trainer has just put everything in training mode
            freeze_batchnorm(model)
        images = len(pixel_values)
        if pixel_values.ndim == 5:
            pixel_values = pixel_values.flatten(0, 1)
            if self.args.channels_last:
                pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        outputs = model(pixel_values=pixel_values)
        if self.aim.classifier:
            views = outputs["logits"][:, None]
        else:
            exits = outputs["exit_projections"] if self.aim.exits else ()
            views = torch.stack([outputs["projections"], *exits], dim=1)
        return views.reshape(images, -1, views.shape[-1])

    def loss_of(self, views: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """The loss of a batch's views; see `imaginet_hub.training.losses`."""
        labels = inputs["labels"]
        if self.aim.classifier:  # a mean over images, so that each process may take its own
            return self.loss_function(views.flatten(0, 1), labels.repeat_interleave(views.shape[1]))
        if self.aim.families:
            labels = torch.stack([labels, inputs["families"]], dim=1)
        return self.loss_function(all_gather(views), all_gather(labels))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor | tuple[Tensor, Any]:
        """The loss of a batch, encoded in one piece."""
        views = self.views(model, inputs["pixel_values"])
        loss = self.loss_of(views, inputs)
        return (loss, {"loss": loss, "views": views}) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of a batch, in mini-batches where the arguments ask for them."""
        most = self.args.mini_batch_size
        if not most or len(inputs["pixel_values"]) <= most:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        switch = getattr(self.optimizer, "train", None)
        if callable(switch):
            switch()
        inputs = self._prepare_inputs(inputs)

        def encode(pixel_values: Tensor) -> Tensor:
            with self.compute_loss_context_manager():
                return self.views(model, pixel_values)

        return cached_backward(
            encode,
            inputs["pixel_values"].split(most),
            lambda views: self.loss_of(views, inputs) / self.current_gradient_accumulation_steps,
            model=self.accelerator.unwrap_model(model),
            backward=self.accelerator.backward,
            unsynced=lambda: self.accelerator.no_sync(model),
        )


def _check_parts(args: SelfConTrainingArguments) -> None:
    """Refuses what would fail, or hang, once images are divided among mini-batches and processes."""
    batch, most = args.train_batch_size, args.mini_batch_size
    if most and most < batch and 1 in (most, batch % most) and not args.freeze_batchnorm:
        raise UsageError(
            "expected mini-batches of 2 images or more, since BatchNorm normalises each by itself and so takes from a "
            "lone image what tells it from others, got "
            f"--mini_batch_size {most} for a batch of {batch}: one has 1 image; choose another size, or pass "
            "--freeze_batchnorm"
        )
    if most and most < batch and args.deepspeed_plugin:
        raise UsageError("expected no --deepspeed, whose every backward pass is a step: pass --mini_batch_size 0")
    config: Any = args.accelerator_config
    if args.world_size > 1 and not (args.dataloader_drop_last or config.even_batches):
        raise UsageError(
            "expected batches of the same size in all processes, which wait for each other's images: pass "
            "--dataloader_drop_last, or even_batches true in --accelerator_config"
        )


def freeze_batchnorm(module: nn.Module) -> None:
    """Puts BatchNorm layers in evaluation mode; their scales and shifts go on learning."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()


def train(
    rows_train: datasets.Dataset,
    model_args: SelfConModelArguments,
    training_args: SelfConTrainingArguments,
    *,
    dataset_record: Mapping[str, Any],
    callbacks: Sequence[TrainerCallback] = (),
) -> Path:
    """Stage 1: trains an encoder with its projection heads and writes a model folder.

    Args:
        rows_train: real and synthetic rows with the columns image, label (0 real, 1 synthetic) and, where the
            objective or balanced batches need it, generator_family.
        model_args: the network and what it starts from.
        training_args: how to train, and `output_dir`. `resume_from_checkpoint` may be a checkpoint folder or "last".
        dataset_record: what the images are, as JSON; kept in the configuration, beside the record of the model that
            the weights start from ("init"), and in training.json.
        callbacks: further `TrainerCallback`s.

    Returns:
        The folder: model.safetensors, config.json, preprocessor_config.json, the family's code and training.json
        (arguments, loss history, versions, data). Nothing in it is pickled; checkpoints, where `save_strategy` asks
        for them, are in folders checkpoint-* inside.

    Raises:
        UsageError: rows or arguments that cannot be trained with; self-contrast of a model without exits.
        DataNotFoundError, ModelError: see `build_model`.
    """
    _check_origins(rows_train, training_args)
    rows, held = held_out(rows_train, training_args.held_out)
    _check_batch(len(rows), training_args)
    claim(training_args)
    set_seed(training_args.seed)
    objective = OBJECTIVES[training_args.objective]
    if model_args.exit_stages is None and not objective.exits and is_new(model_args):
        model_args = dataclasses.replace(model_args, exit_stages=[])
    # The weights come from the checkpoint then, and nothing has to be downloaded.
    model: Any = build_model(
        dataclasses.replace(model_args, init="random") if resumes(training_args) and is_new(model_args) else model_args
    )
    check_objective(model, training_args)
    earlier = model.config.trained_on
    if objective.classifier:
        model = build_classifier(
            model, id2label=id2label(map(str, Origin)), track=str(Track.DETECTION), label_column=_LABELS
        )
    model.config.trained_on = {
        **dataset_record,
        **({"held_out": training_args.held_out} if training_args.held_out else {}),
        **({"init": earlier} if earlier else {}),
    }
    trainer = SelfConTrainer(model, training_args, rows, callbacks=callbacks)
    record: dict[str, Any] = {
        "stage": "end to end" if objective.classifier else "representation",
        "model": {
            "init": _public_source(init_in_full(model_args)),
            **{name: getattr(model.config, name) for name in ARCHITECTURE},
        },
        "loss": {"name": type(trainer.loss_function).__name__, **trainer.loss_function.get_config_dict()},
        "dataset": dict(dataset_record),
        "held_out": len(held),
    }
    return run(trainer, model, record)


def run(
    trainer: RowTrainer,
    model: SelfConResNetPreTrainedModel,
    record: dict[str, Any],
    finish: Callable[[], Mapping[str, Any]] | None = None,
) -> Path:
    """Trains, then writes the model folder with `record` and the run's particulars in training.json.

    Args:
        trainer: ready to train.
        model: what to save; the trainer's model or one that contains it.
        record: what training.json says besides arguments, history, versions and seconds.
        finish: called with the trained model in evaluation mode; gives more of the record and may change the model,
            which is saved before, as one that is not calibrated, and after.
    """
    args = trainer.args
    started = time.perf_counter()
    trainer.configuration = model.config
    trainer.add_callback(_Clears)
    result = trainer.train(resume_from_checkpoint=checkpoint_of(args, model.config))
    folder = out_folder(args)
    if trainer.is_world_process_zero():
        model.eval()
        history = [
            {name: entry[name] for name in _HISTORY if name in entry}
            for entry in trainer.state.log_history
            if "loss" in entry
        ]
        record = {
            **record,
            "steps": result.global_step,
            "epochs": trainer.state.epoch,
            "final_loss": history[-1]["loss"] if history else result.training_loss,
            "processes": args.world_size,
            "seed": args.seed,
            "arguments": public_arguments(args),
            "versions": versions(),
            "history": history,
        }

        def save(more: Mapping[str, Any]) -> None:
            on_cpu: Any = model
            on_cpu.to("cpu", memory_format=torch.contiguous_format)
            seconds = round(time.perf_counter() - started, 1)
            save_final(model, trainer.processing_class, folder, {**record, **more, "seconds": seconds})

        if finish is None:
            save({})
        else:
            model.config.calibration = {"method": "none", "why": "training ended while it was being calibrated"}
            save({"calibration": model.config.calibration})
            save(finish())
    return folder


def row_sampler(rows: datasets.Dataset, args: RowTrainingArguments, columns: Sequence[str]) -> RowSampler:
    """The order of the rows that the arguments ask for; balanced over one column, or one and a second in it."""
    if not args.balance:
        return RowSampler([0] * len(rows), seed=data_seed(args))
    check_rows(rows, columns)
    groups, shares = balanced_shares(rows[columns[0]][:], rows[columns[-1]][:])
    return RowSampler(groups, shares, data_seed(args))


def data_seed(args: TrainingArguments) -> int:
    """The seed of augmentation and order: `data_seed`, or `seed` where there is none."""
    return args.seed if args.data_seed is None else args.data_seed


def _check_origins(rows: datasets.Dataset, args: SelfConTrainingArguments) -> None:
    """Refuses rows without what the arguments need: real and synthetic ones, or whose family is not known."""
    families = args.balance or OBJECTIVES[args.objective].families
    check_rows(rows, ["image", _LABELS, *([_FAMILIES] if families else [])])
    feature = rows.features[_LABELS]
    names = list(getattr(feature, "names", []))
    if names != list(map(str, Origin)):
        raise UsageError(
            f"expected the column {_LABELS} to be a ClassLabel with the names {', '.join(Origin)}, got "
            f"{', '.join(names) or feature}: build the data set with `imaginet build`"
        )
    present = classes_of(rows, _LABELS)
    if len(present) < 2:
        raise UsageError(
            f"expected real and synthetic rows, got only the label {', '.join(present.values())}: "
            "load the detection track"
        )
    if families:
        _check_families(rows)


def _check_families(rows: datasets.Dataset) -> None:
    feature = rows.features[_FAMILIES]
    classes = isinstance(feature, datasets.ClassLabel)
    if not classes and not re.match("(large_)?string|bool|u?int", str(getattr(feature, "dtype", ""))):
        raise UsageError(f"expected a column of class names, got {_FAMILIES} with {feature}: make it text first")
    missing = [
        value
        for value in values_of(rows, _FAMILIES)
        if value is None or (classes and not 0 <= value < feature.num_classes)
    ]
    if missing:
        raise UsageError(
            f"expected a family in the column {_FAMILIES} of every row, for real ones too, e.g. real; got rows with "
            f"{missing[0]}"
        )


def _check_batch(rows: int, args: RowTrainingArguments) -> None:
    batch = args.train_batch_size * args.world_size if args.dataloader_drop_last else 1
    if rows < batch:
        size = "lower --per_device_train_batch_size"
        lower = f"lower --held_out {args.held_out:g}, which leaves rows out, or {size}" if args.held_out else size
        raise UsageError(f"expected at least one full batch of {batch} rows, got {rows}: {lower}")


def _check_last(rows: int, args: RowTrainingArguments, model: nn.Module) -> None:
    if rows % args.train_batch_size == 1 and not _normalises_one(model, args):
        raise UsageError(
            f"expected no batch of a single image, which BatchNorm cannot normalise, got {rows} rows in batches of "
            f"{args.train_batch_size}: pass --dataloader_drop_last, or another --per_device_train_batch_size"
        )


def _normalises_one(model: nn.Module, args: Any) -> bool:
    """Whether BatchNorm gets more than one value a channel of a lone image, or normalises by stored statistics."""
    if getattr(args, "freeze_batchnorm", False) or getattr(args, "crops_per_image", 1) > 1:
        return True
    if any(isinstance(layer, nn.BatchNorm1d) for layer in model.modules()):
        return False
    encoder: Any = getattr(model, "encoder", None)
    follows = getattr(args, "adapt_batchnorm", True) or getattr(args, "unfreeze_encoder", False)
    if encoder is None or not follows:
        return True
    # How many pixels become one position of the last feature map.
    reduction = encoder.backbone.feature_info[-1]["reduction"] // (1 if encoder.config.stem_stride == 2 else 4)
    return args.crop_size > reduction


def _public_source(init: str) -> str:
    return Path(init).name if Path(init).exists() else init
