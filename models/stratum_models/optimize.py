"""What makes a trained network faster without changing what it says."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from stratum_models.arsm.joined import JoinedSelection
from stratum_models.arsm.network import ResolutionSelection
from stratum_models.interface import SegmentationModel
from stratum_models.losnet.head import DetectionHead, JoinedHead, LevelConv

PROBE_SIZE = 96  # pixels of the image that is sent through the network to see which BN follows which convolution


def prepare_for_inference(model: SegmentationModel, *, channels_last: bool = True) -> SegmentationModel:
    """A copy in evaluation mode, each BN folded into the convolution before it, heads in their quicker form, laid out channels-last.

    Args:
        model: trained; left as it is.
        channels_last: whether weights and activations are laid out channels-last, which the convolutions of oneDNN and cuDNN prefer.
    """
    fast = copy.deepcopy(model).eval()
    folded: set[nn.Module] = set()
    for conv, norm in _conv_norm_pairs(fast):
        _fold(conv, norm)
        folded.add(norm)
    for module in list(fast.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d) and child in folded:
                setattr(module, name, _rest(child))
            elif isinstance(child, LevelConv):
                setattr(module, name, child.folded())
    for module in list(fast.modules()):
        for name, child in module.named_children():
            if isinstance(child, ResolutionSelection):
                setattr(module, name, JoinedSelection(child))
            elif isinstance(child, DetectionHead):
                setattr(module, name, JoinedHead(child))
    if channels_last:
        fast.lay_out(torch.channels_last)
    return fast


def _conv_norm_pairs(model: SegmentationModel) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions that run once and whose output is what a BN that runs once gets, found by watching one image pass."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    runs: dict[nn.Module, int] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def after_conv(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        runs[module] = runs.get(module, 0) + 1
        made[id(output)] = (module, output)  # the tensor is kept so that its id is not given away again

    def before_norm(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        runs[module] = runs.get(module, 0) + 1
        if id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], module))

    hooks = [m.register_forward_hook(after_conv) for m in model.modules() if isinstance(m, nn.Conv2d)]
    hooks += [m.register_forward_pre_hook(before_norm) for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    try:
        model.predict([torch.rand(model.input_channels, PROBE_SIZE, PROBE_SIZE, device=model.device)])
    finally:
        for hook in hooks:
            hook.remove()
    return [(conv, norm) for conv, norm in pairs if runs[conv] == 1 and runs[norm] == 1]


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """The convolution with the BN's scale and shift in its weights."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    conv.weight, conv.bias = weight, bias


def _rest(norm: nn.BatchNorm2d) -> nn.Module:
    """What a folded BN leaves to do: timm's BN also holds the activation that follows it."""
    activation = getattr(norm, "act", None)
    return activation if isinstance(activation, nn.Module) else nn.Identity()
