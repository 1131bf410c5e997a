"""A loopback mirror that speaks the protocol of every host that ImagiNet comes from, quirks included.

    with Mirror(origin) as mirror:
        fetch(root, endpoints=mirror.endpoints)

`origin` is a folder (see `staging`): `coco/`, `github/<owner>/<repo>/<commit>/`, `drive/<file id>`,
`hf/<owner>/<repo>/`, `kaggle/competitions/<slug>/` and `kaggle/datasets/<owner>/<slug>/` with `files/` and
`archive.zip` in them. Each host has a port, and thereby an origin, of its own:

- coco: S3. ETag is the MD5 of a single file and `md5-N` of a zip; absent keys are 403 with XML.
- github: raw files. Text goes out gzipped to whom accepts that.
- drive: `/uc` redirects to `/download` for small files, and shows a page with a form for large ones.
- hf: `resolve/` redirects to signed addresses that expire, on another host ("cdn"); gated datasets, whose listings are
  open; a little `/api/`.
- kaggle: `/api/v1/` redirects to signed addresses too, on a third ("gcs": Google Cloud Storage, which sends MD5 and
  CRC-32C of the whole file in X-Goog-Hash). A competition wants an account that has accepted its rules, a dataset
  none; but wrong credentials are refused everywhere.

A `fault` hook decides, request by request, what goes wrong.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import gzip
import hashlib
import hmac
import html
import io
import json
import os
import re
import secrets
import selectors
import socket
import struct
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain as chain_iterables
from pathlib import Path
from socketserver import TCPServer
from types import TracebackType
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, quote, unquote, urlencode

from imaginet_hub.demo.containers import lfs_blob_id
from imaginet_hub.demo.crc32c import crc32c

__all__ = ["Fault", "Hook", "Mirror", "Request", "always", "busy", "chain", "first", "once"]

_PIECE = 256 * 1024
_FLIPPED = bytes(byte ^ 0xFF for byte in range(256))
#: Host -> what it calls itself.
_HOSTS = {
    "coco": "AmazonS3",
    "github": "github.com",
    "drive": "UploadServer",
    "hf": "nginx",
    "kaggle": "Kestrel",
    "cdn": "AmazonS3",
    "gcs": "UploadServer",
}
#: Hosts that nobody asks unless redirected there.
_STORES = ("cdn", "gcs")
#: What the Hub keeps as large files whatever their size; anything else is served where it lies.
_LARGE = re.compile(r"\.(zip|tgz|gz|tar|parquet|7z(\.\d+)?|bin|png|jpe?g|webp)$", re.IGNORECASE)
_DRIVE_ID = re.compile(r"[\w-]{10,}", re.ASCII)
#: Bucket of Google's storage -> what Kaggle keeps in it.
_KINDS = {"kaggle-competitions-data": "competitions", "kaggle-data-sets": "datasets"}
_RULES = "You must accept this competition's rules before you'll be able to download files."


@dataclass
class Request:
    """One request as the mirror saw it.

    Attributes:
        host: "coco" | "github" | "drive" | "hf" | "kaggle" | "cdn" | "gcs".
        method: "GET" | "HEAD".
        path: decoded, without the query.
        query: decoded; of a repeated name the last value.
        range: the first and last byte as asked for: (0, 99); (100, None): from 100 on; (None, 22): the last 22.
        headers: names in lower case.
        number: 1 for the first request for this file of this host, and so on (for Drive: for this page of this id).
        status: what was answered; 0 before, and where the connection was cut without an answer.
        sent: bytes of the body that were written to the socket.
    """

    host: str
    method: str
    path: str
    query: dict[str, str]
    range: tuple[int | None, int | None] | None
    headers: dict[str, str]
    number: int
    status: int = 0
    sent: int = 0


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request. Fields combine where that makes sense.

    Attributes:
        status: answer this, with `headers` and `body`, and nothing else.
        headers: put into the answer, whatever it is; they replace the mirror's own, and None takes one away.
        body: of `status`; a short sentence by default.
        reset_after: send so many bytes of the body, then reset the connection (RST); -1: before the status line.
        stall_after: send so many bytes, wait for `stall_s`, go on; -1: wait before the status line.
        stall_s: how long.
        short_after: send so many bytes, then close cleanly, though Content-Length said more.
        truncate_to: leave the rest of the body away; Content-Length is that of what is sent.
        ignore_range: 200 and the whole file, whatever range was asked for.
        wrong_range: 206 with another range than was asked for, said so in Content-Range.
        etag: another ETag. Conditions (If-Match, If-Range) are compared with it.
        wrong_bytes: the right length, every bit flipped.
        content_encoding: "gzip": the body goes out gzipped although nobody asked.
        chunked: no Content-Length, but Transfer-Encoding: chunked.
        page: one of Drive's pages, with status 200: "quota" | "virus" | "signin" | "notfound".
        redirect_to: 302 (or `status`) to this address.
    """

    status: int | None = None
    headers: Mapping[str, str | None] = field(default_factory=dict)
    body: bytes | None = None
    reset_after: int | None = None
    stall_after: int | None = None
    stall_s: float = 60.0
    short_after: int | None = None
    truncate_to: int | None = None
    ignore_range: bool = False
    wrong_range: bool = False
    etag: str | None = None
    wrong_bytes: bool = False
    content_encoding: str | None = None
    chunked: bool = False
    page: str | None = None
    redirect_to: str | None = None


Hook = Callable[[Request], Fault | None]
_FINE = Fault()


# --- ready-made hooks -----------------------------------------------------------------------------------------------


def always(match: str, fault: Fault, *, host: str | None = None) -> Hook:
    """The fault for every request whose path or query contains `match` (and that goes to `host`)."""
    return lambda request: fault if _matches(request, match, host) else None


def once(match: str, fault: Fault, *, host: str | None = None) -> Hook:
    """The fault for the first request that `always` would take."""
    return first(1, match, fault, host=host)


def first(n: int, match: str, fault: Fault, *, host: str | None = None) -> Hook:
    """The fault for the first `n` requests that `always` would take."""
    lock = threading.Lock()
    left = n

    def hook(request: Request) -> Fault | None:
        nonlocal left
        if not _matches(request, match, host):
            return None
        with lock:
            left -= 1
            return fault if left >= 0 else None

    return hook


def chain(*hooks: Hook) -> Hook:
    """The first fault that one of the hooks has for a request."""

    def hook(request: Request) -> Fault | None:
        return next((fault for each in hooks if (fault := each(request)) is not None), None)

    return hook


def busy(status: int = 503, retry_after: float | None = None, *, as_date: bool = False) -> Fault:
    """429 or 503, with Retry-After in whole seconds, as an HTTP date (counted from now), or without."""
    if retry_after is None:
        return Fault(status=status)
    value = formatdate(time.time() + retry_after, usegmt=True) if as_date else str(int(retry_after))
    return Fault(status=status, headers={"Retry-After": value})


def _matches(request: Request, match: str, host: str | None) -> bool:
    query = "&".join(f"{name}={value}" for name, value in request.query.items())
    return host in (None, request.host) and match in f"{request.path}?{query}"


# --- answers --------------------------------------------------------------------------------------------------------


@dataclass
class _Answer:
    """A status, headers, and a body: bytes, or the part of a file from `start` that is `length` bytes long."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | Path = b""
    start: int = 0
    length: int = 0

    def pieces(self) -> Iterator[bytes]:
        if isinstance(self.body, bytes):
            yield self.body[self.start : self.start + self.length]
            return
        with self.body.open("rb") as stream:
            stream.seek(self.start)
            left = self.length
            while left and (piece := stream.read(min(_PIECE, left))):
                left -= len(piece)
                yield piece


def _text(status: int, body: str | bytes, content_type: str = "text/plain; charset=utf-8", **headers: str) -> _Answer:
    data = body if isinstance(body, bytes) else body.encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return _Answer(status, {"Content-Type": content_type, **named}, data, 0, len(data))


def _json(status: int, value: Any, **headers: str) -> _Answer:
    return _text(status, json.dumps(value), "application/json", **headers)


def _xml(status: int, code: str, message: str) -> _Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return _text(status, body, "application/xml")


_PAGES = {
    "quota": (
        "Google Drive - Quota exceeded",
        '<p class="uc-error-caption">Sorry, you can&#39;t view or download this file at this time.</p>'
        '<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently. Please try '
        "accessing the file again later. If the file you are trying to access is particularly large or is shared with "
        "many people, it may take up to 24 hours to be able to view or download the file.</p>",
    ),
    "signin": (
        "Google Drive: Sign-in",
        '<form action="https://accounts.google.com/v3/signin/identifier" method="post"><h1>Sign in</h1>'
        '<p>to continue to Google Drive</p><input type="email" name="identifier"></form>',
    ),
    "notfound": (
        "Error 404 (Not Found)!!1",
        "<p><b>404.</b> <ins>That&#39;s an error.</ins></p><p>The requested URL was not found on this server.</p>",
    ),
}


def _page(kind: str, file_id: str = "", size: int = 0, status: int = 200) -> _Answer:
    """Drive's HTML. The form's action is the real host's address, on a mirror too."""
    if kind == "virus":
        inputs = {"id": file_id, "export": "download", "confirm": "t", "uuid": _uuid(file_id)}
        title, body = (
            "Google Drive - Virus scan warning",
            '<p class="uc-warning-caption">Google Drive can&#39;t scan this file for viruses.</p>'
            f'<p class="uc-warning-subcaption"><span class="uc-name-size">{html.escape(file_id)} ({size:,})</span> '
            "is too large for Google to scan for viruses. Would you still like to download this file?</p>"
            '<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">'
            '<input type="submit" id="uc-download-link" value="Download anyway"/>'
            + "".join(f'<input type="hidden" name="{name}" value="{html.escape(v)}">' for name, v in inputs.items())
            + "</form>",
        )
    else:
        title, body = _PAGES[kind]
    return _text(
        status,
        f"<!DOCTYPE html><html><head><title>{title}</title></head><body>{body}</body></html>",
        "text/html; charset=utf-8",
        Cache_Control="no-cache, no-store, max-age=0, must-revalidate",
    )


def _uuid(file_id: str) -> str:
    digits = hashlib.sha256(file_id.encode()).hexdigest()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-8{digits[17:20]}-{digits[20:32]}"


# --- the mirror -----------------------------------------------------------------------------------------------------


class Mirror:
    """Serves `origin` on loopback ports while the block runs.

    Args:
        origin: see the module. Files may be added and changed while it runs.
        latency_s: waited before every answer.
        virus_scan_over: Drive shows its form for files of more bytes than that (on the real host: 100 MB).
        fault: what goes wrong with a request; None: nothing. Called from many threads.
        gated: Hugging Face dataset id -> the one token that is let in.
        kaggle: user name -> key of Kaggle's accounts (`Authorization: Basic`). Without any account, no credentials
            are right.
        kaggle_tokens: Kaggle's API tokens (`Authorization: Bearer`).
        kaggle_rules: whether accounts have accepted the rules of competitions.
        kaggle_zips: Kaggle delivers single files zipped, as `<name>.zip`, whose name (from its folders on) holds a
            match of this regular expression; None: no file.

    Attributes:
        latency_s, virus_scan_over, fault, gated, kaggle, kaggle_tokens, kaggle_rules, kaggle_zips: as given; may be
            changed while it runs, like the next three.
        url_lifetime_s: of signed addresses, from the moment they are handed out.
        large_over: the Hub keeps files of more bytes than that as large ones, besides those of certain kinds.
        hashed_to: digests are true for files of up to so many bytes. Larger ones have an ETag and (in the Hub's
            listing) a SHA-256 that is made of their size and time, and no X-Goog-Hash: nobody waits for terabytes.
        endpoints: host -> base address: coco, github, drive, hf, kaggle.
        cdn: base address of the host that signed addresses of the Hub point to.
        gcs: base address of the host that signed addresses of Kaggle point to.
        requests: every request so far, in order of arrival. `sent` and `status` are filled in as the answer goes out.
        sent: bytes of all bodies so far.
    """

    def __init__(
        self,
        origin: Path,
        *,
        latency_s: float = 0.0,
        virus_scan_over: int = 100_000,
        fault: Hook | None = None,
        gated: Mapping[str, str] | None = None,
        kaggle: Mapping[str, str] | None = None,
        kaggle_tokens: Collection[str] = (),
        kaggle_rules: bool = True,
        kaggle_zips: str | None = None,
    ) -> None:
        self.origin = Path(origin).resolve()
        self.latency_s = latency_s
        self.virus_scan_over = virus_scan_over
        self.fault = fault
        self.gated = dict(gated or {})
        self.kaggle = dict(kaggle or {})
        self.kaggle_tokens = frozenset(kaggle_tokens)
        self.kaggle_rules = kaggle_rules
        self.kaggle_zips = kaggle_zips
        self.url_lifetime_s: float = 3600.0
        self.large_over = 10_000_000
        self.hashed_to = 256 << 20
        self.lock = threading.Lock()
        self._keys = [secrets.token_bytes(16)]  # the last one signs
        self._log: list[Request] = []
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._digests: dict[tuple[str, Path, int, int], str] = {}
        self._hashing = threading.Lock()
        self.closing = threading.Event()
        self._servers = {host: _Server(self, host) for host in _HOSTS}
        self._bell, self._ear = socket.socketpair()
        self._thread = threading.Thread(target=self._accept, name="mirror", daemon=True)

    def __enter__(self) -> Mirror:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()  # whoever stalls stops
        self._bell.close()
        self._thread.join()
        for server in self._servers.values():
            server.server_close()
            server.cut()

    def _accept(self) -> None:
        """Take connections in, for all hosts, until the other end of the bell is closed."""
        with selectors.DefaultSelector() as selector, self._ear:
            selector.register(self._ear, selectors.EVENT_READ)
            for server in self._servers.values():
                selector.register(server, selectors.EVENT_READ, server)
            while True:
                for key, _ in selector.select():
                    if key.data is None:
                        return
                    key.data.handle_request()

    @property
    def endpoints(self) -> dict[str, str]:
        return {host: server.url for host, server in self._servers.items() if host not in _STORES}

    @property
    def cdn(self) -> str:
        return self._servers["cdn"].url

    @property
    def gcs(self) -> str:
        return self._servers["gcs"].url

    def environ(self) -> dict[str, str]:
        """The variables that point a process of its own here."""
        bases = self.endpoints
        hub = bases.pop("hf")
        return {"HF_ENDPOINT": hub, "IMAGINET_ENDPOINTS": ",".join(f"{host}={url}" for host, url in bases.items())}

    @property
    def requests(self) -> list[Request]:
        with self.lock:
            return list(self._log)

    @property
    def sent(self) -> int:
        with self.lock:
            return sum(request.sent for request in self._log)

    def forget(self) -> None:
        """Empty the log (and with it `sent`), and let `number` start at 1 again."""
        with self.lock:
            self._log.clear()
            self._counts.clear()

    def expire_urls(self) -> None:
        """Every signed address that was handed out so far is 403 from now on."""
        self._keys.append(secrets.token_bytes(16))

    # --- what the handlers ask for

    def note(self, host: str, method: str, target: str, headers: dict[str, str]) -> Request:
        """Write a request down as it comes in."""
        where, _, asks = target.partition("?")
        if "://" in where:  # as a proxy is asked
            where = "/" + where.partition("://")[2].partition("/")[2]
        path, query = unquote(where), dict(parse_qsl(asks, keep_blank_values=True))
        wanted = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", headers.get("range", "").strip())
        asked = None
        if wanted and any(wanted.groups()):
            low, high = (int(digits) if digits else None for digits in wanted.groups())
            asked = (low, high)
        with self.lock:
            self._counts[host, path, query.get("id", "")] += 1
            number = self._counts[host, path, query.get("id", "")]
            request = Request(host, method, path, query, asked, headers, number)
            self._log.append(request)
        return request

    def answer(self, request: Request, fault: Fault) -> _Answer:
        """What the host says, or what the fault says in its place."""
        if fault.redirect_to is not None:
            return _text(fault.status or 302, b"", Location=fault.redirect_to)
        if fault.page is not None:
            return _page(fault.page, request.query.get("id", "0" * 33), 1 << 30)
        if fault.status is not None:
            body = f"the mirror was told to answer {fault.status}\n".encode() if fault.body is None else fault.body
            return _text(fault.status, body)
        answer: _Answer = getattr(self, f"_{request.host}")(request, fault)
        return answer

    def _coco(self, request: Request, fault: Fault) -> _Answer:
        file = self._find("coco", request.path)
        if file is None:
            answer = _xml(403, "AccessDenied", "Access Denied")
        elif request.path.startswith("/zips/"):  # uploaded in parts; what the parts were, nobody knows
            parts = file.stat().st_size // (8 << 20) + 1
            answer = self._file(request, fault, file, f"{self._digest('stat', file)}-{parts}")
        else:
            answer = self._file(request, fault, file, self._digest("md5", file))
        answer.headers["x-amz-request-id"] = secrets.token_hex(8).upper()
        return answer

    def _github(self, request: Request, fault: Fault) -> _Answer:
        file = self._find("github", request.path)
        if file is None or request.path.count("/") < 4:
            return _text(404, "404: Not Found")
        answer = self._file(request, fault, file, self._digest("stat", file), "text/plain; charset=utf-8")
        answer.headers["Vary"] = "Authorization,Accept-Encoding"
        if answer.status == 200 and re.search(r"\bgzip\b", request.headers.get("accept-encoding", "")):
            answer = _gzipped(answer)
        return answer

    def _drive(self, request: Request, fault: Fault) -> _Answer:
        file_id = request.query.get("id", "")
        file = self._find("drive", file_id) if _DRIVE_ID.fullmatch(file_id) else None
        if file is None or request.path not in ("/uc", "/download"):
            return _page("notfound", status=404)
        size = file.stat().st_size
        large = size > self.virus_scan_over
        if request.path == "/uc" and not large:
            query = urlencode({"id": file_id, "export": "download"})
            return _text(303, b"", Location=f"{self.endpoints['drive']}/download?{query}")
        if large and (request.path == "/uc" or not request.query.get("confirm")):
            return _page("virus", file_id, size)
        answer = self._file(request, fault, file, self._digest("stat", file))
        answer.headers["Content-Disposition"] = f'attachment; filename="{file_id}"'
        return answer

    def _hf(self, request: Request, fault: Fault) -> _Answer:
        if request.path.startswith("/api/"):
            return self._api(request)
        match = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", request.path)
        if not match:
            return self._refusal(404, "RepoNotFound", "Not found")
        repo, revision, name = match.groups()
        refusal = self._no_repo(request, repo, revision) or self._no_access(request, repo)
        if refusal:
            return refusal
        commit = {"X-Repo-Commit": self._commit(repo)}
        file = self._find("hf", f"{repo}/{name}")
        if file is None:
            answer = self._refusal(404, "EntryNotFound", "Entry not found")
        elif self._is_large(file):
            etag = fault.etag or self._digest("sha256", file)
            linked = {"X-Linked-Size": str(file.stat().st_size), "X-Linked-ETag": _quoted(etag)}
            url = self._signed(repo, name)
            answer = _text(302, f"Found. Redirecting to {url}", Location=url, **linked, ETag=_quoted(etag))
        else:
            answer = self._file(request, fault, file, self._digest("blob", file), "text/plain; charset=utf-8")
        answer.headers.update(commit)
        return answer

    def _cdn(self, request: Request, fault: Fault) -> _Answer:
        if "authorization" in request.headers:  # as S3 does; and a token has no business here
            return _xml(400, "InvalidArgument", "Only one auth mechanism allowed")
        query = request.query
        state = self._state_of(request.path, query.get("Expires", ""), query.get("Signature", ""))
        if state == "forged":
            return _xml(403, "SignatureDoesNotMatch", "The request signature does not match")
        if state == "expired":
            return _xml(403, "AccessDenied", "Request has expired")
        file = self._find("hf", request.path.removeprefix("/repos/"))
        if file is None:
            return _xml(404, "NoSuchKey", "The specified key does not exist.")
        return self._file(request, fault, file, self._digest("sha256", file))

    def _api(self, request: Request) -> _Answer:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if request.path == "/api/whoami-v2":
            if token in self.gated.values():
                return _json(200, {"type": "user", "name": "demo"})
            return self._refusal(401, "", "Invalid username or password.")
        match = re.fullmatch(
            r"/api/datasets/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?", request.path.rstrip("/")
        )
        if not match:
            return self._refusal(404, "", "Not found")
        repo, kind, revision, below = match.groups()
        refusal = self._no_repo(request, repo, revision or "main")
        if refusal:
            return refusal
        files = []
        for file in self._files(repo):
            path = file.relative_to(self.origin / "hf" / repo).as_posix()
            size = file.stat().st_size
            entry: dict[str, Any] = {"type": "file", "path": path, "size": size}
            if self._is_large(file):
                sha256 = self._digest("sha256", file)  # "oid" in a tree, "sha256" in a dataset's description
                entry["oid"] = lfs_blob_id(sha256, size)
                entry["lfs"] = {"oid": sha256, "sha256": sha256, "size": size, "pointerSize": 134}
            else:
                entry["oid"] = self._digest("blob", file)
            if not below or path.startswith(f"{below}/"):
                files.append(entry)
        if kind == "tree":
            return _json(200, files)
        gated = "auto" if repo in self.gated else False
        siblings = [
            {"rfilename": f["path"], "size": f["size"], "blobId": f["oid"], "lfs": f.get("lfs")} for f in files
        ]
        info = {"id": repo, "sha": self._commit(repo), "private": False, "gated": gated, "siblings": siblings}
        return _json(200, info)

    # --- the Hub's ways

    def _refusal(self, status: int, code: str, message: str) -> _Answer:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        return _json(status, {"error": message}, **headers)

    def _no_repo(self, request: Request, repo: str, revision: str) -> _Answer | None:
        folder = self._find("hf", repo, folder=True)
        if folder is None:  # who may not know whether there is such a dataset is told to log in
            status = 404 if "authorization" in request.headers else 401
            return self._refusal(status, "RepoNotFound", "Repository not found")
        if revision not in ("main", self._commit(repo)):
            return self._refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def _no_access(self, request: Request, repo: str) -> _Answer | None:
        if repo not in self.gated:
            return None
        token = request.headers.get("authorization")
        if token is None:
            return self._refusal(
                401,
                "GatedRepo",
                f"Access to dataset {repo} is restricted. You must have access to it and be authenticated to access "
                "it. Please log in.",
            )
        if token != f"Bearer {self.gated[repo]}":
            return self._refusal(
                403,
                "GatedRepo",
                f"Access to dataset {repo} is restricted and you are not in the authorized list. Visit "
                f"https://huggingface.co/datasets/{repo} to ask for access.",
            )
        return None

    def _is_large(self, file: Path) -> bool:
        return _LARGE.search(file.name) is not None or file.stat().st_size > self.large_over

    def _files(self, repo: str) -> list[Path]:
        return sorted(path for path in (self.origin / "hf" / repo).rglob("*") if path.is_file())

    def _commit(self, repo: str) -> str:
        base = self.origin / "hf"
        state = [
            (str(file.relative_to(base)), file.stat().st_size, file.stat().st_mtime_ns) for file in self._files(repo)
        ]
        return hashlib.sha1(f"{repo} {state}".encode(), usedforsecurity=False).hexdigest()

    def _signed(self, repo: str, name: str) -> str:
        path, expires = f"/repos/{repo}/{name}", str(int(time.time() + self.url_lifetime_s))
        query = {"Expires": expires, "Signature": self._signature(path, expires), "Key-Pair-Id": "MIRROR"}
        return f"{self.cdn}{quote(path)}?{urlencode(query)}"

    def _signature(self, path: str, expires: str, key: bytes | None = None) -> str:
        return hmac.new(key or self._keys[-1], f"{path}\n{expires}".encode(), hashlib.sha256).hexdigest()

    def _state_of(self, path: str, expires: str, signature: str) -> str:
        """Of a signed address: good | expired | forged."""
        if signature not in [self._signature(path, expires, key) for key in self._keys]:
            return "forged"
        return "good" if signature == self._signature(path, expires) and time.time() < int(expires) else "expired"

    # --- Kaggle's ways

    def _kaggle(self, request: Request, fault: Fault) -> _Answer:
        """Who asks, what for, and a redirect to where it is."""
        known = self._is_known(request.headers.get("authorization"))
        match = re.fullmatch(
            r"/api/v1/(?:competitions/data/download(?P<all>-all)?/(?P<competition>[^/]+)"
            r"|datasets/download/(?P<dataset>[^/]+/[^/]+))(?:/(?P<name>.+))?",
            request.path,
        )
        if known is False:
            return _refused(401, "Unauthenticated")
        if not match or (match["competition"] and bool(match["all"]) == bool(match["name"])):
            return _refused(404, "Not found")
        if match["competition"]:
            bucket, slug = "kaggle-competitions-data", match["competition"]
            if known is None:
                return _refused(401, "Unauthenticated")
        else:
            bucket, slug = "kaggle-data-sets", match["dataset"]
        base, name = f"{_KINDS[bucket]}/{slug}", match["name"]
        if self._find("kaggle", base, folder=True) is None:
            return _refused(404, f"{base} was not found")
        if match["competition"] and not self.kaggle_rules:
            return _refused(403, _RULES)
        key = f"files/{name}" if name else "archive.zip"
        if self._find("kaggle", f"{base}/{key}") is None:
            return _refused(404, f"{name or 'the archive'} was not found")
        path = f"/{bucket}/{slug}/{key}"
        if name and self.kaggle_zips is not None and re.search(self.kaggle_zips, name):
            path += ".zip"
        return _text(302, b"", Location=self._gcs_signed(path))

    def _is_known(self, authorization: str | None) -> bool | None:
        """Whether credentials are an account's; None if there are none."""
        if authorization is None:
            return None
        scheme, _, value = authorization.partition(" ")
        if scheme.lower() == "bearer":
            return value in self.kaggle_tokens
        try:
            user, colon, key = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return False
        return scheme.lower() == "basic" and bool(colon) and self.kaggle.get(user) == key

    def _gcs_signed(self, path: str) -> str:
        now, lifetime = int(time.time()), int(self.url_lifetime_s)
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
        query = {
            "X-Goog-Algorithm": "GOOG4-RSA-SHA256",
            "X-Goog-Credential": f"mirror@kaggle/{date[:8]}/auto/storage/goog4_request",
            "X-Goog-Date": date,
            "X-Goog-Expires": str(lifetime),
            "X-Goog-SignedHeaders": "host",
            "X-Goog-Signature": self._signature(path, str(now + lifetime)),
        }
        return f"{self.gcs}{quote(path)}?{urlencode(query)}"

    def _gcs(self, request: Request, fault: Fault) -> _Answer:
        if "authorization" in request.headers:
            return _xml(400, "InvalidArgument", "Only one auth mechanism allowed")
        query = request.query
        try:
            date = datetime.strptime(query.get("X-Goog-Date", ""), "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
            expires = int(date.timestamp()) + int(query.get("X-Goog-Expires", ""))
        except (ValueError, OverflowError):
            return _xml(400, "InvalidArgument", "Invalid argument.")
        state = self._state_of(request.path, str(expires), query.get("X-Goog-Signature", ""))
        if state == "forged":
            return _xml(403, "SignatureDoesNotMatch", "The request signature does not match")
        if state == "expired":
            return _xml(400, "ExpiredToken", "The provided token has expired.")
        bucket, _, name = request.path.lstrip("/").partition("/")
        path, data = f"{_KINDS.get(bucket)}/{name}", None
        file = self._find("kaggle", path)
        if file is None and (file := self._find("kaggle", path.removesuffix(".zip"))):
            data = _zipped(file)
        if file is None:
            return _xml(404, "NoSuchKey", "The specified key does not exist.")
        if data is None:
            md5, crc = self._digest("md5", file), self._digest("crc32c", file)
        else:
            md5, crc = hashlib.md5(data, usedforsecurity=False).hexdigest(), f"{crc32c(data):08x}"
        content_type = "application/zip" if path.endswith(".zip") else "application/octet-stream"
        answer = self._file(request, fault, file, md5, content_type, data)
        if data is not None or file.stat().st_size <= self.hashed_to:
            # Two lines, as the real host sends them; a fault that names the header replaces both.
            answer.headers["X-Goog-Hash"] = f"crc32c={_base64(crc)}"
            answer.headers["x-goog-hash"] = f"md5={_base64(md5)}"
        return answer

    # --- files

    def _find(self, host: str, path: str, folder: bool = False) -> Path | None:
        """The file (or folder) that a path means; None where there is none, or where it leads out of the host's."""
        base = (self.origin / host).resolve()
        names = path.strip("/").split("/")
        if any(name in ("", ".", "..") or "\0" in name or "\\" in name for name in names):
            return None
        try:
            found = base.joinpath(*names).resolve()
            usable = found.is_relative_to(base) and (found.is_dir() if folder else found.is_file())
        except (OSError, ValueError):  # a name that is too long, surrogates
            return None
        return found if usable else None

    def _digest(self, kind: str, file: Path) -> str:
        """MD5, SHA-256, CRC-32C or git blob id of a file, in hex, each computed once.

        Or something made of its size and time: if `kind` is "stat", and (of the length of an MD5 or SHA-256) for
        files that are too large.
        """
        stat = file.stat()
        if kind == "stat" or (kind != "blob" and stat.st_size > self.hashed_to):
            name = "sha256" if kind == "sha256" else "md5"
            return hashlib.new(name, f"{stat.st_size} {stat.st_mtime_ns}".encode(), usedforsecurity=False).hexdigest()
        key = (kind, file, stat.st_size, stat.st_mtime_ns)
        if key not in self._digests:
            with self._hashing, file.open("rb") as stream:
                if key not in self._digests:
                    self._digests[key] = _digest_of(stream, kind, stat.st_size)
        return self._digests[key]

    def _file(
        self,
        request: Request,
        fault: Fault,
        file: Path,
        etag: str,
        content_type: str = "application/octet-stream",
        data: bytes | None = None,
    ) -> _Answer:
        """The file, or `data` in its place, as far as it is asked for."""
        stat = file.stat()
        body: bytes | Path = file if data is None else data
        size, etag = stat.st_size if data is None else len(data), _quoted(fault.etag or etag)
        headers = {
            "Content-Type": content_type,
            "ETag": etag,
            "Last-Modified": formatdate(stat.st_mtime, usegmt=True),
            "Accept-Ranges": "bytes",
        }
        condition = request.headers.get("if-match")
        if condition not in (None, "*") and etag not in str(condition):
            return _xml(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
        if etag in request.headers.get("if-none-match", ""):
            return _Answer(304, headers)
        whole = _Answer(200, headers, body, 0, size)
        if request.range is None or fault.ignore_range or request.headers.get("if-range", etag) != etag:
            return whole
        low, high = request.range
        start = max(0, size - (high or 0)) if low is None else low
        end = size - 1 if low is None or high is None else min(high, size - 1)
        if low is not None and high is not None and high < low:
            return whole  # no range by RFC 9110, section 14.1.1: ignored
        if start >= size:
            answer = _xml(416, "InvalidRange", "The requested range is not satisfiable")
            answer.headers["Content-Range"] = f"bytes */{size}"
            return answer
        if fault.wrong_range:  # of the same length if the file has such a one
            start, end = (start - 1, end - 1) if start else (1, min(end + 1, size - 1))
        headers["Content-Range"] = f"bytes {start}-{end}/{size}"
        return _Answer(206, headers, body, start, end - start + 1)


def _quoted(etag: str) -> str:
    return etag if etag.endswith('"') else f'"{etag}"'


def _refused(status: int, message: str) -> _Answer:
    """Kaggle's way to say no."""
    return _json(status, {"code": status, "message": message})


def _zipped(file: Path) -> bytes:
    """The file as the one member of a zip archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo(file.name, (2024, 1, 1, 12, 0, 0))
        archive.writestr(info, file.read_bytes(), zipfile.ZIP_DEFLATED)
    return out.getvalue()


def _digest_of(stream: BinaryIO, kind: str, size: int) -> str:
    if kind == "crc32c":
        return f"{crc32c(stream.read()):08x}"
    digest = hashlib.new("sha1" if kind == "blob" else kind, usedforsecurity=False)
    digest.update(f"blob {size}\0".encode() if kind == "blob" else b"")
    while piece := stream.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()


def _base64(digits: str) -> str:
    return base64.b64encode(bytes.fromhex(digits)).decode()


def _gzipped(answer: _Answer) -> _Answer:
    data = gzip.compress(b"".join(answer.pieces()), mtime=0)
    headers = {**answer.headers, "Content-Encoding": "gzip"}
    if "ETag" in headers:
        headers["ETag"] = f"W/{headers['ETag'].removeprefix('W/')}"
    return _Answer(answer.status, headers, data, 0, len(data))


# --- sockets --------------------------------------------------------------------------------------------------------


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, mirror: Mirror, host: str) -> None:
        self.mirror = mirror
        self.host = host
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)
        self.socket.setblocking(False)  # a client that is gone before it is taken in holds up nobody
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # without HTTPServer's look-up of the machine's name
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.mirror.lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self.mirror.lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # clients may leave whenever they like
            super().handle_error(request, client_address)

    def cut(self) -> None:
        """End the connections that clients keep open."""
        with self.mirror.lock:
            connections = list(self._open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *args: object) -> None:
        pass

    def version_string(self) -> str:
        return _HOSTS[self.server.host]

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def _serve(self) -> None:
        mirror = self.server.mirror
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = mirror.note(self.server.host, self.command, self.path, headers)
        if mirror.latency_s > 0:
            mirror.closing.wait(mirror.latency_s)
        fault = (mirror.fault(request) if mirror.fault else None) or _FINE
        if fault.stall_after is not None and fault.stall_after < 0:
            mirror.closing.wait(fault.stall_s)
        if fault.reset_after is not None and fault.reset_after < 0:
            self._reset()
            return
        answer = mirror.answer(request, fault)
        if fault.truncate_to is not None:
            answer.length = min(answer.length, fault.truncate_to)
        if fault.content_encoding == "gzip" and "Content-Encoding" not in answer.headers:
            answer = _gzipped(answer)
        for name, value in fault.headers.items():
            answer.headers = {k: v for k, v in answer.headers.items() if k.lower() != name.lower()}
            if value is not None:
                answer.headers[name] = value
        # A request for nothing but headers, and these two, have no body and no length of one.
        bare = answer.status in (204, 304)
        chunked = fault.chunked and not bare
        request.status = answer.status
        try:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if chunked:
                self.send_header("Transfer-Encoding", "chunked")
            elif not bare and "Content-Length" not in answer.headers:
                self.send_header("Content-Length", str(answer.length))
            self.end_headers()
            if self.command == "HEAD" or bare:
                answer.length = 0
            self._send(request, answer, fault, chunked and self.command != "HEAD")
        except OSError:  # the client had enough
            self.close_connection = True

    def _send(self, request: Request, answer: _Answer, fault: Fault, chunked: bool) -> None:
        """The body, up to and past the places where something happens."""
        places = {"stall": fault.stall_after, "short": fault.short_after, "reset": fault.reset_after}
        events = sorted((at, what) for what, at in places.items() if at is not None and at >= 0)
        for piece in chain_iterables(answer.pieces(), (b"",)):
            left = piece.translate(_FLIPPED) if fault.wrong_bytes else piece
            while events and events[0][0] <= request.sent + len(left):
                at, what = events.pop(0)
                here = at - request.sent
                self._write(request, left[:here], chunked)
                left = left[here:]
                if what == "reset":
                    return self._reset()
                if what == "short" or self.server.mirror.closing.wait(fault.stall_s):
                    self.close_connection = True
                    return None
            self._write(request, left, chunked)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")
        if request.sent < answer.length:  # the file became shorter meanwhile
            self.close_connection = True
        return None

    def _write(self, request: Request, data: bytes, chunked: bool) -> None:
        if not data:
            return
        request.sent += len(data)  # before they go: whoever has read them all may look at once
        left = memoryview(data)
        try:
            if chunked:
                self.wfile.write(b"%x\r\n" % len(data))
            while left:
                left = left[self.connection.send(left) :]
            if chunked:
                self.wfile.write(b"\r\n")
        except OSError:
            request.sent -= len(left)
            raise

    def _reset(self) -> None:
        """End the connection with an RST: no lingering, and no FIN before it."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())
