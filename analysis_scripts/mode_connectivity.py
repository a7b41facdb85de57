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

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray
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
from landscape.maths.resampling import pair_interval
from landscape.results import dataset
from landscape.states import State
from landscape.task import Task, wrong
from shared import (
    Claim,
    Drawn,
    Effect,
    Results,
    Settings,
    band,
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
ALONG, BARRIERS, PAIRS = (f"mode_connectivity_{name}" for name in ("paths", "barriers", "pairs"))
cross_entropy = partial(F.cross_entropy, reduction="none")


# Settings -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A network, its data, and how networks and curves are trained.

    `training` holds fields of `Run`, `curve` those of a `Recipe`, and `neb` the options of AutoNEB
    where all paths are compared. `wider` names the problem that differs in width alone. Of
    `num_networks` there is a matrix. Data that are not `drawn` are the same for each draw.
    """

    name: str
    make_model: Callable[..., nn.Module]
    data: Callable[[int], tuple[Batches, Batches]]
    num_pairs: int
    training: dict[str, Any]
    curve: dict[str, Any]
    points: int
    neb: dict[str, Any] | None = None
    wider: str = ""
    num_networks: int = 0
    drawn: bool = True

    def runs(self, draw: int, inits: Iterable[int]) -> list[Run]:
        """Runs on one draw of the data, from some initialisations."""
        train, test = self.data(draw)
        place = f"{slug(self.name)}/data-{draw}" if self.drawn else slug(self.name)
        return [
            Run(
                name=f"{place}/seed-{init}", make_model=self.make_model, data=train, test=test,
                test_every=1000, checkpoints=(), seeds=Seeds.all(init), last_batch="smaller",
                **self.training,
            )
            for init in inits
        ]  # fmt: skip

    def pair(self, seed: int) -> list[Run]:
        """Two runs from unlike initialisations, on the data that a seed draws."""
        return self.runs(seed, (seed, seed + OTHER))

    def tasks(self, draw: int) -> list[Task]:
        """Loss and error on the training and the test set."""
        model = self.make_model(seed=0)
        return [
            Task(split, model, cross_entropy, data, {"error": wrong})
            for split, data in zip(("train", "test"), self.data(draw), strict=True)
        ]


def slug(name: str) -> str:
    """The name of a problem in names of files."""
    return name.replace(",", "").replace(" ", "-")


def small(tiny: bool = False) -> tuple[Problem, ...]:
    """Digits and synthetic images; in a trial fewer problems, for a few epochs."""

    def training(epochs: int, lr: float, size: int) -> dict[str, Any]:
        rate = Step(lr, (0.7,), unit="share")
        return {"epochs": epochs, "batch_size": size, "lr": rate, "weight_decay": 5e-4}

    slow = {"lr": 0.02, "batch_size": 64}
    long: dict[str, Any] = {
        "num_pairs": 8, "points": 13 if tiny else 61,
        "training": training(5 if tiny else 60, 0.05, 64),
        "curve": slow | {"epochs": 5 if tiny else 100},
        "neb": slow | ({"epochs": 1, "cycles": 2} if tiny else {"epochs": 6, "cycles": 3}),
    }  # fmt: skip
    short: dict[str, Any] = {
        "num_pairs": 4, "points": 7 if tiny else 17,
        "training": training(2 if tiny else 24, 0.1, 128),
        "curve": {"epochs": 1 if tiny else 30, "lr": 0.05, "batch_size": 128},
    }  # fmt: skip
    num, width = (300, 3) if tiny else (900, 6)
    clean, noisy = (cache(partial(digits, num=num, noise=noise)) for noise in (0.0, 0.7))
    images = cache(partial(synthetic, num=num // 2))
    mlp, cnn = partial(models.mlp, 64), models.small_cnn
    narrow, wide = (partial(cnn, width=own) for own in (width, 4 * width))
    problems = (
        Problem("shallow", partial(mlp, (128, 128)), clean, num_networks=8, **long),
        Problem("deep, noisy", partial(mlp, (64,) * 4), noisy, **long),
        Problem("MLP", partial(mlp, (128, 128)), clean, wider="wide MLP", **short),
        Problem("wide MLP", partial(mlp, (512, 512)), clean, **short),
        Problem("CNN", narrow, clean, wider="wide CNN", **short),
        Problem("wide CNN", wide, clean, **short),
        Problem("CNN, images", partial(narrow, 3, 2), images, wider="wide CNN, images", **short),
        Problem("wide CNN, images", partial(wide, 3, 2), images, **short),
    )
    return problems[:2] + problems[-2:] if tiny else problems


def full(settings: Settings) -> tuple[Problem, ...]:
    """VGG-16 as in Garipov et al. (their README), and ResNet-20 of two widths (He et al. 2015)."""
    images = settings.images()
    augmented = Augmented(images[0].to(pick_device(settings.device)), 128)
    training = {
        "batch_size": 128, "epochs": 200, "augmentations": (During(Shift(4)), During(Flip())),
    }  # fmt: skip

    def common(lr: Linear | Step, decay: float, epochs: int) -> dict[str, Any]:
        return {
            "data": lambda draw: images, "drawn": False, "num_pairs": 3, "points": 61,
            "training": training | {"lr": lr, "weight_decay": decay},
            "curve": {"epochs": epochs, "lr": 0.015, "data": augmented, "weight_decay": decay},
        }  # fmt: skip

    vgg = common(Linear(0.05, 0.0005, 0.5, 0.9), 5e-4, 600)
    residual = common(Step(0.1, (0.5, 0.75), unit="share"), 1e-4, 200)
    neb = vgg["curve"] | {"epochs": 30, "cycles": 4}
    wide = partial(models.resnet20, width=64)
    return (
        Problem("VGG-16", models.vgg16, neb=neb, **vgg),
        Problem("ResNet-20", models.resnet20, wider="wide ResNet-20", num_networks=6, **residual),
        Problem("wide ResNet-20", wide, **residual),
    )


# Data ---------------------------------------------------------------------------------------------


def synthetic(draw: int, num: int) -> tuple[Batches, Batches]:
    """Images (n, 3, 16, 16) of two classes, `num` to train on and as many to test."""
    spec = f"synthetic:classes=2,size=16,num_examples={num}"
    train, test = (datasets.load(spec, split=split, seed=draw) for split in ("train", "test"))
    return train, test


@dataclass(frozen=True, eq=False)
class Augmented:
    """Images in a new order on each pass, moved by up to 4 pixels and flipped: to train a curve on.

    What is drawn comes from torch's global generator, which the training of curves seeds.
    """

    images: Batches
    size: int

    def __len__(self) -> int:
        return -(-self.images.num_examples // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.randperm(self.images.num_examples).tensor_split(len(self)):
            inputs, targets = next(iter(replace(self.images.subset(index), batch_size=self.size)))
            for one in (Shift(4), Flip()):
                draws = one.draw(torch.default_generator, len(index)).to(inputs.device)
                inputs = one.apply(inputs[None], targets[None], draws[None])[0][0]
            yield inputs, targets


# Measuring ----------------------------------------------------------------------------------------


def measure(settings: Settings) -> dict[str, xr.Dataset]:
    """Train the networks, and connect and align both of each pair."""
    problems = full(settings) if settings.scale == "full" else small(settings.scale == "tiny")
    (many,) = (one for one in problems if one.num_networks)
    several = many.runs(settings.first_seed, settings.seeds(many.num_networks))
    pairs = [(one, seed) for one in problems for seed in settings.seeds(one.num_pairs)]
    runs = [*(run for one, seed in pairs for run in one.pair(seed)), *several]
    runs = list({run.name: run for run in runs}.values())
    settings.check_time(runs[0], total_epochs(runs, [one for one, _ in pairs]))
    settings.train(runs)
    along = [one for one in problems if one.neb]
    parts = {
        "paths": partial(over_pairs, settings, along, paths),
        "initial": partial(over_pairs, settings, along, initial),
        "barriers": partial(over_pairs, settings, problems, barriers),
        "matrix": partial(matrix, settings, many, several),
    }
    parts |= {f"plane-{slug(one.name)}": partial(plane, settings, one) for one in along}
    return {name: settings.kept(name, compute) for name, compute in parts.items()}


def total_epochs(runs: Sequence[Run], connected: Sequence[Problem]) -> float:
    """The epochs of all runs and curves, those of AutoNEB with about five pivots."""
    epochs = sum(run.epochs for run in runs)
    epochs += sum((2 if one.neb else 1) * one.curve["epochs"] for one in connected)
    return epochs + sum(5 * one.neb["cycles"] * one.neb["epochs"] for one in connected if one.neb)


def over_pairs(
    settings: Settings,
    problems: Sequence[Problem],
    compute: Callable[[Settings, Problem, int], xr.Dataset],
) -> xr.Dataset:
    """What is computed for each pair, along problem and pair.

    Pairs are numbered from 0; a problem with fewer pairs than others (`num_pairs`) is nan there.
    """
    by_problem = []
    for problem in problems:
        own = [compute(settings, problem, seed) for seed in settings.seeds(problem.num_pairs)]
        by_problem.append(xr.concat(own, "pair").assign_coords(pair=range(len(own))))
    result = xr.concat(by_problem, "problem", join="outer", combine_attrs="override")
    num_pairs = ("problem", [one.sizes["pair"] for one in by_problem])
    return result.assign_coords(problem=[one.name for one in problems]).assign(num_pairs=num_pairs)


def ends(settings: Settings, problem: Problem, seed: int) -> list[State]:
    """Both networks of a pair, trained."""
    return [checkpoints(settings.runs(run))[-1].load() for run in problem.pair(seed)]


def path(settings: Settings, problem: Problem, seed: int, kind: str) -> xr.Dataset:
    """One path between both networks, with loss and error on both splits; found once."""

    def compute() -> xr.Dataset:
        tasks, (a, b) = problem.tasks(seed), ends(settings, problem, seed)
        options: dict[str, Any] = {"device": settings.device, "progress": settings.progress}
        if kind == "AutoNEB":
            found = minimum_energy_path(tasks, a, b, seed=seed, **(problem.neb or {}), **options)
            return found.drop_vars("bends")
        options["points"] = problem.points
        if kind == "line":
            line = landscape.interpolate(tasks, a, b, **options)
            length = line.attrs["distance"]
            return line.assign(arc_length=length * line["t"]).assign_attrs(length_ratio=1.0)
        options |= {"curve": kind.lower(), "seed": seed, **problem.curve}
        return landscape.connect(tasks, a, b, **options)

    return settings.kept(f"pairs/{slug(problem.name)}-{seed}-{kind}", compute)


def paths(settings: Settings, problem: Problem, seed: int) -> xr.Dataset:
    """Loss and error along each path, on one grid, and what the papers tabulate of it."""
    found = [path(settings, problem, seed, kind) for kind in PATHS]
    t = np.linspace(0, 1, problem.points)
    ratios = [one.attrs["length_ratio"] for one in found]
    variables: dict[str, Any] = {"length_ratio": ("path", ratios)}
    for name in ("loss", "error"):
        values = [one[name].interp(t=t).transpose("split", "t") for one in found]
        variables[name] = (("path", "split", "t"), np.stack(values))
        values = [summary(one)[name].transpose("split", "of") for one in found]
        variables[f"{name}_summary"] = (("path", "split", "of"), np.stack(values))
    coords = {"path": list(PATHS), "split": values[0]["split"].values, "t": t,
              "of": values[0]["of"].values}  # fmt: skip
    return dataset(variables, coords, analysis="paths", title="Paths between two networks")


def initial(settings: Settings, problem: Problem, seed: int) -> xr.Dataset:
    """Train loss on the line from the first network's initial weights to its final ones."""
    begun, *_, ended = checkpoints(settings.runs(problem.pair(seed)[0]))
    task = problem.tasks(seed)[0]
    return landscape.interpolate(task, begun.load(), ended.load(), device=settings.device)[["loss"]]


def barriers(settings: Settings, problem: Problem, seed: int) -> xr.Dataset:
    """The barrier in train loss on the line, and on each way around it.

    On the line and on the curve batch-norm statistics are recalibrated at each point. Alignment by
    itself interpolates them; with REPAIR they are recalibrated, as are the moments of layers
    without batch norm.
    """
    a, b = ends(settings, problem, seed)
    task = problem.tasks(seed)[0]
    b = landscape.align(task, a, b, device=settings.device)
    options: dict[str, Any] = {"points": problem.points, "device": settings.device}
    line, curve = (path(settings, problem, seed, kind).sel(split="train") for kind in PATHS[:2])
    plain, repaired = (
        landscape.interpolate(task, a, b, batch_norm=policy, **options)
        for policy in ("interpolate", "repair")
    )
    height, *left = (
        float(landscape.barrier(way, "chord")["loss"]) for way in (line, plain, repaired, curve)
    )
    variables = {"line": ((), height), "left": ("way", left), "wider": ((), problem.wider)}
    return dataset(variables, {"way": list(WAYS)}, analysis="barriers", title="Barriers left")


def plane(settings: Settings, problem: Problem) -> xr.Dataset:
    """Train loss in the plane of the first pair and the bend of its Bezier curve."""
    seed = settings.first_seed
    a, b = ends(settings, problem, seed)
    curve = curve_of(path(settings, problem, seed, "Bezier"), a, b)
    corners = {"A": a, "B": b, "bend": curve.controls[1]}
    return landscape.surface(
        problem.tasks(seed)[0], list(corners.values()), marks=corners, curve=curve,
        points=settings.choose(tiny=9, small=21, full=21),
        device=settings.device, progress=settings.progress,
    )  # fmt: skip


def matrix(settings: Settings, problem: Problem, runs: Sequence[Run]) -> xr.Dataset:
    """Barriers between all pairs of networks of one problem, raw and aligned."""
    return barrier_matrix(
        problem.tasks(settings.first_seed)[0],
        [checkpoints(settings.runs(run))[-1] for run in runs],
        names=[run.seeds.init for run in runs], align=True, points=25,
        device=settings.device, progress=settings.progress,
    )  # fmt: skip


# Derived quantities -------------------------------------------------------------------------------


def above_ends(paths: xr.Dataset, problem: str, kind: str) -> NDArray[np.float64]:
    """By how many points the test error of each pair rises above the mean of both ends."""
    own = paths["error_summary"].sel(problem=problem, split="test", path=kind)
    return points(own.sel(of="max") - (own.sel(of="start") + own.sel(of="end")) / 2)


def largest_rises(initial: xr.Dataset, problem: str) -> NDArray[np.float64]:
    """The largest rise (%) of the loss from one point to the next, for each pair."""
    losses = initial["loss"].sel(problem=problem).transpose("pair", "t").values
    return points((losses[:, 1:] / losses[:, :-1] - 1).max(1))


def shares(line: NDArray[np.float64], left: NDArray[np.float64]) -> NDArray[np.float64]:
    """The shares of barriers on lines that are not left; 0 where a line has none."""
    return np.where(line > 0, 1 - left / np.where(line > 0, line, 1), 0.0)


def removed(barriers: xr.Dataset, problem: str, way: str) -> NDArray[np.float64]:
    """The share (%) of the line's barrier that a way removes, for each pair of a problem."""
    own = barriers.sel(problem=problem)
    own = own.isel(pair=slice(int(own["num_pairs"])))
    return points(shares(own["line"].values, own["left"].sel(way=way).values))


def means_of(matrix: xr.Dataset) -> list[Effect]:
    """The raw barrier, the aligned one, and the share that is removed (%): means over all pairs.

    Pairs share networks, so that the intervals are by a bootstrap over networks.
    """
    square = matrix["loss"].transpose("alignment", "run", "other_run").values
    both = np.triu_indices(square.shape[-1], 1)
    raw, aligned = square[:, *both]
    values, one_group = np.stack([raw, aligned, points(shares(raw, aligned))]), np.zeros(len(raw))
    low, high = pair_interval(values, np.stack(both, axis=1), one_group)
    means = zip(values.mean(1).tolist(), low.tolist(), high.tolist(), strict=True)
    return [Effect(*own, float("nan"), len(square[0])) for own in means]


# Drawing ------------------------------------------------------------------------------------------


def draw(found: Results) -> dict[str, Drawn]:
    """Paths with their table and planes; what is left of barriers; all pairs."""
    return {
        ALONG: draw_paths(found),
        BARRIERS: draw_barriers(found["barriers"], found["initial"]),
        PAIRS: draw_matrix(found["matrix"]),
    }


def draw_paths(found: Results) -> Drawn:
    """A row for each problem: train loss, test error, plane; and the table of curves."""
    paths = found["paths"]
    names = paths["problem"].values.tolist()
    fig, axes = panels(3, len(names) + 1, height=1.6, height_ratios=[*[1] * len(names), 0.75])
    for name, (loss, error, surface) in zip(names, axes, strict=False):
        for kind in PATHS:
            own = paths.sel(problem=name, path=kind).transpose("pair", "split", "t", "of")
            band(loss, own["t"], own["loss"].sel(split="train"), kind, geometric=True)
            band(error, own["t"], points(own["error"].sel(split="test")))
        loss.set(title=f"{name}: train loss", ylabel="loss", yscale="log")
        error.set(title=f"{name}: test error", ylabel="error (%)")
        plane = found[f"plane-{slug(name)}"]
        plots.contours(plane, surface, levels=plots.levels_for([plane], num=7))
        surface.set(title=f"{name}: one plane", aspect="auto")
    for ax in axes[-2, :2]:
        ax.set_xlabel("position t on the path")
    for ax in axes[-1]:
        ax.remove()
    write_table(fig.add_subplot(axes[0, 0].get_gridspec()[-1, :]), paths)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=len(PATHS))
    return Drawn(
        fig,
        "Train loss (geometric mean) and test error along paths between two networks from "
        f"independent initialisations, with 95 % t intervals over {paths.sizes['pair']} pairs; "
        "train loss in the plane through the ends A and B of the first pair and the bend of its "
        "Bezier curve (the axes have unlike scales); and the table of curves, means over pairs: "
        "length as a multiple of the distance, smallest value, mean over the arc length, and "
        "largest value.",
    )


def write_table(ax: Axes, paths: xr.Dataset) -> None:
    """The table of curves: a line for each problem and path."""
    places = [0.0, 0.17, 0.35, 0.5, 0.58, 0.66, 0.84, 0.92, 1.0]
    rows = [["", "path", "length", "train loss: min", "mean", "max", "test error (%): min", "mean",
             "max"]]  # fmt: skip
    means = paths.mean("pair").sel(of=["min", "arc", "max"])
    for problem in paths["problem"].values:
        for kind in PATHS:
            own = means.sel(problem=problem, path=kind)
            losses = own["loss_summary"].sel(split="train").values
            errors = points(own["error_summary"].sel(split="test"))
            rows.append([
                problem if kind == PATHS[0] else "", kind, f"{own['length_ratio'].item():.3f}",
                *(f"{value:.2g}" for value in losses), *(f"{value:.1f}" for value in errors),
            ])  # fmt: skip
    for number, row in enumerate(rows):
        for place, text in zip(places, row, strict=True):
            side = "left" if place in places[:2] else "right"
            ax.text(place, number, text, va="center", ha=side, fontsize="small")
    for number in (0, *range(1, len(rows) + 1, len(PATHS))):
        ax.axhline(number - 0.5, color="black", lw=0.5)
    ax.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5))
    ax.axis("off")


def draw_barriers(barriers: xr.Dataset, initial: xr.Dataset) -> Drawn:
    """The share of the line's barrier that is left, for each problem and way."""
    fig, ((ax, lines),) = panels(2, height=2.7, width_ratios=[3, 1])
    names = barriers["problem"].values.tolist()
    for number, way in enumerate(WAYS):
        for place, name in enumerate(names):
            left, x = 100 - removed(barriers, name, way), place + 0.25 * (number - 1)
            ax.plot(np.full(len(left), x), left, "o", color="0.75", ms=1.5, zorder=1)
            mean = effect(left)
            ax.errorbar(
                x, mean.mean, mean.high - mean.mean, fmt="o", capsize=1.5, zorder=2, ms=3,
                color=f"C{number}", label=None if place else way,
            )  # fmt: skip
    ax.axhline(100, color="0.5", lw=0.6, ls="--", zorder=0)
    ax.set(title="barrier left", ylabel="share of the line's barrier (%)", ylim=(0, None))
    ax.set_xticks(range(len(names)), [name.replace(", ", ",\n") for name in names], rotation=90)
    for problem in initial["problem"].values:
        losses = initial["loss"].sel(problem=problem).transpose("pair", "t")
        band(lines, initial["t"], losses, problem, geometric=True)
    lines.set(title="from the start", ylabel="train loss", yscale="log", xlabel="initial to final")
    lines.legend()
    fig.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=len(WAYS))
    sizes = barriers["num_pairs"].values
    return Drawn(
        fig,
        "Left: what is left of the barrier in train loss on the straight line between two networks "
        "when the units of one are permuted to match the other's, with REPAIR, and on a trained "
        "Bezier curve; means with 95 % t intervals over pairs that share no network (grey: pairs; "
        f"{sizes.min()} to {sizes.max()} for each problem). Batch-norm statistics are recalibrated "
        "at each point on the line, with REPAIR and on the curve, and interpolated where alignment "
        "is by itself. Right: train loss on the line from the initial to the final weights "
        f"(geometric mean, 95 % over {initial.sizes['pair']} runs).",
    )


def draw_matrix(matrix: xr.Dataset) -> Drawn:
    """Barriers between all pairs of networks, raw and aligned."""
    fig, (axes,) = panels(2, height=2.6)
    top = float(matrix["loss"].max())
    for ax, alignment in zip(axes, ("raw", "aligned"), strict=True):
        plots.matrix(matrix.sel(alignment=alignment), ax, y="loss", top=top, bar=False)
        ax.set(title=alignment, xlabel="seed", ylabel="seed")
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
        f"most {points(matrix.attrs['threshold']):g} points.",
    )


# Judging ------------------------------------------------------------------------------------------


def judge(found: Results) -> list[Claim]:
    """D1b for each problem of the paths; what is reported of curves, alignment and all pairs."""
    paths, barriers = found["paths"], found["barriers"]
    names, every = paths["problem"].values.tolist(), barriers["problem"].values.tolist()
    claims = [curve_finder(paths, name) for name in names]
    told = partial(judged, expected="report")
    for name in names:
        claims += [
            told("G curves", ALONG,
                 "the test error on a trained path stays near that of its ends "
                 "(VGG-16: 0.9 to 1.2 points)",
                 f"{name}, {kind}: largest test error above the mean of the ends (points)",
                 effect(above_ends(paths, name, kind)))
            for kind in PATHS[1:]
        ]  # fmt: skip
        claims.append(
            told("G linear interpolation", BARRIERS,
                 "the loss falls monotonically from the initial to the final weights",
                 f"{name}: largest rise from the previous point (%)",
                 effect(largest_rises(found["initial"], name)))
        )  # fmt: skip
    claims += [
        told("G curves" if way == "Bezier" else "alignment", BARRIERS,
             "curves lead around barriers, and a part of them is due to the order of units",
             f"{name}, {way}: share of the line's barrier removed (%)",
             effect(removed(barriers, name, way)))
        for name in every
        for way in WAYS
    ]  # fmt: skip
    wider = dict(zip(every, barriers["wider"].isel(pair=0).values.tolist(), strict=True))
    claims += [
        told("alignment and width", BARRIERS,
             "alignment removes more of the barrier between wide networks",
             f"{wide} - {name}: share removed by alignment and REPAIR (points)",
             effect(removed(barriers, wide, WAYS[1]) - removed(barriers, name, WAYS[1])))
        for name, wide in wider.items()
        if wide
    ]  # fmt: skip
    texts = ("raw barrier in train loss", "aligned barrier in train loss",
             "share of the barrier that alignment removes (%)")  # fmt: skip
    claims += [
        told("all pairs", PAIRS,
             "networks from unlike seeds lie behind barriers, lower ones after alignment",
             f"{text}, mean over all pairs (interval over networks)", mean)
        for text, mean in zip(texts, means_of(found["matrix"]), strict=True)
    ]  # fmt: skip
    return claims


def curve_finder(paths: xr.Dataset, problem: str) -> Claim:
    """Criterion D1b: the Bezier curve leads around the barrier for all seeds."""
    worst = paths["error_summary"].sel(problem=problem, split="train", of="max")
    difference = points(worst.sel(path="line")) - points(worst.sel(path="Bezier"))
    reached = difference >= 5 - 1e-9
    return judged(
        "D1b", ALONG,
        f"{problem}: a trained curve joins two independent networks that a line does not",
        f"{problem}: largest train error, line - Bezier curve (points; {reached.sum()} of "
        f"{len(reached)} pairs reach 5, the least has {difference.min():.1f})",
        effect(difference), also={f">= 5 for each of {len(reached)} pairs": bool(reached.all())},
    )  # fmt: skip


if __name__ == "__main__":
    run_study(measure, draw, judge)
