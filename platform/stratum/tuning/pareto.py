"""Which of several candidates are worth keeping when more than one thing counts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stratum_models.errors import UserError

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


OBJECTIVES = (
    Objective(metric="val/mask_ap50", direction="max"),
    Objective(metric="cost/macs", direction="min"),
    Objective(metric="cost/size_mb", direction="min"),
)


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether losses ``a`` are nowhere worse than ``b`` and somewhere better."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def pareto_front(candidates: Sequence[Mapping[str, float]], objectives: Sequence[Objective] = OBJECTIVES) -> list[int]:
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


@dataclass(frozen=True, kw_only=True)
class Tradeoff:
    """How much AP50 (0..1) a doubling of a cost may buy; one number to rank candidates of different size.

    ``utility = AP50 - macs_price * log2(macs / reference) - size_price * log2(size / reference)``. The references only shift all
    candidates by the same amount; they are LosNet's own, so that LosNet's utility is about its AP50.
    """

    macs_price: float = 0.02
    size_price: float = 0.01
    reference_macs: float = 7e9
    reference_size_mb: float = 9.6

    def __post_init__(self) -> None:
        if min(self.macs_price, self.size_price) < 0 or min(self.reference_macs, self.reference_size_mb) <= 0:
            raise UserError(f"{self}: prices must be 0 or more and references above 0")

    def utility(self, values: Mapping[str, float]) -> float:
        """The utility of a candidate; minus infinity where its AP50 is missing or not a number. Missing costs cost nothing."""
        accuracy = values.get("val/mask_ap50", math.nan)
        if math.isnan(accuracy):
            return -math.inf
        macs = values.get("cost/macs") or self.reference_macs
        size = values.get("cost/size_mb") or self.reference_size_mb
        return (
            accuracy - self.macs_price * math.log2(macs / self.reference_macs) - self.size_price * math.log2(size / self.reference_size_mb)
        )
