"""How fast a ROOT is filled and built, next to what else could do it.

    python benchmarks/fetch.py [--small] [--only PARTS] [--pictures FOLDER] [--with FOLDER] [--json FILE]

The parts: `zip`, wanted members of a large ZIP64 behind a server with latency; `singles`, many single files behind the
same server; `parquet`, Parquet from a ROOT; and what `hosted.py` has: `sevenzip`, wanted members of a 7z in volumes;
`tgz`, wanted members of a stream; `tars`, wanted members of tars with an index; `parquet-rows`, wanted rows of Parquet
files. All data is made on the fly, part by part, and removed. Every contender is a process of its own, so that peak
memory is its own; the server is another. Contenders take turns, so that noise hits all of them, and the table gives
medians. Times are of the work itself: starting Python and importing libraries is left out for everybody.

`remotezip` is no dependency of this project. To have it in the table: `pip install --target FOLDER remotezip`, and
`--with FOLDER`.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import hosted
from pictures import keep, noisy_jpegs, numbered, wanted_names

# Children of a large process start with its peak memory on their account: heavy imports are inside the functions.

PARTS = ("zip", "singles", "parquet", *hosted.PARTS)
WORKERS = 16
REPO, COMMIT = "bench/images", "0123456789abcdef" * 2 + "01234567"
_PIECE = 1024**2


@dataclass(frozen=True)
class Sizes:
    """How much there is of everything."""

    members: int = 20_000
    wanted: int = 1_500
    singles: int = 5_000
    images: int = 10_000
    distinct: int = 300


SMALL = Sizes(members=400, wanted=60, singles=100, images=200, distinct=20)


# --- data -----------------------------------------------------------------------------------------------------------


def make_data(folder: Path, part: str, *, small: bool, photographs: str | None) -> dict[str, Any]:
    """Write what a part needs; return its true sizes."""
    if part in hosted.PARTS:
        facts = hosted.make(folder, hosted.SMALL if small else hosted.Sizes(), part, photographs)
    else:
        facts = _make_data(folder, SMALL if small else Sizes(), part)
    os.sync()
    return facts


def _make_data(folder: Path, sizes: Sizes, part: str) -> dict[str, Any]:
    import zipfile

    import numpy as np

    from imaginet_hub.demo.staging import write_zip

    rng = np.random.default_rng(0)
    large = noisy_jpegs(rng, sizes.distinct, 640, 480, (4, 18))
    real = "{},0,0,4,8\n"
    if part == "zip":
        names = [f"val2017/{number:012d}.jpg" for number in range(sizes.members)]
        members = ((name, numbered(large[n % len(large)], n)) for n, name in enumerate(names))
        file = write_zip(folder / "origin/zips/val2017.zip", members, zip64=True)
        wanted = sorted(random.Random(0).sample(names, sizes.wanted))
        (folder / "zip.txt").write_text("".join(real.format(name) for name in wanted))
        with zipfile.ZipFile(file) as archive:
            body = sum(archive.getinfo(name).compress_size for name in wanted)
            directory = file.stat().st_size - archive.start_dir
        return {"bytes": file.stat().st_size, "images": sizes.wanted, "needed": body + directory}
    if part == "singles":
        pictures = [
            *noisy_jpegs(rng, sizes.distinct // 2, 500, 375, (2, 22)),
            *noisy_jpegs(rng, sizes.distinct // 2, 400, 300, (4, 22)),
        ]
        total = 0
        (folder / "origin/val2017").mkdir(parents=True)
        for number in range(sizes.singles):
            data = numbered(pictures[number * 7919 % len(pictures)], number)
            total += (folder / f"origin/val2017/{number:012d}.jpg").write_bytes(data)
        lines = (real.format(f"val2017/{number:012d}.jpg") for number in range(sizes.singles))
        (folder / "singles.txt").write_text("".join(lines))
        return {"bytes": total, "images": sizes.singles, "needed": total}
    if part == "parquet":
        total, rows = 0, ""
        # No name may look like a split's to `imagefolder`, which would take the rest for something else.
        for top in ("wikiart/Realism", "journeydb"):
            (folder / "root" / top).mkdir(parents=True)
            (folder / "fetched" / top).mkdir(parents=True)
        for number in range(sizes.images):
            name, ids = (f"wikiart/Realism/{number:012d}.jpg", "0,1,4,8")
            if number % 2:
                name, ids = (f"journeydb/{number:012d}.jpg", "1,1,2,6")
            total += (folder / "root" / name).write_bytes(numbered(large[number % len(large)], number))
            os.link(folder / "root" / name, folder / "fetched" / name)
            rows += f"{name},{ids}\n"
        (folder / "lists").mkdir()  # outside of ROOT, so that no contender has to step over it
        (folder / "lists/test_annotations.txt").write_text(rows)
        _enter(folder)
        return {"bytes": total, "images": sizes.images, "needed": total}
    raise ValueError(part)


def _enter(folder: Path) -> None:
    """Let a fetch find the files of a ROOT, so that they are in its ledger."""
    from imaginet_hub.data.fetch import fetch

    summary = fetch(folder / "fetched", annotations=folder / "lists/test_annotations.txt")
    if not summary.complete:
        raise RuntimeError(summary.text())


# --- server ---------------------------------------------------------------------------------------------------------


class Origin:
    """What the server has: COCO's bucket, and the same single files as a dataset of a Hub."""

    def __init__(self, folder: Path, latency_s: float) -> None:
        self.folder = folder
        self.latency_s = latency_s
        self.requests = self.sent = 0
        self.etags: dict[str, str] = {}
        self.pages: dict[str, bytes] = {}
        base = folder / "val2017"
        if base.is_dir():
            tree = []
            for file in sorted(base.iterdir()):
                path = f"val2017/{file.name}"
                data = file.read_bytes()
                self.etags[path] = hashlib.md5(data, usedforsecurity=False).hexdigest()
                blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
                tree.append({"type": "file", "path": path, "size": len(data), "oid": blob})
            api = f"/api/datasets/{REPO}"
            siblings = [{"rfilename": entry["path"]} for entry in tree]
            info = {"id": REPO, "sha": COMMIT, "private": False, "gated": False, "siblings": siblings}
            self.pages = {
                f"{api}/revision/main": json.dumps(info).encode(),
                f"{api}/revision/{COMMIT}": json.dumps(info).encode(),
                f"{api}/tree/{COMMIT}": json.dumps(tree).encode(),
            }

    def answer(self, path: str, wanted: str) -> tuple[int, list[str], bytes | Path, int, int]:
        """Status, headers, body, and its first byte and length."""
        if path in self.pages:
            return 200, ["Content-Type: application/json"], self.pages[path], 0, len(self.pages[path])
        own = []
        prefix = f"/datasets/{REPO}/resolve/"
        if path.startswith(prefix):
            path = "/" + path.removeprefix(prefix).split("/", 1)[1]
            own = [f"X-Repo-Commit: {COMMIT}"]
        file = self.folder / path.lstrip("/")
        if not file.is_file():
            return 404, [], b"", 0, 0
        size = file.stat().st_size
        headers = ["Content-Type: application/octet-stream", "Accept-Ranges: bytes", "Server: AmazonS3", *own]
        headers.append(f'ETag: "{self.etags.get(path.lstrip("/")) or f"{size:032x}-{size // 8388608 + 1}"}"')
        if not wanted:
            return 200, headers, file, 0, size
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, size - int(last))
        end = min(int(last), size - 1) if first and last else size - 1
        headers.append(f"Content-Range: bytes {start}-{end}/{size}")
        return 206, headers, file, start, end - start + 1


class Peer(asyncio.Protocol):
    """One connection. A server that costs little: it must not be what is measured."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.buffer = b""
        self.busy = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self._next()

    def _next(self) -> None:
        if self.busy or b"\r\n\r\n" not in self.buffer:
            return
        self.busy = True
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        first, *rest = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
        method, target, _ = first.split(" ")
        if target.startswith("/_stats"):
            usage = resource.getrusage(resource.RUSAGE_SELF)
            stats = {
                "requests": self.origin.requests,
                "sent": self.origin.sent,
                "cpu_s": usage.ru_utime + usage.ru_stime,
            }
            self._send(200, [], json.dumps(stats).encode())
            return
        self.origin.requests += 1
        loop = asyncio.get_running_loop()
        loop.call_later(self.origin.latency_s, self._answer, method, target, headers)

    def _answer(self, method: str, target: str, headers: dict[str, str]) -> None:
        if self.transport.is_closing():
            return
        status, fields, body, start, length = self.origin.answer(target.partition("?")[0], headers.get("range", ""))
        fields = [f"Content-Length: {length}", *fields]
        if method == "HEAD":
            self._send(status, fields, b"", length_given=True)
        elif isinstance(body, bytes):
            self.origin.sent += length
            self._send(status, fields, body, length_given=True)
        elif length <= _PIECE:
            self.origin.sent += length
            with body.open("rb", buffering=0) as file:
                self._send(status, fields, os.pread(file.fileno(), length, start), length_given=True)
        else:
            self.transport.write(self._head(status, fields))
            self.task = asyncio.ensure_future(self._stream(body.open("rb"), start, length))

    @staticmethod
    def _head(status: int, fields: list[str]) -> bytes:
        return ("\r\n".join([f"HTTP/1.1 {status} OK", *fields]) + "\r\n\r\n").encode()

    def _send(self, status: int, fields: list[str], body: bytes, *, length_given: bool = False) -> None:
        if not length_given:
            fields = [f"Content-Length: {len(body)}", *fields]
        self.transport.write(self._head(status, fields) + body)
        self.busy = False
        self._next()

    async def _stream(self, file: BinaryIO, start: int, length: int) -> None:
        loop = asyncio.get_running_loop()
        with file:
            while length:
                count = min(length, 4 * _PIECE)
                try:
                    await loop.sendfile(self.transport, file, start, count)
                except (OSError, RuntimeError):  # the client had enough
                    self.transport.abort()
                    return
                self.origin.sent += count
                start, length = start + count, length - count
        self.busy = False
        self._next()


async def serve(folder: Path, latency_s: float) -> None:
    origin = Origin(folder, latency_s)
    server = await asyncio.get_running_loop().create_server(lambda: Peer(origin), "127.0.0.1", 0, backlog=256)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    print(json.dumps({"url": url, "endpoints": {"coco": url, "hf": url}}), flush=True)
    await server.serve_forever()


# --- contenders -----------------------------------------------------------------------------------------------------
#
# Each is given its folders and prepares itself (imports); what it returns is what is timed.

Work = Callable[[], dict[str, Any] | None]


def ours_zip(job: dict[str, Any]) -> Work:
    return _ours(job, "zips")


def ours_singles(job: dict[str, Any]) -> Work:
    return _ours(job, "s3")


def _ours(job: dict[str, Any], route: str) -> Work:
    from imaginet_hub.data.fetch import fetch

    def work() -> dict[str, Any]:
        summary = fetch(
            job["out"],
            annotations=job["list"],
            only=("coco",),
            routes={"coco": route},
            endpoints={"coco": job["url"]},
            max_workers=WORKERS,
        )
        if not summary.complete:
            raise RuntimeError(summary.text())
        return {"moved": summary.bytes_moved}

    return work


def whole_zip(job: dict[str, Any]) -> Work:
    import zipfile

    import httpx2

    def work() -> None:
        file = Path(job["out"]) / "whole.zip"
        with httpx2.stream("GET", f"{job['url']}/zips/val2017.zip") as response, file.open("wb") as out:
            for piece in response.iter_raw(_PIECE):
                out.write(piece)
        with zipfile.ZipFile(file) as archive:
            for name in wanted_names(Path(job["list"])):
                keep(job, name, archive.read(name))
        file.unlink()

    return work


def fsspec_zip(job: dict[str, Any]) -> Work:
    import aiohttp  # noqa: F401 - so that its import is not timed
    import fsspec
    import fsspec.implementations.http
    import fsspec.implementations.zip

    def work() -> None:
        archive = fsspec.filesystem("zip", fo=f"{job['url']}/zips/val2017.zip", target_protocol="http")
        for name in wanted_names(Path(job["list"])):
            keep(job, name, archive.cat_file(name))

    return work


def remotezip_zip(job: dict[str, Any]) -> Work:
    import remotezip
    import requests

    def work() -> None:
        with (
            requests.Session() as session,
            remotezip.RemoteZip(f"{job['url']}/zips/val2017.zip", session=session) as archive,
        ):
            for name in wanted_names(Path(job["list"])):
                keep(job, name, archive.read(name))

    return work


def sequential_singles(job: dict[str, Any]) -> Work:
    import httpx2

    def work() -> None:
        with httpx2.Client() as client:
            for name in wanted_names(Path(job["list"])):
                response = client.get(f"{job['url']}/{name}")
                response.raise_for_status()
                keep(job, name, response.content)

    return work


def hub_16_singles(job: dict[str, Any]) -> Work:
    return _hub(job, WORKERS)


def hub_8_singles(job: dict[str, Any]) -> Work:
    return _hub(job, 8)


def _hub(job: dict[str, Any], workers: int) -> Work:
    from huggingface_hub import snapshot_download

    def work() -> None:
        snapshot_download(REPO, repo_type="dataset", local_dir=job["out"], max_workers=workers)

    return work


def copy_parquet(job: dict[str, Any]) -> Work:
    names = wanted_names(Path(job["list"]))

    def work() -> None:
        for name in names:
            file = Path(job["out"]) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(job["root"]) / name, file)

    return work


def _build(job: dict[str, Any], root: str, processes: int) -> Work:
    from imaginet_hub.data.repository import build_repository

    def work() -> None:
        build_repository(
            job[root],
            Path(job["out"]) / "built",
            annotations=job["list"],
            num_proc=processes,
            render_card=lambda report: "",
        )

    return work


def fetched_1_parquet(job: dict[str, Any]) -> Work:
    return _build(job, "fetched", 1)


def fetched_2_parquet(job: dict[str, Any]) -> Work:
    return _build(job, "fetched", 2)


def unknown_1_parquet(job: dict[str, Any]) -> Work:
    return _build(job, "root", 1)


def unknown_2_parquet(job: dict[str, Any]) -> Work:
    return _build(job, "root", 2)


def _imagefolder(job: dict[str, Any], processes: int | None) -> Work:
    from datasets import load_dataset_builder
    from datasets.packaged_modules.imagefolder import imagefolder  # noqa: F401 - so that its import is not timed

    def work() -> None:
        builder = load_dataset_builder("imagefolder", data_dir=job["root"], cache_dir=f"{job['out']}/cache")
        builder.download_and_prepare(f"{job['out']}/built", file_format="parquet", num_proc=processes)

    return work


def imagefolder_1_parquet(job: dict[str, Any]) -> Work:
    return _imagefolder(job, None)


def imagefolder_2_parquet(job: dict[str, Any]) -> Work:
    return _imagefolder(job, 2)


CONTENDERS: dict[str, dict[str, tuple[Callable[[dict[str, Any]], Work], str]]] = {
    "zip": {
        "ours": (ours_zip, f"`fetch`, route `zips`, {WORKERS} connections"),
        "whole": (whole_zip, "whole archive, then unzip"),
        "fsspec": (fsspec_zip, "fsspec `zip` over `http`, one by one"),
        "remotezip": (remotezip_zip, "remotezip with a session, one by one"),
    },
    "singles": {
        "ours": (ours_singles, f"`fetch`, route `s3`, {WORKERS} connections"),
        "sequential": (sequential_singles, "httpx2, one by one"),
        "hub16": (hub_16_singles, f"`snapshot_download`, {WORKERS} workers"),
        "hub8": (hub_8_singles, "`snapshot_download`, 8 workers (its default)"),
    },
    "parquet": {
        "copy": (copy_parquet, "`shutil.copyfile`, one by one"),
        "fetched1": (fetched_1_parquet, "`build_repository` of a fetched ROOT, 1 thread"),
        "fetched2": (fetched_2_parquet, "`build_repository` of a fetched ROOT, 2 threads"),
        "unknown1": (unknown_1_parquet, "`build_repository`, files never seen, 1 thread"),
        "unknown2": (unknown_2_parquet, "`build_repository`, files never seen, 2 threads"),
        "imagefolder1": (imagefolder_1_parquet, "`imagefolder` to Parquet, 1 process"),
        "imagefolder2": (imagefolder_2_parquet, "`imagefolder` to Parquet, 2 processes"),
    },
    **hosted.CONTENDERS,
}


def checks(name: str) -> bool:
    """Whether a contender decodes every image and hashes it, or knows that this was done; others take what comes."""
    return name.startswith(("ours", "fetched", "unknown"))


def check_all(files: Iterable[Path], threads: int) -> None:
    """What ours does with every image on the way: decode it completely, and hash it."""
    from concurrent.futures import ThreadPoolExecutor

    from imaginet_hub.data.images import examine, read_bytes

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda file: examine(read_bytes(file), file.name), files):
            pass


def run_child(job: dict[str, Any]) -> dict[str, Any]:
    """One contender, once."""
    sys.path += job["extra"]
    work = CONTENDERS[job["part"]][job["name"]][0](job)
    import_mb = _peak_mb()
    others_mb, before, start = _peak_mb(resource.RUSAGE_CHILDREN), _cpu_s(), time.perf_counter()
    result = work() or {}
    seconds = time.perf_counter() - start
    cpu_s = _cpu_s() - before
    # The peak of this process and, if the work had processes of its own, the largest of them on top.
    largest = _peak_mb(resource.RUSAGE_CHILDREN)
    peak = _peak_mb() + (largest if largest > others_mb else 0)
    measured = {"seconds": seconds, "cpu_s": cpu_s, "peak_mb": peak, "start_mb": import_mb}
    _is_whole(job)
    if not checks(job["name"]):
        import imaginet_hub.data.images  # noqa: F401

        folder = Path(job["root"]) if job["part"] == "parquet" else Path(job["out"])
        threads = 1 if job["part"] == "parquet" and job["name"].endswith("1") else 2
        files = [folder / name for name in wanted_names(Path(job["list"]))]
        start = time.perf_counter()
        check_all(files, threads)
        measured["check_s"] = time.perf_counter() - start
    return {**measured, **result}


def _is_whole(job: dict[str, Any]) -> None:
    """Whether a contender did its work: every image is there."""
    names = wanted_names(Path(job["list"]))
    files = list((Path(job["out"]) / "built").rglob("*.parquet"))
    if files:
        import pyarrow.parquet as pq

        found = sum(pq.read_metadata(file).num_rows for file in files)
        size = sum(file.stat().st_size for file in files)
        images = sum(path.stat().st_size for path in Path(job["root"]).rglob("*.jpg"))
        if size < images:
            raise RuntimeError(f"{job['name']}: {size:,} bytes of Parquet for {images:,} bytes of images")
    else:
        found = sum((Path(job["out"]) / name).is_file() for name in names)
    if found != len(names):
        raise RuntimeError(f"{job['name']}: {found:,} images instead of {len(names):,}")


def _busy_s() -> float:
    """Seconds of work of all cores and all processes; 0 where the system does not say."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    user, nice, system, _, _, irq, soft, *_ = (int(field) for field in fields)
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


def _cpu_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _peak_mb(who: int = resource.RUSAGE_SELF) -> float:
    return resource.getrusage(who).ru_maxrss / 1024


# --- measuring ------------------------------------------------------------------------------------------------------


class Bench:
    """Starts the server of a part and the contenders."""

    def __init__(self, folder: Path, part: str, facts: dict[str, Any], extra: list[str], latency_s: float) -> None:
        self.folder = folder
        self.part = part
        self.facts = facts
        self.extra = extra
        how = "--mirror" if part in hosted.PARTS else "--serve"
        self.server = subprocess.Popen(
            [sys.executable, __file__, how, str(folder / "origin"), "--latency-ms", str(latency_s * 1000)],
            stdout=subprocess.PIPE,
            text=True,
        )
        where = json.loads(self.server.stdout.readline() if self.server.stdout else "")
        self.url: str = where["url"]
        self.endpoints: dict[str, str] = where["endpoints"]

    def close(self) -> None:
        self.server.terminate()
        self.server.wait()

    def stats(self) -> dict[str, float]:
        with urllib.request.urlopen(f"{self.url}/_stats") as response:
            stats: dict[str, float] = json.load(response)
        return stats

    def once(self, name: str) -> dict[str, Any]:
        """One run of one contender."""
        part = self.part
        out = self.folder / "out"
        out.mkdir()
        listed = "lists/test_annotations.txt" if part == "parquet" else hosted.list_of(part, name)
        job = {
            "part": part,
            "name": name,
            "url": self.url,
            "endpoints": self.endpoints,
            "facts": self.facts,
            "out": str(out),
            "list": str(self.folder / listed),
            "root": str(self.folder / "root"),
            "fetched": str(self.folder / "fetched"),
            "extra": self.extra,
        }
        environment = {
            **os.environ,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "HF_HOME": str(out / "hf_home"),
            "NO_PROXY": "127.0.0.1",
        }
        environment |= hosted.environment(self.endpoints)
        os.sync()  # what the run before wrote is not written out on this one's time
        load = os.getloadavg()[0]
        before, busy, own, start = self.stats(), _busy_s(), _cpu_s(), time.perf_counter()
        result = _told(["--child", json.dumps(job)], environment)
        after, seconds = self.stats(), time.perf_counter() - start
        others = _busy_s() - busy - (_cpu_s() - own) - (after["cpu_s"] - before["cpu_s"])
        shutil.rmtree(out)
        result |= {"part": part, "name": name, "load": load, "others_cores": max(0.0, others / seconds)}
        result |= {f"server_{key}": after[key] - before[key] for key in after}
        return result


def _told(arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """What this program says, as a process of its own."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def available(name: str, extra: list[str]) -> bool:
    if name != "remotezip":
        return True
    code = "import sys; sys.path += sys.argv[1:]; import remotezip"
    return subprocess.run([sys.executable, "-c", code, *extra], capture_output=True, check=False).returncode == 0


def measure(bench: Bench, repeats: int, names: list[str]) -> Iterator[dict[str, Any]]:
    part = bench.part
    chosen = [n for n in CONTENDERS[part] if available(n, bench.extra) and (not names or n in names)]
    for turn in range(repeats):
        for name in chosen:
            run = bench.once(name)
            yield run
            print(
                f"{part} {name} {turn + 1}/{repeats}: {run['seconds']:.2f} s, {run['cpu_s']:.2f} s CPU, "
                f"{run['peak_mb']:.0f} MB, load before {run['load']:.2f}, others {run['others_cores']:.2f} cores",
                file=sys.stderr,
            )


# --- tables ---------------------------------------------------------------------------------------------------------


TITLES = {
    "zip": "### {images:,} members of a ZIP64 of {bytes:,} bytes, {ms:g} ms a request",
    "singles": "### {images:,} single files, {bytes:,} bytes, {ms:g} ms a request",
    "parquet": "### Parquet from {images:,} images, {bytes:,} bytes",
    **hosted.TITLES,
}
_MOVED = dict.fromkeys(PARTS, "bytes moved / needed") | hosted.MOVED


def tables(runs: list[dict[str, Any]], facts: dict[str, Any], latency_ms: float, repeats: int) -> Iterator[str]:
    """The results as Markdown."""
    for part in PARTS:
        mine: dict[str, list[dict[str, Any]]] = {}
        for run in runs:
            if run["part"] == part:
                mine.setdefault(run["name"], []).append(run)
        if mine:
            yield from _table(part, mine, facts[part], latency_ms)
            yield ""
    loads = [run["load"] for run in runs]
    others = [run["others_cores"] for run in runs]
    yield (
        f"Medians of {repeats} (least to most); {os.cpu_count()} cores. Load average before each run {min(loads):.2f} "
        f"to {max(loads):.2f}; other processes took {min(others):.2f} to {max(others):.2f} cores meanwhile, "
        f"{statistics.median(others):.2f} in the median."
    )


def _table(
    part: str, mine: dict[str, list[dict[str, Any]]], facts: dict[str, Any], latency_ms: float
) -> Iterator[str]:
    def middle(name: str, key: str) -> float:
        return statistics.median(run[key] for run in mine[name])

    yield TITLES[part].format(**facts, ms=latency_ms)
    yield ""
    local = part == "parquet"
    heads = (
        ["MB/s", "of the copy's speed"]
        if local
        else ["times ours", "at 100 Mbit/s, at least", _MOVED[part], "requests"]
    )
    if part == "tgz":
        heads[:1] = ["MB/s of the stream", "of tar's", "MB read again"]
    yield "| | seconds | with every image decoded and hashed | " + " | ".join([*heads, "CPU s", "peak MB"]) + " |"
    yield "|---|" + "---:|" * (len(heads) + 4)
    for name, several in mine.items():
        seconds = middle(name, "seconds")
        low, high = (pick(run["seconds"] for run in several) for pick in (min, max))
        checked = "yes" if checks(name) else f"{statistics.median(r['seconds'] + r['check_s'] for r in several):.1f}"
        reference = hosted.reference(part, name) if part in hosted.PARTS else "copy" if local else "ours"
        base = middle(reference, "seconds") if reference in mine else None
        speed, share = f"{facts['bytes'] / seconds / 1e6:.0f}", f"{base / seconds:.2f}" if base else "-"
        sent = middle(name, "server_sent") if not local else 0
        cells = [
            f"{max(seconds, sent / 12.5e6):.0f} s",
            f"{sent / facts['needed']:.3f}",
            f"{middle(name, 'server_requests'):,.0f}",
        ]
        if local:
            cells = [speed, share]
        elif part != "tgz":
            cells = [f"{seconds / base:.1f}" if base else "-", *cells]
        elif "again" in several[0]:  # the time is that of a part of the stream
            cells = ["-", "-", f"{middle(name, 'again') / 1e6:.1f}", *cells]
        else:
            cells = [speed, share, "-", *cells]
        cells += [f"{middle(name, 'cpu_s'):.1f}", f"{middle(name, 'peak_mb'):.0f}"]
        title = CONTENDERS[part][name][1]
        yield f"| {title} | {seconds:.2f} ({low:.2f} to {high:.2f}) | {checked} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a quick look whether everything runs")
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {', '.join(PARTS)}")
    parser.add_argument("--names", default="", help="contenders, by their short names")
    parser.add_argument("--repeats", type=int, default=None, help="of each contender; default 3, with --small 1")
    parser.add_argument("--latency-ms", type=float, default=20.0, help="of every request")
    parser.add_argument("--with", dest="extra", action="append", default=[], help="a folder to import remotezip from")
    parser.add_argument("--scratch", help="where to make data; default: the system's folder for temporary files")
    parser.add_argument("--json", help="a file for all runs")
    parser.add_argument(
        "--pictures", help="a folder of JPEGs to fill tgz, tars and Parquet files with; default: made ones"
    )
    for hidden in ("--serve", "--mirror", "--child", "--make"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        asyncio.run(serve(Path(args.serve), args.latency_ms / 1000))
        return
    if args.mirror:
        hosted.serve(Path(args.mirror), args.latency_ms / 1000)
        return
    if args.child:
        print(json.dumps(run_child(json.loads(args.child))))
        return
    if args.make:
        print(json.dumps(make_data(Path(args.make), args.only, small=args.small, photographs=args.pictures)))
        return

    parts = [part for part in args.only.split(",") if part]
    if not set(parts) <= set(PARTS):
        parser.error(f"--only: expected parts of {', '.join(PARTS)}, got {args.only!r}")
    repeats = args.repeats or (1 if args.small else 3)
    names = [name for name in args.names.split(",") if name]
    runs: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    for part in parts:
        with tempfile.TemporaryDirectory(prefix="imaginet-bench-", dir=args.scratch) as scratch:
            folder = Path(scratch)
            (folder / "origin").mkdir()
            options = ["--small"] * args.small + (["--pictures", args.pictures] if args.pictures else [])
            quiet = {**os.environ, "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
            facts[part] = _told(["--make", scratch, "--only", part, *options], quiet)
            bench = Bench(folder, part, facts[part], args.extra, args.latency_ms / 1000)
            try:
                runs += measure(bench, repeats, names)
            finally:
                bench.close()
    print("\n".join(tables(runs, facts, args.latency_ms, repeats)))
    if args.json:
        Path(args.json).write_text(json.dumps({"facts": facts, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
