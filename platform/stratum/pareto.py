"""Which of several candidates are worth keeping when more than one thing counts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Direction = Literal["max", "min"]


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A metric and the direction in which it gets better."""

    metric: str
    direction: Direction

    def loss(self, values: Mapping[str, float]) -> float:
        """The value as something to minimise; infinite where it is missing or not a number, so that such a candidate never leads."""
        value = values.get(self.metric, math.nan)
        if math.isnan(value):
            return math.inf
        return -value if self.direction == "max" else value


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether losses ``a`` are nowhere worse than ``b`` and somewhere better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def pareto_front(candidates: Sequence[Mapping[str, float]], objectives: Sequence[Objective]) -> list[int]:
    """The indices, ascending, of the candidates that no other dominates; equal ones are all kept.

    One that lacks every objective is never on the front. Sorted by their losses, candidates can only be dominated by an earlier one, so
    that each is compared with the front so far alone.
    """
    losses = [tuple(objective.loss(c) for objective in objectives) for c in candidates]
    front: list[int] = []
    for index in sorted(range(len(losses)), key=lambda i: losses[i]):
        if all(math.isinf(x) and x > 0 for x in losses[index]):
            continue
        if not any(dominates(losses[kept], losses[index]) for kept in front):
            front.append(index)
    return sorted(front)
