"""What came of a set of runs? A grid of settings, and one row for each run from what it left."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from scipy import stats

from landscape.experiments.records import read_record, read_run
from landscape.experiments.runs import Run
from landscape.results import dataset
from landscape.task import load_function


def grid(run: Run, **choices: Iterable[Any]) -> list[Run]:
    """The run with each combination of values for some of its fields.

    Names tell the values, as in `name/lr=0.1/batch_size=32`. Raises `ValueError` for no choices, or
    two of one name.
    """
    values = {field: list(own) for field, own in choices.items()}
    if not values or not all(values.values()):
        raise ValueError("a grid needs fields of Run with at least one value each, as in lr=(.1,)")
    runs = []
    for chosen in product(*values.values()):
        changes = dict(zip(values, chosen, strict=True))
        runs.append(replace(run, name=_named(run, changes), **changes))
    return _unique(runs)


def ablations(run: Run, **flags: Iterable[Any]) -> list[Run]:
    """The run with each combination of arguments for `make_model`: batch norm, skips, widths.

    `num_parameters` says how large the networks are. Raises `ValueError` as `grid`.
    """
    make = load_function(run.make_model) if isinstance(run.make_model, str) else run.make_model
    values = {flag: list(own) for flag, own in flags.items()}
    if not values or not all(values.values()):
        raise ValueError("ablations need arguments of make_model with at least one value each")
    runs = []
    for chosen in product(*values.values()):
        changes = dict(zip(values, chosen, strict=True))
        runs.append(replace(run, name=_named(run, changes), make_model=partial(make, **changes)))
    return _unique(runs)


def num_parameters(run: Run) -> int:
    """The number of parameters of a run's network, tied ones once."""
    return sum(parameter.numel() for parameter in run.build().parameters())


def outcomes(
    names: Sequence[str | Run], folder: str | os.PathLike[str], *, train_accuracy: float = 0.99
) -> xr.Dataset:
    """What came of runs in a folder, one row each: accuracies at the end, and the time they took.

    Variables over `run`: `ended`, how, as in `run.json`, or `"missing"`; `train_accuracy` and
    `test_accuracy` of the last epoch that has them; `epochs` and `seconds` in all; and
    `epochs_to_threshold`, `seconds_to_threshold` until the end of the first epoch whose training
    accuracy is at least `train_accuracy`. Seconds are those of the training steps alone, without
    evaluation and checkpoints. Every run has its row, which is NaN for runs that failed or are not
    over.
    """
    known = [name.name if isinstance(name, Run) else name for name in names]
    rows = [_outcome(Path(folder) / name, train_accuracy) for name in known]
    texts = {
        "train_accuracy": "training accuracy at the end",
        "test_accuracy": "test accuracy at the end",
        "epochs": "epochs",
        "seconds": "time of training",
        "epochs_to_threshold": f"epochs to a training accuracy of {train_accuracy:g}",
        "seconds_to_threshold": f"time to a training accuracy of {train_accuracy:g}",
    }
    variables: dict[str, Any] = {
        name: ("run", np.array([row[name] for row in rows], float), {"long_name": text})
        for name, text in texts.items()
    }
    for name in ("seconds", "seconds_to_threshold"):
        variables[name][2]["units"] = "s"
    variables["ended"] = ("run", [row["ended"] for row in rows], {"long_name": "how it ended"})
    return dataset(
        variables,
        {"run": known},
        analysis="outcomes",
        title=f"outcomes of {len(known)} runs",
        threshold=train_accuracy,
    )


def generalisation_gap(
    first: Sequence[str | Run],
    second: Sequence[str | Run],
    folder: str | os.PathLike[str],
    *,
    train_accuracy: float = 0.99,
) -> xr.Dataset:
    """How much better do runs generalise than their partners, once all have learned the data?

    `gap` (pair) is the test accuracy of the first less that of the second, and NaN unless both have
    a training accuracy of at least `train_accuracy`: before that, comparisons can have the wrong
    sign. `mean_gap` over the `num_pairs` that count has a standard error and a two-sided `p_value`
    of the paired t-test, NaN for fewer than two pairs.

    Raises `ValueError` if the two are not equally many.
    """
    if len(first) != len(second):
        raise ValueError(f"runs are compared in pairs, got {len(first)} and {len(second)} runs")
    a, b = (outcomes(own, folder, train_accuracy=train_accuracy) for own in (first, second))
    learned = [own["train_accuracy"].values >= train_accuracy - 1e-9 for own in (a, b)]
    gap = a["test_accuracy"].values - b["test_accuracy"].values
    gap = np.where(learned[0] & learned[1], gap, np.nan)
    counted = gap[np.isfinite(gap)]
    enough = len(counted) > 1
    error = stats.sem(counted) if enough else np.nan
    p_value = stats.ttest_1samp(counted, 0).pvalue if enough and error > 0 else np.nan
    text = {"long_name": "difference of test accuracies, first less second"}
    return dataset(
        {
            "gap": ("pair", gap, text),
            "mean_gap": ((), counted.mean() if len(counted) else np.nan),
            "mean_gap_stderr": ((), error),
            "p_value": ((), p_value),
            "num_pairs": ((), len(counted)),
        },
        {
            "pair": np.arange(len(gap)),
            "first": ("pair", a["run"].values),
            "second": ("pair", b["run"].values),
        },
        analysis="generalisation_gap",
        title=f"generalisation of {len(gap)} pairs of runs",
        threshold=train_accuracy,
    )


def _outcome(folder: Path, train_accuracy: float) -> dict[str, Any]:
    """The row of one run."""
    names = ("train_accuracy", "test_accuracy", "epochs", "seconds")
    row: dict[str, Any] = dict.fromkeys(
        (*names, "epochs_to_threshold", "seconds_to_threshold"), np.nan
    )
    row["ended"] = read_run(folder).get("status", "missing")
    if row["ended"] not in ("finished", "stopped"):
        return row
    record = read_record(folder)
    seconds = np.cumsum(record["seconds"])
    accuracy = {kind: 1 - record[f"{kind}_error"] for kind in ("train", "test")}
    for kind, values in accuracy.items():
        known = values[np.isfinite(values)]
        if len(known):
            row[f"{kind}_accuracy"] = known[-1]
    if len(seconds):
        row |= {"epochs": record["epoch"][-1], "seconds": seconds[-1]}
    there = np.flatnonzero(accuracy["train"] >= train_accuracy - 1e-9)
    if len(there):
        row["epochs_to_threshold"] = record["epoch"][there[0]]
        row["seconds_to_threshold"] = seconds[there[0]]
    return row


def _named(run: Run, changes: Mapping[str, Any]) -> str:
    """A name that tells what was changed, without the signs that lead to other folders."""
    told = []
    for field, value in changes.items():
        text = f"{value:g}" if isinstance(value, float) else str(value)
        told.append(f"{field}={text}".replace("/", "-"))
    return "/".join([run.name, *told])


def _unique(runs: list[Run]) -> list[Run]:
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ValueError(f"two runs would share a name: {json.dumps(sorted(names)[:8])}")
    return runs
