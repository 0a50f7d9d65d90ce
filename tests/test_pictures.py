"""Pictures hold what they promise, and nothing lies over anything else."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection

from conftest import EXAMPLE
from klscale import scales
from klscale.errors import InputError
from klscale.imports import read_log_likelihoods
from klscale.pictures import DOT, kl_heat_map, save, scale_ruler


@pytest.fixture(scope="module")
def vectors():
    return read_log_likelihoods(EXAMPLE, id_column="text_id")


def words(figure):
    return [text for text in figure.findobj(plt.Text) if text.get_text() and text.get_visible()]


def drawn_boxes(figure):
    """Where each piece of text is, once drawn."""
    FigureCanvasAgg(figure).draw()
    return {text.get_text(): text.get_window_extent() for text in words(figure)}


@pytest.mark.parametrize("k", [2, 3, 4, 14])
def test_heat_map_of_few_models(vectors, k):
    """Title, colour bar and cells are apart; one pair needs no colour bar."""
    figure = kl_heat_map(vectors.subset(vectors.names[:k]))
    boxes = drawn_boxes(figure)
    title = next(box for text, box in boxes.items() if text.startswith(f"{k} models"))
    label = next(box for text, box in boxes.items() if text.startswith("KL, bits/byte"))
    assert not title.overlaps(label)
    assert not any(box.overlaps(label) for text, box in boxes.items() if text.startswith("±"))
    assert len(figure.axes) + len(figure.axes[0].child_axes) == (2 if k > 2 else 1)
    assert sum(text.startswith("±") for text in (t.get_text() for t in words(figure))) == k * (k - 1) // 2


def test_ruler(vectors, tmp_path):
    """A row for each setting in order, every pair a dot at its value, the published values beside with their caveat."""
    measured = scales.measure(vectors)
    figure = scale_ruler(measured, vectors.texts)
    (axes,) = figure.axes
    assert [label.get_text().split("\n")[0] for label in axes.get_yticklabels()] == [row.setting for row in measured]
    dots = [part for part in axes.findobj(PathCollection) if len(part.get_offsets())]
    for row, drawn in zip(measured, dots, strict=True):
        np.testing.assert_allclose(np.asarray(drawn.get_offsets())[:, 0], row.values)
    boxes = drawn_boxes(figure)
    assert "0.173 ± 0.011" in boxes
    assert "0.48" in boxes
    assert any("beside, not comparable" in text for text in boxes)
    unseen = {"0.01", "0.02"}  # ticks beyond the axis
    assert all(b.x0 >= 0 and b.x1 <= figure.bbox.width for text, b in boxes.items() if text not in unseen)
    save(figure, tmp_path / "ruler.svg")
    assert ">architecture<" in (tmp_path / "ruler.svg").read_text(), "text is text"


def test_dots_out_of_range_are_hollow(vectors):
    row = next(row for row in scales.measure(vectors) if row.setting == "size")
    far = replace(row, in_range=(False, *row.in_range[1:]), n_in_range=25)
    figure = scale_ruler([far], vectors.texts)
    solid, hollow = figure.axes[0].findobj(PathCollection)
    assert (len(solid.get_offsets()), len(hollow.get_offsets())) == (25, 1)
    assert plt.matplotlib.colors.to_hex(hollow.get_facecolor()[0]) == "#ffffff"
    assert plt.matplotlib.colors.to_hex(solid.get_facecolor()[0]) == DOT.lower()
    assert any("out of range" in text.get_text() for text in words(figure))


def test_nothing_to_draw(vectors):
    with pytest.raises(InputError, match="no scale to draw"):
        scale_ruler([], vectors.texts)
