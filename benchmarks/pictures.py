"""Images to fill containers with: made ones, or photographs that lie somewhere; and lists of those that are wanted."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

# Children of a large process start with its peak memory on their account: heavy imports are inside the functions.

#: Of photographs that are taken: about as large as those that the sources publish.
_PHOTO_BYTES = (40_000, 600_000)


def noisy_jpegs(rng: Any, count: int, width: int, height: int, noise: tuple[float, float]) -> list[bytes]:
    """Pictures of soft colours under grain: they decode like photographs and do not compress further."""
    return _noisy(rng, count, width, height, noise, lambda image, out: image.save(out, "JPEG", quality=85))


def noisy_pngs(rng: Any, count: int, width: int, height: int, noise: tuple[float, float]) -> list[bytes]:
    """The same as PNG."""
    return _noisy(rng, count, width, height, noise, lambda image, out: image.save(out, "PNG", compress_level=1))


def _noisy(
    rng: Any, count: int, width: int, height: int, noise: tuple[float, float], save: Callable[[Any, BytesIO], None]
) -> list[bytes]:
    import numpy as np
    from PIL import Image

    pictures = []
    for strength in np.linspace(*noise, count):
        blots = rng.integers(0, 256, (height // 40, width // 40, 3), dtype=np.uint8)
        soft = np.asarray(Image.fromarray(blots).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        grain = rng.normal(0, strength, (height, width, 1))
        out = BytesIO()
        save(Image.fromarray(np.clip(soft + grain, 0, 255).astype(np.uint8)), out)
        pictures.append(out.getvalue())
    return pictures


def jpegs(folder: str | None, rng: Any, count: int) -> list[bytes]:
    """Photographs below a folder, in the order of their names; made ones where there is no folder."""
    if folder is None:
        return noisy_jpegs(rng, count, 640, 480, (4, 24))
    from imaginet_hub.data.images import examine
    from imaginet_hub.errors import ImageError

    found = []
    for file in sorted(Path(folder).rglob("*")):
        if file.suffix.lower() not in (".jpg", ".jpeg") or not _PHOTO_BYTES[0] < file.stat().st_size < _PHOTO_BYTES[1]:
            continue
        data = file.read_bytes()
        try:
            if examine(data, file.name).format != "JPEG":
                continue
        except ImageError:
            continue
        found.append(data)
        if len(found) == count:
            break
    if not found:
        raise SystemExit(f"--pictures {folder}: expected JPEGs of 40 to 600 KB, found none")
    return found


def numbered(picture: bytes, number: int) -> bytes:
    """The same picture as another file: with a comment in it."""
    text = b"number %012d" % number
    if picture[:2] == b"\xff\xd8":  # JPEG: after the start marker
        return picture[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + picture[2:]
    import zlib

    body = b"tEXt" + text.replace(b" ", b"\0", 1)  # PNG: before the chunk that ends it
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return picture[:-12] + chunk + picture[-12:]


def wanted_names(file: Path) -> list[str]:
    """The paths of a list."""
    return [line.split(",")[0] for line in file.read_text().splitlines()]


def keep(job: dict[str, Any], name: str, data: bytes) -> None:
    """Write what a contender got."""
    file = Path(job["out"]) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
