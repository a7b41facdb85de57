"""When does regularisation matter?

    python analysis_scripts/regularisation_in_time.py --scale small

Weight decay, random shifts or mixup are on until epoch t, from epoch t on, or for a window of
training (Golatkar, Achille and Soatto, arXiv 1905.13277); everything else is the same in all arms.
Each is seen with an annealed learning rate and with a constant one, since annealing alone keeps
what comes late from having an effect.

The small scale trains a multilayer perceptron on 300 digits, with noise on the pixels where weight
decay is studied. The full scale trains ResNet-18 on CIFAR-10 for 200 epochs, with weight decay and
an annealed rate only and no other regulariser; its checkpoints take 8 GB.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from scipy import stats
from torch import nn
from torch.nn import functional as F  # noqa: N812

from landscape import Task, checkpoints, models, results
from landscape.analyses.fisher_training import fisher_over_training
from landscape.datasets import Batches
from landscape.experiments import At, During, Run, Seeds
from landscape.experiments.augmentations import Mixup, Shift
from landscape.experiments.deficits import SoftLabels
from landscape.experiments.regularisation import (
    Regulariser,
    regularised_from,
    regularised_until,
    regularised_windows,
)
from landscape.experiments.schedules import Exponential
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
WIDTH = 2  # of the windows, in eighths of training


@dataclass(frozen=True)
class Times:
    """When a regulariser is on, in eighths of training: until or from a time, or in a window."""

    until: tuple[int, ...]
    later: tuple[int, ...]
    onsets: tuple[int, ...] = ()  # windows that begin at 0 or 6 are among the others


PARTS = {
    "decay_annealed": Times((0, 1, 2, 4, 6, 8), (1, 2, 4, 6), (1, 2, 3, 4)),
    "decay_constant": Times((0, 1, 2, 4, 8), (1, 4, 6), (4,)),
    "shifts_annealed": Times((0, 1, 2, 4, 8), (1, 4, 6)),
    "shifts_constant": Times((0, 1, 8), (4,)),
    "mixup_annealed": Times((0, 1, 2, 4, 8), (1, 4, 6)),
    "mixup_constant": Times((0, 2, 8), (6,)),
}
PARTS_OF_FULL = {"decay_annealed": Times((0, 1, 2, 4, 6, 8), (2, 4, 6), (2, 4))}


@dataclass(frozen=True)
class Protocol:
    """What all arms of a scale share."""

    epochs: int
    seeds: int
    parts: Mapping[str, Times]
    network: Callable[..., nn.Module]
    batch_size: int
    lr: float
    decay: float
    fisher_epochs: tuple[int, ...]
    fisher_examples: int
    on_gpu: bool = False


SMALL = Protocol(
    epochs=120,
    seeds=10,
    parts=PARTS,
    network=partial(models.mlp, 64, (128, 128)),
    batch_size=64,
    lr=0.05,
    decay=1e-2,
    fisher_epochs=(1, 2, 4, 8, 15, 30, 60, 90, 120),
    fisher_examples=300,
)
FULL = Protocol(
    epochs=200,
    seeds=2,
    parts=PARTS_OF_FULL,
    network=models.resnet18,
    batch_size=128,
    lr=0.1,
    decay=5e-4,
    fisher_epochs=(2, 5, 10, 25, 50, 100, 200),
    fisher_examples=2000,
    on_gpu=True,
)
TINY = replace(SMALL, epochs=8, fisher_epochs=(1, 2, 4, 8), fisher_examples=60)


# Runs ---------------------------------------------------------------------------------------------


def measure(settings: Settings) -> dict[str, xr.Dataset]:
    """Accuracies and weight norms of each part, and the Fisher information with weight decay."""
    protocol = settings.choose(tiny=TINY, small=SMALL, full=FULL)
    planned = {part: runs_of(part, settings, protocol) for part in protocol.parts}
    first = next(iter(planned["decay_annealed"].values()))
    settings.check_time(first, protocol.epochs * sum(map(len, planned.values())))
    found = {
        part: settings.kept(part, partial(accuracies, part, runs, settings))
        for part, runs in planned.items()
    }
    traces = partial(fisher_traces, planned["decay_annealed"], settings, protocol)
    return found | {"fisher": settings.kept("fisher", traces)}


Arm = tuple[str, int]  # its name and its seed
Runs = dict[Arm, Run]


def runs_of(part: str, settings: Settings, protocol: Protocol) -> Runs:
    """The runs of a regulariser at an annealed or constant learning rate."""
    kind, rate = part.split("_")
    runs: Runs = {}
    for seed in settings.seeds(protocol.seeds):
        train, test = data_of(kind, seed, settings)
        base = Run(
            name=f"{part}/seed-{seed}",
            make_model=protocol.network,
            data=train,
            test=test,
            epochs=protocol.epochs,
            batch_size=protocol.batch_size,
            lr=Exponential(protocol.lr, 0.97) if rate == "annealed" else protocol.lr,
            seeds=Seeds.all(seed),
            views=(During(SoftLabels(10)),) if kind == "mixup" else (),
            checkpoints=(),
            test_every=protocol.epochs,
            precision="bfloat16" if protocol.on_gpu else "float32",
            channels_last=protocol.on_gpu,
        )
        arms = arms_of(base, regulariser_of(kind, train, protocol), protocol.parts[part])
        runs |= {(arm.name.rsplit("/", 1)[1], seed): arm for arm in arms}
    if part == "decay_annealed":
        return {key: with_checkpoints(run, protocol) for key, run in runs.items()}
    return runs


def data_of(kind: str, seed: int, settings: Settings) -> tuple[Batches, Batches]:
    """Training and test images: digits, noisy where weight decay is studied."""
    if settings.scale == "full":
        return settings.images()
    return digits(seed, 300, noise=0.7 if kind == "decay" else 0.0)


def regulariser_of(kind: str, train: Batches, protocol: Protocol) -> Regulariser:
    """Weight decay, shifts by a pixel, or mixup."""
    if kind == "decay":
        return Regulariser(weight_decay=protocol.decay)
    if kind == "shifts":
        black = float(train.inputs.min())
        return Regulariser(augmentations=(Shift(1, fill=black),))
    return Regulariser(augmentations=(Mixup(alpha=1.0, num_classes=10),))


def arms_of(base: Run, regulariser: Regulariser, times: Times) -> list[Run]:
    """The base with the regulariser at each of the times."""
    eighth = base.epochs // 8

    def epochs(eighths: Iterable[int]) -> list[int]:
        return [eighth * one for one in eighths]

    until, later, onsets = (epochs(own) for own in (times.until, times.later, times.onsets))
    width = WIDTH * eighth
    return [
        *regularised_until(base, regulariser, until, lr_policy="continue"),
        *regularised_from(base, regulariser, later, lr_policy="continue"),
        *regularised_windows(base, regulariser, onsets, width=width, lr_policy="continue"),
    ]


def with_checkpoints(run: Run, protocol: Protocol) -> Run:
    """The run with checkpoints for the Fisher information, unless it is one of the windows."""
    if "/onset-" in run.name:
        return run
    steps = [run.timeline.step_of(epoch) for epoch in protocol.fisher_epochs]
    return replace(run, checkpoints=(At(steps),))


# Results ------------------------------------------------------------------------------------------


def accuracies(part: str, runs: Runs, settings: Settings) -> xr.Dataset:
    """Train the runs of a part: accuracies at the end, and norms of the weights, of each arm."""
    ends = settings.train(list(runs.values()))
    failed = [f"{end.name}: {end.message}" for end in ends if end.status != "finished"]
    if failed:
        raise ValueError(f"{len(failed)} runs failed; the first is {failed[0]}")
    records = {key: results.load(settings.runs(run) / "record.h5") for key, run in runs.items()}
    accuracy = {
        f"{of}_accuracy": {k: 1 - one[f"{of}_error"].values[-1] for k, one in records.items()}
        for of in ("test", "train")
    }
    norms = over_arms({key: one["weight_norm"].values for key, one in records.items()})
    kind, rate = part.split("_")
    return results.dataset(
        {
            **{name: (("arm", "seed"), over_arms(values)) for name, values in accuracy.items()},
            "weight_norm": (("arm", "seed", "epoch"), norms, {"long_name": "norm of the weights"}),
        },
        coords_of(runs) | {"epoch": next(iter(records.values()))["epoch"].values},
        analysis="regularisation in time",
        title=f"{NAMES[kind]} in time, {RATES[rate]}",
        epochs=next(iter(runs.values())).epochs,
        scale=settings.scale,
    )


def fisher_traces(runs: Runs, settings: Settings, protocol: Protocol) -> xr.Dataset:
    """The trace of the Fisher information of the training images at the checkpoints of each arm.

    The mean over labels is exact at small scale; at full scale labels are drawn from the network.
    Where there is batch norm, its statistics are computed anew from the images that are counted.
    """
    runs = {key: run for key, run in runs.items() if "/onset-" not in run.name}
    exact = settings.scale != "full"
    found = {}
    for key, run in runs.items():
        few = run.data.subset(range(protocol.fisher_examples))
        task = Task("train", run.build(), partial(F.cross_entropy, reduction="none"), few)
        found[key] = fisher_over_training(
            task, checkpoints(settings.runs(run)), labels="exact" if exact else "sampled",
            measures=False, device=settings.device,
        )  # fmt: skip
    steps = next(iter(found.values()))["step"].values
    clock = next(iter(runs.values())).clock
    return results.dataset(
        {
            name: (
                ("arm", "seed", "epoch"),
                over_arms({key: one[name].values for key, one in found.items()}),
                {"long_name": text},
            )
            for name, text in {
                "total": "trace of the Fisher information",
                "total_stderr": "standard error of the trace",
            }.items()
        },
        coords_of(runs) | {"epoch": [clock(int(step)).epoch for step in steps]},
        analysis="regularisation in time, Fisher information",
        title="Fisher information with weight decay in time, annealed rate",
        epochs=protocol.epochs,
        labels="exact" if exact else "sampled",
        num_examples=protocol.fisher_examples,
    )


def over_arms(values: Mapping[Arm, Any]) -> np.ndarray:
    """Values of runs as an array (arm, seed, ...)."""
    arms, seeds = arms_and_seeds(values)
    return np.array([[values[arm, seed] for seed in seeds] for arm in arms])


def arms_and_seeds(keys: Iterable[Arm]) -> tuple[list[str], list[int]]:
    """The names of arms and the seeds, each once, in their order."""
    names, seeds = zip(*keys, strict=True)
    return list(dict.fromkeys(names)), list(dict.fromkeys(seeds))


def coords_of(runs: Runs) -> dict[str, Any]:
    """The arms, with the epochs at which the regulariser goes on and off, and the seeds."""
    arms, seeds = arms_and_seeds(runs)
    epochs = next(iter(runs.values())).epochs
    spans = np.array([span(arm, epochs) for arm in arms]).T
    words = ("first epoch with the regulariser", "epoch that ends it")
    return {
        "arm": ("arm", arms, {"long_name": "when the regulariser is on"}),
        "seed": ("seed", seeds, {"long_name": "seed"}),
        "start": ("arm", spans[0], {"long_name": words[0], "units": "epochs"}),
        "stop": ("arm", spans[1], {"long_name": words[1], "units": "epochs"}),
    }


def span(arm: str, epochs: int) -> tuple[int, int]:
    """The epochs from which and until which an arm has the regulariser on."""
    kind, _, time = arm.partition("-")
    width = epochs * WIDTH // 8
    return {
        "until": (0, int(time)),
        "from": (int(time), epochs),
        "onset": (int(time), int(time) + width),
    }[kind]


# Verdicts -----------------------------------------------------------------------------------------


def judge(found: Results) -> list[Claim]:
    """The criteria of section C, and what is told beside them."""
    decay = found["decay_annealed"]
    full = decay.attrs["scale"] == "full"
    criteria = at_full_scale(decay) if full else at_small_scale(found)
    return [*criteria, *on_norms(found), *on_fisher(decay, found["fisher"])]


def at_full_scale(decay: xr.Dataset) -> list[Claim]:
    """The gates of the full scale."""
    first, late = gain(decay, 0, 4) - gain(decay, 0, 8), recovered(decay, 4, 8)
    return [
        judged(
            "C gate, off", REMOVAL, "weight decay can go after half of training",
            "first half only - always (points)", effect(first), within=0.5,
        ),
        judged(
            "C gate, on", REMOVAL, "weight decay comes too late after half of training",
            "second half only, share of the benefit (%)", late,
            also={"< 35": late.mean < 35},
        ),
        told("C1", REMOVAL, "weight decay helps", "always - never (points)", gain(decay, 0, 8)),
        *windows_told("C4", decay, "annealed"),
    ]  # fmt: skip


def at_small_scale(found: Results) -> list[Claim]:
    """C1 to C4, each with its control at a constant rate."""
    return [*of_decay(found), *of_shifts(found), *of_mixup(found), *of_windows(found)]


def of_decay(found: Results) -> list[Claim]:
    """C1, and C1c, its opposite at a constant rate."""
    decay, constant = found["decay_annealed"], found["decay_constant"]
    first, second = recovered(decay, 0, 4), recovered(decay, 4, 8)
    shares = {
        "first half only recovers >= 80 %": first.mean >= 80,
        "second half only <= 20 %": second.mean <= 20,
    }
    return [
        judged(
            "C1", REMOVAL, "weight decay matters in the first half of training only",
            "always - never (points)", effect(gain(decay, 0, 8)),
            at_least=1.0, p_below=0.01, also=shares,
        ),
        told("C1", REMOVAL, "the first half is enough", "first half only (% of benefit)", first),
        told(
            "C1", REMOVAL, "the second half adds nothing",
            "second half only (% of benefit)", second,
        ),
        judged(
            "C1c", REMOVAL, "at a constant rate, weight decay works as well when it comes late",
            "second half only, constant rate (% of benefit)", recovered(constant, 4, 8),
            at_least=80,
        ),
        told(
            "C1c", REMOVAL, "weight decay helps at a constant rate",
            "always - never, constant rate (points)", gain(constant, 0, 8),
        ),
        told(
            "C1c", REMOVAL, "what the first half leaves at a constant rate",
            "first half only, constant rate (% of benefit)", recovered(constant, 0, 4),
        ),
    ]  # fmt: skip


def of_shifts(found: Results) -> list[Claim]:
    """C2, its control, and shifts that never end."""
    shifts, constant = found["shifts_annealed"], found["shifts_constant"]
    late = effect(gain(shifts, 4, 8))
    always = "shifts until the end are worse than none: the test images are not shifted"
    return [
        judged(
            "C2", REMOVAL, "shifts matter at the beginning of training only",
            "first eighth only - never (points)", effect(gain(shifts, 0, 1)),
            at_least=0.7, p_below=0.01,
            also={"second half only - never <= 0.3": late.mean <= 0.3},
        ),
        told("C2", REMOVAL, "late shifts bring nothing", "second half only - never (points)", late),
        told("C2", REMOVAL, always, "always - never (points)", gain(shifts, 0, 8)),
        *(
            told(
                "C2, control", REMOVAL, "shifts at a constant rate",
                f"{words}, constant rate (points)", gain(constant, *when),
            )
            for words, when in {
                "first eighth only - never": (0, 1),
                "second half only - never": (4, 8),
                "always - never": (0, 8),
            }.items()
        ),
    ]  # fmt: skip


def of_mixup(found: Results) -> list[Claim]:
    """C3 and its control."""
    mixup, constant = found["mixup_annealed"], found["mixup_constant"]
    late = effect(gain(mixup, 6, 8))
    return [
        judged(
            "C3", REMOVAL, "mixup matters at the beginning of training only",
            "first quarter only - never (points)", effect(gain(mixup, 0, 2)),
            at_least=0.5, p_below=0.01,
            also={"last quarter only - never <= 0.2": late.mean <= 0.2},
        ),
        told(
            "C3", REMOVAL, "late mixup brings nothing",
            "last quarter only - never (points)", late,
        ),
        told("C3", REMOVAL, "mixup throughout", "always - never (points)", gain(mixup, 0, 8)),
        *(
            told(
                "C3, control", REMOVAL, "mixup at a constant rate",
                f"{words}, constant rate (points)", gain(constant, *when),
            )
            for words, when in {
                "first quarter only - never": (0, 2),
                "last quarter only - never": (6, 8),
                "always - never": (0, 8),
            }.items()
        ),
    ]  # fmt: skip


def of_windows(found: Results) -> list[Claim]:
    """C4 and its control."""
    decay = found["decay_annealed"]
    onsets, gains = windows(decay)
    late = gains[:, onsets >= decay.attrs["epochs"] / 2].mean(0)
    slope = effect(slopes(onsets, gains))
    return [
        judged(
            "C4", WINDOWS, "a window of weight decay helps less the later it comes",
            "window at the beginning - never (points)", effect(gains[:, 0]),
            at_least=0.8,
            also={
                "falls with the onset": slope.high < 0,
                "within 0.3 of 0 from half of training on": bool((abs(late) <= 0.3).all()),
            },
        ),
        *windows_told("C4", decay, "annealed"),
        *windows_told("C4, control", found["decay_constant"], "constant"),
    ]  # fmt: skip


def windows_told(criterion: str, decay: xr.Dataset, rate: str) -> list[Claim]:
    """How the gain from a window falls with its onset, and the gains of late windows."""
    onsets, gains = windows(decay)
    text = f"a window of weight decay, {rate} rate"
    late = onsets >= decay.attrs["epochs"] / 2
    return [
        told(
            criterion, WINDOWS, text,
            f"slope of the gain, {rate} rate (points in a tenth of training)",
            slopes(onsets, gains) * decay.attrs["epochs"] / 10,
        ),
        *(
            told(
                criterion, WINDOWS, text,
                f"window from epoch {onset} - never, {rate} rate (points)", own,
            )
            for onset, own in zip(onsets[late], gains[:, late].T, strict=True)
        ),
    ]  # fmt: skip


def on_norms(found: Results) -> list[Claim]:
    """Whether the weights grow again when weight decay is gone."""
    claims = []
    for rate, words in RATES.items():
        if (decay := found.get(f"decay_{rate}")) is None:
            continue
        norm = arm(decay, 0, 4)["weight_norm"]
        half = norm.sel(epoch=decay.attrs["epochs"] // 2)
        claims.append(
            told(
                "C, norm", WINDOWS, "the weights grow again once weight decay is removed",
                f"growth of the weight norm from half of training to the end, {words} (%)",
                100 * (norm.isel(epoch=-1) / half - 1),
            )
        )  # fmt: skip
    return claims


def on_fisher(decay: xr.Dataset, fisher: xr.Dataset) -> list[Claim]:
    """What the Fisher information says about generalisation."""
    moments = traces_at(fisher)
    accuracy = decay["test_accuracy"].sel(arm=fisher["arm"])
    ratio = relative(fisher, moments["at the end"]).isel(arm=place(fisher, 0, 8))
    claim = "what the trace says about which network generalises better"
    return [
        told(
            "C, Fisher", FISHER, "networks with weight decay end with more Fisher information",
            "log10 of the trace at the end, always / never", ratio,
        ),
        *(
            told(
                "C, Fisher", FISHER, claim,
                f"rank correlation over arms of accuracy and trace {when}",
                correlations(trace, accuracy),
            )
            for when, trace in moments.items()
        ),
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


# Numbers ------------------------------------------------------------------------------------------


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


def traces_at(fisher: xr.Dataset) -> dict[str, xr.DataArray]:
    """Traces (arm, seed) at the end, at their highest in the first quarter, and after it.

    The highest leaves out the initial weights, which are the same in all arms.
    """
    total, quarter = fisher["total"], fisher.attrs["epochs"] / 4
    early = (fisher["epoch"] > 0) & (fisher["epoch"] <= quarter)
    return {
        "at the end": total.isel(epoch=-1),
        "at the early peak": total.isel(epoch=np.flatnonzero(early)).max("epoch"),
        "after a quarter of training": total.sel(epoch=quarter),
    }


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


# Figures ------------------------------------------------------------------------------------------


def draw(found: Results) -> dict[str, Drawn]:
    """Accuracies against t, windows and weight norms, and the Fisher information."""
    return {
        REMOVAL: removal(found),
        WINDOWS: sensitivity(found),
        FISHER: information(found["decay_annealed"], found["fisher"]),
    }


def removal(found: Results) -> Drawn:
    """Accuracy at the end against t, a row for each learning rate."""
    kinds = [kind for kind in NAMES if f"{kind}_annealed" in found]
    rates = [rate for rate in RATES if f"decay_{rate}" in found]
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
        f"always. {bands(found)}",
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


def sensitivity(found: Results) -> Drawn:
    """The gain from windows of weight decay, and the norm of the weights."""
    rates = [rate for rate in RATES if f"decay_{rate}" in found]
    fig, axes = panels(1 + len(rates))
    left, *others = axes[0]
    left.axhline(0, color="0.6", lw=0.6)
    for rate, style in zip(rates, ({"color": "C6"}, {"color": "C4", "ls": "--"}), strict=False):
        onsets, gains = windows(found[f"decay_{rate}"])
        band(left, onsets, gains, RATES[rate], marker="o", **style)
    low, high = left.get_ylim()
    left.set_ylim(low, high + 0.5 * (high - low))  # room for the legend
    width = found["decay_annealed"].attrs["epochs"] * WIDTH // 8
    left.set(xlabel="onset (epochs)", ylabel="gain over never (points)")
    left.set_title(f"{width} epochs of weight decay")
    left.legend(loc="upper right")
    epoch_ticks(left, found["decay_annealed"])
    for ax, rate in zip(others, rates, strict=True):
        decay = found[f"decay_{rate}"]
        if ax is not others[0]:
            ax.sharey(others[0])
        for number, (when, label) in enumerate(ARMS.items()):
            norm = arm(decay, *when)["weight_norm"].transpose("seed", "epoch")
            band(ax, decay["epoch"], norm, label, color=f"C{number}")
        ax.set(xlabel="epoch", title=RATES[rate])
        epoch_ticks(ax, decay)
    others[0].set_ylabel("norm of the weights")
    handles, labels = others[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=4)
    return Drawn(
        fig,
        f"Left: what {width} epochs of weight decay from an onset on gain over none. Others: the "
        f"norm of the weights with weight decay at four times. {bands(found)}",
    )


def information(decay: xr.Dataset, fisher: xr.Dataset) -> Drawn:
    """The trace through training, and accuracy against it at three moments."""
    fig, axes = panels(2, 2)
    first, *others = axes.flat
    for number, (when, label) in enumerate(ARMS.items()):
        trace = np.log10(arm(fisher, *when)["total"].transpose("seed", "epoch"))
        band(first, fisher["epoch"], trace, label, color=f"C{number}", marker="o")
    first.set(xlabel="epoch", ylabel=r"$\log_{10}$ Fisher trace", title="through training")
    epoch_ticks(first, fisher)
    accuracy = decay["test_accuracy"].sel(arm=fisher["arm"])
    gains = points(accuracy - arm(decay, 0, 0)["test_accuracy"])
    texts = []
    for ax, (moment, traces) in zip(others, traces_at(fisher).items(), strict=True):
        scatter(ax, fisher, relative(fisher, traces).transpose(*accuracy.dims).values, gains)
        ax.set(xlabel=r"$\log_{10}$ (Fisher trace / never)", ylabel="gain over never (points)")
        ax.set_title(moment)
        texts.append(f"{interval(effect(correlations(traces, accuracy)))} {moment}")
    handles, labels = first.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=4)
    return Drawn(
        fig,
        "Trace of the Fisher information of the training images with weight decay at different "
        "times and an annealed rate; and what networks gain in test accuracy over those of their "
        "seed that never have weight decay, against the ratio of their traces, at three moments. "
        "The early peak is the highest trace in the first quarter of training after the start; "
        "where the trace falls from the start on, it is that of the first checkpoint, which all "
        "arms share that begin alike. Dots are networks, circles means over seeds, grey ones of "
        f"other times of weight decay. Rank correlation over arms: {', '.join(texts)}. "
        f"{bands({'decay_annealed': decay})}",
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


def bands(found: Results) -> str:
    """What the bands are."""
    return f"Means and 95 % t bands over {found['decay_annealed'].sizes['seed']} seeds."


if __name__ == "__main__":
    run_study(measure, draw, judge)
