"""Evaluation on all ranks: each predicts its share of the images, rank 0 computes, everyone gets the same figures."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stratum.metrics.instance import InstanceEvaluator
from stratum.metrics.semantic import SemanticEvaluator
from stratum.training.context import Context
from stratum_models.interface import Prediction, Target, Task

Batch = tuple[Sequence[Tensor], Sequence[Target], Sequence[str]]  # images float32 [3, H, W] in 0..1, targets, URIs


class Evaluator(Protocol):
    """Collects predictions beside their targets; its state travels between ranks as plain values."""

    def update(self, predictions: Sequence[Any], targets: Sequence[Any], keys: Sequence[str]) -> None:
        """Takes the predictions of some images; an image whose key is known already is not counted again."""

    def state(self) -> list[Any]:
        """What this rank has collected."""

    def merge(self, states: Any) -> None:
        """Takes over what another rank collected."""

    def compute(self) -> dict[str, float]:
        """The metrics, named as everywhere: ``val/mask_ap50``, ..."""

    def best_score_threshold(self) -> float:
        """The score from which an instance is worth showing; 0 where there are no scores."""


def evaluator_for(task: Task, classes: Sequence[str]) -> Evaluator:
    """The evaluator of a task."""
    return InstanceEvaluator(len(classes)) if task == "instance" else SemanticEvaluator(classes)


@torch.no_grad()
def collect(model: nn.Module, batches: Iterable[Batch], evaluator: Evaluator, context: Context) -> Evaluator | None:
    """Predicts this rank's share of the images; rank 0 gets the evaluator with what all ranks found, the others None."""
    predict: Callable[[Sequence[Tensor]], Sequence[Prediction]] = model.predict  # type: ignore[assignment]
    model.eval()
    context.share_buffers(model)
    for images, targets, uris in batches:
        predictions = predict([image.to(context.device, non_blocking=True) for image in images])
        evaluator.update([p.to("cpu") for p in predictions], targets, uris)
    states = context.gather(evaluator.state())
    if context.rank != 0:
        return None
    for other in states[1:]:
        evaluator.merge(other)
    return evaluator


def evaluate(model: nn.Module, batches: Iterable[Batch], evaluator: Evaluator, context: Context) -> dict[str, float]:
    """The metrics over the images of all ranks, the same on every rank, so that all of them stop at the same epoch."""
    merged = collect(model, batches, evaluator, context)
    metrics = {name: float(value) for name, value in merged.compute().items()} if merged else {}
    shared = context.gather(metrics)[0]
    return {name: value for name, value in shared.items() if math.isfinite(value)}
