"""Stage 1: the encoder learns representations by self-contrastive learning, with transformers' `Trainer`.

The defaults are the recipe of ImagiNet's paper (Boychev & Cholakov 2025, arXiv:2407.20020, training details, and
their code for what it leaves open): SGD with momentum .9 and weight decay 1e-4 on all parameters, batches of 200
crops of 96 pixels, a linear warm-up from 1e-4 of the learning rate over the first fortieth of the run, then a cosine
to a thousandth of it; 400 epochs. The schedule moves with every step, theirs with every epoch. `PRESETS["quick"]`
is for small machines.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import platform
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import datasets
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Sampler, default_collate
from transformers import HfArgumentParser, ProgressCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import get_last_checkpoint

from imaginet_hub.data.units import one_line
from imaginet_hub.errors import DataNotFoundError, ImagiNetError, ModelError, UsageError
from imaginet_hub.labels import Origin
from imaginet_hub.selfcon import (
    SelfConImageProcessor,
    SelfConResNetConfig,
    SelfConResNetForPreTraining,
    save_publishable,
)
from imaginet_hub.training.augment import (
    AugmentedRows,
    RowKey,
    RowSampler,
    TrainAugmentation,
    balanced_shares,
    check_rows,
)
from imaginet_hub.training.losses import ImagiNetLoss

__all__ = [
    "PRESETS",
    "RowTrainer",
    "RowTrainingArguments",
    "SelfConModelArguments",
    "SelfConTrainer",
    "SelfConTrainingArguments",
    "build_model",
    "parse_train_args",
    "train",
]

#: Values that replace the defaults of `SelfConModelArguments` and `SelfConTrainingArguments`, by preset name.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    # For two cores and minutes: timm's smallest ResNet, whose stem can then keep the full resolution, on small crops.
    # SGD at a batch of 64 lets the projections of a random start collapse to one point; AdamW does not.
    "quick": {
        "backbone": "test_resnet",
        "stem_stride": 1,
        "crop_size": 48,
        "per_device_train_batch_size": 64,
        "num_train_epochs": 7,
        "learning_rate": 0.003,
        "optim": "adamw_torch",
        "warmup_steps": 0.1,
        "temperature": 0.1,
        "perturb": 0.1,
        "balance": True,
    },
}

#: The fields of the configuration that make the encoder and its projection heads.
ARCHITECTURE = ("backbone", "stem_stride", "exit_stages", "projection_dim")

_LABELS = "label"
_FAMILIES = "generator_family"
_STEPPED_COSINE = "cosine_warmup_with_min_lr"
_HISTORY = ("step", "epoch", "loss", "learning_rate", "grad_norm")
# Of a run's arguments, what names places on somebody's disk or accounts.
_PRIVATE = {"output_dir", "run_name", "resume_from_checkpoint", "project", "deepspeed", "fsdp_config"}


def default(name: str, value: Any) -> Any:
    """A dataclass field of TrainingArguments with another default and the same help."""
    return dataclasses.field(default=value, metadata=dict(TrainingArguments.__dataclass_fields__[name].metadata))


def option(value: Any, text: str) -> Any:
    """A dataclass field with its help."""
    return dataclasses.field(default=value, metadata={"help": text})


@dataclasses.dataclass
class RowTrainingArguments(TrainingArguments):
    """What both stages take besides transformers' arguments; some of those with quieter defaults."""

    # HfArgumentParser reads the union in transformers' order only.
    report_to: None | str | list[str] = default("report_to", "none")  # noqa: RUF009, RUF036
    save_strategy: str = default("save_strategy", "no")
    logging_steps: float = default("logging_steps", 10)
    max_grad_norm: float = default("max_grad_norm", 0.0)
    remove_unused_columns: bool = default("remove_unused_columns", False)
    dataloader_pin_memory: bool = default("dataloader_pin_memory", torch.cuda.is_available())

    crop_size: int = option(96, "Side of the training crops in pixels.")
    perturb: float = option(0.5, "Probability that a crop is compressed, blurred or made noisy.")
    rotate: float = option(0.33, "Probability of 0 to 3 quarter turns.")
    flip: float = option(0.33, "Probability of a horizontal, vertical or double flip.")
    balance: bool = option(
        False, "Give real and synthetic images, and each generator family, the same share of every batch."
    )
    channels_last: bool = option(True, "Keep images and weights in channels-last memory order, which is faster.")
    processor_crop_size: int = option(256, "Side of the centre crop that the saved image processor takes, in pixels.")

    def __post_init__(self) -> None:
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu = True  # transformers takes bf16 on a CPU only where the CPU was asked for
        super().__post_init__()
        if self.push_to_hub:
            raise UsageError("expected no --push_to_hub: train into a folder, look at it, then upload that folder")
        if self.per_device_train_batch_size < 2:
            raise UsageError(
                f"expected a batch of 2 images or more, got {self.per_device_train_batch_size}: one image has nothing "
                "to be compared with; raise --per_device_train_batch_size"
            )


@dataclasses.dataclass
class SelfConTrainingArguments(RowTrainingArguments):
    """How stage 1 is trained. The defaults are the paper's recipe; see the module's docstring."""

    per_device_train_batch_size: int = default("per_device_train_batch_size", 200)
    num_train_epochs: float = default("num_train_epochs", 400)
    learning_rate: float = default("learning_rate", 0.005)
    lr_scheduler_type: str = default("lr_scheduler_type", _STEPPED_COSINE)
    warmup_steps: float = default("warmup_steps", 0.025)
    optim: str = default("optim", "sgd")
    weight_decay: float = default("weight_decay", 1e-4)
    dataloader_drop_last: bool = default("dataloader_drop_last", True)

    temperature: float = option(0.07, "What the similarities of projections are divided by.")

    def __post_init__(self) -> None:
        super().__post_init__()
        # Given as defaults, these would also reach the schedules and optimisers that do not know them.
        if self.lr_scheduler_kwargs is None and self.lr_scheduler_type == _STEPPED_COSINE:
            self.lr_scheduler_kwargs = {"min_lr_rate": 1e-3, "warmup_lr_rate": 1e-4}
        if self.optim_args is None and self.optim == "sgd":
            self.optim_args = "momentum=0.9"


@dataclasses.dataclass
class SelfConModelArguments:
    """Which network stage 1 trains and what its weights start from."""

    backbone: str | None = option(
        None, "A ResNet's name in timm, e.g. resnet18. Default: resnet50, or that of the model that --init names."
    )
    stem_stride: int | None = option(
        None, "1: no early down-sampling, as in the paper; 2: the common stem, about 12 times cheaper. Default: 1."
    )
    exit_stages: list[int] | None = dataclasses.field(
        default=None, metadata={"help": "Stages, counted from 1, after which an exit is trained. Default: 2."}
    )
    projection_dim: int | None = option(None, "Length of the compared projections. Default: 128.")
    init: str = option(
        "random",
        "Weights to start from: random; timm or timm:TAG (ImageNet weights, downloaded; the paper's are "
        "timm:tv2_in1k); a .safetensors file with a timm or torchvision ResNet's weights; a folder or Hub id of a "
        "model of this family.",
    )

    def __post_init__(self) -> None:
        if self.stem_stride not in (None, 1, 2):
            raise UsageError(f"expected --stem_stride 1 or 2, got {self.stem_stride}")


class ArgumentParser(HfArgumentParser):
    """Errors as exceptions, no guessing of abbreviations."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)

    def dataclasses_of(
        self, argv: Sequence[str], out: str | Path, presets: Mapping[str, Mapping[str, Any]]
    ) -> tuple[Any, ...]:
        """The dataclasses that the flags fill, then what else was parsed.

        Args:
            argv: flags and values; among them `--preset NAME`, by default "paper".
            out: the folder to train into.
            presets: by name, defaults that replace those of the dataclasses.

        Raises:
            UsageError: an unknown flag, with the closest ones; a value that cannot be used.
        """
        self.add_argument("--preset", choices=sorted(presets), default="paper", help="Which defaults the flags have.")
        chosen, _ = self.parse_known_args([*argv, "--output_dir", str(out)])
        self.set_defaults(**presets[chosen.preset])
        try:
            *parsed, unknown = self.parse_args_into_dataclasses(
                [*argv, "--output_dir", str(out)], return_remaining_strings=True, look_for_args_file=False
            )
        except ValueError as error:  # transformers' own checks of its arguments
            raise error if isinstance(error, UsageError) else UsageError(str(error)) from error
        if unknown:
            name, _, _ = unknown[0].partition("=")
            close = difflib.get_close_matches(name, self._option_string_actions, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "see --help"
            raise UsageError(f"unknown option {name}: {hint}")
        return tuple(parsed)


def parse_train_args(argv: Sequence[str], out: str | Path) -> tuple[SelfConModelArguments, SelfConTrainingArguments]:
    """Flags of `imaginet train` as arguments of `train`.

    Every field of the two dataclasses is a flag (transformers' rules: `--balance`, `--no_channels_last`, `--bf16`);
    `--preset paper|quick` chooses what is the default of the others.

    Args:
        argv: flags and values.
        out: the folder to train into.

    Raises:
        UsageError: an unknown flag, with the closest ones; a value that cannot be used.
    """
    parser = ArgumentParser([SelfConModelArguments, SelfConTrainingArguments], prog="imaginet train")
    model_arguments, training_arguments, _ = parser.dataclasses_of(argv, out, PRESETS)
    return model_arguments, training_arguments


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


class RowTrainer(Trainer):
    """transformers' `Trainer` on keyed rows: our order of rows, channels-last memory, no pickles beside a model.

    Args:
        model: what to train.
        args: how.
        rows: data set that a `RowKey` indexes.
        sampler: the keys of an epoch.
        processor: saved beside the weights.
        callbacks: further `TrainerCallback`s.
        **kwargs: further arguments of `Trainer`.
    """

    args: RowTrainingArguments

    def __init__(
        self,
        model: nn.Module,
        args: RowTrainingArguments,
        rows: Any,
        sampler: RowSampler,
        processor: SelfConImageProcessor,
        callbacks: Sequence[TrainerCallback] = (),
        **kwargs: Any,
    ) -> None:
        self.row_sampler = sampler
        self.processor = processor
        if args.channels_last:
            model = model.to(memory_format=torch.channels_last)
        super().__init__(
            model=model,
            args=args,
            train_dataset=rows,
            data_collator=default_collate,
            processing_class=processor,
            callbacks=[_Epochs(sampler), *callbacks],
            **kwargs,
        )
        self.model_accepts_loss_kwargs = False
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(_Bar)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[RowKey]:
        return self.row_sampler

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """All of them: upstream decays biases and BatchNorm's parameters too."""
        return [name for name, _ in model.named_parameters()]

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        if self.args.channels_last and "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].contiguous(memory_format=torch.channels_last)
        return inputs

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or out_folder(self.args))
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            _write_json(folder / "training_args.json", public_arguments(self.args))


class SelfConTrainer(RowTrainer):
    """Minimises ImagiNet's contrastive loss over the views that one image gives: the backbone's and its exits'.

    Inputs are `pixel_values` and, beside them, `labels` (origin) and `families` (generator family).
    """

    args: SelfConTrainingArguments

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor | tuple[Tensor, Any]:
        """The loss of a batch; see `imaginet_hub.training.losses.imaginet_loss`."""
        outputs = model(pixel_values=inputs["pixel_values"])
        views = torch.stack([outputs["projections"], *outputs["exit_projections"]], dim=1)
        labels = torch.stack([inputs["labels"], inputs["families"]], dim=1)
        loss = self.loss_function(views, labels)
        return (loss, outputs) if return_outputs else loss

    @property
    def loss_function(self) -> ImagiNetLoss:
        """The loss, as the arguments ask for it."""
        return ImagiNetLoss(self.args.temperature, weights=(1.0, 1.0))


def build_model(arguments: SelfConModelArguments) -> SelfConResNetForPreTraining:
    """The network that the arguments describe, its weights initialised as they ask.

    Random weights depend on torch's global seed.

    Raises:
        UsageError: the architecture contradicts that of the model to start from.
        DataNotFoundError: no such file or folder.
        ModelError: weights that cannot be had or do not fit, a pickle, a backbone that the family does not have.
    """
    asked = {name: getattr(arguments, name) for name in ARCHITECTURE if getattr(arguments, name) is not None}
    kind, _, tag = arguments.init.partition(":")
    if kind not in ("random", "timm") and not arguments.init.endswith((".safetensors", *_PICKLES)):
        return _from_family(arguments.init, asked)
    with config_errors():
        model = SelfConResNetForPreTraining(SelfConResNetConfig(**asked))
    if kind != "random":
        weights = _timm_weights(model.config.backbone, tag) if kind == "timm" else _file_weights(Path(arguments.init))
        _fill_backbone(model, weights, arguments.init)
    return model


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
_STUMBLES = (SafetensorError, TypeError, AttributeError, LookupError, ImportError, RuntimeError)
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


def _from_family(source: str, asked: Mapping[str, Any]) -> SelfConResNetForPreTraining:
    config = load_config(source)
    for name, value in asked.items():
        if getattr(config, name) != (tuple(value) if isinstance(value, list) else value):
            raise UsageError(
                f"expected --{name} {getattr(config, name)}, which the model of --init has, or no --{name} at all; "
                f"got {value}"
            )
    # A classifier has no projection heads, so that new ones are what is wanted; elsewhere they would be lost ones.
    wanted = config.track is not None or "projection_dim" in asked
    new = {"projection_dim": config.projection_dim} if wanted else {}
    with config_errors():
        model = SelfConResNetForPreTraining.from_pretrained(source, **new)
    model.config.track = None
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
    import timm

    name = f"{backbone}.{tag}" if tag else backbone
    if not timm.list_models(name, pretrained=True) and not timm.is_model_pretrained(name):
        known = ", ".join(timm.list_pretrained(f"{backbone}.*")) or "none"
        raise ModelError(f"expected pretrained weights of timm's {name}, which has {known}; or pass --init random")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"expected to download timm's weights of {name}, got: {error}. Offline, pass --init FILE.safetensors with "
            "these weights, or --init random"
        ) from error


def _file_weights(file: Path) -> Mapping[str, Tensor]:
    from safetensors.torch import load_file

    if file.suffix in _PICKLES:
        raise ModelError(
            f"expected a .safetensors file, got {file.name}: pickles are not read; if it is one of upstream's "
            "checkpoints, turn it into a model folder first: imaginet convert"
        )
    if not file.is_file():
        raise DataNotFoundError(f"no weights at {file}: expected a .safetensors file")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ModelError(f"{file}: expected a safetensors file, but {error}") from error


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
        rows_train: real and synthetic rows with the columns image, label (0 real, 1 synthetic) and generator_family.
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
        UsageError: rows or arguments that cannot be trained with.
        DataNotFoundError, ModelError: see `build_model`.
    """
    check_rows(rows_train, ["image", _LABELS, _FAMILIES])
    _check_origins(rows_train)
    _check_batch(len(rows_train), training_args)
    set_seed(training_args.seed)
    model = build_model(model_args)
    earlier = model.config.trained_on
    model.config.trained_on = {**dataset_record, **({"init": earlier} if earlier else {})}
    seed = data_seed(training_args)
    augmentation = TrainAugmentation(
        training_args.crop_size,
        seed,
        perturb=training_args.perturb,
        rotate=training_args.rotate,
        flip=training_args.flip,
    )
    trainer = SelfConTrainer(
        model,
        training_args,
        AugmentedRows(rows_train, augmentation, {"labels": _LABELS, "families": _FAMILIES}),
        row_sampler(rows_train, training_args),
        SelfConImageProcessor(crop_size=training_args.processor_crop_size),
        callbacks,
    )
    return run(
        trainer,
        model,
        {
            "stage": "representation",
            "model": {
                "init": _public_source(model_args.init),
                **{name: getattr(model.config, name) for name in ARCHITECTURE},
            },
            "loss": {"name": "ImagiNetLoss", **trainer.loss_function.get_config_dict()},
            "dataset": dict(dataset_record),
        },
    )


def run(trainer: RowTrainer, model: Any, record: Mapping[str, Any]) -> Path:
    """Trains, then writes the model folder with `record` and the run's particulars in training.json.

    Args:
        trainer: ready to train.
        model: what to save; the trainer's model or one that contains it.
        record: what training.json says besides arguments, history, versions and seconds.
    """
    args = trainer.args
    started = time.perf_counter()
    result = trainer.train(resume_from_checkpoint=_checkpoint(args))
    folder = out_folder(args)
    if trainer.is_world_process_zero():
        model.to("cpu", memory_format=torch.contiguous_format).eval()
        save_publishable(model, trainer.processor, folder)
        history = [
            {name: entry[name] for name in _HISTORY if name in entry}
            for entry in trainer.state.log_history
            if "loss" in entry
        ]
        _write_json(
            folder / "training.json",
            {
                **record,
                "steps": result.global_step,
                "epochs": trainer.state.epoch,
                "final_loss": history[-1]["loss"] if history else result.training_loss,
                "seconds": round(time.perf_counter() - started, 1),
                "seed": args.seed,
                "arguments": public_arguments(args),
                "versions": _versions(),
                "history": history,
            },
        )
    return folder


def row_sampler(rows: datasets.Dataset, args: RowTrainingArguments) -> RowSampler:
    """The order of the rows that the arguments ask for; balanced within the columns label and generator_family."""
    if not args.balance:
        return RowSampler([0] * len(rows), seed=data_seed(args))
    groups, shares = balanced_shares(rows[_LABELS][:], rows[_FAMILIES][:])
    return RowSampler(groups, shares, data_seed(args))


def out_folder(args: TrainingArguments) -> Path:
    """The folder to train into. transformers fills in a name where none was given."""
    return Path(str(args.output_dir))


def data_seed(args: TrainingArguments) -> int:
    """The seed of augmentation and order: `data_seed`, or `seed` where there is none."""
    return args.seed if args.data_seed is None else args.data_seed


def public_arguments(args: TrainingArguments) -> dict[str, Any]:
    """Arguments as JSON, without tokens and without the paths and names of the machine they ran on."""
    fields = {name: value for name, value in args.to_dict().items() if name not in _PRIVATE and "hub_" not in name}
    return json.loads(json.dumps(fields, default=str))


def _check_origins(rows: datasets.Dataset) -> None:
    feature = rows.features[_LABELS]
    names = list(getattr(feature, "names", []))
    if names != list(map(str, Origin)):
        raise UsageError(
            f"expected the column {_LABELS} to be a ClassLabel with the names {', '.join(Origin)}, got "
            f"{', '.join(names) or feature}: build the data set with `imaginet build`"
        )
    present = set(rows.unique(_LABELS))
    if present != {0, 1}:
        raise UsageError(
            f"expected real and synthetic rows, got only the label {', '.join(names[i] for i in present)}: "
            "load the detection track"
        )


def _check_batch(rows: int, args: RowTrainingArguments) -> None:
    batch = args.train_batch_size * args.world_size
    if args.dataloader_drop_last and rows < batch:
        raise UsageError(
            f"expected at least one full batch of {batch} rows, got {rows}: lower --per_device_train_batch_size"
        )


def _checkpoint(args: TrainingArguments) -> str | None:
    asked = args.resume_from_checkpoint
    if not asked or str(asked).lower() == "false":
        return None
    if str(asked).lower() in ("last", "true"):
        folder = out_folder(args)
        found = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        if found is None:
            raise DataNotFoundError(
                f"no checkpoint to resume from in {folder}: expected a folder checkpoint-*, which "
                "--save_strategy steps or epoch writes"
            )
        return str(found)
    if not Path(asked, "trainer_state.json").is_file():
        raise DataNotFoundError(f"no checkpoint at {asked}: expected a folder checkpoint-* or the word last")
    return str(asked)


def _public_source(init: str) -> str:
    return Path(init).name if Path(init).exists() else init


def _versions() -> dict[str, str]:
    packages = ("torch", "torchvision", "timm", "transformers", "accelerate", "datasets", "pillow", "numpy")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null in their place."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
