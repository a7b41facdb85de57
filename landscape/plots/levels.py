"""Which levels and colours show values that span decades, the same in all panels?"""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PolyCollection
from matplotlib.colorbar import Colorbar
from matplotlib.colors import BoundaryNorm, Colormap
from numpy.typing import ArrayLike, NDArray

ABOVE = "0.85"  # the colour of what is above the top level


def levels_for(
    values: Sequence[xr.Dataset | ArrayLike],
    *,
    y: str = "loss",
    num: int = 10,
    top: float | None = None,
) -> NDArray[np.float64]:
    """Common levels (num,) for several results, or arrays: low, then geometric steps above it.

    Level k > 0 is low + first * ratio**(k - 1), with low the smallest value (of any sign: the steps
    are above it) and first such that 2 % of the other values lie below; the last is the largest
    value, or `top`. Levels are rounded to two digits of their spacing, outwards at both ends, so
    that what a colour bar writes is the level itself. Values that are not finite do not count.

    Raises `ValueError` if there is no finite value, or none below `top`.
    """
    arrays = [one[y].values if isinstance(one, xr.Dataset) else one for one in values]
    flat = np.concatenate([np.asarray(one, float).ravel() for one in arrays])
    flat = flat[np.isfinite(flat)]
    if not flat.size:
        raise ValueError("there is no finite value to choose levels for")
    low, high = float(flat.min()), float(flat.max()) if top is None else float(top)
    if top is not None and top <= low:
        raise ValueError(f"top must be above the smallest value {low:.6g}, got {top:.6g}")
    if not high - low > 1e-12 * abs(low):  # nothing but rounding
        return np.array([low, low + (1e-3 * abs(low) or 1e-3)])
    above = flat[(flat > low) & (flat <= high)] - low
    first = max(np.quantile(above, 0.02) if above.size else high - low, 1e-6 * (high - low))
    steps = np.geomspace(min(first, 0.5 * (high - low)), high - low, num - 1)
    return _rounded(low + np.concatenate([[0.0], steps]), exact_top=top is not None)


def level_texts(levels: NDArray[np.float64]) -> list[str]:
    """Levels in as many digits as tell them apart, and as they need to be what is written."""
    return [_text(level, unit) for level, unit in zip(levels, _units(levels), strict=True)]


def colours(levels: NDArray[np.float64]) -> tuple[BoundaryNorm, Colormap]:
    """The norm and the colour map of the style, one colour between each two levels."""
    cmap = mpl.colormaps[mpl.rcParams["image.cmap"]].with_extremes(over=ABOVE)
    return BoundaryNorm(levels, cmap.N), cmap


def colour_bar(
    axes: Axes | Sequence[Axes],
    levels: NDArray[np.float64],
    label: str,
    *,
    clipped: bool = False,
    **options: Any,
) -> Colorbar:
    """One colour bar for all panels that share levels; `clipped` if values are above the top.

    The levels are written where there is room, the lowest always. Further options go to
    `Figure.colorbar`.
    """
    first = axes if isinstance(axes, Axes) else axes[0]
    figure: Any = first.get_figure(root=True)
    norm, cmap = colours(levels)
    bar: Colorbar = figure.colorbar(
        ScalarMappable(norm, cmap),
        **(beside(axes) | options),
        ticks=levels,
        extend="max" if clipped else "neither",
        spacing="uniform",
        label=label,
    )
    bar.minorticks_off()
    figure.draw_without_rendering()  # so that the height is known
    height = bar.ax.get_window_extent().height / figure.dpi * 72
    line = 1.1 * bar.ax.yaxis.get_ticklabels()[0].get_fontsize()  # type: ignore[operator]
    every = math.ceil(line * (len(levels) - 1) / height)
    texts = [text if k % every == 0 else "" for k, text in enumerate(level_texts(levels))]
    bar.set_ticks(levels.tolist(), labels=texts)
    return bar


def beside(axes: Axes | Sequence[Axes], gap: float = 0.04) -> dict[str, Any]:
    """Where a colour bar goes: at one panel, as high as that; or beside several."""
    if isinstance(axes, Axes) and axes.name != "3d":
        return {"cax": axes.inset_axes((1 + gap, 0, 0.05, 1))}
    return {"ax": axes}


def edges(centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """The borders (n + 1,) of cells around n sorted positions: half-way to the neighbours."""
    if len(centres) == 1:
        return centres + np.array([-0.5, 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def hatch(
    ax: Axes,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    where: NDArray[np.bool_],
    *,
    clip: bool = False,
) -> None:
    """Hatch the cells of a (y, x) mask: values that are not finite. `clip` to the grid's points."""
    if not where.any():
        return
    across, up = edges(x), edges(y)
    if clip:
        across, up = across.clip(x[0], x[-1]), up.clip(y[0], y[-1])
    corners = [
        [(across[j], up[i]), (across[j + 1], up[i]),
         (across[j + 1], up[i + 1]), (across[j], up[i + 1])]
        for i, j in np.argwhere(where)
    ]  # fmt: skip
    cells = PolyCollection(corners, facecolor="white", edgecolor="0.4", hatch="xxxxx", linewidth=0)
    cells.set_label("not finite")
    ax.add_collection(cells)


def _units(levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Powers of ten: the second digit of the distance from each level to its nearest other."""
    gaps = np.diff(levels)
    nearest = np.minimum(np.append(gaps, np.inf), np.append(np.inf, gaps))
    return np.asarray(10.0 ** (np.floor(np.log10(nearest) + 1e-9) - 1))


def _rounded(levels: NDArray[np.float64], exact_top: bool) -> NDArray[np.float64]:
    """Levels as they are written: to their units, never above the lowest or below the highest."""
    units = _units(levels)
    whole = np.round(levels / units)
    whole[0] -= _multiple(whole[0], units[0]) > levels[0]
    whole[-1] += _multiple(whole[-1], units[-1]) < levels[-1]
    rounded = np.array([_multiple(*pair) for pair in zip(whole, units, strict=True)])
    if exact_top:
        rounded[-1] = levels[-1]
    return rounded


def _text(level: float, unit: float) -> str:
    """A number down to a power of ten, or as much further as it goes."""
    decimals = max(0, -round(np.log10(unit)))
    digits = max(1, round(np.floor(np.log10(abs(level) or 1)) - np.log10(unit)) + 1)
    plain = abs(level) < 1e5 and decimals <= 6
    for more in range(17):
        text = f"{level:.{decimals + more}f}" if plain else f"{level:.{digits + more}g}"
        if abs(float(text) - level) <= 1e-6 * unit:
            break
    return text


def _multiple(whole: float, unit: float) -> float:
    return float(f"{whole * unit:.15g}") + 0.0  # no negative zero
