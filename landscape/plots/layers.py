"""What do layers have in common, and when is each of them what it is at the end?"""

from collections.abc import Iterable, Sequence
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.ticker import FixedLocator
from numpy.typing import NDArray

from landscape.plots.levels import beside, edges, hatch
from landscape.plots.matrices import MOST_WRITTEN, fit_values, write
from landscape.plots.parts import field, label, part
from landscape.plots.steps import step_scale

PAIRS = (("layer", "other_layer"), ("step", "other_step"), ("run", "other_run"))
MOST_MARKED = 30  # steps of a line on which each has its dot
LONGEST = 20  # characters of a name that is written in full
LIGHTEST = 0.92  # of the colour map, that lines are drawn in: yellow on white cannot be seen


def similarity(
    result: xr.Dataset,
    ax: Axes,
    *,
    y: str = "cka",
    limits: tuple[float, float] | None = None,
    bar: bool = True,
) -> Axes:
    """Draw the similarity of all pairs of layers, of steps or of runs; the first at the lower left.

    Layers and runs stand in their order, and as many names as there is room for are written; up to
    12 have their values in the cells. Steps have real axes, as `step_scale` makes them. `limits`:
    the values of the first and the last colour, by default `limits_of` the values. Per-frequency
    similarities are averaged. Values that are not finite are hatched. (Kornblith et al. 2019,
    figure 2.)

    Raises `ValueError` if the result has no such measure over pairs, or has several matrices of it.
    """
    dims = next((pair for pair in PAIRS if y in result and {*pair} <= {*result[y].dims}), PAIRS[0])
    chosen = part(over_frequency(result, y), y, dims, None)
    values, lost = field(chosen, y, dims)
    _cells(ax, chosen, dims, values, lost, limits)
    if dims[0] != "step" and max(values.shape) <= MOST_WRITTEN:
        write(ax, ax.collections[0], values, 2)
    if bar:
        similarity_bar(ax, label(chosen, y))
        fit(ax.get_figure(root=True), [ax])
    return ax


def frequencies(
    result: xr.Dataset,
    ax: Axes,
    *,
    y: str = "cca",
    limits: tuple[float, float] | None = None,
    bar: bool = True,
) -> Axes:
    """Draw the similarity of each layer to the one of its name at each frequency, layers as rows.

    (Raghu et al. 2017, section 2.3.) Raises `ValueError` if the result has no such measure over
    layer and frequency, or no layer has a namesake.
    """
    dims = ("layer", "frequency")
    chosen = namesakes(part(result, y, dims, None), y)
    values, lost = field(chosen, y, dims)
    _cells(ax, chosen, dims, values, lost, limits)
    if bar:
        similarity_bar(ax, label(chosen, y))
        fit(ax.get_figure(root=True), [ax])
    return ax


def convergence(
    result: xr.Dataset, ax: Axes, *, y: str = "cka", band: float = 1.96, bar: bool = True
) -> Axes:
    """Draw the similarity of each layer to its final state against the step, a line for each layer.

    Colours go from the first layer to the last; the colour bar (`bar`) has their names. The band is
    `band` standard errors to both sides; of several runs, the line is the mean and the band goes
    from the lowest to the highest. The chance level of up to 12 layers is dotted. The axis of steps
    is that of `step_scale`. (Raghu et al. 2017, figure 5; Morcos et al. 2018.)

    Raises `ValueError` if the result has no such measure over step and layer.
    """
    chosen = part(over_frequency(result, y), y, ("step", "layer"), None)
    if extra := set(chosen[y].dims) - {"step", "layer", "run"}:
        raise ValueError(f"{y!r} also varies along {', '.join(map(str, extra))}: select one first")
    steps, low, middle, high = _banded(chosen, y, band)
    shades = depth_colours(chosen.sizes["layer"])
    marker = "." if len(steps) <= MOST_MARKED else ""
    for k, colour in enumerate(shades):
        ax.plot(steps, middle[:, k], marker=marker, color=colour)
        ax.fill_between(steps, low[:, k], high[:, k], color=colour, alpha=0.2, linewidth=0)
    if f"{y}_chance" in chosen and len(shades) <= MOST_WRITTEN:
        chance = _along_layers(chosen, f"{y}_chance", "step")
        _references(ax, steps, chance, shades, ":", "chance")
    step_scale(ax, steps)
    if len(steps) > 1:
        ax.set_xlim(steps[0], steps[-1])
    ax.set_ylim(limits_of(low)[0], 1.02)
    ax.set_xlabel(label(chosen, "step"))
    ax.set_ylabel(f"{label(chosen, y)} with the final state")
    if bar:
        depth_bar(ax, chosen["layer"].values)
    return ax


def spectra(result: xr.Dataset, ax: Axes, *, bar: bool = True) -> Axes:
    """Draw the canonical correlations of each layer with its namesake, largest first.

    One line for each layer, in the colours of `convergence`, against the number of the direction.
    `correlations_chance` is dotted and `correlations_threshold` dashed, where the result has them:
    for each layer and direction, or for all. (Raghu et al. 2017, figure 1.)

    Raises `ValueError` if the result has no correlations over layer and direction, or no layer has
    a namesake.
    """
    y = "correlations"
    chosen = namesakes(part(result, y, ("layer", "direction"), None), y)
    values = -np.sort(-field(chosen, y, ("layer", "direction"))[0], axis=1)
    ranks = np.isfinite(values).sum(1)
    shades = depth_colours(len(values))
    directions = np.arange(1, values.shape[1] + 1)
    marker = "." if ranks.max() <= MOST_MARKED else ""
    for row, rank, colour in zip(values, ranks, shades, strict=True):
        ax.plot(directions[:rank], row[:rank], marker=marker, color=colour)
    for name, style in (("chance", ":"), ("threshold", "--")):
        if f"{y}_{name}" in chosen:
            levels = _along_layers(chosen, f"{y}_{name}", "direction")
            _references(ax, directions, levels, shades, style, name)
    if ranks.max() > 10 * max(1, ranks.min()):
        ax.set_xscale("log")
    ax.set_xlim(1, max(2, ranks.max()))
    ax.set_ylim(0, 1.02)
    ax.set(xlabel="direction", ylabel=label(chosen, y))
    if bar:
        depth_bar(ax, chosen["layer"].values)
    return ax


def limits_of(values: NDArray[np.float64]) -> tuple[float, float]:
    """The scale of similarities: 0 to 1, or from the twentieth below the lowest negative value."""
    lowest = min([0.0, *values[np.isfinite(values)].tolist()])
    return float(np.floor(20 * lowest)) / 20, 1.0


def over_frequency(result: xr.Dataset, y: str) -> xr.Dataset:
    """The result with a measure averaged over frequency, if it varies along it."""
    if y not in result or "frequency" not in result[y].dims:
        return result
    names = [name for name in (y, f"{y}_chance") if name in result]
    means = {
        name: result[name].mean("frequency", keep_attrs=True)
        for name in names
        if "frequency" in result[name].dims
    }
    means[y].attrs["long_name"] = f"{label(result, y)}, mean over frequency"
    return result.drop_vars(f"{y}_stderr", errors="ignore").assign(means)


def namesakes(result: xr.Dataset, y: str) -> xr.Dataset:
    """The pairs of layers with one name; the result itself if it has no pairs.

    Raises `ValueError` if there is no such pair.
    """
    if "other_layer" not in result[y].dims:
        return result
    names = [name for name in result["layer"].values if name in result["other_layer"].values]
    if not names:
        raise ValueError(f"no layer has the same name in both networks: select pairs of {y!r}")
    points = xr.DataArray(names, dims="layer")
    return result.sel(layer=points, other_layer=points)


def depth_colours(num: int) -> NDArray[np.float64]:
    """Colours (num, 4) from the first layer to the last."""
    shades = mpl.colormaps[mpl.rcParams["image.cmap"]](np.linspace(0, LIGHTEST, num))
    return np.asarray(shades, float)


def depth_bar(axes: Axes | Sequence[Axes], layers: NDArray[Any]) -> None:
    """A colour bar that names the layers, as many as there is room for."""
    first = axes if isinstance(axes, Axes) else axes[0]
    figure: Any = first.get_figure(root=True)
    num = len(layers)
    norm = BoundaryNorm(np.arange(num + 1) - 0.5, max(num, 2))
    colours = ListedColormap(depth_colours(max(num, 2)))
    bar = figure.colorbar(ScalarMappable(norm, colours), label="layer", **beside(axes))
    bar.set_ticks(range(num), labels=written(layers))
    bar.minorticks_off()
    bar.ax.tick_params(length=0)
    figure.draw_without_rendering()
    thin(bar.ax.yaxis, bar.ax.get_window_extent().height / num)


def similarity_bar(axes: Axes | Sequence[Axes], text: str) -> None:
    """The colour bar of one or more panels of one measure on one scale."""
    first = axes if isinstance(axes, Axes) else axes[0]
    figure: Any = first.get_figure(root=True)
    figure.colorbar(first.collections[0], label=fill(text, 30), **beside(axes))


def fit(figure: Any, panels: Sequence[Axes]) -> None:
    """Leave out names and values of cells for which there is no room.

    To be called when all else in the figure is in its place.
    """
    figure.draw_without_rendering()
    for ax in panels:
        mesh: Any = ax.collections[0]
        rows, columns = mesh.get_array().shape
        extent = ax.get_window_extent()
        fit_values(ax, extent.width / columns)
        for axis, cell in ((ax.yaxis, extent.height / rows), (ax.xaxis, extent.width / columns)):
            if isinstance(axis.get_major_locator(), FixedLocator):  # names, not numbers
                thin(axis, cell)


def thin(axis: Axis, cell: float) -> None:
    """Keep as many of the names of cells of a height in pixels as can be read, both ends included.

    Names along x stand upright, so that each needs a line of text there too.
    """
    texts, places = axis.get_ticklabels(), axis.get_ticklocs()
    last = len(texts) - 1
    if last < 1:
        return
    figure: Any = axis.get_figure(root=True)
    line = 1.1 * float(texts[0].get_fontsize()) * figure.dpi / 72
    every = max(1, int(np.ceil(line / cell * last / (places[-1] - places[0]))))
    kept = np.unique(np.linspace(0, last, last // every + 1).round().astype(int))
    axis.set_ticks([places[k] for k in kept], labels=[texts[k].get_text() for k in kept])


def written(names: Iterable[Any]) -> list[str]:
    """Names as they are written: where one is long, without the beginning that all share."""
    full = [str(name) for name in names]
    if max(map(len, full)) <= LONGEST or len(full) < 2:
        return full
    split = [name.split(".") for name in full]
    shared = 0
    while all(len(one) > shared + 1 and one[shared] == split[0][shared] for one in split):
        shared += 1
    return [".".join(one[shared:]) for one in split]


def _cells(
    ax: Axes,
    result: xr.Dataset,
    dims: tuple[str, str],
    values: NDArray[np.float64],
    lost: NDArray[np.bool_],
    limits: tuple[float, float] | None,
) -> None:
    """Coloured cells (rows, columns) with numbers or names along both axes."""
    low, high = limits_of(values) if limits is None else limits
    centres = []
    for dim, which in zip(dims, "yx", strict=True):
        places = result[dim].values
        if "step" in dim:
            step_scale(ax, places, which)
        elif dim != "frequency" or places.dtype.kind not in "iuf":
            names = written(places)
            places = np.arange(len(names))
            upright = which == "x" and max(map(len, names)) > 2
            getattr(ax, f"set_{which}ticks")(places, names, rotation=90 if upright else 0)
            getattr(ax, f"{which}axis").set_tick_params(length=0)
        centres.append(np.asarray(places, float))
        borders = edges(centres[-1])
        getattr(ax, f"set_{which}lim")(borders[0], borders[-1])
        getattr(ax, f"set_{which}label")(_side(result, dim))
    y, x = centres
    ax.pcolormesh(edges(x), edges(y), np.ma.masked_invalid(values), vmin=low, vmax=high)
    hatch(ax, x, y, lost)
    ax.spines[:].set_visible(False)
    ax.set_box_aspect(1)


def _side(result: xr.Dataset, dim: str) -> str:
    """What stands at an axis: which state the layers are of, if two states have short names."""
    if dim not in ("layer", "other_layer"):
        return label(result, dim).removeprefix("other ")
    states = [str(result.attrs.get(name, "")) for name in ("first", "second")]
    state = states[dim == "other_layer"]
    differ = states[0] != states[1] and "other_layer" in result.dims
    return f"layer of {state}" if differ and 0 < len(state) <= 2 * LONGEST else "layer"


def _banded(result: xr.Dataset, y: str, band: float) -> tuple[NDArray[Any], ...]:
    """Steps (s,), and the lower end, the middle and the upper end (s, layers) of a band."""
    values = result[y]
    low = middle = high = values
    if "run" in values.dims:
        low, middle, high = values.min("run"), values.mean("run"), values.max("run")
    elif f"{y}_stderr" in result:
        half = band * result[f"{y}_stderr"]
        low, high = values - half, values + half
    arrays = [one.transpose("step", "layer").values for one in (low, middle, high)]
    return (result["step"].values, *arrays)


def _along_layers(result: xr.Dataset, name: str, dim: str) -> NDArray[np.float64]:
    """A variable along a dimension and layers (n, layers), whichever of them it has."""
    one = result[name].mean("run") if "run" in result[name].dims else result[name]
    sizes = {key: result.sizes[key] for key in (dim, "layer")}
    return np.asarray(one.variable.set_dims(sizes).transpose(dim, "layer").values, float)


def _references(
    ax: Axes,
    x: NDArray[Any],
    levels: NDArray[np.float64],
    shades: NDArray[np.float64],
    style: str,
    name: str,
) -> None:
    """Levels (n, layers) to compare with: in grey if all layers have the same."""
    if np.array_equal(levels, levels[:, :1].repeat(levels.shape[1], 1), equal_nan=True):
        levels, shades = levels[:, :1], np.array([[0.4, 0.4, 0.4, 1.0]])
    for k, colour in enumerate(shades):
        (line,) = ax.plot(x, levels[:, k], style, color=colour, linewidth=0.8)
        if k == 0:
            line.set_label(name)
