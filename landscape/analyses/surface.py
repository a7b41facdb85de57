"""What does the loss look like around a solution, or between three of them?

`surface` is three pieces, so that a long one can be evaluated row by row: `surface_plan` lays a
grid on a family, `surface_rows` evaluates some of its rows, `finished` adds what is drawn on top.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from landscape.analyses.refined import (
    check_previous,
    fingerprint,
    interpolated,
    refined_rows,
)
from landscape.evaluation import Prepared, Tasks, evaluate
from landscape.examples import num_examples
from landscape.families import (
    AXES,
    Family,
    control_places,
    gram,
    grid,
    is_about_origin,
    plane,
    project,
    random_plane,
)
from landscape.maths.refinement import halved
from landscape.states import State, Stored, check_alike, loaded
from landscape.task import Task, map_tensors, random_state_kept, tasks_of

Array = NDArray[np.float64]
What = Family | State | Stored | Sequence[State | Stored]
CURVE_POINTS = 61


@dataclass(frozen=True, eq=False)
class SurfacePlan:
    """A grid on a family: its axes, and what is drawn on top. Made by `surface_plan`.

    `previous` is a coarser surface that this one refines; `attrs` are kept in the result.
    """

    family: Family
    axes: tuple[Array, ...]
    marks: Mapping[str, State | Stored]
    curve: Family | None
    previous: xr.Dataset | None
    attrs: Mapping[str, Any]


def surface(
    task: Tasks,
    what: What,
    *,
    x: ArrayLike | None = None,
    y: ArrayLike | None = None,
    z: ArrayLike | None = None,
    points: int | Sequence[int] = 21,
    margin: float = 0.2,
    extent: float = 1.0,
    normalise: str | None = "filter",
    seed: int = 0,
    marks: Mapping[str, State | Stored] | None = None,
    curve: Family | None = None,
    previous: xr.Dataset | None = None,
    examples: int | None = None,
    **options: Any,
) -> xr.Dataset:
    """Evaluate tasks on a grid of one to three coordinates.

    Main arguments are those of `surface_plan`: `what` is a state (random directions about it),
    three states (the plane through them) or a family. `examples`: a preview on so many examples,
    evenly spread over the data, whose `loss_stderr` says how well they stand for all. Further
    `options` are those of `evaluate`.

    Returns the variables of `evaluate` over the coordinates, which have the units "distance" where
    axes are orthonormal; `gram (axis, other_axis)`, the inner products of the displacements by one
    unit along each axis; `mark_x`, `mark_y` and `mark_distance (mark)`, the nearest points to the
    marks and how far these are from the plane (what is far from it does not have the loss that is
    drawn there); and the same for 61 points of the curve along `curve_t`. With `previous`,
    `evaluated` is 0 where values are interpolated.

    A slice through a few directions is not the landscape; surfaces of two networks can be compared
    only with equal normalisation and extent (Li et al. 2018, section 4).
    """
    tasks = task if examples is None else few_examples(task, examples)
    model = (tasks.tasks if isinstance(tasks, Prepared) else tasks_of(tasks))[0].model
    plan = surface_plan(
        what, model=model, x=x, y=y, z=z, points=points, margin=margin, extent=extent,
        normalise=normalise, seed=seed, marks=marks, curve=curve, previous=previous,
    )  # fmt: skip
    result = finished(surface_rows(tasks, plan, **options), plan)
    return result.assign_attrs(examples=0 if examples is None else examples)


def surface_plan(
    what: What,
    *,
    model: nn.Module | None = None,
    x: ArrayLike | None = None,
    y: ArrayLike | None = None,
    z: ArrayLike | None = None,
    points: int | Sequence[int] = 21,
    margin: float = 0.2,
    extent: float = 1.0,
    normalise: str | None = "filter",
    seed: int = 0,
    marks: Mapping[str, State | Stored] | None = None,
    curve: Family | None = None,
    previous: xr.Dataset | None = None,
) -> SurfacePlan:
    """The family and the grid that `what` and the other arguments mean.

    `what` is one of

    - a state: random directions about it (`random_plane`, with `model`, `normalise` and `seed`),
      from -`extent` to `extent`: two, or one for each number in `points`, or three if there is `z`;
    - three states: the plane through them in real distances, covering all three with a `margin`
      (a share of the largest width, on all sides); the three are marked, by the names that they
      have in `marks`, else w1, w2, w3;
    - a family of one to three coordinates: those of `affine` and `random_plane` from -`extent` to
      `extent`, others covering their controls with the margin, curves from 0 to 1.

    `x`, `y`, `z` are the values of the first, second and third coordinate instead. `points`: their
    number, or one number for each coordinate. `marks`: further states to be projected. `curve`: a
    family with one coordinate, to be projected from 0 to 1. `previous`: a surface of the same
    family to be refined; the grid is its grid with half the steps.

    Raises `ValueError` for another number of states or coordinates, collinear states, a grid about
    a state that does not contain the state itself (an even number of points, or axes without 0),
    an `extent` that is not positive, marks of one name, a previous surface that is unfinished or of
    another family, and marks or a curve that are of another architecture or that a curved family
    has no axes for.
    """
    if not extent > 0:
        raise ValueError(f"extent must be positive, got {extent}")
    given = (x, y, z)
    num = _num_directions(points, z, previous)
    about = {"model": model, "normalise": normalise, "seed": seed, "num": num}
    family, marks, attrs = _meant(what, dict(marks or {}), about)
    dims = family.coordinates
    names = ", ".join(dims)
    if len(dims) > len(given) or any(axis is not None for axis in given[len(dims) :]):
        raise ValueError(
            "a surface has one to three coordinates, for which x, y and z stand in this order; "
            f"this family has {len(dims)} ({names})"
        )
    if curve is not None and len(curve.coordinates) != 1:
        raise ValueError(f"a curve has one coordinate, got ({', '.join(curve.coordinates)})")
    _check_on_top(family, marks, curve)
    sizes = [points] * len(dims) if isinstance(points, int) else list(points)
    if len(sizes) != len(dims):
        raise ValueError(f"points must be one number, or one for each of ({names}); got {points}")
    attrs["controls"] = fingerprint(family)
    if previous is None:
        found = zip(given, _default_axes(family, given, sizes, margin, extent), strict=False)
        axes = [default if axis is None else np.asarray(axis, float) for axis, default in found]
    elif any(axis is not None for axis in given):
        raise ValueError("the grid comes from previous=: leave out x, y and z")
    else:
        check_previous(previous, family, attrs["controls"])
        axes = [halved(previous[name].values) for name in dims]
    axes = grid(family, axes if len(dims) > 1 else axes[0])
    if is_about_origin(family):
        axes = [_with_exact_zero(axis) for axis in axes]
    lacking = [name for name, axis in zip(dims, axes, strict=True) if 0.0 not in axis]
    if lacking and "normalise" in attrs:
        raise ValueError(
            f"the values of {', '.join(lacking)} must contain 0: that point is the state itself, "
            "whose loss the grid should show"
        )
    return SurfacePlan(family, tuple(axes), marks, curve, previous, attrs)


def surface_rows(
    task: Tasks, plan: SurfacePlan, values: ArrayLike | None = None, **options: Any
) -> xr.Dataset:
    """Evaluate the rows of a plan at some values of the first coordinate; all by default.

    `options` are those of `evaluate`. Rows are independent of each other, and put together they
    make what `finished` takes. Where a plan refines a previous surface, values of that one are
    taken over if they come from the same number of examples, and points that are to be
    interpolated are NaN, with `evaluated` 0.

    Raises `ValueError` for values that a refining plan does not have, and a previous surface of
    other tasks or another treatment of batch norm.
    """
    first = plan.axes[0] if values is None else np.asarray(values, dtype=np.float64)
    if plan.previous is not None:
        return refined_rows(task, plan.family, plan.axes, plan.previous, first, options)
    axes = [first, *plan.axes[1:]]
    return evaluate(task, plan.family, axes if len(axes) > 1 else first, **options)


def finished(result: xr.Dataset, plan: SurfacePlan) -> xr.Dataset:
    """The rows of a plan as a surface: what is missing interpolated, marks and curve projected."""
    dims = plan.family.coordinates
    if plan.previous is not None:
        result = interpolated(result, dims, plan.previous)
    variables: dict[str, Any] = {}
    coords: dict[str, Any] = {}
    units = ""
    with suppress(ValueError):  # a curved family has no axes
        products = gram(plan.family)
        words = {"long_name": "inner products of the displacements by one unit along each axis"}
        variables["gram"] = (("axis", "other_axis"), products, words)
        coords |= {"axis": list(dims), "other_axis": list(dims)}
        units = "distance" if np.allclose(products, np.eye(len(dims)), rtol=0, atol=1e-6) else ""
    if plan.marks:
        coords["mark"] = list(plan.marks)
        variables |= _projected("mark", "mark", plan.family, plan.marks.values())
    if plan.curve is not None:
        coords["curve_t"] = np.linspace(0, 1, CURVE_POINTS)
        states = (plan.curve.at(t) for t in coords["curve_t"])
        variables |= _projected("curve", "curve_t", plan.family, states)
    result = result.assign(variables).assign_coords(coords)
    for dim in dims:
        result[dim].attrs |= {"long_name": dim, "units": units}
    for name, variable in result.variables.items():
        variable.attrs.setdefault("long_name", str(name).replace("_", " "))
    shape = " x ".join(str(result.sizes[name]) for name in dims)
    return result.assign_attrs(
        {**plan.attrs, "title": f"Surface of {shape} points", "analysis": "surface"}
    )


def few_examples(task: Tasks, num: int) -> tuple[Task, ...]:
    """The tasks with `num` of their examples, evenly spread over the data; all if they have fewer.

    The data may be any re-iterable batches; what is picked is kept in memory. Batch norm is
    recalibrated on these examples too. Raises `ValueError` for fewer than two.
    """
    if isinstance(task, Prepared):
        raise TypeError("examples= takes tasks as they are: prepare few_examples(tasks, num)")
    if num < 2:
        raise ValueError(f"a preview needs at least 2 examples for a standard error, got {num}")
    return tuple(replace(one, data=_spread(one.data, num)) for one in tasks_of(task))


# --- the grid -------------------------------------------------------------------------------------


def covering(places: Array, sizes: Sequence[int], margin: float) -> list[Array]:
    """Axes of so many points that cover places (n, k), with the same margin on all sides.

    The margin is a share of the largest width. Raises `ValueError` if it is negative.
    """
    if margin < 0:
        raise ValueError(f"margin must not be negative, got {margin}")
    more = margin * np.ptp(places, axis=0).max()
    ends = np.stack([places.min(0) - more, places.max(0) + more], axis=1)
    return [np.linspace(low, high, size) for (low, high), size in zip(ends, sizes, strict=True)]


def _num_directions(
    points: int | Sequence[int], z: ArrayLike | None, previous: xr.Dataset | None
) -> int:
    if previous is not None:
        return sum(name in previous.dims for name in AXES)
    if not isinstance(points, int):
        return len(points)
    return 2 if z is None else 3


def _meant(
    what: What, marks: dict[str, State | Stored], about: Mapping[str, Any]
) -> tuple[Family, dict[str, State | Stored], dict[str, Any]]:
    """The family that is meant, all marks (three states of a plane first), and attributes."""
    if isinstance(what, Family):
        return what, marks, {"kind": "family"}
    if isinstance(what, Mapping) or hasattr(what, "load"):
        kind = {"kind": "random directions", "normalise": about["normalise"] or "none"}
        return random_plane(loaded(what), **about), marks, kind | {"seed": about["seed"]}
    states = list(what)
    if len(states) != 3:
        raise ValueError(
            f"a plane goes through three states, got {len(states)}; interpolate() takes two, "
            "simplex() any number"
        )
    corners = [loaded(state) for state in states]
    family = plane(*corners)
    names = {id(state): name for name, state in marks.items()}
    named = [names.get(id(state), f"w{i}") for i, state in enumerate(states, start=1)]
    others = {name: state for name, state in marks.items() if id(state) not in map(id, states)}
    if taken := [name for name in (*named, *others) if [*named, *others].count(name) > 1]:
        raise ValueError(
            f"the name {taken[0]!r} of a mark is that of one of the three states: choose another"
        )
    every = dict(zip(named, corners, strict=True)) | others
    return family, every, {"kind": "plane through three states"}


def _default_axes(
    family: Family,
    given: Sequence[ArrayLike | None],
    sizes: Sequence[int],
    margin: float,
    extent: float,
) -> list[Array]:
    """An axis for each coordinate, of use for those that are not given."""
    if is_about_origin(family):
        even = [n for axis, n in zip(given, sizes, strict=False) if axis is None and n % 2 == 0]
        if even:
            raise ValueError(
                f"points must be odd, got {even[0]}: the middle one is the state itself, whose "
                f"loss the grid should show; take {even[0] + 1}, or give the values of each axis"
            )
        halves = [np.linspace(0, extent, size // 2 + 1) for size in sizes]
        return [np.concatenate([-half[:0:-1], half]) for half in halves]
    try:
        places = control_places(family)
    except ValueError:
        places = np.array([[0.0], [1.0]])
        margin = 0.0
    return covering(places, sizes, margin)


def _with_exact_zero(axis: Array) -> Array:
    """The axis with 0 where rounding alone keeps it from that, as in np.arange(-1, 1.1, 0.1)."""
    return np.where(np.abs(axis) > 1e-12 * np.abs(axis).max(), axis, 0.0)


# --- what is drawn on top, and previews -----------------------------------------------------------


def _check_on_top(
    family: Family, marks: Mapping[str, State | Stored], curve: Family | None
) -> None:
    """Raise unless marks and curve can be projected, before anything is evaluated."""
    if not marks and curve is None:
        return
    control_places(family)  # which a curved family does not have
    states = {f"the mark {name!r}": mark for name, mark in marks.items()}
    states |= {} if curve is None else {"the curve": curve.controls[0]}
    for name, state in states.items():
        try:
            check_alike([family.controls[0], loaded(state)])
        except ValueError as error:
            raise ValueError(f"the surface (0) and {name} (1) differ: {error}") from error


def _projected(
    prefix: str, dim: str, family: Family, states: Iterable[State | Stored]
) -> dict[str, Any]:
    """The nearest points to some states, and their distances from the surface."""
    places = [project(family, state) for state in states]
    columns = np.array([place for place, _ in places]).T
    named = zip(family.coordinates, columns, strict=True)
    variables: dict[str, Any] = {f"{prefix}_{name}": (dim, column) for name, column in named}
    words = {"long_name": "distance from the surface", "units": "distance"}
    variables[f"{prefix}_distance"] = (dim, [far for _, far in places], words)
    return variables


def _spread(data: Any, num: int) -> Any:
    """Some of the examples of any data, evenly spread."""
    whole = is_dataclass(data) and all(hasattr(data, name) for name in ("inputs", "targets"))
    with random_state_kept():
        sizes = map(num_examples, [(data.inputs, data.targets)] if whole else data)
        total = sum(sizes)
        if num >= total:
            return data
        chosen = torch.linspace(0, total - 1, num, dtype=torch.float64).round().long()
        if whole:
            parts = {name: _picked(getattr(data, name), chosen) for name in ("inputs", "targets")}
            return replace(data, **parts)
        batches, start = [], 0
        for batch in data:
            size = num_examples(batch)
            rows = chosen[(chosen >= start) & (chosen < start + size)] - start
            if len(rows):
                batches.append(tuple(_picked(tree, rows) for tree in batch))
            start += size
        return batches


def _picked(tree: Any, rows: Tensor) -> Any:
    return map_tensors(lambda tensor: tensor[rows], tree)
