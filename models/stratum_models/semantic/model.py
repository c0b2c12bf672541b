"""What all semantic networks have in common: from images of any size to one loss, and to probabilities at the size of each image.

Shapes: ``B`` images, ``K`` classes, ``H`` and ``W`` the padded size of the batch, ``h`` and ``w`` that of a network's output.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stratum_models.batching import Normalize, resize_images
from stratum_models.errors import UserError
from stratum_models.interface import IGNORE_INDEX, Prediction, SegmentationModel, SemanticPrediction, SemanticTarget, Target
from stratum_models.semantic.config import SemanticConfig
from stratum_models.semantic.losses import SemanticLoss


class SemanticModel(SegmentationModel):
    """A network that labels pixels.

    Args:
        network: a normalised batch ``[B, 3, H, W]`` to logits ``[B, K, h, w]``; in training it may give a tuple, the main output first
            and auxiliary ones after it.
        num_classes: ``K``.
        config: loss and sizes.
        divisor: what the sides of a batch must be multiples of.
        alone: the least side that one image alone is padded to in training, for networks whose BN would else see a single value.

    Raises:
        UserError: fewer than two classes, or as many weights as there are no classes.
    """

    task = "semantic"

    def __init__(self, network: nn.Module, num_classes: int, config: SemanticConfig, *, divisor: int = 32, alone: int = 0) -> None:
        super().__init__()
        if num_classes < 2:
            raise UserError(f"a semantic model needs at least two classes, the background among them; got {num_classes}")
        if config.class_weights and len(config.class_weights) != num_classes:
            raise UserError(f"option class_weights has {len(config.class_weights)} weights for {num_classes} classes: give one for each")
        self.network = network
        self.num_classes = num_classes
        self.config = config
        self.alone = alone
        self.normalize = Normalize(divisor=divisor)
        self.criterion = SemanticLoss(config.loss, config.class_weights)

    def dense(self, images: Tensor) -> Tensor:
        """A normalised batch ``[B, 3, H, W]`` to logits ``[B, K, H, W]``."""
        output = self.network(images)
        return _at_size(output[0] if isinstance(output, tuple) else output, images)

    @property
    def input_channels(self) -> int:
        """Three colours, and what a pipeline adds to them."""
        return len(self.normalize.mean)

    @property
    def divisor(self) -> int:
        """What the sides of a batch must be multiples of."""
        return self.normalize.divisor

    def dense_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """``logits [B, K, H, W]``."""
        return {"logits": self.dense(self.normalize.colours(images))}

    def loss(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """The weighted terms of the option ``loss``; those of auxiliary outputs are added to ``aux``."""
        batch = self.normalize(images, self.memory_format, least=self.alone if len(images) == 1 else 0)
        mask = torch.stack([_padded(mask_of(target), batch.images) for target in targets])
        output = self.network(batch.images)
        main, *others = output if isinstance(output, tuple) else (output,)
        terms: dict[str, Tensor] = self.criterion(_at_size(main, batch.images), mask)
        extra = [term for other in others for term in self.criterion(_at_size(other, batch.images), mask).values()]
        return terms | ({"aux": self.config.aux_weight * torch.stack(extra).sum()} if extra else {})

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor]) -> Sequence[Prediction]:
        """Probabilities of each image at its own size."""
        resized = resize_images(images, self.config)
        batch = self.normalize(resized, self.memory_format)
        logits = self.dense(batch.images).float()
        found: list[Prediction] = []
        for one, (height, width), image in zip(logits, batch.sizes, images, strict=True):
            inside = _at_size(one[None, :, :height, :width], image)
            found.append(SemanticPrediction(probabilities=inside[0].softmax(0)))
        return found


def mask_of(target: Target) -> Tensor:
    """The mask of a semantic target. Raises TypeError for another."""
    if not isinstance(target, SemanticTarget):
        raise TypeError(f"a semantic model learns from masks, not from {type(target).__name__}")
    return target.mask


def _padded(mask: Tensor, batch: Tensor) -> Tensor:
    """A mask ``[h, w]`` at the size of the batch; nothing is known of the padding."""
    height, width = batch.shape[-2:]
    padding = (0, width - mask.shape[-1], 0, height - mask.shape[-2])
    return F.pad(mask.to(batch.device), padding, value=IGNORE_INDEX)


def _at_size(logits: Tensor, like: Tensor) -> Tensor:
    """``[B, K, h, w]`` at the height and width of another tensor."""
    if logits.shape[-2:] == like.shape[-2:]:
        return logits
    return F.interpolate(logits, size=like.shape[-2:], mode="bilinear", align_corners=False)
