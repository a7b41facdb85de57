"""Which rule may handle which parameter? A few examples show how the model uses them.

Rules hold for layers that run once, whose parameters nothing else uses, and whose inputs have the
examples along the first dimension. What cannot be seen is measured: the rules must give the norms
that the gradients of single examples have.
"""

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from landscape.engine import caller, ordinary
from landscape.example_gradients.backward import (
    check_ordinary,
    checked_outputs,
    differentiable,
    example_gradients,
    num_examples,
)
from landscape.example_gradients.fallback import by_vmap, gradients_of, one_by_one
from landscape.example_gradients.layers import RULES, kind_of
from landscape.example_gradients.parts import new_part
from landscape.example_gradients.rules import Layer, Rule, Rules
from landscape.states import tied_names
from landscape.task import map_tensors, random_state_kept, tensors_in

EXAMPLES = 3
COTANGENTS = 2


def rules_for(model: nn.Module, inputs: Any, *, counted: Collection[str] | None = None) -> Rules:
    """The rule of each parameter, found with three of the inputs (b, ...).

    `model` is a private copy in evaluation mode whose parameters require no gradients, with values
    such as it will have. `counted` names the parameters that count, as in `named_parameters()`: all
    by default, else those that require gradients in the user's model.

    A parameter has the rule of its layer if the layer is exactly one of torch's, runs once, and
    nothing else takes its parameters. All others fall back to a `vmap` of the gradient, or where
    `vmap` refuses, to one example at a time; `Rule.why` says so. Rules and fallback are compared
    with the gradients of single examples: a rule that disagrees is replaced by the fallback.

    Raises `ValueError` if the outputs cannot be differentiated, if `counted` has unknown names, or
    if an example's outputs depend on the other examples or on chance (batch norm without stored
    statistics or in training mode, dropout), naming the modules.
    """
    names = [name for name, _ in model.named_parameters()]
    counted = set(names if counted is None else counted)
    if unknown := sorted(counted - set(names)):
        raise ValueError(f"the model has no parameters {', '.join(unknown[:5])}")
    if not counted:
        raise ValueError("no parameter is counted: the model has none that requires a gradient")
    check_ordinary(model)
    _check_modes(model)
    last = num_examples(inputs) - 1
    some = [number * last // (EXAMPLES - 1) for number in range(EXAMPLES)]
    few, one = (_rows(inputs, numbers) for numbers in (some, some[-1:]))
    model, few, one = _in_double(model, few, one)
    with differentiable(model), random_state_kept():
        together, alone = _observed(model, few), _observed(model, one)
        _check_independent(together, alone)
        rules = _structure(model, together, alone, counted)
        return _verified(model, rules, few)


def _in_double(model: nn.Module, *inputs: Any) -> tuple[Any, ...]:
    """The model and inputs in float64 if it runs there, where what differs is not rounding."""
    with torch.inference_mode(False):
        twin = copy.deepcopy(model).double()
    doubled = [map_tensors(lambda x: x.double() if x.is_floating_point() else x, i) for i in inputs]
    with torch.inference_mode(False), torch.no_grad(), random_state_kept():
        problem, _ = _tried(lambda: {"outputs": caller(twin)(doubled[-1])})
    return (model, *inputs) if problem else (twin, *doubled)


def _rows(inputs: Any, numbers: list[int]) -> Any:
    return map_tensors(lambda x: ordinary(x[numbers]), inputs)


def _check_modes(model: nn.Module) -> None:
    """Raise `ValueError` naming the modules that mix examples or draw random numbers."""
    mixing, drawing = [], []
    for name, module in model.named_modules():
        if isinstance(module, _NormBase) and (
            module.training if module.track_running_stats else isinstance(module, _BatchNorm)
        ):
            mixing.append(name)
        if isinstance(module, _DropoutNd) and module.training and module.p > 0:
            drawing.append(name)
    if mixing:
        raise ValueError(
            f"examples are not independent: {', '.join(mixing[:5])} normalise with the statistics "
            "of the batch. An example has a gradient of its own only with stored statistics: use "
            "evaluation mode and track_running_stats=True"
        )
    if drawing:
        raise ValueError(
            f"dropout is active in {', '.join(drawing[:5])}: gradients would depend on chance; "
            "use evaluation mode"
        )


@dataclass(eq=False)
class _Observed:
    """What a forward pass showed: outputs; by module how often it ran, rows in, and values out.

    `foreign` are parameters that something else than their own layer takes; `used` are all that
    are taken. `size` is what the values take, in bytes.
    """

    outputs: Any = None
    calls: dict[str, int] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    values: dict[str, list[Tensor]] = field(default_factory=dict)
    foreign: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    size: int = 0


class _Uses(TorchFunctionMode):
    """Tells a function of the tensors that each operation takes, if it gives tensors."""

    def __init__(self, tell: Callable[[list[Tensor]], None]) -> None:
        super().__init__()
        self.tell = tell

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        if tensors_in(outputs):
            self.tell(tensors_in([args, kwargs or {}]))
        return outputs


def _observed(model: nn.Module, inputs: Any) -> _Observed:
    """Run the model and note how it uses its modules and parameters."""
    seen = _Observed()
    inside: list[str] = []
    owners = {
        id(parameter): (f"{name}.{leaf}".removeprefix("."), name)
        for name, module in model.named_modules()
        for leaf, parameter in module._parameters.items()
        if parameter is not None
    }
    modules = {module: name for name, module in model.named_modules()}

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = modules[module]
        inside.append(name)
        seen.calls[name] = seen.calls.get(name, 0) + 1
        taken = tensors_in([args, kwargs])
        seen.rows[name] = len(taken[0]) if taken and taken[0].ndim else 0

    def leave(module: nn.Module, args: Any, outputs: Any) -> None:
        inside.pop()
        given = [tensor for tensor in tensors_in(outputs) if tensor.is_floating_point()]
        seen.values.setdefault(modules[module], []).extend(x.detach().clone() for x in given)
        seen.size += sum(tensor.nbytes for tensor in given)

    def tell(tensors: list[Tensor]) -> None:
        for tensor in tensors:
            if id(tensor) in owners:
                name, owner = owners[id(tensor)]
                seen.used.add(name)
                if not inside or inside[-1] != owner:
                    seen.foreign.add(name)

    hooks = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in modules]
    hooks += [module.register_forward_hook(leave) for module in modules]
    try:
        with _Uses(tell):
            seen.outputs = checked_outputs(caller(model)(inputs), inputs).detach().clone()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _check_independent(together: _Observed, alone: _Observed) -> None:
    """Raise `ValueError` if the last example has other outputs alone than with others."""
    if _equal(together.outputs[-1:], alone.outputs):
        return
    names = [name for name in together.values if not _alike(together, alone, name)]
    leaves = [n for n in names if not any(m.startswith(f"{n}.") or (not n and m) for m in names)]
    raise ValueError(
        "examples are not independent: the outputs of an example change with the other examples "
        f"of its batch, or with chance, in {', '.join(leaves[:1]) or 'the model itself'}. "
        "Gradients of single examples need evaluation mode, without dropout and statistics of "
        "the batch"
    )


def _alike(together: _Observed, alone: _Observed, name: str) -> bool:
    """Whether a module gives the last example the same values with and without the others."""
    ours, theirs = together.values[name], alone.values.get(name, [])
    if len(ours) != len(theirs):
        return False
    pairs = list(zip(ours, theirs, strict=True))
    rows = [len(one) if one.ndim else 0 for _, one in pairs]
    if any(m.ndim != one.ndim or not n or len(m) != EXAMPLES * n
           for (m, one), n in zip(pairs, rows, strict=True)):  # fmt: skip
        return True  # laid out in another way: nothing to compare
    return all(_equal(m[-n:], one) for (m, one), n in zip(pairs, rows, strict=True))


def _equal(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding, which is that of long sums."""
    if a.shape != b.shape:
        return False
    scale = torch.where(b.isfinite(), b, 0).abs().max() if b.numel() else 0
    tolerance = 1e3 * torch.finfo(b.dtype).eps
    return torch.allclose(a, b, rtol=tolerance, atol=float(tolerance * scale), equal_nan=True)


def _structure(
    model: nn.Module, together: _Observed, alone: _Observed, counted: Collection[str]
) -> Rules:
    """The rules that follow from how the model uses its modules."""
    shared = {name: names for names in tied_names(model) for name in names}
    parameters: dict[str, Rule] = {}
    layers: dict[str, Layer] = {}
    own = dict(model.named_parameters())
    for module_name, module in model.named_modules():
        leaves = {leaf: f"{module_name}.{leaf}".removeprefix(".") for leaf in module._parameters}
        leaves = {leaf: name for leaf, name in leaves.items() if name in own}
        kind = kind_of(module)
        why = "" if kind is None else _objection(kind, module_name, together, alone)
        handled = {}
        for leaf, name in leaves.items():
            if name not in counted:
                parameters[name] = Rule("frozen", "it requires no gradient")
            elif name in shared:
                parameters[name] = Rule("fallback", f"shared by {', '.join(shared[name])}")
            elif name not in together.used:
                parameters[name] = Rule("unused", "no operation takes it: it counts as zero")
            elif kind is None:
                kind_name = type(module).__name__
                what = "a parameter of the model itself" if not module_name else f"of a {kind_name}"
                parameters[name] = Rule("fallback", f"{what}, for which there is no rule")
            elif name in together.foreign:
                parameters[name] = Rule("fallback", f"used outside of the layer {module_name!r}")
            elif why:
                parameters[name] = Rule("fallback", why)
            else:
                parameters[name] = Rule(kind)
                handled[leaf] = name
        if handled and kind is not None:
            layers[module_name] = Layer(kind, handled, alone.rows[module_name])
    ordered = {name: parameters[name] for name in own}
    return Rules(ordered, layers, example_bytes=alone.size)


def _objection(kind: str, name: str, together: _Observed, alone: _Observed) -> str:
    """Why the rule of a layer cannot be used, or nothing."""
    calls = together.calls.get(name, 0)
    if calls != 1:
        return f"the layer runs {calls} times"
    rows = alone.rows.get(name, 0)
    if together.rows[name] != EXAMPLES * rows or not _alike(together, alone, name):
        return "the examples are not along the first dimension of the layer's inputs"
    if rows > 1:
        if kind not in ("linear", "embedding"):
            return "several rows of the layer's inputs belong to one example"
        values, single = together.values[name][0], alone.values[name][0]
        if _equal(values[EXAMPLES - 1 :: EXAMPLES], single):  # the rows of examples may alternate
            return "the rows of the examples cannot be told apart"
    return ""


def _verified(model: nn.Module, rules: Rules, inputs: Any) -> Rules:
    """The rules, with the fallback where they disagree with the gradients of single examples."""
    own = dict(model.named_parameters())
    with gradients_of([own[name] for name in rules.counted]):
        outputs = caller(model)(inputs)
    if not outputs.requires_grad:
        raise ValueError(
            "the outputs are not differentiable: no gradient reaches a parameter from them; look "
            "for detach, no_grad or argmax in the model, and for frozen parameters"
        )
    outputs = outputs.detach()
    generator = torch.Generator().manual_seed(0)
    cotangents = torch.randn(COTANGENTS, *outputs.shape, generator=generator).to(outputs)
    truth = _norms(model, rules.counted, cotangents, partial(one_by_one, model), inputs)
    parameters, layers = dict(rules.parameters), dict(rules.layers)
    ruled = {name: rule for name, rule in parameters.items() if rule.kind in RULES}
    rules = replace(rules, parameters=ruled)
    problem, found = _tried(lambda: _ruled_norms(model, rules, inputs, cotangents))
    if problem:
        rules = replace(rules, stacked=False)
        found = _ruled_norms(model, rules, inputs, cotangents)
    wrong = _disagreeing(found, truth, cotangents.dtype)
    for name, rule in parameters.items():
        if name in wrong or (rule.kind == "unused" and truth[name].any()):
            why = f"the rule {rule.kind!r} gives other norms than the gradients of single examples"
            parameters[name] = Rule("fallback", why)
        elif name in truth and rule.kind != "unused" and not truth[name].any():
            why = "its gradient was zero for the examples that were tried"
            parameters[name] = replace(rule, why="; ".join(filter(None, (rule.why, why))))
    for name, layer in rules.layers.items():
        kept = {a: b for a, b in layer.parameters.items() if parameters[b].kind in RULES}
        layers[name] = replace(layer, parameters=kept)
    layers = {name: layer for name, layer in layers.items() if layer.parameters}
    rules = replace(rules, parameters=parameters, layers=layers, choices={}, seconds={})
    return _with_vmap(model, rules, inputs, cotangents, truth) if rules.fallback else rules


def _with_vmap(
    model: nn.Module, rules: Rules, inputs: Any, cotangents: Tensor, truth: Mapping[str, Tensor]
) -> Rules:
    """The rules, with the fallback one by one if `vmap` refuses the model or is wrong about it."""
    names = rules.fallback
    vmapped = partial(by_vmap, model, example_bytes=rules.example_bytes)
    problem, found = _tried(lambda: _norms(model, names, cotangents, vmapped, inputs))
    if not problem and _disagreeing(found, truth, cotangents.dtype):
        problem = "it gives other gradients"
    if not problem:
        return rules
    parameters = dict(rules.parameters)
    for name in names:
        why = f"{parameters[name].why}; one example at a time, since vmap refuses: {problem}"
        parameters[name] = Rule("fallback", why)
    return replace(rules, parameters=parameters, vmapped=False)


def _tried(work: Callable[[], dict[str, Tensor]]) -> tuple[str, dict[str, Tensor]]:
    """The first line of what went wrong, or nothing and what the work gave."""
    try:
        return "", work()
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        return f"{error}".strip().split("\n")[0] or type(error).__name__, {}


def _ruled_norms(
    model: nn.Module, rules: Rules, inputs: Any, cotangents: Tensor
) -> dict[str, Tensor]:
    return example_gradients(model, rules, inputs, lambda _: cotangents).norms


def _norms(
    model: nn.Module,
    names: Collection[str],
    cotangents: Tensor,
    gather: Callable[..., None],
    inputs: Any,
) -> dict[str, Tensor]:
    """Squared norms (k, b) of the named parameters by a fallback."""
    own = dict(model.named_parameters())
    weights = cotangents.new_ones(cotangents.shape[:2])
    parts = {name: new_part(own[name], weights, diagonal=False, mean=False) for name in names}
    gather(parts=parts, inputs=inputs, cotangents=cotangents)
    return {name: part.norms for name, part in parts.items()}


def _disagreeing(
    found: Mapping[str, Tensor], truth: Mapping[str, Tensor], dtype: torch.dtype
) -> set[str]:
    """Names whose norms differ by more than rounding, which is all of some gradients.

    In single precision rounding turns activations on or off, and norms of gradients jump with them.
    """
    noise = (1e3 * torch.finfo(dtype).eps) ** 2 * torch.stack(list(truth.values())).sum(0)
    share = 1e-6 if dtype == torch.float64 else 0.05
    wrong = set()
    for name, norms in found.items():
        close = (norms - truth[name]).abs() <= share * truth[name] + noise
        if not (close | ~truth[name].isfinite()).all():
            wrong.add(name)
    return wrong
