"""LosNet: backbone, light pyramid, detection head, mask branch, dynamic mask heads (figure 2).

Shapes: ``B`` images, ``N`` instances, ``L`` locations, ``M`` instances of the whole batch, ``K`` classes.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stratum_models.batching import Normalize, resize_images
from stratum_models.interface import InstancePrediction, InstanceTarget, Prediction, SegmentationModel, Target
from stratum_models.losnet.canvas import Canvas, around_masks, make_canvas
from stratum_models.losnet.config import LosNetConfig
from stratum_models.losnet.dynamic_mask import dynamic_masks, windowed_masks
from stratum_models.losnet.head import DetectionHead, HeadOutput
from stratum_models.losnet.losses import DetectionTargets, detection_losses, dice_loss, sample_positives
from stratum_models.losnet.mask_branch import MaskBranch
from stratum_models.losnet.postprocess import Detections, final_scores, select, upsample
from stratum_models.losnet.targets import Assignment, Locations, assign, box_distances, make_locations

MASK_STRIDE = 8  # of the mask features: P3's
MASK_UPSAMPLE = 4  # "the upsampling rate of the prediction is 4": masks are compared at half the size of the image


class LosNet(SegmentationModel):
    """Instance segmentation in one pass, boxes only where NMS needs them.

    Args:
        backbone: features at strides 8, 16 and 32.
        pyramid: their fusion.
        head: the detection head over its levels.
        mask_branch: the features that the dynamic mask heads read.
        num_classes: ``K``.
        config: thresholds, limits and weights that are no layers.
    """

    task = "instance"

    def __init__(
        self, backbone: nn.Module, pyramid: nn.Module, head: DetectionHead, mask_branch: MaskBranch, num_classes: int, config: LosNetConfig
    ) -> None:
        super().__init__()
        self.backbone, self.pyramid, self.head, self.mask_branch = backbone, pyramid, head, mask_branch
        self.num_classes = num_classes
        self.config = config
        self.normalize = Normalize()

    def dense(self, images: Tensor) -> tuple[HeadOutput, Tensor, Locations]:
        """A normalised batch ``[B, 3, H, W]`` to the head's outputs, the mask features ``[B, 8, H / 8, W / 8]`` and the locations."""
        levels = self.pyramid(self.backbone(images))
        sizes = [(int(x.shape[-2]), int(x.shape[-1])) for x in levels]
        locations = make_locations(sizes, self.config.strides, self.config.size_limits, images.device)
        return self.head(levels), self.mask_branch(levels), locations

    @property
    def divisor(self) -> int:
        """What the sides of a batch must be multiples of."""
        return self.normalize.divisor

    def dense_outputs(self, images: Tensor) -> dict[str, Tensor]:
        """The head's ``logits [B, L, K]``, ``distances [B, L, 4]`` and ``centerness [B, L]``, and what the dynamic mask heads are made of.

        These are the weights at every location, ``mask_params [B, L, 169]``, and the ``mask_features [B, 8, H / 8, W / 8]``.
        """
        levels = self.pyramid(self.backbone(self.normalize.colours(images)))
        output = self.head(levels)
        return {
            "logits": output.logits,
            "distances": output.distances,
            "centerness": output.centerness,
            "mask_params": self.head.control_everywhere(output),
            "mask_features": self.mask_branch(levels),
        }

    def loss(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """``class``, ``box``, ``center`` and ``mask``: Eq. 3 is their sum."""
        instances = [_instance_target(t).to(self.device) for t in targets]
        batch = self.normalize(images, self.memory_format, least=self._least_side(len(images)))
        output, features, locations = self.dense(batch.images)
        assigned = [assign(locations, t, self.config.center_radius) for t in instances]
        wanted = detection_targets(locations, instances, assigned)
        losses = detection_losses(output.logits, output.distances, output.centerness, locations.points, locations.strides, wanted)
        size = (int(batch.images.shape[-2]), int(batch.images.shape[-1]))
        losses["mask"] = self.config.mask_weight * self._mask_loss(output, features, locations, instances, assigned, wanted.labels, size)
        return losses

    def _least_side(self, images: int) -> int:
        """BN cannot train on a single value: one small image alone is padded until the last level has more than one location."""
        return 2 * self.config.strides[-1] if images == 1 else 0

    def _mask_loss(
        self,
        output: HeadOutput,
        features: Tensor,
        locations: Locations,
        targets: Sequence[InstanceTarget],
        assigned: Sequence[Assignment],
        labels: Tensor,
        size: tuple[int, int],
    ) -> Tensor:
        """Eq. 5 over the sampled positives of all images."""
        quality = final_scores(output.logits.detach(), output.centerness.detach()).amax(-1)
        chosen = [sample_positives(labels[i], assigned[i].matched, quality[i], self.config.train_proposals) for i in range(len(targets))]
        image = torch.cat([torch.full_like(where, i) for i, where in enumerate(chosen)])
        where = torch.cat(chosen)
        if len(where) == 0:
            return (features.sum() + self.head.control(output, where.new_zeros(1), where.new_zeros(1)).sum()) * 0.0
        logits = upsample(self.mask_logits(output, features, image, where, locations), MASK_UPSAMPLE)
        wanted = []
        for target, assignment, sampled in zip(targets, assigned, chosen, strict=True):
            instance, which = torch.unique(assignment.matched[sampled], return_inverse=True)  # most have several locations
            wanted.append(half_size_masks(target.masks[instance], size)[which])
        return dice_loss(logits, torch.cat(wanted)).mean()

    def mask_logits(self, output: HeadOutput, features: Tensor, image: Tensor, where: Tensor, locations: Locations) -> Tensor:
        """Mask logits ``[M, H / 8, W / 8]`` of ``M`` locations: int64 ``image [M]``, ascending, and ``where [M]``."""
        params = self.head.control(output, image, where)
        return dynamic_masks(features, image, params, locations.points[where], locations.scales[where], MASK_STRIDE)

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor]) -> Sequence[Prediction]:
        """Instances of each image, best score (Eq. 2) first; the dynamic heads of all images run together."""
        resized = resize_images(images, self.config)
        batch = self.normalize(resized, self.memory_format)
        output, features, locations = self.dense(batch.images)
        found = self.detect(output, locations, batch.sizes)
        sizes = [(int(x.shape[-2]), int(x.shape[-1])) for x in images]
        boxes = [_rescaled(d.boxes, inner, size) for d, inner, size in zip(found, batch.sizes, sizes, strict=True)]
        cells = (int(features.shape[-2]), int(features.shape[-1]))
        visible = [(height / MASK_STRIDE, width / MASK_STRIDE) for height, width in batch.sizes]
        canvases = [make_canvas(b, cells, v, size) for b, v, size in zip(boxes, visible, sizes, strict=True)]
        masks = self._paint(canvases, found, output, features, locations)
        if self.config.tight_boxes:
            boxes = [around_masks(m, b) for m, b in zip(masks, boxes, strict=True)]
        return [InstancePrediction(boxes=b, scores=d.scores, labels=d.labels, masks=m) for b, d, m in zip(boxes, found, masks, strict=True)]

    def _paint(
        self, canvases: Sequence[Canvas], found: Sequence[Detections], output: HeadOutput, features: Tensor, locations: Locations
    ) -> list[Tensor]:
        """The masks of each image, from the dynamic heads of all instances of all images together."""
        image = torch.cat([torch.full_like(d.location, i) for i, d in enumerate(found)])
        where = torch.cat([d.location for d in found])
        if len(where) == 0:
            return [canvas.paint([]) for canvas in canvases]
        params = self.head.control(output, image, where)
        windows = torch.cat([canvas.windows for canvas in canvases])
        logits = windowed_masks(features, image, params, locations.points[where], locations.scales[where], MASK_STRIDE, windows)
        each = iter(logits)
        return [canvas.paint(list(itertools.islice(each, len(canvas.windows)))) for canvas in canvases]

    def detect(self, output: HeadOutput, locations: Locations, sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """The instances that NMS keeps, image by image, in pixels of the batch."""
        scores = final_scores(output.logits, output.centerness)
        c = self.config
        return [
            select(
                scores[i],
                output.distances[i],
                locations,
                size,
                threshold=c.score_threshold,
                nms=c.nms_threshold,
                proposals=c.max_proposals,
                limit=c.max_detections,
            )
            for i, size in enumerate(sizes)
        ]


def detection_targets(locations: Locations, targets: Sequence[InstanceTarget], assigned: Sequence[Assignment]) -> DetectionTargets:
    """The assignments of ``B`` images, stacked."""
    labels, distances = [], []
    for target, assignment in zip(targets, assigned, strict=True):
        matched, background = assignment.matched.clamp(min=0), assignment.matched < 0
        if len(target):
            labels.append(target.labels[matched].masked_fill(background, -1))
            distances.append(box_distances(locations.points, target.boxes[matched]))
        else:
            labels.append(assignment.matched)
            distances.append(locations.points.new_zeros(len(locations.points), 4))
    ignored = torch.stack([a.ignored for a in assigned])
    return DetectionTargets(labels=torch.stack(labels), ignored=ignored, distances=torch.stack(distances))


def half_size_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Bool ``[M, h, w]`` to the share of each 2x2 block that is set, ``[M, H / 2, W / 2]``, padded to the batch's ``H`` and ``W``."""
    padding = (0, size[1] - masks.shape[-1], 0, size[0] - masks.shape[-2])
    return F.avg_pool2d(F.pad(masks, padding).float()[:, None], 2)[:, 0]


def _instance_target(target: Target) -> InstanceTarget:
    if not isinstance(target, InstanceTarget):
        raise TypeError(f"LosNet learns from instances, not from {type(target).__name__}")
    return target


def _rescaled(boxes: Tensor, inner: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Boxes from the pixels of the batch, where the image has the ``inner`` size, to its own."""
    return boxes * boxes.new_tensor([size[1] / inner[1], size[0] / inner[0]]).repeat(2)
