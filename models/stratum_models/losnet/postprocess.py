"""From the head's outputs to the instances that are kept.

Shapes: ``B`` images, ``L`` locations, ``K`` classes, ``D`` instances kept of one image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms

from stratum_models.losnet.targets import Locations, decode_boxes


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
    score, best = score.topk(min(len(score), proposals))
    where, label = where[best], label[best]
    boxes = decode_boxes(locations.points[where], distances[where].float())
    bounds = boxes.new_tensor([width, height, width, height])
    boxes = torch.minimum(boxes.clamp(min=0), bounds)
    keep = _kept(boxes, score, label, nms, limit)
    return Detections(boxes=boxes[keep], scores=score[keep], labels=label[keep], location=where[keep])


def _kept(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, limit: int) -> Tensor:
    """The first ``limit`` indices that NMS keeps, of boxes in the order of their scores: what is worse never drops what is better.

    So the best boxes go through it alone first, and usually that is enough.
    """
    for count in (2 * limit, len(boxes)):
        keep: Tensor = batched_nms(boxes[:count], scores[:count], labels[:count], iou)[:limit]
        if len(keep) == limit or count >= len(boxes):
            break
    return keep


def upsample(logits: Tensor, factor: int) -> Tensor:
    """``[M, h, w]`` to ``[M, h * factor, w * factor]``, bilinear, pixel centres aligned."""
    return F.interpolate(logits[None], scale_factor=factor, mode="bilinear", align_corners=False)[0]
