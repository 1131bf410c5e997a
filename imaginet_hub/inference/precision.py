"""Which arithmetic a model runs in: what is hardware here, what may be asked for, and which answers are too close."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from imaginet_hub.errors import UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["CLOSE_CALL", "DTYPES", "automatic", "chosen", "close_calls", "out_of_memory"]

#: What may be asked for; "auto" is `automatic`'s choice.
DTYPES = ("auto", "float32", "bfloat16", "float16")

#: CPU instructions that multiply bfloat16 matrices, as `torch.cpu.get_capabilities` names them.
_CPU_BFLOAT16 = ("amx_bf16", "avx512_bf16")

#: Difference of the two largest logits below which an answer of reduced precision is given again in float32; for two
#: classes, a likelier one below 0.73. Twice the largest change of that difference from float32 to bfloat16 that was
#: seen, 0.47, rounded up: 0.24 and 0.09 with the demo's detector and identifier on mini's test split (480 and 240
#: images), 0.47 with twelve heads, two types of three weight decays, fitted to the features of a resnet50 with stem
#: stride 1 and random weights (60 images each). No decision changed at a difference above 0.05. What it does not
#: promise: a model whose logits are much larger changes them by more; `benchmarks/model.py --decisions` measures it.
CLOSE_CALL = 1.0


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


def close_calls(logits: torch.Tensor, margin: float = CLOSE_CALL) -> torch.Tensor:
    """Which rows another rounding might have answered otherwise.

    Args:
        logits: (B, classes), of reduced precision.
        margin: between the two largest logits, below which a row is a close call.

    Returns:
        (B,) bool. Logits that overflowed are close calls too.
    """
    import torch

    top = logits.float().topk(min(2, logits.shape[1]), dim=1).values
    distance = top[:, 0] - top[:, -1]
    return ~(torch.isfinite(distance) & (distance >= margin))


def out_of_memory(error: RuntimeError) -> bool:
    """Whether torch failed for want of memory; only accelerators have a class of their own for it."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("can't allocate memory", "not enough memory", "out of memory")
    )
