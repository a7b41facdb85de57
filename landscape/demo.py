"""The main job on real data in under a minute: two networks, the line between them, a figure.

Read it as an example of how the package is used from Python.
"""

import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from tqdm import tqdm

import landscape
from landscape import datasets, models, plots, tables
from landscape.task import Task, wrong


def run(folder: Path, *, quiet: bool = False, epochs: int = 15) -> None:
    """Train two networks on digits from different seeds, and interpolate between them."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    train, test = (datasets.load("sklearn:digits", split=split) for split in ("train", "test"))
    _say(f"digits: {train.num_examples} training and {test.num_examples} test images of 8 x 8")

    ends = []
    for seed in (0, 1):
        model = models.small_cnn(seed=seed)
        runs = folder / f"run-{seed}"
        _train(model, train, runs, seed=seed, epochs=epochs, quiet=quiet)
        ends.append(landscape.checkpoints(runs)[-1])
        _say(f"seed {seed}: trained for {epochs} epochs, checkpoints in {runs}")

    loss = partial(F.cross_entropy, reduction="none")
    tasks = [
        Task("train", models.small_cnn(), loss, train, {"error": wrong}),
        Task("test", models.small_cnn(), loss, test, {"error": wrong}),
    ]
    a, b = (checkpoint.load() for checkpoint in ends)
    line = landscape.interpolate(
        tasks, a, b, points=41, keep_examples=True, progress=False if quiet else None
    )
    landscape.save(line, folder / "line.h5")
    _say("the line between the two networks, batch norm recalibrated at each of 41 points:")
    print()
    print(tables.barrier_table(line))
    print()

    figure = plots.figure(line)
    written = [plots.save_figure(figure, folder / f"line.{kind}") for kind in ("pdf", "png")]
    files = ", ".join(str(path) for path in [folder / "line.h5", *written])
    _say(f"wrote {files} in {time.perf_counter() - started:.0f} s")


def _train(
    model: nn.Module,
    data: datasets.Batches,
    folder: Path,
    *,
    seed: int,
    epochs: int,
    quiet: bool,
    batch_size: int = 64,
) -> None:
    """Plain SGD with momentum and a cosine schedule; a checkpoint at the start of each epoch."""
    order = np.random.default_rng(seed)
    inputs = torch.cat([inputs for inputs, _ in data])
    steps = -(-len(inputs) // batch_size)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * steps)
    model.train()
    for epoch in tqdm(range(epochs), desc=f"seed {seed}", unit="epoch", disable=quiet or None):
        landscape.save_checkpoint(model, folder, step=epoch * steps)
        for index in np.array_split(order.permutation(len(inputs)), steps):
            optimiser.zero_grad()
            F.cross_entropy(model(inputs[index]), data.targets[index]).backward()
            optimiser.step()
            schedule.step()
    landscape.save_checkpoint(model, folder, step=epochs * steps)


def _say(text: str) -> None:
    print(text, flush=True)
