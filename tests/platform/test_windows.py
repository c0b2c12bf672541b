"""Sliding windows: every pixel is covered, a constant comes out as it went in, and memory does not grow with the image."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from stratum.data.windows import Blender, Window, blended, label_map, weights, windows
from stratum_models.errors import UserError

sides = st.integers(1, 70)


@settings(deadline=None)
@given(sides, sides, st.integers(1, 40), st.integers(0, 39))
def test_windows_cover_every_pixel_and_overlap(height: int, width: int, size: int, overlap: int) -> None:
    assume(overlap < size)
    found = windows(height, width, size, overlap)
    covered = np.zeros((height, width), dtype=int)
    for w in found:
        assert (w.height, w.width) == (min(size, height), min(size, width))
        assert 0 <= w.top <= height - w.height
        assert 0 <= w.left <= width - w.width
        covered[w.top : w.top + w.height, w.left : w.left + w.width] += 1
    assert covered.min() >= 1
    assert len(set(found)) == len(found)
    for starts, length in ((sorted({w.top for w in found}), height), (sorted({w.left for w in found}), width)):
        assert all(b - a <= size - overlap for a, b in pairwise(starts))
        assert len(starts) == 1 or len(starts) == -(-(length - size) // (size - overlap)) + 1  # no more than are needed


@settings(deadline=None, max_examples=50)
@given(sides, sides, st.integers(1, 40), st.integers(0, 39), st.integers(1, 5))
def test_a_constant_comes_out_as_it_went_in(height: int, width: int, size: int, overlap: int, batch: int) -> None:
    assume(overlap < size)
    constant = torch.tensor([0.2, 0.5, 0.3])

    def predict(parts: Sequence[Tensor]) -> list[Tensor]:
        assert len(parts) <= batch
        return [constant[:, None, None].expand(3, *part.shape[-2:]) for part in parts]

    strips = list(blended(torch.zeros(3, height, width), predict, classes=3, size=size, overlap=overlap, batch=batch))
    assert [top for top, _ in strips] == np.cumsum([0, *[s.shape[1] for _, s in strips[:-1]]]).tolist()
    assert max(strip.shape[1] for _, strip in strips) <= size
    whole = torch.cat([strip for _, strip in strips], dim=1)
    torch.testing.assert_close(whole, constant[:, None, None].expand(3, height, width), rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(5, 30), st.integers(5, 30), st.integers(2, 12), st.integers(0, 11))
def test_blending_is_the_weighted_mean(seed: int, height: int, width: int, size: int, overlap: int) -> None:
    assume(overlap < size)
    rng = np.random.default_rng(seed)
    places = windows(height, width, size, overlap)
    found = [rng.random((2, w.height, w.width)) for w in places]
    total, share = np.zeros((2, height, width)), np.zeros((height, width))
    for w, values in zip(places, found, strict=True):
        for y in range(w.height):
            for x in range(w.width):
                weight = min(y + 1, w.height - y) * min(x + 1, w.width - x)
                total[:, w.top + y, w.left + x] += weight * values[:, y, x]
                share[w.top + y, w.left + x] += weight
    answers = iter(found)
    strips = blended(torch.zeros(3, height, width), lambda p: [torch.from_numpy(next(answers))], classes=2, size=size, overlap=overlap)
    whole = torch.cat([strip for _, strip in strips], dim=1)
    np.testing.assert_allclose(whole.numpy(), total / share, atol=1e-5)


def test_windows_see_their_part_of_the_image() -> None:
    image = torch.arange(3 * 20 * 30).reshape(3, 20, 30).float()
    bright = image[0] > 300

    def predict(parts: Sequence[Tensor]) -> list[Tensor]:
        return [torch.stack([(p[0] <= 300).float(), (p[0] > 300).float()]) for p in parts]

    labels = label_map(image, predict, classes=2, size=8, overlap=3, batch=4)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.bool(), bright)


def test_weights_are_highest_in_the_middle_and_nowhere_zero() -> None:
    found = weights(5, 8)
    assert found.min() > 0
    assert found.max() == found[2, 3] == found[2, 4]
    assert torch.equal(found, found.flip(0, 1))


def test_memory_is_bounded_by_one_row_of_windows() -> None:
    blender = Blender(4, 50, 16)
    sums = blender._sum.shape
    for top in range(0, 1000, 8):
        for left in (0, 17, 34):
            blender.add(Window(top=top, left=left, height=16, width=16), torch.full((4, 16, 16), 0.25))
        assert blender._sum.shape == sums
        strip = blender.finish(top + 8)
        assert strip.shape == (4, 8, 50)
    assert strip[:, :, 20].max() == 0.25


def test_what_cannot_be_blended() -> None:
    for size, overlap in ((0, 0), (8, 8), (8, -1)):
        with pytest.raises(UserError, match="cannot overlap by"):
            windows(10, 10, size, overlap)
    blender = Blender(2, 10, 8)
    with pytest.raises(ValueError, match="for 2 classes"):
        blender.add(Window(top=0, left=0, height=8, width=8), torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="outside the rows"):
        blender.add(Window(top=1, left=0, height=8, width=8), torch.zeros(2, 8, 8))
    with pytest.raises(ValueError, match="row 9 lies outside"):
        blender.finish(9)
