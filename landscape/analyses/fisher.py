"""How much information do the weights hold about the labels that the network gives?

The Fisher information F is the mean over examples x and over labels y, drawn by the network itself
from p(y | x), of g g', with g the gradient of log p(y | x) with respect to the weights. `labels`
says how the mean over y is taken: `"sampled"`, `"exact"`, or with the data's own labels instead of
the network's, `"observed"`: the empirical Fisher, which is another quantity with another curve.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from landscape.analyses.fisher_gradients import Probe, Sampling, probe_at, pulled
from landscape.analyses.fisher_sampling import Estimate, estimated, planned
from landscape.engine import gradients_allowed
from landscape.evaluation import Prepared, Tasks, described, placed_state, prepare
from landscape.results import dataset
from landscape.states import State, Stored, loaded

Array = NDArray[np.float64]

PARTS = ("", "_stderr", "_stderr_labels", "_stderr_examples")
TRACE = "trace of the Fisher information"
LONG_NAMES = {
    "_stderr": "standard error",
    "_stderr_labels": "standard error from drawn labels",
    "_stderr_examples": "standard error from drawn examples",
}


def fisher_trace(
    task: Tasks,
    state: State | Stored,
    *,
    labels: str = "sampled",
    likelihood: str = "auto",
    scheme: str = "importance",
    num_backwards: int | None = None,
    tolerance: float | None = None,
    batch_norm: str | None = None,
    batch_norm_examples: int | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float32,
) -> xr.Dataset:
    """The trace of the Fisher information: of each parameter tensor, and in total.

    That of a tensor is the mean over examples and labels of the squared norm of its gradient of
    log p, summed over the positions (tokens, pixels) of an example. Of several tasks the one named
    `"train"` counts, or the first.

    Main arguments. `labels`: `"sampled"` draws labels from the network; `"exact"` takes the mean
    over all classes, with a backward pass for each; `"observed"` takes the task's loss with the
    labels of the data (the empirical Fisher). `num_backwards`: gradients of examples to take. By
    default all examples for exact and observed labels; for sampled ones 256, most of them one label
    of an example, drawn in proportion to the uncertainty 1 - sum p^2 that a forward pass over all
    examples shows. If there are no more examples than that, each goes backward, with two labels.
    `tolerance`: go on until the standard error of the total is at most this share of it.

    Other arguments. `likelihood`: what outputs mean, `"categorical"`, `"bernoulli"`, `"gaussian"`
    (of unit variance), or `"auto"`: that whose -log p is the task's loss, but for a factor.
    `scheme`: how labels are drawn, `"plain"` from p, or by `"importance"`, see
    `likelihoods.drawn_cotangents`: as unbiased, and far more precise once most labels are certain.
    `batch_norm`: the statistics of the state, `"recalibrate"` (default: computed anew, as in
    `evaluate`) or `"keep"`; early in training the choice changes the trace by orders of magnitude.
    `seed`: the same seed draws the same numbers for each example, on any device, in any batches.

    Returns over `tensor` (names as in `named_parameters()`, frozen ones not counted): `trace`,
    `trace_stderr`, and its two parts, which add in quadrature: `trace_stderr_labels` from drawn
    labels and `trace_stderr_examples` from drawn examples. It is the error of the mean over the
    data that are given: zero where every example and every label counts. `total` and `total_stderr`
    are of all tensors, `num_parameters` and `rule` say what was counted and how.

    Raises `ValueError` as `evaluate` for bad data, as `rules_for` for models whose examples are not
    independent, as `likelihood_of` for a loss without likelihood, and `NonFiniteError` naming the
    example whose output or gradient is not finite.
    """
    how = Sampling(labels, likelihood, scheme, num_backwards, tolerance, seed)
    ready = prepared(task, state, [batch_norm], batch_norm_examples, device, dtype)
    with gradients_allowed():
        probe = probe_at(ready, placed_state(ready, state, batch_norm=batch_norm), how)
        found = estimated(probe)
    return dataset(
        variables_of(table_of(found)) | counted_variables(probe),
        tensor_coords(probe.names),
        analysis="fisher trace",
        title=f"Fisher information of {len(probe.names)} tensors, {labels} labels",
        num_backwards=found.num_backwards,
        **attributes(probe, ready, batch_norm),
    )


def fisher_diagonal(
    task: Tasks,
    state: State | Stored,
    *,
    batch_norm: str | None = None,
    batch_norm_examples: int | None = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> xr.Dataset:
    """The diagonal of the Fisher information: the mean squared derivative by each weight.

    Arguments and errors are those of `fisher_trace`, but there is no tolerance and no standard
    error; with labels or examples that are drawn, single entries are noisy.

    Returns a variable for each parameter, of its name and shape. Its sum is the trace.
    """
    how = Sampling(**options)
    if how.tolerance is not None:
        raise ValueError("fisher_diagonal has no standard error to meet a tolerance: leave it out")
    ready = prepared(task, state, [batch_norm], batch_norm_examples, device, dtype)
    with gradients_allowed():
        probe = probe_at(ready, placed_state(ready, state, batch_norm=batch_norm), how)
        points, draws, _ = planned(probe)
        own, spent = dict(probe.model.named_parameters()), 0
        sums = {name: torch.zeros_like(own[name], dtype=torch.float64) for name in probe.names}
        for _, backward in pulled(probe, points, draws, diagonal=True):
            for name, total in sums.items():
                total += backward.diagonal[name]
            spent += next(iter(backward.norms.values())).numel()
    variables = {
        name: ([f"{name}[{axis}]" for axis in range(total.ndim)], total.cpu().numpy())
        for name, total in sums.items()
    }
    return dataset(
        variables, {}, analysis="fisher diagonal", num_backwards=spent,
        title=f"Diagonal of the Fisher information, {how.labels} labels",
        **attributes(probe, ready, batch_norm),
    )  # fmt: skip


def prepared(
    task: Tasks,
    state: State | Stored,
    policies: Sequence[str | None],
    batch_norm_examples: int | None,
    device: str | torch.device,
    dtype: torch.dtype,
) -> Prepared:
    """The data on the device, checked."""
    return prepare(
        task, [loaded(state)], device=device, dtype=dtype, batch_norm_examples=batch_norm_examples,
        batch_norm="keep" if set(policies) == {"keep"} else None,
    )  # fmt: skip


def table_of(found: Estimate) -> Array:
    """Values and standard errors (4, tensors + 1), in the order of `PARTS`."""
    variances = np.stack([found.labels + found.examples, found.labels, found.examples])
    return np.concatenate([found.values[None], np.sqrt(variances)])


def variables_of(table: Array, dims: tuple[str, ...] = ()) -> dict[str, Any]:
    """Variables of a table (4, ..., tensors + 1) with dimensions before that of the tensors."""
    found: dict[str, Any] = {}
    for name, words, place, last in (
        ("trace", TRACE, slice(-1), ("tensor",)),
        ("total", f"{TRACE}, all tensors", -1, ()),
    ):
        for suffix, values in zip(PARTS, table, strict=True):
            long_name = LONG_NAMES[suffix] if suffix else words
            found[name + suffix] = ((*dims, *last), values[..., place], {"long_name": long_name})
    return found


def counted_variables(probe: Probe) -> dict[str, Any]:
    """What was counted, and by which rule, over the tensors."""
    own = dict(probe.model.named_parameters())
    sizes = [own[name].numel() for name in probe.names]
    rules = [probe.rules.parameters[name].kind for name in probe.names]
    return {
        "num_parameters": ("tensor", sizes, {"long_name": "number of parameters"}),
        "rule": ("tensor", rules, {"long_name": "rule for the gradients of examples"}),
    }


def tensor_coords(names: Sequence[str]) -> dict[str, Any]:
    """Tensors by name, and the modules that they belong to."""
    modules = [name.rpartition(".")[0] for name in names]
    return {"tensor": list(names), "module": ("tensor", modules)}


def attributes(probe: Probe, ready: Prepared, batch_norm: str | None) -> dict[str, Any]:
    """How it was made: likelihood, scheme, what was not counted, model and arithmetic."""
    how, likelihood, rules = probe.how, probe.likelihood, probe.rules.parameters
    frozen = [name for name, rule in rules.items() if rule.kind == "frozen"]
    notes = [f"{name}: {rule.why}" for name, rule in rules.items() if rule.kind == "fallback"]
    return {
        "task": probe.task.name,
        "labels": how.labels,
        "likelihood": likelihood.kind if likelihood else "",
        "loss_scale": likelihood.scale if likelihood else 1.0,
        "scheme": how.scheme if how.labels == "sampled" else "",
        "num_examples": probe.examples.num,
        "seed": how.seed,
        "not_counted": ", ".join(frozen),
        "notes": "; ".join(notes),
        **described(ready, batch_norm),
    }
