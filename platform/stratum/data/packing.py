"""A batch of samples in a few flat tensors, for the way from a worker process to the one that trains.

Each tensor that crosses costs a file descriptor, and some hundred small ones run out of them. ``N`` is the number of instances of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from stratum.data.sample import Sample
from stratum_models.interface import InstanceTarget, SemanticTarget, Target

_SEMANTIC = -1


@dataclass(frozen=True, eq=False, kw_only=True)
class PackedBatch:
    """Samples end to end; all of them have instances, or all have semantic masks."""

    pixels: Tensor  # uint8 [sum of 3 H W]
    masks: Tensor  # bool [sum of N H W], or int64 [sum of H W]
    boxes: Tensor  # float32 [sum of N, 4]
    labels: Tensor  # int64 [sum of N]
    crowd: Tensor  # bool [sum of N]
    shapes: list[tuple[int, int, int]]  # N, H, W of each image; N is -1 for a semantic mask
    uris: list[str]

    @classmethod
    def pack(cls, samples: Sequence[Sample]) -> Self:
        """Copies the samples into flat tensors."""
        instances = [s.target for s in samples if isinstance(s.target, InstanceTarget)]
        masks = [s.target.mask if isinstance(s.target, SemanticTarget) else s.target.masks for s in samples]
        return cls(
            pixels=torch.cat([s.image.reshape(-1) for s in samples]),
            masks=torch.cat([m.reshape(-1) for m in masks]),
            boxes=torch.cat([torch.empty(0, 4), *(t.boxes for t in instances)]),
            labels=torch.cat([torch.empty(0, dtype=torch.int64), *(t.labels for t in instances)]),
            crowd=torch.cat([torch.empty(0, dtype=torch.bool), *(t.crowd for t in instances)]),
            shapes=[_shape(s) for s in samples],
            uris=[s.uri for s in samples],
        )

    def unpack(self) -> list[Sample]:
        """The samples again, as views of the flat tensors."""
        counts = [max(n, 0) for n, _, _ in self.shapes]
        pixels = torch.split(self.pixels, [3 * h * w for _, h, w in self.shapes])
        masks = torch.split(self.masks, [abs(n) * h * w for n, h, w in self.shapes])
        rows = zip(*(torch.split(x, counts) for x in (self.boxes, self.labels, self.crowd)), strict=True)
        samples = []
        for (n, h, w), image, mask, (boxes, labels, crowd), uri in zip(self.shapes, pixels, masks, rows, self.uris, strict=True):
            target: Target
            if n == _SEMANTIC:
                target = SemanticTarget(mask=mask.view(h, w))
            else:
                target = InstanceTarget(boxes=boxes, labels=labels, masks=mask.view(n, h, w), crowd=crowd)
            samples.append(Sample(image=image.view(3, h, w), target=target, uri=uri))
        return samples


def _shape(sample: Sample) -> tuple[int, int, int]:
    height, width = (int(x) for x in sample.image.shape[-2:])
    return (len(sample.target) if isinstance(sample.target, InstanceTarget) else _SEMANTIC, height, width)
