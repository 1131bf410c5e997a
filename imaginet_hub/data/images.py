"""Opening image files that nobody vouches for: the one place that decides what a usable image is.

A usable image is a file of an allowed format, within the limits below, whose first frame decodes completely.
Pixels are never changed here: builders keep the original bytes, and `open_image` only converts to RGB on request.

No decoder can be interrupted in a thread. So files whose headers promise little work, as photographs do, are decoded
where they are wanted, and any other in a process of its own, which has limits of time and memory. What is ordinary is
decided by the bytes alone, before Pillow sees them: its parsers can be kept busy as well as its decoders.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import stat
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import BoundedSemaphore, Lock, Thread
from typing import Any

# Imported for their registration, so that threads never meet a half-initialised Pillow.
from PIL import (
    AvifImagePlugin,
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

from imaginet_hub.data import child, effort, upper
from imaginet_hub.data.effort import MAX_FRAMES
from imaginet_hub.data.memory import Memory
from imaginet_hub.errors import ImageError, UsageError

__all__ = [
    "ALLOWED_FORMATS",
    "IMAGE_SUFFIXES",
    "MAX_FILE_BYTES",
    "MAX_FRAMES",
    "MAX_PIXELS",
    "MEMORY_LIMIT_BYTES",
    "TIME_LIMIT_S",
    "ImageFacts",
    "examine",
    "from_row",
    "open_image",
    "upper_rows",
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
#: What one file that is out of the ordinary may take in its own process, by the clock and in address space.
TIME_LIMIT_S = 60.0
MEMORY_LIMIT_BYTES = 900 * 1024**2
_CHILDREN_AT_A_TIME = 2
#: What is decoded at a time in this process, all threads together; one image may take more, alone.
_DECODED_BYTES = 256 * 1024**2

#: Bytes a pixel while it is decoded, measured (Pillow 13): WebP is decoded by way of two canvases and copies.
_BYTES_PER_PIXEL = {"WEBP": 18, "TIFF": 5, "AVIF": 10}
#: How Pillow says that a decoder could not allocate.
_OUT_OF_MEMORY = ("error -9", "out of memory", "Out of memory")

_state_lock = Lock()
_state_users = 0
_state = ExitStack()
_children = BoundedSemaphore(_CHILDREN_AT_A_TIME)


_turns = Memory(_DECODED_BYTES)


def _after_fork() -> None:
    """Other threads do not exist in the copy, so nobody there would give back what they held."""
    global _turns, _children
    _turns, _children = Memory(_DECODED_BYTES), BoundedSemaphore(_CHILDREN_AT_A_TIME)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True)
class ImageFacts:
    """What a complete look at one file found.

    Attributes:
        sha256: hexadecimal SHA-256 of the file's bytes.
        width, height: pixels of the first frame, as stored (no EXIF rotation).
        format: Pillow's name of the format, e.g. "JPEG".
        size: bytes.
        pixel_md5: MD5 of the first frame's RGB samples, row by row, where it was asked for; "none (mode X)" for a
            mode that has no RGB.
    """

    sha256: str
    width: int
    height: int
    format: str
    size: int
    pixel_md5: str | None = None


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
    with contextlib.suppress(IndexError, struct.error):
        if data[:4] == b"RIFF" and effort.webp_pixels(data) * _BYTES_PER_PIXEL["WEBP"] > MEMORY_LIMIT_BYTES:
            raise _too_much_memory(name)
    try:
        image = Image.open(io.BytesIO(data), formats=ALLOWED_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError("oversized", f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            "unreadable", f"{name}: expected one of {', '.join(ALLOWED_FORMATS)}, found {_describe(data)}"
        ) from error
    except MemoryError as error:
        raise _too_much_memory(name) from error
    # Plug-ins raise whatever their parsing of hostile bytes runs into; the boundary is here.
    except Exception as error:
        raise ImageError("unreadable", f"{name}: the image header cannot be read ({_reason(error)})") from error
    _check_mode(image, name)
    if image.format in ("JPEG", "MPO") and effort.scans(data, _MAX_JPEG_SCANS) > _MAX_JPEG_SCANS:
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
    if effort.frames(image, data) > MAX_FRAMES:
        raise ImageError(
            "oversized",
            f"{name}: expected at most {MAX_FRAMES} pictures in a file, found more; keep the first if it is genuine",
        )
    return image


def _decode(image: Image.Image, name: str) -> None:
    try:
        image.load()
    except MemoryError as error:
        raise _too_much_memory(name) from error
    except Exception as error:
        if str(error).endswith(_OUT_OF_MEMORY):
            raise _too_much_memory(name) from error
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


def _too_much_memory(name: str) -> ImageError:
    most = f"{MEMORY_LIMIT_BYTES // 1024**2:,} MiB"
    return ImageError(
        "oversized",
        f"{name}: expected an image that decodes within {most} of memory, found one that takes more; "
        "re-encode the image if it is genuine",
    )


def _go_on() -> None:
    """Nobody wants to stop."""


def examine(
    data: bytes, name: str, *, pixel_md5: bool = False, check: Callable[[], None] = _go_on, limited: bool = True
) -> ImageFacts:
    """Decode the first frame completely and say what the bytes are.

    Args:
        data: the bytes of an image file.
        name: what to call it in errors.
        pixel_md5: whether to hash the pixels as well.
        check: called now and then while a process of its own is waited for; raises to stop it.
        limited: whether a file that is out of the ordinary gets such a process.

    Raises:
        ImageError: unreadable, truncated or oversized.
    """
    if limited and not effort.ordinary(data):
        return _in_child(data, name, "md5" if pixel_md5 else "facts", check)
    with _strict_decoder(), _turns.held(_opened_bytes(data)):
        image = _opened(data, name)
        if limited and not effort.still_ordinary(image):
            return _in_child(data, name, "md5" if pixel_md5 else "facts", check)
        (width, height), format_ = image.size, str(image.format)
        if format_ == "JPEG" and not pixel_md5:
            # Every byte is read and entropy-decoded all the same, which is what can fail; only the pixels that
            # nobody looks at are an eighth as many each way.
            image.draft(None, (1, 1))
        with _turns.held(_decoded_bytes(image, data, width * height, name, 7 * pixel_md5)):
            _decode(image, name)
            md5 = _pixel_md5(image) if pixel_md5 else None
            del image  # before others have their turn
        return ImageFacts(
            sha256=hashlib.sha256(data).hexdigest(),
            width=width,
            height=height,
            format=format_,
            size=len(data),
            pixel_md5=md5,
        )


def _decoded_bytes(image: Image.Image, data: bytes, pixels: int, name: str, more: int = 0) -> int:
    """About what decoding takes in memory, and `more` bytes a pixel; refused if decoding takes too much."""
    size = image.width * image.height * _BYTES_PER_PIXEL.get(str(image.format), 4)
    if "progressive" in image.info or (image.format == "JPEG" and effort.scans(data, 1) > 1):
        size += pixels * 6  # all coefficients of the picture at its full size, 16 bits each
    if size > MEMORY_LIMIT_BYTES:  # decoders that cannot allocate seldom say so
        raise _too_much_memory(name)
    return 0 if image.format == "WEBP" else size + more * pixels  # a WebP has its turn already


def _opened_bytes(data: bytes) -> int:
    """What an image takes from the moment it is opened: WebP's canvases and copies of its file; of others nothing."""
    with contextlib.suppress(IndexError, struct.error):
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return effort.webp_pixels(data) * _BYTES_PER_PIXEL["WEBP"] + 2 * len(data)
    return 0


def _pixel_md5(image: Image.Image) -> str:
    try:
        rgb = image.convert("RGB")
    except (OSError, ValueError):
        return f"none (mode {image.mode})"
    return hashlib.md5(rgb.tobytes(), usedforsecurity=False).hexdigest()


# --- a process of its own --------------------------------------------------------------------------------------------

_POLL_S = 0.2


def _in_child(data: bytes, name: str, task: str, check: Callable[[], None] = _go_on) -> ImageFacts:
    """What `examine` (or, for the task "rgb", `open_image`) makes of a file, within limits of time and memory."""
    while not _children.acquire(timeout=_POLL_S):
        check()
    try:
        question = {
            "task": task,
            "name": name,
            "bytes": len(data),
            "seconds": TIME_LIMIT_S,
            "memory": MEMORY_LIMIT_BYTES,
        }
        process = child.started_by(__name__, _answer.__name__, question)
        pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
        with (
            _fed(data) as bytes_of_it,
            subprocess.Popen(**process, stdin=bytes_of_it, stdout=pipe, stderr=nowhere) as decoder,
        ):
            try:
                answer = _waited_for(decoder, check)
            finally:
                decoder.kill()
    except OSError as error:
        raise ImageError(
            "unreadable",
            f"{name}: it is out of the ordinary, and no process could be started to look at it ({_reason(error)})",
        ) from error
    finally:
        _children.release()
    if answer is None:
        raise _too_much_time(name)
    try:
        found = json.loads(answer)
    except ValueError as error:
        if decoder.returncode == -getattr(signal, "SIGXCPU", 0):
            raise _too_much_time(name) from error
        raise ImageError(
            "unreadable",
            f"{name}: expected an image that decodes, found one that ends its decoder (status {decoder.returncode})",
        ) from error
    if "reason" in found:
        raise ImageError(found["reason"], found["message"])
    return ImageFacts(**found)


@contextmanager
def _fed(data: bytes) -> Iterator[int]:
    """A pipe that gives these bytes, however long it takes; `Popen.communicate` forgets them when it times out."""
    reader, writer = os.pipe()

    def feed() -> None:
        rest = memoryview(data)
        with contextlib.suppress(OSError):  # nobody reads any more
            while rest:
                rest = rest[os.write(writer, rest) :]
        os.close(writer)

    feeder = Thread(target=feed, daemon=True)
    feeder.start()
    try:
        yield reader
    finally:
        os.close(reader)
        feeder.join()


def _waited_for(decoder: subprocess.Popen[bytes], check: Callable[[], None]) -> bytes | None:
    """What it writes; None when its time is over."""
    deadline = time.monotonic() + TIME_LIMIT_S
    while time.monotonic() < deadline:
        try:
            return decoder.communicate(timeout=_POLL_S)[0]
        except subprocess.TimeoutExpired:
            check()
    return None


def _too_much_time(name: str) -> ImageError:
    return ImageError(
        "oversized",
        f"{name}: expected an image that decodes within {TIME_LIMIT_S:g} seconds, found one that takes longer; "
        "re-encode the image if it is genuine",
    )


def _answer(question: Mapping[str, Any]) -> None:
    """The other process: read the file, limit itself, answer in JSON."""
    global MEMORY_LIMIT_BYTES  # noqa: PLW0603 - of this process, which looks at one file
    child.begin(question)
    name = question["name"]
    data = sys.stdin.buffer.read(question["bytes"])
    MEMORY_LIMIT_BYTES = question["memory"]
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each has a stack
    child.limit(AS=question["memory"], CPU=max(1, question["seconds"]), CORE=0)
    try:
        if question["task"] == "rgb":
            image = _rgb(data, name)
            found = asdict(ImageFacts("", image.width, image.height, "", len(data)))
        else:
            found = asdict(examine(data, name, pixel_md5=question["task"] == "md5", limited=False))
    except (ImageError, MemoryError) as error:
        refused = error if isinstance(error, ImageError) else _too_much_memory(name)
        found = {"reason": refused.reason, "message": refused.message}
    sys.stdout.write(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)


# --- pictures to use -------------------------------------------------------------------------------------------------


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
    limited = not effort.ordinary(data)
    if limited:  # whether it can be decoded is found out where nothing can go wrong
        _in_child(data, name, "rgb")
    return _rgb(data, name, limited=limited)


def _rgb(data: bytes, name: str, *, limited: bool = True) -> Image.Image:
    """The first frame as RGB; `limited` says that it is decoded within limits, or was."""
    with _strict_decoder(), _turns.held(_opened_bytes(data)):
        image = _opened(data, name)
        if not limited and not effort.still_ordinary(image):
            _in_child(data, name, "rgb")
        pixels = image.width * image.height
        with _turns.held(_decoded_bytes(image, data, pixels, name, 4)):
            _decode(image, name)
            try:
                return image if image.mode == "RGB" else _to_rgb(image)
            except MemoryError as error:
                raise _too_much_memory(name) from error
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
        return open_image(*_source(value))
    if not isinstance(value, Image.Image):
        raise UsageError(f"expected a PIL image (or its bytes and path) in column 'image', got {type(value).__name__}")
    _check_mode(value, "image")
    return _to_rgb(value)


def upper_rows(value: Any, wanted: upper.Wanted) -> tuple[Image.Image, int]:
    """The image of a dataset row as `from_row` gives it, but perhaps without its lower rows, which takes less time.

    A file is refused, or not, as `from_row` does; only a PNG whose checksums are right has not to be right below.

    Args:
        value: see `from_row`.
        wanted: (width, height) -> how many rows are needed, from the top.

    Returns:
        RGB, with at least so many rows; the height of the whole image in pixels.

    Raises:
        ImageError: see `from_row`.
    """
    if isinstance(value, Mapping):
        data, name = _source(value)
        data = data if isinstance(data, bytes) else read_bytes(data)
        short = upper.shortened(data, wanted, _BOMB_PIXELS) if effort.ordinary(data) else None
        if short is not None:
            with contextlib.suppress(ImageError):  # what is wrong is said of the whole file
                image = open_image(short.data, name)
                if image.size == short.size:
                    return image, short.whole_height
        value = {"bytes": data, "path": name}
    image = from_row(value)
    return image, image.height


def _source(value: Mapping[str, Any]) -> tuple[str | bytes, str | None]:
    """Bytes or a path, and what to call them."""
    name = value.get("path")
    source = name if value.get("bytes") is None else value["bytes"]
    if source is None:
        raise ImageError("missing", "expected an image, found neither bytes nor a path")
    return source, name


def _check_mode(image: Image.Image, name: str) -> None:
    if image.mode in ("I", "F"):  # any range of values: nobody could say which is white
        raise ImageError("unsupported", f"{name}: expected 8 or 16 bits a sample, found Pillow's mode {image.mode!r}")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as RGB: alpha dropped, the upper byte of 16-bit samples."""
    if image.mode.startswith("I;16"):  # Pillow would clip these at 255
        import numpy as np

        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")
