"""Which gradients of examples are wanted, and how are they pulled back in little memory?

A `Probe` is a model at a state with its data; `pulled` takes cotangents of some of its examples
back, for labels that are drawn, all, or those of the data.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from landscape.engine import caller, with_state
from landscape.evaluation import Prepared
from landscape.example_gradients import Backward, Rules, example_gradients, rules_for
from landscape.examples import Examples
from landscape.likelihoods import (
    SCHEMES,
    Likelihood,
    counted_positions,
    drawn_cotangents,
    exact_cotangents,
    likelihood_of,
    num_exact,
    num_uniforms,
    uncertainty,
)
from landscape.states import State
from landscape.task import Task, map_tensors, tensors_in, training_task

Array = NDArray[np.float64]
Numbers = NDArray[np.int64]

LABELS = ("sampled", "exact", "observed")
TRIED = 8  # examples from which rules and likelihood are found

_fastest: dict[Any, tuple[str, int]] = {}  # ways of rules, by shape: measured once in a process


class NonFiniteError(ValueError):
    """An output or a gradient of an example is not finite."""


@dataclass(frozen=True)
class Sampling:
    """Which labels, and how many examples and draws of labels: see `fisher_trace`."""

    labels: str = "sampled"
    likelihood: str = "auto"
    scheme: str = "importance"
    num_backwards: int | None = None
    tolerance: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.labels not in LABELS:
            raise ValueError(f"labels must be one of {', '.join(LABELS)}, got {self.labels!r}")
        if self.scheme not in SCHEMES:
            raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {self.scheme!r}")
        if self.num_backwards is not None and self.num_backwards < 1:
            raise ValueError(f"num_backwards must be at least 1, got {self.num_backwards}")
        if self.tolerance is not None and not self.tolerance > 0:
            raise ValueError(f"tolerance must be positive, got {self.tolerance}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")


@dataclass(frozen=True, eq=False)
class Probe:
    """A private model at a state, with the data, and what its gradients need.

    `num_cotangents`: how many an example has for one exact mean over labels.
    """

    task: Task
    model: nn.Module
    rules: Rules
    examples: Examples
    batch_size: int
    how: Sampling
    likelihood: Likelihood | None
    num_cotangents: int

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that are counted."""
        return self.rules.counted


@dataclass(frozen=True, eq=False)
class Points:
    """Examples that go backward, in the order of their numbers.

    The mean over the data is the sum of `weights` times the squared norms of the examples
    `numbers`; an example may occur several times, with draws of its own each time: `occurrences`
    counts them. Points of one of the `strata` were drawn from it independently of each other.
    """

    numbers: Numbers
    occurrences: Numbers
    weights: Array
    strata: Numbers | None = None


def probe_at(ready: Prepared, state: State, how: Sampling, rules: Rules | None = None) -> Probe:
    """Put a state into a private model, and find rules and likelihood with a few examples.

    `rules`: those of an earlier state of the same model. Raises `ValueError` as `rules_for` and
    `likelihood_of` do; `NonFiniteError` if the outputs are not finite.
    """
    task = training_task(ready.tasks)
    examples = ready.examples[ready.tasks.index(task)]
    model = with_state(task.model, state, device=ready.device, dtype=ready.dtype)
    inputs, targets = next(_batches(examples, TRIED))
    outputs = caller(model)(inputs)
    if isinstance(outputs, Tensor):
        check_finite(task, outputs[None], np.arange(len(outputs)), "output")
    if rules is None:
        counted = [name for name, p in task.model.named_parameters() if p.requires_grad]
        rules = replace(rules_for(model, inputs, counted=counted), choices=_fastest)
    likelihood, num = None, 1
    if how.labels != "observed":
        try:
            likelihood = likelihood_of(task.loss, outputs, targets, how.likelihood)
        except ValueError as error:
            raise ValueError(f"task {task.name!r}: {error}") from error
        num = num_exact(likelihood, outputs)
    return Probe(task, model, rules, examples, ready.strategy.batch_size, how, likelihood, num)


def uncertainties(probe: Probe) -> Array:
    """For each example the mean squared length of its cotangents, from a forward pass."""
    found, first = [], 0
    for inputs, targets in _batches(probe.examples, probe.batch_size):
        outputs = caller(probe.model)(inputs)
        numbers = np.arange(first, first + len(outputs))
        check_finite(probe.task, outputs[None], numbers, "output")
        if probe.likelihood is None:
            lengths = _squares(observed(probe, outputs, targets))
        else:
            counted = counted_positions(probe.likelihood, outputs, targets)
            lengths = uncertainty(probe.likelihood, outputs, counted)
        found.append(lengths.cpu().numpy())
        first += len(outputs)
    return np.concatenate(found)


def pulled(
    probe: Probe, points: Points, draws: int, salt: int = 0, *, diagonal: bool = False
) -> Iterator[tuple[slice, Backward]]:
    """Pull the cotangents of points back: which points at a time, and what came of it.

    Of drawn labels all `draws` of a point come at once, of others some of the cotangents whose
    squared gradients add up. There are at most as many at a time as there are examples in a batch
    of the data, for the memory of a training step; where memory runs out, half as many.
    """
    most, sampled = probe.examples.batch_size, probe.how.labels == "sampled"
    num = 1 if sampled else probe.num_cotangents
    rows = max(1, most // (draws if sampled else num))
    pieces = [slice(start, min(start + most, num)) for start in range(0, num, most)]
    for part, inputs, targets in _batches_of(probe.examples, points.numbers, rows):
        waiting = [(slice(0, part.stop - part.start), piece) for piece in pieces]
        while waiting:
            some, piece = waiting.pop(0)
            chosen = slice(part.start + some.start, part.start + some.stop)
            x, y = map_tensors(itemgetter(some), (inputs, targets))
            drawn = _Drawn(points.numbers[chosen], points.occurrences[chosen], draws, salt, piece)
            weights = torch.as_tensor(points.weights[chosen]) / (draws if sampled else 1)
            try:
                backward = _pulled(probe, x, y, drawn, weights, diagonal)
            except torch.OutOfMemoryError:
                waiting[:0] = _halved(some, piece)
            else:
                yield chosen, backward


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Which labels of which examples: what the random numbers depend on, or a piece of all."""

    numbers: Numbers
    occurrences: Numbers
    draws: int
    salt: int
    piece: slice


def _pulled(
    probe: Probe, inputs: Any, targets: Any, drawn: _Drawn, weights: Tensor, diagonal: bool
) -> Backward:
    def cotangents(outputs: Tensor) -> Tensor:
        return _cotangents(probe, outputs, targets, drawn)

    options: dict[str, Any] = {}
    if diagonal:
        num = drawn.draws if probe.how.labels == "sampled" else drawn.piece.stop - drawn.piece.start
        options = {"diagonal": True, "weights": weights.expand(num, -1)}
    return example_gradients(probe.model, probe.rules, inputs, cotangents, **options)


def _cotangents(probe: Probe, outputs: Tensor, targets: Any, drawn: _Drawn) -> Tensor:
    """Cotangents (k, b, ...) of the labels that are wanted."""
    likelihood = probe.likelihood
    if likelihood is None:
        return observed(probe, outputs, targets)[None]
    counted = counted_positions(likelihood, outputs, targets)
    if probe.how.labels == "exact":
        return exact_cotangents(likelihood, outputs, drawn.piece, counted)
    shape = (drawn.draws, *num_uniforms(likelihood, outputs))
    uniforms = np.stack([
        np.random.Generator(
            np.random.Philox(key=[probe.how.seed, number], counter=[0, 0, occurrence, drawn.salt])
        ).random(shape)
        for number, occurrence in zip(drawn.numbers, drawn.occurrences, strict=True)
    ], 1)  # fmt: skip
    return drawn_cotangents(
        likelihood, outputs, torch.from_numpy(uniforms), scheme=probe.how.scheme, counted=counted
    )


def observed(probe: Probe, outputs: Tensor, targets: Any) -> Tensor:
    """The gradients (b, ...) of the task's loss with respect to the outputs.

    Raises `ValueError` if the loss cannot be differentiated.
    """
    with torch.enable_grad():
        leaf = outputs.detach().clone().requires_grad_()
        losses = probe.task.loss(leaf, map_tensors(Tensor.clone, targets))
        if not losses.requires_grad:
            raise ValueError(
                f"the loss of task {probe.task.name!r} cannot be differentiated with respect to "
                "the outputs: is it a count or an argmax? Give the loss that was trained on"
            )
        return torch.autograd.grad(losses.sum(), leaf)[0]


def _halved(rows: slice, piece: slice) -> list[tuple[slice, slice]]:
    """Two halves of the examples, or of the cotangents; raises the error in flight without any."""
    if rows.stop - rows.start > 1:
        middle = (rows.start + rows.stop) // 2
        return [(slice(rows.start, middle), piece), (slice(middle, rows.stop), piece)]
    if piece.stop - piece.start > 1:
        middle = (piece.start + piece.stop) // 2
        return [(rows, slice(piece.start, middle)), (rows, slice(middle, piece.stop))]
    raise


def _batches(examples: Examples, size: int) -> Iterator[tuple[Any, Any]]:
    """Batches of all examples, in the usual memory format."""
    for inputs, targets in examples.batches(size):
        yield map_tensors(Tensor.contiguous, inputs), targets


def _batches_of(
    examples: Examples, numbers: Numbers, size: int
) -> Iterator[tuple[slice, Any, Any]]:
    """Batches of the examples with these rising numbers, and which of the numbers they are."""
    if examples.source is None:
        for start in range(0, len(numbers), size):
            part = slice(start, min(start + size, len(numbers)))
            inputs, targets = examples.part(torch.from_numpy(numbers[part]))
            yield part, map_tensors(Tensor.contiguous, examples.finish(inputs)), targets
        return
    first = 0
    for inputs, targets in examples.batches(size):
        last = first + len(tensors_in(targets)[0])
        begin, end = np.searchsorted(numbers, [first, last])
        for start in range(begin, end, size):
            part = slice(start, min(start + size, end))
            rows = torch.from_numpy(numbers[part] - first)
            yield part, *map_tensors(itemgetter(rows), (inputs, targets))
        first = last


# --- checks ---------------------------------------------------------------------------------------


def _squares(cotangents: Tensor) -> Tensor:
    return cotangents.double().reshape(len(cotangents), -1).square().sum(1)


def check_finite(task: Task, values: Tensor | Array, numbers: Numbers, what: str) -> None:
    """Raise `NonFiniteError` naming the first of n examples whose values (k, n, ...) are not."""
    finite = np.isfinite(values.cpu().numpy() if isinstance(values, Tensor) else values)
    if not finite.all():
        bad = numbers[int(finite.swapaxes(0, 1).reshape(len(numbers), -1).all(1).argmin())]
        raise NonFiniteError(
            f"the {what} of example {bad} of task {task.name!r} is not finite: the weights have "
            "grown too large, or they or the inputs hold NaN; if all are finite, "
            "dtype=torch.float64 may help"
        )


def check_all_counted(probe: Probe) -> None:
    """Raise `ValueError` if labels are ignored."""
    for inputs, targets in _batches(probe.examples, probe.batch_size):
        outputs = caller(probe.model)(inputs)
        if probe.likelihood and counted_positions(probe.likelihood, outputs, targets) is not None:
            raise ValueError(
                f"task {probe.task.name!r} has labels that are no class and are ignored, but a "
                "product with the Fisher information sees all positions: leave them out of the "
                "data, or take the Gauss-Newton matrix, which is the same but for a factor"
            )
