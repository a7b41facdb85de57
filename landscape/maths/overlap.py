"""What do two sets of activations share? The one thing that all linear similarity measures need.

A set is a matrix X (n, d): one row for each example, one column for each neuron. With an
orthonormal basis Q of its centred columns, every measure follows from the products Qx^H Qy and from
the loadings Q^H X, whatever they were computed from: the rows themselves (here), or moments that
were summed over batches (`maths/moments.py`). Arithmetic is in float64 (complex128).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Activations = Tensor | NDArray[Any]


@dataclass(frozen=True, eq=False)
class Side:
    """One set of centred activations X (n, d) with the basis Q (n, rank) of its columns.

    `loadings` (rank, d) are Q^H X. `condition` is the ratio of the largest to the smallest kept
    singular value after each neuron was scaled to unit variance. `squared_gram` is the squared norm
    of X^H X, and `squared_rows` the sum over the examples of the fourth power of the length of a
    row.
    """

    num: int
    loadings: Tensor
    condition: float
    squared_gram: Tensor
    squared_rows: Tensor

    @cached_property
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """The components and the values."""
        components, values, _ = torch.linalg.svd(self.loadings, full_matrices=False)
        return components, values

    @property
    def components(self) -> Tensor:
        """The left singular vectors (rank, number of values) of the loadings: the principal
        directions in the basis.
        """
        return self.spectrum[0]

    @property
    def values(self) -> Tensor:
        """The singular values of X, largest first."""
        return self.spectrum[1]

    @property
    def rank(self) -> int:
        """The number of directions kept."""
        return len(self.loadings)

    @property
    def width(self) -> int:
        """The number of neurons."""
        return self.loadings.shape[1]


@dataclass(frozen=True, eq=False)
class Overlap:
    """Two sets of activations of the same n examples.

    `whitened` (rank of x, rank of y) is Qx^H Qy, whose singular values are the canonical
    correlations. `squared_cross` is the squared norm of X^H Y, and `squared_rows` the sum over the
    examples of the product of the two squared lengths of a row. `tolerance` is how far rounding may
    lift a correlation above one: more, and whoever made the bases made a mistake.
    """

    x: Side
    y: Side
    whitened: Tensor
    squared_cross: Tensor
    squared_rows: Tensor
    tolerance: float = 1e-9

    @property
    def num(self) -> int:
        """The number of examples."""
        return self.x.num


@dataclass(frozen=True, eq=False)
class Rows:
    """A side together with its rows: `centred` X (n, d) and `basis` Q (n, rank)."""

    side: Side
    centred: Tensor
    basis: Tensor


def rows(activations: Activations, *, rtol: float | None = None, name: str = "x") -> Rows:
    """Centre activations (n, d) and find a basis of their columns.

    Directions are kept whose singular value, with each neuron at unit variance, is more than `rtol`
    of the largest (default: `relative_cut`). Raises `ValueError` for other shapes, fewer than two
    examples, or values that are not finite.
    """
    matrix = centred(activations, name=name)
    spread = torch.linalg.vector_norm(matrix, dim=0)
    scaled = matrix / torch.where(spread == 0, torch.ones_like(spread), spread)
    basis, kept = _basis(scaled, relative_cut(_dtype(activations)) if rtol is None else rtol)
    lengths = matrix.abs().square().sum(1)
    gram = matrix.mH @ matrix if matrix.shape[1] <= len(matrix) else matrix @ matrix.mH
    side = side_of(
        len(matrix), basis.mH @ matrix, kept, gram.abs().square().sum(), lengths.square().sum()
    )
    return Rows(side, matrix, basis)


def overlap(x: Rows, y: Rows) -> Overlap:
    """What two sets share. Raises `ValueError` if they have different numbers of examples."""
    same_examples(x.centred, y.centred)
    n, widest = x.side.num, max(x.side.width, y.side.width)
    if widest <= n:
        squared_cross = (x.centred.mH @ y.centred).abs().square().sum()
    else:
        products = (x.centred @ x.centred.mH) * (y.centred @ y.centred.mH).conj()
        squared_cross = products.real.sum() if products.is_complex() else products.sum()
    lengths = [side.centred.abs().square().sum(1) for side in (x, y)]
    return Overlap(
        x.side, y.side, x.basis.mH @ y.basis, squared_cross, (lengths[0] * lengths[1]).sum()
    )


def side_of(
    num: int, loadings: Tensor, kept: Tensor, squared_gram: Tensor, squared_rows: Tensor
) -> Side:
    """A side from its loadings and the kept singular values of the scaled activations."""
    condition = float(kept[0] / kept[-1]) if len(kept) else float("nan")
    return Side(num, loadings, condition, squared_gram, squared_rows)


def centred(activations: Activations, *, name: str = "x") -> Tensor:
    """Activations (n, d) in float64 (complex128) less their mean; constant neurons are exact zeros.

    A neuron is constant if it varies by no more than the rounding of its values. Raises as `rows`.
    """
    matrix = as_matrix(activations, name=name)
    largest = matrix.abs().amax(0)
    matrix = matrix - matrix[0]  # exact where an offset is large, so that the mean is too
    matrix = matrix - matrix.mean(0)
    spread = torch.linalg.vector_norm(matrix, dim=0)
    constant = spread <= len(matrix) ** 0.5 * rounding(_dtype(activations)) * largest
    return torch.where(constant, torch.zeros_like(matrix), matrix)


def as_matrix(activations: Activations, *, name: str = "x") -> Tensor:
    """Activations (n, d) in float64 (complex128), as they are. Raises as `rows`."""
    given = _tensor(activations)
    if given.ndim != 2 or len(given) < 2 or given.shape[1] < 1:
        raise ValueError(
            f"{name} must be activations of shape (examples, neurons) with at least two examples, "
            f"got shape {tuple(given.shape)}; flatten or average maps first"
        )
    matrix = given.detach().to(torch.complex128 if given.is_complex() else torch.float64)
    if not torch.isfinite(matrix).all():
        bad = int((~torch.isfinite(matrix)).any(1).sum())
        raise ValueError(
            f"{name} has values that are not finite in {bad} of {len(matrix)} examples"
        )
    return matrix


def same_examples(x: Tensor, y: Tensor) -> None:
    """Raises `ValueError` if two matrices have different numbers of rows."""
    if len(x) != len(y):
        raise ValueError(
            "both sets of activations must have the same examples in the same order, got "
            f"{len(x)} and {len(y)} rows"
        )


def relative_cut(dtype: torch.dtype) -> float:
    """What share of the largest singular value is noise, for activations given in a dtype.

    Values in float32 carry the errors of the sums that made them, those in half precision were
    summed in float32 and rounded once.
    """
    if not (dtype.is_floating_point or dtype.is_complex):
        return 1e-10
    precision = torch.finfo(dtype).eps
    if precision < 1e-12:
        return 1e-10
    return precision if precision > 1e-6 else 8 * precision


def rounding(dtype: torch.dtype) -> float:
    """What share of its mean a constant neuron may seem to vary by, given in a dtype."""
    inexact = dtype.is_floating_point or dtype.is_complex
    return max(4 * torch.finfo(torch.float64).eps, torch.finfo(dtype).eps if inexact else 0.0)


def _dtype(activations: Activations) -> torch.dtype:
    return _tensor(activations[:0]).dtype


def _tensor(activations: Activations) -> Tensor:
    """A tensor; arrays are copied, as torch takes neither reversed nor read-only ones."""
    if isinstance(activations, Tensor):
        return activations
    return torch.from_numpy(np.array(activations, order="C"))


def _basis(scaled: Tensor, cut: float) -> tuple[Tensor, Tensor]:
    """An orthonormal basis (n, rank) of the columns, and the kept singular values."""
    if len(scaled) > scaled.shape[1]:
        orthonormal, triangle = torch.linalg.qr(scaled)
        left, values, _ = torch.linalg.svd(triangle, full_matrices=False)
        left = orthonormal @ left
    else:
        left, values, _ = torch.linalg.svd(scaled, full_matrices=False)
    rank = int((values > cut * values[0]).sum()) if values[0] > 0 else 0
    return left[:, :rank], values[:rank]
