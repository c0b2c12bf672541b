"""From a configuration to a network."""

from torch import Tensor, nn

from stratum_models.hrnet.config import HRNetConfig
from stratum_models.hrnet.head import UsualHead
from stratum_models.hrnet.ocr import OCRHead
from stratum_models.hrnet.trunk import HRNetTrunk, build_trunk
from stratum_models.semantic.model import SemanticModel


class HRNet(nn.Module):
    """A trunk and a head that reads its branches."""

    def __init__(self, trunk: HRNetTrunk, head: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """A normalised batch ``[B, 3, H, W]`` to logits ``[B, K, H / s, W / s]``, with OCR in training to two of them."""
        output: Tensor | tuple[Tensor, Tensor] = self.head(self.trunk(images))
        return output


def build_hrnet(config: HRNetConfig, num_classes: int, backbone_weights: str | None = None) -> SemanticModel:
    """An HRNet with random weights, its trunk's apart where ``backbone_weights`` says so (see :func:`build_trunk`)."""
    trunk = build_trunk(config, backbone_weights)
    head = (OCRHead if config.head == "ocr" else UsualHead)(sum(trunk.channels), num_classes)
    return SemanticModel(HRNet(trunk, head), num_classes, config, divisor=trunk.divisor)
