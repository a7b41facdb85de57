import pytest
import torch
from cases import CASES, Tokens
from numpy.testing import assert_allclose
from torch import nn

from landscape import states


def test_flatten_and_unflatten_are_inverse():
    a, b = CASES["residual"].states()
    names = states.weight_names(a)
    matrix = states.flatten([a, b], names)
    assert matrix.shape == (2, sum(a[name].numel() for name in names))
    stacked = states.unflatten(matrix, a, names)
    for name in names:
        torch.testing.assert_close(stacked[name][1], b[name].double(), rtol=0, atol=0)
        assert stacked[name].shape == (2, *a[name].shape)


def test_a_scalar_weight_survives_the_round_trip():
    state = {"scale": torch.tensor(2.0), "w": torch.ones(3)}
    vector = states.flatten([state], state)[0]
    assert states.unflatten(vector, state, state)["scale"].item() == 2.0


def test_norm_and_distance_leave_statistics_out():
    a = {"w": torch.tensor([3.0]), "bn.running_mean": torch.tensor([100.0]), "n": torch.tensor(5)}
    b = {"w": torch.tensor([-1.0]), "bn.running_mean": torch.tensor([0.0]), "n": torch.tensor(7)}
    assert states.norm(a) == 3.0
    assert states.distance(a, b) == 4.0


def test_distance_is_summed_in_double_precision():
    a = {"w": torch.full((10**6,), 1.0)}
    b = {"w": torch.full((10**6,), 1.0 + 2**-20)}
    assert_allclose(states.distance(a, b), 1e3 * 2**-20, rtol=1e-12)


def test_inner_products_keep_the_digits_of_small_differences(monkeypatch):
    monkeypatch.setattr(states, "PIECE", 3)  # pieces of unlike lengths
    generator = torch.Generator().manual_seed(2)
    origin = {n: 1e6 + torch.randn(s, generator=generator) for n, s in (("w", (2, 4)), ("b", (1,)))}
    steps = torch.randn(3, 9, generator=generator, dtype=torch.float64)
    moved = [
        {"w": origin["w"].double() + s[:8].view(2, 4), "b": origin["b"].double() + s[8:]}
        for s in steps
    ]
    steps = torch.stack(
        [torch.cat([m[n].flatten() - origin[n].flatten() for n in m]) for m in moved]
    )
    found = states.inner_products(moved, origin, origin=origin)
    assert_allclose(found, steps @ steps.T, rtol=1e-13)
    mix = torch.tensor([[1.0, -1.0, 0.0], [0.5, 0.25, -3.0]], dtype=torch.float64)
    found = states.inner_products(moved, origin, origin=origin, mix=mix)
    assert_allclose(found, mix @ steps @ steps.T @ mix.T, rtol=1e-12)
    rows = states.flatten(moved, ["w"])
    assert_allclose(states.inner_products(moved, ["w"]), rows @ rows.T, rtol=1e-14)
    assert_allclose(states.inner_products(moved, []), torch.zeros(3, 3))


def test_states_of_two_architectures_are_told_apart():
    with pytest.raises(ValueError, match=r"wrong shape \(1\): weight expected \(2, 3\), found"):
        states.distance(nn.Linear(3, 2).state_dict(), nn.Linear(4, 2).state_dict())


def test_match_names_five_of_each_and_the_closest():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    state = {f"layers.{name}": tensor for name, tensor in model.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"missing \(8\): 0.weight \(closest: layers.0.weight\)"
    ) as e:
        states.match(state, model)
    assert "unexpected (8): layers.0.weight" in str(e.value)
    assert "3.weight" not in str(e.value)


def test_match_orders_fills_ties_and_allows_what_it_is_told():
    model = Tokens()
    state = dict(reversed(model.state_dict().items()))
    del state["out.weight"]
    del state["norm.bias"]
    with pytest.raises(ValueError, match=r"missing \(1\): norm.bias"):
        states.match(state, model)
    filled = states.match(state, model, allow_missing=["norm.*"])
    assert list(filled) == list(model.state_dict())
    assert filled["out.weight"] is state["embed.weight"]


def test_a_tie_with_two_values_is_refused():
    model = Tokens()
    state = model.state_dict() | {"out.weight": torch.zeros(7, 5)}
    with pytest.raises(ValueError, match=r"ties embed.weight, out.weight, but their values"):
        states.match(state, model)


def test_tied_names():
    assert states.tied_names(Tokens()) == [["embed.weight", "out.weight"]]


def test_a_state_is_loaded_where_it_is_stored():
    class Stored:
        def load(self):
            return {"w": torch.ones(1)}

    state = {"w": torch.zeros(1)}
    assert states.loaded(state) is state
    assert states.loaded(Stored())["w"] == 1
