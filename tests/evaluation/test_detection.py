import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats
from sklearn import metrics as sk

from imaginet_hub import calibration
from imaginet_hub.errors import UsageError
from imaginet_hub.evaluation import detection_metrics, detection_report
from imaginet_hub.evaluation.bootstrap import Bootstrap, Strata
from imaginet_hub.evaluation.detection import METRICS, weighted_groups

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


def reference(labels, scores, threshold=0.5):
    """Every metric by other people's code."""
    called = scores >= threshold
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    both = np.stack([1 - scores, scores], axis=1)
    return {
        "balanced_accuracy": sk.balanced_accuracy_score(labels, called),
        "auc": sk.roc_auc_score(labels, scores),
        "accuracy": sk.accuracy_score(labels, called),
        "average_precision": sk.average_precision_score(labels, scores),
        "eer": equal_error_rate(labels, scores),
        "tpr_at_fpr_1": tpr[fpr <= 0.01].max(),
        "tpr_at_fpr_0_1": tpr[fpr <= 0.001].max(),
        "ece": calibration.expected_calibration_error(both, labels),
        "brier": sk.brier_score_loss(labels, scores),
        "nll": sk.log_loss(labels, scores, labels=[0, 1]),
    }


@given(scored(), st.sampled_from([0.0, 0.25, 0.5, 0.6, 1.0]))
def test_metrics_equal_scikit_learn(data, threshold):
    labels, scores = data
    expected = reference(labels, scores, threshold) | {"n_real": (labels == 0).sum(), "n_synthetic": labels.sum()}
    assert detection_metrics(labels, scores, threshold=threshold) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("decimals", [17, 3, 1], ids=lambda decimals: f"{decimals} decimals")
def test_metrics_equal_scikit_learn_on_many_scores(decimals):
    labels, scores = toy(5000)
    scores = np.round(scores, decimals)
    found = detection_metrics(labels, scores)
    assert {name: found[name] for name in METRICS} == pytest.approx(reference(labels, scores), abs=1e-9)


@given(scored())
def test_probabilities_are_judged_as_by_calibration(data):
    labels, scores = data
    both = np.stack([1 - scores, scores], axis=1)
    found = detection_metrics(labels, scores)
    assert found["brier"] == pytest.approx(calibration.brier_score(both, labels) / 2)
    assert found["nll"] == pytest.approx(calibration.negative_log_likelihood(both, labels))


@given(scored())
def test_laws(data):
    labels, scores = data
    found = detection_metrics(labels, scores)
    mirrored = detection_metrics(1 - labels, 1 - scores, threshold=0.5)
    assert detection_metrics(labels, 1 - scores)["auc"] == pytest.approx(1 - found["auc"])
    assert mirrored["auc"] == pytest.approx(found["auc"])
    for name in ("eer", "brier", "nll"):
        assert mirrored[name] == pytest.approx(found[name])
    squared = detection_metrics(labels, scores**2)
    for name in ("auc", "average_precision", "eer", "tpr_at_fpr_1", "tpr_at_fpr_0_1"):  # ranks are all that counts
        assert squared[name] == pytest.approx(found[name])
    order = np.random.default_rng(0).permutation(len(labels))
    assert detection_metrics(labels[order], scores[order]) == found
    twice = detection_metrics(np.tile(labels, 2), np.tile(scores, 2))
    assert [twice[name] for name in METRICS] == pytest.approx([found[name] for name in METRICS])
    assert all(0 <= found[name] <= 1 for name in METRICS if name != "nll")
    assert 0 <= found["nll"] <= 36.05


def test_all_scores_tied_is_chance():
    found = detection_metrics([0, 0, 0, 1], [0.7] * 4)
    assert (found["auc"], found["eer"], found["average_precision"]) == (0.5, 0.5, 0.25)
    assert (found["tpr_at_fpr_1"], found["balanced_accuracy"], found["accuracy"]) == (0, 0.5, 0.25)


def test_a_score_at_the_threshold_is_called_synthetic():
    assert detection_metrics([0, 1], [0.2, 0.5])["accuracy"] == 1
    assert detection_metrics([0, 1], [0.2, 0.5], threshold=0.51)["accuracy"] == 0.5


def test_perfect_and_reversed():
    perfect = detection_metrics([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9])
    assert [perfect[name] for name in METRICS[:7]] == [1, 1, 1, 1, 0, 1, 1]
    certain = detection_metrics([0, 0, 1, 1], [0, 0, 1, 1])
    assert [certain[name] for name in METRICS] == [1, 1, 1, 1, 0, 1, 1, 0, 0, 0]
    reversed_ = detection_metrics([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9])
    assert (reversed_["auc"], reversed_["eer"], reversed_["accuracy"]) == (0, 1, 0)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_leaves_means_over_rows_only(label):
    found = detection_metrics([label] * 3, [0.1, 0.2, 0.9])
    assert found["accuracy"] == pytest.approx(1 / 3 if label else 2 / 3)
    means = {"accuracy", "ece", "brier", "nll"}
    assert found["brier"] == pytest.approx((0.81 + 0.64 + 0.01 if label else 0.01 + 0.04 + 0.81) / 3)
    assert {name for name in METRICS if not math.isnan(found[name])} == means
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


def drawn_rows(labels, bootstrap, key):
    """The rows of each resample, written out."""
    strata = {name: np.flatnonzero(labels == label) for label, name in enumerate(("real", "synthetic"))}
    for chunk in bootstrap.chunks(len(labels)):
        counts = [bootstrap.counts(chunk, len(rows), f"{key} {name}") for name, rows in strata.items()]
        for times in zip(*counts, strict=True):
            yield np.concatenate([np.repeat(rows, n) for rows, n in zip(strata.values(), times, strict=True)])


@pytest.mark.parametrize("decimals", [17, 1], ids=["distinct", "tied"])
@pytest.mark.parametrize("cells", [400_000, 400], ids=["one chunk", "many chunks"])
def test_intervals_are_percentiles_of_the_metric_on_resampled_rows(monkeypatch, cells, decimals):
    monkeypatch.setattr("imaginet_hub.evaluation.bootstrap._CELLS", cells)
    labels, scores = toy(60)
    order = np.argsort(-scores, kind="stable")  # draws are told in the order of scores
    labels, scores = labels[order], np.round(scores[order], decimals)
    bootstrap = Bootstrap(80, 0.9, 7)
    drawn = list(drawn_rows(labels, bootstrap, "all"))
    assert len(drawn) == 80
    replicates = [reference(labels[rows], scores[rows]) for rows in drawn]
    report = detection_report(labels, scores, {}, n_resamples=80, seed=7, confidence=0.9)
    for name in METRICS:
        low, high = np.quantile([values[name] for values in replicates], [0.05, 0.95])
        assert report["metrics"][name]["low"] == pytest.approx(low, abs=1e-9)
        assert report["metrics"][name]["high"] == pytest.approx(high, abs=1e-9)
    assert report["recall"]["synthetic"]["value"] == sk.recall_score(labels, scores >= 0.5)
    assert report["confusion"] == sk.confusion_matrix(labels, scores >= 0.5).tolist()


def test_a_generator_is_resampled_with_the_real_rows_of_all():
    labels, scores = toy(80)
    order = np.argsort(-scores, kind="stable")
    labels, scores = labels[order], scores[order]
    made = np.where(labels == 0, "real", np.where(np.arange(80) % 3 == 0, "A", "B"))
    report = detection_report(labels, scores, {"generator": made.tolist()}, n_resamples=60, confidence=0.9)
    bootstrap, real, synthetic = Bootstrap(60, 0.9), np.flatnonzero(labels == 0), np.flatnonzero(made == "A")
    counts = zip(
        bootstrap.counts(range(60), len(real), "all real"),
        bootstrap.counts(range(60), len(synthetic), "generator=A synthetic"),
        strict=True,
    )
    areas = []
    for r, s in counts:
        rows = np.concatenate([np.repeat(real, r), np.repeat(synthetic, s)])
        areas.append(sk.roc_auc_score(labels[rows], scores[rows]))
    found = report["by"]["generator"]["A"]["metrics"]["auc"]
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(areas, [0.05, 0.95]).tolist(), abs=1e-9)


def test_all_right_on_few_rows_is_no_proof():
    report = detection_report([0] * 8 + [1] * 8, [0.1] * 8 + [0.9] * 8, {}, **FEW)
    z = stats.norm.ppf(0.975)
    for name, value in {"balanced_accuracy": 1, "auc": 1, "eer": 0}.items():
        inner = 8 / (8 + z**2)
        low, high = (inner, 1) if value else (0, 1 - inner)
        assert report["metrics"][name] == pytest.approx({"value": value, "low": low, "high": high})
    assert report["recall"]["real"]["low"] == pytest.approx(8 / (8 + z**2))
    assert report["metrics"]["nll"]["low"] == pytest.approx(report["metrics"]["nll"]["high"])


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


@st.composite
def weighted(draw):
    """Labels, scores with ties, and two groups of weights with rows of both classes."""
    labels, scores = draw(scored())
    n = len(labels)
    weights = {}
    for name in ("a", "b"):
        times = np.array(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
        times[[labels.argmin(), labels.argmax()]] += 1
        weights[name] = times
    return labels, scores, weights


@given(weighted(), st.sampled_from([0.25, 0.5]))
def test_weights_are_rows_repeated(data, threshold):
    labels, scores, weights = data
    found = weighted_groups(labels, scores, weights, labels, threshold=threshold, bootstrap=Bootstrap(5))
    for name, times in weights.items():
        group = found["groups"][name]
        rows = np.repeat(np.arange(len(labels)), times)
        expected = reference(labels[rows], scores[rows], threshold)
        assert {key: value["value"] for key, value in group["metrics"].items()} == pytest.approx(expected, abs=1e-9)
        assert group["n_real"] == times[labels == 0].sum()
        assert group["n_real_unique"] == np.count_nonzero(times[labels == 0])
        assert group["n_synthetic"] == times[labels == 1].sum()
    for metric, interval in found["mean"].items():
        values = [group["metrics"][metric]["value"] for group in found["groups"].values()]
        assert interval["value"] == pytest.approx(np.mean(values))


def test_weighted_groups_resample_images_once_for_all_groups():
    labels, scores = toy(90)
    rng = np.random.default_rng(1)
    weights = {name: np.where(labels == 0, rng.poisson(1.2, 90), rng.integers(2, size=90)) for name in "ab"}
    strata = labels * 2 + (np.arange(90) < 40)
    bootstrap = Bootstrap(70, 0.9, 3)
    found = weighted_groups(labels, scores, weights, strata, bootstrap=bootstrap)
    replicates = {"a": [], "b": [], "mean": []}
    for counts in Strata(strata).counts(bootstrap, range(70)):
        for name, times in weights.items():
            rows = np.repeat(np.arange(90), times * counts)
            replicates[name].append(list(reference(labels[rows], scores[rows]).values()))
    replicates["mean"] = np.mean([replicates["a"], replicates["b"]], axis=0)
    for name, values in replicates.items():
        metrics = found["mean"] if name == "mean" else found["groups"][name]["metrics"]
        lows, highs = np.quantile(values, [0.05, 0.95], axis=0)
        assert [metrics[metric]["low"] for metric in METRICS] == pytest.approx(lows.tolist(), abs=1e-9)
        assert [metrics[metric]["high"] for metric in METRICS] == pytest.approx(highs.tolist(), abs=1e-9)


def test_an_undefined_group_leaves_the_mean_undefined():
    found = weighted_groups([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], {"a": [1, 1, 1, 1], "b": [1, 1, 0, 0]}, [0, 0, 1, 1])
    assert found["groups"]["a"]["metrics"]["auc"]["value"] == 1
    assert math.isnan(found["groups"]["b"]["metrics"]["auc"]["value"])
    assert math.isnan(found["mean"]["auc"]["value"])
    assert found["mean"]["accuracy"]["value"] == 1


@pytest.mark.parametrize(
    ("weights", "strata"),
    [
        ({}, [0, 1]),
        ({"a": [1]}, [0, 1]),
        ({"a": [1, -1]}, [0, 1]),
        ({"a": [0.5, 1]}, [0, 1]),
        ({"a": [0, 0]}, [0, 1]),
        ({"a": [1, 1]}, [0]),
    ],
    ids=["no groups", "length", "negative", "fractions", "no rows", "strata"],
)
def test_unusable_weights_are_refused(weights, strata):
    with pytest.raises(UsageError, match="expected"):
        weighted_groups([0, 1], [0.1, 0.9], weights, strata)


def test_majority_baseline():
    report = detection_report([0, 0, 0, 1], [0.1, 0.2, 0.3, 0.9], {}, **FEW)
    assert report["baselines"]["majority"] == {"class": "real", "accuracy": 0.75, "balanced_accuracy": 0.5}


def test_a_class_that_is_answered_alike_adds_its_own_uncertainty() -> None:
    """Two synthetic rows that are both missed, among many real ones: no resample shows that the next may be found."""
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.uniform(0, 0.7, 400), [0.1, 0.2]])
    labels = np.array([0] * 400 + [1] * 2)
    found = detection_report(labels, scores, {})["metrics"]["balanced_accuracy"]
    recall = np.mean(scores[:400] < 0.5)
    assert found["value"] == pytest.approx(recall / 2)
    wilson = 1.959963984540054**2 / (2 + 1.959963984540054**2)
    assert found["high"] == pytest.approx(found["value"] + wilson / 2, abs=0.002)
    spread = 1.96 * np.sqrt(recall * (1 - recall) / 400) / 2
    assert found["low"] == pytest.approx(found["value"] - spread, rel=0.02)
    # Many rows answered alike are nearly certain; accuracy weighs a class by its rows.
    many = detection_report(np.array([0] * 400 + [1] * 4000), np.append(scores[:400], np.full(4000, 0.9)), {})
    assert many["metrics"]["balanced_accuracy"]["low"] == pytest.approx((1 + recall) / 2 - spread, abs=1e-3)
    assert detection_report(labels, scores, {})["metrics"]["accuracy"]["high"] <= 1
    for real, synthetic in ((2, 3), (3, 2), (2, 40), (40, 2)):
        for called in range(real + 1):
            few = np.array([0.9] * called + [0.1] * (real - called) + [0.9] * synthetic)
            for turned in (few, 1 - few):
                truth = np.array([0] * real + [1] * synthetic)
                for metric in ("balanced_accuracy", "accuracy"):
                    bounds = detection_report(truth, turned, {}, n_resamples=50)["metrics"][metric]
                    assert (
                        0 <= bounds["low"] <= bounds["value"] + 1e-12
                        and bounds["value"] - 1e-12 <= bounds["high"] <= 1
                    )
