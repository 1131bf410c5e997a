"""What happens to pictures on their way to a reader: re-encoding, blur, noise, padding and cropping.

Every function takes an RGB PIL image of 8 bits a channel and gives a new one (or the same object where nothing is to
be done). The result is fully determined by the arguments: whatever is random is drawn from the
`numpy.random.Generator` that the caller passes, or, for the perturbed test set, from a hash that `Perturbation.drawn`
defines. Encoded bytes, and so the pixels after `jpeg` and `webp`, depend on the encoder inside the installed Pillow
(`encoder_versions`).

The operations and their ranges are those of ImagiNet's training and test pipelines (Boychev & Cholakov 2025,
arXiv:2407.20020, training details and perturbed test set), re-implemented without albumentations and OpenCV.
"""

from __future__ import annotations

import hashlib
import io
import math
import operator
import struct
import unicodedata
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Self

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, features

from imaginet_hub.errors import ImageError, UsageError

__all__ = [
    "COMPRESSIONS",
    "COMPRESSION_SHARE",
    "MAX_SIDE",
    "MIN_SIDE",
    "QUALITIES",
    "SIZE",
    "Perturbation",
    "center_crop",
    "encoder_versions",
    "fixed_crop",
    "gaussian_blur",
    "gaussian_noise",
    "jpeg",
    "random_crop",
    "reflect_pad",
    "rendered",
    "resized_square",
    "simple_path",
    "webp",
]

#: The law of the perturbed test set (paper, "perturbed test set"; the cap and the qualities from upstream's code).
SIZE = 256
MIN_SIDE, MAX_SIDE = 256, 1000
#: Probability of a compression, as numerator and denominator; then each of these is as likely.
COMPRESSION_SHARE = (3, 4)
COMPRESSIONS = ("jpeg", "webp")
QUALITIES = (60, 100)

#: Longest side that each encoder takes, in pixels.
_MAX_SIDE = {"JPEG": 65_500, "WEBP": 16_383}

#: OpenCV's kernels where no sigma is given (dyadic, so that 8-bit blurring is exact); wider ones follow its formula.
_SMALL_KERNELS = {
    1: (1.0,),
    3: (0.25, 0.5, 0.25),
    5: (0.0625, 0.25, 0.375, 0.25, 0.0625),
    7: (0.03125, 0.109375, 0.21875, 0.28125, 0.21875, 0.109375, 0.03125),
}


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Encode as baseline JPEG with 4:2:0 chroma and decode again.

    Args:
        image: RGB.
        quality: 1 (worst) to 100, libjpeg's scale.

    Raises:
        UsageError: not an RGB image, or a quality outside 1..100.
        ImageError: a side longer than the format can hold.
    """
    return _reencoded(image, "JPEG", quality)


def webp(image: Image.Image, quality: int) -> Image.Image:
    """Encode as lossy WebP and decode again; arguments and errors as for `jpeg`."""
    return _reencoded(image, "WEBP", quality)


def gaussian_blur(image: Image.Image, kernel_size: int | None = None, sigma: float | None = None) -> Image.Image:
    """Blur with a separable Gaussian kernel; beyond the border the image is reflected without repeating the edge.

    Args:
        image: RGB.
        kernel_size: taps of the kernel, odd. By default as many as 8-bit OpenCV takes for `sigma`: about 6 sigma + 1.
        sigma: standard deviation in pixels. By default OpenCV's rule, 0.3 ((kernel_size - 1) / 2 - 1) + 0.8, with its
            fixed kernels up to size 7: those results equal cv2.GaussianBlur(image, (k, k), 0) byte for byte.

    Raises:
        UsageError: not an RGB image, neither argument given, an even or non-positive size, a sigma of 0 or less.
    """
    _check_rgb(image)
    if sigma is not None and not (math.isfinite(sigma) and sigma > 0):
        raise UsageError(f"gaussian_blur: expected sigma above 0, got {sigma}")
    if kernel_size is None:
        if sigma is None:
            raise UsageError("gaussian_blur: expected kernel_size or sigma, got neither")
        kernel_size = round(sigma * 6 + 1) | 1
    kernel_size = _integer("gaussian_blur: kernel_size", kernel_size, minimum=1)
    if kernel_size % 2 == 0:
        raise UsageError(f"gaussian_blur: expected an odd kernel_size, got {kernel_size}")
    kernel = _gaussian_kernel(kernel_size, sigma)
    margin = kernel_size // 2
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="reflect").astype(np.float32)
    rows = sum(weight * padded[:, i : i + width] for i, weight in enumerate(kernel))
    both = sum(weight * rows[i : i + height] for i, weight in enumerate(kernel))
    return _image(np.floor(both + np.float32(0.5)))  # half up, as OpenCV


def gaussian_noise(image: Image.Image, variance: float, rng: np.random.Generator) -> Image.Image:
    """Add independent N(0, variance) noise to each pixel and channel, rounded and clipped to 0..255.

    Upstream's albumentations truncates instead of rounding, which also darkens the image by half a level.

    Args:
        image: RGB.
        variance: in squared 8-bit levels, 0 or more; ImagiNet's training draws it from 3..10.
        rng: source of the noise.

    Raises:
        UsageError: not an RGB image, a negative or non-finite variance, an rng that is not a numpy Generator.
    """
    _check_rgb(image)
    _check_rng(rng)
    if not (math.isfinite(variance) and variance >= 0):
        raise UsageError(f"gaussian_noise: expected a variance of 0 or more, got {variance}")
    pixels = np.asarray(image)
    return _image(np.rint(pixels + rng.normal(0.0, math.sqrt(variance), pixels.shape)))


def reflect_pad(image: Image.Image, size: int) -> Image.Image:
    """Extend each side that is shorter than `size` to `size`, by reflection without repeating the edge pixel.

    The content stays in the middle; an odd pixel goes to the right or the bottom. Images smaller than half of `size`
    are reflected repeatedly; a side of one pixel is repeated. Equals OpenCV's BORDER_REFLECT_101.

    Args:
        image: RGB.
        size: least width and height of the result, pixels.

    Returns:
        The extended image, or `image` itself where both sides are long enough.

    Raises:
        UsageError: not an RGB image, or a size below 1.
    """
    _check_rgb(image)
    size = _integer("reflect_pad: size", size, minimum=1)
    if min(image.size) >= size:
        return image
    (top, bottom), (left, right) = (
        (missing // 2, missing - missing // 2) for missing in (max(size - image.height, 0), max(size - image.width, 0))
    )
    return _image(np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="reflect"))


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Cut the `size` x `size` square in the middle; an odd pixel of margin stays on the right or at the bottom.

    Raises:
        UsageError: not an RGB image, a size below 1, or an image smaller than `size` (see `fixed_crop`).
    """
    width, height = _margins("center_crop", image, size)
    return _cropped(image, width // 2, height // 2, size)


def fixed_crop(image: Image.Image, size: int) -> Image.Image:
    """The evaluation crop: reflection padding where the image is too small, then the centre crop.

    No pixel is resampled, so the traces that generators leave at pixel scale survive. Equals upstream's clean test
    crop byte for byte.

    Args:
        image: RGB.
        size: side of the result, pixels; 256 in ImagiNet.

    Raises:
        UsageError: not an RGB image, or a size below 1.
    """
    return center_crop(reflect_pad(image, size), size)


def resized_square(image: Image.Image, size: int) -> Image.Image:
    """The largest square in the middle of an image, made `size` x `size` pixels by Lanczos resampling.

    Raises:
        UsageError: not an RGB image, or a size below 1.
    """
    _check_rgb(image)
    size = _integer("resized_square: size", size, minimum=1)
    square = center_crop(image, min(image.size))
    return square if square.width == size else square.resize((size, size), Image.Resampling.LANCZOS)


def random_crop(image: Image.Image, size: int, rng: np.random.Generator) -> Image.Image:
    """Cut a `size` x `size` square, every position being equally likely.

    Raises:
        UsageError: not an RGB image, a size below 1, an image smaller than `size` (see `reflect_pad`), or an rng that
            is not a numpy Generator.
    """
    _check_rng(rng)
    width, height = _margins("random_crop", image, size)
    top = int(rng.integers(height, endpoint=True))
    return _cropped(image, int(rng.integers(width, endpoint=True)), top, size)


@dataclass(frozen=True)
class Perturbation:
    """What the perturbed test set does to one image: a square crop, resized to 256 x 256, and perhaps a compression.

    Attributes:
        side: of the crop, pixels: 256 to 1000.
        left, top: its upper left corner, in the image extended by reflection to at least 256 pixels a side.
        compression: "jpeg", "webp" or None.
        quality: the encoder's, 60 to 100; None where there is no compression.
    """

    side: int
    left: int
    top: int
    compression: str | None = None
    quality: int | None = None

    @classmethod
    def drawn(cls, seed: int, path: str, width: int, height: int) -> Self:
        """What an image gets: a pure function of seed, path and size, whatever other images there are.

        The law is upstream's: with m = min(width, height), side uniform over the integers 256 to
        max(min(m, 1000), 256); the corner uniform over all places where the crop fits into an image of
        max(width, 256) x max(height, 256); with probability 3/4 a compression, JPEG or WebP, one as likely as the
        other, of a quality uniform over the integers 60 to 100.

        The random numbers are defined down to the bit, so that other languages and other times draw the same:

        1. The path is brought to its simplest form, in which neither a part "." nor an empty one is left but one or
           two slashes at the start (`./val2017/x.jpg` and `val2017//x.jpg` are `val2017/x.jpg`; ".." stays; nothing
           at all becomes "."), and then to Unicode's form NFC: see `simple_path`.
        2. The 64 bytes of SHA-512 over `imaginet perturbation 1`, a zero byte, the seed in decimal digits (after a
           minus sign if below 0), a zero byte, and the path in UTF-8, are eight words w0 to w7 of 64 bits,
           the most significant byte first.
        3. A word w gives an integer from a to b, both included: a + floor(w (b - a + 1) / 2^64).
        4. w0 gives the side, w1 left (0 to max(width, 256) - side), w2 top (likewise); there is a compression if w3
           gives less than 3 of 0 to 3; w4 gives it of 0 (JPEG) and 1 (WebP), w5 its quality. w6 and w7 are not used.

        Upstream draws from Python's, numpy's and torch's generators, one state a loader worker, so that there an
        image's crop depends on the number of workers and on the images before it. Its albumentations 1.3.1 also
        never takes the last column and row of places, which here are as likely as any other.

        Args:
            seed: any integer.
            path: of the image in its dataset.
            width, height: of the image, pixels.

        Raises:
            UsageError: a seed or a size that is no such number.
        """
        width = _integer("Perturbation: width", width, minimum=1)
        height = _integer("Perturbation: height", height, minimum=1)
        try:
            seed = operator.index(seed)
        except TypeError as error:
            raise UsageError(f"Perturbation: expected an integer seed, got {seed!r}") from error
        text = f"imaginet perturbation 1\0{seed}\0{simple_path(path)}"
        digest = hashlib.sha512(text.encode("utf-8", "surrogatepass")).digest()
        words = struct.unpack(">8Q", digest)

        def integer(word: int, least: int, most: int) -> int:
            return least + (words[word] * (most - least + 1) >> 64)

        side = integer(0, MIN_SIDE, max(min(width, height, MAX_SIDE), MIN_SIDE))
        left = integer(1, 0, max(width, MIN_SIDE) - side)
        top = integer(2, 0, max(height, MIN_SIDE) - side)
        if integer(3, 0, COMPRESSION_SHARE[1] - 1) >= COMPRESSION_SHARE[0]:
            return cls(side, left, top)
        compression = COMPRESSIONS[integer(4, 0, len(COMPRESSIONS) - 1)]
        return cls(side, left, top, compression, integer(5, *QUALITIES))


def simple_path(path: str) -> str:
    """A path in its simplest form and in Unicode's NFC: what is one image in two lists has one name.

    `./val2017//x.jpg` becomes `val2017/x.jpg`; ".." stays.
    """
    return unicodedata.normalize("NFC", str(PurePosixPath(path)))


def rendered(image: Image.Image, perturbation: Perturbation) -> Image.Image:
    """Carry a perturbation out: reflection padding, crop, Lanczos to 256 x 256, compression.

    Padding is that of `reflect_pad`; a crop of 256 pixels is not resampled. The resampling is Pillow's, which widens
    its filter where it shrinks and so does not alias; upstream's is OpenCV's LANCZOS4, which looks at 8 x 8 pixels
    whatever the scale. The encoders are Pillow's (JPEG with 4:2:0 chroma, WebP of method 4), upstream's are OpenCV's.

    Args:
        image: RGB. Rows below the crop may be missing.
        perturbation: as drawn for the image's size.

    Returns:
        256 x 256 RGB without any metadata.

    Raises:
        UsageError: not an RGB image, a crop that does not fit in, or an unknown compression or quality.
    """
    _check_rgb(image)
    side, left, top = perturbation.side, perturbation.left, perturbation.top
    if min(left, top) < 0 or left + side > max(image.width, MIN_SIDE) or top + side > max(image.height, MIN_SIDE):
        raise UsageError(
            f"expected a crop inside the image of {image.width} x {image.height}, got {side} x {side} at "
            f"({left}, {top}): it was drawn for an image of another size"
        )
    # Cropped before it is padded: a picture of 1 x 1,000,000 pixels is not to take 256 times its memory.
    box = (left, top, min(left + side, image.width), min(top + side, image.height))
    square = reflect_pad(image.crop(box), side)
    small = _image(np.asarray(square.resize((SIZE, SIZE), Image.Resampling.LANCZOS)))
    if perturbation.compression is None:
        return small
    if perturbation.compression not in COMPRESSIONS or perturbation.quality is None:
        raise UsageError(
            f"expected a compression of {', '.join(COMPRESSIONS)} with a quality, "
            f"got {perturbation.compression!r} with {perturbation.quality!r}"
        )
    return _reencoded(small, perturbation.compression.upper(), perturbation.quality)


def encoder_versions() -> dict[str, str | None]:
    """The versions of the encoders and decoders that rendered pixels depend on; None: not there.

    libjpeg-turbo and libwebp encode, and decode originals as zlib (PNG), libavif and libtiff do.
    """
    libraries = {
        "libjpeg-turbo": "libjpeg_turbo",
        "libwebp": "webp",
        "zlib": "zlib",
        "libavif": "avif",
        "libtiff": "libtiff",
    }
    return {"Pillow": PIL.__version__, **{name: features.version(key) for name, key in libraries.items()}}


def _reencoded(image: Image.Image, encoding: str, quality: int) -> Image.Image:
    _check_rgb(image)
    quality = _integer(f"{encoding.lower()}: quality", quality, minimum=1, maximum=100)
    if max(image.size) > _MAX_SIDE[encoding]:
        raise ImageError(
            "oversized",
            f"{encoding.lower()}: expected at most {_MAX_SIDE[encoding]} pixels a side, "
            f"got {image.width} x {image.height}: crop the image first",
        )
    stream = io.BytesIO()
    _image(np.asarray(image)).save(stream, encoding, quality=quality)  # a bare copy: metadata is not to travel
    with Image.open(stream) as decoded:
        return _image(np.asarray(decoded))


def _gaussian_kernel(size: int, sigma: float | None) -> NDArray[np.float32]:
    if sigma is None and size in _SMALL_KERNELS:
        return np.array(_SMALL_KERNELS[size], np.float32)
    sigma = 0.3 * ((size - 1) / 2 - 1) + 0.8 if sigma is None else sigma
    kernel = np.exp(-0.5 * (np.arange(size) - size // 2) ** 2 / sigma**2)
    return (kernel / kernel.sum()).astype(np.float32)


def _image(pixels: NDArray[np.generic]) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _cropped(image: Image.Image, left: int, top: int, size: int) -> Image.Image:
    return image.crop((left, top, left + size, top + size))


def _margins(operation: str, image: Image.Image, size: int) -> tuple[int, int]:
    """How much wider and higher than a square crop the image is."""
    _check_rgb(image)
    size = _integer(f"{operation}: size", size, minimum=1)
    if min(image.size) < size:
        raise UsageError(
            f"{operation}: expected an image of at least {size} x {size} pixels, got {image.width} x {image.height}: "
            "use reflect_pad first"
        )
    return image.width - size, image.height - size


def _check_rgb(image: Image.Image) -> None:
    if not isinstance(image, Image.Image):
        raise UsageError(f"expected a PIL image, got {type(image).__name__}")
    if image.mode != "RGB":
        raise UsageError(f'expected an image of mode RGB, got {image.mode}: call image.convert("RGB") first')
    if 0 in image.size:
        raise UsageError(f"expected an image with pixels, got {image.width} x {image.height}")


def _check_rng(rng: np.random.Generator) -> None:
    if not isinstance(rng, np.random.Generator):
        raise UsageError(
            f"expected a numpy.random.Generator, got {type(rng).__name__}: pass numpy.random.default_rng(seed)"
        )


def _integer(name: str, value: int, *, minimum: int, maximum: int | None = None) -> int:
    bounds = f"{minimum} or more" if maximum is None else f"{minimum} to {maximum}"
    try:
        number = operator.index(value)
    except TypeError as error:
        raise UsageError(f"{name}: expected an integer, {bounds}, got {value!r}") from error
    if number < minimum or (maximum is not None and number > maximum):
        raise UsageError(f"{name}: expected {bounds}, got {number}")
    return number
