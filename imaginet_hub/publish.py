"""The only uploader: a model folder or a built dataset becomes a repository on the Hub.

`plan_push` looks and decides, without network or token: which files go, which are refused and why, and of which rows
the publisher has not said that they may be passed on. `push` acts: one commit, so that nobody ever sees half of it.
Files that the Hub has already are not sent again, so that an interrupted push goes on and a second one moves nothing.
"""

from __future__ import annotations

import fnmatch
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
from huggingface_hub.utils import logging, validate_repo_id

from imaginet_hub.cards import card_metadata, check_card, dataset_card, is_rendered, render_folder
from imaginet_hub.data.builder import BUILD_REPORT
from imaginet_hub.data.folders import staged
from imaginet_hub.data.rights import NOTICE, notice, rights_rows
from imaginet_hub.data.units import human_bytes, one_line
from imaginet_hub.data.withheld import redistributable, write_redistributable
from imaginet_hub.errors import DataNotFoundError, ImagiNetError, PublishError, UsageError
from imaginet_hub.screening import refusal

__all__ = ["PlannedFile", "PushPlan", "Withheld", "plan_push", "push"]

_CARD = "README.md"
_PERTURB_REPORT = "perturb_report.json"
_TYPES = ("dataset", "model")
#: What tools leave in folders, and the Hub's own client passes over too.
_LEFT_BY_TOOLS = (".git", ".cache", "__pycache__", ".DS_Store", ".ipynb_checkpoints")
#: Files of an earlier push that would be read with the new ones: they go if they are not pushed again.
_OURS = {
    "dataset": ("data/*.parquet", "withheld.csv", "missing.txt", "NOTICE", "audit.json", "*_report.json"),
    "model": ("*.safetensors", "*.safetensors.index.json", "*.py", "results/*", "training.json", ".eval_results/*"),
}
_ATTEMPTS = 5
_PASSING = (429, 500, 502, 503, 504)
_MOST_PATIENCE_S = 60.0

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class PlannedFile:
    """A file of the folder.

    Attributes:
        name: its path in the repository.
        size: bytes.
        license: what is known of its terms.
        refused: why it must not go, or None.
    """

    name: str
    size: int
    license: str
    refused: str | None = None


@dataclass(frozen=True)
class Withheld:
    """Rows whose licence does not allow passing them on, as far as is known.

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
        files: all of them, in order of their names.
        withheld: rows that stay here; if there are any, `files` are those of the whole folder, and what goes is a
            repository of the other rows with a manifest of these.
        kept: rows that go; None for a model.
        redistribute: what the publisher says may be passed on.
        rendered: name -> text of what goes as it is made now: README.md and, of a dataset, NOTICE.
    """

    folder: Path
    repo_id: str
    repo_type: str
    files: tuple[PlannedFile, ...]
    withheld: tuple[Withheld, ...]
    kept: int | None
    redistribute: tuple[str, ...]
    rendered: Mapping[str, str]

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
        return {
            "path": str(self.folder),
            "repo_id": self.repo_id,
            "repo_type": self.repo_type,
            "files": [
                {"path": f.name, "bytes": f.size, "license": f.license, "refused": f.refused} for f in self.files
            ],
            "rows": None if self.kept is None else {"published": self.kept, "withheld": self.rows_withheld},
            "withheld": [{"source": w.source, "license": w.license, "images": w.images} for w in self.withheld],
            "redistribute": list(self.redistribute),
        }

    def text(self) -> str:
        """The plan for people."""
        size = sum(file.size for file in self.files)
        lines = [f"{self.folder} -> {self.repo_type} {self.repo_id}: {len(self.files):,} files, {human_bytes(size)}"]
        width = max((len(one_line(file.name)) for file in self.files), default=0)
        for file in self.files:
            what = f"REFUSED: {file.refused}" if file.refused else file.license
            lines.append(f"  {one_line(file.name):<{width}}  {human_bytes(file.size):>8}  {one_line(what)}")
        if self.withheld:
            total = self.rows_withheld
            lines.append(
                f"REFUSED: {total:,} rows, whose licence is not known to allow passing them on. Without them "
                f"{self.kept:,} rows are published, with a manifest of the others and the command that rebuilds all "
                "(so Parquet files and the card get smaller):"
                if self.kept
                else f"REFUSED: all {total:,} rows, whose licence is not known to allow passing them on:"
            )
            for group in self.withheld[:20]:
                lines.append(f"  {group.images:>9,}  {one_line(group.source)}: {one_line(group.license)}")
            if len(self.withheld) > 20:
                lines.append(f"  ... and {len(self.withheld) - 20:,} more licences")
            lines.append("  If you have the right to: --redistribute SOURCE or LICENCE, or all")
        return "\n".join(lines)


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
        exclude: patterns of paths that stay here, as `hf upload` takes them.

    Raises:
        DataNotFoundError: no such folder.
        UsageError: an id, a type or a statement that cannot be used.
        PublishError: the folder is neither a built dataset nor a model, or its card is not what its files render.
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
    withheld: tuple[Withheld, ...] = ()
    kept = None
    rendered = {_CARD: _checked_card(folder, repo_id, is_type)}
    if is_type == "dataset":
        division = redistributable(folder, tuple(redistribute))
        withheld = tuple(
            Withheld(source, license_, images)
            for (source, license_), images in sorted(division.withheld.items(), key=lambda item: (-item[1], item[0]))
        )
        kept = sum(division.kept.values())
        rows = {
            (license_, source): n for (source, license_), n in (*division.kept.items(), *division.withheld.items())
        }
        report = _report(folder)
        stated = (*report.get("stated", ()), *redistribute)
        rendered[NOTICE] = notice(rights_rows(rows), stated=stated, withheld=report.get("withheld", ()))
    licenses = _Licenses(rendered[_CARD], is_type, withheld)
    found = dict.fromkeys(rendered, (0, None)) | dict(_files(folder, repo_id, is_type, tuple(exclude)))
    files = tuple(
        PlannedFile(name, len(rendered[name].encode()) if name in rendered else size, licenses.of(name), why)
        for name, (size, why) in sorted(found.items())
    )
    return PushPlan(folder, repo_id, is_type, files, withheld, kept, tuple(redistribute), rendered)


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

        with _published(plan, say) as (folder, rendered):  # what may take an hour comes after what may be refused
            commit = partial(_commit, api, plan, folder, rendered, revision, create_pr, say)
            # A pull request whose answer was lost is there all the same: asking again would make a second.
            return commit() if create_pr else _patiently(commit, say)


def _commit(
    api: HfApi,
    plan: PushPlan,
    folder: Path,
    rendered: Mapping[str, str],
    revision: str | None,
    create_pr: bool,
    say: Callable[[str], None],
) -> str:
    where: dict[str, Any] = {"repo_type": plan.repo_type, "revision": revision}
    head = api.repo_info(plan.repo_id, **where).sha
    operations = _operations(folder, plan, rendered, api.list_repo_files(plan.repo_id, **where))
    adds = [operation for operation in operations if isinstance(operation, CommitOperationAdd)]
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
        operations,
        **where,
        create_pr=create_pr,
        commit_message="Push by imaginet_hub",
        parent_commit=head,
    )
    if done.oid == head:
        say("nothing has changed since the last push; no commit was made")
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
    """What a build says of itself; of a division of an earlier one, also what was withheld."""
    file = folder / BUILD_REPORT
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


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


class _Licenses:
    """What to say of a file's terms, from the card's metadata and the rows."""

    def __init__(self, card: str, repo_type: str, withheld: Sequence[Withheld]) -> None:
        metadata = card_metadata(card) or {}
        stated = metadata.get("license_name") or metadata.get("license") or "no licence stated"
        self._rows = "per row, see NOTICE" + (", without what is refused below" if withheld else "")
        self._stated = "the publisher's own" if repo_type == "dataset" else str(stated)

    def of(self, name: str) -> str:
        if name.endswith(".parquet"):
            return self._rows
        if name.endswith(".py"):
            return "apache-2.0 (code)"
        return self._stated


def _files(
    folder: Path, repo_id: str, repo_type: str, exclude: Sequence[str]
) -> Iterator[tuple[str, tuple[int, str | None]]]:
    """Every file below the folder with its size, and why it must not go."""
    for parent, folders, names in os.walk(folder):
        folders.sort()
        below = Path(parent).relative_to(folder)
        linked = [name for name in folders if (Path(parent) / name).is_symlink()]
        folders[:] = [name for name in folders if name not in _LEFT_BY_TOOLS and name not in linked]
        for base in sorted([*names, *linked]):
            name = (below / base).as_posix()
            if base in _LEFT_BY_TOOLS or any(fnmatch.fnmatch(name, pattern) for pattern in exclude):
                continue
            yield name, _looked_at(Path(parent) / base, name, folder, repo_id, repo_type)


def _looked_at(file: Path, name: str, folder: Path, repo_id: str, repo_type: str) -> tuple[int, str | None]:
    try:
        if not file.resolve(strict=True).is_relative_to(folder):
            return 0, "it leads out of the folder"
        facts = file.stat()
        if not stat.S_ISREG(facts.st_mode):
            return 0, "a link to a folder" if stat.S_ISDIR(facts.st_mode) else "not a regular file"
        if not name.isprintable() or "\\" in name:
            return facts.st_size, "its name cannot be one on the Hub"
        return facts.st_size, refusal(file, name, repo_type, PurePosixPath(repo_id).name)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        return 0, f"it cannot be read ({error})"


def _refusals(files: Sequence[PlannedFile]) -> str:
    lines = [f"  {one_line(file.name)}: {one_line(file.refused or '')}" for file in files[:20]]
    more = f"\n  ... and {len(files) - 20:,} more" if len(files) > 20 else ""
    return (
        f"nothing was pushed, because {len(files):,} files are refused; remove them, or use --exclude:\n"
        + "\n".join(lines)
        + more
    )


@contextmanager
def _published(plan: PushPlan, say: Callable[[str], None]) -> Iterator[tuple[Path, Mapping[str, str]]]:
    """The folder that goes and what is rendered for it: the whole one, or one without the rows that stay here."""
    if not plan.withheld:
        yield plan.folder, plan.rendered
        return
    say(f"{plan.kept:,} rows go; {plan.rows_withheld:,} stay here, and a manifest of them goes (--dry-run lists them)")
    with staged(plan.folder.with_name(f"{plan.folder.name}-push")) as scratch:  # beside it: there is room for such
        folder = scratch / plan.folder.name
        write_redistributable(plan.folder, folder, plan.redistribute, render_card=dataset_card)
        shutil.copyfile(plan.folder / _CARD, folder / _CARD)  # what a person states in its YAML is kept
        yield folder, {_CARD: render_folder(folder, plan.repo_id)}


def _operations(
    folder: Path, plan: PushPlan, rendered: Mapping[str, str], remote: Sequence[str]
) -> list[CommitOperationAdd | CommitOperationDelete]:
    names = [file.name for file in plan.files]
    if folder != plan.folder:
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    adds = [CommitOperationAdd(name, rendered[name].encode() if name in rendered else folder / name) for name in names]
    gone = [
        name
        for name in remote
        if name not in set(names) and any(fnmatch.fnmatch(name, pattern) for pattern in _OURS[plan.repo_type])
    ]
    return [*adds, *(CommitOperationDelete(name) for name in gone)]


def _patiently(call: Callable[[], _Result], say: Callable[[str], None]) -> _Result:
    """Ask again where the Hub is busy or the line was cut. Every call here may be made twice.

    (What goes to the storage of large files the client itself tries several times.)
    """
    for attempt in range(1, _ATTEMPTS):
        try:
            return call()
        except (HfHubHTTPError, httpx2.TransportError) as error:
            wait = 2.0**attempt / 2
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
    401: "log in with `hf auth login`, or set HF_TOKEN, with a token that may write",
    403: "the token may not write there: use one with write access to {owner}, or another owner",
    404: "check the name, and that the token may see it",
    412: "somebody else has pushed meanwhile; run the same command again",
    413: "the Hub takes no files of that size",
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
            owner = plan.repo_id.split("/")[0]
            remedy = _REMEDIES.get(cause.response.status_code, again).format(owner=owner)
        raise PublishError(f"{plan.repo_id}: the push did not come through ({_reason(cause)}); {remedy}") from error
