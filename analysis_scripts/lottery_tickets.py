"""From which step on is training stable, and do sparse networks that are rewound to it learn?

    python analysis_scripts/lottery_tickets.py --scale small

The experiments of Frankle, Dziugaite, Roy & Carbin 2019 and 2020 (arXiv 1903.01611, 1912.05671).
Copies of a network part at step k, see the data in other orders from there on, and the barrier on
the line between their ends is the instability at k. Pruning by magnitude, again and again, leaves
networks that are rewound to step k and trained (IMP). Their accuracy is compared with that of
random masks of the same layer densities, of the same masks with new initial weights, and of dense
networks with as few parameters; and so is how far two copies, or the dense and the sparse network,
end apart.

The learning rate falls late in training, so that copies which part late have little time left at
the full rate. As a control, copies are also given all steps, and all of the schedule, from k on.

Of 900 digits, batches of 64 leave 4 to the last batch of each epoch, whose step is as noisy as four
examples make it. As a control, the deep network is trained with batches of one size too.

At full scale there is one network, ResNet-20, and controls are trained at the last level only. The
pilots' networks on digits have no counterpart there: LeNet-like and deep fully connected ones.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from torch import Tensor
from torch.nn.functional import cross_entropy

from landscape import Checkpoint, Task, checkpoints, instability, models
from landscape.analyses.instability import Child
from landscape.datasets import Batches, Normalise
from landscape.experiments import At, During, Run, Seeds
from landscape.experiments.augmentations import Flip, Shift
from landscape.experiments.branches import children, fresh_seed
from landscape.experiments.masks import stability
from landscape.experiments.pruning import (
    Chain,
    iterative_pruning,
    randomly_pruned,
    reinitialised,
    smaller_dense,
    sparsity_curve,
    train_masked,
)
from landscape.experiments.schedules import Step
from landscape.results import dataset
from landscape.task import wrong
from shared import (
    Claim,
    Drawn,
    Effect,
    Results,
    Settings,
    band,
    bars,
    digits,
    effect,
    judged,
    log_ticks,
    panels,
    points,
    run_study,
)

ARMS = {
    "magnitude": "IMP",
    "random": "random mask",
    "reinitialised": "mask of IMP, new weights",
    "smaller": "smaller dense network",
}
STABLE = 2.0  # points of error, as in the paper


# Settings -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Remainder:
    """The last batch of an epoch holds a few examples only, each of them repeated.

    They are as many as batches of `batch_size` leave over, so that this step has the gradient, and
    the noise, of a loader's small last batch. `Run` by itself makes batches of one size.
    """

    batch_size: int = 64

    def draw(self, generator: torch.Generator, num: int) -> Tensor:
        """For each place of an epoch (num,), which of its batch is shown there; -1 is its own."""
        last = num // math.ceil(num / self.batch_size)
        left = num % self.batch_size or self.batch_size
        places = torch.full((num,), -1)
        places[-last:] = torch.arange(last) % left
        return places

    def apply(self, inputs: Tensor, targets: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """The batches (n, batch, ...) of n runs, rearranged."""
        own = torch.arange(draws.shape[1], device=draws.device)
        shown, runs = torch.where(draws < 0, own, draws), torch.arange(len(draws))[:, None]
        return inputs[runs, shown], targets[runs, shown]


@dataclass(frozen=True)
class Network:
    """A network, how it is trained, and the steps at which its copies part or that it rewinds to.

    `anew` are those of them from which copies are also given all steps.
    """

    title: str
    make_model: Callable[..., Any]
    data: Callable[[int], tuple[Batches, Batches]]  # of a seed: to train on and to test
    epochs: int
    batch_size: int
    lr: Step
    steps: tuple[int, ...]
    num_seeds: int
    anew: tuple[int, ...] = ()
    copies: int = 2
    points: int = 11
    augmentations: tuple[During, ...] = ()


@dataclass(frozen=True)
class Scale:
    """The dense networks that part, and the one that is pruned.

    `late` is the step at which the first of the dense networks should be stable. The pruned one has
    its controls at some `controlled` levels, and copies that part at the level `parted`. Layers
    that match `kept` are not pruned; `sizes` are those of smaller dense networks.
    """

    dense: Mapping[str, Network]
    late: int
    pruned: Network
    levels: int
    controlled: tuple[int, ...]
    parted: int
    kept: tuple[str, ...]
    sizes: Mapping[str, Sequence[Any]]

    @property
    def epochs(self) -> float:
        """The number of epochs that all runs together train, without what is shared."""
        parting = sum(
            one.epochs * one.num_seeds * (1 + one.copies * len((*one.steps, *one.anew)))
            for one in self.dense.values()
        )
        chains = len(self.pruned.steps) * (self.levels + 2 * len(self.controlled) + 2)
        each = 1 + chains + len(self.controlled)
        return parting + self.pruned.epochs * self.pruned.num_seeds * each


def on_digits(
    *,
    epochs: tuple[int, int] = (60, 40),
    num: int = 900,
    steps: tuple[int, ...] = (0, 15, 50, 150, 300, 400),
    rewound: int = 50,
    levels: int = 18,
    controlled: tuple[int, ...] = (6, 10, 14, 18),
    parted: int = 14,
) -> Scale:
    """A deep network on noisy digits, and one like LeNet-300-100 on clean ones."""
    wide = partial(models.mlp, hidden=(128, 128))
    clean, noisy = partial(digits, num=num), partial(digits, num=num, noise=0.7)
    same: dict[str, Any] = {"batch_size": 64, "lr": Step(0.05, (0.5, 0.75), unit="share")}
    ragged = same | {"augmentations": (During(Remainder()),)}
    few = (0, steps[2], steps[-1])
    deep = Network(
        "Deep", partial(models.mlp, hidden=(64,) * 4), noisy, epochs[0], steps=steps, num_seeds=12,
        anew=few[1:], **ragged,
    )  # fmt: skip
    lenet = Network("LeNet-like", wide, clean, epochs[0], steps=few, num_seeds=8, **ragged)
    even = replace(deep, title="Deep, even batches", steps=few, anew=(), augmentations=())
    return Scale(
        dense={"deep": deep, "deep_even": even, "lenet": lenet},
        late=steps[-1],
        pruned=Network(
            "LeNet-like", wide, clean, epochs[1], steps=(0, rewound), num_seeds=6, **same
        ),
        levels=levels,
        controlled=controlled,
        parted=parted,
        kept=("output.*",),
        sizes={"hidden": [(width, width) for width in range(4, 129)]},
    )


def on_images(train: Batches, test: Batches) -> Scale:
    """ResNet-20 with the settings of the papers, and the fewest runs that tell."""
    given = train.transform
    black = 0.0 if not isinstance(given, Normalise) else tuple(
        -mean / std for mean, std in zip(given.mean, given.std, strict=True)
    )  # fmt: skip
    resnet = Network(
        "ResNet-20", models.resnet20, lambda seed: (train, test), 160, 128,
        Step(0.1, (32_000, 48_000), unit="steps"),
        steps=(0, 100, 250, 500, 1000, 2000, 3000, 5000), num_seeds=3, anew=(2000,), copies=3,
        points=31, augmentations=(During(Flip()), During(Shift(4, black))),
    )  # fmt: skip
    return Scale(
        dense={"resnet": resnet},
        late=2000,
        pruned=replace(resnet, steps=(0, 500, 2000)),
        levels=8,
        controlled=(8,),
        parted=8,
        kept=(),
        sizes={"width": range(1, 17)},
    )


def scale_of(settings: Settings) -> Scale:
    """What is trained at the scale of the command line."""
    if settings.scale == "full":
        return on_images(*settings.images())
    if settings.scale == "small":
        return on_digits()
    return on_digits(
        epochs=(4, 4), num=300, steps=(0, 2, 5, 10), rewound=5,
        levels=3, controlled=(2, 3), parted=2,
    )  # fmt: skip


# Runs ---------------------------------------------------------------------------------------------


def measure(settings: Settings) -> dict[str, xr.Dataset]:
    """Instability against the step at which copies part, and what comes of pruning."""
    scale = scale_of(settings)
    settings.check_time(run_of(scale.pruned, "trial", settings.first_seed), scale.epochs)
    found = {}
    for name, network in scale.dense.items():
        for anew in (False, True) if network.anew else (False,):
            label = f"instability_{name}{'_anew' if anew else ''}"
            made = partial(parted, settings, network, name, anew=anew, late=scale.late)
            found[label] = settings.kept(label, made)
    found["tickets"] = settings.kept("tickets", partial(tickets, settings, scale))
    return found


def run_of(network: Network, name: str, seed: int) -> Run:
    """The dense network of a seed."""
    train, test = network.data(seed)
    return Run(
        name=f"{name}/seed-{seed}",
        make_model=network.make_model,
        data=train,
        test=test,
        epochs=network.epochs,
        batch_size=network.batch_size,
        lr=network.lr,
        weight_decay=1e-4,
        seeds=Seeds.all(seed),
        augmentations=network.augmentations,
        checkpoints=(At(network.steps),),
        keep_optimiser=True,
        test_every=network.epochs,
    )


def parted(settings: Settings, network: Network, name: str, *, anew: bool, late: int) -> xr.Dataset:
    """The instability of a dense network at each step, for each seed.

    Copies train from there to the end, or with `anew` all steps with all of the schedule. From the
    step `late` on they should end in one basin.
    """
    seeds = settings.seeds(network.num_seeds)
    trunks = [run_of(network, name, seed) for seed in seeds]
    settings.train(trunks)
    copies = {
        (trunk.name, step): copies_of(
            trunk, step, settings, num=network.copies, optimiser="carry", anew=anew
        )
        for trunk in trunks
        for step in (network.anew if anew else network.steps)
    }
    settings.train([one for own in copies.values() for one in own])
    folder = settings.folder / "runs"
    each = [
        between(settings, network, seed, {
            step: [last(folder, one) for one in own]
            for (of, step), own in copies.items() if of == trunk.name
        })
        for seed, trunk in zip(seeds, trunks, strict=True)
    ]  # fmt: skip
    return over_seeds(each, seeds, analysis="instability by step", title=network.title, late=late)


def copies_of(
    run: Run, step: int, settings: Settings, *, num: int, optimiser: Any, anew: bool = False
) -> list[Run]:
    """Copies of a run that part at a step, with only their last checkpoint kept."""
    seeds = [fresh_seed(run.seeds.order, number) for number in range(101, 101 + num)]
    folder = settings.folder / "runs"
    found = children(run, step, folder, seeds=seeds, vary="both", optimiser=optimiser)
    found = [replace(one, checkpoints=(), keep_optimiser=False) for one in found]
    if not anew:
        return found
    return [
        replace(one, name=one.name.replace("/k=", "/anew/k="), start=replace(one.start, step=0))
        for one in found
        if one.start
    ]


def between(
    settings: Settings, network: Network, seed: int, ends: Mapping[int, Sequence[Checkpoint]]
) -> xr.Dataset:
    """What lies between the ends of copies that parted at each step, as means over their pairs.

    The barrier of the error (split, step), the error on the line (split, step, t), and the distance
    of the weights (step).
    """
    loss = partial(cross_entropy, reduction="none")
    model = network.make_model(seed=seed)
    tasks = [
        Task(name, model, loss, data, {"error": wrong})
        for name, data in zip(("train", "test"), network.data(seed), strict=True)
    ]
    own = [
        Child(step, "", str(number), end)
        for step, copies in ends.items()
        for number, end in enumerate(copies)
    ]
    found = instability(tasks, own, points=network.points, device=settings.device)
    means = found[["error", "distance"]].groupby("step").mean("pair")
    barrier = found["error_instability"].rename(branch_step="step")
    return means.assign(barrier=barrier).transpose("split", "step", "t")


def over_seeds(each: Sequence[xr.Dataset], seeds: Sequence[int], **attributes: Any) -> xr.Dataset:
    """Results of seeds along a first dimension."""
    joined = xr.concat([one.drop_attrs() for one in each], "seed", coords="minimal", join="exact")
    texts = {
        "barrier": "barrier in error on the line",
        "error": "error",
        "distance": "distance of the weights",
    }
    axes = {name: joined[name].values for name in ("split", "step", "t")}
    variables = {
        name: (joined[name].dims, joined[name].values, {"long_name": text})
        for name, text in texts.items()
    }
    return dataset(variables, {"seed": list(seeds), **axes}, **attributes)


def tickets(settings: Settings, scale: Scale) -> xr.Dataset:
    """Accuracy of all arms and levels for each rewinding step, and how stable networks are."""
    network, folder = scale.pruned, settings.folder / "runs"
    seeds = settings.seeds(network.num_seeds)
    options: dict[str, Any] = {
        "device": settings.device,
        "stack": "auto" if settings.scale == "full" else 24,
        "progress": settings.progress,
    }
    dense = [replace(run_of(network, "tickets", seed), keep_optimiser=False) for seed in seeds]
    chains = [Chain(step=step, kept=scale.kept) for step in network.steps]
    done = iterative_pruning(dense, chains, folder, levels=scale.levels, **options)
    runs = {
        ("magnitude", chain.step, level.number, seed): level.run
        for seed, run in zip(seeds, dense, strict=True)
        for chain in chains
        for level in done[f"{run.name}/{chain.name}"]
    }
    others = controls(scale, runs)
    train_masked([run for run in others.values() if run.masks], folder, **options)
    settings.train([run for run in others.values() if not run.masks])
    runs |= others
    axes: dict[str, Sequence[Any]] = {
        "arm": list(ARMS),
        "step": list(network.steps),
        "level": list(range(scale.levels + 1)),
        "seed": list(seeds),
    }
    return dataset(
        accuracies(runs, folder, axes) | stabilities(settings, scale, runs, axes, options),
        {**axes, "density": ("level", (1 - chains[0].share) ** np.arange(scale.levels + 1))},
        analysis="lottery tickets",
        title=network.title,
        parted=scale.parted,
    )


Key = tuple[str, int, int, int]  # arm, rewinding step, level, seed


def controls(scale: Scale, runs: Mapping[Key, Run]) -> dict[Key, Run]:
    """The controls of some levels; a dense network that is smaller knows no rewinding step."""
    found = {}
    for (_, step, level, seed), run in runs.items():
        if level in scale.controlled:
            found["random", step, level, seed] = randomly_pruned(run)
            found["reinitialised", step, level, seed] = reinitialised(run)
            if step == scale.pruned.steps[0]:
                small = smaller_dense(run, tolerance=0.2, **scale.sizes)
                found["smaller", step, level, seed] = replace(small, checkpoints=())
    return found


def accuracies(
    runs: Mapping[Key, Run], folder: Path, axes: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """Test accuracy (arm, step, level, seed), and densities of layers in the pruned networks."""
    curve = sparsity_curve(list(runs.values()), folder)
    layers = curve["layer"].values.tolist()
    found = blank(axes, "arm", "step", "level", "seed")
    density = blank({**axes, "layer": layers}, "step", "level", "seed", "layer")
    for number, (arm, step, level, seed) in enumerate(runs):
        found.loc[arm, step, level, seed] = 1 - curve["test_error"].values[number]
        if arm == "magnitude":
            density.loc[step, level, seed] = curve["layer_density"].values[number]
    return {
        "accuracy": found.assign_attrs(long_name="test accuracy"),
        "layer_density": density.assign_attrs(long_name="density of the layer"),
    }


def stabilities(
    settings: Settings,
    scale: Scale,
    runs: Mapping[Key, Run],
    axes: Mapping[str, Sequence[Any]],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Stability to the order of the data and to pruning at one level (arm, step, seed).

    As the distance and the angle of weights that survive, and as the barrier between two copies.
    """
    texts = {
        "order_distance": "distance of two copies with other orders of the data",
        "order_angle": "angle between two copies with other orders of the data",
        "pruning_distance": "distance of the dense and the sparse network",
        "pruning_angle": "angle between the dense and the sparse network",
        "barrier": "barrier in test error between two copies",
    }
    found = {name: blank(axes, "arm", "step", "seed") for name in texts}
    network, folder = scale.pruned, settings.folder / "runs"
    own = {
        (arm, step, seed): run
        for (arm, step, level, seed), run in runs.items()
        if level == scale.parted and arm in ("magnitude", "random")
    }
    copies = {
        key: copies_of(run, key[1], settings, num=1, optimiser="reset")[0]
        for key, run in own.items()
    }
    train_masked(list(copies.values()), folder, **options)
    ends = {key: [last(folder, one) for one in (own[key], copies[key])] for key in own}
    for arm, step, seed in own:
        key, mask = (arm, step, seed), own[arm, step, seed].masks
        dense = last(folder, runs["magnitude", step, 0, seed])
        for name, (one, other) in {
            "order": ends[key], "pruning": (ends[key][0], dense)
        }.items():  # fmt: skip
            measured = stability(one, other, mask)
            for kind, value in zip(("distance", "angle"), measured, strict=True):
                found[f"{name}_{kind}"].loc[key] = value
        between_copies = between(settings, network, seed, {step: ends[key]})
        found["barrier"].loc[key] = between_copies["barrier"].sel(split="test").item()
    return {name: one.assign_attrs(long_name=texts[name]) for name, one in found.items()}


def last(folder: Path, run: Run) -> Checkpoint:
    """The checkpoint with which a run ended."""
    return checkpoints(folder / run.name)[-1]


def blank(axes: Mapping[str, Sequence[Any]], *dims: str) -> xr.DataArray:
    """Values over dimensions, all nan."""
    own = {name: list(axes[name]) for name in dims}
    return xr.DataArray(np.full([len(one) for one in own.values()], np.nan), own, dims)


# Verdicts -----------------------------------------------------------------------------------------


def judge(results: Results) -> list[Claim]:
    """E1, E1b and E2 on digits; at full scale what E.6 asks of ResNet-20."""
    return at_full_scale(results) if "instability_resnet" in results else on_small_scale(results)


def on_small_scale(results: Results) -> list[Claim]:
    """The criteria on digits."""
    claims = dense_claims(results) + accuracy_claims(results["tickets"])
    return claims + stable_claims(results["tickets"])


def dense_claims(results: Results) -> list[Claim]:
    """From which step on copies of dense networks end in one basin."""
    figure, late = "lottery_tickets_instability", results["instability_deep"].attrs["late"]
    deep, anew, even, lenet = (
        barriers_at(results[f"instability_{name}"])
        for name in ("deep", "deep_anew", "deep_even", "lenet")
    )
    return [
        judged("E1", figure, "A deep network is unstable at step 0",
               "barrier in test error, copies part at step 0, points",
               effect(deep[0]), at_least=2),
        judged("E1", figure, "A deep network becomes stable",
               f"barrier in test error, copies part at step {late}, points",
               effect(deep[late]), at_most=0.5),
        judged("E1", figure, "Instability falls while the network trains",
               f"barrier at step 0 less at step {late}, points (one-sided)",
               effect(deep[0] - deep[late], tail="greater"), p_below=0.01),
        all_steps_claim(anew, figure, late),
        judged("E1 control", figure, "A deep network is unstable without small last batches",
               "barrier in test error, even batches, copies part at step 0, points",
               effect(even[0]), expected="report"),
        judged("E1 control", figure, "Instability falls without small last batches",
               f"barrier at step 0 less at step {late}, even batches, points (one-sided)",
               effect(even[0] - even[late], tail="greater"), expected="report"),
        judged("E1b", figure, "A network like LeNet is stable from the start",
               "barrier in test error, copies part at step 0, points",
               effect(lenet[0]), at_most=1),
    ]  # fmt: skip


def all_steps_claim(barriers: Mapping[int, np.ndarray], figure: str, late: int) -> Claim:
    """The control of the learning rate: copies that part late and train all steps from there."""
    return judged(
        "E1 control", figure, "It is stable too if copies then train all steps",
        f"barrier in test error, copies part at step {late} and train all steps, points",
        effect(barriers[late]), expected="report",
    )  # fmt: skip


def accuracy_claims(tickets: xr.Dataset) -> list[Claim]:
    """What pruning by magnitude and rewinding are worth, on digits."""
    figure, accuracy = "lottery_tickets_accuracy", 100 * tickets["accuracy"]
    last, middle = int(tickets["level"][-1]), tickets.attrs["parted"]
    first = min(n for n in tickets["level"].values[1:] if has(accuracy, "random", n))
    share = {n: f"{percent(tickets['density'].values[n])} of the weights" for n in range(last + 1)}

    def less(level: int, arm: str, step: int, other: str, other_step: int) -> Effect:
        one, another = (
            accuracy.sel(arm=name, step=k, level=level)
            for name, k in ((arm, step), (other, other_step))
        )
        return effect(one - another)

    claims = [
        judged("E2", figure, f"A sparse network beats its control: {ARMS[arm]}",
               f"accuracy of k = {step} less {ARMS[arm]}, {share[last]}, points",
               less(last, "magnitude", step, arm, step), at_least=least, p_below=0.01)
        for step in tickets["step"].values
        for arm, least in (("random", 4.0), ("reinitialised", 1.5))
    ]  # fmt: skip
    late = tickets["step"].values[-1]
    own = accuracy.sel(arm="magnitude", step=0)
    return [
        *claims,
        judged("E2", figure, "Rewinding brings no accuracy at this scale",
               f"accuracy of k = {late} less k = 0, {share[middle]}, points",
               less(middle, "magnitude", late, "magnitude", 0), within=0.5, expected="null"),
        judged("E2", figure, "A sparse network is as good as the dense one",
               f"accuracy of k = 0 less the dense network, {share[middle]}, points",
               effect(own.sel(level=middle) - own.sel(level=0)), expected="report"),
        judged("E2", figure, "At high density a random mask is as good",
               f"accuracy of k = 0 less random mask, {share[first]}, points",
               less(first, "magnitude", 0, "random", 0), expected="report"),
        judged("E2", figure, "A dense network as small is worse",
               f"accuracy of k = 0 less smaller dense network, {share[last]}, points",
               less(last, "magnitude", 0, "smaller", 0), expected="report"),
    ]  # fmt: skip


def stable_claims(tickets: xr.Dataset) -> list[Claim]:
    """How much less stable random masks are, and what rewinding changes."""
    figure = "lottery_tickets_stability"
    share = f"{percent(tickets['density'].values[tickets.attrs['parted']])} of the weights"
    claims = []
    for name, what, between_what, least in (
        ("order", "the order of the data", "of two copies", 2.0),
        ("pruning", "pruning", "from the dense network", 1.5),
    ):
        distance = tickets[f"{name}_distance"]
        for step in tickets["step"].values:
            own = distance.sel(step=step)
            claims.append(
                judged("E2", figure, f"Random masks are less stable to {what}",
                       f"distance {between_what}, random mask / IMP, k = {step}, {share}",
                       ratio(own.sel(arm="random"), own.sel(arm="magnitude")), at_least=least)
            )  # fmt: skip
    own = tickets["pruning_distance"].sel(arm="magnitude")
    step = tickets["step"].values[-1]
    claims.append(
        judged("E2", figure, "Rewinding makes networks more stable to pruning",
               f"distance from the dense network, k = {step} less k = 0, {share}",
               effect(own.isel(step=-1) - own.isel(step=0)), expected="report")
    )  # fmt: skip
    return claims


def at_full_scale(results: Results) -> list[Claim]:
    """What E.6 asks of ResNet-20."""
    figure, found = "lottery_tickets_instability", results["instability_resnet"]
    late, barriers = found.attrs["late"], barriers_at(found)
    anew = barriers_at(results["instability_resnet_anew"])
    claims = [
        judged("E.6", figure, "ResNet-20 is unstable at step 0",
               "barrier in test error, copies part at step 0, points",
               effect(barriers[0]), at_least=40),
        judged("E.6", figure, "ResNet-20 is stable soon",
               f"barrier in test error, copies part at step {late}, points",
               effect(barriers[late]), at_most=5),
        all_steps_claim(anew, figure, late),
    ]  # fmt: skip
    tickets, figure = results["tickets"], "lottery_tickets_accuracy"
    sparse = 100 * tickets["accuracy"].isel(level=-1)
    share = f"{percent(tickets['density'].values[-1])} of the weights"
    own, step = sparse.sel(arm="magnitude"), tickets["step"].values[-1]
    return [
        *claims,
        judged("E.6", figure, "Rewinding to a step after the start works where step 0 does not",
               f"accuracy of k = {step} less k = 0, {share}, points",
               effect(own.isel(step=-1) - own.sel(step=0)), at_least=1.5),
        judged("E.6", figure, "Weights of step 0 are no better than a random mask",
               f"accuracy of k = 0 less random mask, {share}, points",
               effect(own.sel(step=0) - sparse.sel(arm="random", step=0)),
               within=1, expected="null"),
        *(replace(one, condition="", verdict="reported") for one in stable_claims(tickets)),
    ]  # fmt: skip


def barriers_at(found: xr.Dataset) -> dict[int, np.ndarray]:
    """The barriers in test error of the seeds, in points, by the step at which copies part."""
    values = points(found["barrier"].sel(split="test").transpose("step", "seed"))
    return dict(zip(found["step"].values.tolist(), values, strict=True))


def ratio(over: xr.DataArray, under: xr.DataArray) -> Effect:
    """The mean ratio over seeds, with the p-value of its being 1, from the logarithms."""
    ratios = np.asarray(over / under)
    return replace(effect(ratios), p=effect(np.log(ratios)).p)


def has(accuracy: xr.DataArray, arm: str, level: int) -> bool:
    """Whether an arm was trained at a level."""
    return bool(accuracy.sel(arm=arm, level=level).notnull().any())


def percent(share: float) -> str:
    """A share in percent, to two digits."""
    return f"{100 * share:.2g} %"


# Figures ------------------------------------------------------------------------------------------


def draw(results: Results) -> dict[str, Drawn]:
    """Instability against k, accuracy against density, and stability."""
    return {
        "lottery_tickets_instability": instability_figure(results),
        "lottery_tickets_accuracy": accuracy_figure(results["tickets"]),
        "lottery_tickets_stability": stability_figure(results["tickets"]),
    }


def instability_figure(results: Results) -> Drawn:
    """Dense networks, sparse ones, and the lines behind."""
    fig, ((dense, sparse, line),) = panels(3, height=2.3)
    networks = {n: one for n, one in results.items() if n.startswith("instability")}
    colours = ("C2", "C3", "C5", "C4")
    for (name, one), colour in zip(networks.items(), colours, strict=False):
        anew = name.endswith("_anew")
        label = f"{one.attrs['title']}, all steps from k on" if anew else one.attrs["title"]
        values = points(one["barrier"].sel(split="test"))
        style: dict[str, Any] = {
            "color": colour,
            "ls": "--" if anew else "-",
            "marker": "o",
            "ms": 2.5,
        }
        band(dense, one["step"].values, values, label, **style)
    first = next(iter(networks.values()))
    at_steps(dense, first["step"].values)
    dense.set_title("Dense networks")
    tickets = results["tickets"]
    for number, arm in enumerate(("magnitude", "random")):
        values = points(tickets["barrier"].sel(arm=arm).transpose("seed", "step"))
        band(sparse, tickets["step"].values, values, f"sparse: {ARMS[arm]}",
             color=f"C{number}", marker="o", ms=2.5)  # fmt: skip
    at_steps(sparse, tickets["step"].values)
    density = percent(tickets["density"].values[tickets.attrs["parted"]])
    sparse.set_title(f"Sparse networks ({density})")
    steps = first["step"].values
    shown = steps[[0, len(steps) // 3, -1]]
    for number, step in enumerate(shown):
        values = points(first["error"].sel(split="test", step=step).transpose("seed", "t"))
        colour = f"{0.1 + 0.7 * number / len(shown):.2f}"
        band(line, first["t"].values, values, f"k = {step}", color=colour)
    line.set_title(f"{first.attrs['title']} network, on the line")
    line.set_xlabel("position between the copies")
    line.set_ylabel("test error (points)")
    for ax in (dense, sparse):
        ax.axhline(STABLE, color="0.6", lw=0.6, ls=":")
        ax.set_xlabel("step k at which copies part")
        ax.set_ylabel("barrier in test error (points)")
    for ax in (dense, sparse, line):
        ax.set_ylim(bottom=0)
    line.legend(loc="lower left")
    handles = [one for ax in (dense, sparse) for one in ax.get_legend_handles_labels()[0]]
    fig.legend(handles=handles, loc="outside upper center", ncols=3)
    seeds = ", ".join(
        f"{one.attrs['title']}: {one.sizes['seed']}"
        for n, one in networks.items()
        if "anew" not in n
    )
    ragged = (
        " Batches of 64 leave few examples to the last one of an epoch, unless they are even."
        if "instability_deep_even" in networks
        else ""
    )
    return Drawn(
        fig,
        "Instability: the barrier in test error on the line between copies that see the data in "
        "other orders from step k on, for dense networks (dashed: with all steps, and all of the "
        f"schedule of the learning rate, from k on) and for sparse ones with {density} of the "
        "weights that were rewound to k; right, the test error along the line. Below the dotted "
        f"line networks count as stable.{ragged} Means and 95 % intervals over seeds ({seeds}; "
        f"sparse: {tickets.sizes['seed']}).",
    )


def accuracy_figure(tickets: xr.Dataset) -> Drawn:
    """Accuracy against density, for the first and the last rewinding step, and their difference."""
    fig, ((first, second, gain),) = panels(3, height=2.2)
    steps, density = tickets["step"].values, 100 * tickets["density"].values
    accuracy = 100 * tickets["accuracy"].transpose("arm", "step", "seed", "level")
    for ax, step in ((first, steps[0]), (second, steps[-1])):
        for number, (arm, label) in enumerate(ARMS.items()):
            own = accuracy.sel(arm=arm, step=steps[0] if arm == "smaller" else step)
            there = own.notnull().all("seed").values
            style: dict[str, Any] = (
                {} if arm == "magnitude" else {"marker": "o", "ms": 2.5, "ls": "--"}
            )
            band(ax, density[there], own.values[:, there], label, color=f"C{number}", **style)
        ax.set_title(f"Rewound to step {step}")
        ax.set_ylabel("test accuracy (%)")
    second.sharey(first)
    for number, step in enumerate(steps[1:], start=5):
        own = accuracy.sel(arm="magnitude")
        band(gain, density[1:], (own.sel(step=step) - own.sel(step=steps[0])).values[:, 1:],
             f"step {step}", color=f"C{number}")  # fmt: skip
    gain.axhline(0, color="0.6", lw=0.6, ls=":")
    several = len(steps) > 2
    gain.set_title(f"Gain{'' if several else f' of step {steps[-1]}'} over step {steps[0]}")
    gain.set_ylabel("accuracy gained (points)")
    for ax in (first, second, gain):
        density_axis(ax, density)
    if several:
        gain.legend()
    fig.legend(*first.get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return Drawn(
        fig,
        "Accuracy against the share of weights that survive: iterative magnitude pruning with "
        "rewinding (IMP), and as controls random masks of the same layer densities, the same masks "
        "with new initial weights, and dense networks with as few parameters; right, what the "
        "later rewinding step changes. Means and 95 % intervals over "
        f"{tickets.sizes['seed']} seeds.",
    )


def stability_figure(tickets: xr.Dataset) -> Drawn:
    """Distances by arm, and the densities of layers."""
    fig, ((order, pruning, layers),) = panels(3, height=2.1)
    for ax, name in ((order, "order"), (pruning, "pruning")):
        bars(ax, {
            f"{label}\nk = {step}": tickets[f"{name}_distance"].sel(arm=arm, step=step).values
            for arm, label in (("magnitude", "IMP"), ("random", "random"))
            for step in tickets["step"].values
        })  # fmt: skip
        ax.set_ylim(bottom=0)
        ax.set_ylabel("distance of surviving weights")
    order.set_title("Two orders of the data")
    pruning.set_title("Dense and sparse network")
    density = 100 * tickets["density"].values
    own = 100 * tickets["layer_density"].isel(step=0).transpose("layer", "seed", "level")
    few = own.sizes["layer"] <= 4
    for number, layer in enumerate(own["layer"].values):
        ends = number in (0, own.sizes["layer"] - 1)
        colour = f"C{number}" if few else f"{0.8 * number / own.sizes['layer']:.2f}"
        label = layer.removesuffix(".weight") if few or ends else None
        band(layers, density, own.sel(layer=layer).values, label, color=colour)
    layers.plot(density, density, color="0.6", lw=0.6, ls=":")
    layers.set_yscale("log")
    log_ticks(layers, "y")
    density_axis(layers, density)
    layers.set_title("Layers")
    layers.set_ylabel("weights left in the layer (%)")
    layers.legend()
    share = percent(tickets["density"].values[tickets.attrs["parted"]])
    return Drawn(
        fig,
        f"Stability of sparse networks with {share} of the weights, with masks of iterative "
        "magnitude pruning (IMP) or random ones, which were rewound to step k: Euclidean distance "
        "on the surviving weights between two copies that saw the data in other orders, and "
        "between the dense and the sparse network; and the share of weights that survives in each "
        "layer (IMP rewound to step "
        f"{tickets['step'].values[0]}; dotted: all layers alike). Means and 95 % intervals over "
        f"{tickets.sizes['seed']} seeds, which are the grey points.",
    )


def at_steps(ax: Axes, steps: np.ndarray) -> None:
    """A logarithmic axis of steps that begins with 0."""
    ax.set_xscale("symlog", linthresh=steps[1], linscale=0.5)
    named = [a for a, b in pairwise([*steps.tolist(), math.inf]) if b >= 1.5 * a]
    ax.set_xticks(named, [str(step) for step in named])
    ax.minorticks_off()


def density_axis(ax: Axes, density: np.ndarray) -> None:
    """A logarithmic axis of densities, from all weights to few."""
    ax.set_xscale("log")
    ax.set_xlim(100, 0.9 * density[-1])
    ax.set_xticks([one for one in (100, 50, 20, 10, 5, 2, 1) if one >= density[-1]])
    ax.minorticks_off()
    log_ticks(ax)
    ax.set_xlabel("weights left (%)")


if __name__ == "__main__":
    run_study(measure, draw, judge)
