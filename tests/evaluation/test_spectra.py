import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from imaginet_hub.errors import UsageError
from imaginet_hub.evaluation.spectra import FLOOR, MeanSpectra, high_pass, power_spectrum, radial_profile

SIZE = 64


def noise(seed=0, size=SIZE, channels=3):
    values = np.random.default_rng(seed).integers(0, 256, (size, size, channels))
    return np.broadcast_to(values, (size, size, 3)).astype(np.uint8)


def spectrum(*arrays, size=SIZE):
    spectra = MeanSpectra(size)
    for array in arrays:
        spectra.add("x", Image.fromarray(array))
    return spectra.result()["x"]


def grey(values):
    return np.repeat(values[:, :, None], 3, axis=2).astype(np.uint8)


def test_the_high_pass_is_what_a_binomial_blur_takes_away():
    values = np.random.default_rng(0).normal(size=(20, 31))
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    assert high_pass(values) == pytest.approx(values - ndimage.convolve(values, kernel, mode="mirror"))


@pytest.mark.parametrize(("u", "v"), [(0, 0), (0, 8), (5, 3), (16, 16), (32, 0), (32, 32)])
def test_the_gain_of_the_high_pass_is_as_documented(u, v):
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    wave = np.cos(2 * np.pi * (u * y + v * x))
    gain = 1 - np.cos(np.pi * u / SIZE) ** 2 * np.cos(np.pi * v / SIZE) ** 2
    assert high_pass(wave)[1:-1, 1:-1] == pytest.approx(gain * wave[1:-1, 1:-1])


@pytest.mark.parametrize("period", [2, 4, 8, 16])
def test_a_pattern_of_period_p_peaks_at_size_over_p(period):
    stripes = 100 + 50 * (np.arange(SIZE) % period == 0)
    power = spectrum(grey(np.tile(stripes, (SIZE, 1)))).decibels
    row, column = np.unravel_index(power.argmax(), power.shape)
    assert row == SIZE // 2
    assert abs(column - SIZE // 2) % (SIZE // period) == 0
    at_peaks = power[SIZE // 2, SIZE // 2 % (SIZE // period) :: SIZE // period]
    middle = power[SIZE // 2, (SIZE // 2 + SIZE // period // 2) % SIZE]
    assert np.delete(at_peaks, len(at_peaks) // 2).min() > middle + 25


def test_a_checkerboard_is_a_peak_at_the_highest_frequency():
    y, x = np.mgrid[:SIZE, :SIZE]
    power = spectrum(grey(100 + 40 * ((x + y) % 2))).decibels
    assert np.unravel_index(power.argmax(), power.shape) == (0, 0)


@pytest.mark.parametrize("factor", [2, 4])
def test_upsampling_leaves_peaks_that_the_picture_itself_has_not(factor):
    """Zero-insertion and a blur that does not fit: what transposed convolutions do."""
    kernel = np.ones((factor + 1, factor + 1)) / (factor + 1)
    plain, upsampled = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        smooth = 128 + 40 * ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), 2) * 4
        small = np.zeros((SIZE, SIZE))
        small[::factor, ::factor] = smooth[: SIZE // factor, : SIZE // factor]
        grid = ndimage.convolve(small, kernel, mode="mirror") * factor**2 / (factor + 1)
        plain.append(grey(np.clip(smooth, 0, 255)))
        upsampled.append(grey(np.clip(grid, 0, 255)))
    before, after = spectrum(*plain).decibels, spectrum(*upsampled).decibels
    peak = SIZE // 2, SIZE // 2 + SIZE // factor if factor > 2 else 0
    beside = SIZE // 2 + SIZE // factor // 2
    assert after[peak] > after[SIZE // 2, beside] + 15
    assert after[peak] > before[peak] + 20


@settings(derandomize=True, max_examples=20, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from([8, 15, 32]))
def test_parseval(seed, size):
    """The mean of the spectrum is the mean square of what is transformed."""
    array = noise(seed, size)
    luma = array @ np.array([0.299, 0.587, 0.114])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    windowed = high_pass(luma) * window * window[:, None]
    found = power_spectrum(luma)
    assert found.mean() == pytest.approx((windowed**2).mean())
    assert found == pytest.approx(np.roll(np.flip(found), (1 - size % 2,) * 2, (0, 1)))  # of a real signal
    assert spectrum(array, size=size).decibels == pytest.approx(10 * np.log10(found + FLOOR))


def test_white_noise_is_flat_but_for_the_gain_of_the_filter():
    images = [noise(seed, channels=1) for seed in range(60)]
    found = spectrum(*images)
    frequencies = (np.arange(SIZE) - SIZE // 2) / SIZE
    gain = 1 - np.cos(np.pi * frequencies) ** 2 * np.cos(np.pi * frequencies[:, None]) ** 2
    # 3 / 8: the mean square of Hann's window; exp(-Euler's constant): a mean of logarithms of what is exponential
    expected = 10 * np.log10(gain**2 * (256**2 - 1) / 12 * (3 / 8) ** 2 * np.exp(-np.euler_gamma) + FLOOR)
    # The window spreads every frequency over its neighbours, which shows where the gain is steep.
    assert found.radial[8:] == pytest.approx(radial_profile(expected)[8:], abs=0.5)
    inner = (found.decibels - expected)[:, : SIZE // 2 - 4]
    assert inner.std() == pytest.approx(5.6 / np.sqrt(60), rel=0.1)  # as documented


def test_one_striped_picture_does_not_speak_for_all():
    stripes = grey(np.tile(60 + 120 * (np.arange(SIZE) % 4 < 2), (SIZE, 1)))
    quiet = [(noise(seed) // 16 + 100).astype(np.uint8) for seed in range(40)]
    peak = SIZE // 2, SIZE // 4
    assert spectrum(*quiet, stripes).decibels[peak] < spectrum(*quiet).decibels[peak] + 3
    assert spectrum(stripes).decibels[peak] > spectrum(*quiet).decibels[peak] + 30


def test_groups_are_means_of_their_images():
    spectra = MeanSpectra(SIZE)
    for seed in range(4):
        spectra.add("even" if seed % 2 == 0 else "odd", Image.fromarray(noise(seed)))
    found = spectra.result()
    assert [(group, part.images) for group, part in found.items()] == [("even", 2), ("odd", 2)]
    singly = [spectrum(noise(seed)).decibels for seed in range(4)]
    assert found["even"].decibels == pytest.approx((singly[0] + singly[2]) / 2)
    assert found["odd"].decibels == pytest.approx((singly[1] + singly[3]) / 2)


def test_only_the_fixed_crop_counts():
    array = noise(size=80)
    assert np.array_equal(spectrum(array).decibels, spectrum(array[8:72, 8:72]).decibels)
    small = spectrum(noise(size=20))
    assert small.decibels.shape == (SIZE, SIZE)
    assert np.isfinite(small.decibels).all()


def test_a_flat_image_is_at_the_floor():
    assert spectrum(grey(np.full((SIZE, SIZE), 90))).decibels == pytest.approx(10 * np.log10(FLOOR))


def test_rings():
    power = np.zeros((9, 9))
    power[4, 4], power[4, 6] = 5, 12
    assert radial_profile(power).tolist() == [5, 0, 1, 0, 0]  # 12 cells round to a distance of 2


def test_unusable_input_is_refused():
    with pytest.raises(UsageError, match="8 pixels"):
        MeanSpectra(7)
    with pytest.raises(UsageError, match="RGB"):
        MeanSpectra().add("x", Image.new("L", (9, 9)))
    assert MeanSpectra().result() == {}
