"""Why do warm restarts, warm-up and distillation work? Lines and curves, CCA, frozen layers.

`python analysis_scripts/training_heuristics.py --scale small`

Gotmare, Keskar, Xiong & Socher (arXiv 1810.13243), in three parts.

Restarts: between two ends of cycles, the training loss on the straight line and on a trained curve,
and their plane with the iterates in between. The control is a run with step decay, a tenth from a
half and from three quarters of training on, between the same epochs. On the digits, batches of 64
(in fact 60, as all batches of an epoch are alike) have too little noise to throw a run out of its
basin. A last batch of 4 images, which a loader of 900 images gives that does not balance its
batches, is enough for that; balanced batches of 32 have the same noise, and both sizes are shown.

Warm-up: networks that are trained with large batches and a high learning rate, with warm-up,
without, and with some layers frozen in its place.

Distillation: how alike, by SVCCA, the layers of a teacher are to those of students that learn from
it and that learn from labels.

At full scale VGG-16 has one linear layer in place of the paper's three, and it is what is frozen;
the first layers are not frozen alone, and runs with small batches are there instead. Curves are
trained without augmentation. The student has three convolutions; the paper's is not known.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import product
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import nn
from torch.nn.functional import cross_entropy

from landscape import (
    Task,
    compare_layers,
    connect,
    evaluate,
    experiments,
    interpolate,
    models,
    plane,
    plots,
    results,
    surface,
)
from landscape.analyses.connectivity import curve_of
from landscape.analyses.layers import layer_convergence
from landscape.analyses.surface import covering
from landscape.datasets import Batches
from landscape.experiments import At, During, Ended, Run, Seeds, Window
from landscape.experiments.augmentations import Flip, Shift
from landscape.experiments.branches import checkpoint_at, fresh_seed, last_checkpoint
from landscape.experiments.distillation import distilled
from landscape.experiments.schedules import Step, WarmRestarts, Warmup, cycle_ends
from landscape.families import project
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


# What is run at each scale ------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A batch size, and the epochs between which is looked: both ends of cycles."""

    batch_size: int
    first: int
    last: int

    def __str__(self) -> str:
        return f"epochs {self.first} to {self.last}, batches of {self.batch_size}"


@dataclass(frozen=True)
class Restarts:
    """Runs with restarts, the cases that are looked at, and the curves there."""

    network: Callable[..., nn.Module]
    seeds: int
    num_examples: int
    lr: float
    first_cycle: int
    epochs: int
    cases: tuple[Case, ...]
    iterates_every: int
    curve_epochs: int
    curve_lr: float
    curve_batch: int
    grid: int = 21
    num_points: int = 25
    noise: float = 0.7
    augmentations: tuple[During, ...] = ()


@dataclass(frozen=True)
class Arm:
    """A way to begin: with warm-up, with frozen layers, with other batches."""

    warm_up: bool = False
    frozen: tuple[str, ...] = ()
    batch_size: int | None = None
    lr: float | None = None


@dataclass(frozen=True)
class WarmUps:
    """Arms of large batches: `window` is the number of steps of warm-up or freezing."""

    network: Callable[..., nn.Module]
    seeds: int
    num_examples: int
    lr: float
    batch_size: int
    epochs: int
    window: int
    early: int
    layers: str
    arms: dict[str, Arm]
    augmentations: tuple[During, ...] = ()


@dataclass(frozen=True)
class Teaching:
    """A teacher and its students; `power` and `weight` are those of `Distillation`."""

    teacher: Callable[..., nn.Module]
    student: Callable[..., nn.Module]
    seeds: int
    num_examples: int
    lr: float
    batch_size: int
    epochs: int
    layers: str
    power: float
    weight: float
    temperature: float = 4.0
    noise: float = 0.7
    augmentations: tuple[During, ...] = ()


AUGMENTED = (During(Shift(4)), During(Flip()))


def mlp(*hidden: int) -> Callable[..., nn.Module]:
    """Makes fully connected networks for the digits."""
    return partial(models.mlp, 64, hidden)


RESTARTS = {
    "small": Restarts(
        network=mlp(64, 64, 64, 64),
        seeds=20,
        num_examples=900,
        lr=0.1,
        first_cycle=10,
        epochs=70,
        cases=(Case(64, 30, 70), Case(32, 30, 70)),
        iterates_every=2,
        curve_epochs=60,
        curve_lr=0.02,
        curve_batch=64,
    ),
    "full": Restarts(
        network=models.vgg16,
        seeds=3,
        num_examples=50_000,
        lr=0.05,
        first_cycle=10,
        epochs=150,
        cases=(Case(128, 30, 70), Case(128, 70, 150)),
        iterates_every=10,
        curve_epochs=200,
        curve_lr=0.015,
        curve_batch=128,
        noise=0.0,
        augmentations=AUGMENTED,
    ),
}
RESTARTS["tiny"] = replace(
    RESTARTS["small"],
    num_examples=200,
    first_cycle=1,
    epochs=3,
    cases=(Case(64, 1, 3), Case(32, 1, 3)),
    iterates_every=1,
    curve_epochs=2,
    num_points=5,
    grid=5,
)
WARM_UPS = {
    "small": WarmUps(
        network=mlp(128, 128, 128, 128),
        seeds=16,
        num_examples=900,
        lr=0.35,
        batch_size=450,
        epochs=60,
        window=90,
        early=30,
        layers="relu*,output",
        arms={
            NONE: Arm(),
            WARMED: Arm(warm_up=True),
            LAST: Arm(frozen=("fc4.*", "output.*")),
            FIRST: Arm(frozen=("fc1.*", "fc2.*", "fc3.*")),
        },
    ),
    "full": WarmUps(
        network=models.vgg16,
        seeds=3,
        num_examples=50_000,
        lr=2.5,
        batch_size=5_000,
        epochs=200,
        window=200,
        early=30,
        layers="block*.relu,head.output",
        arms={
            NONE: Arm(),
            WARMED: Arm(warm_up=True),
            LAST: Arm(frozen=("head.*",)),
            SMALL: Arm(batch_size=100, lr=0.05),
        },
        augmentations=AUGMENTED,
    ),
}
WARM_UPS["tiny"] = replace(
    WARM_UPS["small"], num_examples=200, batch_size=100, epochs=3, window=4, early=2
)
TEACHING = {
    "small": Teaching(
        teacher=mlp(128, 128, 128),
        student=mlp(32, 32, 32),
        seeds=8,
        num_examples=900,
        lr=0.05,
        batch_size=64,
        epochs=60,
        layers="relu*,output",
        power=1,
        weight=1.0,
    ),
    "full": Teaching(
        teacher=models.vgg16,
        student=partial(models.small_cnn, 3, 10, 64),
        seeds=3,
        num_examples=50_000,
        lr=0.05,
        batch_size=128,
        epochs=200,
        layers="block*.relu,head.output",
        power=2,
        weight=0.9,
        noise=0.0,
        augmentations=AUGMENTED,
    ),
}
TEACHING["tiny"] = replace(TEACHING["small"], num_examples=200, epochs=2)


# Runs and analyses --------------------------------------------------------------------------------


def measure(settings: Settings) -> dict[str, xr.Dataset]:
    """Make the runs and look at them."""
    restarts, warm_ups, teaching = (
        settings.choose(**parts) for parts in (RESTARTS, WARM_UPS, TEACHING)
    )
    check_time(settings, restarts, warm_ups, teaching)
    return {
        "restarts": settings.kept("restarts", lambda: between_restarts(settings, restarts)),
        "plane": settings.kept("plane", lambda: restart_plane(settings, restarts)),
        "warm_up": settings.kept("warm_up", lambda: beginnings(settings, warm_ups)),
        "distillation": settings.kept("distillation", lambda: lessons(settings, teaching)),
    }


def check_time(settings: Settings, restarts: Restarts, warm_ups: WarmUps, teach: Teaching) -> None:
    """Refuse the full scale without a GPU: epochs of all runs and curves, and of the plane."""
    if settings.scale != "full":
        return
    run = restart_runs(settings, restarts, restarts.cases[0].batch_size)[RESTARTED][0]
    each = 2 * restarts.epochs + len(restarts.cases) * restarts.curve_epochs
    epochs = len(settings.seeds(restarts.seeds)) * each + restarts.grid**2
    epochs += len(settings.seeds(warm_ups.seeds)) * len(warm_ups.arms) * warm_ups.epochs
    epochs += len(settings.seeds(teach.seeds)) * teach.epochs  # those of the students are short
    settings.check_time(run, epochs)


def data_of(
    settings: Settings, num_seeds: int, num_examples: int, noise: float = 0.0
) -> dict[int, tuple[Batches, Batches]]:
    """Training and test images for each seed; at full scale all have the same."""
    seeds = settings.seeds(num_seeds)
    if settings.scale == "full":
        return dict.fromkeys(seeds, images(settings))
    return {seed: digits(seed, num_examples, noise=noise) for seed in seeds}


@lru_cache(maxsize=1)
def images(settings: Settings) -> tuple[Batches, Batches]:
    """The images of the full scale, read once."""
    return settings.images()


def task_of(network: Callable[..., nn.Module], data: Batches) -> Task:
    """What is evaluated: the loss and the error on some data."""
    return Task("data", network(), partial(cross_entropy, reduction="none"), data, {"error": wrong})


def restart_runs(settings: Settings, how: Restarts, batch_size: int) -> dict[str, list[Run]]:
    """Runs with restarts and with step decay, one for each seed."""
    cycles = WarmRestarts(how.lr, how.first_cycle, factor=2)
    decay = Step(how.lr, (0.5, 0.75), unit="share")
    first = how.cases[-1].first
    runs: dict[str, list[Run]] = {RESTARTED: [], DECAYED: []}
    for seed, (train, _) in data_of(settings, how.seeds, how.num_examples, how.noise).items():
        run = Run(
            name=f"warm-restarts/batch-{batch_size}/seed-{seed}",
            make_model=how.network,
            data=train,
            epochs=how.epochs,
            batch_size=batch_size,
            lr=cycles,
            weight_decay=5e-4,
            augmentations=how.augmentations,
            seeds=Seeds.all(seed),
        )
        ends = cycle_ends(cycles, run)
        iterates = At(run.timeline.starts[first :: how.iterates_every])
        runs[RESTARTED].append(replace(run, checkpoints=(ends, iterates)))
        name = run.name.replace("warm-restarts", "step-decay")
        runs[DECAYED].append(replace(run, name=name, lr=decay, checkpoints=(ends,)))
    return runs


def at_epoch(settings: Settings, run: Run, epoch: int) -> State:
    """The weights of a run when so many epochs are over."""
    return checkpoint_at(settings.runs(run), run.timeline.starts[epoch]).load()


def between_restarts(settings: Settings, how: Restarts) -> xr.Dataset:
    """The training loss on lines and curves; nan for runs that diverged."""
    index = xr.DataArray([str(case) for case in how.cases], dims="case", name="case")
    found = xr.concat([in_case(settings, how, case) for case in how.cases], dim=index)
    return dataset(
        {str(name): values for name, values in found.data_vars.items()},
        {str(name): values for name, values in found.coords.items()},
        analysis="restarts",
        title="lines and curves between the ends of cycles",
        scale=settings.scale,
    )


def in_case(settings: Settings, how: Restarts, case: Case) -> xr.Dataset:
    """The losses of a case, for each seed."""
    runs = restart_runs(settings, how, case.batch_size)
    ends = settings.train([run for own in runs.values() for run in own])
    finished = {end.name for end in ends if end.status == "finished"}
    lines = np.full((2, len(runs[RESTARTED]), how.num_points), np.nan)
    curves = np.full(lines.shape[1:], np.nan)
    for place, own in enumerate(runs.values()):
        for row, run in enumerate(own):
            if run.name in finished:
                a, b = (at_epoch(settings, run, epoch) for epoch in (case.first, case.last))
                lines[place, row] = interpolate(
                    task_of(how.network, run.data),
                    a,
                    b,
                    points=how.num_points,
                    device=settings.device,
                )["loss"]
    for row, run in enumerate(runs[RESTARTED]):
        if run.name in finished:
            curves[row] = curve_between(settings, how, case, run)["loss"]
    return xr.Dataset(
        {
            "line_loss": (
                ("schedule", "seed", "t"),
                lines,
                {"long_name": "training loss on the line"},
            ),
            "curve_loss": (("seed", "t"), curves, {"long_name": "training loss on the curve"}),
        },
        {
            "schedule": list(runs),
            "seed": list(settings.seeds(how.seeds)),
            "t": np.linspace(0, 1, how.num_points),
        },
    )


def curve_between(settings: Settings, how: Restarts, case: Case, run: Run) -> xr.Dataset:
    """A Bezier curve with one bend between the states of a run at two epochs."""
    a, b = (at_epoch(settings, run, epoch) for epoch in (case.first, case.last))
    return settings.kept(
        f"curve-{case.first}-{case.last}-batch-{case.batch_size}-seed-{run.seeds.init}",
        lambda: connect(
            task_of(how.network, run.data),
            a,
            b,
            points=how.num_points,
            epochs=how.curve_epochs,
            batch_size=how.curve_batch,
            lr=how.curve_lr,
            seed=run.seeds.order,
            device=settings.device,
            progress=settings.progress,
        ),
    )


def restart_plane(settings: Settings, how: Restarts) -> xr.Dataset:
    """The plane of line and curve with the iterates: last case, the seed whose line rises most."""
    case = how.cases[-1]
    lines = settings.kept("restarts", lambda: between_restarts(settings, how))
    rises = rise(lines["line_loss"].sel(schedule=RESTARTED, case=str(case)))
    run = restart_runs(settings, how, case.batch_size)[RESTARTED][int(rises.argmax("seed"))]
    epochs = range(case.first, case.last + 1, how.iterates_every)
    a, *_, b = iterates = [at_epoch(settings, run, epoch) for epoch in epochs]
    curve = curve_of(curve_between(settings, how, case, run), a, b)
    bend = curve.controls[1]
    through = plane(a, b, bend)
    places, off = zip(*(project(through, state) for state in [*iterates, bend]), strict=True)
    x, y = covering(np.array(places), [how.grid] * 2, 0.25)
    drawn = surface(
        task_of(how.network, run.data),
        through,
        x=x,
        y=y,
        marks={f"$w_{{{case.first}}}$": a, f"$w_{{{case.last}}}$": b, "bend": bend},
        curve=curve,
        device=settings.device,
    )
    path = np.column_stack([places, off])[:-1].T
    words = ("first coordinate", "second coordinate", "distance from the plane")
    return drawn.assign(
        {
            f"iterate_{name}": ("epoch", values, {"long_name": text, "units": "distance"})
            for name, values, text in zip(("x", "y", "distance"), path, words, strict=True)
        }
    ).assign_coords(epoch=("epoch", epochs, {"long_name": "epoch"})).assign_attrs(
        seed=run.seeds.init, case=str(case)
    )  # fmt: skip


def beginnings(settings: Settings, how: WarmUps) -> xr.Dataset:
    """How the arms of warm-up end, and what each layer did at first."""
    data = data_of(settings, how.seeds, how.num_examples)
    runs = [warm_up_run(how, name, seed, *data[seed]) for name in how.arms for seed in data]
    ends = settings.train(runs)
    weights = [n for n, one in how.network().named_parameters() if one.ndim > 1]
    shape = len(how.arms), len(data)
    curves = np.full((*shape, how.epochs), np.nan)
    alike, moves = (np.full((*shape, len(weights)), np.nan) for _ in range(2))
    reached, tested = (np.full(shape, np.nan) for _ in range(2))
    for place, run, end in zip(np.ndindex(shape), runs, ends, strict=True):
        record = results.load(end.folder / "record.h5")
        curves[place][: record.sizes["epoch"]] = 1 - record["train_error"]
        _, test = data[run.seeds.init]
        alike[place] = changed(settings, how, test, end)
        moves[place] = moved(how, end, weights)
        if end.status == "finished":
            task = task_of(how.network, run.data)
            final = evaluate(task, [last_checkpoint(end).load()], device=settings.device)
            reached[place] = 1 - final["error"].item()
            tested[place] = 1 - record["test_error"][-1]
    each = ("arm", "seed")
    return dataset(
        {
            "accuracy": ((*each, "epoch"), curves, {"long_name": "training accuracy"}),
            "train_accuracy": (each, reached, {"long_name": "training accuracy at the end"}),
            "test_accuracy": (each, tested, {"long_name": "test accuracy at the end"}),
            "svcca": ((*each, "layer"), alike, {"long_name": "SVCCA with the first step"}),
            "move": ((*each, "layer"), moves, {"long_name": "change of weights over their norm"}),
        },
        {
            "arm": list(how.arms),
            "seed": list(data),
            "epoch": np.arange(1, how.epochs + 1),
            "layer": np.arange(1, len(weights) + 1),
        },
        analysis="warm-up",
        title="warm-up and frozen layers",
        scale=settings.scale,
        window=how.window,
        window_epochs=runs[0].timeline.at(how.window).epoch,
        early=how.early,
    )


def warm_up_run(how: WarmUps, name: str, seed: int, train: Batches, test: Batches) -> Run:
    """The run of an arm and seed."""
    arm = how.arms[name]
    rate = Step(arm.lr or how.lr, (0.8,), unit="share")
    window = Window(0, how.window, "steps")
    return Run(
        name=f"{name.replace(' ', '-')}/seed-{seed}",
        make_model=how.network,
        data=train,
        test=test,
        test_every=how.epochs,
        epochs=how.epochs,
        batch_size=arm.batch_size or how.batch_size,
        lr=Warmup(rate, how.window) if arm.warm_up else rate,
        frozen=tuple(During(pattern, window) for pattern in arm.frozen),
        augmentations=how.augmentations,
        seeds=Seeds.all(seed),
        checkpoints=(At([how.early, how.window]),),
    )


def changed(settings: Settings, how: WarmUps, test: Batches, end: Ended) -> Any:
    """SVCCA of each layer between the first step and the end of the window, on test images.

    Runs that diverged before have none, nor has a layer that no longer varies: nan.
    """
    if end.step < how.window:
        return np.nan
    start, later = (checkpoint_at(end.folder, step) for step in (0, how.window))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*values that are nan")
        found = layer_convergence(
            task_of(how.network, test),
            [later],
            start,
            layers=how.layers,
            measure="svcca",
            blocks=0,
            device=settings.device,
        )
    return found["svcca"].values[0]


def moved(how: WarmUps, end: Ended, weights: Sequence[str]) -> Any:
    """How far the weights of each layer are from their start, over the norm that they had."""
    if end.step < how.early:
        return np.nan
    start, later = (checkpoint_at(end.folder, step).load() for step in (0, how.early))
    own = [({n: start[n]}, {n: later[n]}) for n in weights]
    return [distance(a, b) / norm(a) for a, b in own]


def lessons(settings: Settings, how: Teaching) -> xr.Dataset:
    """SVCCA of the layers of students with those of teachers at the same share of the depth."""
    data = data_of(settings, how.seeds, how.num_examples, how.noise)
    teachers, students = [], []
    for seed, (train, test) in data.items():
        run = Run(
            name=f"teacher/seed-{seed}",
            make_model=how.teacher,
            data=train,
            test=test,
            test_every=how.epochs,
            epochs=how.epochs,
            batch_size=how.batch_size,
            lr=Step(how.lr, (0.7,), unit="share"),
            weight_decay=5e-4,
            augmentations=how.augmentations,
            seeds=Seeds.all(seed),
            checkpoints=(),
        )
        teachers.append(run)
        own = Seeds.all(fresh_seed(seed, 1))
        name = f"labels-only/seed-{seed}"
        students.append(replace(run, name=name, make_model=how.student, seeds=own))
    known = [last_checkpoint(end) for end in settings.train(teachers)]
    taught = [
        replace(
            distilled(
                run,
                how.teacher(),
                known,
                teacher=row,
                temperature=how.temperature,
                weight=how.weight,
                power=how.power,
            ),
            name=run.name.replace("labels-only", TAUGHT),
        )
        for row, run in enumerate(students)
    ]
    ends = settings.train([*taught, *students])
    tests = [test for _, test in data.values()]
    found = []
    for end, teacher, test in zip(ends, known * 2, tests * 2, strict=True):
        all_pairs = compare_layers(
            task_of(how.teacher, test),
            teacher,
            last_checkpoint(end),
            other_model=how.student(),
            layers=how.layers,
            measure="svcca",
            blocks=0,
            device=settings.device,
        )["svcca"].values
        found.append([all_pairs[pair] for pair in same_depth(*all_pairs.shape)])
    table = np.array(found).reshape(2, len(data), -1)
    names = [run.name for run in (*teachers, *taught, *students)]
    outcomes = experiments.comparisons.outcomes(names, settings.folder / "runs")
    accuracies = outcomes["test_accuracy"].values.reshape(3, -1)
    return dataset(
        {
            "svcca": (("arm", "seed", "layer"), table, {"long_name": "SVCCA with the teacher"}),
            "test_accuracy": (("network", "seed"), accuracies, {"long_name": "test accuracy"}),
        },
        {
            "arm": [TAUGHT, PLAIN],
            "network": ["teacher", TAUGHT, PLAIN],
            "seed": list(data),
            "layer": np.arange(1, table.shape[-1] + 1),
        },
        analysis="distillation",
        title="layers of teachers and students",
        scale=settings.scale,
    )


def same_depth(num_teacher: int, num_student: int) -> list[tuple[int, int]]:
    """For each layer of a student, from 0, that of the teacher at the same share of the depth."""
    shares = (np.arange(num_student) + 1) / num_student
    return [(round(share * num_teacher) - 1, own) for own, share in enumerate(shares)]


# Numbers ------------------------------------------------------------------------------------------


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


# Verdicts -----------------------------------------------------------------------------------------


def judge(found: Results) -> list[Claim]:
    """The verdicts on what the paper claims."""
    return [
        *judge_restarts(found["restarts"]),
        *judge_warm_up(found["warm_up"]),
        *judge_distillation(found["distillation"]),
    ]


def judge_restarts(found: xr.Dataset) -> list[Claim]:
    """D1 in each case: the line rises, and the curve hardly does. Runs that diverged are left out.

    At full scale there are too few seeds for the test.
    """
    figure, claims = "training_heuristics_restarts", []
    for case in found["case"].values:
        one = found.sel(case=case)
        lines = rise(one["line_loss"])
        both = np.stack([lines.sel(schedule=RESTARTED), rise(one["curve_loss"])])
        line, curve = both[:, np.isfinite(both).all(0)]
        control = whole(lines.sel(schedule=DECAYED))
        holds = {
            f"line {line.mean():.2g} >= 5 x curve {curve.mean():.2g}": line.mean()
            >= 5 * curve.mean(),
            "line > 0": line.mean() > 0,
        }
        claims += [
            judged(
                "D1",
                figure,
                "The ends of two cycles are separated on the line and joined by a curve",
                f"rise of the training loss, line less curve, {case}",
                effect(line - curve, test="wilcoxon"),
                p_below=None if found.attrs["scale"] == "full" else 0.05,
                also=holds,
            ),
            judged(
                "D1",
                figure,
                "The rise is that of the seeds that leave their basin",
                f"seeds of {len(line)} with a rise above 0.01, {case}",
                float((line > 0.01).sum()),
                expected="report",
            ),
            judged(
                "D1",
                figure,
                "Control: the line between the same epochs without restarts",
                f"rise of the training loss on the line, {DECAYED}, {case}",
                effect(control, test="wilcoxon") if len(control) else np.nan,
                expected="report",
            ),
        ]
    return claims


def judge_warm_up(found: xr.Dataset) -> list[Claim]:
    """D2: which arms learn; and what the last layer does at first, of runs that are finite."""
    full = found.attrs["scale"] == "full"
    claims = judge_accuracies(found) if full else judge_successes(found)
    last = found.isel(layer=-1)
    early, window = found.attrs["early"], found.attrs["window"]
    texts: dict[str, tuple[str, Callable[..., Any]]] = {
        "move": (f"relative move of the last layer in {early} steps, median", np.median),
        "svcca": (f"SVCCA of the last layer, steps 0 and {window}, mean", np.mean),
    }
    for (name, (text, middle)), arm in product(texts.items(), (NONE, WARMED)):
        values = whole(last[name].sel(arm=arm))
        claims.append(
            judged(
                "D2",
                "training_heuristics_warm_up",
                "Warm-up keeps the last layer near its start",
                f"{text} of {len(values)} runs, {arm}",
                float(middle(values)) if len(values) else np.nan,
                expected="report",
            )
        )
    return claims


def judge_successes(found: xr.Dataset) -> list[Claim]:
    """How many runs learn, of 16; runs that diverged do not."""
    num = found.sizes["seed"]
    successes = (found["train_accuracy"] > SUCCESS).sum("seed")
    limits: dict[str, tuple[str, dict[str, Any]]] = {
        NONE: ("Without warm-up large batches fail", {"at_most": 3 * num / 16}),
        WARMED: ("Warm-up mends it", {"at_least": 12 * num / 16}),
        LAST: (
            "Freezing the last two layers does as well",
            {"at_least": 12 * num / 16},
        ),
        FIRST: ("Freezing the first three layers does not", {"at_most": 3 * num / 16}),
    }
    return [
        judged(
            "D2", "training_heuristics_warm_up", claim,
            f"runs of {num} with training accuracy above {SUCCESS:.0%}, {arm}",
            float(successes.sel(arm=arm)), **limit,
        )
        for arm, (claim, limit) in limits.items()
    ]  # fmt: skip


def judge_accuracies(found: xr.Dataset) -> list[Claim]:
    """Test accuracies in points; runs that diverged count as 0."""
    tested = points(found["test_accuracy"].fillna(0.0))
    arm = dict(zip(found["arm"].values, tested, strict=True))
    figure = "training_heuristics_warm_up"
    return [
        judged(
            "D2", figure, "Without warm-up large batches end worse",
            f"test accuracy, points, {WARMED} less {NONE}",
            effect(arm[WARMED] - arm[NONE]), at_least=1.0,
        ),
        judged(
            "D2", figure, "Frozen last layers end as warm-up does",
            f"test accuracy, points, {LAST} less {WARMED}",
            effect(arm[LAST] - arm[WARMED]), within=1.0,
        ),
        judged(
            "D2", figure, "Small batches, for comparison",
            f"test accuracy, points, {SMALL} less {WARMED}",
            effect(arm[SMALL] - arm[WARMED]), expected="report",
        ),
    ]  # fmt: skip


def judge_distillation(found: xr.Dataset) -> list[Claim]:
    """D3: what the teacher gives sits in the last layers."""
    figure, more = "training_heuristics_distillation", gain(found)
    first, last = more.isel(layer=0), more.isel(layer=-1)
    if found.attrs["scale"] == "full":
        third = max(1, found.sizes["layer"] // 3)
        upper = more.isel(layer=slice(-third, None)).mean("layer")
        lower = more.isel(layer=slice(None, -third)).mean("layer")
        claims = [
            judged(
                "D3", figure, "A student takes from its teacher in its last layers",
                "gain of SVCCA, last third of the layers less the others",
                effect(upper - lower), also={"> 0": float((upper - lower).mean()) > 0},
            )
        ]  # fmt: skip
    else:
        apart = float((last - first).mean())
        claims = [
            judged(
                "D3", figure, "A student takes from its teacher in its last layers",
                "gain of SVCCA with the teacher at the last layer", effect(last),
                at_least=0.03, p_below=0.01,
                also={f"above layer 1 by {apart:.3f} >= 0.03": apart >= 0.03},
            )
        ]  # fmt: skip
    tested = points(found["test_accuracy"])
    return [
        *claims,
        judged(
            "D3", figure, "The gain is larger at the last layer than at the first",
            "gain of SVCCA, last layer less first", effect(last - first), expected="report",
        ),
        judged(
            "D3", figure, "Distilled students, for comparison",
            "test accuracy, points, distilled less labels only",
            effect(tested[1] - tested[2]), expected="report",
        ),
    ]  # fmt: skip


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
    fig, axes = panels(2, 2, height=1.95)
    left, right = axes[1]
    cases = found["case"].values
    for number, (ax, case) in enumerate(zip(axes[0], cases, strict=True)):
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
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    every = int(np.diff(plane["epoch"].values)[0])
    off = float(plane["iterate_distance"].max())
    caption = (
        "Training loss between the ends of two cycles of warm restarts, on the straight line and "
        "on a trained Bezier curve with one bend, and on the line between the same epochs of runs "
        "with step decay, to a tenth at a half and at three quarters of training; "
        f"{found.sizes['seed']} seeds but those that diverged. Top: geometric "
        "means over seeds with 95 % t intervals. Bottom left: how far each seed rises above the "
        "higher end (small dots), and the means over seeds (large dots), on an axis that is linear "
        "below 0.001. "
        "Bottom right: training loss in "
        "the plane of the two ends and the bend, for the seed whose line rises most, with the "
        f"curve (black) and the projected iterates, one for each {every} epochs (orange, up to "
        f"{off:.2g} off the plane)."
    )
    return Drawn(fig, caption)


def draw_warm_up(found: xr.Dataset) -> Drawn:
    """Accuracy over training, and layer by layer how far the start is left behind."""
    fig, (axes,) = panels(3)
    num_arms = found.sizes["arm"]
    for number, arm in enumerate(found["arm"].values):
        one = found.sel(arm=arm)
        style: dict[str, Any] = {"color": f"C{number}"}
        band(axes[0], one["epoch"], points(one["accuracy"].fillna(CHANCE)), arm, **style)
        for ax, name in zip(axes[1:], ("svcca", "move"), strict=True):
            by_layer(ax, one[name], 0.18 * (number - (num_arms - 1) / 2), **style)
    early, window = found.attrs["early"], found.attrs["window"]
    axes[0].axvline(found.attrs["window_epochs"], color="0.5", lw=0.6, ls=":")
    axes[0].set(xlabel="epoch", ylabel="training accuracy (%)", ylim=(0, 102))
    axes[1].set(xlabel="layer", ylabel=f"SVCCA of steps 0 and {window}")
    axes[2].set(xlabel="layer", ylabel=f"relative move in {early} steps", yscale="log")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=num_arms)
    caption = (
        f"Large batches at a high learning rate, {found.sizes['seed']} seeds. Left: training "
        "accuracy, mean with 95 % t interval; runs that diverged count as chance, and warm-up and "
        "freezing end at the dotted line. Middle: SVCCA of each layer between the first step and "
        f"step {window}, where warm-up and freezing end, on test images. Right: change of the "
        "weights of each layer over their norm; frozen layers are left out. Small dots are runs "
        "that are finite at that step, large ones their medians."
    )
    return Drawn(fig, caption)


def by_layer(ax: Axes, values: xr.DataArray, shift: float, **style: Any) -> None:
    """Each run and the median of all, for each layer; `shift` keeps arms apart."""
    for layer in values["layer"].values:
        own = whole(values.sel(layer=layer))
        if own.any():
            dots(ax, layer + shift, own, np.median, **style)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def dots(
    ax: Axes, place: float, values: np.ndarray, centre: Callable[..., Any], **style: Any
) -> None:
    """A small dot for each run, and a large one at their centre."""
    ax.plot(np.full(len(values), place), values, "o", ms=1.2, mew=0, alpha=0.5, **style)
    ax.plot(place, centre(values), "o", ms=3.5, mec="white", mew=0.3, **style)


def draw_distillation(found: xr.Dataset) -> Drawn:
    """How alike students and teachers are, by layer, and what the teaching adds."""
    fig, axes = panels(2)
    left, right = axes[0]
    for arm in found["arm"].values:
        band(left, found["layer"], found["svcca"].sel(arm=arm), arm, marker="o")
    left.set(xlabel="layer", ylabel="SVCCA with the teacher")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(loc="upper left")
    more = gain(found)
    bars(right, {str(layer): more.sel(layer=layer) for layer in found["layer"].values})
    right.axhline(0, color="0.5", lw=0.6, zorder=0)
    right.set(xlabel="layer", ylabel="gain of SVCCA by distillation")
    caption = (
        f"SVCCA on test images between layers of a teacher and of smaller students of the same "
        f"initial weights, {found.sizes['seed']} seeds. Left: students that learn from the "
        "teacher's answers and from labels only, means with 95 % t intervals. Right: the "
        "difference for each seed (grey), with its mean and 95 % t interval."
    )
    return Drawn(fig, caption)


if __name__ == "__main__":
    run_study(measure, draw, judge)
