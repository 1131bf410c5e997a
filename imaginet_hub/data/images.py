"""Opening image files that nobody vouches for: the one place that decides what a usable image is.

A usable image is a file of an allowed format, within the limits below, whose first frame decodes completely.
Pixels are never changed here: builders keep the original bytes, and `open_image` only converts to RGB on request.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

# Imported for their registration, so that threads never meet a half-initialised Pillow.
from PIL import (
    AvifImagePlugin,  # noqa: F401
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    ImageFile,
    JpegImagePlugin,  # noqa: F401
    MpoImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from imaginet_hub.errors import ImageError, UsageError

__all__ = [
    "ALLOWED_FORMATS",
    "IMAGE_SUFFIXES",
    "MAX_FILE_BYTES",
    "MAX_PIXELS",
    "ImageFacts",
    "examine",
    "from_row",
    "open_image",
]

#: Pillow plug-ins that may see untrusted bytes. Others start programs (EPS) or are rarely fuzzed.
#: ("JPEG" includes the multi-picture files of cameras, which Pillow then calls "MPO".)
ALLOWED_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
#: File name endings that a folder scan takes for images.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".mpo", ".jfif")
MAX_FILE_BYTES = 512 * 1024**2
#: Pillow's own hard limit, twice its warning limit: 179 megapixels, about 0.5 GB decoded.
MAX_PIXELS = 178_956_970
# A few bytes can declare any size up to that limit. Beyond 16 megapixels no picture worth keeping packs a thousand
# pixels into a byte (a flat JPEG reaches about 250).
_BOMB_PIXELS = 4096 * 4096
_BOMB_PIXELS_PER_BYTE = 1000
# Every scan of a progressive JPEG is a pass over the whole picture; encoders write about ten.
_MAX_JPEG_SCANS = 100

_state_lock = Lock()
_state_users = 0
_state = ExitStack()


@dataclass(frozen=True)
class ImageFacts:
    """What a complete look at one file found.

    Attributes:
        sha256: hexadecimal SHA-256 of the file's bytes.
        width, height: pixels of the first frame, as stored (no EXIF rotation).
        format: Pillow's name of the format, e.g. "JPEG".
        size: bytes.
    """

    sha256: str
    width: int
    height: int
    format: str
    size: int


@contextmanager
def _strict_decoder() -> Iterator[None]:
    """Pillow's process-wide switches as this module needs them, while any thread is inside.

    Other libraries turn on LOAD_TRUNCATED_IMAGES for the whole process; here a truncated file is an error. Pillow's
    size warnings are silenced because the limits above are enforced.
    """
    global _state_users  # noqa: PLW0603 - the switches are process-wide, so is the count of their users
    with _state_lock:
        if _state_users == 0:
            _state.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            before = ImageFile.LOAD_TRUNCATED_IMAGES
            _state.callback(setattr, ImageFile, "LOAD_TRUNCATED_IMAGES", before)
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        _state_users += 1
    try:
        yield
    finally:
        with _state_lock:
            _state_users -= 1
            if _state_users == 0:
                _state.close()


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The bytes of one regular file of at most `MAX_FILE_BYTES`.

    Raises:
        ImageError: missing, unreadable (folders, pipes and devices included) or oversized.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("unreadable", f"{path}: expected a regular file, found another kind of entry")
        if status.st_size > MAX_FILE_BYTES:
            raise ImageError(
                "oversized", f"{path}: expected at most {MAX_FILE_BYTES:,} bytes, found {status.st_size:,}"
            )
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError("missing", f"{path}: expected an image file, found none") from error
    except (OSError, ValueError) as error:
        raise ImageError("unreadable", f"{path}: cannot be read ({error})") from error


def _opened(data: bytes, name: str) -> Image.Image:
    """Header only, limits enforced, nothing decoded yet. To be called inside `_strict_decoder`."""
    if not data:
        raise ImageError("unreadable", f"{name}: expected an image, found an empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=ALLOWED_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError("oversized", f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            "unreadable", f"{name}: expected one of {', '.join(ALLOWED_FORMATS)}, found {_describe(data)}"
        ) from error
    # Plug-ins raise whatever their parsing of hostile bytes runs into; the boundary is here.
    except Exception as error:
        raise ImageError("unreadable", f"{name}: the image header cannot be read ({_reason(error)})") from error
    if image.mode in ("I", "F"):  # any range of values: nobody could say which is white
        raise ImageError("unsupported", f"{name}: expected 8 or 16 bits a sample, found Pillow's mode {image.mode!r}")
    if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > _MAX_JPEG_SCANS:
        raise ImageError(
            "oversized",
            f"{name}: expected at most {_MAX_JPEG_SCANS} scans in a JPEG, found {data.count(bytes((255, 218))):,}, "
            "which would take minutes to decode; re-encode the image if it is genuine",
        )
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise ImageError(
            "oversized", f"{name}: expected at most {MAX_PIXELS:,} pixels, found {image.width} x {image.height}"
        )
    if pixels > _BOMB_PIXELS and pixels > _BOMB_PIXELS_PER_BYTE * len(data):
        raise ImageError(
            "oversized",
            f"{name}: {image.width} x {image.height} pixels in {len(data):,} bytes looks like a decompression bomb; "
            "re-encode the image if it is genuine",
        )
    return image


def _decode(image: Image.Image, name: str) -> None:
    try:
        image.load()
    except Exception as error:
        reason = "truncated" if "truncat" in str(error).lower() else "unreadable"
        raise ImageError(
            reason, f"{name}: the {image.format} data cannot be decoded completely ({_reason(error)})"
        ) from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _describe(data: bytes) -> str:
    head = data[:64].lstrip()
    if head.startswith((b"<!DOCTYPE", b"<html", b"<HTML", b"<!doctype")):
        return "an HTML page"
    return f"bytes that start with {data[:8].hex(' ')}"


def examine(
    data: bytes,
    name: str,
    look: Callable[[Image.Image], None] | None = None,
    room: Callable[[int], AbstractContextManager[object]] | None = None,
) -> ImageFacts:
    """Decode the first frame completely and say what the bytes are.

    Args:
        data: the bytes of an image file.
        name: what to call it in errors.
        look: is shown the decoded image, so that nobody has to decode it again.
        room: is told how many bytes decoding will take, and entered meanwhile; so threads can take turns.

    Raises:
        ImageError: unreadable, truncated or oversized.
    """
    with _strict_decoder():
        image = _opened(data, name)
        width, height = image.size
        if image.format == "JPEG" and look is None:
            # Every byte is read and entropy-decoded all the same, which is what can fail; only the pixels that
            # nobody looks at are an eighth as many each way.
            image.draft(None, (1, 1))
        with nullcontext() if room is None else room(_decoded_bytes(image, width * height)):
            _decode(image, name)
            if look is not None:
                look(image)
        return ImageFacts(
            sha256=hashlib.sha256(data).hexdigest(),
            width=width,
            height=height,
            format=str(image.format),
            size=len(data),
        )


def _decoded_bytes(image: Image.Image, pixels: int) -> int:
    """About what decoding takes in memory."""
    size = image.width * image.height * 4
    if "progressive" in image.info:  # all coefficients of the picture at its full size, 16 bits each
        size += pixels * 6
    return size


def open_image(source: str | os.PathLike[str] | bytes, name: str | None = None) -> Image.Image:
    """Open an untrusted image as RGB, completely decoded.

    The first frame of an animation is used, alpha is dropped, 16-bit samples keep their upper byte, and no EXIF
    rotation is applied (as in upstream's code; `datasets` does apply it when it decodes).

    Args:
        source: a path, or the bytes of a file.
        name: what to call it in errors; the path by default.

    Raises:
        ImageError: missing, unreadable, truncated or oversized.
    """
    if isinstance(source, bytes):
        data, name = source, name or "image"
    else:
        data, name = read_bytes(source), name or os.fspath(source)
    with _strict_decoder():
        image = _opened(data, name)
        _decode(image, name)
        try:
            return _to_rgb(image)
        except Exception as error:
            raise ImageError("unreadable", f"{name}: mode {image.mode} cannot be converted to RGB") from error


def from_row(value: Any) -> Image.Image:
    """The `image` of a dataset row as RGB, decoded by the rules above whether `datasets` decoded it or not.

    Args:
        value: a Pillow image, or `{"bytes", "path"}` as `datasets.Image(decode=False)` gives it.

    Raises:
        ImageError: see `open_image`; also when there is neither.
    """
    if isinstance(value, Mapping):
        name = value.get("path")
        source = name if value.get("bytes") is None else value["bytes"]
        if source is None:
            raise ImageError("missing", "expected an image, found neither bytes nor a path")
        return open_image(source, name)
    if not isinstance(value, Image.Image):
        raise UsageError(f"expected a PIL image (or its bytes and path) in column 'image', got {type(value).__name__}")
    return _to_rgb(value)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as RGB: alpha dropped, the upper byte of 16-bit samples."""
    if image.mode.startswith("I;16"):  # Pillow would clip these at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")
