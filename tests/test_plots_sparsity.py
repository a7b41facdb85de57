"""What is drawn of a report on chains is what it holds, and legends say what is what."""

import numpy as np
import pytest
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from numpy.testing import assert_allclose
from scipy import stats

from landscape import plots
from landscape.plots.sparsity import (
    drawn_chains,
    layer_densities,
    perturbations,
    pruning,
    report_panels,
    stability,
)
from landscape.results import dataset

RUNS, LEVELS = 4, 5
DENSITY = 0.5 ** np.arange(LEVELS)
ERROR = 0.02 * 1.5 ** np.arange(LEVELS)
SPREAD = 1 + 0.1 * np.arange(RUNS)  # errors and distances of the runs are multiples


def reported(chains=("k=0", "k=0/random", "k=0/new", "k=50", "k=50/random"), runs=RUNS, layers=3):
    """Chain number c has errors and distances c + 1 times as large as those of the first."""
    shape = (runs, len(chains), LEVELS)
    grid = (SPREAD[:runs, None, None] * np.arange(1, len(chains) + 1)[:, None]) * ERROR
    grid = grid.copy()
    grid[:, :, 0] = 0.02 * SPREAD[:runs, None]
    far = 100 * grid
    far[:, :, 0] = np.nan
    density = np.broadcast_to(DENSITY, shape).copy()
    exponents = 0.5 + np.arange(layers) / 2
    of = [name.partition("/")[0] for name in chains]
    dims = ("run", "chain", "level")
    nothing = np.full(shape, np.nan)
    return dataset(
        {
            "density": (dims, density),
            "layer_density": ((*dims, "layer"), density[..., None] ** exponents),
            "test_error": (dims, grid, {"long_name": "test error"}),
            "train_error": (dims, grid / 2, {"long_name": "training error"}),
            "pruning_distance": (dims, far, {"long_name": "distance"}),
            "order_distance": (dims, nothing),
            "effective_std": (dims, nothing.copy()),
            "correlation": (dims[1:], nothing[0].copy()),
            "p_value": (dims[1:], nothing[0].copy()),
            "ended": (dims, np.full(shape, "finished")),
        },
        {
            "run": [f"s{k}" for k in range(runs)], "chain": list(chains), "level": range(LEVELS),
            "layer": [f"fc{k}" for k in range(layers)], "of": ("chain", of),
            "control": ("chain", [name.partition("/")[2] for name in chains]),
            "kind": ("chain", ["lr" if "lr" in name else "" for name in of]),
            "step": ("chain", [float(name.split("-")[0][2:]) for name in of]),
        },
        analysis="tickets",
        title="",
    )  # fmt: skip


def perturbed():
    """A chain with three perturbations at its last level."""
    result = reported(("k=50", "k=50/noise-1", "k=50/noise-2", "k=50/shuffled-layer"))
    result["test_error"][:, 1:, 1:-1] = np.nan
    result["effective_std"][:, :, -1] = SPREAD[:, None] * [0, 0.1, 0.2, 0.3]
    result["correlation"][0, -1], result["p_value"][0, -1] = -0.7, 0.02
    return result


def axes():
    return Figure(figsize=(4, 3), layout="constrained").subplots()


def interval(values):
    """Mean and half of the 95 % interval by scipy, over the first axis."""
    middle, error = np.mean(values, 0), stats.sem(values, 0)
    return middle, stats.t.interval(0.95, len(values) - 1, middle, error)


def band(collection, x):
    """The lower and the upper edge of a filled band."""
    path = collection.get_paths()[0].vertices
    at = [path[np.isclose(path[:, 0], one), 1] for one in x]
    return np.array([one.min() for one in at]), np.array([one.max() for one in at])


def entries(ax):
    return ax.get_legend_handles_labels()[1]


def test_errors_against_density_with_intervals_over_runs():
    result = reported()
    ax = pruning(result, axes())
    for k in range(5):
        assert_allclose(ax.lines[k].get_xdata(), 100 * DENSITY)
        middle, (low, high) = interval(100 * result["test_error"].isel(chain=k).values)
        assert_allclose(ax.lines[k].get_ydata(), middle)
        assert_allclose(band(ax.collections[k], 100 * DENSITY), (low, high))
    (dense,) = [line for line in ax.lines if line.get_label() == "dense"]
    assert_allclose(dense.get_ydata(), 2 * SPREAD.mean())
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert ax.get_xlim()[0] > 100 > 100 * DENSITY[-1] > ax.get_xlim()[1]
    assert ax.get_ylabel() == "test error (%)"


def test_chains_differ_in_colour_and_controls_in_dashes():
    ax = pruning(reported(), axes())
    first, random, new, later, later_random = ax.lines[:5]
    assert first.get_color() == random.get_color() == new.get_color() != later.get_color()
    assert later.get_color() == later_random.get_color()
    assert random.get_linestyle() == later_random.get_linestyle() != first.get_linestyle()
    assert len({line.get_linestyle() for line in (first, random, new)}) == 3
    assert entries(ax) == ["$k$ = 0", "$k$ = 50", "random", "new", "dense"]
    (entry,) = [line for line in ax.lines if line.get_label() == "random"]
    assert same_color(entry.get_color(), "0.4")
    assert entry.get_linestyle() == random.get_linestyle()
    alone = pruning(reported(("k=50", "k=50/random")), axes())
    assert entries(alone) == ["$k$ = 50", "random", "dense"]
    assert alone.lines[0].get_color() != alone.lines[1].get_color()


def test_a_run_that_lacks_a_level_does_not_count_there():
    result = reported(("k=0",))
    result["test_error"][3, 0, 2] = np.nan
    result["test_error"][1:, 0, 3] = np.nan
    result["test_error"][:, 0, 4] = np.nan
    ax = pruning(result, axes())
    assert_allclose(ax.lines[0].get_xdata(), 100 * DENSITY[:4])
    middle, edges = interval(100 * result["test_error"].values[:3, 0, 2])
    assert_allclose(ax.lines[0].get_ydata()[2], middle)
    assert_allclose(band(ax.collections[0], 100 * DENSITY[[2]]), np.transpose([edges]))
    assert_allclose(ax.lines[0].get_ydata()[3], 100 * ERROR[3])


def test_a_single_run_has_no_band():
    ax = pruning(reported(runs=1), axes())
    assert_allclose(ax.lines[0].get_ydata(), 100 * ERROR)
    assert not any(np.isfinite(one.get_paths()[0].vertices).all() for one in ax.collections
                   if one.get_paths())  # fmt: skip
    Figure.draw_without_rendering(ax.get_figure())


def test_controls_of_one_level_are_points_unless_they_are_in_the_scatter():
    result = perturbed()
    assert drawn_chains(result, "test_error") == ["k=50"]
    result["correlation"][:] = np.nan  # fewer than three points
    ax = pruning(result, axes())
    assert len(ax.containers) == 3
    point = ax.containers[2].lines[0]
    assert_allclose(point.get_xdata(), [100 * DENSITY[-1]])
    assert_allclose(point.get_ydata(), [4 * 100 * ERROR[-1] * SPREAD.mean()])
    random = reported(("k=0", "k=0/random"))
    random["test_error"][:, 1, 1:-1] = np.nan
    assert drawn_chains(random, "test_error") == ["k=0", "k=0/random"]


def test_points_of_several_chains_have_the_markers_of_the_legend():
    chains = ("k=0", "k=0/random", "k=0/new", "k=50", "k=50/random", "k=50/dashed")
    result = reported(chains)
    for chain in (1, 2, 4):
        result["test_error"][:, chain, 1:-1] = np.nan
    ax = pruning(result, axes())
    random, new, later = (container.lines[0] for container in ax.containers)
    assert random.get_marker() == later.get_marker() != new.get_marker()
    assert random.get_color() != later.get_color()
    entry = {line.get_label(): line for line in ax.lines}
    for name, point in (("random", random), ("new", new)):
        assert (entry[name].get_marker(), entry[name].get_linestyle()) == (
            point.get_marker(), "None",
        )  # fmt: skip
    assert entry["dashed"].get_marker() == "None"
    drawn = [line.get_linestyle() for line in ax.lines if len(line.get_xdata()) == LEVELS]
    assert drawn[-1] == entry["dashed"].get_linestyle() != drawn[0]
    mixed = reported(("k=0", "k=0/random", "k=50", "k=50/random"))
    mixed["test_error"][:, 1, 1:-1] = np.nan  # a point for one chain, a line for the other
    ax = pruning(mixed, axes())
    (entry,) = [line for line in ax.lines if line.get_label() == "random"]
    assert entry.get_marker() != "None" != entry.get_linestyle()


def test_layers_by_depth_against_the_whole_network():
    result = reported()
    ax = layer_densities(result, axes(), chain="k=50")
    for k, line in enumerate(ax.lines[:3]):
        assert_allclose(line.get_xdata(), 100 * DENSITY)
        assert_allclose(line.get_ydata(), 100 * DENSITY ** (0.5 + k / 2))
    assert_allclose(ax.lines[3].get_ydata(), 100 * DENSITY)
    assert ax.get_title() == "$k$ = 50"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["fc2", "fc1", "fc0"]
    assert entries(ax) == []  # a legend of the figure does not repeat them
    ax = layer_densities(reported(layers=7), axes())
    assert ax.get_legend() is None
    names = [text.get_text() for text in ax.child_axes[0].get_yticklabels()]
    assert names == [f"fc{k}" for k in range(7)]


def test_distances_against_the_step_that_chains_rewind_to():
    chains = ("k=0", "k=0/random", "k=10", "k=50", "k=50/random", "k=50-lr")
    result = reported(chains)
    result["pruning_distance"][:, 2, 4] = np.nan  # one level less
    ax = stability(result, axes())
    assert ax.get_title() == "12.5 % of weights remaining"
    at = result.isel(level=3)["pruning_distance"]
    lines = [line for line in ax.lines if len(line.get_xdata()) > 1]
    assert [line.get_xdata().tolist() for line in lines] == [[0, 10, 50], [0, 50]]
    for line, edges, names in zip(
        lines, ax.collections, (["k=0", "k=10", "k=50"], ["k=0/random", "k=50/random"]), strict=True
    ):
        middle, (low, high) = interval(at.sel(chain=names).values)
        assert_allclose(line.get_ydata(), middle)
        assert_allclose(band(edges, line.get_xdata()), (low, high))
    assert [line.get_label() for line in lines][1] == "random"
    colours = {chain: line.get_color() for chain, line in zip(
        drawn_chains(result, "test_error"), pruning(result, axes()).lines, strict=False
    )}  # fmt: skip
    points = [line for line in ax.lines if len(line.get_xdata()) == 1]
    assert [point.get_color() for point in points[:3]] == [
        colours["k=0"], colours["k=10"], colours["k=50"],
    ]  # fmt: skip
    assert stability(result, axes(), level=1).get_title() == "50 % of weights remaining"
    result["density"][:, 0, 3] = 0.25  # of another share at each level
    result["density"][:, -1, 3] = 0.9  # not drawn
    assert stability(result, axes()).get_title() == "25 to 12.5 % of weights remaining"
    for level in (0, 7):
        with pytest.raises(ValueError, match="'pruning_distance' needs chains of at least two"):
            stability(result, axes(), level=level)


def test_perturbations_of_a_chain():
    ax = perturbations(perturbed(), axes())
    points = [container.lines[0] for container in ax.containers]
    assert [point.get_xdata().tolist() for point in points] == [
        pytest.approx([0]), pytest.approx([0.115, 0.23]), pytest.approx([0.345]),
    ]  # fmt: skip
    accuracy = [100 - 100 * c * ERROR[-1] * SPREAD.mean() for c in (1, 2, 3, 4)]
    assert_allclose(np.concatenate([point.get_ydata() for point in points]), accuracy)
    bars = ax.containers[2].lines[2][1].get_segments()[0]
    _, edges = interval(100 - 400 * ERROR[-1] * SPREAD)
    assert_allclose(bars[:, 1], edges)
    assert entries(ax) == ["none", "noise", "shuffled"]
    assert ax.get_title() == "$k$ = 50: $r$ = \u22120.70, $p$ = 0.02"
    result = perturbed()
    result["effective_std"][2:, 3, -1] = np.nan  # only runs with both values count
    (point,) = perturbations(result, axes()).containers[2].lines[:1]
    assert_allclose(point.get_xdata(), [0.3 * 1.05])
    assert_allclose(point.get_ydata(), [100 - 400 * ERROR[-1] * 1.05])


def test_perturbations_by_themselves():
    change = np.outer([0, 0.1, 0.4], SPREAD)
    result = dataset(
        {
            "effective_std": (("arm", "seed"), change, {"long_name": "effective std"}),
            "test_error": (("arm", "seed"), 0.1 + change),
            "correlation": ((), -0.9), "p_value": ((), 1e-5),
        },
        {"arm": ["none", "noise-1", "fresh"], "seed": range(RUNS)},
        analysis="perturbations", title="",
    )  # fmt: skip
    assert report_panels(result) == ["effective_std"]
    (ax,) = plots.figure(result).axes
    found = [container.lines[0].get_xydata() for container in ax.containers]
    middle = change.mean(1)
    assert_allclose(np.concatenate(found), np.transpose([middle, 100 * (0.9 - middle)]))
    assert ax.get_title() == "$r$ = \u22120.90, $p$ < 0.001"
    assert ax.get_xlabel() == "effective std"
    result["correlation"][...] = result["p_value"][...] = np.nan
    assert perturbations(result, axes()).get_title() == "no correlation"


@pytest.mark.parametrize("venue", ["icml", "neurips"])
def test_figures_have_the_panels_that_exist(venue):
    result = reported()
    assert report_panels(result) == ["test_error", "layer_density", "pruning_distance"]
    assert report_panels(perturbed()) == ["test_error", "layer_density", "effective_std"]
    assert report_panels(reported(("k=0",), layers=1)) == ["test_error"]
    for one in (result, perturbed(), reported(("k=0",), layers=1)):
        figure = plots.figure(one, venue=venue)
        assert len(figure.axes) == len(report_panels(one))
        assert figure.get_figwidth() == plots.WIDTHS[venue]
        figure.draw_without_rendering()
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert not any(ax.get_tightbbox().overlaps(box) for ax in figure.axes)
        assert len({text.get_text() for text in legend.get_texts()}) == len(legend.get_texts())
    chosen = plots.figure(result, y=["train_error"])
    assert [ax.get_ylabel() for ax in chosen.axes] == ["training error (%)"]


def test_bad_input():
    result = reported()
    with pytest.raises(ValueError, match=r"no 'loss' along run, chain, level; it has density, "):
        plots.figure(result, y=["loss"])
    with pytest.raises(ValueError, match=r"no chain 'k=7'; it has k=0, k=0/random"):
        layer_densities(result, axes(), chain="k=7")
    with pytest.raises(ValueError, match="'order_distance' needs chains of at least two rewinding"):
        stability(result, axes(), y="order_distance")
    with pytest.raises(ValueError, match="no effective standard deviations of two or more"):
        perturbations(result, axes())
