"""OUT, the folder that a run trains into: what it finds there, goes on from and leaves."""

from __future__ import annotations

import json
import math
import platform
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from imaginet_hub.data.units import one_line
from imaginet_hub.errors import DataNotFoundError, ImagiNetError, ModelError, UsageError
from imaginet_hub.selfcon import SelfConResNetPreTrainedModel, save_publishable
from imaginet_hub.training.arguments import ARCHITECTURE, RowTrainingArguments

__all__ = [
    "ARGUMENTS_NAME",
    "checkpoint_of",
    "claim",
    "clear",
    "out_folder",
    "public_arguments",
    "resumes",
    "run_record",
    "save_final",
    "versions",
    "write_json",
    "writing",
]

# Of a run's arguments, what names places on somebody's disk or accounts.
_PRIVATE = {"output_dir", "run_name", "resume_from_checkpoint", "project", "deepspeed", "fsdp_config"}
#: What of a run decides how it goes on, in a checkpoint.
ARGUMENTS_NAME = "training_args.json"
_LAST = ("last", "true")
# Of a model's configuration, what a run goes on with.
_CONFIGURED = (
    *ARCHITECTURE,
    *("track", "label_column", "id2label", "head_type", "head_hidden_size", "head_dropout"),
)
# Of its arguments, likewise: rows and their order, augmentation, what is learned, what an optimiser has stored. Not
# how long it is, where it runs, or what is logged and saved, which may change.
_RECIPE = (
    *("world_size", "seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("dataloader_drop_last", "balance", "held_out", "cache_epochs"),
    *("crop_size", "perturb", "rotate", "flip", "crops_per_image"),
    *("objective", "temperature", "mini_batch_size", "freeze_batchnorm", "adapt_batchnorm", "unfreeze_encoder"),
    *("label_smoothing_factor", "bf16", "fp16"),
    *("head_optimizer", "optim", "optim_args", "learning_rate", "weight_decay", "max_grad_norm"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
)
# What no flag of that name says.
_IN_WORDS = {"world_size": "a number of processes of", "id2label": "the classes", "label_column": "the label column"}
#: What a finished run says of itself.
RECORD_NAME = "training.json"
#: The folder inside OUT that a finished model is written in before its files get their names.
_STAGING = ".model.incomplete"


def out_folder(args: TrainingArguments) -> Path:
    """The folder to train into. transformers fills in a name where none was given."""
    return Path(str(args.output_dir))


def claim(args: RowTrainingArguments) -> None:
    """Makes OUT, and sees before hours of work that it can be written and holds nothing that would be lost.

    Nothing is removed yet: what comes next may refuse, or start from a checkpoint in it.

    Raises:
        UsageError: it cannot, or it holds a model or checkpoints and neither to go on with them nor to overwrite was
            asked for, or something else has a checkpoint's name.
    """
    if args.process_index:
        return
    folder = out_folder(args)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"expected OUT to be a folder that can be made and written, got {folder}: {error.strerror or error}"
        ) from error
    there = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if set(there) - {"runs"} and not _named(folder) and not {CONFIG_NAME, RECORD_NAME} & set(there):
        raise UsageError(
            f"expected OUT to be empty or to hold a model, got {folder} with {there[0]} in it, which a model's files "
            "could replace: pass another OUT"
        )
    checkpoints = _checkpoints(folder)
    others = [path for path in _named(folder) if path not in checkpoints]
    if others and args.save_strategy != "no":
        raise UsageError(
            f"expected {others[0]} to be a folder, since checkpoints get such names, got a file or a link: move it "
            "away, or pass another OUT"
        )
    held = [SAFE_WEIGHTS_NAME] * (folder / SAFE_WEIGHTS_NAME).exists() + [path.name for path in checkpoints]
    if held and not args.overwrite and not _goes_on_in(folder, args):
        go_on = "--resume_from_checkpoint last to go on with what is there, " if checkpoints else ""
        raise UsageError(
            f"expected OUT to hold no model yet, got {held[0]} in {folder}: pass {go_on}--overwrite to replace it, or "
            "another OUT"
        )


def clear(args: RowTrainingArguments) -> None:
    """Removes the checkpoints of an earlier run in OUT that is to be replaced, not gone on with."""
    folder = out_folder(args)
    if args.overwrite and not args.process_index and not _goes_on_in(folder, args):
        for path in _checkpoints(folder):
            shutil.rmtree(path)


def resumes(args: TrainingArguments) -> bool:
    return bool(args.resume_from_checkpoint) and str(args.resume_from_checkpoint).lower() != "false"


def _goes_on_in(folder: Path, args: TrainingArguments) -> bool:
    """Whether the run goes on from a checkpoint that is in the folder itself."""
    asked = str(args.resume_from_checkpoint)
    here = asked.lower() in _LAST or Path(asked).expanduser().resolve().parent == folder.resolve()
    return resumes(args) and here


def _named(folder: Path) -> list[Path]:
    """What is named as checkpoints are, the newest first."""
    found = (path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdecimal())
    return sorted(found, key=lambda path: -int(path.name.rpartition("-")[2]))


def _checkpoints(folder: Path) -> list[Path]:
    return [path for path in _named(folder) if path.is_dir() and not path.is_symlink()]


def checkpoint_of(args: TrainingArguments, config: Any) -> str | None:
    """The checkpoint to go on from, if any is asked for; "last" passes over one that a kill left unfinished.

    Raises:
        DataNotFoundError: there is none.
        ModelError: it is not whole.
        UsageError: it is that of another network, of other images, or of a run with another recipe.
    """
    if not resumes(args):
        return None
    asked = str(args.resume_from_checkpoint)
    if asked.lower() in _LAST:
        folder = out_folder(args)
        damages = {path: _damage(path) for path in _checkpoints(folder)}
        path = next((path for path, damage in damages.items() if damage is None), None)
        if path is None:
            found = "; ".join(f"{path.name} has {damage}" for path, damage in damages.items())
            raise DataNotFoundError(
                f"no checkpoint to resume from in {folder}: expected a folder checkpoint-*, which --save_strategy "
                f"steps or epoch writes{f', but {found}' if found else ''}"
            )
    else:
        path = Path(asked).expanduser()
        if not path.is_dir():
            raise DataNotFoundError(f"no checkpoint at {asked}: expected a folder checkpoint-* or the word last")
        damage = _damage(path)
        if damage is not None:
            raise ModelError(
                f"{asked}: expected a whole checkpoint, got one with {damage}; resume from an earlier one"
            )
    here, there = run_record(args, config), _json_of(path / ARGUMENTS_NAME)
    # The name may be that of a folder that has moved since.
    now, then = ({**(side.pop("trained_on", None) or {}), "name": None} for side in (here, there))
    for name in (*_CONFIGURED, *_RECIPE):
        if name in there and here.get(name) != there[name]:
            what = _IN_WORDS.get(name, f"--{name}")
            raise UsageError(
                f"expected {what} {there[name]}, which the checkpoint {path.name} has, got {here.get(name)}; resume "
                "with the flags that the run was started with"
            )
    if now != then:
        raise UsageError(
            f"expected the images that the checkpoint {path.name} was trained on, {_brief(then)}, got {_brief(now)}"
        )
    return str(path)


def run_record(args: TrainingArguments, config: Any = None) -> dict[str, Any]:
    """What a checkpoint says of its run, as JSON: arguments, number of processes, and its model's configuration."""
    configured = {name: getattr(config, name) for name in (*_CONFIGURED, "trained_on") if hasattr(config, name)}
    record = {**public_arguments(args), "world_size": args.world_size, **configured}
    return json.loads(json.dumps(record, default=str))


def _brief(record: Mapping[str, Any]) -> str:
    return json.dumps({name: record[name] for name in ("split", "images", "fingerprint") if name in record})


def _json_of(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; its state is the last file that is written."""
    try:
        for name in (TRAINER_STATE_NAME, ARGUMENTS_NAME, CONFIG_NAME):
            there = name != CONFIG_NAME or (checkpoint / name).exists()  # a head on stored features has none
            if there and not isinstance(json.loads((checkpoint / name).read_text(encoding="utf-8")), dict):
                return f"no mapping in {name}"
        with safe_open(checkpoint / SAFE_WEIGHTS_NAME, framework="pt"):
            pass
        pickled = (OPTIMIZER_NAME, SCHEDULER_NAME, *(file.name for file in checkpoint.glob("rng_state*.pth")))
        broken = [name for name in pickled if not zipfile.is_zipfile(checkpoint / name)]
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        return f"an unreadable file ({one_line(' '.join(str(error).split()))})"
    return f"{broken[0]} missing or cut short" if broken else None


def save_final(model: SelfConResNetPreTrainedModel, processor: Any, folder: Path, record: Mapping[str, Any]) -> None:
    """Every file under another name first; the weights, by which a folder is known to be done, come last."""
    staging = folder / _STAGING
    shutil.rmtree(staging, ignore_errors=True)
    with writing(folder):
        try:
            save_publishable(model, processor, staging)
            write_json(staging / RECORD_NAME, record)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
    (folder / SAFE_WEIGHTS_NAME).unlink(missing_ok=True)  # an earlier model's, which what comes does not describe
    for file in sorted(staging.iterdir(), key=lambda file: file.suffix == ".safetensors"):
        file.replace(folder / file.name)
    staging.rmdir()
    for file in (folder / "README.md", *folder.glob("results/*.json")):  # likewise an earlier model's
        file.unlink(missing_ok=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """A disk that is full, or another that cannot be written, as one of our errors."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's and safetensors' own writers
        said = one_line(" ".join(str(error).split())[:200])
        raise ImagiNetError(
            f"{folder}: expected to write there, got: {said}. Make room; where --save_strategy left checkpoints, go "
            "on with --resume_from_checkpoint last"
        ) from error


def public_arguments(args: TrainingArguments) -> dict[str, Any]:
    """Arguments as JSON, without tokens and without the paths and names of the machine they ran on."""
    fields = {name: value for name, value in args.to_dict().items() if name not in _PRIVATE and "hub_" not in name}
    return json.loads(json.dumps(fields, default=str))


def versions() -> dict[str, str]:
    packages = ("torch", "torchvision", "timm", "transformers", "accelerate", "datasets", "pillow", "numpy")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null in their place."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
