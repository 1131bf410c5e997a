import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from imaginet_hub.errors import UsageError
from imaginet_hub.evaluation import detection_metrics, identification_metrics
from imaginet_hub.evaluation.bootstrap import Bootstrap, Strata
from imaginet_hub.evaluation.comparison import compare, compare_identification, compare_results, mcnemar

NAMES = ("GAN", "SD", "Midjourney")


def toy(n=80, seed=0, shift=1.0):
    """Labels and the scores of two detectors that find the same rows hard."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    common = 0.8 * rng.normal(size=n)
    a, b = (stats.norm.cdf(common + 0.6 * rng.normal(size=n) + s * (labels - 0.5)) for s in (shift, 1.0))
    return labels, a, b


def classified(n=90, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n)
    logits = rng.normal(size=(2, n, 3)) + np.array([1.5, 1.0])[:, None, None] * np.eye(3)[labels]
    likely = np.exp(logits)
    return labels, *(likely / likely.sum(axis=2, keepdims=True))


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_exact_binomial_test(a, b):
    expected = stats.binomtest(a, a + b).pvalue if a + b else 1
    assert mcnemar(a, b) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(a, b) == mcnemar(b, a)


def test_mcnemar_of_many_rows():
    assert mcnemar(20_100, 19_900) == pytest.approx(stats.binomtest(20_100, 40_000).pvalue, rel=1e-9)
    assert mcnemar(0, 40_000) == 0  # below what a float can hold
    with pytest.raises(UsageError, match="expected"):
        mcnemar(-1, 3)


def test_a_comparison_counts_and_subtracts():
    labels, a, b = toy()
    found = compare(labels, a, b, threshold=0.4, threshold_b=0.6, bootstrap=Bootstrap(50))
    right_a, right_b = (a >= 0.4) == labels, (b >= 0.6) == labels
    table = np.histogram2d(right_a, right_b, bins=2)[0]
    assert found["n"] == 80
    assert found["mcnemar"] == {
        "only_a_right": table[1, 0],
        "only_b_right": table[0, 1],
        "p_value": pytest.approx(stats.binomtest(int(table[1, 0]), int(table[1, 0] + table[0, 1])).pvalue),
    }
    metrics_a, metrics_b = detection_metrics(labels, a, threshold=0.4), detection_metrics(labels, b, threshold=0.6)
    for name, difference in found["differences"].items():
        assert difference["value"] == pytest.approx(metrics_a[name] - metrics_b[name], abs=1e-12)
        assert difference["low"] <= difference["value"] + 1e-12
        assert difference["high"] >= difference["value"] - 1e-12
    assert list(found["differences"]) == [
        *("balanced_accuracy", "auc", "accuracy", "average_precision"),
        *("eer", "tpr_at_fpr_1", "brier", "nll"),
    ]


@pytest.mark.parametrize("stratified", [False, True], ids=["by class", "by class and stratum"])
def test_both_meet_the_same_drawn_rows(stratified):
    labels, a, b = toy(60)
    strata = np.where(np.arange(60) < 20, "x", "y") if stratified else None
    layers = Strata(labels * 2 + (np.arange(60) >= 20)) if stratified else Strata(labels)
    bootstrap = Bootstrap(70, 0.9, 2)
    areas, right = [], []
    for counts in layers.counts(bootstrap, range(70)):
        rows = np.repeat(np.arange(60), counts)
        areas.append(sk.roc_auc_score(labels[rows], a[rows]) - sk.roc_auc_score(labels[rows], b[rows]))
        right.append(np.mean((a[rows] >= 0.5) == labels[rows]) - np.mean((b[rows] >= 0.5) == labels[rows]))
    found = compare(labels, a, b, bootstrap=bootstrap, strata=strata)["differences"]
    for name, values in {"auc": areas, "accuracy": right}.items():
        expected = np.quantile(values, [0.05, 0.95]).tolist()
        assert [found[name]["low"], found[name]["high"]] == pytest.approx(expected, abs=1e-9)


def test_a_detector_does_not_differ_from_itself():
    labels, a, _ = toy()
    found = compare(labels, a, a, bootstrap=Bootstrap(50))
    assert found["mcnemar"] == {"only_a_right": 0, "only_b_right": 0, "p_value": 1}
    assert all(interval == {"value": 0, "low": 0, "high": 0} for interval in found["differences"].values())


def test_swapping_the_detectors_swaps_the_signs():
    labels, a, b = toy()
    one, other = (compare(labels, *pair, bootstrap=Bootstrap(50)) for pair in ((a, b), (b, a)))
    for name, interval in one["differences"].items():
        mirrored = other["differences"][name]
        assert [-mirrored[key] for key in ("value", "high", "low")] == pytest.approx(list(interval.values()))


def test_pairing_narrows_the_interval_and_covers_as_often_as_it_says():
    truth, covered, widths = 0.0, [], []
    for seed in range(150):
        labels, a, b = toy(120, seed)
        found = compare(labels, a, b, bootstrap=Bootstrap(200, seed=seed))["differences"]["auc"]
        covered.append(found["low"] <= truth <= found["high"])
        widths.append(found["high"] - found["low"])
    assert 0.89 <= np.mean(covered) <= 0.99
    unpaired = 2 * 1.96 * math.sqrt(2) * 0.045  # of two areas of .76 on 60 rows of each class (Hanley & McNeil 1982)
    assert np.mean(widths) < 0.8 * unpaired


def test_one_class_compares_what_needs_one():
    found = compare([1, 1, 1], [0.9, 0.2, 0.7], [0.1, 0.2, 0.3], bootstrap=Bootstrap(20))
    assert found["differences"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert math.isnan(found["differences"]["auc"]["value"])


def test_classifiers_are_compared_alike():
    labels, a, b = classified()
    bootstrap = Bootstrap(60, 0.9, 4)
    found = compare_identification(labels, a, b, NAMES, bootstrap=bootstrap)
    right_a, right_b = a.argmax(axis=1) == labels, b.argmax(axis=1) == labels
    assert found["mcnemar"]["only_a_right"] == (right_a & ~right_b).sum()
    metrics_a, metrics_b = (identification_metrics(labels, values, NAMES) for values in (a, b))
    assert list(found["differences"]) == ["balanced_accuracy", "auc", "accuracy", "macro_f1"]
    for name, difference in found["differences"].items():
        assert difference["value"] == pytest.approx(metrics_a[name] - metrics_b[name], abs=1e-12)
    replicates = []
    for counts in Strata(labels).counts(bootstrap, range(60)):
        rows = np.repeat(np.arange(90), counts)
        f1, auc = (
            [sk.f1_score(labels[rows], values[rows].argmax(axis=1), average="macro") for values in (a, b)],
            [sk.roc_auc_score(labels[rows], values[rows], multi_class="ovr") for values in (a, b)],
        )
        replicates.append([f1[0] - f1[1], auc[0] - auc[1]])
    lows, highs = np.quantile(replicates, [0.05, 0.95], axis=0)
    for name, low, high in zip(("macro_f1", "auc"), lows, highs, strict=True):
        assert found["differences"][name]["low"] == pytest.approx(low, abs=1e-9)
        assert found["differences"][name]["high"] == pytest.approx(high, abs=1e-9)


def results(names, labels, probabilities, paths=None, **facts):
    """What of a results file matters here."""
    paths = [f"{row}.png" for row in range(len(labels))] if paths is None else paths
    rows = [
        {"path": path, "label": names[label], "scores": list(scores), "columns": {}}
        for path, label, scores in zip(paths, labels, probabilities, strict=True)
    ]
    defaults = {
        "track": "detection",
        "names": list(names),
        "model": {"name": "b"},
        "dataset": {"name": "d", "split": "test", "fingerprint": "f0"},
        "preprocessing": {"crop_size": 64, "resize": None, "equalize": None},
        "threshold": 0.5,
        "bootstrap": {"n_resamples": 30, "confidence": 0.95, "seed": 0},
        "per_image": rows,
    }
    return SimpleNamespace(**(defaults | facts))


def test_results_are_matched_by_path_and_class_name():
    labels, a, b = toy(40)
    first = results(("real", "synthetic"), labels, np.stack([1 - a, a], axis=1), threshold=0.4)
    order = np.random.default_rng(0).permutation(40)[5:]
    second = results(
        ("synthetic", "real"),
        1 - labels[order],
        np.stack([b, 1 - b], axis=1)[order],
        [f"{row}.png" for row in order],
        threshold=0.6,
    )
    kept = np.sort(order)
    expected = compare(labels[kept], a[kept], b[kept], threshold=0.4, threshold_b=0.6, bootstrap=Bootstrap(30))
    found = compare_results(first, second)
    assert (found.pop("other"), found.pop("only_here"), found.pop("only_there")) == ({"name": "b"}, 5, 0)
    assert (found.pop("preprocessing"), found.pop("remarks")) == (first.preprocessing, [])
    assert found == expected


def test_rows_of_one_path_are_matched_in_order():
    labels, a, b = toy(40)
    paths = ["same.png"] * 40
    one, other = (results(("real", "synthetic"), labels, np.stack([1 - s, s], axis=1), paths) for s in (a, b))
    assert compare_results(one, other)["mcnemar"] == compare(labels, a, b, bootstrap=Bootstrap(1))["mcnemar"]


NUMBERED = [f"row {row}" for row in range(8)]
UNKNOWN = {"name": "d", "split": "test", "fingerprint": None}


def two_results(paths=None, mine=None, theirs=None):
    """Of two detectors, with other facts of each."""
    labels, a, b = toy(8)
    both = ((a, mine or {}), (b, theirs or {}))
    return [results(("real", "synthetic"), labels, np.stack([1 - s, s], axis=1), paths, **f) for s, f in both]


@pytest.mark.parametrize(
    ("paths", "mine", "theirs", "told"),
    [
        (
            None,
            {},
            {"dataset": {"name": "e", "split": "test", "fingerprint": "f1"}},
            r"d/test and e/test .* f0 and f1",
        ),
        (None, {"dataset": UNKNOWN}, {"dataset": UNKNOWN | {"perturbed": {"seed": 1}}}, "perturbed or not"),
        (NUMBERED, {"dataset": UNKNOWN}, {"dataset": {"name": "e"}}, "numbered rows alone"),
        (NUMBERED, {}, {"dataset": UNKNOWN}, "numbered rows alone"),
    ],
    ids=["other images", "perturbed", "rows of unknown datasets", "rows of one unknown dataset"],
)
def test_different_images_are_not_taken_for_the_same(paths, mine, theirs, told):
    one, other = two_results(paths, mine, theirs)
    with pytest.raises(UsageError, match=told) as caught:
        compare_results(one, other)
    assert "evaluate both" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbered_rows_are_matched_where_fingerprints_agree():
    found = compare_results(*two_results(NUMBERED))
    assert (found["n"], found["remarks"]) == (8, [])
    paths = [*NUMBERED[:4], *"abcd"]
    found = compare_results(*two_results(paths, {"dataset": UNKNOWN}, {"dataset": UNKNOWN}))
    assert (found["n"], found["only_here"], found["only_there"]) == (4, 4, 4)
    assert [remark.split(":")[0] for remark in found["remarks"]] == [
        "Images were matched by path alone",
        "Left out",
    ]


def test_other_preparation_is_told():
    prepared = {"crop_size": 32, "resize": None, "equalize": "jpeg:10"}
    found = compare_results(*two_results(theirs={"preprocessing": prepared}))
    assert found["preprocessing"] == prepared
    (remark,) = found["remarks"]
    assert "crop_size 64, equalize none against crop_size 32, equalize jpeg:10" in remark


def test_images_of_unknown_classes_are_left_out_and_told():
    labels, a, b = classified(20)
    one, other = (results(NAMES, labels, values, track="identification", threshold=None) for values in (a, b))
    expected = compare_results(one, other)
    for part in (one, other):
        part.per_image.append({"path": "x.png", "label": "Imagen", "scores": [0.2, 0.3, 0.5], "columns": {}})
    found = compare_results(one, other)
    assert found.pop("remarks") == ["Left out: 1 image of classes that the models do not know."]
    assert expected.pop("remarks") == []
    assert found == expected
    for part in (one, other):
        del part.per_image[:-1]
    with pytest.raises(UsageError, match="GAN, SD, Midjourney, got 1 of others"):
        compare_results(one, other)


def test_results_of_classifiers():
    labels, a, b = classified()
    one, other = (results(NAMES, labels, values, track="identification", threshold=None) for values in (a, b))
    expected = compare_identification(labels, a, b, NAMES, bootstrap=Bootstrap(30))
    assert compare_results(one, other)["differences"] == expected["differences"]


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"per_image": None}, "per_image"),
        ({"track": "identification"}, "one track"),
        ({"names": ["real", "fake"]}, "one set of classes"),
        ({"per_image": []}, "the same images"),
        ({"per_image": [{"path": "0.png", "label": "synthetic", "scores": [0, 1], "columns": {}}]}, r"0\.png"),
    ],
    ids=["no scores", "track", "names", "no image", "label"],
)
def test_results_that_do_not_fit_are_refused(facts, told):
    first = results(("real", "synthetic"), [0, 1], [[0.9, 0.1], [0.2, 0.8]])
    second = SimpleNamespace(**(vars(first) | facts))
    with pytest.raises(UsageError, match=told):
        compare_results(first, second)


def test_unusable_input_is_refused():
    with pytest.raises(UsageError, match="expected"):
        compare([0, 1], [0.1, 0.9], [0.1])
    with pytest.raises(UsageError, match="stratum"):
        compare([0, 1], [0.1, 0.9], [0.1, 0.9], strata=["a"])
    with pytest.raises(UsageError, match="threshold"):
        compare([0, 1], [0.1, 0.9], [0.1, 0.9], threshold_b=1.5)
    with pytest.raises(UsageError, match="expected"):
        compare_identification([0, 1], [[1, 0], [0, 1]], [[1, 0]], ("a", "b"))
