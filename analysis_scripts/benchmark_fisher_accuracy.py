"""What does a trace cost that is right? `python analysis_scripts/benchmark_fisher_accuracy.py`

Three networks are trained on shifted and upsampled digits; then the total trace of the Fisher
information over the training examples is estimated by `fisher_over_training` as it comes (per
checkpoint of a run of ten), by `fisher_trace` of a single checkpoint, and by nngeometry, BackPACK
and curvlinops where they are installed: with one draw of a label for each example, with ten, and
exactly where they can (curvlinops: with Hutchinson probes of the Gauss-Newton matrix). Printed are
the seconds of process CPU time (median of all repeats, the methods in turn, one thread) and the
root mean square of the relative error against the exact trace.
"""

import argparse
import copy
import importlib.util
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from landscape import checkpoints, datasets, models
from landscape.analyses.fisher import fisher_trace
from landscape.analyses.fisher_training import fisher_over_training
from landscape.experiments import Run, train
from landscape.experiments.schedules import Cosine
from landscape.states import State
from landscape.task import Task

Estimator = Callable[[int], float]  # of a seed
NETWORKS: dict[str, tuple[Callable[..., nn.Module], int]] = {  # and channels; the MLP takes 28x28
    "mlp": (partial(models.mlp, 784, (512, 512), 10), 1),
    "lenet": (partial(models.lenet, 3, 32), 3),
    "resnet20": (models.resnet20, 3),
}
EPOCHS = 8
BATCH = 64
RUN = 10  # checkpoints


def main() -> None:
    """Train, time and compare."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--examples", type=int, default=4096)
    parser.add_argument("--only", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in options.only:
        compare(name, options.examples, options.repeats)


def trained(make: Callable[..., nn.Module], data: datasets.Batches) -> State:
    """The weights after a few epochs."""
    run = Run(
        name="run", make_model=make, data=data, epochs=EPOCHS, batch_size=BATCH, lr=Cosine(0.1),
        weight_decay=5e-4, checkpoints=(),
    )  # fmt: skip
    with TemporaryDirectory() as folder:
        return checkpoints(train(run, folder)[0].folder)[-1].load()


def compare(name: str, num: int, repeats: int) -> None:
    """Print a table for one network."""
    make, channels = NETWORKS[name]
    model, data = make(seed=0), digits(num, channels)
    model.load_state_dict(trained(make, data))
    model.eval()
    wrong = sum(int((model(x).argmax(1) != y).sum()) for x, y in data)
    task = Task(name, model, partial(F.cross_entropy, reduction="none"), data)
    exact = partial(ours, task, labels="exact", dtype=torch.float64)
    truth = exact(0)
    print(f"\n{name}: {num} examples, {wrong} wrong, trace {truth:.5g}")
    runs: dict[str, Estimator] = {
        "ours": partial(in_a_run, task),
        "ours, a single checkpoint": partial(ours, task),
        "ours, exact": partial(ours, task, labels="exact"),
    }
    for peer, add in (("nngeometry", nngeometry), ("backpack", backpack),
                      ("curvlinops", curvlinops)):  # fmt: skip
        if importlib.util.find_spec(peer) is None:
            print(f"{peer} is not installed: left out")
        else:
            runs |= add(model, data)
    runs = {method: run for method, run in runs.items() if works(method, run)}
    seconds: dict[str, list[float]] = {method: [] for method in runs}
    errors: dict[str, list[float]] = {method: [] for method in runs}
    for seed in range(repeats):
        for method, run in runs.items():
            torch.manual_seed(seed)
            if seed > 2 and ("exact" in method or "40 probes" in method):
                continue
            start = time.process_time()
            value = run(seed)
            share = RUN if method == "ours" else 1
            seconds[method].append((time.process_time() - start) / share)
            errors[method].append(value / truth - 1)
    mine = statistics.median(seconds["ours"])
    print(f"{'method':36}{'seconds':>9}{'over ours':>11}{'error':>9}")
    for method, times in seconds.items():
        median = statistics.median(times)
        error = statistics.fmean(e**2 for e in errors[method]) ** 0.5
        print(f"{method:36}{median:9.3f}{median / mine:10.1f}x{error:9.1%}", flush=True)


def digits(num: int, channels: int) -> datasets.Batches:
    """Digits, shifted by up to a pixel and upsampled, as colour images or flat grey ones."""
    images, labels = (torch.cat(parts) for parts in zip(*datasets.digits(), strict=True))
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(images), (num,), generator=generator)
    shifts = torch.randint(-1, 2, (num, 2), generator=generator).tolist()
    moved = [images[i].roll(shift, (1, 2)) for i, shift in zip(chosen, shifts, strict=True)]
    size = 32 if channels == 3 else 28
    large = F.interpolate(torch.stack(moved), size=(size, size), mode="bilinear") / 2
    inputs = large.repeat(1, 3, 1, 1) if channels == 3 else large.flatten(1)
    return datasets.Batches(inputs.contiguous(), labels[chosen], batch_size=BATCH)


def works(method: str, run: Estimator) -> bool:
    """Run it once to warm up, or say why it cannot run."""
    try:
        run(0)
    except Exception as error:  # peers refuse networks in many ways
        print(f"{method} refuses: {str(error).splitlines()[0][:120]}")
        return False
    return True


def ours(task: Task, seed: int, **options: Any) -> float:
    """The total trace."""
    state = task.model.state_dict()
    return float(fisher_trace(task, state, seed=seed, batch_norm="keep", device="cpu",
                              **options)["total"])  # fmt: skip


def in_a_run(task: Task, seed: int) -> float:
    """The total trace of the first of ten checkpoints."""
    states = [task.model.state_dict()] * RUN
    found = fisher_over_training(task, states, seed=seed, batch_norm="keep", measures=False,
                                 device="cpu")  # fmt: skip
    return float(found["total"][0])


def tensors(data: datasets.Batches) -> tuple[Tensor, Tensor]:
    """All images and labels."""
    return data.inputs, data.targets


def nngeometry(model: nn.Module, data: datasets.Batches) -> dict[str, Estimator]:
    """Its Monte Carlo and its exact Fisher."""
    from nngeometry.metrics import FIM, FIM_MonteCarlo  # type: ignore[import-not-found]
    from nngeometry.object import PMatImplicit  # type: ignore[import-not-found]

    loader = DataLoader(TensorDataset(*tensors(data)), batch_size=BATCH)

    def drawn(seed: int, trials: int) -> float:
        return float(FIM_MonteCarlo(model, loader, PMatImplicit, trials=trials).trace())

    def exact(seed: int) -> float:
        return float(FIM(model, loader, PMatImplicit).trace())

    return {
        "nngeometry, 1 draw": partial(drawn, trials=1),
        "nngeometry, 10 draws": partial(drawn, trials=10),
        "nngeometry, exact": exact,
    }


def backpack(model: nn.Module, data: datasets.Batches) -> dict[str, Estimator]:
    """Its norms of single gradients at drawn labels, and the exact diagonal."""
    from backpack import backpack as extensions, extend  # type: ignore[import-not-found]
    from backpack.extensions import BatchL2Grad, DiagGGNExact  # type: ignore[import-not-found]

    twin = copy.deepcopy(model)
    try:
        twin = extend(twin, use_converter=not isinstance(model, nn.Sequential)).eval()
    except Exception as error:  # whatever its converter says
        print(f"backpack cannot convert {type(model).__name__}: {error}")
        return {}
    criterion = extend(nn.CrossEntropyLoss(reduction="sum"))
    images, labels = tensors(data)

    def total(extension: Any, read: Callable[[nn.Parameter], Tensor], draw: bool) -> float:
        value = 0.0
        for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            twin.zero_grad()
            outputs = twin(x)
            if draw:
                y = torch.multinomial(outputs.detach().softmax(1), 1)[:, 0]
            with extensions(extension):
                criterion(outputs, y).backward()
            value += sum(float(read(p).double().sum()) for p in twin.parameters())
        return value / len(images)

    def drawn(seed: int, draws: int) -> float:
        one = partial(total, BatchL2Grad(), lambda p: p.batch_l2, True)  # type: ignore[attr-defined]
        return statistics.fmean(one() for _ in range(draws))

    def exact(seed: int) -> float:
        return total(DiagGGNExact(), lambda p: p.diag_ggn_exact, False)  # type: ignore[attr-defined]

    return {
        "backpack, 1 draw": partial(drawn, draws=1),
        "backpack, 10 draws": partial(drawn, draws=10),
        "backpack, exact": exact,
    }


def curvlinops(model: nn.Module, data: datasets.Batches) -> dict[str, Estimator]:
    """Hutchinson's estimate of the trace of its Gauss-Newton matrix, and of its Fisher matrix."""
    from curvlinops import (  # type: ignore[import-not-found]
        FisherMCLinearOperator,
        GGNLinearOperator,
        hutchinson_trace,
    )

    images, labels = tensors(data)
    batches = list(zip(images.split(BATCH), labels.split(BATCH), strict=True))
    parameters = [p for p in model.parameters() if p.requires_grad]

    def estimate(seed: int, kind: Any, probes: int) -> float:
        operator = kind(model, nn.CrossEntropyLoss(), parameters, batches,
                        check_deterministic=False)  # fmt: skip
        return float(hutchinson_trace(operator, probes))

    return {
        "curvlinops, 10 probes": partial(estimate, kind=GGNLinearOperator, probes=10),
        "curvlinops, 40 probes": partial(estimate, kind=GGNLinearOperator, probes=40),
        "curvlinops, 1 draw, 10 probes": partial(estimate, kind=FisherMCLinearOperator, probes=10),
    }


if __name__ == "__main__":
    main()
