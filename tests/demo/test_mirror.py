"""The mirror, as independent clients see it: http.client, urllib, bare sockets, huggingface_hub."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import io
import json
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import httpx2
import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from imaginet_hub.demo.crc32c import crc32c
from imaginet_hub.demo.mirror import Fault, Mirror, Request, always, busy, chain, first, once

SMALL, LARGE = "1SmallFileOnDrive0123456789abcdefg", "1LargeFileOnDrive0123456789-_abcde"
PHOTO = bytes(range(256)) * 4  # 1,024 bytes
BIG = bytes(range(251)) * 900  # 225,900 bytes
LIST = b"./val2017/000000000139.jpg,0,0,4,8\n" * 20
ANNOTATIONS = "/delyan-boychev/imaginet/d87b53a/annotations/test_annotations.txt"
ZIP, GATED_ZIP = "/datasets/some/zips/resolve/main/a b.zip", "/datasets/some/gated/resolve/main/data/x.tgz"
TOKEN = "hf_onlythisone"
API = "/api/v1"
COMPETITION, DATASET = f"{API}/competitions/data/download", f"{API}/datasets/download/an-owner/a-set"
IMAGE = "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG"
ME = {"Authorization": "Basic " + base64.b64encode(b"me:a:key").decode()}
Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    files = {
        "coco/val2017/000000000139.jpg": PHOTO,
        "coco/zips/val2017.zip": BIG,
        f"github{ANNOTATIONS}": LIST,
        f"drive/{SMALL}": PHOTO,
        f"drive/{LARGE}": BIG,
        "hf/some/zips/a b.zip": BIG,
        "hf/some/zips/README.md": b"# zips\n",
        "hf/some/gated/data/x.tgz": PHOTO,
        "hf/some/gated/README.md": b"# gated\n",
        f"kaggle/competitions/imagenet/files/{IMAGE}": PHOTO,
        "kaggle/competitions/imagenet/archive.zip": BIG,
        "kaggle/datasets/an-owner/a-set/files/Art Nouveau/j\u00e3 (1)+%20.jpg": PHOTO,
        "kaggle/datasets/an-owner/a-set/files/really.zip": BIG,
        "kaggle/datasets/an-owner/a-set/archive.zip": BIG,
    }
    for name, data in files.items():
        file = tmp_path / "origin" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    (tmp_path / "secret.txt").write_text("the secret")
    return tmp_path / "origin"


@pytest.fixture
def mirror(origin: Path) -> Iterator[Mirror]:
    accounts = {"me": "a:key"}
    with Mirror(origin, gated={"some/gated": TOKEN}, kaggle=accounts, kaggle_tokens=["KGAT_x"]) as running:
        yield running


def ask(url: str, method: str = "GET", **headers: str) -> Answer:
    """One request without following redirects; header names in lower case, underscores for dashes."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, headers={k.replace("_", "-"): v for k, v in headers.items()})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def raw(url: str, target: str, timeout: float = 5.0, range_: str = "") -> tuple[bytes, type[Exception] | None]:
    """Everything that comes over a bare socket, and how it ended: None for a clean close."""
    parts = urlsplit(url)
    got = b""
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout) as connection:
        asked = f"Range: bytes={range_}\r\n" if range_ else ""
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\n{asked}\r\n".encode("latin-1"))
        try:
            while piece := connection.recv(65536):
                got += piece
                head, found, body = got.partition(b"\r\n\r\n")
                length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                if found and length and len(body) == int(length[0].split(b":")[1]):
                    return got, None
        except OSError as error:
            return got, type(error)
    return got, EOFError  # closed before the end


def body_of(got: bytes) -> bytes:
    return got.partition(b"\r\n\r\n")[2]


# --- what every host does -------------------------------------------------------------------------------------------


def test_every_host_is_an_origin_of_its_own(mirror: Mirror) -> None:
    assert set(mirror.endpoints) == {"coco", "github", "drive", "hf", "kaggle"}
    assert len({*mirror.endpoints.values(), mirror.cdn, mirror.gcs}) == 7
    others = ("coco", "github", "drive", "kaggle")
    assert mirror.environ() == {
        "HF_ENDPOINT": mirror.endpoints["hf"],
        "IMAGINET_ENDPOINTS": ",".join(f"{host}={mirror.endpoints[host]}" for host in others),
    }


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("0-0", 0, 1),
        ("10-19", 10, 20),
        ("1000-", 1000, 1024),
        ("-24", 1000, 1024),
        ("-9999", 0, 1024),
        ("1000-99999", 1000, 1024),
    ],
)
def test_ranges(mirror: Mirror, asked: str, start: int, stop: int) -> None:
    for host, path in (("coco", "/val2017/000000000139.jpg"), ("drive", f"/download?id={SMALL}&export=download")):
        status, headers, body = ask(mirror.endpoints[host] + path, Range=f"bytes={asked}")
        assert (status, body) == (206, PHOTO[start:stop])
        assert headers["content-range"] == f"bytes {start}-{stop - 1}/1024"
        assert headers["content-length"] == str(stop - start)


def test_ranges_that_are_none(mirror: Mirror) -> None:
    url = f"{mirror.endpoints['coco']}/val2017/000000000139.jpg"
    for ignored in ("bytes=0-1,5-6", "bytes=9-3", "lines=0-1", "bytes=-"):
        assert ask(url, Range=ignored)[::2] == (200, PHOTO)
    for beyond in ("bytes=1024-", "bytes=1024-1030", "bytes=-0"):
        status, headers, _ = ask(url, Range=beyond)
        assert (status, headers["content-range"]) == (416, "bytes */1024")


def test_conditions(mirror: Mirror) -> None:
    url = f"{mirror.endpoints['coco']}/val2017/000000000139.jpg"
    etag = ask(url)[1]["etag"]
    assert ask(url, Range="bytes=0-9", If_Range=etag)[::2] == (206, PHOTO[:10])
    assert ask(url, Range="bytes=0-9", If_Range='"another"')[::2] == (200, PHOTO)
    assert ask(url, If_Match=etag)[0] == 200
    assert ask(url, If_Match='"another"')[0] == 412
    assert ask(url, If_None_Match=etag)[::2] == (304, b"")


def test_heads_have_the_headers_and_no_body(mirror: Mirror) -> None:
    url = f"{mirror.endpoints['coco']}/val2017/000000000139.jpg"
    whole, head = ask(url), ask(url, "HEAD")
    assert head[2] == b"" and head[1]["content-length"] == "1024" and head[1]["etag"] == whole[1]["etag"]
    assert [request.sent for request in mirror.requests] == [1024, 0]


def test_one_connection_carries_many_requests(mirror: Mirror) -> None:
    connection = http.client.HTTPConnection(urlsplit(mirror.endpoints["coco"]).netloc, timeout=5)
    connection.connect()
    mine = connection.sock
    for path, status in (("/val2017/000000000139.jpg", 200), ("/nothing", 403), ("/zips/val2017.zip", 200)) * 3:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        assert response.status == status and connection.sock is mine
    connection.close()


def test_the_log(mirror: Mirror) -> None:
    base = mirror.endpoints["coco"]
    ask(f"{base}/val2017/000000000139.jpg?a=1&b=", Range="bytes=5-", X_Mine="yes")
    ask(f"{base}/val2017/000000000139.jpg", Range="bytes=-3")
    ask(f"{base}/val2017/absent%20one.jpg")
    one, two, three = mirror.requests
    assert (one.host, one.method, one.path, one.query) == (
        "coco",
        "GET",
        "/val2017/000000000139.jpg",
        {"a": "1", "b": ""},
    )
    assert (one.range, one.headers["x-mine"], one.number, one.status, one.sent) == ((5, None), "yes", 1, 206, 1019)
    assert (two.range, two.number, two.sent) == ((None, 3), 2, 3)
    assert (three.path, three.status, three.number, three.range) == ("/val2017/absent one.jpg", 403, 1, None)
    assert mirror.sent == 1019 + 3 + three.sent
    mirror.forget()
    assert mirror.sent == 0 and mirror.requests == []


def test_many_clients_at_once(mirror: Mirror) -> None:
    url = f"{mirror.endpoints['coco']}/val2017/000000000139.jpg"
    with ThreadPoolExecutor(48) as pool:
        assert {body for _, _, body in pool.map(lambda _: ask(url), range(192))} == {PHOTO}
    assert sorted(request.number for request in mirror.requests) == list(range(1, 193))
    assert mirror.sent == 192 * 1024


def test_latency_is_per_request_not_per_client(origin: Path) -> None:
    with Mirror(origin, latency_s=0.1) as mirror:
        url = f"{mirror.endpoints['coco']}/val2017/000000000139.jpg"
        started = time.monotonic()
        with ThreadPoolExecutor(10) as pool:
            list(pool.map(lambda _: ask(url), range(10)))
        assert 0.1 <= time.monotonic() - started < 0.8


def test_files_beyond_four_gigabytes(origin: Path, mirror: Mirror) -> None:
    file = origin / "coco" / "zips" / "train2017.zip"
    with file.open("wb") as stream:  # sparse
        stream.seek(5 << 30)
        stream.write(b"the end")
    url = f"{mirror.endpoints['coco']}/zips/train2017.zip"
    assert ask(url, Range="bytes=-7")[::2] == (206, b"the end")
    assert ask(url, "HEAD")[1]["content-length"] == str((5 << 30) + 7)
    with urllib.request.urlopen(url) as response:  # whoever leaves early does no harm
        assert response.read(3) == bytes(3)
    assert ask(url, Range=f"bytes={5 << 30}-{(5 << 30) + 2}")[2] == b"the"


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/../../secret.txt",
        "/val2017/../../../secret.txt",
        "/%2e%2e/%2e%2e/secret.txt",
        "/..%2f..%2fsecret.txt",
        "/..%5c..%5csecret.txt",
        "//secret.txt",
        "/val2017/%00",
        "/val2017/" + "x" * 5000,
        "/link.txt",
        "http://[/secret.txt",
        "/download?id=../../secret.txt&confirm=t",
        "/download?id=..%2F..%2Fsecret.txt",
        "/datasets/../../resolve/main/secret.txt",
        "/datasets/some/zips/resolve/main/../../../../secret.txt",
        "/datasets/some/zips/resolve/main/%2e%2e/%2e%2e/%2e%2e/%2e%2e/secret.txt",
        "/api/datasets/../..",
        "/api/datasets/%2e%2e/%2e%2e/tree/main",
        "/repos/../../secret.txt?Expires=99999999999&Signature=0",
        "/api/v1/competitions/data/download/imagenet/../../../../../secret.txt",
        "/api/v1/competitions/data/download/../../secret.txt",
        "/api/v1/competitions/data/download-all/..",
        "/api/v1/datasets/download/../..",
        "/api/v1/datasets/download/an-owner/a-set/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/secret.txt",
        "/api/v1/datasets/download/an-owner/a-set/link.txt",
        "/kaggle-data-sets/../../secret.txt?X-Goog-Date=20240101T000000Z&X-Goog-Expires=99999999999",
        "/\udcff".encode("utf-8", "surrogateescape").decode("latin-1"),
    ],
)
def test_hostile_paths_stay_inside(origin: Path, mirror: Mirror, path: str) -> None:
    for place in ("coco", "github", "drive", "hf", "kaggle/datasets/an-owner/a-set/files"):
        (origin / place / "link.txt").symlink_to(origin.parent / "secret.txt")
    for url in (*mirror.endpoints.values(), mirror.cdn, mirror.gcs):
        got, error = raw(url, path)
        assert error is None and b" 40" in got.split(b"\r\n")[0] and b"the secret" not in got


def test_leaving_does_not_wait_for_clients(origin: Path) -> None:
    with Mirror(origin, fault=always("val2017", Fault(stall_after=10, stall_s=60))) as mirror:
        url = mirror.endpoints["coco"]
        idle = socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), 5)
        stalled = threading.Thread(target=raw, args=(url, "/val2017/000000000139.jpg"))
        stalled.start()
        while not mirror.requests:
            time.sleep(0.01)
        started = time.monotonic()
    assert time.monotonic() - started < 2
    assert idle.recv(1) == b""
    stalled.join(5)
    assert not stalled.is_alive()
    with pytest.raises(OSError):
        ask(url)


def test_it_answers_as_a_proxy_is_asked(mirror: Mirror) -> None:
    got, _ = raw(mirror.endpoints["coco"], "http://images.example/val2017/000000000139.jpg?x=http://y/")
    assert body_of(got) == PHOTO and mirror.requests[0].query == {"x": "http://y/"}


# --- what each host does --------------------------------------------------------------------------------------------


def test_coco_is_s3(mirror: Mirror) -> None:
    base = mirror.endpoints["coco"]
    _, headers, body = ask(f"{base}/val2017/000000000139.jpg")
    assert headers["etag"] == f'"{hashlib.md5(body).hexdigest()}"'
    assert headers["server"] == "AmazonS3" and len(headers["x-amz-request-id"]) == 16
    _, headers, body = ask(f"{base}/zips/val2017.zip")
    digest, _, parts = headers["etag"].strip('"').partition("-")
    assert body == BIG and int(parts) >= 1 and digest != hashlib.md5(BIG).hexdigest()
    status, headers, body = ask(f"{base}/val2017/000000000140.jpg")
    assert (status, headers["content-type"]) == (403, "application/xml") and b"<Code>AccessDenied</Code>" in body


def test_a_changed_file_has_another_etag(origin: Path, mirror: Mirror) -> None:
    for host, path, file in (
        ("coco", "/val2017/000000000139.jpg", "coco/val2017/000000000139.jpg"),
        ("coco", "/zips/val2017.zip", "coco/zips/val2017.zip"),
        ("github", ANNOTATIONS, f"github{ANNOTATIONS}"),
        ("hf", ZIP.replace(" ", "%20"), "hf/some/zips/a b.zip"),
    ):
        before = ask(mirror.endpoints[host] + path)[1]["etag"]
        (origin / file).write_bytes(b"another" + (origin / file).read_bytes()[7:])
        assert ask(mirror.endpoints[host] + path)[1]["etag"] != before


def test_github_gzips_for_whom_accepts_it(mirror: Mirror) -> None:
    url = mirror.endpoints["github"] + ANNOTATIONS
    status, plain, body = ask(url)
    assert (status, body) == (200, LIST) and "content-encoding" not in plain and plain["etag"]
    _, packed, body = ask(url, Accept_Encoding="gzip, deflate, br")
    assert packed["content-encoding"] == "gzip" and gzip.decompress(body) == LIST
    assert packed["content-length"] == str(len(body)) and packed["etag"] == f"W/{plain['etag']}"
    assert ask(url, Range="bytes=2-8", Accept_Encoding="gzip")[2] == LIST[2:9]
    assert ask(f"{url}.gone")[::2] == (404, b"404: Not Found")


def test_drive_sends_small_files_after_a_redirect(mirror: Mirror) -> None:
    url = f"{mirror.endpoints['drive']}/uc?id={SMALL}&export=download"
    status, headers, body = ask(url)
    assert (status, body) == (303, b"")
    assert headers["location"] == f"{mirror.endpoints['drive']}/download?id={SMALL}&export=download"
    with urllib.request.urlopen(url) as response:
        assert response.read() == PHOTO and response.headers.get_content_type() == "application/octet-stream"
        assert response.headers.get_content_disposition() == "attachment"


class _Form(HTMLParser):
    """The form's attributes and its hidden inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.form: dict[str, str | None] = {}
        self.hidden: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "form":
            self.form = found
        elif tag == "input" and found.get("type") == "hidden":
            self.hidden[found["name"] or ""] = found["value"] or ""


def test_drive_asks_before_it_sends_large_files(mirror: Mirror) -> None:
    base = mirror.endpoints["drive"]
    for path in ("/uc", "/download"):
        status, headers, body = ask(f"{base}{path}?id={LARGE}&export=download", Range="bytes=0-99")
        assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert b"can&#39;t scan this file for viruses" in body and BIG[:50] not in body
        page = _Form()
        page.feed(body.decode())
    assert page.form == {
        "id": "download-form",
        "action": "https://drive.usercontent.google.com/download",
        "method": "get",
    }
    assert list(page.hidden) == ["id", "export", "confirm", "uuid"] and page.hidden["confirm"] == "t"
    url = f"{base}/download?{urlencode(page.hidden)}"
    status, headers, body = ask(url)
    assert (status, body) == (200, BIG) and headers["content-disposition"].startswith("attachment")
    assert ask(url, Range="bytes=225000-")[::2] == (206, BIG[225000:])
    status, headers, body = ask(f"{base}/uc?id={LARGE}&export=download&confirm=t")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")


def test_drives_limit_moves(origin: Path) -> None:
    with Mirror(origin, virus_scan_over=len(BIG)) as mirror:
        assert ask(f"{mirror.endpoints['drive']}/uc?id={LARGE}&export=download")[0] == 303


def test_drive_does_not_know_every_id(mirror: Mirror) -> None:
    for path in ("/uc?id=1AbsentFileOnDrive0123456789abcde", "/uc", f"/other?id={SMALL}"):
        status, headers, body = ask(mirror.endpoints["drive"] + path)
        assert (status, headers["content-type"]) == (404, "text/html; charset=utf-8") and b"404" in body


def test_huggingface_hub_downloads(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    hub = mirror.endpoints["hf"]
    for name, data in (("a b.zip", BIG), ("README.md", b"# zips\n")):
        file = hf_hub_download("some/zips", name, repo_type="dataset", endpoint=hub, cache_dir=tmp_path / "cache")
        assert Path(file).read_bytes() == data
        again = hf_hub_download("some/zips", name, repo_type="dataset", endpoint=hub, cache_dir=tmp_path / "cache")
        assert again == file
    # Large files are stored under their SHA-256, small ones under git's id: that is what their ETags are.
    blobs = {path.name for path in (tmp_path / "cache").rglob("blobs/*")}
    assert blobs == {hashlib.sha256(BIG).hexdigest(), hashlib.sha1(b"blob 7\0# zips\n").hexdigest()}
    assert [r.sent for r in mirror.requests if r.host == "cdn"] == [len(BIG)]


def test_hub_errors_are_recognised(mirror: Mirror, tmp_path: Path) -> None:
    def download(repo: str, name: str, revision: str = "main") -> None:
        hf_hub_download(
            repo,
            name,
            repo_type="dataset",
            revision=revision,
            endpoint=mirror.endpoints["hf"],
            cache_dir=tmp_path / "cache",
            token=False,
        )

    with pytest.raises(EntryNotFoundError):
        download("some/zips", "absent.zip")
    with pytest.raises(RevisionNotFoundError):
        download("some/zips", "a b.zip", "0" * 40)
    with pytest.raises(RepositoryNotFoundError) as caught:
        download("some/absent", "a b.zip")
    assert not isinstance(caught.value, GatedRepoError)


def test_gated_datasets_want_their_token(mirror: Mirror, tmp_path: Path) -> None:
    url = mirror.endpoints["hf"] + GATED_ZIP
    for token, expected in ((None, 401), ("hf_wrong", 403)):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        status, answered, _ = ask(url, **headers)
        assert (status, answered["x-error-code"]) == (expected, "GatedRepo")
        assert answered["x-error-message"].startswith("Access to dataset some/gated is restricted")
        with pytest.raises(GatedRepoError):
            hf_hub_download(
                "some/gated",
                "data/x.tgz",
                repo_type="dataset",
                endpoint=mirror.endpoints["hf"],
                token=token or False,
                cache_dir=tmp_path / "cache",
            )
    file = hf_hub_download(
        "some/gated",
        "data/x.tgz",
        repo_type="dataset",
        endpoint=mirror.endpoints["hf"],
        token=TOKEN,
        cache_dir=tmp_path / "cache",
    )
    assert Path(file).read_bytes() == PHOTO
    assert not [r for r in mirror.requests if r.host == "cdn" and "authorization" in r.headers]


def test_signed_addresses(mirror: Mirror) -> None:
    url = mirror.endpoints["hf"] + ZIP.replace(" ", "%20")
    status, headers, body = ask(url)
    signed = headers["location"]
    assert status == 302 and signed.startswith(mirror.cdn) and BIG[:50] not in body
    assert headers["x-linked-size"] == str(len(BIG)) and len(headers["x-repo-commit"]) == 40
    assert headers["x-linked-etag"] == headers["etag"] == f'"{hashlib.sha256(BIG).hexdigest()}"'
    status, headers, body = ask(signed, Range="bytes=100-199")
    assert (status, body, headers["etag"]) == (206, BIG[100:200], f'"{hashlib.sha256(BIG).hexdigest()}"')
    assert ask(signed)[2] == BIG
    assert ask(signed, Authorization=f"Bearer {TOKEN}")[0] == 400  # a token has no business there
    signature = re.findall("Signature=([0-9a-f]{64})", signed)[0]
    forged_ones = (signed.replace(signature, "0" * 64), signed.replace("Expires=", "Expires=9"), signed.split("?")[0])
    for forged in forged_ones:
        status, _, body = ask(forged)
        assert status == 403 and b"SignatureDoesNotMatch" in body


def test_signed_addresses_expire(mirror: Mirror) -> None:
    url = mirror.endpoints["hf"] + ZIP.replace(" ", "%20")
    old = ask(url)[1]["location"]
    mirror.expire_urls()
    new = ask(url)[1]["location"]
    mirror.url_lifetime_s = 0
    dead = ask(url)[1]["location"]
    mirror.url_lifetime_s = 1
    brief = ask(url)[1]["location"]
    assert ask(new)[0] == 200
    time.sleep(1.01)
    for address in (old, dead, brief):
        status, _, body = ask(address)
        assert status == 403 and b"Request has expired" in body
    assert ask(new)[0] == 200


def test_the_hubs_api(mirror: Mirror) -> None:
    api = HfApi(endpoint=mirror.endpoints["hf"], token=False)
    info = api.dataset_info("some/zips", files_metadata=True)
    assert {file.rfilename: file.size for file in info.siblings or []} == {"a b.zip": len(BIG), "README.md": 7}
    assert info.gated is False and api.dataset_info("some/gated").gated == "auto"
    tree = {entry.path: entry for entry in api.list_repo_tree("some/zips", repo_type="dataset", recursive=True)}
    lfs = getattr(tree["a b.zip"], "lfs", None)
    assert lfs and (lfs.sha256, lfs.size) == (hashlib.sha256(BIG).hexdigest(), len(BIG))
    assert api.dataset_info("some/zips", revision=info.sha).sha == info.sha
    assert api.whoami(token=TOKEN)["name"] == "demo"
    assert ask(f"{mirror.endpoints['hf']}/api/whoami-v2", Authorization="Bearer hf_other")[0] == 401


def test_the_listing_of_a_gated_dataset_is_open_and_true(mirror: Mirror, origin: Path) -> None:
    info = HfApi(endpoint=mirror.endpoints["hf"], token=False).dataset_info("some/gated", files_metadata=True)
    large, small = sorted(info.siblings or [], key=lambda file: -(file.size or 0))
    assert large.lfs and large.lfs.sha256 == hashlib.sha256(PHOTO).hexdigest() and large.lfs.size == len(PHOTO)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{large.lfs.sha256}\nsize {len(PHOTO)}\n"
    assert large.blob_id == hashlib.sha1(f"blob {len(pointer)}\0{pointer}".encode()).hexdigest()
    assert small.lfs is None and small.blob_id == hashlib.sha1(b"blob 8\0# gated\n").hexdigest()


@pytest.mark.parametrize("name", ["x.7z.001", "x.7z", "x.tgz", "x.tar", "x.parquet", "x.json", "x.zip"])
def test_large_files_are_redirected(mirror: Mirror, origin: Path, name: str) -> None:
    (origin / "hf/some/zips" / name).write_bytes(PHOTO)
    url = f"{mirror.endpoints['hf']}/datasets/some/zips/resolve/main/{name}"
    assert ask(url)[0] == (200 if name == "x.json" else 302)  # JSON by its size
    mirror.large_over = 1000
    assert ask(url)[0] == 302 and ask(ask(url)[1]["location"])[2] == PHOTO


def test_what_is_too_large_is_not_hashed(mirror: Mirror, origin: Path) -> None:
    names = ("hf/some/zips/x.7z.001", "kaggle/competitions/imagenet/archive.zip")
    for name in names:
        with (origin / name).open("wb") as stream:  # sparse: to hash it would take minutes
            stream.seek(20 << 30)
            stream.write(b"the end")
    started = time.monotonic()
    info = HfApi(endpoint=mirror.endpoints["hf"], token=False).dataset_info("some/zips", files_metadata=True)
    (lfs,) = [file.lfs for file in info.siblings or [] if file.rfilename == "x.7z.001"]
    _, linked, _ = ask(f"{mirror.endpoints['hf']}/datasets/some/zips/resolve/main/x.7z.001")
    status, headers, body = ask(linked["location"], Range="bytes=-7")
    assert (status, body) == (206, b"the end") and lfs and lfs.size == (20 << 30) + 7
    assert headers["etag"] == linked["x-linked-etag"] == f'"{lfs.sha256}"' and len(lfs.sha256) == 64
    signed = ask(f"{mirror.endpoints['kaggle']}{COMPETITION}-all/imagenet", **ME)[1]["location"]
    status, headers, body = ask(signed, Range="bytes=-7")
    assert (status, body) == (206, b"the end") and "x-goog-hash" not in headers and len(headers["etag"]) == 34
    assert time.monotonic() - started < 3


# --- Kaggle ---------------------------------------------------------------------------------------------------------


def kaggle_says(answer: Answer) -> tuple[int, str]:
    status, headers, body = answer
    said = json.loads(body)
    assert headers["content-type"] == "application/json" and said["code"] == status
    return status, said["message"]


def hashes_of(url: str) -> list[str]:
    """Every line of X-Goog-Hash."""
    with urllib.request.urlopen(url) as response:
        response.read()
        return list(response.headers.get_all("x-goog-hash"))


def test_kaggle_redirects_to_a_signed_address(mirror: Mirror) -> None:
    base = mirror.endpoints["kaggle"]
    for path, data in (
        (f"{COMPETITION}/imagenet/{IMAGE}", PHOTO),
        (f"{COMPETITION}-all/imagenet", BIG),
        (f"{DATASET}/Art%20Nouveau/j%C3%A3%20%281%29%2B%2520.jpg", PHOTO),
        (DATASET, BIG),
    ):
        status, headers, body = ask(base + path, **ME)
        signed = headers["location"]
        assert (status, body) == (302, b"") and signed.startswith(f"{mirror.gcs}/kaggle-")
        assert "X-Goog-Signature=" in signed and "a%3Akey" not in signed
        status, headers, body = ask(signed)
        assert (status, body, headers["etag"]) == (200, data, f'"{hashlib.md5(data).hexdigest()}"')
        assert ask(signed, Range="bytes=100-199")[::2] == (206, data[100:200])
        assert hashes_of(signed) == [
            "crc32c=" + base64.b64encode(crc32c(data).to_bytes(4, "big")).decode(),
            "md5=" + base64.b64encode(hashlib.md5(data).digest()).decode(),
        ]
        assert ask(signed, **ME)[0] == 400  # credentials have no business there


def test_a_client_that_follows_redirects(mirror: Mirror) -> None:
    with httpx2.Client(base_url=mirror.endpoints["kaggle"], follow_redirects=True) as client:
        got = client.get(f"{COMPETITION}/imagenet/{IMAGE}", auth=("me", "a:key"))
        assert got.content == PHOTO and len(got.history) == 1
        got = client.get(f"{COMPETITION}/imagenet/{IMAGE}", headers={"authorization": "Bearer KGAT_x"})
        assert got.content == PHOTO and got.headers["x-goog-hash"].count(",") == 1  # two lines, joined
    assert [r.host for r in mirror.requests] == ["kaggle", "gcs"] * 2
    assert not [r for r in mirror.requests if r.host == "gcs" and "authorization" in r.headers]


WRONG = [
    "Bearer KGAT_y",
    "Bearer ",
    "Basic ",
    "Basic !!!",
    "Basic " + base64.b64encode(b"me:another").decode(),
    "Basic " + base64.b64encode(b"you:a:key").decode(),
    "Basic " + base64.b64encode(b"nobody").decode(),
    "Basic " + base64.b64encode(b"\xff:\xff").decode(),
    "Digest " + base64.b64encode(b"me:a:key").decode(),
]


def test_kaggle_wants_the_right_credentials(mirror: Mirror, origin: Path) -> None:
    image, archive = f"{COMPETITION}/imagenet/{IMAGE}", f"{COMPETITION}-all/imagenet"
    base = mirror.endpoints["kaggle"]
    for path in (image, archive, f"{COMPETITION}/absent/a.jpg"):
        assert kaggle_says(ask(base + path)) == (401, "Unauthenticated")
    for path in (image, archive, DATASET, f"{DATASET}/really.zip"):
        for wrong in WRONG:
            assert kaggle_says(ask(base + path, Authorization=wrong)) == (401, "Unauthenticated"), wrong
        for right in (ME["Authorization"], "Bearer KGAT_x", "bearer KGAT_x"):
            assert ask(base + path, Authorization=right)[0] == 302
    assert ask(base + DATASET)[0] == 302  # a public dataset needs no account
    with Mirror(origin) as without_accounts:
        base = without_accounts.endpoints["kaggle"]
        assert [ask(base + path)[0] for path in (image, DATASET)] == [401, 302]
        assert [ask(base + path, **ME)[0] for path in (image, DATASET)] == [401, 401]


def test_rules_have_to_be_accepted(mirror: Mirror) -> None:
    base, image = mirror.endpoints["kaggle"], f"{COMPETITION}/imagenet/{IMAGE}"
    mirror.kaggle_rules = False
    rules = "You must accept this competition's rules before you'll be able to download files."
    assert kaggle_says(ask(base + image, **ME)) == (403, rules)
    assert kaggle_says(ask(f"{base}{COMPETITION}-all/imagenet", **ME)) == (403, rules)
    assert ask(base + image)[0] == 401 and ask(base + DATASET, **ME)[0] == 302
    mirror.kaggle_rules = True
    assert ask(base + image, **ME)[0] == 302


@pytest.mark.parametrize(
    "path",
    [
        f"{COMPETITION}/imagenet/{IMAGE}x",
        f"{COMPETITION}/imagenet/",
        f"{COMPETITION}/imagenet",
        f"{COMPETITION}-all/imagenet/{IMAGE}",
        f"{COMPETITION}-all/absent",
        f"{COMPETITION}/imagenet/ILSVRC",
        f"{DATASET}/absent.jpg",
        f"{API}/datasets/download/an-owner/another",
        f"{API}/datasets/download/an-owner",
        f"{API}/datasets/list",
        "/",
    ],
)
def test_what_kaggle_does_not_have(mirror: Mirror, path: str) -> None:
    status, message = kaggle_says(ask(mirror.endpoints["kaggle"] + path, **ME))
    assert status == 404 and message


def test_googles_addresses_expire(mirror: Mirror) -> None:
    url = mirror.endpoints["kaggle"] + DATASET
    old = ask(url)[1]["location"]
    mirror.expire_urls()
    new = ask(url)[1]["location"]
    mirror.url_lifetime_s = 1
    brief = ask(url)[1]["location"]
    time.sleep(1.01)
    for address in (old, brief):
        status, _, body = ask(address)
        assert status == 400 and b"<Code>ExpiredToken</Code>" in body
    assert ask(new)[0] == 200
    signature = re.findall("X-Goog-Signature=([0-9a-f]{64})", new)[0]
    for forged in (
        new.replace(signature, "0" * 64),
        new.replace("X-Goog-Expires=3600", "X-Goog-Expires=9999999"),
        new.replace("archive.zip", "files/really.zip"),
    ):
        status, _, body = ask(forged)
        assert status == 403 and b"SignatureDoesNotMatch" in body
    for nonsense in (new.split("?")[0], new.replace("X-Goog-Date=", "X-Goog-Date=x")):
        assert ask(nonsense)[0] == 400


def test_kaggle_zips_some_single_files(mirror: Mirror) -> None:
    mirror.kaggle_zips = r"_val_.*\.JPEG$|really"
    base = mirror.endpoints["kaggle"]
    signed = ask(f"{base}{COMPETITION}/imagenet/{IMAGE}", **ME)[1]["location"]
    assert urlsplit(signed).path.endswith(f"/{IMAGE}.zip")
    status, headers, body = ask(signed)
    assert (status, headers["content-type"]) == (200, "application/zip")
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        (info,) = archive.infolist()
        assert info.filename == "ILSVRC2012_val_00000001.JPEG" and archive.read(info) == PHOTO
    assert headers["etag"] == f'"{hashlib.md5(body).hexdigest()}"'
    assert f"md5={base64.b64encode(hashlib.md5(body).digest()).decode()}" in hashes_of(signed)
    assert ask(signed, Range="bytes=7-")[::2] == (206, body[7:])
    # An archive is not zipped again, nor is a file that the expression leaves out; one that is a zip itself is.
    assert ask(ask(base + DATASET)[1]["location"])[2] == BIG
    other = ask(f"{base}{DATASET}/Art%20Nouveau/j%C3%A3%20%281%29%2B%2520.jpg")[1]["location"]
    assert ask(other)[2] == PHOTO and ask(other)[1]["content-type"] == "application/octet-stream"
    with zipfile.ZipFile(io.BytesIO(ask(ask(f"{base}{DATASET}/really.zip")[1]["location"])[2])) as archive:
        assert archive.read("really.zip") == BIG


def test_faults_of_kaggle_and_google(mirror: Mirror) -> None:
    url = mirror.endpoints["kaggle"] + DATASET
    mirror.fault = once("", busy(429, 3), host="kaggle")
    assert ask(url)[1]["retry-after"] == "3"
    signed = ask(url)[1]["location"]
    mirror.fault = always("", Fault(wrong_bytes=True, headers={"X-Goog-Hash": "crc32c=AAAAAA==,md5=x"}), host="gcs")
    assert hashes_of(signed) == ["crc32c=AAAAAA==,md5=x"] and ask(signed)[2] != BIG
    mirror.fault = always("", Fault(headers={"x-goog-hash": None}), host="gcs")
    assert "x-goog-hash" not in ask(signed)[1]


def test_crc32c() -> None:
    """RFC 3720's own examples, and the definition, bit by bit."""

    def slowly(data: bytes) -> int:
        register = 0xFFFFFFFF
        for byte in data:
            register ^= byte
            for _ in range(8):
                register = register >> 1 ^ 0x82F63B78 * (register & 1)
        return register ^ 0xFFFFFFFF

    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA and crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    for size in (0, 1, 3, 4, 5, 1023, 1024, 1025, 2048, 2049, 30_000):
        assert crc32c(BIG[:size]) == slowly(BIG[:size])


# --- faults, on a bare socket ---------------------------------------------------------------------------------------

PATH = "/val2017/000000000139.jpg"


def faulty(origin: Path, fault: Fault, range_: str = "", timeout: float = 5.0) -> tuple[bytes, type[Exception] | None]:
    with Mirror(origin, fault=always("139.jpg", fault)) as mirror:
        got = raw(mirror.endpoints["coco"], PATH, timeout, range_)
        assert mirror.sent == len(body_of(got[0]))
        return got


def headers_of(got: bytes) -> dict[str, str]:
    lines = got.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


@pytest.mark.parametrize("after", [0, 1, 500, 1024])
def test_resets(origin: Path, after: int) -> None:
    got, error = faulty(origin, Fault(reset_after=after))
    assert got.startswith(b"HTTP/1.1 200 ") and body_of(got) == PHOTO[:after]
    assert error is ConnectionResetError or after == 1024  # everything was there before the reset


def test_reset_before_any_answer(origin: Path) -> None:
    assert faulty(origin, Fault(reset_after=-1)) == (b"", ConnectionResetError)


def test_short_body_ends_cleanly(origin: Path) -> None:
    got, error = faulty(origin, Fault(short_after=500))
    assert (body_of(got), error) == (PHOTO[:500], EOFError) and headers_of(got)["content-length"] == "1024"


def test_stalls(origin: Path) -> None:
    got, error = faulty(origin, Fault(stall_after=300, stall_s=5), timeout=0.2)
    assert (body_of(got), error) == (PHOTO[:300], TimeoutError)
    got, error = faulty(origin, Fault(stall_after=-1, stall_s=5), timeout=0.2)
    assert (got, error) == (b"", TimeoutError)
    started = time.monotonic()
    got, error = faulty(origin, Fault(stall_after=300, stall_s=0.2))
    assert (body_of(got), error) == (PHOTO, None) and time.monotonic() - started >= 0.2


def test_stall_then_reset(origin: Path) -> None:
    got, error = faulty(origin, Fault(stall_after=300, stall_s=0.1, reset_after=600))
    assert (body_of(got), error) == (PHOTO[:600], ConnectionResetError)


def test_truncated(origin: Path) -> None:
    got, error = faulty(origin, Fault(truncate_to=100))
    assert (body_of(got), error) == (PHOTO[:100], None)
    got, error = faulty(origin, Fault(truncate_to=100), "200-499")
    assert (body_of(got), error) == (PHOTO[200:300], None)
    assert headers_of(got)["content-range"] == "bytes 200-499/1024"


def test_ranges_ignored_or_wrong(origin: Path) -> None:
    got, _ = faulty(origin, Fault(ignore_range=True), "10-19")
    assert got.startswith(b"HTTP/1.1 200 ") and body_of(got) == PHOTO
    got, _ = faulty(origin, Fault(wrong_range=True), "10-19")
    assert got.startswith(b"HTTP/1.1 206 ") and body_of(got) == PHOTO[9:19]
    assert headers_of(got)["content-range"] == "bytes 9-18/1024"
    got, _ = faulty(origin, Fault(wrong_range=True), "0-9")
    assert body_of(got) == PHOTO[1:11] and headers_of(got)["content-range"] == "bytes 1-10/1024"


def test_another_etag(origin: Path) -> None:
    assert headers_of(faulty(origin, Fault(etag="changed"))[0])["etag"] == '"changed"'
    with Mirror(origin, fault=always("", Fault(etag="changed"))) as mirror:
        url = mirror.endpoints["coco"] + PATH
        assert ask(url, If_Match='"old"')[0] == 412
        assert ask(url, Range="bytes=0-9", If_Range='"old"')[::2] == (200, PHOTO)
        assert ask(mirror.endpoints["hf"] + ZIP.replace(" ", "%20"))[1]["x-linked-etag"] == '"changed"'


def test_wrong_bytes(origin: Path) -> None:
    got, error = faulty(origin, Fault(wrong_bytes=True), "10-19")
    assert error is None and body_of(got) == bytes(byte ^ 255 for byte in PHOTO[10:20])


def test_gzip_that_nobody_asked_for(origin: Path) -> None:
    got, error = faulty(origin, Fault(content_encoding="gzip"))
    assert error is None and headers_of(got)["content-encoding"] == "gzip"
    assert gzip.decompress(body_of(got)) == PHOTO


def test_chunked(origin: Path) -> None:
    with Mirror(origin, fault=always("", Fault(chunked=True, truncate_to=700))) as mirror:
        status, headers, body = ask(mirror.endpoints["coco"] + PATH)
        assert (status, body, headers["transfer-encoding"]) == (200, PHOTO[:700], "chunked")
        assert "content-length" not in headers
        assert ask(mirror.endpoints["coco"] + PATH, "HEAD")[0] == 200
        mirror.fault = always("", Fault(chunked=True, short_after=700))
        with pytest.raises(http.client.IncompleteRead):
            ask(mirror.endpoints["coco"] + PATH)


def test_statuses(origin: Path) -> None:
    got, _ = faulty(origin, busy(429, 7))
    assert got.startswith(b"HTTP/1.1 429 ") and headers_of(got)["retry-after"] == "7"
    got, _ = faulty(origin, busy(503, 120, as_date=True))
    until = parsedate_to_datetime(headers_of(got)["retry-after"]).timestamp()
    assert got.startswith(b"HTTP/1.1 503 ") and 110 < until - time.time() < 121
    assert "retry-after" not in headers_of(faulty(origin, busy())[0])
    got, _ = faulty(origin, Fault(status=418, headers={"X-Pot": "tea"}, body=b"short and stout"))
    assert (body_of(got), headers_of(got)["x-pot"]) == (b"short and stout", "tea")
    got, _ = faulty(origin, Fault(headers={"etag": None, "Accept-Ranges": "none"}))
    assert "etag" not in headers_of(got) and headers_of(got)["accept-ranges"] == "none"


def test_pages(origin: Path) -> None:
    words = {
        "quota": b"Too many users have viewed or downloaded this file recently",
        "virus": b'id="download-form"',
        "signin": b"accounts.google.com",
        "notfound": b"not found on this server",
    }
    for page, expected in words.items():
        with Mirror(origin, fault=always("/download", Fault(page=page))) as mirror:
            status, headers, body = ask(f"{mirror.endpoints['drive']}/download?id={SMALL}", Range="bytes=0-9")
            assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8") and expected in body


def test_redirected_elsewhere(origin: Path) -> None:
    with Mirror(origin) as other, Mirror(origin) as mirror:
        mirror.fault = once("139.jpg", Fault(redirect_to=other.endpoints["coco"] + PATH))
        with urllib.request.urlopen(mirror.endpoints["coco"] + PATH) as response:
            assert response.read() == PHOTO
        assert [r.status for r in mirror.requests + other.requests] == [302, 200]


def test_hooks(origin: Path) -> None:
    seen: list[Request] = []

    def every_third(request: Request) -> Fault | None:
        seen.append(request)
        return Fault(status=500) if request.number % 3 == 0 else None

    hook = chain(
        once("val2017", Fault(status=501)),
        first(2, "val2017", Fault(status=502)),
        always("pass=1", Fault(status=503), host="coco"),
        always("", Fault(status=504), host="github"),
        every_third,
    )
    with Mirror(origin, fault=hook) as mirror:
        url = mirror.endpoints["coco"] + PATH
        assert [ask(url)[0] for _ in range(7)] == [501, 502, 502, 200, 200, 500, 200]
        assert ask(f"{url}?pass=1")[0] == 503
        assert ask(mirror.endpoints["github"] + ANNOTATIONS)[0] == 504
        assert [request.number for request in seen] == [4, 5, 6, 7]
        # What is counted is the file: the signed address may differ from time to time.
        for _ in range(2):
            ask(ask(mirror.endpoints["hf"] + ZIP.replace(" ", "%20"))[1]["location"])
            mirror.expire_urls()
        assert [request.number for request in mirror.requests if request.host == "cdn"] == [1, 2]


def test_a_process_of_its_own_finds_the_mirror(mirror: Mirror) -> None:
    environment = {**os.environ, **mirror.environ()}
    bases = dict(entry.split("=", 1) for entry in environment["IMAGINET_ENDPOINTS"].split(","))
    assert ask(bases["coco"] + PATH)[2] == PHOTO
    body = ask(f"{environment['HF_ENDPOINT']}/api/datasets/some/zips")[2]
    assert json.loads(body)["id"] == "some/zips"
