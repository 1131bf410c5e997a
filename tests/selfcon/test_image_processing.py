import hashlib
import io
import itertools
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from transformers import AutoImageProcessor

from imaginet_hub.data.images import from_row
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


def shown(size: int, crop: int) -> np.ndarray:
    """The rows or columns of a picture that a crop shows, by numpy."""
    short = max(0, crop - size)
    start = max(0, size - crop) // 2
    return np.pad(np.arange(size), (short // 2, short - short // 2), "reflect")[start : start + crop]


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
    np.testing.assert_allclose(got[0].permute(1, 2, 0).numpy(), expected, atol=1e-6, rtol=0)


def test_every_byte_is_normalised_exactly_enough() -> None:
    array = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    expected = (array.astype(np.float64) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    got = SelfConImageProcessor(crop_size=16)(array, return_tensors="pt").pixel_values[0].permute(1, 2, 0)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-6, rtol=0)
    # In one step or in two is the same to less than a millionth.
    apart = (torch.from_numpy(array).float() / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(got, apart, atol=1e-6, rtol=0)


def saved(array: np.ndarray, folder: Path) -> Path:
    Image.fromarray(array).save(folder / "picture.png")
    return folder / "picture.png"


#: One picture (H, W, 3), as everything it may come as.
WAYS: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "PIL": lambda array, _: Image.fromarray(array),
    "numpy, channels last": lambda array, _: array,
    "numpy, channels first": lambda array, _: array.transpose(2, 0, 1),
    "numpy, read-only": lambda array, _: np.asarray(Image.fromarray(array)),
    "numpy, channels first, read-only": lambda array, _: np.frombuffer(
        array.transpose(2, 0, 1).tobytes(), np.uint8
    ).reshape(3, *array.shape[:2]),
    "numpy, flipped twice": lambda array, _: np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1],
    "numpy, int64": lambda array, _: array.astype(np.int64),
    "numpy, big-endian": lambda array, _: array.astype(">i4"),
    "numpy, float64": lambda array, _: array.astype(np.float64),
    "numpy, with alpha": lambda array, _: np.concatenate([array, array[:, :, :1]], axis=2),
    "torch, channels last": lambda array, _: torch.from_numpy(array.copy()),
    "torch, channels first": lambda array, _: torch.from_numpy(array.copy()).permute(2, 0, 1).contiguous(),
    "torch, float16": lambda array, _: torch.from_numpy(array.astype(np.float16)),
    "batch of numpy": lambda array, _: array[None],
    "batch of torch": lambda array, _: torch.from_numpy(array.copy()).permute(2, 0, 1)[None],
    "list": lambda array, _: [array],
    "nested list": lambda array, _: [[Image.fromarray(array)]],
    "generator": lambda array, _: (picture for picture in [array]),
    "path": saved,
    "path as a string": lambda array, folder: str(saved(array, folder)),
}


@pytest.fixture
def every_warning() -> Iterator[None]:
    """Torch gives some of its warnings once in a process."""
    torch.set_warn_always(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    torch.set_warn_always(False)


@pytest.mark.parametrize("flags", list(itertools.product([False, True], repeat=2)), ids=str)
@pytest.mark.parametrize("size", [(30, 50), (7, 70), (16, 24)], ids=str)
@pytest.mark.usefixtures("every_warning")
def test_every_way_in_gives_the_same_bytes(size: tuple[int, int], flags: tuple[bool, bool], tmp_path: Path) -> None:
    array = image(3, *size)
    options = {"crop_size": {"height": 16, "width": 24}, "do_rescale": flags[0], "do_normalize": flags[1]}
    processor = SelfConImageProcessor(**options)
    plain = torch.from_numpy(array[shown(size[0], 16)][:, shown(size[1], 24)].transpose(2, 0, 1).copy())
    if flags[0] and flags[1]:
        mean, std = (255 * torch.tensor(v).reshape(3, 1, 1) for v in (processor.image_mean, processor.image_std))
        plain = (plain.float() - mean) / std
    elif flags[0]:
        plain = plain * (1 / 255)
    for name, way in WAYS.items():
        if flags == (False, True):
            with pytest.raises(ValueError, match=r"floats of 0\.\.1 to normalise"):
                processor(way(array, tmp_path), return_tensors="pt")
            continue
        got = processor(way(array, tmp_path), return_tensors="pt").pixel_values
        assert got.shape == (1, 3, 16, 24) and got.is_contiguous(), name
        assert torch.equal(got[0], plain.to(got.dtype)), name
        assert got.dtype == (torch.float32 if any(flags) or "float" in name else torch.uint8), name
        (alone,) = processor(way(array, tmp_path)).pixel_values
        assert torch.equal(alone, got[0]), name
        assert np.array_equal(processor(way(array, tmp_path), return_tensors="np").pixel_values, got.numpy()), name


@pytest.mark.parametrize("device", ["cpu", "meta", *(["cuda"] if torch.cuda.is_available() else [])])
def test_any_device(device: str) -> None:
    array = image(3, 20, 30)
    processor = SelfConImageProcessor(crop_size=16)
    expected = processor(array, return_tensors="pt").pixel_values
    kinds = (array, Image.fromarray(array), torch.from_numpy(array), [array, array], np.stack([array, array]))
    for kind in kinds:
        got = processor(kind, device=device, return_tensors="pt").pixel_values
        assert got.device.type == device and got.dtype == torch.float32 and got.shape[1:] == (3, 16, 16)
        assert device == "meta" or all(torch.equal(row, expected[0]) for row in got.cpu())
    there = processor(torch.from_numpy(array).to(device), return_tensors="pt").pixel_values
    assert there.device.type == device
    assert device == "meta" or torch.equal(there.cpu(), expected)


def test_batches_are_their_pictures_bit_for_bit() -> None:
    processor = SelfConImageProcessor(crop_size=16)
    stacked = np.stack([image(seed, 20, 13) for seed in range(5)])
    alone = torch.cat([processor(array, return_tensors="pt").pixel_values for array in stacked])
    for batch in (
        stacked,
        list(stacked),
        torch.from_numpy(stacked),
        torch.from_numpy(stacked).permute(0, 3, 1, 2),
        [stacked[:2], [Image.fromarray(stacked[2])], torch.from_numpy(stacked[3:])],
        (Image.fromarray(array) for array in stacked),
        stacked.astype(np.float32),
    ):
        assert torch.equal(processor(batch, return_tensors="pt").pixel_values, alone)
    gray = np.stack([image(seed, 20, 13)[:, :, 0] for seed in range(2)])
    one_channel = processor(gray[:, None], return_tensors="pt").pixel_values
    assert torch.equal(one_channel, processor(list(gray), return_tensors="pt").pixel_values)


MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBX", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"]
DEEP = ["I;16", "I;16L", "I;16B", "I;16N"]


def of_mode(mode: str, height: int, width: int) -> tuple[Image.Image, np.ndarray]:
    """A picture of random content, and its pixels as RGB, converted before anything is cut off."""
    rng = np.random.default_rng(height * 1000 + width)
    if mode in DEEP:
        values = rng.integers(0, 2**16, (height, width), np.uint16)
        picture = Image.frombytes(mode, (width, height), values.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
        return picture, np.stack([values // 256] * 3, axis=2).astype(np.uint8)
    row = (width + 7) // 8 if mode == "1" else width * len(Image.new(mode, (1, 1)).getbands())
    picture = Image.frombytes(mode, (width, height), rng.bytes(row * height))
    if mode in ("P", "PA"):
        picture.putpalette(rng.bytes(768))
    step = picture.convert("LA") if mode == "La" else picture
    return picture, np.array(step.convert("RGB"))


@given(
    mode=st.sampled_from([*MODES, *DEEP]),
    height=st.integers(1, 600),
    width=st.integers(1, 600),
    crop=st.tuples(st.integers(1, 300), st.integers(1, 300)),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_any_mode_size_and_crop(mode: str, height: int, width: int, crop: tuple[int, int]) -> None:
    picture, rgb = of_mode(mode, height, width)
    assert picture.mode == mode
    expected = rgb[shown(height, crop[0])][:, shown(width, crop[1])]
    options = {"crop_size": {"height": crop[0], "width": crop[1]}}
    before = picture.tobytes()
    for kind in (picture, rgb, torch.from_numpy(rgb)):
        got = pixels(kind, **options, **({} if kind is picture else {"input_data_format": "channels_last"}))
        np.testing.assert_array_equal(got, expected)
    assert picture.tobytes() == before


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
        SelfConImageProcessor(do_resize=True)
    with pytest.raises(ValueError, match="does not resize"):
        SelfConImageProcessor()(image(1, 20, 30), do_resize=True)
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


# Not La, which no file opens as, and which Pillow turns into RGB by way of LA alone.
@pytest.mark.parametrize("mode", [mode for mode in (*MODES, *DEEP) if mode != "La"])
def test_modes_agree_with_the_data_sets_reader(mode: str) -> None:
    picture, _ = of_mode(mode, 9, 12)
    np.testing.assert_array_equal(pixels(picture, crop_size=16), pixels(from_row(picture), crop_size=16))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_without_a_white_are_refused(mode: str) -> None:
    for value in (0, 200, 60000):
        with pytest.raises(ValueError, match=rf"mode '{mode}'.* scale its values to 0\.\.255"):
            pixels(Image.new(mode, (20, 20), value))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "I;16"])
@pytest.mark.filterwarnings("error")
def test_transparent_colours_are_dropped_silently(mode: str) -> None:
    picture, rgb = of_mode(mode, 20, 20)
    file = io.BytesIO()
    picture.save(file, "PNG", transparency=(1, 2, 3) if mode == "RGB" else 1)
    np.testing.assert_array_equal(pixels(Image.open(file), crop_size=16), padded_and_cropped(rgb, 16))


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


@pytest.mark.parametrize("format_", ["gif", "png", "webp", "tiff"])
def test_animations_stay_at_their_frame_and_open(format_: str, tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((20, 20, 3), value, np.uint8)) for value in (10, 120, 200)]
    path = tmp_path / f"moving.{format_}"
    more = {"lossless": True} if format_ == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **more)
    with Image.open(path) as moving:
        for frame, value in ((0, 10), (1, 120), (2, 200)):
            moving.seek(frame)
            assert np.unique(pixels(moving, crop_size=16)) == [value]
            assert moving.tell() == frame
            assert np.unique(np.array(moving.convert("RGB"))) == [value]


def test_files_are_closed_again(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 20), value) for value in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels(tmp_path / "moving.gif")
    (tmp_path / "moving.gif").unlink()


@pytest.fixture(params=[False, True], ids=["strict", "lenient"])
def lenient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Pillow's process-wide switch, as other libraries set it."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", request.param)
    yield request.param
    assert ImageFile.LOAD_TRUNCATED_IMAGES is request.param


@pytest.mark.parametrize("format_", ["png", "jpeg", "webp", "gif", "bmp", "ico"])
@pytest.mark.usefixtures("lenient")
def test_truncated_files_are_errors(format_: str, tmp_path: Path) -> None:
    path = tmp_path / f"cut.{format_}"
    Image.fromarray(image(1, 40, 40)).save(path)
    data = path.read_bytes()
    whole = pixels(path)
    for size in range(len(data) // 4, len(data) - 16, len(data) // 20):
        path.write_bytes(data[:size])
        with pytest.raises(OSError, match=path.name):
            pixels(path)
        try:
            opened = Image.open(io.BytesIO(data[:size]))
        except OSError:
            continue
        if format_ != "ico":  # decoded as it is opened, by the caller
            with pytest.raises(OSError, match="expected a picture"):
                pixels(opened)
    path.write_bytes(data)
    np.testing.assert_array_equal(pixels(path), whole)


@pytest.mark.usefixtures("lenient")
def test_truncated_files_are_errors_in_every_thread() -> None:
    file = io.BytesIO()
    Image.fromarray(image(1, 60, 60)).save(file, "JPEG")
    data, gray = file.getvalue()[: len(file.getvalue()) // 2], []

    def look() -> None:
        for _ in range(20):
            try:
                pixels(Image.open(io.BytesIO(data)))
                gray.append(True)
            except OSError:
                pass

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not gray


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
    for unscaled, word in (
        (array.astype(np.float32), "up to 255"),
        (array, "whole numbers"),
        ([array / 255, array], ""),
    ):
        with pytest.raises(ValueError, match=rf"with do_rescale=False, got {word}"):
            processor(unscaled, do_rescale=False)


def filled(value: float, dtype: Any) -> np.ndarray:
    return np.full((20, 24, 3), value, dtype)


@pytest.mark.parametrize(
    ("picture", "word"),
    [
        (3, "lists of any nesting, got int"),
        (None, "got NoneType"),
        (b"\x89PNG", r"got bytes; .*BytesIO"),
        ({"image": None}, "got dict"),
        ([1, 2], "got int"),
        ([None], "got NoneType"),
        ([], "at least one picture"),
        ([[], []], "at least one picture"),
        (np.zeros((0, 9, 9, 3), np.uint8), "at least one picture"),
        (np.zeros(9, np.uint8), r"got shape \(9,\)"),
        (torch.zeros(1, 1, 3, 9, 9), "got shape"),
        (np.zeros((9, 9, 9), np.uint8), "1 to 4 channels"),
        (np.zeros((0, 9, 3), np.uint8), "got 0 x 9"),
        (torch.zeros(3, 9, 0, dtype=torch.uint8), "got 9 x 0"),
        (Image.new("RGB", (0, 5)), "got 5 x 0"),
        (filled(np.nan, np.float32), "got torch.float32 of nan"),
        (filled(np.inf, np.float64), "of inf"),
        (filled(-0.5, np.float32), "of -0.5.*not normalised yet"),
        (filled(255.5, np.float32), "of 255.5"),
        (filled(256, np.int32), "torch.int32 of 256.*uint16"),
        (filled(-1, np.int64), "of -1"),
        (filled(2**64 - 1, np.uint64), "torch.uint64"),
        (filled(1, np.complex64), "complex"),
        (torch.zeros(3, 9, 9, dtype=torch.complex64), "complex"),
        (filled(1, np.longdouble), "longdouble|float128"),
        (filled(1, object), "object"),
        (np.full((9, 9, 3), "a"), "<U1"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_refuses_what_is_no_picture(picture: Any, word: str) -> None:
    processor = SelfConImageProcessor(crop_size=16)
    good = image(1, 20, 24)
    for images in (picture, *([] if isinstance(picture, (list, dict)) else [[good, picture]])):
        if isinstance(picture, np.ndarray) and picture.shape[0] == 0 and picture.ndim == 4 and images is not picture:
            continue  # no pictures among others
        with pytest.raises(ValueError, match=word):
            processor(images, return_tensors="pt")


def test_refuses_paths_that_lead_nowhere(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        pixels(str(tmp_path / "missing.png"))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(OSError, match=r"text\.png"):
        pixels(tmp_path / "text.png")


def test_one_dark_picture_of_a_batch_is_judged_alone() -> None:
    dark = filled(0.5, np.float32)
    for batch in ([dark, 200 * dark], np.stack([dark, 200 * dark])):
        with pytest.raises(ValueError, match="do_rescale=False"):
            SelfConImageProcessor()(batch)


@pytest.mark.parametrize(
    "crop_size", [0, -1, {"height": 8, "width": 0}, {"height": -8, "width": 8}, {"shortest_edge": 8}]
)
def test_refuses_crops_of_no_size(crop_size: Any) -> None:
    with pytest.raises(ValueError, match="height and a width"):
        SelfConImageProcessor(crop_size=crop_size)
    with pytest.raises(ValueError, match="height and a width"):
        SelfConImageProcessor()(image(1, 9, 9), crop_size=crop_size)


@pytest.mark.parametrize("crop_size", [8.5, "8", {"height": 8.5, "width": 8}, {"height": 8}])
def test_refuses_crops_of_no_whole_size(crop_size: Any) -> None:
    with pytest.raises(ValueError, match="size"):
        SelfConImageProcessor(crop_size=crop_size)
    with pytest.raises((ValueError, StrictDataclassFieldValidationError), match="crop_size"):
        SelfConImageProcessor()(image(1, 9, 9), crop_size=crop_size)


@pytest.mark.parametrize("crop_size", [10**9, {"height": 1, "width": 2**28 + 1}])
def test_refuses_crops_beyond_memory(crop_size: Any) -> None:
    with pytest.raises(ValueError, match="at most 268,435,456 pixels"):
        SelfConImageProcessor()(image(1, 9, 9), crop_size=crop_size)


def test_sizes_that_differ_make_a_list() -> None:
    pictures = [image(1, 20, 24), image(2, 9, 30)]
    processor = SelfConImageProcessor(do_center_crop=False)
    assert [row.shape for row in processor(pictures).pixel_values] == [(3, 20, 24), (3, 9, 30)]
    with pytest.raises(ValueError, match=r"one size.*\(9, 30\), \(20, 24\)"):
        processor(pictures, return_tensors="pt")
    padded = processor(pictures, do_pad=True, return_tensors="pt").pixel_values
    assert padded.shape == (2, 3, 20, 30) and not padded[1, :, 9:].any()


@pytest.mark.parametrize(
    "asked",
    [{}, *({"use_fast": b} for b in (True, False)), *({"backend": b} for b in ("torchvision", "pil"))],
    ids=str,
)
def test_whatever_backend_is_asked_for(asked: dict, classifier_folder: Path) -> None:
    processor = AutoImageProcessor.from_pretrained(classifier_folder, **asked)
    array = image(1, 60, 30)
    expected = SelfConImageProcessor(crop_size=40)(array, return_tensors="pt").pixel_values
    assert torch.equal(processor(array, return_tensors="pt").pixel_values, expected)
    assert torch.equal(processor(Image.fromarray(array), return_tensors="pt").pixel_values, expected)


def test_survives_json(tmp_path: Path) -> None:
    processor = SelfConImageProcessor(crop_size=96, do_normalize=False)
    processor.save_pretrained(tmp_path)
    again = SelfConImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert dict(again.crop_size) == {"height": 96, "width": 96}
    assert dict(SelfConImageProcessor.from_pretrained(tmp_path, crop_size=64).crop_size) == {"height": 64, "width": 64}


@pytest.mark.parametrize("options", [{"size": 224}, {"size": {"height": 8, "width": 8}}, {"do_resize": True}])
def test_a_size_is_refused_wherever_it_is_passed(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="does not resize"):
        SelfConImageProcessor(**options)
    with pytest.raises(ValueError, match="does not resize"):
        SelfConImageProcessor()(image(1, 20, 30), **options)


def test_a_crop_has_two_sides() -> None:
    with pytest.raises(ValueError, match="a height and a width"):
        SelfConImageProcessor(crop_size=(3, 4, 5))
