"""Rows of a split in two parts, and what is a class in a column."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import datasets
import pytest

from imaginet_hub.cards import dataset_card
from imaginet_hub.data.loading import classes_of, held_out, open_split, splits_of, track_of
from imaginet_hub.data.repository import build_repository
from imaginet_hub.errors import DataNotFoundError, UsageError
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


def parquet(folder: Path, name: str, rows: datasets.Dataset) -> None:
    folder.mkdir(exist_ok=True)
    rows.to_parquet(folder / f"{name}-00000-of-00001.parquet")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same images as a ROOT, as a dataset built of it, and as somebody else's Parquet files."""
    folder = tmp_path_factory.mktemp("places")
    root, lines = folder / "root", ["path,label,generator_family,generator,split,camera"]
    (root / "some").mkdir(parents=True)
    for number in range(12):
        made = number % 3 == 0
        (root / "some" / f"{number}.png").write_bytes(image_bytes(number, (8, 8)))
        names = "synthetic,GAN,ProGAN" if made else "real,real,real"
        lines.append(f"./some/{number}.png,{names},{'test' if number < 8 else 'train'},c{number}")
    (root / "annotations.csv").write_text("\n".join(lines) + "\n")
    build_repository(root, folder / "built", render_card=dataset_card)
    theirs = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": image_bytes(number, (8, 8)), "path": None} for number in range(12)],
            "label": [number % 3 != 0 for number in range(12)],
        },
        features=datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=["AI-made", "photograph"])}
        ),
    )
    parquet(folder / "theirs", "test", theirs)
    return {"root": root, "built": folder / "built", "theirs": folder / "theirs"}


@pytest.mark.parametrize("place", ["root", "built"])
def test_a_split_as_a_stream(places: dict[str, Path], place: str) -> None:
    assert sorted(splits_of(places[place])) == ["test", "train"]
    stream = open_split(places[place], "test")
    rows = list(stream)
    assert len(stream) == len(rows) == 8
    assert stream.column("path") == [row["path"] for row in rows]
    assert stream.column("label") == [row["label"] for row in rows]
    for row in rows:
        number = int(Path(row["path"]).stem)
        assert row["label"] == ("synthetic" if number % 3 == 0 else "real")
        assert row["generator"] == ("ProGAN" if number % 3 == 0 else "real") and row["camera"] == f"c{number}"
        given = row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes()
        assert given == image_bytes(number, (8, 8))
    assert [row["path"] for row in stream] == [row["path"] for row in rows], "again from the start"
    synthetic = open_split(places[place], "test", "identification")
    assert set(synthetic.column("label")) == {"synthetic"} and len(synthetic) == len(list(synthetic)) == 3


def test_other_peoples_files(places: dict[str, Path]) -> None:
    stream = open_split(places["theirs"], "test")
    expected = ["synthetic" if number % 3 == 0 else "real" for number in range(12)]
    assert [row["label"] for row in stream] == stream.column("label") == expected
    assert stream.record()["fingerprint"]
    with pytest.raises(UsageError, match="no column 'generator'; it has image, label"):
        stream.column("generator")


def test_fingerprints_of_streams_follow_the_content(places: dict[str, Path], tmp_path: Path) -> None:
    built, theirs = (open_split(places[name], "test").record()["fingerprint"] for name in ("built", "theirs"))
    moved = shutil.copytree(places["built"], tmp_path / "elsewhere")
    assert open_split(moved, "test").record()["fingerprint"] == built
    assert open_split(places["built"], "train").record()["fingerprint"] != built
    root = Path(shutil.copytree(places["root"], tmp_path / "root"))
    before = open_split(root, "test").record()["fingerprint"]
    (root / "some" / "3.png").write_bytes(image_bytes(99, (8, 8)))
    assert open_split(root, "test").record()["fingerprint"] != before
    assert theirs != built


@pytest.mark.parametrize(
    ("dataset", "split", "message"),
    [
        ("built", "tset", "has no detection/tset; it has train, test|has no detection/tset; it has test, train"),
        ("root", "validation", "it has test, train"),
        ("mini", "nothing", "it has train, test"),
        ("/nowhere/at/all", "test", "nowhere"),
    ],
)
def test_what_is_not_there_is_named(places: dict[str, Path], dataset: str, split: str, message: str) -> None:
    with pytest.raises(DataNotFoundError, match=message):
        open_split(places.get(dataset, Path(dataset)), split)


def test_labels_that_mean_neither_are_refused(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    columns = {"image": [{"bytes": image_bytes(0, (8, 8)), "path": None}] * 2, "label": [0, 1]}
    parquet(tmp_path / "cats", "test", datasets.Dataset.from_dict(columns, features=features))
    with pytest.raises(UsageError, match="real or synthetic, got 'cat'"):
        list(open_split(tmp_path / "cats", "test"))


def test_a_stream_of_mini() -> None:
    stream = open_split("mini", "test")
    assert len(stream) == sum(1 for _ in stream) and stream.record()["corpus"] == "mini"
