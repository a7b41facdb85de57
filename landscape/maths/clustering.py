"""Which networks lie in one basin? Those with low barriers between all of them."""

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform


def basins(barriers: NDArray[np.float64], threshold: float) -> NDArray[np.int64]:
    """A label (n,) for each of n networks, from the symmetric barriers (n, n) between them.

    Complete linkage: the barrier between any two networks of one basin is at most the threshold.
    (Single linkage would join the two ends of a chain of neighbours, whatever lies between them.)
    Labels count from 0 in the order of each basin's first network. A barrier that is not finite
    connects nothing. Where a network could join either of two basins equally well, the order of
    the networks decides.

    Raises `ValueError` if the barriers are not square and symmetric.
    """
    if barriers.ndim != 2 or not np.array_equal(barriers, barriers.T, equal_nan=True):
        raise ValueError(f"barriers must be a symmetric (n, n) array, got shape {barriers.shape}")
    if len(barriers) == 1:
        return np.zeros(1, np.int64)
    between = squareform(barriers, checks=False)
    finite = between[np.isfinite(between)]
    wall = 1 + max(threshold, finite.max(initial=0.0))  # scipy takes no infinite distances
    between = np.where(np.isfinite(between), between, wall)
    found = fcluster(linkage(between, method="complete"), threshold, criterion="distance")
    _, first, labels = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[labels]
