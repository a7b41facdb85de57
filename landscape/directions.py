"""In which random directions may surfaces be compared? Those as long as the weights they move.

Li et al. 2018, section 4: a network with ReLUs computes the same if one layer is scaled up and the
next one down, so a direction means something only in proportion to the weights.
"""

from collections.abc import Iterable
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from landscape.states import State, weight_names

NORMALISATIONS = ("filter", "layer", "model", None)
NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
ROWS = (
    *(nn.Linear, nn.Bilinear, _ConvNd, nn.Embedding, nn.EmbeddingBag),
    *(nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase),
)
Layout = tuple[int, int, int, int]  # groups, inputs, units, rest


def random_directions(
    state: State,
    *,
    model: nn.Module | None = None,
    normalise: str | None = "filter",
    num: int = 2,
    seed: int = 0,
) -> list[State]:
    """Gaussian directions (zero mean, float64) with the norms of the weights that they move.

    `normalise` scales the direction to the norm of the weights in each

    - `"filter"`: output unit, over all other axes: row of a linear layer, of an embedding, of fused
      projections and of gates, output channel of a convolution, transposed and grouped ones too;
    - `"layer"`: tensor;
    - `"model"`: or all that moves, at once.

    None leaves the draws as they are. Where the weights are zero, so is a scaled direction. Biases
    and the parameters of normalisation layers do not move, and are missing. The layers of `model`
    say what is what; parameters of other modules are scaled as a whole, and do not move if their
    name ends in "bias" or they have fewer than two axes. Without a model that goes for all tensors
    with fewer than two axes, and the units of the others are their rows. Tied weights share one
    direction. Draws are made on the CPU, in the order of the model's (or the state's) names.

    Raises `ValueError` for an unknown normalisation, or if nothing moves.
    """
    if normalise not in NORMALISATIONS:
        raise ValueError(f"normalise must be 'filter', 'layer', 'model' or None, got {normalise!r}")
    moving = _by_rows(state) if model is None else _by_layers(model)
    if not moving:
        raise ValueError(
            "nothing would move: the state has only biases, parameters of normalisation layers, "
            f"and tensors with fewer than two axes ({', '.join(list(state)[:5])}); give "
            "directions of your own to affine()"
        )
    weights = {names: state[names[0]].detach().double() for names in moving}
    generator = torch.Generator().manual_seed(seed)
    directions: list[State] = []
    for _ in range(num):
        drawn = {}
        for names, weight in weights.items():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            drawn[names] = noise.to(weight.device)
            if normalise in ("filter", "layer"):
                whole = (1, 1, 1, weight.numel())
                layout = moving[names] if normalise == "filter" else whole
                drawn[names] = _scaled(drawn[names], weight, layout)
        if normalise == "model":
            ratio = _norm(weights.values()) / _norm(drawn.values())
            drawn = {names: ratio * noise for names, noise in drawn.items()}
        directions.append({name: drawn[names] for names in drawn for name in names})
    return directions


def shared_names(state: State) -> list[list[str]]:
    """Names of the weights, those of one tensor together: tied weights share their memory."""
    groups: dict[object, list[str]] = {}
    for name in weight_names(state):
        tensor = state[name]
        place = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name
        groups.setdefault(place, []).append(name)
    return list(groups.values())


def _by_rows(state: State) -> dict[tuple[str, ...], Layout]:
    """Names of each tensor with at least two axes; its units are its rows."""
    groups = [names for names in shared_names(state) if state[names[0]].ndim > 1]
    return {tuple(names): _rows(tuple(state[names[0]].shape)) for names in groups}


def _by_layers(model: nn.Module) -> dict[tuple[str, ...], Layout]:
    """Names of each parameter that moves, several if it is tied, and how its units lie in it."""
    names: dict[int, list[str]] = {}
    layouts: dict[int, Layout | None] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for leaf, parameter in module.named_parameters(recurse=False):
            names.setdefault(id(parameter), []).append(f"{path}.{leaf}" if path else leaf)
            layouts.setdefault(id(parameter), _layout(module, leaf, tuple(parameter.shape)))
    return {tuple(names[key]): layout for key, layout in layouts.items() if layout is not None}


def _layout(module: nn.Module, leaf: str, shape: tuple[int, ...]) -> Layout | None:
    """How the units of a parameter lie in it; None if it does not move."""
    if isinstance(module, NORMS):
        return None
    if isinstance(module, ROWS):
        if "bias" in leaf:
            return None
        if isinstance(module, _ConvNd) and module.transposed:
            inputs, outputs, *kernel = shape
            return (module.groups, inputs // module.groups, outputs, prod(kernel))
        return _rows(shape)
    if leaf.endswith("bias") or len(shape) < 2:
        return None
    return (1, 1, 1, prod(shape))


def _rows(shape: tuple[int, ...]) -> Layout:
    return (1, 1, shape[0], prod(shape[1:]))


def _scaled(noise: Tensor, weight: Tensor, layout: Layout) -> Tensor:
    """Noise with the norms of the weights in each unit; zero where the weights are."""
    ours, theirs = (
        torch.linalg.vector_norm(x.reshape(layout), dim=(1, 3), keepdim=True)
        for x in (noise, weight)
    )
    ratio = torch.where(ours > 0, theirs / ours, 0.0)
    return (noise.reshape(layout) * ratio).reshape(noise.shape)


def _norm(tensors: Iterable[Tensor]) -> float:
    return float(sum(tensor.square().sum().item() for tensor in tensors)) ** 0.5
