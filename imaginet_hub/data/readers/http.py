"""Bytes over HTTP from hosts that fail: retries, resumption, and one clear error when it is over.

A `Remote` is a file at a host: it knows its address and what the host's answers mean. `Http.stream` reads a range of
it and goes on where a connection broke, `Http.read` gets a small file whole. Nothing is believed before it is
checked: statuses, ranges, lengths, and that the file behind the address is still the same one.
"""

from __future__ import annotations

import contextlib
import email.utils
import os
import random
import re
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from urllib.parse import urljoin, urlsplit, urlunsplit

import httpx2 as httpx

from imaginet_hub.errors import FetchError, UsageError

__all__ = ["Cancelled", "Http", "Limits", "Remote", "Response", "TryAgain", "origin_of", "redacted"]

_CHUNK = 256 * 1024
_MAX_REDIRECTS = 10
_RETRIED = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524}
#: An answer that resumes many times but trickles is a stall: bytes per second, over so many seconds.
_SLOW, _SLOW_S = 1024, 30
_PROGRESS = 64 * 1024
_HTML = re.compile(rb"\s*(<!doctype html|<html)", re.IGNORECASE)


class Cancelled(BaseException):
    """The fetch was stopped from outside. Not an `Exception`: no handler of failures may take it for one."""


class TryAgain(Exception):
    """This attempt failed in a way that may pass.

    Attributes:
        error: what to raise when patience ends.
        wait_s: how long the server asks to wait.
        counts: whether it uses up an attempt.
        most: attempts worth making, if fewer than usual.
    """

    def __init__(
        self, error: FetchError, wait_s: float | None = None, *, counts: bool = True, most: int | None = None
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait_s = wait_s
        self.counts = counts
        self.most = most


def _timeout() -> float:
    text = os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT", "")
    try:
        return float(text) if text and float(text) > 0 else 10.0
    except ValueError as error:
        raise UsageError(f"HF_HUB_DOWNLOAD_TIMEOUT: expected a number of seconds, got {text!r}") from error


@dataclass(frozen=True)
class Limits:
    """How patient to be.

    Attributes:
        timeout_s: seconds without a byte (or a connection) that count as a failure; HF_HUB_DOWNLOAD_TIMEOUT.
        retries: further attempts after failures in a row; connections that are refused get two.
        backoff_s: the first pause, doubled each time, with jitter.
        max_backoff_s: the longest pause of our own.
        max_retry_after_s: the longest pause that a server may ask for.
    """

    timeout_s: float = field(default_factory=_timeout)
    retries: int = 5
    backoff_s: float = 0.5
    max_backoff_s: float = 20.0
    max_retry_after_s: float = 120.0


def origin_of(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port: what a token may be sent to."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def shown(url: str) -> str:
    """An address as it may be printed: no user, no password, no query."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return urlunsplit((parts.scheme, host + (f":{parts.port}" if parts.port else ""), parts.path, "", ""))


def redacted(text: str) -> str:
    """A foreign message without what it may have picked up: addresses' passwords and queries, tokens."""
    text = re.sub(r"(?i)(bearer|basic)\s+[^\s'\",;]+", r"\1 ...", text)
    text = re.sub(r"\bhf_[A-Za-z0-9_-]+", "hf_...", text)
    return re.sub(r"[a-z][a-z0-9+.-]*://[^\s'\"<>]+", lambda m: shown(m[0]) if _splits(m[0]) else "(address)", text)


def _splits(url: str) -> bool:
    try:
        return urlsplit(url).port is not None or True
    except ValueError:
        return False


@dataclass(frozen=True)
class Response:
    """What a `Remote` may look at to judge an answer."""

    status: int
    url: str
    headers: Mapping[str, str]
    redirects: tuple[tuple[str, Mapping[str, str]], ...]


class Remote:
    """A file at a host.

    Attributes:
        source: the key of the source it belongs to.
        address: what to call it in messages, without secrets.
        size: its bytes, once known.
    """

    def __init__(self, source: str, url: str) -> None:
        self.source = source
        self.address = shown(url)
        self.size: int | None = None
        self._url = url
        self._version: dict[str, str] = {}

    def locate(self) -> tuple[str, dict[str, str]]:
        """Where to send the request, and with which headers of its own."""
        return self._url, {}

    def refused(self, response: Response) -> FetchError | TryAgain:
        """What a 401 or 403 means."""
        return self.error(
            "access",
            "the file",
            f"HTTP {response.status}",
            f"check the host's terms and your proxy, or bring the files yourself with --from {self.source}=PATH",
        )

    def judge(self, response: Response, head: bytes | None) -> None:
        """Look at an answer before it is used.

        Args:
            response: status and headers.
            head: the first bytes of the body where they begin the file (or for a web page, most of it); else None.

        Raises:
            TryAgain, FetchError: it is not the file.
        """
        if head is not None and _is_page(response, head):
            raise TryAgain(self.error("format", "the file", "a web page with status 200", self.other_ways()), most=2)

    def learn(self, response: Response) -> None:
        """Remember what identifies this version of the file.

        Raises:
            FetchError: (reason "changed") it is another version than before.
        """
        self.same("ETag", response.headers.get("etag"))

    def same(self, what: str, value: str | None) -> None:
        """Check one identifying value against the one seen before."""
        if value is None or value.startswith("W/"):
            return
        before = self._version.setdefault(what, value)
        if before != value:
            raise self.error(
                "changed",
                f"one version of the file ({what} {before})",
                f"another ({what} {value})",
                "it was replaced on the host while it was being read; run the same command again",
            )

    def forget_version(self) -> None:
        """Start over with whatever is there now."""
        self.size = None
        self._version.clear()

    def other_ways(self) -> str:
        """What to do when this host does not deliver."""
        return f"try again later, another --route, or bring the files yourself with --from {self.source}=PATH"

    def error(self, reason: str, expected: str, got: str, remedy: str) -> FetchError:
        """An error about this file."""
        return FetchError(reason, self.source, self.address, expected, got, remedy)


def _is_page(response: Response, head: bytes) -> bool:
    kind = response.headers.get("content-type", "").lower()
    return (kind.startswith("text/html") and _HTML.match(head) is not None) or _HTML.match(head[:512]) is not None


class Http:
    """A client for many threads.

    Args:
        max_connections: connections at a time.
        limits: how patient to be.

    Proxies come from the usual variables (HTTPS_PROXY, NO_PROXY ...); certificates are always verified. After
    `cancel()`, every thread inside raises `Cancelled` at the next chunk.
    """

    def __init__(self, *, max_connections: int = 16, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.moved = 0
        self._stop = threading.Event()
        self._count = threading.Lock()
        try:
            self._client = httpx.Client(
                timeout=httpx.Timeout(self.limits.timeout_s),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=max_connections),
                follow_redirects=False,
                headers={"user-agent": f"imaginet_hub/{version('imaginet_hub')}", "accept-encoding": "identity"},
            )
        except (ValueError, httpx.InvalidURL, ImportError) as error:  # a proxy variable that makes no sense
            raise UsageError(f"the proxy settings cannot be used: {redacted(str(error))}") from error

    def __enter__(self) -> Http:
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.close()

    def cancel(self) -> None:
        """Make every transfer stop soon."""
        self._stop.set()

    def check(self) -> None:
        """Raise `Cancelled` if it is over."""
        if self._stop.is_set():
            raise Cancelled

    def read(self, remote: Remote, *, max_bytes: int) -> tuple[bytes, Response]:
        """A small file whole; a broken attempt starts over.

        Raises:
            FetchError: patience ended, or the answer is final.
        """
        patience = _Patience(self)
        while True:
            try:
                # Each file is its own version: a new attempt may meet a new one.
                remote.forget_version()
                pieces: list[bytes] = []
                total = 0
                with self._opened(remote, 0, None) as (response, body):
                    for piece in body:
                        total += len(piece)
                        if total > max_bytes:
                            raise remote.error(
                                "format", f"at most {max_bytes:,} bytes", "more", "this is not an image of the lists"
                            )
                        pieces.append(piece)
                return b"".join(pieces), response
            except TryAgain as trouble:
                patience.after(trouble)

    def stream(self, remote: Remote, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` to `end` (exclusive; None: to the last), resuming where a connection broke.

        Raises:
            FetchError: patience ended, the answer is final, or the file changed meanwhile (reason "changed").
        """
        position, patience = start, _Patience(self)
        while end is None or position < end:
            try:
                with self._opened(remote, position, end) as (_, body):
                    for piece in body:
                        position += len(piece)
                        patience.progress(len(piece))
                        yield piece
                return
            except TryAgain as trouble:
                patience.after(trouble)

    def probe(self, remote: Remote) -> int:
        """The file's size, asked for in a way that also shows whether ranges are honoured.

        Raises:
            FetchError: also (reason "range") when they are not.
        """
        for _ in self.stream(remote, 0, 1):
            pass
        if remote.size is None:
            raise remote.error("range", "a Content-Range that tells the file's size", "none", remote.other_ways())
        return remote.size

    @contextlib.contextmanager
    def _opened(self, remote: Remote, start: int, end: int | None) -> Iterator[tuple[Response, Iterator[bytes]]]:
        """One attempt: the answer to one request, judged, and its body."""
        self.check()
        url, own_headers = remote.locate()
        ranged = start > 0 or end is not None
        headers = {"range": f"bytes={start}-{'' if end is None else end - 1}"} if ranged else {}
        redirects: list[tuple[str, Mapping[str, str]]] = []
        first = origin_of(url)
        with contextlib.ExitStack() as stack:
            try:
                while True:
                    extra = own_headers if origin_of(url) == first else {}
                    raw = stack.enter_context(self._client.stream("GET", url, headers={**headers, **extra}))
                    if raw.status_code not in (301, 302, 303, 307, 308) or "location" not in raw.headers:
                        break
                    redirects.append((url, raw.headers))
                    url = self._next(remote, url, raw.headers["location"], len(redirects))
                    raw.close()
                response = Response(raw.status_code, url, raw.headers, tuple(redirects))
                pieces = _Pieces(raw.iter_bytes(_CHUNK) if _encoded(response) else raw.iter_raw(_CHUNK))
                length = self._accept(remote, response, pieces, start, end)
                yield response, self._body(remote, response, pieces, start, length)
            except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError) as error:
                raise self._translated(remote, error) from error

    def _next(self, remote: Remote, url: str, location: str, count: int) -> str:
        try:
            target = urljoin(url, location)
            scheme = urlsplit(target).scheme
        except ValueError:
            target, scheme = "", ""
        if count > _MAX_REDIRECTS or scheme not in ("http", "https"):
            got = "a redirect that leads nowhere" if count <= _MAX_REDIRECTS else "redirects without end"
            raise remote.error("status", "the file", got, remote.other_ways())
        if scheme == "http" and urlsplit(url).scheme == "https":
            raise remote.error(
                "status", "an encrypted connection", f"a redirect to {shown(target)}", remote.other_ways()
            )
        return target

    def _accept(self, remote: Remote, response: Response, pieces: _Pieces, start: int, end: int | None) -> int | None:
        """Judge status and headers; return how many bytes the body must have, None if the server does not say."""
        status = response.status
        if status in (401, 403):
            raise remote.refused(response)
        if status in (404, 410):
            raise remote.error("missing", "the file", f"HTTP {status}", remote.other_ways())
        if status in _RETRIED:
            asked = _retry_after(response.headers.get("retry-after"))
            error = remote.error(
                "status",
                "the file",
                f"HTTP {status}" + (f" with Retry-After {asked:.0f} s" if asked is not None else ""),
                remote.other_ways(),
            )
            if asked is not None and asked > self.limits.max_retry_after_s:
                raise error
            raise TryAgain(error, asked)
        if status == 416:
            remote_size = response.headers.get("content-range", "")
            raise remote.error(
                "changed",
                f"a file with a byte {start:,}",
                f"HTTP 416 ({remote_size or 'shorter'})",
                remote.other_ways(),
            )
        if status not in (200, 206):
            raise remote.error("status", "HTTP 200", f"HTTP {status}", remote.other_ways())
        length = response.headers.get("content-length", "")
        said = int(length) if length.isdigit() else None
        if status == 200:
            if _is_html(response):
                remote.judge(response, pieces.peek())
            if start > 0 or (end is not None and said != end):
                raise TryAgain(
                    remote.error(
                        "range",
                        f"bytes {start:,} to {end or 'the end'} (HTTP 206)",
                        "the whole file (HTTP 200): the server ignores ranges",
                        remote.other_ways(),
                    ),
                    most=2,
                )
            remote.learn(response)
            if said is not None and not _encoded(response):
                self._size(remote, said)
            return None if _encoded(response) else said
        return self._accept_range(remote, response, pieces, start, end)

    def _accept_range(self, remote: Remote, response: Response, pieces: _Pieces, start: int, end: int | None) -> int:
        given = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("content-range", ""))
        if _is_html(response):
            remote.judge(response, pieces.peek())
        wanted = f"bytes {start}-{'' if end is None else end - 1}"
        if given is None or _encoded(response):
            got = response.headers.get("content-range") or response.headers.get("content-encoding") or "none"
            raise TryAgain(
                remote.error("range", f"Content-Range {wanted}", f"{got[:80]!r}", remote.other_ways()), most=2
            )
        first, last, total = int(given[1]), int(given[2]), given[3]
        if total != "*":
            self._size(remote, int(total))
        expected_last = last if end is None else end - 1
        if remote.size is not None:
            expected_last = min(expected_last if end is not None else remote.size - 1, remote.size - 1)
        if first != start or last != expected_last:
            raise TryAgain(
                remote.error("range", f"Content-Range {wanted}", f"bytes {first}-{last}/{total}", remote.other_ways()),
                most=2,
            )
        remote.learn(response)
        return last - first + 1

    @staticmethod
    def _size(remote: Remote, size: int) -> None:
        if remote.size is not None and remote.size != size:
            raise remote.error(
                "changed",
                f"a file of {remote.size:,} bytes",
                f"one of {size:,}",
                "it was replaced on the host while it was being read; run the same command again",
            )
        remote.size = size

    def _body(
        self, remote: Remote, response: Response, pieces: _Pieces, start: int, length: int | None
    ) -> Iterator[bytes]:
        got, since, mark = 0, time.monotonic(), 0
        for piece in pieces:
            self.check()
            if got == 0 and start == 0 and piece:
                remote.judge(response, piece)
            got += len(piece)
            with self._count:
                self.moved += len(piece)
            if time.monotonic() - since > _SLOW_S:
                if got - mark < _SLOW * _SLOW_S:
                    raise TryAgain(
                        remote.error(
                            "network", "a transfer", f"{got - mark:,} bytes in {_SLOW_S} s", remote.other_ways()
                        )
                    )
                since, mark = time.monotonic(), got
            yield piece
        if length is not None and got != length:
            raise TryAgain(remote.error("network", f"{length:,} bytes", f"{got:,} and the end", remote.other_ways()))

    def _translated(self, remote: Remote, error: Exception) -> Exception:
        """A library's exception in our words."""
        certificate = _cause(error, ssl.SSLCertVerificationError)
        if certificate is not None:
            return remote.error(
                "network",
                "a valid certificate",
                redacted(str(certificate)),
                "certificates are always verified: repair the system's (SSL_CERT_FILE), or use another --route",
            )
        what = redacted(str(error)) or type(error).__name__
        if isinstance(error, httpx.TimeoutException):
            what = f"nothing for {self.limits.timeout_s:g} s"
        failed = remote.error(
            "network", "an answer", f"{type(error).__name__} ({what})", f"check the connection; {remote.other_ways()}"
        )
        if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
            return failed
        unreachable = isinstance(error, httpx.ConnectError | httpx.ProxyError)
        return TryAgain(failed, most=2 if unreachable else None)

    def pause(self, seconds: float) -> None:
        """Wait, unless it is over."""
        if self._stop.wait(seconds):
            raise Cancelled


class _Patience:
    """Counts failures in a row."""

    def __init__(self, http: Http) -> None:
        self._http = http
        self._failures = 0
        self._free = 0
        self._since = 0

    def progress(self, count: int) -> None:
        self._since += count
        if self._since >= _PROGRESS:
            self._failures = self._since = 0

    def after(self, trouble: TryAgain) -> None:
        limits = self._http.limits
        self._since = 0
        if not trouble.counts:
            self._free += 1
            if self._free > 10:
                raise trouble.error
            return
        self._failures += 1
        if self._failures > min(limits.retries, limits.retries if trouble.most is None else trouble.most):
            raise trouble.error from None
        pause = min(limits.max_backoff_s, limits.backoff_s * 2 ** (self._failures - 1)) * (0.5 + random.random())
        self._http.pause(trouble.wait_s if trouble.wait_s is not None else pause)


def _retry_after(value: str | None) -> float | None:
    """Seconds, from either form of the header."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def _encoded(response: Response) -> bool:
    return response.headers.get("content-encoding", "identity").lower() not in ("", "identity")


def _is_html(response: Response) -> bool:
    return response.headers.get("content-type", "").lower().startswith("text/html")


class _Pieces:
    """The body in pieces, of which the first can be looked at beforehand."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._peeked: list[bytes] = []

    def peek(self, most: int = 512 * 1024) -> bytes:
        """The beginning, up to a limit."""
        for piece in self._pieces:
            self._peeked.append(piece)
            if sum(map(len, self._peeked)) >= most:
                break
        return b"".join(self._peeked)

    def __iter__(self) -> Iterator[bytes]:
        yield from self._peeked
        yield from self._pieces


def _cause(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    while error is not None:
        if isinstance(error, kind):
            return error
        error = error.__cause__ or error.__context__
    return None
