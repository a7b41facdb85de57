"""Where is the curvature of the loss measured, and over which parameters?

All analyses of curvature begin with `mean_loss_at`: the mean loss of the training task over all of
its examples, at a state whose batch-norm statistics are chosen by name.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from landscape.engine import caller, gradients_allowed
from landscape.evaluation import Tasks, described, placed_state, prepare
from landscape.products import MeanLoss, gradient, mean_loss
from landscape.states import State, Stored, loaded, tied_names, unflatten
from landscape.task import map_tensors, tensors_in, training_task

TRIED = 8  # examples that run twice
Result = TypeVar("Result")


def mean_loss_at(
    task: Tasks,
    state: State | Stored,
    *,
    batch_norm: str | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> tuple[MeanLoss, dict[str, Any]]:
    """The mean loss at a state, ready to be differentiated, and what results record about it.

    `task`: one, or several of which the one named `"train"`, or the first, counts. `batch_norm`:
    `"recalibrate"` (the default of models with batch norm) or `"keep"`; the statistics do not
    change with the weights. `batch_size`: default that of the data; it changes no result, and is
    halved where memory runs out. Further `options` are those of `prepare`: `device`, `dtype`,
    `batch_norm_examples`, `strategy`.

    The attribute `not_counted` names the parameters that the user's model freezes. Raises
    `ValueError` as `prepare` and `placed_state`, and if outputs change with chance.
    """
    state = loaded(state)
    ready = prepare(task, [state], batch_norm=batch_norm, **options)
    main = training_task(ready.tasks)
    mean = mean_loss(
        main,
        placed_state(ready, state, batch_norm=batch_norm),
        examples=ready.examples[ready.tasks.index(main)],
        batch_size=batch_size,
        device=ready.device,
        dtype=ready.dtype,
    )
    _check_chance(mean)
    names = [name for name, _ in main.model.named_parameters()]
    return mean, {
        "task": main.name,
        **described(ready, batch_norm),
        "num_examples": mean.examples.num,
        "num_parameters": mean.size,
        "not_counted": [name for name in names if name not in mean.names],
    }


def parameter_blocks(names: Sequence[str], layers: str | Sequence[str]) -> dict[str, list[str]]:
    """Names of parameters in groups: by module, by child of the model, or by patterns.

    `layers`: `"each"` module with parameters of its own, `"blocks"` (the model's children), or name
    patterns such as `["conv*", "head"]` of parameters or of modules that hold them.

    Raises `ValueError` for a pattern that fits nothing, or if two fit one parameter.
    """
    if isinstance(layers, str) and layers in ("each", "blocks"):
        owners = [n.rpartition(".")[0] if layers == "each" else n.partition(".")[0] for n in names]
        return {o: [n for n, p in zip(names, owners, strict=True) if p == o] for o in owners}
    blocks: dict[str, list[str]] = {}
    for pattern in [layers] if isinstance(layers, str) else layers:
        fits = [n for n in names if fnmatchcase(n, pattern) or fnmatchcase(n, f"{pattern}.*")]
        if not fits:
            raise ValueError(
                f"no parameter that counts is named {pattern!r} or lies in a module of that name; "
                f"there are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
            )
        for other, taken in blocks.items():
            if both := set(fits) & set(taken):
                raise ValueError(f"{min(both)!r} is in two blocks, {other!r} and {pattern!r}")
        blocks[pattern] = fits
    return blocks


def restricted(mean: MeanLoss, layers: str | Sequence[str]) -> dict[str, MeanLoss]:
    """The mean loss as a function of the parameters of each block alone."""
    blocks = parameter_blocks(mean.names, layers)
    return {block: replace(mean, names=tuple(names)) for block, names in blocks.items()}


def _check_chance(mean: MeanLoss) -> None:
    """Raise `ValueError` if the first examples have other outputs the second time."""
    with gradients_allowed():
        inputs, _ = next(mean.examples.batches(min(mean.batch_size, TRIED)))
        inputs = map_tensors(lambda x: x[:TRIED], inputs)
        first, second = (tensors_in(caller(mean.model)(inputs)) for _ in range(2))
    if not all(map(partial(torch.allclose, equal_nan=True), first, second)):
        raise ValueError(
            f"the outputs of task {mean.task!r} change with chance, though the model is in "
            "evaluation mode: look for dropout that does not heed the mode, such as F.dropout "
            "without training=self.training"
        )


def at_state(mean: MeanLoss) -> tuple[MeanLoss, dict[str, Any]]:
    """The loss and the length of its gradient, as variables; the mean loss in batches that fit."""
    mean, (loss, slope) = within_memory(mean, gradient)
    return mean, {"loss": ((), loss), "gradient_norm": ((), slope.norm().item())}


def within_memory(mean: MeanLoss, work: Callable[[MeanLoss], Result]) -> tuple[MeanLoss, Result]:
    """What `work` gives; where memory runs out, with batches of half the size, which come too."""
    while True:
        try:
            return mean, work(mean)
        except torch.OutOfMemoryError:
            if mean.batch_size == 1:
                raise
        mean = replace(mean, batch_size=mean.batch_size // 2)
        if mean.device.type == "cuda":
            torch.cuda.empty_cache()


def direction(mean: MeanLoss, vector: Tensor) -> State:
    """A flat vector (P,) as entries of a state, on the CPU."""
    like = dict(zip(mean.names, mean.parameters, strict=True))
    entries = unflatten(vector.cpu().clone(), like, mean.names)
    tied = {n: names[0] for names in tied_names(mean.model) for n in names if names[0] in entries}
    return entries | {name: entries[first] for name, first in tied.items()}
