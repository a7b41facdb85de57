"""How fast is a surface of 51 x 51 points? `python analysis_scripts/benchmark_surface.py`

Each network is timed in one run, on a random plane with filter normalisation, against

(a) the plain loop: for each point copy the model, load the mixed weights, and go through a
    DataLoader, adding up the loss of each batch on the host;
(b) `loss_landscapes.random_plane` of the package loss-landscapes 3.0.6, with all examples in one
    batch (install it with `pip install --no-deps loss-landscapes==3.0.6`; left out if it is not
    there). It places its grid points elsewhere, so only the cost can be compared.

Batch-norm statistics are kept, as neither of them recomputes these. Ours includes losses, errors,
standard errors and the labelled dataset, and the trial that a first call makes.
"""

import argparse
import copy
import importlib
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

import landscape
from landscape import models
from landscape.datasets import Batches, load
from landscape.examples import pick_device
from landscape.families import Family, random_plane
from landscape.task import Task, wrong

cross_entropy = partial(F.cross_entropy, reduction="none")


def main() -> None:
    """Time all networks and print a table."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--points", type=int, default=51, help="along each axis")
    parser.add_argument("--images", type=int, default=128, help="images of 32 x 32")
    parser.add_argument("--repeats", type=int, default=1, help="the least time counts")
    parser.add_argument("--only", nargs="*", help="networks to time")
    options = parser.parse_args()
    device = pick_device("auto")
    digits = load("sklearn:digits")
    images = load(f"synthetic:num_examples={options.images}")
    cases: dict[str, tuple[nn.Module, Batches]] = {
        "digits mlp": (models.mlp(seed=0), digits),
        "digits cnn": (models.small_cnn(seed=0), digits),
        "resnet20": (models.resnet20(seed=0), images),
    }
    print(f"{options.points} x {options.points} points on {device}, "
          f"{torch.get_num_threads()} threads")  # fmt: skip
    print(f"{'network':12}{'examples':>10}{'ours':>10}{'(a)':>10}{'(b)':>10}{'(a)/ours':>10}"
          f"{'(b)/ours':>10}")  # fmt: skip
    for name, (model, data) in cases.items():
        if not options.only or name in options.only:
            compare(name, model, data, options.points, options.repeats, device)


def compare(
    name: str, model: nn.Module, data: Batches, points: int, repeats: int, device: torch.device
) -> None:
    """Print one row of the table."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # (b) divides by the norm of each bias, which may be zero
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.rand(parameter.shape, generator=generator)
    inputs = torch.cat([x for x, _ in data]).float()
    task = Task(name, model, cross_entropy, Batches(inputs, data.targets), {"error": wrong})
    family = random_plane(model.state_dict(), model=model)
    axis = np.linspace(-1, 1, points)
    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: landscape.surface(task, family, x=axis, y=axis, batch_norm="keep"),
        "(a)": lambda: plain_loop(model, family, axis, inputs, data.targets, device),
    }
    if peer := _peer():
        place = inputs.to(device), data.targets.to(device)
        runs["(b)"] = lambda: peer(copy.deepcopy(model).eval().to(device), *place, points)
    seconds = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[key] = min(seconds[key], time.perf_counter() - start)
    row = f"{name:12}{len(inputs):10d}"
    row += "".join(f"{seconds.get(key, np.nan):9.1f}s" for key in ("ours", "(a)", "(b)"))
    row += "".join(f"{seconds.get(key, np.nan) / seconds['ours']:9.1f}x" for key in ("(a)", "(b)"))
    print(row, flush=True)


def plain_loop(
    model: nn.Module,
    family: Family,
    axis: np.ndarray,
    inputs: Tensor,
    targets: Tensor,
    device: torch.device,
) -> np.ndarray:
    """What scripts do: copy, load, and loop over a DataLoader, for each point."""
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=128)
    origin, *others = family.controls
    directions = [
        {n: (other[n] - origin[n]).float() for n in origin if origin[n].is_floating_point()}
        for other in others
    ]
    losses = np.empty((len(axis), len(axis)))
    for i, x in enumerate(axis):
        for j, y in enumerate(axis):
            twin = copy.deepcopy(model).to(device).eval()
            moved = {n: origin[n] + float(x) * d + float(y) * directions[1][n]
                     for n, d in directions[0].items()}  # fmt: skip
            twin.load_state_dict({**origin, **moved})
            total = 0.0
            with torch.no_grad():
                for batch, labels in loader:
                    outputs = twin(batch.to(device))
                    total += F.cross_entropy(outputs, labels.to(device), reduction="sum").item()
            losses[i, j] = total / len(inputs)
    return losses


def _peer() -> Callable[[nn.Module, Tensor, Tensor, int], object] | None:
    """A random plane of loss-landscapes, if it is installed."""
    try:
        package = importlib.import_module("loss_landscapes")
        metrics = importlib.import_module("loss_landscapes.metrics")
    except ImportError:
        return None

    def plane(model: nn.Module, inputs: Tensor, targets: Tensor, points: int) -> object:
        metric = metrics.Loss(F.cross_entropy, inputs, targets)
        with torch.no_grad():
            return package.random_plane(
                model, metric, 1, points, normalization="filter", deepcopy_model=True
            )

    return plane


if __name__ == "__main__":
    main()
