"""What happens in the first iterations of training, and what do the weights hold after them?

    python analysis_scripts/early_phase.py --scale small

Frankle, Schwab and Morcos 2020 (arXiv 2002.10365). A dense network is watched through its first
iterations. Then its pruned subnetwork, found by iterative magnitude pruning, is trained from many
starts: the weights at step k, those with other signs, places or noise, and those that come of
pre-training on other tasks.

The small scale has two networks on digits, shallow and with clean images or deep and with noisy
ones, pruned to 2.8 % and 6.9 %, and k = 50 of 600 iterations. The full scale has ResNet-20 at
16.8 % and k = 500 and 2000; networks are pre-trained for the masks of k = 500 alone. That distances
grow or shrink is judged at iterations 0, 1, 2, 4, ... 256, at 10, at k and at the end: between 512
and the end, when the learning rate has fallen, the mean distance to the initial weights is flat, to
5e-5 of its size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import nan
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter
from scipy import stats
from torch import nn

from landscape import Task, checkpoints, models, plots
from landscape.analyses.dynamics import dynamics
from landscape.analyses.subspace import gradient_subspace
from landscape.datasets import Batches
from landscape.experiments import At, During, Run, Seeds, log_spaced, perturbations, pruning
from landscape.experiments.augmentations import Flip, Shift
from landscape.experiments.comparisons import outcomes
from landscape.experiments.deficits import Blur, NoisyLabels
from landscape.experiments.masks import density
from landscape.experiments.perturbations import QuarterTurns
from landscape.experiments.runs import View
from landscape.experiments.schedules import Step
from landscape.results import dataset
from landscape.states import State
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
    log_ticks,
    panels,
    points,
    run_study,
)

# Settings -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A network, how it trains, and how far it is pruned, by a fifth at each level."""

    name: str
    make_model: Callable[..., nn.Module]
    steps: tuple[int, ...] = (50,)
    levels: int = 16
    epochs: int = 40
    lr: float = 0.05
    milestones: tuple[float, ...] = (0.5, 0.75)
    batch_size: int = 64
    head: str = "output.*"
    kept: tuple[str, ...] = ("output.*",)
    noise: float = 0.0
    augmentations: tuple[During, ...] = ()


@dataclass(frozen=True)
class Scale:
    """How large the study is.

    `watched` is the last step of the telemetry but for the end, before the learning rate falls;
    `pretrained` are epochs, `blurred` is a number of pixels, `top` one of eigenvectors.
    """

    networks: tuple[Network, ...]
    num_seeds: int = 8
    num_train: int = 900
    watched: int = 256
    pretrained: tuple[int, ...] = (5, 20)
    blurred: int = 4
    top: int = 10


SHALLOW = Network("shallow", partial(models.mlp, 64, (128, 128), 10))
DEEP = Network("deep", partial(models.mlp, 64, (64,) * 4, 10), levels=12, noise=0.7)
RESNET = Network(
    "resnet20", models.resnet20, steps=(500, 2000), levels=8, epochs=160, lr=0.1,
    milestones=(32 / 63, 48 / 63), batch_size=128, head="head.*", kept=(),
    augmentations=(During(Shift(4)), During(Flip())),
)  # fmt: skip
SCALES = {
    "tiny": Scale(
        (replace(DEEP, steps=(4, 8), levels=1, epochs=3),), num_train=200, watched=8,
        pretrained=(1,), top=2,
    ),
    "small": Scale((SHALLOW, DEEP)),
    "full": Scale(
        (RESNET,), num_seeds=3, watched=4000, pretrained=(2, 10, 40), blurred=8,
    ),
}  # fmt: skip
NUM_SPECTRA = 3  # seeds

PERTURBED = {
    "none": "weights at step k",
    "initial": "weights at step 0",
    "initial-magnitudes": "magnitudes of step 0",
    "initial-signs": "signs of step 0",
    "shuffled-layer": "shuffled in layers",
    "shuffled-layer-signs-kept": "shuffled in layers, signs kept",
    "shuffled-filter": "shuffled in filters",
    "shuffled-filter-signs-kept": "shuffled in filters, signs kept",
    "noise-0.5": "noise, 0.5 σ",
    "noise-1": "noise, 1 σ",
    "noise-2": "noise, 2 σ",
    "noise-3": "noise, 3 σ",
    "reinitialised": "initialised anew",
    "fresh": "pruned layers anew",
}
CORRELATED = [arm for arm in PERTURBED if arm != "fresh"]
TASKS = ("random labels", "rotation", "blur", "blurred rotation")
MASKS = ("pruned", "random", "reinitialised")


# Runs ---------------------------------------------------------------------------------------------

Bases = Mapping[Network, Sequence[Run]]
Arms = Mapping[Any, Run]


@dataclass(frozen=True)
class Ticket:
    """A pruned subnetwork: the dense run, that of the last level, and the initial weights."""

    setting: str
    network: Network
    dense: Run
    run: Run
    initial: State


def dense(scale: Scale, network: Network, seed: int, images: tuple[Batches, Batches] | None) -> Run:
    """The run of the dense network, with the checkpoints at which it is watched."""
    train, test = images or digits(seed, scale.num_train, noise=network.noise)
    return Run(
        name=f"{network.name}/seed-{seed}", make_model=network.make_model, data=train, test=test,
        test_every=network.epochs, epochs=network.epochs, batch_size=network.batch_size,
        last_batch="smaller",
        lr=Step(network.lr, network.milestones, unit="share"), weight_decay=1e-4,
        augmentations=network.augmentations, seeds=Seeds.all(seed),
        checkpoints=(log_spaced(scale.watched), At([10, *network.steps])),
    )  # fmt: skip


def tickets(settings: Settings, bases: Bases) -> list[Ticket]:
    """The subnetworks of each network, step k and seed."""
    found = []
    for network, runs in bases.items():
        chains = [pruning.Chain(step=step, kept=network.kept) for step in network.steps]
        levels = pruning.iterative_pruning(
            runs, chains, settings.runs_folder, levels=network.levels, **settings.options
        )
        found += [
            Ticket(
                f"{network.name}, k = {chain.step}", network, run,
                levels[f"{run.name}/{chain.name}"][-1].run,
                pruning.rewinding_point(settings.runs(f"{run.name}/level-00"), 0).load(),
            )
            for chain in chains
            for run in runs
        ]  # fmt: skip
    return found


def perturbed_starts(one: Ticket) -> Arms:
    """The subnetwork from step k and from other starts; these leave two checkpoints alone."""
    run = replace(one.run, checkpoints=())
    anew = pruning.reinitialised(run)
    assert run.start is not None
    assert anew.start is not None
    states = perturbations.perturbations(
        run.start.state, one.initial, anew.start.state, run.masks, seed=run.seeds.noise
    )
    own = {"none": one.run, "reinitialised": anew}
    return {
        name: own.get(name) or pruning.started_from(run, name, states[name]) for name in PERTURBED
    }


def other_task(one: Ticket, run: Run, task: str, epochs: int, size: int) -> Run:
    """A dense or masked run on another task first, whose images may be blurred to `size` pixels.

    On rotation there are no flips, by which a turn to the left becomes one to the right.
    """
    seed = run.seeds.noise
    views: dict[str, list[View]] = {
        "random labels": [NoisyLabels(1.0, 10, seed)], "rotation": [QuarterTurns(seed)],
        "blur": [Blur(size=size)], "blurred rotation": [Blur(size=size), QuarterTurns(seed)],
    }  # fmt: skip
    first = perturbations.pretraining(
        run, f"{task}-{epochs}".replace(" ", "-"), views[task][0], epochs=epochs,
        lr=one.network.lr, mask=run.masks,
    )  # fmt: skip
    without = Flip if "rotation" in task else ()
    kept = tuple(each for each in run.augmentations if not isinstance(each.what, without))
    return replace(first, views=tuple(map(During, views[task])), augmentations=kept)


def subnetwork(one: Ticket, mask: str) -> Run:
    """The run of a subnetwork from step 0, one of `MASKS`; its learning rate is that of step k."""
    run = replace(one.run, checkpoints=())
    if mask == "reinitialised":
        return pruning.reinitialised(run)
    run = pruning.randomly_pruned(run) if mask == "random" else run
    return pruning.started_from(run, "initial", one.initial)


def after(
    settings: Settings, found: Sequence[Ticket], runs: Sequence[Arms], first: Sequence[Arms]
) -> list[Arms]:
    """The runs of subnetworks from the ends of first runs; the head of rotation is left out."""
    settings.train(listed(first))

    def started(one: Ticket, run: Run, before: Run) -> Run:
        state = checkpoints(settings.runs(before))[-1].load()
        if "rotation" in before.name:
            state = perturbations.with_head(before, state, [one.network.head])
        return pruning.started_from(run, f"after-{before.name.rpartition('/')[2]}", state)

    return [
        {arm: started(one, run, before[arm]) for arm, run in own.items()}
        for one, own, before in zip(found, runs, first, strict=True)
    ]


def listed(runs: Sequence[Arms]) -> list[Run]:
    """The runs of all tickets, arm by arm."""
    return [own[arm] for arm in runs[0] for own in runs]


# Results ------------------------------------------------------------------------------------------


def measure(settings: Settings) -> dict[str, xr.Dataset]:
    """What the first steps look like, and how well subnetworks train from each start."""
    scale = SCALES[settings.scale]
    seeds = settings.seeds(scale.num_seeds)
    images = settings.images() if settings.scale == "full" else None
    bases = {one: [dense(scale, one, seed, images) for seed in seeds] for one in scale.networks}
    settings.check_time(bases[scale.networks[0]][0], planned_epochs(scale, len(seeds)))
    found = tickets(settings, bases)
    of_first = [one for one in found if one.run.first_step == one.network.steps[0]]
    parts: dict[str, tuple[Callable[..., xr.Dataset], Any]] = {
        "telemetry": (telemetry, bases),
        "subspace": (subspace, bases),
        "perturbations": (perturbed, found),
        "pretraining": (pretrained, of_first),
        "sparse-pretraining": (sparsely_pretrained, of_first),
    }
    return {
        name: settings.kept(name, partial(part, settings, of)) for name, (part, of) in parts.items()
    }


def planned_epochs(scale: Scale, num_seeds: int) -> int:
    """The epochs of all runs together, with all levels of pruning."""
    total = 0
    for one in scale.networks:
        runs = 1 + len(one.steps) * (one.levels + len(PERTURBED) - 1)
        runs += len(TASKS) * len(scale.pretrained) + len(MASKS) + 1
        other = len(TASKS) * sum(scale.pretrained) + len(MASKS) * max(scale.pretrained)
        total += num_seeds * (one.epochs * runs + other)
    return total


def telemetry(settings: Settings, bases: Bases) -> xr.Dataset:
    """Loss, gradient and weights through the first steps of the dense networks."""

    def watched(run: Run) -> xr.Dataset:
        saved = checkpoints(settings.runs(f"{run.name}/level-00"))
        found = dynamics(tasks(run), saved, gradients=True, device=settings.device)
        matrices = [{n: t for n, t in one.load().items() if t.ndim > 1} for one in saved]
        moved = dynamics(None, matrices, steps=list(found["step"].values))
        flips = (1 - moved["total_signs_initial"]).assign_attrs(long_name="share of signs flipped")
        return found[["loss", "error"]].assign(
            gradient_norm=found["total_gradient_norm"], sign_flips=flips,
            distance_initial=moved["total_distance_initial"],
            distance_final=moved["total_distance_final"],
        )  # fmt: skip

    return over_networks(bases, watched, title="The first iterations of dense networks")


def subspace(settings: Settings, bases: Bases) -> xr.Dataset:
    """The share of the gradient in the top subspace of the Hessian through the first steps."""
    top = SCALES[settings.scale].top

    def spectrum(run: Run) -> xr.Dataset:
        saved = checkpoints(settings.runs(f"{run.name}/level-00"))
        task, _ = tasks(run)
        found = gradient_subspace(task, saved, top, tolerance=1e-2, device=settings.device)
        chance = top / found.attrs["num_parameters"]
        return found[["gradient_share"]].assign(of_random_directions=chance)

    title = "The gradient in the top subspace of the Hessian"
    few = {network: runs[:NUM_SPECTRA] for network, runs in bases.items()}
    return over_networks(few, spectrum, title=title, top=top)


def tasks(run: Run) -> tuple[Task, Task]:
    """The loss and the error on the first examples of the training set, and on test images."""
    assert run.test is not None
    few = run.data.subset(range(min(5000, run.data.num_examples)))
    task = partial(Task, model=run.build(), loss=nn.CrossEntropyLoss(reduction="none"))
    train = task("train", data=few, metrics={"error": wrong})
    return train, task("test", data=run.test, metrics={"error": wrong})


def over_networks(
    bases: Bases, watch: Callable[[Run], xr.Dataset], *, title: str, **attrs: Any
) -> xr.Dataset:
    """What is measured of each run, along networks and seeds."""
    rows = [xr.concat([watch(run) for run in runs], "seed") for runs in bases.values()]
    seeds = [run.seeds.init for run in next(iter(bases.values()))]
    coords = {"network": [one.name for one in bases], "seed": seeds}
    found: dict[str, Any] = {str(name): one for name, one in xr.concat(rows, "network").items()}
    return dataset(found, coords, analysis="telemetry", title=title, **attrs)


def perturbed(settings: Settings, found: Sequence[Ticket]) -> xr.Dataset:
    """The accuracy of subnetworks from perturbed starts, and how much each start was changed."""
    runs = [perturbed_starts(one) for one in found]
    accuracy = accuracies(settings, found, runs)
    shape, dims = accuracy.shape, ("arm", "setting", "seed")
    changes = perturbations.against_effective_std(
        {arm: [own[arm] for own in runs] for arm in PERTURBED}, settings.runs_folder
    )["effective_std"]
    whole = outcomes([f"{one.dense.name}/level-00" for one in found], settings.runs_folder)
    densities = np.array([density(one.run.masks) for one in found])
    return dataset(
        {
            "accuracy": (dims, accuracy),
            "effective_std": (dims, changes.values.reshape(shape), changes.attrs),
            "dense_accuracy": (dims[1:], whole["test_accuracy"].values.reshape(shape[1:])),
            "density": (dims[1:], densities.reshape(shape[1:])),
        },
        coordinates(found) | {"arm": list(PERTURBED)},
        analysis="perturbations",
        title="Subnetworks from perturbed starts",
    )


def pretrained(settings: Settings, found: Sequence[Ticket]) -> xr.Dataset:
    """The accuracy of subnetworks whose dense network was pre-trained on another task."""
    scale = SCALES[settings.scale]
    grid = list(product(scale.pretrained, TASKS))
    first = [
        {(num, task): other_task(one, one.dense, task, num, scale.blurred) for num, task in grid}
        for one in found
    ]
    runs = [dict.fromkeys(grid, replace(one.run, checkpoints=())) for one in found]
    accuracy = accuracies(settings, found, after(settings, found, runs, first))
    accuracy = accuracy.reshape(len(scale.pretrained), len(TASKS), *accuracy.shape[1:])
    return dataset(
        {"accuracy": (("epochs", "task", "setting", "seed"), accuracy)},
        coordinates(found) | {"epochs": list(scale.pretrained), "task": list(TASKS)},
        analysis="pretraining",
        title="Subnetworks after pre-training on another task",
    )


def sparsely_pretrained(settings: Settings, found: Sequence[Ticket]) -> xr.Dataset:
    """The accuracy of subnetworks that were pre-trained on rotation as subnetworks, and controls.

    The mask is that of pruning, with its own or with new initial weights, or a random one.
    """
    scale = SCALES[settings.scale]
    epochs = max(scale.pretrained)

    def rotation(one: Ticket, run: Run, mask: str) -> Run:
        seeds = replace(one.dense.seeds, init=run.seeds.init)
        own = replace(one.dense, name=f"{one.dense.name}/{mask}", masks=run.masks, seeds=seeds)
        return other_task(one, own, "rotation", epochs, scale.blurred)

    plain = [{mask: subnetwork(one, mask) for mask in MASKS} for one in found]
    first = [
        {mask: rotation(one, run, mask) for mask, run in own.items()}
        for one, own in zip(found, plain, strict=True)
    ]
    both = plain, after(settings, found, plain, first)
    accuracy = np.stack([accuracies(settings, found, runs) for runs in both])
    return dataset(
        {"accuracy": (("before", "mask", "setting", "seed"), accuracy)},
        coordinates(found) | {"before": ["none", "rotation"], "mask": list(MASKS)},
        analysis="sparse pretraining",
        title="Subnetworks pre-trained on rotation",
        epochs=epochs,
    )


def accuracies(settings: Settings, found: Sequence[Ticket], runs: Sequence[Arms]) -> np.ndarray:
    """Test accuracies (arm, setting, seed) of the runs of each ticket, which are trained."""
    pruning.train_masked(listed(runs), settings.runs_folder, **settings.options)
    values = outcomes(listed(runs), settings.runs_folder)["test_accuracy"].values
    return values.reshape(len(runs[0]), len(coordinates(found)["setting"]), -1)


def coordinates(found: Sequence[Ticket]) -> dict[str, list[Any]]:
    """The settings, which are networks and steps k, and the seeds."""
    pairs = [(one.setting, one.dense.seeds.init) for one in found]
    settings, seeds = (list(dict.fromkeys(names)) for names in zip(*pairs, strict=True))
    return {"setting": settings, "seed": seeds}


# Figures ------------------------------------------------------------------------------------------


def draw(results: Results) -> dict[str, Drawn]:
    """The first iterations, the perturbed starts, and the pre-trained ones."""
    return {
        "early_phase_telemetry": draw_telemetry(results["telemetry"], results["subspace"]),
        "early_phase_perturbations": draw_perturbations(results["perturbations"]),
        "early_phase_pretraining": draw_pretraining(results),
    }


def draw_telemetry(found: xr.Dataset, spectra: xr.Dataset) -> Drawn:
    """Six measures along the iterations, a colour for each network."""
    fig, axes = panels(3, 2, height=1.75)
    step, accuracy = found["step"].values, 100 - 100 * found["error"]
    curves = {
        "loss": [found["loss"].sel(split="train")],
        "accuracy (%)": [accuracy.sel(split=split) for split in ("train", "test")],
        "gradient norm": [found["gradient_norm"]],
        "signs flipped (%)": [100 * found["sign_flips"]],
        "distance": [found["distance_initial"], found["distance_final"]],
        f"gradient in top {spectra.attrs['top']} (share)": [],
    }
    *_, last = axes.flat
    for number, name in enumerate(found["network"].values):
        style: dict[str, Any] = {"color": f"C{number}"}
        for ax, own in zip(axes.flat, curves.values(), strict=True):
            for values, line in zip(own, ("-", "--"), strict=False):
                chosen = values.sel(network=name).transpose("seed", "step")
                band(ax, step, chosen, name if line == "-" else None, linestyle=line, **style)
        share = spectra["gradient_share"].sel(network=name).transpose("step", "seed")
        last.plot(step, share, lw=0.5, alpha=0.5, **style)
        last.plot(step, share.mean("seed"), **style)
        chance = spectra["of_random_directions"].sel(network=name).max()
        last.axhline(chance, color="0.6", lw=0.8, ls=":")
    for ax, title in zip(axes.flat, curves, strict=True):
        ax.set_title(title)
        ax.set_xscale("symlog", linthresh=1, linscale=0.4)
        ax.set_xlim(0, step.max())
        ax.set_xticks([0, *(10**n for n in range(int(np.log10(step.max())) + 1))])
        ax.set_xticks([], minor=True)
        log_ticks(ax)
        ax.set_ylim(0, 1 if ax is last else None)
    for ax in axes[-1]:
        ax.set_xlabel("iteration")
    handles, _ = axes[0, 0].get_legend_handles_labels()
    for line, words in {"-": "training set; to the initial weights",
                        "--": "test set; to the final weights"}.items():  # fmt: skip
        handles += last.plot([], [], color="0.3", linestyle=line, label=words)
    fig.legend(handles=handles, loc="outside upper center", ncols=2 if len(handles) > 3 else 3)
    return Drawn(
        fig,
        "The first iterations of training: loss on the training set, accuracy on training and test "
        "set, norm of the gradient of the mean training loss, share of weights whose sign is not "
        "the initial one, distance of the weights to the initial and to the final ones, and share "
        "of the squared gradient norm within the subspace of the largest eigenvalues of the "
        "Hessian (dotted: what random directions hold). Lines are means and bands 95 % intervals "
        f"over {found.sizes['seed']} seeds; in the last panel thin lines are "
        f"{spectra.sizes['seed']} single seeds.",
    )


def draw_perturbations(found: xr.Dataset) -> Drawn:
    """The accuracy from each start above, and against how much was changed below."""
    settings = found["setting"].values
    fig, axes = panels(len(settings), 2, height=2.4)
    for (above, below), setting in zip(axes.T, settings, strict=True):
        own = found.sel(setting=setting)
        change = 100 * (own["accuracy"] - own["accuracy"].sel(arm="none"))
        across(above, {PERTURBED[arm]: change.sel(arm=arm) for arm in list(PERTURBED)[1:]})
        above.set_title(f"{setting}, {100 * float(own['density'].mean()):.1f} % of weights")
        above.set_xlabel("accuracy less that from step k (points)")
        r, counted = correlation(own), own.sel(arm=CORRELATED)
        known = {"test_error": 1 - counted["accuracy"], "correlation": r.mean, "p_value": r.p}
        plots.perturbations(counted.assign(known), below)
    for ax in axes[:, 1:].flat:
        ax.set_ylabel("")
    for ax in axes[0, 1:]:
        ax.set_yticklabels([])
    handles, _ = axes[1, 0].get_legend_handles_labels()
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return Drawn(
        fig,
        "Subnetworks trained from perturbed starts. Above: their test accuracy less that of the "
        "subnetwork from the weights of step k, paired over seeds (grey: seeds; the axis is linear "
        "within one point). Below: accuracy against the standard deviation of the change of the "
        f"surviving weights, a point for each of {len(CORRELATED)} starts (that of step k, and "
        "those above but the last), with Pearson's r of the means. Points are means, bars 95 % "
        f"intervals over {found.sizes['seed']} seeds.",
    )


def across(ax: Axes, values: Mapping[str, xr.DataArray]) -> None:
    """A row for each arm: the mean over seeds with its interval, and the seeds behind."""
    for row, own in enumerate(values.values()):
        ax.plot(own, np.full(own.size, row), "o", color="0.75", ms=2, zorder=1)
        found = effect(own)
        half = found.high - found.mean
        ax.errorbar(found.mean, row, xerr=half, fmt="o", color="C0", ms=3, capsize=2, zorder=2)
    ax.axvline(0, color="0.5", lw=0.8, ls=":", zorder=0)
    ax.set_yticks(range(len(values)), list(values))
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.set_xscale("symlog", linthresh=1)
    ax.xaxis.set_major_locator(FixedLocator([-30, -10, -3, -1, 0, 1, 3, 10, 30]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(ScalarFormatter())


def draw_pretraining(results: Results) -> Drawn:
    """What pre-training of dense networks is worth above, and of subnetworks below."""
    found, sparse = results["pretraining"], results["sparse-pretraining"]
    settings = found["setting"].values
    fig, axes = panels(len(settings), 2, height=2.0)
    for (above, below), setting in zip(axes.T, settings, strict=True):
        reference = results["perturbations"]["accuracy"].sel(setting=setting)
        start = reference.sel(arm="none")
        of_initial = effect(points(reference.sel(arm="initial") - start))
        above.axhspan(of_initial.low, of_initial.high, color="0.9", lw=0, zorder=0)
        own = 100 * (found["accuracy"].sel(setting=setting) - start)
        grouped(above, own.transpose("task", "epochs", "seed"), TASKS, "o")
        above.set_xticks(range(found.sizes["epochs"]), found["epochs"].values)
        above.set(title=setting, xlabel="epochs of pre-training")
        own = 100 * (sparse["accuracy"].sel(setting=setting) - start)
        before = ("not pre-trained", f"rotation, {sparse.attrs['epochs']} epochs")
        grouped(below, own.transpose("before", "mask", "seed"), before, "s", first=4)
        below.set_xticks(range(len(MASKS)), ["own mask", "random mask", "own mask,\nnew weights"])
    for row, words in zip(axes, ("dense network", "subnetwork"), strict=True):
        row[0].set_ylabel(f"{words} pre-trained:\naccuracy (points)")
    above, below = (row[0].get_legend_handles_labels()[0] for row in axes)
    fig.legend(handles=[*above, *below], loc="outside upper center", ncols=3)
    return Drawn(
        fig,
        "Subnetworks that start from pre-trained weights: their accuracy less that from the "
        "weights of step k, paired over seeds. Above: the dense network was pre-trained on random "
        "labels, rotation, blurred images, or the rotation of these (grey: 95 % interval of the "
        "start from step 0). Below: the subnetwork itself was pre-trained on rotation or not at "
        "all, with the mask of pruning, a random one of the same layer densities, or the mask of "
        "pruning and new initial weights. Means and 95 % intervals over "
        f"{found.sizes['seed']} seeds.",
    )


def grouped(
    ax: Axes, values: xr.DataArray, names: Sequence[str], marker: str, *, first: int = 0
) -> None:
    """Values (kind, place, seed): the means of each kind beside each other at each place."""
    for number, (name, own) in enumerate(zip(names, values.values, strict=True)):
        found = [effect(one) for one in own]
        ax.errorbar(
            np.arange(len(found)) + 0.15 * (number - (len(names) - 1) / 2),
            [one.mean for one in found], [one.high - one.mean for one in found], fmt=marker,
            ms=3.5, capsize=2, color=f"C{first + number}", label=name,
        )  # fmt: skip
    ax.axhline(0, color="0.5", lw=0.8, ls=":", zorder=0)
    ax.set_xlim(-0.5, values.shape[1] - 0.5)


# Verdicts -----------------------------------------------------------------------------------------


def judge(results: Results) -> list[Claim]:
    """A verdict on each criterion, for each network or step k."""
    names = ("telemetry", "subspace", "perturbations", "pretraining", "sparse-pretraining")
    seen, spectra, starts, dense_first, sparse_first = (results[name] for name in names)
    claims = []
    for name in seen["network"].values:
        claims += judge_telemetry(name, seen.sel(network=name), spectra.sel(network=name))
    for name in starts["setting"].values:
        claims += judge_perturbations(name, starts.sel(setting=name))
    for name in dense_first["setting"].values:
        own = (one.sel(setting=name) for one in (dense_first, sparse_first, starts))
        claims += judge_pretraining(name, *own)
    return claims


def label_of(setting: str) -> tuple[str, bool]:
    """How criteria are called, and whether they are those of the small scale.

    F1 is the shallow network, F2 the deep one, and F the full scale.
    """
    name, _, step = setting.partition(", ")
    return {"shallow": ("F1", True), "deep": ("F2", True)}.get(name, (f"F {step or name}", False))


def judge_telemetry(name: str, own: xr.Dataset, spectra: xr.Dataset) -> list[Claim]:
    """Signs, distances and gradients of a network; whether they are 0 is no question."""
    label, small = label_of(name)

    def told(claim: str, quantity: str, values: Any, **condition: Any) -> Claim:
        found = replace(effect(values), p=nan)
        return judged(f"{label} telemetry", "early_phase_telemetry", claim, quantity, found,
                      gated=small, **condition)  # fmt: skip

    away, near = (
        np.diff(own[f"distance_{end}"].transpose("seed", "step"), axis=1)
        for end in ("initial", "final")
    )
    gradient = own["gradient_norm"]
    steps = [step for step in spectra["step"].values[:-1] if step >= 10]
    share = points(spectra["gradient_share"].sel(step=steps).mean("step"))
    chance = 100 * float(spectra["of_random_directions"].max())
    return [
        told("a few per cent of the signs flip in the first ten iterations",
             "signs flipped at iteration 10 (%)",
             points(own["sign_flips"].sel(step=10)), at_least=1, at_most=10),
        told("the distance to the initial weights grows through the first iterations",
             "least change between checkpoints of the mean distance to step 0",
             away[:, away.mean(0).argmin()], at_least=0),
        told("the distance to the final weights shrinks through the first iterations",
             "largest change between checkpoints of the mean distance to the end",
             near[:, near.mean(0).argmax()], at_most=0),
        told("the gradient falls at once", "gradient norm at iteration 10, of that at 0 (%)",
             points(gradient.sel(step=10) / gradient.sel(step=0)), at_most=50),
        judged(f"{label} subspace", "early_phase_telemetry",
               f"most of the gradient lies in {spectra.attrs['top']} directions, of which random "
               f"ones hold {chance:.2g} %",
               f"share of the gradient in the top subspace, iterations 10 to {max(steps)} (%)",
               replace(effect(share), p=nan), expected="report"),
    ]  # fmt: skip


def judge_perturbations(setting: str, own: xr.Dataset) -> list[Claim]:
    """What the subnetwork loses from each start."""
    label, small = label_of(setting)
    none = points(own["accuracy"].sel(arm="none"))
    change = {arm: effect(points(own["accuracy"].sel(arm=arm)) - none) for arm in PERTURBED}

    def told(arm: str, claim: str, **condition: Any) -> Claim:
        quantity = f"{PERTURBED[arm]}: accuracy less that from step k (points)"
        return judged(f"{label} {arm}", "early_phase_perturbations", claim, quantity, change[arm],
                      **condition)  # fmt: skip

    three, two, half = (change[f"noise-{size}"].mean for size in ("3", "2", "0.5"))
    signs: dict[str, Any] = {"within": 0.5} if small else {"at_most": -1}
    return [
        told("shuffled-layer", "weights are not exchangeable",
             gated=small, at_most=-0.5, p_below=0.05),
        told("shuffled-layer-signs-kept",
             "signs are enough in a small network" if small else "signs are not enough", **signs),
        told("noise-3", "noise hurts the more the larger it is",
             gated=label == "F2", at_most=-1.5, p_below=0.01,
             also={"3 < 2 < 0.5": three < two < half}),
        told("reinitialised", "the mask needs its weights",
             gated=small, at_most=-1.5, p_below=0.01),
        judged(f"{label} effective std", "early_phase_perturbations",
               "starts are the worse the more they are changed",
               f"Pearson's r of {len(CORRELATED)} arms", correlation(own),
               at_most=-0.4 if small else -0.5),
        told("initial", "what training up to step k is worth", gated=False),
        told("initial-signs", "what the signs of step k are worth", gated=False),
        told("initial-magnitudes", "what the magnitudes of step k are worth", gated=False),
        judged(f"{label} dense", "early_phase_perturbations",
               "what is lost against the dense network",
               "subnetwork from step k less dense network (points)",
               effect(none - points(own["dense_accuracy"])), expected="report"),
    ]  # fmt: skip


def correlation(own: xr.Dataset) -> Effect:
    """Pearson's r of effective standard deviation and accuracy, of means over seeds, by arm."""
    means = own.sel(arm=CORRELATED).mean("seed")
    found = stats.pearsonr(means["effective_std"], means["accuracy"])
    low, high = found.confidence_interval()
    return Effect(float(found.statistic), low, high, float(found.pvalue), own.sizes["seed"])


def judge_pretraining(
    setting: str, own: xr.Dataset, sparse: xr.Dataset, reference: xr.Dataset
) -> list[Claim]:
    """What pre-training on each task is worth, for dense networks and for subnetworks."""
    label, small = label_of(setting)
    last = int(own["epochs"].max())
    none, initial = (points(reference["accuracy"].sel(arm=arm)) for arm in ("none", "initial"))
    found = {task: points(own["accuracy"].sel(task=task, epochs=last)) for task in TASKS}
    gain = sparse["accuracy"].sel(before="rotation") - sparse["accuracy"].sel(before="none")

    def told(task: str, claim: str, **condition: Any) -> Claim:
        quantity = f"{last} epochs of {task}: accuracy less that from step k (points)"
        return judged(f"{label} {task}", "early_phase_pretraining", claim, quantity,
                      effect(found[task] - none), **condition)  # fmt: skip

    def helped(mask: str, words: str) -> Claim:
        quantity = f"{words}: gain by {sparse.attrs['epochs']} epochs of rotation (points)"
        return judged(f"{label} sparse {mask}", "early_phase_pretraining",
                      "what pre-training a subnetwork is worth", quantity,
                      effect(points(gain.sel(mask=mask))), expected="report")  # fmt: skip

    no_better = {"at most step 0": bool(found["random labels"].mean() <= initial.mean())}
    expected = "null" if small else "effect"
    return [
        told("random labels", "wrong labels lead nowhere", gated=not small, also=no_better),
        told("rotation", "labels are not needed to begin",
             within=0.5 if small else 1, expected=expected),
        told("blur", "fine detail is not needed to begin",
             gated=small, within=0.5, expected="null"),
        told("blurred rotation", "neither is needed to begin", gated=False),
        helped("pruned", "the mask of pruning"),
        helped("random", "a random mask"),
        helped("reinitialised", "the mask of pruning and new weights"),
    ]  # fmt: skip


if __name__ == "__main__":
    run_study(measure, draw, judge)
