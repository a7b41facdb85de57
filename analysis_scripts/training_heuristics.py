"""Why do warm restarts, warm-up and distillation work? Lines and curves, CCA, frozen layers.

    python analysis_scripts/training_heuristics.py --scale small

Gotmare, Keskar, Xiong & Socher (arXiv 1810.13243), in three parts.

Restarts: the training loss between two ends of cycles, on the straight line and on a trained curve,
and their plane with the iterates in between. The control has step decay, a tenth from a half and
from three quarters of training on, between the same epochs. Runs are thrown out of their basin by
the last batch of an epoch, which has 4 of the 900 digits, as with a loader of torch: a second case
shows that nothing rises where all batches have 60.

Warm-up: large batches and a high learning rate, with warm-up, without, and with some layers frozen
in its place.

Distillation: how alike, by SVCCA, the layers of a teacher are to those of students that learn from
it and that learn from labels.

At full scale VGG-16 has one linear layer in place of the paper's three, and it is what is frozen;
the first layers are not frozen alone, and runs with small batches are there instead. Curves are
trained without augmentation. The student has three convolutions; the paper's is not known.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch.nn.functional import cross_entropy

import landscape
from landscape import Task, models, plots, results
from landscape.analyses.connectivity import curve_of
from landscape.analyses.layers import layer_convergence
from landscape.analyses.surface import covering
from landscape.datasets import Batches
from landscape.experiments import At, During, Run, Seeds, Window
from landscape.experiments.augmentations import Flip, Shift
from landscape.experiments.branches import checkpoint_at, fresh_seed, last_checkpoint
from landscape.experiments.comparisons import outcomes
from landscape.experiments.distillation import distilled
from landscape.experiments.schedules import Step, WarmRestarts, Warmup, cycle_ends
from landscape.families import plane, project
from landscape.results import dataset
from landscape.states import State, distance, norm
from landscape.task import wrong
from shared import (
    Claim,
    Drawn,
    Results,
    Settings,
    band,
    bars,
    digits,
    effect,
    judged,
    panels,
    points,
    run_study,
)

RESTARTED, DECAYED = "warm restarts", "step decay"
NONE, WARMED, LAST, FIRST, SMALL = (
    "no warm-up", "warm-up", "last layers frozen", "first layers frozen", "small batches",
)  # fmt: skip
TAUGHT, PLAIN = "distilled", "labels only"
SUCCESS = 0.95  # training accuracy
CHANCE = 0.1
T = np.linspace(0, 1, 25)  # on lines and curves
Plan = dict[str, Any]


# Settings -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """The epochs between which is looked, both ends of cycles; and the batches that come last."""

    first: int
    last: int
    last_batch: str = "smaller"

    def __str__(self) -> str:
        even = ", even batches" if self.last_batch == "even" else ""
        return f"epochs {self.first} to {self.last}{even}"


def small(
    num: int = 900,
    epochs: int = 60,
    first_cycle: int = 10,
    ends: tuple[int, int] = (30, 70),
    window: int = 90,
    early: int = 30,
) -> Plan:
    """Fully connected networks on digits, noisy ones but for warm-up.

    `training` are fields of `Run`, which arms of warm-up change, `curve` options of `connect` and
    `lesson` of `distilled`. `window` and `early` are steps, `every` epochs from iterate to iterate.
    """
    clean, noisy = (cache(partial(digits, num=num, noise=noise)) for noise in (0.0, 0.7))
    mlp, layers, rate = partial(models.mlp, 64), "relu*,output", Step(0.35, (0.8,), unit="share")
    return {
        "restarts": {
            "seeds": 20, "data": noisy, "lr": 0.1, "first_cycle": first_cycle, "every": 2,
            "cases": (Case(*ends, "even"), Case(*ends)),
            "training": {
                "make_model": partial(mlp, (64,) * 4), "epochs": ends[1], "batch_size": 64,
                "weight_decay": 5e-4,
            },
            "curve": {"epochs": epochs, "lr": 0.02, "batch_size": 64},
        },
        "warm_up": {
            "seeds": 16, "data": clean, "window": window, "early": early, "layers": layers,
            "training": {
                "make_model": partial(mlp, (128,) * 4), "epochs": epochs, "batch_size": num // 2,
                "lr": rate,
            },
            "arms": {
                NONE: {},
                WARMED: {"lr": Warmup(rate, window)},
                LAST: frozen(window, "fc4.*", "output.*"),
                FIRST: frozen(window, "fc1.*", "fc2.*", "fc3.*"),
            },
        },
        "distillation": {
            "seeds": 8, "data": noisy, "layers": layers, "student": partial(mlp, (32,) * 3),
            "training": {
                "make_model": partial(mlp, (128,) * 3), "epochs": epochs, "batch_size": 64,
                "lr": Step(0.05, (0.7,), unit="share"), "weight_decay": 5e-4,
            },
            "lesson": {"temperature": 4.0, "weight": 1.0, "power": 1},
        },
    }  # fmt: skip


def tiny() -> Plan:
    """All parts of the small scale, in seconds."""
    plan = small(num=200, epochs=2, first_cycle=1, ends=(1, 3), window=4, early=2)
    plan["warm_up"]["training"]["epochs"] = 3
    return plan


def full(images: tuple[Batches, Batches]) -> Plan:
    """VGG-16 on CIFAR-10, with the settings of the paper where they are known."""
    vgg16 = {"make_model": models.vgg16, "augmentations": (During(Shift(4)), During(Flip()))}
    vgg16 |= {"epochs": 200, "batch_size": 128, "weight_decay": 5e-4}
    layers, rate = "block*.relu,head.output", Step(2.5, (0.8,), unit="share")
    same: Plan = {"seeds": 3, "data": lambda seed: images}
    return {
        "restarts": same | {
            "lr": 0.05, "first_cycle": 10, "every": 10, "training": vgg16 | {"epochs": 150},
            "cases": (Case(30, 70), Case(70, 150)),
            "curve": {"epochs": 200, "lr": 0.015, "batch_size": 128},
        },
        "warm_up": same | {
            "window": 200, "early": 30, "layers": layers,
            "training": vgg16 | {"batch_size": 5000, "lr": rate, "weight_decay": 0.0},
            "arms": {
                NONE: {},
                WARMED: {"lr": Warmup(rate, 200)},
                LAST: frozen(200, "head.*"),
                SMALL: {"batch_size": 100, "lr": replace(rate, initial=0.05)},
            },
        },
        "distillation": same | {
            "layers": layers, "student": partial(models.small_cnn, 3, 10, 64),
            "training": vgg16 | {"lr": Step(0.05, (0.7,), unit="share")},
            "lesson": {"temperature": 4.0, "weight": 0.9, "power": 2},
        },
    }  # fmt: skip


def frozen(window: int, *patterns: str) -> dict[str, Any]:
    """The field of `Run` that freezes layers for the first steps."""
    return {"frozen": tuple(During(one, Window(0, window, "steps")) for one in patterns)}


# Runs and results ---------------------------------------------------------------------------------


def measure(settings: Settings) -> dict[str, xr.Dataset]:
    """Make the runs and look at them."""
    make = settings.choose(tiny=tiny, small=small, full=lambda: full(settings.images()))
    restarts, warm_up, distillation = make().values()
    epochs = len(restarts["cases"]) * restarts["curve"]["epochs"]
    for one, num_runs in ((restarts, 2), (warm_up, len(warm_up["arms"])), (distillation, 1)):
        epochs += num_runs * one["training"]["epochs"]  # students are short and do not count
    seeds = settings.seeds(distillation["seeds"])
    settings.check_time(run_of(distillation, "teacher", seeds[0]), len(seeds) * epochs)
    lines = settings.kept("restarts", lambda: between_restarts(settings, restarts))
    return {
        "restarts": lines,
        "plane": settings.kept("plane", lambda: restart_plane(settings, restarts, lines)),
        "warm_up": settings.kept("warm_up", lambda: beginnings(settings, warm_up)),
        "distillation": settings.kept("distillation", lambda: lessons(settings, distillation)),
    }


def run_of(part: Plan, name: str, seed: int, **changes: Any) -> Run:
    """A run of a part of the study, with changes of its fields."""
    train, test = part["data"](seed)
    own = {"checkpoints": (), "seeds": Seeds.all(seed), "last_batch": "smaller"}
    fields: dict[str, Any] = {**own, **part["training"], **changes}
    name = f"{name.replace(' ', '-')}/seed-{seed}"
    return Run(name=name, data=train, test=test, test_every=fields["epochs"], **fields)


def task_of(run: Run, split: str = "data") -> Task:
    """The loss and the error of a run's network on its training `data` or its `test` images."""
    loss = partial(cross_entropy, reduction="none")
    return Task(split, run.build(), loss, getattr(run, split), {"error": wrong})


def restart_run(how: Plan, schedule: str, last_batch: str, seed: int) -> Run:
    """A run with restarts or with step decay, and the checkpoints that are looked at."""
    cycles = WarmRestarts(how["lr"], how["first_cycle"], factor=2)
    run = run_of(how, f"{schedule}/{last_batch}", seed, last_batch=last_batch, lr=cycles)
    ends = cycle_ends(cycles, run)
    if schedule == DECAYED:
        return replace(run, lr=Step(how["lr"], (0.5, 0.75), unit="share"), checkpoints=(ends,))
    iterates = At(run.timeline.starts[how["cases"][-1].first :: how["every"]])
    return replace(run, checkpoints=(ends, iterates))


def states_of(settings: Settings, run: Run, epochs: Iterable[int]) -> list[State]:
    """The weights of a run after so many epochs."""
    steps = [run.timeline.starts[epoch] for epoch in epochs]
    return [checkpoint_at(settings.runs(run), step).load() for step in steps]


def between_restarts(settings: Settings, how: Plan) -> xr.Dataset:
    """The training loss on lines and curves; nan for runs that diverged."""
    schedules, seeds = (RESTARTED, DECAYED), settings.seeds(how["seeds"])
    lines = np.full((len(how["cases"]), len(schedules), len(seeds), len(T)), np.nan)
    curves = np.full_like(lines[:, 0], np.nan)
    for number, case in enumerate(how["cases"]):
        runs = [restart_run(how, *one) for one in product(schedules, [case.last_batch], seeds)]
        places = np.ndindex(lines.shape[1:3])
        for (kind, row), run, end in zip(places, runs, settings.train(runs), strict=True):
            if end.status == "finished":
                a, b = states_of(settings, run, (case.first, case.last))
                line = landscape.interpolate(task_of(run), a, b, points=T, device=settings.device)
                lines[number, kind, row] = line["loss"]
                if schedules[kind] == RESTARTED:
                    curves[number, row] = curve_between(settings, how, case, run)["loss"]
    return dataset(
        {
            "line_loss": (("case", "schedule", "seed", "t"), lines),
            "curve_loss": (("case", "seed", "t"), curves),
        },
        {"case": list(map(str, how["cases"])), "schedule": [*schedules], "seed": seeds, "t": T},
        analysis="restarts",
        title="lines and curves between the ends of cycles",
        scale=settings.scale,
    )


def curve_between(settings: Settings, how: Plan, case: Case, run: Run) -> xr.Dataset:
    """A Bezier curve with one bend between the states of a run at two epochs."""
    a, b = states_of(settings, run, (case.first, case.last))
    return settings.kept(
        f"curves/{case.first}-{case.last}-{case.last_batch}-seed-{run.seeds.init}",
        lambda: landscape.connect(
            task_of(run), a, b, points=T, seed=run.seeds.order, device=settings.device,
            progress=settings.progress, **how["curve"],
        ),
    )  # fmt: skip


def restart_plane(settings: Settings, how: Plan, lines: xr.Dataset) -> xr.Dataset:
    """The plane of line and curve with the iterates: last case, the seed whose line rises most."""
    case = how["cases"][-1]
    rises = rise(lines["line_loss"].sel(schedule=RESTARTED, case=str(case)))
    run = restart_run(how, RESTARTED, case.last_batch, int(rises.idxmax("seed")))
    epochs = range(case.first, case.last + 1, how["every"])
    a, *_, b = iterates = states_of(settings, run, epochs)
    curve = curve_of(curve_between(settings, how, case, run), a, b)
    bend = curve.controls[1]
    through = plane(a, b, bend)
    places, off = zip(*(project(through, state) for state in [*iterates, bend]), strict=True)
    x, y = covering(np.array(places), [21, 21], 0.25)
    drawn = landscape.surface(
        task_of(run), through, x=x, y=y, curve=curve, device=settings.device,
        marks={f"$w_{{{case.first}}}$": a, f"$w_{{{case.last}}}$": b, "bend": bend},
    )  # fmt: skip
    path = np.column_stack([places, off])[:-1].T
    words = {"long_name": "iterates in the plane", "units": "distance"}
    for name, values in zip(("x", "y", "distance"), path, strict=True):
        drawn[f"iterate_{name}"] = ("epoch", values, words)
    drawn["epoch"] = ("epoch", list(epochs), {"long_name": "epoch"})
    return drawn.assign_attrs(seed=run.seeds.init, case=str(case))


def warm_up_run(how: Plan, arm: str, seed: int) -> Run:
    """The run of an arm and seed."""
    looked = At([how["early"], how["window"]])
    return run_of(how, arm, seed, checkpoints=(looked,), **how["arms"][arm])


def beginnings(settings: Settings, how: Plan) -> xr.Dataset:
    """How the arms of warm-up end, and what each layer did at first; nan for what diverged."""
    seeds, early, window = settings.seeds(how["seeds"]), how["early"], how["window"]
    runs = [warm_up_run(how, *one) for one in product(how["arms"], seeds)]
    ends = settings.train(runs)
    weights = [name for name, one in runs[0].build().named_parameters() if one.ndim > 1]
    shape = len(how["arms"]), len(seeds)
    curves = np.full((*shape, runs[0].epochs), np.nan)
    alike, moves = (np.full((*shape, len(weights)), np.nan) for _ in range(2))
    reached = np.full(shape, np.nan)
    for place, run, end in zip(np.ndindex(shape), runs, ends, strict=True):
        errors = results.load(end.folder / "record.h5")["train_error"]
        curves[place][: len(errors)] = 1 - errors
        start, soon, late = (checkpoint_at(end.folder, step) for step in (0, early, window))
        if end.step >= early:
            a, b = start.load(), soon.load()
            moves[place] = [distance({n: a[n]}, {n: b[n]}) / norm({n: a[n]}) for n in weights]
        if end.step >= window:
            with warnings.catch_warnings():  # of layers that no longer vary
                warnings.filterwarnings("ignore", ".*values that are nan")
                alike[place] = layer_convergence(
                    task_of(run, "test"), [late], start, layers=how["layers"], measure="svcca",
                    blocks=0, device=settings.device,
                )["svcca"][0]  # fmt: skip
        if end.status == "finished":
            last = last_checkpoint(end).load()
            final = landscape.evaluate(task_of(run), [last], device=settings.device)
            reached[place] = 1 - final["error"].item()
    tested = outcomes(runs, settings.runs_folder)["test_accuracy"].values.reshape(shape)
    each = ("arm", "seed")
    return dataset(
        {
            "accuracy": ((*each, "epoch"), curves, {"long_name": "accuracy while training"}),
            "train_accuracy": (each, reached),
            "test_accuracy": (each, tested),
            "svcca": ((*each, "layer"), alike, {"long_name": "SVCCA with the first step"}),
            "move": ((*each, "layer"), moves, {"long_name": "change of weights over their norm"}),
        },
        {
            "arm": list(how["arms"]), "seed": seeds, "epoch": np.arange(1, runs[0].epochs + 1),
            "layer": np.arange(1, len(weights) + 1),
        },
        analysis="warm-up", title="warm-up and frozen layers", scale=settings.scale,
        window=window, window_epochs=runs[0].timeline.at(window).epoch, early=early,
    )  # fmt: skip


def lessons(settings: Settings, how: Plan) -> xr.Dataset:
    """SVCCA of the layers of students with those of teachers at the same share of the depth."""
    seeds = settings.seeds(how["seeds"])
    teachers = [run_of(how, "teacher", seed) for seed in seeds]
    known = [last_checkpoint(end) for end in settings.train(teachers)]
    students = []
    for arm, (row, seed) in product((TAUGHT, PLAIN), enumerate(seeds)):
        own = Seeds.all(fresh_seed(seed, 1))
        run = run_of(how, arm, seed, make_model=how["student"], seeds=own)
        if arm == TAUGHT:
            run = distilled(run, teachers[0].build(), known, teacher=row, **how["lesson"])
        students.append(run)
    alike = []
    ends = settings.train(students)
    for run, end, other, state in zip(students, ends, teachers * 2, known * 2, strict=True):
        pairs = landscape.compare_layers(
            task_of(other, "test"), state, last_checkpoint(end), other_model=run.build(),
            layers=how["layers"], measure="svcca", blocks=0, device=settings.device,
        )["svcca"].values  # fmt: skip
        alike.append([pairs[pair] for pair in same_depth(*pairs.shape)])
    table = np.reshape(alike, (2, len(seeds), -1))
    tested = outcomes([*teachers, *students], settings.runs_folder)["test_accuracy"].values
    return dataset(
        {
            "svcca": (("arm", "seed", "layer"), table, {"long_name": "SVCCA with the teacher"}),
            "test_accuracy": (("network", "seed"), tested.reshape(3, -1)),
        },
        {
            "arm": [TAUGHT, PLAIN], "network": ["teacher", TAUGHT, PLAIN], "seed": seeds,
            "layer": np.arange(1, table.shape[-1] + 1),
        },
        analysis="distillation", title="layers of teachers and students", scale=settings.scale,
    )  # fmt: skip


def same_depth(num_teacher: int, num_student: int) -> list[tuple[int, int]]:
    """For each layer of a student, from 0, that of the teacher at the same share of the depth."""
    shares = (np.arange(num_student) + 1) / num_student
    return [(round(share * num_teacher) - 1, own) for own, share in enumerate(shares)]


def rise(loss: xr.DataArray) -> xr.DataArray:
    """How far a loss along t goes above the higher of its two ends."""
    return loss.max("t", skipna=False) - np.maximum(loss.isel(t=0), loss.isel(t=-1))


def whole(values: xr.DataArray) -> np.ndarray:
    """The rows of seeds that have all their values: those of runs that stayed finite."""
    rows = values.transpose("seed", ...).values
    return rows[np.isfinite(rows).reshape(len(rows), -1).all(1)]


def gain(distillation: xr.Dataset) -> xr.DataArray:
    """How much more alike to its teacher a student is that learned from it (seed, layer)."""
    return distillation["svcca"].sel(arm=TAUGHT) - distillation["svcca"].sel(arm=PLAIN)


# Figures ------------------------------------------------------------------------------------------


def draw(found: Results) -> dict[str, Drawn]:
    """The three figures."""
    return {
        "training_heuristics_restarts": draw_restarts(found["restarts"], found["plane"]),
        "training_heuristics_warm_up": draw_warm_up(found["warm_up"]),
        "training_heuristics_distillation": draw_distillation(found["distillation"]),
    }


def draw_restarts(found: xr.Dataset, plane: xr.Dataset) -> Drawn:
    """Lines and curves, how far each rises, and the plane with the iterates."""
    fig, (axes, (left, right)) = panels(2, 2, height=1.95)
    cases = found["case"].values
    for number, (ax, case) in enumerate(zip(axes, cases, strict=True)):
        one = found.sel(case=case)
        losses = {
            f"line, {RESTARTED}": (one["line_loss"].sel(schedule=RESTARTED), "-"),
            f"curve, {RESTARTED}": (one["curve_loss"], "-"),
            f"line, {DECAYED}": (one["line_loss"].sel(schedule=DECAYED), "--"),
        }
        for place, (label, (values, style)) in enumerate(losses.items()):
            seeds, colour, shift = whole(values), f"C{place}", 0.25 * (place - 1)
            if len(seeds):
                band(ax, one["t"], seeds, label, geometric=True, ls=style, color=colour)
                dots(left, number + shift, whole(rise(values)), np.mean, color=colour)
        ax.set(title=case, xlabel="position $t$", ylabel="training loss", yscale="log")
    left.set_xticks(range(len(cases)), [case.replace(", ", "\n") for case in cases])
    left.set_yscale("symlog", linthresh=1e-3)
    left.margins(x=0.15)
    left.set(
        ylabel="rise of the training loss", title="rise above the higher end", ylim=(-2e-4, None)
    )
    right.plot(plane["iterate_x"], plane["iterate_y"], "o-", color="C1", ms=2, lw=0.7, zorder=4)
    plots.contours(plane, right, levels=plots.levels_for([plane], num=7))
    right.set(title=f"seed {plane.attrs['seed']}, {plane.attrs['case']}")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    every, off = int(np.diff(plane["epoch"])[0]), float(plane["iterate_distance"].max())
    caption = (
        "Training loss between the ends of two cycles of warm restarts, on the straight line and "
        "on a trained Bezier curve with one bend, and on the line between the same epochs of runs "
        "with step decay, to a tenth at a half and at three quarters of training; "
        f"{found.sizes['seed']} seeds but those that diverged. Top: geometric means over seeds "
        "with 95 % t intervals. Bottom left: how far each seed rises above the higher end (small "
        "dots), and the means over seeds (large dots), on an axis that is linear below 0.001. "
        "Bottom right: training loss in the plane of the two ends and the bend, for the seed whose "
        f"line rises most, with the curve (black) and the projected iterates, one for each {every} "
        f"epochs (orange, up to {off:.2g} off the plane)."
    )
    return Drawn(fig, caption)


def draw_warm_up(found: xr.Dataset) -> Drawn:
    """Accuracy over training, and layer by layer how far the start is left behind."""
    fig, (axes,) = panels(3)
    num_arms = found.sizes["arm"]
    for number, arm in enumerate(found["arm"].values):
        one, colour = found.sel(arm=arm), f"C{number}"
        band(axes[0], one["epoch"], points(one["accuracy"].fillna(CHANCE)), arm, color=colour)
        shift = 0.18 * (number - (num_arms - 1) / 2)
        for ax, name in zip(axes[1:], ("svcca", "move"), strict=True):
            for layer in one["layer"].values:
                own = whole(one[name].sel(layer=layer))
                if own.any():
                    dots(ax, layer + shift, own, np.median, color=colour)
    early, window = found.attrs["early"], found.attrs["window"]
    axes[0].axvline(found.attrs["window_epochs"], color="0.5", lw=0.6, ls=":")
    axes[0].set(xlabel="epoch", ylabel="training accuracy (%)", ylim=(0, 102))
    axes[1].set(xlabel="layer", ylabel=f"SVCCA of steps 0 and {window}")
    axes[2].set(xlabel="layer", ylabel=f"relative move in {early} steps", yscale="log")
    for ax in axes[1:]:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=num_arms)
    caption = (
        f"Large batches at a high learning rate, {found.sizes['seed']} seeds. Left: training "
        "accuracy, mean with 95 % t interval; runs that diverged count as chance, and warm-up and "
        f"freezing end at the dotted line. Middle: SVCCA of each layer at step {window}, where "
        "these end, with itself at step 0, on test images. Right: change of the weights in the "
        f"first {early} steps over their norm at the start; frozen layers are left out. Small dots "
        "are runs that are finite at that step, large ones their medians."
    )
    return Drawn(fig, caption)


def dots(
    ax: Axes, place: float, values: np.ndarray, centre: Callable[..., Any], **style: Any
) -> None:
    """A small dot for each run, and a large one at their centre."""
    ax.plot(np.full(len(values), place), values, "o", ms=1.2, mew=0, alpha=0.5, **style)
    ax.plot(place, centre(values), "o", ms=3.5, mec="white", mew=0.3, **style)


def draw_distillation(found: xr.Dataset) -> Drawn:
    """How alike students and teachers are, by layer, and what the teaching adds."""
    fig, ((left, right),) = panels(2)
    for arm in found["arm"].values:
        band(left, found["layer"], found["svcca"].sel(arm=arm), arm, marker="o")
    left.set(xlabel="layer", ylabel="SVCCA with the teacher")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(loc="upper left")
    bars(right, {str(layer): own for layer, own in gain(found).groupby("layer")})
    right.axhline(0, color="0.5", lw=0.6, zorder=0)
    right.set(xlabel="layer", ylabel="gain of SVCCA by distillation")
    caption = (
        "SVCCA on test images between layers of a teacher and of smaller students, "
        f"{found.sizes['seed']} seeds. Left: students that learn from the teacher's answers and "
        "from labels only, both from the same initial weights; means with 95 % t intervals. Right: "
        "the difference for each seed (grey), with its mean and 95 % t interval."
    )
    return Drawn(fig, caption)


# Verdicts -----------------------------------------------------------------------------------------


def judge(found: Results) -> list[Claim]:
    """The verdicts on what the paper claims."""
    return [
        *judge_restarts(found["restarts"]),
        *judge_warm_up(found["warm_up"]),
        *judge_distillation(found["distillation"]),
    ]


def judge_restarts(found: xr.Dataset) -> list[Claim]:
    """D1: the line rises, and the curve hardly does. Runs that diverged are left out.

    Even batches are told without a condition. At full scale there are too few seeds for the test.
    """
    claim, claims = partial(judged, "D1", "training_heuristics_restarts"), []
    for case in found["case"].values:
        one, gated = found.sel(case=case), "even" not in case
        lines = rise(one["line_loss"])
        both = np.stack([lines.sel(schedule=RESTARTED), rise(one["curve_loss"])])
        line, curve = both[:, np.isfinite(both).all(0)]
        control = whole(lines.sel(schedule=DECAYED))
        high, low = line.mean(), curve.mean()
        claims += [
            claim(
                "The ends of two cycles are separated on the line and joined by a curve"
                if gated
                else "Control: line and curve without small last batches",
                f"rise of the training loss, line less curve, {case}",
                effect(line - curve, test="wilcoxon"),
                gated=gated,
                p_below=None if found.attrs["scale"] == "full" else 0.05,
                also={
                    f"line {high:.2g} >= 5 x curve {low:.2g}": high >= 5 * low,
                    "line > 0": high > 0,
                },
            ),
            claim(
                "How many seeds leave their basin",
                f"seeds of {len(line)} with a rise above 0.01, {case}",
                float((line > 0.01).sum()), expected="report",
            ),
            claim(
                "Control: the line between the same epochs without restarts",
                f"rise of the training loss on the line, {DECAYED}, {case}",
                effect(control, test="wilcoxon") if len(control) else np.nan, expected="report",
            ),
        ]  # fmt: skip
    return claims


def judge_warm_up(found: xr.Dataset) -> list[Claim]:
    """D2: which arms learn, or end well; and what the last layer does at first.

    Runs that diverged do not learn, their test accuracies count as 0, and the last layer is that of
    runs that are finite.
    """
    num, early, window = found.sizes["seed"], found.attrs["early"], found.attrs["window"]
    few, many, told = {"at_most": 3 * num / 16}, {"at_least": 12 * num / 16}, {"expected": "report"}
    rows: list[tuple[str, str, Any, Any]] = []
    if found.attrs["scale"] == "full":
        tested = points(found["test_accuracy"].fillna(0.0))
        arms = dict(zip(found["arm"].values, tested, strict=True))
        rows += [
            (text, f"test accuracy, points, {a} less {b}", effect(arms[a] - arms[b]), limit)
            for text, a, b, limit in (
                ("Without warm-up large batches end worse", WARMED, NONE, {"at_least": 1.0}),
                ("Frozen last layers end as warm-up does", LAST, WARMED, {"within": 1.0}),
                ("Small batches, for comparison", SMALL, WARMED, told),
            )
        ]
    else:
        learned = (found["train_accuracy"] > SUCCESS).sum("seed")
        quantity = f"runs of {num} with training accuracy above {SUCCESS:.0%}"
        rows += [
            (text, f"{quantity}, {arm}", float(learned.sel(arm=arm)), limit)
            for text, arm, limit in (
                ("Without warm-up large batches fail", NONE, few),
                ("Warm-up mends it", WARMED, many),
                ("Freezing the last two layers does as well", LAST, many),
                ("Freezing the first three layers does not", FIRST, few),
            )
        ]
    texts: dict[str, tuple[str, str, Callable[..., Any]]] = {
        "move": (
            "Warm-up keeps the last layer near its start",
            f"relative move of the last layer in {early} steps, median",
            np.median,
        ),
        "svcca": (
            "How alike the last layer stays",
            f"SVCCA of the last layer, steps 0 and {window}, mean",
            np.mean,
        ),
    }
    for (name, (claim, text, middle)), arm in product(texts.items(), (NONE, WARMED)):
        values = whole(found[name].sel(arm=arm).isel(layer=-1))
        value = float(middle(values)) if len(values) else np.nan
        quantity = f"{text} of {len(values)} runs, {arm}"
        rows.append((claim, quantity, value, told))
    return [
        judged("D2", "training_heuristics_warm_up", text, quantity, value, **limit)
        for text, quantity, value, limit in rows
    ]


def judge_distillation(found: xr.Dataset) -> list[Claim]:
    """D3: what the teacher gives sits in the last layers."""
    claim = partial(judged, "D3", "training_heuristics_distillation")
    more, tested = gain(found), points(found["test_accuracy"])
    first, last = more.isel(layer=0), more.isel(layer=-1)
    text = "A student takes from its teacher in its last layers"
    if found.attrs["scale"] == "full":
        third = max(1, found.sizes["layer"] // 3)
        upper, lower = (more.isel(layer=part) for part in (slice(-third, None), slice(-third)))
        apart = effect(upper.mean("layer") - lower.mean("layer"))
        main = claim(
            text, "gain of SVCCA, last third of the layers less the others", apart,
            also={"> 0": apart.mean > 0},
        )  # fmt: skip
    else:
        above = float((last - first).mean())
        main = claim(
            text, "gain of SVCCA with the teacher at the last layer", effect(last),
            at_least=0.03, p_below=0.01,
            also={f"above layer 1 by {above:.3f} >= 0.03": above >= 0.03},
        )  # fmt: skip
    return [
        main,
        claim(
            "The gain is larger at the last layer than at the first",
            "gain of SVCCA, last layer less first", effect(last - first), expected="report",
        ),
        claim(
            "Distilled students, for comparison",
            "test accuracy, points, distilled less labels only",
            effect(tested[1] - tested[2]), expected="report",
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    run_study(measure, draw, judge)
