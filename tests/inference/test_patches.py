"""Patch maps: that they add up to the answer, move with the image, and point at evidence whose place is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from imaginet_hub.errors import ModelError, UsageError
from imaginet_hub.inference.detector import Detector
from imaginet_hub.inference.patches import DeletionCurves, PatchMap, deletion_curves, patch_map
from imaginet_hub.selfcon import SelfConImageProcessor, SelfConResNetConfig, SelfConResNetForImageClassification

CROP = 64


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(backbone="test_resnet", stem_stride=1, head_type="batchnorm_mlp", names=("real", "synthetic"), hidden=16):
    """A detector of random weights whose BatchNorm layers have seen noise."""
    torch.manual_seed(0)
    config = SelfConResNetConfig(
        backbone=backbone,
        stem_stride=stem_stride,
        head_type=head_type,
        head_hidden_size=hidden,
        track="detection" if "real" in names else "identification",
        id2label=dict(enumerate(names)),
    )
    model = SelfConResNetForImageClassification(config)
    for module in model.encoder.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight, 1, 0.1)
    with torch.no_grad():
        model.train()(torch.randn(8, 3, CROP, CROP))
    return Detector(model, SelfConImageProcessor(crop_size=CROP), device="cpu")


def photograph(seed, size=(CROP, CROP)):
    """Soft structure and a little noise, for width and height in pixels."""
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(rng.integers(60, 196, (5, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = rng.normal(0, 4, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(soft) + noise).clip(0, 255).astype(np.uint8))


def traced(image, strength=24):
    """The image with a checkerboard."""
    pixels = np.asarray(image).astype(int)
    board = np.indices(pixels.shape[:2]).sum(axis=0) % 2 * 2 - 1
    return Image.fromarray((pixels + strength * board[..., None]).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def knowing():
    """A detector that goes by checkerboards, wherever they are: random features, and a linear discriminant of those
    at each position. As relu(x) - relu(-x) = x, two hidden units make a linear head.
    """
    detector = made(hidden=2)
    images = [photograph(seed) for seed in range(24)]
    images += [traced(image) for image in images]
    with torch.no_grad():
        inputs = detector.processor(images, return_tensors="pt")["pixel_values"]
        features = detector.model.encoder(inputs).last_hidden_state[..., 1:-1, 1:-1].flatten(2)
    truth = np.repeat([-1.0, 1.0], 24 * features.shape[2])
    features = features.transpose(1, 2).flatten(0, 1).double().numpy()
    centred = features - features.mean(axis=0)
    ridge = 1e-4 * (centred**2).sum() * np.eye(centred.shape[1])
    weights = np.linalg.solve(centred.T @ centred + ridge, centred.T @ truth)
    norm, hidden, _, _, last = detector.model.classifier
    with torch.no_grad():
        norm.running_mean.copy_(torch.from_numpy(features.mean(axis=0)))
        norm.running_var.fill_(1 - norm.eps)
        norm.weight.fill_(1)
        norm.bias.zero_()
        hidden.weight.copy_(torch.from_numpy(4 * np.stack([weights, -weights])))
        hidden.bias.zero_()
        last.weight.copy_(torch.tensor([[-0.5, 0.5], [0.5, -0.5]]))
        last.bias.zero_()
    return detector


@pytest.mark.parametrize("head_type", ["batchnorm_mlp", "l2norm_mlp"])
@pytest.mark.parametrize(("backbone", "stem_stride"), [("test_resnet", 1), ("resnet10t", 2), ("resnetblur18", 2)])
def test_the_mean_of_the_map_is_the_answer(backbone, stem_stride, head_type):
    detector = made(backbone, stem_stride, head_type)
    for size in ((CROP, CROP), (90, 70), (40, 33)):
        image = photograph(1, size)
        found = patch_map(detector, image)
        assert found.values.mean() == pytest.approx(found.log_odds, abs=1e-5)
        assert found.probability == pytest.approx(detector([image])[0, 1], abs=1e-6)
        assert found.image.shape == (CROP, CROP, 3)
        assert found.pixels.shape == (CROP, CROP)
        whole = patch_map(detector, image, whole=True)
        assert np.array_equal(whole.image, np.asarray(image))
        assert whole.values.shape == tuple(-(-side // whole.stride) for side in image.size[::-1])
        assert whole.values.mean() == pytest.approx(whole.log_odds, abs=1e-5)


def test_classes_against_all_others():
    detector = made(names=("GAN", "SD", "Midjourney"))
    image = photograph(2)
    probabilities = detector([image])[0]
    for place, name in enumerate(detector.names):
        found = patch_map(detector, image, target=name)
        assert found.probability == pytest.approx(probabilities[place], abs=1e-6)
        assert found.log_odds == pytest.approx(np.log(probabilities[place] / (1 - probabilities[place])), abs=1e-4)
        assert found.values.mean() == pytest.approx(found.log_odds, abs=1e-5)
    assert patch_map(detector, image).target == detector.names[probabilities.argmax()]


def test_the_other_class_is_the_negative(knowing):
    image = traced(photograph(3))
    synthetic, real = (patch_map(knowing, image, target=name) for name in ("synthetic", "real"))
    assert patch_map(knowing, image).target == "synthetic"
    assert real.values == pytest.approx(-synthetic.values, abs=1e-4)


def test_a_linear_head_answers_at_every_position(knowing):
    found = patch_map(knowing, traced(photograph(4)))
    with torch.no_grad():
        inputs = knowing.processor([Image.fromarray(found.image)], return_tensors="pt")["pixel_values"]
        features = knowing.model.encoder(inputs).last_hidden_state[0].flatten(1).T
        answers = knowing.model.classifier(features)
    assert found.values.ravel() == pytest.approx((answers[:, 1] - answers[:, 0]).numpy(), abs=1e-3)


def test_values_are_a_derivative_of_the_answer():
    """Along a position's features the log-odds change by (value - log-odds) / positions, seen by differences."""
    detector = made()
    image = photograph(5)
    found = patch_map(detector, image)
    with torch.no_grad():
        inputs = detector.processor([image], return_tensors="pt")["pixel_values"]
        features = detector.model.encoder(inputs).last_hidden_state[0].double()
        head = detector.model.classifier.double()
        mean = features.mean(dim=(1, 2))
        step = 1e-6 * (features.flatten(1).T - mean)
        ends = [head(mean + sign * step) for sign in (1, -1)]
        slopes = (ends[0][:, 1] - ends[0][:, 0] - ends[1][:, 1] + ends[1][:, 0]) / 2e-6
        head.float()
    assert found.values.ravel() - found.log_odds == pytest.approx(slopes.numpy(), abs=1e-3)


def test_the_map_moves_with_the_image(knowing):
    image = traced(photograph(6, (192, 192)))
    found = patch_map(knowing, image, whole=True)
    moved = Image.fromarray(np.roll(np.asarray(image), (2 * found.stride, found.stride), (0, 1)))
    there = patch_map(knowing, moved, whole=True)
    inner = np.s_[9:-9, 9:-9]
    assert np.roll(found.values, (2, 1), (0, 1))[inner] == pytest.approx(there.values[inner], abs=1e-3)
    assert found.values[inner].std() > 0.05


@pytest.mark.parametrize(("backbone", "stem_stride"), [("test_resnet", 1), ("test_resnet", 2), ("resnet18", 2)])
def test_positions_see_what_is_around_their_centres(backbone, stem_stride):
    detector = made(backbone, stem_stride)
    stride = patch_map(detector, photograph(7)).stride
    side = 16 * stride
    pixels = torch.randn(1, 3, side, side, requires_grad=True)
    detector.model.encoder(pixels).last_hidden_state[0, :, 9, 6].square().sum().backward()
    seen = pixels.grad.abs().sum(dim=(0, 1))
    seen /= seen.sum()
    centre = [float((seen.sum(dim=1 - axis) * torch.arange(side)).sum()) for axis in (0, 1)]
    assert centre == pytest.approx([9 * stride, 6 * stride], abs=stride / 4)


@pytest.mark.parametrize("corner", [(0, 0), (0, 1), (1, 0), (1, 1)], ids=str)
def test_the_map_points_at_the_evidence(knowing, corner):
    top, left = (CROP // 2 * side for side in corner)
    box = (left, top, left + CROP // 2, top + CROP // 2)
    truth = np.zeros((CROP, CROP), bool)
    truth[box[1] : box[3], box[0] : box[2]] = True
    areas = []
    for seed in range(30, 36):
        image = photograph(seed)
        plain = patch_map(knowing, image)
        image.paste(traced(image).crop(box), box)
        found = patch_map(knowing, image)
        assert found.log_odds > plain.log_odds
        areas.append(roc_auc_score(truth.ravel(), found.pixels.ravel()))
    assert np.mean(areas) > 0.9


def test_deletion_finds_a_faithful_map_and_refuses_others(knowing):
    maps = []
    for seed in range(40, 48):
        image = photograph(seed)
        box = (0, 0, CROP // 2, CROP) if seed % 2 else (0, CROP // 2, CROP, CROP)
        image.paste(traced(image).crop(box), box)
        maps.append(patch_map(knowing, image))
    curves = deletion_curves(knowing, maps, orders=2)
    found = curves.advantage()
    assert set(found) == {"lowest first", "random", "moved"}
    assert all(interval["low"] > 0 for interval in found.values())
    first = curves.scores["highest first"]
    assert first[:, 0] == pytest.approx([m.log_odds for m in maps], abs=1e-4)
    for scores in curves.scores.values():
        assert scores.shape == (len(maps), len(curves.fractions))
        assert np.array_equal(scores[:, [0, -1]], first[:, [0, -1]])
    again = deletion_curves(knowing, maps, orders=2, batch_size=7)
    assert all(again.scores[order] == pytest.approx(scores, abs=1e-4) for order, scores in curves.scores.items())

    rng = np.random.default_rng(0)
    reversed_, shuffled = (
        [PatchMap(change(m.values), m.stride, m.target, m.log_odds, m.image) for m in maps]
        for change in (np.negative, lambda values: rng.permutation(values.ravel()).reshape(values.shape))
    )
    wrong = deletion_curves(knowing, reversed_, orders=2)
    assert wrong.scores["highest first"] == pytest.approx(curves.scores["lowest first"], abs=1e-4)
    assert all(interval["value"] < 0 for interval in wrong.advantage().values())
    chance = deletion_curves(knowing, shuffled, orders=2).advantage()
    assert abs(chance["random"]["value"]) < 0.25 * found["random"]["value"]


def test_the_advantage_is_the_area_between_the_curves():
    fractions = np.array([0.0, 0.5, 1.0])
    first = np.array([[2.0, 0.0, 0.0], [4.0, 1.0, 0.0]])
    other = first + np.array([[0.0, 1.0, 0.0], [0.0, 3.0, 0.0]])
    found = DeletionCurves(fractions, {"highest first": first, "random": other}).advantage()["random"]
    assert found["value"] == pytest.approx(1.0)  # areas 0.5 and 1.5
    assert (found["low"], found["high"]) == (0.5, 1.5)


def test_what_cannot_be_looked_at(knowing):
    image = photograph(8)
    found = patch_map(knowing, image)
    with pytest.raises(UsageError, match="expected one of the classes real, synthetic, got 'fake'"):
        patch_map(knowing, image, target="fake")
    with pytest.raises(UsageError, match="expected at most 4,000 pixels of a whole image, got 64 x 64"):
        patch_map(knowing, image, whole=True, max_pixels=4000)
    assert patch_map(knowing, image, max_pixels=4000).log_odds == found.log_odds
    with pytest.raises(UsageError, match="expected sides of 32 pixels or more, got 64 x 20"):
        patch_map(made("resnetblur18", 2), photograph(8, (64, 20)), whole=True)
    for options, words in (
        ({"fractions": (0.0, 0.5)}, "ascend from 0 to 1"),
        ({"fractions": (0.0, 0.6, 0.5, 1.0)}, "ascend from 0 to 1"),
        ({"orders": 0}, "orders=0"),
        ({"batch_size": 0}, "batch_size=0"),
    ):
        with pytest.raises(UsageError, match=words):
            deletion_curves(knowing, [found], **options)
    one = PatchMap(found.values[:1, :1], found.stride, found.target, found.log_odds, found.image)
    for maps in ([], [one]):
        with pytest.raises(UsageError, match="one map or more, each of two positions"):
            deletion_curves(knowing, maps)


def test_damaged_weights():
    detector = made()
    with torch.no_grad():
        detector.model.classifier[-1].weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="expected log-odds, got NaN"):
        patch_map(detector, photograph(9))
