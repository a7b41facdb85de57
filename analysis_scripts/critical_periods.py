"""Does a deficit early in training leave a trace for good, and when is the network most sensitive?

`python analysis_scripts/critical_periods.py --scale small`, after Achille, Rovere and Soatto (arXiv
1711.08856). Networks see training images with a deficit for a while, and are then trained without
it; test images never have one. Seeds are paired. The parts:

- `removal`: blur from the beginning to one of several epochs, and equally many clean epochs after
  it. The learning rate is annealed by epochs of the run, as in the paper; or it is constant; or it
  is constant until the blur is removed and annealed from there (re-annealed). The latter two show
  what is due to a rate that is already small when clean images come.
- `windows`: blur for some epochs from an onset on, with an annealed and a constant rate.
- `deficits`: blur, noise in place of images, images upside down and permuted labels, at a constant
  rate, and then a fresh annealing on clean data. The criterion's reference is a run that has only
  the clean epochs, as for removal at epoch 0: less than that means harm by the deficit. A run that
  is equally long without a deficit stands beside it, from which a deficit also differs by what
  clean images would have taught in its epochs.
- `deficits_sweep`: the other deficits in the set-up of `removal`.
- `fisher`: the trace of the Fisher information of the weights through training, on clean training
  images, with labels that are drawn from the network. The curve is reported; that it explains the
  critical period is disputed.

The small scale trains fully connected networks on digits. The networks of `fisher` begin with small
weights there, without which the trace begins at its maximum. The full scale trains All-CNN on
CIFAR-10, 48 runs with three seeds and 11,520 epochs in all; there `removal` and `windows` are
annealed only, and `deficits` has the control. Criteria of the full scale are its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np
import torch
import xarray as xr
from matplotlib import colormaps
from scipy import stats
from torch import nn
from torch.nn.functional import cross_entropy

from landscape import checkpoints, models
from landscape.analyses.fisher_training import fisher_over_training
from landscape.experiments import At, During, Run, Seeds, comparisons
from landscape.experiments.augmentations import Flip, Shift
from landscape.experiments.deficits import Blur, NoiseImages, PermutedLabels, flip_vertical
from landscape.experiments.regularisation import (
    compared_deficits,
    removal_sweep,
    sensitivity_windows,
)
from landscape.experiments.runs import Policy, View
from landscape.experiments.schedules import Exponential
from landscape.results import dataset
from landscape.task import Task
from shared import (
    Claim,
    Drawn,
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

RATE = 0.05
DEFICITS = ("blur", "noise", "flip", "permuted")
REFERENCES = {"fresh": "clean epochs alone", "none": "none, equally long"}
ANNEALED, CONSTANT, RE_ANNEALED = "annealed", "constant", "re-annealed"
POLICIES: dict[str, Policy] = {  # a constant rate is the same whatever clock it follows
    ANNEALED: "continue", CONSTANT: "continue", RE_ANNEALED: "re-anneal",
}  # fmt: skip
LOOKS: dict[str, dict[str, Any]] = {
    ANNEALED: {"color": "C0", "marker": "o"},
    CONSTANT: {"color": "C1", "marker": "s"},
    RE_ANNEALED: {"color": "C2", "marker": "D"},
    "fresh": {"color": "C4", "marker": "v"},
    "none": {"color": "C5", "marker": "^"},
}

Part = dict[str, Any]  # `clean` epochs follow a deficit, blur is to `size` pixels
Arms = Callable[[Run, Part, int, Policy], dict[Any, Run]]  # of a run without deficit, and a seed
TRACED: Part = {
    "at": (0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 21, 25, 30, 40, 60, 61, 65, 80, 120), "during": 40,
    "size": 3, "seeds": 12, "examples": 900, "images": 900, "start": 0.3,
}  # fmt: skip
TRIED: Part = {"at": (0, 1, 2, 3, 5), "during": 2, "examples": 300, "images": 300}
SCALES: dict[str, dict[str, Part]] = {
    "tiny": {
        "removal": {"policies": POLICIES, "ends": (0, 1, 2, 3), "clean": 2, "size": 3, "seeds": 2,
                    "examples": 300},
        "windows": {"policies": (ANNEALED, CONSTANT), "onsets": (0, 2), "width": 2, "clean": 2,
                    "size": 2, "seeds": 2, "examples": 300},
        "deficits": {"policies": (RE_ANNEALED,), "arms": (*REFERENCES, *DEFICITS), "until": 2,
                     "clean": 2, "size": 3, "factor": 0.95, "seeds": 2, "examples": 300},
        "deficits_sweep": {"policies": (ANNEALED, RE_ANNEALED), "arms": DEFICITS[1:], "until": 2,
                           "clean": 2, "size": 3, "seeds": 2, "examples": 300},
        "fisher": TRACED | TRIED | {"policies": (ANNEALED,), "ends": (0, 1, 3)},
        "fisher_constant": TRACED | TRIED | {"policies": (CONSTANT,), "ends": (0, 3)},
    },
    "small": {
        "removal": {"policies": POLICIES, "ends": (0, 20, 40, 80, 120), "clean": 60, "size": 3,
                    "seeds": 12, "examples": 900},
        "windows": {"policies": (ANNEALED, CONSTANT), "onsets": (0, 20, 40, 60, 80, 120),
                    "width": 40, "clean": 120, "size": 2, "seeds": 12, "examples": 300},
        "deficits": {"policies": (RE_ANNEALED,), "arms": (*REFERENCES, *DEFICITS), "until": 120,
                     "clean": 60, "size": 3, "factor": 0.95, "seeds": 24, "examples": 300},
        "deficits_sweep": {"policies": (ANNEALED, RE_ANNEALED), "arms": DEFICITS[1:], "until": 80,
                           "clean": 60, "size": 3, "seeds": 12, "examples": 900},
        "fisher": TRACED | {"policies": (ANNEALED,), "ends": (0, 20, 60)},
        "fisher_constant": TRACED | {"policies": (CONSTANT,), "ends": (0, 60)},
    },
    "full": {
        "removal": {"policies": (ANNEALED,), "ends": (0, 40, 80, 120), "clean": 160, "size": 8,
                    "seeds": 3},
        "windows": {"policies": (ANNEALED,), "onsets": (0, 40, 80, 120), "width": 40, "clean": 160,
                    "size": 8, "seeds": 3},
        "deficits": {"policies": (RE_ANNEALED,), "arms": (*REFERENCES, *DEFICITS[:3]), "until": 80,
                     "clean": 160, "size": 8, "seeds": 3},
        "fisher": {"policies": (ANNEALED,), "ends": (0, 80), "during": 40, "size": 8, "seeds": 3,
                   "at": (0, 1, 2, 4, 6, 8, 10, 15, 20, 30, 40, 60, 80, 81, 82, 85, 90, 100, 120,
                          160, 200, 240), "images": 2000},
    },
}  # fmt: skip


# Runs ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """Runs over `coords`, of which the last changes fastest, and what a result tells of them."""

    coords: dict[str, Any]
    runs: list[Run]
    attrs: dict[str, Any]


def measure(settings: Settings) -> dict[str, xr.Dataset]:
    """Train all runs; accuracies after each deficit, and Fisher traces through training."""
    found = trials(settings)
    runs = [run for trial in found.values() for run in trial.runs]
    settings.check_time(runs[0], sum(run.epochs for run in runs))
    measures = {name: traces if "fisher" in name else accuracies for name in found}
    return {
        name: settings.kept(name, partial(measures[name], settings, trial))
        for name, trial in found.items()
    }


def trials(settings: Settings) -> dict[str, Trial]:
    """The runs of each part, over policies of the learning rate, seeds and the part's own arms."""
    kinds: dict[str, tuple[str, Arms]] = {
        "removal": ("removal", removal), "windows": ("onset", windows),
        "deficits": ("arm", deficits), "deficits_sweep": ("arm", deficits),
        "fisher": ("removal", fisher), "fisher_constant": ("removal", fisher),
    }  # fmt: skip
    base, found = base_of(settings), {}
    for name, part in SCALES[settings.scale].items():
        last, arms_of = kinds[name]
        seeds = list(settings.seeds(part["seeds"]))
        arms = [
            arms_of(base(part, f"{name}/{policy}", policy, seed), part, seed, POLICIES[policy])
            for policy, seed in product(part["policies"], seeds)
        ]
        runs = [run for own in arms for run in own.values()]
        coords = {"policy": list(part["policies"]), "seed": seeds, last: list(arms[0])}
        asked = ("until", "clean", "width", "during", "images", "at")
        attrs = {key: part[key] for key in asked if key in part}
        attrs |= {"examples": runs[0].data.num_examples, "scale": settings.scale}
        found[name] = Trial(coords, runs, attrs)
    return found


def base_of(settings: Settings) -> Callable[[Part, str, str, int], Run]:
    """What all runs of a scale have in common, and the data, rate and seed of one."""
    common: dict[str, Any] = {
        "epochs": 1, "weight_decay": 1e-3, "checkpoints": (), "test_every": 10_000,
        "last_batch": "smaller",
    }  # fmt: skip
    if settings.scale == "full":
        images = settings.images()
        common |= {
            "make_model": models.all_cnn, "batch_size": 128, "precision": "bfloat16",
            "channels_last": True, "augmentations": (During(Shift(4)), During(Flip())),
        }  # fmt: skip
    else:
        common |= {"make_model": partial(models.mlp, 64, (128, 128)), "batch_size": 64}
        drawn = cache(digits)

    def base(part: Part, name: str, policy: str, seed: int) -> Run:
        train, test = images if settings.scale == "full" else drawn(seed, part["examples"])
        lr = RATE if policy == CONSTANT else Exponential(RATE, part.get("factor", 0.97))
        name = f"{name}/seed-{seed}"
        return Run(name=name, data=train, test=test, lr=lr, seeds=Seeds.all(seed), **common)

    return base


def removal(base: Run, part: Part, seed: int, policy: Policy) -> dict[int, Run]:
    """Blur from the beginning to each of several epochs, 0 for never."""
    blur, ends = Blur(size=part["size"]), part["ends"]
    runs = removal_sweep(base, blur, ends, clean=part["clean"], lr_policy=policy)
    return dict(zip(ends, runs, strict=True))


def windows(base: Run, part: Part, seed: int, policy: Policy) -> dict[int, Run]:
    """Blur for some epochs from each of several onsets on; -1 stands for never."""
    blur, onsets = Blur(size=part["size"]), part["onsets"]
    runs = sensitivity_windows(
        base, blur, onsets, width=part["width"], clean=part["clean"], lr_policy=policy
    )
    return dict(zip((-1, *onsets), runs, strict=True))


def deficits(base: Run, part: Part, seed: int, policy: Policy) -> dict[str, Run]:
    """Some of: `fresh`, the clean epochs alone; `none`, as long without a deficit; each deficit."""
    views: dict[str, View] = {
        "blur": Blur(size=part["size"]), "noise": NoiseImages(seed), "flip": flip_vertical,
        "permuted": PermutedLabels(10, seed),
    }  # fmt: skip
    clean, until = part["clean"], part["until"]
    (fresh,) = removal_sweep(base, views["blur"], [0], clean=clean, lr_policy=policy)
    long = compared_deficits(base, views, until=until, clean=clean, lr_policy=policy)
    arms = dict(zip((*REFERENCES, *views), (fresh, *long), strict=True))
    return {name: arms[name] for name in part["arms"]}


def fisher(base: Run, part: Part, seed: int, policy: Policy) -> dict[int, Run]:
    """Runs of equal length that keep checkpoints, with blur until each of several epochs.

    The initial weights of the small scale are multiplied by `start`.
    """
    if "start" in part:
        base = replace(base, make_model=partial(small_start, factor=part["start"]))
    runs: dict[int, Run] = {}
    epochs = part["at"][-1]
    steps = [base.timeline.steps * epoch for epoch in part["at"]]  # the base is an epoch long
    base = replace(base, epochs=epochs, checkpoints=(At(steps),))
    for end in part["ends"]:
        runs |= removal(base, part | {"ends": [end], "clean": epochs - end}, seed, policy)
    return runs


def small_start(*, seed: int, factor: float) -> nn.Module:
    """The network of the small scale, with all its initial weights multiplied by a factor."""
    model = models.mlp(64, (128, 128), seed=seed)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(factor)
    return model


def accuracies(settings: Settings, trial: Trial) -> xr.Dataset:
    """Train runs; their test accuracies at the end, as shares, over the coordinates."""
    settings.train(sorted(trial.runs, key=lambda run: run.epochs))  # those that end together
    found = comparisons.outcomes(trial.runs, settings.runs_folder)["test_accuracy"]
    shape = [len(values) for values in trial.coords.values()]
    variable = (list(trial.coords), found.values.reshape(shape), found.attrs)
    return dataset(
        {"test_accuracy": variable}, trial.coords, analysis="critical periods",
        title="accuracy after a deficit", **trial.attrs,
    )  # fmt: skip


def traces(settings: Settings, trial: Trial) -> xr.Dataset:
    """Train runs; the trace of each layer at each checkpoint, on clean training images."""
    settings.train(trial.runs)
    found = []
    for run in trial.runs:
        train = run.data.subset(range(min(trial.attrs["images"], run.data.num_examples)))
        task = Task("train", run.build(), partial(cross_entropy, reduction="none"), train)
        states = checkpoints(settings.runs(run))
        result = fisher_over_training(task, states, measures=False, device=settings.device)
        found.append(by_layer(result["trace"]))
    shape = [len(values) for values in trial.coords.values()]
    values = np.reshape([one.values for one in found], (*shape, *found[0].shape))
    coords = trial.coords | {"layer": found[0]["layer"].values, "epoch": list(trial.attrs["at"])}
    note = {"long_name": "trace of the Fisher information"}
    return dataset(
        {"trace": (list(coords), values, note)}, coords, analysis="critical periods",
        title="Fisher information with and without blur", **trial.attrs,
    )  # fmt: skip


def by_layer(trace: xr.DataArray) -> xr.DataArray:
    """The traces (layer, step) of the tensors (step, tensor) of each layer together."""
    layers = [str(name).split(".")[0] for name in trace["tensor"].values]
    summed = trace.groupby(xr.DataArray(layers, dims="tensor", name="layer")).sum()
    return summed.sel(layer=list(dict.fromkeys(layers))).transpose("layer", "step")


# Numbers ------------------------------------------------------------------------------------------


def accuracy(result: xr.Dataset, **arm: Any) -> np.ndarray:
    """Test accuracies (seed, ...) of an arm, in per cent."""
    return points(result["test_accuracy"].sel(**arm).transpose("seed", ...))


def removal_changes(result: xr.Dataset) -> dict[str, np.ndarray]:
    """By policy, points of accuracy (seed, removal) less those of no deficit."""
    found = {policy: accuracy(result, policy=policy) for policy in result["policy"].values}
    return {policy: own - own[:, :1] for policy, own in found.items()}


def deficit_changes(results: Results) -> dict[str, dict[str, np.ndarray]]:
    """By policy or reference, and deficit: points of accuracy (seed,) less those without it."""
    compared = {arm: (results["deficits"], RE_ANNEALED, arm) for arm in REFERENCES}
    if "deficits_sweep" in results:
        swept = results["deficits_sweep"]
        policies, ends = swept["policy"].values, [0, swept.attrs["until"]]
        known = results["removal"].sel(policy=policies, removal=ends).rename(removal="arm")
        swept = xr.concat([known.assign_coords(arm=["none", "blur"]), swept], "arm")
        compared = {policy: (swept, policy, "none") for policy in policies} | compared
    return {
        against: {
            name: accuracy(one, policy=policy, arm=name) - accuracy(one, policy=policy, arm=none)
            for name in DEFICITS
            if name in one["arm"]
        }
        for against, (one, policy, none) in compared.items()
    }


def totals(result: xr.Dataset) -> xr.DataArray:
    """The trace of all layers (removal, seed, epoch)."""
    total = result["trace"].isel(policy=0).sum("layer")
    return total.transpose("removal", "seed", "epoch")


def shares(result: xr.Dataset) -> xr.DataArray:
    """The share of each layer in the trace (removal, layer, seed, epoch), in per cent."""
    share = 100 * (result["trace"] / result["trace"].sum("layer")).isel(policy=0)
    return share.transpose("removal", "layer", "seed", "epoch")


# Figures ------------------------------------------------------------------------------------------


def draw(results: Results) -> dict[str, Drawn]:
    """The figures, from the results alone."""
    return {
        "critical_periods_removal": removal_figure(results["removal"], results["windows"]),
        "critical_periods_deficits": deficit_figure(results),
        "critical_periods_fisher": fisher_figure(results),
    }


def removal_figure(removal: xr.Dataset, windows: xr.Dataset) -> Drawn:
    """Accuracy against the end of the blur, and the loss by its onset."""
    fig, axes = panels(2, height=2.5)
    left, right = axes[0]
    for policy in removal["policy"].values:
        own = accuracy(removal, policy=policy)
        band(left, removal["removal"], own, policy, **LOOKS[policy])
    for policy in windows["policy"].values:
        own = accuracy(windows, policy=policy)
        band(right, windows["onset"][1:], own[:, 1:] - own[:, :1], **LOOKS[policy])
    right.axhline(0, color="0.6", lw=0.6, zorder=0)
    left.set(xlabel="end of the blur (epoch)", ylabel="test accuracy (%)")
    left.set_title("blur from the start")
    right.set(xlabel="onset of the blur (epoch)", ylabel="change of test accuracy (points)")
    right.set_title(f"blur for {windows.attrs['width']} epochs")
    shown = left.get_legend_handles_labels()
    fig.legend(*shown, loc="outside upper center", ncols=3, title="learning rate")
    return Drawn(
        fig,
        "Left: test accuracy of networks that saw blurred images until an epoch, and clean ones "
        "after it. Right: the change of test accuracy by a window of blur, from networks without "
        "blur. Annealed: the learning rate falls by 3 % an epoch from the start; constant: never; "
        "re-annealed: from where the blur ends. Bands are 95 % t intervals of the mean over "
        f"{removal.sizes['seed']} seeds (left) and {windows.sizes['seed']} (right).",
    )


def deficit_figure(results: Results) -> Drawn:
    """All deficits: annealed and re-annealed, and against both runs without deficit."""
    result, swept = results["deficits"], results.get("deficits_sweep")
    fig, axes = panels(1 if swept is None else 2, height=2.3, sharey=True)
    for number, (against, changes) in enumerate(deficit_changes(results).items()):
        ax = axes[0, -1 if against in REFERENCES else 0]
        places = np.arange(len(changes)) + (0.12 if number % 2 else -0.12)
        found = [effect(own) for own in changes.values()]
        means = np.array([one.mean for one in found])
        errors = means - [one.low for one in found]
        label = REFERENCES.get(against, against)
        ax.errorbar(places, means, errors, ls="none", capsize=2, label=label, **LOOKS[against])
        ax.set_xticks(range(len(changes)), list(changes))
        ax.axhline(0, color="0.6", lw=0.6, zorder=0)
    axes[0, 0].set_ylabel("change of test accuracy (points)")
    axes[0, -1].legend(title="re-annealed, compared with")
    title, caption = "until epoch {until}, {examples} images", "Change of test accuracy "
    axes[0, -1].set_title(title.format_map(result.attrs))
    if swept is not None:
        axes[0, 0].set_title(title.format_map(swept.attrs))
        axes[0, 0].legend(title="learning rate")
        caption = (
            "Left: change of test accuracy by a deficit until an epoch, from networks without it, "
            "with a rate that is annealed from the start, or from where the deficit ends "
            f"({swept.sizes['seed']} seeds). Right: the same "
        )
    return Drawn(
        fig,
        f"{caption}after a deficit at a constant rate and {result.attrs['clean']} clean epochs of "
        "annealing, from networks without deficit that have only the clean epochs (the reference "
        f"of the criterion), or equally many in all ({result.sizes['seed']} seeds). Bars are 95 % "
        "t intervals of the mean over paired seeds. Flip: images upside down; permuted: labels of "
        "other classes.",
    )


def fisher_figure(results: Results) -> Drawn:
    """The total trace through training, and the shares of layers with and without deficit."""
    fig, axes = panels(3, height=2.5)
    left, result = axes[0, 0], results["fisher"]
    epochs, ends = result["epoch"], [int(end) for end in result["removal"]]
    names = {end: f"blur to {end}" if end else "no blur" for end in ends}
    for end, total in zip(ends, totals(result), strict=True):
        band(left, epochs, total, names[end], geometric=True, color=f"C{ends.index(end)}")
    if "fisher_constant" in results:
        for total in totals(results["fisher_constant"]):
            look = {"color": f"C{ends.index(int(total['removal']))}", "ls": ":"}
            band(left, epochs, total, geometric=True, **look)
        left.plot([], [], ":", color="0.4", label="constant rate")
    left.set(yscale="log", ylabel="trace of the Fisher information", title="all layers")
    colours = colormaps["viridis"](np.linspace(0, 0.9, result.sizes["layer"]))
    for ax, end in zip(axes[0, 1:], (0, ends[-1]), strict=True):
        for share, colour in zip(shares(result).sel(removal=end), colours, strict=True):
            band(ax, epochs, share, str(share["layer"].values), color=colour)
        ax.set(ylim=(0, 100), title=names[end])
    axes[0, 1].set_ylabel("share of the trace (%)")
    ticks = [tick for tick in (0, 5, 10, 20, 50, 100, 200) if tick <= epochs[-1]]
    for ax, marked in zip(axes[0], (ends[1:], [], ends[-1:]), strict=True):
        ax.set_xscale("symlog", linthresh=10, linscale=0.7)
        ax.set(xlabel="epoch", xlim=(0, epochs[-1]))
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.set_xticks([], minor=True)
        for end in marked:
            ax.axvline(end, color="0.8", lw=0.8, zorder=0)
    arms, layers = (ax.get_legend_handles_labels() for ax in axes[0, :2])
    fig.legend(*arms, loc="outside upper left", ncols=2)
    fig.legend(*layers, loc="outside upper right", ncols=2 if len(colours) < 5 else 3)
    return Drawn(
        fig,
        "Trace of the Fisher information through training, with blurred images until the epochs "
        "of the vertical lines, or without blur. Left: the total (geometric mean over seeds); the "
        "learning rate falls by 3 % an epoch, or is constant (dotted). Others: the share of each "
        f"layer, with the former. On {result.attrs['images']} clean training images; epochs are "
        "linear up to 10, then logarithmic. Bands are 95 % t intervals of the mean over "
        f"{result.sizes['seed']} seeds.",
    )


# Verdicts -----------------------------------------------------------------------------------------


def judge(results: Results) -> list[Claim]:
    """A verdict on each criterion of section B, from the results alone."""
    claims = removal_claims(results["removal"]) + window_claims(results["windows"])
    return claims + deficit_claims(results) + fisher_claims(results)


def removal_claims(result: xr.Dataset) -> list[Claim]:
    """B1 and its controls: changes from no deficit, the main one for the last end but one."""
    ends, changes = result["removal"].values, removal_changes(result)
    means = {policy: own.mean(0) for policy, own in changes.items()}
    worst = abs(means.get(CONSTANT, means[ANNEALED])).argmax()
    late, later = (f"test accuracy, blur until epoch {end} less none, points" for end in ends[-2:])
    most = "test accuracy, the largest change of all ends of the blur, points"
    left = "what is left if annealing starts when the blur is removed"
    gate: dict[str, Any] = {"at_most": -4.0}
    if result.attrs["scale"] != "full":
        worse = bool((np.diff(means[ANNEALED][-3:]) < 0).all())
        gate = {"at_most": -1.0, "p_below": 1e-3, "also": {"longer is worse": worse}}
    told: list[tuple[Any, ...]] = [
        ("B1", ANNEALED, -2, "blur that is removed late hurts for good if the rate is annealed",
         late, gate),
        ("B1c", CONSTANT, worst, "with a constant rate it does not", most,
         {"within": 0.5, "expected": "null"}),
        ("B1 reset", RE_ANNEALED, -2, left, late, {}),
        ("B1 reset", RE_ANNEALED, -1, left, later, {}),
    ]  # fmt: skip
    return [
        judged(name, "critical_periods_removal", claim, quantity,
               effect(changes[policy][:, place]), gated=bool(gate), **gate)
        for name, policy, place, claim, quantity, gate in told
        if policy in changes
    ]  # fmt: skip


def window_claims(result: xr.Dataset) -> list[Claim]:
    """B2: the first window against the last, and the order of all, for each policy."""
    figure, onsets, claims = "critical_periods_removal", result["onset"].values[1:], []
    for policy in result["policy"].values:
        gated = policy == ANNEALED and result.attrs["scale"] != "full"
        name = "B2" if policy == ANNEALED else f"B2 {policy}"
        own = accuracy(result, policy=policy)[:, 1:]
        ends, order = (
            ("blur hurts most at the beginning", "the later it comes, the less it hurts")
            if gated
            else ("what it matters when blur comes", "how its harm goes with its onset")
        )
        claims += [
            judged(
                name, figure, ends,
                f"test accuracy, blur from epoch {onsets[-1]} less from epoch 0, points",
                effect(own[:, -1] - own[:, 0]), at_least=0.4, gated=gated,
            ),
            judged(
                name, figure, order,
                "Spearman correlation of onset and mean test accuracy",
                float(stats.spearmanr(onsets, own.mean(0)).statistic), at_least=0.8, gated=gated,
            ),
        ]  # fmt: skip
    return claims


def deficit_claims(results: Results) -> list[Claim]:
    """B3: each deficit against the reference, and what else came of it; B1 for the sweep."""
    null: dict[str, Any] = {"at_least": -1.5, "expected": "null"}
    gates: dict[str, dict[str, Any]] = {"noise": null, "flip": null}
    if results["deficits"].attrs["scale"] != "full":
        gates = {"blur": {"at_most": -0.25, "p_below": 0.05}, "noise": null | {"at_least": -0.2}}
    said = {
        "blur": "blur leaves a trace even after a fresh annealing",
        "noise": "noise in place of images leaves none",
        "flip": "images upside down leave none",
    }
    left = "what a deficit leaves after a fresh annealing"
    figure, other, claims = (
        "critical_periods_deficits",
        "what other deficits cost in that set-up",
        [],
    )
    for against, changes in deficit_changes(results).items():
        for name, own in changes.items():
            if against in REFERENCES:
                gate = gates.get(name, {}) if against == "fresh" else {}
                told = f"B3 {name}", figure, said[name] if gate else left
                what = f"{name} less {REFERENCES[against]}"
            elif name != "blur":
                gate, told = {}, (f"B1 {name}", figure, other)
                until = results["deficits_sweep"].attrs["until"]
                what = f"{name} until epoch {until} less none, {against}"
            else:  # B1 itself
                continue
            quantity = f"test accuracy, {what}, points"
            claims.append(judged(*told, quantity, effect(own), gated=bool(gate), **gate))
    return claims


def fisher_claims(results: Results) -> list[Claim]:
    """B4: ratios of total traces, paired over seeds."""
    result, now = results["fisher"], {"epoch": results["fisher"].attrs["during"]}
    none, blurred = totals(result)[[0, -1]]
    peak = int(np.log(none.values).mean(0).argmax())
    first, top, last = (none.isel(epoch=place) for place in (0, peak, -1))
    during = f"trace at epoch {now['epoch']}, blur over none"
    after = "trace at the end, blur over none"
    told: list[tuple[Any, ...]] = [
        ("B4 rise", "the trace rises at first", "trace without deficit, peak over initial",
         ratio(top, first), {"at_least": 5.0}),
        ("B4 fall", "and then falls", "trace without deficit, final over peak",
         ratio(last, top), {"at_most": 0.3}),
        ("B4 during", "a deficit keeps it high", during,
         ratio(blurred.sel(now), none.sel(now)), {"at_least": 5.0}),
        ("B4 after", "and it stays higher to the end", after,
         ratio(blurred.isel(epoch=-1), last), {"at_least": 1.5}),
        ("B4 peak", "when the trace is highest without deficit",
         "epoch of the peak of the mean trace", float(none["epoch"][peak]), {}),
    ]  # fmt: skip
    if "fisher_constant" in results:
        none, blurred = totals(results["fisher_constant"])[[0, -1]]
        told += [
            ("B4 constant", "what a deficit does to it with a constant rate", quantity,
             ratio(blurred.sel(at), none.sel(at)), {})
            for quantity, at in ((during, now), (after, {"epoch": none["epoch"][-1]}))
        ]  # fmt: skip
    none, blurred = shares(result)[[0, -1], -1].sel(now)
    told += [
        ("B4 layers", "what a deficit does to its share in the last layer",
         f"share of the last layer at epoch {now['epoch']}, blur less none, points",
         effect(blurred - none), {}),
    ]  # fmt: skip
    small = result.attrs["scale"] != "full"
    return [
        judged(name, "critical_periods_fisher", claim, quantity, found,
               gated=small and bool(gate), **gate)
        for name, claim, quantity, found, gate in told
    ]  # fmt: skip


if __name__ == "__main__":
    run_study(measure, draw, judge)
