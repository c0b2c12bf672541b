"""Synthetic ore: repeatable, exactly labelled, with the size distribution that was asked for."""

import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from torchvision.ops import masks_to_boxes

from stratum.data.ore_scene import OreLook, draw_ore
from stratum.data.sample import Sample
from stratum.data.synthetic import OreSpec, SyntheticSet, draw_sample, load_synthetic, parse_uri
from stratum_models.errors import UserError
from stratum_models.interface import InstanceTarget

SMALL = "synthetic://ore?images=8&size=96&rocks=20"


def target_of(sample: Sample) -> InstanceTarget:
    assert isinstance(sample.target, InstanceTarget)
    return sample.target


def test_a_quarter_is_for_validation_and_nothing_is_in_both() -> None:
    train, val, classes = load_synthetic("synthetic://ore?images=40&size=64")
    assert (len(train), len(val), classes) == (30, 10, ("ore",))
    assert not set(train.uris) & set(val.uris)
    assert train[3].uri == train.uris[3]
    smallest = load_synthetic("synthetic://ore?images=2&size=64")
    assert [len(part) for part in smallest[:2]] == [1, 1]


def test_the_same_uri_gives_the_same_pictures() -> None:
    first, again = (load_synthetic(SMALL)[0] for _ in range(2))
    again[4]  # the order of asking does not matter
    for a, b in ((first[i], again[i]) for i in range(3)):
        assert torch.equal(a.image, b.image)
        assert torch.equal(target_of(a).masks, target_of(b).masks)
    other = load_synthetic(SMALL + "&seed=1")[0]
    assert not torch.equal(first[0].image, other[0].image)
    assert not torch.equal(first[0].image, first[1].image)


def test_labels_fit_together() -> None:
    train, val, _ = load_synthetic(SMALL)
    for sample in (train[0], train[1], val[0]):
        target = target_of(sample)
        assert sample.image.shape == (3, 96, 96)
        assert sample.image.dtype == torch.uint8
        assert int(target.masks.sum(dim=0).max()) == 1  # visible parts do not overlap
        assert int(target.masks.sum(dim=(1, 2)).min()) >= 20
        torch.testing.assert_close(target.boxes, masks_to_boxes(target.masks) + torch.tensor([0, 0, 1, 1]))
        assert target.labels.unique().tolist() == [0]
        assert not target.crowd.any()


def test_masks_lie_on_the_rocks() -> None:
    """Across the edge of a rock the picture changes more than within it."""
    sample = load_synthetic("synthetic://ore?images=4&size=192&empty=0&dust=0")[0][0]
    grey = sample.image.float().mean(dim=0)
    owner = (target_of(sample).masks * torch.arange(1, len(target_of(sample)) + 1)[:, None, None]).sum(dim=0)
    step = (grey[:, 2:] - grey[:, :-2]).abs()
    left, right = owner[:, :-2], owner[:, 2:]
    within = step[(left == right) & (left > 0)].mean()
    across = step[(left != right) & ((left > 0) | (right > 0))].mean()
    assert float(across) > 2 * float(within)


def test_the_share_of_empty_images_is_kept() -> None:
    spec = OreSpec(images=20, size=48, empty=0.25, rocks=30)
    empty = [len(draw_sample(spec, i)[0].target) == 0 for i in range(20)]  # type: ignore[arg-type]
    assert sum(empty) == 5
    assert not empty[0]


@pytest.mark.parametrize("distribution", ["lognormal", "rosin_rammler"])
def test_diameters_follow_the_distribution(distribution: str) -> None:
    spec = OreSpec(size=1000, rocks=5000, d50=40, spread=0.5, distribution=distribution)
    drawn = np.concatenate([spec.diameters(np.random.default_rng(i)) for i in range(4)])
    assert np.median(drawn) == pytest.approx(40, rel=0.03)
    expected = {"lognormal": np.exp(0.5 * 0.6744898), "rosin_rammler": 2**0.5}[distribution]  # upper quartile over median
    assert np.quantile(drawn, 0.75) / 40 == pytest.approx(expected, rel=0.04)


def test_true_diameters_are_those_of_the_drawn_outlines() -> None:
    """A rock that nothing covers has the area that its true diameter says."""
    look = OreLook(dust=0.2, light=0.2, fines=0.5)
    for seed in range(4):
        picture = draw_ore(128, np.array([40.0]), look, np.random.default_rng(seed))
        rows, columns = np.nonzero(picture.ids)
        if min(rows.min(), columns.min()) > 0 and max(rows.max(), columns.max()) < 127:
            assert np.pi / 4 * picture.diameters[0] ** 2 == pytest.approx((picture.ids == 1).sum())
    sizes = [draw_ore(128, np.array([40.0]), look, np.random.default_rng(seed)).diameters[0] for seed in range(40)]
    assert np.mean(sizes) == pytest.approx(40, rel=0.1)  # what was asked for, but for the random shape
    train = load_synthetic(SMALL)[0]
    assert len(train.diameters(0)) >= len(target_of(train[0]))


def test_dust_hides_and_light_falls_off() -> None:
    diameters = np.full(12, 30.0)
    clear, dusty = (draw_ore(160, diameters, OreLook(dust=d, light=0.0, fines=0.5), np.random.default_rng(1)).pixels for d in (0, 1))
    assert dusty.std() < clear.std()
    even, uneven = (draw_ore(160, diameters, OreLook(dust=0.5, light=x, fines=0.5), np.random.default_rng(1)).pixels for x in (0, 1))
    blocks = [p.reshape(4, 40, 4, 40, 3).mean(axis=(1, 3, 4)) for p in (even, uneven)]
    ratio = blocks[1] / blocks[0]  # the same scene under both lights
    assert ratio.max() / ratio.min() > 1.5


def test_a_pickled_set_draws_the_same() -> None:
    train = load_synthetic(SMALL)[0]
    sample = train[0]
    data = pickle.dumps(train)
    assert len(data) < 5000  # the pictures stay behind
    copy: SyntheticSet = pickle.loads(data)
    assert torch.equal(copy[0].image, sample.image)


def test_iterating_ends() -> None:
    assert len(list(load_synthetic("synthetic://ore?images=4&size=48&rocks=3")[0])) == 3
    with pytest.raises(IndexError):
        load_synthetic(SMALL)[0][6]


def test_the_uri_of_a_spec_gives_it_back() -> None:
    spec = OreSpec(images=9, size=80, seed=3, distribution="rosin_rammler", spread=0.7, d50=11.5)
    assert parse_uri(spec.uri) == spec
    assert parse_uri("synthetic://ore") == OreSpec()
    uris = load_synthetic(spec.uri)[0].uris
    assert all(a != b for a, b in pairwise(uris))


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("synthetic://sand?images=3", r"unknown synthetic scene; known are synthetic://ore"),
        ("synthetic://ore?imags=3", r"unknown parameter 'imags'; known are images, size, seed, rocks"),
        ("synthetic://ore?images=many", r"images='many' is not a number"),
        ("synthetic://ore?images=1", r"images=1 is outside 2\.\."),
        ("synthetic://ore?size=8", r"size=8 is outside 32\.\."),
        ("synthetic://ore?empty=nan", r"empty=nan is outside 0\.\.1"),
        ("synthetic://ore?distribution=normal", r"distribution='normal'.*lognormal, rosin_rammler"),
    ],
)
def test_a_wrong_uri_is_refused(uri: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        load_synthetic(uri)
    assert "\n" not in str(error.value)
