"""What do several iterates of a run give together? Averages of their weights, or of their answers.

An average is a state like any other and is written as a checkpoint of its own, in a folder beside
that of the run. Batch norm's statistics are not averaged: they are computed anew, from the training
data, for the averaged weights.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from landscape.checkpoints import Checkpoint, save_checkpoint
from landscape.datasets import Batches
from landscape.experiments.branches import checkpoint_at
from landscape.experiments.probes import placed, predictions
from landscape.experiments.runs import At, Branch, Every, Run, RunView
from landscape.experiments.schedules import Triangular, WarmRestarts, cycle_ends
from landscape.normalisation import batch_norms, recalibrate, statistics_names
from landscape.results import dataset
from landscape.states import State, Stored, check_alike, loaded, match, weight_names

REFRESH_BATCH = 512


def averaged(states: Sequence[State | Stored]) -> State:
    """The mean of the weights of states, in float64; all other entries are those of the last.

    Raises `ValueError` for no states, or states that differ in names or shapes.
    """
    if not states:
        raise ValueError("an average needs at least one state, got none")
    total: dict[str, Tensor] = {}
    last: dict[str, Tensor] = {}
    for given in states:
        state = dict(loaded(given))
        check_alike([last or state, state])
        for name in weight_names(state):
            own = state[name].detach().double()
            total[name] = total[name] + own if name in total else own
        last = state
    return last | {name: (t / len(states)).to(last[name].dtype) for name, t in total.items()}


def refreshed(
    state: State | Stored, model: nn.Module, data: Batches, *, device: str | torch.device = "auto"
) -> State:
    """The state with batch-norm statistics of exactly these data, as `normalisation` takes them.

    Without batch norm it is the state itself. Raises `ValueError` if it does not fit the model.
    """
    state = loaded(state)
    twin = placed(model, state, device)
    if not batch_norms(twin):
        return state
    where = next(twin.parameters()).device
    own = {*dict(twin.named_parameters()), *dict(twin.named_buffers())}
    shown = replace(data, batch_size=REFRESH_BATCH).to(where)
    with torch.no_grad():
        tensors = recalibrate(
            [twin],
            {name: tensor.to(where)[None] for name, tensor in state.items() if name in own},
            lambda: iter(shown),
            vectorised=False,
            one_batch=len(shown) == 1,
        )
    names = statistics_names(twin)
    return {**state, **{name: tensors[name][0].to(state[name]) for name in names}}


def swa(
    run: Run,
    folder: str | os.PathLike[str],
    steps: Iterable[int],
    *,
    name: str = "swa",
    device: str | torch.device = "auto",
) -> Checkpoint:
    """Write the average of a run's checkpoints at some steps, batch norm refreshed: SWA.

    Stochastic weight averaging (Izmailov et al. 2018, arXiv 1803.05407) takes the iterates of the
    last quarter or so of training, at a high constant rate or at the ends of cycles. The average
    stands in `folder/run-name-swa`, with the last of the steps. Raises as `averaged` and
    `load_state`.
    """
    steps, own = sorted(steps), Path(folder) / run.name
    state = averaged([checkpoint_at(own, step) for step in steps])
    state = refreshed(state, run.build(), run.data, device=device)
    return save_checkpoint(state, own.with_name(f"{own.name}-{name}"), step=steps[-1])


@dataclass(frozen=True)
class EMA:
    """A hook: the exponential moving average of the weights after each step.

    a <- decay * a + (1 - decay) * weights, from the weights at the start. It is written to
    `run-name-ema`, with refreshed batch norm, at the steps of `checkpoints` and at the last that
    is planned.
    """

    decay: float = 0.999
    checkpoints: tuple[Every | At, ...] = ()
    name: str = "ema"

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {self.decay}")

    def __call__(self, step: int, view: RunView) -> None:
        """Take in the weights, and write their average if it is due."""
        names = list(view.weights)
        now = [view.weights[name].detach() for name in names]
        kept = view.memory.get("average")
        if kept is None:
            average = [tensor.clone() for tensor in now]
        else:
            average = [
                kept[name].to(tensor.device) for name, tensor in zip(names, now, strict=True)
            ]
            torch._foreach_lerp_(average, now, 1 - self.decay)
        view.memory["average"] = dict(zip(names, average, strict=True))
        line = view.run.timeline
        if step == line.steps or any(step in plan.on(line) for plan in self.checkpoints):
            self._write(step, view)

    def _write(self, step: int, view: RunView) -> None:
        average: dict[str, Tensor] = view.memory["average"]
        own = {n: t for n, t in view.buffers.items() if n in view.model.state_dict()}
        own = dict(match({**average, **own}, view.model))
        state = refreshed(
            own, view.model, view.run.data, device=next(iter(average.values())).device
        )
        save_checkpoint(state, view.folder.with_name(f"{view.folder.name}-{self.name}"), step=step)


def snapshots(run: Run, *, cycles: int, lr: float) -> Run:
    """The run with equal cosine cycles from `lr` to 0, and a checkpoint at the end of each.

    Snapshot ensembles: Huang et al. 2017 (arXiv 1704.00109, equation 2). The members of the
    ensemble stand at the steps of `run.checkpoints[-1]`. Raises `ValueError` unless there is at
    least one epoch for each cycle.
    """
    if not 1 <= cycles <= run.epochs:
        raise ValueError(f"cycles must be 1 to {run.epochs}, the number of epochs, got {cycles}")
    schedule = WarmRestarts(lr, first=1 / cycles, unit="share")
    run = replace(run, lr=schedule)
    return replace(run, checkpoints=(*run.checkpoints, cycle_ends(schedule, run)))


def fast_geometric(
    run: Run,
    state: State | Stored,
    *,
    cycles: int,
    period: int = 4,
    highest: float = 0.05,
    lowest: float = 0.0005,
) -> Run:
    """The run from a trained state on, at a cyclical rate, with checkpoints where it is lowest.

    Fast geometric ensembling: Garipov et al. 2018 (arXiv 1802.10026). The rate falls on straight
    lines from `highest` to `lowest` within half a period of (an even number of) epochs and
    rises again; the weights there are the members, at the steps of `run.checkpoints[-1]`. The
    optimiser starts anew, batch norm is carried.

    Raises `ValueError` for no cycles, or an odd period.
    """
    if cycles < 1 or period < 2 or period % 2:
        raise ValueError(
            f"expected at least one cycle of an even number of epochs, got {cycles} and {period}"
        )
    schedule = Triangular(lowest, highest, period, begin="highest")
    start = Branch(state=state, step=0, optimiser="reset", clock="continue", batch_norm="carry")
    run = replace(run, epochs=cycles * period, lr=schedule, lr_policy="continue", start=start)
    return replace(run, checkpoints=(*run.checkpoints, cycle_ends(schedule, run)))


def ensemble(
    model: nn.Module,
    states: Sequence[State | Stored],
    data: Batches,
    *,
    device: str | torch.device = "auto",
) -> xr.Dataset:
    """Error and loss of each member, and of the mean of the softmax of the last m members.

    `member_error` and `member_loss` (member) stand beside `error` and `loss` (num_members), where m
    counts from 1, the last member alone, to all. The loss is the mean of -log of the probability of
    the target. Raises `ValueError` for no states, or one that does not fit the model.
    """
    if not states:
        raise ValueError("an ensemble needs at least one state, got none")
    outputs = [predictions(model, state, data, device=device).double() for state in states]
    targets = data.targets.cpu()
    chances = torch.stack([F.softmax(own, -1) for own in outputs])
    counts = torch.arange(1, len(states) + 1)
    means = chances.flip(0).cumsum(0) / counts[:, None, None]

    def measured(chances: Tensor) -> tuple[np.ndarray, np.ndarray]:
        wrong = (chances.argmax(-1) != targets).double().mean(-1)
        right = chances.gather(-1, targets.expand(len(chances), -1)[..., None])
        return wrong.numpy(), -right.log().mean((-2, -1)).numpy()

    member, together = measured(chances), measured(means)
    return dataset(
        {
            "member_error": ("member", member[0], {"long_name": "error of each member"}),
            "member_loss": ("member", member[1], {"long_name": "loss of each member"}),
            "error": ("num_members", together[0], {"long_name": "error of the ensemble"}),
            "loss": ("num_members", together[1], {"long_name": "loss of the ensemble"}),
        },
        {"member": np.arange(len(states)), "num_members": counts.numpy()},
        analysis="ensemble",
        title=f"ensemble of {len(states)} networks",
    )
