"""How fast stage 1 trains, what its memory holds, whether reduced precision learns the same, and what feeds it.

    python benchmarks/train.py [--only loader,crops,step,curve,memory] [--small] [--out FILE]
    python benchmarks/train.py --only loader,crops --albumentations-python PYTHON [--pictures FOLDER]
    python benchmarks/train.py --only step --batch 32 --crop 96 --repeats 5
    python benchmarks/train.py --only memory --memory-backbone resnet50 --batches 200 2000

Contenders take turns, so that noise hits all of them; the tables give medians (least to most).

loader   samples a second and core, next to upstream's albumentations, whose interpreter --albumentations-python names:
         a virtual environment with albumentations==1.3.1, opencv-python-headless<4.11, numpy<2 and pillow. Both are
         bound to core --core; times are of the processor.
crops    the same with 1, 2 and 4 crops of each decoded image.
step     forward pass, loss, backward pass and SGD step on random crops, in each arithmetic; on a GPU also the share of
         its bfloat16 peak, which a large matrix product in the same run measures.
curve    the loss of the same run, on images that can be learned, in float32 and in bfloat16 autocast.
memory   what a step takes at its most beyond the process that is about to take it, with and without gradient caching:
         each in a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import loader as loading
from model import machine, seconds

if TYPE_CHECKING:
    import torch

PARTS = ("loader", "crops", "step", "curve", "memory")


@dataclass(frozen=True)
class Mode:
    """One way of taking a step."""

    title: str
    bfloat16: bool = False
    channels_last: bool = False
    compile: bool = False


UPSTREAM = "upstream"
MODES = {
    UPSTREAM: Mode("eager, float32, contiguous: upstream's way"),
    "channels_last": Mode("eager, float32, channels_last", channels_last=True),
    "bfloat16": Mode("eager, bfloat16 autocast, contiguous", bfloat16=True),
    "both": Mode("eager, bfloat16 autocast, channels_last: ours", bfloat16=True, channels_last=True),
    "compile": Mode("compiled, bfloat16 autocast, channels_last", bfloat16=True, channels_last=True, compile=True),
}


def device() -> torch.device:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def new_model(backbone: str, stem_stride: int, seed: int = 0) -> Any:
    """A model of stage 1 with random weights, in training mode."""
    import torch

    from imaginet_hub.selfcon import SelfConResNetConfig, SelfConResNetForPreTraining

    torch.manual_seed(seed)
    config = SelfConResNetConfig(backbone=backbone, stem_stride=stem_stride)
    return SelfConResNetForPreTraining(config).to(device()).train()


def views(outputs: Any) -> torch.Tensor:
    """What the loss compares: (batch, views, dim), as the trainer stacks them."""
    import torch

    return torch.stack([outputs["projections"], *outputs["exit_projections"]], dim=1)


def labelled(batch: int) -> torch.Tensor:
    """(batch, 2) origin and generator family, half of the rows real."""
    import torch

    synthetic = torch.arange(batch) % 2
    return torch.stack([synthetic, torch.where(synthetic == 1, torch.arange(batch) // 2 % 3, 3)], dim=1).to(device())


def autocast(on: bool) -> AbstractContextManager[Any]:
    import torch

    return torch.autocast(device().type, torch.bfloat16) if on else nullcontext()


class Stepper:
    """A model that takes training steps in one mode."""

    def __init__(self, model: Any, mode: Mode, optimizer: Callable[[Any], torch.optim.Optimizer]) -> None:
        import torch

        from imaginet_hub.training.losses import ImagiNetLoss

        self.mode = mode
        self.layout = torch.channels_last if mode.channels_last else torch.contiguous_format
        self.model = copy.deepcopy(model).to(memory_format=self.layout)
        self.forward = torch.compile(self.model) if mode.compile else self.model
        self.optimizer = optimizer(self.model.parameters())
        self.loss = ImagiNetLoss()

    def __call__(self, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One step; gives its loss, detached."""
        with autocast(self.mode.bfloat16):
            projections = views(self.forward(pixel_values=pixels.contiguous(memory_format=self.layout)))
        loss = self.loss(projections.float(), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


# --- step -----------------------------------------------------------------------------------------------------------


def step(args: argparse.Namespace) -> dict[str, Any]:
    """Print training images/s of each mode; gives the seconds of each step."""
    import torch

    model = new_model(args.backbone, args.stem_stride)
    pixels = torch.randn(args.batch, 3, args.crop, args.crop, device=device())
    labels = labelled(args.batch)

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.005, momentum=0.9, weight_decay=1e-4)

    steppers = {name: Stepper(model, MODES[name], sgd) for name in args.modes}
    first: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in steppers}
    for name, stepper in steppers.items():
        first[name] = seconds(lambda stepper=stepper: stepper(pixels, labels))
        seconds(lambda stepper=stepper: stepper(pixels, labels))
    for _ in range(args.repeats):
        for name, stepper in steppers.items():
            times[name].append(seconds(lambda stepper=stepper: stepper(pixels, labels)))

    flops = _flops(model, pixels, labels)
    peak = _matrix_peak() if device().type == "cuda" else None
    title = f"{args.backbone}, stem stride {args.stem_stride}: {args.crop} px, batches of {args.batch}"
    print(f"### A training step of {title}\n")
    print(
        f"{machine()}; medians of {args.repeats} turns (least to most); {flops / args.batch / 1e9:.3g} GFLOP an image"
    )
    if peak:
        print(f"A bfloat16 matrix product reaches {peak / 1e12:.0f} TFLOP/s.")
    print("\n| | images/s | of upstream's way | TFLOP/s | of the peak | start-up s | pays from images |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    middle = {name: statistics.median(taken) for name, taken in times.items()}
    for name, taken in times.items():
        ratio = f"{middle[UPSTREAM] / middle[name]:.2f}" if UPSTREAM in middle else "-"
        rate = flops / middle[name]
        share = f"{rate / peak:.0%}" if peak and MODES[name].bfloat16 else "-"
        start = first[name] - middle[name]
        rest = f"{start:.0f} | {_pays(start, middle, args.batch)}" if MODES[name].compile else "- | -"
        cells = f"{loading.rates(taken, args.batch)} | {ratio} | {rate / 1e12:.3g} | {share} | {rest}"
        print(f"| {MODES[name].title} | {cells} |")
    print()
    return {"seconds": times, "first": first, "flops": flops, "matrix_peak": peak, "batch": args.batch}


def _pays(start: float, middle: dict[str, float], batch: int) -> str:
    """From how many images on start-up is made good, next to the same arithmetic without it."""
    if "both" not in middle:
        return "-"
    saved = (middle["both"] - middle["compile"]) / batch
    return f"{start / saved:,.0f}" if saved > 0 else "never"


def _flops(model: Any, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    """Of forward and backward pass of one batch; a multiplication and an addition are two."""
    from torch.utils.flop_counter import FlopCounterMode

    from imaginet_hub.training.losses import ImagiNetLoss

    model = copy.deepcopy(model)
    with FlopCounterMode(display=False) as counter:
        ImagiNetLoss()(views(model(pixel_values=pixels)), labels).backward()
    return float(counter.get_total_flops())


def _matrix_peak(side: int = 8192) -> float:
    """FLOP/s of a large bfloat16 matrix product, the best of some."""
    import torch

    left, right = (torch.randn(side, side, device=device(), dtype=torch.bfloat16) for _ in range(2))
    times = [seconds(lambda: [left @ right for _ in range(10)]) / 10 for _ in range(6)]
    return 2 * side**3 / min(times)


# --- curve ----------------------------------------------------------------------------------------------------------


def curve(args: argparse.Namespace) -> dict[str, Any]:
    """Print how far the loss in bfloat16 autocast is from that in float32; gives both curves."""
    import torch

    model = new_model(args.curve_backbone, 2, seed=1)
    modes = {"float32": MODES["channels_last"], "bfloat16": MODES["both"]}
    losses: dict[str, list[float]] = {}
    for name, mode in modes.items():
        stepper = Stepper(model, mode, lambda parameters: torch.optim.AdamW(parameters, lr=1e-3))
        noise = torch.Generator().manual_seed(2)
        labels = labelled(64)
        losses[name] = [float(stepper(_learnable(labels, args.curve_crop, noise), labels)) for _ in range(args.steps)]
    width = min(20, args.steps)
    smooth = {
        name: [statistics.fmean(values[i : i + width]) for i in range(len(values) - width + 1)]
        for name, values in losses.items()
    }
    apart = [abs(ours / theirs - 1) for ours, theirs in zip(smooth["bfloat16"], smooth["float32"], strict=True)]
    title = f"{args.curve_backbone}, stem stride 2: {args.curve_crop} px, batches of 64, AdamW at 0.001"
    print(f"### The loss of {args.steps} steps of {title}\n")
    print(f"| means of {width} steps | first | middle | last |")
    print("|---|---:|---:|---:|")
    for name, values in smooth.items():
        cells = (values[0], values[len(values) // 2], values[-1])
        print(f"| {name} | {' | '.join(f'{value:.4f}' for value in cells)} |")
    print(f"\nLargest difference of the smoothed curves: {max(apart):.2%}.\n")
    return {"losses": losses, "largest_difference": max(apart)}


def _learnable(labels: torch.Tensor, size: int, noise: torch.Generator) -> torch.Tensor:
    """Noise in which each generator family leaves stripes of its own, as weak as the noise."""
    import torch

    pixels = torch.randn(len(labels), 3, size, size, generator=noise)
    x, y = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="xy")
    stripes = torch.stack([(x % 2) * 2.0 - 1, (y % 2) * 2.0 - 1, (x + y) % 2 * 2.0 - 1, torch.zeros(size, size)])
    return (pixels + stripes[labels[:, 1].cpu()][:, None]).to(device())


# --- memory ---------------------------------------------------------------------------------------------------------


def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Print the peak memory of a step with and without gradient caching; gives the bytes."""
    runs: list[dict[str, Any]] = []
    for batch in args.batches:
        for mini_batch in (None, args.mini_batch):
            job = {
                "backbone": args.memory_backbone,
                "stem_stride": args.memory_stem_stride,
                "crop": args.memory_crop,
                "batch": batch,
                "mini_batch": mini_batch,
                "threads": args.threads,
            }
            command = [sys.executable, str(Path(__file__).resolve()), "--memory-child", json.dumps(job)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            # The kernel ends what takes more than there is.
            runs.append(job | (json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}))
    where = "GPU memory" if device().type == "cuda" else "resident memory"
    title = f"{args.memory_backbone}, stem stride {args.memory_stem_stride}, {args.memory_crop} px"
    print(f"### {where.capitalize()} of a step of {title}\n")
    print("| batch | mini-batch | MB at most | MB for the step | of the whole batch's | s | loss |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    whole: dict[int, float] = {}
    for run in runs:
        label = "all at once" if run["mini_batch"] is None else run["mini_batch"]
        if "peak" not in run:
            print(f"| {run['batch']:,} | {label} | more than there is | - | - | - | - |")
            continue
        taken = run["peak"] - run["before"]
        if run["mini_batch"] is None:
            whole[run["batch"]] = taken
        share = f"{taken / whole[run['batch']]:.2f}" if run["batch"] in whole else "-"
        sizes = f"{run['peak'] / 1e6:,.0f} | {taken / 1e6:,.0f} | {share}"
        print(f"| {run['batch']:,} | {label} | {sizes} | {run['seconds']:.1f} | {run['loss']:.4f} |")
    print("\nThe losses of a batch differ because BatchNorm sees what is encoded at a time.\n")
    return {"runs": runs}


def memory_child(job: dict[str, Any]) -> dict[str, float]:
    """One step; what was taken before it, and at most, in bytes."""
    import torch

    from imaginet_hub.training.grad_cache import cached_backward
    from imaginet_hub.training.losses import ImagiNetLoss

    if job["threads"]:
        torch.set_num_threads(job["threads"])
    cuda = device().type == "cuda"
    model = new_model(job["backbone"], job["stem_stride"]).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9, weight_decay=1e-4)
    loss_of, labels = ImagiNetLoss(), labelled(job["batch"])
    pixels = torch.randn(job["batch"], 3, job["crop"], job["crop"], device=device())
    pixels = pixels.contiguous(memory_format=torch.channels_last)

    def encode(part: torch.Tensor) -> torch.Tensor:
        with autocast(cuda):
            return views(model(pixel_values=part)).float()

    def one_step() -> float:
        if job["mini_batch"] is None:
            loss = loss_of(encode(pixels), labels)
            loss.backward()
        else:
            parts = pixels.split(job["mini_batch"])
            loss = cached_backward(encode, parts, lambda projections: loss_of(projections, labels), model=model)
        optimizer.step()
        return float(loss.detach())

    if cuda:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here (Linux)
        before = _resident("VmRSS")
    started = time.perf_counter()
    loss = one_step()
    taken = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() if cuda else _resident("VmHWM")
    return {"before": before, "peak": peak, "seconds": taken, "loss": loss}


def _resident(what: str) -> int:
    """Bytes of this process in memory: now (VmRSS), or at most (VmHWM)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) * 1024


# --- the command ----------------------------------------------------------------------------------------------------


def loader(args: argparse.Namespace) -> dict[str, Any]:
    return loading.loader(args.images, args.repeats, args.albumentations_python, args.core)


def crops(args: argparse.Namespace) -> dict[str, Any]:
    return loading.crops(args.images, args.repeats, args.core)


#: What makes all parts run within a minute; flags that are given win.
_SMALL = {
    "backbone": "test_resnet",
    "crop": 48,
    "batch": 8,
    "repeats": 2,
    "threads": 1,
    "count": 8,
    "steps": 20,
    "curve_crop": 24,
    "memory_backbone": "test_resnet",
    "batches": [96],
    "mini_batch": 8,
    "modes": ["upstream", "channels_last", "bfloat16", "both"],
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=_parts, default=PARTS, help=f"of {','.join(PARTS)} (default all)")
    parser.add_argument("--small", action="store_true", help="small sizes: whether it runs, in a minute")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each contender (default 5)")
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    parser.add_argument("--out", type=Path, help="a JSON file for all figures")
    parts = parser.add_argument_group("loader, crops")
    parts.add_argument(
        "--albumentations-python", metavar="PYTHON", help="an interpreter that has albumentations 1.3.1"
    )
    parts.add_argument("--pictures", metavar="FOLDER", help="photographs (default: those of the made corpus)")
    parts.add_argument("--count", type=int, default=64, help="images of each format (default 64)")
    parts.add_argument("--core", type=int, default=0, help="to bind contenders to; -1 for none (default 0)")
    parts = parser.add_argument_group("step")
    parts.add_argument("--backbone", default="resnet50")
    parts.add_argument("--stem-stride", type=int, choices=(1, 2), default=1)
    parts.add_argument("--crop", type=int, default=96, help="side in pixels (default 96)")
    parts.add_argument("--batch", type=int, default=32, help="images a batch (default 32)")
    parts.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parts = parser.add_argument_group("curve")
    parts.add_argument("--curve-backbone", default="test_resnet")
    parts.add_argument("--curve-crop", type=int, default=48)
    parts.add_argument("--steps", type=int, default=200)
    parts = parser.add_argument_group("memory")
    parts.add_argument("--memory-backbone", default="resnet18")
    parts.add_argument("--memory-stem-stride", type=int, choices=(1, 2), default=2)
    parts.add_argument("--memory-crop", type=int, default=96)
    parts.add_argument("--batches", nargs="+", type=int, default=[200, 2000])
    parts.add_argument("--mini-batch", type=int, default=50)
    parser.add_argument("--memory-child", help=argparse.SUPPRESS)
    return parser


def _parts(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= set(PARTS):
        raise argparse.ArgumentTypeError(f"expected some of {','.join(PARTS)}, got {text}")
    return names


def main(argv: Sequence[str] | None = None) -> None:
    parser = _parser()
    if parser.parse_known_args(argv)[0].small:
        parser.set_defaults(**_SMALL)
    args = parser.parse_args(argv)
    if args.memory_child:
        print(json.dumps(memory_child(json.loads(args.memory_child))))
        return
    args.core = None if args.core < 0 else args.core
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(scratch, "compiled"))  # before torch is imported
        import torch

        if args.threads:
            torch.set_num_threads(args.threads)
        print(f"## {machine()}\n")
        told: dict[str, Any] = {"machine": machine(), "arguments": vars(args) | {"out": None}}
        args.images = Path(scratch, "images")
        if {"loader", "crops"} & set(args.only):
            told["image_bytes"] = loading.make_images(args.images, args.pictures, args.count)
            sizes = ", ".join(f"{name} {size / 1000:.0f} kB" for name, size in told["image_bytes"].items())
            print(f"Images of {loading.SIDE} px: {sizes} on average.\n")
        for name in args.only:
            told[name] = globals()[name](args)
    if args.out:
        args.out.write_text(json.dumps(told, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
