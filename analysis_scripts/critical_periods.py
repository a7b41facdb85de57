"""Does a deficit early in training leave a trace for good, and when is the network most sensitive?

`python analysis_scripts/critical_periods.py --scale small`, after Achille, Rovere and Soatto (arXiv
1711.08856). Networks see training images with a deficit for a while, and are then trained without
it; test images never have one. Four parts, each with paired seeds:

- `removal`: blur from the beginning to one of several epochs, and equally many clean epochs after
  it. The learning rate is annealed by epochs of the run, as in the paper; or it is constant; or it
  is constant until the blur is removed and annealed from there (re-annealed). The latter two show
  what is due to a rate that is already small when clean images come.
- `windows`: blur for some epochs from an onset on, with an annealed and a constant rate.
- `deficits`: blur, noise in place of images, images upside down and permuted labels, at a constant
  rate, and then a fresh annealing on clean data. There are two runs without deficit to compare
  with: one that has only the clean epochs (as for removal at epoch 0), and one that is as long.
  `deficits_sweep` has the same deficits in the set-up of `removal`.
- `fisher`: the trace of the Fisher information of the weights through training, on clean training
  images, with labels that are drawn from the network. The curve is reported; that it explains the
  critical period is disputed.

The small scale trains fully connected networks on digits. The networks of `fisher` begin with small
weights there, without which the trace begins at its maximum. The full scale trains All-CNN on
CIFAR-10, 48 runs with three seeds and 11,520 epochs in all; there `removal` and `windows` are
annealed only, and `deficits` has the control. Criteria of the full scale are its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np
import torch
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from numpy.typing import ArrayLike
from scipy import stats
from torch import nn
from torch.nn.functional import cross_entropy

from landscape import checkpoints, models
from landscape.analyses.fisher_training import fisher_over_training
from landscape.experiments import At, During, Run, Seeds, Window, comparisons
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
    Effect,
    Settings,
    band,
    digits,
    effect,
    judged,
    panels,
    points,
    run_study,
)

RATE = 0.05
DEFICITS = ("blur", "noise", "flip", "permuted")
ANNEALED, CONSTANT, RE_ANNEALED = "annealed", "constant", "re-annealed"
LR_POLICIES: dict[str, Policy] = {  # a constant rate is the same whatever clock it follows
    ANNEALED: "continue", CONSTANT: "continue", RE_ANNEALED: "re-anneal",
}  # fmt: skip


@dataclass(frozen=True)
class Removal:
    """Blur to `size` pixels until each of `ends`, then `clean` epochs; `seeds` of each."""

    ends: tuple[int, ...]
    clean: int
    size: int
    seeds: int
    policies: tuple[str, ...] = (ANNEALED, CONSTANT, RE_ANNEALED)
    examples: int = 900
    others: bool = True  # the other deficits too, until the last epoch but one of `ends`


@dataclass(frozen=True)
class Windows:
    """Blur for `width` epochs from each of `onsets`, then `clean` epochs."""

    onsets: tuple[int, ...]
    width: int
    clean: int
    size: int
    seeds: int
    policies: tuple[str, ...] = (ANNEALED, CONSTANT)
    examples: int = 300


@dataclass(frozen=True)
class Deficits:
    """Each deficit until an epoch, then `clean` epochs in which the rate falls by `factor` each."""

    until: int
    clean: int
    size: int
    factor: float
    seeds: int
    names: tuple[str, ...] = DEFICITS
    examples: int = 300


@dataclass(frozen=True)
class Fisher:
    """Blur until each of `ends` in runs of equal length; traces at `at`, on `images` of the data.

    `during` is the epoch at which runs with and without deficit are compared.
    """

    ends: tuple[int, ...]
    epochs: int
    at: tuple[int, ...]
    during: int
    size: int
    seeds: int
    policies: tuple[str, ...] = (ANNEALED, CONSTANT)
    examples: int = 900
    images: int = 900
    start: float = 0.3  # what the initial weights are multiplied by


SCALES: dict[str, tuple[Removal, Windows, Deficits, Fisher]] = {
    "tiny": (
        Removal((0, 1, 2, 3), 2, 3, 2, examples=300),
        Windows((0, 2), 2, 2, 2, 2),
        Deficits(2, 2, 3, 0.95, 2),
        Fisher((0, 1, 3), 5, (0, 1, 2, 3, 5), 2, 3, 2, examples=300, images=300),
    ),
    "small": (
        Removal((0, 20, 40, 80, 120), 60, 3, 12),
        Windows((0, 20, 40, 60, 80, 120), 40, 120, 2, 12),
        Deficits(120, 60, 3, 0.95, 24),
        Fisher(
            (0, 20, 60), 120, (0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 21, 22, 25, 30, 40, 60,
                               61, 62, 65, 70, 80, 100, 120), 40, 3, 12,
        ),
    ),
    "full": (
        Removal((0, 40, 80, 120), 160, 8, 3, (ANNEALED,), others=False),
        Windows((0, 40, 80, 120), 40, 160, 8, 3, (ANNEALED,)),
        Deficits(80, 160, 8, 0.97, 3, ("blur", "noise", "flip")),
        Fisher(
            (0, 80), 240, (0, 1, 2, 4, 6, 8, 10, 15, 20, 30, 40, 60, 80, 81, 82, 85, 90, 100, 120,
                           160, 200, 240), 40, 8, 3, (ANNEALED,), images=2000, start=1.0,
        ),
    ),
}  # fmt: skip


# Runs ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """Runs, and what they are arms of: `coords`, of which the last changes fastest."""

    title: str
    coords: Mapping[str, Any]
    runs: Sequence[Run]
    attrs: Mapping[str, int]


def measure(settings: Settings) -> dict[str, xr.Dataset]:
    """Train all runs; accuracies after each deficit, and Fisher traces through training."""
    removal, windows, deficits, fisher = SCALES[settings.scale]
    base = base_of(settings)
    trials = {
        "removal": removal_trial(settings, base, removal),
        "windows": window_trial(settings, base, windows),
        "deficits": deficit_trial(settings, base, deficits),
    }
    if removal.others:
        trials["deficits_sweep"] = other_trial(settings, base, removal)
    traced = fisher_runs(settings, base, fisher)
    runs = [run for trial in trials.values() for run in trial.runs] + traced
    settings.check_time(runs[0], sum(run.epochs for run in runs))
    found = {
        name: settings.kept(name, partial(accuracies, settings, trial))
        for name, trial in trials.items()
    }
    traces = partial(fisher_result, settings, fisher, traced)
    return found | {"fisher": settings.kept("fisher", traces)}


def accuracies(settings: Settings, trial: Trial) -> xr.Dataset:
    """Train runs; their accuracies at the end, as shares, over the coordinates of the trial."""
    runs = sorted(trial.runs, key=lambda run: run.epochs)
    settings.train(runs)  # in stacks of runs that end together
    found = comparisons.outcomes(trial.runs, settings.folder / "runs")
    shape = [len(values) for values in trial.coords.values()]
    variables = {
        name: (list(trial.coords), found[name].values.reshape(shape), found[name].attrs)
        for name in ("test_accuracy", "train_accuracy")
    }
    return dataset(
        variables, trial.coords, analysis="critical periods", title=trial.title,
        scale=settings.scale, **trial.attrs,
    )  # fmt: skip


Base = Callable[..., Run]


def base_of(settings: Settings) -> Base:
    """A function that gives a run without deficit: `base(name, seed, examples, factor)`.

    The rate falls by `factor` after each epoch.
    """
    common: dict[str, Any] = {
        "epochs": 1, "weight_decay": 1e-3, "checkpoints": (), "test_every": 10_000,
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

    def base(name: str, seed: int, examples: int, factor: float = 0.97) -> Run:
        train, test = images if settings.scale == "full" else drawn(seed, examples)
        lr = Exponential(RATE, factor)
        return Run(name=name, data=train, test=test, lr=lr, seeds=Seeds.all(seed), **common)

    return base


def under(policy: str, run: Run) -> Run:
    """A run at a constant rate if that is the policy, and otherwise as it was."""
    return replace(run, lr=RATE) if policy == CONSTANT else run


def removal_trial(settings: Settings, base: Base, part: Removal) -> Trial:
    """Blur from the beginning to each of several epochs, 0 for never."""
    seeds = settings.seeds(part.seeds)
    runs = [
        run
        for policy, seed in product(part.policies, seeds)
        for run in removal_sweep(
            under(policy, base(f"removal/{policy}/seed-{seed}", seed, part.examples)),
            Blur(size=part.size), part.ends, clean=part.clean, lr_policy=LR_POLICIES[policy],
        )
    ]  # fmt: skip
    coords = {"policy": list(part.policies), "seed": list(seeds), "removal": list(part.ends)}
    return Trial("accuracy after blur", coords, runs, {"examples": part.examples})


def other_trial(settings: Settings, base: Base, part: Removal) -> Trial:
    """The other deficits in the set-up of `removal`, until the last epoch but one of its ends."""
    seeds, until = settings.seeds(part.seeds), part.ends[-2]
    policies = [policy for policy in part.policies if policy != CONSTANT]
    names = [name for name in DEFICITS if name != "blur"]
    runs = [
        run
        for policy, seed, name in product(policies, seeds, names)
        for run in removal_sweep(
            base(f"deficits_sweep/{policy}/seed-{seed}/{name}", seed, part.examples),
            view(name, part.size, seed), [until], clean=part.clean, lr_policy=LR_POLICIES[policy],
        )
    ]  # fmt: skip
    coords = {"policy": policies, "seed": list(seeds), "deficit": names}
    attrs = {"until": until, "examples": part.examples}
    return Trial("accuracy after other deficits than blur", coords, runs, attrs)


def window_trial(settings: Settings, base: Base, part: Windows) -> Trial:
    """Blur from each of several onsets on; an onset of -1 stands for never."""
    seeds = settings.seeds(part.seeds)
    runs = [
        run
        for policy, seed in product(part.policies, seeds)
        for run in sensitivity_windows(
            under(policy, base(f"windows/{policy}/seed-{seed}", seed, part.examples)),
            Blur(size=part.size), part.onsets, width=part.width, clean=part.clean,
            lr_policy=LR_POLICIES[policy],
        )
    ]  # fmt: skip
    coords = {"policy": list(part.policies), "seed": list(seeds), "onset": [-1, *part.onsets]}
    attrs = {"width": part.width, "examples": part.examples}
    return Trial("accuracy after a window of blur", coords, runs, attrs)


def deficit_trial(settings: Settings, base: Base, part: Deficits) -> Trial:
    """Each deficit; `fresh` has only the clean epochs, `none` is as long without a deficit."""
    runs, seeds = [], settings.seeds(part.seeds)
    for seed in seeds:
        one = base(f"deficits/seed-{seed}", seed, part.examples, part.factor)
        views = {name: view(name, part.size, seed) for name in part.names}
        runs += removal_sweep(one, views["blur"], [0], clean=part.clean, lr_policy="re-anneal")
        runs += compared_deficits(
            one, views, until=part.until, clean=part.clean, lr_policy="re-anneal"
        )
    coords = {"seed": list(seeds), "arm": ["fresh", "none", *part.names]}
    attrs = {"until": part.until, "clean": part.clean, "examples": part.examples}
    return Trial("accuracy after a deficit and a fresh annealing", coords, runs, attrs)


def view(name: str, size: int, seed: int) -> View:
    """The deficit of a name."""
    views: dict[str, View] = {
        "blur": Blur(size=size),
        "noise": NoiseImages(seed),
        "flip": flip_vertical,
        "permuted": PermutedLabels(10, seed),
    }
    return views[name]


# Fisher information -------------------------------------------------------------------------------


def fisher_runs(settings: Settings, base: Base, part: Fisher) -> list[Run]:
    """For each policy, end of the blur and seed, a run that keeps checkpoints."""
    runs = []
    for (policy, end), seed in product(fisher_arms(part), settings.seeds(part.seeds)):
        run = under(policy, base(f"fisher/{policy}/{end}/seed-{seed}", seed, part.examples))
        run = replace(run, epochs=part.epochs)
        if part.start != 1:
            run = replace(run, make_model=partial(small_start, factor=part.start))
        if end:
            run = replace(run, views=(During(Blur(size=part.size), Window(0, end)),))
        steps = [run.timeline.step_of(epoch) for epoch in part.at]
        runs.append(replace(run, checkpoints=(At(steps),)))
    return runs


def fisher_arms(part: Fisher) -> list[tuple[str, int]]:
    """Policy and end of the blur: all ends if annealed, else the first and the last."""
    return [
        (policy, end)
        for policy in part.policies
        for end in (part.ends if policy == ANNEALED else part.ends[:: len(part.ends) - 1])
    ]


def small_start(*, seed: int, factor: float) -> nn.Module:
    """The network of the small scale, with all its initial weights multiplied by a factor."""
    model = models.mlp(64, (128, 128), seed=seed)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(factor)
    return model


def fisher_result(settings: Settings, part: Fisher, runs: Sequence[Run]) -> xr.Dataset:
    """Train runs; the trace of each layer over arm, seed and epoch, on clean training images."""
    settings.train(runs)
    arms, seeds = fisher_arms(part), settings.seeds(part.seeds)
    traces = [traces_of(settings, run, part) for run in runs]
    values = np.array([list(one.values()) for one in traces])  # (run, layer, epoch)
    values = values.reshape(len(arms), len(seeds), *values.shape[1:])
    note = {"long_name": "trace of the Fisher information"}
    return dataset(
        {"trace": (("arm", "seed", "layer", "epoch"), values, note)},
        {
            "arm": [f"{policy} {end}" for policy, end in arms],
            "policy": ("arm", [policy for policy, _ in arms]),
            "removal": ("arm", [end for _, end in arms]),
            "seed": list(seeds),
            "layer": list(traces[0]),
            "epoch": list(part.at),
        },
        analysis="critical periods", title="Fisher information with and without blur",
        scale=settings.scale, during=part.during, images=part.images,
    )  # fmt: skip


def traces_of(settings: Settings, run: Run, part: Fisher) -> dict[str, np.ndarray]:
    """For each layer of a run, the trace at each checkpoint."""
    train = run.data.subset(range(min(part.images, run.data.num_examples)))
    task = Task("train", run.build(), partial(cross_entropy, reduction="none"), train)
    states = checkpoints(settings.runs(run))
    return by_layer(
        fisher_over_training(task, states, measures=False, device=settings.device)["trace"]
    )


def by_layer(trace: xr.DataArray) -> dict[str, np.ndarray]:
    """The traces (step, tensor) of the tensors of each layer together, layers by first name."""
    of = [str(name).split(".")[0] for name in trace["tensor"].values]
    values = trace.transpose("tensor", "step").values
    return {layer: values[[one == layer for one in of]].sum(0) for layer in dict.fromkeys(of)}


# Verdicts -----------------------------------------------------------------------------------------


def judge(results: Mapping[str, xr.Dataset]) -> list[Claim]:
    """A verdict on each criterion of section B, from the results alone."""
    claims = removal_claims(results["removal"]) + window_claims(results["windows"])
    claims += deficit_claims(results["deficits"])
    if "deficits_sweep" in results:
        claims += sweep_claims(results["removal"], results["deficits_sweep"])
    return claims + fisher_claims(results["fisher"])


def removal_claims(result: xr.Dataset) -> list[Claim]:
    """B1 and its controls: changes from no deficit, the main one for the last end but one."""
    figure, full = "critical_periods_removal", result.attrs["scale"] == "full"
    ends = result["removal"].values
    changes = {policy: change_by_removal(result, policy) for policy in result["policy"].values}
    main = ends[-2]
    annealed = changes[ANNEALED]
    means = annealed.mean(0)
    gate: dict[str, Any] = {"at_most": -4.0} if full else {
        "at_most": -1.0, "p_below": 1e-3,
        "also": {"longer is worse": bool(means[-1] < means[-2] < means[-3])},
    }  # fmt: skip
    claims = [
        judged(
            "B1", figure, "blur that is removed late hurts for good if the rate is annealed",
            f"test accuracy, blur until epoch {main} less none, points",
            effect(annealed[:, -2]), **gate,
        )
    ]  # fmt: skip
    if CONSTANT in changes:
        worst = int(np.argmax(abs(changes[CONSTANT].mean(0))))
        claims.append(
            judged(
                "B1c", figure, "with a constant rate it does not",
                "test accuracy, the largest change of all ends of the blur, points",
                effect(changes[CONSTANT][:, worst]), within=0.5, expected="null",
            )
        )  # fmt: skip
    if RE_ANNEALED in changes:
        claims += [
            judged(
                "B1 reset", figure, "what is left if annealing starts when the blur is removed",
                f"test accuracy, blur until epoch {end} less none, points",
                effect(changes[RE_ANNEALED][:, place]), expected="report",
            )
            for place, end in enumerate(ends)
            if end in (main, ends[-1])
        ]  # fmt: skip
    return claims


def change_by_removal(result: xr.Dataset, policy: str) -> np.ndarray:
    """Points of accuracy (seed, removal) less those of no deficit."""
    found = points(result["test_accuracy"].sel(policy=policy).transpose("seed", "removal"))
    return found - found[:, result["removal"].values == 0]


def window_claims(result: xr.Dataset) -> list[Claim]:
    """B2: the first window against the last, and the order of all, for each policy."""
    figure = "critical_periods_removal"
    claims = []
    for policy in result["policy"].values:
        gated = policy == ANNEALED and result.attrs["scale"] != "full"
        name = "B2" if policy == ANNEALED else "B2 constant"
        expected: Any = "effect" if gated else "report"
        accuracy = points(result["test_accuracy"].sel(policy=policy).transpose("seed", "onset"))
        accuracy = accuracy[:, 1:]
        onsets = result["onset"].values[1:]
        claims += [
            judged(
                name, figure, "blur hurts most at the beginning",
                f"test accuracy, blur from epoch {onsets[-1]} less from epoch 0, points",
                effect(accuracy[:, -1] - accuracy[:, 0]),
                at_least=0.4 if gated else None, expected=expected,
            ),
            judged(
                name, figure, "the later it comes, the less it hurts",
                "Spearman correlation of onset and mean test accuracy",
                spearman(onsets, accuracy.mean(0)),
                at_least=0.8 if gated else None, expected=expected,
            ),
        ]  # fmt: skip
    return claims


def deficit_claims(result: xr.Dataset) -> list[Claim]:
    """B3: each deficit against both runs without it."""
    full = result.attrs["scale"] == "full"
    accuracy = {arm: points(result["test_accuracy"].sel(arm=arm)) for arm in result["arm"].values}
    gates: dict[str, dict[str, Any]] = {
        "blur": {"at_most": -0.25, "p_below": 0.05},
        "noise": {"at_least": -0.2, "expected": "null"},
    }
    if full:
        gates = {name: {"at_least": -1.5, "expected": "null"} for name in ("noise", "flip")}
    said = {
        "blur": "blur leaves a trace even after a fresh annealing",
        "noise": "noise in place of images leaves none",
        "flip": "images upside down leave none",
        "permuted": "permuted labels leave none",
    }
    return [
        judged(
            f"B3 {name}", "critical_periods_deficits", said[name],
            f"test accuracy, {name} less {against}, points",
            effect(accuracy[name] - accuracy[arm]), **gates.get(name, {"expected": "report"}),
        )
        for name in DEFICITS
        if name in accuracy
        for arm, against in (("fresh", "clean epochs alone"), ("none", "none, equally long"))
    ]  # fmt: skip


def sweep_claims(removal: xr.Dataset, result: xr.Dataset) -> list[Claim]:
    """The other deficits in the set-up of B1: how much of each is due to annealing."""
    changes, until = sweep_changes(removal, result), result.attrs["until"]
    return [
        judged(
            f"B1 {name}", "critical_periods_deficits", "what other deficits cost in that set-up",
            f"test accuracy, {name} until epoch {until} less none, {policy}, points",
            effect(own), expected="report",
        )
        for (policy, name), own in changes.items()
        if name != "blur"
    ]  # fmt: skip


def sweep_changes(removal: xr.Dataset, result: xr.Dataset) -> dict[tuple[str, str], np.ndarray]:
    """Points of accuracy (seed,) less those of no deficit, by policy and deficit."""
    place = list(removal["removal"].values).index(result.attrs["until"])
    changes = {}
    for policy in result["policy"].values:
        changes[policy, "blur"] = change_by_removal(removal, policy)[:, place]
        none = points(removal["test_accuracy"].sel(policy=policy, removal=0))
        for name in result["deficit"].values:
            own = result["test_accuracy"].sel(policy=policy, deficit=name)
            changes[policy, name] = points(own) - none
    return changes


def fisher_claims(result: xr.Dataset) -> list[Claim]:
    """B4: ratios of total traces, paired over seeds."""
    figure, full = "critical_periods_fisher", result.attrs["scale"] == "full"
    total = result["trace"].sum("layer").transpose("arm", "seed", "epoch")
    none, blurred = (total.sel(arm=f"{ANNEALED} {end}") for end in ends_of(result))
    peak = int(np.log(none.values).mean(0).argmax())
    during = result.attrs["during"]
    first, top, last = none.isel(epoch=0), none.isel(epoch=peak), none.isel(epoch=-1)
    claims = [
        judged_unless(
            full, "B4 rise", figure, "the trace rises at first",
            "trace without deficit, peak over initial", ratio(top, first), at_least=5.0,
        ),
        judged_unless(
            full, "B4 fall", figure, "and then falls",
            "trace without deficit, final over peak", ratio(last, top), at_most=0.3,
        ),
        judged_unless(
            full, "B4 during", figure, "a deficit keeps it high",
            f"trace at epoch {during}, blur over none",
            ratio(blurred.sel(epoch=during), none.sel(epoch=during)), at_least=5.0,
        ),
        judged_unless(
            full, "B4 after", figure, "and it stays higher to the end",
            "trace at the end, blur over none", ratio(blurred.isel(epoch=-1), last), at_least=1.5,
        ),
        judged(
            "B4 peak", figure, "when the trace is highest without deficit",
            "epoch of the peak of the mean trace", float(none["epoch"][peak]), expected="report",
        ),
    ]  # fmt: skip
    if f"{CONSTANT} 0" in result["arm"]:
        none, blurred = (total.sel(arm=f"{CONSTANT} {end}") for end in ends_of(result))
        claims += [
            judged(
                "B4 constant", figure, "the same with a constant rate",
                f"trace {when}, blur over none", ratio(b, a), expected="report",
            )
            for when, a, b in (
                (f"at epoch {during}", none.sel(epoch=during), blurred.sel(epoch=during)),
                ("at the end", none.isel(epoch=-1), blurred.isel(epoch=-1)),
            )
        ]  # fmt: skip
    shares = 100 * shares_of(result).isel(layer=-1).sel(epoch=during)
    none, blurred = (shares.sel(arm=f"{ANNEALED} {end}") for end in ends_of(result))
    return [
        *claims,
        judged(
            "B4 layers", figure, "a deficit moves it towards the last layer",
            f"share of the last layer at epoch {during}, blur less none, points",
            effect(blurred - none), expected="report",
        ),
    ]  # fmt: skip


def judged_unless(report: bool, *told: Any, **gate: Any) -> Claim:
    """A verdict, or only what came if it is to be reported."""
    return judged(*told, **({"expected": "report"} if report else gate))


def ends_of(result: xr.Dataset) -> tuple[int, int]:
    """No deficit, and the longest one."""
    return 0, int(result["removal"].max())


def shares_of(result: xr.Dataset) -> xr.DataArray:
    """The share of each layer in the trace."""
    return result["trace"] / result["trace"].sum("layer")


def ratio(above: ArrayLike, below: ArrayLike) -> Effect:
    """The geometric mean over seeds of a ratio, its interval, and the p-value of its being 1."""
    found = effect(np.log(np.asarray(above, float)) - np.log(np.asarray(below, float)))
    mean, low, high = np.exp([found.mean, found.low, found.high]).tolist()
    return replace(found, mean=mean, low=low, high=high)


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """The rank correlation."""
    return float(stats.spearmanr(a, b).statistic)


# Figures ------------------------------------------------------------------------------------------


def draw(results: Mapping[str, xr.Dataset]) -> dict[str, Drawn]:
    """The figures, from the results alone."""
    return {
        "critical_periods_removal": removal_figure(results["removal"], results["windows"]),
        "critical_periods_deficits": deficit_figure(results),
        "critical_periods_fisher": fisher_figure(results["fisher"]),
    }


def removal_figure(removal: xr.Dataset, windows: xr.Dataset) -> Drawn:
    """Accuracy against the end of the blur, and the loss by its onset."""
    fig, axes = panels(2, height=2.5)
    left, right = axes[0]
    for policy in removal["policy"].values:
        own = points(removal["test_accuracy"].sel(policy=policy).transpose("seed", "removal"))
        band(left, removal["removal"], own, policy, **style(policy))
    left.set(
        xlabel="end of the blur (epoch)",
        ylabel="test accuracy (%)",
        title="blur from the start",
    )
    width = windows.attrs["width"]
    for policy in windows["policy"].values:
        own = points(windows["test_accuracy"].sel(policy=policy).transpose("seed", "onset"))
        change = own[:, 1:] - own[:, :1]
        band(right, windows["onset"][1:], change, **style(policy))
    right.axhline(0, color="0.6", lw=0.6, zorder=0)
    right.set(
        xlabel="onset of the blur (epoch)",
        ylabel="change of test accuracy (points)",
        title=f"blur for {width} epochs",
    )
    handles, labels = left.get_legend_handles_labels()
    title = "learning rate"
    fig.legend(handles, labels, loc="outside upper center", ncols=3, title=title)
    return Drawn(
        fig,
        "Left: test accuracy of networks that saw blurred images until an epoch, and clean ones "
        "after it. Right: the change of test accuracy by a window of blur, from networks without "
        "blur. Annealed: the learning rate falls by 3 % an epoch from the start; constant: never; "
        "re-annealed: from where the blur ends. Bands are 95 % t intervals of the mean over "
        f"{removal.sizes['seed']} seeds (left) and {windows.sizes['seed']} (right).",
    )


def deficit_figure(results: Mapping[str, xr.Dataset]) -> Drawn:
    """Four deficits: annealed and re-annealed, and against both runs without deficit."""
    result, sweep = results["deficits"], results.get("deficits_sweep")
    fig, axes = panels(1 if sweep is None else 2, height=2.3, sharey=True)
    right = axes[0, -1]
    caption = ""
    if sweep is not None:
        left = axes[0, 0]
        until, examples = sweep.attrs["until"], sweep.attrs["examples"]
        changes = sweep_changes(results["removal"], sweep)
        for policy in sweep["policy"].values:
            arms = {name: changes[policy, name] for name in DEFICITS}
            dots(left, arms, 0.12 * (-1) ** (policy == ANNEALED), policy, **style(policy))
        left.set(title=f"until epoch {until}, {examples} images")
        left.legend(title="learning rate", loc="best")
        caption = (
            "Left: change of test accuracy by a deficit until an epoch, from networks without it, "
            "with a rate that is annealed from the start, or from where the deficit ends "
            f"({sweep.sizes['seed']} seeds). Right: the same "
        )
    accuracy = {arm: points(result["test_accuracy"].sel(arm=arm)) for arm in result["arm"].values}
    names = [name for name in DEFICITS if name in accuracy]
    for place, (arm, against) in enumerate(
        (("fresh", "clean epochs alone"), ("none", "a run as long"))
    ):
        arms = {name: accuracy[name] - accuracy[arm] for name in names}
        dots(
            right, arms, 0.12 * (2 * place - 1), against, color=f"C{4 + place}", marker="v^"[place]
        )
    right.set(title=f"until epoch {result.attrs['until']}, {result.attrs['examples']} images")
    right.legend(title="re-annealed, compared with", loc="best")
    axes[0, 0].set_ylabel("change of test accuracy (points)")
    return Drawn(
        fig,
        f"{caption or 'Change of test accuracy '}after a deficit at a constant rate and "
        f"{result.attrs['clean']} clean epochs of annealing, from networks without deficit that "
        "have only the clean epochs, or equally many in all "
        f"({result.sizes['seed']} seeds). Bars are 95 % t intervals of the mean over "
        "paired seeds. Flip: images upside down; permuted: labels of other classes.",
    )


def fisher_figure(result: xr.Dataset) -> Drawn:
    """The total trace through training, and the shares of layers with and without deficit."""
    fig, axes = panels(3, height=2.5)
    total = result["trace"].sum("layer").transpose("arm", "seed", "epoch")
    ends = list(dict.fromkeys(int(end) for end in result["removal"].values))
    for arm in result["arm"].values:
        end, policy = int(result["removal"].sel(arm=arm)), str(result["policy"].sel(arm=arm).values)
        look: dict[str, Any] = {
            "color": f"C{ends.index(end)}", "ls": "-" if policy == ANNEALED else ":",
        }  # fmt: skip
        label = (f"blur to {end}" if end else "no blur") if policy == ANNEALED else None
        geometric_band(axes[0, 0], result["epoch"], total.sel(arm=arm), label, **look)
    if CONSTANT in result["policy"]:
        axes[0, 0].plot([], [], ":", color="0.4", label="constant rate")
    axes[0, 0].set(yscale="log", ylabel="trace of the Fisher information", title="all layers")
    shares = 100 * shares_of(result).transpose("arm", "layer", "seed", "epoch")
    layers = [str(layer) for layer in result["layer"].values]
    for ax, end in zip(axes[0, 1:], ends_of(result), strict=True):
        for layer, look in zip(layers, layer_styles(len(layers)), strict=True):
            own = shares.sel(arm=f"{ANNEALED} {end}", layer=layer)
            band(ax, result["epoch"], own, layer, **look)
        ax.set(ylim=(0, 100), title=f"blur to {end}" if end else "no blur")
    axes[0, 1].set_ylabel("share of the trace (%)")
    last = int(result["epoch"][-1])
    for ax in axes[0]:
        ax.set_xscale("symlog", linthresh=10, linscale=0.7)
        ax.set(xlabel="epoch", xlim=(0, last))
        ticks = [tick for tick in (0, 5, 10, 20, 50, 100, 200) if tick <= last]
        ax.set_xticks(ticks, [str(tick) for tick in ticks])
        ax.set_xticks([], minor=True)
        for end in ends[1:] if ax is axes[0, 0] else ends[-1:] if ax is axes[0, 2] else []:
            ax.axvline(end, color="0.8", lw=0.8, zorder=0)
    arms, shown = (ax.get_legend_handles_labels() for ax in axes[0, :2])
    fig.legend(*arms, loc="outside upper left", ncols=2)
    fig.legend(*shown, loc="outside upper right", ncols=2 if len(layers) < 5 else 3)
    return Drawn(
        fig,
        "Trace of the Fisher information through training, with blurred images until the epochs "
        "of the vertical lines, or without blur. Left: the total (geometric mean over seeds); the "
        "learning rate falls by 3 % an epoch, or is constant (dotted). Others: the share of each "
        "layer, with the former. On "
        f"{result.attrs['images']} clean training images; epochs are linear up to 10, then "
        "logarithmic. "
        f"Bands are 95 % t intervals of the mean over {result.sizes['seed']} seeds.",
    )


def geometric_band(
    ax: Axes, x: ArrayLike, values: ArrayLike, label: str | None, **look: Any
) -> None:
    """The geometric mean over seeds of values (seed, x), with its 95 % t interval."""
    each = [ratio(column, np.ones(len(column))) for column in np.asarray(values).T]
    (line,) = ax.plot(x, [one.mean for one in each], label=label, **look)
    low, high = [one.low for one in each], [one.high for one in each]
    ax.fill_between(x, low, high, color=line.get_color(), alpha=0.2, lw=0)


def dots(ax: Axes, arms: Mapping[str, np.ndarray], shift: float, label: str, **look: Any) -> None:
    """For each deficit the mean over seeds and its 95 % t interval, moved aside by `shift`."""
    found = [effect(own) for own in arms.values()]
    means = [one.mean for one in found]
    errors = [[one.mean - one.low for one in found], [one.high - one.mean for one in found]]
    places = np.arange(len(arms)) + shift
    ax.errorbar(places, means, errors, ls="none", capsize=2, label=label, **look)
    ax.set_xticks(range(len(arms)), list(arms))
    ax.axhline(0, color="0.6", lw=0.6, zorder=0)


def style(policy: str) -> dict[str, Any]:
    """The colour and marker of a policy of the learning rate, in all figures."""
    place = (ANNEALED, CONSTANT, RE_ANNEALED).index(policy)
    return {"color": f"C{place}", "marker": "osD"[place]}


def layer_styles(num: int) -> list[dict[str, Any]]:
    """A colour for each layer, from the first to the last."""
    return [{"color": colormaps["viridis"](0.9 * place / max(num - 1, 1))} for place in range(num)]


if __name__ == "__main__":
    run_study(measure, draw, judge)
