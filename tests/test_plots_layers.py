import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from numpy.testing import assert_allclose, assert_array_equal

from landscape import plots, results
from landscape.plots.layers import depth_colours, limits_of, written
from landscape.plots.steps import step_scale
from landscape.results import dataset

STEPS = np.array([0, 1, 3, 10, 100, 2000])
LONG = {"cka": "debiased CKA", "pwcca": "PWCCA"}


def named(num):
    """Layers whose order in the network is against the alphabet."""
    return [f"stem{num - k}" for k in range(num)]


def pairs(num=4, other=None, measures=("cka", "pwcca"), **more):
    """Similarities that fall with the distance of two layers, lower for the second measure."""
    other = num if other is None else other
    dims = ("layer", "other_layer")
    distance = np.abs(np.subtract.outer(np.arange(num), np.arange(other)))
    base = 1 / (1 + distance) - 0.001 * np.arange(num)[:, None]
    variables = {}
    for k, name in enumerate(measures):
        variables[name] = (dims, base / (1 + k), {"long_name": LONG[name]})
    variables["cka_stderr"] = (dims, 0 * base + 0.01)
    variables["cka_chance"] = (dims, 0 * base + 0.05)
    variables["rank"] = ("layer", np.arange(num) + 2.0)
    variables["num_forced"] = (dims, np.zeros(base.shape, int))
    coords = {"layer": named(num), "other_layer": named(other)}
    return dataset(variables | more, coords, analysis="layers", title="")


def correlated(num=3, **more):
    """Correlations out of order: 2, 3 and 4 of them."""
    values = np.full((num, num, num + 1), np.nan)
    for i in range(num):
        values[i, :, : i + 2] = np.linspace(0.1, 0.9, i + 2)
    found = {"correlations": (("layer", "other_layer", "direction"), values)}
    return pairs(num, **found, **more)


def converging(num=3, runs=0):
    """Layer k is at step / 2000 to the power k + 1 of its way; runs differ by a tenth."""
    way = (STEPS / STEPS[-1])[:, None] ** (np.arange(num) + 1)
    dims = ("step", "layer")
    coords = {"step": STEPS, "layer": named(num)}
    chance = ("layer", 0.01 * np.arange(num))
    if runs:
        way = way * (1 - 0.1 * np.arange(runs))[:, None, None]
        dims, coords = ("run", *dims), coords | {"run": [f"s{k}" for k in range(runs)]}
    variables = {"cka": (dims, way), "cka_stderr": (dims, 0.1 * way), "cka_chance": chance}
    return dataset(variables, coords, analysis="layer convergence", title="")


def by_layer(num=3, dim="step", analysis="layer steps"):
    places = STEPS if dim == "step" else np.array(["a", "b", "c"])
    distance = np.abs(np.subtract.outer(np.arange(len(places)), np.arange(len(places))))
    values = np.stack([np.exp(-(k + 1) * distance) for k in range(num)])
    coords = {"layer": named(num), dim: places, f"other_{dim}": places}
    found = {"cka": (("layer", dim, f"other_{dim}"), values, {"long_name": LONG["cka"]})}
    return dataset(found, coords, analysis=analysis, title="")


def axes(size=4.0):
    return Figure(figsize=(size, size), layout="constrained").subplots()


def texts(labels):
    return [text.get_text() for text in labels]


def lines_of(ax, length):
    return [line for line in ax.lines if len(line.get_xdata()) == length]


# --- all pairs of layers --------------------------------------------------------------------------


def test_layers_stand_in_the_order_of_the_network_from_the_lower_left():
    result = pairs(3, 4)
    ax = plots.similarity(result, axes())
    assert texts(ax.get_yticklabels()) == ["stem3", "stem2", "stem1"]
    assert texts(ax.get_xticklabels()) == ["stem4", "stem3", "stem2", "stem1"]
    assert ax.get_ylim() == (-0.5, 2.5)
    assert ax.get_xlim() == (-0.5, 3.5)
    assert_array_equal(ax.collections[0].get_array(), result["cka"])
    assert ax.collections[0].get_clim() == (0, 1)
    assert ax.child_axes[0].get_ylabel() == "debiased CKA"
    written = {text.get_position(): text.get_text() for text in ax.texts}
    assert len(written) == 12
    assert written[0, 1] == "0.50"  # second layer of the first network, first of the other
    assert written[3, 0] == "0.25"


def test_the_order_of_dimensions_in_a_file_does_not_matter():
    result = pairs(3, 4).transpose("other_layer", "layer")
    ax = plots.similarity(result, axes())
    assert_array_equal(ax.collections[0].get_array(), result["cka"].T)


def test_negative_values_lower_the_scale_and_are_not_clamped():
    result = pairs()
    result["cka"][0, 3] = -0.012
    ax = plots.similarity(result, axes())
    assert ax.collections[0].get_clim() == (-0.05, 1)
    assert ax.collections[0].get_array()[0, 3] == -0.012
    assert {text.get_position(): text.get_text() for text in ax.texts}[3, 0] == "-0.01"
    assert limits_of(np.array([0.2, np.nan])) == (0, 1)
    assert_allclose(limits_of(np.array([-0.3, 1.0])), (-0.3, 1))


def test_a_value_that_is_written_as_zero_has_no_sign():
    result = pairs(2, measures=("cka",))
    result["cka"][0, 1] = -0.0003
    assert "0.00" in texts(plots.similarity(result, axes()).texts)
    assert "-0.00" not in texts(plots.similarity(result, axes()).texts)


def test_a_similarity_without_a_value_is_hatched():
    result = pairs()
    result["cka"][1, 2] = np.nan
    ax = plots.similarity(result, axes())
    (cells,) = (one for one in ax.collections if one.get_label() == "not finite")
    assert_allclose(cells.get_paths()[0].vertices.min(0), [1.5, 0.5])
    assert len(ax.texts) == 15


@pytest.mark.parametrize("num", [5, 20, 60])
def test_names_are_as_many_as_can_be_read(num):
    figure = plots.figure(pairs(num, measures=("cka",)), venue="icml")
    ax = figure.axes[0]
    figure.draw_without_rendering()
    for axis, side in ((ax.yaxis, "height"), (ax.xaxis, "width")):
        shown = axis.get_ticklabels()
        assert (shown[0].get_text(), shown[-1].get_text()) == (f"stem{num}", "stem1")
        for text, place in zip(shown, axis.get_ticklocs(), strict=True):
            assert text.get_text() == f"stem{num - round(place)}"
        cell = getattr(ax.get_window_extent(), side) / num
        apart = np.diff(axis.get_ticklocs()).min() * cell
        assert apart >= shown[0].get_fontsize() * figure.dpi / 72
        assert len(shown) == num or len(shown) >= 8
    assert bool(ax.texts) == (num == 5)
    assert ax.get_window_extent().width > 0.5 * figure.bbox.width


def test_long_names_lose_the_beginning_that_all_share():
    long = ["encoder.layer.0.attention", "encoder.layer.11.output", "encoder.layer.1"]
    assert written(long) == ["0.attention", "11.output", "1"]
    assert written(["net.conv1", "net.conv2"]) == ["net.conv1", "net.conv2"]
    assert written(["a.long.name.of.one.layer"]) == ["a.long.name.of.one.layer"]
    nested = ["encoder.attention.all", "encoder.attention.all.output"]
    assert written(nested) == ["all", "all.output"]


def test_a_figure_has_a_panel_for_each_measure_and_none_for_what_stands_beside():
    figure = plots.figure(pairs())
    first, second = (ax for ax in figure.axes if ax.collections)
    assert_array_equal(first.collections[0].get_array(), pairs()["cka"])
    assert_array_equal(second.collections[0].get_array(), pairs()["pwcca"])
    assert [ax.child_axes[0].get_ylabel() for ax in (first, second)] == ["debiased CKA", "PWCCA"]
    assert figure.get_size_inches()[0] == 5.5
    assert len([ax for ax in plots.figure(pairs(), y=["pwcca"]).axes if ax.collections]) == 1


def test_axes_say_which_state_the_layers_are_of():
    result = pairs().assign_attrs(first="seed 0", second="seed 1")
    ax = plots.similarity(result, axes())
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("layer of seed 0", "layer of seed 1")
    ax = plots.similarity(result.assign_attrs(second="seed 0"), axes())
    assert (ax.get_ylabel(), ax.get_xlabel()) == ("layer", "layer")


def test_the_figure_is_as_high_as_its_panels_need():
    figure = plots.figure(pairs(6), venue="icml", y=["cka"])
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    assert figure.get_figheight() - box.height < 0.2
    assert box.y0 > -0.01


# --- per frequency --------------------------------------------------------------------------------


def per_frequency():
    result = pairs(3, measures=("cka",)).drop_vars(["cka_stderr", "cka_chance"])
    fall = xr.DataArray([1.0, 0.5, 0.3], dims="frequency", coords={"frequency": [0.0, 1.0, 4.0]})
    name = {"long_name": LONG["cka"]}
    return result.assign(cka=(result["cka"] * fall).assign_attrs(name))


def test_frequencies_are_drawn_and_averaged():
    result = per_frequency()
    figure = plots.figure(result)
    mean, spread = (ax for ax in figure.axes if ax.collections)
    assert_allclose(mean.collections[0].get_array(), pairs(3)["cka"] * 0.6)
    assert mean.child_axes[0].get_ylabel().replace("\n", " ") == "debiased CKA, mean over frequency"
    own = np.diag(pairs(3)["cka"])[:, None] * [1, 0.5, 0.3]
    assert_allclose(spread.collections[0].get_array(), own)
    assert_allclose(
        spread.collections[0].get_coordinates()[0, :, 0], [-0.5, 0.5, 2.5, 5.5]
    )  # real frequencies
    named_ones = result.assign_coords(frequency=["0,0", "0,1", "1,1"])
    ax = plots.frequencies(named_ones, axes(), y="cka")
    assert texts(ax.get_xticklabels()) == ["0,0", "0,1", "1,1"]
    with pytest.raises(ValueError, match="no layer has the same name"):
        plots.frequencies(result.assign_coords(other_layer=["p", "q", "r"]), axes(), y="cka")


# --- convergence ----------------------------------------------------------------------------------


def test_convergence_has_a_line_for_each_layer_from_dark_to_light():
    result = converging()
    ax = plots.convergence(result, axes(), band=2.0)
    drawn = lines_of(ax, 6)[:3]
    for k, line in enumerate(drawn):
        assert_array_equal(line.get_xdata(), STEPS)
        assert_array_equal(line.get_ydata(), result["cka"][:, k])
        assert_array_equal(line.get_color(), depth_colours(3)[k])
    lightness = depth_colours(3)[:, :3] @ (0.299, 0.587, 0.114)
    assert np.all(np.diff(lightness) > 0.1)
    assert lightness[-1] < 0.85  # not lost on white
    band = ax.collections[1].get_paths()[0].vertices
    assert_allclose(band[:, 1].max(), 1.2)
    assert ax.get_xscale() == "symlog"
    assert ax.get_xlim() == (0, 2000)
    assert ax.get_ylim() == (0, 1.02)
    (bar,) = ax.child_axes
    assert texts(bar.get_yticklabels()) == ["stem3", "stem2", "stem1"]


def test_the_chance_level_of_each_layer_is_dotted():
    ax = plots.convergence(converging(), axes())
    dotted = [line for line in ax.lines if line.get_linestyle() == ":"]
    assert_allclose([line.get_ydata()[0] for line in dotted], [0, 0.01, 0.02])
    assert ax.get_legend_handles_labels()[1] == ["chance"]
    assert not [one for one in plots.convergence(converging(13), axes()).lines if one.is_dashed()]


def test_the_band_of_several_runs_goes_from_the_lowest_to_the_highest():
    result = converging(2, runs=3)
    ax = plots.convergence(result, axes())
    assert_allclose(lines_of(ax, 6)[0].get_ydata(), 0.9 * STEPS / 2000)
    ends = ax.collections[0].get_paths()[0].vertices
    at_end = ends[ends[:, 0] == 2000][:, 1]
    assert_allclose([at_end.min(), at_end.max()], [0.8, 1.0])
    with pytest.raises(ValueError, match="also varies along kind: select one first"):
        plots.convergence(converging().expand_dims(kind=["a", "b"]), axes())


def test_convergence_of_many_layers_and_several_measures_shares_a_bar_beside_the_data():
    result = converging(40)
    result = result.assign(pwcca=(result["cka"] / 2).assign_attrs(long_name="PWCCA"))
    figure = plots.figure(result, venue="icml")
    first, second, bar = figure.axes
    assert_array_equal(lines_of(second, 6)[39].get_ydata(), result["pwcca"][:, 39])
    assert [first.get_title(), second.get_title()] == ["cka", "PWCCA"]
    shown = texts(bar.get_yticklabels())
    assert (shown[0], shown[-1]) == ("stem40", "stem1")
    assert 8 <= len(shown) <= 40
    figure.draw_without_rendering()
    assert bar.get_window_extent().x0 > first.get_window_extent().x1


@pytest.mark.parametrize(
    ("steps", "scale"),
    [([0, 1, 10, 100], "symlog"), ([0, 100, 200, 1000, 1003], "linear"), ([5], "linear"),
     (range(0, 5000, 10), "linear")],
)  # fmt: skip
def test_axes_of_steps_are_logarithmic_where_the_gaps_grow(steps, scale):
    ax = axes()
    step_scale(ax, np.array(steps))
    assert (ax.get_xscale(), ax.get_yscale()) == (scale, "linear")


def test_no_step_below_zero_is_written():
    ax = axes()
    step_scale(ax, np.array([0, 0.04, 0.1, 1, 30]))
    ax.set_xlim(-0.02, 40)  # as a cell at step 0 has it
    ax.get_figure().draw_without_rendering()
    assert ax.get_xticks().tolist() == [0, 0.01, 0.1, 1, 10]
    assert not ax.get_xticks(minor=True).size
    step_scale(ax, np.array([0, 1, 10, 10**12]))
    assert ax.get_xticks().tolist() == [0, *10.0 ** np.arange(0, 13, 2)]


# --- steps and networks, layer by layer -----------------------------------------------------------


def test_steps_have_real_axes_and_layers_share_their_scale():
    result = by_layer()
    figure = plots.figure(result)
    panels = figure.axes[:3]
    assert [ax.get_title() for ax in panels] == ["stem3", "stem2", "stem1"]
    for k, ax in enumerate(panels):
        mesh = ax.collections[0]
        assert_array_equal(mesh.get_array(), result["cka"][k])
        assert_allclose(mesh.get_coordinates()[:, 0, 1], [-0.5, 0.5, 2, 6.5, 55, 1050, 2950])
        assert mesh.get_clim() == (0, 1)
        assert (ax.get_xscale(), ax.get_yscale()) == ("symlog", "symlog")
        assert not ax.texts
    assert figure.axes[3].get_ylabel() == "debiased CKA"
    assert len(figure.axes) == 4


def test_networks_have_a_matrix_for_each_layer():
    result = by_layer(5, "run", "layer networks")
    result["cka"][3, 0, 1] = -0.1
    figure = plots.figure(result)
    for k, ax in enumerate(figure.axes[:5]):
        assert_array_equal(ax.collections[0].get_array(), result["cka"][k])
        assert ax.collections[0].get_clim() == (-0.1, 1)
        assert ax.get_ylim() == (-0.5, 2.5)
    assert texts(figure.axes[0].get_yticklabels()) == ["a", "b", "c"]
    alone = plots.figure(result.isel(layer=2))
    assert_array_equal(alone.axes[0].collections[0].get_array(), result["cka"][2])
    assert alone.axes[1].get_ylabel() == "debiased CKA"  # not a barrier


def test_of_many_layers_some_are_drawn_and_the_figure_says_so():
    figure = plots.figure(by_layer(31, "run", "layer networks"))
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == [f"stem{31 - k}" for k in range(0, 31, 2)]
    assert figure.get_suptitle() == "16 of 31 layers"


# --- spectra --------------------------------------------------------------------------------------


def test_spectra_fall_and_end_where_the_rank_does():
    result = correlated(correlations_chance=((), 0.2), correlations_threshold=("layer", [0.3] * 3))
    ax = plots.spectra(result, axes())
    for k, line in enumerate(ax.lines[:3]):
        assert_array_equal(line.get_xdata(), np.arange(1, k + 3))
        assert_allclose(line.get_ydata(), np.linspace(0.9, 0.1, k + 2))
        assert_array_equal(line.get_color(), depth_colours(3)[k])
    chance, threshold = ax.lines[3:]
    assert (chance.get_linestyle(), threshold.get_linestyle()) == (":", "--")
    assert_allclose(chance.get_ydata(), 0.2)
    assert_allclose(threshold.get_ydata(), 0.3)
    assert ax.get_legend_handles_labels()[1] == ["chance", "threshold"]
    assert ax.get_ylim() == (0, 1.02)
    assert ax.get_xlabel() == "direction"


def test_references_of_each_layer_and_direction_have_the_colours_of_the_layers():
    levels = np.arange(12.0).reshape(3, 4) / 20
    result = correlated(correlations_chance=(("layer", "direction"), levels))
    dotted = plots.spectra(result, axes()).lines[3:]
    assert_allclose([line.get_ydata() for line in dotted], levels)
    for line, colour in zip(dotted, depth_colours(3), strict=True):
        assert_array_equal(line.get_color(), colour)


def test_spectra_compare_layers_of_one_name():
    result = correlated()
    values = result["correlations"].values
    values[2, 1] = [0.5, 0.6, np.nan, np.nan]
    shifted = result.assign_coords(other_layer=["other", "stem1", "stem9"])
    (line,) = plots.spectra(shifted, axes()).lines
    assert_allclose(line.get_ydata(), [0.6, 0.5])
    apart = result.assign_coords(other_layer=["p", "q", "r"])
    with pytest.raises(ValueError, match="no layer has the same name in both networks"):
        plots.spectra(apart, axes())
    assert len([ax for ax in plots.figure(apart).axes if ax.collections]) == 2  # no spectra


def test_the_figure_of_layers_ends_with_their_spectra():
    figure = plots.figure(correlated())
    assert [ax.get_ylabel() for ax in figure.axes] == ["layer", "layer", "correlations"]
    (alone,) = plots.figure(correlated(), y=["correlations"]).axes
    assert len(alone.lines) == 3


def test_the_colour_bar_of_spectra_names_the_layers_that_are_drawn():
    result = correlated().assign_coords(other_layer=["stem1", "stem2", "other"])
    *_, ax = plots.figure(result).axes
    assert len(ax.lines) == 2
    assert texts(ax.child_axes[0].get_yticklabels()) == ["stem2", "stem1"]


# --- files and errors -----------------------------------------------------------------------------

ALL = {
    "layers": correlated,
    "convergence": converging,
    "runs": lambda: converging(runs=2),
    "steps": by_layer,
    "networks": lambda: by_layer(2, "run", "layer networks"),
    "frequency": per_frequency,
}


@pytest.mark.parametrize("kind", ALL)
def test_figures_from_files_are_the_same(kind, tmp_path):
    result = ALL[kind]()
    results.save(result, tmp_path / "r.h5")
    for name, one in (("now", result), ("later", results.load(tmp_path / "r.h5"))):
        plots.save_figure(plots.figure(one, venue="icml"), tmp_path / f"{name}.svg")
    assert (tmp_path / "now.svg").read_bytes() == (tmp_path / "later.svg").read_bytes()


def test_unknown_measures_are_refused():
    with pytest.raises(ValueError, match="the result has no 'rsa' along 'layer', 'other_layer'"):
        plots.similarity(pairs(), axes(), y="rsa")
    with pytest.raises(ValueError, match="the result has no 'cka' along 'step', 'layer'"):
        plots.convergence(pairs(), axes())
    with pytest.raises(ValueError, match="'cka' also varies along layer: select one first"):
        plots.similarity(by_layer(), axes())
    with pytest.raises(ValueError, match="no 'rsa'"):
        plots.figure(converging(), y=["rsa"])
