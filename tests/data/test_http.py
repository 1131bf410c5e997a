"""The HTTP client against hosts that fail, lie, trickle and redirect; real sockets."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import ssl
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imaginet_hub.data.readers import http as reading
from imaginet_hub.data.readers.hosts import DriveFile, Endpoints, HubFile, PlainFile, remote_for
from imaginet_hub.data.readers.http import Cancelled, Http, Limits, Remote, Response, TryAgain, redacted, shown
from imaginet_hub.demo.mirror import Fault, Mirror, Request, always, busy
from imaginet_hub.errors import FetchError, UsageError
from tests.support.published import FAST

DATA = random.Random(0).randbytes(300_000)
DRIVE_ID = "1abcdefghijklmnopqrstuvwxyz012345"
Serve = Callable[[Callable[[socket.socket, bytes], None]], str]


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("origin")
    for name in ("coco/val2017/1.bin", f"drive/{DRIVE_ID}", "hf/a/b/file.zip"):
        (base / name).parent.mkdir(parents=True)
        (base / name).write_bytes(DATA)
    return base


@pytest.fixture
def mirror(origin: Path) -> Iterator[Mirror]:
    with Mirror(origin) as running:
        yield running


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers of raw sockets: each connection is given to a function with the head of its request."""
    with contextlib.ExitStack() as stack:

        def start(answer: Callable[[socket.socket, bytes], None]) -> str:
            listener = socket.create_server(("127.0.0.1", 0))
            stack.callback(listener.close)
            stack.callback(lambda: contextlib.suppress(OSError) and listener.shutdown(socket.SHUT_RDWR))

            def talk(connection: socket.socket) -> None:
                with connection, contextlib.suppress(OSError):
                    while head := _head(connection):
                        answer(connection, head)

            def accept() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()

            threading.Thread(target=accept, daemon=True).start()
            return f"http://127.0.0.1:{listener.getsockname()[1]}"

        yield start


def _head(connection: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        piece = connection.recv(4096)
        if not piece:
            return b""
        head += piece
    return head


def plain(mirror: Mirror) -> Remote:
    return remote_for("coco:/val2017/1.bin", "coco", Endpoints.resolve(mirror.endpoints))


def whole(http: Http, remote: Remote, start: int = 0, end: int | None = None) -> bytes:
    return b"".join(http.stream(remote, start, end))


# --- resuming -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1, 65_535, 65_536, 100_000, 299_999])
def test_a_broken_transfer_goes_on_where_it_was(offset: int, mirror: Mirror) -> None:
    mirror.fault = lambda r: Fault(reset_after=offset) if r.number <= 2 else None
    with Http(limits=FAST) as http:
        assert whole(http, plain(mirror)) == DATA
    ranges = [request.range for request in mirror.requests]
    assert len(ranges) == (3 if offset < 200_000 else 2), "the rest is too short to be cut there again"
    # What reached us before the reset was kept: nothing is asked for twice but what the socket lost.
    assert [each[0] for each in ranges[1:] if each] == sorted(each[0] for each in ranges[1:] if each)  # type: ignore[type-var]


def test_a_trickle_of_pieces_is_kept_when_it_breaks(serve: Serve) -> None:
    """Each byte that arrived counts, also where it would not have filled a buffer."""
    asked: list[int] = []

    def answer(connection: socket.socket, head: bytes) -> None:
        start = int(head.split(b"bytes=")[1].split(b"-")[0]) if b"bytes=" in head else 0
        asked.append(start)
        left = DATA[start:1000]
        status = b"206 Partial Content\r\nContent-Range: bytes %d-999/1000" % start if start else b"200 OK"
        connection.sendall(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n" % (status, len(left)))
        for number in range(3):
            connection.sendall(left[number * 100 : number * 100 + 100])
            time.sleep(0.01)
        connection.shutdown(socket.SHUT_RDWR)

    with Http(limits=FAST) as http:
        assert whole(http, PlainFile("coco", serve(answer) + "/x")) == DATA[:1000]
    assert asked == [0, 300, 600, 900]


@pytest.mark.parametrize("times", [1, 9])
def test_a_server_that_ignores_a_range_when_resuming(times: int, mirror: Mirror) -> None:
    ignored = iter(range(times))

    def hook(request: Request) -> Fault | None:
        if request.number == 1:
            return Fault(reset_after=100_000)
        return Fault(ignore_range=True) if next(ignored, None) is not None else None

    mirror.fault = hook
    with Http(limits=FAST) as http:
        if times == 1:
            assert whole(http, plain(mirror)) == DATA
            return
        with pytest.raises(FetchError, match=r"the whole file .HTTP 200.: the server ignores ranges") as caught:
            whole(http, plain(mirror))
    assert caught.value.reason == "range"
    assert len(mirror.requests) == 3, "two attempts more are enough"


def test_a_file_that_changes_while_it_is_read(mirror: Mirror) -> None:
    mirror.fault = lambda r: Fault(reset_after=100_000) if r.number == 1 else Fault(etag="another")
    remote = plain(mirror)
    with Http(limits=FAST) as http:
        with pytest.raises(
            FetchError, match=r'one version of the file .ETag "[0-9a-f]*"., got another .ETag "another".'
        ):
            whole(http, remote)
        count = len(mirror.requests)
        for _ in range(3):  # what is known to be in vain is not asked for
            with pytest.raises(FetchError) as caught:
                whole(http, remote, 5, 10)
            assert caught.value.reason == "changed"
        assert len(mirror.requests) == count
        assert http.read(remote, max_bytes=10**6)[0] == DATA, "read starts over with what is there now"


def test_progress_renews_patience(mirror: Mirror) -> None:
    """A connection that breaks again and again is borne as long as it brings something."""
    mirror.fault = lambda r: Fault(reset_after=150_000) if (r.range or (0,))[0] == 0 else Fault(status=503)
    with Http(limits=Limits(retries=2, backoff_s=0.001)) as http, pytest.raises(FetchError, match="HTTP 503"):
        whole(http, plain(mirror))
    assert len(mirror.requests) == 1 + 2
    mirror.forget()
    mirror.fault = lambda r: Fault(short_after=70_000)
    with Http(limits=Limits(retries=0, backoff_s=0.001)) as http, pytest.raises(FetchError):
        whole(http, plain(mirror))
    mirror.forget()
    with Http(limits=Limits(retries=1, backoff_s=0.001)) as http:
        assert whole(http, plain(mirror)) == DATA
    assert len(mirror.requests) == 5


# --- time -----------------------------------------------------------------------------------------------------------


def trickle(before: bytes, every_s: float) -> Callable[[socket.socket, bytes], None]:
    def answer(connection: socket.socket, head: bytes) -> None:
        connection.sendall(before)
        while True:
            connection.sendall(b"x")
            time.sleep(every_s)

    return answer


@pytest.mark.parametrize("kind", ["application/zip", "text/html"])
def test_a_trickle_is_a_stall(kind: str, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then keeps a connection alive, but is no transfer; of a web page neither."""
    monkeypatch.setattr(reading, "_SLOW_S", 0.2)
    url = serve(
        trickle(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: 100000\r\n\r\n" % kind.encode(), 0.02)
    )
    began = time.monotonic()
    remote = PlainFile("coco", url + "/x")
    slow = pytest.raises(FetchError, match=r"expected a transfer, got \d+ bytes in 0 s")
    with Http(limits=Limits(retries=1, backoff_s=0.01)) as http, slow as caught:
        http.read(remote, max_bytes=10**6)
    assert caught.value.reason == "network"
    assert time.monotonic() - began < 3


def test_a_slow_reader_is_not_a_slow_host(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_SLOW_S", 0.2)
    monkeypatch.setattr(reading, "_SLOW", 10**9)
    with Http(limits=Limits(retries=0)) as http:
        got = 0
        for piece in http.stream(plain(mirror)):
            got += len(piece)
            time.sleep(0.15)
            if got == len(DATA):
                break
    assert got == len(DATA)


@pytest.mark.parametrize("where", ["before the answer", "in the body", "in a trickle", "in a pause"])
def test_cancelling_wakes_whoever_waits(where: str, serve: Serve) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
    if where == "in a pause":
        head = b"HTTP/1.1 503 Busy\r\nRetry-After: 100\r\nContent-Length: 100000\r\n\r\n"
    url = serve(trickle(b"" if where == "before the answer" else head, 0.01 if where == "in a trickle" else 60))
    ended: list[BaseException] = []

    def work() -> None:
        try:
            http.read(PlainFile("coco", url + "/x"), max_bytes=10**6)
        except BaseException as error:  # noqa: BLE001 - it is what ended the thread
            ended.append(error)

    with Http(limits=Limits(timeout_s=60)) as http:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        began = time.monotonic()
        http.cancel()
        for thread in threads:
            thread.join(5)
        assert time.monotonic() - began < 1
        with pytest.raises(Cancelled):
            http.read(PlainFile("coco", url + "/x"), max_bytes=1)
    assert [type(error) for error in ended] == [Cancelled] * 4


def test_an_hours_wait_is_not_waited(mirror: Mirror) -> None:
    for asked, as_date in ((3600, False), (3600, True), (10**30, False)):
        mirror.fault = always("1.bin", busy(503, asked, as_date=as_date))
        began = time.monotonic()
        with Http(limits=Limits()) as http, pytest.raises(FetchError, match=r"HTTP 503 with Retry-After \d+ s"):
            http.read(plain(mirror), max_bytes=1)
        assert time.monotonic() - began < 1
    assert len(mirror.requests) == 3


def test_seconds_that_a_server_asks_for_are_waited(mirror: Mirror) -> None:
    for as_date in (False, True):
        mirror.forget()
        mirror.fault = lambda r, as_date=as_date: busy(429, 1 + as_date, as_date=as_date) if r.number == 1 else None  # type: ignore[misc]
        began = time.monotonic()
        with Http(limits=FAST) as http:
            assert http.read(plain(mirror), max_bytes=10**6)[0] == DATA
        assert 0.9 < time.monotonic() - began < 3


@given(st.text() | st.sampled_from(["²", "-1", "", " 7 ", "9" * 5000, "Wed, 21 Oct 99999 07:28:00 GMT", "0,1", "1e9"]))
def test_any_retry_after_can_be_read(value: str) -> None:
    waited = reading._retry_after(value)
    assert waited is None or waited >= 0


@pytest.mark.parametrize(
    ("value", "seconds"), [("", 10), ("0", 10), ("-1", 10), ("nan", 10), ("0.5", 0.5), ("inf", 86400)]
)
def test_the_timeout_is_the_hubs(value: str, seconds: float, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", value)
    assert Limits().timeout_s == seconds
    with Http() as http:
        assert http.read(plain(mirror), max_bytes=10**6)[0] == DATA
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "soon")
    with pytest.raises(UsageError, match="HF_HUB_DOWNLOAD_TIMEOUT: expected a number of seconds, got 'soon'"):
        Limits()


# --- bytes that nobody should send ----------------------------------------------------------------------------------

HOSTILE = [
    b"",
    b"\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    b"HTTP/1.1 200\r\n\r\n",
    b"HTTP/1.1 999 ?\r\n\r\n",
    b"HTTP/9.9 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: \xc2\xb2\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\n12345",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: zstd, br, deflate\r\nContent-Length: 5\r\n\r\n12345",
    b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-9/" + b"9" * 5000 + b"\r\nContent-Length: 10\r\n\r\n0123456789",
    b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 9-0/10\r\nContent-Length: 10\r\n\r\n0123456789",
    b"HTTP/1.1 206 Partial\r\nContent-Range: bytes \xd9\xa3-9/*\r\nContent-Length: 10\r\n\r\n0123456789",
    b"HTTP/1.1 206 Partial\r\nContent-Length: 10\r\n\r\n0123456789",
    b"HTTP/1.1 416 No\r\nContent-Range: " + b"x" * 5000 + b"\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 429 Busy\r\nRetry-After: \xc2\xb2\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"X-Many: y\r\n" * 20_000 + b"\r\n",
    b"HTTP/1.1 200 OK\r\nX-Bad\x00: \x01\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 50,
    *(
        b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n"
        for location in (
            b"",
            b"http://",
            b"http:///x",
            b"//[",
            b"http://[::1",
            b"http://h:99999/",
            b"http://h:x/",
            b"http://\xc3\xa9\xff/",
            b"http://xn--\xe2\x98\xba/",
            b"http://" + b"a" * 70_000,
            b"http://a b/",
            b"http://.../",
            b"http://" + b"a" * 64 + b".invalid/",
            b"ftp://127.0.0.1/",
            b"javascript:alert(1)",
            b"\x7f",
        )
    ),
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_answers_end_in_our_error(number: int, serve: Serve) -> None:
    def answer(connection: socket.socket, head: bytes) -> None:
        connection.sendall(HOSTILE[number])
        connection.shutdown(socket.SHUT_WR)

    remote = PlainFile("coco", serve(answer) + "/x")
    with Http(limits=Limits(timeout_s=1, retries=1, backoff_s=0.001)) as http:
        with pytest.raises(FetchError) as caught:
            whole(http, remote, 0, 10)
        assert caught.value.remedy
        assert len(str(caught.value)) < 600
        with contextlib.suppress(FetchError):  # some are an answer to a plain request
            http.read(remote, max_bytes=100)


def test_random_answers_end_in_our_error(serve: Serve) -> None:
    chance = random.Random(7)
    good = b'HTTP/1.1 206 P\r\nContent-Range: bytes 0-9/10\r\nETag: "a"\r\nContent-Length: 10\r\n\r\n0123456789'

    def answer(connection: socket.socket, head: bytes) -> None:
        data = bytearray(good)
        for _ in range(chance.choice((1, 2, 5))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        connection.sendall(bytes(data))
        connection.shutdown(socket.SHUT_WR)

    url = serve(answer)
    for _ in range(60):
        with Http(limits=Limits(timeout_s=1, retries=0, backoff_s=0.001)) as http, contextlib.suppress(FetchError):
            assert len(whole(http, PlainFile("coco", url + "/x"), 0, 10)) == 10


def test_a_small_file_that_does_not_end(serve: Serve) -> None:
    def answer(connection: socket.socket, head: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")

    with (
        Http(limits=FAST) as http,
        pytest.raises(FetchError, match=r"at most 1,000,000 bytes, got more.*--from coco=PATH"),
    ):
        http.read(PlainFile("coco", serve(answer) + "/x"), max_bytes=1_000_000)


# --- redirects and tokens -------------------------------------------------------------------------------------------


def test_an_encrypted_connection_is_not_given_up() -> None:
    remote = PlainFile("coco", "https://example.org/x?token=SECRET")
    with Http(limits=FAST) as http:
        with pytest.raises(
            FetchError, match="an encrypted connection, got a redirect to http://elsewhere/y;"
        ) as caught:
            http._next(remote, "https://example.org/x", "http://user:SECRET@elsewhere/y?z=SECRET", 1)
        assert "SECRET" not in str(caught.value)
        assert http._next(remote, "https://example.org/x", "https://cdn/y", 1) == "https://cdn/y"
        assert http._next(remote, "http://example.org/a/x", "../y", 1) == "http://example.org/y"


def test_a_token_goes_to_its_own_host_alone(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    remote = remote_for("hf:a/b/file.zip", "cnndetection", Endpoints.resolve(mirror.endpoints))
    with Http(limits=FAST) as http:
        assert whole(http, remote, 10, 20) == DATA[10:20]
        assert whole(http, remote, 30, 40) == DATA[30:40]
    assert [(r.host, "authorization" in r.headers) for r in mirror.requests] == [
        ("hf", True),
        ("cdn", False),
        ("cdn", False),
    ]
    # By way of another host on the same address but another port, and back.
    mirror.forget()
    there = f"{mirror.endpoints['coco']}/back"
    back = f"{mirror.endpoints['hf']}/datasets/a/b/resolve/main/file.zip?again"

    def hook(request: Request) -> Fault | None:
        if request.host == "coco":
            return Fault(redirect_to=back)
        return Fault(redirect_to=there) if request.host == "hf" and "again" not in request.query else None

    mirror.fault = hook
    remote = remote_for("hf:a/b/file.zip", "cnndetection", Endpoints.resolve(mirror.endpoints))
    with Http(limits=FAST) as http:
        assert whole(http, remote, 10, 20) == DATA[10:20]
    assert {r.host for r in mirror.requests if "authorization" in r.headers} <= {"hf"}
    assert "hf_secret" not in repr(vars(http)) + repr(remote)


def test_a_password_in_an_address_goes_to_its_own_host_alone(mirror: Mirror) -> None:
    hf = mirror.endpoints["hf"].replace("://", "://user:pass@")
    remote = remote_for("hf:a/b/file.zip", "cnndetection", Endpoints.resolve({**mirror.endpoints, "hf": hf}))
    with Http(limits=FAST) as http:
        assert whole(http, remote, 10, 20) == DATA[10:20]
    assert [(r.host, "authorization" in r.headers) for r in mirror.requests] == [("hf", True), ("cdn", False)]
    assert "pass" not in remote.address


# --- Drive ----------------------------------------------------------------------------------------------------------


def page_of(file: DriveFile) -> Response:
    return Response(200, file.locate()[0], {"content-type": "text/html"}, ())


@pytest.mark.parametrize(
    "action",
    [
        "https://evil.example/download",
        "http://drive.usercontent.google.com/download",
        "https://drive.usercontent.google.com.evil.example/",
        "https://evilgoogle.com/",
        "https://google.com.@evil.example/download",
        "//evil.example/x?token=SECRET",
        "https://[half/",
        "https://drive.google.com:99999/",
        "javascript:alert(1)",
        "file:///etc/passwd",
    ],
)
def test_a_form_that_leads_away_from_google(action: str) -> None:
    file = DriveFile("wikiart", DRIVE_ID, "https://drive.google.com", moved=False)
    page = f'<!DOCTYPE html><form id="download-form" action="{action}"><input name="id" value="x"></form>'
    with pytest.raises(FetchError, match="a form that leads to Google Drive") as caught:
        file.judge(page_of(file), page.encode())
    assert "SECRET" not in str(caught.value)
    assert file.locate()[0].startswith("https://drive.google.com/uc?")


def test_the_form_of_google_itself() -> None:
    file = DriveFile("wikiart", DRIVE_ID, "https://drive.google.com", moved=False)
    action = "https://drive.usercontent.google.com/download"
    form = f'<form id="download-form" action="{action}"><input name="a" value="b&amp;c">'
    with pytest.raises(TryAgain) as caught:
        file.judge(page_of(file), f"<html>{form}<input name=confirm value=t></form><input name=no value=no>".encode())
    assert not caught.value.counts
    assert file.locate() == ("https://drive.usercontent.google.com/download?a=b%26c&confirm=t", {})
    moved = DriveFile("wikiart", DRIVE_ID, "http://127.0.0.1:1", moved=True)
    with pytest.raises(TryAgain):
        moved.judge(page_of(moved), f"<html>{form}</form>".encode())
    assert moved.locate()[0] == "http://127.0.0.1:1/download?a=b%26c"


@pytest.mark.parametrize(
    "page", [b"<html><![foo[", b"<html><!x[<![", b"<!doctype\0", b"<html>" + b"<" * 5000, b"<html>\xff\xfe<form id"]
)
def test_pages_that_no_parser_likes(page: bytes) -> None:
    file = DriveFile("wikiart", DRIVE_ID, "https://drive.google.com", moved=False)
    with pytest.raises((TryAgain, FetchError), match="a web page with status 200"):
        file.judge(page_of(file), page)


def test_many_threads_and_an_address_that_expires(mirror: Mirror) -> None:
    """Drive shows its form again, or refuses, to all that are under way: nobody fails, nobody asks for ever."""
    for fault in (Fault(page="virus"), Fault(status=403)):
        mirror.forget()
        expired: set[tuple[int | None, int | None] | None] = set()  # ranges that are still asked of the old address

        def hook(request: Request, fault: Fault = fault, expired: set = expired) -> Fault | None:
            if not request.query.get("confirm") or request.range not in expired:
                return None
            expired.remove(request.range)
            return fault

        mirror.fault = hook
        remote = remote_for(f"drive:{DRIVE_ID}", "wikiart", Endpoints.resolve(mirror.endpoints))
        results: list[bool] = []

        def work(number: int, remote: Remote = remote, results: list[bool] = results) -> None:
            start = number * 1000
            results.append(whole(http, remote, start, start + 1000) == DATA[start : start + 1000])

        with Http(limits=FAST) as http:
            assert http.probe(remote) == len(DATA)
            for number in range(3):
                work(number)
            expired.update((number * 1000, number * 1000 + 999) for number in range(16))
            threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert results == [True] * 19
        assert not expired
        assert len(mirror.requests) < 120


# --- proxies --------------------------------------------------------------------------------------------------------


def forward(seen: list[bytes]) -> Callable[[socket.socket, bytes], None]:
    """A tiny forward proxy for plain http, and CONNECT."""

    def answer(connection: socket.socket, head: bytes) -> None:
        seen.append(head)
        method, target, _ = head.split(b"\r\n")[0].split(b" ")
        parts = urlsplit(target.decode() if method != b"CONNECT" else f"//{target.decode()}")
        with socket.create_connection((parts.hostname, parts.port or 80)) as upstream:
            if method == b"CONNECT":
                connection.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            else:
                path = parts.path + (f"?{parts.query}" if parts.query else "")
                plain_head = head.replace(target, path.encode(), 1).replace(b"keep-alive", b"close")
                upstream.sendall(plain_head)
            while piece := upstream.recv(65536):
                connection.sendall(piece)
        connection.shutdown(socket.SHUT_RDWR)

    return answer


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


def test_a_proxy_is_used_and_its_password_goes_to_it_alone(
    mirror: Mirror, serve: Serve, no_proxies: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    no_proxies.setenv("HTTP_PROXY", serve(forward(seen)).replace("://", "://user:pass@"))
    with Http(limits=FAST) as http:
        assert http.read(plain(mirror), max_bytes=10**6)[0] == DATA
        assert whole(http, plain(mirror), 5, 10) == DATA[5:10]
    assert 2 <= (used := len(seen)) <= 4
    assert all(b"proxy-authorization: basic" in head.lower() for head in seen)
    count = len(mirror.requests)
    no_proxies.setenv("NO_PROXY", "127.0.0.1,localhost")
    with Http(limits=FAST) as http:
        assert http.read(plain(mirror), max_bytes=10**6)[0] == DATA
    assert len(seen) == used, "NO_PROXY is respected"
    assert "authorization" not in mirror.requests[count].headers


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_wants_a_password(scheme: str, serve: Serve, no_proxies: pytest.MonkeyPatch) -> None:
    def answer(connection: socket.socket, head: bytes) -> None:
        connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")

    no_proxies.setenv(f"{scheme.upper()}_PROXY", serve(answer).replace("://", "://user:SECRET@"))
    with Http(limits=FAST) as http, pytest.raises(FetchError, match="407") as caught:
        http.read(PlainFile("coco", f"{scheme}://127.0.0.1:9/x"), max_bytes=1)
    text = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert "SECRET" not in text


@pytest.mark.parametrize(
    "proxy",
    ["nonsense", "ftp://u:SECRET@h", "socks5://u:SECRET@h:1", "http://u:SECRET@h:port", "http://u:SECRET@[h", "::"],
)
def test_a_proxy_that_makes_no_sense(proxy: str, no_proxies: pytest.MonkeyPatch) -> None:
    no_proxies.setenv("ALL_PROXY", proxy)
    try:
        with Http(limits=FAST) as http, pytest.raises((FetchError, UsageError)) as caught:
            http.read(PlainFile("coco", "http://127.0.0.1:9/x"), max_bytes=1)
        error: Exception = caught.value
    except UsageError as refused:
        error = refused
        assert "the proxy settings cannot be used" in str(error)
    assert "SECRET" not in "".join(traceback.format_exception(error)) + repr(error)


# --- certificates ---------------------------------------------------------------------------------------------------


def test_certificates_are_verified(tmp_path: Path, no_proxies: pytest.MonkeyPatch) -> None:
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-keyout", "key", "-out", "cert"),
        ],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    if made.returncode != 0:
        pytest.skip("no openssl here")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with contextlib.suppress(ssl.SSLError):
                        context.wrap_socket(listener.accept()[0], server_side=True)

        threading.Thread(target=accept, daemon=True).start()
        with (
            Http(limits=FAST) as http,
            pytest.raises(FetchError, match=r"a valid certificate, got .*self.signed") as c,
        ):
            http.read(PlainFile("coco", f"https://127.0.0.1:{listener.getsockname()[1]}/x"), max_bytes=1)
        assert "certificates are always verified" in str(c.value)
        listener.shutdown(socket.SHUT_RDWR)


# --- what is shown --------------------------------------------------------------------------------------------------


def test_logs_hold_no_secrets(
    mirror: Mirror, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when somebody turns the HTTP library's own logging on."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_TOKEN", "hf_SECRETTOKEN")
    endpoints = {
        name: url.replace("://", "://user:SECRETPASS@") for name, url in mirror.endpoints.items() if name != "hf"
    }
    where = Endpoints.resolve({**mirror.endpoints, **endpoints})
    with Http(limits=FAST) as http:
        for address in ("hf:a/b/file.zip", f"drive:{DRIVE_ID}", "coco:/val2017/1.bin"):
            assert whole(http, remote_for(address, "x", where), 10, 20) == DATA[10:20]
    assert "HTTP Request: GET http://127.0.0.1" in caplog.text
    assert "receive_response_headers" in caplog.text
    for secret in ("SECRET", "Signature", "Expires="):
        assert secret not in caplog.text


@pytest.mark.parametrize(
    "value",
    [
        "coco=http://u:SECRET@h,http://u:SECRET@h",
        "http://u:SECRET@h",
        "http://u:SECRET@h/?a=b",
        "coco=http://u:SE,CRET@h",
        "coco=ftp://u:SECRET@h",
        "coco=http://u:SECRET@h:port",
        "coco=http://u:SECRET@[",
        "coco=http://u:SECRET@",
        "kagle=http://u:SECRET@h",
        "kaggle=ftp://u:SECRET@h",
    ],
)
def test_endpoints_that_make_no_sense_are_not_quoted(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGINET_ENDPOINTS", value)
    with pytest.raises(UsageError, match="IMAGINET_ENDPOINTS") as caught:
        Endpoints.resolve()
    text = "".join(traceback.format_exception(caught.value))
    assert "SECRET" not in text
    assert "CRET@" not in text


@pytest.mark.parametrize("base", ["foo", "ftp://h", "http://u:SECRET@h:port", "http://"])
def test_the_variable_that_is_wrong_is_named(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGINET_ENDPOINTS", f"coco={base}")
    with pytest.raises(UsageError, match=r"^IMAGINET_ENDPOINTS: expected coco=http") as caught:
        Endpoints.resolve()
    assert "SECRET" not in str(caught.value)
    monkeypatch.delenv("IMAGINET_ENDPOINTS")
    monkeypatch.setenv("HF_ENDPOINT", base)
    with pytest.raises(UsageError, match=r"^HF_ENDPOINT: expected http"):
        Endpoints.resolve()
    assert Endpoints.resolve({"hf": "http://h"}).bases["hf"] == "http://h", "what is given comes first"
    monkeypatch.setenv("IMAGINET_ENDPOINTS", "hf=http://other")
    assert Endpoints.resolve().bases["hf"] == "http://other"
    with pytest.raises(UsageError, match=r"^endpoints: expected drive=http"):
        Endpoints.resolve({"drive": base})


@pytest.mark.parametrize("scheme", ["https", "HTTPS", "Http"])
def test_addresses_are_redacted_however_they_are_written(scheme: str) -> None:
    said = redacted(f"failed: {scheme}://user:SECRET@h/x?sig=SECRET, {scheme}://user:SECRET@h:port/x")
    assert said == f"failed: {scheme.lower()}://h/x (address)"


@given(st.text(alphabet="abc/:@?#[]%. \\&=", max_size=40))
def test_what_is_shown_never_holds_user_or_query(tail: str) -> None:
    assert "SECRET" not in redacted(f"failed: https://user:SECRET@host{tail.replace('@', '').replace('/', '')}")
    assert "SECRET" not in redacted("failed: Bearer SECRET")
    assert "SECRET" not in redacted("got b'Bearer hf_SECRET' there")
    with contextlib.suppress(ValueError):
        assert "SECRET" not in shown(f"https://host/path?{tail}=SECRET")


def test_errors_do_not_carry_the_librarys_words_along(mirror: Mirror, serve: Serve) -> None:
    """Neither str, repr nor the chain of causes of an error shows what an address held."""
    base = serve(lambda connection, head: connection.sendall(b"junk\r\n\r\n")).replace("://", "://user:SECRET@")
    with Http(limits=Limits(timeout_s=1, retries=0)) as http, pytest.raises(FetchError) as caught:
        http.read(PlainFile("coco", f"{base}/x?Signature=SECRET"), max_bytes=10)
    chain: BaseException | None = caught.value
    while chain is not None:
        assert "SECRET" not in f"{chain} {chain!r} {chain.args}"
        chain = chain.__cause__ or chain.__context__
    assert os.environ.get("HF_TOKEN") is None


def test_drives_new_address_outlives_a_late_refusal_of_the_old_one() -> None:
    file = DriveFile("wikiart", DRIVE_ID, "https://drive.google.com", moved=False)
    form = '<html><form id="download-form" action="https://drive.google.com/d"><input name="uuid" value="new"></form>'
    with pytest.raises(TryAgain):
        file.judge(page_of(file), form.encode())
    new = "https://drive.google.com/d?uuid=new"
    old = Response(200, "https://drive.google.com/d?uuid=old", {"content-type": "text/html"}, ())
    assert isinstance(file.refused(old), TryAgain)
    with pytest.raises(TryAgain) as caught:
        file.judge(old, form.encode())
    assert caught.value.counts
    assert file.locate()[0] == new
    assert isinstance(file.refused(Response(403, new, {}, ())), TryAgain)
    assert file.locate()[0] != new


def test_hub_files_renew_what_another_thread_has_not(mirror: Mirror) -> None:
    """A late refusal of an old signature does not throw away the new one."""
    file = remote_for("hf:a/b/file.zip", "x", Endpoints.resolve(mirror.endpoints))
    assert isinstance(file, HubFile)
    new = Response(206, "http://cdn/new", {}, ((file._url, {}),))
    file.learn(new)
    assert isinstance(file.refused(Response(403, "http://cdn/old", {}, ())), TryAgain)
    assert file.locate()[0] == "http://cdn/new"
    assert isinstance(file.refused(Response(403, "http://cdn/new", {}, ())), TryAgain)
    assert file.locate()[0] == file._url


def test_a_hub_file_is_the_same_whichever_cdn_answers() -> None:
    def seen(host: str, linked: str | None, etag: str) -> HubFile:
        file = HubFile("journeydb", "a/b", "c.tgz", "https://huggingface.co")
        redirects = ((file._url, {"x-linked-etag": linked} if linked else {}),)
        file.learn(Response(206, f"https://{host}/x?sig", {"etag": etag}, redirects))
        return file

    first = seen("cdn-lfs-us-1.hf.co", '"sha"', '"abc"')
    assert first.version == seen("cas-bridge.xethub.hf.co", '"sha"', '"def"').version != ""
    assert first.version != seen("cdn-lfs-us-1.hf.co", '"other"', '"abc"').version
    plain = [seen("h", None, etag).version for etag in ('"abc"', '"def"')]
    assert plain[0] != plain[1] and all(plain), "without the Hub's word, the ETag counts"
    for linked, etag in (('"other"', '"abc"'), ('"sha"', '"other"')):
        file = seen("h", '"sha"', '"abc"')
        with pytest.raises(FetchError) as caught:
            file.learn(Response(206, "https://h/x", {"etag": etag}, ((file._url, {"x-linked-etag": linked}),)))
        assert caught.value.reason == "changed"
