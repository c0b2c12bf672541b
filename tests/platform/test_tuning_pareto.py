import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratum.pareto import Objective, pareto_front
from stratum.tuning.studies import STUDIES, Tradeoff
from stratum_models.errors import UserError

THREE = (Objective(metric="a", direction="max"), Objective(metric="b", direction="min"), Objective(metric="c", direction="min"))
small = st.integers(min_value=0, max_value=4).map(float)
candidate = st.fixed_dictionaries({"a": small, "b": small, "c": small})


def beaten(one: dict[str, float], other: dict[str, float]) -> bool:
    no_worse = other["a"] >= one["a"] and other["b"] <= one["b"] and other["c"] <= one["c"]
    return no_worse and other != one


@given(st.lists(candidate, max_size=25))
def test_front_is_what_no_other_beats(candidates: list[dict[str, float]]) -> None:
    expected = [i for i, one in enumerate(candidates) if not any(beaten(one, other) for other in candidates)]
    assert pareto_front(candidates, THREE) == expected


@given(st.lists(candidate, min_size=1, max_size=12), st.randoms())
def test_front_does_not_depend_on_the_order(candidates: list[dict[str, float]], random: object) -> None:
    shuffled = list(range(len(candidates)))
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again = pareto_front([candidates[i] for i in shuffled], THREE)
    assert sorted(shuffled[i] for i in again) == pareto_front(candidates, THREE)


@pytest.mark.parametrize("name", STUDIES)
def test_missing_and_nan_values_never_lead(name: str) -> None:
    study = STUDIES[name]
    good = {study.accuracy.metric: 0.5, "cost/macs": 1e9, "cost/size_mb": 9.0}
    blind = {**good, study.accuracy.metric: math.nan}
    assert pareto_front([blind, good, {}], study.objectives) == [1]
    assert study.utility(blind) == -math.inf


def test_utility_prices_doublings() -> None:
    trade = Tradeoff(macs_price=0.02, size_price=0.01, reference_macs=1e9, reference_size_mb=10)
    small, large = {"cost/macs": 1e9, "cost/size_mb": 10.0}, {"cost/macs": 4e9, "cost/size_mb": 20.0}
    assert trade.utility(0.5, small) == pytest.approx(0.5)
    assert trade.utility(0.5, large) == pytest.approx(0.5 - 2 * 0.02 - 0.01)
    assert trade.utility(0.5, {}) == pytest.approx(0.5)
    assert trade.words == "multiply-adds and size"
    timed = Tradeoff(macs_price=0.02, size_price=0, time_price=0.1, reference_macs=1e9, reference_size_mb=10)
    assert timed.utility(0.5, {**large, "cost/relative_time": 0.5}) == pytest.approx(0.5 - 2 * 0.02 + 0.1)
    assert timed.words == "multiply-adds and time"
    assert trade.utility(math.nan, small) == -math.inf


def test_negative_prices_are_refused() -> None:
    with pytest.raises(UserError, match="prices"):
        Tradeoff(macs_price=-1, size_price=0, reference_macs=1, reference_size_mb=1)
