"""Evaluation over several ranks: what each found is put together, not averaged."""

from typing import Any

import pytest
import torch

from stratum.metrics.names import BEST_METRIC
from stratum.metrics.semantic import SemanticEvaluator, class_metric
from stratum.training.context import LocalContext
from stratum.training.evaluation import collect, evaluate, evaluator_for
from stratum_models.catalog import build_model
from stratum_models.interface import SemanticTarget

CLASSES = ("background", "rock+glomero")


class SecondRank(LocalContext):
    """Rank 0 of two; what the other has is known."""

    def __init__(self, other: list[Any]) -> None:
        super().__init__("/nowhere")
        self.world_size, self.other = 2, other

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other]


def batches(seed: int, count: int) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            [torch.rand(3, 32, 40, generator=generator)],
            [SemanticTarget(mask=torch.randint(0, 2, (32, 40), generator=generator))],
            [f"{seed}-{index}.png"],
        )
        for index in range(count)
    ]


def test_ranks_share_one_confusion_matrix() -> None:
    torch.manual_seed(0)
    model = build_model("hrnet_debug", num_classes=2)
    first, second = batches(1, 3), batches(2, 1)
    alone, other = (evaluator_for("semantic", CLASSES) for _ in range(2))
    collect(model, [*first, *second], alone, LocalContext("/nowhere"))
    collect(model, [*second, first[0]], other, LocalContext("/nowhere"))  # a padded sampler showed one image twice
    merged = collect(model, first, evaluator_for("semantic", CLASSES), SecondRank(other.state()))
    assert isinstance(merged, SemanticEvaluator)
    assert isinstance(alone, SemanticEvaluator)
    assert (merged.confusion() == alone.confusion()).all()
    assert merged.confusion().sum() == 4 * 32 * 40
    assert merged.compute() == pytest.approx(alone.compute(), nan_ok=True)
    figures = evaluate(model, first, evaluator_for("semantic", CLASSES), LocalContext("/nowhere"))
    assert BEST_METRIC["semantic"] in figures
    assert class_metric("iou", CLASSES[1]) == "val/iou_rock_glomero"  # MLflow allows no plus sign
    assert class_metric("iou", CLASSES[1]) in figures
