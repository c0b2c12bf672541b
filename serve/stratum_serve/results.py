"""Predictions at the size of the image that was sent, with what was asked for alone.

Shapes: ``N`` instances, ``K`` classes, ``H`` and ``W`` the size of the image that was sent.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from stratum.inference.classes import ClassesFound, labels_of
from stratum.inference.outputs import visible
from stratum_models.interface import IGNORE_INDEX, InstancePrediction, Prediction, SemanticPrediction
from stratum_models.losnet.canvas import around_masks, make_canvas
from stratum_models.package import Manifest
from stratum_serve.options import CommonOptions


@dataclass(frozen=True, eq=False, kw_only=True)
class Found:
    """What was found in one image."""

    image: Tensor  # uint8 [3, H, W]
    manifest: Manifest
    instances: InstancePrediction | None = None
    semantic: ClassesFound | None = None
    wanted: tuple[str, ...] = ()  # classes to answer with
    grid: tuple[int, int] | None = None  # of a refined image: rows and columns of patches,
    refined: tuple[int, ...] = ()  # and which of them were refined, row by row
    patch: int = 0  # their side in pixels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return int(self.image.shape[-2]), int(self.image.shape[-1])

    def labels(self) -> NDArray[np.uint8]:
        """The class of each pixel ``[H, W]``; IGNORE_INDEX for classes that were not asked for."""
        assert self.semantic is not None
        labels = labels_of(self.semantic).numpy()
        if self.wanted:
            others = [index for index, name in enumerate(self.manifest.classes) if name not in self.wanted]
            labels = np.where(np.isin(labels, others), np.uint8(IGNORE_INDEX), labels)
        return labels

    @cached_property
    def pixels(self) -> dict[int, int]:
        """How many pixels each class covers that is answered with, by its index; instances that overlap count once."""
        if self.instances is None:
            counts = np.bincount(self.labels().ravel(), minlength=IGNORE_INDEX + 1)
            return {index: int(counts[index]) for index, _ in self.answered()}
        return {index: _covered(self.instances, index) for index, _ in self.answered()}

    def answered(self) -> list[tuple[int, str]]:
        """Index and name of the classes that are answered with."""
        return [(index, name) for index, name in enumerate(self.manifest.classes) if not self.wanted or name in self.wanted]


def found_in(image: Tensor, prediction: Prediction | Tensor, manifest: Manifest, options: CommonOptions) -> Found:
    """What a prediction, perhaps of the shrunk image, says of the image that was sent."""
    wanted = options.wanted()
    size = (int(image.shape[-2]), int(image.shape[-1]))
    if not isinstance(prediction, InstancePrediction):
        return Found(image=image, manifest=manifest, semantic=_semantic_at(prediction, size), wanted=wanted)
    threshold = manifest.score_threshold if options.score is None else options.score
    keep = prediction.scores >= threshold
    if wanted:
        keep &= torch.isin(prediction.labels, torch.tensor([index for index, name in enumerate(manifest.classes) if name in wanted]))
    instances = visible(_instances_at(prediction.where(keep), size))
    return Found(image=image, manifest=manifest, instances=instances, wanted=wanted)


def _covered(instances: InstancePrediction, label: int) -> int:
    """The pixels that the instances of a class cover together."""
    union = np.zeros(instances.masks.shape[1:], dtype=bool)
    for index in (instances.labels == label).nonzero()[:, 0].tolist():
        np.logical_or(union, instances.masks[index].numpy(), out=union)
    return int(np.count_nonzero(union))


def _instances_at(found: InstancePrediction, size: tuple[int, int]) -> InstancePrediction:
    """The instances at another size; of each mask only the part with pixels is scaled and painted, since the rest may be very much."""
    inner = (int(found.masks.shape[-2]), int(found.masks.shape[-1]))
    if inner == size:
        return found
    factors = found.boxes.new_tensor([size[1] / inner[1], size[0] / inner[0]]).repeat(2)
    canvas = make_canvas(around_masks(found.masks, found.boxes) * factors, inner, inner, size)
    parts = zip(found.masks, canvas.windows.tolist(), strict=True)
    masks = canvas.paint([mask[top:bottom, left:right].float() - 0.5 for mask, (top, left, bottom, right) in parts])
    return InstancePrediction(boxes=found.boxes * factors, scores=found.scores, labels=found.labels, masks=masks)


def _semantic_at(found: SemanticPrediction | Tensor, size: tuple[int, int]) -> ClassesFound:
    if isinstance(found, Tensor):
        same = tuple(found.shape) == size
        return found if same else interpolate(found[None, None].float(), size, mode="nearest-exact")[0, 0].to(torch.uint8)
    planes = found.probabilities
    if tuple(planes.shape[-2:]) != size:
        planes = interpolate(planes[None], size, mode="bilinear", align_corners=False)[0]
    return SemanticPrediction(probabilities=planes)
