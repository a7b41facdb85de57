"""How does a value change along one coordinate?"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

DASHES = ("-", "--", "-.", ":")


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

    The band is `band` standard errors over examples to both sides. Values of the checkpoints
    themselves (`own_*`) are open circles. Points whose value is not finite are crosses at the upper
    edge; pending ones are left out. Further keywords go to `Axes.plot`.

    Raises `ValueError` if the result has no such measure or coordinate.
    """
    if y not in result or x not in result[y].dims:
        known = [str(name) for name in result.data_vars if f"{name}_stderr" in result]
        raise ValueError(f"the result has no {y!r} along {x!r}; it has {', '.join(known)}")
    several = "split" in result[y].dims
    for number, split in enumerate(result["split"].values if several else [None]):
        part = result.sel(split=split) if several else result
        part = part.sortby(x)
        part = part.isel({x: np.flatnonzero(part["status"].values != 0)})
        label = style.get("label", split)
        options = {"linestyle": DASHES[number % len(DASHES)]} | style | {"label": label}
        (drawn,) = ax.plot(part[x], part[y].where(np.isfinite(part[y])), **options)
        colour = drawn.get_color()
        if f"{y}_stderr" in part and band:
            half = band * part[f"{y}_stderr"]
            low, high = part[y] - half, part[y] + half
            ax.fill_between(part[x], low, high, color=colour, alpha=0.25, linewidth=0)
        if f"own_{y}" in part:
            own = part[f"own_{y}"].dropna(x)
            ax.plot(own[x], own, "o", mfc="none", color=colour, clip_on=False)
        lost = part[x].values[~np.isfinite(part[y].values)]
        if lost.size:
            top = ax.get_xaxis_transform()
            ax.plot(lost, np.ones(len(lost)), "x", color=colour, transform=top, clip_on=False)
    ax.set_xlabel(_label(result, x))
    ax.set_ylabel(_label(result, y))
    return ax


def _label(result: xr.Dataset, name: str) -> str:
    attrs = result[name].attrs
    text = str(attrs.get("long_name", name))
    return f"{text} ({attrs['units']})" if attrs.get("units") else text
