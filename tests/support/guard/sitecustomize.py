"""Loaded by every Python that the tests start (it is on PYTHONPATH), and by the tests themselves: loopback only."""

import ipaddress
import socket
from typing import Any

_connect = socket.socket.connect


def _guarded(self: socket.socket, address: Any) -> None:
    if self.family in (socket.AF_INET, socket.AF_INET6):
        host = str(address[0])
        if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
            raise OSError(f"tests may not connect to {address}")
    _connect(self, address)


socket.socket.connect = _guarded  # type: ignore[method-assign]
