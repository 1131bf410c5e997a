"""The augmentations against the published recipe, by counting; their keys and the sampler's laws."""

from __future__ import annotations

import io
import math
from collections import Counter
from itertools import product
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from imaginet_hub.errors import UsageError
from imaginet_hub.selfcon import SelfConImageProcessor
from imaginet_hub.training import augment
from imaginet_hub.training.augment import (
    AugmentedRows,
    HeadAugmentation,
    RowKey,
    RowSampler,
    TrainAugmentation,
    balanced_shares,
)

DRAWS = 20_000


def plans(augmentation, draws=DRAWS):
    rng = np.random.default_rng(7)
    return [augmentation.plan(rng) for _ in range(draws)]


def close(count, probability, draws=DRAWS):
    """Within four standard deviations of a binomial: fails by chance once in 16,000 comparisons."""
    return abs(count - draws * probability) <= 4 * math.sqrt(draws * probability * (1 - probability))


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def encoded(image, format="PNG"):
    stream = io.BytesIO()
    image.save(stream, format)
    return {"bytes": stream.getvalue(), "path": None}


@pytest.fixture(scope="module")
def rows():
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=["real", "synthetic"]),
        generator_family=datasets.ClassLabel(names=["GAN", "SD", "real"]),
    )
    return datasets.Dataset.from_dict(
        {
            "image": [encoded(picture(40 + i, 50, seed=i)) for i in range(12)],
            "label": [0] * 8 + [1] * 4,
            "generator_family": [2] * 8 + [0, 1, 1, 1],
        },
        features=features,
    )


def test_train_plans_follow_the_published_probabilities():
    drawn = plans(TrainAugmentation(96))
    assert all(plan[0] == ("crop", 96) for plan in drawn)
    names = Counter(operation.name for plan in drawn for operation in plan)
    assert set(names) == {"crop", "jpeg", "webp", "blur", "noise", "rotate", "flip"}, "and never a resize"
    for name, probability in {
        "jpeg": 1 / 12, "webp": 1 / 12, "blur": 1 / 6, "noise": 1 / 6, "rotate": 0.33, "flip": 0.33
    }.items():  # fmt: skip
        assert close(names[name], probability), name
    assert all(sum(operation.name in {"jpeg", "webp", "blur", "noise"} for operation in plan) <= 1 for plan in drawn)
    order = ["crop", "jpeg", "webp", "blur", "noise", "rotate", "flip"]
    assert all([order.index(o.name) for o in plan] == sorted(order.index(o.name) for o in plan) for plan in drawn)


def test_train_parameters_fill_the_published_ranges():
    values: dict[str, list] = {}
    for plan in plans(TrainAugmentation()):
        for name, parameter in plan:
            values.setdefault(name, []).append(parameter)
    assert set(values["crop"]) == {96}
    assert set(values["jpeg"]) == set(values["webp"]) == set(range(50, 96))
    assert set(values["blur"]) == {3, 5, 7}
    assert close(values["blur"].count(3), 1 / 5, len(values["blur"]))
    assert close(values["blur"].count(5), 2 / 5, len(values["blur"]))
    noise = np.array(values["noise"])
    assert noise.min() >= 3 and noise.max() <= 10
    assert abs(noise.mean() - 6.5) < 0.2 and noise.min() < 3.1 and noise.max() > 9.9
    for name, choices in {"rotate": {0, 1, 2, 3}, "flip": {"horizontal", "vertical", "both"}}.items():
        counts = Counter(values[name])
        assert set(counts) == choices
        assert all(close(count, 1 / len(choices), len(values[name])) for count in counts.values())


def fits(counts, shares):
    """Pearson's chi-square: whether such counts come up more often than once in 100,000 times, given the shares."""
    assert set(counts) <= set(shares) and sum(shares.values()) == pytest.approx(1)
    total = sum(counts.values())
    assert min(shares.values()) * total >= 5, "enough of each to count on"
    observed, expected = zip(*((counts[name], share * total) for name, share in shares.items()), strict=True)
    return stats.chisquare(observed, np.array(expected) * total / sum(expected)).pvalue > 1e-5


_THIRD = {"jpeg": 1 / 6, "webp": 1 / 6, "blur": 1 / 3, "noise": 1 / 3}


def test_train_plans_are_jointly_distributed_as_the_recipe_says():
    perturbations = {None: 0.5} | {name: 0.5 * share for name, share in _THIRD.items()}
    turns = {None: 0.67} | {k: 0.33 / 4 for k in range(4)}
    flips = {None: 0.67} | dict.fromkeys(("horizontal", "vertical", "both"), 0.11)
    shares = {
        (one, two, three): a * b * c
        for (one, a), (two, b), (three, c) in product(perturbations.items(), turns.items(), flips.items())
    }
    counts = Counter()
    for plan in plans(TrainAugmentation(96)):
        named = dict(plan)
        perturbation = next((name for name in _THIRD if name in named), None)
        counts[perturbation, named.get("rotate"), named.get("flip")] += 1
    assert fits(counts, shares)


def test_head_plans_are_distributed_as_the_code_s_weights_say():
    shares = {("resized_crop", None): 3 / 52, ("resized_crop", "jpeg"): 3 / 104, ("resized_crop", "webp"): 3 / 104}
    shares[("crop", None)] = 0.5 + 0.3 * 5 / 13
    shares |= {("crop", name): 0.7 * 5 / 13 * share for name, share in _THIRD.items()}
    counts = Counter(
        (plan[0].name, next((name for name, _ in plan if name in _THIRD), None)) for plan in plans(HeadAugmentation())
    )
    assert fits(counts, shares)


def test_parameters_are_spread_evenly():
    values: dict[str, list] = {}
    for plan in plans(TrainAugmentation(perturb=1), 3 * DRAWS):
        for name, parameter in plan:
            values.setdefault(name, []).append(parameter)
    for name in ("jpeg", "webp"):
        assert fits(Counter(values[name]), dict.fromkeys(range(50, 96), 1 / 46))
    assert fits(Counter(values["blur"]), {3: 1 / 5, 5: 2 / 5, 7: 2 / 5})
    assert stats.kstest(values["noise"], "uniform", (3, 7)).pvalue > 1e-5


def test_counting_would_notice_a_wrong_recipe():
    equal = Counter(dict.fromkeys("abcd", 5000))
    assert fits(equal, dict.fromkeys("abcd", 1 / 4)) and not fits(equal, {"a": 0.28, "b": 0.24, "c": 0.24, "d": 0.24})


def test_pictures_are_turned_as_often_as_the_recipe_says():
    # The four corners differ, so that all eight ways to lay a square can be told.
    picture_ = np.array([[[0] * 3, [60] * 3], [[120] * 3, [180] * 3]], np.uint8)
    turned = [np.rot90(picture_, k) for k in range(4)]
    flip = {None: lambda x: x, "h": lambda x: x[:, ::-1], "v": lambda x: x[::-1], "b": lambda x: x[::-1, ::-1]}
    shares: Counter[bytes] = Counter()
    for k, name in product(range(4), flip):
        rotated = 0.67 * (k == 0) + 0.33 / 4
        shares[flip[name](turned[k]).tobytes()] += rotated * (0.67 if name is None else 0.11)
    augmentation, image = TrainAugmentation(2, perturb=0), Image.fromarray(picture_)
    counts = Counter(np.asarray(augmentation.image(image, RowKey(0, i))).tobytes() for i in range(DRAWS // 4))
    assert len(shares) == 8 and fits(counts, shares)


def test_stage_1_crops_are_windows_of_the_picture():
    augmentation = TrainAugmentation(12, perturb=0, rotate=0, flip=0)
    for index, (width, height) in enumerate([(12, 12), (13, 40), (37, 12), (50, 61)] * 10):
        image = picture(width, height, seed=index)
        windows = np.lib.stride_tricks.sliding_window_view(np.asarray(image), (12, 12, 3)).reshape(-1, 12, 12, 3)
        crop = np.asarray(augmentation.image(image, RowKey(0, index)))
        assert (windows == crop).all(axis=(1, 2, 3)).sum() == 1


def test_head_plans_follow_the_published_weights():
    drawn = plans(HeadAugmentation())
    assert {operation.parameter for plan in drawn for operation in plan if operation.name.endswith("crop")} == {256}
    resized = [plan for plan in drawn if plan[0].name == "resized_crop"]
    cropped = [plan for plan in drawn if plan[0].name == "crop"]
    assert len(resized) + len(cropped) == DRAWS
    assert close(len(resized), 0.5 * 3 / 13)
    compressed = sum(any(o.name in {"jpeg", "webp"} for o in plan) for plan in resized)
    assert close(compressed, 0.5, len(resized))
    assert not any(o.name in {"blur", "noise"} for plan in resized for o in plan)
    names = Counter(operation.name for plan in cropped for operation in plan)
    perturbed = 0.5 * 10 / 13 * 0.7
    for name, probability in {"jpeg": perturbed / 6, "webp": perturbed / 6, "blur": perturbed / 3, "noise": perturbed / 3}.items():  # fmt: skip  # noqa: E501
        assert close(names[name], probability), name
    everything = Counter(operation.name for plan in drawn for operation in plan)
    assert close(everything["rotate"], 0.33) and close(everything["flip"], 0.33)


def test_probabilities_can_be_set():
    names = {o.name for plan in plans(TrainAugmentation(perturb=0, rotate=0, flip=0), 200) for o in plan}
    assert names == {"crop"}
    assert all(len(plan) == 4 for plan in plans(TrainAugmentation(perturb=1, rotate=1, flip=1), 200))
    with pytest.raises(UsageError, match=r"rotate to lie in 0..1, got 1.5"):
        TrainAugmentation(rotate=1.5)
    with pytest.raises(UsageError, match="crop_size of 1 pixel or more, got 0"):
        HeadAugmentation(0)


def test_crops_are_unresampled_parts_at_every_position():
    width, height, size = 7, 6, 5
    # Each pixel tells its own position, so a crop can be checked and its place read off.
    positions = np.stack(np.broadcast_arrays(np.arange(height)[:, None], np.arange(width), 9), -1).astype(np.uint8)
    augmentation = TrainAugmentation(size, perturb=0, rotate=0, flip=0)
    corners = Counter()
    for index in range(600):
        crop = np.asarray(augmentation.image(Image.fromarray(positions), RowKey(0, index)))
        top, left = crop[0, 0, :2].tolist()
        np.testing.assert_array_equal(crop, positions[top : top + size, left : left + size])
        corners[top, left] += 1
    assert set(corners) == {(top, left) for top in range(2) for left in range(3)}
    assert all(close(count, 1 / 6, 600) for count in corners.values())


def test_small_images_are_reflected():
    image = picture(10, 64)
    crop = np.asarray(TrainAugmentation(16, perturb=0, rotate=0, flip=0).image(image, RowKey(0, 0)))
    pixels = np.asarray(image)
    wide = np.concatenate([pixels[:, 3:0:-1], pixels, pixels[:, 8:5:-1]], axis=1)
    assert any(np.array_equal(crop, wide[top : top + 16]) for top in range(49))


@pytest.mark.parametrize("kind", [TrainAugmentation, HeadAugmentation])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
@pytest.mark.parametrize("size", [(33, 70), (5, 9), (64, 1)])
def test_every_image_becomes_a_normalised_crop(kind, mode, size):
    augmentation = kind(48)
    for index in range(12):
        tensor = augmentation(picture(*size).convert(mode), RowKey(1, index))
        assert tensor.shape == (3, 48, 48) and tensor.dtype == torch.float32 and tensor.is_contiguous()
        assert torch.isfinite(tensor).all() and tensor.min() > -2.2 and tensor.max() < 2.7


def test_normalisation_is_the_image_processors():
    image = picture(48, 48)
    tensor = TrainAugmentation(48, perturb=0, rotate=0, flip=0)(image, RowKey(0, 0))
    expected = SelfConImageProcessor(crop_size={"height": 48, "width": 48})(image, return_tensors="pt").pixel_values[0]
    torch.testing.assert_close(tensor, expected)


def test_quarter_turns_and_flips_are_those_of_numpy():
    image = picture(8, 8)
    pixels = np.asarray(image)
    turns = {k: np.rot90(pixels, k) for k in range(4)}
    flips = {"horizontal": pixels[:, ::-1], "vertical": pixels[::-1], "both": pixels[::-1, ::-1]}
    turning = TrainAugmentation(8, perturb=0, rotate=1, flip=0)
    flipping = TrainAugmentation(8, perturb=0, rotate=0, flip=1)
    for index in range(20):
        key = RowKey(0, index)
        (_, (_, turn)) = turning.plan(np.random.default_rng((0, *key)))
        np.testing.assert_array_equal(np.asarray(turning.image(image, key)), turns[turn])
        (_, (_, flip)) = flipping.plan(np.random.default_rng((0, *key)))
        np.testing.assert_array_equal(np.asarray(flipping.image(image, key)), flips[flip])


def test_resized_crops_have_the_areas_and_aspects_asked_for():
    rng = np.random.default_rng(3)
    top, left, height, width = np.array([augment._resized_box(250, 240, 16, rng) for _ in range(300)]).T
    assert left.min() >= 0 and top.min() >= 0 and (left + width).max() <= 250 and (top + height).max() <= 240
    area, aspect = width * height / 60_000, width / height
    assert area.min() > 0.07 and area.max() <= 1 and area.min() < 0.15 and area.max() > 0.8
    assert aspect.min() > 0.72 and aspect.max() < 1.38 and abs(np.log(aspect).mean()) < 0.05
    assert augment._resized_box(400, 4, 16, rng) == (0, 197, 4, 5), "no box of such an aspect fits: the middle"


def test_resized_crop_samples_bilinearly_without_antialiasing():
    # Shrunk by 4: each result pixel is the mean of the middle 2 x 2 of its 4 x 4; a low-pass would see the black ones.
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[1::4, 1::4] = pixels[1::4, 2::4] = pixels[2::4, 1::4] = pixels[2::4, 2::4] = 200
    shrunk = augment._resized(Image.fromarray(pixels), 4)
    np.testing.assert_array_equal(np.asarray(shrunk), np.full((4, 4, 3), 200))


@pytest.mark.parametrize("size", [(23, 40), (7, 5), (16, 16)])
def test_resizing_interpolates_between_pixel_centres(size):
    width, height = size
    values = np.random.default_rng(1).integers(0, 256, (height, width, 3)).astype(np.uint8)

    def weights(length):  # of each pixel for each of 16 samples, which lie at the centres of 16 equal parts
        places = np.clip((np.arange(16) + 0.5) * length / 16 - 0.5, 0, length - 1)
        return np.maximum(0, 1 - abs(places[:, None] - np.arange(length)))

    expected = np.einsum("yh,hwc,xw->yxc", weights(height), values, weights(width))
    resized = np.asarray(augment._resized(Image.fromarray(values), 16))
    assert np.abs(resized - expected).max() < 0.501


def test_heads_see_resized_windows_and_nothing_else():
    # Where only the box is drawn, the result is the box's own pixels, resized: nothing outside of it plays a part.
    augmentation = HeadAugmentation(16, perturb=1, rotate=0, flip=0)
    image, seen = picture(60, 50), 0
    for index in range(200):
        drawn = augmentation.drawn(image.size, RowKey(0, index))
        if [name for name, _ in drawn.plan] == ["resized_crop"]:
            top, left, height, width = drawn.box
            alone = image.crop((left, top, left + width, top + height))
            np.testing.assert_array_equal(
                np.asarray(augmentation.image(image, RowKey(0, index))), np.asarray(augment._resized(alone, 16))
            )
            seen += 1
    assert seen > 10


def test_the_result_depends_on_every_part_of_the_key_and_on_nothing_else():
    image = picture(60, 60)
    augmentation = TrainAugmentation(32, seed=5)
    key = RowKey(2, 3, 1)
    reference = augmentation(image, key)
    np.random.seed(1)  # noqa: NPY002 - global state must not matter
    torch.manual_seed(9)
    assert torch.equal(augmentation(image, key), reference)
    assert torch.equal(TrainAugmentation(32, seed=5)(image, key), reference)
    others = [
        TrainAugmentation(32, seed=6)(image, key),
        *(augmentation(image, RowKey(*other)) for other in [(3, 3, 1), (2, 4, 1), (2, 3, 0), (3, 2, 1)]),
    ]
    assert not any(torch.equal(other, reference) for other in others)


def test_augmented_rows_give_the_named_columns(rows):
    data = AugmentedRows(rows, TrainAugmentation(24), {"labels": "label", "families": "generator_family"})
    assert len(data) == 12
    item = data[RowKey(0, 9)]
    assert set(item) == {"pixel_values", "labels", "families"} and (item["labels"], item["families"]) == (1, 1)
    assert torch.equal(data[9]["pixel_values"], item["pixel_values"]), "a bare index is epoch 0 ..."
    data.set_epoch(1)
    assert torch.equal(data[9]["pixel_values"], data[RowKey(1, 9)]["pixel_values"]), "... or the one that was set"
    undecoded = AugmentedRows(rows.cast_column("image", datasets.Image(decode=False)), data.augmentation, {})
    assert torch.equal(undecoded[9]["pixel_values"], item["pixel_values"])


def test_rows_that_cannot_be_trained_on_are_refused(rows):
    augmentation = TrainAugmentation(24)
    with pytest.raises(UsageError, match=r"got image, label, generator_family: origin missing"):
        AugmentedRows(rows, augmentation, {"labels": "origin"})
    with pytest.raises(UsageError, match="without streaming=True"):
        AugmentedRows(rows.to_iterable_dataset(), augmentation, {"labels": "label"})
    with pytest.raises(UsageError, match="got none"):
        AugmentedRows(rows.select([]), augmentation, {"labels": "label"})


def test_plain_sampling_visits_each_row_once():
    sampler = RowSampler(np.zeros(50), seed=2)
    first = list(sampler)
    assert sorted(first) == [RowKey(0, i) for i in range(50)] and first != sorted(first)
    assert list(sampler) == first == list(RowSampler(np.zeros(50), seed=2))
    assert [k.row for k in RowSampler(np.zeros(50), seed=3)] != [k.row for k in first]
    sampler.set_epoch(1)
    assert {k.epoch for k in sampler} == {1} and [k.row for k in sampler] != [k.row for k in first]


def test_balanced_sampling_balances_every_batch_and_covers_the_rows():
    labels = np.array([0] * 700 + [1] * 300)
    families = np.array([4] * 700 + [0] * 200 + [1] * 90 + [2] * 10)
    groups, shares = balanced_shares(labels, families)
    assert sorted(shares.values()) == pytest.approx([1 / 6] * 3 + [1 / 2])
    sampler = RowSampler(groups, shares, seed=1)
    keys = list(sampler)
    assert len(keys) == len(sampler) == 1000 and len(set(keys)) == 1000, "never the same row with the same numbers"
    drawn = families[[key.row for key in keys]]
    for start in range(0, 1000, 48):
        batch = Counter(drawn[start : start + 48].tolist())
        size = len(drawn[start : start + 48])
        for family, share in {4: 1 / 2, 0: 1 / 6, 1: 1 / 6, 2: 1 / 6}.items():
            assert abs(batch[family] - size * share) <= 1 + share * 4
    visits = Counter(key.row for key in keys)
    rare = [visits[row] for row in range(990, 1000)]
    assert max(rare) - min(rare) <= 1 and sum(rare) == pytest.approx(1000 / 6, abs=2)
    for row in range(990, 1000):
        assert sorted(key.repeat for key in keys if key.row == row) == list(range(visits[row]))
    assert set(visits.values()) & {0, 1} and max(visits[row] for row in range(700)) == 1


def test_balancing_identification_rows_gives_each_family_the_same_share():
    _, shares = balanced_shares([0, 0, 0, 1, 2], [0, 0, 0, 1, 2])
    assert list(shares.values()) == pytest.approx([1 / 3] * 3)


def test_shares_that_do_not_fit_are_refused():
    for shares in ({0: 1.0}, {0: 0.5, 1: 0.6}, {0: 1.0, 1: 0.0}):
        with pytest.raises(UsageError, match="sum to 1, one for each of the groups"):
            RowSampler([0, 1, 1], shares)


def test_the_recipe_reads_files_of_any_format(tmp_path: Path, rows):
    jpeg = rows.select([0]).map(lambda row: {"image": encoded(row["image"], "JPEG")})
    assert AugmentedRows(jpeg, TrainAugmentation(24), {})[0]["pixel_values"].shape == (3, 24, 24)
