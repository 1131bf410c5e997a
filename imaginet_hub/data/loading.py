"""The rows of one split of a dataset, wherever it is: a built folder, the Hub, or the made corpus."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import datasets

from imaginet_hub.data.builder import MINI, ImagiNet
from imaginet_hub.data.images import read_bytes
from imaginet_hub.data.scan import content_fingerprint
from imaginet_hub.data.sources import corpus_of
from imaginet_hub.errors import DataNotFoundError, UsageError
from imaginet_hub.labels import LABEL_COLUMNS, Origin, Track

__all__ = ["classes_of", "dataset_record", "held_out", "load_rows", "track_of", "values_of", "with_names"]

#: Columns whose class "real" is no class to identify, so that real rows are left out.
_GENERATORS = ("generator_family", "generator")


def load_rows(dataset: str | os.PathLike[str], track: Track | str, split: str) -> datasets.Dataset:
    """Rows of a dataset for one track.

    Args:
        dataset: "mini" (the made corpus), a folder written by `imaginet build`, or a Hub repository id.
        track: "detection" (all rows) or "identification" (synthetic rows only).
        split: the split's name.

    Raises:
        DataNotFoundError: no such dataset or split.
        UsageError: it lacks the label columns.
    """
    track = Track(track)
    name = os.fspath(dataset)
    try:
        if name == MINI:
            builder = ImagiNet(config_name=MINI)
            builder.download_and_prepare()
            rows = builder.as_dataset(split=split)
            rows = rows.filter(_is_synthetic, input_columns="label") if track is Track.IDENTIFICATION else rows
        else:
            if Path(name).expanduser().is_dir():
                name = str(Path(name).expanduser().resolve())
            rows = datasets.load_dataset(name, track.value, split=split)
    except FileNotFoundError as error:  # datasets' own and the Hub's "not found" errors derive from it
        raise DataNotFoundError(
            f"no dataset at {name!r} ({error}); expected a folder written by `imaginet build`, a Hub dataset id, "
            f"or {MINI!r}"
        ) from error
    except OSError as error:
        raise DataNotFoundError(
            f"{name!r} is no folder here, and the Hub could not be asked for it ({error}); "
            "check the name and the network"
        ) from error
    except ValueError as error:
        raise DataNotFoundError(
            f"{name!r} has no {track.value}/{split} ({error}); expected a folder written by `imaginet build`, which "
            "makes one of a folder of images"
        ) from error
    missing = [column for column in ("image", *LABEL_COLUMNS) if column not in rows.column_names]
    if missing:
        raise UsageError(f"{name!r} has no column {', '.join(missing)}; it has {', '.join(rows.column_names)}")
    return rows


def _is_synthetic(label: int) -> bool:
    return label == list(Origin).index(Origin.SYNTHETIC)


def track_of(column: str) -> Track:
    """The rows that a column's classes are told apart in: all of them, or for generators the synthetic ones."""
    return Track.IDENTIFICATION if column in _GENERATORS else Track.DETECTION


def classes_of(rows: datasets.Dataset, column: str) -> dict[Any, str]:
    """The values that occur in a column of classes or text -> their names, in the order of ids or of the alphabet.

    Raises:
        UsageError: no such column, one of other things, rows without a class, or real rows among those of generators.
    """
    if column not in rows.column_names:
        raise UsageError(f"expected a column of class names among {', '.join(rows.column_names)}, got {column}")
    feature = rows.features[column]
    text = isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string", "bool")
    if not text and not isinstance(feature, datasets.ClassLabel):
        raise UsageError(f"expected a column of class names, got {column} with {feature}: make it text first")
    values = values_of(rows, column)
    if isinstance(feature, datasets.ClassLabel):
        missing = [value for value in values if value is None or not 0 <= value < feature.num_classes]
        named = {value: feature.names[value] for value in sorted(set(values) - set(missing))}
    else:
        missing = [value for value in values if value is None]
        named = {value: str(value) for value in sorted(set(values) - set(missing))}
    if missing:
        raise UsageError(f"expected a class in the column {column} of every row, got rows with {missing[0]}")
    if column in _GENERATORS and str(Origin.REAL) in named.values():
        raise UsageError(f"expected synthetic rows only, to tell the classes of {column} apart, got real ones too")
    return named


def held_out(rows: datasets.Dataset, share: float) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The rows in two parts, the second about `share` of them.

    Which part a row is in depends on its image's bytes alone: whatever other rows there are, and for both tracks, so
    that what one run holds out another can hold out too. Copies of an image are in one part.

    Args:
        rows: with an image column and, where it is to be quick, the images' SHA-256 in a column sha256.
        share: from 0 (none) to below 1.
    """
    if share == 0:
        return rows, rows.select(())
    if "sha256" in rows.column_names:
        digests = rows["sha256"][:]
    else:
        images = rows.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
        digests = [hashlib.sha256(_image_bytes(row["image"])).hexdigest() for row in images]
    # Hashed once more, with a word of its own: a split by the same digests may have made the rows what they are.
    places = [int.from_bytes(hashlib.sha256(f"held out {d}".encode()).digest()[:8], "big") / 2**64 for d in digests]
    return (
        rows.select([number for number, place in enumerate(places) if place >= share]),
        rows.select([number for number, place in enumerate(places) if place < share]),
    )


def values_of(rows: datasets.Dataset, column: str) -> list[Any]:
    """What occurs in a column. (`unique` of rows that were selected would copy them, images and all.)"""
    return list(dict.fromkeys(rows[column][:]))


def _image_bytes(value: dict[str, Any] | None) -> bytes:
    if value is None or value["bytes"] is None:
        return read_bytes(value["path"]) if value and value["path"] else b""
    return bytes(value["bytes"])


def with_names(row: dict[str, Any], features: datasets.Features) -> dict[str, Any]:
    """A row with the names of its classes in place of their ids."""
    return {
        column: features[column].int2str(value)
        if isinstance(features.get(column), datasets.ClassLabel) and value is not None
        else value
        for column, value in row.items()
    }


def dataset_record(dataset: str | os.PathLike[str], rows: datasets.Dataset, split: str) -> dict[str, Any]:
    """What a model or a result says of the images it saw: name, split, number, and their content's fingerprint."""
    name = os.fspath(dataset)
    record: dict[str, Any] = {
        # A folder's place on somebody's disk is nobody else's business.
        "name": Path(name).resolve().name if Path(name).is_dir() else name,
        "split": split,
        "images": len(rows),
    }
    columns = ("sha256", "label", "generator_family", "generator")
    if all(column in rows.column_names for column in columns):
        small = rows.select_columns(list(columns))
        named = (with_names(row, rows.features) for row in small)
        record["fingerprint"] = content_fingerprint([tuple(str(row[c]) for c in columns) for row in named])
    if "source" in rows.column_names:
        record["corpus"] = corpus_of(values_of(rows, "source"))
    return record
