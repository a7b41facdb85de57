"""How does a value change along one coordinate?"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from landscape.plots.parts import axis_label, label, part, splits_of

DASHES = ("-", "--", "-.", ":")
RAW = {"raw": "--", "aligned": "-"}


def lines(
    result: xr.Dataset,
    ax: Axes,
    *,
    y: str = "loss",
    x: str = "t",
    band: float = 1.96,
    **style: Any,
) -> Axes:
    """Draw a measure along a coordinate: one line for each split, each in its own dashes.

    Where a result has an `alignment`, splits differ in colour, and raw is dashed, aligned solid.
    The band is `band` standard errors over examples to both sides. Values of the checkpoints
    themselves (`own_*`) are open circles. Points whose value is not finite are crosses at the upper
    edge; pending ones are left out. Further keywords go to `Axes.plot`.

    Raises `ValueError` if the result has no such measure or coordinate.
    """
    for number, split in enumerate(splits_of(result, y)):
        one = part(result, y, (x,), split)
        if "alignment" not in one[y].dims:
            options: dict[str, Any] = {"linestyle": DASHES[number % len(DASHES)], "label": split}
            _line(one, ax, y, x, band, options | style)
            continue
        colour: dict[str, Any] = {}
        for alignment in map(str, one["alignment"].values):
            words = f"{split}, {alignment}" if split else alignment
            options = {"linestyle": RAW.get(alignment, "-."), "label": words}
            drawn = _line(one.sel(alignment=alignment), ax, y, x, band, options | colour | style)
            colour = {"color": drawn}
    ax.set_xlabel(axis_label(result, x) if x in "xyz" else label(result, x))
    ax.set_ylabel(label(result, y))
    return ax


def _line(
    result: xr.Dataset, ax: Axes, y: str, x: str, band: float, options: dict[str, Any]
) -> Any:
    """Draw one line with its band, circles and crosses, and give its colour."""
    if "status" in result:
        result = result.isel({x: np.flatnonzero(result["status"].values != 0)})
    (drawn,) = ax.plot(result[x], result[y].where(np.isfinite(result[y])), **options)
    colour = drawn.get_color()
    if f"{y}_stderr" in result and band:
        half = band * result[f"{y}_stderr"]
        low, high = result[y] - half, result[y] + half
        ax.fill_between(result[x], low, high, color=colour, alpha=0.25, linewidth=0)
    if f"own_{y}" in result:
        own = result[f"own_{y}"].dropna(x)
        ax.plot(own[x], own, "o", mfc="none", color=colour, clip_on=False)
    lost = result[x].values[~np.isfinite(result[y].values)]
    if lost.size:
        top = ax.get_xaxis_transform()
        ax.plot(lost, np.ones(len(lost)), "x", color=colour, transform=top, clip_on=False)
    return colour
