import hashlib
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imaginet_hub.selfcon import SelfConImageProcessor
from tests.golden import golden, image

RAW = {"do_rescale": False, "do_normalize": False}


def pixels(picture: Any, **options: Any) -> np.ndarray:
    """What the processor cuts out of one picture, (H, W, 3)."""
    batch = SelfConImageProcessor(**{**RAW, **options})(picture, return_tensors="pt")["pixel_values"]
    assert batch.shape[0] == 1
    return batch[0].permute(1, 2, 0).numpy()


def padded_and_cropped(array: np.ndarray, crop: int) -> np.ndarray:
    """The same by numpy: pad to the crop, the odd row and column at the far end, then cut the middle."""
    short = [max(crop - side, 0) for side in array.shape[:2]]
    array = np.pad(array, [*((s // 2, s - s // 2) for s in short), (0, 0)], mode="reflect")
    top, left = ((side - crop) // 2 for side in array.shape[:2])
    return array[top : top + crop, left : left + crop]


@pytest.mark.parametrize("case", golden("golden_eval_crop"), ids=lambda case: f"{case['height']}x{case['width']}")
def test_golden_crops(case: dict) -> None:
    array = image(case["seed"], case["height"], case["width"])
    for picture in (array, Image.fromarray(array), torch.from_numpy(array).permute(2, 0, 1)):
        cut = pixels(picture)
        assert cut.dtype == np.uint8
        assert hashlib.sha256(cut.tobytes()).hexdigest() == case["sha256_of_uint8_hwc_bytes"]


@pytest.mark.parametrize("height", [1, 2, 3, 7, 16, 17, 30, 99])
@pytest.mark.parametrize("width", [1, 5, 15, 16, 40])
def test_crop_equals_numpy_padding(height: int, width: int) -> None:
    array = image(height * 100 + width, height, width)
    expected = padded_and_cropped(array, 16)
    np.testing.assert_array_equal(pixels(array, crop_size=16, input_data_format="channels_last"), expected)
    np.testing.assert_array_equal(pixels(Image.fromarray(array), crop_size=16), expected)


def test_normalises_with_imagenets_statistics() -> None:
    array = image(1, 20, 30)
    got = SelfConImageProcessor(crop_size=16)(array, return_tensors="pt")["pixel_values"]
    assert got.dtype == torch.float32
    cut = padded_and_cropped(array, 16).astype(np.float64)
    expected = (cut / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(got[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_batches_of_any_sizes_and_kinds() -> None:
    arrays = [image(1, 20, 30), image(2, 300, 9), image(3, 16, 16)]
    processor = SelfConImageProcessor(crop_size={"height": 16, "width": 24})
    kinds = [Image.fromarray(arrays[0]), arrays[1], torch.from_numpy(arrays[2])]
    batch = processor(kinds, return_tensors="pt").pixel_values
    assert batch.shape == (3, 3, 16, 24)
    for row, array in zip(batch, arrays, strict=True):
        torch.testing.assert_close(row, processor(array, return_tensors="pt").pixel_values[0])
    stacked = np.stack([image(4, 20, 30), image(5, 20, 30)])
    assert processor(stacked, return_tensors="pt").pixel_values.shape == (2, 3, 16, 24)
    assert processor(images=Image.fromarray(arrays[0]), return_tensors="pt").pixel_values.shape == (1, 3, 16, 24)


def test_never_resizes() -> None:
    assert pixels(image(1, 20, 30), do_center_crop=False).shape == (20, 30, 3)
    with pytest.raises(ValueError, match="does not resize"):
        pixels(image(1, 20, 30), do_resize=True, size={"height": 8, "width": 8})


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"])
@pytest.mark.parametrize("size", [(9, 12), (40, 31)])
def test_modes_become_what_pillow_makes_of_them(mode: str, size: tuple[int, int]) -> None:
    source = Image.fromarray(image(7, size[1], size[0]))
    if mode == "HSV":
        picture = source.convert("HSV")
    elif mode == "LAB":
        picture = Image.frombytes("LAB", size, source.tobytes())
    elif mode in ("LA", "PA", "RGBA"):
        picture = source.convert("L" if mode == "LA" else "P" if mode == "PA" else "RGB").convert(mode)
        picture.putalpha(Image.fromarray(image(8, size[1], size[0])[:, :, 0]))
    else:
        picture = source.convert(mode)
    assert picture.mode == mode
    expected = padded_and_cropped(np.array(picture.convert("RGB")), 16)
    np.testing.assert_array_equal(pixels(picture, crop_size=16), expected)


def test_transparent_palette_without_a_warning() -> None:
    picture = Image.fromarray(image(1, 20, 20)).convert("P", palette=Image.Palette.ADAPTIVE)
    file = io.BytesIO()
    picture.save(file, "PNG", transparency=bytes(range(256)))
    picture = Image.open(file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = pixels(picture, crop_size=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = padded_and_cropped(np.array(picture.convert("RGB")), 16)
    np.testing.assert_array_equal(got, expected)


def test_sixteen_bits_keep_their_high_byte() -> None:
    deep = np.arange(20 * 24, dtype=np.uint16).reshape(20, 24) * 137
    expected = np.repeat(padded_and_cropped((deep >> 8).astype(np.uint8)[:, :, None], 16), 3, axis=2)
    for picture in (Image.fromarray(deep), deep, torch.from_numpy(deep)):
        np.testing.assert_array_equal(pixels(picture, crop_size=16), expected)
    file = io.BytesIO()
    Image.fromarray(deep).save(file, "PNG")
    np.testing.assert_array_equal(pixels(Image.open(file), crop_size=16), expected)


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((20, 20), value, np.uint8)) for value in (10, 200)]
    path = tmp_path / "moving.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert np.unique(pixels(Image.open(path), crop_size=16)) == [10]


def test_orientation_is_left_as_stored(tmp_path: Path) -> None:
    picture = Image.fromarray(image(1, 24, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    picture.save(path, exif=exif)
    expected = padded_and_cropped(np.array(picture), 16)
    np.testing.assert_array_equal(pixels(Image.open(path), crop_size=16), expected)
    np.testing.assert_array_equal(pixels(str(path), crop_size=16), expected)
    np.testing.assert_array_equal(pixels(path, crop_size=16), expected)


@pytest.mark.parametrize("channels", [None, 1, 2, 3, 4])
@pytest.mark.parametrize("first", [True, False])
def test_arrays_of_any_layout(channels: int | None, first: bool) -> None:
    base = np.random.default_rng(0).integers(0, 256, (20, 24, channels or 1), np.uint8)
    colour = base[:, :, :3] if base.shape[2] >= 3 else np.repeat(base[:, :, :1], 3, axis=2)
    array = base[:, :, 0] if channels is None else base.transpose(2, 0, 1) if first else base
    for picture in (array, torch.from_numpy(array)):
        np.testing.assert_array_equal(pixels(picture, crop_size=16), padded_and_cropped(colour, 16))


def test_floats() -> None:
    array = image(1, 20, 24)
    processor = SelfConImageProcessor(crop_size=16)
    expected = processor(array, return_tensors="pt").pixel_values
    as_floats = processor(array.astype(np.float32), return_tensors="pt").pixel_values
    torch.testing.assert_close(as_floats, expected)
    scaled = processor((array / 255).astype(np.float32), do_rescale=False, return_tensors="pt").pixel_values
    torch.testing.assert_close(scaled, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="do_rescale=False"):
        processor((array / 255).astype(np.float32))
    processor(np.zeros((20, 24, 3), np.float32))  # black is black on either scale


def test_refuses_what_is_no_picture(tmp_path: Path) -> None:
    processor = SelfConImageProcessor()
    with pytest.raises(ValueError, match="flat list of images"):
        processor(3)
    with pytest.raises(FileNotFoundError):
        processor(str(tmp_path / "missing.png"))
    with pytest.raises(ValueError, match="channel"):
        processor(np.zeros((9, 9, 9), np.uint8))
    with pytest.raises(ValueError, match="height and a width"):
        processor(image(1, 9, 9), crop_size={"shortest_edge": 8})


def test_survives_json(tmp_path: Path) -> None:
    processor = SelfConImageProcessor(crop_size=96, do_normalize=False)
    processor.save_pretrained(tmp_path)
    again = SelfConImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert dict(again.crop_size) == {"height": 96, "width": 96}
    assert dict(SelfConImageProcessor.from_pretrained(tmp_path, crop_size=64).crop_size) == {"height": 64, "width": 64}
