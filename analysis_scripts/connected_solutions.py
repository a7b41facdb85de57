"""Are independently trained networks connected? `python analysis_scripts/connected_solutions.py`

Trains pairs of small networks from different seeds on digits and on synthetic images, and prints
how much of the barrier on the straight line is left on a trained Bezier curve, after alignment, and
after alignment with REPAIR: for each pair, and the mean with its range over pairs.
"""

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import xarray as xr
from torch import nn
from torch.nn import functional as F  # noqa: N812

import landscape
from landscape import datasets, models
from landscape.states import State
from landscape.tables import table
from landscape.task import Task, wrong
from shared import trained

cross_entropy = partial(F.cross_entropy, reduction="none")
SYNTHETIC = "synthetic:classes=10,size=16,num_examples=2000"
Make = Callable[[int], nn.Module]
PROBLEMS: dict[str, tuple[str, Make]] = {
    "digits, cnn": ("sklearn:digits", lambda seed: models.small_cnn(seed=seed)),
    "digits, wide cnn": ("sklearn:digits", lambda seed: models.small_cnn(width=64, seed=seed)),
    "digits, wide mlp": ("sklearn:digits", lambda seed: models.mlp(hidden=(512, 512), seed=seed)),
    "images, cnn": (SYNTHETIC, lambda seed: models.small_cnn(3, seed=seed)),
    "images, wide cnn": (SYNTHETIC, lambda seed: models.small_cnn(3, width=64, seed=seed)),
}
COLUMNS = ("line", "curve", "aligned", "aligned, repair")


def main() -> None:
    """Train, connect, align and print a table for each problem."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--pairs", type=int, default=3, help="of networks for each problem")
    parser.add_argument("--epochs", type=int, default=15, help="of each network")
    parser.add_argument("--curve-epochs", type=int, default=60, help="of each curve")
    parser.add_argument("--only", nargs="*", help=f"problems: {', '.join(PROBLEMS)}")
    options = parser.parse_args()
    for name, (spec, make) in PROBLEMS.items():
        if options.only and name not in options.only:
            continue
        data = datasets.load(spec)
        task = Task("train", make(0), cross_entropy, data, {"error": wrong})
        rows = []
        for pair in range(options.pairs):
            seeds = (2 * pair, 2 * pair + 1)
            a, b = (trained(make(seed), data, seed=seed, epochs=options.epochs) for seed in seeds)
            rows.append(barriers(task, a, b, options.curve_epochs))
            print(f"{name}, pair {pair}: {rows[-1]}", flush=True)
        print("\n" + summary(name, rows) + "\n", flush=True)


def barriers(task: Task, a: State, b: State, epochs: int) -> dict[str, float]:
    """The chord barrier in train loss on the line, the curve, and the aligned line."""
    both = landscape.interpolate(task, a, b, align=True)
    aligned = landscape.align(task, a, b)
    repaired = landscape.interpolate(task, a, aligned, batch_norm="repair")
    curve = landscape.connect(task, a, b, epochs=epochs, lr=0.05)
    results: dict[str, xr.Dataset] = {
        "line": both.sel(alignment="raw"),
        "curve": curve,
        "aligned": both.sel(alignment="aligned"),
        "aligned, repair": repaired,
    }
    heights = {name: landscape.barrier(one)["loss"] for name, one in results.items()}
    return {name: round(float(height), 4) for name, height in heights.items()}


def summary(name: str, rows: list[dict[str, float]]) -> str:
    """Barriers and what they are of that on the line: mean over pairs [smallest, largest]."""
    lines = [[name, "barrier in train loss", "share removed"]]
    for column in COLUMNS:
        heights = np.array([row[column] for row in rows])
        removed = 1 - heights / np.array([row["line"] for row in rows])
        texts = [
            f"{values.mean():.3f} [{values.min():.3f}, {values.max():.3f}]"
            for values in (heights, removed)
        ]
        lines.append([column, *texts])
    return table(lines)


if __name__ == "__main__":
    main()
