"""Two stages: figures 3 and 4 of the paper with its baseline, and the choices that it leaves open, each alone.

Stage 1 is trained once for each down-scaling (``stratum.tuning.groundwork``). How many patches are picked, by which rule, and how seams are
joined is known at prediction alone: such rows are judgements of one training. What is measured by the clock is measured beside the
full-resolution network, call by call in turn.

What is compared depends on the data: numbers of patches are shares of what every validation image holds, patches that are larger than an
image are left out, and so is what is the same for two classes. The baselines are the network of stage 2 as it is.
"""

import math
from collections.abc import Mapping
from functools import partial

from stratum.report.tables import Figure
from stratum.tuning.studies.semantic import COSTS
from stratum.tuning.studies.study import RELATIVE_TIME, ImageFacts, Study, StudyRow, Tradeoff
from stratum_models.errors import UserError
from stratum_models.two_stage.patches import Grid, check_patch
from stratum_models.two_stage.stage import parse_stage

EMBEDDED = ImageFacts(least=(384, 384), median=(384, 384), classes=2)  # the data that are there without a flag
SIDES = (48, 96, 192)  # of patches, in pixels
SHARES = {"1/8": 1 / 8, "1/4": 1 / 4, "1/2": 1 / 2, "3/4": 3 / 4, "all": 1.0}  # of an image's patches
SCALES = (2, 4, 8)
MARGINS = (0, 8, 16, 32)
HALF = 0.5  # of the patches of the least image, where a row does not say
CAP = 0.5
RULES: dict[str, dict[str, object]] = {
    "half, as a number": {"pick": "count"},
    "an eighth": {"pick": "share", "share": 0.125},
    "a quarter": {"pick": "share", "share": 0.25},
    "confidence below 0.6": {"pick": "threshold", "threshold": 0.6},
    "confidence below 0.8": {"pick": "threshold", "threshold": 0.8},
    "confidence below 0.9": {"pick": "threshold", "threshold": 0.9},
}
MEASURES = tuple((measure, reduction) for measure in ("distance", "margin", "entropy") for reduction in ("mean", "max"))
SAME = "of two classes, margin is distance"
PATCH, STAGE2 = 96, "unet_s2"  # of the preset, whose module imports much


def two_stage_study(facts: ImageFacts | None, given: Mapping[str, object]) -> Study:
    """The study for some validation images, with the options of every trial that are ``given``; for the embedded data without."""
    facts = facts or EMBEDDED
    row = partial(_row, facts, given)
    name, options = _stage2(given)
    baseline = {key: value for key, value in options.items() if key not in given}
    sliding = {key: given["stage2"] for key in ("stage",) if "stage2" in given and key not in given}
    return Study(
        name="two_stage",
        preset="two_stage",
        figures=(
            Figure(title="Dice", metric="val/foreground_dice", scale=100),
            Figure(title="mIoU", metric="val/miou", scale=100),
            Figure(title="patches", metric="val/patches"),
            Figure(title="time / full", metric=RELATIVE_TIME, digits=2),
            *COSTS,
        ),
        tables={
            "3": "Figures 3 and 4: size and number of patches, beside full resolution, sliding window and stage 1 alone",
            "scale": "Down-scaling of stage 1",
            "margin": "Margin around a patch in pixels",
            "blend": "Seams, with a margin of 16",
            "pick": "Which patches are refined",
            "uncertainty": "Uncertainty of a pixel, over a patch",
            "prior": "Whether stage 2 sees the probabilities of stage 1",
        },
        rows=(
            StudyRow(table="3", label="full resolution", preset=name, overrides=baseline, baseline=True),
            _fitting(StudyRow(table="3", label="sliding window", preset="sliding", overrides=sliding), facts, given),
            row("3", "stage 1 alone", share=0.0),
            *(row("3", f"{label} of {side}x{side}", share=share, patch=side) for side in SIDES for label, share in SHARES.items()),
            *(row("scale", str(scale), baseline=scale == 4, scale=float(scale)) for scale in SCALES),
            *(row("margin", str(margin), baseline=margin == 0, margin=margin) for margin in MARGINS),
            row("blend", "hard", baseline=True, margin=16),
            row("blend", "blended", margin=16, evaluation={"blend": True}),
            *(row("pick", label, baseline=label == "half, as a number", evaluation=rule) for label, rule in RULES.items()),
            row("pick", "confidence below 0.9, half at most", evaluation=RULES["confidence below 0.9"], cap=CAP),
            *_measures(facts, given),
            row("prior", "no", baseline=True),
            row("prior", "yes", prior=True),
        ),
        choices={
            "patch": tuple(side for side in SIDES if side <= min(facts.least)),
            "scale": tuple(map(float, SCALES)),
            "margin": (0, 8, 16),
            "pick": ("count", "share", "threshold"),
            "count": (4, 8, 16),
            "share": (0.125, 0.25, 0.5),
            "threshold": (0.6, 0.8, 0.9),
            "cap": (None, 16),
            "uncertainty": ("distance", "entropy", "margin")[: 3 if facts.classes > 2 else 2],
            "reduction": ("mean", "max"),
            "blend": (False, True),
            "prior": (False, True),
        },
        costs=("cost/macs", RELATIVE_TIME),
        reference=name,
        reference_options=baseline,
        beside=("t3/full resolution", "t3/sliding window"),
        # Full resolution at 384x384. Half of the price is on the clock, which alone knows what picking itself costs.
        tradeoff=Tradeoff(macs_price=0.004, size_price=0.0, time_price=0.004, reference_macs=8.9e9, reference_size_mb=107.8),
        fit=two_stage_study,
    )


def _row(
    facts: ImageFacts,
    given: Mapping[str, object],
    table: str,
    label: str,
    *,
    share: float = HALF,
    cap: float | None = None,
    baseline: bool = False,
    evaluation: Mapping[str, object] | None = None,
    **overrides: object,
) -> StudyRow:
    """A row of two stages that refines a share of the patches of the least image, as a number, unless its evaluation says otherwise."""
    held = _held(_side(overrides, given), facts)
    numbers = {"count": _number(share, held), **({} if cap is None else {"cap": _number(cap, held)})}
    row = StudyRow(
        table=table, label=label, preset="two_stage", overrides=overrides, evaluation={**numbers, **(evaluation or {})}, baseline=baseline
    )
    return _fitting(row, facts, given)


def _measures(facts: ImageFacts, given: Mapping[str, object]) -> list[StudyRow]:
    """The table of uncertainties."""
    rows = []
    for measure, reduction in MEASURES:
        label, first = f"{measure} {reduction}", (measure, reduction) == MEASURES[0]
        row = _row(facts, given, "uncertainty", label, baseline=first, uncertainty=measure, reduction=reduction)
        same = measure == "margin" and facts.classes == 2
        rows.append(StudyRow(table="uncertainty", label=label, left_out=SAME) if same else row)
    return rows


def _fitting(row: StudyRow, facts: ImageFacts, given: Mapping[str, object]) -> StudyRow:
    """The row, or the reason why its patches are not to be had."""
    try:
        check_patch(_side(row.overrides, given), facts.least)
    except UserError as error:
        return StudyRow(table=row.table, label=row.label, baseline=row.baseline, left_out=str(error))
    return row


def _side(overrides: Mapping[str, object], given: Mapping[str, object]) -> int:
    return int(str(overrides.get("patch", given.get("patch", PATCH))))


def _held(side: int, facts: ImageFacts) -> int:
    height, width = facts.least
    return len(Grid(height=height, width=width, side=side))


def _number(share: float, held: int) -> int:
    """A share of so many patches, to the nearest number, but not none where there is to be one."""
    return max(math.floor(share * held + 0.5), int(share > 0))


def _stage2(given: Mapping[str, object]) -> tuple[str, dict[str, str]]:
    return parse_stage("stage2", str(given.get("stage2", STAGE2)))


TWO_STAGE = two_stage_study(None, {})
