"""The main job on real data in under a minute: are two networks connected, and are they alike?

Read it as an example of how the package is used from Python.
"""

import time
from functools import partial
from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure
from torch.nn import functional as F  # noqa: N812

import landscape
from landscape import datasets, experiments, models, plots, tables
from landscape.analyses.connectivity import curve_of
from landscape.analyses.layers import layer_convergence
from landscape.experiments import At, Every, Run, Seeds
from landscape.experiments.schedules import Cosine
from landscape.task import Task, wrong

EARLY = (1, 2, 4, 8, 16)  # steps, besides those at which an epoch begins
LAYERS = "block*.conv,block*.relu,head.output"


def run(
    folder: Path,
    *,
    quiet: bool = False,
    epochs: int = 15,
    curve_epochs: int = 60,
    points: tuple[int, int] = (31, 21),
) -> None:
    """Train two networks on digits; study what lies between them, and what their layers hold."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    progress = False if quiet else None
    train, test = (datasets.load("sklearn:digits", split=split) for split in ("train", "test"))
    _say(f"digits: {train.num_examples} training and {test.num_examples} test images of 8 x 8")

    runs = [
        Run(
            name=f"run-{seed}", make_model=models.small_cnn, data=train, test=test, epochs=epochs,
            batch_size=64, lr=Cosine(0.1), weight_decay=5e-4, seeds=Seeds.all(seed),
            checkpoints=(At(EARLY), Every(epochs=1)),
        )
        for seed in (0, 1)
    ]  # fmt: skip
    ended = experiments.train(runs, folder, stack=2, progress=progress)
    ends = [landscape.checkpoints(run.folder)[-1] for run in ended]
    _say(f"trained two networks for {epochs} epochs, checkpoints in {folder}/run-0 and run-1")

    loss = partial(F.cross_entropy, reduction="none")
    tasks = [
        Task("train", models.small_cnn(), loss, train, {"error": wrong}),
        Task("test", models.small_cnn(), loss, test, {"error": wrong}),
    ]
    a, b = (checkpoint.load() for checkpoint in ends)
    line = landscape.interpolate(tasks, a, b, points=41, keep_examples=True, progress=progress)
    _say("the line between the two networks, batch norm recalibrated at each of 41 points:\n")
    print(tables.barrier_table(line), "\n")

    curve = landscape.connect(tasks, a, b, epochs=curve_epochs, lr=0.05, progress=progress)
    heights = [float(landscape.barrier(one)["loss"].sel(split="train")) for one in (line, curve)]
    _say(
        f"a Bezier curve, trained for {curve_epochs} epochs: it removes "
        f"{1 - heights[1] / heights[0]:.1%} of the barrier in train loss\n"
    )
    print(tables.path_table(curve), "\n")

    bent = curve_of(curve, a, b)
    corners = {"seed 0": a, "seed 1": b, "bend": bent.controls[1]}
    plane = landscape.surface(
        tasks[0], list(corners.values()), points=points, marks=corners, curve=bent,
        progress=progress,
    )  # fmt: skip

    _say(
        "what the layers of both networks represent (debiased CKA on the test images), and when:\n"
    )
    layers = landscape.compare_layers(tasks[1], a, b, layers=LAYERS)
    settled = layer_convergence(tasks[1], landscape.checkpoints(folder / "run-0"), layers=LAYERS)
    print(tables.layers_table(layers), "\n")
    print(tables.layers_table(settled), "\n")

    written = []
    results = {"line": line, "curve": curve, "plane": plane, "layers": layers, "settled": settled}
    for name, result in results.items():
        written.append(landscape.save(result, folder / f"{name}.h5"))
    figures = {
        "line": plots.figure(line),
        "connected": _connected(line, curve, plane),
        "layers": _layers(layers, settled),
    }
    for name, figure in figures.items():
        for kind in ("pdf", "png"):
            written.append(plots.save_figure(figure, folder / f"{name}.{kind}"))
    files = ", ".join(path.name for path in written)
    _say(f"wrote {files} to {folder} in {time.perf_counter() - started:.0f} s")


def _connected(line: xr.Dataset, curve: xr.Dataset, plane: xr.Dataset) -> Figure:
    """The line and the trained curve, and the plane in which both lie."""
    with plots.paper_style():
        fig = Figure(figsize=(plots.WIDTHS["neurips"], 4.0))
        spaces = fig.add_gridspec(2, 2, height_ratios=[1, 1.35])
        for column, (y, split) in enumerate((("loss", "train"), ("error", "test"))):
            ax = fig.add_subplot(spaces[0, column])
            for name, dashes, path in (("line", "--", line), ("trained curve", "-", curve)):
                shown = path.drop_vars([f"own_{y}"], errors="ignore").sel(split=split)
                plots.lines(shown, ax, y=y, label=name, linestyle=dashes)
            ax.set_ylabel(f"{split} {y}")
            ax.legend(loc="upper left", handlelength=2.5)
            ax.set_ylim(top=1.3 * ax.get_ylim()[1])
        ax = fig.add_subplot(spaces[1, :])
        plots.contours(plane, ax)
        ax.set_title("train loss in the plane through both networks and the bend of the curve")
        return fig


def _layers(layers: xr.Dataset, settled: xr.Dataset) -> Figure:
    """Layers of both networks with each other, and those of one on the way to its end."""
    with plots.paper_style():
        fig = Figure(figsize=(plots.WIDTHS["neurips"], 2.6))
        left, right = fig.subplots(1, 2)
        plots.similarity(layers, left)
        left.set_title("two networks at their ends")
        left.set_xlabel("seed 1")
        left.set_ylabel("seed 0")
        plots.convergence(settled, right)
        right.set_title("seed 0 in training")
        right.set_box_aspect(1)
        return fig


def _say(text: str) -> None:
    print(text, flush=True)
