"""A model's dense outputs as one ONNX file, run by onnxruntime before anyone gets to see it.

Shapes: ``B`` images of ``C`` channels (three colours, more where a pipeline adds them), ``H`` and ``W`` their padded size.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from stratum_models.errors import UserError
from stratum_models.interface import SegmentationModel
from stratum_models.optimize import prepare_for_inference

INPUT = "images"
TOLERANCE = 1e-3  # of onnxruntime against PyTorch: absolute for values up to 1, relative above
METADATA = "stratum"  # the key in the file's metadata


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What is in the file that was written."""

    outputs: dict[str, tuple[int, ...]]
    """Name and shape of each output at the size of the export."""
    dynamic: bool
    """Whether batch, height and width may be chosen when it is run."""
    error: float
    """The largest difference from PyTorch, as :func:`difference` measures it."""
    refusal: str = ""
    """Why the size is fixed although a free one was asked for."""


class DenseNetwork(nn.Module):
    """A model's dense outputs as a tuple, for exporters; the names are ``names``."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model
        with torch.no_grad():
            example = torch.zeros(1, model.input_channels, model.divisor, model.divisor, device=model.device)
            self.names = tuple(model.dense_outputs(example))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """``float32 [B, C, H, W]`` in 0..1 to the outputs in the order of ``names``."""
        return tuple(self.model.dense_outputs(images).values())


def export_onnx(
    model: SegmentationModel, path: Path, size: tuple[int, int], *, dynamic: bool = True, about: Mapping[str, object] | None = None
) -> Exported:
    """Write ``path``: BN folded, sizes free where the exporter can, checked against PyTorch.

    Args:
        model: trained, on the CPU; left as it is.
        path: the file; what is there when this raises is not to be used.
        size: height and width to trace with, multiples of ``model.divisor``; the only ones that fit where sizes cannot be free.
        dynamic: whether to try free sizes at all.
        about: what the file's metadata are to say, beside the divisor.

    Raises:
        UserError: the model has no dense outputs, the size does not fit, the exporter cannot, or onnxruntime says something else.
    """
    divisor = model.divisor
    if any(side % divisor for side in size):
        nearest = "x".join(str(-(-side // divisor) * divisor) for side in size)
        raise UserError(f"size {size[0]}x{size[1]}: both sides must be multiples of {divisor}, such as {nearest}")
    network = DenseNetwork(prepare_for_inference(model, channels_last=False)).eval()
    metadata = {**(about or {}), "divisor": divisor, "input": "float32 in 0..1, RGB first, padded with the mean colour"}
    attempts, refusal = ([True, False] if dynamic else [False]), ""
    for free in attempts:
        try:
            _write(network, path, size, divisor if free else None, metadata)
            sizes = [(1, *size), (2, size[0] + divisor, size[1])] if free else [(1, *size)]
            error = max(difference(network, path, shape) for shape in sizes)
        except Exception as problem:  # the exporter raises whatever the code that it traces does
            refusal = " ".join(str(problem).split())[:200] or type(problem).__name__
            continue
        if error <= TOLERANCE:
            with torch.no_grad():
                shapes = {name: tuple(x.shape) for name, x in zip(network.names, network(_noise(network, 1, *size)), strict=True)}
            return Exported(outputs=shapes, dynamic=free, error=error, refusal=refusal)
        refusal = f"onnxruntime differs from PyTorch by {error:.2g}, more than {TOLERANCE:g}"
    raise UserError(f"this model cannot be exported to ONNX: {refusal}")


def difference(network: DenseNetwork, path: Path, shape: tuple[int, int, int]) -> float:
    """The largest difference between onnxruntime and PyTorch on noise of ``(batch, height, width)``, in units of the value or of 1."""
    batch, height, width = shape
    images = _noise(network, batch, height, width)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = network(images)
    found = session.run(list(network.names), {INPUT: images.numpy()})
    pairs = zip((torch.from_numpy(values) for values in found), expected, strict=True)
    return max(float(((ours - theirs).abs() / theirs.abs().clamp(min=1)).max()) for ours, theirs in pairs)


def _noise(network: DenseNetwork, batch: int, height: int, width: int) -> Tensor:
    return torch.rand(batch, network.model.input_channels, height, width, generator=torch.Generator().manual_seed(0))


def _write(network: DenseNetwork, path: Path, size: tuple[int, int], divisor: int | None, metadata: Mapping[str, object]) -> None:
    """Trace and save; with a divisor batch, height and width are free."""
    shapes: Any = None
    images = _noise(network, 2 if divisor else 1, *size)  # a batch of one would be taken for a constant
    if divisor:
        rows, columns = torch.export.Dim("rows", min=1, max=1024), torch.export.Dim("columns", min=1, max=1024)
        shapes = ({0: torch.export.Dim("batch", min=1, max=1024), 2: divisor * rows, 3: divisor * columns},)
    with torch.no_grad():
        traced = torch.export.export(network, (images,), dynamic_shapes=shapes)
        program = torch.onnx.export(traced, input_names=[INPUT], output_names=list(network.names), dynamo=True, verbose=False)
    assert program is not None
    program.model.metadata_props[METADATA] = json.dumps(metadata)
    program.save(path, external_data=False)
