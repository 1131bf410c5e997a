"""What a training step sees of an image: ImagiNet's augmentations and the order in which rows are visited.

The recipes are those of Boychev & Cholakov (2025, arXiv:2407.20020, training details) as their code runs them: where
paper and code disagree, the code's probabilities are taken and the difference is named. Nothing is ever resized
before it is cropped in stage 1, since resampling wipes out the traces that a generator leaves at pixel scale.

Every random choice is a pure function of (seed, epoch, row, repeat). The sampler hands this key to the data set
instead of a bare index, so that the batches do not depend on the number of workers, on prefetching or on whether the
workers outlive an epoch, and a resumed run sees what the interrupted one would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from imaginet_hub.data.images import from_row
from imaginet_hub.errors import UsageError
from imaginet_hub.perturbations import gaussian_blur, gaussian_noise, jpeg, random_crop, reflect_pad, webp

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

_TURNS = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}
_FLIPS = {
    "horizontal": Image.Transpose.FLIP_LEFT_RIGHT,
    "vertical": Image.Transpose.FLIP_TOP_BOTTOM,
    "both": Image.Transpose.ROTATE_180,
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
        """The operations for one image, parameters drawn. Positions and noise are drawn while they are carried out."""
        operations = list(self._pixels(rng))
        if rng.random() < self.rotate:
            operations.append(Operation("rotate", int(rng.integers(4))))
        if rng.random() < self.flip:
            operations.append(Operation("flip", tuple(_FLIPS)[rng.integers(3)]))
        return tuple(operations)

    def _pixels(self, rng: np.random.Generator) -> Iterator[Operation]:
        raise NotImplementedError

    def image(self, image: Image.Image, key: RowKey) -> Image.Image:
        """The augmented picture before normalisation.

        Args:
            image: of any mode and size; converted to RGB.
            key: fixes the random numbers.

        Returns:
            RGB, crop_size x crop_size.
        """
        rng = np.random.default_rng((self.seed, *key))
        image = image.convert("RGB")
        for name, parameter in self.plan(rng):
            match name:
                case "crop":
                    image = random_crop(reflect_pad(image, parameter), parameter, rng)
                case "resized_crop":
                    image = _resized_crop(reflect_pad(image, parameter), parameter, rng)
                case "jpeg":
                    image = jpeg(image, parameter)
                case "webp":
                    image = webp(image, parameter)
                case "blur":
                    image = gaussian_blur(image, parameter)
                case "noise":
                    image = gaussian_noise(image, parameter, rng)
                case "rotate":
                    image = image.transpose(_TURNS[parameter]) if parameter else image
                case "flip":
                    image = image.transpose(_FLIPS[parameter])
        return image

    def __call__(self, image: Image.Image, key: RowKey) -> Tensor:
        """The model's input for one image.

        Returns:
            float32 (3, crop_size, crop_size), normalised with ImageNet's mean and standard deviation.
        """
        pixels = torch.from_numpy(np.array(self.image(image, key))).permute(2, 0, 1)
        return ((pixels - _MEAN) / _STD).contiguous()


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


def _resized_crop(image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """A box of 8..100 % of the area and aspect 3/4..4/3 (log-uniform), sampled to size x size."""
    area = image.width * image.height
    for _ in range(10):
        target = area * rng.uniform(0.08, 1.0)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        width, height = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < width <= image.width and 0 < height <= image.height:
            left = int(rng.integers(image.width - width, endpoint=True))
            top = int(rng.integers(image.height - height, endpoint=True))
            break
    else:  # a very long image: the largest box of an allowed aspect, in the middle
        width = min(image.width, round(image.height * 4 / 3))
        height = min(image.height, round(image.width * 4 / 3))
        left, top = (image.width - width) // 2, (image.height - height) // 2
    box = (left, top, left + width, top + height)
    # Four-point sampling, which aliases when it shrinks, as OpenCV's default does; Image.resize would low-pass first.
    return image.transform((size, size), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)


class AugmentedRows(Dataset[dict[str, Any]]):
    """Rows of a `datasets.Dataset` as augmented tensors.

    Args:
        rows: with an image column. Only the columns that are named below are read.
        augmentation: turns (image, key) into `pixel_values`.
        columns: output name -> column of `rows`, for the labels that go along, e.g. {"labels": "label"}.
        image_column: name of the image column.

    Raises:
        UsageError: a streaming data set, no rows, or a column that is not there.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        augmentation: TrainAugmentation | HeadAugmentation,
        columns: Mapping[str, str],
        image_column: str = "image",
    ) -> None:
        check_rows(rows, [image_column, *columns.values()])
        rows = rows.select_columns([image_column, *dict.fromkeys(columns.values())])
        self.rows = rows.cast_column(image_column, datasets.Image(decode=False)).with_format(None)
        self.augmentation = augmentation
        self.columns = dict(columns)
        self.image_column = image_column
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
        return {"pixel_values": self.augmentation(from_row(row[self.image_column]), key), **labels}


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
