"""Which weights survive? Masks, what they leave of a network, and what they save.

A mask says of each prunable weight whether it survives: boolean tensors by the names of parameters,
True where it does, as `Run.masks` takes them.
"""

import copy
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from landscape.experiments.records import RunError, written
from landscape.states import State, Stored, loaded
from landscape.task import random_state_kept

Mask = Mapping[str, Tensor]
Scope = Literal["global", "layer"]
Within = Literal["all", "layer", "filter", "channel"]
MASK = "mask.npz"


def full_mask(model: nn.Module, *, kept: Sequence[str] = ()) -> Mask:
    """The mask under which all weights survive: it says which can be pruned.

    These are the parameters of two or more dimensions outside of normalisation layers, so biases
    and norms are kept; and so are parameters that match a pattern of `kept` (as in `fnmatch`), such
    as `"output.*"`. Tied weights go by their first name.

    Raises `ValueError` if a pattern matches no parameter, or nothing is left to prune.
    """
    named = dict(model.named_parameters())
    for pattern in kept:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise ValueError(
                f"the pattern {pattern!r} of kept matches no parameter; "
                f"they are {', '.join(list(named)[:8])}{', ...' if len(named) > 8 else ''}"
            )
    mask = {
        name: torch.ones(parameter.shape, dtype=torch.bool)
        for name, parameter in named.items()
        if parameter.ndim > 1
        and not name.endswith("bias")
        and "Norm" not in type(model.get_submodule(name.rpartition(".")[0])).__name__
        and not any(fnmatchcase(name, pattern) for pattern in kept)
    }
    if not mask:
        raise ValueError(f"{type(model).__name__} has no weights to prune outside of {list(kept)}")
    return mask


def pruned(state: State | Stored, mask: Mask, density: float, *, scope: Scope = "global") -> Mask:
    """The mask of the largest weights: a share `density` of all prunable ones, surviving `mask`.

    Magnitudes are compared over all layers (`"global"`) or within each (`"layer"`). Of n weights
    round(density n) survive, so that many levels do not drift from their densities; of equal
    magnitudes the first survive. From a full mask this is one-shot pruning.

    Raises `ValueError` for a density outside 0 to 1 or above that of the mask, one that would empty
    a layer, a mask of other shapes than the state, and weights that are not finite.
    """
    if scope not in ("global", "layer"):
        raise ValueError(f"scope must be 'global' or 'layer', got {scope!r}")
    if not 0 < density <= 1:
        raise ValueError(f"density must be above 0 and at most 1, got {density}")
    state = loaded(state)
    check_mask(mask, state)
    found: dict[str, Tensor] = {}
    for names in [list(mask)] if scope == "global" else [[name] for name in mask]:
        found |= _largest(state, {name: mask[name] for name in names}, density)
    _check_not_empty(found, f"a density of {density:.4g}")
    return found


def shuffled_mask(mask: Mask, *, within: Within = "layer", seed: int = 0) -> Mask:
    """A random mask: the entries of a mask, permuted uniformly over all layers or within each.

    `"all"` keeps the number of survivors (random pruning), `"layer"` that of each layer,
    `"filter"` that of each output unit (the first dimension), `"channel"` that of each input
    (the second). Raises `ValueError` if a layer would be empty.
    """
    chance = torch.Generator().manual_seed(seed)
    if within == "all":
        flat = torch.cat([one.reshape(-1) for one in mask.values()])
        mixed = flat[torch.randperm(len(flat), generator=chance)]
        found = _split(mixed, mask)
    else:
        found = {name: _permuted(one, within, chance) for name, one in mask.items()}
    _check_not_empty(found, "this shuffle")
    return found


def density(mask: Mask) -> float:
    """The share of the prunable weights that survive."""
    return sum(int(one.sum()) for one in mask.values()) / sum(one.numel() for one in mask.values())


def densities(mask: Mask) -> dict[str, float]:
    """The share of the weights that survive, of each layer."""
    return {name: int(one.sum()) / one.numel() for name, one in mask.items()}


def overlap(a: Mask, b: Mask) -> dict[str, float]:
    """The share of the weights of each layer that survive in both masks.

    Of independent random masks it is the product of their densities on average. Raises `ValueError`
    for masks of other shapes.
    """
    check_mask(a, b)
    check_mask(b, a)
    return {name: int((a[name] & b[name]).sum()) / a[name].numel() for name in a}


def stability(a: State | Stored, b: State | Stored, mask: Mask) -> tuple[float, float]:
    """How far apart two networks ended, on the weights that survive: distance, and angle in degree.

    Stability to pruning is that of the trained dense network and the trained subnetwork, stability
    to data order that of two copies of the subnetwork (arXiv 1903.01611); 0 and 0 for
    identical weights. Raises `ValueError` for a mask of other shapes than the states.
    """
    vectors = []
    for state in (loaded(a), loaded(b)):
        check_mask(mask, state)
        parts = [state[name][one.to(state[name].device)] for name, one in mask.items()]
        vectors.append(torch.cat([part.detach().cpu().double() for part in parts]))
    x, y = vectors
    u, v = x / x.norm(), y / y.norm()
    angle = 2 * torch.atan2((u - v).norm(), (u + v).norm())  # exact for small angles
    return float((x - y).norm()), math.degrees(angle)


def check_mask(mask: Mask, state: State) -> None:
    """Raise `ValueError` unless a mask is boolean and fits a state, by names and shapes."""
    if kinds := sorted({str(one.dtype) for one in mask.values()} - {"torch.bool"}):
        raise ValueError(f"masks are boolean, True where weights survive, got {', '.join(kinds)}")
    wrong = [
        f"{name} {tuple(one.shape)} ({tuple(state[name].shape) if name in state else 'missing'})"
        for name, one in mask.items()
        if name not in state or state[name].shape != one.shape
    ]
    if wrong:
        raise ValueError(
            f"the mask is of another architecture; in brackets what there is: "
            f"{', '.join(wrong[:5])}"
        )


@dataclass(frozen=True)
class Cost:
    """What a network costs, dense and with a mask.

    `weights` are all parameters and `nonzero` those not pruned; `bytes` and `sparse_bytes` what
    they take, the sparse ones with one bit for each prunable weight to say whether it is there.
    `multiply_adds` and `sparse_multiply_adds` are those of matrix products and convolutions in one
    forward pass, zeros of padding included; biases and activation functions do not count.
    """

    weights: int
    nonzero: int
    bytes: int
    sparse_bytes: int
    multiply_adds: int
    sparse_multiply_adds: int


def cost(model: nn.Module, inputs: Tensor, mask: Mask) -> Cost:
    """What a network costs on these inputs (one example, say), counted from a forward pass.

    A copy of the model is run in evaluation mode, where the inputs lie. Raises `ValueError` for a
    mask of other shapes.
    """
    twin = copy.deepcopy(model).eval().to(inputs.device)
    parameters = dict(twin.named_parameters())
    check_mask(mask, parameters)
    gone = {name: int((~one).sum()) for name, one in mask.items()}
    sizes = {name: parameter.itemsize for name, parameter in parameters.items()}
    total = sum(parameter.numel() for parameter in parameters.values())
    dense = sum(parameter.numel() * sizes[name] for name, parameter in parameters.items())
    bits = sum(one.numel() for one in mask.values())
    places = {
        parameters[name].untyped_storage().data_ptr(): (int(one.sum()), one.numel())
        for name, one in mask.items()
    }
    counter = _Counter(places)
    with random_state_kept(), torch.no_grad(), counter:
        twin(inputs)
    return Cost(
        weights=total,
        nonzero=total - sum(gone.values()),
        bytes=dense,
        sparse_bytes=dense - sum(gone[name] * sizes[name] for name in gone) + math.ceil(bits / 8),
        multiply_adds=counter.dense // 2,
        sparse_multiply_adds=counter.sparse // 2,
    )


def save_mask(mask: Mask, folder: str | os.PathLike[str]) -> None:
    """Write a mask as `mask.npz` into the folder of a run, whole or not at all.

    Raises `RunError` if another mask is there.
    """
    path = Path(folder) / MASK
    if path.exists():
        there = load_mask(folder)
        if there.keys() == mask.keys() and all(torch.equal(there[n], mask[n]) for n in mask):
            return
        raise RunError(
            f"{path} holds another mask and is left as it is: its density is {density(there):.4g}, "
            f"and this one's {density(mask):.4g}. Choose another folder, or remove this one."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {name: one.cpu().numpy() for name, one in mask.items()}

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    written(path, write)


def load_mask(folder: str | os.PathLike[str]) -> Mask:
    """The mask that lies in the folder of a run.

    Raises `RunError` if there is none, or it is damaged.
    """
    path = Path(folder) / MASK
    if not path.exists():
        raise RunError(f"{path} does not exist: no mask lies beside the checkpoints of this run")
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error, NotImplementedError) as error:
        raise RunError(
            f"{path} is damaged ({type(error).__name__}). Copy it again, or leave this run out"
        ) from error


def _largest(state: State, mask: Mask, density: float) -> dict[str, Tensor]:
    """The largest of the weights that survive a mask."""
    alive = torch.cat([one.reshape(-1) for one in mask.values()])
    weights = torch.cat([state[name].detach().cpu().reshape(-1) for name in mask])
    if not bool(weights[alive].isfinite().all()):
        raise ValueError(
            f"weights of {', '.join(mask)} are not finite, and have no magnitudes to prune by; "
            "take an earlier checkpoint"
        )
    num = round(density * len(alive))
    if num > int(alive.sum()):
        raise ValueError(
            f"a density of {density:.4g} asks for {num} weights of {', '.join(mask)}, and only "
            f"{int(alive.sum())} survive the mask; prune more, or start from another mask"
        )
    magnitudes = weights.abs().masked_fill_(~alive, -1)
    survivors = magnitudes.sort(descending=True, stable=True).indices[:num]
    found = torch.zeros_like(alive)
    found[survivors] = True
    return _split(found, mask)


def _split(flat: Tensor, like: Mask) -> dict[str, Tensor]:
    """A vector as tensors of the names and shapes of a mask, each with memory of its own."""
    parts = flat.split([one.numel() for one in like.values()])
    pairs = zip(like.items(), parts, strict=True)
    return {name: part.reshape(one.shape).clone() for (name, one), part in pairs}


def _permuted(one: Tensor, within: str, chance: torch.Generator) -> Tensor:
    """The entries of a tensor, permuted among themselves or in each slice."""
    groups = grouped(one, within)
    keys = torch.rand(groups.shape, generator=chance, dtype=torch.float64)
    return ungrouped(groups.gather(1, keys.argsort(1)), one, within)


def grouped(tensor: Tensor, within: str) -> Tensor:
    """The entries (groups, size) of a tensor by layer, filter or channel.

    Raises `ValueError` for another grouping.
    """
    if within == "layer":
        return tensor.reshape(1, -1)
    if within not in ("filter", "channel"):
        raise ValueError(f"within must be 'layer', 'filter' or 'channel', got {within!r}")
    return (tensor if within == "filter" else tensor.transpose(0, 1)).flatten(1)


def ungrouped(groups: Tensor, like: Tensor, within: str) -> Tensor:
    """The tensor whose entries `grouped` gives."""
    if within == "channel":
        shape = (like.shape[1], like.shape[0], *like.shape[2:])
        return groups.reshape(shape).transpose(0, 1).contiguous()
    return groups.reshape(like.shape)


def _check_not_empty(mask: Mask, what: str) -> None:
    empty = [f"{name} (of {one.numel()})" for name, one in mask.items() if not one.any()]
    if empty:
        raise ValueError(
            f"{what} would leave no weight in {', '.join(empty)}; prune less, prune each layer "
            "(scope='layer'), or keep what would be empty (kept=)"
        )


class _Counter(TorchDispatchMode):
    """Counts operations; of products with a masked weight, also those of its survivors.

    `places` says where the data of each weight lies, how many survive and of how many.
    """

    def __init__(self, places: Mapping[int, tuple[int, int]]) -> None:
        super().__init__()
        self.places, self.dense, self.sparse = places, 0, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count it."""
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            num = flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=result)
            tensors = [one for one in args if isinstance(one, Tensor)]
            places = [one.untyped_storage().data_ptr() for one in tensors]
            left, of = next((self.places[p] for p in places if p in self.places), (1, 1))
            self.dense += num
            self.sparse += num * left // of
        return result
