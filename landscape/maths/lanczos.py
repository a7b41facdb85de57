"""What are the largest eigenvalues of a matrix known by its products, and how are all distributed?

`top_eigenvalues` is a Lanczos iteration with full reorthogonalisation that ends when the residuals
say so. `density` is stochastic Lanczos quadrature: a few nodes and weights stand for the whole
spectrum, from which `smooth` draws a density and `spectral_sum` takes the trace of any function.
A is symmetric; a product maps a matrix (n, m) to (n, m), column by column. The iteration is in
float64 on the device, whatever the product computes in.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from landscape.maths.traces import Estimate, Product, applied, signs

Array = NDArray[np.float64]
WHICH = ("largest", "magnitude", "both ends")
DEPENDENT = 1e-13  # share of the largest length below which a vector counts as a combination


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Eigenvalues (k,) with vectors (size, k) of length 1.

    `residuals` (k,) are the lengths of A v - value v, down to rounding: an eigenvalue lies no
    further from the value than that. `converged` (k,) says where they met the tolerance.
    `asymmetry` is the largest difference between v'Aw and w'Av that was seen, as a share of the
    largest eigenvalue.
    """

    values: Array
    vectors: Tensor
    residuals: Array
    converged: NDArray[np.bool_]
    num_products: int
    num_restarts: int
    asymmetry: float


def top_eigenvalues(
    product: Product,
    size: int,
    num: int,
    *,
    which: str = "largest",
    tolerance: float = 1e-4,
    max_products: int | None = None,
    block: int = 1,
    memory: int = 2**30,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Eigenpairs:
    """Eigenvalues at an end of the spectrum, by Lanczos with full reorthogonalisation.

    Main arguments. `product`: maps (size, m) to (size, m). `which`: the `num` `"largest"` values,
    in falling order; the largest in `"magnitude"`; or those at `"both ends"`, the num largest in
    falling order and then the num smallest in rising order. `tolerance`: a pair has converged when
    its residual is at most that share of its value (or, for values near zero, 4e-11 of the largest
    magnitude); the error of a separate eigenvalue is of the order of the square of that share.

    Other arguments. `max_products`: default 100 + 20 `num`, and never more than needed for the
    whole space. `block`: how many vectors each step multiplies. `memory`: bytes of the basis; if it
    would be larger the iteration restarts from its best vectors (Wu and Simon 2000, thick restart).

    What cannot be seen: from one starting vector (`block=1`) every eigenvalue shows once, whatever
    its multiplicity, as long as rounding brings no copy in; from `block` of them at most `block`
    times. An eigenvector to which the start is orthogonal shows only by rounding. Where copies
    matter, compare with a larger block.

    Raises `ValueError` if the product is not symmetric (by more than 1e-3 of the largest value) or
    not finite, or if more values are asked for than there are.
    """
    if which not in WHICH:
        raise ValueError(f"which must be one of {', '.join(map(repr, WHICH))}, got {which!r}")
    wanted = 2 * num if which == "both ends" else num
    if not 1 <= wanted <= size or not 1 <= block <= size:
        raise ValueError(
            f"a matrix of {size} rows has {size} eigenvalues, got num={num} at {which!r} and "
            f"block={block}"
        )
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance}")
    most = 100 + 20 * num if max_products is None else max_products
    if most < wanted + block - 1:
        raise ValueError(f"{wanted} eigenvalues need as many products, got max_products={most}")
    room = min(size, most + block, max(wanted + 4 * block, memory // (8 * size)))
    krylov = _krylov(size, room, seed, device)
    _append(krylov, torch.zeros(block, size, dtype=torch.float64, device=device))
    spent = restarts = check = 0
    while True:
        spent += krylov.width
        _expand(krylov, product)
        done = krylov.num == size or spent + krylov.width > most
        full = krylov.num + 2 * krylov.width > room < size
        if krylov.num < max(wanted, check) and not (done or full):
            continue
        check = math.ceil(1.05 * krylov.num)  # the small problem must not become the large one
        values, rotation = np.linalg.eigh(krylov.projected)
        order = _order(values, which, num)
        residuals = np.linalg.norm(krylov.coupling @ rotation[:, order], axis=0)
        largest = abs(values).max()
        residuals = np.maximum(residuals, np.finfo(np.float64).eps * largest)
        converged = residuals <= np.maximum(tolerance * abs(values[order]), 4e-11 * largest)
        if done or (converged.all() and krylov.num >= wanted):
            break
        if full:
            kept = _order(values, which, _kept(room - 2 * krylov.width, wanted, which))
            _restart(krylov, values[kept], rotation[:, kept])
            restarts, check = restarts + 1, 0
    if krylov.asymmetry > 1e-3 * largest:
        raise ValueError(
            f"the product is not symmetric: v'Aw and w'Av differ by {krylov.asymmetry:.2g}, where "
            f"the largest eigenvalue is {largest:.2g}. Is it the same at every call?"
        )
    vectors = _combined(krylov, rotation[:, order]).T
    asymmetry = krylov.asymmetry / float(largest) if largest else 0.0
    return Eigenpairs(values[order], vectors, residuals, converged, spent, restarts, asymmetry)


@dataclass(frozen=True, eq=False)
class Quadrature:
    """Nodes and weights (probes, steps) that stand for the spectrum of a matrix of `size` rows.

    The weights of a probe sum to 1; probes that needed fewer steps are filled with weights of 0.
    """

    nodes: Array
    weights: Array
    size: int
    num_products: int


def density(
    product: Product,
    size: int,
    *,
    num_probes: int = 10,
    num_steps: int = 80,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Quadrature:
    """The spectrum by stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017, algorithm 1).

    From each of `num_probes` vectors of random signs (those of `hutchinson` with the same seed),
    Lanczos with full reorthogonalisation runs for `num_steps`; eigenvalues of the tridiagonal
    matrix are the nodes, squared first entries of its eigenvectors the weights. They give z'f(A)z
    exactly for polynomials f of degree up to 2 num_steps - 1. Memory: `num_steps` vectors in
    float64. Ghorbani et al. 2019 apply it to the Hessians of large networks.

    Raises `ValueError` for fewer than one probe or step, or a product that is not finite.
    """
    if num_probes < 1 or num_steps < 1:
        raise ValueError(f"need a probe and a step at least, got {num_probes} and {num_steps}")
    room = min(size, num_steps + 1)
    nodes, weights = np.zeros((2, num_probes, min(size, num_steps)))
    spent = 0
    for number, z in zip(range(num_probes), signs(size, seed, device), strict=False):
        krylov = _krylov(size, room, seed, device)
        _append(krylov, z[None])
        for _ in range(nodes.shape[1]):
            _expand(krylov, product)
            if not krylov.coupling.any():  # the vectors so far hold all that A makes of z
                break
        spent += krylov.num
        values, vectors = np.linalg.eigh(krylov.projected)
        nodes[number], weights[number] = values[-1], 0
        nodes[number, : len(values)] = values
        weights[number, : len(values)] = vectors[0] ** 2
    return Quadrature(nodes, weights, size, spent)


def spectral_sum(quadrature: Quadrature, function: Callable[[Array], Array]) -> Estimate:
    """The trace of f(A), the sum of f over all eigenvalues, with its standard error over probes.

    `function` maps arrays elementwise. With one probe the standard error is NaN.
    """
    values = (quadrature.weights * function(quadrature.nodes)).sum(1) * quadrature.size
    return Estimate(float(values.mean()), float(_spread(values)))


@dataclass(frozen=True, eq=False)
class Density:
    """A smoothed density on a `grid` (n,), with its standard error over probes.

    On a linear scale `density` (n,) is per unit of the eigenvalue and `width` the standard
    deviation of the Gaussian that each node becomes. On a log scale `density` (2, n) is per decade,
    of positive and of negative eigenvalues by their magnitude, and `width` is in decades;
    `near_zero` is then the share of eigenvalues that are smaller than the grid shows, else 0.
    """

    grid: Array
    density: Array
    stderr: Array
    width: float
    near_zero: float


def smooth(
    quadrature: Quadrature,
    grid: ArrayLike | int = 1000,
    *,
    width: float | None = None,
    log: bool = False,
) -> Density:
    """The density of eigenvalues, each node of a quadrature spread to a Gaussian.

    `grid` is given, or the number of its points: over all nodes and five widths more, or on a log
    scale from the largest magnitude eight decades down. Default `width`: 1 % of the distance
    between the smallest and largest node, or 0.05 decades. Integrates to 1 over all there is.

    Raises `ValueError` for a width that is not positive.
    """
    nodes, weights = quadrature.nodes, quadrature.weights
    largest = abs(nodes).max() or 1.0
    if width is None:
        width = 0.05 if log else float(np.ptp(nodes) or largest) / 100
    if not width > 0:
        raise ValueError(f"width must be positive, got {width}")
    if log:
        with np.errstate(divide="ignore"):
            places = np.log10(abs(nodes))
        top = np.log10(largest) + 5 * width
        points = np.logspace(top - 8, top, grid) if isinstance(grid, int) else np.asarray(grid)
        below = places < np.log10(points[0])
        signed = [weights * (nodes > 0) * ~below, weights * (nodes < 0) * ~below]
        kernels = _kernels(np.maximum(places, np.log10(points[0])), np.log10(points), width)
        near_zero = float((weights * below).sum(1).mean())
    else:
        low, high = nodes.min() - 5 * width, nodes.max() + 5 * width
        points = np.linspace(low, high, grid) if isinstance(grid, int) else np.asarray(grid)
        signed, near_zero = [weights], 0.0
        kernels = _kernels(nodes, points, width)
    values = np.stack([np.einsum("ps,psn->pn", one, kernels) for one in signed], 1)
    mean, spread = values.mean(0), _spread(values)
    if not log:
        mean, spread = mean[0], spread[0]
    return Density(points, mean, spread, width, near_zero)


def _kernels(nodes: Array, points: Array, width: float) -> Array:
    scaled = (points - nodes[..., None]) / width
    return np.exp(-0.5 * scaled**2) / (width * math.sqrt(2 * math.pi))


def _spread(values: Array) -> Array:
    """The standard error of the mean over the first axis; NaN for one value."""
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan)
    return values.std(0, ddof=1) / math.sqrt(len(values))


def _order(values: Array, which: str, num: int) -> NDArray[np.intp]:
    """Places of the wanted ones among rising values, best first."""
    if which == "magnitude":
        return np.argsort(-abs(values), kind="stable")[:num]
    falling = np.arange(len(values))[::-1]
    if which == "largest" or 2 * num > len(values):
        return falling[:num] if which == "largest" else falling
    return np.concatenate([falling[:num], falling[::-1][:num]])


def _kept(room: int, wanted: int, which: str) -> int:
    """How many vectors go on after a restart (of each end): halfway from the wanted to all."""
    kept = wanted + (room - wanted) // 2
    return kept // 2 if which == "both ends" else kept


@dataclass(eq=False)
class _Krylov:
    """A V = V T + W B for an orthonormal basis (V, W).

    `basis` (room, size) holds V' in its first `num` rows, and in the next `width` W', the vectors
    that are multiplied next. `projected` (num, num) is T, `coupling` (width, num) is B.
    """

    basis: Tensor
    generator: torch.Generator
    projected: Array
    coupling: Array
    asymmetry: float = 0.0

    @property
    def num(self) -> int:
        """The number of vectors in V."""
        return len(self.projected)

    @property
    def width(self) -> int:
        """The number of vectors in W."""
        return len(self.coupling)


def _krylov(size: int, room: int, seed: int, device: torch.device | str) -> _Krylov:
    basis = torch.empty(room, size, dtype=torch.float64, device=device)
    return _Krylov(basis, torch.Generator().manual_seed(seed), np.zeros((0, 0)), np.zeros((0, 0)))


def _expand(krylov: _Krylov, product: Product) -> None:
    """Multiply W, take it into V, and find the next W."""
    num, total = krylov.num, krylov.num + krylov.width
    known = krylov.basis[:total]
    answers = applied(product, known[num:].T).T
    overlaps = (known @ answers.T).cpu().numpy()
    corner = overlaps[num:]
    unlike = [overlaps[:num] - krylov.coupling.T, corner - corner.T]
    largest = max(float(abs(part).max(initial=0.0)) for part in unlike)
    krylov.asymmetry = max(krylov.asymmetry, largest)
    krylov.projected = np.block(
        [[krylov.projected, krylov.coupling.T], [krylov.coupling, (corner + corner.T) / 2]]
    )
    _append(krylov, answers)


def _append(krylov: _Krylov, vectors: Tensor) -> None:
    """Make W of the parts of vectors (m, size) that are orthogonal to V, and B of their lengths.

    A vector that is a combination of others gives way to a random one, with nothing in B.
    """
    num, size = krylov.num, krylov.basis.shape[1]
    least = DEPENDENT * torch.linalg.vector_norm(vectors, dim=1).max()
    width = min(len(vectors), size - num)
    upper = np.zeros((width, len(vectors)))
    have = 0
    for column, vector in enumerate(_without(vectors, krylov.basis[:num])):
        new = krylov.basis[num : num + have]
        upper[:have, column] = (new @ vector).cpu().numpy()
        rest = _without(vector[None], new)[0]
        length = torch.linalg.vector_norm(rest)
        if have < width and length > least:
            upper[have, column] = length.item()
            krylov.basis[num + have] = rest / length
            have += 1
    for row in range(num + have, num + width):
        draw = torch.randn(size, generator=krylov.generator, dtype=torch.float64)
        rest = _without(draw[None].to(vectors), krylov.basis[:row])[0]
        krylov.basis[row] = rest / torch.linalg.vector_norm(rest)
    krylov.coupling = np.zeros((width, num))
    krylov.coupling[:, max(0, num - len(vectors)) :] = upper[:, : min(num, len(vectors))]


def _without(vectors: Tensor, known: Tensor) -> Tensor:
    """Vectors (m, size) less their parts along orthonormal rows, taken off twice."""
    for _ in range(2):
        vectors = vectors - (vectors @ known.T) @ known
    return vectors


def _combined(krylov: _Krylov, rotation: Array) -> Tensor:
    """Combinations of the vectors in V, as rows."""
    return torch.as_tensor(rotation.T.copy()).to(krylov.basis) @ krylov.basis[: krylov.num]


def _restart(krylov: _Krylov, values: Array, rotation: Array) -> None:
    """Have the best vectors alone in V, and W as it is."""
    rows = torch.cat([_combined(krylov, rotation), krylov.basis[krylov.num :][: krylov.width]])
    krylov.basis[: len(rows)] = rows
    krylov.projected, krylov.coupling = np.diag(values), krylov.coupling @ rotation
