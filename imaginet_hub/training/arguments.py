"""What can be asked of a training run: transformers' TrainingArguments and ours, their presets, flags and files.

The defaults of stage 1 are the recipe of ImagiNet's paper (Boychev & Cholakov 2025, arXiv:2407.20020, training
details, and their code for what it leaves open): SGD with momentum .9 and weight decay 1e-4 on all parameters, batches
of 200 crops of 96 pixels, encoded 90 at a time, a linear warm-up from 1e-4 of the learning rate over the first
fortieth of the run, then a cosine to a thousandth of it; 400 epochs from ImageNet weights. The schedule moves with
every step, theirs with every epoch.

Those of stage 2 are their code's: 5 epochs over balanced rows in batches of 200 crops of 256 pixels, Adam at a
constant 1e-4 with an L2 penalty of 1e-3, the encoder's weights frozen while its BatchNorm statistics adapt to the new
crops. The paper names AdamW with betas .9 and .99 instead (`--head_optimizer adamw`).

The presets called quick are for small machines.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, NoReturn, get_args, get_type_hints

import torch
import yaml
from accelerate.utils import DynamoBackend
from torch._inductor import list_mode_options
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool
from transformers.integrations import get_available_reporting_integrations

from imaginet_hub.data.units import one_line
from imaginet_hub.errors import DataNotFoundError, UsageError
from imaginet_hub.precision import chosen

__all__ = [
    "ARCHITECTURE",
    "HEAD_PRESETS",
    "OBJECTIVES",
    "PRESETS",
    "HeadTrainingArguments",
    "Objective",
    "RowTrainingArguments",
    "SelfConModelArguments",
    "SelfConTrainingArguments",
    "is_new",
    "parse_head_args",
    "parse_train_args",
]


class Objective(NamedTuple):
    """What stage 1 minimises.

    Attributes:
        exits: the exits' projections are views of an image, beside the backbone's.
        families: generator families are told apart too, among the synthetic images.
        classifier: a classifier is trained end to end instead of an encoder with projection heads.
        text: in words.
    """

    exits: bool = False
    families: bool = False
    classifier: bool = False
    text: str = ""


#: By name; the paper's is the first.
OBJECTIVES = {
    "imaginet": Objective(exits=True, families=True, text="SelfCon over origin and generator family, as the paper"),
    "selfcon": Objective(exits=True, text="SelfCon over origin alone"),
    "supcon": Objective(text="SupCon over origin, without exits"),
    "cross_entropy": Objective(classifier=True, text="a detector end to end"),
}

#: Values that replace the defaults of `SelfConModelArguments` and `SelfConTrainingArguments`, by preset name.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    # For two cores and minutes: timm's smallest ResNet, whose stem can then keep the full resolution, on small crops.
    # SGD at a batch of 64 lets the projections of a random start collapse to one point; AdamW does not. Its rate is so
    # high that rounding to bfloat16 shows.
    "quick": {
        "backbone": "test_resnet",
        "stem_stride": 1,
        "init": "random",
        "crop_size": 48,
        "per_device_train_batch_size": 64,
        "num_train_epochs": 8,
        "learning_rate": 0.003,
        "optim": "adamw_torch",
        "warmup_steps": 0.1,
        "temperature": 0.1,
        "perturb": 0.1,
        "balance": True,
        "held_out": 0.1,
        "bf16": False,
    },
}

#: Values that replace the defaults of `HeadTrainingArguments`, by preset name.
HEAD_PRESETS: dict[str, dict[str, Any]] = {
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
        "bf16": False,
    },
}

#: The endings of files that hold pickles.
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")

#: The fields of the configuration that make the encoder and its projection heads.
ARCHITECTURE = ("backbone", "stem_stride", "exit_stages", "projection_dim")

_STEPPED_COSINE = "cosine_warmup_with_min_lr"
#: How a finished folder is published.
UPLOAD = "hf upload OWNER/NAME FOLDER --exclude 'checkpoint-*' 'runs/*'"

_TEXT = "it is for models of text"
_SHARDED = "every device holds the whole network, which is small; torchrun alone trains on several"
# What cannot be otherwise here: the value that it has to have, and why.
_FIXED: dict[str, tuple[Any, str]] = {
    "push_to_hub": (False, f"train into a folder, look at it, then upload that folder: {UPLOAD}"),
    "remove_unused_columns": (False, "the loss needs columns that the model does not take"),
    "train_sampling_strategy": ("random", "--balance is what changes the order of rows"),
    "auto_find_batch_size": (
        False,
        "another batch is another loss; where memory is short lower --mini_batch_size (train) or "
        "--per_device_train_batch_size",
    ),
    "neftune_noise_alpha": (None, _TEXT),
    "include_num_input_tokens_seen": ("no", _TEXT),
    "use_liger_kernel": (False, _TEXT),
    "use_cache": (False, _TEXT),
    "fsdp": (None, _SHARDED),
    "deepspeed": (None, _SHARDED),
    "parallelism_config": (None, _SHARDED),
}
# What only `Trainer` with an eval_dataset can do, and a command has none.
_EVALUATION = (
    "batch_eval_metrics",
    "bf16_full_eval",
    "do_eval",
    "do_predict",
    "eval_accumulation_steps",
    "eval_delay",
    "eval_do_concat_batches",
    "eval_on_start",
    "eval_steps",
    "eval_strategy",
    "eval_use_gather_object",
    "fp16_full_eval",
    "greater_is_better",
    "include_for_metrics",
    "label_names",
    "load_best_model_at_end",
    "metric_for_best_model",
    "per_device_eval_batch_size",
    "prediction_loss_only",
)
# What a number may be: a test of it, and that in words. Not a number passes none.
_SHARE = (lambda value: 0 <= value <= 1, "from 0 to 1")
_POSITIVE = (lambda value: 0 < value < math.inf, "above 0")
_FROM_0 = (lambda value: 0 <= value < math.inf, "0 or more")
_FROM_1 = (lambda value: value >= 1, "1 or more")
_SEED = (lambda value: 0 <= value < 2**32, "from 0 to 2^32 - 1")
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "learning_rate": _FROM_0,
    "weight_decay": _FROM_0,
    "max_grad_norm": _FROM_0,
    "label_smoothing_factor": _SHARE,
    "num_train_epochs": _POSITIVE,
    "gradient_accumulation_steps": _FROM_1,
    "logging_steps": _POSITIVE,
    "save_steps": _POSITIVE,
    "dataloader_num_workers": _FROM_0,
    "dataloader_prefetch_factor": _FROM_1,
    "seed": _SEED,
    "data_seed": _SEED,
    "crop_size": _FROM_1,
    "perturb": _SHARE,
    "rotate": _SHARE,
    "flip": _SHARE,
    "held_out": (lambda value: 0 <= value < 1, "a share of the rows, from 0 to below 1"),
    "processor_crop_size": _FROM_1,
    "temperature": _POSITIVE,
    "mini_batch_size": (_FROM_0[0], "1 image or more, or 0"),
    "crops_per_image": _FROM_1,
    "head_hidden_size": _FROM_1,
    "head_dropout": (lambda value: 0 <= value < 1, "from 0 to below 1"),
    "accept_known": (lambda value: 0 < value <= 1, "a share above 0, at most 1"),
    "cache_epochs": _FROM_0,
}
# Where a name of a file with a mapping may stand in the mapping's place.
_FILES = ("accelerator_config", "fsdp_config", "deepspeed")


def default(name: str, value: Any) -> Any:
    """A dataclass field of TrainingArguments with another default and the same help."""
    return dataclasses.field(default=value, metadata=dict(TrainingArguments.__dataclass_fields__[name].metadata))


def option(value: Any, text: str, **more: Any) -> Any:
    """A dataclass field with its help."""
    return dataclasses.field(default=value, metadata={"help": text, **more})


@dataclasses.dataclass
class RowTrainingArguments(TrainingArguments):
    """What both stages take besides transformers' arguments; some of those with other defaults."""

    # HfArgumentParser reads the union in transformers' order only.
    report_to: None | str | list[str] = default("report_to", "none")  # noqa: RUF009, RUF036
    save_strategy: str = default("save_strategy", "no")
    logging_steps: float = default("logging_steps", 10)
    # A loss that is no number would be logged as the mean of those before; here it ends the run.
    logging_nan_inf_filter: bool = default("logging_nan_inf_filter", False)
    max_grad_norm: float = default("max_grad_norm", 0.0)
    remove_unused_columns: bool = default("remove_unused_columns", False)
    dataloader_pin_memory: bool = default("dataloader_pin_memory", torch.cuda.is_available())
    # Crops do not depend on it; a GPU starves without.
    dataloader_num_workers: int = default(
        "dataloader_num_workers", min(16, os.cpu_count() or 1) if torch.cuda.is_available() else 0
    )
    ddp_find_unused_parameters: bool | None = default("ddp_find_unused_parameters", False)  # they are frozen
    bf16: bool | None = option(  # type: ignore[assignment]
        None, "Run the network in bfloat16 (autocast). Default: where the processor has it in hardware."
    )

    crop_size: int = option(96, "Side of the training crops in pixels.")
    perturb: float = option(0.5, "Probability that a crop is compressed, blurred or made noisy.")
    rotate: float = option(0.33, "Probability of 0 to 3 quarter turns.")
    flip: float = option(0.33, "Probability of a horizontal, vertical or double flip.")
    balance: bool = option(
        False, "Give real and synthetic images, and each generator family, the same share of every batch."
    )
    held_out: float = option(
        0.0,
        "Share of the rows, chosen by the images' content and so by both stages alike, that is not trained on.",
    )
    channels_last: bool = option(True, "Keep images and weights in channels-last memory order, which is faster.")
    processor_crop_size: int = option(256, "Side of the centre crop that the saved image processor takes, in pixels.")
    overwrite: bool = option(False, "Replace the model, and the checkpoints, that OUT holds.")

    def __post_init__(self) -> None:
        for name, (value, why) in _FIXED.items():
            if getattr(self, name) not in (value, None, False):
                left = "no" if value in (None, False) else str(value)
                raise UsageError(f"expected --{name} to be left at {left}: {why}")
        for name, (fits, words) in _RANGES.items():
            number = getattr(self, name, None)
            if number is not None and not fits(number):
                raise UsageError(f"expected --{name} to be {words}, got {number}")
        if self.use_cpu is False and not torch.accelerator.is_available():
            self.use_cpu = True  # transformers takes bf16 on a CPU only where the CPU was asked for
        if "LOCAL_RANK" not in os.environ:
            self.ddp_backend = None  # of several processes, and there is one
        if self.fp16:
            chosen("float16", _device(self.use_cpu))
        if self.bf16 is None:
            self.bf16 = not self.fp16 and chosen("auto", _device(self.use_cpu)) == "bfloat16"
        super().__post_init__()
        for name in self._VALID_DICT_FIELDS:
            text = getattr(self, name)
            if isinstance(text, str) and name not in _FILES:
                raise UsageError(f"expected --{name} to be a mapping as JSON, got {text}")
        installed = get_available_reporting_integrations()
        lacking = [name for name in self.report_to or () if name not in installed]
        if lacking:
            raise UsageError(
                f"expected --report_to none, all or what is installed here ({', '.join(installed) or 'nothing'}), got "
                f"{', '.join(lacking)}; install it with pip, tensorboard comes with imaginet_hub[train]"
            )
        backends = [kind.value.lower() for kind in DynamoBackend if kind is not DynamoBackend.NO]
        for name, names in {
            "torch_compile_backend": backends,
            "torch_compile_mode": list_mode_options(),
        }.items():
            asked = getattr(self, name)
            if asked is not None and asked.lower() not in names:
                raise UsageError(f"expected --{name} to be one of {', '.join(names)}, got {asked}")
        if self.dataloader_persistent_workers and not self.dataloader_num_workers:
            raise UsageError("expected --dataloader_num_workers of 1 or more with --dataloader_persistent_workers")
        if self.per_device_train_batch_size < 2:
            raise UsageError(
                f"expected a batch of 2 images or more, got {self.per_device_train_batch_size}: one image has nothing "
                "to be compared with; raise --per_device_train_batch_size"
            )


def _device(use_cpu: bool) -> torch.device:
    found = None if use_cpu else torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu")


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

    objective: str = option(
        "imaginet",
        "What is minimised: " + "; ".join(f"{name}: {kind.text}" for name, kind in OBJECTIVES.items()) + ".",
        choices=list(OBJECTIVES),
    )
    temperature: float = option(0.07, "What the similarities of projections are divided by.")
    mini_batch_size: int | None = option(
        90,
        "Encode this many images of a batch at a time and put the loss of the whole batch together by gradient "
        "caching: less memory, a second forward pass. BatchNorm sees a mini-batch at a time. 0: the whole batch.",
    )
    crops_per_image: int = option(1, "Crops taken of each image of a batch, as further views; each is augmented anew.")
    freeze_batchnorm: bool = option(
        False, "Normalise by the statistics that BatchNorm layers started with; their scales and shifts are trained."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # Given as defaults, these would also reach the schedules and optimisers that do not know them.
        if self.lr_scheduler_kwargs is None and self.lr_scheduler_type == _STEPPED_COSINE:
            self.lr_scheduler_kwargs = {"min_lr_rate": 1e-3, "warmup_lr_rate": 1e-4}
        if self.optim_args is None and self.optim == "sgd":
            self.optim_args = "momentum=0.9"
        if self.objective not in OBJECTIVES:
            raise UsageError(f"expected --objective {', '.join(OBJECTIVES)}, got {self.objective}")
        if self.label_smoothing_factor:
            raise UsageError("expected no --label_smoothing_factor: it belongs to a classifier, see train-head")


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
        "timm",
        "Weights to start from. timm or timm:TAG: ImageNet weights, downloaded (without a tag the paper's, tv2_in1k, "
        "where timm has them for the backbone); random; a .safetensors file with a timm or torchvision ResNet's "
        "weights; a folder or Hub id of a model of this family, to fine-tune it.",
    )

    def __post_init__(self) -> None:
        if self.stem_stride not in (None, 1, 2):
            raise UsageError(f"expected --stem_stride 1 or 2, got {self.stem_stride}")


def is_new(arguments: SelfConModelArguments | argparse.Namespace) -> bool:
    """Whether the network is a new one, not that of a model of this family."""
    kind = arguments.init.partition(":")[0]
    return kind in ("random", "timm") or arguments.init.endswith((".safetensors", *PICKLES))


@dataclasses.dataclass
class HeadTrainingArguments(RowTrainingArguments):
    """How a head is trained. The defaults are upstream's recipe; see the module's docstring."""

    per_device_train_batch_size: int = default("per_device_train_batch_size", 200)
    num_train_epochs: float = default("num_train_epochs", 5)
    learning_rate: float = default("learning_rate", 1e-4)
    lr_scheduler_type: str = default("lr_scheduler_type", "constant")
    weight_decay: float = default("weight_decay", 1e-3)
    adam_beta2: float | None = option(  # type: ignore[assignment]
        None, "Adam's decay of squared gradients. Default: .99 for --head_optimizer adamw, otherwise .999."
    )

    crop_size: int = option(256, "Side of the training crops in pixels.")
    balance: bool = option(True, "Give each class the same share of every batch, for detection each family in it too.")
    held_out: float = option(
        0.1,
        "Share of the rows, chosen by the images' content, that is not trained on; the published probabilities and "
        "the threshold of open-set rejection are fitted to them. 0: neither.",
    )
    head_type: str | None = option(
        None, "batchnorm_mlp or l2norm_mlp. Default: the first for detection, the second for identification."
    )
    head_hidden_size: int = option(1024, "Width of the classifier's hidden layer.")
    head_dropout: float = option(0.2, "Dropout before the classifier's last layer (batchnorm_mlp only).")
    head_optimizer: str = option(
        "adam",
        "adam: Adam with an L2 penalty, as upstream's code; adamw: AdamW with betas .9 and .99, as the paper; "
        "trainer: what --optim names.",
        choices=["adam", "adamw", "trainer"],
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
    accept_known: float = option(
        0.99,
        "Identification: the share of the held-out images that is accepted as made by a known generator; what is "
        "further from all of them is answered with unknown.",
    )

    def __post_init__(self) -> None:
        if self.adam_beta2 is None:
            self.adam_beta2 = 0.99 if self.head_optimizer == "adamw" else 0.999
        super().__post_init__()
        if self.head_optimizer not in ("adam", "adamw", "trainer"):
            raise UsageError(f"expected --head_optimizer adam, adamw or trainer, got {self.head_optimizer}")
        unused = () if self.head_optimizer == "trainer" else ("optim", "optim_args")
        for name in unused:
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise UsageError(
                    f"expected no --{name} with --head_optimizer {self.head_optimizer}, which would not use it: pass "
                    "--head_optimizer trainer too"
                )
        if self.cache_epochs and (self.adapt_batchnorm or self.unfreeze_encoder):
            raise UsageError(
                "expected stored features only from an encoder that stays as it is: with --cache_epochs pass "
                "--no_adapt_batchnorm, and no --unfreeze_encoder"
            )


def parse_train_args(argv: Sequence[str], out: str | Path) -> tuple[SelfConModelArguments, SelfConTrainingArguments]:
    """Flags of `imaginet train` as arguments of `train`.

    Every field of the two dataclasses is a flag (transformers' rules: `--balance`, `--no_channels_last`, `--bf16`);
    `--preset paper|quick` chooses what is the default of the others, `--config FILE` names a YAML or JSON file with
    further ones. Flags win over the file, the file over the preset. Where `--init` names a model of the family, the
    network is that model's, whatever the preset.

    Args:
        argv: flags and values.
        out: the folder to train into.

    Raises:
        UsageError: an unknown flag, with the closest ones; a value that cannot be used.
        DataNotFoundError: the file is not there.
    """
    parser = _Parser([SelfConModelArguments, SelfConTrainingArguments], prog="imaginet train")
    model_arguments, training_arguments, _ = parser.dataclasses_of(argv, out, PRESETS)
    return model_arguments, training_arguments


def parse_head_args(argv: Sequence[str], out: str | Path) -> HeadTrainingArguments:
    """Flags of `imaginet train-head` as arguments of `train_head`; as `parse_train_args`."""
    parser = _Parser([HeadTrainingArguments], prog="imaginet train-head")
    arguments, _ = parser.dataclasses_of(argv, out, HEAD_PRESETS)
    return arguments


class _Parser(HfArgumentParser):
    """Errors as exceptions, no guessing of abbreviations, files of flags."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)
        hints = {name: hint for kind in self.dataclass_types for name, hint in get_type_hints(kind).items()}
        #: What may be None.
        self.optional = {name for name, hint in hints.items() if NoneType in get_args(hint)}
        for action in self._actions:
            if action.type is string_to_bool and action.nargs is None:  # those that may be None ask for a value
                action.nargs, action.const = "?", True
            elif action.nargs is None and list[str] in get_args(hints.get(action.dest)):
                action.nargs = "+"  # one or several

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)

    def dataclasses_of(
        self, argv: Sequence[str], out: str | Path, presets: Mapping[str, Mapping[str, Any]]
    ) -> tuple[Any, ...]:
        """The dataclasses that the flags fill, then what else was parsed.

        Args:
            argv: flags and values; among them `--preset NAME`, by default "paper", and `--config FILE`.
            out: the folder to train into.
            presets: by name, defaults that replace those of the dataclasses.

        Raises:
            UsageError: an unknown flag, with the closest ones; a value that cannot be used.
            DataNotFoundError: the file is not there.
        """
        fields = {field.name for kind in self.dataclass_types for field in dataclasses.fields(kind) if field.init}
        self.add_argument("--preset", choices=sorted(presets), default="paper", help="Which defaults the flags have.")
        self.add_argument("--config", metavar="FILE", help="YAML or JSON file with flags: NAME: VALUE. Flags win.")
        place = ["--output_dir", str(out)]
        first, _ = self.parse_known_args([*argv, *place])
        values = _read_config(first.config, {*fields, "preset"} - {"output_dir"}) if first.config else {}
        several = {action.dest for action in self._actions if action.nargs == "+"}
        empty = {name: value for name, value in values.items() if value in (None, [])}
        for name, value in empty.items():
            if name not in (self.optional if value is None else several):
                raise UsageError(
                    f"--config {first.config}: expected a value of {name}, got {json.dumps(value)}; leave out what is "
                    "to have its default"
                )
        argv = [*_flags(values, first.config), *argv, *place]
        chosen, _ = self.parse_known_args(argv)
        _check_evaluation(chosen, self)
        own = ARCHITECTURE if hasattr(chosen, "init") and not is_new(chosen) else ()
        self.set_defaults(**{name: value for name, value in presets[chosen.preset].items() if name not in own})
        self.set_defaults(**empty)
        try:
            *parsed, unknown = self.parse_args_into_dataclasses(
                argv, return_remaining_strings=True, look_for_args_file=False
            )
        except UsageError:
            raise
        except (ValueError, TypeError, ImportError, OSError) as error:  # transformers' own checks of its arguments
            raise UsageError(one_line(" ".join(str(error).split()))) from error
        if unknown:
            name, _, _ = unknown[0].partition("=")
            raise UsageError(f"unknown option {name}: {_close(name, self._option_string_actions)}")
        return tuple(parsed)


def _close(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(close)}?" if close else "see --help"


def _check_evaluation(asked: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    for name in _EVALUATION:
        if getattr(asked, name) != parser.get_default(name):
            raise UsageError(f"{_NO_EVALUATION}, got --{name}")
    if asked.save_strategy == "best":
        raise UsageError(f"{_NO_EVALUATION}, got --save_strategy best; expected no, steps or epoch")


_NO_EVALUATION = "no images are evaluated on while training: train, then measure with `imaginet evaluate`"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers and booleans, so that 1e-3 is a number and no is a word; nothing by reference."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*name) stands in it; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = [key.value for key, _ in node.value]
        _check_once(names)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", "true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", "[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def _check_once(names: Sequence[Any]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice!r} is in it twice")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_once([name for name, _ in pairs])
    return dict(pairs)


def _read_config(file: str, known: set[str]) -> dict[str, Any]:
    """The mapping in a YAML or JSON file.

    Raises:
        DataNotFoundError: the file is not there.
        UsageError: it cannot be read, is no mapping, or names something unknown.
    """
    path = Path(file).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            found = json.loads(text, object_pairs_hook=_object)
        else:
            found = yaml.load(text, _Loader)
    except FileNotFoundError as error:
        raise DataNotFoundError(f"--config: no file {file}: expected YAML or JSON with NAME: VALUE") from error
    except RecursionError as error:
        raise UsageError(f"--config {file}: expected YAML or JSON with NAME: VALUE, got brackets too deep") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise UsageError(one_line(f"--config {file}: expected YAML or JSON, but {said}")) from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise UsageError(f"--config {file}: expected a mapping NAME: VALUE, got {one_line(repr(found)[:80])}")
    for name in found:
        if name == "output_dir":
            raise UsageError(f"--config {file}: expected no output_dir, since OUT on the command line says where")
        if name not in known:
            raise UsageError(one_line(f"--config {file}: unknown option {name!r}: {_close(name, known)}"))
    return found


def _flags(values: Mapping[str, Any], file: str) -> list[str]:
    """What a file says as flags, so that it is checked as they are; but for what is None or an empty list.

    Raises:
        UsageError: a value that no flag can have.
    """
    flags: list[str] = []
    for name, value in values.items():
        items = value if isinstance(value, list) else [value]
        if isinstance(value, dict) and _plain(value):
            flags.append(f"--{name}={json.dumps(value)}")
        elif value is not None and not all(isinstance(item, (str, int, float)) for item in items):
            got = one_line(repr(value)[:80])
            raise UsageError(f"--config {file}: expected {name} to be a word, a number or a list of such, got {got}")
        elif isinstance(value, list):
            flags += [f"--{name}", *map(_word, value)] if value else []
        elif value is not None:
            flags.append(f"--{name}={_word(value)}")
    return flags


def _word(value: str | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _plain(value: Any) -> bool:
    """Whether JSON can say it."""
    if isinstance(value, dict):
        return all(isinstance(name, str) and _plain(item) for name, item in value.items())
    if isinstance(value, list):
        return all(map(_plain, value))
    return value is None or isinstance(value, (str, int, float))
