import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from numpy.testing import assert_allclose, assert_array_equal

from landscape import plots
from landscape.plots.levels import edges, level_texts
from landscape.plots.surfaces import on_surface, plane_of
from landscape.results import dataset

X = np.array([0.0, 1.0, 4.0])  # neither square nor uniform
Y = np.array([-1.0, 0.0, 0.5, 2.0, 3.0])


def plane(function, x=X, y=Y, units="distance", **more):
    """A surface of a function of (x, y), with two splits: the second is one higher."""
    loss = function(*np.meshgrid(x, y, indexing="ij"))
    both = np.stack([loss, loss + 1])
    variables = {
        "loss": (("split", "x", "y"), both),
        "loss_stderr": (("split", "x", "y"), 0 * both),
        "status": (("x", "y"), np.ones(loss.shape, np.uint8)),
    }
    coords = {"x": ("x", x, {"units": units}), "y": ("y", y, {"units": units})}
    coords["split"] = ["train", "test"]
    return dataset(variables | more, coords, analysis="surface", title="a plane")


@pytest.fixture
def tilted():
    return plane(lambda x, y: x + 10 * y)


def with_overlays(result):
    """A surface with three states, one of them 2.5 off the plane, a curve and a path."""
    t, k = np.linspace(0, 1, 61), np.arange(20)
    return result.assign_coords(mark=["a", "b", "c"], curve_t=t, step=100 * k).assign(
        mark_x=("mark", [0.0, 4.0, 2.0]),
        mark_y=("mark", [0.0, 0.0, 2.0]),
        mark_distance=("mark", [0.0, 0.0, 2.5]),
        curve_x=("curve_t", 4 * t),
        curve_y=("curve_t", 8 * t * (1 - t)),
        curve_distance=("curve_t", 0 * t),
        path_x=("step", k / 5),
        path_y=("step", (k / 19) ** 2),
        path_distance=("step", 0.1 * k),
    )


def axes():
    return Figure(figsize=(4, 4), layout="constrained").subplots()


def colour_at(figure, ax, x, y):
    """The colour (red, green, blue) that is seen at a point of the axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    column, row = ax.transData.transform((x, y))
    return np.asarray(canvas.buffer_rgba())[::-1][round(row), round(column), :3] / 255


# --- levels ---------------------------------------------------------------------------------------


def test_levels_are_geometric_steps_above_the_lowest_value():
    values = np.concatenate([[2.0], 2 + np.geomspace(1e-3, 10, 500)])
    levels = plots.levels_for([values], num=12)
    assert len(levels) == 12
    assert levels[0] <= 2 < levels[1]
    assert levels[-1] >= 12
    ratios = (levels[2:] - 2) / (levels[1:-1] - 2)
    assert_allclose(ratios, ratios.mean(), rtol=0.12)  # rounded to two digits of the step
    below = np.mean(values[1:] < levels[1])
    assert 0.01 < below < 0.03


@pytest.mark.parametrize("shift", [0.0, -3.0, 1000.0])
def test_levels_move_with_the_values_whatever_their_sign(shift):
    values = np.geomspace(0.01, 100, 300) - 0.01
    assert_allclose(
        plots.levels_for([values + shift]) - shift, plots.levels_for([values]), rtol=0.06, atol=1e-3
    )


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e12])
def test_levels_scale_with_the_values(scale):
    values = np.random.default_rng(0).lognormal(size=200)
    assert_allclose(
        plots.levels_for([scale * values]) / scale, plots.levels_for([values]), rtol=0.1
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_written_levels_are_the_levels_and_contain_all_values(seed):
    rng = np.random.default_rng(seed)
    values = rng.normal() * 10 ** rng.uniform(-3, 6) + rng.lognormal(
        sigma=rng.uniform(0.01, 4), size=99
    )
    levels = plots.levels_for([values])
    assert (np.diff(levels) > 0).all()
    assert levels[0] <= values.min()
    assert levels[-1] >= values.max()
    written = [float(text) for text in level_texts(levels)]
    assert_allclose(written, levels, rtol=1e-12, atol=1e-12 * np.ptp(values))


def test_levels_are_common_to_several_results_and_skip_what_is_not_finite(tilted):
    other = plane(lambda x, y: 5 * x + y**2)
    apart = [plots.levels_for([one]) for one in (tilted, other)]
    both = plots.levels_for([tilted, other])
    assert both[0] <= min(one[0] for one in apart)
    assert both[-1] >= 35
    tilted["loss"][0, 1, 1] = np.inf
    tilted["loss"][0, 2, 1] = np.nan
    assert plots.levels_for([tilted])[-1] == apart[0][-1]
    assert plots.levels_for([tilted], top=7.0)[-1] == 7.0


def test_levels_of_one_value_and_of_none():
    low, high = plots.levels_for([np.full((3, 3), 2.0)])
    assert low == 2 < high
    assert (np.diff(plots.levels_for([[1.0, 2.0]])) > 0).all()
    with pytest.raises(ValueError, match="no finite value"):
        plots.levels_for([[np.nan, np.inf]])
    with pytest.raises(ValueError, match="top must be above the smallest value 3, got 2"):
        plots.levels_for([[3.0, 4.0]], top=2)


def test_borders_of_cells_are_half_way():
    assert_allclose(edges(np.array([0.0, 1.0, 4.0])), [-0.5, 0.5, 2.5, 5.5])
    assert_allclose(edges(np.array([3.0])), [2.5, 3.5])


# --- contours -------------------------------------------------------------------------------------


def test_a_grid_of_3_by_5_points_is_the_right_way_round(tilted):
    chosen, values, _ = plane_of(tilted.isel(x=[2, 0, 1], y=[4, 3, 0, 1, 2]), "loss", "train")
    assert_array_equal(chosen["x"], X)
    assert_allclose(values, X[None, :] + 10 * Y[:, None])
    ax = plots.contours(tilted, axes(), levels=np.linspace(-11, 35, 24), filled=False)
    (drawn,) = (one for one in ax.collections if one.get_paths())
    checked = 0
    for level, path in zip(drawn.levels, drawn.get_paths(), strict=True):
        for x, y in path.vertices:
            assert_allclose(x + 10 * y, level, atol=1e-9)  # linear between points: exact
            checked += 1
    assert checked > 20
    assert ax.get_xlim() == (0, 4)
    assert ax.get_ylim() == (-1, 3)


def test_colours_are_those_of_the_levels():
    result = plane(lambda x, y: x + 10 * y, x=np.linspace(0, 4, 9), y=np.linspace(-1, 3, 7))
    levels = np.array([-10.0, 0.0, 10.0, 20.0, 40.0])
    ax = plots.contours(result, axes(), levels=levels, bar=False)
    norm, cmap = plots.levels.colours(levels)
    for x, y in [(1.0, -0.5), (3.0, 0.3), (2.0, 1.2), (1.0, 2.6)]:
        assert_allclose(colour_at(ax.figure, ax, x, y), cmap(norm(x + 10 * y))[:3], atol=0.01)


def test_the_second_split_is_drawn_when_asked_for(tilted):
    for split, expected in ((None, 0.0), ("train", 0.0), ("test", 1.0)):
        _, values, _ = plane_of(tilted, "loss", split)
        assert values[1, 0] == expected


def test_axes_are_equal_in_real_distances_only(tilted):
    assert plots.contours(tilted, axes()).get_aspect() == 1
    relative = plane(lambda x, y: x + y, units="")
    assert plots.contours(relative, axes()).get_aspect() == "auto"


def test_what_is_above_the_top_level_is_grey_and_hatched(tilted):
    ax = plots.contours(tilted, axes(), levels=np.array([-11.0, 0.0, 10.0]))
    filled = ax.collections[0]
    assert filled.hatches[-1]
    assert_allclose(filled.get_facecolors()[-1][:3], 0.85)
    (bar,) = ax.child_axes
    assert bar._colorbar.extend == "max"
    assert_allclose(bar.get_yticks(), [-11, 0, 10])
    whole = plots.contours(tilted, axes())
    assert not any(whole.collections[0].hatches)
    assert whole.child_axes[0]._colorbar.extend == "neither"


def test_lost_points_are_hatched_cells_and_pending_ones_blank(tilted):
    tilted["loss"][0, 1, 2] = np.nan
    tilted["status"][1, 2] = 2
    tilted["loss"][0, 2, 4] = np.inf
    tilted["status"][2, 4] = 2
    tilted["loss"][0, 0, 0] = np.nan
    tilted["status"][0, 0] = 0
    ax = plots.contours(tilted, axes())
    (cells,) = (one for one in ax.collections if one.get_label() == "not finite")
    corners = [(path.vertices.min(0), path.vertices.max(0)) for path in cells.get_paths()]
    assert_allclose(corners, [[[0.5, 0.25], [2.5, 1.25]], [[2.5, 2.5], [4, 3]]])
    assert cells.get_hatch()
    assert_allclose(colour_at(ax.figure, ax, 0.05, -0.95), 1)  # white


def test_interpolated_points_are_drawn(tilted):
    tilted["evaluated"] = (("x", "y"), np.zeros((3, 5), np.uint8))
    _, values, lost = plane_of(tilted, "loss", None)
    assert np.isfinite(values).all()
    assert not lost.any()
    assert [ax.get_title() for ax in plots.figure(tilted).axes[:2]] == ["train", "test"]


def test_marks_curve_and_path_are_on_top(tilted):
    ax = plots.contours(with_overlays(tilted), axes())
    lines = {line.get_label(): line for line in ax.lines}
    assert_allclose(lines["curve"].get_xydata()[30], [2, 2])
    path = lines["training path, larger dots farther (up to 1.9 off the plane)"]
    assert_allclose(path.get_xydata()[-1], [3.8, 1])
    texts = [text.get_text() for text in ax.texts]
    assert texts[:3] == ["a", "b", "c (2.5 off)"]
    assert {"step 0", "step 1900"} < set(texts)
    marks = [line for line in ax.lines if line.get_zorder() == 5]
    assert [line.get_markerfacecolor() for line in marks] == ["black", "black", "white"]
    assert len({line.get_marker() for line in marks}) == 3
    sizes = ax.collections[-1].get_sizes()
    assert_allclose((sizes - 5) / 20, np.arange(20) / 19)  # the largest dot is farthest away


def test_limits_grow_to_show_marks_outside_of_the_grid(tilted):
    result = with_overlays(tilted)
    result["mark_x"][0] = -3.0
    assert plots.contours(result, axes()).get_xlim() == (-3, 4)


@pytest.mark.parametrize("venue", ["icml", "neurips"])
def test_no_labels_lie_on_each_other(venue):
    x, y = np.linspace(-1, 5, 7), np.linspace(-1, 4, 6)
    result = with_overlays(plane(lambda x, y: x**2 + y**2, x=x, y=y))
    figure = plots.figure(result, venue=venue)
    figure.draw_without_rendering()
    for ax in figure.axes:
        marks = [text for text in ax.texts if text.get_text()]
        ticks = [text for text in ax.get_yticklabels() if text.get_text() and text.get_visible()]
        for group in (marks, ticks):
            boxes = [text.get_window_extent() for text in group]
            assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_row_of_panels_shares_its_levels(tilted):
    both = np.concatenate([tilted["loss"].values.ravel(), [np.nan]])
    figure = plots.figure(tilted)
    shared = plots.levels_for([both])
    for ax in figure.axes[:2]:
        assert_allclose(ax.collections[0].levels, shared)
    (bar,) = figure.axes[2:]
    assert_allclose(bar.get_yticks(), shared)


# --- surfaces in three dimensions, volumes, and values between points -----------------------------


def test_values_between_points_are_those_of_a_bilinear_function():
    result = plane(lambda x, y: 2 + x - 3 * y + 0.5 * x * y)
    chosen, values, _ = plane_of(result, "loss", None)
    x, y = np.array([0.3, 2.0, 3.9, 5.0]), np.array([-0.5, 0.2, 2.5, 0.0])
    expected = np.where(x <= 4, 2 + x - 3 * y + 0.5 * x * y, np.nan)
    assert_allclose(on_surface(chosen, values, x, y), expected)


def test_a_surface_in_three_dimensions_is_cut_at_the_top(tilted):
    tilted["loss"][0, 2, 4] = np.nan
    ax = Figure().add_subplot(projection="3d")
    plots.surface3d(with_overlays(tilted), ax, levels=np.array([-11.0, 0.0, 10.0]))
    faces = ax.collections[0]
    seen = faces.get_facecolor()[:, 3] > 0
    assert seen.mean() == 7 / 8  # without the face at the lost corner
    x, y, z = np.concatenate(faces._faces).T
    there = (x <= X[-2]) | (y <= 0)  # outside of that face
    assert_allclose(z[there], np.minimum(x + 10 * y, 10)[there], atol=1e-12)
    curve = ax.lines[0].get_data_3d()
    assert_allclose(curve[2][15], 6 + (10 - 6) * 2 / 3)  # at (1, 1.5): the cut surface
    assert ax.get_zlim() == (-11, 10)


def test_a_volume_is_drawn_in_slices():
    z = np.linspace(-1, 1, 5)
    loss = np.arange(3)[:, None, None] + np.arange(5)[None, :, None] + z**2
    variables = {"loss": (("x", "y", "z"), loss), "loss_stderr": (("x", "y", "z"), 0 * loss)}
    result = dataset(variables, {"x": X, "y": Y, "z": z}, analysis="surface", title="")
    titles = [ax.get_title() for ax in plots.figure(result).axes]
    assert titles[:3] == ["z = -1", "z = 0", "z = 1"]


def test_one_dimension_is_a_line_and_a_simplex_a_plane(tilted):
    ax = plots.figure(tilted.isel(y=0, drop=True)).axes[0]
    assert_allclose(ax.lines[0].get_xdata(), X)
    assert ax.get_xlabel() == "x (distance)"
    tilted["x"].attrs["long_name"] = "share of b"
    shares = with_overlays(tilted).rename(x="s1", y="s2", mark_x="mark_s1", mark_y="mark_s2")
    assert plots.figure(shares).axes[0].get_xlabel() == "share of b (distance)"


# --- trajectories ---------------------------------------------------------------------------------


def walk(**more):
    k = np.arange(12)
    variables = {
        "path_x": ("step", k**1.5),
        "path_y": ("step", np.sin(k)),
        "path_distance": ("step", 0.0 * k),
        "explained_variance": ("component", [0.63, 0.214, 0.004]),
    }
    coords = {"step": 10 * k, "component": [1, 2, 3]}
    return dataset(variables | more, coords, analysis="trajectory", title="a walk")


def test_axes_of_a_trajectory_say_how_much_they_explain(tilted):
    ax = plots.figure(walk()).axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("PC 1 (63 %)", "PC 2 (21 %)")
    merged = xr.merge([tilted, walk()], compat="override", combine_attrs="override")
    figure = plots.figure(merged)
    assert figure.axes[0].get_ylabel() == "PC 2 (21 %)"
    assert any(line.get_label() == "training path" for line in figure.axes[0].lines)


def test_a_path_goes_by_its_steps_and_names_its_ends():
    shuffled = walk().isel(step=np.random.default_rng(0).permutation(12))
    ax = plots.path(shuffled, axes())
    assert_allclose(ax.lines[0].get_xdata(), np.arange(12) ** 1.5)
    texts = {text.get_text(): text.xy for text in ax.texts}
    assert texts["step 0"] == (0, 0)
    assert_allclose(texts["step 110"], (11**1.5, np.sin(11)))
    assert ax.get_aspect() == 1


def test_an_embedding_is_drawn_where_it_is_all_there_is_or_asked_for():
    tsne = {"tsne_x": ("step", np.arange(12.0)), "tsne_y": ("step", np.arange(12.0) % 5)}
    for result, kind in (
        (walk(**tsne), "tsne"),
        (walk(**tsne).drop_vars(["path_x", "path_y"]), None),
    ):
        ax = plots.figure(result, kind=kind).axes[0]
        assert ax.get_xlabel() == "t-SNE 1"
        assert_allclose(ax.lines[0].get_ydata(), np.arange(12) % 5)
    assert plots.figure(walk(**tsne)).axes[0].get_xlabel() == "PC 1 (63 %)"
    line = plots.figure(walk().drop_vars("path_y")).axes[0]
    assert_allclose(line.lines[0].get_ydata(), np.arange(12) ** 1.5)


# --- figures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pdf", "svg"])
def test_two_runs_give_the_same_bytes(tilted, kind, tmp_path):
    tilted["loss"][0, 2, 4] = np.nan
    result = with_overlays(tilted)
    for how in (None, "3d"):
        for name in ("one", "two"):
            plots.save_figure(plots.figure(result, kind=how), tmp_path / f"{name}.{kind}")
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes()


def test_what_cannot_be_drawn(tilted):
    with pytest.raises(ValueError, match="has no 'error' along 'x', 'y'; it has loss"):
        plots.contours(tilted, axes(), y="error")
    with pytest.raises(ValueError, match=r"no split 'valid'; it has \['train', 'test'\]"):
        plots.contours(tilted, axes(), split="valid")
    with pytest.raises(ValueError, match="at least 2 x 2 points, got 3 x 1"):
        plots.contours(tilted.isel(y=[0]), axes())
    with pytest.raises(ValueError, match="also varies along seed: select one first"):
        plots.contours(tilted.expand_dims(seed=[0, 1]), axes())
    with pytest.raises(ValueError, match="no finite value"):
        plots.contours(tilted * np.nan, axes())
    with pytest.raises(ValueError, match="view must be 'pca' or 'tsne', got 'umap'"):
        plots.path(walk(), axes(), view="umap")
    with pytest.raises(ValueError, match="no tsne_x and tsne_y for the view 'tsne'"):
        plots.path(walk(), axes(), view="tsne")
    with pytest.raises(ValueError, match="kind must be '3d', .* or None, got 'heat'"):
        plots.figure(tilted, kind="heat")
    with pytest.raises(ValueError, match="no plot of kind '3d' .* known: surfaces over x and y"):
        plots.figure(walk(), kind="3d")
