"""Image, masks and boxes move together: held by pictures whose colours say which instance a pixel belongs to."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import masks_to_boxes

from stratum.data.mosaic import AugmentedSet, join, paste
from stratum.data.sample import Sample
from stratum.data.scene import Scene, pixel_counts, tight_boxes, to_sample, to_scene
from stratum.data.transforms import NONE, PAPER, PRESETS, STRONG, AugmentSpec, build_train_transform, resolve_augmentation
from stratum_models.errors import UserError
from stratum_models.interface import InstanceTarget, SemanticTarget

LABELS = 3


def colour_of(number: int) -> Tensor:
    """A colour of its own, never the grey of the padding nor the black of the background."""
    return torch.tensor([1 + number, 255 - number, 200], dtype=torch.uint8)


def coded_sample(first: int, count: int, height: int, width: int, seed: int) -> Sample:
    """Rectangles one over the other, number ``first + i`` told by the colour, its label by the number."""
    rng = np.random.default_rng(seed)
    owner = torch.zeros(height, width, dtype=torch.int64)
    for i in range(count):
        top, left = rng.integers(height - 4), rng.integers(width - 4)
        owner[top : top + int(rng.integers(3, 20)), left : left + int(rng.integers(3, 20))] = i + 1
    present = [i for i in range(count) if (owner == i + 1).any()]
    masks = torch.stack([owner == i + 1 for i in present]) if present else torch.zeros(0, height, width, dtype=torch.bool)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for i, mask in zip(present, masks, strict=True):
        image[:, mask] = colour_of(first + i)[:, None]
    labels = torch.tensor([(first + i) % LABELS for i in present], dtype=torch.int64)
    return Sample(image=image, target=instances(masks, labels), uri=f"mem://{first}")


def instances(masks: Tensor, labels: Tensor | None = None, crowd: Tensor | None = None) -> InstanceTarget:
    count = len(masks)
    return InstanceTarget(
        boxes=torch.from_numpy(tight_boxes(masks.numpy())),
        labels=torch.zeros(count, dtype=torch.int64) if labels is None else labels,
        masks=masks,
        crowd=torch.zeros(count, dtype=torch.bool) if crowd is None else crowd,
    )


def target_of(sample: Sample) -> InstanceTarget:
    assert isinstance(sample.target, InstanceTarget)
    return sample.target


CODED = [coded_sample(40 * k, 6, 40 + 9 * k, 70 - 5 * k, seed=k) for k in range(5)]
BLANK = replace(CODED[0], image=torch.zeros(3, 48, 64, dtype=torch.uint8), target=instances(torch.zeros(0, 48, 64, dtype=torch.bool)))


def assert_agrees(sample: Sample) -> None:
    """Every mask has one colour and that colour's label, all coloured pixels are in masks, boxes fit tightly."""
    target = target_of(sample)
    assert target.masks.shape == (len(target.labels), *sample.image.shape[1:])
    assert target.masks.dtype == torch.bool
    assert sample.image.dtype == torch.uint8
    for mask, label in zip(target.masks, target.labels, strict=True):
        colours = sample.image[:, mask]
        assert (colours == colours[:, :1]).all()
        number = int(colours[0, 0]) - 1
        assert torch.equal(colours[:, 0], colour_of(number))
        assert int(label) == number % LABELS
    assert torch.equal(target.masks.any(dim=0), sample.image[2] == 200)
    assert int(target.masks.sum(dim=0).max() if len(target) else 0) <= 1
    if len(target):
        expected = masks_to_boxes(target.masks) + torch.tensor([0, 0, 1, 1])
        torch.testing.assert_close(target.boxes, expected)


specs = st.builds(
    AugmentSpec,
    short_sides=st.sampled_from([(), (24,), (50, 90)]),
    max_long=st.sampled_from([None, 64]),
    scale_range=st.sampled_from([(1.0, 1.0), (0.5, 2.0)]),
    crop=st.sampled_from([32, 57]),
    flip_horizontal=st.sampled_from([0.0, 0.5, 1.0]),
    flip_vertical=st.sampled_from([0.0, 0.5, 1.0]),
    rotate90=st.booleans(),
    copy_paste=st.sampled_from([0.0, 1.0]),
    mosaic=st.sampled_from([0.0, 0.5, 1.0]),
    mosaic_size=st.sampled_from([None, 80]),
    interpolation=st.just("nearest"),
)


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(spec=specs, seed=st.integers(0, 2**31), index=st.integers(0, 4), whole=st.booleans())
def test_colours_masks_and_boxes_agree_after_any_augmentation(spec: AugmentSpec, seed: int, index: int, whole: bool) -> None:
    if whole and not spec.mosaic:
        spec = replace(spec, crop=None)
    sample = AugmentedSet([*CODED[:4], BLANK], spec, seed).draw(index, epoch=3)
    if spec.crop:
        assert sample.image.shape == (3, spec.crop, spec.crop)
    assert_agrees(sample)


def test_none_changes_nothing_and_shares_nothing() -> None:
    samples = AugmentedSet(CODED, NONE)
    got = samples[1]
    assert torch.equal(got.image, CODED[1].image)
    assert torch.equal(target_of(got).masks, target_of(CODED[1]).masks)
    torch.testing.assert_close(target_of(got).boxes, target_of(CODED[1]).boxes)
    assert got.uri == CODED[1].uri
    got.image.zero_()
    assert torch.equal(samples[1].image, CODED[1].image)


def test_overlapping_masks_stay_whole() -> None:
    masks = torch.zeros(3, 30, 40, dtype=torch.bool)
    masks[0, 2:20, 3:20] = True
    masks[1, 10:25, 10:30] = True
    masks[2, 12:15, 0:40] = True
    sample = Sample(image=torch.zeros(3, 30, 40, dtype=torch.uint8), target=instances(masks), uri="mem://overlap")
    scene = to_scene(sample)
    assert len(scene.ids) == 3
    assert torch.equal(target_of(to_sample(scene)).masks, masks)
    flipped = AugmentedSet([sample], AugmentSpec(flip_horizontal=1, flip_vertical=0))[0]
    assert torch.equal(target_of(flipped).masks, masks.flip(-1))


def test_masks_are_not_shifted_against_a_resized_image() -> None:
    """torchvision's own resizing of masks is off by up to half a source pixel, which small stones feel."""
    rows, columns = torch.meshgrid(torch.arange(60), torch.arange(60), indexing="ij")
    disc = (rows - 29.5) ** 2 + (columns - 29.5) ** 2 < 15**2
    sample = Sample(image=(disc * 255).to(torch.uint8).expand(3, -1, -1).contiguous(), target=instances(disc[None]), uri="mem://disc")
    for side in (37, 90, 131):
        got = AugmentedSet([sample], AugmentSpec(short_sides=(side,), flip_horizontal=0, flip_vertical=0))[0]
        bright = got.image[0] > 127
        mask = target_of(got).masks[0]
        assert float((bright & mask).sum() / (bright | mask).sum()) > 0.96


def test_semantic_labels_move_with_the_image_and_padding_is_ignored() -> None:
    mask = torch.randint(0, 5, (40, 50), generator=torch.Generator().manual_seed(0))
    sample = Sample(image=mask.to(torch.uint8).expand(3, -1, -1).contiguous(), target=SemanticTarget(mask=mask), uri="mem://semantic")
    spec = AugmentSpec(crop=64, mosaic=0.5, copy_paste=0.5, rotate90=True, scale_range=(0.5, 1.5), interpolation="nearest")
    samples = AugmentedSet([sample, sample], spec)
    for epoch in range(6):
        got = samples.draw(0, epoch)
        assert isinstance(got.target, SemanticTarget)
        known = got.target.mask != 255
        assert torch.equal(got.image[0][known].long(), got.target.mask[known])
        assert (got.image[:, ~known] == 114).all()


def test_small_and_hardly_visible_instances_are_dropped_but_crowds_stay() -> None:
    masks = torch.zeros(3, 40, 40, dtype=torch.bool)
    masks[0, 5:30, 5:30] = True
    masks[1, 0:2, 0:2] = True
    masks[2, 35:36, 35:37] = True
    crowd = torch.tensor([False, False, True])
    scene = to_scene(Sample(image=torch.zeros(3, 40, 40, dtype=torch.uint8), target=instances(masks, crowd=crowd), uri="mem://small"))
    assert target_of(to_sample(scene, min_area=5)).crowd.tolist() == [False, True]
    cut = replace(scene, image=scene.image[:, :, 28:], ids=scene.ids[:, :, 28:])  # 50 of 625 pixels of the first are left
    assert len(to_sample(cut, min_visible=0.07).target) == 2  # type: ignore[arg-type]
    assert target_of(to_sample(cut, min_visible=0.09)).crowd.tolist() == [True]


def test_the_paper_scales_the_short_side() -> None:
    image = torch.zeros(3, 100, 190, dtype=torch.uint8)
    sample = Sample(image=image, target=instances(torch.zeros(0, 100, 190, dtype=torch.bool)), uri="mem://wide")
    samples = AugmentedSet([sample], PAPER)
    sizes = {tuple(samples.draw(0, epoch).image.shape[1:]) for epoch in range(30)}
    assert {h for h, _ in sizes} == {300, 330, 337}  # 337: the long side reaches 640
    assert all(w <= 640 for _, w in sizes)


def test_photometric_changes_leave_labels_alone_and_repeat() -> None:
    spec = AugmentSpec(photometric=0.5, blur=1, noise=0.1, flip_horizontal=0, flip_vertical=0)
    first, again = (AugmentedSet(CODED, spec, seed=4).draw(2, 7) for _ in range(2))
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, CODED[2].image)
    assert torch.equal(target_of(first).masks, target_of(CODED[2]).masks)


def test_draws_do_not_touch_the_global_generators() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    AugmentedSet(CODED, replace(STRONG, noise=0.1, blur=1, photometric=1), seed=1).draw(0, 0)
    assert torch.equal(before, torch.get_rng_state())


def test_a_train_transform_repeats_by_seed() -> None:
    first, again, other = (build_train_transform(replace(STRONG, mosaic=0, copy_paste=0), seed) for seed in (1, 1, 2))
    pictures = [[transform(CODED[0]).image for _ in range(3)] for transform in (first, again, other)]
    assert all(torch.equal(a, b) for a, b in zip(pictures[0], pictures[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(pictures[0], pictures[2], strict=True))
    assert not torch.equal(pictures[0][0], pictures[0][1])


def test_mosaic_and_copy_paste_can_be_left_out() -> None:
    spec = replace(NONE, crop=64, mosaic=1, copy_paste=1, interpolation="nearest")
    plain = AugmentedSet(CODED, spec).draw(3, 0, mosaic=False)
    numbers = {int(c) - 1 for c in plain.image[0][plain.image[2] == 200]}
    assert numbers <= set(range(120, 160))  # of the one image


def scene_of(sample: Sample) -> Scene:
    return to_scene(sample)


def test_join_keeps_every_pixel() -> None:
    tiles = [scene_of(coded_sample(40 * k, 5, h, w, seed=k)) for k, (h, w) in enumerate([(30, 20), (30, 44), (34, 20), (34, 44)])]
    whole = join(tiles)
    assert whole.size == (64, 64)
    assert pixel_counts(whole).tolist() == np.concatenate([pixel_counts(tile) for tile in tiles]).tolist()
    assert_agrees(to_sample(whole))


def test_paste_cuts_what_it_covers_and_nothing_else() -> None:
    below, above = (scene_of(coded_sample(first, 8, 60, 60, seed=first)) for first in (0, 40))
    rng = np.random.default_rng(0)
    pasted = paste(below, above, rng, spec=AugmentSpec())
    counts, old = pixel_counts(pasted), pixel_counts(below)
    covered = pixel_counts(pasted)[len(old) :].sum()
    under = torch.from_numpy(np.isin(pasted.ids.numpy(), np.arange(len(old) + 1, len(counts) + 1))).any(0) & (below.ids > 0).any(0)
    assert 0 < covered <= pixel_counts(above).sum()
    assert counts[: len(old)].sum() == old.sum() - int(under.sum())
    assert_agrees(to_sample(pasted))


def test_paste_onto_an_image_without_instances() -> None:
    other = coded_sample(0, 8, 48, 64, seed=3)
    pasted = to_sample(paste(scene_of(BLANK), scene_of(other), np.random.default_rng(1), spec=AugmentSpec()))
    assert len(target_of(pasted)) > 0
    assert_agrees(pasted)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mosaic": 1.5}, "mosaic=1.5"),
        ({"flip_vertical": -0.1}, "flip_vertical=-0.1"),
        ({"crop": 4}, "4 pixels"),
        ({"scale_range": (2.0, 1.0)}, "scale_range"),
        ({"mosaic": 0.5}, "mosaic_size or crop"),
        ({"short_sides": (300, 0)}, "0 pixels"),
    ],
)
def test_a_wrong_spec_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        AugmentSpec(**changes)  # type: ignore[arg-type]


def test_long_thin_images_are_trained_on_at_the_size_of_prediction() -> None:
    thin = replace(BLANK, image=torch.zeros(3, 8, 400, dtype=torch.uint8), target=instances(torch.zeros(0, 8, 400, dtype=torch.bool)))
    assert build_train_transform(resolve_augmentation("none", 32), 0)(thin).image.shape == (3, 3, 128)


def test_presets_by_name() -> None:
    assert resolve_augmentation("paper") is PAPER
    assert resolve_augmentation("paper", 320) is PAPER
    assert resolve_augmentation("none") is NONE
    scaled, cut = resolve_augmentation("none", 320), resolve_augmentation("strong", 320)
    assert (scaled.short_sides, scaled.crop) == ((320,), None)
    assert (cut.short_sides, cut.crop) == ((320,), 320)
    as_it_is = resolve_augmentation("strong", 0)
    assert (as_it_is.short_sides, as_it_is.scale, as_it_is.crop) == ((), 1.0, 256)
    with pytest.raises(UserError, match=r"'strange'.*none, paper, strong"):
        resolve_augmentation("strange")
    assert set(PRESETS) == {"none", "paper", "strong", "two_stage"}
