"""Does a network that has learned part of the data end worse on all of it than a new one?

    python analysis_scripts/warm_starts.py --scale small

The experiments of Ash & Adams 2020 (arXiv 1910.08475). A network learns part of the data and goes
on with all of it, from where it stands (warm) or from new weights (fresh); data come in rounds;
and between rounds the weights are shrunk and perturbed. What is shown: test accuracy and epochs to
99 % of the training set over the rounds; the norm of the gradient on data that the network knows
and on new data; the gap between fresh and warm against the share of the data that came first; and
accuracy and time over both parameters of shrink and perturb. Networks are compared where both have
learned the training set: before that the sign can be the opposite.

On digits the plain gap is not reliable. There a harder first phase, half of whose labels are
random, stands in for it, and the rounds are of images in which patterns are hidden in noise. These
and the grid of shrink and perturb have no counterpart at full scale, which makes figure 1, the
CIFAR-10 part of table 1 and the rounds for each factor of shrinking of the paper.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from torch import nn

from landscape import load, models
from landscape.datasets import Batches, Normalise
from landscape.experiments import Ended, Run, Seeds
from landscape.experiments.branches import fresh_seed, last_checkpoint
from landscape.experiments.comparisons import outcomes
from landscape.experiments.deficits import NoisyLabels
from landscape.experiments.probes import gradient_norms, predictions
from landscape.experiments.warmstarts import (
    FRESH,
    SHRINK_PERTURB,
    WARM,
    Arm,
    arrivals,
    reached,
    shrink_perturb,
    started,
)
from landscape.results import dataset
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
    panels,
    points,
    run_study,
)

LEARNED = 0.99  # the training accuracy from which on networks are compared
HALF = 0.5
Data = Callable[[int], tuple[Batches, Batches]]  # of a seed: to train on and to test


# Settings -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """A network, how it is trained, and the shares of the data that come first.

    Its comparisons count from the training accuracy `learned` on.
    """

    name: str
    make_model: Any
    training: Mapping[str, Any]
    shares: tuple[float, ...] = ()
    learned: float = LEARNED


@dataclass(frozen=True)
class Scale:
    """How large each part is. The first network has its curves drawn and its gradients measured.

    Without seeds, the memorised labels and the grid of shrink and perturb are left out. `epochs`
    are those of all runs, for an estimate of the time.
    """

    networks: tuple[Network, ...]
    num_seeds: int
    online: Network
    arms: tuple[Arm, ...]
    online_seeds: int
    step: int
    num_rounds: int
    batch_size: int
    factors: tuple[float, ...] = (0.0, 0.3, 0.5, 0.7, 0.9, 1.0)
    memorised_seeds: int = 0
    grid_seeds: int = 0
    shrinks: tuple[float, ...] = ()
    perturbs: tuple[float, ...] = ()
    epochs: int = 0


def mixed(shrink: float) -> Arm:
    """Fresh at 0, warm at 1; between them weights are shrunk, and a tenth of new ones added."""
    if shrink in (0, 1):
        return WARM if shrink else FRESH
    return Arm(f"shrink {shrink:g}", shrink, 0.1)


def small(epochs: int = 60, round_epochs: int = 30) -> Scale:
    """Digits, and images with hidden patterns."""
    sgd = {"lr": 0.05, "epochs": epochs, "test_every": min(2, epochs // 2)}
    mlp, linear = (partial(models.mlp, 64, hidden, 10) for hidden in ((128, 128), ()))
    plain = sgd | {"momentum": 0.0}
    return Scale(
        networks=(
            Network("MLP", mlp, sgd, (0.1, 0.25, HALF, 0.75)),
            Network("logistic regression", linear, plain, (HALF,), learned=0.0),
        ),
        num_seeds=10,
        online=Network("CNN", "warm_starts:pattern_cnn", {"lr": 0.01, "epochs": round_epochs}),
        arms=(FRESH, WARM, SHRINK_PERTURB),
        online_seeds=6,
        step=200,
        num_rounds=5,
        batch_size=32,
        memorised_seeds=20,
        grid_seeds=4,
        shrinks=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
        perturbs=(0.0, 0.01, 0.1, 1.0),
    )


def tiny() -> Scale:
    """All parts of the small scale, in seconds."""
    plan = small(epochs=2, round_epochs=2)
    mlp, linear = plan.networks
    return replace(
        plan,
        networks=(replace(mlp, shares=(0.25, HALF)), linear),
        num_rounds=2,
        factors=(0.0, 0.5, 1.0),
        shrinks=(0.0, 0.4, 1.0),
        perturbs=(0.0, 0.1, 1.0),
    )


def full() -> Scale:
    """CIFAR-10 as in the paper: plain SGD or Adam at a rate of 0.001, batches of 128."""
    resnet = partial(models.resnet18, width=16)
    mlp, linear = (partial(models.mlp, 3072, hidden, 10) for hidden in ((100, 100), ()))
    sgd: dict[str, Any] = {"lr": 1e-3, "momentum": 0.0, "stop": reached(LEARNED)}
    adam: dict[str, Any] = {"lr": 1e-3, "optimiser": "adam", "stop": reached(LEARNED)}
    fixed = sgd | {"epochs": 350, "stop": None, "test_every": 5}
    return Scale(
        networks=(
            Network("ResNet-18, 350 epochs", resnet, fixed, (HALF,)),
            Network("ResNet-18, SGD", resnet, sgd | {"epochs": 350}, (HALF,)),
            Network("ResNet-18, Adam", resnet, adam | {"epochs": 350}, (HALF,)),
            Network("MLP, SGD", mlp, sgd | {"epochs": 1000}, (HALF,)),
            Network("MLP, Adam", mlp, adam | {"epochs": 1000}, (HALF,)),
            Network("logistic regression", linear, sgd | {"epochs": 200}, (HALF,), learned=0.0),
        ),
        num_seeds=3,
        online=Network("ResNet-18", resnet, adam | {"epochs": 100}),
        arms=tuple(mixed(shrink) for shrink in (0.0, 1.0, 0.8, 0.6, 0.4, 0.2)),
        online_seeds=3,
        step=1000,
        num_rounds=33,
        batch_size=128,
        epochs=10_600,  # figure 1 takes 2,600, table 1 about 3,000, the rounds about 5,000
    )


# Data and runs ------------------------------------------------------------------------------------


def patterns(seed: int, num: int = 1000, num_test: int = 1000) -> tuple[Batches, Batches]:
    """Images (n, 1, 8, 8) of unit noise; the class is which of ten patterns is hidden in each.

    The patterns are 4 x 4 signs, the same for all seeds, 1.4 high, and anywhere in the image.
    """
    signs = torch.randn(10, 4, 4, generator=torch.Generator().manual_seed(3)).sign()
    chance = torch.Generator().manual_seed(seed)
    targets = torch.randint(10, (num + num_test,), generator=chance)
    images = torch.randn(num + num_test, 1, 8, 8, generator=chance)
    places = torch.randint(5, (num + num_test, 2), generator=chance).tolist()
    for image, target, (row, column) in zip(images, targets, places, strict=True):
        image[0, row : row + 4, column : column + 4] += 1.4 * signs[target]
    train, test = (Batches(images[own], targets[own]) for own in (slice(num), slice(num, None)))
    return train, test


def pattern_cnn(*, seed: int) -> nn.Sequential:
    """Convolutions of 16, 32 and 32 channels with batch norm, the second of stride 2; the mean."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layers: list[nn.Module] = []
        for before, after, stride in ((1, 16, 1), (16, 32, 2), (32, 32, 1)):
            convolution = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def two_thirds(images: Batches, seed: int) -> tuple[Batches, Batches]:
    """A random two thirds of training images to train on and the others to test, as the authors.

    Pixels are scaled to -1..1.
    """
    order = torch.randperm(images.num_examples, generator=torch.Generator().manual_seed(seed))
    cut, channels = 2 * images.num_examples // 3, images.inputs.shape[1]
    scaled = replace(images, transform=Normalise((0.5,) * channels, (0.5,) * channels))
    return scaled.subset(order[:cut]), scaled.subset(order[cut:])


def runs_of(network: Network, data: Data, seeds: Sequence[int], batch_size: int) -> list[Run]:
    """A run of the network for each seed, on all of its data."""
    name = network.name.lower().replace(",", "").replace(" ", "-")
    made = []
    for seed in seeds:
        train, test = data(seed)
        options = {"test_every": 10_000, **network.training}  # the last epoch is always tested
        made.append(
            Run(
                name=f"{name}/seed-{seed}", make_model=network.make_model, data=train, test=test,
                batch_size=batch_size, seeds=Seeds.all(seed), checkpoints=(), **options,
            )
        )  # fmt: skip
    return made


def first_phases(
    settings: Settings, runs: Sequence[Run], sets: Mapping[str, Sequence[Batches]]
) -> dict[str, list[Ended]]:
    """Train each run on its data of each first phase."""
    ends = settings.train(
        [
            replace(run, name=f"{run.name}/{name}/first", data=own)
            for name, data in sets.items()
            for run, own in zip(runs, data, strict=True)
        ]
    )
    return {name: ends[i * len(runs) : (i + 1) * len(runs)] for i, name in enumerate(sets)}


def second_phases(
    settings: Settings,
    runs: Sequence[Run],
    firsts: Mapping[str, Sequence[Ended]],
    arms: Sequence[Arm],
) -> xr.Dataset:
    """Train each run by each arm from the end of each first phase: (first, arm, seed).

    What starts from new weights is the same for all first phases, and trained once.
    """
    wanted: dict[str, Run] = {}
    names = named(first=list(firsts), arm=[arm.name for arm in arms], seed=seeds_of(runs))
    for i, (name, ends) in enumerate(firsts.items()):
        for j, arm in enumerate(arms):
            for k, (run, end) in enumerate(zip(runs, ends, strict=True)):
                place = arm.name if arm == FRESH else f"{name}/{arm.name}"
                one = replace(run, name=f"{run.name}/{place}")
                names[i, j, k] = one.name
                wanted[one.name] = started(one, arm, last_checkpoint(end))
    settings.train(list(wanted.values()))
    return read(settings, names, runs[0].epochs, "two phases")


def named(**coords: Sequence[Any]) -> xr.DataArray:
    """Room for the names of runs, over these coordinates."""
    shape = [len(own) for own in coords.values()]
    return xr.DataArray(np.full(shape, "", object), coords, list(coords))


def seeds_of(runs: Sequence[Run]) -> list[int]:
    """The seed of each run."""
    return [run.seeds.init for run in runs]


def read(settings: Settings, names: xr.DataArray, most: int, title: str) -> xr.Dataset:
    """What came of the named runs. Epochs to 99 % are at most `most`, if that was not reached."""
    found = outcomes(list(names.values.flat), settings.folder / "runs", train_accuracy=LEARNED)
    values = {
        "test_accuracy": (found["test_accuracy"], "test accuracy"),
        "train_accuracy": (found["train_accuracy"], "training accuracy"),
        "epochs": (found["epochs_to_threshold"].fillna(most), "epochs to 99 % of the training set"),
    }
    return dataset(
        {
            name: (names.dims, own.values.reshape(names.shape), {"long_name": text})
            for name, (own, text) in values.items()
        },
        {str(name): own for name, own in names.coords.items()},
        analysis="warm_starts",
        title=title,
        scale=settings.scale,
        most_epochs=most,
    )


# Measuring ----------------------------------------------------------------------------------------


def measure(settings: Settings) -> dict[str, xr.Dataset]:
    """Make the runs, and read what came of them."""
    plan: Scale = settings.choose(tiny=tiny, small=small, full=full)()
    data, pictures = digits, patterns
    if settings.scale == "full":
        data = pictures = partial(two_thirds, settings.images()[0])
        (example,) = runs_of(plan.networks[0], data, [0], plan.batch_size)
        settings.check_time(example, plan.epochs)
    parts: dict[str, Callable[[], xr.Dataset]] = {
        "shares": partial(shares, settings, plan, data),
        "curves": partial(curves, settings, plan, data),
        "gradients": partial(gradients, settings, plan, data),
        "online": partial(online, settings, plan, pictures),
    }
    if plan.memorised_seeds:
        parts["memorised"] = partial(memorised, settings, plan, data)
        parts["grid"] = partial(grid, settings, plan, data)
    return {name: settings.kept(name, compute) for name, compute in parts.items()}


def shares(settings: Settings, plan: Scale, data: Data) -> xr.Dataset:
    """A first phase on a share of the data, then all: (setting, arm, seed).

    A setting is a network with a share.
    """
    found = []
    for network in plan.networks:
        runs = runs_of(network, data, settings.seeds(plan.num_seeds), plan.batch_size)
        firsts = first_phases(settings, runs, beginnings(runs, network.shares))
        one = second_phases(settings, runs, firsts, (FRESH, WARM)).rename(first="setting")
        coords = {
            "setting": [f"{network.name}, {share:g}" for share in network.shares],
            "network": ("setting", [network.name] * len(network.shares)),
            "share": ("setting", list(network.shares), {"long_name": "share of the data"}),
            "learned": ("setting", [network.learned] * len(network.shares)),
        }
        found.append(one.assign_coords(coords))
    return xr.concat(found, "setting", combine_attrs="override")


def curves(settings: Settings, plan: Scale, data: Data) -> xr.Dataset:
    """Test accuracies of the first network through both phases: (phase, seed, epoch)."""
    runs = runs_of(plan.networks[0], data, settings.seeds(plan.num_seeds), plan.batch_size)
    half = f"share-{HALF:g}"
    places = {"first": f"{half}/first", "warm": f"{half}/warm", "fresh": "fresh"}
    rows = [
        [load(settings.runs(f"{run.name}/{place}") / "record.h5")["test_error"] for run in runs]
        for place in places.values()
    ]
    errors = xr.concat(
        [xr.concat(row, "seed", combine_attrs="override") for row in rows],
        "phase",
        combine_attrs="override",
    ).dropna("epoch", how="all")
    return dataset(
        {"test_accuracy": (errors.dims, 1 - errors.values, {"long_name": "test accuracy"})},
        {"phase": list(places), "seed": seeds_of(runs), "epoch": errors["epoch"].values},
        analysis="warm_starts",
        title=f"{plan.networks[0].name} in two phases",
        phase_epochs=runs[0].epochs,
    )


def gradients(settings: Settings, plan: Scale, data: Data) -> xr.Dataset:
    """Norms of the gradient where the second phase starts, half of its data new.

    `norm` (factor, data, seed), and `old_accuracy` (factor, seed), of the old data, with batch
    norm's statistics as they were. The weights are `mixed` with the factor.
    """
    runs = runs_of(plan.networks[0], data, settings.seeds(plan.num_seeds), plan.batch_size)
    (ends,) = first_phases(settings, runs, beginnings(runs, (HALF,))).values()
    norms = np.empty((len(plan.factors), 2, len(runs)))
    known = np.empty((len(plan.factors), len(runs)))
    for column, (run, end) in enumerate(zip(runs, ends, strict=True)):
        whole, cut = replace(run.data, batch_size=plan.batch_size), cut_of(run, HALF)
        old, new = whole.subset(range(cut)), whole.subset(range(cut, whole.num_examples))
        model, state = run.build(), last_checkpoint(end).load()
        other = replace(run, seeds=Seeds.all(fresh_seed(run.seeds.init, 1))).build().state_dict()
        for row, arm in enumerate(map(mixed, plan.factors)):
            begun = shrink_perturb(state, other, arm.shrink, arm.perturb, batch_norm="carry")
            found = gradient_norms(model, begun, {"old": old, "new": new}, device=settings.device)
            answers = predictions(model, begun, old, device=settings.device).argmax(1)
            norms[row, :, column] = found["old"], found["new"]
            known[row, column] = (answers == old.targets).double().mean()
    return dataset(
        {
            "norm": (("factor", "data", "seed"), norms, {"long_name": "norm of the gradient"}),
            "old_accuracy": (("factor", "seed"), known, {"long_name": "accuracy on old data"}),
        },
        {"factor": list(plan.factors), "data": ["old", "new"], "seed": seeds_of(runs)},
        analysis="warm_starts",
        title="gradients on old and new data",
        scale=settings.scale,
    )


def memorised(settings: Settings, plan: Scale, data: Data) -> xr.Dataset:
    """A first phase in which half of the labels are random, by arm: (arm, seed)."""
    return after_noise(settings, plan, data, plan.memorised_seeds, [FRESH, WARM, SHRINK_PERTURB])


def grid(settings: Settings, plan: Scale, data: Data) -> xr.Dataset:
    """The same over both factors: (shrink, perturb, seed); nan where no weights would be left."""
    known = {(one.shrink, one.perturb): one for one in (FRESH, WARM, SHRINK_PERTURB)}
    pairs = [(a, b) for a in plan.shrinks for b in plan.perturbs if a or b]
    arms = [known.get((a, b), Arm(f"shrink-{a:g}-perturb-{b:g}", a, b)) for a, b in pairs]
    found = after_noise(settings, plan, data, plan.grid_seeds, arms).drop_vars("arm")
    shrink, perturb = ([pair[i] for pair in pairs] for i in (0, 1))
    found = found.assign_coords(shrink=("arm", shrink), perturb=("arm", perturb))
    return found.set_index(arm=("shrink", "perturb")).unstack("arm")


def after_noise(
    settings: Settings, plan: Scale, data: Data, num_seeds: int, arms: Sequence[Arm]
) -> xr.Dataset:
    """What came after a first phase in which half of the labels were random: (arm, seed)."""
    runs = runs_of(plan.networks[0], data, settings.seeds(num_seeds), plan.batch_size)
    noisy = []
    for run in runs:
        noise = NoisyLabels(0.5, num_classes=10, seed=run.seeds.init)
        noisy.append(replace(run.data, targets=noise(run.data.inputs, run.data.targets)[1]))
    firsts = first_phases(settings, runs, {"noise": noisy})
    return second_phases(settings, runs, firsts, arms).isel(first=0, drop=True)


def online(settings: Settings, plan: Scale, data: Data) -> xr.Dataset:
    """Rounds in which data arrive, each on all so far: (round, arm, seed).

    The first round is the same for all arms.
    """
    runs = runs_of(plan.online, data, settings.seeds(plan.online_seeds), plan.batch_size)
    num = plan.step * plan.num_rounds
    sets = [arrivals(run.data.subset(range(num)), plan.step, seed=run.seeds.order) for run in runs]
    arms, ends = [arm.name for arm in plan.arms], dict[str, Ended]()
    names = named(round=range(plan.num_rounds), arm=arms, seed=seeds_of(runs))
    for number in range(plan.num_rounds):
        wanted: dict[str, Run] = {}
        for i, arm in enumerate(plan.arms):
            for k, run in enumerate(runs):
                one = replace(run, name=f"online/{run.name}/round-0", data=sets[k][number])
                if number:
                    one = replace(one, name=f"online/{run.name}/{arm.name}/round-{number}")
                    before = last_checkpoint(ends[names.values[number - 1, i, k]])
                    one = started(one, arm, before, number=number)
                names[number, i, k] = one.name
                wanted[one.name] = one
        ends |= {end.name: end for end in settings.train(list(wanted.values()))}
    sizes = ("round", [own.num_examples for own in sets[0]], {"long_name": "training examples"})
    found = read(settings, names, runs[0].epochs, "data that arrive in rounds")
    return found.assign_coords(num_examples=sizes)


def beginnings(runs: Sequence[Run], shares: Sequence[float]) -> dict[str, list[Batches]]:
    """For each share the first examples of each run, whose order is random."""
    return {
        f"share-{share:g}": [run.data.subset(range(cut_of(run, share))) for run in runs]
        for share in shares
    }


def cut_of(run: Run, share: float) -> int:
    """The number of examples in a share of a run's data."""
    return round(share * run.data.num_examples)


# Drawing ------------------------------------------------------------------------------------------


def draw(found: Results) -> dict[str, Drawn]:
    """Rounds, two phases, and where it was run the grid of shrink and perturb."""
    drawn = {"warm_starts_online": draw_online(found["online"]),
             "warm_starts_phases": draw_phases(found)}  # fmt: skip
    if "grid" in found:
        drawn["warm_starts_grid"] = draw_grid(found["grid"])
    return drawn


def draw_online(found: xr.Dataset) -> Drawn:
    """Test accuracy and epochs over the rounds, for each arm; open circles have not learned."""
    fig, axes = panels(2)
    for number, arm in enumerate(found["arm"].values):
        one, look = found.sel(arm=arm).transpose("seed", "round"), {"color": f"C{number}"}
        short = (one["train_accuracy"] < LEARNED).any("seed").values
        num = one["num_examples"].values
        for ax, values, label in (
            (axes[0, 0], points(one["test_accuracy"]), str(arm)),
            (axes[0, 1], one["epochs"].values, None),
        ):
            band(ax, num, values, label, **look)
            for own, face in ((short, "white"), (~short, look["color"])):
                ax.plot(num[own], values.mean(0)[own], "o", ms=3, mfc=face, **look)
    axes[0, 0].set(xlabel="training examples", ylabel="test accuracy (%)")
    axes[0, 1].set(xlabel="training examples", ylabel="epochs to 99 %")
    axes[0, 1].set_ylim(bottom=0)
    fig.legend(loc="outside upper center", ncols=6)
    arms = "new weights (fresh), the weights at hand (warm), or these shrunk and perturbed"
    return Drawn(
        fig,
        f"Data arrive in rounds, and each round trains on all so far, from {arms}. Left: test "
        f"accuracy after each round. Right: epochs to a training accuracy of 99 %, or all "
        f"{found.attrs['most_epochs']} of the round. Open circles: rounds in which not all seeds "
        "end with it; there, comparisons with others are not between networks that have learned "
        f"alike. Bands: 95 % t intervals over {found.sizes['seed']} seeds.",
    )


def draw_phases(found: Results) -> Drawn:
    """Gradients, both phases, and gaps: by share and with memorised labels, or by network."""
    fig, axes = panels(2, 2)
    draw_gradients(found["gradients"], axes[0, 0])
    draw_curves(found["curves"], axes[0, 1])
    if "memorised" in found:
        draw_gaps(found["shares"], axes[1, 0])
        last = draw_memorised(found["memorised"], axes[1, 1])
    else:
        last = draw_networks(found["shares"], axes[1, 0], axes[1, 1])
    return Drawn(
        fig,
        "(a) Norm of the gradient on old and new data where the second phase starts, against the "
        "factor by which the weights are shrunk (λ = 1 is the warm start, 0 the fresh one; between "
        "them a tenth of new weights is added). (b) Test accuracy when half of the data come "
        "first. (c) Test accuracy of fresh less that of warm where both have learned the training "
        f"set; logistic regression, which is convex, in any case. (d) {last} Means with 95 % t "
        f"intervals, over {found['shares'].sizes['seed']} seeds if not said otherwise.",
    )


def draw_gradients(found: xr.Dataset, ax: Axes) -> None:
    """Geometric means over seeds, with their intervals, against the factor."""
    for name in found["data"].values:
        means = [times(own) for own in found["norm"].sel(data=name).values]
        (line,) = ax.plot(
            found["factor"], [one.mean for one in means], "o-", ms=2.5, label=f"{name} data"
        )
        low, high = ([getattr(one, side) for one in means] for side in ("low", "high"))
        ax.fill_between(found["factor"], low, high, color=line.get_color(), alpha=0.2, lw=0)
    ax.set(yscale="log", xlabel="factor of the weights, λ", ylabel="norm of the gradient")
    ax.set(title="(a) where the second phase starts")
    ax.legend()


def draw_curves(found: xr.Dataset, ax: Axes) -> None:
    """Test accuracies through the first phase, then of warm and fresh."""
    shift = found.attrs["phase_epochs"]
    for name, colour in (("first", "0.5"), ("fresh", "C0"), ("warm", "C1")):
        one = found["test_accuracy"].sel(phase=name).transpose("seed", "epoch")
        epochs = found["epoch"].values + (0 if name == "first" else shift)
        label = "half of the data" if name == "first" else name
        band(ax, epochs, points(one), label, color=colour)
    ax.axvline(shift, color="0.8", lw=0.6, zorder=0)
    ax.set(xlabel="epoch", ylabel="test accuracy (%)", title="(b) half of the data first")
    ax.legend(loc="lower right")


def draw_gaps(found: xr.Dataset, ax: Axes) -> None:
    """Gaps between fresh and warm against the share of the data that comes first."""
    for number, network in enumerate(dict.fromkeys(found["network"].values.tolist())):
        own = found.isel(setting=found["network"].values == network)
        means = [learned_gap(own, setting) for setting in own["setting"].values]
        x = own["share"].values + 0.02 * number
        ax.errorbar(
            x, [one.mean for one in means], reach(means), fmt="os"[number], capsize=2, label=network
        )  # fmt: skip
    ax.axhline(0, color="0.6", lw=0.6, zorder=0)
    ax.set(xlabel="share of the data that comes first", xlim=(0, 1))
    ax.set(ylabel="fresh less warm (points)", title="(c) gap where both have learned")
    ax.legend()


def draw_memorised(found: xr.Dataset, ax: Axes) -> str:
    """Test accuracy of the arms less that of fresh, in pairs; and what is to be said of it."""
    gaps = {arm: gap(found, arm, "fresh") for arm in ("warm", "shrink-perturb")}
    bars(ax, {arm: own for arm, own in gaps.items() if len(own)})
    ax.axhline(0, color="0.6", lw=0.6, zorder=0)
    ax.set(ylabel="arm less fresh (points)", title="(d) memorised labels first", xlim=(-0.5, 1.5))
    return (
        "The first phase is on all images, half of whose labels are random, the second with the "
        f"labels: test accuracy less that of fresh; {found.sizes['seed']} seeds, in grey."
    )


def draw_networks(found: xr.Dataset, gaps: Axes, times_saved: Axes) -> str:
    """Gap and time of each network, half of the data first; and what is to be said of the time."""
    settings = found["setting"].values.tolist()
    taken = [found["epochs"].sel(setting=setting) for setting in settings]
    ratios = [times(one.sel(arm="warm").values / one.sel(arm="fresh").values) for one in taken]
    rows = np.arange(len(settings))
    for ax, means, usual in (
        (gaps, [learned_gap(found, setting) for setting in settings], 0),
        (times_saved, ratios, 1),
    ):
        ax.errorbar([one.mean for one in means], rows, xerr=reach(means), fmt="o", capsize=2)
        ax.axvline(usual, color="0.6", lw=0.6, zorder=0)
        ax.set_yticks(rows, found["network"].values.tolist() if ax is gaps else [""] * len(rows))
        ax.set_ylim(len(rows) - 0.5, -0.5)
    gaps.set(xlabel="fresh less warm (points)", title="(c) gap where both have learned")
    times_saved.set(xlabel="epochs to 99 %, warm / fresh", title="(d) time")
    return "Epochs to a training accuracy of 99 % of warm, divided by those of fresh."


def reach(means: Sequence[Effect]) -> list[list[float]]:
    """How far intervals reach to both sides."""
    return [[one.mean - one.low for one in means], [one.high - one.mean for one in means]]


def draw_grid(found: xr.Dataset) -> Drawn:
    """Accuracy and time of the second phase over both factors."""
    fig, axes = panels(2, height=2.1)
    means = found.mean("seed").transpose("perturb", "shrink")
    draw_cells(means["test_accuracy"] * 100, axes[0, 0], "test accuracy (%)", Normalize())
    draw_cells(means["epochs"], axes[0, 1], "epochs to 99 %", LogNorm())
    return Drawn(
        fig,
        "Shrink and perturb after a first phase in which half of the labels are random: the second "
        "phase starts from λ times the weights and γ times new ones. Left: test accuracy. Right: "
        f"epochs to a training accuracy of 99 %, at most {found.attrs['most_epochs']}. The warm "
        "start is λ = 1, γ = 0, the fresh one λ = 0, γ = 1; nothing can be learned from λ = γ = 0. "
        f"Means over {found.sizes['seed']} seeds.",
    )


def draw_cells(means: xr.DataArray, ax: Axes, label: str, norm: Normalize) -> None:
    """A mean for each pair of factors, as a colour and in figures."""
    image = ax.imshow(means, origin="lower", aspect="auto", norm=norm)
    for (row, column), mean in np.ndenumerate(means):
        if np.isfinite(mean):
            colour = "black" if norm(mean) > 0.6 else "white"
            ax.text(column, row, f"{mean:.1f}", ha="center", va="center", size=6, color=colour)
    for axis, name in ((ax.xaxis, "shrink"), (ax.yaxis, "perturb")):
        axis.set_ticks(range(means.sizes[name]), [f"{own:g}" for own in means[name].values])
    ax.set(xlabel="factor of the weights, λ", ylabel="factor of new weights, γ")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    bar = ax.figure.colorbar(image, ax=ax, label=label)
    if isinstance(norm, LogNorm):
        bar.minorticks_off()
        ticks = [own for own in (1, 2, 5, 10, 20, 50) if means.min() <= own <= means.max()]
        bar.set_ticks(ticks, labels=[str(own) for own in ticks])


# Judging ------------------------------------------------------------------------------------------


def judge(found: Results) -> list[Claim]:
    """A verdict on each claim of the study."""
    claims = judge_gradients(found["gradients"]) + judge_shares(found["shares"])
    if "memorised" in found:
        claims += judge_memorised(found["memorised"]) + judge_grid(found["grid"])
    return claims + judge_online(found["online"])


def judge_gradients(found: xr.Dataset) -> list[Claim]:
    """A1: new data pull much harder than old ones, unless the weights are shrunk."""
    norm = found["norm"]

    def ratio(factor: float) -> Effect:
        one = norm.sel(factor=factor)
        return times(one.sel(data="new").values / one.sel(data="old").values)

    kept = replace(effect(points(found["old_accuracy"].sel(factor=HALF))), p=math.nan)
    about = partial(judged, figure="warm_starts_phases")
    text = "norm of the gradient, new / old data"
    gate = partial(gated, found)
    return [
        about("A1", claim="A warm start learns from new data with far larger gradients",
              quantity=f"{text}, λ = 1", found=ratio(1.0), **gate(at_least=50)),
        about("A1", claim="Shrinking balances the gradients",
              quantity=f"{text}, λ = 0.5, γ = 0.1", found=ratio(HALF), **gate(at_most=1.5)),
        about("A1", claim="Shrinking keeps what was learned",
              quantity="accuracy on old data (%), λ = 0.5, γ = 0.1", found=kept,
              **gate(at_least=99)),
    ]  # fmt: skip


def judge_shares(found: xr.Dataset) -> list[Claim]:
    """A0: the gap after a first phase on a share of the data; the control is convex.

    At full scale residual networks must show it, by 2 points; on digits it is told alone.
    """
    claims = []
    for setting in found["setting"].values.tolist():
        one = found.sel(setting=setting)
        network, pairs = str(one["network"].item()), one.sizes["seed"]
        mean = learned_gap(found, setting)
        about = partial(judged, figure="warm_starts_phases", found=mean)
        text = f"fresh - warm (points), {network}, {one['share'].item():.0%} first"
        if one["learned"].item() == 0:
            claim = "A convex model does not mind where it starts"
            claims.append(about("A control", claim=claim, quantity=text, within=0.5,
                                expected="null"))  # fmt: skip
            continue
        text += f"; {mean.num} of {pairs} pairs learned"
        if found.attrs["scale"] == "full" and network.startswith("ResNet"):
            enough = {"n >= 3": mean.num >= 3}
            claims.append(about("A.6", claim="A warm start generalises worse", quantity=text,
                                at_least=2, p_below=0.05, also=enough))  # fmt: skip
        else:
            claim = "A warm start generalises worse than a fresh one"
            claims.append(about("A0", claim=claim, quantity=text, expected="report"))
        saved = times(one["epochs"].sel(arm="warm").values / one["epochs"].sel(arm="fresh").values)
        text = f"epochs to 99 %, warm / fresh, {network}, {one['share'].item():.0%} first"
        claims.append(judged("A time", "warm_starts_phases", "A warm start saves time", text, saved,
                             expected="report"))  # fmt: skip
    return claims


def judge_memorised(found: xr.Dataset) -> list[Claim]:
    """A2: what was memorised hurts a warm start, and shrink and perturb mends it."""
    warm, mended = (mean_of(gap(found, arm, "fresh")) for arm in ("warm", "shrink-perturb"))
    about = partial(judged, "A2", "warm_starts_phases")
    of = f"pairs of {found.sizes['seed']} learned"
    return [
        about("A warm start from memorised labels generalises worse",
              f"warm - fresh (points); {warm.num} {of}", warm, at_most=-0.5, p_below=0.01),
        about("Shrink and perturb generalises like a fresh start",
              f"shrink-perturb - fresh (points); {mended.num} {of}", mended, within=0.4),
    ]  # fmt: skip


def judge_grid(found: xr.Dataset) -> list[Claim]:
    """How large the region is that is as good as fresh and saves time."""
    mean = found.mean("seed")
    fresh = mean.sel(shrink=0, perturb=1)
    good = mean["test_accuracy"] >= fresh["test_accuracy"] - 0.004
    both = (good & (mean["epochs"] < fresh["epochs"])).sum().item()
    num = int(np.isfinite(mean["test_accuracy"]).sum())
    return [
        judged("A grid", "warm_starts_grid", "Shrink and perturb needs no fine tuning",
               f"pairs of λ and γ, of {num}, within 0.4 points of fresh and faster", both,
               expected="report"),
    ]  # fmt: skip


def judge_online(found: xr.Dataset) -> list[Claim]:
    """A3: over rounds, shrink and perturb generalises better than warm, which is faster than fresh.

    At full scale the arm is the one of λ = 0.4, and all is told without a condition.
    """
    mixed_arm = next(arm for arm in ("shrink-perturb", "shrink 0.4") if arm in found["arm"])
    last, total = found.isel(round=-1), found["epochs"].sum("round")
    better = effect(points(last["test_accuracy"].sel(arm=mixed_arm)
                           - last["test_accuracy"].sel(arm="warm")))  # fmt: skip
    plain = mean_of(gap(last, "fresh", "warm"))
    about = partial(judged, "A3", "warm_starts_online")
    gate = partial(gated, found)
    claims = [
        about("Shrink and perturb generalises better than warm starts",
              f"{mixed_arm} - warm (points), last round", better,
              **gate(at_least=5, p_below=0.01)),
    ]  # fmt: skip
    for arm, options in (("warm", gate(at_most=0.6)), (mixed_arm, {"expected": "report"})):
        ratio = times(total.sel(arm=arm).values / total.sel(arm="fresh").values)
        claims.append(about("Starting from the weights at hand saves time",
                            f"epochs to 99 %, {arm} / fresh, all rounds", ratio,
                            **options))  # fmt: skip
    text = f"fresh - warm (points), last round; {plain.num} of {last.sizes['seed']} pairs learned"
    claims.append(about("A warm start generalises worse than a fresh one", text, plain,
                        expected="report"))  # fmt: skip
    return claims


def gated(found: xr.Dataset, **conditions: float) -> dict[str, Any]:
    """Conditions that hold at the scale of digits; elsewhere a claim is told without."""
    return {"expected": "report"} if found.attrs["scale"] == "full" else conditions


# Effects ------------------------------------------------------------------------------------------


def gap(found: xr.Dataset, first: str, second: str, learned: float = LEARNED) -> np.ndarray:
    """By how many points an arm has the better test accuracy, for seeds where both have learned.

    That is a training accuracy of at least `learned`; before, the sign can be the opposite.
    """
    both = (found["train_accuracy"].sel(arm=[first, second]) >= learned - 1e-9).all("arm").values
    accuracy = found["test_accuracy"]
    return points(accuracy.sel(arm=first) - accuracy.sel(arm=second))[both]


def learned_gap(found: xr.Dataset, setting: str) -> Effect:
    """The gap of fresh and warm of a network after a first phase on a share."""
    one = found.sel(setting=setting)
    return mean_of(gap(one, "fresh", "warm", one["learned"].item()))


def mean_of(values: np.ndarray) -> Effect:
    """The effect, which is unknown where no seed has a value."""
    return effect(values) if len(values) else Effect(*(math.nan,) * 4, 0)


def times(ratios: np.ndarray) -> Effect:
    """The geometric mean of ratios with its interval, and the p-value of its being 1."""
    found = effect(np.log(ratios))
    mean, low, high = (math.exp(own) for own in (found.mean, found.low, found.high))
    return Effect(mean, low, high, found.p, found.num)


if __name__ == "__main__":
    run_study(measure, draw, judge)
