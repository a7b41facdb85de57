"""Which values of a finer surface does a coarser one already give?

The finer grid has half the steps of the previous one. Its points are evaluated where that is worth
it (`maths.refinement`), taken over from the previous surface, or interpolated in the end.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from landscape.evaluation import Prepared, Tasks, evaluate, placing, prepare
from landscape.families import Family
from landscape.maths.refinement import doubled, worth_evaluating
from landscape.results import STATUS, dataset
from landscape.states import weight_names

Array = NDArray[np.float64]
EVALUATED = (
    *("task", "model", "batch_norm", "batch_norm_examples", "batch_norm_data"),
    *("device", "dtype", "strategy"),
)  # attributes that say how values were computed


def fingerprint(family: Family) -> str:
    """By what a family is known again, as JSON: two numbers for each control.

    Of the weights of the first control, and of the displacements of the others from it: the norm,
    and the inner product with a wave over the entries.
    """
    first = family.controls[0]
    found = np.zeros((len(family.controls), 2))
    for name in weight_names(first):
        base = first[name].detach().double().reshape(-1)
        wave = torch.cos(1 + torch.arange(len(base), device=base.device, dtype=torch.float64))
        for row, control in zip(found, family.controls, strict=True):
            part = base if control is first else control[name].detach().to(base).reshape(-1) - base
            row += [part.square().sum().item(), (part @ wave).item()]
    found[:, 0] **= 0.5
    return json.dumps(found.tolist())


def check_previous(previous: xr.Dataset, family: Family, controls: str) -> None:
    """Raise unless a surface is complete and of this family."""
    dims = family.coordinates
    if any(name not in previous.dims for name in dims) or "loss" not in previous:
        raise ValueError(
            f"previous= must be a surface over ({', '.join(dims)}), got the dimensions "
            f"({', '.join(map(str, previous.dims))})"
        )
    earlier = previous.attrs.get("controls", "[]")
    if previous["status"].isin([STATUS.index("pending"), STATUS.index("failed")]).any():
        raise ValueError(
            "the previous surface has points that are pending or failed: finish it first"
        )
    found, wanted = (np.array(json.loads(text)) for text in (earlier, controls))
    same = found.shape == wanted.shape and np.all(abs(found - wanted) <= 1e-5 * wanted[:, :1])
    if not same:
        raise ValueError(
            "the previous surface is of another family (its states or directions differ): give the "
            "same states, normalisation and seed as for that one"
        )


def refined_rows(
    task: Tasks,
    family: Family,
    axes: Sequence[Array],
    previous: xr.Dataset,
    first: Array,
    options: Mapping[str, Any],
) -> xr.Dataset:
    """Rows of the grid `axes` at the values `first`: evaluated, taken over, or NaN.

    `options` are those of `evaluate`. Raises `ValueError` for rows that the grid does not have,
    and a previous surface of other tasks or another treatment of batch norm.
    """
    options = dict(options)
    ready = prepare(task, family, **placing(options))
    names = ", ".join(one.name for one in ready.tasks)
    if names != previous.attrs["task"]:
        raise ValueError(f"the previous surface is of {previous.attrs['task']}, not of {names}")
    rows = np.searchsorted(axes[0], first).clip(max=len(axes[0]) - 1)
    if not np.array_equal(axes[0][rows], first):
        raise ValueError(f"the refined grid does not have the rows {first}")
    dims = family.coordinates
    known, wanted = _known_and_wanted(previous, dims, ready)
    known, wanted = known[rows], wanted[rows]
    places = np.stack(np.meshgrid(first, *axes[1:], indexing="ij"), axis=-1)
    found = None
    if wanted.any():
        found = evaluate(ready, family, places[wanted], scattered=True, **options)
        if found.attrs["batch_norm"] != previous.attrs["batch_norm"]:
            raise ValueError(
                f"the previous surface has batch_norm={previous.attrs['batch_norm']!r}: refine it "
                f"with the same, not with {found.attrs['batch_norm']!r}"
            )
    variables: dict[str, Any] = {}
    for name, variable in _over_points(previous if found is None else found, dims).items():
        full = np.full((*wanted.shape, *variable.shape[1:]), np.nan)
        if known.any() and name in previous:
            others = [dim for dim in previous[name].dims if dim not in dims]
            coarse = previous[name].transpose(*dims, *others).values
            shape = [2 * n - 1 for n in coarse.shape[: len(dims)]]
            fine = np.full((*shape, *coarse.shape[len(dims) :]), np.nan)
            fine[(slice(None, None, 2),) * len(dims)] = coarse
            full[known] = fine[rows][known]
        if found is not None:
            full[wanted] = variable.values
        variables[name] = ((*dims, *variable.dims[1:]), full)
    status = np.nan_to_num(variables.pop("status")[1], nan=STATUS.index("ok")).astype(np.uint8)
    known = known & ~_was_interpolated(previous, dims)[rows]
    counts = [examples.num for examples in ready.examples]
    several = len(counts) > 1
    variables |= {
        "status": (dims, status),
        "evaluated": (dims, (wanted | known).astype(np.int8)),
        "num_examples": ("split", counts) if several else ((), counts[0]),
    }
    coords: dict[str, Any] = dict(zip(dims, [first, *axes[1:]], strict=True))
    coords |= {"split": [one.name for one in ready.tasks]} if several else {}
    attrs = {} if found is None else {k: found.attrs[k] for k in EVALUATED if k in found.attrs}
    result = dataset(variables, coords, analysis="surface", title="rows of a surface", **attrs)
    return result.transpose("split", *dims, ...) if several else result


def interpolated(result: xr.Dataset, dims: Sequence[str], previous: xr.Dataset) -> xr.Dataset:
    """The finer grid with the points that were not evaluated interpolated from the coarse ones."""
    kept = {name: previous.attrs[name] for name in EVALUATED if name in previous.attrs}
    result = result.copy().assign_attrs(kept | result.attrs)
    evaluated = result["evaluated"].transpose(*dims).values == 1
    missing = ~evaluated & ~_on_coarse(evaluated.shape)
    for name, variable in result.data_vars.items():
        if not set(dims) <= set(variable.dims) or variable.dtype.kind != "f":
            continue
        others = [dim for dim in variable.dims if dim not in dims]
        values = variable.transpose(*dims, *others).values.copy()
        with np.errstate(invalid="ignore"):  # next to infinite values, where points are evaluated
            between = doubled(values[_every_other(dims)], len(dims))
        values[missing] = between[missing]
        filled = xr.Variable((*dims, *others), values, variable.attrs)
        result[name] = filled.transpose(*variable.dims)
    words = {"long_name": "1 where evaluated, 0 where interpolated from neighbours"}
    result["evaluated"].attrs |= words
    return result


def _known_and_wanted(
    previous: xr.Dataset, dims: Sequence[str], ready: Prepared
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which points of the finer grid are taken over, and which are evaluated."""
    losses = previous["loss"].transpose(..., *dims).values
    sizes = losses.shape[-len(dims) :]
    axes = [previous[name].values for name in dims]
    wanted = np.any([worth_evaluating(one, axes) for one in losses.reshape(-1, *sizes)], axis=0)
    old = _on_coarse(wanted.shape)
    counts = [examples.num for examples in ready.examples]
    same = np.array_equal(np.atleast_1d(previous["num_examples"]), counts)
    same &= previous.attrs["batch_norm_examples"] in (0, ready.moments.num)
    same &= previous.attrs["dtype"] == str(ready.dtype).removeprefix("torch.")
    if not same:
        return np.zeros_like(old), wanted | old
    interpolated = _was_interpolated(previous, dims)
    return old & ~(wanted & interpolated), wanted & (~old | interpolated)


def _was_interpolated(previous: xr.Dataset, dims: Sequence[str]) -> NDArray[np.bool_]:
    """Points of the finer grid that the coarse one has, but interpolated."""
    mask = np.zeros([2 * previous.sizes[name] - 1 for name in dims], dtype=bool)
    if "evaluated" in previous:
        mask[_every_other(dims)] = previous["evaluated"].transpose(*dims).values == 0
    return mask


def _on_coarse(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    mask = np.zeros(shape, dtype=bool)
    mask[_every_other(shape)] = True
    return mask


def _every_other(dims: Sequence[Any]) -> tuple[slice, ...]:
    return (slice(None, None, 2),) * len(dims)


def _over_points(result: xr.Dataset, dims: Sequence[str]) -> dict[str, xr.Variable]:
    """What a result has at each point, with the points as the first dimension."""
    found = {}
    for name, variable in result.data_vars.items():
        if set(dims) <= set(variable.dims) and name != "evaluated":
            found[str(name)] = variable.variable.stack(point=tuple(dims)).transpose("point", ...)
        elif "point" in variable.dims:
            found[str(name)] = variable.variable.transpose("point", ...)
    return found
