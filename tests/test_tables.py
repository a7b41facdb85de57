import numpy as np

from landscape.results import dataset
from landscape.tables import barrier_table, mapping_text, result_text, table


def line():
    loss = np.array([[1.0, 4.0, 2.0], [2.0, 2.0, 3.0]])
    own = np.array([[1.5, np.nan, 2.5], [2.0, np.nan, 3.0]])
    variables = {
        "loss": (("split", "t"), loss),
        "loss_stderr": (("split", "t"), 0 * loss),
        "own_loss": (("split", "t"), own),
        "status": ("t", np.array([1, 1, 1], np.uint8)),
    }
    coords = {"t": [0.0, 0.25, 1.0], "split": ["train", "test"]}
    return dataset(variables, coords, analysis="interpolation", title="a line", seed=3)


def test_the_table_of_barriers():
    rows = [" ".join(row.split()) for row in barrier_table(line()).split("\n")]
    assert rows == [
        "start (own) end (own) barrier (chord) barrier (mean) barrier (max) at t",
        "train loss 1.0000 (1.5000) 2.0000 (2.5000) 2.7500 2.5000 2.0000 0.25",
        "test loss 2.0000 (2.0000) 3.0000 (3.0000) 0.0000 0.5000 0.0000 0.00",
    ]


def test_the_table_of_barriers_leaves_diagnostics_out():
    result = line()
    for name in ("entropy", "entropy_stderr"):
        result[name] = result["loss"]
    assert barrier_table(result) == barrier_table(line())


def test_what_is_in_a_result():
    said = " ".join(result_text(line()).split())
    assert said.startswith("a line [interpolation]")
    assert "loss split 2 x t 3 1 .. 4 loss" in said
    assert "own_loss split 2 x t 3 1.5 .. 3" in said
    assert "split split 2 train .. test" in said
    assert "points: 3 ok" in said
    assert "seed 3" in said
    assert "torch 2." in said


def test_columns_are_of_equal_width():
    assert table([["a", "bb"], ["ccc", "d"]]) == "a    bb\nccc  d"
    assert mapping_text({"key": 1}) == "key  1"
