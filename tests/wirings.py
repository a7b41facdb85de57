"""Small models, one for each way in which units are wired: what alignment must see through."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from landscape import models


class FusedAttention(nn.Module):
    """Queries, keys and values from one layer, told apart by a view, as in many vision models."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 12)
        self.norm = nn.LayerNorm(12)
        self.qkv = nn.Linear(12, 36)
        self.project = nn.Linear(12, 12)
        self.out = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n, t, e = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, t, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        attention = (q @ k.transpose(-2, -1) / 2).softmax(-1)
        x = x + self.project((attention @ v).transpose(1, 2).reshape(n, t, e))
        return self.out(x.mean(1))


class ChunkedAttention(FusedAttention):
    """The same, told apart by chunks of each head."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n, t, e = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, t, 3, 12).transpose(1, 2).chunk(3, -1)
        x = x + self.project(
            F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, e)
        )
        return self.out(x.mean(1))


class GroupedQueries(nn.Module):
    """Four heads of queries, two of keys and values, a tied embedding, a norm within heads."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 10)
        self.q, self.k, self.v = (nn.Linear(10, size, bias=False) for size in (12, 6, 6))
        self.norm = nn.RMSNorm(3) if norm else nn.Identity()
        self.project = nn.Linear(12, 10)
        self.out = nn.Linear(10, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        n, t, _ = x.shape
        q, k, v = (f(x).view(n, t, -1, 3).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = self.norm(q), self.norm(k)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out(x + self.project(out.transpose(1, 2).flatten(2)))


class Encoder(nn.Module):
    """`nn.TransformerEncoderLayer`, which has a fast path that tracing must not take."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.position = nn.Parameter(torch.randn(5, 8) / 3)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(self.embed(x) + self.position).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind: Any = nn.LSTM, **options: Any) -> None:
        super().__init__()
        self.body = kind(3, 6, batch_first=True, **options)
        self.out = nn.LazyLinear(2)
        self(torch.zeros(1, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x)[0][:, -1])


class Dense(nn.Module):
    """Units of two layers side by side, as in DenseNet, and half of them gated."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(10)
        self.third = nn.Conv2d(10, 8, 1)
        self.out = nn.Linear(4 * 25, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.cat([x, torch.relu(self.second(x))], dim=1)
        return self.out(F.glu(self.third(self.norm(x)), dim=1).flatten(1))


def _grouped() -> nn.Module:
    """Grouped, depthwise, transposed and transposed grouped convolutions, with group norm."""
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.GroupNorm(2, 8),
        nn.GELU(),
        nn.Conv2d(8, 12, 3, padding=1, groups=2),
        nn.GELU(),
        nn.Conv2d(12, 12, 3, padding=1, groups=12),
        nn.GELU(),
        nn.ConvTranspose2d(12, 8, 2, stride=2, groups=4),
        nn.GELU(),
        nn.ConvTranspose2d(8, 5, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    )


@dataclass(frozen=True)
class Wiring:
    """A model, inputs for it, and its groups: sizes, each with the sizes of what it is within."""

    model: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]
    groups: tuple[tuple[int, ...], ...]

    def made(self, seed: int = 0) -> nn.Module:
        """The model with random weights, biases and statistics."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.model()
            for name, tensor in model.state_dict().items():
                if name.endswith("running_var"):
                    tensor.uniform_(0.5, 2)
                elif tensor.is_floating_point() and tensor.ndim == 1:
                    tensor.normal_(1.0 if name.endswith("weight") else 0.0, 0.3)
        return model.eval()


def _numbers(*shape: int) -> Callable[[int], Tensor]:
    return lambda num: torch.randn(num, *shape, generator=torch.Generator().manual_seed(5))


def _tokens(num: int) -> Tensor:
    return torch.randint(0, 7, (num, 5), generator=torch.Generator().manual_seed(5))


WIRINGS = {
    "mlp": Wiring(partial(models.mlp, 6, (8, 5), 3), _numbers(6), ((8,), (5,))),
    "mlp-norm": Wiring(partial(models.mlp, 6, (8, 5), 3, True), _numbers(6), ((8,), (5,))),
    "lenet": Wiring(partial(models.lenet, size=12), _numbers(1, 12, 12),
                    ((6,), (16,), (120,), (84,))),
    "cnn": Wiring(partial(models.small_cnn, 2, 3, 4), _numbers(2, 8, 8), ((4,), (8,), (16,))),
    "resnet20": Wiring(partial(models.resnet20, 2, 3, 4), _numbers(2, 8, 8),
                       tuple((n,) for n in (4, 4, 4, 4, 8, 4, 8, 8, 16, 8, 16, 16))),
    "resnet20-plain": Wiring(partial(models.resnet20, 2, 3, 4, False, False), _numbers(2, 8, 8),
                             tuple((n,) for n in [4] * 7 + [8] * 6 + [16] * 6)),
    "vgg16": Wiring(partial(models.vgg16, 2, 3, 2), _numbers(2, 32, 32),
                    tuple((n,) for n in [2] * 2 + [4] * 2 + [8] * 3 + [16] * 6)),
    "grouped": Wiring(_grouped, _numbers(2, 4, 4),
                      ((2,), (5,), (2, 4), (2, 2), (2, 2, 3), (2, 2, 2))),
    "dense": Wiring(Dense, _numbers(2, 5, 5), ((4,), (6,), (4,))),
    "encoder": Wiring(Encoder, _numbers(5, 3), ((8,), (2,), (16,), (2, 4), (2, 4))),
    "fused": Wiring(FusedAttention, _numbers(5, 3), ((12,), (3,), (3, 4), (3, 4))),
    "chunked": Wiring(ChunkedAttention, _numbers(5, 3), ((12,), (3,), (3, 4), (3, 4))),
    "grouped-queries": Wiring(GroupedQueries, _tokens,
                              ((10,), (2,), (2, 2), (2, 3), (2, 3))),
    "normed-queries": Wiring(partial(GroupedQueries, True), _tokens,
                             ((10,), (2,), (3,), (2, 2), (2, 3))),
    "lstm": Wiring(Recurrent, _numbers(4, 3), ((6,),)),
    "lstm-two": Wiring(partial(Recurrent, num_layers=2, bidirectional=True), _numbers(4, 3),
                       ((6,),) * 4),
    "gru": Wiring(partial(Recurrent, nn.GRU), _numbers(4, 3), ((6,),)),
    "rnn": Wiring(partial(Recurrent, nn.RNN), _numbers(4, 3), ((6,),)),
}  # fmt: skip
