"""The optimiser: sgd or adamw, with a weight decay of their own for norms and biases."""

import torch
from torch import nn
from torch.optim import Optimizer

from stratum.training.spec import TrainSpec

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)


def parameter_groups(model: nn.Module, spec: TrainSpec) -> list[dict[str, object]]:
    """Two groups: weights of convolutions and linear layers; and norms, biases and single scales."""
    norm_ids = {id(p) for module in model.modules() if isinstance(module, _NORMS) for p in module.parameters(recurse=False)}
    weights: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (others if id(parameter) in norm_ids or parameter.ndim <= 1 else weights).append(parameter)
    groups: list[dict[str, object]] = [
        {"params": weights, "weight_decay": spec.weight_decay},
        {"params": others, "weight_decay": spec.norm_weight_decay},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, spec: TrainSpec) -> Optimizer:
    """The optimiser of the spec over the model's trainable parameters."""
    groups = parameter_groups(model, spec)
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=spec.learning_rate, betas=(spec.momentum, 0.999), fused=True)
    return torch.optim.SGD(groups, lr=spec.learning_rate, momentum=spec.momentum, nesterov=spec.nesterov, fused=True)


def set_learning_rate(optimizer: Optimizer, value: float) -> None:
    """Gives every group the learning rate of the coming step."""
    for group in optimizer.param_groups:
        group["lr"] = value
