"""Image files of all usual kinds to ``uint8 [3, H, W]`` RGB.

Rules, the same in training, evaluation and prediction:

- Grey is repeated over the three channels; palettes, CMYK and the other colour spaces become RGB.
- Transparent pixels are laid over white. A further channel of a TIFF that does not say it is alpha is left out.
- An EXIF orientation is applied, so that ``H`` and ``W`` are those that a viewer shows.
- 16-bit images go to 8 bits by one :class:`DepthRule` for the whole data set; without one, the full range 0..65535 is used.
- More than :data:`MAX_PIXELS` pixels, floating-point pixels and stacks of pages are refused.
"""

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor
from torchvision.io import ImageReadMode, decode_png

from stratum import storage
from stratum_models.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".pgm", ".ppm", ".pnm")
MAX_PIXELS = 89_478_485  # Pillow's own threshold for a suspected decompression bomb
LOW_PERCENTILE, HIGH_PERCENTILE = 0.1, 99.9
LEVELS = 65536
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
_PAGED = ("TIFF", "GIF", "PNG", "WEBP")  # not MPO: a camera's second picture is a preview
_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_TIFF_BANDS = {"MINISWHITE": 1, "MINISBLACK": 1, "PALETTE": 1, "RGB": 3, "YCBCR": 3}  # channels before alpha and others
_UNSPECIFIED, _PREMULTIPLIED = 0, 1  # what a TIFF may say of a channel behind the colours; all else is alpha

Pixels = NDArray[np.uint8] | NDArray[np.uint16]  # [H, W] or [H, W, 3]
Paint = Callable[[NDArray[np.generic]], NDArray[np.generic]]


class ImageError(UserError):
    """A file that cannot be used as an image."""


@dataclass(frozen=True, kw_only=True)
class DepthRule:
    """How 16-bit values become 8 bits: ``low`` and below to 0, ``high`` and above to 255, linear and rounded between."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high < LEVELS:
            raise ValueError(f"a depth rule needs 0 <= low < high <= 65535, got {self.low} and {self.high}")

    def apply(self, pixels: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """The same shape in 8 bits, by a table of all 65536 values."""
        table = (np.arange(LEVELS, dtype=np.float64) - self.low) * (255.0 / (self.high - self.low))
        scaled: NDArray[np.uint8] = np.rint(table.clip(0, 255)).astype(np.uint8)[pixels]
        return scaled


FULL_RANGE = DepthRule(low=0, high=LEVELS - 1)


def depth_rule(images: Iterable[Pixels]) -> DepthRule | None:
    """The rule for a training set: the 0.1 and 99.9 percentiles of all its 16-bit pixels, pooled; None where there are none."""
    counts = np.zeros(LEVELS, dtype=np.int64)
    for pixels in images:
        if pixels.dtype == np.uint16:
            counts += np.bincount(pixels.reshape(-1), minlength=LEVELS)
    total = int(counts.sum())
    if not total:
        return None
    below = np.cumsum(counts)
    low, high = (int(np.searchsorted(below, total * percent / 100.0)) for percent in (LOW_PERCENTILE, HIGH_PERCENTILE))
    low = min(low, LEVELS - 2)
    return DepthRule(low=low, high=min(max(high, low + 1), LEVELS - 1))


def read_image(uri: str, depth: DepthRule | None = None) -> Tensor:
    """The image at a local path or ``s3://`` URI as ``uint8 [3, H, W]``; see :func:`decode_image`."""
    return decode_image(storage.read_bytes(uri), depth, uri)


def decode_image(data: bytes, depth: DepthRule | None = None, source: str = "image", *, rotate: bool = True) -> Tensor:
    """An encoded image as ``uint8 [3, H, W]`` RGB.

    ``depth`` scales 16-bit images and leaves 8-bit ones alone. ``rotate=False`` ignores the EXIF orientation, for labels that were
    drawn on the stored pixels. Raises :class:`ImageError` naming ``source`` where the bytes are no usable image.
    """
    return to_rgb(decode_pixels(data, source, rotate=rotate), depth)


def to_rgb(pixels: Pixels, depth: DepthRule | None) -> Tensor:
    """Decoded pixels, 8 or 16 bits, grey or RGB, as ``uint8 [3, H, W]``."""
    narrow = (depth or FULL_RANGE).apply(pixels.astype(np.uint16, copy=False)) if pixels.dtype == np.uint16 else pixels
    if narrow.ndim == 2:
        return torch.from_numpy(np.repeat(narrow[None], 3, axis=0))
    return torch.from_numpy(np.ascontiguousarray(narrow.transpose(2, 0, 1)))


def decode_pixels(data: bytes, source: str = "image", *, rotate: bool = True) -> Pixels:
    """The pixels as stored, 8 or 16 bits: ``[H, W]`` for grey, ``[H, W, 3]`` for RGB. Raises :class:`ImageError`."""
    try:
        return _decode(data, source, rotate)
    except ImageError:
        raise
    except Exception as error:  # decoders raise whatever their format's parser stumbles over
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "no known image format" if data else "the file is empty"
        raise ImageError(f"{source}: broken image: {reason}") from error


def _decode(data: bytes, source: str, rotate: bool) -> Pixels:
    """By Pillow, except for some images of 16 bits, which Pillow cuts to 8 bits, turns dark for bright, or does not open at all."""
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        if data.startswith(_TIFF):
            return flatten(_read_tiff(data, source), source)
        raise
    with image:
        _check_size(image.width, image.height, source)
        if image.format in _PAGED:
            _refuse_stack(image, source)
        if isinstance(image, TiffImageFile) and _misread(image):
            return flatten(_read_tiff(data, source), source)
        if data.startswith(_PNG) and data[24] == 16:
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            array = decode_png(encoded, mode=ImageReadMode.UNCHANGED).permute(1, 2, 0).numpy()
        else:
            array = _pillow_array(image, source)
        orientation = image.getexif().get(_ORIENTATION, 1) if rotate else 1
    return flatten(_oriented(array, orientation), source)


def _misread(image: TiffImageFile) -> bool:
    """Whether it has 16 bits and colours, or white as 0."""
    deep = max(image.tag_v2.get(_BITS_PER_SAMPLE, (8,))) > 8
    return deep and (image.mode.startswith("RGB") or image.tag_v2.get(_PHOTOMETRIC, 0) == 0)


def _check_size(width: int, height: int, source: str) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(f"{source}: {width}x{height} pixels are more than the limit of {MAX_PIXELS}; cut it into tiles")


def _refuse_stack(image: Image.Image, source: str) -> None:
    pages, size = getattr(image, "n_frames", 1), image.size
    if pages > 1:
        image.seek(1)
        second = image.size
        image.seek(0)
        if second == size:  # smaller further pages are the thumbnails of a pyramid
            raise ImageError(f"{source}: a stack of {pages} pages; save each page as a file of its own")


def _pillow_array(image: Image.Image, source: str) -> NDArray[np.generic]:
    image.load()
    if image.mode in ("1", "L") and "transparency" not in image.info:
        return np.asarray(image.convert("L"))
    if image.mode.startswith("I"):
        return _narrow(np.asarray(image), source)
    if image.mode == "F":
        raise ImageError(f"{source}: floating-point pixels; save it with 8 or 16 bits")
    if image.has_transparency_data:
        return np.asarray(image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _read_tiff(data: bytes, source: str) -> NDArray[np.generic]:
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0].aspage()
        _check_size(page.imagewidth, page.imagelength, source)
        if len(file.series[0].pages) > 1:
            raise ImageError(f"{source}: a stack of {len(file.series[0].pages)} pages; save each page as a file of its own")
        array = np.asarray(page.asarray())
        orientation = page.tags.get(274)
        if page.planarconfig == 2 and array.ndim == 3:  # one plane after the other
            array = np.moveaxis(array, 0, -1)
        array = tiff_paint(page, source)(array)
    return _oriented(array, int(orientation.value) if orientation is not None else 1)


def tiff_paint(page: Any, source: str) -> Paint:
    """What turns the stored pixels ``[h, w]`` or ``[h, w, channels]`` of a TIFF page into grey or RGB, with alpha behind where it has some.

    Raises:
        ImageError: colours of another kind, as CMYK, Lab and YCbCr without JPEG.
    """
    kind = getattr(page.photometric, "name", str(page.photometric))
    if kind not in _TIFF_BANDS or (kind == "YCBCR" and page.compression.name != "JPEG"):
        raise ImageError(f"{source}: colours stored as {kind} (TIFF's photometric interpretation); save it in grey or RGB")
    bands = _TIFF_BANDS[kind]
    meaning = page.extrasamples[0] if page.extrasamples else None
    kept = bands + (page.samplesperpixel > bands and meaning != _UNSPECIFIED)
    palette = (page.colormap >> 8).astype(np.uint8).T if kind == "PALETTE" else None

    def paint(stored: NDArray[np.generic]) -> NDArray[np.generic]:
        if stored.dtype.kind != "u":
            return stored  # to be refused
        pixels: Any = (stored[..., None] if stored.ndim == 2 else stored)[..., :kept]
        colour, alpha = pixels[..., :bands], pixels[..., bands:]
        if kind == "MINISWHITE":
            colour = np.iinfo(colour.dtype).max - colour
        elif palette is not None:
            colour = palette[colour[..., 0]]
        if meaning == _PREMULTIPLIED:
            most = np.iinfo(alpha.dtype).max
            divided = (colour.astype(np.uint64) * most // np.maximum(alpha, 1)).clip(max=most)
            colour = np.where(alpha == 0, colour, divided).astype(colour.dtype)
        return np.concatenate([colour, alpha], -1)

    return paint


def _narrow(array: NDArray[np.generic], source: str) -> NDArray[np.uint16]:
    """Whole numbers of any width as 16 bits, where they fit."""
    if array.dtype.kind not in "ui" or (array.size and (int(array.min()) < 0 or int(array.max()) >= LEVELS)):
        raise ImageError(f"{source}: {array.dtype} pixels outside 0..65535; save it with 8 or 16 bits")
    return array.astype(np.uint16)


def flatten(array: NDArray[np.generic], source: str) -> Pixels:
    """Any channel count to grey or RGB, alpha over white."""
    pixels = cast(Pixels, array) if array.dtype == np.uint8 else _narrow(array, source)
    if array.ndim == 2:
        return cast(Pixels, np.ascontiguousarray(pixels))
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4):
        raise ImageError(f"{source}: an array of shape {array.shape} is no grey or colour image")
    colours = array.shape[2] - (array.shape[2] + 1) % 2  # 1 and 3 have no alpha, 2 and 4 do
    colour = pixels[..., :colours]
    if colours < pixels.shape[2]:
        white = float(np.iinfo(pixels.dtype).max)
        alpha = pixels[..., colours:].astype(np.float32) / white
        colour = np.rint(colour * alpha + white * (1.0 - alpha)).astype(pixels.dtype)
    return cast(Pixels, np.ascontiguousarray(colour[..., 0] if colours == 1 else colour))


def _oriented(array: NDArray[np.generic], orientation: int) -> NDArray[np.generic]:
    """Undo an EXIF orientation (2..8; anything else is upright)."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array
