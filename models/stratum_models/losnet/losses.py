"""Eqs. 3 to 5 and the centerness term that the text adds.

Shapes: ``B`` images, ``L`` locations, ``K`` classes, ``M`` sampled positives, ``H`` and ``W`` the size of the predicted masks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from stratum_models.losnet.targets import centerness, decode_boxes

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
DICE_EPSILON = 1e-5


@dataclass(frozen=True, eq=False, kw_only=True)
class DetectionTargets:
    """What all locations of a batch should say."""

    labels: Tensor  # int64 [B, L]: class, -1 for background
    ignored: Tensor  # bool [B, L]
    distances: Tensor  # float32 [B, L, 4], meaningful where labels >= 0


def detection_losses(
    logits: Tensor, distances: Tensor, centers: Tensor, points: Tensor, strides: Tensor, targets: DetectionTargets
) -> dict[str, Tensor]:
    """Eq. 4 with its two terms apart, and the binary cross-entropy of the centerness (section 3.3).

    Args:
        logits: ``[B, L, K]``.
        distances: ``[B, L, 4]`` pixels.
        centers: ``[B, L]`` logits.
        points: ``[L, 2]`` pixels.
        strides: ``[L]``.
        targets: of the same locations.

    Returns:
        ``class``, ``box`` and ``center``, each divided by the number of positives (at least 1).
    """
    positive = targets.labels >= 0
    count = positive.sum().clamp(min=1)
    logits, distances, centers = (full_precision(x) for x in (logits, distances, centers))
    wanted = torch.zeros_like(logits)
    wanted[positive] = F.one_hot(targets.labels[positive], logits.shape[-1]).to(wanted.dtype)
    focal = sigmoid_focal_loss(logits, wanted, alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA)
    focal = focal.masked_fill(targets.ignored[..., None], 0).sum() / count

    unit = strides.expand(positive.shape)[positive][:, None]  # boxes in strides: the loss is free of scale, its epsilon is not
    where = points.expand(*positive.shape, 2)[positive] / unit
    box = generalized_box_iou_loss(
        decode_boxes(where, distances[positive] / unit), decode_boxes(where, targets.distances[positive] / unit), reduction="sum"
    )
    center = F.binary_cross_entropy_with_logits(centers[positive], centerness(targets.distances[positive]), reduction="sum")
    return {"class": focal, "box": box / count, "center": center / count}


def full_precision(x: Tensor) -> Tensor:
    """Half precision as float32, since sums over thousands of locations need the digits; anything finer as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def dice_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """``[M, H, W]`` logits and masks in 0..1 to ``[M]``: 1 minus the overlap, squared in the denominator as in V-Net."""
    x, y = full_precision(logits).sigmoid().flatten(1), wanted.flatten(1)
    overlap = 2 * (x * y).sum(1)
    return 1 - overlap / ((x * x).sum(1) + (y * y).sum(1) + DICE_EPSILON)


def sample_positives(labels: Tensor, matched: Tensor, quality: Tensor, limit: int) -> Tensor:
    """Which positives of one image get a mask: every instance its share, its best locations first.

    Args:
        labels: int64 ``[L]``, -1 for background.
        matched: int64 ``[L]``, the instance of each location.
        quality: ``[L]``, the present score.
        limit: most locations in all.

    Returns:
        int64 ``[M]``, the chosen locations.
    """
    positives = (labels >= 0).nonzero()[:, 0]
    if len(positives) <= limit:
        return positives
    instance = matched[positives]
    order = quality[positives].argsort(descending=True)
    order = order[instance[order].argsort(stable=True)]  # instance by instance, best first
    ranked = instance[order]
    first = torch.searchsorted(ranked, ranked)
    rank = torch.arange(len(order), device=order.device) - first  # 0 for each instance's best
    return positives[order[rank.argsort(stable=True)[:limit]]]
