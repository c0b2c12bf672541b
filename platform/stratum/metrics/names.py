"""Names of metrics that more than one part of the platform goes by; apart, so that whoever asks imports nothing heavy."""

from stratum_models.interface import Task

BEST_METRIC: dict[Task, str] = {"instance": "val/mask_ap50", "semantic": "val/miou"}
"""By which training keeps its best weights, and a registered version is promoted."""
