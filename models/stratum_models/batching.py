"""Images of different sizes in, one padded batch out.

Shapes: ``B`` images, ``H`` and ``W`` the padded size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stratum_models.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_ASPECT = 4  # by its shorter side alone, an image of 20 x 4000 pixels would grow to 352 x 70400


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """A padded batch and the size that each image has inside it."""

    images: Tensor  # float32 [B, C, H, W], normalised, zero where padded; C is 3 unless there is more than colours
    sizes: tuple[tuple[int, int], ...]  # (height, width) of each image before padding


class Normalize(nn.Module):
    """Subtracts the mean and divides by the standard deviation of each channel, usually a colour; pads and stacks."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD, divisor: int = 32) -> None:
        super().__init__()
        self.divisor = divisor
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Sequence[Tensor], memory_format: torch.memory_format = torch.contiguous_format, least: int = 0) -> Batch:
        """Images ``float32 [C, h, w]``, colours in 0..1, to one batch whose sides are multiples of ``divisor``, and ``least`` or more."""
        sizes = tuple((int(image.shape[-2]), int(image.shape[-1])) for image in images)
        height = self._multiple(max(least, *(h for h, _ in sizes)))
        width = self._multiple(max(least, *(w for _, w in sizes)))
        batch = torch.zeros(len(images), len(self.mean), height, width, device=self.mean.device)
        for row, image, (h, w) in zip(batch, images, sizes, strict=True):
            row[:, :h, :w].copy_(image).sub_(self.mean).div_(self.std)  # colour by colour: three times as fast as with colours innermost
        return Batch(images=batch.contiguous(memory_format=memory_format), sizes=sizes)

    def uniform(self, images: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
        """As :meth:`forward` for images of one size ``[B, C, h, w]``, without a step for each of them: ``[B, C, H, W]``."""
        height, width = images.shape[-2:]
        padding = (0, self._multiple(width) - width, 0, self._multiple(height) - height)
        return F.pad((images - self.mean) / self.std, padding).contiguous(memory_format=memory_format)

    def _multiple(self, side: int) -> int:
        return -(-side // self.divisor) * self.divisor

    def colours(self, images: Tensor) -> Tensor:
        """A batch ``[B, 3, H, W]`` in 0..1, normalised."""
        return (images - self.mean) / self.std


def scale_factor(size: tuple[int, int], short: int, long: int | None) -> float:
    """What brings the shorter side to ``short`` pixels, or less if the longer side would pass ``long``, by default 4 times as many."""
    return min(short / min(size), (long or MAX_ASPECT * short) / max(size))


@dataclass(frozen=True, kw_only=True)
class InputSize:
    """The options of every model that change the size of images in prediction, before its network sees them.

    Raises:
        UserError: a value is outside its range, or two of them contradict each other.
    """

    input_short: int | None = None
    """Prediction resizes the shorter side to this many pixels; None leaves images as they are."""
    input_long: int | None = None
    """Bound of the longer side when ``input_short`` is set; none: 4 times that."""
    input_scale: float | None = None
    """Prediction resizes images by this factor, whatever their size: for networks that were trained on tiles at another scale."""

    def __post_init__(self) -> None:
        for name in ("input_short", "input_long"):
            side = getattr(self, name)
            if side is not None and side < 32:
                raise UserError(f"option {name}={side}: must be 32 or more, or none")
        if self.input_scale is not None and not 1 / 64 <= self.input_scale <= 64:
            raise UserError(f"option input_scale={self.input_scale}: must be between 1/64 and 64, or none")
        if self.input_scale is not None and self.input_short is not None:
            raise UserError(f"options input_scale={self.input_scale} and input_short={self.input_short} contradict each other: give one")

    @property
    def resizes(self) -> bool:
        """Whether the network sees images at another size than their own."""
        return self.input_short is not None or self.input_scale is not None

    def scaled(self, height: int, width: int) -> tuple[int, int]:
        """The height and width at which the network sees an image."""
        factor = self.input_scale
        if self.input_short is not None:
            factor = scale_factor((height, width), self.input_short, self.input_long)
        return (height, width) if factor is None else (max(1, round(height * factor)), max(1, round(width * factor)))


RESIZING = tuple(field.name for field in fields(InputSize))


def resize_images(images: Sequence[Tensor], options: InputSize) -> list[Tensor]:
    """Each image ``[3, h, w]`` at the size that the network sees it at, bilinear with anti-aliasing."""
    resized = []
    for image in images:
        size = options.scaled(int(image.shape[-2]), int(image.shape[-1]))
        same = size == tuple(image.shape[-2:])
        resized.append(image if same else F.interpolate(image[None], size=size, mode="bilinear", antialias=True)[0])
    return resized
