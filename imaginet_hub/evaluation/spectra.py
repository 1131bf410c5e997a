"""Mean spectra: the periodic traces that generators leave, which no single image shows. Numpy only.

The picture of Wang et al. 2020 (arXiv 1912.11035, section 5) and Corvi et al. 2023 (arXiv 2211.00680, section 3): what
a denoiser leaves of an image, its Fourier transform, the mean over the images of one generator. Upsampling by s leaves
peaks at multiples of size / s (Odena et al. 2016, "Deconvolution and checkerboard artifacts").

Two things differ. Their denoisers are a median and a network; here it is a linear one, the 3 x 3 binomial blur. A
3 x 3 median leaves a checkerboard as it is, so that the residual would lose the very trace that is looked for, and
what a linear filter does to a spectrum is the same for every group and cancels in the difference of two. And the mean
is one of decibels: in a mean of powers the stripes of a single picture outweigh hundreds of others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaginet_hub.errors import UsageError
from imaginet_hub.perturbations import fixed_crop

__all__ = ["FLOOR", "MeanSpectra", "Spectrum", "high_pass", "power_spectrum", "radial_profile"]

#: Luma of ITU-R BT.601, as JPEG and Pillow have it.
_LUMA = np.array([0.299, 0.587, 0.114])

#: Added to every power so that flat images have a level, in squared grey levels: about what rounding to 8 bits leaves.
FLOOR = 0.01


@dataclass(frozen=True)
class Spectrum:
    """The mean spectrum of a group of images.

    Attributes:
        images: how many. Means of n images of one kind scatter by about 5.6 / sqrt(n) dB from frequency to frequency.
        decibels: (size, size) mean of 10 log10(power + `FLOOR`), see `power_spectrum`; the frequency 0 is at
            [size // 2, size // 2].
    """

    images: int
    decibels: NDArray[np.float64]

    @property
    def radial(self) -> NDArray[np.float64]:
        """See `radial_profile`."""
        return radial_profile(self.decibels)


class MeanSpectra:
    """Adds up the spectra of images, group by group. One array of size x size is held for each group.

    Example:
        >>> spectra = MeanSpectra(size=64)
        >>> spectra.add("real", Image.new("RGB", (80, 60)))
        >>> spectra.result()["real"].images
        1
    """

    def __init__(self, size: int = 256) -> None:
        """
        Args:
            size: side of the crop that is looked at, pixels, 8 or more.

        Raises:
            UsageError: a smaller one.
        """
        if size < 8:
            raise UsageError(f"expected a crop of 8 pixels a side or more, got {size}")
        self.size = size
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._counts: dict[str, int] = {}

    def add(self, group: str, image: Image.Image) -> None:
        """Add one image.

        Args:
            group: what it belongs to, such as its generator.
            image: RGB; its fixed crop is taken (see `perturbations.fixed_crop`), never a resampled one.

        Raises:
            UsageError: not an RGB image.
        """
        power = power_spectrum(np.asarray(fixed_crop(image, self.size), dtype=np.float64) @ _LUMA)
        self._sums.setdefault(group, np.zeros(power.shape))
        self._sums[group] += 10 * np.log10(power + FLOOR)
        self._counts[group] = self._counts.get(group, 0) + 1

    def result(self) -> dict[str, Spectrum]:
        """The mean spectrum of every group, in the order in which groups came."""
        return {
            group: Spectrum(self._counts[group], total / self._counts[group]) for group, total in self._sums.items()
        }


def power_spectrum(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    """|DFT of the windowed residual|^2 / size^2, in squared grey levels.

    The residual is that of `high_pass`, the window Hann's: without it the jump from one edge of the crop to the other
    would draw a cross over every spectrum. The mean over frequencies is the mean square of what is transformed
    (Parseval).

    Args:
        grey: (size, size), levels of 0 to 255.

    Returns:
        (size, size) with the frequency 0 at [size // 2, size // 2].
    """
    size = len(grey)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    transform = np.fft.fft2(high_pass(grey) * window * window[:, None])
    return np.asarray(np.fft.fftshift(np.abs(transform) ** 2 / size**2))


def high_pass(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a 3 x 3 binomial blur takes away; beyond the border the image is reflected.

    Its gain is 1 - cos(pi u)^2 cos(pi v)^2 at u, v cycles a pixel: 0 for what is flat, 1 at the highest frequency.

    Args:
        grey: (height, width), each 2 or more.
    """
    padded = np.pad(grey, 1, mode="reflect")
    rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return grey - (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4


def radial_profile(spectrum: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means over rings around the frequency 0.

    Args:
        spectrum: (size, size) with the frequency 0 at [size // 2, size // 2].

    Returns:
        (size // 2 + 1,): entry r is the mean over what rounds to the distance r, that is r / size cycles a pixel.
    """
    size = len(spectrum)
    offsets = np.arange(size) - size // 2
    rings = np.rint(np.hypot(offsets[:, None], offsets)).astype(np.intp).ravel()
    sums, counts = np.bincount(rings, spectrum.ravel()), np.bincount(rings)
    return (sums / counts)[: size // 2 + 1]
