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
from torch import Tensor, nn

from landscape.directions import random_directions, shared_names
from landscape.maths import curves
from landscape.states import (
    State,
    Stored,
    check_alike,
    distance,
    inner_products,
    loaded,
    match,
    weight_names,
)

Coefficients = Callable[[NDArray[np.float64]], NDArray[np.float64]]
AXES = ("x", "y", "z")


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
    share = foot / base if base else 0.0
    above = ((c[n].double() - a[n]) - share * (b[n].double() - a[n]) for n in names)
    height = sum(tensor.square().sum().item() for tensor in above) ** 0.5
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


def affine(origin: State, *directions: State) -> Family:
    """The points origin + x d1 + y d2 + z d3 about a state, along one to three directions.

    Directions are states of their own: eigenvectors of the Hessian, gradients, differences of
    checkpoints. Entries that a direction lacks are zero (of tied weights that share their memory,
    one is enough); buffers and statistics of normalisation layers are those of the origin at every
    point, whatever a direction holds for them. Points are in the dtypes of the origin, float32 at
    least; the displaced controls are kept in float64, so that short steps keep their digits.

    Raises `ValueError` for no directions or more than three, and for a direction with names or
    shapes that the origin does not have.
    """
    if not 1 <= len(directions) <= len(AXES):
        raise ValueError(f"affine() takes 1 to {len(AXES)} directions, got {len(directions)}")
    groups, names = shared_names(origin), AXES[: len(directions)]
    origin = {name: _at_least_single(tensor) for name, tensor in origin.items()}
    pairs = zip(names, directions, strict=True)
    displaced = [_displaced(origin, groups, direction, name) for name, direction in pairs]
    return Family((origin, *displaced), curves.barycentric, names)


def random_plane(
    state: State,
    *,
    model: nn.Module | None = None,
    normalise: str | None = "filter",
    num: int = 2,
    seed: int = 0,
) -> Family:
    """The line, plane or space through a state along `num` random directions. Li et al. 2018.

    Coordinates are in multiples of the directions, whose norms are those of the weights as
    `normalise` says: `"filter"`, `"layer"`, `"model"` or None. Give the `model`, which tells
    weights from biases, normalisation layers and buffers; `directions.random_directions` says how,
    and what raises. Directions are nearly orthogonal; `gram` gives their inner products.
    """
    if not 1 <= num <= len(AXES):
        raise ValueError(f"num must be 1 to {len(AXES)}, got {num}")
    state = state if model is None else match(state, model)
    directions = random_directions(state, model=model, normalise=normalise, num=num, seed=seed)
    return affine(state, *directions)


def is_about_origin(family: Family) -> bool:
    """Whether a family was made by `affine` or `random_plane`: a state with directions from it."""
    num = len(family.coordinates)
    return family.coefficients is curves.barycentric and family.coordinates == AXES[:num]


def control_places(family: Family) -> NDArray[np.float64]:
    """Coordinates (m, k) of the m controls of a family that is affine in its k coordinates.

    Raises `ValueError` if it is not.
    """
    origin, slopes = _affine_map(family)
    target = np.eye(len(family.controls)) - origin
    places = np.linalg.lstsq(slopes.T, target.T, rcond=None)[0].T
    return np.asarray(places, dtype=np.float64)


def gram(family: Family) -> NDArray[np.float64]:
    """Inner products (k, k) of the displacements by one unit along each of the k coordinates.

    Over the weights, in float64. The identity if axes are orthonormal and in real distances.
    Raises `ValueError` if the family is not affine in its coordinates.
    """
    first, (_, slopes) = family.controls[0], _affine_map(family)
    return inner_products(family.controls, weight_names(first), origin=first, mix=slopes)


def project(family: Family, state: State | Stored) -> tuple[NDArray[np.float64], float]:
    """Coordinates (k,) of the point of a family that is nearest to a state, and the distance.

    Least squares by the Gram matrix, so axes may be oblique and of any length; Euclidean distances
    over the weights, in float64. Along a direction without length the coordinate is 0.

    Raises `ValueError` if the family is not affine in its coordinates (a line, a plane, a simplex,
    those of `affine` and `random_plane` are), or the state is of another architecture.
    """
    state = loaded(state)
    check_alike([family.controls[0], state])
    origin, slopes = _affine_map(family)
    first, num = family.controls[0], len(slopes)
    mix = np.block([[slopes, np.zeros((num, 1))], [-origin, 1.0]])  # the axes, and what they meet
    between = partial(inner_products, [*family.controls, state], weight_names(first), origin=first)
    found = between(mix=mix)
    products, against = found[:num, :num], found[:num, num]
    lengths = np.sqrt(products.diagonal())
    scale = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    unit = products * np.outer(scale, scale)
    coordinates = scale * np.linalg.lstsq(unit, scale * against, rcond=1e-12)[0]
    square = between(mix=np.append(-coordinates, 1.0)[None] @ mix)
    return coordinates, float(square[0, 0]) ** 0.5


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


def _affine_map(family: Family) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coefficients (m,) at the origin, and what they gain (k, m) along each coordinate."""
    num, far = len(family.coordinates), 2.0**20  # far, for the digits of small slopes
    unit = np.eye(num)
    origin = family.coefficients(np.zeros((1, num)))[0]
    slopes = (family.coefficients(far * unit) - origin) / far
    probes = np.concatenate([-unit, 0.37 * unit, np.full((1, num), 0.71 / num)])
    expected = origin + probes @ slopes
    scale = np.abs(expected).max()
    if not np.allclose(family.coefficients(probes), expected, rtol=0, atol=1e-9 * scale):
        raise ValueError(
            f"this family is curved along ({', '.join(family.coordinates)}), and there is no one "
            "set of axes to project on: use a line, a plane, a simplex, or affine()"
        )
    return origin, slopes


def _displaced(
    origin: State, groups: Sequence[Sequence[str]], direction: State, axis: str
) -> dict[str, Tensor]:
    """The origin moved by a direction; of tied names, one in the direction speaks for all."""
    unknown = [name for name in direction if name not in origin]
    misshapen = [
        f"{name} {tuple(tensor.shape)} for {tuple(origin[name].shape)}"
        for name, tensor in direction.items()
        if name not in unknown and tensor.shape != origin[name].shape
    ]
    if unknown or misshapen:
        lines = [f"  unknown ({len(unknown)}): {', '.join(unknown[:5])}"] * bool(unknown)
        lines += [f"  wrong shape: {'; '.join(misshapen[:5])}"] * bool(misshapen)
        raise ValueError(
            f"the direction of {axis} does not fit the origin:\n" + "\n".join(lines) + "\n"
            "Give a tensor of the same name and shape for each weight that moves."
        )
    moved = dict(origin)
    for names in groups:
        given = next((name for name in names if name in direction), None)
        for name in names if given else ():
            step = direction[name if name in direction else str(given)].detach()
            moved[name] = origin[name].double() + step.to(origin[name].device, torch.float64)
    return moved


def _at_least_single(tensor: Tensor) -> Tensor:
    """Half precision as float32; everything else as it is."""
    tensor = tensor.detach()
    narrow = tensor.is_floating_point() and torch.finfo(tensor.dtype).bits < 32
    return tensor.float() if narrow else tensor


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
