import hashlib
import io
import json
import unicodedata
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from scipy import ndimage, stats

from imaginet_hub.errors import ImageError, UsageError
from imaginet_hub.perturbations import (
    Perturbation,
    center_crop,
    encoder_versions,
    fixed_crop,
    gaussian_blur,
    gaussian_noise,
    jpeg,
    random_crop,
    reflect_pad,
    rendered,
    webp,
)

GOLDEN_CROPS = json.loads((Path(__file__).parent / "golden" / "golden_eval_crop.json").read_text())

# SHA-256 (first 16 digits) of cv2.GaussianBlur(image, (k, k), 0) by OpenCV 4.10 on noise(height, width, seed).
OPENCV_BLURS = {
    (37, 53, 1): {3: "5987b69b7c61a80b", 5: "d3480d8b16518aad", 7: "215fb06c40f7cd4a"},
    (96, 96, 2): {3: "f228582dc375f2f7", 5: "b2fd403824aff9d3", 7: "f00d3e0e5e2771ea"},
    (4, 9, 3): {3: "cc77b1c625591978", 5: "5137c4e6dedbf2c4", 7: "844455c5cc962a8a"},
    (2, 3, 4): {3: "d1be1afca5642880", 5: "a63db45631465aab", 7: "21675e73422dc290"},
    (1, 5, 5): {3: "42589a2f539a1f55", 5: "da8409b114dbd1de", 7: "2853e84674a567d1"},
}


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8))


def smooth(height: int = 64, width: int = 64) -> Image.Image:
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([rows * 2, columns * 2, rows + columns], axis=2).astype(np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def sha256(image: Image.Image) -> str:
    return hashlib.sha256(np.asarray(image).tobytes()).hexdigest()


# Crops


@pytest.mark.parametrize("case", GOLDEN_CROPS, ids=lambda case: f"{case['height']}x{case['width']}")
def test_fixed_crop_equals_upstream(case):
    image = noise(case["height"], case["width"], case["seed"])
    assert sha256(fixed_crop(image, 256)) == case["sha256_of_uint8_hwc_bytes"]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 40))
def test_reflect_pad_walks_back_and_forth(height, width, size):
    image = noise(height, width)
    padded = pixels(reflect_pad(image, size))
    assert padded.shape == (max(height, size), max(width, size), 3)

    def source(length: int) -> list[int]:
        there_and_back = [*range(length), *range(length - 2, 0, -1)]
        start = -((max(length, size) - length) // 2)
        return [there_and_back[(start + i) % len(there_and_back)] for i in range(max(length, size))]

    assert np.array_equal(padded, pixels(image)[source(height)][:, source(width)])


def test_reflect_pad_leaves_large_images_alone():
    image = noise(20, 30)
    assert reflect_pad(image, 20) is image


def test_center_crop_keeps_the_odd_pixel_at_the_far_side():
    image = noise(7, 10)
    assert np.array_equal(pixels(center_crop(image, 4)), pixels(image)[1:5, 3:7])


def test_random_crop_takes_every_position_equally_often():
    image = Image.fromarray(np.arange(4 * 5, dtype=np.uint8).reshape(4, 5)[..., None].repeat(3, 2))
    rng = np.random.default_rng(0)
    corners = [pixels(random_crop(image, 3, rng))[0, 0, 0] for _ in range(3000)]
    values, counts = np.unique(corners, return_counts=True)
    assert values.tolist() == [0, 1, 2, 5, 6, 7]
    assert np.abs(counts - 500).max() < 100


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32))
def test_random_crop_is_a_window(height, width, seed):
    image = noise(height, width)
    size = min(height, width)
    windows = np.lib.stride_tricks.sliding_window_view(pixels(image), (size, size, 3)).reshape(-1, size, size, 3)
    crop = pixels(random_crop(image, size, np.random.default_rng(seed)))
    assert (windows == crop).all(axis=(1, 2, 3)).any()


# Blur


@pytest.mark.parametrize("shape", OPENCV_BLURS, ids=str)
def test_small_blurs_equal_opencv(shape):
    assert {k: sha256(gaussian_blur(noise(*shape), k))[:16] for k in (3, 5, 7)} == OPENCV_BLURS[shape]


@pytest.mark.parametrize(("kernel_size", "sigma", "expected_sigma"), [(9, None, 1.7), (11, None, 2.0), (5, 0.7, 0.7)])
def test_blur_equals_scipy(kernel_size, sigma, expected_sigma):
    image = noise(30, 41)
    radius = kernel_size // 2
    expected = ndimage.gaussian_filter(
        np.asarray(image).astype(float), (expected_sigma, expected_sigma, 0), mode="mirror", radius=(radius, radius, 0)
    )
    assert np.abs(pixels(gaussian_blur(image, kernel_size, sigma)) - expected).max() <= 0.501


def test_sigma_alone_takes_three_of_them_on_each_side():
    image = noise(30, 41)
    assert np.array_equal(pixels(gaussian_blur(image, sigma=1.5)), pixels(gaussian_blur(image, 11, 1.5)))
    assert np.array_equal(pixels(gaussian_blur(image, 1)), pixels(image))


# Noise


@pytest.mark.parametrize("variance", [3.0, 10.0])
def test_noise_has_the_variance_and_no_bias(variance):
    grey = Image.new("RGB", (300, 300), (128, 128, 128))
    difference = pixels(gaussian_noise(grey, variance, np.random.default_rng(0))) - 128
    assert abs(difference.mean()) < 0.02
    assert difference.var() == pytest.approx(variance + 1 / 12, rel=0.02)  # rounding adds 1/12
    assert abs(np.corrcoef(difference[..., 0].ravel(), difference[..., 1].ravel())[0, 1]) < 0.02


def test_noise_is_determined_by_its_generator():
    image = noise(20, 20)
    first, again, other = (gaussian_noise(image, 5, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert sha256(first) == sha256(again) != sha256(other)
    assert np.array_equal(pixels(gaussian_noise(image, 0, np.random.default_rng(0))), pixels(image))


# Encodings


@pytest.mark.parametrize(("encode", "name"), [(jpeg, "JPEG"), (webp, "WEBP")])
def test_reencoding_is_what_pillow_writes(encode, name):
    image = smooth(50, 70)
    stream = io.BytesIO()
    image.save(stream, name, quality=75)
    assert np.array_equal(pixels(encode(image, 75)), pixels(Image.open(stream)))


@pytest.mark.parametrize("encode", [jpeg, webp])
def test_lower_quality_loses_more(encode):
    image = ndimage.gaussian_filter(np.asarray(noise(64, 64)), (1, 1, 0))
    errors = [np.abs(pixels(encode(Image.fromarray(image), quality)) - image).mean() for quality in (95, 60, 20)]
    assert 0 < errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("encode", [jpeg, webp])
def test_reencoding_ignores_metadata(encode):
    plain, tagged = smooth(), smooth()
    tagged.info.update(comment=b"made by a generator", icc_profile=b"profile")
    assert np.array_equal(pixels(encode(plain, 80)), pixels(encode(tagged, 80)))
    assert "comment" not in encode(tagged, 80).info


def test_too_long_a_side_is_an_image_error():
    with pytest.raises(ImageError, match="16383") as caught:
        webp(Image.new("RGB", (16_384, 1)), 80)
    assert caught.value.reason == "oversized"


# Arguments


@pytest.mark.parametrize(
    "call",
    [
        lambda image: jpeg(image, 0),
        lambda image: jpeg(image, 101),
        lambda image: webp(image, 80.5),
        gaussian_blur,
        lambda image: gaussian_blur(image, 4),
        lambda image: gaussian_blur(image, -1),
        lambda image: gaussian_blur(image, 3, 0),
        lambda image: gaussian_blur(image, sigma=float("nan")),
        lambda image: gaussian_noise(image, -1, np.random.default_rng(0)),
        lambda image: gaussian_noise(image, float("nan"), np.random.default_rng(0)),
        lambda image: gaussian_noise(image, 1, np.random),
        lambda image: reflect_pad(image, 0),
        lambda image: center_crop(image, 0),
        lambda image: center_crop(image, 11),
        lambda image: random_crop(image, 11, np.random.default_rng(0)),
        lambda image: random_crop(image, 5, None),
        lambda image: fixed_crop(image, "5"),
        lambda image: jpeg(image.convert("L"), 80),
        lambda image: fixed_crop(image.convert("RGBA"), 5),
        lambda image: reflect_pad(np.asarray(image), 5),
    ],
)
def test_unusable_arguments_are_refused(call):
    with pytest.raises(UsageError, match=r"expected|missing"):
        call(noise(10, 10))


def test_numpy_integers_are_integers():
    assert jpeg(noise(10, 10), np.int64(80)).size == fixed_crop(noise(10, 10), np.int16(10)).size


# The perturbed test set

#: (seed, path, width, height) -> side, left, top, compression, quality. They must never change.
DRAWN = {
    (0, "val2017/000000000139.jpg", 640, 426): (261, 247, 128, None, None),
    (1, "val2017/000000000139.jpg", 640, 426): (384, 102, 30, "jpeg", 66),
    (-3, "./ffhq/x.png", 1024, 1024): (603, 290, 56, "jpeg", 67),
    (0, "wikiart/Baroque/C\xe9zanne.jpg", 3000, 2000): (558, 2361, 1177, None, None),
    (1180591620717411303424, "tiny.png", 40, 32): (256, 0, 0, None, None),
    (0, "a.png", 256, 5000): (256, 0, 4234, "webp", 94),
}


def drawn_anew(seed: int, path: str, width: int, height: int) -> tuple:
    """The docstring of `Perturbation.drawn`, step by step, in arithmetic of big integers."""
    name = unicodedata.normalize("NFC", str(PurePosixPath(path)))
    number = int(
        hashlib.sha512(b"imaginet perturbation 1" + bytes(1) + b"%d" % seed + bytes(1) + name.encode()).hexdigest(), 16
    )
    words = [number // 2 ** (64 * (7 - place)) % 2**64 for place in range(8)]

    def scaled(word: int, low: int, high: int) -> int:
        return low + words[word] * (high - low + 1) // 2**64

    side = scaled(0, 256, max(min(width, height, 1000), 256))
    corner = scaled(1, 0, max(width, 256) - side), scaled(2, 0, max(height, 256) - side)
    if scaled(3, 0, 3) == 3:
        return side, *corner, None, None
    return side, *corner, ["jpeg", "webp"][scaled(4, 0, 1)], scaled(5, 60, 100)


def fields(drawn: Perturbation) -> tuple:
    return drawn.side, drawn.left, drawn.top, drawn.compression, drawn.quality


@pytest.mark.parametrize("case", DRAWN, ids=lambda case: f"{case[0]}-{case[2]}x{case[3]}")
def test_drawn_stays_what_it_was(case):
    assert fields(Perturbation.drawn(*case)) == DRAWN[case]


@given(
    st.integers(),
    st.text(min_size=1).filter(lambda t: not any(0xD800 <= ord(c) <= 0xDFFF for c in t)),
    st.integers(1, 9999),
    st.integers(1, 9999),
)
def test_drawn_is_what_its_text_says_and_fits(seed, path, width, height):
    drawn = Perturbation.drawn(seed, path, width, height)
    assert fields(drawn) == drawn_anew(seed, path, width, height)
    assert 256 <= drawn.side <= max(256, min(width, height, 1000))
    assert 0 <= drawn.left <= max(width, 256) - drawn.side
    assert 0 <= drawn.top <= max(height, 256) - drawn.side


def test_drawn_by_path_however_it_is_written():
    composed, decomposed = "wikiart/C\u00e9zanne.jpg", "wikiart/Ce\u0301zanne.jpg"
    one = Perturbation.drawn(7, composed, 800, 600)
    for other in (
        decomposed,
        f"./{composed}",
        f".//{composed}",
        "wikiart/./C\u00e9zanne.jpg",
        "wikiart//C\u00e9zanne.jpg",
    ):
        assert Perturbation.drawn(7, other, 800, 600) == one
    others = [(8, composed), (-7, composed), (7, "wikiart/C\u00e9zanne.png"), (7, "wikiart/../C\u00e9zanne.jpg")]
    assert len({Perturbation.drawn(*case, 8000, 6000) for case in [(7, composed), *others]}) == 5
    # neither runs into the other
    assert Perturbation.drawn(1, "1/x", 8000, 6000) != Perturbation.drawn(11, "/x", 8000, 6000)


def test_frequencies():
    """Every part of the law at once, on 20,000 images: each test at a level that one in a thousand fails."""
    width, height, count = 1300, 1100, 20_000
    drawn = [Perturbation.drawn(0, f"x/{number}.jpg", width, height) for number in range(count)]

    def uniform(values, low, high, bins):
        observed = np.histogram(values, bins=np.linspace(low, high + 1, bins + 1))[0]
        edges = np.ceil(np.linspace(low, high + 1, bins + 1))  # how many integers fall into a bin
        return stats.chisquare(observed, np.diff(edges) / (high - low + 1) * len(values)).pvalue

    compressed = [one for one in drawn if one.compression]
    assert stats.binomtest(len(compressed), count, 0.75).pvalue > 1e-3
    assert stats.binomtest(sum(one.compression == "jpeg" for one in compressed), len(compressed), 0.5).pvalue > 1e-3
    for kind in ("jpeg", "webp"):
        assert uniform([one.quality for one in compressed if one.compression == kind], 60, 100, 41) > 1e-3
    assert all((one.quality is None) == (one.compression is None) for one in drawn)
    assert uniform([one.side for one in drawn], 256, 1000, 745) > 1e-3
    for side in (256, 1000):  # both ends do occur
        assert any(one.side == side for one in drawn)
    # places: the same law whatever the side
    lefts = [(one.left + 0.5) / (width - one.side + 1) for one in drawn]
    tops = [(one.top + 0.5) / (height - one.side + 1) for one in drawn]
    assert stats.kstest(lefts, "uniform").pvalue > 1e-3
    assert stats.kstest(tops, "uniform").pvalue > 1e-3
    # and independent of each other
    for one, other in ((lefts, tops), (lefts, [d.side for d in drawn]), ([bool(d.compression) for d in drawn], tops)):
        assert abs(stats.spearmanr(one, other).statistic) < 4 / count**0.5


def test_rendered_is_crop_lanczos_and_encoder():
    image = noise(400, 700)
    crop = Perturbation(side=333, left=12, top=67)
    plain = image.crop((12, 67, 345, 400)).resize((256, 256), Image.Resampling.LANCZOS)
    assert np.array_equal(rendered(image, crop), plain)
    for kind, function in (("jpeg", jpeg), ("webp", webp)):
        compressed = rendered(image, Perturbation(333, 12, 67, kind, 60))
        assert np.array_equal(compressed, function(plain, 60))
        assert not np.array_equal(compressed, plain)
    # a crop of 256 is not resampled
    assert np.array_equal(rendered(image, Perturbation(256, 444, 144)), pixels(image)[144:, 444:])


@pytest.mark.parametrize(
    ("width", "height"), [(1, 1), (5000, 300), (256, 256), (100, 900), (900, 100), (255, 257), (2, 3000)]
)
def test_rendered_of_any_size(width, height):
    image = noise(height, width)
    padded = reflect_pad(image, 256)
    for number in range(5):
        drawn = Perturbation.drawn(0, f"{number}", width, height)
        box = (drawn.left, drawn.top, drawn.left + drawn.side, drawn.top + drawn.side)
        square = padded.crop(box).resize((256, 256), Image.Resampling.LANCZOS)
        expected = (
            square
            if drawn.compression is None
            else {"jpeg": jpeg, "webp": webp}[drawn.compression](square, drawn.quality)
        )
        assert np.array_equal(rendered(image, drawn), expected)


def test_rendered_pads_no_more_than_it_needs(monkeypatch):
    sizes = []
    monkeypatch.setattr(
        np, "pad", lambda array, *args, real=np.pad, **kw: sizes.append(array.shape) or real(array, *args, **kw)
    )
    image = noise(1, 200_000)
    rendered(image, Perturbation.drawn(0, "long.png", *image.size))
    assert sizes == [(1, 256, 3)]


def test_rendered_carries_no_metadata():
    image = noise(300, 300)
    image.info.update(icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), exif=b"Exif\0\0")
    for drawn in (Perturbation(256, 0, 0), Perturbation(290, 0, 0), Perturbation(290, 0, 0, "jpeg", 80)):
        assert rendered(image, drawn).info == {}


def test_rendered_errors():
    image = noise(300, 300)
    for crop in (
        Perturbation(301, 0, 0),
        Perturbation(256, 45, 0),
        Perturbation(256, 0, 45),
        Perturbation(256, -1, 0),
    ):
        with pytest.raises(UsageError, match="inside the image of 300 x 300"):
            rendered(image, crop)
    with pytest.raises(UsageError, match="'avif'"):
        rendered(image, Perturbation(256, 0, 0, "avif", 80))
    with pytest.raises(UsageError, match="mode RGB"):
        rendered(image.convert("L"), Perturbation(256, 0, 0))
    for bad in (("0", "x", 1, 1), (0, "x", 0, 1), (0, "x", 1, 1.5)):
        with pytest.raises(UsageError):
            Perturbation.drawn(*bad)


def test_encoder_versions():
    versions = encoder_versions()
    assert list(versions) == ["Pillow", "libjpeg-turbo", "libwebp", "zlib", "libavif", "libtiff"]
    assert versions["Pillow"] == Image.__version__
    assert all(version and version[0].isdigit() for version in versions.values())
