"""What a request can choose: the query parameters."""

from dataclasses import fields
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from stratum.inference.bands import SLAG, TUBE, BandRule
from stratum_models.package import Manifest
from stratum_serve.problems import Problem

Format = Literal["json", "png", "overlay", "npz"]


class CommonOptions(BaseModel):
    """Options of every prediction."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    score: float | None = Field(default=None, ge=0, le=1, description="Instances from this score up; by default the package's.")
    classes: str | None = Field(default=None, max_length=2000, description="Names of the classes to answer with, by commas.")
    max_size: int | None = Field(default=None, ge=32, le=20_000, description="Predict with the longer side at most so many pixels.")
    mm_per_px: float | None = Field(default=None, gt=0, le=1e6, description="Millimetres per pixel of the image as it was sent.")

    def wanted(self) -> tuple[str, ...]:
        """The classes that were asked for; none for all."""
        return tuple(part.strip() for part in (self.classes or "").split(",") if part.strip())


class ShapeOptions(CommonOptions):
    """How what was found is told."""

    format: Format = Field(default="json", description="json, png (ids or class indices), overlay (JPEG) or npz (NumPy).")
    geometry: Literal["rle", "polygons"] = Field(default="rle", description="How json tells the shape of an instance.")


class TubeOptions(CommonOptions):
    """What is known of a dip tube."""

    tube_diameter_mm: float | None = Field(default=None, gt=0, le=1e6, description="Diameter of the dip tube, for the scale.")
    axis_degrees: float | None = Field(default=None, ge=0, le=180, description="Direction of the dip tube: 0 along the width.")
    tube_class: str = Field(default=TUBE, max_length=200, description="Class of the dip tube.")
    slag_class: str = Field(default=SLAG, max_length=200, description="Class of the slag on the tube, whose height is measured.")


class WindowOptions(CommonOptions):
    """How one network goes through an image."""

    tile: int | None = Field(
        default=None, ge=0, le=8192, description="Class masks: side of the windows for larger images; 0: whole; by default as trained."
    )


class PatchOptions(CommonOptions):
    """How two stages go through an image."""

    patches: int | None = Field(default=None, ge=0, le=4096, description="Refine so many patches, the least sure ones.")
    threshold: float | None = Field(default=None, ge=0, le=1, description="Refine patches with a confidence below this.")


class SegmentOptions(ShapeOptions, WindowOptions):
    """Options of segmentation."""


class MeasureOptions(TubeOptions, WindowOptions):
    """Options of measurement."""


class RefineOptions(ShapeOptions, PatchOptions):
    """Options of segmentation by a two-stage pipeline."""


class RefineMeasureOptions(TubeOptions, PatchOptions):
    """Options of measurement by a two-stage pipeline."""


def check_options(options: CommonOptions, manifest: Manifest) -> None:
    """Raises Problem where options do not fit the model or each other."""
    unknown = [name for name in options.wanted() if name not in manifest.classes]
    if unknown:
        raise Problem("bad-option", f"classes={unknown[0]}: the model knows {', '.join(manifest.classes)}")
    if manifest.task == "semantic" and options.score is not None:
        raise Problem("bad-option", f"score={options.score:g}: a model that labels every pixel has no scores: leave it out")
    if isinstance(options, WindowOptions) and options.tile:
        _check_tile(options.tile, manifest)
    if isinstance(options, TubeOptions):
        _check_tube(options, manifest)
    if isinstance(options, PatchOptions) and options.patches is not None and options.threshold is not None:
        raise Problem("bad-option", "patches and threshold say the same: give one of them")


def _check_tile(tile: int, manifest: Manifest) -> None:
    if manifest.task == "instance":
        raise Problem("bad-option", f"tile={tile}: windows are for models that label every pixel: leave it out")
    if tile < 32:
        raise Problem("bad-option", f"tile={tile}: windows have at least 32 pixels a side, or 0 for none")


def _check_tube(options: TubeOptions, manifest: Manifest) -> None:
    if options.tube_diameter_mm is not None and options.mm_per_px is not None:
        raise Problem("bad-option", "tube_diameter_mm and mm_per_px say the same: give one of them")
    rule = band_rule(options)
    if unfit := rule.unfit(manifest.classes):
        raise Problem("bad-option", f"{', '.join(unfit)}: {rule.missing(manifest.classes)}: leave it out, or name others")


def band_rule(options: CommonOptions) -> BandRule:
    """How the band of slag is measured."""
    if not isinstance(options, TubeOptions):
        return BandRule(mm_per_px=options.mm_per_px)
    return BandRule(**{field.name: getattr(options, field.name) for field in fields(BandRule)})
