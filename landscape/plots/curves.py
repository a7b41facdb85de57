"""Which curves does a result hold through training, and what tells them apart?"""

import itertools
from collections.abc import Sequence
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from numpy.typing import ArrayLike

from landscape.plots.layers import depth_colours

CHOICES = ("run", "labels", "batch_norm")  # of which a result may have several
LABELS = {
    "exact": "exact labels",
    "sampled": "sampled labels",
    "observed": "empirical Fisher",
}
DASHES: tuple[Any, ...] = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))  # dots have other uses
LONGEST = 44  # characters in a row of a legend
DECADES = 6  # that are shown where some values are zero, or next to it

Where = dict[str, Any]
Curve = tuple[Where, str | None]  # the labels of a curve, and what tells it apart


def choices(result: xr.Dataset, y: str, names: Sequence[str] = CHOICES) -> tuple[str, list[Curve]]:
    """The curves of a measure: what they have in common, in words, and each of them.

    Runs, kinds of labels and batch-norm choices: from the dimensions, otherwise from the attributes
    of the result. `names`: other dimensions that have a curve for each of their labels.
    """
    dims = [name for name in names if name in result[y].dims]
    several = [name for name in dims if result.sizes[name] > 1]
    shared = {name: result.attrs[name] for name in CHOICES[1:] if name in result.attrs}
    shared |= {name: result[name].values[0] for name in dims}
    kept = [name for name in (*names, *CHOICES) if name in shared.keys() - {*several}]
    common = [_words(name, shared[name]) for name in dict.fromkeys(kept)]
    labels = [result[name].values.tolist() for name in dims]
    places = [dict(zip(dims, one, strict=True)) for one in itertools.product(*labels)]
    return ", ".join(common), [
        (where, ", ".join(_words(name, where[name]) for name in several) or None)
        for where in places
    ]


def looks(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """A colour for each value of the first choice that differs, dashes for the further ones."""
    differ = [name for name in curves[0][0] if len({where[name] for where, _ in curves}) > 1]
    first = list(dict.fromkeys(where.get(differ[0]) if differ else None for where, _ in curves))
    others = [tuple(where[name] for name in differ[1:]) for where, _ in curves]
    kinds = list(dict.fromkeys(others))
    cycle = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    colours = cycle if len(first) <= len(cycle) else [*map(tuple, depth_colours(len(first)))]
    return [
        {
            "color": colours[first.index(where[differ[0]]) if differ else 0],
            "linestyle": DASHES[kinds.index(other) % len(DASHES)],
        }
        for (where, _), other in zip(curves, others, strict=True)
    ]


def alone(result: xr.Dataset, y: str, dims: Sequence[str]) -> None:
    """Raise `ValueError` if a measure varies along more than these dimensions."""
    if extra := set(result[y].dims) - {*dims}:
        words = ", ".join(sorted(map(str, extra)))
        raise ValueError(f"{y!r} also varies along {words}: select one first")


def value_scale(ax: Axes, values: ArrayLike, which: str = "y") -> None:
    """A logarithmic axis where magnitudes span more than a decade, a linear one where they do not.

    With values that are not positive it is linear about 0: below the power of ten at or below the
    least magnitude, but at most six decades below the largest. A linear axis without a negative
    value begins at 0.
    """
    set_scale, set_limits = (getattr(ax, f"set_{which}{what}") for what in ("scale", "lim"))
    finite = np.asarray(values, float)[np.isfinite(values)]
    sizes = abs(finite[finite != 0])
    if not sizes.size:
        return
    low, high, least, largest = finite.min(), finite.max(), sizes.min(), sizes.max()
    if largest <= 10 * least:
        room = 0.08 * (max(high, 0) - min(low, 0))
        set_limits(low - room if low < 0 else 0, high + room if high > 0 else 0)
    elif low > 0:
        set_scale("log")
        set_limits(low / 1.6, 1.6 * high)
        if high < 100 * low:  # powers of ten alone would be one or two
            axis = getattr(ax, f"{which}axis")
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())
    else:
        linear = 10 ** np.floor(np.log10(max(least, largest / 10**DECADES)) + 1e-9)
        set_scale("symlog", linthresh=linear * (1 + 1e-9), linscale=0.6)
        set_limits(1.6 * low, 1.6 * high)


def step_label(result: xr.Dataset) -> str:
    """The label of an axis of steps, which may be epochs."""
    attrs = result["step"].attrs
    units = attrs.get("units", result.attrs.get("units"))
    return "epoch" if units == "epochs" else str(attrs.get("long_name", "step"))


def legend_above(ax: Axes, common: str) -> None:
    """A legend that stands above the axes, headed by what all curves have in common."""
    if ax.get_legend_handles_labels()[1]:
        width = float(ax.get_position().width)
        _legend(ax, ax, common, width, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    else:
        ax.set_title(common, loc="left", fontsize=mpl.rcParams["legend.fontsize"])


def lift_legend(ax: Axes) -> int:
    """Move a legend from above the axes to the top of the figure, which is broader.

    Gives the number of rows of text above the axes, for the height of the figure.
    """
    figure: Any = ax.get_figure(root=True)
    legend = ax.get_legend()
    if legend is None:
        return len(ax.get_title(loc="left").splitlines())
    common = legend.get_title().get_text()
    legend.remove()
    rows = _legend(figure, ax, common, 1.0, loc="outside upper left")
    return rows + len(common.splitlines())


def _legend(owner: Any, ax: Axes, common: str, share: float, **place: Any) -> int:
    """A legend for axes in a share of the width of their figure; gives the number of its rows."""
    handles, entries = ax.get_legend_handles_labels()
    entries = [fill(entry, LONGEST) for entry in entries]
    longest = max(len(line) for entry in entries for line in entry.splitlines())
    width = 72 * share * owner.get_figure(root=True).get_figwidth()
    columns = min(len(entries), max(1, int(width / (30 + 3.3 * longest))))
    owner.legend(
        handles, entries, ncols=columns, columnspacing=1.2, alignment="left",
        title=common or None, title_fontsize=mpl.rcParams["legend.fontsize"], **place,
    )  # fmt: skip
    lines = max(len(entry.splitlines()) for entry in entries)
    return -(-len(entries) // columns) * lines


def _words(choice: str, value: Any) -> str:
    """What a legend says of a choice."""
    if choice == "batch_norm":
        none = value in (None, "", "none", "null")
        return "no batch norm" if none else f"batch norm: {value}"
    return LABELS.get(str(value), str(value)) if choice == "labels" else str(value)
