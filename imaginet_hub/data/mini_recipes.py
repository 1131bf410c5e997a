"""Simulated generators: what eight families of decoders do to a picture, in exact integer arithmetic.

A real decoder builds a picture from coarse to fine, and its up-samplers leave traces at fixed spatial frequencies
(Odena, Dumoulin & Olah 2016, "Deconvolution and Checkerboard Artifacts"; Zhang, Karaman & Chang 2019, "Detecting and
Simulating Artifacts in GAN Fake Images", section 3; Durall, Keuper & Keuper 2020, "Watch your Up-Convolution";
Corvi et al. 2023, "Intriguing properties of synthetic images"). Every recipe below splits a photograph into a coarse
picture and the detail that an ideal interpolator would miss, lets the simulated decoder up-sample the coarse picture
in the ideal one's place, and adds the detail again. The content survives; the decoder's signature is left on it.

| generator    | recipe                                                         | expected fingerprint            |
|--------------|----------------------------------------------------------------|---------------------------------|
| ProGAN       | three x2 transposed convolutions, strongly uneven overlap      | peaks at 1/2, weaker at 1/4     |
| StyleGAN-XL  | the same chain, milder                                         | the same, more roll-off         |
| StyleGAN3    | the same chain, mildest, behind a low-pass against aliasing    | the same, most roll-off         |
| SD v2.1      | x8 autoencoder, coarse latent, (nearest, convolution) x 3      | peaks at (1/8, 3/8); staircases |
| SDXL v1.0    | the same, finer latent, smoother convolutions                  | the same, faint staircases      |
| Animagine XL | SDXL's decoder; faint detail lost                              | the same, empty flat areas      |
| Midjourney   | x3 sub-pixel convolution (pixel shuffle) of unequal channels   | peaks at multiples of 1/3       |
| DALL-E 3     | decoded at 4/5 of the size by a x2 stage, then resized by 5/4  | peaks at 2/5; roll-off beyond   |

Frequencies are in cycles per pixel along the two axes, in either order. The GANs share the x2 chain, the three Stable
Diffusion models the x8 latent: as in ImagiNet, a family is an architecture. The designs of Midjourney and DALL-E 3 are
not published; their recipes are stand-ins, chosen so that the families can be told apart. Every decoder also renders
less of the finest detail than a camera records (Dzanic, Shah & Witherden 2020, "Fourier Spectrum Discrepancies in Deep
Network Generated Images"). Amplitudes are a few gray levels, and nothing here was fitted to images by any of these
generators.

Only additions, multiplications, shifts and floor divisions of integers are used, hence the same bytes everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial

import numpy as np
from numpy.typing import NDArray

from imaginet_hub.labels import Generator

__all__ = ["develop", "paint", "resample", "simulate"]

#: (H, W, 3) uint8, RGB.
Image = NDArray[np.uint8]
#: (3, H, W) int32: planes in 1/16 gray level about mid-gray, the zero of a decoder whose output lies in [-1, 1].
Planes = NDArray[np.int32]

_ONE = 16


# --- what the real and the synthetic side share ---------------------------------------------------------------------


def develop(image: Image, black: int, white: int, grain: int, seed: int) -> Image:
    """Give a picture its own black and white points and a film grain.

    Headroom at both ends keeps a simulated trace from being clipped, which would shift means; points and grain that
    differ from picture to picture keep the darkest and the brightest pixel from telling the two sides apart.

    The grain adds up four raw PCG64 bytes a pixel. A bit generator's raw output is fixed by its definition, while
    numpy's distributions may change between releases.

    Args:
        image: (H, W, 3) uint8.
        black, white: the gray levels that 0 and 255 become.
        grain: standard deviation in units of 0.58 gray levels.
        seed: of the grain, which is the same in all three channels.
    """
    height, width, _ = image.shape
    raw = np.random.PCG64(seed).random_raw((height * width + 1) // 2).astype("<u8").view(np.uint8)
    noise = raw[: 4 * height * width].reshape(height, width, 4).sum(axis=-1, dtype=np.int32) - 510
    toned = black + (image.astype(np.int32) * (white - black) + 127) // 255
    return np.asarray(np.clip(toned + ((grain * noise + 128) >> 8)[..., None], 0, 255), dtype=np.uint8)


def resample(image: Image, scale: Fraction) -> Image:
    """Resize both axes by an exact ratio with a triangle filter (widened when it shrinks, against aliasing)."""
    across = _resample_axis(image.astype(np.int32), scale, axis=0)
    return np.asarray(_resample_axis(across, scale, axis=1), dtype=np.uint8)


def _resample_axis(x: NDArray[np.int32], scale: Fraction, axis: int) -> NDArray[np.int32]:
    p, q = scale.numerator, scale.denominator
    size = x.shape[axis]
    shape = [1] * x.ndim
    shape[axis] = -1
    # In units of 1/(2p) input pixel, output i sits at q(2i+1) and input j at p(2j+1): whole numbers, exact weights.
    centre = q * (2 * np.arange(size * p // q, dtype=np.int32) + 1)
    reach = 2 * max(p, q)
    first = (centre - reach) // (2 * p)
    total = np.zeros_like(centre)
    blend = np.zeros((), dtype=np.int32)
    for j in range(reach // p + 2):
        weight = np.maximum(0, reach - np.abs(p * (2 * (first + j) + 1) - centre))
        blend = blend + weight.reshape(shape) * np.take(x, np.clip(first + j, 0, size - 1), axis=axis)
        total = total + weight
    return np.asarray((blend + total.reshape(shape) // 2) // total.reshape(shape), dtype=np.int32)


def paint(image: Image, radius: int) -> Image:
    """Make a photograph look painted with Kuwahara's filter (1976).

    Each pixel takes the mean of that one of its four (radius + 1)-pixel square neighbourhoods whose luminance varies
    least.
    """
    rgb = image.astype(np.int32)
    luma = (77 * rgb[..., 0] + 150 * rgb[..., 1] + 29 * rgb[..., 2]) >> 8
    side = radius + 1
    sums = _box_sums(np.dstack([rgb, luma, luma * luma]), side)
    height, width = luma.shape
    corners = [sums[y : y + height, x : x + width] for y in (0, radius) for x in (0, radius)]
    best = corners[0]
    for corner in corners[1:]:
        calmer = _spread(corner, side) < _spread(best, side)
        best = np.where(calmer[..., None], corner, best)
    return np.asarray((best[..., :3] + side * side // 2) // (side * side), dtype=np.uint8)


def _box_sums(x: NDArray[np.int32], side: int) -> NDArray[np.int64]:
    """Sums over every side x side window of the picture, its border repeated by side - 1 pixels."""
    padded = np.pad(x, ((side, side - 1), (side, side - 1), (0, 0)), mode="edge")
    table = padded.astype(np.int64).cumsum(axis=0).cumsum(axis=1)
    return table[side:, side:] - table[:-side, side:] - table[side:, :-side] + table[:-side, :-side]


def _spread(sums: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    return side * side * sums[..., 4] - sums[..., 3] ** 2


# --- the simulated generators ---------------------------------------------------------------------------------------


def simulate(image: Image, generator: Generator) -> Image:
    """Put a photograph through a generator's recipe (see the module's table).

    Args:
        image: (H, W, 3) uint8, with some headroom at both ends (see `develop`).
        generator: any but `Generator.REAL`.

    Returns:
        (H, W, 3) uint8. A gray picture stays gray: every channel is treated alike.

    Raises:
        KeyError: `generator` is `Generator.REAL`.
    """
    block, taps, decoder = _RECIPES[generator]
    height, width, _ = image.shape
    border = ((0, -height % block), (0, -width % block), (0, 0))
    planes = (np.pad(image, border, mode="symmetric").astype(np.int32).transpose(2, 0, 1) - 128) * _ONE
    decoded = ((decoder(_fir(planes, taps)) + _ONE // 2) // _ONE + 128)[:, :height, :width]
    return np.ascontiguousarray(np.clip(decoded, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def _fir(x: Planes, taps: tuple[int, ...]) -> Planes:
    """A symmetric filter along both axes; the taps sum to a power of two."""
    shift = sum(taps).bit_length() - 1
    reach = len(taps) // 2
    for axis in (1, 2):
        border = [(0, 0)] * 3
        border[axis] = (reach, reach)
        padded = np.pad(x, border, mode="edge").swapaxes(1, axis)
        size = x.shape[axis]
        blend = taps[reach] * padded[:, reach : reach + size]
        for k in range(reach):
            blend += taps[k] * (padded[:, k : k + size] + padded[:, 2 * reach - k : 2 * reach - k + size])
        x = ((blend + (1 << shift >> 1)) >> shift).swapaxes(1, axis)
    return x


def _shrink(x: Planes, factor: int) -> Planes:
    """Mean of every factor x factor block."""
    planes, height, width = x.shape
    blocks = x.reshape(planes, height // factor, factor, width // factor, factor).sum(axis=(2, 4), dtype=np.int32)
    return (blocks + factor * factor // 2) // (factor * factor)


def _nearest(x: Planes, factor: int = 2) -> Planes:
    return x.repeat(factor, axis=1).repeat(factor, axis=2)


def _ideal(x: Planes) -> Planes:
    """x2 by linear interpolation between pixel centres: the reference that leaves no lattice."""
    for axis in (1, 2):
        x = x.swapaxes(1, axis)
        padded = np.pad(x, ((0, 0), (1, 1), (0, 0)), mode="edge")
        wide = np.empty((x.shape[0], 2 * x.shape[1], x.shape[2]), dtype=np.int32)
        wide[:, 0::2] = (3 * x + padded[:, :-2] + 2) >> 2
        wide[:, 1::2] = (3 * x + padded[:, 2:] + 2) >> 2
        x = wide.swapaxes(1, axis)
    return x


def _tile(pattern: NDArray[np.int32], shape: tuple[int, ...]) -> NDArray[np.int32]:
    rows, columns = (-(-size // period) for size, period in zip(shape[-2:], pattern.shape, strict=True))
    return np.tile(pattern, (rows, columns))[: shape[-2], : shape[-1]]


def _transposed(x: Planes, gain: int, bias: int) -> Planes:
    """x2 transposed convolution whose kernel overlaps unevenly: its four phases differ in gain (in 1/128) and bias."""
    y = _ideal(x)
    gains = _tile(gain * np.array([[1, 0], [0, -1]], dtype=np.int32), y.shape)
    return y + ((y * gains + 64) >> 7) + _tile(bias * np.array([[1, -1], [-1, 1]], dtype=np.int32), y.shape)


def _chain(x: Planes, gain: int, bias: int, depth: int = 3) -> Planes:
    """A chain of x2 stages, coarse to fine."""
    if depth == 0:
        return x
    coarse = _shrink(x, 2)
    return _transposed(_chain(coarse, gain, bias, depth - 1), gain, bias) + x - _ideal(coarse)


#: One period of the x8 decoder's lattice: waves of 1/8 along one axis times 3/8 along the other, both ways round. None
#: of the frequencies of a x2 chain's last two stages occurs.
_SLOW, _FAST = (np.array(wave, dtype=np.int32) for wave in ([3, 2, 0, -2, -3, -2, 0, 2], [3, -2, 0, 2, -3, 2, 0, -2]))
_LATTICE8 = np.outer(_SLOW, _FAST) + np.outer(_FAST, _SLOW)


def _latent(x: Planes, step: int, taps: tuple[int, ...], bias: int, flatten: int = 0) -> Planes:
    """A x8 autoencoder: block means quantised to `step`, then nearest x2 and a convolution, three times.

    Detail weaker than `flatten` is lost, stronger detail is shrunk by as much.
    """
    coarse = _shrink(x, 8)
    smooth = _ideal(_ideal(_ideal(coarse)))
    decoded = (coarse + step // 2) // step * step
    for _ in range(3):
        decoded = _fir(_nearest(decoded), taps)
    detail = x - smooth
    if flatten:
        detail = np.sign(detail) * np.maximum(np.abs(detail) - flatten, 0)
    return detail + (smooth + decoded) // 2 + _tile(bias * _LATTICE8, x.shape)


#: Gain (in 1/256) and bias (in 1/16 gray level) of the nine channels that a x3 pixel shuffle interleaves.
_SHUFFLE_GAIN = np.array([[32, -8, -4], [-8, -6, -4], [-4, -4, 6]], dtype=np.int32)
_SHUFFLE_BIAS = np.array([[212, -50, -20], [-50, -48, -22], [-20, -22, 20]], dtype=np.int32)


def _shuffle(x: Planes) -> Planes:
    """A x3 sub-pixel convolution: every phase of the lattice comes from a channel of its own."""
    base = _nearest(_shrink(x, 3), 3)
    return x + ((base * _tile(_SHUFFLE_GAIN, x.shape) + 128) >> 8) + _tile(_SHUFFLE_BIAS, x.shape)


def _resized(x: Planes, gain: int, bias: int) -> Planes:
    """Decoded at 4/5 of the size by a x2 stage, then resized to the size that is served."""

    def resize(y: Planes, scale: Fraction) -> Planes:
        return _resample_axis(_resample_axis(y, scale, axis=1), scale, axis=2)

    small = resize(x, Fraction(4, 5))
    coarse = _shrink(small, 2)
    return resize(small - _ideal(coarse) + _transposed(coarse, gain, bias), Fraction(5, 4))


#: For each generator: the block size that its picture is padded to, the filter that says how much of the finest detail
#: it renders, and its decoder.
_RECIPES: dict[Generator, tuple[int, tuple[int, ...], Callable[[Planes], Planes]]] = {
    Generator.PROGAN: (8, (1, 6, 1), partial(_chain, gain=8, bias=48)),
    Generator.STYLEGAN_XL: (8, (3, 10, 3), partial(_chain, gain=7, bias=44)),
    Generator.STYLEGAN3: (8, (1, 2, 1), partial(_chain, gain=6, bias=40)),
    Generator.SD_2_1: (8, (3, 10, 3), partial(_latent, step=64, taps=(1, 6, 1), bias=13)),
    Generator.SDXL_1_0: (8, (3, 10, 3), partial(_latent, step=32, taps=(3, 10, 3), bias=13)),
    Generator.ANIMAGINE_XL: (8, (3, 10, 3), partial(_latent, step=32, taps=(3, 10, 3), bias=13, flatten=16)),
    Generator.MIDJOURNEY: (3, (3, 10, 3), _shuffle),
    Generator.DALLE3: (10, (0, 1, 0), partial(_resized, gain=12, bias=160)),
}
