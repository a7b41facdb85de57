"""What does a network say to all examples of a data set? In evaluation mode, batch by batch."""

import torch
from torch import Tensor, nn

from landscape.datasets import Batches
from landscape.engine import with_state
from landscape.examples import pick_device
from landscape.states import State, Stored, loaded, match


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


def predictions(
    model: nn.Module,
    state: State | Stored,
    data: Batches,
    *,
    device: str | torch.device = "auto",
) -> Tensor:
    """The outputs (N, ...) for all examples of a data set, in its order, on the CPU.

    The model gives the architecture and is not changed. Raises `ValueError` if the state does not
    fit it.
    """
    twin = placed(model, state, device)
    where = next(twin.parameters()).device
    with torch.no_grad():
        return torch.cat([twin(inputs).cpu() for inputs, _ in data.to(where)])
