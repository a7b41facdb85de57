"""How sure is a number? Bootstrap over examples."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def bootstrap_interval(
    values: Array,
    statistic: Callable[[Array], Array],
    *,
    level: float = 0.95,
    num: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """A percentile interval for a statistic of means over examples.

    `values` (points, examples) are resampled along the examples, the same examples at every point.
    `statistic` maps means (num, points) to (num,). Efron and Tibshirani 1993, section 13.3.

    Raises `ValueError` for fewer than two examples or a level outside of (0, 1).
    """
    examples = values.shape[1]
    if examples < 2:
        raise ValueError(f"a bootstrap needs at least two examples, got {examples}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    generator = np.random.default_rng(seed)
    even = np.full(examples, 1 / examples)
    means = np.empty((num, len(values)))
    step = max(1, 2**24 // examples)  # counts of at most 128 MiB at once
    for start in range(0, num, step):
        counts = generator.multinomial(examples, even, size=min(step, num - start))
        means[start : start + step] = counts @ values.T / examples
    low, high = np.quantile(statistic(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
