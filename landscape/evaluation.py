"""What are the loss and the metrics at many points? One pass over the data serves all of a chunk.

`evaluate` takes a `Family` and coordinates, or a sequence of states. The weights of a chunk of
points are mixed from the controls on the device; sums over examples are kept there in float64 and
read back once for each chunk.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from tqdm import tqdm

from landscape.engine import (
    Call,
    caller,
    exact_arithmetic,
    install,
    measured,
    own_names,
    replicate,
    run,
)
from landscape.examples import Examples, arrange, pick_device, read, some, to_device
from landscape.execution import map_tasks
from landscape.families import Family, grid, single_points
from landscape.normalisation import (
    RECALIBRATING,
    batch_norms,
    check_policy,
    recalibrate,
    statistics_names,
)
from landscape.repair import (
    ROUNDING,
    check_between,
    corrected,
    corrected_layers,
    layer_moments,
    layers_to_correct,
)
from landscape.results import STATUS, dataset
from landscape.states import State, Stored, loaded, match
from landscape.strategy import Strategy, choose, moment_batch
from landscape.task import Task, random_state_kept, tasks_of, tensors_in, training_task


@dataclass(frozen=True, eq=False)
class Prepared:
    """Tasks with their data on the device and a chosen strategy; it can stand for the tasks.

    Made by `prepare`, and worth making where `evaluate` or an analysis is called many times.
    """

    tasks: tuple[Task, ...]
    examples: tuple[Examples, ...]
    moments: Examples
    strategy: Strategy
    device: torch.device
    dtype: torch.dtype


Tasks = Task | Sequence[Task] | Prepared
COUNTER = "num_batches_tracked"


def evaluate(
    task: Tasks,
    points_of: Family | Sequence[State],
    points: ArrayLike | Sequence[ArrayLike] | None = None,
    *,
    batch_norm: str | None = None,
    batch_norm_examples: int | None = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float32,
    keep_examples: bool = False,
    scattered: bool = False,
    strategy: Strategy | None = None,
    executor: Executor | None = None,
    progress: bool | None = False,
) -> xr.Dataset:
    """Evaluate one task, or several with one model, at many points.

    Main arguments. `points_of`: a `Family`, with `points` its coordinates: an array for a family
    with one coordinate, else a sequence of axes whose grid is evaluated, or with `scattered` an
    (n, k) array of single points; or a sequence of states, evaluated as they are along the
    dimension `state`. `batch_norm`: what statistics each point has:
    `"recalibrate"` (the default of models with batch norm: recomputed from all data of the task
    named `"train"`, or of the first task), `"interpolate"` (mixed like the weights), `"keep"`
    (those stored in the control state that is nearest in coefficients), or `"repair"`.

    `"repair"` recalibrates and also sets the mean and standard deviation of each unit of each
    linear or convolutional layer to the interpolated ones of the controls (Jordan et al. 2022,
    section 4), for all models: it needs no batch norm, and where a batch norm follows every hidden
    layer it is recalibration. The attribute `repaired_layers` names the layers it changed. The
    control states keep their values; states that stand alone are such ends.

    Other arguments. `batch_norm_examples`: recalibrate on so many examples, evenly spread over the
    data. `device`: `"auto"` or a torch device. `dtype`: of the arithmetic. `keep_examples`: also
    return the value of each example. `strategy`: how to go over the data, as recorded in an earlier
    result, instead of a short timed trial. `executor`: where chunks of points are evaluated.
    `progress`: True, False, or None for a bar if standard error is a terminal.

    Returns a dataset with, for the loss and each metric, the mean over examples, `*_stderr` (its
    standard error over examples) and, if kept, `*_examples`; and `status` for each point. The
    dimensions are the coordinates of the family (`point` for scattered ones), after `split` if
    several tasks are given.

    Raises `ValueError` if states and model do not fit, the loss is not per example, a label is out
    of range, or there is no data; for `"interpolate"` and `"repair"` at points outside of the
    controls, and for `"repair"` of a layer that is used twice.
    """
    ready = prepare(
        task, points_of, device=device, dtype=dtype, strategy=strategy,
        batch_norm=batch_norm, batch_norm_examples=batch_norm_examples,
    )  # fmt: skip
    policy = check_policy(ready.tasks[0].model, batch_norm)
    if isinstance(points_of, Family):
        if scattered:
            flat = single_points(points_of, _required(points))
            coords: dict[str, Any] = {"point": np.arange(len(flat))}
        else:
            axes = grid(points_of, _required(points))
            flat = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
            coords = dict(zip(points_of.coordinates, axes, strict=True))
        coefficients = points_of.coefficients(flat)
        outside = (coefficients < -ROUNDING).any()
        if policy == "interpolate" and outside and _differ(ready, points_of):
            raise ValueError(
                "batch_norm='interpolate' would extrapolate running variances, which can become "
                "negative: stay between the control states, or use 'recalibrate'"
            )
        if policy == "repair":
            check_between(coefficients)
        num = len(flat)
    else:
        if points is not None:
            raise ValueError(
                "points are coordinates of a family, and states are evaluated as they are: give "
                "line(a, b) or another family, or leave points out"
            )
        coefficients, num = None, len(points_of)
        coords = {"state": np.arange(num)}
    job = _repaired(_Job(ready, points_of, coefficients, policy, keep_examples))
    values = _collect(job, num, executor, progress)
    shape = tuple(len(axis) for axis in coords.values())
    result = _labelled(job, values, coords, shape)
    if isinstance(points_of, Family) and scattered:
        named = zip(points_of.coordinates, flat.T, strict=True)
        result = result.assign_coords({name: ("point", column) for name, column in named})
    return result


def prepare(
    task: Tasks,
    points_of: Family | Sequence[State],
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float32,
    strategy: Strategy | None = None,
    batch_norm: str | None = None,
    batch_norm_examples: int | None = None,
) -> Prepared:
    """Bring the data of tasks to the device, check them against a state, and choose a strategy.

    Arguments and errors are those of `evaluate`. A `Prepared` is given back as it is.
    """
    if isinstance(task, Prepared):
        return task
    tasks = tasks_of(task)
    where = pick_device(device)
    first = points_of.controls[0] if isinstance(points_of, Family) else _first(points_of)
    model = tasks[0].model
    state = match(first, model)
    with exact_arithmetic(), random_state_kept():
        raw = [read(one.data, where) for one in tasks]
        for one, examples in zip(tasks, raw, strict=True):
            _check(one, match(state, one.model), examples, where, dtype)
        main = tasks.index(training_task(tasks))
        training = raw[main]
        for_moments = _spread(training, batch_norm_examples)
        if strategy is None:
            largest = max(range(len(tasks)), key=lambda number: raw[number].num)
            examples, measures = raw[largest], tasks[largest].measures()
            strategy = choose(model, state, examples, measures, device=where, dtype=dtype)
            if check_policy(model, batch_norm) in RECALIBRATING:
                batch = moment_batch(model, state, for_moments, strategy)
                strategy = replace(strategy, moment_batch=batch)
        arranged = [arrange(examples, strategy.layout, dtype) for examples in raw]
        moments = arranged[main]
        if for_moments is not training:
            moments = arrange(for_moments, strategy.layout, dtype)
    return Prepared(tasks, tuple(arranged), moments, strategy, where, dtype)


def placing(options: dict[str, Any]) -> dict[str, Any]:
    """The options that `prepare` takes, those that are its alone removed."""
    alone = {k: options.pop(k) for k in ("device", "dtype", "strategy") if k in options}
    return alone | {k: options[k] for k in ("batch_norm", "batch_norm_examples") if k in options}


def outputs_at(
    ready: Prepared,
    points_of: Family | Sequence[State],
    coefficients: NDArray[np.float64] | None = None,
    *,
    batch_norm: str | None = None,
) -> list[NDArray[np.float64]]:
    """The model's outputs for all examples, as `evaluate` has them: for each task (points, n, ...).

    The points are states, or have `coefficients` (points, m) in the m controls of a family.

    Raises `ValueError` if an output is no tensor.
    """
    policy = check_policy(ready.tasks[0].model, batch_norm)
    job = _repaired(_Job(ready, points_of, coefficients, policy, keep_examples=False))
    num = len(coefficients if coefficients is not None else points_of)  # type: ignore[arg-type]
    found = _within_memory(_outputs, job, np.arange(num))
    return [found[task.name][0] for task in ready.tasks]


def placed_state(ready: Prepared, state: State | Stored, *, batch_norm: str | None = None) -> State:
    """A state with the batch-norm statistics that `evaluate` gives it: recomputed, or its own.

    The entries are in the order of the model's; statistics that are recomputed are in the dtype of
    the arithmetic, all others are those of the state. Raises `ValueError` as `evaluate`, and for a
    policy that is for points between states: `batch_norm` is `"recalibrate"` or `"keep"`.
    """
    if batch_norm not in (None, "recalibrate", "keep"):
        raise ValueError(
            f"batch_norm must be 'recalibrate' or 'keep' at a single state, got {batch_norm!r}"
        )
    model = ready.tasks[0].model
    state = match(loaded(state), model)
    policy = check_policy(model, batch_norm)
    if policy not in RECALIBRATING or not batch_norms(model):
        return state
    job = _Job(ready, [state], None, policy, keep_examples=False)
    found = _within_memory(_statistics, job, np.arange(1))
    new = {
        name: torch.from_numpy(value[0, 0]).to(state[name].device) for name, value in found.items()
    }
    return {**state, **new}


def described(ready: Prepared, batch_norm: str | None = None) -> dict[str, Any]:
    """The attributes in which a result says how it was made: model, batch norm, arithmetic."""
    policy = check_policy(ready.tasks[0].model, batch_norm)
    recalibrated = policy in RECALIBRATING
    return {
        "model": type(ready.tasks[0].model).__name__,
        "batch_norm": policy,
        "batch_norm_examples": ready.moments.num if recalibrated else 0,
        "batch_norm_data": training_task(ready.tasks).name if recalibrated else "",
        "device": str(ready.device),
        "dtype": str(ready.dtype).removeprefix("torch."),
    }


@dataclass(frozen=True, eq=False)
class _Job:
    """All that a chunk of points is evaluated from."""

    ready: Prepared
    points_of: Family | Sequence[State]
    coefficients: NDArray[np.float64] | None
    policy: str
    keep_examples: bool


Values = dict[str, NDArray[np.float64]]  # each (splits, points, ...)


def _collect(job: _Job, num: int, executor: Executor | None, progress: bool | None) -> Values:
    """Values at all points, chunk after chunk or on the workers of an executor."""
    size = _chunk_size(job.ready)
    chunks = [np.arange(start, min(start + size, num)) for start in range(0, num, size)]
    found: dict[int, Values] = {}
    with (
        exact_arithmetic(),
        random_state_kept(),
        tqdm(total=num, unit="point", disable=None if progress is None else not progress) as bar,
    ):
        for outcome in map_tasks(partial(_chunk, job), chunks, executor=executor):
            if outcome.error is not None or outcome.value is None:
                raise outcome.error or RuntimeError("a worker gave nothing")
            found[outcome.index] = outcome.value
            bar.update(len(chunks[outcome.index]))
    parts = [found[index] for index in range(len(chunks))]
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def _chunk_size(ready: Prepared) -> int:
    """Points per chunk: all that share a pass, or in a loop those that take about a second."""
    strategy = ready.strategy
    if strategy.vectorised or not strategy.seconds:
        return strategy.points
    seconds = strategy.seconds * sum(examples.num for examples in ready.examples)
    return max(1, min(strategy.points, round(1 / seconds)))


def _chunk(job: _Job, indices: NDArray[np.int64]) -> Values:
    """Values at some points."""
    return _within_memory(_values, job, indices)


def _within_memory(
    work: Callable[[_Job, NDArray[np.int64], Strategy], Values],
    job: _Job,
    indices: NDArray[np.int64],
) -> Values:
    """What `work` gives at points; where memory runs out, with half of the points and batches."""
    strategy = job.ready.strategy
    with exact_arithmetic(), random_state_kept():
        while True:
            try:
                size = strategy.points
                parts = [indices[i : i + size] for i in range(0, len(indices), size)]
                values = [work(job, part, strategy) for part in parts]
                return {n: np.concatenate([v[n] for v in values], axis=1) for n in values[0]}
            except torch.OutOfMemoryError:
                strategy = _halved(strategy)
                if job.ready.device.type == "cuda":
                    torch.cuda.empty_cache()


def _halved(strategy: Strategy) -> Strategy:
    """Half of all that takes memory; raises the error in flight if nothing is left to halve."""
    sizes = {name: getattr(strategy, name) for name in ("points", "batch_size", "moment_batch")}
    if max(sizes.values()) == 1:
        raise
    return replace(strategy, **{name: max(1, size // 2) for name, size in sizes.items()})


def _values(job: _Job, indices: NDArray[np.int64], strategy: Strategy) -> Values:
    """Sums over the data at the points of one pass."""
    ready = job.ready
    models, tensors = _at_points(job, indices, strategy)
    splits = [
        _sums(task, examples, models, tensors, strategy, job.keep_examples)
        for task, examples in zip(ready.tasks, ready.examples, strict=True)
    ]
    longest = max(examples.num for examples in ready.examples)
    return {name: np.stack([_padded(s[name], longest) for s in splits]) for name in splits[0]}


def _at_points(
    job: _Job, indices: NDArray[np.int64], strategy: Strategy, *, biased: bool = False
) -> tuple[list[nn.Module], dict[str, Tensor]]:
    """Private models, and the stacked tensors of the points with the statistics of the policy."""
    ready = job.ready
    tensors, constants = _tensors(job, indices)
    streamed = any(examples.source is not None for examples in ready.examples)
    models = replicate(
        ready.tasks[0].model,
        len(indices) if streamed and not strategy.vectorised else 1,
        device=ready.device,
        dtype=ready.dtype,
        layout=strategy.layout,
    )
    for model in models:
        install(model, constants)
    if job.policy in RECALIBRATING and batch_norms(models[0]):
        tensors = recalibrate(
            models,
            tensors,
            partial(ready.moments.batches, strategy.moment_batch),
            vectorised=strategy.vectorised,
            one_batch=ready.moments.source is None and strategy.moment_batch >= ready.moments.num,
            biased=biased,
        )
    return models, tensors


def _sums(
    task: Task,
    examples: Examples,
    models: Sequence[nn.Module],
    tensors: Mapping[str, Tensor],
    strategy: Strategy,
    keep_examples: bool,
) -> Values:
    """Means and standard errors of one task at K points, and the values of the examples."""
    num = len(next(iter(tensors.values())))
    measures = task.measures()
    device = next(iter(tensors.values())).device
    sums = {name: torch.zeros(2, num, dtype=torch.float64, device=device) for name in measures}
    kept: dict[str, list[list[Tensor]]] = {name: [[] for _ in range(num)] for name in measures}
    measure = partial(measured, measures)
    batches = partial(examples.batches, strategy.batch_size)
    for rows, values in run(models, tensors, batches, measure, vectorised=strategy.vectorised):
        for name, value in values.items():
            value = value.double()
            sums[name][:, rows] += torch.stack([value.sum(1), value.square().sum(1)])
            if keep_examples:
                for row, one in zip(range(num)[rows], value, strict=True):
                    kept[name][row].append(one)
    result = {}
    n = examples.num
    for name, (total, squares) in sums.items():
        mean = total / n
        variance = (squares / n - mean.square()).clamp(min=0) * (n / max(n - 1, 1))
        result[name] = mean.cpu().numpy()
        result[f"{name}_stderr"] = (variance / n).sqrt().cpu().numpy()
        if keep_examples:
            rows_of = torch.stack([torch.cat(row) for row in kept[name]])
            result[f"{name}_examples"] = rows_of.cpu().numpy()
    return result


def _outputs(job: _Job, indices: NDArray[np.int64], strategy: Strategy) -> Values:
    """The model's outputs (1, points, n, ...) for each task, under its name."""
    models, tensors = _at_points(job, indices, strategy)
    result = {}
    for task, examples in zip(job.ready.tasks, job.ready.examples, strict=True):
        kept: list[list[Tensor]] = [[] for _ in indices]
        batches = partial(examples.batches, strategy.batch_size)
        for rows, values in run(models, tensors, batches, _output, vectorised=strategy.vectorised):
            for row, one in zip(range(len(indices))[rows], values["outputs"], strict=True):
                kept[row].append(one.double())
        result[task.name] = torch.stack([torch.cat(row) for row in kept])[None].cpu().numpy()
    return result


def _statistics(job: _Job, indices: NDArray[np.int64], strategy: Strategy) -> Values:
    """Batch-norm statistics (1, points, channels) of the policy."""
    models, tensors = _at_points(job, indices, strategy)
    return {name: tensors[name][None].cpu().numpy() for name in statistics_names(models[0])}


def _output(call: Call, inputs: Any, targets: Any) -> dict[str, Tensor]:
    outputs = call(inputs)
    if not isinstance(outputs, Tensor):
        raise ValueError(f"the model's outputs must be one tensor, got {type(outputs).__name__}")
    return {"outputs": outputs}


def _tensors(job: _Job, indices: NDArray[np.int64]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Stacked tensors (K, *shape) of the points, and what all of them share."""
    model = job.ready.tasks[0].model
    if isinstance(job.points_of, Family):
        controls: Sequence[State] = [match(state, model) for state in job.points_of.controls]
        assert job.coefficients is not None
        coefficients: NDArray[np.float64] | None = job.coefficients[indices]
    else:
        controls = [match(job.points_of[int(index)], model) for index in indices]
        coefficients = None
    statistics = statistics_names(model)
    weights = [name for name, _ in model.named_parameters()]
    constants, differing = _constants(controls, {*weights, *statistics}, model)
    if differing and coefficients is not None:
        raise ValueError(
            f"the buffers {', '.join(differing[:5])} differ between the states, and there is no "
            "right way to mix constant tables: make them equal, or fold them into the weights"
        )
    dtype, device = job.ready.dtype, job.ready.device

    def at_points(
        names: Sequence[str], coefficients: NDArray[np.float64] | None
    ) -> dict[str, Tensor]:
        found = {}
        for name in names:
            tensors = [control[name].detach().to(device, dtype) for control in controls]
            found[name] = (
                torch.stack(tensors) if coefficients is None else _mix(tensors, coefficients)
            )
        return found

    stacked = at_points(weights, coefficients)
    if statistics and job.policy == "keep" and coefficients is not None:
        coefficients = np.eye(len(controls))[coefficients.argmax(1)]
    stacked |= at_points(statistics, coefficients)
    stacked |= {name: torch.stack([c[name] for c in controls]).to(device) for name in differing}
    return stacked, constants


def _mix(tensors: Sequence[Tensor], coefficients: NDArray[np.float64]) -> Tensor:
    """The product (n, m) @ (m, *shape) of coefficients and controls, one control after the other.

    A matrix routine fuses or splits its sums by the shapes it gets; then a point would differ in
    the last bit with the chunk that it is in, and a resumed run from an uninterrupted one.
    """
    first = tensors[0]
    columns = torch.as_tensor(coefficients.T, dtype=first.dtype, device=first.device)
    shape = (-1, *[1] * first.ndim)
    total = columns[0].view(shape) * first
    for column, tensor in zip(columns[1:], tensors[1:], strict=True):
        total += column.view(shape) * tensor
    return total


def _constants(
    controls: Sequence[State], moving: set[str], model: nn.Module
) -> tuple[dict[str, Tensor], list[str]]:
    """Buffers that are not mixed: those that agree, and the names of those that differ.

    Counters (`num_batches_tracked`) have no influence in evaluation and are left alone.
    """
    aliases = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    fixed = [n for n in controls[0] if n not in moving | aliases and not n.endswith(COUNTER)]
    first, *others = controls
    differing = [n for n in fixed if any(not torch.equal(first[n], c[n]) for c in others)]
    return {name: first[name] for name in fixed if name not in differing}, differing


# --- repair --------------------------------------------------------------------------------------


def _repaired(job: _Job) -> _Job:
    """For REPAIR along a family, the job with corrections in the model and in the controls."""
    if job.policy != "repair" or not isinstance(job.points_of, Family):
        return job
    (first, *others), controls = job.ready.tasks, job.points_of.controls
    alone = replace(job, points_of=controls, coefficients=None)
    with exact_arithmetic(), random_state_kept():
        layers = _to_correct(job.ready, controls[0])
    work = partial(_layer_moments, layers)
    moments = _within_memory(work, alone, np.arange(len(controls))) if layers else {}
    at_controls = {name: np.moveaxis(value[0], 1, 0) for name, value in moments.items()}
    model, states = corrected(first.model, controls, at_controls, job.ready.dtype)
    ready = replace(job.ready, tasks=(replace(first, model=model), *others))
    return replace(job, ready=ready, points_of=replace(job.points_of, controls=states))


def _to_correct(ready: Prepared, state: State) -> list[str]:
    """Names of the layers to correct, seen at one of the controls."""
    layout = ready.strategy.layout
    (model,) = replicate(
        ready.tasks[0].model, 1, device=ready.device, dtype=ready.dtype, layout=layout
    )
    state = match(state, model)
    install(model, {name: state[name] for name in own_names(model) if name in state})
    inputs, _ = next(ready.moments.batches(2))
    return layers_to_correct(model, inputs)


def _layer_moments(
    layers: Sequence[str], job: _Job, indices: NDArray[np.int64], strategy: Strategy
) -> Values:
    """Means and biased variances (1, points, 2, units) of the outputs of layers."""
    models, tensors = _at_points(job, indices, strategy, biased=True)
    batches = partial(job.ready.moments.batches, strategy.moment_batch)
    merged = layer_moments(models, tensors, layers, batches, vectorised=strategy.vectorised)
    return {
        name: torch.stack([m.mean, m.square / m.count], 1)[None].cpu().numpy()
        for name, m in merged.items()
    }


# --- results --------------------------------------------------------------------------------------


def _labelled(
    job: _Job, values: Values, coords: Mapping[str, NDArray[Any]], shape: tuple[int, ...]
) -> xr.Dataset:
    """Values (splits, points, ...) as a dataset over the coordinates."""
    ready = job.ready
    several = len(ready.tasks) > 1
    repaired = {"repaired_layers": corrected_layers(ready.tasks[0].model)}
    finite = np.all(
        [np.isfinite(values[name]).all(0) for name in ready.tasks[0].measures()], axis=0
    )
    status = np.where(finite, STATUS.index("ok"), STATUS.index("nonfinite")).astype(np.uint8)
    variables: dict[str, Any] = {"status": (tuple(coords), status.reshape(shape))}
    for name, value in values.items():
        value = value.reshape(value.shape[0], *shape, *value.shape[2:])
        dims = ("split", *coords, *(("example",) if name.endswith("_examples") else ()))
        variables[name] = (dims, value) if several else (dims[1:], value[0])
        if name.endswith("_stderr"):
            words = f"standard error of the {name.removesuffix('_stderr')} over examples"
            variables[name] += ({"long_name": words},)
    counts = [examples.num for examples in ready.examples]
    counted = {"long_name": "number of examples"}
    variables["num_examples"] = ("split", counts, counted) if several else ((), counts[0], counted)
    names = {"split": [task.name for task in ready.tasks]} if several else {}
    return dataset(
        variables,
        {**names, **coords},
        analysis="evaluation",
        title=f"Evaluation at {int(np.prod(shape))} points",
        task=", ".join(task.name for task in ready.tasks),
        **described(ready, job.policy),
        strategy=dataclasses.asdict(ready.strategy),
        **(repaired if job.policy == "repair" else {}),
    )


def _padded(value: NDArray[np.float64], longest: int) -> NDArray[np.float64]:
    """Values per example (K, n) with NaN up to the longest split; others as they are."""
    if value.ndim == 1:
        return value
    return np.pad(value, ((0, 0), (0, longest - value.shape[1])), constant_values=np.nan)


# --- checks ---------------------------------------------------------------------------------------


def _check(
    task: Task, state: State, examples: Examples, device: torch.device, dtype: torch.dtype
) -> None:
    """Try the model, the loss and the metrics on two examples."""
    (model,) = replicate(task.model, 1, device=device, dtype=dtype, layout="contiguous")
    install(model, {name: state[name] for name in own_names(model) if name in state})
    call = caller(model)
    part = some(examples, slice(0, 2), "contiguous", dtype)
    inputs, targets = next(iter(part.batches(2)))
    outputs, num = call(inputs), len(tensors_in(targets)[0])
    if isinstance(outputs, Tensor) and outputs.ndim > 1:
        last = isinstance(targets, Tensor) and targets.shape == outputs.shape[:-1]
        _check_labels(task, call, outputs.shape[-1 if last else 1], examples, dtype)
    for name, measure in task.measures().items():
        try:
            value = measure(outputs, targets)
        except torch.OutOfMemoryError:
            raise
        except (IndexError, RuntimeError) as error:
            raise ValueError(
                f"{name} of task {task.name!r} does not take what the model and the data give, "
                f"{_kinds(outputs)} and {_kinds(targets)}: {error}"
            ) from error
        if not isinstance(value, Tensor) or value.shape != (num,):
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"{name} of task {task.name!r} must give one value per example, shape "
                f"({num},) for {num} examples, got {shape}; use reduction='none'"
            )


def _kinds(tree: Any) -> str:
    """Shapes and types of tensors, in words."""
    return ", ".join(f"{tuple(x.shape)} of {x.dtype}" for x in tensors_in(tree)) or "no tensor"


def _check_labels(
    task: Task, call: Call, classes: int, examples: Examples, dtype: torch.dtype
) -> None:
    """Try an example of each label that is no number of an output, if there are any.

    On the CPU, since an index out of range on a GPU ends the process; and only the loss can say
    whether such a label is wrong (it may be one to ignore, or no class at all).
    """
    labels = examples.targets
    if not isinstance(labels, Tensor) or labels.is_floating_point() or not labels.numel():
        return
    for label in labels[(labels < 0) | (labels >= classes)].unique().tolist():
        worst = int((labels == label).reshape(len(labels), -1).any(1).to(torch.uint8).argmax())
        part = some(examples, slice(worst, worst + 1), "contiguous", dtype)
        inputs, targets = next(iter(part.batches(1)))
        outputs, targets = to_device((call(inputs), targets), torch.device("cpu"))
        try:
            for measure in task.measures().values():
                measure(outputs, targets)
        except (IndexError, RuntimeError) as error:
            raise ValueError(
                f"task {task.name!r} has labels out of range: the model gives {classes} outputs "
                f"(labels 0 to {classes - 1}), example {worst} of the data has the label {label}"
            ) from error


def _differ(ready: Prepared, family: Family) -> bool:
    """Whether the controls of a family have unlike batch-norm statistics."""
    model = ready.tasks[0].model
    first, *others = (match(control, model) for control in family.controls)
    names = statistics_names(model)
    return any(not torch.equal(first[name], other[name]) for other in others for name in names)


def _spread(examples: Examples, num: int | None) -> Examples:
    """Some examples, evenly spread over the data; all if `num` is None."""
    if num is None or num >= examples.num:
        return examples
    if num < 2:
        raise ValueError(f"batch_norm_examples must be at least 2, got {num}")
    if examples.source is not None:
        raise ValueError("batch_norm_examples needs data that fits into memory; give a task "
                         "named 'train' with fewer examples instead")  # fmt: skip
    index = torch.linspace(0, examples.num - 1, num, dtype=torch.float64).round().long()
    inputs, targets = examples.part(index.to(tensors_in(examples.inputs)[0].device))
    return replace(examples, num=num, inputs=inputs, targets=targets)


def _first(states: Sequence[State]) -> State:
    if not len(states):
        raise ValueError("there are no states to evaluate: the sequence is empty")
    return states[0]


def _required(points: Any) -> Any:
    if points is None:
        raise ValueError("a family needs points: its coordinates, such as np.linspace(0, 1, 25)")
    return points
