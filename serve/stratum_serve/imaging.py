"""From the bytes of a request to pixels: what is too large or no image is refused from its header, before anything is decoded."""

import io
import warnings
from dataclasses import dataclass

import tifffile
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from stratum.data.images import DepthRule, ImageError, decode_image
from stratum_serve.problems import Problem

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "TIFF")  # MPO: a camera's JPEG with a preview behind it
MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp", "image/bmp", "image/tiff")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """The largest image that is decoded."""

    pixels: int
    side: int
    frames: int = 1


@dataclass(frozen=True, kw_only=True)
class Header:
    """What an image says of itself before it is decoded."""

    format: str
    width: int
    height: int
    frames: int


def read_header(data: bytes) -> Header:
    """The header of an encoded image. Raises Problem where it is none that can be read."""
    if not data:
        raise Problem("not-an-image", "the body is empty: send the bytes of an image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limits judge that
            with Image.open(io.BytesIO(data)) as image:
                frames = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
                found = Header(format=image.format or "", width=image.width, height=image.height, frames=frames)
    except Image.DecompressionBombError as error:
        raise Problem("too-many-pixels", f"{' '.join(str(error).split())}: scale the image down or cut it into tiles") from error
    except UnidentifiedImageError:
        found = _tiff_header(data)
    except Exception as error:  # parsers raise whatever they stumble over
        raise _not_an_image(" ".join(str(error).split()) or type(error).__name__) from error
    if found.format not in FORMATS:
        raise Problem("not-an-image", f"the image is a {found.format}: send PNG, JPEG, WebP, BMP or TIFF")
    return found


def check_header(header: Header, limits: ImageLimits) -> None:
    """Raises Problem where an image is larger than the limits."""
    width, height = header.width, header.height
    if width < 1 or height < 1:
        raise _not_an_image(f"it has {width}x{height} pixels")
    if width * height > limits.pixels or max(width, height) > limits.side:
        raise Problem(
            "too-many-pixels",
            f"{width}x{height} pixels are more than the {limits.pixels} pixels or {limits.side} a side that are taken: scale or cut it",
        )
    if header.frames > limits.frames:
        raise Problem("too-many-pixels", f"the image has {header.frames} frames or pages, {limits.frames} may be: send them one by one")


def decode(data: bytes, limits: ImageLimits, depth: DepthRule | None) -> Tensor:
    """An encoded image as ``uint8 [3, H, W]``. Raises Problem where it is too large or cannot be read."""
    check_header(read_header(data), limits)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what decoders say of odd metadata
            return decode_image(data, depth, "the image")
    except ImageError as error:
        raise Problem("not-an-image", str(error)) from error


def _tiff_header(data: bytes) -> Header:
    """Of the TIFF files that Pillow does not know."""
    if not data.startswith(_TIFF):
        raise _not_an_image("no known image format")
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages[0].aspage()
            return Header(format="TIFF", width=page.imagewidth, height=page.imagelength, frames=len(file.series[0].pages))
    except Exception as error:
        raise _not_an_image(" ".join(str(error).split()) or type(error).__name__) from error


def _not_an_image(reason: str) -> Problem:
    return Problem("not-an-image", f"the image cannot be read ({reason[:200]}): send a whole PNG, JPEG, WebP, BMP or TIFF file")
