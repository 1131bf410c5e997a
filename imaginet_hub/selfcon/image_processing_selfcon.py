"""From pictures to the SelfCon ResNet's input. This file travels with every saved model."""
# ruff: noqa: RUF012 (class attributes as transformers has them)

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    SizeDict,
    infer_channel_dimension_format,
)

__all__ = ["SelfConImageProcessor"]

#: A crop of more is a slip of the pen: three channels of float32 take 3 GiB.
_MAX_CROP_PIXELS = 2**28


def _reflected(size: int, crop: int) -> torch.Tensor:
    """For each of the `crop` positions of an axis that has only `size` pixels, which pixel it shows.

    The axis is continued on both sides by reflection that does not repeat the edge, as often as it takes; an odd
    position is added at the far end.
    """
    period = max(2 * (size - 1), 1)
    positions = (torch.arange(crop) - (crop - size) // 2) % period
    return torch.minimum(positions, period - positions) if size > 1 else torch.zeros_like(positions)


def _sides(crop_size: SizeDict | None) -> tuple[int, int]:
    """Height and width of the crop."""
    height, width = (crop_size.height, crop_size.width) if crop_size is not None else (None, None)
    if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
        raise ValueError(
            "expected crop_size to be a number of pixels or a height and a width, whole numbers of at least 1, "
            f"got {dict(crop_size) if crop_size else crop_size}"
        )
    if height * width > _MAX_CROP_PIXELS:
        raise ValueError(
            f"expected a crop_size of at most {_MAX_CROP_PIXELS:,} pixels, got {height} x {width}; "
            "pass do_center_crop=False to keep pictures whole"
        )
    return height, width


def _box(height: int, width: int, sides: tuple[int, int] | None) -> tuple[int, int, int, int]:
    """The part of a picture that its centre crop shows, as (top, left, bottom, right)."""
    if not height or not width:
        raise ValueError(f"expected a picture of at least 1 x 1 pixels, got {height} x {width}")
    crop_height, crop_width = sides or (height, width)
    top, left = max(height - crop_height, 0) // 2, max(width - crop_width, 0) // 2
    return top, left, min(top + crop_height, height), min(left + crop_width, width)


def _continued(pixels: torch.Tensor, sides: tuple[int, int]) -> torch.Tensor:
    """Pixels (..., height, width) that are no larger than the crop, continued to its size."""
    for axis, crop in zip((-2, -1), sides, strict=True):
        size = pixels.shape[axis]
        if size < crop:
            pixels = pixels.index_select(axis, _reflected(size, crop).to(pixels.device))
    return pixels


_lock = threading.Lock()
_users = 0


@contextmanager
def _complete() -> Iterator[None]:
    """Truncated files are errors in here, also where Pillow's process-wide switch would fill them with gray."""
    global _users  # noqa: PLW0603 - as wide as the switch
    with _lock:
        switched = _users > 0 or ImageFile.LOAD_TRUNCATED_IMAGES
        _users += switched
        if switched:
            ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        with _lock:
            _users -= switched
            if switched and not _users:
                ImageFile.LOAD_TRUNCATED_IMAGES = True


def _undecodable(name: Any, error: Exception) -> OSError:
    return OSError(f"expected a picture that can be decoded completely, got {name} ({error})")


def _opened(path: str | os.PathLike[str]) -> Image.Image:
    try:
        return Image.open(path)
    except OSError as error:
        if error.filename or isinstance(error, UnidentifiedImageError):  # says which file
            raise
        raise _undecodable(os.fspath(path), error) from error


def _from_pil(image: Image.Image, sides: tuple[int, int] | None) -> np.ndarray:
    """The crop of a picture of any mode, (H, W, 3) bytes. Neither seeks nor closes it."""
    try:
        with _complete():
            image.load()
    except Exception as error:  # plug-ins raise whatever they run into
        raise _undecodable(getattr(image, "filename", "") or f"a {type(image).__name__}", error) from error
    top, left, bottom, right = _box(image.height, image.width, sides)
    if (top, left, bottom, right) != (0, 0, image.height, image.width):
        image = image.crop((left, top, right, bottom))  # before the conversion, which then has less to do
    if image.mode in ("I", "F"):  # Pillow would clip these at 255
        raise ValueError(
            f"expected 8 or 16 bits a sample, got a picture of mode {image.mode!r}, whose white could be any number; "
            "scale its values to 0..255 and pass them as an array"
        )
    if image.mode.startswith("I;16"):  # and these
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    # By way of these, else Pillow warns of the transparency that is dropped, or knows no way.
    steps = {"P": "RGBA", "La": "LA"}
    if image.mode in steps:
        image = image.convert(steps[image.mode])
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _from_array(
    pixels: np.ndarray | torch.Tensor, sides: tuple[int, int] | None, input_data_format: Any, do_rescale: bool
) -> torch.Tensor:
    """The crops of an array or tensor of 1 to 4 channels, (3, H, W) or (B, 3, H, W): uint8, or float32 in 0..255."""
    shape = tuple(pixels.shape)
    if pixels.ndim == 2:
        pixels, input_data_format = pixels[None], ChannelDimension.FIRST
    if input_data_format is None:
        try:
            input_data_format = infer_channel_dimension_format(pixels, num_channels=(1, 2, 3, 4))  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"expected 1 to 4 channels, first or last, got a picture of shape {shape}") from error
    if ChannelDimension(input_data_format) is ChannelDimension.LAST:
        axes = (*range(pixels.ndim - 3), -1, -3, -2)
        pixels = pixels.transpose(axes) if isinstance(pixels, np.ndarray) else pixels.permute(axes)
    channels, height, width = pixels.shape[-3:]
    if not 1 <= channels <= 4:
        raise ValueError(f"expected 1 to 4 channels, got {channels}, in a picture of shape {shape}")
    top, left, bottom, right = _box(height, width, sides)
    pixels = pixels[..., : 3 if channels >= 3 else 1, top:bottom, left:right]
    if isinstance(pixels, np.ndarray):
        if pixels.dtype.kind not in "buif" or pixels.dtype.itemsize > 8:
            raise ValueError(f"expected numbers as pixels, got an array of {pixels.dtype}")
        # A copy, since torch takes no array that is read-only, flipped or of another byte order.
        pixels = torch.from_numpy(np.array(pixels, pixels.dtype.newbyteorder("="), order="C"))
    return _in_range(pixels, do_rescale).expand(*pixels.shape[:-3], 3, -1, -1)


def _in_range(pixels: torch.Tensor, do_rescale: bool) -> torch.Tensor:
    """Pixels of any type as uint8, or as float32 where they are floats."""
    if pixels.dtype == torch.uint8:
        return pixels
    if pixels.dtype == torch.bool:
        return pixels.to(torch.uint8) * 255
    if pixels.dtype == torch.uint16:
        return (pixels.to(torch.int32) >> 8).to(torch.uint8)
    if pixels.is_complex():
        raise ValueError(f"expected real numbers as pixels, got {pixels.dtype}")
    dtype, pixels = pixels.dtype, pixels.to(torch.float32 if pixels.is_floating_point() else torch.int64)
    low, high = pixels.amin((-3, -2, -1)), pixels.amax((-3, -2, -1))  # of each picture
    if not ((low >= 0) & (high <= 255)).all():  # NaN neither
        raise ValueError(
            f"expected values of 0..255, got {dtype} of {low.min().item():.6g}..{high.max().item():.6g}; pass pixels "
            "that are not normalised yet, and 16-bit ones as uint16"
        )
    if not pixels.is_floating_point():
        return pixels.to(torch.uint8)
    if do_rescale and ((high > 0) & (high <= 1)).any():
        raise ValueError(
            f"expected values of 0..255, got floats up to {high[(high > 0) & (high <= 1)].max().item():.3g}; "
            "pass do_rescale=False for pictures that are scaled to 0..1 already"
        )
    return pixels


def _refuse_unscaled(pixels: torch.Tensor) -> None:
    """Without `do_rescale`, only what is scaled already can be normalised."""
    if not pixels.is_floating_point() or pixels.amax() > 1:
        got = f"up to {pixels.amax().item():.6g}" if pixels.is_floating_point() else "whole numbers of 0..255"
        raise ValueError(
            f"expected floats of 0..1 to normalise with do_rescale=False, got {got}; leave do_rescale on, or pass "
            "do_normalize=False too for pixels as they are"
        )


def _flat(images: Any) -> list[Any]:
    """Pictures and batches of them in any nesting, one after the other."""
    if isinstance(images, (str, os.PathLike, Image.Image)):
        return [images]
    if isinstance(images, (np.ndarray, torch.Tensor)):
        if images.ndim not in (2, 3, 4):
            raise ValueError(
                f"expected a picture of 2 or 3 dimensions, or a batch of 4, got shape {tuple(images.shape)}"
            )
        return [images] if images.ndim < 4 or len(images) else []
    if isinstance(images, Iterable) and not isinstance(images, (bytes, bytearray, memoryview, Mapping)):
        return [picture for item in images for picture in _flat(item)]
    hint = "; open the bytes of a file with PIL.Image.open(io.BytesIO(...))" if isinstance(images, bytes) else ""
    raise ValueError(
        "expected PIL images, arrays, tensors or paths, one of them or lists of any nesting, got "
        f"{type(images).__name__}{hint}"
    )


class SelfConImageProcessor(TorchvisionBackend):
    """Crops the centre of a picture, never resizes it, and normalises it with ImageNet's mean and deviation.

    Resampling blurs away the traces that tell synthetic images from real ones, so a picture keeps its pixels: sides
    shorter than the crop are continued by reflection without repeating the edge, longer ones are cut. Equal, byte for
    byte, to upstream's evaluation crop (ImagiNet, arXiv 2407.20020).

    Pictures come as PIL images, numpy arrays, torch tensors or paths of local files, one or many, of any size:

    - PIL images become RGB as `Image.convert("RGB")` makes them: an alpha channel is dropped, not blended; palette,
      gray and CMYK are converted. 16-bit gray (modes I;16...) keeps its high byte; modes I and F are refused, since
      nobody could say which number is white. Of an animation the current frame is taken, which after opening is the
      first; the image is neither moved on nor closed. The EXIF orientation is not applied (nor does upstream);
      transformers' pipelines do apply it, when they open a file themselves. A truncated file is an error whatever
      `ImageFile.LOAD_TRUNCATED_IMAGES` says.
    - Arrays and tensors have 1 to 4 channels, first or last (`input_data_format` where that is ambiguous), or none; a
      fourth dimension, the first, is the batch. Gray is repeated, alpha dropped. Values are 0..255; 0..1 with
      `do_rescale=False`; uint16 keeps its high byte; False and True are black and white.

    Args:
        crop_size: side of the crop in pixels, or {"height": ..., "width": ...}; 256. At most 2**28 pixels.
        do_center_crop: False gives every picture in its own size, without padding; the model takes any size, but a
            batch needs one.
        do_rescale: divide by 255.
        do_normalize: subtract `image_mean` and divide by `image_std`.

    Returns:
        A BatchFeature whose `pixel_values` are (B, 3, crop height, crop width), float32, with `return_tensors="pt"`;
        a list of tensors without. With neither `do_rescale` nor `do_normalize`, bytes stay bytes.

    Raises:
        ValueError: an input that is not a picture or has no pixels, values that are not 0..255 or not finite, float
            values that are already 0..1 while `do_rescale` is set, others while only `do_normalize` is, a mode or a
            crop_size that cannot be used, pictures of several sizes for one tensor, or `do_resize` or `size`.
        FileNotFoundError, PIL.UnidentifiedImageError, OSError: a file that cannot be opened or decoded completely.
    """

    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    crop_size = {"height": 256, "width": 256}
    do_resize = False
    do_center_crop = True
    do_rescale = True
    do_normalize = True

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Refuses what cannot be used, when the processor is made and when it is called."""
        asked = [name for name in ("do_resize", "size") if kwargs.get(name)]
        if asked:
            raise ValueError(
                "SelfConImageProcessor does not resize, since that erases what the model looks at, but got "
                f"{asked[0]}={kwargs[asked[0]]}; resize the picture yourself where that is really meant"
            )
        crop_size = kwargs.get("crop_size")
        if isinstance(crop_size, (list, tuple)) and len(crop_size) != 2:
            raise ValueError(f"expected crop_size to be a number, or a height and a width, got {crop_size}")
        kwargs = super()._standardize_kwargs(**kwargs)
        if kwargs.get("do_center_crop"):
            _sides(kwargs["crop_size"])
        return kwargs

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list[Any]:
        if not (pictures := _flat(images)):
            raise ValueError("expected at least one picture, got none")
        return pictures

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: torch.device | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """A picture, or an array of many, as channels-first pixels, always RGB, cropped but not yet scaled."""
        sides = _sides(kwargs["crop_size"]) if kwargs["do_center_crop"] else None
        if isinstance(image, (str, os.PathLike)):
            with _complete(), _opened(image) as opened:
                image = _from_pil(opened, sides)
            input_data_format = ChannelDimension.LAST
        elif isinstance(image, Image.Image):
            image, input_data_format = _from_pil(image, sides), ChannelDimension.LAST
        pixels = _from_array(image, sides, input_data_format, kwargs["do_rescale"])
        if kwargs["do_normalize"] and not kwargs["do_rescale"]:
            _refuse_unscaled(pixels)
        return (_continued(pixels, sides) if sides else pixels).contiguous().to(device)

    def _preprocess(  # type: ignore[override]
        self,
        images: list[torch.Tensor],
        *,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Any,
        image_std: Any,
        do_pad: bool | None = None,
        pad_size: SizeDict | None = None,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Scales what `process_image` made: all at once where all are of one size."""
        stacks = [pixels if pixels.ndim == 4 else pixels[None] for pixels in images]
        sizes = {tuple(stack.shape[-2:]) for stack in stacks}
        if len(sizes) == 1 and len(stacks) > 1:
            stacks = [torch.cat(stacks)]
        options = (do_rescale, rescale_factor, do_normalize, image_mean, image_std)
        stacks = [self.rescale_and_normalize(stack, *options) for stack in stacks]
        if do_pad:
            rows = self.pad([row for stack in stacks for row in stack], pad_size=pad_size)  # type: ignore[arg-type]
            stacks = [torch.stack(list(rows))]
        elif return_tensors and len(sizes) > 1:
            raise ValueError(
                f"expected pictures of one size for one tensor, got {sorted(sizes)} (height, width); let them be "
                "cropped, pass one at a time, or leave return_tensors out for a list"
            )
        pixel_values = stacks[0] if return_tensors else [row for stack in stacks for row in stack]
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)


SelfConImageProcessor.register_for_auto_class("AutoImageProcessor")
