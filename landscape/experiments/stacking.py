"""How do many runs train as one tensor program? Their weights are the rows of one matrix.

A `Stack` holds n runs of one architecture: weights, moments and gradients as matrices (n, P),
buffers with a run dimension. The forward pass is vectorised over the rows and differentiated once.
One run alone calls its model without `vmap`, so any model can be trained.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from landscape.checkpoints import Checkpoint
from landscape.experiments.optimisers import moments, update
from landscape.experiments.records import load_kept
from landscape.experiments.runs import Clock, Objective, Run, Scalar, cross_entropy
from landscape.states import STATISTICS, State, flatten, loaded, match, tied_names, unflatten
from landscape.task import map_tensors

RATES = ("lr", "momentum", "weight_decay")
CLEARLY = 0.9  # the share of the time of single runs below which stacks are faster beyond doubt


@dataclass(eq=False)
class Stack:
    """The tensors of n runs; everything here changes in place as they train."""

    model: nn.Module  # the skeleton, whose own tensors are not used
    names: list[str]  # of the parameters, tied ones once
    like: Mapping[str, Tensor]
    weights: Tensor  # (n, P)
    buffers: dict[str, Tensor]  # (n, *shape)
    moments: dict[str, Tensor]  # (n, P), and Adam's count (n, 1)
    decayed: Tensor | None  # (n, P): 1 where weights decay
    fixed: Tensor | None  # (n, P): 1 where weights ever move
    mask: Tensor | None = None  # (n, P): 1 where weights move now
    channels_last: bool = False  # of the images that a lone run's model is given
    compiled: bool = False  # a lone run's model, by torch.compile

    def __post_init__(self) -> None:
        views = unflatten(self.weights, self.like, self.names)
        self.leaves = {name: view.detach().requires_grad_() for name, view in views.items()}
        if len(self.weights) == 1:  # the model itself is called, with these as its parameters
            self.leaves = {n: nn.Parameter(t.detach()[0]) for n, t in views.items()}
            _install(self.model, self.leaves, {n: t[0] for n, t in self.buffers.items()})
        self.lone: Any = torch.compile(self.model) if self.compiled else self.model
        self.gradient = torch.zeros_like(self.weights)
        self.parts = list(unflatten(self.gradient, self.like, self.names).values())

    def __len__(self) -> int:
        return len(self.weights)


def stacked(runs: Sequence[Run], device: torch.device) -> Stack:
    """The stack of runs of one architecture at their first steps."""
    models = [run.build() for run in runs]
    model = copy.deepcopy(models[0]).train()  # `make_model` may keep the one that it gave
    like = dict(model.named_parameters())
    kinds = {parameter.dtype for parameter in like.values()}
    if len(kinds) != 1 or not next(iter(kinds)).is_floating_point:
        raise ValueError(
            f"run {runs[0].name!r}: all parameters must be of one floating-point dtype to train, "
            f"got {', '.join(sorted(map(str, kinds))) or 'no parameters'}"
        )
    names, dtype = list(like), kinds.pop()
    pairs = zip(runs, models, strict=True)
    starts = [_start(run, own) for run, own in pairs]
    weights = flatten(starts, names, dtype=dtype).to(device)
    buffers = {
        name: torch.stack([start[name] for start in starts]).to(device)
        for name, _ in model.named_buffers()
    }
    fixed = _rows(runs, names, like, dtype, _moving)
    kept = moments(runs[0].optimiser, weights)
    for row, run in enumerate(runs):
        for name, tensor in _carried(run, names, set(kept)).items():
            kept[name][row] = tensor
    stack = Stack(
        model=model.to(device),
        names=names,
        like={name: parameter.detach() for name, parameter in like.items()},
        weights=weights,
        buffers=buffers,
        moments=kept,
        decayed=_to(_rows(runs, names, like, dtype, _decayed), device),
        fixed=_to(fixed, device),
        channels_last=runs[0].channels_last,
        compiled=runs[0].compiled,
    )
    if stack.fixed is not None and any(run.masks for run in runs):
        pruned = flatten([_pruning(run, like) for run in runs], names, dtype=dtype)
        for tensor in (stack.weights, *stack.moments.values()):
            if tensor.shape == stack.weights.shape:
                tensor.mul_(pruned.to(device))
    return stack


def selected(stack: Stack, rows: Sequence[int]) -> Stack:
    """The stack of some of the runs, with tensors of its own."""
    index = torch.tensor(rows, device=stack.weights.device)

    def some(tensor: Tensor | None) -> Any:
        return None if tensor is None else tensor[index]

    return Stack(
        model=stack.model,
        names=stack.names,
        like=stack.like,
        weights=some(stack.weights),
        buffers={name: some(tensor) for name, tensor in stack.buffers.items()},
        moments={name: some(tensor) for name, tensor in stack.moments.items()},
        decayed=some(stack.decayed),
        fixed=some(stack.fixed),
        mask=some(stack.mask),
        channels_last=stack.channels_last,
        compiled=stack.compiled,
    )


def state_of(stack: Stack, row: int) -> State:
    """The state of one run under the names of its model's `state_dict`, as views."""
    own = unflatten(stack.weights[row], stack.like, stack.names)
    own |= {name: tensor[row] for name, tensor in stack.buffers.items()}
    for names in tied_names(stack.model):
        first = next(name for name in names if name in own)
        own |= dict.fromkeys(names, own[first])
    return {name: own[name] for name in stack.model.state_dict() if name in own}


def gradients(
    stack: Stack,
    objective: Objective,
    inputs: Tensor,
    targets: Any,
    knobs: Mapping[str, Tensor],
    *,
    precision: str = "float32",
) -> tuple[Tensor, Any]:
    """Losses (n,) and outputs (n, batch, ...) of a batch; its gradient goes to `stack.gradient`."""
    lower = precision == "bfloat16"
    mixed: Any = partial(torch.autocast, dtype=torch.bfloat16) if lower else nullcontext
    if not stack.model.training:
        stack.model.train()

    def single(weights: Any, buffers: Any, inputs: Any, targets: Any, knobs: Any) -> Any:
        seen: list[Any] = []

        def call(given: Mapping[str, Tensor], inputs: Any) -> Any:
            with mixed(inputs.device.type):
                if given is stack.leaves:
                    if stack.channels_last and inputs.ndim == 4:
                        inputs = inputs.contiguous(memory_format=torch.channels_last)
                    outputs = stack.lone(inputs)
                else:
                    outputs = functional_call(stack.model, {**given, **buffers}, (inputs,))
            seen.append(outputs.to(stack.weights.dtype) if lower else outputs)
            return seen[-1]

        loss = objective(call, weights, inputs, targets, knobs)
        return loss, seen[0].detach()

    if len(stack) == 1:
        own = [
            map_tensors(lambda tensor: tensor[0], one)
            for one in (stack.buffers, inputs, targets, knobs)
        ]
        loss, output = single(stack.leaves, *own)
        losses, outputs = loss[None], output[None]
    else:
        losses, outputs = vmap(single)(stack.leaves, stack.buffers, inputs, targets, dict(knobs))
    found = torch.autograd.grad(losses.sum(), list(stack.leaves.values()), allow_unused=True)
    for part, gradient in zip(stack.parts, found, strict=True):
        part.zero_() if gradient is None else part.copy_(gradient)
    return losses.detach(), outputs


def measures(
    stack: Stack, objective: Objective, inputs: Tensor, targets: Tensor, knobs: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Losses (n,) and outputs (n, batch, ...) in evaluation mode, without gradients.

    The loss is the cross-entropy where targets are classes, else the objective.
    """
    stack.model.eval()

    def single(weights: Any, buffers: Any, inputs: Any, targets: Any, knobs: Any) -> Any:
        seen: list[Any] = []

        def call(weights: Mapping[str, Tensor], inputs: Any) -> Any:
            seen.append(functional_call(stack.model, {**weights, **buffers}, (inputs,)))
            return seen[-1]

        measure = objective if targets.is_floating_point() else cross_entropy
        return measure(call, weights, inputs, targets, knobs), seen[0]

    with torch.no_grad():
        weights = unflatten(stack.weights, stack.like, stack.names)
        given = (weights, stack.buffers, inputs, targets, dict(knobs))
        if len(stack) > 1:
            losses, outputs = vmap(single)(*given)
            return losses, outputs
        loss, output = single(*(map_tensors(lambda tensor: tensor[0], one) for one in given))
        return loss[None], output[None]


def take_step(optimiser: str, stack: Stack, rates: Mapping[str, Tensor]) -> None:
    """Move the weights by the gradient that `gradients` left, with rates (n, 1)."""
    update(
        optimiser,
        stack.weights,
        stack.gradient,
        stack.moments,
        lr=rates["lr"],
        momentum=rates["momentum"],
        weight_decay=rates["weight_decay"],
        decayed=stack.decayed,
        mask=stack.mask,
    )


def scalars(runs: Sequence[Run], steps: Sequence[int], like: Tensor) -> list[dict[str, Tensor]]:
    """Rates and knobs of n runs at each step: `lr`, `momentum`, `weight_decay` (n, 1), knobs (n,).

    Raises `ValueError` for a value that is not finite.
    """
    table: list[dict[str, Tensor]] = [{} for _ in steps]
    for name in (*RATES, *runs[0].knobs):
        own = [getattr(run, name) if name in RATES else run.knobs[name] for run in runs]
        clocks = [run.lr_clock if name == "lr" else run.clock for run in runs]
        ever = steps if any(callable(scalar) for scalar in own) else steps[:1]
        pairs = list(zip(own, clocks, strict=True))
        values = torch.tensor(
            [[_value(scalar, clock, step) for scalar, clock in pairs] for step in ever],
            dtype=torch.float64,
        )
        if not values.isfinite().all():
            raise ValueError(f"{name} is not finite somewhere in steps {steps[0]} to {steps[-1]}")
        values = values.to(like).expand(len(steps), -1)
        for row, value in zip(table, values[..., None] if name in RATES else values, strict=True):
            row[name] = value
    return table


def set_mask(stack: Stack, runs: Sequence[Run], step: int) -> None:
    """Let only those weights move that are not frozen at this step."""
    if not any(run.frozen for run in runs):
        stack.mask = stack.fixed
        return

    def free(run: Run, name: str, shape: Tensor) -> Tensor:
        clock = run.clock(step)
        held = any(fnmatchcase(name, t.what) and clock in t.window for t in run.frozen)
        return torch.zeros_like(shape) if held else torch.ones_like(shape)

    like, names = stack.like, stack.names
    rows = [{name: free(run, name, like[name]) for name in names} for run in runs]
    mask = flatten(rows, names, dtype=stack.weights.dtype, device=stack.weights.device)
    stack.mask = mask if stack.fixed is None else mask * stack.fixed


def fastest(sizes: Sequence[int], seconds: Callable[[int], float]) -> int:
    """The number of runs to train at once: the one with the least time for each run.

    `seconds(n)` trains n runs for a few steps. Stacks must gain more than such a trial may err.
    What fails when stacked, such as a model that draws random numbers, trains alone.
    """
    best, least = 1, CLEARLY * seconds(1)
    for size in sizes:
        try:
            taken = seconds(size) / size if size > 1 else math.inf
        except (RuntimeError, ValueError, NotImplementedError):
            continue
        if taken < least:
            best, least = size, taken
    return best


def timed(function: Callable[[], Any], *, repeats: int = 3) -> float:
    """Seconds of the fastest of several calls, after one to warm up."""
    function()
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def _install(
    model: nn.Module, parameters: Mapping[str, Any], buffers: Mapping[str, Tensor]
) -> None:
    """Make these tensors those of a private model, under all names of each."""
    groups = {name: names for names in tied_names(model) for name in names}
    for own in parameters:
        for name in groups.get(own, [own]):
            place, _, leaf = name.rpartition(".")
            model.get_submodule(place)._parameters[leaf] = parameters[own]
    for name, tensor in buffers.items():
        place, _, leaf = name.rpartition(".")
        model.get_submodule(place)._buffers[leaf] = tensor


def _start(run: Run, model: nn.Module) -> State:
    """Where a run starts: the initial weights, or the state that it branches from."""
    own: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if run.start is None:
        return own
    given = match(loaded(run.start.state), model)
    reset = run.start.batch_norm == "reset"
    kept = {n: t for n, t in given.items() if not (reset and n.rpartition(".")[2] in STATISTICS)}
    return own | {name: tensor for name, tensor in kept.items() if name in own}


def _carried(run: Run, names: list[str], expected: set[str]) -> Mapping[str, Tensor]:
    """The optimiser's moments (P,) that a run takes over from the one that it branches from."""
    if run.start is None or run.start.optimiser == "reset":
        return {}
    place = run.start.state
    if not isinstance(place, Checkpoint) or place.step is None:
        raise ValueError(
            f"run {run.name!r}: optimiser='carry' needs a checkpoint with a step, beside which the "
            f"optimiser's state lies, got a {type(place).__name__}; give one of "
            "landscape.checkpoints(folder), or optimiser='reset'"
        )
    kept = load_kept(place.path.parent, place.step)
    if kept["names"] != names or set(kept["moments"]) != expected:
        raise ValueError(
            f"run {run.name!r}: the optimiser's state beside {place.path} holds "
            f"{', '.join(kept['moments'])} of {len(kept['names'])} parameters, expected "
            f"{', '.join(sorted(expected))} of {len(names)}; branch with optimiser='reset'"
        )
    moments: Mapping[str, Tensor] = kept["moments"]
    return moments


def _value(scalar: Scalar, clock: Callable[[int], Clock], step: int) -> float:
    return float(scalar(clock(step)) if callable(scalar) else scalar)


def _rows(
    runs: Sequence[Run],
    names: list[str],
    like: Mapping[str, Tensor],
    dtype: torch.dtype,
    row: Callable[[Run, Mapping[str, Tensor]], State],
) -> Tensor | None:
    """A matrix (n, P) of one state for each run; None if it holds only ones."""
    matrix = flatten([row(run, like) for run in runs], names, dtype=dtype)
    return None if bool((matrix == 1).all()) else matrix


def _decayed(run: Run, like: Mapping[str, Tensor]) -> State:
    _check_patterns(run, run.undecayed, like, "undecayed")
    return {
        name: torch.full(t.shape, float(not any(fnmatchcase(name, p) for p in run.undecayed)))
        for name, t in like.items()
    }


def _moving(run: Run, like: Mapping[str, Tensor]) -> State:
    """1 where weights ever move: not pruned, and trained by the model itself."""
    _check_patterns(run, [timed.what for timed in run.frozen], like, "frozen")
    masks = _pruning(run, like)
    return {name: masks[name] * float(like[name].requires_grad) for name in like}


def _pruning(run: Run, like: Mapping[str, Tensor]) -> State:
    unknown = [n for n, m in run.masks.items() if n not in like or m.shape != like[n].shape]
    if unknown:
        raise ValueError(
            f"run {run.name!r}: masks are named and shaped as parameters, which these are not: "
            f"{', '.join(unknown[:5])}"
        )
    return {
        name: run.masks[name].cpu() if name in run.masks else torch.ones(parameter.shape)
        for name, parameter in like.items()
    }


def _check_patterns(
    run: Run, patterns: Sequence[str], like: Mapping[str, Tensor], field: str
) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in like):
            raise ValueError(
                f"run {run.name!r}: the pattern {pattern!r} of {field} matches no parameter; "
                f"they are {', '.join(list(like)[:8])}{', ...' if len(like) > 8 else ''}"
            )


def _to(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
