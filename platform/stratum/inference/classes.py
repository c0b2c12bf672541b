"""The classes of the pixels of images of any size: whole where they fit, else in overlapping windows, blended.

Models of two stages go over a large image as over a scan, so that what they pick is picked of the whole image, and not of each window.

Shapes: ``K`` classes, ``H`` and ``W`` the size of an image.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor

from stratum.data.windows import Window, label_map
from stratum.disk import said_when_full
from stratum.inference.outputs import to_float
from stratum_models.catalog import resolve_config
from stratum_models.interface import SegmentationModel, SemanticPrediction
from stratum_models.package import Manifest
from stratum_models.two_stage.config import TwoStageConfig
from stratum_models.two_stage.model import TwoStage

OVERLAP = 4  # windows share one part in so many of their side, which hides seams
TWO_STAGE_WINDOW = 2048  # pixels: side of the windows of a two-stage model where none was asked for
TOGETHER = 2**24  # pixels of images that are predicted together, unless one alone has more
Item = TypeVar("Item")
ClassesFound = SemanticPrediction | Tensor
"""Probabilities ``[K, H, W]`` of an image that was predicted whole, the classes ``uint8 [H, W]`` of one that was not, on the CPU."""


def in_windows(size: tuple[int, int], window: int) -> bool:
    """Whether an image of this height and width is predicted in windows."""
    return bool(window) and max(size) > window


def _nothing() -> None:
    pass


def window_of(manifest: Manifest, asked: int | None) -> int:
    """The side of a package's windows, unless one is asked for: that of the tiles it was trained on; for two stages, many patches wide."""
    if asked is not None:
        return asked
    return TWO_STAGE_WINDOW if isinstance(resolve_config(manifest.preset, manifest.overrides), TwoStageConfig) else manifest.tile


def together(items: Iterable[Item], pixels: Callable[[Item], int]) -> Iterator[list[Item]]:
    """The items, in order, in groups of not more than ``TOGETHER`` pixels, or of one item; taken as they are wanted."""
    group: list[Item] = []
    total = 0
    for item in items:
        size = pixels(item)
        if group and total + size > TOGETHER:
            yield group
            group, total = [], 0
        group.append(item)
        total += size
    if group:
        yield group


@torch.inference_mode()
def find_classes(
    model: SegmentationModel, images: Sequence[Tensor], *, window: int = 0, batch: int = 4, before: Callable[[], None] = _nothing
) -> list[ClassesFound]:
    """What a semantic model finds in images ``uint8 [3, H, W]``.

    Of an image in windows no more is held than a row of windows with their probabilities, and the labels of all.

    Args:
        model: ready to predict, wherever it is.
        images: on the CPU; those that are predicted whole are predicted together, as far as memory allows.
        window: side in pixels of the windows for larger images; 0: all are predicted whole.
        batch: windows that are predicted together.
        before: called before each batch; what it raises ends all.
    """

    def predict(parts: Sequence[Tensor]) -> list[SemanticPrediction]:
        before()
        predictions = model.predict([to_float(part).to(model.device) for part in parts])
        return [cast(SemanticPrediction, prediction).to("cpu") for prediction in predictions]

    def probabilities(parts: Sequence[Tensor]) -> list[Tensor]:
        return [prediction.probabilities for prediction in predict(parts)]

    scaled = isinstance(model, TwoStage) and model.config.resizes  # whole images
    small = [index for index, image in enumerate(images) if scaled or not in_windows(_size(image), window)]
    found: dict[int, ClassesFound] = {}
    for group in together(small, lambda index: images[index][0].numel()):
        found |= dict(zip(group, predict([images[index] for index in group]), strict=True))
    for index, image in enumerate(images):
        if index not in found:
            overlap = window // OVERLAP
            found[index] = (
                _two_stage_labels(model, image, window)
                if isinstance(model, TwoStage)
                else label_map(image, probabilities, classes=model.num_classes, size=window, overlap=overlap, batch=batch)
            )
    return [found[index] for index in range(len(images))]


def _two_stage_labels(model: TwoStage, image: Tensor, window: int) -> Tensor:
    """The classes ``uint8 [H, W]`` of an image ``uint8 [3, H, W]``, as if it were a scan."""
    from stratum.data.scans import in_memory  # here: it imports zarr, which takes time
    from stratum.inference.scans import NO_ROOM, segment_scan

    labels = torch.zeros(image.shape[-2:], dtype=torch.uint8)

    def keep(part: Window, _image: Tensor | None, found: Tensor | None) -> None:
        if found is not None:
            part.of(labels).copy_(found)

    with tempfile.TemporaryDirectory(prefix="stratum-windows-") as scratch, said_when_full(Path(scratch), NO_ROOM):
        segment_scan(model, in_memory(image), keep, Path(scratch), window)
    return labels


def labels_of(found: ClassesFound) -> Tensor:
    """The class of each pixel, ``uint8 [H, W]``."""
    return found.probabilities.argmax(0).to(torch.uint8) if isinstance(found, SemanticPrediction) else found


def _size(image: Tensor) -> tuple[int, int]:
    return int(image.shape[-2]), int(image.shape[-1])
