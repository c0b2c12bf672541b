"""The whole network (figure 1): down-sampling, branches, aggregation.

Shapes: ``B`` images, ``K`` classes, ``H`` and ``W`` the size of the batch, ``h`` and ``w`` that of the first map that is spliced.
"""

from torch import Tensor, nn

from stratum_models.fm_hrnet.downsample import DownSampling
from stratum_models.fm_hrnet.parallel import Trunk


class FMHRNet(nn.Module):
    """A normalised batch to logits.

    Args:
        downsampling: image to the trunk's input, and the map before its last stage.
        trunk: the branches.
        head: maps to logits at the size of the first.
        detail: whether the map before the down-sampling module's last stage is the first of them.
    """

    def __init__(self, downsampling: DownSampling, trunk: Trunk, head: nn.Module, *, detail: bool) -> None:
        super().__init__()
        self.downsampling = downsampling
        self.trunk = trunk
        self.head = head
        self.detail = detail

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, H, W]`` to logits ``[B, K, h, w]``."""
        detail, x = self.downsampling(images)
        maps = self.trunk(x)
        logits: Tensor = self.head([detail, *maps] if self.detail else maps)
        return logits
