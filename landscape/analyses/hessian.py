"""How is the loss curved at a solution? Eigenvalues, trace and spectral density of its Hessian.

Or of the Gauss-Newton matrix, the part of the Hessian that is never negative where the loss is
convex in the outputs. Both are of the mean loss over all examples, with respect to the parameters
that the user's model does not freeze; no matrix is ever formed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm import tqdm

from landscape.analyses.curvature import (
    at_state,
    direction,
    mean_loss_at,
    restricted,
    within_memory,
)
from landscape.evaluation import Tasks
from landscape.maths.lanczos import Eigenpairs, density, smooth, spectral_sum, top_eigenvalues
from landscape.maths.traces import Product, hutch_plus_plus, hutchinson, xtrace
from landscape.products import MeanLoss, gauss_newton_product, hessian_product
from landscape.results import dataset
from landscape.states import State, Stored

Result = TypeVar("Result")
MATRICES = {"hessian": hessian_product, "gauss-newton": gauss_newton_product}
NAMES = {"hessian": "Hessian", "gauss-newton": "Gauss-Newton matrix"}
METHODS = {"hutchinson": hutchinson, "hutch++": hutch_plus_plus, "xtrace": xtrace}


def hessian_eigenvalues(
    task: Tasks,
    state: State | Stored,
    num: int = 5,
    *,
    layers: str | Sequence[str] | None = None,
    matrix: str = "hessian",
    which: str = "largest",
    tolerance: float = 1e-4,
    max_products: int | None = None,
    seed: int = 0,
    progress: bool | None = False,
    **options: Any,
) -> xr.Dataset:
    """The eigenvalues at an end of the spectrum, by Lanczos that stops when residuals are small.

    Main arguments. `task`: one, or several of which the one named `"train"`, or the first, counts.
    `layers`: the eigenvalues of diagonal blocks of the matrix instead, as in `parameter_blocks`.
    `matrix`: `"hessian"` or `"gauss-newton"`. `which`: the `num` `"largest"`, in falling order; the
    largest in `"magnitude"`; or those at `"both ends"`, the num largest and then the num smallest,
    each from the end inwards.

    Other arguments. `tolerance` and `max_products` are those of `maths.lanczos.top_eigenvalues`.
    `progress`: True, False, or None for a bar if standard error is a terminal. Further `options`
    are those of `mean_loss_at`: `batch_norm`, `batch_size`, `device`, `dtype`, ...

    Returns `eigenvalue` and `residual` (there is an eigenvalue no further away) along `index`,
    after `block` if there are layers; and the `loss` and the `gradient_norm` at the state. The
    attribute `converged` says whether all residuals met the tolerance. An eigenvalue shows once,
    whatever its multiplicity.

    Raises `ValueError` for an unknown matrix, end or layer, for more eigenvalues than parameters,
    and where the loss cannot be differentiated, naming the example.
    """
    search = partial(
        _eigenpairs, num=num, matrix=matrix, which=which, tolerance=tolerance,
        max_products=max_products, seed=seed, progress=progress,
    )  # fmt: skip
    mean, attrs = mean_loss_at(task, state, **options)
    mean, variables = at_state(mean)
    parts = {"": mean} if layers is None else restricted(mean, layers)
    wanted = 2 * num if which == "both ends" else num
    for name, part in parts.items():
        if layers is not None and part.size < wanted:
            raise ValueError(
                f"{name!r} has {part.size} parameters, fewer than the {wanted} eigenvalues asked "
                "for: ask for fewer, or name other layers"
            )
    found = [search(part) for part in parts.values()]
    blocks = None if layers is None else list(parts)
    return _eigenvalues(found, blocks, variables, matrix=matrix, which=which,
                        tolerance=tolerance, seed=seed, **attrs)  # fmt: skip


def hessian_eigenvectors(
    task: Tasks,
    state: State | Stored,
    num: int = 5,
    *,
    matrix: str = "hessian",
    which: str = "largest",
    tolerance: float = 1e-4,
    max_products: int | None = None,
    seed: int = 0,
    progress: bool | None = False,
    **options: Any,
) -> tuple[xr.Dataset, list[State]]:
    """What `hessian_eigenvalues` gives, and the eigenvectors as directions of a family.

    Arguments and errors are those of `hessian_eigenvalues`. Each direction is of length 1 over the
    parameters, in float64, and has no entries for buffers and frozen parameters: in
    `affine(state, *directions)` these stay as they are. All names of a tied weight have its entry.
    """
    mean, attrs = mean_loss_at(task, state, **options)
    mean, variables = at_state(mean)
    pairs = _eigenpairs(mean, num, matrix, which, tolerance, max_products, seed, progress)
    result = _eigenvalues([pairs], None, variables, matrix=matrix, which=which,
                          tolerance=tolerance, seed=seed, **attrs)  # fmt: skip
    return result, [direction(mean, vector) for vector in pairs.vectors.T]


def hessian_trace(
    task: Tasks,
    state: State | Stored,
    *,
    layers: str | Sequence[str] | None = None,
    matrix: str = "hessian",
    method: str = "hutchinson",
    tolerance: float | None = 0.05,
    num_products: int = 30,
    max_products: int = 1000,
    seed: int = 0,
    progress: bool | None = False,
    **options: Any,
) -> xr.Dataset:
    """The trace, the sum of all eigenvalues, estimated from products with random vectors.

    Main arguments. `task`, `matrix` and `layers` as in `hessian_eigenvalues`. `method`:
    `"hutchinson"`, whose probes serve all layers at once; `"hutch++"` or `"xtrace"`, for a total,
    which need far fewer products where a few eigenvalues are large. `tolerance`: probes are drawn
    until the standard error of the total is no larger than that share of it, or `max_products` are
    spent; None: `num_products` are spent. The estimators are described in `maths.traces`.

    Returns `trace` and `trace_stderr`; with layers these are along `block`, and `total` and
    `total_stderr` are the trace over all of the blocks, which have `num_parameters`. Also `loss`
    and `gradient_norm` at the state. The attribute `converged` says whether the tolerance was met.

    Raises `ValueError` as `hessian_eigenvalues`, for an unknown method, and for layers with a
    method other than `"hutchinson"`.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    if layers is not None and method != "hutchinson":
        raise ValueError(f"layers need method='hutchinson', whose probes serve all, got {method!r}")
    mean, attrs = mean_loss_at(task, state, **options)
    mean, variables = at_state(mean)
    parts = {} if layers is None else restricted(mean, layers)
    if parts:
        mean = replace(mean, names=tuple(n for part in parts.values() for n in part.names))
    slices, start = {}, 0
    for name, part in parts.items():
        slices[name] = slice(start, start := start + part.size)
    blocks = {"blocks": slices} if parts else {}
    most = None if tolerance is None else max_products
    found = on_products(
        mean, matrix,
        lambda product: METHODS[method](
            product, mean.size, num_products=num_products, tolerance=tolerance,
            max_products=most, seed=seed, device=mean.device, **blocks,
        ),
        progress,
    )  # fmt: skip
    values = {"trace": found.value, "trace_stderr": found.stderr}
    if parts:
        values = {"total": found.value, "total_stderr": found.stderr}
        of = found.blocks.values()
        variables |= {
            "trace": ("block", [estimate.value for estimate in of]),
            "trace_stderr": ("block", [estimate.stderr for estimate in of]),
            "num_parameters": ("block", [part.size for part in parts.values()]),
        }
    words = {"long_name": f"trace of the {NAMES[matrix]}"}
    variables |= {
        name: ((), value, {} if name.endswith("_stderr") else words)
        for name, value in values.items()
    }
    return dataset(
        variables,
        {"block": list(parts)} if parts else {},
        analysis="hessian trace",
        title=f"Trace of the {matrix} at a state",
        matrix=matrix,
        method=method,
        tolerance=tolerance,
        converged=found.converged,
        num_products=found.num_products,
        degrees_of_freedom=found.degrees_of_freedom,
        seed=seed,
        **attrs,
    )


def hessian_density(
    task: Tasks,
    state: State | Stored,
    *,
    matrix: str = "hessian",
    num_probes: int = 10,
    num_steps: int = 80,
    grid: ArrayLike | int = 1000,
    width: float | None = None,
    log: bool = False,
    seed: int = 0,
    progress: bool | None = False,
    **options: Any,
) -> xr.Dataset:
    """How the eigenvalues are distributed, by stochastic Lanczos quadrature.

    Main arguments. `task` and `matrix` as in `hessian_eigenvalues`. `num_probes` and `num_steps`:
    random vectors, and products with each (see `maths.lanczos.density`). `grid`, `width` and `log`:
    where the density is wanted, or at how many points; the standard deviation of the Gaussian that
    stands for each eigenvalue; and whether it is by decades (see `maths.lanczos.smooth`).

    Returns `density` and `density_stderr` (over probes) along `eigenvalue`, which integrate to 1;
    on a log scale per decade, after `sign` (1, -1), with what is too small for the grid in the
    attribute `near_zero`. Also the `nodes` and `weights` (probe, node) that they are drawn from,
    the `trace` with `trace_stderr` that follows from them, and `loss` and `gradient_norm`.

    Raises `ValueError` as `hessian_eigenvalues`, and for a width that is not positive. (Ghorbani et
    al. 2019.)
    """
    if width is not None and not width > 0:
        raise ValueError(f"width must be positive, got {width}")
    mean, attrs = mean_loss_at(task, state, **options)
    mean, variables = at_state(mean)
    found = on_products(
        mean, matrix,
        lambda product: density(
            product, mean.size, num_probes=num_probes, num_steps=num_steps, seed=seed,
            device=mean.device,
        ),
        progress,
    )  # fmt: skip
    drawn, trace = smooth(found, grid, width=width, log=log), spectral_sum(found, lambda x: x)
    dims = ("sign", "eigenvalue") if log else ("eigenvalue",)
    variables |= {
        "density": (dims, drawn.density),
        "density_stderr": (dims, drawn.stderr),
        "nodes": (("probe", "node"), found.nodes),
        "weights": (("probe", "node"), found.weights),
        "trace": ((), trace.value),
        "trace_stderr": ((), trace.stderr),
    }
    return dataset(
        variables,
        {**({"sign": [1, -1]} if log else {}), "eigenvalue": drawn.grid},
        analysis="spectral density",
        title=f"Spectral density of the {matrix} at a state",
        matrix=matrix,
        width=drawn.width,
        **({"near_zero": drawn.near_zero} if log else {}),
        num_products=found.num_products,
        seed=seed,
        **attrs,
    )


def on_products(
    mean: MeanLoss,
    matrix: str,
    work: Callable[[Product], Result],
    progress: bool | None,
) -> Result:
    """What `work` gives for products with a matrix, `"hessian"` or `"gauss-newton"`."""
    if matrix not in MATRICES:
        raise ValueError(f"matrix must be 'hessian' or 'gauss-newton', got {matrix!r}")

    def with_products(mean: MeanLoss) -> Result:
        with _counted(MATRICES[matrix](mean), progress) as product:
            return work(product)

    return within_memory(mean, with_products)[1]


@contextmanager
def _counted(product: Product, progress: bool | None) -> Iterator[Product]:
    """A product with a bar that counts vectors."""
    with tqdm(unit="product", disable=None if progress is None else not progress) as bar:

        def counting(vectors: Tensor) -> Tensor:
            answers = product(vectors)
            bar.update(1 if vectors.ndim == 1 else vectors.shape[1])
            return answers

        yield counting


def _eigenpairs(
    mean: MeanLoss,
    num: int,
    matrix: str,
    which: str,
    tolerance: float,
    max_products: int | None,
    seed: int,
    progress: bool | None,
) -> Eigenpairs:
    find = partial(
        top_eigenvalues, size=mean.size, num=num, which=which, tolerance=tolerance,
        max_products=max_products, seed=seed, device=mean.device,
    )  # fmt: skip
    return on_products(mean, matrix, find, progress)


def _eigenvalues(
    found: Sequence[Eigenpairs],
    blocks: Sequence[str] | None,
    variables: dict[str, Any],
    **attrs: Any,
) -> xr.Dataset:
    """Eigenvalues as a dataset: those of several blocks, or of one matrix."""
    values = np.stack([pairs.values for pairs in found])
    residuals = np.stack([pairs.residuals for pairs in found])
    coords: dict[str, Any] = {"index": np.arange(values.shape[1])}
    if blocks is None:
        values, residuals = values[0], residuals[0]
    else:
        coords = {"block": list(blocks), **coords}
    dims = tuple(coords)
    return dataset(
        {**variables, "eigenvalue": (dims, values), "residual": (dims, residuals)},
        coords,
        analysis="eigenvalues",
        title=f"Eigenvalues of the {attrs['matrix']} at a state",
        converged=all(pairs.converged.all() for pairs in found),
        num_products=sum(pairs.num_products for pairs in found),
        asymmetry=max(pairs.asymmetry for pairs in found),
        **attrs,
    )
