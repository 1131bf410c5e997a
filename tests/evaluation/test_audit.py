"""What tells the label without a look at the picture."""

from __future__ import annotations

import csv
import io
import json
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFilter
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from imaginet_hub.data.images import open_image
from imaginet_hub.data.traits import traits
from imaginet_hub.errors import UsageError
from imaginet_hub.evaluation import audit_figures
from imaginet_hub.evaluation.audit import RULES, VARIANTS, audit, write_audit
from imaginet_hub.evaluation.audit_figures import PICTURES
from imaginet_hub.evaluation.bootstrap import Bootstrap
from imaginet_hub.evaluation.comparison import compare
from imaginet_hub.evaluation.detection import detection_metrics
from imaginet_hub.evaluation.spectra import MeanSpectra
from imaginet_hub.inference import audit as inference_audit
from imaginet_hub.inference.audit import audit_dataset
from imaginet_hub.perturbations import jpeg
from tests.conftest import SHARED
from tests.data.test_images import png_of_size
from tests.data.test_traits import png_with

QUICK = {"progress": False, "crop_size": 32, "n_resamples": 200}


def encoded(seed, size=(64, 48), format_="JPEG", **options):
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def row(seed, label, data, **columns):
    return {"image": {"bytes": data, "path": None}, "label": label, "path": f"{seed}.x", **columns}


def planted(n=120):
    """Synthetic images are PNG nine times of ten, real ones are JPEG nine times of ten; nothing else differs."""
    rows = []
    for seed in range(n):
        synthetic, odd = seed % 2 == 1, seed % 20 < 2
        format_ = "PNG" if synthetic != odd else "JPEG"
        columns = {"content_type": ("faces", "photos", "maps")[seed % 3], "source": f"s{seed % 8}"}
        rows.append(row(seed, "synthetic" if synthetic else "real", encoded(seed, format_=format_), **columns))
    return {"train": rows[: n // 2], "test": rows[n // 2 :]}


def balanced(n=240):
    """Files that differ in everything, each kind as often in either class."""
    kinds = [{"format_": "PNG"}, {"quality": 90}, {"quality": 70, "comment": b"x"}, {"format_": "WEBP"}]
    sizes = [(64, 64), (72, 50)]
    return {
        "all": [
            row(seed, ("real", "synthetic")[seed // 8 % 2], encoded(seed, sizes[seed // 4 % 2], **kinds[seed % 4]))
            for seed in range(n)
        ]
    }


@pytest.fixture(scope="module")
def found():
    return audit(planted(), **QUICK)


@pytest.fixture(scope="module")
def realset():
    if not (SHARED / "realset" / "annotations.csv").is_file():
        pytest.skip("real images are not on this machine")
    return audit(SHARED / "realset", progress=False, n_resamples=200)


def value(part):
    return part["balanced_accuracy"]["value"]


@pytest.mark.parametrize(
    ("rule", "everywhere", "without_faces", "test_split"),
    [
        ("sides_multiple_of_64", 0.840, 0.977, 0.768),
        ("square", 0.878, 0.951, 0.853),
        ("is_png", 0.619, 0.675, 0.435),
    ],
)
def test_known_shortcuts_of_real_data(realset, rule, everywhere, without_faces, test_split):
    part = realset["rules"][rule]
    assert value(part["all"]) == pytest.approx(everywhere, abs=0.01)
    assert value(part["without"]["faces"]) == pytest.approx(without_faces, abs=0.01)
    assert value(part["by"]["split"]["test"]) == pytest.approx(test_split, abs=0.01)


def test_known_medians_of_real_data(realset):
    medians = realset["scalars"]["bits_per_pixel"]["by_format"]["JPEG"]["median"]
    assert medians == pytest.approx({"synthetic": 1.50, "real": 3.24}, abs=0.01)
    assert (realset["counts"]["n_real"], realset["counts"]["n_synthetic"]) == (399, 275)


def test_rules_of_real_data_are_those_of_a_plain_count(realset):
    with (SHARED / "realset" / "annotations.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    sizes = [Image.open(SHARED / "realset" / r["path"]).size for r in rows]
    truth, called = [r["label"] == "synthetic" for r in rows], [w == h for w, h in sizes]
    assert value(realset["rules"]["square"]["all"]) == pytest.approx(balanced_accuracy_score(truth, called))


def test_a_planted_shortcut_is_found_and_nothing_else(found):
    rules = found["rules"]
    assert value(rules["is_png"]["all"]) == pytest.approx(0.9)
    assert value(rules["is_jpeg"]["all"]) == pytest.approx(0.1)
    assert rules["is_jpeg"]["all"]["informativeness"] == pytest.approx(0.9)
    low, high = (rules["is_png"]["all"]["balanced_accuracy"][end] for end in ("low", "high"))
    assert 0.8 < low < 0.9 < high < 0.97
    for name in ("square", "has_exif", "sides_multiple_of_64"):
        assert value(rules[name]["all"]) == 0.5
    assert value(found["categoricals"]["format"]) == pytest.approx(0.9)
    for kind in ("metadata", "metadata_and_colours"):
        for way in ("cross_validated", "by_source"):
            assert found["classifier"][kind][way]["balanced_accuracy"]["value"] > 0.8
    texts = [finding["text"] for finding in found["verdict"]["findings"]]
    assert any(text.startswith("is_png predicts synthetic with balanced accuracy 0.900 [") for text in texts)
    assert any(text.startswith("is_jpeg predicts real with balanced accuracy 0.900 [") for text in texts)
    assert found["verdict"]["baseline"]["balanced_accuracy"]["value"] == pytest.approx(0.9)
    strengths = [finding["strength"] for finding in found["verdict"]["findings"] if finding["strength"]]
    assert strengths == sorted(strengths, reverse=True)


def test_parts_are_those_of_the_rows(found):
    rows = [r | {"split": split} for split, part in planted().items() for r in part]
    truth = np.array([r["label"] == "synthetic" for r in rows])
    png = np.array([r["image"]["bytes"].startswith(b"\x89PNG") for r in rows])
    types = np.array([r["content_type"] for r in rows])
    splits = np.array([r["split"] for r in rows])
    part = found["rules"]["is_png"]
    for name in set(types):
        expected = balanced_accuracy_score(truth[types == name], png[types == name])
        assert value(part["by"]["content_type"][name]) == pytest.approx(expected)
        expected = balanced_accuracy_score(truth[types != name], png[types != name])
        assert value(part["without"][name]) == pytest.approx(expected)
    assert part["by"]["split"]["test"]["n_synthetic"] == (truth & (splits == "test")).sum()
    bits = [traits(r["image"]["bytes"]).bits_per_pixel for r in rows]
    scalar = found["scalars"]["bits_per_pixel"]
    assert scalar["auc"]["value"] == pytest.approx(roc_auc_score(truth, bits), abs=1e-12)
    assert scalar["auc"]["low"] < scalar["auc"]["value"] < scalar["auc"]["high"]
    for label, is_synthetic in (("real", False), ("synthetic", True)):
        assert scalar["median"][label] == pytest.approx(np.median(np.array(bits)[truth == is_synthetic]))
        assert sum(scalar["histogram"][label]) == (truth == is_synthetic).sum()


def test_where_there_is_no_shortcut_none_is_found():
    report = audit(balanced(), **QUICK)
    assert report["verdict"] == {"findings": [], "baseline": None}
    for name, rule in report["rules"].items():
        interval = rule["all"]["balanced_accuracy"]
        assert (name, interval["value"]) == (name, 0.5)
        assert interval["low"] <= 0.5 <= interval["high"]
    for kind in ("metadata", "metadata_and_colours"):
        assert report["classifier"][kind]["cross_validated"]["balanced_accuracy"]["low"] <= 0.5
        assert report["classifier"][kind]["by_source"] is None
    assert report["rules"]["square"]["without"] == {}


def test_a_column_of_unique_values_predicts_nothing():
    rows = [r | {"license": f"unique {k}"} for k, r in enumerate(planted()["train"])]
    report = audit({"train": rows}, **QUICK)
    part = report["categoricals"]["license"]
    assert (part["of"], part["categories"], value(part)) == ("column", 60, 0.5)


def test_workers_and_reruns_give_the_same_report(found):
    assert audit(planted(), num_workers=1, **QUICK) == found
    assert audit(planted(), num_workers=5, **QUICK) == found


def test_what_cannot_be_read_is_counted_and_listed():
    bomb = png_with((b"zTXt", b"prompt\0\0" + zlib.compress(b"\0" * 10_000_000)))
    good = encoded(1)
    rows = planted(40)["train"]
    bad = [b"", b"GIF89a", good[: len(good) // 2], b"\x89PNG\r\n\x1a\n" + good, png_of_size(60_000, 60_000)]
    hostile = [row(f"bad {k}", "real", data) for k, data in enumerate(bad)]
    hostile += [{"image": {"bytes": None, "path": path}, "label": "real"} for path in (None, "/nowhere/x.png")]
    report = audit({"train": [*rows, *hostile, row("bomb", "synthetic", bomb)]}, **QUICK)
    assert report["counts"]["n"] == 20
    assert report["counts"]["unreadable"] == len(report["unreadable"]) == 8
    assert [entry["row"] for entry in report["unreadable"]] == list(range(20, 28))
    assert all(entry["reason"] for entry in report["unreadable"])


def test_copies_across_splits_and_labels():
    data = planted()
    twin = data["train"][0]
    data["test"] += [twin | {"label": "synthetic", "path": "twin"}]
    again = io.BytesIO()
    open_image(data["train"][2]["image"]["bytes"]).save(again, "WEBP", quality=80)
    data["test"] += [row("again", "real", again.getvalue())]
    duplicates = audit(data, **QUICK)["duplicates"]
    for kind in ("file", "pixels"):
        assert [duplicates[kind][key] for key in ("groups", "across_splits", "across_labels")] == [1, 1, 1]
    near = duplicates["near"]
    assert [near[key] for key in ("groups", "across_splits", "across_labels", "leaked")] == [
        2, 2, 1, {"test": 2, "train": 2},
    ]  # fmt: skip
    assert [entry["path"] for entry in near["examples"][0]["rows"]] == ["0.x", "twin"]
    assert len(bytes.fromhex(near["examples"][0]["rows"][0]["thumbnail"])) == 256


def sharpness(images):
    """A detector of blocks: how much an image differs from a blurred one."""
    assert all(image.mode == "RGB" and image.size == (32, 32) for image in images)
    apart = [np.abs(np.asarray(i, float) - np.asarray(i.filter(ImageFilter.BoxBlur(1)), float)).mean() for i in images]
    p = np.array(apart) / (1 + np.array(apart))
    return np.stack([p, 1 - p], axis=1)


def test_a_model_raw_and_equalised():
    data = planted(60)
    report = audit(data, predict=sharpness, names=("synthetic", "real"), batch_size=7, **QUICK)["model"]
    rows = [*data["train"], *data["test"]]
    truth = [r["label"] == "synthetic" for r in rows]
    images = [open_image(r["image"]["bytes"]).crop((16, 8, 48, 40)) for r in rows]
    scores = sharpness(images)[:, 0]
    assert list(report["variants"]) == list(VARIANTS)
    metrics = report["variants"]["raw"]["metrics"]
    expected = detection_metrics(truth, scores)
    assert {name: part["value"] for name, part in metrics.items()} == pytest.approx(
        {name: expected[name] for name in metrics}, nan_ok=True
    )
    for name, part in report["difference"].items():
        for metric, interval in part.items():
            apart = report["variants"][name]["metrics"][metric]["value"] - metrics[metric]["value"]
            assert interval["value"] == pytest.approx(apart)
            assert interval["low"] <= interval["value"] <= interval["high"]
    blocks = sharpness([jpeg(image, 90) for image in images])[:, 0]
    paired = compare(truth, blocks, scores, bootstrap=Bootstrap(200))["differences"]
    assert report["difference"]["format_quality"] == {name: paired[name] for name in ("balanced_accuracy", "auc")}


def test_long_thin_images_do_not_explode():
    data = planted(40)
    data["train"].append(row("thin", "real", encoded(1, (1, 6000), "PNG")))
    assert audit(data, predict=sharpness, **QUICK)["counts"]["n_real"] == 21


def test_limit_draws_rows_of_each_split():
    report = audit(planted(), limit=15, **QUICK)
    assert {name: part["n"] for name, part in report["counts"]["by"]["split"].items()} == {"train": 15, "test": 15}
    assert audit(planted(), splits=["test"], **QUICK)["counts"]["n"] == 60


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"label": "real"}, {}, "both classes"),
        ({"label": None}, {}, "expected a label"),
        ({"label": "GAN"}, {}, "expected a label"),
        ({"image": Image.new("RGB", (4, 4))}, {}, "decode=False"),
        ({}, {"splits": ["dev"]}, "dev"),
        ({}, {"limit": 0}, "limit"),
        ({}, {"predict": sharpness, "crop_size": 0}, "crop_size"),
        ({}, {"names": ("cat", "dog")}, "class names"),
        ({}, {"predict": lambda images: np.zeros(len(images))}, "predict"),
        ({}, {"predict": lambda images: np.full((len(images), 2), np.nan)}, "predict"),
    ],
)
def test_refused(change, options, message):
    rows = [r | change for r in planted(40)["train"]]
    with pytest.raises(UsageError, match=message):
        audit({"train": rows}, **QUICK | options)


def test_written_report_and_pictures(found, make_root, tmp_path):
    out = tmp_path / "new" / "audit"
    files = write_audit(found, out)
    assert files[0] == out / "audit.json"
    assert json.loads(files[0].read_text(encoding="utf-8")) == found
    assert {"audit.png", "audit.svg"} <= {path.name for path in out.iterdir()}
    assert all(path.stat().st_size > 5000 for path in files)
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    assert write_audit(found, out) == files


def test_pictures_of_an_earlier_audit_are_removed(found, tmp_path):
    model = audit(planted(40), predict=sharpness, **QUICK)
    spectra = MeanSpectra()
    spectra.add("real", Image.new("RGB", (300, 300)))
    first = write_audit(model, tmp_path, spectra=spectra.result())
    (tmp_path / "pictures" / "mine.png").write_bytes(b"mine")
    second = write_audit(found, tmp_path)
    assert {path.name for path in set(first) - set(second)} == {"model.png", "spectra.png"}
    written = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {*second, tmp_path / "pictures" / "mine.png"}
    assert {path.relative_to(tmp_path).as_posix() for path in first[1:]} <= set(PICTURES)


@pytest.mark.parametrize("when", ["spectra", "figures"])
def test_an_interrupted_audit_leaves_what_was_there(make_root, tmp_path, monkeypatch, when):
    root, out = make_root(real=14, synthetic=12), tmp_path / "out"
    (out / "pictures").mkdir(parents=True)
    before = {out / name: name.encode() for name in ("audit.json", "audit.png", "pictures/model.png")}
    for path, data in before.items():
        path.write_bytes(data)

    def interrupt(*_):
        raise KeyboardInterrupt

    where = (inference_audit, "_spectra") if when == "spectra" else (audit_figures, "spectra_figure")
    monkeypatch.setattr(*where, interrupt)
    with pytest.raises(KeyboardInterrupt):
        audit_dataset(root, out, progress=False)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_few_images_of_one_kind_can_be_audited_and_drawn(tmp_path):
    data = {"$train_{": [row(k, ("real", "synthetic")[k % 2], encoded(k, format_="PNG")) for k in range(3)]}
    report = audit(data, predict=sharpness, **QUICK)
    assert report["classifier"]["metadata"]["cross_validated"] is None
    assert value(report["categoricals"]["format"] | {"balanced_accuracy": {"value": None}}) is None
    assert report["scalars"]["jpeg_quality"]["auc"]["value"] is None
    assert (tmp_path / "pictures" / "model.png") in write_audit(report, tmp_path)


def test_a_root_folder_is_audited(make_root):
    report = audit(make_root(real=14, synthetic=12), **QUICK)
    assert report["dataset"]["name"] == "root"
    assert report["counts"]["n"] == 26
    assert set(report["counts"]["by"]["split"]) == {"train", "test"}
    assert {"group", "license", "source"} <= report["categoricals"].keys()
    assert set(RULES) == set(report["rules"])
