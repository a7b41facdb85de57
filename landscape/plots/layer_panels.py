"""How are the plots of layers arranged? Measures side by side, or a small panel for each layer."""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from landscape.plots.layers import (
    convergence,
    depth_bar,
    fit,
    frequencies,
    limits_of,
    over_frequency,
    similarity,
    similarity_bar,
    spectra,
    written,
)
from landscape.plots.panels import grid_of, legend_below
from landscape.plots.parts import label

MOST_PANELS = 16  # layers with a panel each


def similar(result: xr.Dataset, names: list[str], width: float) -> Figure:
    """Layers against layers, a panel for each measure, one more where it is per frequency.

    `correlations` are drawn as spectra.
    """
    drawn: list[tuple[Any, dict[str, str]]] = []
    for name in names:
        if name == "correlations":
            drawn.append((spectra, {}))
            continue
        by_frequency = name in result and "frequency" in result[name].dims
        if not (name.endswith("_by_frequency") and name.removesuffix("_by_frequency") in names):
            drawn.append((similarity, {"y": name}))
        if by_frequency:
            drawn.append((frequencies, {"y": name}))
    fig, grid = grid_of(len(drawn), 1, width, 1.0, 0.0)
    panels = grid[:, 0].tolist()
    cells = []
    for (draw, options), ax in zip(drawn, panels, strict=True):
        if draw is spectra:
            spectra(result, ax).set_box_aspect(1)
            continue
        draw(result, ax, bar=False, **options)
        one = result if draw is frequencies else over_frequency(result, options["y"])
        similarity_bar(ax, label(one, options["y"]))
        cells.append(ax)
    _finish(fig, panels, cells)
    return fig


def by_layer(result: xr.Dataset, names: list[str], width: float) -> Figure:
    """Steps against steps or runs against runs, for each measure a block of panels, one a layer.

    Of more than 16 layers, 16 from the first to the last are drawn, and the figure says so.
    """
    layers = result["layer"].values if "layer" in result.dims else np.array([""])
    num = min(len(layers), MOST_PANELS)
    chosen = np.linspace(0, len(layers) - 1, num).round().astype(int)
    down = -(-num // max(1, int((width - 0.9) / 1.1)))
    across = -(-num // down)
    size = min((width - 0.9) / across, 2.4)
    fig = Figure(figsize=(width, len(names) * (down * (size + 0.2) + 0.4)), layout="compressed")
    grid = fig.subplots(len(names) * down, across, squeeze=False).reshape(len(names), -1)
    titles = written(layers[chosen])
    for block, y in zip(grid, names, strict=True):
        for extra in block[num:]:
            extra.remove()
        averaged = over_frequency(result, y)
        limits = limits_of(averaged[y].values)
        for place, (k, ax) in enumerate(zip(chosen, block[:num], strict=True)):
            one = averaged.isel(layer=k) if "layer" in averaged.dims else averaged
            similarity(one, ax, y=y, limits=limits, bar=False)
            ax.set_title(titles[place])
            if place % across:
                ax.set_ylabel("")
                ax.tick_params(labelleft=False)
            if place + across < num:
                ax.set_xlabel("")
                ax.tick_params(labelbottom=False)
        similarity_bar(block[:num].tolist(), label(averaged, y))
    shown = grid[:, :num].ravel().tolist()
    if num < len(layers):
        fig.suptitle(f"{num} of {len(layers)} layers", fontsize="medium")
    _finish(fig, shown, shown)
    return fig


def converging(result: xr.Dataset, names: list[str], width: float) -> Figure:
    """Layers on their way to the final state, a panel for each measure."""
    down = -(-len(names) // max(1, int((width - 0.7) / 1.5)))
    across = -(-len(names) // down)
    height = down * float(np.clip(0.75 * (width - 0.7) / across, 1.4, 2.6)) + 0.3
    fig = Figure(figsize=(width, height))
    grid = fig.subplots(down, across, squeeze=False).ravel()
    for extra in grid[len(names) :]:
        extra.remove()
    panels = grid[: len(names)].tolist()
    for ax, y in zip(panels, names, strict=True):
        convergence(result, ax, y=y, bar=False)
        ax.set_title(label(over_frequency(result, y), y))
        ax.set_ylabel("")
    fig.supylabel("similarity to the final state", fontsize="medium")
    legend_below(fig, panels)
    depth_bar(panels, result["layer"].values)
    return fig


def _finish(fig: Figure, panels: list[Axes], cells: list[Axes]) -> None:
    """A figure as high as its panels need, their legend, and as many names as there is room for."""
    fig.set_figheight(1.3 * fig.get_figheight() + 0.5)
    for _ in range(2):  # thinner names may make broader panels
        fit(fig, cells)
        fig.set_figheight(fig.get_tightbbox().height + 0.1)
    fig.set_figheight(fig.get_figheight() + 0.2 * legend_below(fig, panels))
