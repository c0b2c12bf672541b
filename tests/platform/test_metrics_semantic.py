"""Figures of class masks against slow loops, and what merging, repeating and ignoring do."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from stratum.metrics.boundary import boundary, boundary_counts, near
from stratum.metrics.semantic import SemanticEvaluator
from stratum_models.interface import SemanticPrediction, SemanticTarget

NAMES = ("rock", "belt", "dust")


def probabilities(labels: np.ndarray, classes: int) -> SemanticPrediction:
    scores = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), classes).permute(2, 0, 1).float()
    return SemanticPrediction(probabilities=(scores + 0.1) / (1 + 0.1 * classes))


def evaluated(pairs: list[tuple[np.ndarray, np.ndarray]], names: tuple[str, ...] = NAMES, **more: Any) -> SemanticEvaluator:
    evaluator = SemanticEvaluator(names, **more)
    for i, (predicted, labelled) in enumerate(pairs):
        evaluator.update([probabilities(predicted, len(names))], [SemanticTarget(mask=torch.from_numpy(labelled).long())], [f"{i}.png"])
    return evaluator


def random_pairs(seed: int, count: int = 3, classes: int = 3, side: tuple[int, int] = (11, 14)) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        labelled = rng.integers(0, classes, side)
        predicted = np.where(rng.random(side) < 0.6, labelled, rng.integers(0, classes, side))
        pairs.append((predicted, np.where(rng.random(side) < 0.1, 255, labelled)))
    return pairs


def slow_figures(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int) -> dict[str, float]:
    """Eqs. 3 and 4 written out, pixel by pixel."""
    p = [[0] * classes for _ in range(classes)]
    for predicted, labelled in pairs:
        for found, true in zip(predicted.ravel().tolist(), labelled.ravel().tolist(), strict=True):
            if true != 255:
                p[true][found] += 1
    present = [i for i in range(classes) if sum(p[i])]
    column = [sum(p[j][i] for j in range(classes)) for i in range(classes)]
    iou = {i: p[i][i] / (sum(p[i]) + column[i] - p[i][i]) for i in present}
    dice = {i: 2 * p[i][i] / (sum(p[i]) + column[i]) for i in present}
    foreground = [dice[i] for i in present if i]
    return {
        "val/miou": sum(iou.values()) / len(present),
        "val/mpa": sum(p[i][i] / sum(p[i]) for i in present) / len(present),
        "val/pa": sum(p[i][i] for i in present) / sum(map(sum, p)),
        "val/dice": sum(dice.values()) / len(present),
        "val/foreground_dice": sum(foreground) / len(foreground),
        **{f"val/iou_{NAMES[i]}": iou[i] for i in present},
        **{f"val/dice_{NAMES[i]}": dice[i] for i in present},
    }


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_figures_are_those_of_the_formulas(seed: int) -> None:
    pairs = random_pairs(seed)
    found = evaluated(pairs).compute()
    for name, value in slow_figures(pairs, 3).items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


def test_all_images_share_one_matrix() -> None:
    right, wrong = np.zeros((4, 4), dtype=int), np.zeros((2, 2), dtype=int)
    pairs = [(right, np.zeros((4, 4), dtype=int)), (wrong, np.ones((2, 2), dtype=int))]
    found = evaluated(pairs).compute()
    assert found["val/pa"] == pytest.approx(16 / 20)
    assert found["val/iou_rock"] == pytest.approx(16 / 20)  # the mean over images would be 1
    assert found["val/iou_belt"] == 0


def test_an_absent_class_is_left_out_of_the_means_though_it_is_predicted() -> None:
    labelled = np.array([[0, 0, 1, 1]])
    found = evaluated([(np.array([[0, 2, 1, 1]]), labelled)]).compute()
    assert found["val/miou"] == pytest.approx((1 / 2 + 1) / 2)
    assert found["val/mpa"] == pytest.approx((1 / 2 + 1) / 2)
    assert math.isnan(found["val/iou_dust"])


def test_perfect_and_empty_sets() -> None:
    labelled = np.array([[0, 0, 1], [2, 2, 1]])
    perfect = evaluated([(labelled, labelled)]).compute()
    assert all(value == 1.0 for value in perfect.values())
    nothing = evaluated([(labelled, np.full((2, 3), 255))]).compute()
    assert all(math.isnan(value) for value in nothing.values())
    assert set(nothing) == set(perfect) == set(SemanticEvaluator(NAMES).compute())


def test_workers_are_merged_and_repeated_images_counted_once() -> None:
    pairs = random_pairs(7, count=5)
    whole = evaluated(pairs).compute()
    first, second = SemanticEvaluator(NAMES), SemanticEvaluator(NAMES)
    for i, (predicted, labelled) in enumerate(pairs):
        for evaluator in (first, second) if i == 2 else (first if i % 2 else second,):
            for _ in range(2):
                target = SemanticTarget(mask=torch.from_numpy(labelled))
                evaluator.update([probabilities(predicted, 3)], [target], [f"{i}.png"])
    first.merge(json.loads(json.dumps(second.state())))
    assert first.compute() == whole
    assert len(first.state()) == 5
    with pytest.raises(ValueError, match="not of 2 classes"):
        SemanticEvaluator(("a", "b")).merge(first.state())


def test_refined_patches_are_averaged_over_images_where_all_have_some() -> None:
    labelled = np.zeros((4, 4), dtype=int)
    target, plain = SemanticTarget(mask=torch.from_numpy(labelled)), probabilities(labelled, 3)
    evaluator, other = SemanticEvaluator(NAMES), SemanticEvaluator(NAMES)
    evaluator.update([replace(plain, refined=0), replace(plain, refined=3)], [target, target], ["a", "b"])
    other.update([replace(plain, refined=9)], [target], ["b"])
    evaluator.merge(json.loads(json.dumps(other.state())))
    assert evaluator.compute()["val/patches"] == 1.5
    evaluator.update([plain], [target], ["c"])
    assert "val/patches" not in evaluator.compute()


def test_images_without_a_key_are_all_counted() -> None:
    evaluator = SemanticEvaluator(NAMES)
    mask = np.zeros((2, 2), dtype=int)
    for _ in range(3):
        evaluator.update([probabilities(mask, 3)], [SemanticTarget(mask=torch.from_numpy(mask))])
    assert evaluator.confusion().sum() == 12


def slow_boundary(mask: np.ndarray, label: int, known: np.ndarray) -> set[tuple[int, int]]:
    height, width = mask.shape
    found = set()
    for y in range(height):
        for x in range(width):
            if mask[y, x] != label or not known[y, x]:
                continue
            for ny, nx in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= ny < height and 0 <= nx < width and known[ny, nx] and mask[ny, nx] != label:
                    found.add((y, x))
    return found


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.0]))
def test_boundary_counts_are_those_of_slow_loops(seed: int, tolerance: float) -> None:
    ((predicted, labelled),) = random_pairs(seed, count=1, side=(9, 8))
    known = labelled != 255
    counts = boundary_counts(predicted, labelled, 3, tolerance)
    for label in range(3):
        found, true = slow_boundary(predicted, label, known), slow_boundary(labelled, label, known)
        close = [[a for a in one if any(math.dist(a, b) <= tolerance for b in other)] for one, other in ((found, true), (true, found))]
        assert counts[label].tolist() == [len(close[0]), len(found), len(close[1]), len(true)]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.floats(0, 5))
def test_near_is_what_the_distance_says(seed: int, tolerance: float) -> None:
    mask = np.random.default_rng(seed).random((13, 9)) < 0.05
    expected = distance_transform_edt(~mask) <= tolerance if mask.any() else np.zeros_like(mask)
    np.testing.assert_array_equal(near(mask, tolerance), expected)


def test_a_shifted_edge_is_forgiven_within_the_tolerance() -> None:
    labelled = np.zeros((20, 20), dtype=int)
    labelled[:, 10:] = 1
    for shift, tolerance, expected in ((2, 2.0, 1.0), (3, 2.0, 0.0), (3, 3.0, 1.0)):
        predicted = np.zeros((20, 20), dtype=int)
        predicted[:, 10 + shift :] = 1
        found = evaluated([(predicted, labelled)], ("rock", "belt"), tolerance=tolerance).compute()["val/boundary_f"]
        assert found == expected


def test_edges_of_the_image_and_of_the_unknown_are_no_boundary() -> None:
    known = np.ones((5, 5), dtype=bool)
    assert not boundary(known, known).any()
    known[:, 2] = False
    region = np.zeros((5, 5), dtype=bool)
    region[:, :2] = True
    assert not boundary(region, known).any()


def test_wrong_input_is_named() -> None:
    evaluator = SemanticEvaluator(NAMES)
    good = probabilities(np.zeros((4, 4), dtype=int), 3)
    with pytest.raises(ValueError, match=r"the prediction of a\.png has 4x4 pixels, 5x4 are wanted"):
        evaluator.update([good], [SemanticTarget(mask=torch.zeros(5, 4, dtype=torch.int64))], ["a.png"])
    with pytest.raises(ValueError, match=r"labels 3\.\.3 of a\.png lie outside the 3 classes"):
        evaluator.update([good], [SemanticTarget(mask=torch.full((4, 4), 3))], ["a.png"])
    with pytest.raises(ValueError, match="below 0"):
        SemanticEvaluator(NAMES, tolerance=-1)
    assert evaluator.state() == []
    assert evaluator.best_score_threshold() == 0.0
