"""Which permutations of a model's units leave its function as it is?

Found by running the model once: every operation says which dimensions of its tensors must be
permuted alike, and which can not be permuted at all (`maths.axes`). No architecture is known here,
only operations; an operation that is not known is refused by name.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from landscape.engine import caller, install, own_names, replicate
from landscape.maths import axes as algebra
from landscape.maths.axes import Axis, find, fix, leaves
from landscape.states import State
from landscape.tracing import BY_HAND, Axes, Trace, fixed_axes, names_of_parameters

Indices = NDArray[np.int64]
Permutations = Mapping[str, Indices]


@dataclass(frozen=True)
class Group:
    """Units that can change places. `within`: groups for each of whose units there is one of these.

    The heads of an attention are a group; the dimensions of a head are a group within the heads,
    permuted in each head in its own way. A `fixed` group is never permuted; others are within it.
    """

    name: str
    size: int
    within: tuple[str, ...] = ()
    fixed: bool = False


@dataclass(frozen=True, eq=False)
class Place:
    """Where units occur: along a dimension of a tensor, or of a module's output.

    `positions[i, j, ...]` is the place along the dimension of unit i of the first of `groups`, unit
    j of the second, ...; None stands for indices that stay what they are. `call` counts the calls
    of a module in one forward pass.
    """

    tensor: str
    dim: int
    groups: tuple[str | None, ...]
    positions: Indices
    call: int = 0


@dataclass(frozen=True, eq=False)
class Symmetries:
    """Permutations of units that a model's function does not feel: all products of its groups.

    `places` are those in the state, `activations` those in the outputs of modules.
    """

    groups: tuple[Group, ...]
    places: tuple[Place, ...]
    activations: tuple[Place, ...] = ()

    def __getitem__(self, name: str) -> Group:
        """The group of that name."""
        return next(group for group in self.groups if group.name == name)

    def free(self) -> tuple[Group, ...]:
        """The groups that can be permuted."""
        return tuple(group for group in self.groups if not group.fixed)

    def by_tensor(self) -> dict[str, list[Place]]:
        """The places in each tensor of the state that has any."""
        found: dict[str, list[Place]] = {}
        for place in self.places:
            found.setdefault(place.tensor, []).append(place)
        return found

    def shape(self, group: Group) -> tuple[int, ...]:
        """The shape of a group's permutations: one for each unit of the groups it is within."""
        return (*(self[name].size for name in group.within), group.size)

    def __str__(self) -> str:
        lines = []
        for group in self.free():
            where = [f"{p.tensor}[{p.dim}]" for p in self.places if group.name in p.groups]
            inside = f" in each of {' x '.join(group.within)}" if group.within else ""
            lines.append(f"{group.name}: {group.size} units{inside}: {', '.join(where)}")
        return "\n".join(lines)


Specification = Symmetries | Mapping[str, Sequence[tuple[str, int]]]


def find_symmetries(
    model: nn.Module, inputs: Any, state: State | None = None, *, seed: int = 0
) -> Symmetries:
    """The permutation symmetries of a model, traced on a few examples.

    `inputs` are those of a `Task`: a tensor, a tuple of arguments or a mapping of keyword
    arguments; two examples will do. `state` gives values (of constant tables, say) that the model
    itself does not hold. The model runs as a private copy on the CPU, in evaluation mode and
    float64. What was found is tried out: randomly perturbed weights, randomly permuted, must give
    the same outputs.

    Raises `ValueError` if an operation is not known or the outputs differ; a specification by hand
    (see `specified`) then does instead.
    """
    cpu = torch.device("cpu")
    (twin,) = replicate(model, 1, device=cpu, dtype=torch.float64, layout="contiguous")
    inputs = _double(inputs)
    with torch.no_grad():
        if state is not None:
            install(twin, {name: state[name] for name in own_names(twin) if name in state})
        trace = Trace(twin)
        for tensor in tree_leaves(inputs):
            if isinstance(tensor, Tensor):
                trace.follow(tensor, fixed_axes(tensor))
                trace.batch += trace.of(tensor)[:1]
        with plain_operations(), trace.modules_followed(twin), trace:
            outputs = caller(twin)(inputs)
        found = _left_free(trace, outputs)
        _try_out(twin, inputs, found, seed)
    return found


def specified(groups: Mapping[str, Sequence[tuple[str, int]]], state: State) -> Symmetries:
    """Symmetries written by hand: for each group the tensors and dimensions that it runs along.

    For example `{"hidden": [("fc1.weight", 0), ("fc1.bias", 0), ("fc2.weight", 1)]}`.

    Raises `ValueError` if a tensor or dimension does not exist, sizes differ, or a dimension is in
    two groups.
    """
    found, places = [], []
    taken: dict[tuple[str, int], str] = {}
    for group, where in groups.items():
        sizes = {}
        for tensor, dim in where:
            if tensor not in state:
                raise ValueError(f"group {group!r} names {tensor!r}, which the state does not have")
            if not 0 <= dim < state[tensor].ndim:
                shape = tuple(state[tensor].shape)
                raise ValueError(
                    f"group {group!r} names dimension {dim} of {tensor}, which has shape {shape}"
                )
            if (tensor, dim) in taken:
                other = taken[tensor, dim]
                raise ValueError(f"dimension {dim} of {tensor} is in {other!r} and in {group!r}")
            taken[tensor, dim] = group
            sizes[f"{tensor}[{dim}]"] = state[tensor].shape[dim]
            places.append(Place(tensor, dim, (group,), np.arange(state[tensor].shape[dim])))
        if len(set(sizes.values())) != 1:
            listed = ", ".join(f"{name} has {size}" for name, size in sizes.items()) or "nothing"
            raise ValueError(f"the dimensions of group {group!r} must have one size: {listed}")
        found.append(Group(group, next(iter(sizes.values()))))
    return Symmetries(tuple(found), tuple(places))


def identity(symmetries: Symmetries) -> dict[str, Indices]:
    """The permutations that change nothing, one array for each free group."""
    return {
        group.name: np.broadcast_to(np.arange(group.size), symmetries.shape(group)).copy()
        for group in symmetries.free()
    }


def random_permutations(symmetries: Symmetries, seed: int = 0) -> dict[str, Indices]:
    """Uniformly random permutations, one array for each free group."""
    generator = np.random.default_rng(seed)
    return {
        name: generator.permuted(array, axis=-1) for name, array in identity(symmetries).items()
    }


def permute(state: State, symmetries: Symmetries, permutations: Permutations) -> dict[str, Tensor]:
    """The state with its units permuted: unit i of the new state is unit p[i] of the old one.

    `permutations[group]` has the units of the groups that it is within as its first dimensions:
    `p[h, d]` is the old place, within the old head, of dimension d of the new head h. Values are
    moved, never computed; entries without units are copied. Groups that are not named stay.

    Raises `ValueError` if an array is no permutation of its group, or the state does not fit.
    """
    complete = _checked(symmetries, permutations)
    by_tensor = symmetries.by_tensor()
    if missing := [name for name in by_tensor if name not in state]:
        raise ValueError(f"the symmetries are of another model: the state has no {missing[0]!r}")
    return {
        name: _moved(tensor, by_tensor[name], symmetries, complete)
        if name in by_tensor
        else tensor.clone()
        for name, tensor in state.items()
    }


@contextlib.contextmanager
def plain_operations() -> Iterator[None]:
    """Without fused kernels that hide what is computed; the user's setting comes back."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


# --- permuting ------------------------------------------------------------------------------------


def _checked(symmetries: Symmetries, permutations: Permutations) -> dict[str, Indices]:
    """All permutations, with the identity for groups that are fixed or not named."""
    complete = identity(symmetries)
    for name, array in permutations.items():
        array = np.asarray(array)
        if name not in complete:
            known = ", ".join(complete) or "none"
            raise ValueError(f"there is no group {name!r} to permute; the groups are: {known}")
        shape = complete[name].shape
        if array.shape != shape or not (np.sort(array, axis=-1) == complete[name]).all():
            raise ValueError(
                f"the permutations of group {name!r} must be of shape {shape}, each along the last "
                f"dimension holding 0 to {shape[-1] - 1} once; got shape {array.shape}"
            )
        complete[name] = array.astype(np.int64)
    fixed = [group for group in symmetries.groups if group.fixed]
    return complete | {
        g.name: np.broadcast_to(np.arange(g.size), symmetries.shape(g)) for g in fixed
    }


def _moved(
    tensor: Tensor, places: Sequence[Place], symmetries: Symmetries, permutations: Permutations
) -> Tensor:
    """A tensor with each entry taken from the place that the permutations name."""
    result = tensor
    indices = [
        _sources(dim, tensor, places, symmetries, permutations) for dim in range(tensor.ndim)
    ]
    crossed = any(index.size != size for index, size in zip(indices, tensor.shape, strict=True))
    if crossed:
        return tensor[tuple(torch.as_tensor(index, device=tensor.device) for index in indices)]
    for dim, index in enumerate(indices):  # dimension by dimension needs less memory
        if not np.array_equal(index.ravel(), np.arange(index.size)):
            line = torch.as_tensor(index.ravel(), device=tensor.device)
            result = result.index_select(dim, line)
    return result.clone() if result is tensor else result


def _sources(
    dim: int,
    tensor: Tensor,
    places: Sequence[Place],
    symmetries: Symmetries,
    permutations: Permutations,
) -> Indices:
    """The old position for each new one along a dimension, in a shape that broadcasts.

    Units that are within groups along another dimension, as the inputs of a grouped convolution
    are, have one row for each position of that dimension.
    """
    along = [place for place in places if place.dim == dim]
    outside = {
        parent
        for place in along
        for name in place.groups
        if name is not None
        for parent in symmetries[name].within
        if parent not in place.groups
    }
    others = [place for place in places if place.dim != dim and outside & set(place.groups)]
    units: list[dict[str, int]] = [{}]
    if others:
        units = [{} for _ in range(tensor.shape[others[0].dim])]
    for place in others:
        for name in outside & set(place.groups):
            grid = np.indices(place.positions.shape)[place.groups.index(name)]
            for position, unit in zip(place.positions.flat, grid.flat, strict=True):
                units[position][name] = int(unit)
    rows = np.tile(np.arange(tensor.shape[dim]), (len(units), 1))
    for row, known in zip(rows, units, strict=True):
        for place in along:
            row[place.positions] = _old_positions(place, known, symmetries, permutations)
    shape = [1] * tensor.ndim
    shape[dim] = tensor.shape[dim]
    if others:
        shape[others[0].dim] = len(units)
        if others[0].dim > dim:
            rows = rows.T
    return np.ascontiguousarray(rows.reshape(shape))


def _old_positions(
    place: Place, known: Mapping[str, int], symmetries: Symmetries, permutations: Permutations
) -> Indices:
    """For each of the positions of a place the one that its unit comes from."""
    grid = np.indices(place.positions.shape)
    units: dict[str, Any] = dict(known)
    units |= {name: grid[axis] for axis, name in enumerate(place.groups) if name is not None}
    old = [
        line
        if name is None
        else permutations[name][(*(units[p] for p in symmetries[name].within), line)]
        for name, line in zip(place.groups, grid, strict=True)
    ]
    return place.positions[tuple(old)]


def _try_out(twin: nn.Module, inputs: Any, symmetries: Symmetries, seed: int) -> None:
    """Raise unless random permutations leave the outputs of randomly perturbed weights alone."""
    generator = torch.Generator().manual_seed(seed)
    state = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    for names in names_of_parameters(twin).values():
        tensor = state[names[0]]
        if tensor.is_floating_point():
            scale = 0.1 * (float(tensor.square().mean().sqrt()) or 1.0)
            noise = scale * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            state |= dict.fromkeys(names, tensor + noise)
    permutations = random_permutations(symmetries, seed)
    results = []
    for one in (state, permute(state, symmetries, permutations)):
        install(twin, {name: one[name] for name in own_names(twin) if name in one})
        outputs = tree_leaves(caller(twin)(inputs))
        results.append([t.double() for t in outputs if isinstance(t, Tensor)])
    for before, after in zip(*results, strict=True):
        difference = (before - after).abs().max() if before.numel() else before.sum()
        if difference > 1e-7 * before.abs().max() and torch.isfinite(before).all():
            raise ValueError(
                f"the symmetries that were traced in {type(twin).__name__} change its outputs (by "
                f"{float(difference):.2g}): it depends on its units in a way that tracing does not "
                f"see. {BY_HAND}"
            )


def _double(inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        moved = inputs.detach().cpu()
        return moved.double() if moved.is_floating_point() else moved
    if isinstance(inputs, Mapping):
        return {key: _double(value) for key, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return type(inputs)([_double(value) for value in inputs])
    return inputs


# --- from axes to groups --------------------------------------------------------------------------


def _left_free(trace: Trace, outputs: Any) -> Symmetries:
    """What is left free after the outputs are fixed too."""
    for tensor in tree_leaves(outputs):
        if isinstance(tensor, Tensor):
            for axis in trace.of(tensor):
                fix(axis)
    _settle_versions(trace)
    return _described(trace.state, trace.outputs, _within(trace), trace.batch)


def _sets(trace: Trace) -> list[frozenset[Axis]]:
    """The leaves that were seen side by side, each set once."""
    found = set()
    for axes in {tuple(map(find, axes)) for axes in trace.together}:
        listed = Counter(leaf for axis in axes for leaf in leaves(axis))
        found.add(frozenset(listed))
        # beside two axes of the same units, as in a Gram matrix, it is not clear which is meant
        found.add(frozenset(leaf for leaf, number in listed.items() if number == 1))
    return list(found)


def _settle_versions(trace: Trace) -> None:
    """Join versions of axes that were also used where the outer factor was not selected from.

    They stay apart only if the axis always stood beside that factor: then nothing was done
    to all versions alike.
    """
    while True:
        sets = _sets(trace)
        for axis in _with_versions(trace.together):
            for outer in {find(along) for along, _ in axis.versions}:
                beside = all(outer in one for one in sets if axis in one)
                apart = axis.kind == outer.kind == "leaf" and beside and not axis.fixed
                if not (apart and outer.fixed and _in_order(trace, outer, axis)):
                    algebra.join_versions(axis, outer)
                    break
            else:
                continue
            break
        else:
            return


def _in_order(trace: Trace, outer: Axis, axis: Axis) -> bool:
    """Whether an axis is in the state only as an inner factor of the outer one."""
    for dim in (dim for own in trace.state.values() for dim in own):
        for factors, _ in _pieces([dim]):
            if axis in factors and outer not in factors[: factors.index(axis)]:
                return False
    return True


def _within(trace: Trace) -> dict[Axis, list[Axis]]:
    """The free axes of the state, each with the axes for each of whose units it may differ.

    They are outer factors that stood beside it wherever it was seen.
    """
    tensors = [[_pieces([dim], versions=True) for dim in own] for own in trace.state.values()]
    beside: dict[Axis, frozenset[Axis]] = {}
    for one in _sets(trace):
        for axis in one:
            beside[axis] = beside.get(axis, one) & one
    free = dict.fromkeys(
        axis
        for tensor in tensors
        for pieces in tensor
        for factors, _ in pieces
        for axis in factors
        if not axis.fixed
    )
    within: dict[Axis, list[Axis]] = {}
    for axis in free:
        within[axis] = [
            outer
            for outer in algebra.outer_factors(axis)
            if outer in beside.get(axis, ())
            and axis not in within.get(outer, ())
            and _is_beside(outer, axis, tensors)
        ]
    for axis, outer in within.items():  # what is within a group is within what that is within
        within[axis] = [one for one in outer if all(far in outer for far in within.get(one, ()))]
    for outer in within.values():
        outer.sort(key=lambda one: len(within.get(one, ())))
    return within


def _with_versions(together: Sequence[Axes]) -> list[Axis]:
    """All axes that have versions, however deep they lie."""
    todo = [axis for axes in together for axis in axes]
    seen: dict[Axis, None] = {}
    while todo:
        axis = find(todo.pop())
        if axis not in seen:
            seen[axis] = None
            todo += [*axis.parts, *axis.versions.values()]
    return [axis for axis in seen if axis.versions]


Piece = tuple[list[Axis], Indices]


def _pieces(
    parts: list[Axis], positions: NDArray[Any] | None = None, *, versions: bool = False
) -> list[Piece]:
    """An axis as pieces that are products of leaves, each with the positions of its units.

    With `versions`, a leaf that has versions along a factor before it is replaced by them.
    """
    parts = [find(part) for part in parts]
    if positions is None:
        whole = [part.size for part in parts]
        positions = np.arange(math.prod(whole)).reshape(whole)
    for place, part in enumerate(parts):
        before, after = parts[:place], parts[place + 1 :]
        if part.kind == "product":
            sizes = [find(one).size for one in part.parts]
            shape = [*positions.shape[:place], *sizes, *positions.shape[place + 1 :]]
            return _pieces(
                [*before, *part.parts, *after], positions.reshape(shape), versions=versions
            )
        if part.kind == "sum":
            stops = np.cumsum([find(one).size for one in part.parts])[:-1]
            split = np.split(positions, stops, axis=place)
            return [
                piece
                for one, where in zip(part.parts, split, strict=True)
                for piece in _pieces([*before, one, *after], where, versions=versions)
            ]
    for place, part in enumerate(parts if versions else ()):
        apart = [one for one in parts[place + 1 :] if algebra.has_versions(one, part)]
        if apart:
            found = []
            for index in range(part.size):
                inner = [
                    algebra.version(one, part, index) if one in apart else one
                    for one in parts[place + 1 :]
                ]
                where = np.take(positions, index, axis=place)
                found += _pieces([*parts[:place], *inner], where, versions=True)
            return found
    kept = [place for place, part in enumerate(parts) if part.size > 1]
    shape = [parts[place].size for place in kept]
    return [([parts[place] for place in kept], positions.reshape(shape))]


def _is_beside(outer: Axis, axis: Axis, tensors: Sequence[Sequence[Sequence[Piece]]]) -> bool:
    """Whether an axis is in each tensor in the same piece as another, or across from it."""
    for tensor in tensors:
        for dim, pieces in enumerate(tensor):
            others = [side for number, side in enumerate(tensor) if number != dim]
            across = any(all(outer in factors for factors, _ in side) for side in others)
            for factors, _ in pieces:
                if axis in factors and outer not in factors and not across:
                    return False
    return True


def _described(
    state: Mapping[str, Axes],
    outputs: Sequence[tuple[str, int, Axes]],
    within: Mapping[Axis, list[Axis]],
    batch: Sequence[Axis],
) -> Symmetries:
    """Groups with names, and where their units are."""
    named = dict.fromkeys(within) | dict.fromkeys(one for outer in within.values() for one in outer)
    names: dict[Axis, str] = {}
    for tensor, own in state.items():
        for axis in (
            a for dim in own for factors, _ in _pieces([dim], versions=True) for a in factors
        ):
            if axis in named and axis not in names:
                base = tensor.rpartition(".")[0] or tensor
                number = sum(name.partition("#")[0] == base for name in names.values())
                names[axis] = f"{base}#{number + 1}" if number else base

    def places(tensor: str, own: Axes, call: int = 0) -> Iterator[Place]:
        for dim, axis in enumerate(own):
            for factors, positions in _pieces([axis], versions=True):
                groups = tuple(names.get(factor) for factor in factors)
                if any(groups) and not any(find(one) in factors for one in batch):
                    yield Place(tensor, dim, groups, positions, call)

    ordered = sorted(names, key=lambda axis: len(within.get(axis, ())))
    return Symmetries(
        tuple(
            Group(
                names[axis],
                axis.size,
                tuple(names[outer] for outer in within.get(axis, ())),
                axis.fixed,
            )
            for axis in ordered
        ),
        tuple(place for name, own in state.items() for place in places(name, own)),
        tuple(place for name, call, own in outputs for place in places(name, own, call)),
    )
