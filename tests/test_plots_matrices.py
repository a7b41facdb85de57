import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.testing import assert_allclose, assert_array_equal

from landscape import plots
from landscape.results import dataset

BASINS = np.array([0, 1, 0, 1, 0])


def barriers(num=5, **attrs):
    """Barriers that are |i - j|, runs alternating between two basins; test is twice train."""
    i = np.arange(num)
    train = np.abs(i[:, None] - i[None]).astype(float)
    both = np.stack([train, 2 * train])
    dims = ("split", "run", "other_run")
    names = [f"s{k}" for k in i]
    basin = np.resize(BASINS[:2], num)
    return dataset(
        {"loss": (dims, both), "error": (dims, both / 100), "basin": ("run", basin),
         "distance": (("run", "other_run"), train)},
        {"run": names, "other_run": names, "split": ["train", "test"]},
        analysis="barrier matrix", title="", kind="chord", threshold=0.02, measure="error", **attrs,
    )  # fmt: skip


def axes(size=4.0):
    return Figure(figsize=(size, size), layout="constrained").subplots()


# --- matrices of barriers -------------------------------------------------------------------------


def test_runs_are_ordered_and_outlined_by_basin():
    ax = plots.matrix(barriers(), axes(), split="test")
    order = [0, 2, 4, 1, 3]
    assert [text.get_text() for text in ax.get_yticklabels()] == [f"s{k}" for k in order]
    expected = 2 * np.abs(np.subtract.outer(order, order))
    assert_array_equal(ax.collections[0].get_array(), expected)
    outlines = [one.get_bbox().bounds for one in ax.patches if isinstance(one, Rectangle)]
    assert_allclose(outlines, [(-0.5, -0.5, 3, 3), (2.5, 2.5, 2, 2)])
    assert ax.get_aspect() == 1
    assert ax.get_ylim() == (4.5, -0.5)  # the first run on top


def test_values_stand_in_their_cells():
    ax = plots.matrix(barriers(), axes())
    texts = {text.get_position(): text.get_text() for text in ax.texts}
    assert len(texts) == 25
    assert texts[0, 1] == "2.0"  # s0 and s2
    assert texts[3, 2] == "3.0"  # s4 and s1
    assert not plots.matrix(barriers(13), axes()).texts


@pytest.mark.parametrize(
    ("scale", "text"), [(0.007, "0.014"), (0.047, "0.09"), (0.47, "0.94"), (0.5, "1.0"), (40, "80")]
)
def test_values_have_the_decimals_of_their_own_panel(scale, text):
    result = barriers()
    result["loss"][:] *= scale  # the median that is not 0 is 2, between s0 and s2
    result["loss"][0, 0, 1] = np.nan
    for top in (None, 1000.0):
        ax = plots.matrix(result, axes(), split="train", top=top)
        assert {one.get_position(): one.get_text() for one in ax.texts}[0, 1] == text


def test_a_matrix_without_any_finite_barrier_is_hatched():
    result = barriers()
    figure = plots.figure(result.assign(loss=np.nan * result["loss"]), y=["loss"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["not finite"]


@pytest.mark.parametrize("size", [1.6, 3.25, 5.5])
def test_values_fit_their_cells_or_are_left_out(size):
    ax = plots.matrix(barriers(12), axes(size), y="error")
    ax.figure.draw_without_rendering()
    cell = ax.get_window_extent().width / 12
    assert all(text.get_window_extent().width < cell for text in ax.texts)
    assert bool(ax.texts) == (size > 1.6)


def test_text_can_be_read_on_its_cell():
    result = barriers()
    ax = plots.matrix(result, axes())
    image = ax.collections[0]
    for text in ax.texts:
        column, row = text.get_position()
        cell = image.get_cmap()(image.norm(image.get_array()[row, column]))[:3]
        lightness = [np.dot(one, (0.299, 0.587, 0.114)) for one in (cell, to_rgb(text.get_color()))]
        assert abs(np.diff(lightness)) > 0.4


def test_the_threshold_is_in_the_colour_bar_of_its_measure():
    ax = plots.matrix(barriers(), axes(), y="error")
    (bar,) = ax.child_axes
    assert_allclose(bar.lines[-1].get_ydata(), 0.02)
    assert [text.get_text() for text in bar.texts] == ["0.02"]
    assert bar.get_ylabel() == "chord barrier in error"
    assert not plots.matrix(barriers(), axes(), y="loss").child_axes[0].texts


def test_barriers_that_are_not_finite_are_hatched():
    result = barriers()
    result["loss"][0, 0, 1] = np.inf
    ax = plots.matrix(result, axes())
    (cells,) = (one for one in ax.collections if one.get_label() == "not finite")
    assert_allclose(cells.get_paths()[0].vertices.min(0), [2.5, -0.5])  # s1 is fourth
    assert np.ma.is_masked(ax.collections[0].get_array()[0, 3])
    assert len(ax.texts) == 24


def test_a_figure_of_matrices_shares_colours_between_splits():
    figure = plots.figure(barriers())
    first, second, third, fourth = figure.axes[:4]
    assert [ax.get_title() for ax in figure.axes[:4]] == ["train", "test"] * 2
    assert first.collections[0].get_clim() == second.collections[0].get_clim() == (0, 8)
    assert third.collections[0].get_clim() == fourth.collections[0].get_clim() == (0, 0.08)
    assert len(figure.axes) == 6  # no matrix of distances
    alone = barriers().isel(split=0, drop=True).drop_vars(["basin"]) * 0
    assert not plots.figure(alone, y=["loss"]).axes[0].patches


# --- layers ---------------------------------------------------------------------------------------


def layers():
    """Layers named against the alphabet; the second has a lost and a pending point."""
    t = np.array([0.0, 0.25, 1.0])
    loss = np.array([[1.0, 5, 9], [1, np.nan, np.nan], [1, 2, 3]])
    status = np.array([[1, 1, 1], [1, 2, 0], [1, 1, 1]], np.uint8)
    dims = ("layer", "t")
    return dataset(
        {"loss": (dims, loss), "loss_stderr": (dims, 0 * loss), "status": (dims, status)},
        {"t": t, "layer": ["stem", "body", "head"]}, analysis="interpolation", title="",
    )  # fmt: skip


def test_layers_are_rows_in_their_order_from_the_top():
    ax = plots.heatmap(layers(), axes())
    assert [text.get_text() for text in ax.get_yticklabels()] == ["stem", "body", "head"]
    assert ax.get_ylim() == (2.5, -0.5)
    cells = ax.collections[0]
    corners = cells.get_coordinates()
    assert_allclose(corners[0, :, 0], [-0.125, 0.125, 0.625, 1.375])
    assert_allclose(corners[:, 0, 1], [-0.5, 0.5, 1.5, 2.5])
    assert_allclose(np.ma.filled(cells.get_array(), -1), [[1, 5, 9], [1, -1, -1], [1, 2, 3]])
    (lost,) = (one for one in ax.collections if one.get_label() == "not finite")
    (path,) = lost.get_paths()
    assert_allclose(path.vertices.min(0), [0.125, 0.5])


def test_the_figure_of_layers_has_their_levels():
    figure = plots.figure(layers())
    assert_allclose(figure.axes[1].get_yticks(), plots.levels_for([layers()]))
    (entry,) = figure.legends[0].get_texts()
    assert entry.get_text() == "not finite"


# --- instability ----------------------------------------------------------------------------------

STEPS = np.array([0, 10, 100, 2000])


def unstable(**more):
    values = np.array([[0.7, 0.5, 0.1, 0.01], [0.6, 0.3, 0.01, 0.0]])
    dims = ("split", "branch_step")
    variables = {}
    for name, scale in (("error", 1), ("loss", 4)):
        variables[f"{name}_instability"] = (dims, scale * values)
        variables[f"{name}_instability_low"] = (dims, 0.8 * scale * values)
        variables[f"{name}_instability_high"] = (dims, 1.2 * scale * values)
    variables["stable_from"] = ("split", [2000.0, np.nan])
    coords = {"branch_step": STEPS, "split": ["train", "test"]}
    attrs = {"threshold": 0.02, "measure": "error", "kind": "mean", "level": 0.95}
    return dataset(variables | more, coords, analysis="instability", title="", **attrs)


def test_instability_has_a_line_and_a_band_for_each_split():
    ax = plots.instability(unstable(), axes())
    train, test = (line for line in ax.lines if len(line.get_xdata()) == 4)
    assert_allclose(train.get_xdata(), STEPS)
    assert_allclose(train.get_ydata(), [0.7, 0.5, 0.1, 0.01])
    assert train.get_linestyle() != test.get_linestyle()
    band = ax.collections[0].get_datalim(ax.transData).intervaly
    assert_allclose(band, [0.8 * 0.01, 1.2 * 0.7])
    assert ax.get_xscale() == "symlog"
    assert ax.get_xlim() == (0, 2000)
    assert ax.get_ylim()[0] == 0


def test_the_threshold_and_the_stable_step_are_marked():
    ax = plots.instability(unstable(), axes())
    (dotted,) = (line for line in ax.lines if line.get_linestyle() == ":")
    assert_allclose(dotted.get_ydata(), 0.02)
    (triangle,) = (line for line in ax.lines if line.get_marker() == "v")
    assert_allclose(triangle.get_xydata(), [[2000, 0.02]])
    assert ax.get_legend_handles_labels()[1] == ["train, stable from 2000", "test, never stable"]
    loss = plots.instability(unstable(), axes(), y="loss")  # the threshold is one of the error
    assert loss.get_legend_handles_labels()[1] == ["train", "test"]
    assert len(loss.lines) == 2


@pytest.mark.parametrize("factor", [1, 100, 5000])
def test_legends_and_steps_of_instability_have_room_in_a_column(factor):
    result = unstable().assign_coords(split=["train", "validation"])
    result = result.assign(stable_from=("split", 2 * [2e3 * factor]))
    result = result.assign_coords(branch_step=factor * STEPS)
    figure = plots.figure(result, venue="icml")
    figure.draw_without_rendering()
    for ax in figure.axes:
        legend = ax.get_legend().get_window_extent()
        assert 0 <= legend.x0 < legend.x1 <= figure.bbox.x1
        assert legend.y1 <= figure.bbox.y1
        assert not legend.overlaps(ax.yaxis.label.get_window_extent())
        low, high = ax.get_xlim()
        texts = [text for text in ax.get_xticklabels() if low <= text.get_position()[0] <= high]
        assert len(texts) > 1
        for one, other in itertools.pairwise(text.get_window_extent() for text in texts):
            assert one.x1 < other.x0


def test_a_single_step_and_a_single_pair_are_drawn():
    one = unstable().isel(branch_step=[0], split=0, drop=True)
    one["error_instability_low"] *= np.nan
    one["error_instability_high"] *= np.nan
    ax = plots.figure(one, y=["error"]).axes[0]
    assert_allclose(ax.lines[0].get_xydata(), [[0, 0.7]])
    assert ax.get_xscale() == "linear"


def test_figures_of_instability_are_chosen_before_lines():
    curves = np.ones((2, 1, 3))
    dims = ("split", "pair", "t")
    more = {"loss": (dims, curves), "loss_stderr": (dims, 0 * curves)}
    figure = plots.figure(unstable(**more))
    assert [ax.get_xlabel() for ax in figure.axes] == ["branch step"] * 2
    with pytest.raises(ValueError, match="no 'f1_instability' along 'branch_step'"):
        plots.instability(unstable(), axes(), y="f1")


# --- raw and aligned ------------------------------------------------------------------------------


def test_raw_is_dashed_and_aligned_solid_in_the_colour_of_the_split():
    t = np.linspace(0, 1, 5)
    loss = np.arange(4.0)[:, None].repeat(5, 1).reshape(2, 2, 5)
    dims = ("split", "alignment", "t")
    result = dataset(
        {"loss": (dims, loss), "loss_stderr": (dims, 0 * loss),
         "status": (("alignment", "t"), np.ones((2, 5), np.uint8))},
        {"t": t, "split": ["train", "test"], "alignment": ["raw", "aligned"]},
        analysis="interpolation", title="",
    )  # fmt: skip
    result["status"][0, 2] = 0
    ax = plots.lines(result, axes())
    found = [(line.get_label(), line.get_linestyle(), line.get_ydata()[0]) for line in ax.lines]
    assert found == [
        ("train, raw", "--", 0), ("train, aligned", "-", 1),
        ("test, raw", "--", 2), ("test, aligned", "-", 3),
    ]  # fmt: skip
    assert [len(line.get_xdata()) for line in ax.lines] == [4, 5, 4, 5]
    colours = [line.get_color() for line in ax.lines]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    assert len(plots.figure(result).legends[0].get_texts()) == 4
