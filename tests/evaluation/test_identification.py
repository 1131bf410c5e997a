import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from imaginet_hub.errors import UsageError
from imaginet_hub.evaluation import identification_metrics, identification_report
from imaginet_hub.evaluation.bootstrap import Bootstrap
from imaginet_hub.evaluation.identification import METRICS

NAMES = ("GAN", "SD", "Midjourney")
FEW = {"n_resamples": 50}


@st.composite
def classified(draw, k=3):
    """Labels, not every class always there, and probabilities with ties."""
    n = draw(st.integers(1, 30))
    labels = draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n))
    weights = draw(st.lists(st.lists(st.integers(1, 4), min_size=k, max_size=k), min_size=n, max_size=n))
    return np.array(labels), np.array(weights) / np.sum(weights, axis=1, keepdims=True)


def toy(n=240, k=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(k, size=n)
    logits = rng.normal(size=(n, k)) + 1.2 * np.eye(k)[labels]
    return labels, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@given(classified())
def test_metrics_equal_scikit_learn(data):
    labels, probabilities = data
    answers = probabilities.argmax(axis=1)
    present = np.unique(labels)
    found = identification_metrics(labels, probabilities, NAMES)
    recalls = sk.recall_score(labels, answers, labels=range(3), average=None, zero_division=np.nan)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, answers), abs=1e-9)
    assert found["macro_f1"] == pytest.approx(sk.f1_score(labels, answers, average="macro"), abs=1e-9)
    assert found["balanced_accuracy"] == pytest.approx(np.nanmean(recalls), abs=1e-9)
    assert list(found["recall"].values()) == pytest.approx(recalls.tolist(), abs=1e-9, nan_ok=True)
    assert found["confusion"] == sk.confusion_matrix(labels, answers, labels=range(3)).tolist()
    if len(present) > 1:
        areas = [sk.roc_auc_score(labels == label, probabilities[:, label]) for label in present]
        assert found["auc"] == pytest.approx(np.mean(areas), abs=1e-9)
    else:
        assert math.isnan(found["auc"])


def test_auc_equals_scikit_learns_one_vs_rest():
    labels, probabilities = toy()
    expected = sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert identification_metrics(labels, probabilities, NAMES)["auc"] == pytest.approx(expected, abs=1e-9)


@given(classified(), st.permutations(range(3)))
def test_class_order_does_not_matter(data, order):
    labels, probabilities = data
    probabilities = probabilities + np.arange(3) * 1e-6  # no ties, which go to the first class
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    new = np.argsort(order)
    found = identification_metrics(labels, probabilities, NAMES)
    moved = identification_metrics(new[labels], probabilities[:, order], [NAMES[i] for i in order])
    assert [moved[name] for name in METRICS] == pytest.approx([found[name] for name in METRICS], nan_ok=True)
    assert moved["recall"] == pytest.approx(found["recall"], nan_ok=True)


@given(classified())
def test_intervals_contain_the_value(data):
    report = identification_report(*data, NAMES, {}, n_resamples=400)
    for name in ("accuracy", "balanced_accuracy"):
        metric = report["metrics"][name]
        if report["n"] == 1:
            assert math.isnan(metric["low"])
            continue
        assert metric["low"] - 1e-12 <= metric["value"] <= metric["high"] + 1e-12


def test_intervals_are_percentiles_of_the_metric_on_resampled_rows():
    labels, probabilities = toy(60)
    probabilities = np.round(probabilities, 1)
    answers = probabilities.argmax(axis=1)
    strata = [np.flatnonzero(labels == label) for label in range(3)]
    drawn = [
        np.concatenate(rows) for parts in Bootstrap(60, 0.9, 5).resamples(strata) for rows in zip(*parts, strict=True)
    ]
    references = {
        "accuracy": lambda rows: sk.accuracy_score(labels[rows], answers[rows]),
        "balanced_accuracy": lambda rows: sk.balanced_accuracy_score(labels[rows], answers[rows]),
        "macro_f1": lambda rows: sk.f1_score(labels[rows], answers[rows], average="macro"),
        "auc": lambda rows: np.mean(
            [sk.roc_auc_score(labels[rows] == label, probabilities[rows, label]) for label in range(3)]
        ),
    }
    report = identification_report(labels, probabilities, NAMES, {}, n_resamples=60, seed=5, confidence=0.9)
    for name, reference in references.items():
        low, high = np.quantile([reference(rows) for rows in drawn], [0.05, 0.95])
        assert report["metrics"][name]["low"] == pytest.approx(low, abs=1e-9)
        assert report["metrics"][name]["high"] == pytest.approx(high, abs=1e-9)


def test_report_by_group():
    labels, probabilities = toy(90)
    groups = {"generator": [f"{NAMES[label]} 1" for label in labels], "content_type": ["faces", "photos"] * 45}
    report = identification_report(labels, probabilities, NAMES, groups, seed=1, **FEW)
    answers = probabilities.argmax(axis=1)
    assert report["by"]["generator"]["SD 1"]["metrics"].keys() == {"accuracy"}
    assert report["by"]["generator"]["SD 1"]["metrics"]["accuracy"]["value"] == pytest.approx(
        np.mean(answers[labels == 1] == 1)
    )
    assert report["by"]["content_type"]["faces"]["metrics"]["macro_f1"]["value"] == pytest.approx(
        sk.f1_score(labels[::2], answers[::2], average="macro")
    )
    assert report["class_counts"] == {name: int((labels == i).sum()) for i, name in enumerate(NAMES)}
    assert sum(map(sum, report["confusion"])) == report["n"] == 90
    assert repr(identification_report(labels, probabilities, NAMES, groups, seed=1, **FEW)) == repr(report)


def test_majority_baseline_counts_the_classes_that_occur():
    labels, probabilities = [0, 0, 2], np.full((3, 3), 1 / 3)
    report = identification_report(labels, probabilities, NAMES, {}, **FEW)
    assert report["baselines"]["majority"] == {
        "class": "GAN",
        "accuracy": pytest.approx(2 / 3),
        "balanced_accuracy": 0.5,
    }
    assert math.isnan(report["recall"]["SD"]["value"])
    assert report["recall"]["GAN"] == {"value": 1, "low": 1, "high": 1}
    assert report["recall"]["Midjourney"] == pytest.approx(
        {"value": 0, "low": math.nan, "high": math.nan}, nan_ok=True
    )


@pytest.mark.parametrize(
    ("labels", "probabilities", "names"),
    [
        ([], np.empty((0, 3)), NAMES),
        ([0], [[0.5, 0.5]], NAMES),
        ([0, 1], [[1, 0, 0]], NAMES),
        ([3], [[1, 0, 0]], NAMES),
        ([-1], [[1, 0, 0]], NAMES),
        ([0], [[1, float("nan"), 0]], NAMES),
        ([0], [[2, -1, 0]], NAMES),
        ([0], [[1, 0]], ("SD", "SD")),
        ([0], np.empty((1, 0)), ()),
    ],
)
def test_unusable_input_is_refused(labels, probabilities, names):
    with pytest.raises(UsageError, match="expected"):
        identification_metrics(labels, probabilities, names)
    with pytest.raises(UsageError, match="expected"):
        identification_report(labels, probabilities, names, {})
