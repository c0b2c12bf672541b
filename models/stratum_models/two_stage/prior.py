"""A network that sees more than colours."""

import torch
from torch import nn

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
    normalize = model.normalize  # changed in place: on the meta device, where costs are counted, its values cannot be read
    normalize.mean = torch.cat([normalize.mean, normalize.mean.new_zeros(extra, 1, 1)])
    normalize.std = torch.cat([normalize.std, normalize.std.new_ones(extra, 1, 1)])
