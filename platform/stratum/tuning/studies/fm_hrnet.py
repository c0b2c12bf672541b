"""FM-HRNet: Tables 1 and 2 of its paper, and the parts that its text changes without a table of their own, each alone in V4."""

from collections.abc import Mapping

from stratum.report.tables import Figure
from stratum.tuning.studies.semantic import ACCURACY, COSTS, tradeoff
from stratum.tuning.studies.study import Study, StudyRow
from stratum_models.fm_hrnet.paper import PAPER_ROWS, PaperRow

# By our presets. The paper names no trunks: ResNet-50 has the multiply-adds of its DeepLabv3+, ResNet-18 comes nearest to its U-Net.
NETWORKS: Mapping[str, str] = {
    "HRNet": "hrnet_w48",
    "Lite-HRNet": "lite_hrnet_18",
    "Deeplabv3+": "deeplab_r50",
    "FCN-8s": "fcn_vgg16",
    "U-Net": "unet_r18",
    "FM-HRNet-V0": "fm_hrnet_v0",
    "FM-HRNet-V1": "fm_hrnet_v1",
    "FM-HRNet-V2": "fm_hrnet_v2",
    "FM-HRNet-V3": "fm_hrnet_v3",
    "FM-HRNet-V4": "fm_hrnet_v4",
}
BASELINE_ROWS = ("t1/HRNet", "t2/FM-HRNet-V1")
REPEATS = ("1,1,1,1", "1,1,2,1", "1,1,2,2", "1,1,4,3")  # of the stages, from the paper's to HRNet's
AGGREGATION: Mapping[str, Mapping[str, object]] = {
    "none": {"pyconv": False, "dilated_pyramid": False, "detail": False},
    "pyconv": {"pyconv": True, "dilated_pyramid": False, "detail": True},
    "dilated": {"pyconv": False, "dilated_pyramid": True, "detail": True},
    "both": {"pyconv": True, "dilated_pyramid": True, "detail": True},
}


def _paper_row(paper: PaperRow) -> StudyRow:
    table, figures = str(paper.table), paper.figures()
    preset = NETWORKS.get(paper.model, "")
    reason = "" if preset else "another paper's network, whose description is not at hand"
    return StudyRow(table=table, label=paper.model, preset=preset, paper=figures, baseline=paper.key in BASELINE_ROWS, left_out=reason)


def _own_row(table: str, label: str, overrides: Mapping[str, object], *, baseline: bool) -> StudyRow:
    return StudyRow(table=table, label=label, preset="fm_hrnet_v4", overrides=overrides, baseline=baseline)


FM_HRNET = Study(
    name="fm_hrnet",
    preset="fm_hrnet_v4",
    figures=(
        *ACCURACY,
        Figure(title="PA", metric="val/pa", paper="pa", scale=100),
        *COSTS,
    ),
    tables={
        "1": "Table 1: FM-HRNet beside other networks",
        "2": "Table 2: versions of FM-HRNet",
        "repeats": "Repeats: modules in each of the four stages, in V4",
        "blocks": "Blocks: residual modules between two exchanges, in V4",
        "last": "Last branch: its channels, in V4",
        "dsc": "DSC: depthwise separable convolutions in a residual module, in V4",
        "aggregation": "Aggregation: the parts of its module, in V4",
    },
    rows=(
        *(_paper_row(paper) for paper in PAPER_ROWS),
        *(_own_row("repeats", text, {"repeats": text}, baseline=text == REPEATS[0]) for text in REPEATS),
        *(_own_row("blocks", str(count), {"blocks": count}, baseline=count == 4) for count in (1, 2, 4)),
        *(_own_row("last", str(count), {"last_channels": count}, baseline=count == 256) for count in (256, 512)),
        *(_own_row("dsc", str(count), {"separable": count}, baseline=count == 1) for count in (0, 1, 2)),
        *(_own_row("aggregation", label, parts, baseline=label == "both") for label, parts in AGGREGATION.items()),
    ),
    choices={
        "repeats": REPEATS,
        "blocks": (1, 2, 4),
        "last_channels": (256, 512),
        "separable": (0, 1, 2),
        "pyconv": (False, True),
        "dilated_pyramid": (False, True),
        "detail": (False, True),
    },
    tradeoff=tradeoff(reference_macs=3.07e9, reference_size_mb=55.7),  # V4 with four classes at 512x512
)
