"""Where do states, curves and training paths lie in a plane, and how far from it?"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from landscape.plots.parts import axis_label

Array = NDArray[np.float64]
MARKERS = "osD^vP*Xhd"
HALO = (withStroke(linewidth=2.0, foreground="white"),)
PATH = "#D55E00"
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))


@dataclass(frozen=True)
class Label:
    """A text that belongs to a point, and whether it may be left out."""

    x: float
    y: float
    text: str
    required: bool = True


def path(result: xr.Dataset, ax: Axes, *, view: str = "pca") -> Axes:
    """Draw a trajectory alone: in the plane of its principal components, or its t-SNE embedding.

    `view`: `"pca"` (`path_x`, `path_y`) or `"tsne"` (`tsne_x`, `tsne_y`, which has no units and
    whose distances between clusters mean nothing). The circle is the start, the star the end; a few
    steps are written.

    Raises `ValueError` for another view, or one that the result does not have.
    """
    annotate(ax, trail(result, ax, view))
    return ax


def trail(result: xr.Dataset, ax: Axes, view: str) -> list[Label]:
    """Draw what `path` does without its labels, which are given back."""
    if view not in ("pca", "tsne"):
        raise ValueError(f"view must be 'pca' or 'tsne', got {view!r}")
    name = {"pca": "path", "tsne": "tsne"}[view]
    if f"{name}_x" not in result:
        raise ValueError(f"the result has no {name}_x and {name}_y for the view {view!r}")
    ax.margins(0.12)
    if view == "tsne":
        ax.set(xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[])
    else:
        ax.set(xlabel=axis_label(result, "x"), ylabel=axis_label(result, "y"))
        ax.set_aspect("equal", "datalim")
    return _path(result, ax, name)


def overlays(result: xr.Dataset, ax: Axes) -> list[Label]:
    """Draw what a result has of a curve, marks and a path on a plane, and give their labels.

    States that lie in the plane are full markers, others are open ones with their distance from it
    behind the name. The dots of a path grow with their distance from the plane; the entries of the
    legend say how far curve and path are from it. The limits grow to show all of it.
    """
    names = [name for name in ("curve", "path", "mark") if f"{name}_x" in result]
    everything = np.concatenate(
        [np.transpose([ax.get_xlim(), ax.get_ylim()]), *(_points(result, name) for name in names)]
    )
    (left, low), (right, high) = np.nanmin(everything, axis=0), np.nanmax(everything, axis=0)
    ax.set(xlim=(left, right), ylim=(low, high))
    labels = []
    if "curve" in names:
        text = f"curve{_off(result, 'curve')}"
        points = _points(result, "curve")
        ax.plot(*points.T, color="black", path_effects=HALO, label=text, zorder=3)
    if "mark" in names:
        labels += _marks(result, ax, 1e-3 * float(np.hypot(right - left, high - low)))
    if "path" in names:
        labels += _path(result, ax, "path")
    return labels


def annotate(ax: Axes, labels: Sequence[Label]) -> None:
    """Write labels beside their points, where they hide least; those not required only if free.

    To be called when all else in the figure is in its place.
    """
    if not labels:
        return
    figure: Any = ax.get_figure(root=True)
    figure.draw_without_rendering()  # so that the layout is known
    points = figure.dpi / 72
    frame = ax.get_window_extent()
    busy = [_dense(ax.transData.transform(line.get_xydata())) for line in ax.get_lines()]
    crowd, placed = np.concatenate(busy), list[Bbox]()
    for label in labels:
        text = ax.annotate(
            label.text, (label.x, label.y), xytext=(0, 0), textcoords="offset points",
            fontsize="small", path_effects=HALO, zorder=6, annotation_clip=False,
        )  # fmt: skip
        anchor = ax.transData.transform((label.x, label.y))
        choices = []
        size = text.get_window_extent().size
        for radius, side in itertools.product((4.0, 9.0, 16.0), np.array(SIDES)):
            corner = anchor + points * radius * side - size * (1 - side) / 2
            box = Bbox([corner, corner + size])
            hides = 20 * sum(map(box.overlaps, placed)) + box.count_contains(crowd)
            leaves = 20 * sum(not frame.contains(*corner) for corner in box.corners())
            choices.append((hides + leaves + radius / 100, tuple((corner - anchor) / points), box))
        cost, offset, box = min(choices, key=lambda choice: choice[0])
        if cost >= 1 and not label.required:
            text.remove()
            continue
        text.set_position(offset)
        placed.append(box)


def _points(result: xr.Dataset, name: str) -> Array:
    """Positions (n, 2); those of a path in the order of its steps."""
    if name in ("path", "tsne"):
        result = result.sortby("step")
    return np.stack([result[f"{name}_x"].values, result[f"{name}_y"].values], axis=1)


def _off(result: xr.Dataset, name: str, words: str = "") -> str:
    """How far a curve or a path is from the plane, in words; nothing if it lies in it."""
    if f"{name}_distance" not in result:
        return ""
    distance = float(result[f"{name}_distance"].max())
    extent = float(np.ptp(_points(result, name), axis=0).max())
    return f"{words} (up to {distance:.2g} off the plane)" if distance > 1e-3 * extent else ""


def _marks(result: xr.Dataset, ax: Axes, negligible: float) -> list[Label]:
    """Markers of single states, full where the distance from the plane is negligible."""
    labels = []
    for number, (x, y) in enumerate(_points(result, "mark")):
        name = str(result["mark"].values[number])
        off = float(result["mark_distance"][number]) if "mark_distance" in result else 0.0
        outside = off > negligible
        ax.plot(
            x, y, MARKERS[number % len(MARKERS)], color="black", mec="black", mew=0.8,
            mfc="white" if outside else "black", path_effects=HALO, clip_on=False, zorder=5,
        )  # fmt: skip
        labels.append(Label(x, y, f"{name} ({off:.2g} off)" if outside else name))
    return labels


def _path(result: xr.Dataset, ax: Axes, name: str) -> list[Label]:
    """A path through its steps; a few of these get a label, evenly along its length."""
    result = result.sortby("step")
    steps, points = result["step"].values, _points(result, name)
    text = f"training path{_off(result, name, ', larger dots farther')}"
    ax.plot(*points.T, color=PATH, linewidth=1.0, path_effects=HALO, label=text, zorder=3)
    area = np.full(len(points), 5.0)
    if f"{name}_distance" in result:
        distance = result[f"{name}_distance"].values
        area += 20.0 * distance / (distance.max() or 1.0)
    ax.scatter(
        points[:, 0], points[:, 1], area, color=PATH, edgecolors="white", linewidths=0.4, zorder=4
    )
    ends: list[tuple[int, dict[str, Any]]] = [
        (0, {"marker": "o", "mfc": "white", "mec": PATH, "markersize": 5}),
        (-1, {"marker": "*", "mfc": PATH, "mec": "white", "markersize": 9}),
    ]
    for index, style in ends:
        ax.plot(*points[index], color=PATH, mew=0.8, clip_on=False, zorder=4, **style)
    length = np.append(0, np.cumsum(np.hypot(*np.diff(points, axis=0).T)))
    few = np.searchsorted(length, np.linspace(0, length[-1], 6)[1:-1])
    between = sorted({*few.tolist()} - {0, len(points) - 1})
    texts = {0: f"step {steps[0]}", len(steps) - 1: f"step {steps[-1]}"}
    return [
        Label(float(points[i, 0]), float(points[i, 1]), texts.get(i, str(steps[i])), i in texts)
        for i in [*texts, *between]
    ]


def _dense(points: Array) -> Array:
    """Points along a broken line every few pixels, so that no label lies across it."""
    parts = [points]
    for a, b in itertools.pairwise(points):
        between = np.linspace(0, 1, int(np.hypot(*(b - a)) // 4) + 2)[1:-1, None]
        parts.append(a + between * (b - a))
    return np.concatenate(parts)
