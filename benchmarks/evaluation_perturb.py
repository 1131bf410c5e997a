"""Images a second of `imaginet perturb` against the plain loop, side by side; a part of evaluation.py.

The plain loop is what one would write: open the image with Pillow, crop, resize, encode, decode, save, one row after
the other. It draws, renders and writes Parquet by the same function calls, so its files are the same to the byte,
which is checked. Contenders are processes of their own that take turns; the time is that on the clock, workers'
start included, the imports that both need not.

What the machine can give is measured in the same turns: two plain loops at once, each with half of the rows and
nothing to share. Where they are no faster than one, as on a machine whose second core is somebody else's for a while,
no other contender can be.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Sizes and formats as those of ImagiNet's test set: ImageNet, COCO, LSUN, paintings, and what generators write.
KINDS = (
    ((500, 375), "JPEG"),
    ((640, 480), "JPEG"),
    ((256, 256), "PNG"),
    ((1400, 1100), "JPEG"),
    ((768, 768), "PNG"),
    ((1024, 1024), "PNG"),
)

_CEILING = "two plain loops at once"


def make_dataset(folder: Path, count: int, pictures: str | None = None) -> Path:
    """A built dataset of `count` images, cut out of photographs: those of the made corpus, or of a folder.

    Half of them are labelled synthetic, whatever they are: here it is about time.
    """
    from loader import _photographs
    from PIL import Image

    from imaginet_hub.cards import dataset_card
    from imaginet_hub.data.repository import build_repository

    photographs = []
    for file in _photographs(pictures)[:24]:
        with Image.open(file) as opened:
            photographs.append(opened.convert("RGB"))
    lines = ["path,label,split"]
    (folder / "root").mkdir(parents=True)
    for number in range(count):
        size, format_ = KINDS[number % len(KINDS)]
        photograph = photographs[number // len(KINDS) % len(photographs)]
        # Another part of the photograph each time, at about the scale of its pixels.
        scale = max(1, size[0] / photograph.width, size[1] / photograph.height)
        width, height = int(size[0] / scale), int(size[1] / scale)
        left = number * 37 % (photograph.width - width + 1)
        top = number * 53 % (photograph.height - height + 1)
        image = photograph.resize(size, Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        image.save(folder / "root" / f"{number:05}", format_, **({"quality": 90} if format_ == "JPEG" else {}))
        lines.append(f"{number:05},{('real', 'synthetic')[number % 2]},test")
    (folder / "root" / "annotations.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    build_repository(folder / "root", folder / "built", render_card=dataset_card)
    return folder / "built"


def plain(dataset: Path, out: Path, part: int | None = None) -> None:
    """One row after the other in this process; every second one, from row `part` on, where that is given."""
    from PIL import Image

    from imaginet_hub.data import perturbed
    from imaginet_hub.data.loading import open_split
    from imaginet_hub.data.rendering import FORMAT, LOSSLESS, Rendered
    from imaginet_hub.data.repository import encoded
    from imaginet_hub.perturbations import Perturbation, rendered

    rows = open_split(dataset, "test")
    features = perturbed._features(rows.features)

    def stored() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(rows):
            if part is not None and number % 2 != part:
                continue
            data, path = row["image"]["bytes"], row["path"]
            image = Image.open(io.BytesIO(data)).convert("RGB")
            perturbation = Perturbation.drawn(0, path, *image.size)
            small = rendered(image, perturbation)
            file = io.BytesIO()
            small.save(file, FORMAT, **LOSSLESS)
            digests = (hashlib.sha256(part).hexdigest() for part in (file.getbuffer(), small.tobytes(), data))
            result = Rendered(path, perturbation, file.getvalue(), *digests)
            yield encoded({**row, **perturbed._columns(result)}, features)

    out.mkdir()
    perturbed._write(out, "test_perturbed", stored(), features.arrow_schema)


def ours(dataset: Path, out: Path, num_workers: int) -> None:
    """`perturb`, all of it."""
    from imaginet_hub.data.perturbed import perturb

    perturb(dataset, out, num_workers=num_workers, progress=False, render_card=lambda _: "")


def perturb_rates(images: int = 600, turns: int = 5, pictures: str | None = None) -> dict[str, Any]:
    """Print images/s of the plain loop and of `perturb` with 1, 2, ... workers; gives seconds by contender."""
    workers = sorted({1, 2, os.cpu_count() or 1})
    names = {"plain loop": 0, _CEILING: -1, **{f"`perturb`, workers: {count}": count for count in workers}}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as place:
        dataset = make_dataset(Path(place), images, pictures)
        made = set()
        for turn in range(turns):
            for name, count in names.items():
                out = Path(place) / f"{turn} {count}"
                job = {"dataset": str(dataset), "out": str(out), "workers": max(0, count)}
                if count < 0:
                    seconds[name].append(max(_run(*({**job, "out": f"{out}{k}", "part": k} for k in (0, 1)))))
                    continue
                seconds[name] += _run(job)
                made.add(tuple(hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(out.rglob("*.parquet"))))
        if len(made) != 1:
            raise SystemExit("the contenders wrote different files")
    print(f"### The perturbed test set: {images:,} images, {os.cpu_count()} cores\n")
    print("| | images/s | of the plain loop's | of what two at once gave |")
    print("|---|---:|---:|---:|")
    for name, taken in seconds.items():
        cells = []
        for other in ("plain loop", _CEILING):
            ratios = [a / b for a, b in zip(seconds[other], taken, strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        rate, low, high = (images / t for t in (statistics.median(taken), max(taken), min(taken)))
        print(f"| {name} | {rate:.0f} ({low:.0f} to {high:.0f}) | {' | '.join(cells)} |")
    print(flush=True)
    return {"images": images, "seconds": seconds}


def _run(*jobs: dict[str, Any]) -> list[float]:
    """Seconds of contenders that run at once."""
    command = [sys.executable, str(Path(__file__).resolve())]
    children = [subprocess.Popen([*command, json.dumps(job)], stdout=subprocess.PIPE, text=True) for job in jobs]
    told = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise SystemExit("a contender failed")
    return [float(text) for text in told]


def _child(job: dict[str, Any]) -> None:
    import imaginet_hub.data.perturbed  # noqa: F401 - its seconds are everybody's
    from imaginet_hub.data.loading import open_split

    open_split(job["dataset"], "test")  # datasets imports torch for that, where it is installed
    before = time.perf_counter()
    if job["workers"]:
        ours(Path(job["dataset"]), Path(job["out"]), job["workers"])
    else:
        plain(Path(job["dataset"]), Path(job["out"]), job.get("part"))
    sys.stdout.write(f"{time.perf_counter() - before}\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _child(json.loads(sys.argv[1]))
    else:
        perturb_rates()
