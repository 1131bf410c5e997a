"""Both protocols on upstream's real lists and on made rows: facts, laws, and scikit-learn on rows written out."""

import dataclasses
import json
import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from imaginet_hub.calibration import fit_platt
from imaginet_hub.data.manifest import read_annotations
from imaginet_hub.data.upstream_lists import ListedImage, ProtocolLists, find_protocol_lists
from imaginet_hub.errors import UsageError
from imaginet_hub.evaluation import protocols as module
from imaginet_hub.evaluation.bootstrap import Bootstrap
from imaginet_hub.evaluation.detection import METRICS
from imaginet_hub.evaluation.protocols import PROTOCOLS, Scored, logit, run_protocols, side_by_side
from imaginet_hub.evaluation.published import PAPER, published

FEW = Bootstrap(n_resamples=20)
FAMILY_OF = {"A1": "A", "A2": "A", "B1": "B"}


def scored(kinds, shift=2.0, seed=0, prefix="x"):
    """Rows of (generator or "real", content type), with scores that overlap."""
    rng = np.random.default_rng(seed)
    labels = [int(generator != "real") for generator, _ in kinds]
    margins = rng.normal(size=len(kinds)) + shift * (np.array(labels) - 0.3)
    return Scored(
        paths=[f"{prefix}/{number:05d}.png" for number in range(len(kinds))],
        labels=labels,
        scores=1 / (1 + np.exp(-margins)),
        families=[FAMILY_OF.get(generator, generator) for generator, _ in kinds],
        generators=[generator for generator, _ in kinds],
        content_types=[content for _, content in kinds],
    )


def made(**options):
    """Two families of three generators on two content types, with real rows enough."""
    kinds = [("real", "faces")] * 120 + [("real", "maps")] * 90
    kinds += [("A1", "faces")] * 30 + [("A1", "maps")] * 10 + [("A2", "maps")] * 25 + [("B1", "faces")] * 60
    return scored(kinds, **options)


def select(rows, order):
    columns = [getattr(rows, field.name) for field in dataclasses.fields(Scored)]
    return Scored(*([column[row] for row in order] for column in columns))


def run(rows, **options):
    return run_protocols(rows, **{"lists": None, "train": None, "calibrated": True, "bootstrap": FEW, **options})


def weights_of(rows, monkeypatch, **options):
    """What `run_protocols` gives, and by protocol and column how often each row (in the order of paths) counts."""
    seen = {}
    inner = module._measured

    def measured(protocol, table, probabilities, weights):
        name = next(name for name, known in PROTOCOLS.items() if known is protocol)
        seen.setdefault(name, []).append((weights, probabilities, table))
        return inner(protocol, table, probabilities, weights)

    monkeypatch.setattr(module, "_measured", measured)
    return run(rows, **options), seen


# --- ImagiNet --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imaginet(shared):
    """ImagiNet's test rows with made scores, and upstream's lists."""
    records = read_annotations(shared / "annotations" / "test_annotations.txt").records
    labels = np.array([int(record.label == "synthetic") for record in records])
    margins = np.random.default_rng(1).normal(size=len(labels)) + 2 * labels - 0.4
    rows = Scored(
        [record.path for record in records],
        labels,
        1 / (1 + np.exp(-margins)),
        *([str(getattr(r, c)) for r in records] for c in ("generator_family", "generator", "content_type")),
    )
    return rows, find_protocol_lists(shared, store=shared / "none", offline=True)


def test_imaginets_own_lists(imaginet):
    rows, lists = imaginet
    few = Bootstrap(n_resamples=2)
    found = run(rows, lists=lists, bootstrap=few)
    paper, clean = found["paper"], found["clean"]
    assert {key: paper["negatives"][key] for key in ("n", "unique", "most_often", "unused", "missing")} == {
        "n": 20_000,
        "unique": 18_322,
        "most_often": 7,
        "unused": 1678,
        "missing": 0,
    }
    assert {key: paper["calibration"][key] for key in ("n_real", "n_synthetic", "n_tested")} == {
        "n_real": 40,
        "n_synthetic": 40,
        "n_tested": 80,
    }
    families = paper["by"]["generator_family"]["groups"]
    assert {name: group["n_real"] - group["n_real_unique"] for name, group in families.items()} == {
        "GAN": 29,
        "SD": 20,
        "Midjourney": 0,
        "DALL-E 3": 6,
    }
    assert families["Midjourney"]["content_types"]["photos"] == {"real": 757, "synthetic": 0}
    assert (paper["remarks"], clean["remarks"]) == ([], [])
    # Every real image serves one family and one generator, and shows what they show.
    assert (clean["negatives"]["n"], clean["negatives"]["unique"], clean["negatives"]["unused"]) == (20_000, 20_000, 0)
    for column, size in (("generator_family", 4), ("generator", 8)):
        groups = clean["by"][column]["groups"]
        assert len(groups) == size
        for group in groups.values():
            assert all(n["real"] == n["synthetic"] for n in group["content_types"].values())
            assert group["shortfall"] == {}
            assert group["n_real"] == group["n_real_unique"] == group["n_synthetic"]
    words = {item["what"]: (item["paper"], item["clean"]) for item in found["differences"]}
    assert "18,322 unique, one of them 7 times, 1,678 real rows never used" in words["negatives"][0]
    assert "20,000 unique, 0 real rows never used" in words["negatives"][1]
    assert words["calibration"][0].endswith("80 rows, 80 of which are tested on")
    assert words["content of real against synthetic images"][1] == "none of the real ones is of another type"


def test_the_papers_figures_are_those_of_rows_written_out(imaginet):
    rows, lists = imaginet
    paper = run(rows, lists=lists, bootstrap=Bootstrap(n_resamples=1))["paper"]
    score = {path.removeprefix("./"): value for path, value in zip(rows.paths, rows.scores, strict=True)}
    calibration = [(logit(np.array([score[i.path]]))[0], i.label) for i in lists.calibration]
    x, y = np.array(calibration).T
    model = LogisticRegression(C=1e10, max_iter=1000).fit(x[:, None], y)  # another solver finds the same optimum
    assert paper["calibration"]["slope"] == pytest.approx(model.coef_[0, 0], rel=0.02)
    assert paper["calibration"]["converged"]
    values = []
    for name, images in lists.groups.items():
        truth = np.array([image.label for image in images])
        margin = logit(np.array([score[image.path] for image in images]))
        p = 1 / (1 + np.exp(-(paper["calibration"]["slope"] * margin + paper["calibration"]["intercept"])))
        expected = sk.balanced_accuracy_score(truth, p >= 0.5), sk.roc_auc_score(truth, p)
        found = paper["by"]["generator_family"]["groups"][name]["metrics"]
        assert [found[m]["value"] for m in ("balanced_accuracy", "auc")] == pytest.approx(expected, abs=1e-9)
        values.append(expected)
    mean = paper["by"]["generator_family"]["mean"]
    assert [mean[m]["value"] for m in ("balanced_accuracy", "auc")] == pytest.approx(np.mean(values, axis=0), abs=1e-9)


def test_rows_of_imaginet_that_are_missing(imaginet):
    rows, lists = imaginet
    kept = [row for row in range(len(rows.paths)) if row % 400]
    paper = run(select(rows, kept), lists=lists, bootstrap=Bootstrap(n_resamples=1))["paper"]
    gone = {rows.paths[row].removeprefix("./") for row in range(0, len(rows.paths), 400)}
    listed = [image.path for images in lists.groups.values() for image in images]
    assert paper["negatives"]["missing"] == len(gone.intersection(listed))
    assert f"{paper['negatives']['missing']} images of upstream's lists are not among the rows" in paper["remarks"]
    assert paper["negatives"]["rule"].startswith("upstream's lists")
    n = sum(group["n_real"] + group["n_synthetic"] for group in paper["by"]["generator_family"]["groups"].values())
    assert n == sum(path not in gone for path in listed)


# --- any rows --------------------------------------------------------------------------------------------------------


def test_the_shape_of_the_result():
    found = run(made())
    assert list(found) == ["paper", "clean", "differences"]
    keys = ["negatives", "calibration", "threshold", "raw_threshold", "by", "remarks"]
    for name, protocol in PROTOCOLS.items():
        assert list(found[name]) == keys
        assert list(found[name]["by"]) == list(protocol.by)
        for part in found[name]["by"].values():
            for metrics in (part["mean"], *(group["metrics"] for group in part["groups"].values())):
                assert list(metrics) == list(protocol.metrics)
    assert PROTOCOLS["clean"].metrics == METRICS
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert all(set(item) == {"what", "paper", "clean"} for item in found["differences"])


def test_the_order_of_rows_does_not_matter():
    rows, train = made(), made(seed=5, prefix="train")
    found = run(rows, train=train, calibrated=False)
    order = list(range(len(rows.paths)))
    random.Random(3).shuffle(order)
    assert run(select(rows, order), train=select(train, order[::-1]), calibrated=False) == found


def test_the_seed_draws():
    found = [run(made(), bootstrap=Bootstrap(n_resamples=20, seed=seed)) for seed in (0, 1)]
    for name in PROTOCOLS:
        assert found[0][name]["by"] != found[1][name]["by"]


def test_clean_negatives(monkeypatch):
    rows = made()
    found, seen = weights_of(rows, monkeypatch)
    assert found["clean"]["remarks"] == []
    for weights, _, table in seen["clean"]:
        for times in weights.values():
            assert times.max() == 1
            contents = [Counter(table.content[(table.labels == label) & (times > 0)]) for label in (0, 1)]
            assert contents[0] == contents[1]
    # 95 faces for 120 real ones, 60 of two families: none serves twice.
    assert found["clean"]["negatives"]["most_often"] == 1
    assert found["clean"]["negatives"]["n"] == found["clean"]["negatives"]["unique"] == 125


def test_paper_negatives_are_drawn_whatever_they_show(monkeypatch):
    found, seen = weights_of(made(), monkeypatch)
    ((weights, _, table),) = seen["paper"]
    assert list(weights) == ["A", "B"]
    for times in weights.values():
        assert times[table.real].sum() == times[table.labels == 1].sum()
    assert weights["A"][table.real].max() > 1
    assert ((weights["B"] > 0) & (weights["A"] == 0))[table.real].any()  # each family has a draw of its own
    assert found["paper"]["by"]["generator_family"]["groups"]["B"]["content_types"]["maps"]["real"] > 0
    assert found["paper"]["negatives"]["rule"] == "drawn with replacement from all content types"
    drawn = np.concatenate([np.repeat(table.real, times[table.real]) for times in weights.values()])
    assert len(set(drawn.tolist())) == found["paper"]["negatives"]["unique"] < len(drawn)


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_metrics_are_scikit_learns_on_rows_written_out(monkeypatch, name):
    found, seen = weights_of(made(), monkeypatch, calibrated=False, train=made(seed=9, prefix="train"))
    for (weights, probabilities, table), column in zip(seen[name], found[name]["by"].values(), strict=True):
        values = []
        for group, times in weights.items():
            truth, p = np.repeat(table.labels, times), np.repeat(probabilities, times)
            expected = {
                "balanced_accuracy": sk.balanced_accuracy_score(truth, p >= 0.5),
                "auc": sk.roc_auc_score(truth, p),
                "average_precision": sk.average_precision_score(truth, p),
                "brier": sk.brier_score_loss(truth, p),
                "nll": sk.log_loss(truth, p),
            }
            metrics = column["groups"][group]["metrics"]
            here = {metric: value for metric, value in expected.items() if metric in metrics}
            assert {metric: metrics[metric]["value"] for metric in here} == pytest.approx(here, abs=1e-9)
            values.append(here["auc"])
        assert column["mean"]["auc"]["value"] == pytest.approx(np.mean(values), abs=1e-9)


def test_only_clean_has_intervals():
    found = run(made())
    for metrics in (found["paper"]["by"]["generator_family"]["mean"], found["clean"]["by"]["generator"]["mean"]):
        low, value, high = (metrics["auc"][key] for key in ("low", "value", "high"))
        if metrics is found["paper"]["by"]["generator_family"]["mean"]:
            assert (low, high) == (None, None)
        else:
            assert low < value < high


# --- calibration -----------------------------------------------------------------------------------------------------


def test_clean_calibration_is_that_of_train_alone():
    rows, train = made(), made(seed=7, prefix="train", shift=1)
    clean = run(rows, train=train, calibrated=False)["clean"]
    slope, intercept = fit_platt(logit(np.asarray(train.scores)), train.labels)
    assert (clean["calibration"]["slope"], clean["calibration"]["intercept"]) == pytest.approx((slope, intercept))
    assert clean["calibration"]["n_tested"] == 0
    assert (clean["calibration"]["n_real"], clean["calibration"]["n_synthetic"]) == (210, 125)
    # The score that stands for the threshold decides as the threshold does.
    assert slope * logit(np.array([clean["raw_threshold"]]))[0] + intercept == pytest.approx(0, abs=1e-9)
    # Test scores do not move it.
    other = run(made(seed=8), train=train, calibrated=False)["clean"]
    assert other["calibration"] == clean["calibration"]


def test_training_rows_that_are_tested_on_are_reported():
    clean = run(made(), train=made(seed=7), calibrated=False)["clean"]
    assert clean["remarks"] == ["335 training rows have the path of a row that is tested on"]
    assert clean["calibration"]["n_tested"] == 335


@pytest.mark.parametrize("calibrated", [True, False], ids=["its own", "none"])
def test_scores_that_stay_as_they_are(calibrated):
    rows = made()
    clean = run(rows, calibrated=calibrated)["clean"]
    assert clean["raw_threshold"] == clean["threshold"] == 0.5
    assert clean["calibration"]["slope"] is None
    assert clean["calibration"]["rule"] == ("the model's own, from training data" if calibrated else "none")
    assert bool(clean["remarks"]) is not calibrated


def test_training_rows_that_cannot_calibrate():
    one = scored([("real", "faces")] * 9, prefix="train")
    assert "one class only" in run(made(), train=one, calibrated=False)["clean"]["remarks"][0]
    turned = made(shift=-2, prefix="train")
    clean = run(made(), train=turned, calibrated=False)["clean"]
    assert (clean["calibration"]["rule"], clean["calibration"]["slope"]) == ("none", None)
    assert "do not score higher" in clean["remarks"][0]


def test_the_papers_calibration_rows_are_tested_on(monkeypatch):
    """Drawn by the law of upstream's list: 40 real of the first group, 40 synthetic of all groups alike."""
    picked = []
    inner = module._drawn_for_calibration

    def drawn(table, half, families):
        rows = inner(table, half, families)
        picked.append((rows, table, families))
        return rows

    monkeypatch.setattr(module, "_drawn_for_calibration", drawn)
    found = run(made())["paper"]["calibration"]
    ((rows, table, families),) = picked
    assert len(rows) == len(set(rows.tolist())) == 80
    assert Counter(table.rows.families[row] for row in rows if table.labels[row]) == {"A": 20, "B": 20}
    assert all(families["A"][row] for row in rows if not table.labels[row])
    assert (found["n_real"], found["n_synthetic"], found["n_tested"]) == (40, 40, 80)


def test_fewer_rows_than_the_paper_takes():
    kinds = [("real", "faces")] * 12 + [("A1", "faces")] * 3 + [("B1", "faces")] * 9
    paper = run(scored(kinds))["paper"]
    real, synthetic = paper["calibration"]["n_real"], paper["calibration"]["n_synthetic"]
    assert 1 <= real == synthetic <= 3  # of the 3 real rows drawn for A, perhaps with repetitions
    assert f"{2 * real} calibration rows in place of 80: there are no more" in paper["remarks"]


def test_saturated_scores():
    rows = made()
    extreme = Scored(rows.paths, rows.labels, [float(s > 0.5) for s in rows.scores], *groups_of(rows))
    found = run(extreme, train=extreme, calibrated=False)
    for name in PROTOCOLS:
        assert math.isfinite(found[name]["calibration"]["slope"])
        auc = found[name]["by"]["generator_family"]["mean"]["auc"]["value"]
        assert 0.5 < auc < 1
    assert logit(np.array([0.0, 0.5, 1.0])) == pytest.approx([-36.0437, 0, 36.0437], abs=1e-3)


def groups_of(rows):
    return rows.families, rows.generators, rows.content_types


def test_a_perfect_detector():
    rows = made()
    perfect = Scored(rows.paths, rows.labels, 0.1 + 0.8 * np.array(rows.labels), *groups_of(rows))
    found = run(perfect, train=perfect, calibrated=False)
    for name in PROTOCOLS:
        for part in found[name]["by"].values():
            assert part["mean"]["balanced_accuracy"]["value"] == part["mean"]["auc"]["value"] == 1
        assert math.isfinite(found[name]["calibration"]["slope"])


def test_a_detector_that_guesses():
    kinds = [("real", "faces")] * 3000 + [("A1", "faces")] * 1500 + [("B1", "faces")] * 1500
    found = run(scored(kinds, shift=0))
    assert found["clean"]["by"]["generator_family"]["mean"]["auc"]["value"] == pytest.approx(0.5, abs=0.03)
    auc = found["paper"]["by"]["generator_family"]["mean"]["auc"]["value"]
    assert auc == pytest.approx(0.5, abs=0.03)


def test_scores_that_are_all_equal():
    rows = made()
    found = run(Scored(rows.paths, rows.labels, [0.3] * len(rows.paths), *groups_of(rows)))
    for name in PROTOCOLS:
        mean = found[name]["by"]["generator_family"]["mean"]
        assert (mean["auc"]["value"], mean["balanced_accuracy"]["value"]) == (0.5, 0.5)


# --- other people's data ---------------------------------------------------------------------------------------------


def test_one_family_of_unknown_content():
    found = run(scored([("real", "(none)")] * 30 + [("(none)", "(none)")] * 20))
    assert list(found["clean"]["by"]["generator"]["groups"]) == ["(none)"]
    assert found["clean"]["remarks"] == ["content types are not known: real rows are not matched by what they show"]
    assert found["clean"]["by"]["generator"]["groups"]["(none)"]["n_real"] == 20


def test_fewer_real_rows_than_synthetic_ones():
    kinds = [("real", "faces")] * 7 + [("real", "maps")] * 40 + [("A1", "faces")] * 12 + [("A2", "maps")] * 10
    clean = run(scored(kinds))["clean"]
    group = clean["by"]["generator_family"]["groups"]["A"]
    assert group["shortfall"] == {"faces": 5}
    assert group["content_types"] == {"faces": {"real": 7, "synthetic": 12}, "maps": {"real": 10, "synthetic": 10}}
    assert any(remark.startswith("by generator_family, 5 real rows are wanting") for remark in clean["remarks"])


def test_content_that_no_real_row_has():
    clean = run(scored([("real", "faces")] * 20 + [("A1", "faces")] * 9 + [("B1", "sky")] * 9))["clean"]
    lonely = clean["by"]["generator_family"]["groups"]["B"]
    assert (lonely["n_real"], lonely["shortfall"]) == (0, {"sky": 9})
    assert lonely["metrics"]["auc"]["value"] is None
    assert lonely["metrics"]["accuracy"]["value"] is not None
    assert clean["by"]["generator_family"]["mean"]["auc"]["value"] is None
    assert any("no real row has the content of B" in remark for remark in clean["remarks"])


@pytest.mark.parametrize(("kind", "word"), [("real", "real"), ("A1", "synthetic")])
def test_one_class_is_refused(kind, word):
    with pytest.raises(UsageError, match=f"expected real and synthetic rows to test on, got only {word} ones"):
        run(scored([(kind, "faces")] * 5))


def test_no_rows_are_refused():
    with pytest.raises(UsageError, match="got no rows"):
        run(scored([]))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"scores": [0.1]}, "one value a row"),
        ({"scores": [0.1, math.nan]}, r"scores in \[0, 1\]"),
        ({"scores": [0.1, 2]}, r"scores in \[0, 1\]"),
        ({"labels": [0, 2]}, "labels 0"),
    ],
    ids=["length", "nan", "range", "label"],
)
def test_rows_that_cannot_be_used(change, match):
    rows = {"paths": ["a", "b"], "labels": [0, 1], "scores": [0.1, 0.9], "families": ["real", "A"]}
    rows |= {"generators": ["real", "A1"], "content_types": ["faces", "faces"]}
    with pytest.raises(UsageError, match=match):
        Scored(**rows | change)


def test_lists_of_other_images_are_not_used():
    image = ListedImage("x/00000.png", 0, "faces")
    others = ProtocolLists({"GAN": (image, ListedImage("ffhq/a.png", 0, "faces"))}, (image,), ("a remark",))
    paper = run(made(), lists=others)["paper"]
    assert paper["negatives"]["missing"] is None
    assert paper["remarks"][0].startswith("these are not ImagiNet's test rows (1 of the 2 images")
    # The same paths with other labels are other images.
    turned = ProtocolLists({"GAN": (image._replace(label=1),)}, (image,))
    assert "(0 of the 1 images" in run(made(), lists=turned)["paper"]["remarks"][0]


def test_lists_that_fit_are_used_as_they_are(monkeypatch):
    rows = made()
    images = [ListedImage(path, label, "faces") for path, label in zip(rows.paths, rows.labels, strict=True)]
    lists = ProtocolLists(
        {"GAN": (images[0], images[0], images[1], images[-1]), "SD": (images[1], images[-2])},
        (images[0], images[1], images[-1], images[-2]),
        ("differs",),
    )
    found, seen = weights_of(rows, monkeypatch, lists=lists)
    ((weights, _, table),) = seen["paper"]
    assert {name: {table.rows.paths[i]: int(n) for i, n in enumerate(w) if n} for name, w in weights.items()} == {
        "GAN": {rows.paths[0]: 2, rows.paths[1]: 1, rows.paths[-1]: 1},
        "SD": {rows.paths[1]: 1, rows.paths[-2]: 1},
    }
    negatives = found["paper"]["negatives"]
    assert (negatives["n"], negatives["unique"], negatives["most_often"], negatives["unused"]) == (4, 2, 2, 208)
    assert found["paper"]["remarks"] == [
        "differs",
        "4 calibration rows in place of 80: there are no more",
        # No slope is the best where no row is on the wrong side.
        "the logistic regression did not converge in 1000 passes; upstream takes it so",
    ]
    assert found["paper"]["calibration"]["converged"] is False


@settings(max_examples=25, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from(["real", "A1", "A2", "B1"]), st.sampled_from(["faces", "maps"])), min_size=2),
    st.randoms(use_true_random=False),
)
def test_laws(kinds, rng):
    kinds = [("real", "faces"), ("A1", "faces"), *kinds]
    rows = scored(kinds)
    found = run(rows, bootstrap=Bootstrap(n_resamples=2))
    order = list(range(len(kinds)))
    rng.shuffle(order)
    assert run(select(rows, order), bootstrap=Bootstrap(n_resamples=2)) == found
    for part in found["clean"]["by"].values():
        for group in part["groups"].values():
            assert group["n_real"] == group["n_real_unique"]
            for content, n in group["content_types"].items():
                assert n["synthetic"] - n["real"] == group["shortfall"].get(content, 0) >= 0
                have = sum(kind == ("real", content) for kind in kinds)
                assert n["real"] == min(n["synthetic"], have)
    for group in found["paper"]["by"]["generator_family"]["groups"].values():
        assert group["n_real"] == group["n_synthetic"]
    json.dumps(found, allow_nan=False)


# --- in words --------------------------------------------------------------------------------------------------------


def test_side_by_side():
    found = run(made())
    text = side_by_side(found)
    assert "published" not in text
    family, generator = (found["clean"]["by"][column]["groups"] for column in ("generator_family", "generator"))
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    auc = family["A"]["metrics"]["auc"]
    assert f"{auc['value']:.4f} [{auc['low']:.4f}, {auc['high']:.4f}]" in lines["A"]
    paper = found["paper"]["by"]["generator_family"]["groups"]["A"]["metrics"]
    assert lines["A"].split()[1:3] == [f"{paper[m]['value']:.4f}" for m in ("balanced_accuracy", "auc")]
    assert lines["A1"].split()[1:3] == ["-", "-"]
    assert set(generator) <= lines.keys()
    for item in found["differences"]:
        assert f"{item['what']}\n  paper: {item['paper']}\n  clean: {item['clean']}" in text


def test_published_rows_stand_apart():
    found = run(made())
    rows = published(table="5")
    text = side_by_side(found, rows)
    own, _, others = text.partition(f"published ({PAPER}), not measured here")
    assert own == side_by_side(found)[:-1] + "\n\n"
    assert "0.9017 / 0.9889 [2]" in others
    assert "0.9030 / 0.9995 \n" not in others
    assert f"{rows[0].title}: balanced_accuracy / auc [1]\n" in others
    for row in rows:
        assert all(note in others for note in row.footnotes)
    assert not any(f"{value:.4f}" in own for row in rows for value in row.metrics.values() if value == 0.9585)


def test_undefined_figures_are_told():
    text = side_by_side(run(scored([("real", "faces")] * 20 + [("B1", "sky")] * 9)))
    assert next(line for line in text.splitlines() if line.startswith("B1")).split() == ["B1", "-", "-", "n/a", "n/a"]
