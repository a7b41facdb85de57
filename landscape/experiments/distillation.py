"""What does a network learn from another one's answers?

The outputs of a teacher on each batch, softened by a temperature, are targets beside the labels.
Teachers are states that are read when they are needed; a stack may have one for each run.
"""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812

from landscape.experiments.branches import fresh_seed, last_checkpoint
from landscape.experiments.records import Ended
from landscape.experiments.runs import Call, Objective, Run, Scalar, Weights, cross_entropy
from landscape.experiments.training import train
from landscape.states import State, Stored, loaded, match

Teachers = State | Stored | Sequence[State | Stored]


def distilled(
    run: Run,
    model: nn.Module,
    teachers: Teachers,
    *,
    teacher: int = 0,
    temperature: Scalar = 4.0,
    weight: Scalar = 0.9,
    power: float = 2,
) -> Run:
    """The run with a teacher's answers as targets beside the labels (Hinton et al. 2015).

    `model` gives the architecture of the teacher and `teachers` one state for it, or several that
    the runs of a stack choose from by the number `teacher`. `temperature`, `weight` and `power` are
    as in `Distillation`; the first two may be schedules.

    Raises `ValueError` if a state does not fit the model, or the teacher has other classes.
    """
    alone = isinstance(teachers, Mapping) or hasattr(teachers, "load")
    states: Any = (teachers,) if alone else tuple(teachers)  # type: ignore[arg-type]
    if not 0 <= teacher < len(states):
        raise ValueError(f"teacher must be the number of one of {len(states)}, got {teacher}")
    objective = Distillation(_skeleton_of(model), states, power, run.objective)
    _check_classes(objective, run)
    knobs = {"temperature": temperature, "teacher_weight": weight, "teacher": float(teacher)}
    return replace(run, objective=objective, knobs={**run.knobs, **knobs})


@dataclass(frozen=True, eq=False)
class Distillation:
    """(1 - a) times the loss of `base` plus a T^power times the divergence from the teacher.

    The divergence is KL(softmax(t / T) || softmax(s / T)) of the teacher's logits t and the
    student's s, the mean over a batch; a, T and the number of the teacher are the knobs
    `teacher_weight`, `temperature` and `teacher`. With `power` 2, as in Hinton et al. 2015 (arXiv
    1503.02531, section 2), the gradient keeps its size when T changes; at a high learning rate 1
    may be needed. The teacher is in evaluation mode, and sees the inputs that the student sees.
    """

    model: nn.Module
    states: tuple[State | Stored, ...]
    power: float = 2
    base: Objective = cross_entropy

    def __call__(
        self, call: Call, weights: Weights, inputs: Tensor, targets: Any, knobs: Mapping[str, Any]
    ) -> Tensor:
        """The loss of a batch."""
        student: Tensor = call(weights, inputs)

        def again(other: Weights, shown: Tensor) -> Any:
            return student if other is weights and shown is inputs else call(other, shown)

        hard = self.base(again, weights, inputs, targets, knobs)
        with torch.no_grad():
            teacher = self.answers(inputs, knobs["teacher"])
        if teacher.shape[-1] != student.shape[-1]:
            raise ValueError(_other_classes(teacher.shape[-1], student.shape[-1]))
        heat, share = knobs["temperature"], knobs["teacher_weight"]
        mild = F.log_softmax(student / heat, -1)
        goal = F.log_softmax(teacher / heat, -1)
        soft = (goal.exp() * (goal - mild)).sum(-1).mean()
        return (1 - share) * hard + share * heat**self.power * soft

    def answers(self, inputs: Tensor, number: Tensor) -> Tensor:
        """The logits of a teacher for a batch."""
        dtype = inputs.dtype if inputs.is_floating_point() else torch.get_default_dtype()
        stacked = _stacked(self, inputs.device, dtype)
        row = number.long()[None] if len(self.states) > 1 else None
        own = {n: t[0] if row is None else t.index_select(0, row)[0] for n, t in stacked.items()}
        outputs: Tensor = functional_call(self._skeleton, own, (inputs,))
        return outputs

    @cached_property
    def _skeleton(self) -> nn.Module:
        return copy.deepcopy(self.model).eval().requires_grad_(False)


def born_again(
    runs: Run | Sequence[Run],
    folder: str | os.PathLike[str],
    *,
    generations: int,
    temperature: Scalar = 1.0,
    weight: Scalar = 0.5,
    **options: Any,
) -> list[list[Ended]]:
    """Train generations of networks, each taught by the one before it (Furlanello et al. 2018).

    Generation 0 is `runs` as they are; each network of generation k starts from an initialisation
    of its own, and its teacher is the same run of generation k - 1 (arXiv 1805.04770; the loss
    there is the sum of the two terms, here their mean). Names are `name/generation-k`;
    `options` are those of `train`. Returns how the runs of each generation ended.

    Raises `ValueError` for a number of generations below 0, and as `train`.
    """
    if generations < 0:
        raise ValueError(f"generations must be at least 0, got {generations}")
    runs = [runs] if isinstance(runs, Run) else list(runs)
    first = [replace(run, name=f"{run.name}/generation-0") for run in runs]
    ends = [train(first, folder, **options)]
    for number in range(1, generations + 1):
        teachers = [last_checkpoint(end) for end in ends[-1]]
        ends.append(
            train(
                [
                    distilled(
                        replace(
                            run,
                            name=f"{run.name}/generation-{number}",
                            seeds=replace(run.seeds, init=fresh_seed(run.seeds.init, number)),
                        ),
                        run.build(),
                        teachers,
                        teacher=row,
                        temperature=temperature,
                        weight=weight,
                    )
                    for row, run in enumerate(runs)
                ],
                folder,
                **options,
            )
        )
    return ends


def _skeleton_of(model: nn.Module) -> nn.Module:
    """A copy without weights of its own: what a run is must not depend on them."""
    skeleton = copy.deepcopy(model)
    for tensor in skeleton.state_dict().values():
        if isinstance(tensor, Tensor):  # extra state may be anything
            tensor.zero_()
    return skeleton


@lru_cache(maxsize=8)  # the loop asks at each step
def _stacked(
    objective: Distillation, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """All teachers' tensors (teachers, ...) on a device."""
    states = [match(loaded(state), objective.model) for state in objective.states]
    own = {*dict(objective.model.named_parameters()), *dict(objective.model.named_buffers())}
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    return {
        name: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in stacked.items()
        if name in own
    }


def _check_classes(objective: Distillation, run: Run) -> None:
    """Refuse teachers that do not fit their model, or answer in other classes than the student."""
    inputs = next(iter(run.data.subset([0]).to("cpu")))[0]
    with torch.no_grad():
        theirs = objective.answers(inputs, torch.tensor(0)).shape[-1]
        ours = run.build().eval()(inputs).shape[-1]
    if theirs != ours:
        raise ValueError(f"run {run.name!r}: {_other_classes(theirs, ours)}")


def _other_classes(theirs: int, ours: int) -> str:
    return (
        f"the teacher answers in {theirs} classes and the student in {ours}; "
        "distillation needs a teacher of the same classes"
    )
