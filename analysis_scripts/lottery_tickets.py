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

As with a DataLoader, the last batch of an epoch has what is left: of 900 digits, 4 at batches of
64. Its step is most of the noise that parts the copies, so that as a control the deep network is
trained with even batches too.

At full scale there is one network, ResNet-20, and controls are trained at the last level only. The
pilots' networks on digits have no counterpart there: LeNet-like and deep fully connected ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from torch.nn.functional import cross_entropy

from landscape import Task, checkpoints, instability, models, plots
from landscape.analyses.instability import Child
from landscape.datasets import Batches, Normalise
from landscape.experiments import At, During, Run, Seeds, pruning
from landscape.experiments.augmentations import Flip, Shift
from landscape.experiments.branches import children, fresh_seed
from landscape.experiments.schedules import Step
from landscape.experiments.tickets import tickets
from landscape.plots.curves import value_scale
from landscape.plots.steps import step_scale
from landscape.results import dataset
from landscape.task import wrong
from shared import (
    Claim,
    Drawn,
    Effect,
    Results,
    Settings,
    band,
    digits,
    effect,
    judged,
    panels,
    points,
    ratio,
    run_study,
)

IMP, RANDOM, NEW, SMALLER = "", "random mask", "mask of IMP, new weights", "smaller dense network"
STABLE = 2.0  # points of error, as in the paper


# Settings -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A network, how it is trained, and the steps at which its copies part or that it rewinds to.

    `training` are options of `Run`; `anew` the steps from which copies are also given all steps.
    """

    title: str
    data: Callable[[int], tuple[Batches, Batches]]  # of a seed: to train on and to test
    training: Mapping[str, Any]
    steps: tuple[int, ...]
    num_seeds: int
    anew: tuple[int, ...] = ()
    copies: int = 2
    points: int = 11


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
            one.training["epochs"] * one.num_seeds
            * (1 + one.copies * len((*one.steps, *one.anew)))
            for one in self.dense.values()
        )  # fmt: skip
        chains = len(self.pruned.steps) * (self.levels + 2 * len(self.controlled) + 4)
        each = 1 + chains + len(self.controlled)
        return parting + self.pruned.training["epochs"] * self.pruned.num_seeds * each


def on_digits(
    *, epochs: tuple[int, int] = (60, 40), num: int = 900,
    steps: tuple[int, ...] = (0, 15, 50, 150, 300, 400), rewound: int = 50,
    levels: int = 18, controlled: tuple[int, ...] = (6, 10, 14, 18), parted: int = 14,
) -> Scale:  # fmt: skip
    """A deep network on noisy digits, and one like LeNet-300-100 on clean ones."""
    clean, noisy = partial(digits, num=num), partial(digits, num=num, noise=0.7)
    few = (0, steps[2], steps[-1])

    def training(hidden: tuple[int, ...], epochs: int) -> dict[str, Any]:
        return {
            "make_model": partial(models.mlp, hidden=hidden), "epochs": epochs, "batch_size": 64,
            "last_batch": "smaller", "lr": Step(0.05, (0.5, 0.75), unit="share"),
        }  # fmt: skip

    deep = Network("Deep", noisy, training((64,) * 4, epochs[0]), steps, 12, anew=few[1:])
    even = replace(
        deep, title="Deep, even batches", steps=few, anew=(),
        training={**deep.training, "last_batch": "even"},
    )  # fmt: skip
    return Scale(
        dense={
            "deep": deep,
            "deep_even": even,
            "lenet": Network("LeNet-like", clean, training((128, 128), epochs[0]), few, 8),
        },
        late=steps[-1],
        pruned=Network("LeNet-like", clean, training((128, 128), epochs[1]), (0, rewound), 6),
        levels=levels, controlled=controlled, parted=parted, kept=("output.*",),
        sizes={"hidden": [(width, width) for width in range(4, 129)]},
    )  # fmt: skip


def on_images(train: Batches, test: Batches) -> Scale:
    """ResNet-20 with the settings of the papers, and the fewest runs that tell."""
    given = train.transform
    black = 0.0 if not isinstance(given, Normalise) else tuple(
        -mean / std for mean, std in zip(given.mean, given.std, strict=True)
    )  # fmt: skip
    training = {
        "make_model": models.resnet20, "epochs": 160, "batch_size": 128, "last_batch": "smaller",
        "lr": Step(0.1, (32_000, 48_000), unit="steps"),
        "augmentations": (During(Flip()), During(Shift(4, black))),
    }  # fmt: skip
    resnet = Network(
        "ResNet-20", lambda seed: (train, test), training,
        (0, 100, 250, 500, 1000, 2000, 3000, 5000), 3, anew=(2000,), copies=3, points=31,
    )  # fmt: skip
    return Scale(
        dense={"resnet": resnet}, late=2000, pruned=replace(resnet, steps=(0, 500, 2000)),
        levels=8, controlled=(8,), parted=8, kept=(), sizes={"width": range(1, 17)},
    )  # fmt: skip


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
    found["tickets"] = settings.kept("tickets", partial(pruned, settings, scale))
    return found


def run_of(network: Network, name: str, seed: int) -> Run:
    """The dense network of a seed."""
    train, test = network.data(seed)
    return Run(
        name=f"{name}/seed-{seed}", data=train, test=test, weight_decay=1e-4, seeds=Seeds.all(seed),
        checkpoints=(At(network.steps),), keep_optimiser=True,
        test_every=network.training["epochs"], **network.training,
    )  # fmt: skip


def parted(settings: Settings, network: Network, name: str, *, anew: bool, late: int) -> xr.Dataset:
    """The barrier in error (seed, split, step), and the error on the line, of dense networks.

    Copies train from each step to the end, or with `anew` all steps with all of the schedule. From
    the step `late` on they should end in one basin.
    """
    seeds = settings.seeds(network.num_seeds)
    trunks = [run_of(network, name, seed) for seed in seeds]
    settings.train(trunks)
    copies = [
        {
            step: copies_of(trunk, step, settings, network.copies, optimiser="carry", anew=anew)
            for step in (network.anew if anew else network.steps)
        }
        for trunk in trunks
    ]
    settings.train([one for own in copies for some in own.values() for one in some])
    each = [between(settings, network, *one) for one in zip(seeds, copies, strict=True)]
    joined = xr.concat(each, "seed")
    return dataset(
        {name: joined[name] for name in ("barrier", "error")}, {"seed": list(seeds)},
        analysis="instability by step", title=network.title, late=late,
    )  # fmt: skip


def copies_of(
    run: Run, step: int, settings: Settings, num: int, *, optimiser: Any, anew: bool = False
) -> list[Run]:
    """Copies of a run that part at a step, with only their last checkpoint kept."""
    seeds = [fresh_seed(run.seeds.order, number) for number in range(101, 101 + num)]
    folder = settings.runs_folder
    found = [
        replace(one, checkpoints=(), keep_optimiser=False)
        for one in children(run, step, folder, seeds=seeds, vary="both", optimiser=optimiser)
    ]
    if not anew:
        return found
    return [
        replace(one, name=one.name.replace("/k=", "/anew/k="), start=replace(one.start, step=0))
        for one in found
        if one.start
    ]


def between(
    settings: Settings, network: Network, seed: int, copies: Mapping[int, Sequence[Run]]
) -> xr.Dataset:
    """The barrier in error (split, step) between copies of a seed that parted at each step.

    And the error on the line (split, step, t); both are means over pairs.
    """
    loss = partial(cross_entropy, reduction="none")
    model = network.training["make_model"](seed=seed)
    tasks = [
        Task(name, model, loss, data, {"error": wrong})
        for name, data in zip(("train", "test"), network.data(seed), strict=True)
    ]
    ends = [
        Child(step, "", one.name, checkpoints(settings.runs(one))[-1])
        for step, own in copies.items()
        for one in own
    ]
    found = instability(tasks, ends, points=network.points, device=settings.device)
    lines = found[["error"]].groupby("step").mean("pair")
    return lines.assign(barrier=found["error_instability"].rename(branch_step="step"))


def pruned(settings: Settings, scale: Scale) -> xr.Dataset:
    """The report of `tickets` on pruning and its controls, named as here.

    With smaller dense networks, which are the same for each step, and the `barrier` in test error
    between copies of sparse networks at the level `parted`.
    """
    network, folder, options = scale.pruned, settings.runs_folder, settings.options
    seeds = settings.seeds(network.num_seeds)
    dense = [replace(run_of(network, "tickets", seed), keep_optimiser=False) for seed in seeds]
    chains = [pruning.Chain(step=step, kept=scale.kept) for step in network.steps]
    done = pruning.iterative_pruning(dense, chains, folder, levels=scale.levels, **options)
    levels = [level for chain in done.values() for level in chain]
    controlled = [level.run for level in levels if level.number in scale.controlled]
    random = [pruning.randomly_pruned(run) for run in controlled]
    pruning.train_masked([*random, *map(pruning.reinitialised, controlled)], folder, **options)
    smaller = [
        replace(pruning.smaller_dense(run, tolerance=0.2, **scale.sizes), checkpoints=())
        for run in controlled
        if run.first_step == network.steps[0]  # a dense network knows no rewinding step
    ]
    settings.train(smaller)
    alike = [*(level.run for level in levels), *random]
    sparse = [run for run in alike if place_of(run)[-1] == scale.parted]
    copies = [copies_of(run, run.first_step, settings, 2, optimiser="reset") for run in sparse]
    pruning.train_masked([one for own in copies for one in own], folder, **options)
    found = tickets([settings.runs(run) for run in dense], progress=settings.progress)
    barrier = xr.full_like(found["density"], np.nan)
    barrier.attrs["long_name"] = "barrier in test error between two copies"
    for run, own in zip(sparse, copies, strict=True):
        lines = between(settings, network, run.seeds.init, {run.first_step: own})
        barrier.loc[place_of(run)] = lines["barrier"].sel(split="test").item()
    found = with_smaller(found.assign(barrier=barrier), smaller, settings)
    return found.assign_attrs(title=network.title, parted=scale.parted)


def with_smaller(found: xr.Dataset, runs: Sequence[Run], settings: Settings) -> xr.Dataset:
    """A report with the errors of smaller dense networks, and its controls named as here."""
    names = {IMP: IMP, "random-layer-1": RANDOM, "reinitialised-1": NEW}
    found = found.drop_vars("ended").assign_coords(
        control=("chain", [names[control] for control in found["control"].values])
    )
    imp = found.sel(chain=found["control"].values == IMP)
    smaller = imp.where(False).assign(density=imp["density"]).assign_coords(
        chain=[f"{chain}/smaller" for chain in imp["chain"].values],
        control=("chain", [SMALLER] * imp.sizes["chain"]),
    )  # fmt: skip
    errors = pruning.sparsity_curve(runs, settings.runs_folder)["test_error"].values
    for run, error in zip(runs, errors, strict=True):
        seed, _, level = place_of(run)
        smaller["test_error"].loc[seed, :, level] = error
    return xr.concat([found, smaller], "chain")


def place_of(run: Run) -> tuple[str, str, int]:
    """The seed, the chain and the level that the name of a run says."""
    _, seed, *chain, level = run.name.split("/")
    return seed, "/".join(chain), int(level.rpartition("-")[2])


# Verdicts -----------------------------------------------------------------------------------------


def judge(results: Results) -> list[Claim]:
    """E1, E1b and E2 on digits; at full scale what E.6 asks of ResNet-20."""
    if "instability_resnet" in results:
        return at_full_scale(results)
    tickets = results["tickets"]
    return [*dense_claims(results), *accuracy_claims(tickets), *stable_claims(tickets)]


def dense_claims(results: Results) -> list[Claim]:
    """From which step on copies of dense networks end in one basin."""
    late = results["instability_deep"].attrs["late"]
    deep, anew, even, lenet = (
        barriers_at(results[f"instability_{name}"])
        for name in ("deep", "deep_anew", "deep_even", "lenet")
    )
    return [
        barrier_claim("E1", "A deep network is unstable at step 0",
                      "copies part at step 0", deep[0], at_least=2),
        barrier_claim("E1", "A deep network becomes stable",
                      f"copies part at step {late}", deep[late], at_most=0.5),
        judged("E1", "lottery_tickets_instability", "Instability falls while the network trains",
               f"barrier at step 0 less at step {late}, points (one-sided)",
               effect(deep[0] - deep[late], tail="greater"), p_below=0.01),
        all_steps_claim(anew[late], late),
        barrier_claim("E1 control", "What instability is left without small last batches",
                      "even batches, copies part at step 0", even[0], expected="report"),
        judged("E1 control", "lottery_tickets_instability",
               "Instability falls without small last batches",
               f"barrier at step 0 less at step {late}, even batches, points (one-sided)",
               effect(even[0] - even[late], tail="greater"), expected="report"),
        barrier_claim("E1b", "A network like LeNet is stable from the start",
                      "copies part at step 0", lenet[0], at_most=1),
    ]  # fmt: skip


def barrier_claim(
    criterion: str, claim: str, copies: str, barriers: np.ndarray, **expected: Any
) -> Claim:
    """What is expected of the barriers between copies."""
    quantity = f"barrier in test error, {copies}, points"
    found = effect(barriers)
    return judged(criterion, "lottery_tickets_instability", claim, quantity, found, **expected)


def all_steps_claim(barriers: np.ndarray, late: int) -> Claim:
    """The control of the learning rate: copies that part late and train all steps from there."""
    return barrier_claim(
        "E1 control", "It is stable too if copies then train all steps",
        f"copies part at step {late} and train all steps", barriers, expected="report",
    )  # fmt: skip


def accuracy_claims(tickets: xr.Dataset) -> list[Claim]:
    """What pruning by magnitude and rewinding are worth, on digits."""
    figure, accuracy = "lottery_tickets_accuracy", accuracies(tickets)
    steps = accuracy["step"].values
    random = accuracy.sel(control=RANDOM, step=0).notnull().all("run")
    trained = accuracy["level"].values[random.values & (accuracy["level"].values > 0)]
    first, middle, last = trained[0], tickets.attrs["parted"], trained[-1]

    def less(control: str, level: int, step: float = 0) -> Effect:
        own = accuracy.sel(step=step, level=level)
        return effect(own.sel(control=IMP) - own.sel(control=control))

    own = accuracy.sel(control=IMP, level=middle)
    dense = accuracy.sel(control=IMP, step=0, level=0)
    return [
        *(
            judged("E2", figure, f"A sparse network beats its control: {control}",
                   f"accuracy of k = {step:g} less {control}, {share(tickets, last)}, points",
                   less(control, last, step), at_least=least, p_below=0.01)
            for step in steps
            for control, least in ((RANDOM, 4.0), (NEW, 1.5))
        ),
        judged("E2", figure, "Rewinding brings no accuracy at this scale",
               f"accuracy of k = {steps[-1]:g} less k = 0, {share(tickets, middle)}, points",
               effect(own.isel(step=-1) - own.sel(step=0)), within=0.5, expected="null"),
        judged("E2", figure, "What is lost against the dense network",
               f"accuracy of k = 0 less the dense network, {share(tickets, middle)}, points",
               effect(own.sel(step=0) - dense), expected="report"),
        judged("E2", figure, "At high density a random mask is as good",
               f"accuracy of k = 0 less {RANDOM}, {share(tickets, first)}, points",
               less(RANDOM, first), expected="report"),
        judged("E2", figure, "How a dense network as small compares",
               f"accuracy of k = 0 less {SMALLER}, {share(tickets, last)}, points",
               less(SMALLER, last), expected="report"),
    ]  # fmt: skip


def stable_claims(tickets: xr.Dataset, *, gated: bool = True) -> list[Claim]:
    """How much less stable random masks are, and what rewinding changes."""
    figure, level = "lottery_tickets_stability", tickets.attrs["parted"]
    left = share(tickets, level)
    order, dense = (
        by_control(tickets[f"{name}_distance"].sel(level=level)) for name in ("order", "pruning")
    )
    own = dense.sel(control=IMP)
    step = own["step"].values[-1]
    return [
        *(
            judged("E2", figure, f"Random masks are less stable to {what}",
                   f"distance {apart}, random mask / IMP, k = {k:g}, {left}",
                   ratio(distance.sel(control=RANDOM, step=k), distance.sel(control=IMP, step=k)),
                   at_least=least, gated=gated)
            for distance, what, apart, least in (
                (order, "the order of the data", "of two copies", 2.0),
                (dense, "pruning", "from the dense network", 1.5),
            )
            for k in distance["step"].values
        ),
        judged("E2", figure, "Rewinding makes networks more stable to pruning",
               f"distance from the dense network, k = {step:g} less k = 0, {left}",
               effect(own.sel(step=step) - own.sel(step=0)), expected="report"),
    ]  # fmt: skip


def at_full_scale(results: Results) -> list[Claim]:
    """What E.6 asks of ResNet-20."""
    found, tickets = results["instability_resnet"], results["tickets"]
    figure, late, barriers = "lottery_tickets_accuracy", found.attrs["late"], barriers_at(found)
    sparse, left = accuracies(tickets).isel(level=-1), share(tickets, tickets["level"].values[-1])
    own, step = sparse.sel(control=IMP), sparse["step"].values[-1]
    return [
        barrier_claim("E.6", "ResNet-20 is unstable at step 0",
                      "copies part at step 0", barriers[0], at_least=40),
        barrier_claim("E.6", "ResNet-20 is stable soon",
                      f"copies part at step {late}", barriers[late], at_most=5),
        all_steps_claim(barriers_at(results["instability_resnet_anew"])[late], late),
        judged("E.6", figure, "Rewinding to a step after the start works where step 0 does not",
               f"accuracy of k = {step:g} less k = 0, {left}, points",
               effect(own.sel(step=step) - own.sel(step=0)), at_least=1.5),
        judged("E.6", figure, "Weights of step 0 are no better than a random mask",
               f"accuracy of k = 0 less {RANDOM}, {left}, points",
               effect(own.sel(step=0) - sparse.sel(control=RANDOM, step=0)),
               within=1, expected="null"),
        *stable_claims(tickets, gated=False),
    ]  # fmt: skip


def barriers_at(found: xr.Dataset) -> dict[int, np.ndarray]:
    """The barriers in test error of the seeds, in points, by the step at which copies part."""
    values = points(found["barrier"].sel(split="test").transpose("step", "seed"))
    return dict(zip(found["step"].values.tolist(), values, strict=True))


def accuracies(tickets: xr.Dataset) -> xr.DataArray:
    """Test accuracy in percent, by control and step in place of chains."""
    return by_control(100 * (1 - tickets["test_error"]))


def by_control(values: xr.DataArray) -> xr.DataArray:
    """Values of chains over `control` and `step`."""
    values = values.drop_vars(["chain", "of", "kind"])
    return values.set_index(chain=["control", "step"]).unstack("chain")


def share(tickets: xr.Dataset, level: int) -> str:
    """How many of the weights are left at a level, to two digits."""
    return f"{100 * float(tickets['density'].sel(level=level).mean()):.2g} % of the weights"


# Figures ------------------------------------------------------------------------------------------


def draw(results: Results) -> dict[str, Drawn]:
    """Instability against k, error against density, and stability."""
    return {
        "lottery_tickets_instability": instability_figure(results),
        "lottery_tickets_accuracy": accuracy_figure(results["tickets"]),
        "lottery_tickets_stability": stability_figure(results["tickets"]),
    }


def instability_figure(results: Results) -> Drawn:
    """Dense networks, sparse ones, and the lines behind."""
    fig, ((dense, sparse, line),) = panels(3, height=2.3)
    networks = {n: one for n, one in results.items() if n.startswith("instability")}
    tickets, first = results["tickets"], next(iter(networks.values()))
    marked: dict[str, Any] = {"marker": "o", "ms": 2.5, "clip_on": False}
    for (name, one), colour in zip(networks.items(), ("C2", "C3", "C5", "C4"), strict=False):
        anew = name.endswith("_anew")
        label = f"{one.attrs['title']}, all steps from k on" if anew else one.attrs["title"]
        values = points(one["barrier"].sel(split="test").transpose("seed", "step"))
        band(dense, one["step"].values, values, label, color=colour, ls="--" if anew else "-",
             **marked)  # fmt: skip
    barrier = by_control(tickets["barrier"].sel(level=tickets.attrs["parted"]))
    for control, name in ((IMP, "IMP"), (RANDOM, RANDOM)):
        values = points(barrier.sel(control=control).transpose("run", "step"))
        band(sparse, barrier["step"].values, values, f"sparse: {name}", **marked)
    left = share(tickets, tickets.attrs["parted"])
    for ax, title, steps in (
        (dense, "Dense networks", first["step"].values),
        (sparse, f"Sparse, {left}", barrier["step"].values),
    ):
        ax.axhline(STABLE, color="0.6", lw=0.6, ls=":")
        step_scale(ax, steps)
        ax.set_xlim(steps[0], steps[-1])
        ax.set(title=title, xlabel="step k at which copies part",
               ylabel="barrier in test error (points)")  # fmt: skip
    steps = first["step"].values
    shown = steps[[0, len(steps) // 3, -1]]
    for number, step in enumerate(shown):
        values = points(first["error"].sel(split="test", step=step).transpose("seed", "t"))
        colour = f"{0.1 + 0.7 * number / len(shown):.2f}"
        band(line, first["t"].values, values, f"k = {step}", color=colour)
    line.set(title=f"{first.attrs['title']} network, on the line",
             xlabel="position between the copies", ylabel="test error (points)")  # fmt: skip
    line.legend(loc="lower left")
    for ax in (dense, sparse, line):
        ax.set_ylim(bottom=0)
    handles = [one for ax in (dense, sparse) for one in ax.get_legend_handles_labels()[0]]
    fig.legend(handles=handles, loc="outside upper center", ncols=3)
    seeds = "; ".join(
        f"{one.attrs['title']}: {one.sizes['seed']}"
        for n, one in networks.items()
        if not n.endswith("_anew")
    )
    return Drawn(
        fig,
        "Instability: the barrier in test error on the line between copies that see the data in "
        "other orders from step k on, for dense networks (dashed: with all steps, and all of the "
        f"schedule of the learning rate, from k on) and for sparse ones with {left} that were "
        "rewound to k; right, the test error along the line. Below the dotted line networks count "
        f"as stable. The last batch of an epoch has what is left, unless batches are even. Means "
        f"and 95 % intervals over seeds ({seeds}; sparse: {tickets.sizes['run']}).",
    )


def accuracy_figure(tickets: xr.Dataset) -> Drawn:
    """Error against density, for the first and the last rewinding step, and their difference."""
    fig, ((first, second, gain),) = panels(3, height=2.3, sharex=True)
    accuracy = accuracies(tickets).sel(control=IMP).transpose("step", "run", "level")
    steps = accuracy["step"].values
    for ax, step in ((first, steps[0]), (second, steps[-1])):
        plots.pruning(tickets.sel(chain=tickets["step"].values == step), ax)
        ax.set_title(f"Rewound to step {step:g}")
        ax.set_yscale("linear")
        value_scale(ax, 100 * tickets["test_error"])  # of all steps, to compare
    density = 100 * tickets["density"].sel(chain=tickets["control"] == IMP).mean(("run", "chain"))
    for number, step in enumerate(steps[1:], start=5):
        gained = (accuracy.sel(step=step) - accuracy.sel(step=steps[0])).values[:, 1:]
        band(gain, density[1:], gained, f"step {step:g}", color=f"C{number}")
    gain.axhline(0, color="0.6", lw=0.6, ls=":")
    gain.set(title=f"Gain over step {steps[0]:g}", xlabel=first.get_xlabel(),
             ylabel="accuracy gained (points)")  # fmt: skip
    gain.legend()
    handles, labels = first.get_legend_handles_labels()
    fig.legend(handles, ["IMP", *labels[1:]], loc="outside upper center", ncols=5)
    return Drawn(
        fig,
        "Test error against the share of weights that survive: iterative magnitude pruning with "
        "rewinding (IMP), and as controls random masks of the same layer densities, the same masks "
        "with new initial weights, and dense networks with as few parameters; right, what later "
        f"rewinding steps change. Means and 95 % intervals over {tickets.sizes['run']} seeds.",
    )


def stability_figure(tickets: xr.Dataset) -> Drawn:
    """Distances by rewinding step, and the densities of layers."""
    fig, ((order, dense, layers),) = panels(3, height=2.2)
    compared = tickets.sel(chain=tickets["control"].isin([IMP, RANDOM]))
    level, chain = tickets.attrs["parted"], str(tickets["chain"].values[0])
    for ax, name, title in (
        (order, "order", "Two orders of the data"),
        (dense, "pruning", "Dense and sparse network"),
    ):
        plots.stability(compared, ax, y=f"{name}_distance", level=level)
        ax.set(title=title, ylabel="distance of surviving weights")
    random = order.get_legend_handles_labels()[0]
    order.legend([order.lines[0], *random], ["IMP", RANDOM])
    plots.layer_densities(tickets, layers, chain=chain)
    layers.set_title("Layers")
    return Drawn(
        fig,
        f"Stability of sparse networks with {share(tickets, level)}, with masks of iterative "
        "magnitude pruning (IMP) or random ones, which were rewound to step k: "
        "Euclidean distance on the surviving weights between two copies that saw the data in other "
        "orders, and between the dense and the sparse network; and the share of weights that "
        f"survives in each layer (IMP, {chain}; dotted: all layers alike). Means and 95 % "
        f"intervals over {tickets.sizes['run']} seeds.",
    )


if __name__ == "__main__":
    run_study(measure, draw, judge)
