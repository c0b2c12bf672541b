"""Which location answers for which instance, and what it should say.

Shapes: ``L`` locations of all levels, ``N`` instances of one image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stratum_models.interface import InstanceTarget


@dataclass(frozen=True, eq=False, kw_only=True)
class Locations:
    """Where the ``L`` locations are; each is the centre of its cell."""

    points: Tensor  # float32 [L, 2]: x and y in pixels
    strides: Tensor  # float32 [L]
    lower: Tensor  # float32 [L]: the level answers for instances whose largest side distance lies in lower..upper
    upper: Tensor  # float32 [L]

    @property
    def scales(self) -> Tensor:
        """``[L]``: the unit of the relative coordinates: eight strides, the upper limit of the level."""
        return self.strides * 8


def make_locations(sizes: Sequence[tuple[int, int]], strides: Sequence[int], limits: Sequence[float], device: torch.device) -> Locations:
    """Locations of levels of ``sizes`` (height, width), row by row, the level with the smallest stride first."""
    points, steps, lower, upper = [], [], [], []
    bounds = (0.0, *limits[: len(sizes) - 1], float("inf"))
    for i, ((height, width), stride) in enumerate(zip(sizes, strides, strict=True)):
        ys, xs = torch.meshgrid(
            (torch.arange(height, device=device, dtype=torch.float32) + 0.5) * stride,
            (torch.arange(width, device=device, dtype=torch.float32) + 0.5) * stride,
            indexing="ij",
        )
        points.append(torch.stack([xs, ys], dim=-1).reshape(-1, 2))
        full = torch.full((height * width,), 1.0, device=device)
        steps.append(full * stride)
        lower.append(full * bounds[i])
        upper.append(full * bounds[i + 1])
    return Locations(points=torch.cat(points), strides=torch.cat(steps), lower=torch.cat(lower), upper=torch.cat(upper))


@dataclass(frozen=True, eq=False, kw_only=True)
class Assignment:
    """What each location of one image should say."""

    matched: Tensor  # int64 [L]: index of the instance, -1 for background
    ignored: Tensor  # bool [L]: background inside the box of a crowd region: no loss


def assign(locations: Locations, target: InstanceTarget, center_radius: float) -> Assignment:
    """Each location to the smallest instance that it lies in, is near the centre of, and whose size its level answers for (FCOS).

    Args:
        locations: of the padded batch.
        target: boxes ``[N, 4]`` and crowds; only instances that are no crowd become positives.
        center_radius: in strides; 0 takes the whole box.
    """
    boxes = target.boxes
    if len(boxes) == 0:
        empty = torch.full((len(locations.points),), -1, dtype=torch.int64, device=locations.points.device)
        return Assignment(matched=empty, ignored=torch.zeros_like(empty, dtype=torch.bool))
    distances = box_distances(locations.points[:, None], boxes[None])  # [L, N, 4]
    inside = distances.amin(-1) > 0
    near = inside if center_radius == 0 else inside & _near_center(locations, boxes, center_radius)
    largest = distances.amax(-1)
    fits = (largest >= locations.lower[:, None]) & (largest < locations.upper[:, None])
    candidate = near & fits & ~target.crowd
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    smallest, index = torch.where(candidate, area, torch.inf).min(dim=1)
    matched = torch.where(smallest.isfinite(), index, -1)
    return Assignment(matched=matched, ignored=(matched < 0) & (inside & target.crowd).any(1))


def box_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """Left, top, right and bottom distance of points ``[..., 2]`` to the sides of boxes ``[..., 4]``: ``[..., 4]``."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)


def decode_boxes(points: Tensor, distances: Tensor) -> Tensor:
    """The inverse of :func:`box_distances`: ``[..., 2]`` and ``[..., 4]`` to boxes ``[..., 4]``."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)


def centerness(distances: Tensor) -> Tensor:
    """Eq. 1: 1 at the centre of the box, 0 at its sides. ``[..., 4]`` to ``[...]``."""
    horizontal, vertical = distances[..., 0::2], distances[..., 1::2]
    ratios = (horizontal.amin(-1) / horizontal.amax(-1)) * (vertical.amin(-1) / vertical.amax(-1))
    return ratios.clamp(min=0).sqrt()


def _near_center(locations: Locations, boxes: Tensor, radius: float) -> Tensor:
    """Bool ``[L, N]``: within ``radius`` strides of the centre of the box along both axes."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    offset = (locations.points[:, None] - centers).abs().amax(-1)
    return offset < locations.strides[:, None] * radius
