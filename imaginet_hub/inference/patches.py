"""Where in an image a detector finds its evidence: patch maps, and a check by deletion that they are faithful.

The network is fully convolutional: its features at each position are averaged, and a small head judges the mean. The
head of a mean is not the mean of heads, since it has a hidden layer. But for ReLU heads it is affine near any one
mean, and there the share of each position in the log-odds of two classes is exact (of one class among several to
first order: their log-odds are not affine in the logits). With the gradient g of the log-odds z at the mean feature f
of an image, position i has the value v_i = g . (f_i - f) + z. The mean of the values over the positions is z, whatever
the head. This is the class activation map of that affine piece (Zhou et al. 2016, arXiv 1512.04150, section 2), and
what Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391, section 3) gives for the last feature map without its last
ReLU. Of a head without a hidden layer and two classes the values are its own answers, position by position.

What the head would say of each position alone is another map: no law binds it to the answer, and the check by
deletion found it no better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFilter

from imaginet_hub.data.units import one_line
from imaginet_hub.errors import ModelError, UsageError
from imaginet_hub.evaluation.bootstrap import Bootstrap
from imaginet_hub.labels import Origin, Track

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from imaginet_hub.inference.detector import Detector

__all__ = ["BLUR", "FRACTIONS", "MAX_PIXELS", "DeletionCurves", "PatchMap", "deletion_curves", "patch_map"]

#: Pixels of an image that is looked at as a whole, by default. A ResNet-50 with stem stride 1 takes about 4 KB for
#: each: 4 GB for so many.
MAX_PIXELS = 2**20

#: Standard deviation in pixels of the blur that deletes: it leaves 1 % of what oscillates every 8 pixels.
BLUR = 4

#: Shares of the positions that `deletion_curves` deletes, by default.
FRACTIONS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)


@dataclass(frozen=True)
class PatchMap:
    """What each position of the network's last feature map adds to its answer.

    Attributes:
        values: (h, w) float64, log-odds (natural logarithm); their mean is `log_odds`, up to rounding.
        stride: pixels from one position to the next. Position (i, j) has its centre at pixel (stride i, stride j),
            and sees far beyond its neighbours: how far depends on the network.
        target: the class whose log-odds these are, against all others.
        log_odds: of the image.
        image: (H, W, 3) uint8, what the network saw.
    """

    values: NDArray[np.float64]
    stride: int
    target: str
    log_odds: float
    image: NDArray[np.uint8]

    @property
    def probability(self) -> float:
        """Of `target` for the image, in [0, 1]."""
        return 0.5 * (1 + math.tanh(self.log_odds / 2))

    @property
    def nearest(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """For each row (H, 1) and each column (1, W) of pixels the position that is nearest."""
        rows, columns = (
            np.minimum((np.arange(side) + self.stride // 2) // self.stride, count - 1)
            for side, count in zip(self.image.shape, self.values.shape, strict=False)
        )
        return rows[:, None], columns[None]

    @property
    def pixels(self) -> NDArray[np.float64]:
        """(H, W): every pixel with the value of the position that is nearest."""
        return self.values[self.nearest]


@dataclass(frozen=True)
class DeletionCurves:
    """Log-odds of images of which more and more is deleted, in several orders.

    Attributes:
        fractions: (steps,) deleted shares of the positions, ascending.
        scores: order -> (images, steps) log-odds of the maps' target. "highest first" is the map's order and "lowest
            first" its reverse; "random" is the mean of random orders; "moved" that of the map's own order moved
            across the image by random steps, around its borders: what is deleted first lies as close together then,
            which random orders change besides.
    """

    fractions: NDArray[np.float64]
    scores: dict[str, NDArray[np.float64]]

    def advantage(self, seed: int = 0) -> dict[str, dict[str, float]]:
        """How much faster the log-odds fall in the map's order than in each other one.

        Returns:
            order -> {"value", "low", "high"}: the area between the two curves, in log-odds, mean over the images with
            its 95 % bootstrap interval (over images; NaN for one). A map is faithful where the low ends are above 0.
        """
        bootstrap = Bootstrap(seed=seed)
        first = self.scores["highest first"]
        drawn = np.concatenate([bootstrap.counts(chunk, len(first), "") for chunk in bootstrap.chunks(len(first))])
        found = {}
        for order, scores in self.scores.items():
            if order != "highest first":
                areas = np.asarray(np.trapezoid(scores - first, self.fractions, axis=1))
                replicates = drawn @ areas / len(areas)
                found[order] = bootstrap.interval(areas.mean(), replicates, len(areas), proportion=False)
        return found


def patch_map(
    detector: Detector,
    image: Image.Image,
    *,
    target: str | None = None,
    whole: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> PatchMap:
    """Where in an image the evidence for a class is; computed in float32, whatever the detector's arithmetic.

    Args:
        detector: of either track.
        image: PIL image of any mode and size.
        target: the class; by default "synthetic", for other classes than real and synthetic the likeliest.
        whole: look at the whole image. By default at the crop that the detector answers for, so that `probability` is
            its answer.
        max_pixels: the most that a whole image may have, since memory grows with them (see `MAX_PIXELS`).

    Raises:
        UsageError: an unknown target; a whole image of more pixels, or of fewer than the network takes.
        ModelError: the model gives NaN.
    """
    import torch

    if target is not None:
        _place(detector, target)
    if whole and image.width * image.height > max_pixels:
        raise UsageError(
            f"patch_map: expected at most {max_pixels:,} pixels of a whole image, got {image.width} x {image.height}; "
            "crop it, leave out whole=True, or raise max_pixels where memory allows"
        )
    least = detector.model.encoder.least_side
    if whole and min(image.size) < least:
        raise UsageError(
            f"patch_map: expected sides of {least} pixels or more, got {image.width} x {image.height}; leave out "
            "whole=True, and it is continued by reflection"
        )
    options: Any = {"do_center_crop": False} if whole else {}
    plain: Any = detector.processor([image], do_rescale=False, do_normalize=False, return_tensors="pt", **options)
    seen = plain["pixel_values"][0].permute(1, 2, 0).numpy()
    features = _features(detector, seen[None])
    mean = features.mean(dim=(2, 3)).requires_grad_()
    with torch.enable_grad():
        logits = detector.model.classifier(mean)
        if target is None:
            likeliest = detector.names[int(logits[0].argmax())]
            target = str(Origin.SYNTHETIC) if detector.track is Track.DETECTION else likeliest
        log_odds = _log_odds(logits, _place(detector, target))
        (gradient,) = torch.autograd.grad(log_odds.sum(), mean)
    shares = torch.einsum("chw,c->hw", (features - mean.detach()[:, :, None, None])[0], gradient[0])
    values = shares.cpu().double().numpy() + log_odds.item()
    if not np.isfinite(values).all():
        raise ModelError(
            f"{one_line(detector.name or 'the model')}: expected log-odds, got NaN; the weights are damaged: save or "
            "download them again"
        )
    return PatchMap(values, _stride(detector), target, log_odds.item(), seen)


def deletion_curves(
    detector: Detector,
    maps: Sequence[PatchMap],
    *,
    fractions: Sequence[float] = FRACTIONS,
    orders: int = 3,
    seed: int = 0,
    batch_size: int = 32,
) -> DeletionCurves:
    """Delete positions of images one after the other, and ask the detector again (Petsiuk et al. 2018, RISE, arXiv
    1806.07421, section 4.1).

    The pixels nearest to a position become those of the image blurred by `BLUR`: what is shown stays, the traces at
    pixel scale go. (Flat squares would bring edges that the detector never saw, and of these a random order the most.)
    Where the map shows what the detector goes by, its order lets the log-odds fall faster than any other; how far they
    fall says less, since no filling is neutral, hence the other orders, which delete as much.

    Args:
        detector: that the maps are of.
        maps: one or more, each of two positions or more.
        fractions: shares of the positions, ascending, from 0 to 1.
        orders: random orders, and random moves, of each map; their mean is the control.
        seed: of these.
        batch_size: images at a time.

    Raises:
        UsageError: no maps, maps of one position or of a class that the detector does not know, or fractions, orders
            or a batch_size that cannot be used.
    """
    shares = np.asarray(fractions, dtype=np.float64)
    if not (
        shares.ndim == 1 and shares.size > 1 and shares[0] == 0 and shares[-1] == 1 and (np.diff(shares) > 0).all()
    ):
        raise UsageError(f"deletion_curves: expected fractions that ascend from 0 to 1, got {list(fractions)}")
    if orders < 1 or batch_size < 1:
        raise UsageError(f"deletion_curves: expected 1 or more, got orders={orders}, batch_size={batch_size}")
    if not maps or min(found.values.size for found in maps) < 2:
        raise UsageError("deletion_curves: expected one map or more, each of two positions or more")
    curves = [
        _deletion(detector, found, shares, orders, np.random.default_rng([seed, number]), batch_size)
        for number, found in enumerate(maps)
    ]
    return DeletionCurves(shares, {order: np.stack([curve[order] for curve in curves]) for order in curves[0]})


def _deletion(
    detector: Detector,
    found: PatchMap,
    fractions: NDArray[np.float64],
    orders: int,
    rng: np.random.Generator,
    batch_size: int,
) -> dict[str, NDArray[np.float64]]:
    """Order -> (steps,) log-odds of one image."""
    values = found.values
    moves = rng.integers(1, values.size, orders)  # 0 would be none
    ranked = {
        "highest first": [-values],
        "lowest first": [values],
        "random": [rng.random(values.shape) for _ in range(orders)],
        "moved": [-np.roll(values, divmod(int(move), values.shape[1]), (0, 1)) for move in moves],
    }
    filling = np.asarray(Image.fromarray(found.image).filter(ImageFilter.GaussianBlur(BLUR)))
    deleted = np.rint(fractions * values.size)[1:-1]  # the ends are the same in every order
    pictures = [found.image, filling]
    for keys in (key for several in ranked.values() for key in several):
        ranks = np.empty(values.size)
        ranks[np.argsort(keys, axis=None, kind="stable")] = np.arange(values.size)
        rank = ranks.reshape(values.shape)[found.nearest][..., None]
        pictures += [np.where(rank < count, filling, found.image) for count in deleted]
    place = _place(detector, found.target)
    batches = (np.stack(pictures[start : start + batch_size]) for start in range(0, len(pictures), batch_size))
    scores = np.concatenate([_scores(detector, batch, place) for batch in batches])
    inner = iter(scores[2:].reshape(-1, len(deleted)))
    return {
        order: np.concatenate([scores[:1], np.mean([next(inner) for _ in several], axis=0), scores[1:2]])
        for order, several in ranked.items()
    }


def _place(detector: Detector, target: str) -> int:
    if target not in detector.names:
        raise UsageError(f"expected one of the classes {', '.join(detector.names)}, got {target!r}")
    return detector.names.index(target)


def _stride(detector: Detector) -> int:
    encoder = detector.model.encoder
    reduction: int = encoder.backbone.feature_info[-1]["reduction"]
    return reduction // (1 if encoder.config.stem_stride == 2 else 4)


def _features(detector: Detector, pictures: NDArray[np.uint8]) -> torch.Tensor:
    """(B, C, h, w) float32 of pictures (B, H, W, 3), none of them cropped."""
    import torch

    inputs: Any = detector.processor(
        torch.from_numpy(pictures), input_data_format="channels_last", do_center_crop=False, return_tensors="pt"
    )
    pixels = inputs["pixel_values"].to(detector.model.device).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        features: torch.Tensor = detector.model.encoder(
            pixels, output_exit_features=False, return_dict=True
        ).last_hidden_state
    return features


def _scores(detector: Detector, pictures: NDArray[np.uint8], place: int) -> NDArray[np.float64]:
    import torch

    with torch.no_grad():
        logits = detector.model.classifier(_features(detector, pictures).mean(dim=(2, 3)))
    scores: NDArray[np.float64] = _log_odds(logits, place).cpu().double().numpy()
    return scores


def _log_odds(logits: torch.Tensor, place: int) -> torch.Tensor:
    """(B,) of the class at `place` against all others together, of logits (B, classes)."""
    import torch

    others = torch.cat([logits[:, :place], logits[:, place + 1 :]], dim=1)
    return logits[:, place] - others.logsumexp(dim=1)
