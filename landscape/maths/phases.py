"""When is a curve at its peak, and does it rise before and fall after it?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Peak:
    """Where a curve is highest: at `step`, or at another one from `low` to `high`.

    `rises` and `falls` say whether the curve is lower at its first and at its last step, beyond
    what its errors explain. Both: a phase of memorising, then one of forgetting (Achille, Rovere
    and Soatto 2019, of the Fisher information).
    """

    step: float
    value: float
    low: float
    high: float
    rises: bool
    falls: bool


def peak(
    steps: ArrayLike,
    values: ArrayLike,
    stderr: ArrayLike | None = None,
    *,
    level: float = 0.95,
    num: int = 4000,
    seed: int = 0,
) -> Peak:
    """The step (n,) at which a curve of values (n,) with standard errors (n,) is highest.

    A step stays possible as long as no other value is above its own by more than the `level`
    quantile of what normal errors alone would do, in `num` simulations: multiple comparisons with
    the best (Hsu 1981, Annals of Statistics 9, 1026). At least with probability `level` the steps
    from `low` to `high` contain the one of the highest true value, whatever the curve; and of the
    curves that do not rise (fall) at most 1 - `level` are said to. Errors that are shared between
    steps make this safer still. Of a peak between two of the steps nothing is known. Values that
    are not finite do not count; without `stderr` values are exact.

    Raises `ValueError` for arrays that do not fit, without a finite value, for standard errors that
    are negative or not finite, or a level outside of (0, 1).
    """
    x, y = np.asarray(steps, float), np.asarray(values, float)
    errors = np.zeros_like(y) if stderr is None else np.asarray(stderr, float)
    if not x.shape == y.shape == errors.shape or x.ndim != 1:
        raise ValueError(
            f"steps, values and stderr must have one shape (n,), got {x.shape}, {y.shape}, "
            f"{errors.shape}"
        )
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    kept = np.flatnonzero(np.isfinite(y))
    kept = kept[np.argsort(x[kept], kind="stable")]
    x, y, errors = x[kept], y[kept], errors[kept]
    if not len(y):
        raise ValueError("a curve without a finite value has no peak")
    if not (np.isfinite(errors) & (errors >= 0)).all():
        raise ValueError("standard errors must be finite and not negative where values are finite")
    noise = errors * np.random.default_rng(seed).standard_normal((num, len(y)))
    chance = np.quantile(noise.max(1, keepdims=True) - noise, level, axis=0)
    possible = x[y.max() - y <= chance]
    best = int(y.argmax())
    low, high = float(possible[0]), float(possible[-1])
    return Peak(float(x[best]), float(y[best]), low, high, bool(low > x[0]), bool(high < x[-1]))
