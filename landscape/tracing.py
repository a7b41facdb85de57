"""What does each operation of a forward pass do to the units of a model?

`Trace` sees every operation with its tensors. Each dimension of a tensor has an axis
(`maths.axes`); the rule of an operation says which axes are one and the same, which are parts of
others, and which must stay in their order. An operation without a rule is refused by name.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from landscape.maths import axes as algebra
from landscape.maths.axes import Axis, find, fix, leaves, unify
from landscape.states import STATISTICS, tied_names

Axes = tuple[Axis, ...]

BY_HAND = (
    "Give the symmetries by hand instead, as symmetries={'name of a group': [('fc1.weight', 0), "
    "('fc1.bias', 0), ('fc2.weight', 1)], ...}: the dimensions that are permuted together."
)


class Trace(TorchDispatchMode):
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
        for names in names_of_parameters(model).values():
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
        return found + [fixed_axes(t) for t in outputs[len(found) :]]

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
                f"{BY_HAND}"
            )

    def beside(self, axes: Sequence[Axis]) -> None:
        """Note axes that are side by side in an operation, without others of their tensors."""
        self.together.append(tuple(axes))


def names_of_parameters(model: nn.Module) -> dict[str, list[str]]:
    """All names of each parameter, under its first one."""
    tied = {names[0]: names for names in tied_names(model)}
    return {name: tied.get(name, [name]) for name, _ in model.named_parameters()}


# --- what operations do to axes -------------------------------------------------------------------
# Each rule takes the trace, the arguments by name and the outputs, and gives the axes of outputs;
# outputs that a rule says nothing about are fixed.

Arguments = Mapping[str, Any]
Rule = Callable[[Trace, Arguments, list[Tensor]], list[Axes]]


def fixed_axes(tensor: Tensor) -> Axes:
    """Axes that stay in their order."""
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
    def rule(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
        inputs = [trace.of(t) for t in tree_leaves(dict(a)) if isinstance(t, Tensor)]
        trace.refuse(operation, inputs)
        for axis in (axis for axes in inputs for axis in axes):
            fix(axis)
        return []

    return rule


def _broadcast(trace: Trace, all_axes: Sequence[Axes]) -> Axes:
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


def _pointwise(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = [trace.of(t) for t in tree_leaves(dict(a)) if isinstance(t, Tensor)]
    whole = _broadcast(trace, axes)
    return [whole[len(whole) - output.ndim :] for output in outputs]


def _like_first(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    """The same axes as the first argument, such as a softmax."""
    return [trace.of(_first(a))]


def _unconnected(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    return [_free(output) for output in outputs]


def _first(a: Arguments) -> Tensor:
    return next(t for t in tree_leaves(dict(a)) if isinstance(t, Tensor))


def _mixed_along(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    """Values along `dim` (or `dims`) are put in relation to each other, as by a softmax."""
    axes = trace.of(a["self"])
    mixed = _dims(a.get("dim", a.get("dims")), len(axes))
    trace.beside([axis for d, axis in enumerate(axes) if d not in mixed])
    return [axes] * len(outputs)


def _fixing_along(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    """An order matters along `dim` (or `dims`): cumulative sums, flips, sorting."""
    axes = trace.of(a["self"])
    for dim in _dims(a.get("dim", a.get("dims")), len(axes)):
        fix(axes[dim])
    return _mixed_along(trace, a, outputs)


def _fixing_all(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
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


def _reduced(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = trace.of(a["self"])
    gone = set(_dims(a.get("dim"), len(axes)))
    if a.get("keepdim"):
        left = tuple(Axis(1) if d in gone else axis for d, axis in enumerate(axes))
    else:
        left = tuple(axis for d, axis in enumerate(axes) if d not in gone)
    return [left] * len(outputs)


def _reduced_to_index(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    """A reduction that tells the place of what it found, as `max` along a dimension."""
    if "dim" in a or len(outputs) > 1 or not outputs[0].is_floating_point():
        _fixing_along(trace, {"self": a["self"], "dim": a.get("dim")}, outputs)
    return _reduced(trace, a, outputs)


def _topk(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = list(_fixing_along(trace, a, outputs)[0])
    dim = _dims(a["dim"], len(axes))[0]
    axes[dim] = Axis(outputs[0].shape[dim], fixed=True)
    return [tuple(axes)] * 2


# products


def _contracted(trace: Trace, x: Axes, y: Axes) -> Axes:
    """The matrix product (..., i, k) @ (..., k, j), with the same leading dimensions."""
    *batch, i, k = x
    *other, same, j = y
    for one, two in zip((*batch, k), (*other, same), strict=True):
        unify(one, two)
    for alone in (i, j, k):
        trace.beside((*batch, alone))
    return (*batch, i, j)


def _mm(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    return [_contracted(trace, trace.of(a["self"]), trace.of(a["mat2"]))]


def _addmm(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    x, y = (a["mat1"], a["mat2"]) if "mat1" in a else (a["batch1"], a["batch2"])
    return [_broadcast(trace, [_contracted(trace, trace.of(x), trace.of(y)), trace.of(a["self"])])]


def _mv(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    matrix, vector = (a["mat"], a["vec"]) if "mat" in a else (a["self"], a["vec"])
    result = _contracted(trace, trace.of(matrix), (*trace.of(vector), Axis(1)))[:1]
    return [_broadcast(trace, [result, trace.of(a["self"])]) if "mat" in a else result]


def _dot(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    x, y = trace.of(a["self"]), trace.of(a["tensor"])
    _contracted(trace, (Axis(1), *x), (*y, Axis(1)))
    return [()]


def _linear(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    *batch, inputs = trace.of(a["input"])
    out, own = trace.of(a["weight"])
    result = (*batch, _contracted(trace, (Axis(1), inputs), (own, out))[1])
    return [
        _broadcast(trace, [result, trace.of(a["bias"])]) if a.get("bias") is not None else result
    ]


def _convolution(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
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
    return [(batch, out, *fixed_axes(outputs[0])[2:])]


# normalisation


def _along_channels(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = trace.of(a["input"])
    for name in ("weight", "bias", "running_mean", "running_var"):
        if a.get(name) is not None:
            unify(axes[1], trace.of(a[name])[0])
    trace.beside(axes[1:2])
    return [axes]


def _group_norm(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = trace.of(a["input"])
    size = find(axes[1]).size
    if 1 < a["group"] < size:
        algebra.regroup([axes[1]], [a["group"], size // a["group"]])
    return _along_channels(trace, a, outputs)


def _layer_norm(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = trace.of(a["input"])
    inner = axes[len(axes) - len(a["normalized_shape"]) :]
    for name in ("weight", "bias"):
        if a.get(name) is not None:
            _broadcast(trace, [inner, trace.of(a[name])])
    trace.beside(axes[: len(axes) - len(inner)])
    return [axes]


def _weight_norm(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    return [_broadcast(trace, [trace.of(a["v"]), trace.of(a["g"])])]


# lookups


def _embedding(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    rows, features = trace.of(a["weight"])
    fix(rows)
    return [(*trace.of(a["indices"]), features)]


def _index_select(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = list(_fixing_along(trace, a, outputs)[0])
    dim = _dims(a["dim"], len(axes))[0]
    axes[dim] = Axis(outputs[0].shape[dim], fixed=True)
    return [tuple(axes)]


def _index(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
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


def _view(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    if not outputs[0].numel():
        return _fixing_all(trace, a, outputs)
    return [tuple(algebra.regroup(trace.of(a["self"]), outputs[0].shape))]


def _restrided(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    """Other strides for the same shape, as pooling to one pixel asks for."""
    axes = trace.of(a["self"])
    if [find(axis).size for axis in axes] == list(a["size"]):
        return [axes]
    return _unknown("aten.as_strided")(trace, a, outputs)


def _permuted(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = trace.of(a["self"])
    return [tuple(axes[dim] for dim in _dims(a["dims"], len(axes)))]


def _transposed(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = list(trace.of(a["self"]))
    if len(axes) > 1:
        x, y = _dims([a.get("dim0", 0), a.get("dim1", 1)], len(axes))
        axes[x], axes[y] = axes[y], axes[x]
    return [tuple(axes)]


def _squeezed(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = trace.of(a["self"])
    dims = _dims(a.get("dim"), len(axes))
    return [tuple(x for d, x in enumerate(axes) if d not in dims or find(x).size != 1)]


def _unsqueezed(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = list(trace.of(a["self"]))
    axes.insert(_dims(a["dim"], len(axes) + 1)[0], Axis(1))
    return [tuple(axes)]


def _expanded(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    return [_broadcast(trace, [trace.of(a["self"]), _free(outputs[0])])]


def _repeated(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = trace.of(a["self"])
    full = [*(Axis(1) for _ in range(outputs[0].ndim - len(axes))), *axes]
    return [
        tuple(algebra.product([Axis(num), x]) for num, x in zip(a["repeats"], full, strict=True))
    ]


def _selected(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = trace.of(a["self"])
    dim = _dims(a["dim"], len(axes))[0]
    index = range(find(axes[dim]).size)[a["index"]]
    return [tuple(algebra.select(axes, dim, index))]


def _unbound(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    indices = range(len(outputs))
    return [_selected(trace, {**a, "index": index}, outputs)[0] for index in indices]


def _sliced(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
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


def _parted(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = trace.of(a["self"])
    dim = _dims(a["dim"], len(axes))[0]
    stops = np.cumsum([output.shape[dim] for output in outputs]).tolist()
    return [
        _between(axes, dim, start, stop) for start, stop in zip([0, *stops], stops, strict=False)
    ]


def _joined(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    tensors = [t for t in a["tensors"] if t.shape != (0,)]
    dim = _dims(a["dim"], outputs[0].ndim)[0]
    parts = [trace.of(t) for t in tensors]
    others = _broadcast(trace, [(*axes[:dim], Axis(1), *axes[dim + 1 :]) for axes in parts])
    for axes in parts:
        trace.beside([axis for d, axis in enumerate(axes) if d != dim])
    whole = algebra.concatenation([axes[dim] for axes in parts])
    return [(*others[:dim], whole, *others[dim + 1 :])]


def _stacked(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
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


def _shuffled(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    batch, channels, *space = trace.of(a["self"])
    size = find(channels).size // a["groups"]
    group, within = algebra.regroup([channels], [a["groups"], size])
    return [(batch, algebra.product([within, group]), *space)]


def _pixels_to_channels(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    """Pixels become inner factors of the channels, which have an order then."""
    axes = trace.of(a["self"])
    num = len(axes) - 3
    fixed = fixed_axes(outputs[0])
    factor = outputs[0].shape[num] // find(axes[num]).size
    trace.beside(axes[: num + 1])
    channels = algebra.product([axes[num], Axis(factor, fixed=True)])
    return [(*axes[:num], channels, *fixed[num + 1 :])]


def _channels_to_pixels(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    axes = trace.of(a["self"])
    num = len(axes) - 3
    channels, inner = algebra.regroup(
        [axes[num]], [outputs[0].shape[num], a["upscale_factor"] ** 2]
    )
    fix(inner)
    trace.beside((*axes[:num], channels))
    return [(*axes[:num], channels, *fixed_axes(outputs[0])[num + 1 :])]


def _padded(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
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


def _halved(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    """A gated linear unit: the first half times a function of the second."""
    axes = trace.of(a["self"])
    dim = _dims(a["dim"], len(axes))[0]
    size = find(axes[dim]).size // 2
    halves = [_between(axes, dim, start, start + size) for start in (0, size)]
    return [_broadcast(trace, halves)]


def _spatial(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
    """Pooling and resizing: the last dimensions have an order, the leading ones are kept."""
    axes = trace.of(_first(a))
    kept = [d for d, axis in enumerate(axes[:2]) if len(axes) > 2 or d == 0]
    for axis in axes[len(kept) :]:
        fix(axis)
    trace.beside(axes[: len(kept)])
    return [(*(axes[d] for d in kept), *fixed_axes(output)[len(kept) :]) for output in outputs]


def _copied(trace: Trace, a: Arguments, outputs: list[Tensor]) -> list[Axes]:
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
