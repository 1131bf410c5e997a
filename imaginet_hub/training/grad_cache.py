"""The loss of more images than one forward pass holds: of mini-batches (gradient caching) and of several processes.

A contrastive loss compares every image of a batch with every other, so that it is no sum over mini-batches. Gradient
caching (Gao et al. 2021, arXiv 2101.06983, section 3) gets its exact gradient all the same. All mini-batches are
encoded without a graph; the loss L of all their projections z gives dL/dz; then each mini-batch is encoded again, with
a graph, and (dL/dz) . z is differentiated in place of L. Memory holds the graph of one mini-batch, at the price of a
second forward pass.

What is promised: loss and gradients are those of the whole batch, but for rounding, wherever an image's projections
depend on that image alone. BatchNorm in training mode breaks this, since it normalises by the statistics of what it
sees; loss and gradients are then those of a batch whose BatchNorm layers see a mini-batch at a time, and running
statistics move once for each mini-batch, in order. So does dropout: layers that draw from torch's generators, of the
CPU and of the current accelerator, draw for each mini-batch, the same in both passes, and the generators end where one
pass leaves them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from imaginet_hub.selfcon.modeling_selfcon import untracked

__all__ = ["all_gather", "cached_backward"]


def cached_backward(
    encode: Callable[[Any], Tensor],
    mini_batches: Sequence[Any],
    loss_function: Callable[[Tensor], Tensor],
    *,
    model: nn.Module | None = None,
    backward: Callable[[Tensor], Any] = Tensor.backward,
    unsynced: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """Adds the gradient of a loss over all mini-batches to the parameters, one mini-batch in memory at a time.

    Args:
        encode: mini-batch -> projections (images, ...), the same function of its argument each time.
        mini_batches: what `encode` takes, at least one; on the device that `encode` works on.
        loss_function: projections of all mini-batches, concatenated -> loss, a scalar.
        model: whose BatchNorm statistics are not to move a second time.
        backward: differentiates the stand-in of a mini-batch, e.g. `accelerator.backward`.
        unsynced: a context for the second pass of all mini-batches but the last, e.g.
            `DistributedDataParallel.no_sync`.

    Returns:
        The loss, detached.
    """
    states: list[_RandomState] = []
    encoded: list[Tensor] = []
    with torch.no_grad():
        for mini_batch in mini_batches:
            states.append(_RandomState())
            encoded.append(encode(mini_batch))
    afterwards = _RandomState()
    projections = torch.cat(encoded).requires_grad_()
    with torch.enable_grad():
        loss = loss_function(projections)
        (gradient,) = torch.autograd.grad(loss, projections)
    gradients = gradient.split([len(part) for part in encoded])
    del encoded, projections
    for number, (mini_batch, state, part) in enumerate(zip(mini_batches, states, gradients, strict=True), start=1):
        state.restore()
        with nullcontext() if number == len(mini_batches) else unsynced():
            with nullcontext() if model is None else untracked(model):
                again = encode(mini_batch)
            backward((again * part).sum())
    afterwards.restore()
    return loss.detach()


class _RandomState:
    """The state of the random number generators that a forward pass may draw from."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        self.accelerator = _accelerator_in_use()
        self.there = None if self.accelerator is None else self.accelerator.get_rng_state()

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.accelerator is not None:
            self.accelerator.set_rng_state(self.there)


def _accelerator_in_use() -> Any:
    """torch's module for the accelerator, e.g. `torch.cuda`; none where it would have to be woken up first."""
    module: Any = torch.get_device_module() if torch.accelerator.is_available() else None
    return module if getattr(module, "is_initialized", lambda: True)() else None


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        ctx.rows = len(tensor)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.narrow(0, dist.get_rank() * ctx.rows, ctx.rows)


def all_gather(tensor: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks, in every process; differentiable.

    Backward, each process gets the sum over processes of the gradients with respect to its own rows. Where all of them
    compute the same loss L of what was gathered, that is dL times the number of processes, which is what
    DistributedDataParallel's averaging turns into the gradient of L.

    Args:
        tensor: (rows, ...), of the same shape in every process.

    Returns:
        (processes x rows, ...); the tensor itself where there is one process.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return tensor
    gathered: Tensor = _AllGather.apply(tensor)
    return gathered
