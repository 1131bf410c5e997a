"""Fits, thresholds and measures of probabilities, against scikit-learn, scipy, brute force and laws."""

import ast
import doctest
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special
from sklearn import discriminant_analysis, preprocessing
from sklearn import metrics as sk
from sklearn.calibration import _SigmoidCalibration
from sklearn.linear_model import LogisticRegression

from imaginet_hub import calibration
from imaginet_hub.calibration import (
    accepting_threshold,
    best_threshold,
    brier_score,
    expected_calibration_error,
    fit_discriminants,
    fit_platt,
    fit_temperature,
    negative_log_likelihood,
    threshold_at_rate,
)
from imaginet_hub.errors import UsageError


def margins_of(real, synthetic, gap=2.5, shift=1.0, seed=0):
    """Normal margins of variance 1 around `shift` and `shift + gap`; at equal shares their true slope is `gap`."""
    labels = np.r_[np.zeros(real, int), np.ones(synthetic, int)]
    return np.random.default_rng(seed).normal(size=len(labels)) + gap * labels + shift, labels


def logits_of(sizes, strength=2.0, seed=0):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    noise = np.random.default_rng(seed).normal(size=(len(labels), len(sizes)))
    return noise * 2 + strength * np.eye(len(sizes))[labels], labels


def harmonic(sizes):
    return len(sizes) / sum(1 / size for size in sizes)


def balanced_accuracy(labels, called):
    return (np.mean(called[labels == 1]) + np.mean(~called[labels == 0])) / 2


@st.composite
def scored(draw, levels=8, most=30):
    """Scores with many ties and labels of both classes."""
    labels = draw(st.lists(st.integers(0, 1), min_size=2, max_size=most).filter(lambda x: 0 < sum(x) < len(x)))
    scores = draw(st.lists(st.integers(-levels, levels), min_size=len(labels), max_size=len(labels)))
    return np.array(scores) / levels, np.array(labels)


scales = st.sampled_from([1e-20, 1e-3, 0.3, 7.0, 1e4, 1e20])
some_scores = st.lists(st.integers(-5, 5), min_size=1, max_size=40).map(lambda x: np.array(x) / 10)


# Platt scaling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("real", "synthetic"), [(60_000, 60_000), (90_000, 9_000)])
def test_platt_on_many_rows_is_balanced_logistic_regression(real, synthetic):
    margins, labels = margins_of(real, synthetic)
    free = LogisticRegression(C=1e10, class_weight="balanced", tol=1e-8).fit(margins[:, None], labels)
    found = fit_platt(margins, labels)
    assert found == pytest.approx((free.coef_[0, 0], free.intercept_[0]), rel=2e-3)
    assert found == pytest.approx((2.5, -2.5 * (1 + 2.5 / 2)), rel=0.03)  # what the normal distributions imply


@pytest.mark.parametrize(("real", "synthetic"), [(2, 2), (7, 7), (50, 50), (3, 40), (200, 12)])
def test_platt_equals_scikit_learn_with_weights_of_equal_effect(real, synthetic):
    margins, labels = margins_of(real, synthetic)
    size = harmonic((real, synthetic))  # weights that sum to this in each class give the targets this N
    reference = _SigmoidCalibration().fit(margins, labels, np.where(labels == 1, size / synthetic, size / real))
    assert fit_platt(margins, labels) == pytest.approx((-reference.a_, -reference.b_), rel=1e-3)


def test_platt_by_hand():
    assert fit_platt([-1, 1], [0, 1]) == pytest.approx((math.log(2), 0), abs=1e-12)  # N = 1, p = 2/3
    assert fit_platt([4, 4, 6, 6, 6], [0, 0, 1, 1, 1]) == pytest.approx((math.log(3.4), -5 * math.log(3.4)))  # N = 2.4
    # A synthetic row among the real ones: two places and two coefficients, so each mean target is met, 5/12 and 3/4.
    low, high = math.log(5 / 7), math.log(3)
    assert fit_platt([-1, -1, -1, 1], [0, 0, 1, 1]) == pytest.approx(((high - low) / 2, (high + low) / 2))


@given(scored(), scales, st.sampled_from([0.0, 1.0, -50.0]))
def test_platt_is_where_the_gradient_vanishes_or_none(data, scale, shift):
    margins, labels = data
    margins = (margins + shift) * scale
    found = fit_platt(margins, labels)
    gap = margins[labels == 1].mean() - margins[labels == 0].mean()
    if found is None:
        assert gap <= 1e-10 * np.abs(margins).max()
        return
    slope, intercept = found
    assert slope > 0 and math.isfinite(slope) and math.isfinite(intercept)
    sizes = np.bincount(labels)
    rows = harmonic(sizes)
    off = (special.expit(slope * margins + intercept) - (1 + rows * labels) / (rows + 2)) / sizes[labels]
    assert off.sum() == pytest.approx(0, abs=1e-8)
    assert (off * (margins / scale - shift)).sum() == pytest.approx(0, abs=1e-8)


@given(scored(), scales, st.integers(0, 99))
def test_platt_laws(data, scale, seed):
    margins, labels = data
    found = fit_platt(margins, labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    assert fit_platt(margins[order], labels[order]) == found  # to the last bit
    scaled, mirrored = fit_platt(margins * scale, labels), fit_platt(-margins, 1 - labels)
    if found is None:
        assert scaled is None and mirrored is None
        return
    slope, intercept = found
    assert scaled == pytest.approx((slope / scale, intercept), rel=1e-7, abs=1e-9)
    assert mirrored == pytest.approx((slope, -intercept), rel=1e-7, abs=1e-9)
    assert fit_platt(margins - 3, labels) == pytest.approx((slope, intercept + 3 * slope), rel=1e-7, abs=1e-9)
    scores = slope * margins + intercept
    logits = np.stack([np.zeros_like(scores), scores], axis=1)
    apart = np.abs(scores) > 1e-15
    assert ((scores > 0) == (special.expit(scores) > 0.5))[apart].all()
    assert (logits.argmax(axis=1) == (scores > 0)).all()
    assert ((special.softmax(logits, axis=1)[:, 1] > 0.5) == (scores > 0))[apart].all()


@given(scored())
def test_platt_is_the_least_cross_entropy_of_all(data):
    margins, labels = data
    found = fit_platt(margins, labels)
    if found is None:
        return
    sizes, rows = np.bincount(labels), harmonic(np.bincount(labels))

    def loss(at):
        scores, targets = at[0] * margins + at[1], (1 + rows * labels) / (rows + 2)
        return np.sum((np.logaddexp(0, scores) - targets * scores) / sizes[labels])

    reference = optimize.minimize(loss, (1, 0), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    assert loss(found) <= reference.fun + 1e-9


@pytest.mark.parametrize(("real", "synthetic"), [(400, 400), (3000, 150), (60, 2000)])
@pytest.mark.parametrize("shift", [-6.0, 0.0, 9.0])
def test_the_decision_at_one_half_serves_balanced_accuracy(real, synthetic, shift):
    margins, labels = margins_of(real, synthetic, shift=shift)
    others, truth = margins_of(20_000, 20_000, shift=shift, seed=1)
    slope, intercept = fit_platt(margins, labels)
    best = balanced_accuracy(truth, others >= best_threshold(others, truth))
    assert balanced_accuracy(truth, slope * others + intercept > 0) == pytest.approx(best, abs=0.01)
    assert balanced_accuracy(truth, others >= best_threshold(margins, labels)) == pytest.approx(best, abs=0.025)
    if shift:  # uncalibrated, the shift costs far more
        assert balanced_accuracy(truth, others > 0) < best - 0.1


def test_a_small_class_does_not_drag_the_threshold_to_its_rows():
    """With Platt's own targets, one N for each class, the mean balanced accuracy here is .77 rather than .86."""
    others, truth = margins_of(2000, 2000, seed=1)
    found = []
    for seed in range(100):
        slope, intercept = fit_platt(*margins_of(50, 1, seed=seed)) or (0, 0)
        found.append(balanced_accuracy(truth, slope * others + intercept > 0))
    assert np.mean(found) > 0.84


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e4, 1e25])
@pytest.mark.parametrize("rows", [1, 30_000])
def test_platt_of_separable_margins_stays_finite(scale, rows):
    labels = np.tile([0, 1], rows)
    slope, intercept = fit_platt((2 * labels - 1) * scale, labels)
    assert slope * scale == pytest.approx(math.log(rows + 1), rel=1e-6)
    assert intercept == pytest.approx(0, abs=1e-6)


def test_platt_with_an_outlier_is_finite():
    margins, labels = margins_of(50, 50)
    for far in (1e4, -1e4, 1e20, -1e20):
        found = fit_platt(np.append(margins, far), np.append(labels, 1))
        assert (found is None) == (far < 0)
        assert found is None or (np.isfinite(found).all() and found[0] > 0)


def test_newton_turns_back_where_a_full_step_is_too_long():
    """No margins are known that need it, once standardised; on these, full steps run off to 1e12."""
    design = np.array([[1.0, -1.0, 100.0], [1.0, 1.0, 1.0]])
    targets, weights = np.array([0.999, 0.5, 0.999]), np.array([0.8752, 0.039, 0.0858])
    found = calibration._newton(design, targets, weights)
    assert design @ (weights * (special.expit(found @ design) - targets)) == pytest.approx([0, 0], abs=1e-12)


@pytest.mark.parametrize(
    "margins",
    [[0, 0, 0, 0], [5, 5, 5, 5], [1, 2, 0, -1], [0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2], [-1, 1, -1, 1], [0, 0, 1e-40, 0]],
)
def test_margins_that_order_nothing_are_not_calibrated(margins):
    assert fit_platt(margins, [0, 0, 1, 1]) is None


# Temperature --------------------------------------------------------------------------------------------------------


def smoothed_loss(logits, labels, temperature):
    sizes, n_classes = np.bincount(labels, minlength=logits.shape[1]), logits.shape[1]
    rows = harmonic(sizes[sizes > 0])
    targets = (1 + rows * np.eye(n_classes)[labels]) / (rows + n_classes)
    per_row = -(targets * special.log_softmax(logits / temperature, axis=1)).sum(axis=1)
    return np.sum(per_row / sizes[labels]) / np.count_nonzero(sizes)


@pytest.mark.parametrize("sizes", [(40, 40), (1, 1), (5, 5, 5, 5, 5, 5, 5), (300, 20, 7), (10, 0, 30)])
@pytest.mark.parametrize("scale", [1e-6, 0.2, 1.0, 30.0, 1e4, 1e20])
def test_temperature_equals_scipy(sizes, scale):
    logits, labels = logits_of(sizes)
    reference = optimize.minimize_scalar(
        lambda log: smoothed_loss(logits, labels, math.exp(log)),
        bounds=(-6, 6),
        method="bounded",
        options={"xatol": 1e-9},
    )
    assert fit_temperature(logits * scale, labels) == pytest.approx(math.exp(reference.x) * scale, rel=1e-5)


def test_temperature_without_smoothing_is_the_least_log_loss():
    logits, labels = logits_of((20_000, 20_000, 20_000))
    reference = optimize.minimize_scalar(
        lambda temperature: sk.log_loss(labels, special.softmax(logits / temperature, axis=1)), bounds=(0.1, 10)
    )
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(reference.x, rel=1e-3)
    assert found == pytest.approx(2, rel=0.03)  # noise of variance 4, means 2 apart: that is what Bayes's rule gives
    calibrated = special.softmax(logits / found, axis=1)
    assert expected_calibration_error(calibrated, labels) < 0.01
    assert expected_calibration_error(special.softmax(logits, axis=1), labels) > 0.1


def test_temperature_by_hand():
    assert fit_temperature([[2, 0], [0, 2]], [0, 1]) == pytest.approx(2 / math.log(2))
    # N = 1 and C = 4: 2/5 for the own class, 1/5 for each other
    assert fit_temperature([[3, 0, 0, 0], [0, 3, 0, 0]], [0, 1]) == pytest.approx(3 / math.log(2))
    margins = np.array([-1.0, 1.0, 3.0])
    assert fit_temperature(np.stack([-margins, margins], 1), [0, 1, 1]) == pytest.approx(
        2 * fit_temperature(np.stack([0 * margins, margins], 1), [0, 1, 1])
    )


@st.composite
def classified(draw):
    n_classes = draw(st.integers(2, 4))
    labels = draw(
        st.lists(st.integers(0, n_classes - 1), min_size=2, max_size=12).filter(lambda labels: len(set(labels)) > 1)
    )
    logits = draw(st.lists(st.integers(-6, 6), min_size=len(labels) * n_classes, max_size=len(labels) * n_classes))
    return np.array(logits, float).reshape(-1, n_classes), np.array(labels)


@given(classified(), scales, st.integers(0, 99))
def test_temperature_laws(data, scale, seed):
    logits, labels = data
    found = fit_temperature(logits, labels)
    rng = np.random.default_rng(seed)
    order, classes = rng.permutation(len(labels)), rng.permutation(logits.shape[1])
    renamed = logits[:, classes], np.argsort(classes)[labels]
    if found is None:  # at a great temperature the loss only falls by making it greater
        reach = (logits.max(axis=1, keepdims=True) - logits).mean() * 1e4 + 1
        assert smoothed_loss(logits, labels, reach) >= math.log(logits.shape[1]) - 1e-4
        return
    assert fit_temperature(logits[order], labels[order]) == pytest.approx(found, rel=1e-6)
    assert fit_temperature(logits * scale, labels) == pytest.approx(found * scale, rel=1e-6)
    assert fit_temperature(logits + rng.integers(-9, 9, (len(labels), 1)), labels) == pytest.approx(found, rel=1e-6)
    assert fit_temperature(*renamed) == pytest.approx(found, rel=1e-6)
    least = smoothed_loss(logits, labels, found)
    assert least <= math.log(logits.shape[1])
    for other in np.geomspace(0.01, 100, 41) * found:
        assert least <= smoothed_loss(logits, labels, other) + 1e-9


@pytest.mark.parametrize("rows", [1, 1000, 100_000])
def test_temperature_of_separable_logits_does_not_go_to_0(rows):
    labels = np.tile([0, 1, 2], rows)
    assert fit_temperature(1e4 * np.eye(3)[labels], labels) == pytest.approx(1e4 / math.log(rows + 1))


def test_logits_that_point_nowhere_have_no_temperature():
    labels = [0, 1, 2]
    assert fit_temperature(np.zeros((3, 3)), labels) is None
    assert fit_temperature(np.full((3, 3), 1e4), labels) is None
    assert fit_temperature(-np.eye(3), labels) is None
    assert fit_temperature(np.eye(3)[[0, 0, 0]], labels) is None
    one_far_off = np.vstack([np.eye(3), [1e20, 0, 0]])
    assert fit_temperature(one_far_off, [0, 1, 2, 1]) is None
    assert 0 < fit_temperature(one_far_off, [0, 1, 2, 0]) < math.inf


# Thresholds ---------------------------------------------------------------------------------------------------------


@given(scored())
def test_best_threshold_equals_brute_force(data):
    scores, labels = data
    found = best_threshold(scores, labels)
    cuts = np.append(np.unique(scores), np.inf)
    best = max(sk.balanced_accuracy_score(labels, scores >= cut) for cut in cuts)
    assert sk.balanced_accuracy_score(labels, scores >= found) == pytest.approx(best, abs=1e-12)
    order = np.random.default_rng(0).permutation(len(labels))
    assert best_threshold(scores[order], labels[order]) == found
    assert best_threshold(scores * 4, labels) == 4 * found
    if found > scores.min():
        below, above = scores[scores < found].max(), scores[scores >= found].min()
        assert found == pytest.approx((below + above) / 2)


@pytest.mark.parametrize(
    ("scores", "labels", "threshold"),
    [
        ([0.1, 0.4, 0.6, 0.9], [0, 0, 1, 1], 0.5),
        (
            [0, 1, 2, 4, 5, 9],
            [0, 1, 0, 1, 0, 1],
            7,
        ),  # the cuts at .5, 3 and 7 all give 2/3; the last gap is the widest
        ([0, 1, 2, 3], [0, 1, 0, 1], 0.5),  # gaps alike: the lowest
        ([3, 3, 3], [0, 1, 1], 3),
        ([2, 1], [0, 1], 1),  # reversed: no cut between reaches one half
        ([1, 1, 2, 2], [0, 1, 0, 1], 1.5),  # one that does is taken
        ([1e4, -1e4], [1, 0], 0),
        ([0.0, 5e-324], [0, 1], 5e-324),  # nothing between
        ([True, False], [True, False], 0.5),
    ],
)
def test_best_threshold_by_hand(scores, labels, threshold):
    assert best_threshold(scores, labels) == threshold


@given(some_scores, st.integers(0, 60), st.integers(1, 60))
def test_threshold_at_rate_is_the_lowest_that_keeps_the_rate(scores, numerator, denominator):
    rate = min(numerator / denominator, 1)
    found = threshold_at_rate(scores, rate)
    assert np.mean(scores >= found) <= rate
    assert np.mean(scores.astype(np.float32) >= np.float32(found)) <= rate
    lower = scores[scores < found]
    if len(lower):  # one more distinct score would be too many
        assert np.mean(scores >= lower.max()) > rate
    else:
        assert rate == 1 and found == scores.min()
    assert threshold_at_rate(scores[::-1], rate) == found


def test_threshold_at_rate_by_hand():
    hundred = np.arange(100)
    # .29 * 100 is 28.999...96 in float64, .07 * 100 is 7.000...1
    assert [int((hundred >= threshold_at_rate(hundred, rate)).sum()) for rate in (0.01, 0.07, 0.29)] == [1, 7, 29]
    assert threshold_at_rate(hundred, 0.01) == 98.5
    assert threshold_at_rate(hundred, 0.0099) == threshold_at_rate(hundred, 0) == np.nextafter(np.float32(99), np.inf)
    assert threshold_at_rate(hundred, 1) == 0
    assert threshold_at_rate([1, 5, 5, 5], 0.5) > 5  # the three at 5 stay together
    assert threshold_at_rate([1, 5, 5, 5], 0.75) == 3
    assert threshold_at_rate([1.0], 0.5) > 1
    for top in (0.1, 1 / 3, -0.1, 0.0, 1e-60, 1e30):
        assert 0 < threshold_at_rate([top], 0) - top <= max(abs(top) * 1.2e-7, 1e-44)


@given(some_scores, st.integers(1, 60), st.integers(1, 60))
def test_accepting_threshold_is_the_highest_that_accepts_enough(scores, numerator, denominator):
    share = min(numerator / denominator, 1)
    found = accepting_threshold(scores, share)
    assert found in scores
    assert np.mean(scores >= found) >= share
    assert np.mean(scores >= np.nextafter(found, np.inf)) < share
    assert accepting_threshold(scores[::-1], share) == found


def test_accepting_threshold_by_hand():
    hundred = np.arange(100)
    assert [accepting_threshold(hundred, share) for share in (0.95, 0.07, 1, 1e-9)] == [5, 93, 0, 99]
    assert accepting_threshold([2, 2, 7], 0.5) == 2


def test_thresholds_hold_on_further_rows_as_promised():
    """The mean over draws of the rate on further rows, against (k + 1) / (n + 1) and k / (n + 1)."""
    rng = np.random.default_rng(0)
    reached, accepted = [], []
    for _ in range(2000):
        scores, further = rng.normal(size=30), rng.normal(size=50)
        reached.append(np.mean(further >= threshold_at_rate(scores, 0.1)))
        accepted.append(np.mean(further >= accepting_threshold(scores, 0.9)))
    assert 3 / 31 <= np.mean(reached) <= 4 / 31 + 0.003
    assert np.mean(accepted) == pytest.approx(27 / 31, abs=0.004)


# Energy and measures of probabilities -------------------------------------------------------------------------------


def blobs(sizes=(300, 200, 250), dim=6, seed=0):
    """Gaussian classes in few dimensions, far from the origin, so that normalising matters little."""
    rng = np.random.default_rng(seed)
    spread = rng.normal(size=(dim, dim)) * 0.02
    labels = np.repeat(np.arange(len(sizes)), sizes)
    middles = 1 + 0.1 * rng.normal(size=(len(sizes), dim))
    return middles[labels] + rng.normal(size=(len(labels), dim)) @ spread, labels


def test_discriminants_equal_scikit_learns(monkeypatch):
    monkeypatch.setattr(calibration, "SHRINKAGE", 0.0)
    features, labels = blobs()
    unit = preprocessing.normalize(features)
    projection, means = fit_discriminants(features, labels)
    lda = discriminant_analysis.LinearDiscriminantAnalysis(solver="svd", store_covariance=True).fit(unit, labels)
    # Distances to the means, in the space of the discriminants.
    theirs = [np.linalg.norm(lda.transform(unit) - lda.transform(lda.means_)[k], axis=1) for k in range(3)]
    ours = [np.linalg.norm(unit @ projection.T - means[k], axis=1) for k in range(3)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    # Between two means it is all of Mahalanobis' distance.
    step = lda.means_[1] - lda.means_[0]
    spread = np.mean([np.cov(unit[labels == k].T, bias=True) * (labels == k).sum() for k in range(3)], axis=0) * 3
    expected = np.sqrt(step @ np.linalg.solve(spread / len(labels), step))
    assert np.linalg.norm(means[1] - means[0]) == pytest.approx(expected, rel=1e-6)


def test_discriminants_are_scaled_to_the_spread_and_do_not_depend_on_the_order():
    features, labels = blobs()
    projection, means = fit_discriminants(features, labels)
    projected = preprocessing.normalize(features) @ projection.T
    inside = np.cov((projected - means[labels]).T, bias=True)
    assert 0.3 < np.trace(inside) / 2 <= 1 + 1e-9, "shrinking takes the spread for larger than it is, if anything"
    order = np.random.default_rng(1).permutation(len(labels))
    again, means_again = fit_discriminants(features[order] * 7, labels[order])
    far = np.random.default_rng(2).normal(size=(20, 6))
    for k in range(3):
        np.testing.assert_allclose(
            np.linalg.norm(far @ again.T - means_again[k], axis=1),
            np.linalg.norm(far @ projection.T - means[k], axis=1),
            rtol=1e-6,
        )


def test_discriminants_of_few_rows_in_many_dimensions_are_finite():
    rng = np.random.default_rng(0)
    projection, means = fit_discriminants(rng.normal(size=(12, 300)), np.arange(12) % 3)
    assert projection.shape == (2, 300) and means.shape == (3, 2) and np.isfinite(projection).all()
    narrow, wide = fit_discriminants(rng.normal(size=(60, 2)), np.arange(60) % 6)
    assert narrow.shape == (5, 2) and wide.shape == (6, 5) and (narrow[2:] == 0).all()


def test_features_that_do_not_differ_have_no_discriminants():
    assert fit_discriminants(np.ones((4, 3)), [0, 0, 1, 1]) is None
    assert fit_discriminants([[1, 0], [1, 0], [0, 1], [0, 1]], [0, 0, 1, 1]) is None
    assert fit_discriminants([[1, 0], [0, 1], [1, 0], [0, 1]], [0, 0, 1, 1]) is None


@pytest.mark.parametrize("sizes", [(30, 50), (4, 40, 11), (9, 0, 8)])
def test_measures_equal_scikit_learn(sizes):
    logits, labels = logits_of(sizes, seed=4)
    probabilities = special.softmax(logits, axis=1)
    classes = range(len(sizes))
    assert negative_log_likelihood(probabilities, labels) == pytest.approx(
        sk.log_loss(labels, probabilities, labels=classes)
    )
    assert brier_score(probabilities, labels) == pytest.approx(
        sk.brier_score_loss(labels, probabilities, labels=classes, scale_by_half=False)
    )


def looped_error(probabilities, labels, bins):
    """Guo et al.'s equation 3, bin by bin."""
    total = 0.0
    for number in range(bins):
        rows = [
            (row.max(), row.argmax() == label)
            for row, label in zip(probabilities, labels, strict=True)
            if number / bins < row.max() <= (number + 1) / bins
        ]
        if rows:
            confidence, right = np.mean(rows, axis=0)
            total += len(rows) / len(labels) * abs(right - confidence)
    return total


@given(classified(), st.integers(1, 20))
def test_expected_calibration_error_equals_the_equation(data, bins):
    logits, labels = data
    probabilities = special.softmax(logits, axis=1)
    found = expected_calibration_error(probabilities, labels, bins)
    assert found == pytest.approx(looped_error(probabilities, labels, bins), abs=1e-12)
    assert expected_calibration_error(probabilities[::-1], labels[::-1], bins) == pytest.approx(found, abs=1e-12)


def test_measures_by_hand():
    sure = np.eye(3)[[0, 1, 2, 0]]
    right, wrong = [0, 1, 2, 0], [1, 2, 0, 1]
    for measure, worst in (
        (brier_score, 2),
        (expected_calibration_error, 1),
        (negative_log_likelihood, 52 * math.log(2)),
    ):
        assert measure(sure, right) == 0
        assert measure(sure, wrong) == pytest.approx(worst)
    # two rows at .8, one right; two rows at .6 (an upper end of 5 bins), both right
    halves = [[0.8, 0.2], [0.8, 0.2], [0.6, 0.4], [0.6, 0.4]]
    assert expected_calibration_error(halves, [0, 1, 0, 0], bins=5) == pytest.approx((0.3 + 0.4) / 2)
    ends = [[0.6, 0.4], [0.7, 0.3]]  # .6 belongs to (.4, .6], so these two are in different bins
    assert expected_calibration_error(ends, [0, 1], bins=5) == pytest.approx((0.4 + 0.7) / 2)
    assert expected_calibration_error(halves, [0, 1, 0, 0], bins=1) == pytest.approx(0.75 - 0.7)
    assert brier_score([[0.8, 0.2]], [0]) == pytest.approx(0.08)
    assert negative_log_likelihood([[0.25, 0.75], [0.5, 0.5]], [0, 1]) == pytest.approx(1.5 * math.log(2))


# What is refused ----------------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_platt([], []), "at least one row, got none"),
        (lambda: fit_platt([[1, 2]], [0]), r"margins of shape \(n,\), got \(1, 2\)"),
        (lambda: fit_platt([1, 2], [0]), r"one label a row, of shape \(2,\), got \(1,\)"),
        (lambda: fit_platt([1, 2], [[0], [1]]), r"one label a row, of shape \(2,\), got \(2, 1\)"),
        (lambda: fit_platt([1, NAN], [0, 1]), "finite and within 1e.30 of 0, got nan in row 1"),
        (lambda: fit_platt([1, INF], [0, 1]), "got inf in row 1"),
        (lambda: fit_platt([1, -1e31], [0, 1]), "got -1e.31 in row 1"),
        (lambda: fit_platt([1, 2], [1, 1]), "at least 2 classes, got only the label 1: add rows"),
        (lambda: fit_platt([1, 2], [1, 2]), r"labels in 0..1, got \[1, 2\]"),
        (lambda: fit_platt([1, 2], [0, 0.5]), r"labels in 0..1, got \[0.0, 0.5\]"),
        (lambda: fit_platt([1, 2], [0, NAN]), r"labels in 0..1, got \[0.0, nan\]"),
        (lambda: fit_platt([1, 2], ["real", "synthetic"]), r"labels in 0..1, got \['real', 'synthetic'\]"),
        (lambda: fit_platt(["a", "b"], [0, 1]), r"margins as real numbers of shape \(n,\), got other things"),
        (lambda: fit_platt([1, None], [0, 1]), "margins"),
        (lambda: fit_platt([[1], [2, 3]], [0, 1]), "margins as real numbers"),
        (lambda: fit_temperature([1, 2], [0, 1]), r"logits of shape \(n, C\), got \(2,\)"),
        (lambda: fit_temperature([[1], [2]], [0, 0]), r"for one logit z pass \(0, z\)"),
        (lambda: fit_temperature([[1, 2], [2, 1]], [0, 2]), r"labels in 0..1, got \[0, 2\]"),
        (lambda: fit_temperature([[1, 2], [2, 1]], [-1, 0]), r"labels in 0..1, got \[-1, 0\]"),
        (lambda: fit_temperature([[1, 2], [2, 1]], [0, 0]), "at least 2 classes"),
        (lambda: fit_temperature([[1, 2], [NAN, 1]], [0, 1]), "got nan in row 1"),
        (lambda: best_threshold([0.5, 0.6], [0, 0]), "got only the label 0"),
        (lambda: best_threshold([0.5, NAN], [0, 1]), "got nan in row 1"),
        (lambda: threshold_at_rate([], 0.1), "got none"),
        (lambda: threshold_at_rate([1, 2], 5), r"a rate in \[0, 1\], got 5: pass a share, not per cent"),
        (lambda: threshold_at_rate([1, 2], NAN), r"a rate in \[0, 1\], got nan"),
        (lambda: threshold_at_rate([1, 2], -0.1), r"a rate in \[0, 1\], got -0.1"),
        (lambda: accepting_threshold([1, 2], 0), "a share above 0"),
        (lambda: accepting_threshold([1, 2], 95), "a share in"),
        (lambda: accepting_threshold([NAN], 0.5), "got nan in row 0"),
        (lambda: fit_discriminants([1, 2], [0, 1]), r"features of shape \(n, D\)"),
        (lambda: fit_discriminants([[1, INF], [1, 2]], [0, 1]), "got inf in row 0"),
        (lambda: fit_discriminants([[1, 2], [2, 1]], [0, 2]), "at least 3 classes"),
        (lambda: fit_discriminants([[1, 2], [2, 1]], [0, 0]), "at least 2 classes"),
        (lambda: negative_log_likelihood([[0.5, 0.4]], [0]), r"sum to 1 in each row, got \[0.5, 0.4\] in row 0"),
        (lambda: negative_log_likelihood([[0.5, 0.5], [3.0, -2.0]], [0, 1]), "in row 1: apply a softmax"),
        (lambda: brier_score([0.5, 0.6], [0, 1]), r"probabilities of shape \(n, C\)"),
        (lambda: brier_score([[0.5], [0.6]], [0, 1]), r"for one probability p pass \(1 - p, p\)"),
        (lambda: brier_score([[0.5, 0.5]], [2]), "labels in 0..1"),
        (lambda: expected_calibration_error([[0.5, 0.5]], [0], bins=0), "one bin or more, got 0"),
        (lambda: expected_calibration_error([[0.5, 0.5]], [0], bins=1.5), "one bin or more, got 1.5"),
        (lambda: expected_calibration_error([[NAN, 0.5]], [0]), "got nan in row 0"),
    ],
)
def test_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_float32_in_float64_out():
    margins, labels = margins_of(30, 30)
    single = margins.astype(np.float32)
    assert fit_platt(single, labels) == fit_platt(single.astype(np.float64), labels)
    assert all(isinstance(number, float) for number in fit_platt(single, labels.astype(bool)))
    assert type(best_threshold(single, labels)) is float
    assert type(threshold_at_rate(single, 0)) is type(accepting_threshold(single, 1)) is float


def test_arguments_are_left_as_they_are():
    logits, labels = logits_of((5, 5))
    before = logits.copy()
    fit_temperature(logits, labels)
    fit_discriminants(logits, labels)
    threshold_at_rate(logits[:, 0], 0.5)
    assert (logits == before).all()


def test_it_says_and_imports_what_it_should():
    assert doctest.testmod(calibration) == (0, 6)
    tree = ast.parse(Path(calibration.__file__).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert imported == {"__future__", "imaginet_hub.errors", "math", "numpy", "numpy.typing"}
