"""What are the principal axes of a few vectors in a huge space? Their inner products say it."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def principal_components(gram: Array, num: int) -> tuple[Array, Array]:
    """The largest eigenvalues (num,) of an (n, n) Gram matrix, and eigenvectors (n, num).

    Column k times the root of its eigenvalue holds the coordinates of the n vectors along the axis
    k; divided by the root it mixes the vectors into that axis, of unit length. Signs are such that
    the first vector has no positive coordinate.

    Raises `ValueError` if the vectors span fewer than `num` directions: an eigenvalue below 1e-12
    of the largest, that is, a spread below 1e-6 of the widest.
    """
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1], vectors[:, ::-1]
    rank = int((values > 1e-12 * max(values[0], 0.0)).sum())
    if rank < num:
        raise ValueError(f"the vectors span {rank} directions, {num} components were asked for")
    return values[:num].copy(), vectors[:, :num] * np.where(vectors[0, :num] > 0, -1.0, 1.0)


def cosine_content(coordinates: Array, *, pinned: bool = False) -> Array:
    """How much the coordinates (n, k) of a path look like those of a random walk: (k,) in [0, 1].

    The principal components of a random walk in many dimensions are cosines, component k with k
    half periods, whatever the walk (Hess 2000, Phys. Rev. E 62, 8438; Antognini and Sohl-Dickstein
    2018). The content is the squared cosine between coordinates and these waves (Hess 2002, Phys.
    Rev. E 65, 031910), for equidistant points. Of components about the mean the waves are
    cos(k pi (j + 1/2) / n); with `pinned` the components are about the last point, and the waves
    sin((2 k - 1) pi j / (2 n - 1)), j steps before it. A component of zeros has the content 0.
    """
    n, num = coordinates.shape
    k = np.arange(1, num + 1)
    if pinned:
        waves = np.sin(np.outer(np.arange(n)[::-1], (2 * k - 1) * np.pi / (2 * n - 1)))
    else:
        waves = np.cos(np.outer(np.arange(n) + 0.5, k * np.pi / n))
    products = (waves * coordinates).sum(0) ** 2
    squares = (waves**2).sum(0) * (coordinates**2).sum(0)
    return np.divide(products, squares, out=np.zeros(num), where=squares > 0)
