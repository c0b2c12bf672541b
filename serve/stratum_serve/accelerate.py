"""Other ways to run a network's convolutions: compiled by ``torch.compile``, or as an ONNX graph in ONNX Runtime.

What comes before and after them, scaling, padding, NMS, masks, stays PyTorch's, so that answers are the same up to rounding.

Shapes: ``B`` images in a batch, ``H`` and ``W`` their padded size.
"""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from stratum_models.errors import UserError
from stratum_models.interface import SegmentationModel
from stratum_models.losnet.model import LosNet
from stratum_models.semantic.model import SemanticModel

TRACED = (2, 64, 96)  # B, H, W of the example; a batch of one would be taken for a constant


def compile_layers(model: SegmentationModel) -> None:
    """Compile the layers of a model, or of each stage of a pipeline, in place; the first images of a shape then take long."""
    for part in model.exportable.values():
        for child in part.children():
            child.compile(dynamic=False)


def use_onnxruntime(model: SegmentationModel, threads: int) -> None:
    """Have ONNX Runtime run the convolutions of a model, or of each stage of a pipeline, in place.

    Raises:
        UserError: the network cannot be exported.
    """
    for name, part in model.exportable.items():
        try:
            _replace(part, threads)
        except UserError:
            raise
        except Exception as error:  # the exporter raises whatever the code that it traces does
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"backend onnxruntime: {name or 'the network'} cannot be exported ({reason}): set backend torch") from error


def _replace(part: SegmentationModel, threads: int) -> None:
    if isinstance(part, LosNet):
        trunk = nn.Sequential(part.backbone, part.pyramid)
        part.backbone, part.pyramid = _Session(trunk, 3, part.divisor, threads), nn.Identity()
    elif isinstance(part, SemanticModel):
        network = _Session(_Dense(part), part.input_channels, part.divisor, threads)
        part.__dict__["dense"] = lambda images: network(images)[0]  # ahead of the method of the class
    else:
        raise UserError(f"backend onnxruntime: {type(part).__name__} is not made for it: set backend torch")


class _Dense(nn.Module):
    """A semantic model's logits, as a module."""

    def __init__(self, model: SemanticModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """``float32 [B, C, H, W]`` to logits."""
        return (self.model.dense(images),)


class _Session(nn.Module):
    """An exported network with free batch, height and width."""

    def __init__(self, network: nn.Module, channels: int, divisor: int, threads: int) -> None:
        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(_exported(network, channels, divisor), options, providers=["CPUExecutionProvider"])

    def forward(self, images: Tensor) -> list[Tensor]:
        """``float32 [B, C, H, W]`` to the network's outputs."""
        found = self._session.run(None, {"images": images.contiguous().numpy()})
        return [torch.from_numpy(values) for values in found]


def _exported(network: nn.Module, channels: int, divisor: int) -> bytes:
    """The network as an ONNX file, in memory."""
    batch, height, width = TRACED
    images = torch.rand(batch, channels, height // divisor * divisor or divisor, width // divisor * divisor or 2 * divisor)
    rows, columns = torch.export.Dim("rows", min=1, max=1024), torch.export.Dim("columns", min=1, max=1024)
    shapes: Any = ({0: torch.export.Dim("batch", min=1, max=1024), 2: divisor * rows, 3: divisor * columns},)
    with torch.no_grad(), _quiet():
        traced = torch.export.export(_Tuple(network).eval(), (images,), dynamic_shapes=shapes)
        program = torch.onnx.export(traced, input_names=["images"], dynamo=True, verbose=False)
    assert program is not None
    buffer = io.BytesIO()
    program.save(buffer)  # type: ignore[arg-type]  # a file object does as well
    return buffer.getvalue()


class _Tuple(nn.Module):
    """A network whose outputs are a tuple, as the exporter wants them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Callable[[Tensor], Any] = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The outputs."""
        return tuple(self.network(images))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says on the way."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
