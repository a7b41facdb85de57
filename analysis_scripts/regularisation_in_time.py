"""When does regularisation matter?

    python analysis_scripts/regularisation_in_time.py --scale small

Weight decay, random shifts or mixup are on until epoch t, from epoch t on, or for a window of
training (Golatkar, Achille and Soatto, arXiv 1905.13277); everything else is the same in all arms.
Each is seen with an annealed learning rate and with a constant one, since annealing alone keeps
what comes late from having an effect.

The small scale trains a multilayer perceptron on 300 digits, with noise on the pixels where weight
decay is studied. Here the Fisher information has no early peak, of which the paper says that it
goes with generalisation: from He's initial weights its trace is highest at the start. It is looked
at after a quarter of training and at the end, and at its early peak only where there is one. The
full scale trains ResNet-18 on CIFAR-10 for 200 epochs, with weight decay and an annealed rate only
and no other regulariser; its checkpoints take 7 GB.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from scipy import stats
from torch.nn import functional as F  # noqa: N812

from landscape import Task, checkpoints, models
from landscape.analyses.fisher_training import fisher_over_training
from landscape.experiments import At, During, Run, Seeds
from landscape.experiments.augmentations import Mixup, Shift
from landscape.experiments.comparisons import outcomes
from landscape.experiments.deficits import SoftLabels
from landscape.experiments.regularisation import (
    Regulariser,
    regularised_from,
    regularised_until,
    regularised_windows,
)
from landscape.experiments.schedules import Exponential
from landscape.results import dataset, load
from shared import (
    Claim,
    Drawn,
    Effect,
    Results,
    Settings,
    band,
    digits,
    effect,
    interval,
    judged,
    panels,
    points,
    run_study,
)

REMOVAL, WINDOWS, FISHER = (
    f"regularisation_in_time_{name}" for name in ("removal", "windows", "fisher")
)
NAMES = {"decay": "weight decay", "shifts": "shifts", "mixup": "mixup"}
RATES = {"annealed": "annealed rate", "constant": "constant rate"}
ARMS = {
    (0, 0): "never",
    (0, 8): "always",
    (0, 4): "in the first half",
    (4, 8): "in the second half",
}
SPANS = {
    (0, 1): "first eighth", (0, 2): "first quarter", (4, 8): "second half", (6, 8): "last quarter",
}  # fmt: skip
WIDTH = 2  # of the windows, in eighths of training

# When a regulariser is on, in eighths of training: until a time, from a time on, or in a window
# from an onset; windows from 0 and 6 are among the others.
Times = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
PARTS: dict[str, Times] = {
    "decay_annealed": ((0, 1, 2, 4, 6, 8), (1, 2, 4, 6), (1, 2, 3, 4)),
    "decay_constant": ((0, 1, 2, 4, 8), (1, 4, 6), (4,)),
    "shifts_annealed": ((0, 1, 2, 4, 8), (1, 4, 6), ()),
    "shifts_constant": ((0, 1, 8), (4,), ()),
    "mixup_annealed": ((0, 1, 2, 4, 8), (1, 4, 6), ()),
    "mixup_constant": ((0, 2, 8), (6,), ()),
}
Plan = dict[str, Any]
SMALL: Plan = {
    "parts": PARTS, "seeds": 10, "lr": 0.05, "weight_decay": 1e-2,
    "run": {"make_model": partial(models.mlp, 64, (128, 128)), "epochs": 120, "batch_size": 64},
    "fisher_epochs": (1, 2, 4, 8, 15, 30, 60, 90, 120), "fisher_examples": 300, "labels": "exact",
}  # fmt: skip
TINY = SMALL | {
    "run": SMALL["run"] | {"epochs": 8}, "fisher_epochs": (1, 2, 4, 8), "fisher_examples": 60,
}  # fmt: skip
FULL: Plan = {
    "parts": {"decay_annealed": ((0, 1, 2, 4, 6, 8), (2, 4, 6), (2, 4))},
    "seeds": 2, "lr": 0.1, "weight_decay": 5e-4,
    "run": {
        "make_model": models.resnet18, "epochs": 200, "batch_size": 128, "precision": "bfloat16",
        "channels_last": True,
    },
    "fisher_epochs": (2, 5, 10, 25, 50, 100, 200), "fisher_examples": 2000, "labels": "sampled",
}  # fmt: skip


# Measuring ----------------------------------------------------------------------------------------


def measure(settings: Settings) -> dict[str, xr.Dataset]:
    """Accuracies and weight norms of each part, and the Fisher information with weight decay."""
    plan = settings.choose(tiny=TINY, small=SMALL, full=FULL)
    runs = {part: runs_of(part, plan, settings) for part in plan["parts"]}
    total = sum(map(len, runs.values()))
    settings.check_time(runs["decay_annealed"][0], plan["run"]["epochs"] * total)
    found = {
        part: settings.kept(part, partial(accuracies, part, own, plan, settings))
        for part, own in runs.items()
    }
    traces = partial(fisher_traces, runs["decay_annealed"], plan, settings)
    return found | {"fisher": settings.kept("fisher", traces)}


def runs_of(part: str, plan: Plan, settings: Settings) -> list[Run]:
    """The runs of a regulariser at a learning rate: all arms of a seed, then those of the next."""
    kind, rate = part.split("_")
    runs: list[Run] = []
    for seed in settings.seeds(plan["seeds"]):
        if settings.scale == "full":
            train, test = settings.images()
        else:
            train, test = digits(seed, 300, noise=0.7 if kind == "decay" else 0.0)
        base = Run(
            name=f"{part}/seed-{seed}",
            data=train,
            test=test,
            lr=Exponential(plan["lr"], 0.97) if rate == "annealed" else plan["lr"],
            seeds=Seeds.all(seed),
            views=(During(SoftLabels(10)),) if kind == "mixup" else (),
            checkpoints=(),
            last_batch="smaller",
            test_every=plan["run"]["epochs"],
            **plan["run"],
        )
        regulariser = {
            "decay": Regulariser(weight_decay=plan["weight_decay"]),
            "shifts": Regulariser(augmentations=(Shift(1, fill=float(train.inputs.min())),)),
            "mixup": Regulariser(augmentations=(Mixup(alpha=1.0, num_classes=10),)),
        }[kind]
        steps = [base.timeline.step_of(epoch) for epoch in plan["fisher_epochs"]]
        kept = (At(steps),) if part == "decay_annealed" else ()
        runs += arms_of(replace(base, checkpoints=kept), regulariser, plan["parts"][part])
    return runs


def arms_of(base: Run, regulariser: Regulariser, times: Times) -> list[Run]:
    """The base with the regulariser at each of the times; windows leave no checkpoints."""
    eighth = base.epochs // 8
    until, later, onsets = ([eighth * time for time in own] for own in times)
    plain, width = replace(base, checkpoints=()), WIDTH * eighth
    return [
        *regularised_until(base, regulariser, until, lr_policy="continue"),
        *regularised_from(base, regulariser, later, lr_policy="continue"),
        *regularised_windows(plain, regulariser, onsets, width=width, lr_policy="continue"),
    ]


def accuracies(part: str, runs: Sequence[Run], plan: Plan, settings: Settings) -> xr.Dataset:
    """Train the runs of a part: accuracies at the end, and norms of the weights, of each arm."""
    failed = [end for end in settings.train(runs) if end.status != "finished"]
    if failed:
        raise ValueError(f"{len(failed)} runs failed; {failed[0].name}: {failed[0].message}")
    found = outcomes(runs, settings.runs_folder)
    norms = np.array([load(settings.runs(run) / "record.h5")["weight_norm"] for run in runs])
    coords = coords_of(runs, plan["parts"][part])
    shape = len(coords["seed"]), -1
    kind, rate = part.split("_")
    return dataset(
        {
            "test_accuracy": (("seed", "arm"), found["test_accuracy"].values.reshape(shape)),
            "weight_norm": (("seed", "arm", "epoch"), norms.reshape(*shape, runs[0].epochs)),
        },
        coords | {"epoch": np.arange(1, runs[0].epochs + 1)},
        analysis="regularisation in time", title=f"{NAMES[kind]} in time, {RATES[rate]}",
        epochs=runs[0].epochs, scale=settings.scale,
    )  # fmt: skip


def fisher_traces(runs: Sequence[Run], plan: Plan, settings: Settings) -> xr.Dataset:
    """The trace of the Fisher information of the training images at the checkpoints of each arm.

    The mean over labels is exact at small scale; at full scale labels are drawn from the network.
    Where there is batch norm, its statistics are computed anew from the images that are counted.
    """
    until, later, _ = plan["parts"]["decay_annealed"]
    runs = [run for run in runs if "/onset-" not in run.name]
    traces = []
    for run in runs:
        few = run.data.subset(range(plan["fisher_examples"]))
        task = Task("train", run.build(), partial(F.cross_entropy, reduction="none"), few)
        found = fisher_over_training(
            task, checkpoints(settings.runs(run)), labels=plan["labels"], measures=False,
            device=settings.device,
        )  # fmt: skip
        traces.append(found["total"].values)
    coords = coords_of(runs, (until, later, ()))
    shape = len(coords["seed"]), -1, len(found["step"])
    return dataset(
        {"total": (("seed", "arm", "epoch"), np.reshape(traces, shape))},
        coords | {"epoch": [runs[0].clock(int(step)).epoch for step in found["step"]]},
        analysis="regularisation in time", title="Fisher information, weight decay in time",
        epochs=runs[0].epochs, num_examples=plan["fisher_examples"], labels=plan["labels"],
    )  # fmt: skip


def coords_of(runs: Iterable[Run], times: Times) -> dict[str, Any]:
    """The seeds, and the arms with the epochs at which the regulariser goes on and off."""
    names = [run.name.split("/") for run in runs]
    epochs = next(iter(runs)).epochs
    until, later, onsets = times
    spans = [(0, t) for t in until] + [(t, 8) for t in later] + [(t, t + WIDTH) for t in onsets]
    start, stop = np.array(spans).T * (epochs // 8)
    words = ("first epoch with the regulariser", "epoch that ends it")
    return {
        "arm": list(dict.fromkeys(name[-1] for name in names)),
        "seed": list(dict.fromkeys(run.seeds.init for run in runs)),
        "start": ("arm", start, {"long_name": words[0], "units": "epochs"}),
        "stop": ("arm", stop, {"long_name": words[1], "units": "epochs"}),
    }


# Effects ------------------------------------------------------------------------------------------


def place(found: xr.Dataset, start: int, stop: int) -> int:
    """Where the arm is that is on between two eighths of training; never is 0, 0."""
    eighth = found.attrs["epochs"] // 8
    own = (found["start"] == start * eighth) & (found["stop"] == stop * eighth)
    return int(np.flatnonzero(own.values)[0])


def arm(found: xr.Dataset, start: int, stop: int) -> xr.Dataset:
    """The arm that has the regulariser on between two eighths of training; never is 0, 0."""
    return found.isel(arm=place(found, start, stop))


def gain(found: xr.Dataset, start: int, stop: int) -> np.ndarray:
    """What an arm gains over never, in points of test accuracy, for each seed."""
    own, never = (arm(found, *when)["test_accuracy"].values for when in ((start, stop), (0, 0)))
    return points(own - never)


def recovered(found: xr.Dataset, start: int, stop: int) -> Effect:
    """The share of the full benefit in percent, (arm - never) / (always - never), of the means.

    The interval is that of a ratio of paired means by the delta method; p is that of arm - never.
    """
    own, full = gain(found, start, stop), gain(found, 0, 8)
    benefit = full.mean() or math.nan
    share = own.mean() / benefit
    half = 0.0
    if math.isfinite(share):
        around = effect((own - share * full) / benefit)  # of mean 0
        half = around.high - around.mean
    return Effect(
        100 * share, 100 * (share - half), 100 * (share + half), effect(own).p, len(own)
    )  # fmt: skip


def windows(decay: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Onsets of the windows in epochs, and gains in points (seed, onset)."""
    width = decay.attrs["epochs"] * WIDTH // 8
    own = decay.isel(arm=np.flatnonzero(decay["stop"] - decay["start"] == width)).sortby("start")
    never = arm(decay, 0, 0)["test_accuracy"]
    gains = (own["test_accuracy"] - never).transpose("seed", "arm")
    return own["start"].values, points(gains)


def slopes(onsets: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """The slope of the least-squares line through the gains of each seed, points an epoch."""
    centred = onsets - onsets.mean()
    return gains @ centred / (centred @ centred)


def rates_of(found: Results) -> list[str]:
    """The learning rates with which weight decay was studied."""
    return [rate for rate in RATES if f"decay_{rate}" in found]


def traces_at(fisher: xr.Dataset) -> dict[str, xr.DataArray]:
    """Traces (arm, seed) at their early peak if there is one, after a quarter, and at the end.

    The peak is the highest in the first quarter of training after the start, whose weights are the
    same in all arms. There is none where the mean over arms and seeds is highest at the first
    checkpoint already.
    """
    total, quarter = fisher["total"], fisher.attrs["epochs"] / 4
    early = total.isel(epoch=np.flatnonzero((fisher["epoch"] > 0) & (fisher["epoch"] <= quarter)))
    peak = {"at the early peak": early.max("epoch")}
    has_peak = early.mean(("arm", "seed")).argmax("epoch").item() > 0
    later = {
        "after a quarter of training": total.sel(epoch=quarter),
        "at the end": total.isel(epoch=-1),
    }
    return peak | later if has_peak else later


def relative(fisher: xr.Dataset, traces: xr.DataArray) -> xr.DataArray:
    """The log10 of traces (arm, seed) over that of never, of the same seed."""
    ratio = traces / traces.isel(arm=place(fisher, 0, 0))
    logs: xr.DataArray = xr.apply_ufunc(np.log10, ratio)
    return logs


def correlations(traces: xr.DataArray, accuracy: xr.DataArray) -> np.ndarray:
    """Spearman's rank correlation over the arms, for each seed."""
    rows = zip(
        traces.transpose("seed", "arm").values,
        accuracy.transpose("seed", "arm").values,
        strict=True,
    )
    return np.array([stats.spearmanr(own, reached).statistic for own, reached in rows])


# Drawing ------------------------------------------------------------------------------------------


def draw(found: Results) -> dict[str, Drawn]:
    """Accuracies against t, windows and weight norms, and the Fisher information."""
    return {
        REMOVAL: draw_removal(found),
        WINDOWS: draw_windows(found),
        FISHER: draw_fisher(found["decay_annealed"], found["fisher"]),
    }


def draw_removal(found: Results) -> Drawn:
    """Accuracy at the end against t, a row for each learning rate."""
    kinds = [kind for kind in NAMES if f"{kind}_annealed" in found]
    rates = rates_of(found)
    fig, axes = panels(len(kinds), len(rates), sharex=True, sharey="col")
    for column, kind in zip(axes.T, kinds, strict=True):
        for ax, rate in zip(column, rates, strict=True):
            own = found[f"{kind}_{rate}"]
            for side, label in (("stop", "on until epoch $t$"), ("start", "on from epoch $t$")):
                times, reached = along(own, side)
                band(ax, times, points(reached), label, marker="o")
            ax.set_title(f"{NAMES[kind]}, {RATES[rate]}")
            epoch_ticks(ax, own)
        column[-1].set_xlabel("$t$ (epochs)")
    for row in axes:
        row[0].set_ylabel("test accuracy (%)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=2)
    return Drawn(
        fig,
        "Test accuracy at the end of training with a regulariser that is on until epoch t, or "
        "from epoch t on. Until 0 and from the last epoch is never, until the last and from 0 is "
        "always. Means and 95 % t bands over "
        f"{found['decay_annealed'].sizes['seed']} seeds.",
    )


def along(found: xr.Dataset, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Times and accuracies (seed, time) of the arms that are on until or from a time."""
    last = found.attrs["epochs"]
    start, stop = found["start"].values, found["stop"].values
    if side == "stop":
        own = {int(stop[i]): int(i) for i in np.flatnonzero(start == 0)}
    else:
        never = int(np.flatnonzero(stop == 0)[0])
        own = {int(start[i]): int(i) for i in np.flatnonzero(stop == last)} | {last: never}
    times = sorted(own)
    reached = found["test_accuracy"].isel(arm=[own[time] for time in times])
    return np.array(times), reached.transpose("seed", "arm").values


def draw_windows(found: Results) -> Drawn:
    """The gain from windows of weight decay, and the norm of the weights."""
    rates, decay = rates_of(found), found["decay_annealed"]
    fig, (axes,) = panels(1 + len(rates))
    for ax, rate, style in zip(axes[1:], rates, ("-", "--"), strict=False):
        own = found[f"decay_{rate}"]
        onsets, gains = windows(own)
        colour = {"annealed": "C6", "constant": "C4"}[rate]
        band(axes[0], onsets, gains, RATES[rate], marker="o", ls=style, color=colour)
        for number, (when, label) in enumerate(ARMS.items()):
            norm = arm(own, *when)["weight_norm"].transpose("seed", "epoch")
            band(ax, own["epoch"], norm, label, color=f"C{number}")
        ax.sharey(axes[1])
        ax.set(xlabel="epoch", title=RATES[rate])
        epoch_ticks(ax, own)
    axes[0].axhline(0, color="0.6", lw=0.6)
    low, high = axes[0].get_ylim()
    width = decay.attrs["epochs"] * WIDTH // 8
    axes[0].set_ylim(low, high + 0.5 * (high - low))  # room for the legend
    axes[0].set(xlabel="onset (epochs)", ylabel="gain over never (points)")
    axes[0].set_title(f"{width} epochs of weight decay")
    axes[0].legend(loc="upper right")
    epoch_ticks(axes[0], decay)
    axes[1].set_ylabel("norm of the weights")
    handles, labels = axes[1].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=4)
    return Drawn(
        fig,
        f"Left: what {width} epochs of weight decay from an onset on gain over none. Others: the "
        "norm of the weights with weight decay at four times. Means and 95 % t bands over "
        f"{decay.sizes['seed']} seeds.",
    )


def draw_fisher(decay: xr.Dataset, fisher: xr.Dataset) -> Drawn:
    """The trace through training, and accuracy against it at two moments, or three with a peak."""
    moments = traces_at(fisher)
    fig, axes = panels(3) if len(moments) == 2 else panels(2, 2)
    first, *others = axes.flat
    for number, (when, label) in enumerate(ARMS.items()):
        trace = np.log10(arm(fisher, *when)["total"].transpose("seed", "epoch"))
        band(first, fisher["epoch"], trace, label, color=f"C{number}", marker="o")
    first.set(xlabel="epoch", ylabel=r"$\log_{10}$ Fisher trace", title="through training")
    epoch_ticks(first, fisher)
    accuracy = decay["test_accuracy"].sel(arm=fisher["arm"])
    gains = points((accuracy - arm(decay, 0, 0)["test_accuracy"]).transpose("arm", "seed"))
    texts = []
    for ax, (moment, traces) in zip(others, moments.items(), strict=True):
        scatter(ax, fisher, relative(fisher, traces).transpose("arm", "seed").values, gains)
        ax.set(xlabel=r"$\log_{10}$ (Fisher trace / never)", ylabel="gain over never (points)")
        ax.set_title(moment)
        texts.append(f"{interval(effect(correlations(traces, accuracy)))} {moment}")
    handles, labels = first.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=4)
    peak = "The early peak is the highest trace in the first quarter of training after the start. "
    return Drawn(
        fig,
        "Trace of the Fisher information of the training images with weight decay at different "
        "times and an annealed rate; and what networks gain in test accuracy over those of their "
        "seed that never have weight decay, against the ratio of their traces. "
        f"{peak if len(moments) == 3 else ''}Dots are networks, circles means over seeds, grey "
        f"ones of other times of weight decay. Rank correlation over arms: {', '.join(texts)}. "
        f"Means and 95 % t bands over {decay.sizes['seed']} seeds.",
    )


def scatter(ax: Axes, fisher: xr.Dataset, traces: np.ndarray, gains: np.ndarray) -> None:
    """Gains of all networks against their traces, both (arm, seed), and the means of arms."""
    eighth = fisher.attrs["epochs"] // 8
    colours = {when: f"C{number}" for number, when in enumerate(ARMS)}
    ax.axhline(0, color="0.6", lw=0.6)
    spans = zip(fisher["start"].values // eighth, fisher["stop"].values // eighth, strict=True)
    for when, x, y in zip(spans, traces, gains, strict=True):
        colour = colours.get(when, "0.55")
        ax.plot(x, y, ".", color=colour, ms=2, alpha=0.6, zorder=1)
        ax.plot(x.mean(), y.mean(), "o", color=colour, mec="white", mew=0.5, ms=5.5, zorder=2)


def epoch_ticks(ax: Axes, found: xr.Dataset) -> None:
    """A tick at each quarter of training."""
    ax.set_xticks(np.arange(0, found.attrs["epochs"] + 1, found.attrs["epochs"] // 4))


# Judging ------------------------------------------------------------------------------------------


def judge(found: Results) -> list[Claim]:
    """The criteria of section C, and what is told beside them."""
    decay = found["decay_annealed"]
    if decay.attrs["scale"] == "full":
        claims = judge_full(decay) + judge_windows(decay, "C4", "annealed")
    else:
        claims = judge_decay(decay, found["decay_constant"])
        claims += judge_early(found, "C2", "shifts", (0, 1), (4, 8), 0.7, 0.3)
        claims += judge_early(found, "C3", "mixup", (0, 2), (6, 8), 0.5, 0.2)
        claims += judge_windows(decay, "C4", "annealed")
        claims += judge_windows(found["decay_constant"], "C4, control", "constant")
    return claims + judge_norms(found) + judge_fisher(decay, found["fisher"])


def judge_full(decay: xr.Dataset) -> list[Claim]:
    """The gates of the full scale."""
    late = recovered(decay, 4, 8)
    return [
        judged("C gate, off", REMOVAL, "weight decay can go after half of training",
               "first half only - always (points)",
               effect(gain(decay, 0, 4) - gain(decay, 0, 8)), within=0.5),
        judged("C gate, on", REMOVAL, "weight decay comes too late after half of training",
               "second half only, share of the benefit (%)", late, also={"< 35": late.mean < 35}),
        told("C1", REMOVAL, "weight decay helps", "always - never (points)", gain(decay, 0, 8)),
    ]  # fmt: skip


def judge_decay(decay: xr.Dataset, constant: xr.Dataset) -> list[Claim]:
    """C1, and C1c, its opposite at a constant rate."""
    first, second = recovered(decay, 0, 4), recovered(decay, 4, 8)
    shares = {
        "first half only recovers >= 80 %": first.mean >= 80,
        "second half only <= 20 %": second.mean <= 20,
    }
    return [
        judged("C1", REMOVAL, "weight decay matters in the first half of training only",
               "always - never (points)", effect(gain(decay, 0, 8)),
               at_least=1.0, p_below=0.01, also=shares),
        told("C1", REMOVAL, "the first half is enough", "first half only (% of benefit)", first),
        told("C1", REMOVAL, "the second half adds nothing",
             "second half only (% of benefit)", second),
        judged("C1c", REMOVAL,
               "at a constant rate, weight decay works as well when it comes late",
               "second half only, constant rate (% of benefit)", recovered(constant, 4, 8),
               at_least=80),
        told("C1c", REMOVAL, "weight decay helps at a constant rate",
             "always - never, constant rate (points)", gain(constant, 0, 8)),
        told("C1c", REMOVAL, "what the first half leaves at a constant rate",
             "first half only, constant rate (% of benefit)", recovered(constant, 0, 4)),
    ]  # fmt: skip


def judge_early(
    found: Results,
    criterion: str,
    kind: str,
    early: tuple[int, int],
    late: tuple[int, int],
    at_least: float,
    at_most: float,
) -> list[Claim]:
    """C2 or C3, the control at a constant rate, and what never ends.

    Shifts until the end can be worse than none, since the test images are not shifted.
    """
    part, constant = found[f"{kind}_annealed"], found[f"{kind}_constant"]
    words = {early: f"{SPANS[early]} only", late: f"{SPANS[late]} only", (0, 8): "always"}
    first, last, always = (effect(gain(part, *when)) for when in words)
    limit = {f"{words[late]} - never <= {at_most:g}": last.mean <= at_most}
    return [
        judged(criterion, REMOVAL, f"the benefit of {kind} comes from the beginning of training",
               f"{words[early]} - never (points)", first,
               at_least=at_least, p_below=0.01, also=limit),
        told(criterion, REMOVAL, f"no benefit from late {kind}",
             f"{words[late]} - never (points)", last),
        told(criterion, REMOVAL, f"{kind} throughout", "always - never (points)", always),
        *(told(f"{criterion}, control", REMOVAL, f"{kind} at a constant rate",
               f"{words[when]} - never, constant rate (points)", gain(constant, *when))
          for when in words),
    ]  # fmt: skip


def judge_windows(decay: xr.Dataset, criterion: str, rate: str) -> list[Claim]:
    """C4, or its control: how the gain from a window falls with its onset."""
    onsets, gains = windows(decay)
    late = onsets >= decay.attrs["epochs"] / 2
    slope = slopes(onsets, gains) * decay.attrs["epochs"] / 10
    also = {
        "falls with the onset": effect(slope).high < 0,
        "within 0.3 of 0 from half of training on": (abs(gains.mean(0)[late]) <= 0.3).all(),
    }
    claim = {
        "annealed": "a window of weight decay helps less the later it comes",
        "constant": "at a constant rate, late windows of weight decay help as well",
    }[rate]
    return [
        judged(criterion, WINDOWS, claim, f"window at the beginning - never, {rate} rate (points)",
               effect(gains[:, 0]), at_least=0.8, also=also,
               gated=criterion == "C4" and decay.attrs["scale"] != "full"),
        told(criterion, WINDOWS, claim,
             f"slope of the gain, {rate} rate (points in a tenth of training)", slope),
        *(told(criterion, WINDOWS, claim,
               f"window from epoch {onset} - never, {rate} rate (points)", own)
          for onset, own in zip(onsets[late], gains[:, late].T, strict=True)),
    ]  # fmt: skip


def judge_norms(found: Results) -> list[Claim]:
    """Whether the weights grow again when weight decay is gone."""
    claims = []
    for rate in rates_of(found):
        decay = found[f"decay_{rate}"]
        norm = arm(decay, 0, 4)["weight_norm"]
        half = norm.sel(epoch=decay.attrs["epochs"] // 2)
        text = f"growth of the weight norm from half of training to the end, {RATES[rate]} (%)"
        claims.append(
            told("C, norm", WINDOWS, "the weights grow again once weight decay is removed",
                 text, 100 * (norm.isel(epoch=-1) / half - 1))
        )  # fmt: skip
    return claims


def judge_fisher(decay: xr.Dataset, fisher: xr.Dataset) -> list[Claim]:
    """What the Fisher information says about generalisation."""
    accuracy = decay["test_accuracy"].sel(arm=fisher["arm"])
    last = relative(fisher, fisher["total"].isel(epoch=-1))
    claim = partial(told, "C, Fisher", FISHER)
    return [
        claim("networks with weight decay end with more Fisher information",
              "log10 of the trace at the end, always / never",
              last.isel(arm=place(fisher, 0, 8))),
        *(claim("what the trace says about which network generalises better",
                f"rank correlation over arms of accuracy and trace {when}",
                correlations(trace, accuracy)) for when, trace in traces_at(fisher).items()),
    ]  # fmt: skip


def told(
    criterion: str,
    figure: str,
    claim: str,
    quantity: str,
    found: Effect | xr.DataArray | np.ndarray,
) -> Claim:
    """A claim without condition, from its effect or its values over seeds."""
    known = found if isinstance(found, Effect) else effect(found)
    return judged(criterion, figure, claim, quantity, known, expected="report")


if __name__ == "__main__":
    run_study(measure, draw, judge)
