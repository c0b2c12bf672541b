"""ARSM as a model of the catalog: a temperature that follows training, and a gate that can be looked at.

Shapes: ``R`` resolutions, ``K`` classes, ``H`` and ``W`` the size of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stratum_models.arsm.config import ARSMConfig
from stratum_models.arsm.network import ARSMNet, ResolutionSelection
from stratum_models.batching import resize_images
from stratum_models.hrnet.trunk import at_size, build_trunk
from stratum_models.semantic.model import SemanticModel


@dataclass(frozen=True, eq=False, kw_only=True)
class GateMap:
    """Which resolution decides what in one image; resolution 0 is the highest."""

    weights: Tensor  # float32 [R, K, H, W], sums to 1 over R
    responses: Tensor  # float32 [R, K, H, W]: gate times answer, each class scaled to 0..1 over its R maps (figures 7 and 8)
    decided: Tensor  # int64 [K, R]: the pixels predicted as a class for which a resolution has the largest weight

    @property
    def shares(self) -> Tensor:
        """float32 ``[K, R]``: the share of each class's predicted pixels that each resolution decides; 0 for a class without any."""
        return decided_shares(self.decided)


class ARSM(SemanticModel):
    """HRNet with adaptive resolution selection.

    Args:
        network: trunk and module.
        num_classes: ``K``.
        config: the temperatures are read, and what :class:`SemanticModel` reads.
    """

    def __init__(self, network: ARSMNet, num_classes: int, config: ARSMConfig) -> None:
        super().__init__(network, num_classes, config, divisor=network.trunk.divisor)
        self.temperatures = (config.temperature, config.temperature if config.temperature_end is None else config.temperature_end)

    @property
    def selecting(self) -> ARSMNet:
        """The network, as what it is."""
        assert isinstance(self.network, ARSMNet)
        return self.network

    def set_progress(self, fraction: float) -> None:
        """Sets the temperature for this much of training, 0 at its start and 1 at its end: ``T0^(1 - fraction) * T1^fraction``."""
        start, end = self.temperatures
        done = min(max(fraction, 0.0), 1.0)
        self.selecting.selection.temperature.fill_(start ** (1 - done) * end**done)

    @torch.no_grad()
    def gate_maps(self, images: Sequence[Tensor]) -> list[GateMap]:
        """The gate's weights on each image, at its size, and which resolution decides each class.

        Args:
            images: ``float32 [3, H, W]`` in 0..1, of any sizes, as for ``predict``.
        """
        resized = resize_images(images, self.config)
        batch = self.normalize(resized, self.memory_format)
        answers, weights = self.selecting.parts(batch.images)
        found = []
        for each, gate, (height, width), image in zip(answers, weights, batch.sizes, images, strict=True):
            maps = torch.cat([gate, each * gate]).flatten(0, 1)[None]  # [1, 2 * R * K, h, w]
            inside = at_size(maps, batch.images)[:, :, :height, :width]
            both = at_size(inside, image)[0].view(2, *gate.shape[:2], *image.shape[-2:])
            found.append(_gate_map(both[0], both[1]))
        return found


def decided_shares(decided: Tensor) -> Tensor:
    """Counts of pixels ``[K, R]`` as shares of each class's, float32 ``[K, R]``; 0 for a class without any."""
    return decided / decided.sum(1, keepdim=True).clamp(min=1)


def _gate_map(weights: Tensor, products: Tensor) -> GateMap:
    """From the gate and its products with the answers, ``[R, K, H, W]`` both."""
    resolutions, classes = weights.shape[:2]
    label = products.sum(0).argmax(0)  # [H, W]
    decider = weights.argmax(0).gather(0, label[None])[0]  # [H, W]
    decided = torch.bincount((label * resolutions + decider).flatten(), minlength=classes * resolutions).view(classes, resolutions)
    low = products.amin((0, 2, 3), keepdim=True)
    spread = products.amax((0, 2, 3), keepdim=True) - low
    return GateMap(weights=weights, responses=(products - low) / spread.clamp(min=1e-12), decided=decided)


def build_arsm(config: ARSMConfig, num_classes: int, backbone_weights: str | None = None) -> ARSM:
    """An ARSM with random weights, its trunk's apart where ``backbone_weights`` says so (see :func:`build_trunk`)."""
    trunk = build_trunk(config, backbone_weights)
    selection = ResolutionSelection(trunk.channels, num_classes, temperature=config.temperature, gate=config.gate, samples=config.samples)
    return ARSM(ARSMNet(trunk, selection), num_classes, config)
