"""The classes of the pixels of images of any size: whole where they fit, else in overlapping windows, blended.

Shapes: ``K`` classes, ``H`` and ``W`` the size of an image.
"""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from stratum.data.windows import label_map
from stratum.inference.outputs import to_float
from stratum_models.interface import SegmentationModel, SemanticPrediction

OVERLAP = 4  # windows share one part in so many of their side, which hides seams
ClassesFound = SemanticPrediction | Tensor
"""Probabilities ``[K, H, W]`` of an image that was predicted whole, the classes ``uint8 [H, W]`` of one that was not, on the CPU."""


def in_windows(size: tuple[int, int], window: int) -> bool:
    """Whether an image of this height and width is predicted in windows."""
    return bool(window) and max(size) > window


def _nothing() -> None:
    pass


@torch.inference_mode()
def find_classes(
    model: SegmentationModel, images: Sequence[Tensor], *, window: int = 0, batch: int = 4, before: Callable[[], None] = _nothing
) -> list[ClassesFound]:
    """What a semantic model finds in images ``uint8 [3, H, W]``.

    Of an image in windows no more is held than a row of windows with their probabilities, and the labels of all.

    Args:
        model: ready to predict, wherever it is.
        images: on the CPU; those that are predicted whole are predicted together.
        window: side in pixels of the windows for larger images; 0: all are predicted whole.
        batch: windows that are predicted together.
        before: called before each batch; what it raises ends all.
    """

    def probabilities(parts: Sequence[Tensor]) -> list[Tensor]:
        before()
        predictions = model.predict([to_float(part).to(model.device) for part in parts])
        return [cast(SemanticPrediction, prediction).probabilities.cpu() for prediction in predictions]

    small = [index for index, image in enumerate(images) if not in_windows(_size(image), window)]
    found: dict[int, ClassesFound] = {}
    if small:
        whole = probabilities([images[index] for index in small])
        found = {index: SemanticPrediction(probabilities=each) for index, each in zip(small, whole, strict=True)}
    for index, image in enumerate(images):
        if index not in found:
            overlap = window // OVERLAP
            found[index] = label_map(image, probabilities, classes=model.num_classes, size=window, overlap=overlap, batch=batch)
    return [found[index] for index in range(len(images))]


def labels_of(found: ClassesFound) -> Tensor:
    """The class of each pixel, ``uint8 [H, W]``."""
    return found.probabilities.argmax(0).to(torch.uint8) if isinstance(found, SemanticPrediction) else found


def _size(image: Tensor) -> tuple[int, int]:
    return int(image.shape[-2]), int(image.shape[-1])
