"""Mask R-CNN with ResNet-50 and FPN from torchvision, behind this project's interface."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection import maskrcnn_resnet50_fpn

from stratum_models.batching import InputSize, resize_images
from stratum_models.errors import UserError
from stratum_models.interface import InstancePrediction, InstanceTarget, Prediction, SegmentationModel, Target
from stratum_models.weights import load_classifier

LAST_STRIDE = 32  # one image that is no larger leaves BN a single value


@dataclass(frozen=True, kw_only=True)
class MaskRCNNConfig(InputSize):
    """What can be chosen in torchvision's Mask R-CNN, which alone would resize images to 800 pixels."""

    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.score_threshold < 1:
            raise UserError(f"Mask R-CNN option score_threshold={self.score_threshold!r}: must be between 0 and 1")
        if self.max_detections < 1:
            raise UserError(f"Mask R-CNN option max_detections={self.max_detections!r}: must be 1 or more")


class MaskRCNN(SegmentationModel):
    """torchvision's network; its own resizing is switched off so that every model of the catalog sees the same pixels.

    torchvision counts the background as class 0: labels are shifted by one on the way in and out.
    """

    task = "instance"

    def __init__(self, config: MaskRCNNConfig, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.net = maskrcnn_resnet50_fpn(
            weights=None,
            weights_backbone=None,
            num_classes=num_classes + 1,
            box_score_thresh=config.score_threshold,
            box_nms_thresh=config.nms_threshold,
            box_detections_per_img=config.max_detections,
            _skip_resize=True,
        )

    def loss(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """torchvision's five terms. Raises UserError for one small image alone."""
        if len(images) == 1 and max(images[0].shape[-2:]) <= LAST_STRIDE:
            height, width = images[0].shape[-2:]
            raise UserError(f"Mask R-CNN cannot train on one image of {height}x{width}: use larger images, or two of them")
        losses = self.net([x.to(self.device) for x in images], [self._target(t) for t in targets])
        return {key.removeprefix("loss_"): value for key, value in losses.items()}

    def _target(self, target: Target) -> dict[str, Tensor]:
        if not isinstance(target, InstanceTarget):
            raise TypeError(f"Mask R-CNN learns from instances, not from {type(target).__name__}")
        t, use = target.to(self.device), ~target.crowd
        return {"boxes": t.boxes[use], "labels": t.labels[use] + 1, "masks": t.masks[use].to(torch.uint8)}

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor]) -> Sequence[Prediction]:
        """Instances of each image, masks pasted and thresholded at one half."""
        resized = resize_images([x.to(self.device) for x in images], self.config)
        return [self._finish(out, x, r) for out, x, r in zip(self.net(resized), images, resized, strict=True)]

    def _finish(self, out: dict[str, Tensor], image: Tensor, resized: Tensor) -> InstancePrediction:
        size, inner = image.shape[-2:], resized.shape[-2:]
        masks = out["masks"]  # float [N, 1, h, w]
        if size != inner:
            masks = torch.nn.functional.interpolate(masks, size=tuple(size), mode="bilinear", align_corners=False)
        factor = out["boxes"].new_tensor([size[1] / inner[1], size[0] / inner[0]]).repeat(2)
        return InstancePrediction(boxes=out["boxes"] * factor, scores=out["scores"], labels=out["labels"] - 1, masks=masks[:, 0] > 0.5)


def build_mask_rcnn(config: MaskRCNNConfig, num_classes: int, backbone_weights: str | None = None) -> MaskRCNN:
    """A Mask R-CNN; ``backbone_weights`` as in :func:`load_classifier`, of ``resnet50``."""
    model = MaskRCNN(config, num_classes)
    if backbone_weights is not None:
        load_classifier(model.net.backbone.body, "resnet50", backbone_weights)
    return model
