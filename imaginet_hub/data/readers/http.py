"""Bytes over HTTP from hosts that fail: retries, resumption, and one clear error when it is over.

A `Remote` is a file at a host: it knows its address and what the host's answers mean. `Http.stream` reads a range of
it and goes on where a connection broke, `Http.read` gets a small file whole. Nothing is believed before it is
checked: statuses, ranges, lengths, and that the file behind the address is still the same one.
"""

from __future__ import annotations

import contextlib
import email.utils
import logging
import os
import random
import re
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit, urlunsplit

import httpx2 as httpx

from imaginet_hub.errors import FetchError, UsageError

__all__ = ["Cancelled", "Http", "Limits", "Remote", "Response", "TryAgain", "origin_of", "redacted"]

_MAX_REDIRECTS = 10
#: What a file is taken to have when its host does not say.
_UNKNOWN_BYTES = 8 * 1024**2
_RETRIED = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524}
#: An answer that resumes many times but trickles is a stall: bytes per second, over so many seconds.
_SLOW, _SLOW_S = 1024, 30
_PROGRESS = 64 * 1024
#: The body of a redirect is read if it is this short, so that the connection can be used again.
_SHORT = 16 * 1024
_LONGEST_TIMEOUT_S = 86_400.0
#: Who logs addresses and headers of requests.
_LOGGERS = ("httpx2", *(f"httpcore2.{part}" for part in ("connection", "http11", "http2", "proxy", "socks")))
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
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
        return min(float(text), _LONGEST_TIMEOUT_S) if text and float(text) > 0 else 10.0
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


def split(url: str) -> SplitResult | None:
    """An address in its parts, or None if it is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # which is looked at only now
    except ValueError:
        return None
    return parts


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
    return re.sub(r"(?i)[a-z][a-z0-9+.-]*://[^\s'\"<>]+", lambda m: shown(m[0]) if split(m[0]) else "(address)", text)


def _harmless(error: BaseException) -> BaseException | None:
    """The error as a cause to show in tracebacks, or None if its words hold something secret."""
    return error if redacted(str(error)) == str(error) else None


class _Discreet(logging.Filter):
    """Lets the HTTP library's records through without secrets."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = redacted(record.getMessage()), ()
        return True


_DISCREET = _Discreet()


@dataclass(frozen=True)
class Response:
    """What a `Remote` may look at to judge an answer; of the body, the beginning where it is a refusal."""

    status: int
    url: str
    headers: Mapping[str, str]
    redirects: tuple[tuple[str, Mapping[str, str]], ...]
    body: bytes = b""


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
        self._changed: FetchError | None = None

    def locate(self) -> tuple[str, dict[str, str]]:
        """Where to send the request, and with which headers of its own."""
        return self._url, {}

    def refuses_with_400(self, response: Response) -> bool:
        """Whether this host says 400 where others say 403."""
        return False

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
        if head is not None and _HTML.match(head):
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
            raise self.changed(f"one version of the file ({what} {before})", f"another ({what} {value})")

    def changed(self, expected: str, got: str) -> FetchError:
        """The error that the file is not the one it was; nothing more is asked of this one (see `check_version`)."""
        remedy = "it was replaced on the host while it was being read; run the same command again"
        self._changed = self.error("changed", expected, got, remedy)
        return self._changed

    def check_version(self) -> None:
        """Raise what `changed` said, if it was ever said: other requests for this version are in vain."""
        if self._changed is not None:
            raise self._changed

    @property
    def version(self) -> str:
        """What identifies the version that was seen; empty before."""
        return " ".join(f"{what}={value}" for what, value in sorted(self._version.items()))

    def forget_version(self) -> None:
        """Start over with whatever is there now."""
        self.size = None
        self._changed = None
        self._version.clear()

    def other_ways(self) -> str:
        """What to do when this host does not deliver."""
        if self.source == "annotations":
            return "try again later, or name lists that you have with --annotations"
        return f"try again later, another --route, or bring the files yourself with --from {self.source}=PATH"

    def error(self, reason: str, expected: str, got: str, remedy: str) -> FetchError:
        """An error about this file."""
        return FetchError(reason, self.source, self.address, expected, got, remedy)


class Http:
    """A client for many threads.

    Args:
        max_connections: connections at a time.
        limits: how patient to be.

    Proxies come from the usual variables (HTTPS_PROXY, NO_PROXY ...); certificates are always verified. After
    `cancel()`, every thread inside raises `Cancelled`: at the next piece, or at once where it waits for one.
    """

    def __init__(self, *, max_connections: int = 16, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.moved = 0
        self._stop = threading.Event()
        self._count = threading.Lock()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(_DISCREET)
        try:
            self._client = httpx.Client(
                timeout=httpx.Timeout(self.limits.timeout_s),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=max_connections),
                follow_redirects=False,
                headers={"user-agent": f"imaginet_hub/{version('imaginet_hub')}", "accept-encoding": "identity"},
            )
        except (ValueError, httpx.InvalidURL, ImportError) as error:  # a proxy variable that makes no sense
            # Not the library's words, nor as a cause: they may quote the variable, and it may hold a password.
            raise UsageError(
                f"the proxy settings cannot be used ({type(error).__name__}): expected http(s)://[user:password@]"
                "host:port in HTTP_PROXY, HTTPS_PROXY and ALL_PROXY"
            ) from None

    def __enter__(self) -> Http:
        return self

    def __exit__(self, *exc: object) -> None:
        self._client.close()

    def cancel(self) -> None:
        """Make every transfer stop now."""
        self._stop.set()
        with self._count:
            for each in list(self._sockets):
                _shut(each)

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Remember each connection's socket, so that `cancel` can wake whoever waits for it."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            found = info["return_value"].get_extra_info("socket")
            if isinstance(found, socket.socket):
                with self._count:
                    self._sockets.add(found)
                if self._stop.is_set():
                    _shut(found)

    def check(self) -> None:
        """Raise `Cancelled` if it is over."""
        if self._stop.is_set():
            raise Cancelled

    def read(
        self, remote: Remote, *, max_bytes: int, room: Callable[[int], None] | None = None
    ) -> tuple[bytes, Response]:
        """A small file whole; a broken attempt starts over.

        Args:
            remote: the file.
            max_bytes: more than that is an error.
            room: is told before each attempt how many bytes are coming; it may wait.

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
                    if room is not None:
                        room(min(max_bytes, remote.size or _UNKNOWN_BYTES))
                    for piece in body:
                        total += len(piece)
                        if total > max_bytes:
                            raise remote.error("format", f"at most {max_bytes:,} bytes", "more", remote.other_ways())
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
        remote.check_version()
        url, own_headers = remote.locate()
        ranged = start > 0 or end is not None
        headers = {"range": f"bytes={start}-{'' if end is None else end - 1}"} if ranged else {}
        redirects: list[tuple[str, Mapping[str, str]]] = []
        first = origin_of(url)
        with contextlib.ExitStack() as stack:
            try:
                while True:
                    extra = own_headers if origin_of(url) == first else {}
                    raw = stack.enter_context(
                        self._client.stream(
                            "GET", url, headers={**headers, **extra}, extensions={"trace": self._trace}
                        )
                    )
                    if raw.status_code not in (301, 302, 303, 307, 308) or "location" not in raw.headers:
                        break
                    redirects.append((url, raw.headers))
                    url = self._next(remote, url, raw.headers["location"], len(redirects))
                    length = _number(raw.headers.get("content-length"))
                    if length is not None and length <= _SHORT:
                        for _ in self._watched(remote, raw.iter_raw()):
                            pass
                    raw.close()
                response = Response(raw.status_code, url, raw.headers, tuple(redirects))
                # In pieces as they arrive: a library that waits to fill a larger one would hide a trickle.
                pieces = _Pieces(self._watched(remote, raw.iter_bytes() if _encoded(response) else raw.iter_raw()))
                length = self._accept(remote, response, pieces, start, end)
                yield response, self._body(remote, response, pieces, start, length)
            except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError, UnicodeError) as error:
                self.check()
                raise self._translated(remote, error) from _harmless(error)

    def _next(self, remote: Remote, url: str, location: str, count: int) -> str:
        try:
            target = urljoin(url, location)
            scheme, host, _ = origin_of(target)
            httpx.URL(target)
            scheme = scheme if host else ""
        except (ValueError, httpx.InvalidURL):
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
        if status in (401, 403) or (status == 400 and remote.refuses_with_400(response)):
            raise remote.refused(replace(response, body=pieces.peek(_SHORT)))
        if status == 407:
            raise remote.error(
                "access", "the file", "HTTP 407 from the proxy", "check the proxy's user and password in HTTP_PROXY"
            )
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
            remote_size = response.headers.get("content-range", "")[:80]
            raise remote.changed(f"a file with a byte {start:,}", f"HTTP 416 ({remote_size or 'shorter'})")
        if status not in (200, 206):
            raise remote.error("status", "HTTP 200", f"HTTP {status}", remote.other_ways())
        said = _number(response.headers.get("content-length"))
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
        given = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
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
            raise remote.changed(f"a file of {remote.size:,} bytes", f"one of {size:,}")
        remote.size = size

    def _body(
        self, remote: Remote, response: Response, pieces: _Pieces, start: int, length: int | None
    ) -> Iterator[bytes]:
        got = 0
        for piece in pieces:
            if got == 0 and start == 0 and piece:
                remote.judge(response, piece)
            got += len(piece)
            yield piece
        if length is not None and got != length:
            raise TryAgain(remote.error("network", f"{length:,} bytes", f"{got:,} and the end", remote.other_ways()))

    def _watched(self, remote: Remote, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """The pieces of a body, counted, as long as they come fast enough and nobody cancels."""
        got, waited, asked = 0, 0.0, time.monotonic()
        for piece in pieces:
            self.check()
            # Time that the reader takes for itself is not the host's.
            waited += time.monotonic() - asked
            got += len(piece)
            with self._count:
                self.moved += len(piece)
            if waited > _SLOW_S:
                if got < _SLOW * _SLOW_S:
                    slow = f"{got:,} bytes in {waited:.0f} s"
                    raise TryAgain(remote.error("network", "a transfer", slow, remote.other_ways()))
                got, waited = 0, 0.0
            yield piece
            asked = time.monotonic()

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
        if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol | UnicodeError):  # no name of a host
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
    if re.fullmatch(r"\s*[0-9]+\s*", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, LookupError, OverflowError):
        return None


def _number(text: str | None) -> int | None:
    """A header's number, or None if it is none (or none that a file's size could be)."""
    return int(text) if text is not None and re.fullmatch(r"[0-9]{1,18}", text) else None


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # The plain method: that of TLS sockets would take the connection from under its reader.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


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
