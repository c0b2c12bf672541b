"""Pictures of class masks: every class but the background tinted in a colour of its own, the same in every picture.

Shapes: ``H`` and ``W`` the size of the image. Labels count from 0; ``IGNORE_INDEX`` is where nothing is known.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from stratum.data.class_table import BACKGROUND
from stratum.report.overlays import Colour, distinct_colours
from stratum_models.interface import IGNORE_INDEX

UNKNOWN: tuple[str, Colour] = ("not labelled", (70, 70, 70))
OUTLINE = 0.95  # share of the colour on the outlines


def class_colours(classes: Sequence[str]) -> list[Colour | None]:
    """The colour of each class; None for one that is called background, which is left as it is."""
    return [None if name == BACKGROUND else colour for name, colour in zip(classes, distinct_colours(len(classes)), strict=True)]


def class_legend(classes: Sequence[str], *, unknown: bool = False) -> list[tuple[str, Colour]]:
    """Names and colours of what is tinted; ``unknown`` adds what is not labelled."""
    shown = [(name, colour) for name, colour in zip(classes, class_colours(classes), strict=True) if colour is not None]
    return [*shown, UNKNOWN] if unknown else shown


def draw_classes(image: Tensor, labels: Tensor, classes: Sequence[str], *, alpha: float = 0.4) -> Tensor:
    """The image ``uint8 [3, H, W]`` with the classes of ``labels [H, W]`` tinted and outlined; the same shape, on the CPU."""
    index = labels.detach().cpu().long()  # [H, W]
    colours, tinted = torch.zeros(IGNORE_INDEX + 1, 3), torch.zeros(IGNORE_INDEX + 1, dtype=torch.bool)
    for label, colour in [*enumerate(class_colours(classes)), (IGNORE_INDEX, UNKNOWN[1])]:
        if colour is not None:
            colours[label], tinted[label] = torch.tensor(colour, dtype=torch.float32), True
    share = torch.where(_outlines(index), OUTLINE, alpha) * tinted[index]  # [H, W]
    painted = colours[index].permute(2, 0, 1)
    return torch.lerp(image.detach().cpu().float(), painted, share).round().to(torch.uint8)


def _outlines(labels: Tensor) -> Tensor:
    """The pixels beside another class, bool ``[H, W]``; wider for every 800 pixels."""
    edges = torch.zeros(labels.shape, dtype=torch.bool)
    down, across = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    for first, second, change in ((edges[:-1], edges[1:], down), (edges[:, :-1], edges[:, 1:], across)):
        first |= change
        second |= change
    width = 1 + 2 * (min(labels.shape) // 800)
    return edges if width == 1 else max_pool2d(edges[None].float(), width, stride=1, padding=width // 2)[0] > 0
