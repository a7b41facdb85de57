"""What does a measure look like over a plane, and where do states and paths lie in it?"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator

from landscape.plots.levels import colour_bar, colours, hatch, level_texts, levels_for
from landscape.plots.overlays import PATH, annotate, overlays
from landscape.plots.parts import axis_label, field, in_distances, label, part

Array = NDArray[np.float64]


def contours(
    result: xr.Dataset,
    ax: Axes,
    *,
    y: str = "loss",
    split: str | None = None,
    filled: bool = True,
    levels: Array | None = None,
    bar: bool = True,
    on_top: bool = True,
) -> Axes:
    """Draw a measure over the plane (x, y): filled contours, or lines with some labels.

    `split`: which of several, the first by default. `levels`: rising values, by default those of
    `levels_for`; pass the same to panels that are compared. `bar`: with a colour bar of its own.
    `on_top`: with the marks, the curve and the path of the result (see `overlays`).

    Values above the top level are grey and hatched, points whose value is not finite are hatched
    cells, pending ones are blank. The aspect is equal if both axes are in real distances.

    Raises `ValueError` if the result has no such measure over x and y, fewer than 2 x 2 points, or
    no finite value.
    """
    chosen, values, lost = plane_of(result, y, split)
    x, up = chosen["x"].values, chosen["y"].values
    levels = levels_for([values]) if levels is None else np.asarray(levels, float)
    norm, cmap = colours(levels)
    shown = np.ma.masked_invalid(values)
    clipped = bool((shown > levels[-1]).any())
    if filled:
        hatches = [None] * (len(levels) - 1) + ["////"] * clipped
        ax.contourf(
            x, up, shown, levels, norm=norm, cmap=cmap, hatches=hatches,
            extend="max" if clipped else "neither",
        )  # fmt: skip
        ax.contour(x, up, shown, levels[1:], colors="black", linewidths=0.3, alpha=0.5)
    else:
        lines = ax.contour(x, up, shown, levels, norm=norm, cmap=cmap, linewidths=0.8)
        texts = dict(zip(lines.levels, level_texts(levels), strict=True))
        long = levels[len(levels) // 2 :: 2]  # the short ones have no room for their label
        ax.clabel(lines, long, fmt=texts, fontsize="x-small", inline_spacing=2)
    if bar:
        colour_bar(ax, levels, label(result, y), clipped=clipped)
    hatch(ax, x, up, lost, clip=True)
    ax.set(xlim=(x[0], x[-1]), ylim=(up[0], up[-1]))
    ax.set(xlabel=axis_label(result, "x"), ylabel=axis_label(result, "y"))
    if in_distances(result):
        ax.set_aspect("equal")
    if on_top:
        annotate(ax, overlays(result, ax))
    return ax


def surface3d(
    result: xr.Dataset,
    ax: Any,
    *,
    y: str = "loss",
    split: str | None = None,
    levels: Array | None = None,
    bar: bool = True,
) -> Any:
    """Draw a measure over the plane (x, y) as a surface, in the colours of `contours`.

    `ax`: three-dimensional axes (`projection="3d"`). The surface is cut at the top of `levels`:
    what is above is a grey plateau at that height. Faces with a corner whose value is pending or
    not finite are left out. Marks, curve and path lie on the surface. Raises as `contours` does.
    """
    chosen, values, _ = plane_of(result, y, split)
    levels = levels_for([values]) if levels is None else np.asarray(levels, float)
    norm, cmap = colours(levels)
    clipped, lost = values > levels[-1], np.isnan(values)
    height = np.where(clipped, levels[-1], values)
    known = np.where(lost, levels[0], values)
    x, up = np.meshgrid(*(_dense(chosen[name].values) for name in ("x", "y")))
    fine = on_surface(chosen, known, x, up)
    corners = [(slice(None, -1), slice(None, -1)), (slice(1, None), slice(None, -1)),
               (slice(None, -1), slice(1, None)), (slice(1, None), slice(1, None))]  # fmt: skip
    holes = np.any([lost[corner] for corner in corners], axis=0)
    for axis in (0, 1):
        holes = holes.repeat((fine.shape[axis] - 1) // holes.shape[axis], axis)
    faces = np.zeros((*fine.shape, 4))
    faces[:-1, :-1] = cmap(norm(np.mean([fine[corner] for corner in corners], axis=0)))
    faces[:-1, :-1][holes] = 0  # transparent
    ax.plot_surface(
        x, up, np.minimum(fine, levels[-1]), rstride=1, cstride=1, facecolors=faces,
        linewidth=0, antialiased=False, shade=False, zorder=1,
    )  # fmt: skip
    for name, style in (
        ("curve", {"color": "black", "linewidth": 1.2}),
        ("path", {"color": PATH, "linewidth": 1.2, "marker": ".", "markersize": 3}),
        ("mark", {"color": "black", "linestyle": "none", "marker": "o", "mfc": "white"}),
    ):
        if f"{name}_x" in result:
            where = result[f"{name}_x"].values, result[f"{name}_y"].values
            ax.plot(*where, on_surface(chosen, height, *where), zorder=3, **style)
    ax.set(xlabel=axis_label(result, "x"), ylabel=axis_label(result, "y"))
    ax.set_zlabel("" if bar else label(result, y))
    sides = np.ptp(x), np.ptp(up)
    ratio = sides[1] / sides[0] if in_distances(result) else 1.0
    ax.set_box_aspect((1.0, np.clip(ratio, 0.4, 2.5), 0.75), zoom=1.05)
    ax.set_zlim(levels[0], levels[-1])
    ax.tick_params(pad=-3, labelsize="x-small")
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.labelpad = -8
        axis.set_major_locator(MaxNLocator(4))
    if bar:
        colour_bar(ax, levels, label(result, y), clipped=bool(clipped.any()), shrink=0.6, pad=0.12)
    return ax


def plane_of(
    result: xr.Dataset, y: str, split: str | None
) -> tuple[xr.Dataset, Array, NDArray[np.bool_]]:
    """One split sorted along x and y, and its `field` (y, x)."""
    chosen = part(result, y, ("x", "y"), split)
    if min(chosen.sizes["x"], chosen.sizes["y"]) < 2:
        raise ValueError(
            f"a surface needs at least 2 x 2 points, got {chosen.sizes['x']} x {chosen.sizes['y']}"
        )
    return chosen, *field(chosen, y, ("y", "x"))


def _dense(axis: Array) -> Array:
    """The points of an axis and others between them, at least 60, so that faces keep to levels."""
    between = max(1, -(-60 // (len(axis) - 1)))
    positions = np.arange(between * (len(axis) - 1) + 1) / between
    return np.interp(positions, np.arange(len(axis)), axis)


def on_surface(result: xr.Dataset, values: Array, x: Array, y: Array) -> Array:
    """Values (y, x) of a sorted grid between its points; NaN outside of the grid.

    Linear, and the nearest value beside points that are lost.
    """
    grid = (result["y"].values, result["x"].values)
    linear, nearest = (
        RegularGridInterpolator(grid, values, method=method, bounds_error=False)((y, x))
        for method in ("linear", "nearest")
    )
    return np.where(np.isnan(linear), nearest, linear)
