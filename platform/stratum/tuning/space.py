"""What a sweep varies: the rows of a study's tables, or what is drawn from the joint space of its search.

A grid's variant is a preset with overrides. Rows of different tables that describe the same network in the same training share one variant,
and one run; where they are only judged differently, the variant's weights are judged once more for each.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from stratum.tuning.studies import Study, StudyRow
from stratum_models.catalog import preset as preset_of
from stratum_models.catalog import resolve_config
from stratum_models.errors import UserError

LEARNING_RATE_FACTOR = (0.25, 4.0)  # of the run's own learning rate, drawn on a logarithmic scale
RATE, WEIGHTS = "learning_rate_factor", "class_weights_rule"  # what a search draws beside options of the network
Options = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Another evaluation of a variant's weights, with the network's options as ``overrides``, for ``rows`` of the tables."""

    name: str
    overrides: Options
    rows: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One network of a grid, and how it is trained. ``rows`` are the keys of the rows that it stands for, such as ``t2/96-no``.

    ``fixed`` names the overrides that these rows ask for. ``class_weights`` is a rule of ``stratum.data.frequencies``; empty: none.
    """

    name: str
    preset: str
    overrides: Options
    rows: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    class_weights: str = ""
    judgements: tuple[Judgement, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The variants of a sweep, and the rows of the tables that cannot be run, with the reason."""

    variants: tuple[Variant, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def get(self, name: str) -> Variant:
        """The variant of this name."""
        return next(v for v in self.variants if v.name == name)

    def names(self) -> list[str]:
        """The names of all variants, and of the further judgements of their weights."""
        return [name for v in self.variants for name in (v.name, *(judgement.name for judgement in v.judgements))]


def parse_tables(study: Study, text: str) -> tuple[str, ...]:
    """``"2,4"`` as ``("2", "4")``; ``"all"`` is every table, ``"paper"`` those with numbers. Raises UserError for tables there are not."""
    if text in ("all", "paper"):
        return tuple(study.tables) if text == "all" else study.paper_tables
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or set(parts) - set(study.tables):
        raise UserError(
            f"--tables {text!r}: there are {', '.join(study.tables)}; write them like {','.join(list(study.tables)[:2])} or all"
        )
    return tuple(table for table in study.tables if table in parts)


def ablation_grid(study: Study, tables: Sequence[str], extra: Options | None = None, class_weights: str = "") -> Grid:
    """The rows of some tables as variants, in the order of the tables.

    Every variant takes what it has of the ``extra`` options, and ``class_weights`` where its row does not say which.
    """
    return rows_grid(study, table_rows(study, tables), extra, class_weights)


def table_rows(study: Study, tables: Sequence[str]) -> list[StudyRow]:
    """The rows of some tables, in their order."""
    return [row for table in tables for row in study.rows if row.table == table]


def rows_grid(study: Study, rows: Sequence[StudyRow], extra: Options | None = None, class_weights: str = "") -> Grid:
    """As :func:`ablation_grid`, of single rows."""
    groups: dict[str, list[StudyRow]] = {}
    for row in rows:
        if row.preset:
            groups.setdefault(_identity(_variant(study, row, extra or {}, class_weights)), []).append(row)
    return Grid(
        variants=tuple(_merged(study, members, extra or {}, class_weights) for members in groups.values()),
        left_out={row.key: row.left_out for row in rows if row.left_out},
    )


def own_variant(entry: str, extra: Options | None = None, class_weights: str = "") -> Variant:
    """A preset, or one with options of its own, as in ``losnet:head_convs=1+norm=gn``; of ``extra`` it takes what it has.

    Raises UserError for an unknown preset or option.
    """
    preset, _, options = entry.partition(":")
    pairs = [option for option in options.split("+") if option]
    if any("=" not in pair for pair in pairs):
        raise UserError(f"model {entry!r}: write options as losnet:head_convs=1+norm=gn")
    given = dict(pair.split("=", 1) for pair in pairs)
    overrides = typed(preset, {**known(preset, extra or {}), **given})
    return Variant(name=_slug("-".join([preset, *pairs])), preset=preset, overrides=overrides, class_weights=class_weights)


def search_space(study: Study) -> dict[str, Any]:
    """The joint space as Ray Tune's domains: one choice for each option, and a factor of the learning rate."""
    from ray import tune

    space: dict[str, Any] = {name: tune.choice(list(values)) for name, values in study.choices.items()}
    if study.class_weights:
        space[WEIGHTS] = tune.choice(list(study.class_weights))
    space[RATE] = tune.loguniform(*LEARNING_RATE_FACTOR)
    return space


def sampled_variant(study: Study, config: Mapping[str, Any], name: str, preset: str, extra: Options, class_weights: str = "") -> Variant:
    """The network that a sample of :func:`search_space` describes. Raises UserError where the preset cannot be built like that."""
    drawn = {key: value for key, value in config.items() if key in study.choices}
    overrides = typed(preset, {**known(preset, {**study.defaults, **extra}), **drawn})
    return Variant(name=name, preset=preset, overrides=overrides, class_weights=rule_of(config.get(WEIGHTS, class_weights)))


def known(preset: str, options: Options) -> dict[str, object]:
    """Those of the options that a preset has."""
    names = vars(resolve_config(preset))
    return {name: value for name, value in options.items() if name in names}


def typed(preset: str, overrides: Options) -> dict[str, object]:
    """The overrides with values of the options' own types. Raises UserError for one that the preset has not, or cannot take."""
    config = vars(resolve_config(preset, overrides))
    return {name: config[name] for name in overrides}


def rule_of(class_weights: str) -> str:
    """The rule of ``stratum.data.frequencies``; empty for "none"."""
    return "" if class_weights == "none" else class_weights


def _variant(study: Study, row: StudyRow, extra: Options, class_weights: str) -> Variant:
    """A row's variant, by itself."""
    overrides = typed(row.preset, {**known(row.preset, {**study.defaults, **extra}), **row.overrides})
    return Variant(
        name=_name(study, row),
        preset=row.preset,
        overrides=overrides,
        fixed=(*row.overrides, *row.evaluation),
        class_weights=rule_of(class_weights if row.class_weights is None else row.class_weights),
    )


def _merged(study: Study, rows: Sequence[StudyRow], extra: Options, class_weights: str) -> Variant:
    """The variant of rows that share a training, with a judgement for each other evaluation than its own.

    Its own is what its options say; where no row asks for that, it is that of the first row.
    """
    variants = [_variant(study, row, extra, class_weights) for row in rows]
    first = variants[0]
    plain = _identity(first)
    judged: dict[str, list[tuple[StudyRow, dict[str, object]]]] = {}
    for row in rows:
        overrides = typed(first.preset, {**first.overrides, **row.evaluation})
        judged.setdefault(_identity(first, overrides), []).append((row, overrides))
    own = plain if plain in judged else next(iter(judged))
    judgements = tuple(
        Judgement(name=_slug(members[0][0].key), overrides=members[0][1], rows=tuple(row.key for row, _ in members))
        for identity, members in judged.items()
        if identity != own
    )
    row, overrides = judged[own][0]
    return Variant(
        name=_name(study, row),
        preset=first.preset,
        overrides=overrides,
        rows=tuple(one.key for one, _ in judged[own]),
        fixed=tuple(dict.fromkeys(name for variant in variants for name in variant.fixed)),
        class_weights=first.class_weights,
        judgements=judgements,
    )


def _identity(variant: Variant, overrides: Options | None = None) -> str:
    """What tells networks and their training apart, whatever preset they start from."""
    config = asdict(resolve_config(variant.preset, variant.overrides if overrides is None else overrides))
    return repr((preset_of(variant.preset).build.__qualname__, sorted(config.items()), variant.class_weights))


def _name(study: Study, row: StudyRow) -> str:
    """A name for files and runs: the preset's where a row is the preset as it stands."""
    asks = row.overrides or row.evaluation or row.class_weights is not None
    alone = resolve_config(row.preset, known(row.preset, study.defaults)) == resolve_config(row.preset)
    return row.name or (_slug(row.key) if asks or not alone else row.preset)


def _slug(key: str) -> str:
    return re.sub(r"[^\w.+=-]+", "-", key)
