"""The residual module of a branch, with dense or depthwise separable convolutions (section 3.2).

Shapes: ``B`` images, ``C`` channels, ``h`` and ``w`` the size of a feature map.
"""

from torch import Tensor, nn

from stratum_models.fm_hrnet.layers import conv_norm, separable_conv


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Args:
        inputs: channels that come in.
        outputs: channels that go out; where they differ, or with a stride, the shortcut is a 1x1 convolution.
        stride: of the first convolution.
        separable: how many of the two convolutions are depthwise separable; with 1 it is the second.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, separable: int = 0) -> None:
        super().__init__()
        self.first = separable_conv(inputs, outputs, stride=stride) if separable == 2 else conv_norm(inputs, outputs, 3, stride=stride)
        self.second = separable_conv(outputs, outputs, relu=False) if separable else conv_norm(outputs, outputs, 3, relu=False)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv_norm(inputs, outputs, stride=stride, relu=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, h, w]`` to ``[B, outputs, ceil(h / stride), ceil(w / stride)]``."""
        y: Tensor = self.relu(self.second(self.first(x)) + self.shortcut(x))
        return y
