"""LosNet's parts against slow references in float64 that are written from the formulas."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from torchvision.ops import masks_to_boxes

from stratum_models.errors import UserError
from stratum_models.interface import InstanceTarget
from stratum_models.losnet.backbone import build_backbone
from stratum_models.losnet.canvas import around_masks, make_canvas
from stratum_models.losnet.config import LosNetConfig
from stratum_models.losnet.dynamic_mask import NUM_PARAMS, dynamic_masks, windowed_masks
from stratum_models.losnet.fpn import FeaturePyramid
from stratum_models.losnet.head import DetectionHead
from stratum_models.losnet.losses import DetectionTargets, detection_losses, dice_loss, sample_positives
from stratum_models.losnet.mask_branch import MaskBranch
from stratum_models.losnet.model import half_size_masks
from stratum_models.losnet.postprocess import final_scores, select
from stratum_models.losnet.targets import assign, box_distances, centerness, decode_boxes, make_locations

STRIDES = (8, 16, 32)
LIMITS = (64.0, 128.0)


def instances(boxes: list[list[float]], crowd: list[bool] | None = None, size: int = 64) -> InstanceTarget:
    masks = torch.zeros(len(boxes), size, size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[int(y0) : int(y1), int(x0) : int(x1)] = True
    return InstanceTarget(
        boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        labels=torch.arange(len(boxes)) % 2,
        masks=masks,
        crowd=torch.tensor(crowd or [False] * len(boxes), dtype=torch.bool),
    )


box = st.tuples(st.integers(0, 100), st.integers(0, 100), st.integers(1, 200), st.integers(1, 200)).map(
    lambda b: [float(b[0]), float(b[1]), float(b[0] + b[2]), float(b[1] + b[3])]
)


@given(box, st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_centerness_is_equation_1(b: list[float], u: float, v: float) -> None:
    x, y = b[0] + u * (b[2] - b[0]), b[1] + v * (b[3] - b[1])
    left, right, top, bottom = x - b[0], b[2] - x, y - b[1], b[3] - y
    expected = math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))
    found = centerness(box_distances(torch.tensor([x, y], dtype=torch.float64), torch.tensor(b, dtype=torch.float64)))
    assert found.item() == pytest.approx(expected, abs=1e-12)


@given(box, st.floats(-50, 250), st.floats(-50, 250))
def test_distances_and_boxes_are_inverse(b: list[float], x: float, y: float) -> None:
    point, sides = torch.tensor([x, y], dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    assert torch.allclose(decode_boxes(point, box_distances(point, sides)), sides, atol=1e-9)


def reference_assignment(target: InstanceTarget, radius: float, size: int) -> tuple[list[int], list[bool]]:
    """Location by location, instance by instance."""
    matched, ignored = [], []
    for stride, low, high in zip(STRIDES, (0.0, *LIMITS), (*LIMITS, math.inf), strict=True):
        for row in range(size // stride):
            for column in range(size // stride):
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                best, best_area, in_crowd = -1, math.inf, False
                for i, (x0, y0, x1, y1) in enumerate(target.boxes.double().tolist()):
                    sides = (x - x0, y - y0, x1 - x, y1 - y)
                    if min(sides) <= 0:
                        continue
                    if target.crowd[i]:
                        in_crowd = True
                        continue
                    offset = max(abs(x - (x0 + x1) / 2), abs(y - (y0 + y1) / 2))
                    central = radius == 0 or offset < radius * stride
                    area = (x1 - x0) * (y1 - y0)
                    if central and low <= max(sides) < high and area < best_area:
                        best, best_area = i, area
                matched.append(best)
                ignored.append(best < 0 and in_crowd)
    return matched, ignored


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(box, st.booleans()), max_size=6), st.sampled_from([0.0, 1.5]))
def test_assignment_agrees_with_loops(boxes: list[tuple[list[float], bool]], radius: float) -> None:
    target = instances([b for b, _ in boxes], [c for _, c in boxes], size=320)
    sizes = [(320 // s, 320 // s) for s in STRIDES]
    found = assign(make_locations(sizes, STRIDES, LIMITS, torch.device("cpu")), target, radius)
    matched, ignored = reference_assignment(target, radius, 320)
    areas = (target.boxes[:, 2] - target.boxes[:, 0]) * (target.boxes[:, 3] - target.boxes[:, 1])
    for ours, theirs in zip(found.matched.tolist(), matched, strict=True):
        assert (ours < 0) == (theirs < 0)
        assert ours == theirs or areas[ours] == areas[theirs]  # equal areas: either is the smallest
    assert found.ignored.tolist() == ignored


def reference_mask(features: np.ndarray, params: np.ndarray, location: tuple[float, float], scale: float) -> np.ndarray:
    """The dynamic head of one instance, pixel by pixel."""
    w1, w2, w3 = params[:80].reshape(8, 10), params[80:144].reshape(8, 8), params[144:152].reshape(1, 8)
    b1, b2, b3 = params[152:160], params[160:168], params[168:169]
    height, width = features.shape[1:]
    out = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            dx = (location[0] - (column + 0.5) * 8) / scale
            dy = (location[1] - (row + 0.5) * 8) / scale
            x = np.concatenate([[dx, dy], features[:, row, column]])
            x = np.maximum(w1 @ x + b1, 0)
            x = np.maximum(w2 @ x + b2, 0)
            out[row, column] = (w3 @ x + b3)[0]
    return out


def test_dynamic_masks_agree_with_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    assert NUM_PARAMS == 169
    features = torch.randn(2, 8, 5, 7, dtype=torch.float64, generator=generator)
    params = torch.randn(4, 169, dtype=torch.float64, generator=generator)
    image, where = torch.tensor([0, 1, 1, 1]), torch.tensor([[4.0, 12.0], [20.0, 4.0], [36.0, 36.0], [52.0, 20.0]])
    scales = torch.tensor([64.0, 128.0, 64.0, 256.0])
    found = dynamic_masks(features, image, params, where, scales, 8)
    for i in range(4):
        expected = reference_mask(features[image[i]].numpy(), params[i].numpy(), tuple(where[i].tolist()), scales[i].item())
        np.testing.assert_allclose(found[i].numpy(), expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=30, deadline=None)
@given(st.data(), st.integers(3, 40), st.integers(3, 40), st.integers(1, 12))
def test_masks_in_windows_are_those_of_the_whole_image(data: st.DataObject, height: int, width: int, count: int) -> None:
    generator = torch.Generator().manual_seed(height * 41 + width)
    features = torch.randn(2, 8, height, width, dtype=torch.float64, generator=generator)
    params = torch.randn(count, 169, dtype=torch.float64, generator=generator)
    image = torch.arange(count) * 2 // count  # ascending
    where = 8 * torch.rand(count, 2, dtype=torch.float64, generator=generator) * torch.tensor([width, height])
    scales = torch.full((count,), 64.0)
    sides = st.tuples(st.integers(0, height - 1), st.integers(0, width - 1), st.integers(1, height), st.integers(1, width))
    corners = data.draw(st.lists(sides, min_size=count, max_size=count))
    windows = torch.tensor([(y, x, min(y + h, height), min(x + w, width)) for y, x, h, w in corners])
    whole = dynamic_masks(features, image, params, where, scales, 8)
    found = windowed_masks(features, image, params, where, scales, 8, windows)
    for mask, part, (top, left, bottom, right) in zip(whole, found, windows.tolist(), strict=True):
        assert torch.allclose(part, mask[top:bottom, left:right], atol=1e-9)


def test_sparse_controller_equals_the_dense_convolution() -> None:
    torch.manual_seed(0)
    head = DetectionHead(16, 2, STRIDES, convs=1, norm="bn", num_params=NUM_PARAMS).double().eval()
    levels = [torch.randn(2, 16, 64 // s, 96 // s, dtype=torch.float64) for s in STRIDES]
    output = head(levels)
    dense = torch.cat([head.controller(x).flatten(2).transpose(1, 2) for x in output.box_features], 1)
    assert torch.equal(head.control_everywhere(output), dense)
    image = torch.arange(2).repeat_interleave(dense.shape[1])
    where = torch.arange(dense.shape[1]).repeat(2)
    shuffled = torch.randperm(len(image))
    found = head.control(output, image[shuffled], where[shuffled])
    assert torch.allclose(found, dense[image[shuffled], where[shuffled]], atol=1e-12)


def giou(a: list[float], b: list[float]) -> float:
    inter = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return inter / union - (hull - union) / hull


def test_detection_losses_agree_with_the_formulas() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    centers = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    predicted = torch.rand(2, 6, 4, generator=generator, dtype=torch.float64) * 40 + 5
    wanted = torch.rand(2, 6, 4, generator=generator, dtype=torch.float64) * 40 + 5
    labels = torch.tensor([[-1, 0, 2, -1, 1, -1], [-1, -1, -1, 0, -1, -1]])
    ignored = torch.tensor([[True, False, False, False, False, False], [False] * 6])
    points = torch.rand(6, 2, generator=generator, dtype=torch.float64) * 100
    strides = torch.tensor([8.0, 8, 8, 16, 16, 32], dtype=torch.float64)
    found = detection_losses(
        logits, predicted, centers, points, strides, DetectionTargets(labels=labels, ignored=ignored, distances=wanted)
    )
    focal = reg = bce = 0.0
    positives = 0
    for b in range(2):
        for place in range(6):
            for k in range(3):
                p = 1 / (1 + math.exp(-logits[b, place, k].item()))
                is_class = labels[b, place].item() == k
                if not ignored[b, place]:
                    focal += -0.25 * (1 - p) ** 2 * math.log(p) if is_class else -0.75 * p**2 * math.log(1 - p)
            if labels[b, place] >= 0:
                positives += 1
                x, y = points[place].tolist()
                boxes = []
                for d in (predicted[b, place].tolist(), wanted[b, place].tolist()):
                    boxes.append([x - d[0], y - d[1], x + d[2], y + d[3]])
                reg += 1 - giou(boxes[0], boxes[1])
                left, top, right, bottom = wanted[b, place].tolist()
                target = math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))
                o = 1 / (1 + math.exp(-centers[b, place].item()))
                bce += -target * math.log(o) - (1 - target) * math.log(1 - o)
    assert found["class"].item() == pytest.approx(focal / positives, rel=1e-9)
    assert found["box"].item() == pytest.approx(reg / positives, rel=1e-7)
    assert found["center"].item() == pytest.approx(bce / positives, rel=1e-9)


def test_losses_without_a_positive_are_finite() -> None:
    targets = DetectionTargets(labels=torch.full((1, 4), -1), ignored=torch.zeros(1, 4, dtype=torch.bool), distances=torch.zeros(1, 4, 4))
    found = detection_losses(
        torch.zeros(1, 4, 1), torch.ones(1, 4, 4), torch.zeros(1, 4), torch.zeros(4, 2), torch.full((4,), 8.0), targets
    )
    assert found["class"].item() == pytest.approx(4 * 0.75 * 0.25 * math.log(2), rel=1e-6)
    assert found["box"].item() == found["center"].item() == 0


def test_dice_agrees_with_the_formula() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    wanted = (torch.rand(3, 4, 5, generator=generator) > 0.5).double()
    for i, found in enumerate(dice_loss(logits, wanted).tolist()):
        p = 1 / (1 + np.exp(-logits[i].double().numpy()))
        g = wanted[i].double().numpy()
        assert found == pytest.approx(1 - 2 * (p * g).sum() / ((p**2).sum() + (g**2).sum() + 1e-5), rel=1e-12)


def test_score_is_equation_2() -> None:
    found = final_scores(torch.tensor([[0.0, 2.0]]), torch.tensor([1.0]))
    p, o = [1 / (1 + math.exp(-x)) for x in (0.0, 2.0)], 1 / (1 + math.exp(-1.0))
    assert found[0].tolist() == pytest.approx([math.sqrt(x * o) for x in p], rel=1e-6)


def test_every_instance_gets_its_share_of_mask_proposals() -> None:
    labels = torch.tensor([0, 0, 0, 0, 0, -1, 1, 1, 0])
    matched = torch.tensor([0, 0, 0, 0, 0, -1, 1, 1, 2])
    quality = torch.tensor([0.1, 0.9, 0.3, 0.8, 0.2, 1.0, 0.05, 0.06, 0.01])
    assert sorted(sample_positives(labels, matched, quality, 3).tolist()) == [1, 7, 8]
    assert sorted(sample_positives(labels, matched, quality, 5).tolist()) == [1, 3, 6, 7, 8]
    assert len(sample_positives(labels, matched, quality, 100)) == 8


def test_half_size_masks_are_block_means() -> None:
    masks = torch.rand(2, 6, 8, generator=torch.Generator().manual_seed(3)) > 0.5
    found = half_size_masks(masks, (8, 8))
    for i in range(2):
        for row in range(3):
            for column in range(4):
                block = masks[i, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                assert found[i, row, column].item() == block.float().mean().item()
        assert found[i, 3].sum() == 0
    assert half_size_masks(masks[:0], (8, 8)).shape == (0, 4, 4)


def test_selection_keeps_the_best_outside_the_padding() -> None:
    locations = make_locations([(4, 4), (2, 2), (1, 1)], STRIDES, LIMITS, torch.device("cpu"))
    scores = torch.zeros(21, 1)
    scores[5], scores[6], scores[10], scores[3] = 0.9, 0.8, 0.5, 0.95  # 3 lies in the padding: x = 28
    distances = torch.full((21, 4), 4.0)
    distances[6] = torch.tensor([12.0, 4.0, -4.0, 4.0])  # the same box as location 5
    found = select(scores, distances, locations, (32, 24), threshold=0.1, nms=0.5, proposals=100, limit=10)
    assert found.location.tolist() == [5, 10]
    assert found.boxes.tolist() == [[8.0, 8.0, 16.0, 16.0], [16.0, 16.0, 24.0, 24.0]]
    only = select(scores, distances, locations, (32, 24), threshold=0.1, nms=0.5, proposals=1, limit=10)
    assert only.location.tolist() == [5]


@settings(max_examples=20, deadline=None)
@given(st.integers(20, 70), st.integers(20, 70))
def test_pasted_masks_equal_interpolation_of_everything(height: int, width: int) -> None:
    logits = torch.randn(1, 1, 9, 9, generator=torch.Generator().manual_seed(height * 71 + width))
    whole = torch.tensor([[0.0, 0.0, width, height]])
    canvas = make_canvas(whole, (9, 9), (9.0, 9.0), (height, width))
    assert canvas.windows.tolist() == [[0, 0, 9, 9]]
    found = canvas.paint(logits[0])
    expected = torch.nn.functional.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)[0]
    differing = (found != (expected > 0)) & (expected.abs() > 1e-4)
    assert not differing.any()


@settings(max_examples=40, deadline=None)
@given(st.integers(20, 70), st.integers(20, 70), st.floats(5, 9), st.floats(-30, 90), st.floats(-30, 90), st.floats(0.5, 60))
def test_a_mask_near_its_box_is_that_part_of_the_whole(
    height: int, width: int, visible: float, left: float, top: float, side: float
) -> None:
    logits = torch.randn(9, 9, generator=torch.Generator().manual_seed(height * 71 + width))
    box = torch.tensor([[left, top, left + side, top + side]]).clamp(min=0).minimum(torch.tensor([width, height] * 2))
    canvas = make_canvas(box, (9, 9), (visible, visible), (height, width))
    ((y0, x0, y1, x1),) = canvas.windows.tolist()
    assert 0 <= y0 < y1 <= 9
    assert 0 <= x0 < x1 <= 9
    found = canvas.paint([logits[y0:y1, x0:x1]])[0].numpy()
    rows, columns = ((np.arange(n) + 0.5) * visible / n - 0.5 for n in (height, width))
    expected = map_coordinates(logits.numpy(), np.meshgrid(rows, columns, indexing="ij"), order=1, mode="nearest")
    xa, ya, xb, yb = canvas.frames[0].tolist()
    inside = np.zeros((height, width), dtype=bool)
    inside[ya : max(yb, ya), xa : max(xb, xa)] = True
    assert not (found & ~inside).any()
    assert not ((found != (expected > 0)) & inside & (np.abs(expected) > 1e-4)).any()


def test_masks_stay_near_their_boxes() -> None:
    canvas = make_canvas(torch.tensor([[20.0, 20.0, 40.0, 30.0]]), (8, 8), (8.0, 8.0), (64, 64))
    assert canvas.windows.tolist() == [[1, 1, 5, 6]]  # pixels 19 to 30 lie between the centres of cells 1 and 4, 18 to 41 of 1 and 5
    found = canvas.paint([torch.ones(4, 5)])
    ys, xs = found[0].nonzero(as_tuple=True)
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (18, 41, 19, 30)


def test_tight_boxes_hold_their_masks() -> None:
    masks = torch.zeros(2, 20, 30, dtype=torch.bool)
    masks[0, 3:9, 11:14] = True
    given = torch.tensor([[0.0, 0.0, 30.0, 20.0], [1.0, 2.0, 3.0, 4.0]])
    assert around_masks(masks, given).tolist() == [[11.0, 3.0, 14.0, 9.0], [1.0, 2.0, 3.0, 4.0]]
    assert around_masks(masks[:0], given[:0]).shape == (0, 4)
    scattered = torch.rand(16, 20, 30, generator=torch.Generator().manual_seed(0)) > 0.99
    scattered[:, 7, 5] = True
    inclusive = masks_to_boxes(scattered)
    assert torch.equal(around_masks(scattered, inclusive), inclusive + torch.tensor([0, 0, 1, 1]))


def test_pyramid_without_its_convolutions_is_lateral_sums() -> None:
    torch.manual_seed(0)
    pyramid = FeaturePyramid((3, 5, 7), 8, convs=False, extra_levels=False)
    c3, c4, c5 = torch.randn(1, 3, 8, 8), torch.randn(1, 5, 4, 4), torch.randn(1, 7, 2, 2)
    p3, p4, p5 = pyramid([c3, c4, c5])
    lateral = [conv(x) for conv, x in zip(pyramid.lateral, (c3, c4, c5), strict=True)]
    up = lambda x: x.repeat_interleave(2, -1).repeat_interleave(2, -2)  # noqa: E731
    assert torch.allclose(p5, lateral[2])
    assert torch.allclose(p4, lateral[1] + up(lateral[2]), atol=1e-6)
    assert torch.allclose(p3, lateral[0] + up(lateral[1] + up(lateral[2])), atol=1e-6)
    assert sum(p.numel() for p in pyramid.parameters()) == (3 + 5 + 7) * 8 + 3 * 8


def test_mask_branch_ignores_the_extra_levels() -> None:
    torch.manual_seed(0)
    branch = MaskBranch(8, 16, convs=1, code=8).eval()
    levels = [torch.randn(1, 8, 32 // s, 32 // s) for s in (1, 2, 4, 8, 16)]
    assert torch.equal(branch(levels), branch(levels[:3]))


@pytest.mark.parametrize(
    ("name", "channels"),
    [("mobilenetv3_small_100", (24, 48, 576)), ("shufflenet_v2_x1_0", (116, 232, 464)), ("regnetx_002", (56, 152, 368))],
)
def test_backbones_give_three_levels(name: str, channels: tuple[int, ...]) -> None:
    backbone = build_backbone(name).eval()
    assert tuple(backbone.channels) == channels
    features = backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(x.shape[1:]) for x in features] == [(c, 64 // s, 96 // s) for c, s in zip(channels, STRIDES, strict=True)]


OF_ONE_SIZE = ("swin_tiny_patch4_window7_224", "maxvit_tiny_tf_224")


@pytest.mark.parametrize("name", ["mobilenet_v9_none", "shufflenet_v2_x9_9", "vit_tiny_patch16_224", *OF_ONE_SIZE])
def test_a_backbone_that_does_not_serve_is_named(name: str) -> None:
    with pytest.raises(UserError, match=name):
        build_backbone(name)


@pytest.mark.parametrize("field", ["fpn_channels", "head_convs", "mask_channels", "train_proposals", "max_proposals", "max_detections"])
def test_options_are_checked(field: str) -> None:
    with pytest.raises(UserError, match=field):
        LosNetConfig(**{field: 0})
