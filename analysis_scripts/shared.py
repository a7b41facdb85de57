"""What the scripts of this folder share: plain training of a small network."""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from landscape import datasets
from landscape.states import State


def trained(
    model: nn.Module,
    data: datasets.Batches,
    *,
    seed: int,
    epochs: int,
    on_step: Callable[[int, State], None] | None = None,
) -> State:
    """The weights after SGD with momentum, weight decay and a cosine schedule.

    `on_step` sees the number of steps taken and the weights, before each step and at the end.
    """

    def state() -> State:
        return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    order = np.random.default_rng(seed)
    inputs = torch.cat([inputs for inputs, _ in data])
    steps = -(-len(inputs) // 64)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * steps)
    model.train()
    taken = 0
    for _ in range(epochs):
        for index in np.array_split(order.permutation(len(inputs)), steps):
            if on_step is not None:
                on_step(taken, state())
            optimiser.zero_grad()
            F.cross_entropy(model(inputs[index]), data.targets[index]).backward()
            optimiser.step()
            schedule.step()
            taken += 1
    if on_step is not None:
        on_step(taken, state())
    return state()
