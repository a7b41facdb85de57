"""How do the weights move through training? Norms, distances, angles, signs and distributions.

Checkpoints are read one after the other and compared with two references, the initial and the final
state, and with the checkpoint before. At most five states are in memory at a time.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from torch import nn
from tqdm import tqdm

from landscape.analyses.gradient_noise import gradient_noise
from landscape.analyses.weights import (
    EDGES,
    QUANTILES,
    Array,
    Layers,
    Sums,
    layers_of_weights,
    measures,
    stacked,
    sums_of,
    whole,
)
from landscape.evaluation import Prepared, Tasks, evaluate, placing, prepare
from landscape.maths.landmarks import landmarks
from landscape.results import STATUS, dataset
from landscape.states import State, Stored, check_alike, loaded, match
from landscape.task import tasks_of

Checkpoints = Sequence[State | Stored]

REFERENCES = {"initial": "the initial state", "final": "the final state",
              "previous": "the checkpoint before"}  # fmt: skip
WORDS = {
    "weight_norm": "weight norm",
    "weight_std": "standard deviation of the weights",
    "zeros": "share of weights that are zero",
    "change_per_step": "distance moved per step",
    "gradient_norm": "gradient norm",
    "noise_scale": "gradient noise scale",
    **{f"distance_{name}": f"distance to {words}" for name, words in REFERENCES.items()},
    **{f"cosine_{name}": f"cosine with {words}" for name, words in REFERENCES.items()},
    **{f"signs_{name}": f"share of signs of {words}" for name, words in REFERENCES.items()},
}
UNITS = {"noise_scale": "examples"}
LANDMARKS = {
    "threshold": "threshold of landmark_reached",
    "reached": "first step from which on it is at or below the threshold",
    "steepest": "step from which it falls fastest",
    "minimum": "step of the minimum",
    "plateau": "first step from which on it is near its last value",
}


def dynamics(
    task: Tasks | None,
    checkpoints: Checkpoints,
    *,
    steps: Sequence[int] | None = None,
    initial: State | Stored | None = None,
    final: State | Stored | None = None,
    gradients: bool = False,
    threshold: float | None = None,
    measure: str | None = None,
    progress: bool | None = False,
    **options: Any,
) -> xr.Dataset:
    """How the weights of each layer and of all move through the checkpoints of a run.

    Main arguments. `task`: what loss and metrics are of; None: weights alone. `steps`: training
    steps, by default those that the checkpoints know (`.step`), else 0, 1, ... `initial` and
    `final`: the references, by default the first and the last checkpoint. `gradients`: also
    measure the gradient of the training task (the one named `"train"`, or the first) over all of
    its examples, and its noise. `threshold` and `measure` are those of `with_landmarks`.

    Other arguments. `progress`: True, False, or None for a bar if standard error is a terminal.
    Further `options`: the `seed` of `gradient_noise`, and those of `evaluate`.

    A layer is a module that holds parameters itself; its numbers are over all of them together.
    Tied parameters count once. Without a task, weights are all floating-point entries that are no
    statistics of a normalisation layer, and those that share memory are tied.

    Returns over (`step`, `layer`), and with `total_` before the name over `step` alone, all in
    float64: `weight_norm`; `weight_std`, the standard deviation of all numbers; `zeros`, the share
    of exact zeros; for the references `initial`, `final` and `previous` (the checkpoint before; NaN
    at the first) `distance_*` (Euclidean), `cosine_*` (1 between equal vectors, zero or not; NaN
    between zero and another one) and `signs_*`, the share of weights of the same sign, where zero
    is a sign of its own; `change_per_step`, `distance_previous` over the steps between. With
    gradients `gradient_norm`, of the mean loss, and `noise_scale`, as `gradient_noise` has it (both
    NaN where the loss is not finite, and for frozen parameters).

    By layer alone: `weight_quantile` (..., `quantile`); `weight_count` (..., `magnitude`), the
    number of weights whose size is at least `magnitude` and below the next one; and `num_weights`.
    With a task, the variables of `evaluate` over `step` (after `split` if there are several), and
    landmarks. `status` says where anything is not finite.

    (Frankle, Schwab and Morcos 2020, figure 3.) Raises `ValueError` for no checkpoint, steps that
    do not increase, checkpoints that differ in names or shapes (naming them), and as `evaluate`.
    """
    rows = dynamics_rows(
        task, checkpoints, steps=steps, initial=initial, final=final, gradients=gradients,
        progress=progress, **options,
    )  # fmt: skip
    return rows if task is None else with_landmarks(rows, threshold=threshold, measure=measure)


def dynamics_rows(
    task: Tasks | None,
    checkpoints: Checkpoints,
    *,
    rows: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
    initial: State | Stored | None = None,
    final: State | Stored | None = None,
    gradients: bool = False,
    seed: int = 0,
    progress: bool | None = False,
    **options: Any,
) -> xr.Dataset:
    """`dynamics` of some of the checkpoints (by number; all by default), without landmarks."""
    labels = _steps(checkpoints, steps)
    chosen = list(range(len(labels)) if rows is None else rows)
    if gradients and task is None:
        raise ValueError("gradients=True needs a task, of whose loss they are")
    ready, model = None, None
    if task is not None:
        model = (task.tasks if isinstance(task, Prepared) else tasks_of(task))[0].model
    first = _read(checkpoints[0] if initial is None else initial, "the initial state", model)
    last = _read(checkpoints[-1] if final is None else final, "the final state", model, first)
    if task is not None:
        ready = prepare(task, [first], **placing(options))
        ready = replace(ready, strategy=replace(ready.strategy, vectorised=False))  # single states
    layers = layers_of_weights(first, last, model)
    sums: list[Sums] = []
    found: list[xr.Dataset] = []
    pairs = _with_previous(checkpoints, chosen, labels, model, first)
    hide = None if progress is None else not progress
    for state, previous in tqdm(pairs, total=len(chosen), unit="checkpoint", disable=hide):
        references = {"initial": first, "final": last, "previous": previous}
        sums.append(sums_of(state, layers, references))
        if ready is not None:
            found.append(evaluate(ready, [state], **options).isel(state=0, drop=True))
            if gradients:
                finite = bool(found[-1]["status"] == STATUS.index("ok"))
                policy = options.get("batch_norm")
                noise = (
                    gradient_noise(ready, state, batch_norm=policy, seed=seed) if finite else None
                )
                sums[-1] |= _gradient_sums(noise, layers)
    gaps = np.diff([np.nan, *labels])[chosen]
    result = _labelled(stacked(sums), gaps, [labels[row] for row in chosen], list(layers))
    return result if ready is None else _with_evaluation(result, found)


def with_landmarks(
    result: xr.Dataset, *, threshold: float | None = None, measure: str | None = None
) -> xr.Dataset:
    """Dynamics with the landmarks of a learning curve, for each split and run.

    `measure`: by default the error if the result has one, else the loss. `threshold`: by default
    half of its value at the first step. The variables are `landmark_threshold`,
    `landmark_reached`, `landmark_steepest`, `landmark_minimum` and `landmark_plateau`, as
    `maths.landmarks` has them.

    Raises `ValueError` if the result has no such measure along steps.
    """
    measure = measure or ("error" if "error" in result else "loss")
    if measure not in result or "step" not in result[measure].dims:
        raise ValueError(f"the result has no {measure!r} along 'step': choose another measure")
    curves = result[measure].transpose(..., "step")
    steps = result["step"].values
    found = [
        landmarks(steps, one, threshold=threshold) for one in curves.values.reshape(-1, len(steps))
    ]
    shape, dims = curves.shape[:-1], curves.dims[:-1]
    named = {
        f"landmark_{name}": (
            dims,
            np.reshape([getattr(one, name) for one in found], shape),
            {"long_name": f"{measure}: {words}"},
        )
        for name, words in LANDMARKS.items()
    }
    return result.assign(named).assign_attrs(measure=measure)


def over_runs(results: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """The dynamics of several runs along a first dimension `run`, by name.

    Raises `ValueError` unless all have the same steps, layers and splits, naming what differs.
    """
    names = list(results)
    first = results[names[0]]
    for name in names[1:]:
        for dim in ("step", "layer", "split"):
            both = (first, results[name])
            mine, other = (x[dim].values.tolist() if dim in x.dims else [] for x in both)
            if mine != other:
                raise ValueError(
                    f"runs are compared {dim} by {dim}, but {names[0]} has {_some(mine, other)} "
                    f"and {name} has {_some(other, mine)}: give runs of one kind"
                )
    along = xr.Variable("run", names, {"long_name": "run"})
    own = [n for n, one in first.items() if "step" in one.dims or str(n).startswith("landmark_")]
    return xr.concat(
        list(results.values()), dim=along, data_vars=own, coords="minimal", compat="override",
        join="override", combine_attrs="override",
    )  # fmt: skip


def _some(values: Sequence[Any], others: Sequence[Any]) -> str:
    """The values that others lack, or how many there are."""
    own = [value for value in values if value not in others]
    few = ", ".join(map(str, own[:5])) + (", ..." if len(own) > 5 else "")
    return f"{few} besides" if own else f"{len(values)} of them"


def _steps(checkpoints: Checkpoints, steps: Sequence[int] | None) -> list[int]:
    """A training step for each checkpoint."""
    if not len(checkpoints):
        raise ValueError("there is no checkpoint: give at least one")
    known = [getattr(one, "step", None) for one in checkpoints] if steps is None else list(steps)
    if len(known) != len(checkpoints):
        raise ValueError(f"got {len(known)} steps for {len(checkpoints)} checkpoints")
    found = [int(one) for one in known if one is not None]
    if len(found) < len(known):
        return list(range(len(known)))
    for a, b in itertools.pairwise(found):
        if a >= b:
            raise ValueError(f"steps must increase from one checkpoint to the next, got {a}, {b}")
    return found


def _read(
    one: State | Stored, what: str, model: nn.Module | None, like: State | None = None
) -> State:
    """A state that fits the model; without one, whose names and shapes are those of another."""
    state = loaded(one)
    try:
        if model is not None:
            return match(state, model)
        if like is not None:
            check_alike([like, state])
    except ValueError as error:
        other = "" if model is not None else " and the initial one"
        raise ValueError(f"{what}{other}: {error}") from error
    return state


def _with_previous(
    checkpoints: Checkpoints,
    rows: Sequence[int],
    labels: Sequence[int],
    model: nn.Module | None,
    first: State,
) -> Iterator[tuple[State, State | None]]:
    """Each of the checkpoints with the one before; none is read twice in a row."""
    held: dict[int, State] = {}
    for row in rows:
        held = {number: state for number, state in held.items() if number in (row - 1, row)}
        for number in {max(0, row - 1), row} - held.keys():
            what = f"the checkpoint of step {labels[number]}"
            held[number] = _read(checkpoints[number], what, model, first)
        yield held[row], held.get(row - 1)


def _gradient_sums(noise: xr.Dataset | None, layers: Layers) -> Sums:
    """Sums (layers,) that `measures` needs; NaN if there is no gradient, and where it is frozen."""
    if noise is None:
        return {kind: np.full(len(layers), np.nan) for kind in ("slope", "expected", "variance")}
    variance = noise["covariance_trace"].to_series()
    expected = noise["squared_gradient"].to_series()
    kept = [[name for name in names if name in variance.index] for names in layers.values()]
    by_tensor = {
        "slope": expected + variance / noise.attrs["num_examples"],
        "expected": expected,
        "variance": variance,
    }
    return {
        kind: np.array([of[names].sum() if names else np.nan for names in kept])
        for kind, of in by_tensor.items()
    }


def _labelled(sums: Sums, gaps: Array, steps: list[int], layers: list[str]) -> xr.Dataset:
    """The variables of the weights as a dataset."""
    total = measures(whole(sums), gaps)
    variables: dict[str, Any] = {
        name: (("step", "layer"), values, _described(name))
        for name, values in measures(sums, gaps[:, None]).items()
    }
    variables |= {
        f"total_{name}": ("step", values, _described(name)) for name, values in total.items()
    }
    finite = np.isfinite(total["weight_norm"])
    variables |= {
        "weight_quantile": (("step", "layer", "quantile"), sums["quantile"]),
        "weight_count": (
            ("step", "layer", "magnitude"), sums["count"], {"long_name": "number of weights"}
        ),
        "num_weights": ("layer", sums["num"][0], {"long_name": "number of weights"}),
        "status": (
            "step", np.where(finite, STATUS.index("ok"), STATUS.index("nonfinite")).astype(np.uint8)
        ),
    }  # fmt: skip
    magnitudes = ("magnitude", np.array([0.0, *EDGES]), {"long_name": "least size of a weight"})
    return dataset(
        variables,
        {"step": steps, "layer": layers, "quantile": list(QUANTILES), "magnitude": magnitudes},
        analysis="dynamics",
        title=f"Weights of {len(layers)} layers at {len(steps)} steps",
    )


def _described(name: str) -> dict[str, str]:
    return {"long_name": WORDS[name]} | ({"units": UNITS[name]} if name in UNITS else {})


def _with_evaluation(result: xr.Dataset, found: Sequence[xr.Dataset]) -> xr.Dataset:
    """Dynamics with loss and metrics at each step, and how they were computed."""
    along = xr.Variable("step", result["step"].values)
    counts = found[0]["num_examples"]
    values = xr.concat([one.drop_vars("num_examples") for one in found], dim=along)
    ok = (values["status"] == STATUS.index("ok")) & (result["status"] == STATUS.index("ok"))
    status = xr.where(ok, result["status"], np.uint8(STATUS.index("nonfinite")), keep_attrs=True)
    about = {k: v for k, v in found[0].attrs.items() if k not in result.attrs}
    values = values.drop_vars("status").transpose("split", "step", ..., missing_dims="ignore")
    return result.assign(values).assign(status=status, num_examples=counts).assign_attrs(about)
