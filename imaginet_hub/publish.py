"""The only uploader: a model folder or a built dataset becomes a repository on the Hub.

`plan_push` looks and decides, without network or token: which files go, which are refused and why, and of which rows
the publisher has not said that they may be passed on. `push` acts: one commit, so that nobody ever sees half of it.
Files that the Hub has already are not sent again, so that an interrupted push goes on and a second one moves nothing.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import httpx2
import huggingface_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import filter_repo_objects, logging, validate_repo_id

from imaginet_hub.cards import AUDIT, card_metadata, check_card, dataset_card, is_rendered, render_folder
from imaginet_hub.data.builder import BUILD_REPORT
from imaginet_hub.data.folders import staged
from imaginet_hub.data.rights import NOTICE, notice, rights_of, rights_rows
from imaginet_hub.data.units import human_bytes, one_line
from imaginet_hub.data.withheld import WITHHELD, redistributable, write_redistributable
from imaginet_hub.errors import DataNotFoundError, ImagiNetError, PublishError, UsageError
from imaginet_hub.screening import refusal

__all__ = ["PlannedFile", "PushPlan", "Rows", "plan_push", "push"]

_CARD = "README.md"
_PERTURB_REPORT = "perturb_report.json"
#: What tools leave in folders, and the Hub's own client passes over too.
_LEFT_BY_TOOLS = (".git", ".cache", "__pycache__", ".DS_Store", ".ipynb_checkpoints")
_CODE = ("configuration_selfcon.py", "modeling_selfcon.py", "image_processing_selfcon.py")
_SHARD = re.compile(r"data/[^/]+-\d{5}-of-\d{5}\.parquet")
#: What this package writes into a repository, beside README.md and NOTICE. Of an earlier push it would be read with
#: the new files, so that it goes if it does not come again; nothing else on the Hub is touched.
_OWN = {
    "dataset": re.compile(
        rf"{_SHARD.pattern}|(build|perturb)_report\.json|audit\.json|withheld\.(csv|classes\.json)|missing\.txt"
    ),
    "model": re.compile(
        r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|training\.json|results/[^/]+\.json|"
        + "|".join(map(re.escape, _CODE))
    ),
}
#: What else may lie beside the rows of a dataset, whose terms speak of the rows alone: text.
_TEXT = re.compile(
    r"(?i)(.*/)?((licen[cs]e|notice|authors|changelog)[^/]*|[^/]+\.(md|txt|json|ya?ml|bib|cff))|\.gitattributes"
)
_ATTEMPTS = 5
_PASSING = (429, 500, 502, 503, 504)
_MOST_PATIENCE_S = 60.0
#: Of a connection that was refused: the client itself has tried several times by then.
_LONG_REFUSAL_S = 10.0

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class PlannedFile:
    """A file of the repository to be.

    Attributes:
        name: its path in the repository; of shards that are yet to be written a pattern.
        size: bytes; of what is yet to be written about as many, or None.
        license: what is known of its terms.
        refused: why it must not go, or None.
        state: of the file when it was looked at.
    """

    name: str
    size: int | None
    license: str
    refused: str | None = None
    state: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rows:
    """Rows of one source under one licence.

    Attributes:
        source, license: their columns.
        images: how many.
    """

    source: str
    license: str
    images: int


@dataclass(frozen=True)
class PushPlan:
    """What a push would do.

    Attributes:
        folder: what is pushed.
        repo_id, repo_type: where to.
        files: that go, and that are refused, in order of their names.
        withheld: rows that stay here, since their licence is not known to allow passing them on. If there are any,
            what goes is a repository of the other rows with a list of these.
        freed: rows that go because the publisher says so.
        kept: number of rows that go; None for a model.
        redistribute: what the publisher says may be passed on.
        rendered: name -> text of what goes as it is made now: README.md and, of a dataset, NOTICE.
        exclude: patterns of what stays as it is, here and there.
    """

    folder: Path
    repo_id: str
    repo_type: str
    files: tuple[PlannedFile, ...]
    withheld: tuple[Rows, ...]
    freed: tuple[Rows, ...]
    kept: int | None
    redistribute: tuple[str, ...]
    rendered: Mapping[str, str]
    exclude: tuple[str, ...] = ()

    @property
    def refused(self) -> tuple[PlannedFile, ...]:
        """Files that must not go; a push with any goes nowhere."""
        return tuple(file for file in self.files if file.refused is not None)

    @property
    def rows_withheld(self) -> int:
        """How many rows stay here."""
        return sum(group.images for group in self.withheld)

    @property
    def fine(self) -> bool:
        """Whether everything may go."""
        return not self.refused and not self.withheld

    def to_json(self) -> dict[str, Any]:
        """The plan as the command prints it with --json."""
        return {
            "path": str(self.folder),
            "repo_id": self.repo_id,
            "repo_type": self.repo_type,
            "files": [
                {"path": f.name, "bytes": f.size, "license": f.license, "refused": f.refused} for f in self.files
            ],
            "rows": None if self.kept is None else {"published": self.kept, "withheld": self.rows_withheld},
            "withheld": [vars(group) for group in self.withheld],
            "freed": [vars(group) for group in self.freed],
            "redistribute": list(self.redistribute),
        }

    def text(self) -> str:
        """The plan for people."""
        about = "about " if self.withheld else ""
        size = human_bytes(sum(file.size or 0 for file in self.files if file.refused is None))
        lines = [f"{self.folder} -> {self.repo_type} {self.repo_id}: {len(self.files):,} files, {about}{size}"]
        width = max((len(one_line(file.name)) for file in self.files), default=0)
        for file in self.files:
            what = f"REFUSED: {file.refused}" if file.refused else file.license
            shown = "?" if file.size is None else human_bytes(file.size)
            lines.append(f"  {one_line(file.name):<{width}}  {shown:>8}  {one_line(what)}")
        if self.freed:
            lines.append(f"Passed on because you say that you may (--redistribute {', '.join(self.redistribute)}):")
            lines += _listed(self.freed)
        if self.withheld:
            lines.append(f"REFUSED: {self.rows_withheld:,} rows, whose licence is not known to allow passing them on:")
            lines += _listed(self.withheld)
            lines.append("  If you have the right to: --redistribute SOURCE or LICENCE, or all.")
            if self.kept:
                lines.append(
                    f"Without them {self.kept:,} rows are published, with a list of the others and the command that "
                    "rebuilds all of them."
                )
        return "\n".join(lines)


def _listed(groups: Sequence[Rows]) -> list[str]:
    lines = [f"  {group.images:>9,}  {one_line(group.source)}: {one_line(group.license)}" for group in groups[:20]]
    return lines + ([f"  ... and {len(groups) - 20:,} more licences"] if len(groups) > 20 else [])


def plan_push(
    path: str | os.PathLike[str],
    repo_id: str,
    *,
    repo_type: str | None = None,
    redistribute: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> PushPlan:
    """Look at a folder and say what a push would send. Needs neither network nor token.

    Args:
        path: a dataset that `imaginet build` or `imaginet perturb` wrote, or a model folder.
        repo_id: OWNER/NAME on the Hub.
        repo_type: "dataset" or "model"; by default what the folder is.
        redistribute: sources or licences, as in the rows, whose images the publisher has the right to pass on, or
            "all" (see `withheld.redistributable`).
        exclude: patterns of paths that stay here (and, if they are on the Hub, there), as `hf upload` takes them.

    Raises:
        DataNotFoundError: no such folder.
        UsageError: an id, a type, a statement or a pattern that cannot be used.
        PublishError: the folder is neither a built dataset nor a model, its card is not what its files render, or its
            rows are not those that it counts.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataNotFoundError(
            f"expected a folder that `imaginet build`, `perturb`, `train`, `train-head` or `convert` wrote, found "
            f"{'a file' if folder.exists() else 'nothing'} at {folder}"
        )
    folder = folder.resolve()
    _check_repo_id(repo_id)
    is_type = _type_of(folder)
    if repo_type not in (None, is_type):
        raise UsageError(f"--repo-type: {folder} is a {is_type}, got {repo_type!r}; leave the option out")
    if redistribute and is_type == "model":
        raise UsageError("--redistribute is about rows of a dataset; a model has none")
    withheld: tuple[Rows, ...] = ()
    freed: tuple[Rows, ...] = ()
    kept = None
    rendered = {_CARD: _checked_card(folder, repo_id, is_type)}
    if is_type == "dataset":
        division = redistributable(folder, tuple(redistribute))
        rows = {(lic, source): n for (source, lic), n in (*division.kept.items(), *division.withheld.items())}
        for (source, license_), images in division.kept.items():
            rows[license_, source] = images + division.withheld.get((source, license_), 0)
        report = _report(folder)
        _check_counts(folder, report, rows)
        withheld, kept = _by_images(division.withheld), sum(division.kept.values())
        freed = tuple(r for r in _by_images(division.kept) if rights_of(r.license, r.source).redistribution != "yes")
        stated = (*report.get("stated", ()), *redistribute)
        rendered[NOTICE] = notice(rights_rows(rows), stated=stated, withheld=report.get("withheld", ()))
    files = _planned(folder, repo_id, is_type, tuple(exclude), rendered)
    if withheld:
        files = _without(files, kept or 0, sum(group.images for group in withheld))
    return PushPlan(
        folder, repo_id, is_type, files, withheld, freed, kept, tuple(redistribute), rendered, tuple(exclude)
    )


def _by_images(counts: Mapping[tuple[str, str], int]) -> tuple[Rows, ...]:
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return tuple(Rows(source, license_, images) for (source, license_), images in order)


def push(
    plan: PushPlan,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    show: Callable[[str], None] | None = None,
) -> str:
    """Do what the plan says, in one commit.

    A repository that is not there is made. What the Hub holds already is not sent again. Files of an earlier push that
    are not in this one and would be read with it (Parquet files, weights) are removed by the same commit.

    Args:
        plan: see `plan_push`; nothing in it may be refused but rows, which stay here.
        private: make the repository private; one that is public already is refused.
        revision: branch to push to; made if it is not there. Or refs/pr/N, an open pull request. Default: main.
        create_pr: propose the commit as a pull request, a new one each time.
        token: of the Hub; by default as `hf auth login` or HF_TOKEN left it.
        show: told of what is done on the way, a line at a time.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        PublishError: something is refused, or the Hub did not take it.
        UsageError: `create_pr` with a `revision`.
    """
    say = show or (lambda text: None)
    if revision == "":
        raise UsageError("--revision: expected the name of a branch, got nothing")
    if create_pr and revision not in (None, "main"):
        raise UsageError("--create-pr proposes to main; leave --revision out")
    if plan.refused:
        raise PublishError(_refusals(plan.refused))
    if plan.withheld and not plan.kept:
        raise PublishError(
            f"{plan.folder}: no row's licence is known to allow passing it on, so there is nothing to publish; "
            "--dry-run lists them, --redistribute says what you have the right to"
        )
    if plan.withheld and (plan.folder / _PERTURB_REPORT).is_file():
        raise PublishError(
            f"{plan.folder}: a rendered test set is published whole or not at all, and {plan.rows_withheld:,} of its "
            "rows may not be passed on, as far as is known; say that you have the right to with --redistribute, or "
            "render a dataset without them"
        )
    api = HfApi(token=token, library_name="imaginet_hub")
    with _quiet_client(), _speaking(plan):
        if huggingface_hub.is_offline_mode():
            raise PublishError(f"{plan.repo_id}: HF_HUB_OFFLINE is set, so nothing can be pushed; unset it")
        say(f"logged in as {_patiently(api.whoami, say).get('name')}")
        _patiently(
            lambda: api.create_repo(plan.repo_id, repo_type=plan.repo_type, private=private or None, exist_ok=True),
            say,
        )
        if private and not _patiently(lambda: api.repo_info(plan.repo_id, repo_type=plan.repo_type), say).private:
            raise PublishError(
                f"{plan.repo_id} is there and public, so --private cannot be kept; make it private on its settings "
                "page, or choose another name"
            )
        if revision not in (None, "main") and not str(revision).startswith("refs/"):  # refs/pr/1 is there or not
            _patiently(
                lambda: api.create_branch(plan.repo_id, branch=str(revision), repo_type=plan.repo_type, exist_ok=True),
                say,
            )

        with _sent(plan, say) as sent:  # what may take an hour comes after what may be refused
            commit = partial(_commit, api, plan, sent, revision, create_pr, say)
            # A pull request whose answer was lost is there all the same: asking again would make a second.
            return commit() if create_pr else _patiently(commit, say)


def _commit(
    api: HfApi,
    plan: PushPlan,
    sent: Mapping[str, Path | bytes],
    revision: str | None,
    create_pr: bool,
    say: Callable[[str], None],
) -> str:
    where: dict[str, Any] = {"repo_type": plan.repo_type, "revision": revision}
    head = api.repo_info(plan.repo_id, **where).sha
    there = api.list_repo_files(plan.repo_id, **where)
    adds = [CommitOperationAdd(name, content) for name, content in sorted(sent.items())]
    own = _OWN[plan.repo_type]
    stale = [name for name in there if own.fullmatch(name) and name not in sent]
    gone = list(filter_repo_objects(stale, ignore_patterns=[*plan.exclude]))
    if gone:
        more = f" and {len(gone) - 5:,} more" if len(gone) > 5 else ""
        say(f"removing what an earlier push put there: {', '.join(map(one_line, gone[:5]))}{more}")
    say(f"sending {len(adds):,} files; what is there already is not sent again")
    api.preupload_lfs_files(plan.repo_id, adds, **where, create_pr=create_pr, free_memory=False)
    ignored = [add.path_in_repo for add in adds if getattr(add, "_should_ignore", False)]
    if ignored:
        raise PublishError(
            f"{plan.repo_id}: a .gitignore there names {len(ignored):,} of the files, such as {one_line(ignored[0])}, "
            "so they would be left out; remove it from the repository, or use --exclude"
        )
    done = api.create_commit(
        plan.repo_id,
        [*adds, *map(CommitOperationDelete, gone)],
        **where,
        create_pr=create_pr,
        commit_message="Push by imaginet_hub",
        parent_commit=head,
    )
    if done.oid == head:
        say("nothing has changed since the last push; no commit was made")
    elif plan.withheld and any(map(_SHARD.fullmatch, there)):
        say(
            "rows that earlier commits held are still in the repository's history; HfApi().super_squash_history "
            "removes it"
        )
    return str(done.pr_url or done.commit_url)


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UsageError(f"REPO_ID: expected OWNER/NAME as on the Hub, got {repo_id!r}: {error}") from error
    if repo_id.count("/") != 1:
        raise UsageError(f"REPO_ID: expected OWNER/NAME as on the Hub, got {repo_id!r}")


def _type_of(folder: Path) -> str:
    if (folder / BUILD_REPORT).is_file() or (folder / _PERTURB_REPORT).is_file():
        return "dataset"
    if (folder / "config.json").is_file():
        return "model"
    raise PublishError(
        f"{folder} is neither a dataset that `imaginet build` or `imaginet perturb` wrote ({BUILD_REPORT}) nor a "
        "model folder (config.json); only these are published, because only their cards and licences can be told"
    )


def _report(folder: Path) -> dict[str, Any]:
    """What a dataset says of itself; a division of an earlier one also what was withheld."""
    file = folder / BUILD_REPORT
    return json.loads((file if file.is_file() else folder / _PERTURB_REPORT).read_text(encoding="utf-8"))


def _checked_card(folder: Path, repo_id: str, repo_type: str) -> str:
    """README.md as it is to be published: rendered, and but for the repository's name the one that is there."""
    card = render_folder(folder, repo_id)
    if not is_rendered(folder):
        raise PublishError(
            f"{folder / _CARD} is not what the folder's own files give, and figures are not typed into cards; "
            f"run: imaginet card {folder}"
        )
    wrong = check_card(card, repo_type)
    if wrong:
        raise PublishError(f"{folder / _CARD}: {'; '.join(wrong)}")
    return card


def _check_counts(folder: Path, report: Mapping[str, Any], rows: Mapping[tuple[str, str], int]) -> None:
    """Card and NOTICE count what the report counts; so that had better be what is in the files."""
    total = sum(rows.values())
    counted = [sum(facts["images"] for facts in report["splits"].values())] if "splits" in report else []
    counted.append(report.get("images", report.get("rows")))
    by_terms = {(row["license"], row["source"]): row["images"] for row in report.get("rights", ())}
    if any(number != total for number in counted) or (by_terms and by_terms != rows):
        raise PublishError(
            f"{folder}: expected the rows that the report counts ({counted[-1]}), found {total:,} in data/, or "
            "others; build it again"
        )


def _planned(
    folder: Path, repo_id: str, repo_type: str, exclude: Sequence[str], rendered: Mapping[str, str]
) -> tuple[PlannedFile, ...]:
    """Every file below the folder, and what is rendered."""
    there = dict(_walk(folder))
    names = sorted({*there, *rendered})
    wanted = set(filter_repo_objects(names, ignore_patterns=[*exclude]))
    needed = [n for n in names if n in rendered or (repo_type == "dataset" and _OWN["dataset"].fullmatch(n))]
    for name in needed:
        if name not in wanted:
            raise UsageError(f"--exclude: {name} belongs to what is published, or it is not what its card says")
    terms = _Licenses(rendered[_CARD], repo_type)
    files = []
    for name in names:
        if name not in wanted:
            continue
        if name in rendered:
            files.append(PlannedFile(name, len(rendered[name].encode()), terms.of(name)))
        else:
            files.append(_looked_at(there[name], name, folder, repo_id, repo_type, terms))
    return tuple(files)


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file below a folder, and links to folders, by its path in there."""
    for parent, folders, names in os.walk(folder):
        below = Path(parent).relative_to(folder)
        linked = [name for name in folders if (Path(parent) / name).is_symlink()]
        folders[:] = [name for name in folders if name not in _LEFT_BY_TOOLS and name not in linked]
        for name in [*names, *linked]:
            if name not in _LEFT_BY_TOOLS:
                yield (below / name).as_posix(), Path(parent) / name


class _Licenses:
    """What to say of a file's terms, from the card's metadata and the rows."""

    def __init__(self, card: str, repo_type: str) -> None:
        metadata = card_metadata(card) or {}
        stated = metadata.get("license_name") or metadata.get("license") or "no licence stated"
        self._stated = "the publisher's own" if repo_type == "dataset" else str(stated)

    def of(self, name: str) -> str:
        if name.endswith(".parquet"):
            return "per row, see NOTICE"
        return "apache-2.0 (code)" if name in _CODE else self._stated


def _looked_at(file: Path, name: str, folder: Path, repo_id: str, repo_type: str, terms: _Licenses) -> PlannedFile:
    size, why = 0, None
    state: tuple[int, ...] = ()
    try:
        if not file.resolve(strict=True).is_relative_to(folder):
            why = "it leads out of the folder"
        else:
            facts = file.stat()
            size, state = facts.st_size, _state(facts)
            if not stat.S_ISREG(facts.st_mode):
                why = "a link to a folder" if stat.S_ISDIR(facts.st_mode) else "not a regular file"
            elif not name.isprintable() or "\\" in name:
                why = "its name cannot be one on the Hub"
            else:
                why = _foreign(name, repo_type) or refusal(file, name, repo_type, PurePosixPath(repo_id).name)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        why = f"it cannot be read ({error})"
    return PlannedFile(name, size, terms.of(name), why, state)


def _foreign(name: str, repo_type: str) -> str | None:
    """Of a dataset: whether a file is none of its own, so that no row tells its terms."""
    if repo_type == "model" or _OWN["dataset"].fullmatch(name) or _TEXT.fullmatch(name) or name.endswith(".py"):
        return None
    return "neither a file of the build nor text, so nothing tells whether it may be passed on"


def _state(facts: os.stat_result) -> tuple[int, ...]:
    return facts.st_size, facts.st_mtime_ns, facts.st_ino


def _without(files: Sequence[PlannedFile], kept: int, withheld: int) -> tuple[PlannedFile, ...]:
    """The files of a repository without the rows that stay here, as far as can be said before it is written."""
    share = kept / (kept + withheld)
    shards: dict[str, PlannedFile] = {}
    others = []
    for file in files:
        if file.refused is None and _SHARD.fullmatch(file.name):
            name = file.name[: -len("-00000-of-00000.parquet")] + "-*.parquet"
            size = int((file.size or 0) * share) + (shards[name].size or 0 if name in shards else 0)
            shards[name] = PlannedFile(name, size, file.license)
        else:
            others.append(file)
    listed = PlannedFile(WITHHELD, None, "the publisher's own")
    return tuple(sorted([*others, *shards.values(), listed], key=lambda file: file.name))


def _refusals(files: Sequence[PlannedFile]) -> str:
    lines = [f"  {one_line(file.name)}: {one_line(file.refused or '')}" for file in files[:20]]
    more = f"\n  ... and {len(files) - 20:,} more" if len(files) > 20 else ""
    return (
        f"nothing was pushed, because {len(files):,} files are refused; remove them, or use --exclude:\n"
        + "\n".join(lines)
        + more
    )


@contextmanager
def _sent(plan: PushPlan, say: Callable[[str], None]) -> Iterator[Mapping[str, Path | bytes]]:
    """What goes, by name: the whole folder, or a repository without the rows that stay here."""
    sent: dict[str, Path | bytes] = {}
    if not plan.withheld:
        sent |= {file.name: plan.folder / file.name for file in plan.files if _unchanged(plan, file)}
        yield sent | {name: text.encode() for name, text in plan.rendered.items()}
        return
    say(f"{plan.kept:,} rows go; {plan.rows_withheld:,} stay here, and a list of them goes (--dry-run says which)")
    own = _OWN["dataset"]
    beside = [f for f in plan.files if not own.fullmatch(f.name) and f.state and _unchanged(plan, f)]
    with staged(plan.folder.with_name(f"{plan.folder.name}-push")) as scratch:  # beside it: there is room for such
        folder = scratch / plan.folder.name
        write_redistributable(plan.folder, folder, plan.redistribute, render_card=dataset_card)
        for name in (_CARD, AUDIT):  # what a person states in the card's YAML is kept, and the audit of all rows
            if (plan.folder / name).is_file():
                shutil.copyfile(plan.folder / name, folder / name)
        card = render_folder(folder, plan.repo_id)
        made = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        for name, path in made.items():
            why = refusal(path, name, plan.repo_type, PurePosixPath(plan.repo_id).name)
            if why is not None:
                raise PublishError(
                    f"nothing was pushed, because {name} without the rows that stay here is refused: {why}"
                )
        sent |= {file.name: plan.folder / file.name for file in beside}
        yield sent | made | {_CARD: card.encode()}


def _unchanged(plan: PushPlan, file: PlannedFile) -> bool:
    """That a file is still the one that was looked at."""
    if file.name in plan.rendered:
        return True
    path = plan.folder / file.name
    try:
        same = path.resolve(strict=True).is_relative_to(plan.folder) and _state(path.stat()) == file.state
    except OSError:
        same = False
    if not same:
        raise PublishError(f"{path} has changed since it was looked at; run the same command again")
    return True


def _patiently(call: Callable[[], _Result], say: Callable[[str], None]) -> _Result:
    """Ask again where the Hub is busy or the line was cut. Every call here may be made twice.

    (What goes to the storage of large files the client itself tries several times.)
    """
    for attempt in range(1, _ATTEMPTS):
        started = time.monotonic()
        try:
            return call()
        except (HfHubHTTPError, httpx2.TransportError) as error:
            wait = 2.0**attempt / 2
            if isinstance(error, httpx2.ConnectError) and time.monotonic() - started > _LONG_REFUSAL_S:
                raise
            if isinstance(error, HfHubHTTPError):
                if error.response.status_code not in _PASSING:
                    raise
                asked = error.response.headers.get("retry-after", "")
                wait = min(float(asked), _MOST_PATIENCE_S) if asked.isdigit() else wait
            say(f"the Hub: {_reason(error)}; again in {wait:.0f} s")
            time.sleep(wait)
    return call()


def _reason(error: BaseException) -> str:
    """What went wrong, in a line; without what signs an address, which would let whoever reads it write there."""
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, HfHubHTTPError):
        said = f"{error.response.status_code} {error.response.reason_phrase}: {error.server_message or said}"
    return one_line(re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", said)[:300])


#: What a status of the Hub means for somebody who publishes.
_REMEDIES: Mapping[int, str] = {
    400: "mend that and run the same command again",
    401: "log in with `hf auth login`, or set HF_TOKEN, with a token that may write",
    402: "make room there, or publish it openly",
    403: "the token may not write there: use one with write access to {owner}, or another owner",
    404: "check the name, and that the token may see it",
    412: "somebody else has pushed meanwhile; run the same command again",
    413: "the Hub takes no files of that size",
    422: "mend that and run the same command again",
    429: "the Hub asks for patience; run the same command again later",
}


@contextmanager
def _quiet_client() -> Iterator[None]:
    """What the client logs on the way (addresses that are signed among it) is said here, in a line, or not at all."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def _speaking(plan: PushPlan) -> Iterator[None]:
    """Whatever the Hub or the way to it comes up with becomes one line."""
    again = "run the same command again: what is there already is not sent again"
    try:
        yield
    except ImagiNetError:
        raise
    except huggingface_hub.errors.LocalTokenNotFoundError as error:
        raise PublishError(f"{plan.repo_id}: no token of the Hub was found; {_REMEDIES[401]}") from error
    except (HfHubHTTPError, httpx2.HTTPError, ValueError, RuntimeError, OSError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        remedy = again
        if isinstance(cause, HfHubHTTPError):
            status, owner = cause.response.status_code, plan.repo_id.split("/")[0]
            elsewhere = not str(cause.response.request.url).startswith(huggingface_hub.constants.ENDPOINT)
            if not (elsewhere and status in (401, 403, 404)):  # storage has addresses that expire, and knows no tokens
                remedy = _REMEDIES.get(status, again).format(owner=owner)
        raise PublishError(f"{plan.repo_id}: the push did not come through ({_reason(cause)}); {remedy}") from error
