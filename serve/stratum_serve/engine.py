"""A loaded model as a server runs it: prepared, warm, and told apart by the shape that its batches have.

Shapes: ``H`` and ``W`` the size of an image.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from stratum.data.images import DepthRule
from stratum.inference.classes import ClassesFound, find_classes
from stratum.inference.outputs import to_float
from stratum_models.batching import InputSize
from stratum_models.errors import UserError
from stratum_models.interface import Prediction, SegmentationModel
from stratum_models.optimize import prepare_for_inference
from stratum_models.package import LoadedModel, Manifest, load_package, manifest_sha256
from stratum_serve.accelerate import compile_layers, use_onnxruntime

DIVISOR = 32  # every network here pads its batches to multiples of it
WARM_SIZE = (480, 640)
Backend = Literal["torch", "compile", "onnxruntime"]


class Engine:
    """A package ready to answer.

    Args:
        loaded: what the package holds.
        device: where it runs.
        backend: what runs its convolutions; see :mod:`stratum_serve.accelerate`.

    Raises:
        UserError: the backend cannot run this network.
    """

    def __init__(self, loaded: LoadedModel, *, device: str = "cpu", backend: Backend = "torch") -> None:
        self.manifest: Manifest = loaded.manifest
        channels_last = backend != "onnxruntime"  # which lays out for itself
        self.model: SegmentationModel = prepare_for_inference(loaded.model, channels_last=channels_last).to(device)
        self.depth = DepthRule(**loaded.manifest.depth_rule) if loaded.manifest.depth_rule else None
        if backend == "compile":
            compile_layers(self.model)
        elif backend == "onnxruntime":
            if device != "cpu":
                raise UserError("backend onnxruntime runs on CPUs here: set backend torch or compile, or gpus to 0")
            use_onnxruntime(self.model, torch.get_num_threads())

    def warm(self) -> None:
        """One image through the network, so that the first request does not pay for what is only made once."""
        self.predict([torch.zeros(3, *WARM_SIZE, dtype=torch.uint8)])

    @torch.inference_mode()
    def predict(self, images: Sequence[Tensor]) -> list[Prediction]:
        """Predictions on the CPU for images ``uint8 [3, H, W]``, with all scores."""
        found = self.model.predict([to_float(image).to(self.model.device) for image in images])
        return [one.to("cpu") for one in found]

    def in_windows(self, image: Tensor, window: int, before: Callable[[], None]) -> ClassesFound:
        """The classes of an image ``uint8 [3, H, W]`` in windows of that side; ``before`` is called before each few, and may raise."""
        return find_classes(self.model, [image], window=window, before=before)[0]

    def bucket(self, image: Tensor) -> Hashable:
        """What images have in common that can go through the network together without one changing the answer for another."""
        height, width = int(image.shape[-2]), int(image.shape[-1])
        config = getattr(self.model, "config", None)
        if isinstance(config, InputSize) and config.resizes:
            return height, width  # scaled first: only equal sizes surely stay equal
        return math.ceil(height / DIVISOR), math.ceil(width / DIVISOR)


def build_engine(folder: Path, sha256: str = "", *, device: str = "cpu", backend: Backend = "torch") -> Engine:
    """The engine of a package, its hashes checked, not warm yet; ``sha256`` is what its manifest must have, if known.

    Raises:
        UserError: the package is damaged, or another one than was asked for.
    """
    if sha256 and (found := manifest_sha256(folder)) != sha256:
        raise UserError(f"{folder}: the package has changed (its manifest's sha256 is {found[:12]}...): ask again")
    return Engine(load_package(folder), device=device, backend=backend)


def open_package(folder: Path, sha256: str = "", *, device: str = "cpu", backend: Backend = "torch") -> Engine:
    """The same, warm. Raises UserError as that does."""
    engine = build_engine(folder, sha256, device=device, backend=backend)
    engine.warm()
    return engine
