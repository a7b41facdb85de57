"""How fast is a line of 25 points? `python analysis_scripts/benchmark_line.py` prints the ratios.

Each network is timed in one run against

(a) the plain loop: for each point copy the model, load the interpolated weights, and go through a
    DataLoader, adding up the loss of each batch on the host;
(b) bare forward passes of one model, batch 128, data in memory, default memory format;
(c) bare forward passes in the memory format and batch size that a search finds fastest.

All evaluate the same examples at the same number of points; batch-norm statistics are kept. Ours
includes losses, errors and the labelled dataset. What a first call costs on top, once for a model
and its data (reading, checking and the trial of strategies), is in a column of its own.
"""

import argparse
import copy
import itertools
import resource
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from landscape import interpolate, models
from landscape.datasets import Batches, load
from landscape.evaluation import prepare
from landscape.examples import pick_device
from landscape.states import State
from landscape.task import Task, wrong


def per_example(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each example."""
    return F.cross_entropy(outputs, targets, reduction="none")


def main() -> None:
    """Time all networks and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--points", type=int, default=25)
    parser.add_argument("--images", type=int, default=1000, help="images of 32 x 32")
    parser.add_argument("--repeats", type=int, default=3, help="the least time counts")
    parser.add_argument("--only", nargs="*", help="networks to time")
    options = parser.parse_args()
    device = pick_device("auto")
    print(f"{options.points} points on {device}, {torch.get_num_threads()} threads")
    heads = "".join(f"{head:>10}" for head in ("examples", "ours", "(a)", "(b)", "(c)", "first"))
    print(f"{'network':12}{heads}  strategy")
    digits = load("sklearn:digits")
    images = load(f"synthetic:num_examples={options.images}")
    grey = Batches(images.inputs[:, :1, 2:30, 2:30], images.targets)
    cases: dict[str, tuple[Callable[[int], nn.Module], Batches]] = {
        "digits mlp": (lambda seed: models.mlp(seed=seed), digits),
        "digits cnn": (lambda seed: models.small_cnn(seed=seed), digits),
        "lenet": (lambda seed: models.lenet(seed=seed), grey),
        "resnet20": (lambda seed: models.resnet20(seed=seed), images),
    }
    for name, (make, data) in cases.items():
        if not options.only or name in options.only:
            compare(name, make, data, options.points, options.repeats, device)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def compare(
    name: str,
    make: Callable[[int], nn.Module],
    data: Batches,
    points: int,
    repeats: int,
    device: torch.device,
) -> None:
    """Print one row of the table."""
    (inputs,) = [torch.cat([x for x, _ in data]).float()]
    tensors = inputs / 255 if data.transform is None else inputs, data.targets
    a, b = make(0).state_dict(), make(1).state_dict()
    task = Task(name, make(0), per_example, Batches(*tensors), {"error": wrong})
    on_device = tensors[0].to(device)
    work = len(inputs) * points
    best, _ = fastest(make(0).to(device), on_device)
    runs: dict[str, Callable[[], object]] = {
        "(a)": lambda: plain_loop(make(0), a, b, tensors, points, device),
        "(b)": lambda: bare(make(0).to(device), on_device, points, 128),
        "(c)": lambda: bare(make(0).to(device), on_device, points, best[1], best[0]),
    }
    start = time.perf_counter()
    ready = prepare(task, [a, b], batch_norm="keep")
    first = time.perf_counter() - start
    ours = partial(interpolate, ready, a, b, points=points, batch_norm="keep")
    seconds = {key: float("inf") for key in ("ours", *runs)}
    all_runs: list[tuple[str, Callable[[], object]]] = [("ours", ours), *runs.items()]
    for _, (key, run) in itertools.product(range(repeats), all_runs):
        start = time.perf_counter()
        run()
        synchronise(device)
        seconds[key] = min(seconds[key], time.perf_counter() - start)
    ratios = "".join(f"{seconds[key] / seconds['ours']:9.2f}x" for key in runs)
    rate = work / seconds["ours"]
    row = f"{name:12}{len(inputs):10d}{rate:8.0f}/s{ratios}{first:9.2f}s"
    used = ready.strategy
    how = f"{used.points} points at once" if used.vectorised else "looped"
    print(f"{row}  {used.layout}, batch {used.batch_size}, {how}; (c) {best}", flush=True)


def plain_loop(
    model: nn.Module,
    a: State,
    b: State,
    tensors: tuple[Tensor, Tensor],
    points: int,
    device: torch.device,
) -> list[float]:
    """What scripts do: copy, load, and loop over a DataLoader, for each point."""
    loader = DataLoader(TensorDataset(*tensors), batch_size=128)
    losses = []
    for t in torch.linspace(0, 1, points):
        twin = copy.deepcopy(model).to(device).eval()
        twin.load_state_dict({k: torch.lerp(a[k].float(), b[k].float(), t.item()) for k in a})
        total, errors = 0.0, 0
        with torch.no_grad():
            for inputs, targets in loader:
                inputs, targets = inputs.to(device), targets.to(device)
                outputs = twin(inputs)
                total += F.cross_entropy(outputs, targets, reduction="sum").item()
                errors += (outputs.argmax(1) != targets).sum().item()
        losses.append(total / len(tensors[0]))
    return losses


def bare(
    model: nn.Module, inputs: Tensor, passes: int, batch: int, layout: str = "contiguous"
) -> None:
    """Forward passes over all inputs, and nothing else."""
    model = model.eval()
    if layout == "channels_last" and inputs.ndim == 4:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        for _ in range(passes):
            for start in range(0, len(inputs), batch):
                model(inputs[start : start + batch])


def fastest(model: nn.Module, inputs: Tensor) -> tuple[tuple[str, int], float]:
    """The memory format and batch size with the most examples in a second."""
    found = {}
    for layout in ("contiguous", "channels_last"):
        for batch in (16, 32, 64, 128, 256, 512, 1024, len(inputs)):
            bare(model, inputs, 1, batch, layout)
            start = time.perf_counter()
            bare(model, inputs, 3, batch, layout)
            synchronise(inputs.device)
            found[layout, batch] = time.perf_counter() - start
    key = min(found, key=lambda key: found[key])
    return key, found[key]


def synchronise(device: torch.device) -> None:
    """Wait for the GPU, if there is one."""
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
