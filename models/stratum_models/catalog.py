"""Every model by name: one literal, nothing registered from elsewhere."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import get_type_hints

from stratum_models.arsm import paper as arsm_paper
from stratum_models.arsm.config import ARSMConfig
from stratum_models.arsm.model import build_arsm
from stratum_models.baselines.fcn import FCNConfig, build_fcn
from stratum_models.baselines.hrformer import HRFormerConfig, build_hrformer
from stratum_models.baselines.lite_hrnet import LiteHRNetConfig, build_lite_hrnet
from stratum_models.baselines.mask_rcnn import MaskRCNNConfig, build_mask_rcnn
from stratum_models.baselines.unet import UNetConfig, build_unet
from stratum_models.errors import UserError
from stratum_models.fm_hrnet import paper as fm_hrnet_paper
from stratum_models.fm_hrnet.build import build_fm_hrnet
from stratum_models.fm_hrnet.config import FMHRNetConfig
from stratum_models.hrnet.build import build_hrnet
from stratum_models.hrnet.config import HRNetConfig
from stratum_models.interface import SegmentationModel
from stratum_models.losnet import paper as losnet_paper
from stratum_models.losnet.build import build_losnet
from stratum_models.losnet.config import LosNetConfig
from stratum_models.options import parse_option
from stratum_models.preset import Config, Preset, Setting
from stratum_models.slag_deeplab import paper as slag_paper
from stratum_models.slag_deeplab.build import build_slag_deeplab
from stratum_models.slag_deeplab.config import SlagDeepLabConfig
from stratum_models.two_stage.build import build_sliding, build_two_stage
from stratum_models.two_stage.config import TwoStageConfig
from stratum_models.two_stage.sliding import SlidingConfig
from stratum_models.two_stage.unet import StridedUNetConfig, build_strided_unet

ARSM_SETTING = Setting(classes=5, size=(256, 256))
FULL_RESOLUTION = replace(ARSM_SETTING, overrides={"stem_strides": (1, 1)})
FM_HRNET_SETTING = Setting(classes=4, size=(512, 512))
SLAG_SETTING = Setting(classes=3, size=(512, 512))

CONDINST = LosNetConfig(fpn_channels=256, fpn_convs=True, extra_levels=True, head_convs=4, norm="gn")
DEEPLAB = SlagDeepLabConfig(separable_aspp=False, ema_groups=0)
FM_V0 = FMHRNetConfig(stem_strides=(2, 2, 2, 1), last_channels=512, separable=0, pyconv=False, dilated_pyramid=False, detail=False)
FM_V1 = replace(FM_V0, stem_strides=(2, 2, 2, 2), last_channels=256)
FM_V2 = replace(FM_V1, pyconv=True, dilated_pyramid=True, detail=True)
FM_V3 = replace(FM_V1, separable=1)
FM_V4 = replace(FM_V2, separable=1)

CATALOG: dict[str, Preset] = {
    "losnet": Preset(
        config=LosNetConfig(),
        build=build_losnet,
        summary="LosNet with MobileNetV3-Small, the paper's network",
        paper=losnet_paper.result("LosNet", "M-V3").figures(),
    ),
    "losnet_r50": Preset(
        config=LosNetConfig(backbone="resnet50"),
        build=build_losnet,
        summary="LosNet with ResNet-50",
        paper=losnet_paper.result("LosNet", "R-50").figures(),
    ),
    "losnet_r101": Preset(
        config=LosNetConfig(backbone="resnet101"),
        build=build_losnet,
        summary="LosNet with ResNet-101",
        paper=losnet_paper.result("LosNet", "R-101").figures(),
    ),
    "condinst_mv3": Preset(
        config=CONDINST,
        build=build_losnet,
        summary="CondInst with MobileNetV3-Small, where the ablations start",
        paper=losnet_paper.row("t1/MobileNetV3-Small").figures(),
    ),
    "condinst_r50": Preset(
        config=replace(CONDINST, backbone="resnet50"),
        build=build_losnet,
        summary="CondInst with ResNet-50",
        paper=losnet_paper.result("CondInst", "R-50").figures(),
    ),
    "mask_rcnn_r50": Preset(
        config=MaskRCNNConfig(),
        build=build_mask_rcnn,
        summary="Mask R-CNN with ResNet-50 and FPN, torchvision's",
        paper=losnet_paper.result("Mask R-CNN", "R-50").figures(),
    ),
    "losnet_debug": Preset(
        config=LosNetConfig(fpn_channels=16, head_convs=1, mask_channels=16, mask_convs=1, train_proposals=16, max_detections=50),
        build=build_losnet,
        summary="LosNet made tiny: trains on a CPU in seconds",
    ),
    "fm_hrnet_v0": Preset(
        config=FM_V0,
        build=build_fm_hrnet,
        summary="FM-HRNet-V0: the first branch at 1/8 of the image",
        paper=fm_hrnet_paper.figures("FM-HRNet-V0"),
        setting=FM_HRNET_SETTING,
    ),
    "fm_hrnet_v1": Preset(
        config=FM_V1,
        build=build_fm_hrnet,
        summary="FM-HRNet-V1: V0 with the first branch at 1/16 and a narrower last one",
        paper=fm_hrnet_paper.figures("FM-HRNet-V1"),
        setting=FM_HRNET_SETTING,
    ),
    "fm_hrnet_v2": Preset(
        config=FM_V2,
        build=build_fm_hrnet,
        summary="FM-HRNet-V2: V1 with multi-scale aggregation",
        paper=fm_hrnet_paper.figures("FM-HRNet-V2"),
        setting=FM_HRNET_SETTING,
    ),
    "fm_hrnet_v3": Preset(
        config=FM_V3,
        build=build_fm_hrnet,
        summary="FM-HRNet-V3: V1 with depthwise separable convolutions",
        paper=fm_hrnet_paper.figures("FM-HRNet-V3"),
        setting=FM_HRNET_SETTING,
    ),
    "fm_hrnet_v4": Preset(
        config=FM_V4,
        build=build_fm_hrnet,
        summary="FM-HRNet-V4: V1 with both, the paper's network",
        paper=fm_hrnet_paper.figures("FM-HRNet-V4"),
        setting=FM_HRNET_SETTING,
    ),
    "fm_hrnet_debug": Preset(
        config=replace(FM_V4, channels=8, last_channels=16, blocks=1, aggregation_channels=8),
        build=build_fm_hrnet,
        summary="FM-HRNet-V4 made tiny: trains on a CPU in seconds",
    ),
    "hrnet_w18": Preset(
        config=HRNetConfig(),
        build=build_hrnet,
        summary="HRNet-W18 with its own stem, at 1/4 of the image",
        paper=arsm_paper.result("HRNetW18").figures(),
        setting=FULL_RESOLUTION,
    ),
    "hrnet_w18_ocr": Preset(
        config=HRNetConfig(head="ocr"),
        build=build_hrnet,
        summary="HRNet-W18 with object-contextual representations",
        paper=arsm_paper.result("HRNetW18 +OCR").figures(),
        setting=FULL_RESOLUTION,
    ),
    "hrnet_w32": Preset(
        config=HRNetConfig(width=32),
        build=build_hrnet,
        summary="HRNet-W32 with its own stem, at 1/4 of the image",
        paper=arsm_paper.result("HRNetW32").figures(),
        setting=FULL_RESOLUTION,
    ),
    "hrnet_w48": Preset(
        config=HRNetConfig(width=48),
        build=build_hrnet,
        summary="HRNet-W48, which FM-HRNet makes faster",
        paper=fm_hrnet_paper.figures("HRNet"),
        setting=FM_HRNET_SETTING,
    ),
    "hrnet_w18_arsm": Preset(
        config=ARSMConfig(),
        build=build_arsm,
        summary="HRNet-W18 with ARSM at full resolution",
        paper=arsm_paper.result("HRNetW18 +ARSM").figures(),
        setting=ARSM_SETTING,
    ),
    "hrnet_w32_arsm": Preset(
        config=ARSMConfig(width=32),
        build=build_arsm,
        summary="HRNet-W32 with ARSM at full resolution",
        paper=arsm_paper.result("HRNetW32 +ARSM").figures(),
        setting=ARSM_SETTING,
    ),
    "hrnet_debug": Preset(
        config=HRNetConfig(width=4, modules=(1, 1, 1), blocks=1),
        build=build_hrnet,
        summary="HRNet made tiny: trains on a CPU in seconds",
    ),
    "hrnet_arsm_debug": Preset(
        config=ARSMConfig(width=4, stem_strides=(2, 2), modules=(1, 1, 1), blocks=1),
        build=build_arsm,
        summary="HRNet with ARSM made tiny: trains on a CPU in seconds",
    ),
    "lite_hrnet_18": Preset(
        config=LiteHRNetConfig(),
        build=build_lite_hrnet,
        summary="Lite-HRNet-18",
        paper=fm_hrnet_paper.figures("Lite-HRNet"),
        setting=FM_HRNET_SETTING,
    ),
    "lite_hrnet_30": Preset(
        config=LiteHRNetConfig(repeats=(3, 8, 3)), build=build_lite_hrnet, summary="Lite-HRNet-30", setting=FM_HRNET_SETTING
    ),
    "hrformer_small": Preset(
        config=HRFormerConfig(),
        build=build_hrformer,
        summary="HRFormer, the small one",
        paper=arsm_paper.result("HRFormer").figures(),
        setting=ARSM_SETTING,
    ),
    "slag_deeplab": Preset(
        config=SlagDeepLabConfig(),
        build=build_slag_deeplab,
        summary="DeepLabv3+ as the slag paper describes it: MobileNetV2, separable ASPP, EMA",
        paper=slag_paper.row(2, "DeepLabv3+", "MobileNetV2", "EMA").figures(),
        setting=SLAG_SETTING,
    ),
    "deeplab_mv2_ema": Preset(
        config=replace(DEEPLAB, ema_groups=8),
        build=build_slag_deeplab,
        summary="DeepLabv3+ with MobileNetV2 and EMA, what the size in Table 2 fits",
        paper=slag_paper.row(2, "DeepLabv3+", "MobileNetV2", "EMA").figures(),
        setting=SLAG_SETTING,
    ),
    "deeplab_mv2": Preset(
        config=DEEPLAB,
        build=build_slag_deeplab,
        summary="DeepLabv3+ with MobileNetV2",
        paper=slag_paper.row(2, "DeepLabv3+", "MobileNetV2").figures(),
        setting=SLAG_SETTING,
    ),
    "deeplab_xception": Preset(
        config=replace(DEEPLAB, backbone="xception65"),
        build=build_slag_deeplab,
        summary="DeepLabv3+ with Xception",
        paper=slag_paper.row(2, "DeepLabv3+", "Xception").figures(),
        setting=SLAG_SETTING,
    ),
    "deeplab_r50": Preset(
        config=replace(DEEPLAB, backbone="resnet50"),
        build=build_slag_deeplab,
        summary="DeepLabv3+ with ResNet-50",
        paper=fm_hrnet_paper.figures("Deeplabv3+"),
        setting=FM_HRNET_SETTING,
    ),
    "deeplab_vgg16": Preset(
        config=replace(DEEPLAB, backbone="vgg16_bn"),
        build=build_slag_deeplab,
        summary="DeepLabv3+ with VGG16",
        setting=SLAG_SETTING,
    ),
    "slag_deeplab_debug": Preset(
        config=SlagDeepLabConfig(backbone="mobilenetv2_035", aspp_channels=16, dilations=(1, 2), shortcut_channels=8, decoder_channels=16),
        build=build_slag_deeplab,
        summary="The slag paper's network made tiny: trains on a CPU in seconds",
    ),
    "unet_r18": Preset(
        config=UNetConfig(),
        build=build_unet,
        summary="U-Net with ResNet-18",
        paper=fm_hrnet_paper.figures("U-Net"),
        setting=FM_HRNET_SETTING,
    ),
    "unet_r50": Preset(config=UNetConfig(encoder="resnet50"), build=build_unet, summary="U-Net with ResNet-50", setting=SLAG_SETTING),
    "unet_vgg16": Preset(
        config=UNetConfig(encoder="vgg16_bn", decoder_channels=(512, 256, 128, 64)),
        build=build_unet,
        summary="U-Net with VGG16, the decoder as wide as VGG's own stages",
        paper=slag_paper.row(3, "U-Net", "VGG").figures(),
        setting=SLAG_SETTING,
    ),
    "fcn_r50": Preset(
        config=FCNConfig(),
        build=build_fcn,
        summary="FCN-8s with ResNet-50",
        paper=slag_paper.row(3, "FCN", "ResNet50").figures(),
        setting=SLAG_SETTING,
    ),
    "fcn_vgg16": Preset(
        config=FCNConfig(backbone="vgg16_bn", hidden_channels=512),
        build=build_fcn,
        summary="FCN-8s with VGG16",
        paper=fm_hrnet_paper.figures("FCN-8s"),
        setting=FM_HRNET_SETTING,
    ),
    "unet_s2": Preset(
        config=StridedUNetConfig(),
        build=build_strided_unet,
        summary="U-Net with strides in place of pooling, 64 to 1024 channels",
    ),
    "unet_s2_debug": Preset(
        config=StridedUNetConfig(width=8),
        build=build_strided_unet,
        summary="The two-stage paper's U-Net made tiny: trains on a CPU in seconds",
    ),
    "two_stage": Preset(
        config=TwoStageConfig(),
        build=build_two_stage,
        summary="unet_s2 on the image at a quarter of its size, then on the 16 patches that are least sure",
    ),
    "two_stage_small": Preset(
        config=TwoStageConfig(stage1="unet_s2:width=16", stage2="unet_s2:width=16"),
        build=build_two_stage,
        summary="two_stage with a quarter of the channels, for machines with few cores",
    ),
    "two_stage_debug": Preset(
        config=TwoStageConfig(stage1="unet_s2_debug", stage2="unet_s2_debug", scale=2, patch=32, margin=8, count=2, train_patches=4),
        build=build_two_stage,
        summary="two_stage made tiny: trains on a CPU in seconds",
    ),
    "sliding": Preset(
        config=SlidingConfig(),
        build=build_sliding,
        summary="unet_s2 on every patch of the image, what two_stage is compared with",
    ),
    "sliding_debug": Preset(
        config=SlidingConfig(stage="unet_s2_debug", patch=32, margin=8, train_patches=4),
        build=build_sliding,
        summary="sliding made tiny: trains on a CPU in seconds",
    ),
}


def preset(name: str) -> Preset:
    """The preset of a name.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    if name not in CATALOG:
        raise UserError(f"unknown model {name!r}: known are {', '.join(CATALOG)}")
    return CATALOG[name]


def resolve_config(name: str, overrides: Mapping[str, object] | None = None) -> Config:
    """The configuration of a preset with some fields replaced; values may be strings, as they come from a command line.

    Raises:
        UserError: the preset or a field is unknown, or a value does not fit.
    """
    config = preset(name).config
    hints = get_type_hints(type(config))
    known = [f.name for f in fields(config)]
    values = {}
    for key, value in (overrides or {}).items():
        if key not in known:
            raise UserError(f"model {name} has no option {key!r}: known are {', '.join(known)}")
        values[key] = parse_option(name, key, value, hints[key])
    return replace(config, **values)  # type: ignore[arg-type]


def build_model(
    name: str, *, num_classes: int, overrides: Mapping[str, object] | None = None, backbone_weights: str | None = None
) -> SegmentationModel:
    """A model of the catalog with random weights, its backbone's apart where ``backbone_weights`` is a local file or ``"imagenet"``.

    Raises:
        UserError: see :func:`resolve_config` and :func:`stratum_models.weights.load_classifier`.
    """
    if num_classes < 1:
        raise UserError(f"model {name} needs at least one class, got {num_classes}")
    config = resolve_config(name, overrides)
    return preset(name).build(config, num_classes, backbone_weights)
