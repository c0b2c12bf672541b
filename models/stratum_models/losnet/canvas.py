"""From mask logits at the stride of the mask features to masks at the size of the image.

Only the surroundings of each box are looked at: a stone covers a thousandth of its image.

Shapes: ``D`` instances of one image of ``H x W`` pixels; the mask features have ``h x w`` cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BOX_MARGIN = 0.1  # a mask may pass its box by this share of the box's side


@dataclass(frozen=True, eq=False, kw_only=True)
class Canvas:
    """The masks of one image before they are painted: where each may have pixels, and which cells those lie between.

    Bilinear interpolation is linear along each axis, so that it is a product with one small matrix from the left and one from the right.
    """

    frames: Tensor  # int64 [D, 4] on the CPU: left, top, right, bottom in pixels of the image; right <= left where nothing is seen
    windows: Tensor  # int64 [D, 4] on the CPU: top, left, bottom, right in cells, none empty
    vertical: Tensor  # float32 [H, h]
    horizontal: Tensor  # float32 [w, W]

    def paint(self, logits: Sequence[Tensor]) -> Tensor:
        """Logits of each window, ``[bottom - top, right - left]``, to bool masks ``[D, H, W]``."""
        masks = _blank((len(logits), len(self.vertical), self.horizontal.shape[1]), self.vertical.device)
        for mask, logit, (x0, y0, x1, y1), (top, left, bottom, right) in zip(
            masks, logits, self.frames.tolist(), self.windows.tolist(), strict=True
        ):
            if x1 > x0 and y1 > y0:
                values = self.vertical[y0:y1, top:bottom] @ logit.float() @ self.horizontal[left:right, x0:x1]
                torch.gt(values, 0, out=mask[y0:y1, x0:x1])
        return masks


def make_canvas(boxes: Tensor, cells: tuple[int, int], visible: tuple[float, float], size: tuple[int, int]) -> Canvas:
    """The canvas of one image.

    Args:
        boxes: ``[D, 4]`` in pixels of the image.
        cells: height and width of the mask features.
        visible: height and width, in cells, that the image covers (the rest is padding).
        size: height and width of the image.
    """
    margin = (boxes[:, 2:] - boxes[:, :2]).mul(BOX_MARGIN).clamp(min=1).repeat(1, 2) * boxes.new_tensor([-1, -1, 1, 1])
    frames = (boxes + margin).round().long().cpu()
    frames[:, 0::2] = frames[:, 0::2].clamp(0, size[1])
    frames[:, 1::2] = frames[:, 1::2].clamp(0, size[0])
    vertical, row = _interpolation(size[0], visible[0], cells[0])
    horizontal, column = _interpolation(size[1], visible[1], cells[1])
    x0, y0, x1, y1 = frames.unbind(1)
    x0, y0 = x0.clamp(max=size[1] - 1), y0.clamp(max=size[0] - 1)
    bottom = (row[(y1 - 1).maximum(y0)] + 2).clamp(max=cells[0])  # a pixel lies between its cell and the next
    right = (column[(x1 - 1).maximum(x0)] + 2).clamp(max=cells[1])
    return Canvas(
        frames=frames,
        windows=torch.stack([row[y0], column[x0], bottom, right], dim=1),
        vertical=vertical.to(boxes.device),
        horizontal=horizontal.T.contiguous().to(boxes.device),
    )


def around_masks(masks: Tensor, boxes: Tensor) -> Tensor:
    """The boxes ``[D, 4]`` around masks ``[D, H, W]``; where a mask is empty, the one that is given."""
    numbers = masks.view(torch.uint8)  # whose maximum is ten times as fast as any() of bool
    columns, rows = numbers.amax(1), numbers.amax(2)
    first = [hit.argmax(1) for hit in (columns, rows)]
    beyond = [hit.shape[1] - hit.flip(1).argmax(1) for hit in (columns, rows)]
    tight = torch.stack(first + beyond, dim=1).to(boxes.dtype)
    return torch.where(rows.amax(1, keepdim=True) > 0, tight, boxes)


def _blank(shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Bool zeros. On a CPU of numpy's, whose pages cost nothing until a mask is painted on them; PyTorch writes each of them first."""
    return torch.from_numpy(np.zeros(shape, dtype=bool)) if device.type == "cpu" else torch.zeros(shape, dtype=torch.bool, device=device)


def _interpolation(pixels: int, visible: float, cells: int) -> tuple[Tensor, Tensor]:
    """Weights ``[pixels, cells]`` of linear interpolation along one axis, whose first ``visible`` cells cover the pixels.

    With it each pixel's first cell, int64 ``[pixels]``: the weights are zero but for that and the next.
    """
    position = (torch.arange(pixels, dtype=torch.float32) + 0.5) * (visible / pixels) - 0.5
    position = position.clamp(0, cells - 1)
    weights = (1 - (position[:, None] - torch.arange(cells)).abs()).clamp(min=0)
    return weights, position.long()
