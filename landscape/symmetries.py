"""Which permutations of a model's units leave its function as it is?

Found by running the model once: every operation says which dimensions of its tensors must be
permuted alike, and which can not be permuted at all (`maths.axes`). No architecture is known here,
only operations; an operation that is not known is refused by name.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from landscape.engine import caller, install, own_names, replicate
from landscape.maths import axes as algebra
from landscape.maths.axes import Axis, find, fix, leaves, unify
from landscape.states import STATISTICS, State, tied_names

Indices = NDArray[np.int64]
Permutations = Mapping[str, Indices]
Axes = tuple[Axis, ...]


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
        trace = _Trace(twin)
        for tensor in tree_leaves(inputs):
            if isinstance(tensor, Tensor):
                trace.follow(tensor, _fixed(tensor))
                trace.batch += trace.of(tensor)[:1]
        with plain_operations(), trace.modules_followed(twin), trace:
            outputs = caller(twin)(inputs)
        found = trace.symmetries(outputs)
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
    by_tensor: dict[str, list[Place]] = {}
    for place in symmetries.places:
        by_tensor.setdefault(place.tensor, []).append(place)
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
    for names in _names_of_parameters(twin).values():
        tensor = state[names[0]]
        if tensor.is_floating_point():
            scale = 0.1 * (float(tensor.square().mean().sqrt()) or 1.0)
            noise = scale * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            state |= dict.fromkeys(names, tensor + noise)
    permutations = random_permutations(symmetries, seed)
    results = []
    for one in (state, permute(state, symmetries, permutations)):
        install(twin, {name: one[name] for name in own_names(twin) if name in one})
        results.append([t for t in tree_leaves(caller(twin)(inputs)) if isinstance(t, Tensor)])
    for before, after in zip(*results, strict=True):
        difference = (before - after).abs().max() if before.numel() else before.sum()
        if difference > 1e-7 * before.abs().max() and torch.isfinite(before).all():
            raise ValueError(
                f"the symmetries that were traced in {type(twin).__name__} change its outputs (by "
                f"{float(difference):.2g}): it depends on its units in a way that tracing does not "
                f"see. {_BY_HAND}"
            )


def _names_of_parameters(model: nn.Module) -> dict[str, list[str]]:
    """All names of each parameter, under its first one."""
    tied = {names[0]: names for names in tied_names(model)}
    return {name: tied.get(name, [name]) for name, _ in model.named_parameters()}


def _double(inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        moved = inputs.detach().cpu()
        return moved.double() if moved.is_floating_point() else moved
    if isinstance(inputs, Mapping):
        return {key: _double(value) for key, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return type(inputs)([_double(value) for value in inputs])
    return inputs


_BY_HAND = (
    "Give the symmetries by hand instead, as symmetries={'name of a group': [('fc1.weight', 0), "
    "('fc1.bias', 0), ('fc2.weight', 1)], ...}: the dimensions that are permuted together."
)


# --- tracing --------------------------------------------------------------------------------------


class _Trace(TorchDispatchMode):
    """Follows the axes of all tensors through a forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.known: dict[int, tuple[Tensor, Axes]] = {}  # by id; the tensors are kept alive
        self.together: list[Axes] = []  # axes that were seen side by side
        self.modules = [type(model).__name__]
        self.outputs: list[tuple[str, int, Axes]] = []
        self.batch: list[Axis] = []
        self.state: dict[str, Axes] = {}
        for names in _names_of_parameters(model).values():
            parameter = model.get_parameter(names[0])
            self.follow(parameter, [Axis(size) for size in parameter.shape])
            self.state |= dict.fromkeys(names, self.of(parameter))
        for name, tensor in model.named_buffers():
            if name.rpartition(".")[2] in STATISTICS:
                self.follow(tensor, [Axis(size) for size in tensor.shape])
                self.state[name] = self.of(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and say what its axes have to do with each other."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        outputs = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        if outputs:
            for tensor, axes in zip(outputs, self._axes(func, args, kwargs, outputs), strict=True):
                self.follow(tensor, axes)
        return result

    def _axes(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], outputs: list[Tensor]
    ) -> list[Axes]:
        """The axes of each output of an operation."""
        name = func._schema.name.removeprefix("aten::")
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        rule = _RULES.get(name) or _RULES.get(name.removesuffix("_"))
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = _pointwise
        if rule is None and tensors:
            rule = _unknown(str(func))
        if rule is None:
            return [_free(t) if name.startswith("empty") else _constant(t) for t in outputs]
        arguments = func._schema.arguments
        named = {one.name: one.default_value for one in arguments if one.has_default_value()}
        named |= dict(zip((one.name for one in arguments), args, strict=False)) | dict(kwargs)
        found = rule(self, named, outputs)
        return found + [_fixed(t) for t in outputs[len(found) :]]

    def of(self, tensor: Tensor) -> Axes:
        """The axes of a tensor; of one that comes from nowhere those of a constant."""
        if id(tensor) not in self.known:
            self.follow(tensor, _constant(tensor))
        return self.known[id(tensor)][1]

    def follow(self, tensor: Tensor, axes: Sequence[Axis]) -> None:
        """Remember the axes of a tensor."""
        assert [find(axis).size for axis in axes] == list(tensor.shape), (axes, tensor.shape)
        self.known[id(tensor)] = tensor, tuple(axes)
        self.together.append(tuple(axes))

    @contextlib.contextmanager
    def modules_followed(self, model: nn.Module) -> Iterator[None]:
        """Know which module of a private model is running, and note what it gives."""
        calls: dict[str, int] = {}

        def before(name: str) -> Callable[..., None]:
            return lambda *_: self.modules.append(name)

        def after(name: str) -> Callable[..., None]:
            def note(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
                self.modules.pop()
                tensors = [t for t in tree_leaves(outputs) if isinstance(t, Tensor)]
                if tensors:
                    self.outputs.append((name, calls.get(name, 0), self.of(tensors[0])))
                calls[name] = calls.get(name, 0) + 1

            return note

        hooks = []
        for name, module in model.named_modules():
            if name:
                hooks.append(module.register_forward_pre_hook(before(name)))
                hooks.append(module.register_forward_hook(after(name)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def symmetries(self, outputs: Any) -> Symmetries:
        """What is left free after the outputs are fixed too."""
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor):
                for axis in self.of(tensor):
                    fix(axis)
        self._settle_versions()
        return _described(self.state, self.outputs, self._within(), self.batch)

    def _sets(self) -> list[frozenset[Axis]]:
        """The leaves that were seen side by side, each set once."""
        found = set()
        for axes in {tuple(map(find, axes)) for axes in self.together}:
            listed = Counter(leaf for axis in axes for leaf in leaves(axis))
            found.add(frozenset(listed))
            # beside two axes of the same units, as in a Gram matrix, it is not clear which is meant
            found.add(frozenset(leaf for leaf, number in listed.items() if number == 1))
        return list(found)

    def _settle_versions(self) -> None:
        """Join versions of axes that were also used where the outer factor was not selected from.

        They stay apart only if the axis always stood beside that factor: then nothing was done
        to all versions alike.
        """
        while True:
            sets = self._sets()
            for axis in _with_versions(self.together):
                for outer in {find(along) for along, _ in axis.versions}:
                    beside = all(outer in one for one in sets if axis in one)
                    apart = axis.kind == outer.kind == "leaf" and beside and not axis.fixed
                    if not (apart and outer.fixed and self._in_order(outer, axis)):
                        algebra.join_versions(axis, outer)
                        break
                else:
                    continue
                break
            else:
                return

    def _in_order(self, outer: Axis, axis: Axis) -> bool:
        """Whether an axis is in the state only as an inner factor of the outer one."""
        for dim in (dim for own in self.state.values() for dim in own):
            for factors, _ in _pieces([dim]):
                if axis in factors and outer not in factors[: factors.index(axis)]:
                    return False
        return True

    def _within(self) -> dict[Axis, list[Axis]]:
        """The free axes of the state, each with the axes for each of whose units it may differ.

        They are outer factors that stood beside it wherever it was seen.
        """
        tensors = [[_pieces([dim], versions=True) for dim in own] for own in self.state.values()]
        beside: dict[Axis, frozenset[Axis]] = {}
        for one in self._sets():
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
            within[axis] = [
                one for one in outer if all(far in outer for far in within.get(one, ()))
            ]
        for outer in within.values():
            outer.sort(key=lambda one: len(within.get(one, ())))
        return within

    def refuse(self, operation: str, axes: Sequence[Axes]) -> None:
        """Raise if weights run along axes that an unknown operation takes."""
        units = {leaf for one in axes for axis in one for leaf in leaves(axis) if not leaf.fixed}
        touched = [
            f"{name}[{dim}]"
            for name, own in self.state.items()
            for dim, axis in enumerate(own)
            if units & set(leaves(axis))
        ]
        if touched:
            raise ValueError(
                f"tracing cannot follow the operation {operation} in {self.modules[-1]!r}: it "
                f"takes units of {', '.join(touched[:5])}, and how it treats them is not known. "
                f"{_BY_HAND}"
            )

    def beside(self, axes: Sequence[Axis]) -> None:
        """Note axes that are side by side in an operation, without others of their tensors."""
        self.together.append(tuple(axes))


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


# --- what operations do to axes -------------------------------------------------------------------
# Each rule takes the trace, the arguments by name and the outputs, and gives the axes of outputs;
# outputs that a rule says nothing about are fixed.

Arguments = Mapping[str, Any]
Rule = Callable[[_Trace, Arguments, list[Tensor]], list[Axes]]


def _fixed(tensor: Tensor) -> Axes:
    return tuple(Axis(size, fixed=True) for size in tensor.shape)


def _free(tensor: Tensor) -> Axes:
    """Axes along which all values are equal, so that any permutation does nothing."""
    axes = tuple(Axis(size) for size in tensor.shape)
    for axis in axes:
        axis.outer = [one for one in axes if one is not axis]
    return axes


def _constant(tensor: Tensor) -> Axes:
    """Free axes, fixed where values differ."""
    axes = _free(tensor)
    for dim, axis in enumerate(axes):
        first = tensor.narrow(dim, 0, min(1, axis.size))
        axis.fixed = not torch.equal(tensor, first.expand_as(tensor))
    return axes


def _unknown(operation: str) -> Rule:
    def rule(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
        inputs = [trace.of(t) for t in tree_leaves(dict(a)) if isinstance(t, Tensor)]
        trace.refuse(operation, inputs)
        for axis in (axis for axes in inputs for axis in axes):
            fix(axis)
        return []

    return rule


def _broadcast(trace: _Trace, all_axes: Sequence[Axes]) -> Axes:
    """One axis for each dimension of tensors that are broadcast together."""
    ndim = max((len(axes) for axes in all_axes), default=0)
    full = [(*(Axis(1) for _ in range(ndim - len(axes))), *axes) for axes in all_axes]
    result = []
    for column in zip(*full, strict=True):
        wide = [axis for axis in column if find(axis).size != 1]
        for axis in wide[1:]:
            unify(wide[0], axis)
        result.append(wide[0] if wide else Axis(1))
    for one, other in combinations(full, 2):
        both = [(find(x), find(y)) for x, y in zip(one, other, strict=True)]
        if any((x.size == 1) != (y.size == 1) for x, y in both):
            trace.beside([x for x, y in both if x.size > 1 and y.size > 1])
    return tuple(result)


def _pointwise(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = [trace.of(t) for t in tree_leaves(dict(a)) if isinstance(t, Tensor)]
    whole = _broadcast(trace, axes)
    return [whole[len(whole) - output.ndim :] for output in outputs]


def _like_first(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    """The same axes as the first argument, such as a softmax."""
    return [trace.of(_first(a))]


def _unconnected(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    return [_free(output) for output in outputs]


def _first(a: Arguments) -> Tensor:
    return next(t for t in tree_leaves(dict(a)) if isinstance(t, Tensor))


def _mixed_along(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    """Values along `dim` (or `dims`) are put in relation to each other, as by a softmax."""
    axes = trace.of(a["self"])
    mixed = _dims(a.get("dim", a.get("dims")), len(axes))
    trace.beside([axis for d, axis in enumerate(axes) if d not in mixed])
    return [axes] * len(outputs)


def _fixing_along(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    """An order matters along `dim` (or `dims`): cumulative sums, flips, sorting."""
    axes = trace.of(a["self"])
    for dim in _dims(a.get("dim", a.get("dims")), len(axes)):
        fix(axes[dim])
    return _mixed_along(trace, a, outputs)


def _fixing_all(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    for tensor in (t for t in tree_leaves(dict(a)) if isinstance(t, Tensor)):
        for axis in trace.of(tensor):
            fix(axis)
    return []


def _dims(dim: Any, ndim: int) -> list[int]:
    """Dimensions as non-negative numbers; None and an empty list are all of them."""
    if dim is None or dim == []:
        return list(range(ndim))
    listed = [dim] if isinstance(dim, int) else list(dim)
    return [d % ndim if ndim else 0 for d in listed]


def _reduced(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = trace.of(a["self"])
    gone = set(_dims(a.get("dim"), len(axes)))
    if a.get("keepdim"):
        left = tuple(Axis(1) if d in gone else axis for d, axis in enumerate(axes))
    else:
        left = tuple(axis for d, axis in enumerate(axes) if d not in gone)
    return [left] * len(outputs)


def _reduced_to_index(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    """A reduction that tells the place of what it found, as `max` along a dimension."""
    if "dim" in a or len(outputs) > 1 or not outputs[0].is_floating_point():
        _fixing_along(trace, {"self": a["self"], "dim": a.get("dim")}, outputs)
    return _reduced(trace, a, outputs)


def _topk(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = list(_fixing_along(trace, a, outputs)[0])
    dim = _dims(a["dim"], len(axes))[0]
    axes[dim] = Axis(outputs[0].shape[dim], fixed=True)
    return [tuple(axes)] * 2


# products


def _contracted(trace: _Trace, x: Axes, y: Axes) -> Axes:
    """The matrix product (..., i, k) @ (..., k, j), with the same leading dimensions."""
    *batch, i, k = x
    *other, same, j = y
    for one, two in zip((*batch, k), (*other, same), strict=True):
        unify(one, two)
    for alone in (i, j, k):
        trace.beside((*batch, alone))
    return (*batch, i, j)


def _mm(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    return [_contracted(trace, trace.of(a["self"]), trace.of(a["mat2"]))]


def _addmm(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    x, y = (a["mat1"], a["mat2"]) if "mat1" in a else (a["batch1"], a["batch2"])
    return [_broadcast(trace, [_contracted(trace, trace.of(x), trace.of(y)), trace.of(a["self"])])]


def _mv(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    matrix, vector = (a["mat"], a["vec"]) if "mat" in a else (a["self"], a["vec"])
    result = _contracted(trace, trace.of(matrix), (*trace.of(vector), Axis(1)))[:1]
    return [_broadcast(trace, [result, trace.of(a["self"])]) if "mat" in a else result]


def _dot(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    x, y = trace.of(a["self"]), trace.of(a["tensor"])
    _contracted(trace, (Axis(1), *x), (*y, Axis(1)))
    return [()]


def _linear(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    *batch, inputs = trace.of(a["input"])
    out, own = trace.of(a["weight"])
    result = (*batch, _contracted(trace, (Axis(1), inputs), (own, out))[1])
    return [
        _broadcast(trace, [result, trace.of(a["bias"])]) if a.get("bias") is not None else result
    ]


def _convolution(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    """A convolution sees units group by group: each group has inputs and outputs of its own."""
    batch, channels, *space = trace.of(a["input"])
    first, second, *kernel = trace.of(a["weight"])
    for axis in (*space, *kernel):
        fix(axis)
    num = a["groups"]
    group, inside = algebra.regroup([first], [num, find(first).size // num])
    if a["transposed"]:
        unify(channels, first)
        trace.beside((group, inside))
        out = algebra.product([group, second])
    else:
        of_input, inputs = algebra.regroup([channels], [num, find(channels).size // num])
        unify(of_input, group)
        unify(inputs, second)
        trace.beside((group, second))
        out = first
    if a.get("bias") is not None:
        unify(trace.of(a["bias"])[0], out)
    return [(batch, out, *_fixed(outputs[0])[2:])]


# normalisation


def _along_channels(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = trace.of(a["input"])
    for name in ("weight", "bias", "running_mean", "running_var"):
        if a.get(name) is not None:
            unify(axes[1], trace.of(a[name])[0])
    trace.beside(axes[1:2])
    return [axes]


def _group_norm(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = trace.of(a["input"])
    size = find(axes[1]).size
    if 1 < a["group"] < size:
        algebra.regroup([axes[1]], [a["group"], size // a["group"]])
    return _along_channels(trace, a, outputs)


def _layer_norm(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = trace.of(a["input"])
    inner = axes[len(axes) - len(a["normalized_shape"]) :]
    for name in ("weight", "bias"):
        if a.get(name) is not None:
            _broadcast(trace, [inner, trace.of(a[name])])
    trace.beside(axes[: len(axes) - len(inner)])
    return [axes]


def _weight_norm(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    return [_broadcast(trace, [trace.of(a["v"]), trace.of(a["g"])])]


# lookups


def _embedding(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    rows, features = trace.of(a["weight"])
    fix(rows)
    return [(*trace.of(a["indices"]), features)]


def _index_select(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = list(_fixing_along(trace, a, outputs)[0])
    dim = _dims(a["dim"], len(axes))[0]
    axes[dim] = Axis(outputs[0].shape[dim], fixed=True)
    return [tuple(axes)]


def _index(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes, indices = trace.of(a["self"]), list(a["indices"])
    used = [d for d, index in enumerate(indices) if index is not None]
    given = [indices[d] for d in used]
    if any(index.dtype in (torch.bool, torch.uint8) for index in given):
        return _fixing_all(trace, a, outputs)
    for dim in used:
        fix(axes[dim])
    for axis in (axis for index in given for axis in trace.of(index)):
        fix(axis)
    shape = torch.broadcast_shapes(*(index.shape for index in given))
    place = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    kept = [axis for dim, axis in enumerate(axes) if dim not in used]
    trace.beside(kept)
    return [(*kept[:place], *(Axis(size, fixed=True) for size in shape), *kept[place:])]


# shapes


def _view(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    if not outputs[0].numel():
        return _fixing_all(trace, a, outputs)
    return [tuple(algebra.regroup(trace.of(a["self"]), outputs[0].shape))]


def _restrided(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    """Other strides for the same shape, as pooling to one pixel asks for."""
    axes = trace.of(a["self"])
    if [find(axis).size for axis in axes] == list(a["size"]):
        return [axes]
    return _unknown("aten.as_strided")(trace, a, outputs)


def _permuted(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = trace.of(a["self"])
    return [tuple(axes[dim] for dim in _dims(a["dims"], len(axes)))]


def _transposed(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = list(trace.of(a["self"]))
    if len(axes) > 1:
        x, y = _dims([a.get("dim0", 0), a.get("dim1", 1)], len(axes))
        axes[x], axes[y] = axes[y], axes[x]
    return [tuple(axes)]


def _squeezed(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = trace.of(a["self"])
    dims = _dims(a.get("dim"), len(axes))
    return [tuple(x for d, x in enumerate(axes) if d not in dims or find(x).size != 1)]


def _unsqueezed(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = list(trace.of(a["self"]))
    axes.insert(_dims(a["dim"], len(axes) + 1)[0], Axis(1))
    return [tuple(axes)]


def _expanded(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    return [_broadcast(trace, [trace.of(a["self"]), _free(outputs[0])])]


def _repeated(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = trace.of(a["self"])
    full = [*(Axis(1) for _ in range(outputs[0].ndim - len(axes))), *axes]
    return [
        tuple(algebra.product([Axis(num), x]) for num, x in zip(a["repeats"], full, strict=True))
    ]


def _selected(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = trace.of(a["self"])
    dim = _dims(a["dim"], len(axes))[0]
    index = range(find(axes[dim]).size)[a["index"]]
    return [tuple(algebra.select(axes, dim, index))]


def _unbound(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    indices = range(len(outputs))
    return [_selected(trace, {**a, "index": index}, outputs)[0] for index in indices]


def _sliced(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = trace.of(a["self"])
    dim = _dims(a["dim"], len(axes))[0]
    size = find(axes[dim]).size
    start, _, step = slice(a["start"], a["end"], a["step"]).indices(size)
    if step != 1:
        fix(axes[dim])
    return [_between(axes, dim, start, start + outputs[0].shape[dim])]


def _between(axes: Axes, dim: int, start: int, stop: int) -> Axes:
    """The axes of a tensor between two places along a dimension."""
    size = find(axes[dim]).size
    if stop - start == 1 < size:
        left = algebra.select(axes, dim, start)
        return (*left[:dim], Axis(1), *left[dim:])
    if all(leaf.fixed for leaf in leaves(axes[dim])):
        part = axes[dim] if stop - start == size else Axis(stop - start, fixed=True)
    else:
        part = algebra.cut(axes[dim], start, stop)
    return (*axes[:dim], part, *axes[dim + 1 :])


def _parted(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = trace.of(a["self"])
    dim = _dims(a["dim"], len(axes))[0]
    stops = np.cumsum([output.shape[dim] for output in outputs]).tolist()
    return [
        _between(axes, dim, start, stop) for start, stop in zip([0, *stops], stops, strict=False)
    ]


def _joined(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    tensors = [t for t in a["tensors"] if t.shape != (0,)]
    dim = _dims(a["dim"], outputs[0].ndim)[0]
    parts = [trace.of(t) for t in tensors]
    others = _broadcast(trace, [(*axes[:dim], Axis(1), *axes[dim + 1 :]) for axes in parts])
    for axes in parts:
        trace.beside([axis for d, axis in enumerate(axes) if d != dim])
    whole = algebra.concatenation([axes[dim] for axes in parts])
    return [(*others[:dim], whole, *others[dim + 1 :])]


def _stacked(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    """Axes that are stacked need not be alike: they are versions of the axis of the stack."""
    dim = _dims(a["dim"], outputs[0].ndim)[0]
    along = Axis(len(a["tensors"]), fixed=True)
    axes = []
    for column in zip(*(trace.of(t) for t in a["tensors"]), strict=True):
        axes.append(find(column[0]))
        if len(set(map(find, column))) > 1:
            axes[-1] = Axis(find(column[0]).size, outer=[along])
            axes[-1].versions = {(along, index): axis for index, axis in enumerate(column)}
            if any(leaf.fixed for axis in column for leaf in leaves(axis)):
                algebra.join_versions(axes[-1], along)
    axes.insert(dim, along)
    return [tuple(axes)]


def _shuffled(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    batch, channels, *space = trace.of(a["self"])
    size = find(channels).size // a["groups"]
    group, within = algebra.regroup([channels], [a["groups"], size])
    return [(batch, algebra.product([within, group]), *space)]


def _pixels_to_channels(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    """Pixels become inner factors of the channels, which have an order then."""
    axes = trace.of(a["self"])
    num = len(axes) - 3
    fixed = _fixed(outputs[0])
    factor = outputs[0].shape[num] // find(axes[num]).size
    trace.beside(axes[: num + 1])
    channels = algebra.product([axes[num], Axis(factor, fixed=True)])
    return [(*axes[:num], channels, *fixed[num + 1 :])]


def _channels_to_pixels(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = trace.of(a["self"])
    num = len(axes) - 3
    channels, inner = algebra.regroup(
        [axes[num]], [outputs[0].shape[num], a["upscale_factor"] ** 2]
    )
    fix(inner)
    trace.beside((*axes[:num], channels))
    return [(*axes[:num], channels, *_fixed(outputs[0])[num + 1 :])]


def _padded(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = list(trace.of(a["self"]))
    pads = list(a["pad"])
    for dim, (low, high) in enumerate(zip(pads[::2], pads[1::2], strict=True), start=1):
        if (low, high) == (0, 0):
            continue
        size = outputs[0].shape[-dim]
        if all(leaf.fixed for leaf in leaves(axes[-dim])):
            axes[-dim] = Axis(size, fixed=True)
        else:
            part = algebra.cut(axes[-dim], max(-low, 0), find(axes[-dim]).size + min(high, 0))
            new = [Axis(max(low, 0)), part, Axis(max(high, 0))]
            axes[-dim] = algebra.concatenation(new)
    return [tuple(axes)]


def _halved(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    """A gated linear unit: the first half times a function of the second."""
    axes = trace.of(a["self"])
    dim = _dims(a["dim"], len(axes))[0]
    size = find(axes[dim]).size // 2
    halves = [_between(axes, dim, start, start + size) for start in (0, size)]
    return [_broadcast(trace, halves)]


def _spatial(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    """Pooling and resizing: the last dimensions have an order, the leading ones are kept."""
    axes = trace.of(_first(a))
    kept = [d for d, axis in enumerate(axes[:2]) if len(axes) > 2 or d == 0]
    for axis in axes[len(kept) :]:
        fix(axis)
    trace.beside(axes[: len(kept)])
    return [(*(axes[d] for d in kept), *_fixed(output)[len(kept) :]) for output in outputs]


def _copied(trace: _Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    _broadcast(trace, [trace.of(a["self"]), trace.of(a["src"])])
    return [trace.of(a["self"])]


def _rules(*rules: tuple[Rule, str]) -> dict[str, Rule]:
    return {name: rule for rule, names in rules for name in names.split()}


_RULES = _rules(
    (_pointwise, "_prelu_kernel hardswish log_sigmoid_forward rrelu_with_noise"),
    (_like_first, "clone detach alias _to_copy contiguous lift_fresh lift_fresh_copy fill zero"),
    (_mixed_along, "_softmax _log_softmax _safe_softmax"),
    (_unconnected, "zeros_like ones_like full_like empty_like new_zeros new_ones new_full "
                   "new_empty"),
    (_reduced, "sum mean amax amin prod var std var_mean std_mean logsumexp norm all any nansum "
               "linalg_vector_norm"),
    (_reduced_to_index, "max min argmax argmin median mode"),
    (_topk, "topk kthvalue"),
    (_fixing_along, "cumsum cumprod cummax cummin logcumsumexp flip roll sort argsort"),
    (_fixing_all, "gather scatter scatter_add index_put index_add tril triu diagonal diag_embed "
                  "nonzero _local_scalar_dense"),
    (_mm, "mm bmm"),
    (_addmm, "addmm baddbmm"),
    (_mv, "mv addmv"),
    (_dot, "dot"),
    (_linear, "linear"),
    (_convolution, "convolution _convolution"),
    (_along_channels, "native_batch_norm _native_batch_norm_legit_no_training "
                      "_native_batch_norm_legit batch_norm cudnn_batch_norm"),
    (_group_norm, "native_group_norm"),
    (_layer_norm, "native_layer_norm _fused_rms_norm"),
    (_weight_norm, "_weight_norm_interface"),
    (_embedding, "embedding"),
    (_index_select, "index_select"),
    (_index, "index"),
    (_view, "view _unsafe_view reshape _reshape_alias unflatten"),
    (_restrided, "as_strided"),
    (_permuted, "permute"),
    (_transposed, "t transpose"),
    (_squeezed, "squeeze"),
    (_unsqueezed, "unsqueeze"),
    (_expanded, "expand"),
    (_repeated, "repeat"),
    (_selected, "select"),
    (_unbound, "unbind"),
    (_sliced, "slice"),
    (_parted, "split split_with_sizes unsafe_split unsafe_split_with_sizes"),
    (_shuffled, "channel_shuffle native_channel_shuffle"),
    (_channels_to_pixels, "pixel_shuffle"),
    (_pixels_to_channels, "pixel_unshuffle im2col"),
    (_joined, "cat"),
    (_stacked, "stack"),
    (_padded, "constant_pad_nd"),
    (_halved, "glu"),
    (_spatial, "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices "
               "avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d "
               "adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d "
               "upsample_nearest1d upsample_nearest2d "
               "upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d "
               "upsample_trilinear3d reflection_pad1d reflection_pad2d reflection_pad3d "
               "replication_pad1d replication_pad2d replication_pad3d"),
    (_copied, "copy"),
)  # fmt: skip
