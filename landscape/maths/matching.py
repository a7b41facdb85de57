"""Which units of one network are those of another? Linear assignments, one group after the other.

Two networks are lists of arrays of the same shapes; along some axes the units of the second may be
permuted. The permutations that make the sum of products largest are sought, which are those that
make the squared distance smallest. For a single group that is a linear assignment problem; for
several it is hard, and is climbed group by group (Ainsworth et al. 2022, algorithm 1).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Block:
    """Two arrays of one shape to be made alike; `axes` names the group along each axis, or None."""

    a: Tensor
    b: Tensor
    axes: tuple[str | None, ...]


@dataclass(frozen=True)
class Units:
    """The size of a group, and the groups for each of whose units it is permuted anew.

    A group that is `fixed` is never permuted.
    """

    size: int
    within: tuple[str, ...] = ()
    fixed: bool = False


@dataclass(frozen=True, eq=False)
class Matching:
    """The best permutations that were found, and the sum of products after each sweep.

    `values[s]` belongs to start s, its first entry to the order in which that start began.
    """

    permutations: dict[str, Indices]
    values: list[list[float]]
    best: int


def assignment(gain: Array) -> Indices:
    """The permutation p with the largest sum of gain[..., i, p[..., i]], for a stack of matrices.

    Raises `ValueError` if the gains are not finite.
    """
    if not np.isfinite(gain).all():
        raise ValueError("units cannot be matched: the gains are not finite; look for NaN in the "
                         "weights or activations")  # fmt: skip
    flat = gain.reshape(-1, *gain.shape[-2:])
    rows = [linear_sum_assignment(one, maximize=True)[1] for one in flat]
    return np.array(rows, np.int64).reshape(gain.shape[:-1])


def nested_assignment(outer: Array, inner: Sequence[Array]) -> tuple[Indices, list[Indices]]:
    """The best assignment of heads together with that of the dimensions inside of them.

    `outer` (n, n) are the gains of matching head i with head j whatever is inside; each of `inner`
    (n, n, m, m) adds the gains of matching dimension k of i with dimension l of j. For each pair of
    heads the inner optimum comes first, then the outer one. Returns the permutation (n,) of heads
    and, for each of `inner`, those of the dimensions (n, m).
    """
    total, chosen = outer.copy(), []
    for gain in inner:
        best = assignment(gain)
        chosen.append(best)
        total += np.take_along_axis(gain, best[..., None], axis=-1).sum((-2, -1))
    heads = assignment(total)
    return heads, [best[np.arange(len(heads)), heads] for best in chosen]


def match(
    blocks: Iterable[Block],
    groups: Mapping[str, Units],
    *,
    starts: int = 3,
    seed: int = 0,
    tolerance: float = 1e-7,
    max_sweeps: int = 100,
    progress: Callable[[], object] = lambda: None,
) -> Matching:
    """Permutations of the groups of `b` that make the sum over all blocks of a * b largest.

    The first start goes outwards from what is known: each group is first matched by the blocks that
    hold no other group that is not yet matched. The others start from the identity. From there,
    sweeps visit the groups in random order and accept what increases the sum, until a sweep gains
    less than `tolerance` times |a| |b|. The best of all starts is returned; convergence to the
    global optimum is not promised. `progress` is called after each sweep.
    """
    search = _Search(dict(groups), [_arranged(block) for block in blocks])
    scale = search.scale()
    rng = np.random.default_rng(seed)
    results = []
    for start in range(starts):
        one = search.copy()
        if start == 0:
            one.go_outwards()
        values = [one.value()]
        while len(values) <= max_sweeps:
            one.sweep(rng.permutation(one.movable))
            values.append(one.value())
            progress()
            if values[-1] - values[-2] <= tolerance * scale:
                break
        results.append((values, one.total))
    best = max(range(starts), key=lambda start: results[start][0][-1])
    return Matching(results[best][1], [values for values, _ in results], best)


def compose(
    first: Mapping[str, Indices], second: Mapping[str, Indices], groups: Mapping[str, Units]
) -> dict[str, Indices]:
    """The permutations that apply `first`, then `second`; groups not in `second` stay."""
    result = {}
    for name, array in first.items():
        names = [*groups[name].within, name]
        grid: dict[str, Indices] = dict(zip(names, np.indices(array.shape), strict=True))
        old = [_source(one, grid, second, groups) for one in names]
        result[name] = array[tuple(old)]
    return result


def _source(
    name: str,
    units: Mapping[str, Indices],
    permutations: Mapping[str, Indices],
    groups: Mapping[str, Units],
) -> Indices:
    """Where units come from: those of a group, at the given units of what it is within."""
    if name not in permutations:
        return units[name]
    return permutations[name][(*(units[one] for one in groups[name].within), units[name])]


def _arranged(block: Block) -> Block:
    """A block whose named axes come first, with all others as one last axis."""
    named = [k for k, name in enumerate(block.axes) if name is not None]
    rest = [k for k, name in enumerate(block.axes) if name is None]
    shape = [block.a.shape[k] for k in named]
    a, b = (t.permute(*named, *rest).reshape(*shape, -1) for t in (block.a, block.b))
    return Block(a, b, tuple(block.axes[k] for k in named))


@dataclass(eq=False)
class _Search:
    """Where the ascent is: blocks with `b` as permuted so far, and the permutations so far."""

    groups: dict[str, Units]
    blocks: list[Block]
    total: dict[str, Indices] = field(default_factory=dict)
    changes: int = 0
    changed: dict[int, int] = field(default_factory=dict)  # block: the last change it saw
    visited: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.movable = [name for name, units in self.groups.items() if not units.fixed]
        if not self.total:
            for name in self.movable:
                units = self.groups[name]
                shape = (*(self.groups[one].size for one in units.within), units.size)
                self.total[name] = np.broadcast_to(np.arange(units.size), shape).copy()

    def copy(self) -> "_Search":
        return _Search(self.groups, list(self.blocks))

    def scale(self) -> float:
        squares = [sum(float(t.square().sum()) for t in ts) for ts in zip(
            *((block.a, block.b) for block in self.blocks), strict=True)] or [0.0]  # fmt: skip
        return float(np.prod(squares)) ** 0.5

    def value(self, numbers: Iterable[int] | None = None) -> float:
        """The sum of products over some blocks, or over all."""
        chosen = range(len(self.blocks)) if numbers is None else numbers
        pairs = (self.blocks[number] for number in chosen)
        return sum(float((block.a * block.b).sum()) for block in pairs)

    def go_outwards(self) -> None:
        """Match each group by the blocks in which all others are known."""
        tops = [name for name in self.movable if not self._movable_within(name)]
        done: set[str] = set()
        while len(done) < len(self.movable):
            left = [name for name in tops if name not in done]
            known = {name: self._known(name, done) for name in left}
            weight = {name: sum(self.blocks[n].a.numel() for n in known[name]) for name in left}
            best = max(left, key=lambda name: weight[name])
            family = [best, *self._inside(best)]
            numbers = known[best] or self._with(family)
            self._apply(self._nested(best, numbers) if numbers else {})
            done.update(family)

    def sweep(self, order: Iterable[str]) -> None:
        """Visit groups one after the other; what does not increase the sum is not done."""
        for name in map(str, order):
            numbers = self._with([name, *self._inside(name)])
            if self.visited.get(name, -1) >= max(
                (self.changed.get(n, 0) for n in numbers), default=0
            ):
                continue
            whole = not self._movable_within(name)
            step = self._nested(name, numbers) if whole else self._plain(name, numbers)
            if any((array != np.arange(array.shape[-1])).any() for array in step.values()):
                before = self.value(numbers)
                kept = list(self.blocks), dict(self.total), dict(self.changed)
                self._apply(step)
                if self.value(numbers) <= before + 1e-12 * abs(before):
                    self.blocks, self.total, self.changed = kept
            self.visited[name] = self.changes

    def _movable_within(self, name: str) -> list[str]:
        return [one for one in self.groups[name].within if not self.groups[one].fixed]

    def _inside(self, name: str) -> list[str]:
        return [one for one in self.movable if name in self.groups[one].within]

    def _with(self, names: Iterable[str]) -> list[int]:
        """The numbers of the blocks that hold any of the groups."""
        wanted = set(names)
        return [number for number, block in enumerate(self.blocks) if wanted & set(block.axes)]

    def _known(self, name: str, done: set[str]) -> list[int]:
        """The blocks with a group in which, but for what is inside it, all others are done."""
        family = {name, *self._inside(name)}
        found = []
        for number in self._with(family):
            axes = self.blocks[number].axes
            others = [one for one in axes if one not in family and one in self.movable]
            if all(one in done for one in others) and axes.count(name) <= 1:
                found.append(number)
        return found

    def _plain(self, name: str, numbers: Iterable[int]) -> dict[str, Indices]:
        """The best permutation of a group alone; what is inside moves along as it is."""
        return {name: assignment(self._gain(name, numbers))}

    def _gain(self, name: str, numbers: Iterable[int]) -> Array:
        """The gain of unit j in the place of unit i, (..., size, size)."""
        units = self.groups[name]
        gain = np.zeros((*(self.groups[one].size for one in units.within), units.size, units.size))
        for number in numbers:
            block = self.blocks[number]
            for axis in (k for k, one in enumerate(block.axes) if one == name):
                lead = [_nearest(block.axes, one, axis) for one in units.within]
                gain += _products(block, [*lead, axis], len(lead))
        return gain

    def _nested(self, name: str, numbers: Sequence[int]) -> dict[str, Indices]:
        """The best permutation of a group together with those of the groups inside of it."""
        inside = self._inside(name)
        if not inside:
            return self._plain(name, numbers)
        axes = {number: self.blocks[number].axes for number in numbers}
        if self.groups[name].within or any(one.count(name) != 1 for one in axes.values()):
            return self._plain(name, numbers)
        outer = [n for n in numbers if not set(inside) & set(axes[n])]
        others = [n for n in numbers if set(inside) & set(axes[n])]
        gain = self._gain(name, outer)
        if any(sum(one in inside for one in axes[n]) > 1 for n in others):
            return self._pair_by_pair(name, gain, others)
        inner = []
        for one in inside:
            size, m = self.groups[name].size, self.groups[one].size
            total = np.zeros((size, size, m, m))
            for number in (n for n in others if one in axes[n]):
                pair = [axes[number].index(name), axes[number].index(one)]
                joint = _products(self.blocks[number], pair, 0)
                total += joint.reshape(size, m, size, m).transpose(0, 2, 1, 3)
            inner.append(total)
        heads, chosen = nested_assignment(gain, inner)
        return {name: heads, **dict(zip(inside, chosen, strict=True))}

    def _pair_by_pair(self, name: str, outer: Array, numbers: Sequence[int]) -> dict[str, Indices]:
        """As `_nested` where blocks hold several inner groups: each pair of units is a search."""
        inside = self._inside(name)
        groups = {
            one: replace(units, within=tuple(w for w in units.within if w != name))
            for one, units in self.groups.items()
            if one != name
        }
        groups = {
            one: units if one in inside else replace(units, fixed=True)
            for one, units in groups.items()
        }
        blocks = [self.blocks[number] for number in numbers]
        places = [block.axes.index(name) for block in blocks]
        gain = outer.copy()
        found = {}
        for i, j in np.ndindex(*gain.shape):
            parts = [
                Block(
                    block.a.select(k, i), block.b.select(k, j), block.axes[:k] + block.axes[k + 1 :]
                )
                for block, k in zip(blocks, places, strict=True)
            ]
            one = _Search(groups, parts)
            one.go_outwards()
            one.sweep(one.movable)
            gain[i, j] += one.value()
            found[i, j] = one.total
        units = assignment(gain)
        chosen = [found[i, j] for i, j in enumerate(units.tolist())]
        return {name: units} | {one: np.stack([c[one] for c in chosen]) for one in inside}

    def _apply(self, step: Mapping[str, Indices]) -> None:
        """Permute `b` further."""
        self.changes += 1
        self.total = compose(self.total, step, self.groups)
        for number in self._with(step):
            block = self.blocks[number]
            self.blocks[number] = replace(block, b=_permuted(block, step, self.groups))
            self.changed[number] = self.changes


def _products(block: Block, axes: Sequence[int], lead: int) -> Array:
    """Sums of products over all but the given axes: (*lead, n, n), n the size of the others."""
    rest = [k for k in range(block.a.ndim) if k not in axes]
    shape = [block.a.shape[k] for k in axes]
    n = int(np.prod(shape[lead:]))
    a, b = (t.permute(*axes, *rest).reshape(*shape[:lead], n, -1) for t in (block.a, block.b))
    return (a @ b.mT).double().cpu().numpy()


def _permuted(block: Block, step: Mapping[str, Indices], groups: Mapping[str, Units]) -> Tensor:
    b = block.b
    names = [one for one in block.axes if one in step]
    if not any(groups[one].within for one in names if one is not None):
        for axis, one in enumerate(block.axes):
            if one in step:
                b = b.index_select(axis, torch.as_tensor(step[one], device=b.device))  # type: ignore[index]
        return b
    grid = np.indices(b.shape[:-1], sparse=True)
    indices = []
    for axis, one in enumerate(block.axes):
        assert one is not None
        units = {w: grid[_nearest(block.axes, w, axis)] for w in groups[one].within}
        index = _source(one, {**units, one: grid[axis]}, step, groups)
        indices.append(torch.as_tensor(np.ascontiguousarray(index), device=b.device))
    return b[tuple(indices)]


def _nearest(axes: Sequence[str | None], name: str, axis: int) -> int:
    """The axis of a group that belongs to another axis: the last before it, else the first."""
    places: Iterator[int] = (k for k, one in enumerate(axes) if one == name)
    found = list(places)
    return max((k for k in found if k < axis), default=found[0])
