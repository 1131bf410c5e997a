"""Which arithmetic a model runs in: what is hardware here, what may be asked for, and which answers are too close."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from imaginet_hub.errors import UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["CLOSE_CALL", "DTYPES", "automatic", "chosen", "close_calls", "close_to", "out_of_memory", "rounding_noise"]

#: What may be asked for; "auto" is `automatic`'s choice.
DTYPES = ("auto", "float32", "bfloat16", "float16")

#: CPU instructions that multiply bfloat16 matrices, as `torch.cpu.get_capabilities` names them.
_CPU_BFLOAT16 = ("amx_bf16", "avx512_bf16")

#: An answer of reduced precision is a close call, and given again in float32, where its two largest logits differ by
#: less than this many times their `rounding_noise`. Rounding goes through the whole network, not once through its
#: features: the largest change of the difference that was seen in bfloat16 was 22 times the noise with the demo's
#: detector and 19 times with its identifier (mini's test split, 480 and 240 images), 2.7 times with a head fitted to
#: a resnet50 of stem stride 1 and random weights, whose features hardly differ (60 photographs); rounded up to the
#: next power of two. It is no proof for other models: `benchmarks/model.py --decisions` measures it.
CLOSE_CALL = 32.0
_DRAWS = 8


def automatic(device_type: str, capabilities: Mapping[str, Any]) -> str:
    """bfloat16 where it is hardware, float32 elsewhere.

    Args:
        device_type: "cpu", "cuda", ...
        capabilities: of a CPU, `torch.cpu.get_capabilities()`; of a CUDA device, {"bfloat16": whether it has it}.
    """
    asked = {"cpu": _CPU_BFLOAT16, "cuda": ("bfloat16",)}.get(device_type, ())
    return "bfloat16" if any(capabilities.get(name) for name in asked) else "float32"


def chosen(dtype: str, device: torch.device) -> str:
    """The arithmetic to use on a device: `dtype` itself, or the automatic choice.

    Raises:
        UsageError: no such dtype, or one that the device does not have.
    """
    import torch

    if dtype not in DTYPES:
        raise UsageError(f"dtype: expected {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, got {dtype!r}")
    if dtype == "auto":
        return automatic(device.type, _capabilities(device))
    if dtype == "float16" and device.type != "cuda":
        raise UsageError(f"dtype float16 needs a CUDA device, got {device}; use bfloat16, float32 or auto")
    if dtype == "bfloat16" and not (
        _capabilities(device)["bfloat16"] if device.type == "cuda" else torch.amp.is_autocast_available(device.type)
    ):
        raise UsageError(f"dtype bfloat16: {device} does not have it; use float32 or auto")
    return dtype


def _capabilities(device: torch.device) -> Mapping[str, Any]:
    import torch

    if device.type == "cuda":
        with torch.cuda.device(device):
            return {"bfloat16": torch.cuda.is_bf16_supported(including_emulation=False)}
    return torch.cpu.get_capabilities() if device.type == "cpu" else {}


def rounding_noise(
    head: Callable[[torch.Tensor], torch.Tensor],
    features: torch.Tensor,
    dtype: str,
    decides: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """How far a row's answer moves when its features are rounded: what a head makes of a type's resolution.

    A head that was trained on features which hardly differ from each other magnifies their rounding, and one with
    large logits too; so a difference of logits means nothing without it.

    Args:
        head: logits (B, classes) of features, or whatever `decides` takes.
        features: (B, C) float32.
        dtype: what they were computed in, "bfloat16" or "float16".
        decides: of what `head` gives, (B,), the number that the answer hangs on; by default the difference of the
            two logits that are the largest before anything is rounded.

    Returns:
        (B,) the root mean square change of that number, in float32, when each feature changes by half a unit in the
        type's last place, up or down at random; the draws are always the same.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (_DRAWS, features.shape[1]), generator=generator).to(features) * 2 - 1
    logits = head(features)
    if decides is None:
        places = logits.topk(2, dim=1).indices
        decides = lambda moved: _margin(moved, places)  # noqa: E731
    step = torch.finfo(getattr(torch, dtype)).eps / 2
    moved = [decides(head(features + features * step * sign)) for sign in signs]
    return (torch.stack(moved) - decides(logits)).square().mean(dim=0).sqrt()


def _margin(logits: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    first, second = logits.gather(1, places).unbind(dim=1)
    return first - second


def close_calls(logits: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Which rows another rounding might have given another class.

    Args:
        logits: (B, classes), of reduced precision, with at least two classes.
        noise: (B,) `rounding_noise`.

    Returns:
        (B,) bool. Logits or noise that overflowed are close calls too.
    """
    top = logits.topk(2, dim=1).values
    return close_to(0.0, top[:, 0] - top[:, 1], noise) | ~top.isfinite().all(dim=1)


def close_to(threshold: float, values: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Which values, (B,), another rounding might have put on the other side of a threshold; see `close_calls`."""
    return ~((values - threshold).abs() >= CLOSE_CALL * noise) | ~noise.isfinite()


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch failed for want of memory; only accelerators have a class of their own for it."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("can't allocate memory", "not enough memory", "out of memory")
    )
