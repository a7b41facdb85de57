"""How do rules get what they need? Layers note their inputs, and hooks wait for the gradients."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.func import vmap

from landscape.engine import caller, ordinary, quiet_vmap
from landscape.example_gradients.fallback import by_vmap, one_by_one
from landscape.example_gradients.layers import RULES, Choices
from landscape.example_gradients.parts import Part, new_part, synchronise
from landscape.example_gradients.rules import Layer, Rules
from landscape.task import map_tensors, tensors_in


@dataclass(frozen=True, eq=False)
class Backward:
    """What came of pulling k cotangents of b examples back, by name of the parameter.

    `norms`: squared norms of the gradients, (k, b) in float64. `diagonal` and `mean`: the weighted
    sums over k and b of the squared gradients and of the gradients themselves, empty if not wanted.
    They are in the dtype of the model: add those of many batches up in float64. `outputs`: those of
    the model, (b, ...).
    """

    norms: dict[str, Tensor]
    diagonal: dict[str, Tensor]
    mean: dict[str, Tensor]
    outputs: Tensor


def example_gradients(
    model: nn.Module,
    rules: Rules,
    inputs: Any,
    cotangents: Callable[[Tensor], Tensor],
    *,
    diagonal: bool = False,
    mean: bool = False,
    weights: Tensor | None = None,
) -> Backward:
    """Squared norms of the gradients of each example, for each counted parameter.

    `model` is a private copy whose parameters require no gradients, as `engine.replicate` makes
    them, in evaluation mode; `rules` are those of `rules_for`. `cotangents(outputs)` gives the
    gradients (k, b, ...) of k scalars for each example with respect to its outputs (b, ...); it is
    given detached outputs. `weights` (k, b), by default 1, are those of the sums `diagonal` (of
    squared gradients) and `mean` (of gradients); weights that depend on the outputs can go into the
    cotangents, as square roots where squares are wanted.

    One forward pass and one backward pass to the outputs of the layers serve all rules; the
    fallback has passes of its own, for its parameters alone.

    Raises `ValueError` if the outputs are no tensor of floating-point numbers with the examples
    along the first dimension, if cotangents have another shape, or if a layer does not run as it
    did for `rules_for`.
    """
    own = dict(model.named_parameters())
    check_ordinary(model)
    inputs = map_tensors(ordinary, inputs)
    with differentiable(model):
        tape = _Tape(torch.zeros((), device=next(iter(own.values())).device, requires_grad=True))
        with _watched(model, rules, tape):
            outputs = checked_outputs(caller(model)(inputs), inputs)
        if missing := rules.layers.keys() - tape.ran:
            raise ValueError(f"the layer {min(missing)!r} did not run, {OTHER_WAY}")
        pulled = _checked_cotangents(cotangents(outputs.detach()), outputs)
        weights = pulled.new_ones(pulled.shape[:2]) if weights is None else weights
        for name in rules.counted:
            tape.parts[name] = new_part(own[name], weights, diagonal=diagonal, mean=mean)
        if outputs.requires_grad:
            _pull_back(outputs, pulled, tape, rules)
        fallback = {name: tape.parts[name] for name in rules.fallback}
        if fallback and rules.vmapped:
            by_vmap(model, fallback, inputs, pulled, rules.example_bytes)
        elif fallback:
            one_by_one(model, fallback, inputs, pulled)
    parts = tape.parts.items()
    return Backward(
        {name: part.norms for name, part in parts},
        {name: part.diagonal for name, part in parts if part.diagonal is not None},
        {name: part.mean for name, part in parts if part.mean is not None},
        outputs.detach(),
    )


@contextmanager
def differentiable(model: nn.Module) -> Iterator[None]:
    """Gradients are recorded, and no layer takes a shortcut that has none."""
    backends: Any = torch.backends
    shortcuts, cudnn = backends.mha.get_fastpath_enabled(), backends.cudnn.enabled
    try:
        backends.mha.set_fastpath_enabled(False)
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            backends.cudnn.enabled = False  # its recurrent layers go back in training mode only
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        backends.mha.set_fastpath_enabled(shortcuts)
        backends.cudnn.enabled = cudnn


def check_ordinary(model: nn.Module) -> None:
    """Raise `ValueError` if nothing can be pulled back through the model."""
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError(
            "the model was made in inference mode, where nothing can be pulled back through it: "
            "make it outside of torch.inference_mode"
        )


def num_examples(inputs: Any) -> int:
    """How many examples a batch of inputs has."""
    return len(tensors_in(inputs)[0])


def checked_outputs(outputs: Any, inputs: Any) -> Tensor:
    """The outputs, if gradients can be pulled back from them; raises `ValueError` otherwise."""
    num = num_examples(inputs)
    if not isinstance(outputs, Tensor):
        raise ValueError(
            f"gradients need a model whose output is one tensor, got {type(outputs).__name__}; "
            "wrap the model so that it returns the tensor that the loss is made of"
        )
    if not outputs.is_floating_point():
        raise ValueError(
            f"the outputs are not differentiable: they are of {outputs.dtype}; return the scores "
            "(logits), not the class they choose"
        )
    if outputs.ndim == 0 or len(outputs) != num:
        raise ValueError(
            f"the outputs must have the {num} examples along the first dimension, got shape "
            f"{tuple(outputs.shape)}"
        )
    return outputs


def _checked_cotangents(cotangents: Tensor, outputs: Tensor) -> Tensor:
    if cotangents.shape[1:] != outputs.shape:
        raise ValueError(
            f"cotangents must have shape (k, {', '.join(map(str, outputs.shape))}), one for "
            f"each output of each example, got {tuple(cotangents.shape)}"
        )
    return cotangents.detach()


@dataclass(eq=False)
class _Tape:
    """The state of a pass: where graphs begin, what ran, and the parts to fill.

    `now` are the cotangents that are going back, `stacked` by `vmap` or one by one.
    """

    anchor: Tensor
    ran: set[str] = field(default_factory=set)
    parts: dict[str, Part] = field(default_factory=dict)
    now: slice = field(default_factory=lambda: slice(None))
    stacked: bool = False


@dataclass(frozen=True, eq=False)
class _Noted:
    """A layer that ran, the inputs that it saw, and what to do with them."""

    module: nn.Module
    name: str
    layer: Layer
    inputs: Tensor
    version: int
    tape: _Tape
    choices: Choices


@contextmanager
def _watched(model: nn.Module, rules: Rules, tape: _Tape) -> Iterator[None]:
    """Layers with a rule note their inputs, and fill their parts when their gradients come."""
    modules = {name: model.get_submodule(name) for name in rules.layers}
    try:
        for name, module in modules.items():
            module.forward = partial(_forward, module, name, rules, tape)
        yield
    finally:
        for module in modules.values():
            module.__dict__.pop("forward", None)


def _forward(
    module: nn.Module, name: str, rules: Rules, tape: _Tape, *args: Any, **kwargs: Any
) -> Tensor:
    """The layer's outputs, on which a hook waits for their gradients."""
    outputs: Tensor = type(module).forward(module, *args, **kwargs)
    if name in tape.ran:
        raise ValueError(f"the layer {name!r} ran twice, {OTHER_WAY}")
    tape.ran.add(name)
    x = (args[0] if args else kwargs["input"]).detach()
    if not outputs.requires_grad:
        outputs = _Root.apply(outputs, tape.anchor)
    noted = _Noted(module, name, rules.layers[name], x, x._version, tape, rules.choices)
    outputs.register_hook(partial(_hook, noted))
    return outputs


OTHER_WAY = (
    "but not so for rules_for: make the rules with inputs that take the same way through the model"
)


class _Root(Function):
    """Where a graph begins: the same values, which now require gradients."""

    @staticmethod
    def forward(outputs: Tensor, anchor: Tensor) -> Tensor:
        return outputs.data

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        return None, None


class _Taken(Function):
    """Gives gradients (k, b, ...) to a layer, be they stacked by `vmap` or those of one."""

    @staticmethod
    def forward(gradients: Tensor, noted: _Noted) -> Tensor:
        _take(noted, gradients[None])
        return gradients.new_empty(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, gradients: Tensor, noted: _Noted) -> tuple[Tensor, None]:
        _take(noted, gradients.movedim(in_dims[0], 0))
        return gradients.new_empty(0), None


def _hook(noted: _Noted, gradients: Tensor) -> None:
    if noted.tape.stacked:
        _Taken.apply(gradients, noted)
    else:
        _take(noted, gradients[None])


def _take(noted: _Noted, gradients: Tensor) -> None:
    """Fill the parts of a layer from the gradients of its outputs."""
    x, layer, tape = noted.inputs, noted.layer, noted.tape
    parts = {leaf: tape.parts[name].cotangents(tape.now) for leaf, name in layer.parameters.items()}
    if "weight" in parts and x._version != noted.version:
        raise ValueError(f"the inputs of the layer {noted.name!r} changed in place, {OTHER_WAY}")
    k, num = next(iter(parts.values())).norms.shape
    if len(x) != num * layer.rows:
        raise ValueError(f"the layer {noted.name!r} saw {len(x)} rows, {OTHER_WAY}")
    gradients = gradients.expand(k, *gradients.shape[1:])
    if layer.rows > 1:
        x, gradients = x.unflatten(0, (num, -1)), gradients.unflatten(1, (num, -1))
    RULES[layer.kind](noted.module, x, gradients, parts, noted.choices)


def _pull_back(outputs: Tensor, cotangents: Tensor, tape: _Tape, rules: Rules) -> None:
    """Send cotangents (k, b, ...) back to where the graphs begin, all at once or in turn.

    Both ways give the same to rounding; each is timed in the first batches, then the faster taken.
    """
    times = rules.seconds.setdefault(tuple(cotangents.shape), {True: [], False: []})
    last, start = len(cotangents) - 1, time.perf_counter()
    tape.stacked = last > 0 and rules.stacked and _faster(times)

    def pull(cotangent: Tensor, *, keep: bool = False) -> Tensor:
        torch.autograd.grad(outputs, [tape.anchor], cotangent, retain_graph=keep, allow_unused=True)
        return cotangent

    if tape.stacked:
        with quiet_vmap():
            vmap(pull)(cotangents)
    else:
        for number, cotangent in enumerate(cotangents):
            tape.now = slice(number, number + 1)
            pull(cotangent, keep=number < last)
    synchronise(outputs.device)
    times[tape.stacked].append(time.perf_counter() - start)


def _faster(times: Mapping[bool, list[float]]) -> bool:
    """Whether stacking is faster, or is to be tried; the first try of each warms up."""
    tries = {stacked: len(seconds) for stacked, seconds in times.items()}
    if min(tries.values()) < 3:
        return tries[True] <= tries[False]
    return min(times[True]) < min(times[False])
