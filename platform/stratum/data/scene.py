"""A labelled image in the form in which augmentation is cheap: one map of instance ids instead of one mask per instance.

Shapes: ``N`` instances, ``L`` layers of ids (one unless masks overlap), ``H`` and ``W`` the size of the image. Moving 30 masks of 320 x 320
pixels costs thirty times as much as moving one map of ids, and says the same.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torchvision import tv_tensors

from stratum.data.sample import Sample
from stratum_models.interface import IGNORE_INDEX, InstanceTarget, SemanticTarget

MAX_INSTANCES = int(np.iinfo(np.int16).max)


@dataclass(frozen=True, eq=False, kw_only=True)
class Scene:
    """An image and a map of ids that move together.

    ``image`` is a ``uint8 [3, H, W]`` tv_tensor. ``ids`` is an ``int16 [L, H, W]`` tv_tensor: of instances, 0 is nothing and ``i + 1`` is
    instance ``i``, which lies in one layer only; of a semantic mask, the one layer holds the classes. ``areas`` holds the pixels that
    each instance would have at the present scale if nothing of it were cut away.
    """

    image: Any  # tv_tensors.Image uint8 [3, H, W]
    ids: Any  # tv_tensors.Mask int16 [L, H, W]
    labels: NDArray[np.int64]  # [N]
    crowd: NDArray[np.bool_]  # [N]
    areas: NDArray[np.float64]  # [N]
    semantic: bool
    uri: str

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.image.shape[-2:]
        return int(height), int(width)

    @property
    def background(self) -> int:
        """The id of a pixel of which nothing is known: padding."""
        return IGNORE_INDEX if self.semantic else 0


def to_scene(sample: Sample) -> Scene:
    """The same labels as a map of ids. Masks may overlap: what does not fit into a layer goes into the next one."""
    image = tv_tensors.Image(sample.image)
    if isinstance(sample.target, SemanticTarget):
        none = np.zeros(0)
        ids = tv_tensors.Mask(sample.target.mask.to(torch.int16)[None])
        return Scene(image=image, ids=ids, labels=none.astype(int), crowd=none.astype(bool), areas=none, semantic=True, uri=sample.uri)
    layers = _layers(sample.target.masks.numpy())
    return Scene(
        image=image,
        ids=tv_tensors.Mask(torch.from_numpy(layers)),
        labels=sample.target.labels.numpy(),
        crowd=sample.target.crowd.numpy(),
        areas=_counts(layers, len(sample.target)).astype(np.float64),
        semantic=False,
        uri=sample.uri,
    )


def to_sample(scene: Scene, *, min_area: float = 1, min_visible: float = 0) -> Sample:
    """The labels as separate masks again, with boxes that fit the masks.

    Instances with fewer than ``min_area`` pixels, or with less than the fraction ``min_visible`` of what they would have uncut, are
    dropped; crowd regions only when nothing is left of them.
    """
    image = scene.image.as_subclass(torch.Tensor).clone()  # the scene may be kept; a sample is its owner's to change
    if scene.semantic:
        return Sample(image=image, target=SemanticTarget(mask=scene.ids.as_subclass(torch.Tensor)[0].long()), uri=scene.uri)
    masks, boxes, keep = _separate(scene, min_area, min_visible)
    target = InstanceTarget(
        boxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(scene.labels[keep].astype(np.int64)),
        masks=torch.from_numpy(masks),
        crowd=torch.from_numpy(scene.crowd[keep].astype(bool)),
    )
    return Sample(image=image, target=target, uri=scene.uri)


def pixel_counts(scene: Scene) -> NDArray[np.int64]:
    """How many pixels of each instance are there: ``int64 [N]``."""
    return _counts(scene.ids.as_subclass(torch.Tensor).numpy(), len(scene.labels))


def _counts(layers: NDArray[np.int16], instances: int) -> NDArray[np.int64]:
    return np.bincount(layers.ravel(), minlength=instances + 1)[1:]


def _separate(scene: Scene, min_area: float, min_visible: float) -> tuple[NDArray[np.bool_], NDArray[np.float32], list[int]]:
    """Masks ``bool [N', H, W]``, tight boxes ``float32 [N', 4]`` and indices of the instances to keep, looking only where each one lies."""
    found = []
    for layer in scene.ids.as_subclass(torch.Tensor).numpy():
        for instance, inside in enumerate(ndimage.find_objects(layer)):
            if inside is None:
                continue
            mask = layer[inside] == instance + 1
            pixels = np.count_nonzero(mask)
            if scene.crowd[instance] or pixels >= max(min_area, min_visible * scene.areas[instance]):
                found.append((instance, inside, mask))
    found.sort(key=lambda entry: entry[0])
    masks = np.zeros((len(found), *scene.size), dtype=bool)
    boxes = np.zeros((len(found), 4), dtype=np.float32)
    for place, (_, (rows, columns), mask) in enumerate(found):
        masks[place, rows, columns] = mask
        boxes[place] = columns.start, rows.start, columns.stop, rows.stop
    return masks, boxes, [instance for instance, _, _ in found]


def tight_boxes(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The smallest boxes ``float32 [N, 4]`` around masks ``bool [N, H, W]``; all zero where a mask is empty."""
    rows: NDArray[np.bool_] = np.asarray(masks.any(axis=2))  # [N, H]
    columns: NDArray[np.bool_] = np.asarray(masks.any(axis=1))  # [N, W]
    if not rows.size or not columns.size:
        return np.zeros((len(masks), 4), dtype=np.float32)
    height, width = masks.shape[1:]
    edges = (columns.argmax(1), rows.argmax(1), width - columns[:, ::-1].argmax(1), height - rows[:, ::-1].argmax(1))
    boxes = np.stack(edges, axis=1).astype(np.float32)
    boxes[~rows.any(axis=1)] = 0
    return boxes


def _layers(masks: NDArray[np.bool_]) -> NDArray[np.int16]:
    """Masks ``bool [N, H, W]`` as ids ``int16 [L, H, W]``, each mask in the first layer in which its pixels are free."""
    if len(masks) > MAX_INSTANCES:
        raise ValueError(f"{len(masks)} instances in one image: at most {MAX_INSTANCES} are supported")
    layers = [np.zeros(masks.shape[1:], dtype=np.int16)]
    for number, (mask, box) in enumerate(zip(masks, tight_boxes(masks).astype(int).tolist(), strict=True), start=1):
        inside = (slice(box[1], box[3]), slice(box[0], box[2]))
        free = next((layer for layer in layers if not layer[inside][mask[inside]].any()), None)
        if free is None:
            free = np.zeros(masks.shape[1:], dtype=np.int16)
            layers.append(free)
        free[inside][mask[inside]] = number
    return np.stack(layers)
