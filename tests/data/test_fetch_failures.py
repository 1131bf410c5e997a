"""Everything that goes wrong on the way: the right files in the end, or one clear error, and the others go on."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import itertools
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from imaginet_hub.cli import main
from imaginet_hub.data import fetch as fetching
from imaginet_hub.data import workers
from imaginet_hub.data.ledger import FOLDER
from imaginet_hub.data.plan import Plan
from imaginet_hub.data.readers import local, runs, zips
from imaginet_hub.data.readers.http import Cancelled, Http, Limits
from imaginet_hub.demo.mirror import Fault, Hook, Mirror, Request, always, busy, chain, first, once
from imaginet_hub.demo.staging import DRIVE_IDS, drive_id
from imaginet_hub.errors import FetchError
from tests.support.published import FAST, SOURCES, Published

COCO, WIKIART, FFHQ = "/val2017/", DRIVE_IDS["wikiart"], "Iceclear/FFHQ-HQ1024"
HUB = "sywang/CNNDetection"
IMPATIENT = replace(FAST, timeout_s=0.4)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published.make(tmp_path_factory.mktemp("published"))


@pytest.fixture
def mirror(published: Published) -> Iterator[Mirror]:
    with Mirror(published.origin, virus_scan_over=24_000) as running:
        yield running


@pytest.fixture
def changing(published: Published, tmp_path: Path) -> Iterator[Mirror]:
    """A mirror of a copy, whose files may be replaced."""
    shutil.copytree(published.origin, tmp_path / "origin")
    with Mirror(tmp_path / "origin", virus_scan_over=24_000) as running:
        yield running


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several requests for each archive, small as they are here."""
    monkeypatch.setattr(runs, "_RUN_BYTES", 10_000)


def archive(published: Published, source: str) -> Path:
    """The archive that gives a source's images."""
    if source == "cnndetection":
        return published.origin / "hf" / HUB / "progan_val.zip"
    return published.origin / "drive" / DRIVE_IDS[source]


def members(published: Published, source: str, fault: Fault, times: int | None = 1) -> Hook:
    """The fault for the first requests for members of a zip (not for its directory); None: for all of them."""
    with zipfile.ZipFile(archive(published, source)) as opened:
        end = opened.start_dir
    host = "cdn" if source == "cnndetection" else "drive"
    name = "progan_val.zip" if source == "cnndetection" else DRIVE_IDS[source]
    count, lock = itertools.count(), threading.Lock()

    def hook(request: Request) -> Fault | None:
        asked = request.range
        mine = request.host == host and (name in request.path or request.query.get("id") == name)
        if not mine or asked is None or asked == (0, 0) or (asked[1] or end) >= end:
            return None
        with lock:
            return fault if times is None or next(count) < times else None

    return hook


# --- what passes ----------------------------------------------------------------------------------------------------

#: What is wrong with one answer or a few, for single files and for members of archives alike.
PASSING = {
    "503 with Retry-After 0": (busy(503, 0), 3),
    "429 with Retry-After 1": (busy(429, 1), 1),
    "429 with a date": (busy(429, 1, as_date=True), 1),
    "429": (busy(429), 4),
    "500": (Fault(status=500), 4),
    "502": (Fault(status=502), 2),
    "408": (Fault(status=408), 1),
    "reset before the answer": (Fault(reset_after=-1), 3),
    "reset at once": (Fault(reset_after=0), 3),
    "reset after 1 byte": (Fault(reset_after=1), 3),
    "reset after 1000 bytes": (Fault(reset_after=1000), 3),
    "stall before the answer": (Fault(stall_after=-1), 2),
    "stall after 500 bytes": (Fault(stall_after=500), 2),
    "short": (Fault(short_after=700), 3),
    "nothing": (Fault(short_after=0), 3),
    "shorter, and says so": (Fault(truncate_to=900), 1),
    "wrong bytes": (Fault(wrong_bytes=True), 1),
    "gzip unasked": (Fault(content_encoding="gzip"), 1),
    "chunked": (Fault(chunked=True), None),
    "without a length, cut": (Fault(headers={"Content-Length": None}, chunked=True, short_after=100), 1),
    "ignores ranges": (Fault(ignore_range=True), 2),
    "wrong range": (Fault(wrong_range=True), 2),
    "Content-Range of another size": (Fault(headers={"Content-Range": "bytes 0-0/1"}), 1),
    "Content-Range without sense": (Fault(headers={"Content-Range": "bytes 9-1/x"}), 1),
    "a web page": (Fault(status=200, headers={"Content-Type": "text/html"}, body=b"<html>portal</html>"), 1),
    "206 without Content-Range": (Fault(headers={"Content-Range": None}), 1),
    "redirect to itself": (Fault(status=302, headers={"Location": "?"}), 0),
}


@pytest.mark.parametrize("what", PASSING)
def test_passes_over_single_files(what: str, published: Published, mirror: Mirror, tmp_path: Path) -> None:
    fault, times = PASSING[what]
    many = 1000 if times is None else times
    mirror.fault = chain(
        first(many, "/val2017/000000000002.jpg", fault, host="coco"),
        first(many, f"/download?id={drive_id(Path(published.paths['ffhq'][1]).name)}", fault, host="drive"),
    )
    limits = IMPATIENT if "stall" in what else FAST
    summary = published.fetch(
        mirror, tmp_path, ("coco", "ffhq"), limits=limits, routes={"coco": "s3", "ffhq": "drive"}
    )
    assert summary.complete, summary.text()
    published.complete(tmp_path, ("coco", "ffhq"))


@pytest.mark.parametrize("what", PASSING)
def test_passes_over_archives(what: str, published: Published, mirror: Mirror, tmp_path: Path) -> None:
    fault, times = PASSING[what]
    mirror.fault = chain(members(published, "wikiart", fault, times), members(published, "cnndetection", fault, times))
    limits = IMPATIENT if "stall" in what else FAST
    summary = published.fetch(mirror, tmp_path, ("wikiart", "cnndetection"), limits=limits, max_workers=2)
    assert summary.complete, summary.text()
    published.complete(tmp_path, ("wikiart", "cnndetection"))


@pytest.mark.parametrize("what", ["virus", "signed"])
def test_an_address_that_expires_on_the_way_is_renewed(
    what: str, published: Published, mirror: Mirror, tmp_path: Path
) -> None:
    left = threading.Semaphore(3)

    def expire(request: Request) -> Fault | None:
        if request.host == "cdn" and request.range not in (None, (0, 0)) and left.acquire(blocking=False):
            mirror.expire_urls()
        return None

    mirror.fault = expire if what == "signed" else members(published, "wikiart", Fault(page="virus"), 2)
    source = "wikiart" if what == "virus" else "cnndetection"
    summary = published.fetch(mirror, tmp_path, (source,), max_workers=16)
    assert summary.complete, summary.text()
    published.complete(tmp_path, (source,))


def test_signed_addresses_that_live_for_a_second(published: Published, mirror: Mirror, tmp_path: Path) -> None:
    mirror.url_lifetime_s = 1.0
    mirror.latency_s = 0.15
    summary = published.fetch(mirror, tmp_path, ("cnndetection",), max_workers=1)
    assert summary.complete, summary.text()
    published.complete(tmp_path, ("cnndetection",))


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("source", ["wikiart", "cnndetection"])
def test_an_archive_that_is_replaced_half_way(
    source: str, times: int, published: Published, changing: Mirror, tmp_path: Path
) -> None:
    file = changing.origin / archive(published, source).relative_to(published.origin)
    replaced = itertools.count()

    def other_archive() -> None:
        with zipfile.ZipFile(file) as opened:
            held = {info.filename: opened.read(info) for info in opened.infolist() if info.filename != "more"}
        changed = file.with_suffix(".new")
        with zipfile.ZipFile(changed, "w") as out:  # other places, other sizes
            out.writestr("more", b"x" * (100 + next(replaced)))
            for name in sorted(held, reverse=True):
                out.writestr(name, held[name])
        changed.replace(file)

    seen = itertools.count()

    def hook(request: Request) -> Fault | None:
        mine = request.host == ("drive" if source == "wikiart" else "cdn")
        if mine and request.range not in (None, (0, 0)) and next(seen) in (2, 5)[:times]:
            other_archive()
        return None

    changing.fault = hook
    summary = published.fetch(changing, tmp_path / "root", (source,), max_workers=2)
    assert summary.complete, summary.text()
    assert next(replaced) == times
    published.complete(tmp_path / "root", (source,))


def test_an_archive_that_changes_all_the_time_is_given_up_soon(
    published: Published, mirror: Mirror, tmp_path: Path
) -> None:
    numbers = itertools.count()
    mirror.fault = lambda r: Fault(etag=f"v{next(numbers)}") if r.query.get("confirm") else None
    summary = published.fetch(mirror, tmp_path, ("wikiart", "coco"))
    told(summary, published, "wikiart", "changed", "one version of the file", "another", "run the same command again")
    published.complete(tmp_path, ("coco",))
    assert len([r for r in mirror.requests if r.query.get("confirm")]) < 60


# --- what stays -----------------------------------------------------------------------------------------------------


def told(
    summary: fetching.Summary, published: Published, source: str, reason: str, *words: str, address: str = "http://127"
) -> None:
    """Assert that everything of a source is missing, and that each error says why in these words."""
    assert set(summary.missing) == set(published.paths[source]), summary.text()
    for error in summary.missing.values():
        assert error.reason == reason, str(error)
        assert error.source == source
        assert address in error.address, str(error)
        assert re.fullmatch(r"[^?]*(/uc\?id=[\w-]+)?", error.address), "a query may hold secrets"
        assert error.expected
        assert error.got
        assert error.remedy
        assert "Signature" not in str(error)
        for word in words:
            assert word in str(error), f"{word!r} is not in {error}"
    listing = (summary.root / FOLDER / "missing.txt").read_text().splitlines()
    assert {line.split("\t")[0] for line in listing} == set(published.paths[source])
    assert f"missing: {len(summary.missing)}" in summary.text()


STAYING = {
    "503 for an hour": (busy(503, 3600), "status", ("HTTP 503", "3600 s", "--route", "--from coco=PATH")),
    "429 until tomorrow": (busy(429, 86_000, as_date=True), "status", ("HTTP 429", "Retry-After")),
    "500 forever": (Fault(status=500), "status", ("HTTP 500", "try again later")),
    "429 forever": (busy(429, 0), "status", ("HTTP 429 with Retry-After 0 s",)),
    "418": (Fault(status=418), "status", ("HTTP 418",)),
    "204": (Fault(status=204), "status", ("HTTP 204",)),
    "301 without Location": (Fault(status=301), "status", ("HTTP 301",)),
    "404": (Fault(status=404), "missing", ("HTTP 404",)),
    "410": (Fault(status=410), "missing", ("HTTP 410",)),
    "401": (Fault(status=401), "access", ("HTTP 401", "--from coco=PATH")),
    "403": (Fault(status=403), "access", ("HTTP 403", "proxy")),
    "407": (Fault(status=407), "access", ("HTTP 407 from the proxy", "HTTP_PROXY")),
    "resets forever": (Fault(reset_after=100), "network", ("an answer", "check the connection")),
    "never an answer": (Fault(reset_after=-1), "network", ("an answer",)),
    "stalls forever": (Fault(stall_after=100), "network", ("nothing for 0.4 s",)),
    "short forever": (Fault(short_after=100), "network", ("an answer",)),
    "wrong bytes forever": (Fault(wrong_bytes=True), "corrupt", ("expected MD5", "other bytes")),
    "truncated forever": (Fault(truncate_to=800), "corrupt", ("expected MD5",)),
    "a web page forever": (
        Fault(status=200, headers={"Content-Type": "text/html"}, body=b"<!DOCTYPE html><p>log in to the wifi"),
        "format",
        ("a web page with status 200",),
    ),
    "redirects without end": (Fault(redirect_to="?"), "status", ("redirects without end",)),
    "redirect to a file": (Fault(redirect_to="file:///etc/passwd"), "status", ("a redirect that leads nowhere",)),
    "redirect to data": (Fault(redirect_to="data:text/plain,x"), "status", ("a redirect that leads nowhere",)),
    "redirect to no port": (Fault(redirect_to="http://127.0.0.1:99999/"), "status", ("leads nowhere",)),
    "redirect to half a host": (Fault(redirect_to="http://[::1/"), "status", ("leads nowhere",)),
    "redirect to nobody": (Fault(redirect_to="http://127.0.0.1:9/x?token=hidden"), "network", ("an answer",)),
    "zip bomb of an encoding": (Fault(content_encoding="gzip", wrong_bytes=True), "network", ("an answer",)),
}


@pytest.mark.parametrize("what", STAYING)
def test_stays_over_single_files(what: str, published: Published, mirror: Mirror, tmp_path: Path) -> None:
    fault, reason, words = STAYING[what]
    mirror.fault = always(COCO, fault, host="coco")
    began = time.monotonic()
    limits = IMPATIENT if "stall" in what else FAST
    summary = published.fetch(
        mirror, tmp_path, ("coco", "danbooru"), routes={"coco": "s3"}, limits=limits, max_workers=16
    )
    told(summary, published, "coco", reason, *words)
    published.complete(tmp_path, ("danbooru",))
    assert time.monotonic() - began < 8
    assert "hidden" not in summary.text()
    # What the s3 route cannot give, the archives can.
    mirror.fault = always(COCO, Fault(status=404), host="coco")
    assert published.fetch(mirror, tmp_path, ("coco",)).complete
    published.complete(tmp_path, ("coco", "danbooru"))
    assert not (tmp_path / FOLDER / "missing.txt").exists()


STAYING_ARCHIVES = {
    "500 forever": (Fault(status=500), "status", ("HTTP 500",)),
    "503 for an hour": (busy(503, 3600), "status", ("3600 s",)),
    "resets forever": (Fault(reset_after=10), "network", ("an answer",)),
    "ignores ranges": (Fault(ignore_range=True), "range", ("the server ignores ranges", "HTTP 206")),
    "wrong range": (Fault(wrong_range=True), "range", ("Content-Range",)),
    "wrong bytes": (Fault(wrong_bytes=True), "corrupt", ("local header",)),
    "gzip unasked": (Fault(content_encoding="gzip"), "range", ("Content-Range",)),
    "404": (Fault(status=404), "missing", ("HTTP 404",)),
    "shorter": (Fault(status=416), "changed", ("HTTP 416",)),
    "no more": (Fault(truncate_to=0), "network", ("0 and the end",)),
}


@pytest.mark.parametrize("what", STAYING_ARCHIVES)
def test_stays_over_archives(what: str, published: Published, mirror: Mirror, tmp_path: Path) -> None:
    fault, reason, words = STAYING_ARCHIVES[what]
    mirror.fault = members(published, "wikiart", fault, None)
    summary = published.fetch(mirror, tmp_path, ("wikiart", "coco"))
    told(summary, published, "wikiart", reason, *words)
    assert summary.missing[published.paths["wikiart"][0]].address.endswith(f"/uc?id={WIKIART}")
    published.complete(tmp_path, ("coco",))
    mirror.fault = None
    assert published.fetch(mirror, tmp_path, ("wikiart", "coco")).complete
    published.complete(tmp_path, ("wikiart", "coco"))


PAGES = {
    "quota": ("quota", ("download quota", "within 24 hours", "--from")),
    "signin": ("access", ("anybody may read", "sign-in page")),
    "notfound": ("missing", ("it is gone",)),
    "virus": ("format", ("a form to confirm, again and again",)),
}


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("source", ["wikiart", "ffhq"])
def test_drives_pages_with_status_200(
    source: str, page: str, published: Published, mirror: Mirror, tmp_path: Path
) -> None:
    ids = {drive_id(Path(path).name) for path in published.paths["ffhq"]} if source == "ffhq" else {WIKIART}
    mirror.fault = lambda request: Fault(page=page) if request.query.get("id") in ids else None
    routes = {"ffhq": "drive"}
    summary = published.fetch(mirror, tmp_path, (source, "coco"), routes=routes)
    reason, words = PAGES[page]
    told(summary, published, source, reason, *words, address="/uc")
    published.complete(tmp_path, ("coco",))
    assert not any("DOCTYPE" in path.read_text(errors="replace") for path in tmp_path.rglob("*.*") if path.is_file())


def test_a_page_in_the_middle_of_an_archive(published: Published, mirror: Mirror, tmp_path: Path) -> None:
    mirror.fault = members(published, "wikiart", Fault(page="quota"), None)
    summary = published.fetch(mirror, tmp_path, ("wikiart", "coco"))
    told(summary, published, "wikiart", "quota", "within 24 hours")
    published.complete(tmp_path, ("coco",))


def test_faces_that_drive_does_not_give_come_from_the_archives(
    published: Published, mirror: Mirror, tmp_path: Path
) -> None:
    ids = {drive_id(Path(path).name) for path in published.paths["ffhq"]}
    mirror.fault = lambda request: Fault(page="quota") if request.query.get("id") in ids else None
    summary = published.fetch(mirror, tmp_path, ("ffhq",))
    assert summary.complete, summary.text()
    published.complete(tmp_path, ("ffhq",))


@pytest.mark.parametrize("times", [1, None])
def test_pixels_of_a_face_are_verified(
    times: int | None, published: Published, changing: Mirror, tmp_path: Path
) -> None:
    """Another face, complete and of the right size, under a face's id."""
    one, other = (Path(path) for path in published.paths["ffhq"][:2])
    changing.fault = first(
        times or 1000,
        f"/download?id={drive_id(one.name)}",
        Fault(status=200, body=(published.root / other).read_bytes()),
    )
    summary = published.fetch(changing, tmp_path / "root", ("ffhq",), routes={"ffhq": "drive"})
    if times:
        assert summary.complete
        published.complete(tmp_path / "root", ("ffhq",))
    else:
        error = summary.missing.pop(str(one))
        assert not summary.missing
        assert error.reason == "corrupt"
        assert "pixels with MD5" in str(error)
        assert hashlib.md5(Image.open(published.root / other).tobytes()).hexdigest() in str(error)
        assert published.here(tmp_path / "root") == set(published.paths["ffhq"]) - {str(one)}


def test_an_image_that_has_no_rgb_is_no_face(published: Published, mirror: Mirror, tmp_path: Path) -> None:
    lab = tmp_path / "lab.tif"
    Image.new("LAB", (8, 8)).save(lab)
    name = Path(published.paths["ffhq"][0]).name
    mirror.fault = always(f"/download?id={drive_id(name)}", Fault(status=200, body=lab.read_bytes()))
    summary = published.fetch(mirror, tmp_path / "root", ("ffhq",), routes={"ffhq": "drive"})
    assert [error.reason for error in summary.missing.values()] == ["corrupt"]
    assert "pixels" in summary.text()


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_a_flipped_byte_inside_a_member(published: Published, changing: Mirror, tmp_path: Path) -> None:
    file = changing.origin / "drive" / WIKIART
    with zipfile.ZipFile(file) as opened:
        info = next(i for i in opened.infolist() if i.filename.endswith(".jpg") and i.compress_type == 0)
        name = info.filename
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(flipped(data, info.header_offset + 300))
    summary = published.fetch(changing, tmp_path / "root", ("wikiart", "coco"))
    error = summary.missing.pop(name)
    assert not summary.missing
    assert error.reason == "corrupt"
    assert f"expected CRC32 {info.CRC:08x} (member '{name}')" in str(error)
    assert published.here(tmp_path / "root") == {*published.paths["wikiart"], *published.paths["coco"]} - {name}


@pytest.mark.parametrize("seed", range(6))
def test_archives_of_rubbish_end_in_words(seed: int, published: Published, changing: Mirror, tmp_path: Path) -> None:
    """Bytes changed anywhere in an archive: no exception but ours, no file that is not the image."""
    chance = random.Random(seed)
    for source in ("wikiart", "danbooru", "photozilla", "imaginet"):
        file = changing.origin / archive(published, source).relative_to(published.origin)
        data = bytearray(file.read_bytes())
        file.unlink()
        for _ in range(12):  # most of them in the directory
            at = chance.randrange(len(data)) if chance.random() < 0.3 else len(data) - 1 - chance.randrange(900)
            data[at] = chance.choice((0, 255, chance.randrange(256)))
        file.write_bytes(data[: chance.choice((len(data), len(data), chance.randrange(len(data))))])
    only = ("wikiart", "danbooru", "photozilla", "imaginet", "coco")
    summary = published.fetch(changing, tmp_path / "root", only)
    assert set(published.paths["coco"]) <= published.here(tmp_path / "root")
    assert all(isinstance(error, FetchError) and error.remedy for error in summary.missing.values())


def test_parsers_that_run_into_something_do_not_end_the_fetch(
    published: Published, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(self: object, run: object) -> Iterator[object]:
        raise ValueError("what nobody foresaw")
        yield

    monkeypatch.setattr(zips.ZipFile, "read", read)
    summary = published.fetch(mirror, tmp_path, ("wikiart", "coco"))
    told(summary, published, "wikiart", "corrupt", "what nobody foresaw", address="wikiart/")
    published.complete(tmp_path, ("coco",))


# --- accounts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "hf_wrong", "hf_right", "hf_b\u00e4d", "hf_\x01"])
def test_a_gated_dataset(
    token: str | None, published: Published, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror.gated = {HUB: "hf_right"}
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    summary = published.fetch(mirror, tmp_path, ("cnndetection", "coco"))
    if token == "hf_right":
        assert summary.complete
        published.complete(tmp_path, ("cnndetection", "coco"))
        given = {request.host for request in mirror.requests if "authorization" in request.headers}
        assert given == {"hf"}
        return
    words = {
        None: ("HTTP 401 (gated repository)", "hf auth login", "HF_TOKEN", "accepting the terms on"),
        "hf_wrong": ("HTTP 403 (gated repository)", "accept the terms on", f"/datasets/{HUB} with the account"),
    }
    told(
        summary,
        published,
        "cnndetection",
        "access",
        *words.get(token, ("a Hugging Face token of printable ASCII characters",)),
        *("--from cnndetection=PATH",) * (token in words),
    )
    for error in summary.missing.values():
        assert str(token or "Bearer") not in f"{error} {error!r} {error.__cause__!r}"
    published.complete(tmp_path, ("coco",))


# --- patience -------------------------------------------------------------------------------------------------------


def test_a_route_that_fails_again_and_again_is_given_up(
    published: Published, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_ENOUGH", 3)
    mirror.fault = always(COCO, Fault(status=500), host="coco")
    summary = published.fetch(mirror, tmp_path, ("coco",), routes={"coco": "s3"}, max_workers=1)
    told(summary, published, "coco", "status", "HTTP 500")
    assert len(mirror.requests) == 3 * (FAST.retries + 1)
    others = [str(error) for error in summary.missing.values() if "3 times in a row" in str(error)]
    assert len(others) == len(published.paths["coco"]) - 3, "those that were not asked for say why"


def test_one_bad_stretch_of_an_archive_is_one_failure(
    published: Published, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many members it was to bring: the others are still asked for."""
    monkeypatch.setattr(runs, "_RUN_BYTES", 60_000)
    monkeypatch.setattr(workers, "_ENOUGH", 2)
    bad: list[tuple[int | None, int | None]] = []

    def hook(request: Request) -> Fault | None:
        asked = request.range
        if request.query.get("confirm") and asked not in (None, (0, 0)) and (asked[1] or 0) - (asked[0] or 0) > 20_000:
            bad.append(asked)  # the first long range
            return Fault(status=500) if asked == bad[0] else None
        return None

    mirror.fault = hook
    summary = published.fetch(mirror, tmp_path, ("imaginet",), max_workers=1)
    assert 0 < len(summary.missing) < len(published.paths["imaginet"]), summary.text()
    monkeypatch.setattr(runs, "_RUN_BYTES", 20_000)
    mirror.fault = None
    assert published.fetch(mirror, tmp_path, ("imaginet",)).complete


def test_nothing_listens(published: Published, mirror: Mirror, tmp_path: Path) -> None:
    endpoints = {**mirror.endpoints, "coco": "http://127.0.0.1:9"}
    summary = published.fetch(mirror, tmp_path, ("coco", "wikiart"), endpoints=endpoints)
    told(summary, published, "coco", "network", "127.0.0.1:9", "ConnectError", "check the connection")
    published.complete(tmp_path, ("wikiart",))


def test_a_name_that_nobody_knows(published: Published, mirror: Mirror, tmp_path: Path) -> None:
    endpoints = {**mirror.endpoints, "coco": "http://imaginet.invalid"}
    summary = published.fetch(mirror, tmp_path, ("coco", "wikiart"), endpoints=endpoints)
    told(summary, published, "coco", "network", "ConnectError", address="http://imaginet.invalid/")
    published.complete(tmp_path, ("wikiart",))


# --- disks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk of a size, where that is allowed."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", str(place)], capture_output=True, check=False
        )
        if done.returncode != 0:
            pytest.skip("may not mount")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=False)


def test_too_little_disk_is_known_before_the_first_byte(
    published: Published, mirror: Mirror, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("size=64k")
    shown: list[str] = []
    with pytest.raises(FetchError, match=r"expected about .* of free disk, got .*; free some") as caught:
        published.fetch(mirror, disk / "root", ("coco",), show=shown.append)
    assert caught.value.reason == "disk"
    assert not mirror.requests
    assert "will be fetched" in shown[-1]


def test_a_disk_that_fills_up_on_the_way(
    published: Published, mirror: Mirror, small_disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Plan, "lacks_disk", property(lambda plan: False))
    root = small_disk("size=100k") / "root"
    with pytest.raises(FetchError, match=r"expected room for the next file, got .*No space left") as caught:
        published.fetch(mirror, root, SOURCES)
    assert caught.value.reason == "disk"
    assert "everything that came in is kept: free some disk and run the same command again" in str(caught.value)
    kept = {path for path in root.rglob("*.*") if path.is_file() and FOLDER not in path.parts}
    assert kept, "what fitted is kept"
    subprocess.run(["mount", "-o", "remount,size=40m", str(root.parent)], check=True)
    mirror.forget()
    assert published.fetch(mirror, root, SOURCES).complete
    published.complete(root, SOURCES)
    again = {r.path.strip("/") for r in mirror.requests if r.host == "coco"}
    assert not {path.relative_to(root).as_posix() for path in kept} & again, "fetched although it was there"


@pytest.mark.parametrize("at", ["write", "ledger", "found"])
def test_the_first_file_that_finds_no_room_ends_it(
    at: str, published: Published, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if at == "found":
        shutil.copytree(published.root / "val2017", tmp_path / "val2017")
    if at == "write":
        monkeypatch.setattr(Path, "replace", full)
    else:
        monkeypatch.setattr(fetching.Ledger, "append", full)
    with pytest.raises(FetchError, match="room for the next file"):
        published.fetch(mirror, tmp_path, ("coco",))
    monkeypatch.undo()
    monkeypatch.setattr(runs, "_RUN_BYTES", 10_000)
    assert published.fetch(mirror, tmp_path, ("coco",)).complete
    published.complete(tmp_path, ("coco",))


def test_a_root_that_is_read_only(
    published: Published, mirror: Mirror, small_disk: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    disk = small_disk("size=1m")
    (disk / "root").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    for root in (disk / "root", disk / "new"):
        with pytest.raises(
            FetchError, match=r"a folder that can be written.*Read-only.*choose another ROOT"
        ) as caught:
            published.fetch(mirror, root, ("coco",))
        assert caught.value.reason == "disk"
    assert not mirror.requests
    assert main(["fetch", str(disk / "root"), "--annotations", str(published.lists), "--only", "coco"]) == 1
    assert "Read-only" in capsys.readouterr().err


def test_a_root_that_is_a_file(published: Published, mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "root").write_text("mine")
    for root in (tmp_path / "root", tmp_path / "root" / "below"):
        with pytest.raises(FetchError, match="a folder that can be written"):
            published.fetch(mirror, root, ("coco",))
    assert (tmp_path / "root").read_text() == "mine"
    assert not mirror.requests


def test_folders_where_files_should_be(published: Published, mirror: Mirror, tmp_path: Path) -> None:
    """They are kept, out of the way; more than once."""
    one, two = published.paths["coco"][:2]
    for number in range(2):
        for path in (one, two):
            (tmp_path / path).unlink(missing_ok=True)
            (tmp_path / path).mkdir(parents=True)
            (tmp_path / path / "mine").write_text(f"{number}")
        summary = published.fetch(mirror, tmp_path, ("coco",))
        assert summary.complete, summary.text()
        published.complete(tmp_path, ("coco",))
    kept = sorted(path.read_text() for path in (tmp_path / FOLDER).rglob("mine"))
    assert kept == ["0", "0", "1", "1"]


def test_a_damaged_file_is_replaced_and_kept(published: Published, mirror: Mirror, tmp_path: Path) -> None:
    one = published.paths["coco"][0]
    (tmp_path / one).parent.mkdir()
    (tmp_path / one).write_bytes((published.root / one).read_bytes()[:500])
    assert published.fetch(mirror, tmp_path, ("coco",)).complete
    published.complete(tmp_path, ("coco",))
    kept = [path for path in (tmp_path / FOLDER).rglob("*.jpg*") if path.is_file()]
    assert [path.stat().st_size for path in kept] == [500]


@pytest.mark.parametrize("dangling", [False, True])
def test_files_where_folders_should_be(dangling: bool, published: Published, mirror: Mirror, tmp_path: Path) -> None:
    """Nothing is fetched that has no place to go."""
    for name in ("ffhq", "wikiart"):
        if dangling:
            (tmp_path / name).symlink_to(tmp_path / "nowhere")
        else:
            (tmp_path / name).write_text("mine")
    only = ("coco", "ffhq", "wikiart")
    summary = published.fetch(mirror, tmp_path, only)
    assert set(summary.missing) == {*published.paths["ffhq"], *published.paths["wikiart"]}
    for error in summary.missing.values():
        assert error.reason == "disk"
        assert "a place for the file" in str(error)
        assert "is not a folder; make room there" in str(error)
    assert not [r for r in mirror.requests if r.host == "drive"]
    for name in ("ffhq", "wikiart"):
        if not dangling:
            assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    assert published.fetch(mirror, tmp_path, only).complete
    published.complete(tmp_path, only)


def test_one_fetch_at_a_time(published: Published, mirror: Mirror, tmp_path: Path) -> None:
    mirror.latency_s = 0.1
    started = threading.Event()
    results: list[fetching.Summary] = []

    def one() -> None:
        results.append(published.fetch(mirror, tmp_path, ("coco",), max_workers=1, show=lambda _: started.set()))

    thread = threading.Thread(target=one)
    thread.start()
    assert started.wait(10)
    with pytest.raises(FetchError, match="no other fetch at work there, got one that is; wait for it") as caught:
        published.fetch(mirror, tmp_path, ("wikiart",))
    assert caught.value.reason == "busy"
    thread.join()
    assert results[0].complete
    published.complete(tmp_path, ("coco",))
    assert published.fetch(mirror, tmp_path, ("wikiart",)).complete


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_exit_status_tells(
    published: Published,
    mirror: Mirror,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in mirror.environ().items():
        monkeypatch.setenv(name, value)
    command = ["fetch", str(tmp_path), "--annotations", str(published.lists)]
    mirror.fault = always(COCO, Fault(status=404))
    assert main([*command, "--only", "coco,danbooru", "--route", "coco=s3"]) == 1
    shown = capsys.readouterr().err
    assert "missing: 6, listed in" in shown
    assert "6 missing: coco: http://127.0.0.1" in shown
    assert "HTTP 404; try again later" in shown
    assert main([*command, "--only", "coco", "--route", "coco=s3", "--json", "--quiet"]) == 1
    told_as_json = json.loads(capsys.readouterr().out)
    assert not told_as_json["complete"]
    assert {item["path"] for item in told_as_json["missing"]} == set(published.paths["coco"])
    assert {(item["source"], item["reason"]) for item in told_as_json["missing"]} == {("coco", "missing")}
    assert main([*command, "--only", "coco", "--quiet", "--route", "coco=s3"]) == 1
    assert "HTTP 404" in capsys.readouterr().err, "quiet is not silent about what is missing"
    mirror.fault = None
    assert main([*command, "--only", "coco,danbooru"]) == 0
    published.complete(tmp_path, ("coco", "danbooru"))
    assert main([*command, "--only", "cocoa"]) == 2
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "soon")
    assert main([*command, "--only", "coco"]) == 2


def test_upstreams_list_must_be_upstreams(
    published: Published, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list from the network that is not the pinned one is refused, and leaves nothing."""
    for name, value in mirror.environ().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(FetchError, match=r"the git blob 05942b0e.*is not upstream's list") as caught:
        fetching.fetch(tmp_path, split="test", limits=FAST)
    assert caught.value.source == "annotations"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"]
    for fault, reason in ((Fault(status=503), "status"), (Fault(reset_after=5), "network")):
        mirror.fault = always("annotations", fault)
        with pytest.raises(FetchError, match=r"annotations/test_annotations\.txt") as caught:
            fetching.fetch(tmp_path, split="test", limits=FAST)
        assert caught.value.reason == reason


# --- secrets --------------------------------------------------------------------------------------------------------


def test_secrets_stay_secret(published: Published, mirror: Mirror, tmp_path: Path) -> None:
    """Tokens, keys, passwords in addresses and in a proxy, signatures: in no output, file, or request to others."""
    basic = base64.b64encode(b"reader:SENTINELKEY").decode()
    secrets = ("SENTINELTOKEN", "SENTINELPASSWORD", "Signature=", "SENTINELPROXY", "SENTINELKEY", basic)
    mirror.gated = {HUB: "hf_SENTINELTOKEN"}
    mirror.kaggle = {"reader": "SENTINELKEY"}
    mirror.fault = chain(
        always("/val2017/000000000001.jpg", Fault(status=500)),
        always("/val2017/000000000002.jpg", Fault(redirect_to=f"{mirror.cdn}/elsewhere?Signature=x")),
        members(published, "cnndetection", Fault(status=404), 1),
        always(FFHQ, Fault(status=403)),
        always(WIKIART, Fault(page="quota")),
        # What Kaggle is sent, it repeats; and a redirect leads elsewhere.
        always("painter_picture-1", Fault(status=403, body=json.dumps({"message": f"no {basic}"}).encode())),
        always("painter_picture-2", Fault(redirect_to=f"{mirror.cdn}/elsewhere?Signature=x")),
        always("wikiart/archive.zip", Fault(status=403), host="gcs"),
    )
    bases = {name: value for name, value in mirror.endpoints.items() if name not in ("hf", "kaggle")}
    with_password = {name: value.replace("://", "://user:SENTINELPASSWORD@") for name, value in bases.items()}
    environment = {
        **os.environ,
        "HF_TOKEN": "hf_SENTINELTOKEN",
        "HF_ENDPOINT": mirror.endpoints["hf"],
        "KAGGLE_USERNAME": "reader",
        "KAGGLE_KEY": "SENTINELKEY",
        "KAGGLE_API_ENDPOINT": f"{mirror.endpoints['kaggle']}/api/v1",
        "IMAGINET_ENDPOINTS": ",".join(f"{name}={base}" for name, base in with_password.items()),
        "HTTPS_PROXY": "http://user:SENTINELPROXY@127.0.0.1:9",
        "PYTHONPATH": os.pathsep.join((os.environ.get("PYTHONPATH", ""), str(Path.cwd()))),
    }
    # With the library's own logging at its loudest.
    code = (
        "import logging, sys; logging.basicConfig(level=logging.DEBUG)\n"
        "from imaginet_hub.data.readers import http\n"
        "http._Patience.after.__globals__['random'].random = lambda: -0.49\n"
        "from imaginet_hub.cli import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    base = [sys.executable, "-c", code, "fetch", str(tmp_path), "--annotations", str(published.lists), "--debug"]
    # One route each, so that something is missing in the end.
    routes = ["coco=s3", "cnndetection=hf-zip", "ffhq=hf-zips", "wikiart=kaggle-files"]
    forced = [word for route in routes for word in ("--route", route)]
    everything = ["--only", "coco,cnndetection,ffhq,wikiart", "--json"]
    archive = ["--only", "wikiart", "--route", "wikiart=kaggle", "--json"]
    for more in ([*everything, *forced], archive, everything, ["--only", "hf_x"]):
        done = subprocess.run([*base, *more], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stderr[-2000:]
        for secret in secrets:
            assert secret not in done.stdout
            assert secret not in done.stderr
        if "coco" in more[1]:
            assert "HTTP Request" in done.stderr, "the test is of what is logged"
            assert len(json.loads(done.stdout)["missing"]) >= (3 if more[-1] == routes[-1] else 0)
    for file in tmp_path.rglob("*"):
        if file.is_file() and file.suffix not in (".jpg", ".png"):
            assert not any(secret in file.read_text(errors="replace") for secret in secrets), file
    for request in mirror.requests:
        told_to = json.dumps([request.path, request.query, request.headers])
        assert ("SENTINELTOKEN" in told_to) <= (request.host == "hf")
        assert (basic in told_to) <= (request.host == "kaggle")
        assert "SENTINELPROXY" not in told_to
        if "authorization" in request.headers:
            assert request.headers["authorization"].startswith("Bearer" if request.host == "hf" else "Basic")
            assert request.host not in ("cdn", "gcs")
    assert any(basic in request.headers.get("authorization", "") for request in mirror.requests)
    assert any(request.host == "gcs" and request.status == 403 for request in mirror.requests)
    assert any("SENTINELTOKEN" in request.headers.get("authorization", "") for request in mirror.requests)
    assert any(request.host == "cdn" and request.path == "/elsewhere" for request in mirror.requests)


def test_a_whole_run_without_a_hitch_moves_little_in_vain(
    published: Published, mirror: Mirror, tmp_path: Path
) -> None:
    summary = published.fetch(mirror, tmp_path, SOURCES)
    assert summary.complete, summary.text()
    published.complete(tmp_path, SOURCES)
    mirror.forget()
    assert published.fetch(mirror, tmp_path, SOURCES).bytes_moved == 0
    assert not mirror.requests


def test_cancelling_from_inside_a_callback_keeps_what_came(
    published: Published, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever stops a run (here: Ctrl-C in the middle), it stops at once although a host stalls."""
    mirror.fault = lambda r: Fault(stall_after=-1) if r.path.endswith("3.jpg") else None
    client: list[Http] = []
    original = Http.__enter__
    monkeypatch.setattr(Http, "__enter__", lambda self: client.append(self) or original(self))

    def stop() -> None:
        while len(list((tmp_path / "val2017").glob("0*.jpg"))) < 5:
            time.sleep(0.01)
        client[0].cancel()

    thread = threading.Thread(target=stop)
    thread.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        published.fetch(mirror, tmp_path, ("coco",), limits=Limits(timeout_s=60))
    assert time.monotonic() - began < 5
    thread.join()
    assert len(published.here(tmp_path)) == 5
    mirror.fault = None
    assert published.fetch(mirror, tmp_path, ("coco",)).complete


def test_large_members_wait_for_each_other() -> None:
    memory = workers.Memory(100)
    held, most, lock = [0], [0], threading.Lock()

    def work(count: int) -> None:
        with memory.held(count, lambda: None):
            with lock:
                held[0] += count
                most[0] = max(most[0], held[0])
            time.sleep(0.02)
            with lock:
                held[0] -= count

    for sizes, expected in (([40] * 8, 80), ([0] * 8 + [100], 100), ([500, 1, 1], 500)):
        most[0] = 0
        threads = [threading.Thread(target=work, args=(size,)) for size in sizes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert most[0] == expected

    def stop() -> None:
        raise Cancelled

    with memory.held(60, stop), pytest.raises(Cancelled), memory.held(60, stop):
        pass


def test_a_retried_file_is_asked_for_once_more_only(published: Published, mirror: Mirror, tmp_path: Path) -> None:
    mirror.fault = once("/val2017/000000000002.jpg", Fault(wrong_bytes=True))
    assert published.fetch(mirror, tmp_path, ("coco",)).complete
    asked = sorted(request.path for request in mirror.requests)
    assert len(asked) == len(published.paths["coco"]) + 1


# --- places of one's own that cannot be read, many of them, and bytes that nobody foresaw ---------------------------


def offline_fetch(base: Path, paths: list[str], own: Path, monkeypatch: pytest.MonkeyPatch) -> fetching.Summary:
    """A fetch of Danbooru's images from one's own files alone."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (base / "lists.csv").write_text("path,label\n" + "".join(f"{path},real\n" for path in paths))
    return fetching.fetch(base / "root", annotations=base / "lists.csv", own={"danbooru": own})


def png() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize("name", ["a.zip", "a.7z"])
@pytest.mark.parametrize("fails", ["kind_of", "iterdir"])
def test_an_archive_that_may_not_be_read_stops_no_other(
    name: str, fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / name).write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(40) if name.endswith("7z") else b"PK\5\6" + bytes(18))
    with zipfile.ZipFile(own / "b.zip", "w") as good:
        good.writestr("danbooru2021/1.jpg", png())

    def refuse(before: Callable[..., object]) -> Callable[[Path], object]:
        def refused(path: Path) -> object:
            if (path.name == name) if fails == "kind_of" else path == own:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return before(path)

        return refused

    if fails == "kind_of":
        monkeypatch.setattr(local, "kind_of", refuse(local.kind_of))
    else:
        monkeypatch.setattr(Path, "iterdir", refuse(Path.iterdir))
    summary = offline_fetch(tmp_path, ["danbooru2021/1.jpg", "danbooru2021/2.jpg"], own, monkeypatch)
    assert summary.fetched == {"danbooru": 1}
    (error,) = summary.missing.values()
    assert error.reason in ("missing", "corrupt") and "ROOT" not in str(error)
    if fails == "kind_of":
        assert str(own / name) in str(error) and "Permission denied" in str(error)


@pytest.mark.parametrize(
    "raised", [OSError(5, "I/O"), ValueError("v"), RecursionError("r"), TypeError("t"), struct.error("s"), KeyError(1)]
)
def test_what_nobody_foresaw_in_an_archives_directory_is_that_archives_fault(
    raised: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for name in ("a.zip", "b.zip"):
        with zipfile.ZipFile(own / name, "w") as good:
            good.writestr(f"danbooru2021/{name[0]}.jpg", png())
    find = zips.ZipFile.find

    def broken(self: zips.ZipFile, *args: object) -> object:
        if "a.zip" in self.file.error("x", "x", "x", "x").address:
            raise raised
        return find(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(zips.ZipFile, "find", broken)
    summary = offline_fetch(tmp_path, ["danbooru2021/a.jpg", "danbooru2021/b.jpg"], own, monkeypatch)
    assert summary.fetched == {"danbooru": 1}
    (error,) = summary.missing.values()
    assert error.reason == "corrupt" and type(raised).__name__ in error.got and "writable" not in str(error)


def test_a_thousand_places_make_no_message_of_a_thousand_places() -> None:
    def failed(reason: str, place: str) -> FetchError:
        return FetchError(reason, "danbooru", place, "a member", f"none in {place}", "name another")

    why = fetching._Why(failed("missing", "0.tar"))
    why.add(failed("missing", "0.tar"))
    assert str(why.error()) == str(failed("missing", "0.tar"))  # the same again tells nothing
    for number in range(1, 1000):
        why.add(failed("missing", f"{number}.tar"))
    error = why.error()
    assert error.address == "999.tar"
    others = "; ".join(f"from {n}.tar: none in {n}.tar" for n in range(3))
    assert error.got == f"none in 999.tar (and {others}; from 996 other places)"
    why.add(failed("corrupt", "bad.tar"))
    why.add(failed("network", "hub"))
    why.add(failed("missing", "last.tar"))
    assert why.error().reason == "corrupt" and why.error().address == "bad.tar"
    assert "from hub: none in hub" in str(why.error())  # what tells more stays
    assert "from 999 other places" in str(why.error())
    assert len(str(why.error())) < 400


def test_names_forge_no_line_of_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "o\nforged\tmissing\x1b[2J"
    own.mkdir()
    summary = offline_fetch(tmp_path, ["danbooru2021/1.jpg"], own, monkeypatch)
    listed = (tmp_path / "root" / FOLDER / "missing.txt").read_text()
    assert listed.count("\n") == 1 and listed.count("\t") == 2 and "\\x1b[2J" in listed
    assert all(line.isprintable() for line in (*listed[:-1].split("\t"), *summary.text().splitlines()[1:]))
    assert len(summary.text().splitlines()) == 3
