"""The packed release and other 7z archives end to end: by range, whole, refused, killed, and from one's own disk."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imaginet_hub.data.fetch import Summary, fetch
from imaginet_hub.data.ledger import FOLDER, read_ledger
from imaginet_hub.data.readers import unpacking
from imaginet_hub.data.ways import costs
from imaginet_hub.demo.containers import Member, write_7z, write_zip
from imaginet_hub.demo.mirror import Fault, Hook, Mirror, Request, always, chain
from imaginet_hub.errors import FetchError
from tests.conftest import PROJECT
from tests.support.published import ACCOUNTS, FAST, GATES, SOURCES, Published

PACKED = "hf/delyanboychev/imaginet"
#: What is wanted of the packed release in most tests: three sources, one of them with two folders of its own names.
SOME = ("coco", "wikiart", "imaginet")
BY_PACKED = dict.fromkeys(SOURCES, "packed")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published.make(tmp_path_factory.mktemp("published"), count=8, size=(64, 48))


@pytest.fixture(autouse=True)
def accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ACCOUNTS.items():
        monkeypatch.setenv(name, value)


class World:
    """What is published, with a packed release of its own."""

    def __init__(self, published: Published, origin: Path) -> None:
        self.published = published
        self.origin = origin
        self.every = [path for paths in published.paths.values() for path in paths]

    def pack(self, folder: str = "", volumes: int | None = 5, skip: str = "/", **options: Any) -> list[Path]:
        """Replace the release on the mirror."""
        shutil.rmtree(self.origin / PACKED, ignore_errors=True)
        members = [(path, self.published.root / path) for path in self.every if not path.startswith(skip)]
        total = sum(file.stat().st_size for _, file in members)
        each = None if volumes is None else total // volumes + 100
        return write_7z(self.origin / PACKED / folder / "imaginet.7z", members, volume_bytes=each, **options)

    def fetch(self, mirror: Mirror, root: Path, **options: Any) -> Summary:
        options = {"only": SOURCES, "routes": BY_PACKED, **options}
        return self.published.fetch(mirror, root, **options)


@pytest.fixture
def world(published: Published, tmp_path: Path) -> World:
    origin = tmp_path / "origin"
    shutil.copytree(published.origin, origin, copy_function=os.link)
    return World(published, origin)


@pytest.fixture
def mirror(world: World) -> Iterator[Mirror]:
    with Mirror(world.origin, **GATES) as running:
        yield running


def downloads(root: Path) -> list[str]:
    folder = root / FOLDER / "downloads"
    return sorted(path.name for path in folder.rglob("*") if path.is_file()) if folder.exists() else []


def requested(mirror: Mirror) -> list[Request]:
    """Requests for bytes of volumes at the store."""
    return [request for request in mirror.requests if request.host == "cdn" and ".7z" in request.path]


def listings(mirror: Mirror) -> int:
    return sum("/api/datasets/delyanboychev" in request.path for request in mirror.requests)


# --- by range -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["", "data", "a/b"])
@pytest.mark.parametrize("volumes", [None, 1, 7])
def test_stored_is_read_by_range(
    folder: str, volumes: int | None, world: World, mirror: Mirror, tmp_path: Path
) -> None:
    files = world.pack(folder, volumes, encoded_header=True)
    summary = world.fetch(mirror, tmp_path / "root")
    assert summary.complete, summary.text()
    world.published.complete(tmp_path / "root", SOURCES)
    assert {entry.route for entry in read_ledger(tmp_path / "root").values()} == {"packed"}
    needed = sum(file.stat().st_size for file in files)
    assert sum(request.sent for request in requested(mirror)) <= 1.02 * needed
    assert listings(mirror) == 1
    assert not downloads(tmp_path / "root")


def test_only_what_is_wanted_crosses_the_network(world: World, mirror: Mirror, tmp_path: Path) -> None:
    world.pack(encoded_header=True)
    summary = world.fetch(mirror, tmp_path / "root", only=("wikiart",))
    assert summary.complete
    wanted = sum((world.published.root / path).stat().st_size for path in world.published.paths["wikiart"])
    header = 8_000
    assert sum(request.sent for request in requested(mirror)) <= 1.02 * wanted + header


def test_the_last_resort_of_several_sources_at_once(world: World, mirror: Mirror, tmp_path: Path) -> None:
    """What other routes lack, of three sources, after one look at the listing and one at the header."""
    lost = world.published.paths["coco"][2]
    mirror.fault = lambda request: (
        Fault(status=404)
        if Path(lost).name in request.path or "/zips/" in request.path or request.host == "drive"
        else None
    )
    only = ("coco", "photozilla", "imaginet")
    summary = world.fetch(mirror, tmp_path / "root", only=only, routes={})
    assert summary.complete, summary.text()
    world.published.complete(tmp_path / "root", only)
    by_packed = {path for path, entry in read_ledger(tmp_path / "root").items() if entry.route == "packed"}
    assert by_packed == {lost, *world.published.paths["photozilla"], *world.published.paths["imaginet"]}
    assert listings(mirror) == 1


def test_a_member_damaged_on_the_way_is_asked_for_again_and_nothing_else(
    world: World, mirror: Mirror, tmp_path: Path
) -> None:
    world.pack(encoded_header=True)
    seen: list[Request] = []

    def hook(request: Request) -> Fault | None:
        if request.host == "cdn" and request.range is not None and (request.range[1] or 0) - request.range[0] > 3000:  # type: ignore[operator]
            seen.append(request)
            return Fault(wrong_bytes=True) if len(seen) == 1 else None
        return None

    mirror.fault = hook
    summary = world.fetch(mirror, tmp_path / "root")
    assert summary.complete, summary.text()
    assert listings(mirror) == 1


def test_progan_train_through_a_zip_in_a_7z(world: World, tmp_path: Path) -> None:
    """The archive of LSUN and ProGAN images, with wide structures, over the borders of seven volumes."""
    lists = tmp_path / "lists"
    lists.mkdir()
    paths = [f"progan_train/cat/{kind}/{n:05d}.png" for kind in ("0_real", "1_fake") for n in range(8)]
    source = [world.published.root / path for path in world.published.paths["cnndetection"]] * 2
    (lists / "train_annotations.txt").write_text("".join(f"./{path},0,1,4,8\n" for path in paths))
    inner = write_zip(
        tmp_path / "progan_train.zip",
        [(path.removeprefix("progan_train/"), file) for path, file in zip(paths, source, strict=True)],
        zip64=True,
    )
    target = tmp_path / "other" / "hf/sywang/CNNDetection/progan_train.7z"
    files = write_7z(target, [("progan_train.zip", inner)], volume_bytes=inner.stat().st_size // 6)
    options = {"only": ("cnndetection",), "annotations": lists, "routes": {"cnndetection": "hf-7z"}}
    with Mirror(tmp_path / "other") as mirror:
        summary = fetch(tmp_path / "root", endpoints=mirror.endpoints, limits=FAST, **options)  # type: ignore[arg-type]
        assert summary.complete, summary.text()
        needed = sum(file.stat().st_size for file in files)
        assert sum(request.sent for request in requested(mirror)) <= 1.02 * needed
    for path, file in zip(paths, source, strict=True):
        assert (tmp_path / "root" / path).read_bytes() == file.read_bytes()
    # Compressed by somebody: moved whole, the ZIP archive unpacked to the disk and removed.
    write_7z(target, [("progan_train.zip", inner)], volume_bytes=30_000, compressed=True)
    with Mirror(tmp_path / "other") as mirror:
        summary = fetch(tmp_path / "again", endpoints=mirror.endpoints, limits=FAST, **options)  # type: ignore[arg-type]
    assert summary.complete, summary.text()
    assert not (tmp_path / "again" / FOLDER / "downloads").exists()
    # And from one's own disk, both ways.
    for compressed in (False, True):
        own = write_7z(
            tmp_path / f"own{compressed}" / "progan_train.7z",
            [("progan_train.zip", inner)],
            volume_bytes=40_000,
            compressed=compressed,
        )
        root = tmp_path / f"from{compressed}"
        summary = fetch(
            root,
            only=("cnndetection",),
            annotations=lists,
            own={"cnndetection": own[0]},
            routes={"cnndetection": "own"},
        )
        assert summary.complete, summary.text()
        assert not (root / FOLDER / "downloads").exists()


# --- whole ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        pytest.importorskip("py7zr")
        monkeypatch.setattr(unpacking, "_PROGRAMS", ())
    elif unpacking.unpacker() in (None, "py7zr"):
        pytest.skip("7-Zip is not on this machine")
    return bool(request.param)


@pytest.mark.parametrize("program", [True, False], ids=["program", "py7zr"], indirect=True)
@pytest.mark.parametrize(("volumes", "solid"), [(None, True), (6, True), (6, False)])
def test_compressed_is_moved_whole(
    program: bool, volumes: int | None, solid: bool, world: World, mirror: Mirror, tmp_path: Path
) -> None:
    """A small one is moved without being asked for; its cost is told first; nothing is left of it."""
    files = world.pack("data", volumes, solid=solid, compressed=True, encoded_header=True)
    said: list[tuple[int, str]] = []
    root = tmp_path / "root"
    summary = world.fetch(mirror, root, show=lambda text: said.append((len(requested(mirror)), text)))
    assert summary.complete, summary.text()
    world.published.complete(root, SOURCES)
    total = sum(file.stat().st_size for file in files)
    assert sum(request.sent for request in requested(mirror)) <= 1.02 * total + 8_000
    (cost,) = ((count, text) for count, text in said if "is not stored, so that it has to be moved whole" in text)
    assert cost[0] <= 3, "told before more than the header was read"
    assert not (root / FOLDER / "downloads").exists()


def test_a_large_one_is_refused_until_it_is_named(
    world: World, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "_SMALL_BYTES", 1000)
    files = world.pack(compressed=True)
    total = sum(file.stat().st_size for file in files)
    mirror.fault = always(world.published.paths["coco"][0], Fault(status=404), host="coco")
    mirror.fault = chain(mirror.fault, always("zips", Fault(status=404)))
    root = tmp_path / "root"
    summary = world.fetch(mirror, root, only=("coco",), routes={})
    (error,) = summary.missing.values()
    assert "--route coco=packed" in str(error)
    assert "to move for 1 images" in str(error)
    assert sum(request.sent for request in requested(mirror)) < 0.2 * total
    assert not downloads(root)
    # Once one of several sources has it named, all that is wanted of it comes.
    wiki = world.published.paths["wikiart"]
    mirror.forget()
    mirror.fault = chain(mirror.fault, always("", Fault(status=404), host="drive"))
    (root / world.published.paths["coco"][1]).unlink()
    mirror.fault = chain(always("", Fault(status=404), host="coco"), mirror.fault)
    summary = world.fetch(mirror, root, only=("coco", "wikiart"), routes={"wikiart": "packed"})
    assert summary.complete, summary.text()
    assert {read_ledger(root)[path].route for path in wiki} == {"packed"}
    assert not downloads(root)


def test_most_of_it_wanted_is_reason_enough(
    world: World, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "_SMALL_BYTES", 1000)
    world.pack(compressed=True)
    for pattern in ("coco", "drive"):
        mirror.fault = chain(*filter(None, [mirror.fault]), always("", Fault(status=404), host=pattern))
    only = ("coco", "wikiart", "danbooru", "photozilla", "imaginet")
    summary = world.fetch(mirror, tmp_path / "root", only=only, routes={"wikiart": "packed", "danbooru": "packed"})
    assert summary.complete, summary.text()


def test_a_volume_with_wrong_bytes_is_asked_for_once_more(world: World, mirror: Mirror, tmp_path: Path) -> None:
    files = world.pack(compressed=True, volumes=6)
    third = files[2].stat().st_size

    def whole(request: Request) -> bool:
        return request.host == "cdn" and request.path.endswith(".003") and request.range == (0, third - 1)

    seen: list[Request] = []

    def hook(request: Request) -> Fault | None:
        if whole(request):
            seen.append(request)
            return Fault(wrong_bytes=True) if len(seen) == 1 else None
        return None

    mirror.fault = hook
    summary = world.fetch(mirror, tmp_path / "root")
    assert summary.complete, summary.text()
    assert len(seen) == 2
    # Never right: an error that says so, no file under its name; the others' bytes are kept.
    mirror.fault = lambda request: Fault(wrong_bytes=True) if whole(request) else None
    root = tmp_path / "other"
    summary = world.fetch(mirror, root, only=SOME)
    assert {error.reason for error in summary.missing.values()} == {"corrupt"}
    assert "SHA-256" in next(iter(str(error) for error in summary.missing.values()))
    kept = downloads(root)
    assert "imaginet.7z.003" not in kept
    assert sum(name.startswith("imaginet.7z.003") for name in kept) == 0
    mirror.fault = None
    mirror.forget()
    assert world.fetch(mirror, root, only=SOME).complete
    asked = {request.path[-4:] for request in requested(mirror) if (request.range or (0, 0))[0] == 0}
    assert ".003" in asked
    assert sum(request.sent for request in requested(mirror)) < sum(file.stat().st_size for file in files)
    assert not downloads(root)


def test_a_host_that_fails_stops_neither_the_fetch_nor_what_is_there(
    world: World, mirror: Mirror, tmp_path: Path
) -> None:
    """Other sources come, and the next run goes on where this one was."""
    world.pack(compressed=True, volumes=4)
    mirror.fault = lambda request: (
        Fault(reset_after=5_000)
        if request.host == "cdn" and request.path.endswith(".002") and request.range and request.range[1] != 31
        else None
    )
    root = tmp_path / "root"
    summary = world.fetch(mirror, root, only=("wikiart", "coco"), routes={"wikiart": "packed"}, max_workers=1)
    assert set(summary.missing) == set(world.published.paths["wikiart"])
    assert {error.reason for error in summary.missing.values()} == {"network"}
    assert all((root / path).exists() for path in world.published.paths["coco"])
    assert downloads(root)
    mirror.fault = None
    before = {request.path[-4:]: request.sent for request in requested(mirror)}
    assert before
    mirror.forget()
    summary = world.fetch(mirror, root, only=("wikiart", "coco"), routes={"wikiart": "packed"})
    assert summary.complete, summary.text()
    first_volume = [r for r in requested(mirror) if r.path.endswith(".001")]
    assert all(request.sent <= 32 for request in first_volume)
    assert not downloads(root)


# --- what is wrong with the release ---------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [True, False])
def test_a_missing_or_short_volume(compressed: bool, world: World, mirror: Mirror, tmp_path: Path) -> None:
    files = world.pack(compressed=compressed, volumes=5)
    kept = files[2].read_bytes()
    files[2].unlink()
    summary = world.fetch(mirror, tmp_path / "root", only=SOME)
    assert {error.reason for error in summary.missing.values()} == {"missing"}
    assert "no volume 003" in str(next(iter(summary.missing.values())))
    assert not requested(mirror)
    files[2].write_bytes(kept)
    last = files[-1].read_bytes()
    files[-1].write_bytes(last[:-50])
    summary = world.fetch(mirror, tmp_path / "root", only=SOME)
    assert {error.reason for error in summary.missing.values()} == {"corrupt"}
    assert "a volume is missing, or the last one is short" in str(next(iter(summary.missing.values())))
    files[-1].unlink()
    summary = world.fetch(mirror, tmp_path / "root", only=SOME)
    assert "a volume is missing" in str(next(iter(summary.missing.values())))
    files[-1].write_bytes(last)
    assert world.fetch(mirror, tmp_path / "root", only=SOME).complete


def relisted(change: Callable[[list[dict[str, Any]]], object], mirror: Mirror) -> Hook:
    """The listing, changed."""
    url = f"{mirror.endpoints['hf']}/api/datasets/delyanboychev/imaginet/revision/main?blobs=true"
    with urllib.request.urlopen(url) as answer:
        value = json.load(answer)
    change(value["siblings"])
    body = json.dumps(value).encode()
    return always("/api/datasets/delyanboychev", Fault(status=200, body=body))


def _no_sizes(siblings: list[dict[str, Any]]) -> None:
    for sibling in siblings:
        sibling.pop("size", None)
        (sibling.get("lfs") or {}).pop("size", None)


def _no_hashes(siblings: list[dict[str, Any]]) -> None:
    for sibling in siblings:
        sibling["lfs"] = None


def _senseless(siblings: list[dict[str, Any]]) -> None:
    for sibling in siblings:
        sibling["lfs"] = {"sha256": "../../../../x"}
        sibling["size"] = -5


def _crowd(siblings: list[dict[str, Any]]) -> None:
    names = ["../imaginet.7z.001", "/imaginet.7z.001", "imaginet.7z.999999999999", f"imaginet.7z.{'9' * 5000}"]
    names += [
        "\ud800/imaginet.7z.001",
        "x\n/imaginet.7z.001",
        "imaginet.7z.٠٠٢",
        "a\\..\\imaginet.7z.001",
        "imaginet.7z",
    ]
    names += [f"other/{number}.bin" for number in range(100_000)]
    siblings[:0] = [{"rfilename": name, "size": 7, "lfs": {"sha256": "0" * 64}} for name in names]


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("change", [_no_sizes, _no_hashes, _senseless, _crowd])
def test_listings_that_say_less_or_more(
    change: Callable[[list[dict[str, Any]]], object], compressed: bool, world: World, mirror: Mirror, tmp_path: Path
) -> None:
    world.pack(compressed=compressed)
    mirror.fault = relisted(change, mirror)
    summary = world.fetch(mirror, tmp_path / "root", only=SOME)
    assert summary.complete, summary.text()
    assert not downloads(tmp_path / "root")


@pytest.mark.parametrize(
    "body", [b"", b"<!DOCTYPE html><html>", b"[]", b'{"siblings": 7}', b'{"siblings": [{}]}', b"\xff{"]
)
def test_a_listing_that_is_none(body: bytes, world: World, mirror: Mirror, tmp_path: Path) -> None:
    mirror.fault = always("/api/datasets/delyanboychev", Fault(status=200, body=body))
    summary = world.fetch(mirror, tmp_path / "root", only=SOME)
    assert {error.reason for error in summary.missing.values()} == {"format"}


@pytest.mark.parametrize("token", ["hf_wrong", ""])
def test_the_wrong_account(
    token: str, world: World, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    summary = world.fetch(mirror, tmp_path / "root", only=SOME)
    assert {error.reason for error in summary.missing.values()} == {"access"}
    assert not requested(mirror)


def test_offline(world: World, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    summary = world.fetch(mirror, tmp_path / "root", only=SOME)
    assert {error.reason for error in summary.missing.values()} == {"offline"}
    assert not mirror.requests


def test_damaged_members_leave_the_others_alone(world: World, mirror: Mirror, tmp_path: Path) -> None:
    bad = world.published.paths["wikiart"][3]
    shutil.rmtree(world.origin / PACKED)
    members = [Member(p, world.published.root / p, crc=5 if p == bad else None) for p in world.every]
    write_7z(world.origin / PACKED / "imaginet.7z", members, volume_bytes=50_000, compressed=True, solid=True)
    root = tmp_path / "root"
    summary = world.fetch(mirror, root, only=SOME)
    assert list(summary.missing) == [bad]
    assert summary.missing[bad].reason == "corrupt"
    assert not downloads(root), "what can come has come"
    assert listings(mirror) == 1


def test_replaced_while_it_was_read(world: World, mirror: Mirror, tmp_path: Path) -> None:
    """A new version appears after the header was read: everything is read anew."""
    world.pack(volumes=2)
    changed = threading.Event()

    def hook(request: Request) -> Fault | None:
        # Everything after the first images is of another version.
        if (
            request.host in ("hf", "cdn")
            and ".7z" in request.path
            and len(requested(mirror)) > 4
            and not changed.is_set()
        ):
            changed.set()
            world.pack(volumes=2, encoded_header=True, skip="ffhq")
        return None

    mirror.fault = hook
    summary = world.fetch(mirror, tmp_path / "root", only=SOME, max_workers=1)
    assert changed.is_set()
    assert summary.complete, summary.text()
    assert listings(mirror) == 2


# --- the disk -------------------------------------------------------------------------------------------------------


def test_too_little_disk_is_said_before(
    world: World, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.pack(compressed=True)
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(costs.shutil, "disk_usage", lambda path: usage(10**9, 0, 10**9))
    real = costs.allow

    def scarce(*args: Any, **options: Any) -> None:
        with monkeypatch.context() as inner:
            inner.setattr(costs.shutil, "disk_usage", lambda path: usage(10**9, 0, options["disk"] + 1000))
            real(*args, **options)

    monkeypatch.setattr("imaginet_hub.data.ways.sevenzip.allow", scarce)
    root = tmp_path / "root"
    summary = world.fetch(mirror, root, only=SOME)
    assert {error.reason for error in summary.missing.values()} == {"disk"}
    assert "of free disk for hf:delyanboychev/imaginet" in str(next(iter(summary.missing.values())))
    assert not downloads(root)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root mounts")
def test_the_disk_fills_during_the_download(
    world: World, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = world.pack(compressed=True, volumes=3)
    total = sum(file.stat().st_size for file in files)
    root = tmp_path / "small"
    root.mkdir()
    size = total // 2 // 4096 * 4096
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(root)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no mounts here")
    try:
        usage = collections.namedtuple("usage", "total used free")
        with monkeypatch.context() as inner:
            inner.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, 10**12))
            with pytest.raises(FetchError) as raised:
                world.fetch(mirror, root, only=SOME)
        assert raised.value.reason == "disk"
        assert "everything that came in is kept" in str(raised.value)
        kept = downloads(root)
        assert kept
        mirror.forget()
        subprocess.run(["mount", "-o", "remount,size=64M", str(root)], check=True)
        assert world.fetch(mirror, root, only=SOME).complete
        assert sum(request.sent for request in requested(mirror)) < 0.8 * total
        assert not downloads(root)
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)


# --- killed ---------------------------------------------------------------------------------------------------------

_MAIN = "import sys; from imaginet_hub.cli import main; sys.exit(main(sys.argv[1:]))"


def start(world: World, mirror: Mirror, root: Path) -> subprocess.Popen[str]:
    """A fetch of three sources by the packed release, in a process of its own."""
    path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
    words = ["fetch", str(root), "--annotations", str(world.published.lists), "--only", ",".join(SOME)]
    words += ["--max-workers", "2", *(word for key in SOME for word in ("--route", f"{key}=packed"))]
    return subprocess.Popen(
        [sys.executable, "-c", _MAIN, *words],
        env={**os.environ, **mirror.environ(), "PYTHONPATH": path},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=60)
    return out


def test_killed_during_the_download(world: World, mirror: Mirror, tmp_path: Path) -> None:
    """Four times, each time somewhere else: what had come is not asked for again."""
    files = world.pack(compressed=True, volumes=4)
    total = sum(file.stat().st_size for file in files)
    root = tmp_path / "root"
    chance = random.Random(5)
    piece, kills = 4_000, 0

    def hook(request: Request) -> Fault | None:
        if request.host == "cdn" and request.range and (request.range[1] or 0) - (request.range[0] or 0) > 10_000:
            return Fault(stall_after=chance.randrange(8_000, 20_000), stall_s=0.6)
        return None

    mirror.fault = hook
    for _ in range(4):
        process = start(world, mirror, root)
        deadline = time.monotonic() + 30
        had = _held(root)
        while _held(root) < had + piece and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        finish(process)
    assert kills >= 3
    assert not list(root.glob("val2017/*"))
    held = _held(root)
    assert held > 0
    mirror.fault = None
    mirror.forget()
    process = start(world, mirror, root)
    out = finish(process)
    assert process.returncode == 0, out
    world.published.complete(root, SOME)
    header = 60_000
    assert sum(request.sent for request in requested(mirror)) <= total - held + header
    assert not downloads(root)


def _held(root: Path) -> int:
    folder = root / FOLDER / "downloads"
    total = 0
    with contextlib.suppress(OSError):
        total = sum(path.stat().st_size for path in folder.rglob("imaginet*") if path.is_file())
    return total


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_ended_during_extraction(how: signal.Signals, world: World, mirror: Mirror, tmp_path: Path) -> None:
    """By a program that stops in the middle: the next run unpacks the rest, and asks for no byte but the header's."""
    if unpacking.unpacker() in (None, "py7zr"):
        pytest.skip("7-Zip is not on this machine")
    world.pack(compressed=True, volumes=4)
    root = tmp_path / "root"
    folder = tmp_path / "bin"
    folder.mkdir()
    real = unpacking.unpacker()
    body = f'#!/bin/sh\necho $$ > {folder}/pid\n{real} "$@" | head -c 120000\nexec sleep 600\n'
    (folder / "7zz").write_text(body)
    (folder / "7zz").chmod(0o755)
    before = os.environ["PATH"]
    try:
        os.environ["PATH"] = f"{folder}{os.pathsep}{before}"
        process = start(world, mirror, root)
    finally:
        os.environ["PATH"] = before
    deadline = time.monotonic() + 40
    while len(list(root.glob("*/**/*.jpg"))) < 5:
        assert time.monotonic() < deadline
        assert process.poll() is None, finish(process)
        time.sleep(0.01)
    began = time.monotonic()
    process.send_signal(how)
    out = finish(process)
    assert time.monotonic() - began < 10
    assert process.returncode == (-how if how == signal.SIGKILL else 130), out
    child = int((folder / "pid").read_text())
    if how == signal.SIGINT:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
    else:
        with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
            os.kill(child, signal.SIGKILL)
    assert downloads(root)
    mirror.forget()
    process = start(world, mirror, root)
    out = finish(process)
    assert process.returncode == 0, out
    world.published.complete(root, SOME)
    assert sum(request.sent for request in requested(mirror)) < 60_000
    assert not (root / FOLDER / "downloads").exists()


# --- one's own ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("volume_bytes", [None, 70_000])
@pytest.mark.parametrize("named", ["first volume", "folder"])
def test_own_volumes(compressed: bool, volume_bytes: int | None, named: str, world: World, tmp_path: Path) -> None:
    """No network at all."""
    members = [(path, world.published.root / path) for path in world.every]
    files = write_7z(tmp_path / "own" / "mine.7z", members, volume_bytes=volume_bytes, compressed=compressed)
    place = tmp_path / "own" if named == "folder" else files[0]
    own = dict.fromkeys(SOME, place)
    summary = fetch(
        tmp_path / "root", annotations=world.published.lists, only=SOME, own=own, routes=dict.fromkeys(SOME, "own")
    )
    assert summary.complete, summary.text()
    world.published.complete(tmp_path / "root", SOME)
    assert summary.bytes_moved == 0
    assert all(file.exists() for file in files)
    if volume_bytes:
        files[1].unlink()
        summary = fetch(
            tmp_path / "other",
            annotations=world.published.lists,
            only=SOME,
            own=own,
            routes=dict.fromkeys(SOME, "own"),
        )
        assert "no volume 002" in str(next(iter(summary.missing.values())))


def test_hostile_members_do_not_keep_good_ones(world: World, mirror: Mirror, tmp_path: Path) -> None:
    """Names that lead out, twins with other bytes, other cases; what is left is told apart."""
    wanted = world.published.paths["coco"]
    twin = wanted[0]
    shutil.rmtree(world.origin / PACKED)
    other = (world.published.root / wanted[5]).read_bytes()
    members: list[Member | tuple[str, bytes | Path]] = [
        *((path, world.published.root / path) for path in wanted),
        (f"../{wanted[1]}", other),
        (f"/{wanted[1]}", other),
        (wanted[2].upper(), other),
        (wanted[3].replace("/", "\\..\\"), other),
        (twin, other),
    ]
    for compressed in (False, True):
        write_7z(world.origin / PACKED / "imaginet.7z", members, volume_bytes=20_000, compressed=compressed)
        root = tmp_path / str(compressed)
        summary = world.fetch(mirror, root, only=("coco",))
        assert list(summary.missing) == [twin]
        assert "two:" in str(summary.missing[twin])
        assert world.published.here(root) == set(wanted) - {twin}


def test_a_limited_run_keeps_what_it_downloaded(world: World, mirror: Mirror, tmp_path: Path) -> None:
    """The next one moves nothing but the header; the last one clears up."""
    world.pack(compressed=True, volumes=3)
    root = tmp_path / "root"
    routes = dict.fromkeys(SOME, "packed")
    first = world.fetch(mirror, root, only=SOME, routes=routes, limit=1)
    assert first.complete and first.to_json()["beyond_limit"] > 0
    assert downloads(root)
    mirror.forget()
    assert world.fetch(mirror, root, only=SOME, routes=routes, limit=1).complete
    assert sum(request.sent for request in requested(mirror)) < 60_000
    assert world.fetch(mirror, root, only=SOME, routes=routes).complete
    world.published.complete(root, SOME)
    assert not (root / FOLDER / "downloads").exists()
