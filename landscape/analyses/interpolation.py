"""Are two solutions connected by a straight line, and how high is the barrier between them?"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from landscape.evaluation import Tasks, evaluate, prepare
from landscape.families import line
from landscape.maths.curves import excess
from landscape.maths.resampling import bootstrap_interval
from landscape.results import STATUS, dataset
from landscape.states import State, distance

Array = NDArray[np.float64]


def interpolate(
    task: Tasks,
    a: State,
    b: State,
    *,
    points: int | ArrayLike = 25,
    batch_norm: str | None = None,
    batch_norm_examples: int | None = None,
    **options: Any,
) -> xr.Dataset:
    """Evaluate tasks on the straight line w(t) = (1 - t) a + t b.

    `points`: a number of equidistant points from 0 to 1, both included, or the values of t.
    `batch_norm`, `batch_norm_examples` and further options are those of `evaluate`.

    Returns the variables of `evaluate` along `t`. Where the line passes through `a` (t = 0) or `b`
    (t = 1), `own_loss` and the like are the values that the checkpoint has with its own batch-norm
    statistics; elsewhere they are NaN. The attribute `distance` is the Euclidean distance of the
    weights. (Goodfellow et al. 2015; Frankle et al. 2020.)
    """
    t = np.linspace(0, 1, points) if isinstance(points, int) else np.asarray(points, float)
    family = line(a, b)
    placing = {k: options.pop(k) for k in ("device", "dtype", "strategy") if k in options}
    policy: dict[str, Any] = {"batch_norm": batch_norm, "batch_norm_examples": batch_norm_examples}
    ready = prepare(task, family, **policy, **placing)
    result = evaluate(ready, family, t, **policy, **options)
    ends = [end for end in (0.0, 1.0) if end in t]
    kept = result.sel(t=ends).transpose(..., "t")
    if result.attrs["batch_norm"] == "recalibrate" and ends:
        kept = evaluate(ready, [(a, b)[int(end)] for end in ends], batch_norm="keep")
    for name in ready.tasks[0].measures():
        own = np.full(result[name].shape, np.nan)
        for position, end in enumerate(ends):
            own[..., t == end] = kept[name].values[..., position, None]
        words = {"long_name": f"{name} with the checkpoint's own statistics"}
        result[f"own_{name}"] = (result[name].dims, own, words)
    result["t"].attrs["long_name"] = "position t on the line"
    return result.assign_attrs(
        title=f"Linear interpolation at {len(t)} points",
        analysis="interpolation",
        distance=distance(a, b),
    )


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
