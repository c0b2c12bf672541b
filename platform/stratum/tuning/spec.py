"""What a sweep is: one frozen value that is stored beside its results, so that it can be resumed by name."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from stratum import storage
from stratum.data.frequencies import RULES
from stratum.training.spec import RunSpec, from_dict
from stratum.tuning.groundwork import Groundwork, groundwork_epochs, groundwork_of
from stratum.tuning.space import RATE, Grid, Options, Variant, own_variant, rows_grid, sampled_variant, table_rows
from stratum.tuning.studies import ImageFacts, Study, find_study
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
    models: tuple[str, ...] = ()  # beside the tables, or beside what a search draws: presets, or such as losnet:head_convs=1+norm=gn
    extra: Options = field(default_factory=dict)  # overrides of every variant
    class_weights: str = ""  # a rule of ``stratum.data.frequencies`` for every variant that does not say which; empty: none
    trials: int = 16  # of "search"
    grace_epochs: int = 0  # epochs before ASHA may stop a trial of "search"; 0: a quarter of all
    max_concurrent: int = 0  # 0: as many as the cluster carries
    cost_size: tuple[int, int] = (480, 640)  # (0, 0): the median of the validation images, once they are read
    facts: ImageFacts | None = None  # of the data, once they are read
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
        """What may be swept over, and how it is judged; of studies that look at the data, for these once they are read."""
        study = find_study(self.study)
        return study.fit(self.facts, self.extra) if study.fit else study

    @property
    def folder(self) -> str:
        """The URI of the sweep's own folder."""
        return storage.join(self.base.storage, self.name)

    def grid(self) -> Grid:
        """The variants that are known beforehand: the rows of the tables, of a search those that it is compared with, and ``models``."""
        plan = self.plan
        rows = [row for row in plan.rows if row.key in plan.beside] if self.space == "search" else table_rows(plan, self.tables)
        tables = rows_grid(plan, rows, self.extra, self.class_weights)
        own = tuple(own_variant(entry, self.extra, self.class_weights) for entry in self.models)
        grid = Grid(variants=tables.variants + own, left_out=tables.left_out)
        for name, count in Counter(grid.names()).most_common(1):
            if count > 1:
                raise UserError(f"model {name!r} is named {count} times: name each once")
        return grid

    @property
    def total(self) -> int:
        """How many trials there are."""
        return len(self.grid().variants) + (self.trials if self.space == "search" else 0)

    @property
    def cost_note(self) -> str:
        """What size costs are of, where a study depends on the size of its images; empty where it does not."""
        if self.facts is None:
            return ""
        wanted, found = ("x".join(map(str, size)) for size in (self.cost_size, self.facts.median))
        if wanted == found:
            return f"costs are those of {found} pixels, the median size of the validation images"
        return (
            f"costs are those of {wanted} pixels, accuracy that of the validation images, whose median is {found}: a number of patches is"
            " another share of each; leave --cost-size out to have both of one size"
        )

    def variant(self, config: Mapping[str, Any], trial_id: str) -> Variant:
        """The network of a trial's configuration, as Tune hands it over."""
        if "variant" in config:
            return self.grid().get(config["variant"])
        return sampled_variant(self.plan, config, f"trial-{trial_id}", self.base.model.preset, self.extra, self.class_weights)

    def run_spec(self, variant: Variant, config: Mapping[str, Any]) -> RunSpec:
        """The training run of a trial, but for the weights of the classes, which are counted in the data."""
        rate = self.base.train.learning_rate * float(config.get(RATE) or 1.0)
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
        "facts": _facts(spec.get("facts")),
    }
    return SweepSpec(**stored), values["run_id"]


def _facts(stored: Mapping[str, Any] | None) -> ImageFacts | None:
    """As they were before JSON."""
    if not stored:
        return None
    return ImageFacts(least=tuple(stored["least"]), median=tuple(stored["median"]), classes=stored["classes"])
