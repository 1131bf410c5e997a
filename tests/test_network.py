"""The guard of the tests themselves: nothing reaches another machine."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest


def test_only_loopback_here() -> None:
    with pytest.raises(OSError, match="tests may not connect"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()


def test_only_loopback_in_what_tests_start() -> None:
    code = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "tests may not connect" in done.stderr
