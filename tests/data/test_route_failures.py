"""Kaggle, Parquet and indexed tars when hosts fail: the right files in the end, or one clear error each."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from imaginet_hub.data.fetch import Summary
from imaginet_hub.data.ledger import FOLDER, read_ledger
from imaginet_hub.data.readers import parquet, runs
from imaginet_hub.data.ways import parquet as parquet_way
from imaginet_hub.demo.mirror import Fault, Mirror, Request, always, busy, chain
from imaginet_hub.demo.staging import write_indexed_tar, write_parquet, write_zip
from tests.conftest import PROJECT, image_bytes
from tests.support.published import ACCOUNTS, FAST, GATES, Published

IMPATIENT = replace(FAST, timeout_s=0.4)
IMAGENET = "kaggle/competitions/imagenet-object-localization-challenge"
TABLES = "hf/ILSVRC/imagenet-1k/data"
TARS, INDEXES = "hf/nyanko7/danbooru2023/original", "hf/deepghs/danbooru2023_index/original"
NAMES = [
    *(f"imagenet/ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_{n:08d}.JPEG" for n in range(1, 13)),
    *(f"imagenet/n0144{n % 3:04d}_{n}_n0144{n % 3:04d}.JPEG" for n in range(1, 19)),
    *(f"danbooru2021/{1000 * n + bucket}.jpg" for bucket in (7, 139, 999, 20, 500, 77) for n in range(1, 5)),
    *(f"val2017/{n:012d}.jpg" for n in range(1, 4)),
]


@dataclass(frozen=True)
class Way:
    """A route, and which requests are for the bytes of its images.

    Attributes:
        host, ending: of those requests.
    """

    source: str
    name: str
    host: str
    ending: str


WAYS = {
    "kaggle": Way("imagenet", "kaggle", "gcs", "_00000002.JPEG"),
    "kaggle's own": Way("imagenet", "kaggle", "kaggle", "_00000002.JPEG"),
    "kaggle-zip": Way("imagenet", "kaggle-zip", "gcs", "archive.zip"),
    "hf-parquet": Way("imagenet", "hf-parquet", "cdn", ".parquet"),
    "hf-tars": Way("danbooru", "hf-tars", "cdn", ".tar"),
    "indexes of hf-tars": Way("danbooru", "hf-tars", "hf", ".json"),
}
ARCHIVES = ("kaggle-zip", "hf-parquet", "hf-tars")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published.make(tmp_path_factory.mktemp("published"), names=NAMES)


@pytest.fixture
def mirror(published: Published) -> Iterator[Mirror]:
    with Mirror(published.origin, **GATES) as running:
        yield running


@pytest.fixture
def changing(published: Published, tmp_path: Path) -> Iterator[Mirror]:
    """A mirror of a copy, whose files may be replaced."""
    shutil.copytree(published.origin, tmp_path / "origin")
    with Mirror(tmp_path / "origin", **GATES) as running:
        yield running


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several requests for each archive, small as they are here."""
    monkeypatch.setattr(runs, "_RUN_BYTES", 20_000)
    monkeypatch.setattr(parquet, "_TAIL_BYTES", 4096)


@pytest.fixture(autouse=True)
def accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ACCOUNTS.items():
        monkeypatch.setenv(name, value)


def fetched(published: Published, mirror: Mirror, root: Path, *sources: str, **options: Any) -> Summary:
    """Fetch sources (by `routes`) and COCO, which nothing disturbs."""
    return published.fetch(mirror, root, (*sources, "coco"), **options)


class Hits:
    """The fault for the first requests for image bytes of a way (not for sizes and directories); None: for all."""

    def __init__(self, published: Published, way: Way, fault: Fault, times: int | None = 1) -> None:
        self.count = 0
        self._way, self._fault, self._times = way, fault, times
        self._lock = threading.Lock()
        self._ends = {}  # where what describes an archive begins
        for file in (published.origin / IMAGENET).glob("archive.zip"):
            with zipfile.ZipFile(file) as opened:
                self._ends[file.name] = opened.start_dir
        for file in (published.origin / TABLES).glob("*.parquet"):
            data = file.read_bytes()
            self._ends[file.name] = len(data) - 8 - int.from_bytes(data[-8:-4], "little")

    def __call__(self, request: Request) -> Fault | None:
        if request.host != self._way.host or not request.path.endswith(self._way.ending):
            return None
        if self._way.name in ARCHIVES and self._way.ending != ".json":
            end = self._ends.get(request.path.rpartition("/")[2])
            if request.range in (None, (0, 0)) or (end is not None and (request.range[1] or end) >= end):
                return None
        with self._lock:
            self.count += 1
            return self._fault if self._times is None or self.count <= self._times else None


# --- what passes ----------------------------------------------------------------------------------------------------

PASSING = {
    "503 with Retry-After 0": (busy(503, 0), 3),
    "429 with Retry-After 1": (busy(429, 1), 1),
    "429": (busy(429), 4),
    "500": (Fault(status=500), 4),
    "reset before the answer": (Fault(reset_after=-1), 3),
    "reset at once": (Fault(reset_after=0), 3),
    "reset after 1000 bytes": (Fault(reset_after=1000), 3),
    "stall before the answer": (Fault(stall_after=-1), 2),
    "stall after 500 bytes": (Fault(stall_after=500), 2),
    "short": (Fault(short_after=700), 3),
    "nothing": (Fault(short_after=0), 3),
    "shorter, and says so": (Fault(truncate_to=900), 1),
    "wrong bytes": (Fault(wrong_bytes=True), 1),
    "gzip unasked": (Fault(content_encoding="gzip"), 1),
    "chunked": (Fault(chunked=True), None),
    "ignores ranges": (Fault(ignore_range=True), 2),
    "wrong range": (Fault(wrong_range=True), 2),
    "Content-Range of another size": (Fault(headers={"Content-Range": "bytes 0-0/1"}), 1),
    "a web page": (Fault(status=200, headers={"Content-Type": "text/html"}, body=b"<html>portal</html>"), 1),
    "a web page that does not say so": (Fault(status=200, body=b"<!DOCTYPE html><html>portal</html>"), 1),
    "206 without Content-Range": (Fault(headers={"Content-Range": None}), 1),
}


def pairs(faults: dict[str, tuple[Any, ...]]) -> list[tuple[str, str]]:
    """Every fault with every route; but Kaggle answers with a redirect, which has no body to go wrong."""
    bodies = {
        name for name, (f, *_) in faults.items() if f.status is None and -1 not in (f.reset_after, f.stall_after)
    }
    bodies -= {"redirects without end"}
    return [
        (name, route) for name in faults for route, way in WAYS.items() if way.host != "kaggle" or name not in bodies
    ]


@pytest.mark.parametrize(("what", "route"), pairs(PASSING))
def test_passes(what: str, route: str, published: Published, mirror: Mirror, tmp_path: Path) -> None:
    fault, times = PASSING[what]
    way = WAYS[route]
    mirror.fault = hits = Hits(published, way, fault, times)
    limits = IMPATIENT if "stall" in what else FAST
    summary = fetched(published, mirror, tmp_path, way.source, routes={way.source: way.name}, limits=limits)
    assert summary.complete, summary.text()
    assert hits.count > 0, "the test is of nothing"
    published.complete(tmp_path, (way.source, "coco"))
    assert {entry.route for entry in read_ledger(tmp_path).values() if entry.source == way.source} == {way.name}


@pytest.mark.parametrize("route", ["kaggle", *ARCHIVES])
@pytest.mark.parametrize("status", [400, 403])
def test_signed_addresses_that_expire_are_renewed(
    route: str, status: int, published: Published, mirror: Mirror, tmp_path: Path
) -> None:
    """By a clock (400 at Google's storage), or all at once (403)."""
    way, left = WAYS[route], threading.Semaphore(3)

    def expire(request: Request) -> Fault | None:
        if request.host == way.host and request.range != (0, 0) and left.acquire(blocking=False):
            if way.host == "gcs" and status == 400:
                return Fault(status=400, body=b"<Error><Code>ExpiredToken</Code></Error>")
            mirror.expire_urls()
        return None

    mirror.fault = expire
    summary = fetched(published, mirror, tmp_path, way.source, routes={way.source: way.name}, max_workers=8)
    assert summary.complete, summary.text()
    published.complete(tmp_path, (way.source, "coco"))
    assert any(request.status in (400, 403) for request in mirror.requests if request.host == way.host)


@pytest.mark.parametrize("route", ["kaggle", "kaggle-zip", "hf-parquet"])
def test_signed_addresses_that_live_for_a_second(
    route: str, published: Published, mirror: Mirror, tmp_path: Path
) -> None:
    way = WAYS[route]
    mirror.url_lifetime_s, mirror.latency_s = 1.0, 0.1
    summary = fetched(published, mirror, tmp_path, way.source, routes={way.source: way.name}, max_workers=1)
    assert summary.complete, summary.text()
    published.complete(tmp_path, (way.source, "coco"))


# --- what stays -----------------------------------------------------------------------------------------------------


def told(summary: Summary, paths: set[str], reason: str, *words: str) -> None:
    """Assert that these are missing, and that each error says why in these words."""
    assert set(summary.missing) == paths, summary.text()
    for error in summary.missing.values():
        assert error.reason == reason, str(error)
        assert error.expected and error.got and error.remedy
        assert not re.search(r"Signature|\?|authorization|basic ", str(error), re.IGNORECASE), str(error)
        assert f"--from {error.source}=PATH" in str(error)
        for word in words:
            assert word in str(error), f"{word!r} is not in {error}"


STAYING = {
    "503 for an hour": (busy(503, 3600), "status", "3600 s"),
    "500 forever": (Fault(status=500), "status", "HTTP 500"),
    "404": (Fault(status=404), "missing", "HTTP 404"),
    "410": (Fault(status=410), "missing", "HTTP 410"),
    "resets forever": (Fault(reset_after=100), "network", "an answer"),
    "stalls forever": (Fault(stall_after=100), "network", "nothing for 0.4 s"),
    "short forever": (Fault(short_after=100), "network", "an answer"),
    "a web page forever": (
        Fault(status=200, headers={"Content-Type": "text/html"}, body=b"<!DOCTYPE html><p>log in to the wifi"),
        "format",
        "a web page with status 200",
    ),
    "redirects without end": (Fault(redirect_to="?"), "status", "redirects without end"),
}


@pytest.mark.parametrize(("what", "route"), pairs(STAYING))
def test_stays(what: str, route: str, published: Published, mirror: Mirror, tmp_path: Path) -> None:
    """The rest goes on, and the next run repeats nothing."""
    fault, reason, word = STAYING[what]
    way = WAYS[route]
    mirror.fault = Hits(published, way, fault, None)
    routes = {way.source: way.name}
    limits = IMPATIENT if "stall" in what else FAST
    began = time.monotonic()
    summary = fetched(published, mirror, tmp_path, way.source, routes=routes, limits=limits)
    assert time.monotonic() - began < 12
    here = published.here(tmp_path)
    paths = set(published.paths[way.source]) - here
    assert paths and (way.name != "kaggle" or len(paths) == 1)
    told(summary, paths, reason, word)
    mirror.fault = None
    mirror.forget()
    assert fetched(published, mirror, tmp_path, way.source, routes=routes).complete
    published.complete(tmp_path, (way.source, "coco"))
    assert not any(request.host == "coco" for request in mirror.requests)
    if way.name == "kaggle":
        assert len({request.path.rpartition("/")[2] for request in mirror.requests}) == 1


def test_wrong_bytes_forever(published: Published, mirror: Mirror, tmp_path: Path) -> None:
    for route, word in (
        ("kaggle", "of X-Goog-Hash"),
        ("kaggle-zip", "local header"),
        ("hf-tars", "SHA-256"),
        ("indexes of hf-tars", "an index of its members"),
        ("hf-parquet", "row group"),
    ):
        way = WAYS[route]
        mirror.fault = Hits(published, way, Fault(wrong_bytes=True), None)
        summary = fetched(published, mirror, tmp_path / route, way.source, routes={way.source: way.name})
        told(summary, set(published.paths[way.source]) - published.here(tmp_path / route), "corrupt", word)


@pytest.mark.parametrize("route", ARCHIVES)
def test_what_one_route_does_not_give_the_next_one_does(
    route: str, published: Published, mirror: Mirror, tmp_path: Path
) -> None:
    """And nothing by two of them."""
    way = WAYS[route]
    mirror.fault = chain(
        always("_00000002.JPEG", Fault(status=404), host="kaggle"),
        always("/data/validation-00000", Fault(status=404), host="hf") if route != "hf-parquet" else lambda r: None,
        always("archive.zip", Fault(status=500), host="gcs") if route != "kaggle-zip" else lambda r: None,
        always("/uc", Fault(page="quota"), host="drive"),
    )
    summary = published.fetch(
        mirror, tmp_path, (way.source,), routes={"danbooru": "hf-tars"} if route == "hf-tars" else {}
    )
    assert summary.complete, summary.text()
    published.complete(tmp_path, (way.source,))
    came = Counter(entry.route for entry in read_ledger(tmp_path).values())
    if way.source == "imagenet":
        assert came == {"kaggle": 29, route: 1}


# --- Parquet --------------------------------------------------------------------------------------------------------


def shards(origin: Path, split: str = "train") -> list[Path]:
    return sorted((origin / TABLES).glob(f"{split}-*.parquet"))


def paths_in(published: Published, file: Path) -> set[str]:
    """The listed images that a Parquet file holds, by another reader."""
    stored = [row["path"] for row in pq.read_table(file).column("image").to_pylist()]
    names = {name.rpartition("_")[0] for name in stored}
    return {path for path in published.paths["imagenet"] if Path(path).stem in names or Path(path).stem[:-10] in names}


def write(file: Path, data: bytes) -> None:
    """Replace a file that may be a link."""
    file.unlink(missing_ok=True)
    file.write_bytes(data)


def parquet_fetch(published: Published, mirror: Mirror, root: Path, **options: Any) -> Summary:
    return fetched(published, mirror, root, "imagenet", routes={"imagenet": "hf-parquet"}, **options)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "another end": lambda data: data[:-4] + b"RAP1",
    "a footer of gigabytes": lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1",
    "a footer of rubbish": lambda data: data[: -int.from_bytes(data[-8:-4], "little")] + b"\x15" * 99 + data[-8:],
    "a huge footer of rubbish": lambda data: data + b"\x19" * (50 << 20) + (50 << 20).to_bytes(4, "little") + b"PAR1",
    "no names": lambda data: (
        data[:4] + bytes(len(data) - 4 - (8 + (n := int.from_bytes(data[-8:-4], "little")))) + data[-8 - n :]
    ),
    "a web page": lambda data: b"<!DOCTYPE html><html>sorry</html>",
}


@pytest.mark.parametrize("what", DAMAGE)
def test_one_shard_is_damaged(what: str, published: Published, changing: Mirror, tmp_path: Path) -> None:
    file = shards(changing.origin)[1]
    lost, whole = paths_in(published, file), file.read_bytes()
    assert 3 < len(lost) < 9
    write(file, DAMAGE[what](whole))
    summary = parquet_fetch(published, changing, tmp_path / "root")
    assert set(summary.missing) == lost, summary.text()
    for error in summary.missing.values():
        assert error.reason in ("corrupt", "format", "changed" if what == "empty" else "corrupt"), str(error)
        assert file.name in str(error)
    write(file, whole)
    changing.forget()
    assert parquet_fetch(published, changing, tmp_path / "root").complete
    published.complete(tmp_path / "root", ("imagenet", "coco"))
    others = {file.name for file in shards(changing.origin)} - {file.name}
    images = [r for r in changing.requests if r.host == "cdn" and r.sent > 10_000]
    assert not others & {request.path.rpartition("/")[2] for request in images}, "what had come was moved again"


def test_one_shard_is_gone(published: Published, changing: Mirror, tmp_path: Path) -> None:
    file = shards(changing.origin, "validation")[0]
    lost = paths_in(published, file)
    file.unlink()
    summary = parquet_fetch(published, changing, tmp_path / "root")
    told(summary, lost, "missing", "a member for")
    write(file, (published.origin / file.relative_to(changing.origin)).read_bytes())
    changing.fault = always(file.name, Fault(status=404))  # listed, and not there
    told(parquet_fetch(published, changing, tmp_path / "root"), lost, "missing", "HTTP 404", file.name)
    changing.fault = None
    assert parquet_fetch(published, changing, tmp_path / "root").complete


@pytest.mark.parametrize("after", ["the names", "an image"])
def test_a_shard_is_replaced_meanwhile(
    after: str, published: Published, changing: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows lie elsewhere then; the names are read again, of that shard alone."""
    file = shards(changing.origin)[0]
    table = pq.read_table(file)
    rows = [(row["image"]["path"], row["image"]["bytes"], 0) for row in reversed(table.to_pylist())]
    rows.insert(0, ("n00000001_1_n00000001.JPEG", image_bytes(77, format_="JPEG"), 0))
    write_parquet(file, rows[::-1], rows_per_group=2)
    write_parquet(tmp_path / "new.parquet", rows, rows_per_group=3)
    end = len(data := file.read_bytes()) - 8 - int.from_bytes(data[-8:-4], "little")
    seen, replaced = itertools.count(), threading.Event()

    def hook(request: Request) -> Fault | None:
        mine = request.host == "cdn" and request.path.endswith(file.name)
        if mine and not replaced.is_set() and request.range and request.range[1] and request.range[1] < end:
            long = request.range[1] - (request.range[0] or 0) > 5_000
            if long and next(seen) == (1 if after == "an image" else 0):
                write(file, (tmp_path / "new.parquet").read_bytes())
                replaced.set()
        return None

    changing.fault = hook
    looked: Counter[str] = Counter()
    look = parquet_way.ParquetImages.names

    def names(self: Any) -> Any:
        looked[self.file.remote.address.rpartition("/")[2]] += 1
        return look(self)

    monkeypatch.setattr(parquet_way.ParquetImages, "names", names)
    summary = parquet_fetch(published, changing, tmp_path / "root", max_workers=1)
    assert summary.complete, summary.text()
    assert replaced.is_set()
    published.complete(tmp_path / "root", ("imagenet", "coco"))
    assert looked.pop(file.name) == 2
    assert set(looked.values()) == {1}


def test_what_is_said_is_what_moves(published: Published, mirror: Mirror, tmp_path: Path) -> None:
    """Names of the shards in question; then the row groups in question, and nothing else."""
    said: list[str] = []
    summary = published.fetch(
        mirror, tmp_path, ("imagenet",), routes={"imagenet": "hf-parquet"}, limit=7, show=said.append
    )
    assert summary.complete, summary.text()
    assert published.here(tmp_path) == set(published.paths["imagenet"][:7])
    files = {r.path.rpartition("/")[2] for r in mirror.requests if r.host == "cdn"}
    assert files == {file.name for file in shards(published.origin, "validation")}, "no training shard is looked into"
    (line,) = [text for text in said if "row groups" in text and " lie in " in text]
    match = re.search(r"7 images lie in (\d) of (\d) row groups; (\S+ kB) to move", line)
    assert match, line
    sizes = groups = 0
    for file in shards(published.origin, "validation"):
        metadata = pq.ParquetFile(file).metadata
        for number in range(metadata.num_row_groups):
            names = pq.ParquetFile(file).read_row_group(number).column("image").to_pylist()
            if {row["path"].rpartition("_")[0] for row in names} & {Path(p).stem for p in published.here(tmp_path)}:
                groups += 1
                sizes += metadata.row_group(number).column(0).total_compressed_size
    assert int(match[1]) == groups
    from imaginet_hub.data.units import human_bytes

    assert match[3] == human_bytes(sizes)
    asked = [r for r in mirror.requests if r.host == "cdn" and r.sent > 5_000]
    assert sum(request.sent for request in asked) == sizes
    # And the bytes are those of the original files, under names without the class.
    for path in published.here(tmp_path):
        assert (tmp_path / path).read_bytes() == (published.root / path).read_bytes()


@pytest.mark.parametrize(
    ("fault", "reason", "word"),
    [
        (Fault(status=500), "status", "HTTP 500"),
        (Fault(status=404), "missing", "HTTP 404"),
        (Fault(status=401), "access", "the list of ILSVRC/imagenet-1k's files"),
        (Fault(status=200, body=b"{"), "format", "the Hub's list of files"),
        (Fault(status=200, body=b'{"siblings": 7}'), "format", "the Hub's list of files"),
        (Fault(status=200, body=b'{"siblings": []}'), "missing", "data/train-*.parquet"),
        (Fault(status=200, body=b"[" * 100_000), "format", "the Hub's list of files"),
        (
            Fault(status=200, body=b"<html>portal</html>", headers={"Content-Type": "text/html"}),
            "format",
            "a web page",
        ),
        (Fault(reset_after=-1), "network", "an answer"),
    ],
)
def test_a_listing_that_fails(
    fault: Fault, reason: str, word: str, published: Published, mirror: Mirror, tmp_path: Path
) -> None:
    mirror.fault = always("/api/datasets/ILSVRC", fault)
    told(parquet_fetch(published, mirror, tmp_path), set(published.paths["imagenet"]), reason, word)
    mirror.fault = None
    assert parquet_fetch(published, mirror, tmp_path).complete


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("hf_wrong", ("HTTP 403 (gated repository)", "accept the terms on", "/datasets/ILSVRC/imagenet-1k with")),
        ("", ("an account is needed (hf or kaggle)", "https://huggingface.co/datasets/ILSVRC/imagenet-1k")),
        ("hf_b\u00e4d", ("a Hugging Face token of printable ASCII characters",)),
    ],
)
def test_a_gated_table(
    token: str,
    words: tuple[str, ...],
    published: Published,
    mirror: Mirror,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    if not token:
        monkeypatch.delenv("KAGGLE_KEY")
    options = {} if not token else {"routes": {"imagenet": "hf-parquet"}}
    summary = fetched(published, mirror, tmp_path, "imagenet", **options)
    told(summary, set(published.paths["imagenet"]), "access", *words)
    assert not any(f"{token or 'Bearer'}" in f"{e} {e!r} {e.__cause__!r}" for e in summary.missing.values())
    assert len([r for r in mirror.requests if "/resolve/" in r.path]) < 4, "who may not read one may read none"


@pytest.mark.parametrize("name", ["../../{}", "/{}", "C:\\{}", "{}/../../{}"])
def test_refused_names_are_told(name: str, published: Published, changing: Mirror, tmp_path: Path) -> None:
    """In tables, in indexes, in Kaggle's archive."""
    file = shards(changing.origin, "validation")[0]
    rows = [(row["image"]["path"], row["image"]["bytes"], 0) for row in pq.read_table(file).to_pylist()]
    (one,) = [path for path in published.paths["imagenet"] if Path(path).stem == rows[0][0].rpartition("_")[0]]
    write_parquet(file, [(name.replace("{}", rows[0][0]), *rows[0][1:]), *rows[1:]])
    summary = parquet_fetch(published, changing, tmp_path / "tables")
    told(summary, {one}, "corrupt", "whose name leads out of the archive")
    place = one.partition("/")[2]
    members = [
        (name.replace("{}", place) if path == one else f"ILSVRC/Data/CLS-LOC/{path}", published.root / path)
        for path in published.paths["imagenet"]
    ]
    write_zip(changing.origin / IMAGENET / "archive.zip", members)
    summary = fetched(published, changing, tmp_path / "zip", "imagenet", routes={"imagenet": "kaggle-zip"})
    told(summary, {one}, "corrupt", "whose name leads out of the archive")
    index = changing.origin / INDEXES / "data-0007.json"
    described = json.loads(index.read_text())
    described["files"][name.replace("{}", "1007.jpg")] = described["files"].pop("1007.jpg")
    write(index, json.dumps(described).encode())
    summary = tars_fetch(published, changing, tmp_path / "tars")
    told(summary, {"danbooru2021/1007.jpg"}, "corrupt", "whose name leads out of the archive")


# --- indexed tars ---------------------------------------------------------------------------------------------------


def tars_fetch(published: Published, mirror: Mirror, root: Path, **options: Any) -> Summary:
    return fetched(published, mirror, root, "danbooru", routes={"danbooru": "hf-tars"}, **options)


def bucket(published: Published, name: str) -> set[str]:
    return {path for path in published.paths["danbooru"] if int(Path(path).stem) % 1000 == int(name)}


def lie(described: dict[str, Any], lies: dict[str, Any]) -> bytes:
    files = {name: entry | lies for name, entry in described["files"].items()}
    return json.dumps(described | {"files": files}).encode()


LIES: dict[str, tuple[Callable[[dict[str, Any]], bytes], str, str]] = {
    "another size": (lambda d: json.dumps(d | {"filesize": d["filesize"] + 512}).encode(), "changed", "out of date"),
    "other sums": (lambda d: lie(d, {"sha256": "0" * 64}), "corrupt", "SHA-256 " + "0" * 64),
    "other places": (lambda d: lie(d, {"offset": 600}), "corrupt", "SHA-256"),
    "places beyond the end": (lambda d: lie(d, {"offset": 10**12}), "corrupt", "beyond the end of the archive"),
    "no places": (lambda d: lie(d, {"offset": None}), "corrupt", "no offset"),
    "gigabytes": (lambda d: lie(d | {"filesize": 2**40}, {"size": 2**33}), "changed", "the archive of"),
    "nothing": (lambda d: b"", "corrupt", "an index"),
    "no members": (lambda d: json.dumps(d | {"files": {}}).encode(), "missing", "a member for"),
    "a hundred thousand brackets": (lambda d: b"[" * 100_000, "corrupt", "an index"),
    "60 MB of brackets": (lambda d: b"[" * (60 << 20), "corrupt", "values"),
    "60 MB of entries": (lambda d: b'{"files":{' + b'"a":{},' * (8 << 20) + b"}}", "corrupt", "values"),
    "60 MB of text": (lambda d: b'{"files":"' + b"a" * (60 << 20) + b'"}', "corrupt", "no filesize"),
    "65 MB": (lambda d: b" " * (65 << 20), "format", "67,108,864 bytes"),
}


@pytest.mark.parametrize("what", LIES)
def test_indexes_that_lie(what: str, published: Published, changing: Mirror, tmp_path: Path) -> None:
    """Their buckets are missing for a reason; the others come."""
    change, reason, word = LIES[what]
    lost: set[str] = set()
    for name in ("0007", "0999"):
        index = changing.origin / INDEXES / f"data-{name}.json"
        write(index, change(json.loads(index.read_text())))
        lost |= bucket(published, name)
    changing.large_over = 1 << 40
    summary = tars_fetch(published, changing, tmp_path / "root")
    told(summary, lost, reason, word)
    shutil.copytree(published.origin / INDEXES, changing.origin / INDEXES, dirs_exist_ok=True)
    changing.forget()
    assert tars_fetch(published, changing, tmp_path / "root").complete
    published.complete(tmp_path / "root", ("danbooru", "coco"))
    asked = {re.findall(r"data-(\d{4})", request.path)[0] for request in changing.requests}
    assert asked == {"0007", "0999"}


def test_hostile_indexes_at_once_take_little_memory(published: Published, changing: Mirror, tmp_path: Path) -> None:
    body = b'{"filesize":1,"files":{' + b",".join(b'"%d":[]' % n for n in range(250_000)) + b"}}"
    for file in (changing.origin / INDEXES).glob("*.json"):
        write(file, body)
    code = (
        "import sys; from imaginet_hub.cli import main\n"
        "import re; status = main(sys.argv[1:])\n"
        "print('PEAK', re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])\n"
        "sys.exit(status)"
    )
    arguments = ["--annotations", str(published.lists), "--only", "danbooru", "--route", "danbooru=hf-tars", "--quiet"]
    environment = {**os.environ, **changing.environ(), "PYTHONPATH": f"{PROJECT}:{os.environ['PYTHONPATH']}"}
    done = subprocess.run(
        [sys.executable, "-c", code, "fetch", str(tmp_path / "root"), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    assert "its index is out of date" in done.stderr
    assert int(done.stdout.split("PEAK")[1]) < 500_000


@pytest.mark.parametrize("folder", [TARS, INDEXES])
def test_most_buckets_are_gone(folder: str, published: Published, changing: Mirror, tmp_path: Path) -> None:
    """However many in a row: it says nothing about the next one."""
    for name in ("0007", "0020", "0077", "0139", "0500"):
        for file in (changing.origin / folder).glob(f"data-{name}.*"):
            file.unlink()
    summary = tars_fetch(published, changing, tmp_path / "root", max_workers=1)
    told(summary, set(published.paths["danbooru"]) - bucket(published, "0999"), "missing", "HTTP 404")
    assert bucket(published, "0999") < published.here(tmp_path / "root")


def test_most_indexes_are_rubbish(published: Published, changing: Mirror, tmp_path: Path) -> None:
    for name in ("0007", "0020", "0077", "0139", "0500"):
        write(changing.origin / INDEXES / f"data-{name}.json", b"{}")
    summary = tars_fetch(published, changing, tmp_path / "root", max_workers=1)
    told(summary, set(published.paths["danbooru"]) - bucket(published, "0999"), "corrupt", "no filesize")


def test_the_backup_comes_first(published: Published, mirror: Mirror, tmp_path: Path) -> None:
    assert published.fetch(mirror, tmp_path / "a", ("danbooru",), routes={}).complete
    assert {request.host for request in mirror.requests} == {"drive"}


def test_what_the_backup_lacks_comes_from_the_tars(published: Published, changing: Mirror, tmp_path: Path) -> None:
    from imaginet_hub.data.fetch import fetch
    from imaginet_hub.demo.staging import DRIVE_IDS

    some = published.paths["danbooru"][::2]
    archive = changing.origin / "drive" / DRIVE_IDS["danbooru"]
    archive.unlink()
    write_zip(archive, [(path, published.root / path) for path in some])
    summary = fetch(
        tmp_path / "root",
        annotations=published.lists,
        only=("danbooru",),
        endpoints=changing.endpoints,
        limits=FAST,
    )
    assert summary.complete, summary.text()
    routes = {path: entry.route for path, entry in read_ledger(tmp_path / "root").items()}
    assert routes == {path: "drive" if path in some else "hf-tars" for path in published.paths["danbooru"]}


def test_a_tar_that_is_replaced_meanwhile(published: Published, changing: Mirror, tmp_path: Path) -> None:
    """With its index; neither is mixed with the other."""
    tar = changing.origin / TARS / "data-0020.tar"
    index = changing.origin / INDEXES / "data-0020.json"
    members = [(f"{Path(path).name}", published.root / path) for path in sorted(bucket(published, "0020"))]
    once = threading.Semaphore(1)

    def hook(request: Request) -> Fault | None:
        mine = request.host == "cdn" and request.path.endswith(tar.name) and request.range != (0, 0)
        if mine and once.acquire(blocking=False):
            write_indexed_tar(tmp_path / "t", tmp_path / "i", [("0.jpg", b"x" * 3000), *reversed(members)])
            write(tar, (tmp_path / "t").read_bytes())
            write(index, (tmp_path / "i").read_bytes())
        return None

    changing.fault = hook
    summary = tars_fetch(published, changing, tmp_path / "root")
    assert summary.complete, summary.text()
    assert not once.acquire(blocking=False)
    published.complete(tmp_path / "root", ("danbooru", "coco"))


# --- kills ----------------------------------------------------------------------------------------------------------

_MAIN = "import sys; from imaginet_hub.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Published, Mirror]]:
    """Images that do not fit into one request, several row groups to a file."""
    numbers = range(1, 41)
    names = [
        *(f"imagenet/ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_{n:08d}.JPEG" for n in numbers),
        *(f"danbooru2021/{1000 * n + n % 4}.jpg" for n in numbers),
    ]
    made = Published.make(tmp_path_factory.mktemp("larger"), names=names, size=(256, 192))
    with Mirror(made.origin, **GATES) as running:
        yield made, running


@pytest.mark.parametrize("route", ["kaggle", *ARCHIVES])
def test_killed_at_seeded_points(route: str, larger: tuple[Published, Mirror], tmp_path: Path) -> None:
    """The same bytes in the end; nothing that had come is asked for again."""
    published, mirror = larger
    way, root = WAYS[route], tmp_path / "root"
    wanted = set(published.paths[way.source])
    chance = random.Random(f"20260101 {route}")
    environment = {
        **os.environ,
        **mirror.environ(),
        "PYTHONPATH": os.pathsep.join((str(PROJECT), os.environ["PYTHONPATH"])),
    }
    # Short runs, in a process of its own.
    code = f"from imaginet_hub.data.readers import runs; runs._RUN_BYTES = 100_000\n{_MAIN}"
    command = [sys.executable, "-c", code, "fetch", str(root), "--annotations", str(published.lists), "--quiet"]
    command += ["--only", way.source, "--route", f"{way.source}={way.name}", "--max-workers", "2"]
    kills, cut, lost, asked = 0, [], 0, Counter[str]()
    for _ in range(30):
        due, lock, state = threading.Event(), threading.Lock(), {"seen": 0}
        after, moment = chance.randint(1, 2 if route == "hf-parquet" else 5), chance.random() * 0.03

        def hook(request: Request) -> Fault | None:
            if not is_image(way, request, published):
                return None
            with lock:  # noqa: B023 - the hook lives no longer than the round
                state["seen"] += 1  # noqa: B023
                if state["seen"] >= after:  # noqa: B023
                    due.set()  # noqa: B023
            return Fault(stall_after=20_000, stall_s=0.02)

        before = {path for path in wanted if (root / path).exists()}
        mirror.forget()
        mirror.fault = hook if kills < 6 else None
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        while kills < 6 and not due.wait(0.01) and process.poll() is None:
            pass
        time.sleep(moment if kills < 6 else 0)
        if kills < 6:
            process.kill()
        _, said = process.communicate(timeout=60)
        moved = [images_of(way, request, published) for request in mirror.requests]
        if way.name != "hf-parquet":  # whose row groups come whole, or again
            moved = [[path] for paths in moved for path in paths]
        assert not any(paths and set(paths) <= before for paths in moved), "asked for although it was there"
        asked.update(path for paths in moved for path in paths)
        here = {path for path in wanted if (root / path).exists()}
        for path in here:
            assert (root / path).read_bytes() == (published.root / path).read_bytes()
        lost += sum(len(paths) for paths in moved if not set(paths) <= here)
        if process.returncode != -signal.SIGKILL:
            assert process.returncode == 0, said
            break
        kills += 1
        cut.append(len(here))
    assert kills >= 3, f"{kills} kills, files after each: {cut}"
    published.complete(root, (way.source,))
    # Whatever was asked for twice was under way when the process died.
    assert sum(asked.values()) == len(wanted) + lost
    assert set(asked) == wanted
    lines = (root / FOLDER / "ledger.jsonl").read_bytes().splitlines()
    assert all(json.loads(line) for line in lines)


def is_image(way: Way, request: Request, published: Published) -> bool:
    return bool(images_of(way, request, published))


def images_of(way: Way, request: Request, published: Published) -> list[str]:
    """The listed images of whose bytes this request asks for some (of a row group: of which it asks for all)."""
    name = request.path.rpartition("/")[2]
    if way.name == "kaggle":
        return [p for p in published.paths["imagenet"] if request.host == "gcs" and name == kaggles(p)]
    if request.host != way.host or not name.endswith(way.ending) or request.range in (None, (0, 0)):
        return []
    low, high = (end or 0 for end in request.range)
    return [path for path, (first, last) in spans(way, published, name).items() if low <= first and last - 1 <= high]


def kaggles(path: str) -> str:
    """Kaggle's name of an image."""
    return re.sub(r"_n\d{8}\.JPEG", ".JPEG", path.rpartition("/")[2])


_SPANS: dict[tuple[str, str], dict[str, tuple[int, int]]] = {}


def spans(way: Way, published: Published, name: str) -> dict[str, tuple[int, int]]:
    """Where images lie in an archive, from the standard library's and Arrow's readers."""
    found = _SPANS.get((way.name, name))
    if found is not None:
        return found
    found, mine = {}, {kaggles(path): path for path in published.paths[way.source]}
    if way.name == "kaggle-zip":
        with zipfile.ZipFile(published.origin / IMAGENET / name) as opened:
            for info in opened.infolist():
                end = info.header_offset + 30 + len(info.filename) + info.compress_size
                found[mine[Path(info.filename).name]] = info.header_offset, end
    elif way.name == "hf-tars":
        described = json.loads((published.origin / INDEXES / f"{name[:-4]}.json").read_text())
        for stored, entry in described["files"].items():
            found[f"danbooru2021/{stored}"] = entry["offset"], entry["offset"] + entry["size"]
    else:
        file = pq.ParquetFile(published.origin / TABLES / name)
        for number in range(file.metadata.num_row_groups):
            column = file.metadata.row_group(number).column(0)
            start = column.dictionary_page_offset or column.data_page_offset
            place = start, start + column.total_compressed_size
            for row in file.read_row_group(number).column("image").to_pylist():
                found[mine[kaggles(row["path"])]] = place
    _SPANS[way.name, name] = found
    return found
