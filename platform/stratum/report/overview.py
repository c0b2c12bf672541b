"""A small picture of an image that is never in memory as a whole, put together from its parts.

Shapes: ``H`` and ``W`` the size of the image, ``h`` and ``w`` that of the picture.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from stratum.data.windows import Window


class Overview:
    """The image and its labels with the longer side at most ``longest`` pixels.

    Args:
        height: ``H``.
        width: ``W``.
        longest: of the picture's sides.
    """

    def __init__(self, height: int, width: int, longest: int) -> None:
        self._scale = min(1.0, longest / max(height, width))
        size = max(1, round(height * self._scale)), max(1, round(width * self._scale))
        self.image = torch.zeros(3, *size, dtype=torch.uint8)
        self.labels = torch.zeros(size, dtype=torch.uint8)

    def add_image(self, window: Window, image: Tensor) -> None:
        """Puts a part ``uint8 [3, ., .]`` at its place."""
        rows, columns = self._place(window)
        size = rows.stop - rows.start, columns.stop - columns.start
        if min(size) > 0:
            small = interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
            self.image[:, rows, columns] = small.round().clamp(0, 255).to(torch.uint8)

    def add_labels(self, window: Window, labels: Tensor) -> None:
        """Puts the labels ``uint8 [., .]`` of a part at their place."""
        rows, columns = self._place(window)
        size = rows.stop - rows.start, columns.stop - columns.start
        if min(size) > 0:
            self.labels[rows, columns] = interpolate(labels[None, None].float(), size, mode="nearest-exact")[0, 0].to(torch.uint8)

    def _place(self, window: Window) -> tuple[slice, slice]:
        """Where a part lies in the picture; neighbours meet, and the last reaches the edge."""
        edges = [
            (round(start * self._scale), min(round((start + length) * self._scale), limit))
            for start, length, limit in zip((window.top, window.left), (window.height, window.width), self.labels.shape, strict=True)
        ]
        return slice(*edges[0]), slice(*edges[1])
