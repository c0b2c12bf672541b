"""HRNet with the adaptive resolution selection module (section 3, figure 2).

Shapes: ``B`` images, ``R`` resolutions, ``K`` classes, ``C`` the trunk's width, ``h`` and ``w`` the size of its first branch.
"""

import torch
from torch import Tensor, nn

from stratum_models.arsm.config import GateName
from stratum_models.arsm.gate import GatingNetwork
from stratum_models.arsm.gumbel import RESOLUTIONS, expected_gate, monte_carlo_gate, sampled_gate
from stratum_models.hrnet.trunk import HRNetTrunk, at_size, concatenated


class ResolutionSelection(nn.Module):
    """ARSM: an expert on each branch, and a gate that weighs their answers (Eqs. 1 to 5).

    Args:
        channels: those of each branch, the highest resolution first.
        num_classes: ``K``.
        temperature: T of Eq. 4; kept in a buffer, so that trained weights carry the one they were trained to.
        gate: how the gate is found outside training.
        samples: draws where ``gate`` is ``monte_carlo``.
    """

    temperature: Tensor

    def __init__(
        self, channels: tuple[int, ...], num_classes: int, *, temperature: float = 0.1, gate: GateName = "expected", samples: int = 100
    ) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Conv2d(inputs, num_classes, 1) for inputs in channels)
        self.gating = GatingNetwork(len(channels), sum(channels), num_classes)
        self.gate, self.samples = gate, samples
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def forward(self, branches: list[Tensor]) -> Tensor:
        """Branches ``[B, C * 2**i, h / 2**i, w / 2**i]`` to logits ``[B, K, h, w]``."""
        answers, weights = self.parts(branches)
        return (answers * weights).sum(RESOLUTIONS)

    def parts(self, branches: list[Tensor]) -> tuple[Tensor, Tensor]:
        """What the sum of Eq. 5 is made of: the experts' answers and the gate's weights, float32 ``[B, R, K, h, w]`` both."""
        answers = torch.stack([at_size(expert(x), branches[0]) for expert, x in zip(self.experts, branches, strict=True)], dim=RESOLUTIONS)
        logits = self.gating(concatenated(branches))
        return answers.float(), self._weights(logits.float())

    def _weights(self, logits: Tensor) -> Tensor:
        if self.training:
            return sampled_gate(logits, self.temperature)
        if self.gate == "monte_carlo":
            return monte_carlo_gate(logits, self.temperature, self.samples)
        return expected_gate(logits, self.temperature)


class ARSMNet(nn.Module):
    """A trunk, and the module on its branches."""

    def __init__(self, trunk: HRNetTrunk, selection: ResolutionSelection) -> None:
        super().__init__()
        self.trunk = trunk
        self.selection = selection

    def forward(self, images: Tensor) -> Tensor:
        """A normalised batch ``[B, 3, H, W]`` to logits ``[B, K, H / s, W / s]``, ``s`` the stem's stride."""
        logits: Tensor = self.selection(self.trunk(images))
        return logits

    def parts(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`ResolutionSelection.parts`, for a normalised batch."""
        return self.selection.parts(self.trunk(images))
