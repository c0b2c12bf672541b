"""The slag paper's DeepLabv3+: its Tables 2 and 3, and its three changes, each alone in the network that its text describes."""

from collections.abc import Mapping

from stratum.report.tables import Figure
from stratum.tuning.studies.semantic import ACCURACY, COSTS, tradeoff
from stratum.tuning.studies.study import Study, StudyRow
from stratum_models.slag_deeplab.paper import PAPER_ROWS, PaperRow

# By table, model, backbone and attention. Table 3's DeepLabv3+ has the figures of Table 2's with Xception, its own those with EMA.
NETWORKS: Mapping[tuple[int, str, str | None, str | None], tuple[str, str]] = {
    (2, "DeepLabv3+", "Xception", None): ("Xception", "deeplab_xception"),
    (2, "DeepLabv3+", "MobileNetV2", None): ("MobileNetV2", "deeplab_mv2"),
    (2, "DeepLabv3+", "MobileNetV2", "EMA"): ("MobileNetV2 +EMA", "deeplab_mv2_ema"),
    (3, "FCN", "ResNet50", None): ("FCN", "fcn_r50"),
    (3, "U-Net", "VGG", None): ("U-Net", "unet_vgg16"),
    (3, "DeepLabv3+", None, None): ("DeepLabv3+", "deeplab_xception"),
    (3, "Ours", None, None): ("Ours", "deeplab_mv2_ema"),
}
BASELINES = ("Xception", "DeepLabv3+")
BACKBONES = ("mobilenetv2_100", "mobilenetv2_050", "resnet18", "resnet50", "vgg16_bn", "xception65")


def _paper_row(paper: PaperRow) -> StudyRow:
    label, preset = NETWORKS[paper.table, paper.model, paper.backbone, paper.attention]
    return StudyRow(table=str(paper.table), label=label, preset=preset, paper=paper.figures(), baseline=label in BASELINES)


def _own_row(table: str, label: str, *, baseline: bool, **overrides: object) -> StudyRow:
    return StudyRow(table=table, label=label, preset="slag_deeplab", overrides=overrides, baseline=baseline)


SLAG = Study(
    name="slag",
    preset="slag_deeplab",
    figures=(
        *ACCURACY,
        Figure(title="size MiB", metric="cost/size_mb", paper="size_mib", digits=2),
        *COSTS,
    ),
    tables={
        "2": "Table 2: backbone and attention",
        "3": "Table 3: the paper's network beside others",
        "aspp": "ASPP: standard or depthwise separable convolutions",
        "groups": "Groups of the attention; 0: none",
        "backbone": "Backbone of the paper's network",
    },
    rows=(
        *(_paper_row(paper) for paper in PAPER_ROWS),
        _own_row("aspp", "standard", baseline=True, separable_aspp=False),
        _own_row("aspp", "separable", baseline=False, separable_aspp=True),
        *(_own_row("groups", str(groups), baseline=groups == 0, ema_groups=groups) for groups in (0, 4, 8, 16, 32)),
        *(_own_row("backbone", name, baseline=name == BACKBONES[0], backbone=name) for name in BACKBONES),
    ),
    choices={
        "backbone": ("mobilenetv2_100", "mobilenetv2_050", "resnet18"),
        "separable_aspp": (False, True),
        "ema_groups": (0, 4, 8, 16, 32),
        "aspp_channels": (128, 256),
        "decoder_channels": (64, 128, 256),
    },
    tradeoff=tradeoff(reference_macs=24.4e9, reference_size_mb=14.8),  # of the text's network with three classes at 512x512
)
