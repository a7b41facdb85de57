"""From which step on do children of one trunk end in the same basin?"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator
from matplotlib.transforms import offset_copy
from numpy.typing import NDArray

from landscape.plots.lines import DASHES
from landscape.plots.parts import label, part, splits_of


def instability(result: xr.Dataset, ax: Axes, *, y: str = "error") -> Axes:
    """Draw the instability of a measure against the step k at which the children branch off.

    One line for each split, with a band for its interval over runs if it has one. If the result
    has a threshold for this measure it is drawn, and above it, for each split, a triangle at the
    step from which on the training is stable. The axis of steps is that of `step_scale`. (Frankle
    et al. 2020, figure 3.)

    Raises `ValueError` if the result has no instability of the measure.
    """
    name = f"{y}_instability"
    steps = result["branch_step"].values if "branch_step" in result.dims else np.zeros(0)
    judged = "threshold" in result.attrs and result.attrs.get("measure", y) == y
    limit = float(result.attrs["threshold"]) if judged else 0.0
    for number, split in enumerate(splits_of(result, name)):
        chosen = part(result, name, ("branch_step",), split)
        k, stable = chosen["branch_step"].values, None
        if judged and "stable_from" in chosen:
            stable = float(chosen["stable_from"])
        (drawn,) = ax.plot(
            k, chosen[name], marker="o", linestyle=DASHES[number % len(DASHES)],
            label=_entry(split, stable), clip_on=False,
        )  # fmt: skip
        if f"{name}_low" in chosen:
            ax.fill_between(
                k, chosen[f"{name}_low"], chosen[f"{name}_high"],
                color=drawn.get_color(), alpha=0.25, linewidth=0,
            )  # fmt: skip
        if stable is not None and np.isfinite(stable):
            above = offset_copy(ax.transData, ax.get_figure(root=True), y=5, units="points")
            ax.plot(
                stable, limit, "v", color=drawn.get_color(), markersize=6, transform=above,
                clip_on=False, zorder=4,
            )  # fmt: skip
    if judged:
        ax.axhline(limit, color="0.5", linewidth=0.8, linestyle=":", zorder=0)
    step_scale(ax, steps)
    if len(steps) > 1:
        ax.set_xlim(steps.min(), steps.max())
    ax.set_ylim(bottom=min(0.0, float(result[name].min())))
    ax.set(xlabel=label(result, "branch_step"), ylabel=label(result, name))
    return ax


def step_scale(ax: Axes, steps: NDArray[Any], which: str = "x") -> None:
    """Axes of steps: linear, or logarithmic beyond the power of ten at or below the first positive.

    Logarithmic if the gaps grow: if one of them is more than ten times the first. Then 0 and at
    most nine powers of ten are written: a cell at step 0 reaches below it, where no steps are.
    """
    gaps = np.diff(np.unique(steps))
    if gaps.size and gaps.max() > 10 * gaps[0]:
        least = steps[steps > 0].min()
        # in the linear part a label would hide the 0; matplotlib rounds powers of ten down
        low, high = (int(np.floor(np.log10(step) + 1e-9)) for step in (least, steps.max()))
        powers = 10.0 ** np.arange(low, high + 1, 1 + (high - low) // 9)
        for axis in which:
            scale = {"linthresh": powers[0] * (1 + 1e-9), "linscale": 0.6}
            getattr(ax, f"set_{axis}scale")("symlog", **scale)
            getattr(ax, f"{axis}axis").set_major_locator(FixedLocator([0.0, *powers]))
            getattr(ax, f"{axis}axis").set_minor_locator(NullLocator())


def _entry(split: str | None, stable: float | None) -> str | None:
    """What the legend says of a split."""
    if stable is None:
        return split
    found = f"stable from {stable:g}" if np.isfinite(stable) else "never stable"
    return f"{split}, {found}" if split else found
