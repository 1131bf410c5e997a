"""How fast the perturbed test set is rendered, intervals are made, and what an evaluation costs beyond inference.

    python benchmarks/evaluation.py [--only perturb,bootstrap,overhead] [--small] [--out FILE]
    OMP_NUM_THREADS=1 python benchmarks/evaluation.py --only bootstrap,overhead

Contenders take turns, so that noise hits all of them; the tables give medians (least to most).

perturb    images a second, next to the loop that renders one row after the other (see evaluation_perturb.py).
bootstrap  next to a Python loop over scikit-learn (see evaluation_bootstrap.py).
overhead   `evaluate_rows` with predictions kept, 1,000 resamples and a results file, next to the loop that anybody
           would write: read a row, decode, crop, predict a batch; both from the same Parquet files with the same
           network. "once" is `imaginet evaluate` where all is predicted already: what does not wait for the network.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation_bootstrap import bootstrap as intervals
from evaluation_perturb import make_dataset, perturb_rates
from model import machine

PARTS = ("perturb", "bootstrap", "overhead")


def perturb(args: argparse.Namespace) -> Any:
    print("### Rendering\n")
    return perturb_rates(args.images, args.repeats, args.pictures)


def bootstrap(args: argparse.Namespace) -> Any:
    print("\n### Intervals\n")
    told = intervals(args.rows, args.resamples, args.loop, args.repeats)
    least, most = told["times_faster_least_to_most"]
    print("| scores | resamples | groups | loop over scikit-learn, s | ours, s | times faster |\n|" + "---:|" * 6)
    print(
        f"| {told['rows']:,} | {told['resamples']:,} | {told['groups']} | {told['scikit_learn_s']:,.0f} (scaled) | "
        f"{told['ours_s']:.1f} | {told['times_faster']:.0f} ({least:.0f} to {most:.0f}) |",
        flush=True,
    )
    return told


def overhead(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of bare inference and of an evaluation, by network: on the clock, and of the processor.

    The processor's do not tell how busy the machine was meanwhile; with one thread (OMP_NUM_THREADS=1) they are work.
    """
    from imaginet_hub.inference.contract import load_measurable
    from imaginet_hub.inference.measure import measure

    print("\n### Evaluation\n")
    print("| network | images | bare loop, s | evaluation, s | of the bare loop | by processor time | once, s |")
    print("|---|" + "---:|" * 6)
    told = {}
    for backbone, stride, count in args.networks:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            dataset = make_dataset(folder, count, args.pictures)
            model = load_measurable(_network(folder / "model", backbone, stride))
            bare_loop(model, dataset, args.batch, at_most=args.batch)  # warm
            seconds: dict[str, list[float]] = {"bare": [], "evaluation": []}
            work: dict[str, list[float]] = {"bare": [], "evaluation": []}
            for turn in range(args.repeats):
                for name in sorted(seconds, reverse=bool(turn % 2)):
                    before, worked = time.perf_counter(), time.process_time()
                    if name == "bare":
                        bare_loop(model, dataset, args.batch)
                    else:
                        evaluation(model, dataset, args.batch, folder / f"kept-{turn}")
                    seconds[name].append(time.perf_counter() - before)
                    work[name].append(time.process_time() - worked)
            measure(folder / "model", dataset, folder / "r.json", split="test", progress=False)  # fills the cache
            before = time.perf_counter()
            measure(folder / "model", dataset, folder / "r.json", split="test", progress=False)
            once = time.perf_counter() - before
        bare, whole = (statistics.median(seconds[name]) for name in ("bare", "evaluation"))
        print(
            f"| {backbone}, stem stride {stride} | {count} | {bare:.1f} | {whole:.1f} | {_ratios(seconds)} | "
            f"{_ratios(work)} | {once:.1f} |",
            flush=True,
        )
        told[f"{backbone}-{stride}"] = {"seconds": seconds, "work": work, "once": once}
    return told


def _ratios(taken: dict[str, list[float]]) -> str:
    ratios = [b / a for a, b in zip(taken["bare"], taken["evaluation"], strict=True)]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def bare_loop(model: Any, dataset: Path, batch_size: int, at_most: int | None = None) -> None:
    """What anybody would write."""
    from imaginet_hub.data.images import from_row
    from imaginet_hub.data.loading import open_split
    from imaginet_hub.perturbations import fixed_crop

    crops, scores = [], []
    for row in open_split(dataset, "test"):
        crops.append(fixed_crop(from_row(row["image"]), model.crop_size))
        if len(crops) == batch_size:
            scores.append(model.predict(crops))
            crops = []
            if at_most is not None and len(scores) * batch_size >= at_most:
                return
    if crops:
        scores.append(model.predict(crops))


def evaluation(model: Any, dataset: Path, batch_size: int, store: Path) -> None:
    """All that makes a results file of the same rows."""
    from imaginet_hub.data.loading import open_split
    from imaginet_hub.evaluation.mistakes import Mistakes
    from imaginet_hub.evaluation.predictions import PredictionStore
    from imaginet_hub.evaluation.report import evaluate_rows

    rows = open_split(dataset, "test")
    results = evaluate_rows(
        rows,
        model.predict,
        track=model.track,
        names=model.names,
        batch_size=batch_size,
        total=len(rows),
        crop_size=model.crop_size,
        num_workers=2,
        store=PredictionStore({"dataset": rows.record()}, 2, store),
        mistakes=Mistakes(),
        progress=False,
    )
    results.write(store / "results.json")


def _network(folder: Path, backbone: str, stride: int) -> Path:
    from imaginet_hub.selfcon import SelfConImageProcessor, SelfConResNetConfig, SelfConResNetForImageClassification

    config = SelfConResNetConfig(
        backbone=backbone, stem_stride=stride, exit_stages=(), id2label={0: "real", 1: "synthetic"}, track="detection"
    )
    SelfConResNetForImageClassification(config).save_pretrained(folder)
    SelfConImageProcessor().save_pretrained(folder)
    return folder


_NETWORKS = [("resnet18", 2, 300), ("resnet50", 2, 100)]
_SMALL = {
    "images": 60, "repeats": 1, "rows": 2000, "resamples": 100, "loop": 1, "networks": [("test_resnet", 2, 40)]
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: tuple(text.split(",")), default=PARTS, metavar=",".join(PARTS))
    parser.add_argument("--small", action="store_true", help="few images and rows, to try it")
    parser.add_argument("--repeats", type=int, default=5, help="turns (default 5)")
    parser.add_argument("--out", type=Path, help="JSON file for all figures")
    parser.add_argument("--pictures", metavar="FOLDER", help="photographs (default: those of the made corpus)")
    parser.add_argument("--images", type=int, default=600, help="perturb: images (default 600)")
    parser.add_argument("--rows", type=int, default=40_000, help="bootstrap: scores (default 40,000)")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap: resamples (default 1,000)")
    parser.add_argument("--loop", type=int, default=3, help="bootstrap: resamples that scikit-learn is timed with")
    parser.add_argument("--batch", type=int, default=16, help="overhead: images at a time (default 16)")
    if parser.parse_known_args(argv)[0].small:
        parser.set_defaults(**_SMALL)
    parser.set_defaults(networks=parser.get_default("networks") or _NETWORKS)
    args = parser.parse_args(argv)
    strange = [name for name in args.only if name not in PARTS]
    if strange:
        parser.error(f"--only: expected some of {','.join(PARTS)}, got {strange[0]}")
    print(f"## {machine()}\n")
    told: dict[str, Any] = {"machine": machine()}
    for name in args.only:
        told[name] = globals()[name](args)
    if args.out:
        args.out.write_text(json.dumps(told, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
