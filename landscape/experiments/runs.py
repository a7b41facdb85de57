"""What is a run? A model, data, and what happens when: said once, before anything is computed.

A `Run` is a frozen description. What the papers change arrives in it from outside: in the data
(`views`), in the batches (`augmentations`), in the loss (`objective`), in scalars that follow a
schedule, or as hooks on the weights. A run that starts from a checkpoint of another is a `Branch`.

The interface for what comes from outside, by the field of `Run` that takes it:

    views           view(inputs, targets) -> (inputs, targets)
        The whole training set (N, ...), as it is shown for a window: another version of the same
        examples in the same order, computed once. What it draws comes from a seed that it holds.
        A reduced set is a view too: each example outside is replaced by one of the subset, and an
        epoch keeps its number of steps.
    augmentations   augmentation.draw(generator, num) -> Tensor or nested tuples of them, (num, ...)
                    augmentation.apply(inputs, targets, draws) -> (inputs, targets)
        `draw` is called once for each epoch and run, and gives the parameters of the `num` places
        of the epoch; `apply` sees batches of n runs at once, (n, batch, ...), with their draws.
    objective       objective(call, weights, inputs, targets, knobs) -> scalar
        The loss of one run on one batch; `call(weights, inputs)` gives the outputs of the model in
        training mode, `knobs` are the run's scalars. The first call gives the error of the record.
    scalars         a number, or schedule(clock) -> number
    hooks           hook(step, view)
        Called before every step and once after the last, with a `RunView`.
    stop            stop(row) -> bool
        Sees the record of each epoch and ends the run when true.

All of these are best frozen dataclasses or module-level functions: they describe themselves in
`run.json` by their fields, and travel to other processes.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from landscape.datasets import Batches
from landscape.experiments.settings import described
from landscape.states import State, Stored
from landscape.task import load_function, random_state_kept

Weights = Mapping[str, Tensor]
Call = Callable[[Weights, Tensor], Any]
Objective = Callable[[Call, Weights, Tensor, Any, Mapping[str, Tensor]], Tensor]
View = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Hook = Callable[[int, "RunView"], None]
Policy = Literal["continue", "reset", "constant", "re-anneal"]
POLICIES = ("continue", "reset", "constant", "re-anneal")
OPTIMISERS = ("sgd", "nesterov", "adam", "adamw")


@dataclass(frozen=True)
class Clock:
    """What a schedule sees: steps taken and epochs passed (a fraction within one), and their ends.

    `step` of `steps` and `epoch` of `epochs` are those of the run, unless the run's `lr_policy`
    or branch gives the learning rate a clock of its own.
    """

    step: int
    epoch: float
    steps: int
    epochs: float

    @property
    def share(self) -> float:
        """The share of the steps that are taken, 0 to 1."""
        return self.step / self.steps if self.steps else 1.0


Schedule = Callable[[Clock], float]
Scalar = float | Schedule


class Augmentation(Protocol):
    """A random change of batches, with parameters that are drawn for a whole epoch."""

    def draw(self, generator: torch.Generator, num: int) -> Any:
        """Parameters for the `num` places of an epoch, drawn on the CPU: tensors (num, ...)."""

    def apply(self, inputs: Tensor, targets: Tensor, draws: Any) -> tuple[Tensor, Tensor]:
        """The batches of n runs, inputs and targets (n, batch, ...), with their draws."""


@dataclass(frozen=True)
class Window:
    """When something is on: from `start` until before `stop`, in `unit`; None is the end."""

    start: float = 0
    stop: float | None = None
    unit: Literal["epochs", "steps"] = "epochs"

    def __post_init__(self) -> None:
        if self.unit not in ("epochs", "steps"):
            raise ValueError(f"the unit of a window must be 'epochs' or 'steps', got {self.unit!r}")
        if self.start < 0 or (self.stop is not None and self.stop <= self.start):
            raise ValueError(
                f"a window starts at 0 or later and stops after that, got {self.start} to "
                f"{self.stop} {self.unit}; leave out what should never be on"
            )

    def __contains__(self, clock: Clock) -> bool:
        now = clock.step if self.unit == "steps" else clock.epoch
        return self.start <= now and (self.stop is None or now < self.stop)

    def within(self, timeline: "Timeline") -> tuple[int, int]:
        """The steps (first, behind the last) of a window. Raises `ValueError` if it sticks out."""
        end = timeline.steps if self.unit == "steps" else timeline.epochs
        stop = end if self.stop is None else self.stop
        if self.start >= end or stop > end:
            raise ValueError(
                f"the window from {self.start} to {self.stop} {self.unit} lies outside training, "
                f"which has {end} {self.unit}; train longer or move the window"
            )
        if self.unit == "steps":
            return math.ceil(self.start), math.ceil(stop)
        return timeline.step_of(self.start), timeline.step_of(stop)


@dataclass(frozen=True)
class During:
    """Something (a view, an augmentation, a pattern of names) for the time of a window."""

    what: Any
    window: Window = Window()


@dataclass(frozen=True)
class Seeds:
    """One seed for each source of chance, so that any of them can be changed alone.

    `init` draws the weights, `order` the order of the examples in each epoch, `augmentation` the
    parameters of augmentations, `dropout` what the model draws itself, and `noise` is for hooks
    that perturb weights. Draws of an epoch come from the seed and the number of the epoch alone.
    """

    init: int = 0
    order: int = 0
    augmentation: int = 0
    noise: int = 0
    dropout: int = 0

    @classmethod
    def all(cls, seed: int) -> "Seeds":
        """The same seed for each source."""
        return cls(seed, seed, seed, seed, seed)


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A start from a state of another run, with all that is carried over said.

    `state` is a checkpoint or a state; training begins at `step` of the new run's clock (0 for a
    run with a time of its own). `optimiser`: momentum and second moments of the other run go on
    (`"carry"`, which needs a checkpoint of a run with `keep_optimiser=True`) or start at zero.
    `batch_norm`: running statistics are carried or start anew.

    `clock` says which time the learning rate follows. `"continue"`: that of the run, as if nothing
    had happened. `"reset"`: the schedule starts over as it is. `"constant"`: the rate stays what it
    is at `step`. `"re-anneal"`: the schedule starts over and is fitted to the steps that remain.
    """

    state: State | Stored
    step: int
    optimiser: Literal["carry", "reset"]
    clock: Policy
    batch_norm: Literal["carry", "reset"]

    def __post_init__(self) -> None:
        for name, allowed in (
            ("optimiser", ("carry", "reset")),
            ("clock", POLICIES),
            ("batch_norm", ("carry", "reset")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name} of a branch must be one of {', '.join(allowed)}, "
                    f"got {getattr(self, name)!r}"
                )
        if self.step < 0:
            raise ValueError(f"a branch starts at step 0 or later, got {self.step}")


@dataclass(frozen=True)
class Every:
    """Checkpoints every so many epochs or steps (one of them), from the first to the last."""

    epochs: int | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None) or (self.epochs or self.steps or 0) < 1:
            raise ValueError(
                f"Every takes epochs or steps, at least 1, got {self.epochs} and {self.steps}"
            )

    def on(self, timeline: "Timeline") -> set[int]:
        """The steps at which to save."""
        if self.epochs:
            return set(timeline.starts[:: self.epochs])
        return set(range(0, timeline.steps + 1, self.steps or 1))


@dataclass(frozen=True)
class At:
    """Checkpoints at these numbers of steps taken; `At(range(11))` keeps the first ten steps."""

    steps: Iterable[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(sorted({int(step) for step in self.steps})))

    def on(self, timeline: "Timeline") -> set[int]:
        """The steps at which to save. Raises `ValueError` for steps outside training."""
        outside = [step for step in self.steps if not 0 <= step <= timeline.steps]
        if outside:
            raise ValueError(
                f"checkpoints at steps {outside[:5]} lie outside training, which has "
                f"{timeline.steps} steps; train longer or leave them out"
            )
        return set(self.steps)


def log_spaced(until: int, *, per_octave: int = 1) -> At:
    """Checkpoints at 0, 1, 2, 4, 8, ... up to `until` steps, `per_octave` for each doubling."""
    if until < 1 or per_octave < 1:
        raise ValueError(f"log_spaced takes numbers of at least 1, got {until} and {per_octave}")
    num = math.floor(math.log2(until) * per_octave + 1e-9) + 1
    return At({0, until, *(round(2 ** (i / per_octave)) for i in range(num))})


@dataclass(frozen=True)
class Timeline:
    """Which step lies in which epoch: `starts` holds the first step of each, and the end."""

    starts: tuple[int, ...]

    @property
    def steps(self) -> int:
        """The number of steps."""
        return self.starts[-1]

    @property
    def epochs(self) -> int:
        """The number of epochs."""
        return len(self.starts) - 1

    def epoch_at(self, step: int) -> int:
        """The number of the epoch that holds a step; after the last step, of epochs."""
        return bisect_right(self.starts, step) - 1

    def at(self, step: int) -> Clock:
        """The clock when so many steps are taken."""
        epoch = self.epoch_at(step)
        if epoch == self.epochs:
            return Clock(step, float(epoch), self.steps, self.epochs)
        first, behind = self.starts[epoch : epoch + 2]
        return Clock(step, epoch + (step - first) / (behind - first), self.steps, self.epochs)

    def step_of(self, epoch: float) -> int:
        """The first step at which so many epochs have passed."""
        whole = int(epoch)
        if whole == self.epochs:
            return self.steps
        first, behind = self.starts[whole : whole + 2]
        return first + math.ceil((epoch - whole) * (behind - first) - 1e-9)


def cross_entropy(
    call: Call, weights: Weights, inputs: Tensor, targets: Tensor, knobs: Mapping[str, Tensor]
) -> Tensor:
    """The mean cross-entropy; targets are classes (batch,) or their probabilities (batch, c)."""
    logits = F.log_softmax(call(weights, inputs), dim=1)
    if targets.is_floating_point():
        return -(targets * logits).sum(1).mean()
    return -logits.gather(1, targets[:, None]).mean()  # far fewer operations under vmap


@dataclass(frozen=True, eq=False, kw_only=True)
class Run:
    """One training run. What is not said here does not happen.

    `name` is its folder within the folder of `train`, such as `"blur-40/seed-3"`. `make_model` is
    called as `make_model(seed=seeds.init)` and gives the network with its initial weights; a text
    `"package.module:function"` is imported. `data` is the training set, `test` one on which loss
    and error are measured after each `test_every` epochs.

    Each epoch goes through all examples in a new order, in as few batches as hold no more than
    `batch_size` examples, which may be a function of the number of the epoch. With `last_batch`
    `"even"` their sizes differ by one at most. With `"smaller"` all have `batch_size` examples but
    the last, which has what is left, as with a `DataLoader` of torch: where that is little, its
    step can be most of the noise of training.

    `lr`, `momentum` (beta 1 of Adam), `weight_decay` and `knobs` are numbers or schedules.
    `optimiser`: `"sgd"`, `"nesterov"`, `"adam"`, or `"adamw"` (decoupled decay), as in torch.
    Parameters whose names match a pattern of `undecayed` have no weight decay.

    `precision="bfloat16"` computes outputs in mixed precision (`torch.autocast`); weights, loss and
    updates keep their dtype. `channels_last` gives the model images in that memory format, and
    `compiled` runs it through `torch.compile`; such runs train one after the other.

    `lr_policy` says which time the learning rate follows around an intervention that lasts for
    `lr_window`: `"continue"`; `"reset"`, where the schedule starts over, as it is, when the window
    closes; `"constant"`, where the rate keeps the value it has when the window opens;
    `"re-anneal"`, where it keeps that value until the window closes and the schedule then starts
    over, fitted to the steps that remain.

    `frozen` names parameters that do not move during a window: no gradient, decay or momentum.
    `masks` holds a tensor for each parameter that is pruned, 0 where weights stay zero.

    Checkpoints are written on the union of `checkpoints`, and at the first and the last step.
    `keep_optimiser` keeps the optimiser's state beside each of them, for branches that carry it.

    Raises `ValueError` for what cannot be trained: data smaller than a batch, a window or step
    outside training, an unknown optimiser or policy, a name that leads out of the folder.
    """

    name: str
    make_model: Callable[..., nn.Module] | str
    data: Batches
    epochs: int
    batch_size: int | Callable[[int], int] = 128
    last_batch: Literal["even", "smaller"] = "even"
    lr: Scalar = 0.1
    momentum: Scalar = 0.9
    weight_decay: Scalar = 0.0
    optimiser: str = "sgd"
    undecayed: tuple[str, ...] = ()
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = False
    compiled: bool = False
    seeds: Seeds = Seeds()
    start: Branch | None = None
    lr_policy: Policy = "continue"
    lr_window: Window | None = None
    views: tuple[During, ...] = ()
    augmentations: tuple[During, ...] = ()
    objective: Objective = cross_entropy
    knobs: Mapping[str, Scalar] = field(default_factory=dict)
    frozen: tuple[During, ...] = ()
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    hooks: tuple[Hook, ...] = ()
    stop: Callable[[Mapping[str, float]], bool] | None = None
    checkpoints: tuple[Every | At, ...] = (Every(epochs=1),)
    keep_optimiser: bool = False
    test: Batches | None = None
    test_every: int = 1

    def __post_init__(self) -> None:
        path = PurePosixPath(self.name)
        if not self.name or path.is_absolute() or ".." in path.parts:
            raise ValueError(f"the name of a run is a folder within another, got {self.name!r}")
        if self.epochs < 1 or self.test_every < 1:
            raise ValueError(
                f"epochs and test_every must be at least 1, got {self.epochs}, {self.test_every}"
            )
        if self.optimiser not in OPTIMISERS:
            raise ValueError(
                f"optimiser must be one of {', '.join(OPTIMISERS)}, got {self.optimiser!r}"
            )
        if self.last_batch not in ("even", "smaller"):
            raise ValueError(f"last_batch must be 'even' or 'smaller', got {self.last_batch!r}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision must be 'float32' or 'bfloat16', got {self.precision!r}")
        if self.lr_policy not in POLICIES:
            raise ValueError(
                f"lr_policy must be one of {', '.join(POLICIES)}, got {self.lr_policy!r}"
            )
        if self.lr_policy != "continue" and self.lr_window is None:
            raise ValueError(f"lr_policy={self.lr_policy!r} needs the lr_window that it is about")
        if self.lr_policy != "continue" and self.start and self.start.clock != "continue":
            raise ValueError("the learning rate follows lr_policy or the branch's clock, not both")
        for timed in (*self.views, *self.augmentations, *self.frozen):
            if not isinstance(timed, During):
                raise TypeError(
                    f"views, augmentations and frozen hold During(what, Window(...)), got {timed!r}"
                )
            timed.window.within(self.timeline)
        if self.start and self.start.step >= self.timeline.steps:
            raise ValueError(
                f"the branch starts at step {self.start.step}, but training ends after "
                f"{self.timeline.steps} steps; give more epochs"
            )
        _ = self.checkpoint_steps, self._lr_steps

    @property
    def first_step(self) -> int:
        """The number of steps on the clock when training begins."""
        return self.start.step if self.start else 0

    def batch_size_at(self, epoch: int) -> int:
        """The largest number of examples in a batch of an epoch."""
        return self.batch_size(epoch) if callable(self.batch_size) else self.batch_size

    @cached_property
    def timeline(self) -> Timeline:
        """Which step lies in which epoch."""
        num = self.data.num_examples
        sizes = [self.batch_size_at(epoch) for epoch in range(self.epochs)]
        if min(sizes) < 1 or max(sizes) > num:
            raise ValueError(
                f"batch_size must be 1 to {num}, the number of training examples, got "
                f"{min(sizes) if min(sizes) < 1 else max(sizes)}"
            )
        return Timeline(tuple(accumulate((math.ceil(num / size) for size in sizes), initial=0)))

    @cached_property
    def checkpoint_steps(self) -> set[int]:
        """The steps at which checkpoints are written."""
        steps = {step for plan in self.checkpoints for step in plan.on(self.timeline)}
        first = self.first_step
        return {step for step in steps if step > first} | {first, self.timeline.steps}

    @cached_property
    def freezing_steps(self) -> set[int]:
        """The steps at which parameters freeze or thaw."""
        return {step for timed in self.frozen for step in timed.window.within(self.timeline)}

    def clock(self, step: int) -> Clock:
        """The clock that scalars follow."""
        return self.timeline.at(step)

    def lr_clock(self, step: int) -> Clock:
        """The clock that the learning rate follows: that of the run, as the policy changes it."""
        begin, end = self._lr_steps
        policy = self.start.clock if self.start else "continue"
        policy = policy if policy != "continue" else self.lr_policy
        now, line = self.timeline.at(step), self.timeline
        if policy == "continue" or step < (end if policy == "reset" else begin):
            return now
        if policy == "constant" or step < end:
            return line.at(begin)
        event = line.at(end)
        steps, epochs = (
            (line.steps, float(line.epochs))
            if policy == "reset"
            else (line.steps - end, line.epochs - event.epoch)
        )
        return Clock(step - end, now.epoch - event.epoch, steps, epochs)

    def build(self) -> nn.Module:
        """The network with its initial weights; global random states stay as they were."""
        make = self.make_model
        function = load_function(make) if isinstance(make, str) else make
        with random_state_kept():
            torch.default_generator.manual_seed(self.seeds.init)
            return function(seed=self.seeds.init)

    def settings(self) -> dict[str, Any]:
        """All that the run's weights depend on, as JSON can hold it."""
        return described(self)

    @cached_property
    def _lr_steps(self) -> tuple[int, int]:
        """The steps at which the intervention begins and ends that the learning rate answers."""
        if self.start and self.start.clock != "continue":
            return self.start.step, self.start.step
        return self.lr_window.within(self.timeline) if self.lr_window else (0, 0)


@dataclass(frozen=True, eq=False)
class RunView:
    """What a hook sees of its run: tensors that it may change in place.

    `weights` and `buffers` by name, `optimiser` by the name of the moment (`"momentum"`; or
    `"first"`, `"second"`) and then of the parameter. What `memory` holds (a dict
    of this hook alone: tensors, numbers, text) is kept with the run and comes back when it resumes.
    `model` is the skeleton for `torch.func.functional_call`; its own tensors mean nothing. `folder`
    is that of the run.
    """

    run: Run
    folder: Path
    model: nn.Module
    weights: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    optimiser: Mapping[str, Mapping[str, Tensor]]
    memory: dict[str, Any]
