"""What is looked at in the driver before a sweep writes anything."""

from collections.abc import Mapping
from dataclasses import replace
from statistics import median_low

from stratum import storage
from stratum.data.source import Dataset
from stratum.training.patches import check_patches
from stratum.training.progress import Say
from stratum.training.run import check, load, report_problems
from stratum.tuning.space import Grid, known
from stratum.tuning.spec import SWEEP_FILE, SweepSpec
from stratum.tuning.studies import ImageFacts
from stratum_models.catalog import build_model, resolve_config
from stratum_models.catalog import preset as preset_of
from stratum_models.errors import UserError


def check_sweep(sweep: SweepSpec, say: Say) -> tuple[SweepSpec, Dataset]:
    """Reads the data, says what of them is left out, builds a network, and looks at all others; the sweep for these data comes back.

    Raises:
        UserError: data or a network cannot be used, or an option is one that the sweep sets itself.
    """
    grid = sweep.grid()
    check_options(sweep, grid)
    check_tasks(sweep, grid)
    check_models(grid)
    data = load(sweep.base)
    sweep, known_before = fitted(sweep, data), grid.left_out
    grid = sweep.grid()
    left_out = [f"{key} is not run: {reason}" for key, reason in grid.left_out.items() if key not in known_before]
    judged = judged_networks(sweep, grid)
    if not judged:
        raise UserError(f"{sweep.base.data.uri}: nothing is left to compare: {left_out[0]}")
    preset, overrides = judged[0]
    check(replace(sweep.base, model=replace(sweep.base.model, preset=preset, overrides=overrides)), data=data)
    for name, options in judged:
        check_patches(replace(sweep.base, model=replace(sweep.base.model, preset=name, overrides=options)), data)
    report_problems(data, say)
    for line in left_out:
        say(line)
    if sweep.facts and sweep.cost_size != sweep.facts.median:
        say(sweep.cost_note)
    return sweep, data


def fitted(sweep: SweepSpec, data: Dataset) -> SweepSpec:
    """The sweep for its data, where these matter; one that was fitted to them before stays as it was."""
    if sweep.facts is not None or (sweep.plan.fit is None and any(sweep.cost_size)):
        return sweep
    options = resolve_config(*networks(sweep, sweep.grid())[0])
    sizes = [options.scaled(*record.size) for record in data.val.records]
    heights, widths = ([size[side] for size in sizes] for side in (0, 1))
    median = median_low(heights), median_low(widths)
    facts = ImageFacts(least=(min(heights), min(widths)), median=median, classes=len(data.classes))
    return replace(sweep, facts=facts, cost_size=sweep.cost_size if any(sweep.cost_size) else median)


def check_free(sweep: SweepSpec) -> None:
    """Looks, without writing, whether the sweep's place is free. Raises UserError where it is taken, or the storage cannot be read."""
    if storage.exists(storage.join(sweep.folder, SWEEP_FILE)):
        raise UserError(f"{sweep.folder}: a sweep of this name is there already: go on with --resume {sweep.name}, or give another --name")


def check_options(sweep: SweepSpec, grid: Grid) -> None:
    """Raises UserError where an option for all trials would be ignored: the sweep varies it, or no network has it."""
    varied = {key for v in grid.variants for key in v.fixed} | (set(sweep.plan.choices) if sweep.space == "search" else set())
    clash = sorted(varied & set(sweep.extra))
    if clash:
        preset = sweep.plan.preset
        raise UserError(
            f"--set {clash[0]}: the sweep varies this option itself: leave it out, or compare with --models {preset}:{clash[0]}=..."
        )
    presets = [preset for preset, _ in networks(sweep, grid)] + ([sweep.plan.reference] if sweep.plan.reference else [])
    for key, value in sweep.extra.items():
        if not any(key in vars(resolve_config(preset)) for preset in presets):
            resolve_config(presets[0], {key: value})


def check_tasks(sweep: SweepSpec, grid: Grid) -> None:
    """Raises UserError for a network of another task than the study's: it could not be judged beside the others."""
    task = preset_of(sweep.plan.preset).task
    for preset, _ in networks(sweep, grid):
        if preset_of(preset).task != task:
            raise UserError(f"model {preset} is for {preset_of(preset).task} segmentation: a sweep of {sweep.study} compares {task} models")
    if sweep.class_weights and task != "semantic":
        raise UserError("--class-weights: models for instances have none: leave the flag out")


def check_models(grid: Grid) -> None:
    """Raises UserError for a model of one's own that cannot be built; those of the tables are known to be, and data are not read yet."""
    for variant in grid.variants:
        if not variant.rows:
            weights = vars(resolve_config(variant.preset, variant.overrides)).get("class_weights", ())
            build_model(variant.preset, num_classes=len(weights) or 2, overrides=variant.overrides)


def judged_networks(sweep: SweepSpec, grid: Grid) -> list[tuple[str, Mapping[str, object]]]:
    """As :func:`networks`, with the further judgements of their weights; of a search, one for each size of a patch that it may draw.

    Raises UserError where images are too small for all of them.
    """
    named = [(v.preset, overrides) for v in grid.variants for overrides in (v.overrides, *(one.overrides for one in v.judgements))]
    if sweep.space != "search":
        return named
    start = sweep.base.model.preset
    plain = known(start, sweep.extra)
    if "patch" not in sweep.plan.choices:
        return [(start, plain), *named]
    sides = sweep.plan.choices["patch"]
    if not sides:
        raise UserError(f"{sweep.base.data.uri}: images are too small for a search over patches: name what to compare with --models")
    return [(start, {**plain, "patch": side, "pick": "share"}) for side in sides] + named


def networks(sweep: SweepSpec, grid: Grid) -> list[tuple[str, Mapping[str, object]]]:
    """Preset and overrides of what a search starts from, and of every network of a grid."""
    start = sweep.base.model.preset
    drawn = [(start, known(start, sweep.extra))] if sweep.space == "search" else []
    return drawn + [(v.preset, v.overrides) for v in grid.variants]
