"""Inflating gzip data from places in their middle.

gzip knows no places to begin at but its start. Its blocks are such places for whoever has the 32 KB before them, yet
Python's zlib does not tell where they begin. So every now and then a few likely places are tried: the inflater is
copied, the bytes up to the place are followed by an empty last block, and if the stream ends there, a block begins
there.
(RFC 1951, RFC 1952.)
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "BLOCK",
    "PIECE",
    "SPACING",
    "START",
    "WINDOW",
    "Broken",
    "Compressed",
    "Point",
    "WrongChecksum",
    "inflated",
]

#: Bytes of output between two points: what a killed run repeats at most, against 43 KB of state for each.
SPACING = 32 * 1024**2
#: What is inflated at a time, and at most what comes of it at a time.
PIECE, BLOCK = 256 * 1024, 1024**2
#: Where no block is found within so much, none is looked for until the next point is due.
_SEARCHED = 2 * 1024**2
WINDOW = 32 * 1024
#: Images hardly compress. What has expanded so much (half a minute's work), and so many times, is a bomb.
_BOMB_RATIO, _BOMB_BYTES = 100, 8 * 1024**3
_MAX_HEADER = 1024**2
_RAW = -zlib.MAX_WBITS


class Broken(Exception):
    """The bytes are not a gzip-compressed tar archive, or no longer."""


class WrongChecksum(Broken):
    """Some byte before is damaged, nobody knows which."""


@dataclass(frozen=True, slots=True)
class Point:
    """Where inflating can begin.

    Attributes:
        at: byte of the compressed file.
        bit: of that byte.
        out: byte of the tar archive.
        crc, length: CRC-32 and number of bytes of the gzip member up to there; a member's header comes if it has none.
        window: the bytes before, up to 32 KB.
    """

    at: int
    bit: int
    out: int
    crc: int
    length: int
    window: bytes


START = Point(0, 0, 0, 0, 0, b"")


class Compressed:
    """Pieces, of which some bytes may be given back."""

    def __init__(self, pieces: Iterator[bytes], position: int) -> None:
        self._pieces = pieces
        self._piece = b""
        self._at = 0
        self._after = position  # the piece

    @property
    def position(self) -> int:
        """Of what comes next."""
        return self._after - len(self._piece) + self._at

    def piece(self) -> bytes:
        """Some bytes; none at the end."""
        if self._at == len(self._piece):
            self._piece, self._at = next(self._pieces, b""), 0
            self._after += len(self._piece)
        at, self._at = self._at, len(self._piece)
        return self._piece[at:]

    def back(self, count: int) -> None:
        """Give back the end of what came last."""
        self._at -= count

    def exactly(self, count: int) -> bytes:
        data = self._piece[self._at : self._at + count]
        self._at += len(data)
        while len(data) < count:
            piece = self.piece()
            if not piece:
                raise Broken("the end of the file in the middle of gzip data")
            self.back(max(0, len(data) + len(piece) - count))
            data = (data + piece)[:count]
        return data

    def text(self) -> None:
        """Pass what ends with a zero."""
        passed = 0
        while passed <= _MAX_HEADER:
            piece = self.piece()
            if not piece:
                raise Broken("the end of the file in the middle of gzip data")
            end = piece.find(0)
            if end >= 0:
                return self.back(len(piece) - end - 1)
            passed += len(piece)
        raise Broken(f"a gzip header of more than {_MAX_HEADER:,} bytes")

    def header(self) -> bool:
        """Read a gzip member's header; False if the file ends instead. Zeros may come before its end."""
        piece = self.piece()
        while piece and not piece.strip(b"\0"):
            piece = self.piece()
        if not piece:
            return False
        self.back(len(piece))
        fixed = self.exactly(10)
        if fixed[:3] != b"\x1f\x8b\x08":
            raise Broken(f"bytes that start with {fixed[:3].hex(' ')} where gzip data should begin")
        flags = fixed[3]
        if flags & 4:
            self.exactly(int.from_bytes(self.exactly(2), "little"))
        for _ in range((flags >> 3 & 1) + (flags >> 4 & 1)):  # its name, a comment
            self.text()
        if flags & 2:
            self.exactly(2)
        return True


def inflated(source: Compressed, point: Point, last: int) -> Iterator[tuple[bytes, Point | None]]:
    """What a compressed file holds from a point on, with further points as they come.

    Args:
        last: the place in the output of the last point that is known; the next is looked for `SPACING` after it.

    Raises:
        Broken: it is no gzip data, damaged or truncated.
    """
    out, crc, length, tail = point.out, point.crc, point.length, point.window
    searched = 0
    while True:
        new: Point | None = None
        if point.length:
            inflate, data = _resumed(tail, point.bit, source.piece())
            point = START
        else:
            at, crc, length, tail = source.position, 0, 0, b""
            if not source.header():
                if out == 0:
                    raise Broken("an empty file")
                return
            if out - last >= SPACING:
                new, last = Point(at, 0, out, 0, 0, b""), out
            inflate, data = zlib.decompressobj(_RAW), source.piece()
        while not inflate.eof:
            if not data:
                raise Broken("the end of the file in the middle of gzip data")
            if length and out - last >= SPACING:
                found = _boundary(inflate, tail, data)
                if found is not None:
                    bit, before = found
                    place, bit = divmod(8 * (source.position - len(data)) + bit, 8)
                    window = (tail + before)[-WINDOW:]
                    done = length + len(before)
                    new = Point(place, bit, out + len(before), zlib.crc32(before, crc), done, window)
                searched += len(data)
                if found is not None or searched > _SEARCHED:
                    last, searched = out, 0
            full = True
            while (data or full) and not inflate.eof:
                try:
                    block = inflate.decompress(data, BLOCK)
                except zlib.error as error:
                    raise Broken(f"gzip data that cannot be inflated ({error})") from error
                data, full = inflate.unconsumed_tail, len(block) == BLOCK
                out, length, crc = out + len(block), length + len(block), zlib.crc32(block, crc)
                tail = block[-WINDOW:] if len(block) >= WINDOW else (tail + block)[-WINDOW:]
                if out > _BOMB_RATIO * source.position + _BOMB_BYTES:
                    raise Broken(f"{source.position:,} bytes that expand to {out:,} and more, as a bomb does")
                if block:
                    yield block, new
                    new = None
            if not inflate.eof:
                data = source.piece()
        source.back(len(inflate.unused_data))
        trailer = source.exactly(8)
        said = int.from_bytes(trailer[:4], "little"), int.from_bytes(trailer[4:], "little")
        if said != (crc, length & 0xFFFFFFFF):
            got = f"CRC32 {crc:08x} of {length:,} bytes"
            raise WrongChecksum(f"{got} where gzip says {said[0]:08x} of {said[1]:,} (modulo 2^32)")


def _bits(*fields: tuple[int, int]) -> tuple[int, int]:
    """Values and their widths, put together as deflate does: the first in the lowest bits."""
    value = width = 0
    for field, bits in fields:
        value |= field << width
        width += bits
    return value, width


#: An empty block with the fixed code: not the last, type 1, its end.
_FIXED = _bits((0, 1), (1, 2), (0, 7))
#: The same as the last block.
_LAST = _bits((1, 1), (1, 2), (0, 7))
#: An empty block with a code of its own, of 97 bits: code lengths 18, 0 and 1 are written as 0, 01 and 11 (from the
#: lowest bit: 0, 1 0, 1 1), literal 0 and the end have one bit each, the 255 between them and the distance none.
_DYNAMIC = _bits(
    (0, 1),
    (2, 2),
    (0, 5),
    (0, 5),
    (15, 4),
    *((length, 3) for length in (0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0)),
    (0b11, 2),
    (0, 1),
    (138 - 11, 7),
    (0, 1),
    (117 - 11, 7),
    (0b11, 2),
    (0b01, 2),
    (1, 1),
)


def _resumed(window: bytes, bit: int, data: bytes) -> tuple[Any, bytes]:
    """An inflater for data that begins at a bit of its first byte, and what to feed it with.

    Python's zlib begins at whole bytes only. Empty blocks fill the bits before: 97 bits make one, 10 make two.
    """
    inflate = zlib.decompressobj(_RAW, zdict=window) if window else zlib.decompressobj(_RAW)
    if bit == 0 or not data:
        return inflate, data
    filler, width = _bits(*([_DYNAMIC] if bit % 2 else []), *[_FIXED] * (bit // 2))
    filler |= data[0] >> bit << width
    return inflate, filler.to_bytes((width - bit) // 8 + 1, "little") + data[1:]


def _boundary(inflate: Any, tail: bytes, data: bytes) -> tuple[int, bytes] | None:
    """Where a block begins in the data that an inflater gets next.

    Args:
        inflate: stays as it is.
        tail: the last 32 KB that came of it.

    Returns:
        The bit, and what comes of the bits before it; None if no place was found.
    """
    data = data[:PIECE]
    before = io.BytesIO()
    rolling, fed = inflate.copy(), 0
    try:
        for place in _candidates(data):
            byte, bit = divmod(place, 8)
            before.write(rolling.decompress(data[fed:byte], 4 * BLOCK))
            fed = byte
            if rolling.unconsumed_tail or before.tell() > 4 * BLOCK:
                return None  # more than is worth searching
            trial = rolling.copy()
            try:
                last = trial.decompress((data[byte] & (1 << bit) - 1 | _LAST[0] << bit).to_bytes(3, "little"))
            except zlib.error:
                continue
            if not trial.eof:
                continue
            # Proof: from there on it inflates as it does without a stop.
            window = (tail + before.getvalue() + last)[-WINDOW:]
            resumed, rest = _resumed(window, bit, data[byte:])
            found = last + resumed.decompress(rest, BLOCK)
            true = rolling.copy().decompress(data[byte:], BLOCK)
            common = min(len(found), len(true))
            if common > len(last) and found[:common] == true[:common]:
                return place, before.getvalue() + last
    except zlib.error:  # damaged data: the one who reads it will say so
        return None
    return None


def _candidates(data: bytes) -> list[int]:
    """Bits at which a block looks like beginning that is not the last one: stored, or with a code of its own. Pure."""
    octets = np.frombuffer(data, np.uint8)
    bits = np.unpackbits(octets, bitorder="little")
    count = len(bits) - 80
    if count <= 0:
        return []
    # A code of its own: type 2, at most 286 and 30 symbols, and a code for the codes that uses up its bits exactly.
    threes = bits[:-2] | bits[1:-1] << 1 | bits[2:] << 2
    places = np.flatnonzero(threes[:count] == 4)
    for field in (3, 8):
        high = (
            bits[places + field + 1] & bits[places + field + 2] & bits[places + field + 3] & bits[places + field + 4]
        )
        places = places[high == 0]
    codes = threes[places + 13] + 8 * bits[places + 16] + 4
    shares = np.array([0, 64, 32, 16, 8, 4, 2, 1], np.uint8)[threes]
    used = np.zeros(len(places), np.int16)
    for number in range(19):
        used += np.where(number < codes, shares[places + 17 + 3 * number], 0)
    found = set(places[used == 128].tolist())
    # Stored: its length twice, once inverted, at whole bytes; zeros from the header to there.
    inverted = (octets[:-3] ^ octets[2:-1] == 255) & (octets[1:-2] ^ octets[3:] == 255)
    for byte in np.flatnonzero(inverted)[:1000].tolist():
        found |= {place for place in range(max(0, 8 * byte - 10), 8 * byte - 2) if not bits[place : 8 * byte].any()}
    return sorted(place for place in found if place < count)
