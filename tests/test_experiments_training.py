import errno
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from numpy.testing import assert_allclose
from torch import nn
from torch.nn import functional as F  # noqa: N812

from landscape import checkpoints, models, results
from landscape.checkpoints import load_state
from landscape.datasets import Batches
from landscape.experiments import (
    At,
    Branch,
    During,
    Run,
    RunError,
    Seeds,
    Window,
    records,
    train,
)
from landscape.experiments.batches import ORDER, epoch_batches, generator, pooled
from landscape.experiments.stacking import fastest

CPU = torch.device("cpu")
train = partial(train, device="cpu", progress=False)


def images(num, seed=0):
    chance = torch.Generator().manual_seed(seed)
    targets = torch.arange(num) % 3
    inputs = torch.randn(num, 1, 8, 8, generator=chance) + targets[:, None, None, None]
    return Batches(inputs, targets)


DATA, TEST = images(50), images(20, seed=1)
MLP = partial(models.mlp, 64, (9,), 3)
CNN = partial(models.small_cnn, classes=3, width=4)


def double(make, *, seed):
    return make(seed=seed).double()


def dropping(*, seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Dropout(0.5), nn.Linear(9, 3))


def halving(clock):
    return 0.1 * 0.5**clock.epoch


def early(clock):
    return 0.01 * (clock.epoch < 1)


def a_run(name="a", **changes):
    given = {"make_model": MLP, "data": DATA, "epochs": 3, "batch_size": 16, "lr": 0.05}
    return Run(**{"name": name, **given, **changes})


def end_of(folder):
    return checkpoints(folder)[-1].load()


def steps_of(folder):
    return [checkpoint.step for checkpoint in checkpoints(folder)]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@dataclass(frozen=True)
class Flipped:
    def __call__(self, inputs, targets):
        return inputs.flip(2), targets


@dataclass(frozen=True)
class Noise:
    """Adds noise of a drawn size: off it must leave no trace."""

    size: float = 1.0

    def draw(self, generator, num):
        return torch.randn(num, 1, 8, 8, generator=generator)

    def apply(self, inputs, targets, draws):
        return inputs + self.size * draws.to(inputs.dtype), targets


# Numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last_batch", ["even", "smaller"])
def test_a_run_is_what_a_plain_loop_computes(tmp_path, last_batch):
    run = a_run(
        make_model=partial(double, MLP),
        data=in_double(DATA),
        weight_decay=0.01,
        last_batch=last_batch,
    )
    train(run, tmp_path)
    model = run.build()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    for epoch in range(3):
        order = torch.randperm(50, generator=generator(0, ORDER, epoch))
        for index in order.tensor_split(4) if last_batch == "even" else order.split(16):
            optimiser.zero_grad()
            inputs = DATA.inputs[index].double()
            F.cross_entropy(model(inputs), DATA.targets[index]).backward()
            optimiser.step()
    found = end_of(tmp_path / "a")
    for name, tensor in model.state_dict().items():
        assert_allclose(found[name], tensor, rtol=1e-10, atol=1e-12)


def in_double(data):
    return Batches(data.inputs.double(), data.targets)


def unlike(make, **changes):
    """Runs that differ in everything that runs of a stack may differ in."""
    given = {"make_model": make, **changes}
    return [
        a_run("plain", **given),
        a_run("seeds", seeds=Seeds.all(1), lr=halving, **given),
        a_run("order", seeds=Seeds(order=1), weight_decay=early, **given),
        a_run("view", views=(During(Flipped(), Window(0, 5, "steps")),), momentum=0.5, **given),
        a_run("late", views=(During(Flipped(), Window(1)),), weight_decay=0.1, **given),
        a_run("noisy", augmentations=(During(Noise(), Window(1, 2)),), **given),
        a_run("loud", augmentations=(During(Noise(3.0), Window(0, 6, "steps")),), **given),
        a_run("frozen", frozen=(During("*weight", Window(2, 7, "steps")),), **given),
        a_run("short", **{**given, "epochs": 2}),
        a_run("undecayed", undecayed=("*bias",), weight_decay=0.1, **given),
    ]


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("make", [MLP, CNN], ids=["mlp", "batch norm"])
def test_a_stack_equals_its_runs_one_by_one(tmp_path, make, optimiser):
    runs = unlike(
        partial(double, make), data=in_double(DATA), test=in_double(TEST), optimiser=optimiser
    )
    alone = train(runs, tmp_path / "alone", stack=1)
    together = train(runs, tmp_path / "together", stack=len(runs))
    assert [end.status for end in together] == ["finished"] * len(runs)
    assert [end.step for end in alone] == [end.step for end in together]
    ends = []
    for run in runs:
        a, b = (tmp_path / way / run.name for way in ("alone", "together"))
        assert json.loads((b / "run.json").read_text())["together"] == [r.name for r in runs]
        assert steps_of(a) == steps_of(b) == sorted(run.checkpoint_steps)
        one, many = end_of(a), end_of(b)
        assert one.keys() == many.keys()
        for name in one:
            assert_allclose(one[name], many[name], rtol=1e-8, atol=1e-9, err_msg=name)
        records = [results.load(folder / "record.h5") for folder in (a, b)]
        for name in set(records[0]) - {"seconds"}:
            assert_allclose(records[0][name], records[1][name], rtol=1e-6, err_msg=name)
        ends.append(many)
    assert not any(equal(ends[0], end) for end in ends[1:])


def test_the_record_holds_what_the_batches_and_the_test_set_gave(tmp_path):
    run = a_run(test=TEST, epochs=2, lr=halving)
    train(run, tmp_path)
    record = results.load(tmp_path / "a" / "record.h5")
    assert not results.problems(record)
    assert record["step"].values.tolist() == [4, 8]
    model = run.build()
    model.load_state_dict(end_of(tmp_path / "a"))
    outputs = model(TEST.inputs)
    assert_allclose(record["test_loss"][-1], F.cross_entropy(outputs, TEST.targets).item(), 1e-5)
    wrong = (outputs.argmax(1) != TEST.targets).float().mean().item()
    assert_allclose(record["test_error"][-1], wrong, rtol=1e-6)
    norm = sum(p.square().sum().item() for p in model.parameters()) ** 0.5
    assert_allclose(record["weight_norm"][-1], norm, rtol=1e-5)
    assert_allclose(record["lr"], [0.1 * 0.5**0.75, 0.1 * 0.5**1.75], rtol=1e-6)
    still = a_run("still", epochs=1, lr=0.0)
    train(still, tmp_path)
    found = results.load(tmp_path / "still" / "record.h5")
    outputs = still.build()(DATA.inputs)
    assert_allclose(found["train_loss"], F.cross_entropy(outputs, DATA.targets).item(), rtol=1e-5)
    wrong = (outputs.argmax(1) != DATA.targets).float().mean().item()
    assert_allclose(found["train_error"], wrong, rtol=1e-6)
    assert np.isnan(found["test_loss"]).all()


@pytest.mark.parametrize("stack", [1, 2])
def test_mixed_precision_rounds_outputs_and_keeps_weights(tmp_path, stack):
    runs = [a_run(str(i), seeds=Seeds.all(i), make_model=CNN) for i in range(2)]
    lower = [replace(run, precision="bfloat16") for run in runs]
    train(runs, tmp_path / "full", stack=stack)
    train(lower, tmp_path / "mixed", stack=stack)
    for run in runs:
        full, mixed = end_of(tmp_path / "full" / run.name), end_of(tmp_path / "mixed" / run.name)
        assert not equal(full, mixed)
        for name in full:
            assert full[name].dtype == mixed[name].dtype
        weights = [state["block1.conv.weight"] for state in (full, mixed)]
        assert_allclose(*weights, atol=0.05)
    with pytest.raises(ValueError, match="precision must be 'float32' or 'bfloat16', got 'half'"):
        a_run(precision="half")


# Batches ------------------------------------------------------------------------------------------


def seen(runs, epoch, first=None):
    first = runs[0].timeline.starts[epoch] if first is None else first
    return list(epoch_batches(pooled(runs, CPU), runs, epoch, first, CPU))


def test_every_example_is_seen_once_in_each_epoch_in_batches_of_nearly_one_size():
    batches = seen([a_run()], 0)
    assert [len(targets[0]) for _, targets in batches] == [13, 13, 12, 12]
    found = torch.cat([inputs[0] for inputs, _ in batches]).flatten(1).sum(1).sort().values
    assert torch.equal(found, DATA.inputs.flatten(1).sum(1).sort().values)
    again, other = seen([a_run()], 0), seen([a_run()], 1)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches, again, strict=True))
    assert not torch.equal(batches[0][0], other[0][0])
    assert torch.equal(seen([a_run()], 0, first=2)[0][0], batches[2][0])


def test_the_last_batch_may_have_what_is_left():
    sizes = [len(targets[0]) for _, targets in seen([a_run(last_batch="smaller")], 0)]
    assert sizes == [16, 16, 16, 2]
    whole = a_run(last_batch="smaller", batch_size=lambda epoch: 25 if epoch else 10)
    assert [len(targets[0]) for _, targets in seen([whole], 0)] == [10] * 5
    assert [len(targets[0]) for _, targets in seen([whole], 1)] == [25, 25]
    with pytest.raises(ValueError, match="last_batch must be 'even' or 'smaller', got 'drop'"):
        a_run(last_batch="drop")


def test_runs_of_unlike_batches_train_apart(tmp_path):
    runs = [a_run("even"), a_run("smaller", last_batch="smaller"), a_run("too", lr=0.1)]
    train(runs, tmp_path, stack=3)
    together = [json.loads((tmp_path / run.name / "run.json").read_text()) for run in runs]
    assert [one["together"] for one in together] == [["even", "too"], ["smaller"], ["even", "too"]]


def test_outside_their_windows_views_and_augmentations_leave_no_trace():
    changed = a_run(
        "b",
        views=(During(Flipped(), Window(5, 7, "steps")),),
        augmentations=(During(Noise(), Window(6, 9, "steps")),),
    )
    for epoch in range(3):
        batches = seen([a_run("a"), changed, a_run("c")], epoch)
        for step, (inputs, targets) in enumerate(batches, start=4 * epoch):
            assert torch.equal(targets[0], targets[1])
            assert torch.equal(inputs[0], inputs[2])
            if step == 5:
                assert torch.equal(inputs[1], inputs[0].flip(2))
            elif not 6 <= step < 9:
                assert torch.equal(inputs[1], inputs[0])
            else:
                shown = inputs[0].flip(2) if step == 6 else inputs[0]
                assert 0.5 < (inputs[1] - shown).std() < 1.5


def test_order_and_augmentation_have_seeds_of_their_own():
    runs = [
        a_run(name, seeds=seeds, augmentations=(During(Noise(0.01)),))
        for name, seeds in (
            ("a", Seeds()),
            ("order", Seeds(order=1)),
            ("augmentation", Seeds(augmentation=1)),
            ("init", Seeds(init=1, noise=1, dropout=1)),
        )
    ]
    ((inputs, _), *_) = seen(runs, 0)
    plain = [seen([a_run(seeds=run.seeds)], 0)[0][0][0] for run in runs]
    noise = [own - base for own, base in zip(inputs, plain, strict=True)]
    assert_allclose(noise[0], noise[1], atol=1e-6)
    assert not torch.equal(plain[0], plain[1])
    assert torch.equal(plain[0], plain[2])
    assert (noise[0] - noise[2]).abs().max() > 0.01
    assert torch.equal(inputs[0], inputs[3])


def test_views_that_change_the_number_or_the_form_of_examples_are_refused():
    fewer = a_run(views=(During(lambda x, y: (x[:9], y[:9])),))
    with pytest.raises(ValueError, match="must give as many examples as it got .50., got 9 inputs"):
        pooled([fewer], CPU)
    soft = a_run(views=(During(lambda x, y: (x, F.one_hot(y).float()), Window(1)),))
    with pytest.raises(ValueError, match="must be of one shape and dtype, got targets of"):
        pooled([soft], CPU)


# Branches -----------------------------------------------------------------------------------------


def branch(checkpoint, **changes):
    given = {"optimiser": "carry", "clock": "continue", "batch_norm": "carry"}
    return Branch(**{"state": checkpoint, "step": checkpoint.step, **given, **changes})


def trunk(tmp_path, **changes):
    run = a_run("trunk", make_model=CNN, keep_optimiser=True, checkpoints=(At([6]),), **changes)
    train(run, tmp_path)
    return run, next(c for c in checkpoints(tmp_path / "trunk") if c.step == 6)


@pytest.mark.parametrize("optimiser", ["nesterov", "adam"])
def test_a_branch_that_changes_nothing_goes_on_as_its_trunk(tmp_path, optimiser):
    _, checkpoint = trunk(tmp_path, lr=halving, optimiser=optimiser)
    children = {
        "same": {},
        "order": {"seeds": Seeds(order=1)},
        "optimiser": {"start": branch(checkpoint, optimiser="reset")},
        "clock": {"start": branch(checkpoint, clock="reset")},
        "batch norm": {"start": branch(checkpoint, batch_norm="reset")},
    }
    given = {"make_model": CNN, "lr": halving, "optimiser": optimiser, "start": branch(checkpoint)}
    train([a_run(n, **{**given, **own}) for n, own in children.items()], tmp_path, stack=1)
    end = end_of(tmp_path / "trunk")
    assert equal(end_of(tmp_path / "same"), end)
    for name in list(children)[1:]:
        assert not equal(end_of(tmp_path / name), end), name
        first = checkpoints(tmp_path / name)[0]
        assert first.step == 6
        start, given = first.load(), checkpoint.load()
        statistics = {key for key in start if "running" in key or "tracked" in key}
        differing = {key for key in start if not torch.equal(start[key], given[key])}
        assert differing == (statistics if name == "batch norm" else set())


def test_what_cannot_be_carried_is_refused(tmp_path):
    _, checkpoint = trunk(tmp_path)
    state = checkpoint.load()
    child = partial(a_run, make_model=CNN)
    with pytest.raises(ValueError, match="optimiser='carry' needs a checkpoint with a step"):
        train(child(start=branch(checkpoint, state=state)), tmp_path)
    with pytest.raises(ValueError, match="holds momentum of .* expected count, first, second of"):
        train(child(start=branch(checkpoint), optimiser="adam"), tmp_path)
    plain = a_run("plain")
    train(plain, tmp_path)
    with pytest.raises(RunError, match="only runs with keep_optimiser=True keep the state"):
        train(a_run("c", epochs=9, start=branch(checkpoints(tmp_path / "plain")[-1])), tmp_path)
    other = a_run("d", start=branch(checkpoint, optimiser="reset"))
    with pytest.raises(ValueError, match="does not fit"):
        train(other, tmp_path)


# Weights ------------------------------------------------------------------------------------------


def test_frozen_and_pruned_weights_do_not_move(tmp_path):
    mask = (torch.rand(9, 64, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    masks = {"fc1.weight": mask}
    frozen = (During("output.*", Window(1, 2)),)
    runs = [
        a_run("frozen", frozen=frozen, weight_decay=0.1),
        a_run("pruned", masks=masks, weight_decay=0.1, optimiser="sgd"),
    ]
    train(runs, tmp_path, stack=2)
    one, two, end = (load_state(tmp_path / "frozen" / f"step-{s:08d}.pt") for s in (4, 8, 12))
    assert torch.equal(one["output.weight"], two["output.weight"])
    assert not torch.equal(two["output.weight"], end["output.weight"])
    assert not torch.equal(one["fc1.weight"], two["fc1.weight"])
    for checkpoint in checkpoints(tmp_path / "pruned"):
        weight = checkpoint.load()["fc1.weight"]
        assert torch.equal(weight == 0, mask == 0)
    with pytest.raises(ValueError, match="'head' of frozen matches no parameter; they are fc1"):
        train(a_run("x", frozen=(During("head"),)), tmp_path)
    with pytest.raises(ValueError, match="masks are named and shaped as parameters"):
        train(a_run("y", masks={"fc1.weight": mask[0]}), tmp_path)


def counting(step, view):
    view.memory["calls"] = [*view.memory.get("calls", []), step]
    if step == view.run.timeline.steps:
        (view.folder / "calls.json").write_text(json.dumps(view.memory["calls"]))


def zeroed(step, view):
    if step == 5:
        view.weights["fc1.weight"].zero_()
        view.optimiser["momentum"]["fc1.weight"].zero_()


def test_hooks_are_called_before_each_step_and_after_the_last(tmp_path):
    given = {"checkpoints": (At([5]),), "hooks": (counting, zeroed)}
    train([a_run("a", **given), a_run("b", hooks=(counting,))], tmp_path, stack=2)
    for name in ("a", "b"):
        assert json.loads((tmp_path / name / "calls.json").read_text()) == list(range(13))
    state = load_state(tmp_path / "a" / "step-00000005.pt")
    assert (state["fc1.weight"] == 0).all()
    assert (state["output.weight"] != 0).all()
    assert (load_state(tmp_path / "b" / "step-00000004.pt")["fc1.weight"] != 0).any()


# Ends ---------------------------------------------------------------------------------------------


def poisoned(step, view):
    if step == 6:
        view.weights["output.bias"].fill_(torch.inf)


def diverging(clock):
    return 1e30 if clock.step >= 6 else 0.05


def test_a_run_that_is_no_longer_finite_stops_with_its_last_good_checkpoint(tmp_path):
    steps = (At([2, 5, 8]),)
    runs = [
        a_run("good", checkpoints=steps),
        a_run("bad", lr=diverging, checkpoints=steps),
        a_run("hook", hooks=(poisoned,), checkpoints=steps),
        a_run("last", checkpoints=steps, lr=lambda clock: 1e38 * (clock.step == 11)),
    ]
    for stack in (4, 1):
        good, bad, hook, last = train(runs, tmp_path / str(stack), stack=stack)
        assert (good.status, good.step) == ("finished", 12)
        assert steps_of(bad.folder) == [0, 2, 5]
        assert (bad.status, bad.step) == ("nonfinite", 5)
        assert "is nan at step 7; the last good checkpoint is that of step 5" in bad.message or (
            "is inf at step 7" in bad.message
        )
        assert "loss is nan at step 6" in hook.message
        assert last.status in ("nonfinite", "finished")
        said = json.loads((bad.folder / "run.json").read_text())
        assert (said["status"], said["step"], said["message"]) == ("nonfinite", 5, bad.message)
        assert train(runs, tmp_path / str(stack), stack=stack) == [good, bad, hook, last]
    assert equal(end_of(tmp_path / "4" / "good"), end_of(tmp_path / "4" / "good"))


def accurate(row):
    return row["train_error"] < 0.5


def test_a_run_stops_by_its_own_rule_and_the_others_go_on(tmp_path):
    runs = [a_run("stops", stop=accurate, epochs=40), a_run("goes on", epochs=5)]
    stops, on = train(runs, tmp_path, stack=2)
    assert stops.status == "stopped"
    record = results.load(stops.folder / "record.h5")
    assert record["train_error"][-1] < 0.5
    assert (record["train_error"][:-1] >= 0.5).all()
    assert stops.step == record["step"][-1] == steps_of(stops.folder)[-1]
    assert (on.status, on.step) == ("finished", 20)


# Going on -----------------------------------------------------------------------------------------


class KilledError(Exception):
    pass


@dataclass(frozen=True)
class Killer:
    """Interrupts at a step while a file exists."""

    step: int
    flag: Path

    def __call__(self, step, view):
        if step == self.step and self.flag.exists():
            raise KilledError

    def __repr__(self):
        return "Killer"


def resumed_runs(flag=None, step=None):
    hooks = (counting,) if flag is None else (counting, Killer(step, flag))
    given = {"make_model": CNN, "lr": halving, "test": TEST, "hooks": hooks}
    given |= {"augmentations": (During(Noise(0.1)),), "checkpoints": (At([2, 5, 8]),)}
    return [
        a_run("a", **given, seeds=Seeds.all(1)),
        a_run("b", **{**given, "checkpoints": (At([3, 7]),), "epochs": 2}),
    ]


@pytest.mark.parametrize("stack", [1, 2])
@pytest.mark.parametrize("step", [0, 1, 3, 4, 6, 8, 11])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, step, stack):
    flag = tmp_path / "flag"
    flag.touch()
    runs = resumed_runs(flag, step)
    with pytest.raises(KilledError):
        train(runs, tmp_path / "killed", stack=stack)
    flag.unlink()
    ends = train(runs, tmp_path / "killed", stack=stack)
    flag.touch()
    whole = train(resumed_runs(flag, 99), tmp_path / "whole", stack=stack)
    for end, other in zip(ends, whole, strict=True):
        assert (end.status, end.step) == (other.status, other.step)
        assert steps_of(end.folder) == steps_of(other.folder)
        for one, two in zip(checkpoints(end.folder), checkpoints(other.folder), strict=True):
            assert equal(one.load(), two.load())
        a, b = (results.load(folder / "record.h5") for folder in (end.folder, other.folder))
        assert a.drop_vars("seconds").equals(b.drop_vars("seconds"))
        calls = [(folder / "calls.json").read_text() for folder in (end.folder, other.folder)]
        assert calls[0] == calls[1]
        assert not list(end.folder.glob("*.resume"))
        assert not list(end.folder.glob("*.tmp"))


def test_dropout_goes_on_to_the_same_bits_and_is_not_stacked(tmp_path):
    flag = tmp_path / "flag"
    flag.touch()
    given = {"make_model": dropping, "checkpoints": (At([5]),)}
    runs = [a_run(str(i), seeds=Seeds.all(i), **given) for i in range(2)]
    killed = [replace(run, hooks=(Killer(7, flag),)) for run in runs]
    with pytest.raises(KilledError):
        train(killed, tmp_path / "killed")
    flag.unlink()
    train(killed, tmp_path / "killed")
    whole = train(runs, tmp_path / "whole")
    for end in whole:
        assert json.loads((end.folder / "run.json").read_text())["together"] == [end.name]
        assert equal(end_of(end.folder), end_of(tmp_path / "killed" / end.name))
    other = a_run("other", **given, seeds=Seeds(dropout=1))
    train(other, tmp_path)
    assert not equal(end_of(tmp_path / "other"), end_of(tmp_path / "whole" / "0"))


PROGRAM = """
import sys, torch
sys.path.insert(0, sys.argv[2])
torch.set_num_threads(1)
from test_experiments_training import slow_runs, train
train(slow_runs(), sys.argv[1], stack=2)
"""


def waiting(step, view):
    time.sleep(0.01)


def slow_runs():
    given = {"checkpoints": (At(range(13)),), "hooks": (waiting,)}
    return [a_run(name, seeds=Seeds.all(i), **given) for i, name in enumerate("ab")]


def test_a_process_killed_at_any_instant_leaves_runs_that_go_on_to_the_same_bits(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "killed"), str(Path(__file__).parent)]
    process = subprocess.Popen(command)
    while not (tmp_path / "killed" / "b" / "step-00000004.pt").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    ends = train(slow_runs(), tmp_path / "killed", stack=2)
    whole = train(slow_runs(), tmp_path / "whole", stack=2)
    for end, other in zip(ends, whole, strict=True):
        for one, two in zip(checkpoints(end.folder), checkpoints(other.folder), strict=True):
            assert equal(one.load(), two.load())


class KillError(Exception):
    """As from a kill: nothing of ours catches it."""


def ending_runs():
    """Runs that end together, later, and by a rule of their own."""
    given = {"checkpoints": (At([5]),), "hooks": (counting,), "test": TEST}
    return [
        a_run("a", epochs=2, **given),
        a_run("b", epochs=2, seeds=Seeds.all(1), keep_optimiser=True, **given),
        a_run("c", epochs=3, seeds=Seeds.all(2), **given),
        a_run("d", epochs=3, stop=after_two, **given),
    ]


def after_two(row):
    return row["epoch"] >= 2


@pytest.mark.parametrize("function", ["write_run", "save_record", "save_kept", "forget"])
def test_runs_interrupted_while_they_end_go_on_to_the_same_bits(tmp_path, monkeypatch, function):
    whole = train(ending_runs(), tmp_path / "whole", stack=4)
    original, num = getattr(records, function), 0
    while True:  # at each call, before and after what it does
        folder, calls = tmp_path / str(num), []

        def interrupted(*args, at=num, calls=calls, **kwargs):
            calls.append(None)
            if len(calls) == at // 2 + 1 and at % 2 == 0:
                raise KillError
            original(*args, **kwargs)
            if len(calls) == at // 2 + 1:
                raise KillError

        monkeypatch.setattr(records, function, interrupted)
        try:
            train(ending_runs(), folder, stack=4)
        except KillError:
            pass
        else:
            break
        finally:
            monkeypatch.setattr(records, function, original)
        ends = train(ending_runs(), folder, stack=4)
        for end, other in zip(ends, whole, strict=True):
            assert (end.status, end.step) == (other.status, other.step)
            assert steps_of(end.folder) == steps_of(other.folder)
            assert records.resumable(end.folder) == records.resumable(other.folder)
            assert equal(end_of(end.folder), end_of(other.folder))
            a, b = (results.load(one.folder / "record.h5") for one in (end, other))
            assert_allclose(a["test_loss"], b["test_loss"], rtol=0)
        num += 1
    assert num >= 8


def test_a_finished_run_returns_at_once(tmp_path, monkeypatch):
    runs = [a_run("a"), a_run("b")]
    first = train(runs, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.setattr(torch.autograd, "grad", None)
    assert train(runs, tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_folder_of_another_run_is_refused_with_the_difference(tmp_path):
    train(a_run(lr=halving), tmp_path)
    with pytest.raises(RunError) as caught:
        train(a_run(lr=0.2, seeds=Seeds(order=3)), tmp_path)
    text = str(caught.value)
    assert "holds another run and is left as it is. What differs:" in text
    assert 'lr: "test_experiments_training:halving" -> 0.2' in text
    assert "seeds.order: 0 -> 3" in text
    assert "weight_decay" not in text
    (tmp_path / "a" / "run.json").unlink()
    with pytest.raises(RunError, match="holds checkpoints of something else"):
        train(a_run(lr=halving), tmp_path)
    with pytest.raises(ValueError, match="runs need names of their own"):
        train([a_run(), a_run()], tmp_path)


def test_a_run_that_another_process_trains_is_left_alone(tmp_path):
    (tmp_path / "a").mkdir()
    with (
        FileLock(tmp_path / "a" / ".run.lock"),
        pytest.raises(RunError, match="a is being trained by another process; wait for it"),
    ):
        train(a_run(), tmp_path)
    assert train(a_run(), tmp_path)[0].status == "finished"


# Surroundings -------------------------------------------------------------------------------------


def test_a_full_disk_is_explained_and_can_be_mended(tmp_path, monkeypatch):
    run = a_run(checkpoints=(At([6]),))
    train(run, tmp_path / "whole")
    made = []
    real = os.replace

    def limited(*args):
        made.append(args)
        if len(made) == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*args)

    for number in range(1, 7):
        made.clear()
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", limited)
            with pytest.raises(
                RunError,
                match="could not be written: No space left on device. The last checkpoint there is "
                "complete; mend this and train again",
            ):
                train(run, tmp_path / str(number))
        assert not list((tmp_path / str(number)).rglob("*.tmp"))
        train(run, tmp_path / str(number))
        for one, two in zip(
            checkpoints(tmp_path / str(number) / "a"), checkpoints(tmp_path / "whole" / "a"),
            strict=True,
        ):  # fmt: skip
            assert equal(one.load(), two.load())


def test_global_random_states_and_the_data_stay_as_they_were(tmp_path):
    inputs = DATA.inputs.clone()
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    train([a_run("a", make_model=dropping), *unlike(MLP)], tmp_path)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(DATA.inputs, inputs)


def test_stacks_go_to_an_executor(tmp_path):
    runs = [a_run("a"), a_run("b", seeds=Seeds.all(1)), a_run("c", optimiser="adam")]
    with ThreadPoolExecutor(1) as executor:
        ends = train(runs, tmp_path / "executor", executor=executor, stack=1)
    train(runs, tmp_path / "here", stack=1)
    for end in ends:
        assert equal(end_of(end.folder), end_of(tmp_path / "here" / end.name))


def test_the_fastest_size_is_taken_and_what_fails_is_not():
    assert fastest([8, 4, 1], {8: 4.0, 4: 1.0, 1: 0.5}.get) == 4
    assert fastest([8, 4, 1], {8: 4.0, 4: 1.9, 1: 0.5}.get) == 1  # no clear gain

    def only_alone(size):
        if size > 1:
            raise RuntimeError("vmap: called random operation")
        return 1.0

    assert fastest([8, 4, 1], only_alone) == 1


def test_channels_last_gives_the_model_images_in_that_format(tmp_path):
    seen = []

    def watched(*, seed):
        model = models.small_cnn(3, classes=3, width=4, seed=seed)
        model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].stride(1)))
        return model

    colour = Batches(DATA.inputs.expand(-1, 3, -1, -1).contiguous(), DATA.targets)
    ends = []
    for wanted in (False, True):
        run = a_run(str(wanted), make_model=watched, data=colour, channels_last=wanted)
        train(run, tmp_path)
        ends.append(end_of(tmp_path / run.name))
        assert (1 in seen) == wanted
        seen.clear()
    for name in ends[0]:
        assert_allclose(ends[1][name], ends[0][name], rtol=1e-3, atol=1e-5)


def test_a_compiled_run_ends_like_a_plain_one(tmp_path, monkeypatch):
    compiled, real = [], torch.compile

    def eager(model):
        compiled.append(model)
        return real(model, backend="eager")

    monkeypatch.setattr(torch, "compile", eager)
    runs = [a_run("compiled", compiled=True), a_run("also", compiled=True), a_run("plain")]
    train(runs, tmp_path)
    assert len(compiled) == 2  # each by itself
    ends = [end_of(tmp_path / name) for name in ("compiled", "plain")]
    for name in ends[0]:
        assert_allclose(ends[0][name], ends[1][name], rtol=1e-4, atol=1e-6)


def test_a_model_that_is_kept_outside_stays_as_it_is(tmp_path):
    model = MLP(seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train(a_run(make_model=lambda *, seed: model), tmp_path)
    assert equal(model.state_dict(), before)
