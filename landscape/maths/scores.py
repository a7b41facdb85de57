"""What do the measures of similarity say? Small objects; `float()` gives the headline of each.

The headline is 1 for the same activations, and nan with a `reason` where nothing can be said.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Directions:
    """Canonical variates (n, r), orthonormal, and the coefficients (neurons, r) that make them.

    Centred activations times coefficients are the variates. Pair i of the variates has the
    correlation i. Coefficients of constant neurons are zero, those of copies of a neuron equal.
    """

    variates_x: NDArray[Any]
    variates_y: NDArray[Any]
    coefficients_x: NDArray[Any]
    coefficients_y: NDArray[Any]


@dataclass(frozen=True, eq=False)
class CCA:
    """Canonical correlations, largest first, with their weights; `float()` is the weighted mean.

    Weights sum to one and are equal but for PWCCA, which also has its means `by_x` and `by_y`.
    `rank_x`, `rank_y` are the numbers of directions compared, `condition_x`, `condition_y` the
    condition numbers of the activations at unit variance. `reason` says why a value is nan.
    """

    correlations: Array
    weights: Array
    num: int
    rank_x: int
    rank_y: int
    width_x: int
    width_y: int
    condition_x: float
    condition_y: float
    by_x: float | None = None
    by_y: float | None = None
    reason: str = ""
    directions: Directions | None = None

    def __float__(self) -> float:
        return self.mean

    @property
    def mean(self) -> float:
        """The weighted mean correlation."""
        return _mean(self.correlations, self.weights)

    @property
    def mean_squared(self) -> float:
        """The weighted mean squared correlation."""
        return _mean(self.correlations**2, self.weights)

    @property
    def mean_by_width(self) -> float:
        """The sum of the correlations over the smaller number of neurons, idle ones included."""
        if self.reason:
            return float("nan")
        return float(self.correlations.sum()) / min(self.width_x, self.width_y)

    @property
    def num_forced(self) -> int:
        """How many correlations are 1 whatever the data, as both spaces share n - 1 dimensions."""
        return max(0, self.rank_x + self.rank_y - (self.num - 1))

    @property
    def chance(self) -> float:
        """The expectation of `mean_squared` if x and y are independent: max(rank) / (n - 1)."""
        return max(self.rank_x, self.rank_y) / (self.num - 1)

    @property
    def adjusted(self) -> float:
        """`mean_squared` on a scale on which chance is 0."""
        return above_chance(self.mean_squared, self.chance)


@dataclass(frozen=True)
class CKA:
    """Centred kernel alignment, `float()` gives its `value`. `chance` is its mean over all orders
    of the examples of one side: 0 if debiased. `reason` says why a value is nan.
    """

    value: float
    num: int
    debiased: bool
    kernel: str
    chance: float
    reason: str = ""

    def __float__(self) -> float:
        return self.value

    @property
    def adjusted(self) -> float:
        """The value on a scale on which chance is 0."""
        return above_chance(self.value, self.chance)


@dataclass(frozen=True)
class Procrustes:
    """How well a rotation takes x to y; `float()` gives the `value` in [0, 1]."""

    value: float
    num: int
    reason: str = ""

    def __float__(self) -> float:
        return self.value

    @property
    def distance(self) -> float:
        """The angle in radians between x and the best rotation of y: a metric, 0 to pi / 2."""
        return float(np.arccos(self.value))

    @property
    def squared_distance(self) -> float:
        """The squared distance of x, at norm 1, from the best rotation of y, at norm 1."""
        return 2 * (1 - self.value)


@dataclass(frozen=True)
class Regression:
    """The share R^2 of the variance of y that is linear in x; `float()` gives the `value`."""

    value: float
    num: int
    rank_x: int
    rank_y: int
    condition_x: float
    reason: str = ""

    def __float__(self) -> float:
        return self.value

    @property
    def chance(self) -> float:
        """The expectation if x and y are independent: rank of x / (n - 1)."""
        return self.rank_x / (self.num - 1)

    @property
    def adjusted(self) -> float:
        """The adjusted R^2, on a scale on which chance is 0."""
        return above_chance(self.value, self.chance)


@dataclass(frozen=True)
class RSA:
    """The likeness `value` of two representational dissimilarity matrices; `float()` gives it.

    1 for equal matrices; 0 is the chance level of Pearson's and Spearman's correlations, while the
    cosine of non-negative dissimilarities lies above it. `reason` says why a value is nan.
    """

    value: float
    num: int
    dissimilarity: str
    comparison: str
    reason: str = ""

    def __float__(self) -> float:
        return self.value


@dataclass(frozen=True)
class Properties:
    """What leaves a measure as it is, done to `x` or done to `y`, and whether it is `symmetric`.

    `metric`: the `distance` of its result obeys the triangle inequality.
    """

    x: frozenset[str]
    y: frozenset[str]
    symmetric: bool = True
    metric: bool = False


def above_chance(value: float, chance: float) -> float:
    """A value on a scale on which chance is 0 and 1 is 1; nan where chance alone is 1."""
    return (value - chance) / (1 - chance) if chance < 1 else float("nan")


def _mean(values: Array, weights: Array) -> float:
    return float(np.average(values, weights=weights)) if len(values) else float("nan")
