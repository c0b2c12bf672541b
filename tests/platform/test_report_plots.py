import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.text import Text
from PIL import Image

from stratum.measurements import SizeDistribution
from stratum.metrics.instance import OperatingPoint, PrecisionRecall
from stratum.report.annotate import PointLabel, place_labels
from stratum.report.plots import Candidate, pareto_plot, precision_recall_plot, size_plot, training_plot
from stratum.report.style import log_axis, new_figure


def stones(count: int, seed: int = 0, scale: float = 40, **options: str) -> SizeDistribution:
    sizes = scale * np.random.default_rng(seed).weibull(1.5, count) + 1
    return SizeDistribution(sizes=sizes, weights=sizes**3, **options)


def curve(label: int, top: float = 1.0) -> PrecisionRecall:
    recall = np.linspace(0, 1, 101)
    precision = np.where(recall < 0.8, top - 0.5 * recall, 0)
    return PrecisionRecall(
        label=label, recall=recall.tolist(), precision=precision.tolist(), scores=(1 - recall).tolist(), average_precision=0.6
    )


CANDIDATES = [
    Candidate(name="small", cost=2.0, quality=0.4, size_mb=4, group="search"),
    Candidate(name="losnet", cost=7.0, quality=0.6, size_mb=9.6, group="search"),
    Candidate(name="worse", cost=9.0, quality=0.5, size_mb=30, group="baseline"),
    Candidate(name="unsized", cost=90.0, quality=0.62),
    Candidate(name="failed", cost=math.nan, quality=0.9),
    Candidate(name="untrained", cost=1.0, quality=math.nan),
    Candidate(name="free", cost=0.0, quality=0.9),
]


def test_the_pareto_plot_names_the_models_and_leaves_out_what_has_no_place(tmp_path) -> None:
    text = pareto_plot(CANDIDATES, tmp_path / "new" / "front.svg", title="a sweep", cost_label="latency (ms)").read_text()
    for word in ("small", "losnet", "worse", "unsized", "a sweep", "latency (ms)", "mask AP50", "Pareto front", "search", "7.5 MB"):
        assert f"<!-- {word} -->" in text
    for word in ("failed", "untrained", "free"):
        assert f"<!-- {word} -->" not in text


@pytest.mark.parametrize("corner", [(90.0, 0.2), (1.0, 0.2), (1.0, 0.8), (90.0, 0.8)])
def test_the_legend_covers_no_model(monkeypatch: pytest.MonkeyPatch, tmp_path, corner: tuple[float, float]) -> None:
    kept: list[plt.Figure] = []
    monkeypatch.setattr("stratum.report.plots.save", lambda figure, path: kept.append(figure) or path)
    cost, quality = corner
    others = [Candidate(name=f"{x}", cost=x, quality=y, size_mb=2) for x, y in ((2.0, 0.2), (30.0, 0.8))]  # they span the axes
    pareto_plot([Candidate(name="large", cost=cost, quality=quality, size_mb=30), *others], tmp_path / "x.png")
    (axes,) = kept[0].axes
    kept[0].draw_without_rendering()
    box = axes.get_legend().get_window_extent()
    x, y = axes.transData.transform(corner)
    radius = math.sqrt(900) / 2 * kept[0].dpi / 72
    assert not box.padded(radius).contains(x, y)


def test_a_given_front_is_taken_and_a_worked_out_one_is_right(tmp_path) -> None:
    own = pareto_plot(CANDIDATES, tmp_path / "own.png").read_bytes()
    assert pareto_plot(CANDIDATES, tmp_path / "same.png", front=[0, 1, 3]).read_bytes() == own
    assert pareto_plot(CANDIDATES, tmp_path / "other.png", front=[0, 2]).read_bytes() != own


@pytest.mark.parametrize("candidates", [[], CANDIDATES[4:], CANDIDATES[:1], [CANDIDATES[0]] * 2])
def test_few_candidates_still_give_a_figure(tmp_path, candidates: list[Candidate]) -> None:
    with Image.open(pareto_plot(candidates, tmp_path / "front.png")) as picture:
        assert picture.width > 1000


def test_precision_and_recall_show_each_class_and_the_threshold(tmp_path) -> None:
    point = OperatingPoint(threshold=0.37, precision=0.7, recall=0.6, f1=0.646)
    text = precision_recall_plot([curve(0), curve(4, 0.8)], tmp_path / "pr.svg", classes=["ore"], point=point).read_text()
    for word in ("ore: AP50 0.600", "class 4: AP50 0.600", "score from 0.37: F1 0.646"):
        assert f"<!-- {word} -->" in text
    assert "nothing labelled" in precision_recall_plot([], tmp_path / "none.svg").read_text()


def test_sizes_show_both_curves_the_law_and_the_errors(tmp_path) -> None:
    truth = stones(300, unit="mm")
    larger = SizeDistribution(sizes=truth.sizes * 1.1, weights=truth.weights, unit="mm")
    text = size_plot(larger, truth, tmp_path / "sizes.svg", title="val").read_text()
    for word in (
        "predicted, 300 particles",
        "ground truth, 300 particles",
        "Rosin-Rammler: x63.2",
        "equivalent diameter (mm)",
        "by volume",
    ):
        assert word in text
    assert text.count("+10.0 %") == 4  # D10, D50, D80, D90


@pytest.mark.parametrize(
    ("predicted", "truth"), [(stones(30), None), (stones(0), stones(9)), (stones(9), stones(0)), (stones(0), None), (stones(1), stones(1))]
)
def test_sizes_with_a_side_missing(tmp_path, predicted: SizeDistribution, truth: SizeDistribution | None) -> None:
    text = size_plot(predicted, truth, tmp_path / "sizes.svg").read_text()
    assert ("no particle" in text) == (len(predicted) == 0 and truth is None)


def test_training_shows_losses_and_validation_and_skips_holes(tmp_path) -> None:
    history = [{"epoch": e, "train/loss": 3.0 / e, "lr": 0.1, **({"val/mask_ap50": e / 20} if e % 5 == 0 else {})} for e in range(1, 11)]
    history[3]["train/loss"] = math.nan
    text = training_plot(history, tmp_path / "training.svg", title="losnet").read_text()
    for word in ("train/loss", "val/mask_ap50", "0.500", "losnet", "epoch"):
        assert f"<!-- {word} -->" in text
    assert "<!-- lr -->" not in text
    bare = training_plot([], tmp_path / "none.svg").read_text()
    assert "no loss" in bare
    assert "no validation" in bare


def test_nothing_is_left_in_pyplot(tmp_path) -> None:
    before = plt.get_fignums()
    training_plot([{"loss": 1.0}], tmp_path / "a.png")
    pareto_plot(CANDIDATES, tmp_path / "b.png")
    assert plt.get_fignums() == before


@settings(deadline=None, max_examples=8)
@given(st.lists(st.tuples(st.floats(1, 100), st.floats(0, 1)), min_size=2, max_size=12))
def test_names_that_may_stay_away_never_cover_each_other(points: list[tuple[float, float]]) -> None:
    figure, (axes,) = new_figure(6, 4)
    log_axis(axes, 0.5, 200)
    axes.set_ylim(-0.2, 1.2)
    labels = [PointLabel(text=f"a model {i}", x=x, y=y, area=60) for i, (x, y) in enumerate(points)]
    written = place_labels(axes, labels)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # of the name alone, without its line
    assert written == len(boxes) >= 1
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)


def test_required_names_are_always_written() -> None:
    _, (axes,) = new_figure(3, 2)
    crowd = [PointLabel(text="a rather long name of a model", x=0.5, y=0.5, area=900, required=i < 3) for i in range(30)]
    assert 3 <= place_labels(axes, crowd) < 30
    assert place_labels(axes, []) == 0


@pytest.mark.parametrize(("low", "high"), [(0.9, 1.3), (2, 30), (0.01, 5000)])
def test_logarithmic_ticks_are_plain_numbers(low: float, high: float) -> None:
    figure, (axes,) = new_figure(6, 4)
    log_axis(axes, low, high)
    figure.draw_without_rendering()
    shown = [tick.get_text() for tick, at in zip(axes.get_xticklabels(), axes.get_xticks(), strict=True) if low <= at <= high]
    assert 1 <= len(shown) <= 20
    assert all(float(text) > 0 and "e" not in text for text in shown)
