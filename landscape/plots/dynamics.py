"""How do weights, loss and gradient change through training? All at a glance, or by layer."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from landscape.plots.curves import step_label, value_scale
from landscape.plots.layer_panels import MOST_PANELS
from landscape.plots.layers import MOST_MARKED, depth_bar, depth_colours, written
from landscape.plots.panels import legend_below
from landscape.plots.parts import label, part
from landscape.plots.steps import step_scale

# Panels of the dashboard beside loss and metrics: a title, and curves by the name in the legend.
PANELS: Mapping[str, tuple[str, Mapping[str | None, str]]] = {
    "weight_norm": ("weight norm", {None: "total_weight_norm"}),
    "distance": (
        "distance to reference",
        {"initial state": "total_distance_initial", "final state": "total_distance_final"},
    ),
    "cosine": (
        "cosine with reference",
        {"initial state": "total_cosine_initial", "final state": "total_cosine_final"},
    ),
    "signs": (
        "share of equal signs",
        {"initial state": "total_signs_initial", "final state": "total_signs_final"},
    ),
    "change_per_step": ("distance moved per step", {None: "total_change_per_step"}),
    "gradient_norm": ("gradient norm", {None: "total_gradient_norm"}),
    "noise_scale": ("gradient noise scale (examples)", {None: "total_noise_scale"}),
}
LOOKS: Mapping[str | None, Mapping[str, Any]] = {
    None: {"color": "C6", "linestyle": "-"},
    "initial state": {"color": "C2", "linestyle": "-"},
    "final state": {"color": "C3", "linestyle": "--"},
}
FREE = ("cosine", "signs", "weight")  # beginnings of names whose changes count, not their size
FROM_ZERO = ("distance", "zeros")  # those on a linear axis
SHADES = (0.25, 0.45, 0.65)  # of the bands of a fan, from the outermost
DASHES = ("-", "--", "-.", ":")


def progress(result: xr.Dataset, ax: Axes, *, panel: str = "distance", band: float = 1.96) -> Axes:
    """Draw curves of the whole network through training: one of `dashboard_panels`.

    `panel`: loss or a metric, a line for each split; `"distance"`, `"cosine"` or `"signs"` (to the
    initial and to the final state), or another key of `PANELS`. The band goes from the lowest to
    the highest run about their mean; of a single run it is `band` standard errors to both sides,
    if there are any. The axis of steps is that of `step_scale`. (Frankle, Schwab and Morcos 2020,
    figure 3.)

    Raises `ValueError` if the result has no such panel.
    """
    if panel not in (known := dashboard_panels(result)):
        raise ValueError(f"the result has no panel {panel!r}; it has {', '.join(known) or 'none'}")
    drawn: list[xr.DataArray] = []
    if panel in PANELS:
        title, curves = PANELS[panel]
        for entry, name in curves.items():
            drawn += _curve(ax, part(result, name, ("step",), None), name, 0, entry, LOOKS[entry])
    else:
        title = label(result, panel)
        splits = result["split"].values if "split" in result[panel].dims else [None]
        for number, split in enumerate(splits):
            chosen = part(result, panel, ("step",), split)
            style = {"color": f"C{number}", "linestyle": DASHES[number % len(DASHES)]}
            drawn += _curve(ax, chosen, panel, band, None if split is None else str(split), style)
    _finish(result, ax, drawn, panel)
    ax.set_title(title)
    return ax


def movement(
    result: xr.Dataset, ax: Axes, *, y: str = "distance_initial", bar: bool = True
) -> Axes:
    """Draw a measure of each layer through training, a line for each; of all weights in grey.

    Colours go from the first layer to the last; the colour bar (`bar`) has their names. Of several
    runs the line is the mean, and the band goes from the lowest to the highest.

    Raises `ValueError` if the result has no such measure over step and layer.
    """
    chosen = part(result, y, ("step", "layer"), None)
    drawn: list[xr.DataArray] = []
    for k, colour in enumerate(depth_colours(chosen.sizes["layer"])):
        drawn += _curve(ax, chosen.isel(layer=k), y, 0, None, {"color": colour})
    if (total := f"total_{y}") in chosen:
        drawn += _curve(ax, chosen, total, 0, "all layers", {"color": "0.4", "linestyle": "--"})
    _finish(chosen, ax, drawn, y)
    ax.set_ylabel(label(chosen, y))
    if bar:
        depth_bar(ax, chosen["layer"].values)
    return ax


def distribution(result: xr.Dataset, ax: Axes, *, layer: str) -> Axes:
    """Draw how the weights of a layer are distributed through training: a fan of quantiles.

    The line is the median, and each band goes from one quantile to its opposite. Of several runs,
    quantiles are averaged.

    Raises `ValueError` if the result has no such layer.
    """
    if layer not in result["layer"].values:
        names = ", ".join(map(str, result["layer"].values))
        raise ValueError(f"the result has no layer {layer!r}; it has {names}")
    chosen = part(result, "weight_quantile", ("step", "quantile"), None).sel(layer=layer)
    values = chosen["weight_quantile"]
    values = values.mean("run", skipna=False) if "run" in values.dims else values
    levels, steps = values["quantile"].values, chosen["step"].values
    for low, high, shade in zip(levels, levels[::-1], SHADES, strict=False):
        colour = 1 - shade * (1 - np.array(to_rgb("C0")))
        ax.fill_between(
            steps, values.sel(quantile=low), values.sel(quantile=high), color=colour, linewidth=0,
            label=f"{100 * low:g} to {100 * high:g} %",
        )  # fmt: skip
    if 0.5 in levels:
        ax.plot(steps, values.sel(quantile=0.5), color="C0", label="median")
    _steps(chosen, ax)
    ax.set_ylabel("weight")
    return ax


def dashboard_panels(result: xr.Dataset) -> list[str]:
    """The panels for which a result has curves: loss and metrics first."""
    names = [str(name) for name, one in result.data_vars.items() if "step" in one.dims]
    measured = [name for name in names if f"{name}_stderr" in names]
    return [*measured, *(n for n, (_, curves) in PANELS.items() if {*curves.values()} <= {*names})]


def moving(result: xr.Dataset) -> list[str]:
    """The measures of each layer along steps, but for those about the checkpoint before."""
    return [
        str(name) for name, one in result.data_vars.items()
        if set(one.dims) - {"run"} == {"step", "layer"} and not str(name).endswith("_previous")
    ]  # fmt: skip


def dashboard(result: xr.Dataset, names: list[str], width: float) -> Figure:
    """Panels of the whole network through training, as many in a row as can be read."""
    fig, panels = _grid(len(names), width)
    for ax, name in zip(panels, names, strict=True):
        progress(result, ax, panel=name)
    _outer(panels)
    fig.set_figheight(fig.get_figheight() + 0.17 * legend_below(fig, panels))
    return fig


def layer_curves(result: xr.Dataset, names: list[str], width: float) -> Figure:
    """A panel for each measure with a line for each layer, and one colour bar."""
    fig, panels = _grid(len(names), width)
    for ax, name in zip(panels, names, strict=True):
        movement(result, ax, y=name, bar=False)
        ax.set_title(fill(ax.get_ylabel(), 24))
        ax.set_ylabel("")
    columns = _outer(panels)
    more = 0.17 * legend_below(fig, panels) + 0.13 * -(-len(panels) // columns)
    fig.set_figheight(fig.get_figheight() + more)
    depth_bar(panels[: 2 * columns], result["layer"].values)
    return fig


def distributions(result: xr.Dataset, names: list[str], width: float) -> Figure:
    """A fan of quantiles for each of the named layers, or 16 of them from the first to the last."""
    chosen = np.linspace(0, len(names) - 1, min(len(names), MOST_PANELS)).round().astype(int)
    fig, panels = _grid(len(chosen), width)
    titles = written([names[k] for k in chosen])
    for ax, k, title in zip(panels, chosen, titles, strict=True):
        distribution(result, ax, layer=names[k])
        ax.set_title(title)
        ax.set_ylabel("")
    fig.supylabel("weight", fontsize="medium")
    if len(chosen) < len(names):
        fig.suptitle(f"{len(chosen)} of {len(names)} layers", fontsize="medium")
    _outer(panels)
    fig.set_figheight(fig.get_figheight() + 0.17 * legend_below(fig, panels))
    return fig


def _curve(
    ax: Axes,
    result: xr.Dataset,
    y: str,
    band: float,
    entry: str | None,
    style: Mapping[str, Any],
) -> list[xr.DataArray]:
    """Draw a line with its band, and give what its axis has to hold."""
    values = result[y]
    if extra := set(values.dims) - {"run", "step"}:
        raise ValueError(f"{y!r} also varies along {', '.join(map(str, extra))}: select one first")
    low = middle = high = values
    if "run" in values.dims:
        middle = values.mean("run", skipna=False)
        low, high = values.min("run", skipna=False), values.max("run", skipna=False)
    elif band and f"{y}_stderr" in result:
        half = band * result[f"{y}_stderr"]
        low, high = values - half, values + half
    steps = result["step"].values
    marker = "." if len(steps) <= MOST_MARKED else ""
    (line,) = ax.plot(steps, middle, marker=marker, markersize=2.5, label=entry, **style)
    ax.fill_between(steps, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    return [middle, high, low.where(low > 0)]


def _finish(result: xr.Dataset, ax: Axes, drawn: Sequence[xr.DataArray], name: str) -> None:
    """The scales of both axes."""
    if name.startswith(FROM_ZERO):
        ax.set_ylim(bottom=0)
    elif not name.startswith(FREE):
        value_scale(ax, np.concatenate([one.values for one in drawn]))
    _steps(result, ax)


def _steps(result: xr.Dataset, ax: Axes) -> None:
    steps = result["step"].values
    step_scale(ax, steps)
    if len(steps) > 1:
        ax.set_xlim(steps.min(), steps.max())
    ax.set_xlabel(step_label(result))


def _grid(num: int, width: float) -> tuple[Figure, list[Axes]]:
    """Panels side by side, in as many rows as it takes for each to be 1.5 inches wide."""
    across = min(num, max(1, int(width / 1.5)))
    down = -(-num // across)
    across = -(-num // down)
    fig = Figure(figsize=(width, down * (0.6 * min(width / across, 4.0) + 0.35) + 0.15))
    panels = fig.subplots(down, across, squeeze=False).ravel()
    for extra in panels[num:]:
        extra.remove()
    return fig, panels[:num].tolist()


def _outer(panels: Sequence[Axes]) -> int:
    """Name the axis of steps below the lowest panel of each column alone; gives their number."""
    grid: Any = panels[0].get_gridspec()
    for ax in panels[: len(panels) - grid.ncols]:
        ax.set_xlabel("")
    return int(grid.ncols)
