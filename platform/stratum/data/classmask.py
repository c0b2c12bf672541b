"""Class masks: from an encoded image, or painted from shapes, to labels ``uint8 [H, W]`` with 255 where nothing is known.

Masks are kept compressed, since a map of few values shrinks to a hundredth; ``H`` and ``W`` are the size of the image.
"""

import io
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from stratum.data import rle
from stratum.data.class_table import ClassTable
from stratum.data.images import MAX_PIXELS, ImageError, Pixels, decode_pixels
from stratum.data.palette import Naming
from stratum.data.records import Rle
from stratum_models.interface import IGNORE_INDEX

Labels = NDArray[np.uint8]
_JPEG = b"\xff\xd8\xff"


class ClassError(ImageError):
    """A mask with a value or colour that stands for no class."""


def read_class_mask(data: bytes, source: str, table: ClassTable, colours: Naming | None = None) -> Labels:
    """The labels of an encoded mask: class indices (grey or the indices of a palette), or colours where ``colours`` says whose.

    Raises :class:`ImageError` where it cannot be read, and :class:`ClassError` for what the classes do not cover.
    """
    if data.startswith(_JPEG):
        raise ImageError(f"{source}: JPEG changes the values; save the mask as PNG or TIFF")
    if colours is not None:
        return table.apply(_by_colour(decode_pixels(data, source), source, colours))
    raw = _indices(data, source)
    if strangers := table.strangers(raw):
        raise ClassError(f"{source}: {_stranger(strangers, raw, table)}")
    return table.apply(raw)


def _by_colour(pixels: Pixels, source: str, colours: Naming) -> NDArray[np.int32]:
    if pixels.dtype != np.uint8:
        raise ImageError(f"{source}: a mask of 16 bits has no colours of {colours.uri}; save it with 8 bits per channel")
    raw = colours.indices(pixels)
    unknown = np.argwhere(raw < 0)
    if len(unknown):
        row, column = unknown[0].tolist()
        colour = np.broadcast_to(pixels[row, column], 3).tolist()
        found = f"{len(unknown)} pixels have colours without a class, such as {colour} at x={column}, y={row}"
        raise ClassError(f"{source}: {found}; {colours.uri} lists the known")
    return raw


def stored_values(data: bytes, source: str) -> list[int]:
    """The different values of a mask of indices, in ascending order. Raises :class:`ImageError`."""
    return [int(value) for value in np.unique(_indices(data, source))]


def _indices(data: bytes, source: str) -> Pixels:
    stored = _stored_indices(data)
    raw = decode_pixels(data, source) if stored is None else stored
    if raw.ndim == 3:
        if not (np.array_equal(raw[..., 0], raw[..., 1]) and np.array_equal(raw[..., 0], raw[..., 2])):
            raise ImageError(f"{source}: a colour mask; say which class has which colour in palette.json, or save class indices")
        raw = raw[..., 0]
    return raw


def _stored_indices(data: bytes) -> Pixels | None:
    """The indices of a palette image, or the zeros and ones of a bilevel one; None for anything else, broken images included."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode not in ("P", "1") or image.width * image.height > MAX_PIXELS:
                return None
            return np.asarray(image).astype(np.uint8)
    except Exception:  # what is wrong is said where the image is decoded
        return None


def _stranger(strangers: Sequence[int], raw: Pixels, table: ClassTable) -> str:
    classes = ", ".join(f"{i} {name}" for i, name in enumerate(table.known) if name is not None)
    listed = ", ".join(map(str, strangers[:5])) + (" ..." if len(strangers) > 5 else "")
    several = len(strangers) > 1
    found = f"the class {'indices' if several else 'index'} {listed} {'are' if several else 'is'} not in the list ({classes})"
    deep = raw.dtype == np.uint16 and max(strangers) > IGNORE_INDEX
    return found + ("; instance ids are read with the task instance" if deep else "")


def paint(raw: Sequence[int], rles: Sequence[Rle], size: tuple[int, int], table: ClassTable) -> Labels:
    """Shapes as one mask: the largest first, so that smaller ones lie on top; what none covers is raw index 0, the background."""
    mask = np.zeros(size, dtype=np.int32)
    for i in sorted(range(len(rles)), key=lambda i: -rle.area(rles[i])):
        mask[coco_mask.decode(rles[i]).astype(bool)] = raw[i]
    return table.apply(mask)


def pack(labels: Labels) -> bytes:
    """Labels ``uint8 [H, W]`` compressed."""
    return zlib.compress(np.ascontiguousarray(labels).tobytes(), 1)


def unpack(packed: bytes, size: tuple[int, int]) -> Labels:
    """What was packed, at its size ``(H, W)``; the array is the caller's to change."""
    return np.frombuffer(bytearray(zlib.decompress(packed)), dtype=np.uint8).reshape(size)


def count(labels: Labels, classes: int) -> tuple[int, ...]:
    """How many pixels each class has; the ignored ones count nowhere."""
    return tuple(np.bincount(labels.reshape(-1), minlength=IGNORE_INDEX + 1)[:classes].tolist())
