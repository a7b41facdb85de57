"""What do the weights at step k hold? Their signs, their places, their values: other starts tell.

A perturbation makes another state from that of a network at step k, and changes the weights that
survive a mask; all other entries stay (Frankle, Schwab & Morcos 2020, arXiv 2002.10365). States are
those of the dense network, so that a layer's spread is that of all its weights; `full_mask` is the
mask for dense networks. What data the early weights need is asked by training on other data first.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import xarray as xr
from scipy import stats
from torch import Tensor

from landscape import results
from landscape.checkpoints import checkpoints
from landscape.experiments.batches import generator
from landscape.experiments.deficits import Examples
from landscape.experiments.masks import Mask, check_mask, grouped, load_mask, ungrouped
from landscape.experiments.pruning import sparsity_curve, started_from
from landscape.experiments.runs import During, Run, Scalar, View
from landscape.experiments.transfer import new_head
from landscape.states import State, Stored, loaded

Part = Literal["layer", "filter", "channel"]
SCALES = (0.5, 1.0, 2.0, 3.0)


# Perturbations ------------------------------------------------------------------------------------


def with_signs(state: State | Stored, signs: State | Stored, mask: Mask) -> State:
    """The state's magnitudes with the signs of another state, on the surviving weights.

    With a state's own signs nothing changes. Raises `ValueError` for a mask of other shapes.
    """
    return _changed(state, mask, lambda name, own, other: torch.copysign(own, other), signs)


def with_magnitudes(state: State | Stored, magnitudes: State | Stored, mask: Mask) -> State:
    """The state's signs with the magnitudes of another state, on the surviving weights.

    With a state's own magnitudes nothing changes. Raises as `with_signs`.
    """
    return _changed(state, mask, lambda name, own, other: torch.copysign(other, own), magnitudes)


def with_weights(state: State | Stored, weights: State | Stored, mask: Mask) -> State:
    """The state with the surviving weights of another one, such as that of another seed.

    Raises as `with_signs`.
    """
    return _changed(state, mask, lambda name, own, other: other, weights)


def shuffled(
    state: State | Stored,
    mask: Mask,
    *,
    within: Part = "layer",
    keep_signs: bool = False,
    seed: int = 0,
) -> State:
    """The surviving weights permuted among their places, in each layer, filter or channel.

    A filter is all that leads to one output unit (first dimension), a channel all that comes from
    one input (second dimension). With `keep_signs` only the magnitudes are permuted, and each place
    keeps its sign. Raises `ValueError` for another part, or as `with_signs`.
    """
    chance = torch.Generator().manual_seed(seed)

    def permuted(name: str, own: Tensor, _: Tensor) -> Tensor:
        values = grouped(own.abs() if keep_signs else own, within)
        alive = grouped(mask[name].cpu(), within)
        keys = torch.rand(values.shape, generator=chance, dtype=torch.float64)
        source = (keys + ~alive).argsort(1)  # survivors first, in random order
        places = (~alive).to(torch.uint8).argsort(dim=1, stable=True)  # survivors first, in order
        new = torch.empty_like(values).scatter_(1, places, values.gather(1, source))
        found = ungrouped(new, own, within)
        return torch.copysign(found, own) if keep_signs else found

    return _changed(state, mask, permuted, state)


def noisy(state: State | Stored, mask: Mask, scale: float, *, seed: int = 0) -> State:
    """The surviving weights plus normal noise of `scale` times the layer's standard deviation.

    That is the standard deviation of all weights of the tensor in the state. Noises of one seed and
    different scales are multiples of each other. Raises `ValueError` for a scale below 0, or as
    `with_signs`.
    """
    if scale < 0:
        raise ValueError(f"scale must be at least 0, got {scale}")
    chance = torch.Generator().manual_seed(seed)

    def blurred(name: str, own: Tensor, _: Tensor) -> Tensor:
        noise = torch.randn(own.shape, generator=chance, dtype=own.dtype)
        return own + scale * own.std(correction=0) * noise

    return _changed(state, mask, blurred, state)


def effective_std(state: State | Stored, perturbed: State | Stored, mask: Mask) -> float:
    """The standard deviation of the change of all surviving weights, by which arms are compared.

    Over the weights of all layers together, about their mean; 0 if nothing changed. Raises
    `ValueError` for a mask of other shapes.
    """
    a, b = loaded(state), loaded(perturbed)
    check_mask(mask, a)
    check_mask(mask, b)
    changes = [(b[n].cpu().double() - a[n].cpu().double())[m.cpu()] for n, m in mask.items()]
    return float(torch.cat(changes).std(correction=0))


def perturbations(
    state: State | Stored,
    initial: State | Stored,
    fresh: State | Stored,
    mask: Mask,
    *,
    scales: Sequence[float] = SCALES,
    seed: int = 0,
) -> dict[str, State]:
    """All perturbations of the state at step k, by name; `"none"` is the state as it is.

    `initial` is the same network at step 0, `fresh` one of another seed.
    """
    now = loaded(state)
    found = {
        "none": now,
        "initial": loaded(initial),
        "fresh": with_weights(now, fresh, mask),
        "initial-magnitudes": with_magnitudes(now, initial, mask),
        "initial-signs": with_signs(now, initial, mask),
    }
    parts: tuple[Part, ...] = ("layer", "filter", "channel")
    for part in parts:
        for keep in (False, True):
            name = f"shuffled-{part}{'-signs-kept' if keep else ''}"
            found[name] = shuffled(now, mask, within=part, keep_signs=keep, seed=seed)
    return found | {f"noise-{scale:g}": noisy(now, mask, scale, seed=seed) for scale in scales}


def perturbed_runs(run: Run, states: Mapping[str, State]) -> list[Run]:
    """The run of a level from each state, as `chain/NAME/level-03`; they train as one stack.

    Mask, clock and seeds are those of the level: all runs see the same data in the same order.
    """
    return [started_from(run, name, state) for name, state in states.items()]


def against_effective_std(
    arms: Mapping[str, Sequence[str | Run]],
    folder: str | os.PathLike[str],
    *,
    reference: str = "none",
) -> xr.Dataset:
    """How much worse are subnetworks from perturbed starts, the more the weights are changed?

    `arms` holds the runs of each perturbation, one for each seed in the same order in all arms,
    trained by `train_masked` in `folder`. The change is that from the first checkpoint of the run
    of the `reference` arm to that of the same seed. Variables over `arm` and `seed`:
    `effective_std`, `test_error`; and the Pearson `correlation` of the means over seeds of
    effective standard deviation and accuracy, with its two-sided `p_value`, the reference included
    (arXiv 2002.10365).

    Raises `ValueError` for arms of unequal sizes, fewer than three arms, or no reference.
    """
    sizes = {len(own) for own in arms.values()}
    if reference not in arms or len(arms) < 3 or len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"at least three arms with one run for each seed are compared, {reference!r} among "
            f"them; got {', '.join(f'{name} ({len(own)})' for name, own in arms.items()) or 'none'}"
        )
    names = {arm: [_name(run) for run in own] for arm, own in arms.items()}
    changes = [
        [_change(Path(folder), *pair) for pair in zip(names[reference], own, strict=True)]
        for own in names.values()
    ]
    errors = [sparsity_curve(own, folder)["test_error"].values for own in names.values()]
    r, p = stats.pearsonr(np.mean(changes, axis=1), 1 - np.mean(errors, axis=1))
    return results.dataset(
        {
            "effective_std": (
                ("arm", "seed"),
                np.array(changes),
                {"long_name": "effective standard deviation"},
            ),
            "test_error": (("arm", "seed"), np.array(errors), {"long_name": "test error"}),
            "correlation": ((), float(r), {"long_name": "correlation with accuracy"}),
            "p_value": ((), float(p), {"long_name": "p-value of the correlation"}),
        },
        {"arm": list(names), "seed": range(sizes.pop())},
        analysis="perturbations",
        title=f"accuracy after {len(names)} perturbations",
    )


# Pre-training -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QuarterTurns:
    """Each image is turned by 0, 1, 2 or 3 quarter turns, and which it was is its label.

    The turns are exact permutations of the pixels of square images (N, ..., size, size), counter-
    clockwise, and drawn uniformly from `seed`, always the same for an example.
    """

    seed: int = 0

    def turns(self, num: int) -> Tensor:
        """The number of quarter turns (num,) of each image."""
        return torch.randint(4, (num,), generator=generator(self.seed, *b"QuarterTurns"))

    def __call__(self, inputs: Tensor, targets: Tensor) -> Examples:
        """The turned images, and their labels 0 to 3 in the dtype of the targets."""
        if inputs.ndim < 3 or inputs.shape[-1] != inputs.shape[-2]:
            raise ValueError(
                f"{self} is for square images (N, ..., size, size), got {tuple(inputs.shape)}"
            )
        turns = self.turns(len(inputs)).to(inputs.device)
        turned = inputs.clone()
        for number in range(1, 4):
            chosen = turns == number
            turned[chosen] = torch.rot90(inputs[chosen], number, (-2, -1))
        return turned, turns.to(targets.dtype)


def pretraining(
    run: Run, label: str, view: View, *, epochs: int, lr: Scalar, mask: Mask | None = None
) -> Run:
    """The run on another task first, `name/LABEL`: its data seen through a view for some epochs.

    Views are `NoisyLabels(1.0, classes)` for random labels, `QuarterTurns()` for rotations (which
    need at least four outputs), `Blur(factor=4)`, or those of other data. The run begins with the
    initial weights of its own seed, and with a mask its zeros stay zero. It has no test, whose task
    would be another, and leaves its first and its last checkpoint, which `with_head` takes.
    """
    return replace(
        run,
        name=f"{run.name}/{label}",
        views=(During(view),),
        epochs=epochs,
        lr=lr,
        masks={} if mask is None else mask,
        start=None,
        checkpoints=(),
        test=None,
    )


def with_head(run: Run, state: State | Stored, head: Iterable[str]) -> State:
    """A pre-trained state whose head, by patterns of names, is the initial one of the run.

    Raises `ValueError` if a pattern matches nothing, or the state does not fit outside the head.
    """
    return new_head(state, run.build().state_dict(), list(head))


# Helpers ------------------------------------------------------------------------------------------


def _change(folder: Path, reference: str, name: str) -> float:
    """The effective standard deviation between the starts of two runs."""
    before, after = (checkpoints(folder / one)[0] for one in (reference, name))
    return effective_std(before, after, load_mask(folder / name))


def _name(run: str | Run) -> str:
    return run if isinstance(run, str) else run.name


def _changed(
    state: State | Stored,
    mask: Mask,
    change: Callable[[str, Tensor, Tensor], Tensor],
    other: State | Stored,
) -> State:
    """The state with `change(name, own, other)` on the surviving weights."""
    own = loaded(state)
    beside = own if other is state else loaded(other)
    check_mask(mask, own)
    check_mask(mask, beside)
    new = dict(own)
    for name, alive in mask.items():
        before = own[name].cpu()
        after = torch.where(alive.cpu(), change(name, before, beside[name].cpu()), before)
        new |= dict.fromkeys(_tied(own, name), after)
    return new


def _tied(state: State, name: str) -> list[str]:
    """The names of the entries that share the memory of one, itself included."""
    one = state[name]
    return [n for n, t in state.items() if t.data_ptr() == one.data_ptr() and t.shape == one.shape]
