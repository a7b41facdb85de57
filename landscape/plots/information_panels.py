"""How are plots of information and curvature arranged? A curve over its layers; one panel else."""

from collections.abc import Callable
from textwrap import fill
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from landscape.plots.curvature import density, eigenvalues, sharpness
from landscape.plots.curves import choices, lift_legend
from landscape.plots.information import (
    by_module,
    fisher_layers,
    fisher_trace,
    in_shares,
    layer_dim,
    trace_bar,
    trace_limits,
    traces,
)
from landscape.plots.layers import fit
from landscape.plots.panels import legend_below

MOST_ROWS = 24  # tensors that have a row each; of more, modules have
MOST_MAPS = 6  # curves whose layers are drawn


def over_training(result: xr.Dataset, names: list[str], width: float) -> Figure:
    """The trace through training (`total`), below it by layers (`trace`) and in shares (`shares`).

    Of more than six runs and choices the layers of the first six are drawn, and the figure says so.
    Raises `ValueError` for another name.
    """
    if unknown := set(names) - {"total", "trace", "shares"}:
        raise ValueError(f"y must be of total, trace and shares, got {', '.join(sorted(unknown))}")
    maps = [name for name in ("trace", "shares") if name in names]
    places = choices(result, "trace")[1]
    shown = places[:MOST_MAPS]
    across = min(len(shown), max(1, int((width - 0.9) / 1.6)))
    down = -(-len(shown) // across)
    layers = by_module(result)
    rows = layers.sizes[layer_dim(layers)]
    each = max(float(np.clip(0.12 * rows, 0.5, 2.4)), 0.9 / down)  # a colour bar needs that
    heights = [1.7] * ("total" in names) + [each] * (down * len(maps))
    titles = max([0, *(len(_title(entry).splitlines()) for _, entry in shown)])
    room = 0.65 * ("total" in names) + (0.1 + 0.17 * titles) * down * len(maps) + 0.5 * bool(maps)
    fig = Figure(figsize=(width, sum(heights) + room))
    grid = fig.add_gridspec(len(heights), across, height_ratios=heights)
    if "total" in names:
        ax = fisher_trace(result, fig.add_subplot(grid[0, :]))
        fig.set_figheight(fig.get_figheight() + 0.15 * lift_legend(ax))
    panels: list[Axes] = []
    for number, name in enumerate(maps):
        top = len(heights) - down * (len(maps) - number)
        block = [fig.add_subplot(grid[top + k // across, k % across]) for k in range(len(shown))]
        _layers(result, block, shown, name == "shares")
        for k, ax in enumerate(block):
            if k % across:
                ax.tick_params(labelleft=False)
            if k + across < len(shown) or name != maps[-1]:
                ax.set_xlabel("")
                ax.tick_params(labelbottom=False)
        panels += block
    if maps and len(shown) < len(places):
        fig.supxlabel(f"layers of {len(shown)} of {len(places)} curves", fontsize="medium")
    legend_below(fig, panels)
    if panels:
        fit(fig, panels)
    return fig


def one_state(result: xr.Dataset, names: list[str], width: float) -> Figure:
    """The trace of each tensor, of each module if there are more than 24, or of each block."""
    by = "block" if "block" in result.dims else "tensor"
    if by == "tensor" and result.sizes["tensor"] > MOST_ROWS:
        by, result = "module", by_module(result)
    fig = Figure(figsize=(width, 0.16 * result.sizes[by] + 0.9))
    ax = traces(result, fig.subplots(), by=by)
    fig.set_figheight(fig.get_figheight() + 0.15 * lift_legend(ax))
    return fig


def of_spectrum(result: xr.Dataset, names: list[str], width: float) -> Figure:
    """Eigenvalues, the largest one through training, or their density."""
    along = set(result[names[0]].dims)
    draw: Callable[..., Any] = density if names[0] == "density" else eigenvalues
    if {"step", "index"} <= along:
        draw = sharpness
    fig = Figure(figsize=(width, 0.62 * min(width, 4.5) + 0.4))
    ax = draw(result, fig.subplots())
    fig.set_figheight(fig.get_figheight() + 0.15 * lift_legend(ax))
    return fig


def _title(entry: str | None) -> str:
    """What tells a panel apart, broken where it is too wide for it."""
    words = entry or ""
    return words if len(words) <= 26 else "\n".join(fill(one, 30) for one in words.split(", "))


def _layers(result: xr.Dataset, block: list[Axes], places: list[Any], shares: bool) -> None:
    """Panels of one scale for runs and choices, and their colour bar."""
    modules = in_shares(by_module(result)) if shares else by_module(result)
    drawn = [modules["trace"].sel(where).values for where, _ in places]
    limits = trace_limits(np.stack(drawn), shares=shares)
    for ax, (where, entry) in zip(block, places, strict=True):
        fisher_layers(result.sel(where), ax, shares=shares, limits=limits, bar=False)
        ax.set_title(_title(entry), fontsize="medium")
    trace_bar(block, shares=shares)
