"""The perturbed test set's pixels, made by worker processes that import little and so start at once.

Decoders meet files that nobody vouches for in there: one that ends its process ends no other. Workers say what they
found in JSON, never in a form that could run code here.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from queue import SimpleQueue
from typing import Any, NamedTuple

from imaginet_hub.data import child
from imaginet_hub.data.images import read_bytes, upper_rows
from imaginet_hub.errors import BuildError, ImageError
from imaginet_hub.perturbations import Perturbation, rendered

__all__ = ["FORMAT", "LOSSLESS", "Rendered", "Task", "render", "render_all"]

#: Of the files. Next to PNG of level 1 it takes half the time and four fifths of the bytes.
FORMAT = "WEBP"
LOSSLESS = {"lossless": True, "quality": 0, "method": 0}
#: Images on their way, a worker: enough that none waits while a row group is written.
_AHEAD = 32
_AHEAD_BYTES = 64 * 1024**2


class Task(NamedTuple):
    """An image to render.

    Attributes:
        row: whatever goes with it, and comes back with the result.
        path: its name, which decides what it gets; None: "sha256:" and the digest of its bytes.
        data: the bytes of its file, or None.
        file: where the file is if there are no bytes.
    """

    row: Any
    path: str | None
    data: bytes | None
    file: str | None = None


@dataclass(frozen=True)
class Rendered:
    """A rendered image.

    Attributes:
        path: its name.
        perturbation: what it got.
        data: a lossless file of its 256 x 256 pixels.
        sha256: of that file.
        pixel_sha256: of the RGB samples, row by row, which no version of a lossless encoder changes.
        source_sha256: of the file that it was made of.
    """

    path: str
    perturbation: Perturbation
    data: bytes
    sha256: str
    pixel_sha256: str
    source_sha256: str


def render(data: bytes, path: str | None, seed: int) -> Rendered:
    """Render one image; of its file only the rows down to the crop are decoded where that is possible.

    Raises:
        ImageError: see `images.open_image`.
    """
    source_sha256 = hashlib.sha256(data).hexdigest()
    path = path if path is not None else f"sha256:{source_sha256}"

    def rows(width: int, height: int) -> int:
        crop = Perturbation.drawn(seed, path, width, height)
        return crop.top + crop.side

    image, height = upper_rows({"bytes": data, "path": path}, rows)
    perturbation = Perturbation.drawn(seed, path, image.width, height)
    image = rendered(image, perturbation)
    file = io.BytesIO()
    image.save(file, FORMAT, **LOSSLESS)
    return Rendered(
        path=path,
        perturbation=perturbation,
        data=file.getvalue(),
        sha256=hashlib.sha256(file.getbuffer()).hexdigest(),
        pixel_sha256=hashlib.sha256(image.tobytes()).hexdigest(),
        source_sha256=source_sha256,
    )


def render_all(tasks: Iterable[Task], seed: int, num_workers: int) -> Generator[tuple[Task, Rendered | ImageError]]:
    """Render images in worker processes; each with its result, in the order of the tasks.

    Few are on their way at a time, so memory does not depend on how many there are. The workers end with the
    iterator (`contextlib.closing`), and when this process ends, however that comes about.

    Args:
        tasks: are taken as they are needed.
        seed: see `Perturbation.drawn`.
        num_workers: processes, 1 or more.

    Raises:
        BuildError: a worker ended, and at which image.
    """
    workers: list[_Worker] = []
    idle: SimpleQueue[_Worker] = SimpleQueue()
    pool = ThreadPoolExecutor(num_workers)

    def one(task: Task) -> Rendered | ImageError:
        worker = idle.get()
        try:
            return worker.rendered(task)
        finally:
            idle.put(worker)

    waiting: deque[tuple[Task, Future[Rendered | ImageError]]] = deque()
    size = 0
    try:
        # By this thread: where the system tells a process of its parent's end, it means the thread that started it.
        for _ in range(num_workers):
            workers.append(_Worker(seed))
            idle.put(workers[-1])
        for task in tasks:
            waiting.append((task, pool.submit(one, task)))
            size += len(task.data or b"")
            while len(waiting) > _AHEAD * num_workers or (size > _AHEAD_BYTES and len(waiting) > 1):
                done, future = waiting.popleft()
                size -= len(done.data or b"")
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    finally:  # Ctrl-C as well
        for worker in workers:
            worker.process.kill()
        pool.shutdown(cancel_futures=True)
        for worker in workers:
            worker.close()


class _Worker:
    """A process that renders one image after the other."""

    def __init__(self, seed: int) -> None:
        pipe = subprocess.PIPE
        # In a session of its own, Ctrl-C does not reach it: it is this process that ends it.
        self.process = subprocess.Popen(
            **child.started_by(__name__, _work.__name__, {"seed": seed}),
            stdin=pipe,
            stdout=pipe,
            start_new_session=True,
        )

    def rendered(self, task: Task) -> Rendered | ImageError:
        reader, writer = self.process.stdout, self.process.stdin
        size = None if task.data is None else len(task.data)
        line = b""
        try:
            if reader and writer:
                writer.write(json.dumps({"path": task.path, "size": size, "file": task.file}).encode() + b"\n")
                writer.write(task.data or b"")
                writer.flush()
                line = reader.readline()
            found = json.loads(line)
            length = found.pop("size", 0)
            data = reader.read(length) if reader and length else b""
            if len(data) < length:
                raise ValueError(f"expected {length} bytes, got {len(data)}")
        except (OSError, ValueError) as error:
            raise BuildError(
                f"{task.path or task.file}: a worker process ended while it rendered this image (status "
                f"{self.process.wait()}); nothing was written. If memory ran out, use fewer workers "
                "(num_workers, --num-workers); if it is this image every time, leave it out of the dataset"
            ) from error
        if "reason" in found:
            return ImageError(found["reason"], found["message"])
        return Rendered(**{**found, "perturbation": Perturbation(**found["perturbation"]), "data": data})

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError), self.process:  # something was still to be written
            pass


def _work(question: Mapping[str, Any]) -> None:
    """The other process: renders until nobody asks any more."""
    child.begin(question)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reader, writer = sys.stdin.buffer, sys.stdout.buffer
    while line := reader.readline():
        task = json.loads(line)
        data = b""
        try:
            if task["size"] is None and not task["file"]:
                raise ImageError("missing", f"{task['path'] or 'image'}: found neither bytes nor a path")
            source = read_bytes(task["file"]) if task["size"] is None else reader.read(task["size"])
            result = render(source, task["path"], question["seed"])
            data, facts = result.data, {**asdict(result), "size": len(result.data)}
            del facts["data"]
        except ImageError as error:
            facts = {"reason": error.reason, "message": error.message}
        writer.write(json.dumps(facts).encode() + b"\n" + data)
        writer.flush()
    os._exit(0)
