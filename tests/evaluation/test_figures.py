import importlib.util
import json
import re
import subprocess
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from sklearn import metrics as sk

from imaginet_hub.errors import MissingExtraError, UsageError
from imaginet_hub.evaluation import contact_sheet, detection_figure, identification_figure, save_figure
from imaginet_hub.evaluation.comparison import compare_results
from imaginet_hub.evaluation.figures import (
    comparison_figure,
    deletion_figure,
    embedding_figure,
    mistakes_figure,
    patch_figure,
    reliability_figure,
    roc_figure,
    spectra_figure,
    training_figure,
)
from imaginet_hub.evaluation.mistakes import Mistake
from imaginet_hub.evaluation.report import interval_text
from imaginet_hub.evaluation.spectra import Spectrum
from tests.evaluation import made


@pytest.fixture(scope="module")
def detection():
    return made.detection()


@pytest.fixture(scope="module")
def identification():
    return made.identification(3)


def scores_of(results):
    labels = np.array([entry["label"] == "synthetic" for entry in results.per_image])
    return labels, np.array([entry["scores"][1] for entry in results.per_image])


def panels(figure):
    """The axes by what they show."""
    roc, scores, diagram, counts, bars = figure.axes
    return SimpleNamespace(roc=roc, scores=scores, diagram=diagram, counts=counts, bars=bars)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def line(axes, label):
    return next(line for line in axes.lines if line.get_label().startswith(label))


def test_detection_figure_shows_the_operating_point_and_every_generator(detection, tmp_path):
    figure = detection_figure(detection)
    shown = panels(figure)
    assert shown.roc.get_xscale() == "log"
    point = line(shown.roc, "threshold 0.5")
    assert point.get_xdata()[0] == pytest.approx(1 - detection.recall["real"]["value"])
    assert point.get_ydata()[0] == pytest.approx(detection.recall["synthetic"]["value"])
    assert {label.get_text() for label in shown.bars.get_yticklabels()} == {"ProGAN (20)", "SDXL (20)"}
    widths = sorted(bar.get_width() for bar in shown.bars.patches)
    values = sorted(part["metrics"]["balanced_accuracy"]["value"] for part in detection.by["generator"].values())
    assert widths == values
    assert sum(bar.get_height() for bar in shown.counts.patches) == 80
    for name in ("a.png", "b.svg"):
        save_figure(figure, tmp_path / "new" / name)
        assert (tmp_path / "new" / name).stat().st_size > 10_000


def test_roc_curves_are_those_of_scikit_learn(detection):
    (axes,) = roc_figure(detection).axes
    labels, scores = scores_of(detection)
    families = np.array([entry["columns"]["generator_family"] for entry in detection.per_image])
    left = axes.get_xlim()[0]
    for label, rows in (
        ("all generators (40)", labels | ~labels),
        ("GAN (20)", ~labels | (families == "GAN")),
        ("SD (20)", ~labels | (families == "SD")),
    ):
        curve = line(axes, label)
        fpr, tpr, _ = sk.roc_curve(labels[rows], scores[rows], drop_intermediate=False)
        assert curve.get_xdata() == pytest.approx(np.maximum(fpr, left))
        assert curve.get_ydata() == pytest.approx(tpr)
    hatched = axes.patches[0].get_path().get_extents(axes.patches[0].get_transform() - axes.transData)
    assert hatched.x1 == pytest.approx(1 / 40)


def test_shares_at_low_rates_are_marked_with_their_intervals():
    results = made.detection(list(made.rows_of(400)))
    (axes,) = roc_figure(results).axes
    for rate, key, label in ((0.01, "tpr_at_fpr_1", "at 1 % FPR"), (0.001, "tpr_at_fpr_0_1", "at 0.1 % FPR")):
        marker = line(axes, label)
        assert (marker.get_xdata()[0], marker.get_ydata()[0]) == (rate, results.metrics[key]["value"])
        ends = next(c.get_segments()[0] for c in axes.collections if c.get_segments()[0][0][0] == rate)
        assert ends[:, 1].tolist() == [results.metrics[key]["low"], results.metrics[key]["high"]]


def test_of_many_families_the_lowest_are_told_apart(tmp_path):
    families = {f"generator {i}": f"family {i}" for i in range(30)}
    results = made.detection(list(made.rows_of(600, families, apart=90)))
    figure = roc_figure(results)
    legend = legend_of(figure)
    lowest = sorted(
        families.values(), key=lambda name: results.by["generator_family"][name]["metrics"]["auc"]["value"]
    )
    shown = [re.match(r"family \d+", text)[0] for text in legend if text.startswith("family")]
    assert shown == lowest[:8]
    assert "22 others" in legend
    styles = {
        (curve.get_color(), curve.get_linestyle()) for curve in figure.axes[0].lines if " (10)" in curve.get_label()
    }
    dashes = {str(curve._unscaled_dash_pattern) for curve in figure.axes[0].lines if " (10)" in curve.get_label()}
    assert len({color for color, _ in styles}) == len(dashes) == 8
    save_figure(figure, tmp_path / "many.png")


@pytest.mark.parametrize("track", ["detection", "identification"])
def test_the_gaps_of_the_reliability_diagram_are_the_calibration_error(track, detection, identification):
    results = {"detection": detection, "identification": identification}[track]
    diagram, counts = reliability_figure(results).axes
    bars, gaps = diagram.containers
    rows = np.array([bar.get_height() for bar in counts.patches])
    assert rows.sum() == results.n
    assert [int(text.get_text()) for text in counts.texts] == rows.tolist()
    gap = np.array([bar.get_height() for bar in gaps])
    assert (rows * np.abs(gap)).sum() / rows.sum() == pytest.approx(results.metrics["ece"]["value"])
    assert f"ECE {results.metrics['ece']['value']:.3f}" in diagram.get_title()
    intervals = next(iter(diagram.collections)).get_segments()
    for bar, n, ends in zip(bars, rows, intervals, strict=True):
        reference = stats.binomtest(round(bar.get_height() * n), int(n)).proportion_ci(method="wilson")
        assert ends[:, 1] == pytest.approx([reference.low, reference.high], abs=1e-6)


def test_many_and_small_groups(tmp_path):
    rows = list(made.rows_of())
    for i, row in enumerate(rows):
        row["generator"] = row["generator"] if row["label"] == "real" else f"generator {i}"
    figure = detection_figure(made.detection(rows))
    bars = figure.axes[-1]
    assert len(bars.patches) == 40
    assert "pale" in bars.get_xlabel()
    save_figure(figure, tmp_path / "many.png")


def test_groups_beyond_what_can_be_read_are_counted(tmp_path):
    rows = list(made.rows_of(200))
    for i, row in enumerate(rows):
        row["generator"] = row["generator"] if row["label"] == "real" else f"generator {i}"
    results = made.detection(rows)
    bars = detection_figure(results).axes[-1]
    assert len(bars.patches) == 60
    assert "the lowest 60 of 100" in bars.get_title()
    values = [part["metrics"]["balanced_accuracy"]["value"] for part in results.by["generator"].values()]
    assert sorted(bar.get_width() for bar in bars.patches) == sorted(values)[:60]


@pytest.mark.parametrize("label", ["real", "synthetic"])
def test_one_class(label, tmp_path):
    results = made.one_class(label)
    figure = detection_figure(results)  # the reliability diagram is part of it
    assert "one class only" in texts(figure.axes[0])
    save_figure(figure, tmp_path / "one.png")
    assert "one class only" in texts(roc_figure(results).axes[0])


def test_figures_need_scores(detection, identification, tmp_path):
    for results, draw in (
        (detection, detection_figure),
        (detection, roc_figure),
        (detection, reliability_figure),
        (identification, reliability_figure),
    ):
        results.write(tmp_path / "results.json", per_image=False)
        with pytest.raises(UsageError, match="per_image"):
            draw(type(results).read(tmp_path / "results.json"))


def test_rows_of_unknown_classes_are_left_out_of_reliability(identification):
    results = type(identification)(**vars(identification))
    results.per_image = [*identification.per_image, identification.per_image[0] | {"label": "Imagen"}]
    assert sum(bar.get_height() for bar in reliability_figure(results).axes[1].patches) == identification.n


@pytest.mark.parametrize("k", [1, 3, 20])
def test_identification_figure_shows_every_count(k, tmp_path):
    results = made.identification(k)
    figure = identification_figure(results)
    (axes,) = figure.axes
    shown = [int(text.split("\n")[0].replace("·", "0")) for text in texts(axes)]
    assert np.array(shown).reshape(k, k).tolist() == results.confusion
    save_figure(figure, tmp_path / "confusion.png")


HOSTILE = ("$\\bad_{$", "$x^$", "a\x00b\nc", "_hidden", "<b>&amp;", "x" * 300, "")


def test_names_are_literal_in_every_figure(tmp_path):
    rows = list(made.rows_of(160, {name: f"{name}." for name in HOSTILE}))
    results = made.detection(rows)
    results.model, results.dataset = {"name": "$_$"}, {"name": "$\\bad_{$"}
    mistake = Mistake("$\\bad_{$/\x01.png", "real", "$x^$", 0.9, Image.new("RGB", (8, 8)))
    spectrum = Spectrum(3, np.zeros((16, 16)))
    names = (*HOSTILE, "\ud800")  # no UTF-8
    figures = (
        detection_figure(results),
        roc_figure(results),
        reliability_figure(results),
        contact_sheet([rows[0]["image"]], ["$\\bad$"]),
        mistakes_figure({name: [mistake] for name in names} | {"$\\none_{$": []}),
        spectra_figure({name: spectrum for name in ("real", *names)}),
    )
    for number, figure in enumerate(figures):
        save_figure(figure, tmp_path / f"{number}.svg")
        assert ElementTree.parse(tmp_path / f"{number}.svg").getroot().tag.endswith("svg")
    assert any("_hidden." in text for text in legend_of(figures[1]))
    assert figures[1].axes[0].get_title() == r"\$_\$ on \$\bad_{\$ (160 images)"


def test_names_of_classes_are_literal(tmp_path):
    rows = [row for row in made.rows_of() if row["label"] == "synthetic"]
    for row in rows:
        row["generator_family"] = row["generator_family"].replace("SD", "$\\bad_{$")
    results = made.evaluate_rows(
        rows, made.by_level, track="identification", names=("GAN", "$\\bad_{$"), n_resamples=5, progress=False
    )
    save_figure(identification_figure(results), tmp_path / "a.png")


def test_long_names_keep_what_tells_them_apart():
    names = {f"the generator whose name goes on and on, version {i}": "x" for i in (1, 2)}
    bars = detection_figure(made.detection(list(made.rows_of(generators=names)))).axes[-1]
    shown = {label.get_text() for label in bars.get_yticklabels()}
    assert len(shown) == 2
    assert all(len(text) < 40 for text in shown)


def test_results_of_the_other_track_are_refused(detection, identification):
    for draw in (detection_figure, roc_figure):
        with pytest.raises(UsageError, match="detection track"):
            draw(identification)
    with pytest.raises(UsageError, match="identification track"):
        identification_figure(detection)


def test_differences_are_shown_with_their_intervals(tmp_path):
    results = made.detection()
    with pytest.raises(UsageError, match="comparison"):
        comparison_figure(results)
    other = made.detection(list(made.rows_of(apart=90)))
    other.model = {"name": "$\\bad_{$"}
    results.comparison = json.loads(json.dumps(compare_results(results, other)))
    figure = comparison_figure(results)
    (axes,) = figure.axes
    differences = results.comparison["differences"]
    labels = [label.get_text().removesuffix(" *").replace(" ", "_") for label in axes.get_yticklabels()]
    assert labels == [name for name in reversed(differences) if name != "nll"]
    assert interval_text(differences["nll"]) in axes.get_xlabel()
    points = [curve for curve in axes.lines if len(curve.get_ydata()) == 1]
    assert [point.get_xdata()[0] for point in points] == [differences[name]["value"] for name in labels]
    better = {name: point.get_marker() == "o" for name, point in zip(labels, points, strict=True)}
    assert better == {name: (differences[name]["value"] < 0) == (name in ("eer", "brier")) for name in labels}
    save_figure(figure, tmp_path / "a.png")


def test_mistakes_are_rows_of_their_groups(tmp_path):
    def mistake(i):
        picture = Image.new("RGB", (20 + i, 16), (10 * i, 0, 0))
        return Mistake(f"./a/very/long/path/to/{i:03}.png", "real", "synthetic", 0.9 - i / 100, picture)

    figure = mistakes_figure({"ProGAN": [mistake(i) for i in range(4)], "real": [mistake(4)], "SDXL": []})
    first, second = np.array(figure.axes).reshape(2, 5)
    assert texts(first[0]) == ["ProGAN"]
    assert [axes.get_title() for axes in first[1:]] == [f"{0.9 - i / 100:.3f} synthetic" for i in range(4)]
    assert texts(second[1]) == ["…ry/long/path/to/004.png"]
    assert np.array_equal(first[2].images[0].get_array(), np.asarray(mistake(1).thumbnail))
    assert [len(axes.images) for axes in second] == [0, 1, 0, 0, 0]
    assert figure.get_supxlabel() == "no mistakes: SDXL"
    save_figure(figure, tmp_path / "a.png")
    nothing = mistakes_figure({})
    assert nothing.get_supxlabel() == "no mistakes"
    save_figure(nothing, tmp_path / "b.png")


def spectra(*groups, size=16):
    rng = np.random.default_rng(0)
    return {group: Spectrum(5, rng.normal(size=(size, size))) for group in groups}


def test_spectra_are_shown_against_that_of_real_images():
    found = spectra("b", "real", "a")
    figure = spectra_figure(found)
    shown = {axes.get_title(): axes.images[0] for axes in figure.axes if axes.images}
    assert list(shown) == ["real (5)", "b (5)", "a (5)"]
    assert np.array_equal(shown["real (5)"].get_array(), found["real"].decibels)
    assert np.array_equal(shown["a (5)"].get_array(), found["a"].decibels - found["real"].decibels)
    low, high = shown["a (5)"].get_clim()
    assert low == -high
    curve = next(c for axes in figure.axes for c in axes.lines if c.get_label() == "a")
    assert curve.get_ydata() == pytest.approx(found["a"].radial - found["real"].radial)
    assert curve.get_xdata()[[0, -1]].tolist() == [0, 0.5]


def test_spectra_without_real_images_are_shown_as_they_are(tmp_path):
    found = spectra("a", "b")
    figure = spectra_figure(found)
    assert [
        np.array_equal(axes.images[0].get_array(), found[name].decibels)
        for name, axes in zip("ab", figure.axes[:2], strict=True)
    ] == [True, True]
    save_figure(figure, tmp_path / "a.png")
    save_figure(spectra_figure(spectra("real")), tmp_path / "b.png")
    assert len(spectra_figure(spectra("real", *map(str, range(30)))).axes) == 36 + 2 + 1


def test_spectra_of_several_sizes_are_refused():
    with pytest.raises(UsageError, match="one size, got none"):
        spectra_figure({})
    with pytest.raises(UsageError, match="16, 32"):
        spectra_figure(spectra("a") | spectra("b", size=32))


def test_the_same_figure_gives_the_same_bytes(detection, tmp_path):
    for name in ("png", "svg", "pdf"):
        for copy in "ab":
            save_figure(roc_figure(detection), tmp_path / f"{copy}.{name}")
        assert (tmp_path / f"a.{name}").read_bytes() == (tmp_path / f"b.{name}").read_bytes()
    svg = (tmp_path / "a.svg").read_text()
    assert ">real images called synthetic (FPR)</text>" in svg
    assert "dc:date" not in svg


def test_figures_show_in_a_notebook(detection):
    """IPython asks matplotlib's figures for a picture by `print_figure`, not by a method of theirs."""
    from IPython.core.pylabtools import print_figure

    assert print_figure(roc_figure(detection), "png").startswith(b"\x89PNG")


def test_contact_sheet():
    images = [Image.new("L", (8 + i, 9), 30 * i) for i in range(5)]
    figure = contact_sheet(images, [f"image {i}" for i in range(5)], columns=3)
    assert len(figure.axes) == 6
    assert [axes.get_title() for axes in figure.axes] == [*(f"image {i}" for i in range(5)), ""]
    assert np.asarray(figure.axes[2].images[0].get_array()).shape == (9, 10, 3)


@pytest.mark.parametrize(("count", "titles", "columns"), [(0, None, 6), (2, ["one"], 6), (1, None, 0)])
def test_contact_sheet_refuses(count, titles, columns):
    with pytest.raises(UsageError, match="contact_sheet"):
        contact_sheet([Image.new("RGB", (4, 4))] * count, titles, columns)


def test_without_matplotlib_the_extra_is_named(detection, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    for draw in (detection_figure, roc_figure, reliability_figure):
        with pytest.raises(MissingExtraError, match=r"imaginet_hub\[eval\]"):
            draw(detection)


def test_evaluation_imports_nothing_heavy():
    code = (
        "import sys, imaginet_hub.evaluation;"
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'sklearn', 'scipy', 'jsonschema'};"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_figures_leave_pyplot_alone(tmp_path):
    code = (
        "import sys; from PIL import Image; from imaginet_hub.evaluation import contact_sheet, save_figure;"
        "save_figure(contact_sheet([Image.new('RGB', (4, 4))]), sys.argv[1]);"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.svg"], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_patch_figure_shares_one_scale_around_zero(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (24, width, 3), dtype=np.uint8) for width in (24, 40)]
    values = [rng.normal(size=image.shape[:2]) * scale for image, scale in zip(images, (1, 5), strict=True)]
    figure = patch_figure(images, values, ["a $1", "b"])
    above, below = figure.axes[:2], figure.axes[2:4]
    assert all(np.array_equal(axes.images[0].get_array(), image) for axes, image in zip(above, images, strict=True))
    overlays = [axes.images[1] for axes in below]
    assert all(np.array_equal(o.get_array(), part) for o, part in zip(overlays, values, strict=True))
    assert len({o.get_clim() for o in overlays}) == 1
    low, high = overlays[0].get_clim()
    assert low == -high == -np.percentile(np.abs(np.concatenate([part.ravel() for part in values])), 99)
    assert [axes.get_title() for axes in above] == [r"a \$1", "b"]
    save_figure(figure, tmp_path / "patches.png")
    for wrong in (([], []), (images, values[:1]), (images, values[::-1])):
        with pytest.raises(UsageError, match="patch_figure: expected one or more images"):
            patch_figure(*wrong)
    assert patch_figure(images[:1], [values[0] * 0]).axes[1].images[1].get_clim() == (-1, 1)


def test_deletion_figure_shows_means_and_advantages(tmp_path):
    fractions = np.array([0, 0.5, 1.0])
    scores = {"highest first": np.array([[3, 1, 0.0], [5, 1, 0.0]]), "random": np.array([[3, 2, 0.0], [5, 4, 0.0]])}
    figure = deletion_figure(fractions, scores, {"random": {"value": 1.0, "low": 0.5, "high": 1.5}})
    (axes,) = figure.axes
    for order, part in scores.items():
        assert line(axes, order).get_ydata() == pytest.approx(part.mean(axis=0))
    assert legend_of(figure) == ["highest first", "random (1.000 [0.500, 1.500])"]
    assert axes.get_ylabel().endswith("mean of 2 images")
    save_figure(figure, tmp_path / "deletion.png")
    for wrong in ({}, {"random": np.zeros((2, 4))}, {"random": np.zeros(3)}):
        with pytest.raises(UsageError, match=r"expected scores \(images, 3\)"):
            deletion_figure(fractions, wrong)


def test_training_figure_leaves_out_what_was_not_logged(tmp_path):
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None, "learning_rate": 0.1}, {"step": 3, "loss": 1.0}]
    figure = training_figure({"a": history, "b": history[:1]})
    loss, _, rate, _ = figure.axes
    assert loss.lines[0].get_xydata().tolist() == [[1, 2.0], [3, 1.0]]
    assert rate.lines[0].get_xydata().tolist() == [[2, 0.1]]
    save_figure(figure, tmp_path / "training.png")
    for wrong in ({}, {"a": []}):
        with pytest.raises(UsageError, match="training_figure: expected runs with a history"):
            training_figure(wrong)


def test_embedding_figure_shows_every_point_once(tmp_path):
    rng = np.random.default_rng(0)
    points, labels = rng.normal(size=(100, 2)), [f"_family {i % 10}" for i in range(100)]
    figure = embedding_figure(points, labels, "t-SNE")
    (axes,) = figure.axes
    drawn = np.concatenate([part.get_offsets() for part in axes.collections])
    assert sorted(map(tuple, drawn)) == sorted(map(tuple, points))
    assert legend_of(figure) == [*(f" _family {i} (10)" for i in range(8)), "2 others"]
    save_figure(figure, tmp_path / "embedding.png")
    for wrong in ((points, labels[1:]), (points[:0], []), (points[:, :1], labels)):
        with pytest.raises(UsageError, match=r"embedding_figure: expected points \(n, 2\)"):
            embedding_figure(*wrong)
