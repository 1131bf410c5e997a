"""How fast a model's network is, beside a network that everybody knows, in the same run on the same machine."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imaginet_hub.errors import UsageError, require

if TYPE_CHECKING:
    from imaginet_hub.inference.detector import Detector

__all__ = ["alternate", "measure_speed", "median_interval"]

#: The field's yardstick: ResNet-50 as timm has it, at its usual 224 x 224.
YARDSTICK, YARDSTICK_SIDE = "resnet50", 224

#: Fewer turns have no interval of 95 %: all of six lie on one side of the median once in 32 times.
_LEAST_TURNS = 6
_MOST_TURNS = 40


def measure_speed(detector: Detector, *, batch_size: int = 8, seconds: float = 15.0) -> dict[str, Any]:
    """Images a second of a model's network and of the yardstick's, one turn after the other.

    Both see random numbers in batches of one size on the device, in the arithmetic and with the threads of the
    detector, whose answers to close calls are not repeated. A large network gets smaller batches, so that there are
    turns enough; with batches of one image, the slowest may take longer than asked.

    Args:
        detector: what to measure, as it is used.
        batch_size: images a call, at most.
        seconds: what all turns may take together, about.

    Returns:
        The `speed` of a results file: images a second (medians over turns), and their ratio by turn, above 1 where the
        model is faster than the yardstick; its interval is that of the median.

    Raises:
        UsageError: a `batch_size` below 1 or `seconds` that are not positive.
        MissingExtraError: timm or torch is not installed.
    """
    require("train", "torch", "timm")
    import timm
    import torch

    if batch_size < 1 or not seconds > 0:
        raise UsageError(f"expected a batch_size of 1 or more and seconds above 0, got {batch_size} and {seconds}")
    device = detector.model.device
    dtype = None if detector.dtype == "float32" else getattr(torch, detector.dtype)
    network: Any = timm.create_model(YARDSTICK, pretrained=False)
    network.eval().to(device=device, memory_format=torch.channels_last)
    side = int(detector.processor.crop_size["height"])
    generator = torch.Generator().manual_seed(0)

    def images(count: int, of: int) -> torch.Tensor:
        pixels = torch.randn(count, 3, of, of, generator=generator)
        return pixels.to(device).contiguous(memory_format=torch.channels_last)

    def ours(pixels: torch.Tensor) -> None:
        detector.logits(pixels, second_look=False)
        _wait(device)

    def theirs(pixels: torch.Tensor) -> None:
        with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
            network(pixels)
        _wait(device)

    one = (images(1, side), images(1, YARDSTICK_SIDE))

    def both() -> None:
        ours(one[0])
        theirs(one[1])

    both()  # what a first call prepares
    alone = min(_timed(both), _timed(both))
    while batch_size > 1 and alone * batch_size * (_LEAST_TURNS + 1) > seconds:
        batch_size = (batch_size + 1) // 2
    batches = (images(batch_size, side), images(batch_size, YARDSTICK_SIDE))
    turns = alternate(lambda: ours(batches[0]), lambda: theirs(batches[1]), seconds=seconds)
    rates = [[batch_size / taken for taken in column] for column in zip(*turns, strict=True)]
    ratio = median_interval([second / first for first, second in turns])
    return {
        "images_per_second": median_interval(rates[0])["value"],
        "crop_size": side,
        "yardstick": {
            "name": f"{YARDSTICK} of timm",
            "images_per_second": median_interval(rates[1])["value"],
            "crop_size": YARDSTICK_SIDE,
        },
        "ratio": ratio,
        "turns": len(turns),
        "batch_size": batch_size,
        "device": _device_name(device),
        "dtype": detector.dtype,
        "compiled": detector.compiled,
        "threads": torch.get_num_threads(),
        "torch": metadata.version("torch"),
    }


def alternate(
    first: Callable[[], None],
    second: Callable[[], None],
    *,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[tuple[float, float]]:
    """Seconds a call of two functions in turns, so that a machine that slows down slows both.

    Args:
        first, second: what to time. The quicker one is called several times a turn, so that both turns are as long.
        seconds: after which no turn is begun, but that there are at least six.
        clock: seconds that pass.

    Returns:
        (seconds a call of the first, of the second) for each turn, at most 40. Who begins changes from turn to turn.
    """
    both = (first, second)
    for call in both:  # what a first call of this shape prepares
        call()
    once = [max(_timed(call, clock=clock), 1e-9) for call in both]
    turn = max(*once, seconds / (2 * _MOST_TURNS))
    repeats = [max(1, round(turn / taken)) for taken in once]
    found: list[tuple[float, float]] = []
    started = clock()
    while len(found) < _LEAST_TURNS or (len(found) < _MOST_TURNS and clock() - started < seconds):
        taken = [0.0, 0.0]
        for which in (0, 1) if len(found) % 2 == 0 else (1, 0):
            taken[which] = _timed(both[which], repeats[which], clock) / repeats[which]
        found.append((taken[0], taken[1]))
    return found


def median_interval(values: Sequence[float], confidence: float = 0.95) -> dict[str, float | None]:
    """The median, and the interval between two of the sorted values that holds the true one with this confidence.

    It assumes nothing of the distribution: how many of n values lie below the median is binomial (Conover, Practical
    Nonparametric Statistics, section 3.2). Without values enough its ends are None.
    """
    ordered, n = sorted(values), len(values)
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    outside, cut = 0.0, 0
    while cut < n // 2 and 2 * (outside + math.comb(n, cut) / 2**n) <= 1 - confidence:
        outside += math.comb(n, cut) / 2**n
        cut += 1
    ends = (ordered[cut - 1], ordered[n - cut]) if cut else (None, None)
    return {"value": middle, "low": ends[0], "high": ends[1]}


def _timed(call: Callable[[], None], repeats: int = 1, clock: Callable[[], float] = time.perf_counter) -> float:
    started = clock()
    for _ in range(repeats):
        call()
    return clock() - started


def _wait(device: Any) -> None:
    """GPUs answer before they are done."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def _device_name(device: Any) -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine() or device.type
