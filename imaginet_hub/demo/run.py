"""`imaginet demo`: fetch -> dataset repository -> SelfCon encoder -> both heads -> results -> loaded back.

Nothing in here is a short cut: each step calls what the command of that name calls. The images are the made corpus,
served on this machine by a mirror that speaks the protocols of ImagiNet's hosts.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imaginet_hub.cards import RESULTS, dataset_card, write_card
from imaginet_hub.data.builder import BUILD_REPORT
from imaginet_hub.data.fetch import fetch
from imaginet_hub.data.loading import dataset_record, load_rows, splits_of
from imaginet_hub.data.mini import make_mini
from imaginet_hub.data.repository import build_repository
from imaginet_hub.demo.mirror import Mirror
from imaginet_hub.demo.staging import GATED, stage
from imaginet_hub.errors import DataNotFoundError, ImagiNetError, require
from imaginet_hub.evaluation.report import interval_text
from imaginet_hub.labels import Track

__all__ = ["run"]

#: Flags of `imaginet train` and `imaginet train-head` for about three minutes on two cores.
TRAIN_FLAGS = ["--preset", "quick", "--overwrite"]
HEAD_FLAGS = ["--preset", "quick", "--overwrite"]

_MARKER = ".imaginet-demo"


def run(out: Path) -> dict[str, Any]:
    """Run the whole path and print what came of it.

    Args:
        out: folder to write: root/, dataset/, encoder/, detection/, identification/, results/.

    Returns:
        The results of both tracks, as JSON objects by track.

    Raises:
        MissingExtraError: the extra `demo` is not installed.
        DataNotFoundError: `out` holds something that no demo wrote.
    """
    require("demo", "torch", "torchvision", "transformers", "timm", "accelerate", "sklearn", "skimage", "matplotlib")
    from imaginet_hub.evaluation.audit import audit
    from imaginet_hub.inference.measure import measure
    from imaginet_hub.training.head import parse_head_args, train_head
    from imaginet_hub.training.trainer import parse_train_args, train

    out = out.expanduser().absolute()
    _claim(out)
    started = time.monotonic()
    dataset, encoder, results = out / "dataset", out / "encoder", out / "results"
    with _step("Making the corpus: photographs, and simulations of eight generators"):
        made = make_mini(out / "made")
    with _step("Fetching it as ImagiNet is fetched, from hosts on this machine that speak its hosts' protocols"):
        root = _fetch(made, out)
    with _step(f"Building the dataset repository {_shown(dataset)}"):
        build_repository(root, dataset, overwrite=True, render_card=dataset_card)
    with _step("Asking what its labels can be told by without looking, for its card"):
        write_card(dataset, audit=audit(dataset, splits=splits_of(dataset), progress=False))
    with _step(f"Training the encoder {_shown(encoder)} (SelfCon)"):
        rows = load_rows(dataset, Track.DETECTION, "train")
        model_args, training_args = parse_train_args(TRAIN_FLAGS, encoder)
        train(rows, model_args, training_args, dataset_record=dataset_record(dataset, rows, "train"))
        write_card(encoder)
    measured: dict[str, Any] = {}
    for track in Track:
        folder = out / track.value
        with _step(f"Training the {track} head and measuring it: {_shown(folder)}"):
            rows = load_rows(dataset, track, "train")
            train_head(
                rows,
                encoder,
                parse_head_args(HEAD_FLAGS, folder),
                label_column=track.label_column,
                dataset_record=dataset_record(dataset, rows, "train"),
            )
            # Both heads have one network.
            found = measure(folder, dataset, results / f"{track}.json", speed=track is Track.DETECTION)
            measured[track.value] = found.to_json(per_image=False)
            shutil.rmtree(folder / RESULTS, ignore_errors=True)  # of an earlier demo
            write_card(folder, results=[results / f"{track}.json"])
    with _step("Loading both models back with plain transformers, in a process without imaginet_hub"):
        for track in Track:
            _load_back(out / track.value, root)
    print(_closing(out, measured, time.monotonic() - started))
    return measured


def _claim(out: Path) -> None:
    """Only an absent or empty folder, or that of an earlier demo, is written to."""
    if out.exists() and not (out / _MARKER).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise DataNotFoundError(f"expected {out} to be absent, empty, or of an earlier demo; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARKER).touch()


def _fetch(made: Path, out: Path) -> Path:
    """Publish the made corpus on loopback hosts in each source's own way, and fetch it from there.

    The hosts ask for the accounts that the real ones ask for; nothing else does while this runs.
    """
    origin, own, root = out / "origin", out / "own", out / "root"
    for folder in (origin, own, root):  # of an earlier demo
        shutil.rmtree(folder, ignore_errors=True)
    stage(made, origin, own, packed=False)
    root.mkdir()
    for name in ("annotations", "README.txt", "mini.json"):  # what the corpus says of itself
        (shutil.copytree if (made / name).is_dir() else shutil.copy)(made / name, root / name)
    gated = dict.fromkeys(GATED, "hf_demo")
    with (
        _environment(HF_TOKEN="hf_demo", KAGGLE_API_TOKEN="demo"),
        Mirror(origin, gated=gated, kaggle_tokens=["demo"]) as mirror,
    ):
        summary = fetch(root, annotations=own / "annotations", endpoints=mirror.endpoints, show=_indented)
        _indented(summary.text())
        _indented(f"{len(mirror.requests):,} requests were answered")
    if not summary.complete:
        raise ImagiNetError(f"the demo's own mirror did not deliver everything:\n{summary.text()}")
    for folder in (origin, own, made):
        shutil.rmtree(folder)
    return root


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Variables while the block runs."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _indented(text: str) -> None:
    print("   " + text.replace("\n", "\n   "), flush=True)


@contextmanager
def _step(title: str) -> Iterator[None]:
    print(f"\n== {title}", flush=True)
    started = time.monotonic()
    yield
    print(f"   done in {time.monotonic() - started:.0f} s", flush=True)


_LOAD_BACK = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "imaginet_hub":
            raise ModuleNotFoundError("imaginet_hub is hidden from this process", name=name)

sys.meta_path.insert(0, Absent())
from transformers import pipeline

classify = pipeline("image-classification", model=sys.argv[1], trust_remote_code=True)
best = max(classify(sys.argv[2]), key=lambda answer: answer["score"])
print(f"{best['label']} {best['score']:.4f}")
"""


def _load_back(folder: Path, root: Path) -> None:
    """Classify one synthetic image in a fresh interpreter that cannot import this package."""
    listed = (root / "annotations" / "test_annotations.txt").read_text(encoding="utf-8").splitlines()
    image = root / next(line for line in listed if line.rsplit(",", 4)[1] == "1").rsplit(",", 4)[0]
    done = subprocess.run(
        [sys.executable, "-c", _LOAD_BACK, str(folder), str(image)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode != 0:
        raise ImagiNetError(f"{folder} could not be loaded back by plain transformers:\n{done.stderr}")
    print(f"   {folder.name}: {image.parent.name}/{image.name} -> {done.stdout.strip()}")


def _closing(out: Path, measured: dict[str, Any], seconds: float) -> str:
    report = json.loads((out / "dataset" / BUILD_REPORT).read_text(encoding="utf-8"))
    lines = [
        "",
        f"{'track':<16}{'test images':>12}  {'balanced accuracy':<24}{'AUC':<24}{'majority':<8}",
    ]
    for track, results in measured.items():
        metrics = results["metrics"]
        lines.append(
            f"{track:<16}{results['n']:>12,}  {interval_text(metrics['balanced_accuracy']):<24}"
            f"{interval_text(metrics['auc']):<24}{results['baselines']['majority']['balanced_accuracy']:.3f}"
        )
    lines += [
        "",
        "These are SIMULATIONS for trying the software: photographs, and the same photographs with the spectral marks",
        "that generators leave. No image here was made by the generators whose names appear, and the figures say",
        "nothing about images in the wild.",
        "",
        f"images           {_shown(out / 'root')}   (fetched, verified; its ledger is in .imaginet/)",
        f"dataset          {_shown(out / 'dataset')}   ({report['images']:,} images)",
        f"models           {_shown(out / 'detection')}   {_shown(out / 'identification')}",
        f"pictures         {_shown(out / 'results' / 'detection.png')}   "
        f"{_shown(out / 'results' / 'identification.png')}",
        "",
        f"{seconds / 60:.1f} minutes. Try next, on pictures of your own:",
        f"  {_command()} predict {_shown(out / 'detection')} PATH... --identify {_shown(out / 'identification')}",
    ]
    return "\n".join(lines)


def _command() -> str:
    """How the reader can call the command: by name if it is on the path, else where it was installed."""
    here = Path(sys.executable).with_name("imaginet")
    on_path = any(Path(folder, "imaginet").exists() for folder in os.get_exec_path())
    return _shown(here) if here.exists() and not on_path else "imaginet"


def _shown(path: Path) -> str:
    """A path as the reader would type it from here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
