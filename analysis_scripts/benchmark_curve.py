"""What does a step of curve training cost? `python analysis_scripts/benchmark_curve.py`

Prints the time of an epoch of curve training (Bezier, one bend) over that of plain training of the
same network: the same mini-batches, SGD with momentum and schedule. The kinds take turns, and the
least time of an epoch counts.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from landscape import models
from landscape.analyses.connectivity import curve_between, train
from landscape.datasets import Batches, load
from landscape.descent import Recipe, Shuffled, fall, shuffled
from landscape.evaluation import prepare
from landscape.examples import pick_device
from landscape.strategy import Strategy
from landscape.task import Task

EPOCHS = 6
cross_entropy = partial(F.cross_entropy, reduction="none")


def main() -> None:
    """Time both kinds of epochs for each network."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="trainings of each kind")
    options = parser.parse_args()
    digits, images = load("sklearn:digits"), load("synthetic:num_examples=256")
    makes: dict[str, Callable[..., nn.Module]] = {
        "digits mlp": models.mlp,
        "digits cnn": models.small_cnn,
        "resnet20": models.resnet20,
    }
    for name, make in makes.items():
        data = images if name == "resnet20" else digits
        curve, plain = [], []
        for _ in range(options.repeats):
            curve.append(curve_epoch(make(seed=0), make(seed=1), data))
            plain.append(plain_epoch(make(seed=0), data))
        print(f"{name:12} curve {min(curve):.4f} s, plain {min(plain):.4f} s per epoch, "
              f"ratio {min(curve) / min(plain):.2f}", flush=True)  # fmt: skip


class Timed:
    """Mini-batches on the device that note when each epoch begins."""

    def __init__(self, batches: Shuffled) -> None:
        self.batches = batches
        self.times: list[float] = []

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        self.times.append(time.perf_counter())
        return self.batches.epoch(torch.Generator().manual_seed(0))

    def epoch(self) -> float:
        """The least seconds of an epoch."""
        return min(b - a for a, b in zip(self.times, self.times[1:], strict=False))


def timed(model: nn.Module, data: Batches) -> Timed:
    """The data of a network in mini-batches of 128."""
    task, recipe = Task("train", model, cross_entropy, data), Recipe(batch_size=128)
    return Timed(shuffled(task, recipe, device=pick_device("auto"), dtype=torch.float32))


def curve_epoch(a: nn.Module, b: nn.Module, data: Batches) -> float:
    """Seconds of an epoch of curve training."""
    batches = timed(a, data)
    family = curve_between(a.state_dict(), b.state_dict())
    ready = prepare(Task("train", a, cross_entropy, data), family, strategy=Strategy())
    train(ready, family, Recipe(epochs=EPOCHS, data=batches))
    return batches.epoch()


def plain_epoch(model: nn.Module, data: Batches) -> float:
    """Seconds of an epoch of plain training."""
    batches = timed(model, data)
    model = model.to(batches.batches.device).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    schedule = fall(optimiser, EPOCHS * len(batches))
    for _ in range(EPOCHS):
        losses = []
        for inputs, targets in batches:
            optimiser.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.detach())
        torch.stack(losses).mean().item()
    return batches.epoch()


if __name__ == "__main__":
    main()
