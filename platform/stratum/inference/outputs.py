"""What is written for one image: a mask of ids, annotations, an overlay, measurements.

Shapes: ``N`` instances, ``H`` and ``W`` the size of the image.
"""

import io
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.io import encode_jpeg

from stratum.data import rle
from stratum_models.errors import UserError
from stratum_models.interface import InstancePrediction, Prediction


def instances_of(prediction: Prediction) -> InstancePrediction:
    """The prediction, where it is one of instances. Raises UserError for a semantic model's."""
    if not isinstance(prediction, InstancePrediction):
        raise UserError("the package is a semantic model's, which finds no single particles: use one whose task is instance")
    return prediction


def visible(prediction: InstancePrediction) -> InstancePrediction:
    """The instances that have at least one pixel."""
    # NumPy looks no further than a mask's first pixel that is set.
    return prediction.where(torch.tensor([bool(mask.numpy().any()) for mask in prediction.masks.cpu()], dtype=torch.bool))


def id_mask(prediction: InstancePrediction) -> NDArray[np.uint16]:
    """The instances as one image of ids ``[H, W]``: 0 is background, ``i + 1`` instance ``i``; of overlapping ones the better is on top."""
    return rle.painted(prediction.masks.cpu().numpy())


def grey_png(values: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """A grey PNG of as many bits as the values have."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG")
    return buffer.getvalue()


def jpeg(picture: Tensor) -> bytes:
    """A picture ``uint8 [3, H, W]`` as JPEG."""
    return bytes(encode_jpeg(picture.contiguous(), quality=90).numpy().tobytes())


def annotations_of(prediction: InstancePrediction) -> list[dict[str, Any]]:
    """COCO annotations, without the ids that only the whole set of images can give; categories count from 1."""
    codes = rle.encode(prediction.masks.cpu().numpy().astype(np.bool_, copy=False))
    boxes, scores, labels = prediction.boxes.tolist(), prediction.scores.tolist(), prediction.labels.tolist()
    return [
        {
            "category_id": label + 1,
            "segmentation": {"size": [int(side) for side in prediction.masks.shape[1:]], "counts": rle.text(code)},
            "bbox": [round(x0, 2), round(y0, 2), round(x1 - x0, 2), round(y1 - y0, 2)],
            "area": rle.area(code),
            "score": round(score, 5),
            "iscrowd": 0,
        }
        for code, (x0, y0, x1, y1), score, label in zip(codes, boxes, scores, labels, strict=True)
    ]


def coco_document(images: Sequence[dict[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    """One COCO file of many images: each has ``file_name``, ``height``, ``width`` and its ``annotations``."""
    document: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": index + 1, "name": name} for index, name in enumerate(classes)],
    }
    for image_id, image in enumerate(images, start=1):
        document["images"].append({"id": image_id, **{key: image[key] for key in ("file_name", "height", "width")}})
        for annotation in image["annotations"]:
            document["annotations"].append({"id": len(document["annotations"]) + 1, "image_id": image_id, **annotation})
    return document


def output_names(names: Collection[str]) -> dict[str, str]:
    """For each relative image name the name of its results, without its ending; with it where two images differ in nothing else."""
    stems = {name: name.rsplit(".", 1)[0] if "." in name.rsplit("/", 1)[-1] else name for name in names}
    taken: dict[str, int] = {}
    for stem in stems.values():
        taken[stem] = taken.get(stem, 0) + 1
    return {name: stem if taken[stem] == 1 else name for name, stem in stems.items()}


def to_float(image: Tensor) -> Tensor:
    """``uint8`` pixels as the models take them: ``float32`` in 0..1."""
    return image.to(torch.float32) / 255
