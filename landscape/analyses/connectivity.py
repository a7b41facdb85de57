"""Are two solutions connected by a curve of low loss? Bezier curves and polygonal chains, trained.

A curve is a `Family`. Training draws a point of it for each mini-batch; the gradient of a bend is
the gradient at that point times the bend's coefficient there. `summary` gives the numbers that the
papers' tables have of a path, of any kind.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from landscape.analyses.diagnostics import combined, with_diagnostics
from landscape.descent import (
    FlatModel,
    Recipe,
    Snapshot,
    Trainable,
    decayed_names,
    descend,
    flat_model,
    recipe_of,
    shuffled,
)
from landscape.evaluation import Prepared, Tasks, evaluate, placing, prepare
from landscape.families import Family, bezier, polychain
from landscape.maths.curves import arc_length, path_mean
from landscape.results import dataset
from landscape.states import State, flatten, inner_products, match, tied_names
from landscape.task import Task, training_task

Array = NDArray[np.float64]
Weights = list[tuple[list[str], list[int]]]
CURVES = {"bezier": bezier, "polychain": polychain}


def connect(
    task: Tasks,
    a: State,
    b: State,
    *,
    curve: str = "bezier",
    bends: int = 1,
    start: State | Sequence[State] | None = None,
    free_ends: bool = False,
    points: int | ArrayLike = 61,
    diagnostics: bool = False,
    snapshot: Snapshot | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
    progress: bool | None = False,
    **options: Any,
) -> xr.Dataset:
    """Train a curve of low loss between two states, and evaluate tasks along it.

    Main arguments. `curve`: `"bezier"` or `"polychain"`, with any number of `bends`, which start on
    the straight line or at the states in `start`. Both ends stay as they are to the last bit,
    unless `free_ends`. The fields of `descent.Recipe` are options too (`epochs`, `batch_size`,
    `lr`, `weight_decay`, `optimiser`, `schedule`, `data`, `seed` ...): training minimises the mean
    loss of the task named `"train"`, or of the first, over t uniform in [0, 1], one t for each
    mini-batch (Garipov et al. 2018, section 3.2), with batch norm and dropout in training mode.

    Other arguments. `points`: a number of equidistant t or the values; the knots of a chain are
    added. `diagnostics`: also compare the predictions with those of both ends (see
    `analyses.diagnostics`). `snapshot`: of an earlier call with the same arguments, from which
    training goes on; `on_snapshot` sees one after each epoch. Options that are no part of a recipe
    go to `evaluate`.

    Returns the variables of `evaluate` along `t`, and
    - `arc_length`, the length of the curve up to t, and `weight_norm`, that of the parameters at t;
    - `regularised_loss`, the loss with half the weight decay times the squared norm, if it decays;
    - `training_loss` for each epoch, and `bends` (bend, weight), from which `curve_of` makes the
      trained family again; with `free_ends` the ends are among them.
    Attributes are the recipe, `distance` of the ends, `length`, `length_ratio` (of the curve to the
    straight line) and `diverged`: 0, or the epoch in which a value was no longer finite; the curve
    is then the last good one.
    """
    recipe = recipe_of(options)
    family = curve_between(a, b, curve=curve, bends=bends, start=start)
    ready = prepare(task, family, **placing(options))
    family, last = train(
        ready, family, recipe, free_ends=free_ends,
        snapshot=snapshot, on_snapshot=on_snapshot, progress=progress,
    )  # fmt: skip
    t = np.linspace(0, 1, points) if isinstance(points, int) else np.asarray(points, float)
    if curve == "polychain":
        t = np.union1d(t, knots_of(family))
    result = along(
        ready, family, t, recipe, free_ends=free_ends, diagnostics=diagnostics, **options
    )
    title = f"Trained curve ({curve}) at {len(t)} points"
    return described(result, last, recipe, title=title, curve=curve)


def curve_between(
    a: State,
    b: State,
    *,
    curve: str = "bezier",
    bends: int = 1,
    start: State | Sequence[State] | None = None,
) -> Family:
    """The untrained curve: its bends equidistant on the straight line, or the states in `start`."""
    if curve not in CURVES:
        raise ValueError(f"curve must be one of {', '.join(CURVES)}, got {curve!r}")
    if bends < 1:
        raise ValueError(f"a curve to train needs at least one bend, got {bends}")
    if start is None:
        straight = bezier(a, b)
        inner: Sequence[State] = [straight.at((j + 1) / (bends + 1)) for j in range(bends)]
    else:
        inner = [start] if hasattr(start, "keys") else list(start)  # type: ignore[list-item]
    if len(inner) != bends:
        raise ValueError(f"start must give a state for each of {bends} bends, got {len(inner)}")
    return CURVES[curve](a, *inner, b)


def curve_of(result: xr.Dataset, a: State, b: State) -> Family:
    """The trained family whose bends a result holds, between the states that it was trained for.

    Raises `ValueError` if the result has no bends of a curve, or the states are others or in
    another order, which the norms of the weights along the curve show.
    """
    if "bends" not in result or "curve" not in result.attrs:
        raise ValueError(
            f"the result of the analysis {result.attrs.get('analysis')!r} holds no bends of a curve"
        )
    weights: Weights = [(names, shape) for names, shape in json.loads(result.attrs["weights"])]
    for names, shape in weights:
        found = next((tuple(a[name].shape) for name in names if name in a), "nothing")
        if found != tuple(shape):
            raise ValueError(
                f"the curve has {names[0]} of shape {tuple(shape)}, the first state {found}: "
                "give the two states that it was trained between"
            )
    rows = torch.as_tensor(result["bends"].values)
    free_ends = bool(result.attrs.get("free_ends", 0))
    bends = len(rows) - 2 * free_ends
    family = curve_between(a, b, curve=result.attrs["curve"], bends=bends)
    family = _replaced(family, rows, weights, _free(len(family.controls), free_ends))
    names = [next(name for name in names if name in a) for names, _ in weights]
    norms = _norms(family.controls, names, family.coefficients(result["t"].values[:, None]))
    if not np.allclose(norms, result["weight_norm"], rtol=1e-4, atol=0, equal_nan=True):
        raise ValueError(
            "the weights along the curve have other norms than when it was trained: give the two "
            "states that it was trained between, in the same order"
        )
    return family


def summary(result: xr.Dataset) -> xr.Dataset:
    """The numbers that papers give of a path: along a new dimension `of` for each measure.

    `start`, `end`, `min` and `max` over the points, the `mean` over t (trapezoid), and the mean
    along the `arc` length (Garipov et al. 2018, equation 1; needs `arc_length`, else as for t).
    Points outside of [0, 1] do not count. Measures are all variables with a `*_stderr`.
    """
    inside = result.sel(t=(result["t"] >= 0) & (result["t"] <= 1)).sortby("t")
    t = inside["t"].values
    if len(t) < 2:
        raise ValueError(f"a summary needs at least two points in [0, 1], got t = {t}")
    length = inside["arc_length"].values if "arc_length" in inside else t
    variables: dict[str, Any] = {}
    for name in (str(n) for n in inside.data_vars if f"{n}_stderr" in inside):
        values = inside[name].transpose(..., "t")
        rows = values.values
        numbers = [
            rows[..., 0], rows[..., -1], rows.min(-1), rows.max(-1),
            path_mean(rows, t), path_mean(rows, length),
        ]  # fmt: skip
        variables[name] = ((*values.dims[:-1], "of"), np.stack(numbers, -1))
    coords = {str(n): c for n, c in inside.coords.items() if "t" not in c.dims and n != "epoch"}
    return dataset(
        variables,
        coords | {"of": ["start", "end", "min", "max", "mean", "arc"]},
        analysis="path summary",
        title=f"Summary of a path of {len(t)} points",
        **{k: result.attrs[k] for k in ("distance", "length", "length_ratio") if k in result.attrs},
    )


# --- pieces, also for resumable work and for other paths ------------------------------------------


def train(
    ready: Prepared,
    family: Family,
    recipe: Recipe,
    *,
    free_ends: bool = False,
    snapshot: Snapshot | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
    progress: bool | None = False,
) -> tuple[Family, Snapshot]:
    """Train the inner controls of a family with one coordinate; the trained family, and how."""
    task = training_task(ready.tasks)
    flat = flat_model(task, family.controls[0], recipe, device=ready.device, dtype=ready.dtype)
    controls = rows_of(family.controls, flat, task)
    free = _free(len(controls), free_ends)
    fixed = controls[torch.as_tensor(~free)]

    def step(train: Trainable, generator: torch.Generator, inputs: Any, targets: Any) -> Tensor:
        t = torch.rand(1, 1, generator=generator, dtype=torch.float64)
        coefficients = family.coefficients(t.numpy())[0]
        moved, rest = (torch.as_tensor(coefficients[of]).to(controls) for of in (free, ~free))
        torch.mv(train.rows.T, moved, out=flat.weights)
        flat.weights.addmv_(fixed.T, rest)
        loss = flat.loss_and_gradient(task, inputs, targets)
        torch.outer(moved, flat.gradient, out=train.gradients)
        return loss

    batches = shuffled(task, recipe, device=ready.device, dtype=ready.dtype)
    last = descend(
        flat, controls[torch.as_tensor(free)], batches, recipe, step,
        snapshot=snapshot, on_snapshot=on_snapshot, progress=progress, title="curve",
    )  # fmt: skip
    return with_rows(family, last.rows, task.model, free), last


def along(
    ready: Prepared,
    family: Family,
    t: ArrayLike,
    recipe: Recipe,
    *,
    free_ends: bool = False,
    diagnostics: bool = False,
    **options: Any,
) -> xr.Dataset:
    """Some points of a curve: the variables of `evaluate`, lengths and norms, and the bends."""
    t = np.asarray(t, float)
    if diagnostics:
        compared = with_diagnostics(ready, family, batch_norm=options.get("batch_norm"))
        result = combined(evaluate(compared, family, t, **options))
    else:
        result = evaluate(ready, family, t, **options)
    model = training_task(ready.tasks).model
    states = [match(state, model) for state in family.controls]
    names = [name for name, _ in model.named_parameters()]
    coefficients = family.coefficients(t[:, None])
    displacements = inner_products(states, names, origin=states[0])
    knots = knots_of(family)
    lengths = arc_length(family.coefficients, displacements, np.append(t, 1.0), knots)
    words = {"long_name": "length of the path up to t"}
    result["arc_length"] = ("t", lengths[:-1], words)
    norms = _norms(states, names, coefficients)
    result["weight_norm"] = ("t", norms, {"long_name": "norm of the parameters"})
    if recipe.weight_decay:
        decayed = _norms(states, decayed_names(recipe, names), coefficients)
        penalty = xr.DataArray(recipe.weight_decay / 2 * decayed**2, dims="t")
        words = {"long_name": "regularised loss"}
        result["regularised_loss"] = (result["loss"] + penalty).assign_attrs(words)
        result["regularised_loss_stderr"] = result["loss_stderr"]
    trained = [states[i] for i in np.flatnonzero(_free(len(states), free_ends))]
    rows = flatten(trained, names, dtype=ready.dtype).numpy()
    result["bends"] = (("bend", "weight"), rows, {"long_name": "parameters of the bends"})
    chord = float(displacements[-1, -1]) ** 0.5
    return result.assign_attrs(
        weights=weights_of(model),
        free_ends=int(free_ends),
        distance=chord,
        length=float(lengths[-1]),
        length_ratio=float(lengths[-1]) / chord if chord else np.nan,
    )


def described(
    result: xr.Dataset, last: Snapshot, recipe: Recipe, *, title: str, **attrs: Any
) -> xr.Dataset:
    """The points of a trained path, with what is known of its training."""
    used = {one.name: _recorded(getattr(recipe, one.name)) for one in dataclasses.fields(recipe)}
    losses = np.array(last.losses)
    epochs = np.arange(1, len(losses) + 1)
    return result.assign(
        training_loss=("epoch", losses, {"long_name": "training loss on the path"})
    ).assign_coords(
        epoch=("epoch", epochs, {"long_name": "epoch"})
    ).assign_attrs(
        title=title, analysis="connect", diverged=last.diverged, **used, **attrs
    )  # fmt: skip


def rows_of(states: Sequence[State], flat: FlatModel, task: Task) -> Tensor:
    """The parameters of some states as rows (m, P), where and as the model has them."""
    matched = [match(state, task.model) for state in states]
    weights = flat.weights
    return flatten(matched, flat.names, dtype=weights.dtype, device=weights.device)


def with_rows(
    family: Family, rows: Tensor, model: nn.Module, free: ArrayLike | None = None
) -> Family:
    """The family with the parameters of its free controls taken from rows (n, P).

    By default all controls but the ends are free.
    """
    if free is None:
        free = _free(len(family.controls))
    return _replaced(family, rows, _weights(model), free)


def knots_of(family: Family) -> Array:
    """Where a path may have corners: the knots of a chain with as many controls."""
    return np.linspace(0, 1, len(family.controls))


def weights_of(model: nn.Module) -> str:
    """What the entries of a row of parameters are, as JSON: pairs of names and shape."""
    return json.dumps(_weights(model))


def _free(num: int, free_ends: bool = False) -> NDArray[np.bool_]:
    """Which of so many controls are trained: all, or all but the ends."""
    free = np.full(num, free_ends)
    free[1:-1] = True
    return free


def _norms(states: Sequence[State], names: Sequence[str], coefficients: Array) -> Array:
    """Norms (n,) of the named entries at the points with coefficients (n, m) in m states."""
    products = inner_products(states, names)
    return np.sqrt(np.einsum("ni,ij,nj->n", coefficients, products, coefficients).clip(min=0))


def _weights(model: nn.Module) -> Weights:
    """The names, tied ones together, and the shape of each parameter."""
    tied = {names[0]: names for names in tied_names(model)}
    return [(tied.get(n, [n]), list(p.shape)) for n, p in model.named_parameters()]


def _replaced(family: Family, rows: Tensor, weights: Weights, free: ArrayLike) -> Family:
    """The family with the parameters of its free controls taken from rows (n, P)."""
    controls, rest = list(family.controls), iter(rows)
    for number in np.flatnonzero(free):
        control = controls[number]
        parts = next(rest).split([math.prod(shape) for _, shape in weights])
        new = {
            name: part.reshape(shape).to(control[name].device)
            for (names, shape), part in zip(weights, parts, strict=True)
            for name in names
            if name in control  # a checkpoint may hold tied weights once
        }
        controls[number] = {**control, **new}
    return dataclasses.replace(family, controls=tuple(controls))


def _recorded(value: Any) -> str | float:
    """A field of a recipe as an attribute: numbers, or the names of what else it holds."""
    if isinstance(value, int | float | str):
        return value
    if isinstance(value, tuple | list) and all(isinstance(one, str) for one in value):
        return " ".join(value)
    value = getattr(value, "func", value)  # of a partial
    return "" if value is None else getattr(value, "__qualname__", type(value).__name__)
