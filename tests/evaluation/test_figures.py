import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from imaginet_hub.errors import MissingExtraError, UsageError
from imaginet_hub.evaluation import contact_sheet, detection_figure, identification_figure, save_figure
from tests.evaluation.test_report import FAMILIES, evaluate, rows_of


@pytest.fixture(scope="module")
def detection():
    return evaluate(rows_of(80))


@pytest.fixture(scope="module")
def identification():
    return evaluate(rows_of(80), track="identification", names=FAMILIES)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_detection_figure_shows_the_operating_point_and_every_generator(detection, tmp_path):
    figure = detection_figure(detection)
    roc, _, bars = figure.axes
    assert roc.get_xscale() == "log"
    point = next(line for line in roc.lines if line.get_label() == "threshold 0.5")
    assert point.get_xdata()[0] == pytest.approx(1 - detection.recall["real"]["value"])
    assert point.get_ydata()[0] == pytest.approx(detection.recall["synthetic"]["value"])
    curve = next(line for line in roc.lines if line.get_label() == "detector")
    assert (np.diff(curve.get_xdata()) >= 0).all()
    assert (np.diff(curve.get_ydata()) >= 0).all()
    assert {label.get_text() for label in bars.get_yticklabels()} == {"ProGAN (20)", "SDXL (20)"}
    widths = sorted(bar.get_width() for bar in bars.patches)
    values = sorted(part["metrics"]["balanced_accuracy"]["value"] for part in detection.by["generator"].values())
    assert widths == values
    for name in ("a.png", "b.svg"):
        save_figure(figure, tmp_path / "new" / name)
        assert (tmp_path / "new" / name).stat().st_size > 10_000


def test_many_and_small_groups(tmp_path):
    rows = rows_of(80)
    for i, row in enumerate(rows):
        row["generator"] = row["generator"] if row["label"] == "real" else f"generator {i}"
    figure = detection_figure(evaluate(rows))
    bars = figure.axes[1]
    assert len(bars.patches) == 40
    assert len(bars.lines) == 1  # chance only: a single row has no interval
    assert "pale" in bars.get_xlabel()
    save_figure(figure, tmp_path / "many.png")


@pytest.mark.parametrize("label", ["real", "synthetic"])
def test_detection_figure_of_one_class(label, tmp_path):
    figure = detection_figure(evaluate([row for row in rows_of() if row["label"] == label]))
    assert "one class only" in texts(figure.axes[0])
    save_figure(figure, tmp_path / "one.png")


def test_detection_figure_needs_scores(detection, tmp_path):
    detection.write(tmp_path / "results.json", per_image=False)
    with pytest.raises(UsageError, match="per_image"):
        detection_figure(type(detection).read(tmp_path / "results.json"))


def test_identification_figure_shows_every_count(identification, tmp_path):
    figure = identification_figure(identification)
    (axes,) = figure.axes
    shown = [int(text.split("\n")[0]) for text in texts(axes)]
    assert np.array(shown).reshape(2, 2).tolist() == identification.confusion
    save_figure(figure, tmp_path / "confusion.png")


def test_names_are_not_read_as_formulas(tmp_path):
    rows = rows_of()
    for row in rows:
        row["generator_family"] = row["generator_family"].replace("SD", "$\\bad_{$")
        row["generator"] = row["generator"].replace("SDXL", "$x^$")
    results = evaluate(rows, track="identification", names=("GAN", "$\\bad_{$"))
    results.model = {"name": "$_$"}
    save_figure(identification_figure(results), tmp_path / "a.png")
    save_figure(detection_figure(evaluate(rows)), tmp_path / "b.png")
    save_figure(contact_sheet([rows[0]["image"]], ["$\\bad$"]), tmp_path / "c.png")


def test_results_of_the_other_track_are_refused(detection, identification):
    with pytest.raises(UsageError, match="detection track"):
        detection_figure(identification)
    with pytest.raises(UsageError, match="identification track"):
        identification_figure(detection)


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
    with pytest.raises(MissingExtraError, match=r"imaginet_hub\[eval\]"):
        detection_figure(detection)


def test_evaluation_imports_nothing_heavy():
    code = (
        "import sys, imaginet_hub.evaluation;"
        "print(sorted({'torch', 'transformers', 'datasets', 'matplotlib', 'sklearn', 'scipy'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_figures_leave_pyplot_alone():
    code = (
        "import sys; from PIL import Image; from imaginet_hub.evaluation import contact_sheet;"
        "contact_sheet([Image.new('RGB', (4, 4))]); print('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
