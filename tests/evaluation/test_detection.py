import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats
from sklearn import metrics as sk

from imaginet_hub.errors import UsageError
from imaginet_hub.evaluation import detection_metrics, detection_report
from imaginet_hub.evaluation.bootstrap import Bootstrap
from imaginet_hub.evaluation.detection import METRICS

FEW = {"n_resamples": 50}


@st.composite
def scored(draw, levels=8):
    """Labels of both classes and scores with many ties."""
    n = draw(st.integers(2, 40))
    labels = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n).filter(lambda x: 0 < sum(x) < len(x)))
    scores = draw(st.lists(st.integers(0, levels), min_size=n, max_size=n))
    return np.array(labels), np.array(scores) / levels


def toy(n=300, shift=1.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    return labels, stats.norm.cdf(rng.normal(size=n) + shift * (labels - 0.5))


def equal_error_rate(labels, scores):
    """Where the ROC polyline, walked from corner to corner, meets the diagonal FPR = 1 - TPR."""
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    corners = np.arange(len(fpr))
    at = optimize.brentq(
        lambda u: 1 - np.interp(u, corners, tpr) - np.interp(u, corners, fpr), 0, corners[-1], xtol=1e-14
    )
    return np.interp(at, corners, fpr)


@given(scored(), st.sampled_from([0.0, 0.25, 0.5, 0.6, 1.0]))
def test_metrics_equal_scikit_learn(data, threshold):
    labels, scores = data
    called = scores >= threshold
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    expected = {
        "balanced_accuracy": sk.balanced_accuracy_score(labels, called),
        "accuracy": sk.accuracy_score(labels, called),
        "auc": sk.roc_auc_score(labels, scores),
        "average_precision": sk.average_precision_score(labels, scores),
        "eer": equal_error_rate(labels, scores),
        "tpr_at_fpr_1": tpr[fpr <= 0.01].max(),
        "n_real": (labels == 0).sum(),
        "n_synthetic": labels.sum(),
    }
    assert detection_metrics(labels, scores, threshold=threshold) == pytest.approx(expected, abs=1e-9)


def test_metrics_equal_scikit_learn_on_many_distinct_scores():
    labels, scores = toy(5000)
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    found = detection_metrics(labels, scores)
    assert found["auc"] == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-9)
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(labels, scores), abs=1e-9)
    assert found["eer"] == pytest.approx(equal_error_rate(labels, scores), abs=1e-9)
    assert found["tpr_at_fpr_1"] == tpr[fpr <= 0.01].max()


@given(scored())
def test_laws(data):
    labels, scores = data
    found = detection_metrics(labels, scores)
    mirrored = detection_metrics(1 - labels, 1 - scores, threshold=0.5)
    assert detection_metrics(labels, 1 - scores)["auc"] == pytest.approx(1 - found["auc"])
    assert mirrored["auc"] == pytest.approx(found["auc"])
    assert mirrored["eer"] == pytest.approx(found["eer"])
    assert detection_metrics(labels, scores**2)["auc"] == pytest.approx(found["auc"])  # ranks are all that counts
    order = np.random.default_rng(0).permutation(len(labels))
    assert detection_metrics(labels[order], scores[order]) == found
    assert detection_metrics(np.tile(labels, 2), np.tile(scores, 2))["auc"] == pytest.approx(found["auc"])
    assert all(0 <= found[name] <= 1 for name in METRICS)


def test_all_scores_tied_is_chance():
    found = detection_metrics([0, 0, 0, 1], [0.7] * 4)
    assert (found["auc"], found["eer"], found["average_precision"]) == (0.5, 0.5, 0.25)
    assert (found["tpr_at_fpr_1"], found["balanced_accuracy"], found["accuracy"]) == (0, 0.5, 0.25)


def test_a_score_at_the_threshold_is_called_synthetic():
    assert detection_metrics([0, 1], [0.2, 0.5])["accuracy"] == 1
    assert detection_metrics([0, 1], [0.2, 0.5], threshold=0.51)["accuracy"] == 0.5


def test_perfect_and_reversed():
    perfect = detection_metrics([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])
    assert [perfect[name] for name in METRICS] == [1, 1, 1, 1, 0, 1]
    reversed_ = detection_metrics([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9])
    assert (reversed_["auc"], reversed_["eer"], reversed_["accuracy"]) == (0, 1, 0)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_leaves_accuracy_only(label):
    found = detection_metrics([label] * 3, [0.1, 0.2, 0.9])
    assert found["accuracy"] == pytest.approx(1 / 3 if label else 2 / 3)
    assert all(math.isnan(found[name]) for name in METRICS if name != "accuracy")
    report = detection_report([label] * 3, [0.1, 0.2, 0.9], {"generator": ["x"] * 3, "source": ["s"] * 3}, **FEW)
    assert math.isnan(report["metrics"]["auc"]["low"])
    assert report["metrics"]["accuracy"]["low"] <= report["metrics"]["accuracy"]["high"]
    assert list(report["by"]["generator"]) == (["x"] if label else [])
    assert math.isnan(report["baselines"]["majority"]["balanced_accuracy"])


@pytest.mark.parametrize(
    ("labels", "scores", "options"),
    [
        ([], [], {}),
        ([0, 1], [0.5], {}),
        ([[0, 1]], [[0.5, 0.5]], {}),
        ([0, 2], [0.5, 0.5], {}),
        ([0, 1], [0.5, float("nan")], {}),
        ([0, 1], [0.5, 1.5], {}),
        ([0, 1], [-3.0, 0.5], {}),
        ([0, 1], [0.5, 0.5], {"threshold": float("nan")}),
        ([0, 1], [0.5, 0.5], {"threshold": 2}),
    ],
)
def test_unusable_input_is_refused(labels, scores, options):
    with pytest.raises(UsageError, match="expected"):
        detection_metrics(labels, scores, **options)
    with pytest.raises(UsageError, match="expected"):
        detection_report(labels, scores, {}, **options)


@pytest.mark.parametrize("options", [{"n_resamples": 0}, {"confidence": 1.0}, {"confidence": 0}, {"seed": -1}])
def test_unusable_resampling_is_refused(options):
    with pytest.raises(UsageError, match="expected"):
        detection_report([0, 1], [0.1, 0.9], {}, **options)


def test_a_column_of_another_length_is_refused():
    with pytest.raises(UsageError, match="'source'"):
        detection_report([0, 1], [0.1, 0.9], {"source": ["a"]})


def test_intervals_are_percentiles_of_the_metric_on_resampled_rows():
    labels, scores = toy(60)
    scores = np.round(scores, 1)
    strata = [np.flatnonzero(labels == label) for label in (0, 1)]
    drawn = [
        np.concatenate(rows)
        for real, synthetic in Bootstrap(80, 0.9, 7).resamples(strata)
        for rows in zip(real, synthetic, strict=True)
    ]
    assert len(drawn) == 80
    report = detection_report(labels, scores, {}, n_resamples=80, seed=7, confidence=0.9)
    references = {
        "auc": lambda rows: sk.roc_auc_score(labels[rows], scores[rows]),
        "average_precision": lambda rows: sk.average_precision_score(labels[rows], scores[rows]),
        "balanced_accuracy": lambda rows: sk.balanced_accuracy_score(labels[rows], scores[rows] >= 0.5),
        "eer": lambda rows: equal_error_rate(labels[rows], scores[rows]),
    }
    for name, reference in references.items():
        low, high = np.quantile([reference(rows) for rows in drawn], [0.05, 0.95])
        assert report["metrics"][name]["low"] == pytest.approx(low, abs=1e-9)
        assert report["metrics"][name]["high"] == pytest.approx(high, abs=1e-9)
    assert report["recall"]["synthetic"]["value"] == sk.recall_score(labels, scores >= 0.5)
    assert report["confusion"] == sk.confusion_matrix(labels, scores >= 0.5).tolist()


def test_resamples_in_chunks_are_complete(monkeypatch):
    monkeypatch.setattr("imaginet_hub.evaluation.bootstrap._CHUNK", 7)
    chunks = list(Bootstrap(10, 0.95, 0).resamples([np.arange(2), np.arange(1)]))
    assert [len(first) for first, _ in chunks] == [2] * 5


@given(scored())
def test_intervals_contain_the_value(data):
    report = detection_report(*data, {}, n_resamples=400)
    for name in ("balanced_accuracy", "auc", "accuracy"):
        metric = report["metrics"][name]
        if min(report["n_real"], report["n_synthetic"]) == 1:
            assert math.isnan(metric["low"])
            assert math.isnan(metric["high"])
            continue
        assert metric["low"] - 1e-12 <= metric["value"] <= metric["high"] + 1e-12


def test_intervals_cover_the_truth_as_often_as_they_say():
    truth = stats.norm.cdf(1 / math.sqrt(2))
    reports = [detection_report(*toy(120, seed=seed), {}, n_resamples=200)["metrics"]["auc"] for seed in range(200)]
    coverage = np.mean([report["low"] <= truth <= report["high"] for report in reports])
    assert 0.90 <= coverage <= 0.99


def test_the_same_seed_gives_the_same_report_whatever_else_is_reported():
    labels, scores = toy(100)
    columns = {"content_type": ["faces", "photos"] * 50, "source": ["a", "a", "b", "b"] * 25}
    both = detection_report(labels, scores, columns, seed=3, **FEW)
    again = detection_report(labels, scores, columns, seed=3, **FEW)
    alone = detection_report(labels, scores, {"source": columns["source"]}, seed=3, **FEW)
    other = detection_report(labels, scores, columns, seed=4, **FEW)
    assert repr(both) == repr(again)  # repr, since NaN != NaN
    assert repr(both["by"]["source"]) == repr(alone["by"]["source"])
    assert repr(both["by"]["source"]) != repr(other["by"]["source"])


def test_generators_meet_all_real_rows_and_other_columns_their_own():
    labels = np.array([0, 0, 0, 1, 1, 1])
    scores = np.array([0.1, 0.6, 0.3, 0.9, 0.2, 0.7])
    groups = {
        "generator": ["real", "real", "real", "SDXL", "SDXL", "ProGAN"],
        "content_type": ["faces", "photos", "photos", "faces", "photos", "photos"],
    }
    by = detection_report(labels, scores, groups, **FEW)["by"]
    assert list(by["generator"]) == ["ProGAN", "SDXL"]
    assert {key: by["generator"]["SDXL"][key] for key in ("n", "n_real", "n_synthetic")} == {
        "n": 5,
        "n_real": 3,
        "n_synthetic": 2,
    }
    sdxl, faces = by["generator"]["SDXL"], by["content_type"]["faces"]
    assert sdxl["metrics"]["auc"]["value"] == pytest.approx(sk.roc_auc_score(labels[:5], scores[:5]))
    photos = [1, 2, 4, 5]
    assert by["content_type"]["photos"]["metrics"]["auc"]["value"] == pytest.approx(
        sk.roc_auc_score(labels[photos], scores[photos])
    )
    assert faces["n"] == 2


def test_majority_baseline():
    report = detection_report([0, 0, 0, 1], [0.1, 0.2, 0.3, 0.9], {}, **FEW)
    assert report["baselines"]["majority"] == {"class": "real", "accuracy": 0.75, "balanced_accuracy": 0.5}
