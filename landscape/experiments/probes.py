"""What does a network say to a data set, and how would it move on it, before a run goes on?"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from landscape.datasets import Batches
from landscape.engine import with_state
from landscape.examples import pick_device
from landscape.states import State, Stored, loaded, match
from landscape.task import random_state_kept


def predictions(
    model: nn.Module, state: State | Stored, data: Batches, *, device: str | torch.device = "auto"
) -> Tensor:
    """The outputs (N, ...) for all examples of a data set, in evaluation mode, on the CPU.

    The model gives the architecture and is not changed. Raises `ValueError` if the state does not
    fit it.
    """
    twin = placed(model, state, device)
    shown = data.to(next(twin.parameters()).device)
    with torch.no_grad():
        return torch.cat([twin(inputs).cpu() for inputs, _ in shown])


def prediction_agreement(
    model: nn.Module,
    state: State | Stored,
    factors: Sequence[float],
    data: Batches,
    *,
    device: str | torch.device = "auto",
) -> NDArray[np.float64]:
    """The share of examples with the same answer when all weights are multiplied by each factor.

    Networks of ReLUs without biases keep all answers (Ash & Adams 2020, section 4). Statistics of
    batch norm stay as they are. Raises `ValueError` if the state does not fit the model.
    """
    state = match(loaded(state), model)
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    answers = predictions(model, state, data, device=device).argmax(-1)
    agreements = []
    for factor in factors:
        shrunk = {**state, **{name: state[name] * factor for name in names}}
        same = predictions(model, shrunk, data, device=device).argmax(-1) == answers
        agreements.append(same.double().mean().item())
    return np.array(agreements)


def gradient_norms(
    model: nn.Module,
    state: State | Stored,
    sets: Mapping[str, Batches],
    *,
    device: str | torch.device = "auto",
) -> dict[str, float]:
    """The mean over batches of the norm of the gradient of each data set: old and new, say.

    The cross-entropy is averaged over each of the data's own batches, in training mode, as a step
    from here would see it; the state stays as it is. Raises `ValueError` if it does not fit.
    """
    found: dict[str, float] = {}
    for name, data in sets.items():
        twin = placed(model, state, device).train().requires_grad_()
        norms, weights = [], list(twin.parameters())
        with random_state_kept(), torch.enable_grad():
            for inputs, targets in data.to(weights[0].device):
                loss = F.cross_entropy(twin(inputs), targets)
                parts = torch.autograd.grad(loss, weights, allow_unused=True)
                squares = [part.double().square().sum() for part in parts if part is not None]
                norms.append(torch.stack(squares).sum().sqrt().item())
        found[name] = float(np.mean(norms))
    return found


def placed(
    model: nn.Module, state: State | Stored, device: str | torch.device = "auto"
) -> nn.Module:
    """A private copy of the model with that state, on the device, in evaluation mode.

    Raises `ValueError` if the state does not fit the model.
    """
    where, state = pick_device(device), match(loaded(state), model)
    kinds = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    dtype = kinds.pop() if len(kinds) == 1 else torch.get_default_dtype()
    return with_state(model, state, device=where, dtype=dtype)
