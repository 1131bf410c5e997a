import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imaginet_hub import metrics
from imaginet_hub.errors import UsageError
from imaginet_hub.evaluation import (
    detection_metrics,
    detection_report,
    identification_metrics,
    identification_report,
)
from imaginet_hub.evaluation.detection import METRICS
from imaginet_hub.evaluation.identification import METRICS as IDENTIFICATION_METRICS

evaluate = pytest.importorskip("evaluate")

FAMILIES = ("GAN", "SD", "Midjourney", "DALL-E 3")


@pytest.fixture(scope="module", params=["folder", "file"])
def load(request, tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("evaluate"))

    def loaded(track):
        path = Path(metrics.path(track))
        if request.param == "file":
            path /= f"{path.name}.py"
        return evaluate.load(str(path), cache_dir=cache)

    return loaded


def detected(n=60):
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    return labels, (rng.random(n) + labels) / 2


def identified(n=60):
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 4
    likely = rng.random((n, 4)) + np.eye(4)[labels]
    return labels, likely / likely.sum(axis=1, keepdims=True)


def test_detection_is_the_plain_function(load):
    labels, scores = detected()
    found = load("detection").compute(predictions=scores, references=labels, threshold=0.3)
    assert found == detection_metrics(labels, scores, threshold=0.3)  # all of float64 arrives
    assert list(found)[: len(METRICS)] == list(METRICS)
    assert all(isinstance(value, float) for value in found.values())


def test_identification_is_the_plain_function(load):
    labels, probabilities = identified()
    found = load("identification").compute(predictions=probabilities, references=labels)
    expected = identification_metrics(labels, probabilities, FAMILIES)
    assert {name: found[name] for name in IDENTIFICATION_METRICS} == {
        name: expected[name] for name in IDENTIFICATION_METRICS
    }
    assert {name: found[f"recall {name}"] for name in FAMILIES} == expected["recall"]
    assert found.pop("confusion") == expected["confusion"]
    assert all(isinstance(value, float) for value in found.values())
    told = load("identification").compute(
        predictions=probabilities, references=labels, unknown=[True, False, True, False], unlike=[0.9, 0.1, 0.4, 0.6]
    )
    assert told["unknown_auroc"] == 0.75
    named = load("identification").compute(predictions=probabilities, references=labels, names=list("abcd"))
    assert named["recall b"] == found["recall SD"]


def test_batches_add_up(load):
    labels, scores = detected()
    module = load("detection")
    for start in range(0, 60, 25):
        module.add_batch(predictions=scores[start : start + 25], references=labels[start : start + 25].tolist())
    assert module.compute() == detection_metrics(labels, scores)
    labels, probabilities = identified()
    module = load("identification")
    for start in range(0, 60, 25):
        module.add_batch(predictions=probabilities[start : start + 25], references=labels[start : start + 25])
    whole = load("identification").compute(predictions=probabilities.tolist(), references=labels.tolist())
    assert module.compute() == whole


def test_groups_and_intervals(load):
    labels, scores = detected()
    groups = {"content_type": ["faces", "photos", "photos"] * 20}
    found = load("detection").compute(predictions=scores, references=labels, groups=groups, n_resamples=30, seed=2)
    report = detection_report(labels, scores, groups, n_resamples=30, seed=2)
    assert found["intervals"] == report["metrics"]
    assert found["by"] == report["by"]
    found = load("detection").compute(predictions=scores, references=labels, groups=groups)
    assert "intervals" not in found
    assert (
        found["by"]["content_type"]["faces"]["metrics"]["auc"]
        == (report["by"]["content_type"]["faces"]["metrics"]["auc"]["value"])
    )
    assert "by" not in load("detection").compute(predictions=scores, references=labels, n_resamples=3)

    labels, probabilities = identified()
    found = load("identification").compute(
        predictions=probabilities, references=labels, groups=groups, n_resamples=30, seed=2
    )
    report = identification_report(labels, probabilities, FAMILIES, groups, n_resamples=30, seed=2)
    assert found["intervals"] == report["metrics"]
    assert found["by"] == report["by"]


def test_unusable_scores_are_refused(load):
    with pytest.raises(UsageError, match="NaN"):
        load("detection").compute(predictions=[0.5, float("nan")], references=[0, 1])


@pytest.mark.parametrize("track", ["detection", "identification"])
def test_modules_describe_themselves(load, track):
    module = load(track)
    assert "2407.20020" in module.citation
    assert module.description
    for word in ("predictions", "references", "groups", "n_resamples", "seed", "names", "threshold", "Returns"):
        assert word in module.inputs_description


def test_another_track_is_refused():
    with pytest.raises(UsageError, match="detection, identification"):
        metrics.path("segmentation")


def test_modules_load_offline_from_any_folder(tmp_path):
    program = (
        "import doctest, evaluate\n"
        "from imaginet_hub import metrics\n"
        "for track in ('detection', 'identification'):\n"
        "    module = evaluate.load(metrics.path(track))\n"
        "    case = doctest.DocTestParser().get_doctest(module.inputs_description, {}, track, None, 0)\n"
        "    assert case.examples\n"
        "    assert doctest.DocTestRunner().run(case).failed == 0\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
