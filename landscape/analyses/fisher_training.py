"""How does the information in the weights rise and fall during training?"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from tqdm import tqdm

from landscape.analyses.fisher import (
    PARTS,
    attributes,
    counted_variables,
    prepared,
    table_of,
    tensor_coords,
    variables_of,
)
from landscape.analyses.fisher_gradients import (
    NonFiniteError,
    Probe,
    Sampling,
    probe_at,
    pulled,
)
from landscape.analyses.fisher_sampling import estimated, planned, some_points
from landscape.engine import gradients_allowed
from landscape.evaluation import Prepared, Tasks, described, evaluate, placed_state
from landscape.maths.phases import peak
from landscape.results import STATUS, dataset
from landscape.states import State, Stored, loaded, match
from landscape.task import Task, tasks_of, training_task

Array = NDArray[np.float64]


def fisher_over_training(
    task: Tasks,
    checkpoints: Sequence[State | Stored],
    *,
    steps: Sequence[float] | None = None,
    labels: str | Sequence[str] = "sampled",
    batch_norm: str | Sequence[str] | None = None,
    batch_norm_examples: int | None = None,
    measures: bool = True,
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float32,
    progress: bool | None = False,
    **options: Any,
) -> xr.Dataset:
    """The trace of the Fisher information of each checkpoint, over the same examples.

    Main arguments. `steps`: of the checkpoints, by default those they know (`.step`), else 0, 1,
    ... `labels`, `batch_norm`: one as in `fisher_trace`, or several in a list, which become
    dimensions. `measures`: evaluate the loss and the metrics of all tasks too.

    Other arguments (`likelihood`, `scheme`, `num_backwards`, `tolerance`, `seed` ...) are those of
    `fisher_trace`. An example has the same random numbers at each checkpoint, so that a part of the
    noise is common to all; what a checkpoint gets does not depend on the others.

    Returns the variables of `fisher_trace` over `step`, then `batch_norm` and `labels` if several
    were asked for, then `tensor`; `num_backwards`; the loss and metrics with their standard errors;
    `status`, and in words the `problem` of checkpoints that have no values. One that cannot be
    read or does not fit the model is failed, one with values that are not finite nonfinite; both
    have NaN. Raises as `fisher_trace` for what is wrong with the task or the options.
    """
    policies = _listed(batch_norm)
    hows = [Sampling(labels=kind, **options) for kind in _listed(labels)]
    numbers = _steps(checkpoints, steps)
    model = _main(task).model
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    shape = len(numbers), len(policies), len(hows)
    rows = _Rows(
        np.full((len(PARTS), *shape, len(names) + 1), np.nan), np.zeros(shape, np.int64),
        ["failed"] * len(numbers), [""] * len(numbers), {},
    )  # fmt: skip
    ready: Prepared | None = task if isinstance(task, Prepared) else None
    probe: Probe | None = None
    for row, checkpoint in enumerate(_with_bar(checkpoints, progress)):
        try:
            state = match(loaded(checkpoint), model)
        except Exception as error:  # whatever a damaged file makes of it
            rows.problems[row] = f"{type(error).__name__}: {error}"
            continue
        if ready is None:
            ready = prepared(task, state, policies, batch_norm_examples, device, dtype)
            _check_policies(ready, policies)
        try:
            probe = _fill(rows, row, ready, state, policies, hows, probe, measures)
            rows.status[row] = "ok"
        except NonFiniteError as error:
            rows.status[row], rows.problems[row] = "nonfinite", str(error)
    return _labelled(rows, numbers, policies, hows, names, (labels, batch_norm), probe, ready)


@dataclass(eq=False)
class _Rows:
    """What is known of each checkpoint: `table` (4, steps, policies, labels, tensors + 1)."""

    table: Array
    spent: NDArray[np.int64]
    status: list[str]
    problems: list[str]
    measured: dict[tuple[int, int], xr.Dataset]


def _fill(
    rows: _Rows,
    row: int,
    ready: Prepared,
    state: State,
    policies: Sequence[str | None],
    hows: Sequence[Sampling],
    probe: Probe | None,
    measures: bool,
) -> Probe:
    """All about one checkpoint; rules are those of the first one."""
    for column, policy in enumerate(policies):
        placed = placed_state(ready, state, batch_norm=policy)
        if measures:
            rows.measured[row, column] = _measured(ready, placed)
        for last, how in enumerate(hows):
            with gradients_allowed():
                at = probe_at(ready, placed, how, probe.rules if probe else None)
                found = estimated(at)
            probe = at if probe is None or at.likelihood is not None else probe
            rows.table[:, row, column, last] = table_of(found)
            rows.spent[row, column, last] = found.num_backwards
    assert probe is not None
    return probe


def _measured(ready: Prepared, placed: State) -> xr.Dataset:
    """The loss and the metrics of all tasks, as they are at a state."""
    found = evaluate(ready, [placed], batch_norm="keep").isel(state=0, drop=True)
    return found.drop_vars(["status", "num_examples"])


def _labelled(
    rows: _Rows,
    numbers: Sequence[float],
    policies: Sequence[str | None],
    hows: Sequence[Sampling],
    names: Sequence[str],
    asked: tuple[Any, Any],
    probe: Probe | None,
    ready: Prepared | None,
) -> xr.Dataset:
    """A dataset of all rows; what was asked for as one thing is no dimension."""
    dims = ("step", "batch_norm", "labels")
    kinds = [how.labels for how in hows]
    coords = {
        "step": np.asarray(numbers),
        "batch_norm": [policy or "recalibrate" for policy in policies],
        "labels": kinds,
        **tensor_coords(names),
    }
    variables = variables_of(rows.table, dims)
    variables["num_backwards"] = (dims, rows.spent, {"long_name": "gradients of examples"})
    variables["status"] = ("step", np.array([STATUS.index(s) for s in rows.status], np.uint8))
    variables["problem"] = ("step", rows.problems, {"long_name": "why there are no values"})
    if rows.measured:
        variables |= _stacked(rows.measured, rows.spent.shape[:2], coords)
    attrs: dict[str, Any] = {"labels": ", ".join(kinds), "seed": hows[0].seed}
    if probe is not None and ready is not None:
        variables |= counted_variables(probe)
        attrs = attributes(probe, ready, policies[0]) | attrs
        if len(policies) > 1:
            attrs["batch_norm"] = ", ".join(policy or "recalibrate" for policy in policies)
    result = dataset(
        variables, coords, analysis="fisher over training",
        title=f"Fisher information at {len(numbers)} checkpoints", **attrs,
    )  # fmt: skip
    for dim, one in zip(("labels", "batch_norm"), asked, strict=True):
        if one is None or isinstance(one, str):
            result = result.isel({dim: 0}, drop=True)
    return result


def _stacked(
    measured: dict[tuple[int, int], xr.Dataset], shape: tuple[int, ...], coords: dict[str, Any]
) -> dict[str, Any]:
    """The measures over (`step`, `batch_norm`, ...), NaN where there are none."""
    first = next(iter(measured.values()))
    coords |= {str(name): first[name].values for name in first.dims}
    found = {}
    for name, variable in first.data_vars.items():
        values = np.full((*shape, *variable.shape), np.nan)
        for place, one in measured.items():
            values[place] = one[name].values
        found[str(name)] = (("step", "batch_norm", *variable.dims), values, variable.attrs)
    return found


def with_peaks(result: xr.Dataset) -> xr.Dataset:
    """A result over steps with the step at which each total is highest, and where else it may be.

    Adds `peak_step`, `peak_step_low` and `peak_step_high` (95 %, see `maths.phases.peak`) over the
    other dimensions of `total`; NaN where there is no finite value.
    """
    total = result["total"].transpose(..., "step")
    errors = result["total_stderr"].transpose(..., "step").fillna(0)
    found = np.full((3, *total.shape[:-1]), np.nan)
    for place in np.ndindex(total.shape[:-1]):
        values = total.values[place]
        if np.isfinite(values).any():
            one = peak(result["step"].values, values, errors.values[place])
            found[(slice(None), *place)] = one.step, one.low, one.high
    dims = total.dims[:-1]
    words = ("peak of the trace", "first step where it may be", "last step where it may be")
    names = ("peak_step", "peak_step_low", "peak_step_high")
    return result.assign(
        {n: (dims, row, {"long_name": w}) for n, row, w in zip(names, found, words, strict=True)}
    )


# --- what it costs --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """What a checkpoint costs: seconds, and bytes of activations and gradients at a time."""

    seconds: float
    bytes: int


def estimate(
    task: Tasks,
    state: State | Stored,
    *,
    labels: str | Sequence[str] = "sampled",
    batch_norm: str | Sequence[str] | None = None,
    batch_norm_examples: int | None = None,
    measures: bool = True,
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Estimate:
    """Time a part of what `fisher_over_training` does at a checkpoint.

    With a tolerance it is the time until the standard error is first looked at.
    """
    policies = _listed(batch_norm)
    ready = prepared(task, state, policies, batch_norm_examples, device, dtype)
    total, most = 0.0, 0
    for policy in policies:
        start = time.perf_counter()
        placed = placed_state(ready, loaded(state), batch_norm=policy)
        if measures:
            _measured(ready, placed)
        total += time.perf_counter() - start
        for kind in _listed(labels):
            with gradients_allowed():
                probe = probe_at(ready, placed, Sampling(labels=kind, **options))
                start = time.perf_counter()
                points, draws, _ = planned(probe)
                total += time.perf_counter() - start
                few = some_points(points, 2 * probe.examples.batch_size)
                total += _seconds(probe, few, draws) * len(points.numbers) / len(few.numbers)
            parameters = sum(p.nbytes for p in probe.model.parameters())
            at_once = 2 * probe.examples.batch_size * probe.rules.example_bytes
            at_once = at_once * dtype.itemsize // 8  # rules are found in float64
            most = max(most, 2 * parameters + at_once)
    return Estimate(total, most)


def _seconds(probe: Probe, points: Any, draws: int) -> float:
    """The time of pulling points back, once the fastest ways are known."""
    list(pulled(probe, points, draws))
    start = time.perf_counter()
    list(pulled(probe, points, draws))
    return time.perf_counter() - start


def _listed(asked: Any) -> list[Any]:
    """One or several, each once, as a list."""
    return [asked] if asked is None or isinstance(asked, str) else list(dict.fromkeys(asked))


def _check_policies(ready: Prepared, policies: Sequence[str | None]) -> None:
    if len(policies) > 1 and described(ready)["batch_norm"] == "none":
        raise ValueError(
            f"{type(ready.tasks[0].model).__name__} has no batch norm to choose statistics for: "
            "leave batch_norm out"
        )


def _main(task: Tasks) -> Task:
    return training_task(task.tasks if isinstance(task, Prepared) else tasks_of(task))


def _steps(checkpoints: Sequence[Any], steps: Sequence[float] | None) -> list[Any]:
    """A step for each checkpoint."""
    found = [getattr(c, "step", None) for c in checkpoints] if steps is None else list(steps)
    if not found or len(found) != len(checkpoints):
        raise ValueError(f"got {len(found)} steps for {len(checkpoints)} checkpoints")
    return list(range(len(found))) if None in found else found


def _with_bar(checkpoints: Sequence[Any], progress: bool | None) -> Iterable[Any]:
    return tqdm(checkpoints, unit="checkpoint", disable=None if progress is None else not progress)
