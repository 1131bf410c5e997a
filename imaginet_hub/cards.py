"""Cards are outputs: reports and result files in, Markdown out; nobody types a number into a card.

Text out of data is hostile: whatever a template prints is made harmless (`_harmless`), unless a filter made it so that
is meant for its place. What a person may state is in the YAML of the README.md that is there (`STATED`), and is kept.
Of a dataset that is its language alone: its terms are those of each image, and nobody states others for all of them.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml
from datasets.utils.metadata import MetadataConfigs, known_task_ids
from huggingface_hub import DatasetCard, ModelCard
from huggingface_hub.utils import HFValidationError, validate_repo_id
from markupsafe import Markup

from imaginet_hub.data.loading import open_split
from imaginet_hub.data.manifest import read_annotations
from imaginet_hub.data.repository import card_configs
from imaginet_hub.data.sources import SOURCES, source_named
from imaginet_hub.errors import DataNotFoundError, UsageError
from imaginet_hub.evaluation.export import model_index
from imaginet_hub.evaluation.report import Results, interval_text
from imaginet_hub.inference.weights import folder_weights
from imaginet_hub.labels import Origin, Track

__all__ = [
    "LICENSES",
    "STATED",
    "card_metadata",
    "check_card",
    "dataset_card",
    "is_rendered",
    "model_card",
    "perturbed_card",
    "render_folder",
    "write_card",
]

CARD, AUDIT, RESULTS = "README.md", "audit.json", "results"
_WITHHELD = "withheld.csv"
_BUILD, _PERTURBED, _CONFIG, _TRAINING = "build_report.json", "perturb_report.json", "config.json", "training.json"

#: Of model, in results files: the only one that has folders with cards.
_KIND = "selfcon_resnet"

#: What stands for the repository's name as long as there is none.
PLACEHOLDER = "PATH_OR_REPO"

_REBUILD = f"imaginet build ROOT OUT --complete {PLACEHOLDER}"

#: Keys of the metadata that are a person's to state, and outlive rendering; of a dataset's it is `language` alone.
STATED = ("license", "license_name", "license_link", "language")

_LICENSES = """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0
    etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0
    grok2-community h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2
    llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0
    other pddl postgresql unknown unlicense wtfpl zlib
"""
#: Identifiers of licences that the Hub knows.
LICENSES = frozenset(_LICENSES.split())

#: More of a name than this says nothing to a reader.
_LONGEST = 200

_TITLES = {"ImagiNet": "ImagiNet", "mini": "ImagiNet mini (simulated)", "own images": "Real and synthetic images"}
_TAGS = {"ImagiNet": ["imaginet"], "mini": ["imaginet", "simulated"], "own images": []}

#: The Hub's size categories, by the first number of images that is too many.
_SIZES = {
    10**3: "n<1K",
    10**4: "1K<n<10K",
    10**5: "10K<n<100K",
    10**6: "100K<n<1M",
    10**7: "1M<n<10M",
    10**8: "10M<n<100M",
    10**9: "100M<n<1B",
}

#: What a reader wants to know of a run, in this order, by its place in training.json.
_RECIPE = {
    "stage": "stage",
    "label_column": "classes of the column",
    "model.init": "first weights",
    "loss.name": "loss",
    "loss.temperature": "temperature",
    "epochs": "epochs",
    "steps": "steps",
    "arguments.per_device_train_batch_size": "images in a batch of a process",
    "processes": "processes",
    "arguments.gradient_accumulation_steps": "batches in a step",
    "arguments.optim": "optimiser",
    "arguments.head_optimizer": "optimiser of the head",
    "arguments.learning_rate": "learning rate",
    "arguments.lr_scheduler_type": "schedule",
    "arguments.warmup_steps": "warm-up",
    "arguments.weight_decay": "weight decay",
    "arguments.crop_size": "training crops, pixels",
    "arguments.perturb": "share of crops compressed, blurred or made noisy",
    "arguments.rotate": "share rotated",
    "arguments.flip": "share flipped",
    "arguments.balance": "balanced batches",
    "arguments.head_hidden_size": "hidden width of the head",
    "arguments.head_dropout": "dropout of the head",
    "arguments.unfreeze_encoder": "encoder trained as well",
    "arguments.bf16": "bfloat16",
    "arguments.fp16": "float16",
    "seed": "seed",
    "final_loss": "last loss",
    "seconds": "seconds of training",
}

_METRICS = {
    "auc": "AUC",
    "eer": "equal error rate",
    "tpr_at_fpr_1": "TPR at 1 % FPR",
    "tpr_at_fpr_0_1": "TPR at 0.1 % FPR",
    "ece": "expected calibration error",
    "brier": "Brier score",
    "nll": "negative log-likelihood",
    "macro_f1": "macro F1",
}

#: Metrics of a card's model-index, which Hub pages show.
_INDEXED = ("balanced_accuracy", "auc")


def dataset_card(
    report: Mapping[str, Any],
    audit: Mapping[str, Any] | None = None,
    repo_id: str | None = None,
    *,
    stated: Mapping[str, Any] | None = None,
) -> str:
    """The README.md of a built dataset.

    Args:
        report: what `build_repository` returns.
        audit: what `imaginet audit` found, if it was run; where rows are withheld, perhaps of the whole.
        repo_id: the dataset's name on the Hub, once it has one.
        stated: metadata that a person states; see `STATED`.

    Returns:
        Markdown with the YAML metadata that `datasets` and the Hub read.
    """
    synthetic = {split: Origin.SYNTHETIC in facts["label"] for split, facts in report["splits"].items()}
    corpus = report["corpus"]
    metadata = {
        "pretty_name": _TITLES[corpus],
        **_terms("NOTICE" if "rights" in report else "README.md#licences", stated),
        **_dataset_metadata(report["images"], corpus),
        "configs": card_configs(synthetic, report["build_id"]),
    }
    columns = {
        "content_type": "Content type",
        "generator_family": "Generator family",
        "generator": "Generator",
        "source": "Source",
    }
    withheld = report.get("withheld") or []
    used = {source for facts in report["splits"].values() for source in facts["source"]}
    used |= {row["source"] for row in withheld}
    selected = report.get("selected") or {}
    return _rendered(
        "dataset",
        metadata,
        repo_id,
        report=report,
        title=_TITLES[corpus],
        corpus=corpus,
        tables=[(column, title, _by_split(report, column)) for column, title in columns.items()],
        sources=[source for source in SOURCES if source.key in used],
        licenses=_totals(report, "license"),
        rights=report.get("rights"),
        withheld=[{**row, "fetched": source_named(row["source"]) is not None} for row in withheld],
        n_withheld=sum(row["images"] for row in withheld),
        rebuild=_rebuild(report).replace(PLACEHOLDER, repo_id or PLACEHOLDER),
        selected=selected,
        n_unselected=sum(row["images"] for row in selected.get("left_out", ())),
        has_identification=any(synthetic.values()),
        audit=audit,
        audited=report["original"]["images"] if audit and _is_of_original(report, audit) else None,
    )


def perturbed_card(
    report: Mapping[str, Any], repo_id: str | None = None, *, stated: Mapping[str, Any] | None = None
) -> str:
    """The README.md of a perturbed test set.

    Args:
        report: what `perturbed.perturb` returns.
        repo_id, stated: as of `dataset_card`.
    """
    corpus = report["dataset"].get("corpus", "own images")
    title = f"{_TITLES[corpus]}, perturbed"
    metadata = {
        "pretty_name": title,
        **_terms("README.md#licences", stated),
        **_dataset_metadata(report["rows"], corpus),
        "configs": card_configs({report["split"]: Origin.SYNTHETIC in report["label"]}, report["build_id"]),
    }
    return _rendered("perturbed", metadata, repo_id, report=report, title=title, corpus=corpus)


def model_card(
    config: Mapping[str, Any],
    training: Mapping[str, Any] | None,
    results: Sequence[Mapping[str, Any]] = (),
    repo_id: str | None = None,
    license: str | None = None,
    *,
    stated: Mapping[str, Any] | None = None,
) -> str:
    """The README.md of a model folder.

    Args:
        config: the folder's `config.json`.
        training: the folder's `training.json`, if the model was trained here.
        results: contents of results files (`imaginet evaluate`) to show.
        repo_id: the model's name on the Hub, once it has one.
        license: of the weights, an identifier of the Hub's; a card without one says that there is none.
        stated: metadata that a person states; see `STATED`.

    Returns:
        Markdown with the YAML metadata that the Hub reads. Its first line of text says what the model was trained
        on when that was not ImagiNet.
    """
    trained_on = config.get("trained_on") or {}
    track = config.get("track")
    column = config.get("label_column") or (Track(track).label_column if track in tuple(Track) else None)
    title = f"SelfCon {config['backbone']}{f', {track}' if track else ', stage 1 (representation)'}"
    terms = _stated(stated, license)
    metadata: dict[str, Any] = {
        **terms,
        "library_name": "transformers",
        **({"pipeline_tag": "image-classification"} if track else {}),
        "tags": ["synthetic-image-detection", "selfcon_resnet", "imaginet", *([_line(track)] if track else [])],
    }
    base, dataset = _base_model(config, training or {}), trained_on.get("name")
    if base is not None:
        metadata["base_model"] = base
    if isinstance(dataset, str) and "/" in dataset and _is_hub_id(dataset):
        metadata["datasets"] = [dataset]
    plain = [result for result in results if not _variant(result)]
    if plain:
        ids = [_dataset_id(result["dataset"].get("name")) for result in plain]
        name = repo_id.rpartition("/")[2] if repo_id else _line(title)
        metadata["model-index"] = model_index(_named(plain), ids, name, metrics=_INDEXED)
    names = [config["id2label"][key] for key in sorted(config.get("id2label", {}), key=int)] if track else []
    return _rendered(
        "model",
        metadata,
        repo_id,
        config=config,
        title=title,
        track=track,
        detection=track == Track.DETECTION,
        names=names,
        column=column,
        fitted=config.get("calibration") or {},
        trained_on=trained_on,
        corpus=trained_on.get("corpus"),
        converted="converted_from" in trained_on,
        training=training or {},
        recipe=_recipe(training or {}),
        results=[{**result, "variant": _variant(result)} for result in results],
        license=terms.get("license_name") or terms.get("license"),
    )


def render_folder(folder: str | os.PathLike[str], repo_id: str | None = None, *, license: str | None = None) -> str:
    """The README.md of a folder, from the JSON files in it alone.

    Args:
        folder: a built dataset (build_report.json, perhaps audit.json), a perturbed one (perturb_report.json), or a
            model (config.json, perhaps training.json and results/*.json).
        repo_id: its name on the Hub; without it, examples say PATH_OR_REPO.
        license: of a model's weights, in place of what the README.md that is there says.

    Returns:
        The card. What its README.md states by hand (`STATED`) is kept.

    Raises:
        DataNotFoundError: the folder is none of these.
        UsageError: a file in it is not what this package writes, or is an audit or results of something else;
            `repo_id` or `license` is nothing that the Hub knows; or a license for a dataset.
    """
    return _card_of(Path(folder).expanduser(), repo_id, license, {})


def _card_of(folder: Path, repo_id: str | None, license: str | None, taken: Mapping[Path, Mapping[str, Any]]) -> str:
    """See `render_folder`; `taken` has contents of files that are to be there."""
    if repo_id is not None and not _is_hub_id(repo_id):
        raise UsageError(f"expected a repository's name as on the Hub, such as owner/name, got {_line(repo_id)!r}")
    if license is not None and license not in LICENSES:
        near = difflib.get_close_matches(license.lower(), LICENSES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(
            f"expected a licence's identifier on the Hub, such as cc-by-4.0, got {_line(license)!r}{hint}"
        )
    if license is not None and any((folder / name).is_file() for name in (_BUILD, _PERTURBED)):
        raise UsageError(
            f"{folder}: a license is stated for a model's weights, got {license} for a dataset, whose terms are those "
            "of each image, as its rows and NOTICE have them; leave it out, or correct the rows and build it again"
        )
    stated = _stated(_metadata_there(folder / CARD), license)
    try:
        if (folder / _BUILD).is_file():
            audit = taken.get(folder / AUDIT) or (_json(folder / AUDIT) if (folder / AUDIT).is_file() else None)
            if audit is not None:
                _check_audit(folder, audit)
            return dataset_card(_json(folder / _BUILD), audit, repo_id, stated=stated)
        if (folder / _PERTURBED).is_file():
            return perturbed_card(_json(folder / _PERTURBED), repo_id, stated=stated)
        if (folder / _CONFIG).is_file():
            training = _json(folder / _TRAINING) if (folder / _TRAINING).is_file() else None
            results = {file: _json(file) for file in (folder / RESULTS).glob("*.json") if file not in taken}
            for file, result in results.items():
                _check_results(folder, result, file)
            shown = [result for _, result in sorted({**results, **taken}.items())]
            return model_card(_json(folder / _CONFIG), training, shown, repo_id, stated=stated)
    except (jinja2.UndefinedError, LookupError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"{folder}: expected the JSON files that imaginet writes, got others "
            f"({type(error).__name__}: {_line(error)}); make them again"
        ) from error
    raise DataNotFoundError(
        f"{folder}: expected a dataset that `imaginet build` or `imaginet perturb` wrote, or a model folder; "
        f"found no {_BUILD}, {_PERTURBED} or {_CONFIG}"
    )


def is_rendered(folder: str | os.PathLike[str]) -> bool:
    """Whether README.md is what the folder's own files give, under whatever name on the Hub.

    Args:
        folder: see `render_folder`.

    Raises:
        DataNotFoundError, UsageError: see `render_folder`.
    """
    folder = Path(folder).expanduser()
    card = folder / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    named = re.search(r'(?:load_dataset\(|model=)"([^"\s]+)"', text)
    repo_id = named[1] if named and named[1] != PLACEHOLDER and _is_hub_id(named[1]) else None
    return text in (render_folder(folder), render_folder(folder, repo_id))


def write_card(
    folder: str | os.PathLike[str],
    repo_id: str | None = None,
    *,
    audit: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    results: Sequence[str | os.PathLike[str] | Mapping[str, Any]] = (),
    license: str | None = None,
) -> Path:
    """Write the README.md of a folder, completely or not at all.

    Args:
        folder, repo_id, license: see `render_folder`.
        audit: an audit of this dataset, which its folder keeps as audit.json, without the lists of single images.
            Where rows are withheld, it may be of all of them. Its numbers of images and labels are compared with the
            build's, and the fingerprints of its splits with the rows.
        results: results files of this model, which its folder keeps as results/DATASET-SPLIT.json (or by the name
            that each file has), without the scores of single images. Their model's weights, classes, backbone and
            training data are compared with the folder's, as far as both say, and their figures with the scores of
            single images where the file has these; see `Results.check_scores` for what that leaves out.

    Returns:
        Path of the card.

    Raises:
        DataNotFoundError, UsageError: as `render_folder`; an audit or results of something else.
        MissingExtraError: jsonschema is not installed, and there are results to check.
    """
    folder = Path(folder).expanduser()
    taken: dict[Path, Mapping[str, Any]] = {}
    if audit is not None:
        taken[folder / AUDIT] = _audit_of(folder, audit if isinstance(audit, Mapping) else _json(Path(audit)))
    for given in results:
        found = Results.from_json(given) if isinstance(given, Mapping) else Results.read(given)
        content = found.to_json(per_image=False)
        _check_results(folder, content)
        found.check_scores()
        taken[folder / RESULTS / f"{_file_name(given, content)}.json"] = content
    card = _card_of(folder, repo_id, license, taken)  # before anything is written
    before = {file: file.read_bytes() if file.is_file() else None for file in taken}
    try:
        for file, new in taken.items():
            file.parent.mkdir(exist_ok=True)
            _write(file, json.dumps(new, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        _write(folder / CARD, card)
    except BaseException as error:
        for file, old in before.items():
            if old is None:
                file.unlink(missing_ok=True)
            else:
                file.write_bytes(old)
        if isinstance(error, OSError):
            raise UsageError(
                f"{folder}: the card cannot be written ({error}); make room, or change its rights"
            ) from error
        raise
    return folder / CARD


def check_card(text: str, repo_type: str) -> list[str]:
    """What the Hub, or `datasets`, would not take in a card's metadata; nothing is asked over the network.

    Args:
        text: of a README.md.
        repo_type: "dataset" or "model".

    Returns:
        One line for each problem; none for a card that is well.
    """
    if repo_type not in ("dataset", "model"):
        raise UsageError(f"expected repo_type dataset or model, got {repo_type!r}")
    try:
        metadata = card_metadata(text)
        (DatasetCard if repo_type == "dataset" else ModelCard)(text)
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
        return [f"metadata: {_line(error)}"]
    if metadata is None:
        return ["metadata: expected YAML between two lines of three dashes at the top of the card, got none"]
    found = [*_license_problems(metadata)]
    for key, known in {
        "task_categories": known_task_ids,
        "pipeline_tag": known_task_ids,
        "size_categories": _SIZES.values(),
    }.items():
        values = _listed(metadata.get(key))
        found += [f"{key}: expected one that the Hub knows, got {_line(v)!r}" for v in values if v not in known]
    for key in ("tags", "language"):
        wrong = [v for v in _listed(metadata.get(key)) if not isinstance(v, str) or not v.strip()]
        found += [f"{key}: expected words, got {_line(v)!r}" for v in wrong]
    codes = [v for v in _listed(metadata.get("language")) if isinstance(v, str)]
    known_code = re.compile(r"[a-z]{2,3}|code|multilingual")
    found += [f"language: expected an ISO 639 code, got {_line(v)!r}" for v in codes if not known_code.fullmatch(v)]
    for key in ("base_model", "datasets"):
        wrong = [v for v in _listed(metadata.get(key)) if not isinstance(v, str) or not _is_hub_id(v)]
        found += [f"{key}: expected a repository's name, got {_line(v)!r}" for v in wrong]
    try:
        configs = MetadataConfigs.from_dataset_card_data(metadata)
        configs.get_default_config_name()
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        found.append(f"configs: {_line(error)}")
    if not re.search(r"^# \S", text, re.M):
        found.append("text: expected a title, got none")
    return found


def card_metadata(text: str) -> dict[str, Any] | None:
    """The YAML at the top of a card; None where there is none.

    Raises:
        ValueError, yaml.YAMLError: it is no mapping, or names a key twice.
    """
    block = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|\Z)", text, re.S)
    if block is None:
        return None
    metadata = yaml.load(block[1], Loader=_Unique)  # a SafeLoader
    if not isinstance(metadata, dict):
        raise ValueError(f"expected a mapping, got {type(metadata).__name__}")
    return metadata


class _Unique(yaml.SafeLoader):
    """YAML in which a key that occurs twice is an error, not the last one's."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for number, key in enumerate(keys) if key in keys[:number]]
        if twice:
            raise ValueError(f"the key {_line(twice[0])!r} occurs twice")
        return super().construct_mapping(node, deep)


def _license_problems(metadata: Mapping[str, Any]) -> Iterable[str]:
    licenses = _listed(metadata.get("license"))
    for license in licenses:
        if license not in LICENSES:
            yield f"license: expected an identifier of the Hub's, such as cc-by-4.0 or other, got {_line(license)!r}"
    if "other" in licenses and not metadata.get("license_name"):
        yield "license_name: expected a name for the license `other`, got none"
    for key in ("license_name", "license_link"):
        if key in metadata and (not isinstance(metadata[key], str) or not licenses):
            yield f"{key}: expected text beside a license, got {_line(metadata[key])!r}"
    link = metadata.get("license_link")
    if isinstance(link, str) and re.match(r"[a-z][a-z0-9+.-]*:", link, re.I) and not link.startswith("https://"):
        yield f"license_link: expected a file of the repository or an https address, got {_line(link)!r}"


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


# ---- what may be printed


def _line(value: object) -> str:
    """One line of printable characters, cut where nobody reads on."""
    text = "".join(character if character.isprintable() else " " for character in str(value))
    text = " ".join(text.split()) if text.strip() else ""
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


_LIVE = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|^[#>+=-]")
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", "@": "&#64;"})


def _harmless(value: Any) -> Any:
    """Whatever a template prints, so that it cannot be more than text: no markup, no link, no line of its own."""
    if isinstance(value, Markup | jinja2.Undefined):
        return value
    if isinstance(value, bool) or value is None:
        return Markup({True: "yes", False: "no", None: "n/a"}[value])
    if isinstance(value, float):
        return Markup(f"{value:.6g}")
    text = _worded(value)
    before, after = " " * text[:1].isspace(), " " * (text[-1:].isspace() and bool(text.strip()))
    line = _line(text) or "?" * bool(text.strip(" "))
    text = _LIVE.sub(r"\\\g<0>", line.translate(_ENTITIES))
    text = re.sub(r"^(\d+)([.)])(?= |$)", r"\1\\\2", text)  # no list either
    text = re.sub(r"(?i)\b(www)\.", r"\1&#46;", text.replace("://", ":&#47;/"))
    return Markup(f"{before}{text}{after}")


def _worded(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_worded(item)}" for key, item in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _words(name: str) -> str:
    return name.replace("_", " ").strip() or name


def _code(value: object) -> Markup:
    """Text in backticks, where markup is none."""
    return Markup(f"`{_line(value).replace('`', chr(39)).replace('|', '¦') or '?'}`")


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("imaginet_hub", "templates"),
        undefined=jinja2.StrictUndefined,  # a missing figure is an error, not an empty cell
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=True,  # what `_harmless` gives is marked as safe, and so are macros of it
    )
    environment.filters["thousands"] = lambda number: Markup(f"{number:,}")
    environment.filters["interval"] = lambda interval: Markup(interval_text(interval))
    environment.filters["metric"] = lambda name: _METRICS.get(name) or _words(name)
    environment.filters["words"] = _words
    environment.filters["percent"] = lambda share: Markup(f"{100 * share:.3g} %")
    environment.filters["code"] = _code
    environment.filters["command"] = lambda text: Markup(_line(text).replace("`", "'"))
    environment.filters["address"] = lambda url: Markup(re.sub(r"[^\w./:%#?&=+~-]", "", url, flags=re.ASCII))
    environment.filters["quoted"] = lambda text: Markup(json.dumps(_line(text), ensure_ascii=False))
    return environment


def _rendered(template: str, metadata: Mapping[str, Any], repo_id: str | None, **context: Any) -> str:
    text = yaml.safe_dump(dict(metadata), sort_keys=False, allow_unicode=True, width=1000)
    environment = _environment()
    card = environment.get_template(f"{template}.md.jinja").render(
        metadata=Markup(text), repo=repo_id or PLACEHOLDER, **context
    )
    return re.sub(r"\n{3,}", "\n\n", card).rstrip("\n") + "\n"  # what is not there leaves no gap


# ---- what is shown


def _dataset_metadata(images: int, corpus: str) -> dict[str, Any]:
    return {
        "task_categories": ["image-classification"],
        "size_categories": [next(name for most, name in _SIZES.items() if images < most)],
        "tags": ["synthetic-image-detection", *_TAGS[corpus]],
    }


def _terms(link: str, stated: Mapping[str, Any] | None) -> dict[str, Any]:
    """Metadata of a dataset, whose images have terms of their own; of what is stated, its language."""
    language = (stated or {}).get("language")
    by_image = {"license": "other", "license_name": "per-image", "license_link": link}
    return by_image | ({"language": language} if language else {})


def _stated(stated: Mapping[str, Any] | None, license: str | None) -> dict[str, Any]:
    """What a person states; another licence than before has neither its name nor its link."""
    kept = {key: value for key, value in (stated or {}).items() if key in STATED and value}
    if license is None or kept.get("license") == license:
        return kept
    return {"license": license, **{key: value for key, value in kept.items() if not key.startswith("license")}}


def _metadata_there(card: Path) -> dict[str, Any]:
    if not card.is_file():
        return {}
    try:
        return card_metadata(card.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise UsageError(
            f"{card}: expected YAML metadata, whose {', '.join(STATED)} are kept, got something else "
            f"({_line(error)}); repair it, or delete the file"
        ) from error


def _totals(report: Mapping[str, Any], column: str) -> dict[str, int]:
    totals: dict[str, int] = {}
    for facts in report["splits"].values():
        for value, count in facts[column].items():
            totals[value] = totals.get(value, 0) + count
    return dict(sorted(totals.items(), key=lambda item: (-item[1], item[0])))


def _by_split(report: Mapping[str, Any], column: str) -> dict[str, list[int]]:
    """Each value of a column with its images in every split."""
    return {
        value: [facts[column].get(value, 0) for facts in report["splits"].values()]
        for value in sorted(_totals(report, column), key=lambda value: (value.lower(), value))
    }


def _rebuild(report: Mapping[str, Any]) -> str:
    """The command that readers are told to run: this one, with what options the report has of it."""
    command = str(report.get("rebuild", ""))
    return command if re.fullmatch(rf"{re.escape(_REBUILD)}( --[a-z-]+( \w+)?)*", command, re.ASCII) else _REBUILD


def _recipe(training: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found = []
    for place, title in _RECIPE.items():
        value: Any = training
        for key in place.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None and value is not False:
            found.append((title, value))
    return found


def _base_model(config: Mapping[str, Any], training: Mapping[str, Any]) -> str | None:
    """The repository that the first weights came from, where that is known."""
    init = (training.get("model") or {}).get("init")
    if not isinstance(init, str):
        return None
    if init.startswith("timm:"):
        init = f"timm/{config['backbone']}.{init.removeprefix('timm:')}"
    return init if "/" in init and _is_hub_id(init) else None


def _variant(result: Mapping[str, Any]) -> str:
    """What was done to the images before, beyond the crop."""
    steps = result.get("preprocessing") or {}
    done = {"resize": "resampled to {} pixels", "equalize": "re-encoded as {}"}
    return ", ".join(text.format(steps[name]) for name, text in done.items() if steps.get(name))


def _named(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Results whose datasets' names are one line each, as YAML is to have them."""
    return [
        {
            **result,
            "dataset": {
                **result["dataset"],
                "name": _line(result["dataset"].get("name") or "dataset"),
                "split": _line(result["dataset"].get("split") or "") or None,
            },
        }
        for result in results
    ]


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _dataset_id(name: object) -> str:
    """A dataset's name as a Hub id, which a model-index asks for."""
    text = str(name or "dataset")
    if _is_hub_id(text):
        return text
    short = re.sub(r"[-.]{2,}", "-", re.sub(r"[^A-Za-z0-9_.-]+", "-", text))[:60].strip("-.")
    return short if _is_hub_id(short) else "dataset"


# ---- files


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataNotFoundError(f"{file}: expected a JSON file, found none") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file}: expected JSON that imaginet wrote, got something else ({_line(error)})") from error
    if not isinstance(content, dict):
        raise UsageError(f"{file}: expected a JSON object, got {type(content).__name__}")
    return content


def _write(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _audit_of(folder: Path, audit: Mapping[str, Any]) -> dict[str, Any]:
    """An audit as a dataset's folder keeps it: of this dataset, and without lists of images, curves and histograms."""
    if not (folder / _BUILD).is_file():
        raise UsageError(f"{folder}: expected a dataset that `imaginet build` wrote to put an audit beside, got none")
    try:
        _check_audit(folder, audit)
        _check_rows(folder, audit)
        kept = {key: audit[key] for key in ("schema_version", "dataset", "options", "counts", "verdict")}
        return {
            **kept,
            "rules": {name: {"all": rule["all"]} for name, rule in audit["rules"].items()},
            "scalars": {name: _less(part, "histogram", "by_format") for name, part in audit["scalars"].items()},
            "categoricals": {name: _less(part, "largest") for name, part in audit["categoricals"].items()},
            "classifier": {
                kind: {way: part[way] and _less(part[way], "roc") for way in ("cross_validated", "by_source")}
                for kind, part in audit["classifier"].items()
            },
            "duplicates": {kind: _less(part, "examples") for kind, part in audit["duplicates"].items()},
            "model": audit["model"],
        }
    except (LookupError, TypeError, AttributeError) as error:
        raise UsageError(
            f"expected what `imaginet audit` writes to audit.json, got something else ({_line(repr(error))})"
        ) from error


def _less(part: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key not in keys}


def _is_of_original(report: Mapping[str, Any], audit: Mapping[str, Any]) -> bool:
    """Whether an audit is of all rows, some of which are withheld: it counts others than are here."""
    here = {split: facts["images"] for split, facts in report["splits"].items()}
    return "original" in report and any(
        here.get(record["split"]) != record["images"] for record in audit["dataset"]["splits"]
    )


def _check_audit(folder: Path, audit: Mapping[str, Any]) -> None:
    """That an audit is of the dataset in a folder, or of the whole that it is a part of, as far as both say."""
    report = _json(folder / _BUILD)
    splits = {
        split: {"images": facts["images"], "label": Counter(facts["label"])}
        for split, facts in report["splits"].items()
    }
    content = report["fingerprint"]
    if _is_of_original(report, audit):
        content = report["original"]["fingerprint"]
        for row in read_annotations(folder / _WITHHELD).records if (folder / _WITHHELD).is_file() else ():
            facts = splits.setdefault(row.split, {"images": 0, "label": Counter()})
            facts["images"] += 1
            facts["label"][row.label] += 1
    counts, records = audit["counts"], audit["dataset"]["splits"]
    # Of a sample, or where some could not be read, there are fewer of a label.
    partly = audit["options"]["limit"] is not None or counts["unreadable"]
    for record in records:
        split, facts = record["split"], splits.get(record["split"], {"images": 0, "label": {}})
        pairs = [("images", facts["images"], record["images"])]
        pairs += [
            (
                f"{label} images",
                facts["label"].get(label, 0),
                counts["by"]["split"].get(split, {}).get(f"n_{label}", 0),
            )
            for label in map(str, Origin)
        ]
        for what, here, there in pairs:
            if there > here or (there < here and (what == "images" or not partly)):
                raise _another(folder, f"{there:,} {what} in its split {_line(split)!r}, not {here:,}")
        named = record.get("fingerprint")
        if len(splits) == 1 and named not in (None, content):
            raise _another(folder, f"content fingerprint {_line(named)}, not {_line(content)}")


def _another(folder: Path, how: str) -> UsageError:
    return UsageError(
        f"expected an audit of the dataset in {folder}, got one of another: {how}; run: imaginet audit {folder} "
        f"--out DIR, then: imaginet card {folder} --audit DIR/{AUDIT} (or remove {folder / AUDIT}, if that is it)"
    )


def _check_rows(folder: Path, audit: Mapping[str, Any]) -> None:
    """That an audit's fingerprints are those of the rows, where these are here and all of what was audited."""
    if not any(folder.glob("data/*.parquet")) or _is_of_original(_json(folder / _BUILD), audit):
        return
    for record in audit["dataset"]["splits"]:
        there = record.get("fingerprint")
        here = None if there is None else open_split(folder, record["split"]).record().get("fingerprint")
        if here != there:
            raise _another(folder, f"content fingerprint {_line(there)} of its split {_line(record['split'])!r}")


def _check_results(folder: Path, results: Mapping[str, Any], file: Path | None = None) -> None:
    """Whether results are of this model, as far as both say; `file` is where the folder keeps them."""
    if not (folder / _CONFIG).is_file() or (folder / _BUILD).is_file():
        raise UsageError(f"{folder}: expected a model folder to put results beside, got none")
    config, model = _json(folder / _CONFIG), results["model"]
    names = [config["id2label"][key] for key in sorted(config.get("id2label", {}), key=int)]
    pairs = {
        "track": (config.get("track"), results["track"]),
        "classes": (sorted(names), sorted(results["names"])),
        "kind": (_KIND, model.get("kind", _KIND)),
        "backbone": (config.get("backbone"), model.get("backbone", config.get("backbone"))),
        "stem stride": (config.get("stem_stride"), model.get("stem_stride", config.get("stem_stride"))),
        "training data": (config.get("trained_on"), model.get("trained_on", config.get("trained_on"))),
    }
    measured = model.get("weights")
    if measured is not None:  # files of earlier releases do not say it
        pairs["weights"] = (folder_weights(folder) or measured, measured)
    for what, (here, there) in pairs.items():
        if here != there:
            raise UsageError(
                f"{file or 'results'}: expected results of the model in {folder}, got those of another: {what} "
                f"{_line(there)}, not {_line(here)}; run: imaginet evaluate {folder} DATASET --out FILE"
                + (", or remove the file" if file else "")
            )


def _file_name(given: Any, content: Mapping[str, Any]) -> str:
    dataset = content["dataset"]
    name = f"{dataset.get('name')}-{dataset.get('split')}" if isinstance(given, Mapping) else Path(given).stem
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:80].strip("-.") or "results"
