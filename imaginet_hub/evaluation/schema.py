"""Whether an object is a results file: by `results.schema.json`, and by what a schema cannot say."""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

from imaginet_hub.errors import UsageError, require
from imaginet_hub.labels import Track

__all__ = ["results_schema", "validate"]

#: (where, expected, got)
_Problem = tuple[str, str, Any]


def results_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of the results file, with a description of every key."""
    text = resources.files(__package__).joinpath("results.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def validate(content: Mapping[str, Any]) -> None:
    """Check that an object is a results file whose figures fit each other.

    A value need not lie within its interval: percentiles of resamples of a few rows, and those of statistics that are
    biased upwards such as the calibration error, can leave it out.

    Args:
        content: what `json` reads from the file, or is to write to it: null (None) in place of NaN.

    Raises:
        UsageError: it is not one; names the path of the first problem, what was expected and what was got.
        MissingExtraError: jsonschema is not installed.
    """
    require("eval", "jsonschema")
    # NaN would pass for a number; figures are added up once their shapes are known.
    try:
        for problems in (_not_finite(content, ""), _shapes(dict(content)), _figures(content)):
            for where, expected, got in problems:
                raise UsageError(f"results: {where or 'the file'}: expected {expected}, got {_brief(got)}")
    except RecursionError as error:
        raise UsageError(
            "results: the file: expected objects a few levels deep, got more levels than Python can follow: "
            "evaluate again"
        ) from error


def _not_finite(value: Any, where: str) -> Iterator[_Problem]:
    if isinstance(value, float):
        if not math.isfinite(value):
            yield where, "a finite number, or null where it is undefined", value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _not_finite(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _not_finite(item, f"{where}[{number}]")


@functools.cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(results_schema())


def _shapes(content: dict[str, Any]) -> Iterator[_Problem]:
    for error in _validator().iter_errors(content):
        while error.context:  # of the alternatives "null or this": what is wrong with this
            error = error.context[-1]  # noqa: PLW2901
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path)
        yield where.removeprefix("."), _EXPECTED.get(error.validator, _keyword)(error), error.instance


def _keyword(error: Any) -> str:
    return f"{error.validator} {_brief(error.validator_value)}"


def _missing(error: Any) -> str:
    return f"the keys {', '.join(key for key in error.validator_value if key not in error.instance)} as well"


def _only(error: Any) -> str:
    known = error.schema.get("properties", {})
    return f"no key {', '.join(str(key) for key in error.instance if key not in known)}"


#: Keywords of JSON Schema that say nothing by themselves.
_EXPECTED: dict[str, Callable[[Any], str]] = {
    "additionalProperties": _only,
    "const": lambda error: repr(error.validator_value),
    "enum": lambda error: " or ".join(map(repr, error.validator_value)),
    "maximum": lambda error: f"at most {error.validator_value}",
    "minimum": lambda error: f"at least {error.validator_value}",
    "pattern": lambda error: f"text like {error.validator_value}",
    "required": _missing,
    "type": lambda error: " or ".join(
        [error.validator_value] if isinstance(error.validator_value, str) else error.validator_value
    ),
    "uniqueItems": lambda error: "distinct items",
}


def _figures(content: Mapping[str, Any]) -> Iterator[_Problem]:
    names, counts, confusion = content["names"], content["class_counts"], content["confusion"]
    for key in ("class_counts", "recall"):
        if set(content[key]) != set(names):
            yield key, f"the classes {', '.join(names)}", list(content[key])
            return
    if sum(counts.values()) != content["n"]:
        yield "n", f"{sum(counts.values())}, the sum of class_counts", content["n"]
    if [len(row) for row in confusion] != [len(names)] * len(names):
        yield "confusion", f"{len(names)} rows of {len(names)} counts", confusion
    for number, (name, row) in enumerate(zip(names, confusion, strict=False)):
        if sum(row) != counts[name]:
            yield f"confusion[{number}]", f"counts that add up to class_counts.{name}, {counts[name]}", row
    majority = content["baselines"]["majority"]["class"]
    if majority not in names:
        yield "baselines.majority.class", f"one of {', '.join(names)}", majority
    yield from _intervals(content["metrics"], "metrics")
    yield from _intervals(content["recall"], "recall")
    if content["unknown"] is not None:
        yield from _intervals({"auroc": content["unknown"]["auroc"]}, "unknown")
    if content["comparison"] is not None:
        yield from _intervals(content["comparison"]["differences"], "comparison.differences")
    if content.get("speed") is not None:
        yield from _intervals({"ratio": content["speed"]["ratio"]}, "speed")
    for protocol in ("paper", "clean") if content["protocols"] is not None else ():
        for column, part in content["protocols"][protocol]["by"].items():
            where = f"protocols.{protocol}.by.{column}"
            yield from _intervals(part["mean"], f"{where}.mean")
            for name, group in part["groups"].items():
                yield from _intervals(group["metrics"], f"{where}.groups.{name}.metrics")
    for column, groups in content["by"].items():
        for value, part in groups.items():
            yield from _group(part, f"by.{column}.{value}", content)
    if content["per_image"] is not None:
        yield from _images(content["per_image"], content)


def _group(part: Mapping[str, Any], where: str, content: Mapping[str, Any]) -> Iterator[_Problem]:
    if part["n"] > content["n"]:
        yield f"{where}.n", f"at most n, {content['n']}", part["n"]
    if content["track"] == Track.DETECTION:
        classes = {key: part[key] for key in ("n_real", "n_synthetic") if key in part}
        if len(classes) < 2 or sum(classes.values()) != part["n"]:
            yield where, f"n_real and n_synthetic that add up to n, {part['n']}", classes
    yield from _intervals(part["metrics"], f"{where}.metrics")


def _intervals(intervals: Mapping[str, Mapping[str, float | None]], where: str) -> Iterator[_Problem]:
    for name, interval in intervals.items():
        value, low, high = interval["value"], interval["low"], interval["high"]
        if (low is None) != (high is None) or (value is None and low is not None):
            yield f"{where}.{name}", "both ends or none, and none without a value", interval
        if low is not None and high is not None and low > high:
            yield f"{where}.{name}", "low <= high", interval


def _images(images: Sequence[Mapping[str, Any]], content: Mapping[str, Any]) -> Iterator[_Problem]:
    names = content["names"]
    for number, image in enumerate(images):
        if len(image["scores"]) != len(names):
            yield f"per_image[{number}].scores", f"{len(names)} scores, one for each name", image["scores"]
        if image["label"] not in names and image["label"] not in content["unknown_classes"]:
            yield f"per_image[{number}].label", f"one of {', '.join(names)} or of unknown_classes", image["label"]
    found = Counter(image["label"] for image in images)
    for name in names:
        if found[name] != content["class_counts"][name]:
            yield "per_image", f"{content['class_counts'][name]} rows of {name}, as class_counts has it", found[name]


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
