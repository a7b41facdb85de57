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
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from landscape.experiments import Run, Seeds
from landscape.experiments.branches import fresh_seed, last_checkpoint
from landscape.experiments.comparisons import outcomes
from landscape.experiments.deficits import NoisyLabels
from landscape.experiments.probes import gradient_norms, predictions
from landscape.experiments.warmstarts import (
    FRESH,
    SHRINK_PERTURB,
    WARM,
    Arm,
    Rounds,
    arrivals,
    in_rounds,
    reached,
    shrink_perturb,
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
    ratio,
    run_study,
)

LEARNED = 0.99  # the training accuracy from which on networks are compared
HALF = 0.5
CONVEX = "logistic regression"  # the control: it has one minimum, and is compared in any case
FACTORS = (0.0, 0.3, 0.5, 0.7, 0.9, 1.0)
ONLINE, PHASES, GRID = (f"warm_starts_{name}" for name in ("online", "phases", "grid"))
COST = "What a warm start costs in accuracy"
Plan = dict[str, Any]


# Settings -----------------------------------------------------------------------------------------


def small(epochs: int = 60, round_epochs: int = 30) -> Plan:
    """Digits, and images with hidden patterns. The first network has its gradients measured."""
    mlp, linear = (partial(models.mlp, 64, hidden, 10) for hidden in ((128, 128), ()))
    sgd = {"lr": 0.05, "batch_size": 32, "epochs": epochs, "test_every": min(2, epochs // 2)}
    cnn = {"make_model": "warm_starts:pattern_cnn", "lr": 0.01, "batch_size": 32}
    return {
        "data": digits, "stream": patterns, "shares": (0.1, 0.25, HALF, 0.75),
        "networks": (
            ("MLP", sgd | {"make_model": mlp}),
            (CONVEX, sgd | {"make_model": linear, "momentum": 0.0}),
        ),
        "online": ("CNN", cnn | {"epochs": round_epochs}), "step": 200, "rounds": 5,
        "arms": (FRESH, WARM, SHRINK_PERTURB),
        "shrinks": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), "perturbs": (0.0, 0.01, 0.1, 1.0),
        "seeds": {"shares": 10, "online": 6, "memorised": 20, "grid": 4},
    }  # fmt: skip


def tiny() -> Plan:
    """All parts of the small scale, in seconds."""
    factors = {"shrinks": (0.0, 0.4, 1.0), "perturbs": (0.0, 0.1, 1.0)}
    return small(epochs=2, round_epochs=2) | {"shares": (0.25, HALF), "rounds": 2} | factors


def full(images: Batches) -> Plan:
    """CIFAR-10 as in the paper: plain SGD or Adam at a rate of 0.001, batches of 128."""
    resnet = {"make_model": partial(models.resnet18, width=16)}
    mlp, linear = (
        {"make_model": partial(models.mlp, 3072, hidden, 10)} for hidden in ((100, 100), ())
    )
    adam: Plan = {"lr": 1e-3, "batch_size": 128, "optimiser": "adam", "stop": reached(LEARNED)}
    sgd = adam | {"optimiser": "sgd", "momentum": 0.0}
    fixed = {"epochs": 350, "stop": None, "test_every": 5}
    data = partial(two_thirds, images)
    return {
        "data": data, "stream": data, "shares": (HALF,),
        "networks": (
            ("ResNet-18, 350 epochs", resnet | sgd | fixed),
            ("ResNet-18, SGD", resnet | sgd | {"epochs": 350}),
            ("ResNet-18, Adam", resnet | adam | {"epochs": 350}),
            ("MLP, SGD", mlp | sgd | {"epochs": 1000}),
            ("MLP, Adam", mlp | adam | {"epochs": 1000}),
            (CONVEX, linear | sgd | {"epochs": 200}),
        ),
        "online": ("ResNet-18", resnet | adam | {"epochs": 100}), "step": 1000, "rounds": 33,
        "arms": tuple(mixed(shrink) for shrink in (0.0, 1.0, 0.8, 0.6, 0.4, 0.2)),
        "seeds": {"shares": 3, "online": 3},
    }  # fmt: skip


def mixed(shrink: float) -> Arm:
    """Fresh at 0, warm at 1; between them weights are shrunk, and a tenth of new ones added."""
    if shrink in (0, 1):
        return WARM if shrink else FRESH
    return Arm(f"shrink {shrink:g}", shrink, 0.1)


# Data and networks --------------------------------------------------------------------------------


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


# Measuring ----------------------------------------------------------------------------------------


def measure(settings: Settings) -> dict[str, xr.Dataset]:
    """Make the runs, and read what came of them."""
    parts = [shares, curves, gradients, online, memorised, grid]
    if settings.scale == "full":
        plan, parts = full(settings.images()[0]), parts[:4]
        (example, *_) = runs_of(settings, plan, "online", plan["online"])
        settings.check_time(example, 10_600)  # 2,600 of figure 1, 3,000 of table 1, 5,000 of rounds
    else:
        plan = settings.choose(tiny=tiny, small=small, full=None)()
    return {
        part.__name__: settings.kept(part.__name__, partial(part, settings, plan)) for part in parts
    }


def runs_of(
    settings: Settings, plan: Plan, part: str, network: tuple[str, Plan], folder: str = ""
) -> list[Run]:
    """A run of a network for each seed of a part, on all data of its seed."""
    name = f"{folder or part}/{network[0]}".lower().replace(",", "").replace(" ", "-")
    options: Plan = {"test_every": 10_000, "checkpoints": (), "last_batch": "smaller"} | network[1]
    made = []
    for seed in settings.seeds(plan["seeds"][part]):
        train, test = plan["stream" if part == "online" else "data"](seed)
        own: Plan = {"name": f"{name}/seed-{seed}", "data": train, "test": test}
        made.append(Run(**own, **options, seeds=Seeds.all(seed)))
    return made


def on_share(
    settings: Settings, plan: Plan, network: tuple[str, Plan], share: float
) -> tuple[list[Run], Rounds]:
    """Runs of a network on a share of the data and then on all."""
    runs = runs_of(settings, plan, "shares", network, f"share-{share:g}")
    sets = [[first(run.data, share), run.data] for run in runs]
    return runs, in_rounds(runs, sets, (FRESH, WARM), settings.runs_folder, **settings.options)


def first(data: Batches, share: float) -> Batches:
    """The first examples, whose order is random."""
    return data.subset(range(round(share * data.num_examples)))


def outcome(settings: Settings, runs: Sequence[Run], rounds: Rounds, title: str) -> xr.Dataset:
    """What came of rounds: (arm, round, seed). Epochs to 99 % are all if that was not reached."""
    names = np.array([[[end.name for end in ends] for ends in own] for own in rounds.values()])
    found = outcomes(names.ravel().tolist(), settings.runs_folder, train_accuracy=LEARNED)
    most = runs[0].epochs
    found["epochs"] = found["epochs_to_threshold"].fillna(most)
    return dataset(
        {
            name: (("arm", "round", "seed"), found[name].values.reshape(names.shape))
            for name in ("test_accuracy", "train_accuracy", "epochs")
        },
        {"arm": list(rounds), "seed": [run.seeds.init for run in runs]},
        analysis="warm_starts", title=title, scale=settings.scale, most_epochs=most,
    )  # fmt: skip


def shares(settings: Settings, plan: Plan) -> xr.Dataset:
    """A first phase on a share of the data, then all: (setting, arm, seed)."""
    found = []
    for network in plan["networks"]:
        for share in (HALF,) if network[0] == CONVEX else plan["shares"]:
            own = outcome(settings, *on_share(settings, plan, network, share), "two phases")
            own = own.isel(round=-1, drop=True).expand_dims(setting=[f"{network[0]}, {share:g}"])
            coords = {"network": ("setting", [network[0]]), "share": ("setting", [share])}
            found.append(own.assign_coords(coords))
    return xr.concat(found, "setting", combine_attrs="override")


def curves(settings: Settings, plan: Plan) -> xr.Dataset:
    """Test accuracies of the first network through both phases: (phase, seed, epoch)."""
    runs, rounds = on_share(settings, plan, plan["networks"][0], HALF)
    phases = {"first": rounds["warm"][0], "warm": rounds["warm"][1], "fresh": rounds["fresh"][1]}
    errors = [
        [load(end.folder / "record.h5")["test_error"].values for end in ends]
        for ends in phases.values()
    ]
    epochs = np.arange(1, runs[0].epochs + 1)
    return dataset(
        {"test_accuracy": (("phase", "seed", "epoch"), 1 - np.array(errors))},
        {"phase": list(phases), "seed": [run.seeds.init for run in runs], "epoch": epochs},
        analysis="warm_starts", title="two phases", phase_epochs=len(epochs),
    ).dropna("epoch", how="all")  # fmt: skip


def gradients(settings: Settings, plan: Plan) -> xr.Dataset:
    """Norms of the gradient where the second phase starts, half of its data new.

    `norm` (seed, factor, data) and `old_accuracy` (seed, factor), of the old data. The weights are
    `mixed` with the factor, and batch norm's statistics as the first phase left them.
    """
    runs, rounds = on_share(settings, plan, plan["networks"][0], HALF)
    norms = np.empty((len(runs), len(FACTORS), 2))
    known = np.empty((len(runs), len(FACTORS)))
    for row, (run, end) in enumerate(zip(runs, rounds["warm"][0], strict=True)):
        whole = replace(run.data, batch_size=run.batch_size_at(0))
        old, model, state = first(whole, HALF), run.build(), last_checkpoint(end).load()
        new = whole.subset(range(old.num_examples, whole.num_examples))
        fresh = replace(run, seeds=Seeds.all(fresh_seed(run.seeds.init, 1))).build().state_dict()
        for column, arm in enumerate(map(mixed, FACTORS)):
            begun = shrink_perturb(state, fresh, arm.shrink, arm.perturb, batch_norm="carry")
            found = gradient_norms(model, begun, {"old": old, "new": new}, device=settings.device)
            answers = predictions(model, begun, old, device=settings.device).argmax(1)
            norms[row, column] = found["old"], found["new"]
            known[row, column] = (answers == old.targets).double().mean()
    return dataset(
        {"norm": (("seed", "factor", "data"), norms), "old_accuracy": (("seed", "factor"), known)},
        {"factor": list(FACTORS), "data": ["old", "new"], "seed": [run.seeds.init for run in runs]},
        analysis="warm_starts", title="gradients on old and new data", scale=settings.scale,
    )  # fmt: skip


def memorised(settings: Settings, plan: Plan) -> xr.Dataset:
    """A first phase in which half of the labels are random: (arm, seed)."""
    return after_noise(settings, plan, "memorised", plan["arms"])


def grid(settings: Settings, plan: Plan) -> xr.Dataset:
    """The same over both factors: (shrink, perturb, seed); nan where no weights would be left."""
    known = {(arm.shrink, arm.perturb): arm for arm in plan["arms"]}
    pairs = [(a, b) for a in plan["shrinks"] for b in plan["perturbs"] if a or b]
    arms = [known.get((a, b), Arm(f"shrink-{a:g}-perturb-{b:g}", a, b)) for a, b in pairs]
    found = after_noise(settings, plan, "grid", arms).drop_vars("arm")
    shrink, perturb = zip(*pairs, strict=True)
    found = found.assign_coords(shrink=("arm", list(shrink)), perturb=("arm", list(perturb)))
    return found.set_index(arm=("shrink", "perturb")).unstack("arm")


def after_noise(settings: Settings, plan: Plan, part: str, arms: Sequence[Arm]) -> xr.Dataset:
    """What came after a first phase in which half of the labels were random: (arm, seed)."""
    runs, sets = runs_of(settings, plan, part, plan["networks"][0], "noise"), []
    for run in runs:
        noise = NoisyLabels(0.5, num_classes=10, seed=run.seeds.init)
        targets = noise(run.data.inputs, run.data.targets)[1]
        sets.append([replace(run.data, targets=targets), run.data])
    rounds = in_rounds(runs, sets, arms, settings.runs_folder, **settings.options)
    return outcome(settings, runs, rounds, "memorised labels first").isel(round=-1, drop=True)


def online(settings: Settings, plan: Plan) -> xr.Dataset:
    """Rounds in which data arrive, each on all so far: (arm, round, seed)."""
    runs, num = runs_of(settings, plan, "online", plan["online"]), plan["step"] * plan["rounds"]
    sets = [
        arrivals(run.data.subset(range(num)), plan["step"], seed=run.seeds.order) for run in runs
    ]
    rounds = in_rounds(runs, sets, plan["arms"], settings.runs_folder, **settings.options)
    sizes = ("round", [own.num_examples for own in sets[0]])
    return outcome(settings, runs, rounds, "data that arrive").assign_coords(num_examples=sizes)


# Effects ------------------------------------------------------------------------------------------


def gap(found: xr.Dataset, above: str, below: str, learned: float = LEARNED) -> np.ndarray:
    """By how many points an arm has the better test accuracy, for seeds where both have learned.

    That is a training accuracy of at least `learned`; before, the sign can be the opposite.
    """
    both = (found["train_accuracy"].sel(arm=[above, below]) >= learned - 1e-9).all("arm").values
    accuracy = found["test_accuracy"]
    return points(accuracy.sel(arm=above) - accuracy.sel(arm=below))[both]


def lost(one: xr.Dataset) -> Effect:
    """By how many points fresh is better than warm in a setting."""
    return effect(gap(one, "fresh", "warm", 0.0 if one["network"] == CONVEX else LEARNED))


def time_of(epochs: xr.DataArray, arm: str = "warm") -> Effect:
    """The epochs to 99 % of an arm in those of fresh."""
    return ratio(epochs.sel(arm=arm), epochs.sel(arm="fresh"))


# Drawing ------------------------------------------------------------------------------------------


def draw(found: Results) -> dict[str, Drawn]:
    """Rounds, two phases, and where it was run the grid of shrink and perturb."""
    drawn = {ONLINE: draw_online(found["online"]), PHASES: draw_phases(found)}
    return drawn | ({GRID: draw_grid(found["grid"])} if "grid" in found else {})


def draw_online(found: xr.Dataset) -> Drawn:
    """Test accuracy and epochs over the rounds, for each arm; open circles have not learned."""
    fig, ((left, right),) = panels(2)
    num = found["num_examples"].values
    for number, arm in enumerate(found["arm"].values):
        one, colour = found.sel(arm=arm).transpose("seed", "round"), f"C{number}"
        short = (one["train_accuracy"] < LEARNED).any("seed").values
        for ax, values in ((left, points(one["test_accuracy"])), (right, one["epochs"].values)):
            band(ax, num, values, str(arm) if ax is left else None, color=colour)
            for own, face in ((short, "white"), (~short, colour)):
                ax.plot(num[own], values.mean(0)[own], "o", ms=3, mfc=face, color=colour)
    left.set(xlabel="training examples", ylabel="test accuracy (%)")
    right.set(xlabel="training examples", ylabel="epochs to 99 %")
    right.set_ylim(bottom=0)
    fig.legend(loc="outside upper center", ncols=6)
    return Drawn(
        fig,
        "Data arrive in rounds, and each round trains on all so far, from new weights (fresh), the "
        "weights at hand (warm), or these shrunk and perturbed. Left: test accuracy after each "
        "round. Right: epochs to a training accuracy of 99 %, or all "
        f"{found.attrs['most_epochs']} of the round. Open circles: rounds in which not all seeds "
        "end with it; there, comparisons with others are not between networks that have learned "
        f"alike. Bands: 95 % t intervals over {found.sizes['seed']} seeds.",
    )


def draw_phases(found: Results) -> Drawn:
    """Gradients, both phases, gaps, and memorised labels or, where there are none, time."""
    fig, (upper, lower) = panels(2, 2)
    draw_gradients(found["gradients"], upper[0])
    draw_curves(found["curves"], upper[1])
    each = [found["shares"].isel(setting=i) for i in range(found["shares"].sizes["setting"])]
    draw_rows({str(one["setting"].item()): lost(one) for one in each}, lower[0], 0)
    lower[0].set(xlabel="fresh less warm (points)", title="(c) gap where both have learned")
    if "memorised" in found:
        gaps = {arm: gap(found["memorised"], arm, "fresh") for arm in ("warm", "shrink-perturb")}
        bars(lower[1], {arm: own for arm, own in gaps.items() if len(own)})
        lower[1].axhline(0, color="0.6", lw=0.6, zorder=0)
        lower[1].set(ylabel="arm less fresh (points)", title="(d) memorised labels first")
        lower[1].set_xlim(-0.5, 1.5)
        last = (
            "The first phase is on all images, half of whose labels are random, the second with "
            "the labels: test accuracy less that of fresh; "
            f"{found['memorised'].sizes['seed']} seeds, in grey."
        )
    else:
        draw_rows({str(i): time_of(one["epochs"]) for i, one in enumerate(each)}, lower[1], 1)
        lower[1].set(xlabel="epochs to 99 %, warm / fresh", title="(d) time", yticklabels=[])
        last = "Epochs to a training accuracy of 99 % of warm, divided by those of fresh."
    return Drawn(
        fig,
        "(a) Norm of the gradient on old and new data where the second phase starts, against the "
        "factor by which the weights are shrunk (λ = 1 is the warm start, 0 the fresh one; between "
        "them a tenth of new weights is added). (b) Test accuracy when half of the data come "
        "first. (c) Test accuracy of fresh less that of warm where both have learned the training "
        "set, for networks and the share of the data that comes first; logistic regression, which "
        f"is convex, in any case. (d) {last} Means with 95 % t intervals, over "
        f"{found['shares'].sizes['seed']} seeds if not said otherwise.",
    )


def draw_gradients(found: xr.Dataset, ax: Axes) -> None:
    """Norms of the gradient against the factor."""
    for name in found["data"].values:
        norm = found["norm"].sel(data=name).transpose("seed", "factor")
        band(ax, found["factor"], norm, f"{name} data", geometric=True, marker="o", ms=2.5)
    ax.set(yscale="log", xlabel="factor of the weights, λ", ylabel="norm of the gradient")
    ax.set_title("(a) where the second phase starts")
    ax.legend()


def draw_curves(found: xr.Dataset, ax: Axes) -> None:
    """Test accuracies through the first phase, then of warm and fresh."""
    end = found.attrs["phase_epochs"]
    names = {"first": "half of the data", "fresh": "fresh", "warm": "warm"}
    for (name, label), colour in zip(names.items(), ("0.5", "C0", "C1"), strict=True):
        one = found["test_accuracy"].sel(phase=name).transpose("seed", "epoch")
        epochs = found["epoch"].values + (0 if name == "first" else end)
        band(ax, epochs, points(one), label, color=colour)
    ax.axvline(end, color="0.8", lw=0.6, zorder=0)
    ax.set(xlabel="epoch", ylabel="test accuracy (%)", title="(b) half of the data first")
    ax.legend(loc="lower right")


def draw_rows(means: Mapping[str, Effect], ax: Axes, usual: float) -> None:
    """Means with their intervals, one below the other, and a line at what is usual."""
    rows, values = range(len(means)), list(means.values())
    ends = [[abs(getattr(one, end) - one.mean) for one in values] for end in ("low", "high")]
    ax.errorbar([one.mean for one in values], rows, xerr=ends, fmt="o", capsize=2)
    ax.axvline(usual, color="0.6", lw=0.6, zorder=0)
    ax.set_yticks(rows, list(means))
    ax.set_ylim(len(means) - 0.5, -0.5)


def draw_grid(found: xr.Dataset) -> Drawn:
    """Accuracy and time of the second phase over both factors, as colours and in figures."""
    fig, (row,) = panels(2, height=2.1)
    found = found.assign(test_accuracy=100 * found["test_accuracy"])
    texts = {"test_accuracy": "test accuracy (%)", "epochs": "epochs to 99 %"}
    for ax, (name, text), norm in zip(row, texts.items(), (Normalize(), LogNorm()), strict=True):
        means = found[name].mean("seed").transpose("perturb", "shrink")
        ax.imshow(means, aspect="auto", origin="lower", norm=norm)
        for (j, i), mean in np.ndenumerate(means):
            if np.isfinite(mean):
                colour = "black" if norm(mean) > 0.6 else "white"
                ax.text(i, j, f"{mean:.1f}", ha="center", va="center", size=6, color=colour)
        ax.set_xticks(range(means.sizes["shrink"]), [f"{own:g}" for own in means["shrink"].values])
        ax.set_yticks(range(len(means)), [f"{own:g}" for own in means["perturb"].values])
        ax.set(xlabel="factor of the weights, λ", ylabel="factor of new weights, γ", title=text)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
    return Drawn(
        fig,
        "Shrink and perturb after a first phase in which half of the labels are random: the second "
        "phase starts from λ times the weights and γ times new ones. Left: test accuracy. Right: "
        f"epochs to a training accuracy of 99 %, at most {found.attrs['most_epochs']}. The warm "
        "start is λ = 1, γ = 0, the fresh one λ = 0, γ = 1; nothing can be learned from λ = γ = 0. "
        f"Means over {found.sizes['seed']} seeds.",
    )


# Judging ------------------------------------------------------------------------------------------


def judge(found: Results) -> list[Claim]:
    """A verdict on each claim of the study."""
    claims = judge_gradients(found["gradients"]) + judge_shares(found["shares"])
    if "memorised" in found:
        claims += judge_noise(found["memorised"], found["grid"])
    return claims + judge_online(found["online"])


def judge_gradients(found: xr.Dataset) -> list[Claim]:
    """A1: new data pull much harder than old ones, unless the weights are shrunk."""
    warm, shrunk = (
        ratio(*(found["norm"].sel(factor=factor, data=data) for data in ("new", "old")))
        for factor in (1.0, HALF)
    )
    known = replace(effect(points(found["old_accuracy"].sel(factor=HALF))), p=math.nan)
    claim = partial(judged, "A1", PHASES, gated=found.attrs["scale"] != "full")
    text = "norm of the gradient, new / old data"
    return [
        claim("A warm start learns from new data with far larger gradients",
              f"{text}, λ = 1", warm, at_least=50),
        claim("Shrinking balances the gradients",
              f"{text}, λ = 0.5, γ = 0.1", shrunk, at_most=1.5),
        claim("Shrinking keeps what was learned",
              "accuracy on old data (%), λ = 0.5, γ = 0.1", known, at_least=99),
    ]  # fmt: skip


def judge_shares(found: xr.Dataset) -> list[Claim]:
    """A0: the gap after a first phase on a share of the data; the control is convex.

    At full scale residual networks must show it, by 2 points; on digits it is told alone.
    """
    claims = []
    for number in range(found.sizes["setting"]):
        one = found.isel(setting=number)
        network, mean = one["network"].item(), lost(one)
        which = f"{network}, {one['share'].item():.0%} first"
        text = f"fresh - warm (points), {which}"
        if network == CONVEX:
            claims.append(
                judged("A control", PHASES, "A convex model does not mind where it starts",
                       text, mean, within=0.5, expected="null")
            )  # fmt: skip
            continue
        gated = found.attrs["scale"] == "full" and network.startswith("ResNet")
        claims += [
            judged("A.6" if gated else "A0", PHASES,
                   "A warm start generalises worse than a fresh one" if gated else COST,
                   f"{text}; {mean.num} of {one.sizes['seed']} pairs learned", mean,
                   at_least=2, p_below=0.05, also={"n >= 3": mean.num >= 3}, gated=gated),
            judged("A time", PHASES, "A warm start saves time",
                   f"epochs to 99 %, warm / fresh, {which}", time_of(one["epochs"]),
                   expected="report"),
        ]  # fmt: skip
    return claims


def judge_noise(found: xr.Dataset, grid: xr.Dataset) -> list[Claim]:
    """A2: what was memorised hurts a warm start, and shrink and perturb mends it.

    And how large the region of both factors is that is as good as fresh and saves time.
    """
    warm, mended = (effect(gap(found, arm, "fresh")) for arm in ("warm", "shrink-perturb"))
    of = f"pairs of {found.sizes['seed']} learned"
    cells = grid.mean("seed")
    fresh, num = cells.sel(shrink=0, perturb=1), int(cells["epochs"].notnull().sum())
    good = cells["test_accuracy"] >= fresh["test_accuracy"] - 0.004
    both = int((good & (cells["epochs"] < fresh["epochs"])).sum())
    return [
        judged("A2", PHASES, "A warm start from memorised labels generalises worse",
               f"warm - fresh (points); {warm.num} {of}", warm, at_most=-0.5, p_below=0.01),
        judged("A2", PHASES, "Shrink and perturb generalises like a fresh start",
               f"shrink-perturb - fresh (points); {mended.num} {of}", mended, within=0.4),
        judged("A grid", GRID, "How much room shrink and perturb leaves for its two factors",
               f"pairs of λ and γ, of {num}, within 0.4 points of fresh and faster", both,
               expected="report"),
    ]  # fmt: skip


def judge_online(found: xr.Dataset) -> list[Claim]:
    """A3: over rounds, shrink and perturb generalises better than warm, which is faster than fresh.

    At full scale the arm is the one of λ = 0.4, and all is told without a condition.
    """
    arm = next(arm for arm in ("shrink-perturb", "shrink 0.4") if arm in found["arm"])
    last, total = found.isel(round=-1), found["epochs"].sum("round")
    better, plain = effect(gap(last, arm, "warm", 0.0)), effect(gap(last, "fresh", "warm"))
    claim = partial(judged, "A3", ONLINE, gated=found.attrs["scale"] != "full")
    saves = "Starting from the weights at hand saves time"
    return [
        claim("Shrink and perturb generalises better than warm starts",
              f"{arm} - warm (points), last round", better, at_least=5, p_below=0.01),
        claim(saves, "epochs to 99 %, warm / fresh, all rounds", time_of(total), at_most=0.6),
        claim(saves, f"epochs to 99 %, {arm} / fresh, all rounds", time_of(total, arm),
              expected="report"),
        claim(COST,
              "fresh - warm (points), last round; "
              f"{plain.num} of {last.sizes['seed']} pairs learned", plain, expected="report"),
    ]  # fmt: skip


if __name__ == "__main__":
    run_study(measure, draw, judge)
