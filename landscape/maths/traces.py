"""What is the trace of a matrix that is known by its products with vectors only?

Three estimators for a symmetric A of n rows, all unbiased, all from random probes: `hutchinson`
needs no memory and gives the traces of diagonal blocks too; `hutch_plus_plus` and `xtrace` also
find the directions in which A is largest, and are far better where eigenvalues fall fast. A product
maps a matrix (n, m) to (n, m), column by column.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from scipy import stats
from torch import Tensor

Product = Callable[[Tensor], Tensor]
AT_ONCE = 2**25  # numbers in the columns that are given to a product at once
WIDENED = 1.2  # standard errors of XTrace: its estimates are not independent


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error."""

    value: float
    stderr: float


@dataclass(frozen=True)
class Trace:
    """An estimated trace.

    `stderr` is the standard error of `value` over the probes, with `degrees_of_freedom` for a t
    interval; 0 if the trace is exact. `num_products` products with single vectors were spent.
    `converged` says whether the tolerance was met (True if there was none), and `blocks` has the
    traces of diagonal blocks.
    """

    value: float
    stderr: float
    degrees_of_freedom: int
    num_products: int
    converged: bool
    blocks: Mapping[str, Estimate] = field(default_factory=dict)


def hutchinson(
    product: Product,
    size: int,
    *,
    num_products: int = 30,
    tolerance: float | None = None,
    max_products: int | None = None,
    blocks: Mapping[str, slice] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Trace:
    """The mean of z'Az over probes z of random signs (Hutchinson 1989).

    Main arguments. `product`: maps (size, m) to (size, m). `num_products`: the number of probes,
    or with a `tolerance` of the first ones: more are drawn until the standard error is surely
    (by its upper 90 % bound) no larger than that share of the value, or `max_products` (default:
    100 times as many) are spent. `blocks`: parts of the vector whose own traces are wanted, from
    the same probes; if they make up the whole vector they sum to the total.

    The standard error is the standard deviation of z'Az over the probes by the root of their
    number. Its square is 2 / num_products times the sum of the squares of A off the diagonal.
    Simulated 95 % t intervals hold the truth in 0.93 to 0.97 of the cases from 30 probes on
    (with 12, down to 0.88 where few eigenvalues dominate), with a tolerance in 0.94 to 0.96.

    Raises `ValueError` for fewer than two products or values that are not finite.
    """
    parts = {"": slice(0, size), **(blocks or {})}
    probes = signs(size, seed, device)
    found: list[Tensor] = []

    def measure(num: int) -> Trace:
        for z in _groups(probes, num - sum(len(values) for values in found), size):
            weighted = z * applied(product, z)
            found.append(torch.stack([weighted[part].sum(0) for part in parts.values()], 1).cpu())
        values = torch.cat(found)
        total, *others = map(_mean, values.T)
        named = dict(zip(blocks or {}, others, strict=True))
        return Trace(total.value, total.stderr, num - 1, num, True, named)

    return _refined(measure, num_products, tolerance, max_products, step=1, least=2)


def hutch_plus_plus(
    product: Product,
    size: int,
    *,
    num_products: int = 30,
    tolerance: float | None = None,
    max_products: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Trace:
    """Hutch++: the trace in the range of AS exactly, the rest by probes (Meyer et al. 2021).

    Arguments and errors are those of `hutchinson`. A third of the products goes into the range Q
    of AS for random signs S, a third into tr Q'AQ, and a third into Hutchinson's estimate for
    (I - QQ') A (I - QQ'), whose standard error (given Q) is that of the whole. With a `tolerance`
    all three grow. Simulated 95 % t intervals hold the truth in 0.89 to 0.96 of the cases from 30
    products on, with a tolerance in 0.91 to 0.96. Memory: 5 / 3 `num_products` vectors in float64.
    """
    draws, probes = (signs(size, number, device) for number in (seed, seed + 2**31))
    sketch = _sketch(size, device)
    tried = answers = sketch.basis

    def measure(num: int) -> Trace:
        nonlocal tried, answers
        third = num // 3
        _grow(sketch, product, draws, min(third, size))
        for z in _groups(probes, third - tried.shape[1], size):
            tried = torch.cat([tried, z], 1)
            answers = torch.cat([answers, applied(product, z)], 1)
        projected, inside = sketch.basis.T @ sketch.image, sketch.basis.T @ tried
        seen = (inside * (2 * sketch.basis.T @ answers - projected @ inside)).sum(0)
        outside = _mean((tried * answers).sum(0) - seen)
        value = projected.trace().item() + outside.value
        return Trace(value, outside.stderr, third - 1, sketch.num_products + third, True)

    return _refined(measure, num_products, tolerance, max_products, step=3, least=6)


def xtrace(
    product: Product,
    size: int,
    *,
    num_products: int = 30,
    tolerance: float | None = None,
    max_products: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Trace:
    """XTrace: as Hutch++, but every probe serves both parts (Epperly, Tropp and Webber 2024).

    Arguments and errors are those of `hutchinson`. With k = num_products / 2 probes W, each in turn
    is left out of the range Q of AW and tests what is outside of it; the value is the mean of these
    estimates. Probes are uniform on a sphere and the tests are scaled to their mean length, so that
    a multiple of the identity has no error at all. The standard error is that of the mean of k
    independent values, widened by a fifth for what these share. Simulated 95 % t intervals hold the
    truth in 0.89 to 0.99 of the cases from 30 products on, with a tolerance in 0.87 to 0.97.
    Memory: 1.5 `num_products` vectors in float64.
    """
    draws = _spherical(size, seed, device)
    sketch = _sketch(size, device)

    def measure(num: int) -> Trace:
        half = min(num // 2, size)
        _grow(sketch, product, draws, half)
        estimate = _mean(_leaving_one_out(sketch))
        stderr = WIDENED * estimate.stderr
        return Trace(estimate.value, stderr, half - 1, sketch.num_products, True)

    return _refined(measure, num_products, tolerance, max_products, step=2, least=4)


@dataclass
class _Sketch:
    """The range of A times k probes W (size, k), which can grow.

    `basis` (size, r) is an orthonormal basis Q of AW, `image` (size, r) is AQ, and `reached` (r, k)
    is Q'AW.
    """

    probes: Tensor
    basis: Tensor
    image: Tensor
    reached: Tensor
    num_products: int = 0


def _sketch(size: int, device: torch.device | str) -> _Sketch:
    empty = torch.zeros(size, 0, dtype=torch.float64, device=device)
    return _Sketch(empty, empty, empty, empty[:0])


def _grow(sketch: _Sketch, product: Product, draws: Iterator[Tensor], num: int) -> None:
    """Have `num` probes."""
    size, have = sketch.probes.shape
    for z in _groups(draws, num - have, size):
        answers = applied(product, z)
        new = _outside(answers, sketch.basis)
        sketch.num_products += z.shape[1] + new.shape[1]
        zeros = new.new_zeros(new.shape[1], sketch.probes.shape[1])
        sketch.basis = torch.cat([sketch.basis, new], 1)
        sketch.image = torch.cat([sketch.image, applied(product, new)], 1)
        sketch.probes = torch.cat([sketch.probes, z], 1)
        sketch.reached = torch.cat([sketch.reached, zeros])
        sketch.reached = torch.cat([sketch.reached, sketch.basis.T @ answers], 1)


def _outside(vectors: Tensor, basis: Tensor) -> Tensor:
    """An orthonormal basis of what vectors add to an orthonormal basis; dependent ones are lost."""
    largest = torch.linalg.vector_norm(vectors, dim=0).max()
    for _ in range(2):
        vectors = vectors - basis @ (basis.T @ vectors)
    left, values, _ = torch.linalg.svd(vectors, full_matrices=False)
    left = left[:, (values > 1e-13 * largest).nonzero()[:, 0]]
    return torch.linalg.qr(left - basis @ (basis.T @ left))[0]


def _leaving_one_out(sketch: _Sketch) -> Tensor:
    """The estimates (k,) of XTrace, each of which leaves a probe w out of the range of AW.

    What is left of Q is Q (I - ss'), where s is a column of the inverse transpose of R = Q'AW, at
    length 1; all of Q is left where the columns of AW are linearly dependent.
    """
    size, num = sketch.probes.shape
    rank = sketch.basis.shape[1]
    projected, inside = sketch.basis.T @ sketch.image, sketch.basis.T @ sketch.probes
    if rank == size:
        return projected.trace().expand(num)
    lost = torch.zeros_like(inside)
    if rank == num:
        lost = torch.linalg.inv(sketch.reached).T
        lost = lost / torch.linalg.vector_norm(lost, dim=0)
    traces = projected.trace() - (lost * (projected @ lost)).sum(0)
    within = inside - lost * (lost * inside).sum(0)  # the part of w in what is left of Q
    seen = (within * (2 * sketch.reached - projected @ within)).sum(0)
    tests = (inside * sketch.reached).sum(0) - seen
    dimensions = size - rank + (rank == num)
    return traces + tests * dimensions / (size - within.square().sum(0))


def _refined(
    measure: Callable[[int], Trace],
    num: int,
    tolerance: float | None,
    most: int | None,
    *,
    step: int,
    least: int,
) -> Trace:
    """Measure with more products until the standard error is small enough, or `most` are spent."""
    most = 100 * num if most is None else most
    if not least <= num <= most:
        raise ValueError(
            f"num_products must be at least {least} for an error to be seen, and at most "
            f"max_products, got {num} and {most}"
        )
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"tolerance must be positive, or None for no limit, got {tolerance}")
    trace = measure(num)
    while tolerance is not None and (excess := _excess(trace, tolerance)) > 1:
        wanted = min(most, math.ceil(num * min(2.0, max(1.2, excess**2))) + step)
        if wanted // step <= num // step:
            return replace(trace, converged=False)
        num, trace = wanted, measure(wanted)
    return trace


def _excess(trace: Trace, tolerance: float) -> float:
    """How many times the tolerance the standard error is, by its upper 90 % bound.

    The standard error of a few probes is itself uncertain, and often too small where it is taken
    for small enough.
    """
    freedom = trace.degrees_of_freedom
    bound = trace.stderr * (freedom / stats.chi2.ppf(0.1, freedom)) ** 0.5
    if bound <= tolerance * abs(trace.value):
        return 0.0
    return float(bound / (tolerance * abs(trace.value))) if trace.value else math.inf


def _mean(values: Tensor) -> Estimate:
    """The mean of values (n,) with the standard error that their spread shows."""
    return Estimate(values.mean().item(), values.std().item() / len(values) ** 0.5)


def applied(product: Product, vectors: Tensor) -> Tensor:
    """A times vectors (size, m), in float64."""
    if not vectors.shape[1]:
        return vectors
    answers = product(vectors).to(vectors)
    if not torch.isfinite(answers).all():
        raise ValueError("a product with the matrix gave values that are not finite")
    return answers


def _groups(draws: Iterator[Tensor], num: int, size: int) -> Iterator[Tensor]:
    """`num` probes as the columns of matrices of a limited size."""
    most = max(1, AT_ONCE // size)
    for start in range(0, num, most):
        yield torch.stack(list(islice(draws, min(most, num - start))), 1)


def signs(size: int, seed: int, device: torch.device | str) -> Iterator[Tensor]:
    """Endless vectors (size,) of random signs."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        bits = torch.randint(0, 2, (size,), generator=generator)
        yield (2 * bits - 1).to(device=device, dtype=torch.float64)


def _spherical(size: int, seed: int, device: torch.device | str) -> Iterator[Tensor]:
    """Endless vectors (size,) that are uniform on the sphere of the radius of vectors of signs."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        normal = torch.randn(size, generator=generator, dtype=torch.float64)
        yield (normal * (size**0.5 / torch.linalg.vector_norm(normal))).to(device)
