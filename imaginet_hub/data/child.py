"""A process of its own, to look at what nobody vouches for: isolated, within limits, gone when its parent is gone."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["begin", "limit", "started_by"]

#: Isolated from the user's environment and folder; it finds this package where its parent found it.
_PROGRAM = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "getattr(importlib.import_module(sys.argv[2]), sys.argv[3])(json.loads(sys.argv[4]))"
)
#: What a Python may need to start and to find its libraries; no secrets.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "TEMP")


def started_by(module: str, function: str, question: Mapping[str, Any]) -> dict[str, Any]:
    """The `args` and `env` of a Popen whose process calls `module.function(question)`, the question being JSON."""
    paths = [os.path.abspath(path) for path in sys.path]  # noqa: PTH100 - an archive may be among them
    question = {**question, "parent": os.getpid()}
    return {
        "args": [sys.executable, "-I", "-c", _PROGRAM, json.dumps(paths), module, function, json.dumps(question)],
        "env": {key: os.environ[key] for key in _ENVIRONMENT if key in os.environ},
    }


def begin(question: Mapping[str, Any]) -> None:
    """The first call in such a process: it ends by Ctrl-C without a word, and when its parent is killed.

    Only Linux tells of the latter; elsewhere a limit of time has to be the end.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != question["parent"]:
            os._exit(1)


def limit(**most: float) -> None:
    """Limits this process, e.g. `limit(AS=bytes, CPU=seconds)`: the names are those of `resource.RLIMIT_*`.

    What the system does not know is left out: Windows has no such limits, macOS none of address space.
    """
    try:
        import resource
    except ImportError:
        return
    for name, value in most.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        soft = int(value) if hard == resource.RLIM_INFINITY else min(int(value), hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (soft, hard))
