"""What the studies of semantic networks share: the columns of their reports, and what mean IoU may cost."""

from stratum.report.tables import Figure
from stratum.tuning.studies.study import Tradeoff

# Costs at the end, since the papers differ in which of them they print.
COSTS = (
    Figure(title="infer ms", metric="cost/latency_ms"),
    Figure(title="M params", metric="cost/params", paper="params_m", scale=1e-6, digits=2),
    Figure(title="G mult-adds", metric="cost/macs", paper="gmacs", scale=1e-9, digits=2),
    Figure(title="train ms/iter", metric="cost/train_step_ms"),
    Figure(title="infer MB", metric="cost/infer_memory_mb", digits=0),
)
ACCURACY = (
    Figure(title="mIoU", metric="val/miou", paper="miou", scale=100),
    Figure(title="MPA", metric="val/mpa", paper="mpa", scale=100),
)


def tradeoff(*, reference_macs: float, reference_size_mb: float) -> Tradeoff:
    """Prices of a doubling, with the costs of a study's own network as reference.

    FM-HRNet's authors went on with V1 instead of V0: they gave 1.35 points of mIoU for 1.66 halvings of the multiply-adds, which is 0.8
    a halving. Size weighs half as much, as in LosNet's study.
    """
    return Tradeoff(macs_price=0.008, size_price=0.004, reference_macs=reference_macs, reference_size_mb=reference_size_mb)
