"""The networks of the paper's Tables 1 and 2 by name, each one made from the one before it."""

from dataclasses import replace

from stratum_models.fm_hrnet.config import FMHRNetConfig

V0 = FMHRNetConfig(stem_strides=(2, 2, 2, 1), last_channels=512, separable=0, pyconv=False, dilated_pyramid=False, detail=False)
V1 = replace(V0, stem_strides=(2, 2, 2, 2), last_channels=256)
V2 = replace(V1, pyconv=True, dilated_pyramid=True, detail=True)
V3 = replace(V1, separable=1)
V4 = replace(V2, separable=1)

PRESETS: dict[str, FMHRNetConfig] = {
    "fm_hrnet_v0": V0,
    "fm_hrnet_v1": V1,
    "fm_hrnet_v2": V2,
    "fm_hrnet_v3": V3,
    "fm_hrnet_v4": V4,
}

DEBUG = replace(V4, channels=8, last_channels=16, blocks=1, aggregation_channels=8)
"""V4 made tiny: trains on a CPU in seconds."""
