"""What every model of the catalog promises, and the values that go in and come out.

Shapes: ``B`` images in a batch, ``N`` instances, ``K`` classes, ``H`` and ``W`` the size of the image.
Boxes are ``(x0, y0, x1, y1)`` in pixels, with ``x1`` and ``y1`` exclusive. Labels count from 0; there is no background label.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from stratum_models.errors import UserError

Task = Literal["instance", "semantic"]
IGNORE_INDEX = 255


class _Tensors:
    """Moves every tensor field of a dataclass at once."""

    def to(self, device: torch.device | str) -> Self:
        """The same values on another device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return type(self)(**{name: value.to(device) if isinstance(value, Tensor) else value for name, value in values.items()})


@dataclass(frozen=True, eq=False, kw_only=True)
class InstanceTarget(_Tensors):
    """The labelled instances of one image."""

    boxes: Tensor  # float32 [N, 4]
    labels: Tensor  # int64 [N]
    masks: Tensor  # bool [N, H, W]
    crowd: Tensor  # bool [N]: a region of unseparated instances: neither a positive nor a negative

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False, kw_only=True)
class SemanticTarget(_Tensors):
    """The labelled pixels of one image."""

    mask: Tensor  # int64 [H, W], IGNORE_INDEX where nothing is known


@dataclass(frozen=True, eq=False, kw_only=True)
class InstancePrediction(_Tensors):
    """The instances found in one image, best score first."""

    boxes: Tensor  # float32 [N, 4]
    scores: Tensor  # float32 [N], 0..1
    labels: Tensor  # int64 [N]
    masks: Tensor  # bool [N, H, W]

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, keep: Tensor) -> Self:
        """The instances for which ``keep``, bool ``[N]``, holds; where these are the first ones, or all, their masks are not copied."""
        count = int(keep.sum())
        first = bool(keep[:count].all())
        chosen = slice(count) if first else keep
        masks = self.masks[:count] if first else _copied(self.masks, keep)
        return type(self)(boxes=self.boxes[chosen], scores=self.scores[chosen], labels=self.labels[chosen], masks=masks)


@dataclass(frozen=True, eq=False, kw_only=True)
class SemanticPrediction(_Tensors):
    """The class probabilities of each pixel of one image."""

    probabilities: Tensor  # float32 [K, H, W], sums to 1 over K
    refined: int | None = None  # patches that a second stage looked at; None where there is no second stage


def _copied(masks: Tensor, keep: Tensor) -> Tensor:
    """Some masks ``[N, H, W]``. On a CPU only rows with pixels are moved: what nobody writes on costs no memory."""
    if masks.device.type != "cpu":
        return masks[keep]
    every = masks.numpy()
    copies = np.zeros((int(keep.sum()), *every.shape[1:]), dtype=bool)
    for copy, index in zip(copies, keep.nonzero()[:, 0].tolist(), strict=True):
        rows = np.flatnonzero(every[index].any(axis=1))
        if len(rows):
            copy[rows[0] : rows[-1] + 1] = every[index, rows[0] : rows[-1] + 1]
    return torch.from_numpy(copies)


Target = InstanceTarget | SemanticTarget
Prediction = InstancePrediction | SemanticPrediction


class SegmentationModel(nn.Module, ABC):
    """A network that knows its loss and its post-processing.

    Images are ``float32 [3, H, W]`` in 0..1, of any and of different sizes; the model normalises, resizes, pads and batches them, and
    answers at the size that came in.
    """

    task: Task
    num_classes: int
    memory_format: torch.memory_format = torch.contiguous_format

    @abstractmethod
    def loss(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """The terms of the loss, scalars with gradient; what is minimised is their sum.

        Images are taken at the size they have: what scale to train at is the augmentation's to say.
        """

    @abstractmethod
    def predict(self, images: Sequence[Tensor]) -> Sequence[Prediction]:
        """One prediction per image, at the size of the image, without gradient."""

    @property
    def exportable(self) -> "dict[str, SegmentationModel]":
        """The models whose dense outputs can be exported, by the name that tells them apart: itself, or the stages that it is made of."""
        return {"": self}

    @property
    def input_channels(self) -> int:
        """``C`` of :meth:`dense_outputs`."""
        return 3

    @property
    def divisor(self) -> int:
        """What the sides of a batch for :meth:`dense_outputs` must be multiples of. Raises UserError where there is no such method."""
        raise UserError(f"{type(self).__name__} has no dense outputs that stand alone: choose another model")

    def dense_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """What the network gives before its post-processing, by name, for a batch ``float32 [B, C, H, W]`` in 0..1: what can be exported.

        Images are padded with the mean colour that the model normalises with.

        Raises:
            UserError: there is no such part that stands alone.
        """
        raise UserError(f"{type(self).__name__} has no dense outputs that stand alone: choose another model")

    def set_progress(self, fraction: float) -> None:
        """Hears before every step of training, and at its end, how much of it is done: 0 to 1. Most models have no use for it."""

    @property
    def unlearnt(self) -> str:
        """What is to learn in a later part of training and has not begun to, in words; empty for most models at all times.

        Weights are compared with others of the same part alone: the best of a run are those of its last part.
        """
        return ""

    def lay_out(self, memory_format: torch.memory_format) -> None:
        """Weights, and activations with them, channels-first or channels-last."""
        self.memory_format = memory_format
        self.to(memory_format=memory_format)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device
