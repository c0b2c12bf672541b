"""Picking, cutting and merging of patches against slow loops in float64, on images of all sizes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stratum_models.two_stage.patches import Grid, crop, merge
from stratum_models.two_stage.pick import choose, choose_for_training, how_many, patch_scores, ranked, uncertainty
from stratum_models.two_stage.scaling import at_size, shrunk, shrunk_mask

GRIDS = st.builds(Grid, height=st.integers(1, 50), width=st.integers(1, 50), side=st.integers(1, 24), margin=st.integers(0, 12))


def some_cells(grid: Grid, seed: int, share: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(len(grid), generator=generator)[: math.ceil(share * len(grid))]


def of_pixels(image: Tensor) -> Tensor:
    """A function of the pixel values: ``[..., 3, H, W]`` to ``[..., 2, H, W]``, with no rounding that depends on the layout."""
    red, green, _ = image.unbind(-3)
    return torch.stack([red * 2 - 1, green * 0.5], -3)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def cell_of(grid: Grid, row: int, column: int) -> int:
    return row // grid.side * grid.columns + column // grid.side


@settings(max_examples=150, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 99), share=st.sampled_from([0.0, 0.3, 1.0]))
def test_hard_merge_is_the_function_on_picked_pixels_and_nothing_elsewhere(grid: Grid, seed: int, share: float) -> None:
    image, before = drawn(3, grid.height, grid.width, seed=seed), drawn(2, grid.height, grid.width, seed=seed + 1)
    cells = some_cells(grid, seed, share)
    kept = before.clone()
    merged = merge(before, of_pixels(crop(image, grid, cells)), grid, cells)
    picked = torch.tensor([[cell_of(grid, r, c) in cells.tolist() for c in range(grid.width)] for r in range(grid.height)])
    assert torch.equal(merged, torch.where(picked, of_pixels(image), before))
    assert torch.equal(before, kept)


@settings(max_examples=40, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 99), share=st.sampled_from([0.0, 0.3, 1.0]))
def test_blended_merge_is_the_function_on_picked_pixels_and_nothing_beyond_the_margin(grid: Grid, seed: int, share: float) -> None:
    image, before = drawn(3, grid.height, grid.width, seed=seed), drawn(2, grid.height, grid.width, seed=seed + 1)
    cells = some_cells(grid, seed, share)
    merged = merge(before, of_pixels(crop(image, grid, cells)), grid, cells, blend=True)
    weight = torch.tensor([[most(grid, cells, r, c) for c in range(grid.width)] for r in range(grid.height)], dtype=torch.float64)
    expected = weight * of_pixels(image).double() + (1 - weight) * before.double()
    torch.testing.assert_close(merged, expected.float(), atol=1e-5, rtol=1e-5)
    assert torch.equal(merged[:, weight == 0], before[:, weight == 0])


def ramp(grid: Grid, cell: int, row: int, column: int) -> float:
    """How much a pixel counts in the window of a cell: 1 inside, and linearly less to 0 at ``margin + 1`` pixels from it."""
    weight = 1.0
    for position, start, length in (
        (row, cell // grid.columns * grid.side, grid.height),
        (column, cell % grid.columns * grid.side, grid.width),
    ):
        last = min(start + grid.side, length) - 1
        weight *= max(0.0, 1 - max(start - position, position - last, 0) / (grid.margin + 1))
    return weight


def most(grid: Grid, cells: Tensor, row: int, column: int) -> float:
    return max((ramp(grid, cell, row, column) for cell in cells.tolist()), default=0.0)


@settings(max_examples=40, deadline=None)
@given(grid=GRIDS, seed=st.integers(0, 99))
def test_overlapping_windows_are_averaged_by_their_weights(grid: Grid, seed: int) -> None:
    cells = some_cells(grid, seed, 0.5)
    before, refined = drawn(2, grid.height, grid.width), drawn(len(cells), 2, grid.window, grid.window, seed=seed)
    merged = merge(before, refined, grid, cells, blend=True)
    corners = list(zip(*(c.tolist() for c in grid.window_corners(cells)), strict=True))
    for row in range(0, grid.height, 3):
        for column in range(0, grid.width, 3):
            weights = [ramp(grid, cell, row, column) for cell in cells.tolist()]
            values = [
                refined[i, :, row - top, column - left].double() if weight else torch.zeros(2, dtype=torch.float64)
                for i, (weight, (top, left)) in enumerate(zip(weights, corners, strict=True))
            ]
            mean = sum(w * v for w, v in zip(weights, values, strict=True)) / max(sum(weights), 1e-30)
            expected = max(weights) * mean + (1 - max(weights)) * before[:, row, column].double()
            torch.testing.assert_close(merged[:, row, column].double(), expected, atol=1e-5, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(grid=GRIDS, fill=st.sampled_from([None, 255.0]))
def test_windows_hold_their_cell_and_as_much_around_it_as_there_is(grid: Grid, fill: float | None) -> None:
    image = torch.arange(grid.height * grid.width, dtype=torch.float32).view(1, grid.height, grid.width)
    cells = torch.arange(len(grid))
    cut = crop(image, grid, cells, fill)
    assert cut.shape == (len(grid), 1, grid.window, grid.window)
    for cell in range(0, len(grid), 5):
        top = min(max(cell // grid.columns * grid.side - grid.margin, 0), max(grid.height - grid.window, 0))
        left = min(max(cell % grid.columns * grid.side - grid.margin, 0), max(grid.width - grid.window, 0))
        for i in range(0, grid.window, 4):
            for j in range(0, grid.window, 4):
                inside = top + i < grid.height and left + j < grid.width
                row, column = min(top + i, grid.height - 1), min(left + j, grid.width - 1)
                expected = image[0, row, column].item() if inside or fill is None else fill
                assert cut[cell, 0, i, j].item() == expected


def slow_uncertainty(pixel: list[float], measure: str) -> float:
    ordered = sorted(pixel, reverse=True)
    if measure == "entropy":
        return -sum(p * math.log(p) for p in pixel if p) / math.log(len(pixel))
    if measure == "margin":
        return 1 - (ordered[0] - ordered[1])
    return max(1 - 2 * abs(p - 0.5) for p in pixel)


@pytest.mark.parametrize("measure", ["entropy", "margin", "distance"])
@pytest.mark.parametrize("reduction", ["mean", "max"])
@settings(max_examples=15, deadline=None)
@given(grid=GRIDS, classes=st.integers(2, 5), seed=st.integers(0, 99), scale=st.sampled_from([0.1, 3.0, 200.0]))
def test_scores_are_those_of_slow_loops(measure, reduction, grid: Grid, classes: int, seed: int, scale: float) -> None:  # type: ignore[no-untyped-def]
    probabilities = (drawn(classes, grid.height, grid.width, seed=seed) * scale).softmax(0)
    cells: list[list[float]] = [[] for _ in range(len(grid))]
    for row in range(grid.height):
        for column in range(grid.width):
            cells[cell_of(grid, row, column)].append(slow_uncertainty(probabilities[:, row, column].double().tolist(), measure))
    expected = [max(cell) if reduction == "max" else sum(cell) / len(cell) for cell in cells]
    found = patch_scores(uncertainty(probabilities, measure), grid, reduction)
    torch.testing.assert_close(found, torch.tensor(expected), atol=2e-6, rtol=1e-5)


def test_measures_are_0_where_a_class_is_certain_and_1_where_nothing_is_known() -> None:
    certain, unknown = torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1), torch.full((3, 1, 1), 1 / 3)
    for measure, most_unsure in (("entropy", 1.0), ("margin", 1.0), ("distance", 2 / 3)):
        assert uncertainty(certain, measure).item() == 0.0  # type: ignore[arg-type]
        assert uncertainty(unknown, measure).item() == pytest.approx(most_unsure)  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(
    levels=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    rule=st.sampled_from(["count", "share", "threshold"]),
    count=st.integers(0, 50),
    share=st.floats(0, 1),
    threshold=st.floats(0, 1, width=32, allow_subnormal=False),  # what can be told from a float32 score
    cap=st.none() | st.integers(0, 20),
)
def test_as_many_as_asked_are_chosen_and_ties_go_by_position(levels, rule, count, share, threshold, cap) -> None:  # type: ignore[no-untyped-def]
    scores = torch.tensor(levels) / 4
    number = how_many(scores, rule, count=count, share=share, threshold=threshold, cap=cap)
    wanted = {"count": count, "share": int(share * len(levels) + 0.5), "threshold": sum(1 - level / 4 < threshold for level in levels)}[
        rule
    ]
    assert number == min(wanted, len(levels), 99 if cap is None else cap)
    order = sorted(range(len(levels)), key=lambda i: (-levels[i], i))
    assert ranked(scores).tolist() == order
    assert choose(scores, number).tolist() == sorted(order[:number])


@settings(max_examples=80, deadline=None)
@given(
    size=st.integers(1, 40), number=st.integers(1, 50), random=st.sampled_from([0.0, 0.25, 0.5]), easy=st.sampled_from([0.0, 0.125, 0.5])
)
def test_lessons_are_hard_easy_and_random(size: int, number: int, random: float, easy: float) -> None:
    scores = drawn(size, seed=size)
    order = scores.sort(descending=True).indices.tolist()
    found = choose_for_training(scores, number, random=random, easy=easy).tolist()
    number = min(number, size)
    surest = round(number * easy)
    hard = max(number - surest - round(number * random), 0)
    assert found == sorted(set(found))
    assert len(found) == number
    assert {*order[:hard], *order[size - surest :]} <= set(found)


def test_random_lessons_differ_and_repeat_with_the_seed() -> None:
    lessons = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        lessons.append(choose_for_training(drawn(200), 20, random=0.5, easy=0.0).tolist())
    assert lessons[0] == lessons[1] != lessons[2]


@pytest.mark.parametrize(("size", "scale", "small"), [((64, 48), 4.0, (16, 12)), ((7, 50), 3.0, (2, 17)), ((3, 2), 8.0, (1, 1))])
def test_small_images_stand_for_all_of_the_large_one(size: tuple[int, int], scale: float, small: tuple[int, int]) -> None:
    ramp = torch.linspace(0, 1, size[1]).expand(3, *size)
    found = shrunk(ramp, scale)
    assert found.shape == (3, *small)
    assert found.mean().item() == pytest.approx(0.5, abs=1e-5)
    assert at_size(found, *size).shape == ramp.shape
    mask = torch.arange(size[0] * size[1]).view(size) % 5
    rows, columns = ([int((i + 0.5) * big / little) for i in range(little)] for big, little in zip(size, small, strict=True))
    assert torch.equal(shrunk_mask(mask, scale), mask[rows][:, columns])
