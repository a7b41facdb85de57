"""When do layers settle, and do seeds agree? `python analysis_scripts/settling_layers.py`

Trains small networks on digits from several seeds and prints, for each layer, (1) how alike it is
between two trained networks and between a trained and its untrained one, and (2) the step from
which it stays near its final state. Representations are compared on the test images.
"""

import argparse
from functools import partial
from tempfile import TemporaryDirectory

import numpy as np
import xarray as xr
from scipy import stats
from torch.nn import functional as F  # noqa: N812

from landscape import checkpoints, datasets, experiments, models
from landscape.analyses.layers import compare_layers, layer_convergence
from landscape.experiments import At, Run, Seeds
from landscape.experiments.schedules import Cosine
from landscape.tables import table
from landscape.task import Task

STEPS = [0, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 345]
NEAR = (0.8, 0.9, 0.95)
LAYERS = "block*.conv,head.output"


def main() -> None:
    """Train, compare and print two tables for each measure."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--seeds", type=int, default=6, help="networks, at least 2")
    parser.add_argument("--measure", nargs="+", default=["cka", "svcca"])
    options = parser.parse_args()
    training, test = (datasets.load("sklearn:digits", split=name) for name in ("train", "test"))
    task = Task("test", models.small_cnn(), partial(F.cross_entropy, reduction="none"), test)
    described = [
        Run(
            name=f"seed-{seed}", make_model=models.small_cnn, data=training, epochs=15,
            batch_size=64, lr=Cosine(0.1), weight_decay=5e-4, seeds=Seeds.all(seed),
            checkpoints=(At(STEPS),),
        )
        for seed in range(options.seeds)
    ]  # fmt: skip
    with TemporaryDirectory() as folder:
        ends = experiments.train(described, folder, stack=options.seeds)
        found = [[one.load() for one in checkpoints(end.folder)] for end in ends]
    runs = [dict(zip(STEPS, states, strict=True)) for states in found]
    how = {"measure": options.measure, "layers": LAYERS, "blocks": 20}
    last = STEPS[-1]
    pairs = list(zip(runs, runs[1:] + runs[:1], strict=True))
    same = [compare_layers(task, a[last], b[last], **how) for a, b in pairs]
    untrained = [compare_layers(task, run[last], run[0], **how) for run in runs]
    other = [compare_layers(task, a[last], b[0], **how) for a, b in pairs]
    settled = [layer_convergence(task, list(r.values()), steps=list(r), **how) for r in runs]
    for measure in options.measure:
        print(f"{alike(measure, same, untrained, other)}\n")
        print(f"{settling(measure, settled)}\n", flush=True)


def alike(
    measure: str, same: list[xr.Dataset], own: list[xr.Dataset], other: list[xr.Dataset]
) -> str:
    """Trained networks with each other, and with untrained ones: means over pairs, 95 % t bands."""
    lines = [[measure, "two trained", "trained, own start", "trained, other start",
              "difference to own start", "error of one pair"]]  # fmt: skip
    for layer in same[0]["layer"].values:
        columns = [
            np.array([float(r[measure].sel(layer=layer, other_layer=layer)) for r in results])
            for results in (same, own, other)
        ]
        within = np.mean(
            [float(r[f"{measure}_stderr"].sel(layer=layer, other_layer=layer)) for r in same]
        )
        cells = [interval(column) for column in (*columns, columns[0] - columns[1])]
        lines.append([str(layer), *cells, f"{within:.3f}"])
    return table(lines)


def settling(measure: str, results: list[xr.Dataset]) -> str:
    """The first step from which a layer stays as alike to its end as a threshold: over seeds."""
    lines = [[f"{measure} stays at least", *(str(near) for near in NEAR), "at step 0"]]
    for layer in results[0]["layer"].values:
        cells = []
        for near in NEAR:
            first = [first_near(r[measure].sel(layer=layer), near) for r in results]
            cells.append(f"step {np.median(first):g} [{min(first)}, {max(first)}]")
        start = np.array([float(r[measure].sel(layer=layer).isel(step=0)) for r in results])
        lines.append([str(layer), *cells, interval(start)])
    return table(lines)


def first_near(curve: xr.DataArray, near: float) -> int:
    """The first step after which no value is below `near`."""
    below = np.flatnonzero(curve.values < near)
    return int(curve["step"].values[below[-1] + 1 if len(below) else 0])


def interval(values: np.ndarray) -> str:
    """The mean with its 95 % t interval over runs."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():.3f} +- {half:.3f}"


if __name__ == "__main__":
    main()
