"""What is looked at in the driver before a sweep writes anything."""

from collections.abc import Mapping
from dataclasses import replace

from stratum import storage
from stratum.training.progress import Say
from stratum.training.run import check, report_problems
from stratum.tuning.space import BACKBONES, CHOICES, Grid
from stratum.tuning.spec import SWEEP_FILE, SweepSpec
from stratum_models.catalog import resolve_config
from stratum_models.errors import UserError
from stratum_models.losnet.backbone import build_backbone


def check_sweep(sweep: SweepSpec, say: Say) -> None:
    """Reads the data, says what of them is left out, builds a network, and looks at all others.

    Raises:
        UserError: data or a network cannot be used, or an option is one that the sweep sets itself.
    """
    grid = sweep.grid()
    check_options(sweep, grid)
    networks = [(v.preset, v.overrides) for v in grid.variants] if grid else [(sweep.base.model.preset, sweep.extra)]
    check_backbones(networks)
    preset, overrides = networks[0]
    data = check(replace(sweep.base, model=replace(sweep.base.model, preset=preset, overrides=overrides)))
    report_problems(data, say)


def check_free(sweep: SweepSpec) -> None:
    """Looks, without writing, whether the sweep's place is free. Raises UserError where it is taken, or the storage cannot be read."""
    if storage.exists(storage.join(sweep.folder, SWEEP_FILE)):
        raise UserError(f"{sweep.folder}: a sweep of this name is there already: go on with --resume {sweep.name}, or give another --name")


def check_options(sweep: SweepSpec, grid: Grid | None) -> None:
    """Raises UserError where an option for all trials would be ignored: the sweep varies it, or no network has it."""
    varied = set(CHOICES) if grid is None else {key for v in grid.variants if v.rows for key in v.fixed}
    clash = sorted(varied & set(sweep.extra))
    if clash:
        raise UserError(
            f"--set {clash[0]}: the sweep varies this option itself: leave it out, or compare with --models losnet:{clash[0]}=..."
        )
    presets = [v.preset for v in grid.variants] if grid else [sweep.base.model.preset]
    for key, value in sweep.extra.items():
        if not any(key in vars(resolve_config(preset)) for preset in presets):
            resolve_config(presets[0], {key: value})


def check_backbones(networks: list[tuple[str, Mapping[str, object]]]) -> None:
    """Raises UserError for a backbone that cannot be built; those that the spaces name are known to be."""
    names = {str(getattr(resolve_config(preset, overrides), "backbone", "")) for preset, overrides in networks}
    for name in sorted(names - {"", *map(str, BACKBONES.values()), *map(str, CHOICES["backbone"])}):
        build_backbone(name)
