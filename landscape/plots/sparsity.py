"""How sparse can a network be? Chains of pruning and their controls, over the runs of each."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from landscape.plots.curves import looks, value_scale
from landscape.plots.layers import depth_bar, depth_colours, written
from landscape.plots.panels import legend_below
from landscape.plots.parts import label
from landscape.plots.steps import step_scale

AGAINST_STEP = ("pruning_distance", "pruning_angle", "order_distance", "order_angle")
PANELS = ("test_error", "layer_density", "pruning_distance", "order_distance", "effective_std")
MARKERS = "osD^vPX*<>"
GREY = "0.4"
MOST_NAMED = 6  # layers in a legend
REMAINING = "weights remaining (%)"


def pruning(result: xr.Dataset, ax: Axes, *, y: str = "test_error") -> Axes:
    """Draw the error against the share of the weights that remain, a line for each chain.

    `y` is `"test_error"` or `"train_error"`. Lines are means over runs, bands their 95 % intervals
    (Student's t); runs that lack a level do not count there. Chains differ in colour, controls in
    dashes; a control of one level is a point with a marker of its own, unless `perturbations` draws
    it. The dotted line is the dense network. The axis of errors is that of `value_scale`. (Frankle
    et al. 2019, figures 1 and 2.)

    Raises `ValueError` if the result has no such error along runs, chains and levels.
    """
    _check(result, y, ("run", "chain", "level"))
    shown = drawn_chains(result, y)
    styles, ends = _looks(result, shown), []
    points = [chain for chain in shown if _control(result, chain) and _lone(result, chain, y)]
    markers = dict(zip(dict.fromkeys(_control(result, c) for c in points), cycle(MARKERS[1:])))
    for chain in shown:
        one = result.sel(chain=chain)
        density = 100 * one["density"].mean("run").values
        middle, half = _interval(100 * one[y])
        there = np.isfinite(middle) & np.isfinite(density)
        style: dict[str, Any] = {**styles[chain], "label": _entry(result, shown, chain)}
        if chain in points:
            there[0] = False  # from the dense network to a lone level leads no line
        density, middle, half = (values[there] for values in (density, middle, half))
        if chain in points:
            style |= {"linestyle": "none", "marker": markers[_control(result, chain)]}
            ax.errorbar(density, middle, np.nan_to_num(half), capsize=2, **style)
        else:
            ax.plot(density, middle, marker="o", markersize=2.5, **style)
            _band(ax, density, middle, half, style["color"])
        half = np.nan_to_num(half)
        ends += [middle + half, np.maximum(middle - half, middle / 2)]
    _control_entries(result, shown, ax, points, markers)
    dense = 100 * float(result[y].isel(chain=0, level=0).mean())
    if np.isfinite(dense):
        ax.axhline(dense, linestyle=":", linewidth=0.8, label="dense", zorder=0, color=GREY)
    value_scale(ax, np.concatenate([*ends, [dense]]))
    _remaining(ax.xaxis, 100 * result["density"])
    ax.set(xlabel=REMAINING, ylabel=f"{label(result, y)} (%)")
    return ax


def layer_densities(result: xr.Dataset, ax: Axes, *, chain: str | None = None) -> Axes:
    """Draw how many weights of each layer remain, against those of the whole network.

    Of one chain, by default the one with the most levels. Lines are means over runs, bands their
    95 % intervals; on the dotted line all layers are equally dense. The names of more than 6 layers
    stand at a colour bar.

    Raises `ValueError` if the result has no such chain.
    """
    _check(result, "layer_density", ("run", "chain", "level", "layer"))
    known = result["chain"].values.tolist()
    if chain is not None and chain not in known:
        raise ValueError(f"the result has no chain {chain!r}; it has {', '.join(known)}")
    own = [one for one in known if not _control(result, one)] or known
    chain = chain or max(own, key=lambda one: _num_levels(result.sel(chain=one), "density"))
    one = result.sel(chain=chain)
    density = 100 * one["density"].mean("run").values
    order = np.argsort(-density)
    handles = []
    for k, colour in enumerate(depth_colours(one.sizes["layer"])):
        middle, half = _interval(100 * one["layer_density"].isel(layer=k))
        handles += ax.plot(density[order], middle[order], color=colour, marker="o", markersize=2.5)
        _band(ax, density[order], middle[order], half[order], colour)
    ax.plot(density[order], density[order], ":", linewidth=0.8, zorder=0, color=GREY)
    _remaining(ax.xaxis, density)
    _remaining(ax.yaxis, 100 * one["layer_density"])
    ax.set(xlabel=REMAINING, ylabel="remaining in layer (%)", title=_name(result, chain))
    names = written(one["layer"].values)
    if len(names) > MOST_NAMED:
        depth_bar(ax, np.array(names))
    else:  # in the corner below the lines, all of which begin at the top
        ax.legend(handles[::-1], names[::-1], loc="lower left", handlelength=1)
    return ax


def stability(
    result: xr.Dataset, ax: Axes, *, y: str = "pruning_distance", level: int | None = None
) -> Axes:
    """Draw how far apart networks end against the step k to which their weights were rewound.

    `y`: distance or angle from the trained dense network (`"pruning_distance"`), or between copies
    with other orders of the data (`"order_distance"`), at a level, by default the last that all
    chains with values have. A line for the chains of each kind and for each of their controls, the
    mean over runs with its 95 % interval; a point has the colour of its chain. (Frankle et al.
    2019, figure 5.)

    Raises `ValueError` if there are no such values for at least two steps.
    """
    _check(result, y, ("run", "chain", "level"))
    level = _common_level(result, y) if level is None else level
    groups = _along_steps(result, y, level)
    if not groups:
        raise ValueError(f"{y!r} needs chains of at least two rewinding steps, at one level")
    at = result.sel(level=level)
    shown = drawn_chains(result, "test_error")
    styles = _looks(result, shown)
    for control, chains in groups:
        steps = np.array([float(at["step"].sel(chain=chain)) for chain in chains])
        found = [_interval(at[y].sel(chain=chain)) for chain in chains]
        middle, half = (np.array(one, float) for one in zip(*found, strict=True))
        dashes = styles.get(chains[0], {}).get("linestyle", "-")
        ax.plot(steps, middle, linestyle=dashes, label=control or None, zorder=2, color=GREY)
        _band(ax, steps, middle, half, GREY)
        for chain, step, value in zip(chains, steps, middle, strict=True):
            colour = styles.get(chain, {}).get("color", GREY)
            ax.plot(step, value, "o", color=colour, markersize=4, clip_on=False, zorder=3)
    steps = np.unique(at["step"].values[np.isfinite(at["step"].values)])
    step_scale(ax, steps)
    ax.set_xlim(steps.min(), steps.max())
    density = 100 * at["density"].sel(chain=[one for _, chains in groups for one in chains])
    shares = dict.fromkeys(f"{float(share):.3g}" for share in (density.max(), density.min()))
    ax.set_ylim(bottom=0)
    ax.set(xlabel="rewinding step $k$", ylabel=label(result, y))
    ax.set_title(f"{' to '.join(shares)} % of weights remaining")
    return ax


def perturbations(result: xr.Dataset, ax: Axes) -> Axes:
    """Draw accuracy against the effective standard deviation of changed starts, a point for each.

    Of a report on chains at the last level of each that has such controls, the chain itself
    included; or of what `against_effective_std` gives. Points are means over runs with their 95 %
    intervals; markers tell kinds of perturbations, which the first words of their names are. The
    title holds the correlation over the points. (Frankle, Schwab and Morcos 2020, figure 7.)

    Raises `ValueError` if the result has no perturbations.
    """
    clouds = list(_clouds(result))
    if not clouds:
        raise ValueError("the result has no effective standard deviations of two or more starts")
    kinds = list(dict.fromkeys(kind for cloud in clouds for kind in cloud.kinds))
    for number, cloud in enumerate(clouds):
        colour = cloud.colour or f"C{number}"
        for k, kind in enumerate(kinds):
            chosen = np.array([one == kind for one in cloud.kinds])
            if chosen.any():
                x, across = _interval(cloud.change[chosen])
                y, up = _interval(cloud.accuracy[chosen])
                ax.errorbar(
                    x, y, np.nan_to_num(up), np.nan_to_num(across), MARKERS[k % len(MARKERS)],
                    color=colour, ecolor=colour, elinewidth=0.5, alpha=0.85, label=kind or "none",
                )  # fmt: skip
    ax.set_title("\n".join(cloud.name + _significance(cloud) for cloud in clouds))
    ax.set(xlabel=label(result, "effective_std"), ylabel="test accuracy (%)")
    ax.set_xlim(left=-0.03 * ax.get_xlim()[1])
    return ax


def report_panels(result: xr.Dataset) -> list[str]:
    """The panels for which a report on chains, or on perturbations alone, has values."""
    if "effective_std" not in result:
        return []
    if "arm" in result["effective_std"].dims:
        return ["effective_std"]
    if not {"chain", "level"} <= set(result["effective_std"].dims):
        return []
    has = {
        "test_error": bool(result["test_error"].notnull().any()),
        "layer_density": result.sizes["layer"] > 1,
        **{
            y: bool(_along_steps(result, y, _common_level(result, y)))
            for y in AGAINST_STEP
            if y in PANELS
        },
        "effective_std": any(True for _ in _clouds(result)),
    }
    return [name for name in PANELS if has[name]]


def report(result: xr.Dataset, names: list[str], width: float) -> Figure:
    """The panels of a report, two in a row; of an odd number the first has a row of its own."""
    across = 2 if width > 4.5 and len(names) > 1 else 1
    first = across if len(names) % across else 1
    down = (len(names) + first - 1) // across
    fig = Figure(figsize=(width, 2.05 * down + 0.1))
    grid = fig.add_gridspec(down, across)
    places = [grid[0, :first], *(grid[divmod(k, across)] for k in range(first, down * across))]
    panels = [fig.add_subplot(place) for place in places]
    for ax, name in zip(panels, names, strict=True):
        draw_panel(result, ax, name)
    fig.set_figheight(fig.get_figheight() + 0.17 * legend_below(fig, panels))
    return fig


def draw_panel(result: xr.Dataset, ax: Axes, name: str) -> Axes:
    """Draw the panel of a name in `PANELS`, of another error, distance or angle."""
    if name == "layer_density":
        return layer_densities(result, ax)
    if name == "effective_std":
        return perturbations(result, ax)
    return stability(result, ax, y=name) if name in AGAINST_STEP else pruning(result, ax, y=name)


# Chains -------------------------------------------------------------------------------------------


def drawn_chains(result: xr.Dataset, y: str) -> list[str]:
    """The chains and controls of which there is a line, or a point that no scatter has."""
    scattered = result["of"].isin(result["chain"][result["correlation"].notnull().any("level")])
    scattered &= result["effective_std"].notnull().any(("run", "level"))
    found = []
    for chain in result["chain"].values.tolist():
        twice = _control(result, chain) and _lone(result, chain, y) and scattered.sel(chain=chain)
        if _num_levels(result.sel(chain=chain), y) and not twice:
            found.append(chain)
    return found


def _num_levels(one: xr.Dataset, y: str) -> int:
    """Of how many levels, without the dense network, a chain has values."""
    return int(one[y].isel(level=slice(1, None)).notnull().any("run").sum())


def _lone(result: xr.Dataset, chain: str, y: str) -> bool:
    return _num_levels(result.sel(chain=chain), y) == 1


def _control(result: xr.Dataset, chain: str) -> str:
    return str(result["control"].sel(chain=chain).values)


def _name(result: xr.Dataset, chain: str) -> str:
    """What a chain is called: by its step, if it does nothing but rewind."""
    one = result.sel(chain=chain)
    if _control(result, chain) or str(one["kind"].values):
        return chain
    return f"$k$ = {float(one['step']):g}"


def _several(result: xr.Dataset, shown: Sequence[str]) -> bool:
    """Whether there are both several chains and controls of them."""
    of = {str(result["of"].sel(chain=chain).values) for chain in shown}
    return len(of) > 1 and any(_control(result, chain) for chain in shown)


def _looks(result: xr.Dataset, shown: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colours of chains and dashes of controls; colours of controls if there is one chain."""
    curves: list[Any] = [
        ({"of": str(result["of"].sel(chain=c).values), "control": _control(result, c)}, None)
        for c in shown
    ]
    return dict(zip(shown, looks(curves), strict=True)) if curves else {}


def _entry(result: xr.Dataset, shown: Sequence[str], chain: str) -> str | None:
    """What the legend says of a line."""
    control = _control(result, chain)
    if not control:
        return _name(result, chain)
    return None if _several(result, shown) else control


def _control_entries(
    result: xr.Dataset,
    shown: Sequence[str],
    ax: Axes,
    points: Sequence[str],
    markers: Mapping[str, str],
) -> None:
    """Entries of the legend for dashes and markers of controls, whatever their chain's colour."""
    if not _several(result, shown):
        return
    looks_of: dict[str, dict[str, Any]] = {}
    for chain, style in _looks(result, shown).items():
        if control := _control(result, chain):
            own = looks_of.setdefault(control, {"linestyle": "none"})
            own |= (
                {"marker": markers[control]}
                if chain in points
                else {"linestyle": style["linestyle"]}
            )
    for control, own in looks_of.items():
        ax.plot([], [], label=control, color=GREY, **own)


def _along_steps(result: xr.Dataset, y: str, level: int | None) -> list[tuple[str, list[str]]]:
    """The controls (or "" and kinds) that have values at several steps, and the chains of each."""
    if level not in result["level"].values:
        return []
    at = result.sel(level=level)
    groups: dict[tuple[str, str], list[str]] = {}
    for chain in result["chain"].values.tolist():
        one = at.sel(chain=chain)
        if one[y].notnull().any() and np.isfinite(one["step"]):
            key = str(one["kind"].values), str(one["control"].values)
            groups.setdefault(key, []).append(chain)
    steps = {key: {float(at["step"].sel(chain=c)) for c in own} for key, own in groups.items()}
    return [(" ".join(key).strip(), own) for key, own in groups.items() if len(steps[key]) > 1]


def _common_level(result: xr.Dataset, y: str) -> int | None:
    """The last level at which all chains that have values, controls apart, have them."""
    own = result.sel(chain=result["control"] == "").dropna("chain", how="all", subset=[y])
    levels = own["level"].values[own[y].notnull().any("run").all("chain").values]
    return int(levels[-1]) if own.sizes["chain"] and len(levels) else None


class _Cloud(NamedTuple):
    """The arms of one scatter: what changed and the accuracy (arm, run), and their correlation."""

    name: str
    kinds: list[str]
    change: NDArray[Any]
    accuracy: NDArray[Any]
    correlation: float
    p_value: float
    colour: Any


def _clouds(result: xr.Dataset) -> Iterator[_Cloud]:
    """The perturbations of each chain."""
    if "arm" in result.dims:
        change = result["effective_std"].transpose("arm", "seed").values
        accuracy = 100 * (1 - result["test_error"].transpose("arm", "seed").values)
        known = float(result["correlation"]), float(result["p_value"])
        kinds = [str(arm).partition("-")[0] for arm in result["arm"].values]
        yield _Cloud("", kinds, change, accuracy, *known, None)
        return
    shown = drawn_chains(result, "test_error")
    styles = _looks(result, shown) if len(set(result["of"].values.tolist())) > 1 else {}
    found = result["correlation"].notnull()
    chains = result["chain"].values[found.any("level").values].tolist()
    for chain in chains:
        level = result["level"].values[found.sel(chain=chain).values][-1]
        arms = result.sel(level=level, chain=result["of"] == chain).transpose("chain", "run", ...)
        there = arms["effective_std"].notnull() & arms["test_error"].notnull()
        there = there.sel(chain=there.any("run"))
        arms = arms.sel(chain=there["chain"])
        name = f"{_name(result, chain)}: "
        yield _Cloud(
            name,
            [str(control).partition("-")[0] or "none" for control in arms["control"].values],
            arms["effective_std"].where(there).values,
            100 * (1 - arms["test_error"].where(there).values),
            float(result["correlation"].sel(chain=chain, level=level)),
            float(result["p_value"].sel(chain=chain, level=level)),
            styles.get(chain, {}).get("color"),
        )


# Values -------------------------------------------------------------------------------------------


def _interval(values: ArrayLike | xr.DataArray) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean over runs and half of its 95 % interval, nan where fewer than one or two have values.

    Runs are the dimension `run`, or the last axis.
    """
    array = values.transpose(..., "run").values if isinstance(values, xr.DataArray) else values
    array = np.asarray(array, float)
    there = np.isfinite(array)
    num = there.sum(-1)
    middle = np.where(there, array, 0).sum(-1) / np.where(num, num, np.nan)
    squares = (np.where(there, array - middle[..., None], 0) ** 2).sum(-1)
    freedom = np.where(num > 1, num - 1, np.nan)
    return middle, stats.t.ppf(0.975, freedom) * np.sqrt(squares / freedom / num)


def _remaining(axis: Axis, values: ArrayLike) -> None:
    """A logarithmic axis of percentages, from all weights to few."""
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite) & (finite > 0)]
    ax: Any = axis.axes
    which = "x" if axis is ax.xaxis else "y"
    getattr(ax, f"set_{which}scale")("log")
    ends = 112.0, finite.min() / 1.12
    getattr(ax, f"set_{which}lim")(*(ends if which == "x" else ends[::-1]))
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _band(ax: Axes, x: ArrayLike, middle: Any, half: Any, colour: Any) -> None:
    ax.fill_between(x, middle - half, middle + half, color=colour, alpha=0.15, linewidth=0)


def _significance(cloud: _Cloud) -> str:
    if not np.isfinite(cloud.correlation):
        return "no correlation"
    r = f"{cloud.correlation:.2f}".replace("-", "\u2212")
    p = f"= {cloud.p_value:.1g}" if cloud.p_value >= 1e-3 else "< 0.001"
    return f"$r$ = {r}, $p$ {p}"


def _check(result: xr.Dataset, y: str, dims: Sequence[str]) -> None:
    """Refuse what is no report on chains, or has no such values."""
    if y not in result or set(result[y].dims) != set(dims):
        known = [str(name) for name, one in result.data_vars.items() if set(one.dims) == set(dims)]
        raise ValueError(
            f"the result has no {y!r} along {', '.join(dims)}; it has {', '.join(known) or 'none'}"
        )
