"""Weights of ImageNet classifiers, for the trunks that are made of such networks."""

from collections.abc import Callable, Sequence
from pathlib import Path

import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor, nn

from stratum_models.errors import UserError

IMAGENET = "imagenet"  # instead of a file's path: from the model hub


def timm_names(key: str) -> tuple[str, ...]:
    """A classifier's tensor in a trunk of timm's: under its own name, or in a module ``trunk`` with the first dot an underscore."""
    return key, f"trunk.{key}", f"trunk.{key.replace('.', '_', 1)}"


def load_classifier(trunk: nn.Module, name: str, weights: str, renamed: Callable[[str], Sequence[str]] = timm_names) -> None:
    """Copies a classification network's weights into a trunk, by name; what only the classifier has is left out.

    Args:
        trunk: what gets them.
        name: of the classification network: a timm name, or one of torchvision's ``shufflenet_v2_*``.
        weights: ``"imagenet"`` (from timm's or torchvision's hub), or the path of a local ``.safetensors`` or ``.pth`` file.
        renamed: the names that a tensor of the classification network may have in the trunk.

    Raises:
        UserError: the hub cannot be reached, the file cannot be read, or the weights do not fit.
    """
    state = _from_hub(name) if weights == IMAGENET else _from_file(Path(weights))
    named = {new: tensor for key, tensor in state.items() for new in renamed(key)}
    own = trunk.state_dict()
    fitting = {key: named[key] for key, tensor in own.items() if key in named and named[key].shape == tensor.shape}
    missing = [key for key in own if key not in fitting and not key.endswith("num_batches_tracked")]
    if missing:
        raise UserError(
            f"backbone weights {weights} do not fit {name}: {len(missing)} of {len(own)} tensors are missing or of another shape, "
            f"e.g. {missing[0]}; give a file with the weights of the classifier {name}"
        )
    trunk.load_state_dict(fitting, strict=False)


def _from_hub(name: str) -> dict[str, Tensor]:
    try:
        if name.startswith("shufflenet_v2_"):
            return dict(torchvision.models.get_model(name, weights="DEFAULT").state_dict())
        return dict(timm.create_model(name, pretrained=True).state_dict())
    except Exception as error:  # the hubs' clients raise a dozen unrelated types when they cannot connect
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"ImageNet weights of {name} could not be fetched ({reason}): give a local file or s3:// URI with --backbone-weights, "
            "or train without with --backbone-weights none"
        ) from error


def _from_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"backbone weights {path}: no such file")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"backbone weights {path}: cannot be read as safetensors or as a PyTorch file of tensors") from error
    return dict(state.get("state_dict", state))
