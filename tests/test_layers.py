"""Layers of networks compared: against the same measures on recorded activations."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.nn import functional as F  # noqa: N812

from landscape import Task
from landscape.activations import record
from landscape.analyses.layer_pairs import Comparison, moments_bytes
from landscape.analyses.layers import (
    compare_layers,
    layer_convergence,
    layer_matrix,
    layer_names,
)
from landscape.datasets import Batches
from landscape.maths.significance import jackknife
from landscape.maths.similarity import cca, cka, cka_of, procrustes, pwcca, regression, svcca


def cross_entropy(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


MEASURES = ("cca", "svcca", "pwcca", "cka", "procrustes", "regression")
ON_ARRAYS = {
    "cca": cca, "svcca": svcca, "pwcca": pwcca, "cka": cka, "procrustes": procrustes,
    "regression": regression,
}  # fmt: skip


def network(seed=0, width=5):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 4), nn.Tanh(),
                         nn.Linear(4, 3))  # fmt: skip


def convolutional(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(inplace=True),
                         nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(),
                         nn.Linear(36, 3))  # fmt: skip


def task_of(model, num=60, shape=(6,), seed=0, batch_size=16):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num, *shape, generator=generator)
    targets = torch.randint(0, 3, (num,), generator=generator)
    return Task("train", model, cross_entropy, Batches(inputs, targets, batch_size))


@pytest.fixture
def pair():
    a, b = network(0), network(1)
    return task_of(a), a.state_dict(), b.state_dict()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("measure", MEASURES)
def test_every_pair_is_what_the_measure_gives_on_arrays(pair, measure, exact):
    task, a, b = pair
    result = compare_layers(
        task, a, b, measure=measure, layers="1,2,4", dtype=torch.float64, exact=exact, blocks=0
    )
    x, y = (record(task, state, "1,2,4", dtype=torch.float64) for state in (a, b))
    for one in x.names:
        for other in y.names:
            expected = ON_ARRAYS[measure](x[one], y[other])
            found = result.sel(layer=one, other_layer=other)
            assert_allclose(found[measure], float(expected), rtol=1e-9)
            if measure != "cka" and hasattr(expected, "adjusted"):
                assert_allclose(found[f"{measure}_adjusted"], expected.adjusted, rtol=1e-9)


def test_standard_errors_are_those_of_the_jackknife_on_arrays(pair):
    task, a, b = pair
    result = compare_layers(task, a, b, layers="0,2", dtype=torch.float64, blocks=7)
    x, y = (record(task, state, "0,2", dtype=torch.float64) for state in (a, b))
    expected = jackknife(x["0"], y["2"], cka_of, num_blocks=7)
    found = result.sel(layer="0", other_layer="2")
    assert_allclose(found["cka_stderr"], expected.stderr, rtol=1e-8)


def test_batches_do_not_matter(pair):
    task, a, b = pair
    whole = compare_layers(task, a, b, measure=MEASURES, dtype=torch.float64)
    parts = compare_layers(task, a, b, measure=MEASURES, dtype=torch.float64, batch_size=7)
    for name in whole.data_vars:
        assert_allclose(parts[name], whole[name], rtol=1e-9, atol=1e-12)


def test_a_state_against_itself_has_ones_on_the_diagonal(pair):
    task, a, _ = pair
    result = compare_layers(task, a, measure=MEASURES, blocks=0)
    for measure in MEASURES:
        assert_allclose(np.diag(result[measure]), 1, rtol=1e-9)


def test_a_permuted_network_has_the_same_layers(pair):
    task, a, _ = pair
    order = torch.tensor([3, 0, 4, 1, 2])
    other = a | {"0.weight": a["0.weight"][order], "0.bias": a["0.bias"][order],
                 "2.weight": a["2.weight"][:, order]}  # fmt: skip
    result = compare_layers(task, a, other, measure=MEASURES, blocks=0, dtype=torch.float64)
    for measure in MEASURES:
        assert_allclose(np.diag(result[measure]), 1, rtol=1e-9)


def test_networks_of_another_kind_are_compared_on_the_same_examples():
    a, b = network(0), network(1, width=9)
    task = task_of(a)
    result = compare_layers(task, a.state_dict(), b.state_dict(), other_model=b,
                            layers="0,2", other_layers="*", dtype=torch.float64)  # fmt: skip
    assert result["layer"].values.tolist() == ["0", "2"]
    assert result["other_layer"].values.tolist() == ["0", "1", "2", "3", "4"]
    assert result["other_width"].values.tolist() == [9, 9, 4, 4, 3]
    other = Task("train", b, task.loss, task.data)
    x = record(task, a.state_dict(), "2", dtype=torch.float64)["2"]
    y = record(other, b.state_dict(), "1", dtype=torch.float64)["1"]
    found = result["cka"].sel(layer="2", other_layer="1")
    assert_allclose(found, float(cka(x, y)), rtol=1e-9)


@pytest.mark.parametrize("maps", ["average", "positions", "flatten", "pool:2x2"])
def test_maps_are_compared_in_the_form_asked_for(maps):
    a, b = convolutional(0), convolutional(1)
    task = task_of(a, shape=(1, 7, 7))
    layers = "0,1" if maps == "positions" else "0,1,2"
    result = compare_layers(
        task, a.state_dict(), b.state_dict(), layers=layers, maps=maps, dtype=torch.float64
    )
    recorded = [
        record(task, m.state_dict(), layers, maps=maps, dtype=torch.float64) for m in (a, b)
    ]
    for one in result["layer"].values:
        for other in result["other_layer"].values:
            expected = float(cka(recorded[0][one], recorded[1][other]))
            found = result["cka"].sel(layer=one, other_layer=other)
            assert_allclose(found, expected, rtol=1e-8)


def test_frequencies_are_compared_one_by_one_and_averaged_by_power():
    a, b = convolutional(0), convolutional(1)
    task = task_of(a, shape=(1, 7, 7))
    options = {"layers": "0,2", "maps": "frequency:2x2", "dtype": torch.float64}
    result = compare_layers(
        task, a.state_dict(), b.state_dict(), measure="cca", blocks=0, **options
    )
    x, y = (record(task, m.state_dict(), **options) for m in (a, b))
    found = result.sel(layer="0", other_layer="2")
    scores, power = [], []
    for one, other in zip(x["0"], y["2"], strict=True):
        scores.append(float(cca(one, other)))
        variances = [(z - z.mean(0)).abs().square().sum().item() for z in (one, other)]
        power.append(np.sqrt(variances[0] * variances[1]))
    counts = result["multiplicity"].values
    assert_allclose(found["cca_by_frequency"], scores, rtol=1e-9)
    assert_allclose(found["cca"], np.average(scores, weights=power * counts), rtol=1e-9)
    assert_allclose(found["cca_unweighted"], np.average(scores, weights=counts), rtol=1e-9)


def test_in_place_activations_do_not_reach_the_layer_before():
    model = convolutional()
    task = task_of(model, shape=(1, 7, 7))
    result = compare_layers(task, model.state_dict(), layers="0,1")
    assert float(result["cka"].sel(layer="0", other_layer="1")) < 0.999


def test_correlations_are_kept_on_request(pair):
    task, a, b = pair
    result = compare_layers(task, a, b, measure="cca", layers="0,4", correlations=True)
    rows = result["correlations"].sel(layer="0", other_layer="4").values
    assert np.isfinite(rows).sum() == 3
    assert_allclose(np.nanmean(rows), result["cca"].sel(layer="0", other_layer="4"), rtol=1e-12)


def test_ill_conditioned_layers_take_the_exact_path_and_say_so():
    a = network()
    with torch.no_grad():
        a[0].weight[1] = a[0].weight[0] + 1e-7 * a[0].weight[1]
        a[0].bias[1] = a[0].bias[0]
    task = task_of(a)
    result = compare_layers(task, a.state_dict(), layers="0", measure="cca", dtype=torch.float64)
    assert result["exact"].item() == 1
    assert result["rank"].item() == 5
    assert result["condition"].item() > 1e5
    plain = compare_layers(task, network().state_dict(), layers="0", measure="cca")
    assert plain["exact"].item() == 0


def test_convergence_is_the_diagonal_against_the_final_state(pair):
    task, a, b = pair
    result = layer_convergence(task, [a, b], steps=[0, 10], measure=("cka", "svcca"))
    assert result.attrs["analysis"] == "layer convergence"
    assert result["step"].values.tolist() == [0, 10]
    whole = compare_layers(task, a, b, measure=("cka", "svcca"))
    for name in ("cka", "svcca", "cka_stderr"):
        assert_allclose(result[name].isel(step=0), np.diag(whole[name]), rtol=1e-6, atol=1e-9)
        assert_allclose(result[name].isel(step=1), name != "cka_stderr", atol=1e-9)


def test_a_matrix_of_states_is_made_of_the_pairs(pair, monkeypatch):
    task, a, b = pair
    c = network(2).state_dict()
    whole = layer_matrix(task, [a, b, c], ["a", "b", "c"], dim="run", dtype=torch.float64)
    assert whole.attrs["analysis"] == "layer networks"
    assert whole["cka"].dims == ("layer", "run", "other_run")
    for one, other, states in (("a", "b", (a, b)), ("c", "a", (c, a))):
        expected = np.diag(compare_layers(task, *states, dtype=torch.float64)["cka"])
        assert_allclose(whole["cka"].sel(run=one, other_run=other), expected, rtol=1e-9)
    monkeypatch.setattr("landscape.analyses.layers.HELD", 2)
    pieces = layer_matrix(task, [a, b, c], ["a", "b", "c"], dim="run", dtype=torch.float64)
    assert_allclose(pieces["cka"], whole["cka"], rtol=1e-9)
    rows = layer_matrix(task, [a, b, c], ["a", "b", "c"], dim="run", rows=[2], dtype=torch.float64)
    assert_allclose(rows["cka"], whole["cka"].sel(run=["c"]), rtol=1e-9)


def test_own_measures_are_functions_of_an_overlap(pair):
    task, a, b = pair
    result = compare_layers(
        task, a, b, measure={"largest": lambda shared: shared.whitened.svd().S[0].item()}, blocks=0
    )
    plain = compare_layers(task, a, b, measure="cca", correlations=True, blocks=0)
    assert_allclose(result["largest"], plain["correlations"].max("direction"), rtol=1e-9)


def test_model_data_and_random_state_are_left_alone(pair):
    task, a, b = pair
    task.model.train()
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    compare_layers(task, a, b)
    assert_array_equal(torch.get_rng_state(), state)
    assert task.model.training
    assert not any(module._forward_hooks for module in task.model.modules())
    for name, tensor in task.model.state_dict().items():
        assert_array_equal(tensor, before[name])


def test_layer_names_are_in_the_order_of_the_forward_pass(pair):
    task, a, _ = pair
    assert layer_names(task, a, layers=["4", "0"]) == ["0", "4"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measure": "ckaa"}, "measure must be one of cca, svcca"),
        ({"layers": "conv1"}, "no layer matches 'conv1'"),
        ({"maps": "positions"}, "positions"),
        ({"blocks": 1}, "num_blocks must be 0 or at least 2"),
        ({"blocks": 61}, "at most the number of examples, 60, .* got 61"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"measure": []}, r"measure must be one of .*, or several, got \[\]"),
        ({"measure": "svcca", "threshold": 1.5}, r"^threshold must be in \(0, 1\], got 1.5"),
        ({"measure": ["cka", "pwcca"], "weights": "z"}, "^weights must be 'x', 'y'.*got 'z'"),
    ],
)
def test_options_that_mean_nothing_are_refused(pair, options, message):
    task, a, b = pair
    with pytest.raises(ValueError, match=message):
        compare_layers(task, a, b, **options)


def test_too_few_examples_are_refused_or_warned_of():
    model = network(width=30)
    few = task_of(model, num=25)
    with pytest.raises(ValueError, match="25"):
        compare_layers(few, model.state_dict(), layers="1", measure="cca", blocks=0)
    some = task_of(network(), num=8)
    with pytest.warns(UserWarning, match="1 of 1 pairs of layers are 1 whatever the data"):
        result = compare_layers(some, network().state_dict(), layers="0", measure="cca", blocks=0)
    assert result["num_forced"].item() == 3


def test_too_few_examples_without_a_block_name_the_layers_and_the_way_out():
    few = task_of(network(), num=9)
    message = "^1 and 1, without one of 3 blocks .* 6 examples .* blocks=0 for no standard errors"
    with pytest.raises(ValueError, match=message):
        compare_layers(few, network().state_dict(), layers="1", measure="cca", blocks=3)


def test_values_that_are_nan_have_a_reason(pair):
    task, a, b = pair
    b["2.weight"] = torch.zeros_like(b["2.weight"])
    with pytest.warns(UserWarning, match="1 of 1 pairs .* nan: 2 and 2: no neuron of y varies"):
        result = compare_layers(task, a, b, layers="2", measure=["pwcca", "procrustes"])
    assert np.isnan(result["pwcca"].item())
    assert np.isnan(result["pwcca_stderr"].item())
    assert result["other_rank"].item() == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda task, a, b: layer_convergence(task, []), "no states to compare"),
        (lambda task, a, b: layer_matrix(task, []), "no states to compare"),
        (lambda task, a, b: layer_convergence(task, [a, b], steps=[0]), r"each of the 2 .* \[0\]"),
        (lambda task, a, b: layer_matrix(task, [a, b], ["a", "a"]), "a step or name of its own"),
        (lambda task, a, b: layer_matrix(task, [a, b], rows=[2]), r"of the 2 states, got \[2\]"),
        (lambda task, a, b: layer_matrix(task, [a, b], dim="seed"), "dim must be 'step' or 'run'"),
    ],
)
def test_states_without_a_label_each_are_refused(pair, call, message):
    with pytest.raises(ValueError, match=message):
        call(*pair)


def test_each_comparison_says_whether_it_was_exact(pair):
    """The last one alone would not tell of those before."""
    task, a, b = pair
    poor = {name: tensor.clone() for name, tensor in a.items()}
    poor["0.weight"][1] = poor["0.weight"][0] + 1e-7 * poor["0.weight"][1]
    poor["0.bias"][1] = poor["0.bias"][0]
    result = layer_convergence(task, [poor, b], layers="0,4", dtype=torch.float64, steps=[0, 1])
    assert_array_equal(result["exact"], [[1, 0], [0, 0]])


def test_the_second_pass_is_made_only_if_it_fits(monkeypatch):
    model = network()
    with torch.no_grad():
        model[0].weight[1] = model[0].weight[0] + 1e-7 * model[0].weight[1]
        model[0].bias[1] = model[0].bias[0]
    options = {"layers": "0", "dtype": torch.float64, "blocks": 0}
    free = moments_bytes([[5, 5]], Comparison(blocks=0), "average")
    monkeypatch.setattr("landscape.analyses.layer_pairs.free_memory", lambda device: free)
    with pytest.raises(ValueError, match="running QR of up to 10 .* exact=False"):
        compare_layers(task_of(model), model.state_dict(), **options)
    compare_layers(task_of(model), model.state_dict(), exact=False, **options)


def test_the_moments_of_every_frequency_are_counted():
    how = Comparison()
    once = moments_bytes([[6, 8]], how, "average")
    assert moments_bytes([[3, 4]], how, "frequency:4x4") == 12 * once
    assert moments_bytes([[6], [8]], how, "average") < once * 2


def test_moments_that_do_not_fit_are_refused_before_any_pass(pair, monkeypatch):
    task, a, b = pair
    monkeypatch.setattr("landscape.analyses.layer_pairs.free_memory", lambda device: 1000)
    with pytest.raises(ValueError, match="GiB are free: choose fewer layers"):
        compare_layers(task, a, b)


def test_states_that_diverged_are_named_by_layer():
    model = network()
    state = model.state_dict()
    state["2.weight"] = state["2.weight"] * float("inf")
    with pytest.raises(ValueError, match="activations of 2, 3, 4 are not finite in batch 0"):
        compare_layers(task_of(model), state, network(1).state_dict())
