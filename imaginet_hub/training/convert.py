"""Upstream's released checkpoints as model folders: `torch.save` files in, safetensors, configuration and code out.

Upstream publishes a detector (`imaginet_weights.pt`: ResNet-50 without early down-sampling) and a generator
identifier (`ckpt_model_detection.pth`: with it, as its evaluation script builds the network). The names and shapes of
the encoder's tensors are the same for both; which of the two a file is, its head tells. Numbers are never changed but
for one exact step: a head of one logit z becomes one of the two logits (0, z), since softmax([0, z])[1] = sigmoid(z).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from imaginet_hub.data import folders
from imaginet_hub.data.units import one_line
from imaginet_hub.errors import ImagiNetError, ModelError, UsageError
from imaginet_hub.labels import Track, Vocabulary, id2label
from imaginet_hub.selfcon import (
    SelfConImageProcessor,
    SelfConResNetConfig,
    SelfConResNetForImageClassification,
    SelfConResNetForPreTraining,
    SelfConResNetPreTrainedModel,
    save_publishable,
)
from imaginet_hub.training.checkpoint import Checkpoint, read_checkpoint

__all__ = ["Conversion", "Head", "convert", "decide"]

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Head:
    """A classification head as upstream saves it, and what it says of the network below it.

    Attributes:
        name: what to call it.
        shapes: of its tensors.
        track: what it answers; None for a head that is not converted.
        head_type: its name in `SelfConResNetConfig`.
        stem_stride: of the network that upstream's scripts put below such a head.
        last: the position of its last layer.
    """

    name: str
    shapes: Shapes
    track: Track | None
    head_type: Literal["batchnorm_mlp", "l2norm_mlp"]
    stem_stride: Literal[1, 2]
    last: int


def _layers(*linear: tuple[int, int, int], norm: int = 0) -> Shapes:
    """The shapes of BatchNorm at position 0, where there is one, and of linear layers (position, out, in)."""
    shapes: dict[str, tuple[int, ...]] = {}
    if norm:
        shapes |= {f"0.{name}": (norm,) for name in ("weight", "bias", "running_mean", "running_var")}
        shapes["0.num_batches_tracked"] = ()
    for position, out, width in linear:
        shapes |= {f"{position}.weight": (out, width), f"{position}.bias": (out,)}
    return shapes


HEADS = (
    Head(
        "detection head (nine tensors: BatchNorm, Linear, Linear; one logit)",
        _layers((1, 1024, 2048), (4, 1, 1024), norm=2048),
        Track.DETECTION,
        "batchnorm_mlp",
        1,
        4,
    ),
    Head(
        "identification head (four tensors: Linear, Linear; four logits)",
        _layers((1, 1024, 2048), (3, 4, 1024)),
        Track.IDENTIFICATION,
        "l2norm_mlp",
        2,
        3,
    ),
    Head(
        "head of the weights before July 2024 (four tensors: Linear, Linear; one logit)",
        _layers((1, 1024, 2048), (3, 1, 1024)),
        None,
        "l2norm_mlp",
        2,
        3,
    ),
)
#: Upstream's names of its networks, as its first stage's own arguments give them.
_STEM_STRIDES: dict[str, Literal[1, 2]] = {"resnet50nodown": 1, "resnet50": 2}
#: Our names to upstream's; each a part of a tensor's name.
_UPSTREAM_NAMES = (
    ("encoder.backbone.", "encoder."),
    (".downsample.", ".shortcut."),
    ("encoder.exits.stage2.", "encoder.selfcon_layer.1."),
    ("exit_projectors.stage2.", "sub_heads.0."),
    ("projector.", "head."),
)
_TRACKS = (*map(str, Track), "none")


@dataclass(frozen=True)
class Conversion:
    """What became of a checkpoint.

    Attributes:
        folder: the model folder.
        track: detection, identification, or None for an encoder with its projection heads.
        stem_stride: 1 or 2.
        reason: what decided the stem stride.
        sha256: of the checkpoint.
        remarks: what else a user should know.
    """

    folder: Path
    track: Track | None
    stem_stride: int
    reason: str
    sha256: str
    remarks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The attributes as JSON."""
        return {**vars(self), "folder": str(self.folder), "remarks": list(self.remarks)}


def convert(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    track: Track | str,
    stem_stride: int | None = None,
    overwrite: bool = False,
    finish: Callable[[Path], object] = lambda folder: None,
) -> Conversion:
    """Makes a publishable model folder of one of upstream's checkpoints.

    Args:
        checkpoint: a .pt or .pth file with the keys `model` and `classifier`, whatever else it holds.
        out: the folder to write; it appears when it is whole.
        track: "detection" or "identification", which has to be what the file's head answers; "none" leaves a head
            aside and gives the encoder with its projection heads, also of a file of the first stage, which has none.
        stem_stride: 1 or 2; overrides what the file's head and arguments say.
        overwrite: replace a model folder of this family.
        finish: called with the whole folder before it gets its name, to add a card.

    Raises:
        DataNotFoundError: no such file.
        ModelError: not such a checkpoint, another network or track, weights that cannot be right; `out` is in use.
        UsageError: a track or stem stride that there is none of.
    """
    if track not in _TRACKS:
        raise UsageError(f"expected a track of {', '.join(_TRACKS)}, got {track!r}")
    if stem_stride not in (None, 1, 2):
        raise UsageError(f"expected stem_stride 1 or 2, got {stem_stride!r}")
    shown = one_line(os.fspath(out))
    try:
        target = Path(out).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # links in a circle, the home of a user that there is not
        raise ModelError(f"{shown} cannot be written ({one_line(str(error))}); choose another folder") from error
    try:
        with folders.staged(target) as staging:
            folders.restore(target)
            _check_target(target, checkpoint, overwrite)
            weights = staging / "upstream.safetensors"
            found = read_checkpoint(checkpoint, weights)
            conversion = _converted(found, target, staging, None if track == "none" else Track(track), stem_stride)
            weights.unlink()
            finish(staging)
            folders.put_in_place(target)
    except ImagiNetError:
        raise
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{shown} cannot be written ({one_line(str(error))}); nothing was left there, choose another place"
        ) from error
    return conversion


def decide(
    classifier: Shapes | None, named: str | None, track: Track | None, stem_stride: int | None = None
) -> tuple[Head | None, int, str]:
    """Which head a file has, and which stem stride its network.

    The shapes of the encoder's weights are the same for both strides, so what decides is, in this order, the caller,
    the arguments that upstream's first stage stored, and the head: upstream's scripts put the nine-tensor detection
    head on the network without early down-sampling and the identification head on the one with it.

    Args:
        classifier: shapes of the head's tensors; None where the file has no head.
        named: upstream's name of the network, where its stored arguments give it.
        track: what is wanted; None for the encoder alone.
        stem_stride: what the caller says, 1 or 2.

    Returns:
        The head (None where the file has none), the stem stride, and what decided it.

    Raises:
        ModelError: the head is unknown, obsolete, absent or of another track; nothing decides, or two things differ.
    """
    head = None if classifier is None else _recognised(classifier)
    if head is not None and head.track is None:
        raise ModelError(
            "these are upstream's weights from before July 2024 (down-sampling ResNet-50, L2-normalised one-logit "
            "head), which upstream withdrew and whose figures are not the paper's; get imaginet_weights.pt, as its "
            "setup_testing.py downloads it since then"
        )
    if track is not None:
        if head is None:
            raise ModelError(
                f"expected `classifier` with the head of a {track} model, got weights without a head; convert the "
                "encoder with --track none and train a head on it: imaginet train-head"
            )
        if head.track is not track:
            raise ModelError(f"expected a head for --track {track}, got the {head.name}: pass --track {head.track}")
    if named is not None and named not in _STEM_STRIDES:
        raise ModelError(
            f"expected a network of {' or '.join(_STEM_STRIDES)}, got a checkpoint whose arguments say it is "
            f"{named!r}; only the ResNet-50s of upstream's release can be converted"
        )
    of_head, of_options = head and head.stem_stride, named and _STEM_STRIDES[named]
    if stem_stride is not None:
        contradicted = [stride for stride in (of_options, of_head) if stride not in (None, stem_stride)]
        said = f"; the file itself says {contradicted[0]}" if contradicted else ""
        return head, stem_stride, f"as --stem-stride says{said}"
    if of_head and of_options and of_head != of_options:
        raise ModelError(
            f"the file's arguments name {named!r}, which has stem stride {of_options}, but its {head and head.name} "
            f"belongs on stem stride {of_head}: say which with --stem-stride 1 or 2"
        )
    if of_options:
        return head, of_options, f"decided by the file's own arguments, which name {named!r}"
    if head is not None:
        return head, head.stem_stride, f"decided by the file's {head.name}"
    raise ModelError(
        "nothing in the file says whether its network down-samples early, and its weights look the same either way: "
        "pass --stem-stride 1 for upstream's resnet50nodown, 2 for its resnet50"
    )


def _recognised(classifier: Shapes) -> Head:
    for head in HEADS:
        if dict(classifier) == dict(head.shapes):
            return head
    nearest = max(HEADS, key=lambda head: len(head.shapes.items() & classifier.items()))
    faults = [f"no {key}" for key in nearest.shapes if key not in classifier]
    for key, shape in classifier.items():
        expected = nearest.shapes.get(key)
        if expected != shape:
            faults.append(f"{one_line(key)} {list(shape)}" + (f" instead of {list(expected)}" if expected else ""))
    more = f" and {len(faults) - 6:,} more" if len(faults) > 6 else ""
    raise ModelError(
        f"expected in `classifier` one of upstream's heads, got none of them; the nearest is the {nearest.name}, from "
        f"which it differs in: {', '.join(faults[:6])}{more}. Other heads cannot be converted"
    )


def upstream_name(ours: str) -> str:
    """What upstream's checkpoint calls a tensor of `SelfConResNetForPreTraining`."""
    for here, there in _UPSTREAM_NAMES:
        if here in ours and (here.startswith(".") or ours.startswith(here)):
            ours = ours.replace(here, there, 1)
    return ours


def _converted(found: Checkpoint, target: Path, staging: Path, track: Track | None, asked: int | None) -> Conversion:
    names = {part: _plain_names(part, shapes) for part, shapes in found.shapes.items()}
    shapes = {part: {key: found.shapes[part][name] for key, name in of.items()} for part, of in names.items()}
    head, stem_stride, reason = decide(shapes.get("classifier"), found.network, track, asked)
    fields: dict[str, Any] = {"stem_stride": stem_stride, "trained_on": _provenance(found, stem_stride, reason)}
    if track is not None and head is not None:
        classes = Vocabulary.upstream().track_names(track)
        fields |= {"track": str(track), "head_type": head.head_type, "id2label": id2label(classes)}
        fields |= {"label_column": track.label_column}
    config = SelfConResNetConfig(**fields)
    with torch.device("meta"):
        expected = {
            upstream_name(key): (key, tuple(value.shape))
            for key, value in SelfConResNetForPreTraining(config).state_dict().items()
            if not key.endswith("stem_stride")
        }
        model: SelfConResNetPreTrainedModel = (
            SelfConResNetForPreTraining(config) if track is None else SelfConResNetForImageClassification(config)
        )
    _check_network({key: shape for key, (_, shape) in expected.items()}, shapes["model"])
    wanted = set(model.state_dict())
    state = {"encoder.stem_stride": torch.tensor(stem_stride)}
    with safe_open(found.weights, "pt") as file:
        for key, (ours, _) in expected.items():
            if ours in wanted:
                state[ours] = _sound(f"model.{key}", file.get_tensor(f"model/{names['model'][key]}"))
        if track is not None and head is not None:
            for key in head.shapes:
                value = _sound(f"classifier.{key}", file.get_tensor(f"classifier/{names['classifier'][key]}"))
                state[f"classifier.{key}"] = two_logits(value) if _is_one_logit(head, key) else value
    model.load_state_dict(state, assign=True)
    model.eval()
    _check_answers(model)
    save_publishable(model, SelfConImageProcessor(), staging)
    return Conversion(target, track, stem_stride, reason, found.sha256, tuple(_remarks(found, track, head)))


def _is_one_logit(head: Head, key: str) -> bool:
    return key.startswith(f"{head.last}.") and head.shapes[key][0] == 1


def two_logits(last: Tensor) -> Tensor:
    """The last layer's weight (1, D) or bias (1,) for logits (0, z) in place of z: a row of zeros before it."""
    return torch.cat([torch.zeros_like(last), last])


def _provenance(found: Checkpoint, stem_stride: int, reason: str) -> dict[str, Any]:
    """What the configuration says about where the weights come from."""
    facts: dict[str, Any] = {
        "name": f"converted from upstream, sha256 {found.sha256}",
        "converted_from": found.name,
        "sha256": found.sha256,
        "bytes": found.size,
        "stem_stride": f"{stem_stride}, {reason}",
    }
    if found.epoch is not None:
        facts["epoch"] = found.epoch
    return facts


def _remarks(found: Checkpoint, track: Track | None, head: Head | None) -> list[str]:
    remarks = []
    if set(found.dtypes) - {"float32"}:
        remarks.append(f"weights of {', '.join(found.dtypes)} were made float32")
    if track is Track.IDENTIFICATION:
        remarks.append(
            "upstream's evaluation script puts this head on the down-sampling network; the paper says otherwise, and "
            "if scores look like chance, convert with --stem-stride 1"
        )
    if track is None and head is not None:
        remarks.append(f"its {head.name} was left aside")
    if track is not None:
        remarks.append("the projection heads of the first stage were left aside; --track none keeps them")
    return remarks


def _check_target(target: Path, checkpoint: str | os.PathLike[str], overwrite: bool) -> None:
    shown = one_line(str(target))
    try:
        source = Path(checkpoint).expanduser().resolve()
    except (OSError, RuntimeError) as error:
        raise ModelError(f"expected a .pt or .pth file, got: {one_line(str(error))}") from error
    if target == source or target in source.parents:
        raise ModelError(f"{shown} is the checkpoint or holds it; choose another folder for the model")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    try:
        is_model = json.loads((target / "config.json").read_bytes())["model_type"] == SelfConResNetConfig.model_type
    except (OSError, ValueError, LookupError, TypeError):
        is_model = False
    if not is_model:
        raise ModelError(f"{shown} is there and is not a model of this family; choose another name")
    if not overwrite:
        raise ModelError(f"{shown} already holds a model; choose another name, or pass --overwrite")


def _plain_names(part: str, shapes: Shapes) -> dict[str, str]:
    """The file's names by those without DataParallel's prefix; on several GPUs upstream wraps the encoder in it."""
    names = {key.removeprefix("module.").replace("encoder.module.", "encoder.", 1): key for key in shapes}
    if len(names) != len(shapes):
        raise ModelError(f"expected each tensor of `{part}` once, got some with and without the prefix 'module.'")
    return names


def _check_network(expected: Shapes, got: Shapes) -> None:
    """The weights are those of upstream's network, no more and no less."""
    missing = [key for key in expected if key not in got]
    unknown = [one_line(key) for key in got if key not in expected]
    other = [
        f"{key} of shape {list(got[key])} instead of {list(shape)}"
        for key, shape in expected.items()
        if key in got and got[key] != shape
    ]
    faults = [
        f"{len(found):,} {what}, such as {found[0]}"
        for what, found in (("missing", missing), ("unknown", unknown), ("of other shapes", other))
        if found
    ]
    if faults:
        raise ModelError(
            f"expected in `model` the {len(expected)} tensors of upstream's ResNet-50 with an exit after its second "
            f"stage and projection heads, got {len(got):,}: {'; '.join(faults)}. Other networks cannot be converted"
        )


def _sound(name: str, tensor: Tensor) -> Tensor:
    """A tensor as our models keep it, if its numbers can be a trained network's."""
    if name.endswith("num_batches_tracked"):
        if tensor.is_floating_point() or tensor.dtype == torch.bool or tensor.item() < 0:
            raise ModelError(f"expected {name} to be a whole number >= 0, got {tensor.item()} ({tensor.dtype})")
        return tensor.to(torch.int64)
    if not tensor.is_floating_point():
        raise ModelError(f"expected {name} to hold floating-point numbers, got {tensor.dtype}")
    tensor = tensor.to(torch.float32)
    wrong = int((~tensor.isfinite()).sum())
    if wrong:
        raise ModelError(
            f"expected finite weights, got {wrong:,} NaN or infinite of {tensor.numel():,} numbers in {name}: "
            "training diverged, or the file is damaged; take another checkpoint"
        )
    if name.endswith("running_var") and (tensor < 0).any():
        raise ModelError(f"expected variances >= 0 in {name}, got {tensor.min().item():.3g}: the file is damaged")
    return tensor


@torch.inference_mode()
def _check_answers(model: SelfConResNetPreTrainedModel) -> None:
    """A white and a black picture have to have an answer: single numbers may be finite and their products not."""
    outputs = model(pixel_values=torch.tensor([1.0, -1.0]).view(2, 1, 1, 1).expand(2, 3, 32, 32))
    answer = outputs["logits"] if "logits" in outputs else outputs["projections"]
    if not answer.isfinite().all():
        raise ModelError("expected weights that give finite answers, got NaN or infinity: the file is damaged")
