"""What others published on ImagiNet's benchmarks, as data: to stand beside one's own results, never among them.

`published.json` has every result table of the paper and of its repository. Tables "3" to "7" are numbered as the
paper's; "content" and "generator" are the repository's alone. Detectors with a star were trained on ImagiNet.
Misprints are corrected, and footnotes say so.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from imaginet_hub.errors import UsageError

__all__ = ["MEAN", "PAPER", "PublishedRow", "published"]

PAPER = "arXiv 2407.20020v3"
#: The group whose figures are the unweighted mean of the others in the table.
MEAN = "Mean"
#: Means of rounded figures, rounded themselves, with a little for binary fractions.
_ROUNDING = 1e-4 + 1e-9


@dataclass(frozen=True)
class PublishedRow:
    """What was published of one detector in one group: not measured here, and under the publisher's own protocol.

    Attributes:
        table: "3" to "7" as in the paper, or "content", "generator".
        title: what the table measures.
        detector: Grag2021, Corvi2022, Wu2023, Corvi2022* or Ours*.
        group: generator, family or content type; `MEAN` for the table's mean.
        metrics: balanced_accuracy and auc, accuracy and auc ("7"; a family has no auc), or milliseconds ("6").
        source: table or file that the figures are from.
        footnotes: what is to be known about them.
    """

    table: str
    title: str
    detector: str
    group: str
    metrics: Mapping[str, float]
    source: str
    footnotes: tuple[str, ...]


def published(
    *, table: str | None = None, detector: str | None = None, group: str | None = None
) -> tuple[PublishedRow, ...]:
    """The published rows, all of them or those of a table, a detector, a group.

    Raises:
        UsageError: a table, a detector or a group that does not occur; the message lists those that do.

    Example:
        >>> published(table="3", detector="Ours*", group="GAN")[0].metrics
        {'balanced_accuracy': 0.9372, 'auc': 0.9886}
    """
    rows = _all()
    for name, wanted in {"table": table, "detector": detector, "group": group}.items():
        known = dict.fromkeys(getattr(row, name) for row in rows)
        if wanted is not None and wanted not in known:
            raise UsageError(f"published {name}: expected one of {', '.join(known)}, got {wanted!r}")
        rows = tuple(row for row in rows if wanted in (None, getattr(row, name)))
    return rows


@functools.cache
def _all() -> tuple[PublishedRow, ...]:
    text = resources.files(__package__).joinpath("published.json").read_text(encoding="utf-8")
    return rows_of(json.loads(text))


def rows_of(content: Mapping[str, Any]) -> tuple[PublishedRow, ...]:
    """The rows of `published.json`, checked.

    Raises:
        UsageError: a group without figures, a share outside [0, 1], or a mean that is not that of its rows.
    """
    rows = []
    for table, what in content["tables"].items():
        for detector, said in what["detectors"].items():
            where = f"published table {table}, {detector}"
            if list(said["values"]) != what["groups"]:
                raise UsageError(f"{where}: expected the groups {what['groups']}, got {list(said['values'])}")
            corrected = {item["group"]: [item["footnote"]] for item in said.get("corrected", ())}
            for group, figures in said["values"].items():
                metrics = {m: f for m, f in zip(what["metrics"], figures, strict=True) if f is not None}
                for metric, figure in metrics.items():
                    if not (figure > 0 and (figure <= 1 or metric == "milliseconds")):
                        raise UsageError(f"{where}, {group}: expected {metric} as a share in [0, 1], got {figure}")
                notes = tuple(content["footnotes"][n] for n in [*what["footnotes"], *corrected.get(group, ())])
                rows.append(PublishedRow(table, what["title"], detector, group, metrics, said["source"], notes))
            _check_means(where, what["metrics"], said["values"])
    return tuple(rows)


def _check_means(where: str, metrics: list[str], values: Mapping[str, list[float | None]]) -> None:
    for place, metric in enumerate(metrics):
        figures = [figures[place] for group, figures in values.items() if group != MEAN]
        given = [figure for figure in figures if figure is not None]
        said = values.get(MEAN, [None] * len(metrics))[place]
        if said is not None and len(given) == len(figures) and abs(sum(given) / len(given) - said) > _ROUNDING:
            raise UsageError(
                f"{where}: expected the mean {metric} of the groups, {sum(given) / len(given):.5f}, got {said}: "
                "correct the misprint, with a footnote"
            )
