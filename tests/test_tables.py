import numpy as np
import pytest

from landscape.results import dataset
from landscape.tables import (
    barrier_table,
    fisher_table,
    layers_table,
    mapping_text,
    result_text,
    spectrum_table,
    table,
)


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


def told(result):
    return [" ".join(row.split()) for row in layers_table(result).split("\n")]


def between_layers(others=("conv", "fc")):
    dims = ("layer", "other_layer")
    variables = {
        "cca": (dims, [[0.5, 0.25], [0.125, 0.75]]),
        "cca_stderr": (dims, [[0.01, 0.0], [0.0, 0.02]]),
        "cca_chance": (dims, [[0.1, 0.0], [0.0, 0.2]]),
        "cka": (dims, [[-0.01, 0.0], [0.0, np.nan]]),
        "correlations": ((*dims, "direction"), np.ones((2, 2, 3))),
        "rank": ("layer", [3.0, 4]),
        "other_rank": ("other_layer", [5.0, 6]),
        "condition": ("layer", [120.5, 1e7]),
        "num_forced": (dims, [[0, 9], [9, 2]]),
    }
    coords = {"layer": ["conv", "fc"], "other_layer": list(others)}
    return dataset(variables, coords, analysis="layers", title="")


def test_the_table_of_layers_pairs_them_by_name():
    assert told(between_layers()) == [
        "layer cca chance cka rank other rank condition forced",
        "conv 0.5000 ± 0.0100 0.1000 -0.0100 3 5 120.5 0",
        "fc 0.7500 ± 0.0200 0.2000 nan 4 6 1e+07 2",
    ]
    assert told(between_layers(["fc", "head"]))[1:] == [
        "fc 0.1250 ± 0.0000 0.0000 0.0000 4 5 1e+07 9"
    ]


def test_layers_without_a_namesake_stand_beside_the_most_similar():
    rows = told(between_layers(["a", "b"]))
    assert rows[0].startswith("layer other layer cca")
    assert rows[1].startswith("conv a 0.5000")
    assert rows[2].startswith("fc b 0.7500")


def test_frequencies_are_averaged_in_the_table():
    dims = ("layer", "other_layer", "frequency")
    found = {"cca": (dims, [[[0.2, 0.6]]]), "cca_stderr": (dims, [[[0.1, 0.1]]])}
    result = dataset(found, {"layer": ["a"], "other_layer": ["a"]}, analysis="layers", title="")
    assert told(result) == ["layer cca", "a 0.4000"]


def test_the_table_of_convergence_says_from_when_on_a_layer_stays_near_its_end():
    values = np.array([[0.1, 0.95, 0.2], [0.9, 0.8, 0.3], [0.95, 0.92, 0.5], [1, 1, 0.6]])
    coords = {"step": [0, 10, 20, 30], "layer": ["conv", "fc", "head"]}
    result = dataset(
        {"cka": (("step", "layer"), values)}, coords, analysis="layer convergence", title=""
    )
    rows = [
        "layer cka at step 0 stays >= 0.9 from step",
        "conv 0.1000 10",
        "fc 0.9500 20",  # left again after step 0
        "head 0.2000 never",
    ]
    assert told(result) == rows
    assert told(result.isel(step=[2, 0, 3, 1])) == rows


def test_convergence_of_several_runs_has_its_median_and_range():
    values = np.array([[0.1, 0.9, 1], [0.2, 0.3, 1], [0.3, 0.4, 0.5]])[:, :, None]
    coords = {"run": ["a", "b", "c"], "step": [0, 10, 20], "layer": ["conv"]}
    result = dataset(
        {"cka": (("run", "step", "layer"), values)}, coords, analysis="layer convergence", title=""
    )
    assert told(result)[1] == "conv 0.2000 [0.1000, 0.3000] 20 [10, never]"


@pytest.mark.parametrize("dim", ["step", "run"])
def test_the_table_of_pairs_leaves_out_each_with_itself(dim):
    values = np.array([[[1, 0.2, 0.4], [0.2, 1, 0.9], [0.4, 0.9, 1]]])
    coords = {"layer": ["conv"], dim: [0, 1, 2], f"other_{dim}": [0, 1, 2]}
    found = {"cka": (("layer", dim, f"other_{dim}"), values)}
    rows = told(dataset(found, coords, analysis=f"layer {dim}s", title=""))
    assert rows == [
        "layer cka",
        "conv 0.5000 [0.2000, 0.9000]",
        f"mean [lowest, highest] over pairs of {dim}s",
    ]


def test_what_has_no_table_of_layers():
    with pytest.raises(ValueError, match="over layer and other_layer, step.*this result has split"):
        layers_table(line())
    with pytest.raises(ValueError, match="has no similarities over layer, other_layer"):
        layers_table(between_layers()[["num_forced"]])


def words(text):
    return [" ".join(row.split()) for row in text.split("\n")]


def fisher(dims=(), **coords):
    """Traces 3, 1 and 12, for each place twice those before; two tensors are of one module."""
    sizes = tuple(len(coords[dim]) for dim in dims)
    scale = 2.0 ** np.arange(np.prod(sizes, dtype=int)).reshape(sizes)
    trace = np.multiply.outer(scale, np.array([3.0, 1.0, 12.0]))
    variables = {
        "trace": ((*dims, "tensor"), trace),
        "trace_stderr": ((*dims, "tensor"), trace / 10),
        "total": (dims, trace.sum(-1)),
        "total_stderr": (dims, trace.sum(-1) / 20),
        "num_parameters": ("tensor", [20, 5, 8]),
    }
    names = ["head.weight", "head.bias", "body.weight"]
    coords |= {"tensor": names, "module": ("tensor", ["head", "head", "body"])}
    attrs = {"labels": "exact", "batch_norm": "keep", "num_examples": 9, "not_counted": []}
    return dataset(variables, coords, analysis="fisher trace", title="", **attrs)


def test_the_table_of_the_trace_of_modules():
    assert words(fisher_table(fisher())) == [
        "module parameters trace ± standard error share",
        "head 25 4 ± 0.4 25.0%",
        "body 8 12 ± 1.2 75.0%",
        "total 33 16 ± 0.8",
        "labels: exact, batch norm: keep, num examples: 9",
    ]
    two = words(fisher_table(fisher(("labels",), labels=["exact", "observed"])))
    columns = "exact trace ± standard error share observed trace ± standard error share"
    assert two[0] == f"module parameters {columns}"
    assert two[1] == "head 25 4 ± 0.4 25.0% 8 ± 0.8 25.0%"
    assert two[-1] == "batch norm: keep, num examples: 9"


def test_the_table_of_the_trace_through_training():
    result = fisher(("run", "step"), run=["a", "b"], step=[0, 5])
    assert words(fisher_table(result))[:3] == [
        "step a trace ± standard error b trace ± standard error",
        "0 16 ± 0.8 64 ± 3.2",
        "5 32 ± 1.6 128 ± 6.4",
    ]
    for name, values in (("", [5.0, 5]), ("_low", [0.0, 5]), ("_high", [5.0, 5])):
        result[f"peak_step{name}"] = ("run", values)
    assert words(fisher_table(result))[3] == "peak at 5 [0, 5] 5 [5, 5]"


def test_the_table_of_eigenvalues():
    values = np.array([[4.0, -7.0], [1.0, 9.0]])
    dims = ("step", "index")
    variables = {"eigenvalue": (dims, values), "residual": (dims, abs(values) / 10)}
    coords = {"step": [0, 3], "index": [0, 1]}
    result = dataset(variables, coords, analysis="eigenvalues", title="", matrix="hessian")
    assert words(spectrum_table(result.isel(step=0, drop=True))) == [
        "index eigenvalue residual",
        "0 4 0.4",
        "1 -7 0.7",
        "matrix: hessian",
    ]
    result["learning_rate"] = ("step", [0.1, 0.0])
    assert words(spectrum_table(result))[:3] == [
        "step largest ± residual 2 / learning rate",
        "0 4 ± 0.4 20",
        "3 9 ± 0.9 none",
    ]


def test_the_table_of_a_density():
    nodes = np.array([[-1.0, 0, 4], [-1, 2, 5]])  # the second probe needed two steps
    weights = np.array([[0.25, 0.5, 0.25], [0.5, 0.5, 0]])
    variables = {"nodes": (("probe", "node"), nodes), "weights": (("probe", "node"), weights)}
    result = dataset(variables, {}, analysis="spectral density", title="", matrix="fisher")
    assert words(spectrum_table(result)) == [
        "smallest -1",
        "largest 4",
        "mean 0.625 ± 0.12",
        "share below zero 0.375 ± 0.12",
        "matrix: fisher",
    ]
