"""Rows of a split in two parts, and what is a class in a column."""

from __future__ import annotations

import hashlib
from typing import Any

import datasets
import pytest

from imaginet_hub.data.loading import classes_of, held_out, track_of
from imaginet_hub.errors import UsageError
from imaginet_hub.labels import Track
from tests.conftest import image_bytes


@pytest.fixture(scope="module")
def rows() -> datasets.Dataset:
    images = [image_bytes(number, (8, 8)) for number in range(300)]
    columns: dict[str, Any] = {
        "image": [{"bytes": data, "path": None} for data in images],
        "sha256": [hashlib.sha256(data).hexdigest() for data in images],
        "label": [number % 2 for number in range(300)],
        "generator": [(number // 2) % 2 if number % 2 else 3 for number in range(300)],
        "camera": ["Canon", "apple", "Zorki"] * 100,
        "indoors": [number % 5 == 0 for number in range(300)],
        "number": list(range(300)),
        "gap": ["a", None, "b"] * 100,
    }
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["real", "synthetic"]),
        "generator": datasets.ClassLabel(names=["New Net", "SD", "never seen", "real"]),
        "sha256": datasets.Value("string"),
        "camera": datasets.Value("string"),
        "indoors": datasets.Value("bool"),
        "number": datasets.Value("int64"),
        "gap": datasets.Value("string"),
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_rows_are_held_out_by_their_content_alone(rows: datasets.Dataset) -> None:
    kept, held = held_out(rows, 0.2)
    chosen = set(held["sha256"][:])
    assert len(kept) + len(held) == 300 and chosen.isdisjoint(kept["sha256"][:])
    assert 35 <= len(held) <= 85, "60 expected, with a standard deviation of 7"
    # Whatever the order, the other rows and the column are.
    assert set(held_out(rows.shuffle(seed=1), 0.2)[1]["sha256"][:]) == chosen
    some = rows.select(range(100, 200))
    assert set(held_out(some, 0.2)[1]["sha256"][:]) == chosen & set(some["sha256"][:])
    bare = rows.remove_columns("sha256")
    assert held_out(bare, 0.2)[1]["number"][:] == held["number"][:]
    # A larger share holds out more, never others.
    assert chosen < set(held_out(rows, 0.4)[1]["sha256"][:])


def test_nothing_is_held_out_of_a_share_of_nothing(rows: datasets.Dataset) -> None:
    kept, held = held_out(rows, 0)
    assert len(kept) == 300 and len(held) == 0


def test_copies_of_an_image_stay_together(rows: datasets.Dataset) -> None:
    double = datasets.concatenate_datasets([rows, rows])
    kept, held = held_out(double, 0.3)
    assert set(kept["number"][:]).isdisjoint(held["number"][:])


def test_classes_are_those_that_occur(rows: datasets.Dataset) -> None:
    synthetic = rows.filter(lambda label: label == 1, input_columns="label")
    assert classes_of(synthetic, "generator") == {0: "New Net", 1: "SD"}
    assert classes_of(rows, "label") == {0: "real", 1: "synthetic"}
    assert classes_of(rows, "camera") == {"Canon": "Canon", "Zorki": "Zorki", "apple": "apple"}
    assert classes_of(rows, "indoors") == {False: "False", True: "True"}


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("camra", "expected a column of class names among image, .* got camra"),
        ("number", "expected a column of class names, got number with Value"),
        ("image", "expected a column of class names, got image"),
        ("gap", "a class in the column gap of every row, got rows with None"),
        ("generator", "synthetic rows only, to tell the classes of generator apart, got real ones too"),
    ],
)
def test_columns_that_are_no_classes_are_refused(rows: datasets.Dataset, column: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        classes_of(rows, column)


def test_generators_are_told_apart_among_synthetic_rows() -> None:
    assert [track_of(name) for name in ("label", "generator_family", "generator", "camera")] == [
        Track.DETECTION,
        Track.IDENTIFICATION,
        Track.IDENTIFICATION,
        Track.DETECTION,
    ]
