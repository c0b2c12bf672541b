"""LosNet: Tables 1 to 6 of its paper, and the joint space of what they vary.

Section 4.3: the ablations vary one thing at a time in CondInst on MobileNetV3-Small, Table 6 the pyramid in LosNet.
"""

from collections.abc import Mapping

from stratum.report.tables import ABLATION, Figure
from stratum.tuning.studies.study import Study, StudyRow, Tradeoff
from stratum_models.losnet.paper import PAPER_ROWS, PaperRow

BASELINE_PRESET = "condinst_mv3"
BASELINE: Mapping[str, object] = {
    "backbone": "mobilenetv3_small_100",
    "fpn_channels": 256,
    "fpn_convs": True,
    "extra_levels": True,
    "head_convs": 4,
    "norm": "gn",
}
BASELINE_ROWS = ("t1/MobileNetV3-Small", "t2/256-yes", "t3/P6P7-yes", "t4/4", "t5/GN")  # the network all tables share

# Table 1 by the names of timm (torchvision's for ShuffleNetV2). VoVNetV2 is the 39-layer one: its checkpoint is as large as ResNet50's.
BACKBONES: Mapping[str, str | None] = {
    "DLA34": "dla34",
    "EfficientNet-B0": "efficientnet_b0",
    "MnasNet-0.5": "mnasnet_050",
    "MobileNetV2": "mobilenetv2_100",
    "MobileNetV3-Small": "mobilenetv3_small_100",
    "ResNet50": "resnet50",
    "ResNet101": "resnet101",
    "VoVNetV2": "ese_vovnet39b",
    "PeleeNet": None,
    "RegNet-200M": "regnetx_002",
    "ShuffleNetV2": "shufflenet_v2_x1_0",
}


def _row(paper: PaperRow) -> StudyRow:
    """A row of the paper, with the network that it describes."""
    table, figures = str(paper.table), paper.figures()
    if paper.table == 6:
        # Table 4's two convolutions give the original FPN's 71 MB with P6 and P7 only, so that this FPN has them.
        original = paper.label == "original-FPN"
        overrides = {"fpn_channels": 256 if original else 96, "fpn_convs": original, "extra_levels": original}
        return StudyRow(table=table, label=paper.label, preset="losnet", overrides=overrides, paper=figures, baseline=original)
    varied = _varied(paper)
    if None in varied.values():
        return StudyRow(table=table, label=paper.label, paper=figures, left_out="neither timm nor torchvision has this backbone")
    baseline = paper.key in BASELINE_ROWS
    return StudyRow(
        table=table,
        label=paper.label,
        preset=BASELINE_PRESET,
        overrides={**BASELINE, **varied},
        name="baseline" if baseline else "",
        paper=figures,
        baseline=baseline,
    )


def _varied(paper: PaperRow) -> dict[str, object]:
    """What a row of Tables 1 to 5 changes in the baseline."""
    if paper.table == 1:
        return {"backbone": BACKBONES[paper.label]}
    if paper.table == 2:
        channels, convs = paper.label.split("-")
        return {"fpn_channels": int(channels), "fpn_convs": convs == "yes"}
    if paper.table == 3:
        return {"extra_levels": paper.label.endswith("yes")}
    if paper.table == 4:
        return {"head_convs": int(paper.label)}
    return {"norm": paper.label.lower()}


LOSNET = Study(
    name="losnet",
    preset="losnet",
    figures=(
        *ABLATION,
        Figure(title="train ms/iter", metric="cost/train_step_ms", paper="train_ms"),
        Figure(title="train MB", metric="cost/train_memory_mb", paper="train_memory_mb", digits=0),
        Figure(title="infer MB", metric="cost/infer_memory_mb", paper="infer_memory_mb", digits=0),
    ),
    tables={
        "1": "Table 1: backbones",
        "2": "Table 2: channels of the FPN, with and without its 3x3 convolutions",
        "3": "Table 3: levels P6 and P7",
        "4": "Table 4: convolutions of the head",
        "5": "Table 5: normalisation",
        "6": "Table 6: original and light FPN in LosNet",
    },
    rows=tuple(_row(paper) for paper in PAPER_ROWS),
    # Backbones: those of Table 1 that are no larger than what a small computer beside a belt can run.
    choices={
        "backbone": (
            "mobilenetv3_small_100",
            "mobilenetv3_small_050",
            "mobilenetv2_100",
            "mnasnet_050",
            "regnetx_002",
            "efficientnet_b0",
        ),
        "fpn_channels": (64, 96, 128, 256),
        "fpn_convs": (False, True),
        "extra_levels": (False, True),
        "head_convs": (1, 2, 3, 4),
        "norm": ("bn", "gn"),
        "mask_channels": (32, 64, 96, 128),
    },
    # The references are LosNet's own costs at 480x640.
    tradeoff=Tradeoff(macs_price=0.02, size_price=0.01, reference_macs=7e9, reference_size_mb=9.6),
)
