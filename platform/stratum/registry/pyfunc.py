"""What MLflow calls to load a package as a pyfunc model.

    model = mlflow.pyfunc.load_model("models:/losnet@champion")
    model.predict([image, "s3://bucket/image.png"])      # arrays uint8 [H, W, 3] or [H, W], paths and URIs
    model.predict(pandas.DataFrame({"image": [...]}))    # the same in the first column; over HTTP also base64 of an encoded image

The answer is a list with one dictionary an image: ``size`` (height, width) and, for instances, lists ``boxes``, ``scores``, ``labels``,
``classes`` and ``masks`` (COCO run lengths); for semantic models ``mask``, the class indices as nested lists. All of it is JSON.
"""

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stratum.data.images import DepthRule, decode_image, read_image, to_rgb
from stratum_models.errors import UserError
from stratum_models.interface import InstancePrediction, Prediction
from stratum_models.package import LoadedModel, load_package


class PackageModel:
    """A package with the one method that MLflow asks for."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        rule = loaded.manifest.depth_rule
        self._depth = DepthRule(**rule) if rule else None

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Predictions above the package's score threshold for images in any form that the module's text names."""
        images = [self._image(value) for value in _values(model_input)]
        predictions = self._loaded.predict([image.float() / 255 for image in images])
        return [as_json(prediction, self._loaded.manifest.classes) for prediction in predictions]

    def _image(self, value: Any) -> Tensor:
        """One image as ``uint8 [3, H, W]``."""
        if isinstance(value, bytes):
            return decode_image(value, self._depth)
        if isinstance(value, str):
            encoded = _base64(value)
            return read_image(value, self._depth) if encoded is None else decode_image(encoded, self._depth)
        pixels = np.asarray(value)
        if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
            raise UserError(f"an image array has shape {pixels.shape}: give [H, W] or [H, W, 3]")
        if pixels.dtype not in (np.uint8, np.uint16):  # JSON has no small integers
            pixels = _whole_numbers(pixels)
        return to_rgb(pixels, self._depth)


def _whole_numbers(pixels: NDArray[Any]) -> NDArray[Any]:
    """Pixels as 8 or 16 bits; what is scaled to 0..1 would become black, and what is below 0 white."""
    known = pixels.dtype.kind in "iuf" and pixels.size
    if not known or (pixels != np.rint(pixels)).any() or pixels.min() < 0 or pixels.max() > 65535:
        found = f"{pixels.min():.4g} to {pixels.max():.4g}" if known else "none"
        raise UserError(f"an image array holds {pixels.dtype} ({found}): give whole numbers, 0 to 255 (of 16-bit images to 65535)")
    return pixels.astype(np.uint16 if pixels.max() > 255 else np.uint8)


def as_json(prediction: Prediction, classes: tuple[str, ...]) -> dict[str, Any]:
    """A prediction as plain lists, numbers and strings."""
    if not isinstance(prediction, InstancePrediction):
        return {"size": list(prediction.probabilities.shape[1:]), "mask": prediction.probabilities.argmax(0).tolist()}
    labels = prediction.labels.tolist()
    return {
        "size": list(prediction.masks.shape[1:]),
        "boxes": prediction.boxes.tolist(),
        "scores": prediction.scores.tolist(),
        "labels": labels,
        "classes": [classes[label] for label in labels],
        "masks": [run_lengths(mask) for mask in prediction.masks],
    }


def run_lengths(mask: Tensor) -> dict[str, Any]:
    """A mask ``bool [H, W]`` as COCO's compressed run lengths, with text for counts."""
    from pycocotools.mask import encode

    coded = encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8)))
    return {"size": [int(side) for side in coded["size"]], "counts": coded["counts"].decode("ascii")}


def _load_pyfunc(path: str) -> PackageModel:
    """MLflow's entry: the package below the path that the model's MLmodel file names."""
    return PackageModel(load_package(Path(path)))


def _values(model_input: Any) -> list[Any]:
    if hasattr(model_input, "iloc"):  # a pandas DataFrame or Series
        column = model_input.iloc[:, 0] if model_input.ndim == 2 else model_input
        return list(column)
    if isinstance(model_input, Mapping):
        return list(next(iter(model_input.values())))
    if isinstance(model_input, str | bytes) or (isinstance(model_input, np.ndarray) and model_input.ndim in (2, 3)):
        return [model_input]
    return list(model_input)


def _base64(value: str) -> bytes | None:
    """The bytes behind a base64 text; None where it is a path. No path has the length of an image."""
    if len(value) < 100 or value.startswith("s3://"):
        return None
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return None
