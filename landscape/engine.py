"""How do many points share one pass of the data? Private copies of the model, looped or vmapped.

The user's model is never run: `replicate` makes copies whose tensors are set from the points.
`run` takes a function of one model over all batches and all points. `strategy` chooses how.
"""

import copy
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from landscape.task import PerExample, map_tensors, random_state_kept

Call = Callable[[Any], Any]
Measure = Callable[[Call, Any, Any], dict[str, Tensor]]


def replicate(
    model: nn.Module, num: int, *, device: torch.device, dtype: torch.dtype, layout: str
) -> list[nn.Module]:
    """Private copies of the model on the device, in evaluation mode and without gradients."""
    copies = []
    for _ in range(num):
        twin = copy.deepcopy(model).eval().requires_grad_(False)
        if any(t.is_meta for t in itertools.chain(twin.parameters(), twin.buffers())):
            twin = twin.to_empty(device=device)
        twin = twin.to(device=device, dtype=dtype)
        if layout == "channels_last":
            twin = twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        copies.append(twin)
    return copies


def install(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy values into the parameters and buffers of a private model."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in tensors.items():
        own[name].copy_(tensor)


def with_state(
    model: nn.Module, state: Mapping[str, Tensor], *, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """A private copy of a model, with the parameters and buffers of a state that matches it."""
    (twin,) = replicate(model, 1, device=device, dtype=dtype, layout="contiguous")
    install(twin, {name: state[name] for name in own_names(twin) if name in state})
    return twin


def own_names(model: nn.Module) -> Iterator[str]:
    """Names of the parameters (tied ones once) and of all buffers."""
    return (name for name, _ in itertools.chain(model.named_parameters(), model.named_buffers()))


def run(
    models: Sequence[nn.Module],
    tensors: Mapping[str, Tensor],
    batches: Callable[[], Iterator[tuple[Any, Any]]],
    measure: Measure,
    *,
    vectorised: bool,
) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Take K points over all batches; give `(points, values)` with values (points, ...).

    `tensors` are the stacked weights (K, *shape) of the points. `measure(call, inputs, targets)`
    sees one model, whose outputs `call(inputs)` gives. One model serves the points one after the
    other; as many models as points share each batch; `vectorised` runs all points at once.
    """
    num = len(next(iter(tensors.values())))
    if vectorised and num > 1:  # some operations of torch refuse a single one
        for inputs, targets in batches():
            yield slice(0, num), vmapped(models[0], tensors, measure, inputs, targets)
    elif len(models) == 1:
        for k in range(num):
            install(models[0], {name: tensor[k] for name, tensor in tensors.items()})
            for inputs, targets in batches():
                yield _one(k, measure(caller(models[0]), inputs, targets))
    else:
        for k in range(num):
            install(models[k], {name: tensor[k] for name, tensor in tensors.items()})
        for inputs, targets in batches():
            for k in range(num):
                yield _one(k, measure(caller(models[k]), inputs, targets))


def _one(k: int, values: dict[str, Tensor]) -> tuple[slice, dict[str, Tensor]]:
    return slice(k, k + 1), {name: value[None] for name, value in values.items()}


def vmapped(
    model: nn.Module, tensors: Mapping[str, Tensor], measure: Measure, inputs: Any, targets: Any
) -> dict[str, Tensor]:
    """The values (K, ...) of a batch at all points at once."""

    def single(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        def call(inputs: Any) -> Any:
            args, kwargs = _arguments(inputs)
            return functional_call(model, tensors, args, kwargs)

        return measure(call, inputs, targets)

    with quiet_vmap():
        return vmap(single)(dict(tensors))


def measured(
    measures: Mapping[str, PerExample], call: Call, inputs: Any, targets: Any
) -> dict[str, Tensor]:
    """The values of a batch, each (batch,)."""
    outputs = call(inputs)
    return {name: measure(outputs, targets) for name, measure in measures.items()}


def caller(model: nn.Module) -> Call:
    """A function of the inputs that runs the model."""

    def call(inputs: Any) -> Any:
        args, kwargs = _arguments(inputs)
        return model(*args, **kwargs)

    return call


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Copies of the inputs: a model may begin in place, and the data are the user's."""
    inputs = map_tensors(Tensor.clone, inputs)
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


@contextmanager
def quiet_vmap() -> Iterator[None]:
    """Without the warning that an operation is slow under `vmap`: that is what the trial is for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """No gradients, no autocast, no TF32, deterministic cuDNN; the user's settings come back."""
    backends: Any = torch.backends
    operations = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    operations += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
    wanted: list[tuple[Any, str, Any]] = [(op, "fp32_precision", "ieee") for op in operations]
    wanted += [(backends.cudnn, "deterministic", True), (backends.cudnn, "benchmark", False)]
    found = [(place, name, getattr(place, name)) for place, name, _ in wanted]
    try:
        for place, name, value in wanted:
            setattr(place, name, value)
        with (
            torch.inference_mode(),
            torch.autocast("cuda", enabled=False),
            torch.autocast("cpu", enabled=False),
        ):
            yield
    finally:
        for place, name, value in found:
            setattr(place, name, value)


@contextmanager
def gradients_allowed() -> Iterator[None]:
    """Exact arithmetic and kept random state, with tensors that may be part of a graph."""
    with (
        exact_arithmetic(),
        random_state_kept(),
        torch.inference_mode(False),
        torch.no_grad(),
    ):
        yield


def ordinary(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it that may be part of a graph if it is from inference mode."""
    with torch.inference_mode(False):
        return tensor.clone() if tensor.is_inference() else tensor
