"""What happens in the first iterations of training, and what do the weights hold after them?

    python analysis_scripts/early_phase.py --scale small

Frankle, Schwab and Morcos 2020 (arXiv 2002.10365). A dense network is watched through its first
iterations. Then its pruned subnetwork, found by iterative magnitude pruning, is trained from many
starts: the weights at step k, those with other signs, places or noise, and those that come of
pre-training on other tasks.

The small scale has two networks on digits, shallow and with clean images or deep and with noisy
ones, pruned to 2.8 % and 6.9 %, and k = 50 of 600 iterations. The full scale has ResNet-20 at
16.8 % and k = 500 and 2000; networks are pre-trained for the masks of k = 500 alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter
from scipy import stats
from torch import Tensor, nn

from landscape import Task, checkpoints, models, plots
from landscape.analyses.dynamics import dynamics
from landscape.analyses.subspace import gradient_subspace
from landscape.datasets import Batches
from landscape.experiments import At, During, Run, Seeds, log_spaced
from landscape.experiments.augmentations import Flip, Shift
from landscape.experiments.branches import last_checkpoint
from landscape.experiments.deficits import Blur, NoisyLabels
from landscape.experiments.masks import density, save_mask
from landscape.experiments.perturbations import (
    QuarterTurns,
    against_effective_std,
    perturbations,
    perturbed_runs,
    pretraining,
    with_head,
)
from landscape.experiments.pruning import (
    Chain,
    Level,
    iterative_pruning,
    randomly_pruned,
    reinitialised,
    rewinding_point,
    sparsity_curve,
    started_from,
)
from landscape.experiments.schedules import Step
from landscape.results import dataset
from landscape.states import State
from landscape.task import wrong
from shared import (
    Claim,
    Drawn,
    Effect,
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
    label: str
    make_model: Callable[..., nn.Module]
    head: str
    kept: tuple[str, ...]
    steps: tuple[int, ...]
    levels: int
    epochs: int
    lr: float
    milestones: tuple[float, ...]
    batch_size: int = 64
    noise: float = 0.0
    augmentations: tuple[During, ...] = ()


@dataclass(frozen=True)
class Scale:
    """How large the study is.

    `watched` is the last step of the telemetry but for the end, before the learning rate falls;
    `pretrained` are epochs; `top` is the number of eigenvectors of the Hessian.
    """

    networks: tuple[Network, ...]
    num_seeds: int
    num_train: int
    pretrained: tuple[int, ...]
    blurred: int
    watched: int
    num_spectra: int
    top: int
    num_measured: int


OF_DIGITS: dict[str, Any] = {
    "head": "output.*", "kept": ("output.*",), "lr": 0.05, "milestones": (0.5, 0.75)
}  # fmt: skip
SHALLOW = Network(
    "shallow", "shallow, k = 50", partial(models.mlp, 64, (128, 128), 10),
    steps=(50,), levels=16, epochs=40, **OF_DIGITS,
)  # fmt: skip
DEEP = Network(
    "deep", "deep, k = 50", partial(models.mlp, 64, (64,) * 4, 10),
    steps=(50,), levels=12, epochs=40, noise=0.7, **OF_DIGITS,
)  # fmt: skip
RESNET = Network(
    "resnet20", "k = {}", models.resnet20, head="head.*", kept=(), steps=(500, 2000), levels=8,
    epochs=160, lr=0.1, milestones=(32 / 63, 48 / 63), batch_size=128,
    augmentations=(During(Shift(4)), During(Flip())),
)  # fmt: skip
SCALES = {
    "tiny": Scale(
        tuple(replace(one, steps=(8,), levels=1, epochs=4) for one in (SHALLOW, DEEP)),
        num_seeds=2, num_train=300, pretrained=(1,), blurred=4, watched=20, num_spectra=2, top=2,
        num_measured=100,
    ),
    "small": Scale(
        (SHALLOW, DEEP), num_seeds=8, num_train=900, pretrained=(5, 20), blurred=4, watched=256,
        num_spectra=3, top=10, num_measured=900,
    ),
    "full": Scale(
        (RESNET,), num_seeds=3, num_train=0, pretrained=(2, 10, 40), blurred=8, watched=4000,
        num_spectra=3, top=10, num_measured=5000,
    ),
}  # fmt: skip

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
PRETRAINED = ("random labels", "rotation", "blur", "blurred rotation")
PRUNED = ("pruned", "random", "reinitialised")


Images = tuple[Batches, Batches]


# Runs ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ticket:
    """A pruned subnetwork: the run it comes from, its last level, and the states it is made of."""

    network: Network
    run: Run
    level: Level
    rewound: State
    initial: State


@dataclass(frozen=True)
class BlurredTurns:
    """Images that are blurred to `size` pixels and then turned, with the turns as labels."""

    size: int
    seed: int = 0

    def __call__(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The images and their labels 0 to 3."""
        return QuarterTurns(self.seed)(*Blur(size=self.size)(inputs, targets))


def dense(scale: Scale, network: Network, seed: int, images: Images | None) -> Run:
    """The run of the dense network, with the checkpoints at which it is watched."""
    train, test = images or digits(seed, scale.num_train, noise=network.noise)
    return Run(
        name=f"{network.name}/seed-{seed}",
        make_model=network.make_model,
        data=train,
        test=test,
        test_every=network.epochs,
        epochs=network.epochs,
        batch_size=network.batch_size,
        lr=Step(network.lr, network.milestones, unit="share"),
        weight_decay=1e-4,
        augmentations=network.augmentations,
        seeds=Seeds.all(seed),
        checkpoints=(log_spaced(scale.watched), At([10, *network.steps])),
    )


def tickets(settings: Settings, bases: Mapping[Network, Sequence[Run]]) -> dict[str, list[Ticket]]:
    """The subnetworks of each network and step k, one for each seed, by their label."""
    found: dict[str, list[Ticket]] = {}
    for network, runs in bases.items():
        chains = [Chain(step=step, kept=network.kept) for step in network.steps]
        levels = iterative_pruning(
            runs, chains, settings.folder / "runs", levels=network.levels, device=settings.device,
            stack="auto" if settings.scale == "full" else 24, progress=settings.progress,
        )  # fmt: skip
        for step, chain in zip(network.steps, chains, strict=True):
            label = network.label.format(step)
            for run in runs:
                folder = settings.runs(f"{run.name}/level-00")
                rewound, initial = (rewinding_point(folder, at).load() for at in (step, 0))
                last = levels[f"{run.name}/{chain.name}"][-1]
                own = Ticket(network, run, last, rewound, initial)
                found.setdefault(label, []).append(own)
    return found


def train_subnetworks(settings: Settings, runs: Sequence[Run]) -> None:
    """Train masked runs, with the mask of each beside its checkpoints."""
    for run in runs:
        save_mask(run.masks, settings.runs(run))
    settings.train(runs, stack=None if settings.scale == "full" else 48)


# Measurements -------------------------------------------------------------------------------------


def measure(settings: Settings) -> dict[str, xr.Dataset]:
    """What the first steps look like, and how well subnetworks train from each start."""
    scale = SCALES[settings.scale]
    seeds = settings.seeds(scale.num_seeds)
    images = settings.images() if settings.scale == "full" else None
    bases = {one: [dense(scale, one, seed, images) for seed in seeds] for one in scale.networks}
    settings.check_time(bases[scale.networks[0]][0], planned_epochs(scale, len(seeds)))
    found = tickets(settings, bases)
    of_first = {
        label: own
        for label, own in found.items()
        if own[0].level.run.first_step == own[0].network.steps[0]
    }
    parts: dict[str, Callable[[], xr.Dataset]] = {
        "telemetry": lambda: telemetry(settings, bases),
        "subspace": lambda: subspace(settings, bases),
        "perturbations": lambda: perturbed(settings, found),
        "pretraining": lambda: pretrained(settings, of_first),
        "sparse-pretraining": lambda: sparsely_pretrained(settings, of_first),
    }
    return {name: settings.kept(name, compute) for name, compute in parts.items()}


def planned_epochs(scale: Scale, num_seeds: int) -> float:
    """The epochs of all runs together, with all levels of pruning."""
    total = 0.0
    for one in scale.networks:
        subnetworks = len(one.steps) * (one.levels + len(PERTURBED) - 1)
        subnetworks += len(PRETRAINED) * len(scale.pretrained) + len(PRUNED) + 1
        other = len(PRETRAINED) * sum(scale.pretrained) + len(PRUNED) * max(scale.pretrained)
        total += num_seeds * (one.epochs * (1 + subnetworks) + other)
    return total


def telemetry(settings: Settings, bases: Mapping[Network, Sequence[Run]]) -> xr.Dataset:
    """Loss, gradient and weights through the first steps of the dense networks."""
    names = {
        "loss": "loss", "error": "error", "gradient_norm": "gradient norm",
        "sign_flips": "weights whose sign is not the initial one",
        "distance_initial": "distance to the initial weights",
        "distance_final": "distance to the final weights",
    }  # fmt: skip
    rows = [[_watched(settings, run) for run in runs] for runs in bases.values()]
    found = xr.concat([xr.concat(own, "seed") for own in rows], "network")
    return dataset(
        {name: (found[name].dims, found[name].values, {"long_name": names[name]})
         for name in names},
        _coords(bases) | {"split": ["train", "test"], "step": found["step"].values},
        analysis="telemetry",
        title="The first iterations of dense networks",
        scale=settings.scale,
    )  # fmt: skip


def _watched(settings: Settings, run: Run) -> xr.Dataset:
    """The telemetry of one network; signs and distances are those of matrices and filters."""
    saved = checkpoints(settings.runs(f"{run.name}/level-00"))
    measured = dynamics(_tasks(settings, run), saved, gradients=True, device=settings.device)
    matrices = [{n: t for n, t in one.load().items() if t.ndim > 1} for one in saved]
    moved = dynamics(None, matrices)
    return xr.Dataset({
        "loss": measured["loss"],
        "error": measured["error"],
        "gradient_norm": measured["total_gradient_norm"],
        "distance_initial": ("step", moved["total_distance_initial"].values),
        "distance_final": ("step", moved["total_distance_final"].values),
        "sign_flips": ("step", 1 - moved["total_signs_initial"].values),
    }).drop_vars("split")  # fmt: skip


def _tasks(settings: Settings, run: Run) -> tuple[Task, Task]:
    """The loss and the error on the first examples of the training set, and on test images."""
    num = min(SCALES[settings.scale].num_measured, run.data.num_examples)
    assert run.test is not None
    parts = {"train": run.data.subset(range(num)), "test": run.test}
    loss = nn.CrossEntropyLoss(reduction="none")
    model = run.build()
    train, test = (Task(name, model, loss, data, {"error": wrong}) for name, data in parts.items())
    return train, test


def subspace(settings: Settings, bases: Mapping[Network, Sequence[Run]]) -> xr.Dataset:
    """The share of the gradient in the top subspace of the Hessian through the first steps."""
    scale = SCALES[settings.scale]
    rows = [
        xr.concat([_spectrum(settings, run) for run in runs[: scale.num_spectra]], "seed")
        for runs in bases.values()
    ]
    found = xr.concat(rows, "network")
    coords = _coords(bases)
    return dataset(
        {
            "gradient_share": (
                found["gradient_share"].dims, found["gradient_share"].values,
                {"long_name": f"share of the gradient in the top {scale.top} directions"},
            ),
            "eigenvalue": (
                found["eigenvalue"].dims, found["eigenvalue"].values,
                {"long_name": "largest eigenvalues of the Hessian"},
            ),
            "of_random_directions": ("network", [row.attrs["top"] for row in rows]),
        },
        coords | {"seed": coords["seed"][: scale.num_spectra], "step": found["step"].values},
        analysis="gradient subspace",
        title="The gradient in the top subspace of the Hessian",
        scale=settings.scale,
        top=scale.top,
    )  # fmt: skip


def _spectrum(settings: Settings, run: Run) -> xr.Dataset:
    saved = checkpoints(settings.runs(f"{run.name}/level-00"))
    top, device = SCALES[settings.scale].top, settings.device
    task, _ = _tasks(settings, run)
    found = gradient_subspace(task, saved, top, tolerance=1e-2, device=device)
    return found.assign_attrs(top=top / found.attrs["num_parameters"])


def perturbed(settings: Settings, found: Mapping[str, Sequence[Ticket]]) -> xr.Dataset:
    """The accuracy of subnetworks from perturbed starts, and how much each start was changed."""
    arms = {label: _perturbed_arms(own) for label, own in found.items()}
    train_subnetworks(settings, [run for own in arms.values() for runs in own.values()
                                 for run in runs])  # fmt: skip
    results = [against_effective_std(own, settings.folder / "runs") for own in arms.values()]
    dense_runs = [[f"{one.run.name}/level-00" for one in own] for own in found.values()]
    return dataset(
        {
            "accuracy": (
                ("setting", "arm", "seed"),
                np.stack([1 - one["test_error"].values for one in results]),
                {"long_name": "test accuracy"},
            ),
            "effective_std": (
                ("setting", "arm", "seed"),
                np.stack([one["effective_std"].values for one in results]),
                {"long_name": "effective standard deviation"},
            ),
            "dense_accuracy": (
                ("setting", "seed"),
                np.stack([_accuracies(settings, runs) for runs in dense_runs]),
            ),
            "density": ("setting", [density(own[0].level.mask) for own in found.values()]),
        },
        _coords(found) | {"arm": list(PERTURBED)},
        analysis="perturbations",
        title="Subnetworks from perturbed starts",
        scale=settings.scale,
    )


def _perturbed_arms(own: Sequence[Ticket]) -> dict[str, list[Run]]:
    """The runs of each arm. The subnetwork itself, trained from step k, is the first."""
    arms: dict[str, list[Run]] = {name: [] for name in PERTURBED}
    for one in own:
        anew = _without_checkpoints(reinitialised(one.level.run))
        assert anew.start is not None
        states = perturbations(
            one.rewound, one.initial, anew.start.state, one.level.mask,
            seed=one.run.seeds.noise,
        )  # fmt: skip
        states = {name: states[name] for name in PERTURBED if name in states and name != "none"}
        runs = perturbed_runs(_without_checkpoints(one.level.run), states)
        for name, run in {"none": one.level.run, **dict(zip(states, runs, strict=True)),
                          "reinitialised": anew}.items():  # fmt: skip
            arms[name].append(run)
    return arms


def _without_checkpoints(run: Run) -> Run:
    """The run with its first and last checkpoints alone."""
    return replace(run, checkpoints=())


def pretrained(settings: Settings, found: Mapping[str, Sequence[Ticket]]) -> xr.Dataset:
    """The accuracy of subnetworks whose dense network was pre-trained on another task."""
    epochs = SCALES[settings.scale].pretrained
    begun = {
        (label, name, num): [
            pretraining(_unflipped(one.run) if "rotation" in name else one.run,
                        f"{name}-{num}".replace(" ", "-"),
                        _view(settings, name, one.run.seeds.noise), epochs=num, lr=one.network.lr)
            for one in own
        ]
        for num in epochs
        for label, own in found.items()
        for name in PRETRAINED
    }  # fmt: skip
    ends = _ends(settings, [run for runs in begun.values() for run in runs])
    arms = {
        key: [
            started_from(
                _without_checkpoints(one.level.run), f"after-{run.name.rpartition('/')[2]}",
                with_head(one.run, ends[run.name], [one.network.head])
                if "rotation" in key[1] else ends[run.name],
            )
            for one, run in zip(found[key[0]], runs, strict=True)
        ]
        for key, runs in begun.items()
    }  # fmt: skip
    train_subnetworks(settings, [run for runs in arms.values() for run in runs])
    values = [
        [[_accuracies(settings, arms[label, name, num]) for num in epochs] for name in PRETRAINED]
        for label in found
    ]
    return dataset(
        {
            "accuracy": (
                ("setting", "task", "epochs", "seed"), np.array(values),
                {"long_name": "test accuracy"},
            )
        },
        _coords(found) | {
            "task": list(PRETRAINED),
            "epochs": ("epochs", list(epochs), {"long_name": "epochs of pre-training"}),
        },
        analysis="pretraining",
        title="Subnetworks after pre-training on another task",
        scale=settings.scale,
    )  # fmt: skip


def _unflipped(run: Run) -> Run:
    """The run without flips, by which a turn to the left becomes one to the right."""
    kept = tuple(one for one in run.augmentations if not isinstance(one.what, Flip))
    return replace(run, augmentations=kept)


def _view(settings: Settings, name: str, seed: int) -> Any:
    """The data of a task of pre-training."""
    size = SCALES[settings.scale].blurred
    views = {
        "random labels": NoisyLabels(1.0, 10, seed),
        "rotation": QuarterTurns(seed),
        "blur": Blur(size=size),
        "blurred rotation": BlurredTurns(size, seed),
    }
    return views[name]


def sparsely_pretrained(settings: Settings, found: Mapping[str, Sequence[Ticket]]) -> xr.Dataset:
    """The accuracy of subnetworks that were pre-trained on rotation as subnetworks, and controls.

    The mask is that of pruning, with its own or with new initial weights, or a random one.
    """
    epochs = max(SCALES[settings.scale].pretrained)
    tickets = [one for own in found.values() for one in own]
    plain = {name: [_subnetwork(one, name) for one in tickets] for name in PRUNED}
    begun = {
        name: [
            pretraining(
                replace(_unflipped(one.run), seeds=replace(one.run.seeds, init=run.seeds.init)),
                f"rotation-{epochs}-{name}", QuarterTurns(one.run.seeds.noise),
                epochs=epochs, lr=one.network.lr, mask=run.masks,
            )
            for one, run in zip(tickets, runs, strict=True)
        ]
        for name, runs in plain.items()
    }  # fmt: skip
    ends = _ends(settings, [run for runs in begun.values() for run in runs])
    after = {
        name: [
            started_from(
                run, "after-rotation", with_head(first, ends[first.name], [one.network.head])
            )
            for one, run, first in zip(tickets, runs, begun[name], strict=True)
        ]
        for name, runs in plain.items()
    }
    arms = {"none": plain, "rotation": after}
    train_subnetworks(settings, [r for own in arms.values() for runs in own.values() for r in runs])
    values = np.array(
        [[_accuracies(settings, own[name]) for own in arms.values()] for name in PRUNED]
    )  # (mask, before, setting and seed)
    shape = len(found), len(tickets) // len(found)
    return dataset(
        {
            "accuracy": (
                ("mask", "before", "setting", "seed"),
                values.reshape(*values.shape[:2], *shape),
                {"long_name": "test accuracy"},
            )
        },
        _coords(found) | {"mask": list(PRUNED), "before": list(arms)},
        analysis="sparse pretraining",
        title="Subnetworks pre-trained on rotation",
        scale=settings.scale,
        epochs=epochs,
    )


def _subnetwork(one: Ticket, name: str) -> Run:
    """The run of a subnetwork from step 0, one of `PRUNED`; its learning rate is that of step k."""
    run = _without_checkpoints(one.level.run)
    if name == "reinitialised":
        return reinitialised(run)
    return started_from(run if name == "pruned" else randomly_pruned(run), "initial", one.initial)


def _ends(settings: Settings, runs: Sequence[Run]) -> dict[str, State]:
    """The last states of runs, by name."""
    return {end.name: last_checkpoint(end).load() for end in settings.train(runs)}


def _accuracies(settings: Settings, runs: Sequence[Run | str]) -> np.ndarray:
    """Test accuracies at the end of runs."""
    return 1 - sparsity_curve(runs, settings.folder / "runs")["test_error"].values


def _coords(of: Mapping[Any, Sequence[Any]]) -> dict[str, list[Any]]:
    """Coordinates of networks (or settings) and of seeds."""
    runs = [one if isinstance(one, Run) else one.run for one in next(iter(of.values()))]
    seeds = [run.seeds.init for run in runs]
    if all(isinstance(one, Network) for one in of):
        return {"network": [one.name for one in of], "seed": seeds}
    return {"setting": list(of), "seed": seeds}


# Figures ------------------------------------------------------------------------------------------

Results = Mapping[str, xr.Dataset]


def draw(results: Results) -> dict[str, Drawn]:
    """The first iterations, the perturbed starts, and the pre-trained ones."""
    return {
        "early_phase_telemetry": _draw_telemetry(results["telemetry"], results["subspace"]),
        "early_phase_perturbations": _draw_perturbations(results["perturbations"]),
        "early_phase_pretraining": _draw_pretraining(results),
    }


def _draw_telemetry(found: xr.Dataset, spectra: xr.Dataset) -> Drawn:
    fig, axes = panels(3, 2, height=1.75)
    step, train = found["step"].values, found.sel(split="train")
    curves: list[tuple[str, Sequence[tuple[xr.DataArray, str]]]] = [
        ("loss", [(train["loss"], "-")]),
        ("accuracy (%)", [(100 - 100 * found["error"].sel(split=split), style)
                          for split, style in (("train", "-"), ("test", "--"))]),
        ("gradient norm", [(found["gradient_norm"], "-")]),
        ("signs flipped (%)", [(100 * found["sign_flips"], "-")]),
        ("distance", [(found["distance_initial"], "-"), (found["distance_final"], "--")]),
        (f"gradient in top {spectra.attrs['top']} (share)", [(spectra["gradient_share"], "-")]),
    ]  # fmt: skip
    for ax, (title, own) in zip(axes.ravel(), curves, strict=True):
        for number, name in enumerate(found["network"].values):
            for values, style in own:
                chosen = values.sel(network=name).transpose("seed", "step")
                label = str(name) if style == "-" else None
                if values.name != "gradient_share":
                    band(ax, step, chosen, label, color=f"C{number}", linestyle=style)
                else:
                    ax.plot(step, chosen.T, color=f"C{number}", lw=0.5, alpha=0.5)
                    ax.plot(step, chosen.mean("seed"), color=f"C{number}")
        ax.set_title(title)
        ax.set_xscale("symlog", linthresh=1, linscale=0.4)
        ax.set_xlim(0, step.max())
        ax.set_xticks([0, *(10**n for n in range(int(np.log10(step.max())) + 1))])
        ax.set_xticks([], minor=True)
        log_ticks(ax)
        ax.set_ylim(bottom=0)
    for ax in axes[-1]:
        ax.set_xlabel("iteration")
    for share in spectra["of_random_directions"].values:
        axes[1, 2].axhline(share, color="0.6", lw=0.8, ls=":")
    axes[1, 2].set_ylim(0, 1)
    handles, _ = axes[0, 0].get_legend_handles_labels()
    for style, words in (("-", "training set; to the initial weights"),
                         ("--", "test set; to the final weights")):  # fmt: skip
        handles += axes[0, 0].plot([], [], color="0.3", linestyle=style, label=words)
    fig.legend(handles=handles, loc="outside upper center", ncols=2 if len(handles) > 3 else 3)
    num = found.sizes["seed"]
    return Drawn(
        fig,
        "The first iterations of training: loss on the training set, accuracy on training and test "
        "set, norm of the gradient of the mean training loss, share of weights whose sign is not "
        "the initial one, distance of the weights to the initial and to the final ones, and share "
        "of the squared gradient norm within the subspace of the largest eigenvalues of the "
        "Hessian (dotted: what random directions hold). Lines are means and bands 95 % intervals "
        f"over {num} seeds; in the last panel thin lines are {spectra.sizes['seed']} single seeds.",
    )


def _draw_perturbations(found: xr.Dataset) -> Drawn:
    settings = found["setting"].values
    fig, axes = panels(len(settings), 2, height=2.4)
    for (above, below), setting in zip(axes.T, settings, strict=True):
        own = found.sel(setting=setting)
        change = 100 * (own["accuracy"] - own["accuracy"].sel(arm="none"))
        arms = {arm: words for arm, words in PERTURBED.items() if arm != "none"}
        _across(above, {words: change.sel(arm=arm).values for arm, words in arms.items()})
        above.set_title(f"{setting}, {100 * float(own['density']):.1f} % of weights")
        above.set_xlabel("accuracy less that from step k (points)")
        r, counted = correlation(own), own.sel(arm=CORRELATED)
        known = {"test_error": 1 - counted["accuracy"], "correlation": r.mean, "p_value": r.p}
        plots.perturbations(counted.assign(known), below)
    for row in axes:
        for ax in row[1:]:
            ax.set_ylabel("")
    for ax in axes[0, 1:]:
        ax.set_yticklabels([])
    handles = axes[1, 0].get_legend_handles_labels()[0]
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return Drawn(
        fig,
        "Subnetworks trained from perturbed starts. Above: their test accuracy less that of the "
        "subnetwork from the weights of step k, paired over seeds (grey: seeds; the axis is linear "
        "within one point). Below: accuracy against the standard deviation of the change of the "
        f"surviving weights, a point for each of {len(CORRELATED)} arms (all but the last one "
        "above), with Pearson's r of the means. Points are means, bars 95 % intervals over "
        f"{found.sizes['seed']} seeds.",
    )


def _across(ax: Axes, values: Mapping[str, np.ndarray]) -> None:
    """A row for each arm: the mean over seeds with its interval, and the seeds behind."""
    for row, own in enumerate(values.values()):
        ax.plot(own, np.full(len(own), row), "o", color="0.75", ms=2, zorder=1)
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


def _draw_pretraining(results: Results) -> Drawn:
    found, sparse = results["pretraining"], results["sparse-pretraining"]
    reference = results["perturbations"]["accuracy"]
    settings = found["setting"].values
    fig, axes = panels(len(settings), 2, height=2.0)
    for (above, below), setting in zip(axes.T, settings, strict=True):
        start = reference.sel(setting=setting, arm="none")
        change = 100 * (found["accuracy"].sel(setting=setting) - start)
        of_initial = effect(points(reference.sel(setting=setting, arm="initial") - start))
        above.axhspan(of_initial.low, of_initial.high, color="0.9", lw=0, zorder=0)
        _grouped(above, change.transpose("task", "epochs", "seed"), PRETRAINED, "o")
        above.set_xticks(range(found.sizes["epochs"]), found["epochs"].values)
        above.set(title=str(setting), xlabel="epochs of pre-training")
        own = 100 * (sparse["accuracy"].sel(setting=setting) - start)
        before = ("not pre-trained", f"rotation, {sparse.attrs['epochs']} epochs")
        _grouped(below, own.transpose("before", "mask", "seed"), before, "s", first=4)
        below.set_xticks(range(len(PRUNED)), ["own mask", "random mask", "own mask,\nnew weights"])
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


def _grouped(
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

CORRELATED = [arm for arm in PERTURBED if arm != "fresh"]
SMALL: dict[str, dict[str, Any]] = {
    "flips": {"at_least": 1, "at_most": 10},
    "away": {"at_least": 0},
    "near": {"at_most": 0},
    "gradient": {"at_most": 50},
    "shuffled-layer": {"at_most": -0.5, "p_below": 0.05},
    "shuffled-layer-signs-kept": {"within": 0.5},
    "reinitialised": {"at_most": -1.5, "p_below": 0.01},
    "correlation": {"at_most": -0.4},
    "rotation": {"within": 0.5, "expected": "null"},
    "blur": {"within": 0.5, "expected": "null"},
}
CONDITIONS: dict[str, dict[str, dict[str, Any]]] = {
    "F1": SMALL,
    "F2": SMALL | {"noise-3": {"at_most": -1.5, "p_below": 0.01}},
    "F": {
        "shuffled-layer-signs-kept": {"at_most": -1},
        "correlation": {"at_most": -0.5},
        "rotation": {"within": 1},
        "random labels": {},
    },
}
REPORTED = {"expected": "report"}


def correlation(own: xr.Dataset) -> Effect:
    """Pearson's r of effective standard deviation and accuracy, of means over seeds, by arm."""
    chosen = own.sel(arm=[arm for arm in own["arm"].values if arm in CORRELATED]).mean("seed")
    found = stats.pearsonr(chosen["effective_std"], chosen["accuracy"])
    low, high = found.confidence_interval()
    return Effect(float(found.statistic), low, high, float(found.pvalue), own.sizes["seed"])


def judge(results: Results) -> list[Claim]:
    """A verdict on each criterion, for each network or step k."""
    claims = []
    for name in results["telemetry"]["network"].values:
        claims += _judge_telemetry(results["telemetry"].sel(network=name), str(name))
        claims += _judge_subspace(results["subspace"].sel(network=name), str(name))
    for setting in results["perturbations"]["setting"].values:
        own = results["perturbations"].sel(setting=setting)
        claims += _judge_perturbations(own, str(setting))
    for setting in results["pretraining"]["setting"].values:
        reference = results["perturbations"]["accuracy"].sel(setting=setting)
        found = results["pretraining"].sel(setting=setting)
        claims += _judge_pretraining(found, reference, str(setting))
        sparse = results["sparse-pretraining"].sel(setting=setting)
        claims += _judge_sparse(sparse, str(setting))
    return claims


def _judge_telemetry(own: xr.Dataset, name: str) -> list[Claim]:
    def told(what: str, claim: str, quantity: str, found: Effect) -> Claim:
        return judged(f"{_label(name)} telemetry", "early_phase_telemetry", claim, quantity,
                      _without_p(found), **_conditions(name).get(what, REPORTED))  # fmt: skip

    at_ten, at_zero = own.sel(step=10), own.sel(step=0)
    away = np.diff(own["distance_initial"].transpose("seed", "step").values, axis=1)
    near = np.diff(own["distance_final"].transpose("seed", "step").values, axis=1)
    return [
        told("flips", "a few per cent of the signs flip in the first ten iterations",
             "signs flipped at iteration 10 (%)", effect(points(at_ten["sign_flips"]))),
        told("away", "the distance to the initial weights grows through the first iterations",
             "least change between checkpoints of the mean distance to step 0",
             effect(away[:, away.mean(0).argmin()])),
        told("near", "the distance to the final weights shrinks through the first iterations",
             "largest change between checkpoints of the mean distance to the end",
             effect(near[:, near.mean(0).argmax()])),
        told("gradient", "the gradient falls at once",
             "gradient norm at iteration 10, of that at 0 (%)",
             effect(points(at_ten["gradient_norm"] / at_zero["gradient_norm"]))),
    ]  # fmt: skip


def _without_p(found: Effect) -> Effect:
    """An effect whose being 0 is no question."""
    return replace(found, p=float("nan"))


def _judge_subspace(own: xr.Dataset, name: str) -> list[Claim]:
    steps = [step for step in own["step"].values[:-1] if step >= 10]
    share = own["gradient_share"].sel(step=steps)
    chance = float(own["of_random_directions"])
    return [
        judged(
            f"{_label(name)} subspace", "early_phase_telemetry",
            f"most of the gradient lies in {own.attrs['top']} directions, of which random ones "
            f"hold {100 * chance:.2g} %",
            f"share of the gradient in the top subspace, iterations 10 to {max(steps)} (%)",
            _without_p(effect(points(share.mean("step")))), expected="report",
        )
    ]  # fmt: skip


def _judge_perturbations(own: xr.Dataset, setting: str) -> list[Claim]:
    accuracy = {str(arm): points(own["accuracy"].sel(arm=arm)) for arm in own["arm"].values}
    change = {arm: effect(values - accuracy["none"]) for arm, values in accuracy.items()}
    means = [change[f"noise-{size}"].mean for size in ("3", "2", "0.5")]
    conditions, label = _conditions(setting), _label(setting)
    small = label in ("F1", "F2")

    def told(arm: str, claim: str, **also: bool) -> Claim:
        condition = conditions.get(arm, REPORTED)
        if arm in conditions and also:
            condition = condition | {"also": also}
        quantity = f"{PERTURBED[arm]}: accuracy less that from step k (points)"
        return judged(f"{label} {arm}", "early_phase_perturbations", claim, quantity,
                      change[arm], **condition)  # fmt: skip

    ordered = {"3 < 2 < 0.5": means[0] < means[1] < means[2]}
    of_dense = effect(accuracy["none"] - points(own["dense_accuracy"]))
    return [
        told("shuffled-layer", "weights are not exchangeable"),
        told("shuffled-layer-signs-kept",
             "signs are enough in a small network" if small else "signs are not enough"),
        told("noise-3", "noise hurts the more the larger it is", **ordered),
        told("reinitialised", "the mask needs its weights"),
        judged(f"{label} effective std", "early_phase_perturbations",
               "starts are the worse the more they are changed",
               f"Pearson's r of {len(CORRELATED)} arms", correlation(own),
               **conditions.get("correlation", REPORTED)),
        told("initial", "what training up to step k is worth"),
        told("initial-signs", "what the signs of step k are worth"),
        told("initial-magnitudes", "what the magnitudes of step k are worth"),
        judged(f"{label} dense", "early_phase_perturbations",
               "the subnetwork is as good as the dense network",
               "subnetwork from step k less dense network (points)", of_dense, expected="report"),
    ]  # fmt: skip


def _judge_pretraining(own: xr.Dataset, reference: xr.DataArray, setting: str) -> list[Claim]:
    last, conditions = int(own["epochs"].max()), _conditions(setting)
    none, initial = (points(reference.sel(arm=arm)) for arm in ("none", "initial"))
    found = {task: points(own["accuracy"].sel(task=task, epochs=last)) for task in PRETRAINED}

    def told(task: str, claim: str, **also: bool) -> Claim:
        condition = conditions.get(task, REPORTED)
        if task in conditions and also:
            condition = condition | {"also": also}
        quantity = f"{last} epochs of {task}: accuracy less that from step k (points)"
        return judged(f"{_label(setting)} {task}", "early_phase_pretraining", claim, quantity,
                      effect(found[task] - none), **condition)  # fmt: skip

    no_better = {"at most step 0": bool(found["random labels"].mean() <= initial.mean())}
    return [
        told("random labels", "wrong labels lead nowhere", **no_better),
        told("rotation", "labels are not needed to begin"),
        told("blur", "fine detail is not needed to begin"),
        told("blurred rotation", "neither is needed to begin"),
    ]


def _judge_sparse(own: xr.Dataset, setting: str) -> list[Claim]:
    gain = own["accuracy"].sel(before="rotation") - own["accuracy"].sel(before="none")
    words = {"pruned": "the mask of pruning", "random": "a random mask",
             "reinitialised": "the mask of pruning and new weights"}  # fmt: skip
    return [
        judged(f"{_label(setting)} sparse {mask}", "early_phase_pretraining",
               "pre-training a subnetwork helps if its mask is right",
               f"{words[mask]}: gain by {own.attrs['epochs']} epochs of rotation (points)",
               effect(points(gain.sel(mask=mask))), expected="report")
        for mask in PRUNED
    ]  # fmt: skip


def _label(setting: str) -> str:
    """The name of the criteria: F1 is the shallow network, F2 the deep one, F the full scale."""
    return {"shallow": "F1", "deep": "F2"}.get(setting.partition(",")[0], f"F {setting}")


def _conditions(setting: str) -> dict[str, dict[str, Any]]:
    return CONDITIONS.get(_label(setting), CONDITIONS["F"])


if __name__ == "__main__":
    run_study(measure, draw, judge)
