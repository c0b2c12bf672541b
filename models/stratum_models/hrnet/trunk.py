"""HRNet's trunk: four branches that keep their resolutions and exchange what they find. timm's, without what its classifier needs.

Shapes: ``B`` images, ``H`` and ``W`` the size of the batch, ``s`` the stem's stride, ``C`` the width.
"""

from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stratum_models.errors import UserError
from stratum_models.hrnet.config import BRANCHES, TrunkConfig
from stratum_models.weights import IMAGENET, load_classifier

PUBLISHED = (18, 30, 32, 40, 44, 48, 64)  # widths of which timm has ImageNet weights
DEPTH = ((1, 4, 3), 4)  # modules and blocks of those


class HRNetTrunk(nn.Module):
    """Stem and stages 1 to 4, with a stem stride of one's own.

    Args:
        width: ``C``.
        stem_strides: strides of the stem's two convolutions; weights fit whatever they are.
        modules: exchanges in stages 2, 3 and 4.
        blocks: residual blocks between two exchanges.
    """

    def __init__(self, width: int, stem_strides: tuple[int, ...], modules: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        self.channels = tuple(width * 2**branch for branch in range(BRANCHES))
        self.divisor = stem_strides[0] * stem_strides[1] * 2 ** (BRANCHES - 1)
        self.net = _timm_net(self.channels, modules, blocks)
        for conv, stride in zip((self.net.conv1, self.net.conv2), stem_strides, strict=True):
            conv.stride = (stride, stride)

    def forward(self, images: Tensor) -> list[Tensor]:
        """``[B, 3, H, W]`` to the branches ``[B, C * 2**i, H / (s * 2**i), W / (s * 2**i)]`` for i = 0..3; H and W are multiples of 8s.

        Where a batch in training leaves the last branch a single pixel, whose variance BN cannot take, the image is first continued
        with as many rows of zeros, and the branches are cut back.
        """
        height, width = images.shape[-2:]
        single = images.shape[0] * height * width == self.divisor**2
        if self.training and single:
            branches = self._branches(F.pad(images, (0, 0, 0, height)))
            return [branch[:, :, : branch.shape[-2] // 2] for branch in branches]
        return self._branches(images)

    def _branches(self, images: Tensor) -> list[Tensor]:
        net = self.net
        x = net.act1(net.bn1(net.conv1(images)))
        x = net.act2(net.bn2(net.conv2(x)))
        return list(net.stages(x))


def _timm_net(channels: tuple[int, ...], modules: tuple[int, ...], blocks: int) -> Any:
    """timm's network without the modules that only its classifier needs; its types say nothing of the layers."""
    stages: dict[str, Any] = {}
    for stage, count in zip(range(2, BRANCHES + 1), modules, strict=True):
        stages[f"stage{stage}"] = {
            "num_modules": count,
            "num_branches": stage,
            "block_type": "BASIC",
            "num_blocks": (blocks,) * stage,
            "num_channels": channels[:stage],
            "fuse_method": "SUM",
        }
    first = {
        "num_modules": 1,
        "num_branches": 1,
        "block_type": "BOTTLENECK",
        "num_blocks": (blocks,),
        "num_channels": (64,),
        "fuse_method": "SUM",
    }
    return timm.create_model("hrnet_w18", pretrained=False, head="", stage1=first, **stages)


def concatenated(branches: list[Tensor]) -> Tensor:
    """The branches side by side, ``[B, 15C, h, w]``, the lower resolutions interpolated to the size of the first."""
    return torch.cat([at_size(branch, branches[0]) for branch in branches], dim=1)


def at_size(features: Tensor, like: Tensor) -> Tensor:
    """``[B, C, h, w]`` at the height and width of another tensor, bilinear."""
    if features.shape[-2:] == like.shape[-2:]:
        return features
    return F.interpolate(features, size=like.shape[-2:], mode="bilinear", align_corners=False)


def build_trunk(config: TrunkConfig, weights: str | None = None) -> HRNetTrunk:
    """A trunk with random weights, or those of an ImageNet classifier.

    Args:
        config: its trunk's options are read.
        weights: ``None`` (random), ``"imagenet"`` (from timm's hub), or the path of a local ``.safetensors`` or ``.pth`` file with the
            classification model's weights.

    Raises:
        UserError: there are no such weights, the file does not fit, or the hub cannot be reached.
    """
    trunk = HRNetTrunk(config.width, config.stem_strides, config.modules, config.blocks)
    if weights == IMAGENET and (config.width not in PUBLISHED or (config.modules, config.blocks) != DEPTH):
        raise UserError(
            f"there are no ImageNet weights of an HRNet with width={config.width}, modules={config.modules}, blocks={config.blocks}: "
            f"take a width of {', '.join(map(str, PUBLISHED))} at modules 1,4,3 and blocks 4, or --backbone-weights none"
        )
    if weights is not None:
        load_classifier(trunk.net, f"hrnet_w{config.width}", weights)
    return trunk
