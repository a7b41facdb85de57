"""Do networks that part at step k of training end in one basin, and which of them share one?

Children are trained to the end from the state at step k of a trunk, each with its own order of the
data. The barrier on the line between two of them is the instability at k (Frankle et al. 2020).
The same pairs of lines, between any networks, give a matrix of barriers and its basins.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from landscape.analyses.interpolation import barrier, interpolate
from landscape.evaluation import Prepared, Tasks, placing, prepare
from landscape.maths.clustering import basins
from landscape.maths.resampling import pair_interval, pair_mean
from landscape.results import STATUS
from landscape.states import State, Stored, loaded
from landscape.task import tasks_of

Array = NDArray[np.float64]
POINTS = 31
RUNS = ("run", "other_run")
OF_PAIR = "_of_pair"  # ends the names of what a matrix was made from


@dataclass(frozen=True, eq=False)
class Child:
    """A network trained to the end from a step of a trunk, with its own order of the data.

    `step`: the training step k at which it left the trunk. `trunk`: the name of the training (its
    initialisation and seed) that it left; `run`: its own name. `state`: its weights at the end, or
    a checkpoint that is read when it is needed.
    """

    step: int
    trunk: str
    run: str
    state: State | Stored


Pair = tuple[Child, Child]


def instability(
    task: Tasks,
    children: Sequence[Child],
    *,
    points: int | ArrayLike = POINTS,
    kind: str = "mean",
    threshold: float = 0.02,
    measure: str | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    progress: bool | None = False,
    **options: Any,
) -> xr.Dataset:
    """The instability at each branch step, from the lines between all pairs of children.

    `pairs_of`, `pair_curves` and `summarise` one after the other, which say what the arguments are
    and what raises. Returns the dataset of `summarise`. (Frankle et al. 2020, section 2.)
    """
    pairs = pairs_of(children)
    summary: dict[str, Any] = {
        "kind": kind, "threshold": threshold, "measure": measure,
        "level": level, "resamples": resamples, "seed": seed,
    }  # fmt: skip
    summarise(rehearsal(task, pairs[:1], points), **summary)
    curves = pair_curves(task, pairs, points=points, progress=progress, **options)
    return summarise(curves, **summary)


def barrier_matrix(
    task: Tasks,
    states: Sequence[State | Stored],
    *,
    names: Sequence[Any] | None = None,
    points: int | ArrayLike = POINTS,
    kind: str = "chord",
    threshold: float = 0.02,
    measure: str | None = None,
    progress: bool | None = False,
    **options: Any,
) -> xr.Dataset:
    """Barriers between all pairs of networks (runs, or steps of one run), and their basins.

    `names` label the networks (default: their numbers). Further arguments are those of
    `pair_curves` and `matrix_of`. Returns the dataset of `matrix_of`.

    Raises `ValueError` for fewer than two networks, or names that are too few or not unlike.
    """
    pairs = named_pairs(states, names)
    matrix: dict[str, Any] = {"kind": kind, "threshold": threshold, "measure": measure}
    matrix_of(rehearsal(task, pairs[:1], points), **matrix)
    curves = pair_curves(task, pairs, points=points, progress=progress, **options)
    return matrix_of(curves, **matrix)


def pairs_of(children: Sequence[Child]) -> list[Pair]:
    """All pairs of children of one step of one trunk, in the order of the children.

    Raises `ValueError` if there are no children, one has no partner, or two have the same step,
    trunk and run.
    """
    groups: dict[tuple[int, str], list[Child]] = {}
    for child in children:
        groups.setdefault((child.step, child.trunk), []).append(child)
    if not groups:
        raise ValueError("there are no children to compare: the sequence is empty")
    for (step, trunk), group in groups.items():
        where = f"step {step}" + (f" of trunk {trunk!r}" if trunk else "")
        runs = [child.run for child in group]
        if len(group) == 1:
            raise ValueError(
                f"{where} has the single run {runs[0]!r}: instability compares at least two that "
                "leave the same step of the same trunk. Train another, or leave this one out."
            )
        if len(set(runs)) < len(runs):
            twice = next(run for run in runs if runs.count(run) > 1)
            raise ValueError(f"{where} has several runs named {twice!r}; give them unlike names")
    return [pair for group in groups.values() for pair in itertools.combinations(group, 2)]


def named_pairs(states: Sequence[State | Stored], names: Sequence[Any] | None = None) -> list[Pair]:
    """All pairs of networks, for `pair_curves`; arguments and errors as for `barrier_matrix`."""
    labels = [str(name) for name in (range(len(states)) if names is None else names)]
    if len(labels) != len(states) or len(set(labels)) < len(labels):
        raise ValueError(f"{len(states)} networks need as many unlike names, got {labels}")
    if len(states) < 2:
        raise ValueError(f"barriers lie between at least two networks, got {len(states)}")
    runs = [Child(0, "", label, state) for label, state in zip(labels, states, strict=True)]
    return pairs_of(runs)


def pair_curves(
    task: Tasks,
    pairs: Sequence[Pair],
    *,
    points: int | ArrayLike = POINTS,
    progress: bool | None = False,
    **options: Any,
) -> xr.Dataset:
    """The line between the two networks of each pair, at most two of them in memory at a time.

    `points` and all further arguments are those of `interpolate`. The default of 31 points from 0
    to 1, both included, is the 30 of Frankle et al. 2020 and the middle, where barriers between
    equally good networks are highest and which 30 points leave out. `progress`: True, False, or
    None for a bar if standard error is a terminal.

    Returns the variables of `interpolate` along `pair` and `t`, with the `step`, `trunk`, `run_a`
    (t = 0) and `run_b` (t = 1) of each pair, and `distance`, that of the weights. Parts of the
    pairs give parts of the result.

    Raises `ValueError` if there are no pairs, or two networks do not fit.
    """
    if not pairs:
        raise ValueError("there are no pairs of networks to interpolate: the sequence is empty")
    places = placing(options)
    kept: dict[Child, State] = {}
    lines = []
    for pair in tqdm(pairs, unit="pair", disable=None if progress is None else not progress):
        kept = {child: state for child, state in kept.items() if child in pair}
        kept |= {child: loaded(child.state) for child in pair if child not in kept}
        try:
            task = prepare(task, [kept[pair[0]]], **places)
            ends = (kept[child] for child in pair)  # by no name that would keep them for longer
            lines.append(interpolate(task, *ends, points=points, **options))
        except ValueError as error:
            names = " and ".join(repr(child.run) for child in pair)
            raise ValueError(f"between the runs {names}: {error}") from error
    return _joined(lines, pairs)


def rehearsal(task: Tasks, pairs: Sequence[Pair], points: int | ArrayLike) -> xr.Dataset:
    """Blank lines of pairs, as `pair_curves` gives them.

    What `summarise` or `matrix_of` would refuse after the work, they refuse on these before it.
    """
    tasks = task.tasks if isinstance(task, Prepared) else tasks_of(task)
    t = np.asarray(points, float)
    if isinstance(points, int):
        t = np.union1d(np.linspace(0, 1, points), [0.0, 1.0])
    blank = (("pair", "t"), np.zeros((len(pairs), len(t))))
    variables: dict[str, Any] = dict.fromkeys(tasks[0].measures(), blank)
    variables |= {f"{name}_stderr": blank for name in tasks[0].measures()}
    variables["status"] = (blank[0], blank[1] + STATUS.index("ok"))
    variables["distance"] = ("pair", np.zeros(len(pairs)))
    return xr.Dataset(variables, {"t": t, **_labels(pairs)})


def summarise(
    curves: xr.Dataset,
    *,
    kind: str = "mean",
    threshold: float = 0.02,
    measure: str | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """The instability at each branch step, from the lines of `pair_curves`.

    For the loss and each metric, `*_barrier` (pair) is the barrier of the given kind (as in
    `barrier`), and `*_instability` (branch_step) its mean over trunks of the mean over pairs.
    `*_instability_low` and `*_instability_high` bound an interval of the given level by a bootstrap
    over trunks and runs; `maths.resampling.pair_interval` says how far it can be trusted. They are
    NaN where a step has two runs of one trunk: a single pair shows no spread.

    `stable_from` is the first branch step from which on the instability in `measure` (default: the
    error if it is there, else the loss) is at most the threshold, in its units, at all later
    branch steps; NaN if there is none. `stable_from_high` is the same for the upper end of the
    interval. The usual 2 % of the error (Frankle et al. 2020) is 0.02.

    Returns the curves with these variables. An earlier summary is replaced, so another kind or
    threshold needs no new evaluation.

    Raises `ValueError` for an unknown kind or measure, a level outside of (0, 1), pairs that are
    still pending, or lines without their ends.
    """
    curves = curves.drop_dims("branch_step", errors="ignore")
    heights, measure = _barriers(curves, kind, measure)
    steps = np.unique(curves["step"].values)
    interval = {"level": level, "num": resamples, "seed": seed}
    variables: dict[str, Any] = {}
    for name in _measures(curves):
        values = heights[name].transpose(..., "pair")
        dims = (*values.dims[:-1], "branch_step")
        words = f"{kind} barrier in {name}"
        variables[f"{name}_barrier"] = (values.dims, values.values, {"long_name": words})
        centre, low, high = _over_steps(values.values, curves, steps, interval)
        words = f"instability in {name}"
        variables[f"{name}_instability"] = (dims, centre, {"long_name": words})
        for end, bound in (("low", low), ("high", high)):
            bounds = {"long_name": f"{words}, {end} end of the interval"}
            variables[f"{name}_instability_{end}"] = (dims, bound, bounds)
    for suffix in ("", "_high"):
        dims, values, _ = variables[f"{measure}_instability{suffix}"]
        words = "first step that is stable with all later ones" + (", upper end" if suffix else "")
        found = _stable_from(steps, values, threshold)
        variables[f"stable_from{suffix}"] = (dims[:-1], found, {"long_name": words})
    axis = ("branch_step", steps, {"long_name": "branch step k"})
    return curves.assign_coords(branch_step=axis).assign(variables).assign_attrs(
        title=f"Instability at {len(steps)} branch steps from {curves.sizes['pair']} pairs",
        analysis="instability",
        kind=kind,
        threshold=float(threshold),
        measure=measure,
        level=level,
        resamples=resamples,
        seed=seed,
        resolution=heights.attrs["resolution"],
    )  # fmt: skip


def matrix_of(
    curves: xr.Dataset, *, kind: str = "chord", threshold: float = 0.02, measure: str | None = None
) -> xr.Dataset:
    """Symmetric matrices of barriers, and basins, from the lines between all pairs of networks.

    Returns over (`run`, `other_run`), in the order of the networks, the barrier of the given kind
    (as in `barrier`) in the loss and each metric, zero on the diagonal, and the `distance` of the
    weights. Over `run`: `end_loss` and the like, the values of each network by itself, and
    `basin`, labels of groups in which every barrier in `measure` (default: the error if it is
    there, else the loss) is at most the threshold, in its units, on every split
    (`maths.clustering.basins`). The lines stay in the result as `loss_of_pair` and the like, and
    `matrix_of` takes the result again for another kind or threshold.

    Raises `ValueError` for an unknown kind or measure, pairs that are missing, pending or failed,
    or lines without their ends.
    """
    curves = _lines(curves)
    heights, measure = _barriers(curves, kind, measure)
    if (curves["status"] == STATUS.index("failed")).any():
        raise ValueError("some pairs have failed: run the same command again to try them anew")
    runs, first, second = _indices(curves)

    def square(of_pairs: xr.DataArray, words: str) -> Any:
        of_pairs = of_pairs.transpose(..., "pair")
        full = np.zeros((*of_pairs.shape[:-1], len(runs), len(runs)))
        full[..., first, second] = full[..., second, first] = of_pairs.values
        return (*of_pairs.dims[:-1], "run", "other_run"), full, {"long_name": words}

    variables = {
        name: square(curves[name], str(curves[name].attrs.get("long_name", name)))
        for name in ("distance", "aligned_distance")
        if name in curves
    }
    for name in _measures(curves):
        variables[name] = square(heights[name], f"{kind} barrier in {name}")
        line = curves[name].transpose(..., "pair", "t")
        ends = np.empty((*line.shape[:-2], len(runs)))
        ends[..., first], ends[..., second] = (line.sel(t=end).values for end in (0.0, 1.0))
        words = {"long_name": f"{name} of the network itself"}
        variables[f"end_{name}"] = ((*line.dims[:-2], "run"), ends, words)
    worst = heights[measure]
    if "split" in worst.dims:
        worst = worst.max("split", skipna=False)
    dims, barriers, _ = square(worst, "")
    found = [basins(one, threshold) for one in barriers.reshape(-1, len(runs), len(runs))]
    labels = np.reshape(found, barriers.shape[:-1])
    variables["basin"] = (dims[:-1], labels, {"long_name": "basin"})
    of_pairs = {name: f"{name}{OF_PAIR}" for name in curves if "pair" in curves[name].dims}
    del of_pairs["status"]
    axes = {name: (name, runs, {"long_name": name.replace("_", " ")}) for name in RUNS}
    kept = curves.rename(of_pairs).drop_vars(["step", "trunk"], errors="ignore")
    return kept.assign_coords(axes).assign(variables).assign_attrs(
        title=f"Barriers between all pairs of {len(runs)} networks",
        analysis="barrier matrix",
        kind=kind,
        threshold=float(threshold),
        measure=measure,
        resolution=heights.attrs["resolution"],
    )  # fmt: skip


# --- lines ----------------------------------------------------------------------------------------


def _joined(lines: Sequence[xr.Dataset], pairs: Sequence[Pair]) -> xr.Dataset:
    """The lines of pairs as one dataset."""
    joined = xr.concat(
        [line.drop_attrs(deep=False) for line in lines],
        "pair",
        data_vars=[name for name in lines[0] if "t" in lines[0][name].dims],
        coords="minimal",
        compat="override",
        join="exact",
    ).transpose(..., "pair", "t", "example", missing_dims="ignore")
    attrs = dict(lines[0].attrs)
    for name in {"distance", "aligned_distance"} & attrs.keys():
        words = {"long_name": f"{name.replace('_', ' ')} of the weights"}
        joined[name] = ("pair", [line.attrs[name] for line in lines], words)
        del attrs[name]
    attrs |= {"title": f"Lines between {len(pairs)} pairs of networks", "analysis": "pair curves"}
    return joined.assign_coords(_labels(pairs)).assign_attrs(attrs)


def _labels(pairs: Sequence[Pair]) -> dict[str, Any]:
    """The coordinates along pairs."""
    columns: dict[str, list[Any]] = {
        "pair": list(range(len(pairs))),
        "step": [a.step for a, _ in pairs],
        "trunk": [a.trunk for a, _ in pairs],
        "run_a": [a.run for a, _ in pairs],
        "run_b": [b.run for _, b in pairs],
    }
    words = {"step": "branch step k", "run_a": "run at t = 0", "run_b": "run at t = 1"}
    return {
        name: ("pair", column, {"long_name": words.get(name, name)})
        for name, column in columns.items()
    }


def _barriers(curves: xr.Dataset, kind: str, measure: str | None) -> tuple[xr.Dataset, str]:
    """The barriers of all pairs, and the measure that is judged by."""
    heights = barrier(curves.drop_dims("example", errors="ignore"), kind)
    measures = _measures(curves)
    if measure is None:
        measure = "error" if "error" in measures else "loss"
    if measure not in measures:
        raise ValueError(f"measure must be one of {', '.join(measures)}, got {measure!r}")
    return heights, measure


def _measures(curves: xr.Dataset) -> list[str]:
    return [n.removesuffix("_stderr") for n in map(str, curves) if n.endswith("_stderr")]


# --- instability ----------------------------------------------------------------------------------


def _over_steps(
    values: Array, curves: xr.Dataset, steps: NDArray[Any], interval: dict[str, Any]
) -> Array:
    """Means and lower and upper ends (3, ..., steps) of values (..., pairs)."""
    flat = values.reshape(-1, values.shape[-1])
    parts = []
    for step in steps:
        here = curves["step"].values == step
        runs, trunks = _runs(curves)[here], curves["trunk"].values[here].astype(str)
        ends = pair_interval(flat[:, here], runs, trunks, **interval)
        parts.append(np.stack([pair_mean(flat[:, here], trunks), *ends]))
    return np.stack(parts, axis=-1).reshape(3, *values.shape[:-1], len(steps))


def _stable_from(steps: NDArray[Any], values: Array, threshold: float) -> Array:
    """The first step from which on values (..., steps) stay at or below the threshold, or NaN."""
    stable = np.logical_and.accumulate(values[..., ::-1] <= threshold, axis=-1)[..., ::-1]
    return np.where(stable.any(-1), steps[stable.argmax(-1)], np.nan)


# --- matrices -------------------------------------------------------------------------------------


def _lines(result: xr.Dataset) -> xr.Dataset:
    """The lines that a matrix was made from; lines as they are."""
    lines = result.drop_dims(RUNS, errors="ignore")
    names = [name for name in map(str, lines) if name.endswith(OF_PAIR)]
    return lines.rename({name: name.removesuffix(OF_PAIR) for name in names})


def _runs(curves: xr.Dataset) -> NDArray[np.str_]:
    """The names (pairs, 2) of the runs of each pair."""
    return np.stack([curves["run_a"].values, curves["run_b"].values], axis=1).astype(str)


def _indices(curves: xr.Dataset) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """The names of the networks in their order, and the places of both networks of each pair."""
    pairs = _runs(curves).tolist()
    runs = list(dict.fromkeys(name for side in zip(*pairs, strict=True) for name in side))
    wanted = {frozenset(pair) for pair in itertools.combinations(runs, 2)}
    if len(pairs) != len(wanted) or {frozenset(pair) for pair in pairs} != wanted:
        raise ValueError(
            f"a matrix of {len(runs)} networks needs each of their {len(wanted)} pairs once, got "
            f"{len(pairs)} pairs: select those of one step and trunk, or compute what is missing"
        )
    first, second = np.array([[runs.index(name) for name in pair] for pair in pairs]).T
    return runs, first, second
