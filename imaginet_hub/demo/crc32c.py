"""CRC-32C, the checksum that Google Cloud Storage sends along (RFC 3720, appendix B.4)."""

from __future__ import annotations

import numpy as np

__all__ = ["crc32c"]

_LANES = 1024
_BITS = np.uint32(1) << np.arange(32, dtype=np.uint32)


def _table() -> np.ndarray:
    table: np.ndarray = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = table >> 1 ^ (table & 1) * np.uint32(0x82F63B78)  # Castagnoli's polynomial, reversed
    return table


_TABLE = _table()


def crc32c(data: bytes) -> int:
    """The checksum of these bytes. One by one they would take minutes, so 1,024 stretches go side by side.

    A checksum is linear: bytes that follow move it by a matrix (held as what becomes of each of its 32 bits), which is
    how the checksums of neighbours are joined. Zeros in front of the data change nothing.
    """
    log = max(0, (-(-len(data) // _LANES) - 1).bit_length())  # of the bytes in a stretch
    stretches = np.zeros(_LANES << log, np.uint8)
    stretches[len(stretches) - len(data) :] = np.frombuffer(data, np.uint8)
    states = np.zeros(_LANES, np.uint32)
    for column in np.ascontiguousarray(stretches.reshape(_LANES, -1).T):
        states = _TABLE[(states ^ column) & 0xFF] ^ states >> 8
    past_one = _TABLE[_BITS & 0xFF] ^ _BITS >> 8
    past = past_one
    for _ in range(log):
        past = _moved(past, past)
    while len(states) > 1:
        states, past = _moved(states[::2], past) ^ states[1::2], _moved(past, past)
    begin = np.full(1, 0xFFFFFFFF, np.uint32)  # what the register holds before the first byte
    for bit in range(len(data).bit_length()):
        begin = _moved(begin, past_one) if len(data) >> bit & 1 else begin
        past_one = _moved(past_one, past_one)
    return int(states[0] ^ begin[0]) ^ 0xFFFFFFFF


def _moved(states: np.ndarray, past: np.ndarray) -> np.ndarray:
    bits = (states[:, None] & _BITS) != 0
    moved: np.ndarray = np.bitwise_xor.reduce(np.where(bits, past, np.uint32(0)), axis=1)
    return moved
