import pytest
import torch
from cases import CASES
from numpy.testing import assert_allclose
from torch import nn

from landscape.directions import random_directions


class Everything(nn.Module):
    """One layer of each kind, and parameters of its own."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.conv = nn.Conv2d(4, 6, 3, groups=2)
        self.transposed = nn.ConvTranspose2d(4, 6, (2, 3))
        self.grouped = nn.ConvTranspose1d(6, 4, 3, groups=2)
        self.embed = nn.Embedding(5, 3, padding_idx=1)
        self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
        self.lstm = nn.LSTM(3, 4, proj_size=2)
        self.cell = nn.GRUCell(3, 2)
        self.norms = nn.ModuleList(
            [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm((2, 3)), nn.RMSNorm((2, 3))]
        )
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.position_bias = nn.Parameter(torch.randn(4, 4))
        self.gain = nn.Parameter(torch.randn(4))
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("table", torch.randn(4, 4))


def everything():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Everything().double()


# For each tensor that moves: a function that gives the norm of each of its units, by a plain loop.
def rows(w):
    return [row.norm() for row in w]


def columns_of_groups(groups):
    def norms(w):  # (inputs, outputs of a group, ...): a unit sees the inputs of its group
        blocks = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
        return [block[:, j].norm() for block in blocks for j in range(w.shape[1])]

    return norms


UNITS = {
    "linear.weight": rows,
    "conv.weight": rows,
    "transposed.weight": columns_of_groups(1),
    "grouped.weight": columns_of_groups(2),
    "embed.weight": rows,
    "attention.in_proj_weight": rows,
    "attention.out_proj.weight": rows,
    "lstm.weight_ih_l0": rows,
    "lstm.weight_hh_l0": rows,
    "lstm.weight_hr_l0": rows,
    "cell.weight_ih": rows,
    "cell.weight_hh": rows,
    "token": lambda w: [w.norm()],
}


def test_filter_norms_are_those_of_the_weights_by_layer_type():
    model = everything()
    state = model.state_dict()
    directions = random_directions(state, model=model)
    assert len(directions) == 2
    for direction in directions:
        assert direction.keys() == UNITS.keys()
        for name, norms in UNITS.items():
            assert_allclose(norms(direction[name]), norms(state[name]), rtol=1e-12)
    assert len(UNITS["grouped.weight"](state["grouped.weight"])) == 4  # output channels
    assert (directions[0]["embed.weight"][1] == 0).all()  # 0/0: the padding row is zero
    assert not any(name.startswith("norms") or "bias" in name for name in directions[0])


def test_layer_and_model_norms_are_those_of_the_weights():
    model = everything()
    state = model.state_dict()
    (by_layer,) = random_directions(state, model=model, normalise="layer", num=1)
    for name in UNITS:
        assert_allclose(by_layer[name].norm(), state[name].norm(), rtol=1e-12)
    (by_model,) = random_directions(state, model=model, normalise="model", num=1)
    (raw,) = random_directions(state, model=model, normalise=None, num=1)
    ratios = [(by_model[name] / raw[name]).flatten() for name in UNITS]
    whole = sum(state[name].square().sum() for name in UNITS) ** 0.5
    drawn = sum(raw[name].square().sum() for name in UNITS) ** 0.5
    assert_allclose(torch.cat(ratios), whole / drawn, rtol=1e-12)  # one norm, computed once


def test_draws_are_gaussian_of_zero_mean_and_nearly_orthogonal():
    state = {"w": torch.ones(400, 250), "bias": torch.ones(3)}
    a, b = (d["w"].flatten() for d in random_directions(state, normalise=None))
    assert abs(a.mean()) < 4 / len(a) ** 0.5
    assert abs(a.var() - 1) < 4 * (2 / len(a)) ** 0.5
    assert abs((a**4).mean() - 3) < 4 * (96 / len(a)) ** 0.5
    assert abs(a @ b / (a.norm() * b.norm())) < 4 / len(a) ** 0.5
    scaled = [d["w"].flatten() for d in random_directions(state)]
    assert abs(scaled[0] @ scaled[1] / (scaled[0].norm() * scaled[1].norm())) < 0.02
    ones = torch.ones_like(scaled[0])
    assert abs(scaled[0] @ ones / (scaled[0].norm() * ones.norm())) < 0.02


def test_directions_depend_on_the_seed_alone():
    state = CASES["mlp"].states(1)[0]
    (once,), (again, _), (other,) = (
        random_directions(state, num=1),
        random_directions({n: t.half() for n, t in state.items()}, normalise=None),
        random_directions(state, num=1, seed=1),
    )
    raw = random_directions(state, num=1, normalise=None)[0]
    before = torch.get_rng_state()
    assert all(torch.equal(raw[name], again[name]) for name in raw)
    assert all(torch.equal(once[n], random_directions(state, num=1)[0][n]) for n in once)
    assert not torch.equal(once["0.weight"], other["0.weight"])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("with_model", [True, False])
def test_tied_weights_share_one_direction(with_model):
    case = CASES["tokens"]
    model = case.model()
    state = {n: t for n, t in model.state_dict().items() if n != "table"}
    (direction,) = random_directions(state, model=model if with_model else None, num=1)
    assert direction.keys() == {"embed.weight", "out.weight"}
    assert torch.equal(direction["embed.weight"], direction["out.weight"])


def test_without_a_model_tensors_of_one_axis_do_not_move():
    state = CASES["group-norm"].states(1)[0]
    (direction,) = random_directions(state, num=1)
    assert direction.keys() == {"0.weight", "4.weight"}
    for name in direction:
        norms = direction[name].flatten(1).norm(dim=1)
        assert_allclose(norms, state[name].double().flatten(1).norm(dim=1), rtol=1e-12)


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="normalise must be 'filter', 'layer', 'model' or None"):
        random_directions({"w": torch.ones(2, 2)}, normalise="weight")
    with pytest.raises(ValueError, match=r"nothing would move.*\(b\).*affine"):
        random_directions({"b": torch.ones(2)})


def test_zero_weights_do_not_move():
    (direction,) = random_directions({"w": torch.zeros(2, 2)}, num=1)
    assert torch.equal(direction["w"], torch.zeros(2, 2).double())
