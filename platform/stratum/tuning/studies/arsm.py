"""ARSM: the networks of its paper's Tables 1 to 3, which are the same in all three, and the choices that have no table there."""

from collections.abc import Mapping

from stratum.report.tables import Figure
from stratum.tuning.studies.semantic import COSTS, tradeoff
from stratum.tuning.studies.study import Study, StudyRow
from stratum_models.arsm.paper import PAPER_RESULTS, PaperResult

# What the paper calls them, by our presets.
NETWORKS: Mapping[str, str] = {
    "HRNetW18": "hrnet_w18",
    "HRNetW18 +OCR": "hrnet_w18_ocr",
    "HRFormer": "hrformer_small",
    "HRNetW18 +ARSM": "hrnet_w18_arsm",
    "HRNetW32": "hrnet_w32",
    "HRNetW32 +ARSM": "hrnet_w32_arsm",
}
SCHEDULES: Mapping[str, tuple[float, float | None]] = {
    "constant": (0.1, None),
    "1 to 0.1": (1.0, 0.1),
    "0.5 to 0.1": (0.5, 0.1),
    "1 to 0.05": (1.0, 0.05),
}
TEMPERATURES = (0.05, 0.1, 0.2, 0.5, 1.0)


def _paper_row(paper: PaperResult) -> StudyRow:
    preset = NETWORKS.get(paper.method, "")
    reason = "" if preset else "DeepLabv3+ wants a trunk with one output at stride 16, which HRNet's is not"
    baseline = paper.method == "HRNetW18"
    return StudyRow(table="1", label=paper.method, preset=preset, paper=paper.figures(), baseline=baseline, left_out=reason)


def _own_row(table: str, label: str, *, baseline: bool, weights: str | None = None, **overrides: object) -> StudyRow:
    return StudyRow(table=table, label=label, preset="hrnet_w18_arsm", overrides=overrides, class_weights=weights, baseline=baseline)


def _schedule_row(label: str, start: float, end: float | None) -> StudyRow:
    return _own_row("schedule", label, baseline=end is None, temperature=start, temperature_end=end)


def _samples_row(label: str, **evaluation: object) -> StudyRow:
    """Training draws one sample whatever the evaluation does."""
    return StudyRow(table="samples", label=label, preset="hrnet_w18_arsm", evaluation=evaluation, baseline=evaluation["gate"] == "expected")


ARSM = Study(
    name="arsm",
    preset="hrnet_w18_arsm",
    figures=(
        Figure(title="mIoU", metric="val/miou", paper="miou", scale=100),
        Figure(title="synapse IoU", metric="val/iou_synapse", paper="iou_synapse", scale=100),
        Figure(title="pleural effusion IoU", metric="val/iou_pleural effusion", paper="iou_pleural effusion", scale=100),
        *COSTS,
    ),
    tables={
        "1": "Tables 1 to 3: ARSM beside other heads and networks",
        "temperature": "Temperature of the gate, W18",
        "schedule": "Schedule: temperature at the start and the end of training, W18",
        "samples": "Samples: the gate at evaluation, of the same trained W18",
        "width": "Width of HRNet",
        "weights": "Weights of the classes in the loss, W18",
    },
    rows=(
        *(_paper_row(paper) for paper in PAPER_RESULTS),
        *(_own_row("temperature", f"{value:g}", baseline=value == 0.1, temperature=value) for value in TEMPERATURES),
        *(_schedule_row(label, start, end) for label, (start, end) in SCHEDULES.items()),
        _samples_row("expected", gate="expected"),
        *(_samples_row(str(count), gate="monte_carlo", samples=count) for count in (1, 10, 100)),
        *(_own_row("width", str(width), baseline=width == 18, width=width) for width in (18, 32)),
        *(_own_row("weights", rule, baseline=rule == "none", weights=rule) for rule in ("none", "median", "inverse")),
    ),
    # The gate at evaluation is not drawn: the expectation is as cheap and as exact as any of them gets.
    choices={"width": (18, 32), "temperature": TEMPERATURES, "temperature_end": (None, 0.1)},
    class_weights=("none", "median", "inverse"),
    defaults={"stem_strides": (1, 1)},  # the paper keeps the resolution of the image in all of its HRNets (section 2.2)
    tradeoff=tradeoff(reference_macs=78.5e9, reference_size_mb=37.6),  # W18 with five classes at 256x256
)
