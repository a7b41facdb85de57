"""How are weights trained that are no model's own, such as the bends of a curve?

A private copy of the model has all its parameters in one vector, and their gradients in another:
a point of a family is one matrix product away, and a gradient goes back to the controls by another.
`descend` is the loop: epochs over shuffled data, any optimiser and schedule, and a snapshot after
each epoch, from which it goes on to the same bits.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from tqdm import tqdm

from landscape.engine import caller, install, replicate
from landscape.examples import Examples, Finish, arrange, read, to_device
from landscape.states import State, flatten, match, unflatten
from landscape.task import Task, random_state_kept

MakeOptimiser = Callable[[list[nn.Parameter]], Optimizer]
MakeSchedule = Callable[[Optimizer, int], LRScheduler]


@dataclass(frozen=True, eq=False)
class Recipe:
    """How long and with what is trained.

    `epochs` passes over the data in mini-batches of `batch_size`, shuffled by `seed`; or over
    `data`, any re-iterable batches, which may shuffle and augment and have batches of their own.
    `optimiser` makes a torch optimiser from a list of parameters (default: SGD with learning rate
    `lr` and momentum 0.9); `schedule` makes a scheduler from it and the number of steps, and is
    stepped after each mini-batch (default: `fall`). `weight_decay` adds half its product with the
    squared norm of the weights at the trained point, over the parameters whose names match a
    pattern in `decayed`; the optimiser's own must stay 0.
    """

    epochs: int = 100
    batch_size: int = 128
    lr: float = 0.03
    weight_decay: float = 0.0
    decayed: Sequence[str] = ("*",)
    optimiser: MakeOptimiser | None = None
    schedule: MakeSchedule | None = None
    data: Iterable[tuple[Any, Any]] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(
                f"training needs at least one epoch and examples in a batch, got {self.epochs} "
                f"epochs and batch_size {self.batch_size}"
            )
        if not (self.lr > 0 and self.weight_decay >= 0):
            raise ValueError(
                f"lr must be positive and weight_decay not negative, got {self.lr} and "
                f"{self.weight_decay}"
            )
        if isinstance(self.decayed, str):
            raise ValueError(
                f"decayed must be a list of patterns of names, such as ['*weight'], got the text "
                f"{self.decayed!r}"
            )


def recipe_of(options: dict[str, Any]) -> Recipe:
    """The recipe that some options give; they are removed from the options."""
    names = [field.name for field in fields(Recipe) if field.name in options]
    return Recipe(**{name: options.pop(name) for name in names})


def decayed_names(recipe: Recipe, names: Iterable[str]) -> list[str]:
    """Those of the names whose parameters have weight decay."""
    return [name for name in names if any(fnmatchcase(name, one) for one in recipe.decayed)]


def fall(optimiser: Optimizer, steps: int) -> LRScheduler:
    """Constant for the first half, then linear to 1 % at nine tenths of the steps, then constant.

    The schedule of the reference code of Garipov et al. 2018.
    """

    def factor(step: int) -> float:
        return min(1.0, max(0.01, 1.0 - 0.99 * (step / steps - 0.5) / 0.4))

    return LambdaLR(optimiser, factor)


@dataclass(frozen=True, eq=False)
class FlatModel:
    """A private copy of a model in training mode, its parameters views of `weights` (P,).

    `gradient` (P,) holds the gradient after `loss_and_gradient`. `names` are those of the
    parameters in their order, `decay` is None or (P,) with the weight decay of each.
    """

    model: nn.Module
    names: tuple[str, ...]
    weights: Tensor
    gradient: Tensor
    decay: Tensor | None

    def loss_and_gradient(self, task: Task, inputs: Any, targets: Any) -> Tensor:
        """The mean loss of a batch, without weight decay; `gradient` then includes it."""
        self.gradient.zero_()
        with torch.enable_grad():
            loss = task.loss(caller(self.model)(inputs), targets).mean()
            loss.backward()
        if self.decay is not None:
            self.gradient.addcmul_(self.decay, self.weights)
        return loss.detach()


def flat_model(
    task: Task, state: State, recipe: Recipe, *, device: torch.device, dtype: torch.dtype
) -> FlatModel:
    """A private copy of the task's model, with the weights and buffers of a state."""
    (model,) = replicate(task.model, 1, device=device, dtype=dtype, layout="contiguous")
    own = dict(model.named_parameters())
    state = match(state, task.model)
    install(model, {name: state[name] for name in state if name in dict(model.named_buffers())})
    weights = flatten([state], own, dtype=dtype, device=device)[0]
    gradient = torch.zeros_like(weights)
    decayed = set(decayed_names(recipe, own))
    decays = [recipe.weight_decay if name in decayed else 0.0 for name in own]
    sizes = torch.tensor([parameter.numel() for parameter in own.values()])
    decay = torch.tensor(decays, dtype=dtype).repeat_interleave(sizes).to(device)
    views = unflatten(weights, own, own), unflatten(gradient, own, own)
    for name, parameter in own.items():
        parameter.data = views[0][name]
        parameter.requires_grad_(True)
        parameter.grad = views[1][name]
    model.train()
    return FlatModel(model, tuple(own), weights, gradient, decay if decay.any() else None)


@dataclass(frozen=True, eq=False)
class Trainable:
    """Rows (n, P) of weights that an optimiser moves, as parameters of the model's shapes.

    `gradients` (n, P) is where their gradients are written.
    """

    rows: Tensor
    gradients: Tensor
    parameters: list[nn.Parameter]


def trainable(flat: FlatModel, rows: Tensor) -> Trainable:
    """Copies of some rows (n, P), as an optimiser wants them."""
    rows = rows.clone()
    gradients = torch.zeros_like(rows)
    shapes = dict(flat.model.named_parameters())
    parameters = []
    for row, gradient in zip(rows, gradients, strict=True):
        views = unflatten(row, shapes, flat.names), unflatten(gradient, shapes, flat.names)
        for name in flat.names:
            parameters.append(nn.Parameter(views[0][name]))
            parameters[-1].grad = views[1][name]
    return Trainable(rows, gradients, parameters)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All that training goes on from after `epoch` epochs; plain values and tensors on the CPU.

    `rows` (n, P) are the trained weights, `losses` the mean training loss of each epoch.
    `diverged` is the epoch in which a loss or weight was no longer finite, or 0; the rows are then
    those at the beginning of the epoch with the lowest loss.
    """

    epoch: int
    rows: Tensor
    losses: list[float] = field(default_factory=list)
    diverged: int = 0
    optimiser: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, Any] = field(default_factory=dict)
    random: dict[str, Any] = field(default_factory=dict)


Step = Callable[[Trainable, torch.Generator, Any, Any], Tensor]


def descend(
    flat: FlatModel,
    rows: Tensor,
    batches: "Shuffled",
    recipe: Recipe,
    step: Step,
    *,
    snapshot: Snapshot | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
    progress: bool | None = False,
    title: str = "training",
) -> Snapshot:
    """Train rows of weights and give the last snapshot.

    `step(trainable, generator, inputs, targets)` writes the gradients of the rows for a mini-batch
    and gives its loss. After each epoch `on_snapshot` sees a snapshot; given as `snapshot`,
    training goes on from there. An epoch with a loss or weight that is not finite ends the training
    and gives back the weights at the beginning of the best epoch since the training went on. Global
    random states are left as they were.

    Raises `ValueError` for an optimiser that decays the weights itself or a snapshot of other rows.
    """
    if snapshot is not None and snapshot.rows.shape != rows.shape:
        raise ValueError(
            f"the snapshot holds weights {tuple(snapshot.rows.shape)}, this training has "
            f"{tuple(rows.shape)}: go on with the same arguments, or start without a snapshot"
        )
    if snapshot is not None and (snapshot.diverged or snapshot.epoch >= recipe.epochs):
        return snapshot
    device = flat.weights.device
    train = trainable(flat, rows if snapshot is None else snapshot.rows.to(rows))
    make_optimiser = recipe.optimiser or _sgd(recipe.lr)
    with random_state_kept():
        optimiser = make_optimiser(train.parameters)
        if any(group.get("weight_decay") for group in optimiser.param_groups):
            raise ValueError(
                "the optimiser decays the trained weights themselves, but the decay belongs to the "
                "weights at each point: use weight_decay= here and 0 in the optimiser"
            )
        schedule = (recipe.schedule or fall)(optimiser, recipe.epochs * len(batches))
        generator = torch.Generator().manual_seed(recipe.seed)
        torch.manual_seed(recipe.seed)
        if snapshot is None:
            snapshot = Snapshot(0, train.rows.cpu().clone())
        else:
            optimiser.load_state_dict(snapshot.optimiser)
            schedule.load_state_dict(snapshot.schedule)
            _set_random(snapshot.random, generator, device)
        bar = tqdm(
            total=recipe.epochs,
            initial=snapshot.epoch,
            desc=title,
            unit="epoch",
            disable=None if progress is None else not progress,
        )
        with bar:
            best = math.inf, snapshot
            while snapshot.epoch < recipe.epochs and not snapshot.diverged:
                losses = []
                for inputs, targets in batches.epoch(generator):
                    losses.append(step(train, generator, inputs, targets))
                    optimiser.step()
                    schedule.step()
                loss = torch.stack(losses).double().mean().item()
                if not (torch.isfinite(train.rows).all() and math.isfinite(loss)):
                    return replace(best[1], diverged=snapshot.epoch + 1)
                best = min(best, (loss, snapshot), key=lambda pair: pair[0])
                snapshot = Snapshot(
                    snapshot.epoch + 1,
                    train.rows.cpu().clone(),
                    [*snapshot.losses, loss],
                )
                bar.set_postfix(loss=f"{loss:.4g}")
                bar.update()
                if on_snapshot is not None:
                    snapshot = replace(
                        snapshot,
                        optimiser=copy.deepcopy(optimiser.state_dict()),
                        schedule=copy.deepcopy(schedule.state_dict()),
                        random=_random(generator, device),
                    )
                    on_snapshot(snapshot)
    return snapshot


def _sgd(lr: float) -> MakeOptimiser:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def _random(generator: torch.Generator, device: torch.device) -> dict[str, Any]:
    """The states of the generators that training draws from."""
    states = {"order": generator.get_state(), "cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random(states: dict[str, Any], generator: torch.Generator, device: torch.device) -> None:
    generator.set_state(states["order"])
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


@dataclass(frozen=True, eq=False)
class Shuffled:
    """Mini-batches on the device: of examples in memory in a new order each epoch, or of `data`."""

    examples: Examples | None
    data: Iterable[tuple[Any, Any]] | None
    size: int
    device: torch.device
    dtype: torch.dtype

    def __len__(self) -> int:
        if self.examples is not None:
            return -(-self.examples.num // self.size)
        return len(self.data)  # type: ignore[arg-type]

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Any, Any]]:
        """The batches of one epoch, with sizes that differ by at most one example."""
        if self.examples is None:
            assert self.data is not None
            finish = Finish(dtype=self.dtype)
            for inputs, targets in self.data:
                inputs, targets = to_device((inputs, targets), self.device)
                yield finish(inputs), targets
            return
        order = torch.randperm(self.examples.num, generator=generator)
        for index in order.to(self.device).tensor_split(len(self)):
            inputs, targets = self.examples.part(index)
            yield self.examples.finish(inputs), targets


def shuffled(task: Task, recipe: Recipe, *, device: torch.device, dtype: torch.dtype) -> Shuffled:
    """The mini-batches that a recipe trains on; by default those of the task's data."""
    data = task.data if recipe.data is None else recipe.data
    if recipe.data is None:
        examples = arrange(read(data, device), "contiguous", dtype)
        if examples.source is None:
            return Shuffled(examples, None, min(recipe.batch_size, examples.num), device, dtype)
    if not hasattr(data, "__len__"):
        raise ValueError(
            "the training data must know its number of batches (len), for the schedule; "
            "give a DataLoader or a list"
        )
    if not len(data):  # type: ignore[arg-type]
        raise ValueError("the training data holds no batches: its length is 0")
    return Shuffled(None, data, recipe.batch_size, device, dtype)
