"""What an image's file says apart from its content: format, size, compression, metadata; and a few numbers of pixels.

Detectors learn such things where they tell the classes apart, so an audit asks how well each of them does. Files are
walked by their containers' headers: nothing is inflated, texts are looked at for their first bytes only, and what
Pillow would make of it is not asked (but for formats that are rare in such data: GIF, BMP, TIFF and AVIF, of which
`images.examine` tells format and size, and nothing is said of their metadata).

Containers: JPEG (ITU-T T.81, annex B), PNG (W3C, third edition), WebP (RFC 9649), EXIF (CIPA DC-008), C2PA (its
specification 2.1, "Embedding manifests").
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaginet_hub.data.images import examine
from imaginet_hub.errors import ImageError

__all__ = ["COLOURS", "METADATA", "THUMBNAIL", "Traits", "colours", "perceptual_hash", "thumbnail", "traits"]

#: What `Traits.metadata` may name. Blocks: `exif`, `icc` (a colour profile), `xmp`, `c2pa` (a signed provenance
#: manifest), `iptc` (Photoshop's resources), `comment` (JPEG's), `text` (PNG's). What they contain: `prompt` (a
#: generator's prompt or workflow), `software` (the name of a program), `camera` (its maker or model), `declared` (XMP
#: with IPTC's digital source type for generated media).
METADATA = ("exif", "icc", "xmp", "c2pa", "iptc", "comment", "text", "prompt", "software", "camera", "declared")

#: Numbers of an image's pixels, in the order of `colours`; levels are 0 to 255, shares 0 to 1.
COLOURS = (
    *("red_mean", "green_mean", "blue_mean", "red_std", "green_std", "blue_std"),
    *("brightness", "contrast", "saturation", "grey_share", "dark_share", "bright_share", "luma_entropy"),
)
#: Side of a thumbnail, pixels.
THUMBNAIL = 16

_MAX_BLOCKS = 100_000  # segments of a JPEG, chunks of a PNG or WebP: walking so many takes a tenth of a second
_MAX_TAGS = 500
_LOOKED_AT = 64 * 1024  # bytes of a text
_PIXELS = 2**16  # that the statistics of colours look at

_PROMPT_KEYS = (
    *(b"parameters", b"prompt", b"workflow", b"negative_prompt", b"dream", b"sd-metadata", b"generation_data"),
    *(b"invokeai_metadata", b"invokeai_graph", b"invokeai_workflow"),
)
_PROMPT = re.compile(rb'negative prompt:|\bsteps: ?\d+, |"prompt"|\bcfg scale: ?\d', re.IGNORECASE)
_GENERATED = b"rainedAlgorithmicMedia"  # also "compositeWithTrainedAlgorithmicMedia"
_MAKE, _MODEL, _SOFTWARE, _DESCRIPTION, _EXIF_IFD, _USER_COMMENT = 0x10F, 0x110, 0x131, 0x10E, 0x8769, 0x9286

_PNG_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}
_SUBSAMPLING = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0", (1, 2): "4:4:0", (4, 1): "4:1:1"}


@dataclass(frozen=True, slots=True)
class Traits:
    """What a file's headers say.

    Attributes:
        format: Pillow's name of it, such as "JPEG" (which a camera's multi-picture files are called, too).
        width, height: pixels, as stored.
        size: bytes of the file.
        mode: Pillow's name of how a pixel is stored: "L", "RGB", "P", "RGBA", ...; "" where nothing is said of it.
        alpha: whether there is an alpha channel, or a transparent colour.
        coding: "baseline", "progressive" or "other" (JPEG), "plain" or "interlaced" (PNG), "lossy", "lossless" or
            "animated" (WebP), else "".
        quantisation: a hash of a JPEG's quantisation tables; files of one encoder and setting have it in common.
        quality: 1 to 100, libjpeg's setting whose table for luminance is nearest to a JPEG's.
        subsampling: of a JPEG's chroma, such as "4:2:0"; "grey" where there is none.
        metadata: which of `METADATA` there are.
    """

    format: str
    width: int
    height: int
    size: int
    mode: str = ""
    alpha: bool = False
    coding: str = ""
    quantisation: str | None = None
    quality: int | None = None
    subsampling: str | None = None
    metadata: frozenset[str] = frozenset()

    @property
    def bits_per_pixel(self) -> float:
        """Bits of the whole file, metadata included, for each pixel."""
        return 8 * self.size / (self.width * self.height)

    @property
    def progressive(self) -> bool:
        """Whether the picture is stored coarse first: a progressive JPEG or an interlaced PNG."""
        return self.coding in ("progressive", "interlaced")


def traits(data: bytes, name: str = "image") -> Traits:
    """Read a file's headers, not its pixels: whether these decode is another question (`images.open_image`).

    Args:
        data: the bytes of an image file.
        name: what to call it in errors.

    Raises:
        ImageError: no image of an allowed format, or headers that end before they say the picture's size.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            found = _jpeg(data)
        elif data.startswith(b"\x89PNG\r\n\x1a\n"):
            found = _png(data)
        elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            found = _webp(data)
        else:
            facts = examine(data, name)
            return Traits(facts.format, facts.width, facts.height, facts.size)
    except (IndexError, struct.error):
        found = None
    if found is None or not found.width or not found.height:
        raise ImageError("unreadable", f"{name}: expected headers that say the picture's size, found none")
    return found


# --- JPEG ------------------------------------------------------------------------------------------------------------


def _zigzag() -> list[int]:
    """Places of an 8 x 8 table, row by row, in the order in which JPEG stores them."""
    places = [
        (row + column, row if (row + column) % 2 else -row, 8 * row + column) for row, column in np.ndindex(8, 8)
    ]
    return [place for _, _, place in sorted(places)]


# T.81, table K.1, for each quality as libjpeg scales it (jcparam.c), in JPEG's order.
_LUMINANCE = np.array(
    [
        *(16, 11, 10, 16, 24, 40, 51, 61),
        *(12, 12, 14, 19, 26, 58, 60, 55),
        *(14, 13, 16, 24, 40, 57, 69, 56),
        *(14, 17, 22, 29, 51, 87, 80, 62),
        *(18, 22, 37, 56, 68, 109, 103, 77),
        *(24, 35, 55, 64, 81, 104, 113, 92),
        *(49, 64, 78, 87, 103, 121, 120, 101),
        *(72, 92, 95, 98, 112, 100, 103, 99),
    ]
)[_zigzag()]
_SCALES = np.array([5000 // quality if quality < 50 else 200 - 2 * quality for quality in range(1, 101)])
_OF_QUALITY = np.clip((_LUMINANCE * _SCALES[:, None] + 50) // 100, 1, 255)


def _jpeg(data: bytes) -> Traits | None:
    tables: dict[int, tuple[int, ...]] = {}
    metadata: set[str] = set()
    frame: tuple[int, bytes] | None = None
    for marker, body in _segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = frame or (marker, body)
        elif marker == 0xDB:
            tables |= _quantisation(body)
        elif marker == 0xE1 and body.startswith(b"Exif\0"):
            metadata |= _exif(body[6:])
        elif marker == 0xE1 and body.startswith(b"http://ns.adobe.com/x"):
            metadata |= _xmp(body)
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0"):
            metadata.add("icc")
        elif marker == 0xEB and body.startswith(b"JP") and b"jumb" in body[:32] and b"c2pa" in body:
            metadata.add("c2pa")
        elif marker == 0xED and body.startswith(b"Photoshop 3.0\0"):
            metadata.add("iptc")
        elif marker == 0xFE:
            metadata |= {"comment"} | _prompt(body)
    if frame is None:
        return None
    marker, body = frame
    height, width, components = struct.unpack_from(">HHB", body, 1)
    factors = [(body[7 + 3 * k] >> 4 or 1, body[7 + 3 * k] & 15 or 1) for k in range(min(components, 4))]
    luminance = tables.get(body[8]) if components else None
    return Traits(
        format="JPEG",
        width=width,
        height=height,
        size=len(data),
        mode={1: "L", 3: "RGB", 4: "CMYK"}.get(components, ""),
        coding={0xC0: "baseline", 0xC2: "progressive"}.get(marker, "other"),
        quantisation=hashlib.sha256(repr(sorted(tables.items())).encode()).hexdigest()[:12] if tables else None,
        quality=None if luminance is None else int(np.abs(_OF_QUALITY - luminance).sum(axis=1).argmin()) + 1,
        subsampling=_subsampling(factors),
        metadata=frozenset(metadata),
    )


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each segment before the picture's own data; what is between segments is passed over."""
    at = 2
    for _ in range(_MAX_BLOCKS):
        at = data.find(b"\xff", at)
        if at < 0 or at + 4 > len(data):
            return
        marker = data[at + 1]
        if marker in (0xD9, 0xDA):
            return
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD8:  # these have no length
            at += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        yield marker, data[at + 4 : at + 2 + length]
        at += 2 + max(2, length)


def _quantisation(body: bytes) -> dict[int, tuple[int, ...]]:
    tables, at = {}, 0
    while at < len(body):
        kind = ">u2" if body[at] >> 4 else "u1"
        end = at + 1 + 64 * np.dtype(kind).itemsize
        if end > len(body):
            break
        tables[body[at] & 15] = tuple(np.frombuffer(body[at + 1 : end], kind).tolist())
        at = end
    return tables


def _subsampling(factors: list[tuple[int, int]]) -> str:
    if len(factors) < 3:
        return "grey"
    (across, down), chroma = factors[0], set(factors[1:3])
    if chroma == {(1, 1)} and (across, down) in _SUBSAMPLING:
        return _SUBSAMPLING[across, down]
    return "4:4:4" if chroma == {(across, down)} else " ".join(f"{h}x{v}" for h, v in factors)


# --- PNG and WebP ----------------------------------------------------------------------------------------------------


def _png(data: bytes) -> Traits | None:
    header: tuple[int, ...] = ()
    metadata: set[str] = set()
    transparent = False
    for kind, start, end in _chunks(data, 8, ">L4s", 4):
        if not header:
            if kind != b"IHDR":
                return None
            header = struct.unpack_from(">LLBBBBB", data, start)
        elif kind == b"tRNS":
            transparent = True
        elif kind == b"iCCP":
            metadata.add("icc")
        elif kind == b"caBX":
            metadata.add("c2pa")
        elif kind == b"eXIf":
            metadata |= _exif(data[start:end][:_LOOKED_AT])
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            metadata |= _png_text(kind, data[start : min(end, start + _LOOKED_AT)])
    if not header:
        return None
    width, height, depth, colour, _, _, interlaced = header
    mode = {(1, 0): "1", (16, 0): "I;16"}.get((depth, colour), _PNG_MODES.get(colour, ""))
    return Traits(
        format="PNG",
        width=width,
        height=height,
        size=len(data),
        mode=mode,
        alpha=transparent or colour in (4, 6),
        coding="interlaced" if interlaced else "plain",
        metadata=frozenset(metadata),
    )


def _png_text(kind: bytes, text: bytes) -> set[str]:
    key, _, rest = text[:256].partition(b"\0")
    key = key.lower()
    found = {"text"}
    if key == b"xml:com.adobe.xmp":
        return _xmp(text)
    if key.startswith(b"raw profile type "):  # ImageMagick's way of keeping what PNG has no chunk for
        inner = key.rpartition(b" ")[2].decode("latin-1")
        return {{"app1": "exif", "8bim": "iptc"}.get(inner, inner)} & set(METADATA) or found
    if key in _PROMPT_KEYS:
        found.add("prompt")
    if key == b"software":
        found.add("software")
    if key == b"comment":
        found.add("comment")
    compressed = kind == b"zTXt" or (kind == b"iTXt" and rest[:1] != b"\0")
    return found if compressed else found | _prompt(text)


def _webp(data: bytes) -> Traits | None:
    width = height = 0
    coding, alpha, metadata = "", False, set[str]()
    for kind, start, end in _chunks(data, 12, "<4sL", 0):
        if kind == b"VP8X":
            alpha, coding = bool(data[start] & 16), "animated" if data[start] & 2 else coding
            width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (start + 4, start + 7))
        elif kind == b"VP8L" and coding != "animated":
            (bits,) = struct.unpack_from("<L", data, start + 1)
            coding, alpha = "lossless", alpha or bool(bits >> 28 & 1)
            width, height = (width, height) if width else ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        elif kind == b"VP8 " and coding != "animated":
            coding = "lossy"
            sides = [side & 0x3FFF for side in struct.unpack_from("<HH", data, start + 6)]
            width, height = (width, height) if width else sides
        elif kind == b"ICCP":
            metadata.add("icc")
        elif kind == b"C2PA":
            metadata.add("c2pa")
        elif kind == b"EXIF":
            metadata |= _exif(data[start : min(end, start + _LOOKED_AT)].removeprefix(b"Exif\0\0"))
        elif kind == b"XMP ":
            metadata |= _xmp(data[start : min(end, start + _LOOKED_AT)])
    return Traits(
        format="WEBP",
        width=width,
        height=height,
        size=len(data),
        mode="RGBA" if alpha else "RGB",
        alpha=alpha,
        coding=coding,
        metadata=frozenset(metadata),
    )


def _chunks(data: bytes, at: int, head: str, tail: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk's content, as far as the file goes; RIFF's are padded to even lengths."""
    for _ in range(_MAX_BLOCKS):
        if at + 8 > len(data):
            return
        first, second = struct.unpack_from(head, data, at)
        kind, length = (first, second) if isinstance(first, bytes) else (second, first)
        yield kind, at + 8, min(at + 8 + length, len(data))
        at += 8 + length + (tail or length & 1)


# --- metadata --------------------------------------------------------------------------------------------------------


def _exif(body: bytes) -> set[str]:
    """What EXIF's first directory, and the one it points to, are known to say."""
    found = {"exif"}
    order = {b"II": "<", b"MM": ">"}.get(body[:2])
    if order is None or len(body) < 8:
        return found
    wanted = {_MAKE: "camera", _MODEL: "camera", _SOFTWARE: "software"}
    directories = [struct.unpack_from(order + "L", body, 4)[0]]
    for start in directories:
        if start + 2 > len(body):
            continue
        (count,) = struct.unpack_from(order + "H", body, start)
        for at in range(start + 2, start + 2 + 12 * min(count, _MAX_TAGS), 12):
            if at + 12 > len(body):
                break
            tag, _, length, value = struct.unpack_from(order + "HHLL", body, at)
            if tag == _EXIF_IFD and len(directories) == 1:
                directories.append(value)
            elif tag in wanted:
                found.add(wanted[tag])
            elif tag in (_DESCRIPTION, _USER_COMMENT):
                found |= _prompt(body[value : value + min(length, _LOOKED_AT)])
    return found


def _xmp(body: bytes) -> set[str]:
    return {"xmp", "declared"} if _GENERATED in body[:_LOOKED_AT] else {"xmp"}


def _prompt(text: bytes) -> set[str]:
    """Whether a text, in any encoding that has ASCII's letters apart by zeros, reads as a generator's settings."""
    return {"prompt"} if _PROMPT.search(text[:_LOOKED_AT].replace(b"\0", b"")) else set()


# --- pixels ----------------------------------------------------------------------------------------------------------


def colours(image: Image.Image) -> NDArray[np.float64]:
    """Numbers of an image's pixels, of every k-th row and column where it has more than 2^16 pixels.

    - `*_mean`, `*_std`: of a channel; `brightness`, `contrast`: mean and standard deviation of luma (ITU-R BT.601).
    - `saturation`: mean of (max - min) / max of the channels, 0 for black.
    - `grey_share`: pixels whose channels differ by 8 levels at most; `dark_share`, `bright_share`: luma below 16,
      above 239.
    - `luma_entropy`: bits, of the 256 levels of luma.

    Args:
        image: RGB.

    Returns:
        (13,) in the order of `COLOURS`.
    """
    step = max(1, math.ceil(math.sqrt(image.width * image.height / _PIXELS)))
    channels = np.asarray(image)[::step, ::step].reshape(-1, 3).T.astype(np.float32, order="C")
    red, green, blue = channels
    most = np.maximum(np.maximum(red, green), blue)
    spread = most - np.minimum(np.minimum(red, green), blue)
    luma = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
    levels = np.bincount(np.rint(luma).astype(np.intp), minlength=256) / luma.size
    return np.array(
        [
            *channels.mean(axis=1, dtype=np.float64),
            *channels.std(axis=1, dtype=np.float64),
            luma.mean(dtype=np.float64),
            luma.std(dtype=np.float64),
            (spread / np.maximum(most, 1)).mean(dtype=np.float64),
            (spread <= 8).mean(),
            (luma < 16).mean(),
            (luma > 239).mean(),
            -(levels * np.log2(np.where(levels > 0, levels, 1))).sum(),
        ]
    )


def thumbnail(image: Image.Image) -> NDArray[np.uint8]:
    """(256,): luma of an image shrunk to 16 x 16 pixels by the mean of areas, row by row."""
    return np.asarray(_shrunk(image, THUMBNAIL)).ravel()


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    return image.resize((side, side), Image.Resampling.BOX, reducing_gap=4.0).convert("L")


def _cosines(side: int) -> NDArray[np.float64]:
    """The matrix of the discrete cosine transform (type II, orthonormal)."""
    k = np.arange(side)
    matrix = np.cos(np.pi * np.outer(k, 2 * k + 1) / (2 * side)) * np.sqrt(2 / side)
    matrix[0] /= np.sqrt(2)
    return matrix


_SIDE = 32
_DCT = _cosines(_SIDE)
# The 64 lowest frequencies but for the mean, from low to high.
_LOWEST: NDArray[np.intp] = np.array(sorted(np.ndindex(12, 12), key=lambda at: (at[0] + at[1], at))[1:65]).T


def perceptual_hash(image: Image.Image) -> int:
    """64 bits that change little when an image is re-encoded or resized: pHash (Zauner 2010, section 3.2.1).

    Luma is shrunk to 32 x 32 pixels and transformed; a bit says whether one of the 64 lowest frequencies, without the
    mean, is above their median. Flat images have none.

    Args:
        image: RGB.
    """
    pixels = np.asarray(_shrunk(image, _SIDE), np.float64)
    lowest = (_DCT @ pixels @ _DCT.T)[_LOWEST[0], _LOWEST[1]].round(3)  # what rounding leaves of 0 has no sign
    above = lowest > np.median(lowest)
    return int.from_bytes(np.packbits(above).tobytes(), "big")
