import math

import numpy as np
import pytest
import torch
import xarray as xr

from landscape import models, results
from landscape.datasets import Batches
from landscape.experiments import Run, RunError
from landscape.experiments.records import (
    MEASURES,
    forget,
    load_kept,
    read_record,
    read_run,
    resumable,
    save_kept,
    save_record,
    written,
)
from landscape.experiments.settings import described

RUN = Run(
    name="a", make_model=models.mlp, data=Batches(torch.zeros(9, 4), torch.zeros(9).long()),
    epochs=2, batch_size=3,
)  # fmt: skip
VALUES = {name: 1.5 * i for i, name in enumerate(MEASURES)}
ROWS = [{**VALUES, "epoch": 1.0, "step": 3}, {**VALUES, "epoch": 2.0, "step": 6, "lr": 9.0}]


def test_a_record_is_the_file_that_xarray_would_write(tmp_path):
    rows = [ROWS[0], {**ROWS[1], "test_loss": math.nan}]
    save_record(RUN, rows, tmp_path)
    found = results.load(tmp_path / "record.h5")
    assert not results.problems(found)
    assert found["train_loss"].dims == ("epoch",)
    assert found["epoch"].values.tolist() == [1, 2]
    assert found["step"].values.tolist() == [3, 6]
    assert set(found.coords) == {"epoch", "step"}
    for name in set(MEASURES) - {"test_loss"}:
        assert found[name].values.tolist() == [row[name] for row in rows]
    assert np.isnan(found["test_loss"][1])
    assert found["seconds"].attrs["units"] == "s"
    results.save(found, tmp_path / "again.h5")
    xr.testing.assert_identical(results.load(tmp_path / "again.h5"), found)


def test_a_run_without_an_epoch_has_an_empty_record(tmp_path):
    save_record(RUN, [], tmp_path)
    assert results.load(tmp_path / "record.h5").sizes == {"epoch": 0}


def test_what_was_kept_comes_back_and_only_some_is_forgotten(tmp_path):
    kept = {"weights": torch.arange(3.0), "memories": [{"n": 3, "text": "x", "list": [1, 2.5]}]}
    for step in (3, 7, 12):
        save_kept(kept, tmp_path, step)
    found = load_kept(tmp_path, 7)
    assert torch.equal(found["weights"], kept["weights"])
    assert found["memories"] == kept["memories"]
    forget(tmp_path, but={3, 7})
    assert resumable(tmp_path) == {3, 7}
    forget(tmp_path)
    assert resumable(tmp_path) == set()
    with pytest.raises(RunError, match="step-00000007.resume does not exist"):
        load_kept(tmp_path, 7)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a"
    written(path, lambda place: place.write_text("old"))

    def failing(place):
        place.write_text("ne")
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        written(path, failing)
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    assert path.read_text() == "old"


def test_a_damaged_run_json_is_named(tmp_path):
    assert read_run(tmp_path) == {}
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunError, match="run.json cannot be read"):
        read_run(tmp_path)


def test_a_function_of_a_script_is_the_same_one_in_a_worker(monkeypatch):
    def make():
        return None

    monkeypatch.setattr(make, "__qualname__", "make")
    monkeypatch.setattr(make, "__module__", "__main__")
    here = described(make)
    monkeypatch.setattr(make, "__module__", "__mp_main__")  # as spawned processes import a script
    assert described(make) == here == "__main__:make"


def test_a_record_is_read_as_results_read_it(tmp_path):
    save_record(RUN, ROWS, tmp_path)
    whole = results.load(tmp_path / "record.h5")
    columns = read_record(tmp_path)
    assert columns.keys() == set(whole.variables)
    for name, values in columns.items():
        np.testing.assert_array_equal(values, whole[name].values)
    assert read_record(tmp_path / "nothing") == {}
    sound = (tmp_path / "record.h5").read_bytes()
    place = sound.rindex(b"test_loss")  # h5py says of such a file that there is no such key
    for damaged in (
        b"no file of this kind",
        sound[:700],
        sound[:place] + b"?" + sound[place + 1 :],
    ):
        (tmp_path / "record.h5").write_bytes(damaged)
        with pytest.raises(RunError, match=r"record.h5 is damaged"):
            read_record(tmp_path)
