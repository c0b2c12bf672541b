"""A network that sees more than colours."""

import torch
from torch import nn

from stratum_models.batching import Normalize
from stratum_models.errors import UserError
from stratum_models.semantic.model import SemanticModel

COLOURS = 3


def widen_input(model: SemanticModel, extra: int) -> None:
    """Lets a model take ``extra`` channels behind the three colours, as they are; its first convolution gives them no weight yet.

    Raises:
        UserError: no convolution of the network takes three channels.
    """
    first = next((m for m in model.network.modules() if isinstance(m, nn.Conv2d) and m.in_channels == COLOURS and m.groups == 1), None)
    if first is None:
        raise UserError(f"option prior: {type(model.network).__name__} has no convolution of three colours to widen; choose another stage2")
    out, _, *kernel = first.weight.shape
    with torch.no_grad():
        first.weight = nn.Parameter(torch.cat([first.weight, first.weight.new_zeros(out, extra, *kernel)], 1))
    first.in_channels += extra
    mean, std = (values.flatten().tolist() for values in (model.normalize.mean, model.normalize.std))
    model.normalize = Normalize([*mean, *[0.0] * extra], [*std, *[1.0] * extra], divisor=model.normalize.divisor)
