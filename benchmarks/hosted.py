"""Parts of `fetch.py` whose containers a Hub has: 7z in volumes, a tgz, tars with an index, Parquet files.

They are served by the mirror that the tests have, with its redirects to signed addresses and its listings.
"""

from __future__ import annotations

import functools
import http.server
import json
import random
import resource
import shutil
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from pictures import jpegs, keep, noisy_pngs, numbered, wanted_names

# Children of a large process start with its peak memory on their account: heavy imports are inside the functions.

PARTS = ("sevenzip", "tgz", "tars", "parquet-rows")
WORKERS = 16
_PIECE = 1024**2
_CNN, _JOURNEY, _IMAGENET = "sywang/CNNDetection", "JourneyDB/JourneyDB", "ILSVRC/imagenet-1k"
_DANBOORU, _INDEX = "nyanko7/danbooru2023", "deepghs/danbooru2023_index"
_TGZ = "data/train/imgs/000.tgz"

Job = dict[str, Any]
Work = Callable[[], dict[str, Any] | None]


@dataclass(frozen=True)
class Sizes:
    """How much there is of everything."""

    distinct: int = 300
    members: int = 20_000  # of the 7z: 2 GB
    wanted: int = 1_500
    streamed: int = 4_000  # in the tgz
    buckets: int = 40
    bucket: int = 200  # images of each
    wanted_of_bucket: int = 10
    files: int = 4  # of Parquet
    rows: int = 1_200  # of each


SMALL = Sizes(20, 800, 60, 300, 4, 25, 3, 2, 150)
#: Of the rows of Parquet files, in percent.
SHARES = (1, 10, 50)
_STREAMED_WANTED = 0.15


# --- data -----------------------------------------------------------------------------------------------------------


def make(folder: Path, sizes: Sizes, part: str, photographs: str | None) -> dict[str, Any]:
    """Write what a part needs; return its true sizes."""
    import numpy as np

    rng, chance = np.random.default_rng(0), random.Random(0)
    hub = folder / "origin" / "hf"
    if part == "sevenzip":
        return _make_sevenzip(folder, hub, sizes, noisy_pngs(rng, sizes.distinct, 256, 256, (1, 3)), chance)
    pictures = jpegs(photographs, rng, sizes.distinct)
    made: Callable[..., dict[str, Any]] = {"tgz": _make_tgz, "tars": _make_tars, "parquet-rows": _make_parquet}[part]
    return made(folder, hub, sizes, pictures, chance)


def _make_sevenzip(folder: Path, hub: Path, sizes: Sizes, pictures: list[bytes], chance: Any) -> dict[str, Any]:
    import zipfile

    from imaginet_hub.demo.containers import write_7z, write_zip

    # 20 classes, half of them real, as in the original.
    names = [
        f"class{n % 20:02d}/{'0_real' if n // 20 % 2 else '1_fake'}/{n // 40:05d}.png" for n in range(sizes.members)
    ]
    names.sort()
    inner = folder / "progan_train.zip"
    members = ((name, numbered(pictures[n * 7919 % len(pictures)], n)) for n, name in enumerate(names))
    write_zip(inner, members, zip64=True)
    each = inner.stat().st_size // 7 + 1_000
    volumes = write_7z(hub / _CNN / "progan_train.7z", [(inner.name, inner)], volume_bytes=each)
    wanted = sorted(chance.sample(names, sizes.wanted))
    _list(folder / "sevenzip.txt", [f"progan_train/{name}" for name in wanted])
    with zipfile.ZipFile(inner) as archive:
        body = sum(archive.getinfo(name).compress_size for name in wanted)
        directory = inner.stat().st_size - archive.start_dir
    total = sum(volume.stat().st_size for volume in volumes)
    own = total - inner.stat().st_size  # of the 7z archive: its first 32 bytes and its header
    inner.unlink()
    facts = {"bytes": total, "images": len(wanted), "members": len(names), "volumes": len(volumes)}
    return {**facts, "needed": body + directory + own}


def _make_tgz(folder: Path, hub: Path, sizes: Sizes, pictures: list[bytes], chance: Any) -> dict[str, Any]:
    from imaginet_hub.demo.containers import write_tgz

    names = [f"{uuid.UUID(int=chance.getrandbits(128))}.jpg" for _ in range(sizes.streamed)]
    wanted = [names[n] for n in sorted(chance.sample(range(len(names) - 1), int(_STREAMED_WANTED * len(names)) - 1))]
    wanted.append(names[-1])
    members = ((f"000/{name}", numbered(pictures[n * 7919 % len(pictures)], n)) for n, name in enumerate(names))
    file = write_tgz(hub / _JOURNEY / _TGZ, members, level=6)
    _list(folder / "tgz.txt", [f"journeydb/{name}" for name in wanted])
    size = file.stat().st_size
    return {"bytes": size, "images": len(wanted), "members": len(names), "needed": size}


def _make_tars(folder: Path, hub: Path, sizes: Sizes, pictures: list[bytes], chance: Any) -> dict[str, Any]:
    from imaginet_hub.demo.containers import write_indexed_tar

    wanted, total, needed = [], 0, 0
    for bucket in range(sizes.buckets):
        names = {f"{1000 * n + bucket}.jpg": n * sizes.buckets + bucket for n in range(1, sizes.bucket + 1)}
        members = ((name, numbered(pictures[n * 7919 % len(pictures)], n)) for name, n in names.items())
        index = hub / _INDEX / "original" / f"data-0{bucket:03d}.json"
        tar = write_indexed_tar(hub / _DANBOORU / "original" / f"data-0{bucket:03d}.tar", index, members)
        total += tar.stat().st_size
        entries = json.loads(index.read_text())["files"]
        chosen = chance.sample(sorted(names), sizes.wanted_of_bucket)
        needed += index.stat().st_size + sum(entries[name]["size"] for name in chosen)
        wanted += [f"danbooru2021/{name}" for name in chosen]
    chance.shuffle(wanted)
    _list(folder / "tars.txt", wanted)
    return {"bytes": total, "images": len(wanted), "members": sizes.buckets * sizes.bucket, "needed": needed} | {
        "buckets": sizes.buckets
    }


def _make_parquet(folder: Path, hub: Path, sizes: Sizes, pictures: list[bytes], chance: Any) -> dict[str, Any]:
    from imaginet_hub.demo.containers import write_parquet

    numbers = list(range(1, sizes.files * sizes.rows + 1))
    chance.shuffle(numbers)
    total, size_of = 0, dict[str, int]()
    for number in range(sizes.files):
        chosen = numbers[number * sizes.rows : (number + 1) * sizes.rows]
        rows = [(_imagenet_name(n), numbered(pictures[n * 7919 % len(pictures)], n), n % 1000) for n in chosen]
        size_of |= {name: len(data) for name, data, _ in rows}
        total += write_parquet(hub / _IMAGENET / "data" / _shard(number, sizes.files), rows).stat().st_size
    facts: dict[str, Any] = {"bytes": total, "members": len(numbers), "files": sizes.files, "needed": total}
    facts["images"] = {}
    facts["wanted"] = {}
    for share in SHARES:
        wanted = sorted(_imagenet_name(n) for n in chance.sample(numbers, max(1, len(numbers) * share // 100)))
        _list(folder / f"parquet-rows-{share}.txt", [f"imagenet/{name}" for name in wanted])
        facts["images"][str(share)] = len(wanted)
        facts["wanted"][str(share)] = sum(size_of[name] for name in wanted)
    return facts


def _imagenet_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}_n{number % 1000:08d}.JPEG"


def _shard(number: int, files: int) -> str:
    return f"validation-{number:05d}-of-{files:05d}.parquet"


def _list(file: Path, names: list[str]) -> None:
    file.write_text("".join(f"{name},1,2,1,3\n" for name in names))


def list_of(part: str, name: str) -> str:
    """The list of what a contender is to get."""
    return f"{part}-{_share(name)}.txt" if part == "parquet-rows" else f"{part}.txt"


def _share(name: str) -> str:
    return name.rpartition("-")[2]


# --- server ---------------------------------------------------------------------------------------------------------


def serve(origin: Path, latency_s: float) -> None:
    """Serve until told to stop; the first line that is printed says where, and where to ask what was sent so far."""
    from imaginet_hub.demo.mirror import Mirror

    class Stats(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            usage = resource.getrusage(resource.RUSAGE_SELF)
            stats = {"requests": len(mirror.requests), "sent": mirror.sent, "cpu_s": usage.ru_utime + usage.ru_stime}
            body = json.dumps(stats).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with Mirror(origin, latency_s=latency_s) as mirror:
        mirror.hashed_to = 0  # nobody's clock runs while gigabytes are hashed
        with http.server.HTTPServer(("127.0.0.1", 0), Stats) as stats:
            where = {"url": f"http://127.0.0.1:{stats.server_address[1]}", "endpoints": mirror.endpoints}
            print(json.dumps(where), flush=True)
            stats.serve_forever()


def _sent(job: Job) -> int:
    with urllib.request.urlopen(f"{job['url']}/_stats") as response:
        sent: int = json.load(response)["sent"]
    return sent


def _address(job: Job, repo: str, file: str) -> str:
    return f"{job['endpoints']['hf']}/datasets/{repo}/resolve/main/{file}"


# --- contenders -----------------------------------------------------------------------------------------------------


def ours(job: Job, source: str, route: str) -> Work:
    from imaginet_hub.data.fetch import fetch

    def work() -> None:
        summary = fetch(
            job["out"],
            annotations=job["list"],
            only=(source,),
            routes={source: route},
            endpoints=job["endpoints"],
            max_workers=WORKERS,
        )
        if not summary.complete:
            raise RuntimeError(summary.text())

    return work


def ours_killed(job: Job, source: str, route: str) -> Work:
    """Go on after a fetch that was killed when half of the stream was sent."""
    script = str(Path(__file__).with_name("fetch.py"))
    stored, begin = job["facts"]["bytes"], _sent(job)
    first = subprocess.Popen(
        [sys.executable, script, "--child", json.dumps({**job, "name": "ours"})], stdout=subprocess.DEVNULL
    )
    while _sent(job) - begin < stored // 2:
        if first.poll() is not None:
            raise RuntimeError("the fetch ended before it could be killed")
        time.sleep(0.02)
    first.kill()
    first.wait()
    work = ours(job, source, route)

    def go_on() -> dict[str, Any]:
        work()
        return {"again": _sent(job) - begin - stored}

    return go_on


def whole_sevenzip(job: Job) -> Work:
    import zipfile

    from huggingface_hub import hf_hub_download

    program = seven_zip()

    def work() -> None:
        store = Path(job["out"]) / ".store"
        volumes = [f"progan_train.7z.{n:03d}" for n in range(1, job["facts"]["volumes"] + 1)]
        for volume in volumes:
            hf_hub_download(_CNN, volume, repo_type="dataset", local_dir=store)
        if program:
            command = [program, "x", "-y", "-bso0", "-bsp0", f"-o{store}", str(store / volumes[0])]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        else:
            import multivolumefile
            import py7zr

            with (
                multivolumefile.open(store / "progan_train.7z", "rb") as joined,
                py7zr.SevenZipFile(cast(BinaryIO, joined)) as outer,
            ):
                outer.extractall(store)
        with zipfile.ZipFile(store / "progan_train.zip") as archive:
            for name in wanted_names(Path(job["list"])):
                keep(job, name, archive.read(name.removeprefix("progan_train/")))
        shutil.rmtree(store)

    return work


def seven_zip() -> str | None:
    """A 7-Zip of the system, of whatever name."""
    return next(filter(None, map(shutil.which, ("7z", "7zz", "7za"))), None)


def tar_stream(job: Job, *, every: bool) -> Work:
    """GNU tar and gzip; every image of the stream, or those of the list."""

    def work() -> None:
        target = Path(job["out"]) / "journeydb"
        target.mkdir()
        command = ["tar", "xzf", "-", "-C", str(target), "--strip-components=1"]
        if not every:
            names = target.with_name(".wanted")
            names.write_text("".join(f"000/{Path(name).name}\n" for name in wanted_names(Path(job["list"]))))
            command += ["-T", str(names)]
        with (
            urllib.request.urlopen(_address(job, _JOURNEY, _TGZ)) as response,
            subprocess.Popen(command, stdin=subprocess.PIPE) as tar,
        ):
            stdin: Any = tar.stdin
            shutil.copyfileobj(response, stdin, _PIECE)
            stdin.close()
            if tar.wait():
                raise RuntimeError(f"tar ended with {tar.returncode}")

    return work


def tarfile_stream(job: Job) -> Work:
    import tarfile

    def work() -> None:
        left = set(wanted_names(Path(job["list"])))
        with (
            urllib.request.urlopen(_address(job, _JOURNEY, _TGZ)) as response,
            tarfile.open(fileobj=response, mode="r|gz", bufsize=_PIECE) as archive,
        ):
            for member in archive:
                name = f"journeydb/{member.name.rpartition('/')[2]}"
                if name in left and (data := archive.extractfile(member)) is not None:
                    keep(job, name, data.read())
                    left.discard(name)

    return work


def _by_bucket(job: Job) -> dict[str, list[str]]:
    buckets: dict[str, list[str]] = {}
    for name in wanted_names(Path(job["list"])):
        buckets.setdefault(f"data-0{int(Path(name).stem) % 1000:03d}", []).append(name)
    return buckets


def whole_tars(job: Job) -> Work:
    import tarfile

    from huggingface_hub import hf_hub_download

    def one(bucket: str, names: list[str]) -> None:
        store = Path(job["out"]) / ".store"
        file = hf_hub_download(_DANBOORU, f"original/{bucket}.tar", repo_type="dataset", local_dir=store)
        left = {name.rpartition("/")[2]: name for name in names}
        with tarfile.open(file) as archive:
            for member in archive:
                if member.name in left and (data := archive.extractfile(member)) is not None:
                    keep(job, left.pop(member.name), data.read())
                if not left:
                    break
        Path(file).unlink()

    def work() -> None:
        buckets = _by_bucket(job)
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(one, buckets.keys(), buckets.values()))
        shutil.rmtree(Path(job["out"]) / ".store")

    return work


def ranges_tars(job: Job) -> Work:
    import httpx2

    def work() -> None:
        with httpx2.Client(follow_redirects=True) as client:
            for bucket, names in _by_bucket(job).items():
                index = client.get(_address(job, _INDEX, f"original/{bucket}.json")).json()["files"]
                for name in names:
                    entry = index[name.rpartition("/")[2]]
                    span = f"bytes={entry['offset']}-{entry['offset'] + entry['size'] - 1}"
                    response = client.get(_address(job, _DANBOORU, f"original/{bucket}.tar"), headers={"Range": span})
                    response.raise_for_status()
                    keep(job, name, response.content)

    return work


def _parquet_names(job: Job) -> list[str]:
    files: int = job["facts"]["files"]
    return [_shard(number, files) for number in range(files)]


def whole_parquet(job: Job) -> Work:
    import pyarrow.parquet as pq
    from huggingface_hub import hf_hub_download

    def work() -> None:
        store = Path(job["out"]) / ".store"
        wanted = set(wanted_names(Path(job["list"])))
        for name in _parquet_names(job):
            file = hf_hub_download(_IMAGENET, f"data/{name}", repo_type="dataset", local_dir=store)
            images = pq.read_table(file, columns=["image"])["image"].combine_chunks()
            for row, path in enumerate(images.field("path").to_pylist()):
                if f"imagenet/{path}" in wanted:
                    keep(job, f"imagenet/{path}", images.field("bytes")[row].as_py())
            del images
            Path(file).unlink()
        shutil.rmtree(store)

    return work


def hub_parquet(job: Job) -> Work:
    """Row groups by way of the Hub's file system: names first, then the groups that hold something wanted."""
    import pyarrow.parquet as pq
    from huggingface_hub import HfFileSystem

    def work() -> None:
        hub = HfFileSystem(endpoint=job["endpoints"]["hf"], token=False)
        wanted = set(wanted_names(Path(job["list"])))
        for name in _parquet_names(job):
            with hub.open(f"datasets/{_IMAGENET}/data/{name}", "rb") as stream, pq.ParquetFile(stream) as file:
                for group in range(file.num_row_groups):
                    names = file.read_row_group(group, columns=["image.path"])["image"].combine_chunks().field("path")
                    rows = [n for n, path in enumerate(names.to_pylist()) if f"imagenet/{path}" in wanted]
                    if rows:
                        data = file.read_row_group(group, columns=["image.bytes"])["image"].combine_chunks()
                        for row in rows:
                            keep(job, f"imagenet/{names[row]}", data.field("bytes")[row].as_py())

    return work


def _parquet_contenders() -> Iterator[tuple[str, tuple[Callable[[Job], Work], str]]]:
    for share in SHARES:
        got = f"{share} % of the rows: "
        yield (
            f"ours-{share}",
            (functools.partial(ours, source="imagenet", route="hf-parquet"), f"{got}`fetch`, route `hf-parquet`"),
        )
        yield f"whole-{share}", (whole_parquet, f"{got}whole files, then `read_table`")
        yield f"hub-{share}", (hub_parquet, f"{got}`HfFileSystem`, `read_row_group`")


CONTENDERS: dict[str, dict[str, tuple[Callable[[Job], Work], str]]] = {
    "sevenzip": {
        "ours": (
            functools.partial(ours, source="cnndetection", route="hf-7z"),
            f"`fetch`, route `hf-7z`, {WORKERS} connections",
        ),
        "whole": (whole_sevenzip, f"all volumes, then {'`7z x`' if seven_zip() else 'py7zr'}, then unzip"),
    },
    "tgz": {
        "ours": (functools.partial(ours, source="journeydb", route="hf-tgz"), "`fetch`, route `hf-tgz`"),
        "tar": (functools.partial(tar_stream, every=True), "`tar xzf -` of the same stream, every image"),
        "tar-list": (functools.partial(tar_stream, every=False), "`tar xzf - -T` of the same stream, wanted images"),
        "tarfile": (tarfile_stream, "Python's `tarfile` on the same stream"),
        "ours-killed": (
            functools.partial(ours_killed, source="journeydb", route="hf-tgz"),
            "`fetch`, going on after it was killed at half",
        ),
    },
    "tars": {
        "ours": (
            functools.partial(ours, source="danbooru", route="hf-tars"),
            f"`fetch`, route `hf-tars`, {WORKERS} connections",
        ),
        "ranges": (ranges_tars, "index, then httpx2, one image after another"),
        "whole": (whole_tars, f"whole archives, {WORKERS} at a time, then `tarfile`"),
    },
    "parquet-rows": dict(_parquet_contenders()),
}


# --- what the measuring needs ---------------------------------------------------------------------------------------

TITLES = {
    "sevenzip": "### {images:,} of {members:,} members of a ZIP64 in a stored 7z of {bytes:,} bytes in {volumes} "
    "volumes, {ms:g} ms a request",
    "tgz": "### {images:,} of {members:,} members of a tgz of {bytes:,} bytes, {ms:g} ms a request",
    "tars": "### {images:,} of {members:,} members of {buckets} indexed tars of {bytes:,} bytes, {ms:g} ms a request",
    "parquet-rows": "### Rows of {members:,} in {files} Parquet files of {bytes:,} bytes, {ms:g} ms a request",
}
#: What the bytes that were sent are compared with.
MOVED = {
    "sevenzip": "bytes moved / needed",
    "tgz": "bytes moved / stream",
    "tars": "bytes moved / (wanted + indexes)",
    "parquet-rows": "bytes moved / files",
}


def reference(part: str, name: str) -> str:
    """Whose time a contender's is compared with."""
    return {"tgz": "tar", "parquet-rows": f"ours-{_share(name)}"}.get(part, "ours")


def environment(endpoints: dict[str, str]) -> dict[str, str]:
    """The variables of a contender: the mirror is the Hub, and no account of this machine is shown to it."""
    return {"HF_ENDPOINT": endpoints["hf"], "HF_TOKEN": "hf_bench"}
