"""What plots of Fisher information and of curvature show: data, labels and limits."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import LogNorm, Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.testing import assert_allclose

from landscape import plots
from landscape.plots.curves import value_scale
from landscape.plots.information import by_module
from landscape.results import dataset

STEPS = np.array([0.0, 1, 2, 4])
TENSORS = ["stem.weight", "stem.bias", "body.weight", "scale"]
MODULES = ["stem", "stem", "body", ""]
# stem, stem, body, scale: a rise and a fall over three decades
TRACE = np.array([[1.0, 1, 2, 0], [600, 200, 190, 10], [40, 40, 20, 0], [0.5, 0.5, 1, 0]])


def training(scales=None, error=None, **attrs):
    """A trace through training; `scales`: a dimension's name to the factors along it."""
    trace, dims, coords = TRACE.copy(), ("step", "tensor"), {}
    for name, factors in reversed((scales or {}).items()):
        trace = np.multiply.outer(np.array(list(factors.values())), trace)
        dims, coords = (name, *dims), {name: list(factors), **coords}
    total = trace.sum(-1)
    variables = {
        "trace": (dims, trace), "trace_stderr": (dims, 0.1 * trace),
        "total": (dims[:-1], total), "total_stderr": (dims[:-1], 0.05 * total),
    }  # fmt: skip
    if error is not None:
        variables["error"] = error
        variables["error_stderr"] = (error[0], 0 * np.asarray(error[1]))
    coords |= {"step": STEPS, "tensor": TENSORS, "module": ("tensor", MODULES)}
    attrs = {"labels": "exact", "batch_norm": "keep", "units": "epochs"} | attrs
    return dataset(variables, coords, analysis="fisher over training", title="", **attrs)


def axes(width=3.25):
    with plots.paper_style():
        return Figure(figsize=(width, 3), layout="constrained").subplots()


def curves(ax):
    return [line for line in ax.lines if len(line.get_xdata()) == len(STEPS)]


def entries(ax):
    legend = ax.get_legend() or ax.get_figure().legends[0]
    return [text.get_text() for text in legend.get_texts()]


# --- the trace through training -------------------------------------------------------------------


def test_the_trace_is_drawn_with_its_band_on_a_logarithmic_axis():
    ax = plots.fisher_trace(training(), axes())
    (line,) = curves(ax)
    assert_allclose(line.get_xydata(), np.stack([STEPS, [4, 1000, 100, 2]], 1))
    band = ax.collections[0].get_datalim(ax.transData).intervaly
    assert_allclose(band, [2 * (1 - 0.098), 1000 * (1 + 0.098)])
    assert ax.get_yscale() == "log"
    low, high = ax.get_ylim()
    assert low < 2 * (1 - 0.098) < 1000 * (1 + 0.098) < high
    assert ax.get_xlim() == (0, 4)
    assert ax.get_xlabel() == "epoch"


def test_a_single_curve_says_its_labels_and_batch_norm():
    assert plots.fisher_trace(training(), axes()).get_title(loc="left") == (
        "exact labels, batch norm: keep"
    )
    without = training(labels="observed", batch_norm="none")
    assert plots.fisher_trace(without, axes()).get_title(loc="left") == (
        "empirical Fisher, no batch norm"
    )


def test_the_legend_names_what_differs_and_heads_it_with_what_does_not():
    ax = plots.fisher_trace(training({"run": {"a": 1, "b": 2}}, batch_norm="recalibrate"), axes())
    assert entries(ax) == ["a", "b"]
    title = ax.get_legend().get_title().get_text()
    assert title == "exact labels, batch norm: recalibrate"
    both = {"labels": {"sampled": 1, "observed": 2}, "batch_norm": {"keep": 1, "recalibrate": 3}}
    ax = plots.fisher_trace(training(both), axes())
    assert entries(ax) == [
        "sampled labels, batch norm: keep", "sampled labels, batch norm: recalibrate",
        "empirical Fisher, batch norm: keep", "empirical Fisher, batch norm: recalibrate",
    ]  # fmt: skip
    found = [(line.get_ydata()[0], line.get_color(), line.get_linestyle()) for line in curves(ax)]
    assert [one[0] for one in found] == [4, 12, 8, 24]
    assert found[0][1] == found[1][1] != found[2][1] == found[3][1]
    assert [one[2] for one in found] == ["-", "--", "-", "--"]


def test_a_choice_of_one_is_not_in_the_entries():
    scales = {"run": {"a": 1, "b": 2}, "batch_norm": {"recalibrate": 1}}
    ax = plots.fisher_trace(training(scales), axes())  # the dimension counts, not the attribute
    assert entries(ax) == ["a", "b"]
    assert ax.get_legend().get_title().get_text().endswith("batch norm: recalibrate")


def test_many_runs_have_as_many_colours():
    ax = plots.fisher_trace(training({"run": {f"seed{k}": 1 + k for k in range(12)}}), axes())
    assert len({to_hex(line.get_color()) for line in curves(ax)}) == 12


@pytest.mark.parametrize("width", [3.25, 5.5])
def test_the_legend_covers_no_data_and_stays_in_the_figure(width):
    scales = {"run": {f"blur for {k} epochs": 1 + k for k in range(4)},
              "batch_norm": {"keep": 1, "recalibrate": 2}}  # fmt: skip
    result = training(scales, error=("step", [0.9, 0.5, 0.2, 0.1]), deficit_start=0.0)
    fig = plots.figure(result, y=["total"], venue={3.25: "icml", 5.5: "iclr"}[width])
    fig.draw_without_rendering()
    (legend,) = (one.get_window_extent() for one in fig.legends)
    assert legend.y0 >= fig.axes[0].get_window_extent().y1
    assert legend.x0 >= 0
    assert legend.x1 <= fig.bbox.x1
    assert legend.y1 <= fig.bbox.y1


def test_zeros_are_on_a_symmetric_axis():
    result = training()
    result["total"][0], result["total_stderr"][0] = 0, 0
    ax = plots.fisher_trace(result, axes())
    assert ax.get_yscale() == "symlog"
    assert_allclose(ax.yaxis.get_transform().linthresh, 1)  # the power of ten below 2
    assert ax.get_ylim()[0] == 0
    assert_allclose(curves(ax)[0].get_ydata()[0], 0)


def test_what_is_pending_or_not_finite_is_told_apart():
    result = training()
    result["total"][1:3] = np.nan
    result["status"] = ("step", np.array([1, 3, 0, 1], np.uint8))
    ax = plots.fisher_trace(result, axes())
    assert_allclose(ax.lines[0].get_xdata(), [0, 1, 4])
    (cross,) = (line for line in ax.lines if line.get_marker() == "x")
    assert_allclose(cross.get_xydata(), [[1, 1]])


def test_one_window_is_grey_and_several_have_the_colours_of_their_runs():
    ax = plots.fisher_trace(training(deficit_start=1, deficit_end=2), axes())
    (window,) = (one for one in ax.patches if isinstance(one, Rectangle))
    assert_allclose([window.get_x(), window.get_width()], [1, 1])
    assert window.get_facecolor()[:3] == (0.9, 0.9, 0.9)
    assert entries(ax) == ["deficit"]
    runs = training({"run": {"none": 1, "short": 2, "open": 3}}).assign_coords(
        deficit_start=("run", [np.nan, 0, 1]), deficit_end=("run", [np.nan, 1, np.nan])
    )
    ax = plots.fisher_trace(runs, axes())
    short, late = (one for one in ax.patches if isinstance(one, Rectangle))
    assert_allclose([short.get_x(), short.get_width()], [0, 1])
    assert_allclose([late.get_x(), late.get_width()], [1, 3])  # to the last step
    colours = [to_hex(line.get_color()) for line in curves(ax)]
    assert [to_hex(short.get_facecolor()), to_hex(late.get_facecolor())] == colours[1:]
    assert entries(ax) == ["none", "short", "open", "deficit"]


def test_accuracy_is_on_the_right_dotted_and_of_the_test_split():
    error = np.array([[0.5, 0.4, 0.3, 0.2], [0.9, 0.6, 0.5, 0.35]])
    result = training(error=(("split", "step"), error)).assign_coords(split=["test", "train"])
    ax = plots.fisher_trace(result, axes())
    twin = ax.get_figure().axes[1]
    assert_allclose(twin.lines[0].get_xydata(), np.stack([STEPS, 1 - error[0]], 1))
    assert twin.lines[0].get_linestyle() == ":"
    assert twin.get_ylim() == (0.5, 1)
    assert twin.get_ylabel() == "test accuracy"
    assert entries(ax) == ["test accuracy (right)"]
    other = plots.fisher_trace(result, axes(), split="train").get_figure().axes[1]
    assert_allclose(other.lines[0].get_ydata(), 1 - error[1])
    with pytest.raises(ValueError, match="no split 'late'"):
        plots.fisher_trace(result, axes(), split="late")


def test_accuracies_have_the_colours_of_their_runs():
    error = (("run", "step"), [[0.5, 0.4, 0.3, 0.2], [0.9, 0.6, 0.5, 0.35]])
    ax = plots.fisher_trace(training({"run": {"a": 1, "b": 2}}, error=error), axes())
    twin = ax.get_figure().axes[1]
    assert [one.get_color() for one in twin.lines] == [one.get_color() for one in curves(ax)]
    assert len(plots.fisher_trace(training(), axes()).get_figure().axes) == 1


def test_the_peak_is_marked_with_its_interval():
    result = training({"run": {"a": 1, "b": 2}})
    for name, values in (("", [1, 1]), ("_low", [1, 0]), ("_high", [2, 2])):
        result[f"peak_step{name}"] = ("run", np.array(values, float))
    ax = plots.fisher_trace(result, axes())
    sure, unsure = (line for line in ax.lines if line.get_marker() == "v")
    assert (sure.get_xdata()[0], unsure.get_xdata()[0]) == (1, 1)
    assert sure.get_ydata()[0] > 1000
    assert sure.get_markerfacecolor() != "white" == unsure.get_markerfacecolor()
    spans = [one.get_segments()[0][:, 0] for one in ax.collections if hasattr(one, "get_segments")]
    assert_allclose(spans, [[1, 2], [0, 2]])


def test_further_dimensions_are_refused():
    with pytest.raises(ValueError, match="'total' also varies along seed: select one first"):
        plots.fisher_trace(training({"seed": {"0": 1, "1": 2}}), axes())
    with pytest.raises(ValueError, match="no 'total' along 'step'"):
        plots.fisher_trace(training().isel(step=0), axes())


# --- scales ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "scale", "limits"),
    [
        ([2.0, 20.0], "linear", (0, 21.6)),
        ([2.0, 20.1], "log", (1.25, 32.16)),
        ([0.0, 2.0, 20.1], "symlog", (0, 32.16)),
        ([-1.0, 3.0], "linear", (-1.32, 3.32)),
        ([-1.0, 30.0, np.nan], "symlog", (-1.6, 48)),
        ([0.0, 0.0], "linear", (0, 1)),
    ],
)
def test_axes_of_values_are_logarithmic_beyond_a_decade(values, scale, limits):
    for which in "xy":
        ax = axes()
        value_scale(ax, values, which)
        assert getattr(ax, f"get_{which}scale")() == scale
        assert_allclose(getattr(ax, f"get_{which}lim")(), limits)


def test_the_linear_part_ends_six_decades_below_the_largest():
    ax = axes()
    value_scale(ax, [0, 1e-12, 1e3])
    assert_allclose(ax.yaxis.get_transform().linthresh, 1e-3)


def test_two_decades_have_more_than_powers_of_ten():
    ax = axes()
    value_scale(ax, [3.0, 40.0])
    ax.figure.draw_without_rendering()
    low, high = ax.get_ylim()
    shown = [t.get_text() for t in ax.get_yticklabels() if low <= t.get_position()[1] <= high]
    assert shown == ["2", "5", "10", "20", "50"]


# --- layers ---------------------------------------------------------------------------------------


def test_tensors_add_up_to_modules_in_their_order():
    modules = by_module(training())
    assert modules["module"].values.tolist() == ["stem", "body", "scale"]
    expected = np.stack([TRACE[:, 0] + TRACE[:, 1], TRACE[:, 2], TRACE[:, 3]], 1)
    found = modules["trace"].transpose("step", "module")
    assert_allclose(found, expected)
    assert_allclose(modules["trace_stderr"].transpose("step", "module"), 0.1 * expected)
    named = by_module(training().drop_vars("module"))
    assert_allclose(named["trace"].transpose("step", "module"), expected)
    lost = training()
    lost["trace"][1, 0] = np.nan
    assert np.isnan(by_module(lost)["trace"].sel(module="stem").values).tolist() == [
        False, True, False, False,
    ]  # fmt: skip


def test_layers_are_rows_and_steps_columns_in_logarithmic_colours():
    ax = plots.fisher_layers(training(), axes())
    cells = ax.collections[0]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["stem", "body", "scale"]
    assert ax.get_ylim() == (2.5, -0.5)
    assert_allclose(cells.get_coordinates()[0, :, 0], [-0.5, 0.5, 1.5, 3, 5])
    assert_allclose(cells.get_array()[:2], [[2, 800, 80, 1], [2, 190, 20, 1]])
    assert isinstance(cells.norm, LogNorm)
    assert cells.get_clim() == (1, 800)
    assert_allclose(cells.get_array()[2], [1, 10, 1, 1])  # zeros have the lowest colour
    assert ax.get_xlabel() == "epoch"


def test_shares_sum_to_one():
    ax = plots.fisher_layers(training(), axes(), shares=True)
    cells = ax.collections[0]
    assert_allclose(cells.get_array().sum(0), 1)
    assert_allclose(cells.get_array()[0], [0.5, 0.8, 0.8, 0.5])
    assert isinstance(cells.norm, Normalize)
    assert not isinstance(cells.norm, LogNorm)
    assert_allclose(cells.get_clim(), [0, 0.8])
    assert ax.child_axes[0].get_ylabel() == "share of the trace"


def test_a_failed_step_is_hatched_and_a_pending_one_blank():
    result = training()
    result["trace"][1:3] = np.nan
    result["status"] = ("step", np.array([1, 2, 0, 1], np.uint8))
    for shares in (False, True):
        ax = plots.fisher_layers(result, axes(), shares=shares)
        assert np.ma.getmaskarray(ax.collections[0].get_array())[:, 1:3].all()
        (lost,) = (one for one in ax.collections if one.get_label() == "not finite")
        assert len(lost.get_paths()) == 3
        assert {path.vertices[:, 0].min() for path in lost.get_paths()} == {0.5}


def test_layers_of_several_runs_are_refused_by_one_panel():
    with pytest.raises(ValueError, match="also varies along run: select one first"):
        plots.fisher_layers(training({"run": {"a": 1, "b": 2}}), axes())


def test_the_figure_has_the_curve_and_layers_of_each_run_on_one_scale():
    result = training({"run": {"a": 1, "b": 2}})
    fig = plots.figure(result, venue="icml")
    curve = fig.axes[0]
    maps = [ax for ax in fig.axes if ax.get_title()]
    assert curve.get_ylabel() == "trace of the Fisher information"
    assert [ax.get_title() for ax in maps] == ["a", "b"] * 2
    assert [ax.collections[0].get_clim() for ax in maps] == [(1, 1600)] * 2 + [(0, 0.8)] * 2
    assert [ax.get_xlabel() for ax in maps] == ["", "", "", "epoch"]
    assert len(plots.figure(result, y=["shares"]).axes) == 3  # with a colour bar
    with pytest.raises(ValueError, match="y must be of total, trace and shares, got loss"):
        plots.figure(result, y=["loss"])


def test_the_figure_says_how_many_curves_have_their_layers():
    fig = plots.figure(training({"run": {f"{k}": 1 + k for k in range(8)}}), y=["trace"])
    assert fig.get_supxlabel() == "layers of 6 of 8 curves"
    assert len(fig.axes) == 7


def blocks(trace, **attrs):
    trace = np.asarray(trace, float)
    variables = {"trace": (("step", "block"), trace), "total": ("step", trace.sum(1))}
    coords = {"step": STEPS, "block": ["stem", "body"]}
    return dataset(variables, coords, analysis="hessian trace", title="", **attrs)


def test_blocks_through_training_are_rows_too():
    trace = [[10, 1], [20, 200], [5, 3], [2, 1]]
    curve, above, _, shares, _ = plots.figure(blocks(trace)).axes
    assert_allclose(curve.lines[0].get_ydata(), [11, 220, 8, 3])
    assert curve.get_ylabel() == "trace of the Hessian"
    cells = above.collections[0]
    assert_allclose(cells.get_array(), np.transpose(trace))
    assert isinstance(cells.norm, LogNorm)
    assert [text.get_text() for text in above.get_yticklabels()] == ["stem", "body"]
    assert_allclose(shares.collections[0].get_array().sum(0), 1)


def test_traces_of_both_signs_have_colours_that_diverge_from_zero_and_no_shares():
    fig = plots.figure(blocks([[10, -1], [20, 200], [5, 0], [2, 1]], matrix="hessian"))
    _, above, bar = fig.axes
    cells = above.collections[0]
    assert_allclose(cells.get_array()[1], [-1, 200, 0, 1])
    assert cells.get_clim() == (-200, 200)
    assert_allclose(cells.norm([-200, 0, 200]), [0, 0.5, 1])
    assert cells.get_cmap().name == "RdBu_r"
    assert bar.get_ylabel() == "trace"
    label = plots.fisher_trace(blocks([[1, 1]] * 4, matrix="gauss-newton"), axes()).get_ylabel()
    assert label == "trace of the Gauss-Newton matrix"


# --- one state ------------------------------------------------------------------------------------


def test_tensors_of_one_state_are_points_with_their_errors():
    ax = plots.traces(training().isel(step=1), axes())
    (points,) = (line for line in ax.lines if line.get_marker() == "o")
    assert_allclose(points.get_xydata(), [[600, 0], [200, 1], [190, 2], [10, 3]])
    bars = ax.collections[0].get_segments()
    assert_allclose(bars[0], [[600 * (1 - 0.196), 0], [600 * (1 + 0.196), 0]])
    assert [text.get_text() for text in ax.get_yticklabels()] == TENSORS
    assert ax.get_xscale() == "log"
    assert ax.get_title(loc="left") == (
        "exact labels, batch norm: keep\ntotal 1000 ± 50 (standard error)"
    )


def test_modules_of_one_state_and_several_choices():
    result = training({"labels": {"exact": 1, "observed": 3}}).isel(step=1)
    ax = plots.traces(result, axes(), by="module")
    first, second = (line for line in ax.lines if line.get_marker() == "o")
    assert_allclose(first.get_xdata(), [800, 190, 10])
    assert_allclose(second.get_xdata(), [2400, 570, 30])
    assert entries(ax) == ["exact labels", "empirical Fisher"]
    with pytest.raises(ValueError, match="also varies along step: select one first"):
        plots.traces(training(), axes())


def test_the_figure_of_many_tensors_has_modules():
    names = [f"layer{k}.{kind}" for k in range(15) for kind in ("weight", "bias")]
    result = dataset(
        {"trace": ("tensor", np.arange(1.0, 31))}, {"tensor": names}, analysis="fisher trace",
        title="",
    )  # fmt: skip
    (ax,) = plots.figure(result).axes
    assert [t.get_text() for t in ax.get_yticklabels()] == [f"layer{k}" for k in range(15)]
    assert_allclose(ax.lines[0].get_xdata(), 4 * np.arange(15) + 3)


def test_blocks_of_a_hessian_may_be_negative():
    result = dataset(
        {"trace": ("block", [30.0, -2, 0]), "trace_stderr": ("block", [1.0, 1, 0])},
        {"block": ["a", "b", "c"]}, analysis="hessian trace", title="",
    )  # fmt: skip
    (ax,) = plots.figure(result).axes
    assert ax.get_xlabel() == "trace of the Hessian"
    assert ax.get_xscale() == "symlog"
    assert_allclose(ax.lines[0].get_xdata(), [30, -2, 0])


# --- eigenvalues ----------------------------------------------------------------------------------


def spectrum(values, dims="index", **more):
    values = np.asarray(values, float)
    variables = {"eigenvalue": (dims, values), "residual": (dims, 0.1 * abs(values))}
    coords = {"index": np.arange(values.shape[-1])}
    if "step" in dims:
        coords["step"] = 10 * np.arange(values.shape[-2])
    attrs = {"matrix": "hessian", "batch_norm": "keep"}
    return dataset(variables | more, coords, analysis="eigenvalues", title="", **attrs)


def test_eigenvalues_of_both_signs():
    ax = plots.eigenvalues(spectrum([50, 2, 0.1, -0.02, -3]), axes())
    every, below = (line for line in ax.lines if line.get_marker() == "o")
    assert_allclose(every.get_xydata(), [[0, 50], [1, 2], [2, 0.1], [3, -0.02], [4, -3]])
    assert_allclose(below.get_xydata(), [[3, -0.02], [4, -3]])
    assert below.get_markerfacecolor() == "white"
    assert ax.get_yscale() == "symlog"
    assert_allclose(ax.yaxis.get_transform().linthresh, 0.01)
    assert_allclose(ax.collections[0].get_segments()[4], [[4, -3.3], [4, -2.7]])
    assert ax.get_ylabel() == "eigenvalue of the Hessian"
    assert ax.get_title(loc="left") == "batch norm: keep"


def test_eigenvalues_of_blocks_have_a_line_each():
    values = [[50, 2], [3, -1.0]]
    result = spectrum(values, ("block", "index")).assign_coords(block=["stem", "body"])
    (ax,) = plots.figure(result).axes
    lines = [line for line in ax.lines if line.get_linestyle() == "-" and line.get_marker() == "o"]
    assert_allclose([line.get_ydata() for line in lines], values)
    assert entries(ax) == ["stem", "body"]
    assert len({line.get_color() for line in lines}) == 2
    runs = xr.concat([result, 2 * result], xr.DataArray(["a", "b"], dims="run", name="run"))
    ax = plots.eigenvalues(runs.assign_attrs(result.attrs), axes())
    assert entries(ax) == ["a, stem", "a, body", "b, stem", "b, body"]


def test_the_largest_eigenvalue_of_each_block_through_training():
    values = np.array([[[10, 2], [1, 0.0]], [[30, 1], [4, 2]]])
    result = spectrum(values, ("step", "block", "index"))
    result = result.assign_coords(block=["stem", "body"], step=[0, 10])
    (ax,) = plots.figure(result).axes
    assert_allclose([line.get_ydata() for line in ax.lines], [[10, 30], [1, 4]])
    assert entries(ax) == ["stem", "body"]


def test_the_largest_eigenvalue_and_its_limit_through_training():
    values = [[10, 2], [-40, 20], [30, np.nan], [25, 35.0]]
    result = spectrum(values, ("step", "index"), learning_rate=("step", [0.1, 0.1, 0.05, 0.0]))
    (ax,) = plots.figure(result).axes
    line, limit = ax.lines
    assert_allclose(line.get_xydata(), [[0, 10], [10, 20], [20, 30], [30, 35]])
    assert_allclose(limit.get_ydata(), [20, 20, 40, np.nan])
    band = ax.collections[0].get_datalim(ax.transData).intervaly
    assert_allclose(band, [9, 38.5])
    assert entries(ax) == ["2 / learning rate"]
    assert ax.get_ylim()[1] > 40
    assert ax.get_ylabel() == "largest eigenvalue of the Hessian"
    with pytest.raises(ValueError, match="also varies along step: select one first"):
        plots.eigenvalues(result, axes())


def test_runs_of_different_learning_rates_have_their_own_limits():
    one = spectrum([[10.0, 2], [18, 3]], ("step", "index"))
    values = np.stack([one["eigenvalue"], 2 * one["eigenvalue"]])
    result = dataset(
        {"eigenvalue": (("run", "step", "index"), values), "learning_rate": ("run", [0.1, 0.05])},
        {"run": ["slow", "fast"], "step": [0, 10], "index": [0, 1]}, analysis="eigenvalues",
        title="", matrix="gauss-newton",
    )  # fmt: skip
    ax = plots.sharpness(result, axes())
    slow, fast, low, high = ax.lines
    assert_allclose([slow.get_ydata(), fast.get_ydata()], [[10, 18], [20, 36]])
    assert_allclose([low.get_ydata(), high.get_ydata()], [[20, 20], [40, 40]])
    assert (low.get_color(), high.get_color()) == (slow.get_color(), fast.get_color())
    assert entries(ax) == ["slow", "fast", "2 / learning rate"]


def test_all_eigenvalues_lost_at_a_step_is_a_gap():
    values = [[10, 2], [np.nan, np.nan], [30, 1]]
    ax = plots.sharpness(spectrum(values, ("step", "index")), axes())
    assert_allclose(ax.lines[0].get_ydata(), [10, np.nan, 30])


# --- densities ------------------------------------------------------------------------------------


def density(**attrs):
    at = np.linspace(-1, 3, 81)
    values = np.exp(-0.5 * (at / 0.2) ** 2) / (0.2 * np.sqrt(2 * np.pi))
    variables = {"density": ("eigenvalue", values), "density_stderr": ("eigenvalue", 0.1 * values)}
    attrs = {"matrix": "hessian", "width": 0.2} | attrs
    return dataset(variables, {"eigenvalue": at}, analysis="spectral density", title="", **attrs)


def test_a_density_shows_what_is_below_zero_its_band_and_its_width():
    result = density()
    (ax,) = plots.figure(result).axes
    positive, negative = ax.lines
    assert (positive.get_xdata() >= 0).all()
    assert (negative.get_xdata() < 0).all()
    assert len(positive.get_xdata()) + len(negative.get_xdata()) == 81
    assert entries(ax) == ["positive", "negative"]
    assert ax.get_yscale() == "log"
    top = float(result["density"].max())
    assert_allclose(ax.get_ylim(), [top / 1e8, 3 * top])
    band = ax.collections[0].get_datalim(ax.transData).intervaly
    assert_allclose(band[1], 1.196 * top)
    assert ax.get_xlabel() == ("eigenvalue of the Hessian\n(smoothed with standard deviation 0.2)")


def test_a_density_over_magnitudes_has_both_signs_and_what_is_near_zero():
    at = np.logspace(-3, 1, 41)
    values = np.stack([np.full(41, 0.2), np.where(at < 0.1, 0.05, 0)])
    result = dataset(
        {"density": (("sign", "eigenvalue"), values)}, {"sign": [1, -1], "eigenvalue": at},
        analysis="spectral density", title="", matrix="fisher", width=0.05, near_zero=0.25,
    )  # fmt: skip
    ax = plots.density(result, axes())
    assert ax.get_xscale() == "log"
    assert_allclose(ax.lines[0].get_ydata(), 0.2)
    assert np.isnan(ax.lines[1].get_ydata()).sum() == (at >= 0.1).sum()
    assert entries(ax) == ["positive", "negative", "25 % nearer to 0"]
    assert ax.get_ylabel() == "density per decade"
    assert "0.05 decades" in ax.get_xlabel()
    with pytest.raises(ValueError, match="also varies along step: select one first"):
        plots.density(result.expand_dims(step=[0, 1]), axes())


def test_single_numbers_have_no_plot():
    result = dataset({"sharpness": ((), 0.1)}, {}, analysis="sharpness", title="")
    with pytest.raises(ValueError, match="'sharpness' gives single numbers, of which there is no"):
        plots.figure(result)
