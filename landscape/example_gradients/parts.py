"""What is gathered of one parameter, and which of several ways to gather it is the fastest?"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

WORKSPACE = {"cpu": 2**23, "cuda": 2**27}  # bytes: the cache of a core; what is small beside a GPU
TRIAL = 64  # examples
Key = tuple[object, ...]


@dataclass(frozen=True, eq=False)
class Part:
    """Sums over the gradients g (k, b, *shape) of one parameter, changed in place.

    `norms` (k, b) are |g|^2 in float64. With weights w (k, b), `diagonal` is the sum of w g^2 over
    k and b, and `mean` that of w g, in the dtype of the parameter; None if not wanted.
    """

    norms: Tensor
    weights: Tensor
    diagonal: Tensor | None
    mean: Tensor | None

    @property
    def only_norms(self) -> bool:
        """Nothing but norms is wanted."""
        return self.diagonal is None and self.mean is None

    def add(self, gradients: Tensor, rows: slice = slice(None), index: object = ...) -> None:
        """Take gradients (n, k, *slice) of the examples `rows`, of the slice `index` of the tensor.

        Slices of one tensor come one after the other: their norms add up.
        """
        flat = gradients.flatten(2)
        squares = flat.square()
        self.norms[:, rows] += squares.sum(2).T
        if self.diagonal is not None:
            self._weigh(self.diagonal, squares, rows, index)
        if self.mean is not None:
            self._weigh(self.mean, flat, rows, index)

    def _weigh(self, total: Tensor, flat: Tensor, rows: slice, index: object) -> None:
        weights = self.weights[:, rows].T.reshape(1, -1)
        target = total[index]  # type: ignore[index]
        target += (weights @ flat.reshape(-1, flat.shape[2])).reshape(target.shape)

    def cotangents(self, some: slice) -> "Part":
        """The part that belongs to some of the k cotangents; the sums are shared."""
        return replace(self, norms=self.norms[some], weights=self.weights[some])


def new_part(parameter: Tensor, weights: Tensor, *, diagonal: bool, mean: bool) -> Part:
    """A part of zeros."""
    zeros = torch.zeros_like(parameter, memory_format=torch.contiguous_format, requires_grad=False)
    return Part(
        torch.zeros(weights.shape, dtype=torch.float64, device=parameter.device),
        weights.to(parameter),
        zeros if diagonal else None,
        zeros.clone() if mean else None,
    )


@dataclass(frozen=True, eq=False)
class Way:
    """A way to gather a part: `gather(rows, part)` takes `size` bytes for each example."""

    gather: Callable[[slice, Part], None]
    size: int


def gather_fastest(
    ways: Mapping[str, Way], part: Part, key: Key, choices: dict[Key, tuple[str, int]]
) -> None:
    """Gather a part in the way that was measured to be the fastest for problems of this key.

    The first of a key measures on its first examples; `choices` keeps the way and the examples that
    are taken at once. All ways agree to rounding.
    """
    num = part.norms.shape[1]
    workspace = WORKSPACE.get(part.norms.device.type, 2**23)
    steps = {name: max(1, workspace // max(way.size, 1)) for name, way in ways.items()}
    if key not in choices:
        choices[key] = _measured(ways, part, steps)
    name, step = choices[key]
    for start in range(0, num, step):
        ways[name].gather(slice(start, min(start + step, num)), part)


def _measured(ways: Mapping[str, Way], part: Part, steps: Mapping[str, int]) -> tuple[str, int]:
    """The way and the step with the least time, of three rounds in turn."""
    pieces = (1, 4, 16)  # of the workspace
    options = {(name, max(1, step // piece)) for name, step in steps.items() for piece in pieces}
    if len(options) == 1:
        return options.pop()
    num = min(TRIAL, part.norms.shape[1])
    scratch = replace(
        part,
        norms=part.norms.clone(),
        diagonal=None if part.diagonal is None else part.diagonal.clone(),
        mean=None if part.mean is None else part.mean.clone(),
    )
    least = dict.fromkeys(sorted(options), float("inf"))
    for _ in range(3):
        for name, step in least:
            synchronise(part.norms.device)
            begin = time.perf_counter()
            for start in range(0, num, step):
                ways[name].gather(slice(start, min(start + step, num)), scratch)
            synchronise(part.norms.device)
            seconds = time.perf_counter() - begin
            least[name, step] = min(least[name, step], seconds)
    return min(least, key=lambda option: least[option])


def synchronise(device: torch.device) -> None:
    """Wait for the GPU, if it is one."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
