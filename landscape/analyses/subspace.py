"""How much of the gradient lies in the few directions along which the loss is curved most?

At each checkpoint the gradient of the mean loss is split by the eigenvectors of the largest
eigenvalues of the Hessian, whose subspace is compared with that of the checkpoint before.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm import tqdm

from landscape.analyses.curvature import mean_loss_at, within_memory
from landscape.analyses.hessian import NAMES, on_products
from landscape.evaluation import Tasks, placing, prepare
from landscape.maths.lanczos import top_eigenvalues
from landscape.products import gradient
from landscape.results import dataset
from landscape.states import State, Stored, loaded


def gradient_subspace(
    task: Tasks,
    checkpoints: Sequence[State | Stored],
    num: int = 10,
    *,
    steps: Sequence[int] | None = None,
    matrix: str = "hessian",
    tolerance: float = 1e-4,
    max_products: int | None = None,
    seed: int = 0,
    progress: bool | None = False,
    **options: Any,
) -> xr.Dataset:
    """The share of the gradient's squared length that lies in the top subspace, at each checkpoint.

    The top subspace is spanned by the eigenvectors v of the `num` largest eigenvalues; the share is
    the sum of (v g)^2 / |g|^2 over them, where g is the gradient of the mean loss over all examples
    (Gur-Ari, Roberts and Dyer 2018, arXiv 1812.04754, who take as many as there are classes). A
    direction drawn at random has a share of `num` by `num_parameters` on average.

    Main arguments. `task`: one, or several of which the one named `"train"`, or the first, counts.
    `checkpoints`: states or what holds them, one or more. `steps`: training steps, by default those
    that the checkpoints know (`.step`), else 0, 1, ... `matrix`: `"hessian"` or `"gauss-newton"`.

    Other arguments. `tolerance` and `max_products` are those of `maths.lanczos.top_eigenvalues`: an
    eigenvector is off by about its residual over the distance to the next eigenvalue. `progress`:
    True, False, or None for a bar if standard error is a terminal. Further `options` are those of
    `mean_loss_at`: `batch_norm`, `batch_size`, `device`, `dtype`, ...

    Returns over `step`: `gradient_share`, 0 to 1, and NaN where the gradient is 0;
    `subspace_overlap` with the checkpoint before, the mean squared length of the unit vectors of
    one subspace within the other, 1 for the same one (NaN at the first); `loss` and
    `gradient_norm`; and over (`step`, `index`) the `eigenvalue` in falling order, its `residual`,
    and the `squared_cosine` of its eigenvector with the gradient, whose sum is the share. The
    attribute `converged` says whether all residuals met the tolerance. Of an eigenvalue that occurs
    many times one eigenvector counts.

    Raises `ValueError` for no checkpoint, or another number of steps; and as `hessian_eigenvalues`,
    naming the step.
    """
    labels = _steps(checkpoints, steps)
    ready = prepare(task, [loaded(checkpoints[0])], **placing(options))
    find = partial(
        top_eigenvalues, num=num, tolerance=tolerance, max_products=max_products, seed=seed
    )
    rows: list[dict[str, Any]] = []
    converged, spent = True, 0
    before: Tensor | None = None
    hide = None if progress is None else not progress
    for checkpoint in tqdm(checkpoints, unit="checkpoint", disable=hide):
        try:
            mean, attrs = mean_loss_at(ready, checkpoint, **options)
            mean, (loss, slope) = within_memory(mean, gradient)
            work = partial(find, size=mean.size, device=mean.device)
            found = on_products(mean, matrix, work, progress=False)
        except ValueError as error:
            raise ValueError(f"the checkpoint of step {labels[len(rows)]}: {error}") from error
        cosines = squared_cosines(slope, found.vectors)
        rows.append({
            "gradient_share": np.minimum(cosines.sum(), 1.0),
            "subspace_overlap": np.nan if before is None else overlap(before, found.vectors),
            "loss": loss,
            "gradient_norm": slope.norm().item(),
            "squared_cosine": cosines,
            "eigenvalue": found.values,
            "residual": found.residuals,
        })  # fmt: skip
        converged, spent = converged and bool(found.converged.all()), spent + found.num_products
        before = found.vectors  # all others are let go: they are many times as large as a state
    return _labelled(
        rows, labels, matrix=matrix, converged=converged, num_products=spent, tolerance=tolerance,
        seed=seed, **attrs,
    )  # fmt: skip


def squared_cosines(vector: Tensor, basis: Tensor) -> np.ndarray:
    """Squared cosines (k,) of a vector (P,) with orthonormal columns (P, k); NaN for no length.

    Their sum is the share of the vector's squared length within the span of the columns.
    """
    length = torch.linalg.vector_norm(vector)
    if length == 0:
        return np.full(basis.shape[1], np.nan)
    return (basis.T @ (vector / length)).square().cpu().numpy()


def overlap(a: Tensor, b: Tensor) -> float:
    """How alike the spans of two orthonormal bases (P, k) are: 1 if the same, 0 if at right angles.

    The mean squared length of the unit vectors of one in the other, |a' b|^2 / k; it is k / P on
    average for spans drawn at random.
    """
    return float((a.T @ b).square().sum() / a.shape[1])


def _labelled(
    rows: Sequence[dict[str, Any]],
    steps: Sequence[int],
    *,
    matrix: str,
    **attrs: Any,
) -> xr.Dataset:
    num = len(rows[0]["eigenvalue"])
    words = {
        "gradient_share": f"share of the gradient in the top {num} directions",
        "subspace_overlap": f"overlap of the top {num} directions with those before",
        "squared_cosine": "squared cosine of the eigenvector with the gradient",
    }
    variables: dict[str, Any] = {
        name: (
            ("step", "index")[: np.ndim(rows[0][name]) + 1],
            np.stack([row[name] for row in rows]),
            {"long_name": words[name]} if name in words else {},
        )
        for name in rows[0]
    }
    return dataset(
        variables,
        {"step": list(steps), "index": np.arange(num)},
        analysis="gradient subspace",
        title=f"Gradient in the top {num} directions of the {NAMES[matrix]} at {len(steps)} steps",
        matrix=matrix,
        **attrs,
    )


def _steps(checkpoints: Sequence[State | Stored], steps: Sequence[int] | None) -> list[int]:
    """A training step for each checkpoint."""
    if not len(checkpoints):
        raise ValueError("there is no checkpoint: give at least one")
    known = [getattr(one, "step", None) for one in checkpoints] if steps is None else list(steps)
    if len(known) != len(checkpoints):
        raise ValueError(f"got {len(known)} steps for {len(checkpoints)} checkpoints")
    found = [int(one) for one in known if one is not None]
    return found if len(found) == len(known) else list(range(len(known)))
