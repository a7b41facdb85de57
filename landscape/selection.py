"""Which layers of a network does a selection name, and what is a row of their activations?

A layer is the output of a module in one of its calls in a forward pass. `layers_of` finds the
layers that a selection names. Their activations are matrices (rows, neurons); what a row is, is
said by the form `maps`:

- `"average"`: an example, with each channel averaged over positions (the default);
- `"positions"`: a position of an example, (n h w, c), so rows of one example are correlated;
- `"flatten"`: an example, with a neuron for each channel at each position, (n, c h w);
- `"pool:4x4"`: a position, after average pooling to a grid of that size; `"pool"` pools to the
  smallest grid of the layers;
- `"frequency"`, `"frequency:4x4"`: an example, one complex matrix (n, c) for each frequency of the
  two-dimensional Fourier transform of the maps (Raghu et al. 2017, section 3 and appendix), which
  is as good as `"flatten"` where layers and data do not know where things are. Larger maps are
  pooled to the smallest grid first.
"""

import difflib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules import conv, dropout, instancenorm, pooling
from torch.nn.modules.batchnorm import _BatchNorm

from landscape.engine import caller, exact_arithmetic, replicate
from landscape.examples import Examples, Finish, num_examples
from landscape.task import map_tensors, random_state_kept, tensors_in

Path = tuple[Any, ...]
Matches = list[tuple[int, Path | None]]  # calls by index, and a part if one is named
Selector = str | type[nn.Module] | Sequence[str | type[nn.Module]]

FORMS = ("average", "positions", "flatten", "pool", "frequency")
PASSING = (nn.Identity, nn.Flatten, nn.Unflatten, dropout._DropoutNd)  # change nothing, or a shape
CHANNELS_FIRST = (
    conv._ConvNd, _BatchNorm, instancenorm._InstanceNorm, nn.GroupNorm, nn.LocalResponseNorm,
    pooling._MaxPoolNd, pooling._AvgPoolNd, pooling._LPPoolNd,
    pooling._AdaptiveAvgPoolNd, pooling._AdaptiveMaxPoolNd,
)  # fmt: skip
CHANNELS_LAST = (
    nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.MultiheadAttention,
    nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.RNN, nn.GRU, nn.LSTM,
)  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One tensor that a module gives in one of its calls in a forward pass.

    `name` is unique in the model: `conv1`, `block:2` (the second of several calls), `lstm[0]` or
    `block[hidden]` (a part of outputs that are tuples or mappings). `module` is the name of the
    module, `call` is from 1 to `calls`, and `path` leads to the part. `channels` is the dimension
    of the channels (1, or -1 for tokens), `width` their number, `grid` the sizes of the others.
    """

    name: str
    module: str
    call: int
    calls: int
    path: Path
    channels: int
    width: int
    grid: tuple[int, ...]


@dataclass(frozen=True)
class Selection:
    """Layers in the order of the forward pass, and notes on what a pattern had to leave out."""

    layers: tuple[Layer, ...]
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names of the layers."""
        return [layer.name for layer in self.layers]


def layers_of(
    model: nn.Module,
    layers: Selector,
    inputs: Any,
    *,
    maps: str = "average",
    channels_first: Sequence[str] = (),
    channels_last: Sequence[str] = (),
) -> Selection:
    """The layers that a selection names, found by running a private copy of the model once.

    `inputs` are a few examples ready for the model, such as `few_inputs` gives. `layers`: one or
    several of
    - a name, of a module or of a layer (`"conv1"`, `"block:2"`, `"encoder.lstm[0]"`);
    - a pattern as in `fnmatch` for whole names (`"conv*"`, `"*.bn?"`), or for names of types where
      no name matches (`"Conv*"`); several in one string are separated by commas;
    - a type of module;
    - `"*"`: every module that runs and has no running module inside.
    Patterns of names leave out modules that only pass values on (dropout, identity, flatten), and
    all patterns and types leave out outputs that cannot be used, of which the notes tell. Of a
    tuple or mapping the only floating-point tensor is taken; if there are several, choose one by
    name. A module that runs k times has k layers.

    Outputs (n, a, b) are tokens, channels last, unless they come from a one-dimensional
    convolution, pooling or normalisation (or from an activation function behind one); outputs with
    more dimensions have their channels first unless they come from a linear layer or the like.
    `channels_first` and `channels_last` are patterns of names for which this is wrong.

    Raises `ValueError` if nothing matches or runs, and for a module that was named itself if it
    gives several tensors (naming the choices), none, one whose first dimension is not the number
    of examples, or one without positions where the form needs them.
    """
    calls = _calls(model, inputs)
    chosen: dict[tuple[int, int], Layer] = {}
    notes: dict[str, None] = {}
    for pattern in _patterns(layers):
        matches, named = _matching(model, calls, pattern)
        for index, path in matches:
            call = calls[index]
            try:
                layer = _layer(call, _part(call, path), channels_first, channels_last)
                _check_positions([layer], maps)
            except ValueError as error:
                if named:
                    raise
                notes[str(error)] = None
            else:
                chosen[index, list(call.parts).index(layer.path)] = layer
        if isinstance(pattern, str) and (idle := _idle(model, calls, pattern)):
            notes[_never(idle)] = None
    if not chosen:
        raise ValueError("\n  ".join(["no layer is left of the selection:", *notes]))
    return Selection(tuple(chosen[key] for key in sorted(chosen)), tuple(notes))


def few_inputs(examples: Examples, num: int = 3) -> Any:
    """The inputs of the first few examples, ready for the model, for `layers_of`."""
    batch = next(iter(examples.batches(num)))
    size = num_examples(batch)
    return map_tensors(lambda x: x[:num] if x.ndim and len(x) == size else x, batch[0])


def common_form(layers: Iterable[Layer], maps: str) -> str:
    """The form that is the same for all layers: `"pool"` and `"frequency"` with their grid.

    Give the layers of all networks that are to be compared. Raises `ValueError` for an unknown
    form, and where layers have positions that are not on one grid, or none.
    """
    layers = list(layers)
    kind, wanted = kind_and_grid(maps)
    if kind in ("average", "flatten"):
        return kind
    _check_positions(layers, maps)
    grids: dict[tuple[int, ...], list[str]] = {}
    for layer in layers:
        names = grids.setdefault(layer.grid, [])
        names += [layer.name] if layer.name not in names else []
    shapes = ", ".join(f"{_times(grid)} ({shown(names, 2)})" for grid, names in grids.items())
    if len({len(grid) for grid in (*grids, *((wanted,) if wanted else ()))}) > 1:
        raise ValueError(
            f"positions of unlike dimensions cannot be compared in the form {maps!r}: {shapes}; "
            "choose layers of one kind, or maps='average'"
        )
    smallest = tuple(map(min, zip(*grids, strict=True)))
    if kind == "positions":
        if len(grids) > 1:
            raise ValueError(
                f"positions are compared one by one, but the layers have unlike grids: {shapes}; "
                f"average to one grid by maps='pool:{_times(smallest)}', or choose other layers"
            )
        return kind
    if wanted and any(a > b for a, b in zip(wanted, smallest, strict=True)):
        raise ValueError(
            f"maps can be pooled to smaller grids only, got {maps!r} for {shapes}; the largest "
            f"possible is {kind}:{_times(smallest)}"
        )
    return f"{kind}:{_times(wanted or smallest)}"


def rows_per_example(layers: Sequence[Layer], maps: str) -> int:
    """How many rows an example has in a form of `common_form`; they follow each other."""
    kind, grid = kind_and_grid(maps)
    return math.prod(layers[0].grid if kind == "positions" else grid if kind == "pool" else ())


def neurons(layer: Layer, maps: str) -> int:
    """How many columns a layer has in a form."""
    return layer.width * (math.prod(layer.grid) if maps == "flatten" else 1)


def frequencies(maps: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Frequencies (f, dimensions) of a form `"frequency:HxW"`, and how often each one counts (f,).

    In periods per map. Maps are real, so of two conjugate frequencies along the last dimension one
    is kept and counts twice; multiplicities sum to the number of positions, and the sum of power
    times multiplicity is that over positions times their number (Parseval).
    """
    _, grid = kind_and_grid(maps)
    axes = [np.round(np.fft.fftfreq(size) * size).astype(np.int64) for size in grid[:-1]]
    last = np.arange(grid[-1] // 2 + 1)
    places = np.stack([axis.ravel() for axis in np.meshgrid(*axes, last, indexing="ij")], axis=1)
    single = (places[:, -1] == 0) | (2 * places[:, -1] == grid[-1])
    return places, np.where(single, 1, 2)


def kind_and_grid(maps: str) -> tuple[str, tuple[int, ...]]:
    """The kind of a form and the grid that it names, or (). Raises `ValueError` for others."""
    kind, colon, sizes = maps.partition(":")
    grid = sizes.split("x") if colon else []
    good = all(size.isdecimal() and int(size) > 0 for size in grid)
    if kind not in FORMS or not good or (grid and kind not in ("pool", "frequency")):
        raise ValueError(
            f"maps must be {', '.join(FORMS)}, or one of the last with a grid as in 'pool:4x4', "
            f"got {maps!r}"
        )
    return kind, tuple(map(int, grid))


@contextmanager
def hooked(
    model: nn.Module, after: Mapping[str, Callable[..., None]], before: Any = None
) -> Iterator[None]:
    """The model with hooks on modules of these names, which are removed whatever happens."""
    hooks = []
    try:
        for name, hook in after.items():
            module = model.get_submodule(name)
            hooks.append(module.register_forward_hook(hook))
            if before is not None:
                hooks.append(module.register_forward_pre_hook(before))
        yield
    finally:
        for handle in hooks:
            handle.remove()


def shown(names: Sequence[str], num: int) -> str:
    """The first names, and how many more there are."""
    rest = len(names) - num
    return ", ".join(names[:num]) + (f" and {rest} more" if rest > 0 else "")


def closest(name: str, names: Sequence[str]) -> str:
    """The names that are most like one, in brackets for a message; nothing if none is."""
    close = difflib.get_close_matches(name, names, n=3)
    return f" (closest: {', '.join(close)})" if close else ""


def other_examples(name: str, shape: tuple[int, ...], num: int) -> str:
    """What is wrong with outputs of a shape whose rows are not `num` examples, and why."""
    why = "it has another dimension first, as a recurrent layer without batch_first has"
    if shape and shape[0] > num and shape[0] % num == 0:
        why = f"it seems to fold {shape[0] // num} windows, tokens or steps of each into the batch"
    return (
        f"{name} changes the number of examples: it gives shape {shape} for {num} examples, so its "
        f"rows belong to no example; {why}. Choose a layer before or behind it"
    )


# --- which calls match, and which dimension holds channels ----------------------------------------


@dataclass(frozen=True)
class _Tensor:
    """A floating-point tensor in the output of a module."""

    shape: tuple[int, ...]
    channels: int


@dataclass(frozen=True)
class _Call:
    """One call of a module in the forward pass; a leaf if no other module ran inside."""

    module: str
    kind: type[nn.Module]
    base: str
    call: int
    calls: int
    leaf: bool
    parts: Mapping[Path, _Tensor]
    num: int

    @property
    def label(self) -> str:
        """The name with the number of the call, if there are several."""
        return self.base if self.calls == 1 else f"{self.base}:{self.call}"


def _calls(model: nn.Module, inputs: Any) -> list[_Call]:
    """All calls of modules for these inputs, in the order in which they ended."""
    tensors = tensors_in(inputs)
    if not tensors or not tensors[0].ndim:
        raise ValueError(f"inputs must be a batch of tensors, got {type(inputs).__name__}")
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    with exact_arithmetic(), random_state_kept():
        (twin,) = replicate(model, 1, device=tensors[0].device, dtype=dtype, layout="contiguous")
        names = {name: m for name, m in twin.named_modules() if "parametrizations" not in name}
        calls: list[_Call] = []
        counts: Counter[str] = Counter()
        begun: list[int] = []
        known: dict[int, tuple[Tensor, int]] = {}  # channels, by id; the tensors are kept alive

        def before(*_: Any) -> None:
            begun.append(len(calls))

        def after(name: str, module: nn.Module, args: Any, output: Any) -> None:
            counts[name] += 1
            parts = {}
            for path, tensor in _tensors(output):
                channels = _channels(module, args, tensor, known)
                known[id(tensor)] = tensor, channels
                parts[path] = _Tensor(tuple(tensor.shape), channels)
            leaf = begun.pop() == len(calls)
            base, num = name or type(model).__name__, len(tensors[0])
            calls.append(_Call(name, type(module), base, counts[name], 0, leaf, parts, num))

        hooks = {name: partial(after, name) for name in names}
        with hooked(twin, hooks, before):
            caller(twin)(Finish(dtype=dtype)(inputs))
    return [replace(call, calls=counts[call.module]) for call in calls]


def _channels(
    module: nn.Module, args: Any, output: Tensor, known: Mapping[int, tuple[Tensor, int]]
) -> int:
    """Which dimension of an output holds its channels, by what gave it or what it was made from."""
    if isinstance(module, CHANNELS_FIRST):
        return 1
    if type(module) in CHANNELS_LAST:
        return -1
    if id(output) in known:
        return known[id(output)][1]
    given = args[0] if args else None
    same_kind = isinstance(given, Tensor) and given.ndim == output.ndim
    if same_kind and id(given) in known and type(module).__module__.startswith("torch.nn."):
        return known[id(given)][1]
    return -1 if output.ndim == 3 else 1


def _patterns(layers: Selector) -> list[str | type[nn.Module]]:
    given = [layers] if isinstance(layers, str | type) else list(layers)
    patterns: list[str | type[nn.Module]] = []
    for one in given:
        parts = one.split(",") if isinstance(one, str) else [one]
        patterns += [part.strip() if isinstance(part, str) else part for part in parts]
    wrong = [p for p in patterns if not isinstance(p, str) and not _is_module_type(p)]
    if not patterns or wrong or "" in patterns:
        raise ValueError(
            "layers must be names, patterns such as 'conv*', or types of modules, "
            f"got {layers!r}; '*' takes all"
        )
    return patterns


def _is_module_type(given: Any) -> bool:
    return isinstance(given, type) and issubclass(given, nn.Module)


def _matching(
    model: nn.Module, calls: Sequence[_Call], pattern: str | type[nn.Module]
) -> tuple[Matches, bool]:
    """Calls that match, and whether they were named by their own names."""
    if not isinstance(pattern, str):
        found = _where(calls, lambda call: issubclass(call.kind, pattern))
        if not found:
            raise ValueError(f"no module of type {pattern.__name__} runs; {_all_of(calls)}")
        return found, False
    if pattern == "*":
        return _where(calls, lambda call: call.leaf and not _passes(call)), False
    if found := _named(calls, lambda name: name == pattern):
        return found, True
    escaped = pattern.replace("[", "[[]")  # brackets are parts first, sets of characters second
    for glob in (escaped, pattern):
        if found := _named(calls, partial(fnmatchcase, pat=glob)):
            return [one for one in found if not _passes(calls[one[0]])] or found, False
    found = _where(calls, lambda call: fnmatchcase(call.kind.__name__, pattern))
    if not found:
        raise ValueError(_unmatched(model, calls, pattern))
    return found, False


def _where(calls: Sequence[_Call], chosen: Callable[[_Call], bool]) -> Matches:
    return [(index, None) for index, call in enumerate(calls) if chosen(call)]


def _named(calls: Sequence[_Call], matches: Callable[[str], bool]) -> Matches:
    """Calls whose names match, or parts of them; both by the module's name and by the call's."""
    found: Matches = []
    for index, call in enumerate(calls):
        names = {call.base, call.label}
        if any(map(matches, names)):
            found.append((index, None))
        else:
            found += [
                (index, path)
                for path in call.parts
                if path and any(matches(name + _brackets(path)) for name in names)
            ]
    return found


def _passes(call: _Call) -> bool:
    return issubclass(call.kind, PASSING)


def _part(call: _Call, path: Path | None) -> Path:
    """The part of an output to take; raises `ValueError` if none can be, or no single one."""
    if path is None:
        if len(call.parts) != 1:
            choices = ", ".join(call.label + _brackets(path) for path in call.parts)
            several = f"{len(call.parts)} tensors, choose one of them: {choices}"
            raise ValueError(
                f"{call.label} ({call.kind.__name__}) gives "
                f"{several if choices else 'no floating-point tensor'}"
            )
        (path,) = call.parts
    shape = call.parts[path].shape
    if not shape or shape[0] != call.num:
        raise ValueError(other_examples(_name(call, path), shape, call.num))
    return path


def _layer(
    call: _Call, path: Path, channels_first: Sequence[str], channels_last: Sequence[str]
) -> Layer:
    name, part = _name(call, path), call.parts[path]
    channels = part.channels
    for dim, patterns in ((1, channels_first), (-1, channels_last)):
        if any(fnmatchcase(one, p) for one in (name, call.base) for p in patterns):
            channels = dim
    shape = part.shape if len(part.shape) > 1 else (*part.shape, 1)
    grid = shape[2:] if channels == 1 else shape[1:-1]
    return Layer(name, call.module, call.call, call.calls, path, channels, shape[channels], grid)


def _name(call: _Call, path: Path) -> str:
    return call.label + (_brackets(path) if len(call.parts) > 1 else "")


def _brackets(path: Path) -> str:
    return "".join(f"[{key}]" for key in path)


def _tensors(output: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """The floating-point tensors in nested tuples, lists and mappings, with the ways to them."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield path, output
    elif isinstance(output, Mapping | tuple | list):
        items = output.items() if isinstance(output, Mapping) else enumerate(output)
        for key, value in items:
            yield from _tensors(value, (*path, key))


def _check_positions(layers: Iterable[Layer], maps: str) -> None:
    for layer in layers:
        if kind_and_grid(maps)[0] not in ("average", "flatten") and math.prod(layer.grid) == 1:
            raise ValueError(
                f"{layer.name} gives one vector for each example and has no positions for {maps=}; "
                "leave it out, or use maps='average'"
            )


def _unmatched(model: nn.Module, calls: Sequence[_Call], pattern: str) -> str:
    if idle := _idle(model, calls, pattern):
        return f"{_never(idle)}; {_all_of(calls)}"
    names = {call.base for call in calls} | {call.label for call in calls}
    return f"no layer matches {pattern!r}{closest(pattern, sorted(names))}; {_all_of(calls)}"


def _idle(model: nn.Module, calls: Sequence[_Call], pattern: str) -> list[str]:
    """Modules with parameters of their own that match by name and never run."""
    ran = {call.module for call in calls}
    return [
        name
        for name, module in model.named_modules()
        if name not in ran and "parametrizations" not in name and fnmatchcase(name, pattern)
        if any(True for _ in module.parameters(recurse=False))
    ]


def _never(names: Sequence[str]) -> str:
    return f"never called as modules in the forward pass, so without outputs: {shown(names, 20)}"


def _all_of(calls: Sequence[_Call]) -> str:
    names = [call.label for call in calls if call.leaf]
    return f"layers that run: {shown(names, 20)} (layers='*' takes all)"


def _times(grid: Sequence[int]) -> str:
    return "x".join(map(str, grid))
