"""Opening untrusted images."""

from __future__ import annotations

import hashlib
import io
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from imaginet_hub.data import effort, images
from imaginet_hub.data.images import MAX_PIXELS, examine, open_image, read_bytes
from imaginet_hub.data.memory import Memory
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


BOMBS = {
    "a great PNG": lambda: png_of_size(30_000, 30_000),
    "a PNG": lambda: png_of_size(13_300, 13_300),
    "a WebP": lambda: flat("WEBP", (13_000, 13_000)),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused_before_they_are_decoded(kind: str) -> None:
    data = BOMBS[kind]()
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


@pytest.mark.parametrize("mode", ["I", "F"])
def test_decoded_images_of_no_known_range_are_refused_too(mode: str) -> None:
    with pytest.raises(ImageError, match="8 or 16 bits") as caught:
        images.from_row(Image.new(mode, (4, 4), 1000))
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


# --- files that are out of the ordinary ------------------------------------------------------------------------------


def saved(picture: Image.Image, format_: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format_, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def behind_png_header(extra: bytes) -> bytes:
    data = image_bytes(1)
    return data[:33] + extra + data[33:]


def behind_jpeg_start(extra: bytes) -> bytes:
    data = image_bytes(1, format_="JPEG")
    return data[:2] + extra + data[2:]


def tiff(entries: list[tuple[int, int, int, int]], rest: bytes = b"", following: int = 0) -> bytes:
    """Little-endian, one directory at 8: (tag, type, count, value)."""
    rows = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + rows + struct.pack("<I", following) + rest


def tiny_tiff(following: int) -> bytes:
    tags = ((256, 16), (257, 16), (258, 8), (259, 1), (262, 1), (273, 8), (278, 16), (279, 256))
    return tiff([(tag, 4, 1, value) for tag, value in tags], bytes(300), following)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was given to a process of its own."""
    seen: list[str] = []
    ask = images._in_child

    def noted(data: bytes, name: str, *rest: Any) -> Any:
        seen.append(name)
        return ask(data, name, *rest)

    monkeypatch.setattr(images, "_in_child", noted)
    return seen


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_photographs_are_decoded_where_they_are_wanted(format_: str, children: list[str]) -> None:
    picture = Image.effect_noise((900, 800), 60).convert("P" if format_ == "GIF" else "RGB")
    options = {"progressive": True} if format_ == "JPEG" else {}
    examine(saved(picture, format_, **options), "x", pixel_md5=True)
    open_image(image_bytes(5, format_=format_))
    if format_ in ("JPEG", "PNG"):
        examine(saved(Image.new("RGB", (6000, 4000), (1, 2, 3)), format_), "24 megapixels")
    assert not children


@pytest.mark.parametrize("format_", ["AVIF", "PNG", "JPEG", "TIFF", "WEBP"])
def test_a_process_of_its_own_finds_the_same(
    format_: str, children: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = image_bytes(3, (50, 40), format_, "RGBA" if format_ == "PNG" else "RGB")
    here = examine(data, "x", pixel_md5=True, limited=False)
    assert here.pixel_md5 == hashlib.md5(Image.open(io.BytesIO(data)).convert("RGB").tobytes()).hexdigest()
    monkeypatch.setattr(effort, "ordinary", lambda data: False)
    assert examine(data, "x", pixel_md5=True) == here
    assert examine(data, "x").pixel_md5 is None
    opened = open_image(data)
    assert hashlib.md5(opened.tobytes()).hexdigest() == here.pixel_md5
    assert len(children) == 3
    for cut in (b"", data[: len(data) // 2]):
        with pytest.raises(ImageError) as caught:
            examine(cut, "cut")
        assert caught.value.reason in ("truncated", "unreadable") and "cut: " in str(caught.value)


FRAMES = [Image.new("RGB", (16, 16), (number % 256, number // 256, 9)) for number in range(1000)]


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP", "TIFF", "MPO", "AVIF"])
def test_a_thousand_pictures_in_one_file(format_: str) -> None:
    options: dict[str, Any] = {"WEBP": {"minimize_size": False, "lossless": True}, "AVIF": {"speed": 10}}.get(
        format_, {}
    )
    few, many = FRAMES[:20], FRAMES[: 257 if format_ == "GIF" else 1000]
    if format_ != "MPO":
        assert examine(saved(few[0], format_, save_all=True, append_images=few[1:], **options), "few").width == 16
    with pytest.raises(ImageError) as caught:
        examine(saved(many[0], format_, save_all=True, append_images=many[1:], **options), "many")
    assert caught.value.reason == "oversized"
    assert ("at most 256 pictures" if format_ != "MPO" else "scans") in str(caught.value)


def test_frames_are_counted_as_pillow_counts_them() -> None:
    for number in (1, 2, 7, 30):
        few = FRAMES[:number]
        gif = saved(few[0], "GIF", save_all=True, append_images=few[1:], comment=b"c" * 700)
        assert effort.gif_frames(gif) == Image.open(io.BytesIO(gif)).n_frames == number  # type: ignore[attr-defined]
        few = [picture.copy() for picture in few]
        assert effort.tiff_frames(saved(few[0], "TIFF", save_all=True, append_images=few[1:])) == number
    big = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) + struct.pack("<QQ", 0, 32) + struct.pack("<QQ", 0, 0)
    assert effort.tiff_frames(big) == 2
    for data in (b"II*\0", b"MM\0*" + bytes(4), tiny_tiff(8), tiny_tiff(0xFFFFFFF0)):
        assert effort.tiff_frames(data) <= 1
    assert effort.gif_frames(b"GIF89a" + b"\xff" * 7) == 0
    assert examine(tiny_tiff(8), "circle").width == 16


HEADERS = {
    "JPEG of 8 M markers": lambda: behind_jpeg_start(b"\xff\xee\0\2" * 8_000_000),
    "JPEG of fill bytes": lambda: behind_jpeg_start(b"\xff" * 20_000_000),
    "JPEG of EXIF": lambda: behind_jpeg_start((b"\xff\xe1\xff\xffExif\0\0" + bytes(65527)) * 1500),
    "PNG of 10,000 profiles": lambda: behind_png_header(
        chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1_000_000))) * 10_000
    ),
    "PNG of 3 M chunks": lambda: behind_png_header(chunk(b"abCd", b"") * 3_000_000),
    "TIFF of 4 M strips": lambda: tiff(
        [
            *((tag, 4, 1, value) for tag, value in ((256, 16), (257, 1 << 22), (258, 8), (259, 1), (262, 1))),
            (273, 4, 1 << 22, 200),
            (278, 4, 1, 1),
            (279, 4, 1 << 22, 200 + (1 << 24)),
        ],
        bytes(100) + struct.pack("<I", 8) * (1 << 22) + struct.pack("<I", 16) * (1 << 22),
    ),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_headers_that_keep_a_parser_busy_are_cut_off(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes Pillow ten seconds or more; here none has more than two."""
    monkeypatch.setattr(images, "TIME_LIMIT_S", 2.0)
    data = HEADERS[kind]()
    started = time.monotonic()
    with pytest.raises(ImageError, match=r"within 2 seconds|of memory") as caught:
        examine(data, kind)
    assert caught.value.reason == "oversized"
    assert time.monotonic() - started < 4


@pytest.mark.parametrize("kind", ["TIFF tile", "WebP", "zTXt", "iCCP", "progressive JPEG"])
def test_memory_is_limited(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "TIFF tile":  # of 20,000 x 20,000 for 100 x 100
        tags = ((256, 100), (257, 100), (258, 8), (259, 8), (262, 1), (277, 1), (322, 40000), (323, 40000), (324, 134))
        press = zlib.compressobj(9)
        tile = b"".join([*(press.compress(bytes(1 << 20)) for _ in range(64)), press.flush()])
        data = tiff([(tag, 4, 1, value) for tag, value in (*tags, (325, len(tile)))], tile)
    elif kind == "WebP":
        data = (
            b"RIFF"
            + struct.pack("<I", 300_000)
            + b"WEBPVP8 "
            + bytes(10)
            + struct.pack("<HH", 13000, 13000)
            + bytes(300_000)
        )
    elif kind in ("zTXt", "iCCP"):
        data = behind_png_header(chunk(kind.encode(), b"x\0\0" + zlib.compress(bytes(50_000_000))))
    else:
        data = saved(Image.new("RGB", (9000, 9000)), "JPEG", progressive=True)
        assert examine(data, "x").width == 9000
        monkeypatch.setattr(images, "MEMORY_LIMIT_BYTES", 256 << 20)
    with pytest.raises(ImageError) as caught:
        examine(data, kind)
    assert caught.value.reason == ("unreadable" if kind in ("zTXt", "iCCP") else "oversized"), str(caught.value)


def test_a_decoder_that_dies_is_an_unreadable_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images.child, "_PROGRAM", "import os; os.kill(os.getpid(), 11)")
    with pytest.raises(ImageError, match=r"ends its decoder \(status -11\)"):
        examine(image_bytes(1, format_="AVIF"), "x")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(ImageError, match="no process could be started"):
        examine(image_bytes(1, format_="AVIF"), "x")


def processes_of(parent: int) -> list[int]:
    command = ["ps", "-o", "pid=,comm=", "--ppid", str(parent)]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return [int(line.split()[0]) for line in lines if line.split()[1] != "ps"]


class Stop(BaseException):
    """What a check raises."""


def test_who_waits_can_be_stopped_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images.child, "_PROGRAM", "import time; time.sleep(60)")
    data, before = image_bytes(1, (900, 900), "AVIF"), set(processes_of(os.getpid()))
    started = time.monotonic()

    def check() -> None:
        if time.monotonic() > started + 0.5:
            raise Stop

    with pytest.raises(Stop):
        examine(data, "x", check=check)
    assert time.monotonic() - started < 3
    assert set(processes_of(os.getpid())) <= before


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit of time ends it")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_an_interrupted_parent(tmp_path: Path, number: int) -> None:
    (tmp_path / "x.jpg").write_bytes(behind_jpeg_start(b"\xff" * 30_000_000))
    code = "import sys; from imaginet_hub.data.images import open_image; open_image(sys.argv[1])"
    quiet = subprocess.DEVNULL
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "x.jpg")], stderr=quiet) as parent:
        while not (grandchildren := processes_of(parent.pid)):
            time.sleep(0.05)
        time.sleep(1)
        parent.send_signal(number)
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in grandchildren):
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in grandchildren)


def test_turns_are_taken_at_memory_and_one_may_always_have_more() -> None:
    turns, held, most = Memory(10), [], 0
    lock = threading.Lock()

    def hold(count: int) -> None:
        nonlocal most
        with turns.held(count):
            with lock:
                held.append(count)
                most = max(most, sum(held) if len(held) > 1 else 0)
            time.sleep(0.005)
            with lock:
                held.remove(count)

    threads = [threading.Thread(target=hold, args=(count,)) for count in (3, 4, 5, 6, 50, 2, 1, 9, 7) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not held and 0 < most <= 10
