"""Jobs in threads: taking turns at memory, giving up what fails again and again, stopping when told."""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from imaginet_hub.data.manifest import Record
from imaginet_hub.data.memory import Memory
from imaginet_hub.data.readers.http import Cancelled, Http
from imaginet_hub.errors import FetchError

__all__ = ["HOSTILE", "Delivery", "Fatal", "Job", "Workers", "unforeseen"]

#: A route that fails so often in a row, for reasons that are not the file's own, is given up for this run.
_ENOUGH = 5
_SHARED_REASONS = ("network", "access", "quota", "status", "format", "range")
#: What all threads together may hold of archive members.
_HELD_BYTES = 128 * 1024**2
#: What parsers run into with bytes that nobody foresaw.
HOSTILE = (
    OSError,
    ValueError,
    ArithmeticError,
    LookupError,
    EOFError,
    MemoryError,
    RecursionError,
    TypeError,
    struct.error,
    zlib.error,
)

Delivery = tuple[str, bytes | FetchError]


@dataclass(frozen=True)
class Job:
    """Work for one thread: which files it will give, how, and what that holds in memory (where it may be much)."""

    paths: tuple[str, ...]
    run: Callable[..., Iterator[Delivery]]
    args: tuple[Any, ...] = ()
    held_bytes: int = 0


class Fatal(FetchError):
    """Nothing else can work either: the disk is full, or ROOT is gone."""


class Workers:
    """Threads for one fetch.

    Args:
        http: is told to stop when a thread fails or the user interrupts.
        count: threads at a time.
    """

    def __init__(self, http: Http, count: int) -> None:
        self._http = http
        self._count = count
        self.memory = Memory(_HELD_BYTES)

    def run(
        self,
        jobs: Sequence[Job],
        records: Mapping[str, Record],
        take: Callable[[Record, bytes], None],
        done: Callable[[str, bytes | FetchError], None],
    ) -> None:
        """Run jobs in threads. `take` verifies and keeps; `done` is told of every file, one at a time."""
        queue = iter(jobs)
        taking, telling = threading.Lock(), threading.Lock()
        breaker = _Breaker()

        def deliver(path: str, result: bytes | FetchError, *, counts: bool = True) -> None:
            if isinstance(result, bytes):
                try:
                    take(records[path], result)
                except Fatal:
                    raise
                except FetchError as error:
                    result = error
            if isinstance(result, FetchError):
                # It is kept until the run ends; what it could tell of frames would keep the bad bytes, too.
                result.__traceback__ = result.__cause__ = result.__context__ = None
            with telling:
                if counts:
                    breaker.saw(result)
                done(path, result)

        def worker() -> None:
            while True:
                self._http.check()
                with taking:
                    job = next(queue, None)
                if job is None:
                    return
                untold = dict.fromkeys(job.paths)
                error = breaker.tripped
                if error is None:
                    try:
                        with self.memory.held(job.held_bytes, self._http.check):
                            for path, result in _results(job, records):
                                untold.pop(path, None)
                                deliver(path, result)
                                self._http.check()
                    except Fatal:
                        raise
                    except FetchError as failed:
                        error = failed
                for number, path in enumerate(untold):
                    if error is None:
                        source = records[path].source
                        error = FetchError("missing", source, path, "the file in the archive", "none", "see --from")
                    deliver(path, error, counts=number == 0)  # one failure, however many files it was to bring

        self._all([worker] * min(self._count, len(jobs)))

    def each(self, tasks: Sequence[Callable[[], None]]) -> None:
        """Run tasks in threads; the first that raises stops the fetch."""
        self._all(tasks)

    def _all(self, tasks: Sequence[Callable[[], None]]) -> None:
        pool = ThreadPoolExecutor(self._count)
        try:
            futures = [pool.submit(task) for task in tasks]
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        except BaseException as error:
            self._http.cancel()
            pool.shutdown(cancel_futures=True)
            if isinstance(error, Cancelled):
                raise KeyboardInterrupt from error
            raise
        pool.shutdown()


class _Breaker:
    """Gives a route up when it fails again and again for reasons that are not the file's own."""

    def __init__(self) -> None:
        self.tripped: FetchError | None = None
        self._row = 0

    def saw(self, result: bytes | FetchError) -> None:
        if isinstance(result, FetchError) and result.reason in _SHARED_REASONS:
            self._row += 1
            if self._row >= _ENOUGH and self.tripped is None:
                got = f"{result.got}, {self._row} times in a row, so that no more was asked for"
                self.tripped = FetchError(
                    result.reason, result.source, result.address, result.expected, got, result.remedy
                )
        else:
            self._row = 0


def _results(job: Job, records: Mapping[str, Record]) -> Iterator[Delivery]:
    """What a job gives; bytes that nobody foresaw are the file's fault, not the run's."""
    try:
        yield from job.run(*job.args)
    except HOSTILE as failed:
        path = job.paths[0]
        raise unforeseen(failed, records[path].source, path) from failed


def unforeseen(failed: BaseException, source: str, address: str) -> FetchError:
    """What one of `HOSTILE` means to the files that were to come."""
    got = f"{type(failed).__name__} ({failed})"
    return FetchError("corrupt", source, address, "data that can be read", got, "see --from")
