"""What does a result or a checkpoint say in a few lines of text?"""

import itertools
import json
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

import numpy as np
import xarray as xr

from landscape.analyses.connectivity import summary
from landscape.analyses.interpolation import barrier

KINDS = ("chord", "mean", "max")
LENGTHS = ("distance", "length", "length_ratio")
BESIDE = ("_stderr", "_chance", "_threshold", "_adjusted", "_unweighted", "_by_frequency")
QUALITY = ("rank", "other_rank", "condition", "other_condition", "num_forced", "exact")
NEAR = 0.9  # the similarity to its final state at which a layer counts as near it
FISHER = ("labels", "likelihood", "batch_norm", "num_examples", "num_backwards", "not_counted")
TRACES = ("trace", "trace_stderr")
TOTALS = ("total", "total_stderr")
QUADRATURE = ("nodes", "weights")
MOVES = ("weight_norm", "distance_initial", "cosine_initial", "signs_initial")
OVER = ("finished", "stopped")
TICKETS = {
    "test_error": "test error",
    "pruning_distance": "to dense",
    "order_distance": "between orders",
    "effective_std": "effective std",
}
LANDMARKS = ("reached", "steepest", "minimum", "plateau")


def barrier_table(result: xr.Dataset) -> str:
    """The ends of a path, and its barriers by each definition: height, interval, position.

    For the loss and the metrics of the task, not for diagnostics. Behind the values at the ends, in
    brackets, those with the checkpoints' own statistics.
    """
    barriers = {kind: barrier(result, kind) for kind in KINDS}
    measures = [str(n) for n in barriers["chord"] if f"own_{n}" in result]
    rows = [["", "start (own)", "end (own)", *(f"barrier ({kind})" for kind in KINDS), "at t"]]
    for measure in measures:
        for where in _selections(barriers["chord"][measure]):
            ends = [_end(result.sel(t=t, **where), measure) for t in (0.0, 1.0)]
            heights = [_height(barriers[kind].sel(where), measure) for kind in KINDS]
            position = float(barriers["chord"][f"{measure}_position"].sel(where))
            rows.append([_row_name(where, measure), *ends, *heights, f"{position:.2f}"])
    return table(rows)


def path_table(result: xr.Dataset) -> str:
    """The numbers that papers give of a path: its ends, extremes and means, and its length."""
    numbers = summary(result)
    columns = numbers["of"].values.tolist()
    rows = [["", *columns[:4], "mean over t", "mean over length"]]
    for measure in map(str, numbers):
        for where in _selections(numbers[measure].isel(of=0, drop=True)):
            values = numbers[measure].sel(where)
            rows.append([_row_name(where, measure), *(f"{float(v):.4f}" for v in values)])
    said = [f"{name.replace('_', ' ')} {numbers.attrs[name]:.4g}" for name in LENGTHS
            if name in numbers.attrs]  # fmt: skip
    return "\n".join([table(rows), ", ".join(said)])


def instability_table(result: xr.Dataset) -> str:
    """Instability at each branch step with its interval, and from where on it is stable."""
    measure, kind = result.attrs["measure"], result.attrs["kind"]
    name = f"{measure}_instability"
    selections = _selections(result[name].isel(branch_step=0, drop=True))
    titles = [_row_name(where, f"{kind} barrier in {measure}") for where in selections]
    rows = [["branch step", *titles]]
    for step in result["branch_step"].values:
        one = result.sel(branch_step=step)
        rows.append([str(step), *(_with_interval(one.sel(where), name) for where in selections)])
    rows.append(["stable from", *(_step(result["stable_from"].sel(w)) for w in selections)])
    upper = [_step(result["stable_from_high"].sel(where)) for where in selections]
    rows.append(["(upper end)", *upper])
    return table(rows) + f"\nstable: at most {result.attrs['threshold']:g}"


def basin_table(result: xr.Dataset) -> str:
    """Which networks lie in one basin: every barrier between them is at most the threshold."""
    basins = result["basin"].values
    rows = [["basin", "networks"]]
    for number in np.unique(basins):
        names = result["run"].values[basins == number]
        rows.append([str(number), ", ".join(map(str, names))])
    threshold, measure = result.attrs["threshold"], result.attrs["measure"]
    return table(rows) + f"\none basin: barriers in {measure} of at most {threshold:g}"


def layers_table(result: xr.Dataset) -> str:
    """How similar each layer is to what it was compared with, by every measure.

    Between networks: to the layer of its name (to the most similar one where no names agree), with
    standard error and chance level, the ranks and condition numbers of both, and how many
    correlations are forced to 1. To the final state: the similarity at the first step, and the step
    from which on it stays at 0.9 or more (of several runs the median, lowest and highest). Between
    steps or networks: mean, lowest and highest over all pairs. Per-frequency values are averaged.

    Raises `ValueError` for a result that has no similarities of layers.
    """
    dims = {str(dim) for dim in result.dims}
    if {"layer", "other_layer"} <= dims:
        return _between_layers(result)
    if {"layer", "step"} <= dims and "other_step" not in dims:
        return _convergence(result)
    other = next((dim for dim in ("step", "run") if {"layer", dim, f"other_{dim}"} <= dims), None)
    if other is None:
        raise ValueError(
            "similarities of layers are over layer and other_layer, step, step and other_step, or "
            f"run and other_run; this result has {', '.join(sorted(dims)) or 'no dimensions'}"
        )
    names = _similarities(result, ("layer", other, f"other_{other}"))
    rows = [["layer", *names]]
    apart = result[other] != result[f"other_{other}"]
    for layer in result["layer"].values:
        pairs = (_average(result, name).sel(layer=layer).where(apart) for name in names)
        rows.append([str(layer), *map(_spread, pairs)])
    return table(rows) + f"\nmean [lowest, highest] over pairs of {other}s"


def fisher_table(result: xr.Dataset) -> str:
    """The trace of the Fisher information of each module and in total, with standard errors.

    Through training: the total at each step, and where its peak is. The standard errors of the
    tensors of a module are added, which is the most that theirs can be. Below: what was computed.
    """
    rows = _totals(result) if "step" in result["total"].dims else _modules(result)
    said = []
    for name in FISHER:
        if name not in result.dims and result.attrs.get(name) not in (None, "", "null", "[]"):
            said.append(f"{name.replace('_', ' ')}: {result.attrs[name]}")
    return "\n".join([table(rows), ", ".join(said)]).rstrip()


def spectrum_table(result: xr.Dataset) -> str:
    """Eigenvalues with their residuals; through training the largest, and 2 / learning rate.

    Of a spectral density: its ends, its mean, and the share of eigenvalues below zero, by more than
    1e-6 of the largest magnitude; with standard errors over probes.
    """
    if "nodes" in result:
        rows = _density(result)
    elif "step" in result["eigenvalue"].dims:
        rows = _largest(result)
    else:
        selections = _selections(result["eigenvalue"].isel(index=0, drop=True))
        titles = [_row_name(where, "eigenvalue") for where in selections]
        rows = [["index", *(text for title in titles for text in (title, "residual"))]]
        for index in result["index"].values:
            one = result.sel(index=index)
            numbers = [float(one[name].sel(where)) for where in selections
                       for name in ("eigenvalue", "residual")]  # fmt: skip
            rows.append([str(index), *(f"{number:.5g}" for number in numbers)])
    return f"{table(rows)}\nmatrix: {result.attrs.get('matrix', 'unknown')}"


def dynamics_table(result: xr.Dataset) -> str:
    """How far each layer and all weights went from the initial state: length, angle and signs.

    At the last step that was finished; of several runs mean, lowest and highest. Below: what
    happens to the learning curve, and when.
    """
    done = result["total_weight_norm"].dropna("step", how="all")["step"].values
    if not done.size:
        return "no step is finished"
    first, last = result.sel(step=done[0]), result.sel(step=done[-1])
    titles = [f"norm at step {done[0]}", f"at {done[-1]}", "distance", "cosine", "same signs"]
    rows = [["layer", "parameters", *titles]]
    for layer in [*result["layer"].values, None]:
        prefix, where = ("total_", {}) if layer is None else ("", {"layer": layer})
        values = [first[f"{prefix}weight_norm"], *(last[prefix + name] for name in MOVES)]
        num = int(result["num_weights"].sel(where).sum())
        name = "total" if layer is None else str(layer)
        rows.append([name, str(num), *(_spread(one.sel(where)) for one in values)])
    lines = [table(rows)]
    if "landmark_reached" in result:
        for where in _selections(result["landmark_reached"]):
            lines.append(_landmarks(result.sel(where), _row_name(where, result.attrs["measure"])))
    return "\n".join(lines)


def tickets_table(result: xr.Dataset) -> str:
    """Each chain and control at the last level of which a run is over: sparsity, error, stability.

    Of several runs mean, lowest and highest. Below: accuracy against effective standard deviation,
    and by name the levels that are not over, or that some runs of a chain have and others lack.
    """
    over = result["ended"].isin(OVER)
    names = [name for name in TICKETS if result[name].notnull().any()]
    rows = [["chain", "runs", "levels", "density", *(TICKETS[name] for name in names)]]
    dense = result.isel(chain=0, level=0)
    cells = ["" if name != "test_error" else _known(dense[name]) for name in names]
    rows.append(["dense", str(int(over.isel(chain=0, level=0).sum())), "0", "1", *cells])
    lines = []
    for chain in result["chain"].values:
        one, own = result.sel(chain=chain), over.sel(chain=chain).isel(level=slice(1, None))
        levels = own["level"].values[own.any("run")].tolist()
        if not levels:
            rows.append([str(chain), "0", "none", *[""] * (1 + len(names))])
            continue
        last = one.sel(level=levels[-1])
        cells = [_known(last[name]) for name in ("density", *names)]
        rows.append([str(chain), str(int(own.any("level").sum())), ranges(levels), *cells])
        r, p = float(last["correlation"]), float(last["p_value"])
        if np.isfinite(r):
            lines.append(
                f"{chain}, level {levels[-1]}: accuracy against effective standard deviation "
                f"r = {r:.2f}, p = {p:.2g}"
            )
    return "\n".join([table(rows), *lines, *_not_over(result)])


def ranges(numbers: Sequence[int]) -> str:
    """Whole numbers as ranges: 1-3, 6."""
    own = np.unique(numbers)
    parts = np.split(own, 1 + np.flatnonzero(np.diff(own) > 1))
    return ", ".join(f"{one[0]}-{one[-1]}" if len(one) > 1 else f"{one[0]}" for one in parts)


def result_text(result: xr.Dataset) -> str:
    """What is in a result and how it was made."""
    attrs = result.attrs
    provenance = json.loads(attrs.get("provenance", "{}"))
    lines = [f"{attrs.get('title', 'untitled')}  [{attrs.get('analysis', 'unknown analysis')}]", ""]
    rows = [["variable", "dimensions", "range", "description"]]
    for name, variable in result.variables.items():
        dims = " x ".join(f"{dim} {size}" for dim, size in variable.sizes.items()) or "single value"
        rows.append([str(name), dims, _range(variable), str(variable.attrs.get("long_name", ""))])
    lines += [table(rows), ""]
    if "status" in result:
        names = str(result["status"].attrs.get("flag_meanings", "")).split()
        codes, counts = np.unique(result["status"].values, return_counts=True)
        said = ", ".join(f"{n} {names[c]}" for c, n in zip(codes, counts, strict=True))
        lines += [f"points: {said}", ""]
    plan = json.loads(attrs.get("plan", "{}"))
    apart = ("title", "analysis", "provenance", "plan")
    made = {key: value for key, value in attrs.items() if key not in apart}
    made |= {f"plan: {key}": value for key, value in plan.items()}
    made |= {**provenance.pop("versions", {}), **provenance}
    lines += [mapping_text({key: value for key, value in made.items() if value not in ("", None)})]
    return "\n".join(lines)


def mapping_text(values: Mapping[str, Any]) -> str:
    """Names and values, one on each line and cut short."""
    return table([[str(key), shorten(str(value), 90)] for key, value in values.items()])


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns of equal width."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _known(values: xr.DataArray) -> str:
    """`_spread` of the values that there are, or the one that all are."""
    there = values[np.isfinite(values)]
    if not there.size:
        return ""
    same = bool((there == there[0]).all()) if there.ndim else True
    return f"{float(there.mean()):.4g}" if same else _spread(there)


def _not_over(result: xr.Dataset) -> list[str]:
    """Levels that are no more or not yet what they should be, by how they are."""
    named: dict[str, list[str]] = {}
    for chain in result["chain"].values:
        one = result["ended"].sel(chain=chain)
        for level in one["level"].values:
            own = one.sel(level=level)
            known = own != "missing"
            for run in own["run"].values[known.any().values & ~own.isin(OVER)]:
                name = f"{run}/{chain}/level-{level:02d}" if level else f"{run}/level-00"
                how = str(own.sel(run=run).values)
                if name not in (there := named.setdefault(how, [])):
                    there.append(name)
    return [
        f"{how}: {', '.join(own[:8])}{f' and {len(own) - 8} more' if len(own) > 8 else ''}"
        for how, own in sorted(named.items())
    ]


def _between_layers(result: xr.Dataset) -> str:
    """A row for each layer and the one that it is compared with."""
    names = _similarities(result, ("layer", "other_layer"))
    pairs = _pairs(result, names[0])
    same = all(layer == other for layer, other in pairs)
    beside = [name for name in QUALITY if name in result]
    titles = [title for name in names for title in _titles(result, name)]
    words = [name.replace("num_", "").replace("_", " ") for name in beside]
    rows = [["layer", *["other layer"] * (not same), *titles, *words]]
    for layer, other in pairs:
        one = result.sel(layer=layer, other_layer=other)
        cells = [cell for name in names for cell in _similarity(one, name)]
        quality = [f"{float(one[name].mean()):.4g}" for name in beside]
        rows.append([str(layer), *[str(other)] * (not same), *cells, *quality])
    return table(rows)


def _pairs(result: xr.Dataset, name: str) -> list[tuple[Any, Any]]:
    """Layers of one name; if there are none, each with the most similar one by a measure."""
    layers, others = result["layer"].values.tolist(), result["other_layer"].values.tolist()
    if shared := [layer for layer in layers if layer in others]:
        return [(layer, layer) for layer in shared]
    values = _average(result, name).transpose("layer", "other_layer").fillna(-np.inf)
    return [(layer, others[k]) for layer, k in zip(layers, values.values.argmax(1), strict=True)]


def _convergence(result: xr.Dataset) -> str:
    """A row for each layer: where it starts, and when it stays near its final state."""
    names = _similarities(result, ("layer", "step"))
    result = result.sortby("step")
    first = f"{result['step'].values[0]:g}"
    near = f"stays >= {NEAR:g} from step"
    titles = [text for name in names for text in (f"{name} at step {first}", near)]
    rows = [["layer", *titles]]
    for layer in result["layer"].values:
        cells = [str(layer)]
        for name in names:
            values = _average(result, name).sel(layer=layer)
            cells += [_spread(values.isel(step=0)), _reached(values)]
        rows.append(cells)
    return table(rows)


def _reached(values: xr.DataArray) -> str:
    """The first step from which on a similarity stays near the final state, over all runs."""
    steps = values["step"].values
    runs = values.transpose(..., "step").values.reshape(-1, len(steps))
    kept = np.logical_and.accumulate(runs[:, ::-1] >= NEAR, axis=1)[:, ::-1]
    found = np.sort([steps[row.argmax()] if row.any() else np.inf for row in kept])
    texts = ["never" if np.isinf(one) else f"{one:g}" for one in found]
    middle = texts[(len(texts) - 1) // 2]
    return middle if len(set(texts)) == 1 else f"{middle} [{texts[0]}, {texts[-1]}]"


def _similarities(result: xr.Dataset, dims: Sequence[str]) -> list[str]:
    """The measures of similarity along dimensions, without what stands beside them."""
    names = [
        str(name)
        for name, one in result.data_vars.items()
        if set(dims) <= set(one.dims) and one.dtype.kind == "f" and "direction" not in one.dims
        and not (name in QUALITY or str(name).endswith(BESIDE))
    ]  # fmt: skip
    if not names:
        raise ValueError(f"the result has no similarities over {', '.join(dims)}")
    return names


def _titles(result: xr.Dataset, name: str) -> list[str]:
    return [name, *["chance"] * (f"{name}_chance" in result)]


def _similarity(one: xr.Dataset, name: str) -> list[str]:
    """A value with its standard error, and the chance level if there is one."""
    text = f"{float(_average(one, name)):.4f}"
    if f"{name}_stderr" in one and "frequency" not in one[name].dims:
        text += f" ± {float(one[f'{name}_stderr']):.4f}"
    chance = f"{name}_chance"
    return [text, *[f"{float(_average(one, chance)):.4f}" for _ in range(chance in one)]]


def _average(result: xr.Dataset, name: str) -> xr.DataArray:
    """A measure, averaged over frequency if it varies along it."""
    return result[name].mean([dim for dim in result[name].dims if dim == "frequency"])


def _spread(values: xr.DataArray) -> str:
    """A single value, or the mean, the lowest and the highest of several."""
    if values.size == 1:
        return f"{values.item():.4f}"
    mean, low, high = (float(one) for one in (values.mean(), values.min(), values.max()))
    return f"{mean:.4f} [{low:.4f}, {high:.4f}]"


def _landmarks(one: xr.Dataset, curve: str) -> str:
    """What happens to one learning curve."""
    steps = {name: float(one[f"landmark_{name}"]) for name in LANDMARKS}
    at = {name: "never" if np.isnan(step) else f"step {step:g}" for name, step in steps.items()}
    return (
        f"{curve}: at most {float(one['landmark_threshold']):.4g} from {at['reached']}, fastest "
        f"fall from {at['steepest']}, minimum at {at['minimum']}, plateau from {at['plateau']}"
    )


def _modules(result: xr.Dataset) -> list[list[str]]:
    """Trace, standard error and share of each module, in the order of their first tensors."""
    selections = _selections(result["total"])
    modules = list(dict.fromkeys(map(str, result["module"].values)))
    titles = [_row_name(where, "trace ± standard error") for where in selections]
    rows = [["module", "parameters", *(text for title in titles for text in (title, "share"))]]
    for module in modules:
        one = result.isel(tensor=np.flatnonzero(result["module"].values.astype(str) == module))
        cells = [module or "(none)", str(int(one["num_parameters"].sum()))]
        for where in selections:
            trace, error = (float(one[n].sel(where).sum(skipna=False)) for n in TRACES)
            total = float(result["total"].sel(where))
            cells += [_with_error(trace, error), f"{trace / total:.1%}" if total else ""]
        rows.append(cells)
    whole = ["total", str(int(result["num_parameters"].sum()))]
    for where in selections:
        whole += [_with_error(*(float(result[n].sel(where)) for n in TOTALS)), ""]
    return [*rows, whole]


def _totals(result: xr.Dataset) -> list[list[str]]:
    """The total at each step, and the step of its peak with its interval."""
    selections = _selections(result["total"].isel(step=0, drop=True))
    rows = [["step", *(_row_name(where, "trace ± standard error") for where in selections)]]
    for step in result["step"].values:
        one = result.sel(step=step)
        cells = [_with_error(*(float(one[n].sel(where)) for n in TOTALS)) for where in selections]
        rows.append([f"{step:g}", *cells])
    if "peak_step" in result:
        ends = [[float(result[f"peak_step{end}"].sel(where)) for end in ("", "_low", "_high")]
                for where in selections]  # fmt: skip
        rows.append(["peak at", *(f"{at:g} [{low:g}, {high:g}]" for at, low, high in ends)])
    return rows


def _largest(result: xr.Dataset) -> list[list[str]]:
    """The largest eigenvalue at each step with its residual, and 2 / learning rate."""
    known = result["eigenvalue"].fillna(-np.inf)
    top = result.isel(index=known.argmax("index"))
    selections = _selections(top["eigenvalue"].isel(step=0, drop=True))
    limits = "learning_rate" in result
    titles = [[_row_name(where, "largest ± residual"), *["2 / learning rate"] * limits]
              for where in selections]  # fmt: skip
    rows = [["step", *itertools.chain(*titles)]]
    for step in result["step"].values:
        cells = [f"{step:g}"]
        for where in selections:
            one = top.sel(step=step, **where)
            cells.append(_with_error(float(one["eigenvalue"]), float(one["residual"])))
            if limits:
                rate = float(one["learning_rate"])
                cells.append(f"{2 / rate:.4g}" if rate > 0 else "none")
        rows.append(cells)
    return rows


def _density(result: xr.Dataset) -> list[list[str]]:
    """The ends of a spectrum, its mean and its negative share, over probes."""
    nodes, weights = (result[name].transpose("probe", "node").values for name in QUADRATURE)
    counted = weights > 0
    below = nodes < -1e-6 * abs(nodes[counted]).max()
    rows = [["smallest", f"{nodes[counted].min():.4g}"], ["largest", f"{nodes[counted].max():.4g}"]]
    for name, values in (("mean", nodes), ("share below zero", below)):
        each = (weights * values).sum(1)
        error = each.std(ddof=1) / np.sqrt(len(each)) if len(each) > 1 else np.nan
        rows.append([name, _with_error(float(each.mean()), float(error))])
    return rows


def _with_error(value: float, error: float) -> str:
    return f"{value:.4g}" + ("" if np.isnan(error) else f" ± {error:.2g}")


def _end(point: xr.Dataset, measure: str) -> str:
    return f"{float(point[measure]):.4f} ({float(point[f'own_{measure}']):.4f})"


def _height(barriers: xr.Dataset, measure: str) -> str:
    if f"{measure}_low" in barriers:
        return _with_interval(barriers, measure)
    return f"{float(barriers[measure]):.4f}"


def _with_interval(values: xr.Dataset, name: str) -> str:
    value, low, high = (float(values[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return f"{value:.4f}" + ("" if np.isnan(low) else f" [{low:.4f}, {high:.4f}]")


def _step(value: xr.DataArray) -> str:
    return "none of these" if np.isnan(float(value)) else f"{float(value):g}"


def _selections(values: xr.DataArray) -> list[dict[str, Any]]:
    """The labels of each single value of an array, dimension by dimension."""
    labels = [[(str(dim), label) for label in values[dim].values.tolist()] for dim in values.dims]
    return [dict(one) for one in itertools.product(*labels)]


def _row_name(where: Mapping[str, Any], measure: str) -> str:
    return " ".join([*map(str, where.values()), measure])


def _range(variable: xr.Variable) -> str:
    """The least and the largest finite value, or the first and the last text."""
    values = variable.values.ravel()
    if values.dtype.kind not in "fiu":
        return f"{values[0]} .. {values[-1]}" if values.size else ""
    finite = values[np.isfinite(values)]
    return f"{finite.min():.4g} .. {finite.max():.4g}" if finite.size else "no finite value"
