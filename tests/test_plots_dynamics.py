import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.testing import assert_allclose, assert_array_equal

from landscape import plots
from landscape.plots.dynamics import (
    dashboard_panels,
    distribution,
    movement,
    moving,
    progress,
)
from landscape.plots.layers import depth_colours
from landscape.results import dataset

STEPS = np.array([0, 1, 3, 10, 100, 2000])
QUANTILES = [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99]
REFERENCES = ("initial", "final", "previous")
ALL = ["loss", "error", "weight_norm", "distance", "cosine", "signs", "change_per_step",
       "gradient_norm", "noise_scale"]  # fmt: skip


def moved(runs=0, splits=("train", "test"), layers=3, *, task=True):
    """Layer k goes k + 1 times as far as the first; run r is 1 + r times as fast."""
    rate = 1 + np.arange(max(runs, 1))[:, None]
    way = rate * (STEPS / STEPS[-1])
    by_layer = way[..., None] * np.arange(1, layers + 1)
    lead = ("run",) if runs else ()
    variables = {}

    def add(name, values, dims):
        variables[name] = ((*lead, *dims), values if runs else values[0])

    for name in (*(f"distance_{n}" for n in REFERENCES), "weight_norm", "weight_std", "zeros",
                 "change_per_step"):  # fmt: skip
        add(name, by_layer, ("step", "layer"))
        add(f"total_{name}", 10 * way, ("step",))
    for kind in ("cosine", "signs"):
        for name in REFERENCES:
            add(f"{kind}_{name}", 1 - by_layer / 100, ("step", "layer"))
            add(f"total_{kind}_{name}", 1 - way / 100, ("step",))
    spread = np.linspace(-1, 1, 7) * (1 + way[..., None, None]) * np.ones((layers, 1))
    add("weight_quantile", spread, ("step", "layer", "quantile"))
    variables["num_weights"] = ("layer", np.full(layers, 5))
    if task:
        for number, name in enumerate(("loss", "error")):
            values = (
                (1 + number) * np.exp(-5 * way)[:, None] * (1 + np.arange(len(splits)))[:, None]
            )
            add(name, values, ("split", "step"))
            add(f"{name}_stderr", 0.1 * values, ("split", "step"))
        for name in ("gradient_norm", "noise_scale"):
            add(name, 1 + by_layer, ("step", "layer"))
            add(f"total_{name}", 1 + way, ("step",))
    add("status", np.ones(way.shape, np.uint8), ("step",))
    coords = {"step": STEPS, "layer": [f"stem{layers - k}" for k in range(layers)],
              "quantile": QUANTILES}  # fmt: skip
    if task:
        coords["split"] = list(splits)
    if runs:
        coords["run"] = [f"seed{k}" for k in range(runs)]
    return dataset(variables, coords, analysis="dynamics", title="")


def axes():
    return Figure(figsize=(4, 3), layout="constrained").subplots()


def titles(figure):
    return [ax.get_title().replace("\n", " ") for ax in figure.axes if ax.get_title()]


def band(ax, number=0):
    """The lower and the upper edge of a filled band at each step."""
    path = ax.collections[number].get_paths()[0].vertices
    low = [path[path[:, 0] == step, 1].min() for step in STEPS]
    return np.array(low), np.array([path[path[:, 0] == step, 1].max() for step in STEPS])


def test_the_panels_that_a_result_has():
    assert dashboard_panels(moved()) == ALL
    assert dashboard_panels(moved(task=False)) == ALL[2:7]
    assert "distance_initial" in moving(moved())
    assert not [name for name in moving(moved()) if "previous" in name or "total" in name]


def test_splits_differ_in_colour_and_dashes_with_bands_of_standard_errors():
    result = moved()
    ax = progress(result, axes(), panel="loss")
    train, test = ax.lines
    assert_allclose(train.get_ydata(), result["loss"].sel(split="train"))
    assert_allclose(test.get_ydata(), result["loss"].sel(split="test"))
    assert train.get_color() != test.get_color()
    assert train.get_linestyle() != test.get_linestyle()
    assert [line.get_label() for line in ax.lines] == ["train", "test"]
    low, high = band(ax)
    values = result["loss"].sel(split="train").values
    assert_allclose(low, (1 - 0.196) * values)
    assert_allclose(high, (1 + 0.196) * values)
    assert ax.get_xscale() == "symlog"


def test_runs_are_a_mean_with_a_band_from_the_lowest_to_the_highest():
    result = moved(runs=3)
    ax = progress(result, axes())
    (initial, final), values = ax.lines, result["total_distance_initial"]
    assert [initial.get_label(), final.get_label()] == ["initial state", "final state"]
    assert_allclose(initial.get_ydata(), values.mean("run"))
    low, high = band(ax)
    assert_allclose(low, values.min("run"))
    assert_allclose(high, values.max("run"))
    assert ax.get_ylim()[0] == 0
    assert ax.get_yscale() == "linear"


def test_a_step_that_a_run_lacks_is_a_gap():
    result = moved(runs=2)
    result["total_distance_initial"][1, 2] = np.nan
    ax = progress(result, axes())
    assert_array_equal(np.isnan(ax.lines[0].get_ydata()), STEPS == 3)


def test_shares_near_one_fill_their_axis_and_losses_over_decades_are_logarithmic():
    result = moved()
    ax = progress(result, axes(), panel="signs")
    assert ax.get_ylim()[0] > 0.98
    assert progress(result, axes(), panel="loss").get_yscale() == "log"
    result["error"][0, -1] = 0  # no error at all has its place on the axis
    assert progress(result, axes(), panel="error").get_yscale() == "symlog"


def test_layers_have_the_colours_of_their_depth_and_all_of_them_grey():
    result = moved(runs=2)
    ax = movement(result, axes(), y="distance_final")
    *layers, total = ax.lines
    for line, colour, layer in zip(layers, depth_colours(3), result["layer"].values, strict=True):
        assert_allclose(line.get_color(), colour)
        expected = result["distance_final"].sel(layer=layer).mean("run")
        assert_allclose(line.get_ydata(), expected)
    assert_allclose(total.get_ydata(), result["total_distance_final"].mean("run"))
    assert total.get_label() == "all layers"
    (bar,) = ax.child_axes
    assert [text.get_text() for text in bar.get_yticklabels()] == ["stem3", "stem2", "stem1"]


def test_a_fan_of_quantiles():
    result = moved(runs=2)
    ax = distribution(result, axes(), layer="stem2")
    values = result["weight_quantile"].sel(layer="stem2").mean("run")
    for number, low in enumerate(QUANTILES[:3]):
        edges = band(ax, number)
        assert_allclose(edges[0], values.sel(quantile=low))
        assert_allclose(edges[1], values.sel(quantile=1 - low, method="nearest"))
    assert_allclose(ax.lines[0].get_ydata(), values.sel(quantile=0.5), atol=1e-12)
    shades = [sum(to_rgb(one.get_facecolor()[0])) for one in ax.collections]
    assert shades == sorted(shades, reverse=True)
    assert [c.get_label() for c in ax.collections] == ["1 to 99 %", "5 to 95 %", "25 to 75 %"]


@pytest.mark.parametrize("venue", ["icml", "neurips"])
@pytest.mark.parametrize("runs", [0, 3])
def test_figures(venue, runs):
    result = moved(runs)
    board = plots.figure(result, venue=venue)
    assert len(board.axes) == len(ALL)
    assert titles(board)[3:6] == [
        "distance to reference", "cosine with reference", "share of equal signs",
    ]  # fmt: skip
    (legend,) = board.legends
    entries = [text.get_text() for text in legend.get_texts()]
    assert entries == ["train", "test", "initial state", "final state"]
    assert titles(plots.figure(result, y=["cosine", "loss"])) == ["cosine with reference", "loss"]
    layers = plots.figure(result, kind="layers", venue=venue)
    assert len(layers.axes) == len(moving(result)) + 1
    one = plots.figure(result, kind="layers", y=["signs_previous"], venue=venue)
    assert titles(one) == ["signs previous"]
    assert titles(plots.figure(result, kind="weights")) == ["stem3", "stem2", "stem1"]
    for figure in (board, layers):
        figure.draw_without_rendering()
        boxes = [ax.title.get_window_extent() for ax in figure.axes if ax.get_title()]
        for k, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:k])


def test_of_many_layers_some_fans_are_drawn():
    result = moved(layers=40)
    figure = plots.figure(result, kind="weights")
    assert len(figure.axes) == 16
    assert titles(figure)[0] == "stem40"
    assert titles(figure)[-1] == "stem1"
    assert figure.get_suptitle() == "16 of 40 layers"
    few = plots.figure(result, kind="weights", y=["stem7"])
    assert titles(few) == ["stem7"]


def test_bad_input():
    result = moved()
    with pytest.raises(ValueError, match=r"no panel 'speed'; it has loss, error, weight_norm"):
        progress(result, axes(), panel="speed")
    with pytest.raises(ValueError, match=r"no 'loss' along 'step', 'layer'"):
        movement(result, axes(), y="loss")
    with pytest.raises(ValueError, match=r"no layer 'fc'; it has stem3, stem2"):
        distribution(result, axes(), layer="fc")
    with pytest.raises(ValueError, match=r"no plot of kind 'layers'.*known: dynamics"):
        plots.figure(result.drop_vars("weight_quantile"), kind="layers")
