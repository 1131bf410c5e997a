"""How many training samples a second one core makes of image files; the parts "loader" and "crops" of train.py.

Contenders are processes of their own, bound to one and the same core, that take turns, a pass over all images each.
Times are of the processor. Upstream's loader needs albumentations 1.3.1 and so numpy 1, hence an interpreter of its
own; this file is what runs there, and imports nothing of ours at its top.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SIDE = 512
CROP = 96
FORMATS = {"JPEG": {"quality": 90, "subsampling": "4:2:0"}, "PNG": {}}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# --- images ---------------------------------------------------------------------------------------------------------


def make_images(folder: Path, pictures: str | None, count: int) -> dict[str, int]:
    """Write squares of 512 px, cut out of photographs, in each format; gives the mean bytes of a file.

    Args:
        folder: gets a folder for each format.
        pictures: a folder with photographs in it; by default those of the made corpus.
        count: how many.
    """
    from PIL import Image

    squares: list[Any] = []
    for file in _photographs(pictures):
        if len(squares) == count:
            break
        with Image.open(file) as opened:
            if min(opened.size) < SIDE or opened.width * opened.height > 20_000_000:
                continue
            image = opened.convert("RGB")
        places = [0.5] if pictures else [0, 1 / 3, 2 / 3, 1]
        for x, y in ((x, y) for x in places for y in places):
            left, top = round((image.width - SIDE) * x), round((image.height - SIDE) * y)
            squares.append(image.crop((left, top, left + SIDE, top + SIDE)))
    squares = squares[:count]
    if not squares:
        raise SystemExit(f"--pictures {pictures}: expected photographs of {SIDE} px or more a side, found none")
    sizes = {}
    for name, options in FORMATS.items():
        (folder / name).mkdir(parents=True)
        for number, square in enumerate(squares):
            square.save(folder / name / f"{number:04}", name, **options)
        sizes[name] = round(statistics.mean(file.stat().st_size for file in (folder / name).iterdir()))
    return sizes


def _photographs(pictures: str | None) -> list[Path]:
    if pictures:
        suffixes = (".jpg", ".jpeg", ".png", ".webp")
        return sorted(file for file in Path(pictures).rglob("*") if file.suffix.lower() in suffixes)
    import importlib.util

    from imaginet_hub.data.mini import PHOTOGRAPHS

    found = []
    for photograph in PHOTOGRAPHS.values():
        spec = importlib.util.find_spec(photograph.package)
        if spec and spec.origin:
            found.append(Path(spec.origin).parent / photograph.file)
    return found


# --- contenders: one pass over a folder, as seconds of the processor by part -----------------------------------------


def upstream(folder: Path) -> Callable[[], dict[str, float]]:
    """Pillow decodes all of a file, albumentations crops and perturbs, numpy does as ToTensor and Normalize do."""
    import io

    import albumentations as A
    import cv2
    import numpy as np
    from PIL import Image

    cv2.setNumThreads(0)
    kinds = A.ImageCompression.ImageCompressionType
    compressions = [A.ImageCompression(50, 95, kind, p=1) for kind in (kinds.JPEG, kinds.WEBP)]
    perturbations = [A.OneOf(compressions, p=1), A.GaussianBlur((3, 7), p=1), A.GaussNoise((3.0, 10.0), p=1)]
    augment = A.Compose(
        [
            A.PadIfNeeded(CROP, CROP),
            A.RandomCrop(CROP, CROP),
            A.OneOf(perturbations, p=0.5),
            A.RandomRotate90(p=0.33),
            A.Flip(p=0.33),
        ]
    )
    mean, deviation = (np.array(values, np.float32)[:, None, None] for values in (_MEAN, _STD))
    files = sorted(folder.iterdir())

    def turn() -> dict[str, float]:
        clock = Clock()
        for file in files:
            clock.start()
            data = file.read_bytes()  # at once, which is kind: Pillow would ask for a little at a time
            clock.stop("row")
            pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            clock.stop("decode")
            pixels = augment(image=pixels)["image"]
            clock.stop("crop, perturb, turn")
            sample = (np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32) / 255 - mean) / deviation
            clock.stop("normalise")
            clock.see(sample)
        return clock.means(len(files))

    return turn


def ours(folder: Path, crops: int) -> Callable[[], dict[str, float]]:
    """`AugmentedRows`, exactly as the trainers use it."""
    import torch

    from imaginet_hub.training.augment import AugmentedRows, RowKey, TrainAugmentation

    torch.set_num_threads(1)
    rows = AugmentedRows(
        _dataset(folder), TrainAugmentation(CROP), {"labels": "label", "families": "family"}, crops_per_image=crops
    )
    epochs = iter(range(1_000_000))

    def turn() -> dict[str, float]:
        clock, epoch = Clock(), next(epochs)
        for row in range(len(rows)):
            clock.start()
            sample = rows[RowKey(epoch, row)]["pixel_values"]
            clock.stop("all")
            clock.see(sample.numpy())
        return clock.means(len(rows))

    return turn


def ours_by_part(folder: Path) -> Callable[[], dict[str, float]]:
    """The steps of `AugmentedRows`, one by one, and what decoding whole images would take."""
    import torch

    from imaginet_hub.data.images import from_row, upper_rows
    from imaginet_hub.training.augment import AugmentedRows, RowKey, TrainAugmentation, normalised

    torch.set_num_threads(1)
    augmentation = TrainAugmentation(CROP)
    rows = AugmentedRows(_dataset(folder), augmentation, {"labels": "label", "families": "family"}).rows
    epochs = iter(range(1_000_000))

    def turn() -> dict[str, float]:
        clock, epoch = Clock(), next(epochs)
        for number in range(len(rows)):
            clock.start()
            value = rows[number]["image"]
            clock.stop("row")
            drawn = augmentation.drawn((SIDE, SIDE), RowKey(epoch, number))
            clock.stop("draw")
            image, _ = upper_rows(value, lambda width, height, drawn=drawn: drawn.rows)
            clock.stop("decode")
            image = augmentation.carried_out(image, drawn)
            clock.stop("crop, perturb, turn")
            sample = normalised(image)
            clock.stop("normalise")
            clock.see(sample.numpy())
            clock.start()
            from_row(value)
            clock.stop("decode whole")
        return clock.means(len(rows))

    return turn


class Clock:
    """Sums of the processor's time by name, and what the samples are like."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.seen: list[tuple[float, float, float]] = []

    def start(self) -> None:
        self.before = time.process_time()

    def stop(self, name: str) -> None:
        now = time.process_time()
        self.sums[name] = self.sums.get(name, 0) + now - self.before
        self.before = now

    def see(self, sample: Any) -> None:
        """Mean, spread and difference of neighbours, which are those of the contender's distribution."""
        self.seen.append((sample.mean(), sample.std(), abs(sample[..., 1:] - sample[..., :-1]).mean()))

    def means(self, count: int) -> dict[str, float]:
        looks = [statistics.mean(float(look[i]) for look in self.seen) for i in range(3)]
        names = ("mean", "spread", "neighbours")
        return {name: total / count for name, total in self.sums.items()} | dict(zip(names, looks, strict=True))


def _dataset(folder: Path) -> Any:
    """As `load_dataset` gives what `imaginet build` wrote: the files' bytes in a table that is mapped into memory."""
    import tempfile

    import datasets

    files = [{"bytes": file.read_bytes(), "path": None} for file in sorted(folder.iterdir())]
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["real", "synthetic"]),
        "family": datasets.ClassLabel(names=["GAN", "real"]),
    }
    zeros = [0] * len(files)
    columns = {"image": files, "label": zeros, "family": zeros}
    datasets.disable_progress_bars()
    table = tempfile.mkdtemp(dir=folder.parent)  # goes with the images
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).save_to_disk(table)
    return datasets.load_from_disk(table)


_KINDS = {"upstream": upstream, "ours": ours, "parts": ours_by_part}


def child(job: dict[str, Any]) -> None:
    """A contender: a turn for every line that comes in, its result as a line that goes out."""
    arguments = [job["crops"]] if job["kind"] == "ours" else []
    turn = _KINDS[job["kind"]](Path(job["folder"]), *arguments)
    turn()
    for _ in sys.stdin:
        print(json.dumps(turn()), flush=True)


class Contender:
    """A process that waits for its turn."""

    def __init__(self, python: str, core: int | None, **job: Any) -> None:
        bound = [] if core is None else ["taskset", "-c", str(core)]
        command = [*bound, python, str(Path(__file__).resolve()), json.dumps(job)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.turns: list[dict[str, float]] = []

    def turn(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None  # noqa: S101 - for mypy
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"a contender has ended (status {self.process.wait()}): see its message above")
        self.turns.append(json.loads(answer))

    def end(self) -> None:
        self.process.communicate()

    def sums(self) -> list[float]:
        """Seconds a sample, of each turn."""
        looks = ("mean", "spread", "neighbours", "decode whole")
        return [sum(taken for name, taken in turn.items() if name not in looks) for turn in self.turns]

    def middle(self, name: str) -> float:
        return statistics.median(turn[name] for turn in self.turns)


# --- tables ---------------------------------------------------------------------------------------------------------


def _taken(contenders: dict[str, Contender], turns: int) -> None:
    for _ in range(turns):
        for contender in contenders.values():
            contender.turn()
    for contender in contenders.values():
        contender.end()


def rates(seconds: list[float], each: int = 1) -> str:
    """Samples a second: median (least to most)."""
    middle, low, high = (each / t for t in (statistics.median(seconds), max(seconds), min(seconds)))
    return f"{_rate(middle)} ({_rate(low)} to {_rate(high)})"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def loader(folder: Path, turns: int, albumentations: str | None, core: int | None) -> dict[str, Any]:
    """Print samples/s of each loader and where its time goes; gives the turns."""
    told: dict[str, Any] = {}
    parts: dict[str, dict[str, Contender]] = {}
    print(f"### Training samples a second and core: {SIDE} px to {CROP} px\n")
    print("| | samples/s | of upstream's | 8 workers, at most | mean, spread, neighbours |")
    print("|---|---:|---:|---:|---:|")
    for name in FORMATS:
        place = str(folder / name)
        contenders = {
            "ours": Contender(sys.executable, core, kind="ours", crops=1, folder=place),
            "parts": Contender(sys.executable, core, kind="parts", folder=place),
        }
        if albumentations:
            contenders["upstream"] = Contender(albumentations, core, kind="upstream", folder=place)
        _taken(contenders, turns)
        parts[name] = contenders
        told[name] = {who: contender.turns for who, contender in contenders.items()}
        titles = {"upstream": "upstream's: Pillow, albumentations", "ours": "`AugmentedRows`"}
        theirs = statistics.median(contenders["upstream"].sums()) if albumentations else None
        for who, title in titles.items():
            if who in contenders:
                taken = contenders[who].sums()
                ratio = f"{theirs / statistics.median(taken):.2f}" if theirs else "-"
                looks = ", ".join(f"{contenders[who].middle(look):.3f}" for look in ("mean", "spread", "neighbours"))
                fed = 8 / statistics.median(taken)
                print(f"| {name}: {title} | {rates(taken)} | {ratio} | {fed:,.0f} | {looks} |")
    print("\n### Where a sample's time goes, ms of the processor\n")
    steps = ("row", "draw", "decode", "crop, perturb, turn", "normalise")
    print(f"| | {' | '.join(steps)} | decode's share | decoding whole images |")
    print("|---|" + "---:|" * (len(steps) + 2))
    for name, contenders in parts.items():
        for who, title in (("upstream", "upstream's"), ("parts", "`AugmentedRows`")):
            if who not in contenders:
                continue
            contender = contenders[who]
            cells = [f"{1000 * contender.middle(s):.2f}" if s in contender.turns[0] else "-" for s in steps]
            share = contender.middle("decode") / statistics.median(contender.sums())
            whole = f"{1000 * contender.middle('decode whole'):.2f}" if who == "parts" else "-"
            print(f"| {name}: {title} | {' | '.join(cells)} | {share:.0%} | {whole} |")
    print()
    return told


def crops(folder: Path, turns: int, core: int | None, counts: Sequence[int] = (1, 2, 4)) -> dict[str, Any]:
    """Print crops/s where each decoded image gives several; gives the turns."""
    told: dict[str, Any] = {}
    print("### Crops a second and core, several of each image\n")
    print("| crops of an image | crops/s | of one crop's | images/s |")
    print("|---|---:|---:|---:|")
    for name in FORMATS:
        contenders = {
            str(count): Contender(sys.executable, core, kind="ours", crops=count, folder=str(folder / name))
            for count in counts
        }
        _taken(contenders, turns)
        told[name] = {who: contender.turns for who, contender in contenders.items()}
        single = statistics.median(contenders[str(counts[0])].sums()) / counts[0]
        for count in counts:
            taken = contenders[str(count)].sums()
            ratio = single * count / statistics.median(taken)
            print(f"| {name}: {count} | {rates(taken, count)} | {ratio:.2f} | {1 / statistics.median(taken):,.0f} |")
    print()
    return told


if __name__ == "__main__":
    child(json.loads(sys.argv[1]))
