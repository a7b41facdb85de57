"""How large are the weights of each layer, how are they spread, and how far are they from others?

Sums over the parameters of each layer are taken checkpoint by checkpoint; `measures` makes norms,
distances, angles and shares of them, of a layer as of the whole network.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from landscape.states import State, weight_names

Array = NDArray[np.float64]
Layers = Mapping[str, Sequence[str]]
Sums = dict[str, Any]

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
EDGES = 10.0 ** np.linspace(-8, 2, 81)  # of sizes of weights; there is a cell below and one above
REFERENCES = ("initial", "final", "previous")
SUMS = ("apart", "product", "other", "same")  # with each of the references


def layers_of_weights(first: State, last: State, model: nn.Module | None) -> Layers:
    """The names of the parameters of each layer, tied ones once at their first name.

    A layer is what comes before the last dot; a parameter in no module stands for itself. Without a
    model, parameters are all weights, and those that share memory in both states are tied.

    Raises `ValueError` if there is none.
    """
    names = weight_names(first) if model is None else [n for n, _ in model.named_parameters()]
    seen: set[Any] = set()
    layers: dict[str, list[str]] = {}
    for name in names:
        place = _memory(first[name]), _memory(last[name])
        if first[name].is_floating_point() and (model is not None or place not in seen):
            layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
        if first[name].numel():
            seen.add(place)
    if not layers:
        raise ValueError("the checkpoints hold no floating-point weights")
    return layers


def sums_of(state: State, layers: Layers, references: Mapping[str, State | None]) -> Sums:
    """What `measures` needs of a state and those it is compared with, each (layers, ...).

    Also `quantile` (layers, quantiles) and `count` (layers, cells) of the weights. Of a reference
    that is None the sums are NaN.
    """
    parts = []
    for names in layers.values():
        x = _flat(state, names)
        part = _own(x)
        for name, reference in references.items():
            values = [np.nan] * len(SUMS)
            if reference is not None:
                values = _with(x, _flat(reference, names))
            part |= {f"{kind}_{name}": v for kind, v in zip(SUMS, values, strict=True)}
        parts.append(part)
    return stacked(parts)


def stacked(parts: Sequence[Sums]) -> Sums:
    """The sums of several layers, or of several states, along a new first dimension."""
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}


def whole(sums: Sums) -> Sums:
    """The sums (rows,) of all layers together, from those (rows, layers) of each."""
    one = {name: values.sum(1) for name, values in sums.items() if values.ndim == 2}
    for name in {"slope", "expected", "variance"} & sums.keys():
        known = ~np.isnan(sums[name]).all(0)  # the others are frozen
        one[name] = sums[name][:, known].sum(1) if known.any() else one[name]
    shifts = sums["sum"] / sums["num"] - (one["sum"] / one["num"])[:, None]
    one["centred"] = one["centred"] + (sums["num"] * shifts**2).sum(1)
    return one


def measures(sums: Sums, gaps: Array) -> dict[str, Array]:
    """The variables of `dynamics` that sums give; `gaps`: steps since the checkpoint before."""
    found = {
        "weight_norm": np.sqrt(sums["square"]),
        "weight_std": np.sqrt(sums["centred"] / sums["num"]),
        "zeros": sums["zero"] / sums["num"],
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        for name in REFERENCES:
            found[f"distance_{name}"] = np.sqrt(sums[f"apart_{name}"])
            size = found["weight_norm"] * np.sqrt(sums[f"other_{name}"])
            cosine = np.clip(sums[f"product_{name}"] / size, -1, 1)
            found[f"cosine_{name}"] = np.where(sums[f"apart_{name}"] == 0, 1.0, cosine)
            found[f"signs_{name}"] = sums[f"same_{name}"] / sums["num"]
        found["change_per_step"] = found["distance_previous"] / gaps
        if "slope" in sums:
            found["gradient_norm"] = np.sqrt(np.maximum(sums["slope"], 0))
            scale = sums["variance"] / sums["expected"]
            found["noise_scale"] = np.where(sums["expected"] > 0, scale, np.nan)
    return found


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _flat(state: State, names: Iterable[str]) -> Tensor:
    """Parameters as one vector in float64, on the CPU."""
    return torch.cat([state[n].detach().reshape(-1).to("cpu", torch.float64) for n in names])


def _own(x: Tensor) -> Sums:
    """Sums over the weights of a layer, and their distribution."""
    values = x.numpy()
    finite = np.isfinite(values)
    quantiles = np.full(len(QUANTILES), np.nan)
    cells = np.searchsorted(EDGES, abs(values[finite]), side="right")
    return {
        "num": x.numel(),
        "sum": x.sum().item(),
        "square": x.square().sum().item(),
        "centred": (x - x.mean()).square().sum().item(),
        "zero": (x == 0).sum().item(),
        "quantile": np.quantile(values, QUANTILES) if finite.all() else quantiles,
        "count": np.bincount(cells, minlength=len(EDGES) + 1),
    }


def _with(x: Tensor, y: Tensor) -> list[float]:
    """`SUMS` over the weights of a layer and those of a reference."""
    signs = (x.sign() == y.sign()).sum().item()
    return [(x - y).square().sum().item(), torch.dot(x, y).item(), y.square().sum().item(), signs]
