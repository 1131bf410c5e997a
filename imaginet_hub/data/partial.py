"""What a build of part of the images cannot be compared with: the published figures and what each of them needs.

Figures are those of the ImagiNet paper (arXiv 2407.20020v3, Tables 3 to 5 and 7) and of the result files in its
repository (by content type, by specific model). Each is a row of `PUBLISHED`; the logic only looks up whether an
image that is not there is one that the row needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from imaginet_hub.data.manifest import Record
from imaginet_hub.data.sources import corpus_of
from imaginet_hub.labels import ContentType, Generator, GeneratorFamily, Origin

__all__ = ["MISSING_LIST", "PUBLISHED", "Published", "partial_report", "write_missing"]

#: Beside a build: the paths of the images that were not there, one a line.
MISSING_LIST = "missing.txt"


@dataclass(frozen=True)
class Published:
    """One published row, and the images without which it cannot be measured again.

    Attributes:
        table: where it is printed.
        row: its name there.
        why: what it is measured on.
        needs: kinds of images, each as column -> value; an image of any of these kinds counts.
    """

    table: str
    row: str
    why: str
    needs: tuple[Mapping[str, str], ...]


def _test(**columns: str) -> dict[str, str]:
    return {"split": "test", **columns}


_FAMILIES = tuple(family for family in GeneratorFamily if family != GeneratorFamily.REAL)
_GENERATORS = tuple(generator for generator in Generator if generator != Generator.REAL)
_REAL = _test(label=Origin.REAL)
_SYNTHETIC = _test(label=Origin.SYNTHETIC)
_TABLE_3 = "Table 3 (detection)"
_BY_CONTENT = "detection by content type (repository)"
_BY_GENERATOR = "detection by specific model (repository)"
_TABLE_7 = "Table 7 (identification)"

#: In the order of the paper. Real test images of a group are drawn from all content types, so every row of Table 3
#: needs all of them (1,678 real test images happen never to be drawn; which ones is not in the annotations).
PUBLISHED: tuple[Published, ...] = (
    *(
        Published(
            _TABLE_3,
            family,
            f"{family} test images against real test images drawn from all content types",
            (_test(generator_family=family), _REAL),
        )
        for family in _FAMILIES
    ),
    Published(_TABLE_3, "Mean", "the four rows above it: the whole test split", (_test(),)),
    *(
        Published(_BY_CONTENT, content, f"all test images of content type {content}", (_test(content_type=content),))
        for content in ContentType
    ),
    Published(_BY_CONTENT, "Mean", "the four rows above it: the whole test split", (_test(),)),
    *(
        Published(
            _BY_GENERATOR,
            generator,
            f"{generator} test images against real test images",
            (_test(generator=generator), _REAL),
        )
        for generator in _GENERATORS
    ),
    Published(_BY_GENERATOR, "Mean", "the eight rows above it: the whole test split", (_test(),)),
    *(Published(_TABLE_7, family, f"{family} test images", (_test(generator_family=family),)) for family in _FAMILIES),
    Published(_TABLE_7, "Mean and AUC", "all synthetic test images", (_SYNTHETIC,)),
    Published(
        "Tables 3, 4, 5 and 7, by content type, by specific model",
        "models trained on ImagiNet (Ours*, Corvi2022*)",
        "trained on the whole train split; a model trained on this build is not",
        ({"split": "train"},),
    ),
)

_COLUMNS = ("split", "source", "folder", "label", "content_type", "generator_family", "generator")


def partial_report(records: Iterable[Record], kept: Iterable[Record]) -> dict[str, Any] | None:
    """Count what is annotated and not in a build, and name the published rows that it can no longer be compared with.

    Args:
        records: every annotated image.
        kept: those that went in.

    Returns:
        None when every annotated image went in, else

        - `annotated`, `absent`: images.
        - `splits`: per split `annotated`, `absent`, and the absent ones per `content_type` and `generator_family`.
        - `sources`: a list of `{split, source, annotated, absent, folders}`, where something is absent; `folders`
          counts the absent ones per top folder.
        - `not_comparable`: a list of `{table, row, absent, needed, why}`, in the order of `PUBLISHED`. Empty unless
          the annotations are ImagiNet's.
    """
    inside = {record.file for record in kept}
    annotated: Counter[tuple[str, ...]] = Counter()
    absent: Counter[tuple[str, ...]] = Counter()
    for record in records:
        cell = _cell(record)
        annotated[cell] += 1
        if record.file not in inside:
            absent[cell] += 1
    if not absent:
        return None
    ours = corpus_of(cell[_COLUMNS.index("source")] for cell in annotated) == "ImagiNet"
    return {
        "annotated": annotated.total(),
        "absent": absent.total(),
        "splits": {
            split: {
                "annotated": count,
                "absent": _count(absent, {"split": split}),
                "content_type": _counts(absent, "content_type", {"split": split}),
                "generator_family": _counts(absent, "generator_family", {"split": split}),
            }
            for split, count in _counts(annotated, "split").items()
        },
        "sources": [
            {
                "split": split,
                "source": source,
                "annotated": _count(annotated, {"split": split, "source": source}),
                "absent": count,
                "folders": _counts(absent, "folder", {"split": split, "source": source}),
            }
            for split in _counts(absent, "split")
            for source, count in _counts(absent, "source", {"split": split}).items()
        ],
        "not_comparable": [
            {
                "table": published.table,
                "row": str(published.row),
                "absent": missing,
                "needed": _count(annotated, *published.needs),
                "why": published.why,
            }
            for published in PUBLISHED
            if ours and (missing := _count(absent, *published.needs))
        ],
    }


def _cell(record: Record) -> tuple[str, ...]:
    parts = PurePosixPath(record.path).parts
    values = (record.label, record.content_type, record.generator_family, record.generator)
    return (record.split, record.source, parts[0] if len(parts) > 1 else "", *values)


def _matches(cell: tuple[str, ...], kinds: tuple[Mapping[str, str], ...]) -> bool:
    return any(all(cell[_COLUMNS.index(column)] == value for column, value in kind.items()) for kind in kinds)


def _count(cells: Counter[tuple[str, ...]], *kinds: Mapping[str, str]) -> int:
    """Images that are of any of some kinds."""
    return sum(count for cell, count in cells.items() if _matches(cell, kinds))


def _counts(cells: Counter[tuple[str, ...]], column: str, kind: Mapping[str, str] | None = None) -> dict[str, int]:
    """Images of one kind per value of a column."""
    counts: Counter[str] = Counter()
    for cell, count in cells.items():
        if _matches(cell, (kind or {},)):
            counts[cell[_COLUMNS.index(column)]] += count
    return dict(sorted(counts.items()))


def write_missing(folder: Path, paths: Iterable[str]) -> None:
    """Write `MISSING_LIST` into a folder, unless there is nothing to list.

    Args:
        folder: of the build.
        paths: as written in the annotations.
    """
    text = "".join(f"{path}\n" for path in paths)
    if text:
        (folder / MISSING_LIST).write_text(text, encoding="utf-8")
