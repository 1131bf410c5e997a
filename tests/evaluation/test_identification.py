import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from imaginet_hub import calibration
from imaginet_hub.errors import UsageError
from imaginet_hub.evaluation import identification_metrics, identification_report
from imaginet_hub.evaluation.bootstrap import Bootstrap
from imaginet_hub.evaluation.identification import METRICS, unknown_auroc

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
    assert found["ece"] == pytest.approx(calibration.expected_calibration_error(probabilities, labels), abs=1e-9)
    assert found["brier"] == pytest.approx(calibration.brier_score(probabilities, labels), abs=1e-9)
    assert found["nll"] == pytest.approx(sk.log_loss(labels, probabilities, labels=range(3)), abs=1e-9)
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


def reference(labels, probabilities):
    """Every metric by other people's code."""
    answers = probabilities.argmax(axis=1)
    areas = [sk.roc_auc_score(labels == label, probabilities[:, label]) for label in range(3)]
    return {
        "balanced_accuracy": sk.balanced_accuracy_score(labels, answers),
        "auc": np.mean(areas),
        "accuracy": sk.accuracy_score(labels, answers),
        "macro_f1": sk.f1_score(labels, answers, average="macro"),
        "ece": calibration.expected_calibration_error(probabilities, labels),
        "brier": calibration.brier_score(probabilities, labels),
        "nll": calibration.negative_log_likelihood(probabilities, labels),
    }


@pytest.mark.parametrize("cells", [400_000, 400], ids=["one chunk", "many chunks"])
def test_intervals_are_percentiles_of_the_metric_on_resampled_rows(monkeypatch, cells):
    monkeypatch.setattr("imaginet_hub.evaluation.bootstrap._CELLS", cells)
    labels, logits = toy(60)
    probabilities = np.round(logits, 1)
    probabilities[:, 0] = 1 - probabilities[:, 1:].sum(axis=1).clip(0, 1)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    bootstrap = Bootstrap(60, 0.9, 5)
    strata = [np.flatnonzero(labels == label) for label in range(3)]
    replicates = []
    for chunk in bootstrap.chunks(60):
        counts = [bootstrap.counts(chunk, len(rows), f"all class {label}") for label, rows in enumerate(strata)]
        for times in zip(*counts, strict=True):
            rows = np.concatenate([np.repeat(rows, n) for rows, n in zip(strata, times, strict=True)])
            replicates.append(reference(labels[rows], probabilities[rows]))
    assert len(replicates) == 60
    report = identification_report(labels, probabilities, NAMES, {}, n_resamples=60, seed=5, confidence=0.9)
    for name in METRICS:
        low, high = np.quantile([values[name] for values in replicates], [0.05, 0.95])
        assert report["metrics"][name]["low"] == pytest.approx(low, abs=1e-9)
        assert report["metrics"][name]["high"] == pytest.approx(high, abs=1e-9)


@given(classified())
def test_laws(data):
    labels, probabilities = data
    found = identification_metrics(labels, probabilities, NAMES)
    order = np.random.default_rng(0).permutation(len(labels))
    for rows in (order, np.tile(order, 2)):
        other = identification_metrics(labels[rows], probabilities[rows], NAMES)
        assert [other[name] for name in METRICS] == pytest.approx([found[name] for name in METRICS], nan_ok=True)
    assert all(0 <= found[name] <= 1 for name in ("accuracy", "balanced_accuracy", "macro_f1", "ece"))
    assert 0 <= found["brier"] <= 2
    assert found["nll"] >= 0


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 5)), min_size=1, max_size=30))
def test_unknown_auroc_equals_scikit_learn(rows):
    known, scores = np.array([row[0] for row in rows]), np.array([row[1] * 1e3 for row in rows])
    found = unknown_auroc(known, scores, bootstrap=Bootstrap(20))
    if known.all() or not known.any():
        assert math.isnan(found["value"])
        return
    assert found["value"] == pytest.approx(sk.roc_auc_score(~known, scores), abs=1e-9)
    if min(known.sum(), (~known).sum()) > 1:
        assert 0 <= found["low"] <= found["high"] <= 1


def test_unknown_auroc_has_an_interval_that_covers():
    truth = 0.7602499389065233  # P(N(1, 1) > N(0, 1))
    covered = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        known = rng.random(150) < 0.6
        found = unknown_auroc(known, rng.normal(size=150) + ~known, bootstrap=Bootstrap(200, seed=seed))
        covered.append(found["low"] <= truth <= found["high"])
    assert 0.89 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize(
    ("known", "scores"),
    [([], []), ([True], [1, 2]), ([True, False], [1, math.nan]), ([0, 2], [1, 2]), ([[True]], [[1]])],
    ids=["no rows", "length", "NaN", "not boolean", "shape"],
)
def test_unusable_scores_of_unknown_rows_are_refused(known, scores):
    with pytest.raises(UsageError, match="expected"):
        unknown_auroc(known, scores)


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
    # Both of two rows right: Wilson's bound.
    assert report["recall"]["GAN"] == pytest.approx({"value": 1, "low": 2 / (2 + 1.959963984540054**2), "high": 1})
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
