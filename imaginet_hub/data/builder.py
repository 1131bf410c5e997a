"""ImagiNet as a `datasets` builder: a ROOT folder and its annotations become a dataset.

`import imaginet_hub` makes `datasets.load_dataset("imaginet", ...)` find this module; `ImagiNet(...)` can also be used
directly, as any builder. The order of rows is the order of the annotations.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import filelock

from imaginet_hub.data import mini
from imaginet_hub.data.images import ImageFacts, read_bytes
from imaginet_hub.data.ledger import FOLDER, known_facts
from imaginet_hub.data.manifest import Manifest, Record, find_annotations, read_annotations
from imaginet_hub.data.partial import partial_report, write_missing
from imaginet_hub.data.plan import Plan
from imaginet_hub.data.rights import allowed, names_of, select
from imaginet_hub.data.scan import ON_ERROR, Scan, examine_file, fingerprint, is_missing, scan
from imaginet_hub.data.sources import MINI_SOURCE, source_of
from imaginet_hub.data.units import human_bytes
from imaginet_hub.errors import AnnotationError, BuildError, DataNotFoundError, FetchError, ImageError, UsageError
from imaginet_hub.labels import Origin, Track, Vocabulary

__all__ = ["BUILD_REPORT", "DATASET_NAME", "MINI", "ImagiNet", "ImagiNetConfig", "features_of", "open_root", "row_of"]

DATASET_NAME = "imaginet"
MINI = "mini"
BUILD_REPORT = "build_report.json"
#: Part of the cache folder's name: raise it when the same ROOT would give other rows than before.
_VERSION = datasets.Version("1.0.0")
_ROWS_PER_SHARD = 256
#: Arguments that say what to fetch, and how.
_OF_FETCHED = ("annotations", "only", "splits", "own", "allow_partial", "licenses")

logger = datasets.logging.get_logger(__name__)


def features_of(vocabulary: Vocabulary, carried_columns: tuple[str, ...] = ()) -> datasets.Features:
    """The columns of a dataset: `image`, the four label columns, provenance, file facts, and carried strings."""
    return datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list(vocabulary.label)),
            "content_type": datasets.ClassLabel(names=list(vocabulary.content_type)),
            "generator_family": datasets.ClassLabel(names=list(vocabulary.generator_family)),
            "generator": datasets.ClassLabel(names=list(vocabulary.generator)),
            "source": datasets.Value("string"),
            "license": datasets.Value("string"),
            "path": datasets.Value("string"),
            "sha256": datasets.Value("string"),
            "width": datasets.Value("int32"),
            "height": datasets.Value("int32"),
            "format": datasets.Value("string"),
            "calibration": datasets.Value("bool"),
            **{column: datasets.Value("string") for column in carried_columns},
        }
    )


def row_of(
    record: Record, root: Path, carried_columns: tuple[str, ...], facts: ImageFacts | None = None
) -> dict[str, Any]:
    """One row of the dataset, with the file's original bytes; class columns hold names.

    Args:
        record: what the annotations say.
        root: the folder that `record.path` is relative to.
        carried_columns: names of `record.carried`.
        facts: what an earlier look at the file found. The image is not decoded again; other bytes now are an error.

    Raises:
        ImageError: the file is not fit to go in, or changed since that look.
    """
    if facts is None:
        data, facts = examine_file(root, record)
    else:
        data = read_bytes(root / record.file)
        if hashlib.sha256(data).hexdigest() != facts.sha256:
            raise ImageError(
                "checksum",
                f"{record.path}: the file changed since it was verified; start again, or run `imaginet verify ROOT`",
            )
    return {
        "image": {"bytes": data, "path": Path(record.file).name},
        "label": record.label,
        "content_type": record.content_type,
        "generator_family": record.generator_family,
        "generator": record.generator,
        "source": record.source,
        "license": record.license,
        "path": record.path,
        "sha256": facts.sha256,
        "width": facts.width,
        "height": facts.height,
        "format": facts.format,
        "calibration": record.calibration,
        **dict(zip(carried_columns, record.carried, strict=True)),
    }


def open_root(
    data_dir: str | os.PathLike[str], annotations: str | os.PathLike[str] | None = None
) -> tuple[Path, Manifest]:
    """Find and read what describes a ROOT.

    Args:
        data_dir: ROOT.
        annotations: a list, a table or a folder of lists; by default what ROOT carries with it.

    Raises:
        DataNotFoundError: no folder at `data_dir`, or nothing that describes it.
        AnnotationError: see `read_annotations`.
    """
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise DataNotFoundError(f"expected a folder of images (ROOT) at {root}, found none; check data_dir")
    found = find_annotations(root) if annotations is None else Path(annotations).expanduser()
    if found is None and any(root.glob("data/*.parquet")):
        raise DataNotFoundError(f"{root} holds a built dataset, not a ROOT; load it with load_dataset({str(root)!r})")
    if found is None:
        raise DataNotFoundError(
            f"{root} carries no annotations (annotations.csv, annotations.parquet, annotations/test_annotations.txt "
            "...); name them with annotations=... (--annotations)"
        )
    return root, mini.labelled(root, read_annotations(found))


@dataclass
class ImagiNetConfig(datasets.BuilderConfig):
    """What `load_dataset("imaginet", ...)` takes beside the usual arguments.

    Attributes:
        data_dir: ROOT, the folder that the annotations' paths are relative to.
        annotations: upstream's list (.txt), a table (.csv, .parquet) or upstream's annotations/ folder; by default
            what ROOT carries with it.
        on_error: "raise" (default; after a look at every image, listing all that cannot go in) or "skip" (they are
            left out and recorded). When streaming, images are looked at as they come.
        allow_partial: images that are not there are left out and counted; damaged ones still follow `on_error`.
            Without `data_dir`: sources that cannot be fetched here do not stop the others; what is missing is asked
            for again with download_mode="force_redownload".
        only: without `data_dir`, the sources to fetch, as "coco,ffhq" or a list (see `imaginet sources`).
        splits: without `data_dir`, "train" or "test" to fetch that one alone.
        own: without `data_dir`, folders and archives that you have, by source: {"imagenet": "/data/imagenet"}.
        licenses: only images whose licence clearly allows this: "commercial" or "redistributable"; or the names of
            licences, as in the column `license`. See `rights.selection`; help, not legal advice.
        state: set by the builder.
    """

    version: datasets.Version | str | None = _VERSION
    annotations: str | None = None
    on_error: str = "raise"
    allow_partial: bool = False
    only: str | Sequence[str] | None = None
    splits: str | None = None
    own: Mapping[str, Any] | None = None
    licenses: str | Sequence[str] | None = None
    state: str | None = None

    def create_config_id(self, config_kwargs: dict[str, Any], custom_features: datasets.Features | None = None) -> str:
        """The cache folder's name: it follows the content of the annotations and the state of every image."""
        if self.on_error not in ON_ERROR:
            raise UsageError(f"on_error: expected one of {', '.join(ON_ERROR)}, got {self.on_error!r}")
        if any(x is not None for x in (self.only, self.splits, self.own)) and (self.data_dir or self.name == MINI):
            raise UsageError("only, splits and own say what to fetch; with data_dir, or for mini, nothing is fetched")
        # Where images come from does not matter once they are here; `state` follows the content.
        kwargs = {k: v for k, v in config_kwargs.items() if k not in ("data_dir", "annotations", "own")}
        if self.name == MINI:
            kwargs["state"] = mini.MINI_DIGEST[:16]
            if self.licenses is not None:  # before it is made
                allowed([(mini.LICENSE, MINI_SOURCE)] * sum(mini.mini_splits().values()), self.licenses)
        elif self.data_dir is not None:
            kwargs["state"] = fingerprint(*open_root(self.data_dir, self.annotations))
        return str(super().create_config_id(kwargs, custom_features))


class ImagiNet(datasets.GeneratorBasedBuilder):
    """ImagiNet (Boychev and Cholakov, arXiv 2407.20020), or any folder of images laid out and annotated like it.

    Configs: `detection` (all images; class column `label`), `identification` (synthetic images; class column
    `generator_family`), `mini` (a small made corpus that needs no download, for trying the software).

    >>> ImagiNet(config_name="detection", data_dir="ROOT").download_and_prepare()  # doctest: +SKIP
    """

    BUILDER_CONFIG_CLASS = ImagiNetConfig
    BUILDER_CONFIGS = [  # noqa: RUF012 - the contract of datasets
        ImagiNetConfig(name=Track.DETECTION.value, description="real and synthetic images"),
        ImagiNetConfig(name=Track.IDENTIFICATION.value, description="synthetic images, by generator"),
        ImagiNetConfig(name=MINI, description="simulated images for trying the software; no download"),
    ]
    DEFAULT_CONFIG_NAME = Track.DETECTION.value
    # Rows hold whole files: a thousand of them in memory would be a gigabyte.
    DEFAULT_WRITER_BATCH_SIZE = 64

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["dataset_name"] = kwargs.get("dataset_name") or DATASET_NAME
        for argument in ("data_dir", "annotations"):
            if kwargs.get(argument) is not None:
                kwargs[argument] = os.path.abspath(os.path.expanduser(kwargs[argument]))  # noqa: PTH100, PTH111
        if (licenses := kwargs.pop("licenses", None)) is not None:
            kwargs["licenses"] = names_of(licenses)
        self._opened: tuple[Path, Manifest] | None = None
        name = kwargs.get("config_name") or (args[2] if len(args) > 2 else None) or self.DEFAULT_CONFIG_NAME
        self._fetched: Fetched | None = None
        if kwargs.get("data_dir") is None and name in (Track.DETECTION, Track.IDENTIFICATION):
            if kwargs.get("only") is not None:
                kwargs["only"] = ",".join(sorted(set(_words(kwargs["only"]))))
            options = {key: kwargs.get(key) for key in _OF_FETCHED}
            cache_dir = kwargs.get("cache_dir") or (args[0] if args else None) or datasets.config.HF_DATASETS_CACHE
            self._fetched = Fetched(Path(cache_dir).expanduser() / "imaginet-root", Track(name), options)
            kwargs["state"] = self._fetched.state
        super().__init__(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes get their records as arguments.
        return {**super().__getstate__(), "_opened": None}

    def _open(self) -> tuple[Path, Manifest]:
        if self._opened is None:
            if self._fetched is not None:
                self._opened = self._fetched.fetch()
                return self._opened
            if self.config.name == MINI:
                root = Path(self._cache_dir_root) / f"imaginet-mini-{mini.MINI_DIGEST[:16]}"
                root, manifest = open_root(mini.make_mini(root))
            else:
                root, manifest = open_root(self.config.data_dir, self.config.annotations)
            self._opened = root, replace(manifest, records=self._wanted(manifest.records))
        return self._opened

    def _wanted(self, records: tuple[Record, ...]) -> tuple[Record, ...]:
        """Those of the track, under the licences asked for."""
        if self.config.licenses is None:
            return records
        if self.config.name == Track.IDENTIFICATION:
            records = tuple(record for record in records if record.label == Origin.SYNTHETIC)
        return select(records, self.config.licenses)[0]

    def _info(self) -> datasets.DatasetInfo:
        if self.config.name == MINI or (self._fetched is not None and self.config.annotations is None):
            features = features_of(Vocabulary.upstream())
        else:
            manifest = self._fetched.listed() if self._fetched is not None else self._open()[1]
            features = features_of(manifest.vocabulary, manifest.carried_columns)
        return datasets.DatasetInfo(
            description=str(self.config.description or ""),
            features=features,
            homepage="https://github.com/delyan-boychev/imaginet",
            citation="Boychev and Cholakov, ImagiNet: A Multi-Content Benchmark for Synthetic Image Detection, "
            "arXiv 2407.20020",
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        if dl_manager.is_streaming and self._fetched is not None:
            root, manifest = self._fetched.only_lists()
        else:
            root, manifest = self._open()
        wanted = manifest.records
        if self.config.name == Track.IDENTIFICATION:
            wanted = tuple(record for record in wanted if record.label == Origin.SYNTHETIC)
            if not wanted:
                raise BuildError(f"{root}: the annotations list no synthetic image; the identification track has none")
        facts: Mapping[str, ImageFacts] = {}
        if not dl_manager.is_streaming:
            result = scan(
                root,
                replace(manifest, records=wanted),
                on_error=self.config.on_error,
                allow_partial=self.config.allow_partial,
                known=known_facts(root, wanted),
            )
            _report_left_out(Path(self._output_dir), result, partial_report(wanted, result.kept))
            wanted = result.kept
            facts = result.facts
        elif self.config.allow_partial:
            present = tuple(record for record in wanted if not is_missing(root / record.file))
            if not present:
                raise BuildError(f"none of the {len(wanted):,} images is under {root}; fetch some, or check data_dir")
            if len(present) < len(wanted):
                logger.warning(f"{len(wanted) - len(present):,} of {len(wanted):,} images are missing and left out")
            wanted = present
        generators = []
        for split in manifest.splits:
            records = [(record, facts.get(record.file)) for record in wanted if record.split == split]
            if records:
                # A list per shard is what lets datasets spread the work over processes and shuffle a stream.
                size = max(1, min(_ROWS_PER_SHARD, -(-len(records) // 16)))
                shards = [records[start : start + size] for start in range(0, len(records), size)]
                gen_kwargs = {"shards": shards, "root": str(root), "carried_columns": manifest.carried_columns}
                generators.append(datasets.SplitGenerator(name=split, gen_kwargs=gen_kwargs))
        return generators

    def _generate_examples(
        self, shards: list[list[tuple[Record, ImageFacts | None]]], root: str, carried_columns: tuple[str, ...]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for shard in shards:
            for record, facts in shard:
                try:
                    row = row_of(record, Path(root), carried_columns, facts)
                except ImageError as error:
                    if self.config.on_error == "raise" or facts is not None:
                        if error.reason == "missing" and self._fetched is not None:
                            raise DataNotFoundError(
                                f"{record.path} is not in {root}: streams do not fetch; run `imaginet fetch {root}`, "
                                "or load once without streaming"
                            ) from error
                        raise
                    logger.warning(f"left out: {error}")
                    continue
                yield record.file, row


def _words(only: str | Sequence[str]) -> list[str]:
    words = only.split(",") if isinstance(only, str) else only
    return [word.strip() for word in words if word.strip()]


class Fetched:
    """ImagiNet in the datasets cache: `load_dataset("imaginet")` without `data_dir`.

    The name of the prepared dataset (`state`) follows the lists and the files: a first fetch has a name of its own,
    which stands as long as lists and files are as that fetch left them.

    Args:
        root: the ROOT to fill.
        track: identification needs the synthetic images alone.
        options: annotations, only, splits, own, allow_partial, licenses, as in `ImagiNetConfig`.
    """

    def __init__(self, root: Path, track: Track, options: Mapping[str, Any]) -> None:
        self.root = root
        self._labels = (Origin.SYNTHETIC.value,) if track == Track.IDENTIFICATION else ()
        self._only = tuple(_words(options["only"] or ()))
        self._annotations = options["annotations"]
        self._splits = options["splits"]
        own = options["own"] or {}
        self._own = {key: places for key, places in own.items() if not self._only or key in self._only}
        self._allow_partial = bool(options["allow_partial"])
        self._licenses = options["licenses"]
        self._states = root / FOLDER / "states.json"
        self.state = self._find_state()

    def listed(self) -> Manifest:
        """What the lists that are here say of the images asked for.

        Raises:
            DataNotFoundError: the lists are not here yet.
            AnnotationError: see `read_annotations`.
        """
        place = self._annotations or find_annotations(self.root)
        if place is None:
            raise DataNotFoundError(f"{self.root} carries no annotations yet")
        manifest = read_annotations(place, None if self._splits is None else {self._splits})
        records = tuple(
            r
            for r in manifest.records
            if (not self._only or source_of(r.file)[0] in self._only) and (not self._labels or r.label in self._labels)
        )
        return replace(manifest, records=select(records, self._licenses)[0])

    def only_lists(self) -> tuple[Path, Manifest]:
        """For streams, which do not fetch images: ROOT, and what the lists say."""
        from imaginet_hub.data.fetch import fetch_lists

        fetch_lists(self.root, self._annotations, self._splits)
        return self.root, self.listed()

    def fetch(self) -> tuple[Path, Manifest]:
        """Show the plan, refuse what cannot work before the first byte, then fetch.

        Raises:
            DataNotFoundError: some sources cannot be fetched here, with the remedies.
            FetchError: too little disk, or files are missing after all.
        """
        from imaginet_hub.data.fetch import fetch

        summary = fetch(
            self.root,
            annotations=self._annotations,
            only=self._only,
            split=self._splits,
            labels=self._labels,
            licenses=self._licenses,
            own=self._own,
            wait=True,
            show=logger.warning,
            confirm=self._refuse,
        )
        if not summary.complete:
            if not self._allow_partial:
                example = next(iter(summary.missing.values()))
                raise FetchError(
                    "incomplete",
                    "imaginet",
                    str(self.root),
                    "every image",
                    f"{len(summary.missing):,} missing, such as this one: {example}",
                    "load again to go on where it was, or load what is here with allow_partial=True",
                )
            logger.warning(summary.text())
        manifest = self.listed()
        self._keep_state(fingerprint(self.root, manifest))
        return self.root, manifest

    def _refuse(self, plan: Plan) -> None:
        needed = plan.bytes + plan.listed_bytes  # ROOT, and the prepared copy
        if plan.free is not None and needed > plan.free:
            raise FetchError(
                "disk",
                "imaginet",
                str(self.root),
                f"about {human_bytes(needed)} of free disk (images, and the prepared dataset)",
                human_bytes(plan.free),
                "free some, choose another cache_dir, or load less (only=..., splits=...)",
            )
        if plan.blocked and not self._allow_partial:
            lines = [f"  {b.source} ({len(b.records):,} images): {b.why}; {b.remedy}" for b in plan.blocked]
            raise DataNotFoundError(
                "nothing was fetched, because some images of ImagiNet cannot be fetched here:\n"
                + "\n".join(lines)
                + '\nBring them with own={"SOURCE": PATH}, name a folder that holds all with data_dir=ROOT, take '
                f'only=... or splits="test", load what can be had with allow_partial=True, or try the software on the '
                f'made corpus: load_dataset("{DATASET_NAME}", "{MINI}")'
            )

    def _key(self) -> str:
        lists = ""
        if self._annotations is not None:
            lists = " ".join(digest for _, digest in self.listed().lists)
        asked = [lists, sorted(self._only), self._splits, self._allow_partial, self._labels]
        return json.dumps(asked if self._licenses is None else [*asked, self._licenses])

    def _find_state(self) -> str:
        try:
            now = fingerprint(self.root, self.listed())
        except (DataNotFoundError, AnnotationError):
            if self._annotations is not None:
                raise
            now = ""
        first = hashlib.sha256(self._key().encode()).hexdigest()[:16]
        left = self._known_states().get(self._key())
        if left is not None:
            return str(left[1]) if left[0] == now else now
        return first

    def _known_states(self) -> dict[str, list[str]]:
        try:
            states = json.loads(self._states.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(states, dict):
            return {}
        return {key: value for key, value in states.items() if isinstance(value, list) and len(value) == 2}

    def _keep_state(self, now: str) -> None:
        with filelock.FileLock(self._states.with_suffix(".lock")):  # another process may be doing the same
            states = self._known_states() | {self._key(): [now, self.state]}
            temporary = self._states.with_suffix(".incomplete")
            temporary.write_text(json.dumps(states), encoding="utf-8")
            temporary.replace(self._states)


def _report_left_out(folder: Path, result: Scan, partial: dict[str, Any] | None) -> None:
    if partial is None:
        return
    logger.warning(
        f"left out {partial['absent']:,} images that are missing or damaged; see {BUILD_REPORT} beside the data:\n"
        + "\n".join(f"  {item.message}" for item in result.left_out[:10])
    )
    if folder.is_dir():
        report = {"left_out": result.left_out_json(), "partial": partial}
        (folder / BUILD_REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        write_missing(folder, result.missing)
