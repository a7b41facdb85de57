"""How much faster do runs train together? `python analysis_scripts/benchmark_stacks.py`.

A sweep of networks on digits with SGD, momentum and weight decay, each with seeds of its own, is
trained

(a) by a plain loop over a DataLoader with `torch.optim.SGD`, one network after another;
(b) by a plain loop over shuffled tensors in memory, one after another;
(c) by `experiments.train(stack=1)`, one after another;
(d) by `experiments.train()`, which chooses how many train together.

(c) and (d) also write checkpoints and records of all runs and (d) its trial, so the whole call is
timed. Times are CPU seconds of the process, which other work on the machine disturbs less than wall
time; ratios to (d) above 1 mean that stacks are faster.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from landscape import models
from landscape.datasets import Batches, load
from landscape.experiments import Run, Seeds, train

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "mlp 64-128-128-10": partial(models.mlp, hidden=(128, 128)),
    "small cnn": models.small_cnn,
    "small cnn, width 4": partial(models.small_cnn, width=4),
}


def main() -> None:
    """Time all networks and batch sizes and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[32, 64])
    parser.add_argument("--repeats", type=int, default=3, help="the least time counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=list(NETWORKS), help="networks to time")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = load("sklearn:digits")
    print(f"{options.runs} runs of {options.epochs} epochs, {options.threads} threads, CPU seconds")
    heads = ("batch", "(a)", "(b)", "(c)", "(d)", "a/d", "b/d", "c/d", "stack")
    print(f"{'network':20}" + "".join(f"{head:>8}" for head in heads))
    for name in options.only:
        for size in options.batch_sizes:
            runs = sweep(NETWORKS[name], data, options.runs, options.epochs, size)
            ways: list[Callable[[], int]] = [
                partial(plain, runs, loader=True),
                partial(plain, runs, loader=False),
                partial(stacked, runs, 1),
                partial(stacked, runs, "auto"),
            ]
            times, stack = [float("inf")] * 4, 1
            for _ in range(options.repeats):  # in turn, so that all meet the same disturbances
                for number, way in enumerate(ways):
                    begin = time.process_time()
                    stack = way()
                    times[number] = min(times[number], time.process_time() - begin)
            ratios = [spent / times[3] for spent in times[:3]]
            cells = "".join(f"{spent:8.2f}" for spent in [*times, *ratios])
            print(f"{name:20}{size:8}{cells}{stack:8}", flush=True)


def sweep(
    make: Callable[..., nn.Module], data: Batches, num: int, epochs: int, batch_size: int
) -> list[Run]:
    """Runs that differ in their seeds alone."""
    return [
        Run(
            name=str(seed), make_model=make, data=data, epochs=epochs, batch_size=batch_size,
            lr=0.05, weight_decay=1e-4, seeds=Seeds.all(seed), checkpoints=(),
        )
        for seed in range(num)
    ]  # fmt: skip


def plain(runs: Sequence[Run], *, loader: bool) -> int:
    """Train one network after another, as anybody would."""
    for run in runs:
        torch.manual_seed(run.seeds.order)
        model, ((inputs, targets),) = run.build(), list(all_of(run.data))
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
        assert isinstance(run.batch_size, int)
        size = run.batch_size
        batches = DataLoader(TensorDataset(inputs, targets), batch_size=size, shuffle=True)
        for _ in range(run.epochs):
            order = torch.randperm(len(inputs)).split(size)
            memory = ((inputs[index], targets[index]) for index in order)
            for x, y in batches if loader else memory:
                optimiser.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimiser.step()
    return 1


def all_of(data: Batches) -> Batches:
    """The same data as one batch."""
    return Batches(data.inputs, data.targets, data.num_examples, data.transform)


def stacked(runs: Sequence[Run], stack: int | str) -> int:
    """Train with `train`, into a folder that is removed; the number of runs that were together."""
    with tempfile.TemporaryDirectory() as folder:
        ends = train(runs, folder, device="cpu", stack=stack, progress=False)
        said = json.loads((Path(ends[0].folder) / "run.json").read_text())
        return len(said["together"])


if __name__ == "__main__":
    main()
