"""How do the dimensions of tensors fit together? Axes that are unified, split and cut.

An axis is what a dimension ranges over: the units of a layer, the heads of an attention. Two
dimensions that must be permuted alike are one axis (`unify`). What is known of an axis only grows:
it may turn out to be a product of axes (channels = groups x channels within, as a `view` shows) or
a sum of axes one after the other (the gates of an LSTM, as `chunk` shows), or to be fixed.

Of a product the later factors may differ from index to index of an earlier one (the dimensions
within each head). Whether they do shows in the end only, so each axis keeps its `outer` factors;
and where one index of such a factor is selected, what is left is a `version` of the axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(eq=False)
class Axis:
    """A node of a union-find forest: a leaf, a product or a sum of axes, or a link to another."""

    size: int
    fixed: bool = False
    kind: str = "leaf"  # or "product", "sum", "link"
    parts: tuple[Axis, ...] = ()
    outer: list[Axis] = field(default_factory=list)
    versions: dict[tuple[Axis, int], Axis] = field(default_factory=dict)


def find(axis: Axis) -> Axis:
    """The axis that this one has become."""
    root = axis
    while root.kind == "link":
        root = root.parts[0]
    while axis is not root and axis.parts[0] is not root:
        axis.parts, axis = (root,), axis.parts[0]
    return root


def leaves(axis: Axis) -> Iterator[Axis]:
    """The leaves of an axis, in order, without those of size 1."""
    axis = find(axis)
    if axis.kind == "leaf":
        if axis.size > 1:
            yield axis
    else:
        for part in axis.parts:
            yield from leaves(part)


def fix(axis: Axis) -> None:
    """Allow the identity only."""
    for leaf in leaves(axis):
        leaf.fixed = True


def product(parts: Iterable[Axis]) -> Axis:
    """The product of axes, the first outermost."""
    flat = [factor for part in parts for factor in _factors(part)]
    if len(flat) == 1:
        return flat[0]
    for number, factor in enumerate(flat):
        for leaf in leaves(factor):
            leaf.outer += [one for one in flat[:number] if one not in leaf.outer]
    size = math.prod(factor.size for factor in flat)
    return Axis(size, kind="product", parts=tuple(flat)) if flat else Axis(1)


def concatenation(parts: Sequence[Axis]) -> Axis:
    """The sum of axes, one after the other."""
    flat = [segment for part in parts for segment in _segments(part) if segment.size]
    if len(flat) == 1:
        return flat[0]
    return Axis(sum(part.size for part in flat), kind="sum", parts=tuple(flat))


def unify(a: Axis, b: Axis) -> None:
    """Have two axes permuted alike. What does not fit together is fixed."""
    a, b = find(a), find(b)
    if a is b or a.size == 1:
        return
    if a.size != b.size:
        raise ValueError(f"axes of {a.size} and {b.size} units cannot be one")
    if a.kind == "leaf" or b.kind == "leaf":
        leaf, other = (a, b) if a.kind == "leaf" else (b, a)
        if leaf.fixed:
            fix(other)
        for one in leaves(other):
            one.outer += [axis for axis in leaf.outer if axis not in one.outer]
        leaf.kind, leaf.parts = "link", (other,)
        for (along, index), version in leaf.versions.items():
            same = _known_version(other, along, index)
            other.versions.setdefault((along, index), version)
            if same is not None:
                unify(version, same)
    elif a.kind == b.kind == "product":
        _unify_factors(a, b)
    elif a.kind == b.kind == "sum":
        _unify_segments(list(a.parts), list(b.parts))
    else:
        whole, segments = (a, b) if a.kind == "product" else (b, a)
        start = 0
        for segment in segments.parts:
            unify(cut(whole, start, start + segment.size), segment)
            start += segment.size


def regroup(axes: Iterable[Axis], sizes: Iterable[int]) -> list[Axis]:
    """Axes as a `view` with other sizes has them. Leaves are split where the view needs it.

    Where sizes do not divide each other, nothing can move.
    """
    left = [factor for axis in axes for factor in _factors(axis)]
    wanted = list(sizes)
    result: list[Axis] = []
    while wanted:
        taken: list[Axis] = []
        size = missing = wanted.pop(0)
        while missing > 1:
            factor = find(left.pop(0))
            if factor.kind == "product":
                left[:0] = factor.parts
            elif missing % factor.size == 0:
                taken.append(factor)
                missing //= factor.size
            elif factor.kind == "leaf" and factor.size % missing == 0:
                left[:0] = _split(factor, missing)
            else:
                taken.append(factor)
                result += _misfits(taken, [size], left, wanted)
                break
        else:
            result.append(product(taken))
    return result


def _misfits(
    taken: list[Axis], given: list[int], left: list[Axis], wanted: list[int]
) -> list[Axis]:
    """Fix all up to the place where both sides meet again; take it off `left` and `wanted`."""
    while (have := math.prod(axis.size for axis in taken)) != (need := math.prod(given)):
        if have < need:
            taken.append(left.pop(0))
        else:
            given.append(wanted.pop(0))
    for axis in taken:
        fix(axis)
    return [Axis(size, fixed=True) for size in given]


def cut(axis: Axis, start: int, stop: int) -> Axis:
    """The part of an axis from `start` to `stop`."""
    axis = find(axis)
    if (start, stop) == (0, axis.size):
        return axis
    if start >= stop:
        return Axis(0, fixed=True)
    if axis.kind == "leaf":
        bounds = [0, *([start] if start else []), stop, *([axis.size] if stop < axis.size else [])]
        widths = [after - before for before, after in pairwise(bounds)]
        axis.kind = "sum"
        axis.parts = tuple(Axis(width, axis.fixed, outer=list(axis.outer)) for width in widths)
        return axis.parts[1 if start else 0]
    if axis.kind == "product":
        first, rest = axis.parts[0], product(axis.parts[1:])
        if start % rest.size == 0 and stop % rest.size == 0:
            return product([cut(first, start // rest.size, stop // rest.size), rest])
        fix(axis)
        return Axis(stop - start, fixed=True)
    inside, position = [], 0
    for part in axis.parts:
        low, high = max(start - position, 0), min(stop - position, part.size)
        if low < high:
            inside.append(cut(part, low, high))
        position += part.size
    return concatenation(inside)


def select(axes: Sequence[Axis], dim: int, index: int) -> list[Axis]:
    """The axes of a tensor at one index of a dimension, which is fixed by that.

    Axes that are inner factors beside that dimension are versions of their own.
    """
    fix(axes[dim])
    chosen = find(axes[dim])
    others = [axis for place, axis in enumerate(axes) if place != dim]
    if chosen.kind != "leaf" or chosen.size == 1:
        return others
    return [version(axis, chosen, index) for axis in others]


def outer_factors(axis: Axis) -> list[Axis]:
    """The leaves that this leaf was ever an inner factor to."""
    factors = dict.fromkeys(factor for one in axis.outer for factor in _factors(one))
    return [factor for factor in factors if factor.kind == "leaf" and factor is not axis]


def has_versions(axis: Axis, outer: Axis) -> bool:
    """Whether an axis has versions of its own along an outer factor."""
    return any(find(along) is find(outer) for along, _ in find(axis).versions)


def join_versions(axis: Axis, outer: Axis) -> None:
    """Make the versions of an axis along an outer factor one with it again."""
    for along, index in [key for key in axis.versions if find(key[0]) is outer]:
        unify(axis.versions.pop((along, index)), axis)


def version(axis: Axis, outer: Axis, index: int) -> Axis:
    """What an axis is at one index of an outer factor; itself if that is no factor of it."""
    axis = find(axis)
    if axis.kind == "leaf":
        around = outer_factors(axis)
        if outer not in around or axis.fixed or axis.size == 1:
            return axis
        known = _known_version(axis, outer, index)
        if known is None:
            known = axis.versions[outer, index] = Axis(axis.size)
            known.outer = [version(one, outer, index) for one in around if one is not outer]
        return known
    parts = [version(part, outer, index) for part in axis.parts]
    return product(parts) if axis.kind == "product" else concatenation(parts)


def _known_version(axis: Axis, outer: Axis, index: int) -> Axis | None:
    for (along, number), version in axis.versions.items():
        if find(along) is find(outer) and number == index:
            return version
    return None


def _factors(axis: Axis) -> list[Axis]:
    axis = find(axis)
    if axis.kind == "product":
        return [factor for part in axis.parts for factor in _factors(part)]
    return [axis] if axis.size != 1 else []


def _segments(axis: Axis) -> list[Axis]:
    axis = find(axis)
    return [s for part in axis.parts for s in _segments(part)] if axis.kind == "sum" else [axis]


def _split(leaf: Axis, size: int) -> tuple[Axis, ...]:
    """A leaf as the product of an axis of that size and the rest."""
    first = Axis(size, leaf.fixed, outer=list(leaf.outer))
    rest = Axis(leaf.size // size, leaf.fixed, outer=[*leaf.outer, first])
    leaf.kind, leaf.parts = "product", (first, rest)
    return leaf.parts


def _unify_factors(a: Axis, b: Axis) -> None:
    left, right = _factors(a), _factors(b)
    while left and right:
        x, y = find(left.pop(0)), find(right.pop(0))
        if "product" in (x.kind, y.kind):
            left[:0], right[:0] = _factors(x), _factors(y)
        elif x.size == y.size:
            unify(x, y)
        elif x.size > y.size and x.size % y.size == 0 and x.kind == "leaf":
            left[:0], right[:0] = _split(x, y.size), (y,)
        elif y.size > x.size and y.size % x.size == 0 and y.kind == "leaf":
            left[:0], right[:0] = (x,), _split(y, x.size)
        else:
            fix(a)
            fix(b)
            return


def _unify_segments(left: list[Axis], right: list[Axis]) -> None:
    while left and right:
        x, y = find(left.pop(0)), find(right.pop(0))
        size = min(x.size, y.size)
        unify(cut(x, 0, size), cut(y, 0, size))
        if x.size > size:
            left.insert(0, cut(x, size, x.size))
        if y.size > size:
            right.insert(0, cut(y, size, y.size))
