"""Processes of a fetch that are killed, interrupted, or given little memory."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imaginet_hub.data.ledger import FOLDER, read_ledger
from imaginet_hub.data.lists import parse_faces
from imaginet_hub.demo.mirror import Fault, Mirror, Request
from imaginet_hub.demo.staging import DRIVE_IDS, write_zip
from tests.conftest import PROJECT
from tests.support.published import Published

#: Two routes of single files and two of archives.
ONLY = ("coco", "ffhq", "wikiart", "cnndetection")
WORKERS = 4


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return Published.make(tmp_path_factory.mktemp("published"), count=48)


@pytest.fixture
def mirror(published: Published) -> Iterator[Mirror]:
    with Mirror(published.origin, latency_s=0.02) as running:
        yield running


_MAIN = "import sys; from imaginet_hub.cli import main; sys.exit(main(sys.argv[1:]))"
#: Imports everything once, and gives each command a process of its own: starting one takes no time.
_HATCHERY = """
import json, os, sys, traceback
import imaginet_hub.cli, imaginet_hub.data.fetch
for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.environ.update(order["environment"])
        os.dup2(os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        status = 99
        try:
            status = imaginet_hub.cli.main(order["arguments"])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def python(code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """A Python that can import the project."""
    path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    env = {**os.environ, "PYTHONPATH": path, **pipes.pop("env", {})}  # type: ignore[dict-item]
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env=env, text=True, **pipes)  # type: ignore[call-overload, no-any-return]


class Command:
    """A running `imaginet fetch`."""

    def __init__(self, hatchery: subprocess.Popen[str], environment: dict[str, str], arguments: list[str]) -> None:
        self._hatchery = hatchery
        self._file = Path(arguments[1]).with_name("output.txt")
        order = {"environment": environment, "output": str(self._file), "arguments": arguments}
        assert hatchery.stdin is not None
        assert hatchery.stdout is not None
        hatchery.stdin.write(json.dumps(order) + "\n")
        hatchery.stdin.flush()
        self.pid = int(hatchery.stdout.readline())
        self._status: list[int] = []
        self._waiter = threading.Thread(target=self._wait)
        self._waiter.start()

    def _wait(self) -> None:
        assert self._hatchery.stdout is not None
        self._status.append(int(self._hatchery.stdout.readline()))

    @property
    def running(self) -> bool:
        return self._waiter.is_alive()

    def wait(self) -> tuple[int, str]:
        """Exit status (negative: the signal that ended it), and what it said."""
        self._waiter.join(60)
        return self._status[0], self._file.read_text()


@pytest.fixture(scope="module")
def hatchery() -> Iterator[subprocess.Popen[str]]:
    process = python(_HATCHERY, stderr=None)
    yield process
    process.communicate()


Start = Callable[..., Command]


@pytest.fixture
def start(hatchery: subprocess.Popen[str], mirror: Mirror, published: Published, tmp_path: Path) -> Start:
    """Starts a fetch into `tmp_path / "root"`."""
    return lambda *more: Command(hatchery, mirror.environ(), arguments(published, tmp_path / "root", *more))


def arguments(published: Published, root: Path, *more: str) -> list[str]:
    known = ["--only", ",".join(ONLY), "--max-workers", str(WORKERS)]
    return ["fetch", str(root), "--annotations", str(published.lists), *known, *more]


def asked_for(request: Request, published: Published) -> list[str]:
    """The images of which this request asks for bytes (of single files, and of members by range)."""
    if request.host == "coco":
        return [request.path.strip("/")]
    if request.host == "drive" and request.path == "/download" and request.query["id"] != DRIVE_IDS["wikiart"]:
        return [FACES[request.query["id"]]]
    if request.range is None or request.range == (0, 0) or not SPANS:
        return []
    name = DRIVE_IDS["wikiart"] if request.host == "drive" else "progan_val.zip"
    low, high = request.range
    if name not in f"{request.path}{request.query.get('id')}" or low is None or high is None:
        return []
    spans, directory = SPANS[name]
    if high >= directory:  # the directory, with whatever lies before it
        return []
    return [path for path, (first, last) in spans.items() if low <= first and last <= high]


FACES: dict[str, str] = {}
SPANS: dict[str, tuple[dict[str, tuple[int, int]], int]] = {}


def _spans(file: Path, folder: str) -> tuple[dict[str, tuple[int, int]], int]:
    with zipfile.ZipFile(file) as opened:
        infos = [info for info in opened.infolist() if not info.is_dir()]
        places = {
            info.filename if info.filename.startswith(folder) else f"{folder}/{info.filename}": (
                info.header_offset,
                info.header_offset + 30 + info.compress_size,
            )
            for info in infos
        }
        for info in infos:  # zipfile takes names that do not say that they are UTF-8 for cp437
            assert info.filename.isascii()
        return places, opened.start_dir


def test_killed_at_twelve_points(start: Start, published: Published, mirror: Mirror, tmp_path: Path) -> None:
    """The same files in the end, nothing that had come asked for again, and nothing left behind."""
    root = tmp_path / "root"
    faces = parse_faces((published.lists / "ffhq_filenames.txt").read_bytes(), "")
    FACES.update({face.drive_id: path for path, face in faces.items()})
    SPANS[DRIVE_IDS["wikiart"]] = _spans(published.origin / "drive" / DRIVE_IDS["wikiart"], "wikiart")
    SPANS["progan_val.zip"] = _spans(published.origin / "hf/sywang/CNNDetection/progan_val.zip", "progan_val")
    chance = random.Random(20260101)
    wanted = {path for source in ONLY for path in published.paths[source]}
    asked: Counter[str] = Counter()
    kills, cut, lost = 0, [], 0
    for _ in range(40):
        # Die after so many requests, and a moment.
        after, moment = chance.randint(1, 11) + 2, chance.random() * 0.05
        state = {"seen": 0}
        due, lock = threading.Event(), threading.Lock()

        def hook(request: Request, state: dict[str, int] = state, after: int = after) -> Fault | None:
            with lock:  # noqa: B023 - the hook lives no longer than the round
                state["seen"] += 1
                if state["seen"] >= after:
                    due.set()  # noqa: B023
            # Archives come slowly, so that there is something to cut.
            return Fault(stall_after=60_000, stall_s=0.05) if request.range not in (None, (0, 0)) else None

        mirror.forget()
        mirror.fault = hook if kills < 12 else None
        before = set(read_ledger(root)) | {path for path in wanted if (root / path).exists()}
        process = start()
        if kills < 12:
            while not due.wait(0.01) and process.running:
                pass
            time.sleep(moment)
        killed = process.running and kills < 12
        if killed:
            os.kill(process.pid, signal.SIGKILL)
        status, said = process.wait()
        again = Counter(path for request in mirror.requests for path in asked_for(request, published))
        assert not before & set(again), "asked for although it was there"
        asked += again
        here = {path for path in wanted if (root / path).exists()}
        for path in here:
            assert (root / path).read_bytes() == (published.root / path).read_bytes()
        lost += sum(count for path, count in again.items() if path not in here)
        assert not killed or status == -signal.SIGKILL
        if not killed:
            assert status == 0, said
            break
        kills += 1
        cut.append(len(here))
    assert kills == 12, f"{kills} kills, files after each: {cut}"
    assert len(set(cut)) > 6, f"the points are all alike: {cut}"
    published.complete(root, ONLY)
    # Whatever was asked for twice was under way when the process died.
    assert sum(asked.values()) == len(wanted) + lost
    assert set(asked) == wanted
    for path, entry in read_ledger(root).items():
        assert (root / path).stat().st_mtime_ns == entry.mtime_ns
    lines = (root / FOLDER / "ledger.jsonl").read_bytes().splitlines()
    assert all(json.loads(line) for line in lines), "a line that was cut short is gone"
    kept = {path.name for path in (root / FOLDER).iterdir()}
    assert kept <= {"ledger.jsonl", "lock"}, kept


def test_a_kill_while_files_have_their_first_name(
    start: Start, published: Published, mirror: Mirror, tmp_path: Path
) -> None:
    """Killed between writing and renaming, many times over: the next run sweeps."""
    code = (
        "import os, sys; from pathlib import Path\n"
        "real = Path.replace\n"
        "def replace(self, target):\n"
        "    if str(target).endswith('7.jpg'): os.kill(os.getpid(), 9)\n"
        "    return real(self, target)\n"
        "Path.replace = replace\n"
        "from imaginet_hub.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    root = tmp_path / "root"
    process = python(code, *arguments(published, root), env=mirror.environ())
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert list(root.rglob(".*.incomplete"))
    (root / "val2017" / f".{'0' * 16}.incomplete").write_bytes(b"of a file that no list names any more")
    status, said = start().wait()
    assert status == 0, said
    published.complete(root, ONLY)


@pytest.mark.parametrize("stalled", [False, True])
def test_ctrl_c(stalled: bool, start: Start, published: Published, mirror: Mirror, tmp_path: Path) -> None:
    """Exit status 130, at once, also while a host is silent; the second run completes."""
    seen = threading.Semaphore(0)

    def hook(request: Request) -> Fault | None:
        seen.release()
        return (
            Fault(stall_after=-1) if stalled and request.number and request.path.endswith(("9.jpg", "8.jpg")) else None
        )

    mirror.fault = hook
    mirror.latency_s = 0.1
    root = tmp_path / "root"
    process = start("--route", "coco=s3")
    for _ in range(15):
        assert seen.acquire(timeout=30)
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    status, said = process.wait()
    assert time.monotonic() - began < 3
    assert status == 130, said
    assert "interrupted; what came in is kept and verified; run the same command again to go on" in said
    assert "Traceback" not in said
    here = published.here(root)
    assert len(here) >= 10
    mirror.forget()
    mirror.fault = None
    mirror.latency_s = 0.0
    status, said = start().wait()
    assert status == 0, said
    published.complete(root, ONLY)
    assert not here & {request.path.strip("/") for request in mirror.requests}


def test_two_processes_on_one_root(start: Start, published: Published, mirror: Mirror, tmp_path: Path) -> None:
    """One of them works, the other says so; a lock of a dead process holds up nobody."""
    mirror.latency_s = 0.3
    root = tmp_path / "root"
    first = start()
    while not mirror.requests:
        time.sleep(0.01)
    second = python(_MAIN, *arguments(published, root), env=mirror.environ())
    _, err = second.communicate(timeout=30)
    assert second.returncode == 1
    assert "expected no other fetch at work there, got one that is; wait for it, or stop it" in err
    mirror.latency_s = 0.0
    status, said = first.wait()
    assert status == 0, said
    published.complete(root, ONLY)


def test_memory_stays_small(tmp_path: Path, published: Published) -> None:
    """A big archive of big paintings, sixteen connections."""
    (tmp_path / "lists").mkdir()
    members, rows = [], []
    (tmp_path / "pictures").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 2048, 3), dtype=np.uint8)
    Image.fromarray(np.tile(noise, (28, 1, 1))).save(tmp_path / "noise.jpg", quality=100, subsampling=0)
    for number in range(20):
        file = tmp_path / "pictures" / f"{number}.jpg"
        file.write_bytes((tmp_path / "noise.jpg").read_bytes() + bytes([number]))
        name = f"wikiart/Baroque/painter_picture-{number}.jpg"
        members.append((name, file))
        rows.append(f"./{name},0,1,4,8\n")
    archive = write_zip(tmp_path / "origin" / "drive" / DRIVE_IDS["wikiart"], members)
    assert archive.stat().st_size > 280_000_000
    (tmp_path / "lists" / "test_annotations.txt").write_text("".join(rows))
    code = (
        "import re, sys; from imaginet_hub.cli import main\n"
        "status = main(sys.argv[1:])\n"
        # Not getrusage: a child's ru_maxrss starts with what its parent had.
        "print('PEAK', re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])\n"
        "sys.exit(status)"
    )
    given = ("fetch", str(tmp_path / "root"), "--annotations", str(tmp_path / "lists"), "--max-workers", "16")
    with Mirror(tmp_path / "origin") as mirror:
        process = python(code, *given, env=mirror.environ())
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        assert mirror.sent < 1.02 * archive.stat().st_size
    peak = int(out.split("PEAK")[1])
    assert peak < 500_000, f"{peak:,} kB"
