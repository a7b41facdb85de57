"""Are independently trained networks connected: by a line, a trained curve, or up to symmetry?

    python analysis_scripts/mode_connectivity.py --scale small

Networks are trained in pairs from independent initialisations on the same data. Between both, loss
and error are measured on the straight line, on a Bezier curve and a polygonal chain of one bend
(Garipov et al. 2018, arXiv 1802.10026), and on a chain of pivots found by AutoNEB (Draxler et al.
2018, arXiv 1803.00885). Then the units of one network are permuted to match those of the other
(Ainsworth et al. 2022, arXiv 2209.04836), without and with REPAIR (Jordan et al. 2022, arXiv
2211.08403), and a matrix shows the barriers between all pairs of networks of one problem.

At small scale each pair has its own draw of the digits or of synthetic images. At full scale VGG-16
is trained on CIFAR-10 with the settings of Garipov et al., and ResNet-20 of two widths is aligned;
the data are the same for all pairs there, so that intervals are over initialisations alone. AutoNEB
is given far fewer epochs than the other curves at small scale, as it moves all pivots in each step.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import landscape
from landscape import checkpoints, datasets, models, plots
from landscape.analyses.connectivity import curve_of, summary
from landscape.analyses.energy_path import minimum_energy_path
from landscape.analyses.instability import barrier_matrix
from landscape.datasets import Batches
from landscape.examples import pick_device
from landscape.experiments import During, Run, Seeds
from landscape.experiments.augmentations import Flip, Shift
from landscape.experiments.schedules import Linear, Step
from landscape.maths.resampling import pair_interval, pair_mean
from landscape.results import dataset
from landscape.states import State
from landscape.task import Task, wrong
from shared import (
    Claim,
    Drawn,
    Effect,
    Results,
    Settings,
    digits,
    effect,
    interval,
    judged,
    panels,
    points,
    run_study,
)

OTHER = 500  # added to the seed of the first network of a pair, it is that of the second
PATHS = ("line", "Bezier", "polychain", "AutoNEB")
WAYS = ("aligned", "aligned, REPAIR", "Bezier")
cross_entropy = partial(F.cross_entropy, reduction="none")


# What is trained ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A network, its data, and how networks and curves are trained.

    `data(draw)` gives the training and the test set, others for each draw if they are `drawn`.
    `training` holds fields of `Run`, `curve` those of a `Recipe`, and `band` the options of AutoNEB
    where all paths are compared. `wider` names the problem that differs in width alone.
    """

    name: str
    make_model: Callable[..., nn.Module]
    data: Callable[[int], tuple[Batches, Batches]]
    num_pairs: int
    training: Mapping[str, Any]
    curve: Mapping[str, Any]
    points: int
    band: Mapping[str, Any] | None = None
    wider: str = ""
    drawn: bool = True

    @property
    def slug(self) -> str:
        """The name in names of files."""
        return self.name.replace(",", "").replace(" ", "-")

    def runs(self, draw: int, inits: Sequence[int]) -> list[Run]:
        """Runs on one draw of the data, from some initialisations."""
        train, test = self.data(draw)
        place = f"{self.slug}/data-{draw}" if self.drawn else self.slug
        return [
            Run(
                name=f"{place}/seed-{init}", make_model=self.make_model, data=train, test=test,
                test_every=1000, checkpoints=(), seeds=Seeds.all(init), **self.training,
            )
            for init in inits
        ]  # fmt: skip

    def tasks(self, draw: int) -> list[Task]:
        """Loss and error on the training and the test set."""
        model = self.make_model(seed=0)
        return [
            Task(split, model, cross_entropy, data, {"error": wrong})
            for split, data in zip(("train", "test"), self.data(draw), strict=True)
        ]


@dataclass(frozen=True)
class Pair:
    """Two networks of a problem, from unlike initialisations on the data that a seed draws."""

    problem: Problem
    seed: int

    @property
    def runs(self) -> list[Run]:
        """Their runs."""
        return self.problem.runs(self.seed, (self.seed, self.seed + OTHER))


@dataclass(frozen=True)
class Plan:
    """The problems of a scale; of how many networks of which one there is a matrix."""

    problems: tuple[Problem, ...]
    matrix: Problem
    num_networks: int
    plane: int


def plan(settings: Settings) -> Plan:
    """What the scale that was asked for consists of."""
    if settings.scale == "full":
        return full(settings)
    tiny = settings.scale == "tiny"

    def steps(small: int, lr: float, size: int) -> dict[str, Any]:
        return {
            "epochs": small // 12 if tiny else small, "batch_size": size,
            "lr": Step(lr, (0.7,), unit="share"), "weight_decay": 5e-4,
        }  # fmt: skip

    def recipe(small: int, lr: float, size: int) -> dict[str, Any]:
        return {"epochs": max(1, small // 20) if tiny else small, "lr": lr, "batch_size": size}

    long: dict[str, Any] = {
        "num_pairs": 8, "points": 13 if tiny else 61, "training": steps(60, 0.05, 64),
        "curve": recipe(100, 0.02, 64), "band": recipe(6, 0.02, 64) | {"cycles": 2 if tiny else 3},
    }  # fmt: skip
    short: dict[str, Any] = {
        "num_pairs": 4, "points": 7 if tiny else 17, "training": steps(24, 0.1, 128),
        "curve": recipe(30, 0.05, 128),
    }  # fmt: skip
    num, width = (300, 3) if tiny else (900, 6)
    clean, noisy = cache(partial(digits, num=num)), cache(partial(digits, num=num, noise=0.7))
    images = cache(partial(synthetic, num=num))
    mlp, cnn = partial(models.mlp, 64), models.small_cnn
    narrow: dict[str, Any] = {"width": width}
    wide: dict[str, Any] = {"width": 4 * width}
    shallow = Problem("shallow", partial(mlp, (128, 128)), clean, **long)
    problems = (
        shallow,
        Problem("deep, noisy", partial(mlp, (64,) * 4), noisy, **long),
        Problem("MLP", partial(mlp, (128, 128)), clean, wider="wide MLP", **short),
        Problem("wide MLP", partial(mlp, (512, 512)), clean, **short),
        Problem("CNN", partial(cnn, **narrow), clean, wider="wide CNN", **short),
        Problem("wide CNN", partial(cnn, **wide), clean, **short),
        Problem("CNN, images", partial(cnn, 3, 5, **narrow), images, wider="wide CNN, images",
                **short),
        Problem("wide CNN, images", partial(cnn, 3, 5, **wide), images, **short),
    )  # fmt: skip
    few = problems[:2] + problems[-2:]
    return Plan(few if tiny else problems, shallow, 8, plane=9 if tiny else 21)


def full(settings: Settings) -> Plan:
    """VGG-16 as in Garipov et al. (their README), and ResNet-20 of two widths (He et al. 2015)."""
    images = settings.images()
    augmented = Augmented(images[0], 128, settings.device)
    common: dict[str, Any] = {
        "data": lambda draw: images, "drawn": False, "num_pairs": 3, "points": 61,
    }  # fmt: skip
    training = {"batch_size": 128, "augmentations": (During(Shift(4)), During(Flip()))}
    curve = {"lr": 0.015, "data": augmented}
    residual = common | {
        "training": training | {
            "epochs": 200, "lr": Step(0.1, (0.5, 0.75), unit="share"), "weight_decay": 1e-4,
        },
        "curve": curve | {"epochs": 200, "weight_decay": 1e-4},
    }  # fmt: skip
    vgg16 = Problem(
        "VGG-16",
        models.vgg16,
        training=training | {
            "epochs": 200, "lr": Linear(0.05, 0.0005, 0.5, 0.9), "weight_decay": 5e-4,
        },
        curve=curve | {"epochs": 600, "weight_decay": 5e-4},
        band=curve | {"epochs": 30, "weight_decay": 5e-4, "cycles": 4},
        **common,
    )  # fmt: skip
    resnet = Problem("ResNet-20", models.resnet20, wider="wide ResNet-20", **residual)
    wide = Problem("wide ResNet-20", partial(models.resnet20, width=64), **residual)
    return Plan((vgg16, resnet, wide), matrix=resnet, num_networks=6, plane=21)


def synthetic(draw: int, num: int) -> tuple[Batches, Batches]:
    """Images (n, 3, 8, 8) of five classes: `num` to train on, a quarter as many to test.

    Synthetic images of twice the size, averaged over 2 x 2 pixels.
    """
    spec = f"synthetic:classes=5,size=16,difficulty=0.2,num_examples={num * 5 // 4}"
    loaded = [datasets.load(spec, split=split, seed=draw) for split in ("train", "test")]
    transform = loaded[0].transform or (lambda images: images)
    train, test = (
        Batches(F.avg_pool2d(transform(one.inputs), 2), one.targets, 1024) for one in loaded
    )
    return train, test


@dataclass(frozen=True, eq=False)
class Augmented:
    """Images in a new order on each pass, moved by up to 4 pixels and flipped: to train a curve on.

    What is drawn comes from torch's global generator, which the training of curves seeds.
    """

    images: Batches
    size: int
    device: str

    def __len__(self) -> int:
        return -(-self.images.num_examples // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device = pick_device(self.device)
        inputs, targets = self.images.inputs.to(device), self.images.targets.to(device)
        for index in torch.randperm(len(inputs)).to(device).tensor_split(len(self)):
            batch = inputs[index] if self.images.transform is None else (
                self.images.transform(inputs[index])
            )  # fmt: skip
            for one in (Shift(4), Flip()):
                draws = one.draw(torch.default_generator, len(index)).to(device)
                batch = one.apply(batch[None], targets[None, index], draws[None])[0][0]
            yield batch, targets[index]


# Measuring ----------------------------------------------------------------------------------------


def measure(settings: Settings) -> dict[str, xr.Dataset]:
    """Train the networks, and connect and align both of each pair."""
    chosen = plan(settings)
    pairs = [
        Pair(problem, seed)
        for problem in chosen.problems
        for seed in settings.seeds(problem.num_pairs)
    ]
    draw = settings.first_seed
    several = chosen.matrix.runs(draw, settings.seeds(chosen.num_networks))
    runs = [*(run for pair in pairs for run in pair.runs), *several]
    runs = list({run.name: run for run in runs}.values())
    settings.check_time(runs[0], total_epochs(runs, pairs))
    settings.train(runs)
    along = [pair for pair in pairs if pair.problem.band is not None]
    result = {
        "paths": settings.kept("paths", lambda: assembled(settings, along, paths)),
        "initial": settings.kept("initial", lambda: assembled(settings, along, from_the_start)),
        "barriers": settings.kept("barriers", lambda: assembled(settings, pairs, barriers_left)),
        "matrix": settings.kept("matrix", lambda: matrix(settings, chosen, several)),
    }
    for pair in along:
        if pair.seed == settings.first_seed:
            name = f"plane-{pair.problem.slug}"
            result[name] = settings.kept(name, partial(plane, settings, pair, chosen.plane))
    return result


def total_epochs(runs: Sequence[Run], pairs: Sequence[Pair]) -> float:
    """The epochs of all runs and curves, those of AutoNEB with about five pivots."""
    epochs = float(sum(run.epochs for run in runs))
    for problem in (pair.problem for pair in pairs):
        epochs += problem.curve["epochs"] * (1 if problem.band is None else 2)
        epochs += 5 * problem.band["cycles"] * problem.band["epochs"] if problem.band else 0
    return epochs


def ends(settings: Settings, pair: Pair) -> list[State]:
    """Both networks of a pair, trained."""
    return [checkpoints(settings.runs(run))[-1].load() for run in pair.runs]


def path(settings: Settings, pair: Pair, kind: str) -> xr.Dataset:
    """One path between both networks, with loss and error on both splits; found once."""
    problem = pair.problem
    tasks = problem.tasks(pair.seed)
    options: dict[str, Any] = {"device": settings.device, "progress": settings.progress}

    def compute() -> xr.Dataset:
        a, b = ends(settings, pair)
        if kind == "line":
            line = landscape.interpolate(tasks, a, b, points=problem.points, **options)
            length = line.attrs["distance"]
            return line.assign(arc_length=length * line["t"]).assign_attrs(
                length=length, length_ratio=1.0
            )
        if kind == "AutoNEB":
            found = minimum_energy_path(
                tasks, a, b, seed=pair.seed, **(problem.band or {}), **options
            )
            return found.drop_vars("bends")
        return landscape.connect(
            tasks, a, b, curve=kind.lower(), points=problem.points, seed=pair.seed,
            **problem.curve, **options,
        )  # fmt: skip

    return settings.kept(f"pairs/{problem.slug}-{pair.seed}-{kind}", compute)


def paths(settings: Settings, pair: Pair) -> xr.Dataset:
    """Loss and error along each path, on one grid, and what the papers tabulate of it."""
    found = [path(settings, pair, kind) for kind in PATHS]
    t = np.linspace(0, 1, pair.problem.points)
    along = [one[["loss", "error"]].interp(t=t) for one in found]
    tabulated = [summary(one)[["loss", "error"]] for one in found]
    variables: dict[str, Any] = {}
    for name in ("loss", "error"):
        values = [one[name].transpose("split", "t") for one in along]
        variables[name] = (("path", "split", "t"), np.stack(values))
        values = [one[name].transpose("split", "of") for one in tabulated]
        variables[f"{name}_summary"] = (("path", "split", "of"), np.stack(values))
    variables["length_ratio"] = ("path", [one.attrs["length_ratio"] for one in found])
    coords = {"path": list(PATHS), "split": found[0]["split"].values, "t": t,
              "of": tabulated[0]["of"].values}  # fmt: skip
    return dataset(variables, coords, analysis="paths", title="Paths between two networks")


def from_the_start(settings: Settings, pair: Pair) -> xr.Dataset:
    """The line from the first network's initial weights to its final ones."""
    begun, *_, ended = checkpoints(settings.runs(pair.runs[0]))
    line = landscape.interpolate(
        pair.problem.tasks(pair.seed)[0], begun.load(), ended.load(), device=settings.device
    )
    variables = {"loss": ("t", line["loss"].values)}
    title = "Lines from initialisation to the end of training"
    return dataset(variables, {"t": line["t"].values}, analysis="initial", title=title)


def barriers_left(settings: Settings, pair: Pair) -> xr.Dataset:
    """The barrier in train loss on the line, and on each way around it.

    On the line and on the curve batch-norm statistics are recalibrated at each point. Alignment by
    itself interpolates them; with REPAIR they are recalibrated, as are the moments of layers
    without batch norm.
    """
    a, b = ends(settings, pair)
    task = pair.problem.tasks(pair.seed)[0]
    aligned = landscape.align(task, a, b, device=settings.device)
    between = partial(
        landscape.interpolate, task, a, aligned, points=pair.problem.points, device=settings.device
    )
    line, curve = (path(settings, pair, kind).sel(split="train") for kind in ("line", "Bezier"))
    ways = between(batch_norm="interpolate"), between(batch_norm="repair"), curve

    def height(result: xr.Dataset) -> float:
        return float(landscape.barrier(result, "chord")["loss"])

    variables = {
        "line": ((), height(line)),
        "left": ("way", [height(way) for way in ways]),
        "wider": ((), pair.problem.wider),
    }
    return dataset(variables, {"way": list(WAYS)}, analysis="barriers", title="Barriers left")


def plane(settings: Settings, pair: Pair, num: int) -> xr.Dataset:
    """Train loss in the plane through both networks and the bend of the Bezier curve."""
    a, b = ends(settings, pair)
    curve = curve_of(path(settings, pair, "Bezier"), a, b)
    corners = {"A": a, "B": b, "bend": curve.controls[1]}
    task = pair.problem.tasks(pair.seed)[0]
    return landscape.surface(
        task, list(corners.values()), marks=corners, curve=curve, points=num,
        device=settings.device, progress=settings.progress,
    )  # fmt: skip


def matrix(settings: Settings, chosen: Plan, runs: Sequence[Run]) -> xr.Dataset:
    """Barriers in train loss between all pairs of networks of one problem, and their mean.

    Pairs share networks, so that intervals are by a bootstrap over networks (`pair_interval`).
    """
    last = [checkpoints(settings.runs(run))[-1] for run in runs]
    task = chosen.matrix.tasks(settings.first_seed)[0]
    found = barrier_matrix(
        task, last, names=[run.seeds.init for run in runs], align=True, points=25,
        device=settings.device, progress=settings.progress,
    )  # fmt: skip
    square = found["loss"].transpose("alignment", "run", "other_run").values
    both = np.triu_indices(len(runs), 1)
    raw, aligned = square[:, *both]
    return found.assign(over_networks(np.stack([raw, aligned, shares(raw, aligned)]), both))


def over_networks(values: NDArray[np.float64], both: tuple[Any, Any]) -> dict[str, Any]:
    """The means (quantity) of values (quantity, pairs), with intervals over the networks."""
    one = np.zeros(values.shape[1])
    low, high = pair_interval(values, np.stack(both, axis=1), one)
    words = {"long_name": "raw and aligned barrier in train loss, and share removed"}
    return {
        "mean": ("quantity", pair_mean(values, one), words),
        "low": ("quantity", low, words),
        "high": ("quantity", high, words),
    }


def assembled(
    settings: Settings, pairs: Sequence[Pair], compute: Callable[[Settings, Pair], xr.Dataset]
) -> xr.Dataset:
    """What is computed for each pair, along problem and pair.

    Pairs are numbered from 0; a problem with fewer pairs than `num_pairs` says for others is nan.
    """
    names = list(dict.fromkeys(pair.problem.name for pair in pairs))
    by_problem = []
    for name in names:
        own = [compute(settings, pair) for pair in pairs if pair.problem.name == name]
        by_problem.append(xr.concat(own, "pair").assign_coords(pair=range(len(own))))
    words = {"problem": ("problem", names)}
    result = xr.concat(by_problem, "problem", join="outer", combine_attrs="override")
    sizes = [one.sizes["pair"] for one in by_problem]
    return result.assign_coords(words).assign(num_pairs=("problem", sizes))


# Drawing ------------------------------------------------------------------------------------------


def draw(found: Results) -> dict[str, Drawn]:
    """Paths with their table and planes; what is left of barriers; all pairs."""
    return {
        "mode_connectivity_paths": draw_paths(found),
        "mode_connectivity_barriers": draw_barriers(found["barriers"], found["initial"]),
        "mode_connectivity_pairs": draw_matrix(found["matrix"]),
    }


def draw_paths(found: Results) -> Drawn:
    """A row for each problem: train loss, test error, plane; and the table of curves."""
    paths = found["paths"]
    names = [str(name) for name in paths["problem"].values]
    fig, axes = panels(3, len(names) + 1, height=1.6, height_ratios=[*[1] * len(names), 0.75])
    for name, (loss, error, surface) in zip(names, axes, strict=False):
        own = paths.sel(problem=name).transpose("path", "pair", "split", "t", "of")
        for kind in PATHS:
            values = own.sel(path=kind)
            geometric_band(loss, own["t"], values["loss"].sel(split="train"), kind)
            linear = points(values["error"].sel(split="test"))
            middle, half = mean_and_half(linear)
            (drawn,) = error.plot(own["t"], middle)
            error.fill_between(
                own["t"], middle - half, middle + half, color=drawn.get_color(), alpha=0.2, lw=0
            )
        loss.set(title=f"{name}: train loss", ylabel="loss", yscale="log")
        error.set(title=f"{name}: test error", ylabel="error (%)")
        slug = name.replace(",", "").replace(" ", "-")
        plane = found[f"plane-{slug}"]
        plots.contours(plane, surface, levels=plots.levels_for([plane], num=7))
        surface.set(title=f"{name}: one plane", aspect="auto")
    for ax in axes[len(names) - 1, :2]:
        ax.set_xlabel("position t on the path")
    for ax in axes[-1]:
        ax.remove()
    write_table(fig.add_subplot(axes[0, 0].get_gridspec()[-1, :]), paths)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=len(PATHS))
    num = int(paths["num_pairs"].min())
    return Drawn(
        fig,
        f"Train loss (geometric mean) and test error along paths between two networks from "
        f"independent initialisations, with 95 % t intervals over {num} pairs; train loss in the "
        "plane through the ends A and B of the first pair and the bend of its Bezier curve (the "
        "axes have unlike scales); and the table of curves, means over pairs: length as a multiple "
        "of the distance, smallest value, mean over the arc length, and largest value.",
    )


def geometric_band(ax: Axes, x: ArrayLike, values: ArrayLike, label: str) -> None:
    """The geometric mean over pairs of positive values (pair, x), with its 95 % t interval."""
    middle, half = mean_and_half(np.log(np.asarray(values, float)))
    (line,) = ax.plot(x, np.exp(middle), label=label)
    ax.fill_between(
        x, np.exp(middle - half), np.exp(middle + half), color=line.get_color(), alpha=0.2, lw=0
    )


def mean_and_half(values: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean over the first axis, and half the width of its 95 % t interval."""
    values = np.asarray(values, float)
    wide = stats.t.ppf(0.975, len(values) - 1)
    return values.mean(0), wide * stats.sem(values, axis=0)


def write_table(ax: Axes, paths: xr.Dataset) -> None:
    """The table of curves: a line for each problem and path."""
    ax.axis("off")
    heads = ["", "path", "length", "train loss: min", "mean", "max", "test error (%): min", "mean",
             "max"]  # fmt: skip
    places = [0.0, 0.17, 0.35, 0.5, 0.58, 0.66, 0.84, 0.92, 1.0]
    rows = [heads]
    means = paths.mean("pair")
    for problem in paths["problem"].values:
        for kind in PATHS:
            own = means.sel(problem=problem, path=kind)
            losses = own["loss_summary"].sel(split="train", of=["min", "arc", "max"]).values
            errors = points(own["error_summary"].sel(split="test", of=["min", "arc", "max"]))
            rows.append([
                str(problem) if kind == PATHS[0] else "", kind, f"{float(own['length_ratio']):.3f}",
                *(f"{value:.2g}" for value in losses), *(f"{value:.1f}" for value in errors),
            ])  # fmt: skip
    for number, row in enumerate(rows):
        height = 1 - (number + 0.5) / len(rows)
        for place, text in zip(places, row, strict=True):
            ax.text(
                place, height, text, transform=ax.transAxes, va="center", fontsize="small",
                ha="left" if place in places[:2] else "right",
            )  # fmt: skip
    for number in (0, *range(1, len(rows) + 1, len(PATHS))):
        ax.axhline(1 - number / len(rows), color="black", lw=0.5)
    ax.set(xlim=(0, 1), ylim=(0, 1))


def draw_barriers(barriers: xr.Dataset, initial: xr.Dataset) -> Drawn:
    """The share of the line's barrier that is left, for each problem and way."""
    fig, ((ax, lines),) = panels(2, height=2.7, width_ratios=[3, 1])
    names = [str(name) for name in barriers["problem"].values]
    for number, way in enumerate(WAYS):
        style = {"color": f"C{number}", "ms": 3}
        for place, name in enumerate(names):
            own = 100 - points(removed(barriers, name, way))
            x = place + 0.25 * (number - 1)
            ax.plot(np.full(len(own), x), own, "o", color="0.75", ms=1.5, zorder=1)
            middle, half = mean_and_half(own)
            ax.errorbar(x, middle, half, fmt="o", capsize=1.5, zorder=2, **style)
        ax.plot([], [], "o", label=way, **style)
    ax.axhline(100, color="0.5", lw=0.6, ls="--", zorder=0)
    ax.set(title="barrier left", ylabel="share of the line's barrier (%)", ylim=(0, None))
    ax.set_xticks(range(len(names)), [name.replace(", ", ",\n") for name in names], rotation=90)
    for problem in initial["problem"].values:
        losses = initial["loss"].sel(problem=problem).transpose("pair", "t")
        geometric_band(lines, initial["t"], losses, str(problem))
    lines.set(title="from the start", ylabel="train loss", yscale="log", xlabel="initial to final")
    lines.legend()
    fig.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=len(WAYS))
    sizes = barriers["num_pairs"].values
    return Drawn(
        fig,
        "Left: what is left of the barrier in train loss on the straight line between two networks "
        "when the units of one are permuted to match the other's, with REPAIR, and on a trained "
        "Bezier curve; means with 95 % t intervals over pairs that share no network (grey: pairs; "
        f"{sizes.min()} to {sizes.max()} for each problem). Batch-norm "
        "statistics are recalibrated at each point on the line, with REPAIR and on the curve, and "
        "interpolated where alignment is by itself. Right: train loss on the line from the "
        f"initial to the final weights (geometric mean, 95 % over {initial.sizes['pair']} runs).",
    )


def draw_matrix(matrix: xr.Dataset) -> Drawn:
    """Barriers between all pairs of networks, raw and aligned."""
    fig, (axes,) = panels(2, height=2.6)
    top = float(matrix["loss"].max())
    for ax, alignment in zip(axes, ("raw", "aligned"), strict=True):
        own = matrix.sel(alignment=alignment)
        order = np.argsort(own["basin"].values, kind="stable")
        own = own.isel(run=order, other_run=order)
        plots.matrix(own, ax, y="loss", top=top, bar=False)
        ax.set(title=alignment, xlabel="seed", ylabel="seed")
        for text in ax.texts:
            column, row = (int(place) for place in text.get_position())
            text.set_text(f"{own['loss'].values[row, column]:.2f}")
    fig.colorbar(axes[0].collections[0], ax=axes, label="barrier in train loss", shrink=0.8)
    raw, aligned, share = (interval(one) for one in means_of(matrix))
    num = matrix.sizes["run"]
    return Drawn(
        fig,
        f"Barriers in train loss between all {num * (num - 1) // 2} pairs of {num} networks from "
        "independent initialisations on the same data, on the line between both as they are (raw) "
        f"and with the units of the second permuted (aligned). Mean over pairs: raw {raw}, aligned "
        f"{aligned}, removed {share} %. Pairs share networks, so the 95 % intervals are by a "
        "bootstrap over networks, not over pairs, widened for their small number; they are for "
        "this draw of the data. Outlined are networks between which the train error rises by at "
        f"most {100 * float(matrix.attrs['threshold']):g} %.",
    )


# Judging ------------------------------------------------------------------------------------------


def judge(found: Results) -> list[Claim]:
    """D1b for each problem of the paths; what is reported of curves, alignment and all pairs."""
    paths, barriers = found["paths"], found["barriers"]
    claims = []
    for problem in map(str, paths["problem"].values):
        claims.append(curve_finder(paths, problem))
    for problem in map(str, paths["problem"].values):
        claims += [worst_error(paths, problem, kind) for kind in PATHS[1:]]
        claims.append(rises(found["initial"], problem))
    for problem in map(str, barriers["problem"].values):
        claims += [share(barriers, problem, way) for way in WAYS]
    for problem in map(str, barriers["problem"].values):
        wider = str(barriers["wider"].sel(problem=problem).values.ravel()[0])
        if wider:
            claims.append(width(barriers, problem, wider))
    return [*claims, *all_pairs(found["matrix"])]


def curve_finder(paths: xr.Dataset, problem: str) -> Claim:
    """Criterion D1b: the Bezier curve leads around the barrier for all seeds."""
    worst = paths["error_summary"].sel(problem=problem, split="train", of="max")
    line, curve = (points(worst.sel(path=kind)) for kind in ("line", "Bezier"))
    difference = line - curve
    return judged(
        "D1b", "mode_connectivity_paths",
        f"{problem}: a trained curve joins two independent networks that a line does not",
        f"{problem}: largest train error, line - Bezier curve (points; {(difference >= 5).sum()} "
        f"of {len(difference)} pairs reach 5, the least has {difference.min():.1f})",
        effect(difference),
        also={f">= 5 for each of {len(difference)} pairs": bool((difference >= 5).all())},
    )  # fmt: skip


def worst_error(paths: xr.Dataset, problem: str, kind: str) -> Claim:
    """The largest test error on a path, against that of the ends."""
    own = paths["error_summary"].sel(problem=problem, split="test", path=kind)
    above = own.sel(of="max") - (own.sel(of="start") + own.sel(of="end")) / 2
    return judged(
        "G curves", "mode_connectivity_paths",
        "the test error on a trained path stays near that of its ends (VGG-16: 1 to 1.3 points)",
        f"{problem}, {kind}: largest test error above the mean of the ends (points)",
        effect(points(above)), expected="report",
    )  # fmt: skip


def rises(initial: xr.Dataset, problem: str) -> Claim:
    """The largest rise of the loss from one point to the next, from the start to the end."""
    losses = initial["loss"].sel(problem=problem).transpose("pair", "t").values
    largest = (losses[:, 1:] / losses[:, :-1] - 1).max(1)
    return judged(
        "G linear interpolation", "mode_connectivity_barriers",
        "the loss falls monotonically from the initial to the final weights",
        f"{problem}: largest rise from the previous point (%)",
        effect(points(largest)), at_most=5, expected="report",
    )  # fmt: skip


def removed(barriers: xr.Dataset, problem: str, way: str) -> NDArray[np.float64]:
    """The share of the line's barrier that a way removes, for each pair of a problem."""
    own = barriers.sel(problem=problem)
    own = own.isel(pair=slice(int(own["num_pairs"])))
    return shares(own["line"].values, own["left"].sel(way=way).values)


def shares(line: NDArray[np.float64], left: NDArray[np.float64]) -> NDArray[np.float64]:
    """The shares of barriers on lines that are not left; 0 where a line has none."""
    return np.where(line > 0, 1 - left / np.where(line > 0, line, 1), 0.0)


def share(barriers: xr.Dataset, problem: str, way: str) -> Claim:
    """The share of the line's barrier that a way removes, over pairs."""
    return judged(
        "G curves" if way == "Bezier" else "alignment", "mode_connectivity_barriers",
        "curves lead around barriers, and a part of them is due to the order of units",
        f"{problem}, {way}: share of the line's barrier removed (%)",
        effect(points(removed(barriers, problem, way))), expected="report",
    )  # fmt: skip


def width(barriers: xr.Dataset, narrow: str, wide: str) -> Claim:
    """The share that alignment removes of the barrier of a wide network, less that of a narrow."""
    both = (removed(barriers, one, "aligned, REPAIR") for one in (wide, narrow))
    wider, narrower = both
    return judged(
        "alignment and width", "mode_connectivity_barriers",
        "alignment removes more of the barrier between wide networks",
        f"{wide} - {narrow}: share removed by alignment and REPAIR (points)",
        effect(points(wider - narrower)), expected="report",
    )  # fmt: skip


def all_pairs(matrix: xr.Dataset) -> list[Claim]:
    """The mean barriers between all pairs, with intervals by a bootstrap over networks."""
    texts = ("raw barrier in train loss", "aligned barrier in train loss",
             "share of the barrier that alignment removes (%)")  # fmt: skip
    return [
        judged(
            "all pairs", "mode_connectivity_pairs",
            "networks from unlike seeds lie behind barriers, lower ones after alignment",
            f"{text}, mean over all pairs (interval over networks)", mean, expected="report",
        )
        for text, mean in zip(texts, means_of(matrix), strict=True)
    ]  # fmt: skip


def means_of(matrix: xr.Dataset) -> list[Effect]:
    """The raw barrier, the aligned one, and the share that is removed (%): means over all pairs."""
    found = []
    for number, scale in enumerate((1, 1, 100)):
        mean, low, high = (scale * float(matrix[name][number]) for name in ("mean", "low", "high"))
        found.append(Effect(mean, low, high, float("nan"), matrix.sizes["run"]))
    return found


if __name__ == "__main__":
    run_study(measure, draw, judge)
