"""The objectives of training: functions, and modules around them that know their citation.

For unit vectors z_i (every view of every image), a temperature t, the set P(i) of the other vectors that share i's
label and the set A(i) of all other vectors, the contrastive ones are made of one term:

    loss = mean over i with P(i) not empty of
           log sum_{a in A(i)} exp(z_i . z_a / t)  -  mean_{p in P(i)} z_i . z_p / t

This is the supervised contrastive loss (Khosla et al. 2020, arXiv 2004.11362, equation 2) without the factor of
temperature / base temperature that common code multiplies it by. What makes it *self*-contrastive (SelfCon; Bae et
al. 2023, arXiv 2106.15499, section 3) is where the views come from: one image, seen by the backbone and by its exits.

Vectors are taken to be of unit length and are not normalised here. All is computed in float32 at least, also under
autocast. An empty batch, or one without any positive, has the loss 0 and a gradient of 0; where a projection is not
finite, the loss is not either, whoever's label it bears.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imaginet_hub.errors import UsageError

__all__ = [
    "CrossEntropyLoss",
    "ImagiNetLoss",
    "SelfConLoss",
    "SupConLoss",
    "cross_entropy_loss",
    "imaginet_loss",
    "selfcon_loss",
    "supcon_loss",
]

TEMPERATURE = 0.07


def selfcon_loss(projections: Tensor, labels: Tensor | None = None, *, temperature: float = TEMPERATURE) -> Tensor:
    """Pulls views of one label together, pushes all others apart (equation in the module's docstring).

    Finite for whatever labels occur: a vector without a positive is left out as an anchor.

    Args:
        projections: (batch, views, dim), each vector of unit length, floating point.
        labels: (batch,) integers of any type, where the projections are; without them every image is a class of its
            own.
        temperature: what similarities are divided by, > 0.

    Returns:
        The loss, a scalar >= 0 of float32 (float64 for float64 projections).

    Raises:
        UsageError: a shape, a type, a device or the temperature cannot be used.

    Example:
        >>> views = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
        >>> round(selfcon_loss(views, torch.tensor([0, 1]), temperature=1.0).item(), 4)
        0.5514
    """
    _check(projections, temperature)
    batch = projections.shape[0]
    if labels is None:
        labels = torch.arange(batch, device=projections.device)
    labels = _integers(labels, (batch,), projections.device)[:, None]
    return _weighted_terms(projections, labels, temperature, (1.0,), torch.ones_like(labels, dtype=torch.bool))


def supcon_loss(projections: Tensor, labels: Tensor | None = None, *, temperature: float = TEMPERATURE) -> Tensor:
    """SupCon's objective: `selfcon_loss` of views that are augmentations of an image, seen by the backbone alone.

    The equation is one and the same (in the module's docstring); only where the views come from differs. Without
    labels it is SimCLR's loss (Chen et al. 2020, arXiv 2002.05709, equation 1). One view is enough where labels are
    given: an image that is alone in its class is then left out as an anchor.

    Args:
        projections: (batch, augmentations, dim), each vector of unit length, floating point.
        labels: see `selfcon_loss`, as the rest.
        temperature: what similarities are divided by, > 0.

    Returns:
        The loss, a scalar >= 0 of float32 (float64 for float64 projections).

    Raises:
        UsageError: a shape, a type, a device or the temperature cannot be used.
    """
    return selfcon_loss(projections, labels, temperature=temperature)


def imaginet_loss(
    projections: Tensor,
    labels: Tensor,
    *,
    temperature: float = TEMPERATURE,
    weights: Sequence[float] | None = None,
    row_masks: Tensor | None = None,
) -> Tensor:
    """ImagiNet's objective: tell real from synthetic and, among the synthetic, one generator family from another.

    The weighted sum of one `selfcon_loss` for each label column, each over the rows that its mask lets in (ImagiNet,
    arXiv 2407.20020, "Method"):

        loss = weights[0] * selfcon(all rows, origin) + weights[1] * selfcon(synthetic rows, generator family)

    Further columns, such as the generator itself, are further terms. A batch without synthetic rows has no second
    term: it counts 0.

    Args:
        projections: (batch, views, dim), each vector of unit length, floating point.
        labels: (batch, columns) integers of any type, where the projections are, at least one column; column 0 is the
            origin, 0 for real and 1 for synthetic.
        temperature: what similarities are divided by, > 0.
        weights: one for each column, >= 0; by default each counts 1.
        row_masks: (batch, columns) booleans, which rows a column's term sees. By default all rows for column 0, the
            synthetic ones (those with a 1 in column 0) for the others; column 0 is then checked on the CPU.

    Returns:
        The loss, a scalar >= 0 of float32 (float64 for float64 projections).

    Raises:
        UsageError: a shape, a type, a device, a weight or the temperature cannot be used.
    """
    _check(projections, temperature)
    if weights is None:
        weights = (1.0,) * (labels.shape[1] if isinstance(labels, Tensor) and labels.ndim == 2 else 1)
    _check_weights(weights)
    shape = (projections.shape[0], len(weights))
    labels = _integers(labels, shape, projections.device)
    if row_masks is None:
        if labels.device.type == "cpu" and ((labels[:, 0] < 0) | (labels[:, 0] > 1)).any():
            raise UsageError(
                "expected column 0 of labels to be the origin, 0 for real and 1 for synthetic, got "
                f"{labels[:, 0].min()}..{labels[:, 0].max()}; pass row_masks where columns mean something else"
            )
        row_masks = (labels[:, :1] == 1).repeat(1, shape[1])
        row_masks[:, 0] = True
    elif row_masks.shape != shape or row_masks.dtype != torch.bool or row_masks.device != labels.device:
        raise UsageError(
            f"expected row_masks to be booleans of shape {shape} on {labels.device}, "
            f"got {row_masks.dtype} of {tuple(row_masks.shape)} on {row_masks.device}"
        )
    return _weighted_terms(projections, labels, temperature, weights, row_masks)


def cross_entropy_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy of a classifier's logits; of one logit, binary cross-entropy.

    For logits z_i of image i with label y_i (ImagiNet, arXiv 2407.20020, "Method", trains its classifiers so):

        loss = mean over i of  log sum_c exp(z_ic)  -  z_i,y_i         with a logit for each class,
               mean over i of  log(1 + exp(z_i))    -  y_i z_i         with one logit, of class 1 against class 0

    The second is the first with the logits (0, z). Upstream's baseline trains an encoder and a two-layer head end to
    end on it: one logit for the origin; 4 for the generator family, on synthetic rows; or 5, with real as a family.

    Args:
        logits: (batch,) or (batch, 1): one logit; (batch, classes) with at least 2: one for each class.
        labels: (batch,) integers of any type, where the logits are, from 0 to below the number of classes.

    Returns:
        The loss, a scalar >= 0 of float32 (float64 for float64 logits); 0 of an empty batch. A label out of range is
        an error on the CPU; elsewhere, where looking would make the device wait, the loss is NaN.

    Raises:
        UsageError: a shape, a type, a device or, on the CPU, a label cannot be used.
    """
    if logits.ndim not in (1, 2) or 0 in logits.shape[1:] or not logits.is_floating_point():
        raise UsageError(
            "expected floating-point logits of shape (batch,) or (batch, classes), "
            f"got {logits.dtype} of {tuple(logits.shape)}"
        )
    labels = _integers(labels, (logits.shape[0],), logits.device)
    classes = max(2, logits.shape[1] if logits.ndim == 2 else 1)
    if labels.device.type == "cpu" and labels.numel() and not 0 <= labels.min() <= labels.max() < classes:
        raise UsageError(
            f"expected labels of 0..{classes - 1} for {classes} classes, got {labels.min()}..{labels.max()}; rows "
            "without a class, such as real ones among families, are to be left out"
        )
    return _cross_entropy(logits, labels, classes)


def _cross_entropy(logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Without looking at the labels: those out of range, which torch would ignore or crash on, make it NaN."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    valid = (labels >= 0) & (labels < classes)
    labels = torch.where(valid, labels, 0)
    if logits.ndim == 1 or logits.shape[1] == 1:
        logits = logits.reshape(-1)
        losses = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
    else:
        losses = F.cross_entropy(logits, labels, reduction="none")
    return torch.where(valid, losses, math.nan).sum() / max(1, len(losses))


def _weighted_terms(
    projections: Tensor, labels: Tensor, temperature: float, weights: Sequence[float], row_masks: Tensor
) -> Tensor:
    """The sum of the columns' terms; the similarities are worked out once for all of them."""
    batch, views, _ = projections.shape
    with torch.autocast(projections.device.type, enabled=False):
        vectors = projections.flatten(0, 1).to(torch.promote_types(projections.dtype, torch.float32))
        logits = vectors @ vectors.T / temperature
        # Masks instead of indexing: shapes stay fixed, so that a GPU need not wait and a compiler need not guess.
        others = ~torch.eye(batch * views, dtype=torch.bool, device=logits.device)
        labels, row_masks = labels.repeat_interleave(views, dim=0), row_masks.repeat_interleave(views, dim=0)
        loss = 0 * vectors.sum()  # finite or not as the vectors are, and with a gradient where there is no term
        for weight, column, rows in zip(weights, labels.T, row_masks.T, strict=True):
            candidates = others & rows[:, None] & rows[None, :]
            loss = loss + weight * _contrast(logits, candidates & (column[:, None] == column[None, :]), candidates)
        return loss


def _contrast(logits: Tensor, positives: Tensor, candidates: Tensor) -> Tensor:
    """The mean over anchors that have a positive; matrices are (anchors, others)."""
    # The lowest finite number where minus infinity is meant: a row without candidates would have NaN as its gradient.
    log_sums = logits.masked_fill(~candidates, torch.finfo(logits.dtype).min).logsumexp(dim=1)
    counts = positives.sum(dim=1)
    pulls = (logits * positives).sum(dim=1) / counts.clamp(min=1)
    anchors = counts > 0
    return torch.where(anchors, log_sums - pulls, 0.0).sum() / anchors.sum().clamp(min=1)


def _check(projections: Tensor, temperature: float) -> None:
    if projections.ndim != 3 or 0 in projections.shape[1:] or not projections.is_floating_point():
        raise UsageError(
            "expected floating-point projections of shape (batch, views, dim), "
            f"got {projections.dtype} of {tuple(projections.shape)}"
        )
    _check_temperature(temperature)


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise UsageError(f"expected a temperature > 0, got {temperature}")


def _check_weights(weights: Sequence[float]) -> None:
    if not weights or not all(0 <= weight < math.inf for weight in weights):
        raise UsageError(f"expected at least one label column, and a weight >= 0 for each, got {tuple(weights)}")


def _integers(labels: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Labels as int64, whatever integers they are; few types can do all that is done with them."""
    if not isinstance(labels, Tensor):
        raise UsageError(f"expected labels as a tensor of integers of shape {shape}, got a {type(labels).__name__}")
    if labels.shape != shape or labels.is_floating_point() or labels.is_complex():
        raise UsageError(
            f"expected integer labels of shape {shape}, a row for each image and, where there are several, a column "
            f"for each weight, got {labels.dtype} of {tuple(labels.shape)}"
        )
    if labels.device != device:
        raise UsageError(f"expected labels on {device}, as what they are of, got them on {labels.device}; move them")
    return labels.long()


class SelfConLoss(nn.Module):
    """`selfcon_loss` as a module: SelfCon's loss (Bae et al. 2023, arXiv 2106.15499, section 3).

    The views of an image are the projections of the backbone and of its exits:

        loss = mean over i with P(i) not empty of
               log sum_{a in A(i)} exp(z_i . z_a / t)  -  mean_{p in P(i)} z_i . z_p / t

    with the other vectors A(i), those of i's label among them P(i), and the temperature t.

    Args:
        temperature: what similarities are divided by, > 0.
    """

    citation = """@inproceedings{bae2023selfcon,
    title = {Self-Contrastive Learning: Single-Viewed Supervised Contrastive Framework Using Sub-network},
    author = {Bae, Sangmin and Kim, Sungnyun and Ko, Jongwoo and Lee, Gihun and Noh, Seungjong and Yun, Se-Young},
    booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
    year = {2023},
    url = {https://arxiv.org/abs/2106.15499},
}"""

    def __init__(self, temperature: float = TEMPERATURE) -> None:
        super().__init__()
        _check_temperature(temperature)
        self.temperature = temperature

    def forward(self, projections: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss of projections (batch, views, dim) under labels (batch,); see `selfcon_loss`."""
        return selfcon_loss(projections, labels, temperature=self.temperature)

    def get_config_dict(self) -> dict[str, Any]:
        """The arguments that make this loss again, as JSON."""
        return {"temperature": self.temperature}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.get_config_dict().items())


class SupConLoss(SelfConLoss):
    """`supcon_loss` as a module: the supervised contrastive loss (Khosla et al. 2020, arXiv 2004.11362,
    equation 2).

    The views of an image are the backbone's projections of its augmentations:

        loss = mean over i with P(i) not empty of
               -1 / |P(i)| sum_{p in P(i)} log( exp(z_i . z_p / t) / sum_{a in A(i)} exp(z_i . z_a / t) )

    with the other vectors A(i), those of i's label among them P(i), and the temperature t. The paper sums where this
    takes the mean.

    Args:
        temperature: what similarities are divided by, > 0.
    """

    citation = """@inproceedings{khosla2020supcon,
    title = {Supervised Contrastive Learning},
    author = {Khosla, Prannay and Teterwak, Piotr and Wang, Chen and Sarna, Aaron and Tian, Yonglong and
        Isola, Phillip and Maschinot, Aaron and Liu, Ce and Krishnan, Dilip},
    booktitle = {Advances in Neural Information Processing Systems},
    year = {2020},
    url = {https://arxiv.org/abs/2004.11362},
}"""


class ImagiNetLoss(SelfConLoss):
    """`imaginet_loss` as a module: the objective of ImagiNet's first stage (arXiv 2407.20020, "Method").

        loss = w_0 * selfcon(all rows, label column 0)  +  sum_{k > 0} w_k * selfcon(synthetic rows, label column k)

    with `SelfConLoss` as selfcon; the paper has the origin as column 0, the generator family as column 1, and equal
    weights.

    Args:
        temperature: what similarities are divided by, > 0.
        weights: one for each label column, >= 0; by default 1 for each column that the labels have.
    """

    citation = """@misc{boychev2024imaginet,
    title = {ImagiNet: A Multi-Content Benchmark for Synthetic Image Detection},
    author = {Boychev, Delyan and Cholakov, Radostin},
    year = {2024},
    eprint = {2407.20020},
    archivePrefix = {arXiv},
    url = {https://arxiv.org/abs/2407.20020},
}"""

    def __init__(self, temperature: float = TEMPERATURE, weights: Sequence[float] | None = None) -> None:
        super().__init__(temperature)
        if weights is not None:
            _check_weights(weights)
        self.weights = None if weights is None else tuple(weights)

    def forward(self, projections: Tensor, labels: Tensor, row_masks: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The loss of projections (batch, views, dim) under labels (batch, columns); see `imaginet_loss`."""
        return imaginet_loss(
            projections, labels, temperature=self.temperature, weights=self.weights, row_masks=row_masks
        )

    def get_config_dict(self) -> dict[str, Any]:
        """The arguments that make this loss again, as JSON."""
        return {"temperature": self.temperature, "weights": self.weights and list(self.weights)}


class CrossEntropyLoss(nn.Module):
    """`cross_entropy_loss` as a module: what ImagiNet's classifiers minimise (arXiv 2407.20020, "Method").

        loss = mean over i of  log sum_c exp(z_ic)  -  z_i,y_i

    with the logits z_i of image i and its label y_i; a single logit z counts as the logits (0, z).
    """

    citation = ImagiNetLoss.citation

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits (batch,) or (batch, classes) under labels (batch,); see `cross_entropy_loss`."""
        return cross_entropy_loss(logits, labels)

    def get_config_dict(self) -> dict[str, Any]:
        """The arguments that make this loss again, as JSON: none."""
        return {}
