"""Only the upper rows of a file: the same pixels as those of the whole, and the same files refused."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from imaginet_hub.data import images, upper
from imaginet_hub.data.images import from_row, upper_rows
from imaginet_hub.errors import ImageError

WIDTH, HEIGHT = 83, 131


def picture(seed: int = 0) -> Image.Image:
    """Blots under grain, so that all coefficients of a JPEG are in use."""
    rng = np.random.default_rng(seed)
    blots = Image.fromarray(rng.integers(0, 256, (9, 6, 3), np.uint8)).resize((WIDTH, HEIGHT))
    return Image.fromarray(np.clip(np.asarray(blots) + rng.normal(0, 12, (HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8))


def encoded(format: str, image: Image.Image | None = None, **options) -> bytes:
    stream = io.BytesIO()
    (image or picture()).save(stream, format, **options)
    return stream.getvalue()


def row(data: bytes) -> dict:
    return {"bytes": data, "path": "file"}


def outcome(data: bytes, rows: int | None):
    """The upper `rows` of pixels (of the whole image if None), or why there are none."""
    try:
        if rows is None:
            return np.asarray(from_row(row(data)))
        image, height = upper_rows(row(data), lambda width, height: min(rows, height))
        assert image.height >= min(rows, height)
        return np.asarray(image)
    except ImageError as error:
        return error.reason, error.message


SHORTENED = {
    "jpeg 4:2:0": encoded("JPEG", quality=90),
    "jpeg 4:2:2": encoded("JPEG", quality=75, subsampling="4:2:2"),
    "jpeg 4:4:4": encoded("JPEG", quality=100, subsampling="4:4:4"),
    "jpeg grey": encoded("JPEG", picture().convert("L")),
    "jpeg cmyk": encoded("JPEG", picture().convert("CMYK")),
    "jpeg restarts": encoded("JPEG", restart_marker_rows=1),
    "jpeg optimised, with notes": encoded(
        "JPEG", optimize=True, comment=b"\xff\xd9 \xff\xda", icc_profile=b"x" * 70_000
    ),
    "png": encoded("PNG"),
    "png alpha": encoded("PNG", picture().convert("RGBA")),
    "png palette": encoded("PNG", picture().quantize(200)),
    "png grey": encoded("PNG", picture().convert("L")),
    "png one bit": encoded("PNG", picture().convert("1")),
    "png 16 bits": encoded("PNG", Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 257)),
}
WHOLE = {
    "jpeg progressive": encoded("JPEG", progressive=True),
    "png animated": encoded("PNG", save_all=True, append_images=[picture(1)]),
    "webp": encoded("WEBP"),
    "gif": encoded("GIF"),
    "bmp": encoded("BMP"),
    "tiff": encoded("TIFF"),
}


@pytest.mark.parametrize("kind", SHORTENED)
def test_upper_rows_are_those_of_the_whole(kind):
    data, whole = SHORTENED[kind], outcome(SHORTENED[kind], None)
    assert whole.shape == (HEIGHT, WIDTH, 3)
    heights = set()
    for rows in range(1, HEIGHT + 1):
        image, height = upper_rows(row(data), lambda width, height, rows=rows: rows)
        assert height == HEIGHT and image.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(image)[:rows], whole[:rows])
        heights.add(image.height)
    assert len(heights) > 100, "most of them are made of a part of the file"


@pytest.mark.parametrize("kind", WHOLE)
def test_other_files_are_decoded_whole(kind):
    assert upper.shortened(WHOLE[kind], lambda width, height: 1, images.MAX_PIXELS) is None
    np.testing.assert_array_equal(outcome(WHOLE[kind], 1), outcome(WHOLE[kind], None))


@pytest.mark.parametrize("kind", ["jpeg 4:2:0", "jpeg restarts", "png"])
def test_damage_is_seen_wherever_it_is(kind):
    data, rng = SHORTENED[kind], np.random.default_rng(3)
    refused = 0
    for trial in range(300):
        broken = bytearray(data)
        at = int(rng.integers(len(data)))
        match trial % 4:
            case 0:
                broken[at] ^= 1 << int(rng.integers(8))
            case 1:
                broken = broken[:at]
            case 2:
                broken[at : at + 2] = bytes((0xFF, int(rng.integers(256))))
            case _:
                del broken[at : at + int(rng.integers(1, 60))]
        rows = int(rng.integers(1, HEIGHT))
        whole, part = outcome(bytes(broken), None), outcome(bytes(broken), rows)
        if isinstance(whole, tuple):
            refused += 1
            assert part == whole, (trial, at)
        else:
            np.testing.assert_array_equal(part[: min(rows, len(whole))], whole[:rows])
    assert refused > 80


def test_a_cut_file_is_refused_though_its_upper_rows_are_there():
    for kind in ("jpeg 4:2:0", "png"):
        data = SHORTENED[kind]
        assert outcome(data[: len(data) * 9 // 10], 20)[0] == "truncated"


def test_a_wrong_checksum_sends_a_png_to_the_whole_decoder():
    data = bytearray(SHORTENED["png"])
    data[-20] ^= 1  # of the last rows' checksum or samples
    assert upper.shortened(bytes(data), lambda width, height: 1, images.MAX_PIXELS) is None


def test_interlaced_pngs_are_decoded_whole():
    # Pillow writes none: one row of 1 x 2 pixels, whose second pass has the second row.
    header = struct.pack(">LLBBBBB", 1, 2, 8, 0, 0, 0, 1)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0\7\0\x09")), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    np.testing.assert_array_equal(outcome(data, 1)[:, 0, 0], [7, 9])


def test_limits_hold_for_the_whole_picture():
    data = SHORTENED["png"]
    assert upper.shortened(data, lambda width, height: 1, WIDTH * HEIGHT) is not None
    assert upper.shortened(data, lambda width, height: 1, WIDTH * HEIGHT - 1) is None
    bomb = encoded("PNG", Image.new("1", (4200, 4200)))
    assert outcome(bomb, 1) == outcome(bomb, None) and outcome(bomb, 1)[0] == "oversized"


def test_a_size_that_the_decoder_does_not_see_is_not_believed(monkeypatch):
    data = SHORTENED["png"]
    lie = upper.Shortened(encoded("PNG", picture().crop((0, 0, 9, 9))), (WIDTH, 9), HEIGHT)
    monkeypatch.setattr(upper, "shortened", lambda *_: lie)
    np.testing.assert_array_equal(outcome(data, 9), outcome(data, None))


def test_decoded_images_files_and_nothing_are_taken_as_by_from_row(tmp_path):
    image = picture()
    assert upper_rows(image, lambda width, height: 5)[1] == HEIGHT
    (tmp_path / "file").write_bytes(SHORTENED["png"])
    part, height = upper_rows({"bytes": None, "path": str(tmp_path / "file")}, lambda width, height: 5)
    assert (part.height, height) == (5, HEIGHT)
    with pytest.raises(ImageError, match="found neither bytes nor a path"):
        upper_rows({"bytes": None, "path": None}, lambda width, height: 5)
    with pytest.raises(ImageError, match="expected an image file, found none"):
        upper_rows({"bytes": None, "path": str(tmp_path / "other")}, lambda width, height: 5)


def test_an_end_that_the_header_of_the_scan_fakes_hides_no_cut():
    """libjpeg ignores the spectral selection of a baseline scan, which may so hold the bytes of an end of image."""
    stream = io.BytesIO()
    Image.effect_noise((64, 512), 60).convert("RGB").save(stream, "JPEG", quality=90)
    data = bytearray(stream.getvalue())
    scan = data.index(b"\xff\xda")
    assert data[scan + 11 : scan + 14] == b"\x00\x3f\x00"
    data[scan + 11 : scan + 13] = b"\xff\xd9"
    cut = bytes(data[: len(data) // 2])
    with pytest.raises(ImageError):
        from_row({"bytes": cut, "path": None})
    with pytest.raises(ImageError):
        upper_rows({"bytes": cut, "path": None}, lambda width, height: 40)
