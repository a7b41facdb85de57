"""In how many directions of weight space does the information lie?

The largest eigenvalues of the Fisher information, and effective numbers of dimensions, each under
its own name: there is no single one.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from landscape.analyses.fisher import attributes, prepared
from landscape.analyses.fisher_gradients import (
    Probe,
    Sampling,
    check_all_counted,
    observed,
    probe_at,
)
from landscape.engine import gradients_allowed
from landscape.evaluation import placed_state
from landscape.likelihoods import fisher_factor
from landscape.maths.lanczos import Quadrature, density, top_eigenvalues
from landscape.products import Product, fisher_product, gauss_newton_product, mean_loss
from landscape.results import dataset
from landscape.states import State, Stored
from landscape.task import Task

Array = NDArray[np.float64]

DENSE = 800  # parameters up to which a product with each is cheaper than probes
KINDS = ("exact", "observed")
LONG_NAMES = {
    "trace": "trace of the Fisher information",
    "intrinsic_dimension": "trace over largest eigenvalue",
    "participation_ratio": "squared trace over sum of squared eigenvalues",
    "effective_parameters": "sum of eigenvalue / (eigenvalue + damping)",
    "log_determinant": "log determinant of 1 + F / damping",
}


def fisher_eigenvalues(
    task: Task,
    state: State | Stored,
    num: int = 10,
    *,
    labels: str = "exact",
    likelihood: str = "auto",
    damping: float | None = None,
    tolerance: float = 1e-4,
    num_probes: int = 10,
    num_steps: int = 80,
    batch_norm: str | None = None,
    batch_norm_examples: int | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float32,
) -> xr.Dataset:
    """The largest eigenvalues of the Fisher information, and effective dimensions.

    Main arguments. `labels`: `"exact"`, the mean over all labels, or `"observed"`, the empirical
    Fisher information; a product with the matrix needs two backward passes over the data for
    either. `damping`: a of the last two dimensions below, in the units of eigenvalues.

    Other arguments. `tolerance`: residual of an eigenvalue, as a share of it. Models of more than
    800 parameters have Lanczos iterations, and for the dimensions stochastic Lanczos quadrature
    with `num_probes` and `num_steps`; smaller ones the whole matrix. Others as in `fisher_trace`.

    Returns `eigenvalue (index)` in falling order with its `residual`, and with `*_stderr` (over
    probes; zero for small models): `trace`; `intrinsic_dimension`, the trace over the largest
    eigenvalue (Tropp 2015, section 7.1); `participation_ratio`, the squared trace over the squared
    Frobenius norm; and with a damping a `effective_parameters`, the sum of l / (l + a) (MacKay
    1992), and `log_determinant`, that of 1 + F / a.

    Raises `ValueError` as `fisher_trace`, for a number of eigenvalues that the matrix does not
    have, and for labels that are ignored, whose positions products cannot leave out.
    """
    if labels not in KINDS:
        raise ValueError(f"labels of eigenvalues must be 'exact' or 'observed', got {labels!r}")
    if damping is not None and not damping > 0:
        raise ValueError(f"damping must be positive, got {damping}")
    how = Sampling(labels, likelihood, seed=seed)
    ready = prepared(task, state, [batch_norm], batch_norm_examples, device, dtype)
    placed = placed_state(ready, state, batch_norm=batch_norm)
    with gradients_allowed():
        probe = probe_at(ready, placed, how)
    mean = mean_loss(probe.task, placed, examples=probe.examples, device=ready.device, dtype=dtype)
    if not 1 <= num <= mean.size:
        raise ValueError(f"a matrix of {mean.size} rows has as many eigenvalues, got num={num}")
    if probe.likelihood is None:
        product = gauss_newton_product(replace(mean, loss=partial(_squared, probe)))
    else:
        with gradients_allowed():
            check_all_counted(probe)
        product = fisher_product(mean, partial(fisher_factor, probe.likelihood))
    options: dict[str, Any] = {"seed": seed, "device": ready.device}
    if mean.size <= DENSE:
        spectrum, spent = _spectrum(product, mean.size, ready.device), mean.size
        quadrature = Quadrature(spectrum, np.full(spectrum.shape, 1 / mean.size), mean.size, spent)
        values = spectrum[0, :num]
        residuals = np.full(num, np.finfo(np.float64).eps * values[0])
    else:
        pairs = top_eigenvalues(product, mean.size, num, tolerance=tolerance, **options)
        quadrature = density(
            product, mean.size, num_probes=num_probes, num_steps=num_steps, **options
        )
        values, residuals = pairs.values, pairs.residuals
        spent = pairs.num_products + quadrature.num_products
    variables = {
        "eigenvalue": ("index", values),
        "residual": ("index", residuals, {"long_name": "length of F v - eigenvalue v"}),
        **_dimensions(quadrature, values[0], damping),
    }
    return dataset(
        variables, {"index": np.arange(num)}, analysis="eigenvalues", matrix="fisher",
        title=f"The {num} largest eigenvalues of the Fisher information, {labels} labels",
        num_products=spent, num_parameters=mean.size, damping=damping or 0.0,
        **attributes(probe, ready, batch_norm),
    )  # fmt: skip


def _squared(probe: Probe, outputs: Tensor, targets: Any) -> Tensor:
    """A loss (b,) whose Hessian is s s', with s the gradient of the task's loss."""
    slopes = observed(probe, outputs, targets)
    return 0.5 * (slopes * outputs).reshape(len(outputs), -1).sum(1).square()


def _spectrum(product: Product, size: int, device: torch.device) -> Array:
    """All eigenvalues (1, size) in falling order."""
    matrix = product(torch.eye(size, dtype=torch.float64, device=device)).cpu()
    values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    return values.flip(0).clamp(min=0).numpy()[None]


def _dimensions(
    quadrature: Quadrature, largest: float, damping: float | None
) -> dict[str, tuple[Any, ...]]:
    """Effective dimensions, with standard errors from leaving out one probe at a time."""
    nodes, weights = np.clip(quadrature.nodes, 0, None), quadrature.weights * quadrature.size
    sums = {"trace": (weights * nodes).sum(1), "squares": (weights * nodes**2).sum(1)}
    if damping is not None:
        sums["effective_parameters"] = (weights * nodes / (nodes + damping)).sum(1)
        sums["log_determinant"] = (weights * np.log1p(nodes / damping)).sum(1)
    num = len(nodes)
    without = {name: (each.sum() - each) / max(num - 1, 1) for name, each in sums.items()}
    means = _named({name: each.mean() for name, each in sums.items()}, largest)
    spread = _named(without, largest)
    found: dict[str, tuple[Any, ...]] = {}
    for name, mean in means.items():
        words = LONG_NAMES[name]
        error = np.sqrt((num - 1) * np.var(spread[name])) if num > 1 else 0.0
        found[name] = ((), mean, {"long_name": words})
        found[f"{name}_stderr"] = ((), error, {"long_name": f"standard error of {words}"})
    return found


def _named(sums: dict[str, Any], largest: float) -> dict[str, Any]:
    """The dimensions that follow from traces of functions of the matrix."""
    squares = sums.pop("squares")
    ratio = np.where(squares > 0, sums["trace"] ** 2 / np.where(squares > 0, squares, 1), 0)
    intrinsic = sums["trace"] / largest if largest > 0 else 0 * sums["trace"]
    return {**sums, "intrinsic_dimension": intrinsic, "participation_ratio": ratio}
