"""Stage 2: the head learns, the encoder stays, the statistics adapt or not, the folder is a classifier."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pytest
import sklearn.discriminant_analysis
import sklearn.metrics
import sklearn.preprocessing
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, set_seed

from imaginet_hub import calibration
from imaginet_hub.data.loading import held_out
from imaginet_hub.errors import DataNotFoundError, ModelError, UsageError
from imaginet_hub.selfcon import (
    SelfConImageProcessor,
    SelfConResNetConfig,
    SelfConResNetForImageClassification,
    SelfConResNetForPreTraining,
)
from imaginet_hub.training import head
from imaginet_hub.training.augment import AugmentedRows, HeadAugmentation, RowKey
from imaginet_hub.training.head import build_classifier, encode, parse_head_args, train_head
from imaginet_hub.training.trainer import parse_train_args, train
from tests.training.conftest import TINY, patterned, pickles

QUIET = ["--disable_tqdm", "true", "--use_cpu", "true", "--crop_size", "32", "--per_device_train_batch_size", "20"]
QUIET += ["--logging_steps", "1", "--processor_crop_size", "40", "--bf16", "false"]
RECORD = {"name": "patterns", "split": "train"}


def synthetic(rows):
    return rows.filter(lambda label: label == 1, input_columns="label")


def headed(rows, encoder, out, *flags, column="label", **options):
    return train_head(
        rows, encoder, parse_head_args([*QUIET, *flags], out), label_column=column, dataset_record=RECORD, **options
    )


def balanced_accuracy(folder, rows, column):
    model = SelfConResNetForImageClassification.from_pretrained(folder).eval()
    processor = SelfConImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        predicted = model(**processor(list(rows["image"]), return_tensors="pt")).logits.argmax(1).numpy()
    labels = np.array(rows[column][:])
    return np.mean([(predicted[labels == label] == label).mean() for label in set(labels.tolist())])


@pytest.fixture(scope="module")
def encoder(rows, tmp_path_factory):
    """Trained until checkerboards and columns are told apart; see the test of stage 1."""
    flags = [*QUIET, *TINY, "--max_steps", "150", "--perturb", "0", "--temperature", "0.2", "--balance"]
    return train(rows, *parse_train_args(flags, tmp_path_factory.mktemp("encoder")), dataset_record=RECORD)


@pytest.fixture
def raw():
    """An encoder with random weights, made in no time."""
    torch.manual_seed(0)
    return SelfConResNetForPreTraining(SelfConResNetConfig(backbone="test_resnet", stem_stride=2))


def test_both_heads_work_on_unseen_images(rows, unseen, encoder, tmp_path):
    flags = ["--max_steps", "60", "--learning_rate", "0.003", "--perturb", "0"]
    detection = headed(rows, encoder, tmp_path / "detection", *flags)
    assert balanced_accuracy(detection, unseen, "label") >= 0.8
    identification = headed(synthetic(rows), encoder, tmp_path / "identification", *flags, column="generator_family")
    assert balanced_accuracy(identification, synthetic(unseen), "generator_family") >= 0.8


@pytest.mark.parametrize(
    ("track", "names", "head_type", "column"),
    [
        ("detection", ["real", "synthetic"], "batchnorm_mlp", "label"),
        ("identification", ["GAN", "SD"], "l2norm_mlp", "generator_family"),
    ],
)
def test_the_folder_is_a_classifier_of_its_track(rows, raw, tmp_path, track, names, head_type, column):
    raw.config.trained_on = {"name": "elsewhere"}
    chosen = rows if track == "detection" else synthetic(rows)
    out = headed(chosen, raw, tmp_path, "--max_steps", "1", column=column)
    model = SelfConResNetForImageClassification.from_pretrained(out)
    assert model.config.id2label == dict(enumerate(names)) and model.config.label2id == {
        n: i for i, n in enumerate(names)
    }
    assert (model.config.track, model.config.head_type) == (track, head_type)
    assert model.config.trained_on == {**RECORD, "encoder": {"name": "elsewhere"}}
    assert dict(SelfConImageProcessor.from_pretrained(out).crop_size) == {"height": 40, "width": 40}
    record = json.loads((out / "training.json").read_text())
    assert record["stage"] == "head" and record["track"] == track and record["names"] == names
    assert record["arguments"]["learning_rate"] == 1e-4
    assert pickles(out) == [] and {"model.safetensors", "modeling_selfcon.py"} <= {file.name for file in out.iterdir()}


@pytest.mark.parametrize(
    ("flags", "weights", "statistics"),
    [([], False, True), (["--no_adapt_batchnorm"], False, False), (["--unfreeze_encoder"], True, True)],
)
def test_what_of_the_encoder_changes(rows, raw, tmp_path, flags, weights, statistics):
    before = {name: value.clone() for name, value in raw.encoder.state_dict().items()}
    out = headed(rows, raw, tmp_path, "--max_steps", "2", *flags)
    after = load_file(out / "model.safetensors")
    changed = {name for name, value in before.items() if not torch.equal(value, after[f"encoder.{name}"])}
    assert any("running_mean" in name for name in changed) is statistics
    of_weights = {name for name in changed if "running" not in name and "num_batches" not in name}
    assert bool(of_weights) is weights
    assert not any(name.startswith("exits") or name == "stem_stride" for name in changed)
    assert all(torch.equal(value, before[name]) for name, value in raw.encoder.state_dict().items()), (
        "not the caller's"
    )


def test_frozen_statistics_are_also_used(rows, raw, tmp_path):
    """Without adaptation the features of a crop do not depend on the batch it comes in."""
    out = headed(rows, raw, tmp_path, "--max_steps", "1", "--no_adapt_batchnorm", "--perturb", "0")
    cached = headed(
        rows, raw, tmp_path / "c", "--max_steps", "1", "--no_adapt_batchnorm", "--perturb", "0", "--cache_epochs", "1"
    )
    losses = [json.loads((folder / "training.json").read_text())["final_loss"] for folder in (out, cached)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5), "features from batches of another make-up"


def test_stored_features_train_the_same_head(rows, raw, tmp_path):
    # Of all rows, so that the groups are equal and no row comes twice in an epoch.
    flags = ["--max_steps", "6", "--no_adapt_batchnorm", "--head_dropout", "0", "--held_out", "0"]
    plain = headed(rows, raw, tmp_path / "plain", *flags)
    stored = headed(rows, raw, tmp_path / "stored", *flags, "--cache_epochs", "3")
    expected, got = (load_file(folder / "model.safetensors") for folder in (plain, stored))
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_stored_features_are_those_of_the_keys(rows, raw, tmp_path):
    args = parse_head_args([*QUIET, "--no_adapt_batchnorm", "--cache_epochs", "2"], tmp_path)
    images = AugmentedRows(rows, HeadAugmentation(32, 7), {"labels": "label"})
    stored = encode(raw.encoder, images, 2, args)
    assert len(stored) == 40 and stored.features.shape == (2, 40, 96)
    with torch.no_grad():
        for key in (RowKey(0, 3), RowKey(1, 39), RowKey(0, 5, 1), RowKey(7, 5)):
            expected = raw.encoder(images[RowKey((key.epoch + key.repeat) % 2, key.row)]["pixel_values"][None])
            torch.testing.assert_close(stored[key]["features"], expected.pooler_output[0], rtol=1e-4, atol=1e-5)
            assert stored[key]["labels"] == rows[key.row]["label"]


def test_upstreams_optimiser_is_adam_with_an_l2_penalty(rows, raw, tmp_path):
    """Adam's first step moves every weight by the learning rate, penalty and all; decoupled decay comes on top."""
    steps = {}
    for name in ("adam", "trainer"):
        out = headed(rows, raw, tmp_path / name, "--max_steps", "1", "--weight_decay", "100", "--head_optimizer", name)
        set_seed(42)
        start = build_classifier(raw, id2label={0: "real", 1: "synthetic"}).classifier[1].weight.detach()
        steps[name] = load_file(out / "model.safetensors")["classifier.1.weight"] - start
    assert steps["adam"].abs().max() <= 1.01e-4 and steps["adam"].abs().median() == pytest.approx(1e-4, rel=0.01)
    assert (steps["trainer"] + 100 * 1e-4 * start).abs().max() <= 1.01e-4
    assert steps["trainer"].abs().max() > 2e-4


def test_a_model_on_the_hub_or_in_a_folder_of_any_head_will_do(rows, raw, tmp_path):
    raw.save_pretrained(tmp_path / "raw")
    first = headed(rows, str(tmp_path / "raw"), tmp_path / "first", "--max_steps", "1", "--no_adapt_batchnorm")
    second = build_classifier(first, id2label={0: "a", 1: "b", 2: "c"})
    assert second.classifier[-1].out_features == 3
    assert all(torch.equal(v, raw.encoder.state_dict()[n]) for n, v in second.encoder.state_dict().items())


def test_an_encoder_without_its_exits_is_refused(raw, tmp_path):
    raw.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    left = {name: value for name, value in weights.items() if ".exits." not in name}
    save_file(left, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 2 tensors .* e\.g\. exits\.stage2\.bias"):
        build_classifier(tmp_path, id2label={0: "a", 1: "b"})


def test_what_cannot_be_trained_is_refused(rows, raw, tmp_path):
    with pytest.raises(UsageError, match="expected synthetic rows only"):
        headed(rows, raw, tmp_path, column="generator_family")
    with pytest.raises(UsageError, match="got synthetic"):
        headed(synthetic(rows), raw, tmp_path)
    with pytest.raises(UsageError, match="image missing"):
        headed(rows.remove_columns("image"), raw, tmp_path)
    with pytest.raises(DataNotFoundError, match="no model at 'nowhere'"):
        headed(rows, "nowhere", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(ModelError, match="of type selfcon_resnet"):
        headed(rows, tmp_path, tmp_path / "out")
    with pytest.raises(ModelError, match="head_type"):
        headed(rows, raw, tmp_path, "--head_type", "linear")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cache_epochs", "2"], "pass --no_adapt_batchnorm"),
        (["--cache_epochs", "-1"], "0 or more, got -1"),
        (["--head_optimizer", "lars"], "invalid choice: 'lars'"),
        (["--adapt_batchnrm"], "did you mean --adapt[_-]batchnorm"),
    ],
)
def test_flags_that_cannot_be_used_are_explained(flags, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        parse_head_args([*QUIET, *flags], tmp_path)


def test_the_defaults_are_upstreams_recipe(tmp_path):
    args = parse_head_args(["--use_cpu", "true"], tmp_path)
    assert (args.num_train_epochs, args.per_device_train_batch_size, args.crop_size) == (5, 200, 256)
    assert (args.learning_rate, args.weight_decay, args.lr_scheduler_type) == (1e-4, 1e-3, "constant")
    assert (args.head_optimizer, args.adapt_batchnorm, args.balance, args.cache_epochs) == ("adam", True, True, 0)
    assert not args.unfreeze_encoder and args.head_hidden_size == 1024 and args.head_dropout == 0.2


class TestCalibration:
    """What is fitted to rows that were held out, and what a published model makes of it."""

    @pytest.fixture(scope="class")
    def many(self):
        return patterned(240, seed=3)

    @pytest.fixture(scope="class")
    def folders(self, many, tmp_path_factory):
        """Heads that differ in nothing but what is fitted after training, on an encoder with random weights."""
        torch.manual_seed(0)
        encoder = SelfConResNetForPreTraining(SelfConResNetConfig(backbone="test_resnet", stem_stride=2))
        out = tmp_path_factory.mktemp("heads")
        flags = ["--no_adapt_batchnorm", "--max_steps", "25", "--learning_rate", "0.003", "--held_out", "0.25"]
        headed(many, encoder, out / "detection", *flags)
        more = [*flags, "--accept_known", "0.9"]
        headed(synthetic(many), encoder, out / "identification", *more, column="generator_family")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(head, "calibrate", lambda *args, **kwargs: {})
            headed(many, encoder, out / "raw", *flags)
            headed(synthetic(many), encoder, out / "raw identification", *flags, column="generator_family")
        return out

    def features(self, model, rows):
        with torch.no_grad():
            pixels = SelfConImageProcessor(crop_size=40)(list(rows["image"]), return_tensors="pt")["pixel_values"]
            return model.encoder(pixels).pooler_output.double().numpy()

    def distances(self, model, rows):
        with torch.no_grad():
            return model.open_set(torch.from_numpy(self.features(model, rows)).float()).numpy()

    def logits(self, folder, rows):
        model = SelfConResNetForImageClassification.from_pretrained(folder).eval()
        processor = SelfConImageProcessor.from_pretrained(folder)
        with torch.no_grad():
            logits = model(**processor(list(rows["image"]), return_tensors="pt")).logits
        return model.config, logits.double().numpy()

    def test_the_published_logits_are_the_fitted_ones(self, folders, many):
        held = held_out(many, 0.25)[1]
        labels = np.array(held["label"][:])
        config, published = self.logits(folders / "detection", held)
        _, raw = self.logits(folders / "raw", held)
        fitted = config.calibration
        assert (fitted["method"], fitted["threshold"], fitted["rows"]) == ("platt", 0.5, len(held))
        margins = raw[:, 1] - raw[:, 0]
        slope, intercept = calibration.fit_platt(margins, labels)
        assert (fitted["slope"], fitted["intercept"]) == pytest.approx((slope, intercept), rel=1e-3)
        got = published[:, 1] - published[:, 0]
        np.testing.assert_allclose(got, slope * margins + intercept, rtol=1e-3, atol=1e-3)
        # The likelier class is the one on its side of the stored threshold.
        probability = 1 / (1 + np.exp(-got))
        assert ((probability >= fitted["threshold"]) == (published.argmax(1) == 1)).all()
        assert fitted["after"]["nll"] <= fitted["before"]["nll"] + 0.02
        exact = sklearn.metrics.log_loss(labels, probability)
        assert fitted["after"]["nll"] == pytest.approx(exact, abs=2e-4)

    def test_a_temperature_changes_no_class(self, folders, many):
        rows = synthetic(many)
        config, published = self.logits(folders / "identification", rows)
        _, raw = self.logits(folders / "raw identification", rows)
        np.testing.assert_allclose(published, raw / config.calibration["temperature"], rtol=1e-3, atol=1e-3)
        assert (published.argmax(1) == raw.argmax(1)).all()

    def test_known_generators_are_accepted_as_often_as_was_asked(self, folders, many):
        held = held_out(synthetic(many), 0.25)[1]
        model = SelfConResNetForImageClassification.from_pretrained(folders / "identification").eval()
        stored = model.config.open_set
        assert stored["accepts"] == 0.9 and stored["rows"] == len(held)
        distances = self.distances(model, held)
        assert np.mean(distances <= stored["threshold"] * 1.0001) >= 0.9
        assert np.mean(distances < stored["threshold"] * 0.9999) < 0.9

    def test_distances_are_those_of_linear_discriminants(self, folders, many):
        model = SelfConResNetForImageClassification.from_pretrained(folders / "identification").eval()
        kept, held = held_out(synthetic(many), 0.25)
        unit = [sklearn.preprocessing.normalize(self.features(model, rows)) for rows in (kept, held)]
        labels = np.array(kept["generator_family"][:])
        # scikit-learn's discriminants, shrunk alike, with every class at its share; their space's unit is the spread.
        lda = sklearn.discriminant_analysis.LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.1)
        lda.fit(unit[0], labels)
        directions = lda.scalings_[:, :1]
        within = np.mean([np.cov(unit[0][labels == k].T, bias=True) for k in (0, 1)], axis=0)
        assert abs(np.bincount(labels)[:2] - len(labels) / 2).max() <= 4, "so that it matters little how classes weigh"
        shrunk = 0.9 * within + 0.1 * np.trace(within) / len(within) * np.eye(len(within))
        scale = np.sqrt(directions.T @ shrunk @ directions)[0, 0]
        means = [(unit[0][labels == k] @ directions).mean() for k in (0, 1)]
        expected = np.min([np.abs(unit[1] @ directions - mean)[:, 0] / scale for mean in means], axis=0)
        np.testing.assert_allclose(self.distances(model, held), expected, rtol=0.1, atol=0.05)

    def test_another_kind_of_image_is_further_than_all_that_were_held_out(self, folders, many):
        model = SelfConResNetForImageClassification.from_pretrained(folders / "identification").eval()
        noise = np.random.default_rng(0).integers(0, 256, (8, 40, 40, 3), dtype=np.uint8)
        strange = {"image": [Image.fromarray(pixels) for pixels in noise]}
        assert self.distances(model, strange).min() > model.config.open_set["threshold"]

    def test_it_says_whether_the_encoder_was_trained_on_the_same_rows(self, folders, many, tmp_path):
        assert json.loads((folders / "detection" / "training.json").read_text())["calibration_rows_unseen"] is None
        flags = ["--max_steps", "1", "--held_out", "0.25"]
        encoder = train(many, *parse_train_args([*QUIET, *TINY, *flags], tmp_path / "e"), dataset_record=RECORD)
        for share, unseen in (("0.25", True), ("0.3", False)):
            out = headed(many, encoder, tmp_path / share, "--max_steps", "1", "--held_out", share)
            assert json.loads((out / "training.json").read_text())["calibration_rows_unseen"] is unseen

    def test_held_out_rows_are_not_trained_on(self, many, raw, tmp_path, monkeypatch):
        seen = set()
        original = AugmentedRows.__getitem__

        def spied(self, key):
            row = self.rows[key.row if isinstance(key, tuple) else key]
            seen.add(row["image"]["bytes"])
            return original(self, key)

        monkeypatch.setattr(AugmentedRows, "__getitem__", spied)
        headed(many, raw, tmp_path, "--num_train_epochs", "1", "--held_out", "0.25", "--no_balance")
        plain = many.cast_column("image", datasets.Image(decode=False))
        kept, held = (part["image"] for part in held_out(plain, 0.25))
        assert seen == {image["bytes"] for image in kept}
        assert seen.isdisjoint(image["bytes"] for image in held)

    def test_a_class_is_never_held_out_as_a_whole(self, many, raw, tmp_path):
        chosen = held_out(synthetic(many), 0.25)[1]
        rare = chosen.filter(lambda family: family == 0, input_columns="generator_family").select(range(1))
        rows = datasets.concatenate_datasets(
            [synthetic(many).filter(lambda family: family == 1, input_columns="generator_family"), rare]
        )
        flags = ["--max_steps", "1", "--held_out", "0.25", "--dataloader_drop_last", "true"]
        out = headed(rows, raw, tmp_path, *flags, column="generator_family")
        record = json.loads((out / "training.json").read_text())
        assert record["names"] == ["GAN", "SD"] and record["calibration"]["method"] == "none"

    def test_without_enough_rows_it_says_so_and_trains_on_all(self, rows, raw, tmp_path):
        out = headed(rows.select(range(12)), raw, tmp_path, "--max_steps", "1", "--held_out", "0.01")
        config = SelfConResNetConfig.from_pretrained(out)
        assert config.calibration["method"] == "none"
        assert "fewer than 20 rows of two classes" in config.calibration["why"]
        assert config.open_set is None

    def test_weights_that_are_not_finite_are_kept_as_they_are(self, raw):
        config = SelfConResNetConfig(backbone="test_resnet", stem_stride=2, track="detection", num_labels=2)
        model = SelfConResNetForImageClassification(config)
        before = model.classifier[-1].weight.clone()
        record = head.calibrate(model, torch.full((2, 96), torch.nan), np.array([0, 1]))
        assert record["calibration"] == {"method": "none", "why": "the logits are not finite"}
        assert torch.equal(model.classifier[-1].weight, before)

    def test_logits_that_point_the_wrong_way_are_kept_as_they_are(self):
        config = SelfConResNetConfig(backbone="test_resnet", stem_stride=2, track="detection", num_labels=2)
        model = SelfConResNetForImageClassification(config)
        model.eval()
        features = torch.randn(40, 96)
        with torch.no_grad():
            wrong = (model.classifier(features).diff(dim=1)[:, 0] < 0).long().numpy()
        record = head.calibrate(model, features, wrong)
        assert record["calibration"]["method"] == "none" and model.config.calibration == record["calibration"]

    @pytest.mark.parametrize("number", ["0", "1"])
    def test_a_broken_image_among_the_held_out_costs_the_calibration_and_no_more(self, many, raw, tmp_path, number):
        plain = many.cast_column("image", datasets.Image(decode=False)).add_column(
            "sha256", [f"{number:064x}" for number in range(len(many))]
        )
        first = held_out(plain, 0.25)[1]["sha256"][0]

        def damage(row):
            if row["sha256"] == first:
                row["image"] = {"bytes": row["image"]["bytes"][:60], "path": None}
            return row

        broken = plain.map(damage).cast_column("image", datasets.Image())
        workers = ["--dataloader_num_workers", number]
        out = headed(broken, raw, tmp_path, "--max_steps", "1", "--held_out", "0.25", *workers)
        assert "cannot be read whole" in SelfConResNetConfig.from_pretrained(out).calibration["why"]
        assert (out / "model.safetensors").is_file()


def record(name="a", **more):
    return {"name": name, "split": "train", "images": 9, **more}


@pytest.mark.parametrize(
    ("trained_on", "share", "expected"),
    [
        (record(held_out=0.1), 0.1, True),
        (record(held_out=0.2), 0.1, True),
        (record(held_out=0.1), 0.2, False),
        (record(), 0.1, False),
        (record(held_out="0.1"), 0.1, False),
        (record(held_out=0.2, init=record()), 0.2, False),
        (record("b", init=record(held_out=0.3)), 0.2, True),
        (record("b", encoder=record("c", init=record())), 0.2, False),
        (record("b"), 0.1, None),
        ({"converted_from": "weights.pt"}, 0.1, None),
        (None, 0.1, None),
    ],
)
def test_whether_an_encoder_has_seen_what_is_held_out(trained_on, share, expected):
    assert head.unseen(trained_on, record(), share) is expected


def test_class_names_that_no_model_may_have_are_refused_before_training(rows, raw, tmp_path):
    for name in ("Stable\xa0Diffusion", "two\nlines", ""):
        labelled = rows.add_column("maker", [("Canon", name)[number % 2] for number in range(len(rows))])
        with pytest.raises(UsageError, match="class names of printable characters"):
            headed(labelled, raw, tmp_path, column="maker")


@pytest.mark.parametrize(
    ("column", "values", "names"),
    [
        ("generator", ["A", "B"], ["A", "B"]),
        ("camera", ["Zorki", "apple", "Canon"], ["Canon", "Zorki", "apple"]),
        ("indoors", [True, False], ["False", "True"]),
    ],
)
def test_any_column_of_class_names_can_be_told_apart(rows, raw, tmp_path, column, values, names):
    chosen = synthetic(rows) if column == "generator" else rows
    labelled = chosen.add_column(column, [values[number % len(values)] for number in range(len(chosen))])
    out = headed(labelled, raw, tmp_path, "--max_steps", "2", column=column)
    config = SelfConResNetConfig.from_pretrained(out)
    assert (config.label_column, config.track, config.head_type) == (column, "identification", "l2norm_mlp")
    assert config.id2label == dict(enumerate(names))


def test_the_papers_optimiser_is_adamw_with_its_betas(rows, raw, tmp_path):
    class Optimizer(TrainerCallback):
        def on_train_begin(self, args, state, control, optimizer, **kwargs):
            self.kind, self.group = type(optimizer.optimizer), optimizer.param_groups[0]

    for flags, betas in (([], (0.9, 0.99)), (["--adam_beta2", "0.98"], (0.9, 0.98))):
        found = Optimizer()
        more = ["--max_steps", "1", "--head_optimizer", "adamw", *flags]
        headed(rows, raw, tmp_path / str(betas), *more, callbacks=[found])
        assert found.kind is torch.optim.AdamW
        assert (found.group["lr"], found.group["betas"], found.group["weight_decay"]) == (1e-4, betas, 1e-3)
