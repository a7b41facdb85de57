"""How do units keep their moments on a path? REPAIR sets them, by a batch norm behind each layer.

A unit of a mixed network varies less than the units it was mixed from, and the less the deeper it
lies; so its mean and standard deviation are set to the interpolated ones (Jordan et al. 2022,
section 4). A `Correction` behind each layer does it: at a control its weight and bias are the
standard deviation and the mean that the layer's outputs have there, so that it changes nothing;
along a family they mix like all weights, and recalibration gives it the moments of each point.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from landscape.engine import caller
from landscape.normalisation import Correction, Moments, Observer, entry, merged_moments
from landscape.states import State
from landscape.task import tensors_in

NAME = "correction"
ROUNDING = 1e-9  # by which coefficients of points between controls may be below 0


def layers_to_correct(model: nn.Module, inputs: Any) -> list[str]:
    """Names of the layers whose units REPAIR corrects, in the order in which the data reach them.

    These are the linear and convolutional layers that run for `inputs`, but not those that give the
    model's outputs (the last one to run, and those whose outputs are returned) and not those whose
    outputs go to a batch norm and nowhere else, which undoes any correction. So a network with a
    batch norm behind every hidden layer needs none: REPAIR is recalibration there. The private
    `model` is run once.

    Raises `ValueError` for a layer that runs twice: its outputs have no single moments.
    """
    uses, called = _Uses(), []

    def note(name: str, layer: nn.Module, args: Any, output: Tensor) -> None:
        uses.functions.pop(id(output), None)  # of a tensor that is gone
        called.append((name, output))

    hooks = [
        layer.register_forward_hook(partial(note, name)) for name, layer in _layers(model).items()
    ]
    try:
        with uses:
            outputs = caller(model)(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    returned = {id(tensor) for tensor in tensors_in(outputs)}
    last = called[-1][0] if called else ""
    names: list[str] = []
    for name, output in called:
        if name == last or id(output) in returned or uses.functions.get(id(output)) == BATCH_NORM:
            continue
        if name in names:
            raise ValueError(
                f"the layer {name!r} is used twice in one forward pass, so its outputs have no "
                "single moments to repair; use another batch_norm"
            )
        names.append(name)
    return names


def layer_moments(
    models: Sequence[nn.Module],
    tensors: Mapping[str, Tensor],
    layers: Sequence[str],
    batches: Callable[[], Iterator[tuple[Any, Any]]],
    *,
    vectorised: bool,
) -> dict[str, Moments]:
    """Moments of the outputs of layers at K points, exact over all batches, in one pass."""
    observer = Observer()

    def see(name: str, layer: nn.Module, args: Any, output: Tensor) -> None:
        observer.see(name, _units_second(layer, output))

    hooks = [
        model.get_submodule(name).register_forward_hook(partial(see, name))
        for model in models
        for name in layers
    ]
    try:
        return merged_moments(models, tensors, batches, observer, vectorised=vectorised)
    finally:
        for hook in hooks:
            hook.remove()


def corrected(
    model: nn.Module,
    controls: Sequence[State],
    moments: Mapping[str, NDArray[np.float64]],
    dtype: torch.dtype,
) -> tuple[nn.Module, tuple[State, ...]]:
    """A copy of the model with corrections, and the controls with entries for them.

    `moments` holds for each layer to correct the means and biased variances (2, m, units) of its
    outputs at the m controls. Deviations that are noise in `dtype` beside the layer's root mean
    square are not amplified, so that units which do not vary have finite values.
    """
    twin, states = copy.deepcopy(model), [dict(state) for state in controls]
    for name, (mean, var) in moments.items():
        noise = 256 * torch.finfo(dtype).eps
        eps = max(noise**2 * float((mean**2 + var).max()), 1e-30)
        layer = twin.get_submodule(name)
        layer.add_module(NAME, Correction(mean.shape[1], eps=eps))
        layer.register_forward_hook(_correct)
        entries = {
            "weight": np.sqrt(var + eps),
            "bias": mean,
            "running_mean": mean,
            "running_var": var,
            "num_batches_tracked": np.zeros(len(mean), dtype=np.int64),
        }
        for leaf, rows in entries.items():
            for state, row in zip(states, torch.from_numpy(rows), strict=True):
                state[entry(entry(name, NAME), leaf)] = row
    return twin, tuple(states)


def corrected_layers(model: nn.Module) -> list[str]:
    """Names of the layers of a model that have corrections."""
    return [name for name, layer in _layers(model).items() if hasattr(layer, NAME)]


def check_between(coefficients: NDArray[np.float64]) -> None:
    """Raise `ValueError` unless the points are between their controls."""
    if (coefficients < -ROUNDING).any() or (abs(coefficients.sum(1) - 1) > ROUNDING).any():
        raise ValueError(
            "batch_norm='repair' sets standard deviations to those between the ends, which have no "
            "meaning beyond them: stay between the control states, or use 'recalibrate'"
        )


class _Uses(TorchFunctionMode):
    """Which functions of torch a tensor is given to, by the tensor's `id`."""

    def __init__(self) -> None:
        super().__init__()
        self.functions: dict[int, list[Any]] = {}

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if tensors_in(result):  # asking for a shape is no use
            for tensor in tensors_in((args, kwargs)):
                self.functions.setdefault(id(tensor), []).append(function)
        return result


BATCH_NORM = [F.batch_norm]


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    modules = model.named_modules()
    return {name: module for name, module in modules if isinstance(module, nn.Linear | _ConvNd)}


def _units_second(layer: nn.Module, outputs: Tensor) -> Tensor:
    """Outputs with their units along dimension 1; a linear layer has them along the last."""
    return outputs if isinstance(layer, _ConvNd) else outputs.movedim(-1, 1)


def _correct(layer: nn.Module, args: Any, outputs: Tensor) -> Tensor:
    values = layer.get_submodule(NAME)(_units_second(layer, outputs))
    return values if isinstance(layer, _ConvNd) else values.movedim(1, -1)
