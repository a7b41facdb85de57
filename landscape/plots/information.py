"""How much information do the weights hold during training, and in which layers is it?"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, SymLogNorm
from numpy.typing import NDArray

from landscape.plots.curvature import MATRICES
from landscape.plots.curves import (
    CHOICES,
    DECADES,
    Curve,
    alone,
    choices,
    legend_above,
    looks,
    step_label,
    value_scale,
)
from landscape.plots.layers import fit, written
from landscape.plots.levels import beside, edges, hatch
from landscape.plots.lines import lines
from landscape.plots.parts import field, part, splits_of
from landscape.plots.steps import step_scale

DIVERGING = "RdBu_r"  # for traces of both signs


def fisher_trace(
    result: xr.Dataset, ax: Axes, *, split: str | None = None, band: float = 1.96
) -> Axes:
    """Draw the trace (of the Fisher information) through training, accuracy on a second axis.

    A line for each run, kind of labels and batch-norm choice. The legend stands above the axes,
    headed by what all lines have in common. The band is `band` standard errors to both sides.
    Windows from `deficit_start` to `deficit_end` are shaded, in grey, or in the colours of the runs
    where they differ. A triangle stands at `peak_step` with its interval, if the result has them:
    filled if neither end of the curve may be the peak, so that the trace rises and then falls.
    Where there is an `error`, 1 - error is dotted: of `split`, which is by default "test" or else
    the last one. The axis of the trace is that of `value_scale`. (Achille, Rovere and Soatto 2019.)

    Raises `ValueError` if the result has no total along step, or no such split.
    """
    chosen = part(result, "total", ("step",), None)
    alone(chosen, "total", ("step", *CHOICES))
    common, curves = choices(chosen, "total")
    styles = looks(curves)
    highest = chosen["total"] + band * chosen.get("total_stderr", 0.0)
    value_scale(ax, np.concatenate([chosen["total"].values.ravel(), highest.values.ravel()]))
    for (where, entry), style in zip(curves, styles, strict=True):
        one = chosen.sel(where)
        lines(one, ax, y="total", x="step", band=band, label=entry, **style)
        _mark_peak(one, ax, style["color"])
    _shade(chosen, ax, curves, styles)
    _step_axis(ax, chosen)
    ax.set_ylabel(trace_label(result))
    if "error" in chosen and "step" in chosen["error"].dims:
        _accuracy(chosen, ax, split, curves, styles)
    legend_above(ax, common)
    return ax


def fisher_layers(
    result: xr.Dataset,
    ax: Axes,
    *,
    shares: bool = False,
    limits: tuple[float, float] | None = None,
    bar: bool = True,
) -> Axes:
    """Draw the trace of each module or block through training as colours, the first one on top.

    Modules are in the order of their parameters. Colours are logarithmic over at most six decades,
    and what is below has the lowest; those of a trace of both signs diverge from zero, and are
    linear below a thousandth of the largest. With `shares` they are linear, and each column sums to
    one.
    `limits`: the values of the first and the last colour, by default `trace_limits`; give the same
    to panels that are compared. Values that are not finite are hatched, pending ones blank.
    (Achille, Rovere and Soatto 2019, have the shares.)

    Raises `ValueError` if the result has no trace along step and tensor (or block), or several
    choices of it.
    """
    along = "block" if "block" in result.dims else "tensor"
    chosen = by_module(part(result, "trace", (along, "step"), None))
    if shares:
        chosen = in_shares(chosen)
    values, lost = field(chosen, "trace", (layer_dim(chosen), "step"))
    low, high = trace_limits(values, shares=shares) if limits is None else limits
    norm = Normalize(low, high) if shares else LogNorm(low, high)
    if low < 0:
        norm = SymLogNorm(high / 1000, vmin=low, vmax=high)
    steps, rows = chosen["step"].values.astype(float), np.arange(len(values), dtype=float)
    step_scale(ax, steps)
    shown = np.ma.masked_invalid(np.maximum(values, low))
    cmap = DIVERGING if low < 0 else None
    ax.pcolormesh(edges(steps), edges(rows), shown, norm=norm, cmap=cmap)
    hatch(ax, steps, rows, lost)
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlabel=step_label(chosen))
    ax.set_xlim(edges(steps)[0], edges(steps)[-1])
    ax.set_yticks(rows, written(chosen[layer_dim(chosen)].values))
    ax.tick_params(axis="y", length=0)
    ax.spines[:].set_visible(False)
    if bar:
        trace_bar(ax, shares=shares)
        fit(ax.get_figure(root=True), [ax])
    return ax


def traces(result: xr.Dataset, ax: Axes, *, by: str = "tensor", band: float = 1.96) -> Axes:
    """Draw the trace of each tensor, module or block of one state, the first on top.

    Points with `band` standard errors to both sides, as `by_module` adds them; in another colour
    for each of several choices. Choices that all share, and the total, stand above.

    Raises `ValueError` if the result has no trace along `by`, or along something else as well.
    """
    chosen = part(by_module(result) if by == "module" else result, "trace", (by,), None)
    alone(chosen, "trace", (by, *CHOICES))
    common, clouds = choices(chosen, "trace")
    rows = np.arange(chosen.sizes[by])
    lifts = 0.4 * (np.arange(len(clouds)) - (len(clouds) - 1) / 2) / len(clouds)
    for (where, entry), style, lift in zip(clouds, looks(clouds), lifts, strict=True):
        one = chosen.sel(where)
        half = band * one["trace_stderr"].values if "trace_stderr" in one else None
        ax.errorbar(
            one["trace"].values, rows + lift, xerr=half, fmt="o", color=style["color"], label=entry
        )
    value_scale(ax, chosen["trace"].values, "x")
    ax.set_yticks(rows, written(chosen[by].values))
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlabel=trace_label(result))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", color="0.92", linewidth=0.6)
    ax.set_axisbelow(True)
    if "total" in chosen and chosen["total"].ndim == 0:
        total = f"total {float(chosen['total']):.4g}"
        if "total_stderr" in chosen:
            total += f" ± {float(chosen['total_stderr']):.2g} (standard error)"
        common = "\n".join(filter(None, [common, total]))
    legend_above(ax, common)
    return ax


def by_module(result: xr.Dataset) -> xr.Dataset:
    """The trace over modules instead of tensors, in the order of their first parameters.

    Standard errors are added: the tensors of a module share their examples, so that a sum may be as
    uncertain as that. A parameter that is in no module stands for itself.
    """
    if "tensor" not in result.dims:
        return result
    tensors = [str(name) for name in result["tensor"].values]
    of = [name.rpartition(".")[0] for name in tensors]
    if "module" in result.coords:
        of = [str(name) for name in result["module"].values]
    of = [module or name for module, name in zip(of, tensors, strict=True)]
    modules = xr.Variable("module", list(dict.fromkeys(of)))
    bare = result.drop_vars("module", errors="ignore")
    sums = {}
    for name in {"trace", "trace_stderr"} & {*result.data_vars}:
        parts = [bare[name].isel(tensor=[k for k, one in enumerate(of) if one == module])
                 .sum("tensor", skipna=False, keep_attrs=True)
                 for module in modules.values]  # fmt: skip
        sums[name] = xr.concat(parts, dim=modules)
    return bare.drop_dims("tensor").assign(sums)


def layer_dim(result: xr.Dataset) -> str:
    """What the traces of a result that `by_module` gave are of."""
    return "block" if "block" in result.dims else "module"


def in_shares(result: xr.Dataset) -> xr.Dataset:
    """The trace of each module as a share of that of all modules, without standard errors."""
    whole = result["trace"].sum(layer_dim(result), skipna=False)
    shares = result["trace"] / whole.where(whole != 0)
    return result.drop_vars("trace_stderr", errors="ignore").assign(trace=shares)


def trace_limits(values: NDArray[np.float64], *, shares: bool) -> tuple[float, float]:
    """The first and the last colour: at most six decades of what is positive, or shares from 0.

    With negative values, those of the largest magnitude.
    """
    if (values < 0).any():
        largest = float(np.nanmax(abs(values)))
        return -largest, largest
    positive = values[np.isfinite(values) & (values > 0)]
    high = float(positive.max()) if positive.size else 1.0
    if shares:
        return 0.0, high
    low = max(float(positive.min()), high / 10**DECADES) if positive.size else 0.1
    return (low, high) if low < high else (high / 2, 2 * high)


def trace_bar(axes: Any, *, shares: bool) -> None:
    """The colour bar of one or more panels of one scale."""
    first = axes if isinstance(axes, Axes) else axes[0]
    text = "share of the trace" if shares else "trace"
    figure: Any = first.get_figure(root=True)
    figure.colorbar(first.collections[0], label=text, **beside(axes))


def trace_label(result: xr.Dataset) -> str:
    """Of which matrix a trace is."""
    usual = "hessian" if result.attrs.get("analysis") == "hessian trace" else "fisher"
    return f"trace of the {MATRICES[result.attrs.get('matrix', usual)]}"


def _step_axis(ax: Axes, result: xr.Dataset) -> None:
    steps = result["step"].values
    step_scale(ax, steps)
    if len(steps) > 1:
        ax.set_xlim(steps.min(), steps.max())
    ax.set_xlabel(step_label(result))


def _mark_peak(result: xr.Dataset, ax: Axes, colour: Any) -> None:
    """A triangle above the peak of one curve, with the steps where it may be."""
    if "peak_step" not in result or not np.isfinite(result["peak_step"]):
        return
    step = float(result["peak_step"])
    low, high = (float(result.get(f"peak_step_{end}", step)) for end in ("low", "high"))
    first, last = result["step"].values[[0, -1]]
    height = 1.12 * float(result["total"].sel(step=step))
    ax.errorbar(
        step, height, xerr=[[step - low], [high - step]], fmt="v", color=colour, elinewidth=0.8,
        mfc=colour if first < low and high < last else "white", zorder=4, clip_on=False,
    )  # fmt: skip


def _shade(result: xr.Dataset, ax: Axes, curves: list[Curve], styles: list[dict[str, Any]]) -> None:
    """Windows of deficits: one in grey, those of several runs in their colours."""
    last = float(result["step"].max())
    windows: dict[tuple[float, float], Any] = {}
    for (where, _), style in zip(curves, styles, strict=True):
        start, end = (_of_run(result, f"deficit_{name}", where) for name in ("start", "end"))
        if np.isfinite(start):
            windows.setdefault((start, end if np.isfinite(end) else last), style["color"])
    several = len({_of_run(result, "deficit_start", where) for where, _ in curves}) > 1
    several = several or len(windows) > 1
    for (start, end), colour in windows.items():
        own = {"color": colour, "alpha": 0.15} if several else {"color": "0.9"}
        ax.axvspan(start, end, linewidth=0, zorder=0, **own)
    if windows:
        ax.fill([], [], color="0.85", linewidth=0, label="deficit")


def _of_run(result: xr.Dataset, name: str, where: dict[str, Any]) -> float:
    """A number of a run, from the coordinates or the attributes; NaN if there is none."""
    if name in result.variables:
        one = result[name]
        return float(one.sel({dim: where[str(dim)] for dim in one.dims}))
    value = result.attrs.get(name)
    return float(value) if isinstance(value, int | float | np.number) else np.nan


def _accuracy(
    result: xr.Dataset,
    ax: Axes,
    split: str | None,
    curves: list[Curve],
    styles: list[dict[str, Any]],
) -> None:
    """1 - error against the step, dotted on a second axis."""
    splits = splits_of(result, "error")
    if split is None:
        split = "test" if "test" in splits else splits[-1]
    chosen = part(result, "error", ("step",), split)
    colours: dict[Any, Any] = {}
    for (where, _), style in zip(curves, styles, strict=True):
        colours.setdefault(where.get("run"), style["color"])
    twin = ax.twinx()
    twin.spines["right"].set_visible(True)
    for where, _ in choices(chosen, "error")[1]:
        accuracy = 1 - chosen["error"].sel(where)
        colour = colours[where["run"]] if len(colours) > 1 and "run" in where else "0.4"
        twin.plot(chosen["step"], accuracy, ":", color=colour, linewidth=1.0)
    values = 1 - chosen["error"].values
    if np.isfinite(values).any():
        twin.set_ylim(np.floor(10 * np.nanmin(values)) / 10, 1.0)
    text = f"{split} accuracy" if split else "accuracy"
    twin.set_ylabel(text)
    ax.plot([], [], ":", color="0.4", linewidth=1.0, label=f"{text} (right)")
