"""The learning rate as a function of the optimiser step: nothing to store, nothing to restore."""

import math

from stratum.training.spec import TrainSpec


def learning_rate(step: int, steps_per_epoch: int, spec: TrainSpec) -> float:
    """The learning rate of an optimiser step.

    The warm-up multiplies the schedule, which runs over the whole training, warm-up included:
    ``lr = learning_rate * warmup(step) * schedule(step / total)``.

    Args:
        step: optimiser step, counted from 0 over the whole run.
        steps_per_epoch: optimiser steps in an epoch.
        spec: the schedule and its figures.
    """
    progress = min(step / (steps_per_epoch * spec.epochs), 1.0)
    return spec.learning_rate * _warmup(step, spec.warmup_epochs * steps_per_epoch, spec.warmup_factor) * _decay(progress, spec)


def _warmup(step: int, length: float, start: float) -> float:
    """Linear from ``start`` at step 0 to 1 at step ``length``."""
    return 1.0 if step >= length else start + (1.0 - start) * step / length


def _decay(progress: float, spec: TrainSpec) -> float:
    """The factor after a share ``progress`` (0..1) of the run."""
    match spec.schedule:
        case "constant":
            return 1.0
        case "step":
            return float(spec.gamma ** sum(progress >= milestone for milestone in spec.milestones))
        case "cosine":
            return spec.final_factor + (1.0 - spec.final_factor) * (1.0 + math.cos(math.pi * progress)) / 2.0
        case "poly":
            return float((1.0 - progress) ** spec.power)
