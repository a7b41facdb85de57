"""Where is a point of a family between its control states, and how high are values on a path?

The functions of a family take n points as an (n, k) array of k coordinates and return float64
coefficients (n, m) of m controls. Rows sum to one, and a coordinate that names a control gives
exactly the unit vector of that control.
"""

from collections.abc import Callable
from itertools import pairwise
from math import comb

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import trapezoid

Array = NDArray[np.float64]
Coefficients = Callable[[Array], Array]


def linear(points: Array) -> Array:
    """(1 - t, t): the straight line between two controls."""
    t = points[:, 0]
    return np.stack([1 - t, t], axis=1)


def bernstein(points: Array, *, degree: int) -> Array:
    """Bernstein polynomials C(d, j) (1 - t)^(d - j) t^j: the Bezier curve of degree d.

    Garipov et al. 2018, section 3.1 (degree 2: one bend).
    """
    t = points
    j = np.arange(degree + 1)
    binomials = np.array([comb(degree, i) for i in j], dtype=np.float64)
    return binomials * (1 - t) ** (degree - j) * t**j


def hat(points: Array, *, num: int) -> Array:
    """Hat functions on `num` equidistant knots in [0, 1]: the polygonal chain.

    Garipov et al. 2018, section 3.1. Outside of [0, 1] the first and last segments go on.
    """
    position = points[:, 0] * (num - 1)
    left = np.clip(np.floor(position), 0, num - 2).astype(int)
    rest = position - left
    coefficients = np.zeros((len(points), num))
    rows = np.arange(len(points))
    coefficients[rows, left] = 1 - rest
    coefficients[rows, left + 1] = rest
    return coefficients


def triangle(points: Array, *, base: float, foot: float, height: float) -> Array:
    """Barycentric coordinates of (x, y) in the triangle (0, 0), (base, 0), (foot, height)."""
    x, y = points.T
    c = y / height
    b = (x - c * foot) / base
    return np.stack([1 - b - c, b, c], axis=1)


def barycentric(points: Array) -> Array:
    """(1 - sum of s, s_1, ..., s_k): the simplex of k + 1 controls."""
    return np.concatenate([1 - points.sum(axis=1, keepdims=True), points], axis=1)


def arc_length(coefficients: Coefficients, gram: Array, t: Array, knots: Array) -> Array:
    """Length of a curve from coordinate 0 to each t (n,), negative before 0.

    `gram` (m, m) holds the inner products of the controls, less any origin: coefficients sum to
    one, so their differences along the curve do not see it. Between `knots`, where the curve is
    smooth, the chord sums over 256 and 512 steps are extrapolated (order 4 in the step).
    """
    return np.array([_length(coefficients, gram, float(end), knots) for end in t])


def path_mean(values: Array, length: Array) -> Array:
    """Mean of values (..., n) along a path whose points lie at the arc lengths (n,): trapezoid.

    Garipov et al. 2018, equation 1. A path of length zero has the plain mean.
    """
    total = length[-1] - length[0]
    if total <= 0:
        return values.mean(-1)
    return trapezoid(values, length, axis=-1) / total


def _length(coefficients: Coefficients, gram: Array, end: float, knots: Array) -> float:
    inner = knots[(knots > min(0.0, end)) & (knots < max(0.0, end))]
    breaks = np.unique([0.0, *inner, end])
    coarse, fine = (_chords(coefficients, gram, breaks, num) for num in (256, 512))
    return float(np.copysign((4 * fine - coarse) / 3, end))


def _chords(coefficients: Coefficients, gram: Array, breaks: Array, num: int) -> float:
    total = 0.0
    for low, high in pairwise(breaks):
        steps = np.diff(coefficients(np.linspace(low, high, num + 1)[:, None]), axis=0)
        squares = np.einsum("ni,ij,nj->n", steps, gram, steps)
        total += float(np.sqrt(squares.clip(min=0)).sum())
    return total


def excess(values: Array, t: Array, kind: str) -> Array:
    """What values (..., t) on a path from t = 0 to t = 1 have above the reference of their ends.

    `kind` says which reference: `"chord"`, the straight line between the values at the ends;
    `"mean"`, their mean; `"max"`, the larger one. The largest excess is the barrier.

    Raises `ValueError` for another kind.
    """
    if kind not in ("chord", "mean", "max"):
        raise ValueError(f"kind must be 'chord', 'mean' or 'max', got {kind!r}")
    first, last = values[..., :1], values[..., -1:]
    with np.errstate(invalid="ignore"):  # an infinite end leaves no number
        reference = {
            "chord": (1 - t) * first + t * last,
            "mean": (first + last) / 2,
            "max": np.maximum(first, last),
        }[kind]
        return values - reference
