import json
import sys
import types

import pytest
import torch
from torch import nn

from landscape import checkpoints
from landscape.experiments import (
    At,
    Every,
    Recorder,
    RunError,
    lightning_callback,
    recorder,
    trainer_callback,
)


def trained(record, model, steps):
    """Somebody's loop; the weights are the number of steps taken."""
    for step in range(steps):
        record(model, step)
        with torch.no_grad():
            model.weight.fill_(step + 1)
    record(model, steps)


def model_at_zero():
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


def assert_recorded(folder, steps):
    found = checkpoints(folder)
    assert [checkpoint.step for checkpoint in found] == steps
    for checkpoint in found:
        assert (checkpoint.load()["weight"] == checkpoint.step).all()


def test_a_loop_of_ones_own_leaves_the_planned_checkpoints(tmp_path):
    plans = (Every(epochs=2), At([1, 2]))
    record = Recorder(tmp_path / "a", 4, 3, plans, settings={"lr": 0.1, "make": model_at_zero})
    trained(record, model_at_zero(), 12)
    assert_recorded(tmp_path / "a", [0, 1, 2, 6, 12])
    said = json.loads((tmp_path / "a" / "run.json").read_text())
    assert (said["status"], said["step"]) == ("finished", 12)
    assert said["settings"]["lr"] == 0.1
    assert said["settings"]["make"] == "test_experiments_recorder:model_at_zero"


def test_the_first_and_the_last_step_are_always_kept(tmp_path):
    trained(Recorder(tmp_path, 1, 5, checkpoints=()), model_at_zero(), 5)
    assert_recorded(tmp_path, [0, 5])


def test_a_folder_of_another_run_is_refused(tmp_path):
    trained(Recorder(tmp_path, 1, 5, settings={"lr": 0.1}), model_at_zero(), 5)
    with pytest.raises(RunError, match=r"(?s)holds another run.*lr: 0.1 -> 0.2"):
        Recorder(tmp_path, 1, 5, settings={"lr": 0.2})(model_at_zero(), 0)
    with pytest.raises(ValueError, match="steps .6. lie outside training, which has 5 steps"):
        Recorder(tmp_path, 1, 5, (At([6]),))
    with pytest.raises(ValueError, match="at least 1, got 0 and 5"):
        Recorder(tmp_path, 0, 5)


def test_lightning_records_before_each_batch_and_at_the_end(tmp_path, monkeypatch):
    base = types.SimpleNamespace(Callback=type("Callback", (), {}))
    monkeypatch.setattr(recorder, "find_spec", lambda name: None)  # under its older name
    monkeypatch.setitem(sys.modules, "pytorch_lightning", base)
    callback = lightning_callback(tmp_path, checkpoints=(Every(epochs=1),))
    assert isinstance(callback, base.Callback)
    trainer = types.SimpleNamespace(
        is_global_zero=True, estimated_stepping_batches=6, max_epochs=2, global_step=0
    )
    model = model_at_zero()
    for step in range(6):
        trainer.global_step = step
        callback.on_train_batch_start(trainer, model, None, step % 3)
        model.weight.data.fill_(step + 1)
    trainer.global_step = 6
    callback.on_train_end(trainer, model)
    assert_recorded(tmp_path, [0, 3, 6])


def test_the_trainer_of_transformers_records_before_each_step_and_at_the_end(tmp_path, monkeypatch):
    base = types.SimpleNamespace(TrainerCallback=type("TrainerCallback", (), {}))
    monkeypatch.setitem(sys.modules, "transformers", base)
    callback = trainer_callback(tmp_path, checkpoints=(At([2]),))
    assert isinstance(callback, base.TrainerCallback)
    state = types.SimpleNamespace(
        is_world_process_zero=True, max_steps=5, num_train_epochs=2, global_step=0
    )
    model = model_at_zero()
    for step in range(5):
        state.global_step = step
        callback.on_step_begin(None, state, None, model=model, optimizer=None)
        model.weight.data.fill_(step + 1)
    state.global_step = 5
    callback.on_train_end(None, state, None, model=model, optimizer=None)
    assert_recorded(tmp_path, [0, 2, 5])
