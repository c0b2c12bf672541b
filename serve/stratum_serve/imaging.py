"""From the bytes of a request to pixels: what is too large or no image is refused from its header, before anything is decoded."""

import io
import math
import warnings
from contextlib import suppress
from dataclasses import dataclass

import tifffile
import torch
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor
from torch.nn.functional import interpolate

from stratum.data.images import DepthRule, ImageError, decode_image
from stratum_serve.problems import Problem

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # nothing else of what Pillow knows is tried
MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp", "image/bmp", "image/tiff")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """The largest image that is decoded."""

    pixels: int
    side: int
    frames: int = 1
    instance_pixels: int = 8_000_000  # in which instances are looked for


@dataclass(frozen=True, kw_only=True)
class Header:
    """What an image says of itself before it is decoded."""

    width: int
    height: int


def read_header(data: bytes, limits: ImageLimits) -> Header:
    """The header of an encoded image. Raises Problem where it is none that can be read, or larger than the limits.

    The size is judged first, and no more frames are looked for than may be: a file of kilobytes can hold thousands.
    """
    if not data:
        raise Problem("not-an-image", "the body is empty: send the bytes of an image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limits judge that
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                header = _sized(image.width, image.height, limits)
                if _more_frames(image, limits.frames):
                    raise _too_many_frames(limits)
                return header
    except Problem:
        raise
    except Image.DecompressionBombError as error:
        raise Problem("too-many-pixels", f"{' '.join(str(error).split())}: scale the image down or cut it into tiles") from error
    except UnidentifiedImageError:
        return _tiff_header(data, limits)
    except Exception as error:  # parsers raise whatever they stumble over
        raise _not_an_image(" ".join(str(error).split()) or type(error).__name__) from error


def check_masks(header: Header, max_size: int | None, limits: ImageLimits) -> None:
    """Raises Problem where an image is so large that the masks of its instances, each of its size, would not fit into memory."""
    height, width = smaller_size(header.height, header.width, max_size)
    if height * width > limits.instance_pixels:
        about = int(max(height, width) * math.sqrt(limits.instance_pixels / (height * width)))
        fitting = next(side for side in range(about, 0, -1) if math.prod(smaller_size(height, width, side)) <= limits.instance_pixels)
        raise Problem(
            "too-many-pixels",
            f"{width}x{height} pixels are more than the {limits.instance_pixels} in which instances are looked for: "
            f"add max_size={fitting}, or less, and the answer has the size of the image all the same",
        )


def smaller_size(height: int, width: int, max_size: int | None) -> tuple[int, int]:
    """Height and width with the longer side at ``max_size`` pixels, or as they are where they are no larger."""
    if max_size is None or max(height, width) <= max_size:
        return height, width
    scale = max_size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def shrunk(image: Tensor, max_size: int | None) -> Tensor:
    """The image ``uint8 [3, h, w]`` at :func:`smaller_size`."""
    size = smaller_size(int(image.shape[-2]), int(image.shape[-1]), max_size)
    if size == tuple(image.shape[-2:]):
        return image
    small = interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    return small.round().clamp(0, 255).to(torch.uint8)


def decode(data: bytes, limits: ImageLimits, depth: DepthRule | None) -> Tensor:
    """An encoded image as ``uint8 [3, H, W]``. Raises Problem where it is too large or cannot be read."""
    read_header(data, limits)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what decoders say of odd metadata
            return decode_image(data, depth, "the image")
    except ImageError as error:
        raise Problem("not-an-image", str(error)) from error


def _sized(width: int, height: int, limits: ImageLimits) -> Header:
    if width < 1 or height < 1:
        raise _not_an_image(f"it has {width}x{height} pixels")
    if width * height > limits.pixels or max(width, height) > limits.side:
        raise Problem(
            "too-many-pixels",
            f"{width}x{height} pixels are more than the {limits.pixels} pixels or {limits.side} a side that are taken: scale or cut it",
        )
    return Header(width=width, height=height)


def _more_frames(image: Image.Image, most: int) -> bool:
    """Whether there are more frames or pages than so many."""
    if not isinstance(image, TiffImageFile):  # the others count them in their header; a camera's second picture is a preview
        return image.format != "MPO" and int(getattr(image, "n_frames", 1)) > most
    try:
        image.seek(most)
    except EOFError:
        return False
    return True


def _too_many_frames(limits: ImageLimits) -> Problem:
    return Problem("too-many-pixels", f"the image has more frames or pages than the {limits.frames} that may be: send them one by one")


def _tiff_header(data: bytes, limits: ImageLimits) -> Header:
    """Of the TIFF files that Pillow does not know."""
    if not data.startswith(_TIFF):
        raise _not_an_image("no known image format")
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages[0].aspage()
            header = _sized(page.imagewidth, page.imagelength, limits)
            with suppress(IndexError):
                file.pages[limits.frames]
                raise _too_many_frames(limits)
            return header
    except Problem:
        raise
    except Exception as error:
        raise _not_an_image(" ".join(str(error).split()) or type(error).__name__) from error


def _not_an_image(reason: str) -> Problem:
    return Problem("not-an-image", f"the image cannot be read ({reason[:200]}): send a whole PNG, JPEG, WebP, BMP or TIFF file")
