"""From a detector and a dataset to a results file: what is written, resumed and survived, and the memory it takes."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image
from sklearn import metrics as sk

from imaginet_hub.cards import dataset_card
from imaginet_hub.cli import main
from imaginet_hub.data.repository import build_repository
from imaginet_hub.errors import DataNotFoundError, ImagiNetError, UsageError
from imaginet_hub.evaluation import Results
from imaginet_hub.evaluation.predictions import predictions_folder
from imaginet_hub.inference.measure import Preprocessing, measure, summary
from imaginet_hub.selfcon import SelfConImageProcessor, SelfConResNetConfig, SelfConResNetForImageClassification
from tests.conftest import PROJECT, image_bytes

HEADER = "path,label,content_type,generator_family,generator,split,group"
_MADE = (("GAN", "ProGAN"), ("SD", "SDXL v1.0"), ("SD", "Own Net"))


def rows_of(split: str, count: int) -> list[str]:
    rows = []
    for number in range(count):
        family, generator = ("real", "real") if number % 2 else _MADE[number // 2 % 3]
        label, content = ("real" if number % 2 else "synthetic"), ("photos", "faces")[number // 4 % 2]
        rows.append(f"{split}/{number}.png,{label},{content},{family},{generator},{split},g{number % 3}")
    return rows


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    rows = [*rows_of("test", 48), *rows_of("train", 24)]
    for number, row in enumerate(rows):
        path = root / row.split(",", 1)[0]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image_bytes(number, (40 + number % 7, 44)))
    (root / "annotations.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    return root


@pytest.fixture(scope="module")
def dataset(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "dataset"
    build_repository(root, folder, render_card=dataset_card)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    kinds: dict[str, dict[str, Any]] = {
        "detection": {"id2label": {0: "synthetic", 1: "real"}, "track": "detection"},
        "identification": {"id2label": {0: "SD", 1: "Imagen"}, "track": "identification"},
    }
    for name, options in kinds.items():
        config = SelfConResNetConfig(backbone="test_resnet", exit_stages=(), stem_stride=2, **options)
        SelfConResNetForImageClassification(config).save_pretrained(folder / name)
        SelfConImageProcessor(crop_size=32).save_pretrained(folder / name)
    return {name: folder / name for name in kinds}


def red(images: Any) -> Any:
    """A detector: the mean of the red channel, spread out."""
    return np.array([1 / (1 + np.exp(-(np.asarray(image)[..., 0].mean() - 127.5))) for image in images])


def run(model: Any, data: Path, out: Path, **options: Any) -> Results:
    return measure(model, data, out, progress=False, n_resamples=20, **options)


def test_what_is_written(dataset: Path, tmp_path: Path, models: dict[str, Path]) -> None:
    results = run(models["detection"], dataset, tmp_path / "new" / "r.json", by=["group"])
    assert Results.read(tmp_path / "new" / "r.json") == results
    assert sorted(path.name for path in (tmp_path / "new").iterdir() if "mistakes" not in path.name) == [
        *("r-reliability.png", "r-roc.png", "r.json", "r.png")
    ]
    assert results.n == 48 and results.names == ["synthetic", "real"]
    assert results.preprocessing == {"crop_size": 32, "resize": None, "equalize": None}
    assert list(results.by) == ["generator_family", "generator", "content_type", "group"]
    assert results.model["kind"] == "selfcon_resnet" and len(results.model["fingerprint"]) == 32
    labels = [entry["label"] == "synthetic" for entry in results.per_image or []]
    scores = [entry["scores"][0] for entry in results.per_image or []]
    assert results.metrics["auc"]["value"] == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
    assert results.protocols is not None and results.protocols["clean"]["calibration"]["n_tested"] == 0
    said = summary(results)
    assert "paper: bACC" in said and "What differs" in said and "published" not in said


def test_a_root_gives_what_the_dataset_built_of_it_gives(root: Path, dataset: Path, tmp_path: Path) -> None:
    of_root, of_built = (run(red, place, tmp_path / f"{n}.json") for n, place in enumerate((root, dataset)))
    assert of_root.metrics == of_built.metrics
    assert of_root.dataset["fingerprint"] != ""

    def scores(results: Results) -> dict[str, Any]:
        return {entry["path"]: entry["scores"] for entry in results.per_image or []}

    assert scores(of_root) == scores(of_built)


def test_every_detector_sees_the_same_crops(root: Path, tmp_path: Path) -> None:
    seen = []

    def detector(images: Any) -> Any:
        seen.extend((image.size, image.mode) for image in images)
        return red(images)

    run(detector, root, tmp_path / "a.json", cache=False)
    assert set(seen) == {((256, 256), "RGB")}
    seen.clear()
    chosen = Preprocessing(crop_size=20, resize=30, equalize="webp:70")
    assert run(detector, root, tmp_path / "b.json", preprocessing=chosen, cache=False).preprocessing == {
        "crop_size": 20, "resize": 30, "equalize": "webp:70"
    }  # fmt: skip
    assert {size for size, _ in seen} == {(20, 20)}


def test_a_foreign_detector_is_calibrated_on_train_alone(dataset: Path, tmp_path: Path) -> None:
    asked: list[int] = []

    def detector(images: Any) -> Any:
        asked.append(len(images))
        return red(images)

    def turned(images: Any) -> Any:
        return 1 - red(images)

    found = [run(each, dataset, tmp_path / "a.json", cache=False).protocols or {} for each in (detector, turned)]
    assert sum(asked) == 48 + 24
    parts = [protocols["clean"]["calibration"] for protocols in found]
    # Of noise, one of the two rises with the label by chance; the other is not to be made into probabilities.
    fitted, refused = sorted(parts, key=lambda part: part["n_real"], reverse=True)
    assert (fitted["n_real"], fitted["n_synthetic"], fitted["n_tested"]) == (12, 12, 0)
    assert refused["n_real"] == 0 and any(protocols["clean"]["remarks"] for protocols in found)
    paper = found[0]["paper"]["calibration"]
    assert paper["n_tested"] == paper["n_real"] + paper["n_synthetic"] > 0


def test_predictions_are_kept_and_follow_what_they_depend_on(
    root: Path, tmp_path: Path, models: dict[str, Path]
) -> None:
    copy, model = tmp_path / "root", tmp_path / "model"
    shutil.copytree(root, copy)
    shutil.copytree(models["detection"], model)
    said: list[str] = []

    def kept(**options: Any) -> int:
        """How many predictions were there already, of 48 test rows and 24 to calibrate on."""
        said.clear()
        run(model, copy, tmp_path / "r.json", show=said.append, **options)
        return sum(int(line.split()[0].replace(",", "")) for line in said if "were there already" in line)

    assert kept() == 0
    assert kept() == kept(seed=3, by=["group"], threshold=0.2) == 72
    assert kept(preprocessing=Preprocessing(crop_size=40)) == 0
    assert kept(cache=False) == 0
    assert kept(dtype="bfloat16") == 0
    (copy / "test" / "5.png").write_bytes(image_bytes(999, (40, 44)))
    assert kept() == 0, "another state of the dataset"
    network = SelfConResNetForImageClassification.from_pretrained(model)
    with torch.no_grad():
        next(network.parameters()).mul_(1.0001)
    network.save_pretrained(model)
    assert kept() == 0


SLOW = """
import time
import numpy as np

def slow(images):
    time.sleep(0.15)
    return np.array([np.asarray(image)[..., 0].mean() / 255 for image in images])
"""


def test_a_killed_evaluation_goes_on(root: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(SLOW)
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path / "hf"),
        "PYTHONPATH": f"{PROJECT}:{os.environ['PYTHONPATH']}",
    }
    command = [sys.executable, "-m", "imaginet_hub.cli", "evaluate", "own:slow", str(root), "--out", "r.json"]
    command += ["--batch-size", "4", "--num-workers", "2"]
    child = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    folder = tmp_path / "hf" / "imaginet" / "predictions"
    for _ in range(1200):
        lines = sum(len(path.read_bytes().splitlines()) for path in folder.glob("*.jsonl"))
        if lines > 9 or child.poll() is not None:
            break
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "it was stopped in the middle"
    assert not (tmp_path / "r.json").exists()
    again = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-3000:]
    (line,) = [line for line in again.stderr.splitlines() if "were there already" in line]
    assert int(line.split()[2]) >= 8
    whole = subprocess.run(
        [*command[:-1], "0", "--no-cache", "--quiet", "--json"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(whole.stdout) == json.loads((tmp_path / "r.json").read_text())


def test_interrupting_says_how_to_go_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stopping.py").write_text("def stop(images):\n    raise KeyboardInterrupt\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert main(["evaluate", "stopping:stop", str(root), "--out", "r.json"]) == 130
    assert "goes on with the predictions that are kept" in capsys.readouterr().err


def test_unreadable_rows_are_counted_and_the_status_says_so(
    root: Path, tmp_path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "root"))
    (copy / "test" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (copy / "test" / "4.png").unlink()
    (copy / "test" / "6.png").write_bytes((copy / "test" / "6.png").read_bytes()[:900])
    for _ in range(2):  # from kept predictions too
        code = main(["evaluate", str(models["detection"]), str(copy), "--out", str(tmp_path / "r.json"), "--quiet"])
        assert code == 1 and "3 unreadable images, listed in" in capsys.readouterr().err
        results = Results.read(tmp_path / "r.json")
        assert [Path(row["path"]).name for row in results.skipped] == ["3.png", "4.png", "6.png"]
        assert results.n == 45 and all(row["reason"] for row in results.skipped)


def test_against_a_detector_and_a_results_file(dataset: Path, tmp_path: Path, models: dict[str, Path]) -> None:
    first = run(models["detection"], dataset, tmp_path / "a.json")
    second = run(red, dataset, tmp_path / "b.json", against=tmp_path / "a.json")
    third = run(red, dataset, tmp_path / "c.json", against=models["detection"])
    assert second.comparison is not None and third.comparison is not None
    assert second.comparison["differences"] == third.comparison["differences"]
    assert second.comparison["other"]["fingerprint"] == first.model["fingerprint"]
    gap = (second.metrics["auc"]["value"] or 0) - (first.metrics["auc"]["value"] or 0)
    assert second.comparison["differences"]["auc"]["value"] == pytest.approx(gap, abs=1e-12)
    assert (tmp_path / "b-comparison.png").is_file() and "McNemar" in summary(second)


def test_unknown_generators(dataset: Path, tmp_path: Path, models: dict[str, Path]) -> None:
    results = run(models["identification"], dataset, tmp_path / "r.json")
    assert results.unknown_classes == {"GAN": 8} and results.unknown is not None
    assert (results.unknown["n_known"], results.unknown["n_unknown"]) == (16, 8)
    assert "unknown classes (8 images)" in summary(results)


def test_exports_are_what_the_hub_reads(dataset: Path, tmp_path: Path, models: dict[str, Path]) -> None:
    results = run(models["detection"], dataset, tmp_path / "r.json", export="me/imaginet")
    text = (tmp_path / ".eval_results" / "r.yaml").read_text()
    entries = {entry.task_id: entry for entry in parse_eval_result_entries(yaml.safe_load(text))}
    assert entries["detection_auc"].value == pytest.approx(results.metrics["auc"]["value"], abs=1e-4)
    assert {"detection_paper_auc", "detection_clean_auc"} <= entries.keys()
    index = yaml.safe_load((tmp_path / "r-model-index.yaml").read_text())["model-index"]
    name, flat = model_index_to_eval_results(index)
    assert name == "detection" and len(flat) > 20
    with pytest.raises(UsageError, match="expected the Hub id"):
        run(models["detection"], dataset, tmp_path / "r.json", export="no such//id")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"split": "tset"}, DataNotFoundError, "has no detection/tset; it has"),
        ({"by": ["camera"]}, UsageError, "--by: no column camera"),
        ({"threshold": 7.0}, UsageError, "threshold"),
        ({"annotations": "."}, DataNotFoundError, "protocol lists"),
        ({"against": "nothing.json"}, DataNotFoundError, r"nothing\.json"),
        ({"labels": {"a": "real"}}, UsageError, "--label-map"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    dataset: Path, tmp_path: Path, models: dict[str, Path], options: dict[str, Any], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        run(models["detection"], dataset, tmp_path / "r.json", **options)
    assert not list(tmp_path.glob("*.json"))


def parquet(folder: Path, **splits: list[tuple[bytes, int]]) -> Path:
    """Somebody else's dataset: nothing but images and labels."""
    folder.mkdir()
    names = datasets.ClassLabel(names=["human", "AI"])
    features = datasets.Features({"image": datasets.Image(), "label": names})
    for split, rows in splits.items():
        columns = {
            "image": [{"bytes": data, "path": None} for data, _ in rows],
            "label": [label for _, label in rows],
        }
        table = datasets.Dataset.from_dict(columns, features=features)
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def coloured(images: Any) -> Any:
    return np.array([np.asarray(image)[..., 0].mean() / 255 for image in images])


def flat(level: int, seed: int) -> bytes:
    """A picture whose red says its label, more or less."""
    pixels = np.random.default_rng(seed).integers(0, 20, (40, 40, 3)) + level
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def test_no_tested_image_is_calibrated_on(tmp_path: Path) -> None:
    rows = [(flat(60 + 80 * (n % 2), n), n % 2) for n in range(60)]
    place = parquet(tmp_path / "theirs", test=rows[:40], train=rows[20:])  # 20 images are in both
    said: list[str] = []
    results = run(coloured, place, tmp_path / "r.json", cache=False, show=said.append)
    assert results.protocols is not None
    calibration = results.protocols["clean"]["calibration"]
    assert (calibration["n_real"], calibration["n_synthetic"], calibration["n_tested"]) == (10, 10, 0)
    assert any("labels were taken so" in line and "AI = synthetic" in line for line in said)
    trained = run(coloured, place, tmp_path / "r.json", split="train", cache=False)
    assert trained.protocols is not None and trained.protocols["clean"]["calibration"]["n_real"] == 0


def test_calibration_rows_are_not_the_first_ones_of_a_sorted_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imaginet_hub.inference.measure.CALIBRATION_ROWS", 15)
    train = [(flat(60 + 80 * (n % 2) + n // 30, n), n % 2) for n in range(120)]
    place = parquet(tmp_path / "theirs", test=train[:20], train=train)
    seen: list[float] = []

    def detector(images: Any) -> Any:
        seen.extend(coloured(images))
        return coloured(images)

    run(detector, place, tmp_path / "r.json", cache=False)
    later = {round(float(level * 255)) for level in seen[20:]}
    assert len(seen) <= 20 + 30 and max(later) - min(later) > 80, "of all of it"


def test_what_is_missing_is_said_before_anything_is_predicted(dataset: Path, tmp_path: Path) -> None:
    def never(images: Any) -> Any:
        raise AssertionError("asked")

    for options, message in (
        ({"against": "none.json"}, "none.json"),
        ({"against": "./no-model"}, "no model at"),
        ({"calibrate_on": "./no-data"}, "no dataset at"),
        ({"annotations": str(tmp_path)}, "protocol lists"),
    ):
        with pytest.raises(ImagiNetError, match=message):
            run(never, dataset, tmp_path / "r.json", **options)


def test_other_files_beside_the_results_are_left_alone(dataset: Path, tmp_path: Path) -> None:
    for name in ("roc.svg", "roc-other.png", "notes-roc.png"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "roc-comparison.png").write_text("of an earlier run")
    run(red, dataset, tmp_path / "roc.json")
    assert all((tmp_path / name).read_text() == "mine" for name in ("roc.svg", "roc-other.png", "notes-roc.png"))
    assert not (tmp_path / "roc-comparison.png").exists()


def test_train_images_that_are_not_there_cost_the_calibration_alone(root: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "root"))
    shutil.rmtree(copy / "train")
    said: list[str] = []
    results = run(red, copy, tmp_path / "r.json", show=said.append)
    assert results.n == 48 and results.protocols is not None
    assert results.protocols["clean"]["calibration"]["n_real"] == 0
    assert any("goes without calibration" in line for line in said)


def test_names_in_the_data_do_not_steer_the_terminal(
    root: Path, tmp_path: Path, models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(root, tmp_path / "root"))
    table = copy / "annotations.csv"
    table.write_text(table.read_text().replace("Own Net", "\x1b[2J$x^2$ <b>Net</b> 网络"))
    assert main(["evaluate", str(models["detection"]), str(copy), "--out", str(tmp_path / "r.json"), "--quiet"]) == 0
    assert main(["audit", str(copy), "--out", str(tmp_path / "audit"), "--quiet"]) == 0
    assert main(["perturb", str(copy), "--out", str(tmp_path / "perturbed"), "--quiet"]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err and "\\x1b[2J$x^2$ <b>Net</b>" in said.out


def test_rows_without_a_label_are_named(tmp_path: Path) -> None:
    place = parquet(tmp_path / "theirs", test=[(flat(60, n), -1 if n == 3 else n % 2) for n in range(6)])
    with pytest.raises(UsageError, match="a row without one"):
        run(red, place, tmp_path / "r.json")


def test_labels_without_names_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "numbers").mkdir()
    columns = {"image": [{"bytes": flat(60, n), "path": None} for n in range(4)], "label": [0, 1, 0, 1]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict(columns, features=features)
    table.to_parquet(tmp_path / "numbers" / "test-00000-of-00001.parquet")
    command = [sys.executable, "-m", "imaginet_hub.cli", "audit", "numbers", "--out", "a"]
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT}:{os.environ['PYTHONPATH']}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "dataset.cast_column('label'" in done.stderr, done.stderr[-2000:]


def test_an_image_folder(tmp_path: Path) -> None:
    for number in range(8):
        path = tmp_path / "folder" / "test" / ("real", "fake")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(flat(60 + 80 * (number % 2), number))
    results = run(coloured, tmp_path / "folder", tmp_path / "r.json")
    assert results.class_counts == {"real": 4, "synthetic": 4} and results.metrics["auc"]["value"] == 1


def test_a_function_that_says_how_unlike_images_are_is_resumed(root: Path, tmp_path: Path) -> None:
    asked: list[int] = []

    def detector(images: Any) -> Any:
        asked.append(len(images))
        p = coloured(images)
        return np.stack([p, 1 - p, 3 * p], axis=1)

    detector.names, detector.fingerprint = ("SD", "GAN"), str(tmp_path)  # type: ignore[attr-defined]
    first, second = (run(detector, root, tmp_path / "r.json") for _ in range(2))
    assert first.to_json() == second.to_json() and sum(asked) == 24


def test_predictions_are_kept_in_the_tests_own_cache() -> None:
    assert str(predictions_folder()).startswith(os.environ["HF_HOME"])


def test_memory_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    """10,000 rows through the whole of it, next to 1,000: what is kept is numbers and names."""
    script = """
        import resource, sys
        from pathlib import Path
        import numpy as np
        from imaginet_hub.evaluation.predictions import PredictionStore
        from imaginet_hub.evaluation.report import evaluate_rows
        from tests.conftest import image_bytes

        def rows(n):
            for number in range(n):
                label = "synthetic" if number % 2 else "real"
                yield {
                    "image": {"bytes": image_bytes(number, (48, 48)), "path": None}, "label": label,
                    "generator": label, "content_type": "photos", "path": f"some/folder/{number}.png",
                }

        def predict(images):
            p = np.random.default_rng(len(images)).random(len(images))
            return np.stack([1 - p, p], axis=1)

        def peak(n):
            store = PredictionStore({"n": n}, 2, Path(sys.argv[1]))
            evaluate_rows(rows(n), predict, track="detection", names=("real", "synthetic"), num_workers=2, store=store,
                          crop_size=256, n_resamples=10, progress=False)
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        small, large = peak(1000), peak(10000)
        print(large - small)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout) < 30, "MB; the images alone are 70, decoded and cropped at 256 px 2,000"


def test_speed_is_measured_where_there_is_a_network(
    dataset: Path, tmp_path: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from imaginet_hub.inference import measure as module

    timed = {
        **{"images_per_second": 10.0, "crop_size": 32, "turns": 6, "batch_size": 8, "device": "a processor"},
        **{"dtype": "float32", "compiled": False, "threads": 2, "torch": "2.15.0"},
        "yardstick": {"name": "resnet50 of timm", "images_per_second": 2.0, "crop_size": 224},
        "ratio": {"value": 5.0, "low": 4.0, "high": 6.0},
    }
    seen = []
    monkeypatch.setattr(module, "measure_speed", lambda detector: seen.append(detector.names) or timed)
    results = run(models["detection"], dataset, tmp_path / "r.json", speed=True)
    assert results.speed == timed and Results.read(tmp_path / "r.json").speed == timed
    assert len(seen) == 1 and sorted(seen[0]) == ["real", "synthetic"]
    assert "10 images a second, 5.000 [4.000, 6.000] times as many as resnet50 of timm" in summary(results)
    assert run(models["detection"], dataset, tmp_path / "again.json").speed is None
    with pytest.raises(UsageError, match="--speed: expected a model of this package"):
        run(red, dataset, tmp_path / "other.json", speed=True)
