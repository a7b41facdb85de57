"""What is a point of the landscape, and how far apart are two of them?

A `State` is a whole `state_dict`, buffers included, with no wrapper around it. Its *weights* are
the floating-point entries that training moves; the statistics of normalisation layers are not
weights and count in no norm or distance.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

State = Mapping[str, Tensor]


class Stored(Protocol):
    """A state that is read when it is needed, such as a `Checkpoint`."""

    def load(self) -> State:
        """The state."""


PIECE = 2**20  # numbers of a tensor that are taken to float64 at a time
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def loaded(state: State | Stored) -> State:
    """The state itself, or the one that a checkpoint holds."""
    return state if isinstance(state, Mapping) else state.load()


def weight_names(state: State) -> list[str]:
    """Names of the floating-point entries that are no statistics of a normalisation layer."""
    return [
        name
        for name, tensor in state.items()
        if tensor.is_floating_point() and name.rpartition(".")[2] not in STATISTICS
    ]


def flatten(
    states: Sequence[State],
    names: Iterable[str],
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The named entries of m states as the rows of an (m, P) matrix, in the order of `names`."""
    names = list(names)
    sizes = [states[0][name].numel() for name in names]
    matrix = torch.empty(len(states), sum(sizes), dtype=dtype, device=device)
    for row, state in zip(matrix, states, strict=True):
        for part, name in zip(row.split(sizes), names, strict=True):
            part.copy_(state[name].detach().reshape(-1))
    return matrix


def unflatten(matrix: Tensor, like: State, names: Iterable[str]) -> dict[str, Tensor]:
    """Views of an (n, P) matrix as stacked tensors (n, *shape), one for each name.

    A vector (P,) gives tensors of the shapes in `like`. The inverse of `flatten`.
    """
    names = list(names)
    parts = matrix.split([like[name].numel() for name in names], dim=-1)
    lead = matrix.shape[:-1]
    return {
        name: part.unflatten(-1, like[name].shape) if like[name].ndim else part.reshape(lead)
        for name, part in zip(names, parts, strict=True)
    }


def inner_products(
    states: Sequence[State],
    names: Iterable[str],
    *,
    origin: State | None = None,
    mix: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Inner products (m, m) of the named entries of m states, less those of an origin.

    With `mix` (k, m) those (k, k) of k linear combinations of them. In float64 on the device of the
    first state, piece by piece; differences and combinations are taken before products, so that
    close states far from zero lose nothing.
    """
    num = len(states) if mix is None else len(np.asarray(mix))
    total = np.zeros((num, num))
    for name in names:
        tensors = [state[name].detach().reshape(-1) for state in states]
        base = None if origin is None else origin[name].detach().reshape(-1)
        device = tensors[0].device
        for start in range(0, len(tensors[0]), PIECE):
            part = slice(start, start + PIECE)
            rows = torch.stack([tensor[part].to(device, torch.float64) for tensor in tensors])
            if base is not None:
                rows -= base[part].to(rows)
            if mix is not None:
                rows = torch.as_tensor(mix, dtype=rows.dtype, device=device) @ rows
            total += (rows @ rows.T).cpu().numpy()
    return total


def norm(state: State) -> float:
    """Euclidean norm of the weights, summed in float64."""
    return sum(state[name].double().square().sum().item() for name in weight_names(state)) ** 0.5


def distance(a: State, b: State) -> float:
    """Euclidean distance between the weights of two states, summed in float64.

    Raises `ValueError` if the states differ in names or shapes.
    """
    check_alike([a, b])
    squares = ((a[name].double() - b[name].double()).square().sum() for name in weight_names(a))
    return float(sum(square.item() for square in squares)) ** 0.5


def check_alike(states: Sequence[State]) -> None:
    """Raise `ValueError` unless all states have the same names and shapes."""
    first = {name: tuple(tensor.shape) for name, tensor in states[0].items()}
    for number, state in enumerate(states[1:], start=1):
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if problem := _difference(first, shapes):
            raise ValueError(
                f"states 0 and {number} are not of one architecture:\n{problem}\n"
                "Points can be joined only where every tensor has a partner of its shape."
            )


def match(state: State, model: nn.Module, *, allow_missing: Collection[str] = ()) -> State:
    """The entries of `state` in the order of `model.state_dict()`, checked against it.

    A missing name of a tied weight is filled from its partner; names that match a pattern in
    `allow_missing` (as in `fnmatch`) are filled from the model. Raises `ValueError` naming the
    first five missing, unexpected and misshapen entries, each with the closest name.
    """
    reference = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    filled = dict(state)
    for names in tied_names(model):
        present = [name for name in names if name in state]
        if present:
            filled |= {name: state[present[0]] for name in names if name not in state}
        if any(not torch.equal(state[present[0]], state[name]) for name in present[1:]):
            raise ValueError(
                f"the model ties {', '.join(names)}, but their values in the state differ. "
                "Load it into a model without the tie, or make the values equal."
            )
    for name, tensor in reference.items():
        if name not in filled and any(fnmatchcase(name, pattern) for pattern in allow_missing):
            filled[name] = tensor.detach().clone()
    expected = {name: tuple(tensor.shape) for name, tensor in reference.items()}
    problem = _difference(expected, {name: tuple(tensor.shape) for name, tensor in filled.items()})
    if problem:
        raise ValueError(f"the state does not fit {type(model).__name__}:\n{problem}")
    return {name: filled[name] for name in reference}


def tied_names(model: nn.Module) -> list[list[str]]:
    """Groups of names under which the model holds one and the same parameter."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _difference(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> str:
    """What is missing, unexpected or misshapen, as lines of text; empty if nothing is."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshapen = [n for n in expected if n in found and expected[n] != found[n]]
    lines = []
    if missing:
        lines += [f"  missing ({len(missing)}): " + _closest(missing, unexpected or list(found))]
    if unexpected:
        lines += [f"  unexpected ({len(unexpected)}): " + _closest(unexpected, missing)]
    if misshapen:
        shapes = [f"{n} expected {expected[n]}, found {found[n]}" for n in misshapen[:5]]
        lines += [f"  wrong shape ({len(misshapen)}): " + "; ".join(shapes)]
    return "\n".join(lines)


def _closest(names: list[str], others: list[str]) -> str:
    """The first five names, each with the most similar of the others."""
    shown = []
    for name in names[:5]:
        close = difflib.get_close_matches(name, others, n=1)
        shown.append(f"{name} (closest: {close[0]})" if close else name)
    return ", ".join(shown) + (", ..." if len(names) > 5 else "")
