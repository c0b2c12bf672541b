"""Pictures and figures of classes: each in its own colour, the background as it is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stratum.report.class_overlays import UNKNOWN, class_colours, class_legend, draw_classes
from stratum.report.class_plots import area_plot, class_bars, confusion_plot, share_bars
from stratum.report.overlays import contact_sheet, legend_picture

NAMES = ("background", "rock", "dust")


def test_each_class_has_its_colour_and_the_background_stays() -> None:
    image = torch.full((3, 20, 40), 100, dtype=torch.uint8)
    labels = torch.zeros(20, 40, dtype=torch.uint8)
    labels[:, 10:20], labels[:, 20:30], labels[:, 30:] = 1, 2, 255
    drawn = draw_classes(image, labels, NAMES, alpha=0.5)
    assert (drawn[:, 10, :10] == 100).all()
    for column, colour in ((15, class_colours(NAMES)[1]), (25, class_colours(NAMES)[2]), (35, UNKNOWN[1])):
        assert colour is not None
        assert drawn[:, 10, column].tolist() == pytest.approx([(100 + value) / 2 for value in colour], abs=1)
        assert drawn[:, 10, column - 5].tolist() == pytest.approx([0.05 * 100 + 0.95 * value for value in colour], abs=1)  # its outline
    assert (image == 100).all()
    without = draw_classes(image, labels.clamp(max=1), ("rock", "dust"))
    assert (without[:, 10, 5] != 100).any()  # no background among them: all are tinted


def test_the_legend_names_what_is_tinted(tmp_path: Path) -> None:
    assert [name for name, _ in class_legend(NAMES, unknown=True)] == ["rock", "dust", "not labelled"]
    legend = class_legend(NAMES)
    narrow, wide = legend_picture(legend, 70), legend_picture(legend, 400)
    assert narrow.height > wide.height  # one line each
    for _, colour in legend:
        assert (np.asarray(wide) == colour).all(axis=2).sum() > 150
    image = torch.zeros(3, 30, 30, dtype=torch.uint8)
    plain, keyed = (np.asarray(Image.open(contact_sheet([image], tmp_path / f"{len(key)}.png", legend=key))) for key in ((), legend))
    assert len(keyed) > len(plain)


@pytest.mark.parametrize("matrix", [[[5, 0, 1], [2, 900000, 0], [0, 0, 0]], [[0] * 3] * 3])
def test_figures_are_drawn_for_classes_that_are_absent(tmp_path: Path, matrix: list[list[int]]) -> None:
    values = np.array(matrix)
    shares = values / np.maximum(values.sum(1, keepdims=True), 1)
    paths = [
        confusion_plot(values, NAMES, tmp_path / "confusion.png"),
        class_bars([0.5, float("nan"), 1.0] if values.any() else [float("nan")] * 3, NAMES, tmp_path / "bars.png", label="IoU"),
        share_bars(shares, NAMES, ("1/4", "1/8", "1/16"), tmp_path / "shares.png", label="share"),
        area_plot(shares if values.any() else np.zeros((0, 3)), NAMES, tmp_path / "areas.png"),
    ]
    for path in paths:
        assert np.asarray(Image.open(path)).std() > 3  # something is on it
