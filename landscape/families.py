"""Which geometry do the points lie on? Everything here is linear in a few control states.

A `Family` is its control states and the coefficients that mix them: the weights at n points are
C (n, m) @ W (m, P). Lines, Bezier curves, polygonal chains, planes and simplexes differ in C alone,
so one engine evaluates, trains and plots all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from landscape.maths import curves
from landscape.states import State, check_alike, distance, weight_names

Coefficients = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class Family:
    """Points that are linear in their controls.

    `controls`: m states of one architecture. `coefficients`: (n, k) coordinates to (n, m)
    coefficients, picklable if the family is to travel to workers. `coordinates`: the k names of the
    coordinates, which become the dimensions of every result.
    """

    controls: tuple[State, ...]
    coefficients: Coefficients
    coordinates: tuple[str, ...] = ("t",)

    def __post_init__(self) -> None:
        check_alike(self.controls)

    def at(self, *point: float) -> State:
        """The state at one point, in the dtypes of the first control, mixed in float64.

        Entries that are no floating-point numbers are copied from the nearest control.
        """
        if len(point) != len(self.coordinates):
            names = ", ".join(self.coordinates)
            raise ValueError(f"the family has coordinates ({names}), got {len(point)} numbers")
        (weights,) = self.coefficients(np.array([point], dtype=np.float64))
        nearest = self.controls[int(np.argmax(weights))]
        return {
            name: _mix([control[name] for control in self.controls], weights)
            if tensor.is_floating_point()
            else tensor.clone()
            for name, tensor in nearest.items()
        }


def line(a: State, b: State) -> Family:
    """The straight line w(t) = (1 - t) a + t b."""
    return Family((a, b), curves.linear)


def bezier(*controls: State) -> Family:
    """The Bezier curve through the first and the last control, bent by those between.

    Garipov et al. 2018, equation 6. Two controls give the line.
    """
    _at_least(controls, 2, "a Bezier curve")
    return Family(controls, partial(curves.bernstein, degree=len(controls) - 1))


def polychain(*controls: State) -> Family:
    """The polygonal chain through all controls, each segment with the same share of [0, 1].

    Garipov et al. 2018, equation 4.
    """
    _at_least(controls, 2, "a polygonal chain")
    return Family(controls, partial(curves.hat, num=len(controls)))


def plane(a: State, b: State, c: State) -> Family:
    """The plane through three states, in orthonormal axes and real distances.

    The origin is `a`, the x axis points to `b`, and `c` lies at y > 0; `plane_vertices` gives the
    coordinates of the three. Distances are Euclidean over the weights, without the statistics of
    normalisation layers. Raises `ValueError` if the states lie on a line.
    """
    (_, (base, _), (foot, height)) = plane_vertices(a, b, c)
    return Family(
        (a, b, c),
        partial(curves.triangle, base=base, foot=foot, height=height),
        coordinates=("x", "y"),
    )


def plane_vertices(a: State, b: State, c: State) -> NDArray[np.float64]:
    """Coordinates (3, 2) of three states in `plane(a, b, c)`."""
    check_alike([a, b, c])
    base, side = distance(a, b), distance(a, c)
    names = weight_names(a)
    dot = sum(((b[n].double() - a[n]) * (c[n].double() - a[n])).sum().item() for n in names)
    foot = dot / base if base else 0.0
    height = max(side**2 - foot**2, 0.0) ** 0.5
    if height <= 1e-6 * max(base, side) or base == 0:
        raise ValueError(
            f"the three states lie on a line (distances {base:.4g} and {side:.4g} from the first, "
            f"height {height:.2g}): a plane needs three that do not. Use line() for two states."
        )
    return np.array([[0.0, 0.0], [base, 0.0], [foot, height]])


def simplex(*vertices: State) -> Family:
    """The simplex of k + 1 states: coordinates s1..sk are the shares of all but the first.

    Benton et al. 2021, section 3.
    """
    _at_least(vertices, 2, "a simplex")
    names = tuple(f"s{i}" for i in range(1, len(vertices)))
    return Family(vertices, curves.barycentric, coordinates=names)


def grid(family: Family, points: ArrayLike | Sequence[ArrayLike]) -> list[NDArray[np.float64]]:
    """The axes of a grid of points: one array for each coordinate of the family.

    A family with one coordinate takes the array itself. Raises `ValueError` if the number of axes
    is not the number of coordinates, or an axis is empty or not finite.
    """
    many = len(family.coordinates) > 1
    axes = [np.asarray(axis, dtype=np.float64) for axis in (points if many else [points])]  # type: ignore[union-attr]
    if len(axes) != len(family.coordinates):
        names = ", ".join(family.coordinates)
        raise ValueError(f"points must hold one axis for each of ({names}), got {len(axes)}")
    for name, axis in zip(family.coordinates, axes, strict=True):
        if axis.ndim != 1 or not axis.size or not np.isfinite(axis).all():
            raise ValueError(
                f"the points along {name} must be a non-empty 1-D array of finite numbers, "
                f"got shape {axis.shape}"
            )
    return axes


def single_points(family: Family, points: ArrayLike) -> NDArray[np.float64]:
    """Points (n, k) of a family with k coordinates, checked.

    Raises `ValueError` for another shape, no points, or numbers that are not finite.
    """
    array = np.asarray(points, dtype=np.float64)
    num = len(family.coordinates)
    if array.ndim != 2 or array.shape[1] != num or not len(array) or not np.isfinite(array).all():
        raise ValueError(
            f"scattered points must be a non-empty (n, {num}) array of finite numbers, one column "
            f"for each of ({', '.join(family.coordinates)}), got shape {array.shape}"
        )
    return array


def _mix(tensors: Sequence[Tensor], weights: NDArray[np.float64]) -> Tensor:
    """Weighted sum in float64, in the dtype of the first; exact where one weight is 1."""
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for tensor, weight in zip(tensors, weights, strict=True):
        if weight:
            total += float(weight) * tensor.double()
    return total.to(tensors[0].dtype)


def _at_least(states: Sequence[State], num: int, what: str) -> None:
    if len(states) < num:
        raise ValueError(f"{what} needs at least {num} states, got {len(states)}")
