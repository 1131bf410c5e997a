"""What happens to pictures on their way to a reader: re-encoding, blur, noise, padding and cropping.

Every function takes an RGB PIL image of 8 bits a channel and gives a new one (or the same object where nothing is to
be done). The result is fully determined by the arguments: whatever is random is drawn from the
`numpy.random.Generator` that the caller passes. Encoded bytes, and so the pixels after `jpeg` and `webp`, depend on
the encoder inside the installed Pillow.

The operations and their ranges are those of ImagiNet's training and test pipelines (Boychev & Cholakov 2025,
arXiv:2407.20020, training details and perturbed test set), re-implemented without albumentations and OpenCV.
"""

from __future__ import annotations

import io
import math
import operator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaginet_hub.errors import ImageError, UsageError

__all__ = [
    "center_crop",
    "fixed_crop",
    "gaussian_blur",
    "gaussian_noise",
    "jpeg",
    "random_crop",
    "reflect_pad",
    "webp",
]

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
