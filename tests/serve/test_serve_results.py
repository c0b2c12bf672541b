"""What was found in an image, at its size, without copies of many masks."""

import tracemalloc

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from stratum_models.interface import InstancePrediction
from stratum_models.package import Manifest
from stratum_serve.encode import encode
from stratum_serve.measure import measurements
from stratum_serve.options import Format, SegmentOptions
from stratum_serve.results import Found, found_in

MANIFEST = Manifest(preset="losnet_debug", classes=("ore", "dust"), num_classes=2, task="instance")


def stones(count: int, height: int, width: int, seed: int = 0) -> InstancePrediction:
    """Ragged masks, best first, every other of the second class; the last two are full and empty."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, height, width), dtype=bool)
    for mask in masks[:-2]:
        top, left = rng.integers(0, height - 4), rng.integers(0, width - 4)
        part = mask[top : top + 20, left : left + 20]
        part[:] = rng.random(part.shape) > 0.2
    masks[-2] = True
    boxes = torch.tensor([[0.0, 0.0, width, height]]).repeat(count, 1)
    return InstancePrediction(
        boxes=boxes, scores=torch.linspace(0.9, 0.1, count), labels=torch.arange(count) % 2, masks=torch.from_numpy(masks)
    )


def image(height: int, width: int) -> torch.Tensor:
    return torch.zeros(3, height, width, dtype=torch.uint8)


@pytest.mark.parametrize("size", [(96, 128), (250, 333), (51, 67), (50, 66)])
def test_masks_of_a_smaller_image_are_scaled(size: tuple[int, int]) -> None:
    small = stones(12, 50, 66)
    found = found_in(image(*size), small, MANIFEST, SegmentOptions(score=0)).instances
    assert found is not None
    scaled = torch.stack(
        [interpolate(mask[None, None].float(), size, mode="bilinear", align_corners=False)[0, 0] > 0.5 for mask in small.masks]
    )
    kept = scaled.flatten(1).any(1)
    assert torch.equal(found.masks, scaled[kept])
    assert torch.allclose(found.boxes[0], torch.tensor([0.0, 0.0, size[1], size[0]]))


def test_scores_and_classes_choose() -> None:
    found = found_in(image(50, 66), stones(12, 50, 66), MANIFEST, SegmentOptions(score=0.5, classes="dust"))
    assert found.instances is not None
    assert found.instances.labels.tolist() == [1, 1, 1]
    assert found.pixels == {1: int(found.instances.masks.any(0).sum())}


@pytest.mark.parametrize("format", ["json", "png", "overlay", "measure"])
def test_many_masks_are_not_copied(format: Format) -> None:
    many = stones(150, 400, 500)
    tracemalloc.start()
    try:
        found: Found = found_in(image(400, 500), many, MANIFEST, SegmentOptions(score=0.11))
        assert found.instances is not None
        assert found.instances.masks.data_ptr() == many.masks.data_ptr()
        measurements(found, SegmentOptions()) if format == "measure" else encode(found, format, "rle", {})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * 400 * 500, f"{peak / 400 / 500:.0f} masks"
