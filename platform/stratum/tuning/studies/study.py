"""What a family's sweep consists of, as one value: its tables, its search, its columns, and what accuracy may cost."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from stratum.pareto import Objective
from stratum.report.tables import Figure
from stratum_models.errors import UserError

RELATIVE_TIME = "cost/relative_time"  # of a prediction, over that of the study's reference in the same minute on the same machine


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """What a study may want to know of the data: sizes are ``(height, width)`` of validation images as they are predicted."""

    least: tuple[int, int]  # that each of them has
    median: tuple[int, int]
    classes: int


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """One row of a table: a network, how it is trained and judged, and what the paper found.

    What differs may lie in the network (``overrides``), in its training (``class_weights``), or in its evaluation alone (``evaluation``).
    Rows with the same network and training are trained once, and the trained weights are judged as each row asks.

    ``paper`` are the paper's figures by the names that the study's columns have for them. The ``baseline`` of a table is what its other
    rows are compared with.
    """

    table: str
    label: str
    preset: str = ""  # empty: the network is not to be had
    overrides: Mapping[str, object] = field(default_factory=dict)
    class_weights: str | None = None  # "none" or a rule of ``stratum.data.frequencies``; None: those of the sweep
    evaluation: Mapping[str, object] = field(default_factory=dict)  # options that training does not look at
    name: str = ""  # of the run; empty: the preset's where nothing is changed in it, else the key's
    paper: Mapping[str, float] | None = None
    baseline: bool = False
    left_out: str = ""  # why the network is not to be had

    def __post_init__(self) -> None:
        assert bool(self.preset) != bool(self.left_out), f"{self.key}: a row has a network, or a reason why not"

    @property
    def key(self) -> str:
        """The row's name, unique over all tables, such as ``t2/96-no`` or ``temperature/0.1``."""
        return f"t{self.table}/{self.label}" if self.table.isdigit() else f"{self.table}/{self.label}"


@dataclass(frozen=True, kw_only=True)
class Tradeoff:
    """How much accuracy (0..1) a doubling of a cost may buy; one number to rank candidates of different size.

    ``utility = accuracy - macs_price * log2(macs / reference) - size_price * log2(size / reference) - time_price * log2(relative time)``.
    The references only shift all candidates by the same amount; they are those of the study's own network, so that its utility is about
    its accuracy.
    """

    macs_price: float
    size_price: float
    time_price: float = 0.0
    reference_macs: float
    reference_size_mb: float

    def __post_init__(self) -> None:
        if min(self.macs_price, self.size_price, self.time_price) < 0 or min(self.reference_macs, self.reference_size_mb) <= 0:
            raise UserError(f"{self}: prices must be 0 or more and references above 0")

    def utility(self, accuracy: float, costs: Mapping[str, float]) -> float:
        """The utility of a candidate; minus infinity where its accuracy is not a number. Missing costs cost nothing."""
        if math.isnan(accuracy):
            return -math.inf
        macs = costs.get("cost/macs") or self.reference_macs
        size = costs.get("cost/size_mb") or self.reference_size_mb
        doublings = (
            (self.macs_price, macs / self.reference_macs),
            (self.size_price, size / self.reference_size_mb),
            (self.time_price, costs.get(RELATIVE_TIME) or 1.0),
        )
        return accuracy - sum(price * math.log2(ratio) for price, ratio in doublings)

    @property
    def words(self) -> str:
        """What has a price."""
        prices = {"multiply-adds": self.macs_price, "size": self.size_price, "time": self.time_price}
        return " and ".join(name for name, price in prices.items() if price)


@dataclass(frozen=True, kw_only=True)
class Study:
    """What may be swept over in one family of networks.

    ``figures`` are the columns of the report; the first is the accuracy that trials are judged by. Tables with numbers are the paper's.
    """

    name: str
    preset: str  # where a search starts
    figures: tuple[Figure, ...]
    tables: Mapping[str, str]  # headings
    rows: tuple[StudyRow, ...]
    choices: Mapping[str, tuple[object, ...]]  # options that a search draws
    class_weights: tuple[str, ...] = ()  # rules that a search draws; empty: those of the sweep
    defaults: Mapping[str, object] = field(default_factory=dict)  # of every row whose network has the option, unless the sweep sets it
    tradeoff: Tradeoff
    costs: tuple[str, ...] = ("cost/macs", "cost/size_mb")  # what is weighed against the accuracy
    reference: str = ""  # preset beside which every trial is timed; empty: only finalists are timed, at the end
    reference_options: Mapping[str, object] = field(default_factory=dict)
    beside: tuple[str, ...] = ()  # keys of rows that a search trains too, to compare with
    # The study for some data, once they are read, and the options of every trial; None: it is the same for all.
    fit: "Callable[[ImageFacts | None, Mapping[str, object]], Study] | None" = None

    def __post_init__(self) -> None:
        key, count = Counter(row.key for row in self.rows).most_common(1)[0]
        assert count == 1, f"{self.name}: {count} rows are called {key}"
        assert {row.table for row in self.rows} == set(self.tables), f"{self.name}: a table without rows, or rows without a table"

    @property
    def accuracy(self) -> Figure:
        """What trials are judged by."""
        return self.figures[0]

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What the Pareto front and the search weigh against each other."""
        return (
            Objective(metric=self.accuracy.metric, direction="max"),
            *(Objective(metric=cost, direction="min") for cost in self.costs),
        )

    def utility(self, metrics: Mapping[str, float]) -> float:
        """One number for accuracy less its price; minus infinity where the accuracy is missing or not a number."""
        return self.tradeoff.utility(metrics.get(self.accuracy.metric, math.nan), metrics)

    @property
    def paper_tables(self) -> tuple[str, ...]:
        """The tables that the paper has; the others are ours."""
        return tuple(table for table in self.tables if table.isdigit())
