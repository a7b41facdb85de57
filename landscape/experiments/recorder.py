"""How does a loop that is not ours leave checkpoints on the same schedules?

In any loop: call a `Recorder` before every step and once after the last. For Lightning and the
Trainer of transformers there are callbacks, which need those packages only when they are made.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from landscape.checkpoints import Checkpoint, save_checkpoint
from landscape.experiments.records import check_same, explained, read_run, write_run
from landscape.experiments.runs import At, Every, Timeline
from landscape.experiments.settings import described
from landscape.states import State

Plans = tuple[Every | At, ...]
EACH_EPOCH: Plans = (Every(epochs=1),)


@dataclass(frozen=True)
class Recorder:
    """Writes the checkpoints of somebody else's loop, and a `run.json`.

        recorder = Recorder("runs/a", epochs=10, steps_per_epoch=len(loader))
        step = 0
        for epoch in range(10):
            for batch in loader:
                recorder(model, step)
                ...
                step += 1
        recorder(model, step)

    `checkpoints` are plans as in `Run`; the first and the last step are always kept. `settings`
    say what the run was (anything that JSON can hold, functions, data) and go into `run.json`.

    Calls raise `RunError` if the folder holds another run or cannot be written.
    """

    folder: str | os.PathLike[str]
    epochs: int
    steps_per_epoch: int
    checkpoints: Plans = EACH_EPOCH
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.steps_per_epoch < 1:
            raise ValueError(
                "epochs and steps_per_epoch must be at least 1, "
                f"got {self.epochs} and {self.steps_per_epoch}"
            )
        _ = self.due

    @cached_property
    def due(self) -> set[int]:
        """The steps at which checkpoints are written."""
        starts = range(0, self.epochs * self.steps_per_epoch + 1, self.steps_per_epoch)
        timeline = Timeline(tuple(starts))
        planned = {step for plan in self.checkpoints for step in plan.on(timeline)}
        return planned | {0, timeline.steps}

    def __call__(self, model: nn.Module | State, step: int) -> Checkpoint | None:
        """Write a checkpoint if one is due when `step` steps are taken."""
        if step not in self.due:
            return None
        folder = Path(self.folder)
        with explained(folder):
            if step == 0:
                folder.mkdir(parents=True, exist_ok=True)
                check_same(self._described, folder, read_run(folder))
            checkpoint = save_checkpoint(model, folder, step=step)
            status = "finished" if step == self.epochs * self.steps_per_epoch else "running"
            write_run(folder, folder.name, self._described, status=status, step=step)
        return checkpoint

    @cached_property
    def _described(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in ("epochs", "steps_per_epoch", "checkpoints")}
        plain: dict[str, Any] = json.loads(json.dumps(described({**own, **self.settings})))
        return plain


def lightning_callback(
    folder: str | os.PathLike[str],
    *,
    checkpoints: Plans = EACH_EPOCH,
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """A callback for `lightning.Trainer(callbacks=[...])` that records its run.

    Steps are those of the optimiser. Raises `ModuleNotFoundError` without Lightning.
    """
    installed = "lightning.pytorch" if find_spec("lightning") else "pytorch_lightning"
    base: Any = import_module(installed).Callback

    class Recording(base):
        """Records on the main process."""

        def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
            self._record(trainer, module)

        def on_train_end(self, trainer: Any, module: Any) -> None:
            self._record(trainer, module)

        def _record(self, trainer: Any, module: Any) -> None:
            if trainer.is_global_zero:
                steps = int(trainer.estimated_stepping_batches)
                recorder = _recorder(folder, steps, trainer.max_epochs, checkpoints, settings)
                recorder(module, trainer.global_step)

    return Recording()


def trainer_callback(
    folder: str | os.PathLike[str],
    *,
    checkpoints: Plans = EACH_EPOCH,
    settings: Mapping[str, Any] | None = None,
) -> Any:
    """A callback for the `callbacks` of `transformers.Trainer` that records its run.

    Steps are those of the optimiser. Raises `ModuleNotFoundError` without transformers.
    """
    base: Any = import_module("transformers").TrainerCallback

    class Recording(base):
        """Records on the main process."""

        def on_step_begin(self, _: Any, state: Any, __: Any, *, model: Any, **___: Any) -> None:
            self._record(state, model)

        def on_train_end(self, _: Any, state: Any, __: Any, *, model: Any, **___: Any) -> None:
            self._record(state, model)

        def _record(self, state: Any, model: Any) -> None:
            if state.is_world_process_zero:
                epochs = state.num_train_epochs
                recorder = _recorder(folder, state.max_steps, epochs, checkpoints, settings)
                recorder(model, state.global_step)

    return Recording()


def _recorder(
    folder: str | os.PathLike[str],
    steps: int,
    epochs: int | None,
    checkpoints: Plans,
    settings: Mapping[str, Any] | None,
) -> Recorder:
    """A recorder of so many steps; of one epoch if they are not cut into equal ones."""
    whole = epochs if epochs and epochs > 0 and steps % epochs == 0 else 1
    return Recorder(folder, whole, steps // whole, checkpoints, settings or {})
