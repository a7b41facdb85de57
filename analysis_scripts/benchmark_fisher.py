"""What do traces and diagonals cost? `python analysis_scripts/benchmark_fisher.py` prints a table.

For three networks: the squared gradient norm of each parameter tensor (trace) and the diagonal of
squared gradients, for one label per example that is drawn from the model, by ours and by

- a plain forward and backward pass, the yardstick;
- `vmap` of the gradient, with the norm taken outside or inside;
- nngeometry, BackPACK and curvlinops, each where it is installed. curvlinops on PyPI has neither
  norms nor diagonals of single draws: its rows are Hutchinson estimates with one probe, which give
  less (no exact value for the draw, and for the trace no values by tensor).

One thread and process CPU time; the methods take turns in each round, and the median counts.
`--memory` prints the peak memory of each instead, each in a process of its own.
"""

import argparse
import copy
import importlib.util
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from landscape import models
from landscape.engine import replicate
from landscape.example_gradients import example_gradients, rules_for

Run = Callable[[], object]
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: models.mlp(784, (512, 512), 10, seed=0), (256, 784)),
    "lenet": (lambda: models.lenet(3, 32, seed=0), (128, 3, 32, 32)),
    "resnet20": (lambda: models.resnet20(seed=0), (64, 3, 32, 32)),
}


def main() -> None:
    """Time all networks and print a table for each."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for peer in ("nngeometry", "backpack", "curvlinops"):
        if importlib.util.find_spec(peer) is None and not options.alone:
            print(f"{peer} is not installed: left out")
    for name in options.only:
        model, inputs = network(name)
        if options.alone:
            alone(methods(model, inputs)[options.alone])
        elif options.memory:
            memory(name, list(methods(model, inputs)))
        else:
            speed(name, methods(model, inputs), len(inputs), options.rounds)


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A network in evaluation mode, with batch-norm statistics of its inputs."""
    make, shape = NETWORKS[name]
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(inputs)
    return model.eval(), inputs


def methods(model: nn.Module, inputs: Tensor) -> dict[str, Run]:
    """All that is compared, ready to run."""
    found: dict[str, Run] = {
        "forward+backward": partial(plain, model, inputs),
        **ours(model, inputs),
        "vmap diagonal": partial(by_vmap, model, inputs, inside=False),
        "vmap trace, norm inside": partial(by_vmap, model, inputs, inside=True),
    }
    for peer, make in (("nngeometry", nngeometry), ("backpack", backpack),
                       ("curvlinops", curvlinops)):  # fmt: skip
        if importlib.util.find_spec(peer) is not None:
            found |= make(model, inputs)
    return found


def speed(name: str, runs: dict[str, Run], num: int, rounds: int) -> None:
    """Print the examples per second of each, and its time over that of the yardstick and ours."""
    runs = {method: run for method, run in runs.items() if works(method, run)}
    seconds: dict[str, list[float]] = {method: [] for method in runs}
    for _ in range(rounds):
        for method, run in runs.items():
            start = time.process_time()
            run()
            seconds[method].append(time.process_time() - start)
    medians = {method: statistics.median(times) for method, times in seconds.items()}
    print(f"\n{name}, batch {num}: examples per second, time over forward+backward, over ours")
    for method, median in medians.items():
        mine = medians["ours diagonal" if "diagonal" in method else "ours trace"]
        over = median / medians["forward+backward"]
        print(f"{method:32}{num / median:10.0f}{over:9.2f}x{median / mine:9.2f}x", flush=True)


def works(method: str, run: Run) -> bool:
    """Run it twice to warm up, or say why it cannot run."""
    try:
        run()
        run()
    except Exception as error:  # peers refuse networks in many ways
        print(f"{method} refuses: {str(error).splitlines()[0][:120]}")
        return False
    return True


def memory(name: str, names: list[str]) -> None:
    """Print the peak memory of each over that of the process before it ran."""
    print(f"\n{name}: MiB over model and data")
    for method in names:
        command = [sys.executable, __file__, "--only", name, "--alone", method]
        done = subprocess.run(command, capture_output=True, text=True)
        found = f"{float(done.stdout.split()[-1]):10.0f}" if not done.returncode else "   refuses"
        print(f"{method:32}{found}", flush=True)


def alone(run: Run) -> None:
    """Print by how many MiB the memory of this process rises at most in three runs (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
    before = peak()
    for _ in range(3):
        run()
    print(peak() - before)


def peak() -> float:
    """The peak memory of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def plain(model: nn.Module, inputs: Tensor) -> None:
    """One step of training without the optimiser."""
    model.zero_grad()
    outputs = model(inputs)
    F.cross_entropy(outputs, outputs.argmax(1)).backward()


def drawn(outputs: Tensor) -> Tensor:
    """A label for each example, drawn from the model."""
    return torch.multinomial(outputs.detach().softmax(1), 1)[:, 0]


def ours(model: nn.Module, inputs: Tensor) -> dict[str, Run]:
    """Rules inside the backward pass."""
    (twin,) = replicate(model, 1, device=inputs.device, dtype=inputs.dtype, layout="contiguous")
    rules = rules_for(twin, inputs)

    def cotangents(outputs: Tensor) -> Tensor:
        return (outputs.softmax(1) - F.one_hot(drawn(outputs), outputs.shape[1]))[None]

    def run(diagonal: bool) -> Any:
        return example_gradients(twin, rules, inputs, cotangents, diagonal=diagonal)

    return {"ours trace": partial(run, False), "ours diagonal": partial(run, True)}


def by_vmap(model: nn.Module, inputs: Tensor, *, inside: bool) -> dict[str, Tensor]:
    """The gradient of each example by `torch.func`, as in its tutorial."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    labels = drawn(model(inputs))

    def loss(parameters: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (x[None],)), label[None])

    def norms(parameters: dict[str, Tensor], x: Tensor, label: Tensor) -> dict[str, Tensor]:
        return {n: g.square().sum() for n, g in grad(loss)(parameters, x, label).items()}

    if inside:
        return vmap(norms, in_dims=(None, 0, 0), chunk_size=16)(parameters, inputs, labels)
    found = vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=32)(parameters, inputs, labels)
    return {name: gradients.square().sum(0) for name, gradients in found.items()}


def nngeometry(model: nn.Module, inputs: Tensor) -> dict[str, Run]:
    """Its Monte Carlo Fisher with one draw: the trace in total, and the diagonal."""
    from nngeometry.metrics import FIM_MonteCarlo  # type: ignore[import-not-found]
    from nngeometry.object import PMatDiag, PMatImplicit  # type: ignore[import-not-found]

    data = TensorDataset(inputs, torch.zeros(len(inputs), dtype=torch.long))
    loader = DataLoader(data, batch_size=len(inputs))
    return {
        "nngeometry trace (total)": lambda: FIM_MonteCarlo(model, loader, PMatImplicit).trace(),
        "nngeometry diagonal": lambda: FIM_MonteCarlo(model, loader, PMatDiag),
    }


def backpack(model: nn.Module, inputs: Tensor) -> dict[str, Run]:
    """Its norms of single gradients and its sum of squared gradients at drawn labels."""
    from backpack import backpack as extensions, extend  # type: ignore[import-not-found]
    from backpack.extensions import BatchL2Grad, DiagGGNMC, SumGradSquared  # type: ignore[import-not-found]

    twin = copy.deepcopy(model)
    try:
        twin = extend(twin, use_converter=not isinstance(model, nn.Sequential)).eval()
    except Exception as error:  # whatever its converter says
        print(f"backpack cannot convert {type(model).__name__}: {error}")
        return {}
    criterion = extend(nn.CrossEntropyLoss(reduction="sum"))

    def run(extension: Any) -> None:
        twin.zero_grad()
        outputs = twin(inputs)
        with extensions(extension):
            criterion(outputs, drawn(outputs)).backward()

    return {
        "backpack trace (BatchL2Grad)": lambda: run(BatchL2Grad()),
        "backpack diagonal (SumGradSq.)": lambda: run(SumGradSquared()),
        "backpack diagonal (DiagGGNMC)": lambda: run(DiagGGNMC(mc_samples=1)),
    }


def curvlinops(model: nn.Module, inputs: Tensor) -> dict[str, Run]:
    """Its Fisher with one draw and one probe: the trace in total, and the diagonal."""
    from curvlinops import FisherMCLinearOperator, hutchinson_diag, hutchinson_trace  # type: ignore[import-not-found]

    data = [(inputs, torch.zeros(len(inputs), dtype=torch.long))]
    parameters = [p for p in model.parameters() if p.requires_grad]

    def operator() -> Any:
        loss = nn.CrossEntropyLoss()
        return FisherMCLinearOperator(model, loss, parameters, data, check_deterministic=False)

    return {
        "curvlinops trace (1 probe, total)": lambda: hutchinson_trace(operator(), 1),
        "curvlinops diagonal (1 probe)": lambda: hutchinson_diag(operator(), 1),
    }


if __name__ == "__main__":
    main()
