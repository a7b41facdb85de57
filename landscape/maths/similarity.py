"""How alike are two sets of activations of the same examples?

Each measure has a form on arrays x (n, d) and y (n, e), numpy or torch, real or complex, and one on
an `Overlap` (`..._of`), which moments summed over batches give as well. Neurons are centred and
arithmetic is in float64. `float()` of a result is its headline: 1 for the same activations. What
leaves a measure as it is stands in `PROPERTIES`.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landscape.maths.kernels import Hsic, cosine, rbf_hsic, rsa
from landscape.maths.overlap import Activations, Overlap, Rows, Side, overlap, rows
from landscape.maths.scores import CCA, CKA, Array, Directions, Procrustes, Properties, Regression


def cca(
    x: Activations, y: Activations, *, rtol: float | None = None, directions: bool = False
) -> CCA:
    """Canonical correlation analysis: the mean correlation of the best aligned directions.

    `rtol` is the share of the largest singular value, of neurons at unit variance, below which a
    direction counts as noise (`overlap.relative_cut`). With `directions`, also the canonical
    variates and how they are made of the neurons. Raises as `cca_of` and `overlap.rows`.
    """
    sides = rows(x, rtol=rtol), rows(y, rtol=rtol, name="y")
    shared = overlap(*sides)
    found = cca_of(shared)
    return replace(found, directions=_directions(*sides, shared)) if directions else found


def cca_of(shared: Overlap) -> CCA:
    """As `cca`. A side without varying neurons gives nan with a reason.

    Warns if some correlations are 1 whatever the data, and raises `ValueError` if all are:
    with ranks r and s of n examples, max(0, r + s - (n - 1)) are. Raises `ArithmeticError` if a
    correlation stands above one by more than `shared.tolerance`.
    """
    return _canonical("cca", shared, torch.linalg.svdvals(shared.whitened))


def svcca(
    x: Activations,
    y: Activations,
    *,
    threshold: float = 0.99,
    num_directions: int | None = None,
    mass: str = "variance",
    rtol: float | None = None,
) -> CCA:
    """CCA of the leading principal directions of each side (Raghu et al. 2017); see `svcca_of`."""
    shared = overlap(rows(x, rtol=rtol), rows(y, rtol=rtol, name="y"))
    return svcca_of(shared, threshold=threshold, num_directions=num_directions, mass=mass)


def svcca_of(
    shared: Overlap,
    *,
    threshold: float = 0.99,
    num_directions: int | None = None,
    mass: str = "variance",
) -> CCA:
    """CCA of the fewest principal directions that hold `threshold` of the variance of each side.

    Neurons are centred but not scaled. With `mass="sv"` the shares are of the sum of the singular
    values, which are not variances; `num_directions` keeps that many (or all there are) instead.
    Raises and warns as `cca_of`, for the directions kept.
    """
    if num_directions is not None and num_directions < 1:
        raise ValueError(f"num_directions must be at least 1, got {num_directions}")
    kept = [num_directions or _num_leading(side, threshold, mass) for side in (shared.x, shared.y)]
    left, right = shared.x.components[:, : kept[0]], shared.y.components[:, : kept[1]]
    values = torch.linalg.svdvals(left.mH @ shared.whitened @ right)
    return _canonical("svcca", shared, values, left.shape[1], right.shape[1])


def pwcca(x: Activations, y: Activations, *, weights: str = "x", rtol: float | None = None) -> CCA:
    """Projection-weighted CCA (Morcos et al. 2018); see `pwcca_of`."""
    return pwcca_of(overlap(rows(x, rtol=rtol), rows(y, rtol=rtol, name="y")), weights=weights)


def pwcca_of(shared: Overlap, *, weights: str = "x") -> CCA:
    """The mean correlation, weighted by how much of the neurons lies along each canonical variate.

    The weight of variate h_i, of norm 1, is the sum over the neurons j of |<h_i, x_j>|, divided by
    the sum of the min(rank) weights (Morcos et al. 2018, section 3). `weights`: of the neurons of
    "x" or "y", of the side of "fewer" directions (x if equal), or "both", the mean of the two. The
    sum depends on the basis and the scale of the neurons; where correlations are equal, as forced
    ones are, the variates and so the weights are not unique. Raises and warns as `cca_of`.
    """
    if weights not in ("x", "y", "fewer", "both"):
        raise ValueError(f"weights must be 'x', 'y', 'fewer' or 'both', got {weights!r}")
    left, values, right = torch.linalg.svd(shared.whitened, full_matrices=False)
    found = _canonical("pwcca", shared, values)
    if found.reason:
        return replace(found, by_x=float("nan"), by_y=float("nan"))
    of = {
        "x": _shares(left.mH @ shared.x.loadings),
        "y": _shares(right @ shared.y.loadings),
    }
    of["both"] = (of["x"] + of["y"]) / 2
    of["fewer"] = of["y" if shared.y.rank < shared.x.rank else "x"]
    by_x, by_y = (float(np.average(found.correlations, weights=of[side])) for side in "xy")
    return replace(found, weights=of[weights], by_x=by_x, by_y=by_y)


def cka(
    x: Activations,
    y: Activations,
    *,
    debiased: bool = True,
    kernel: str = "linear",
    bandwidth: float = 0.5,
) -> CKA:
    """Centred kernel alignment (Kornblith et al. 2019), by default debiased: see `cka_of`.

    With `kernel="rbf"` the kernel is Gaussian; its width is `bandwidth` times the root of the
    median squared distance (`kernels.rbf_hsic`). Raises `ValueError` for other kernels, widths that
    are not positive, and as `cka_of`.
    """
    if kernel == "linear":
        return cka_of(overlap(rows(x), rows(y, name="y")), debiased=debiased)
    if kernel != "rbf":
        raise ValueError(f"kernel must be 'linear' or 'rbf', got {kernel!r}")
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")
    _enough(len(x), debiased)
    return _cka(rbf_hsic(x, y, bandwidth=bandwidth, debiased=debiased), len(x), debiased, kernel)


def cka_of(shared: Overlap, *, debiased: bool = True) -> CKA:
    """Linear CKA: |X^H Y|^2 / (|X^H X| |Y^H Y|) of centred X and Y, or its debiased estimate.

    The debiased one (Song et al. 2012) leaves out the products of an example with itself. Its mean
    over all orders of the examples is exactly 0, so it may be negative; it is nan where the
    criterion of a side with itself is not positive. (Of complex activations, it is unbiased but for
    a term in 1 / n^2.) Raises `ValueError` for a debiased estimate from fewer than four examples.
    """
    n, x, y = shared.num, shared.x, shared.y
    _enough(n, debiased)
    total_x, total_y = (float(side.values.square().sum()) for side in (x, y))

    def criterion(gram: Tensor, rows: Tensor, traces: float) -> float:
        if not debiased:
            return float(gram)
        return float(gram - n / (n - 2) * rows) + traces / ((n - 1) * (n - 2))

    found = Hsic(
        criterion(shared.squared_cross, shared.squared_rows, total_x * total_y),
        criterion(x.squared_gram, x.squared_rows, total_x**2),
        criterion(y.squared_gram, y.squared_rows, total_y**2),
        total_x,
        total_y,
    )
    return _cka(found, n, debiased, "linear")


def procrustes(x: Activations, y: Activations) -> Procrustes:
    """Angular Procrustes similarity (Williams et al. 2021): see `procrustes_of`."""
    return procrustes_of(overlap(rows(x), rows(y, name="y")))


def procrustes_of(shared: Overlap) -> Procrustes:
    """The nuclear norm of X^H Y over the norms of X and Y: the cosine after the best rotation.

    The narrower side is as if padded with zeros. nan if a side has no varying neurons.
    """
    reason = _why_nan(shared)
    if reason:
        return Procrustes(float("nan"), shared.num, reason)
    left, right = (
        side.components * (side.values / torch.linalg.vector_norm(side.values))
        for side in (shared.x, shared.y)
    )
    value = torch.linalg.svdvals(left.mH @ shared.whitened @ right).sum()
    return Procrustes(float(_bounded(value, shared.tolerance)), shared.num)


def regression(x: Activations, y: Activations, *, rtol: float | None = None) -> Regression:
    """The R^2 of linear regression of all neurons of y on those of x: see `regression_of`."""
    return regression_of(overlap(rows(x, rtol=rtol), rows(y, rtol=rtol, name="y")))


def regression_of(shared: Overlap) -> Regression:
    """|Qx^H Y|^2 / |Y|^2: the share of the variance of y, over all its neurons, linear in x.

    nan if a side has no varying neurons. Raises `ValueError` if x explains any y whatever the data,
    having rank n - 1.
    """
    x, y = shared.x, shared.y
    value, reason = float("nan"), _why_nan(shared)
    if not reason:
        if x.rank >= shared.num - 1:
            raise ValueError(
                f"regression explains any y: {shared.num} examples for rank {x.rank} of x; give "
                f"more than {x.rank + 1} examples, or compare by cka or procrustes"
            )
        scales = y.values / torch.linalg.vector_norm(y.values)
        explained = (shared.whitened @ (y.components * scales)).abs().square().sum()
        value = float(_bounded(explained, shared.tolerance))
    return Regression(value, shared.num, x.rank, y.rank, x.condition, reason)


_SHIFT = frozenset({"shift"})
_SCALE = frozenset({"isotropic scale"})
_ROTATION = _SHIFT | _SCALE | {"orthogonal map"}
_LINEAR = _ROTATION | {"neuron scale", "invertible map"}

PROPERTIES: Mapping[Callable[..., Any], Properties] = MappingProxyType({
    cca: Properties(_LINEAR, _LINEAR),
    svcca: Properties(_ROTATION, _ROTATION),
    pwcca: Properties(_SHIFT | _SCALE, _LINEAR, symmetric=False),
    cka: Properties(_ROTATION, _ROTATION),
    procrustes: Properties(_ROTATION, _ROTATION, metric=True),
    rsa: Properties(_SCALE, _SCALE),
    regression: Properties(_LINEAR, _ROTATION, symmetric=False),
})  # fmt: skip
"""The properties of each measure with its default options."""


def _canonical(
    measure: str,
    shared: Overlap,
    values: Tensor,
    rank_x: int | None = None,
    rank_y: int | None = None,
) -> CCA:
    """What canonical correlations say, of the whole of both sides or of some directions."""
    rank_x = shared.x.rank if rank_x is None else rank_x
    rank_y = shared.y.rank if rank_y is None else rank_y
    reason = _why_nan(shared)
    if not reason:
        _refuse_forced(shared.num, rank_x, rank_y, measure)
    correlations = _bounded(values, shared.tolerance)
    return CCA(
        correlations=correlations,
        weights=np.full(len(correlations), 1 / max(1, len(correlations))),
        num=shared.num,
        rank_x=rank_x,
        rank_y=rank_y,
        width_x=shared.x.width,
        width_y=shared.y.width,
        condition_x=shared.x.condition,
        condition_y=shared.y.condition,
        reason=reason,
    )


def _why_nan(shared: Overlap) -> str:
    idle = [name for name, side in (("x", shared.x), ("y", shared.y)) if side.rank == 0]
    return f"no neuron of {' or '.join(idle)} varies over the examples" if idle else ""


def _refuse_forced(num: int, rank_x: int, rank_y: int, measure: str) -> None:
    """Raise if all correlations are one whatever the data, warn if some are."""
    forced, count = rank_x + rank_y - (num - 1), min(rank_x, rank_y)
    if forced <= 0:
        return
    text = (
        f"{measure}: {num} examples for ranks {rank_x} and {rank_y} force {min(forced, count)} of "
        f"{count} correlations to be 1 whatever the data; give more than {rank_x + rank_y} "
        "examples, keep fewer directions (svcca with num_directions), or use cka or procrustes"
    )
    if forced >= count:
        raise ValueError(text)
    warnings.warn(text, UserWarning, stacklevel=5)


def _bounded(values: Tensor, tolerance: float) -> Array:
    """Values whose largest possible is 1: exactly 1 where they differ from it by rounding."""
    array = values.cpu().numpy()
    if array.size and not array.max() <= 1 + tolerance:
        raise ArithmeticError(
            f"a similarity of {array.max():.12g} was found where at most 1 is possible: the bases "
            f"are not orthonormal to {tolerance:g}; gather moments more exactly (float64, or QR)"
        )
    return np.where(array > 1 - 1e-13, 1.0, array)


def _shares(projections: Tensor) -> Array:
    """Sums over the neurons of |projections| (directions, neurons), as shares of their sum."""
    sums = projections.abs().sum(1).cpu().numpy()
    return sums / sums.sum()


def _num_leading(side: Side, threshold: float, mass: str) -> int:
    """The smallest number of principal directions that hold a share of the mass."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], got {threshold}")
    if mass not in ("variance", "sv"):
        raise ValueError(f"mass must be 'variance' or 'sv', got {mass!r}")
    if threshold == 1 or side.rank == 0:
        return side.rank
    held = (side.values.square() if mass == "variance" else side.values).cumsum(0)
    return int((held < threshold * held[-1]).sum()) + 1


def _directions(x: Rows, y: Rows, shared: Overlap) -> Directions:
    left, _, right = torch.linalg.svd(shared.whitened, full_matrices=False)
    pairs = [(x, left), (y, right.mH)]
    variates_x, variates_y = ((one.basis @ turn).cpu().numpy() for one, turn in pairs)
    coefficients_x, coefficients_y = (_coefficients(one.side, turn) for one, turn in pairs)
    return Directions(variates_x, variates_y, coefficients_x, coefficients_y)


def _coefficients(side: Side, turn: Tensor) -> NDArray[Any]:
    """The least coefficients, of neurons at unit variance, that make the variates."""
    lengths = torch.linalg.vector_norm(side.loadings, dim=0)
    inverse = torch.where(lengths == 0, torch.zeros_like(lengths), 1 / lengths)
    found = torch.linalg.pinv(side.loadings * inverse, rtol=0.0) @ turn
    return (inverse[:, None] * found).cpu().numpy()


def _enough(num: int, debiased: bool) -> None:
    if debiased and num < 4:
        raise ValueError(f"debiased CKA needs at least 4 examples, got {num}")


def _cka(found: Hsic, num: int, debiased: bool, kernel: str) -> CKA:
    value, reason, chance = cosine(found.cross, found.x, found.y), "", 0.0
    idle = [name for name, own in (("x", found.x), ("y", found.y)) if not own > 0]
    if np.isnan([found.x, found.y]).any():
        reason = f"at least half of the distances of {' and '.join(idle)} are zero: no bandwidth"
    elif idle:
        reason = (
            f"the independence criterion of {' and '.join(idle)} with itself is not positive: "
            "too few examples, or too few that vary"
        )
    if not debiased:
        chance = cosine(found.trace_x * found.trace_y / (num - 1), found.x, found.y)
    return CKA(value, num, debiased, kernel, chance, reason)
