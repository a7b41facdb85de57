"""Which pairs are far apart: barriers between runs, or what each layer does along a path?"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from landscape.plots.levels import beside, colour_bar, colours, edges, hatch, levels_for
from landscape.plots.parts import field, label, part

MOST_WRITTEN = 12  # runs whose barriers are written in the cells
SMALLEST = 3.8  # points, of a text that can still be read in print
BASIN = "#D55E00"


def matrix(
    result: xr.Dataset,
    ax: Axes,
    *,
    y: str = "loss",
    split: str | None = None,
    top: float | None = None,
    bar: bool = True,
) -> Axes:
    """Draw the barriers between all pairs of runs, ordered by basin, each basin outlined.

    Within a basin the runs keep their order. Up to 12 runs have their values written, in as many
    decimals as the median asks for. `top`: the value of the last colour, the largest by default;
    give the same to panels that are compared. The line in the colour bar (`bar`) is the threshold
    below which two runs share a basin, if it is one for this measure. Barriers that are not finite
    are hatched.

    Raises `ValueError` if the result has no such measure over run and other_run.
    """
    chosen = part(result, y, ("run", "other_run"), split)
    basins = chosen["basin"].values if "basin" in chosen else np.zeros(chosen.sizes["run"], int)
    order = np.argsort(basins, kind="stable")
    chosen, basins = chosen.isel(run=order, other_run=order), basins[order]
    values, lost = field(chosen, y, ("run", "other_run"))
    num, positions = len(order), np.arange(len(order), dtype=float)
    highest = float(np.nanmax(values, initial=0.0)) if top is None else top
    borders, shown = edges(positions), np.ma.masked_invalid(values)
    image = ax.pcolormesh(borders, borders, shown, vmin=0, vmax=highest or 1.0)
    ax.set(aspect="equal", xlim=borders[[0, -1]], ylim=borders[[-1, 0]])
    hatch(ax, positions, positions, lost)
    if num <= MOST_WRITTEN:
        write(ax, image, values, decimals_of(values))
    for basin in np.unique(basins) if "basin" in chosen else []:
        inside = np.flatnonzero(basins == basin)
        corner, size = inside[0] - 0.5, len(inside)
        ax.add_patch(
            Rectangle((corner, corner), size, size, fill=False, ec=BASIN, lw=1.5, clip_on=False)
        )
    names = [str(name) for name in chosen["run"].values]
    ax.set_xticks(positions, names, rotation=90 if max(map(len, names)) > 2 else 0)
    ax.set_yticks(positions, names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    if bar:
        threshold_bar(result, ax, image, y)
        fit_texts(ax, num)
    return ax


def decimals_of(values: NDArray[np.float64]) -> int:
    """How many decimals, 0 to 3, tell the values of a panel apart, by their median size but for 0.

    Of the panel itself, which may be far below others that it is compared with.
    """
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    middle = np.median(sizes) if sizes.size else 1.0
    return 3 - int(np.searchsorted([0.03, 1.0, 10.0], middle, side="right"))


def fit_texts(ax: Axes, num: int) -> None:
    """Make the names and the values of a matrix (num, num) fit its cells, or leave values out.

    To be called when all else in the figure is in its place.
    """
    figure: Any = ax.get_figure(root=True)
    figure.draw_without_rendering()
    cell = ax.get_window_extent().width / num
    fit_values(ax, cell)
    for text in [*ax.get_xticklabels(), *ax.get_yticklabels()]:
        text.set_fontsize(min(float(text.get_fontsize()), max(SMALLEST, 65 * cell / figure.dpi)))


def fit_values(ax: Axes, cell: float) -> None:
    """Make the values written in cells of a width in pixels fit, or leave them out."""
    widest = max((text.get_window_extent().width for text in ax.texts), default=0.0)
    for text in list(ax.texts) if widest > 0.85 * cell else []:
        size = float(text.get_fontsize()) * 0.85 * cell / widest
        if size < SMALLEST:
            text.remove()
        text.set_fontsize(size)


def threshold_bar(result: xr.Dataset, axes: Any, image: Any, y: str) -> None:
    """The colour bar of one or more matrices, with a line at the threshold of their measure."""
    first = axes if isinstance(axes, Axes) else axes[0]
    text = label(result, y)
    if "barrier" not in text:
        text = f"{result.attrs.get('kind', '')} barrier in {text}".strip()
    threshold = result.attrs.get("threshold")
    judged = threshold is not None and result.attrs.get("measure", y) == y
    figure: Any = first.get_figure(root=True)
    bar = figure.colorbar(image, label=text, **beside(axes, 0.12 if judged else 0.04))
    if threshold is not None and judged:
        bar.ax.axhline(float(threshold), color=BASIN, linewidth=1.5)
        bar.ax.annotate(
            f"{float(threshold):g}", (0, float(threshold)), xytext=(-2, 0), color=BASIN,
            xycoords=("axes fraction", "data"), textcoords="offset points", ha="right",
            va="center", fontsize="small",
        )  # fmt: skip


def heatmap(
    result: xr.Dataset,
    ax: Axes,
    *,
    y: str = "loss",
    split: str | None = None,
    levels: NDArray[np.float64] | None = None,
    bar: bool = True,
) -> Axes:
    """Draw a measure over layers and t, the first layer on top, in the colours of `contours`.

    A row is what happens when this layer alone moves. Values above the top of `levels` are grey,
    those that are not finite are hatched, pending ones blank. Raises `ValueError` if the result has
    no such measure over layer and t.
    """
    chosen = part(result, y, ("layer", "t"), split)
    values, lost = field(chosen, y, ("layer", "t"))
    levels = levels_for([values]) if levels is None else np.asarray(levels, float)
    norm, cmap = colours(levels)
    rows, t = np.arange(chosen.sizes["layer"], dtype=float), chosen["t"].values
    shown = np.ma.masked_invalid(values)
    ax.pcolormesh(edges(t), edges(rows), shown, norm=norm, cmap=cmap)
    hatch(ax, t, rows, lost)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_yticks(rows, [str(name) for name in chosen["layer"].values])
    ax.set(xlabel=label(result, "t"), xlim=(edges(t)[0], edges(t)[-1]))
    ax.tick_params(axis="y", length=0)
    ax.spines[:].set_visible(False)
    if bar:
        clipped = bool((shown > levels[-1]).any())
        colour_bar(ax, levels, label(result, y), clipped=clipped)
    return ax


def write(ax: Axes, image: Any, values: NDArray[np.float64], decimals: int) -> None:
    """Values in the cells of an image, in black or white, whichever can be read."""
    for row, column in np.argwhere(np.isfinite(values)):
        value = values[row, column]
        light = float(np.dot(image.cmap(image.norm(value))[:3], (0.299, 0.587, 0.114))) > 0.5
        ax.text(
            column, row, f"{value:z.{decimals}f}", ha="center", va="center",
            fontsize="x-small", color="black" if light else "white",
        )  # fmt: skip
