"""What it would take to look at an image file, told by its bytes alone, before parsers and decoders are let at it."""

from __future__ import annotations

import contextlib
import re
import struct
from itertools import islice

from PIL import Image

__all__ = ["MAX_FRAMES", "frames", "gif_frames", "ordinary", "scans", "still_ordinary", "tiff_frames", "webp_pixels"]

#: Pictures in one file. Only the first is used, and photographs have one.
MAX_FRAMES = 256
# What is ordinary: decoding takes about a second at most.
_ORDINARY_PIXELS = 25_000_000
_ORDINARY_WEBP_PIXELS = 8_000_000  # which take as much memory as the others' most
_ORDINARY_SCANNED_PIXELS = 13 * _ORDINARY_PIXELS
_ORDINARY_JPEG_BYTES = 64 * 1024**2
_ORDINARY_JPEG_SEGMENTS = 100
_ORDINARY_PNG_CHUNKS = 20_000
_ORDINARY_PNG_EXTRAS = 100  # each may inflate to a megabyte
_ORDINARY_PARSED_BYTES = 1024**2  # of formats that Pillow parses in Python, entry by entry
_ORDINARY_TIFF_VALUES = 20_000
_SCAN, _FRAME = re.compile(b"\xff[\xda]"), re.compile(b"fcTL")
_ORDINARY_TIFF = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")


def ordinary(data: bytes) -> bool:
    """Whether a file's own header promises no more work than a photograph's. Pure; takes no time."""
    try:
        if data.startswith(b"\xff\xd8"):
            return _ordinary_jpeg(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _ordinary_png(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _ordinary_webp(data)
        if data.startswith(b"BM"):
            return data[14] == 12 or data[30:34] in (b"\0\0\0\0", b"\3\0\0\0")  # no run lengths
        if data.startswith((b"II*\0", b"MM\0*")):
            return _ordinary_tiff(data)
        if data.startswith((b"GIF8", b"II", b"MM")):
            return len(data) <= _ORDINARY_PARSED_BYTES
    except (IndexError, struct.error):  # too short to promise anything, or to take any time
        return len(data) <= _ORDINARY_PARSED_BYTES
    # AVIF says its size in more than one place. What is no image at all is found out at once.
    return data[4:8] != b"ftyp"


def _ordinary_jpeg(data: bytes) -> bool:
    at, pixels, progressive = 2, 0, False
    for _ in range(_ORDINARY_JPEG_SEGMENTS):
        if data[at] != 0xFF:
            return False
        marker = data[at + 1]
        if marker == 0xDA:
            scans = data.count(b"\xff\xda") if progressive or pixels > _ORDINARY_PIXELS // 13 else 1
            return (
                pixels <= _ORDINARY_PIXELS
                and pixels * scans <= _ORDINARY_SCANNED_PIXELS
                and len(data) <= _ORDINARY_JPEG_BYTES
            )
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if pixels or marker > 0xC2:  # arithmetic, lossless, hierarchical
                return False
            height, width = struct.unpack_from(">HH", data, at + 5)
            pixels, progressive = width * height, marker == 0xC2
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return False


def _ordinary_png(data: bytes) -> bool:
    width, height = struct.unpack_from(">LL", data, 16)
    if width * height > _ORDINARY_PIXELS:
        return False
    at, extras, end = 8, 0, len(data) - 12
    for _ in range(_ORDINARY_PNG_CHUNKS):
        if at > end:
            return True
        length, kind = struct.unpack_from(">L4s", data, at)
        extras += kind != b"IDAT"
        if extras > _ORDINARY_PNG_EXTRAS:
            return False
        at += 12 + length
    return False


def _ordinary_tiff(data: bytes) -> bool:
    order = "<" if data[:2] == b"II" else ">"
    (at,) = struct.unpack_from(order + "L", data, 4)
    (count,) = struct.unpack_from(order + "H", data, at)
    kinds = [struct.unpack_from(order + "HL", data, at + 4 + 12 * number) for number in range(count)]
    # Text and profiles are bytes (types 1, 2, 7); of numbers a picture has at most two a strip.
    return all(kind in (1, 2, 7) or values <= _ORDINARY_TIFF_VALUES for kind, values in kinds)


def _ordinary_webp(data: bytes) -> bool:
    animated = data[12:16] == b"VP8X" and bool(data[20] & 2)
    return not animated and webp_pixels(data) <= _ORDINARY_WEBP_PIXELS


def webp_pixels(data: bytes) -> int:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (size & 0x3FFF for size in struct.unpack_from("<HH", data, 26))
    return int(width * height)


def still_ordinary(image: Image.Image) -> bool:
    """The same question, once Pillow has read the header."""
    if image.width * image.height > _ORDINARY_PIXELS:
        return False
    if image.format == "TIFF":  # a tile may be larger than its picture
        return image.info.get("compression") in _ORDINARY_TIFF and 322 not in getattr(image, "tag_v2", {})
    return True


def frames(image: Image.Image, data: bytes) -> int:
    """Pictures in a file, counted without decoding any; where there are too many, some number that says so."""
    if image.format == "GIF":
        return gif_frames(data)
    if image.format == "TIFF":
        return tiff_frames(data)
    said = int(getattr(image, "n_frames", 1))
    return max(said, _counted(_FRAME, data, MAX_FRAMES)) if image.format == "PNG" else said


def scans(data: bytes, most: int) -> int:
    """Scans of a JPEG; where there are more than `most`, some number that says so."""
    return _counted(_SCAN, data, most)


def _counted(what: re.Pattern[bytes], data: bytes, most: int) -> int:
    """As `bytes.count`, which is slower, but no further than one beyond `most`."""
    return sum(1 for _ in islice(what.finditer(data), most + 1))


def gif_frames(data: bytes) -> int:
    """Image blocks of a GIF (its specification, sections 17 to 27)."""

    def after_table(at: int, flags: int) -> int:
        return at + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)

    found, end = 0, len(data)
    at = after_table(13, data[10])
    while at < end and found <= MAX_FRAMES:
        if data[at] == 0x2C and at + 9 < end:
            found += 1
            at = after_table(at + 10, data[at + 9]) + 1
        elif data[at] == 0x21:
            at += 2
        elif data[at] == 0x3B:
            break
        else:  # Pillow, too, looks for the next block
            at += 1
            continue
        while at < end and data[at]:
            at += data[at] + 1
        at += 1
    return found


def tiff_frames(data: bytes) -> int:
    """Directories of a TIFF, until their chain ends, leaves the file or runs in a circle."""
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in data[2:4]
    count_of, next_of, entry, first = ("Q", "Q", 20, 8) if big else ("H", "L", 12, 4)
    seen: set[int] = set()
    with contextlib.suppress(struct.error):
        (at,) = struct.unpack_from(order + next_of, data, first)
        while at and at not in seen and len(seen) <= MAX_FRAMES:
            (count,) = struct.unpack_from(order + count_of, data, at)
            seen.add(at)
            (at,) = struct.unpack_from(order + next_of, data, at + struct.calcsize(count_of) + count * entry)
    return len(seen)
