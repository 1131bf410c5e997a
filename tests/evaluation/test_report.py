import io
import json
import math

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as sk

from imaginet_hub.errors import DataNotFoundError, ImageError, UsageError
from imaginet_hub.evaluation import Results, evaluate_rows
from imaginet_hub.evaluation.mistakes import Mistakes
from imaginet_hub.evaluation.predictions import PredictionStore
from imaginet_hub.perturbations import fixed_crop, jpeg

FAMILIES = ("GAN", "SD")
GENERATORS = {"ProGAN": "GAN", "SDXL": "SD"}


def flat(level, mode="RGB", size=(9, 7)):
    return Image.new("RGB", size, (level, level, level)).convert(mode)


def rows_of(n=24, seed=0):
    """Real and synthetic rows whose grey level is the score that `by_level` gives."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        generator = ("real", "ProGAN", "real", "SDXL")[i % 4]
        level = int(np.clip(rng.normal(110 if generator == "real" else 150, 40), 0, 255))
        rows.append(
            {
                "image": flat(level),
                "label": "real" if generator == "real" else "synthetic",
                "generator": generator,
                "generator_family": GENERATORS.get(generator, "real"),
                "content_type": ("faces", "photos", "photos")[i % 3],
                "path": f"./{i}.png",
                "group": None if i % 2 else "a",
            }
        )
    return rows


def by_level(images):
    scores = np.array([np.asarray(image).mean() / 255 for image in images])
    return np.stack([1 - scores, scores], axis=1)


def evaluate(rows, predict=by_level, track="detection", names=("real", "synthetic"), **options):
    return evaluate_rows(rows, predict, track=track, names=names, progress=False, n_resamples=30, **options)


def png(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def test_detection_end_to_end():
    rows = rows_of()
    results = evaluate(iter(rows), by=("generator", "content_type", "group"), batch_size=5)
    labels = [row["label"] == "synthetic" for row in rows]
    scores = [row["image"].getpixel((0, 0))[0] / 255 for row in rows]
    assert results.metrics["auc"]["value"] == pytest.approx(sk.roc_auc_score(labels, scores))
    assert [entry["path"] for entry in results.per_image] == [row["path"] for row in rows]
    assert [entry["scores"][1] for entry in results.per_image] == pytest.approx(scores)
    assert results.per_image[1]["columns"] == {"generator": "ProGAN", "content_type": "photos", "group": "(none)"}
    assert (results.n, results.class_counts, results.threshold) == (24, {"real": 12, "synthetic": 12}, 0.5)
    assert set(results.by["generator"]) == {"ProGAN", "SDXL"}
    assert results.by["generator"]["SDXL"]["n_real"] == 12
    assert set(results.by["group"]) == {"a", "(none)"}
    assert results.confusion == sk.confusion_matrix(labels, np.array(scores) >= 0.5).tolist()


def test_the_order_of_the_names_is_the_order_of_the_scores():
    rows = rows_of()
    expected, found = (
        evaluate(rows),
        evaluate(rows, lambda images: by_level(images)[:, ::-1], names=("synthetic", "real")),
    )
    assert found.metrics == expected.metrics
    assert found.recall == expected.recall
    assert found.confusion == np.array(expected.confusion)[::-1, ::-1].tolist()
    assert list(found.class_counts) == ["synthetic", "real"]


def test_images_come_in_batches_as_rgb_and_in_order():
    seen = []

    def predict(images):
        seen.append([(type(image), image.mode, image.getpixel((0, 0))[0]) for image in images])
        return by_level(images)

    rows = rows_of(7)
    for row, mode in zip(rows, ("L", "LA", "RGBA", "P", "CMYK", "1", "RGB"), strict=True):
        row["image"] = flat(255, mode)
    rows[0]["image"] = Image.open(io.BytesIO(png(flat(255))))
    evaluate(rows, predict, batch_size=3)
    assert [len(batch) for batch in seen] == [3, 3, 1]
    assert {item for batch in seen for item in batch} == {(Image.Image, "RGB", 255)}


def test_sixteen_bits_are_scaled_not_clipped():
    rows = rows_of(4)
    rows[0]["image"] = Image.fromarray(np.full((8, 8), 100 * 256, np.uint16))
    assert evaluate(rows).per_image[0]["scores"][1] == pytest.approx(100 / 255)


def test_equalised_crops_are_what_is_predicted():
    rows = rows_of(4)
    source = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50, 3)).astype(np.uint8))
    rows[2]["image"] = source
    seen = []

    def predict(images):
        seen.extend(np.asarray(image) for image in images)
        return by_level(images)

    results = evaluate(rows, predict, crop_size=40, equalize="jpeg:90")
    assert np.array_equal(seen[2], np.asarray(jpeg(fixed_crop(source, 40), 90)))
    assert results.preprocessing == {"crop_size": 40, "resize": None, "equalize": "jpeg:90"}


class Broken(dict):
    """A row that is decoded when the image is looked up, and cannot be."""

    def __init__(self, row, error):
        super().__init__(row)
        self.error = error

    def __getitem__(self, key):
        if key == "image":
            raise self.error
        return super().__getitem__(key)


def test_unreadable_rows_are_listed_and_the_others_measured():
    rows = rows_of(12)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8))
    rows[1] = Broken(rows[1], OSError("image file is truncated"))
    rows[3] = Broken(rows[3], ImageError("checksum", "not what the list says"))
    rows[4]["image"] = {"bytes": png(noise)[:3000], "path": "4.png"}
    rows[5]["image"] = {"bytes": png(flat(200)), "path": "5.png"}
    rows[6]["image"] = {"bytes": None, "path": None}
    rows[7]["image"] = Image.open(io.BytesIO(png(noise)[:3000]))  # opens; decoding it fails
    del rows[3]["path"]
    results = evaluate(rows, batch_size=2)
    assert [(entry["row"], entry["path"]) for entry in results.skipped] == [
        (1, "./1.png"),
        (3, "row 3"),
        (4, "./4.png"),
        (6, "./6.png"),
        (7, "./7.png"),
    ]
    assert all(entry["reason"] for entry in results.skipped)
    assert (results.n, len(results.per_image)) == (7, 7)
    assert results.per_image[2]["scores"][1] == pytest.approx(200 / 255)


def test_errors_of_the_prediction_function_are_not_swallowed():
    def predict(images):
        raise OSError("no such device")

    with pytest.raises(OSError, match="no such device"):
        evaluate(rows_of(4), predict)


def test_identification_lists_unknown_classes():
    rows = rows_of(24)
    rows[1]["generator_family"] = "Imagen"
    results = evaluate(rows, track="identification", names=FAMILIES)
    assert results.unknown_classes == {"Imagen": 1, "real": 12}
    assert (results.n, results.class_counts, results.threshold) == (11, {"GAN": 5, "SD": 6}, None)
    assert results.by["generator"].keys() == {"ProGAN", "SDXL"}
    assert np.array(results.confusion).shape == (2, 2)


def test_unknown_classes_are_told_by_the_scores_they_get():
    rows = rows_of(24)
    for row in rows[::2]:
        row["generator_family"] = "Imagen"
    labels = [row["generator_family"] == "Imagen" for row in rows]

    def with_distance(images):
        scores = by_level(images)
        return np.column_stack([scores, 3 * scores[:, 1] - 1])

    results = evaluate(rows, with_distance, track="identification", names=FAMILIES)
    levels = [row["image"].getpixel((0, 0))[0] / 255 for row in rows]
    assert results.unknown["auroc"]["value"] == pytest.approx(sk.roc_auc_score(labels, levels))
    assert (results.unknown["score"], results.unknown["n_known"], results.unknown["n_unknown"]) == ("distance", 12, 12)
    assert (results.n, results.unknown_classes, len(results.per_image[0]["scores"])) == (12, {"Imagen": 12}, 2)
    without = evaluate(rows, track="identification", names=FAMILIES)
    least = [1 - max(level, 1 - level) for level in levels]
    assert without.unknown["auroc"]["value"] == pytest.approx(sk.roc_auc_score(labels, least))
    assert without.unknown["score"] == "1 - highest probability"
    assert evaluate(rows[1::2], track="identification", names=FAMILIES).unknown is None


def encoded(rows):
    return [row | {"image": {"bytes": png(row["image"]), "path": None}} for row in rows]


@pytest.mark.parametrize("workers", [1, 4])
def test_threads_change_nothing(workers):
    rows = encoded(rows_of(30))
    rows[7]["image"] = {"bytes": b"no image", "path": None}
    sizes = []

    def predict(images):
        sizes.append(len(images))
        return by_level(images)

    plain, threaded = evaluate(rows, batch_size=4), evaluate(rows, predict, batch_size=4, num_workers=workers)
    assert threaded == plain
    assert sizes == [4] * 7 + [1]


def test_rows_are_read_no_further_ahead_than_some_batches():
    taken, most = 0, []

    def rows():
        nonlocal taken
        for row in encoded(rows_of(60)):
            taken += 1
            yield row

    predicted = 0

    def predict(images):
        nonlocal predicted
        most.append(taken - predicted)
        predicted += len(images)
        return by_level(images)

    evaluate(rows(), predict, batch_size=4, num_workers=2)
    assert predicted == 60 and max(most) <= 4 + 2 * 4 + 1


def test_resizing_takes_the_middle_square():
    rows = rows_of(4)
    rows[0]["image"] = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 90, 3)).astype(np.uint8))
    rows[1]["image"] = flat(9, size=(1, 5000))
    seen = []

    def predict(images):
        seen.extend(images)
        return by_level(images)

    evaluate(rows, predict, resize=20)
    assert {image.size for image in seen} == {(20, 20)}
    middle = rows[0]["image"].crop((25, 0, 65, 40)).resize((20, 20), Image.Resampling.LANCZOS)
    assert np.array_equal(np.asarray(seen[0]), np.asarray(middle))


class Counted:
    """A detector that says what it was asked, and can be made to fail in the middle."""

    def __init__(self, stop_after=None):
        self.asked, self.stop_after = 0, stop_after

    def __call__(self, images):
        if self.stop_after is not None and self.asked >= self.stop_after:
            raise KeyboardInterrupt
        self.asked += len(images)
        return by_level(images)


def test_a_stopped_evaluation_goes_on_where_it_was(tmp_path):
    rows = encoded(rows_of(20))
    for number, row in enumerate(rows):
        row["image"]["bytes"] += b"#" * number  # no two files alike
    rows[3]["image"] = {"bytes": b"no image", "path": None}

    def store():
        return PredictionStore({"model": "m"}, 2, tmp_path)

    with pytest.raises(KeyboardInterrupt):
        evaluate(rows, Counted(stop_after=8), batch_size=4, store=store())
    second = Counted()
    again = store()
    results = evaluate(rows, second, batch_size=4, store=again)
    assert (second.asked, again.reused) == (11, 8)
    assert results == evaluate(rows, batch_size=4), "the same as in one go"
    third = Counted()
    assert evaluate(rows, third, batch_size=7, store=store(), num_workers=2) == results
    assert third.asked == 0
    other = Counted()
    evaluate(rows, other, store=PredictionStore({"model": "n"}, 2, tmp_path))
    assert other.asked == 19
    # An image that changed is looked at again, and nothing else.
    rows[5]["image"]["bytes"] = png(flat(3))
    changed = Counted()
    evaluate(rows, changed, store=store())
    assert changed.asked == 1


def test_images_without_a_file_are_predicted_anew(tmp_path):
    for _ in range(2):
        detector, store = Counted(), PredictionStore({}, 2, tmp_path)
        evaluate(rows_of(8), detector, store=store)
        assert (detector.asked, len(store)) == (8, 0)


def test_the_worst_mistakes_are_kept(tmp_path):
    rows = encoded(rows_of(60, seed=3))
    for number, row in enumerate(rows):
        row["image"]["bytes"] += b"#" * number
    store = PredictionStore({}, 2, tmp_path)
    mistakes, cached = Mistakes(per_group=2, side=4), Mistakes(per_group=2, side=4)
    results = evaluate(rows, mistakes=mistakes, store=store, by=("generator",))
    evaluate(rows, mistakes=cached, store=store, by=("generator",))
    assert mistakes.by_group().keys() <= {"real", "ProGAN", "SDXL"} and mistakes.by_group()
    for group, kept in mistakes.by_group().items():
        wrong = [
            (entry["scores"][entry["label"] == "synthetic"], entry["path"])
            for entry in results.per_image
            if entry["columns"]["generator"] == group
            and (entry["scores"][1] >= 0.5) != (entry["label"] == "synthetic")
        ]
        worst = [path for _, path in sorted(wrong, key=lambda item: item[0])[:2]]
        assert [mistake.path for mistake in kept] == worst
        assert all(mistake.thumbnail.size == (4, 3) and mistake.answer != mistake.label for mistake in kept)
        assert [m.path for m in cached.by_group()[group]] == worst, "from kept predictions too"


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"track": "both"}, "track"),
        ({}, {"names": ("fake", "real")}, "class names"),
        ({}, {"batch_size": 0}, "batch_size"),
        ({}, {"crop_size": 0}, "crop_size"),
        ({}, {"resize": 0}, "resize"),
        ({}, {"num_workers": -1}, "num_workers"),
        ({}, {"threshold": 1.5}, "threshold"),
        ({}, {"threshold": float("nan")}, "threshold"),
        ({}, {"equalize": "jpeg"}, "equalize"),
        ({}, {"equalize": "jpeg:101"}, "equalize"),
        ({}, {"equalize": "png:9"}, "equalize"),
        ({}, {"by": ("camera",)}, "camera"),
        ({}, {"seed": -1}, "seed"),
        ({"label": 0}, {}, "int2str"),
        ({"label": "fake"}, {}, "fake"),
        ({"image": "a.png"}, {}, "PIL image"),
        ({}, {"predict": lambda images: np.zeros(len(images))}, "shape"),
        ({}, {"predict": lambda images: by_level(images) * 9}, "softmax"),
        ({}, {"predict": lambda images: by_level(images) * np.nan}, "softmax"),
        ({}, {"track": "identification", "names": ("X", "Y")}, "24 of classes other"),
    ],
)
def test_unusable_arguments_are_refused(change, options, message):
    rows = rows_of()
    rows[0] |= change
    with pytest.raises(UsageError, match=message):
        evaluate(rows, **options)


def test_no_rows():
    with pytest.raises(UsageError, match="got none"):
        evaluate([])


def test_results_survive_the_file(tmp_path):
    results = evaluate(rows_of(), by=("generator", "content_type", "group"))
    results.model, results.dataset = {"name": "m"}, {"name": "d", "split": "test"}
    path = tmp_path / "new" / "folder" / "results.json"
    results.write(path)
    assert Results.read(path) == results
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]
    again = tmp_path / "again.json"
    Results.read(path).write(again)
    assert again.read_bytes() == path.read_bytes()
    results.write(path, per_image=False)
    assert Results.read(path).per_image is None
    assert results.per_image


def test_the_file_has_the_documented_keys_and_no_nan(tmp_path):
    results = evaluate([row for row in rows_of() if row["label"] == "real"])
    results.write(tmp_path / "results.json")

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    assert list(content) == [
        *("schema_version", "track", "names", "model", "dataset", "preprocessing", "threshold", "bootstrap", "n"),
        *("class_counts", "skipped", "unknown_classes", "unknown", "metrics", "recall", "confusion", "baselines"),
        *("by", "protocols", "comparison", "speed", "software", "per_image"),
    ]
    assert content["metrics"]["auc"] == {"value": None, "low": None, "high": None}
    assert content["recall"]["synthetic"]["value"] is None
    assert content["metrics"] == results.metrics  # in memory as in the file


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    results = evaluate(rows_of())
    results.write(path)
    before = path.read_bytes()
    results.model = {"score": math.nan}
    results.write(path)
    assert Results.read(path).model == {"score": None}
    results.model = {"name": "\ud800"}  # cannot be encoded
    with pytest.raises(UnicodeEncodeError):
        results.write(path)
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
    assert json.loads(path.read_text())["n"] == json.loads(before)["n"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "JSON"),
        ("[]", "version None"),
        ('{"schema_version": 1}', "version 1"),
        ('{"schema_version": 2, "track": "detection", "extra": 1}', "extra"),
    ],
)
def test_other_files_are_refused(tmp_path, text, message):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        Results.read(tmp_path / "results.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataNotFoundError, match="nowhere"):
        Results.read(tmp_path / "nowhere.json")


def test_progress_is_shown(capsys):
    evaluate_rows(rows_of(4), by_level, track="detection", names=("real", "synthetic"), total=4, n_resamples=2)
    assert "4/4" in capsys.readouterr().err


def test_a_notebook_shows_a_table_in_which_names_are_text():
    from html.parser import HTMLParser

    results = evaluate(rows_of())
    results.model, results.dataset = {"name": "<script>alert(1)</script>"}, {"name": 'a"><b>', "split": "test"}
    tags, texts = [], []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append(tag)
            assert not attrs

        def handle_data(self, data):
            texts.append(data)

    Reader().feed(results._repr_html_())
    assert set(tags) == {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert tags.count("tr") == 1 + len(results.metrics)
    assert texts[0] == 'detection by <script>alert(1)</script> on a"><b>/test; value [95% interval]'
    auc = results.metrics["auc"]
    assert f"{auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]" in texts


def test_an_object_is_read_as_a_file_is(tmp_path):
    results = evaluate(rows_of())
    results.write(tmp_path / "results.json")
    assert Results.from_json(results.to_json()) == Results.read(tmp_path / "results.json")
    with pytest.raises(UsageError, match="schema version 2, found version None"):
        Results.from_json([1])


def test_figures_are_what_the_scores_of_images_give(tmp_path):
    rows = rows_of(40)
    three = [{**row, "label": row["generator_family"]} for row in rows]

    def predict(images):
        level = by_level(images)[:, 1]
        return np.stack([level, 1 - level, np.full(len(level), 0.3)], axis=1) / 1.3

    for results in (
        evaluate(rows, by=("generator", "content_type", "group"), threshold=0.4),
        evaluate(rows, by_level, names=("synthetic", "real")),
        evaluate(rows[::2], by=("group",)),  # one class: some figures are undefined
        evaluate(three, predict, "identification", ("SD", "GAN", "real"), by=("generator", "group")),
        evaluate(three, lambda images: predict(images)[:, :2], "identification", ("SD", "GAN")),
    ):
        results.write(tmp_path / "r.json")
        again = Results.read(tmp_path / "r.json")
        again.check_scores()
        again.metrics["accuracy"]["value"] += 0.01
        with pytest.raises(UsageError, match=r"metrics\.accuracy\.value: expected"):
            again.check_scores()
        again.per_image = None
        again.check_scores()
