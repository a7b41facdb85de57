"""How are runs made? One loop, over any number of runs at once, from checkpoint to checkpoint.

The loop knows steps and epochs. What a run sees is settled in `batches`, how it moves in
`optimisers`, what it leaves behind in `records`; everything else is a hook.
"""

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from landscape.checkpoints import save_checkpoint
from landscape.engine import quiet_vmap
from landscape.examples import pick_device
from landscape.execution import map_tasks
from landscape.experiments import records, stacking
from landscape.experiments.batches import (
    DROPOUT,
    Pool,
    derived,
    epoch_batches,
    pooled,
    pooled_plain,
    reseed,
    shown_to,
)
from landscape.experiments.records import Ended
from landscape.experiments.runs import Run, RunView
from landscape.experiments.settings import described
from landscape.experiments.stacking import Stack
from landscape.states import unflatten
from landscape.task import map_tensors, random_state_kept

TEST_BATCH = 512
SIZES = (1, 16, 64)  # of stacks that are tried, besides that of all runs


def train(
    runs: Run | Sequence[Run],
    folder: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    stack: int | str = "auto",
    executor: Executor | None = None,
    progress: bool | None = None,
) -> list[Ended]:
    """Train runs, each into the folder of its name within `folder`, and say how each ended.

    Runs of one `make_model`, batch size, optimiser, objective and number of examples train
    together, up to `stack` of them; `"auto"` takes the number that a short trial finds fastest, 1
    trains one after the other. Stacked or not, a run's weights are the same to rounding errors.
    Models that draw random numbers in the forward pass (dropout) train one after the other.

    A run that has ended returns at once. A run that was interrupted goes on from its last
    checkpoint, on the CPU to the same bits, together with the runs that it began with. A run whose
    loss or weights are no longer finite ends with the status `"nonfinite"`, its last good
    checkpoint, and a message with the step; the others go on. With an `executor`, stacks go to its
    workers (runs must be picklable). Global random states stay as they were.

    Raises `RunError` if a folder holds another run or something else, or cannot be written;
    `ValueError` for runs that share a name, or parts that do not fit together.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ValueError(f"runs need names of their own, got {names}")
    if stack != "auto" and (isinstance(stack, str) or stack < 1):
        raise ValueError(f"stack must be 'auto' or at least 1, got {stack!r}")
    root, where = Path(folder), pick_device(device)
    ends: dict[str, Ended] = {}
    found = {name: records.read_run(root / name) for name in names}
    for run in runs:
        records.check_same(run.settings(), root / run.name, found[run.name])
        if end := records.ended(run.name, root / run.name, found[run.name]):
            ends[run.name] = end
            _tidy(run, end.folder)  # it may have been interrupted there
    todo = [run for run in runs if run.name not in ends]
    begun = {run.name: _begun(root, found[run.name], found) for run in todo}
    teams = _teams(todo, begun, where, stack)
    work = partial(_train_team, root=root, device=str(where), progress=progress)
    for outcome in map_tasks(work, teams, executor=executor):
        if outcome.error is not None:
            raise outcome.error
        ends |= {end.name: end for end in outcome.value or []}
    return [ends[name] for name in names]


def _begun(root: Path, run: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """The names of those that a run began with; none if not all of them came to it."""
    together: list[str] = run.get("together", [])
    all_there = all(found.get(name) or records.read_run(root / name) for name in together)
    return together if all_there else []


@dataclass(eq=False)
class Team:
    """Runs that train together, and how far they are; lists have an entry for each run."""

    runs: list[Run]
    stack: Stack
    pool: Pool
    test: Pool | None
    folders: list[Path]
    memories: list[list[dict[str, Any]]]  # of each hook
    rows: list[list[dict[str, float]]]  # the record of each epoch
    saved: list[int]  # the step of the last checkpoint
    bad: list[str]  # why a run is no longer finite; empty while it is
    hooked: list[bool]  # whether the hooks of this step were called before an interruption
    step: int
    sums: Tensor  # (2, n): losses and errors in this epoch, times examples
    seen: int = 0  # examples in this epoch
    losses: list[Tensor] = field(default_factory=list)  # (n,) of each step since the last look

    def __post_init__(self) -> None:
        self.views = [_view(self, row) for row in range(len(self.runs))]


def _loop(team: Team, device: torch.device, bar: Any) -> Iterator[Ended]:
    """Train until all runs have ended."""
    objective = team.runs[0].objective
    yield from _leave(team)  # what was interrupted when it was over
    while team.runs:
        runs, timeline = team.runs, team.runs[0].timeline
        epoch = timeline.epoch_at(team.step)
        steps = range(team.step, timeline.starts[epoch + 1])
        rates = stacking.scalars(runs, steps, team.stack.weights)
        freezing = {steps[0]}.union(*(run.freezing_steps for run in runs))
        due = set().union(*(run.checkpoint_steps for run in runs))
        hooked = any(run.hooks for run in runs)
        batches = epoch_batches(team.pool, runs, epoch, team.step, device)
        seconds = 0.0
        for step, rate, (inputs, targets) in zip(steps, rates, batches, strict=True):
            if (hooked or step in due) and not all(team.hooked):
                _before(team, range(len(runs)), step)
            begin = time.perf_counter()
            if step in freezing:
                stacking.set_mask(team.stack, runs, step)
            if len(runs) == 1:  # what a model draws itself; under vmap it cannot draw
                reseed(derived(runs[0].seeds.dropout, DROPOUT) + step, device)
            knobs = {name: rate[name] for name in runs[0].knobs}
            losses, outputs = stacking.gradients(
                team.stack, objective, inputs, targets, knobs, precision=runs[0].precision
            )
            team.losses.append(losses)
            team.sums += torch.stack([losses * len(targets[0]), _errors(runs[0], outputs, targets)])
            team.seen += len(targets[0])
            if step == steps[-1]:
                norms = team.stack.gradient.norm(dim=1)
            stacking.take_step(runs[0].optimiser, team.stack, rate)
            team.step, team.hooked = step + 1, [False] * len(runs)
            seconds += time.perf_counter() - begin
            bar.update()
        _record(team, norms, rates[-1]["lr"], seconds / len(runs))
        yield from _leave(team)


def _before(team: Team, rows: Sequence[int], step: int) -> None:
    """Call the hooks of some runs, and write their checkpoints if any is due."""
    for row in rows:
        for number, hook in enumerate(team.runs[row].hooks):
            hook(step, replace(team.views[row], memory=team.memories[row][number]))
    due = [row for row in rows if step in team.runs[row].checkpoint_steps or _over(team, row)]
    if not due:
        return
    _look(team)
    good = [row for row in rows if not team.bad[row]]
    for row in good:
        with records.explained(team.folders[row]):
            if row in due:
                save_checkpoint(stacking.state_of(team.stack, row), team.folders[row], step=step)
                team.saved[row] = step
            records.save_kept(_kept(team, row, hooked=True), team.folders[row], step)
    if len(rows) < len(team.runs):
        return  # all must be able to go on from one step, if they are interrupted now
    for row in good:
        run = team.runs[row]
        kept = run.checkpoint_steps if run.keep_optimiser else set()
        records.forget(team.folders[row], but={step, *kept})


def _look(team: Team) -> None:
    """See which runs are no longer finite, and since which step."""
    steps = range(team.step - len(team.losses), team.step)
    finite = team.stack.weights.isfinite().all(1).tolist()
    losses = torch.stack(team.losses).T.tolist() if team.losses else [[]] * len(team.runs)
    team.losses.clear()
    for row, (own, good) in enumerate(zip(losses, finite, strict=True)):
        first = next((i for i, loss in enumerate(own) if not math.isfinite(loss)), None)
        if team.bad[row] or (good and first is None):
            continue
        team.bad[row] = (
            f"the weights are not finite after step {team.step}"
            if first is None
            else f"the loss is {own[first]} at step {steps[first]}"
        ) + f"; the last good checkpoint is that of step {team.saved[row]}"


def _record(team: Team, norms: Tensor, lr: Tensor, seconds: float) -> None:
    """Add the epoch to the record of each run."""
    _look(team)
    train = (team.sums / team.seen).tolist()
    lengths = team.stack.weights.norm(dim=1).tolist()
    tests = _tested(team)
    for row, run in enumerate(team.runs):
        team.rows[row].append(
            {
                "epoch": run.clock(team.step).epoch,
                "step": team.step,
                "train_loss": train[0][row],
                "train_error": train[1][row],
                "test_loss": tests[0][row],
                "test_error": tests[1][row],
                "lr": float(lr[row]),
                "gradient_norm": float(norms[row]),
                "weight_norm": lengths[row],
                "seconds": seconds,
            }
        )
    team.sums, team.seen = torch.zeros_like(team.sums), 0


def _tested(team: Team) -> list[list[float]]:
    """Test losses and errors of the runs after this epoch; NaN where they are not measured."""
    test, runs = team.test, team.runs
    epoch = runs[0].timeline.epoch_at(team.step)
    asked = [epoch % run.test_every == 0 or _over(team, row) for row, run in enumerate(runs)]
    sums = torch.full_like(team.sums, math.nan)
    if test is not None and any(asked):
        measured = torch.tensor(asked, device=sums.device)
        sums = torch.where(measured, torch.zeros_like(sums), sums)
        (rates,) = stacking.scalars(runs, [team.step], team.stack.weights)
        knobs = {name: rates[name] for name in runs[0].knobs}
        objective = runs[0].objective
        for inputs, targets in shown_to([run.name for run in runs], test, TEST_BATCH):
            losses, outputs = stacking.measures(team.stack, objective, inputs, targets, knobs)
            wrong = _errors(runs[0], outputs, targets)
            sums += torch.stack([losses * len(targets[0]), wrong]) / test.num
    found: list[list[float]] = sums.tolist()
    return found


def _errors(run: Run, outputs: Any, targets: Any) -> Tensor:
    """The number (n,) of wrong answers in a batch; NaN where targets are no classes."""
    labels = targets[0] if isinstance(targets, tuple) else targets
    classes = not run.data.targets.is_floating_point() and run.data.targets.ndim == 1
    if not classes or not isinstance(outputs, Tensor) or outputs.ndim != 3:
        return torch.full((len(labels),), math.nan, device=labels.device)
    truth = labels.argmax(-1) if labels.ndim == 3 else labels
    return (outputs.argmax(-1) != truth).sum(1)


def _over(team: Team, row: int) -> bool:
    """Whether a run has trained to its end, or stops by its own rule."""
    run, rows = team.runs[row], team.rows[row]
    if team.step >= run.timeline.steps or run.stop is None:
        return team.step >= run.timeline.steps
    return bool(rows) and rows[-1]["step"] == team.step and bool(run.stop(rows[-1]))


def _leave(team: Team) -> Iterator[Ended]:
    """End the runs that are over or no longer finite, and go on with the others.

    The others keep what they need to go on from here without those that end.
    """
    over = [row for row in range(len(team.runs)) if _over(team, row) and not team.bad[row]]
    if over and not all(team.hooked[row] for row in over):
        _before(team, over, team.step)
        for row in set(range(len(team.runs))) - set(over):
            if not team.bad[row]:
                with records.explained(team.folders[row]):
                    kept = _kept(team, row, hooked=False)
                    records.save_kept(kept, team.folders[row], team.step)
    gone = [row for row in range(len(team.runs)) if team.bad[row] or row in over]
    for row in gone:
        yield _end(team, row)
    if gone:
        _keep(team, [row for row in range(len(team.runs)) if row not in gone])


def _end(team: Team, row: int) -> Ended:
    """Write how a run ended, and its record."""
    run, folder = team.runs[row], team.folders[row]
    over = team.step >= run.timeline.steps
    status = "nonfinite" if team.bad[row] else "finished" if over else "stopped"
    end = Ended(run.name, folder, status, team.saved[row], team.bad[row])
    records.save_record(run, team.rows[row], folder)
    with records.explained(folder):
        said = {"status": status, "step": end.step, "message": end.message}
        records.write_run(folder, run.name, run.settings(), **said)
        _tidy(run, folder)
    return end


def _tidy(run: Run, folder: Path) -> None:
    """Keep of a run that has ended no more than it asks for."""
    records.forget(folder, but=run.checkpoint_steps if run.keep_optimiser else ())


def _keep(team: Team, rows: list[int]) -> None:
    """Leave only some runs in a team."""
    for name in ("runs", "folders", "memories", "rows", "saved", "bad", "hooked"):
        setattr(team, name, [getattr(team, name)[row] for row in rows])
    team.sums = team.sums[:, rows]
    if rows:
        team.stack = stacking.selected(team.stack, rows)
        team.__post_init__()


def _view(team: Team, row: int) -> RunView:
    """What the hooks of a run see; the memory is put in for each."""
    stack = team.stack
    named = partial(unflatten, like=stack.like, names=stack.names)
    return RunView(
        run=team.runs[row],
        folder=team.folders[row],
        model=stack.model,
        weights=named(stack.weights[row]),
        buffers={name: tensor[row] for name, tensor in stack.buffers.items()},
        optimiser={n: named(m[row]) for n, m in stack.moments.items() if n != "count"},
        memory={},
    )


def _kept(team: Team, row: int, *, hooked: bool) -> dict[str, Any]:
    """All that is needed to go on from here to the same bits, on the CPU."""
    stack = team.stack
    kept = {
        "names": stack.names,
        "weights": stack.weights[row],
        "buffers": {name: tensor[row] for name, tensor in stack.buffers.items()},
        "moments": {name: moment[row] for name, moment in stack.moments.items()},
        "memories": team.memories[row],
        "rows": team.rows[row],
        "sums": team.sums[:, row],
        "seen": team.seen,
        "saved": team.saved[row],
        "hooked": hooked,
    }
    copied: dict[str, Any] = map_tensors(lambda tensor: tensor.detach().cpu().clone(), kept)
    return copied


def _resume(team: Team) -> None:
    """Go on from the last step that all runs of the team kept, if there is one."""
    common = set.intersection(*(records.resumable(folder) for folder in team.folders))
    common = {step for step in common if step >= team.runs[0].first_step}
    if not common:
        return
    team.step = max(common)
    for row, folder in enumerate(team.folders):
        kept, stack = records.load_kept(folder, team.step), team.stack
        stack.weights[row] = kept["weights"]
        for name, tensor in kept["buffers"].items():
            stack.buffers[name][row] = tensor
        for name, tensor in kept["moments"].items():
            stack.moments[name][row] = tensor
        team.memories[row], team.rows[row] = kept["memories"], kept["rows"]
        team.sums[:, row], team.seen, team.saved[row] = kept["sums"], kept["seen"], kept["saved"]
        team.hooked[row] = kept["hooked"]


def _assembled(runs: list[Run], folders: list[Path], device: torch.device) -> Team:
    """Runs at their first step."""
    stack = stacking.stacked(runs, device)
    tests = {run.name: run.test for run in runs if run.test}
    return Team(
        runs=runs,
        stack=stack,
        pool=pooled(runs, device),
        test=pooled_plain(tests, device) if tests else None,
        folders=folders,
        memories=[[{} for _ in run.hooks] for run in runs],
        rows=[[] for _ in runs],
        saved=[run.first_step for run in runs],
        bad=[""] * len(runs),
        hooked=[False] * len(runs),
        step=runs[0].first_step,
        sums=torch.zeros(2, len(runs), device=device, dtype=torch.float64),
    )


def _train_team(runs: list[Run], *, root: Path, device: str, progress: bool | None) -> list[Ended]:
    """Train runs together."""
    folders = [root / run.name for run in runs]
    with random_state_kept(), quiet_vmap(), ExitStack() as locks:
        for folder in folders:
            locks.enter_context(records.only_writer(folder))
        team = _assembled(runs, folders, torch.device(device))
        for run, folder in zip(runs, folders, strict=True):
            with records.explained(folder):
                together = [run.name for run in runs]
                said = {"status": "running", "together": together, "device": device}
                records.write_run(folder, run.name, run.settings(), **said)
        _resume(team)
        bar = tqdm(
            total=max(run.timeline.steps for run in runs),
            initial=team.step,
            desc=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
            unit="step",
            disable=None if progress is None else not progress,
            file=sys.stderr,
        )
        with bar:
            return list(_loop(team, torch.device(device), bar))


def _teams(
    runs: Sequence[Run], begun: Mapping[str, list[str]], device: torch.device, stack: int | str
) -> list[list[Run]]:
    """Who trains together: those who began together, and new runs in stacks of the best size."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        sizes = [run.data.num_examples, run.test.num_examples if run.test else 0, run.first_step]
        batches = [run.batch_size, run.last_batch]
        parts = [run.make_model, *batches, run.optimiser, run.objective, *sorted(run.knobs)]
        alone = run.name if run.channels_last or run.compiled else ""
        alike = json.dumps([sizes, run.precision, alone, described(parts)])
        groups.setdefault(json.dumps([begun[run.name], alike]), []).append(run)
    teams = []
    for key, members in groups.items():
        size = len(members)
        if not json.loads(key)[0] and size > 1:
            size = _best_size(members, device) if stack == "auto" else min(int(stack), size)
        teams += [members[i : i + size] for i in range(0, len(members), size)]
    return teams


def _best_size(runs: list[Run], device: torch.device) -> int:
    """How many of some runs to train at once: tried with a few steps of each size."""

    def seconds(size: int) -> float:
        team = _assembled(runs[:size], [Path()] * size, device)
        steps, first = [team.step], runs[0]
        (rate,) = stacking.scalars(team.runs, steps, team.stack.weights)
        rate = {name: value * 0 if name == "lr" else value for name, value in rate.items()}
        epoch = runs[0].timeline.epoch_at(team.step)
        inputs, targets = next(epoch_batches(team.pool, team.runs, epoch, team.step, device))
        knobs = {name: rate[name] for name in runs[0].knobs}

        def step() -> None:
            stacking.gradients(
                team.stack, first.objective, inputs, targets, knobs, precision=first.precision
            )
            stacking.take_step(runs[0].optimiser, team.stack, rate)

        return stacking.timed(step)

    sizes = sorted({len(runs), *(size for size in SIZES if size < len(runs))}, reverse=True)
    with random_state_kept(), quiet_vmap():
        return stacking.fastest(sizes, seconds)
