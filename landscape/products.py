"""What do second derivatives of the loss make of a direction, without a matrix of them?

`mean_loss` puts a private copy of the model and the data together; `gradient`, `hessian_product`,
`gauss_newton_product` and `fisher_product` work on flat vectors (P,) of the parameters in the order
of `MeanLoss.names`, in float64, and matrices (P, m) of them. All are means over all examples.

Second derivatives are backward passes through backward passes. `torch.func.hessian`, forward
through `jacrev`, is wrong without a word where a layer norm has an input and weights to be
differentiated (torch 2.13).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.engine import (
    caller,
    gradients_allowed,
    install,
    ordinary,
    own_names,
    replicate,
)
from landscape.examples import Examples, arrange, free_memory, pick_device, read
from landscape.states import State, Stored, loaded, match, unflatten
from landscape.task import PerExample, Task, map_tensors, tensors_in

Product = Callable[[Tensor], Tensor]
Factor = Callable[[Tensor, Tensor], Tensor]
Linear = Callable[[Sequence[Tensor]], Sequence[Tensor]]
Curvature = Callable[["MeanLoss", Any, Any, int], Linear]


@dataclass(frozen=True, eq=False)
class MeanLoss:
    """The mean loss over all examples as a function of some parameters of a private model.

    `names` are those of the P numbers in a flat vector, in order; `task` is the name of the task.
    Data come in batches of `batch_size`, which does not change any result.
    """

    task: str
    model: nn.Module
    loss: PerExample
    examples: Examples
    batch_size: int
    names: tuple[str, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are named."""
        own = dict(self.model.named_parameters())
        return [own[name] for name in self.names]

    @property
    def size(self) -> int:
        """P, how many numbers the parameters have."""
        return sum(parameter.numel() for parameter in self.parameters)

    @property
    def blocks(self) -> dict[str, slice]:
        """The part of a flat vector that each parameter has."""
        ends = torch.tensor([p.numel() for p in self.parameters]).cumsum(0).tolist()
        return {n: slice(a, b) for n, a, b in zip(self.names, [0, *ends], ends, strict=False)}


def mean_loss(
    task: Task,
    state: State | Stored,
    *,
    names: Sequence[str] | None = None,
    examples: Examples | None = None,
    batch_size: int | None = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype = torch.float32,
) -> MeanLoss:
    """The mean loss of a task at a state, ready to be differentiated.

    Main arguments. `names`: of the parameters that count, as in `named_parameters` (tied ones once,
    at their first name), such as those of one module; by default all that the user's model does not
    freeze by `requires_grad=False`. Other parameters are constants.

    Other arguments. `examples`: the data as `read` gives them, if they are used many times.
    `batch_size`: default that of the data. `device`: `"auto"` or a torch device. `dtype`: of the
    arithmetic in a batch; sums over batches are in float64.

    The model is in evaluation mode, with the batch-norm statistics of the state. Raises
    `ValueError` if the state does not fit, a name is unknown, or no parameter is left.
    """
    where = pick_device(device)
    own = dict(task.model.named_parameters())
    if names is None:
        names = [name for name, parameter in own.items() if parameter.requires_grad]
    if unknown := [name for name in names if name not in own]:
        raise ValueError(
            f"the model has no parameter {unknown[0]!r} (tied ones go by their first name); it has "
            f"{', '.join(list(own)[:8])}{', ...' if len(own) > 8 else ''}"
        )
    if not names:
        raise ValueError("no parameter is left: all have requires_grad=False, or `names` is empty")
    state = match(loaded(state), task.model)
    with _differentiable(task.model):
        (model,) = replicate(task.model, 1, device=where, dtype=dtype, layout="contiguous")
        install(model, {name: state[name] for name in own_names(model) if name in state})
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        data = arrange(
            read(task.data, where) if examples is None else examples, "contiguous", dtype
        )
    ordered = tuple(name for name in own if name in names)
    size = batch_size or data.batch_size
    return MeanLoss(task.name, model, task.loss, data, size, ordered, dtype, where)


def gradient(mean: MeanLoss) -> tuple[float, Tensor]:
    """The mean loss and its gradient (P,).

    Raises `ValueError` naming the example whose loss or gradient is not finite, or if the loss is
    not one value per example or cannot be differentiated.
    """
    value = 0.0
    with _differentiable(mean.model):
        total = torch.zeros(mean.size, dtype=torch.float64, device=mean.device)
        for inputs, targets, first in _batches(mean):
            losses = _losses(mean, _outputs(mean, inputs), targets, first)
            parts = _flat(_pulled(losses.sum(), mean.parameters))
            if not torch.isfinite(parts).all():
                _blame(mean, inputs, targets, first)
            total += parts
            value += losses.detach().double().sum().item()
    return value / mean.examples.num, total / mean.examples.num


def hessian_product(mean: MeanLoss, *, keep: bool | None = None) -> Product:
    """Products with the Hessian of the mean loss: a function of (P,) or (P, m), in float64.

    Pearlmutter 1994, by differentiating the gradient once more. `keep`: whether the graphs of the
    gradients of all batches are kept, which makes later products cheaper and takes memory in
    proportion to the data; None: if they take less than a quarter of the memory that is free.
    At the kinks of piecewise linear networks the Hessian is that of the piece.

    The errors of `gradient` are raised on the first product, and one that names the operation if
    it has no second derivative.
    """
    return _summed(mean, _hessian, keep)


def gauss_newton_product(mean: MeanLoss, *, keep: bool | None = None) -> Product:
    """Products with the Gauss-Newton matrix, the mean of J' H J over examples.

    J is the Jacobian of the outputs, H the Hessian of the loss of an example with respect to them
    (Schraudolph 2002), whatever the loss. It is the Hessian less the curvature of the model itself.
    Arguments and errors are those of `hessian_product`.
    """
    return _summed(mean, partial(_gauss_newton, _loss_curvature), keep)


def fisher_product(mean: MeanLoss, factor: Factor, *, keep: bool | None = None) -> Product:
    """Products with the mean of J' S J over examples, for any S in the space of outputs.

    `factor(outputs, tangents)` gives S times tangents, example by example, all of the shape of the
    outputs; with the Fisher information of the outputs' likelihood it is the Fisher matrix. `keep`
    as in `hessian_product`; the loss is not used.
    """

    def curvature(mean: MeanLoss, outputs: Tensor, targets: Any, first: int) -> Factor:
        return factor

    return _summed(mean, partial(_gauss_newton, curvature), keep)


def _summed(mean: MeanLoss, curvature: Curvature, keep: bool | None) -> Product:
    """The mean over examples of what `curvature` gives for each batch, as a function of vectors."""
    kept = _Kept(keep)

    def product(vectors: Tensor) -> Tensor:
        if vectors.shape[0] != mean.size or vectors.ndim > 2:
            raise ValueError(
                f"expected vectors of shape ({mean.size},) or ({mean.size}, m), got "
                f"{tuple(vectors.shape)}"
            )
        like = dict(zip(mean.names, mean.parameters, strict=True))
        with _differentiable(mean.model):
            directions = vectors.detach().reshape(mean.size, -1).T.clone()
            directions = directions.to(mean.device, mean.dtype).contiguous()
            total = torch.zeros(directions.shape, dtype=torch.float64, device=mean.device)
            for linear in _linear_maps(mean, curvature, kept):
                for row, direction in zip(total, directions, strict=True):
                    parts = unflatten(direction, like, mean.names)
                    row += _flat(linear([parts[name] for name in mean.names]))
        return (total / mean.examples.num).T.reshape(vectors.shape)

    return product


@dataclass(eq=False)
class _Kept:
    """The linear maps of all batches, once it is decided that they are kept."""

    wanted: bool | None
    maps: list[Linear] = field(default_factory=list)
    complete: bool = False


def _linear_maps(mean: MeanLoss, curvature: Curvature, kept: _Kept) -> Iterator[Linear]:
    """One linear map for each batch: those that are kept, or new ones."""
    if kept.complete:
        yield from kept.maps
        return
    kept.maps.clear()
    for inputs, targets, first in _batches(mean):
        if kept.wanted is None:
            with _counted() as storages:
                linear = curvature(mean, inputs, targets, first)
            num = len(tensors_in(targets)[0])
            size = sum(storages.values()) * mean.examples.num / num
            kept.wanted = size <= free_memory(mean.device) / 4
        linear = curvature(mean, inputs, targets, first)
        if kept.wanted:
            kept.maps.append(linear)
        yield linear
    kept.complete = bool(kept.wanted)


def _hessian(mean: MeanLoss, inputs: Any, targets: Any, first: int) -> Linear:
    losses = _losses(mean, _outputs(mean, inputs), targets, first)
    gradients = _pulled(losses.sum(), mean.parameters, graph=True)
    _check_twice(gradients)

    def linear(directions: Sequence[Tensor]) -> Sequence[Tensor]:
        return _pulled(gradients, mean.parameters, directions, retain=True)

    return linear


def _gauss_newton(
    curvature: Callable[[MeanLoss, Tensor, Any, int], Factor],
    mean: MeanLoss,
    inputs: Any,
    targets: Any,
    first: int,
) -> Linear:
    """J' S J of a batch; J v is the derivative of J' u, which is linear in u."""
    outputs = _outputs(mean, inputs)
    seed = torch.zeros_like(outputs, requires_grad=True)
    pulled = _pulled(outputs, mean.parameters, seed, graph=True)
    _check_twice(pulled)
    detached = outputs.detach()
    factor = curvature(mean, detached, targets, first)

    def linear(directions: Sequence[Tensor]) -> Sequence[Tensor]:
        (tangents,) = _pulled(pulled, [seed], directions, retain=True)
        cotangents = factor(detached, tangents)
        return _pulled(outputs, mean.parameters, cotangents, retain=True)

    return linear


def _loss_curvature(mean: MeanLoss, outputs: Tensor, targets: Any, first: int) -> Factor:
    """Products with the Hessian of the loss with respect to the outputs of a batch."""
    leaf = outputs.detach().requires_grad_()
    losses = _losses(mean, leaf, targets, first)
    (slopes,) = _pulled(losses.sum(), [leaf], graph=True)
    _check_twice([slopes])

    def factor(outputs: Tensor, tangents: Tensor) -> Tensor:
        return _pulled(slopes, [leaf], tangents, retain=True)[0]

    return factor


def _batches(mean: MeanLoss) -> Iterator[tuple[Any, Any, int]]:
    """Inputs, targets and the number of the first example of each batch."""
    first = 0
    for inputs, targets in mean.examples.batches(mean.batch_size):
        yield *map_tensors(ordinary, (inputs, targets)), first
        first += len(tensors_in(targets)[0])


def _outputs(mean: MeanLoss, inputs: Any) -> Tensor:
    outputs = caller(mean.model)(inputs)
    if not isinstance(outputs, Tensor):
        raise ValueError(f"the outputs must be one tensor, got {type(outputs).__name__}")
    if not outputs.requires_grad:
        raise ValueError(
            f"the outputs ({outputs.dtype}) cannot be differentiated with respect to "
            f"{', '.join(mean.names[:4])}{', ...' if len(mean.names) > 4 else ''}: are they "
            "detached, rounded or an argmax?"
        )
    return outputs


def _losses(mean: MeanLoss, outputs: Tensor, targets: Any, first: int) -> Tensor:
    """The losses (batch,), checked."""
    losses = mean.loss(outputs, targets)
    num = len(tensors_in(targets)[0])
    if not isinstance(losses, Tensor) or losses.shape != (num,):
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise ValueError(
            f"loss of task {mean.task!r} must give one value per example, shape ({num},) for {num} "
            f"examples, got {shape}; use reduction='none'"
        )
    if not losses.requires_grad:
        raise ValueError(
            f"the loss of task {mean.task!r} cannot be differentiated with respect to the outputs"
        )
    finite = torch.isfinite(losses)
    if not finite.all():
        bad = int((~finite).nonzero()[0])
        raise ValueError(
            f"the loss of example {first + bad} of task {mean.task!r} is {losses[bad].item()}"
        )
    return losses


def _blame(mean: MeanLoss, inputs: Any, targets: Any, first: int) -> None:
    """Raise `ValueError` with the first example whose gradient, by itself, is not finite."""
    for number in range(len(tensors_in(targets)[0])):
        only = slice(number, number + 1)
        x, y = map_tensors(itemgetter(only), (inputs, targets))
        losses = _losses(mean, _outputs(mean, x), y, first + number)
        if not torch.isfinite(_flat(_pulled(losses.sum(), mean.parameters))).all():
            raise ValueError(
                f"the gradient of example {first + number} of task {mean.task!r} is not finite, "
                f"though its loss is {losses.item():.6g}"
            )
    raise ValueError(
        f"the gradient of examples {first} to {first + number} of task {mean.task!r} is not finite"
    )


def _check_twice(gradients: Sequence[Tensor]) -> None:
    """Refuse operations with `once_differentiable`, which autograd would leave out in silence."""
    waiting = [tensor.grad_fn for tensor in gradients]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":
            raise ValueError(
                "an operation of the model or the loss has no second derivative: its backward is "
                "marked once_differentiable"
            )
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]


def _pulled(
    outputs: Tensor | Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Tensor | Sequence[Tensor] | None = None,
    *,
    graph: bool = False,
    retain: bool = False,
) -> Sequence[Tensor]:
    """What autograd pulls back to the inputs; zeros where nothing depends on them."""
    several = [outputs] if isinstance(outputs, Tensor) else outputs
    given: Sequence[Tensor | None]
    given = [cotangents] if cotangents is None or isinstance(cotangents, Tensor) else cotangents
    pairs = [(y, g) for y, g in zip(several, given, strict=True) if y.requires_grad]
    if not pairs:
        return [torch.zeros_like(x) for x in inputs]
    try:
        return torch.autograd.grad(
            [y for y, _ in pairs], inputs, [g for _, g in pairs], materialize_grads=True,
            allow_unused=True, create_graph=graph, retain_graph=graph or retain,
        )  # fmt: skip
    except RuntimeError as error:
        if "is not implemented" in str(error):
            raise ValueError(
                f"an operation of the model or the loss has no second derivative: {error}"
            ) from error
        raise


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.detach().reshape(-1).double() for part in parts])


@contextmanager
def _counted() -> Iterator[dict[int, int]]:
    """Bytes of each storage that the graphs made here hold on to."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield storages


@contextmanager
def _differentiable(model: nn.Module) -> Iterator[None]:
    """Exact arithmetic with gradients, and with operations that can be differentiated twice."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    enabled = torch.backends.cudnn.enabled
    with (
        gradients_allowed(),
        torch.enable_grad(),
        sdpa_kernel([SDPBackend.MATH]),
    ):
        try:  # cuDNN has no gradient of recurrent layers in evaluation mode, nor a second one
            torch.backends.cudnn.enabled = enabled and not recurrent
            yield
        finally:
            torch.backends.cudnn.enabled = enabled
