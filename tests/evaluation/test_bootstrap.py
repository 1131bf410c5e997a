from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from imaginet_hub.errors import UsageError
from imaginet_hub.evaluation import bootstrap as module
from imaginet_hub.evaluation.bootstrap import Bootstrap, Strata, column_values


def counts(bootstrap, size, key="x", rows=None):
    return np.concatenate([bootstrap.counts(chunk, size, key) for chunk in bootstrap.chunks(rows or size)])


@pytest.mark.parametrize("options", [{"n_resamples": 0}, {"confidence": 1.0}, {"confidence": 0}, {"seed": -1}])
def test_unusable_resampling_is_refused(options):
    with pytest.raises(UsageError, match="expected"):
        Bootstrap(**options)


@pytest.mark.parametrize(("rows", "largest"), [(1, 1000), (7, 142), (400, 2), (10**6, 1)])
def test_chunks_hold_every_resample_once_and_few_cells(monkeypatch, rows, largest):
    monkeypatch.setattr(module, "_CELLS", 1000)
    chunks = list(Bootstrap(1000).chunks(rows))
    assert [number for chunk in chunks for number in chunk] == list(range(1000))
    assert max(map(len, chunks)) == largest


def test_a_resample_has_as_many_rows_as_the_stratum():
    drawn = counts(Bootstrap(50), 30, rows=200_000)
    assert drawn.shape == (50, 30)
    assert (drawn.sum(axis=1) == 30).all()
    assert drawn.min() == 0 < drawn.max()
    assert counts(Bootstrap(5), 0, rows=1).shape == (5, 0)
    assert (counts(Bootstrap(5), 1) == 1).all()


def test_every_row_is_drawn_alike():
    drawn = counts(Bootstrap(4000), 20)
    assert stats.chisquare(drawn.sum(axis=0)).pvalue > 1e-3
    # Number of times that one row is drawn: binomial.
    seen = np.bincount(drawn.ravel(), minlength=21)
    expected = stats.binom.pmf(np.arange(21), 20, 1 / 20) * drawn.size
    likely = expected > 5
    assert stats.chisquare(seen[likely], expected[likely] * seen[likely].sum() / expected[likely].sum()).pvalue > 1e-3


def test_draws_depend_on_seed_and_key_alone():
    first = counts(Bootstrap(20, 0.95, 1), 40, "a")
    np.testing.assert_array_equal(counts(Bootstrap(20, 0.5, 1), 40, "a"), first)
    assert (counts(Bootstrap(20, 0.95, 1), 40, "b") != first).any()
    assert (counts(Bootstrap(20, 0.95, 2), 40, "a") != first).any()
    chunked = counts(Bootstrap(20, 0.95, 1), 40, "a", rows=200_000)
    assert len(np.unique(chunked, axis=0)) == 20  # no chunk repeats another


def test_strata_keep_their_sizes():
    labels = np.array(list("abbacab"))
    drawn = Strata(labels).counts(Bootstrap(100), range(100))
    for name in "abc":
        assert (drawn[:, labels == name].sum(axis=1) == (labels == name).sum()).all()
    assert (drawn[:, 4] == 1).all()  # the only row of its stratum
    assert drawn[:, 0].std() > 0


def test_interval_is_between_percentiles_and_leaves_undefined_resamples_out():
    replicates = np.array([*np.linspace(0, 1, 101), np.nan])
    found = Bootstrap(confidence=0.9).interval(0.4, replicates, 10)
    assert found == pytest.approx({"value": 0.4, "low": 0.05, "high": 0.95})


@pytest.mark.parametrize("n", [2, 8, 500])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilsons_bound_where_no_resample_differs(n, confidence):
    bootstrap = Bootstrap(confidence=confidence)
    wilson = {k: stats.binomtest(k, n).proportion_ci(confidence, "wilson") for k in (0, n)}
    found = bootstrap.interval(1.0, np.ones(50), n)
    assert found == pytest.approx({"value": 1, "low": wilson[n].low, "high": 1}, abs=1e-12)
    found = bootstrap.interval(0.0, np.zeros(50), n)
    assert found == pytest.approx({"value": 0, "low": 0, "high": wilson[0].high}, abs=1e-12)


def test_no_wilson_bound_elsewhere():
    bootstrap = Bootstrap()
    assert bootstrap.interval(0.5, np.full(9, 0.5), 8) == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert bootstrap.interval(0.0, np.zeros(9), 8, proportion=False) == {"value": 0, "low": 0, "high": 0}
    assert bootstrap.interval(1.0, np.array([1, 1, 0.9] * 20), 8)["low"] == 0.9


@pytest.mark.parametrize(
    ("value", "replicates", "rows"),
    [(np.nan, np.ones(5), 9), (1.0, np.full(5, np.nan), 9), (1.0, np.ones(5), 1)],
    ids=["undefined value", "undefined resamples", "one row"],
)
def test_no_bounds(value, replicates, rows):
    found = Bootstrap().interval(value, replicates, rows)
    np.testing.assert_equal(found, {"value": value, "low": np.nan, "high": np.nan})


def test_wilsons_interval_covers_where_percentiles_would_not():
    """Eight images at a true accuracy of 90 %: all are right in 43 % of the cases, and 1 to 1 would miss in each."""
    rng = np.random.default_rng(0)
    bootstrap, covered = Bootstrap(200), []
    for right in rng.binomial(8, 0.9, size=300):
        rows = np.arange(8) < right
        replicates = (counts(bootstrap, 8, str(right)) * rows).sum(axis=1) / 8
        found = bootstrap.interval(right / 8, replicates, 8)
        covered.append(found["low"] <= 0.9 <= found["high"])
    assert np.mean(covered) >= 0.9
    assert NormalDist().inv_cdf(0.975) == pytest.approx(stats.norm.ppf(0.975))


def test_column_values():
    groups = {"a": ["y", "x", "y"], "b": ["z", "z", "z"]}
    found = [(column, value, mask.tolist()) for column, value, mask in column_values(groups, 3)]
    assert found == [("a", "x", [False, True, False]), ("a", "y", [True, False, True]), ("b", "z", [True] * 3)]
    with pytest.raises(UsageError, match="'a'"):
        list(column_values({"a": ["x"]}, 2))
