"""Patches of an image: where they lie, how they are cut out with their surroundings, and how they are put back.

An image is divided into square cells of one size, row by row from the top left; those of the last row and column hold what is left.
Around each cell lies its window, larger by a margin on each side: what is cut out. Windows that would leave the image are moved inwards, so
that even a narrow cell at the edge is seen with all the surroundings there are.

Shapes: ``H`` and ``W`` the size of the image, ``C`` channels, ``K`` classes, ``n`` chosen cells, ``P`` the side of a cell, ``S`` that of
a window.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from stratum_models.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The cells of an image, in pixels; cell ``i`` is in row ``i // columns`` and column ``i % columns``.

    Raises:
        ValueError: a side is below 1, or the margin below 0.
    """

    height: int
    width: int
    side: int
    margin: int = 0

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.side) < 1 or self.margin < 0:
            raise ValueError(f"{self}: sides must be 1 or more, the margin 0 or more")

    @property
    def rows(self) -> int:
        """Cells below each other."""
        return -(-self.height // self.side)

    @property
    def columns(self) -> int:
        """Cells beside each other."""
        return -(-self.width // self.side)

    def __len__(self) -> int:
        return self.rows * self.columns

    @property
    def window(self) -> int:
        """The side ``S`` of a window."""
        return self.side + 2 * self.margin

    def cell_corners(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """The top rows and left columns of cells int64 ``[n]``, int64 ``[n]`` each."""
        return cells.div(self.columns, rounding_mode="floor") * self.side, cells.remainder(self.columns) * self.side

    def window_corners(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`cell_corners`, of the windows; in an image smaller than a window they are 0, 0."""
        top, left = self.cell_corners(cells)
        last_row, last_column = max(self.height - self.window, 0), max(self.width - self.window, 0)
        return (top - self.margin).clamp(0, last_row), (left - self.margin).clamp(0, last_column)


def check_patch(patch: int, size: tuple[int, ...]) -> tuple[int, int]:
    """The height and width of images that hold a patch. Raises UserError where they do not, or ``size`` is no height and width."""
    if len(size) != 2 or min(size) < 1:
        raise UserError(f"option image_size={size}: must be a height and a width in pixels, such as 768,768")
    height, width = size
    if patch > min(size):
        raise UserError(f"option patch={patch}: larger than the images, which are {height}x{width}; must be {min(size)} or less")
    return height, width


def crop(image: Tensor, grid: Grid, cells: Tensor, fill: float | None = None) -> Tensor:
    """The windows of cells int64 ``[n]`` cut out of ``[C, H, W]``: ``[n, C, S, S]``.

    An image smaller than a window is continued to the right and downwards: with ``fill``, or by its last column and row where that is None.
    """
    missing = (0, max(grid.window - grid.width, 0), 0, max(grid.window - grid.height, 0))
    if any(missing):
        image = F.pad(image[None], missing, mode="replicate")[0] if fill is None else F.pad(image, missing, value=fill)
    top, left = grid.window_corners(cells)
    windows = image.unfold(1, grid.window, 1).unfold(2, grid.window, 1)  # [C, H - S + 1, W - S + 1, S, S], a view
    return windows[:, top, left].transpose(0, 1)


def merge(probabilities: Tensor, refined: Tensor, grid: Grid, cells: Tensor, *, blend: bool = False) -> Tensor:
    """An image's probabilities with those of its refined patches put in.

    Args:
        probabilities: ``[K, H, W]``, left as they are.
        refined: those of the windows of ``cells``, ``[n, K, S, S]``.
        grid: where the cells lie.
        cells: int64 ``[n]``, each once.
        blend: where False, a cell gets what was found for it and all other pixels stay. Where True, the windows fade out over the
            margin around their cells: pixels of refined cells are the weighted mean of all windows that reach them, pixels around them
            pass over from that mean to what they were.

    Returns:
        ``[K, H, W]``.
    """
    if not len(cells):
        return probabilities.clone()
    return _blended(probabilities, refined, grid, cells) if blend and grid.margin else _replaced(probabilities, refined, grid, cells)


def _replaced(probabilities: Tensor, refined: Tensor, grid: Grid, cells: Tensor) -> Tensor:
    missing = (0, grid.columns * grid.side - grid.width, 0, grid.rows * grid.side - grid.height)
    merged = probabilities.clone()
    if any(missing):  # cells at the edge are made whole, and cut off again at the end
        merged, refined = F.pad(merged, missing), F.pad(refined, (0, grid.side, 0, grid.side))
    top, left = grid.cell_corners(cells)
    first_row, first_column = grid.window_corners(cells)
    parts = refined.unfold(2, grid.side, 1).unfold(3, grid.side, 1)  # [n, K, .., .., P, P], a view
    found = parts[torch.arange(len(cells), device=cells.device), :, top - first_row, left - first_column]
    by_cell = merged.view(len(merged), grid.rows, grid.side, grid.columns, grid.side)
    by_cell[:, top // grid.side, :, left // grid.side] = found.to(merged.dtype)
    return merged[:, : grid.height, : grid.width].contiguous()


def _blended(probabilities: Tensor, refined: Tensor, grid: Grid, cells: Tensor) -> Tensor:
    top, left = grid.cell_corners(cells)
    first_row, first_column = grid.window_corners(cells)
    rows, in_rows = _ramp(first_row, top, grid, grid.height)  # [n, S] both
    columns, in_columns = _ramp(first_column, left, grid, grid.width)
    weight = (in_rows[:, :, None] * in_columns[:, None, :]).to(probabilities.dtype)  # [n, S, S]
    at = (rows[:, :, None] * grid.width + columns[:, None, :]).flatten()
    pixels = grid.height * grid.width
    total = probabilities.new_zeros(pixels).index_add_(0, at, weight.flatten())
    most = probabilities.new_zeros(pixels).scatter_reduce_(0, at, weight.flatten(), "amax")
    sums = torch.stack(
        [probabilities.new_zeros(pixels).index_add_(0, at, (plane * weight).flatten()) for plane in refined.to(weight.dtype).unbind(1)]
    )  # one class at a time: an index along one dimension is added up fast
    found = sums / total.clamp(min=torch.finfo(total.dtype).tiny)
    return torch.lerp(probabilities, found.view_as(probabilities), most.view(grid.height, grid.width))


def _ramp(first: Tensor, start: Tensor, grid: Grid, length: int) -> tuple[Tensor, Tensor]:
    """The pixels of windows along one side of the image, and how much they count: 1 in the cell, less with each pixel away from it.

    Args:
        first: where the windows begin, ``[n]``.
        start: where their cells begin, ``[n]``.
        grid: the cells.
        length: of the image's side.

    Returns:
        int64 and float ``[n, S]``; pixels beyond the image count 0, as the last one of it.
    """
    position = first[:, None] + torch.arange(grid.window, device=first.device)
    end = (start[:, None] + grid.side).clamp(max=length)
    away = torch.maximum(start[:, None] - position, position - (end - 1)).clamp(min=0)
    weight = (1 - away / (grid.margin + 1)).clamp(min=0) * (position < length)
    return position.clamp(max=length - 1), weight
