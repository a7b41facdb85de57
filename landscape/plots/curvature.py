"""Which eigenvalues does a matrix of curvature have, and how large is the largest in training?"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from landscape.plots.curves import (
    CHOICES,
    alone,
    choices,
    legend_above,
    looks,
    step_label,
    value_scale,
)
from landscape.plots.lines import lines
from landscape.plots.parts import part
from landscape.plots.steps import step_scale

MATRICES = {
    "hessian": "Hessian",
    "gauss-newton": "Gauss-Newton matrix",
    "fisher": "Fisher information",
}
NEGATIVE = "#D55E00"
OF_BLOCKS = (*CHOICES, "block")  # what eigenvalues may be of several of


def eigenvalues(result: xr.Dataset, ax: Axes) -> Axes:
    """Draw eigenvalues of both signs against their index, negative ones as open circles.

    Bars of the length of the residual: within them there is an eigenvalue of a symmetric matrix.
    The axis is that of `value_scale`. Several runs or blocks differ in colour, and a thin line
    joins the eigenvalues of each.

    Raises `ValueError` if the result has no eigenvalue along index, or along step as well.
    """
    chosen = part(result, "eigenvalue", ("index",), None)
    alone(chosen, "eigenvalue", ("index", *OF_BLOCKS))
    common, curves = choices(chosen, "eigenvalue", OF_BLOCKS)
    for (where, entry), style in zip(curves, looks(curves), strict=True):
        one = chosen.sel(where)
        values, index = one["eigenvalue"].values, one["index"].values
        residual = one["residual"].values if "residual" in one else np.zeros(len(values))
        ax.errorbar(index, values, yerr=residual, fmt="none", color=style["color"], elinewidth=0.8)
        joined = style if len(curves) > 1 else {**style, "linestyle": "none"}
        ax.plot(index, values, marker="o", linewidth=0.6, label=entry, **joined)
        below = values < 0
        ax.plot(index[below], values[below], "o", color=style["color"], mfc="white")
    value_scale(ax, chosen["eigenvalue"].values)
    ax.axhline(0, color="0.6", linewidth=0.6, zorder=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="index", ylabel=f"eigenvalue of the {matrix_of(chosen)}")
    legend_above(ax, common)
    return ax


def sharpness(result: xr.Dataset, ax: Axes) -> Axes:
    """Draw the largest eigenvalue through training, and 2 / learning rate where it is known.

    Gradient descent on a quadratic diverges above that line. The band is the residual to both
    sides. Several runs or blocks differ in colour, and so do the dashed lines of runs whose
    learning rates differ.
    (Cohen et al. 2021, figure 1.)

    Raises `ValueError` if the result has no eigenvalue along step and index.
    """
    chosen = part(result, "eigenvalue", ("step", "index"), None)
    alone(chosen, "eigenvalue", ("step", "index", *OF_BLOCKS))
    known = chosen["eigenvalue"].fillna(-np.inf)
    top = chosen.isel(index=known.argmax("index")).rename(eigenvalue="top")
    top = top.rename(residual="top_stderr") if "residual" in top else top
    common, curves = choices(top, "top", OF_BLOCKS)
    styles = looks(curves)
    for (where, entry), style in zip(curves, styles, strict=True):
        lines(top.sel(where), ax, y="top", x="step", band=1.0, label=entry, **style)
    limits = np.zeros(0)
    if "learning_rate" in chosen:
        rate = chosen["learning_rate"]
        limit = 2 / rate.where(rate > 0)
        limits = limit.values.ravel()
        own = "run" in limit.dims and chosen.sizes["run"] > 1
        for number, ((where, _), style) in enumerate(zip(curves, styles, strict=True)):
            if own or not number:
                one = limit.sel({key: where[key] for key in where if key in limit.dims})
                text = None if number else "2 / learning rate"
                colour = style["color"] if own else "0.4"
                ax.plot(chosen["step"], one.broadcast_like(chosen["step"]), "--", color=colour,
                        linewidth=0.8, label=text)  # fmt: skip
    value_scale(ax, np.concatenate([top["top"].values.ravel(), limits]))
    steps = chosen["step"].values
    step_scale(ax, steps)
    if len(steps) > 1:
        ax.set_xlim(steps.min(), steps.max())
    ax.set(xlabel=step_label(chosen), ylabel=f"largest eigenvalue of the {matrix_of(chosen)}")
    legend_above(ax, common)
    return ax


def density(result: xr.Dataset, ax: Axes, *, band: float = 1.96, decades: float = 8) -> Axes:
    """Draw the density of eigenvalues, logarithmically, with the width of its smoothing.

    What is below zero is in another colour. The band is `band` standard errors to both sides; the
    axis goes `decades` down from the largest density. Where a result has densities along `sign`, of
    positive and of negative eigenvalues by their magnitude, the axis of eigenvalues is logarithmic
    too, and the share that is too close to zero for it is in the legend.

    Raises `ValueError` if the result has no density along eigenvalue.
    """
    chosen = part(result, "density", ("eigenvalue",), None)
    alone(chosen, "density", ("eigenvalue", "sign"))
    places = chosen["eigenvalue"].values
    by_sign = "sign" in chosen["density"].dims
    for positive, text in ((True, "positive"), (False, "negative")):
        colour = "C0" if positive else NEGATIVE
        if by_sign:
            one = chosen.sel(sign=1 if positive else -1)
        else:
            one = chosen.isel(eigenvalue=np.flatnonzero((places >= 0) == positive))
        values = one["density"].values
        if not (values > 0).any():
            continue
        x = one["eigenvalue"].values
        ax.plot(x, np.where(values > 0, values, np.nan), color=colour, label=text)
        if "density_stderr" in one and band:
            half = band * one["density_stderr"].values
            ax.fill_between(x, values - half, values + half, color=colour, alpha=0.25, linewidth=0)
    top = float(chosen["density"].max())
    ax.set_yscale("log", nonpositive="clip")
    ax.set_ylim(top / 10**decades, 3 * top)
    if by_sign:
        ax.set_xscale("log")
    _say_width(chosen, ax, by_sign)
    legend_above(ax, choices(chosen, "density")[0])
    return ax


def matrix_of(result: xr.Dataset) -> str:
    """The matrix whose eigenvalues a result has."""
    name = str(result.attrs.get("matrix", "matrix"))
    return MATRICES.get(name, name)


def _say_width(result: xr.Dataset, ax: Axes, by_sign: bool) -> None:
    """Labels of a density: its units, and how far each eigenvalue is spread."""
    text = f"{'|eigenvalue|' if by_sign else 'eigenvalue'} of the {matrix_of(result)}"
    if "width" in result.attrs:
        unit = " decades" if by_sign else ""
        text += f"\n(smoothed with standard deviation {float(result.attrs['width']):.2g}{unit})"
    ax.set(xlabel=text, ylabel="density per decade" if by_sign else "density")
    hidden: Any = result.attrs.get("near_zero", 0.0)
    if by_sign and hidden > 0:
        ax.plot([], [], " ", label=f"{100 * float(hidden):.3g} % nearer to 0")
