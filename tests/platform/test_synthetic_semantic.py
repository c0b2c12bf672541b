"""Synthetic scenes with class masks: repeatable, with masks that fit the pictures, and not all alike."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from stratum.data.sample import Sample
from stratum.data.source import DataSpec, load_data
from stratum.data.synthetic import draw_sample, load_synthetic, parse_uri
from stratum.data.synthetic_masks import SCENES, MaskSceneSpec, draw_masked
from stratum_models.errors import UserError
from stratum_models.interface import SemanticTarget

NAMES = list(SCENES)


def scenes(name: str, count: int = 6, size: int = 128, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pictures ``[S, S, 3]`` and classes ``[S, S]``."""
    samples = [draw_masked(MaskSceneSpec(scene=name, size=size, seed=seed), i) for i in range(count)]
    return [(s.image.permute(1, 2, 0).numpy(), mask_of(s)) for s in samples]


def mask_of(sample: Sample) -> np.ndarray:
    assert isinstance(sample.target, SemanticTarget)
    return sample.target.mask.numpy()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [32, 96, 131])
def test_what_a_scene_holds(name: str, size: int) -> None:
    sample = draw_masked(MaskSceneSpec(scene=name, size=size), 1)
    assert (sample.image.dtype, sample.image.shape) == (torch.uint8, (3, size, size))
    mask = mask_of(sample)
    assert mask.shape == (size, size)
    assert 0 <= mask.min() < mask.max() < len(SCENES[name][0])
    assert sample.image.float().std() > 5


@pytest.mark.parametrize("name", NAMES)
def test_the_same_number_gives_the_same_picture(name: str) -> None:
    spec = MaskSceneSpec(scene=name, size=64, seed=3)
    first, again, other, reseeded = draw_masked(spec, 5), draw_masked(spec, 5), draw_masked(spec, 6), scenes(name, 6, 64, 4)[5]
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.target.mask, again.target.mask)
    assert not torch.equal(first.target.mask, other.target.mask)
    assert not np.array_equal(mask_of(first), reseeded[1])


@pytest.mark.parametrize("name", NAMES)
def test_every_class_occurs_and_none_takes_all(name: str) -> None:
    masks = np.stack([mask for _, mask in scenes(name)])
    shares = np.bincount(masks.ravel(), minlength=len(SCENES[name][0])) / masks.size
    assert shares.min() > 0.001
    assert shares.max() < 0.95


@pytest.mark.parametrize("name", NAMES)
def test_masks_lie_where_the_picture_says(name: str) -> None:
    """Where a class ends the picture changes; where the moved mask ends it changes less."""
    own, moved = [], []
    for picture, mask in scenes(name):
        steep = ndimage.gaussian_gradient_magnitude(picture.astype(float).mean(axis=2), 1.0)
        edges = ndimage.grey_dilation(mask, (3, 3)) != ndimage.grey_erosion(mask, (3, 3))
        own.append(steep[edges].mean())
        moved.append(steep[np.roll(edges, (9, 9), axis=(0, 1))].mean())
    assert np.mean(own) > 1.2 * np.mean(moved)


def test_layers_lie_in_their_order() -> None:
    for _, mask in scenes("coal"):
        middle = [np.nonzero(mask == label)[0].mean() for label in (2, 1)]
        assert middle[0] < middle[1]  # the roof above the seam
    for _, mask in scenes("slag"):
        assert not ndimage.binary_dilation(mask == 2, iterations=1)[(mask == 0)].all()
        assert ndimage.label(mask == 2)[1] <= 3  # one band, but for ragged bits at the edges


def test_synapses_are_tiny_and_vessels_stay_in_view() -> None:
    masks = np.stack([mask for _, mask in scenes("cells", size=256)])
    assert 0.0005 < (masks == 2).mean() < 0.02
    rows, columns = np.mgrid[:128, :128]
    outside = np.hypot(rows - 64, columns - 64) > 0.49 * 128
    for picture, mask in scenes("vessels"):
        assert not mask[outside].any()
        assert picture[outside].mean() < 10


@pytest.mark.parametrize("name", NAMES)
def test_as_a_data_set(name: str) -> None:
    data = load_data(DataSpec(uri=f"synthetic://{name}?images=8&size=48&seed=2"))
    assert (data.task, data.classes, len(data.train), len(data.val)) == ("semantic", SCENES[name][0], 6, 2)
    assert data.train.uris[1] == f"synthetic://{name}?images=8&size=48&seed=2#1"
    drawn = draw_sample(parse_uri("synthetic://" + name + "?images=8&size=48&seed=2"), 1)[0]
    assert torch.equal(data.train[1].image, drawn.image)
    assert torch.equal(data.train[1].target.mask, drawn.target.mask)
    train, val, _ = load_synthetic(f"synthetic://{name}?images=8")
    assert not set(train.uris) & set(val.uris)


def test_classes_and_tasks_of_scenes() -> None:
    data = load_data(DataSpec(uri="synthetic://coal?images=4&size=64", classes="coal+floating_coal=coal"))
    assert data.classes == ("background", "coal")
    whole = load_data(DataSpec(uri="synthetic://coal?images=4&size=64"))
    expected = torch.tensor([0, 1, 0, 1])[whole.train[0].target.mask]
    assert torch.equal(data.train[0].target.mask, expected)
    with pytest.raises(UserError, match="is for the task semantic, not instance"):
        load_data(DataSpec(uri="synthetic://coal", task="instance"))
    with pytest.raises(UserError, match="is for the task instance, not semantic"):
        load_data(DataSpec(uri="synthetic://ore?images=2&size=32", task="semantic"))


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("synthetic://slag?rocks=3", "unknown parameter 'rocks'; known are images, size, seed"),
        ("synthetic://slag?size=x", "size='x' is not a number"),
        ("synthetic://cells?size=8", r"synthetic://cells: size=8 is outside 32\.\.4096"),
        ("synthetic://moss", "known are synthetic://ore, synthetic://coal, synthetic://slag"),
    ],
)
def test_a_wrong_uri_is_refused(uri: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_uri(uri)
