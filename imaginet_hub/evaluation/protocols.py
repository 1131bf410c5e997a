"""One detector's scores under two protocols side by side: the paper's, and one that can be trusted.

`PROTOCOLS` says what each does. `paper` is that of upstream's test scripts, which made the tables of arXiv
2407.20020v3: a logistic regression on 80 labelled images of the test set sets the threshold, and real images stand
against each family of generators whatever they show, some of them several times. `clean` takes its calibration from
training rows alone, and each real image once, of the content that the synthetic ones have.

`run_protocols` gives an object with these keys; what is undefined is null:

- `paper`, `clean`: each with
  - `negatives`: `rule` (in words), `n` (of all groups), `unique` (images), `most_often` (how often one image counts),
    `unused` (real rows in no group), `missing` (images of upstream's lists that are not among the rows; null where
    the lists were not used). Of families, the groups of the paper.
  - `calibration`: `rule` (in words), `n_real` and `n_synthetic` (rows it was fitted to), `n_tested` (how many of them
    are tested on), `slope`, `intercept` (of the logit of the score), `converged` (the paper's fit; else null).
  - `threshold`: on the calibrated probability; `raw_threshold`: the score that it stands for, null where none does.
  - `by`: {column: {"groups": {name: {"n_real", "n_real_unique", "n_synthetic", "content_types": {name: {"real",
    "synthetic"}}, "shortfall": {content type: real rows wanting}, "metrics": {metric: {"value", "low", "high"}}}},
    "mean": {metric: {"value", "low", "high"}}}}. `paper` has the column generator_family, balanced_accuracy and auc,
    and no bounds; `clean` has generator_family and generator, and every metric of detection. `mean` is that of the
    groups, each of which counts the same.
  - `remarks`: what else should be known, in sentences.
- `differences`: [{"what", "paper", "clean"}], in words and with the figures of this run.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaginet_hub.calibration import fit_platt
from imaginet_hub.data.upstream_lists import ProtocolLists
from imaginet_hub.errors import UsageError, require
from imaginet_hub.evaluation.bootstrap import Bootstrap
from imaginet_hub.evaluation.detection import METRICS, detection_metrics, weighted_groups
from imaginet_hub.evaluation.published import MEAN, PAPER, PublishedRow
from imaginet_hub.labels import Generator, GeneratorFamily

__all__ = ["PROTOCOLS", "Protocol", "Scored", "published_text", "run_protocols", "side_by_side"]

#: Probabilities closer than this to 0 or 1 count as that close: their logits are within 36.05 of 0.
EPSILON = 2.0**-52
#: Upstream's lists are used where so many of their images are among the rows; a few may be damaged.
_ENOUGH = 0.99
#: What a dataset without content types has in their place.
_NO_CONTENT = "(none)"


@dataclass(frozen=True)
class Protocol:
    """What a protocol does.

    Attributes:
        negatives: `listed` (upstream's lists; without them drawn with replacement, whatever the content) or `matched`
            (each once, as many of each content type as the group's synthetic rows).
        calibration: `test` (a logistic regression on rows that are tested on) or `train` (on training rows, or the
            model's own).
        calibration_rows: how many rows `test` takes, half of them real.
        threshold: lowest calibrated probability that is called synthetic.
        metrics: what is measured of each group; the mean over groups does not weigh them.
        by: the columns whose values are the groups.
        intervals: whether with bootstrap intervals.
    """

    negatives: str
    calibration: str
    metrics: tuple[str, ...]
    by: tuple[str, ...]
    intervals: bool
    threshold: float = 0.5
    calibration_rows: int = 0


PROTOCOLS: dict[str, Protocol] = {
    "paper": Protocol(
        negatives="listed",
        calibration="test",
        calibration_rows=80,
        metrics=("balanced_accuracy", "auc"),
        by=("generator_family",),
        intervals=False,
    ),
    "clean": Protocol(
        negatives="matched",
        calibration="train",
        metrics=METRICS,
        by=("generator_family", "generator"),
        intervals=True,
    ),
}

#: Of each column: the attribute of `Scored`, and names that come first, in this order.
_COLUMNS: dict[str, tuple[str, type[StrEnum]]] = {
    "generator_family": ("families", GeneratorFamily),
    "generator": ("generators", Generator),
}


@dataclass(frozen=True)
class Scored:
    """Rows that a detector has answered.

    Attributes:
        paths: of the images; they tell rows apart, and find them in upstream's lists.
        labels: 0 = real, 1 = synthetic.
        scores: probability of synthetic, in [0, 1].
        families, generators: what made each image; of real rows anything.
        content_types: what each image shows, "(none)" where that is not known.
    """

    paths: Sequence[str]
    labels: Sequence[int] | NDArray[np.integer]
    scores: Sequence[float] | NDArray[np.floating]
    families: Sequence[str]
    generators: Sequence[str]
    content_types: Sequence[str]

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in self.__dataclass_fields__}
        if len(set(lengths.values())) > 1:
            raise UsageError(f"expected one value a row in each column, got {lengths}")
        if not np.isin(self.labels, (0, 1)).all():
            raise UsageError("expected the labels 0 (real) and 1 (synthetic), got others too")
        scores = np.asarray(self.scores, dtype=np.float64)
        if not ((scores >= 0) & (scores <= 1)).all():
            raise UsageError("expected scores in [0, 1] (probabilities of synthetic), got others or NaN")

    def ordered(self) -> Scored:
        """The rows in an order of their own, whatever order they came in."""
        columns = [list(getattr(self, name)) for name in self.__dataclass_fields__]
        order = sorted(range(len(self.paths)), key=lambda row: tuple(column[row] for column in columns))
        return Scored(*([column[row] for row in order] for column in columns))


def run_protocols(
    rows: Scored,
    *,
    lists: ProtocolLists | None,
    train: Scored | None,
    calibrated: bool,
    bootstrap: Bootstrap,
) -> dict[str, Any]:
    """Measure the same scores under every protocol. The result does not depend on the order of rows.

    Args:
        rows: the rows to test on, of both classes.
        lists: upstream's, where they are to be had; they are used if `rows` are ImagiNet's test rows.
        train: rows that were not tested on, to fit the clean calibration to.
        calibrated: whether the scores are calibrated probabilities already, by data that are not tested on.
        bootstrap: how intervals are made; its seed also draws rows.

    Returns:
        See the module's description.

    Raises:
        UsageError: rows of one class only.
        MissingExtraError: scikit-learn is not installed.
    """
    require("eval", "sklearn")
    rows = rows.ordered()
    if set(rows.labels) != {0, 1}:
        kind = "no rows" if not len(rows.labels) else f"only {'synthetic' if rows.labels[0] else 'real'} ones"
        raise UsageError(
            f"protocols: expected real and synthetic rows to test on, got {kind}: name a split that has both"
        )
    table = _Table(rows, lists, train.ordered() if train is not None else None, calibrated, bootstrap)
    found = {name: _run(protocol, table) for name, protocol in PROTOCOLS.items()}
    return {**found, "differences": _differences(found["paper"], found["clean"], bootstrap)}


class _Table:
    """What every rule may look at.

    Attributes:
        lists: upstream's, if these are ImagiNet's test rows; `missing` of their images are not among the rows.
        about_lists: what is to be said of them, in sentences.
    """

    def __init__(
        self, rows: Scored, lists: ProtocolLists | None, train: Scored | None, calibrated: bool, bootstrap: Bootstrap
    ) -> None:
        self.rows, self.train, self.calibrated, self.bootstrap = rows, train, calibrated, bootstrap
        self.labels = np.asarray(rows.labels, dtype=np.intp)
        self.scores = np.asarray(rows.scores, dtype=np.float64)
        self.content = np.asarray(rows.content_types, dtype=object)
        self.real = np.flatnonzero(self.labels == 0)
        self.place = {str(PurePosixPath(path)): row for row, path in enumerate(rows.paths)}
        self.lists: ProtocolLists | None = None
        self.missing: int | None = None
        self.about_lists: tuple[str, ...] = ()
        if lists is None:
            return
        images = {(image.path, image.label) for listed in lists.groups.values() for image in listed}
        found = sum(self.row(path, label) is not None for path, label in images)
        if found >= _ENOUGH * len(images):
            self.lists, self.missing = lists, len(images) - found
            missing = (f"{self.missing:,} images of upstream's lists are not among the rows",) if self.missing else ()
            self.about_lists = (*lists.remarks, *missing)
        else:
            self.about_lists = (
                f"these are not ImagiNet's test rows ({found:,} of the {len(images):,} images of upstream's lists are "
                "among them), so negatives and calibration rows are drawn in place of upstream's",
            )

    def row(self, path: str, label: int) -> int | None:
        """An image of a list. A path alone is no proof: other people's images may have the same names."""
        row = self.place.get(path)
        return row if row is not None and self.labels[row] == label else None

    def groups(self, column: str) -> dict[str, NDArray[np.intp]]:
        """The synthetic rows of each value of a column; upstream's names first, in its order."""
        attribute, known = _COLUMNS[column]
        rows = defaultdict(list)
        for row, name in enumerate(getattr(self.rows, attribute)):
            if self.labels[row]:
                rows[str(name)].append(row)
        names = [*(name for name in map(str, known) if name in rows), *sorted(set(rows) - set(map(str, known)))]
        return {name: np.array(rows[name]) for name in names}

    def number(self, *words: object) -> int:
        """A number that looks random, from the seed and these words alone."""
        text = "\n".join(map(str, (self.bootstrap.seed, *words)))
        return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")

    def shuffled(self, rows: NDArray[np.intp], *words: object) -> NDArray[np.intp]:
        return np.array(
            sorted(rows.tolist(), key=lambda row: (self.number(*words, self.rows.paths[row]), row)), np.intp
        )


#: For each group, how often each row counts.
_Weights = dict[str, NDArray[np.intp]]


def _run(protocol: Protocol, table: _Table) -> dict[str, Any]:
    negatives, calibration = _NEGATIVES[protocol.negatives], _CALIBRATIONS[protocol.calibration]
    columns, remarks = {}, []
    for column in protocol.by:
        columns[column], rule, said = negatives(table, column)
        remarks += [remark for remark in said if remark not in remarks]
    families = columns["generator_family"]
    how, said = calibration(table, protocol, families)
    remarks += said
    probabilities = _calibrated(table.scores, how)
    times = np.sum(list(families.values()), axis=0)[table.real]
    return {
        "negatives": {
            "rule": rule,
            "n": int(times.sum()),
            "unique": int(np.count_nonzero(times)),
            "most_often": int(times.max()),
            "unused": int(np.count_nonzero(times == 0)),
            "missing": table.missing if protocol.negatives == "listed" else None,
        },
        "calibration": how,
        "threshold": protocol.threshold,
        "raw_threshold": _raw(protocol.threshold, how),
        "by": {column: _measured(protocol, table, probabilities, weights) for column, weights in columns.items()},
        "remarks": remarks,
    }


def _measured(
    protocol: Protocol, table: _Table, probabilities: NDArray[np.float64], weights: _Weights
) -> dict[str, Any]:
    """A column's groups and their mean."""
    if protocol.intervals:
        strata = [f"{label} {content}" for label, content in zip(table.labels, table.content, strict=True)]
        found = weighted_groups(
            table.labels,
            probabilities,
            weights,
            strata,
            threshold=protocol.threshold,
            bootstrap=table.bootstrap,
        )
        metrics = {name: group["metrics"] for name, group in found["groups"].items()}
        mean = found["mean"]
    else:
        values = {}
        for name, times in weights.items():
            labels = np.repeat(table.labels, times)
            values[name] = detection_metrics(labels, np.repeat(probabilities, times), threshold=protocol.threshold)
            # Of the score itself, where a regression on few rows has turned it round.
            values[name]["auc"] = detection_metrics(labels, np.repeat(table.scores, times))["auc"]
        metrics = {name: {m: _point(value[m]) for m in protocol.metrics} for name, value in values.items()}
        mean = {m: _point(float(np.mean([value[m] for value in values.values()]))) for m in protocol.metrics}
    return {
        "groups": {
            name: _composition(table, times) | {"metrics": _plain(metrics[name], protocol)}
            for name, times in weights.items()
        },
        "mean": _plain(mean, protocol),
    }


def _composition(table: _Table, times: NDArray[np.intp]) -> dict[str, Any]:
    """Rows of a group by class and content."""
    contents = {
        content: {
            kind: int(times[(table.labels == label) & (table.content == content)].sum())
            for label, kind in enumerate(("real", "synthetic"))
        }
        for content in sorted(set(table.content[times > 0]))
    }
    return {
        "n_real": int(times[table.real].sum()),
        "n_real_unique": int(np.count_nonzero(times[table.real])),
        "n_synthetic": int(times[table.labels == 1].sum()),
        "content_types": contents,
        "shortfall": {c: n["synthetic"] - n["real"] for c, n in contents.items() if n["synthetic"] > n["real"]},
    }


def _point(value: float) -> dict[str, float]:
    return {"value": value, "low": math.nan, "high": math.nan}


def _plain(metrics: Mapping[str, Mapping[str, float]], protocol: Protocol) -> dict[str, dict[str, float | None]]:
    return {
        name: {key: None if math.isnan(value) else float(value) for key, value in metrics[name].items()}
        for name in protocol.metrics
    }


# --- which real rows stand against a group ---------------------------------------------------------------------------


def _listed(table: _Table, column: str) -> tuple[_Weights, str, list[str]]:
    """Upstream's lists; without them as many real rows as the group has synthetic ones, drawn with replacement.

    That repeats more images than upstream's lists do, whose repetitions come from one source alone (see
    `data.upstream_lists`): of 20,000 of 20,000 rows about 12,600 are unique, against 18,322.
    """
    n = len(table.labels)
    about = list(table.about_lists)
    if table.lists is not None:
        weights = {name: np.zeros(n, np.intp) for name in table.lists.groups}
        for name, images in table.lists.groups.items():
            for image in images:
                row = table.row(image.path, image.label)
                if row is not None:
                    weights[name][row] += 1
        return weights, "upstream's lists, of all content types", about
    weights = {}
    for name, rows in table.groups(column).items():
        drawn = [table.real[table.number("negative", name, draw) % len(table.real)] for draw in range(len(rows))]
        weights[name] = np.bincount([*drawn, *rows], minlength=n)
    return weights, "drawn with replacement from all content types", about


def _matched(table: _Table, column: str) -> tuple[_Weights, str, list[str]]:
    """As many real rows of each content type as the group has synthetic ones, none of them twice.

    Groups take turns at the shuffled real rows of a content type, and start again with the first when all are taken:
    so none serves two groups before each has served one.
    """
    rows_of = {
        content: table.shuffled(table.real[table.content[table.real] == content], "matched")
        for content in sorted(set(table.content))
    }
    taken: Counter[str] = Counter()
    weights, short = {}, 0
    for name, synthetic in table.groups(column).items():
        weights[name] = np.bincount(synthetic, minlength=len(table.labels))
        for content, wanted in sorted(Counter(table.content[synthetic]).items()):
            pool = rows_of[content]
            n = min(wanted, len(pool))
            if n:
                weights[name][pool[(taken[content] + np.arange(n)) % len(pool)]] = 1
            taken[content] += n
            short += wanted - n
    remarks = []
    if short:
        remarks.append(
            f"by {column}, {short:,} real rows are wanting for as many of each content type as synthetic ones; "
            "see `shortfall` of the groups"
        )
    if set(table.content) == {_NO_CONTENT}:
        remarks.append("content types are not known: real rows are not matched by what they show")
    empty = [name for name, times in weights.items() if not times[table.real].any()]
    if empty:
        remarks.append(
            f"no real row has the content of {', '.join(empty)}: balanced accuracy and ranking are undefined there"
        )
    return weights, "each real image once in a group, of the content types of its synthetic images", remarks


_NEGATIVES: dict[str, Callable[[_Table, str], tuple[_Weights, str, list[str]]]] = {
    "listed": _listed,
    "matched": _matched,
}


# --- what makes a score a probability --------------------------------------------------------------------------------


def logit(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(p / (1 - p)) of scores clipped to [EPSILON, 1 - EPSILON]."""
    inside = np.clip(scores, EPSILON, 1 - EPSILON)
    return np.log(inside) - np.log1p(-inside)


def _calibrated(scores: NDArray[np.float64], how: Mapping[str, Any]) -> NDArray[np.float64]:
    if how["slope"] is None:
        return scores
    return np.exp(-np.logaddexp(0, -(how["slope"] * logit(scores) + how["intercept"])))


def _raw(threshold: float, how: Mapping[str, Any]) -> float | None:
    """The score whose calibrated probability is the threshold."""
    if how["slope"] is None:
        return threshold
    if how["slope"] <= 0:
        return None
    margin = (math.log(threshold / (1 - threshold)) - how["intercept"]) / how["slope"]
    return float(np.exp(-np.logaddexp(0, -margin)))


def _how(
    rule: str,
    labels: NDArray[np.intp] | None = None,
    n_tested: int = 0,
    fitted: tuple[float, float] | None = None,
    converged: bool | None = None,
) -> dict[str, Any]:
    counts = np.bincount(labels, minlength=2) if labels is not None else (0, 0)
    return {
        "rule": rule,
        "n_real": int(counts[0]),
        "n_synthetic": int(counts[1]),
        "n_tested": n_tested,
        "slope": fitted[0] if fitted else None,
        "intercept": fitted[1] if fitted else None,
        "converged": converged,
    }


def _on_test(table: _Table, protocol: Protocol, families: _Weights) -> tuple[dict[str, Any], list[str]]:
    """Upstream's: scikit-learn's saga on the logits of a few rows of the test set."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if table.lists is not None:
        found = (table.row(image.path, image.label) for image in table.lists.calibration)
        rows = np.array(sorted({row for row in found if row is not None}), np.intp)
    else:
        rows = _drawn_for_calibration(table, protocol.calibration_rows // 2, families)
    labels = table.labels[rows]
    if len(set(labels.tolist())) < 2:
        raise UsageError(
            "protocols: expected calibration images of both classes among the rows, got one class or none"
        )
    model = LogisticRegression(C=1e10, solver="saga", max_iter=1000, random_state=table.bootstrap.seed % 2**32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(logit(table.scores[rows])[:, None], labels)
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    fitted = float(model.coef_[0, 0]), float(model.intercept_[0])
    remarks = []
    if len(rows) < protocol.calibration_rows:
        remarks.append(f"{len(rows)} calibration rows in place of {protocol.calibration_rows}: there are no more")
    if not converged:
        remarks.append(f"the logistic regression did not converge in {model.max_iter} passes; upstream takes it so")
    if fitted[0] <= 0:
        remarks.append("the logistic regression turns the scores round: its slope is not positive")
    tested = int(np.count_nonzero(np.sum(list(families.values()), axis=0)[rows]))
    return _how("logistic regression on images of the test set", labels, tested, fitted, converged), remarks


def _drawn_for_calibration(table: _Table, half: int, families: _Weights) -> NDArray[np.intp]:
    """By the law of upstream's list: synthetic rows of all groups alike, real ones among the first group's."""
    turns = []
    for place, times in enumerate(families.values()):
        synthetic = table.shuffled(np.flatnonzero((times > 0) & (table.labels == 1)), "calibration")
        turns += [(turn, place, row) for turn, row in enumerate(synthetic.tolist())]
    first = next(iter(families.values()))
    real = table.shuffled(np.flatnonzero((first > 0) & (table.labels == 0)), "calibration")
    half = min(half, len(turns), len(real))
    return np.sort(np.array([*(row for _, _, row in sorted(turns)[:half]), *real[:half]], np.intp))


def _on_train(table: _Table, protocol: Protocol, families: _Weights) -> tuple[dict[str, Any], list[str]]:
    """The model's own, or Platt scaling on training rows."""
    if table.calibrated:
        return _how("the model's own, from training data"), []
    train = table.train
    if train is None or len(set(train.labels)) < 2:
        what = (
            "no training rows to calibrate on"
            if train is None or not len(train.labels)
            else "training rows of one class only to calibrate on"
        )
        return _how("none"), [f"there are {what}: the score is used as it is"]
    labels = np.asarray(train.labels, np.intp)
    fitted = fit_platt(logit(np.asarray(train.scores, np.float64)), labels)
    tested = len({str(PurePosixPath(path)) for path in train.paths} & table.place.keys())
    remarks = [f"{tested:,} training rows have the path of a row that is tested on"] if tested else []
    if fitted is None:
        remarks.append("training rows do not score higher where they are synthetic: the score is used as it is")
        return _how("none"), remarks
    return _how("Platt scaling on training rows", labels, tested, fitted), remarks


_CALIBRATIONS: dict[str, Callable[[_Table, Protocol, _Weights], tuple[dict[str, Any], list[str]]]] = {
    "test": _on_test,
    "train": _on_train,
}


# --- in words --------------------------------------------------------------------------------------------------------


def _differences(paper: Mapping[str, Any], clean: Mapping[str, Any], bootstrap: Bootstrap) -> list[dict[str, str]]:
    intervals = f"{bootstrap.confidence:.0%} of {bootstrap.n_resamples:,} resamples"
    said: dict[str, Callable[[str, Mapping[str, Any]], str]] = {
        "negatives": lambda _, found: _negatives_text(found["negatives"]),
        "content of real against synthetic images": lambda _, found: _content_text(found),
        "calibration": lambda _, found: _calibration_text(found["calibration"]),
        "threshold on the detector's score": lambda _, found: (
            "none stands for it" if found["raw_threshold"] is None else f"{found['raw_threshold']:.4g}"
        ),
        "groups": lambda _, found: ", ".join(
            f"{len(part['groups'])} by {column}" for column, part in found["by"].items()
        ),
        "intervals": lambda name, _: intervals if PROTOCOLS[name].intervals else "none",
    }
    return [{"what": what, "paper": say("paper", paper), "clean": say("clean", clean)} for what, say in said.items()]


def _negatives_text(found: Mapping[str, Any]) -> str:
    often = f", one of them {found['most_often']} times" if found["most_often"] > 1 else ""
    unused = f"{found['unused']:,} real rows never used"
    return f"{found['n']:,} ({found['rule']}): {found['unique']:,} unique{often}, {unused}"


def _content_text(found: Mapping[str, Any]) -> str:
    """The largest share of a family's real images that would have to show something else."""
    gaps = {}
    for name, group in found["by"]["generator_family"]["groups"].items():
        if group["n_real"] and group["n_synthetic"]:
            shares = (
                n["real"] / group["n_real"] - n["synthetic"] / group["n_synthetic"]
                for n in group["content_types"].values()
            )
            gaps[name] = sum(abs(share) for share in shares) / 2
    worst = max(gaps, key=lambda name: gaps[name], default=None)
    if worst is None:
        return "no group has both"
    return (
        "none of the real ones is of another type"
        if gaps[worst] < 1e-9
        else f"{gaps[worst]:.0%} of the real ones are of another type ({worst})"
    )


def _calibration_text(found: Mapping[str, Any]) -> str:
    n = found["n_real"] + found["n_synthetic"]
    if not n:
        return str(found["rule"])
    tested = f", {found['n_tested']:,} of which are tested on" if found["n_tested"] else ", none of which is tested on"
    return f"{found['rule']}: {n:,} rows{tested}"


def side_by_side(protocols: Mapping[str, Any], published: Sequence[PublishedRow] | None = None) -> str:
    """Both protocols as a table in plain text, and what differs.

    Args:
        protocols: what `run_protocols` gave.
        published: rows to show beneath, in a table of their own; for results on ImagiNet.
    """
    blocks = []
    for column in protocols["clean"]["by"]:
        paper, clean = (_metrics_of(protocols[name]["by"].get(column)) for name in PROTOCOLS)
        names = [*dict.fromkeys(name for name in (*paper, *clean) if name != MEAN), MEAN]
        rows = [[name, *_cells(paper.get(name)), *_cells(clean.get(name))] for name in names]
        blocks.append(_aligned([[column, "paper: bACC", "AUC", "clean: bACC", "AUC"], *rows]))
    lines = [
        f"{item['what']}\n  paper: {item['paper']}\n  clean: {item['clean']}" for item in protocols["differences"]
    ]
    lines += [f"{name}: {remark}" for name in PROTOCOLS for remark in protocols[name]["remarks"]]
    blocks.append("\n".join(["What differs", *lines]))
    if published:
        blocks.append(published_text(published))
    return "\n\n".join(blocks) + "\n"


def _metrics_of(part: Mapping[str, Any] | None) -> dict[str, Any]:
    """By group, and of the mean; nothing where the protocol does not have the column."""
    return {} if part is None else {n: group["metrics"] for n, group in part["groups"].items()} | {MEAN: part["mean"]}


def _cells(metrics: Mapping[str, Mapping[str, float | None]] | None) -> list[str]:
    return [_interval_text((metrics or {}).get(name)) for name in ("balanced_accuracy", "auc")]


def _interval_text(metric: Mapping[str, float | None] | None) -> str:
    if metric is None:
        return "-"
    if metric["value"] is None:
        return "n/a"
    ends = "" if metric["low"] is None else f" [{metric['low']:.4f}, {metric['high']:.4f}]"
    return f"{metric['value']:.4f}{ends}"


def published_text(rows: Sequence[PublishedRow]) -> str:
    """Published rows as tables in plain text, with their footnotes."""
    notes = list(dict.fromkeys(note for row in rows for note in row.footnotes))
    blocks = [f"published ({PAPER}), not measured here"]
    for title in dict.fromkeys(row.title for row in rows):
        here = [row for row in rows if row.title == title]
        shared = [note for note in notes if all(note in row.footnotes for row in here)]
        groups, detectors = (list(dict.fromkeys(getattr(row, of) for row in here)) for of in ("group", "detector"))
        cells = {
            (row.group, row.detector): " / ".join(f"{value:.4f}" for value in row.metrics.values())
            + "".join(f" [{notes.index(note) + 1}]" for note in row.footnotes if note not in shared)
            for row in here
        }
        marks = "".join(f" [{notes.index(note) + 1}]" for note in shared)
        lines = [[group, *(cells.get((group, detector), "-") for detector in detectors)] for group in groups]
        blocks.append(f"{title}: {' / '.join(here[-1].metrics)}{marks}\n" + _aligned([["", *detectors], *lines]))
    blocks.append("\n".join(f"[{number}] {note}" for number, note in enumerate(notes, start=1)))
    return "\n".join(blocks)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
