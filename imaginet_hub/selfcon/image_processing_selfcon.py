"""From pictures to the SelfCon ResNet's input. This file travels with every saved model."""
# ruff: noqa: RUF012 (class attributes as transformers has them)

import os
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    SizeDict,
    infer_channel_dimension_format,
)

__all__ = ["SelfConImageProcessor"]


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
    if crop_size is None or not crop_size.height or not crop_size.width:
        raise ValueError(f"expected crop_size to be a number of pixels or a height and a width, got {crop_size}")
    return crop_size.height, crop_size.width


def _crop(pixels: torch.Tensor, sides: tuple[int, int]) -> torch.Tensor:
    """The centre of channels-first pixels, (C, height, width)."""
    for axis, crop in enumerate(sides, start=1):
        size = pixels.shape[axis]
        if size > crop:
            pixels = pixels.narrow(axis, (size - crop) // 2, crop)
        elif size < crop:
            pixels = pixels.index_select(axis, _reflected(size, crop).to(pixels.device))
    return pixels


def _crop_box(image: Image.Image, sides: tuple[int, int]) -> tuple[int, int, int, int]:
    """The part of a picture that its centre crop shows, as (left, upper, right, lower)."""
    height, width = sides
    left, upper = max(image.width - width, 0) // 2, max(image.height - height, 0) // 2
    return left, upper, min(left + width, image.width), min(upper + height, image.height)


def _rgb(image: Image.Image) -> np.ndarray:
    """A picture of any mode as (H, W, 3) bytes."""
    if image.mode.startswith("I;16"):  # Pillow would clip these at 255
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "P":  # by way of RGBA, else Pillow warns of the transparency that is dropped
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _three_channels(pixels: torch.Tensor, input_data_format: Any) -> torch.Tensor:
    """An array or tensor of 1 to 4 channels as (3, H, W)."""
    if input_data_format is None:
        input_data_format = infer_channel_dimension_format(pixels, num_channels=(1, 2, 3, 4))  # type: ignore[arg-type]
    if ChannelDimension(input_data_format) is ChannelDimension.LAST:
        pixels = pixels.permute(2, 0, 1)
    if pixels.dtype == torch.bool:
        pixels = pixels.to(torch.uint8) * 255
    elif pixels.dtype == torch.uint16:
        pixels = (pixels.to(torch.int32) >> 8).to(torch.uint8)
    return pixels[:3] if pixels.shape[0] >= 3 else pixels[:1].expand(3, -1, -1)


class SelfConImageProcessor(TorchvisionBackend):
    """Crops the centre of a picture, never resizes it, and normalises it with ImageNet's mean and deviation.

    Resampling blurs away the traces that tell synthetic images from real ones, so a picture keeps its pixels: sides
    shorter than the crop are continued by reflection without repeating the edge, longer ones are cut. Equal, byte for
    byte, to upstream's evaluation crop (ImagiNet, arXiv 2407.20020).

    Pictures come as PIL images, numpy arrays, torch tensors or paths of local files, one or many, of any size:

    - PIL images become RGB as `Image.convert("RGB")` makes them: an alpha channel is dropped, not blended; palette,
      gray and CMYK are converted. 16-bit gray keeps its high byte. Of an animation the current frame is taken, which
      after opening is the first. The EXIF orientation is not applied (nor does upstream); transformers' pipelines do
      apply it, when they open a file themselves.
    - Arrays and tensors have 1 to 4 channels, first or last (`input_data_format` where that is ambiguous), or none;
      gray is repeated, alpha dropped. Values are 0..255; 0..1 with `do_rescale=False`; uint16 keeps its high byte.

    Args:
        crop_size: side of the crop in pixels, or {"height": ..., "width": ...}; 256.
        do_center_crop: False gives every picture in its own size, without padding; the model takes any size, but a
            batch needs one.
        do_rescale: divide by 255.
        do_normalize: subtract `image_mean` and divide by `image_std`.

    Returns:
        A BatchFeature whose `pixel_values` are (B, 3, crop height, crop width), float32, with `return_tensors="pt"`;
        a list of tensors without.

    Raises:
        ValueError: an input that is not a picture, float values that are already 0..1 while `do_rescale` is set, or
            `do_resize`.
        FileNotFoundError, PIL.UnidentifiedImageError, OSError: a path that cannot be opened or decoded.
    """

    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    crop_size = {"height": 256, "width": 256}
    do_resize = False
    do_center_crop = True
    do_rescale = True
    do_normalize = True

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Opens paths; gives gray arrays the channel axis that makes them pictures."""
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(image) for image in image_url_or_urls]
        if isinstance(image_url_or_urls, (str, os.PathLike)):
            return Image.open(image_url_or_urls)
        if isinstance(image_url_or_urls, (np.ndarray, torch.Tensor)) and image_url_or_urls.ndim == 2:
            return image_url_or_urls[None]
        return image_url_or_urls

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        device: torch.device | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """One picture as channels-first pixels, always RGB, cropped but not yet scaled."""
        sides = _sides(kwargs["crop_size"]) if kwargs["do_center_crop"] else None
        if isinstance(image, Image.Image):
            if sides:  # before the conversion, which then has a few pixels to do instead of millions
                image = image.crop(_crop_box(image, sides))
            pixels = torch.from_numpy(_rgb(image)).permute(2, 0, 1)
        else:
            pixels = _three_channels(torch.as_tensor(image), input_data_format)
        if sides:
            pixels = _crop(pixels, sides)
        if kwargs["do_rescale"] and pixels.is_floating_point() and 0 < pixels.max() <= 1:
            raise ValueError(
                f"expected values of 0..255, got floats up to {pixels.max().item():.3g}; "
                "pass do_rescale=False for pictures that are scaled to 0..1 already"
            )
        return pixels.contiguous().to(device)

    def _validate_preprocess_kwargs(self, **kwargs: Any) -> None:  # type: ignore[override]
        if kwargs.get("do_resize"):
            raise ValueError(
                "SelfConImageProcessor does not resize, since that erases what the model looks at, but got "
                "do_resize=True; resize the picture yourself where that is really meant"
            )
        super()._validate_preprocess_kwargs(**kwargs)


SelfConImageProcessor.register_for_auto_class("AutoImageProcessor")
