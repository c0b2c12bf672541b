"""Images too large to be read whole: TIFF files, pyramids among them, and zarr arrays, read window by window.

What is in memory is a window and the pieces (tiles, strips, chunks) that it touches; a file whose pieces are too large for that is refused.
Of a pyramid the finest level is read. Files on S3 are fetched into the cache first.

Shapes: ``H`` and ``W`` the size of the image, ``h`` and ``w`` that of a window.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray
from torch import Tensor

from stratum import storage
from stratum.data.images import MAX_PIXELS, DepthRule, ImageError, Paint, flatten, tiff_paint, to_rgb
from stratum.data.windows import Window

ZARR, TIFF = ".zarr", (".tif", ".tiff")
LARGEST_PIECE = 256 * 2**20  # bytes of a tile, strip or chunk, which is read as a whole
LARGEST_SCAN = 2**40  # pixels
_ORIENTATION = 274
_COLOURS = (1, 2, 3, 4)  # channels of grey and colour images, without and with transparency

Read = Callable[[slice, slice], NDArray[np.generic]]  # rows and columns to [h, w] or [h, w, channels]


@dataclass(frozen=True, kw_only=True)
class Scan:
    """An open image, closed by ``with``; ``fetch`` gives the stored pixels of some rows and columns."""

    uri: str
    height: int
    width: int
    fetch: Read
    depth: DepthRule | None
    close: Callable[[], object] = lambda: None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def read(self, window: Window) -> Tensor:
        """The part of the image, ``uint8 [3, h, w]`` RGB, by the rules of ``stratum.data.images``. Raises ImageError for damaged pieces."""
        rows, columns = slice(window.top, window.top + window.height), slice(window.left, window.left + window.width)
        try:
            pixels = self.fetch(rows, columns)
        except Exception as error:  # decoders raise whatever their format's parser stumbles over
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ImageError(f"{self.uri}: broken image at row {window.top}, column {window.left}: {reason}") from error
        return to_rgb(flatten(pixels, self.uri), self.depth)


def in_memory(image: Tensor) -> Scan:
    """An image ``uint8 [3, H, W]`` that is there already, to be gone over as a scan."""
    pixels = image.permute(1, 2, 0).numpy()
    height, width = pixels.shape[:2]
    return Scan(uri="image", height=height, width=width, fetch=lambda rows, columns: pixels[rows, columns], depth=None)


def is_scan(uri: str) -> bool:
    """Whether an image is one to be read by windows: a zarr array, or a TIFF with more pixels than are read at once."""
    if storage.is_synthetic(uri):
        return False
    if storage.suffix(uri) == ZARR:
        return True
    if storage.suffix(uri) not in TIFF:
        return False
    try:
        with tifffile.TiffFile(storage.fetch(uri)) as file:
            page = file.pages[0].aspage()
            return page.imagewidth * page.imagelength > MAX_PIXELS
    except storage.StorageError:
        raise
    except Exception:  # broken, which parsers say in many ways: reading it says how
        return False


def open_scan(uri: str, depth: DepthRule | None = None) -> Scan:
    """A TIFF file or a zarr array, ready to be read by windows.

    Raises:
        ImageError: it is no image of one page in grey, RGB, JPEG's YCbCr or colours of a palette with 8 or 16 bits, or its pieces are too
            large.
    """
    try:
        if storage.suffix(uri) == ZARR:
            return _open_zarr(uri, storage.fetch_tree(uri), depth)
        return _open_tiff(uri, storage.fetch(uri), depth)
    except (ImageError, storage.StorageError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{uri}: broken image: {reason}") from error


def list_scans(files: Sequence[str]) -> list[str]:
    """The zarr arrays among all files of a folder, by their own folders' names."""
    found = {file[: file.index(f"{ZARR}/") + len(ZARR)] for file in files if f"{ZARR}/" in file}
    return sorted(found)


def _open_zarr(uri: str, folder: Path, depth: DepthRule | None) -> Scan:
    node = zarr.open(folder, mode="r")
    while isinstance(node, zarr.Group):  # OME-Zarr: the finest level comes first
        names = sorted([*node.array_keys(), *node.group_keys()])
        if not names:
            raise ImageError(f"{uri}: a zarr group without an array; name one that holds an image")
        node = node[names[0]]
    return _from_array(uri, node, _axes_of(uri, tuple(node.shape)), depth)


def _open_tiff(uri: str, path: Path, depth: DepthRule | None) -> Scan:
    with ExitStack() as stack:
        file = stack.enter_context(tifffile.TiffFile(path))
        level, page = file.series[0].levels[0], file.pages[0].aspage()
        if len(level.pages) > 1:
            raise ImageError(f"{uri}: a stack of {len(level.pages)} pages; save each page as a file of its own")
        orientation = page.tags.get(_ORIENTATION)
        if orientation is not None and int(orientation.value) > 1:
            raise ImageError(f"{uri}: turned by its orientation tag, which cannot be undone window by window; save it upright")
        paint = tiff_paint(page, uri)
        if page.is_memmappable and page.dtype is not None:
            where = (page.dataoffsets[0], page.dtype.newbyteorder(file.byteorder))
            return _painted(_from_map(uri, path, where, tuple(page.shape), page.axes, depth), paint)
        store = file.series[0].aszarr(level=0)
        stack.callback(store.close)
        scan = _painted(_from_array(uri, zarr.open(store, mode="r"), page.axes, depth), paint)
        return replace(scan, close=stack.pop_all().close)


def _painted(scan: Scan, paint: Paint) -> Scan:
    """The scan in the colours that its stored pixels stand for."""
    return replace(scan, fetch=lambda rows, columns: paint(scan.fetch(rows, columns)))


def _from_array(uri: str, array: Any, axes: str, depth: DepthRule | None) -> Scan:
    """A scan of a zarr array whose axes are ``Y``, ``X``, ``S`` (channels) and others of length 1."""
    piece = math.prod(array.chunks) * array.dtype.itemsize
    if piece > LARGEST_PIECE:
        raise ImageError(
            f"{uri}: stored in pieces of {piece >> 20} MB, too large to be read by windows; save it in tiles, such as 512x512 pixels"
        )
    return _scan(uri, array, axes, tuple(array.shape), array.dtype, lambda index: np.asarray(array[index]), depth)


def _from_map(uri: str, path: Path, where: tuple[int, Any], shape: tuple[int, ...], axes: str, depth: DepthRule | None) -> Scan:
    """A scan of uncompressed pixels that lie in the file one after the other; the map ends with each read, and its memory with it."""
    offset, dtype = where

    def read(index: tuple[slice | int, ...]) -> NDArray[np.generic]:
        return np.array(np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)[index])

    return _scan(uri, path, axes, shape, dtype, read, depth)


def _scan(
    uri: str,
    source: object,
    axes: str,
    shape: tuple[int, ...],
    dtype: Any,
    read: Callable[[Any], NDArray[np.generic]],
    depth: DepthRule | None,
) -> Scan:
    lengths = dict(zip(axes, shape, strict=True))
    if dtype.kind not in "u" or dtype.itemsize > 2:
        raise ImageError(f"{uri}: {dtype} pixels; save it with 8 or 16 bits")
    spare = [length for axis, length in lengths.items() if axis not in "YXS"]
    if "Y" not in lengths or "X" not in lengths or any(length != 1 for length in spare) or lengths.get("S", 1) not in _COLOURS:
        raise ImageError(f"{uri}: an array of shape {shape} is no grey or colour image")
    if lengths["Y"] * lengths["X"] > LARGEST_SCAN or min(lengths["Y"], lengths["X"]) < 1:
        raise ImageError(f"{uri}: {lengths['X']}x{lengths['Y']} pixels; cut it into parts")

    def fetch(rows: slice, columns: slice) -> NDArray[np.generic]:
        chosen: dict[str, slice | int] = {"Y": rows, "X": columns, "S": slice(None)}
        part = read(tuple(chosen.get(axis, 0) for axis in axes))
        kept = [axis for axis in axes if axis in "YXS"]
        ordered = np.moveaxis(part, [kept.index(axis) for axis in "YXS" if axis in kept], range(part.ndim))
        return ordered.astype(ordered.dtype.newbyteorder("="), copy=False)

    return Scan(uri=uri, height=lengths["Y"], width=lengths["X"], fetch=fetch, depth=depth)


def _axes_of(uri: str, shape: tuple[int, ...]) -> str:
    """The axes of a plain array: rows and columns, with colours behind or before them; further ones must have the length 1."""
    if len(shape) < 2 or len(shape) > 5:
        raise ImageError(f"{uri}: an array of shape {shape} is no grey or colour image")
    if len(shape) == 3 and shape[2] in _COLOURS:
        return "YXS"
    inner = [index for index in range(len(shape) - 2) if shape[index] != 1]
    letters = iter("TCZ")
    return "".join("S" if index in inner[:1] else next(letters) for index in range(len(shape) - 2)) + "YX"
