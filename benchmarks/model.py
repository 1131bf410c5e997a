"""How fast a detector answers in each arithmetic, and whether it answers the same.

    python benchmarks/model.py [--backbone resnet50] [--stem-stride 1] [--size 256] [--batch 8] [--repeats 5]
    python benchmarks/model.py --decisions --model FOLDER [--dataset mini]

The first form measures the forward pass of a model with random weights on random pixels: upstream's way (eager,
float32, channels first) and ours. All modes are in one process, each is warmed up, and then they take turns, a batch
each, so that noise hits all of them; the table gives medians. What the first call of the compiled mode takes longer is
its start-up, from an empty cache of compiled code. It also measures the image processor on PIL images of 512 px, next
to a plain loop over them.

The second form compares the decisions of a trained model on a whole test split with those of upstream's way: how many
differ with and without the second look at close calls, and how many are looked at twice.
"""

from __future__ import annotations

import argparse
import copy
import functools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from imaginet_hub.inference.detector import Detector

#: A batch of pixels in, logits out; the flag says whether close calls get a second look.
Answer = Callable[["torch.Tensor", bool], "torch.Tensor"]


@dataclass(frozen=True)
class Mode:
    """One way of answering."""

    title: str
    dtype: str = "float32"
    compile: bool = False


UPSTREAM = "upstream"
MODES = {
    UPSTREAM: Mode("eager, float32, contiguous: upstream's way"),
    "channels_last": Mode("eager, float32, channels_last"),
    "bfloat16": Mode("eager, bfloat16 autocast, channels_last", "bfloat16"),
    "float16": Mode("eager, float16 autocast, channels_last", "float16"),
    "compile": Mode("compiled, bfloat16 autocast, channels_last", "bfloat16", compile=True),
    "compile-float32": Mode("compiled, float32, channels_last", compile=True),
}
_DEFAULT_MODES = (UPSTREAM, "channels_last", "bfloat16", "compile")


def answers(model: Any, processor: Any, names: Sequence[str], device: str | None) -> dict[str, Answer]:
    """Each mode as a function; they share one model's weights, upstream's way has a copy in its own layout."""
    import torch

    from imaginet_hub.inference.detector import Detector

    plain = copy.deepcopy(model)
    made: dict[str, Answer] = {}
    for name in names:
        mode = MODES[name]
        if name == UPSTREAM:
            where = device or ("cuda" if torch.cuda.is_available() else "cpu")
            plain = plain.eval().to(where, memory_format=torch.contiguous_format)  # a detector's is not
            made[name] = functools.partial(_upstream, plain)
        else:
            detector = Detector(model, processor, device=device, dtype=mode.dtype, compile=mode.compile)
            made[name] = functools.partial(_ours, detector)
    return made


def _upstream(model: Any, pixels: torch.Tensor, second_look: bool) -> torch.Tensor:
    import torch

    with torch.inference_mode():
        logits: torch.Tensor = model(pixel_values=pixels.to(model.device)).logits
    return logits


def _ours(detector: Detector, pixels: torch.Tensor, second_look: bool) -> torch.Tensor:
    return detector.logits(pixels, second_look=second_look)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes, on an accelerator until it is done there."""
    import torch

    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


# --- speed ----------------------------------------------------------------------------------------------------------


def speed(args: argparse.Namespace) -> None:
    """Print the table of the modes' forward passes."""
    import torch

    from imaginet_hub.selfcon import (
        SelfConImageProcessor,
        SelfConResNetConfig,
        SelfConResNetForImageClassification,
    )

    torch.manual_seed(0)
    config = SelfConResNetConfig(
        backbone=args.backbone, stem_stride=args.stem_stride, id2label={0: "real", 1: "synthetic"}, track="detection"
    )
    model = SelfConResNetForImageClassification(config)
    pixels = torch.randn(args.batch, 3, args.size, args.size)
    modes = answers(model, SelfConImageProcessor(crop_size=args.size), args.modes, args.device)
    first: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in modes}
    for name, answer in modes.items():
        first[name] = seconds(lambda answer=answer: answer(pixels, False))
        seconds(lambda answer=answer: answer(pixels, False))
    for _ in range(args.repeats):
        for name, answer in modes.items():
            times[name].append(seconds(lambda answer=answer: answer(pixels, False)))

    print(f"### Forward of {args.backbone}, stem stride {args.stem_stride}: {args.size} px, batches of {args.batch}\n")
    print(f"{machine()}; medians of {args.repeats} turns (least to most)\n")
    print("| | images/s | of upstream's way | start-up s | pays from images |")
    print("|---|---:|---:|---:|---:|")
    middle = {name: statistics.median(taken) for name, taken in times.items()}
    for name, taken in times.items():
        rate, low, high = (args.batch / t for t in (middle[name], max(taken), min(taken)))
        ratio = f"{middle[UPSTREAM] / middle[name]:.2f}" if UPSTREAM in middle else "-"
        start = first[name] - middle[name]
        rest = f"{start:.0f} | {_pays(name, start, middle, args.batch)}" if MODES[name].compile else "- | -"
        print(f"| {MODES[name].title} | {rate:.3g} ({low:.3g} to {high:.3g}) | {ratio} | {rest} |")
    print()


def _pays(name: str, start: float, middle: dict[str, float], batch: int) -> str:
    """From how many images on a compiled mode's start-up is made good, next to the same arithmetic without it."""
    eager = next(
        (n for n in middle if n != UPSTREAM and not MODES[n].compile and MODES[n].dtype == MODES[name].dtype), None
    )
    if eager is None:
        return "-"
    saved = (middle[eager] - middle[name]) / batch
    return f"{start / saved:,.0f}" if saved > 0 else "never"


def processor_speed(args: argparse.Namespace) -> None:
    """Print what preparing an image takes."""
    import numpy as np
    import torch
    from PIL import Image

    from imaginet_hub.selfcon import SelfConImageProcessor

    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (512, 512, 3), dtype=np.uint8)) for _ in range(args.batch)]
    processor = SelfConImageProcessor(crop_size=args.size)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    left = (512 - args.size) // 2

    def ours() -> torch.Tensor:
        pixels: torch.Tensor = processor(images=images, return_tensors="pt")["pixel_values"]
        return pixels

    def plain() -> torch.Tensor:
        prepared = []
        for image in images:
            crop = np.array(image.convert("RGB").crop((left, left, left + args.size, left + args.size)))
            prepared.append((torch.from_numpy(crop).permute(2, 0, 1).float() / 255 - mean) / deviation)
        return torch.stack(prepared)

    torch.testing.assert_close(ours(), plain(), rtol=1e-4, atol=1e-5)  # the same work
    times: dict[str, list[float]] = {"`SelfConImageProcessor`": [], "a plain loop: PIL, then torch": []}
    for _ in range(4 * args.repeats):
        for name, work in zip(times, (ours, plain), strict=True):
            times[name].append(1000 * seconds(work) / args.batch)
    print(f"### Image processor: PIL images of 512 px to {args.size} px, {args.batch} at a time\n")
    print("| | ms an image |")
    print("|---|---:|")
    for name, taken in times.items():
        print(f"| {name} | {statistics.median(taken):.2f} ({min(taken):.2f} to {max(taken):.2f}) |")
    print()


# --- decisions ------------------------------------------------------------------------------------------------------


def decisions(args: argparse.Namespace) -> None:
    """Print how many decisions on a test split differ from those of upstream's way."""
    import torch

    from imaginet_hub.data.images import from_row
    from imaginet_hub.data.loading import load_rows
    from imaginet_hub.inference.detector import Detector

    detector = Detector.from_pretrained(args.model, device=args.device)
    rows = load_rows(args.dataset, detector.track, "test")
    names = [UPSTREAM, *(name for name in args.modes if name != UPSTREAM)]
    modes = answers(detector.model, detector.processor, names, args.device)
    logits: dict[tuple[str, bool], list[torch.Tensor]] = {(name, look): [] for name in names for look in (False, True)}
    for start in range(0, len(rows), args.batch):
        images = [from_row(row["image"]) for row in rows.select(range(start, min(start + args.batch, len(rows))))]
        pixels = detector.processor(images=images, return_tensors="pt")["pixel_values"]
        for (name, look), found in logits.items():
            found.append(modes[name](pixels, look).cpu())
    joined = {key: torch.cat(found) for key, found in logits.items()}
    reference = joined[UPSTREAM, False]
    top = reference.topk(2).indices

    print(f"### Decisions of {detector.track} on {len(rows):,} test images of {args.dataset}\n")
    print(f"{machine()}\n")
    print("| | differ, one look | differ, close calls again | looked at twice | largest change of a margin |")
    print("|---|---:|---:|---:|---:|")
    for name in names[1:]:
        once, twice = joined[name, False], joined[name, True]
        differ = [int((found.argmax(1) != reference.argmax(1)).sum()) for found in (once, twice)]
        share = (once != twice).any(dim=1).float().mean().item() if MODES[name].dtype != "float32" else 0
        change = (once - reference).gather(1, top).diff(dim=1).abs().max().item()
        print(f"| {MODES[name].title} | {differ[0]} | {differ[1]} | {share:.1%} | {change:.2g} |")
    print()


# --- the command ----------------------------------------------------------------------------------------------------


def machine() -> str:
    """What it was measured on."""
    import torch

    from imaginet_hub.precision import chosen

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    name = torch.cuda.get_device_name() if cuda else torch.cpu.get_capabilities().get("cpu_name", platform.machine())
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, auto is {chosen('auto', device)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--stem-stride", type=int, choices=(1, 2), default=1)
    parser.add_argument("--size", type=int, default=256, help="side in pixels (default 256)")
    parser.add_argument("--batch", type=int, default=8, help="images a batch (default 8)")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each mode (default 5)")
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    parser.add_argument("--device", help="default: a GPU if there is one")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(_DEFAULT_MODES))
    parser.add_argument("--decisions", action="store_true", help="compare decisions instead of speed")
    parser.add_argument("--model", help="model folder of --decisions")
    parser.add_argument("--dataset", default="mini", help="of --decisions (default mini)")
    args = parser.parse_args()
    if args.decisions and not args.model:
        parser.error("--decisions needs --model FOLDER, as `imaginet demo` or `imaginet train-head` writes it")

    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # before torch is imported
        import torch

        if args.threads:
            torch.set_num_threads(args.threads)
        if args.decisions:
            decisions(args)
        else:
            processor_speed(args)
            speed(args)


if __name__ == "__main__":
    main()
