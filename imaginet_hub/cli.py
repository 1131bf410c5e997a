"""The `imaginet` command: a few lines a sub-command; everything heavy is imported inside it."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from imaginet_hub.errors import ImagiNetError, UsageError

__all__ = ["main"]


class _Parser(argparse.ArgumentParser):
    """argparse that says what may have been meant."""

    def error(self, message: str) -> NoReturn:
        wrong = message.partition("invalid choice: ")[2].partition(" ")[0].strip("'\"")
        if message.startswith("unrecognized arguments: "):
            wrong = message.split(": ", 1)[1].split(maxsplit=1)[0].split("=", maxsplit=1)[0]
        near = difflib.get_close_matches(wrong, self._known_words(), n=1) if wrong else []
        hint = f"; did you mean {near[0]}?" if near and near[0] != wrong else ""
        self.exit(2, f"{self.prog}: {message}{hint}\nSee {self.prog} --help\n")

    def _known_words(self) -> list[str]:
        words: list[str] = []
        for action in self._actions:
            words += [*action.option_strings, *map(str, action.choices or ())]
        return words


_DATASET = "built folder, Hub dataset id, folder of images with its annotations, or mini"
_MODEL = (
    "model folder or Hub id, ours or of any image classifier that transformers' pipeline loads, or a function as "
    "package.module:function (RGB PIL images in, P(synthetic) out)"
)

_EXIT_STATUS = """exit status:
  0    done; or, with --dry-run and the like, nothing speaks against it
  1    done in part or not at all: an error, files that could not be read or had, something that must not be published
  2    a wrong command line
  130  interrupted; what is needed to go on is said

COMMAND --help shows an example; --debug shows the traceback of an error.
"""

_RECIPE_FLAGS = """after the names, flags of the recipe and of transformers' TrainingArguments:
  --preset quick  for minutes on two cores; without it, the paper's recipe
  --config FILE   flags from a YAML or JSON file, NAME: VALUE
  --crop_size, --perturb, --max_steps, --num_train_epochs, --learning_rate,
  --per_device_train_batch_size, --seed, --bf16, --save_strategy,
  --resume_from_checkpoint last, --overwrite ...; all of them: --all-flags
several processes: torchrun --nproc_per_node 2 -m imaginet_hub.cli {command} ...

"""


def _parser() -> _Parser:
    from imaginet_hub import __version__

    # Options of every command; SUPPRESS, so that they may stand before or after the command's name.
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the whole traceback")
    common.add_argument(
        "--quiet", "-q", action="store_true", default=argparse.SUPPRESS, help="no progress bars, no remarks"
    )
    parser = _Parser(
        prog="imaginet",
        description="Telling synthetic images from real ones, with ImagiNet.",
        parents=[common],
        epilog=_EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"imaginet_hub {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, help_: str, example: str, more: str = "") -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            parents=[common],
            help=help_,
            description=help_[0].upper() + help_[1:] + ".",
            epilog=f"{more}example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    sources = command(
        "sources",
        "list the nine sources: what they give, their terms, how they are reached, what is missing on this machine",
        "imaginet sources --json",
    )
    sources.add_argument("--json", action="store_true", help="print JSON")
    sources.set_defaults(run=_sources)

    fetch = command(
        "fetch",
        "fill ROOT with ImagiNet's images, verified; run again, it goes on where it was",
        "imaginet fetch ROOT --only coco,ffhq --split test --dry-run",
        "routes, accounts and terms of each source: imaginet sources\n"
        "hosts move with HF_ENDPOINT, KAGGLE_API_ENDPOINT and "
        'IMAGINET_ENDPOINTS="coco=http://...,github=...,drive=..."\n\n',
    )
    fetch.add_argument("root", metavar="ROOT", help="folder to fill, in upstream's layout")
    fetch.add_argument(
        "--only", type=_words, action="extend", default=[], metavar="SOURCE,...", help="these sources only"
    )
    fetch.add_argument("--split", help="train or test (default: every split of the lists)")
    fetch.add_argument(
        "--annotations",
        metavar="FILE|DIR",
        help="lists to go by; default: what ROOT carries, else upstream's, downloaded and verified",
    )
    fetch.add_argument(
        "--from",
        dest="own",
        action="append",
        default=[],
        metavar="SOURCE=PATH",
        help="a folder, an archive (ZIP, tar, 7z) or Parquet files of that source which you have; may be repeated",
    )
    fetch.add_argument(
        "--route",
        action="append",
        default=[],
        metavar="SOURCE=NAME",
        help="this route only, whatever it costs; may be repeated. Without SOURCE=: for every source that has it "
        "and is not named itself (--route packed)",
    )
    fetch.add_argument("--dry-run", action="store_true", help="print the plan and write nothing")
    fetch.add_argument("--limit", type=_positive, metavar="N", help="the first N missing files of each source")
    _add_licenses(fetch, "to fetch")
    _add_workers(fetch, "connections at a time (default 16)", "--max-workers")
    fetch.add_argument("--json", action="store_true", help="print plan or summary as JSON")
    fetch.set_defaults(run=_fetch)

    verify = command(
        "verify",
        "check every file of ROOT against the ledger of its fetch, and name images that are in two splits",
        "imaginet verify ROOT",
    )
    verify.add_argument("root", metavar="ROOT", help="folder that `imaginet fetch` filled")
    verify.add_argument("--annotations", metavar="FILE|DIR", help="lists to go by; default: what ROOT carries with it")
    _add_workers(verify, "threads (default: one per core)", "--max-workers")
    verify.add_argument("--json", action="store_true", help="print JSON")
    verify.set_defaults(run=_verify)

    build = command(
        "build",
        "turn a folder of images and its annotations into a hub-ready dataset repository",
        "imaginet build ROOT my-dataset --annotations ROOT/annotations.csv",
    )
    build.add_argument("root", metavar="ROOT", help="folder that the annotations' paths are relative to")
    build.add_argument("out", metavar="OUT", help="folder to write")
    build.add_argument(
        "--annotations",
        metavar="FILE|DIR",
        help="upstream's list (.txt), a table (.csv, .parquet) or upstream's annotations/ folder; "
        "default: what ROOT carries with it",
    )
    build.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="images that are missing or damaged: stop with a list of all of them, or leave them out, on record",
    )
    build.add_argument(
        "--allow-partial",
        action="store_true",
        help="build what is there: missing images are left out and counted, and the card names the published figures "
        "that are no longer comparable; damaged images still follow --on-error",
    )
    build.add_argument("--seed", type=int, default=0, help="of the row order (default 0)")
    build.add_argument(
        "--complete",
        metavar="DATASET",
        help="a published dataset (Hub id or folder) that had to leave rows out: fill ROOT with its images, fetch the "
        "others (its withheld.csv) from their sources, and build all of them",
    )
    build.add_argument(
        "--from",
        dest="own",
        action="append",
        default=[],
        metavar="SOURCE=PATH",
        help="with --complete, what you have of a source, as for `imaginet fetch`; may be repeated",
    )
    _add_licenses(build, "to build")
    _add_workers(build, "threads that check images and write files (default: one per core)", "--num-proc")
    build.add_argument("--overwrite", action="store_true", help="replace a dataset that was built there before")
    build.add_argument("--json", action="store_true", help="print build_report.json")
    build.set_defaults(run=_build)

    train = command(
        "train",
        "train a SelfCon encoder (stage 1)",
        "imaginet train my-dataset my-encoder --preset quick",
        _RECIPE_FLAGS.format(command="train"),
    )
    train.add_argument("dataset", metavar="DATASET", help="built folder, Hub dataset id, or mini")
    train.add_argument("out", metavar="OUT", help="model folder to write")
    train.add_argument("--split", default="train", help="split to train on (default train)")
    _add_training(train)
    train.add_argument("--all-flags", action=_AllFlags, nargs=0, help="list every other flag, and exit")
    train.set_defaults(run=_train, names=("dataset", "out"))

    head = command(
        "train-head",
        "train a track's classifier on a stage-1 encoder",
        "imaginet train-head my-encoder my-dataset my-detector --track detection --preset quick",
        _RECIPE_FLAGS.format(command="train-head"),
    )
    head.add_argument("encoder", metavar="ENCODER", help="model folder written by `imaginet train`")
    head.add_argument("dataset", metavar="DATASET", help="built folder, Hub dataset id, or mini")
    head.add_argument("out", metavar="OUT", help="model folder to write")
    what = head.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--track",
        choices=("detection", "identification"),
        help="detection: real or synthetic (the column label); identification: the column generator_family",
    )
    what.add_argument(
        "--label-column", metavar="COLUMN", help="label, generator_family, generator, or any column of class names"
    )
    head.add_argument("--split", default="train", help="split to train on (default train)")
    _add_training(head)
    head.add_argument("--all-flags", action=_AllFlags, nargs=0, help="list every other flag, and exit")
    head.set_defaults(run=_train_head, names=("encoder", "dataset", "out"))

    convert = command(
        "convert",
        "turn a checkpoint of upstream's (.pt, .pth) into a model folder that can be published",
        "imaginet convert imaginet_weights.pt my-detector --track detection",
    )
    convert.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="file of torch.save; read as weights only, by itself"
    )
    convert.add_argument("out", metavar="OUT", help="model folder to write")
    convert.add_argument(
        "--track",
        choices=("detection", "identification", "none"),
        required=True,
        help="what the checkpoint's head answers; none: only the encoder with its projection heads (stage 1)",
    )
    convert.add_argument(
        "--stem-stride",
        type=int,
        choices=(1, 2),
        help="1: network without early down-sampling, 2: with it; default: what the head says (shown)",
    )
    convert.add_argument("--overwrite", action="store_true", help="replace a model folder that is there")
    convert.add_argument("--json", action="store_true", help="print what was decided as JSON")
    convert.set_defaults(run=_convert)

    perturb = command(
        "perturb",
        "render a split as the paper's test images are: a random square, resampled to 256 x 256, three in four "
        "compressed; the same pixels on every machine with the same encoders",
        "imaginet perturb my-dataset --out my-perturbed",
        "the split is called SPLIT_perturbed; what is drawn depends on --seed and an image's path alone\n\n",
    )
    perturb.add_argument("dataset", metavar="DATASET", help=_DATASET)
    perturb.add_argument("--out", metavar="DIR", required=True, help="folder to write, a dataset of its own")
    perturb.add_argument("--split", help="split to render (default test)")
    perturb.add_argument("--seed", type=int, help="of what is drawn for each image (default 0)")
    _add_workers(perturb, "processes (default: one per core)")
    perturb.add_argument("--limit", type=_positive, metavar="N", help="the first N rows")
    what = perturb.add_mutually_exclusive_group()
    what.add_argument("--overwrite", action="store_true", help="replace what an earlier run wrote to DIR")
    what.add_argument(
        "--verify",
        action="store_true",
        help="write nothing: render again, compare with what is in DIR, and name encoders and images that differ",
    )
    perturb.add_argument("--json", action="store_true", help="print the report as JSON")
    perturb.set_defaults(run=_perturb)

    audit = command(
        "audit",
        "ask how well labels can be told without looking at the images: by format, size, compression, metadata, "
        "duplicates; and what of a model's score is left when these are made equal",
        "imaginet audit my-dataset --out audit --model my-detector",
    )
    audit.add_argument("dataset", metavar="DATASET", help=_DATASET)
    audit.add_argument("--out", metavar="DIR", required=True, help="folder to write: audit.json and pictures")
    audit.add_argument("--model", metavar="MODEL", help=f"also measure this detector: {_MODEL}")
    audit.add_argument("--split", action="append", metavar="SPLIT", help="this split only; may be repeated")
    audit.add_argument(
        "--limit", type=_positive, metavar="N", help="at most N rows of each split, drawn at random by --seed"
    )
    _add_detector(audit)
    audit.add_argument("--seed", type=int, default=0, help="of intervals and cross-validation (default 0)")
    audit.add_argument("--json", action="store_true", help="print audit.json")
    audit.set_defaults(run=_audit)

    evaluate = command(
        "evaluate",
        "measure a detector on a dataset, with intervals, under the paper's protocol and a clean one",
        "imaginet evaluate my-detector my-dataset --out results.json",
        "predictions are kept in $HF_HOME/imaginet/predictions: run again, it goes on where it was\n\n",
    )
    evaluate.add_argument("model", metavar="MODEL", help=_MODEL)
    evaluate.add_argument("dataset", metavar="DATASET", help=_DATASET)
    evaluate.add_argument(
        "--out", metavar="FILE", required=True, help="results file to write (.json); the pictures go beside"
    )
    evaluate.add_argument("--split", default="test", help="split to measure on (default test)")
    evaluate.add_argument(
        "--by", action="append", metavar="COLUMN", help="also break down by this column; may be repeated"
    )
    evaluate.add_argument(
        "--equalize",
        metavar="jpeg:Q",
        help="re-encode every crop as JPEG (or webp:Q) of quality Q first, so that format says nothing",
    )
    evaluate.add_argument(
        "--resize",
        type=_positive,
        metavar="N",
        help="resample the middle square of every image to N pixels first, so that size says nothing",
    )
    evaluate.add_argument(
        "--crop-size", type=_positive, metavar="N", help="side of the crop (default: the model's own, else 256)"
    )
    evaluate.add_argument(
        "--threshold", type=float, default=0.5, help="lowest probability that is called synthetic (default 0.5)"
    )
    evaluate.add_argument(
        "--against", metavar="MODEL|FILE", help="compare with this detector, or with its results file"
    )
    evaluate.add_argument(
        "--against-label-map",
        type=_mapping,
        action="extend",
        default=[],
        metavar="CLASS=real,...",
        help="what its classes mean, if it is a pipeline",
    )
    evaluate.add_argument(
        "--annotations",
        metavar="DIR",
        help="upstream's protocol lists (test_annotations_gan.txt ...); default: beside DATASET, or downloaded where "
        "the images are ImagiNet's",
    )
    evaluate.add_argument(
        "--calibrate-on",
        metavar="DATASET",
        help="dataset whose train split calibrates a detector that brings no calibration (default: DATASET)",
    )
    evaluate.add_argument(
        "--export",
        metavar="DATASET_ID",
        help="also write .eval_results/*.yaml and model-index for the Hub, beside FILE",
    )
    evaluate.add_argument("--picture-format", choices=("png", "svg"), default="png", help="default png")
    evaluate.add_argument(
        "--speed", action="store_true", help="also measure images a second, beside a plain ResNet-50 (half a minute)"
    )
    evaluate.add_argument("--no-cache", action="store_true", help="neither use nor keep predictions")
    _add_detector(evaluate)
    evaluate.add_argument("--seed", type=int, default=0, help="of the bootstrap (default 0)")
    evaluate.add_argument("--json", action="store_true", help="print the results file")
    evaluate.set_defaults(run=_evaluate)

    predict = command(
        "predict",
        "say for each image whether it is synthetic",
        "imaginet predict my-detector uploads/ --identify my-identifier",
    )
    predict.add_argument("model", metavar="MODEL", help="detection (or identification) model folder or Hub model id")
    predict.add_argument("paths", metavar="PATH", nargs="+", help="files, folders, glob patterns")
    predict.add_argument("--identify", metavar="MODEL", help="identification model: names the generator too")
    predict.add_argument(
        "--closed-set",
        action="store_true",
        help="always name the likeliest generator, never answer unknown (a model says unknown where it stores a "
        "threshold for that, as train-head writes it)",
    )
    predict.add_argument("--batch-size", type=_positive, default=16, metavar="N", help="images at a time (default 16)")
    predict.add_argument(
        "--num-workers", type=_from_0, metavar="N", help="threads that read and decode (default: cores)"
    )
    predict.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    _add_arithmetic(predict, "auto")
    predict.add_argument("--json", action="store_true", help="one JSON object a line")
    predict.set_defaults(run=_predict)

    card = command(
        "card",
        "render README.md of a dataset or model folder from the JSON files in it, so that no figure is typed in",
        "imaginet card my-detector --results results/detection.json --license apache-2.0",
        "a model's license (and any language) that stands in the YAML of the README.md is kept\n\n",
    )
    card.add_argument("path", metavar="PATH", help="folder that build, perturb, train, train-head or convert wrote")
    card.add_argument("--repo-id", metavar="OWNER/NAME", help="name it will have on the Hub, for the examples")
    card.add_argument("--audit", metavar="FILE", help="audit.json of `imaginet audit`, for a dataset; kept in PATH")
    card.add_argument(
        "--results",
        nargs="+",
        default=[],
        metavar="FILE",
        help="results files of `imaginet evaluate`, for a model; kept in PATH/results without the single images",
    )
    card.add_argument("--license", metavar="ID", help="licence of a model's weights, as the Hub names it")
    card.add_argument(
        "--check", action="store_true", help="write nothing: exit with 1 if README.md is not what would be rendered"
    )
    card.add_argument("--json", action="store_true", help="print the card's metadata as JSON")
    card.set_defaults(run=_card)

    push = command(
        "push",
        "publish a dataset or model folder on the Hub, in one commit; run again, it sends what is not there yet",
        "imaginet push my-dataset ORG/my-dataset --dry-run",
        "refused are pickles, secrets, what leads out of PATH, and rows whose licence is not known to allow passing\n"
        "them on: without those the other rows go, with a manifest and the command that rebuilds all of them.\n"
        "the token is that of `hf auth login` or HF_TOKEN; HF_ENDPOINT moves the Hub\n\n",
    )
    push.add_argument("path", metavar="PATH", help="folder that build, perturb, train, train-head or convert wrote")
    push.add_argument("repo_id", metavar="REPO_ID", help="OWNER/NAME on the Hub; made if it is not there")
    push.add_argument("--repo-type", choices=("dataset", "model"), help="default: what PATH is")
    push.add_argument("--private", action="store_true", help="make the repository private")
    push.add_argument(
        "--revision",
        metavar="BRANCH",
        help="branch to push to; made if it is not there (default main); refs/pr/N: an open pull request",
    )
    push.add_argument("--create-pr", action="store_true", help="propose it as a new pull request")
    push.add_argument(
        "--redistribute",
        action="append",
        default=[],
        metavar="NAME",
        help="you have the right to pass on the images of this source or licence, as the rows name it, or of all of "
        "them; may be repeated",
    )
    push.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN", help="paths that stay here; may be repeated"
    )
    push.add_argument(
        "--dry-run",
        action="store_true",
        help="list files, sizes and licences, and exit with 1 if anything is refused; no network, no token",
    )
    push.add_argument("--json", action="store_true", help="print plan or outcome as JSON")
    push.set_defaults(run=_push)

    licenses = command(
        "licenses",
        "count a dataset's images by licence and source, and what these allow; help, not legal advice",
        "imaginet licenses my-dataset",
    )
    licenses.add_argument("dataset", metavar="DATASET", help=_DATASET)
    licenses.add_argument(
        "--notice", action="store_true", help="print the NOTICE that goes with the images, made from the rows"
    )
    licenses.add_argument("--json", action="store_true", help="print JSON")
    licenses.set_defaults(run=_licenses)

    demo = command(
        "demo",
        "run the whole path on the made corpus: build, train both tracks, evaluate, load back",
        "imaginet demo --out demo-output",
    )
    demo.add_argument("--out", metavar="DIR", default="demo-output", help="folder to write (default demo-output)")
    demo.add_argument("--json", action="store_true", help="print the results of both tracks as JSON")
    demo.set_defaults(run=_demo)
    return parser


def _add_workers(parser: argparse.ArgumentParser, help_: str, *also: str) -> None:
    parser.add_argument("--num-workers", *also, dest="num_workers", type=_positive, metavar="N", help=help_)


def _add_licenses(parser: argparse.ArgumentParser, purpose: str) -> None:
    parser.add_argument(
        "--licenses",
        action="append",
        metavar="NAME",
        help=f"only images {purpose} whose licence is this one; commercial: that allows commercial use; "
        "redistributable: that allows passing them on; may be repeated (see `imaginet licenses`)",
    )


def _add_training(parser: argparse.ArgumentParser) -> None:
    """The flags of the other commands; each stands for one of TrainingArguments'."""
    _add_licenses(parser, "to train on")
    parser.add_argument(
        "--batch-size", type=_positive, metavar="N", help="images a step (--per_device_train_batch_size)"
    )
    parser.add_argument(
        "--num-workers", type=_from_0, metavar="N", help="processes that read and decode (--dataloader_num_workers)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="which GPU: CUDA_VISIBLE_DEVICES (--use_cpu)")
    _add_dtype(parser, None, "arithmetic of the network (--bf16, --fp16)")
    parser.add_argument("--json", action="store_true", help="print the training record (training.json)")


def _add_detector(parser: argparse.ArgumentParser) -> None:
    """How a detector is run, where any detector may be named."""
    parser.add_argument(
        "--label-map",
        type=_mapping,
        action="extend",
        default=[],
        metavar="CLASS=real,...",
        help="what the classes of a pipeline mean, CLASS=real or CLASS=synthetic (default: inferred, and shown)",
    )
    parser.add_argument("--batch-size", type=_positive, default=32, help="images at a time (default 32)")
    parser.add_argument(
        "--num-workers", type=_from_0, metavar="N", help="threads that read and decode (default: cores)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    _add_arithmetic(parser, "float32")


def _add_dtype(parser: argparse.ArgumentParser, default: str | None, help_: str) -> None:
    from imaginet_hub.precision import DTYPES

    parser.add_argument("--dtype", choices=DTYPES, default=default, help=help_)


def _add_arithmetic(parser: argparse.ArgumentParser, default: str) -> None:
    _add_dtype(
        parser,
        default,
        "arithmetic of the network; what is close in 16 bits is answered again in float32. auto: bfloat16 where "
        f"it is hardware, else float32 (default {default})",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the network first: a minute that pays from some hundreds of images on",
    )


class _AllFlags(argparse.Action):
    """Prints the help of the flags that `train` and `train-head` take from transformers and from their recipe."""

    def __call__(self, parser: argparse.ArgumentParser, *args: object) -> None:
        from imaginet_hub.training.arguments import parse_head_args, parse_train_args

        parse = parse_head_args if parser.prog.endswith("train-head") else parse_train_args
        parse(["--help"], "OUT")


def _mapping(text: str) -> list[tuple[str, str]]:
    pairs = [item.rpartition("=") for item in text.split(",")]
    if not all(equals and name and meaning for name, equals, meaning in pairs):
        raise argparse.ArgumentTypeError(f"expected CLASS=real,CLASS=synthetic, got {text!r}")
    return [(name.strip(), meaning.strip()) for name, _, meaning in pairs]


def _map(pairs: Sequence[tuple[str, str]], option: str) -> dict[str, str]:
    names = [name for name, _ in pairs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UsageError(f"{option}: expected one meaning for each class, got several for {twice[0]}")
    return dict(pairs)


def _from_0(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number, 0 or more, got {text!r}")
    return int(text)


def _words(text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    if not words:
        raise argparse.ArgumentTypeError(f"expected names with commas between them, got {text!r}")
    return words


def _pairs(option: str, given: Sequence[str]) -> dict[str, list[str]]:
    """`source=value` options, by source."""
    pairs: dict[str, list[str]] = {}
    for item in given:
        source, equals, value = item.partition("=")
        if not (source and equals and value):
            raise UsageError(f"{option}: expected SOURCE=..., got {item!r}")
        pairs.setdefault(source.strip(), []).append(value)
    return pairs


def _routes(given: Sequence[str], only: Sequence[str]) -> dict[str, str]:
    """`source=name` options, by source; a name alone stands for every source that has it and is not named itself."""
    from imaginet_hub.data.plan import meant
    from imaginet_hub.data.sources import SOURCES, source_named

    specific = _pairs("--route", [item for item in given if "=" in item or not item])
    general: dict[str, list[str]] = {}
    for item in given:
        if "=" in item or not item:
            continue
        having = [s.key for s in SOURCES if any(route.name == item for route in s.routes)]
        if not having:
            names = dict.fromkeys(route.name for s in SOURCES for route in s.routes)
            raise UsageError(
                f"--route: expected SOURCE=NAME, or the name of a route, got {item!r}{meant(item, names)}"
            )
        wanted = [key for key in having if not only or key in only]
        if not wanted and all(source_named(key) for key in only):
            raise UsageError(f"--route {item}: --only leaves out what has such a route ({', '.join(having)})")
        for key in wanted:
            general.setdefault(key, []).append(item)
    routes = general | specific
    twice = [source for source, names in routes.items() if len(set(names)) > 1]
    if twice:
        raise UsageError(f"--route: expected one route for {twice[0]}, got {', '.join(routes[twice[0]])}")
    return {source: names[0] for source, names in routes.items()}


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `imaginet --help` tells the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names need not be text
    parser = _parser()
    args, more = parser.parse_known_args(argv)
    names = getattr(args, "names", ())
    if more and not names:
        sub = parser._subparsers._group_actions[0].choices[args.command]  # type: ignore[union-attr, index]
        sub.error(f"unrecognized arguments: {' '.join(more)}")
    args.more = more
    if getattr(args, "quiet", False):
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    try:
        _check_environment()
        _check_order(list(sys.argv[1:] if argv is None else argv), args, names)
        return int(args.run(args))
    except ImagiNetError as error:
        if getattr(args, "debug", False):
            raise
        print(f"imaginet {args.command}: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        if getattr(args, "debug", False):
            raise
        left = _INTERRUPTED["evaluate without cache" if getattr(args, "no_cache", False) else args.command]
        print(f"\nimaginet {args.command}: interrupted; {left}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `imaginet predict ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if getattr(args, "debug", False) or "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun reports it itself
            raise
        from imaginet_hub.data.units import one_line

        said = one_line(" ".join(str(error).split())[:500])
        print(
            f"imaginet {args.command}: unexpected {type(error).__name__}: {said}; run it again with --debug for the "
            "traceback",
            file=sys.stderr,
        )
        return 1


def _check_environment() -> None:
    """huggingface_hub takes nothing but whole numbers here, and fails with a traceback when it is imported."""
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
        value = os.environ.get(name, "")
        if value and not (value.isascii() and value.isdigit()):
            raise UsageError(f"{name}: expected a whole number of seconds, got {value!r}")


def _check_order(argv: list[str], args: argparse.Namespace, names: Sequence[str]) -> None:
    """A flag of the recipe before the names would have its value taken for one of them."""
    flags = (position for position, word in enumerate(argv) if word.startswith("-") and word in args.more)
    before = argv[: next(flags, len(argv))]
    if not all(getattr(args, name) in before for name in names):
        raise UsageError(f"expected {' '.join(n.upper() for n in names)} first, then the flags of the recipe")


_INTERRUPTED = {
    "sources": "nothing was written",
    "fetch": "what came in is kept and verified; run the same command again to go on",
    "verify": "nothing was changed",
    "build": "nothing was left behind; run the same command again",
    "train": "checkpoints, if --save_strategy asked for any, are in OUT; go on with --resume_from_checkpoint last",
    "train-head": "no model was written; run the same command again, or, where --save_strategy asked for checkpoints, "
    "go on with --resume_from_checkpoint last",
    "convert": "no model was written; run the same command again",
    "perturb": "nothing was left behind; run the same command again",
    "audit": "nothing was written; run the same command again",
    "evaluate": "no results were written; run the same command again: it goes on with the predictions that are kept",
    "evaluate without cache": "no results and no predictions were kept; run the same command again, it starts over",
    "predict": "the lines above are complete; run again with the remaining files",
    "card": "README.md is as it was, or as it should be; run the same command again",
    "push": "what was uploaded is not sent again, and no commit was made unless its address is above; run the same "
    "command again to go on",
    "licenses": "nothing was written",
    "demo": "run the same command again; it starts over",
}


def _sources(args: argparse.Namespace) -> int:
    from imaginet_hub.data.access import sources_json, sources_text

    print(json.dumps(sources_json(), indent=2, ensure_ascii=False) if args.json else sources_text())
    return 0


def _fetch(args: argparse.Namespace) -> int:
    from imaginet_hub.data.fetch import MAX_WORKERS, fetch, plan_fetch

    quiet = getattr(args, "quiet", False)
    if not args.root.strip():
        raise UsageError("ROOT: expected the name of a folder, got nothing")
    options = {
        "annotations": args.annotations,
        "only": args.only,
        "split": args.split,
        "own": _pairs("--from", args.own),
        "routes": _routes(args.route, args.only),
        "limit": args.limit,
        "licenses": args.licenses,
    }
    if args.dry_run:
        plan, remarks = plan_fetch(args.root, **options)
        for remark in remarks if not quiet else ():
            print(remark, file=sys.stderr)
        print(json.dumps(plan.to_json(), indent=2, ensure_ascii=False) if args.json else plan.text())
        return 0
    say = None if quiet else lambda text: print(text, file=sys.stderr if args.json else sys.stdout, flush=True)
    summary = fetch(args.root, **options, max_workers=args.num_workers or MAX_WORKERS, show=say)
    if args.json:
        print(json.dumps(summary.to_json(), indent=2, ensure_ascii=False))
    elif not quiet or not summary.complete:
        print(summary.text(), file=sys.stdout if summary.complete else sys.stderr)
        if summary.complete and not quiet:
            lists = f" --annotations {args.annotations}" if args.annotations else ""
            print(f"Next: imaginet build {args.root} OUT{lists}")
    return 0 if summary.complete else 1


def _verify(args: argparse.Namespace) -> int:
    from imaginet_hub.data.verify import verify

    found = verify(args.root, annotations=args.annotations, max_workers=args.num_workers)
    if args.json:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
    elif not getattr(args, "quiet", False) or not found.fine:
        print(found.text())
    return 0 if found.fine else 1


def _build(args: argparse.Namespace) -> int:
    from imaginet_hub.cards import dataset_card
    from imaginet_hub.data.partial import MISSING_LIST
    from imaginet_hub.data.repository import build_repository

    if args.complete is not None and not _completed(args):
        return 1
    if args.own and args.complete is None:
        raise UsageError("--from goes with --complete; `imaginet fetch ROOT --from SOURCE=PATH` fills a ROOT")
    report = build_repository(
        args.root,
        args.out,
        annotations=args.annotations,
        on_error=args.on_error,
        allow_partial=args.allow_partial,
        licenses=args.licenses,
        seed=args.seed,
        num_proc=args.num_workers,
        overwrite=args.overwrite,
        render_card=dataset_card,
    )
    if args.json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
        return 0
    print(f"{args.out}: {report['images']:,} images, fingerprint {report['fingerprint']}")
    for split, facts in report["splits"].items():
        labels = ", ".join(f"{count:,} {label}" for label, count in facts["label"].items())
        print(f"  {split}: {facts['images']:,} ({labels})")
        if "synthetic" not in facts["label"]:
            print(f"  {split} holds no synthetic image, so the identification config has no such split")
    if report["left_out"]:
        print(f"  left out: {len(report['left_out']):,}, listed in {Path(args.out) / 'build_report.json'}")
    if "partial" in report:
        partial, missing = report["partial"], report["partial"]["absent"] - len(report["left_out"])
        if missing:
            print(f"  missing: {missing:,} of {partial['annotated']:,}, listed in {Path(args.out) / MISSING_LIST}")
        if partial["not_comparable"]:
            rows = len(partial["not_comparable"])
            print(f"  {rows:,} published rows are not comparable with this build, see {Path(args.out) / 'README.md'}")
    print(f'Load it with: datasets.load_dataset("{args.out}", "detection")')
    return 0


def _completed(args: argparse.Namespace) -> bool:
    """Fill ROOT with what a published dataset has and lists; whether everything is there now."""
    from imaginet_hub.data.withheld import complete

    if args.annotations is not None or args.licenses is not None:
        raise UsageError("--complete builds all rows of the published dataset; leave --annotations and --licenses out")
    summary = complete(args.complete, args.root, own=_pairs("--from", args.own), show=_remarks(args))
    if not summary.complete:
        print(f"imaginet build: {_harmless(summary.text())}", file=sys.stderr)
        print(
            "imaginet build: nothing was built; run the same command again to go on, bring what cannot be had with "
            "--from SOURCE=PATH, or pass --allow-partial",
            file=sys.stderr,
        )
    return summary.complete or args.allow_partial


def _training_flags(args: argparse.Namespace) -> list[str]:
    """The flags that other commands have too, as TrainingArguments names them; those that follow overrule them."""
    flags = ["--disable_tqdm", "true", "--log_level", "error"] if getattr(args, "quiet", False) else []
    if args.batch_size is not None:
        flags += ["--per_device_train_batch_size", str(args.batch_size)]
    if args.num_workers is not None:
        flags += ["--dataloader_num_workers", str(args.num_workers)]
    if args.device is not None:
        flags += ["--use_cpu", str(args.device == "cpu").lower()]
    if args.dtype not in (None, "auto"):
        flags += ["--bf16", str(args.dtype == "bfloat16").lower(), "--fp16", str(args.dtype == "float16").lower()]
    return flags


def _train(args: argparse.Namespace) -> int:
    from imaginet_hub.errors import require

    require("train", "torch", "torchvision", "transformers", "timm", "accelerate")
    from imaginet_hub.cards import write_card
    from imaginet_hub.data.loading import dataset_record, load_rows
    from imaginet_hub.training.trainer import parse_train_args, train

    model_args, training_args = parse_train_args([*_training_flags(args), *args.more], args.out)
    rows = load_rows(args.dataset, "detection", args.split, licenses=args.licenses)
    folder = train(
        rows,
        model_args,
        training_args,
        dataset_record=dataset_record(args.dataset, rows, args.split),
    )
    if training_args.process_index:  # of several processes the first one writes and speaks
        return 0
    write_card(folder)
    if args.json:
        print((folder / "training.json").read_text(encoding="utf-8"), end="")
    elif training_args.objective == "cross_entropy":
        _say_next(args, f"{folder}: detection model", "evaluate", folder, args.dataset, "--out results.json")
    else:
        _say_next(args, f"{folder}: stage-1 encoder", "train-head", folder, args.dataset, "OUT --track detection")
    return 0


def _train_head(args: argparse.Namespace) -> int:
    from imaginet_hub.errors import require

    require("train", "torch", "torchvision", "transformers", "timm", "accelerate")
    from imaginet_hub.cards import write_card
    from imaginet_hub.data.loading import dataset_record, load_rows, track_of
    from imaginet_hub.labels import Track
    from imaginet_hub.training.head import parse_head_args, train_head

    training_args = parse_head_args([*_training_flags(args), *args.more], args.out)
    column = args.label_column or Track(args.track).label_column
    rows = load_rows(args.dataset, track_of(column), args.split, licenses=args.licenses)
    folder = train_head(
        rows,
        args.encoder,
        training_args,
        label_column=column,
        dataset_record=dataset_record(args.dataset, rows, args.split),
    )
    if training_args.process_index:
        return 0
    write_card(folder)
    if args.json:
        print((folder / "training.json").read_text(encoding="utf-8"), end="")
        return 0
    if not getattr(args, "quiet", False):
        _say_of_calibration(folder, training_args.held_out)
    kind = args.track or column
    _say_next(args, f"{folder}: {kind} model", "evaluate", folder, args.dataset, "--out results.json")
    return 0


def _say_next(args: argparse.Namespace, done: str, command: str, *names: object) -> None:
    """What was done, and a command to go on with, as a shell takes it; the last of the names is none."""
    *paths, rest = names
    words = " ".join(shlex.quote(str(path)) for path in paths)
    print(done if getattr(args, "quiet", False) else f"{done}; next: imaginet {command} {words} {rest}")


def _say_of_calibration(folder: Path, held_out: float) -> None:
    """What the figures of a new head do not say themselves."""
    record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    why = record["calibration"].get("why")
    if why:
        print(f"  note: its probabilities are not calibrated: {why}")
    elif record["calibration_rows_unseen"] is False:
        print(
            "  note: the encoder was trained on the rows that the probabilities were calibrated with, so that they "
            f"may be too sure; train it with --held_out {held_out:g} too"
        )


def _convert(args: argparse.Namespace) -> int:
    from imaginet_hub.errors import require

    require("train", "torch", "torchvision", "transformers", "timm", "safetensors")
    from imaginet_hub.training.checkpoint import look_at

    look_at(args.checkpoint)  # before the seconds that torch takes to load
    from imaginet_hub.cards import write_card
    from imaginet_hub.training.convert import convert

    done = convert(
        args.checkpoint,
        args.out,
        track=args.track,
        stem_stride=args.stem_stride,
        overwrite=args.overwrite,
        finish=write_card,
    )
    if args.json:
        print(json.dumps(done.to_json(), indent=2, ensure_ascii=False))
        return 0
    print(f"{args.out}: {done.track or 'stage-1 encoder'}, stem stride {done.stem_stride}, {done.reason}")
    print(f"  converted from {args.checkpoint}, sha256 {done.sha256}")
    if not getattr(args, "quiet", False):
        for remark in done.remarks:
            print(f"  note: {remark}")
        after = f"predict {args.out} PICTURE" if done.track else f"train-head {args.out} DATASET OUT --track detection"
        print(f"Next: imaginet {after}")
    return 0


def _harmless(text: str) -> str:
    """Lines with names out of data sets in them, which are not to steer the terminal."""
    from imaginet_hub.data.units import one_line

    return "\n".join(map(one_line, text.split("\n")))


def _remarks(args: argparse.Namespace) -> Callable[[str], None]:
    """Where remarks on the way go: to stderr, or nowhere."""

    def show(text: str) -> None:
        if not getattr(args, "quiet", False):
            print(f"imaginet {args.command}: {_harmless(text)}", file=sys.stderr, flush=True)

    return show


def _perturb(args: argparse.Namespace) -> int:
    from imaginet_hub.cards import perturbed_card
    from imaginet_hub.data.perturbed import perturb, summary, verify

    quiet = getattr(args, "quiet", False)
    if args.verify:
        if args.split is not None or args.seed is not None:
            raise UsageError("--verify takes split and seed from what is in DIR; leave --split and --seed out")
        report = verify(args.dataset, args.out, num_workers=args.num_workers, limit=args.limit, progress=not quiet)
    else:
        report = perturb(
            args.dataset,
            args.out,
            split=args.split or "test",
            seed=args.seed or 0,
            num_workers=args.num_workers,
            limit=args.limit,
            overwrite=args.overwrite,
            render_card=perturbed_card,
            progress=not quiet,
        )
    print(json.dumps(report, indent=2, ensure_ascii=False) if args.json else _harmless(summary(report)))
    return 1 if report.get("left_out") or report.get("same") is False else 0


def _audit(args: argparse.Namespace) -> int:
    from imaginet_hub.inference.audit import audit_dataset, audit_summary

    report = audit_dataset(
        args.dataset,
        args.out,
        model=args.model,
        splits=args.split,
        limit=args.limit,
        labels=_map(args.label_map, "--label-map"),
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        seed=args.seed,
        device=args.device,
        dtype=args.dtype,
        compile=args.compile,
        progress=not getattr(args, "quiet", False),
        show=_remarks(args),
    )
    print(json.dumps(report, indent=2, ensure_ascii=False) if args.json else _harmless(audit_summary(report)))
    return 1 if report["unreadable"] else 0


def _evaluate(args: argparse.Namespace) -> int:
    from imaginet_hub.inference.measure import Preprocessing, measure, summary

    results = measure(
        args.model,
        args.dataset,
        args.out,
        split=args.split,
        by=args.by or (),
        preprocessing=Preprocessing(args.crop_size, args.resize, args.equalize),
        labels=_map(args.label_map, "--label-map"),
        threshold=args.threshold,
        against=args.against,
        against_labels=_map(args.against_label_map, "--against-label-map"),
        annotations=args.annotations,
        calibrate_on=args.calibrate_on,
        export=args.export,
        picture_format=args.picture_format,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        seed=args.seed,
        device=args.device,
        dtype=args.dtype,
        compile=args.compile,
        speed=args.speed,
        cache=not args.no_cache,
        progress=not getattr(args, "quiet", False),
        show=_remarks(args),
    )
    print(json.dumps(results.to_json(), indent=2, ensure_ascii=False) if args.json else _harmless(summary(results)))
    if results.skipped:
        print(f"imaginet evaluate: {len(results.skipped)} unreadable images, listed in {args.out}", file=sys.stderr)
    return 1 if results.skipped else 0


def _predict(args: argparse.Namespace) -> int:
    from imaginet_hub.data.units import one_line
    from imaginet_hub.inference.detector import Detector
    from imaginet_hub.inference.predict import expand_paths, names_generators, predict_paths

    paths = expand_paths(args.paths)
    if not paths:
        raise UsageError(f"no image files in {', '.join(args.paths)}")
    options = {"device": args.device, "dtype": args.dtype, "compile": args.compile}
    first = Detector.from_pretrained(args.model, **options)
    identifier = Detector.from_pretrained(args.identify, **options) if args.identify else None
    if not getattr(args, "quiet", False):
        print(f"imaginet predict: {first.how}", file=sys.stderr, flush=True)
    detector: Detector | None = first
    if names_generators(first) and identifier is None:
        detector, identifier = None, detector
    failed = 0
    options = {"batch_size": args.batch_size, "num_workers": args.num_workers, "open_set": not args.closed_set}
    for answer in predict_paths(paths, detector=detector, identifier=identifier, **options):
        failed += answer.error is not None
        if args.json:
            print(json.dumps(answer.to_json(), ensure_ascii=False), flush=True)
        elif answer.error is not None:
            print(f"imaginet predict: {one_line(answer.error)}", file=sys.stderr, flush=True)
        else:
            fields = [one_line(answer.path)]
            if answer.label is not None:
                fields += [answer.label, f"{answer.probability:.4f}"]
            if answer.generator is not None:
                probability = f"{answer.generator_probability:.4f}" if answer.likeliest is None else "-"
                fields += [answer.generator, probability]
            print("\t".join(fields), flush=True)
    if failed:
        print(f"imaginet predict: {failed} of {len(paths)} files could not be read", file=sys.stderr)
    return 1 if failed else 0


def _card(args: argparse.Namespace) -> int:
    from imaginet_hub.cards import card_metadata, check_card, is_rendered, write_card

    folder = Path(args.path).expanduser()
    there = folder / "README.md"
    wrong: list[str] = []
    if not args.check:
        write_card(folder, args.repo_id, audit=args.audit, results=args.results, license=args.license)
    elif args.repo_id or args.audit or args.results or args.license:
        raise UsageError("--check looks at what is in PATH; leave --repo-id, --audit, --results and --license out")
    text = there.read_text(encoding="utf-8") if there.is_file() else ""
    if args.check and not is_rendered(folder):
        wrong = [f"{there} is not what would be rendered; run: imaginet card {shlex.quote(args.path)}"]
    wrong = wrong or check_card(text, "model" if (folder / "config.json").is_file() else "dataset")
    for line in wrong:
        print(f"imaginet card: {_harmless(line)}", file=sys.stderr)
    if args.json and not wrong:
        print(json.dumps(card_metadata(text), indent=2, ensure_ascii=False))
    elif not wrong and not getattr(args, "quiet", False):
        print(f"{there}: {'as it is rendered' if args.check else 'written'}")
    return 1 if wrong else 0


def _push(args: argparse.Namespace) -> int:
    from imaginet_hub.publish import plan_push, push

    plan = plan_push(
        args.path,
        args.repo_id,
        repo_type=args.repo_type,
        redistribute=args.redistribute,
        exclude=args.exclude,
    )
    if args.dry_run:
        print(json.dumps(plan.to_json(), indent=2, ensure_ascii=False) if args.json else plan.text())
        return 0 if plan.fine else 1
    options = {"private": args.private, "revision": args.revision, "create_pr": args.create_pr}
    try:
        address = push(plan, **options, show=_remarks(args))
    except (ImagiNetError, KeyboardInterrupt):
        if "tqdm" in sys.modules and sys.stderr.isatty():
            print(file=sys.stderr)  # a bar may stand there
        raise
    print(json.dumps({**plan.to_json(), "url": address}, indent=2, ensure_ascii=False) if args.json else address)
    return 0


def _licenses(args: argparse.Namespace) -> int:
    from imaginet_hub.data.rights import licenses_report, licenses_text, notice

    report = licenses_report(args.dataset)
    if args.notice:
        print(notice(report["licenses"]), end="")
    else:
        print(json.dumps(report, indent=2, ensure_ascii=False) if args.json else _harmless(licenses_text(report)))
    return 0


def _demo(args: argparse.Namespace) -> int:
    from imaginet_hub.demo.run import run

    with contextlib.ExitStack() as stack:
        if getattr(args, "quiet", False):
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))  # noqa: PTH123
        elif args.json:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        measured = run(Path(args.out))
    if args.json:
        print(json.dumps(measured, indent=2, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
