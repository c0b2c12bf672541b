"""What an evaluation remembers of an image: boxes, scores, labels and masks as run-length codes, in plain Python values.

Shapes: ``N`` instances, ``H`` and ``W`` the size of the image. A 300 x 480 x 640 stack of masks takes 92 MB; its codes take some 100 KB.
"""

from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from stratum.data import rle
from stratum_models.interface import InstancePrediction, InstanceTarget


class InstanceRecord(TypedDict):
    """Instances of one image; the lists are parallel."""

    boxes: list[list[float]]  # x, y, width, height in pixels, as COCO has them
    labels: list[int]
    scores: list[float]  # 1.0 for the labelled ones
    crowd: list[bool]
    masks: list[str]  # COCO's compressed run-length codes


class ImageRecord(TypedDict):
    """One image of an evaluation. Holds only what JSON and pickle carry anywhere."""

    key: str | None  # what tells the image apart from the others, its URI as a rule
    height: int
    width: int
    target: InstanceRecord
    prediction: InstanceRecord


def image_record(prediction: InstancePrediction, target: InstanceTarget, key: str | None) -> ImageRecord:
    """Both sides of one image; ``ValueError`` where their masks are of different sizes."""
    height, width = (int(side) for side in target.masks.shape[-2:])
    if tuple(prediction.masks.shape[-2:]) != (height, width):
        found = "x".join(str(side) for side in prediction.masks.shape[-2:])
        raise ValueError(
            f"predicted masks are {found}, the labels of {key or 'the image'} are {height}x{width}: predict at the image's size"
        )
    return {
        "key": key,
        "height": height,
        "width": width,
        "target": _instances(target.boxes, target.labels, torch.ones(len(target)), target.crowd, target.masks),
        "prediction": _instances(
            prediction.boxes, prediction.labels, prediction.scores, torch.zeros(len(prediction), dtype=torch.bool), prediction.masks
        ),
    }


def _instances(boxes: Tensor, labels: Tensor, scores: Tensor, crowd: Tensor, masks: Tensor) -> InstanceRecord:
    corners = boxes.detach().to("cpu", torch.float64).reshape(-1, 4)
    return {
        "boxes": torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist(),
        "labels": labels.tolist(),
        "scores": scores.detach().to("cpu", torch.float64).tolist(),
        "crowd": crowd.bool().tolist(),
        "masks": [rle.text(code) for code in rle.encode(masks.detach().cpu().numpy().astype(np.bool_))],
    }
