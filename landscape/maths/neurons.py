"""Which neuron of one network is which of another? Matching by correlation, one by one.

The question of convergent learning (Li et al. 2015): do two networks find the same features, each
in a neuron of its own?
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from landscape.maths.overlap import Activations, centred, same_examples

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class NeuronMatches:
    """Neuron i of x goes with neuron `assignment[i]` of y, at the correlation `correlations[i]`.

    Neurons without a partner have -1 and nan: those that are constant, and in a one-to-one matching
    those left over on the wider side. `float()` gives the mean over the matched neurons, of the
    magnitudes if not `signed`; it is nan with a `reason` if there are none.
    """

    assignment: Indices
    correlations: Array
    method: str
    signed: bool
    reason: str = ""

    def __float__(self) -> float:
        matched = self.correlations[self.assignment >= 0]
        if not len(matched):
            return float("nan")
        return float((matched if self.signed else abs(matched)).mean())

    @property
    def num_matched(self) -> int:
        """How many neurons of x have a partner."""
        return int((self.assignment >= 0).sum())


def match_neurons(
    x: Activations, y: Activations, *, method: str = "one-to-one", signed: bool = True
) -> NeuronMatches:
    """Match the neurons of x (n, d) to those of y (n, e) by their correlations over the examples.

    `method`: "one-to-one" makes the sum of the correlations largest and uses each neuron once
    (bipartite matching of Li et al. 2015); "best" gives each neuron of x the most correlated one of
    y, which several may share (their semi-matching). If not `signed`, the magnitudes count.
    Raises `ValueError` for other methods, complex activations and as `overlap.rows`.
    """
    if method not in ("one-to-one", "best"):
        raise ValueError(f"method must be 'one-to-one' or 'best', got {method!r}")
    correlations = correlation_matrix(x, y)
    assignment = np.full(len(correlations), -1)
    known = ~np.isnan(correlations)
    live_x, live_y = np.flatnonzero(known.any(1)), np.flatnonzero(known.any(0))
    if not len(live_x):
        reason = "no pair of neurons varies over the examples"
        return NeuronMatches(assignment, np.full(len(assignment), np.nan), method, signed, reason)
    gain = correlations[np.ix_(live_x, live_y)]
    gain = gain if signed else abs(gain)
    if method == "one-to-one":
        left, right = linear_sum_assignment(gain, maximize=True)
    else:
        left, right = np.arange(len(gain)), gain.argmax(1)
    assignment[live_x[left]] = live_y[right]
    found = correlations[np.arange(len(assignment)), assignment]
    return NeuronMatches(assignment, np.where(assignment >= 0, found, np.nan), method, signed)


def correlation_matrix(x: Activations, y: Activations) -> Array:
    """Pearson's correlations (d, e) of the neurons of x (n, d) and y (n, e); nan for constant ones.

    Raises `ValueError` for complex activations and as `overlap.rows`.
    """
    left, right = centred(x), centred(y, name="y")
    same_examples(left, right)
    if left.is_complex() or right.is_complex():
        raise ValueError("neurons are matched by real correlations, got complex activations")
    left, right = (one / torch.linalg.vector_norm(one, dim=0) for one in (left, right))
    return (left.mT @ right).cpu().numpy()
