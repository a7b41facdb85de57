"""How do the weights of a stack of runs move? SGD and Adam on rows, each with its own rates.

Weights, gradients and moments are matrices (n, P), one row for each run; rates are columns (n, 1).
The updates are those of `torch.optim.SGD`, `Adam` and `AdamW`, operation by operation.
"""

import torch
from torch import Tensor

BETA2, EPSILON = 0.999, 1e-8  # of Adam, as everywhere


def moments(optimiser: str, weights: Tensor) -> dict[str, Tensor]:
    """What an optimiser keeps for each weight, and Adam's count of steps (n, 1), at its start."""
    if optimiser in ("sgd", "nesterov"):
        return {"momentum": torch.zeros_like(weights)}
    return {
        "first": torch.zeros_like(weights),
        "second": torch.zeros_like(weights),
        "count": weights.new_zeros(len(weights), 1),
    }


def update(
    optimiser: str,
    weights: Tensor,
    gradient: Tensor,
    kept: dict[str, Tensor],
    *,
    lr: Tensor,
    momentum: Tensor,
    weight_decay: Tensor,
    decayed: Tensor | None = None,
    mask: Tensor | None = None,
) -> None:
    """Take one step, in place; the gradient is used up.

    Decay holds for the weights that are 1 in `decayed` (n, P). Where `mask` (n, P) is 0 nothing
    moves: no gradient, no decay, and moments are zero.
    """
    decay = weight_decay if decayed is None else weight_decay * decayed
    if optimiser == "adamw":
        weights.mul_(1 - lr * (decay if mask is None else decay * mask))
    else:
        gradient.addcmul_(weights, decay)
    if mask is not None:
        gradient.mul_(mask)
        for name in kept.keys() - {"count"}:
            kept[name].mul_(mask)
    if optimiser in ("sgd", "nesterov"):
        velocity = kept["momentum"].mul_(momentum).add_(gradient)
        step = gradient.addcmul_(velocity, momentum) if optimiser == "nesterov" else velocity
        weights.addcmul_(step, lr, value=-1)
        return
    count = kept["count"].add_(1)
    first = kept["first"].lerp_(gradient, 1 - momentum)
    second = kept["second"].mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
    scale = second.sqrt().div_((1 - BETA2**count).sqrt()).add_(EPSILON)
    weights.addcdiv_(first * (lr / (1 - momentum**count)), scale, value=-1)
