"""Are two solutions connected by a straight line, and how high is the barrier between them?"""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from torch import nn

from landscape.analyses.alignment import align as match_units
from landscape.analyses.diagnostics import combined, with_diagnostics
from landscape.evaluation import Prepared, Tasks, evaluate, placing, prepare
from landscape.families import polychain
from landscape.maths.curves import excess
from landscape.maths.resampling import bootstrap_interval
from landscape.results import STATUS, dataset
from landscape.states import State, distance

Array = NDArray[np.float64]


def interpolate(
    task: Tasks,
    a: State,
    b: State,
    *further: State,
    points: int | ArrayLike = 25,
    layers: str | Sequence[str] | None = None,
    align: bool | str | State = False,
    diagnostics: bool = False,
    **options: Any,
) -> xr.Dataset:
    """Evaluate tasks on the straight line w(t) = (1 - t) a + t b, or on a path through more states.

    Main arguments. `points`: a number of equidistant points from 0 to 1, both included, or the
    values of t. With `further` states the path is the polygonal chain through all of them, each
    segment with the same share of [0, 1]; its knots are added to a number of points. `layers`: move
    one part of the network at a time and keep the rest as in `a`: `"each"` module with parameters,
    `"blocks"` (the model's children), or name patterns such as `["conv*", "head"]`. `align`: also
    evaluate the line to `b` with its units permuted to match those of `a`: True or `"weights"`,
    `"activations"` (see `align`), or the aligned state itself. `diagnostics`: also compare the
    predictions with those of both ends (see `analyses.diagnostics`). Further options go to
    `evaluate`.

    Returns the variables of `evaluate` along `t`; along `layer` or `alignment` (`"raw"`,
    `"aligned"`) too where that is asked. Where the path passes through a state, `own_loss` and the
    like are the values that it has with its own batch-norm statistics; elsewhere they are NaN. The
    attribute `distance` is the Euclidean distance of the weights of both ends. (Goodfellow et al.
    2015; Frankle et al. 2020; by layers: Vlaar and Frankle 2022, section 5.)
    """
    states = [a, b, *further]
    if len(states) > 2 and (layers is not None or align is not False):
        raise ValueError("layers and align are for a line between two states, not for a path")
    if layers is not None and align is not False:
        raise ValueError("choose layers or align: a layer alone has no units to permute freely")
    knots = np.linspace(0, 1, len(states))
    t = np.asarray(points, float)
    if isinstance(points, int):
        t = np.union1d(np.linspace(0, 1, points), knots)
    ready = prepare(task, polychain(*states), **placing(options))
    model, measures = ready.tasks[0].model, list(ready.tasks[0].measures())
    if diagnostics:
        ready = with_diagnostics(ready, polychain(*states), batch_norm=options.get("batch_norm"))
    path = partial(_path, ready, t=t, measures=measures, options=options)
    if layers is not None:
        parts = parts_of(model, layers)
        results = [path([a, _moved(a, b, names)]) for names in parts.values()]
        words = {"long_name": "the part that moves"}
        index = xr.DataArray(list(parts), dims="layer", name="layer", attrs=words)
        result = _stacked(results, index)
    elif align is not False:
        method = "weights" if align is True else align
        permuted = match_units(ready, a, b, method=method) if isinstance(method, str) else method
        lines = [path([a, end]) for end in (b, permuted)]
        index = xr.DataArray(["raw", "aligned"], dims="alignment", name="alignment")
        result = _stacked(lines, index)
        result["alignment"].attrs["long_name"] = "units of the second state"
        result.attrs["aligned_distance"] = distance(a, permuted)
    else:
        result = path(states)
    result = combined(result) if diagnostics else result
    return result.assign_attrs(
        title=f"Linear interpolation at {len(t)} points",
        analysis="interpolation",
        distance=distance(a, states[-1]),
    )


def parts_of(model: nn.Module, layers: str | Sequence[str]) -> dict[str, list[str]]:
    """The parts of a model that are moved one by one: what each is called, and its tensors.

    Raises `ValueError` for a pattern that fits nothing, and if there are no parts.
    """
    names = list(model.state_dict())
    if layers == "each":
        owners = (name for name, module in model.named_modules() if list(module.parameters(False)))
        patterns = list(owners)
    elif layers == "blocks":
        patterns = [name for name, module in model.named_children() if list(module.parameters())]
    else:
        patterns = [layers] if isinstance(layers, str) else list(layers)
    parts = {}
    for pattern in patterns:
        fits = (pattern, f"{pattern}.*") if pattern else ("*",)
        parts[pattern] = [n for n in names if any(fnmatchcase(n, one) for one in fits)]
        if not parts[pattern]:
            raise ValueError(
                f"no tensor of the model is named {pattern!r} or lies in a module of that name; "
                f"its tensors are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
            )
    if not parts:
        raise ValueError(f"layers={layers!r} names no part of the model to move")
    return parts


def _moved(a: State, b: State, names: Sequence[str]) -> State:
    """The state `a` with some entries of `b`."""
    return {**a, **{name: b[name] for name in names if name in b}}


def _stacked(lines: Sequence[xr.Dataset], index: xr.DataArray) -> xr.Dataset:
    """Lines along a new dimension; what is no value of a point stays as it is."""
    along = [name for name in lines[0] if "t" in lines[0][name].dims]
    return xr.concat(lines, dim=index, data_vars=along, combine_attrs="override")


def _path(
    ready: Prepared,
    states: Sequence[State],
    *,
    t: Array,
    measures: Sequence[str],
    options: Mapping[str, Any],
) -> xr.Dataset:
    """The polygonal chain through states, with the measures that these have by themselves."""
    family = polychain(*states)
    result = evaluate(ready, family, t, **options)
    knots = np.linspace(0, 1, len(states))
    met = [number for number, knot in enumerate(knots) if knot in t]
    kept = result.isel(t=[int(np.argmax(t == knots[number])) for number in met])
    kept = kept.transpose(..., "t")
    if result.attrs["batch_norm"] in ("recalibrate", "repair") and met:
        kept = evaluate(ready, [states[number] for number in met], batch_norm="keep")
    for name in measures:
        own = np.full(result[name].shape, np.nan)
        for position, number in enumerate(met):
            own[..., t == knots[number]] = kept[name].values[..., position, None]
        words = {"long_name": f"{name} with the checkpoint's own statistics"}
        result[f"own_{name}"] = (result[name].dims, own, words)
    result["t"].attrs["long_name"] = f"position t on the {'line' if len(states) == 2 else 'path'}"
    return result


def barrier(
    result: xr.Dataset,
    kind: str = "chord",
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """How far the loss and the metrics rise on a path from t = 0 to t = 1.

    With L(t) the values and L0, L1 those at the ends, `kind` is one of

    - `"chord"`: the largest L(t) - ((1 - t) L0 + t L1) (Entezari et al. 2022, definition 3.1);
    - `"mean"`: the largest L(t) - (L0 + L1) / 2 (Frankle et al. 2020, section 2, on the error; also
      Ainsworth et al. 2022). Not zero on a monotone path between unequal ends;
    - `"max"`: the largest L(t) - max(L0, L1), the strictest of the three.

    Returns for each measure its barrier, `*_position` (the t of the maximum) and, if the examples
    were kept, `*_low` and `*_high`: a bootstrap interval of the given level over examples, with the
    position free. Not over seeds: that needs several pairs. The attribute `resolution` is the
    widest step of the grid. Points outside of [0, 1] do not count; a barrier over a non-finite
    value is that value.

    Raises `ValueError` if an end is missing from the grid or points are still pending.
    """
    t = result["t"].values
    if 0.0 not in t or 1.0 not in t:
        raise ValueError(f"a barrier needs both ends, t = 0 and t = 1, on the grid; got {t}")
    if (result["status"] == STATUS.index("pending")).any():
        raise ValueError("some points are still pending: run the same command again to finish them")
    inside = result.sel(t=t[(t >= 0) & (t <= 1)]).sortby("t")
    t = inside["t"].values
    variables: dict[str, Any] = {}
    names = [name.removesuffix("_stderr") for name in map(str, inside) if name.endswith("_stderr")]
    for name in names:
        values = inside[name].transpose(..., "t")
        dims = values.dims[:-1]
        above = excess(values.values, t, kind)
        variables[name] = (dims, above.max(-1), {"long_name": f"{kind} barrier in {name}"})
        variables[f"{name}_position"] = (dims, t[above.argmax(-1)])
        if f"{name}_examples" in inside:
            statistic = partial(_height, t=t, kind=kind)
            kept = inside[f"{name}_examples"].transpose(..., "t", "example")
            interval = _intervals(kept.values, statistic, level, resamples, seed)
            variables[f"{name}_low"] = (dims, interval[..., 0])
            variables[f"{name}_high"] = (dims, interval[..., 1])
    return dataset(
        variables,
        {str(name): coord for name, coord in inside.coords.items() if "t" not in coord.dims},
        analysis="barrier",
        title=f"Barrier ({kind}) on a path of {len(t)} points",
        kind=kind,
        level=level,
        resolution=float(np.diff(t).max()),
    )


def _height(means: Array, *, t: Array, kind: str) -> Array:
    return excess(means, t, kind).max(-1)


def _intervals(
    values: Array, statistic: Callable[[Array], Array], level: float, num: int, seed: int
) -> Array:
    """Intervals (..., 2) for values (..., t, example), padded with NaN along the examples."""
    if values.ndim > 2:
        return np.stack([_intervals(one, statistic, level, num, seed) for one in values])
    present = values[:, ~np.isnan(values).all(0)]
    if not np.isfinite(present).all():
        return np.array([np.nan, np.nan])
    return np.array(bootstrap_interval(present, statistic, level=level, num=num, seed=seed))
