"""What a sweep is: one frozen value that is stored beside its results, so that it can be resumed by name."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from stratum import storage
from stratum.data.frequencies import RULES
from stratum.training.spec import RunSpec, from_dict
from stratum.tuning.groundwork import Groundwork, groundwork_epochs, groundwork_of
from stratum.tuning.space import RATE, Grid, Options, Variant, ablation_grid, own_variant, sampled_variant
from stratum.tuning.studies import Study, find_study
from stratum_models.errors import UserError

Space = Literal["ablation", "search"]
SWEEP_FILE = "sweep.json"


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """A sweep: ``base`` says what every trial has in common, the rest what is varied and how it is judged.

    Sizes are ``(height, width)`` in pixels. ``cost_size`` is what multiply-adds, latency and memory refer to, whatever size is trained on.
    """

    name: str
    base: RunSpec
    study: str = "losnet"
    space: Space = "ablation"
    tables: tuple[str, ...] = ()  # of "ablation"
    models: tuple[str, ...] = ()  # of "ablation", beside the tables: presets, or such as losnet:head_convs=1+norm=gn
    extra: Options = field(default_factory=dict)  # overrides of every variant
    class_weights: str = ""  # a rule of ``stratum.data.frequencies`` for every variant that does not say which; empty: none
    trials: int = 16  # of "search"
    grace_epochs: int = 0  # epochs before ASHA may stop a trial of "search"; 0: a quarter of all
    max_concurrent: int = 0  # 0: as many as the cluster carries
    cost_size: tuple[int, int] = (480, 640)
    finalists: int = 0  # trials that are timed; 0: all of a grid, at most 6 of a search
    timing_rounds: int = 15  # 0: nothing is timed
    register_as: str = "losnet"  # name of the winner in the registry; empty: it is not registered
    keep_as: str = ""  # URI of a folder that also gets the winner's package, in the place of an earlier one; empty: none

    def __post_init__(self) -> None:
        if self.space not in get_args(Space):
            raise UserError(f"space {self.space!r} is unknown: use one of {', '.join(get_args(Space))}")
        if unknown := set(self.tables) - set(self.plan.tables):
            raise UserError(f"tables {', '.join(sorted(unknown))}: {self.study} has {', '.join(self.plan.tables)}")
        if self.class_weights not in ("", "none", *RULES):
            raise UserError(f"class weights {self.class_weights!r} are unknown: use one of none, {', '.join(RULES)}")
        if not self.name or "/" in self.name:
            raise UserError(f"sweep name {self.name!r}: give a plain name without slashes")
        if any(letter in self.register_as for letter in "/:'\""):
            raise UserError(f"registered model {self.register_as!r}: give a name without slashes, colons and quotes")
        if self.trials < 1:
            raise UserError(f"a sweep needs at least one trial, not {self.trials}")
        if min(self.max_concurrent, self.finalists, self.timing_rounds, self.grace_epochs) < 0:
            raise UserError("max_concurrent, finalists, timing_rounds and grace_epochs must be 0 or more")
        if self.space == "ablation" and not self.tables and not self.models:
            raise UserError("nothing to compare: choose --tables, or name presets with --models losnet,condinst_mv3")

    @property
    def plan(self) -> Study:
        """What may be swept over, and how it is judged."""
        return find_study(self.study)

    @property
    def folder(self) -> str:
        """The URI of the sweep's own folder."""
        return storage.join(self.base.storage, self.name)

    def grid(self) -> Grid | None:
        """The variants that are run; None for a search, which draws its own."""
        if self.space == "search":
            return None
        tables = ablation_grid(self.plan, self.tables, self.extra, self.class_weights)
        own = tuple(own_variant(entry, self.extra, self.class_weights) for entry in self.models)
        grid = Grid(variants=tables.variants + own, left_out=tables.left_out)
        name, count = Counter(grid.names()).most_common(1)[0]
        if count > 1:
            raise UserError(f"model {name!r} is named {count} times: name each once")
        return grid

    def variant(self, config: Mapping[str, Any], trial_id: str) -> Variant:
        """The network of a trial's configuration, as Tune hands it over."""
        grid = self.grid()
        if grid is not None:
            return grid.get(config["variant"])
        return sampled_variant(self.plan, config, f"trial-{trial_id}", self.base.model.preset, self.extra, self.class_weights)

    def run_spec(self, variant: Variant, config: Mapping[str, Any]) -> RunSpec:
        """The training run of a trial, but for the weights of the classes, which are counted in the data."""
        rate = self.base.train.learning_rate * float(config.get(RATE, 1.0))
        model = replace(self.base.model, preset=variant.preset, overrides=variant.overrides)
        shared = groundwork_of(variant)
        if shared:
            package = storage.join(self.folder, "shared", shared.name, "package")
            model = replace(model, init=package, overrides={**model.overrides, "stage1_share": 0.0})
        return replace(
            self.base,
            name=variant.name,
            storage=storage.join(self.folder, "trials"),
            model=model,
            train=replace(self.base.train, learning_rate=rate),
        )

    def groundwork_spec(self, shared: Groundwork) -> RunSpec:
        """The training run of what trials share."""
        return replace(
            self.base,
            name=shared.name,
            storage=storage.join(self.folder, "shared"),
            model=replace(self.base.model, preset=shared.preset, overrides=shared.overrides),
            train=replace(self.base.train, epochs=groundwork_epochs(self.base.train.epochs)),
        )


def save_sweep(spec: SweepSpec, parent_id: str | None, fingerprint: str = "") -> None:
    """Write ``sweep.json``: the spec, the MLflow run of the sweep, and the fingerprint of the data.

    Raises UserError where a sweep of this name is there already and ``parent_id`` is None, that is, before its run is open.
    """
    uri = storage.join(spec.folder, SWEEP_FILE)
    if parent_id is None and storage.exists(uri):
        raise UserError(f"{spec.folder}: a sweep of this name is there already: go on with --resume {spec.name}, or give another --name")
    storage.write_json(uri, {"spec": asdict(spec), "run_id": parent_id, "data_fingerprint": fingerprint})


def load_sweep(folder: str) -> tuple[SweepSpec, str | None]:
    """The spec and the MLflow run that :func:`save_sweep` stored. Raises UserError where there is none."""
    uri = storage.join(folder, SWEEP_FILE)
    if not storage.exists(uri):
        raise UserError(f"{folder}: no sweep to resume: its {SWEEP_FILE} is missing; check --storage and the name")
    values = storage.read_json(uri)
    spec = {name: value for name, value in values["spec"].items() if name != "tradeoff"}  # of an earlier version; now the study's
    stored = {
        **spec,
        "base": from_dict(spec["base"]),
        "tables": tuple(map(str, spec["tables"])),  # numbers in an earlier version
        **{name: tuple(spec[name]) for name in ("models", "cost_size")},
    }
    return SweepSpec(**stored), values["run_id"]
