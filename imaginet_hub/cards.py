"""Cards are outputs: reports and result files in, Markdown out; nobody types a number into a card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from imaginet_hub.data.repository import card_configs
from imaginet_hub.data.sources import SOURCES
from imaginet_hub.evaluation.report import interval_text
from imaginet_hub.labels import Origin, Track

__all__ = ["dataset_card", "model_card", "perturbed_card", "write_model_card"]

_SIMULATED = (
    "**Simulated.** The images come from the made corpus `mini`: photographs, and the same photographs put through "
    "simulated generator pipelines. None was made by the generators whose names appear."
)


_TITLES = {"ImagiNet": "ImagiNet", "mini": "ImagiNet mini (simulated)", "own images": "Real and synthetic images"}
_TAGS = {"ImagiNet": ["imaginet"], "mini": ["imaginet", "simulated"], "own images": []}


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("imaginet_hub", "templates"),
        undefined=jinja2.StrictUndefined,  # a missing figure is an error, not an empty cell
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["thousands"] = lambda number: f"{number:,}"
    environment.filters["cell"] = _cell
    environment.filters["interval"] = interval_text
    return environment


def _cell(text: object) -> str:
    """Text from data, safe in a Markdown table cell."""
    if isinstance(text, Mapping):
        text = ", ".join(f"{key} {value}" for key, value in text.items())
    clean = " ".join(str(text).split())
    return clean.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def _yaml(metadata: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True, width=1000)


def _size_category(images: int) -> str:
    for limit, name in ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M")):
        if images < limit:
            return name
    return "1M<n<10M"


def dataset_card(report: Mapping[str, Any]) -> str:
    """The README.md of a built dataset.

    Args:
        report: what `build_repository` returns.

    Returns:
        Markdown with the YAML metadata that `datasets` and the Hub read.
    """
    synthetic = {split: Origin.SYNTHETIC in facts["label"] for split, facts in report["splits"].items()}
    metadata = {
        "pretty_name": _TITLES[report["corpus"]],
        "license": "other",
        "license_name": "per-image",
        "license_link": "README.md#licences",
        "task_categories": ["image-classification"],
        "size_categories": [_size_category(report["images"])],
        "tags": ["synthetic-image-detection", *_TAGS[report["corpus"]]],
        "configs": card_configs(synthetic, report["build_id"]),
    }
    columns = [
        ("content_type", "Content type"),
        ("generator_family", "Generator family"),
        ("generator", "Generator"),
        ("source", "Source"),
    ]
    used = {source for facts in report["splits"].values() for source in facts["source"]}
    return (
        _environment()
        .get_template("dataset.md.jinja")
        .render(
            metadata=_yaml(metadata),
            report=report,
            title=_TITLES[report["corpus"]],
            corpus=report["corpus"],
            simulated=_SIMULATED,
            columns=columns,
            sources=[source for source in SOURCES if source.key in used],
            licenses=_totals(report, "license"),
            has_identification=any(synthetic.values()),
        )
    )


def perturbed_card(report: Mapping[str, Any]) -> str:
    """The README.md of a perturbed test set.

    Args:
        report: what `perturbed.perturb` returns.
    """
    corpus = report["dataset"].get("corpus", "own images")
    title = f"{_TITLES[corpus]}, perturbed"
    metadata = {
        "pretty_name": title,
        "license": "other",
        "license_name": "per-image",
        "license_link": "README.md#licences",
        "task_categories": ["image-classification"],
        "size_categories": [_size_category(report["rows"])],
        "tags": ["synthetic-image-detection", *_TAGS[corpus]],
        "configs": card_configs({report["split"]: Origin.SYNTHETIC in report["label"]}, report["build_id"]),
    }
    return (
        _environment()
        .get_template("perturbed.md.jinja")
        .render(metadata=_yaml(metadata), report=report, title=title, corpus=corpus, simulated=_SIMULATED)
    )


def _totals(report: Mapping[str, Any], column: str) -> dict[str, int]:
    totals: dict[str, int] = {}
    for facts in report["splits"].values():
        for value, count in facts[column].items():
            totals[value] = totals.get(value, 0) + count
    return dict(sorted(totals.items(), key=lambda item: (-item[1], item[0])))


def model_card(
    config: Mapping[str, Any], training: Mapping[str, Any] | None, results: Sequence[Mapping[str, Any]] = ()
) -> str:
    """The README.md of a model folder.

    Args:
        config: the folder's `config.json`.
        training: the folder's `training.json`, if the model was trained here.
        results: results files (`imaginet evaluate`) to show.

    Returns:
        Markdown with the YAML metadata that the Hub reads. Its first line of text says what the model was trained
        on when that was not ImagiNet.
    """
    trained_on = config.get("trained_on") or {}
    track = config.get("track")
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "tags": ["synthetic-image-detection", "selfcon_resnet", "imaginet", *([track] if track else [])],
    }
    if track:
        metadata["pipeline_tag"] = "image-classification"
    names = [config["id2label"][key] for key in sorted(config.get("id2label", {}), key=int)] if track else []
    return (
        _environment()
        .get_template("model.md.jinja")
        .render(
            metadata=_yaml(metadata),
            config=config,
            track=track,
            detection=track == Track.DETECTION,
            names=names,
            column=config.get("label_column") or (Track(track).label_column if track in tuple(Track) else None),
            fitted=config.get("calibration") or {},
            trained_on=trained_on,
            corpus=trained_on.get("corpus"),
            converted="converted_from" in trained_on,
            simulated=_SIMULATED,
            training=training or {},
            results=list(results),
        )
    )


def write_model_card(folder: Path, results: Sequence[Mapping[str, Any]] = ()) -> None:
    """Render the README.md of a model folder from the JSON files in it.

    Args:
        folder: as `imaginet train`, `imaginet train-head` and `imaginet convert` write it; the last without
            training.json.
        results: see `model_card`.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    record = folder / "training.json"
    training = json.loads(record.read_text(encoding="utf-8")) if record.exists() else None
    (folder / "README.md").write_text(model_card(config, training, results), encoding="utf-8")
