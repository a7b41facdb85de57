"""What can be added to the loss, or done to the inputs, while a network trains?

The Fisher penalty keeps the gradients at the network's own predictions small; friendly training
moves each input towards a lower loss, less and less as training goes on. Both wrap the objective
that a run has, and their strengths are knobs, so that each run of a stack has its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from landscape.experiments.runs import (
    Call,
    Clock,
    Objective,
    Run,
    Scalar,
    Weights,
    cross_entropy,
)


def fisher_penalised(run: Run, weight: Scalar, *, every: int = 10) -> Run:
    """The run with `weight` times the Fisher penalty in its loss, at every so many steps.

    Jastrzebski et al. 2021 (arXiv 2012.14193): the squared norm of the gradient of a batch, at
    labels that are drawn from the network's own predictions, an estimate of the trace of the Fisher
    information over the batch size. `weight` is a number or a schedule; labels come from the seed
    `noise` of the run. A step costs as much whether the penalty is on or not.

    Raises `ValueError` for `every` below 1.
    """
    if every < 1:
        raise ValueError(f"the penalty is taken every so many steps, at least 1, got {every}")
    knobs: dict[str, Scalar] = {
        "fisher_weight": EverySteps(weight, every),
        "fisher_seed": float(run.seeds.noise % 2**24),  # exact in float32
        "fisher_step": steps_taken,
    }
    return replace(run, objective=FisherPenalty(run.objective), knobs={**run.knobs, **knobs})


def friendly(
    run: Run, *, steps: int = 5, rate: float = 0.1, until: float = 0.5, power: float = 2
) -> Run:
    """The run with inputs that are first moved to a lower loss: friendly training.

    Marullo et al. 2021 (arXiv 2106.10974): each batch is replaced by x + delta, where delta comes
    from a few steps of gradient descent on the loss of each example. The number of steps and their
    rate fade as (1 - share / until) ** power over the first share `until` of the training steps;
    from there on delta is 0. The error of the record is that on the inputs as they are.

    Apply it last: what comes later would see the moved inputs as its own. Raises `ValueError` for
    settings out of range.
    """
    if not (steps >= 1 and rate > 0 and 0 < until <= 1 and power > 0):
        raise ValueError(
            "expected steps >= 1, rate > 0, until in (0, 1] and power > 0, got "
            f"{steps}, {rate}, {until} and {power}"
        )
    knobs = {
        "friendly_steps": Fading(steps, until, power),
        "friendly_rate": Fading(rate, until, power),
    }
    objective = FriendlyTraining(steps, run.objective)
    return replace(run, objective=objective, knobs={**run.knobs, **knobs})


@dataclass(frozen=True)
class FisherPenalty:
    """The loss of `base` plus the knob `fisher_weight` times the penalty of `fisher_penalised`.

    Labels are drawn with numbers that depend on the knobs `fisher_seed` and `fisher_step` and the
    place in the batch alone.
    """

    base: Objective = cross_entropy

    def __call__(
        self, call: Call, weights: Weights, inputs: Tensor, targets: Any, knobs: Mapping[str, Any]
    ) -> Tensor:
        """The loss of a batch."""
        loss = self.base(call, weights, inputs, targets, knobs)
        seed, step = knobs["fisher_seed"], knobs["fisher_step"]
        return loss + knobs["fisher_weight"] * fisher_penalty(call, weights, inputs, seed, step)


@dataclass(frozen=True)
class FriendlyTraining:
    """The loss of `base` at inputs that at most `steps` steps of descent have moved.

    The knobs `friendly_steps` (a fraction counts as one) and `friendly_rate` say how far they go.
    """

    steps: int
    base: Objective = cross_entropy

    def __call__(
        self, call: Call, weights: Weights, inputs: Tensor, targets: Any, knobs: Mapping[str, Any]
    ) -> Tensor:
        """The loss of a batch."""
        with torch.no_grad():  # the inputs as they are count for the record and for batch norm
            self.base(call, weights, inputs, targets, knobs)
        held = {name: tensor.detach() for name, tensor in weights.items()}

        def total(moved: Tensor) -> Tensor:
            return self.base(call, held, moved, targets, knobs) * len(inputs)

        with Apart():
            moved = inputs
            for number in range(self.steps):
                down = moved - knobs["friendly_rate"] * grad(total)(moved)
                moved = torch.where(number < knobs["friendly_steps"], down, moved)
            return self.base(call, weights, moved.detach(), targets, knobs)


def fisher_penalty(call: Call, weights: Weights, inputs: Tensor, seed: Tensor, step: Tensor) -> Any:
    """|| gradient of the mean of -log p(y | x) ||^2 over a batch, at labels y drawn from p(. | x).

    The outputs (batch, classes) are logits. The labels are constants in its derivative.
    """

    def forward(weights: Weights) -> Tensor:
        outputs: Tensor = call(weights, inputs)
        return outputs

    with Apart():
        outputs, pull = vjp(forward, dict(weights))[:2]
    chances = outputs.softmax(-1)
    labels = drawn_labels(chances.detach(), seed, step)
    classes = torch.arange(chances.shape[-1], device=chances.device)
    wrong = chances - (labels[:, None] == classes).to(chances)  # one_hot fails under vmap and grad
    (gradient,) = pull(wrong / len(wrong))
    return sum(part.square().sum() for part in gradient.values())


def drawn_labels(chances: Tensor, seed: Tensor, step: Tensor) -> Tensor:
    """A class (batch,) for each row of probabilities (batch, classes), the same on every device."""
    draws = _uniform(seed, step, torch.arange(len(chances), device=chances.device))
    passed = draws[:, None] >= chances.double().cumsum(-1)[:, :-1]
    return passed.sum(-1)


@dataclass(frozen=True)
class EverySteps:
    """A schedule: the value at every so many steps, else 0."""

    value: Scalar
    every: int

    def __call__(self, clock: Clock) -> float:
        """The value now."""
        if clock.step % self.every:
            return 0.0
        return self.value(clock) if callable(self.value) else self.value


@dataclass(frozen=True)
class Fading:
    """A schedule: value * (1 - share / until) ** power until that share of the steps, then 0."""

    value: float
    until: float
    power: float = 1

    def __call__(self, clock: Clock) -> float:
        """The value now."""
        return self.value * max(0.0, 1 - clock.share / self.until) ** self.power


def steps_taken(clock: Clock) -> float:
    """A schedule: the number of steps taken."""
    return float(clock.step)


class Apart(TorchFunctionMode):
    """Forward passes that leave the statistics of normalisation layers alone.

    Layers that normalise are composed of plain operations meanwhile: the second derivatives of the
    fused ones are wrong under `vmap` (pytorch/functorch issue 534).
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call the function, or what stands for it."""
        if func is torch.Tensor.add_ and not args[0].is_floating_point():
            return args[0]  # the count of batches
        return _COMPOSED.get(func, func)(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training:
        own = _standardised(input, [dim for dim in range(input.ndim) if dim != 1], eps)
    else:
        mean, var = _channels(running_mean, input), _channels(running_var, input)
        own = (input - mean) / (var + eps).sqrt()
    return _affine(own, _channels(weight, input), _channels(bias, input))


def _instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats:
        return _batch_norm(input, running_mean, running_var, weight, bias, eps=eps)
    own = _standardised(input, list(range(2, input.ndim)), eps)
    return _affine(own, _channels(weight, input), _channels(bias, input))


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    own = _standardised(input, list(range(-len(normalized_shape), 0)), eps)
    return _affine(own, weight, bias)


_COMPOSED: Mapping[Any, Callable[..., Tensor]] = {
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.layer_norm: _layer_norm,
}


def _standardised(x: Tensor, dims: list[int], eps: float) -> Tensor:
    away = x - x.mean(dims, keepdim=True)
    return away / (away.square().mean(dims, keepdim=True) + eps).sqrt()


def _channels(values: Tensor | None, x: Tensor) -> Any:
    """Values of channels in the shape of (n, channels, ...)."""
    return None if values is None else values.reshape(-1, *[1] * (x.ndim - 2))


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _uniform(seed: Tensor, step: Tensor, place: Tensor) -> Tensor:
    """Numbers in [0, 1) for places, in float64: seed, step and place in turn, well mixed.

    A generator cannot draw under `vmap`; this is the finaliser of splitmix64 (Steele et al. 2014).
    """
    mixed = torch.zeros_like(place)
    for part in (seed.long(), step.long(), place):
        mixed = mixed + (part + 1) * _GAMMA
        for shift, factor in _ROUNDS:
            mixed = (mixed ^ _shifted(mixed, shift)) * factor
        mixed = mixed ^ _shifted(mixed, 31)
    return _shifted(mixed, 11).double() * 2.0**-53


def _shifted(x: Tensor, bits: int) -> Tensor:
    """The bits of 64-bit numbers moved to the right, with zeros behind."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def _signed(number: int) -> int:
    """A 64-bit number as torch writes it."""
    return number - 2**64 if number >= 2**63 else number


_GAMMA = _signed(0x9E3779B97F4A7C15)
_ROUNDS = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)))
