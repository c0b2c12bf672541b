"""Prediction of images of any size in overlapping windows, blended so that no seam shows, with memory for one row of windows.

Shapes: ``K`` classes, ``H`` and ``W`` the size of the image, ``h`` and ``w`` that of a window, ``R`` the rows of a finished strip.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor

from stratum_models.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: Tensor) -> Tensor:
        """The part of ``[..., H, W]``, as a view."""
        return image[..., self.top : self.top + self.height, self.left : self.left + self.width]


def windows(height: int, width: int, size: int, overlap: int) -> list[Window]:
    """The windows of an image, row by row: each pixel in at least one, all ``size`` x ``size`` where the image is as large.

    Neighbours share ``overlap`` pixels or more; they are spread evenly, so that the last ones do not repeat nearly all of the ones before.
    Raises ``UserError`` where the overlap leaves no way forward.
    """
    if size < 1 or not 0 <= overlap < size:
        raise UserError(f"windows of {size} pixels cannot overlap by {overlap}: the overlap must be 0 or more and less than the window")
    rows, columns = (_starts(length, size, overlap) for length in (height, width))
    inside = {"height": min(size, height), "width": min(size, width)}
    return [Window(top=top, left=left, **inside) for top in rows for left in columns]


def _starts(length: int, size: int, overlap: int) -> list[int]:
    last = max(length - size, 0)
    steps = math.ceil(last / (size - overlap))
    return [round(i * last / steps) for i in range(steps + 1)] if steps else [0]


@lru_cache(maxsize=16)
def weights(height: int, width: int) -> Tensor:
    """How much each pixel of a window counts, ``[h, w]``: most in the middle, least (but above 0) at the edge, where context is missing."""
    ramps = [torch.minimum(torch.arange(1.0, n + 1), torch.arange(float(n), 0, -1)) * (2 / (n + 1)) for n in (height, width)]
    return ramps[0][:, None] * ramps[1]


class Blender:
    """Sums weighted probabilities, and hands out rows as soon as no later window reaches them.

    Windows must come row by row, from the top down. At no time are more than ``rows`` rows of sums held: the height of one window.

    Args:
        classes: ``K``.
        width: of the image.
        rows: height of the windows.
    """

    def __init__(self, classes: int, width: int, rows: int) -> None:
        self._sum = torch.zeros(classes, rows, width)
        self._weight = torch.zeros(rows, width)
        self._top = 0  # the image's row that the first row of sums stands for

    def add(self, window: Window, probabilities: Tensor) -> None:
        """Adds what was found ``[K, h, w]`` in a window.

        Raises ``ValueError`` for another shape than the window's, and for a window above what was handed out or below the rows held.
        """
        if tuple(probabilities.shape) != (len(self._sum), window.height, window.width):
            raise ValueError(f"probabilities of shape {tuple(probabilities.shape)} for {len(self._sum)} classes in {window}")
        if window.top < self._top or window.top + window.height > self._top + self._sum.shape[1]:
            raise ValueError(f"{window} lies outside the rows {self._top}..{self._top + self._sum.shape[1]} that are being blended")
        share = weights(window.height, window.width)
        inside = Window(top=window.top - self._top, left=window.left, height=window.height, width=window.width)
        inside.of(self._sum).add_(probabilities.detach().to("cpu", torch.float32) * share)
        inside.of(self._weight).add_(share)

    def finish(self, below: int) -> Tensor:
        """The blended rows ``[K, R, W]`` that were not handed out yet, down to the image's row ``below`` (not included)."""
        done = below - self._top
        if not 0 <= done <= self._sum.shape[1]:
            raise ValueError(f"row {below} lies outside the rows {self._top}..{self._top + self._sum.shape[1]} that are being blended")
        strip = self._sum[:, :done] / self._weight[:done]
        for sums in (self._sum, self._weight):
            kept = sums[..., done:, :].clone()
            sums.zero_()
            sums[..., : kept.shape[-2], :] = kept
        self._top = below
        return strip


def blended(
    image: Tensor, predict: Callable[[Sequence[Tensor]], Sequence[Tensor]], *, classes: int, size: int, overlap: int, batch: int = 1
) -> Iterator[tuple[int, Tensor]]:
    """The class probabilities of an image ``[3, H, W]``, as strips ``(first row, [K, R, W])`` from the top down.

    Args:
        image: of any size and type.
        predict: windows ``[3, h, w]``, up to ``batch`` of them, to probabilities ``[K, h, w]`` each.
        classes: ``K``.
        size: side of the windows in pixels.
        overlap: pixels that neighbours share at least; a quarter of ``size`` hides seams.
        batch: windows that are predicted at once.

    Raises:
        UserError: window and overlap do not fit together.
    """
    height, width = (int(side) for side in image.shape[-2:])
    rows = [list(row) for _, row in groupby(windows(height, width, size, overlap), key=lambda window: window.top)]
    blender = Blender(classes, width, rows[0][0].height)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        for start in range(0, len(row), batch):
            chosen = row[start : start + batch]
            for window, found in zip(chosen, predict([window.of(image) for window in chosen]), strict=True):
                blender.add(window, found)
        above, below = row[0].top, following[0].top if following else height
        yield above, blender.finish(below)


def label_map(
    image: Tensor, predict: Callable[[Sequence[Tensor]], Sequence[Tensor]], *, classes: int, size: int, overlap: int, batch: int = 1
) -> Tensor:
    """The most probable class of each pixel, ``uint8 [H, W]``: a scan of a gigapixel needs no more than its labels. See :func:`blended`."""
    strips = blended(image, predict, classes=classes, size=size, overlap=overlap, batch=batch)
    return torch.cat([strip.argmax(0).to(torch.uint8) for _, strip in strips])
