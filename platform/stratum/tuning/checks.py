"""What is looked at in the driver before a sweep writes anything."""

from collections.abc import Mapping
from dataclasses import replace

from stratum import storage
from stratum.data.source import Dataset
from stratum.training.patches import check_patches
from stratum.training.progress import Say
from stratum.training.run import check, report_problems
from stratum.tuning.space import Grid, known
from stratum.tuning.spec import SWEEP_FILE, SweepSpec
from stratum_models.catalog import build_model, resolve_config
from stratum_models.catalog import preset as preset_of
from stratum_models.errors import UserError


def check_sweep(sweep: SweepSpec, say: Say) -> Dataset:
    """Reads the data, which come back, says what of them is left out, builds a network, and looks at all others.

    Raises:
        UserError: data or a network cannot be used, or an option is one that the sweep sets itself.
    """
    grid = sweep.grid()
    check_options(sweep, grid)
    check_tasks(sweep, grid)
    check_models(grid)
    judged = judged_networks(sweep, grid)
    preset, overrides = (judged or networks(sweep, grid))[0]
    data = check(replace(sweep.base, model=replace(sweep.base.model, preset=preset, overrides=overrides)))
    for name, options in judged:
        check_patches(replace(sweep.base, model=replace(sweep.base.model, preset=name, overrides=options)), data)
    report_problems(data, say)
    return data


def check_free(sweep: SweepSpec) -> None:
    """Looks, without writing, whether the sweep's place is free. Raises UserError where it is taken, or the storage cannot be read."""
    if storage.exists(storage.join(sweep.folder, SWEEP_FILE)):
        raise UserError(f"{sweep.folder}: a sweep of this name is there already: go on with --resume {sweep.name}, or give another --name")


def check_options(sweep: SweepSpec, grid: Grid | None) -> None:
    """Raises UserError where an option for all trials would be ignored: the sweep varies it, or no network has it."""
    varied = set(sweep.plan.choices) if grid is None else {key for v in grid.variants for key in v.fixed}
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


def check_tasks(sweep: SweepSpec, grid: Grid | None) -> None:
    """Raises UserError for a network of another task than the study's: it could not be judged beside the others."""
    task = preset_of(sweep.plan.preset).task
    for preset, _ in networks(sweep, grid):
        if preset_of(preset).task != task:
            raise UserError(f"model {preset} is for {preset_of(preset).task} segmentation: a sweep of {sweep.study} compares {task} models")
    if sweep.class_weights and task != "semantic":
        raise UserError("--class-weights: models for instances have none: leave the flag out")


def check_models(grid: Grid | None) -> None:
    """Raises UserError for a model of one's own that cannot be built; those of the tables are known to be, and data are not read yet."""
    for variant in grid.variants if grid else ():
        if not variant.rows:
            weights = vars(resolve_config(variant.preset, variant.overrides)).get("class_weights", ())
            build_model(variant.preset, num_classes=len(weights) or 2, overrides=variant.overrides)


def judged_networks(sweep: SweepSpec, grid: Grid | None) -> list[tuple[str, Mapping[str, object]]]:
    """As :func:`networks`, with the further judgements of their weights; of a search, one for each size of a patch that it may draw."""
    if grid is not None:
        return networks(sweep, grid) + [(v.preset, judgement.overrides) for v in grid.variants for judgement in v.judgements]
    sides = sweep.plan.choices.get("patch", ())
    start = sweep.base.model.preset
    return [(start, {**known(start, sweep.extra), "patch": side, "pick": "share"}) for side in sides]


def networks(sweep: SweepSpec, grid: Grid | None) -> list[tuple[str, Mapping[str, object]]]:
    """Preset and overrides of every network of a grid; of a search, those that it starts from."""
    start = sweep.base.model.preset
    return [(v.preset, v.overrides) for v in grid.variants] if grid else [(start, known(start, sweep.extra))]
