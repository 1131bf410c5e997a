"""OUT, the folder that a run trains into: what it finds there, goes on from and leaves."""

from __future__ import annotations

import json
import math
import platform
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from imaginet_hub.data.units import one_line
from imaginet_hub.errors import DataNotFoundError, ModelError, UsageError
from imaginet_hub.selfcon import SelfConResNetPreTrainedModel, save_publishable
from imaginet_hub.training.arguments import ARCHITECTURE, RowTrainingArguments

__all__ = [
    "ARGUMENTS_NAME",
    "checkpoint_of",
    "claim",
    "out_folder",
    "public_arguments",
    "resumes",
    "save_final",
    "versions",
    "write_json",
]

# Of a run's arguments, what names places on somebody's disk or accounts.
_PRIVATE = {"output_dir", "run_name", "resume_from_checkpoint", "project", "deepspeed", "fsdp_config"}
#: The run's arguments in a checkpoint.
ARGUMENTS_NAME = "training_args.json"
#: The folder inside OUT that a finished model is written in before its files get their names.
_STAGING = ".model.incomplete"


def out_folder(args: TrainingArguments) -> Path:
    """The folder to train into. transformers fills in a name where none was given."""
    return Path(str(args.output_dir))


def claim(args: RowTrainingArguments) -> None:
    """Makes OUT, and sees before hours of work that it can be written and holds nothing that would be lost.

    Raises:
        UsageError: it cannot, or it holds a model or checkpoints and neither to go on nor to overwrite was asked for.
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
    checkpoints = _checkpoints(folder)
    held = [SAFE_WEIGHTS_NAME] * (folder / SAFE_WEIGHTS_NAME).exists() + [path.name for path in checkpoints]
    if resumes(args) or not held:
        return
    if not args.overwrite:
        go_on = "--resume_from_checkpoint last to go on with what is there, " if checkpoints else ""
        raise UsageError(
            f"expected OUT to hold no model yet, got {held[0]} in {folder}: pass {go_on}--overwrite to replace it, or "
            "another OUT"
        )
    for path in checkpoints:
        shutil.rmtree(path)


def resumes(args: TrainingArguments) -> bool:
    return bool(args.resume_from_checkpoint) and str(args.resume_from_checkpoint).lower() != "false"


def _checkpoints(folder: Path) -> list[Path]:
    """The newest first."""
    found = (path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdecimal())
    return sorted(found, key=lambda path: -int(path.name.rpartition("-")[2]))


def checkpoint_of(args: TrainingArguments, config: Any) -> str | None:
    """The checkpoint to go on from, if any is asked for; "last" passes over one that a kill left unfinished.

    Raises:
        DataNotFoundError: there is none.
        ModelError: it is not whole.
        UsageError: it is that of another network, of other images, or of a run in another order.
    """
    if not resumes(args):
        return None
    asked = str(args.resume_from_checkpoint)
    if asked.lower() in ("last", "true"):
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
    here = json.loads(json.dumps({**config.to_dict(), "trained_on": config.trained_on}, default=str))
    there = _json_of(path / CONFIG_NAME)  # a head on stored features has none
    wrong = _differing(ARCHITECTURE, here, there) + _differing(
        _ORDER, public_arguments(args), _json_of(path / ARGUMENTS_NAME)
    )
    if wrong:
        name, now, then = wrong[0]
        raise UsageError(
            f"expected --{name} {then}, which the checkpoint {path.name} has, got {now}; resume with the flags that "
            "the run was started with"
        )
    # The name may be that of a folder that has moved since.
    now, then = ({**(side.get("trained_on") or {}), "name": None} for side in (here, there))
    if there and now != then:
        raise UsageError(
            f"expected the images that the checkpoint {path.name} was trained on, {_brief(then)}, got {_brief(now)}"
        )
    return str(path)


# What decides the order of rows, and what an optimiser has stored.
_ORDER = (
    "seed",
    "data_seed",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "balance",
    "held_out",
    "objective",
    "optim",
    "head_optimizer",
)


def _differing(names: Sequence[str], here: Mapping[str, Any], there: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    return [(name, here.get(name), there[name]) for name in names if name in there and there[name] != here.get(name)]


def _brief(record: Mapping[str, Any]) -> str:
    return json.dumps({name: record[name] for name in ("split", "images", "fingerprint") if name in record})


def _json_of(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; its state is the last file that is written."""
    try:
        for name in (TRAINER_STATE_NAME, ARGUMENTS_NAME, CONFIG_NAME):
            there = name == TRAINER_STATE_NAME or (checkpoint / name).exists()
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
    save_publishable(model, processor, staging)
    write_json(staging / "training.json", record)
    (folder / SAFE_WEIGHTS_NAME).unlink(missing_ok=True)  # an earlier model's, which what comes next does not describe
    for file in sorted(staging.iterdir(), key=lambda file: file.suffix == ".safetensors"):
        file.replace(folder / file.name)
    staging.rmdir()


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
