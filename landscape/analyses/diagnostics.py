"""What do the classifiers on a path predict, beside how well? Compared with the two ends.

Disagreement with each end, entropy, calibration, and what an ensemble of the point and both ends
gains. All are further metrics of the tasks, so that they have a split, a standard error and chunks
like the loss; only the calibration error is combined from its bins afterwards.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike
from torch import Tensor

from landscape.evaluation import Prepared, Tasks, evaluate, outputs_at, placing, prepare
from landscape.examples import Examples
from landscape.families import Family
from landscape.states import State, Stored, loaded
from landscape.task import PerExample, Task, random_state_kept, wrong

Targets = tuple[Tensor, Tensor, Tensor]  # the task's own, and the outputs of both ends
GAP = "calibration_gap_"
WORDS = {
    "disagreement_a": "share of examples that the first end predicts otherwise",
    "disagreement_b": "share of examples that the last end predicts otherwise",
    "entropy": "entropy of the predicted probabilities",
    "ensemble_loss": "loss of the mean probabilities of the point and both ends",
    "ensemble_error": "error of the mean probabilities of the point and both ends",
    "ensemble_gain_loss": "mean loss of the point and both ends less that of their ensemble",
    "ensemble_gain_error": "mean error of the point and both ends less that of their ensemble",
    "calibration_error": "expected calibration error",
    "calibration_error_stderr": "standard error of the calibration error over examples",
}


def diagnose(
    task: Tasks,
    family: Family,
    points: ArrayLike | Sequence[ArrayLike],
    *,
    ends: Family | Sequence[State | Stored] | None = None,
    num_bins: int = 15,
    **options: Any,
) -> xr.Dataset:
    """Evaluate classifiers along a family, with diagnostics.

    `ends`: the two states to compare with, by default the first and the last control. `num_bins`:
    bins of the calibration error. `options` are those of `evaluate`.

    Returns the variables of `evaluate` and, for each point, those of `with_diagnostics` and
    `combined`. A subset of the points has the same values. Raises what these functions raise.
    """
    ready = prepare(task, family, **placing(options))
    compared = with_diagnostics(
        ready,
        family if ends is None else ends,
        num_bins=num_bins,
        batch_norm=options.get("batch_norm"),
    )
    return combined(evaluate(compared, family, points, **options))


def with_diagnostics(
    task: Tasks,
    ends: Family | Sequence[State | Stored],
    *,
    num_bins: int = 15,
    batch_norm: str | None = None,
    **options: Any,
) -> Prepared:
    """Tasks with further metrics, which compare predictions with those of two ends.

    `ends`: two states, or a family whose first and last control are meant. Their outputs are
    computed here, with the statistics that `batch_norm` gives them as in `evaluate`; `options` are
    those of `prepare`. The loss and the metrics that the tasks have are as before. New are

    - `disagreement_a`, `disagreement_b`: 1 where the largest output is another than at that end;
    - `entropy` of the predicted probabilities, in nats;
    - `ensemble_loss`, `ensemble_error`: the task's loss and the error of the mean of the
      probabilities of the point and both ends, with equal weights;
    - `ensemble_gain_loss`, `ensemble_gain_error`: the mean over these three members less that of
      their ensemble; for the cross-entropy never negative, as the logarithm is concave;
    - `calibration_gap_0` and on: what `combined` makes the calibration error from.

    Raises `ValueError` unless the outputs are logits or log-probabilities (n, classes), the targets
    integers (n,), the loss one of the class probabilities, and the names of metrics free.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, got {num_bins}")
    if isinstance(ends, Family):
        points: Family | list[State] = ends
        coefficients = np.eye(len(ends.controls))[[0, -1]]
    elif len(ends) == 2:
        points, coefficients = [loaded(end) for end in ends], None
    else:
        raise ValueError(f"a path has two ends to compare with, got {len(ends)}")
    ready = prepare(task, points, batch_norm=batch_norm, **options)
    found = outputs_at(ready, points, coefficients, batch_norm=batch_norm)
    tasks, examples = [], []
    for one, data, outputs in zip(ready.tasks, ready.examples, found, strict=True):
        of_ends = torch.as_tensor(outputs, dtype=ready.dtype, device=ready.device)
        with torch.no_grad(), random_state_kept():
            _check(one, data, of_ends)
        tasks.append(_diagnosed(one, num_bins))
        examples.append(_joined(data, of_ends))
    return replace(ready, tasks=tuple(tasks), examples=tuple(examples))


def combined(result: xr.Dataset) -> xr.Dataset:
    """The result with `calibration_error` and its standard error in place of the gaps of the bins.

    The expected calibration error (Guo et al. 2017, equation 3): with equal bins of confidence, the
    mean over bins of |accuracy - confidence|, weighted by the share of examples in the bin. It is
    the sum of |g| over bins, with g the mean over all examples of (correct - confidence) inside the
    bin and 0 outside, so that its variance follows from those of the gaps g: an example is in one
    bin only (delta method). Each point is combined by itself. Where gaps are smaller than their
    standard errors, the estimate and its standard error are too large, as for all magnitudes.

    Raises `ValueError` if the result has no gaps.
    """
    names = [name for name in map(str, result) if re.fullmatch(rf"{GAP}\d+", name)]
    if not names:
        raise ValueError(
            f"the result has no {GAP}0 and on: evaluate tasks from with_diagnostics, or diagnose"
        )
    others = (result["num_examples"] - 1).clip(min=1)
    error = sum(abs(result[name]) for name in names)
    squares = sum(result[f"{name}_stderr"] ** 2 * others + result[name] ** 2 for name in names)
    kept = result.drop_vars([name for name in result if str(name).startswith(GAP)])
    kept["calibration_error"] = error
    kept["calibration_error_stderr"] = ((squares - error**2) / others).clip(min=0) ** 0.5
    for name, words in WORDS.items():
        kept[name].attrs = {"long_name": words}
    kept["entropy"].attrs["units"] = "nats"
    return kept.assign_attrs(num_bins=len(names))


# --- metrics --------------------------------------------------------------------------------------


def _diagnosed(task: Task, num_bins: int) -> Task:
    """The task with further metrics, for targets that hold the outputs of the ends."""
    further: dict[str, PerExample] = {
        "disagreement_a": partial(_disagreement, end=1),
        "disagreement_b": partial(_disagreement, end=2),
        "entropy": _entropy,
        "ensemble_loss": partial(_ensemble, task.loss),
        "ensemble_error": partial(_ensemble, wrong),
        "ensemble_gain_loss": partial(_gain, task.loss),
        "ensemble_gain_error": partial(_gain, wrong),
        **{f"{GAP}{i}": partial(_gap, number=i, num=num_bins) for i in range(num_bins)},
    }
    if taken := sorted(set(further) & set(task.metrics)):
        raise ValueError(
            f"task {task.name!r} has metrics of its own that are named like diagnostics: "
            f"{', '.join(taken)}; give them other names"
        )
    own = {name: partial(_own, metric) for name, metric in task.metrics.items()}
    return replace(task, loss=partial(_own, task.loss), metrics=own | further)


def _own(measure: PerExample, outputs: Tensor, targets: Targets) -> Tensor:
    return measure(outputs, targets[0])


def _disagreement(outputs: Tensor, targets: Targets, *, end: int) -> Tensor:
    return wrong(outputs, targets[end].argmax(1))


def _entropy(outputs: Tensor, targets: Targets) -> Tensor:
    return torch.special.entr(outputs.softmax(1)).sum(1)


def _ensemble(measure: PerExample, outputs: Tensor, targets: Targets) -> Tensor:
    """A measure of the mean probabilities; their logarithms are logits like any others."""
    labels, *ends = targets
    members = torch.stack([member.log_softmax(1) for member in (outputs, *ends)])
    return measure(members.logsumexp(0) - math.log(len(members)), labels)


def _gain(measure: PerExample, outputs: Tensor, targets: Targets) -> Tensor:
    labels, *ends = targets
    members = torch.stack([measure(member, labels) for member in (outputs, *ends)])
    return members.mean(0) - _ensemble(measure, outputs, targets)


def _gap(outputs: Tensor, targets: Targets, *, number: int, num: int) -> Tensor:
    """Correct (0 or 1) less confidence, where that is in the bin ]number, number + 1] / num."""
    confidence = (outputs.amax(1) - outputs.logsumexp(1)).exp()
    inside = (confidence * num).ceil().clamp(1, num) == number + 1
    return (1 - wrong(outputs, targets[0]) - confidence) * inside


# --- data -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Joined:
    """Batches with the outputs of the ends, read together on each pass."""

    source: Iterable[tuple[Any, Any]]
    ends: tuple[Tensor, ...]

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        start = 0
        for inputs, targets in self.source:
            part = slice(start, start + len(targets))
            yield inputs, (targets, *(end[part] for end in self.ends))
            start = part.stop


def _joined(examples: Examples, of_ends: Tensor) -> Examples:
    """The examples with the outputs (2, n, classes) of the ends among the targets."""
    ends = tuple(of_ends)
    if examples.source is None:
        return replace(examples, targets=(examples.targets, *ends))
    return replace(examples, source=_Joined(examples.source, ends))


def _check(task: Task, examples: Examples, of_ends: Tensor) -> None:
    """Whether this is a classifier: by the shapes, and by its loss of a few examples."""
    _, targets = next(examples.batches(8))
    labels = isinstance(targets, Tensor) and not targets.is_floating_point() and targets.ndim == 1
    if of_ends.ndim != 3 or not labels:
        shape = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(
            f"diagnostics need a classifier, with outputs (n, classes) and integer targets (n,); "
            f"task {task.name!r} has outputs {('n', *of_ends.shape[2:])} and targets {shape} "
            f"{getattr(targets, 'dtype', '')}"
        )
    outputs = of_ends[0, : len(targets)]
    given, normalised = (task.loss(values, targets) for values in (outputs, outputs.log_softmax(1)))
    finite = outputs.isfinite().all(1)
    scale = (given.abs() + outputs.abs().amax(1))[finite]
    if ((given - normalised).abs()[finite] > 1e-3 * scale).any():
        raise ValueError(
            f"diagnostics need outputs that are logits or log-probabilities, and a loss of these "
            f"probabilities alone; the loss of task {task.name!r} changes when its outputs are "
            "normalised by log_softmax"
        )
