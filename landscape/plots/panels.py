"""How are the panels of a figure arranged? Measures by splits, with scales that can be compared."""

from collections.abc import Callable, Sequence
from textwrap import fill
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from landscape.plots.levels import colour_bar, levels_for
from landscape.plots.lines import lines
from landscape.plots.matrices import fit_texts, heatmap, matrix, threshold_bar
from landscape.plots.overlays import annotate, overlays, trail
from landscape.plots.parts import in_distances, label, splits_of
from landscape.plots.steps import instability
from landscape.plots.surfaces import contours, surface3d

Draw = Callable[[xr.Dataset, list[str], float], Figure]
Column = tuple[str | None, xr.Dataset, str | None]  # title, result, split


def along(result: xr.Dataset, names: list[str], width: float, *, x: str) -> Figure:
    """Lines along one coordinate, a panel for each measure; chords where both ends are there."""
    fig, panels = _lined_up(len(names), width)
    for ax, measure in zip(panels, names, strict=True):
        lines(result, ax, y=measure, x=x)
        if x == "t" and {0.0, 1.0} <= set(result["t"].values.tolist()):
            _chords(result, ax, measure)
        if len(ax.get_ylabel()) > 24:  # longer than the panel is high
            ax.set_title(fill(ax.get_ylabel(), 26))
            ax.set_ylabel("")
    titles = panels[0].get_gridspec().nrows * max(_num_lines(ax.get_title()) for ax in panels)
    more = 0.17 * legend_below(fig, panels) + 0.13 * titles
    fig.set_figheight(fig.get_figheight() + more)
    return fig


def instabilities(result: xr.Dataset, names: list[str], width: float) -> Figure:
    """Instability against the branch step, a panel for each measure, its legend above it."""
    fig, panels = _lined_up(len(names), width)
    entries = len(splits_of(result, f"{names[0]}_instability"))
    more = 0.17 * entries * panels[0].get_gridspec().nrows
    fig.set_figheight(fig.get_figheight() + more)
    for ax, measure in zip(panels, names, strict=True):
        instability(result, ax, y=measure)
        if ax.get_xscale() == "linear":
            ax.locator_params(axis="x", nbins=3)  # room for the digits of many steps
        if ax.get_legend_handles_labels()[1]:
            ax.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
    return fig


def trajectory(result: xr.Dataset, names: list[str], width: float, *, view: str) -> Figure:
    """A training path without a surface."""
    fig = Figure(figsize=(width, 0.7 * width))
    ax = fig.subplots()
    labels = trail(result, ax, view)
    legend_below(fig, [ax])
    annotate(ax, labels)
    return fig


def planes(result: xr.Dataset, names: list[str], width: float) -> Figure:
    """Contours over a plane, a column for each split."""
    columns = [(split, result, split) for split in splits_of(result, names[0])]
    return _contours(result, names, width, columns, 1.4)


def slices(result: xr.Dataset, names: list[str], width: float) -> Figure:
    """Contours over the first, the middle and the last plane of a volume, of its first split."""
    z = np.sort(result["z"].values)
    split = splits_of(result, names[0])[0]
    chosen = dict.fromkeys(z[[0, len(z) // 2, -1]].tolist())
    columns: list[Column] = [(f"z = {at:.3g}", result.sel(z=at), split) for at in chosen]
    return _contours(result, names, width, columns, 0.5)


def surfaces(result: xr.Dataset, names: list[str], width: float) -> Figure:
    """Surfaces in three dimensions, as many in a row as can be read, each with its colour bar."""
    shown = [(name, split) for name in names for split in splits_of(result, name)]
    columns = min(len(shown), max(1, int(width / 2.2)))
    rows = -(-len(shown) // columns)
    fig = Figure(figsize=(width, 0.8 * width / columns * rows))
    fig.set_layout_engine("none")  # which cannot measure these axes
    spaces = fig.add_gridspec(
        rows, 2 * columns, width_ratios=[1, 0.04] * columns, left=0.0, right=1 - 0.4 / width,
        bottom=0.07, top=1 - 0.2 / fig.get_figheight(), wspace=0.2, hspace=0.3,
    )  # fmt: skip
    for number, (measure, split) in enumerate(shown):
        row, column = divmod(number, columns)
        ax = fig.add_subplot(spaces[row, 2 * column], projection="3d", computed_zorder=False)
        levels = levels_for([result], y=measure)
        surface3d(result, ax, y=measure, split=split, levels=levels, bar=False)
        ax.set(zlabel="", title=_named(split, label(result, measure)))
        place = fig.add_subplot(spaces[row, 2 * column + 1])
        frame = place.get_position()
        place.set_position(
            (frame.x0, frame.y0 + 0.2 * frame.height, frame.width, 0.6 * frame.height)
        )
        colour_bar(ax, levels, "", cax=place)
    return fig


def heatmaps(result: xr.Dataset, names: list[str], width: float) -> Figure:
    """What each layer does along t, a column for each split; as high as the layers need."""
    columns = splits_of(result, names[0])
    height = max(0.13 * result.sizes["layer"], 0.9) + 0.6
    fig = Figure(figsize=(width, height * len(names)))
    panels = fig.subplots(len(names), len(columns), squeeze=False)
    for row, measure in zip(panels, names, strict=True):
        levels = levels_for([result], y=measure)
        for ax, split in zip(row, columns, strict=True):
            heatmap(result, ax, y=measure, split=split, levels=levels, bar=False)
            ax.label_outer()
            ax.set_title((split or "") if ax in panels[0] else "")
        colour_bar(list(row), levels, label(result, measure))
    legend_below(fig, panels.ravel().tolist())
    return fig


def matrices(result: xr.Dataset, names: list[str], width: float) -> Figure:
    """Barriers between all pairs of runs, a column for each split."""
    columns = splits_of(result, names[0])
    least = 0.12 * result.sizes["run"]
    fig, panels = grid_of(len(names), len(columns), width, 1.0, least)
    for row, measure in zip(panels, names, strict=True):
        top = float(result[measure].where(np.isfinite(result[measure]), 0.0).max())
        for ax, split in zip(row, columns, strict=True):
            matrix(result, ax, y=measure, split=split, top=top, bar=False)
            ax.set_title(split or "")
            if len(columns) > 1:
                ax.label_outer()
        threshold_bar(result, list(row), row[0].collections[0], measure)
    legend_below(fig, panels.ravel().tolist())
    for ax in panels.ravel():
        fit_texts(ax, result.sizes["run"])
    return fig


def _contours(
    result: xr.Dataset, names: list[str], width: float, columns: Sequence[Column], least: float
) -> Figure:
    """Contours in rows of measures that share their levels and a colour bar."""
    aspect = np.ptp(result["y"].values) / np.ptp(result["x"].values) if in_distances(result) else 1
    fig, panels = grid_of(len(names), len(columns), width, float(aspect), least)
    labels = []
    for row, measure in zip(panels, names, strict=True):
        levels = levels_for([one[measure].values for _, one, _ in columns])
        for ax, (title, one, split) in zip(row, columns, strict=True):
            contours(one, ax, y=measure, split=split, levels=levels, bar=False, on_top=False)
            labels.append((ax, overlays(one, ax) if "z" not in result.dims else []))
            ax.set_title(title or "")
            if len(columns) > 1:
                ax.label_outer()
        colour_bar(list(row), levels, label(result, measure))
    legend_below(fig, panels.ravel().tolist())
    for ax, texts in labels:
        annotate(ax, texts)
    return fig


def _lined_up(num: int, width: float) -> tuple[Figure, Any]:
    """Panels side by side, in as many rows as it takes for each to be 1.6 inches wide."""
    down = -(-num // max(1, int(width / 1.6)))
    across = -(-num // down)
    fig = Figure(figsize=(width, down * (0.62 * width / across + 0.35)))
    panels = fig.subplots(down, across, squeeze=False).ravel()
    for extra in panels[num:]:
        extra.remove()
    return fig, panels[:num]


def grid_of(
    rows: int, columns: int, width: float, aspect: float, least: float
) -> tuple[Figure, Any]:
    """Panels (rows, columns) of an aspect, height over width, with room for labels and bars.

    Where a panel would be narrower than `least` inches, all are below one another. A single column
    is broken into as many as have room for their colour bars.
    """
    if columns == 1:
        across = min(rows, max(1, int(width / 2.5)))
        size = width / across - 1.1
    else:
        across = columns if (width - 1.0) / columns - 0.1 >= least else 1
        size = (width - 1.0) / across - 0.1
    down = -(-rows * columns // across)
    height = down * (size * float(np.clip(aspect, 0.2, 2.0)) + 0.25) + 0.5
    fig = Figure(figsize=(width, height), layout="compressed")
    panels = fig.subplots(down, across, squeeze=False).ravel()
    for extra in panels[rows * columns :]:
        extra.remove()
    return fig, panels[: rows * columns].reshape(rows, columns)


def _num_lines(text: str) -> int:
    return len(text.splitlines())


def _named(split: str | None, measure: str) -> str:
    return f"{split} {measure}" if split else measure


def legend_below(fig: Figure, panels: Sequence[Axes]) -> int:
    """One legend below all panels, for what they have in common and what is not finite in any.

    Gives the number of its rows.
    """
    entries: dict[str, Any] = {}
    for ax in panels:
        for handle, text in zip(*ax.get_legend_handles_labels(), strict=True):
            hatched = Patch(facecolor="white", edgecolor="0.4", hatch="xxxxx", linewidth=0)
            entries[text] = hatched if text == "not finite" else handle
    if not entries:
        return 0
    room = 72 * fig.get_figwidth() / (30 + 3.5 * max(map(len, entries)))  # in columns
    columns = min(len(entries), max(1, int(room)))
    fig.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns)
    return -(-len(entries) // columns)


def _chords(result: xr.Dataset, ax: Axes, measure: str) -> None:
    """Dotted straight lines between the two ends: what a path without a barrier stays below."""
    ends = result[measure].sel(t=[0.0, 1.0]).transpose(..., "t").values.reshape(-1, 2)
    for chord in ends:
        ax.plot([0, 1], chord, ":", color="0.6", linewidth=0.8, zorder=0)
