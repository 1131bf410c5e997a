"""The contrastive objectives of the first stage: functions, and modules around them that know their citation.

For unit vectors z_i (every view of every image), a temperature t, the set P(i) of the other vectors that share i's
label and the set A(i) of all other vectors:

    loss = mean over i with P(i) not empty of
           log sum_{a in A(i)} exp(z_i . z_a / t)  -  mean_{p in P(i)} z_i . z_p / t

This is the supervised contrastive loss (Khosla et al. 2020, arXiv 2004.11362, equation 2) without its factor of
temperature / base temperature. What makes it *self*-contrastive (SelfCon; Bae et al. 2023, arXiv 2106.15499,
section 3) is where the views come from: one image, seen by the backbone and by its exits. Two augmentations as the
views give SupCon; no labels give SimCLR's loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from imaginet_hub.errors import UsageError

__all__ = ["ImagiNetLoss", "SelfConLoss", "imaginet_loss", "selfcon_loss"]

TEMPERATURE = 0.07


def selfcon_loss(projections: Tensor, labels: Tensor | None = None, *, temperature: float = TEMPERATURE) -> Tensor:
    """Pulls views of one label together, pushes all others apart (equation in the module's docstring).

    Finite for whatever labels occur: a vector without a positive is left out as an anchor, and where none has one the
    loss is 0. Computed in float32 at least, also under autocast.

    Args:
        projections: (batch, views, dim), each vector of unit length, floating point.
        labels: (batch,) integers; without them every image is a class of its own.
        temperature: what similarities are divided by, > 0.

    Returns:
        The loss, a scalar >= 0 of float32 (float64 for float64 projections).

    Raises:
        UsageError: a shape, a type or the temperature cannot be used.

    Example:
        >>> views = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
        >>> round(selfcon_loss(views, torch.tensor([0, 1]), temperature=1.0).item(), 4)
        0.5514
    """
    _check(projections, temperature)
    batch = projections.shape[0]
    if labels is None:
        labels = torch.arange(batch, device=projections.device)
    _check_labels(labels, (batch,))
    return _weighted_terms(projections, labels[:, None], temperature, (1.0,), labels.new_ones((batch, 1)).bool())


def imaginet_loss(
    projections: Tensor,
    labels: Tensor,
    *,
    temperature: float = TEMPERATURE,
    weights: Sequence[float] = (1.0, 1.0),
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
        labels: (batch, columns) integers; column 0 is the origin, 0 for real and 1 for synthetic.
        temperature: what similarities are divided by, > 0.
        weights: one for each column, >= 0.
        row_masks: (batch, columns) booleans, which rows a column's term sees. By default all rows for column 0, the
            synthetic ones (those with a 1 in column 0) for the others.

    Returns:
        The loss, a scalar >= 0 of float32 (float64 for float64 projections).

    Raises:
        UsageError: a shape, a type, a weight or the temperature cannot be used.
    """
    _check(projections, temperature)
    shape = (projections.shape[0], len(weights))
    _check_labels(labels, shape)
    if not min(weights, default=-1.0) >= 0:
        raise UsageError(f"expected a weight >= 0 for each label column, got {tuple(weights)}")
    if row_masks is None:
        row_masks = (labels[:, :1] == 1).repeat(1, shape[1])
        row_masks[:, 0] = True
    elif row_masks.shape != shape or row_masks.dtype != torch.bool:
        raise UsageError(
            f"expected row_masks to be booleans of shape {shape}, got {row_masks.dtype} of {tuple(row_masks.shape)}"
        )
    return _weighted_terms(projections, labels, temperature, weights, row_masks)


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
        loss = logits.new_zeros(())
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
    if projections.ndim != 3 or not projections.is_floating_point():
        raise UsageError(
            "expected floating-point projections of shape (batch, views, dim), "
            f"got {projections.dtype} of {tuple(projections.shape)}"
        )
    if not temperature > 0:
        raise UsageError(f"expected a temperature > 0, got {temperature}")


def _check_labels(labels: Tensor, shape: tuple[int, ...]) -> None:
    if labels.shape != shape or labels.is_floating_point():
        raise UsageError(
            f"expected integer labels of shape {shape}, one row for each image and one column for each weight, "
            f"got {labels.dtype} of {tuple(labels.shape)}"
        )


class SelfConLoss(nn.Module):
    """`selfcon_loss` as a module.

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
        self.temperature = temperature

    def forward(self, projections: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss of projections (batch, views, dim) under labels (batch,); see `selfcon_loss`."""
        return selfcon_loss(projections, labels, temperature=self.temperature)

    def get_config_dict(self) -> dict[str, Any]:
        """The arguments that make this loss again, as JSON."""
        return {"temperature": self.temperature}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.get_config_dict().items())


class ImagiNetLoss(SelfConLoss):
    """`imaginet_loss` as a module.

    Args:
        temperature: what similarities are divided by, > 0.
        weights: one for each label column, >= 0.
    """

    citation = """@misc{boychev2024imaginet,
    title = {ImagiNet: A Multi-Content Benchmark for Synthetic Image Detection},
    author = {Boychev, Delyan and Cholakov, Radostin},
    year = {2024},
    eprint = {2407.20020},
    archivePrefix = {arXiv},
    url = {https://arxiv.org/abs/2407.20020},
}"""

    def __init__(self, temperature: float = TEMPERATURE, weights: Sequence[float] = (1.0, 1.0)) -> None:
        super().__init__(temperature)
        self.weights = tuple(weights)

    def forward(self, projections: Tensor, labels: Tensor, row_masks: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The loss of projections (batch, views, dim) under labels (batch, columns); see `imaginet_loss`."""
        return imaginet_loss(
            projections, labels, temperature=self.temperature, weights=self.weights, row_masks=row_masks
        )

    def get_config_dict(self) -> dict[str, Any]:
        """The arguments that make this loss again, as JSON."""
        return {"temperature": self.temperature, "weights": list(self.weights)}
