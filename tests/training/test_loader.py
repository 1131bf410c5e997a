"""What a DataLoader makes of augmented rows: always the same, however it is run; and several crops of an image."""

from __future__ import annotations

import io
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from imaginet_hub.data import images
from imaginet_hub.errors import ImageError, UsageError
from imaginet_hub.training.augment import AugmentedRows, HeadAugmentation, RowKey, RowSampler, TrainAugmentation

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    files = []
    for index in range(12):
        stream = io.BytesIO()
        image = Image.fromarray(rng.integers(0, 256, (90 - 7 * index, 40 + 3 * index, 3), np.uint8))
        image.save(stream, FORMATS[index % 4])
        files.append({"bytes": stream.getvalue(), "path": None})
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["real", "synthetic"]))
    return datasets.Dataset.from_dict({"image": files, "label": [0, 1] * 6}, features=features)


def two_epochs(rows, **options):
    data = AugmentedRows(rows, TrainAugmentation(24, seed=1), {"labels": "label"}, crops_per_image=2)
    sampler = RowSampler(rows["label"], seed=4)
    loader = DataLoader(data, batch_size=5, sampler=sampler, **options)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        yield from loader


@pytest.mark.parametrize(
    "options",
    [
        {"num_workers": 1, "persistent_workers": True},
        {"num_workers": 3, "persistent_workers": True, "prefetch_factor": 3},
        {"num_workers": 3},
    ],
    ids=str,
)
def test_batches_do_not_depend_on_the_workers(rows, options):
    alone, shared = list(two_epochs(rows)), list(two_epochs(rows, **options))
    assert len(alone) == len(shared) == 6
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"]) and torch.equal(one["labels"], other["labels"])
    first, second = (torch.cat([b["pixel_values"].flatten(0, 1) for b in alone[i : i + 3]]) for i in (0, 3))
    assert not any(torch.equal(a, b) for a in first for b in second), "another epoch, other crops"


def test_samples_do_not_depend_on_the_order_of_access(rows):
    data = AugmentedRows(rows, HeadAugmentation(24, seed=2), {})
    keys = [RowKey(epoch, row, repeat) for epoch in range(2) for row in range(12) for repeat in range(2)]
    forwards = {key: data[key]["pixel_values"] for key in keys}
    again = AugmentedRows(rows, HeadAugmentation(24, seed=2), {})
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002 - global state must not matter
    for key in np.random.default_rng(5).permutation(keys).tolist():
        assert torch.equal(again[RowKey(*key)]["pixel_values"], forwards[RowKey(*key)])
    assert len({tensor.numpy().tobytes() for tensor in forwards.values()}) > 40, "chance may repeat a crop"


@pytest.mark.parametrize("kind", [TrainAugmentation, HeadAugmentation])
def test_rows_are_augmented_as_their_whole_images(rows, kind):
    # The data set may leave the lower rows of a file undecoded; whole images tell what must come out.
    augmentation = kind(24, seed=3)
    data = AugmentedRows(rows, augmentation, {}, crops_per_image=3)
    for epoch in range(8):
        for row in range(12):
            key = RowKey(epoch, row)
            image = images.from_row(rows.cast_column("image", datasets.Image(decode=False))[row]["image"])
            expected = torch.stack([augmentation(image, key, crop) for crop in range(3)])
            assert torch.equal(data[key]["pixel_values"], expected)


def test_rows_below_the_crop_are_not_decoded(rows, monkeypatch):
    heights = Counter()
    rgb = images._rgb

    def spy(*args, **options):
        image = rgb(*args, **options)
        heights[image.height] += 1
        return image

    monkeypatch.setattr(images, "_rgb", spy)
    data = AugmentedRows(rows, TrainAugmentation(24), {})
    for epoch in range(30):
        data[RowKey(epoch, 0)]
    assert sum(heights.values()) == 30 and set(heights) <= set(range(24, 91)) and len(heights) > 15
    # Of a PNG 90 rows high, as many as the crop's bottom, which is anywhere in 24..90, all equally often.
    assert abs(sum(h * n for h, n in heights.items()) / 30 - 57) < 4 * 67 / np.sqrt(12 * 30)


def test_several_crops_of_one_image_are_independent(rows):
    augmentation = TrainAugmentation(24, seed=6)
    one, four = (AugmentedRows(rows, augmentation, {"labels": "label"}, crops_per_image=n) for n in (1, 4))
    batch = next(iter(DataLoader(four, batch_size=3)))
    assert batch["pixel_values"].shape == (3, 4, 3, 24, 24) and batch["labels"].shape == (3,)
    places, distinct = [], set()
    for epoch in range(100):
        key = RowKey(epoch, 0)
        crops = four[key]["pixel_values"]
        assert torch.equal(crops[0], one[key]["pixel_values"]) and one[key]["pixel_values"].shape == (3, 24, 24)
        distinct |= {crop.numpy().tobytes() for crop in crops}
        places.append([augmentation.drawn((40, 90), key, crop).box.top for crop in range(4)])
    assert len(distinct) > 380, "of 1,139 places, so a few come twice"
    correlations = np.corrcoef(np.array(places).T)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 4 / np.sqrt(100)


def test_an_image_is_decoded_once_for_all_its_crops(rows, monkeypatch):
    calls = Counter()
    opened = images._opened
    monkeypatch.setattr(images, "_opened", lambda *args: calls.update(["open"]) or opened(*args))
    AugmentedRows(rows, TrainAugmentation(24), {}, crops_per_image=5)[RowKey(0, 1)]
    assert calls["open"] == 1


@pytest.mark.parametrize("number", [0, -2])
def test_no_crops_are_refused(rows, number):
    with pytest.raises(UsageError, match=f"crops_per_image of 1 or more, got {number}"):
        AugmentedRows(rows, TrainAugmentation(24), {}, crops_per_image=number)


def test_a_damaged_file_is_refused_in_every_epoch(rows):
    whole = rows.cast_column("image", datasets.Image(decode=False))[0]["image"]["bytes"]
    features = datasets.Features(image=datasets.Image())
    cut = datasets.Dataset.from_dict({"image": [{"bytes": whole[:-100], "path": "cut.png"}]}, features=features)
    data = AugmentedRows(cut, TrainAugmentation(24), {})
    for epoch in range(20):
        with pytest.raises(ImageError, match=r"cut\.png"):
            data[RowKey(epoch, 0)]
