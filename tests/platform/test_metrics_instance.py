import contextlib
import io
import json
import math
import pickle

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchmetrics.detection import MeanAveragePrecision

from stratum.metrics.instance import InstanceEvaluator, match_instances
from stratum.metrics.records import image_record
from stratum_models.interface import InstancePrediction, InstanceTarget

Pair = tuple[InstancePrediction, InstanceTarget]
# pycocotools' decode under numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
KEYS = [f"val/{kind}_{name}" for kind in ("mask", "box") for name in ("ap", "ap50", "ap75")]


def ellipses(boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    centre, radius = (boxes[:, :2] + boxes[:, 2:]) / 2, ((boxes[:, 2:] - boxes[:, :2]) / 2).clamp(min=0.5)
    cx, cy, rx, ry = (v[:, None, None] for v in (*centre.T, *radius.T))
    return ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1


def scene(seed: int, *, targets: int = 9, predictions: int = 25, classes: int = 3, size: tuple[int, int] = (64, 80)) -> Pair:
    """Random ellipses, some of them crowds, and predictions that are shaken copies of them in a random order of score."""
    g = torch.Generator().manual_seed(seed)
    height, width = size
    corner = torch.rand(targets, 2, generator=g) * torch.tensor([width - 16.0, height - 16.0])
    boxes = torch.cat([corner, corner + 6 + torch.rand(targets, 2, generator=g) * 20], dim=1)
    labels = torch.randint(classes, (targets,), generator=g)
    crowd = torch.rand(targets, generator=g) < 0.15
    target = InstanceTarget(boxes=boxes, labels=labels, masks=ellipses(boxes, height, width), crowd=crowd)
    if not targets or not predictions:
        return nothing(size), target
    source = torch.randint(targets, (predictions,), generator=g)
    guess = boxes[source] + torch.randn(predictions, 4, generator=g) * 1.5
    guess = torch.cat([guess[:, :2], torch.maximum(guess[:, 2:], guess[:, :2] + 1)], dim=1)
    changed = torch.rand(predictions, generator=g) < 0.1
    prediction = InstancePrediction(
        boxes=guess,
        labels=torch.where(changed, torch.randint(classes, (predictions,), generator=g), labels[source]),
        scores=torch.rand(predictions, generator=g).sort(descending=True).values,
        masks=ellipses(guess, height, width),
    )
    return prediction, target


def nothing(size: tuple[int, int]) -> InstancePrediction:
    return InstancePrediction(
        boxes=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.int64),
        scores=torch.zeros(0),
        masks=torch.zeros(0, *size, dtype=torch.bool),
    )


def scenes() -> list[Pair]:
    """Images of different sizes, one without labels, one without predictions, one without anything."""
    pairs = [scene(seed, size=(48 + 4 * seed, 90 - 3 * seed)) for seed in range(8)]
    bare = scene(100, predictions=12)[0]
    pairs.append((bare, scene(100, targets=0)[1]))
    pairs.append(scene(101, predictions=0))
    pairs.append(scene(102, targets=0))
    return pairs


def evaluator(pairs: list[Pair], classes: int = 3, keys: list[str] | None = None, **options: int) -> InstanceEvaluator:
    result = InstanceEvaluator(classes, **options)
    result.update([p for p, _ in pairs], [t for _, t in pairs], keys)
    return result


def rle(mask: torch.Tensor) -> dict[str, object]:
    code = coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    return {"size": code["size"], "counts": code["counts"].decode()}


def xywh(box: torch.Tensor) -> list[float]:
    x0, y0, x1, y1 = box.double().tolist()
    return [x0, y0, x1 - x0, y1 - y0]


def pycocotools_answer(pairs: list[Pair], folder, classes: int = 3, limit: int = 300) -> dict[str, float]:
    """What pycocotools says of the same predictions, read from files as its users do."""
    truth: dict[str, list] = {"images": [], "annotations": [], "categories": [{"id": c + 1, "name": str(c)} for c in range(classes)]}
    found: dict[str, list] = {"segm": [], "bbox": []}
    for image_id, (prediction, target) in enumerate(pairs, start=1):
        height, width = target.masks.shape[-2:]
        truth["images"].append({"id": image_id, "height": height, "width": width, "file_name": f"{image_id}.png"})
        for box, label, mask, crowd in zip(target.boxes, target.labels, target.masks, target.crowd, strict=True):
            common = {"image_id": image_id, "category_id": int(label) + 1, "bbox": xywh(box), "area": int(mask.sum())}
            number = len(truth["annotations"]) + 1
            truth["annotations"].append({**common, "id": number, "iscrowd": int(crowd), "segmentation": rle(mask)})
        for box, label, mask, score in zip(prediction.boxes, prediction.labels, prediction.masks, prediction.scores, strict=True):
            common = {"image_id": image_id, "category_id": int(label) + 1, "score": float(score)}
            found["segm"].append({**common, "segmentation": rle(mask)})
            found["bbox"].append({**common, "bbox": xywh(box)})
    (folder / "truth.json").write_text(json.dumps(truth))
    answer = {}
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "truth.json"))
        for kind, name in (("segm", "mask"), ("bbox", "box")):
            (folder / f"{kind}.json").write_text(json.dumps(found[kind]))
            run = COCOeval(coco, coco.loadRes(str(folder / f"{kind}.json")), kind)
            run.params.maxDets = [1, 10, limit]
            run.evaluate()
            run.accumulate()
            precision = run.eval["precision"][:, :, :, 0, 2]  # all areas, the highest number of detections
            for part, chosen in (("ap", precision), ("ap50", precision[0]), ("ap75", precision[5])):
                answer[f"val/{name}_{part}"] = float(chosen[chosen > -1].mean())
    return answer


def slow_ap50(pairs: list[Pair], label: int, threshold: float = 0.5) -> float:
    """AP of one class by its definition, in plain loops and without crowds: sort, match greedily, interpolate at 101 recalls."""
    detections, positives = [], 0
    for image, (prediction, target) in enumerate(pairs):
        positives += sum(1 for other in target.labels if other == label)
        detections += [(float(prediction.scores[i]), image, i) for i in range(len(prediction)) if prediction.labels[i] == label]
    used: set[tuple[int, int]] = set()
    outcomes = []
    for _, image, i in sorted(detections, key=lambda d: -d[0]):
        prediction, target = pairs[image]
        best, best_iou = None, threshold
        for j in range(len(target)):
            if target.labels[j] != label or (image, j) in used:
                continue
            overlap = (prediction.masks[i] & target.masks[j]).sum().double() / (prediction.masks[i] | target.masks[j]).sum().double()
            if overlap >= best_iou:
                best, best_iou = j, float(overlap)
        if best is not None:
            used.add((image, best))
        outcomes.append(best is not None)
    points = []
    for n in range(1, len(outcomes) + 1):
        hits = sum(outcomes[:n])
        points.append((hits / positives, hits / n))
    levels = [step / 100 for step in range(101)]
    return sum(max((p for r, p in points if r >= level - 1e-12), default=0.0) for level in levels) / 101


def test_ap_is_that_of_pycocotools_on_the_same_files(tmp_path) -> None:
    ours, theirs = evaluator(scenes()).compute(), pycocotools_answer(scenes(), tmp_path)
    assert set(ours) == set(KEYS) == set(theirs)
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert 0.05 < ours["val/mask_ap"] < ours["val/mask_ap50"] < 0.95  # the case is neither trivial nor empty


def test_more_than_a_hundred_stones_count(tmp_path) -> None:
    pairs = [scene(seed, targets=90, predictions=200, classes=1, size=(96, 96)) for seed in (1, 2)]
    full = evaluator(pairs, classes=1).compute()
    assert full == pytest.approx(pycocotools_answer(pairs, tmp_path, classes=1), abs=1e-6)
    assert evaluator(pairs, classes=1, max_detections=100).compute()["val/mask_ap50"] < full["val/mask_ap50"]


@pytest.mark.filterwarnings("ignore")  # torchmetrics' own
def test_ap_is_that_of_torchmetrics() -> None:
    pairs = scenes()
    # Its own thresholds are float32: 0.55 becomes 0.5500000119, and a mask that overlaps by 11/20 is missed.
    metric = MeanAveragePrecision(iou_type=("segm", "bbox"), iou_thresholds=np.linspace(0.5, 0.95, 10).tolist())
    metric.update(
        [{"boxes": p.boxes, "scores": p.scores, "labels": p.labels, "masks": p.masks} for p, _ in pairs],
        [{"boxes": t.boxes, "labels": t.labels, "masks": t.masks, "iscrowd": t.crowd.long()} for _, t in pairs],
    )
    theirs = metric.compute()
    names = {"mask": "segm", "box": "bbox"}
    parts = {"ap": "map", "ap50": "map_50", "ap75": "map_75"}
    expected = {f"val/{k}_{p}": float(theirs[f"{names[k]}_{parts[p]}"]) for k in names for p in parts}
    assert evaluator(pairs).compute() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("threshold", [0.5, 0.75])
def test_ap_is_that_of_the_definition(threshold: float) -> None:
    pairs = []
    for seed in range(4):
        prediction, target = scene(seed, targets=5, predictions=9, classes=2)
        crowd = torch.zeros(5, dtype=torch.bool)
        pairs.append((prediction, InstanceTarget(boxes=target.boxes, labels=target.labels, masks=target.masks, crowd=crowd)))
    expected = sum(slow_ap50(pairs, label, threshold) for label in (0, 1)) / 2
    assert evaluator(pairs, classes=2).compute()[f"val/mask_ap{round(100 * threshold)}"] == pytest.approx(expected, abs=1e-9)


def test_a_perfect_answer_is_one() -> None:
    _, target = scene(3, classes=2)
    plain = InstanceTarget(boxes=target.boxes, labels=target.labels, masks=target.masks, crowd=torch.zeros_like(target.crowd))
    same = InstancePrediction(boxes=plain.boxes, labels=plain.labels, masks=plain.masks, scores=torch.linspace(0.9, 0.5, len(plain)))
    assert evaluator([(same, plain)], classes=2).compute() == pytest.approx(dict.fromkeys(KEYS, 1.0), abs=1e-12)


def test_nothing_found_is_zero() -> None:
    pairs = [(nothing((64, 80)), scene(seed)[1]) for seed in range(2)]
    total = evaluator(pairs)
    assert total.compute() == dict.fromkeys(KEYS, 0.0)
    assert (total.operating_point().threshold, total.operating_point().f1) == (0.5, 0.0)
    assert all(curve.average_precision == 0.0 for curve in total.precision_recall())


@pytest.mark.parametrize(
    "pairs", [[], [scene(1, targets=0)], [(scene(1)[0], scene(1, targets=0)[1])]], ids=["no image", "empty", "spurious"]
)
def test_nothing_labelled_has_no_ap(pairs: list[Pair]) -> None:
    total = evaluator(pairs)
    assert all(math.isnan(value) for value in total.compute().values())
    assert total.precision_recall() == []
    assert total.best_score_threshold() == 0.5


def test_only_crowds_labelled_has_no_ap() -> None:
    prediction, target = scene(4)
    crowds = InstanceTarget(boxes=target.boxes, labels=target.labels, masks=target.masks, crowd=torch.ones_like(target.crowd))
    assert math.isnan(evaluator([(prediction, crowds)]).compute()["val/mask_ap"])


def test_a_class_without_labels_does_not_count() -> None:
    pairs = [scene(seed, classes=2) for seed in range(3)]
    assert evaluator(pairs, classes=9).compute() == evaluator(pairs, classes=2).compute()
    assert [curve.label for curve in evaluator(pairs, classes=9).precision_recall()] == [0, 1]


def test_states_travel_as_json_and_pickle_and_padding_counts_once() -> None:
    pairs, keys = scenes(), [f"s3://bucket/{number:02d}.png" for number in range(11)]
    whole = evaluator(pairs, keys=keys)
    workers = [evaluator(pairs[rank::3] + pairs[:1], keys=keys[rank::3] + keys[:1]) for rank in range(3)]  # each shows the first again
    total = InstanceEvaluator(3)
    for worker in reversed(workers):
        sent = worker.state()
        assert json.loads(json.dumps(sent)) == sent
        total.merge(pickle.loads(pickle.dumps(sent)))
    assert len(total) == len(whole) == 11
    assert total.compute() == whole.compute() == evaluator(pairs).compute()
    assert total.operating_point() == whole.operating_point()


def test_equal_scores_give_the_same_figures_in_any_order_of_arrival() -> None:
    pairs = []
    for seed in range(5):
        prediction, target = scene(seed)
        flat = torch.full_like(prediction.scores, 0.5)
        pairs.append((InstancePrediction(boxes=prediction.boxes, labels=prediction.labels, masks=prediction.masks, scores=flat), target))
    keys = list("abcde")
    assert evaluator(pairs, keys=keys).compute() == evaluator(pairs[::-1], keys=keys[::-1]).compute()


def test_figures_follow_new_images() -> None:
    pairs = scenes()
    total = evaluator(pairs[:2])
    first = total.compute()
    total.update([pairs[2][0]], [pairs[2][1]])
    assert total.compute() == evaluator(pairs[:3]).compute() != first


def test_memory_is_that_of_the_codes() -> None:
    pair = scene(1, targets=40, predictions=100, size=(240, 320))
    dense = sum(side.masks.numel() for side in pair)
    assert len(json.dumps(evaluator([pair]).state())) < dense / 100


def test_nothing_is_printed(capsys) -> None:
    total = evaluator(scenes())
    total.compute()
    match_instances(*scene(1))
    out, err = capsys.readouterr()
    assert (out, err) == ("", "")


def test_odd_input_is_refused() -> None:
    prediction, target = scene(1)
    with pytest.raises(ValueError, match=r"outside the 2 classes"):
        evaluator([(prediction, target)], classes=2)
    with pytest.raises(ValueError, match=r"predicted masks are 10x10, the labels of x\.png are 64x80"):
        evaluator([(nothing((10, 10)), target)], keys=["x.png"])
    with pytest.raises(ValueError):
        InstanceEvaluator(3).update([prediction], [])
    with pytest.raises(ValueError, match="at least 1"):
        InstanceEvaluator(0)


def test_curves_hold_what_ap50_is_the_mean_of() -> None:
    total = evaluator(scenes())
    for kind in ("mask", "box"):
        curves = total.precision_recall(kind)
        assert sum(c.average_precision for c in curves) / len(curves) == pytest.approx(total.compute()[f"val/{kind}_ap50"], abs=1e-12)
        for curve in curves:
            assert len(curve.recall) == len(curve.precision) == len(curve.scores) == 101
            assert curve.precision == sorted(curve.precision, reverse=True)
            assert json.loads(json.dumps(curve.precision)) == curve.precision


def cut(prediction: InstancePrediction, threshold: float) -> InstancePrediction:
    kept = prediction.scores >= threshold
    return InstancePrediction(
        boxes=prediction.boxes[kept], scores=prediction.scores[kept], labels=prediction.labels[kept], masks=prediction.masks[kept]
    )


def f1_of(pairs: list[Pair]) -> float:
    """F1 of everything given, one image at a time."""
    hits = wrong = missed = 0
    for prediction, target in pairs:
        found = match_instances(prediction, target)
        hits += sum(index >= 0 for index in found.target_of)
        wrong += sum(index < 0 and not skip for index, skip in zip(found.target_of, found.ignored, strict=True))
        missed += len(found.missed)
    return 2 * hits / (2 * hits + wrong + missed)


def test_no_other_threshold_has_a_higher_f1() -> None:
    pairs = scenes()[:4]
    point = evaluator(pairs).operating_point()
    every = sorted({float(score) for prediction, _ in pairs for score in prediction.scores})
    brute = max(f1_of([(cut(p, threshold), t) for p, t in pairs]) for threshold in every)
    assert point.f1 == pytest.approx(brute, abs=1e-12)
    assert f1_of([(cut(p, point.threshold), t) for p, t in pairs]) == pytest.approx(brute, abs=1e-12)
    assert point.f1 == pytest.approx(2 * point.precision * point.recall / (point.precision + point.recall))
    assert point.threshold not in every


def test_equal_scores_are_kept_together() -> None:
    prediction, target = scene(6, targets=4, predictions=8, classes=1)
    flat = InstancePrediction(boxes=prediction.boxes, labels=prediction.labels, masks=prediction.masks, scores=torch.full((8,), 0.25))
    point = evaluator([(flat, target)], classes=1).operating_point()
    assert point.threshold == 0.25
    assert point.f1 == pytest.approx(f1_of([(flat, target)]))


def test_matches_name_hits_misses_and_ignored() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20.0, 0, 30, 10], [0.0, 20, 40, 40]])
    labels = torch.tensor([0, 0, 0])
    target = InstanceTarget(boxes=boxes, labels=labels, masks=square_masks(boxes), crowd=torch.tensor([False, False, True]))
    guesses = torch.tensor([[50.0, 50, 60, 60], [0.0, 0, 10, 9], [0.0, 0, 10, 10], [5.0, 25, 15, 35], [20.0, 0, 30, 10], [20.0, 0, 30, 10]])
    prediction = InstancePrediction(
        boxes=guesses,
        labels=torch.tensor([0, 0, 0, 0, 1, 0]),
        masks=square_masks(guesses),
        scores=torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5, 0.1]),
    )
    found = match_instances(prediction, target, score_threshold=0.3)
    assert found.target_of == [-1, 0, -1, -1, -1, -1]
    assert found.ignored == [False, False, False, True, False, False]
    assert found.missed == [1]
    assert match_instances(prediction, target).target_of == [-1, 0, -1, -1, -1, 1]
    assert match_instances(prediction, target, iou=0.95).target_of == [-1, -1, 0, -1, -1, 1]
    assert match_instances(prediction, target, score_threshold=2.0).missed == [0, 1]
    assert match_instances(nothing((64, 64)), target).missed == [0, 1]


def square_masks(boxes: torch.Tensor, size: int = 64) -> torch.Tensor:
    masks = torch.zeros(len(boxes), size, size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.long().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def test_masks_are_kept_as_the_codes_of_pycocotools() -> None:
    prediction, target = scene(1)
    record = image_record(prediction, target, None)
    assert record["target"]["masks"] == [rle(mask)["counts"] for mask in target.masks]
    assert record["prediction"]["masks"] == [rle(mask)["counts"] for mask in prediction.masks]
    assert image_record(nothing((64, 80)), target, None)["prediction"]["masks"] == []


def test_ap_of_real_labels_shaken_is_that_of_pycocotools(shared, tmp_path) -> None:
    """Real polygons of the belt: every label is found, moved by some pixels."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(shared / "data" / "ore_belt" / "val.json"))
    pairs = []
    for image_id in coco.getImgIds()[:12]:
        info = coco.loadImgs(image_id)[0]
        marks = [a for a in coco.loadAnns(coco.getAnnIds(image_id)) if a["category_id"] != 1]
        masks = torch.zeros(len(marks), info["height"], info["width"], dtype=torch.bool)
        for mask, mark in zip(masks, marks, strict=True):
            mask |= torch.from_numpy(coco.annToMask(mark)).bool()
        boxes = torch.tensor([m["bbox"] for m in marks], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([m["category_id"] - 2 for m in marks], dtype=torch.int64)
        target = InstanceTarget(boxes=boxes, labels=labels, masks=masks, crowd=torch.zeros(len(marks), dtype=torch.bool))
        scores = torch.rand(len(marks), generator=torch.Generator().manual_seed(image_id))
        moved = InstancePrediction(boxes=boxes + 2, labels=labels, masks=masks.roll((2, 2), (1, 2)), scores=scores)
        pairs.append((moved, target))
    ours = evaluator(pairs, classes=2).compute()
    assert ours == pytest.approx(pycocotools_answer(pairs, tmp_path, classes=2), abs=1e-6)
    assert 0.3 < ours["val/mask_ap"] < 1
