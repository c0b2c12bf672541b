"""Class masks that are written part by part: a zarr array on disk, which can then be turned into a tiled TIFF.

Shapes: ``H`` and ``W`` the size of the mask.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import zarr
from numpy.typing import NDArray

from stratum.data.windows import Window

TILE = 512  # pixels: the side of chunks and tiles


class LabelStore:
    """Labels ``uint8 [H, W]`` in a zarr array of chunks; what was not written is 0.

    Args:
        folder: where the array is made; it must not be there yet.
        height: ``H``.
        width: ``W``.
    """

    def __init__(self, folder: Path, height: int, width: int) -> None:
        self.folder = folder
        self._array: Any = zarr.create_array(folder, shape=(height, width), chunks=(TILE, TILE), dtype="uint8")

    def write(self, window: Window, labels: NDArray[np.uint8]) -> None:
        """Puts labels ``[h, w]`` at their place."""
        self._array[window.top : window.top + window.height, window.left : window.left + window.width] = labels

    def to_tiff(self, path: Path) -> Path:
        """The same labels as a tiled TIFF with deflate, larger than 4 GB where they need it; one row of tiles is in memory."""
        height, width = self._array.shape
        tifffile.imwrite(
            path,
            self._tiles(),
            shape=(height, width),
            dtype=np.uint8,
            tile=(TILE, TILE),
            compression="zlib",
            photometric="minisblack",
            bigtiff=height * width > 2**31,
            maxworkers=1,
        )
        return path

    def _tiles(self) -> Iterator[NDArray[np.uint8]]:
        """The tiles row by row, those at the edge filled up with 0."""
        height, width = self._array.shape
        for top in range(0, height, TILE):
            for left in range(0, width, TILE):
                part = np.asarray(self._array[top : top + TILE, left : left + TILE])
                yield np.pad(part, ((0, TILE - part.shape[0]), (0, TILE - part.shape[1])))
