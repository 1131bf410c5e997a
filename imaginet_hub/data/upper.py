"""The upper rows of a picture, without decoding those below: a file becomes that of a picture which ends early.

A decoder works from the top down and stops at the height that the header states, so a smaller height in the header is
all it takes; the rows that are left come out as they would of the whole file. A file's damage must not hide in the
rows that are no longer looked at. So this is done only where the whole file could be decoded:

- A JPEG of one scan whose data hold no marker but restarts until the end of the image. libjpeg then has all it needs
  and fails at nothing; it never has failed at wrong samples.
- A PNG, not interlaced and of one picture, whose chunks are complete and have the checksums that they state. Decoding
  the whole does not look at these checksums: what it finds and they do not is a file that was written wrong.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Shortened", "Wanted", "shortened"]

#: (width, height) of a picture -> how many rows are wanted, counted from the top.
Wanted = Callable[[int, int], int]

# A row of subsampled colours also draws on the next one, and so do its neighbours.
_JPEG_MARGIN = 16
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")
_JPEG_SEGMENTS = 100
_BASELINE = (0xC0, 0xC1)
#: What makes a PNG more than one picture, or another one.
_PNG_MORE = (b"IHDR", b"acTL", b"fcTL", b"fdAT")


class Shortened(NamedTuple):
    """A file of the upper rows.

    Attributes:
        data: its bytes.
        size: (width, height) of the rows that are left, which are the wanted ones or a few more.
        whole_height: of the picture that it is a part of.
    """

    data: bytes
    size: tuple[int, int]
    whole_height: int


def shortened(data: bytes, wanted: Wanted, max_pixels: int) -> Shortened | None:
    """A file of the same picture that ends below the wanted rows.

    Args:
        data: a complete file.
        wanted: is asked for the number of rows once the size is known.
        max_pixels: of a picture that is larger the whole is to be looked at.

    Returns:
        None where that is not possible, not safe or not worth it.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data, wanted, max_pixels)
        if data.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"):
            return _png(data, wanted, max_pixels)
    except (IndexError, struct.error):  # cut off
        pass
    return None


def _jpeg(data: bytes, wanted: Wanted, max_pixels: int) -> Shortened | None:
    at, frame = 2, 0
    for _ in range(_JPEG_SEGMENTS):
        marker = data[at + 1]
        if data[at] != 0xFF or (0xC0 <= marker <= 0xCF and marker not in (*_BASELINE, 0xC4)):
            return None
        if marker == 0xDA:
            break
        if marker in _BASELINE:
            if frame:
                return None
            frame = at
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    else:
        return None
    if not frame or data[at + 4] != data[frame + 9]:  # components in the scan and in the picture
        return None
    height, width = struct.unpack_from(">HH", data, frame + 5)
    rows = wanted(width, height) + _JPEG_MARGIN
    if rows >= height or width * height > max_pixels:
        return None
    end = _JPEG_MARKER.search(data, at + 2 + struct.unpack_from(">H", data, at + 2)[0])
    if end is None or data[end.start() + 1] != 0xD9:
        return None
    return Shortened(data[: frame + 5] + struct.pack(">H", rows) + data[frame + 7 :], (width, rows), height)


def _png(data: bytes, wanted: Wanted, max_pixels: int) -> Shortened | None:
    width, height = struct.unpack_from(">LL", data, 16)
    rows = wanted(width, height)
    if rows >= height or width * height > max_pixels or data[28] or not _whole_png(data):
        return None
    header = data[12:20] + struct.pack(">L", rows) + data[24:29]
    data = data[:12] + header + struct.pack(">L", zlib.crc32(header)) + data[33:]
    return Shortened(data, (width, rows), height)


def _whole_png(data: bytes) -> bool:
    view, at, kind = memoryview(data), 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">L4s", data, at)
        if at > 8 and kind in _PNG_MORE:
            return False
        if kind in (b"IHDR", b"IDAT", b"IEND"):
            (stated,) = struct.unpack_from(">L", data, at + 8 + length)
            if zlib.crc32(view[at + 4 : at + 8 + length]) != stated:
                return False
        at += 12 + length
    return True
