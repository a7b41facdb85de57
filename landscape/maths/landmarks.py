"""When does a learning curve fall fastest, when is it low enough, and when is it over?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Landmarks:
    """Steps at which something happens to a curve that is meant to fall; NaN where it never does.

    `reached`: the first from which on all values are at or below `threshold`. `steepest`: the first
    of the interval between two neighbours in which the curve falls fastest per step. `minimum`: the
    first with the least value. `plateau`: the first from which on all values are within a tolerance
    of the last one.
    """

    threshold: float
    reached: float
    steepest: float
    minimum: float
    plateau: float


def landmarks(
    steps: ArrayLike, values: ArrayLike, *, threshold: float | None = None, tolerance: float = 0.05
) -> Landmarks:
    """The landmarks of a curve of values (n,) at steps (n,).

    `threshold`: by default half of the first value. `tolerance`: of the plateau, as a share of the
    difference between the largest and the least value. Values that are not finite do not count; of
    what happens between two steps nothing is known.

    Raises `ValueError` for arrays that do not fit, or a negative tolerance.
    """
    x, y = np.asarray(steps, float), np.asarray(values, float)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"steps and values must have one shape (n,), got {x.shape}, {y.shape}")
    if tolerance < 0:
        raise ValueError(f"tolerance must be at least 0, got {tolerance}")
    kept = np.flatnonzero(np.isfinite(y))
    kept = kept[np.argsort(x[kept], kind="stable")]
    x, y = x[kept], y[kept]
    if not len(y):
        return Landmarks(np.nan if threshold is None else threshold, *[np.nan] * 4)
    threshold = float(y[0]) / 2 if threshold is None else threshold
    slopes = np.diff(y) / np.diff(x)
    falls = slopes.size > 0 and slopes.min() < 0
    return Landmarks(
        threshold,
        _from_when_on(x, y <= threshold),
        float(x[slopes.argmin()]) if falls else np.nan,
        float(x[y.argmin()]),
        _from_when_on(x, abs(y - y[-1]) <= tolerance * np.ptp(y)),
    )


def _from_when_on(steps: np.ndarray, holds: np.ndarray) -> float:
    """The first step from which on something holds; NaN if it does not at the last."""
    lasting = np.logical_and.accumulate(holds[::-1])[::-1]
    return float(steps[lasting.argmax()]) if lasting[-1] else np.nan
