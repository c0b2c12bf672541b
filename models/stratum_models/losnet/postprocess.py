"""From the head's outputs to the instances that are kept, and from mask logits to masks.

Shapes: ``B`` images, ``L`` locations, ``K`` classes, ``D`` instances kept of one image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms, masks_to_boxes

from stratum_models.losnet.targets import Locations, decode_boxes

BOX_MARGIN = 0.1  # a mask may pass its box by this share of the box's side


@dataclass(frozen=True, eq=False, kw_only=True)
class Detections:
    """The instances of one image that NMS keeps, best first."""

    boxes: Tensor  # float32 [D, 4], in pixels of the batch
    scores: Tensor  # float32 [D]
    labels: Tensor  # int64 [D]
    location: Tensor  # int64 [D], which of the L locations


def final_scores(logits: Tensor, centers: Tensor) -> Tensor:
    """Eq. 2: the square root of class probability times centerness. ``[..., K]`` and ``[...]`` logits to ``[..., K]``."""
    return (logits.float().sigmoid() * centers.float().sigmoid()[..., None]).sqrt()


def select(
    scores: Tensor,
    distances: Tensor,
    locations: Locations,
    size: tuple[int, int],
    *,
    threshold: float,
    nms: float,
    proposals: int,
    limit: int,
) -> Detections:
    """The best locations of one image after NMS per class.

    Args:
        scores: ``[L, K]``, of Eq. 2.
        distances: ``[L, 4]``.
        locations: of the batch; those in the padding are left out.
        size: height and width of the image inside the batch.
        threshold: least score.
        nms: IoU above which the lesser box is dropped.
        proposals: most locations that go into NMS.
        limit: most instances that come out.
    """
    height, width = size
    inside = (locations.points[:, 0] < width) & (locations.points[:, 1] < height)
    where, label = ((scores > threshold) & inside[:, None]).nonzero(as_tuple=True)
    score = scores[where, label]
    if len(score) > proposals:
        score, best = score.topk(proposals)
        where, label = where[best], label[best]
    boxes = decode_boxes(locations.points[where], distances[where].float())
    bounds = boxes.new_tensor([width, height, width, height])
    boxes = torch.minimum(boxes.clamp(min=0), bounds)
    keep = batched_nms(boxes, score, label, nms)[:limit]
    return Detections(boxes=boxes[keep], scores=score[keep], labels=label[keep], location=where[keep])


def paste_masks(logits: Tensor, boxes: Tensor, visible: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """Mask logits at the stride of the mask features to masks at the size of the image.

    Only the surroundings of each box are interpolated: an ore fills a thousandth of its image.

    Args:
        logits: ``[D, h, w]``.
        boxes: ``[D, 4]`` in pixels of the image.
        visible: height and width, in cells of the logits, that the image covers (the rest is padding).
        size: height and width of the image.

    Returns:
        bool ``[D, H, W]``.
    """
    height, width = size
    masks = torch.zeros(len(logits), height, width, dtype=torch.bool, device=logits.device)
    margin = (boxes[:, 2:] - boxes[:, :2]).mul(BOX_MARGIN).clamp(min=1).repeat(1, 2) * boxes.new_tensor([-1, -1, 1, 1])
    frames = (boxes + margin).round().long().cpu()
    frames[:, 0::2] = frames[:, 0::2].clamp(0, width)
    frames[:, 1::2] = frames[:, 1::2].clamp(0, height)
    rows = _cells(height, visible[0], logits.shape[-2], logits.device)
    columns = _cells(width, visible[1], logits.shape[-1], logits.device)
    for mask, logit, (x0, y0, x1, y1) in zip(masks, logits, frames.tolist(), strict=True):
        if x1 > x0 and y1 > y0:
            mask[y0:y1, x0:x1] = _bilinear(logit, rows[y0:y1], columns[x0:x1]) > 0
    return masks


def around_masks(masks: Tensor, boxes: Tensor) -> Tensor:
    """The boxes ``[D, 4]`` around masks ``[D, H, W]``; where a mask is empty, the one that is given."""
    filled = masks.flatten(1).any(1)
    tight = boxes.clone()
    if filled.any():
        tight[filled] = masks_to_boxes(masks[filled]).to(boxes.dtype) + boxes.new_tensor([0, 0, 1, 1])  # its last pixel is inclusive
    return tight


def _cells(pixels: int, visible: float, cells: int, device: torch.device) -> Tensor:
    """The position of each pixel's centre among the centres of the cells, ``[pixels]``."""
    position = (torch.arange(pixels, device=device, dtype=torch.float32) + 0.5) * (visible / pixels) - 0.5
    return position.clamp(0, cells - 1)


def _bilinear(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``[h, w]`` at the product of fractional ``rows [R]`` and ``columns [C]``: ``[R, C]``."""
    top, left = rows.floor().long(), columns.floor().long()
    bottom, right = (top + 1).clamp(max=x.shape[0] - 1), (left + 1).clamp(max=x.shape[1] - 1)
    across = torch.lerp(x[:, left], x[:, right], (columns - left).to(x.dtype))
    return torch.lerp(across[top], across[bottom], (rows - top).to(x.dtype)[:, None])


def upsample(logits: Tensor, factor: int) -> Tensor:
    """``[M, h, w]`` to ``[M, h * factor, w * factor]``, bilinear, pixel centres aligned."""
    return F.interpolate(logits[None], scale_factor=factor, mode="bilinear", align_corners=False)[0]
