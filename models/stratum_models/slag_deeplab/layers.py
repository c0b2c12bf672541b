"""Convolutions with batch normalisation and ReLU, standard or depthwise separable (section 2.3, figure 3).

Shapes: ``B`` images, ``M`` channels in, ``N`` out, ``H`` and ``W`` the size of the features.
"""

from torch import nn


def conv_block(inputs: int, outputs: int, kernel: int = 3, *, dilation: int = 1, separable: bool = False) -> nn.Sequential:
    """A convolution that keeps the size, BN and ReLU: ``[B, M, H, W]`` to ``[B, N, H, W]``.

    Args:
        inputs: ``M``.
        outputs: ``N``.
        kernel: side of the kernel, odd.
        dilation: distance of the kernel's cells.
        separable: a depthwise convolution and then a pointwise one, with nothing between them, as Eq. 1 counts:
            ``1 / N + 1 / kernel^2`` of the standard one's multiply-adds.
    """
    padding = dilation * (kernel // 2)
    if separable:
        depthwise = nn.Conv2d(inputs, inputs, kernel, padding=padding, dilation=dilation, groups=inputs, bias=False)
        convolutions = [depthwise, nn.Conv2d(inputs, outputs, 1, bias=False)]
    else:
        convolutions = [nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False)]
    return nn.Sequential(*convolutions, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def initialize(module: nn.Module) -> None:
    """Random weights for convolutions that ReLU follows (He et al.); for ``nn.Module.apply``."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out" if module.groups == 1 else "fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
