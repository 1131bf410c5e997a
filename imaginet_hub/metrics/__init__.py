"""The metrics of both tracks as modules for the library `evaluate`; see `path`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imaginet_hub.errors import UsageError
from imaginet_hub.labels import Track

__all__ = ["details", "path"]


def path(track: str) -> str:
    """The folder of a track's metrics, for `evaluate.load(path("detection"))`. No network is needed.

    Args:
        track: detection or identification.

    Raises:
        UsageError: another track.
    """
    if track not in tuple(Track):
        raise UsageError(f"expected one of the tracks {', '.join(Track)}, got {track!r}")
    return str(Path(__file__).parent / f"imaginet_{track}")


def details(report: dict[str, Any], *, by: bool, intervals: bool) -> dict[str, Any]:
    """What a module adds to its flat figures, from the report of its track.

    Args:
        report: of `detection_report` or `identification_report`.
        by: whether groups were asked for.
        intervals: whether intervals were asked for.

    Returns:
        `intervals` and `by`, each where asked for; without intervals the metrics in `by` are plain values.
    """
    found: dict[str, Any] = {"intervals": report["metrics"]} if intervals else {}
    if by:
        found["by"] = report["by"]
    if by and not intervals:
        found["by"] = {
            column: {
                value: facts | {"metrics": {name: metric["value"] for name, metric in facts["metrics"].items()}}
                for value, facts in values.items()
            }
            for column, values in report["by"].items()
        }
    return found
