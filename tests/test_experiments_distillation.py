"""Distillation: limits in closed form, whose answers are used, and generations."""

import json
import math
import pickle
from dataclasses import replace
from functools import partial

import pytest
import torch
from numpy.testing import assert_allclose
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812

from landscape import models, save_checkpoint
from landscape.datasets import Batches
from landscape.experiments import Run, Seeds, stacking, train
from landscape.experiments.branches import last_checkpoint
from landscape.experiments.distillation import Distillation, born_again, distilled

CPU = torch.device("cpu")


def make(seed, hidden=(6,), classes=3):
    return models.mlp(5, hidden, classes, batch_norm=True, seed=seed).double()


def data(num=48):
    inputs = torch.randn(num, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Batches(inputs, inputs[:, :3].argmax(1), batch_size=16)


def run(name="a", **changes):
    settings = {"epochs": 2, "batch_size": 16, "seeds": Seeds.all(3)}
    return Run(name=name, make_model=make, data=data(), **settings | changes)


def teacher(seed=7):
    """A wider network than the student, with statistics that are not the initial."""
    model = make(seed, hidden=(9, 4))
    state = model.state_dict()
    state["bn1.running_mean"] += 0.3
    return model, {name: tensor.clone() for name, tensor in state.items()}


def gradient(runs):
    """Losses (n,) and gradients (n, P) of the runs on the first batch."""
    stack = stacking.stacked(runs, CPU)
    (scalars,) = stacking.scalars(runs, [0], stack.weights)
    inputs, targets = next(iter(data()))
    shown = inputs.expand(len(runs), -1, -1), targets.expand(len(runs), -1)
    knobs = {name: scalars[name] for name in runs[0].knobs}
    return stacking.gradients(stack, runs[0].objective, *shown, knobs)[0], stack.gradient.clone()


def pieces():
    """Logits of student and teacher on the first batch, and the batch."""
    model, state = teacher()
    inputs, targets = next(iter(data()))
    with torch.no_grad():
        theirs = functional_call(model.eval(), state, (inputs,))
        ours = run().build().train()(inputs)
    return ours, theirs, targets


@pytest.mark.parametrize(("heat", "share", "power"), [(1.0, 0.5, 2), (4.0, 0.9, 2), (4.0, 0.9, 1)])
def test_the_loss_is_the_mixture_of_labels_and_the_teachers_answers(heat, share, power):
    model, state = teacher()
    one = distilled(run(), model, state, temperature=heat, weight=share, power=power)
    ours, theirs, targets = pieces()
    p, q = (theirs / heat).softmax(1), (ours / heat).softmax(1)
    soft = (p * (p.log() - q.log())).sum(1).mean() * heat**power
    expected = (1 - share) * F.cross_entropy(ours, targets) + share * soft
    assert_allclose(gradient([one])[0][0], expected, rtol=1e-12)


def test_without_weight_training_is_the_plain_one():
    plain = gradient([run()])
    none = gradient([distilled(run(), *teacher(), weight=0.0)])
    assert torch.equal(plain[0], none[0])
    assert torch.equal(plain[1], none[1])


def test_at_high_temperatures_logits_are_matched():
    """T^2 KL -> |s - t|^2 / (2 c) of centred logits (Hinton et al., section 2.1)."""
    ours, theirs, _ = pieces()
    away = (ours - ours.mean(1, keepdim=True)) - (theirs - theirs.mean(1, keepdim=True))
    limit = away.square().sum(1).mean() / (2 * ours.shape[1])
    errors = []
    for heat in (50.0, 100.0):
        one = distilled(run(), *teacher(), temperature=heat, weight=1.0)
        errors.append(abs(gradient([one])[0].item() - limit.item()))
    assert errors[1] < 1e-2 * limit
    assert math.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.1)


def test_a_teacher_that_is_the_student_leaves_the_labels_alone():
    """The divergence and its gradient vanish where both say the same (no batch norm here)."""
    plain = replace(run(), make_model=lambda seed: models.mlp(5, (6,), 3, seed=seed).double())
    own = plain.build()
    loss, slope = gradient([distilled(plain, own, own.state_dict(), weight=1.0)])
    assert_allclose(loss, 0, atol=1e-14)
    assert_allclose(slope, 0, atol=1e-14)


def test_each_run_of_a_stack_has_its_own_teacher_temperature_and_weight():
    model, states = teacher()[0], [teacher(seed)[1] for seed in (7, 8)]
    choices = [(0, 2.0, 0.5), (1, 2.0, 0.5), (1, 4.0, 0.9)]
    runs = [
        distilled(run(str(i)), model, states, teacher=number, temperature=heat, weight=share)
        for i, (number, heat, share) in enumerate(choices)
    ]
    losses, slopes = gradient(runs)
    assert len(set(losses.tolist())) == 3
    for row, (number, heat, share) in enumerate(choices):
        one = distilled(run(), model, states[number], temperature=heat, weight=share)
        loss, slope = gradient([one])
        assert_allclose(losses[row], loss[0], rtol=1e-12)
        assert_allclose(slopes[row], slope[0], rtol=1e-9, atol=1e-14)


def test_the_teacher_is_read_from_a_checkpoint_and_left_as_it_is(tmp_path):
    model, state = teacher()
    saved = save_checkpoint(state, tmp_path / "teacher", step=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    one = distilled(run(), model.train(), saved)
    assert torch.equal(gradient([one])[0], gradient([distilled(run(), model, state)])[0])
    assert model.training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_the_description_names_the_teacher_and_travels(tmp_path):
    one, other = (distilled(run(), teacher(7)[0], teacher(seed)[1]) for seed in (7, 8))
    gradient([one])  # what is kept for speed is no part of it
    assert json.dumps(one.settings()["objective"]) != json.dumps(other.settings()["objective"])
    again = pickle.loads(pickle.dumps(one.objective))
    assert replace(one, objective=again).settings() == one.settings()
    assert torch.equal(gradient([replace(one, objective=again)])[0], gradient([one])[0])


def test_the_weights_of_the_architecture_do_not_count():
    _, state = teacher()
    models_given = [make(seed, hidden=(9, 4)) for seed in (1, 2)]
    before = [{n: t.clone() for n, t in model.state_dict().items()} for model in models_given]
    a, b = (distilled(run(), model, state) for model in models_given)
    assert a.settings() == b.settings()
    for model, kept in zip(models_given, before, strict=True):
        assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())


def test_a_teacher_with_other_classes_is_refused():
    other = make(0, classes=4)
    with pytest.raises(ValueError, match="4 classes and the student in 3"):
        distilled(run(), other, other.state_dict())
    forced = replace(
        distilled(run(), *teacher()), objective=Distillation(other, (other.state_dict(),))
    )
    with pytest.raises(ValueError, match="4 classes and the student in 3"):
        gradient([forced])


def test_a_state_that_is_not_of_the_teacher_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        distilled(run(), teacher()[0], make(0).state_dict())
    with pytest.raises(ValueError, match="one of 1, got 2"):
        distilled(run(), *teacher(), teacher=2)


def test_generation_0_is_the_plain_run_and_each_teaches_the_next(tmp_path):
    runs = [run(f"seed-{seed}", seeds=Seeds.all(seed)) for seed in (0, 1)]
    plain = train(runs, tmp_path / "plain", stack=2)
    ends = born_again(runs, tmp_path / "again", generations=2, weight=0.7, stack=2)
    assert [[end.name for end in ended] for ended in ends] == [
        [f"seed-{seed}/generation-{number}" for seed in (0, 1)] for number in range(3)
    ]
    for a, b in zip(plain, ends[0], strict=True):
        one, other = last_checkpoint(a).load(), last_checkpoint(b).load()
        assert all(torch.equal(one[name], other[name]) for name in one)
    told = json.loads((ends[2][1].folder / "run.json").read_text())["settings"]
    own = partial(map, lambda end: end.step)
    assert [state["step"] for state in told["objective"]["states"]] == list(own(ends[1]))
    first = [last_checkpoint(ended[0]).load()["fc1.weight"] for ended in ends]
    assert not torch.equal(first[1], first[2])


def test_a_student_comes_nearer_to_its_teacher(tmp_path):
    """What it is for: with the teacher's answers alone the student says what the teacher says."""
    model = models.mlp(5, (9,), 3, seed=7).double()
    state = model.state_dict()

    def wide(seed):
        return models.mlp(5, (32,), 3, seed=seed).double()

    base = replace(run(epochs=40, lr=0.02), make_model=wide)
    runs = [
        distilled(replace(base, name=str(share)), model, state, weight=share, temperature=2.0)
        for share in (0.0, 1.0)
    ]
    inputs, agreements = data().inputs, []
    goal = functional_call(model.eval(), state, (inputs,)).argmax(1)
    for end in train(runs, tmp_path):
        student = functional_call(wide(0), last_checkpoint(end).load(), (inputs,))
        agreements.append((student.argmax(1) == goal).double().mean().item())
    assert agreements[1] > 0.8
    assert agreements[1] > agreements[0] + 0.2


def test_weights_and_temperatures_may_be_schedules():
    def falling(clock):
        return 1 - clock.share

    one = distilled(run(), *teacher(), weight=falling)
    stack = stacking.stacked([one], CPU)
    rows = stacking.scalars([one], range(one.timeline.steps), stack.weights)
    assert_allclose([row["teacher_weight"].item() for row in rows], [1 - t / 6 for t in range(6)])
