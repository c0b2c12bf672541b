"""The mask head whose weights are predicted for each instance (section 3.4, Eq. 5).

Three 1x1 layers of 8 channels over the 8 mask features and 2 relative coordinates: 10x8+8 + 8x8+8 + 8x1+1 = 169 parameters.

Shapes: ``B`` images, ``M`` instances of all of them, ``H`` and ``W`` the size of the mask features.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from stratum_models.losnet.config import CODE_CHANNELS
from stratum_models.losnet.losses import full_precision

LAYERS = ((CODE_CHANNELS + 2, CODE_CHANNELS), (CODE_CHANNELS, CODE_CHANNELS), (CODE_CHANNELS, 1))
SMALLEST_WINDOW = 8  # pixels of the mask features
MOST_PIXELS = 2**17  # of the windows that go through the layers together: what fits into a cache
NUM_PARAMS = sum(fan_in * fan_out + fan_out for fan_in, fan_out in LAYERS)


def split_params(params: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """``[M, 169]`` to the weights ``[M, out, in]`` and biases ``[M, out]`` of the three layers; all weights come first."""
    sizes = [i * o for i, o in LAYERS] + [o for _, o in LAYERS]
    parts = torch.split(params, sizes, dim=1)
    weights = [part.reshape(-1, o, i) for part, (i, o) in zip(parts[:3], LAYERS, strict=True)]
    return weights, list(parts[3:])


def dynamic_masks(features: Tensor, image: Tensor, params: Tensor, locations: Tensor, scales: Tensor, stride: int) -> Tensor:
    """Mask logits of all instances of all images: three 1x1 convolutions with one group an instance, as matrix products.

    The second and third layer are one batched product over all instances, the first is one product per image. The relative coordinates of
    Eq. 5, from a pixel of the mask features to the location of the instance, are linear in the pixel: their share of the first layer is a
    product over coordinates that all instances of an image have in common, and a bias of each instance's own. So no instance needs a copy
    of the features. Runs in float32 whatever autocast says: the two cancel almost.

    Args:
        features: ``[B, 8, H, W]``.
        image: int64 ``[M]``, the image of each instance, ascending.
        params: ``[M, 169]``.
        locations: ``[M, 2]``, x and y in pixels of the image.
        scales: ``[M]``, pixels: the unit of the relative coordinates.
        stride: pixels of the image per pixel of the mask features.

    Returns:
        ``[M, H, W]``.
    """
    height, width = features.shape[-2:]
    with torch.autocast(features.device.type, enabled=False):
        weights, biases = split_params(full_precision(params))
        shared = _with_grid(features, stride).flatten(2)  # [B, 10, H W]
        kernel, bias = _absolute(weights[0], biases[0], locations.to(shared.dtype), scales.to(shared.dtype))
        counts = torch.bincount(image, minlength=len(features)).tolist()
        first = zip(shared, torch.split(kernel, counts), torch.split(bias, counts), strict=True)
        x = torch.cat(
            [torch.addmm(b.reshape(-1, 1), k.reshape(-1, k.shape[-1]), f).view(-1, CODE_CHANNELS, height * width) for f, k, b in first]
        )
        x = torch.baddbmm(biases[1][..., None], weights[1], x.relu_())
        x = torch.baddbmm(biases[2][..., None], weights[2], x.relu_())
    return x.view(-1, height, width)


def windowed_masks(
    features: Tensor, image: Tensor, params: Tensor, locations: Tensor, scales: Tensor, stride: int, windows: Tensor
) -> list[Tensor]:
    """What :func:`dynamic_masks` gives inside a window of each instance, without the rest of the image.

    A stone covers a thousandth of its image. Windows are widened to squares whose sides are powers of two; those of one size, from all
    images, go through the three layers together. A window of half the map or more is cut out of the whole one, which no instance copies.

    Args:
        features, image, params, locations, scales, stride: as in :func:`dynamic_masks`.
        windows: int64 ``[M, 4]`` on the CPU: top, left, bottom, right in pixels of the mask features, none empty.

    Returns:
        for each instance ``[bottom - top, right - left]``.
    """
    height, width = features.shape[-2:]
    found: list[Tensor] = [features.new_empty(0)] * len(windows)
    with torch.autocast(features.device.type, enabled=False):
        weights, biases = split_params(full_precision(params))
        pixels = _with_grid(features, stride).permute(0, 2, 3, 1).reshape(-1, CODE_CHANNELS + 2)  # [B H W, 10]
        kernel, bias = _absolute(weights[0], biases[0], locations.to(pixels.dtype), scales.to(pixels.dtype))
        layers = [(k.transpose(1, 2), b[:, None]) for k, b in zip((kernel, *weights[1:]), (bias, *biases[1:]), strict=True)]
        for chosen, rows, columns in _same_size(windows, height, width):
            if rows.shape[1] == height and columns.shape[1] == width:
                logits = dynamic_masks(features, image[chosen], params[chosen], locations[chosen], scales[chosen], stride)
            else:
                side = (rows.to(features.device), columns.to(features.device))
                cell = image[chosen, None, None] * (height * width) + side[0][:, :, None] * width + side[1][:, None]  # [m, h, w]
                x = pixels[cell.flatten()].view(len(chosen), -1, CODE_CHANNELS + 2)
                for depth, (k, b) in enumerate(layers):
                    x = torch.baddbmm(b[chosen], x.relu_() if depth else x, k[chosen])
                logits = x.view(len(chosen), rows.shape[1], columns.shape[1])
            first = torch.stack([rows[:, 0], columns[:, 0]], dim=1).repeat(1, 2)
            for i, logit, (top, left, bottom, right) in zip(chosen.tolist(), logits, (windows[chosen] - first).tolist(), strict=True):
                found[i] = logit[top:bottom, left:right]
    return found


def _same_size(windows: Tensor, height: int, width: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Groups of windows ``[M, 4]``: which they are ``[m]``, and the rows ``[m, h]`` and columns ``[m, w]`` that they are widened to."""
    longest = (windows[:, 2:] - windows[:, :2]).amax(1).clamp(min=SMALLEST_WINDOW)
    sides = 2 ** longest.to(torch.float32).log2().ceil().long()
    for side in sorted(set(sides.tolist())):
        h, w = min(side, height), min(side, width)
        if 2 * h * w >= height * width:
            h, w = height, width
        for chosen in (sides == side).nonzero()[:, 0].split(max(1, MOST_PIXELS // (h * w))):
            top, left = windows[chosen, 0].clamp(max=height - h), windows[chosen, 1].clamp(max=width - w)
            yield chosen, top[:, None] + torch.arange(h), left[:, None] + torch.arange(w)


def _with_grid(features: Tensor, stride: int) -> Tensor:
    """The x and y of the centre of each pixel, in pixels of the image, and the features: ``[B, 10, H, W]``."""
    count, _, height, width = features.shape
    dtype = full_precision(features).dtype
    ys = (torch.arange(height, device=features.device, dtype=dtype) + 0.5) * stride
    xs = (torch.arange(width, device=features.device, dtype=dtype) + 0.5) * stride
    grid = torch.stack([xs.expand(height, width), ys[:, None].expand(height, width)])
    return torch.cat([grid.expand(count, -1, -1, -1), full_precision(features)], dim=1)


def _absolute(weight: Tensor, bias: Tensor, locations: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """The first layer over relative coordinates as one over absolute ones: ``w (l - g) / s + b = -(w / s) g + (b + (w / s) l)``."""
    slope = weight[:, :, :2] / scales[:, None, None]  # [M, 8, 2]
    return torch.cat([-slope, weight[:, :, 2:]], dim=2), bias + (slope * locations[:, None]).sum(-1)
