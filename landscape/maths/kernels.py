"""How alike are the distances between examples? Kernels and representational dissimilarities.

These measures see activations (n, d) through n x n matrices over the pairs of examples. For the
linear kernel they follow from an `Overlap` without such matrices (`maths/similarity.py`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from landscape.maths.overlap import Activations, as_matrix, centred, same_examples
from landscape.maths.scores import RSA

ENTRIES = 2**24  # of a block of rows of an n x n matrix: 128 MB


@dataclass(frozen=True)
class Hsic:
    """Independence criteria of two kernels, up to one common factor: `cross`, and each with itself.

    `trace_x`, `trace_y` are the traces of the centred kernels.
    """

    cross: float
    x: float
    y: float
    trace_x: float
    trace_y: float


def rsa(
    x: Activations,
    y: Activations,
    *,
    dissimilarity: str = "correlation",
    comparison: str = "spearman",
) -> RSA:
    """Representational similarity analysis (Kriegeskorte et al. 2008) of x (n, d) and y (n, e).

    `dissimilarity` of two examples: "correlation" (one less Pearson's correlation over the neurons
    of the activations as they are, so that a shift of the neurons changes it), "euclidean" or
    "squared euclidean". `comparison` of the n (n - 1) / 2 pairs: "spearman" (ties have mean ranks),
    "pearson" or "cosine". Holds n x n matrices. Raises `ValueError` for other names, for fewer than
    three examples and as `overlap.rows` and `overlap.overlap`.
    """
    matrices = as_matrix(x), as_matrix(y, name="y")
    same_examples(*matrices)
    if len(matrices[0]) < 3:
        raise ValueError("rsa compares pairs of examples: expected at least 3 examples, got 2")
    if comparison not in ("spearman", "pearson", "cosine"):
        raise ValueError(
            f"comparison must be 'spearman', 'pearson' or 'cosine', got {comparison!r}"
        )
    pairs = [_dissimilarities(matrix, dissimilarity) for matrix in matrices]
    if comparison == "spearman":
        pairs = [_ranks(values) for values in pairs]
    if comparison != "cosine":
        pairs = [_less_mean(values) for values in pairs]
    value = cosine(*(float((pairs[i] * pairs[j]).sum()) for i, j in ((0, 1), (0, 0), (1, 1))))
    reason = ""
    for name, values in zip("xy", pairs, strict=True):
        if not values.any():
            reason = f"all dissimilarities of {name} are the same"
        if values.isnan().any():
            reason = f"{name} has examples in which all neurons are the same: no correlation"
    return RSA(value, len(matrices[0]), dissimilarity, comparison, reason)


def rbf_hsic(x: Activations, y: Activations, *, bandwidth: float, debiased: bool) -> Hsic:
    """Independence criteria of Gaussian kernels exp(-|a - b|^2 / (2 s^2)) of x (n, d) and y (n, e).

    s^2 is `bandwidth`^2 times the median of all n^2 squared distances, the n zeros of examples to
    themselves included and of two middle ones the mean (Kornblith et al. 2019, as in their code).
    With `debiased`, the estimator of Song et al. (2012). The kernels are made in blocks of rows,
    some ten times over: memory grows with n, not with its square. nan if a median is zero.
    """
    matrices = centred(x), centred(y, name="y")
    same_examples(*matrices)
    n = len(matrices[0])
    medians = [median_squared_distance(matrix) or float("nan") for matrix in matrices]
    scales = [-0.5 / bandwidth**2 / median for median in medians]
    products = torch.zeros(3, dtype=torch.float64, device=matrices[0].device)
    traces = torch.zeros(2, dtype=torch.float64, device=matrices[0].device)
    sums: list[list[Tensor]] = [[], []]
    for start, *distances in zip(
        range(0, n, _height(n)), *(_squared_distances(matrix) for matrix in matrices), strict=True
    ):
        k, l = (torch.exp(s * d) for s, d in zip(scales, distances, strict=True))  # noqa: E741
        traces += torch.stack([one.diagonal(start).sum() for one in (k, l)])
        if debiased:
            for one in (k, l):
                one.diagonal(start).zero_()
        products += torch.stack([(k * l).sum(), k.square().sum(), l.square().sum()])
        for total, one in zip(sums, (k, l), strict=True):
            total.append(one.sum(1))
    r, q = (torch.cat(total) for total in sums)
    less, plus = (2 / (n - 2), 1 / ((n - 1) * (n - 2))) if debiased else (2 / n, 1 / n**2)
    cross, self_x, self_y = (
        float(product - less * (a * b).sum() + plus * a.sum() * b.sum())
        for product, a, b in zip(products, (r, r, q), (q, r, q), strict=True)
    )
    trace_x, trace_y = (
        float(t - (s.sum() + (t if debiased else 0)) / n)
        for t, s in zip(traces, (r, q), strict=True)
    )
    return Hsic(cross, self_x, self_y, trace_x, trace_y)


def median_squared_distance(matrix: Tensor) -> float:
    """The median of all n^2 squared distances between the rows of a matrix (n, d)."""
    total = len(matrix) ** 2
    if total <= ENTRIES:
        return float(np.median(next(_squared_distances(matrix)).cpu().numpy()))
    middle = {(total - 1) // 2, total // 2}
    found = [_order_statistic(lambda: _squared_distances(matrix), k) for k in middle]
    return sum(found) / len(found)


def cosine(cross: float, x: float, y: float) -> float:
    """The ratio cross / sqrt(x y): exactly 1 if all are equal; nan if x or y is not positive."""
    return cross / x * (x / y) ** 0.5 if x > 0 and y > 0 else float("nan")


def _height(n: int) -> int:
    """How many rows of n entries make a block."""
    return max(1, ENTRIES // n)


def _squared_distances(matrix: Tensor) -> Iterator[Tensor]:
    """Squared distances of rows to all rows, in blocks of rows; exactly zero on the diagonal."""
    lengths = matrix.abs().square().sum(1)
    height = _height(len(matrix))
    for start in range(0, len(matrix), height):
        block = slice(start, start + height)
        products = matrix[block] @ matrix.mH
        real = products.real if products.is_complex() else products
        distances = (lengths[block, None] + lengths - 2 * real).clamp_min(0.0)
        distances.diagonal(start).zero_()
        yield distances


def _order_statistic(blocks: Callable[[], Iterator[Tensor]], k: int) -> float:
    """The k-th smallest, from 0, of non-negative numbers that are too many to hold.

    Such numbers are ordered as the integers that their bits are: four passes count the values of
    16 bits each, among the numbers whose leading bits are those found so far.
    """
    found = 0
    for shift in (48, 32, 16, 0):
        counts = torch.zeros(2**16, dtype=torch.int64)
        for block in blocks():
            bits = block.reshape(-1).view(torch.int64) >> shift
            bits = bits[(bits >> 16) == found]
            counts += torch.bincount(bits & 0xFFFF, minlength=2**16).cpu()
        below = counts.cumsum(0)
        digit = int((below <= k).sum())
        k -= int(below[digit - 1]) if digit else 0
        found = (found << 16) | digit
    return float(torch.tensor(found).view(torch.float64))


def _dissimilarities(matrix: Tensor, kind: str) -> Tensor:
    """Those of all pairs of different examples, (n (n - 1) / 2,); nan where there are none."""
    if kind == "correlation":
        rows = matrix - matrix.mean(1, keepdim=True)
        lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        flat = lengths <= 1e-13 * torch.linalg.vector_norm(matrix, dim=1, keepdim=True)
        rows = torch.where(flat, torch.full_like(rows, float("nan")), rows / lengths)
        products = rows @ rows.mH
        square = 1 - (products.real if products.is_complex() else products)
    elif kind in ("euclidean", "squared euclidean"):
        # an offset costs no digits after this, and ties of whole numbers stay ties
        square = torch.cat(list(_squared_distances(matrix - matrix[0])))
        square = square.sqrt() if kind == "euclidean" else square
    else:
        raise ValueError(
            f"dissimilarity must be 'correlation', 'euclidean' or 'squared euclidean', got {kind!r}"
        )
    above = torch.ones_like(square, dtype=torch.bool).triu(1)
    return square[above]


def _ranks(values: Tensor) -> Tensor:
    if values.isnan().any():
        return values
    array: NDArray[Any] = rankdata(values.cpu().numpy())
    return torch.as_tensor(array, device=values.device)


def _less_mean(values: Tensor) -> Tensor:
    """Values less their mean; exact zeros if they differ by no more than rounding."""
    less = values - values.mean()
    same = less.abs().max() <= 1e-12 * values.abs().max()
    return torch.zeros_like(less) if same else less
