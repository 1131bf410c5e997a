"""A loopback Hub that real clients push to and load from, repositories and refusals included.

    with Hub() as hub:
        api = HfApi(endpoint=hub.endpoint, token=WRITE)
        api.create_repo("me/data", repo_type="dataset")
        subprocess.run([...], env=hub.environ(tmp_path / "home", token=READ))
        hub.repos["dataset", "me/data"].read("README.md")

Large files lie on another origin (`hub.storage`), under signed addresses that take no token, as the real one's do. A
`fault` hook decides, request by request, what goes wrong; `hub.requests` tells what was asked for and how many bytes
of files it brought.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import math
import os
import re
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path, PurePosixPath
from socketserver import TCPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode

__all__ = ["OTHER", "READ", "WRITE", "Account", "Commit", "Fault", "File", "Hook", "Hub", "Repo", "Request", "first"]

WRITE, READ, OTHER = "hf_write", "hf_read", "hf_other"

#: As the Hub puts it into every new repository, shortened to what is seen here.
_LARGE = "7z arrow bin bz2 ckpt gz h5 jpeg jpg npy npz onnx parquet png pt pth rar safetensors tar zip zst"
_ATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in _LARGE.split())
_REVISION = r"(?P<revision>refs/(?:pr|convert)/[^/]+|[^/]+)"
_API = r"/api/(?P<type>model|dataset)s/(?P<repo>[^/]+/[^/]+)"
_PAGE = r"/(?:(?P<type>dataset)s/)?(?P<repo>[^/]+/[^/]+)"
_LFS = rf"{_PAGE[:-1]}?)\.git/info/lfs/objects"
#: Method, pattern of the path as it was sent, and the method of `Hub` that answers.
_ROUTES = [
    (method, re.compile(pattern), name)
    for method, pattern, name in (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("POST", r"/api/repos/create", "create"),
        ("DELETE", r"/api/repos/delete", "delete"),
        ("POST", r"/api/complete_multipart", "complete_multipart"),
        ("GET", _API, "info"),
        ("GET", rf"{_API}/revision/{_REVISION}", "info"),
        ("GET", rf"{_API}/tree/{_REVISION}(?:/(?P<path>.+))?", "tree"),
        ("POST", rf"{_API}/paths-info/{_REVISION}", "paths_info"),
        ("GET", rf"{_API}/refs", "list_refs"),
        ("GET", rf"{_API}/commits/{_REVISION}", "list_commits"),
        ("POST", rf"{_API}/branch/(?P<branch>[^/]+)", "create_branch"),
        ("DELETE", rf"{_API}/branch/(?P<branch>[^/]+)", "delete_branch"),
        ("POST", rf"{_API}/preupload/{_REVISION}", "preupload"),
        ("POST", rf"{_API}/commit/{_REVISION}", "commit"),
        ("POST", rf"{_LFS}/batch", "lfs_batch"),
        ("POST", rf"{_LFS}/verify", "lfs_verify"),
        ("GET", rf"{_PAGE}/resolve/{_REVISION}/(?P<path>.+)", "resolve"),
    )
]


@dataclass
class Request:
    """One request as the server saw it.

    Attributes:
        host: "hub" | "storage".
        method, path: as sent; the path decoded, without the query.
        query: name -> values.
        headers: names in lower case.
        received: bytes of the body.
        files: bytes of files that the body brought: what was put into storage, or is in a commit. (The samples and
            cards that clients show the Hub before they push are not counted.)
        status: what was answered; 0 where there was no answer.
        sent: bytes of the answer's body.
    """

    host: str
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    received: int = 0
    files: int = 0
    status: int = 0
    sent: int = 0


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request.

    Attributes:
        status: answer this with `headers`, and do nothing.
        headers: of that answer.
        message: of that answer.
        cut_upload: reset the connection when so many bytes of the body have come, and do nothing.
        cut_download: do what is asked, and reset the connection when so many bytes of the answer's body have gone;
            -1: before the status line.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = "Internal Error"
    cut_upload: int | None = None
    cut_download: int | None = None


Hook = Callable[[Request], Fault | None]


def first(count: int, fault: Fault, method: str = "", path: str = "", host: str = "") -> Hook:
    """The fault for the first `count` requests of this method and host whose path has the pattern `path` in it."""
    lock, left = threading.Lock(), [count]

    def hook(request: Request) -> Fault | None:
        if method not in ("", request.method) or host not in ("", request.host):
            return None
        if not re.search(path, request.path):
            return None
        with lock:
            left[0] -= 1
            return fault if left[0] >= 0 else None

    return hook


# --- repositories ---------------------------------------------------------------------------------------------------


def git_id(kind: str, data: bytes) -> str:
    """The name of an object in git."""
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class File:
    """A file of a commit: small ones with their bytes, large ones by SHA-256 (`data` is then git's pointer).

    Attributes:
        size: of the content in bytes.
        data: what git keeps.
        sha256: of the content of a large file.
    """

    size: int
    data: bytes
    sha256: str | None = None

    @classmethod
    def large(cls, sha256: str, size: int) -> File:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        return cls(size, pointer.encode(), sha256)

    @property
    def oid(self) -> str:
        return git_id("blob", self.data)

    @property
    def content_id(self) -> str:
        """What tells clients whether the content is theirs: of a large file the SHA-256, else git's id."""
        return self.sha256 or self.oid


def tree_ids(files: Mapping[str, File]) -> dict[str, str]:
    """Folder -> git's id of its tree; "" is the root."""
    children: dict[str, dict[str, File | None]] = {"": {}}
    for path, file in files.items():
        here = PurePosixPath(path)
        children.setdefault(_parent(here), {})[here.name] = file
        for folder in [*here.parents][:-1]:
            children.setdefault(_parent(folder), {})[folder.name] = None
    ids: dict[str, str] = {}
    for below in sorted(children, key=lambda name: len(PurePosixPath(name).parts), reverse=True):
        entries = []
        for name, child in children[below].items():
            mode, oid = ("100644", child.oid) if child else ("40000", ids[f"{below}/{name}" if below else name])
            order = name if child else name + "/"  # git sorts folders as if they ended so
            entries.append((order.encode(), f"{mode} {name}\0".encode() + bytes.fromhex(oid)))
        ids[below] = git_id("tree", b"".join(entry for _, entry in sorted(entries)))
    return ids


def _parent(path: PurePosixPath) -> str:
    return "" if str(path.parent) == "." else str(path.parent)


@dataclass(frozen=True)
class Commit:
    oid: str
    parents: tuple[str, ...]
    files: Mapping[str, File]
    title: str
    author: str
    date: str


@dataclass
class Repo:
    """A repository.

    Attributes:
        type: "model" | "dataset".
        id: OWNER/NAME.
        private: only the owner and `readers` know of it.
        gated: only the owner and `readers` get its files; "auto" | "manual" | False.
        readers: names of accounts.
        refs: "refs/heads/main" -> id of a commit.
        commits: by id.
        objects: SHA-256 -> content of large files, of commits or only uploaded.
    """

    type: str
    id: str
    private: bool = False
    gated: str | bool = False
    readers: set[str] = field(default_factory=set)
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)

    def add(
        self, ref: str, files: Mapping[str, File], title: str, author: str, parent: str | None, text: str = ""
    ) -> Commit:
        now = int(time.time())
        lines = [f"tree {tree_ids(files)['']}", *([f"parent {parent}"] if parent else [])]
        lines += [f"{who} {author} <{author}> {now} +0000" for who in ("author", "committer")]
        oid = git_id("commit", "\n".join([*lines, "", title, *([text] if text else [])]).encode())
        date = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        commit = Commit(oid, (parent,) if parent else (), dict(files), title, author, date)
        self.commits[oid] = commit
        self.refs[ref] = oid
        return commit

    def at(self, revision: str = "main") -> Commit | None:
        for ref in (f"refs/heads/{revision}", revision, f"refs/tags/{revision}"):
            if ref in self.refs:
                return self.commits[self.refs[ref]]
        return self.commits.get(revision)

    def log(self, revision: str = "main") -> list[Commit]:
        """Commits, newest first."""
        commit, found = self.at(revision), []
        while commit is not None:
            found.append(commit)
            commit = self.commits[commit.parents[0]] if commit.parents else None
        return found

    def content(self, file: File) -> bytes:
        return file.data if file.sha256 is None else self.objects[file.sha256]

    def read(self, path: str, revision: str = "main") -> bytes:
        commit = self.at(revision)
        assert commit is not None, f"{self.id} has no {revision}"
        return self.content(commit.files[path])

    def names(self, revision: str = "main") -> list[str]:
        commit = self.at(revision)
        return sorted(commit.files) if commit else []


@dataclass(frozen=True)
class Account:
    """Whose token it is.

    Attributes:
        name: of the user.
        role: "write" | "read", of the token.
        orgs: organisations that the user may write to.
    """

    name: str
    role: str
    orgs: tuple[str, ...] = ()


ACCOUNTS = {
    WRITE: Account("me", "write", ("org",)),
    READ: Account("me", "read", ("org",)),
    OTHER: Account("stranger", "write"),
}


# --- answers --------------------------------------------------------------------------------------------------------


@dataclass
class _Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def _json(value: object, status: int = 200, **headers: str) -> _Answer:
    return _Answer(status, {"Content-Type": "application/json; charset=utf-8", **headers}, json.dumps(value).encode())


class _RefusedError(Exception):
    def __init__(self, status: int, message: str, code: str = "", **more: Any) -> None:
        super().__init__(message)
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer = _json({"error": message, **more}, status, **headers)


def _xml(status: int, code: str, message: str) -> _Answer:
    """Storage's way to say no."""
    text = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return _Answer(status, {"Content-Type": "application/xml"}, text.encode())


def _ranged(request: Request, data: bytes, headers: dict[str, str]) -> _Answer:
    """The data as far as it is asked for."""
    headers = {"Accept-Ranges": "bytes", **headers}
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if not wanted or wanted.groups() == ("", ""):
        return _Answer(200, headers, data)
    low, high = wanted.groups()
    start = int(low) if low else max(0, len(data) - int(high))
    end = min(len(data) - 1, int(high)) if low and high else len(data) - 1
    if start > end:
        return _Answer(416, {**headers, "Content-Range": f"bytes */{len(data)}"})
    return _Answer(206, {**headers, "Content-Range": f"bytes {start}-{end}/{len(data)}"}, data[start : end + 1])


@dataclass
class _Call:
    """A request of a route: who asks, with what."""

    request: Request
    account: Account | None
    body: bytes
    groups: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def flag(self, name: str) -> bool:
        return self.request.query.get(name, [""])[-1].lower() in ("1", "true")


# --- the server -----------------------------------------------------------------------------------------------------


class Hub:
    """See the module.

    Args:
        accounts: token -> whose it is.
        fault: what goes wrong; may be set at any time.
        multipart_over: bytes over which a large file is put in parts of that size.
        large_over: bytes over which a file is a large one whatever its name.
        page: entries of a page of a listing.

    Attributes:
        repos: (type, id) -> repository.
        requests: all, in order of their arrival.
        endpoint: address of the Hub.
        storage: address of where large files lie.
    """

    def __init__(
        self,
        *,
        accounts: Mapping[str, Account] = ACCOUNTS,
        fault: Hook | None = None,
        multipart_over: int = 2**40,
        large_over: int = 10 * 2**20,
        page: int = 1000,
    ) -> None:
        self.accounts = dict(accounts)
        self.fault = fault
        self.multipart_over = multipart_over
        self.large_over = large_over
        self.page = page
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[Request] = []
        self.lock = threading.RLock()
        self._key = secrets.token_bytes(16)
        self._parts: dict[str, dict[int, bytes]] = {}
        self._servers = {host: _Server(self, host) for host in ("hub", "storage")}
        self.endpoint, self.storage = (server.url for server in self._servers.values())
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
            for server in self._servers.values()
        ]

    def __enter__(self) -> Hub:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for server in self._servers.values():
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join()

    def environ(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The environment of a process whose Hub this is, and that has no other's tokens or caches.

        Args:
            home: its HF_HOME.
            token: its token, or none.
        """
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "*",
            # `datasets` asks for its viewer on the host datasets-server.ENDPOINT, which nobody knows here.
            "RES_OPTIONS": "attempts:1 timeout:1",
        }
        return environment | ({} if token is None else {"HF_TOKEN": token})

    def repo(self, type_: str, id_: str, files: Mapping[str, bytes] | None = None, **facts: Any) -> Repo:
        """Make a repository, with `files` in its main branch beside .gitattributes."""
        repo = Repo(type_, id_, **facts)
        start = {".gitattributes": File(len(_ATTRIBUTES), _ATTRIBUTES.encode())}
        owner = id_.partition("/")[0]
        commit = repo.add("refs/heads/main", start, "initial commit", owner, None)
        if files:
            tree = dict(start)
            for path, data in files.items():
                tree[path] = File(len(data), data)
                if self._is_large(commit, path, len(data), data[:512]):
                    sha256 = hashlib.sha256(data).hexdigest()
                    repo.objects[sha256], tree[path] = data, File.large(sha256, len(data))
            repo.add("refs/heads/main", tree, "files", owner, commit.oid)
        with self.lock:
            self.repos[type_, id_] = repo
        return repo

    def files_received(self, since: int = 0) -> int:
        """Bytes of files that requests brought, from the `since`-th on."""
        return sum(request.files for request in self.requests[since:])

    # --- who may

    def _account(self, request: Request) -> Account | None:
        header = request.headers.get("authorization")
        if header is None:
            return None
        account = self.accounts.get(header.removeprefix("Bearer "))
        if account is None:
            raise _RefusedError(401, "Invalid credentials in Authorization header")
        return account

    def _repo(self, call: _Call, *, content: bool = False, write: bool = False, propose: bool = False) -> Repo:
        """The repository, if the one who asks may know of it and have its files, write to it or propose changes."""
        account = call.account
        repo = self.repos.get((call.groups["type"] or "model", call.groups["repo"]))
        owns = account is not None and call.groups["repo"].partition("/")[0] in (account.name, *account.orgs)
        reads = owns or (repo is not None and account is not None and account.name in repo.readers)
        if repo is None or (repo.private and not reads):
            # The code is there for 404 alone; but clients guess it from 401 on https, which this is not.
            if account is None:
                raise _RefusedError(401, "Invalid username or password.", "RepoNotFound")
            raise _RefusedError(404, "Repository not found", "RepoNotFound")
        if content and repo.gated and not reads:
            if account is None:
                raise _RefusedError(
                    401, f"Access to {repo.type} {repo.id} is restricted. You must be authenticated.", "GatedRepo"
                )
            raise _RefusedError(
                403,
                f"Access to {repo.type} {repo.id} is restricted and you are not in the authorized list.",
                "GatedRepo",
            )
        if write or propose:
            self._writer(call)
            if write and not owns:
                raise _RefusedError(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repo

    def _writer(self, call: _Call) -> Account:
        if call.account is None:
            raise _RefusedError(401, "Invalid username or password.")
        if call.account.role != "write":
            raise _RefusedError(403, "Forbidden: you must use a write token to write to a repository.")
        return call.account

    def _commit_of(self, call: _Call, repo: Repo) -> Commit:
        revision = call.groups.get("revision") or "main"
        commit = repo.at(revision)
        if commit is None:
            raise _RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # --- accounts and repositories

    def whoami(self, call: _Call) -> _Answer:
        if call.account is None:
            raise _RefusedError(401, "Invalid username or password.")
        account = call.account
        token = {"displayName": "a token", "role": account.role, "createdAt": "2026-01-01T00:00:00.000Z"}
        return _json(
            {
                "type": "user",
                "id": hashlib.sha1(account.name.encode(), usedforsecurity=False).hexdigest()[:24],
                "name": account.name,
                "fullname": account.name,
                "orgs": [{"type": "org", "name": name, "roleInOrg": "write"} for name in account.orgs],
                "auth": {"type": "access_token", "accessToken": token},
            }
        )

    def validate_yaml(self, call: _Call) -> _Answer:
        """The two mistakes that need no YAML to be seen, and the warning."""
        lines = call.json["content"].splitlines()
        errors, warnings = [], []
        if lines[:1] != ["---"]:
            warnings.append({"message": "empty or missing yaml metadata in repo card"})
        elif "---" not in lines[1:]:
            errors.append({"message": "the yaml metadata do not end"})
        else:
            for line in lines[1 : lines.index("---", 1)]:
                if re.match(r"license: (?![a-z0-9.-]+$)", line):
                    errors.append({"message": f'"license" must be one of the known ids, got {line[9:]}'})
        return _json({"errors": errors, "warnings": warnings}, 400 if errors else 200)

    def _named(self, call: _Call) -> tuple[str, str]:
        account, wanted = self._writer(call), call.json
        owner, type_ = wanted.get("organization") or account.name, wanted.get("type") or "model"
        if owner not in (account.name, *account.orgs):
            raise _RefusedError(
                403, f"You don't have the rights to create a {type_} under the namespace {json.dumps(owner)}"
            )
        return type_, f"{owner}/{wanted['name']}"

    def create(self, call: _Call) -> _Answer:
        type_, id_ = self._named(call)
        url = self._page(type_, id_)
        if (type_, id_) in self.repos:
            raise _RefusedError(409, f"You already created this {type_} repo", url=url)
        self.repo(type_, id_, private=call.json.get("visibility") == "private" or bool(call.json.get("private")))
        return _json({"url": url, "name": id_, "id": id_})

    def delete(self, call: _Call) -> _Answer:
        key = self._named(call)
        if key not in self.repos:
            raise _RefusedError(404, "Repository not found", "RepoNotFound")
        del self.repos[key]
        return _Answer(200)

    def _page(self, type_: str, id_: str) -> str:
        return f"{self.endpoint}/{'datasets/' if type_ == 'dataset' else ''}{id_}"

    def info(self, call: _Call) -> _Answer:
        repo = self._repo(call)
        commit = self._commit_of(call, repo)
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
        if call.flag("blobs"):
            for entry in siblings:
                file = commit.files[entry["rfilename"]]
                entry |= {"size": file.size, "blobId": file.oid}
                if file.sha256:
                    entry["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": len(file.data)}
        card = commit.files["README.md"].data.decode() if "README.md" in commit.files else ""
        task = re.search(r"^pipeline_tag: (\S+)$", card, re.MULTILINE)
        facts: dict[str, Any] = {
            "id": repo.id,
            "author": repo.id.partition("/")[0],
            "sha": commit.oid,
            "lastModified": commit.date,
            "private": repo.private,
            "gated": repo.gated,
            "disabled": False,
            "tags": [],
            "siblings": siblings,
        } | ({"pipeline_tag": task[1]} if task else {})
        wanted = call.request.query.get("expand")
        return _json({name: facts[name] for name in ("id", *wanted) if name in facts} if wanted else facts)

    # --- what is in them

    def _entries(self, repo: Repo, commit: Commit, expand: bool) -> Iterator[dict[str, Any]]:
        """All files and folders, in order of their paths."""
        found: dict[str, dict[str, Any]] = {
            folder: {"type": "directory", "oid": oid, "size": 0, "path": folder}
            for folder, oid in tree_ids(commit.files).items()
            if folder
        }
        for path, file in commit.files.items():
            entry: dict[str, Any] = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
            if file.sha256:
                entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": len(file.data)}
            if expand:
                entry["securityFileStatus"] = {"status": "safe", "avScan": None, "pickleImportScan": None}
            found[path] = entry
        for path in sorted(found):
            if expand:
                last = self._last_change(repo, commit, path)
                found[path]["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
            yield found[path]

    def _last_change(self, repo: Repo, commit: Commit, path: str) -> Commit:
        def state(of: Commit) -> dict[str, str]:
            return {p: f.oid for p, f in of.files.items() if p == path or p.startswith(f"{path}/")}

        history = repo.log(commit.oid)
        for newer, older in pairwise(history):
            if state(newer) != state(older):
                return newer
        return history[-1]

    def tree(self, call: _Call) -> _Answer:
        repo = self._repo(call)
        commit, expand, below = self._commit_of(call, repo), call.flag("expand"), call.groups.get("path") or ""
        prefix = f"{below}/" if below else ""
        entries = [entry for entry in self._entries(repo, commit, expand) if entry["path"].startswith(prefix)]
        if below and not entries:
            raise _RefusedError(404, f'"{below}" does not exist on "{commit.oid}"', "EntryNotFound")
        if not call.flag("recursive"):
            entries = [entry for entry in entries if "/" not in entry["path"][len(prefix) :]]
        start = int(call.request.query.get("cursor", ["0"])[-1])
        answer = _json(entries[start : start + self.page])
        if start + self.page < len(entries):
            query = {**call.request.query, "cursor": [str(start + self.page)]}
            answer.headers["Link"] = (
                f'<{self.endpoint}{quote(call.request.path)}?{urlencode(query, True)}>; rel="next"'
            )
        return answer

    def paths_info(self, call: _Call) -> _Answer:
        repo = self._repo(call)
        is_json = "json" in call.request.headers.get("content-type", "")
        wanted = call.json if is_json else parse_qs(call.body.decode())
        paths = {path.rstrip("/") for path in wanted["paths"]}
        expand = str(wanted.get("expand", False)).lower() in ("true", "['true']")
        entries = self._entries(repo, self._commit_of(call, repo), expand)
        return _json([entry for entry in entries if entry["path"] in paths])

    def list_refs(self, call: _Call) -> _Answer:
        repo = self._repo(call)
        found: dict[str, list[dict[str, str]]] = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
        kinds = {
            "refs/heads/": "branches",
            "refs/convert/": "converts",
            "refs/tags/": "tags",
            "refs/pr/": "pullRequests",
        }
        for ref, oid in repo.refs.items():
            for prefix, kind in kinds.items():
                if ref.startswith(prefix):
                    found[kind].append({"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid})
        if not call.flag("include_prs"):
            del found["pullRequests"]
        return _json(found)

    def list_commits(self, call: _Call) -> _Answer:
        repo = self._repo(call)
        return _json(
            [
                {"id": c.oid, "title": c.title, "message": "", "date": c.date, "authors": [{"user": c.author}]}
                for c in repo.log(self._commit_of(call, repo).oid)
            ]
        )

    def resolve(self, call: _Call) -> _Answer:
        repo = self._repo(call, content=True)
        commit = self._commit_of(call, repo)
        file = commit.files.get(call.groups["path"])
        if file is None:
            refused = _RefusedError(404, "Entry not found", "EntryNotFound")
            refused.answer.headers["X-Repo-Commit"] = commit.oid
            raise refused
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.content_id}"'}
        if file.sha256 is None:
            return _ranged(call.request, file.data, {"Content-Type": "text/plain; charset=utf-8", **headers})
        url = self._signed("GET", repo, file.sha256)
        headers |= {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.sha256}"', "Location": url}
        headers |= {"Accept-Ranges": "bytes", "Content-Type": "text/plain; charset=utf-8"}
        return _Answer(302, headers, f"Found. Redirecting to {url}".encode())

    # --- changing them

    def create_branch(self, call: _Call) -> _Answer:
        repo, name = self._repo(call, write=True), call.groups["branch"]
        if name.startswith("refs/"):
            raise _RefusedError(400, f"Invalid reference for a branch: {name}")
        if f"refs/heads/{name}" in repo.refs:
            raise _RefusedError(409, f"Reference refs/heads/{name} already exists")
        start = repo.at((call.json if call.body else {}).get("startingPoint", "main"))
        if start is None:
            raise _RefusedError(404, "Invalid rev id", "RevisionNotFound")
        repo.refs[f"refs/heads/{name}"] = start.oid
        return _Answer(201)

    def delete_branch(self, call: _Call) -> _Answer:
        repo, name = self._repo(call, write=True), call.groups["branch"]
        if name == "main" or repo.refs.pop(f"refs/heads/{name}", None) is None:
            raise _RefusedError(404, f"Invalid rev id: {name}", "RevisionNotFound")
        return _Answer(204)

    def _is_large(self, commit: Commit, path: str, size: int, sample: bytes) -> bool:
        attributes = commit.files.get(".gitattributes")
        patterns = [line.split()[0] for line in attributes.data.decode().splitlines()] if attributes else []
        named = any(fnmatch(PurePosixPath(path).name, pattern) for pattern in patterns)
        return size > 0 and (named or size > self.large_over or b"\0" in sample)

    def preupload(self, call: _Call) -> _Answer:
        propose = call.flag("create_pr")
        repo = self._repo(call, write=not propose, propose=propose)
        commit = self._commit_of(call, repo)
        ignore = commit.files.get(".gitignore")
        text = call.json.get("gitIgnore", ignore.data.decode() if ignore else "")
        patterns = [line.strip().strip("/") for line in text.splitlines() if line.strip() and line[0] != "#"]
        answers = []
        for wanted in call.json["files"]:
            path = wanted["path"]
            parts = [*PurePosixPath(path).parts, path]
            large = self._is_large(commit, path, wanted["size"], base64.b64decode(wanted["sample"]))
            answer = {
                "path": path,
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": any(fnmatch(part, pattern) for part in parts for pattern in patterns),
            }
            if path in commit.files:
                answer["oid"] = commit.files[path].content_id
            answers.append(answer)
        return _json({"files": answers, "commitOid": commit.oid})

    def commit(self, call: _Call) -> _Answer:
        propose = call.flag("create_pr")
        repo = self._repo(call, write=not propose, propose=propose)
        base = self._commit_of(call, repo)
        items = [json.loads(line) for line in call.body.splitlines() if line]
        header = next(item["value"] for item in items if item["key"] == "header")
        wanted = header.get("parentCommit")
        revision = call.groups["revision"]
        ref = revision if revision.startswith("refs/pr/") else f"refs/heads/{revision}"
        if propose:
            number = 1 + sum(ref.startswith("refs/pr/") for ref in repo.refs)
            ref, base = f"refs/pr/{number}", (repo.at(wanted) if wanted else None) or base
        elif ref not in repo.refs:
            raise _RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        elif wanted and not base.oid.startswith(wanted):
            raise _RefusedError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(base.files)
        for item in items:
            self._change(call.request, repo, files, item["key"], item["value"])
        assert call.account is not None
        done = repo.add(ref, files, header["summary"], call.account.name, base.oid, header.get("description", ""))
        page = self._page(repo.type, repo.id)
        answer = {"success": True, "commitOid": done.oid, "commitUrl": f"{page}/commit/{done.oid}", "hookOutput": ""}
        return _json(answer | ({"pullRequestUrl": f"{page}/discussions/{number}"} if propose else {}))

    def _change(self, request: Request, repo: Repo, files: dict[str, File], kind: str, value: dict[str, Any]) -> None:
        path = value.get("path", "")
        if kind == "file":
            data = base64.b64decode(value["content"], validate=True)
            request.files += len(data)
            if len(data) > self.large_over:
                raise _RefusedError(400, f"{path} is too large for a commit; it belongs into LFS")
            files[path] = File(len(data), data)
        elif kind == "lfsFile":
            if value["oid"] not in repo.objects:
                raise _RefusedError(400, f"LFS pointer pointed to a file that does not exist: {path}")
            files[path] = File.large(value["oid"], len(repo.objects[value["oid"]]))
        elif kind in ("deletedFile", "deletedFolder"):
            prefix = path.rstrip("/") + "/"
            gone = [p for p in files if p == path or (kind == "deletedFolder" and p.startswith(prefix))]
            if not gone:
                raise _RefusedError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]
        elif kind != "header":
            raise _RefusedError(400, f"unknown operation {kind}")

    # --- large files

    def lfs_batch(self, call: _Call) -> _Answer:
        wanted = call.json
        propose = "ref" not in wanted  # a branch is named only by whom has to be able to write to it
        repo = self._repo(call, write=not propose, propose=propose)
        answers = []
        for item in wanted["objects"]:
            answer = {"oid": item["oid"], "size": item["size"], "authenticated": True}
            if item["oid"] not in repo.objects:
                answer["actions"] = self._upload(repo, item["oid"], item["size"])
            answers.append(answer)
        return _json({"transfer": "basic", "objects": answers})

    def _upload(self, repo: Repo, sha256: str, size: int) -> dict[str, Any]:
        verify = {"href": f"{self._page(repo.type, repo.id)}.git/info/lfs/objects/verify", "header": {}}
        if size <= self.multipart_over:
            return {"upload": {"href": self._signed("PUT", repo, sha256), "header": {}}, "verify": verify}
        upload = secrets.token_hex(8)
        self._parts[upload] = {}
        header = {
            str(part): self._signed("PUT", repo, sha256, uploadId=upload, partNumber=str(part))
            for part in range(1, math.ceil(size / self.multipart_over) + 1)
        }
        query = self._signed("POST", repo, sha256, uploadId=upload).partition("?")[2]
        href = f"{self.endpoint}/api/complete_multipart?{query}&key={self._object(repo, sha256)}"
        return {
            "upload": {"href": href, "header": {"chunk_size": str(self.multipart_over), **header}},
            "verify": verify,
        }

    def complete_multipart(self, call: _Call) -> _Answer:
        query = {name: values[-1] for name, values in call.request.query.items()}
        path, upload = query.pop("key"), query["uploadId"]
        if not self._is_signed("POST", path, query) or upload not in self._parts:
            raise _RefusedError(403, "Invalid signature")
        parts = self._parts[upload]
        listed = {part["partNumber"]: part["etag"] for part in call.json["parts"]}
        if listed != {number: _etag(data) for number, data in parts.items()}:
            raise _RefusedError(400, "One or more of the specified parts could not be found")
        refused = self._keep(path, b"".join(parts[number] for number in sorted(parts)))
        if refused:
            raise _RefusedError(400, refused)
        del self._parts[upload]
        return _json({"success": True})

    def lfs_verify(self, call: _Call) -> _Answer:
        repo = self._repo(call, propose=True)
        if len(repo.objects.get(call.json["oid"], b"")) != call.json["size"]:
            raise _RefusedError(404, "Object does not exist in storage")
        return _Answer(200)

    def _object(self, repo: Repo, sha256: str) -> str:
        return f"/{repo.type}s/{repo.id}/{sha256}"

    def _keep(self, path: str, data: bytes) -> str | None:
        """Take an object in; or say why not."""
        type_, owner, name, sha256 = path[1:].split("/")
        if hashlib.sha256(data).hexdigest() != sha256:
            return "The SHA-256 you specified did not match what we received"
        repo = self.repos.get((type_[:-1], f"{owner}/{name}"))
        if repo is None:
            return "The specified bucket does not exist"
        repo.objects[sha256] = data
        return None

    def _signed(self, method: str, repo: Repo, sha256: str, **query: str) -> str:
        path, query = self._object(repo, sha256), {**query, "Expires": str(int(time.time()) + 3600)}
        return f"{self.storage}{path}?{urlencode({**query, 'Signature': self._signature(method, path, query)})}"

    def _signature(self, method: str, path: str, query: Mapping[str, str]) -> str:
        text = "\n".join([method, path, *(f"{name}={query[name]}" for name in sorted(query))])
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()

    def _is_signed(self, method: str, path: str, query: dict[str, str]) -> bool:
        given = query.pop("Signature", "")
        return hmac.compare_digest(given, self._signature(method, path, query)) and time.time() < int(query["Expires"])

    def _stored(self, request: Request, body: bytes) -> _Answer:
        """What storage answers."""
        if "authorization" in request.headers:  # as S3 does; and a token has no business here
            return _xml(400, "InvalidArgument", "Only one auth mechanism allowed")
        query = {name: values[-1] for name, values in request.query.items()}
        method = "GET" if request.method == "HEAD" else request.method
        if not self._is_signed(method, request.path, query):
            return _xml(403, "SignatureDoesNotMatch", "The request signature does not match")
        if method == "PUT":
            request.files += len(body)
            if "uploadId" in query:
                self._parts.setdefault(query["uploadId"], {})[int(query["partNumber"])] = body
            else:
                refused = self._keep(request.path, body)
                if refused:
                    return _xml(400, "BadDigest", refused)
            return _Answer(200, {"ETag": _etag(body)})
        type_, owner, name, sha256 = request.path[1:].split("/")
        repo = self.repos.get((type_[:-1], f"{owner}/{name}"))
        if repo is None or sha256 not in repo.objects:
            return _xml(404, "NoSuchKey", "The specified key does not exist.")
        headers = {"ETag": f'"{sha256}"', "Content-Type": "application/octet-stream"}
        return _ranged(request, repo.objects[sha256], headers)

    # --- any request

    def answer(self, request: Request, raw_path: str, body: bytes) -> _Answer:
        with self.lock:
            if request.host == "storage":
                return self._stored(request, body)
            try:
                account = self._account(request)
                method = "GET" if request.method == "HEAD" else request.method
                for route_method, pattern, name in _ROUTES:
                    match = pattern.fullmatch(raw_path.rstrip("/"))
                    if match and route_method == method:
                        groups = {key: unquote(value or "") for key, value in match.groupdict().items()}
                        return getattr(self, name)(_Call(request, account, body, groups))
                raise _RefusedError(404, "Sorry, we can't find the page you are looking for.")
            except _RefusedError as refused:
                return refused.answer


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


# --- sockets --------------------------------------------------------------------------------------------------------


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, hub: Hub, host: str) -> None:
        self.hub = hub
        self.host = host
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # without HTTPServer's look-up of the machine's name
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # clients may leave whenever they like
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _serve(self) -> None:
        hub = self.server.hub
        raw_path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        values = parse_qs(query, keep_blank_values=True)
        request = Request(self.server.host, self.command, unquote(raw_path), values, headers)
        with hub.lock:
            hub.requests.append(request)
        fault = (hub.fault(request) if hub.fault else None) or Fault()
        body = b"".join(self._body(request, fault.cut_upload))
        if fault.cut_upload is not None:
            return self._reset()
        if fault.status is not None:
            refused = _RefusedError(fault.status, fault.message)
            answer = refused.answer
            answer.headers |= fault.headers
        else:
            answer = hub.answer(request, raw_path, body)
        if fault.cut_download == -1:
            return self._reset()
        request.status = answer.status
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command == "HEAD" or answer.status == 204:
            return None
        whole = answer.body if fault.cut_download is None else answer.body[: fault.cut_download]
        request.sent = len(whole)  # before they go: whoever has read them all may look at once
        self.wfile.write(whole)
        return None if fault.cut_download is None else self._reset()

    def _body(self, request: Request, limit: int | None) -> Iterator[bytes]:
        """The request's body, in pieces, or its first `limit` bytes."""
        chunked = "chunked" in request.headers.get("transfer-encoding", "")
        left = 0 if chunked else int(request.headers.get("content-length", "0"))
        while True:
            if chunked and left == 0:
                left = int(self.rfile.readline().split(b";")[0], 16)
                if left == 0:
                    self.rfile.readline()
                    return
            if left == 0 or (limit is not None and request.received >= limit):
                return
            most = left if limit is None else min(left, limit - request.received)
            piece = self.rfile.read(min(most, 2**18))
            if not piece:
                raise ConnectionError("the client is gone")
            left -= len(piece)
            request.received += len(piece)
            yield piece
            if chunked and left == 0:
                self.rfile.readline()

    def _reset(self) -> None:
        """End the connection with an RST: no lingering, and no FIN before it."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
