"""What files say of themselves."""

from __future__ import annotations

import io
import random
import struct
import time
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imaginet_hub.data.traits import COLOURS, METADATA, Traits, colours, perceptual_hash, thumbnail, traits
from imaginet_hub.errors import ImageError
from tests.conftest import image_bytes


def picture(seed: int = 0, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """Smooth colours with some detail."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def saved(format_: str, image: Image.Image | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    (image or picture()).save(stream, format_, **options)
    return stream.getvalue()


def png_with(*chunks: tuple[bytes, bytes]) -> bytes:
    data = saved("PNG")
    more = b"".join(struct.pack(">L", len(c)) + k + c + struct.pack(">L", zlib.crc32(k + c)) for k, c in chunks)
    return data[:33] + more + data[33:]


def jpeg_with(marker: int, body: bytes) -> bytes:
    data = saved("JPEG")
    return data[:2] + bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body + data[2:]


def webp_with(kind: bytes, body: bytes) -> bytes:
    data = saved("WEBP") + kind + struct.pack("<L", len(body)) + body + b"\0" * (len(body) & 1)
    return data[:4] + struct.pack("<L", len(data) - 8) + data[8:]


def exif(tags: dict[int, Any], inner: dict[int, Any] | None = None) -> bytes:
    made = Image.Exif()
    made.update(tags)
    made.get_ifd(0x8769).update(inner or {})
    return made.tobytes()


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_size_and_format_of_every_format(format_: str) -> None:
    data = saved(format_)
    found = traits(data)
    assert (found.format, found.width, found.height, found.size) == (format_, 96, 64, len(data))
    assert found.bits_per_pixel == len(data) * 8 / 96 / 64


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I;16"])
def test_modes_of_png(mode: str) -> None:
    image = Image.new(mode, (5, 4)) if mode == "I;16" else picture().convert(mode)
    found = traits(saved("PNG", image))
    assert (found.mode, found.alpha, found.coding) == (mode, mode in ("LA", "RGBA"), "plain")


def test_transparent_colour_and_interlacing() -> None:
    assert traits(saved("PNG", picture().convert("P"), transparency=0)).alpha
    data = bytearray(saved("PNG"))
    data[28] = 1
    assert traits(bytes(data)).progressive


def test_quality_is_the_setting_that_libjpeg_was_given() -> None:
    found = [traits(saved("JPEG", quality=quality)) for quality in range(1, 101)]
    assert [trait.quality for trait in found] == list(range(1, 101))
    assert len({trait.quantisation for trait in found}) == 100
    assert traits(saved("JPEG", picture(1), quality=80)).quantisation == found[79].quantisation


@pytest.mark.parametrize(("setting", "name"), [(0, "4:4:4"), (1, "4:2:2"), (2, "4:2:0")])
def test_subsampling(setting: int, name: str) -> None:
    assert traits(saved("JPEG", subsampling=setting)).subsampling == name
    assert traits(saved("JPEG", picture().convert("L"))).subsampling == "grey"


def test_codings() -> None:
    assert traits(saved("JPEG")).coding == "baseline"
    assert traits(saved("JPEG", progressive=True)).coding == "progressive"
    assert traits(saved("WEBP")).coding == "lossy"
    assert traits(saved("WEBP", lossless=True)).coding == "lossless"
    clear = picture().convert("RGBA")
    clear.putalpha(100)
    assert traits(saved("WEBP", clear, lossless=True)).alpha
    assert traits(saved("WEBP", clear)).alpha
    moving = traits(saved("WEBP", save_all=True, append_images=[picture(1)]))
    assert (moving.coding, moving.width, moving.height) == ("animated", 96, 64)


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"></x:xmpmeta>'
CAMERA = exif({0x10F: "Maker", 0x131: "Editor 1"})
PROMPT = exif({}, {0x9286: b"UNICODE\0" + "a cat\nNegative prompt: dogs\nSteps: 20, Sampler: x".encode("utf-16-le")})
JUMBF = b"JP\0\1\0\0\0\1" + struct.pack(">L", 40) + b"jumb" + struct.pack(">L", 30) + b"jumdc2pa"


@pytest.mark.parametrize(
    ("data", "names"),
    [
        pytest.param(saved("JPEG"), "", id="bare jpeg"),
        pytest.param(saved("PNG"), "", id="bare png"),
        pytest.param(saved("WEBP"), "", id="bare webp"),
        *(
            pytest.param(saved(format_, **{option: value}), names, id=f"{format_} {names}")
            for format_ in ("JPEG", "PNG", "WEBP")
            for option, value, names in (
                ("exif", CAMERA, "exif camera software"),
                ("exif", PROMPT, "exif prompt"),
                ("icc_profile", b"p" * 200, "icc"),
            )
        ),
        pytest.param(saved("JPEG", xmp=XMP), "xmp", id="jpeg xmp"),
        pytest.param(saved("WEBP", xmp=XMP), "xmp", id="webp xmp"),
        pytest.param(saved("WEBP", xmp=XMP + b"trainedAlgorithmicMedia"), "xmp declared", id="webp declared"),
        pytest.param(png_with((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)), "xmp", id="png xmp"),
        pytest.param(saved("JPEG", comment=b"hello"), "comment", id="jpeg comment"),
        pytest.param(jpeg_with(0xFE, b'{"prompt": "a cat"}'), "comment prompt", id="jpeg prompt"),
        pytest.param(jpeg_with(0xED, b"Photoshop 3.0\0" + b"8BIM"), "iptc", id="jpeg iptc"),
        pytest.param(jpeg_with(0xEB, JUMBF), "c2pa", id="jpeg c2pa"),
        pytest.param(png_with((b"caBX", b"jumb")), "c2pa", id="png c2pa"),
        pytest.param(webp_with(b"C2PA", b"jum"), "c2pa", id="webp c2pa"),
        pytest.param(png_with((b"tEXt", b"parameters\0a cat")), "text prompt", id="png parameters"),
        pytest.param(png_with((b"iTXt", b"workflow\0\1\0\0\0xx")), "text prompt", id="png workflow"),
        pytest.param(png_with((b"tEXt", b"Software\0Editor")), "text software", id="png software"),
        pytest.param(png_with((b"tEXt", b"Title\0Steps: my life")), "text", id="no prompt"),
        pytest.param(png_with((b"zTXt", b"Raw profile type iptc\0\0xx")), "iptc", id="png iptc"),
    ],
)
def test_metadata(data: bytes, names: str) -> None:
    assert traits(data).metadata == set(names.split())
    assert set(names.split()) <= set(METADATA)


def test_nothing_is_inflated() -> None:
    bomb = zlib.compress(b"\0" * 100_000_000, 9)
    data = png_with(
        (b"iCCP", b"name\0\0" + bomb), (b"zTXt", b"parameters\0\0" + bomb), (b"iTXt", b"x\0\1\0\0\0" + bomb)
    )
    tracemalloc.start()
    try:
        assert traits(data).metadata == {"icc", "text", "prompt"}
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xff\xd8" + b"\xff\xe0\0\0" * 3_000_000, id="segments without length"),
        pytest.param(b"\xff\xd8" + b"\xff" * 20_000_000, id="fill bytes"),
        pytest.param(saved("PNG")[:33] + b"\0\0\0\0tEXt\0\0\0\0" * 1_000_000, id="chunks"),
        pytest.param(b"RIFF\0\0\0\0WEBP" + b"ABCD\0\0\0\0" * 1_000_000, id="riff"),
        pytest.param(jpeg_with(0xE1, b"Exif\0\0II*\0\x08\0\0\0" + b"\xff" * 60_000), id="tags"),
    ],
)
def test_hostile_headers_take_no_time(data: bytes) -> None:
    start = time.process_time()
    try:
        traits(data)
    except ImageError as error:
        assert error.reason == "unreadable"
    assert time.process_time() - start < 2


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP"])
def test_damaged_files_give_traits_or_an_image_error(format_: str) -> None:
    rng = random.Random(0)
    whole = saved(format_, exif=PROMPT, icc_profile=b"p" * 50)
    refused = 0
    for number in range(600):
        data = bytearray(whole[: rng.randrange(len(whole))] if number % 2 else whole)
        for _ in range(rng.randrange(6)):
            if data:
                data[rng.randrange(min(len(data), 300))] = rng.randrange(256)
        if bytes(data[:4]) != whole[:4]:
            continue
        try:
            assert isinstance(traits(bytes(data)), Traits)
        except ImageError as error:
            refused += 1
            assert error.reason in ("unreadable", "truncated", "oversized")
    assert refused


@pytest.mark.parametrize("data", [b"", b"nothing of the kind", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF\4\0\0\0WEBP"])
def test_what_is_no_image(data: bytes) -> None:
    with pytest.raises(ImageError):
        traits(data, "x")


def test_colours() -> None:
    image = picture()
    found = dict(zip(COLOURS, colours(image), strict=True))
    pixels = np.asarray(image, float)
    assert [found[f"{c}_mean"] for c in ("red", "green", "blue")] == pytest.approx(pixels.mean(axis=(0, 1)))
    assert [found[f"{c}_std"] for c in ("red", "green", "blue")] == pytest.approx(pixels.std(axis=(0, 1)), rel=1e-5)
    luma = np.asarray(image.convert("L"), float)
    assert found["brightness"] == pytest.approx(luma.mean(), abs=0.5)
    assert found["contrast"] == pytest.approx(luma.std(), abs=0.5)
    assert found["saturation"] == pytest.approx(np.asarray(image.convert("HSV"))[..., 1].mean() / 255, abs=0.005)
    assert found["luma_entropy"] == pytest.approx(image.convert("L").entropy(), abs=0.05)


def test_colours_of_flat_images() -> None:
    black, white, red = (
        dict(zip(COLOURS, colours(Image.new("RGB", (9, 7), c)), strict=True)) for c in ("black", "white", "red")
    )
    assert (black["dark_share"], black["saturation"], black["luma_entropy"], black["grey_share"]) == (1, 0, 0, 1)
    assert (white["bright_share"], white["brightness"]) == (1, pytest.approx(255))
    assert (red["saturation"], red["grey_share"]) == (1, 0)


def test_hash_is_that_of_the_cosine_transform() -> None:
    fft = pytest.importorskip("scipy.fft")
    image = picture(3, (32, 32))
    spectrum = fft.dctn(np.asarray(image.convert("L"), float), norm="ortho")
    places = sorted(((i, j) for i in range(32) for j in range(32)), key=lambda at: (sum(at), at))[1:65]
    lowest = [spectrum[at] for at in places]
    bits = "".join(str(int(value > np.median(lowest))) for value in lowest)
    assert f"{perceptual_hash(image):064b}" == bits
    assert perceptual_hash(Image.new("RGB", (50, 40), (9, 9, 9))) == 0


def test_hash_and_thumbnail_hardly_change_when_reencoded_or_resized() -> None:
    image = picture(4, (300, 200))
    others = [Image.open(io.BytesIO(saved("JPEG", image, quality=40))), image.resize((120, 80))]
    for other in others:
        assert (perceptual_hash(image) ^ perceptual_hash(other.convert("RGB"))).bit_count() <= 4
        apart = thumbnail(image).astype(int) - thumbnail(other.convert("RGB"))
        assert np.sqrt((apart**2).mean()) < 0.1 * thumbnail(image).std()
    assert (perceptual_hash(image) ^ perceptual_hash(picture(5, (300, 200)))).bit_count() > 16


def test_extreme_shapes() -> None:
    for size in ((1, 1), (1, 3000), (3000, 1)):
        image = Image.new("RGB", size, (200, 10, 10))
        assert np.isfinite(colours(image)).all()
        assert thumbnail(image).shape == (256,)
        assert 0 <= perceptual_hash(image) < 2**64
    assert traits(image_bytes(0)).metadata == frozenset()
