"""What a training step sees of an image: ImagiNet's augmentations and the order in which rows are visited.

The recipes are those of Boychev & Cholakov (2025, arXiv:2407.20020, training details) as their code runs them: where
paper and code disagree, the code's probabilities are taken and the difference is named. Nothing is ever resized
before it is cropped in stage 1, since resampling wipes out the traces that a generator leaves at pixel scale.

Every random choice is a pure function of (seed, epoch, row, repeat, crop). The sampler hands this key to the data set
instead of a bare index, so that the batches do not depend on the number of workers, on prefetching or on whether the
workers outlive an epoch, and a resumed run sees what the interrupted one would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as vision

from imaginet_hub.data.images import upper_rows
from imaginet_hub.errors import UsageError
from imaginet_hub.perturbations import gaussian_blur, gaussian_noise, jpeg, reflect_pad, webp

__all__ = [
    "AugmentedRows",
    "HeadAugmentation",
    "Operation",
    "RowKey",
    "RowSampler",
    "TrainAugmentation",
    "balanced_shares",
]

#: ImageNet statistics on the 0..1 scale, the normalisation of upstream and of the published image processor.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)

_MEAN = torch.tensor(IMAGE_MEAN).view(3, 1, 1) * 255
_STD = torch.tensor(IMAGE_STD).view(3, 1, 1) * 255

_FLIPS = {
    "horizontal": (vision.horizontal_flip,),
    "vertical": (vision.vertical_flip,),
    "both": (vision.horizontal_flip, vision.vertical_flip),
}


class RowKey(NamedTuple):
    """Which image with which random numbers: the whole input of an augmentation besides its seed.

    Attributes:
        epoch: pass over the data, from 0.
        row: index into the data set.
        repeat: how often this row has come before in this epoch (balanced sampling draws rare rows again).
    """

    epoch: int
    row: int
    repeat: int = 0


class Operation(NamedTuple):
    """One step of an augmentation with its drawn parameter.

    Attributes:
        name: crop | resized_crop (parameter: side in pixels), jpeg | webp (quality), blur (kernel size),
            noise (variance in squared 8-bit levels), rotate (counter-clockwise quarter turns, 0..3),
            flip (horizontal | vertical | both).
        parameter: see `name`.
    """

    name: str
    parameter: Any


class Box(NamedTuple):
    """A part of a picture, in the order in which torchvision's `crop` takes it, pixels."""

    top: int
    left: int
    height: int
    width: int


class Drawn(NamedTuple):
    """All that chance decides about one crop, but for its noise.

    Attributes:
        plan: the operations.
        box: what the first of them cuts out of the picture, once that is padded to the crop's size.
        rows: of the picture that this takes, counted from the top.
        rng: where noise comes from.
    """

    plan: tuple[Operation, ...]
    box: Box
    rows: int
    rng: np.random.Generator


class _Augmentation:
    """Draw a plan, carry it out, normalise; subclasses say how a plan is drawn."""

    def __init__(self, crop_size: int, seed: int, *, perturb: float, rotate: float, flip: float) -> None:
        if crop_size < 1:
            raise UsageError(f"expected a crop_size of 1 pixel or more, got {crop_size}")
        for name, probability in {"perturb": perturb, "rotate": rotate, "flip": flip}.items():
            if not 0 <= probability <= 1:
                raise UsageError(f"expected the probability {name} to lie in 0..1, got {probability}")
        self.crop_size = crop_size
        self.seed = seed
        self.perturb = perturb
        self.rotate = rotate
        self.flip = flip

    def plan(self, rng: np.random.Generator) -> tuple[Operation, ...]:
        """The operations for one image, parameters drawn. The crop's place is drawn next, noise while it is added."""
        operations = list(self._pixels(rng))
        if rng.random() < self.rotate:
            operations.append(Operation("rotate", int(rng.integers(4))))
        if rng.random() < self.flip:
            operations.append(Operation("flip", tuple(_FLIPS)[rng.integers(3)]))
        return tuple(operations)

    def _pixels(self, rng: np.random.Generator) -> Iterator[Operation]:
        raise NotImplementedError

    def drawn(self, size: tuple[int, int], key: RowKey, crop: int = 0) -> Drawn:
        """What is to be done to a picture, which need not be decoded yet.

        Args:
            size: (width, height) of the picture in pixels.
            key: fixes the random numbers, together with `crop`.
            crop: number of the crop where one image gives several, from 0.
        """
        rng = np.random.default_rng((self.seed, *key, crop) if crop else (self.seed, *key))
        plan = self.plan(rng)
        width, height = (max(side, self.crop_size) for side in size)
        boxed = _box if plan[0].name == "crop" else _resized_box
        box = boxed(width, height, self.crop_size, rng)
        return Drawn(plan, box, min(box.top + box.height, size[1]), rng)

    def carried_out(self, image: Image.Image, drawn: Drawn) -> Image.Image:
        """The augmented picture before normalisation.

        Args:
            image: of any mode; converted to RGB. Rows below `drawn.rows` may be missing.
            drawn: for the size of the whole image. Good for one use, since noise is drawn on the way.

        Returns:
            RGB, crop_size x crop_size.
        """
        image = image if image.mode == "RGB" else image.convert("RGB")
        image = vision.crop(reflect_pad(image, self.crop_size), *drawn.box)
        for name, parameter in drawn.plan:
            match name:
                case "resized_crop":
                    image = _resized(image, parameter)
                case "jpeg":
                    image = jpeg(image, parameter)
                case "webp":
                    image = webp(image, parameter)
                case "blur":
                    image = gaussian_blur(image, parameter)
                case "noise":
                    image = gaussian_noise(image, parameter, drawn.rng)
                case "rotate":
                    image = vision.rotate(image, 90 * parameter)
                case "flip":
                    for flip in _FLIPS[parameter]:
                        image = flip(image)
        return image

    def image(self, image: Image.Image, key: RowKey, crop: int = 0) -> Image.Image:
        """The augmented picture before normalisation: RGB, crop_size x crop_size. Arguments as for `drawn`."""
        return self.carried_out(image, self.drawn(image.size, key, crop))

    def __call__(self, image: Image.Image, key: RowKey, crop: int = 0) -> Tensor:
        """The model's input for one image; see `normalised`. Arguments as for `drawn`."""
        return normalised(self.image(image, key, crop))


class TrainAugmentation(_Augmentation):
    """Stage 1, representation learning: crop, then perhaps one perturbation, a rotation, a flip. Never a resize.

    Reflection padding to `crop_size` where the image is smaller, a random crop; with probability `perturb` one of
    {compression: JPEG or WebP of quality 50..95, Gaussian blur of kernel 3, 5 or 7, Gaussian noise of variance 3..10},
    a third each; with probability `rotate` 0 to 3 quarter turns; with probability `flip` a horizontal, a vertical or
    both flips. The paper lists JPEG and WebP as two of four equal choices; its code, followed here, halves one third
    between them.

    Args:
        crop_size: side of the crop in pixels.
        seed: fixes all random numbers, together with the row's key.
        perturb, rotate, flip: probabilities.
    """

    def __init__(
        self, crop_size: int = 96, seed: int = 0, *, perturb: float = 0.5, rotate: float = 0.33, flip: float = 0.33
    ) -> None:
        super().__init__(crop_size, seed, perturb=perturb, rotate=rotate, flip=flip)

    def _pixels(self, rng: np.random.Generator) -> Iterator[Operation]:
        yield Operation("crop", self.crop_size)
        if rng.random() < self.perturb:
            yield _perturbation(rng)


class HeadAugmentation(_Augmentation):
    """Stage 2, the classifier on the frozen encoder: as stage 1, but some crops are resized as they are on the web.

    With probability `perturb` one of two branches: 3 in 13 a random resized crop (8 to 100 % of the area, aspect 3/4
    to 4/3, bilinear without anti-aliasing), half of them compressed; else a random crop, 70 % of them with one
    perturbation of `TrainAugmentation`. Otherwise a random crop alone. The paper states 30 % and 70 % for the
    branches; its code's weights .3 and 1 are normalised to 3/13 and 10/13.

    Args:
        crop_size: side of the result in pixels.
        seed: fixes all random numbers, together with the row's key.
        perturb, rotate, flip: probabilities.
    """

    def __init__(
        self, crop_size: int = 256, seed: int = 0, *, perturb: float = 0.5, rotate: float = 0.33, flip: float = 0.33
    ) -> None:
        super().__init__(crop_size, seed, perturb=perturb, rotate=rotate, flip=flip)

    def _pixels(self, rng: np.random.Generator) -> Iterator[Operation]:
        perturbed = rng.random() < self.perturb
        if perturbed and rng.random() < 3 / 13:
            yield Operation("resized_crop", self.crop_size)
            if rng.random() < 0.5:
                yield _compression(rng)
            return
        yield Operation("crop", self.crop_size)
        if perturbed and rng.random() < 0.7:
            yield _perturbation(rng)


def _perturbation(rng: np.random.Generator) -> Operation:
    match rng.integers(3):
        case 0:
            return _compression(rng)
        case 1:
            # Upstream's augmenter draws 3..7 and moves even sizes up: 1/5, 2/5, 2/5.
            return Operation("blur", (3, 5, 5, 7, 7)[rng.integers(5)])
        case _:
            return Operation("noise", rng.uniform(3.0, 10.0))


def _compression(rng: np.random.Generator) -> Operation:
    return Operation(("jpeg", "webp")[rng.integers(2)], int(rng.integers(50, 95, endpoint=True)))


def _box(width: int, height: int, side: int, rng: np.random.Generator) -> Box:
    """A square, every position being equally likely."""
    top = int(rng.integers(height - side, endpoint=True))
    return Box(top, int(rng.integers(width - side, endpoint=True)), side, side)


def _resized_box(width: int, height: int, side: int, rng: np.random.Generator) -> Box:
    """8..100 % of the area and an aspect of 3/4..4/3 (log-uniform)."""
    for _ in range(10):
        target = width * height * rng.uniform(0.08, 1.0)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        wide, high = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < wide <= width and 0 < high <= height:
            left = int(rng.integers(width - wide, endpoint=True))
            return Box(int(rng.integers(height - high, endpoint=True)), left, high, wide)
    # A very long image: the largest box of an allowed aspect, in the middle.
    wide, high = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return Box((height - high) // 2, (width - wide) // 2, high, wide)


def _resized(image: Image.Image, size: int) -> Image.Image:
    """Sampled to size x size at four points each, which aliases when it shrinks, as OpenCV's default does."""
    pixels = vision.pil_to_tensor(image).float()  # of bytes, the result would depend on the processor
    pixels = vision.resize(pixels, [size, size], InterpolationMode.BILINEAR, antialias=False)
    resized: Image.Image = vision.to_pil_image(pixels.round_().to(torch.uint8))
    return resized


def normalised(image: Image.Image) -> Tensor:
    """An RGB picture as float32 (3, height, width), normalised with ImageNet's mean and standard deviation."""
    pixels = vision.pil_to_tensor(image).contiguous()
    return torch.sub(pixels, _MEAN).div_(_STD)  # two passes where to_dtype and normalize take more


class AugmentedRows(Dataset[dict[str, Any]]):
    """Rows of a `datasets.Dataset` as augmented tensors.

    Args:
        rows: with an image column. Only the columns that are named below are read.
        augmentation: turns (image, key) into `pixel_values`.
        columns: output name -> column of `rows`, for the labels that go along, e.g. {"labels": "label"}.
        image_column: name of the image column.
        crops_per_image: how often each image is augmented, independently, once it is decoded. With 1, `pixel_values`
            is (3, H, W), with n > 1 (n, 3, H, W), whose first crop is the one that 1 gives.

    Raises:
        UsageError: a streaming data set, no rows, a column that is not there, or fewer than 1 crop.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        augmentation: TrainAugmentation | HeadAugmentation,
        columns: Mapping[str, str],
        image_column: str = "image",
        crops_per_image: int = 1,
    ) -> None:
        check_rows(rows, [image_column, *columns.values()])
        if crops_per_image < 1:
            raise UsageError(f"expected crops_per_image of 1 or more, got {crops_per_image}")
        rows = rows.select_columns([image_column, *dict.fromkeys(columns.values())])
        self.rows = rows.cast_column(image_column, datasets.Image(decode=False)).with_format(None)
        self.augmentation = augmentation
        self.columns = dict(columns)
        self.image_column = image_column
        self.crops_per_image = crops_per_image
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch of bare integer indices. Keys of a `RowSampler` carry their own, whatever is set here."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: RowKey | int) -> dict[str, Any]:
        key = RowKey(*key) if isinstance(key, tuple) else RowKey(self.epoch, int(key))
        row = self.rows[key.row]
        labels = {name: row[column] for name, column in self.columns.items()}

        @cache
        def drawn(width: int, height: int) -> list[Drawn]:
            numbers = range(self.crops_per_image)
            return [self.augmentation.drawn((width, height), key, number) for number in numbers]

        image, height = upper_rows(
            row[self.image_column], lambda width, height: max(crop.rows for crop in drawn(width, height))
        )
        crops = [normalised(self.augmentation.carried_out(image, crop)) for crop in drawn(image.width, height)]
        return {"pixel_values": torch.stack(crops) if len(crops) > 1 else crops[0], **labels}


class RowSampler(Sampler[RowKey]):
    """The keys of an epoch: every row once in random order, or a balanced stream of as many draws.

    With `shares` each group is dealt at regular intervals: any run of n draws holds n x share rows of a group, off by
    less than 1 + share x number of groups, so every batch is balanced whatever its size. Within a group all rows come
    up before any comes again, then with other random numbers; of a group that is larger than its share a random part
    is seen in each epoch.

    Args:
        groups: (rows,) the group of each row, any hashable numbers.
        shares: group -> share of the draws, summing to 1; by default no balancing.
        seed: the order is a pure function of (seed, epoch).
    """

    def __init__(self, groups: ArrayLike, shares: Mapping[int, float] | None = None, seed: int = 0) -> None:
        self.groups: NDArray[Any] = np.asarray(groups)
        if shares is not None:
            present = set(np.unique(self.groups).tolist())
            if set(shares) != present or not math.isclose(sum(shares.values()), 1) or min(shares.values()) <= 0:
                raise UsageError(
                    f"expected positive shares that sum to 1, one for each of the groups {sorted(present)}, "
                    f"got {dict(shares)}"
                )
        self.shares = None if shares is None else dict(shares)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose keys the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.groups)

    def __iter__(self) -> Iterator[RowKey]:
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.shares is None:
            rows, repeats = rng.permutation(len(self)), np.zeros(len(self), int)
        else:
            rows, repeats = self._dealt(rng)
        for row, repeat in zip(rows.tolist(), repeats.tolist(), strict=True):
            yield RowKey(self.epoch, row, repeat)

    def _dealt(self, rng: np.random.Generator) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
        moments, rows, repeats = [], [], []
        for group, share in (self.shares or {}).items():
            members = np.flatnonzero(self.groups == group)
            draws = math.ceil(len(self) * share) + 1
            rounds = math.ceil(draws / len(members))
            rows.append(np.concatenate([rng.permutation(members) for _ in range(rounds)])[:draws])
            repeats.append(np.arange(draws) // len(members))
            moments.append((np.arange(draws) + rng.random()) / share)
        order = np.argsort(np.concatenate(moments), kind="stable")[: len(self)]
        return np.concatenate(rows)[order], np.concatenate(repeats)[order]


def balanced_shares(labels: Sequence[int], families: Sequence[int]) -> tuple[NDArray[np.int_], dict[int, float]]:
    """Groups and shares in which each label has the same weight, and within a label each family.

    Args:
        labels: (rows,) class ids, e.g. real/synthetic.
        families: (rows,) ids that divide a label further, e.g. the generator family.

    Returns:
        (rows,) group of each row, and group -> share, as `RowSampler` takes them.
    """
    pairs = np.stack([np.asarray(labels), np.asarray(families)], axis=1)
    unique, groups = np.unique(pairs, axis=0, return_inverse=True)
    names, counts = np.unique(unique[:, 0], return_counts=True)
    families_of = dict(zip(names.tolist(), counts.tolist(), strict=True))
    shares = {group: 1 / len(names) / families_of[label] for group, label in enumerate(unique[:, 0].tolist())}
    return groups.reshape(-1), shares


def check_rows(rows: datasets.Dataset, columns: Sequence[str]) -> None:
    """Refuse what cannot be trained on, before anything expensive is done.

    Raises:
        UsageError: not a map-style data set, no rows, or a column that is not there.
    """
    if not isinstance(rows, datasets.Dataset):
        raise UsageError(
            f"expected a datasets.Dataset with random access to its rows, got {type(rows).__name__}: "
            "load one split, without streaming=True"
        )
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise UsageError(
            f"expected the columns {', '.join(columns)}, got {', '.join(rows.column_names)}: "
            f"{', '.join(missing)} missing; rename or add them"
        )
    if len(rows) == 0:
        raise UsageError("expected rows to train on, got none: choose another split or track")
