"""Which points of a grid with half the steps are worth an evaluation?

A finer grid is interpolated from the coarse one, except where the eye would see the difference on
a map with log-spaced contours: at maxima and minima, where contours would move, where the values
bend between the points, and around values that are not finite.
"""

import itertools

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

FLOOR = 1e-3  # of the range of values: what lies closer to the lowest is not told apart from it
LEVELS = 12  # contours, log-spaced above the lowest value
SHIFT = 0.1  # of a coarse step: how far interpolation may move a contour
POOR = 0.1  # of the height above the lowest value: how wrong interpolation may be anywhere


def halved(axis: Array) -> Array:
    """The axis (n,) with the midpoints between its values: (2 n - 1,)."""
    return doubled(axis, 1)


def doubled(values: Array, num_axes: int) -> Array:
    """Values on a grid interpolated linearly to half the steps, along the first `num_axes` axes."""
    for axis in range(num_axes):
        moved = np.moveaxis(values, axis, 0)
        fine = np.empty((2 * len(moved) - 1, *moved.shape[1:]), np.result_type(moved, 0.5))
        fine[::2] = moved
        fine[1::2] = (moved[:-1] + moved[1:]) / 2
        values = np.moveaxis(fine, 0, axis)
    return values


def worth_evaluating(values: Array, axes: list[Array]) -> Mask:
    """Which points of the grid with half the steps not to interpolate, from values on the coarse.

    `values` (n1, ..., nk) lie on the grid of `axes`; the mask has the shape (2 n1 - 1, ...). All
    points of a coarse cell, its border included, are worth it if

    - a value at or next to its corners is not finite;
    - a corner is a strict local maximum or minimum among its neighbours;
    - a contour crosses it and would move by more than 0.1 of the cell; there are 12 contours,
      log-spaced from 0.001 of the range above the lowest value to the highest;
    - linear interpolation is off by more than 0.1 of the height above the lowest value (plus
      0.001 of the range).

    Errors of interpolation are estimated from second differences, h^2 / 8 |f''| along each axis;
    an axis of fewer than three points has none, and is evaluated wholly.
    """
    finite = np.isfinite(values)
    if not finite.any():
        return np.ones([2 * n - 1 for n in values.shape], dtype=bool)
    low, high = values[finite].min(), values[finite].max()
    filled = np.where(finite, values, high)
    corners = _corners(filled)
    bottom, top = corners.min(0), corners.max(0)
    error = sum(_error(filled, axis, dim) for dim, axis in enumerate(axes))
    error = np.where(error > 1e-9 * (high - low), error, 0.0)  # the rounding of exact values
    levels = low + (high - low) * np.geomspace(FLOOR, 1, LEVELS)
    crossed = np.searchsorted(levels, bottom) < np.searchsorted(levels, top)
    cells = crossed & (error > SHIFT * (top - bottom))
    cells |= error > POOR * (bottom - low + FLOOR * (high - low))
    cells |= _corners(_extreme(filled) | _near(~finite)).any(0)
    mask = np.zeros([2 * n - 1 for n in values.shape], dtype=bool)
    for shift in itertools.product(range(3), repeat=values.ndim):
        part = [slice(s, s + 2 * n - 1, 2) for s, n in zip(shift, cells.shape, strict=True)]
        mask[tuple(part)] |= cells
    return mask


def _corners(values: NDArray) -> NDArray:
    """The 2^k corners of every cell: (2^k, n1 - 1, ..., nk - 1)."""
    choices = itertools.product((slice(None, -1), slice(1, None)), repeat=values.ndim)
    return np.stack([values[choice] for choice in choices])


def _error(values: Array, axis: Array, dim: int) -> Array:
    """The error of linear interpolation in the middle of every cell, along one axis."""
    moved, steps = np.moveaxis(values, dim, 0), np.diff(axis)
    if len(axis) < 3:
        bends = np.full(moved.shape, np.inf)
    else:
        wide = (-1, *[1] * (values.ndim - 1))
        slopes = np.diff(moved, axis=0) / steps.reshape(wide)
        inner = np.abs(np.diff(slopes, axis=0)) / ((steps[1:] + steps[:-1]) / 2).reshape(wide)
        bends = np.concatenate([inner[:1], inner, inner[-1:]])
    worst = _corners(np.moveaxis(bends, 0, dim)).max(0)
    shape = [-1 if d == dim else 1 for d in range(values.ndim)]
    return worst * (steps**2).reshape(shape) / 8


def _extreme(values: Array) -> Mask:
    """Where a value is above or below all of its neighbours."""
    around = _neighbours(values, np.nan)
    above = np.all((values > around) | np.isnan(around), axis=0)
    below = np.all((values < around) | np.isnan(around), axis=0)
    return above | below


def _near(mask: Mask) -> Mask:
    """The mask and the neighbours of its points."""
    return mask | _neighbours(mask, False).any(0)


def _neighbours(values: NDArray, outside: float | bool) -> NDArray:
    """The 3^k - 1 neighbours of every point, with a value for those outside of the grid."""
    padded = np.pad(values, 1, constant_values=outside)
    shifts = [s for s in itertools.product(range(3), repeat=values.ndim) if set(s) != {1}]
    return np.stack(
        [
            padded[tuple(slice(s, s + n) for s, n in zip(shift, values.shape, strict=True))]
            for shift in shifts
        ]
    )
