"""Opening untrusted images."""

from __future__ import annotations

import hashlib
import io
import os
import random
import struct
import threading
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from imaginet_hub.data.images import MAX_PIXELS, examine, open_image, read_bytes
from imaginet_hub.errors import ImageError
from tests.conftest import image_bytes


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header declares any size, with hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


def flat(format_: str, size: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (9, 9, 9)).save(stream, format_, **({"lossless": True} if format_ == "WEBP" else {}))
    return stream.getvalue()


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_facts_of_a_good_image(format_: str) -> None:
    data = image_bytes(1, (40, 32), format_)
    facts = examine(data, "x")
    assert (facts.width, facts.height, facts.format, facts.size) == (40, 32, format_, len(data))
    assert facts.sha256 == hashlib.sha256(data).hexdigest()
    assert open_image(data).mode == "RGB"


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("tolerant", [False, True])
def test_cut_files_never_pass(format_: str, keep: float, tolerant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Other libraries leave this switch on; it must neither matter nor be changed by us.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    data = image_bytes(2, (64, 64), format_)
    with pytest.raises(ImageError) as caught:
        examine(data[: int(len(data) * keep)], "cut")
    assert caught.value.reason in ("truncated", "unreadable")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is tolerant


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><title>quota</title>", "an HTML page"),
        (b"\x00\x01\x02\x03\x04\x05\x06\x07\x08", "00 01 02"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "25 21 50"),
    ],
)
def test_what_is_no_image_is_named(data: bytes, word: str) -> None:
    with pytest.raises(ImageError, match=word) as caught:
        examine(data, "x")
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize(
    "data", [png_of_size(30_000, 30_000), png_of_size(13_300, 13_300), flat("WEBP", (13_000, 13_000))]
)
def test_bombs_are_refused_before_they_are_decoded(data: bytes) -> None:
    assert len(data) < 100_000
    with pytest.raises(ImageError) as caught:
        examine(data, "bomb")
    assert caught.value.reason == "oversized"


def test_limits_do_not_hit_honest_flat_pictures() -> None:
    assert examine(flat("PNG", (4000, 4000)), "flat").width == 4000
    assert MAX_PIXELS > 170e6


def test_kinds_of_entries(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        read_bytes(tmp_path / "no.png")
    assert caught.value.reason == "missing"
    os.mkfifo(tmp_path / "pipe.png")
    for name in (".", "pipe.png"):
        with pytest.raises(ImageError) as caught:
            read_bytes(tmp_path / name)
        assert caught.value.reason == "unreadable"


def test_only_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    assert open_image(stream.getvalue()).getpixel((0, 0)) == (255, 0, 0)


def test_no_exif_rotation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.new("RGB", (16, 8)).save(stream, "JPEG", exif=exif)
    assert open_image(stream.getvalue()).size == (16, 8)


def test_threads_share_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    good, cut = image_bytes(3, (200, 200), "JPEG"), image_bytes(4, (200, 200), "JPEG")[:-2000]
    wrong: list[str] = []

    def work() -> None:
        for _ in range(20):
            examine(good, "good")
            try:
                examine(cut, "cut")
                wrong.append("a cut file passed")
            except ImageError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_a_jpeg_of_endless_scans_is_refused_at_once() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    assert examine(data, "progressive").format == "JPEG"
    scan = data[data.rfind(b"\xff\xda") : -2]
    with pytest.raises(ImageError, match="scans in a JPEG") as caught:
        examine(data[:-2] + scan * 1500 + b"\xff\xd9", "time bomb")
    assert caught.value.reason == "oversized"


def test_samples_of_any_range_are_refused_and_16_bits_keep_their_upper_byte() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8), 1e6, np.float32)).save(stream, "TIFF")
    with pytest.raises(ImageError) as caught:
        open_image(stream.getvalue())
    assert caught.value.reason == "unsupported"
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8), 0x80FF, np.uint16)).save(stream, "PNG")
    assert open_image(stream.getvalue()).getpixel((0, 0)) == (0x80, 0x80, 0x80)


def test_a_reduced_decode_judges_as_a_full_one() -> None:
    """`examine` decodes JPEGs at an eighth of their size; damage is seen all the same."""
    rng = random.Random(0)
    verdicts = Counter()
    for seed in range(12):
        whole = image_bytes(seed, (160 + 8 * seed, 120), "JPEG")
        for _ in range(25):
            data = bytearray(whole)
            if rng.random() < 0.5:
                data = data[: rng.randrange(len(data))]
            else:
                for _ in range(rng.randint(1, 20)):
                    data[rng.randrange(len(data))] = rng.randrange(256)
            verdict = []
            for read in (lambda d: examine(d, "x"), lambda d: examine(d, "x", pixel_md5=True)):
                try:
                    facts = read(bytes(data))
                    verdict.append((facts.width, facts.height))
                except ImageError as error:
                    verdict.append(error.reason)
            assert verdict[0] == verdict[1]
            verdicts[verdict[0] if isinstance(verdict[0], str) else "fine"] += 1
    assert min(verdicts["fine"], verdicts["truncated"], verdicts["unreadable"]) > 5, verdicts
