"""An exponential moving average of the weights, evaluated and shipped in place of the last ones."""

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def ramped_decay(updates: int, decay: float, tau: float) -> float:
    """``decay * (1 - exp(-updates / tau))``: a young average follows the weights, an old one is slow."""
    return decay * (1.0 - math.exp(-updates / tau))


class Ema(Generic[M]):
    """The averaged twin of a model: ``average <- d * average + (1 - d) * weight`` with the ramped decay ``d`` of its update.

    Floating-point buffers (BatchNorm's statistics) are averaged too, others are copied.
    """

    def __init__(self, model: M, decay: float, tau: float) -> None:
        self.decay, self.tau, self.updates = decay, tau, 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes the weights after an optimiser step."""
        self.updates += 1
        decay = ramped_decay(self.updates, self.decay, self.tau)
        current = model.state_dict()
        for name, average in self.model.state_dict().items():
            if average.is_floating_point():
                average.lerp_(current[name].to(average), 1.0 - decay)
            else:
                average.copy_(current[name])
