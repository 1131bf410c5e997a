"""The rows of one split of a dataset, wherever it is: a built folder, the Hub, or the made corpus."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets

from imaginet_hub.data.builder import MINI, ImagiNet
from imaginet_hub.data.scan import content_fingerprint
from imaginet_hub.data.sources import corpus_of
from imaginet_hub.errors import DataNotFoundError, UsageError
from imaginet_hub.labels import LABEL_COLUMNS, Origin, Track

__all__ = ["class_names", "dataset_record", "load_rows", "with_names"]


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
        raise DataNotFoundError(f"{name!r} has no {track.value}/{split}: {error}") from error
    missing = [column for column in ("image", *LABEL_COLUMNS) if column not in rows.column_names]
    if missing:
        raise UsageError(f"{name!r} has no column {', '.join(missing)}; it has {', '.join(rows.column_names)}")
    return rows


def _is_synthetic(label: int) -> bool:
    return label == list(Origin).index(Origin.SYNTHETIC)


def class_names(rows: datasets.Dataset, track: Track | str) -> tuple[str, ...]:
    """The classes of a track in id order; identification leaves out "real", which is last."""
    track = Track(track)
    names = rows.features[track.label_column].names
    return tuple(name for name in names if track is Track.DETECTION or name != Origin.REAL)


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
        record["corpus"] = corpus_of(rows.unique("source"))
    return record
