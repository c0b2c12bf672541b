"""A sliding window: every patch of an image at full resolution, each by itself; what the pipeline saves is measured against it.

Shapes: ``K`` classes, ``H`` and ``W`` the size of an image, ``n`` patches, ``S`` the side of a patch with its margin.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stratum_models.batching import resize_images
from stratum_models.errors import UserError
from stratum_models.interface import IGNORE_INDEX, Prediction, SegmentationModel, SemanticPrediction, SemanticTarget, Target
from stratum_models.semantic.config import SemanticConfig
from stratum_models.semantic.model import SemanticModel, mask_of
from stratum_models.two_stage.config import LARGEST_PATCH
from stratum_models.two_stage.patches import Grid, check_patch, crop, merge
from stratum_models.two_stage.scaling import at_size
from stratum_models.two_stage.stage import parse_stage
from stratum_models.two_stage.unet import PAPER_LOSS


@dataclass(frozen=True, kw_only=True)
class SlidingConfig(SemanticConfig):
    """A model of the catalog, and the patches that it sees.

    Raises:
        UserError: a value is outside its range, or ``image_size`` is smaller than a patch.
    """

    loss: str = PAPER_LOSS
    """As in every semantic model; one that the stage names among its own options goes before it."""
    stage: str = "unet_s2"
    """What labels patches: a semantic model of the catalog, with options behind a colon, as the stages of ``two_stage``."""
    patch: int = 96
    """Side of a patch in pixels."""
    margin: int = 0
    """Pixels around a patch that are seen too."""
    blend: bool = False
    """Whether seams are blended over the margin, or hard."""
    patch_batch: int = 64
    """Patches that are labelled at once in prediction; bounds its memory."""
    train_patches: int = 16
    """Patches of each image, drawn at random, that are learnt from."""
    image_size: tuple[int, ...] = ()
    """Height and width of the images that are expected, where they are known."""

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_stage("stage", self.stage)
        for name, least, most in (
            ("patch", 8, LARGEST_PATCH),
            ("margin", 0, self.patch),
            ("patch_batch", 1, None),
            ("train_patches", 1, None),
        ):
            value = getattr(self, name)
            if value < least or (most is not None and value > most):
                raise UserError(f"option {name}={value}: must be {least} or more" + (f", and {most} or less" if most is not None else ""))
        if self.image_size:
            self.check_images(self.image_size)

    def grid(self, height: int, width: int) -> Grid:
        """The patches of an image."""
        return Grid(height=height, width=width, side=self.patch, margin=self.margin)

    def check_images(self, size: tuple[int, ...]) -> None:
        """Raises UserError where images of ``(height, width)`` are smaller than a patch."""
        check_patch(self.patch, size)


class Sliding(SegmentationModel):
    """A semantic model that sees an image patch by patch.

    Args:
        stage: labels patches.
        config: the patches.
    """

    task = "semantic"

    def __init__(self, stage: SemanticModel, config: SlidingConfig) -> None:
        super().__init__()
        self.num_classes = stage.num_classes
        self.config = config
        self.stage = stage

    @property
    def exportable(self) -> dict[str, SegmentationModel]:
        """The model of the patches."""
        return {"": self.stage}

    def lay_out(self, memory_format: torch.memory_format) -> None:
        """Weights, and activations with them."""
        super().lay_out(memory_format)
        self.stage.lay_out(memory_format)

    def set_progress(self, fraction: float) -> None:
        """Passes on how much of training is done."""
        self.stage.set_progress(fraction)

    def loss(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """The terms of the stage over random patches of all images."""
        patches: list[Tensor] = []
        labels: list[SemanticTarget] = []
        for image, target in zip(images, targets, strict=True):
            mask, grid = mask_of(target), self.config.grid(*image.shape[-2:])
            cells = torch.randperm(len(grid), device="cpu")[: self.config.train_patches].to(image.device)
            patches += crop(image, grid, cells).unbind()
            labels += [SemanticTarget(mask=one[0]) for one in crop(mask[None], grid, cells, fill=IGNORE_INDEX).unbind()]
        return self.stage.loss(patches, labels)

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor]) -> Sequence[Prediction]:
        """Probabilities of each image at its own size."""
        found: list[Prediction] = []
        for image in images:
            (resized,) = resize_images([image.to(self.device)], self.config)
            found.append(SemanticPrediction(probabilities=at_size(self._label(resized), *image.shape[-2:])))
        return found

    def _label(self, image: Tensor) -> Tensor:
        """``[3, H, W]`` to probabilities ``[K, H, W]``."""
        grid = self.config.grid(*image.shape[-2:])
        cells = torch.arange(len(grid), device=image.device)
        patches = crop(image, grid, cells)
        side = grid.window
        parts = []
        for part in torch.split(patches, self.config.patch_batch):
            logits = self.stage.dense(self.stage.normalize.uniform(part, self.memory_format))
            parts.append(logits[..., :side, :side].float().softmax(1))
        nothing = image.new_zeros(self.num_classes, *image.shape[-2:])
        return merge(nothing, torch.cat(parts), grid, cells, blend=self.config.blend)
