"""Losses over the pixels of a batch, and their weighted sums.

Shapes: ``B`` images, ``K`` classes, ``H`` and ``W`` the size of the batch. Pixels with ``IGNORE_INDEX`` count nowhere; where no pixel of a
batch is labelled, every term is 0, with gradient.
"""

import math
from collections.abc import Sequence

import torch
from segmentation_models_pytorch.losses import MULTICLASS_MODE, DiceLoss, FocalLoss, LovaszLoss
from torch import Tensor, nn
from torch.nn import functional as F

from stratum_models.errors import UserError
from stratum_models.interface import IGNORE_INDEX

TERMS = ("ce", "focal", "alpha_focal", "dice", "foreground_dice", "lovasz", "ohem")
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0  # recommended by Lin et al.
OHEM_PROBABILITY = 0.7  # a pixel whose class has less than this is hard
OHEM_SHARE = 1 / 16  # at least this share of the labelled pixels is kept


def parse_loss(text: str) -> dict[str, float]:
    """``"ce+dice:0.5"`` as ``{"ce": 1.0, "dice": 0.5}``. Raises UserError for an unknown term or a weight that is no number above 0."""
    terms: dict[str, float] = {}
    for part in text.split("+"):
        name, _, weight = part.strip().partition(":")
        if name not in TERMS or name in terms:
            raise UserError(f"option loss={text!r}: write terms once each, like ce+dice:0.5; there are {', '.join(TERMS)}")
        try:
            terms[name] = float(weight or 1)
        except ValueError:
            terms[name] = 0.0
        if not 0 < terms[name] < math.inf:
            raise UserError(f"option loss={text!r}: the weight of {name} must be a number above 0")
    return terms


class SemanticLoss(nn.Module):
    """A weighted sum of terms.

    Args:
        text: as :func:`parse_loss` reads it.
        class_weights: ``K`` weights for ``ce`` and ``ohem``; empty: all alike.
    """

    class_weights: Tensor | None

    def __init__(self, text: str, class_weights: Sequence[float] = ()) -> None:
        super().__init__()
        self.weights = parse_loss(text)
        self.register_buffer("class_weights", torch.tensor(class_weights) if class_weights else None, persistent=False)
        self.focal = FocalLoss(MULTICLASS_MODE, gamma=FOCAL_GAMMA, ignore_index=IGNORE_INDEX)
        self.dice = DiceLoss(MULTICLASS_MODE, ignore_index=IGNORE_INDEX)
        self.lovasz = LovaszLoss(MULTICLASS_MODE, ignore_index=IGNORE_INDEX)

    def forward(self, logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Logits ``[B, K, H, W]`` and labels int64 ``[B, H, W]`` to the terms, times their weights, by name."""
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()  # sums over a million pixels need the digits
        if not (mask != IGNORE_INDEX).any():
            return {name: logits.sum() * 0.0 for name in self.weights}
        with torch.autocast(logits.device.type, enabled=False):
            return {name: weight * self._term(name, logits, mask) for name, weight in self.weights.items()}

    def _term(self, name: str, logits: Tensor, mask: Tensor) -> Tensor:
        if name == "ce":
            return weighted_cross_entropy(logits, mask, self.class_weights)
        if name == "ohem":
            return hard_pixels(logits, mask, self.class_weights)
        if name == "alpha_focal":
            return alpha_focal(logits, mask)
        if name == "foreground_dice":
            foreground = list(range(1, logits.shape[1]))
            mean: Tensor = DiceLoss(MULTICLASS_MODE, classes=foreground, ignore_index=IGNORE_INDEX)(logits, mask)
            return mean
        term: Tensor = getattr(self, name)(logits, mask)
        return term


def weighted_cross_entropy(logits: Tensor, mask: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """The mean over the labelled pixels, each weighed by its class; 0 where all of them are of classes with weight 0."""
    if class_weights is None:
        return F.cross_entropy(logits, mask, ignore_index=IGNORE_INDEX)
    total = class_weights[mask[mask != IGNORE_INDEX]].sum()
    return F.cross_entropy(logits, mask, class_weights, ignore_index=IGNORE_INDEX, reduction="sum") / total.clamp(min=1e-12)


def alpha_focal(logits: Tensor, mask: Tensor) -> Tensor:
    """The focal loss with its weight alpha: for the classes from 1 on, and ``1 - alpha`` for class 0, the background.

    For two classes that is Eq. 5 of Lin et al., since a softmax over two is a sigmoid of their difference. The mean over labelled pixels.
    """
    known = mask != IGNORE_INDEX
    labels = mask.masked_fill(~known, 0)
    log_probability = logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
    weight = torch.where(labels > 0, FOCAL_ALPHA, 1 - FOCAL_ALPHA) * known
    return -(weight * (-log_probability.expm1()) ** FOCAL_GAMMA * log_probability).sum() / known.sum()


def hard_pixels(logits: Tensor, mask: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Online hard example mining: the mean cross-entropy of the pixels whose class has a low probability, a sixteenth of all at least."""
    each = F.cross_entropy(logits, mask, class_weights, ignore_index=IGNORE_INDEX, reduction="none").flatten()
    with torch.no_grad():
        labelled = (mask != IGNORE_INDEX).flatten()
        known = mask.masked_fill(mask == IGNORE_INDEX, 0)
        probability = logits.softmax(1).gather(1, known[:, None])[:, 0].flatten()
        probability = probability.masked_fill(~labelled, 2.0)
        least = max(1, int(labelled.sum() * OHEM_SHARE))
        limit = max(OHEM_PROBABILITY, float(probability.kthvalue(least).values))
        kept = labelled & (probability <= limit)
    return each[kept].mean()
