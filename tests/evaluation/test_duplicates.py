"""Copies of images, exact and near, against a search through all pairs."""

from __future__ import annotations

import io
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imaginet_hub.data.traits import perceptual_hash, thumbnail
from imaginet_hub.errors import UsageError
from imaginet_hub.evaluation import duplicates
from imaginet_hub.evaluation.duplicates import HAMMING_LIMIT, describe_groups, exact_groups, near_groups


def by_all_pairs(hashes, thumbnails):
    """The definition, one pair after the other."""
    group = list(range(len(hashes)))
    luma = [np.asarray(t, float) for t in thumbnails]
    for i in range(len(hashes)):
        for j in range(i):
            apart = np.sqrt(((luma[i] - luma[j]) ** 2).mean())
            alike = apart <= max(1.0, 0.45 * min(luma[i].std(), luma[j].std()))
            if alike and (int(hashes[i]) ^ int(hashes[j])).bit_count() <= HAMMING_LIMIT:
                old, new = group[i], group[j]
                group = [new if g == old else g for g in group]
    return sorted(sorted(k for k, g in enumerate(group) if g == name) for name in set(group) if group.count(name) > 1)


@pytest.mark.parametrize("small", [{}, {"_TILE": 30, "_VERIFIED": 30, "_LEADERS": 2}], ids=["as it is", "in tiles"])
@settings(derandomize=True, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(1, 8))
def test_equals_a_search_through_all_pairs(small, seed, n, families):
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, families, dtype=np.uint64)
    looks = rng.integers(0, 256, (families, 16))
    family = rng.integers(families, size=n)
    hashes = centres[family]
    for k in range(n):
        for bit in rng.choice(64, rng.integers(6), replace=False):
            hashes[k] ^= np.uint64(1) << np.uint64(bit)
    noise = rng.integers(-40, 41, (n, 1)) * rng.integers(0, 2, (n, 16))
    thumbnails = np.clip(looks[family] + noise, 0, 255).astype(np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in small.items():
            patch.setattr(duplicates, name, value)
        assert near_groups(hashes, thumbnails) == by_all_pairs(hashes, thumbnails)


@pytest.mark.parametrize("bits", [[0, 9, 18, 27, 36, 45, 54], [0, 1, 2, 3, 4, 5, 6], [63, 62, 8, 16, 24, 32, 40]])
def test_no_place_of_the_differing_bits_is_missed(bits):
    thumbnails = np.tile(np.arange(16, dtype=np.uint8) * 9, (3, 1))
    changed = sum(1 << bit for bit in bits)
    assert near_groups([0, changed, changed | 1 << 55 | 1 << 56], thumbnails) == [[0, 1, 2]]
    assert near_groups([0, changed | 1 << 50], thumbnails[:2]) == []


def scene(seed, size=(240, 180)):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return Image.fromarray(np.clip(np.asarray(coarse) + rng.normal(0, 6, (size[1], size[0], 3)), 0, 255).astype("u1"))


def encoded(image, format_, quality):
    stream = io.BytesIO()
    image.save(stream, format_, quality=quality)
    return Image.open(stream).convert("RGB")


def test_made_near_duplicates_are_found_and_others_are_not():
    scenes = [scene(seed) for seed in range(60)]
    changed = [
        lambda i: encoded(i, "JPEG", 40),
        lambda i: encoded(i, "WEBP", 60),
        lambda i: i.resize((120, 90), Image.Resampling.LANCZOS),
        lambda i: i.resize((256, 256)),
        lambda i: i.crop((2, 2, i.width - 2, i.height - 2)),
    ]
    images = scenes + [change(scenes[k]) for k, change in enumerate(changed)]
    groups = near_groups([perceptual_hash(i) for i in images], [thumbnail(i) for i in images])
    assert groups == [[k, 60 + k] for k in range(len(changed))]


def test_flat_and_dark_images_do_not_collide():
    flat = [Image.new("RGB", (64, 64), (level,) * 3) for level in (0, 4, 90, 120, 255)]
    dark = [Image.fromarray((np.asarray(scene(seed)) // 12).astype(np.uint8)) for seed in range(6)]
    images = [*flat, *dark, Image.new("RGB", (80, 20), (90, 90, 90))]
    assert near_groups([perceptual_hash(i) for i in images], [thumbnail(i) for i in images]) == [[2, 11]]


def test_many_copies_and_many_images_take_little_time():
    rng = np.random.default_rng(0)
    n = 20_000
    hashes, thumbnails = rng.integers(0, 2**64, n, dtype=np.uint64), rng.integers(0, 256, (n, 64), dtype=np.uint8)
    hashes[:8000] = hashes[0]
    thumbnails[:8000] = thumbnails[0] // 2 + rng.integers(0, 4, (8000, 64))
    start = time.process_time()
    assert near_groups(hashes, thumbnails) == [list(range(8000))]
    assert time.process_time() - start < 20


def test_noisy_copies_under_many_hashes_take_little_time():
    rng = np.random.default_rng(0)
    n, copies = 50_000, 40_000
    hashes, thumbnails = rng.integers(0, 2**64, n, dtype=np.uint64), rng.integers(0, 256, (n, 64), dtype=np.uint8)
    hashes[:copies] = hashes[0]
    for _ in range(3):
        hashes[:copies] ^= np.uint64(1) << rng.integers(0, 64, copies, dtype=np.uint64)
    thumbnails[:copies] = rng.integers(40, 200, 64) + rng.integers(-12, 13, (copies, 64))
    start = time.process_time()
    assert near_groups(hashes, thumbnails) == [list(range(copies))]
    assert time.process_time() - start < 6


def test_exact_groups_and_nothing():
    assert exact_groups(["a", "b", "a", "c", "b", "a"]) == [[0, 2, 5], [1, 4]]
    assert exact_groups([]) == near_groups([], np.zeros((0, 256))) == []
    with pytest.raises(UsageError, match="thumbnails"):
        near_groups([1, 2], np.zeros((3, 256)))


def test_description():
    columns = {
        "label": ["real", "real", "synthetic", "real", "real", "real"],
        "split": ["train", "train", "train", "train", "test", "test"],
        "path": list("abcdef"),
    }
    found = describe_groups([[0, 1], [2, 3, 4]], columns, shown=2)
    examples = found.pop("examples")
    assert found == {
        "groups": 2,
        "images": 5,
        "redundant": 3,
        "across_labels": 1,
        "within_labels": 1,
        "across_splits": 1,
        "within_splits": 1,
        "leaked": {"test": 1, "train": 2},
    }
    assert [example["size"] for example in examples] == [3, 2]
    assert examples[0]["labels"] == ["real", "synthetic"]
    assert examples[0]["rows"][0] == {"row": 2, "label": "synthetic", "split": "train", "path": "c"}
