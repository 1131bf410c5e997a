"""Threads take turns at memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

__all__ = ["Memory"]


class Memory:
    """Lets as many threads hold large files as fit together, and at least one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def held(self, count: int, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Wait until there is room; `check` may raise meanwhile. Nothing has to wait for no room."""
        if count == 0:
            yield
            return
        with self._changed:
            while self._held > 0 and self._held + count > self._most:
                check()
                self._changed.wait(0.1)
            self._held += count
        try:
            yield
        finally:
            with self._changed:
                self._held -= count
                self._changed.notify_all()
