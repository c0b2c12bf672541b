"""The mask head whose weights are predicted for each instance (section 3.4, Eq. 5).

Three 1x1 layers of 8 channels over the 8 mask features and 2 relative coordinates: 10x8+8 + 8x8+8 + 8x1+1 = 169 parameters.

Shapes: ``B`` images, ``M`` instances of all of them, ``H`` and ``W`` the size of the mask features.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from stratum_models.losnet.config import CODE_CHANNELS

LAYERS = ((CODE_CHANNELS + 2, CODE_CHANNELS), (CODE_CHANNELS, CODE_CHANNELS), (CODE_CHANNELS, 1))
NUM_PARAMS = sum(fan_in * fan_out + fan_out for fan_in, fan_out in LAYERS)


def split_params(params: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """``[M, 169]`` to the weights ``[M, out, in]`` and biases ``[M, out]`` of the three layers; all weights come first."""
    sizes = [i * o for i, o in LAYERS] + [o for _, o in LAYERS]
    parts = torch.split(params, sizes, dim=1)
    weights = [part.reshape(-1, o, i) for part, (i, o) in zip(parts[:3], LAYERS, strict=True)]
    return weights, list(parts[3:])


def relative_coordinates(height: int, width: int, stride: int, locations: Tensor, scales: Tensor) -> Tensor:
    """From each pixel of the mask features to the location of its instance, in units of the size that the instance's level looks for.

    Args:
        height: of the mask features.
        width: of the mask features.
        stride: pixels of the image per pixel of the mask features.
        locations: ``[M, 2]``, x and y in pixels of the image.
        scales: ``[M]``, pixels.

    Returns:
        ``[M, 2, H, W]``.
    """
    ys = (torch.arange(height, device=locations.device, dtype=torch.float32) + 0.5) * stride
    xs = (torch.arange(width, device=locations.device, dtype=torch.float32) + 0.5) * stride
    dx = (locations[:, 0, None] - xs) / scales[:, None]  # [M, W]
    dy = (locations[:, 1, None] - ys) / scales[:, None]  # [M, H]
    return torch.stack([dx[:, None, :].expand(-1, height, -1), dy[:, :, None].expand(-1, -1, width)], dim=1)


def dynamic_masks(features: Tensor, image: Tensor, params: Tensor, coordinates: Tensor) -> Tensor:
    """Mask logits of all instances at once, as one grouped convolution per layer with one group an instance.

    Args:
        features: ``[B, 8, H, W]``.
        image: int64 ``[M]``, the image of each instance.
        params: ``[M, 169]``.
        coordinates: ``[M, 2, H, W]``.

    Returns:
        ``[M, H, W]``.
    """
    count = len(image)
    weights, biases = split_params(params)
    x = torch.cat([coordinates.to(features.dtype), features[image]], dim=1)  # [M, 10, H, W]
    x = x.reshape(1, -1, *x.shape[-2:])
    for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        x = F.conv2d(x, weight.reshape(-1, weight.shape[-1], 1, 1), bias.reshape(-1), groups=count)
        if i < len(weights) - 1:
            x = F.relu(x)
    return x[0]
