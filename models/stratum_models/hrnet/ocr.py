"""Object-contextual representations (Yuan, Chen, Chen, Wang: *Segmentation Transformer*, arXiv:1909.11065, section 3.2).

A first, coarse segmentation says which pixels belong to each class's region. The features of a region are averaged; each pixel then
looks at the regions, takes from each as much as it resembles it, and is labelled from its own features and those together.

Shapes: ``B`` images, ``K`` classes and regions, ``D`` channels of a pixel, ``E`` of a key, ``h`` and ``w`` the size of the features.
"""

import torch
from torch import Tensor, nn

from stratum_models.hrnet.head import UsualHead, conv_norm_relu
from stratum_models.hrnet.trunk import concatenated

PIXEL_CHANNELS = 512  # D (section 4.2)
KEY_CHANNELS = 256  # E (section 3.3)


def region_representations(features: Tensor, coarse: Tensor) -> Tensor:
    """Eq. 8: each region's features, the mean over all pixels, weighted by the softmax over the pixels of the region's logits.

    Args:
        features: ``[B, D, h, w]``.
        coarse: the coarse segmentation's logits ``[B, K, h, w]``.

    Returns:
        ``[B, D, K, 1]``.
    """
    share = coarse.float().flatten(2).softmax(-1).to(features.dtype)  # [B, K, h * w]
    return (features.flatten(2) @ share.transpose(1, 2))[..., None]


class ObjectAttention(nn.Module):
    """Eqs. 9 to 11: what each pixel takes from the regions.

    Args:
        channels: ``D``.
        keys: ``E``.
    """

    def __init__(self, channels: int, keys: int) -> None:
        super().__init__()
        self.query = nn.Sequential(conv_norm_relu(channels, keys), conv_norm_relu(keys, keys))
        self.key = nn.Sequential(conv_norm_relu(channels, keys), conv_norm_relu(keys, keys))
        self.value = conv_norm_relu(channels, keys)
        self.out = conv_norm_relu(keys, channels)

    def forward(self, features: Tensor, regions: Tensor) -> Tensor:
        """Features ``[B, D, h, w]`` and regions ``[B, D, K, 1]`` to context ``[B, D, h, w]``."""
        query = self.query(features).flatten(2).transpose(1, 2)  # [B, h * w, E]
        key, value = self.key(regions).flatten(2), self.value(regions).flatten(2)  # [B, E, K]
        relation = ((query @ key).float() * key.shape[1] ** -0.5).softmax(-1).to(value.dtype)  # [B, h * w, K]
        context = (value @ relation.transpose(1, 2)).unflatten(2, features.shape[-2:])  # [B, E, h, w]
        found: Tensor = self.out(context)
        return found


class OCRHead(nn.Module):
    """The coarse segmentation, the regions, the context, and the labels.

    Args:
        channels: those of all branches together, ``15C``.
        num_classes: ``K``.
        pixel_channels: ``D``.
        key_channels: ``E``.
    """

    def __init__(self, channels: int, num_classes: int, pixel_channels: int = PIXEL_CHANNELS, key_channels: int = KEY_CHANNELS) -> None:
        super().__init__()
        self.coarse = UsualHead(channels, num_classes)
        self.pixels = conv_norm_relu(channels, pixel_channels, kernel=3)
        self.attention = ObjectAttention(pixel_channels, key_channels)
        self.join = conv_norm_relu(2 * pixel_channels, pixel_channels)
        self.classify = nn.Conv2d(pixel_channels, num_classes, 1)

    def forward(self, branches: list[Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        """The trunk's branches to logits ``[B, K, h, w]``; in training also those of the coarse segmentation, for a loss of its own."""
        coarse = self.coarse(branches)
        features = self.pixels(concatenated(branches))
        context = self.attention(features, region_representations(features, coarse))
        logits: Tensor = self.classify(self.join(torch.cat([context, features], dim=1)))
        return (logits, coarse) if self.training else logits
