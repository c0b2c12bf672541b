"""Folders of instance-id images: every value but 0 is one instance, all of one class."""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

from stratum.data import rle
from stratum.data.images import MAX_PIXELS, ImageError, Pixels, decode_pixels
from stratum.data.parts import MaskPart
from stratum.data.records import Entry, Problem, Record, Rle
from stratum.data.rle import id_rles

CATEGORY = "object"  # the one category of such a set; `--classes object=particle` renames it
MAX_CLASSES = 20  # more values than this in an image are ids
MANY_PIECES = 4.0  # an instance is seldom covered so that more than this is seen of it
LOOKED_AT = 8
_JPEG = b"\xff\xd8\xff"


def mask_entries(part: MaskPart) -> tuple[list[Entry], list[Problem]]:
    """Every image that has a mask, and what is missing."""
    tree = part.tree
    entries = [Entry(uri=tree.uri(image), mask_uri=tree.uri(mask)) for image, mask in part.pairs if mask is not None]
    problems = [
        Problem(severity="error", kind="missing file", uri=tree.uri(image), detail="an image without an id mask of the same name")
        for image, mask in part.pairs
        if mask is None
    ]
    problems += [
        Problem(severity="error", kind="missing file", uri=tree.uri(mask), detail="an id mask without an image of the same name")
        for mask in part.orphans
    ]
    return entries, problems


def read_ids(data: bytes, source: str, size: tuple[int, int]) -> Mapping[int, Rle]:
    """The instances of an encoded id image (8 or 16 bits, grey, or the indices of a palette) by id.

    Raises :class:`ImageError`, also where it is not of ``size`` ``(H, W)``.
    """
    if data.startswith(_JPEG):
        raise ImageError(f"{source}: JPEG changes the ids; save the mask as PNG or TIFF")
    ids = _palette_indices(data)
    if ids is None:
        ids = decode_pixels(data, source)
    if ids.ndim != 2:
        same = np.array_equal(ids[..., 0], ids[..., 1]) and np.array_equal(ids[..., 0], ids[..., 2])
        if not same:
            raise ImageError(f"{source}: a colour image is no id mask; save one id per pixel as 8- or 16-bit grey")
        ids = ids[..., 0]
    if ids.shape != size:
        raise ImageError(f"{source}: the mask has {ids.shape[1]}x{ids.shape[0]} pixels, its image {size[1]}x{size[0]}")
    return id_rles(ids)


def doubtful_ids(records: Sequence[Record], uri: str) -> list[Problem]:
    """A warning where the ids look like classes: few in each image, and each in many pieces. Some of the images are looked at."""
    few = [record for record in records if 0 < len(record.rles) <= MAX_CLASSES]
    if not few or 2 * len(few) < sum(bool(record.rles) for record in records):
        return []
    chosen = few[:: math.ceil(len(few) / LOOKED_AT)]
    pieces = [int(ndimage.label(mask)[1]) for record in chosen for mask in rle.decode(record.rles, *record.size)]
    if sum(pieces) < MANY_PIECES * len(pieces):
        return []
    detail = (
        "read as instance ids, but the few values come in many pieces, as classes do; name them in classes.json or set the task semantic"
    )
    return [Problem(severity="warning", kind="ids or classes", uri=uri, detail=detail)]


def _palette_indices(data: bytes) -> Pixels | None:
    """The indices of a palette image, whatever their colours; None for anything else, broken images included."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image) if image.mode == "P" and image.width * image.height <= MAX_PIXELS else None
    except Exception:  # what is wrong is said where the image is decoded
        return None
