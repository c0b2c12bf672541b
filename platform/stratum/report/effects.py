"""What one choice does to accuracy: a small panel for each thing that a sweep varied alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

from stratum.report.style import INK, colour, new_figure, save

COLUMNS = 2


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What was varied, and the accuracy (0..1) that each value of it reached, in the order in which they are shown."""

    title: str
    values: Mapping[str, float]

    @property
    def ordered(self) -> bool:
        """Whether all values are numbers, so that a line from one to the next means something."""
        return all(_is_number(label) for label in self.values)


def effects_plot(effects: Sequence[Effect], path: Path | str, *, quality_label: str, title: str = "") -> Path:
    """A panel for each effect: a line where its values are numbers, points where they are words, each with its accuracy in percent.

    All panels have one scale, so that a large effect looks larger than a small one.
    """
    rows = -(-len(effects) // COLUMNS)
    columns = min(COLUMNS, len(effects))
    figure, axes = new_figure(5.6 * columns, 3.0 * rows, rows=rows, columns=columns, title=title, share_x=False)
    reached = [100 * value for effect in effects for value in effect.values.values()]
    margin = max(0.15 * (max(reached) - min(reached)), 0.5)
    for number, (panel, effect) in enumerate(zip(axes, effects, strict=False)):
        _draw(panel, effect, colour(number))
        panel.set(ylabel=f"{quality_label}, %", ylim=(min(reached) - margin, max(reached) + margin))
    for panel in axes[len(effects) :]:
        panel.set_visible(False)
    return save(figure, path)


def _draw(panel: Axes, effect: Effect, shade: str) -> None:
    heights = [100 * value for value in effect.values.values()]
    places = range(len(heights))
    panel.plot(places, heights, marker="o", markersize=6, color=shade, linewidth=1.6 if effect.ordered else 0)
    panel.set_xticks(places, list(effect.values), fontsize=8)
    panel.margins(x=0.12)
    panel.set_title(effect.title, fontsize=9, color=INK)
    for place, height in zip(places, heights, strict=True):
        panel.annotate(f"{height:.1f}", (place, height), (0, 6), textcoords="offset points", ha="center", fontsize=8, color=INK)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
