"""Are two networks the same up to the order of their units? Permute one to match the other.

The units are those that `symmetries` finds; a permutation of them changes where a network lies in
weight space, but not its function. What is left of the barrier between two networks after alignment
is not due to the order of units (Entezari et al. 2022; Ainsworth et al. 2022).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from landscape.engine import caller, exact_arithmetic, install, own_names, replicate
from landscape.evaluation import Prepared, Tasks, prepare
from landscape.examples import some
from landscape.maths.matching import Block, Matching, Units, match
from landscape.results import dataset
from landscape.states import State, Stored, distance, loaded, match as fitted, weight_names
from landscape.symmetries import (
    Place,
    Specification,
    Symmetries,
    find_symmetries,
    permute,
    plain_operations,
    specified,
)
from landscape.task import random_state_kept

METHODS = ("weights", "activations")


def align(task: Tasks, a: State | Stored, b: State | Stored, **options: Any) -> State:
    """The state `b` with its units permuted to match those of `a`; its function stays.

    Weights, biases, norm parameters and running statistics move together; values are moved, never
    computed, so the dtypes of `b` stay too. `options` are those of `find_permutations`.

    Raises `ValueError` as `find_permutations` does, and if outputs on a batch of the data differ by
    more than 1e-5 of the largest one in float32.
    """
    a, b = loaded(a), loaded(b)
    ready = prepare(task, [a], device=options.pop("device", "auto"))
    symmetries = symmetries_of(ready, a, options.pop("symmetries", None))
    found = find_permutations(ready, a, b, symmetries=symmetries, **options)
    result = aligned(fitted(b, ready.tasks[0].model), found, symmetries)
    _check_function(ready, b, result)
    return result


def find_permutations(
    task: Tasks,
    a: State | Stored,
    b: State | Stored,
    *,
    method: str = "weights",
    symmetries: Specification | None = None,
    starts: int = 3,
    seed: int = 0,
    tolerance: float = 1e-7,
    device: str | torch.device = "auto",
    progress: bool | None = False,
) -> xr.Dataset:
    """The permutations of the units of `b` that bring it closest to `a`.

    `method`:

    - `"weights"` makes the sum of products of the weights largest, which is to say the distance
      smallest, by coordinate ascent over the groups (Ainsworth et al. 2022, section 3.2). The first
      of the `starts` goes outwards from inputs and outputs, the others visit the groups in random
      order; each stops when a sweep gains less than `tolerance` times |a| |b|;
    - `"activations"` makes the sum of correlations between units largest, over all examples of the
      data, the same for both networks (section 3.1). Units that never change correlate with none.
      Groups that are in the output of no module, such as the dimensions of queries and keys in
      `nn.MultiheadAttention`, are then matched by their weights.

    `symmetries`: found by tracing if None, or written by hand (`symmetries.specified`). Of several
    tasks the one named `"train"`, or the first, gives the examples.

    Returns `permutation_*` for each group: unit i of the aligned network is unit p[i] of `b`, with
    the units of the groups it is within as first dimensions. `objective` (start, sweep) is the sum
    that is made largest (a start that has stopped keeps its last value), `moved` (group) the share
    of units that change places, and `distance_before`, `distance_after` are Euclidean distances of
    the weights.

    Raises `ValueError` for an unknown method, states that do not fit the model, values that are not
    finite, or a model that tracing cannot follow.
    """
    if method not in METHODS:
        raise ValueError(f"method must be 'weights' or 'activations', got {method!r}")
    if starts < 1:
        raise ValueError(f"starts must be at least 1, got {starts}")
    a, b = loaded(a), loaded(b)
    ready = prepare(task, [a], device=device)
    model = ready.tasks[0].model
    a, b = fitted(a, model), fitted(b, model)
    wiring = symmetries_of(ready, a, symmetries)
    groups = {g.name: Units(g.size, g.within, g.fixed) for g in wiring.groups}
    options: dict[str, Any] = {"starts": starts, "seed": seed, "tolerance": tolerance}
    hidden = None if progress is None else not progress
    with tqdm(unit="sweep", disable=hidden) as bar, torch.no_grad():
        options["progress"] = bar.update
        if method == "weights":
            found = match(weight_blocks(a, b, wiring, ready.device), groups, **options)
        else:
            found = _by_activations(ready, a, b, wiring, groups, options)
    after = permute(b, wiring, found.permutations)
    return _labelled(wiring, found, (distance(a, b), distance(a, after)), method, options)


def symmetries_of(task: Tasks, state: State, symmetries: Specification | None = None) -> Symmetries:
    """The symmetries of a task's model: traced on two examples, or as given by hand."""
    if isinstance(symmetries, Symmetries):
        return symmetries
    ready = prepare(task, [state])
    model = ready.tasks[0].model
    state = fitted(state, model)
    if symmetries is not None:
        return specified(symmetries, state)
    with random_state_kept():
        few = some(ready.moments, slice(0, 2), "contiguous", torch.float64)
        inputs, _ = next(iter(few.batches(2)))
        return find_symmetries(model, inputs, state)


def aligned(b: State, found: xr.Dataset, symmetries: Symmetries) -> State:
    """The state `b` with the permutations that `find_permutations` returned."""
    names = {f"permutation_{group.name}": group.name for group in symmetries.free()}
    if missing := [name for name in names if name not in found]:
        raise ValueError(
            f"the result holds no {missing[0]!r}: it is of another model, or of other symmetries"
        )
    return permute(b, symmetries, {name: found[key].values for key, name in names.items()})


def weight_blocks(
    a: State, b: State, symmetries: Symmetries, device: torch.device | str = "cpu"
) -> list[Block]:
    """The weights of two states as blocks whose axes are groups; those without groups left out."""
    by_tensor = symmetries.by_tensor()
    blocks = []
    for name in weight_names(a):
        if name in by_tensor:
            pair = [state[name].detach().to(device, torch.float64) for state in (a, b)]
            for axes, parts in _parts(pair, by_tensor[name]):
                if any(axes):
                    blocks.append(Block(parts[0], parts[1], axes))
    return blocks


# --- blocks ---------------------------------------------------------------------------------------


Part = tuple[tuple[str | None, ...], list[Tensor]]


def _parts(tensors: Sequence[Tensor], places: Sequence[Place]) -> Iterator[Part]:
    """Tensors of one shape, cut and reshaped so that each axis runs over one group or none."""
    segments = []
    for dim, size in enumerate(tensors[0].shape):
        along = [(place.groups, place.positions) for place in places if place.dim == dim]
        taken = np.concatenate([np.zeros(0, int), *(where.ravel() for _, where in along)])
        rest = np.setdiff1d(np.arange(size), taken)
        segments.append([*along, ((None,), rest)] if len(rest) else along)
    for combination in product(*segments):
        axes = tuple(name for groups, _ in combination for name in groups)
        shape = [n for _, where in combination for n in where.shape]
        parts = list(tensors)
        for dim, (_, where) in enumerate(combination):
            if not np.array_equal(where.ravel(), np.arange(tensors[0].shape[dim])):
                index = torch.as_tensor(where.ravel(), device=tensors[0].device)
                parts = [part.index_select(dim, index) for part in parts]
        yield axes, [part.reshape(shape) for part in parts]


# --- activations ----------------------------------------------------------------------------------


def _by_activations(
    ready: Prepared,
    a: State,
    b: State,
    symmetries: Symmetries,
    groups: Mapping[str, Units],
    options: Mapping[str, Any],
) -> Matching:
    """Match by correlations; then what no module gives out, by weights with the others fixed."""
    blocks = _correlation_blocks(ready, a, b, symmetries)
    seen = {name for block in blocks for name in block.axes}
    first = match(blocks, {n: g if n in seen else _still(g) for n, g in groups.items()}, **options)
    rest = {n: _still(g) if n in seen else g for n, g in groups.items()}
    if all(units.fixed for units in rest.values()):
        return first
    moved = permute(b, symmetries, first.permutations)
    second = match(weight_blocks(a, moved, symmetries, ready.device), rest, **options)
    permutations = first.permutations | second.permutations
    return Matching(permutations, first.values, first.best)


def _still(units: Units) -> Units:
    return Units(units.size, units.within, fixed=True)


@dataclass
class _Correlation:
    """Moments of the units (u, samples) of two networks, merged over batches in float64."""

    count: int = 0
    mean: list[Tensor] = field(default_factory=list)  # of both, (u, 1)
    square: list[Tensor] = field(default_factory=list)  # sums of squared deviations, (u, 1)
    cross: Tensor = field(default_factory=lambda: torch.zeros(()))  # sums of products, (u, u)

    def merge(self, pair: Sequence[Tensor]) -> None:
        """Add a batch: Chan, Golub and LeVeque 1983, equation 2.1, and the same for products."""
        count = pair[0].shape[1]
        mean = [x.mean(1, keepdim=True) for x in pair]
        deviations = [x - m for x, m in zip(pair, mean, strict=True)]
        square = [x.square().sum(1, keepdim=True) for x in deviations]
        cross = deviations[0] @ deviations[1].T
        if self.count:
            shift = [new - old for new, old in zip(mean, self.mean, strict=True)]
            share = count / (self.count + count)
            weight = self.count * share
            mean = [old + s * share for old, s in zip(self.mean, shift, strict=True)]
            square = [
                old + new + s.square() * weight
                for old, new, s in zip(self.square, square, shift, strict=True)
            ]
            cross = self.cross + cross + shift[0] @ shift[1].T * weight
        self.mean, self.square, self.cross = mean, square, cross
        self.count += count

    def values(self) -> Tensor:
        """Correlations (u, u); 0 for units that are constant up to rounding."""
        inverse = [
            torch.where(s <= 1e-12 * self.count * m.square(), 0, s.rsqrt())
            for s, m in zip(self.square, self.mean, strict=True)
        ]
        return self.cross * inverse[0] * inverse[1].T


def _correlation_blocks(ready: Prepared, a: State, b: State, symmetries: Symmetries) -> list[Block]:
    """Correlations C as blocks: the sum of products of the identity and of C.T, as rows permute."""
    places: dict[tuple[str, int], list[Place]] = {}
    for place in symmetries.activations:
        places.setdefault((place.tensor, place.call), []).append(place)
    models = [_installed(ready, state) for state in (a, b)]
    sums: dict[Any, _Correlation] = {}
    shapes: dict[Any, list[int]] = {}
    with exact_arithmetic(), random_state_kept(), plain_operations():
        for inputs, _ in ready.moments.batches(ready.strategy.batch_size):
            seen = []
            for model in models:
                with _outputs(model, places) as outputs:
                    caller(model)(inputs)
                seen.append(outputs)
            for key, output in seen[0].items():
                for axes, parts in _parts([output, seen[1][key]], places[key]):
                    if not any(axes):
                        continue
                    named = [k for k, name in enumerate(axes) if name is not None]
                    rest = [k for k, name in enumerate(axes) if name is None]
                    shape = [parts[0].shape[k] for k in named]
                    pair = [p.permute(*named, *rest).reshape(prod(shape), -1) for p in parts]
                    one = key, axes
                    shapes[one] = shape
                    sums.setdefault(one, _Correlation()).merge(pair)
    blocks = []
    for one, correlation in sums.items():
        names = [name for name in one[1] if name is not None]
        values = correlation.values().T.clone()  # out of inference mode
        shape = [*shapes[one], len(values)]
        eye = torch.eye(len(values), dtype=values.dtype, device=values.device)
        blocks.append(Block(eye.reshape(shape), values.reshape(shape), (*names, None)))
    return blocks


def _installed(ready: Prepared, state: State) -> nn.Module:
    (model,) = replicate(
        ready.tasks[0].model, 1, device=ready.device, dtype=torch.float32, layout="contiguous"
    )
    with torch.no_grad():
        install(model, {name: state[name] for name in own_names(model)})
    return model


@contextmanager
def _outputs(
    model: nn.Module, wanted: Mapping[tuple[str, int], Any]
) -> Iterator[dict[tuple[str, int], Tensor]]:
    """The outputs of modules in a forward pass, by name and number of the call, in float64."""
    found: dict[tuple[str, int], Tensor] = {}
    calls: dict[str, int] = {}

    def after(name: str) -> Callable[..., None]:
        def note(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
            call = calls.get(name, 0)
            calls[name] = call + 1
            if (name, call) in wanted:
                tensor = next(t for t in tree_leaves(outputs) if isinstance(t, Tensor))
                found[name, call] = tensor.to(torch.float64, copy=True)

        return note

    names = {name for name, _ in wanted}
    modules = dict(model.named_modules())
    hooks = [modules[name].register_forward_hook(after(name)) for name in names]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


# --- results and checks ---------------------------------------------------------------------------


def _labelled(
    symmetries: Symmetries,
    found: Matching,
    distances: tuple[float, float],
    method: str,
    options: Mapping[str, Any],
) -> xr.Dataset:
    """The permutations as a dataset."""
    variables: dict[str, Any] = {}
    for group in symmetries.free():
        dims = tuple(f"{name}.unit" for name in (*group.within, group.name))
        words = {"long_name": f"permutation of {group.name}"}
        variables[f"permutation_{group.name}"] = (dims, found.permutations[group.name], words)
    names = [group.name for group in symmetries.free()]
    moved = [float((p != np.arange(p.shape[-1])).mean()) for p in
             (found.permutations[name] for name in names)]  # fmt: skip
    longest = max(len(values) for values in found.values)
    history = [values + values[-1:] * (longest - len(values)) for values in found.values]
    what = "weights" if method == "weights" else "correlations of activations"
    variables |= {
        "objective": (("start", "sweep"), history, {"long_name": f"sum of matched {what}"}),
        "moved": ("group", moved, {"long_name": "share of units moved"}),
        "distance_before": ((), distances[0], {"long_name": "distance before"}),
        "distance_after": ((), distances[1], {"long_name": "distance after"}),
    }
    return dataset(
        variables,
        {"group": names, "start": np.arange(len(history)), "sweep": np.arange(longest)},
        analysis="alignment",
        title=f"Alignment of {len(names)} groups of units by {method}",
        method=method,
        best_start=found.best,
        symmetries=str(symmetries),
        **{key: options[key] for key in ("starts", "seed", "tolerance")},
    )


def _check_function(ready: Prepared, before: State, after: State) -> None:
    """Raise unless two states give the same outputs on a batch of the data."""
    model = ready.tasks[0].model
    with exact_arithmetic(), random_state_kept():
        few = some(ready.moments, slice(0, 64), "contiguous", torch.float32)
        inputs, _ = next(iter(few.batches(64)))
        outputs = []
        for state in (fitted(before, model), after):
            out = tree_leaves(caller(_installed(ready, state))(inputs))
            outputs.append([tensor.double() for tensor in out if isinstance(tensor, Tensor)])
    for one, other in zip(*outputs, strict=True):
        difference, size = float((one - other).abs().max()), float(one.abs().max())
        if difference > 1e-5 * size:
            raise ValueError(
                f"the permuted network is another function: its outputs differ by {difference:.2g} "
                f"where the largest is {size:.2g}. The symmetries given do not hold for this model"
            )
