"""Two stages: figures 3 and 4 of the paper with its baseline, and the choices that it leaves open, each alone.

Stage 1 is trained once for each down-scaling (``stratum.tuning.groundwork``). How many patches are picked, by which rule, and how seams are
joined is known at prediction alone: such rows are judgements of one training. What is measured by the clock is measured beside the
full-resolution network, call by call in turn.
"""

from stratum.report.tables import Figure
from stratum.tuning.studies.semantic import COSTS
from stratum.tuning.studies.study import RELATIVE_TIME, Study, StudyRow, Tradeoff

# Sides of patches in pixels, and how many of them are refined: from an eighth of an image of 384x384 pixels to all of it.
PATCHES: dict[int, tuple[int, ...]] = {48: (8, 16, 32, 64), 96: (2, 4, 8, 16), 192: (1, 2, 4)}
SCALES = (2, 4, 8)
MARGINS = (0, 8, 16, 32)
RULES: dict[str, dict[str, object]] = {
    "8 patches": {"pick": "count"},
    "an eighth": {"pick": "share", "share": 0.125},
    "a quarter": {"pick": "share", "share": 0.25},
    "confidence below 0.6": {"pick": "threshold", "threshold": 0.6},
    "confidence below 0.8": {"pick": "threshold", "threshold": 0.8},
    "confidence below 0.9": {"pick": "threshold", "threshold": 0.9},
}
MEASURES = (("distance", "mean"), ("distance", "max"), ("entropy", "mean"), ("entropy", "max"))  # of two classes, margin is distance
COUNT = 8  # patches, where a row does not say


def _row(table: str, label: str, *, baseline: bool = False, evaluation: dict[str, object] | None = None, **overrides: object) -> StudyRow:
    return StudyRow(
        table=table,
        label=label,
        preset="two_stage",
        overrides=overrides,
        evaluation={"count": COUNT, **(evaluation or {})},
        baseline=baseline,
    )


TWO_STAGE = Study(
    name="two_stage",
    preset="two_stage",
    figures=(
        Figure(title="Dice", metric="val/dice", scale=100),
        Figure(title="mIoU", metric="val/miou", scale=100),
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
        StudyRow(table="3", label="full resolution", preset="unet_s2", baseline=True),
        StudyRow(table="3", label="sliding window", preset="sliding"),
        _row("3", "stage 1 alone", evaluation={"count": 0}),
        *(
            _row("3", f"{count} of {side}x{side}", patch=side, evaluation={"count": count})
            for side, counts in PATCHES.items()
            for count in counts
        ),
        *(_row("scale", str(scale), baseline=scale == 4, scale=float(scale)) for scale in SCALES),
        *(_row("margin", str(margin), baseline=margin == 0, margin=margin) for margin in MARGINS),
        _row("blend", "hard", baseline=True, margin=16),
        _row("blend", "blended", margin=16, evaluation={"blend": True}),
        *(_row("pick", label, baseline=label == "8 patches", evaluation=rule) for label, rule in RULES.items()),
        *(
            _row(
                "uncertainty",
                f"{measure} {reduction}",
                baseline=(measure, reduction) == MEASURES[0],
                uncertainty=measure,
                reduction=reduction,
            )
            for measure, reduction in MEASURES
        ),
        _row("prior", "no", baseline=True),
        _row("prior", "yes", prior=True),
    ),
    choices={
        "patch": tuple(PATCHES),
        "scale": tuple(map(float, SCALES)),
        "margin": (0, 8, 16),
        "pick": ("count", "share", "threshold"),
        "count": (4, 8, 16),
        "share": (0.125, 0.25, 0.5),
        "threshold": (0.6, 0.8, 0.9),
        "uncertainty": ("distance", "entropy"),
        "reduction": ("mean", "max"),
        "blend": (False, True),
        "prior": (False, True),
    },
    costs=("cost/macs", RELATIVE_TIME),
    reference="unet_s2",
    tradeoff=Tradeoff(macs_price=0.008, size_price=0.0, reference_macs=8.9e9, reference_size_mb=107.8),  # full resolution at 384x384
)
