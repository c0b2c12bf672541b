"""Convolutions with BN, and how they start.

Shapes: ``B`` images, ``C`` channels, ``h`` and ``w`` the size of a feature map.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from stratum_models.strided import StridedConv

Resize = Literal["bilinear", "nearest"]


class BatchNorm(nn.BatchNorm2d):
    """BN that also trains where a channel has a single value: one small image at the lowest resolution.

    A single value has no variance, so it is normalised by the running statistics, and these stay as they are.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, h, w]`` to the same shape."""
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps)
        return super().forward(x)


def conv_norm(
    inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, dilation: int = 1, relu: bool = True
) -> nn.Sequential:
    """A convolution without bias, padded to keep the size (``ceil(size / stride)``), BN and, if wanted, ReLU."""
    padding = dilation * (kernel // 2)
    conv = StridedConv(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)
    layers: list[nn.Module] = [conv, BatchNorm(outputs)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


def separable_conv(inputs: int, outputs: int, *, stride: int = 1, relu: bool = True) -> nn.Sequential:
    """A depthwise separable 3x3 convolution (section 3.2): one filter for each channel, then a 1x1 convolution, BN after either."""
    return nn.Sequential(
        conv_norm(inputs, inputs, 3, stride=stride, groups=inputs, relu=False),
        conv_norm(inputs, outputs, relu=relu),
    )


def enlarged(x: Tensor, like: Tensor, factor: int, mode: Resize = "bilinear") -> Tensor:
    """``[B, C, h, w]`` by a factor, cut to the height and width of another map, of which ``h`` and ``w`` are that part, rounded up.

    Stretched to that size instead, maps whose sides were rounded up would lie askew on each other, by up to one of their own pixels.
    """
    if factor == 1:
        return x
    larger = F.interpolate(x, scale_factor=factor, mode=mode, align_corners=False if mode == "bilinear" else None)
    return larger[..., : like.shape[-2], : like.shape[-1]]


def initialise(network: nn.Module, classifier: nn.Module) -> None:
    """Weights to train from scratch with: convolutions keep the variance of what passes, the classifier starts with nearly equal logits."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in classifier.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
