"""The rows of one split of a dataset, wherever it is: a built folder, the Hub, or the made corpus."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets

from imaginet_hub.data.builder import MINI, ImagiNet, features_of, open_root
from imaginet_hub.data.images import read_bytes
from imaginet_hub.data.manifest import Record, looks_like_root
from imaginet_hub.data.readers.hub import CLIENT_ERRORS, hub_trouble
from imaginet_hub.data.rights import allowed
from imaginet_hub.data.scan import content_fingerprint, fingerprint
from imaginet_hub.data.sources import corpus_of
from imaginet_hub.errors import DataNotFoundError, UsageError
from imaginet_hub.labels import LABEL_COLUMNS, Origin, Track, origin_named

__all__ = [
    "RowStream",
    "classes_of",
    "dataset_record",
    "held_out",
    "load_rows",
    "open_split",
    "splits_of",
    "track_of",
    "values_of",
    "with_names",
]

#: Columns whose class "real" is no class to identify, so that real rows are left out.
_GENERATORS = ("generator_family", "generator")


def load_rows(
    dataset: str | os.PathLike[str],
    track: Track | str,
    split: str,
    *,
    licenses: str | Sequence[str] | None = None,
) -> datasets.Dataset:
    """Rows of a dataset for one track.

    Args:
        dataset: "mini" (the made corpus), a folder written by `imaginet build`, or a Hub repository id.
        track: "detection" (all rows) or "identification" (synthetic rows only).
        split: the split's name.
        licenses: only rows whose licence clearly allows this, "commercial" or "redistributable", or is one of these;
            see `rights.selection`.

    Raises:
        DataNotFoundError: no such dataset or split.
        UsageError: it lacks the label columns, or no row has such a licence.
    """
    track = Track(track)
    name = _resolved(dataset)
    with _finding(name, f"{track.value}/{split}"):
        if name == MINI:
            rows = _mini().as_dataset(split=split)
            rows = rows.filter(_is_synthetic, input_columns="label") if track is Track.IDENTIFICATION else rows
        else:
            rows = datasets.load_dataset(name, track.value, split=split)
    needed = ("image", *LABEL_COLUMNS, *(("license", "source") if licenses is not None else ()))
    missing = [column for column in needed if column not in rows.column_names]
    if missing:
        raise UsageError(f"{name!r} has no column {', '.join(missing)}; it has {', '.join(rows.column_names)}")
    if licenses is not None:
        terms = [(str(a or ""), str(b or "")) for a, b in zip(rows["license"][:], rows["source"][:], strict=True)]
        kept = allowed(terms, licenses)
        rows = rows.select([number for number, pair in enumerate(terms) if pair in kept])
    return rows


class RowStream:
    """One split of a dataset for one track, read from the start as often as it is iterated over.

    Iteration gives rows as dicts: classes by name, and `image` as {"bytes", "path"}, not decoded, so that one broken
    image costs one row. Nothing is copied to a cache, and no more than one row group is held at a time.

    Args:
        dataset: "mini", a folder written by `imaginet build`, a Hub repository id, or a ROOT: a folder of images with
            its annotations.
        track: detection (all rows) or identification (synthetic rows only).
        split: the split's name.

    Attributes:
        name, track, split: as given.
        features: of the rows. The column `label` is that of the dataset, but see `column`.
        meanings: what labels with other names were taken for, as far as rows have been read.

    Raises:
        DataNotFoundError: no such dataset or split.
        UsageError: it has no column image or label.
    """

    def __init__(self, dataset: str | os.PathLike[str], split: str, track: Track | str = Track.DETECTION) -> None:
        self.name, self.split, self.track = os.fspath(dataset), split, Track(track)
        self._place = _resolved(dataset)
        self._records: list[Record] | None = None
        self._small: dict[str, list[Any]] = {}
        self.meanings: dict[str, str] = {}
        available = splits_of(dataset, self.track)
        if split not in available:
            raise DataNotFoundError(f"{self.name!r} has no {self.track}/{split}; it has {', '.join(available)}")
        if _is_root(self._place):
            root, manifest = open_root(self._place)
            self._root, self._carried = root, manifest.carried_columns
            self._records = [
                record
                for record in manifest.records
                if record.split == split and (self.track is Track.DETECTION or record.label == Origin.SYNTHETIC)
            ]
            self.features = features_of(manifest.vocabulary, manifest.carried_columns)
            for computed in ("width", "height", "format"):  # not known without reading every file
                del self.features[computed]
            self._state = fingerprint(root, manifest)
        else:
            with _finding(self._place, f"{self.track}/{split}"):
                self._config = None if self._place == MINI else _config_of(self._place, self.track)
                self._in_columns = self._place != MINI and self._is_parquet()
                self.features = self._read(None).features or datasets.Features()
        missing = [column for column in ("image", "label") if column not in self.features]
        if missing:
            raise UsageError(f"{self.name!r} has no column {', '.join(missing)}; it has {', '.join(self.features)}")

    def __len__(self) -> int:
        return len(self.column("label"))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self._records is not None:
            yield from map(self._row_of_record, self._records)
            return
        if self._in_columns:  # what is wrong with labels is said now: a reader that is left open may end the process
            self.column("label")
        with _finding(self._place, f"{self.track}/{self.split}"):
            for row in self._read(None).cast_column("image", datasets.Image(decode=False)):
                yield self._named(row | {"image": _at_hand(row["image"])})

    def column(self, name: str) -> list[Any]:
        """Every value of a column other than the images, which are not read; classes by name.

        `label` is real or synthetic whatever the dataset calls them (see `labels.origin_named`).

        Raises:
            UsageError: no such column, or a label that means neither.
        """
        if name not in self.features or name == "image":
            raise UsageError(f"{self.name!r} has no column {name!r}; it has {', '.join(self.features)}")
        if name not in self._small:
            if self._records is not None:
                self._small[name] = [self._row_of_record(record)[name] for record in self._records]
            else:
                with _finding(self._place, f"{self.track}/{self.split}"):
                    found = list(self._read([name]))  # to its end: a reader that is left open may end the process
                self._small[name] = [self._named(row)[name] for row in found]
        return self._small[name]

    def record(self) -> dict[str, Any]:
        """What a result says of the images it was measured on; see `dataset_record`."""
        record = _record(self._place if Path(self._place).is_dir() else self.name, self.split, len(self))
        columns = ("sha256", "label", "generator_family", "generator")
        if all(column in self.features for column in columns) and None not in self.column("sha256"):
            rows = zip(*(map(str, self.column(column)) for column in columns), strict=True)
            record["fingerprint"] = content_fingerprint(list(rows))
        elif self._records is not None:
            record["fingerprint"] = self._state
        else:
            record["fingerprint"] = self._files_fingerprint()
        if "source" in self.features:
            record["corpus"] = corpus_of(dict.fromkeys(self.column("source")))
        report = _json_object(Path(self._place) / "perturb_report.json")
        if report:
            record["perturbed"] = {key: report.get(key) for key in ("seed", "encoders", "digest")}
        return record

    def _read(self, columns: Sequence[str] | None) -> Any:
        """A new iterable of datasets', of some columns or of all."""
        if self._place == MINI:
            rows = _mini().as_dataset(split=self.split)
            if self.track is Track.IDENTIFICATION:
                rows = rows.filter(_is_synthetic, input_columns="label")
            return rows if columns is None else rows.select_columns(list(columns))
        options: dict[str, Any] = {"split": self.split, "streaming": True}
        if columns is None or not self._in_columns:
            rows = datasets.load_dataset(self._place, self._config, **options)
            return rows if columns is None else rows.select_columns(list(columns))
        return datasets.load_dataset(self._place, self._config, columns=list(columns), **options)

    def _row_of_record(self, record: Record) -> dict[str, Any]:
        return {
            "image": {"bytes": None, "path": os.path.join(self._root, record.file)},  # noqa: PTH118 - 200,000 calls
            **{column: getattr(record, column) for column in LABEL_COLUMNS},
            **{column: getattr(record, column) for column in ("source", "license", "path", "sha256", "calibration")},
            **dict(zip(self._carried, record.carried, strict=True)),
        }

    def _named(self, row: dict[str, Any]) -> dict[str, Any]:
        row = with_names(row, self.features)
        label = row.get("label", str(Origin.REAL))
        if label is None:
            raise UsageError(f"{self.name!r}: expected a label in every row of {self.split}, got a row without one")
        if label not in tuple(Origin):
            origin = origin_named(str(label))
            if origin is None:
                raise UsageError(
                    f"{self.name!r}: expected labels that mean real or synthetic, got {label!r}: name them, as by "
                    "dataset.cast_column('label', datasets.ClassLabel(names=['real', 'synthetic'])), and save that"
                )
            self.meanings[str(label)] = str(origin)
            row["label"] = str(origin)
        return row

    def _is_parquet(self) -> bool:
        """Whether single columns can be read."""
        return hasattr(datasets.load_dataset_builder(self._place, self._config).config, "columns")

    def _files_fingerprint(self) -> str | None:
        """Of a dataset without checksums: its files, as the Hub or the file system names their state."""
        if self._place == MINI:
            return None
        builder = datasets.load_dataset_builder(self._place, self._config)
        files = (builder.config.data_files or {}).get(self.split)
        state = [list(files or ()), getattr(files, "origin_metadata", None)]
        return hashlib.sha256(json.dumps(state, default=str).encode()).hexdigest()[:16]


def _at_hand(image: dict[str, Any] | None) -> dict[str, Any]:
    """An undecoded image with its bytes, if its file is on another machine."""
    image = image or {"bytes": None, "path": None}
    if image["bytes"] is None and "://" in (image["path"] or ""):
        try:
            with datasets.utils.file_utils.xopen(image["path"], "rb") as file:
                return {**image, "bytes": file.read()}
        except OSError:  # said where it is decoded
            return image
    return image


def _json_object(file: Path) -> dict[str, Any]:
    """Empty where there is none, or something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def open_split(dataset: str | os.PathLike[str], split: str, track: Track | str = Track.DETECTION) -> RowStream:
    """See `RowStream`."""
    return RowStream(dataset, split, track)


def splits_of(dataset: str | os.PathLike[str], track: Track | str = Track.DETECTION) -> tuple[str, ...]:
    """The names of a dataset's splits.

    Args:
        dataset, track: see `RowStream`.

    Raises:
        DataNotFoundError: no such dataset.
    """
    place, track = _resolved(dataset), Track(track)
    if _is_root(place):
        records = open_root(place)[1].records
        kept = (r for r in records if track is Track.DETECTION or r.label == Origin.SYNTHETIC)
        return tuple(dict.fromkeys(record.split for record in kept))
    with _finding(place, track.value):
        if place == MINI:
            return tuple(map(str, _mini().info.splits or ()))
        return tuple(map(str, datasets.get_dataset_split_names(place, _config_of(place, track))))


def _resolved(dataset: str | os.PathLike[str]) -> str:
    """A folder's whole path, or a name as it is.

    Raises:
        DataNotFoundError: a path, and no folder there.
    """
    name = os.fspath(dataset)
    folder = Path(name).expanduser()
    if name == MINI:
        return name
    if folder.is_dir():
        return str(folder.resolve())
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise DataNotFoundError(
            f"no dataset at {name!r}: expected a folder, found {'a file' if folder.exists() else 'nothing'}; name one "
            f"written by `imaginet build`, a folder of images with its annotations, a Hub dataset id, or {MINI!r}"
        )
    return name


def _is_root(place: str) -> bool:
    """Whether this is a folder of images with its annotations, and not a dataset built of one."""
    folder = Path(place)
    if not folder.is_dir() or any(folder.glob("data/*.parquet")):
        return False
    return looks_like_root(folder)


def _config_of(place: str, track: Track) -> str | None:
    """The config of a track, or the default one of a dataset that knows nothing of tracks."""
    names = datasets.get_dataset_config_names(place)
    if track.value in names or track is Track.IDENTIFICATION:
        return track.value
    return None


def _mini() -> ImagiNet:
    builder = ImagiNet(config_name=MINI)
    builder.download_and_prepare()
    return builder


@contextmanager
def _finding(name: str, what: str) -> Iterator[None]:
    """Whatever looking for a dataset raises in here becomes one line."""
    try:
        yield
    except (DataNotFoundError, UsageError):
        raise
    except CLIENT_ERRORS as error:
        trouble = hub_trouble(error, name, "dataset")
        if trouble is None and isinstance(error, FileNotFoundError):
            trouble = (
                f"no dataset at {name!r} ({error}); expected a folder written by `imaginet build`, a Hub dataset id, "
                f"or {MINI!r}"
            )
        elif trouble is None and isinstance(error, ValueError):
            trouble = (
                f"{name!r} has no {what} ({error}); expected a folder written by `imaginet build`, which makes one of "
                "a folder of images"
            )
        raise DataNotFoundError(trouble or f"{name!r} could not be read ({error}); check it and the disk") from error


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
        column: _class_name(features[column], value)
        if isinstance(features.get(column), datasets.ClassLabel) and not isinstance(value, str)
        else value
        for column, value in row.items()
    }


def _class_name(feature: datasets.ClassLabel, value: int | None) -> str | None:
    """None where there is no class, or -1 in its place as in unlabelled splits."""
    return None if value is None or value == -1 else str(feature.int2str(value))


def dataset_record(dataset: str | os.PathLike[str], rows: datasets.Dataset, split: str) -> dict[str, Any]:
    """What a model or a result says of the images it saw: name, split, number, and their content's fingerprint."""
    record = _record(os.fspath(dataset), split, len(rows))
    columns = ("sha256", "label", "generator_family", "generator")
    if all(column in rows.column_names for column in columns):
        small = rows.select_columns(list(columns))
        named = (with_names(row, rows.features) for row in small)
        record["fingerprint"] = content_fingerprint([tuple(str(row[c]) for c in columns) for row in named])
    if "source" in rows.column_names:
        record["corpus"] = corpus_of(values_of(rows, "source"))
    return record


def _record(name: str, split: str, images: int) -> dict[str, Any]:
    # A folder's place on somebody's disk is nobody else's business.
    return {"name": Path(name).resolve().name if Path(name).is_dir() else name, "split": split, "images": images}
